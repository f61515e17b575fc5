#!/bin/bash
# pipeline: the whole method on clips of a few pixels: a pipe with nothing on disk, then every tool in turn, and what
# each leaves. The networks are tiny and learn nothing worth having.
set -u
. tests/cli/tap.sh

clip=5x32x48
extract="$O/ma-extract -e videomae=random:32x2 -e pixel=4 --clip $clip"
train="--batch 2 --window 4 --warmup 0 --lr 1e-3"
head="--hidden 16 --width 8"

shapes() { # SHARD: "EXT dtype (shape)" of the arrays of its first sample
    zstd -dcqf "$1" > "$dir/plain.tar"
    for name in $(tar -tf "$dir/plain.tar" | grep '^clip-000000\..*npy$'); do
        tar -xOf "$dir/plain.tar" "$name" | head -c 128 | tr -d '\0' |
            sed -nE "s/.*'descr': '([^']*)'.*'shape': (\([^)]*\)).*/${name#clip-000000.} \1 \2/p"
    done
}
finite_log() { # FILE STEPS: a line a step, every loss a number
    [ "$(wc -l < "$1")" = "$2" ] && [ "$(grep -cE '^\{"step":[0-9]+,"loss":-?[0-9.]+(e[-+]?[0-9]+)?,.*\}$' "$1")" = "$2" ]
}
# A safetensors file: as long as its header says.
safetensors() {
    "$PYTHON" - "$@" << 'P'
import json, struct, sys
for path in sys.argv[1:]:
    data = open(path, "rb").read()
    n = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + n])
    ends = [t["data_offsets"][1] for k, t in head.items() if k != "__metadata__"]
    assert ends and 8 + n + max(ends) == len(data), path
P
}

# ---- nothing on disk
pipe 0 "$O/ma-toy -n 6 --clip $clip | $extract | $O/ma-subspace train -o $dir/piped.safetensors --steps 3 $train $head"
ok "ma-toy | ma-extract | ma-subspace train"
safetensors "$dir/piped.safetensors" 2> "$dir/err" && finite_log "$dir/piped.safetensors.jsonl" 3
ok "weights and log"

# ---- one after another
run 0 "$O/ma-toy" -n 6 --clip $clip -o "$dir/clips.tar.zst" && silent && [ "$(members "$dir/clips.tar.zst" | wc -l)" = 24 ]
ok "ma-toy: six clips of four members"
run 0 $extract -o "$dir/features.tar.zst" "$dir/clips.tar.zst" && silent
ok "ma-extract"
shapes "$dir/features.tar.zst" > "$dir/out"
diff "$dir/out" - > "$dir/err" << 'E'
flow.npy <f2 (1, 32, 48, 2)
latent.npy <f2 (96, 5, 8, 12)
videomae.npy <f2 (2, 2, 3, 32)
E
ok "its shapes: two tubelets, a flow between them, a latent a frame"

run 0 "$O/ma-subspace" train -o "$dir/motion.safetensors" --steps 3 $train $head "$dir/features.tar.zst" &&
    finite_log "$dir/motion.safetensors.jsonl" 3 && safetensors "$dir/motion.safetensors" 2> "$dir/err"
ok "ma-subspace train"
# The order differs: the pipe is read once, in windows. The first step draws the same samples.
[ "$(head -n 1 "$dir/motion.safetensors.jsonl" | cut -d, -f1,2)" = "$(head -n 1 "$dir/piped.safetensors.jsonl" | cut -d, -f1,2)" ]
ok "its first loss is that of the pipe"
run 0 "$O/ma-subspace" apply --flow -m "$dir/motion.safetensors" -o "$dir/train.tar.zst" "$dir/features.tar.zst" && silent
ok "ma-subspace apply"
shapes "$dir/train.tar.zst" | grep motion > "$dir/out"
diff "$dir/out" - > "$dir/err" << 'E'
motion.npy <f2 (2, 2, 3, 8)
motion-flow.npy <f2 (1, 32, 48, 2)
E
ok "its shapes"
run 0 "$O/ma-subspace" apply --flow -m "$dir/motion.safetensors" -o "$dir/again.tar.zst" "$dir/train.tar.zst" && silent &&
    cmp "$dir/train.tar.zst" "$dir/again.tar.zst" 2> "$dir/err"
ok "motion that is there is passed on"
run 0 "$O/ma-subspace" apply --flow --batch 1 -m "$dir/motion.safetensors" -o "$dir/one.tar.zst" "$dir/features.tar.zst" &&
    cmp "$dir/train.tar.zst" "$dir/one.tar.zst" 2> "$dir/err"
ok "one sample at a time gives the same bytes"
run 0 "$O/ma-subspace" apply -m "$dir/piped.safetensors" -o "$dir/other.tar.zst" "$dir/train.tar.zst" && says "made anew"
ok "motion of other weights is made anew, and that is said"
run 0 "$O/ma-subspace" eval -m "$dir/motion.safetensors" "$dir/train.tar.zst" && grep -qx "samples 6" "$dir/out" &&
    [ "$(grep -cE '^epe(_no_motion|_mean_motion)? [0-9]+\.[0-9]{4}$' "$dir/out")" = 3 ]
ok "ma-subspace eval prints the errors"
run 2 "$O/ma-subspace" eval -m "$dir/motion.safetensors" - < "$dir/train.tar.zst" && says "twice"
ok "eval of standard input is refused"
pipe 0 "$O/ma-toy -n 2 --clip 5x48x48 | $O/ma-extract -e videomae=random:32x2 --clip 5x48x48 -o $dir/square.tar.zst" &&
    run 1 "$O/ma-subspace" eval -m "$dir/motion.safetensors" "$dir/square.tar.zst" && says "predicts 1x32x48x2"
ok "eval of flow on another grid is refused"
run 1 "$O/ma-subspace" train -o "$dir/mixed.safetensors" --steps 1 --batch 1 --window 8 $head "$dir/features.tar.zst" "$dir/square.tar.zst" &&
    says "clip-000001: videomae.npy is 2x3x3x32" && says "6 good, 2 bad: 2 shape" && [ -s "$dir/mixed.safetensors" ]
ok "train: samples of another shape are named and left out"
run 1 "$O/ma-subspace" train -o "$dir/none.safetensors" --steps 1 "$dir/clips.tar.zst" && says "no sample to train on" &&
    ! [ -e "$dir/none.safetensors" ]
ok "train: samples without features are named; nothing is written"

run 2 "$O/ma-subspace" train -o "$dir/weights.bin" --steps 1 "$dir/features.tar.zst" && says ".safetensors" && ! [ -e "$dir/weights.bin.state" ]
ok "train: a name that cannot be written is refused before the work"

# ---- diffusion
tiny_base
ok "a tiny base"
run 0 "$O/ma-align" -b "$dir/tiny" --from-scratch --loss none -o "$dir/base" --steps 3 $train "$dir/train.tar.zst" &&
    finite_log "$dir/base/log.jsonl" 3 && ! [ -e "$dir/base/projector.safetensors" ]
ok "ma-align from scratch, without a teacher"
[ -s "$dir/base/model_index.json" ] && [ -s "$dir/base/scheduler/scheduler_config.json" ] && [ -s "$dir/base/vae/config.json" ] &&
    [ -s "$dir/base/transformer/config.json" ] &&
    safetensors "$dir/base/transformer/diffusion_pytorch_model.safetensors" 2> "$dir/err" &&
    [ -z "$(find "$dir/base" -name '*.tmp' -o -name '*.old')" ]
ok "the result is a whole base, with nothing half-made in it"
for loss in soft-trd trd trd-spatial trd-temporal repa; do
    run 0 "$O/ma-align" -b "$dir/base" --loss $loss --layer 1 -o "$dir/$loss" --steps 2 $train "$dir/train.tar.zst" &&
        finite_log "$dir/$loss/log.jsonl" 2 && [ "$(grep -c '"alignment"' "$dir/$loss/log.jsonl")" = 2 ] &&
        safetensors "$dir/$loss/projector.safetensors" 2> "$dir/err"
    ok "ma-align --loss $loss"
done
run 0 "$O/ma-align" -b "$dir/base" --loss repa --target videomae --layer 2 --save-type bf16 -o "$dir/raw" --steps 1 $train "$dir/train.tar.zst"
ok "the encoder itself as teacher; bf16"
[ "$(stat -c %s "$dir/raw/transformer/diffusion_pytorch_model.safetensors")" -lt \
    "$(stat -c %s "$dir/base/transformer/diffusion_pytorch_model.safetensors")" ]
ok "bf16 takes less"
! cmp -s "$dir/base/transformer/diffusion_pytorch_model.safetensors" "$dir/soft-trd/transformer/diffusion_pytorch_model.safetensors"
ok "tuning changes the transformer"
run 2 "$O/ma-align" -b "$dir/base" --layer 3 -o "$dir/deep" --steps 1 "$dir/train.tar.zst" && says "2 blocks"
ok "a layer that is not there is refused"
run 1 "$O/ma-align" -b "$dir/base" --layer 1 -o "$dir/lack" --steps 1 "$dir/features.tar.zst" && says "motion.npy"
ok "samples without the teacher are named"

# ---- sampling
sample="$O/ma-sample -b $dir/base -t $dir/soft-trd/transformer --steps 2 --clip $clip@8 --seed 7"
run 0 $sample -o "$dir/a.mp4" "a red ball" && run 0 "$O/ma-extract" -e pixel=4 --clip $clip -o "$dir/back.tar.zst" "$dir/a.mp4"
ok "ma-sample: an mp4 that ma-extract reads"
run 0 $sample --format y4m -o "$dir/a.y4m" "a red ball" && head -c 10 "$dir/a.y4m" | grep -aq YUV4MPEG2
ok "y4m"
run 0 $sample --format npy -o "$dir/a.npy" "a red ball" && head -c 128 "$dir/a.npy" | tr -d '\0' | grep -aqF "(5, 32, 48, 3)" &&
    [ "$(stat -c %s "$dir/a.npy")" = $((128 + 5 * 32 * 48 * 3)) ]
ok "npy: bytes (F,H,W,3)"
run 0 $sample --format png -o "$dir/frames" "a red ball" && [ "$(cd "$dir/frames" && echo *)" = "0000.png 0001.png 0002.png 0003.png 0004.png" ]
ok "png: a folder"
printf 'a red ball\n\ntwo balls; one blue\n' > "$dir/prompts"
run 0 $sample -n 2 --format npy -o "$dir/many" < "$dir/prompts" && silent &&
    [ "$(cd "$dir/many" && echo *.npy)" = "00000-a-red-ball-0.npy 00000-a-red-ball-1.npy 00001-two-balls-one-blue-0.npy 00001-two-balls-one-blue-1.npy" ]
ok "lines of standard input, two clips each, named by number and words"
! cmp -s "$dir/many/00000-a-red-ball-0.npy" "$dir/many/00000-a-red-ball-1.npy" &&
    run 0 $sample -j 1 -n 2 --format npy -o "$dir/single" "a red ball" && cmp "$dir/many/00000-a-red-ball-1.npy" "$dir/single/00000-a-red-ball-1.npy" 2> "$dir/err"
ok "a clip depends on its key, not on its neighbours or threads"
run 0 $sample --shard --format shard -o "$dir/samples.tar.zst" "$dir/train.tar.zst" && silent &&
    [ "$(members "$dir/samples.tar.zst" | grep -c 'clip-00000[0-5]\.\(txt\|json\|sample\.mp4\)$')" = 18 ]
ok "a shard from a shard's captions"
run 2 $sample < /dev/null && says "no prompt"
ok "no prompt is a usage error"

# ---- the sheet
run 0 "$O/ma-sheet" --rows mp4,flow.npy,motion-flow.npy --columns 4 --cell 32x48 -o "$dir/sheet.png" "$dir/train.tar.zst" && silent &&
    [ "$(od -An -tx1 -j 16 -N 8 "$dir/sheet.png" | tr -d ' ')" = 000000ca00000068 ]
ok "ma-sheet: a PNG of 202x104"
run 1 "$O/ma-sheet" --rows sample.mp4 -o "$dir/no.png" "$dir/train.tar.zst" && says "no sample has sample.mp4" && ! [ -e "$dir/no.png" ]
ok "a row that no sample has"
finish
