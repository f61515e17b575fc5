# moalign.sh: what the recipes of moalign.mk do beyond stage1.sh. A file `done` says that a folder is whole.
set -euo pipefail
. "${BASH_SOURCE[0]%/*}/stage1.sh" :

# logged NAME COMMAND…: in turn, with its log; the status is the command's.
logged() {
    local log=$OUT/log/$1 rc=0
    shift
    mkdir -p "${log%/*}"
    exec 9>> "$log.lock"
    flock 9 # the tools inherit it: it says that they run
    printf '  %s\n' "${log##*/}"
    printf '$ %s\n' "$*" > "$log"
    # shellcheck disable=SC2086
    "$@" ${FLAGS:-} --progress always 2>> "$log" || rc=$?
    return $rc
}

# align DONE COMMAND…: over the latents of all shards; goes on from a checkpoint of the same run. Bad samples (status 1,
# and a result) are no failure.
align() {
    local to=${1%/*} same more=()
    local result=("$to/transformer" "$to/pytorch_lora_weights.safetensors")
    shift
    mkdir -p "$to"
    sed "s|.*|$OUT/latents/&.tar.zst|" "$OUT/names" > "$to/inputs"
    same=$({ printf '%s\n' "$@"; xargs -d '\n' stat -c '%n %s %.Y' < "$to/inputs"; cat "$OUT/options/align"; } | sha256sum)
    if compgen -G "$to/step-*[0-9]" > /dev/null && [ "$(cat "$to/same")" = "$same" ]; then
        more=(--resume)
    else
        rm -rf "$to"/step-*
    fi
    echo "$same" > "$to/same"
    rm -rf "$to/done" "${result[@]}"
    logged align "$@" -o "$to" --files-from "$to/inputs" "${more[@]}" || [ -e "${result[0]}" ] || [ -e "${result[1]}" ] || failed align
    touch "$to/done"
}

# sample DONE PROMPTS COMMAND…: a clip a line, by the tuned transformer, or the base with the adapters. What is there of
# the same weights, prompts and options stays.
sample() {
    local to=${1%/*} prompts=$2 tuned=$OUT/tuned
    shift 2
    [ ! -d "$tuned/transformer" ] || tuned+=/transformer
    mkdir -p "$to"
    rm -f "$to/done"
    logged sample "$@" -t "$tuned" -o "$to" < "$prompts" || failed sample
    touch "$to/done"
}

"$@"
