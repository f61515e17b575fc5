/* score: see score.h. All thresholds are in one table, `parts`; man/ma-score.1 states them.
 *
 * SA asks what kind of motion it is, loosely; whether the motion obeys its law is PC's. So a ball that falls too
 * slowly, or vanishes half-way down, falls; one that hangs still does not. Limits: what a caption says of patterns,
 * walls, bounces and collisions is not looked at. A ball that touches the border of the picture may be out of sight
 * behind it, one behind another ball too.
 */
#include "score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    double good, bad;
} parts[MA_PARTS] = {
    [MA_SA_NUMBER] = {"sa_number", 0, 1},       /* balls too many or too few */
    [MA_SA_COLOUR] = {"sa_colour", 0, 1},       /* colours said that no ball has */
    [MA_SA_MOTION] = {"sa_motion", 0, 1},       /* how much of the said motion is lacking, 0..1 */
    [MA_PC_NUMBER] = {"pc_number", 0.06, 0.24}, /* frames that a ball lacks for no reason, of all */
    [MA_PC_COLOUR] = {"pc_colour", 10, 24},     /* degrees of hue */
    [MA_PC_SIZE] = {"pc_size", 0.15, 0.45},     /* logarithm of the largest radius over the smallest */
    [MA_PC_JUMP] = {"pc_jump", 0.6, 1.8},       /* radii of a step more than of the steps before and after */
    [MA_PC_CONTACT] = {"pc_contact", 0.3, 0.8}, /* overlap, in radii of the smaller ball */
    [MA_PC_LAW] = {"pc_law", 0.012, 0.03},      /* residual, of the picture's shorter side */
    [MA_PC_ENERGY] = {"pc_energy", 0.15, 0.45}, /* gained, of the most that there ever is */
};

const char *ma_part_name(ma_part p) {
    return parts[p].name;
}

void ma_part_range(ma_part p, double *good, double *bad) {
    *good = parts[p].good;
    *bad = parts[p].bad;
}

/* 1 at good and beyond, 0 at bad; which of them is the larger says what is better. */
static double ramp(double v, double good, double bad) {
    const double r = (bad - v) / (bad - good);
    return r < 0 ? 0 : r > 1 ? 1 : r;
}

/* ---- captions */

/* Hues in degrees, as people name them: to the nearest. */
static const struct {
    const char *name;
    double hue;
} colours[] = {{"red", 0},     {"green", 131},  {"blue", 228}, {"yellow", 53},
               {"orange", 28}, {"purple", 281}, {"cyan", 184}};
enum { COLOURS = sizeof colours / sizeof *colours };

const char *ma_colour_name(int colour) {
    return colours[colour].name;
}

static int colour_of(double hue) {
    int best = 0;
    for (int k = 1; k < COLOURS; k++)
        if (ma_hue_between(hue, colours[k].hue) < ma_hue_between(hue, colours[best].hue)) best = k;
    return best;
}

/* The word at s has n letters; whether it is this one. */
static bool is_word(const char *s, size_t n, const char *word) {
    return strlen(word) == n && !strncmp(s, word, n);
}

/* A word of the caption: a colour is a ball's, a verb tells the kind. */
static void read_word(const char *s, size_t n, ma_caption *c, bool *told) {
    static const struct {
        const char *word;
        ma_world_kind kind;
    } verbs[] = {{"falls", MA_WORLD_FALL},     {"fall", MA_WORLD_FALL},    {"swings", MA_WORLD_PENDULUM},
                 {"swing", MA_WORLD_PENDULUM}, {"slides", MA_WORLD_SLIDE}, {"slide", MA_WORLD_SLIDE},
                 {"slows", MA_WORLD_SLIDE},    {"slow", MA_WORLD_SLIDE},   {"rolls", MA_WORLD_PASS},
                 {"passes", MA_WORLD_PASS}};
    for (int k = 0; k < COLOURS; k++)
        if (is_word(s, n, colours[k].name) && c->balls < MA_TRACKS) c->colour[c->balls++] = k;
    for (size_t k = 0; k < sizeof verbs / sizeof *verbs && !*told; k++)
        if ((*told = is_word(s, n, verbs[k].word))) c->kind = verbs[k].kind;
}

int ma_caption_read(const char *text, ma_caption *c, ma_err *e) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    bool told = false;
    *c = (ma_caption){0};
    for (const char *s = text + strcspn(text, letters); *s; s += strcspn(s, letters)) {
        const size_t n = strspn(s, letters);
        read_word(s, n, c, &told);
        s += n;
    }
    c->emerges = strstr(text, "comes out");
    c->pan = strstr(text, "pans right") ? 1 : strstr(text, "pans left") ? -1 : 0;
    if (!c->balls) return ma_fail(e, MA_UNSUPPORTED, "the caption names no colour: \"%.100s\"", text);
    if (!told) return ma_fail(e, MA_UNSUPPORTED, "the caption tells no kind of motion: \"%.100s\"", text);
    return 0;
}

/* ---- what was seen */

typedef struct scene {
    const ma_tracks *k;
    const ma_caption *said;
    double side;
    double *room; // (frames): to sort in
} scene;

/* Along the wall. */
static double place(const scene *s, const ma_track *t, int64_t frame) {
    return t->at[frame].x + s->k->camera[frame];
}

/* Whether a frame shows the ball whole, away from borders and from other balls. */
static bool whole(const scene *s, const ma_track *t, int64_t frame) {
    const ma_seen *b = &t->at[frame];
    const double r = t->radius, w = (double)s->k->width, h = (double)s->k->height;
    if (!b->seen || b->x < r || b->y < r || b->x > w - r || b->y > h + 1) return false;
    if (s->said->kind == MA_WORLD_PASS && b->part < 0.9) return false;
    for (int k = 0; k < s->k->n; k++) {
        const ma_track *o = &s->k->track[k];
        if (o != t && hypot(o->at[frame].x - b->x, o->at[frame].y - b->y) < o->radius + r + 1.5) return false;
    }
    return true;
}

/* ---- SA */

/* Balls that are there for a third of the clip. */
static int count_balls(const scene *s) {
    int n = 0;
    for (int k = 0; k < s->k->n; k++) n += 3 * s->k->track[k].seen >= s->k->frames;
    return n;
}

/* A colour that a ball has for a third of the time that it is seen. */
static bool has_colour(const scene *s, const ma_track *t, int colour) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->k->frames; i++) n += t->at[i].seen && colour_of(t->at[i].hue) == colour;
    return 3 * n >= t->seen;
}

static int missing_colours(const scene *s) {
    bool taken[MA_TRACKS] = {0};
    int missing = 0;
    for (int c = 0; c < s->said->balls; c++) {
        int k = 0;
        while (k < s->k->n && (taken[k] || !has_colour(s, &s->k->track[k], s->said->colour[c]))) k++;
        if (k < s->k->n)
            taken[k] = true;
        else
            missing++;
    }
    return missing;
}

/* How far it gets along the wall, and up or down, while most of it is seen. */
static void extent(const scene *s, const ma_track *t, double out[2]) {
    double lo[2] = {INFINITY, INFINITY}, hi[2] = {-INFINITY, -INFINITY};
    for (int64_t i = 0; i < s->k->frames; i++) {
        const double at[2] = {place(s, t, i), t->at[i].y};
        for (int a = 0; a < 2 && t->at[i].seen && t->at[i].part >= 0.5; a++) {
            lo[a] = fmin(lo[a], at[a]);
            hi[a] = fmax(hi[a], at[a]);
        }
    }
    for (int a = 0; a < 2; a++) out[a] = fmax(0, hi[a] - lo[a]);
}

/* The most it comes down from where it was before. */
static double descent(const scene *s, const ma_track *t) {
    double highest = INFINITY, most = 0;
    for (int64_t i = 0; i < s->k->frames; i++) {
        if (!t->at[i].seen) continue;
        highest = fmin(highest, t->at[i].y);
        most = fmax(most, t->at[i].y - highest);
    }
    return most;
}

/* The share of the balls that do. */
static double falls(const scene *s) {
    double sum = 0;
    for (int k = 0; k < s->k->n; k++) sum += ramp(descent(s, &s->k->track[k]) / (double)s->k->height, 0.15, 0.05);
    return sum / s->k->n;
}

/* On an arc below its centre. */
static double swings(const scene *s) {
    double(*at)[2] = ma_alloc((size_t)s->k->frames, sizeof *at), least = at ? 1 : 0;
    for (int k = 0; k < s->k->n && at; k++) {
        const ma_track *t = &s->k->track[k];
        double size[2], circle[3], y = 0;
        int64_t n = 0;
        for (int64_t i = 0; i < s->k->frames; i++) {
            if (!t->at[i].seen) continue;
            at[n][0] = place(s, t, i);
            at[n++][1] = t->at[i].y;
            y += t->at[i].y;
        }
        extent(s, t, size);
        const double off = ma_circle_of((const double(*)[2])at, n, circle);
        const bool below = n && circle[1] < y / (double)n;
        least = fmin(least, ramp(hypot(size[0], size[1]) / s->side, 0.12, 0.04));
        least = fmin(least, below ? ramp(off / s->side, 0.02, 0.06) : 0);
    }
    ma_release(at);
    return least;
}

/* 1 for a ball that keeps its height. */
static double level(const scene *s, const ma_track *t) {
    double size[2];
    extent(s, t, size);
    return ramp(size[1] / s->side, 0.08, 0.16);
}

/* Mass times speed squared of all balls, from a frame to the next; per density. */
static double drive(const scene *s, int64_t frame) {
    double sum = 0;
    for (int k = 0; k < s->k->n; k++) {
        const ma_track *t = &s->k->track[k];
        sum += pow(t->radius, 3) * pow(place(s, t, frame + 1) - place(s, t, frame), 2);
    }
    return sum;
}

/* Along the floor, in the last third of the time with less drive than in the first. */
static double slides(const scene *s) {
    const int64_t n = s->k->frames - 1;
    double least = 1, most = 0, first = 1e-9, last = 0;
    for (int k = 0; k < s->k->n; k++) {
        double size[2];
        extent(s, &s->k->track[k], size);
        most = fmax(most, size[0]);
        least = fmin(least, level(s, &s->k->track[k]));
    }
    for (int64_t i = 0; i < n; i++) {
        if (3 * i < n) first = fmax(first, drive(s, i));
        if (3 * i >= 2 * n) last = fmax(last, drive(s, i));
    }
    least = fmin(least, ramp(most / s->side, 0.12, 0.04));
    return fmin(least, ramp(last / first, 0.8, 1));
}

/* What part of it is seen in a frame. */
static double part_seen(const ma_track *t, int64_t frame) {
    return t->at[frame].seen ? t->at[frame].part : 0;
}

/* Along the floor, hidden on the way, and out again where that is said. */
static double passes(const scene *s) {
    double least = 1;
    for (int k = 0; k < s->k->n; k++) {
        const ma_track *t = &s->k->track[k];
        double size[2], hidden = 1, after = 0, before = 0;
        for (int64_t i = 0; i < s->k->frames; i++) {
            const double part = part_seen(t, i);
            if (part < hidden && before > 0.5) {
                hidden = part;
                after = 0;
            }
            before = fmax(before, part);
            after = fmax(after, part);
        }
        extent(s, t, size);
        least = fmin(least, fmin(level(s, t), ramp(size[0] / s->side, 0.12, 0.04)));
        least = fmin(least, ramp(hidden, 0.4, 0.8));
        if (s->said->emerges) least = fmin(least, ramp(after, 0.3, 0.1));
    }
    return least;
}

static double (*const motions[MA_WORLD_KINDS])(const scene *) = {
    [MA_WORLD_FALL] = falls, [MA_WORLD_PENDULUM] = swings, [MA_WORLD_SLIDE] = slides, [MA_WORLD_PASS] = passes};

/* ---- PC */

/* Whether a ball that is not seen in that frame may be where it cannot be seen: beyond a border, behind another. */
static bool excused(const scene *s, const ma_track *t, int64_t frame) {
    const ma_seen *b = &t->at[frame];
    const double r = t->radius;
    if (b->y < r || b->x < 0.3 * r || b->x > (double)s->k->width - 0.3 * r) return true;
    for (int k = 0; k < s->k->n; k++) {
        const ma_track *o = &s->k->track[k];
        if (o == t || !o->at[frame].seen) continue;
        if (hypot(o->at[frame].x - b->x, o->at[frame].y - b->y) < o->radius + 0.3 * r) return true;
    }
    return false;
}

/* The frames from *from on in which a pillar may hide it: no more than a pillar's and a ball's width, and out of it
 * again if it is said to be. The first one behind them. */
static int64_t behind_pillar(const scene *s, const ma_track *t, int64_t from) {
    const int64_t n = s->k->frames;
    int64_t to = from;
    while (to < n && part_seen(t, to) < 0.9) to++;
    if (s->said->kind != MA_WORLD_PASS) return from;
    if (to == n) return s->said->emerges && part_seen(t, n - 1) < 0.1 ? from : n;
    const double way = from ? fabs(place(s, t, to) - place(s, t, from - 1)) : 0;
    return way <= 7 * t->radius ? to : from;
}

static double lost(const scene *s, const ma_track *t) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->k->frames; i++) {
        const int64_t after = behind_pillar(s, t, i);
        if (after > i) {
            i = after - 1;
            continue;
        }
        n += !t->at[i].seen && !excused(s, t, i);
    }
    return (double)n / (double)s->k->frames;
}

/* The third largest distance from its own hue: what two frames show may be an accident. */
static double discoloured(const scene *s, const ma_track *t) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->k->frames; i++)
        if (t->at[i].seen && t->at[i].part >= 0.5) s->room[n++] = ma_hue_between(t->at[i].hue, t->hue);
    return n < 3 ? 0 : ma_quantile(s->room, n, (double)(n - 3) / (double)(n - 1));
}

/* Between the tenth of the frames where it is smallest and that where it is largest. */
static double resized(const scene *s, const ma_track *t) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->k->frames; i++)
        if (whole(s, t, i)) s->room[n++] = t->at[i].radius;
    if (n < 3) return 0;
    const double large = ma_quantile(s->room, n, 0.9);
    return log(large / fmax(ma_quantile(s->room, n, 0.1), 1e-9));
}

/* The frame after this one in which it is seen; -1: none. */
static int64_t next_seen(const scene *s, const ma_track *t, int64_t frame) {
    for (int64_t i = frame + 1; i < s->k->frames; i++)
        if (t->at[i].seen && t->at[i].part >= 0.5) return i;
    return -1;
}

/* Its way from one frame to another, a frame; 0 where there is none. */
static double speed(const scene *s, const ma_track *t, int64_t from, int64_t to) {
    if (from < 0 || to < 0) return 0;
    return hypot(place(s, t, to) - place(s, t, from), t->at[to].y - t->at[from].y) / (double)(to - from);
}

/* The most that a step is longer than both the one before and the one after; what is hit may stop or start. */
static double jumped(const scene *s, const ma_track *t) {
    double most = 0;
    int64_t a = -1, b = next_seen(s, t, -1), c = b < 0 ? -1 : next_seen(s, t, b);
    while (c >= 0) {
        const int64_t d = next_seen(s, t, c);
        most = fmax(most, speed(s, t, b, c) - fmax(speed(s, t, a, b), speed(s, t, c, d)));
        a = b;
        b = c;
        c = d;
    }
    return most / t->radius;
}

static double overlap(const scene *s) {
    double most = 0;
    for (int i = 0; i < s->k->n; i++)
        for (int j = i + 1; j < s->k->n; j++) {
            const ma_track *a = &s->k->track[i], *b = &s->k->track[j];
            for (int64_t t = 0; t < s->k->frames; t++) {
                if (!a->at[t].seen && !b->at[t].seen) continue;
                const double d = hypot(a->at[t].x - b->at[t].x, a->at[t].y - b->at[t].y);
                most = fmax(most, (a->radius + b->radius - d) / fmin(a->radius, b->radius));
            }
        }
    return most;
}

/* ---- all of it */

static void measure(const scene *s, double *out) {
    out[MA_SA_NUMBER] = abs(count_balls(s) - s->said->balls);
    out[MA_SA_COLOUR] = missing_colours(s);
    out[MA_SA_MOTION] = s->k->n ? 1 - motions[s->said->kind](s) : 1;
    out[MA_PC_NUMBER] = s->k->n ? 0 : 1;
    out[MA_PC_CONTACT] = overlap(s);
    for (int k = 0; k < s->k->n; k++) {
        const ma_track *t = &s->k->track[k];
        out[MA_PC_NUMBER] = fmax(out[MA_PC_NUMBER], lost(s, t));
        out[MA_PC_COLOUR] = fmax(out[MA_PC_COLOUR], discoloured(s, t));
        out[MA_PC_SIZE] = fmax(out[MA_PC_SIZE], resized(s, t));
        out[MA_PC_JUMP] = fmax(out[MA_PC_JUMP], jumped(s, t));
    }
}

static bool camera_as_said(const scene *s) {
    const double way = s->k->camera[s->k->frames - 1] / (double)s->k->width;
    const int pan = (way > 0.05) - (way < -0.05);
    return pan == s->said->pan;
}

int ma_score_of(const ma_tracks *k, const ma_caption *said, ma_score *out, ma_err *e) {
    scene s = {.k = k, .said = said, .side = (double)(k->height < k->width ? k->height : k->width)};
    ma_law_fit law;
    *out = (ma_score){.sa = 1, .pc = 1};
    if (ma_law_of(k, said->kind, &law, e)) return -1;
    if (!(s.room = ma_alloc((size_t)k->frames, sizeof *s.room))) return ma_fail(e, MA_MEMORY, "out of memory");
    measure(&s, out->measured);
    out->camera = camera_as_said(&s);
    ma_release(s.room);
    out->measured[MA_PC_LAW] = law.residual / s.side;
    out->measured[MA_PC_ENERGY] = law.gain;
    for (int p = 0; p < MA_PARTS; p++) {
        double *score = p < MA_PC_NUMBER ? &out->sa : &out->pc;
        out->part[p] = ramp(out->measured[p], parts[p].good, parts[p].bad);
        *score = fmin(*score, out->part[p]);
    }
    out->joint = out->sa >= MA_SCORE_PASS && out->pc >= MA_SCORE_PASS;
    return 0;
}
