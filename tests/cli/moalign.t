#!/bin/bash
# moalign: pipelines/moalign.mk on toy clips, from videos to samples: what is made, what is made anew, killed in training.
set -u
. tests/cli/tap.sh
MA=$(realpath "$O") clip=5x32x48
export MAKEFLAGS= MAKELEVEL= OMP_NUM_THREADS=1
unset MFLAGS

run 0 "$O/ma-toy" -n 6 --clip $clip -o "$dir/a.tar.zst" && tiny_base && mkdir "$dir/clips" && zstd -dqc "$dir/a.tar.zst" | tar -C "$dir/clips" -xf - &&
    rm "$dir"/clips/*.{json,npy} && printf 'a red ball falls\n' > "$dir/prompts.txt"
ok "videos, a base, a prompt"
run 0 "$O/ma-subspace" train --features videomae --hidden 16 --width 8 --steps 1 -o "$dir/motion.safetensors" \
    <("$O/ma-extract" -e videomae=random:32x2 --clip $clip "$dir/a.tar.zst")
ok "a subspace"

moalign() { # FOLDER ARGUMENT…
    local out=$1
    shift
    make -f pipelines/moalign.mk "MA=$MA" PRESET= VIDEOS="$dir/clips" SHARD_SIZE=4 OUT="$dir/$out" ENCODER=random:32x2 \
        MOTION="$dir/motion.safetensors" "EXTRACT=--clip $clip" BASE="$dir/tiny" CLIP=$clip \
        "LATENTS=-e pixel=4 -e t5=random:24x1,length=4" PROMPTS="$dir/prompts.txt" \
        "ALIGN=--from-scratch --layer 1 --batch 2 --window 4 --steps 120 --save-every 5 --drop-text 0.1 --empty-text zeros" \
        "SAMPLE=--clip $clip --steps 2 --format npy --guidance 1" "$@"
}
made() { sed -nE 's/^  //p' "$dir/out" | sort | tr '\n' ' '; }
is() { # GOT WANT
    [ "$1" = "$2" ] || { printf 'got:  %s\nwant: %s\n' "$1" "$2" >> "$dir/err"; false; }
}

run 0 moalign whole -j2 align && is "$(made)" "align features/00000 features/00001 latents/00000 latents/00001 motion/00000 motion/00001 " &&
    is "$(members "$dir/whole/latents/00001.tar.zst" | sed 's/^[^.]*//' | sort -u | tr '\n' ' ')" ".json .latent.npy .motion.npy .text.npy .txt " &&
    [ -e "$dir/whole/tuned/transformer/config.json" ] && [ "$(wc -l < "$dir/whole/tuned/log.jsonl")" = 120 ]
ok "shards, latents, the tuned model"
run 0 moalign whole -j2 align && ! grep -q '^  ' "$dir/out" && run 0 moalign whole -n && grep -q "moalign.sh sample" "$dir/out" && ! grep -q "moalign.sh align" "$dir/out"
ok "again: nothing to be done but the samples"
run 0 moalign whole -n align "ALIGN=--loss none" && is "$(grep -o 'moalign.sh align\|/latents/[0-9]*' "$dir/out" | sort -u | tr '\n' ' ')" "moalign.sh align "
ok "another option of ma-align: training alone"
run 0 moalign whole -n align "LATENTS=-e pixel=4" && grep -q "ma-extract.*latents\|latents.*ma-extract" "$dir/out" && ! grep -q "run [^ ]*/features/" "$dir/out"
ok "of the latents: those, and training"

setsid bash -c "$(declare -f moalign); dir=$dir MA=$MA clip=$clip; moalign killed -j2 align" > "$dir/out" 2> "$dir/err" &
pid=$!
until compgen -G "$dir/killed/tuned/step-*[0-9]" > /dev/null || ! kill -0 $pid 2> /dev/null; do sleep 0.01; done
kill -9 -- -$pid 2> /dev/null
wait $pid 2> /dev/null
run 0 moalign killed align && grep -q "resumed from" "$dir/killed/log/align" &&
    diff <(cd "$dir/whole" && sha256sum latents/* tuned/transformer/* tuned/projector.safetensors) <(cd "$dir/killed" && sha256sum latents/* tuned/transformer/* tuned/projector.safetensors) > "$dir/err"
ok "killed in training: goes on from its checkpoint to the same bytes"
run 0 moalign whole status && grep -qx "latents: 2 of 2 done, 0 running, 6 samples, 0 bad" "$dir/out"
ok "the status has the latents"
run 0 moalign whole && is "$(made)" "sample " && [ "$(find "$dir/whole/samples" -name '*.npy' | wc -l)" = 1 ]
ok "a clip of the prompt"
cp -r "$dir/tiny" "$dir/base" && cp "$dir/whole/tuned/transformer"/* "$dir/base/transformer"
run 0 moalign whole "BASE=$dir/base" "ALIGN=--train lora --layer 1 --batch 2 --steps 3" && is "$(made)" "align sample " && ! [ -e "$dir/whole/tuned/transformer" ] &&
    grep -q '"lora":' "$dir/whole/samples"/*.json
ok "adapters alone: made anew, and sampled from"
run 2 moalign x BASE= && says "BASE= is not given" && run 2 moalign x sample PROMPTS= && says "PROMPTS= is not given" && run 0 moalign x help && grep -q "BASE=FOLDER" "$dir/out"
ok "what is not given is named; help"
finish
