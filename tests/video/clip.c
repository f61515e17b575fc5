/* Video of our own making, written and read back: lossless or close, the same bytes each time; which frames a clip
 * takes; turns; fits; cut and damaged files whose headers have been mended so that only the contents tell. */
#include "../../common/video.h"
#include "../tap.h"
#include <sched.h>
#include <string.h>

enum { F = 20, H = 48, W = 64 };
static uint8_t scene[F][H][W][3];

/* Slow colours, and a square that moves; frame k can be told from the others. */
static void paint(void) {
    for (int k = 0; k < F; k++)
        for (int y = 0; y < H; y++)
            for (int x = 0; x < W; x++) {
                bool in = abs(x - 10 - 2 * k) < 7 && abs(y - 15) < 7;
                scene[k][y][x][0] = (uint8_t)(in ? 220 : 40 + 2 * x);
                scene[k][y][x][1] = (uint8_t)(in ? 60 : 200 - 3 * y);
                scene[k][y][x][2] = (uint8_t)(in ? 40 : 60 + 8 * k);
            }
}

static ma_buf encode(const char *format, int height, int width, double fps) {
    ma_buf b = {0};
    ma_err e = {0};
    if (ma_video_write(&scene[0][0][0][0], F, height, width, fps, format, 18, &b, &e)) printf("# %s\n", e.text);
    return b;
}

static double psnr(const uint8_t *a, const uint8_t *b, size_t n) {
    double s = 0;
    for (size_t i = 0; i < n; i++) s += (a[i] - b[i]) * (a[i] - b[i]);
    return 10 * log10(255.0 * 255.0 * (double)n / (s + 1e-9));
}

static void test_round_trip(void) {
    static const struct {
        const char *format;
        int height, width;
        double least; /* dB */
    } how[] = {{"mp4", H, W, 29}, {"mkv", H, W, 99}, {"mkv", H - 1, W - 1, 99}};
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        const char *f = how[i].format;
        ma_buf a = encode(f, how[i].height, how[i].width, 10), b = encode(f, how[i].height, how[i].width, 10);
        ok(a.size && a.size == b.size && !memcmp(a.data, b.data, a.size), "%s: the same bytes twice (%zu)", f, a.size);
        ma_clip c = {0};
        ma_err e = {0};
        ma_clip_opts o = {0};
        if (!ok(!ma_video_read(a.data, a.size, f, &o, &c, &e), "%s: read %s", f, e.text)) continue;
        ok(c.frames == F && c.height == how[i].height && c.width == how[i].width && fabs(c.fps - 10) < 1e-6,
           "%s: %lldx%lldx%lld at %g", f, (long long)c.frames, (long long)c.height, (long long)c.width, c.fps);
        double db = psnr(c.rgb, &scene[0][0][0][0], (size_t)(F * how[i].height * how[i].width * 3));
        ok(db >= how[i].least, "%s: %.1f dB, at least %g", f, db, how[i].least);
        ok(c.index[7] == 7 && fabs(c.time[7] - 0.7) < 1e-3, "%s: index and time", f);
        ma_clip_free(&c);
        ma_buf_free(&a);
        ma_buf_free(&b);
    }
}

/* Frames large enough for threads, on all processors and on one: x264 left to itself would count them. */
static void test_threads(void) {
    enum { N = 24, SIDE = 256, FRAME = SIDE * SIDE * 3 };
    cpu_set_t all, one;
    ma_buf b[2] = {0};
    ma_err e = {0};
    uint8_t *rgb = ma_alloc(N, FRAME);
    for (size_t i = 0; i < (size_t)N * FRAME; i++) rgb[i] = (uint8_t)(i * i / 5 % 61 + i / FRAME * 8);
    sched_getaffinity(0, sizeof all, &all);
    CPU_ZERO(&one);
    for (int k = 0; k < CPU_SETSIZE && !CPU_COUNT(&one); k++)
        if (CPU_ISSET(k, &all)) CPU_SET(k, &one);
    for (int k = 0; k < 2; k++) {
        if (k) sched_setaffinity(0, sizeof one, &one);
        if (ma_video_write(rgb, N, SIDE, SIDE, 8, "mp4", 18, &b[k], &e)) printf("# %s\n", e.text);
    }
    sched_setaffinity(0, sizeof all, &all);
    ok(b[0].size && b[0].size == b[1].size && !memcmp(b[0].data, b[1].data, b[0].size),
       "mp4: the same bytes on %d processors and on one (%zu)", CPU_COUNT(&all), b[0].size);
    for (int k = 0; k < 2; k++) ma_buf_free(&b[k]);
    ma_release(rgb);
}

/* By hand: a line, then frames of three planes; BT.601, limited range. */
static void test_y4m(void) {
    enum { h = H - 1, w = W - 1, PLANE = h * w };
    static const char head[] = "YUV4MPEG2 W63 H47 F10:1 Ip A1:1 C444 XCOLORRANGE=LIMITED\n";
    ma_buf b = encode("y4m", h, w, 10);
    size_t each = strlen("FRAME\n") + 3 * PLANE, front = sizeof head - 1;
    if (ok(b.size == front + F * each && !memcmp(b.data, head, front), "y4m: head and size")) {
        const uint8_t *p = (const uint8_t *)b.data + front + 7 * each, *y = p + 6;
        const uint8_t *rgb = &scene[0][0][0][0] + 7 * PLANE * 3;
        double most = 0;
        for (int i = 0; i < PLANE; i++) {
            double l = (y[i] - 16) * 255.0 / 219, u = (y[PLANE + i] - 128) * 255.0 / 224,
                   v = (y[2 * PLANE + i] - 128) * 255.0 / 224;
            most = fmax(most, fabs(l + 1.402 * v - rgb[3 * i]));
            most = fmax(most, fabs(l - 0.344136 * u - 0.714136 * v - rgb[3 * i + 1]));
            most = fmax(most, fabs(l + 1.772 * u - rgb[3 * i + 2]));
        }
        ok(!memcmp(p, "FRAME\n", 6) && most < 3, "y4m: colours (largest difference %.2f)", most);
    }
    ma_buf_free(&b);
}

static void test_refusals(void) {
    ma_buf b = {0};
    ma_err e = {0};
    const uint8_t *rgb = &scene[0][0][0][0];
    ma_buf_add(&b, "before", 6);
    ok(ma_video_write(rgb, 2, 47, 64, 10, "mp4", 18, &b, &e) && e.reason == MA_SHAPE, "odd mp4: %s", e.text);
    ma_err_clear(&e);
    ok(ma_video_write(rgb, 2, 48, 64, 10, "gif", 18, &b, &e) && e.reason == MA_USAGE, "format: %s", e.text);
    ma_err_clear(&e);
    ok(ma_video_write(rgb, 2, 48, 64, 10, "mp4", 52, &b, &e) && e.reason == MA_USAGE, "crf: %s", e.text);
    ok(b.size == 6, "nothing was added");
    ma_err_clear(&e);
    ok(!ma_video_write(rgb, 2, 48, 64, 10, "mp4", 18, &b, &e) && b.size > 6 && !memcmp(b.data, "before", 6) &&
           !memcmp(b.data + 10, "ftyp", 4),
       "added behind what was there");
    ma_buf_free(&b);
}

static char *find(ma_buf *b, const char *what) {
    return memmem(b->data, b->size, what, 4);
}

static int try_read(const ma_buf *b, size_t size, ma_err *e) {
    ma_clip c;
    ma_clip_opts o = {0};
    ma_err_clear(e);
    int rc = ma_video_read(b->data, size, "x.mp4", &o, &c, e);
    if (!rc && c.frames != F) rc = 1; /* silently fewer: the one thing that must not be */
    if (rc >= 0) ma_clip_free(&c);
    return rc;
}

/* Cut files whose outermost sizes agree with what is left. */
static void test_mended_cuts(void) {
    ma_err e = {0};
    ma_buf b = encode("mp4", H, W, 10);
    char *moov = find(&b, "moov"), *mdat = find(&b, "mdat");
    ok(moov && mdat && moov < mdat, "mp4: the index stands first");
    size_t at = (size_t)(mdat - b.data) - 4, half = at + (b.size - at) / 2;
    ok(try_read(&b, half, &e) == -1 && e.reason == MA_CUT, "mp4, half: %s", e.text);
    for (int i = 0; i < 4; i++) b.data[at + (size_t)i] = (char)((half - at) >> (24 - 8 * i));
    ok(try_read(&b, half, &e) == -1 && (e.reason == MA_CUT || e.reason == MA_CORRUPT), "mp4, half, mdat mended: %s",
       e.text);
    ma_buf_free(&b);
    b = encode("mkv", H, W, 10);
    char *segment = find(&b, "\x18\x53\x80\x67");
    ok(try_read(&b, b.size * 2 / 3, &e) == -1 && e.reason == MA_CUT, "mkv, two thirds: %s", e.text);
    memcpy(segment + 4, "\x01\xff\xff\xff\xff\xff\xff\xff", 8);
    ok(try_read(&b, b.size, &e) == 0, "mkv, segment of unknown size: read %s", e.text);
    ok(try_read(&b, b.size * 2 / 3, &e) == -1 && e.reason == MA_CUT, "mkv, two thirds, size unknown: %s", e.text);
    ma_buf_free(&b);
}

static void test_damage(void) {
    static const char *const formats[] = {"mp4", "mkv"};
    for (int f = 0; f < 2; f++) {
        int told = 0, fewer = 0;
        for (int k = 0; k < 40; k++) {
            ma_err e = {0};
            ma_buf b = encode(formats[f], H, W, 10);
            size_t at = b.size * 2 / 3 + (size_t)k * (b.size / 128); /* in the data, not in the index */
            for (size_t i = 0; i < 8; i++) b.data[at + i] ^= 0x5a;
            int rc = try_read(&b, b.size, &e);
            told += rc == -1;
            fewer += rc == 1;
            ma_buf_free(&b);
        }
        ok(!fewer, "%s: of 40 damaged files none gives fewer frames in silence", formats[f]);
        ok(told >= (f ? 38 : 20), "%s: of 40 damaged files %d are told", formats[f], told);
    }
    ma_err e = {0};
    ok(try_read(&(ma_buf){.data = (char[64]){"no video at all, whatever the name"}, .size = 64}, 64, &e) == -1,
       "text: %s", e.text);
    ok(try_read(&(ma_buf){.data = (char[16]){0}}, 0, &e) == -1 && e.reason == MA_CUT, "nothing: %s", e.text);
}

/* Which frames: index of each, or the reason. */
static void expect(const ma_buf *b, const char *what, ma_clip_opts o, ma_reason reason, int n, const int *index) {
    ma_clip c;
    ma_err e = {0};
    int rc = ma_video_read(b->data, b->size, "x.mkv", &o, &c, &e);
    if (!ok(e.reason == reason && rc == (reason ? -1 : 0), "%s: %s %s", what, ma_reason_name(e.reason), e.text) || rc)
        return;
    bool same = c.frames == n;
    for (int k = 0; same && k < n; k++) same = c.index[k] == index[k];
    for (int k = 0; same && k < n; k++) {
        const uint8_t *want = &scene[index[k] < 0 ? F - 1 : index[k]][0][0][0];
        same = !memcmp(want, c.rgb + (size_t)k * H * W * 3, sizeof scene[0]);
    }
    ok(same, "%s: frames and pixels", what);
    ma_clip_free(&c);
}

static void test_choice(void) {
    ma_buf b = encode("mkv", H, W, 10);
#define INDEX(...) (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), (const int[]){__VA_ARGS__}
    expect(&b, "the first 3", (ma_clip_opts){.size.frames = 3}, MA_OK, INDEX(0, 1, 2));
    expect(&b, "half the rate", (ma_clip_opts){.size = {.frames = 4, .fps = 5}}, MA_OK, INDEX(0, 2, 4, 6));
    expect(&b, "twice the rate", (ma_clip_opts){.size = {.frames = 5, .fps = 20}}, MA_OK, INDEX(0, 0, 1, 1, 2));
    expect(&b, "no even rate", (ma_clip_opts){.size = {.frames = 6, .fps = 8}}, MA_OK, INDEX(0, 1, 2, 3, 5, 6));
    expect(&b, "all at a lower rate", (ma_clip_opts){.size.fps = 2}, MA_OK, INDEX(0, 5, 10, 15));
    expect(&b, "from a second on", (ma_clip_opts){.size.frames = 2, .start = 1}, MA_OK, INDEX(10, 11));
    expect(&b, "from between two", (ma_clip_opts){.size = {.frames = 2, .fps = 10}, .start = 1.05}, MA_OK,
           INDEX(10, 11));
    expect(&b, "all 20 at 10 fps", (ma_clip_opts){.size = {.frames = 20, .fps = 10}}, MA_OK,
           INDEX(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19));
    expect(&b, "21 of 20", (ma_clip_opts){.size.frames = 21}, MA_SHORT, 0, NULL);
    expect(&b, "21 at 10 fps", (ma_clip_opts){.size = {.frames = 21, .fps = 10}}, MA_SHORT, 0, NULL);
    expect(&b, "skip", (ma_clip_opts){.size.frames = 21, .when_short = MA_SHORT_SKIP}, MA_SHORT, 0, NULL);
    expect(&b, "pad", (ma_clip_opts){.size.frames = 4, .start = 1.8, .when_short = MA_SHORT_PAD}, MA_OK,
           INDEX(18, 19, -1, -1));
    expect(&b, "loop", (ma_clip_opts){.size.frames = 5, .start = 1.8, .when_short = MA_SHORT_LOOP}, MA_OK,
           INDEX(18, 19, 18, 19, 18));
    expect(&b, "beyond the end", (ma_clip_opts){.start = 5, .when_short = MA_SHORT_PAD}, MA_SHORT, 0, NULL);
    expect(&b, "no time", (ma_clip_opts){.timeout = 1e-9}, MA_TIMEOUT, 0, NULL);
    expect(&b, "too much", (ma_clip_opts){.size = {1 << 20, 480, 720, 0}}, MA_MEMORY, 0, NULL);
    expect(&b, "half a size", (ma_clip_opts){.size.height = 20}, MA_USAGE, 0, NULL);
    ma_buf_free(&b);
}

/* Frames that nobody looks at need not be drawn, but for those that others may come from. */
static void test_looked_at(void) {
    ma_buf b = encode("mkv", H, W, 10);
    ma_clip c;
    ma_err e = {0};
    ma_clip_opts o = {.size.frames = 12, .first = 2, .every = 3};
    bool good = !ma_video_read(b.data, b.size, "x.mkv", &o, &c, &e);
    for (int k = 0; good && k < 12; k++) good = c.index[k] == k;
    for (int k = 2; good && k < 12; k += 3) good = !memcmp(c.rgb + (size_t)k * sizeof *scene, scene[k], sizeof *scene);
    ok(good, "every third frame is looked at %s", e.text);
    ma_clip_free(&c);
    expect(&b, "at a rate", (ma_clip_opts){.size = {.frames = 4, .fps = 20}, .every = 9}, MA_OK, INDEX(0, 0, 1, 1));
    expect(&b, "looped", (ma_clip_opts){.size.frames = 4, .start = 1.8, .when_short = MA_SHORT_LOOP, .every = 9}, MA_OK,
           INDEX(18, 19, 18, 19));
    ma_buf_free(&b);
}

/* Sets the matrix (a b; c d) in the mp4's track header: 16.16 numbers. */
static void set_matrix(ma_buf *b, int a, int bb, int c, int d) {
    char *m = find(b, "tkhd") + 4 + 40;
    const int put[] = {a, bb, 0, c, d};
    for (int i = 0; i < 5; i++) memcpy(m + 4 * i, (char[4]){(char)(put[i] >> 8), (char)put[i], 0, 0}, 4);
}

static void test_turns(void) {
    static const struct {
        int a, b, c, d, degrees;
        bool swap, flip_x, flip_y; /* shown (x, y) is stored at: flips of the result, then the exchange */
    } how[] = {{1, 0, 0, 1, 0, false, false, false},
               {0, 1, -1, 0, 90, true, true, false},
               {-1, 0, 0, -1, 180, false, true, true},
               {0, -1, 1, 0, 270, true, false, true},
               {-1, 0, 0, 1, 0, false, true, false}};
    ma_buf b = encode("mp4", H, W, 10);
    ma_clip_opts o = {.size.frames = 3};
    ma_clip up, c;
    ma_err e = {0};
    ok(!ma_video_read(b.data, b.size, "x.mp4", &o, &up, &e), "upright: read %s", e.text);
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        set_matrix(&b, how[i].a, how[i].b, how[i].c, how[i].d);
        if (!ok(!ma_video_read(b.data, b.size, "x.mp4", &o, &c, &e), "turn %zu: read %s", i, e.text)) continue;
        int64_t h = how[i].swap ? W : H, w = how[i].swap ? H : W, wrong = 0;
        ok(c.height == h && c.width == w && c.rotation == how[i].degrees, "turn %zu: %lldx%lld, %d degrees", i,
           (long long)c.height, (long long)c.width, c.rotation);
        for (int64_t y = 0; c.height == h && y < h; y++)
            for (int64_t x = 0; x < w; x++) {
                int64_t sx = how[i].flip_x ? w - 1 - x : x, sy = how[i].flip_y ? h - 1 - y : y;
                int64_t at = how[i].swap ? sx * W + sy : sy * W + sx;
                wrong += memcmp(c.rgb + (y * w + x) * 3, up.rgb + at * 3, 3) != 0;
            }
        ok(!wrong, "turn %zu: pixels (%lld wrong)", i, (long long)wrong);
        ma_clip_free(&c);
    }
    set_matrix(&b, 1, 1, -1, 1);
    ok(ma_video_read(b.data, b.size, "x.mp4", &o, &c, &e) && e.reason == MA_UNSUPPORTED, "45 degrees: %s", e.text);
    ma_clip_free(&up);
    ma_buf_free(&b);
}

static void test_fits(void) {
    ma_buf b = encode("mkv", H, W, 10);
    ma_err e = {0};
    ma_clip c;
    uint8_t cropped[48][48][3], want[24][24][3];
    ma_clip_opts o = {.size = {1, 24, 24, 0}};
    for (int y = 0; y < 48; y++) memcpy(cropped[y], scene[0][y][8], sizeof cropped[y]);
    ma_image_resize(&cropped[0][0][0], 48, 48, &want[0][0][0], 24, 24);
    ok(!ma_video_read(b.data, b.size, "x.mkv", &o, &c, &e) && !memcmp(c.rgb, want, sizeof want),
       "crop: the middle, then smaller");
    ok(c.crop[0] == 0 && c.crop[1] == 8 && c.crop[2] == 48 && c.crop[3] == 48, "crop: recorded");
    ma_clip_free(&c);
    o.fit = MA_FIT_PAD;
    ok(!ma_video_read(b.data, b.size, "x.mkv", &o, &c, &e) && c.crop[3] == 64 && c.height == 24, "pad: whole");
    ok(c.rgb[2 * 72] == 0 && c.rgb[21 * 72] == 0 && c.rgb[12 * 72] > 20 && c.rgb[3 * 72] > 20 && c.rgb[20 * 72] > 20,
       "pad: black above and below");
    ma_clip_free(&c);
    o.fit = MA_FIT_STRETCH;
    ma_image_resize(&scene[0][0][0][0], H, W, &want[0][0][0], 24, 24);
    ok(!ma_video_read(b.data, b.size, "x.mkv", &o, &c, &e) && !memcmp(c.rgb, want, sizeof want), "stretch: whole");
    ma_clip_free(&c);
    ma_buf_free(&b);
}

int main(void) {
    paint();
    test_round_trip();
    test_threads();
    test_y4m();
    test_refusals();
    test_mended_cuts();
    test_damage();
    test_choice();
    test_looked_at();
    test_turns();
    test_fits();
    return tap_done();
}
