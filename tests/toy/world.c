/* The toy world: momentum and energy, the room, and above all the flow: what it says of a pixel must be found in the
 * next picture. */
#include "../../common/world.h"
#include "../tap.h"
#include <string.h>

enum { F = 13, H = 96, W = 128 };
static const ma_clip_size size = {F, H, W, 12};

static void test_contact(void) {
    const ma_room open = {.left = -1e6, .right = 1e6, .floor = 1e6, .gravity = 0, .restitution = 1};
    ma_ball b[2] = {{.x = 0, .y = 0, .vx = 120, .vy = 10, .radius = 10},
                    {.x = 50, .y = 8, .vx = -40, .vy = -5, .radius = 15}};
    double m[2] = {pow(10, 3), pow(15, 3)}, before[3] = {0}, after[3] = {0};
    int touched = 0;
    for (int k = 0; k < 2; k++) {
        before[0] += m[k] * b[k].vx;
        before[1] += m[k] * b[k].vy;
        before[2] += m[k] * (b[k].vx * b[k].vx + b[k].vy * b[k].vy) / 2;
    }
    for (int s = 0; s < 480; s++) touched |= ma_world_step(b, 2, &open, 1.0 / 480);
    for (int k = 0; k < 2; k++) {
        after[0] += m[k] * b[k].vx;
        after[1] += m[k] * b[k].vy;
        after[2] += m[k] * (b[k].vx * b[k].vx + b[k].vy * b[k].vy) / 2;
    }
    ok(touched == 2 && b[0].vx < 0, "two balls meet and part");
    ok(fabs(after[0] - before[0]) < 1e-6 && fabs(after[1] - before[1]) < 1e-6, "momentum is kept");
    ok(fabs(after[2] / before[2] - 1) < 1e-12, "energy is kept when elastic");
    ok(hypot(b[0].x - b[1].x, b[0].y - b[1].y) > 25, "they do not overlap");
}

static void test_bounces(void) {
    const ma_room room = {.left = 0, .right = 1000, .floor = 200, .gravity = 300, .restitution = 0.8};
    ma_ball b = {.x = 500, .y = 50, .radius = 10};
    double highest = 200;
    bool up = false;
    for (int s = 0; s < 4800 && !(up && b.vy > 0); s++) {
        if (ma_world_step(&b, 1, &room, 1.0 / 480) & 1) up = true;
        if (up) highest = fmin(highest, b.y);
    }
    ok(fabs((190 - highest) / 140 - 0.64) < 0.02, "restitution 0.8 gives 0.64 of the height: %.4f",
       (190 - highest) / 140);
}

static double energy(const ma_world *w, const ma_ball *b) {
    double e = 0;
    for (int k = 0; k < w->balls; k++)
        e += pow(b[k].radius, 3) *
             ((b[k].vx * b[k].vx + b[k].vy * b[k].vy) / 2 + w->room.gravity * (w->room.floor - b[k].y));
    return e;
}

static void test_worlds(void) {
    int outside = 0, gained = 0, overlaps = 0, moving = 0, balls[MA_WORLD_BALLS + 1] = {0};
    ma_err e = {0};
    for (int n = 0; n < 60; n++) {
        char key[32];
        snprintf(key, sizeof key, "w%d", n);
        ma_world *w = ma_world_make(7, key, (ma_clip_size){60, H, W, 12}, 0.5, &e);
        ma_ball b[MA_WORLD_BALLS];
        memcpy(b, w->ball, sizeof b);
        double first = energy(w, b);
        for (int s = 0; s < 480 * 5; s++) ma_world_step(b, w->balls, &w->room, 1.0 / 480);
        gained += energy(w, b) > 1.001 * first;
        balls[w->balls]++;
        moving += w->pan != 0;
        for (int64_t t = 0; t < 60; t++)
            for (int k = 0; k < w->balls; k++) {
                const double *p = w->path[t * w->balls + k], r = w->ball[k].radius;
                double xy[2];
                ma_world_where(w, t, k, xy);
                outside += p[0] < w->room.left + r - 1e-9 || p[0] > w->room.right - r + 1e-9 || p[1] > H - r + 1e-9;
                outside += xy[0] < r - 1e-6 || xy[0] > W - r + 1e-6;
                for (int j = 0; j < k; j++) {
                    const double *q = w->path[t * w->balls + j];
                    overlaps += hypot(p[0] - q[0], p[1] - q[1]) < 0.8 * (r + w->ball[j].radius);
                }
            }
        ma_world_free(w);
    }
    ok(!outside, "balls stay in the room and in sight (%d do not)", outside);
    ok(!gained, "no world gains energy (%d do)", gained);
    ok(!overlaps, "balls do not pass through each other (%d times)", overlaps);
    ok(moving > 15 && moving < 45, "the camera moves in about half: %d of 60", moving);
    ok(!balls[0] && balls[1] && balls[2] && balls[3] && balls[4] && balls[5], "one to five balls");
}

/* What is seen at (x, y): a ball's number, or -1 for the wall; -2 near an edge of anything. */
static int seen(const ma_world *w, int64_t t, double x, double y) {
    int who = -1;
    for (int k = 0; k < w->balls; k++) {
        double xy[2];
        ma_world_where(w, t, k, xy);
        double d = hypot(x - xy[0], y - xy[1]) - w->ball[k].radius;
        if (fabs(d) < 2) return -2;
        if (d < 0) who = k;
    }
    return who;
}

static double sample(const uint8_t *rgb, double x, double y, int c) {
    int i = (int)floor(y - 0.5), j = (int)floor(x - 0.5);
    double v = y - 0.5 - i, u = x - 0.5 - j;
    const uint8_t *p = rgb + (i * W + j) * 3 + c, *q = p + W * 3;
    return (1 - v) * ((1 - u) * p[0] + u * p[3]) + v * ((1 - u) * q[0] + u * q[3]);
}

/* Mean difference between a picture and the next one looked up where the flow (and off, pixels beside it) says. on:
 * balls or the wall. */
static double warp_error(bool on_balls, double off, int64_t *count) {
    static uint8_t now[H * W * 3], next[H * W * 3];
    static float uv[H * W * 2];
    double sum = 0;
    ma_err e = {0};
    *count = 0;
    for (int n = 0; n < 12; n++) {
        ma_world *w = ma_world_make(3, (char[]){'k', (char)('a' + n), 0}, size, 0.7, &e);
        for (int64_t t = 0; t + 1 < F; t += 3) {
            ma_world_render(w, t, now);
            ma_world_render(w, t + 1, next);
            ma_world_flow(w, t, t + 1, uv);
            for (int i = 0; i < H * W; i++) {
                double x = i % W + 0.5, y = i / W + 0.5, tx = x + (double)uv[2 * i] + off,
                       ty = y + (double)uv[2 * i + 1] + off;
                int who = seen(w, t, x, y);
                if (who == -2 || (who >= 0) != on_balls || tx < 1 || ty < 1 || tx > W - 2 || ty > H - 2) continue;
                if (seen(w, t + 1, tx, ty) != who) continue; /* hidden by then */
                for (int c = 0; c < 3; c++) sum += fabs(sample(next, tx, ty, c) - now[3 * i + c]);
                ++*count;
            }
        }
        ma_world_free(w);
    }
    return sum / (3 * (double)*count);
}

static void test_flow(void) {
    for (int balls = 0; balls < 2; balls++) {
        int64_t n, m;
        double exact = warp_error(balls, 0, &n), beside = warp_error(balls, 0.7, &m);
        const char *what = balls ? "balls" : "the wall";
        ok(n > 5000 && exact < 2.5, "flow of %s: the next picture agrees (%.3f of 255 over %lld pixels)", what, exact,
           (long long)n);
        ok(exact < beside / 3, "flow of %s: 0.7 pixels beside it would not (%.3f)", what, beside);
    }
}

static void test_same(void) {
    static uint8_t a[H * W * 3], b[H * W * 3];
    ma_err e = {0};
    ma_world *v = ma_world_make(5, "clip-000003", size, 0.5, &e), *w = ma_world_make(5, "clip-000003", size, 0.5, &e);
    ma_world_render(v, F - 1, a);
    ma_world_render(w, F - 1, b);
    ok(!memcmp(a, b, sizeof a), "the same seed and key: the same picture");
    char *words = ma_world_caption(v);
    ok(words && strstr(words, "ball") && strstr(words, ma_world_colour(v->ball[0].colour)) && strstr(words, "fall"),
       "caption: %s", words);
    free(words);
    ma_world_free(w);
    w = ma_world_make(6, "clip-000003", size, 0.5, &e);
    ma_world_render(w, F - 1, b);
    ok(memcmp(a, b, sizeof a), "another seed: another picture");
    ma_world_free(v);
    ma_world_free(w);
}

int main(void) {
    test_contact();
    test_bounces();
    test_worlds();
    test_flow();
    test_same();
    return tap_done();
}
