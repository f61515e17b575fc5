#!/bin/bash
# man-program: the program in ma-shard(5) is what it says: it compiles, and lists the keys and shapes of a shard.
O=${O:-build} CC=${CC:-cc}
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
n=0
ok() { # NAME: the last command's status
    local rc=$?
    n=$((n + 1))
    [ $rc = 0 ] && echo "ok $n - $1" || echo "not ok $n - $1"
}

# The display that begins with an #include, with roff's escapes undone.
sed -n '/^\.Bd -literal/,/^\.Ed/p' man/ma-shard.5 |
    awk '/^\.Bd/ { text = ""; next } /^\.Ed/ { if (text ~ /^#include/) printf "%s", text; next } { text = text $0 "\n" }' |
    sed -e 's/\\e/\\/g' -e 's/\\&//g' -e 's/\\-/-/g' > "$dir/list.c"
[ -s "$dir/list.c" ] && [ "$(wc -l < "$dir/list.c")" -le 60 ]
ok "the page holds a program of at most 60 lines"
$CC -Wall -Wextra -Werror -o "$dir/list" "$dir/list.c" $(pkg-config --cflags --libs libarchive)
ok "it compiles without a warning"
for k in 0 1 2 3 4 5; do
    echo "clip-00000$k mp4"
    echo "clip-00000$k txt"
    echo "clip-00000$k flow.npy <f4 (2, 3, $k)"
done > "$dir/want"
for level in 0 3; do
    "$O/tests/shard/make" "$dir/a" $level && "$dir/list" "$dir/a" > "$dir/got" && diff "$dir/got" "$dir/want"
    ok "it lists a shard of level $level"
done
head -c 100000 "$dir/a" > "$dir/cut"
! "$dir/list" "$dir/cut" > "$dir/got" 2> "$dir/err" && [ -s "$dir/err" ]
ok "it fails on a shard that is cut"
if command -v mandoc > "$dir/log"; then
    mandoc -Tlint man/ma-shard.5 2>&1 | grep -v 'outdated mandoc.db' > "$dir/lint" # that is this machine's, not the page's
    cat "$dir/lint"
    ! [ -s "$dir/lint" ]
    ok "mandoc finds nothing to say against the page"
else
    n=$((n + 1))
    echo "ok $n # SKIP no mandoc"
fi
echo "1..$n"
