/* Clips that begin far into a video: the same frames, times and numbers as when all of it is decoded; and what is
 * before the last key frame is not decoded, which damage there shows. */
#include "../../common/file.h"
#include "../../common/video.h"
#include "../tap.h"
#include <dirent.h>
#include <string.h>
#include <unistd.h>

enum { H = 36, W = 64, FRAME = H * W * 3 };
static char folder[] = "/tmp/ma-test-XXXXXX";

static int64_t at(const ma_clip *all, double time) { /* the frame on show */
    int64_t k = 0;
    while (k + 1 < all->frames && all->time[k + 1] < time + 1e-9) k++;
    return k;
}

/* n frames from start on, at a rate or (0) one after another, beside those of the whole. */
static bool same(const ma_buf *b, const char *name, const ma_clip *all, double start, int n, double fps) {
    ma_err e = {0};
    ma_clip c;
    ma_clip_opts o = {.size = {n, H, W, fps}, .start = start};
    if (ma_video_read(b->data, b->size, name, &o, &c, &e)) {
        printf("# %s\n", e.text);
        return false;
    }
    int64_t first = 0;
    while (first < all->frames && all->time[first] < start) first++;
    bool good = c.frames == n;
    for (int k = 0; k < n && good; k++) {
        const int64_t want = fps > 0 ? at(all, start + k / fps) : first + k;
        good = c.index[k] == want && fabs(c.time[k] - all->time[want]) < 1e-9 &&
               !memcmp(c.rgb + (size_t)k * FRAME, all->rgb + (size_t)want * FRAME, FRAME);
        if (!good)
            printf("# from %gs: frame %d is %lld, wanted %lld\n", start, k, (long long)c.index[k], (long long)want);
    }
    ma_clip_free(&c);
    return good;
}

/* Starts that are between frames, all over the video. */
static void test_video(const char *path, const char *name) {
    ma_buf b = {0};
    ma_err e = {0};
    ma_clip all;
    ma_clip_opts o = {.size = {.height = H, .width = W}};
    if (ma_read_file(path, (size_t)1 << 30, &b, &e) || ma_video_read(b.data, b.size, name, &o, &all, &e)) {
        ok(false, "%s", e.text);
        return;
    }
    enum { STARTS = 3, N = 3 };
    int good = 0;
    const double end = all.time[all.frames - N - 1];
    double spent[2] = {0};
    for (int k = 1; k <= STARTS; k++) {
        const int64_t on = at(&all, end * k / STARTS);
        const double start = (all.time[on] + 2 * all.time[on + 1]) / 3, from = ma_now();
        good += same(&b, name, &all, start, N, 0) && same(&b, name, &all, start, N, 1.3 * all.fps);
        spent[k == STARTS] = ma_now() - from;
    }
    ok(good == STARTS, "%s: the frames from %d places on", name, STARTS);
    printf("# the last place took %.0f ms\n", 1e3 * spent[1]);
    o.start = all.time[all.frames - 1] + 60;
    o.size.frames = 1;
    ma_clip none;
    ok(ma_video_read(b.data, b.size, name, &o, &none, &e) < 0 && e.reason == MA_SHORT, "%s: behind its end: %s", name,
       e.text);
    ma_clip_free(&all);
    ma_buf_free(&b);
}

static void test_assets(void) {
    const char *shared = getenv("SHARED");
    char *path = ma_format("%s/assets/video", shared ? shared : "../shared");
    DIR *d = opendir(path);
    if (!d) skip("no shared assets");
    for (struct dirent *f; d && (f = readdir(d));) {
        char *file = ma_format("%s/%s", path, f->d_name);
        if (f->d_name[0] != '.') test_video(file, f->d_name);
        free(file);
    }
    if (d) closedir(d);
    free(path);
}

/* ffmpeg's, of 6 seconds. NULL: it cannot. */
static char *make(const char *name, const char *options) {
    char *path = ma_format("%s/%s", folder, name);
    char *command = ma_format("ffmpeg -nostdin -v error -y -f lavfi -i testsrc2=s=128x96:r=20:d=6 %s '%s' 2>/dev/null",
                              options, path);
    const int rc = system(command);
    free(command);
    if (!rc) return path;
    skip(name);
    free(path);
    return NULL;
}

static void test_made(void) {
    static const char *const made[][2] = {
        {"bframes.mp4", "-c:v libx264 -g 25 -bf 3 -pix_fmt yuv420p"},
        {"open-gop.mkv", "-c:v libx264 -g 25 -bf 3 -pix_fmt yuv420p -x264-params open-gop=1"},
        {"refresh.mp4", "-c:v libx264 -g 25 -pix_fmt yuv420p -x264-params intra-refresh=1"},
        {"cut-in.mp4", "-ss 1.23 -c:v libx264 -g 15 -bf 2 -pix_fmt yuv420p"},
        {"variable.mkv", "-vf settb=1/1000,setpts='(N+3*floor(N/7))*50' -enc_time_base 1/1000 -c:v libx264 -g 12 -bf 2 "
                         "-pix_fmt yuv420p"},
        {"mpeg4.avi", "-c:v mpeg4 -bf 2 -g 12"},
        {"hevc.mp4", "-c:v libx265 -x265-params log-level=none:keyint=20 -pix_fmt yuv420p"},
        {"vp9.webm", "-c:v libvpx-vp9 -g 20 -deadline realtime -cpu-used 8"},
        {"lossless.mkv", "-c:v ffv1"},
    };
    for (size_t k = 0; k < sizeof made / sizeof *made; k++) {
        char *path = make(made[k][0], made[k][1]);
        if (path) test_video(path, made[k][0]);
        if (path) unlink(path);
        free(path);
    }
}

/* Zeros in the first quarter of the frames' bytes: from the beginning nothing can be had, from the end on it can. */
static void test_not_decoded(void) {
    ma_buf b = {0};
    ma_err e = {0}, early = {0};
    ma_clip c;
    ma_clip_opts o = {.size = {4, H, W, 0}, .start = 0.5};
    char *path = make("damaged.mp4", "-c:v libx264 -g 20 -pix_fmt yuv420p -movflags +faststart");
    if (!path) return;
    if (ma_read_file(path, (size_t)1 << 30, &b, &e)) exit(2);
    memset(b.data + b.size / 8, 0, b.size / 8);
    ok(ma_video_read(b.data, b.size, "damaged.mp4", &o, &c, &early) < 0, "damaged: %s", early.text);
    o.start = 5;
    ok(!ma_video_read(b.data, b.size, "damaged.mp4", &o, &c, &e), "damage before the key frame is not met %s", e.text);
    ma_clip_free(&c);
    ma_buf_free(&b);
    unlink(path);
    free(path);
}

int main(void) {
    test_assets();
    if (mkdtemp(folder)) {
        test_made();
        test_not_decoded();
        rmdir(folder);
    }
    return tap_done();
}
