#!/bin/bash
# flow: ma-flow eval on files made by hand, folders, shards; --bidirectional and what ma-subspace train --mask makes of
# it. Weights are drawn by ma-extract's random encoder and, for RAFT, are the published ones, where they are at hand.
set -u
. tests/cli/tap.sh

if ! "$PYTHON" -c 'import numpy' 2> "$dir/err"; then
    echo "1..0 # SKIP needs NumPy"
    exit 0
fi
py() { (cd "$dir" && "$PYTHON" -c "import io, struct, sys, tarfile, numpy as np
def flo(path, a):
    a = np.asarray(a, '<f4')
    open(path, 'wb').write(struct.pack('<fii', 202021.25, a.shape[1], a.shape[0]) + a.tobytes())
def tar(path, **members):
    with tarfile.open(path, 'w') as t:
        for name, a in members.items():
            b = io.BytesIO()
            np.save(b, a)
            i = tarfile.TarInfo(name.replace('__', '.').replace('_v', '-v') + '.npy')
            i.size = len(b.getvalue())
            t.addfile(i, io.BytesIO(b.getvalue()))
def npy(path, name):
    return np.load(io.BytesIO(tarfile.open(path).extractfile(name).read()))
$1") 2> "$dir/err"; }
row() { # NAME VALUES: whether the table has the line
    awk -v n="$1" '$1 == n { $1 = ""; print substr($0, 2) }' "$dir/out" | grep -qx -- "$2" ||
        { cat "$dir/out" > "$dir/err"; false; }
}

# ---- eval
py "
import os
a = np.zeros((4, 5, 2))
b = a.copy()
b[0, 0] = 3, 4          # 5 pixels off
b[1, 1] = 0, 2          # 2
b[2, 2] = 0, -1         # 1
flo('a.flo', a); flo('b.flo', b)
known = a.copy(); known[0, 0] = 2e9
flo('known.flo', known)
os.mkdir('A'); os.mkdir('B')
flo('A/1.flo', a); flo('A/2.flo', a); flo('B/1.flo', b); flo('B/2.flo', a)
flo('other.flo', np.zeros((5, 4, 2)))
open('short.flo', 'wb').write(open('a.flo', 'rb').read()[:-1])
open('huge.flo', 'wb').write(struct.pack('<fii', 202021.25, 1 << 30, 1 << 30) + bytes(64))
f = np.zeros((2, 4, 5, 2), np.float16)
g = f.copy(); g[0] = b
v = np.ones((2, 4, 5), bool); v[0, 0, 0] = False
tar('x.tar', c__flow=f, d__flow=f); tar('y.tar', c__flow=g, d__flow=f); tar('z.tar', d__flow=f, c__flow=g)
tar('m.tar', c__flow=f, c__flow_valid=v)
tar('s.tar', c__flow=f[:1], d__flow=f)
"
ok "flows made by hand"
cd "$dir" || exit
case $O in /*) ;; *) O=$OLDPWD/$O ;; esac
run 0 "$O/ma-flow" eval a.flo b.flo && row a.flo "20 0.4000 10.000 5.000" && row mean "20 0.4000 10.000 5.000"
ok "eval of two files: 8 pixels of error on 20, two beyond 1, one beyond 3"
run 0 "$O/ma-flow" eval known.flo b.flo && row known.flo "19 0.1579 5.263 0.000"
ok "what the reference does not know does not count"
run 0 "$O/ma-flow" eval A B && row 1.flo "20 0.4000 10.000 5.000" && row 2.flo "20 0.0000 0.000 0.000" &&
    row mean "40 0.2000 5.000 2.500"
ok "folders, and the mean over all pixels"
run 0 "$O/ma-flow" eval x.tar y.tar && row c "40 0.2000 5.000 2.500" && row mean "80 0.1000 2.500 1.250"
ok "shards"
run 0 "$O/ma-flow" eval m.tar m.tar && row c "39 0.0000 0.000 0.000"
ok "shards with flow-valid.npy"
for bad in "a.flo other.flo" "a.flo short.flo" "huge.flo huge.flo" "a.flo nothere.flo" "A nothere" "x.tar z.tar" "x.tar m.tar" \
    "x.tar s.tar" "a.flo x.tar"; do
    run 1 "$O/ma-flow" eval $bad && [ "$(wc -l < err)" = 1 ] && ! grep -q mean out
    ok "exit 1, one line: ma-flow eval $bad"
done
run 2 "$O/ma-flow" eval a.flo && says "REFERENCE and ESTIMATE"
ok "exit 2 with one input"
cd "$OLDPWD" || exit

# ---- there and back
real=$SHARED/assets/raft/raft-small.pth
run 0 "$O/ma-toy" -n 2 --seed 3 --clip 9x128x160@12 --pan 1 -z 0 -o "$dir/toy.tar"
ok "toy clips"
run 2 "$O/ma-flow" -m x --back -o "$dir/x.tar" "$dir/toy.tar" && says "--bidirectional"
ok "exit 2: --back alone"
if [ -r "$real" ]; then
    flow="$O/ma-flow -m $real --updates 6 --clip 9x128x160 --out-size native -z 0"
    run 0 $flow --bidirectional --back -v -o "$dir/both.tar" "$dir/toy.tar" && says "RAFT-small, princeton-vl"
    ok "--bidirectional --back; -v names the flavour"
    run 0 $flow -o "$dir/there.tar" "$dir/toy.tar"
    py "
key = [n[:-9] for n in tarfile.open('both.tar').getnames() if n.endswith('.flow.npy')]
assert len(key) == 2
miss = [], []
for k in key:
    f, b, v = (npy('both.tar', k + e) for e in ('.flow.npy', '.flow-back.npy', '.flow-valid.npy'))
    assert v.dtype == bool and v.shape == (3, 128, 160) and b.dtype == np.float16 and b.shape == f.shape, v.shape
    assert 0.5 < v.mean() < 0.9999, v.mean()
    assert (f == npy('there.tar', k + '.flow.npy')).all()
    wrong = np.hypot(*np.moveaxis(f.astype(float) - npy('toy.tar', k + '.flow.npy'), -1, 0))
    miss[0].append(wrong[v].mean())
    miss[1].append(wrong[~v].mean())
assert np.mean(miss[0]) < 0.3 * np.mean(miss[1]), miss
"
    ok "the masks: of the flow that is there without them, and errors lie mostly outside"
    run 0 $flow --bidirectional --back -o "$dir/again.tar" "$dir/both.tar" && cmp -s "$dir/both.tar" "$dir/again.tar"
    ok "flow and mask that are there are passed on"
    run 0 $flow -q -o "$dir/alone.tar" "$dir/both.tar" && ! tar -tf "$dir/alone.tar" | grep -q 'valid\|back'
    ok "a mask of another run does not stay beside new flow"

    # ---- learning from what is valid
    run 0 "$O/ma-extract" -e videomae=random:16x1,patch=16,skip=1 --clip 9x128x160 -z 0 -o "$dir/train.tar" "$dir/both.tar" &&
        run 0 "$O/ma-subspace" train --mask --steps 3 --batch 2 --hidden 8 --width 4 --seed 1 -o "$dir/m.safetensors" "$dir/train.tar"
    ok "ma-subspace train --mask"
    py "
def with_flow(path, spoil):
    with tarfile.open('train.tar') as a, tarfile.open(path, 'w') as t:
        for m in a.getmembers():
            data = a.extractfile(m).read()
            if m.name.endswith('.flow.npy'):
                f, b = npy('train.tar', m.name).copy(), io.BytesIO()
                f[~npy('train.tar', m.name[:-9] + '.flow-valid.npy')] = spoil
                np.save(b, f)
                data = b.getvalue()
            m.size = len(data)
            t.addfile(m, io.BytesIO(data))
with_flow('low.tar', -1000)
with_flow('high.tar', 1000)
"
    for k in low high; do
        train="$O/ma-subspace train --steps 3 --batch 2 --hidden 8 --width 4 --seed 1"
        run 0 $train --mask -o "$dir/$k.safetensors" "$dir/$k.tar" && run 0 $train -o "$dir/$k-all.safetensors" "$dir/$k.tar"
    done
    cmp -s "$dir/low.safetensors" "$dir/high.safetensors" && cmp -s "$dir/low.safetensors" "$dir/m.safetensors" &&
        ! cmp -s "$dir/low-all.safetensors" "$dir/high-all.safetensors"
    ok "what the mask leaves out changes nothing, and without it does"
    py "
import json
masked, low, high = (json.loads(open(f + '.safetensors.jsonl').readline())['loss'] for f in ('low', 'low-all', 'high-all'))
v = np.mean([npy('low.tar', n).mean() for n in tarfile.open('low.tar').getnames() if n.endswith('valid.npy')])
want = ((low + high) / 2 - 1000 * (1 - v)) / v # -1000 and 1000 are as far from all predictions, together, as 2000
assert abs(masked - want) < 1e-3 * want, (masked, want)
"
    ok "its loss is the mean over the pixels that are left"
    run 1 "$O/ma-subspace" train --mask --steps 1 -o "$dir/none.safetensors" "$dir/toy.tar" && [ "$(wc -l < "$dir/err")" -ge 1 ]
    ok "--mask without masks is an error"
else
    skip "no published weights here"
fi
finish
