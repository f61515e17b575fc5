#!/bin/bash
# man: every tool has a page; --help and the page name the same options, letters and defaults; mandoc finds nothing to say.
set -u
. tests/cli/tap.sh

# Long options of --help, with their letters: "-o --out".
help_options() {
    sed -nE 's/^ +(-[a-z], )?(--[a-z0-9-]+).*/\1\2/p' "$1" | tr -d ',' | sort
}

# The same of the page's lists: ".It Fl o , Fl -out Ns = …".
page_options() {
    sed -nE 's/^\.It (Fl ([a-z]) , )?Fl -([a-z0-9-]+).*/\2 --\3/p' "$1" | sed -E 's/^([a-z]) /-\1 /; s/^ //' | sort
}

# "--steps 1000": options whose text, in one piece, names a default that is a number or has an x in it (a size).
help_defaults() {
    awk '/^ +(-[a-z], )?--[a-z]/ { sub(/^ +/, "\n"); } { printf "%s ", $0 }' "$1" | tr -s ' ' |
        sed -nE 's/^(-[a-z], )?(--[a-z0-9-]+) .*\(default ([0-9][^ ),]*).*/\2 \3/p' | sort
}
page_defaults() {
    awk '/^\.It Fl/ { print "" } /^\.(El|Ss|Sh)/ { print "" } { printf "%s ", $0 }' "$1" |
        sed -nE 's/^\.It (Fl [a-z] , )?Fl -([a-z0-9-]+) .*\(default ([0-9][^ ),]*).*/--\2 \3/p' | sort
}

for tool in "$O"/ma-*; do
    [ -f "$tool" ] && [ -x "$tool" ] || continue
    name=${tool##*/} page=man/${tool##*/}.1
    [ -r "$page" ]
    ok "$name has a page" || continue
    run 0 "$tool" --help && help_options "$dir/out" > "$dir/help" && page_options "$page" > "$dir/page" &&
        [ "$(wc -l < "$dir/help")" -ge 16 ] && diff "$dir/help" "$dir/page" > "$dir/err"
    ok "$name: --help and the page name the same options"
    help_defaults "$dir/out" > "$dir/help"
    page_defaults "$page" > "$dir/page"
    # A page may also say "the default" in words: what both write as (default …) is compared.
    join "$dir/help" "$dir/page" > "$dir/both"
    awk '$2 != $3 { print; bad = 1 } END { exit bad || !NR }' "$dir/both" > "$dir/err"
    ok "$name: they name the same defaults"
done

if command -v mandoc > "$dir/out"; then
    for page in man/*.[1-8]; do
        # Pages of ours that are referred to lie beside this one; others' need not be installed here.
        mandoc -Tlint "$page" 2>&1 | grep -v 'outdated mandoc.db' > "$dir/lint"
        sed -nE 's/.*referenced manual not found: Xr (ma-[a-z]+) ([1-8]).*/man\/\1.\2/p' "$dir/lint" | xargs -r ls > "$dir/out" 2> "$dir/err" &&
            ! grep -v 'referenced manual not found' "$dir/lint" >> "$dir/err"
        ok "mandoc finds nothing to say against $page"
    done
else
    skip "no mandoc"
fi
finish
