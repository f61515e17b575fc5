#!/bin/bash
# foreign: our shards read by others: tar, Python's tarfile with NumPy, webdataset. PYTHON: the interpreter (python3).
O=${O:-build} PYTHON=${PYTHON:-python3}
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
n=0
ok() { # NAME: the last command's status
    local rc=$?
    n=$((n + 1))
    [ $rc = 0 ] && echo "ok $n - $1" || echo "not ok $n - $1"
}
skip() { n=$((n + 1)); echo "ok $n # SKIP $1"; }

"$O/tests/shard/make" "$dir/a.tar.zst" 3 && "$O/tests/shard/make" "$dir/a.tar" 0
ok "two shards are made"
for k in 0 1 2 3 4 5; do for ext in mp4 txt flow.npy; do echo "clip-00000$k.$ext"; done; done > "$dir/want"

if zstd --version > "$dir/log" 2>&1; then
    tar --zstd -tf "$dir/a.tar.zst" > "$dir/got" 2> "$dir/err" && cmp "$dir/got" "$dir/want" && ! [ -s "$dir/err" ]
    ok "tar --zstd -tf lists it, without a warning"
    zstd -dcq "$dir/a.tar.zst" | cmp - "$dir/a.tar"
    ok "zstd -dc gives the bytes that -z 0 writes"
    zstd -tq "$dir/a.tar.zst"
    ok "zstd -t finds the checksums right"
else
    skip "no zstd"
fi
tar -tvf "$dir/a.tar" | awk '$1 != "-r--r--r--" || $2 != "0/0" { bad = 1 } END { exit bad || NR != 18 }'
ok "tar -tv: mode 0444, owner 0/0"

cat > "$dir/read_numpy.py" <<'P'
import subprocess, sys, tarfile, io, numpy as np
data = subprocess.run(["zstd", "-dcq", sys.argv[1]], stdout=subprocess.PIPE, check=True).stdout
tar = tarfile.open(fileobj=io.BytesIO(data))
for k in range(6):
    a = np.load(io.BytesIO(tar.extractfile(f"clip-00000{k}.flow.npy").read()))
    assert a.shape == (2, 3, k) and a.dtype == np.float32 and (a.ravel() == np.arange(6 * k)).all()
    assert tar.extractfile(f"clip-00000{k}.txt").read().decode() == f"a red ball, number {k}"
P
cat > "$dir/read_wds.py" <<'P'
import sys, webdataset as wds
got = list(wds.WebDataset("pipe:zstd -dcq " + sys.argv[1], shardshuffle=False).decode())
assert [s["__key__"] for s in got] == [f"clip-00000{k}" for k in range(6)]
for k, s in enumerate(got):
    assert s["flow.npy"].shape == (2, 3, k) and s["txt"] == f"a red ball, number {k}", k
P
if "$PYTHON" -c 'import numpy' 2> "$dir/log"; then
    "$PYTHON" "$dir/read_numpy.py" "$dir/a.tar.zst"
    ok "Python's tarfile and NumPy read it"
else
    skip "no NumPy for $PYTHON"
fi
if "$PYTHON" -c 'import webdataset' 2> "$dir/log"; then
    "$PYTHON" "$dir/read_wds.py" "$dir/a.tar.zst"
    ok "webdataset reads it through pipe:zstd -dc"
else
    skip "no webdataset for $PYTHON"
fi
echo "1..$n"
