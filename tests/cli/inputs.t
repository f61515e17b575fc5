#!/bin/bash
# inputs: lists in every form that users have, folders, tars, parts of them; broken lists; captions that lack a video.
set -u
. tests/cli/tap.sh

extract="$O/ma-extract -e pixel=4 --clip 5x32x48"
run 0 "$O/ma-toy" -n 3 --clip 5x32x48 -z 0 -o "$dir/toy.tar"
mkdir -p "$dir/data/in/v1.0" && cd "$dir/data" && tar -xf ../toy.tar && mv clip-000000.mp4 in/a.mp4 &&
    mv clip-000001.mp4 in/v1.0/b.x.mp4 && mv clip-000002.mp4 "in/c, d.mp4" && rm clip-* && cd "$OLDPWD"
ok "three videos"

print() { # ARGUMENT…: --print-list, without what depends on the machine
    run 0 "$O/ma-extract" --print-list "$@" &&
        sed -E "s|$(realpath "$dir")/data/in/||; s/,\"bytes\":[0-9]+,\"modified\":[0-9.]+\}/}/" "$dir/out" > "$dir/list"
}
same_list() { # standard input: what print must have printed
    diff "$dir/list" - > "$dir/err"
}

# ---- CSV
printf '\xef\xbb\xbfname,VideoPath,caption\r\nx,in/a.mp4,"a ""red"" ball, which\r\nfalls"\r\n\r\ny,in/v1.0/b.x.mp4,plain\r\nz,"in/c, d.mp4",\r\n' > "$dir/data/list.csv"
print --list "$dir/data/list.csv" && says "1 videos without a caption, 0 captions without a video" && same_list <<'L'
{"key":"a","video_path":"a.mp4","caption":"a \"red\" ball, which\r\nfalls"}
{"key":"v1_0/b_x","video_path":"v1.0/b.x.mp4","caption":"plain"}
{"key":"c, d","video_path":"c, d.mp4","caption":""}
L
ok "CSV: byte order mark, CRLF, quotes, commas and line breaks in captions; keys below the common folder"
print --list "$dir/data/list.csv" -v > /dev/null && cp "$dir/out" "$dir/printed.jsonl" && print --list "$dir/printed.jsonl" &&
    cmp "$dir/out" "$dir/printed.jsonl" 2> "$dir/err"
ok "what --print-list has printed reads as the same"
run 0 $extract --list "$dir/data/list.csv" -o "$dir/csv.tar.zst" &&
    [ "$(members "$dir/csv.tar.zst" | tr '\n' ' ')" = "a.mp4 a.txt a.latent.npy a.json v1_0/b_x.mp4 v1_0/b_x.txt v1_0/b_x.latent.npy v1_0/b_x.json c, d.mp4 c, d.latent.npy c, d.json " ] &&
    [ "$(zstd -dcq "$dir/csv.tar.zst" | tar -xOf - a.txt)" = $'a "red" ball, which\r\nfalls' ]
ok "ma-extract --list: samples, captions"
run 0 $extract --list "$dir/data/list.csv" -v -o "$dir/csv.tar.zst" && says "c, d: a video without a caption"
ok "-v names the video without a caption"

printf 'id\ttext\tpath\n7.1\tseven\tin/a.mp4\n8\t\tin/v1.0/b.x.mp4\n\tlost\t\n' > "$dir/data/list.tsv"
print --list "$dir/data/list.tsv" && says "1 videos without a caption, 1 captions without a video" && same_list <<'L'
{"key":"7_1","video_path":"a.mp4","caption":"seven"}
{"key":"8","video_path":"v1.0/b.x.mp4","caption":""}
L
ok "tabs; keys of a column; a caption without a video is counted"

# ---- JSON lines, lines
printf '{"video_path": "in/a.mp4", "caption": "one\\ntwo", "fps": 8}\n\n{"video_path": "%s", "text": null, "id": 12}\n' \
    "$dir/data/in/v1.0/b.x.mp4" > "$dir/data/list.jsonl"
print --list "$dir/data/list.jsonl" && same_list <<'L'
{"key":"a","video_path":"a.mp4","caption":"one\ntwo"}
{"key":"12","video_path":"v1.0/b.x.mp4","caption":""}
L
ok "JSON lines; an absolute path; a number as key"
printf 'in/a.mp4\r\n./in/v1.0/b.x.mp4\r\n' > "$dir/data/videos.txt"
printf 'first "one", so\nsecond' > "$dir/prompts.txt"
print --list "$dir/data/videos.txt" --captions "$dir/prompts.txt" && same_list <<'L'
{"key":"a","video_path":"a.mp4","caption":"first \"one\", so"}
{"key":"v1_0/b_x","video_path":"v1.0/b.x.mp4","caption":"second"}
L
ok "videos.txt and prompts.txt"
printf 'beside' > "$dir/data/in/a.txt"
print --list "$dir/data/videos.txt" && same_list <<'L'
{"key":"a","video_path":"a.mp4","caption":"beside"}
{"key":"v1_0/b_x","video_path":"v1.0/b.x.mp4","caption":""}
L
ok "videos.txt alone: captions lie beside the videos"

# ---- folders, tars
printf 'lost' > "$dir/data/in/v1.0/gone.txt"
cp "$dir/data/in/a.mp4" "$dir/data/in/._a.mp4"
print "$dir/data/in/" && says "2 videos without a caption, 1 captions without a video" && same_list <<'L'
{"key":"a","video_path":"a.mp4","caption":"beside"}
{"key":"c, d","video_path":"c, d.mp4","caption":""}
{"key":"v1_0/b_x","video_path":"v1.0/b.x.mp4","caption":""}
L
ok "a folder: what lies below it; hidden files do not count"
print -v "$dir/data/in/" && says "v1.0/gone.txt: a caption without a video"
ok "-v names the caption without a video"
(cd "$dir/data/in" && cp a.mp4 b.mp4 && printf 'text' > c.txt && tar -cf ../../plain.tar a.mp4 a.txt b.mp4 c.txt && rm b.mp4 c.txt)
run 1 $extract -o "$dir/plain.tar.zst" "$dir/plain.tar" && says "c: no video" && says "2 good, 1 bad: 1 missing" &&
    says "1 videos without a caption, 1 captions without a video" && [ "$(members "$dir/plain.tar.zst" | grep -c npy)" = 2 ]
ok "a plain tar as webdataset writes it"
run 0 $extract -o "$dir/one.tar.zst" "$dir/data/in/v1.0/b.x.mp4" && silent
ok "where no captions are expected, nothing is said of them"

# ---- parts
for i in 0 1; do print --shard $i/2 --list "$dir/data/list.csv" && cat "$dir/list"; done > "$dir/parts"
print --list "$dir/data/list.csv" && diff "$dir/list" "$dir/parts" > "$dir/err" && print --shard 1/2 --list "$dir/data/list.csv" &&
    [ "$(wc -l < "$dir/list")" = 2 ] && print --shard 0/5 "$dir/data/in" && [ "$(wc -l < "$dir/list")" = 0 ]
ok "--shard I/N: the parts are the whole, in order, with the same keys"
for bad in 2/2 -1/2 1 1/ /2 1/0 1/2/3 a/b; do
    run 2 "$O/ma-extract" --print-list --shard "$bad" "$dir/data/in" && says "--shard: $bad is not I/N"
    ok "--shard $bad is refused"
done
run 2 $extract --shard 0/2 -o "$dir/x.tar" < "$dir/plain.tar" && says "standard input cannot be split"
ok "standard input cannot be split"

# ---- what is wrong
broken() { # NAME TEXT MESSAGE: a list is refused before the work, by file and line
    printf "$2" > "$dir/data/$1"
    run 1 $extract --list "$dir/data/$1" -o "$dir/x.tar" && says "$dir/data/$1$3" && [ "$(wc -l < "$dir/err")" = 1 ] && ! [ -e "$dir/x.tar" ]
    ok "refused: $1$3"
}
broken a.csv 'name,caption\na,b\n' ':1: no video: a column videopath'
broken b.csv 'video,caption\nin/a.mp4,b\nin/a.mp4,one, two\n' ':3: 3 columns, the first line has 2'
broken c.csv 'video,caption\nin/a.mp4,"b\nc\n' ':2: a quote is opened and not closed'
broken d.csv 'video,caption\nin/a.mp4,"b"c\n' ':2: text behind a closing quote'
broken d2.csv 'video,caption\nin/a.mp4,"b""' ':2: a quote is opened and not closed'
broken e.csv 'video,caption\n,lost\n' ': names no video'
broken f.csv '' ':1: no video'
broken g.csv 'video\nin/a.mp4\nin/v1.0/b.x.mp4\nin/a.mp4\n' ':2: '
says "$dir/data/g.csv:4: $dir/data/in/a.mp4 would both be sample a"
ok "two rows of one key are both named"
broken a.jsonl '{"video": "in/a.mp4"}\n{"video": "in/a.mp4", }\n' ':2: not JSON'
broken b.jsonl '{"video": "in/a.mp4"}\n\n{"name": "x"}\n' ':3: no video'
broken c.jsonl '{"video": 3}\n' ':1: video is not text'
broken d.jsonl '[{"video": "in/a.mp4"}]\n' ':1: a JSON array'
broken e.jsonl '{"video": "in/a.mp4"}\n"x"\n' ':2: not an object'
broken zero.txt 'in/a.mp4\n\0x' ': not text'
printf 'one\ntwo\nthree\n' > "$dir/prompts.txt"
run 1 $extract --list "$dir/data/videos.txt" --captions "$dir/prompts.txt" -o "$dir/x.tar" &&
    says "$dir/prompts.txt:3: there is no such line in $dir/data/videos.txt"
ok "more captions than videos"
printf 'one\n' > "$dir/prompts.txt"
run 1 $extract --list "$dir/data/videos.txt" --captions "$dir/prompts.txt" -o "$dir/x.tar" &&
    says "$dir/data/videos.txt:2: there is no such line in $dir/prompts.txt"
ok "more videos than captions"
run 1 $extract --list "$dir/nothere.csv" -o "$dir/x.tar" && says "nothere.csv: No such file"
ok "a list that is not there"
run 2 $extract --captions "$dir/prompts.txt" "$dir/data/in" && says "--captions: needs --list"
ok "--captions alone"
mkdir "$dir/none"
run 1 $extract "$dir/none" -o "$dir/x.tar" && says "$dir/none: no video in this folder"
ok "a folder without videos"
run 1 $extract "$dir/data/in/a.mp4" "$dir/data/in" -o "$dir/x.tar" && says "would both be sample a"
ok "a file and a folder with a video of one name"
printf 'video,id\nin/a.mp4,a\nin/gone.mp4,b\nin/a.txt,c\n' > "$dir/data/bad.csv"
run 1 $extract --list "$dir/data/bad.csv" -o "$dir/x.tar.zst" && says "bad.csv:3: $dir/data/in/gone.mp4: No such file" &&
    says "bad.csv:4: $dir/data/in/a.txt: none of .mp4" && says "1 good, 2 bad: 1 unsupported, 1 missing"
ok "a video that is not there is a bad sample, named by its line; so is what is none"
finish
