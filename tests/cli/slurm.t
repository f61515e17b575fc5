#!/bin/bash
# slurm: pipelines/slurm/stage1 on a Slurm of one node that is started here (as root; Debian: slurmctld, slurmd,
# slurm-client, munge): three jobs, two array elements each, the same bytes as by hand.
set -u
. tests/cli/tap.sh
PATH=$PATH:/usr/sbin
for program in slurmctld slurmd sbatch munged; do
    command -v $program > /dev/null || { echo "1..0 # SKIP no $program (apt-get install slurmctld slurmd slurm-client munge)"; exit 0; }
done
[ "$(id -u)" = 0 ] || { echo "1..0 # SKIP slurmd needs root"; exit 0; }

MA=$(realpath "$O") host=$(hostname -s) pids=()
export SLURM_CONF=$dir/slurm.conf
port=$((20000 + $$ % 10000 * 2))
mkdir -p "$dir/state" "$dir/spool" "$dir/munge" && chmod 711 "$dir" # the socket is for all, the keys are not
stop() {
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2> /dev/null
    wait
    rm -rf "$dir"
}
trap stop EXIT
head -c 1024 /dev/urandom > "$dir/munge/key" && chmod 600 "$dir/munge/key"
cat > "$SLURM_CONF" << C
ClusterName=ma
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
C
munged --foreground --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" > "$dir/munged" 2>&1 &
pids+=($!)
sleep 0.5
slurmctld -D -i > "$dir/slurmctld" 2>&1 &
pids+=($!)
slurmd -D > "$dir/slurmd" 2>&1 &
pids+=($!)
for _ in $(seq 60); do
    sinfo -h -o %T 2> "$dir/err" | grep -q idle && break
    sleep 0.5
done
sinfo -h -o %T 2> "$dir/err" | grep -q idle || { tail -n 20 "$dir/munged" "$dir/slurmctld" "$dir/slurmd" >> "$dir/err"; false; }
ok "a Slurm of one node, idle"

for k in a b c; do
    run 0 "$O/ma-toy" -n 4 --seed "$(printf %d "'$k")" --clip 5x32x48 -o "$dir/$k.tar.zst"
done
variables=("MA=$MA" PRESET= ENCODER=random:32x2 "EXTRACT=--clip 5x32x48" RAFT=none
    "SHARDS=$dir/a.tar.zst $dir/b.tar.zst $dir/c.tar.zst" "TRAIN=--hidden 16 --width 8 --batch 2 --steps 3")
unset MAKEFLAGS MFLAGS MAKELEVEL
submit() { # N VARIABLE…: and waits for the end
    run 0 pipelines/slurm/stage1 "$1" --chdir="$dir" --output="$dir/job-%x-%A-%a.log" -- "${variables[@]}" "${@:2}" || return
    local last
    last=$(sed -n '$s/.*job //p' "$dir/out")
    for _ in $(seq 240); do
        [ -z "$(squeue -h 2> /dev/null)" ] && break
        sleep 0.5
    done
    scontrol -o show job "$last" > "$dir/jobs" 2> "$dir/err"
    ! grep -v 'JobState=COMPLETED' "$dir/jobs" > "$dir/err" || { tail -n +1 "$dir"/job-* >> "$dir/err"; false; }
}
submit 2 OUT="$dir/slurm" && grep -c . "$dir/out" | grep -qx 3
ok "three jobs, completed"
cat "$dir"/job-ma-flow-*.log > "$dir/err"
grep -q "SHARD=0/2" "$dir/err" && grep -q "SHARD=1/2" "$dir/err" && [ "$(grep -c "^  features/" "$dir/err")" = 3 ]
ok "the array has shared the shards out"
run 0 make -f pipelines/stage1.mk "${variables[@]}" OUT="$dir/hand" &&
    diff <(cd "$dir/slurm" && sha256sum features/* motion/* motion.safetensors) \
        <(cd "$dir/hand" && sha256sum features/* motion/* motion.safetensors) > "$dir/err"
ok "the same bytes as by hand"
rm "$dir/slurm/motion/b.tar.zst" "$dir"/job-*
submit 2 OUT="$dir/slurm" && [ "$(cat "$dir"/job-*.log | grep '^  ')" = "  motion/b" ]
ok "submitted again: what is missing"
rm -f "$dir"/job-*
submit 2 OUT="$dir/given" MOTION="$dir/hand/motion.safetensors" && grep -c . "$dir/out" | grep -qx 1 &&
    diff <(cd "$dir/given" && sha256sum motion/*) <(cd "$dir/hand" && sha256sum motion/*) > "$dir/err"
ok "with MOTION: one job"
submit 2 OUT="$dir/bad" "EXTRACT=--clip 5x31x48" > "$dir/out"
squeue -h > "$dir/out" 2> "$dir/err" && ! [ -s "$dir/out" ] && ! [ -e "$dir/bad/motion.safetensors" ]
ok "a job that fails takes those behind it away"
run 2 pipelines/slurm/stage1 && says "SBATCH-OPTION"
ok "without arguments it says what it wants"
finish
