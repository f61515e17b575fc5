/* The toy world: the laws of its four kinds, the room, the words, the colours, and above all the flow: what it says of
 * a pixel must be found in the next picture. */
#include "../../common/world.h"
#include "../tap.h"
#include <string.h>

enum { F = 13, H = 96, W = 128 };
static const ma_clip_size size = {F, H, W, 12};
static const double STEP = 1.0 / 480;

static ma_world *make_seeds(unsigned kinds, int n, ma_clip_size clip, double pan, uint64_t motion, uint64_t look) {
    char key[32];
    ma_err e = {0};
    snprintf(key, sizeof key, "w%d", n);
    return ma_world_make(&(ma_world_opts){clip, kinds, MA_WORLD_BALLS, pan, motion, look}, key, &e);
}

/* World n of one kind; -1: any. */
static ma_world *make(int kind, int n, ma_clip_size clip, double pan) {
    return make_seeds(kind < 0 ? 0 : 1u << kind, n, clip, pan, 7, 7);
}

/* --- laws --- */

static double mass(const ma_ball *b) {
    return pow(b->radius, 3);
}

/* Momentum along x and y, and energy, of all balls. */
static void sums(const ma_scene *s, double out[3]) {
    memset(out, 0, 3 * sizeof *out);
    for (int k = 0; k < s->balls; k++) {
        const ma_ball *b = &s->ball[k];
        out[0] += mass(b) * b->vx;
        out[1] += mass(b) * b->vy;
        out[2] += mass(b) * ((b->vx * b->vx + b->vy * b->vy) / 2 + s->room.gravity * (s->room.floor - b->y));
    }
}

static unsigned run(ma_scene *s, double seconds) {
    unsigned events = 0;
    for (int i = 0; i < (int)lrint(seconds / STEP); i++) events |= ma_world_step(s, STEP);
    return events;
}

static const ma_room open_room = {.left = -1e6, .right = 1e6, .floor = 1e6, .gravity = 0, .restitution = 1};

static void test_fall(void) {
    ma_scene s = {.kind = MA_WORLD_FALL, .room = open_room, .balls = 2};
    double before[3], after[3];
    s.ball[0] = (ma_ball){.x = 0, .y = 0, .vx = 120, .vy = 10, .radius = 10};
    s.ball[1] = (ma_ball){.x = 50, .y = 8, .vx = -40, .vy = -5, .radius = 15};
    sums(&s, before);
    unsigned events = run(&s, 1);
    sums(&s, after);
    ok(events == MA_WORLD_MET && s.ball[0].vx < 0, "fall: two balls meet and part");
    ok(fabs(after[0] - before[0]) < 1e-6 && fabs(after[1] - before[1]) < 1e-6, "fall: momentum is kept");
    ok(fabs(after[2] / before[2] - 1) < 1e-12, "fall: energy is kept when elastic");
    ok(hypot(s.ball[0].x - s.ball[1].x, s.ball[0].y - s.ball[1].y) > 25, "fall: they do not overlap");

    ma_scene one = {.kind = MA_WORLD_FALL, .room = {0, 1000, 200, 300, 0.8, 0}, .balls = 1};
    one.ball[0] = (ma_ball){.x = 500, .y = 50, .radius = 10};
    double highest = 200;
    bool up = false;
    for (int i = 0; i < 4800 && !(up && one.ball[0].vy > 0); i++) {
        if (ma_world_step(&one, STEP) & MA_WORLD_BOUNCED) up = true;
        if (up) highest = fmin(highest, one.ball[0].y);
    }
    ok(fabs((190 - highest) / 140 - 0.64) < 0.02, "fall: restitution 0.8 gives 0.64 of the height: %.4f",
       (190 - highest) / 140);
}

static void test_pendulum(void) {
    int drifts = 0, slack = 0;
    for (int n = 0; n < 30; n++) {
        ma_world *w = make(MA_WORLD_PENDULUM, n, size, 0.5);
        ma_scene s = w->start;
        double before[3], after[3];
        sums(&s, before);
        run(&s, 20);
        sums(&s, after);
        double scale = mass(&s.ball[0]) * s.room.gravity * s.length;
        drifts += !(fabs(after[2] - before[2]) < 1e-7 * scale);
        slack += !(fabs(hypot(s.ball[0].x - s.pivot[0], s.ball[0].y - s.pivot[1]) / s.length - 1) < 1e-12);
        ma_world_free(w);
    }
    ok(!drifts && !slack, "pendulum: energy and the string's length are kept for 20 s (%d, %d not)", drifts, slack);

    ma_scene s = {.kind = MA_WORLD_PENDULUM, .room = open_room, .balls = 1, .length = 100, .angle = 0.5};
    s.room.gravity = 981;
    double period = 2 * M_PI * sqrt(100 / 981.0) * (1 + 0.25 / 16 + 11 * 0.0625 / 3072), time = 0, last = s.spin;
    for (int turns = 0; turns < 20; time += STEP) { /* from one rest to another is half a period */
        ma_world_step(&s, STEP);
        turns += s.spin * last < 0;
        last = s.spin;
    }
    ok(fabs(time / 10 - period) < 1e-3, "pendulum: the period by the elliptic integral: %.4f s", time / 10);
}

static void test_slide(void) {
    ma_scene s = {.kind = MA_WORLD_SLIDE, .room = {-1e6, 1e6, 200, 300, 0.8, 0.5}, .balls = 1};
    s.ball[0] = (ma_ball){.x = 0, .y = 190, .vx = 200, .radius = 10};
    run(&s, 1);
    ok(fabs(s.ball[0].vx - 50) < 1e-9 && fabs(s.ball[0].x - 125) < 1e-9, "slide: it slows down by μg");
    unsigned events = run(&s, 1);
    ok(s.ball[0].vx == 0 && fabs(s.ball[0].x - 200 * 200 / 300.0) < 1e-9 && events == MA_WORLD_STOPPED,
       "slide: it comes to rest after v²/2μg: %.6f", s.ball[0].x);

    ma_scene two = {.kind = MA_WORLD_SLIDE, .room = {-1e6, 1e6, 200, 0, 0.8, 0.5}, .balls = 2};
    double before[3], after[3];
    two.ball[0] = (ma_ball){.x = 100, .y = 195, .vx = -20, .radius = 5};
    two.ball[1] = (ma_ball){.x = 0, .y = 188, .vx = 60, .radius = 12};
    sums(&two, before);
    events = run(&two, 2);
    sums(&two, after);
    ok(events == MA_WORLD_MET && fabs(after[0] - before[0]) < 1e-6, "slide: momentum is kept by a collision");
    ok(fabs(two.ball[0].vx - two.ball[1].vx - 0.8 * 80) < 1e-9, "slide: they part at 0.8 of the speed");
    ok(two.ball[0].y == 195 && two.ball[1].y == 188, "slide: they stay on the floor");
}

static void test_pass(void) {
    int uneven = 0, begins = 0, hidden = 0, ends = 0, shares = 0;
    static const ma_clip_size clip = {17, 48, 48, 12};
    for (int n = 0; n < 40; n++) {
        ma_world *w = make(MA_WORLD_PASS, n, clip, 0.5);
        double least = 1;
        for (int64_t t = 0; t < clip.frames; t++) {
            const double r = w->start.ball[0].radius, share = ma_world_visible(w, t, 0);
            double xy[2], seen = 0, all = 0;
            ma_world_where(w, t, 0, xy);
            least = fmin(least, share);
            uneven += t > 0 && fabs(w->path[t][0] - w->path[t - 1][0] - w->start.ball[0].vx / clip.fps) > 1e-9;
            for (double y = xy[1] - r; y < xy[1] + r; y += 0.25)
                for (double x = xy[0] - r; x < xy[0] + r; x += 0.25) {
                    if (hypot(x - xy[0], y - xy[1]) >= r) continue;
                    seen += ma_world_seen(w, t, x, y) == 0;
                    all++;
                }
            shares += fabs(seen / all - share) > 0.03;
        }
        begins += ma_world_visible(w, 0, 0) > 0.999;
        ends += ma_world_visible(w, clip.frames - 1, 0) > 0.999 && w->events & MA_WORLD_EMERGED;
        hidden += least < 0.2;
        ma_world_free(w);
    }
    ok(!uneven, "pass: the speed is constant");
    ok(begins == 40 && hidden > 36 && ends == 40, "pass: seen, hidden (in %d of 40) and seen again", hidden);
    ok(!shares, "pass: the share that is visible is the share that is drawn (%d times not)", shares);
}

/* --- worlds of all kinds --- */

static void test_worlds(void) {
    int outside = 0, gained = 0, overlaps = 0, moving = 0, balls[MA_WORLD_BALLS + 1] = {0}, kinds[MA_WORLD_KINDS] = {0};
    for (int n = 0; n < 240; n++) {
        ma_world *w = make(-1, n, (ma_clip_size){60, H, W, 12}, 0.5);
        const ma_room *room = &w->start.room;
        ma_scene s = w->start;
        double first[3], last[3];
        sums(&s, first);
        run(&s, 59 / 12.0);
        sums(&s, last);
        gained += last[2] > 1.001 * first[2];
        kinds[s.kind]++;
        if (s.kind == MA_WORLD_FALL) balls[s.balls]++;
        moving += w->pan != 0;
        for (int64_t t = 0; t < 60; t++)
            for (int k = 0; k < s.balls; k++) {
                const double *p = w->path[t * s.balls + k], r = s.ball[k].radius;
                double xy[2];
                ma_world_where(w, t, k, xy);
                outside += p[0] < room->left + r - 1e-9 || p[0] > room->right - r + 1e-9 || p[1] > H - r + 1e-9;
                outside += xy[0] < r - 1e-6 || xy[0] > W - r + 1e-6;
                for (int j = 0; j < k; j++) {
                    const double *q = w->path[t * s.balls + j];
                    overlaps += hypot(p[0] - q[0], p[1] - q[1]) < 0.8 * (r + s.ball[j].radius);
                }
            }
        ma_world_free(w);
    }
    ok(!outside, "balls stay in the room and in sight (%d do not)", outside);
    ok(!gained, "no world gains energy (%d do)", gained);
    ok(!overlaps, "balls do not pass through each other (%d times)", overlaps);
    ok(moving > 80 && moving < 160, "the camera moves in about half: %d of 240", moving);
    ok(!balls[0] && balls[1] && balls[2] && balls[3] && balls[4] && balls[5], "one to five balls fall");
    ok(kinds[0] > 35 && kinds[1] > 35 && kinds[2] > 35 && kinds[3] > 35, "kinds are drawn evenly: %d %d %d %d",
       kinds[0], kinds[1], kinds[2], kinds[3]);
}

static void test_choice(void) {
    unsigned kinds;
    int wrong = 0;
    ma_err e = {0};
    ok(!ma_world_parse_kinds("pass,fall", &kinds, &e) && kinds == (1u << MA_WORLD_FALL | 1u << MA_WORLD_PASS),
       "a list of kinds");
    for (int n = 0; n < 50; n++) {
        ma_world *w = make_seeds(kinds, n, size, 0, 1, 1);
        wrong += w->start.kind != MA_WORLD_FALL && w->start.kind != MA_WORLD_PASS;
        ma_world_free(w);
    }
    ok(!wrong, "only what the list names is drawn");
    static const char *const bad[] = {"fall,fly", "", ",fall", "fal", "falls", "fall slide"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int rc = ma_world_parse_kinds(bad[i], &kinds, &e);
        ok(rc == -1 && e.reason == MA_USAGE, "not a list: %s", e.text);
        ma_err_clear(&e);
    }
}

/* Sizes and lengths at which something could be drawn outside of its bounds. */
static void test_sizes(void) {
    static const ma_clip_size odd[] = {{2, 16, 16, 1}, {3, 16, 400, 1000}, {3, 400, 16, 24}, {400, 32, 32, 1}};
    int bad = 0;
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        for (int n = 0; n < 40; n++) {
            ma_world *w = make(n % MA_WORLD_KINDS, n, odd[i], 1);
            for (int64_t t = 0; t < odd[i].frames; t++)
                for (int k = 0; k < w->start.balls; k++) {
                    double xy[2], r = w->start.ball[k].radius;
                    ma_world_where(w, t, k, xy);
                    bad += !(xy[0] > r - 1e-6 && xy[0] < (double)odd[i].width - r + 1e-6 &&
                             xy[1] < (double)odd[i].height - r + 1e-6);
                }
            ma_world_free(w);
        }
    ok(!bad, "clips of any shape and length keep their balls in sight (%d times not)", bad);
}

/* --- flow --- */

/* Two pixels around the place are all of one thing: which; NOTHING: an edge is near. */
enum { NOTHING = -9 };
static int seen_whole(const ma_world *w, int64_t t, double x, double y) {
    const int who = ma_world_seen(w, t, x, y);
    for (int i = 0; i < 8; i++)
        if (ma_world_seen(w, t, x + 2 * cos(i * M_PI / 4), y + 2 * sin(i * M_PI / 4)) != who) return NOTHING;
    return who;
}

static double sample(const uint8_t *rgb, double x, double y, int c) {
    int i = (int)floor(y - 0.5), j = (int)floor(x - 0.5);
    double v = y - 0.5 - i, u = x - 0.5 - j;
    const uint8_t *p = rgb + (i * W + j) * 3 + c, *q = p + W * 3;
    return (1 - v) * ((1 - u) * p[0] + u * p[3]) + v * ((1 - u) * q[0] + u * q[3]);
}

/* Differences between a picture and the next one looked up where the flow says, and 0.7 pixels beside it. */
typedef struct tally {
    double exact, beside;
    int64_t n;
} tally;

static void compare(const ma_world *w, int64_t t, tally *balls, tally *rest) {
    static uint8_t now[H * W * 3], next[H * W * 3];
    static float uv[H * W * 2];
    ma_world_render(w, t, now);
    ma_world_render(w, t + 1, next);
    ma_world_flow(w, t, t + 1, uv);
    for (int i = 0; i < H * W; i++) {
        double x = i % W + 0.5, y = i / W + 0.5, tx = x + (double)uv[2 * i], ty = y + (double)uv[2 * i + 1];
        if (tx < 1 || ty < 1 || tx > W - 3 || ty > H - 3) continue;
        int who = seen_whole(w, t, x, y);
        if (who == NOTHING || seen_whole(w, t + 1, tx, ty) != who) continue; /* hidden by then */
        tally *to = who >= 0 ? balls : &rest[-who];
        for (int c = 0; c < 3; c++) {
            to->exact += fabs(sample(next, tx, ty, c) - now[3 * i + c]);
            to->beside += fabs(sample(next, tx + 0.7, ty + 0.7, c) - now[3 * i + c]);
            to->n++;
        }
    }
}

static void check_flow(const tally *t, int64_t least, const char *kind, const char *what) {
    double exact = t->exact / (double)t->n, beside = t->beside / (double)t->n;
    ok(t->n > least && exact < 2.5, "%s: flow of %s: the next picture agrees (%.3f of 255 over %lld)", kind, what,
       exact, (long long)t->n);
    ok(exact < beside / 2.5, "%s: flow of %s: 0.7 pixels beside it would not (%.3f)", kind, what, beside);
}

static void test_flow(void) {
    for (int kind = 0; kind < MA_WORLD_KINDS; kind++) {
        tally balls = {0}, rest[4] = {0};
        const char *name = ma_world_kind_name(kind);
        for (int n = 0; n < 8; n++) {
            ma_world *w = make(kind, n, size, 0.7);
            for (int64_t t = 0; t + 1 < F; t += 3) compare(w, t, &balls, rest);
            ma_world_free(w);
        }
        check_flow(&balls, 5000, name, "balls");
        check_flow(&rest[-MA_WORLD_WALL], 100000, name, "the wall");
        if (kind == MA_WORLD_PASS) check_flow(&rest[-MA_WORLD_PILLAR], 10000, name, "the pillar");
    }
}

/* A string has no texture and few pixels: what the flow says of it is checked against its geometry. */
static void test_string(void) {
    static float uv[H * W * 2];
    int n = 0, bad = 0;
    for (int k = 0; k < 8; k++) {
        ma_world *w = make(MA_WORLD_PENDULUM, k, size, 0.5);
        const ma_scene *s = &w->start;
        for (int64_t t = 0; t + 2 < F; t += 3) {
            const double *from = w->path[t], *to = w->path[t + 2], camera = w->pan * (double)t;
            ma_world_flow(w, t, t + 2, uv);
            for (int i = 0; i < H * W; i++) {
                double x = i % W + 0.5, y = i / W + 0.5;
                if (ma_world_seen(w, t, x, y) != MA_WORLD_STRING) continue;
                double px = x + camera - s->pivot[0], py = y - s->pivot[1];
                double qx = px + (double)uv[2 * i] + 2 * w->pan, qy = py + (double)uv[2 * i + 1];
                double ax = from[0] - s->pivot[0], ay = from[1] - s->pivot[1], bx = to[0] - s->pivot[0],
                       by = to[1] - s->pivot[1];
                n++; /* as far along the string, and on the same side of it */
                bad += fabs(px * ax + py * ay - qx * bx - qy * by) > 1e-4 * s->length * s->length ||
                       fabs(px * ay - py * ax - qx * by + qy * bx) > 1e-4 * s->length * s->length;
            }
        }
        ma_world_free(w);
    }
    ok(n > 500 && !bad, "the string turns around its pivot: %d of %d pixels do not", bad, n);
}

/* What is nearer hides what is farther: pillar, balls, string, wall. */
static void test_order(void) {
    int wrong = 0, hidden = 0;
    for (int n = 0; n < 20; n++) {
        ma_world *w = make(MA_WORLD_PASS, n, size, 0.5), *p = make(MA_WORLD_PENDULUM, n, size, 0.5);
        for (int64_t t = 0; t < F; t++) {
            const double *pillar = w->start.pillar, camera = w->pan * (double)t;
            double xy[2];
            ma_world_where(w, t, 0, xy);
            bool behind = xy[0] + camera > pillar[0] && xy[0] + camera < pillar[2];
            hidden += behind;
            wrong += ma_world_seen(w, t, xy[0], xy[1]) != (behind ? MA_WORLD_PILLAR : 0);
            ma_world_where(p, t, 0, xy);
            wrong += ma_world_seen(p, t, xy[0], xy[1]) != 0; /* the string ends there */
            double px = p->start.pivot[0] - p->pan * (double)t, py = p->start.pivot[1];
            wrong += ma_world_seen(p, t, (px + xy[0]) / 2, (py + xy[1]) / 2) != MA_WORLD_STRING;
        }
        ma_world_free(w);
        ma_world_free(p);
    }
    ok(!wrong && hidden > 40, "the pillar hides the ball (%d frames), the ball the string (%d wrong)", hidden, wrong);
}

/* --- looks --- */

static double chroma(const uint8_t *p) {
    return fmax(fmax(p[0], p[1]), p[2]) - fmin(fmin(p[0], p[1]), p[2]);
}

static double hue(const uint8_t *p) {
    double d = chroma(p), r = p[0], g = p[1], b = p[2];
    double sixth = r >= g && r >= b ? (g - b) / d : g >= b ? 2 + (b - r) / d : 4 + (r - g) / d;
    return fmod(60 * sixth + 360, 360);
}

/* The name that a hue goes by. */
static const char *hue_name(double degrees) {
    static const struct {
        const char *name;
        double at;
    } hues[] = {{"red", 0},    {"orange", 28}, {"yellow", 54}, {"green", 132},
                {"cyan", 184}, {"blue", 228},  {"purple", 281}};
    const char *best = "";
    double nearest = 360;
    for (size_t i = 0; i < sizeof hues / sizeof *hues; i++) {
        double d = fabs(remainder(degrees - hues[i].at, 360));
        if (d < nearest) nearest = d, best = hues[i].name;
    }
    return best;
}

static void test_colours(void) {
    static const ma_clip_size clip = {3, 48, 48, 12};
    static uint8_t rgb[48 * 48 * 3];
    double dullest = 255, loudest = 0;
    int misnamed = 0, pixels = 0;
    for (int n = 0; n < 300; n++) {
        ma_world *w = make(-1, n, clip, 0.5);
        ma_world_render(w, 1, rgb);
        for (int i = 0; i < 48 * 48; i++) {
            double x = i % 48 + 0.5, y = i / 48 + 0.5;
            int who = seen_whole(w, 1, x, y);
            if (who == NOTHING) continue;
            double c = chroma(rgb + 3 * i);
            if (who < 0) {
                loudest = fmax(loudest, c);
                continue;
            }
            dullest = fmin(dullest, c);
            pixels++;
            misnamed += strcmp(hue_name(hue(rgb + 3 * i)), ma_world_colour_name(w->looks.ball[who].colour)) != 0;
        }
        ma_world_free(w);
    }
    ok(loudest <= 40 && dullest > 60, "balls are of colour, all else is nearly grey: at least %.0f, at most %.0f",
       dullest, loudest);
    ok(pixels > 10000 && !misnamed, "every pixel of a ball has its hue: %d of %d do not", misnamed, pixels);
}

static void test_seeds(void) {
    static uint8_t a[H * W * 3], b[H * W * 3];
    ma_world *one = make_seeds(0, 3, size, 0.5, 5, 5), *same = make_seeds(0, 3, size, 0.5, 5, 5);
    ma_world_render(one, F - 1, a);
    ma_world_render(same, F - 1, b);
    ok(!memcmp(a, b, sizeof a), "the same seeds and key: the same picture");
    int moves = 0, looks = 0, other = 0;
    for (uint64_t seed = 6; seed < 26; seed++) {
        ma_world *v = make_seeds(0, 3, size, 0.5, 5, seed), *u = make_seeds(0, 3, size, 0.5, seed, 5);
        moves += !memcmp(&v->start, &one->start, sizeof v->start) && v->pan == one->pan && v->events == one->events &&
                 !memcmp(v->path, one->path, (size_t)(F * v->start.balls) * sizeof *v->path);
        looks += !memcmp(&u->looks, &one->looks, sizeof u->looks);
        ma_world_render(v, F - 1, b);
        other += memcmp(a, b, sizeof a) != 0 && memcmp(&u->start, &one->start, sizeof u->start) != 0 &&
                 memcmp(&v->looks, &one->looks, sizeof v->looks) != 0;
        ma_world_free(v);
        ma_world_free(u);
    }
    ok(moves == 20, "one motion in many looks");
    ok(looks == 20, "one look in many motions");
    ok(other == 20, "another seed: another picture");
    ma_world_free(one);
    ma_world_free(same);
}

/* --- words --- */

/* Whether a ball's fall is broken before the last frame but one, by its path alone. */
static bool path_bounces(const ma_world *w) {
    const double drop = w->start.room.gravity / (size.fps * size.fps);
    for (int64_t t = 1; t + 2 < F; t++)
        if (fabs(w->path[t + 1][1] - 2 * w->path[t][1] + w->path[t - 1][1] - drop) > 1e-9) return true;
    return false;
}

/* What the caption of a world with one ball should say of it, by its path alone. */
static const char *says(const ma_world *w) {
    const double(*p)[2] = (const double(*)[2])w->path;
    switch (w->start.kind) {
    case MA_WORLD_FALL: return path_bounces(w) ? " ball falls and bounces in front" : " ball falls in front";
    case MA_WORLD_SLIDE:
        return p[F - 1][0] == p[F - 2][0] ? " ball slides to a stop in front" : " ball slides and slows down in front";
    case MA_WORLD_PASS: return " ball rolls behind a pillar and comes out in front";
    default: return " ball swings on a string in front";
    }
}

static void test_captions(void) {
    int wrong = 0, single = 0;
    for (int n = 0; n < 200; n++) {
        static const char *const counts[] = {"", "a", "two balls", "three balls", "four balls", "five balls"};
        ma_world *w = make(-1, n, size, 0.5);
        char *words = ma_world_caption(w), paint[64];
        const char *last = words, *camera = strstr(words, ", the camera pans ");
        bool good = !strncmp(words, counts[w->start.balls], strlen(counts[w->start.balls]));
        for (int k = 0; good && k < w->start.balls; k++) { /* in order */
            const ma_paint *p = &w->looks.ball[k];
            snprintf(paint, sizeof paint, p->pattern ? " %s %s" : "%.0s %s", ma_world_pattern_name(p->pattern),
                     ma_world_colour_name(p->colour));
            last = strstr(last, paint);
            good = last++;
        }
        snprintf(paint, sizeof paint, "in front of a %s wall", ma_world_wall_name(w->looks.wall));
        good = good && strstr(words, paint);
        good = good && (w->pan == 0 ? !camera : camera && !strcmp(camera + 18, w->pan > 0 ? "right" : "left"));
        if (w->start.balls == 1) single++, good = good && strstr(words, says(w));
        if (w->start.balls > 1) good = good && !strstr(words, "hit each other") == !(w->events & MA_WORLD_MET);
        if (!good && !wrong++) printf("# %s\n", words);
        free(words);
        ma_world_free(w);
    }
    ok(!wrong && single > 100, "captions name number, patterns, colours, motion, wall and camera (%d do not)", wrong);
}

int main(void) {
    test_fall();
    test_pendulum();
    test_slide();
    test_pass();
    test_worlds();
    test_choice();
    test_sizes();
    test_flow();
    test_string();
    test_order();
    test_colours();
    test_seeds();
    test_captions();
    return tap_done();
}
