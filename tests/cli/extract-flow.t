#!/bin/bash
# extract-flow: ma-extract and ma-flow end to end on small clips: members, options, batches, bad input, exit status.
# Weights are drawn here. PYTHON: an interpreter with NumPy (python3).
O=${O:-build} PYTHON=${PYTHON:-python3} SHARED=${SHARED:-../shared}
export MA_DEVICE=cpu
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
n=0
ok() { # NAME: the last command's status
    local rc=$?
    n=$((n + 1))
    if [ $rc = 0 ]; then
        echo "ok $n - $1"
    else
        echo "not ok $n - $1"
        sed 's/^/# /' "$dir/err"
    fi
}
skip() { n=$((n + 1)); echo "ok $n # SKIP $1"; }
run() { # STATUS COMMAND…: whether it ends so; standard error is kept
    local want=$1
    shift
    "$@" > "$dir/out" 2> "$dir/err"
    local rc=$?
    [ $rc = "$want" ] || { echo "exit $rc, not $want: $*" >> "$dir/err"; false; }
}
says() { grep -qF -- "$1" "$dir/err" || { echo "does not say: $1" >> "$dir/err"; false; }; }
members() { tar -tf "$1" | sed "s/^[^.]*\.//" | sort -u | tr '\n' ' '; }
check() { "$PYTHON" "$dir/check.py" "$dir" 2> "$dir/err" "$@"; }

cat > "$dir/check.py" <<'P'
import io, json, os, struct, sys, tarfile, zlib
import numpy as np

sys.dont_write_bytecode = True
sys.path.insert(0, "tests/cli")
from weights import raft, save
os.chdir(sys.argv[1])

def tar(path):
    out = {}
    for m in (t := tarfile.open(path)):
        out[m.name] = t.extractfile(m).read()
    return out

def npy(path, name):
    return np.load(io.BytesIO(tar(path)[name]))

def vit(path, scale):
    rng, d = np.random.default_rng(2), 16
    t = {"patch_embed.proj.weight": rng.normal(0, 0.02, (d, 3, 2, 16, 16)), "patch_embed.proj.bias": np.zeros(d)}
    for norm in "norm1", "norm2":
        t[f"blocks.0.{norm}.weight"], t[f"blocks.0.{norm}.bias"] = np.ones(d), np.zeros(d)
    t["blocks.0.attn.qkv.weight"] = rng.normal(0, 0.2, (3 * d, d))
    t["blocks.0.attn.q_bias"] = t["blocks.0.attn.v_bias"] = np.zeros(d)
    for name, o, i in ("attn.proj", d, d), ("mlp.fc1", 4 * d, d), ("mlp.fc2", d, 4 * d):
        t[f"blocks.0.{name}.weight"], t[f"blocks.0.{name}.bias"] = rng.normal(0, scale, (o, i)), np.zeros(o)
    t["fc_norm.weight"], t["fc_norm.bias"] = np.ones(d), np.zeros(d)
    save(path, t)

def png(data):
    """8 or 16 bit RGB."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, idat = 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + size]
        if kind == b"IHDR":
            w, h, depth, colour = struct.unpack(">IIBB", body[:10])
        if kind == b"IDAT":
            idat += body
        at += size + 12
    assert colour == 2
    step, raw = 3 * depth // 8, zlib.decompress(idat)
    rows, above = [], np.zeros(w * step, int)
    for y in range(h):
        line = np.frombuffer(raw, np.uint8, w * step, y * (w * step + 1) + 1).astype(int)
        kind = raw[y * (w * step + 1)]
        for x in range(w * step):
            a, b, c = (line[x - step] if x >= step else 0), above[x], (above[x - step] if x >= step else 0)
            p = a + b - c
            paeth = a if abs(p - a) <= abs(p - b) and abs(p - a) <= abs(p - c) else b if abs(p - b) <= abs(p - c) else c
            line[x] = (line[x] + (0, a, b, (a + b) // 2, paeth)[kind]) % 256
        rows.append(line)
        above = line
    out = np.array(rows, np.uint8).reshape(h, w, step)
    return out.view(">u2") if depth == 16 else out

exec(sys.argv[2])
P

clip() { ffmpeg -v error -f lavfi -i "$2" -frames:v "$3" -c:v ffv1 -pix_fmt bgr0 "$dir/$1.mkv"; }
if ! ffmpeg -version > /dev/null 2>&1 || ! "$PYTHON" -c 'import numpy' 2> /dev/null; then
    echo "1..0 # SKIP needs ffmpeg and NumPy"
    exit 0
fi
clip a "testsrc2=size=96x64:rate=10" 17
clip b "testsrc=size=96x64:rate=10" 17
clip c "mandelbrot=size=160x128:rate=10" 17
clip brief "testsrc2=size=96x64:rate=10" 5
echo junk > "$dir/junk.mp4"
check "raft('raft.safetensors'); vit('vit.safetensors', 0.2); vit('large.safetensors', 1e6)"
ok "clips and weights are made"
extract="$O/ma-extract -z 0 --clip 17x64x96" flow="$O/ma-flow -z 0 --updates 2 -m $dir/raft.safetensors"

# ---- ma-extract
run 0 $extract -e "videomae=$dir/vit.safetensors" -e pixel=8 -o "$dir/ab.tar" "$dir/a.mkv" "$dir/b.mkv" && ! [ -s "$dir/out" ]
ok "both encoders over two files"
[ "$(members "$dir/ab.tar")" = "json latent.npy mkv videomae.npy " ]
ok "the members"
check "
for k in 'ab':
    t, z = npy('ab.tar', k + '.videomae.npy'), npy('ab.tar', k + '.latent.npy')
    assert t.shape == (8, 4, 6, 16) and t.dtype == np.float16 and np.isfinite(t).all() and t.std() > 0.1, t.shape
    assert z.shape == (384, 17, 8, 12) and z.dtype == np.float16, z.shape
"
ok "their shapes: frame 0 of 17 is not tokens, every frame is a latent frame"
ffmpeg -v error -i "$dir/a.mkv" -f rawvideo -pix_fmt rgb24 - > "$dir/a.rgb"
check "
rgb = np.fromfile('a.rgb', np.uint8).reshape(17, 8, 8, 12, 8, 3).astype(np.float32)
want = (rgb / 127.5 - 1).transpose(5, 2, 4, 0, 1, 3).reshape(192, 17, 8, 12)
z = npy('ab.tar', 'a.latent.npy').astype(np.float32)
assert abs(z[:192] - want).max() < 0.01, abs(z[:192] - want).max()
assert (z[192:] == -30).all()
"
ok "pixel: colour, row, column of the decoded frames, log-variance -30"
check "
j = json.loads(tar('ab.tar')['a.json'])['ma-extract']
assert j['options']['clip'] == '17x64x96' and j['options']['fit'] == 'crop' and j['options']['pixel'] == 8, j
assert j['options']['videomae'] == {'norm': 'imagenet', 'heads': 1, 'skip': 1} and len(j['weights']['videomae']) == 64
assert len(j['input']) == 64 and j['version'] and 'seed' not in j
c = j['clip']
assert c['frames'] == list(range(17)) and abs(c['times'][16] - 1.6) < 1e-6 and c['size'] == [64, 96], c
assert c['source'] == [64, 96] and c['crop'] == [0, 0, 64, 96] and c['rotation'] == 0, c
"
ok "KEY.json tells options, weights, input and clip"

run 0 $extract -e "videomae=$dir/vit.safetensors" -e pixel=8 -o "$dir/again.tar" "$dir/ab.tar" && ! says "made anew" &&
    cmp -s "$dir/ab.tar" "$dir/again.tar"
ok "what is there with the same fingerprint is passed on"
run 0 $extract -e "videomae=$dir/vit.safetensors,norm=unit" -e pixel=8 -o "$dir/unit.tar" "$dir/ab.tar" && says "made anew"
ok "with another option it is made anew, and said so"
check "
a, b = npy('ab.tar', 'a.videomae.npy').astype(float), npy('unit.tar', 'a.videomae.npy').astype(float)
assert abs(a - b).max() > 0.01
assert json.loads(tar('unit.tar')['a.json'])['ma-extract']['options']['videomae']['norm'] == 'unit'
"
ok "norm=unit makes other tokens"

run 0 $extract -e "videomae=$dir/vit.safetensors" --batch 3 -o "$dir/three.tar" "$dir/a.mkv" "$dir/b.mkv"
check "
for k in 'ab':
    a, b = (npy(f, k + '.videomae.npy').astype(float) for f in ('ab.tar', 'three.tar'))
    assert abs(a - b).max() <= 2e-3 * abs(a).max(), abs(a - b).max()
"
ok "a batch gives what single clips give"
draw="$extract -e videomae=random:32x2,heads=2"
run 0 $draw --seed 7 -j 1 -o "$dir/r1.tar" "$dir/a.mkv" && run 0 $draw --seed 7 -j 2 -o "$dir/r2.tar" "$dir/a.mkv" &&
    cmp -s "$dir/r1.tar" "$dir/r2.tar"
ok "random weights: the same seed, the same bytes, with one thread or two"
run 0 $draw --seed 8 -o "$dir/r3.tar" "$dir/a.mkv" && ! cmp -s "$dir/r1.tar" "$dir/r3.tar"
ok "another seed, other tokens"
run 0 $O/ma-extract -z 0 -e videomae=random:16x1,patch=8,skip=3 --clip 7x32x40@5 --start 0.4 -o "$dir/o.tar" "$dir/c.mkv"
check "
assert npy('o.tar', 'c.videomae.npy').shape == (2, 4, 5, 16)
assert json.loads(tar('o.tar')['c.json'])['ma-extract']['clip']['frames'] == [4, 6, 8, 10, 12, 14, 16]
"
ok "--start, a rate, skip= and patch="

run 1 $extract -e pixel=8 -o "$dir/bad.tar" "$dir/a.mkv" "$dir/junk.mp4" "$dir/brief.mkv" "$dir/b.mkv" &&
    says "junk" && says "brief" && says "2 good, 2 bad" && [ "$(tar -tf "$dir/bad.tar" | grep -c npy)" = 2 ]
ok "bad samples are named and left out, the rest goes on, exit 1"
run 1 $extract -e pixel=8 --strict -o "$dir/strict.tar" "$dir/junk.mp4" "$dir/a.mkv" && ! [ -e "$dir/strict.tar" ]
ok "--strict: nothing half-made under the final name"
run 0 $extract -e pixel=8 --short skip -o "$dir/short.tar" "$dir/brief.mkv" "$dir/a.mkv" &&
    [ "$(tar -tf "$dir/short.tar" | grep -c brief)" = 0 ] && [ "$(tar -tf "$dir/short.tar" | grep -c npy)" = 1 ]
ok "--short skip leaves a short clip out in silence, exit 0"
run 0 $extract -e pixel=8 --short loop -o "$dir/loop.tar" "$dir/brief.mkv"
check "
assert json.loads(tar('loop.tar')['brief.json'])['ma-extract']['clip']['frames'][:7] == [0, 1, 2, 3, 4, 0, 1]
"
ok "--short loop"
run 1 $extract -e "videomae=$dir/large.safetensors" -o "$dir/nan.tar" "$dir/a.mkv" && says "a.videomae.npy" &&
    says "half-precision" && says "0 good, 1 bad"
ok "tokens beyond half precision are a bad sample"
printf 'text' > "$dir/t.txt" && tar -C "$dir" -cf "$dir/text.tar" t.txt
run 1 $extract -e pixel=8 -o "$dir/none.tar" "$dir/text.tar" && says "t: no video"
ok "a sample without a video is named"

for bad in "" "-e pixel=8 -e pixel=4" "-e pixel=7" "-e pixel=x" "-e tape=1" "-e videomae=random:16" \
    "-e videomae=random:16x1,heads=3" "-e videomae=random:16x1,norm=none" "-e videomae=random:16x1,colour=1" \
    "-e videomae=random:16x1 -e videomae=random:16x1" "-e videomae=random:16x1,patch=9" "-e videomae=random:16x1,skip=0" \
    "-e pixel=8 --dtype bf16 -d cpu" "-e pixel=8 --short maybe" "-e pixel=8 --batch 0" "-e pixel=8 --clips 3"; do
    run 2 $extract $bad -o "$dir/x.tar" "$dir/a.mkv" && [ "$(wc -l < "$dir/err")" = 1 ] && ! [ -e "$dir/x.tar" ]
    ok "exit 2, one line: ma-extract $bad"
done
run 1 $extract -e "videomae=$dir/nothere" -o "$dir/x.tar" "$dir/a.mkv" && says "nothere"
ok "weights that are not there"
run 1 $extract -e "videomae=$dir/raft.safetensors" -o "$dir/x.tar" "$dir/a.mkv" && says "not VideoMAE"
ok "weights of something else"
run 0 $extract -e "videomae=$dir/vit.safetensors" -e pixel=8 --batch 2 --dry-run &&
    grep -q "2x16x64x96x3 -> 2x8x4x6x16" "$dir/out" && grep -q "17x64x96x3 -> 384x17x8x12" "$dir/out" &&
    grep -q "^memory: parameters" "$dir/out"
ok "--dry-run prints the plan"

# ---- ma-flow
run 0 $flow --clip 9x128x160 --out-size 64x80 -o "$dir/f.tar" "$dir/c.mkv"
ok "flow of a clip"
check "
f = npy('f.tar', 'c.flow.npy')
assert f.shape == (3, 64, 80, 2) and f.dtype == np.float16 and f.astype(float).std() > 0.01, (f.shape, f.std())
j = json.loads(tar('f.tar')['c.json'])['ma-flow']
assert j['options'] == {'clip': '9x128x160', 'start': 0, 'fit': 'crop', 'short': 'error', 'updates': 2, 'skip': 1,
                        'stride': 2, 'out-size': [64, 80], 'format': 'npy', 'bidirectional': False, 'back': False}, j
assert len(j['weights']['raft']) == 64 and j['clip']['frames'] == list(range(9))
"
ok "frames 1 3 5 7 of 9: three flows; KEY.json"
run 0 $flow --clip 9x128x160 --out-size native --batch 1 -o "$dir/n.tar" "$dir/c.mkv" &&
    run 0 $flow --clip 9x128x160 --out-size native --batch 3 -o "$dir/n3.tar" "$dir/c.mkv"
check "
a, b = npy('n.tar', 'c.flow.npy').astype(float), npy('n3.tar', 'c.flow.npy').astype(float)
assert a.shape == (3, 128, 160, 2) and abs(a - b).max() <= 2e-3 * abs(a).max()
half = a.reshape(3, 64, 2, 80, 2, 2).mean((2, 4)) / 2
f = npy('f.tar', 'c.flow.npy').astype(float)
assert abs(half - f).max() < 0.02 * abs(f).max(), abs(half - f).max()
"
ok "--out-size: half the size, half the vectors; --batch changes nothing"
batches="$flow --clip 9x128x160 --bidirectional --back $dir/a.mkv $dir/b.mkv $dir/junk.mp4 $dir/c.mkv"
run 1 $batches --batch 2 -o "$dir/b2.tar" && run 1 $batches --batch 7 -v -o "$dir/b7.tar" && says "4 run, 0 launched" && says "3 good, 1 bad"
check "
x, y = tar('b2.tar'), tar('b7.tar')
assert list(x) == list(y) and sum(n.endswith('npy') for n in x) == 9, list(x)
flows = []
for n in x:
    if n.endswith('npy'):
        a, b = npy('b2.tar', n).astype(float), npy('b7.tar', n).astype(float)
        assert np.mean(abs(a - b)) <= 2e-3 * abs(a).max(), n
        if 'valid' not in n:
            flows += list(a)
scale = abs(np.array(flows)).max()
assert len(flows) == 18
assert min(abs(a - b).mean() for i, a in enumerate(flows) for b in flows[:i]) > 4e-3 * scale, 'these are to tell apart'
"
ok "nor do batches of parts of clips, or of several, with a bad one between"
run 0 $flow --clip 5x64x80 --size 128x160 --out-size native --stride 1 -o "$dir/s.tar" "$dir/c.mkv"
check "assert npy('s.tar', 'c.flow.npy').shape == (4, 128, 160, 2)"
ok "--size, --stride 1: no frame is dropped"
run 0 $flow --clip 5x128x160 --stride 1 --skip 0 -o "$dir/s0.tar" "$dir/c.mkv" &&
    run 0 $flow --clip 5x128x160 --stride 1 --skip 2 -o "$dir/s2.tar" "$dir/c.mkv"
check "
a, b = npy('s0.tar', 'c.flow.npy').astype(float), npy('s2.tar', 'c.flow.npy').astype(float)
assert b.shape == (2, 128, 192, 2) and abs(a[2:] - b).max() <= 2e-3 * abs(a).max() < abs(a[:2] - b).max()
"
ok "--skip drops the first frames"
run 0 $flow --clip 8x60x90 --stride 3 --skip 0 --out-size native -o "$dir/p.tar" "$dir/a.mkv"
check "assert npy('p.tar', 'a.flow.npy').shape == (2, 60, 90, 2)"
ok "small frames are padded and cut back"

run 0 $flow --clip 5x128x160 --out-size native --format flo -o "$dir/flo.tar" "$dir/c.mkv" &&
    run 0 $flow --clip 5x128x160 --out-size native --format kitti -o "$dir/kitti.tar" "$dir/c.mkv" &&
    run 0 $flow --clip 5x128x160 --out-size native --format png --stride 1 --skip 0 -o "$dir/png.tar" "$dir/c.mkv"
check "
flo = tar('flo.tar')['c.flow-000.flo']
assert struct.unpack('<fii', flo[:12]) == (202021.25, 160, 128) and len(flo) == 12 + 128 * 160 * 8
uv = np.frombuffer(flo, '<f4', offset=12).reshape(128, 160, 2)
k = png(tar('kitti.tar')['c.flow-000.png']).astype(float)
assert (k[..., 2] == 1).all()
assert abs((k[..., :2] - 32768) / 64 - uv).max() <= 0.5 / 64 + 1e-6
names = [n for n in tar('png.tar') if n.endswith('png')]
assert names == ['c.flow-%03d.png' % i for i in range(4)], names
assert png(tar('png.tar')[names[0]]).shape == (128, 160, 3)
"
ok "flo, KITTI's png and the colour wheel"
run 0 $flow --clip 5x128x160 --out-size native --format png -o "$dir/fewer.tar" "$dir/png.tar" &&
    [ "$(tar -tf "$dir/fewer.tar" | grep -c png)" = 1 ]
ok "pictures of an earlier run with more frames do not stay"

run 0 $flow --clip 9x128x160 --out-size 64x80 -o "$dir/again.tar" "$dir/f.tar" && cmp -s "$dir/f.tar" "$dir/again.tar"
ok "flow that is there with the same fingerprint is passed on"
mkdir "$dir/toy" && cp "$dir/c.mkv" "$dir/toy/" && check "np.save('toy/c.flow.npy', np.zeros((3, 64, 80, 2), np.float16))" &&
    tar -C "$dir/toy" -cf "$dir/toy.tar" c.mkv c.flow.npy
run 0 $flow --clip 9x128x160 --out-size 64x80 -o "$dir/own.tar" "$dir/toy.tar" && says "made anew"
check "assert (npy('own.tar', 'c.flow.npy') == npy('f.tar', 'c.flow.npy')).all()"
ok "another tool's flow is replaced, and said so"

for bad in "--size 100x100" "--clip 2x128x160 --skip 1" "--clip 4x128x160 --stride 9" "--updates 0" "--format gif" \
    "--dtype f16 -d cpu" "--skip -1"; do
    run 2 $flow $bad -o "$dir/x.tar" "$dir/c.mkv" && [ "$(wc -l < "$dir/err")" = 1 ]
    ok "exit 2, one line: ma-flow $bad"
done
run 1 "$O/ma-flow" -m "$dir/vit.safetensors" -o "$dir/x.tar" "$dir/c.mkv" && says "not RAFT" && says "blocks.0.attn.proj.bias" &&
    [ "$(wc -l < "$dir/err")" = 1 ]
ok "weights of something else"
run 0 $flow --dry-run && grep -q "23 flows a clip, 4 at a time, in f32: 1x5x160x240x3 -> 4x128x192x2" "$dir/out" &&
    grep -q "RAFT-small, princeton-vl" "$dir/out" && grep -q "^memory: parameters" "$dir/out"
ok "--dry-run prints the plan"

# ---- published weights on a known motion: 3 pixels a frame to the left, 1 down
real=$SHARED/assets/raft/raft-small.pth image=$SHARED/assets/flow/Grove2/frame10.png
if [ -r "$real" ] && [ -r "$image" ]; then
    ffmpeg -v error -loop 1 -framerate 10 -i "$image" -vf "crop=384:256:40+3*n:120-n" -frames:v 5 -c:v ffv1 -pix_fmt bgr0 "$dir/pan.mkv"
    run 0 "$O/ma-flow" -z 0 -m "$real" --clip 5x256x384 --out-size 128x192 -o "$dir/pan.tar" "$dir/pan.mkv"
    check "
f = npy('pan.tar', 'pan.flow.npy').astype(float)
assert f.shape == (1, 128, 192, 2), f.shape
m = np.median(f, (0, 1, 2))
assert abs(m[0] + 3) < 0.1 and abs(m[1] - 1) < 0.1, m
"
    ok "a pan of (-3, 1) a frame is (-3, 1) at stride 2 and half the size"
else
    skip "no published RAFT weights"
fi
echo "1..$n"
