#!/bin/bash
# sample: ma-sample on folders as they are published, tiny ones: prompts from everywhere, names, what is made again and
# what is not, memory, and folders that are broken.
set -u
. tests/cli/tap.sh

for style in 2b 5b; do
    run 0 "$O/tests/golden/pipeline" write $style "$dir/$style"
    ok "a tiny $style"
done
clip="--clip 9x64x48"
sample="$O/ma-sample -b $dir/2b $clip --steps 2"

files() { # FOLDER: what is in it, sorted
    (cd "$1" && find . -type f | sed 's,^\./,,' | sort)
}
shape() { # NPY: its dtype and shape
    head -c 128 "$1" | tr -d '\0' | sed -nE "s/.*'descr': '([^']*)'.*'shape': (\([^)]*\)).*/\1 \2/p"
}
near() { # NPY NPY MOST: bytes that differ by no more than that anywhere
    "$PYTHON" - "$@" << 'P' 2>> "$dir/err"
import sys
import numpy as np
a, b = (np.load(p).astype(np.float64) for p in sys.argv[1:3])
assert a.shape == b.shape and abs(a - b).max() <= float(sys.argv[3]), abs(a - b).max()
P
}

# ---- clips
run 0 $sample -o "$dir/a.mp4" "a red ball" && silent && [ -s "$dir/a.mp4" ] && [ "$(ls "$dir" | grep -c '^a\.')" = 1 ]
ok "one prompt, one file"
run 0 "$O/ma-extract" -e pixel=4 $clip -o "$dir/back.tar.zst" "$dir/a.mp4"
ok "ma-extract reads it"
run 0 $sample --format npy -o "$dir/a.npy" "a red ball" && [ "$(shape "$dir/a.npy")" = "|u1 (9, 64, 48, 3)" ]
ok "npy: bytes (F,H,W,3)"
run 0 $sample --format png -o "$dir/png" "a red ball" && [ "$(files "$dir/png" | wc -l)" = 9 ]
ok "png: a folder of nine"
run 0 $sample --format y4m -o "$dir/a.y4m" "a red ball" && [ "$(grep -ac FRAME "$dir/a.y4m")" = 9 ]
ok "y4m: nine frames"
run 0 "$O/ma-sample" -b "$dir/5b" $clip --steps 2 --format npy -o "$dir/5.npy" "a red ball" && silent
ok "5B style, by DPM"
run 0 "$O/ma-sample" -b "$dir/5b" --scheduler ddim --clip 16x80x96 --steps 2 --format npy -o "$dir/6.npy" "a red ball" &&
    [ "$(shape "$dir/6.npy")" = "|u1 (16, 80, 96, 3)" ]
ok "another size than that of the folder"
for other in "--guidance 1" "--guidance 3" "--dynamic-cfg" "--negative rain" "--scheduler dpm" "--seed 1" "--steps 3"; do
    run 0 $sample $other --format npy -o "$dir/other.npy" "a red ball" && ! near "$dir/a.npy" "$dir/other.npy" 1
    ok "$other makes another clip"
done
run 0 $sample --format npy -o "$dir/other.npy" "two cats" && ! near "$dir/a.npy" "$dir/other.npy" 1
ok "so does another prompt"
run 0 $sample --guidance-batch 1 --format npy -o "$dir/other.npy" "a red ball" && near "$dir/a.npy" "$dir/other.npy" 1
ok "guidance in two passes makes the same"

# ---- prompts
printf 'a cat\n\na cat\nglass / rain\n' > "$dir/prompts.txt"
run 0 $sample -n 2 --format npy -o "$dir/many" < "$dir/prompts.txt" && silent && files "$dir/many" > "$dir/out"
diff "$dir/out" - > "$dir/err" << 'E'
00000-a-cat-0.json
00000-a-cat-0.npy
00000-a-cat-1.json
00000-a-cat-1.npy
00001-a-cat-0.json
00001-a-cat-0.npy
00001-a-cat-1.json
00001-a-cat-1.npy
00002-glass-rain-0.json
00002-glass-rain-0.npy
00002-glass-rain-1.json
00002-glass-rain-1.npy
E
ok "lines: two clips each, the same text twice"
! cmp -s "$dir/many/00000-a-cat-0.npy" "$dir/many/00001-a-cat-0.npy"
ok "the same text twice is two clips"
printf 'id,dimension,"Caption"\r\nx.1,Mechanics,"a ball, ""red"""\r\ny,Material,rain\r\n' > "$dir/list.csv"
run 0 $sample --prompts "$dir/list.csv" --format npy -o "$dir/list" && [ "$(files "$dir/list" | tr '\n' ' ')" = "x_1.json x_1.npy y.json y.npy " ]
ok "a CSV with keys"
printf 'a,b\n1,2\n' > "$dir/bad.csv"
run 1 $sample -p "$dir/bad.csv" -o "$dir/list" && says "bad.csv:1: no column caption, text or prompt"
ok "a CSV without a caption"
printf 'key,text\n/x,a\n' > "$dir/bad.csv"
run 1 $sample -p "$dir/bad.csv" -o "$dir/list" && says "/x: the key leaves the output's folder"
ok "a key that leaves the folder"
printf 'key,text\nx,a\nx,b\n' > "$dir/bad.csv"
run 1 $sample -p "$dir/bad.csv" -o "$dir/list" && says "x: two prompts of this key"
ok "a key twice"
run 2 $sample < /dev/null && says "no prompt"
ok "no prompt is a usage error"
run 0 $sample -o "$dir/long.mp4" "$(printf 'a red ball falls %.0s' 1 2 3 4 5 6)" && says "00000-a-red-ball" && says "tokens: cut at 12" && [ "$(wc -l < "$dir/err")" = 1 ]
ok "a long prompt is cut, with a note"
"$PYTHON" - "$dir" << 'P'
import io, sys, tarfile
import numpy as np
def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
def npy(a):
    b = io.BytesIO()
    np.save(b, a)
    return b.getvalue()
with tarfile.open(sys.argv[1] + "/in.tar", "w", tarfile.USTAR_FORMAT) as tar:
    add(tar, "one.txt", b"a red ball\n")
    add(tar, "two.text.npy", npy(np.full((12, 24), .1, np.float16)))
    add(tar, "two.txt", b"rain\n")
    add(tar, "six.text.npy", npy(np.full((12, 7), .1, np.float16)))
P
run 1 $sample --shard --format shard --save-latents -o "$dir/out.tar.zst" "$dir/in.tar" && says "six: text.npy is not (L, 24)" && says "2 good, 1 bad" &&
    [ "$(members "$dir/out.tar.zst" | tr '\n' ' ')" = "one.txt one.sample.mp4 one.sample.latents.npy one.json two.txt two.sample.mp4 two.sample.latents.npy two.json " ]
ok "a shard's samples; embeddings of their own"

# ---- noise and latents
run 0 $sample -n 2 --save-latents --format npy -o "$dir/latents" "a red ball" && [ "$(shape "$dir/latents/00000-a-red-ball-1.latents.npy")" = "<f4 (1, 3, 4, 8, 6)" ]
ok "--save-latents"
"$PYTHON" -c "import sys, numpy as np; np.save(sys.argv[1], np.random.default_rng(1).standard_normal((2, 3, 4, 8, 6)).astype('f4'))
np.save(sys.argv[2], np.load(sys.argv[1])[1:])" "$dir/noise.npy" "$dir/noise1.npy"
run 0 $sample --noise "$dir/noise.npy" -n 2 --format npy -o "$dir/n2" "a red ball" &&
    ! cmp -s "$dir/n2/00000-a-red-ball-0.npy" "$dir/n2/00000-a-red-ball-1.npy" &&
    run 0 $sample --noise "$dir/noise1.npy" --format npy -o "$dir/n1.npy" "a red ball" && cmp "$dir/n1.npy" "$dir/n2/00000-a-red-ball-1.npy" 2> "$dir/err"
ok "--noise: one for each clip of a prompt"
run 1 $sample --noise "$dir/noise.npy" -o "$dir/x.mp4" x && says "noise.npy: is 2x3x4x8x6, must be 1x3x4x8x6"
ok "noise of another shape"

# ---- names
run 0 $sample -p "$dir/prompts.txt" -n 2 --naming vbench -o "$dir/vbench" &&
    [ "$(ls "$dir/vbench/videos" | tr '\n' '|')" = "a cat-0.mp4|a cat-1.mp4|a cat-2.mp4|a cat-3.mp4|glass _ rain-0.mp4|glass _ rain-1.mp4|" ] &&
    grep -qxF "videos/glass _ rain-1.mp4,00002-glass-rain-1,1,glass / rain" "$dir/vbench/manifest.csv"
ok "--naming vbench"
run 0 $sample -p "$dir/list.csv" --naming vbench2 -o "$dir/vbench2" && [ -s "$dir/vbench2/videos/Material/rain-0.mp4" ] &&
    grep -qxF '"videos/Mechanics/a ball, ""red""-0.mp4",x_1,0,"a ball, ""red"""' "$dir/vbench2/manifest.csv"
ok "--naming vbench2"
run 2 $sample --naming vbench2 -o "$dir/vbench2" rain && says "has no dimension"
ok "--naming vbench2 without dimensions"
run 0 $sample -p "$dir/list.csv" --naming videophy -o "$dir/videophy" &&
    [ "$(sed -n 2p "$dir/videophy/videophy.csv")" = "$(realpath "$dir")/videophy/videos/x_1.mp4,\"a ball, \"\"red\"\"\"" ]
ok "--naming videophy"
long=$(printf 'é%.0s' $(seq 200))
run 0 $sample --naming vbench -o "$dir/longname" "$long" "${long}x" && [ "$(ls "$dir/longname/videos" | wc -l)" = 2 ] &&
    ls "$dir/longname/videos" | "$PYTHON" -c 'import sys
for n, name in enumerate(sys.stdin.buffer): assert len(name) <= 256 and name.decode() == "é" * 124 + f"-{n}.mp4\n"' 2>> "$dir/err"
ok "names that are too long are cut between characters, and count on"

# ---- again
run 0 $sample -n 2 --format npy -o "$dir/many" < "$dir/prompts.txt" && says "6 of 6 clips were made before" && [ "$(wc -l < "$dir/err")" = 1 ]
ok "what is done is not made again"
before=$(stat -c %Y.%i "$dir/many/00000-a-cat-1.npy")
rm "$dir/many/00000-a-cat-0.npy" && : > "$dir/many/00001-a-cat-0.json"
run 0 $sample -n 2 --format npy -o "$dir/many" < "$dir/prompts.txt" && says "4 of 6" && [ -s "$dir/many/00000-a-cat-0.npy" ] &&
    [ "$before" = "$(stat -c %Y.%i "$dir/many/00000-a-cat-1.npy")" ]
ok "what is missing is; the rest is left as it was"
run 0 $sample -n 2 --format npy --guidance 5 -o "$dir/many" < "$dir/prompts.txt" && says "made with other options or weights: made anew" &&
    [ "$before" != "$(stat -c %Y.%i "$dir/many/00000-a-cat-1.npy")" ] && [ "$(grep -c . "$dir/err")" = 1 ]
ok "with other options all is made anew, and that is said once"
$sample -n 500 -o "$dir/killed" x > "$dir/out" 2> "$dir/err" &
pid=$!
for _ in $(seq 300); do
    [ -s "$dir/killed/00000-x-0.json" ] && break
    sleep 0.1
done
kill -TERM $pid
wait $pid
[ $? = 1 ] && says stopped && [ -s "$dir/killed/00000-x-0.json" ] && [ -z "$(find "$dir/killed" -name '*tmp*')" ] &&
    [ "$(ls "$dir/killed" | grep -c 'mp4$')" = "$(ls "$dir/killed" | grep -c 'json$')" ]
ok "a run that is ended leaves whole clips only"

# ---- memory
run 0 $sample --tile on --format npy -o "$dir/tiles.npy" "a red ball" && ! cmp -s "$dir/a.npy" "$dir/tiles.npy"
ok "--tile on"
run 0 $sample -v --memory 200M --format npy -o "$dir/x.npy" "a red ball" && says "in one pass, decoded whole" && cmp "$dir/a.npy" "$dir/x.npy" 2>> "$dir/err"
ok "with much memory: whole"
for ((k = 80; k > 50; k--)); do # of 100 KiB
    $sample -v --memory ${k}00K --format npy -o "$dir/x.npy" "a red ball" > "$dir/out" 2> "$dir/err" || break
    grep -q "decoded in tiles, one network" "$dir/err" && break
done
says "one network loaded at a time" && near "$dir/tiles.npy" "$dir/x.npy" 1
ok "with little: in tiles, one network at a time, and the same frames"
run 1 $sample --memory 2M -o "$dir/x.mp4" x && says "out of memory" && [ "$(wc -l < "$dir/err")" = 1 ]
ok "with less: one line"
run 0 $sample --dry-run && grep -q '^text encoder' "$dir/out" && grep -q '^memory: ' "$dir/out" && silent
ok "--dry-run tells of both"

# ---- sizes
run 2 "$O/ma-sample" -b "$dir/2b" --clip 13x64x48 x && says "13 frames: the codec makes 9 or 16"
ok "a number of frames that the codec does not make"
run 2 "$O/ma-sample" -b "$dir/2b" --clip 9x64x40 x && says "64x40 is not a multiple of 16"
ok "a size that is no multiple"

# ---- what is wrong with the folder
copy() { # $dir/2b as $dir/broken
    rm -rf "$dir/broken" && cp -r "$dir/2b" "$dir/broken"
}
refused() { # NAME TEXT…: $dir/broken is refused with one line that holds them all
    local name=$1 text rc
    shift
    run 1 "$O/ma-sample" -b "$dir/broken" $clip --steps 1 -o "$dir/no.mp4" x && [ "$(wc -l < "$dir/err")" = 1 ] && ! [ -e "$dir/no.mp4" ]
    rc=$?
    for text in "$@"; do says "$text" || rc=1; done
    (exit $rc)
    ok "$name"
}
edit() { # FILE SCRIPT: the JSON object j changed
    "$PYTHON" -c "import json, sys; p = sys.argv[1]; j = json.load(open(p)); exec(sys.argv[2]); json.dump(j, open(p, 'w'))" "$dir/broken/$1" "$2"
}
weights() { # FILE SCRIPT: the header h and the data d of a safetensors file changed; first: $key
    "$PYTHON" - "$dir/broken/$1" "$2" "${key:-}" << 'P'
import json, struct, sys
raw = open(sys.argv[1], "rb").read()
n = struct.unpack("<Q", raw[:8])[0]
h, d = json.loads(raw[8:8 + n]), bytearray(raw[8 + n:])
first = sys.argv[3]
exec(sys.argv[2])
text = json.dumps(h).encode()
text += b" " * (-len(text) % 8)
open(sys.argv[1], "wb").write(struct.pack("<Q", len(text)) + text + d)
P
}
net=diffusion_pytorch_model.safetensors
for pair in "transformer/$net norm_out.norm.weight" "vae/$net decoder.conv_in.conv.bias" "text_encoder/model.safetensors shared.weight"; do
    read -r part key <<< "$pair"
    copy && rm "$dir/broken/$part"
    refused "$part is missing" "broken/${part%/*}"
    copy && truncate -s -8 "$dir/broken/$part"
    refused "$part is cut" "$part"
    copy && weights $part 'h[first]["shape"] = h[first]["shape"][::-1] + [1]'
    refused "$part: a wrong shape" "broken/${part%/*}: $key" "must be"
    copy && weights $part 'h[first + ".odd"] = h.pop(first)'
    refused "$part: another name" "broken/${part%/*}: $key" "is missing"
    copy && weights $part 'at = h[first]["data_offsets"][0]; d[at:at + 4] = struct.pack("<f", float("nan"))'
    refused "$part: NaN" "broken/${part%/*}: $key" "element 0 is NaN"
done
copy && rm "$dir/broken/tokenizer/spiece.model"
refused "no tokenizer" "broken/tokenizer"
copy && : > "$dir/broken/tokenizer/spiece.model"
refused "an empty tokenizer" "spiece.model"
copy && edit transformer/config.json 'j["patch_size_t"] = 2'
refused "a config that asks for more: CogVideoX 1.5" "transformer/config.json" "patch_size_t"
copy && edit scheduler/scheduler_config.json 'j["prediction_type"] = "sample"'
refused "another prediction" "scheduler_config.json" "prediction_type"
copy && edit scheduler/scheduler_config.json 'j["_class_name"] = "EulerDiscreteScheduler"'
refused "another scheduler" "scheduler_config.json" "EulerDiscreteScheduler"
copy && edit vae/config.json 'j["_class_name"] = "AutoencoderKLWan"'
refused "another codec" "vae/config.json" "AutoencoderKLWan"
copy && edit vae/config.json 'j["latent_channels"] = 8'
refused "parts that do not go together" "in_channels"
copy && edit text_encoder/config.json 'j["d_model"] = 32'
refused "a text encoder of another width" "d_model"
copy && edit text_encoder/config.json 'j["model_type"] = "umt5"'
refused "another text encoder" "text_encoder/config.json" "umt5"
copy && edit model_index.json 'j["_class_name"] = "WanPipeline"'
refused "another pipeline" "model_index.json" "WanPipeline"
copy && printf '{' > "$dir/broken/transformer/config.json"
refused "a config that is not JSON" "transformer/config.json"
rm -rf "$dir/broken"
refused "no folder" "broken"

# ---- other transformers
two='{"dtype": "F32", "shape": [2], "data_offsets": [len(d), len(d) + 8]}; d += bytes(8)'
copy && weights transformer/$net "h['projectors.0.0.weight'] = $two" &&
    edit transformer/config.json 'j["align_layer"] = 18; j["align_dims"] = [768]; j["projector_dim"] = 2048'
run 0 $sample -t "$dir/broken/transformer" --format npy -o "$dir/t.npy" "a red ball" && says "left alone: align_layer, align_dims, projector_dim, projectors.*" &&
    [ "$(wc -l < "$dir/err")" = 1 ] && cmp "$dir/a.npy" "$dir/t.npy" 2>> "$dir/err"
ok "VideoREPA's transformer: what it has beside is named once and left alone"
copy && weights transformer/$net "h['x.lora_A.weight'] = $two"
run 1 $sample -t "$dir/broken/transformer/$net" -o "$dir/no.mp4" x && says "not known: " && [ "$(wc -l < "$dir/err")" = 1 ]
ok "a file with a LoRA in it must be all of one that fits"
run 2 $sample --lora-strength 0.5 -o "$dir/no.mp4" x && says "--lora-strength: no LoRA is given (-t)"
ok "--lora-strength without a LoRA"
run 0 $sample -t "$dir/5b/transformer" --format npy -o "$dir/t.npy" "a red ball" && ! near "$dir/a.npy" "$dir/t.npy" 1
ok "-t brings its config: 5B style in the 2B's folder"
finish
