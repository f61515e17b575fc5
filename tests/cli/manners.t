#!/bin/bash
# manners: what every tool does with a reader that leaves, a full disk, a kill, a wrong word, a bad sample, a terminal.
set -u
. tests/cli/tap.sh

clip=5x32x48
toy="$O/ma-toy --clip $clip"
run 0 $toy -n 4 -o "$dir/clips.tar.zst" &&
    run 0 "$O/ma-extract" -e videomae=random:32x2 -e pixel=4 --clip $clip -o "$dir/features.tar.zst" "$dir/clips.tar.zst" &&
    run 0 "$O/ma-subspace" train --hidden 16 --width 8 --steps 1 -o "$dir/motion.safetensors" "$dir/features.tar.zst" &&
    tiny_base && run 0 "$O/ma-align" -b "$dir/tiny" --from-scratch --loss none --batch 2 --steps 1 -o "$dir/base" "$dir/features.tar.zst"
ok "something to work with"
extract="$O/ma-extract -e pixel=4 --clip $clip"
apply="$O/ma-subspace apply -m $dir/motion.safetensors"
sample="$O/ma-sample -b $dir/base --steps 1 --clip $clip"
left() { # FOLDER: what is in it
    ls -A "$1"
}
mkdir "$dir/empty"

# ---- a reader that leaves
long="$O/ma-toy --clip 5x64x96 -n 400 -z 0"
run 0 bash -c "$long 2> $dir/err2 | head -c 1000 | wc -c | grep -qx 1000" && ! [ -s "$dir/err2" ]
ok "ma-toy | head: quiet"
run 0 bash -c "$long 2> $dir/err1 | $extract -z 0 2> $dir/err2 | head -c 1000 > $dir/out2" && ! [ -s "$dir/err1" ] && ! [ -s "$dir/err2" ]
ok "ma-toy | ma-extract | head: both quiet"
run 0 bash -c "$O/ma-toy --clip $clip -n 100 -z 0 | $O/ma-extract -e videomae=random:32x2 -z 0 --clip $clip -q | $apply -z 0 2> $dir/err2 | head -c 1000 > $dir/out2" &&
    ! [ -s "$dir/err2" ]
ok "… | ma-subspace apply | head: quiet"
run 0 bash -c "$sample --format shard -n 500 x 2> $dir/err2 | head -c 1000 > $dir/out2" && ! [ -s "$dir/err2" ]
ok "ma-sample --format shard | head: quiet"

# ---- a full disk
if [ -w /dev/full ]; then
    for tool in "$toy -n 2" "$extract $dir/clips.tar.zst" "$apply $dir/features.tar.zst" "$sample --format shard x" \
        "$O/ma-sheet $dir/clips.tar.zst"; do
        run 1 bash -c "$tool > /dev/full" && says "No space left on device" && [ "$(wc -l < "$dir/err")" = 1 ]
        tool=${tool#"$O"/}
        ok "/dev/full: ${tool%% [-/]*}: one line, exit 1"
    done
    for tool in ma-toy ma-extract ma-flow ma-subspace ma-align ma-sample ma-score ma-probe ma-sheet; do
        run 1 bash -c "$O/$tool --help > /dev/full" && says "No space left on device"
        ok "/dev/full: $tool --help"
    done
    run 1 bash -c "$O/ma-subspace eval -m $dir/motion.safetensors $dir/features.tar.zst > /dev/full" && says "No space left"
    ok "/dev/full: ma-subspace eval"
else
    skip "no /dev/full"
fi
run 1 $toy -n 1 -o "$dir/nowhere/x.tar.zst" && says "nowhere/x.tar.zst" && ! [ -e "$dir/nowhere" ]
ok "an output that cannot be made is named"

# ---- a kill in the middle
kill_in() { # NAME SIGNAL COMMAND…: sends the signal once something was written into $dir/NAME beside the final name
    local folder=$dir/$1 signal=$2 pid
    shift 2
    mkdir -p "$folder"
    "$@" > "$dir/out" 2> "$dir/err" &
    pid=$!
    for _ in $(seq 500); do
        [ -n "$(find "$folder" -type f -size +0)" ] && break
        sleep 0.01
    done
    kill -"$signal" $pid
    wait $pid 2> "$dir/job"
    echo $? > "$dir/status"
}
kill_in killed KILL $long -n 4000 -o "$dir/killed/x.tar" 2> "$dir/job"
[ "$(cat "$dir/status")" = 137 ] && ! [ -e "$dir/killed/x.tar" ] && [ -n "$(left "$dir/killed")" ]
ok "SIGKILL: nothing under the final name"
echo old > "$dir/killed/y.tar"
kill_in killed KILL $long -n 4000 -o "$dir/killed/y.tar" 2> "$dir/job"
[ "$(cat "$dir/killed/y.tar")" = old ]
ok "SIGKILL: what stood there before still stands"
for signal in INT TERM; do
    kill_in stopped-$signal $signal $long -n 4000 -o "$dir/stopped-$signal/x.tar" 2> "$dir/job"
    [ "$(cat "$dir/status")" = 1 ] && [ -z "$(left "$dir/stopped-$signal")" ]
    ok "SIG$signal: exit 1, nothing half-made is left"
done
kill_in stopped-extract TERM bash -c "exec $extract -z 0 -o $dir/stopped-extract/x.tar < <($long -n 4000)"
[ "$(cat "$dir/status")" = 1 ] && [ -z "$(left "$dir/stopped-extract")" ]
ok "SIGTERM in a stream: the same"

# ---- the command line
for tool in ma-toy ma-extract ma-flow ma-subspace ma-align ma-sample ma-score ma-probe ma-sheet; do
    verb=
    [ $tool = ma-subspace ] && verb=apply
    run 2 "$O/$tool" $verb --sead 1 && says "$tool: --sead: unknown option; did you mean --seed?" && [ "$(wc -l < "$dir/err")" = 1 ] && ! [ -s "$dir/out" ]
    ok "$tool: an unknown option is exit 2 and names the nearest"
    run 2 "$O/$tool" $verb --threads=many && says "--threads" && run 2 "$O/$tool" $verb --level 99 && says "-7..22"
    ok "$tool: a number that is none, a number out of range"
    run 0 "$O/$tool" --version && grep -qE "^$tool [0-9]+\.[0-9]+" "$dir/out" && silent
    ok "$tool: --version"
    if [ $tool != ma-toy ] && [ $tool != ma-sample ]; then
        case $tool in
        ma-extract) more="-e pixel=4" ;;
        ma-flow) more="-m $SHARED/assets/raft/raft-small.pth" ;;
        ma-subspace) more="apply -m $dir/motion.safetensors" ;;
        ma-align) more="-b $dir/tiny --from-scratch --loss none --steps 1 -o $dir/gone" ;;
        ma-probe) more="-l ma-toy.kind -t $dir/clips.tar.zst" ;;
        *) more= ;;
        esac
        if [ $tool = ma-flow ] && ! [ -r "$SHARED/assets/raft/raft-small.pth" ]; then
            skip "no RAFT weights"
        else
            run 1 bash -c "$O/$tool $more $dir/none.tar.zst > $dir/empty.out" && says "none.tar.zst: No such file"
            ok "$tool: an input that is not there is named, exit 1"
        fi
    fi
done
run 2 "$O/ma-subspace" aply && says "did you mean apply?"
ok "an unknown command names the nearest"
run 2 "$O/ma-align" -o "$dir/x" && says "-b DIR" && run 2 "$O/ma-align" -b "$dir/tiny" && says "-o OUT" && run 2 "$O/ma-sample" x && says "-b DIR"
ok "what must be given is asked for"
run 2 "$O/ma-subspace" apply "$dir/features.tar.zst" && says "-m FILE"
ok "apply without a network is a usage error"

# ---- bad samples
zstd -dcq "$dir/features.tar.zst" > "$dir/plain.tar" && mkdir "$dir/bad" && tar -xf "$dir/plain.tar" -C "$dir/bad" && chmod -R u+w "$dir/bad"
rm "$dir/bad/clip-000001.videomae.npy"
head -c 200 "$dir/bad/clip-000002.videomae.npy" > "$dir/cut.npy" && mv "$dir/cut.npy" "$dir/bad/clip-000002.videomae.npy"
"$PYTHON" -c "
p = '$dir/bad/clip-000003.videomae.npy'
d = bytearray(open(p, 'rb').read())
d[-2:] = b'\\x00\\x7e'
open(p, 'wb').write(d)" && (cd "$dir/bad" && tar -cf "$dir/bad.tar" --sort=name *)
ok "a shard: one sample good, one without features, one cut, one with a NaN"
run 1 $apply -o "$dir/b.tar.zst" "$dir/bad.tar" && says "ma-subspace: clip-000001.videomae.npy: not in the sample" && says "ma-subspace: clip-000002" &&
    says "1 good, 3 bad: 1 cut, 1 missing, 1 not-finite" && [ "$(members "$dir/b.tar.zst" | grep -c 'clip-000000\.motion\.npy')" = 1 ] && [ "$(members "$dir/b.tar.zst" | grep -c clip-000001)" = 0 ]
ok "apply: bad samples are named and left out, the rest goes on, exit 1"
run 1 "$O/ma-subspace" train --hidden 16 --width 8 --batch 1 --steps 3 -o "$dir/b.safetensors" "$dir/bad.tar" && says "clip-000001" &&
    says "clip-000002" && says "clip-000003" && says "1 good, 3 bad" && [ -s "$dir/b.safetensors" ] && [ "$(grep -c clip-000003 "$dir/err")" = 1 ]
ok "train: the same; in three epochs each is named once"
run 1 $apply --max-bad 1 -o "$dir/c.tar.zst" "$dir/bad.tar" && says "more than 1 bad" && ! [ -e "$dir/c.tar.zst" ]
ok "--max-bad 1: stops, and nothing half-made"
run 1 "$O/ma-subspace" train --strict --hidden 16 --width 8 --batch 1 --steps 3 -o "$dir/c.safetensors" "$dir/bad.tar" && says "first bad one" &&
    ! [ -e "$dir/c.safetensors" ]
ok "--strict in training"
size=$(stat -c %s "$dir/features.tar.zst")
head -c $((size * 5 / 8)) "$dir/features.tar.zst" > "$dir/cutoff.tar.zst"
run 1 $apply -o "$dir/d.tar.zst" "$dir/cutoff.tar.zst" && says "cutoff.tar.zst" && says "2 good, 1 bad: 1 cut" &&
    [ "$(members "$dir/d.tar.zst" | grep -c motion)" = 2 ]
ok "a shard that is cut: the whole samples before the cut go on"

# ---- --dry-run
cd_empty() { (cd "$dir/empty" && PATH=$bin:$PATH "$@"); }
bin=$(cd "$O" && pwd)
for tool in "ma-toy --clip $clip" "ma-extract -e pixel=4 --clip $clip" "ma-subspace train -o m.safetensors $dir/features.tar.zst" \
    "ma-subspace apply -m $dir/motion.safetensors --flow -o a.tar.zst $dir/features.tar.zst" \
    "ma-subspace eval -m $dir/motion.safetensors $dir/features.tar.zst" \
    "ma-align -b $dir/tiny --from-scratch --loss none -o out $dir/features.tar.zst" \
    "ma-align -b $dir/base --layer 1 --loss repa --target videomae -o out $dir/features.tar.zst" \
    "ma-sample -b $dir/base --clip $clip -n 2 -o out x" "ma-sample -b $dir/base --clip $clip --format shard -o x.tar.zst x" \
    "ma-sheet -o s.png $dir/clips.tar.zst"; do
    run 0 cd_empty $tool --dry-run && [ -s "$dir/out" ] && silent && [ -z "$(left "$dir/empty")" ]
    ok "--dry-run prints a plan and writes nothing: ${tool%% [-/]*}"
done

# ---- a terminal
if script -qec true /dev/null > "$dir/out" 2>&1 < /dev/null; then
    for tool in "ma-toy -n 1 --clip $clip" "ma-extract -e pixel=4 --clip $clip $dir/clips.tar.zst" \
        "ma-subspace apply -m $dir/motion.safetensors $dir/features.tar.zst" "ma-sample -b $dir/base --clip $clip --steps 1 --format shard x" \
        "ma-sheet $dir/clips.tar.zst"; do
        run 2 script -qec "$bin/$tool" /dev/null < /dev/null && grep -q terminal "$dir/out" && [ "$(wc -l < "$dir/out")" = 1 ]
        ok "refuses to write to a terminal: ${tool%% [-/]*}"
    done
    run 0 script -qec "$bin/ma-toy -n 1 --clip $clip -o $dir/tty.tar.zst --progress always" /dev/null < /dev/null && [ -s "$dir/tty.tar.zst" ]
    ok "-o FILE from a terminal is fine"
else
    skip "no script(1) to make a terminal with"
fi

# ---- two at once
mkdir "$dir/sub" && cp "$dir/clips.tar.zst" "$dir/sub/"
run 1 $extract -o "$dir/twice.tar.zst" "$dir/clips.tar.zst" "$dir/sub/clips.tar.zst" && says "clip-000000" && says "4 duplicate"
ok "two inputs of one key are not written over each other"
# A device that is not there: one line, exit 1; auto goes on without it.
if nvidia-smi > /dev/null 2>&1; then
    skip "there is a GPU"
else
    run 1 $O/ma-extract -d cuda -e videomae=random:32x1 -e pixel=4 --clip 3x32x32 --fit stretch -o $dir/none.tar.zst /dev/null
    [ "$(grep -c . $dir/err)" = 1 ] && says "cuda: "
    ok "-d cuda without a GPU: one line, exit 1"
fi
finish
