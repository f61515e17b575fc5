#!/bin/bash
# preset: --preset moalign-2b on the tools that have a section in it: what it sets, what wins over it, where it is found,
# what is wrong with one.
set -u
. tests/cli/tap.sh

json() { # SHARD TOOL KEY…: options in KEY.json's entry
    zstd -dcqf "$1" | tar -xOf - --wildcards '*.json' 2> "$dir/err" |
        "$PYTHON" -c 'import json, sys
o = json.load(sys.stdin)[sys.argv[1]]["options"]
print(*[o.get(k) for k in sys.argv[2:]])' "${@:2}" 2>> "$dir/err"
}
is() { # GOT WANT
    [ "$1" = "$2" ] || { printf 'got:  %s\nwant: %s\n' "$1" "$2" >> "$dir/err"; false; }
}
plan() { # TOOL ARGUMENT…: its --dry-run
    run 0 "$O/$1" --dry-run "${@:2}"
}

# ---- moalign-2b: the numbers of METHOD, in every tool
plan ma-extract --preset moalign-2b -e videomae=random:32x1 && grep -q "1x48x160x240x3 -> 1x24x10x15x32" "$dir/out"
ok "ma-extract: 49 frames of 160x240, of which 48 are tokens"
run 0 "$O/ma-toy" -n 1 --clip 49x160x240 -o "$dir/toy.tar.zst" &&
    run 0 "$O/ma-extract" --preset moalign-2b -e pixel=16 -o "$dir/x.tar.zst" "$dir/toy.tar.zst" &&
    is "$(json "$dir/x.tar.zst" ma-extract clip fit start)" "49x160x240 crop 0"
ok "KEY.json tells the values"
run 0 "$O/ma-extract" --clip 9x32x48 -e pixel=16 --preset moalign-2b --fit=pad -o "$dir/x.tar.zst" "$dir/toy.tar.zst" &&
    is "$(json "$dir/x.tar.zst" ma-extract clip fit start)" "9x32x48 pad 0"
ok "an option of the command line wins, before the preset and behind it"
real=$SHARED/assets/raft/raft-small.pth
if [ -r "$real" ]; then
    plan ma-flow --preset moalign-2b -m "$real" && grep -q "12 updates" "$dir/out" &&
        grep -q "23 flows a clip, .* 4x128x192x2" "$dir/out"
    ok "ma-flow: 23 flows of 128x192"
    plan ma-flow --preset moalign-2b -m "$real" --stride 4 --updates 3 && grep -q "3 updates" "$dir/out" && grep -q "11 flows" "$dir/out"
    ok "ma-flow: overridden"
else
    skip "no published RAFT weights"
fi
toy="$O/ma-toy -n 2 --clip 5x32x48"
pipe 0 "$toy | $O/ma-extract -e videomae=random:32x1 --clip 5x32x48 -o $dir/f.tar.zst"
run 0 "$O/ma-subspace" train --preset moalign-2b --steps 2 --batch 1 -o "$dir/m.safetensors" "$dir/f.tar.zst" &&
    grep -q '"step":1,.*"lr":1e-07' "$dir/m.safetensors.jsonl" && [ "$(wc -l < "$dir/m.safetensors.jsonl")" = 2 ] &&
    head -c 4000 "$dir/m.safetensors" | grep -aq '\[256,32,3,1,1\]'
ok "ma-subspace: 1,000 steps of warm-up to 1e-4, 256 between the layers; --steps and --batch overridden"

# ---- every section
for tool in ma-toy ma-sheet; do
    run 2 "$O/$tool" --preset moalign-2b && says "unknown option"
    ok "$tool has no --preset"
done
for f in pipelines/presets/*; do
    for tool in $(sed -n 's/^\[\(.*\)\].*/\1/p' "$f"); do
        verb=$([ "$tool" != ma-subspace ] || echo train)
        run 2 "$O/$tool" $verb --preset "./$f" -d nonsense && says "--device: nonsense" # which is looked at after the preset
        ok "$f: [$tool] is a tool, with these options"
    done
done

# ---- where it is found
mkdir -p "$dir/bin" "$dir/share/ma-tools/presets" && cp "$O/ma-extract" "$dir/bin/" &&
    printf '[ma-extract]\nclip = 9x32x32\n' > "$dir/share/ma-tools/presets/mine"
here=$PWD
cd "$dir" && run 0 bin/ma-extract --preset mine -e pixel=16 --dry-run && grep -q "9x32x32x3" "$dir/out"
ok "beside the installed tools"
run 0 bin/ma-extract --preset share/ma-tools/presets/mine -e pixel=8 --dry-run && grep -q "384x9x4x4" "$dir/out"
ok "a path"
run 2 bin/ma-extract --preset nothere -e pixel=16 && says "--preset: presets/nothere: neither in" && says "share/ma-tools nor"
ok "one that is not there"
run 2 bin/ma-extract --preset ./nothere -e pixel=16 && says "--preset: ./nothere: No such file"
ok "a file that is not there"
cd "$here" || exit 2

# ---- what is wrong
bad() { # TEXT MESSAGE
    printf "$1" > "$dir/bad"
    run 2 "$O/ma-extract" --preset "$dir/bad" -e pixel=16 "$dir/toy.tar.zst" && says "$dir/bad$2" && [ "$(wc -l < "$dir/err")" = 1 ]
    ok "refused: $2"
}
bad '[ma-extract]\nclip = 9x32x32\nstride = 2\n' ':3: stride: unknown option'
bad '# x\n\n[ma-flow]\nstride = 2\n[ ma-flow ma-extract ] # both\n  ftt = crop\n' ':6: ftt: unknown option; did you mean fit?'
bad '[ma-extract]\nclip = 9x32\n' ':2: --clip: 9x32 is not FxHxW'
bad '[ma-extract]\nbatch = 0\n' ':2: --batch: 0 is not in 1..1024'
bad '[ma-extract]\nfit = crop\nfit = pad\n' ':3: fit: is there twice'
bad '[ma-extract]\nclip\n' ':2: clip: needs a value'
bad '[ma-extract]\n= 3\n' ':2: there is no name'
bad '[ma-extract\nfit = crop\n' ':1: a heading ends with ]'
bad 'fit = crop\n' ':1: fit = crop stands before the first heading'
bad '[ma-flow]\nstride = 2\n' ': there is no section [ma-extract]'
bad '[ma-extract]\nlevel = 3\n' ':2: level: belongs on the command line'
bad '[ma-extract]\n\0\n' ': not text'
printf '[ma-extract]\r\nbatch = 2\r\nencoder = pixel=16\r\n' > "$dir/good"
run 0 "$O/ma-extract" --preset "$dir/good" --clip 9x32x32 --dry-run && grep -q "9x32x32x3" "$dir/out"
ok "CRLF; a list option"
run 0 "$O/ma-extract" --preset "$dir/good" --clip 9x32x32 -e pixel=8 --dry-run && grep -q "384x9x4x4" "$dir/out"
ok "which the command line replaces whole"
finish
