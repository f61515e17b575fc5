#!/bin/bash
# damaged: 200 inputs that are not as they should be, 10 kinds, made here with the ffmpeg program from a fixed seed. Of
# each kind: no crash, no hang, every bad one is named, the tally counts it under a reason that its kind can have, the
# good ones are in the output and no others.
set -u
. tests/cli/tap.sh
command -v ffmpeg > /dev/null || {
    skip "no ffmpeg program"
    finish
}
RANDOM=4
total=0
mkdir "$dir/base"

ff() { # ARGUMENT… FILE: ffmpeg, which is quiet, and writes the same bytes each time on every machine
    ffmpeg -nostdin -v error -y "${@:1:$#-1}" -map_metadata -1 -fflags +bitexact -flags +bitexact -threads 1 "${!#}" \
        2>> "$dir/ffmpeg"
}

film="testsrc2=s=96x64:r=8:d=2" # 16 frames
ff -f lavfi -i $film -c:v libx264 -pix_fmt yuv420p -g 6 "$dir/base/b.mp4" &&
    ff -f lavfi -i $film -c:v libx264 -pix_fmt yuv420p -movflags faststart "$dir/base/b.mov" &&
    ff -f lavfi -i $film -c:v mpeg4 -q:v 3 "$dir/base/b.mkv" &&
    ff -f lavfi -i $film -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 1M "$dir/base/b.webm" &&
    ff -f lavfi -i $film -c:v mjpeg -pix_fmt yuvj420p "$dir/base/b.avi"
ok "five containers to damage"
kinds="mp4 mov mkv webm avi"

size_of() { stat -c %s "$1"; }

flip() { # FILE N: N bits of it, anywhere
    local bytes at old bit
    bytes=$(size_of "$1")
    for ((k = 0; k < $2; k++)); do
        at=$(((RANDOM * 32768 + RANDOM) % bytes)) bit=$((RANDOM % 8)) # not below: a subshell draws from a seed of its own
        old=$(od -An -tu1 -j $at -N 1 "$1")
        printf "\\x$(printf %02x $((old ^ (1 << bit))))" | dd of="$1" bs=1 seek=$at conv=notrunc status=none
    done
}

extract() { # THREADS KIND: the shard of what is in $dir/KIND
    timeout -k 5 120 "$O/ma-extract" -e pixel=4 --clip 8x32x48 -q -j "$1" -z 0 "$dir/$2"/*
}

# KIND FEWEST-GOOD MOST-GOOD REASONS: reads what is in $dir/KIND
check() {
    local kind=$1 least=$2 most=$3 reasons=$4 files good bad sum=0 n word
    files=$(ls "$dir/$kind" | wc -l)
    total=$((total + files))
    extract 4 "$kind" > "$dir/out" 2> "$dir/err"
    local rc=$?
    [ $rc = 0 ] || [ $rc = 1 ]
    ok "$kind: $files files: exit $rc"
    good=$(tar -tf "$dir/out" 2> /dev/null | grep -c '\.latent\.npy$')
    bad=$(grep -v ' good, ' "$dir/err" | sed 's/^ma-extract: //; s/[.:].*//' | sort -u | wc -l)
    [ $((good + bad)) = "$files" ] && [ "$good" -ge "$least" ] && [ "$good" -le "$most" ] &&
        [ "$(grep -vc ' good, ' "$dir/err")" = "$bad" ]
    ok "$kind: $good good, $bad named"
    if [ "$bad" = 0 ]; then
        [ $rc = 0 ]
    else
        grep -q "^ma-extract: $good good, $bad bad: " "$dir/err" && while read -r n word; do
            sum=$((sum + n))
            [[ " $reasons " == *" $word "* ]] || sum=-1000
        done < <(sed -n 's/.* bad: //p' "$dir/err" | tr ',' '\n') && [ $sum = "$bad" ] && [ $rc = 1 ]
    fi
    ok "$kind: $(sed -n 's/.* bad: //p' "$dir/err")"
}

mkdir "$dir"/{nothing,other,silent,cut,flipped,torn,odd,turned,rate,short,row}

# ---- nothing in it, or something else
for x in $kinds; do
    : > "$dir/nothing/empty-$x.$x"
    printf 'x' > "$dir/nothing/byte-$x.$x"
    head -c 8 "$dir/base/b.$x" > "$dir/nothing/eight-$x.$x"
    printf 'this is a text, whatever its name says, and long enough to be looked at\n%.0s' 1 2 3 > "$dir/other/text-$x.$x"
    gzip -9n < "$dir/base/b.$x" | tail -c 3000 > "$dir/other/noise-$x.$x"
    head -c 5000 /dev/zero > "$dir/other/zeros-$x.$x"
done
ff -f lavfi -i $film -frames:v 1 -update 1 "$dir/other/picture.png" && mv "$dir/other/picture.png" "$dir/other/picture.mp4"
tar -cf "$dir/other/archive.mkv" -C "$dir/base" b.mp4
gzip -c "$dir/base/b.mp4" > "$dir/other/packed.mp4"
check nothing 0 0 "cut"
check other 0 0 "cut corrupt unsupported"

# ---- no video in it
for x in mp4 mov mkv avi; do
    ff -f lavfi -i sine=d=1 -c:a pcm_s16le "$dir/silent/sound-$x.$x" || ff -f lavfi -i sine=d=1 "$dir/silent/sound-$x.$x"
    ff -f lavfi -i $film -c:v mpeg4 -frames:v 0 "$dir/silent/none-$x.$x"
done
ff -f lavfi -i sine=d=1 -c:a libopus "$dir/silent/sound-webm.webm"
check silent 0 0 "missing corrupt cut short"

# ---- cut
for x in $kinds; do
    bytes=$(size_of "$dir/base/b.$x")
    for part in 3 6 10 20 35 50 65 75 80 90 96 99; do
        head -c $((bytes * part / 100)) "$dir/base/b.$x" > "$dir/cut/$x-$part.$x"
    done
done
check cut 0 0 "cut corrupt"

# ---- bits flipped, and pieces missing in the middle
for x in $kinds; do
    for n in 1 1 1 1 2 2 4 4 8 16 32 64; do
        copy=$dir/flipped/$x-$n-$RANDOM.$x
        cp "$dir/base/b.$x" "$copy" && flip "$copy" $n
    done
    bytes=$(size_of "$dir/base/b.$x")
    for part in 20 50 80; do
        { head -c $((bytes * part / 100)) "$dir/base/b.$x" && tail -c +$((bytes * part / 100 + 700)) "$dir/base/b.$x"; } > "$dir/torn/$x-$part.$x"
    done
done
reasons="cut corrupt unsupported missing short timeout memory"
check flipped 0 40 "$reasons"
check torn 0 0 "$reasons"

# ---- sizes, turns and rates that are odd and nothing else
for s in 63x47 17x33 97x1 1x97 2x2 255x31 640x16; do
    ff -f lavfi -i testsrc2=s=640x480:r=8:d=2 -vf scale=${s/x/:} -c:v ffv1 -level 1 -pix_fmt yuv444p "$dir/odd/$s.mkv"
done
for s in 63x47 17x33; do
    ff -f lavfi -i testsrc2=s=640x480:r=8:d=2 -vf scale=${s/x/:} -c:v libx264 -pix_fmt yuv444p "$dir/odd/h264-$s.mp4"
done
cp "$dir/base/b.mkv" "$dir/odd/mkv-named.mp4"
cp "$dir/base/b.mp4" "$dir/odd/mp4-named.avi"
for f in 96x64 64x96; do ff -f lavfi -i testsrc2=s=$f:r=8:d=1 -c:v libx264 -pix_fmt yuv420p -f h264 "$dir/base/$f"; done
cat "$dir/base/96x64" "$dir/base/64x96" > "$dir/base/both"
ff -f h264 -i "$dir/base/both" -c copy "$dir/odd/changes.mkv"
check odd 11 11 "unsupported corrupt"
newer=$(ffmpeg -v quiet -h full | grep '^-display_rotation') # from FFmpeg 6 on, and the other way no more
for turn in 90 180 270 45; do
    if [ "$newer" ]; then
        ff -display_rotation $turn -i "$dir/base/b.mp4" -c copy "$dir/turned/$turn.mp4"
    else
        ff -i "$dir/base/b.mp4" -c copy -metadata:s:v rotate=$turn "$dir/turned/$turn.mp4"
    fi
done
check turned 3 3 "unsupported"
for how in 'if(lt(N,4),N,4+(N-4)*3)*100' 'N*N*10' 'N*1000' 'N*7+mod(N,3)' '(N+50)*125'; do
    ff -f lavfi -i $film -vf "settb=1/1000,setpts='$how'" -enc_time_base 1/1000 -c:v ffv1 "$dir/rate/$((++k)).mkv"
done
check rate 5 5 ""
for n in 1 2 7; do
    ff -f lavfi -i $film -frames:v $n -c:v mpeg4 "$dir/short/$n.mkv"
    ff -f lavfi -i $film -frames:v $n -c:v libx264 -pix_fmt yuv420p "$dir/short/$n-h264.mp4"
done
check short 0 0 "short"
[ $total -ge 200 ]
ok "$total inputs"

# ---- between good ones, more bad ones than can wait for a batch to fill
for at in 10 11 50 51 52 90; do cp "$dir/base/b.mp4" "$dir/row/$at.mp4"; done
for ((k = 12; k < 90; k++)); do [ -e "$dir/row/$k.mp4" ] || : > "$dir/row/$k.mp4"; done
check row 6 6 "cut"
for j in 1 3; do
    extract $j row 2> "$dir/err.$j" | cmp -s - "$dir/out" && cmp -s "$dir/err.$j" "$dir/err"
    ok "row: the same on $j threads, and the same said"
done
finish
