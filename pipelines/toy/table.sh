# table.sh: what the recipes of table.mk do beyond stage1.sh. OUT, DEVICES, JOBS, THREADS, RANKS and BASE_BATCH come from there. A file
# `done` says that a folder is whole; OUT/times has a line for whatever ended well: stage, name, seconds, device.
set -euo pipefail
. "${BASH_SOURCE[0]%/*}/../stage1.sh" :
FLAGS="-d cpu -j $THREADS" device=cpu
read -ra devices <<< "$DEVICES"

# timed STAGE/NAME COMMAND…
timed() {
    local what=$1 start=$EPOCHREALTIME
    shift
    "$@" || return
    awk -v what="$what" -v device="$device" -v a="$start" -v b="$EPOCHREALTIME" \
        'BEGIN { sub("/", "\t", what) || what = what "\t-"; printf "%s\t%.1f\t%s\n", what, b - a, device }' >> "$OUT/times"
}

# one OUTPUT COMMAND…: stage1.sh's run, timed.
one() {
    local name=${1#"$OUT/"}
    name=${name%.csv}
    timed "${name%.tar.zst}" run "$@"
}

# slot COMMAND…: on the first device that is free; each has JOBS places.
slot() {
    local k
    mkdir -p "$OUT/slots"
    while :; do
        for ((k = 0; k < JOBS * ${#devices[@]}; k++)); do
            exec 7> "$OUT/slots/$k" # what the command starts inherits it: the place is taken until all of it has ended
            if flock -n 7; then
                device=${devices[k % ${#devices[@]}]} FLAGS="-d $device -j $THREADS"
                "$@"
                return
            fi
        done
        sleep 0.2
    done
}

# teacher DONE VARIABLE=VALUE…: stage1.mk with them.
teacher() {
    local to=${1%/*} log=$OUT/log/teacher
    shift
    rm -f "$to/done"
    mkdir -p "$OUT/log"
    printf '  teacher\n'
    timed teacher env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL "${MAKE:-make}" -f "${BASH_SOURCE[0]%/*}/../stage1.mk" -j4 \
        OUT="$to" RAFT=none PRESET= FLAGS="$FLAGS" "$@" > "$log" || failed teacher
    touch "$to/done"
}

# train DONE 'FILE …' COMMAND…: ma-align over the shards among the files; goes on from a checkpoint if all that it needs,
# these files, and the command are the same.
train() {
    local to=${1%/*} name=${1%/*} needs=() same more=()
    name=${name#"$OUT/"}
    read -ra needs <<< "$2"
    shift 2
    same=$({ printf '%s\n' "$@" && stat -c '%n %s %.Y' "${needs[@]}"; } | sha256sum)
    if compgen -G "$to/step-*[0-9]" > /dev/null && [ "$(cat "$to/same")" = "$same" ]; then
        more=(--resume)
    else
        rm -rf "$to"
        mkdir -p "$to"
        echo "$same" > "$to/same"
    fi
    printf '%s\n' "${needs[@]}" | grep '\.tar\.zst$' > "$to/inputs"
    mkdir -p "$(dirname "$OUT/log/$name")"
    printf '  %s\n' "$name"
    printf '$ %s\n' "$*" > "$OUT/log/$name"
    timed "$name" ranked "$@" -o "$to" --files-from "$to/inputs" "${more[@]}" --progress always 2>> "$OUT/log/$name" || failed "$name"
    rm -rf "$to"/step-* "$to/same" "$to/inputs"
    touch "$to/done"
}

# ranked COMMAND…: as it is, or for the base as so many ranks, each with a GPU of its own and its part of BASE_BATCH.
ranked() {
    local k pids=() rc=0
    if [ "${ranks:-1}" = 1 ]; then
        # shellcheck disable=SC2086
        "$@" $FLAGS
        return
    fi
    for ((k = 0; k < ranks; k++)); do
        MA_RANK=$k MA_RANKS=$ranks MA_LOCAL_RANK=$k "$@" --batch $((BASE_BATCH / ranks)) \
            -d "${devices[k % ${#devices[@]}]}" -j "$THREADS" &
        pids+=($!)
    done
    for k in "${pids[@]}"; do wait "$k" || rc=$?; done
    return $rc
}

# base DONE 'FILE …' ENCODER COMMAND…: the base, with the text encoder that it is to read with beside it.
base() {
    local done=$1 needs=$2 encoder=$3 part
    shift 3
    if [ "$RANKS" -gt 1 ]; then
        ranks=$RANKS device="$RANKS ranks"
        train "$done" "$needs" "$@"
    else
        slot train "$done" "$needs" "$@"
    fi
    [ -z "$encoder" ] || for part in text_encoder tokenizer; do
        cp -r "$encoder/$part" "${done%/*}/"
    done
}

"$@"
