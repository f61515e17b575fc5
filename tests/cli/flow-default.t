#!/bin/bash
# flow-default: ma-flow without -m takes the weights that come with the tools, where they are found, and on two real scenes
# their end-point error is at most 1.5 times that of the published RAFT-small. Needs the weights, and the scenes the assets.
set -u
. tests/cli/tap.sh

weights=pipelines/toy/weights/raft-small.safetensors
if ! [ -r $weights ]; then
    echo "1..0 # SKIP no $weights"
    exit 0
fi

# ---- where they are found
size=$(wc -c < $weights)
[ "$size" -lt 2200000 ]
ok "half precision: $size bytes"
run 0 "$O/ma-toy" -q -n 1 --clip 5x48x48 -o "$dir/toy.tar" && run 0 "$O/ma-flow" -q --clip 5x48x48 --updates 2 \
    --out-size native -o "$dir/tree.tar.zst" "$dir/toy.tar" && members "$dir/tree.tar.zst" | grep -q '\.flow\.npy$'
ok "in the source tree"
mkdir -p "$dir/bin" "$dir/share/ma-tools/toy/weights" && cp "$O/ma-flow" "$dir/bin/"
here=$PWD
cd "$dir" || exit 2
run 2 bin/ma-flow --dry-run && says "give -m WEIGHTS" && says "neither in" && [ "$(wc -l < err)" = 1 ]
ok "exit 2 where they are not"
cp "$here/$weights" share/ma-tools/toy/weights/ && run 0 bin/ma-flow --dry-run && grep -q "^RAFT-small, " out
ok "beside the installed tools"
cd "$here" || exit 2

# ---- how good they are
scene() { # NAME HEIGHT WIDTH PUBLISHED: the published weights' error, of tests/golden/raft-real
    local from=$SHARED/assets/flow/$1 got
    if ! [ -r "$from/frame10.png" ] || ! [ -r "$from/flow10.flo.xz" ]; then
        skip "no scene $1"
        return
    fi
    mkdir "$dir/$1" && cp "$from/frame10.png" "$dir/$1/0.png" && cp "$from/frame11.png" "$dir/$1/1.png" &&
        xz -dc "$from/flow10.flo.xz" > "$dir/$1/true.flo" &&
        ffmpeg -v error -framerate 1 -i "$dir/$1/%d.png" -c:v ffv1 -pix_fmt bgr0 "$dir/$1/pair.mkv" 2> "$dir/err" &&
        run 0 "$O/ma-flow" -z 0 --clip "2x$2x$3" --skip 0 --stride 1 --out-size native --format flo \
            -o "$dir/$1/flow.tar" "$dir/$1/pair.mkv" &&
        tar -C "$dir/$1" -xf "$dir/$1/flow.tar" && run 0 "$O/ma-flow" eval "$dir/$1/true.flo" "$dir/$1/pair.flow-000.flo"
    got=$(awk '$1 == "mean" { print $3 }' "$dir/out")
    awk -v got="$got" -v want="$4" 'BEGIN { exit !(got != "" && got <= 1.5 * want) }'
    ok "$1: end-point error ${got:-unknown}, published $4"
}
scene RubberWhale 388 584 0.3199
scene Grove2 480 640 0.3551
finish
