#!/bin/bash
# The tools end to end on the GPU, on toy clips: near the CPU's numbers, the same bits when run again, training that learns,
# and polite words where there is no such device.
set -u
. tests/cli/tap.sh
T=$O
clip=9x32x32@12

near() { # MEMBER LIMIT: whether $dir/cpu.tar and $dir/gpu.tar have it alike
    "$PYTHON" - "$dir" "$1" "$2" <<'P'
import io, sys, tarfile
import numpy as np
def read(name):
    t = tarfile.open(name)
    return {m.name: np.load(io.BytesIO(t.extractfile(m).read())).astype("f8") for m in t if m.name.endswith(sys.argv[2])}
a, b = read(sys.argv[1] + "/cpu.tar"), read(sys.argv[1] + "/gpu.tar")
worst = max(np.linalg.norm(a[k] - b[k]) / np.linalg.norm(a[k]) for k in a)
print(f"# {sys.argv[2]}: {worst:.1e}")
sys.exit(not (a.keys() == b.keys() and len(a) and worst <= float(sys.argv[3])))
P
}

run 0 $T/ma-toy --clips 16 --clip $clip --seed 1 -o $dir/toy.tar.zst; ok "ma-toy"
for d in cpu cuda; do
    run 0 $T/ma-extract -d $d --dtype f32 -e videomae=random:96x3,heads=3 -e pixel=2 --clip $clip $dir/toy.tar.zst -z 0 -o $dir/${d/cuda/gpu}.tar
    ok "ma-extract -d $d --dtype f32"
done
if "$PYTHON" -c 'import numpy' 2>/dev/null; then
    near videomae.npy 1e-3; ok "fp32 tokens are the CPU's, to the rounding of their f16"
    run 0 $T/ma-extract -d cuda -e videomae=random:96x3,heads=3 -e pixel=2 --clip $clip $dir/toy.tar.zst -z 0 -o $dir/gpu.tar
    near videomae.npy 1e-2; ok "bf16 tokens are the CPU's within 1e-2"
else
    skip "numpy is not here"; skip "numpy is not here"
fi
raft=$SHARED/assets/raft/raft-small.pth
if [ -e "$raft" ] && "$PYTHON" -c 'import numpy' 2>/dev/null; then
    run 0 $T/ma-toy --clips 2 --clip 3x128x128@12 --seed 3 --stride 1 -o $dir/pair.tar.zst; ok "pairs of frames"
    for d in cpu cuda; do
        run 0 $T/ma-flow -d $d -m "$raft" --clip 3x128x128 --updates 4 --stride 1 --out-size 128x128 $dir/pair.tar.zst -z 0 -o $dir/${d/cuda/gpu}.tar
        ok "ma-flow -d $d"
    done
    near flow.npy 2e-3; ok "flow is the CPU's"
else
    skip "raft-small.pth or numpy is not here"
fi
run 0 $T/ma-extract -d cuda -e videomae=random:96x3,heads=3 -e pixel=2 --clip $clip $dir/toy.tar.zst -o $dir/f.tar.zst; ok "features"
for n in 1 2; do
    run 0 $T/ma-subspace train -d cuda -o $dir/motion$n.safetensors --steps 60 --batch 8 --lr 2e-3 $dir/f.tar.zst; ok "ma-subspace train, run $n"
done
cmp -s $dir/motion1.safetensors $dir/motion2.safetensors; ok "the same bits"
loss() { sed -n "${2}p" "$1" | sed 's/.*"loss":\([-0-9.e+]*\).*/\1/'; }
awk "BEGIN{exit !($(loss $dir/motion1.safetensors.jsonl 60) < 0.7 * $(loss $dir/motion1.safetensors.jsonl 1))}"; ok "its loss falls"
run 0 $T/ma-subspace apply -d cuda -m $dir/motion1.safetensors $dir/f.tar.zst -o $dir/train.tar.zst; ok "ma-subspace apply"
for n in 1 2; do
    run 0 $T/ma-align -d cuda -b pipelines/toy/base --from-scratch --loss soft-trd --layer 2 -o $dir/tuned$n --steps 6 --batch 4 --lr 1e-3 $dir/train.tar.zst
    ok "ma-align, run $n"
done
cmp -s $dir/tuned1/transformer/diffusion_pytorch_model.safetensors $dir/tuned2/transformer/diffusion_pytorch_model.safetensors; ok "the same bits"
run 0 $T/ma-align -d cuda -b pipelines/toy/base --from-scratch --loss soft-trd --layer 2 -o $dir/half --steps 6 --save-every 3 --keep 9 --batch 4 --lr 1e-3 $dir/train.tar.zst
rm -rf $dir/half/step-000006
run 0 $T/ma-align -d cuda --resume -b pipelines/toy/base --from-scratch --loss soft-trd --layer 2 -o $dir/half --steps 6 --batch 4 --lr 1e-3 $dir/train.tar.zst
cmp -s $dir/tuned1/transformer/diffusion_pytorch_model.safetensors $dir/half/transformer/diffusion_pytorch_model.safetensors; ok "3 steps and 3 resumed are 6, bit for bit"
run 0 $T/ma-sample -d cuda -b pipelines/toy/base -t $dir/tuned1/transformer --clip $clip --steps 4 -o $dir/s.mp4 "a ball"; ok "ma-sample"
run 1 $T/ma-sample -d cuda:99 -b pipelines/toy/base -t $dir/tuned1/transformer --steps 4 -o $dir/s.mp4 "a ball"; ok "no such device: exit 1"
says "cuda:99"; ok "and it is named"
finish
