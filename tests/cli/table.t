#!/bin/bash
# table: pipelines/toy/table.mk in miniature, two rows and one seed: every stage, what a change makes anew, the table.
set -u
. tests/cli/tap.sh
MA=$(realpath "$O")
export MAKEFLAGS= MAKELEVEL= OMP_NUM_THREADS=1
unset MFLAGS

table() { make -f pipelines/toy/table.mk "MA=$MA" TINY=1 OUT="$dir/t" SEEDS=1 VARIANTS="none moalign" T5=random:64x2,length=32 VIDEOMAE=random:32x2,patch=8 "$@"; }
made() { sed -nE 's/^  //p' "$dir/out" | sort | tr '\n' ' '; }
would() { # what make -n said that it would make, but for the table
    sed -nE "s|.* (one\|train\|base\|teacher) $dir/t/([^ ]*).*|\2|p" "$dir/out" | sed 's|/done||; s|\.tar\.zst||' | sort | tr '\n' ' '
}
is() { # GOT WANT
    [ "$1" = "$2" ] || { printf 'got:  %s\nwant: %s\n' "$1" "$2" >> "$dir/err"; false; }
}

run 0 table -j2 samples && is "$(made)" "base clips/finetune-000 clips/finetune-001 clips/pretrain-000 clips/pretrain-001 clips/prompts latents/pretrain-000 latents/pretrain-001 runs/moalign-1 runs/none-1 samples/base-1 samples/moalign-1 samples/none-1 teacher text/prompts "
ok "clips, teacher, base, two variants, samples"
run 0 table -j2 && is "$(made)" "flow/base-1 flow/moalign-1 flow/none-1 scores/base-1.csv scores/moalign-1.csv scores/none-1.csv scores/real.csv scores/static-1.csv " &&
    is "$(grep -cE '^\| (true clips|base|base, first frame repeated|fine-tuned only|MoAlign) \| 1 \| 4 \| [0-9]+\.[0-9]' "$dir/t/table.md")" 5
ok "scores, the table"
run 0 table && is "$(made)" ""
ok "again: nothing"
run 0 table -n STEPS=3 && is "$(would)" "flow/moalign-1 flow/none-1 runs/moalign-1 runs/none-1 samples/moalign-1 samples/none-1 scores/moalign-1.csv scores/none-1.csv "
ok "other steps: the variants, not the base"
run 0 table -n LAMBDA=0.7 && is "$(would)" "flow/moalign-1 runs/moalign-1 samples/moalign-1 scores/moalign-1.csv "
ok "another λ: the variant that has one"
run 0 table -n SEEDS="1 2" && is "$(would)" "flow/base-2 flow/moalign-2 flow/none-2 runs/moalign-2 runs/none-2 samples/base-2 samples/moalign-2 samples/none-2 scores/base-2.csv scores/moalign-2.csv scores/none-2.csv scores/static-2.csv "
ok "one more seed: that alone"
run 0 table help && grep -q "DEVICES=" "$dir/out"
ok "help"
finish
