# stage1.sh: what the recipes of stage1.mk do. OUT, FLAGS and more stages of shards (STAGES) come from there. Several
# machines may share OUT: whatever more than one of them writes is written under a lock, and only if it has changed.
set -euo pipefail

say() { printf 'stage1: %s\n' "$*" >&2; }
failed() { # NAME
    tail -n 5 "$OUT/log/$1" >&2
    say "$1 failed, see $OUT/log/$1"
    return 1
}
locked() { # COMMAND…: alone in OUT
    mkdir -p "$OUT"
    exec 8> "$OUT/.lock"
    flock 8
    "$@"
    exec 8>&-
}
put() { # FILE: standard input, unless that is what it holds
    mkdir -p "$(dirname "$1")"
    local new="$1.new.$HOSTNAME.$$"
    cat > "$new"
    if cmp -s "$new" "$1"; then rm "$new"; else mv "$new" "$1"; fi
}

# list TOOL SIZE: VIDEOS or LIST in lists of SIZE videos, OUT/list/now/NAME.jsonl. Prints the names; a * behind one says
# that OUT/list/NAME.jsonl has something else.
list() {
    local name args=()
    scratch=$(mktemp -d) # not local: the trap comes later
    trap 'rm -rf "$scratch"' EXIT
    if [ -n "${LIST:-}" ]; then
        args=(--list "$LIST")
        [ -z "${CAPTIONS:-}" ] || args+=(--captions "$CAPTIONS")
    else
        args=("$VIDEOS/")
    fi
    "$1" --print-list "${args[@]}" > "$scratch/all"
    (mkdir "$scratch/now" && cd "$scratch/now" && split -l "$2" -d -a 5 --additional-suffix=.jsonl ../all "")
    locked spread "$scratch/now"
    for name in "$scratch"/now/*.jsonl; do
        name=${name##*/}
        cmp -s "$OUT/list/now/$name" "$OUT/list/$name" && echo "${name%.jsonl}" || echo "${name%.jsonl}*"
    done
}
spread() { # FOLDER
    local f
    for f in "$1"/*.jsonl; do put "$OUT/list/now/${f##*/}" < "$f"; done
}

# names 'NAME …': no shard in OUT may be another's; OUT/names holds them for the status.
names() {
    local f name stale=()
    for f in "$OUT"/{features,flow,motion}/*.tar.zst; do
        name=${f##*/} name=${name%.tar.zst}
        [ ! -e "$f" ] || [[ " $1 " = *" $name "* ]] || stale+=("$f")
    done
    if [ ${#stale[@]} -gt 0 ]; then
        say "these are of other inputs, or of another SHARD_SIZE: remove them, or choose another OUT: ${stale[*]}"
        return 1
    fi
    tr ' ' '\n' <<< "$1" | locked put "$OUT/names"
}

take() { locked put "$2" < "$1"; }
stamp() { printf '%s\n' "$TEXT" | locked put "$1"; }

# section FILE TOOL: the lines of a preset that stand for a tool, in one.
section() {
    sed 's/#.*//' "$1" | awk -v tool="$2" '/^ *\[/ { gsub(/[][]/, " "); on = index(" " $0 " ", " " tool " "); next } on' | tr -s ' \n' ' '
}

# run OUTPUT COMMAND…: the output, whole or not at all, and its log. Bad samples (exit 1, and an output) are no failure.
run() {
    local out=$1 stage name part log rc=0
    shift
    stage=${out%/*} stage=${stage##*/} name=${out##*/} name=${name%.tar.zst}
    [ "$out" != "$OUT/motion.safetensors" ] || stage=train name=motion
    part=${out%/*}/.${out##*/} log=$OUT/log/$stage/$name
    mkdir -p "${out%/*}" "${log%/*}"
    exec 9>> "$log.lock"
    flock 9 # the tools inherit it: it says that they run
    rm -f "$part" "${out%/*}/..${out##*/}".tmp.* # of a run that was killed
    printf '  %s\n' "$stage/$name"
    printf '$ %s\n' "$*" > "$log"
    # shellcheck disable=SC2086
    "$@" ${FLAGS:-} --progress always -o "$part" 2>> "$log" || rc=$?
    if [ -e "$part" ] && [ $rc -le 1 ]; then
        mv "$part" "$out"
        [ $rc = 0 ] || say "$stage/$name: $(sed -n 's/^ma-[a-z]*: \([0-9]* good, [0-9]* bad\)/\1/p' "$log"), see $log"
        return 0
    fi
    failed "$stage/$name" || return $((rc ? rc : 1))
}

# train OUTPUT STAGE COMMAND…: the same over all shards of a stage; goes on from a checkpoint of the same run.
train() {
    local out=$1 stage=$2 part=${1%/*}/.${1##*/} same
    shift 2
    sed "s|.*|$OUT/$stage/&.tar.zst|" "$OUT/names" > "$part.inputs"
    same=$({ printf '%s\n' "$@"; xargs -d '\n' stat -c '%n %s %.Y' < "$part.inputs"; cat "$OUT/options/train"; } | sha256sum)
    local more=()
    if compgen -G "$part.state/step-*[0-9]" > /dev/null && [ "$(cat "$part.same")" = "$same" ]; then
        more=(--resume)
    else
        rm -rf "$part.state"
    fi
    echo "$same" > "$part.same"
    run "$out" "$@" "${more[@]}" --files-from "$part.inputs"
    mv "$part.jsonl" "$out.jsonl"
    rm -rf "$part.state" "$part.same" "$part.inputs"
}

# row STAGE NAME FILE: the state of one output, and what its log tells.
row() {
    local log=$OUT/log/$1/$2 state=missing
    [ ! -e "$3" ] || state=done
    { [ ! -e "$log.lock" ] || flock -n "$log.lock" true; } || state=running
    [ -e "$log" ] && [ $state != missing ] || log=/dev/null
    awk -v stage="$1" -v name="$2" -v state=$state '
        match($0, /^ma-[a-z]*: [0-9]+(\/[0-9]+)? (samples|steps)/) { done = $2 + 0; unit = $3 ~ /steps/ ? "  (steps)" : "" }
        /^ma-[a-z]*: [0-9]+ good, [0-9]+ bad/ { bad = $4 }
        END { printf "%-24s %-9s %-8s %9s %7s%s\n", name, stage, state, done == "" ? "-" : done, done == "" ? "-" : bad + 0, unit }' "$log"
}

rows() {
    local name stage
    while read -r name; do
        for stage in features flow motion ${STAGES:-}; do row $stage "$name" "$OUT/$stage/$name.tar.zst"; done
    done < "$OUT/names"
    row train motion "$OUT/motion.safetensors"
}

status() {
    [ -e "${OUT:?OUT= is not given}/names" ] || { say "$OUT: nothing has been made here"; return 1; }
    printf '%-24s %-9s %-8s %9s %7s\n' shard stage state samples bad
    rows | awk -v stages="features flow motion ${STAGES:-}" '{ print }
        $2 != "train" { all[$2]++; state[$2, $3]++; samples[$2] += $4; bad[$2] += $5 }
        END {
            n = split(stages, stage)
            for (i = 1; i <= n; i++) {
                k = stage[i]
                printf "%s: %d of %d done, %d running, %d samples, %d bad\n", k, state[k, "done"], all[k], state[k, "running"], samples[k], bad[k]
            }
        }'
}

"$@"
