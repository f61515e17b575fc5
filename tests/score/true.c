/* True clips of the toy world: their balls are where the tracker says, and they pass, as rendered, as H.264 and when
 * spoiled, at the toy world's own size and at the tools' default one. */
#include "../../common/score.h"
#include "../../common/video.h"
#include "../tap.h"
#include "spoil.h"

#include <string.h>

static const ma_clip_size SMALL = {17, 48, 48, 12}, LARGE = {49, 160, 240, 12};

enum { RENDERED, H264, SPOILED };
static const char *const ways[] = {"rendered", "H.264", "H.264 of spoiled clips"};

typedef struct tally {
    int clips, sa, pc, joint, camera, number;
    double off, centres; /* Σ squared distance of centres from the truth, pixels; how many */
    double seconds;
} tally;

/* Encoded and decoded. */
static int code(uint8_t *rgb, const ma_clip_size *n, ma_err *e) {
    ma_buf file = {0};
    ma_clip c = {0};
    int rc = ma_video_write(rgb, n->frames, n->height, n->width, n->fps, "mp4", 18, &file, e) ||
                     ma_video_read(file.data, file.size, "clip", &(ma_clip_opts){0}, &c, e)
                 ? -1
                 : 0;
    if (!rc) memcpy(rgb, c.rgb, (size_t)(n->frames * n->height * n->width * 3));
    ma_clip_free(&c);
    ma_buf_free(&file);
    return rc;
}

/* Centres of balls that are wholly seen, by the nearest track. */
static void compare(const ma_world *w, const ma_tracks *k, tally *sum) {
    for (int b = 0; b < w->start.balls; b++)
        for (int64_t t = 0; t < w->size.frames; t++) {
            double at[2], least = INFINITY;
            ma_world_where(w, t, b, at);
            if (at[1] < w->start.ball[b].radius || ma_world_visible(w, t, b) < 0.99) continue;
            for (int j = 0; j < k->n; j++) {
                const ma_seen *s = &k->track[j].at[t];
                least = fmin(least, pow(s->x - at[0], 2) + pow(s->y - at[1], 2));
            }
            sum->off += fmin(least, 100);
            sum->centres++;
        }
}

static int score_one(const char *key, const ma_clip_size *size, int balls, int way, tally *sum, ma_err *e) {
    const ma_world_opts o = {.size = *size, .balls = balls, .pan = 0.5, .motion_seed = 7, .look_seed = 8};
    const size_t frame = (size_t)(size->height * size->width * 3);
    ma_world *w = ma_world_make(&o, key, e);
    uint8_t *rgb = ma_alloc((size_t)size->frames, frame);
    char *text = w ? ma_world_caption(w) : NULL;
    ma_tracks tracks = {0};
    ma_caption said;
    ma_score s;
    int rc = rgb && text ? 0 : -1;
    for (int64_t t = 0; t < size->frames && !rc; t++) ma_world_render(w, t, rgb + (size_t)t * frame);
    if (!rc && way == SPOILED) spoil(rgb, size->frames, size->height, size->width, key);
    if (!rc && way != RENDERED) rc = code(rgb, size, e);
    const double from = ma_now();
    if (!rc) rc = ma_tracks_find(&tracks, rgb, size->frames, size->height, size->width, size->fps, e);
    if (!rc) rc = ma_caption_read(text, &said, e) || ma_score_of(&tracks, &said, &s, e) ? -1 : 0;
    sum->seconds += ma_now() - from;
    if (!rc) {
        sum->clips++;
        sum->sa += s.sa >= MA_SCORE_PASS;
        sum->pc += s.pc >= MA_SCORE_PASS;
        sum->joint += s.joint;
        sum->camera += s.camera;
        sum->number += tracks.n == w->start.balls && said.balls == w->start.balls && said.kind == w->start.kind;
        compare(w, &tracks, sum);
        for (int p = 0; p < MA_PARTS && !s.joint; p++)
            if (s.part[p] < MA_SCORE_PASS)
                printf("# %s: %s measures %.4f: %s\n", key, ma_part_name((ma_part)p), s.measured[p], text);
    }
    ma_tracks_free(&tracks);
    free(text);
    ma_release(rgb);
    ma_world_free(w);
    return rc;
}

static void test_clips(const ma_clip_size *size, int balls, int clips, int way, double least, double near) {
    tally sum = {0};
    ma_err e = {0};
    int rc = 0;
    for (int i = 0; i < clips && !rc; i++) {
        char key[32];
        snprintf(key, sizeof key, "true-%d", i);
        rc = score_one(key, size, balls, way, &sum, &e);
    }
    const double n = sum.clips, off = sqrt(sum.off / fmax(1, sum.centres));
    ok(!rc && sum.sa >= least * n && sum.pc >= least * n && sum.joint >= least * n,
       "%s, %lldx%lldx%lld: SA %d, PC %d, Joint %d of %d pass%s%s", ways[way], (long long)size->frames,
       (long long)size->height, (long long)size->width, sum.sa, sum.pc, sum.joint, sum.clips, rc ? ": " : "", e.text);
    ok(sum.number >= 0.99 * n && sum.camera >= 0.99 * n,
       "balls are as many as there are in %d, the camera goes as said in %d", sum.number, sum.camera);
    ok(off < near, "centres are %.3f pixels off", off);
    printf("# %.1f ms a clip\n", sum.seconds * 1e3 / fmax(1, n));
}

static void test_captions(void) {
    ma_caption c;
    ma_err e = {0};
    ok(!ma_caption_read("Two balls, one striped red and one cyan, slide, hit each other and slow down in front of a "
                        "striped wall, the camera pans left",
                        &c, &e) &&
           c.balls == 2 && c.kind == MA_WORLD_SLIDE && !strcmp(ma_colour_name(c.colour[0]), "red") &&
           !strcmp(ma_colour_name(c.colour[1]), "cyan") && c.pan == -1,
       "a caption is read");
    ok(ma_caption_read("a cat falls", &c, &e) && e.reason == MA_UNSUPPORTED, "one without a colour is refused: %s",
       e.text);
    e = (ma_err){0};
    ok(ma_caption_read("a red ball", &c, &e) && e.reason == MA_UNSUPPORTED, "one without a motion is refused: %s",
       e.text);
}

enum { NOISE, BLACK, RED, BARS, FORMS };

/* Nothing that is a clip, in sizes that are odd: a score comes out, and none that passes. */
static void test_nonsense(void) {
    static const ma_clip_size sizes[] = {{4, 16, 16, 8}, {5, 17, 33, 24}, {17, 48, 48, 12}, {9, 16, 300, 12}};
    static const char *const captions[] = {"a red ball falls", "a red ball swings", "a red ball slides",
                                           "a red ball rolls"};
    ma_rng g = ma_rng_make(3, "nonsense", 0, MA_RNG_TEST);
    int good = 0, all = 0;
    for (size_t i = 0; i < 4 * 4 * FORMS; i++) {
        const ma_clip_size *n = &sizes[i % 4];
        const int form = (int)(i / 4 % FORMS);
        const int64_t count = n->frames * n->height * n->width;
        uint8_t *rgb = ma_alloc((size_t)count, 3);
        ma_tracks tracks = {0};
        ma_caption said;
        ma_score s;
        ma_err e = {0};
        for (int64_t k = 0; k < count * 3; k++)
            rgb[k] = (uint8_t)(form == NOISE  ? ma_rng_below(&g, 256)
                               : form == RED  ? 250 * (k % 3 == 0)
                               : form == BARS ? 250 * (k / 15 % 3 == k % 3)
                                              : 0);
        int rc = ma_tracks_find(&tracks, rgb, n->frames, n->height, n->width, n->fps, &e) ||
                 ma_caption_read(captions[i / 16], &said, &e) || ma_score_of(&tracks, &said, &s, &e);
        good += !rc && s.sa >= 0 && s.sa < MA_SCORE_PASS && s.pc >= 0 && s.pc <= 1 && isfinite(tracks.flicker);
        all++;
        ma_tracks_free(&tracks);
        ma_release(rgb);
    }
    ok(good == all, "noise, black, one colour and bars show nothing: %d of %d", good, all);
}

int main(void) {
    test_captions();
    test_nonsense();
    test_clips(&SMALL, 2, 120, RENDERED, 0.95, 0.2);
    test_clips(&SMALL, 2, 200, H264, 0.95, 0.25);
    test_clips(&SMALL, 2, 120, SPOILED, 0.9, 0.35);
    test_clips(&LARGE, MA_WORLD_BALLS, 16, H264, 0.95, 0.4);
    return tap_done();
}
