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
    for d in cpu cuda; do
        run 0 $T/ma-extract -d $d --dtype f32 --batch 2 -e vae=random:32 -e t5=random:64x2,length=32 -e videomae=random:96x3,heads=3,size=16x16 \
            --clip $clip $dir/toy.tar.zst -z 0 -o $dir/${d/cuda/gpu}.tar
        ok "three members, $d"
    done
    for m in latent text videomae; do near $m.npy 1e-3; ok "$m.npy is the CPU's"; done
    # In parts of clips, in several clips that fill a batch or do not.
    run 0 $T/ma-toy --clips 8 --clip 9x128x128@12 --seed 3 -o $dir/pans.tar.zst; ok "clips for flow"
    (cd tests/cli && "$PYTHON" -B -c 'import sys, weights; weights.raft(sys.argv[1])' $dir/raft.safetensors); ok "a small RAFT"
    flow="$T/ma-flow -m $dir/raft.safetensors --updates 4 --clip 9x128x128 --out-size native -z 0 $dir/pans.tar.zst"
    run 0 $flow -d cpu -o $dir/cpu.tar; ok "its flow, cpu"
    for batch in 2 3 10; do
        run 0 $flow -d cuda -v --batch $batch -o $dir/gpu.tar; ok "cuda, f16, batch $batch"
        case $batch in
            2) says "4 run, 12 launched from a recording, 0 that could not"; ok "launched from recordings" ;;
            3) says "4 run, 4 launched from a recording, 0 that could not"; ok "launched from recordings" ;;
        esac
        run 0 $T/ma-flow eval $dir/cpu.tar $dir/gpu.tar && awk '$1 == "mean" { print "# " $3 " pixels"; good = $2 > 0 && $3 <= 0.05 } END { exit !good }' $dir/out
        ok "within 0.05 pixels of the CPU's"
        run 0 $flow -d cuda --batch $batch -o $dir/again.tar && cmp -s $dir/gpu.tar $dir/again.tar; ok "the same bits"
    done
    run 0 $flow -d cuda --bidirectional --back -o $dir/again.tar; ok "there and back"
else
    skip "numpy is not here"
fi
raft=$SHARED/assets/raft/raft-small.pth
if [ -e "$raft" ] && "$PYTHON" -c 'import numpy' 2>/dev/null; then
    run 0 $T/ma-toy --clips 2 --clip 3x128x128@12 --seed 3 --stride 1 -o $dir/pair.tar.zst; ok "pairs of frames"
    for d in cpu cuda; do
        run 0 $T/ma-flow -d $d --dtype f32 -m "$raft" --clip 3x128x128 --updates 4 --stride 1 --out-size 128x128 $dir/pair.tar.zst -z 0 -o $dir/${d/cuda/gpu}.tar
        ok "ma-flow -d $d --dtype f32"
    done
    near flow.npy 2e-3; ok "flow is the CPU's"
else
    skip "raft-small.pth or numpy is not here"
fi
run 0 $T/ma-extract -d cuda -e videomae=random:96x3,heads=3 -e pixel=2 --clip $clip $dir/toy.tar.zst -o $dir/f.tar.zst; ok "features"
for n in 1 2; do
    run 0 $T/ma-subspace train -d cuda -o $dir/motion$n.safetensors --steps 200 --batch 8 --lr 2e-3 $dir/f.tar.zst; ok "ma-subspace train, run $n"
done
cmp -s $dir/motion1.safetensors $dir/motion2.safetensors; ok "the same bits"
loss() { sed -n "${2}p" "$1" | sed 's/.*"loss":\([-0-9.e+]*\).*/\1/'; }
awk "BEGIN{exit !($(loss $dir/motion1.safetensors.jsonl 200) < 0.7 * $(loss $dir/motion1.safetensors.jsonl 1))}"; ok "its loss falls"
run 0 $T/ma-subspace apply -d cuda -m $dir/motion1.safetensors $dir/f.tar.zst -o $dir/train.tar.zst; ok "ma-subspace apply"
for n in 1 2; do
    run 0 $T/ma-align -d cuda -b tests/base --from-scratch --loss soft-trd --layer 2 -o $dir/tuned$n --steps 6 --batch 4 --lr 1e-3 $dir/train.tar.zst
    ok "ma-align, run $n"
done
cmp -s $dir/tuned1/transformer/diffusion_pytorch_model.safetensors $dir/tuned2/transformer/diffusion_pytorch_model.safetensors; ok "the same bits"
run 0 $T/ma-align -d cuda -b tests/base --from-scratch --loss soft-trd --layer 2 -o $dir/half --steps 6 --save-every 3 --keep 9 --batch 4 --lr 1e-3 $dir/train.tar.zst
rm -rf $dir/half/step-000006
run 0 $T/ma-align -d cuda --resume -b tests/base --from-scratch --loss soft-trd --layer 2 -o $dir/half --steps 6 --batch 4 --lr 1e-3 $dir/train.tar.zst
cmp -s $dir/tuned1/transformer/diffusion_pytorch_model.safetensors $dir/half/transformer/diffusion_pytorch_model.safetensors; ok "3 steps and 3 resumed are 6, bit for bit"
# The optimiser's state on the host: the same bits as on the GPU, also resumed there; in bf16: about the same, each time.
state() { # NAME OPTIONS…
    local to=$dir/$1
    shift
    $T/ma-align -d cuda -b tests/base --from-scratch --loss soft-trd --layer 2 -o "$to" --steps 6 --batch 4 --lr 1e-3 "$@" $dir/train.tar.zst
}
weights=transformer/diffusion_pytorch_model.safetensors
run 0 state far --optimizer-state host --save-every 3 --keep 9 && cmp $dir/tuned1/$weights $dir/far/$weights 2> "$dir/err"; ok "ma-align --optimizer-state host: the same bits"
rm -rf $dir/far/step-000006
run 0 state far --resume && cmp $dir/tuned1/$weights $dir/far/$weights 2> "$dir/err"; ok "and goes on with f32"
run 0 state light --optimizer-state bf16 --save-every 3 --keep 9 && ! cmp -s $dir/tuned1/$weights $dir/light/$weights; ok "ma-align --optimizer-state bf16"
cp $dir/light/$weights $dir/light.safetensors && rm -rf $dir/light/step-000006
run 0 state light --optimizer-state bf16 --resume && cmp $dir/light.safetensors $dir/light/$weights 2> "$dir/err"; ok "resumed, the same bits"
run 0 $T/ma-sample -d cuda -b tests/base -t $dir/tuned1/transformer --clip $clip --steps 4 -o $dir/s.mp4 "a ball"; ok "ma-sample"
# Memory as planned, on a model of some 600 MB: in small chunks, and in those that a whole card gets. The context does not
# count; what the libraries' code takes is an estimate in the plan.
cp -r tests/base $dir/wide
set_wide() { sed -i -E "s/(\"$1\": *)[0-9]+/\1$2/" $dir/wide/transformer/config.json; }
set_wide num_attention_heads 12; set_wide attention_head_dim 64; set_wide num_layers 4
wide() { $T/ma-align -d cuda -b $dir/wide --from-scratch --loss soft-trd --layer 2 --steps 2 --batch 4 "$@" $dir/train.tar.zst; }
for with in "--memory 3G" "--memory 3G --recompute off" "--optimizer-state bf16" "--optimizer-state host" ""; do
    rm -rf $dir/took
    run 0 wide $with --dry-run -o $dir/took && plan=$(in_all $dir/out); ok "ma-align $with --dry-run"
    run 0 wide $with -v -o $dir/took && as_planned "$plan" "$(in_all $dir/err)"; ok "ma-align $with takes what was planned, within 5 %"
done
run 1 wide --memory 200M -o $dir/little; ok "too little memory: exit 1"
says "lower --batch"; ok "and what helps"
run 0 $T/ma-sample -d cuda -v -b tests/base -t $dir/tuned1/transformer --clip $clip --steps 6 --format npy -o $dir/s.npy "a ball"
says "2 run, 4 launched from a recording, 0 that could not be recorded"; ok "denoising steps are launched from a recording"
run 1 $T/ma-sample -d cuda:99 -b tests/base -t $dir/tuned1/transformer --steps 4 -o $dir/s.mp4 "a ball"; ok "no such device: exit 1"
says "cuda:99"; ok "and it is named"
finish
