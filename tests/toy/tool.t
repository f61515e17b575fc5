#!/bin/bash
# ma-toy as a command: members, repeatability, refusals, what a closed pipe, a full disk and a signal leave behind.
toy=${O:-build}/ma-toy
python=${PYTHON:-python3}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
n=0
ok() { # name, then a command that must succeed
    local name=$1
    shift
    n=$((n + 1))
    if "$@"; then echo "ok $n - $name"; else echo "not ok $n - $name"; fi
}
skip() { n=$((n + 1)); echo "ok $n # SKIP $1"; }
status() { # expected exit status, command: quiet but for what it says on standard error, kept in $dir/err
    local want=$1
    shift
    "$@" >"$dir/out" 2>"$dir/err"
    [ $? = "$want" ]
}
small=(--clip 9x32x48@12 --stride 1)

"$toy" -n 12 "${small[@]}" --seed 7 -z 0 >"$dir/a.tar" || echo "# failed"
ok 'members stand in order' [ "$(tar -tf "$dir/a.tar" | head -8 | tr '\n' ' ')" = \
    'clip-000000.mp4 clip-000000.txt clip-000000.flow.npy clip-000000.json clip-000001.mp4 clip-000001.txt clip-000001.flow.npy clip-000001.json ' ]
for j in 1 2 3; do
    "$toy" -n 12 "${small[@]}" --seed 7 -z 0 -j $j >"$dir/b.tar"
    ok "the same bytes with -j $j" cmp "$dir/a.tar" "$dir/b.tar"
done
tar -xf "$dir/a.tar" -C "$dir"
"$toy" -n 2 "${small[@]}" --seed 7 >"$dir/two.tar.zst"
ok 'a clip does not depend on how many there are' cmp <(tar --zstd -xOf "$dir/two.tar.zst" clip-000001.mp4) "$dir/clip-000001.mp4"
"$toy" -n 2 --first 10 "${small[@]}" --seed 7 -z 0 >"$dir/b.tar"
ok 'nor on which is the first' cmp <(tar -xOf "$dir/b.tar" clip-000010.mp4 clip-000011.json) <(cat "$dir/clip-000010.mp4" "$dir/clip-000011.json")
"$toy" -n 1 "${small[@]}" --seed 6 -z 0 >"$dir/b.tar"
ok 'another seed, another clip' [ "$(tar -xOf "$dir/b.tar" clip-000000.json)" != "$(cat "$dir/clip-000000.json")" ]
ok 'a caption in one line' grep -qE '^(an?|two|three|four|five) .*ball' "$dir/clip-000000.txt"

if "$python" -c 'import numpy' 2>/dev/null; then
    ok 'flow and trajectories agree' "$python" - "$dir" <<'PY'
import json, sys, numpy as np
kinds = set()
for k in range(12):
    base = f"{sys.argv[1]}/clip-{k:06d}"
    flow = np.load(base + ".flow.npy")
    assert flow.dtype == np.float16 and flow.shape == (8, 32, 48, 2), flow.shape
    toy = json.load(open(base + ".json"))["ma-toy"]
    assert toy["seed"] == 7 and toy["fps"] == 12 and toy["options"]["clip"] == "9x32x48@12"
    kinds.add(toy["kind"])
    assert (toy["floor"], toy["right"] - toy["left"] > 30) == (32, True), toy
    assert ("pivot" in toy) == ("length" in toy) == (toy["kind"] == "pendulum")
    assert ("pillar" in toy) == ("visible" in toy["balls"][0]) == (toy["kind"] == "pass")
    assert (toy["friction"] > 0) == (toy["kind"] == "slide")
    assert toy["wall"] + " wall" in open(base + ".txt").read()
    top = toy["balls"][-1]  # in front of all others
    assert len(top["path"]) == 9 and top["pattern"] in ("plain", "striped", "chequered", "dotted")
    for t in range(8):
        (x, y), (u, v) = top["path"][t], np.subtract(top["path"][t + 1], top["path"][t])
        if toy["kind"] == "pass" and toy["pillar"][0] <= x + t * toy["pan"][0] <= toy["pillar"][2]:
            u, v = -toy["pan"][0], 0  # there the pillar is seen
        if 0 <= y < 32:
            assert abs(flow[t, int(y), int(x)] - (u, v)).max() < 0.02, (k, t)
    if toy["kind"] == "pendulum":
        r = np.add(np.subtract(top["path"], toy["pivot"]), np.outer(range(9), toy["pan"]))
        assert abs(np.hypot(*r.T) - toy["length"]).max() < 1e-5
assert kinds == {"fall", "pendulum", "slide", "pass"}, kinds
PY
    for seed in 1 2; do
        "$toy" -n 6 "${small[@]}" --motion-seed 3 --look-seed $seed -z 0 -o "$dir/look$seed.tar"
        "$toy" -n 6 "${small[@]}" --look-seed 3 --motion-seed $seed -z 0 -o "$dir/motion$seed.tar"
    done
    "$toy" -n 6 "${small[@]}" --seed 3 --look-seed 1 -z 0 -o "$dir/seed.tar"
    ok 'motion and looks have a seed each, by default that of --seed' "$python" - "$dir" <<'PY'
import io, json, sys, tarfile, numpy as np
def read(name):
    tar = tarfile.open(f"{sys.argv[1]}/{name}.tar")
    get = lambda key, ext: tar.extractfile(f"clip-{key:06d}.{ext}").read()
    toys = [json.loads(get(k, "json"))["ma-toy"] for k in range(6)]
    motion = [[t["kind"], t["pan"], [(b["radius"], b["path"]) for b in t["balls"]], get(k, "flow.npy")] for k, t in enumerate(toys)]
    return motion, [[t["wall"], t["balls"][0]["color"], t["balls"][0]["pattern"]] for t in toys], [get(k, "mp4") for k in range(6)]
(a, la, va), (b, lb, vb) = read("look1"), read("look2")
assert a == b and all(x != y for x, y in zip(va, vb)) and la != lb
(c, lc, vc), (d, ld, vd) = read("motion1"), read("motion2")
assert lc == ld and all(x != y for x, y in zip(vc, vd)) and all(x[2] != y[2] for x, y in zip(c, d))
assert read("seed") == (a, la, va)
PY
    ok 'only the kinds that are named, and as many balls' "$python" - <(
        "$toy" -n 12 "${small[@]}" --kinds fall,slide --balls 2 -z 0 | tar -xO --wildcards '*.json') <<'PY'
import json, sys
toys = [json.loads(x)["ma-toy"] for x in open(sys.argv[1]).read().replace('}{"ma-toy"', '}\n{"ma-toy"').splitlines()]
assert len(toys) == 12 and {t["kind"] for t in toys} == {"fall", "slide"}
assert {len(t["balls"]) for t in toys} == {1, 2}
PY
    "$toy" -n 1 --clip 9x32x48@12 --seed 7 -z 0 | tar -xO clip-000000.flow.npy >"$dir/two.npy"
    ok 'every second frame by default, as ma-flow does' "$python" - "$dir" <<'PY'
import sys, numpy as np
one, two = (np.load(f"{sys.argv[1]}/{n}.npy").astype(float) for n in ("clip-000000.flow", "two"))
assert two.shape == (3, 32, 48, 2), two.shape
assert abs(two[0, 31, 0] - one[1, 31, 0] - one[2, 31, 0]).max() < 0.02  # the wall
PY
else
    for k in 1 2 3 4; do skip 'no numpy'; done
fi
if command -v ffprobe >/dev/null; then
    ok 'H.264, 4:2:0, BT.709, all frames' [ "$(ffprobe -v error -count_frames -of csv=p=0 -show_entries \
        stream=codec_name,pix_fmt,color_range,color_space,nb_read_frames "$dir/clip-000000.mp4")" = h264,yuv420p,tv,bt709,9 ]
else
    skip 'no ffprobe'
fi

ok 'odd sizes are refused' status 2 "$toy" --clip 9x31x48
ok '… with words' grep -q '^ma-toy: --clip: 31x48: .*even' "$dir/err"
ok 'an unknown kind is refused' status 2 "$toy" --kinds fall,fly
ok '… with words' grep -q "^ma-toy: --kinds: 'fly': .*pendulum" "$dir/err"
ok 'too many balls are refused' status 2 "$toy" --balls 6
ok 'inputs are refused' status 2 "$toy" clip.mp4
ok 'one frame has no flow' status 2 "$toy" --clip 1x32x48
ok 'the dry run writes a plan' status 0 "$toy" --dry-run -n 7 "${small[@]}"
ok '… of shapes' grep -q '8x32x48x2' "$dir/out"
ok 'a full disk' status 1 bash -c "'$toy' -n 8 ${small[*]} -z 0 >/dev/full"
ok '… is told' grep -q 'No space left' "$dir/err"
ok 'no clips is an empty shard' [ "$("$toy" -n 0 | tar --zstd -tf - | wc -l)" = 0 ]
"$toy" -n 2000 "${small[@]}" -z 0 2>"$dir/err" | head -c 1000 >/dev/null
rc=("${PIPESTATUS[@]}")
ok 'a closed pipe ends it' [ "${rc[0]}" = 1 ]
ok '… in silence' [ ! -s "$dir/err" ]

"$toy" -n 1000000 "${small[@]}" -o "$dir/killed.tar.zst" &
sleep 0.5
kill -TERM $!
wait $!
ok 'a signal ends it' [ $? = 1 ]
ok '… and leaves no file' [ -z "$(find "$dir" -name '*killed*')" ]
if script -qec true /dev/null > /dev/null 2>&1 < /dev/null; then
    ok 'a terminal is refused' grep -q 'not for a terminal' <(script -qec "$toy -n 1" /dev/null </dev/null)
else
    skip 'no script(1) to make a terminal with'
fi
echo "1..$n"
