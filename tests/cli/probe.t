#!/bin/bash
# probe: ma-probe on features made by hand, in which one label is written and another is not; what it refuses;
# ma-subspace train --no-projection; features on a sheet; pipelines/toy/claim.
set -u
. tests/cli/tap.sh

# Shards of samples with KEY.f.npy (2,3,2,9) and KEY.json {"a": {"b": [{"seen", "inside", "number", …}]}}: `seen` raises
# one dimension of every token, `inside` the deviation of one, `number` moves four; `here` raises or lowers one in the
# token under `path`, and does the opposite in another (clips of 5x6x4, tokens of 2x2x2 pixels from frame 1; in the first
# time step the path is outside); `lost` is drawn, and told nowhere.
cat > "$dir/make.py" << 'END'
import io, json, sys, tarfile
import numpy as np
name, n, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(seed)
with tarfile.open(name, "w", format=tarfile.USTAR_FORMAT) as tar:
    for k in range(n):
        seen, inside, lost, number = rng.integers(3), rng.integers(2), rng.integers(3), 2 + rng.normal()
        f = rng.normal(size=(2, 3, 2, 9))
        f[..., seen] += 3
        f[..., 3] *= 1 + 9 * inside
        f[..., 4:8] = f[..., 4:8] * 0.1 + number * np.array([1, -2, 0.5, 3])
        here, y, x = (int(rng.integers(most)) for most in (2, 3, 2))
        f[1, y, x, 8] += 20 * here - 10
        f[0, 0, 0, 8] -= 20 * here - 10
        path = [[0, 0], [-0.1, 0], [0, 0], [x * 2 + 0.1, y * 2 + 1.9], [0, 0]]
        label = dict(seen="red green blue".split()[seen], inside=bool(inside), lost="xyz"[lost], number=number,
                     here=bool(here), path=path, away=[[4, 0]] * 5, flat=[0] * 5,
                     many=f"{seed}-{k}", mixed=k if k % 2 else "odd", nothing=None)
        npy = io.BytesIO()
        np.save(npy, f.astype(np.float16))
        for ext, data in (("f.npy", npy.getvalue()), ("json", json.dumps({"a": {"b": [label]}}).encode())):
            info = tarfile.TarInfo(f"s{seed}-{k:04d}.{ext}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
END
run 0 "$PYTHON" "$dir/make.py" "$dir/train.tar" 400 1 && run 0 "$PYTHON" "$dir/make.py" "$dir/test.tar" 300 2
ok "shards made by hand"
probe="$O/ma-probe --features f"
run 0 $probe -l a.b.0.seen -l a.b.0.inside -l a.b.0.here -l a.b.0.lost -l a.b.0.number -t "$dir/test.tar" "$dir/train.tar" && silent
ok "ma-probe"
line() { # LABEL: its line
    awk -v l="$1" '$1 == l' "$dir/out"
}
[ "$(sed -n 1p "$dir/out")" = "label measure classes baseline score ridge share" ] && [ "$(wc -l < "$dir/out")" = 6 ]
ok "a line that names the columns, and one a label"
line a.b.0.seen | awk '{ exit !($2 == "accuracy" && $3 == 3 && $4 > .25 && $4 < .45 && $5 > .99) }'
ok "a label that the features hold linearly: always right"
chance() { # LABEL, of two classes
    line "$1" | awk '{ exit !($2 == "accuracy" && $3 == 2 && $5 > .4 && $5 < .6) }'
}
chance a.b.0.inside && chance a.b.0.here
ok "what the mean of the tokens does not hold: by chance"
line a.b.0.lost | awk '{ exit !($2 == "accuracy" && $3 == 3 && $5 > .22 && $5 < .45) }'
ok "one that they do not hold: by chance"
line a.b.0.number | awk '{ exit !($2 == "r2" && $3 == 0 && $4 == 0 && $5 > .98 && $5 <= 1) }'
ok "a number: almost all of its variance"
awk '{ s[$1] = $7 } END { exit !(s["a.b.0.seen"] > .2 && s["a.b.0.seen"] < .3 && s["a.b.0.number"] > .5 && s["a.b.0.number"] < .65 &&
    s["a.b.0.lost"] < .02) }' "$dir/out"
ok "shares of the variance: 6 and 14.25 of 25, as made; of what is told nowhere next to none"
cp "$dir/out" "$dir/first"
run 0 $probe -j 1 -l a.b.0.seen -l a.b.0.inside -l a.b.0.here -l a.b.0.lost -l a.b.0.number -t "$dir/test.tar" - < "$dir/train.tar" && cmp "$dir/first" "$dir/out"
ok "standard input, one thread: the same bytes"
run 0 $probe -l a.b.0.seen -l a.b.0.number --dry-run "$dir/train.tar" && grep -q "f: 9 numbers" "$dir/out" &&
    grep -q "seen: classes" "$dir/out" && grep -q "number: numbers" "$dir/out" &&
    run 0 $probe --pool mean-deviation -l a.b.0.seen --dry-run "$dir/train.tar" && grep -q "f: 18 numbers" "$dir/out"
ok "--dry-run"
run 0 $probe --pool mean-deviation -l a.b.0.inside -l a.b.0.here -t "$dir/test.tar" "$dir/train.tar" && chance a.b.0.here &&
    line a.b.0.inside | awk '{ exit !($5 > .95) }'
ok "--pool mean-deviation: true and false, told by the deviation"
run 0 $probe --pool token -l a.b.0.seen -l a.b.0.here -t "$dir/test.tar" "$dir/train.tar" && chance a.b.0.here &&
    line a.b.0.seen | awk '{ exit !($5 > .9 && $5 < 1) }' && cp "$dir/out" "$dir/first" &&
    run 0 $probe --pool token --seed 1 -l a.b.0.seen -l a.b.0.here -t "$dir/test.tar" "$dir/train.tar" && ! cmp -s "$dir/first" "$dir/out"
ok "--pool token: less sure than the mean of twelve; another seed draws others"
for pool in mean token; do
    run 0 $probe --at a.b.0.path --clip 5x6x4 --pool $pool -l a.b.0.here -t "$dir/test.tar" "$dir/train.tar" &&
        line a.b.0.here | awk '{ exit !($5 > .99 && $7 > .5) }'
    ok "--at, --pool $pool: what the token on the path holds"
done

# ---- what does not go
run 2 $probe -t "$dir/test.tar" "$dir/train.tar" && says "-l PATH" && run 2 $probe -l a.b.0.seen "$dir/train.tar" && says "-t FILE"
ok "labels and a test shard are asked for"
for path in a.b.1.seen a.b.seen a.b.0.none a..b a.b.0.seen.more; do
    run 1 $probe --max-bad 0 -l $path -t "$dir/test.tar" "$dir/train.tar" && says "s1-0000: KEY.json has no $path"
    ok "a path that leads nowhere: $path"
done
run 1 $probe --strict -l a.b -t "$dir/test.tar" "$dir/train.tar" && says "a.b is neither text nor number" &&
    run 1 $probe --strict -l a.b.0.nothing -t "$dir/test.tar" "$dir/train.tar" && says "neither text nor number"
ok "a label that is an array, or null"
on() { # MESSAGE OPTION…: --at does not go
    local message=$1
    shift
    run 1 $probe --strict -l a.b.0.seen -t "$dir/test.tar" "$@" "$dir/train.tar" && says "s1-0000: $message"
    ok "--at: $message"
}
on "KEY.json's a.b.0.none is no array of 5 points" --at a.b.0.none --clip 5x6x4
on "KEY.json's a.b.0.path is no array of 4 points" --at a.b.0.path --clip 4x6x4
on "KEY.json's a.b.0.flat: not all are points [x, y]" --at a.b.0.flat --clip 5x6x4
on "a.b.0.away is outside of the picture all along" --at a.b.0.away --clip 5x6x4
on "2 time steps of 1 frames" --at a.b --clip 1x6x4
run 2 $probe --at a.b.0.path -l a.b.0.seen "$dir/train.tar" && says "go together" && run 2 $probe --clip 5x6x4 -l a.b.0.seen "$dir/train.tar" &&
    says "go together" && run 2 $probe --pool sum -l a.b.0.seen "$dir/train.tar"
ok "--at without --clip, --clip without --at, a pooling that is none"
run 1 $probe --strict -l a.b.0.mixed -t "$dir/test.tar" "$dir/train.tar" && says "s1-0001: KEY.json's a.b.0.mixed is a number, unlike"
ok "texts and numbers mixed: unlike the first is a bad sample"
run 1 $probe -l a.b.0.many -t "$dir/test.tar" "$dir/train.tar" && says "more than 256 classes"
ok "too many classes"
run 1 "$O/ma-probe" --features g --strict -l a.b.0.seen -t "$dir/test.tar" "$dir/train.tar" && says "s1-0000.g.npy"
ok "a member that is not there"
run 1 $probe -l a.b.0.seen -t "$dir/none.tar" "$dir/train.tar" && says "none.tar" && says "no sample to measure on"
ok "a test shard that is not there"
mkdir "$dir/few" && tar -xf "$dir/train.tar" -C "$dir/few" && (cd "$dir/few" && tar -cf "$dir/few.tar" s1-000[0-3].*) &&
    run 1 $probe -l a.b.0.seen -t "$dir/test.tar" "$dir/few.tar" && says "4 rows are too few"
ok "too few samples"

# ---- the decoder alone
clip=9x32x32
run 0 bash -c "$O/ma-toy -q -n 12 --clip $clip | $O/ma-extract -q -e videomae=random:32x1 --clip $clip -o $dir/f.tar.zst"
ok "features and flow"
run 0 "$O/ma-subspace" train --no-projection --width 8 --steps 150 --lr 1e-2 --warmup 1 --batch 4 -q -o "$dir/bare.safetensors" "$dir/f.tar.zst" &&
    head -c 4000 "$dir/bare.safetensors" > "$dir/head" && grep -aq '"decoder.0.weight":{"dtype":"F32","shape":\[8,32,2,1,1\]' "$dir/head" &&
    ! grep -aq projection "$dir/head"
ok "train --no-projection: a decoder from 32 to 8, no projection"
run 0 "$O/ma-subspace" eval -m "$dir/bare.safetensors" "$dir/f.tar.zst" && awk '$1 == "epe" { e = $2 } $1 == "epe_no_motion" { n = $2 } END { exit !(e > 0 && e < n) }' "$dir/out"
ok "eval: better than no motion"
run 2 "$O/ma-subspace" apply -m "$dir/bare.safetensors" -o "$dir/no.tar.zst" "$dir/f.tar.zst" && says "nothing to apply" && ! [ -e "$dir/no.tar.zst" ]
ok "apply has nothing to apply"

# ---- features on a sheet
run 0 "$O/ma-sheet" --rows mp4,videomae.npy --samples 2 --columns 3 --cell 32x32 -o "$dir/two.png" "$dir/f.tar.zst" && silent &&
    [ "$(od -An -tx1 -j 16 -N 8 "$dir/two.png" | tr -d ' ')" = 000000680000008a ]
ok "ma-sheet --samples 2: a PNG of 104x138"
run 1 "$O/ma-sheet" --rows f.npy --samples 5 -o "$dir/no.png" "$dir/few.tar" && says "too few samples have f.npy" && ! [ -e "$dir/no.png" ]
ok "more samples than there are"
run 2 "$O/ma-sheet" --rows a,b,c --samples 8 "$dir/f.tar.zst" -o "$dir/no.png" && says "1 to 2 members"
ok "more rows than there may be"

# ---- stage 1's claim, far too small to be true
run 1 env OUT="$dir/claim" ENCODER=random:32x1 CLIPS=12 TESTS=6 STEPS=2 BATCH=2 HIDDEN=8 pipelines/toy/claim -j 1 && silent &&
    cmp -s "$dir/out" "$dir/claim/claim.md" && [ "$(grep -c '^| .* | -\?[0-9.]* | .* | .* | [0-9.]* |$' "$dir/out")" = 16 ] && [ "$(grep -c '^|' "$dir/out")" = 22 ] &&
    grep -q '^| | tokens, 32 wide | motion, 64 wide' "$dir/out" && [ "$(head -c 4 "$dir/claim/claim.png" | tail -c 3)" = PNG ]
ok "pipelines/toy/claim: a table of sixteen rows, a picture; exit 1, for nothing is shown by it"
finish
