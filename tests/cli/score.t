#!/bin/bash
# score: ma-score as a command: columns, members, inputs, bad samples, figures by flow, tables.
set -u
. tests/cli/tap.sh

small="--clip 17x48x48@12 --balls 2 -z 0"
columns=key,caption,sa,pc,joint,sa_number,sa_colour,sa_motion,pc_number,pc_colour,pc_size,pc_jump,pc_contact,pc_law,pc_energy,camera,flickering,smoothness,dynamic
score=$O/ma-score
field() { # FILE COLUMN: values of a column, counted from the line's end, where no caption is in the way
    awk -F, -v n="$2" 'NR > 1 { print $(NF - n) }' "$1"
}

run 0 "$O/ma-toy" -n 40 --seed 3 $small -o "$dir/toy.tar" && run 0 "$score" -o "$dir/base-0.csv" "$dir/toy.tar" &&
    [ "$(head -n 1 "$dir/base-0.csv")" = $columns ] && [ "$(wc -l < "$dir/base-0.csv")" = 41 ] && says "40 clips: SA"
ok "a shard: a line a clip"
[ "$(awk -F, 'NR > 1 { n += $(NF - 14) } END { print n }' "$dir/base-0.csv")" -ge 38 ]
ok "true clips: 38 of 40 pass"
run 0 "$score" -q "$dir/toy.tar" && silent && cmp -s "$dir/out" "$dir/base-0.csv"
ok "standard output: the same; -q is silent"
run 0 bash -c "$score -j 1 -q < $dir/toy.tar" && cmp -s "$dir/out" "$dir/base-0.csv"
ok "standard input, one thread: the same"
awk -F, 'NR > 1 && !($(NF - 1) > 0.9 && $(NF - 1) <= 1 && $(NF - 2) > 0.9 && $NF ~ /^[01]$/) { exit 1 }' "$dir/base-0.csv"
ok "flickering, smoothness and dynamic degree, by the true flow"
run 0 "$score" --measured -q "$dir/toy.tar" && [ "$(head -n 1 "$dir/out")" = $columns ] && ! cmp -s "$dir/out" "$dir/base-0.csv" &&
    [ "$(cut -d, -f1 "$dir/out")" = "$(cut -d, -f1 "$dir/base-0.csv")" ]
ok "--measured: the same columns, other numbers"
run 0 "$score" --static -q "$dir/toy.tar" && awk -F, 'NR > 1 { n += $(NF - 16) } END { exit !(n == 0) }' "$dir/out"
ok "--static: what is held does not move as its caption says"
run 0 "$score" --dry-run && grep -qE '^pc_law +[0-9.]+ +[0-9.]+$' "$dir/out" && [ "$(grep -c '^[sp][ac]_' "$dir/out")" = 10 ]
ok "--dry-run: what scores 1 and 0"
awk '/^pc_/' "$dir/out" | while read -r part good bad; do
    sed -n "/^\.It Li $part\$/,/^\.It/p" man/ma-score.1 | tr '\n' ' ' | grep -qE ": $good( degrees)?; $bad\\." || echo "$part: $good; $bad"
done > "$dir/err"
silent
ok "the page says the same"

# ---- files, lists, other members
mkdir "$dir/clips" && tar -C "$dir/clips" -xf "$dir/toy.tar" && rm "$dir"/clips/*.npy "$dir"/clips/*.json
run 0 "$score" -q "$dir/clips" && [ "$(cut -d, -f1 "$dir/out")" = "$(cut -d, -f1 "$dir/base-0.csv")" ] &&
    [ "$(field "$dir/out" 16)" = "$(field "$dir/base-0.csv" 16)" ] && [ -z "$(field "$dir/out" 0 | tr -d '\n')" ]
ok "a folder: the same scores, no flow"
(cd "$dir/clips" && for f in *.mp4; do mv "$f" "${f%.mp4}.sample.mp4"; done && tar -cf ../sample.tar --sort=name -- *)
run 0 "$score" -q "$dir/sample.tar" && [ "$(field "$dir/out" 16)" = "$(field "$dir/base-0.csv" 16)" ]
ok "KEY.sample.mp4 is taken"
run 0 "$O/ma-toy" -n 2 --seed 3 $small --clip 9x32x32@12 -o "$dir/two.tar" && mkdir "$dir/two" && tar -C "$dir/two" -xf "$dir/two.tar" && rm "$dir"/two/*.npy &&
    (cd "$dir/two" && for f in *.mp4; do mv "$f" "${f%.mp4}.sample.mp4"; done && tar -cf ../two.tar --sort=name -- *) &&
    run 0 "$O/ma-flow" -q -d cpu --clip 9x32x32 --out-size native -o "$dir/flow.tar" "$dir/two.tar" && run 0 "$score" -q "$dir/flow.tar" &&
    awk -F, 'NR > 1 && !($(NF - 1) > 0.9 && $(NF - 1) <= 1 && $NF ~ /^[01]$/) { exit 1 }' "$dir/out" && [ "$(wc -l < "$dir/out")" = 3 ]
ok "ma-flow takes it, too, and then it has smoothness and a dynamic degree"
run 1 "$score" -q --member mp4 "$dir/sample.tar" && says "clip-000000.mp4: not in the sample" && says "40 missing"
ok "--member: one that is not there is a bad sample"
if "$PYTHON" -c 'import numpy' 2> "$dir/err"; then
    (cd "$dir" && "$PYTHON" -c "
import io, tarfile, numpy as np
def add(t, name, data):
    i = tarfile.TarInfo(name)
    i.size = len(data)
    t.addfile(i, io.BytesIO(data))
def npy(a):
    b = io.BytesIO()
    np.save(b, a)
    return b.getvalue()
y, x = np.mgrid[:48, :48] + 0.5
clip = np.empty((17, 48, 48, 3))
for t in range(17):
    cy = 6 + 30 * (t / 12) ** 2 if t < 12 else 42
    clip[t] = np.array([120, 115, 110]) + 20 * np.sin(x * 0.8 + y * 0.3)[..., None]
    clip[t][(x - 24) ** 2 + (y - cy) ** 2 < 30] = 225, 30, 36
clip = clip.astype(np.uint8)
with tarfile.open('npy.tar', 'w') as t:
    for k, a in (('a', clip), ('b', clip[:, :, :, :2]), ('c', clip[:2]), ('d', clip[:, :8]), ('e', clip.astype(np.float32))):
        add(t, k + '.npy', npy(a))
        add(t, k + '.txt', b'a red ball falls\n')
    add(t, 'f.npy', npy(clip))
    add(t, 'g.npy', npy(clip)[:-1]); add(t, 'g.txt', b'a red ball falls')
    add(t, 'h.npy', npy(clip)); add(t, 'h.txt', b'a cat, \"falls\"')
    add(t, 'i.npy', npy(clip)); add(t, 'i.txt', b'a red ball, \"falls\"\nindeed')
with tarfile.open('bad.tar', 'w') as t:
    add(t, 'a.mp4', b'no video'); add(t, 'a.txt', b'a red ball falls')
    add(t, 'b.txt', b'a red ball falls')
") 2> "$dir/err"
    ok "clips made by hand"
    run 1 "$score" --member npy "$dir/npy.tar" && [ "$(cut -d, -f1 "$dir/out" | tr '\n' ' ')" = "key a i " ]
    ok "of .npy the good ones are scored, the rest is left out, exit 1"
    says "b.npy: u8 17x48x48x2, not u8 (T,H,W,3)" && says "c.npy: 2 frames, at least 4" && says "d.npy: 8x48 pixels, at least 16x16" &&
        says "e.npy: f32" && says "f: no caption" && says "g.npy" && says "h: the caption names no colour" &&
        says "2 good, 7 bad"
    ok "each is named with its reason"
    grep -q '^i,"a red ball, ""falls"" indeed",1' "$dir/out"
    ok "a caption with a comma, quotes and a line break is one field in one line"
    run 1 "$score" "$dir/bad.tar" && says "a.mp4" && says "b: no video" && says "0 good, 2 bad"
    ok "no videos"
    run 1 "$score" --strict --member npy -o "$dir/strict.csv" "$dir/npy.tar" && says "first bad one" && ! [ -e "$dir/strict.csv" ]
    ok "--strict stops, and writes nothing"
else
    skip "needs NumPy"
fi

# ---- tables
sed 's/,\(1\|0\)\.[0-9]*,\([01]\.[0-9]*\),1,/,0.1000,\2,0,/' "$dir/base-0.csv" > "$dir/base-1.csv"
mkdir "$dir/tuned" && cp "$dir/base-0.csv" "$dir/tuned/1.csv" && cp "$dir/base-0.csv" "$dir/tuned/2.csv"
run 0 "$score" summary "$dir"/base-0.csv "$dir"/base-1.csv "$dir"/tuned/*.csv && [ "$(wc -l < "$dir/out")" = 3 ] &&
    grep -qE '^base +2 +80 +(50\.0 ± 70\.7|4[0-9]\.[0-9] ± [67][0-9]\.[0-9]) ' "$dir/out" && grep -qE '^tuned +2 +80 +[0-9.]+ ± 0\.0 ' "$dir/out"
ok "summary: seeds are one row, with mean and deviation"
passed() { # P: the SA, PC and Joint of a summary with --pass P
    "$score" summary --pass "$1" "$dir/all.csv" | awk 'END { print $4, $5, $6 }'
}
printf '%s\n' "$columns" a,b,1,0.4,0,1,1,1,1,1,1,1,1,0.4,1,1,1,, c,d,0.6,1,1,1,1,0.6,1,1,1,1,1,1,1,1,1,, > "$dir/all.csv"
[ "$(passed 0.3)" = "100.0 100.0 100.0" ] && [ "$(passed 0.5)" = "100.0 50.0 50.0" ] && [ "$(passed 0.7)" = "50.0 50.0 0.0" ]
ok "summary --pass: less and more is asked for"
run 0 "$score" summary --parts --format markdown -o "$dir/table.md" "$dir/tuned/1.csv" && [ "$(wc -l < "$dir/table.md")" = 3 ] &&
    sed -n 2p "$dir/table.md" | grep -qE '^(\|-+:?)+\|$' && [ "$(awk -F'|' '{ print NF }' "$dir/table.md" | sort -u)" = 22 ]
ok "--format markdown --parts, of one file"
printf 'a,b\n1,2\n' > "$dir/other.csv"
: > "$dir/none.csv"
head -n 1 "$dir/base-0.csv" > "$dir/head.csv"
sed '3s/,[01]$/,x/' "$dir/base-0.csv" > "$dir/word.csv"
for bad in "other.csv: no column SA" "none.csv: empty" "head.csv: no clips" 'word.csv:3: dynamic: "x" is no number' "gone.csv"; do
    run 1 "$score" summary "$dir/base-0.csv" "$dir/${bad%%:*}" && says "$bad" && [ "$(wc -l < "$dir/err")" = 1 ] && ! [ -s "$dir/out" ]
    ok "summary: exit 1, one line: $bad"
done
run 2 "$score" summary && says "give the CSV files"
ok "summary of nothing is a usage error"

# ---- manners
run 1 bash -c "$score $dir/none.tar.zst > $dir/empty.out" && says "none.tar.zst: No such file"
ok "an input that is not there is named, exit 1"
run 2 "$score" --sead 1 && says "did you mean --seed?"
ok "an unknown option is exit 2"
if [ -w /dev/full ]; then
    run 1 bash -c "$score -q $dir/toy.tar > /dev/full" && says "No space left on device" && [ "$(wc -l < "$dir/err")" = 1 ]
    ok "/dev/full: one line, exit 1"
    run 1 bash -c "$score summary $dir/base-0.csv > /dev/full" && says "No space left on device"
    ok "/dev/full: summary"
fi
run 1 "$score" -o "$dir/nowhere/x.csv" "$dir/toy.tar" && says "nowhere/x.csv" && ! [ -e "$dir/nowhere" ]
ok "an output that cannot be made is named"
run 0 "$score" --print-list "$dir/clips" && [ "$(wc -l < "$dir/out")" = 40 ]
ok "--print-list"
finish
