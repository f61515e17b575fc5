#!/bin/bash
# encoders: several encoders in one run of ma-extract, each with settings of its own; what training needs (tokens, latent,
# text) at once, apart, one run behind another; captions; folders as they are published.
set -u
. tests/cli/tap.sh

if ! "$PYTHON" -c 'import numpy' 2> /dev/null; then
    echo "1..0 # SKIP needs NumPy"
    exit 0
fi
clip=9x64x96
extract="$O/ma-extract --clip $clip -z 0"
shapes() {
    "$PYTHON" - "$1" << 'P'
import io, json, sys, tarfile
import numpy as np
for m in (tar := tarfile.open(sys.argv[1])):
    data = tar.extractfile(m).read()
    if m.name.endswith(".npy"):
        a = np.load(io.BytesIO(data))
        assert np.isfinite(a).all() and a.astype(float).std() > 0
        print(m.name, a.dtype.str, *a.shape)
    if m.name.endswith(".json"):
        print(json.dumps(json.loads(data)["ma-extract"]["options"], sort_keys=True))
P
}

run 0 "$O/ma-toy" -n 2 --clip $clip -z 0 -o "$dir/toy.tar"
ok "clips"
run 0 $extract -e videomae=random:32x2 -e vjepa2=random:64x2,size=32x48,frames=4 -e dinov2=random:64x2,size=42x56,skip=1,frames=4,layer=1 \
    -e pixel=8 --batch 2 -o "$dir/all.tar" "$dir/toy.tar"
ok "four encoders in one run"
shapes "$dir/all.tar" > "$dir/out"
grep -q "000001.videomae.npy <f2 4 4 6 32" "$dir/out" && grep -q "000001.vjepa2.npy <f2 2 2 3 64" "$dir/out" &&
    grep -q "000001.dinov2.npy <f2 4 3 4 64" "$dir/out" && grep -q "000001.latent.npy <f2 384 9 8 12" "$dir/out"
ok "each has its member and its shape"
grep -q '"dinov2": {"frames": 4, "heads": 1, "layer": 1, "norm": "imagenet", "size": "42x56", "skip": 1}' "$dir/out" &&
    grep -q '"videomae": {"heads": 1, "norm": "imagenet", "skip": 1}' "$dir/out" && grep -q '"pixel": 8' "$dir/out"
ok "KEY.json tells the settings"
run 0 $extract -e videomae=random:32x2 --batch 2 -o "$dir/one.tar" "$dir/toy.tar"
tar -xOf "$dir/all.tar" --wildcards '*.videomae.npy' > "$dir/a" && tar -xOf "$dir/one.tar" --wildcards '*.videomae.npy' | cmp -s - "$dir/a"
ok "one alone gives the same bytes"
run 2 $extract -e dinov2=random:64x2 -e dinov2=random:32x1,size=56x56 -o "$dir/x.tar" "$dir/toy.tar" && says "size=70x98"
ok "a size that is not whole patches, with the next that is"
run 2 $extract -e pixel=8 -e pixel=4 -o "$dir/x.tar" "$dir/toy.tar" && says "both make latent.npy"
ok "two for one member"
run 2 $extract -e vae=random:8 -e pixel=4 -o "$dir/x.tar" "$dir/toy.tar" && says "both make latent.npy"
ok "so do vae and pixel"

# ---- what training needs: the teacher at half the size
teacher=videomae=random:32x2,size=32x48 vae=vae=random:8 t5=t5=random:64x2,length=24
train() { run 0 "$O/ma-extract" --clip $clip -z 0 --batch 2 "$@"; } # OPTIONS -o OUT IN
bytes() { tar -xOf "$1" --wildcards "*.$2.npy" | sha256sum; }       # SHARD MEMBER
one() { tar -xOf "$1" "$2.text.npy"; }                              # SHARD KEY
entry() {                                                           # SHARD
    "$PYTHON" - "$1" << 'P'
import json, sys, tarfile
e = json.load(tarfile.open(sys.argv[1]).extractfile("clip-000001.json"))["ma-extract"]
print(json.dumps({k: e[k] for k in ("options", "weights", "input", "clip") if k in e}, sort_keys=True))
P
}
run 0 "$O/ma-toy" -n 5 --clip $clip -z 0 -o "$dir/five.tar"
train -e $t5 -e $teacher -e $vae -o "$dir/all.tar" "$dir/five.tar" && shapes "$dir/all.tar" > "$dir/out" &&
    grep -q "clip-000004.videomae.npy <f2 4 2 3 32" "$dir/out" && grep -q "clip-000004.latent.npy <f2 32 3 8 12" "$dir/out" &&
    grep -q "clip-000004.text.npy <f2 24 64" "$dir/out" && grep -q '"vae": {"skip": 0}' "$dir/out" &&
    grep -qE '"t5": \{"caption": "[0-9a-f]{64}", "length": 24\}' "$dir/out"
ok "tokens, latent and text of five clips from one decoding"
train -e $teacher -o "$dir/a.tar" "$dir/five.tar" && train -e $vae -o "$dir/b.tar" "$dir/five.tar" &&
    train -e $t5 -o "$dir/c.tar" "$dir/five.tar" && [ "$(bytes "$dir/all.tar" videomae)" = "$(bytes "$dir/a.tar" videomae)" ] &&
    [ "$(bytes "$dir/all.tar" latent)" = "$(bytes "$dir/b.tar" latent)" ] &&
    [ "$(bytes "$dir/all.tar" text)" = "$(bytes "$dir/c.tar" text)" ]
ok "each made alone is the same"
train -e $vae -o "$dir/bc.tar" "$dir/c.tar" && train -e $teacher -o "$dir/abc.tar" "$dir/bc.tar" &&
    [ "$(entry "$dir/abc.tar")" = "$(entry "$dir/all.tar")" ] && [ "$(bytes "$dir/abc.tar" text)" = "$(bytes "$dir/all.tar" text)" ]
ok "one run behind another: the same members, and all are told of in KEY.json"
train -e $teacher -e $vae -e $t5 -o "$dir/again.tar" "$dir/abc.tar" && silent && cmp -s "$dir/abc.tar" "$dir/again.tar" &&
    train -e $t5 -o "$dir/again.tar" "$dir/abc.tar" && silent && cmp -s "$dir/abc.tar" "$dir/again.tar"
ok "what is there is passed on, by a run of all and by one of some"
train -e $vae,frames=5 -o "$dir/again.tar" "$dir/abc.tar" && says "made anew" && entry "$dir/again.tar" > "$dir/out" &&
    grep -q '"frames": 5' "$dir/out" && grep -q videomae "$dir/out"
ok "another setting: one is made anew, the others stay told"
run 0 "$O/ma-extract" --clip 5x64x96 -z 0 -e $vae -o "$dir/again.tar" "$dir/abc.tar" && entry "$dir/again.tar" > "$dir/out" &&
    ! grep -q videomae "$dir/out"
ok "another clip: what others made of the old one is not said to be of this one"
train -e $teacher -e $vae -e $t5 --dry-run && grep -q "1x9x64x96x3 -> 32x3x8x12" "$dir/out" &&
    grep -q "2x8x32x48x3 -> 2x4x2x3x32" "$dir/out" && grep -q "2 texts of 24 tokens -> 2x24x64" "$dir/out" &&
    grep -q "whole frames" "$dir/out"
ok "--dry-run tells all three"
short() { run 0 "$O/ma-extract" --memory 160M --dry-run "$@"; }
short --clip 9x96x160 -e $vae && grep -q "whole frames" "$dir/out" && short --clip 9x480x720 -e $vae &&
    grep -q "tiles of 240x360" "$dir/out" && short --clip 9x480x720 -e $vae,tile=none && grep -q "whole frames" "$dir/out"
ok "frames are cut into tiles where memory is short, unless told not to be"
train -e $vae,tile=48x80 -o "$dir/tiled.tar" "$dir/five.tar" && [ "$(bytes "$dir/tiled.tar" latent)" != "$(bytes "$dir/all.tar" latent)" ] &&
    entry "$dir/tiled.tar" | grep -q '"tile": "48x80"'
ok "tile=: another result, and told"

# ---- captions
texts() { # NAME CAPTION…: a shard of captions, without videos
    local k=0 name=$1
    shift
    rm -rf "$dir/texts" && mkdir "$dir/texts"
    for c; do printf '%s' "$c" > "$dir/texts/$((k++)).txt"; done
    (cd "$dir/texts" && tar -cf "../$name.tar" *)
}
read_texts() { run 0 "$O/ma-extract" -z 0 -e $t5 "$@"; }
texts few "A ball." "A box falls." "" "A box falls."
read_texts --batch 3 -o "$dir/t.tar" "$dir/few.tar" && [ "$(tar -tf "$dir/t.tar" | grep -c 'text.npy')" = 4 ]
ok "captions without videos"
read_texts --empty-text "$dir/empty.npy" && silent && one "$dir/t.tar" 2 | cmp -s - "$dir/empty.npy"
ok "--empty-text: what an empty caption makes"
one "$dir/t.tar" 1 > "$dir/1" && one "$dir/t.tar" 3 | cmp -s - "$dir/1" && ! cmp -s "$dir/1" "$dir/empty.npy"
ok "the same caption, the same embedding, in another batch"
texts long "0123456789012345678901234567890" "0123456789012345678901234567890x" "short"
read_texts -o "$dir/l.tar" "$dir/long.tar" && says "txt: 3" && says ", cut to 24; -v tells of others" && [ "$(grep -c cut "$dir/err")" = 1 ] &&
    one "$dir/l.tar" 0 > "$dir/0" && one "$dir/l.tar" 1 | cmp -s - "$dir/0"
ok "captions that are too long are cut, with one word"
read_texts -v -o "$dir/l.tar" "$dir/long.tar" && says "0.txt: 32 tokens, cut to 24" && says "1.txt: 33 tokens, cut to 24"
ok "with -v for each"
printf junk > "$dir/void.dat" && tar -C "$dir" -cf "$dir/void.tar" void.dat
run 1 "$O/ma-extract" -z 0 -e $t5 -o "$dir/m.tar" "$dir/few.tar" "$dir/void.tar" && says "void.txt: no caption" && says "4 good, 1 bad: 1 missing"
ok "a sample without a caption is named"
"$PYTHON" - "$dir/t.tar" "$dir/other.tar" << 'P'
import io, sys, tarfile
to = tarfile.open(sys.argv[2], "w")
for m in (t := tarfile.open(sys.argv[1])):
    data = b"Another ball." if m.name == "0.txt" else t.extractfile(m).read()
    m.size = len(data)
    to.addfile(m, io.BytesIO(data))
to.close()
P
read_texts -o "$dir/o.tar" "$dir/other.tar" && says "0.text.npy was made with other options" && one "$dir/o.tar" 1 > "$dir/1" &&
    one "$dir/t.tar" 1 | cmp -s - "$dir/1" && one "$dir/o.tar" 0 > "$dir/0" && ! one "$dir/t.tar" 0 | cmp -s - "$dir/0"
ok "a caption that has changed is embedded anew"
run 2 "$O/ma-extract" -e pixel=8 --empty-text "$dir/x.npy" && says "-e t5=DIR" && ! [ -e "$dir/x.npy" ]
ok "--empty-text without a text encoder"

# ---- folders as they are published, drawn here
"$PYTHON" - "$dir/model" << 'P'
import json, os, struct, sys
import numpy as np

def save(part, name, tensors, config):
    folder = os.path.join(sys.argv[1], part)
    os.makedirs(folder)
    json.dump(config, open(folder + "/config.json", "w"))
    head, data, rng = {}, b"", np.random.default_rng(1)
    for key, shape in tensors.items():
        scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        values = rng.normal(len(shape) == 1, scale, shape)
        if key == "encoder.conv_out.conv.bias":
            values[4:] = [1e5, -1e5, 40, -2]
        raw = values.astype("<f4").tobytes()
        head[key] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    open(f"{folder}/{name}.safetensors", "wb").write(struct.pack("<Q", len(text)) + text + data)

t, channels = {}, [8, 16, 16, 24]
def conv(name, o, c, *k):
    t[name + ".weight"], t[name + ".bias"] = [o, c, *k], [o]
def norm(name, c):
    t[name + ".weight"], t[name + ".bias"] = [c], [c]
def resnet(at, i, o):
    norm(at + ".norm1", i), norm(at + ".norm2", o)
    conv(at + ".conv1.conv", o, i, 3, 3, 3), conv(at + ".conv2.conv", o, o, 3, 3, 3)
    if i != o:
        conv(at + ".conv_shortcut", o, i, 1, 1, 1)
conv("encoder.conv_in.conv", 8, 3, 3, 3, 3)
for k, c in enumerate(channels):
    resnet(f"encoder.down_blocks.{k}.resnets.0", channels[max(k - 1, 0)], c)
    if k < 3:
        conv(f"encoder.down_blocks.{k}.downsamplers.0.conv", c, c, 3, 3)
for k in range(2):
    resnet(f"encoder.mid_block.resnets.{k}", 24, 24)
norm("encoder.norm_out", 24)
conv("encoder.conv_out.conv", 8, 24, 3, 3, 3)
conv("decoder.conv_in.conv", 24, 4, 3, 3, 3)
save("vae", "diffusion_pytorch_model", t,
     dict(_class_name="AutoencoderKLCogVideoX", block_out_channels=channels, latent_channels=4, layers_per_block=1, norm_num_groups=4))
at, ff = "encoder.block.0.layer.0.", "encoder.block.0.layer.1."
t = {"shared.weight": [32128, 16], at + "SelfAttention.relative_attention_bias.weight": [32, 2], at + "layer_norm.weight": [16],
     ff + "layer_norm.weight": [16], ff + "DenseReluDense.wo.weight": [16, 40], "encoder.final_layer_norm.weight": [16]}
t.update({at + f"SelfAttention.{k}.weight": [16, 16] for k in "qkvo"})
t.update({ff + f"DenseReluDense.{k}.weight": [40, 16] for k in ("wi_0", "wi_1")})
save("text_encoder", "model", t, dict(model_type="t5", d_model=16, num_heads=2, d_kv=8, d_ff=40, num_layers=1, vocab_size=32128,
                                      feed_forward_proj="gated-gelu"))
P
train -e "vae=$dir/model" -o "$dir/a.tar" "$dir/five.tar" && shapes "$dir/a.tar" > "$dir/out" && grep -q "clip-000001.latent.npy <f2 8 3 8 12" "$dir/out" &&
    train -e "vae=$dir/model/vae" -o "$dir/b.tar" "$dir/five.tar" && cmp -s "$dir/a.tar" "$dir/b.tar"
ok "vae: a model's folder, or the vae in it"
tar -xOf "$dir/a.tar" clip-000001.latent.npy > "$dir/latent.npy"
"$PYTHON" - "$dir/latent.npy" << 'P' 2> "$dir/err"
import sys
import numpy as np
z = np.load(sys.argv[1]).astype(float)
assert abs(z[:4]).max() < 30 and (z[4] == 20).all() and (z[5] == -30).all() and (z[6] == 20).all() and abs(z[7] + 2).max() < 15, z[:, 0, 0, 0]
P
ok "log-variances are clamped as diffusers clamps them, means are not"
run 1 $extract -e "vae=$dir/texts" -o "$dir/x.tar" "$dir/toy.tar" && says "texts/config.json"
ok "a folder of something else is named"
run 1 "$O/ma-extract" -z 0 -e "t5=$dir/model" -o "$dir/u.tar" "$dir/long.tar" && says "spiece.model"
ok "a folder without a tokenizer is named"
if [ -r "$SHARED/assets/t5/spiece.model" ]; then
    mkdir "$dir/model/tokenizer" && cp "$SHARED/assets/t5/spiece.model" "$dir/model/tokenizer/"
    train -e "t5=$dir/model" -e "vae=$dir/model" -o "$dir/a.tar" "$dir/five.tar" && shapes "$dir/a.tar" > "$dir/out" &&
        grep -q "clip-000004.text.npy <f2 226 16" "$dir/out"
    ok "t5: a model's folder"
    run 0 "$O/ma-extract" -z 0 -e "t5=$dir/model,length=24" -o "$dir/u.tar" "$dir/long.tar" && ! says "cut"
    ok "its tokens are pieces: what was too long in bytes is not"
    sed -i 's/32128/4000/' "$dir/model/text_encoder/config.json"
    run 1 "$O/ma-extract" -z 0 -e "t5=$dir/model" -o "$dir/u.tar" "$dir/long.tar" && says "vocab_size: 4000"
    ok "a tokenizer that does not go with the weights is named"
else
    skip "needs $SHARED/assets/t5/spiece.model"
fi
finish
