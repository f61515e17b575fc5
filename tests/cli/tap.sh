# tap: the Test Anything Protocol for the shell tests of this folder, which source it and run from the project's root.
# O: where the tools are. SHARED: assets. PYTHON: an interpreter. QUICK=1: less of what is slow. $dir: a folder of the
# test's own, removed at its end.
O=${O:-build} SHARED=${SHARED:-../shared} PYTHON=${PYTHON:-python3} QUICK=${QUICK:-}
export LC_ALL=C MA_DEVICE=cpu
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # a test's tools share the cores with each other
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
tap_n=0 tap_bad=0

ok() { # NAME: the status of the last command
    local rc=$?
    tap_n=$((tap_n + 1))
    if [ $rc = 0 ]; then
        echo "ok $tap_n - $1"
    else
        tap_bad=$((tap_bad + 1))
        echo "not ok $tap_n - $1"
        sed 's/^/# /' "$dir/err" 2> /dev/null
    fi
}

skip() { # WHY
    tap_n=$((tap_n + 1))
    echo "ok $tap_n # SKIP $1"
}

run() { # STATUS COMMAND…: whether it ends so; its output is in $dir/out, its messages in $dir/err
    local want=$1 rc
    shift
    "$@" > "$dir/out" 2> "$dir/err"
    rc=$?
    [ $rc = "$want" ] || { echo "exit $rc, not $want: $*" >> "$dir/err"; false; }
}

pipe() { # STATUS SCRIPT: the same for a pipeline, whose status is its last failing command's
    run "$1" bash -c "set -o pipefail; $2"
}

says() { # TEXT: whether the messages hold it
    grep -qF -- "$1" "$dir/err" || { echo "does not say: $1" >> "$dir/err"; false; }
}

silent() {
    ! [ -s "$dir/err" ]
}

finish() { # the plan, and the exit status
    echo "1..$tap_n"
    exit $((tap_bad > 0))
}

members() { # SHARD: names of its members, one a line
    zstd -dcqf "$1" | tar -tf -
}

in_all() { # FILE: MB that a plan, or -v, says are taken in all
    sed -nE 's/.*memory: .*in all ([0-9.]+).*/\1/p' "$1"
}

as_planned() { # MB MB: within 5 %
    awk -v a="$1" -v b="$2" 'BEGIN { print "# " a " MB planned, " b " MB taken"; exit !(a > 0 && b > 0 && a < 1.05 * b && b < 1.05 * a) }'
}

# A base model small enough for a step in milliseconds: $dir/tiny, tests/base with other sizes, for pixel=4.
tiny_base() {
    set_number() { sed -i -E "s/(\"$2\": *)[0-9]+/\1$3/" "$dir/tiny/$1/config.json" && grep -q "\"$2\": *$3\b" "$dir/tiny/$1/config.json"; }
    local t=transformer
    cp -r tests/base "$dir/tiny" && set_number $t num_attention_heads 2 && set_number $t attention_head_dim 16 &&
        set_number $t num_layers 2 && set_number $t time_embed_dim 32 && set_number $t text_embed_dim 24 &&
        set_number $t in_channels 48 && set_number $t out_channels 48 && set_number $t patch_size 2 && set_number vae patch_size 4
}
