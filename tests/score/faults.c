/* Clips with one known fault each, painted here: the fault must bring down the score that it belongs to, by the part
 * that it belongs to, and no other. True clips of the same scenes pass. Balls move as the toy world's own steps say. */
#include "../../common/score.h"
#include "../tap.h"
#include "spoil.h"

#include <string.h>

enum { F = 17, S = 48, BALLS = 2 };
static const double FPS = 12;

static const double RED[3] = {225, 30, 36}, BLUE[3] = {35, 75, 235};

/* A ball of the clip, frame by frame. */
typedef struct actor {
    double x[F], y[F], radius[F];
    const double *colour[F];
    bool there[F];
} actor;

typedef struct clip {
    int balls;
    actor ball[BALLS];
    double pillar[2]; /* from … to, x; both 0: none */
} clip;

/* ---- scenes */

/* Lets a scene run and notes where its balls are. */
static void play(ma_scene s, clip *c) {
    static const double *const colours[BALLS] = {RED, BLUE};
    memset(c, 0, sizeof *c);
    c->balls = s.balls;
    if (s.kind == MA_WORLD_PASS) memcpy(c->pillar, (double[2]){s.pillar[0], s.pillar[2]}, sizeof c->pillar);
    for (int t = 0; t < F; t++) {
        for (int k = 0; k < s.balls; k++) {
            c->ball[k].x[t] = s.ball[k].x;
            c->ball[k].y[t] = s.ball[k].y;
            c->ball[k].radius[t] = s.ball[k].radius;
            c->ball[k].colour[t] = colours[k];
            c->ball[k].there[t] = true;
        }
        for (int i = 0; i < 40; i++) ma_world_step(&s, 1 / (FPS * 40));
    }
}

static const ma_room ROOM = {.left = 0, .right = S, .floor = S, .gravity = 60, .restitution = 0.85, .friction = 0.35};

static void fall(clip *c) {
    play((ma_scene){.kind = MA_WORLD_FALL, .room = ROOM, .balls = 1, .ball = {{12, 10, 10, 0, 5.5}}}, c);
}

/* They meet in the air, and part. */
static void meet(clip *c) {
    play(
        (ma_scene){
            .kind = MA_WORLD_FALL, .room = ROOM, .balls = 2, .ball = {{8, 20, 24, -25, 5}, {40, 20, -24, -25, 6}}},
        c);
}

static void pendulum(clip *c) {
    ma_scene s = {.kind = MA_WORLD_PENDULUM, .room = ROOM, .balls = 1, .ball = {{.radius = 5}}, .pivot = {24, 3}};
    s.length = 26;
    s.room.gravity = 26 * pow(2 * M_PI / 1.7, 2);
    s.angle = 0.8;
    s.ball[0].x = s.pivot[0] + s.length * sin(s.angle);
    s.ball[0].y = s.pivot[1] + s.length * cos(s.angle);
    play(s, c);
}

static void slide(clip *c) {
    play((ma_scene){.kind = MA_WORLD_SLIDE, .room = ROOM, .balls = 1, .ball = {{8, S - 5, 32, 0, 5}}}, c);
}

static void pass(clip *c) {
    play(
        (ma_scene){
            .kind = MA_WORLD_PASS, .room = ROOM, .balls = 1, .ball = {{6, S - 5, 27, 0, 5}}, .pillar = {18, 10, 30, S}},
        c);
}

/* ---- faults */

static void none(clip *c) {
    (void)c;
}

static void change_colour(clip *c) {
    for (int t = 9; t < F; t++) c->ball[0].colour[t] = BLUE;
}

static void vanish(clip *c) {
    for (int t = 11; t < F; t++) c->ball[0].there[t] = false;
}

static void vanish_awhile(clip *c) {
    for (int t = 6; t < 10; t++) c->ball[0].there[t] = false;
}

static void float_down(clip *c) {
    for (int t = 0; t < F; t++) c->ball[0].y[t] = 10 + 1.2 * t;
}

static void hang(clip *c) {
    for (int t = 0; t < F; t++) {
        c->ball[0].x[t] = c->ball[0].x[0];
        c->ball[0].y[t] = c->ball[0].y[0];
    }
}

static void teleport(clip *c) {
    for (int t = 5; t < F; t++) c->ball[0].x[t] += 16;
}

static void grow(clip *c) {
    for (int t = 0; t < F; t++) c->ball[0].radius[t] *= 1 + 0.05 * t;
}

static void fall_up(clip *c) {
    for (int t = 0; t < F; t++) c->ball[0].y[t] = fmax(6, S - 6 - 60 * (t / FPS) * (t / FPS) / 2);
}

static void bounce_up(clip *c) {
    ma_room room = ROOM;
    room.restitution = 1.5;
    play((ma_scene){.kind = MA_WORLD_FALL, .room = room, .balls = 1, .ball = {{20, 24, 3, 0, 5}}}, c);
}

/* A ball that was not there. */
static void appear(clip *c) {
    c->ball[1] = c->ball[0];
    c->balls = 2;
    for (int t = 0; t < F; t++) {
        c->ball[1].there[t] = t > 7;
        c->ball[1].colour[t] = BLUE;
        c->ball[1].x[t] = S - 6;
    }
}

static void pass_through(clip *c) {
    clip other;
    ma_scene s = {.kind = MA_WORLD_FALL, .room = ROOM, .balls = 1, .ball = {{8, 20, 24, -25, 5}}};
    play(s, &other);
    c->ball[0] = other.ball[0];
    s.ball[0] = (ma_ball){40, 20, -24, -25, 6};
    play(s, &other);
    c->ball[1] = other.ball[0];
    for (int t = 0; t < F; t++) c->ball[1].colour[t] = BLUE;
}

static void backwards(clip *c) {
    for (int t = 0; t < F / 2; t++) {
        const double x = c->ball[0].x[t];
        c->ball[0].x[t] = c->ball[0].x[F - 1 - t];
        c->ball[0].x[F - 1 - t] = x;
    }
}

static void keep_on(clip *c) {
    for (int t = 0; t < F; t++) c->ball[0].x[t] = 8 + 2 * t;
}

static void lift(clip *c) {
    for (int t = 0; t < F; t++) c->ball[0].y[t] -= 12;
}

/* To and fro at one speed. */
static void swing_evenly(clip *c) {
    for (int t = 0; t < F; t++) {
        const double angle = 0.8 - 0.2 * (t < 9 ? t : 16 - t);
        c->ball[0].x[t] = 24 + 26 * sin(angle);
        c->ball[0].y[t] = 3 + 26 * cos(angle);
    }
}

static void stay_hidden(clip *c) {
    for (int t = 9; t < F; t++) c->ball[0].there[t] = false;
}

static void take_pillar_away(clip *c) {
    c->pillar[1] = c->pillar[0];
}

/* Behind the pillar it gains four frames. */
static void come_early(clip *c) {
    for (int t = 8; t < F; t++) c->ball[0].x[t] += 9;
}

/* ---- pictures */

/* Grey, with a pattern for the camera to hold on to. */
static double wall(double x, double y) {
    return 110 + 25 * sin(x * 0.7 + 0.3 * y) + 20 * sin(y * 0.9 - 0.4 * x);
}

static double covered(double inside) {
    return inside < -0.5 ? 0 : inside > 0.5 ? 1 : inside + 0.5;
}

static void paint(const clip *c, uint8_t *rgb) {
    for (int t = 0; t < F; t++)
        for (int i = 0; i < S * S; i++, rgb += 3) {
            const double x = i % S + 0.5, y = i / S + 0.5, grey = wall(x, y);
            double p[3] = {grey + 6, grey, grey - 6};
            for (int k = 0; k < c->balls; k++) {
                const actor *a = &c->ball[k];
                const double d = hypot(x - a->x[t], y - a->y[t]), r = a->radius[t], u = covered(r - d);
                for (int j = 0; j < 3 && a->there[t]; j++)
                    p[j] += u * (a->colour[t][j] * (1 - 0.3 * d * d / (r * r)) - p[j]);
            }
            const double hidden = covered(fmin(fmin(x - c->pillar[0], c->pillar[1] - x), y - 10));
            for (int j = 0; j < 3; j++) rgb[j] = (uint8_t)(p[j] + hidden * (150 - p[j]) + 0.5);
        }
}

/* ---- what they must score */

enum { BAD, GOOD, EITHER };

static const struct {
    const char *name, *caption;
    void (*scene)(clip *), (*fault)(clip *);
    int sa, pc;
    int part; /* that must not pass; -1: none */
} cases[] = {
    {"a fall", "a red ball falls and bounces", fall, none, GOOD, GOOD, -1},
    {"a ball changes colour", "a red ball falls and bounces", fall, change_colour, GOOD, BAD, MA_PC_COLOUR},
    {"a ball vanishes", "a red ball falls and bounces", fall, vanish, GOOD, BAD, MA_PC_NUMBER},
    {"a ball vanishes for a while", "a red ball falls and bounces", fall, vanish_awhile, GOOD, BAD, MA_PC_NUMBER},
    {"a ball floats down", "a red ball falls", fall, float_down, GOOD, BAD, MA_PC_LAW},
    {"a ball hangs in the air", "a red ball falls", fall, hang, BAD, BAD, MA_SA_MOTION},
    {"a ball hangs in the air", "a red ball falls", fall, hang, BAD, BAD, MA_PC_LAW},
    {"a ball teleports", "a red ball falls and bounces", fall, teleport, GOOD, BAD, MA_PC_JUMP},
    {"a ball grows", "a red ball falls and bounces", fall, grow, GOOD, BAD, MA_PC_SIZE},
    {"a ball falls up", "a red ball falls", fall, fall_up, BAD, BAD, MA_PC_LAW},
    {"a ball bounces higher than it was", "a red ball falls and bounces", fall, bounce_up, GOOD, BAD, MA_PC_ENERGY},
    {"another ball appears", "two balls, one red and one blue, fall", fall, appear, GOOD, BAD, MA_PC_NUMBER},
    {"another colour is said", "a blue ball falls and bounces", fall, none, BAD, GOOD, MA_SA_COLOUR},
    {"another number is said", "two balls, one red and one blue, fall", fall, none, BAD, GOOD, MA_SA_NUMBER},
    {"another motion is said", "a red ball swings on a string", fall, none, BAD, EITHER, MA_SA_MOTION},
    {"two balls meet", "two balls, one red and one blue, fall and hit each other", meet, none, GOOD, GOOD, -1},
    {"one too many", "a red ball falls", meet, none, BAD, GOOD, MA_SA_NUMBER},
    {"two balls pass through each other", "two balls, one red and one blue, fall", meet, pass_through, GOOD, BAD,
     MA_PC_CONTACT},
    {"a pendulum", "a red ball swings on a string", pendulum, none, GOOD, GOOD, -1},
    {"a pendulum of one speed", "a red ball swings on a string", pendulum, swing_evenly, GOOD, BAD, MA_PC_LAW},
    {"a pendulum stands still", "a red ball swings on a string", pendulum, hang, BAD, EITHER, MA_SA_MOTION},
    {"a fall is said, it swings", "a red ball falls", pendulum, none, EITHER, BAD, MA_PC_LAW},
    {"a slide", "a red ball slides to a stop", slide, none, GOOD, GOOD, -1},
    {"a slide gets faster", "a red ball slides and slows down", slide, backwards, BAD, BAD, MA_PC_LAW},
    {"a slide goes on", "a red ball slides and slows down", slide, keep_on, BAD, GOOD, MA_SA_MOTION},
    {"a slide in the air", "a red ball slides to a stop", slide, lift, GOOD, BAD, MA_PC_LAW},
    {"a slide stands still", "a red ball slides to a stop", slide, hang, BAD, GOOD, MA_SA_MOTION},
    {"a pass", "a red ball rolls behind a pillar and comes out", pass, none, GOOD, GOOD, -1},
    {"it stays behind the pillar", "a red ball rolls behind a pillar and comes out", pass, stay_hidden, BAD, BAD,
     MA_PC_NUMBER},
    {"a pillar that hides nothing", "a red ball rolls behind a pillar and comes out", pass, take_pillar_away, BAD, GOOD,
     MA_SA_MOTION},
    {"it comes out too early", "a red ball rolls behind a pillar and comes out", pass, come_early, GOOD, BAD,
     MA_PC_LAW},
};

static bool agrees(int wanted, double score) {
    return wanted == EITHER || (wanted == GOOD) == (score >= MA_SCORE_PASS);
}

/* Clips as they are painted, or spoiled. */
static void score_cases(bool spoiled) {
    static uint8_t rgb[F * S * S * 3];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ma_err e = {0};
        ma_tracks tracks = {0};
        ma_caption said;
        ma_score s = {0};
        clip c;
        cases[i].scene(&c);
        cases[i].fault(&c);
        paint(&c, rgb);
        if (spoiled) spoil(rgb, F, S, S, cases[i].name);
        bool good = !ma_caption_read(cases[i].caption, &said, &e) && !ma_tracks_find(&tracks, rgb, F, S, S, FPS, &e) &&
                    !ma_score_of(&tracks, &said, &s, &e);
        const int part = cases[i].part;
        good = good && agrees(cases[i].sa, s.sa) && agrees(cases[i].pc, s.pc);
        good = good && (part < 0 || s.part[part] < MA_SCORE_PASS);
        ok(good, "%s%s: SA %.2f, PC %.2f", spoiled ? "spoiled: " : "", cases[i].name, s.sa, s.pc);
        for (int p = 0; p < MA_PARTS && !good; p++)
            printf("# %s: %.4f scores %.2f\n", ma_part_name((ma_part)p), s.measured[p], s.part[p]);
        ma_tracks_free(&tracks);
    }
}

int main(void) {
    score_cases(false);
    score_cases(true);
    return tap_done();
}
