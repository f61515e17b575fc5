#!/bin/bash
# resume: ten steps are five, --resume, and five more, bit for bit, weights, optimiser and log; one thread is two.
set -u
. tests/cli/tap.sh

# $dir/NAME.tar.zst: clips with features, latents and motion.
data() { # NAME CLIPS SIZE
    pipe 0 "$O/ma-toy -n $2 --clip $3 | $O/ma-extract -e videomae=random:32x2 -e pixel=4 --clip $3 -o $dir/$1-features.tar.zst" &&
        run 0 "$O/ma-subspace" train --hidden 16 --width 8 --steps 1 -o "$dir/$1-teacher.safetensors" "$dir/$1-features.tar.zst" &&
        run 0 "$O/ma-subspace" apply -m "$dir/$1-teacher.safetensors" -o "$dir/$1.tar.zst" "$dir/$1-features.tar.zst"
}
data small 6 5x32x48 && data large 3 5x96x144 && tiny_base
ok "data to train on"

# All that a run leaves but the times in its log.
sums() { # FOLDER
    (cd "$1" && find . -type f ! -name '*.jsonl' | sort | xargs sha256sum)
}
losses() { # FOLDER: the log without what is measured
    sed -E 's/,"samples_per_s.*//' "$1"/*.jsonl
}
same() { # FOLDER FOLDER
    diff <(sums "$1") <(sums "$2") > "$dir/err" && diff <(losses "$1") <(losses "$2") > "$dir/err"
}

# A training of each tool: NAME OPTIONS… into the folder $dir/NAME. on: the data; as: exec, or nothing.
on=small as=
subspace() {
    local to=$dir/$1
    shift
    mkdir -p "$to" && $as "$O/ma-subspace" train --hidden 16 --width 8 --batch 2 --window 4 --warmup 2 --lr 1e-3 --seed 3 \
        -o "$to/m.safetensors" "$@" "$dir/$on.tar.zst"
}
align() {
    local to=$dir/$1
    shift
    $as "$O/ma-align" -b "$dir/tiny" --from-scratch --layer 1 --batch 2 --accumulate 2 --window 4 --warmup 2 --lr 1e-3 --seed 3 \
        -o "$to" "$@" "$dir/$on.tar.zst"
}
state_of() { # TOOL NAME: the folder of its checkpoints
    [ "$1" = align ] && echo "$dir/$2" || echo "$dir/$2/m.safetensors.state"
}

for tool in subspace align; do
    whole=$tool-whole half=$tool-half lost=$tool-lost again=$tool-again
    run 0 $tool $whole --steps 10 --save-every 5 --keep 2 && [ "$(losses "$dir/$whole" | wc -l)" = 10 ]
    ok "$tool: ten steps"
    state=$(state_of $tool $whole)
    [ -e "$state/step-000005/state.json" ] && [ -e "$state/step-000010/state.json" ]
    ok "$tool: both checkpoints stay with --keep 2"

    # left after step 5: the checkpoint of 5 stays, the log ran ahead, the result was not written
    cp -r "$dir/$whole" "$dir/$lost"
    (cd "$dir/$lost" && rm -rf m.safetensors transformer projector.safetensors)
    rm -r "$(state_of $tool $lost)/step-000010"
    echo '{"step":11,"loss":1' >> "$(echo "$dir/$lost"/*.jsonl)"
    run 0 $tool $lost --steps 10 --save-every 5 --keep 2 --resume && says "resumed" && same "$dir/$whole" "$dir/$lost"
    ok "$tool: 5 + resume + 5, cosine: weights, state and log are the same; the log that ran ahead is cut"

    # stopped on purpose: a schedule that does not know its end
    run 0 $tool $half --steps 5 --lr-schedule constant && run 0 $tool $half --steps 10 --lr-schedule constant --resume &&
        run 0 $tool $tool-constant --steps 10 --lr-schedule constant && same "$dir/$half" "$dir/$tool-constant"
    ok "$tool: --steps 5, then --steps 10 --resume"
    [ "$(cd "$(state_of $tool $half)" && echo step-*)" = step-000010 ]
    ok "$tool: without --keep the newest checkpoint alone stays"

    run 0 $tool $again --steps 10 --save-every 5 --keep 2 && same "$dir/$whole" "$dir/$again"
    ok "$tool: a run repeated is repeated bit for bit"
    on=large # enough to share
    run 0 $tool $tool-one --steps 3 -j 1 && run 0 $tool $tool-two --steps 3 -j 2 && same "$dir/$tool-one" "$dir/$tool-two"
    ok "$tool: one thread or two, the same bits"
    on=small
    run 0 $tool $tool-seed --steps 10 --save-every 5 --keep 2 --seed 4 && ! same "$dir/$whole" "$dir/$tool-seed"
    ok "$tool: another seed, other bits (the comparison can fail)"

    # the optimiser's state in bf16
    light=$tool-light
    run 0 $tool $light --steps 10 --save-every 5 --keep 2 --optimizer-state bf16 && ! same "$dir/$whole" "$dir/$light" &&
        cp -r "$dir/$light" "$dir/$light-lost" && rm -r "$(state_of $tool $light-lost)/step-000010" &&
        run 0 $tool $light-lost --steps 10 --save-every 5 --keep 2 --optimizer-state bf16 --resume && same "$dir/$light" "$dir/$light-lost"
    ok "$tool: --optimizer-state bf16: other bits, and 5 + resume + 5 are the same"
    rm -r "$(state_of $tool $light-lost)/step-000010"
    run 2 $tool $light-lost --steps 10 --resume && says "optimizer-state was bf16, is f32"
    ok "$tool: another state is an error"
    run 0 $tool $light-lost --steps 10 --resume-anyway && ! same "$dir/$light" "$dir/$light-lost"
    ok "$tool: --resume-anyway: converted"
    rm -r "$(state_of $tool $again)/step-000010"
    run 0 $tool $again --steps 10 --save-every 5 --keep 2 --optimizer-state host --resume && same "$dir/$whole" "$dir/$again"
    ok "$tool: --optimizer-state host goes on with f32"

    run 1 $tool $tool-nowhere --steps 10 --resume && says "has no checkpoint"
    ok "$tool: --resume without a checkpoint is an error"
    run 1 $tool $half --steps 10 && says "step 10 of an earlier run"
    ok "$tool: a new run does not write over an earlier one's checkpoints"
    rm "$(state_of $tool $half)/step-000010/optimiser.safetensors"
    run 1 $tool $half --steps 12 --lr-schedule constant --resume && says "optimiser.safetensors: No such file" && says "no checkpoint that is whole"
    ok "$tool: a checkpoint with a part missing is an error that names it"

    # SIGINT: the run ends with a checkpoint, and goes on from it
    run 0 $tool $tool-through --steps 60 --save-every 0 --lr-schedule constant -j 1
    (as=exec; $tool $tool-int --steps 60 --save-every 0 --lr-schedule constant -j 1 > "$dir/out" 2> "$dir/err") &
    pid=$!
    for _ in $(seq 500); do
        [ "$(cat "$dir/$tool-int"/*.jsonl 2> /dev/null | wc -l)" -ge 3 ] && break
        sleep 0.01
    done
    kill -INT $pid
    wait $pid
    rc=$?
    if [ $rc = 0 ]; then
        skip "$tool: over before SIGINT came"
    else
        [ $rc = 1 ] && says "stopped after step" &&
            run 0 $tool $tool-int --steps 60 --save-every 0 --lr-schedule constant -j 1 --resume &&
            same "$dir/$tool-through" "$dir/$tool-int"
        ok "$tool: SIGINT leaves a checkpoint from which the run goes on as if nothing had been"
    fi
done

# A pipe can be read once only, and is skipped into as files are.
pipe 2 "cat $dir/small.tar.zst | $O/ma-subspace train --epochs 2 --hidden 16 --width 8 -o $dir/p.safetensors" && says "read once"
ok "two epochs of a pipe are refused"
pipe 0 "cat $dir/small.tar.zst | $O/ma-subspace train --hidden 16 --width 8 --batch 4 --window 1 -o $dir/p.safetensors -" &&
    [ "$(wc -l < "$dir/p.safetensors.jsonl")" = 2 ]
ok "six samples of a pipe, four a step: two steps"
finish
