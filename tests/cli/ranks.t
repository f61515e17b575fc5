#!/bin/bash
# ranks: what is learnt does not depend on how many processes learn it; they stop together, and go on with another number
# of them; one that dies, or that was started otherwise, ends all.
set -u
. tests/cli/tap.sh

clip=5x32x48
pipe 0 "$O/ma-toy -n 7 --clip $clip | $O/ma-extract -e videomae=random:32x2 -e pixel=4 --clip $clip -o $dir/features.tar.zst" &&
    run 0 "$O/ma-subspace" train --hidden 16 --width 8 --steps 1 -o "$dir/teacher.safetensors" "$dir/features.tar.zst" &&
    run 0 "$O/ma-subspace" apply -m "$dir/teacher.safetensors" -o "$dir/data.tar.zst" "$dir/features.tar.zst" && tiny_base
ok "data to train on"

# COMMAND… as ranks 0, 1, … of N; pid[k] is rank k's, its messages are in $dir/err.k.
start() { # N COMMAND…
    local n=$1 k
    shift
    for ((k = 0; k < n; k++)); do
        MA_RANK=$k MA_RANKS=$n "$@" > "$dir/out.$k" 2> "$dir/err.$k" &
        pid[k]=$!
    done
}
ended() { # N: the exit states of all, "0 0"; all messages in $dir/err
    local k states=
    for ((k = 0; k < $1; k++)); do
        { wait "${pid[k]}"; } 2> /dev/null # bash tells of those that were killed
        states+="${states:+ }$?"
    done
    cat "$dir"/err.[0-9] > "$dir/err"
    rm -f "$dir"/err.[0-9]
    [ "$states" = "$2" ] || { echo "exit $states, not $2" >> "$dir/err"; false; }
}
ranks() { # N COMMAND…: whether all end well
    start "$@"
    ended "$1" "$(yes 0 | head -n "$1" | paste -sd ' ')"
}
align() { # FOLDER OPTIONS…
    local to=$dir/$1
    shift
    $as "$O/ma-align" -b "$dir/tiny" --from-scratch --layer 1 --window 4 --warmup 2 --lr 1e-3 --seed 3 -o "$to" "$@" "$data"
}
subspace() {
    local to=$dir/$1
    shift
    mkdir -p "$to" && $as "$O/ma-subspace" train --hidden 16 --width 8 --window 4 --warmup 2 --lr 1e-3 --seed 3 \
        -o "$to/m.safetensors" "$@" "$data"
}
as=exec data=$dir/data.tar.zst # as: ranks are run in subshells, of which the tool takes the place

numbers() { # LOG NAME: a step's number
    sed -nE "s/.*\"$2\":(-?[0-9.e+-]+).*/\1/p" "$1"
}
near() { # A B TOLERANCE: two logs have the same curves, relatively
    local what
    [ "$(wc -l < "$1")" = "$(wc -l < "$2")" ] || { echo "not the same steps: $1 $2" > "$dir/err"; return 1; }
    for what in loss grad_norm; do
        paste <(numbers "$1" $what) <(numbers "$2" $what) |
            awk -v t="$3" -v w=$what '{ d = $1 - $2; if (d < 0) d = -d; if (!(d <= t * ($1 < 0 ? -$1 : $1))) { print w ": " $0; bad = 1 } } END { exit bad || !NR }' > "$dir/err" || return 1
    done
}
close() { # A B TOLERANCE: two safetensors files hold nearly the same
    "$PYTHON" - "$@" 2> "$dir/err" << 'P'
import array, json, math, struct, sys
def read(path):
    b = open(path, "rb").read()
    n = struct.unpack("<Q", b[:8])[0]
    return {k: array.array("f", b[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]])
            for k, t in json.loads(b[8:8 + n]).items() if k != "__metadata__"}
a, b = read(sys.argv[1]), read(sys.argv[2])
assert a.keys() == b.keys() and a
for k in a:
    gap, size = math.dist(a[k], b[k]), math.hypot(*a[k])
    assert gap <= float(sys.argv[3]) * size + 1e-7, (k, gap, size)
P
}
transformer=transformer/diffusion_pytorch_model.safetensors

for tool in align subspace; do
    [ $tool = align ] && log=log.jsonl result=$transformer || log=m.safetensors.jsonl result=m.safetensors
    (as=; run 0 $tool $tool-1 --steps 8 --batch 4) && ranks 2 $tool $tool-2 --steps 8 --batch 2 &&
        near "$dir/$tool-1/$log" "$dir/$tool-2/$log" 1e-5 && close "$dir/$tool-1/$result" "$dir/$tool-2/$result" 1e-4
    ok "$tool: two ranks with half the batch each learn the same"
done
[ "$(numbers "$dir/align-1/log.jsonl" samples_per_s | wc -l)" = 8 ] && ! [ -e "$dir/align-2/.ranks" ]
ok "nothing is left of the meeting"
(as=; run 0 align seed --steps 8 --batch 4 --seed 4) && ! near "$dir/align-1/log.jsonl" "$dir/seed/log.jsonl" 1e-5
ok "another seed, another curve (the comparison can fail)"

ranks 2 align sharded --steps 8 --batch 2 --shard-optimizer && near "$dir/align-2/log.jsonl" "$dir/sharded/log.jsonl" 1e-8 &&
    cmp "$dir/align-2/$transformer" "$dir/sharded/$transformer" 2> "$dir/err" &&
    cmp "$dir/align-2/step-000008/optimiser.safetensors" "$dir/sharded/step-000008/optimiser.safetensors" 2> "$dir/err"
ok "--shard-optimizer: the same bits, and one file of the whole state"
ranks 2 align light --steps 8 --batch 2 --optimizer-state bf16 &&
    ranks 2 align light-sharded --steps 8 --batch 2 --optimizer-state bf16 --shard-optimizer &&
    cmp "$dir/light/$transformer" "$dir/light-sharded/$transformer" 2> "$dir/err" &&
    cmp "$dir/light/step-000008/optimiser.safetensors" "$dir/light-sharded/step-000008/optimiser.safetensors" 2> "$dir/err" &&
    ! cmp -s "$dir/light/$transformer" "$dir/align-2/$transformer"
ok "also with the state in bf16"
ranks 2 align gathered --steps 8 --batch 1 --accumulate 2 && near "$dir/align-1/log.jsonl" "$dir/gathered/log.jsonl" 1e-5
ok "two ranks, two passes a step"

# Seven samples: the one step has 7 of 8; the last has 3 of 4, or 1 of 6, of which two ranks get none.
(as=; run 0 align end-7 --epochs 1 --batch 7) && (as=; run 0 align end-8 --epochs 1 --batch 4 --accumulate 2) &&
    near "$dir/end-7/log.jsonl" "$dir/end-8/log.jsonl" 1e-5
ok "a step that the data end in counts as a whole one"
(as=; run 0 align end-1 --epochs 1 --batch 4) && [ "$(wc -l < "$dir/end-1/log.jsonl")" = 2 ] &&
    (as=; run 0 align end-passes --epochs 1 --batch 2 --accumulate 2) && near "$dir/end-1/log.jsonl" "$dir/end-passes/log.jsonl" 1e-5 &&
    ranks 2 align end-2 --epochs 1 --batch 2 && near "$dir/end-1/log.jsonl" "$dir/end-2/log.jsonl" 1e-5
ok "the data end within a step: its mean is over what there was"
(as=; run 0 align end-6 --epochs 1 --batch 6) && ranks 3 align end-3 --epochs 1 --batch 2 --shard-optimizer &&
    near "$dir/end-6/log.jsonl" "$dir/end-3/log.jsonl" 1e-5
ok "ranks that get no sample at all"

# Half with two ranks, half with one.
constant="--lr-schedule constant"
(as=; run 0 align through --steps 8 --batch 4 $constant) &&
    ranks 2 align changed --steps 4 --batch 2 $constant --shard-optimizer &&
    (as=; run 0 align changed --steps 8 --batch 4 $constant --resume) &&
    near "$dir/through/log.jsonl" "$dir/changed/log.jsonl" 1e-5
ok "two ranks, then one goes on"
ranks 2 align changed --steps 12 --batch 2 $constant --shard-optimizer --resume &&
    (as=; run 0 align through --steps 12 --batch 4 $constant --resume) &&
    near "$dir/through/log.jsonl" "$dir/changed/log.jsonl" 1e-5
ok "and two again"

# A bad sample is the same to all.
echo nothing > "$dir/poor.latent.npy"
tar -cf "$dir/poor.tar" -C "$dir" poor.latent.npy
start 2 align bad --steps 8 --batch 2 "$dir/poor.tar"
ended 2 "1 1" && [ "$(grep -c 'poor.*latent.npy' "$dir/err")" = 1 ] && says "7 good, 1 bad" &&
    grep loss "$dir/bad/log.jsonl" > "$dir/bad.jsonl" && near "$dir/align-2/log.jsonl" "$dir/bad.jsonl" 0
ok "a bad sample is told once, and left out by all"

# ---- ends

wait_for_steps() { # LOG N
    for _ in $(seq 1000); do
        [ "$(cat "$1" 2> /dev/null | wc -l)" -ge "$2" ] && return
        sleep 0.01
    done
}
start 2 align killed --steps 100000 --batch 2 --save-every 5
wait_for_steps "$dir/killed/log.jsonl" 8
kill -KILL "${pid[1]}"
SECONDS=0
ended 2 "1 137"; [ $? = 0 ] && [ $SECONDS -le 10 ] && says "ma-align: rank 1 is gone" && ls "$dir/killed"/step-*/state.json > /dev/null 2>> "$dir/err"
ok "rank 1 is killed: rank 0 says so, and ends at once"
(as=; run 0 align killed --steps "$(($(wc -l < "$dir/killed/log.jsonl") + 2))" --batch 4 --resume-anyway)
ok "and its last checkpoint is whole"
start 2 align killed-0 --steps 100000 --batch 2 --save-every 5 --shard-optimizer
wait_for_steps "$dir/killed-0/log.jsonl" 8
kill -KILL "${pid[0]}"
ended 2 "137 1" && says "ma-align: rank 1: rank 0 is gone"
ok "rank 0 is killed: rank 1 says so"

start 2 align stopped --steps 100000 --batch 2 --save-every 0 $constant
wait_for_steps "$dir/stopped/log.jsonl" 3
kill -TERM "${pid[1]}"
ended 2 "1 1" && says "ma-align: stopped after step" && says "rank 1: stopped after step"
ok "SIGTERM to one: both stop after the same step"
steps=$(wc -l < "$dir/stopped/log.jsonl")
ranks 2 align stopped --steps "$((steps + 3))" --batch 2 $constant --resume &&
    ranks 2 align unstopped --steps "$((steps + 3))" --batch 2 $constant &&
    cmp "$dir/stopped/$transformer" "$dir/unstopped/$transformer" 2> "$dir/err"
ok "and go on as if nothing had been"

start 2 align full --steps 8 --batch 2 --log /dev/full
ended 2 "1 1" && says "ma-align: /dev/full: " && says "rank 1: rank 0 is gone"
ok "rank 0 cannot write: all end"
other() {
    align "$@" --lr "$((MA_RANK + 1))e-3"
}
start 2 other unlike --steps 8 --batch 2
ended 2 "2 2" && says "rank 1 has other options"
ok "ranks that were started with other options"
mkdir "$dir/cut" && head -c "$(($(stat -c %s "$data") * 2 / 3))" "$data" > "$dir/cut/data.tar.zst"
unequal() {
    [ "$MA_RANK" = 0 ] || data=$dir/cut/data.tar.zst
    align "$@"
}
start 2 unequal unequal --steps 20 --batch 2
ended 2 "1 1" && says "do not read the same samples"
ok "ranks whose shards are not the same"
piped() {
    "$O/ma-align" -b "$dir/tiny" --from-scratch --layer 1 -o "$dir/piped" --batch 2 < "$data"
}
start 2 piped
ended 2 "2 2" && says "name shards, not a pipe"
ok "a pipe has one end"
(as= && export SLURM_NTASKS=2 SLURM_PROCID=0 && run 0 align batch --steps 1) && says "alone, though Slurm has room for 2 tasks"
ok "in a batch script of Slurm, without srun"
(as= && export SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=2 && run 2 align beyond) && says "SLURM_PROCID=2 of SLURM_STEP_NUM_TASKS=2"
ok "with srun"
(as= && export MA_RANK=2 MA_RANKS=2 && run 2 align beyond) && says "MA_RANK=2 of MA_RANKS=2"
ok "a rank beyond the last"

finish
