/* Reading what others wrote, held against the ffmpeg program: the files of ../shared/assets/video, and what ffmpeg
 * makes here of odd sizes, 10 bits, other matrices, turns and variable rates. Cut and damaged files. Skips what is not
 * at hand. */
#include "../../common/file.h"
#include "../../common/video.h"
#include "../tap.h"
#include <dirent.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/ma-foreign-XXXXXX";

static bool have_ffmpeg(void) {
    return system("command -v ffmpeg >/dev/null") == 0;
}

static int read_clip(const char *path, ma_clip_opts o, ma_clip *c, ma_err *e) {
    ma_buf b = {0};
    int rc = ma_read_file(path, (size_t)1 << 30, &b, e);
    if (!rc) rc = ma_video_read(b.data, b.size, path, &o, c, e);
    ma_buf_free(&b);
    return rc;
}

/* What ffmpeg makes of a file: RGB, frame after frame. flags: its converter's. */
static FILE *ffmpeg_rgb(const char *path, int64_t frames, const char *flags) {
    char *command =
        ma_format("ffmpeg -nostdin -v error -i '%s' $(ffmpeg -v quiet -h full | grep -q '^-fps_mode' && echo -fps_mode || "
                  "echo -vsync) passthrough -frames:v %d -sws_flags %s -f rawvideo -pix_fmt rgb24 -",
                  path, frames ? (int)frames : 1 << 20, flags);
    FILE *pipe = command ? popen(command, "r") : NULL;
    free(command);
    return pipe;
}

/* The largest difference from ffmpeg's own RGB over the first frames (0: all); -1: another number of frames. */
static int against_ffmpeg(const char *path, int64_t frames) {
    ma_err e = {0};
    ma_clip c;
    ma_clip_opts o = {.size.frames = frames};
    if (read_clip(path, o, &c, &e)) {
        printf("# %s\n", e.text);
        return -1;
    }
    FILE *pipe = ffmpeg_rgb(path, frames, "bicubic");
    size_t frame = (size_t)(c.height * c.width) * 3;
    uint8_t *theirs = malloc(frame);
    int most = 0;
    int64_t n = 0;
    for (; pipe && fread(theirs, 1, frame, pipe) == frame; n++)
        for (size_t i = 0; n < c.frames && i < frame; i++) {
            int d = abs(theirs[i] - c.rgb[(size_t)n * frame + i]);
            if (d > most) most = d;
        }
    if (pipe) pclose(pipe);
    if (n != c.frames) printf("# %lld frames, ffmpeg has %lld\n", (long long)c.frames, (long long)n);
    if (n != c.frames) most = -1;
    free(theirs);
    ma_clip_free(&c);
    return most;
}

/* Frames that are scaled as they are read, against ffmpeg's RGB at the old size, cropped and resized: the mean
 * difference. ffmpeg's own way there is to round down several times, which makes the picture darker by one or two of
 * 255; told not to, it also interpolates chroma. -1: not read. */
static double against_resized(const char *path, int64_t frames, int64_t height, int64_t width) {
    ma_err e = {0};
    ma_clip c;
    ma_clip_opts o = {.size = {frames, height, width, 0}};
    double sum = 0;
    if (read_clip(path, o, &c, &e)) {
        printf("# %s\n", e.text);
        return -1;
    }
    int64_t w = c.source_width, rows = c.crop[2], columns = c.crop[3];
    size_t frame = (size_t)(c.source_height * w) * 3;
    uint8_t *theirs = malloc(frame), *part = malloc(frame), *want = malloc((size_t)(height * width) * 3);
    FILE *pipe = ffmpeg_rgb(path, frames, "bicubic+accurate_rnd+full_chroma_int");
    for (int64_t k = 0; pipe && k < c.frames && fread(theirs, 1, frame, pipe) == frame; k++) {
        for (int64_t y = 0; y < rows; y++)
            memcpy(part + y * columns * 3, theirs + ((c.crop[0] + y) * w + c.crop[1]) * 3, (size_t)columns * 3);
        ma_image_resize(part, rows, columns, want, height, width);
        for (int64_t i = 0; i < height * width * 3; i++) sum += abs(want[i] - c.rgb[k * height * width * 3 + i]);
    }
    if (pipe) pclose(pipe);
    sum /= (double)(c.frames * height * width * 3);
    free(theirs);
    free(part);
    free(want);
    ma_clip_free(&c);
    return sum;
}

static void test_assets(void) {
    const char *shared = getenv("SHARED") ? getenv("SHARED") : "../shared";
    char *place = ma_format("%s/assets/video", shared);
    DIR *d = opendir(place);
    if (!d) skip("no assets/video");
    for (struct dirent *f; d && (f = readdir(d));) {
        if (f->d_name[0] == '.') continue;
        char *path = ma_format("%s/%s", place, f->d_name);
        if (have_ffmpeg()) {
            int most = against_ffmpeg(path, 24);
            ok(most >= 0 && most <= 2, "%s is ffmpeg's RGB (largest difference %d of 255)", f->d_name, most);
            double small = against_resized(path, 3, 160, 240), large = against_resized(path, 1, 512, 512);
            ok(small >= 0 && small < 0.6 && large >= 0 && large < 0.6, "%s, smaller and larger: off by %.2f, %.2f",
               f->d_name, small, large);
        }
        ma_buf b = {0};
        ma_err e = {0};
        ok(!ma_read_file(path, (size_t)1 << 30, &b, &e), "%s is read", f->d_name);
        const double part[] = {0.02, 0.1, 0.5, 0.9, 0.9999};
        for (size_t k = 0; k < sizeof part / sizeof *part; k++) {
            ma_clip c;
            ma_clip_opts o = {.size = {8, 64, 64, 8}, .when_short = MA_SHORT_PAD};
            ma_err_clear(&e);
            int rc = ma_video_read(b.data, (size_t)((double)b.size * part[k]), f->d_name, &o, &c, &e);
            ok(rc == -1 && (e.reason == MA_CUT || e.reason == MA_CORRUPT) && strstr(e.text, f->d_name) == e.text,
               "cut at %g: %s", part[k], e.text);
        }
        ma_buf_free(&b);
        free(path);
    }
    if (d) closedir(d);
    free(place);
}

/* Has ffmpeg make FOLDER/NAME; the path, or NULL. */
static char *make(const char *name, const char *how) {
    char *path = ma_format("%s/%s", folder, name);
    char *command = ma_format("ffmpeg -nostdin -v error -y -f lavfi -i %s '%s' 2>/dev/null", how, path);
    bool made = system(command) == 0;
    free(command);
    if (made) return path;
    skip(name);
    free(path);
    return NULL;
}

static void test_formats(void) {
    static const char *const how[][2] = {
        {"odd.mkv", "testsrc2=s=630x470:r=10:d=1,scale=63:47 -pix_fmt yuv420p -c:v ffv1"},
        {"odd444.mp4", "testsrc=s=63x47:r=10:d=1 -pix_fmt yuv444p -c:v libx264"},
        {"422.mkv", "testsrc2=s=64x48:r=10:d=1 -pix_fmt yuv422p -c:v libx264"},
        {"tenbit.mkv", "testsrc2=s=64x48:r=10:d=1 -pix_fmt yuv420p10le -c:v ffv1"},
        {"bt709.mp4", "testsrc2=s=64x48:r=10:d=1 -pix_fmt yuv420p -colorspace bt709 -c:v libx264"},
        {"bt2020.mp4", "testsrc2=s=64x48:r=10:d=1 -pix_fmt yuv420p -colorspace bt2020nc -c:v libx264"},
        {"full.mp4", "testsrc2=s=64x48:r=10:d=1 -pix_fmt yuvj420p -c:v libx264"},
        {"mjpeg.avi", "testsrc2=s=64x48:r=10:d=1 -pix_fmt yuvj420p -c:v mjpeg"},
        {"gbr.mkv", "testsrc2=s=64x48:r=10:d=1 -pix_fmt gbrp -c:v libx264rgb"},
        {"grey.mkv", "testsrc2=s=64x48:r=10:d=1 -pix_fmt gray -c:v ffv1"},
        {"vp9.webm", "testsrc2=s=64x48:r=10:d=1 -pix_fmt yuv420p -c:v libvpx-vp9 -cpu-used 8"},
        {"deep.mkv", "testsrc2=s=64x48:r=10:d=1 -pix_fmt gbrp10le -c:v ffv1"},
        {"live.mkv", "testsrc2=s=64x48:r=10:d=1 -pix_fmt yuv420p -c:v libx264 -live 1"},
        {"pieces.mp4", "testsrc2=s=64x48:r=10:d=1 -pix_fmt yuv420p -c:v libx264 -movflags frag_keyframe+empty_moov"},
    };
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        char *path = make(how[i][0], how[i][1]);
        if (!path) continue;
        int most = against_ffmpeg(path, 0);
        ok(most >= 0 && most <= 2, "%s is ffmpeg's RGB (largest difference %d of 255)", how[i][0], most);
        /* hard edges between pure colours, in few pixels: interpolated chroma is another picture */
        double small = against_resized(path, 0, 15, 17), large = against_resized(path, 0, 99, 50);
        ok(small >= 0 && small < 9 && large >= 0 && large < 9, "%s, smaller and larger: off by %.2f, %.2f", how[i][0],
           small, large);
        free(path);
    }
}

static void test_jpeg(void) {
    char *path = make("x.jpg", "testsrc=s=63x47 -frames:v 1 -update 1");
    ma_buf b = {0};
    ma_err e = {0};
    ma_clip c;
    if (!path) return;
    ok(!ma_read_file(path, 1 << 20, &b, &e) && !ma_image_read(b.data, b.size, "x.jpg", &c, &e), "jpeg: read %s",
       e.text);
    ok(c.height == 47 && c.width == 63, "jpeg: %lldx%lld", (long long)c.height, (long long)c.width);
    ma_clip_free(&c);
    for (int part = 1; part <= 3; part++) {
        ma_err_clear(&e);
        ok(ma_image_read(b.data, b.size * (size_t)part / 4, "x.jpg", &c, &e) && e.reason == MA_CORRUPT, "jpeg: cut: %s",
           e.text);
    }
    ma_buf_free(&b);
    free(path);
}

static void test_variable_rate(void) {
    char *path = make("vfr.mkv", "testsrc2=s=64x48:r=10:d=1 -vf \"settb=1/1000,setpts='if(lt(N,4),N,4+(N-4)*3)*100'\" "
                                 "-enc_time_base 1/1000 -c:v ffv1");
    ma_err e = {0};
    ma_clip c;
    ma_clip_opts o = {.size = {.frames = 14, .fps = 10}};
    if (!path) return;
    if (ok(!read_clip(path, o, &c, &e), "variable rate: read %s", e.text)) {
        const int64_t want[14] = {0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7};
        ok(!memcmp(c.index, want, sizeof want), "variable rate: the frame on show at each instant");
        size_t frame = (size_t)(c.height * c.width) * 3;
        ok(!memcmp(c.rgb + 4 * frame, c.rgb + 6 * frame, frame) && memcmp(c.rgb + 6 * frame, c.rgb + 7 * frame, frame),
           "variable rate: pixels repeat with the index");
        ma_clip_free(&c);
    }
    free(path);
}

/* At 30 fps Matroska's milliseconds are late by up to two thirds: every frame must come once all the same. */
static void test_rounded_times(void) {
    char *path = make("ms.mkv", "testsrc2=s=64x48:r=30:d=2 -c:v ffv1");
    if (!path) return;
    for (int part = 1; part <= 3; part++) {
        ma_err e = {0};
        ma_clip c;
        ma_clip_opts o = {.size = {.frames = 60 / part, .fps = 30.0 / part}};
        if (ok(!read_clip(path, o, &c, &e), "30 fps at 1/%d: read %s", part, e.text)) {
            int64_t wrong = 0;
            for (int64_t k = 0; k < c.frames; k++) wrong += c.index[k] != k * part;
            ok(!wrong, "30 fps at 1/%d: each frame in its place", part);
            ma_clip_free(&c);
        }
    }
    free(path);
}

int main(void) {
    test_assets();
    if (!have_ffmpeg()) {
        skip("no ffmpeg program");
        return tap_done();
    }
    if (!ok(mkdtemp(folder) != NULL, "a folder")) return tap_done();
    test_formats();
    test_jpeg();
    test_variable_rate();
    test_rounded_times();
    char *clean = ma_format("rm -r '%s'", folder);
    ok(system(clean) == 0, "tidy");
    free(clean);
    return tap_done();
}
