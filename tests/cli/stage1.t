#!/bin/bash
# stage1: pipelines/stage1.mk on toy clips: killed and begun again it ends as if nothing had been; what changes makes
# anew what depends on it and nothing else; bad samples; status; lists; parts for several machines.
set -u
. tests/cli/tap.sh
MA=$(realpath "$O") clip=5x32x48
export MAKEFLAGS= MAKELEVEL= OMP_NUM_THREADS=1
unset MFLAGS

make=(make -f pipelines/stage1.mk "MA=$MA" PRESET= "ENCODER=random:32x2" "EXTRACT=--clip $clip")
# With the exact flow; steps enough to be killed in.
toy=("SHARDS=$dir/a.tar.zst $dir/b.tar.zst $dir/c.tar" RAFT=none
    "TRAIN=--hidden 16 --width 8 --batch 2 --window 4 --steps 150 --save-every 5")
stage1() { "${make[@]}" "$@"; }
toy() { # FOLDER ARGUMENT…
    local out=$1
    shift
    "${make[@]}" "${toy[@]}" OUT="$dir/$out" "$@"
}
same() { # FOLDER FOLDER: all that was asked for
    diff <(cd "$dir/$1" && sha256sum features/* motion/* motion.safetensors) \
        <(cd "$dir/$2" && sha256sum features/* motion/* motion.safetensors) > "$dir/err"
}
would() { # what make -n said that it would make
    sed -nE 's/.* (run|train) [^ ]*\/([^/ ]*\/[^ ]*|motion.safetensors) .*/\2/p' "$dir/out" | sed 's/.tar.zst//' | sort | tr '\n' ' '
}
made() { sed -nE 's/^  //p' "$dir/out" | sort | tr '\n' ' '; }
is() { # GOT WANT
    [ "$1" = "$2" ] || { printf 'got:  %s\nwant: %s\n' "$1" "$2" >> "$dir/err"; false; }
}

for k in a b c; do
    run 0 "$O/ma-toy" -n 4 --seed "$(printf %d "'$k")" --clip $clip -o "$dir/$k.tar.zst"
done
zstd -dq --rm "$dir/c.tar.zst"

# ---- killed
run 0 toy whole -j2 && is "$(made)" "features/a features/b features/c motion/a motion/b motion/c train/motion "
ok "three shards, every stage"
run 0 toy whole -j2 && grep -q "Nothing to be done" "$dir/out"
ok "again: nothing to be done"
run 0 stage1 status OUT="$dir/whole" && is "$(awk '$2 == "motion" || $2 == "train" { print $1, $2, $3, $4, $5 }' "$dir/out" | tr '\n' ';')" \
    "a motion done 4 0;b motion done 4 0;c motion done 4 0;motion train done 150 0;" && grep -qx "motion: 3 of 3 done, 0 running, 12 samples, 0 bad" "$dir/out"
ok "status"
killed=0 delay=400 # milliseconds
for k in $(seq 60); do
    setsid "${make[@]}" "${toy[@]}" OUT="$dir/killed" -j2 > "$dir/out" 2> "$dir/err" &
    pid=$!
    sleep "$(printf 0.%03d $((delay * (k % 4 + 1) / 4)))"
    kill -9 -- -$pid 2> /dev/null
    wait $pid 2> /dev/null
    if [ $? = 137 ]; then
        killed=$((killed + 1))
        [ $killed -lt 6 ] || break
    else # it had ended: anew, and sooner
        rm -rf "$dir/killed"
        delay=$((delay * 2 / 3 + 10))
    fi
done
[ $killed = 6 ]
ok "killed $killed times"
run 0 toy killed -j2 && same whole killed && [ -z "$(find "$dir/killed" -name '*.tmp.*' -o -name '.*.state')" ]
ok "then run to its end: the same bytes, nothing left behind"
kill_training() { # in the middle of it; it may be over before that is seen
    local pid
    for _ in $(seq 10); do
        rm "$dir/killed/motion.safetensors"
        setsid "${make[@]}" "${toy[@]}" OUT="$dir/killed" > "$dir/out" 2> "$dir/err" &
        pid=$!
        for _ in $(seq 1000); do
            compgen -G "$dir/killed/.motion.safetensors.state/step-*[0-9]" > /dev/null && break
            sleep 0.005
        done
        kill -9 -- -$pid 2> /dev/null
        wait $pid 2> /dev/null
        [ -e "$dir/killed/motion.safetensors" ] || return 0
    done
    false
}
kill_training && run 0 toy killed -j2 && grep -q "resumed" "$dir/killed/log/train/motion" && same whole killed
ok "killed in training: goes on from its checkpoint to the same bytes"
kill_training && run 0 toy killed -j2 "TRAIN=--hidden 16 --width 8 --batch 2 --steps 3" && ! grep -q "resumed" "$dir/killed/log/train/motion" &&
    run 0 toy killed -j2 && same whole killed
ok "with other options it begins anew"

# ---- what changes
before=$(cd "$dir/whole" && stat -c '%n %.Y' options/* features/* motion/* motion.safetensors)
run 0 toy whole -n "APPLY=--flow" && is "$(would)" "motion/a motion/b motion/c "
ok "another option of apply: motion alone"
run 0 toy whole -n "TRAIN=--steps 1" && is "$(would)" "motion.safetensors motion/a motion/b motion/c "
ok "of train: the subspace, and motion"
run 0 toy whole -n "EXTRACT=--clip $clip --fit pad" &&
    is "$(would)" "features/a features/b features/c motion.safetensors motion/a motion/b motion/c "
ok "of extract: everything"
run 0 toy whole -n -j2 "FLAGS=-j 2 -v" && grep -q "Nothing to be done" "$dir/out" &&
    is "$(cd "$dir/whole" && stat -c '%n %.Y' options/* features/* motion/* motion.safetensors)" "$before"
ok "FLAGS makes nothing anew; make -n has changed nothing"
touch "$dir/b.tar.zst"
run 0 toy whole -j2 "APPLY=--flow" MOTION="$dir/whole/motion.safetensors" && is "$(made)" "features/b motion/a motion/b motion/c "
ok "a newer input: its shard alone, with a subspace that is given; and what another option asks for"
run 0 toy whole -j2 "APPLY=--flow" MOTION="$dir/whole/motion.safetensors" && grep -q "Nothing to be done" "$dir/out"
ok "and then nothing more"
cp "$dir/whole/motion.safetensors" "$dir/motion.safetensors"

# ---- videos, lists, bad ones
mkdir "$dir/clips" && for k in a b c; do
    [ -e "$dir/$k.tar" ] || zstd -dqc "$dir/$k.tar.zst" > "$dir/$k.tar"
    mkdir "$dir/clips/$k" && tar -C "$dir/clips/$k" -xf "$dir/$k.tar" && rm "$dir/clips/$k"/*.npy
done
echo junk > "$dir/clips/b/clip-000001.mp4"
videos() { stage1 VIDEOS="$dir/clips" SHARD_SIZE=5 MOTION="$dir/motion.safetensors" "$@"; }
run 0 videos OUT="$dir/videos" -j2 && is "$(made)" "features/00000 features/00001 features/00002 motion/00000 motion/00001 motion/00002 " &&
    says "features/00001: 4 good, 1 bad: 1 cut, see $dir/videos/log/features/00001" && grep -q "b/clip-000001" "$dir/videos/log/features/00001"
ok "a folder in shards of five; a bad video is no error, and is told"
run 0 stage1 status OUT="$dir/videos" &&
    is "$(awk '$2 == "features" { print $1, $3, $4, $5 }' "$dir/out" | tr '\n' ';')" "00000 done 5 0;00001 done 4 1;00002 done 2 0;" &&
    grep -qx "features: 3 of 3 done, 0 running, 11 samples, 1 bad" "$dir/out"
ok "the status counts it"
is "$(members "$dir/videos/motion/00002.tar.zst" | tr '\n' ' ')" \
    "c/clip-000002.mp4 c/clip-000002.txt c/clip-000002.json c/clip-000002.motion.npy c/clip-000003.mp4 c/clip-000003.txt c/clip-000003.json c/clip-000003.motion.npy "
ok "what a motion shard holds"
rm "$dir/videos/motion/00001.tar.zst" "$dir/videos/features/00002.tar.zst"
exec 7> "$dir/videos/log/features/00002.lock" && flock 7
run 0 stage1 status OUT="$dir/videos" && is "$(awk '$1 == "00002" || $2 == "motion" { print $1, $2, $3 }' "$dir/out" | tr '\n' ';')" \
    "00000 motion done;00001 motion missing;00002 features running;00002 flow missing;00002 motion done;"
ok "done, running, missing"
exec 7>&-
run 0 videos OUT="$dir/videos" -j2 && is "$(made)" "features/00002 motion/00001 motion/00002 "
ok "what is not there is made, and what depends on it"
cp "$dir/clips/a/clip-000000.mp4" "$dir/clips/b/clip-000001.mp4"
run 0 videos OUT="$dir/videos" -n && is "$(would)" "features/00001 motion/00001 " &&
    run 0 videos OUT="$dir/videos" -j2 && is "$(made)" "features/00001 motion/00001 " && [ "$(members "$dir/videos/motion/00001.tar.zst" | grep -c mp4)" = 5 ]
ok "a video that has changed: its shard alone"
echo "a new caption" > "$dir/clips/a/clip-000003.txt"
run 0 videos OUT="$dir/videos" -j2 && is "$(made)" "features/00000 motion/00000 "
ok "a caption too"
run 2 videos OUT="$dir/videos" SHARD_SIZE=20 && says "another SHARD_SIZE: remove them" && [ -e "$dir/videos/motion/00002.tar.zst" ]
ok "shards that are not of this data set are not mixed with it"
touch "$dir/motion.safetensors"
run 0 videos OUT="$dir/videos" -n && is "$(would)" "motion/00000 motion/00001 motion/00002 "
ok "newer weights: what they have made"

"$O/ma-extract" --print-list "$dir/clips" > "$dir/list.jsonl"
listed() { stage1 LIST="$dir/list.jsonl" OUT="$dir/listed" SHARD_SIZE=5 MOTION="$dir/motion.safetensors" "$@"; }
run 0 listed SHARD=0/2 && is "$(made)" "features/00000 motion/00000 " && run 0 listed SHARD=1/2 -j2 &&
    is "$(made)" "features/00001 features/00002 motion/00001 motion/00002 "
ok "a list in two parts"
touch "$dir/motion.safetensors" && run 0 videos OUT="$dir/videos" -j2 && diff <(cd "$dir/videos" && sha256sum motion/*) <(cd "$dir/listed" && sha256sum motion/*) > "$dir/err"
ok "the same bytes as the folder in one"
tail -n 1 "$dir/list.jsonl" | sed 's/"key":"[^"]*"/"key":"new"/' >> "$dir/list.jsonl"
run 0 listed -n && is "$(would)" "features/00002 motion/00000 motion/00001 motion/00002 " && touch "$dir/listed/motion"/*
run 0 listed -j2 && is "$(made)" "features/00002 motion/00002 "
ok "a longer list: its last shard alone"

# ---- a preset
printf '[ma-extract]\nclip = %s\n[ma-flow]\nstride = 2\n[ma-subspace]\nbatch = 3\n' "$clip" > "$dir/preset"
preset() { stage1 SHARDS="$dir/a.tar.zst" OUT="$dir/preset-out" MOTION="$dir/motion.safetensors" PRESET="$dir/preset" EXTRACT= "$@"; }
run 0 preset && is "$(made)" "features/a motion/a " && cmp "$dir/preset-out/features/a.tar.zst" "$dir/whole/features/a.tar.zst" 2> "$dir/err"
ok "a preset sets what the options would"
sed -i 's/stride = 2/stride = 4 # more/' "$dir/preset" && run 0 preset && grep -q "Nothing to be done" "$dir/out"
ok "a line of a tool that is not used makes nothing anew"
sed -i 's/batch = 3/batch = 2/' "$dir/preset" && run 0 preset && is "$(made)" "motion/a "
ok "one of ma-subspace makes motion anew"

# ---- several machines that train
run 0 toy apart SHARD=1/3 && is "$(made)" "features/b " && run 0 toy apart SHARD=0/3 && run 0 toy apart SHARD=2/3
ok "before the training every machine makes its features"
run 2 toy apart SHARD=1/3 apply && says "without SHARD"
ok "apply before the training says what is lacking"
run 0 toy apart train && is "$(made)" "train/motion "
ok "one trains"
for k in 0 1 2; do run 0 toy apart SHARD=$k/3 || break; done && same killed apart
ok "all apply: the same bytes as one machine"

# What another machine has written in the meantime stays as it is.
before=$(stat -c %.Y "$dir/listed/list/00000.jsonl")
run 0 env OUT="$dir/listed" bash pipelines/stage1.sh take "$dir/listed/list/now/00000.jsonl" "$dir/listed/list/00000.jsonl" &&
    is "$(stat -c %.Y "$dir/listed/list/00000.jsonl")" "$before"
ok "a list that is there is not written again"

# ---- what is wrong
run 2 toy fails "EXTRACT=--clip 5x31x48" && says "5x31x48" && says "features/a failed" && ! [ -e "$dir/fails/features/a.tar.zst" ]
ok "a tool that fails is an error"
run 2 toy strict "EXTRACT=--clip 9x32x48 --max-bad 2" -k -j2 && says "more than 2 bad" && ! compgen -G "$dir/strict/features/*.tar.zst" > /dev/null
ok "so is one that stops at too many bad samples"
run 2 stage1 OUT="$dir/x" RAFT=none && says "give one of VIDEOS" && run 2 stage1 VIDEOS=v RAFT=none && says "OUT= is not given" &&
    run 2 stage1 OUT="$dir/x" LIST="$dir/nothere.csv" RAFT=none && says "nothere.csv: No such file" && ! [ -e "$dir/x/features" ]
ok "what is not given is named"
run 0 stage1 help && grep -q "^Goals: all" "$dir/out"
ok "help"

# ---- flow of a published network
real=$SHARED/assets/raft/raft-small.pth
if [ -r "$real" ] && [ -z "$QUICK" ]; then
    cp "$real" "$dir/raft.pth"
    flow() {
        stage1 VIDEOS="$dir/clips/a" OUT="$dir/flow" RAFT="$dir/raft.pth" "EXTRACT=--clip 5x64x96" \
            "FLOW=--clip 5x64x96 --updates 1 --out-size 16x24" "TRAIN=--hidden 16 --width 8 --steps 2 --batch 2" "$@"
    }
    run 0 flow -j2 && is "$(made)" "features/00000 flow/00000 motion/00000 train/motion "
    ok "with RAFT"
    touch "$dir/raft.pth"
    run 0 flow -n && is "$(would)" "flow/00000 motion.safetensors motion/00000 "
    ok "newer weights of RAFT: flow and what follows, features stay"
else
    skip "no published RAFT weights"
fi
finish
