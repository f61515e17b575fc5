#!/bin/bash
# demo: pipelines/demo in miniature, with drawn networks in place of the shipped ones, and the page that it writes: whole,
# well-formed, with nothing to fetch, its pictures and clips in it, its numbers those of the run.
set -u
. tests/cli/tap.sh
toy=pipelines/toy/base
for file in text_encoder/model.safetensors tokenizer/spiece.model; do
    [ -r $toy/$file ] || { echo "1..0 # SKIP no $toy/$file" && exit 0; }
done
export OMP_NUM_THREADS=1
ma=$(realpath "$O")

# ---- networks, drawn
clip=9x16x16@12
tiny_base && for k in max_text_seq_length=32 text_embed_dim=64 num_layers=4 in_channels=12 out_channels=12; do
    set_number transformer ${k%=*} ${k#*=} || break
done && set_number vae patch_size 2 && cp -r $toy/text_encoder $toy/tokenizer "$dir/tiny/" &&
    "$PYTHON" -c "import sys; sys.dont_write_bytecode = True; sys.path.insert(0, 'tests/cli'); from weights import raft; raft('$dir/raft.safetensors')" 2> "$dir/err" &&
    pipe 0 "$ma/ma-toy -n 2 --clip $clip | $ma/ma-extract -e pixel=2 -e t5=$toy,length=32 --clip $clip -o $dir/clips.tar.zst" &&
    run 0 "$ma/ma-align" -b "$dir/tiny" --from-scratch --loss none --steps 1 --batch 2 -o "$dir/base" "$dir/clips.tar.zst" &&
    cp -r "$dir/tiny/text_encoder" "$dir/tiny/tokenizer" "$dir/base/" &&
    run 0 "$ma/ma-align" -b "$dir/base" --train lora --loss none --steps 1 --batch 2 -o "$dir/aligned" "$dir/clips.tar.zst"
ok "a base, a LoRA, a RAFT"

export OUT=$dir/demo CLIP=$clip LEARN=8 TESTS=4 ALIGN=4 MOTION_STEPS=90 ALIGN_STEPS=3 SAMPLE_STEPS=2 RESULTS=$dir/results
export VIDEOMAE=random:32x2,patch=8 RAFT=$dir/raft.safetensors BASE=$dir/base ALIGNED=$dir/aligned
page=$OUT/index.html

# ---- the run
run 1 env ALIGNED="$dir/none" pipelines/demo && says "$dir/none/pytorch_lora_weights.safetensors is not there" &&
    [ "$(wc -l < "$dir/err")" = 1 ] && ! [ -e "$OUT" ]
ok "a network that is not there: one line, nothing is begun"
run 0 pipelines/demo && grep -q "^stage .* loss, first to last" "$dir/out" &&
    grep -qE "^motion subspace +[0-9.]+ +[0-9.]+   [0-9.e-]+ → [0-9.e-]+$" "$dir/out" &&
    grep -qE "^base, aligned +.*, alignment [0-9.e-]+ → [0-9.e-]+$" "$dir/out" && [ -s "$page" ]
ok "all stages, and their table"

# ---- the page
well_formed() {
    if command -v xmllint > /dev/null; then
        xmllint --noout "$page" 2> "$dir/err"
    else
        "$PYTHON" -c "import sys, xml.dom.minidom as x; x.parse(sys.argv[1])" "$page" 2> "$dir/err"
    fi
}
well_formed && [ "$(wc -c < "$page")" -lt 5000000 ]
ok "well-formed, below 5 MB"
for id in world flow stage1 stage2 compare results ran; do
    grep -q "<h2 id=\"$id\">" "$page" && grep -q "<a href=\"#$id\">" "$page" || { echo "no $id" > "$dir/err" && false; } || break
done
ok "all sections"
! grep -nE '[a-z]+://|<script|<link|@import' "$page" > "$dir/err" &&
    ! grep -oE '(src|href|srcset|poster)="[^"]*"|url\([^)]*\)' "$page" | grep -vE '^(src="|url\()data:|^href="#' > "$dir/err"
ok "nothing to fetch"

# decoded: all data: URIs of the page, as files; each is what it says
decoded() {
    local n=0 uri type
    while IFS= read -r uri; do
        n=$((n + 1)) type=${uri%%;*}
        base64 -d <<< "${uri#*,}" > "$dir/uri" 2> "$dir/err" || return
        case $type in
            data:image/png) [ "$(head -c 8 "$dir/uri" | od -An -tx1)" = " 89 50 4e 47 0d 0a 1a 0a" ] ;;
            data:video/mp4) [ "$(head -c 8 "$dir/uri" | tail -c 4)" = ftyp ] && grep -aq avc1 "$dir/uri" ;;
            *) false ;;
        esac || { echo "$n: not $type" > "$dir/err" && return 1; }
    done < <(grep -oE 'data:[a-z]+/[a-z0-9]+;base64,[^")]*' "$page")
    [ $n = "$1" ] || { echo "$n, not $1" > "$dir/err" && false; }
}
decoded $((8 + 4 + 8 + 4 + 1 + 1)) && [ "$(grep -c '<video autoplay="" loop="" muted=""' "$page")" = 20 ]
ok "20 clips in H.264 and 6 pictures, all whole"
! grep -E '<(img|video)' "$page" | grep -vqE '(alt|aria-label)="[^"]{8,}"' && ! grep 'role="img"' "$page" | grep -vq 'aria-label="[^"]'
ok "each has words in its place"
number() { grep -qF ">$1<" "$page" || { echo "no $1" > "$dir/err" && false; }; }
number "$(awk '$1 == "mean" { print $3 }' "$OUT/raft.txt")" && number "$(awk '$1 == "epe" { print $2 }' "$OUT/motion.txt")" &&
    number "$(awk -F , 'NR == 2 { printf "%.3f", $(NF - 1) }' "$OUT/after.csv")" &&
    [ "$(grep -c '<svg class="chart"' "$page")" = 2 ] && ! grep -nE '<polyline[^>]*points="[^"]*(nan|inf)' "$page" > "$dir/err" &&
    grep -qF "a red ball falls and bounces in front of a plain wall" "$page" &&
    grep -qF "ma-subspace train --steps 90" "$page"
ok "numbers of the run, curves, captions, commands"

# ---- what was measured at length
grep -q "No <code>$RESULTS/RESULTS.md</code> is here" "$page" && grep -q "No <code>$RESULTS/claim.md</code>" "$page"
ok "says where there is no table and no claim"
mkdir "$RESULTS" && cp "$OUT/motion.png" "$RESULTS/claim.png" && cat > "$RESULTS/RESULTS.md" << 'M' && cat > "$RESULTS/claim.md" << 'M'
# Results
**Yes**, it says.

## More
Not this.
<!-- table begins -->
Made on a day.

| | seeds | joint, % | sa_number |
|---|---|---|---|
| MoAlign | 3 | 41.0 ± 2.0 | 0.7531 |

Times:
<!-- table ends -->
M
# The claim

A **bold** one, `a < b`:

| | tokens |
|---|---|
| flow & error | 0.31 |

![both](claim.png)
M
pipelines/demo-page "$OUT" 60 > "$page.2" 2> "$dir/err" && mv "$page.2" "$page" && well_formed && number "41.0 ± 2.0" &&
    grep -q "Made on a day" "$page" && grep -q "<b>Yes</b>, it says." "$page" && ! grep -qE "0\.7531|Not this|Times:" "$page" && number 0.31 && number "flow &amp; error" &&
    grep -q "A <b>bold</b> one, <code>a &lt; b</code>:" "$page" && decoded 27
ok "shows them where they are"
finish
