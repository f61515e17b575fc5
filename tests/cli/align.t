#!/bin/bash
# align: ma-align's ways to train (losses, adapters, patterns, dropped prompts), and what may befall a run: SIGKILL twenty
# times, SIGUSR1, a full disk, shards that are gone or cut, numbers that are not finite, checkpoints that are not whole.
set -u
. tests/cli/tap.sh
export OMP_NUM_THREADS=1
clip=5x32x48

# Two shards of clips with latents, text and motion.
pipe 0 "$O/ma-toy -n 6 --clip $clip | $O/ma-extract -e videomae=random:32x2 -e pixel=4 -e t5=random:24x1,length=4 --clip $clip -o $dir/f.tar.zst" &&
    run 0 "$O/ma-subspace" train --hidden 16 --width 8 --steps 1 -o "$dir/teacher.safetensors" "$dir/f.tar.zst" &&
    run 0 "$O/ma-subspace" apply -m "$dir/teacher.safetensors" --drop videomae.npy -o "$dir/all.tar.zst" "$dir/f.tar.zst" && tiny_base
ok "data to train on"
mkdir "$dir/x" && zstd -dqc "$dir/all.tar.zst" | tar -C "$dir/x" -xf -
shard() { # NAME KEY…: a shard of those samples
    local name=$1 k
    shift
    (cd "$dir/x" && for k; do ls "$k".*; done | tar -cf - -T - | zstd -qc) > "$dir/$name.tar.zst"
}
keys=$(members "$dir/all.tar.zst" | sed 's/\..*//' | uniq)
set -- $keys
shard a "$1" "$2" "$3" && shard b "$4" "$5" "$6"

align() { # NAME OPTION…: into $dir/NAME, on both shards unless the options name some
    local to=$dir/$1 data=("$dir/a.tar.zst" "$dir/b.tar.zst")
    shift
    [[ " $* " != *.tar.zst\ * ]] || data=()
    $as "$O/ma-align" -b "$dir/tiny" --from-scratch --layer 1 --batch 2 --window 4 --warmup 2 --lr 1e-3 --seed 3 --lr-schedule constant \
        -o "$to" "$@" "${data[@]}"
}
as=
sums() { (cd "$1" && find . -type f ! -name '*.jsonl' | sort | xargs sha256sum); }
losses() { sed -E 's/,"samples_per_s.*//' "$1"/log.jsonl; }
same() { diff <(sums "$dir/$1") <(sums "$dir/$2") > "$dir/err" && diff <(losses "$dir/$1") <(losses "$dir/$2") > "$dir/err"; }
names() { # FILE: of a safetensors file's arrays
    head -c 200000 "$1" | grep -aoE '"[^"{}]+": ?\{"dtype"' | sed -E 's/^"([^"]*)".*/\1/'
}
newest() { basename "$(ls -d "$dir/$1"/step-*[0-9] | tail -n 1)"; }

# ---- losses
run 0 align none --loss none --steps 2 && run 0 align soft --steps 2 && run 0 align weighted --loss soft-trd=0.5 --lambda 3 --steps 2 &&
    diff <(losses "$dir/soft") <(losses "$dir/weighted") > "$dir/err"
ok "soft-trd is soft-trd=0.5"
run 0 align several --loss soft-trd=0.25,repa=2,trd=0 --steps 2 &&
    awk -F'[:,]' '{ want = $6 + 0.25 * $8 + 2 * $10; d = $4 - want; exit !(d < 1e-5 && d > -1e-5) }' "$dir/several/log.jsonl" &&
    grep -q '"diffusion":.*"soft-trd":.*"repa":.*"trd":' "$dir/several/log.jsonl"
ok "several losses: the sum by their weights, each in the log by its name"
run 0 align first --align-steps 2 --steps 3 && diff <(losses "$dir/soft") <(losses "$dir/first" | head -n 2) > "$dir/err" &&
    losses "$dir/first" | tail -n 1 | grep -q '"loss":\([^,]*\),"diffusion":\1,"grad'
ok "--align-steps: aligned in the first steps, by the diffusion loss alone after"
run 2 align x --loss soft && says "soft is not one of soft-trd" && run 2 align x --loss trd=1,trd=2 && says "trd twice" &&
    run 2 align x --loss repa=-1 && says "not a number"
ok "what --loss cannot be"
run 0 align raw --loss repa,trd --steps 1 --target videomae "$dir/f.tar.zst" && [ -s "$dir/raw/projector.safetensors" ]
ok "two losses against the encoder's own tokens"

# ---- dropped prompts
run 2 align x --drop-text 0.5 && says "no text encoder: give --empty-text"
ok "--drop-text without a text encoder says what to give"
cp "$dir/x/$1.text.npy" "$dir/empty.npy"
run 0 align drop --drop-text 0.5 --empty-text "$dir/empty.npy" --steps 3 && run 0 align again --drop-text 0.5 --empty-text "$dir/empty.npy" --steps 3 &&
    same drop again && run 0 align keep --steps 3 &&
    ! diff <(losses "$dir/drop") <(losses "$dir/keep") > "$dir/err"
ok "prompts are dropped, the same ones in a run repeated"
run 0 align zeros --drop-text 1 --empty-text zeros --steps 2 && ! diff <(losses "$dir/zeros") <(losses "$dir/soft") > "$dir/err" && run 1 align x --drop-text 1 --empty-text "$dir/x/$1.motion.npy" &&
    says "must be 4x24 as the samples' text.npy"
ok "zeros; an embedding of another shape is named"

# ---- what is trained
run 0 align lora --train lora --lora-rank 4 --lora-alpha 8 --steps 4 --save-every 2 --keep 2 && ! [ -e "$dir/lora/transformer" ] &&
    [ "$(names "$dir/lora/pytorch_lora_weights.safetensors" | wc -l)" = 16 ] &&
    names "$dir/lora/pytorch_lora_weights.safetensors" | grep -qx 'transformer.transformer_blocks.1.attn1.to_out.0.lora_B.weight' &&
    grep -aq 'lora_adapter_metadata.*transformer.lora_alpha\\":8' "$dir/lora/pytorch_lora_weights.safetensors" &&
    [ -e "$dir/lora/step-000004/pytorch_lora_weights.safetensors" ] && ! [ -e "$dir/lora/step-000004/params-0.safetensors" ]
ok "adapters: the file that diffusers reads, no transformer"
cp -r "$dir/lora" "$dir/lora-again" && rm -r "$dir/lora-again/step-000004" "$dir/lora-again"/p*
run 0 align lora-again --train lora --lora-rank 4 --lora-alpha 8 --steps 4 --save-every 2 --keep 2 --resume && same lora lora-again
ok "adapters: resumed bit for bit"
run 0 align merged --train lora --lora-rank 4 --lora-alpha 8 --steps 4 --save-every 0 --merge && [ -e "$dir/merged/step-000004/transformer/config.json" ] &&
    cmp "$dir/lora/pytorch_lora_weights.safetensors" "$dir/merged/pytorch_lora_weights.safetensors" 2> "$dir/err"
ok "--merge writes the transformer, too"
run 2 align x --merge && says "--merge goes with --train lora" && run 2 align x --train lora --lora-targets to_q,too && says "called too"
ok "what adapters cannot be"
run 0 align part --train '*.1.attn1.*,proj_out.*' --steps 2 &&
    [ "$(names "$dir/part/step-000002/optimiser.safetensors" | grep -c '^m\.')" = 20 ] && [ "$(names "$dir/part/transformer/diffusion_pytorch_model.safetensors" | wc -l)" = 64 ]
ok "a pattern: an optimiser's state for those parameters and the projector, the transformer whole"
run 2 align x --train '*.2.attn1.*' && says "no parameter is called *.2.attn1.*"
ok "a pattern that fits nothing is an error"

# ---- the plan
run 0 align whole --steps 6 --save-every 3 --keep 2 && plan=$(sed -nE 's/.*plan: memory: |.*a checkpoint ([0-9.]+) MB/\1/p' "$dir/err") &&
    as_planned "$plan" "$(awk "BEGIN { print $(du -sb "$dir/whole/step-000006" | cut -f1) / 1e6 }")"
ok "the size of a checkpoint, told before the start"
each=$(awk "BEGIN { print int($plan * 1e6) }") room=$(df --output=avail -B1 "$dir" | tail -n 1)
if [ $((each * 900000)) -gt "$room" ]; then
    run 1 align huge --steps 1000000 --save-every 1 --keep 1000000 && says "the checkpoints need" && says "the disk has" && ! compgen -G "$dir/huge/step-*" > /dev/null
    ok "a disk too small for them is told before the start"
else
    skip "a disk of any size is too large here"
fi

# ---- SIGKILL
steps=500
start=$(date +%s.%N)
run 0 align through --steps $steps --save-every 7
ok "undisturbed"
took=$(awk "BEGIN { print $(date +%s.%N) - $start }")
killed=0
for k in $(seq 20); do
    more=()
    compgen -G "$dir/killed/step-*[0-9]" > /dev/null && more=(--resume)
    (as=exec && align killed --steps $steps --save-every 7 "${more[@]}" > "$dir/out" 2> "$dir/err") &
    pid=$!
    sleep "$(awk "BEGIN { print 0.05 + $took * $((k * 37 % 10 + 1)) / 150 }")"
    kill -9 $pid 2> /dev/null && killed=$((killed + 1))
    wait $pid 2> /dev/null
done
[ $killed -ge 15 ] && says "plan: "
ok "killed $killed times of 20, in step $(wc -l < "$dir/killed/log.jsonl") at last"
more=()
compgen -G "$dir/killed/step-*[0-9]" > /dev/null && more=(--resume)
run 0 align killed --steps $steps --save-every 7 "${more[@]}" && same through killed && [ -z "$(find "$dir/killed" -name '*.tmp*' -o -name '*.old')" ]
ok "then run to its end: the same bits, nothing left behind"

# ---- SIGUSR1
(as=exec && align usr1 --steps 2000 --save-every 0 > "$dir/out" 2> "$dir/err") &
pid=$!
until [ "$(cat "$dir/usr1/log.jsonl" 2> /dev/null | wc -l)" -ge 3 ] || ! kill -0 $pid 2> /dev/null; do sleep 0.01; done
kill -USR1 $pid
until compgen -G "$dir/usr1/step-*[0-9]" > /dev/null || ! kill -0 $pid 2> /dev/null; do sleep 0.01; done
saved=$(newest usr1)
kill -TERM $pid
wait $pid
rc=$?
[ $rc = 1 ] && [ -e "$dir/usr1/$saved/state.json" ] || [ "$saved" != "$(newest usr1)" ] && says "stopped after step" && [ -e "$dir/usr1/$(newest usr1)/transformer/config.json" ]
ok "SIGUSR1 leaves a checkpoint ($saved), SIGTERM another ($(newest usr1))"

# ---- options of a resumed run
cp -r "$dir/whole" "$dir/other"
run 2 align other --steps 8 --resume --lr 2e-3 && says "--resume: lr was 0.001, is 0.002" && run 2 align other --steps 8 --resume --batch 1 && says "batch was 2"
ok "options that are not those of before are named"
run 2 align other --steps 8 --resume "$dir/a.tar.zst" && says "inputs was 2"
ok "so are other inputs"
run 0 align other --steps 8 --resume-anyway --lr 2e-3 && says "lr was 0.001, is 0.002" && says "resumed" && [ "$(wc -l < "$dir/other/log.jsonl")" = 8 ]
ok "--resume-anyway goes on"

# ---- checkpoints that are not whole
cp -r "$dir/whole" "$dir/half" && truncate -s -1 "$dir/half/step-000006/optimiser.safetensors"
for k in 4.tmp 5.old; do mkdir "$dir/half/step-00000$k" && touch "$dir/half/step-00000$k/x"; done
run 0 align half --steps 6 --save-every 3 --keep 2 --resume && says "step-000006 is not whole, and left out:" && says "optimiser.safetensors: " &&
    says "resumed from $dir/half/step-000003" && same whole half
ok "the newest is cut: on from the one before, to the same end"
rm "$dir/half/step-000003/transformer/config.json" "$dir/half/step-000006/state.json"
run 1 align half --steps 9 --resume && says "has no checkpoint that is whole" && run 1 align nowhere --steps 9 --resume && says "has no checkpoint"
ok "none is whole, or none is there: an error"

# ---- a full disk
cp -r "$dir/whole" "$dir/full"
(trap '' XFSZ && ulimit -f 500 && as=exec && align full --steps 9 --save-every 3 --keep 2 --resume) > "$dir/out" 2> "$dir/err"
[ $? = 1 ] && says "File too large" && [ "$(cd "$dir/full" && echo step-*)" = "step-000003 step-000006" ]
ok "a file that cannot be written: told; the checkpoints that were there stay"
run 0 align full --steps 9 --save-every 3 --keep 2 --resume && run 0 align nine --steps 9 --save-every 3 --keep 2 && same full nine
ok "with room again it goes on to the same end"

# ---- shards
mv "$dir/b.tar.zst" "$dir/gone" && run 1 align whole --steps 9 --resume && says "b.tar.zst: No such file" &&
    says "not those of before" && [ -e "$dir/whole/step-000006/state.json" ]
ok "a shard that is gone is named, the checkpoint stays"
head -c $(($(stat -c %s "$dir/gone") * 2 / 3)) "$dir/gone" > "$dir/b.tar.zst"
run 1 align cut --steps 3 && says "b.tar.zst" && says "1 cut" && [ -e "$dir/cut/transformer/config.json" ] && grep -q '"step":1,"skipped":.*"reason":"cut"' "$dir/cut/log.jsonl"
ok "a shard that is cut is named and logged, and the rest used"
mv "$dir/gone" "$dir/b.tar.zst"
mkdir "$dir/y" && cp "$dir/x"/* "$dir/y" && rm "$dir/y/$2.motion.npy" && (cd "$dir/y" && tar -cf - $(ls | sort) | zstd -qc) > "$dir/lacks.tar.zst"
run 1 align lacks --steps 4 "$dir/lacks.tar.zst" && says "$2.motion.npy: not in the sample" && grep -q "\"skipped\":\"$2\",\"reason\":\"missing\"" "$dir/lacks/log.jsonl" &&
    [ "$(grep -c skipped "$dir/lacks/log.jsonl")" = 1 ]
ok "a sample without its teacher is logged, once"

# ---- what is not finite
"$PYTHON" - "$dir/x" "$3" << 'END' 2> "$dir/err"
import sys
import numpy as np
path = f"{sys.argv[1]}/{sys.argv[2]}.text.npy"
np.save(path, np.full(np.load(path).shape, 3e38, np.float32))
END
ok "an embedding beyond all bounds"
shard wild "$1" "$2" "$3" "$4"
wild="--batch 1 --window 1 --save-every 0 --epochs 1 $dir/wild.tar.zst"
run 1 align nan $wild && says "step 3: the loss's part diffusion is" && says "samples $3" && [ "$(newest nan)" = step-000002 ] && [ "$(wc -l < "$dir/nan/log.jsonl")" = 2 ]
ok "a loss that is not finite ends the run: step, part and sample are named, the checkpoint is that of before"
run 1 align skip --on-nan skip $wild && says "4 good, 1 bad: 1 not-finite" && [ "$(newest skip)" = step-000004 ] &&
    grep -q "\"step\":3,\"skipped\":\"$3\",\"reason\":\"not-finite\"" "$dir/skip/log.jsonl" && [ "$(grep -c '"loss":' "$dir/skip/log.jsonl")" = 3 ]
ok "--on-nan skip leaves the step out, and tells and counts it"
run 1 align strict --on-nan skip --strict $wild && [ "$(newest strict)" = step-000002 ]
ok "--strict ends the run all the same"

# ---- what ma-sample makes of adapters
run 0 align base --loss none --lr 2e-2 --steps 30 --save-every 0
for value in max_text_seq_length:4 sample_frames:5 sample_height:8 sample_width:12; do
    sed -i -E "s/(\"${value%:*}\":[[:space:]]*)[0-9]+/\1${value#*:}/" "$dir"/{base,whole/step-000006}/transformer/config.json
done
mkdir "$dir/start" && cp -r "$dir/tiny"/* "$dir/start" && cp "$dir/base/transformer"/* "$dir/start/transformer"
run 0 "$O/ma-align" -b "$dir/start" --layer 1 --batch 2 --train lora --lora-rank 4 --lora-alpha 8 --lr 1e-1 --merge --steps 4 -o "$dir/low" "$dir/a.tar.zst"
ok "adapters, and the base with them merged"
low=$dir/low/pytorch_lora_weights.safetensors
sample() { # NAME OPTION…: the latents of a clip into $dir/NAME.latents.npy
    "$O/ma-sample" -b "$dir/start" --steps 3 --clip $clip --format npy --save-latents -o "$dir/$1.npy" "${@:2}" x
}
far() { # NAME NAME LEAST MOST: their distance, of the second's length
    "$PYTHON" - "$dir/$1.latents.npy" "$dir/$2.latents.npy" "$3" "$4" << 'END' 2>> "$dir/err"
import sys
import numpy as np
a, b = (np.load(p).astype(float) for p in sys.argv[1:3])
by = np.linalg.norm(a - b) / np.linalg.norm(b)
assert float(sys.argv[3]) <= by <= float(sys.argv[4]), by
END
}
run 0 sample plain && run 0 sample merged -t "$dir/low/transformer" && run 0 sample folder -t "$dir/low" && run 0 sample file -t "$low" &&
    far plain merged 1e-3 10 && far folder merged 0 1e-5 && cmp "$dir/folder.latents.npy" "$dir/file.latents.npy" 2>> "$dir/err"
ok "ma-sample adds adapters to the base: the clip of the merged one"
sed 's/transformer.lora_alpha\\":8/transformer.lora_alpha\\":4/' "$low" > "$dir/four.safetensors"
run 0 sample none -t "$low" --lora-strength 0 && cmp "$dir/plain.latents.npy" "$dir/none.latents.npy" 2>> "$dir/err" &&
    run 0 sample half -t "$low" --lora-strength 0.5 && run 0 sample four -t "$dir/four.safetensors" && far half four 0 1e-6 && far half merged 1e-3 10
ok "--lora-strength: 0 is the base; half is half of alpha"
many() { "$O/ma-sample" -b "$dir/start" --steps 1 --clip $clip --format npy -n 2 -o "$dir/many" "$@" x; }
run 0 many -t "$low" && run 0 many -t "$dir/low" && says "2 of 2 clips were made before" && run 0 many -t "$low" --lora-strength 2 && says "made anew" &&
    run 0 many -t "$dir/four.safetensors" --lora-strength 2 && says "made anew" && run 0 many && says "made anew"
ok "clips of other adapters, or of another strength, are made anew"
run 0 "$O/ma-sample" -b "$dir/start" --clip $clip -t "$low" --dry-run && grep -q '^memory: ' "$dir/out"
ok "--dry-run with adapters"

# ---- what others make of it
if "$PYTHON" -c 'import diffusers, peft, torch' 2> /dev/null; then
    run 0 "$PYTHON" - "$dir/base/transformer" "$dir/whole/step-000006/transformer" "$dir/low/transformer" "$dir/low" << 'END'
import sys, torch
from diffusers import CogVideoXTransformer3DModel as Net
from diffusers.loaders import CogVideoXLoraLoaderMixin as Lora
base, tuned, merged, lora = sys.argv[1:]
base, tuned, merged = (Net.from_pretrained(path).eval() for path in (base, tuned, merged))
torch.manual_seed(0)
x = dict(hidden_states=torch.randn(1, 5, base.config.in_channels, 8, 12), timestep=torch.tensor([500]),
         encoder_hidden_states=torch.randn(1, 4, base.config.text_embed_dim))
with torch.no_grad():
    before, of_tuned, want = (net(**x).sample for net in (base, tuned, merged))
    state, metadata = Lora.lora_state_dict(lora, return_lora_metadata=True)
    Lora.load_lora_into_transformer(state, base, metadata=metadata)
    got = base(**x).sample
assert of_tuned.isfinite().all()
assert (want - before).norm() > 1e-3 * want.norm(), "the adapters do nothing"
assert (want - got).norm() < 1e-5 * want.norm(), (want - got).norm() / want.norm()
END
    ok "diffusers opens a checkpoint's transformer; with the adapters loaded the base is the merged one"
else
    skip "PYTHON has no diffusers with peft"
fi

# ---- plot-log
log=$dir/through/log.jsonl
run 0 pipelines/plot-log --reference "$log" "$log" && grep -q "loss: mean difference 0 (0.00 % of the reference), +0 on average, $steps points: within" "$dir/out"
ok "plot-log: a curve is its own reference"
sed -E 's/"loss":([0-9.]+)/"loss":1\1/' "$log" > "$dir/far.jsonl"
run 1 pipelines/plot-log --reference "$dir/far.jsonl" "$log" && grep -q "beyond tolerance" "$dir/out" && run 0 pipelines/plot-log -s 10 --tolerance 1 --reference "$dir/far.jsonl" "$log" &&
    grep -q "50 points" "$dir/out"
ok "plot-log: another is not, but for a tolerance that large"
mkdir "$dir/bin" && printf '#!/bin/sh\ncp "$1" "%s/script"; cp "$(sed -n "s/^plot .\\([^ ]*\\). with.*/\\1/p" "$1" | head -n 1)" "%s/data"\n' "$dir" "$dir" > "$dir/bin/gnuplot" && chmod +x "$dir/bin/gnuplot"
run 0 env PATH="$dir/bin:$PATH" pipelines/plot-log -o "$dir/p.png" "$log" "$dir/far.jsonl" && grep -q "layout 5,1" "$dir/script" && grep -q "set ylabel 'alignment'" "$dir/script" &&
    [ "$(wc -l < "$dir/data")" = $steps ]
ok "plot-log: what gnuplot is told"
mkdir "$dir/without" && for k in awk bash cat env mktemp paste rm sed tr wc; do ln -s "$(command -v $k)" "$dir/without"; done
run 1 env PATH="$dir/without" pipelines/plot-log "$log" && says "gnuplot is not installed"
ok "plot-log: without gnuplot it says so"
printf '' > "$dir/empty.jsonl"
run 1 pipelines/plot-log "$dir/empty.jsonl" && says "no line of it has a loss" && run 2 pipelines/plot-log && says "no log" && run 2 pipelines/plot-log -s 0 "$log" && run 1 pipelines/plot-log "$dir/nothere"
ok "plot-log: what is wrong"
finish
