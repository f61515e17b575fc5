#!/bin/bash
# memory: what --dry-run says a training takes is what it takes; --memory holds it below a limit; where that is too little
# the message tells the plan and what to do. The CPU takes nothing for itself, so both are the same number here; for the
# GPU see tests/gpu/tools.t.
set -u
. tests/cli/tap.sh

pipe 0 "$O/ma-toy -n 8 --clip 5x96x144 | $O/ma-extract -e videomae=random:96x1,heads=3 -e pixel=4 --clip 5x96x144 -o $dir/f.tar.zst" &&
    run 0 "$O/ma-subspace" train --hidden 16 --width 8 --steps 1 -o "$dir/teacher.safetensors" "$dir/f.tar.zst" &&
    run 0 "$O/ma-subspace" apply -m "$dir/teacher.safetensors" -o "$dir/train.tar.zst" "$dir/f.tar.zst" && tiny_base
ok "data to train on"

align() {
    "$O/ma-align" -b "$dir/tiny" --from-scratch --layer 1 --steps 2 "$@" "$dir/train.tar.zst"
}
subspace() {
    "$O/ma-subspace" train --hidden 512 --steps 2 "$@" "$dir/train.tar.zst"
}

state_in() { # FILE
    sed -nE 's/.*optimiser ([0-9.]+),.*/\1/p' "$1"
}

for tool in align subspace; do
    for with in "--memory 700M --batch 8" "--memory 1G --batch 4"; do
        run 0 $tool $with --dry-run -o "$dir/plan.safetensors" && plan=$(in_all "$dir/out")
        ok "ma-$tool $with --dry-run"
        rm -rf "$dir"/$tool.safetensors*
        run 0 $tool $with -v -o "$dir/$tool.safetensors" && took=$(in_all "$dir/err")
        ok "ma-$tool $with -v"
        as_planned "$plan" "$took" && [ "$plan" = "$took" ]
        ok "ma-$tool $with: as planned"
    done
    log=$(ls "$dir"/$tool.safetensors/log.jsonl "$dir"/$tool.safetensors.jsonl 2> "$dir/err")
    peak=$(sed -nE '$s/.*"peak_bytes":([0-9]+).*/\1/p' "$log") && as_planned "$took" "$(awk "BEGIN { print $peak / 1e6 }")"
    ok "its log has the same"
    rm -rf "$dir"/$tool.safetensors*
    run 1 $tool --memory 8M --batch 8 -o "$dir/$tool.safetensors" && says "out of memory: " && says "of 8.4 MB allowed: parameters " && says "lower --batch"
    ok "too little: exit 1, the plan and the lever"
    run 0 $tool --memory 8M --batch 8 --dry-run -o "$dir/$tool.safetensors" && grep -q "of 8.4 MB" "$dir/out"
    ok "--dry-run with too little tells both"
done
run 1 align --memory 8M --batch 8 --recompute off -o "$dir/less" && says "give --recompute on"
ok "without recomputing, that is what helps first"
says "or --optimizer-state bf16 or host" && run 0 align --dry-run -o "$dir/less" && f32=$(state_in "$dir/out") &&
    run 0 align --dry-run --optimizer-state bf16 -o "$dir/less" && bf16=$(state_in "$dir/out") &&
    awk "BEGIN { exit !($f32 > 0 && $bf16 > 0.49 * $f32 && $bf16 < 0.52 * $f32) }"
ok "the optimiser's state in bf16 is half of it: $bf16 of $f32 MB"
finish
