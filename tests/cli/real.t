#!/bin/bash
# real: clips from cameras and encoders of all kinds go through ma-extract and ma-flow with published weights; a clip cut
# in half on disk is named and skipped. QUICK=1: two of them.
set -u
. tests/cli/tap.sh

weights=$SHARED/assets/raft/raft-small.pth
videos=("$SHARED"/assets/video/*.m[kp][v4])
if ! [ -r "${videos[0]}" ]; then
    skip "no clips in $SHARED/assets/video"
    finish
fi
[ -z "$QUICK" ] || videos=("${videos[0]}" "${videos[-1]}")
clip=5x128x192

# Shapes, finite values and some spread of a sample's arrays: SHARD KEY EXT "(SHAPE)".
check() {
    zstd -dcqf "$1" | tar -xOf - "$2.$3" > "$dir/array.npy" 2> "$dir/err" && "$PYTHON" - "$dir/array.npy" "$4" 2> "$dir/err" << 'P'
import ast, math, struct, sys
data = open(sys.argv[1], "rb").read()
n = struct.unpack("<H", data[8:10])[0]
head, body = ast.literal_eval(data[10:10 + n].decode()), data[10 + n:]
want = ast.literal_eval(sys.argv[2])
assert data[:6] == b"\x93NUMPY" and head["descr"] == "<f2" and head["shape"] == want, head
assert len(body) == 2 * math.prod(want), len(body)
values = [v for v, in struct.iter_unpack("<e", body)]
assert all(map(math.isfinite, values)) and max(values) - min(values) > 1e-3, (min(values), max(values))
P
}

run 0 "$O/ma-extract" -e videomae=random:64x2 -e pixel=8 --clip $clip -o "$dir/features.tar.zst" "${videos[@]}" && silent
ok "ma-extract: ${#videos[@]} clips without a complaint"
for video in "${videos[@]}"; do
    key=${video##*/} key=${key%.*}
    check "$dir/features.tar.zst" "$key" videomae.npy "(2, 8, 12, 64)" && check "$dir/features.tar.zst" "$key" latent.npy "(384, 5, 16, 24)" &&
        zstd -dcq "$dir/features.tar.zst" | tar -xOf - "$key.${video##*.}" | cmp - "$video" 2> "$dir/err"
    ok "features of $key; the file itself goes along unchanged"
done
if [ -r "$weights" ]; then
    run 0 "$O/ma-flow" -m "$weights" --clip $clip -o "$dir/flow.tar.zst" "${videos[@]}" && silent
    ok "ma-flow: ${#videos[@]} clips without a complaint"
    for video in "${videos[@]}"; do
        key=${video##*/} key=${key%.*}
        check "$dir/flow.tar.zst" "$key" flow.npy "(1, 128, 192, 2)"
        ok "flow of $key"
    done
else
    skip "no $weights"
fi

# ---- cut in half on disk
mkdir "$dir/cut"
for video in "${videos[@]}"; do
    head -c $(($(stat -c %s "$video") / 2)) "$video" > "$dir/cut/cut-${video##*/}"
done
run 1 "$O/ma-extract" -e pixel=8 --clip $clip -o "$dir/some.tar.zst" "$dir/cut"/* "${videos[0]}" && says "1 good, ${#videos[@]} bad: ${#videos[@]} cut"
ok "ma-extract: every clip that is cut in half is bad, the whole one is good, exit 1"
for video in "${videos[@]}"; do
    says "ma-extract: cut-${video##*/}: cut"
    ok "it is named: cut-${video##*/}"
done
key=${videos[0]##*/} key=${key%.*}
[ "$(members "$dir/some.tar.zst" | sed 's/\..*//' | sort -u)" = "$key" ]
ok "the whole one alone is written"
if [ -r "$weights" ]; then
    run 1 "$O/ma-flow" -m "$weights" --clip $clip -o "$dir/some.tar.zst" "$dir/cut/cut-${videos[0]##*/}" "${videos[-1]}" && says "1 good, 1 bad: 1 cut"
    ok "ma-flow: the same"
fi
finish
