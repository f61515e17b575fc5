#!/bin/bash
# ranks: two GPUs learn what one does: the same curves, sharded or not, in buckets behind the backward pass; bits repeat;
# one that is killed ends both.
set -u
. tests/cli/tap.sh
gpus=$(nvidia-smi -L 2> /dev/null | wc -l)
if [ "$gpus" -lt 2 ]; then
    skip "needs two GPUs, not $gpus"
    finish
fi
export MA_DEVICE=cuda

# Wide enough for several buckets: 12 heads of 64, 4 blocks, 170 MB of gradients.
clip=5x32x48
pipe 0 "$O/ma-toy -n 32 --clip $clip | $O/ma-extract -d cpu -e videomae=random:32x2 -e pixel=4 --clip $clip -o $dir/features.tar.zst" &&
    run 0 "$O/ma-subspace" train -d cpu --hidden 16 --width 8 --steps 1 -o "$dir/teacher.safetensors" "$dir/features.tar.zst" &&
    run 0 "$O/ma-subspace" apply -d cpu -m "$dir/teacher.safetensors" -o "$dir/data.tar.zst" "$dir/features.tar.zst" && tiny_base &&
    set_number transformer num_attention_heads 12 && set_number transformer attention_head_dim 64 && set_number transformer num_layers 4
ok "data to train on"

align() { # FOLDER OPTIONS…
    local to=$dir/$1
    shift
    rm -rf "$to"
    exec "$O/ma-align" -b "$dir/tiny" --from-scratch --layer 2 --window 8 --warmup 2 --lr 1e-3 --seed 3 --save-every 0 -o "$to" "$@" "$dir/data.tar.zst"
}
ranks() { # N FOLDER OPTIONS…: whether all end well; their messages are in $dir/err
    local n=$1 k bad=0 pid=()
    shift
    for ((k = 0; k < n; k++)); do
        (export MA_RANK=$k MA_RANKS=$n; align "$@") 2> "$dir/err.$k" &
        pid[k]=$!
    done
    for k in "${pid[@]}"; do wait "$k" || bad=1; done
    cat "$dir"/err.[0-9] > "$dir/err"
    return $bad
}
near() { # FOLDER FOLDER TOLERANCE
    paste <(sed -nE 's/.*"loss":([-0-9.e+]+).*"grad_norm":([-0-9.e+]+).*/\1 \2/p' "$dir/$1/log.jsonl") \
        <(sed -nE 's/.*"loss":([-0-9.e+]+).*"grad_norm":([-0-9.e+]+).*/\1 \2/p' "$dir/$2/log.jsonl") |
        awk -v t="$3" 'function gap(a, b) { return (a > b ? a - b : b - a) / (a < 0 ? -a : a) }
            { for (k = 1; k <= 2; k++) { d = gap($k, $(k + 2)); if (!(d <= t)) bad = 1; if (d > worst) worst = d } }
            END { print "# worst relative gap: " worst + 0; exit bad || NR != 12 }'
}
same() { # FOLDER FOLDER
    cmp "$dir/$1/transformer/diffusion_pytorch_model.safetensors" "$dir/$2/transformer/diffusion_pytorch_model.safetensors" 2> "$dir/err"
}

for type in f32 bf16; do
    [ $type = f32 ] && tolerance=1e-3 || tolerance=5e-2
    ranks 1 $type-1 --dtype $type --steps 12 --batch 4 && ranks 2 $type-2 --dtype $type --steps 12 --batch 2
    ok "$type: one GPU, two GPUs"
    near $type-1 $type-2 $tolerance
    ok "$type: the same curves within $tolerance"
    ranks 2 $type-again --dtype $type --steps 12 --batch 2 && same $type-2 $type-again
    ok "$type: a run on two GPUs repeated is repeated bit for bit"
    ranks 2 $type-shard --dtype $type --steps 12 --batch 2 --shard-optimizer && near $type-2 $type-shard 1e-3
    ok "$type: --shard-optimizer is near"
    rm -rf "$dir/$type-again"
done
ranks 2 f32-gathered --dtype f32 --steps 12 --batch 1 --accumulate 2 --recompute off && near f32-1 f32-gathered 1e-3
ok "two passes a step, nothing recomputed"

for victim in 0 1; do
    rm -rf "$dir/killed"
    for k in 0 1; do
        (export MA_RANK=$k MA_RANKS=2; align killed --steps 100000 --batch 2) 2> "$dir/err.$k" &
        pid[k]=$!
    done
    for _ in $(seq 600); do
        [ "$(cat "$dir/killed/log.jsonl" 2> /dev/null | wc -l)" -ge 20 ] && break
        sleep 0.1
    done
    SECONDS=0
    kill -KILL "${pid[victim]}"
    wait "${pid[1 - victim]}"
    [ $? = 1 ] && [ $SECONDS -le 60 ] && cp "$dir/err.$((1 - victim))" "$dir/err" && says "rank $victim is gone"
    ok "rank $victim is killed: the other ends with its name, after $SECONDS s"
    wait "${pid[victim]}" 2> /dev/null
done
finish
