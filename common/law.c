/* law: see law.h.
 *
 * A ball in fall, slide and pass moves in stretches: in each it keeps one of a few modes (in flight; at rest; sliding
 * to the right …), whose acceleration is known but for one number that all balls share, such as gravity. From one
 * stretch to the next its velocity may change at will, but only where there was something to hit: floor, wall, another
 * ball. The best way to cut a path into stretches is found by dynamic programming over all frames, the number by trying
 * many. A pendulum is integrated, and its six numbers found after Levenberg and Marquardt.
 *
 * Limits: what a contact does to velocities is not looked at, but for the energy that it must not add. Contacts between
 * frames are judged by where the balls are before and after, with a tolerance: see TOUCH.
 * Traps:
 *  - A stretch of one or two frames explains anything: residuals are per degree of freedom.
 *  - Least squares are over sums of powers of time: time is counted from the clip's middle.
 *  - A clip of several swings has many near solutions for the pendulum: what θ'' is to sin θ tells where to begin.
 */
#include "law.h"

#include "linear.h"

#include <math.h>
#include <string.h>

/* Of the picture's shorter side. */
static const double TOUCH = 0.05;  /* what is this close has touched */
static const double BREAK = 0.012; /* a stretch more must bring the residual down: root of the sum of squares */

/* Between which a law's number may be; see ma_law_fit. */
static const struct {
    double least, most;
} ranges[MA_WORLD_KINDS] = {
    [MA_WORLD_FALL] = {0.6, 2.6}, [MA_WORLD_PENDULUM] = {0.9, 3.4}, [MA_WORLD_SLIDE] = {0.08, 1.3}};

/* What may be hit: the floor; walls and other balls. */
enum { FLOOR = 1, SIDE = 2 };

/* How a ball may move for a while. */
typedef struct mode {
    double ax, ay; /* acceleration, of the law's number */
    bool vx, vy;   /* whether it has a velocity along x, y */
    int way;       /* -1, 1: it must go to the left, right; 0: either */
    bool floor;    /* only on the floor */
} mode;

typedef struct modes {
    mode at[3];
    int n;
    bool stops; /* the last mode, rest, may follow on another by itself, once that has no speed left */
    int hits;   /* contacts that change a velocity */
} modes;

static const modes laws[MA_WORLD_KINDS] = {
    [MA_WORLD_FALL] = {{{0, 1, true, true, 0, false}, {0, 0, true, false, 0, true}}, 2, false, FLOOR | SIDE},
    [MA_WORLD_SLIDE] = {{{-1, 0, true, false, 1, true}, {1, 0, true, false, -1, true}, {0, 0, false, false, 0, true}},
                        3,
                        true,
                        SIDE},
    [MA_WORLD_PASS] = {{{0, 0, true, false, 0, true}}, 1, false, 0},
};

enum { MODES = 3 };

/* Sums over the first so many frames. */
enum { N, T, TT, TTT, TTTT, X, XT, XTT, XX, Y, YT, YTT, YY, SUMS };

/* The best end of a path's first so many frames in a mode. */
typedef struct end {
    double cost;
    int64_t from; /* where its last stretch begins */
    int before;   /* the mode before that */
    double speed; /* along x, at its last frame; pixels a frame */
} end;

typedef struct path {
    double radius;
    double (*at)[2];     // (frames): x along the wall, y; pixels
    double (*speed)[2];  // (frames): as fitted; pixels a frame
    bool *used, *firm;   // (frames): to be explained; of a stretch long enough for its speed to be believed
    uint8_t *contact;    // (frames): what was hit between this one and the next: FLOOR | SIDE
    double (*sum)[SUMS]; // (frames + 1)
    end (*best)[MODES];  // (frames + 1)
} path;

typedef struct problem {
    const ma_tracks *tracks;
    ma_world_kind kind;
    double side, floor, left, right; /* of the room, as far as the camera tells */
    int n;
    path path[MA_TRACKS];
} problem;

/* Whether the ball is seen well enough in a frame for its centre to be believed. */
static bool believes(ma_world_kind kind, const ma_seen *s) {
    return s->seen && s->part >= (kind == MA_WORLD_PASS ? 0.9 : 0.5);
}

/* ---- paths */

static void find_sums(path *p, int64_t frames) {
    for (int64_t t = 0; t < frames; t++) {
        const double s = (double)t - (double)(frames - 1) / 2, x = p->at[t][0], y = p->at[t][1];
        const double v[SUMS] = {1,         s,     s * s, s * s * s, s * s * s * s, x,    x * s,
                                x * s * s, x * x, y,     y * s,     y * s * s,     y * y};
        for (int k = 0; k < SUMS; k++) p->sum[t + 1][k] = p->sum[t][k] + (p->used[t] ? v[k] : 0);
    }
}

static bool path_make(path *p, const ma_tracks *k, const ma_track *track, ma_world_kind kind) {
    const size_t n = (size_t)k->frames;
    *p = (path){.radius = track->radius,
                .at = ma_alloc(n, sizeof *p->at),
                .speed = ma_alloc(n, sizeof *p->speed),
                .used = ma_alloc(n, sizeof *p->used),
                .firm = ma_alloc(n, sizeof *p->firm),
                .contact = ma_alloc(n, sizeof *p->contact),
                .sum = ma_alloc(n + 1, sizeof *p->sum),
                .best = ma_alloc(n + 1, sizeof *p->best)};
    if (!p->at || !p->speed || !p->used || !p->firm || !p->contact || !p->sum || !p->best) return false;
    for (int64_t t = 0; t < k->frames; t++) {
        p->at[t][0] = track->at[t].x + k->camera[t];
        p->at[t][1] = track->at[t].y;
        p->used[t] = believes(kind, &track->at[t]);
    }
    find_sums(p, k->frames);
    return true;
}

static void path_free(path *p) {
    ma_release(p->at);
    ma_release(p->speed);
    ma_release(p->used);
    ma_release(p->firm);
    ma_release(p->contact);
    ma_release(p->sum);
    ma_release(p->best);
}

/* ---- contacts */

/* How far a ball may get beyond frame t towards t + 1, or came from before t + 1, along an axis. */
static double reach(const path *p, int64_t frames, int64_t t, int axis, int way) {
    const double before = t > 0 ? p->at[t][axis] - p->at[t - 1][axis] : 0;
    const double after = t + 2 < frames ? p->at[t + 1][axis] - p->at[t + 2][axis] : 0;
    return fmax(way * p->at[t][axis] + fmax(0, way * before), way * p->at[t + 1][axis] + fmax(0, way * after));
}

static double apart(const path *a, const path *b, int64_t t) {
    return hypot(a->at[t][0] - b->at[t][0], a->at[t][1] - b->at[t][1]);
}

static double closing(const path *a, const path *b, int64_t t, int64_t frames) {
    if (t < 0 || t + 1 >= frames) return 0;
    return hypot(a->at[t + 1][0] - a->at[t][0] - b->at[t + 1][0] + b->at[t][0],
                 a->at[t + 1][1] - a->at[t][1] - b->at[t + 1][1] + b->at[t][1]);
}

/* Two that meet half-way between frames are half a frame's way apart before or after it. */
static bool met(const path *a, const path *b, int64_t t, int64_t frames, double near) {
    const double way = fmax(closing(a, b, t, frames), fmax(closing(a, b, t - 1, frames), closing(a, b, t + 1, frames)));
    return fmin(apart(a, b, t), apart(a, b, t + 1)) <= a->radius + b->radius + 0.6 * way + near;
}

static void find_contacts(problem *q) {
    const int64_t n = q->tracks->frames;
    const double near = TOUCH * q->side;
    for (int k = 0; k < q->n; k++) {
        path *p = &q->path[k];
        for (int64_t t = 0; t + 1 < n; t++) {
            bool side = reach(p, n, t, 0, 1) + p->radius >= q->right - near ||
                        reach(p, n, t, 0, -1) + p->radius >= -q->left - near;
            for (int j = 0; j < q->n && !side; j++) side = j != k && met(p, &q->path[j], t, n, near);
            p->contact[t] =
                (uint8_t)((side ? SIDE : 0) | (reach(p, n, t, 1, 1) + p->radius >= q->floor - near ? FLOOR : 0));
        }
    }
}

/* ---- stretches */

typedef struct stretch {
    double cost;   /* sum of squares, pixels² */
    double vx, vy; /* at the clip's middle, without acceleration; pixels a frame */
} stretch;

/* Sum of squares of s - c t² - (where) - v t, over n > 0 frames, v free or 0. */
static double fit_axis(const double s[SUMS], int x, double c, bool moves, double *v) {
    const double n = s[N], z = s[x] - c * s[TT], zt = s[x + 1] - c * s[TTT];
    const double zz = s[x + 3] - 2 * c * s[x + 2] + c * c * s[TTTT];
    const double tt = s[TT] - s[T] * s[T] / n, tz = zt - s[T] * z / n;
    *v = moves && tt > 1e-9 ? tz / tt : 0;
    return fmax(0, zz - z * z / n - *v * tz);
}

/* Frames from … to - 1 in a mode. */
static stretch fit_stretch(const problem *q, const path *p, int64_t from, int64_t to, const mode *m, double number) {
    stretch out = {0};
    double s[SUMS];
    for (int k = 0; k < SUMS; k++) s[k] = p->sum[to][k] - p->sum[from][k];
    if (s[N] < 0.5) return out;
    out.cost = fit_axis(s, X, m->ax * number / 2, m->vx, &out.vx) + fit_axis(s, Y, m->ay * number / 2, m->vy, &out.vy);
    if (m->floor) {
        const double off = fabs(s[Y] / s[N] + p->radius - q->floor) - TOUCH * q->side;
        if (off > 0) out.cost += s[N] * off * off;
    }
    return out;
}

static double speed_at(const problem *q, const stretch *s, const mode *m, double number, int64_t t) {
    return s->vx + m->ax * number * ((double)t - (double)(q->tracks->frames - 1) / 2);
}

/* Speeds that noise may make of none. */
static double no_speed(const problem *q, double number) {
    return 1.5 * number + 0.004 * q->side;
}

static bool may_follow(const problem *q, const path *p, const modes *law, int64_t at, int before, int after,
                       double number) {
    const int hit = law->hits & p->contact[at - 1];
    if (hit & SIDE || (hit && (before != after || !law->at[after].floor))) return true;
    return law->stops && after == law->n - 1 && before != after &&
           fabs(p->best[at][before].speed) <= no_speed(q, number);
}

/* The cheapest way to have a stretch in a mode begin at a frame. */
static double begin_at(const problem *q, const path *p, const modes *law, int64_t at, int m, double number,
                       int *before) {
    double least = at ? INFINITY : 0;
    *before = -1;
    for (int b = 0; b < law->n && at; b++) {
        const double cost = p->best[at][b].cost + BREAK * BREAK * q->side * q->side;
        if (cost >= least || !may_follow(q, p, law, at, b, m, number)) continue;
        least = cost;
        *before = b;
    }
    return least;
}

/* Ends of stretches that begin at a frame, all frames before it being settled. */
static void extend(const problem *q, path *p, const modes *law, int64_t from, double number) {
    for (int m = 0; m < law->n; m++) {
        int before;
        const mode *how = &law->at[m];
        const double start = begin_at(q, p, law, from, m, number, &before), slack = no_speed(q, number);
        for (int64_t to = from + 1; to <= q->tracks->frames && start < INFINITY; to++) {
            const stretch s = fit_stretch(q, p, from, to, how, number);
            const double first = speed_at(q, &s, how, number, from), last = speed_at(q, &s, how, number, to - 1);
            if (start + s.cost >= p->best[to][m].cost) continue;
            if (how->way * first < -slack || how->way * last < -slack) continue;
            p->best[to][m] = (end){start + s.cost, from, before, last};
        }
    }
}

/* Least sum of squares of a path, with what the breaks cost; the mode that it ends in. */
static double fit_path(const problem *q, path *p, double number, int *last) {
    const modes *law = &laws[q->kind];
    const int64_t n = q->tracks->frames;
    for (int64_t t = 0; t <= n; t++)
        for (int m = 0; m < MODES; m++) p->best[t][m].cost = INFINITY;
    for (int64_t t = 0; t < n; t++) extend(q, p, law, t, number);
    *last = 0;
    for (int m = 1; m < law->n; m++)
        if (p->best[n][m].cost < p->best[n][*last].cost) *last = m;
    return p->best[n][*last].cost;
}

static double fit_paths(problem *q, double number) {
    double sum = 0;
    int last;
    for (int k = 0; k < q->n; k++) sum += fit_path(q, &q->path[k], number, &last);
    return sum;
}

/* The best number, by trying some that grow evenly in proportion, and again between the best one's neighbours. */
static double find_number(problem *q, double least, double most) {
    enum { TRIES = 9, ROUNDS = 3 };
    double best = least, cost = INFINITY;
    for (int round = 0; round < ROUNDS && least > 0; round++) {
        const double ratio = pow(most / least, 1.0 / (TRIES - 1));
        double at = least;
        for (int i = 0; i < TRIES; i++, at *= ratio) {
            const double now = fit_paths(q, at);
            if (now >= cost) continue;
            cost = now;
            best = at;
        }
        least = fmax(least, best / ratio);
        most = fmin(most, best * ratio);
    }
    return best;
}

/* Goes back over the best stretches: residual per degree of freedom, speeds. */
static double explain(const problem *q, path *p, double number) {
    const modes *law = &laws[q->kind];
    const double half = (double)(q->tracks->frames - 1) / 2;
    double cost = 0, frames = 0, stretches = 0;
    int m;
    if (fit_path(q, p, number, &m) == INFINITY) return INFINITY;
    for (int64_t to = q->tracks->frames; to > 0;) {
        const end *e = &p->best[to][m];
        const mode *how = &law->at[m];
        const stretch s = fit_stretch(q, p, e->from, to, how, number);
        const double n = p->sum[to][N] - p->sum[e->from][N];
        for (int64_t t = e->from; t < to; t++) {
            p->speed[t][0] = s.vx + how->ax * number * ((double)t - half);
            p->speed[t][1] = s.vy + how->ay * number * ((double)t - half);
            p->firm[t] = n >= 3;
        }
        cost += s.cost;
        frames += n;
        stretches += n > 0;
        to = e->from;
        m = e->before;
    }
    return frames > 0 ? sqrt(cost / fmax(frames - 2 * stretches, frames / 2)) : 0;
}

/* What all balls together have in a frame, per density; NAN where it is not known. */
static double energy(const problem *q, int64_t t, double gravity) {
    double sum = 0;
    for (int k = 0; k < q->n; k++) {
        const path *p = &q->path[k];
        const double vx = p->speed[t][0], vy = p->speed[t][1], height = q->floor - p->radius - p->at[t][1];
        if (!p->firm[t]) return NAN;
        sum += pow(p->radius, 3) * ((vx * vx + vy * vy) / 2 + gravity * height);
    }
    return sum;
}

/* Two frames in a row must have it: next to a contact one alone may be put to the wrong stretch. */
static double find_gain(const problem *q, double gravity) {
    double least = INFINITY, most = 0, gain = 0, before = NAN;
    for (int64_t t = 0; t < q->tracks->frames; t++) {
        const double e = energy(q, t, gravity);
        if (!isnan(e) && !isnan(before)) {
            least = fmin(least, fmax(e, before));
            most = fmax(most, fmin(e, before));
            gain = fmax(gain, fmin(e, before) - least);
        }
        if (!isnan(e)) before = e;
    }
    return most > 0 ? gain / most : 0;
}

static void fit_stretches(problem *q, ma_law_fit *out) {
    const double fps = q->tracks->fps, unit = (q->kind == MA_WORLD_FALL ? q->floor : q->side) / (fps * fps);
    find_contacts(q);
    const double number = find_number(q, ranges[q->kind].least * unit, ranges[q->kind].most * unit);
    for (int k = 0; k < q->n; k++) out->residual = fmax(out->residual, explain(q, &q->path[k], number));
    out->number = number / unit;
    if (q->kind != MA_WORLD_PASS) out->gain = find_gain(q, q->kind == MA_WORLD_FALL ? number : 0);
}

/* ---- pendulum */

enum { PX, PY, LENGTH, ANGLE, SPIN, PULL, NUMBERS }; /* pixels, radians, frames */

/* Goes on by a frame: θ'' = -pull sin θ, two steps of Runge and Kutta. */
static void swing(double *a, double *w, double pull) {
    const double dt = 0.5, half = dt / 2;
    for (int i = 0; i < 2; i++) {
        const double w1 = *w, f1 = -pull * sin(*a);
        const double w2 = *w + half * f1, f2 = -pull * sin(*a + half * w1);
        const double w3 = *w + half * f2, f3 = -pull * sin(*a + half * w2);
        const double w4 = *w + dt * f3, f4 = -pull * sin(*a + dt * w3);
        *a += dt / 6 * (w1 + 2 * w2 + 2 * w3 + w4);
        *w += dt / 6 * (f1 + 2 * f2 + 2 * f3 + f4);
    }
}

/* Differences in x and y of each frame, (frames, 2), 0 where it does not count; the sum of their squares. */
static double differ(const path *p, int64_t frames, const double v[NUMBERS], double (*out)[2]) {
    double a = v[ANGLE], w = v[SPIN], sum = 0;
    for (int64_t t = 0; t < frames; t++) {
        out[t][0] = p->used[t] ? p->at[t][0] - v[PX] - v[LENGTH] * sin(a) : 0;
        out[t][1] = p->used[t] ? p->at[t][1] - v[PY] - v[LENGTH] * cos(a) : 0;
        sum += out[t][0] * out[t][0] + out[t][1] * out[t][1];
        swing(&a, &w, v[PULL]);
    }
    return sum;
}

/* Within what may be. */
static void bound(const problem *q, double v[NUMBERS]) {
    const double turn = 2 * M_PI / q->tracks->fps;
    const double slow = turn / ranges[MA_WORLD_PENDULUM].most, fast = turn / ranges[MA_WORLD_PENDULUM].least;
    v[PULL] = fmin(fmax(v[PULL], slow * slow), fast * fast);
    v[LENGTH] = fmin(fmax(v[LENGTH], 0.25 * q->floor), q->floor);
}

/* Normal equations at v: m (6,6), g (6). work: (7, frames, 2), its first the differences at v. */
static void linearise(const path *p, int64_t frames, const double v[NUMBERS], double (*work)[2], double *m, double *g) {
    static const double by[NUMBERS] = {1e-4, 1e-4, 1e-4, 1e-6, 1e-6, 1e-6};
    memset(m, 0, sizeof *m * NUMBERS * NUMBERS);
    memset(g, 0, sizeof *g * NUMBERS);
    for (int k = 0; k < NUMBERS; k++) {
        double beside[NUMBERS];
        memcpy(beside, v, sizeof beside);
        beside[k] += by[k];
        double(*column)[2] = work + (k + 1) * frames;
        differ(p, frames, beside, column);
        for (int64_t t = 0; t < frames; t++)
            for (int i = 0; i < 2; i++) column[t][i] = (work[t][i] - column[t][i]) / by[k];
        for (int64_t t = 0; t < frames; t++)
            for (int i = 0; i < 2; i++) {
                g[k] += column[t][i] * work[t][i];
                for (int j = 0; j <= k; j++) m[k * NUMBERS + j] += column[t][i] * work[(j + 1) * frames + t][i];
            }
    }
}

/* Levenberg's and Marquardt's way down from v; the sum of squares there. */
static double descend(const problem *q, const path *p, double v[NUMBERS], double (*work)[2]) {
    const int64_t n = q->tracks->frames;
    double damp = 1e-2, cost = differ(p, n, v, work);
    for (int i = 0; i < 30 && damp < 1e6; i++) {
        double m[NUMBERS * NUMBERS], g[NUMBERS], next[NUMBERS];
        linearise(p, n, v, work, m, g);
        for (int k = 0; k < NUMBERS; k++) m[k * (NUMBERS + 1)] *= 1 + damp;
        if (!ma_solve(m, g, NUMBERS)) return cost;
        for (int k = 0; k < NUMBERS; k++) next[k] = v[k] + g[k];
        bound(q, next);
        const double now = differ(p, n, next, work);
        if (now < cost) {
            const bool little = cost - now < 1e-6 * cost;
            memcpy(v, next, sizeof next);
            cost = now;
            damp *= 0.2;
            if (little) break;
        } else {
            damp *= 5;
            differ(p, n, v, work);
        }
    }
    return cost;
}

double ma_circle_of(const double (*xy)[2], int64_t n, double circle[3]) {
    double m[9] = {0}, v[3] = {0}, cx = 0, cy = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        cx += xy[i][0] / (double)n;
        cy += xy[i][1] / (double)n;
    }
    for (int64_t i = 0; i < n; i++) { /* x² + y² = 2 a x + 2 b y + c */
        const double r[3] = {2 * (xy[i][0] - cx), 2 * (xy[i][1] - cy), 1}, s = (r[0] * r[0] + r[1] * r[1]) / 4;
        for (int k = 0; k < 3; k++) {
            v[k] += r[k] * s;
            for (int j = 0; j <= k; j++) m[k * 3 + j] += r[k] * r[j];
        }
    }
    for (int k = 0; k < 2; k++) m[k * 4] += 1e-6;
    if (n < 3 || !ma_solve(m, v, 3)) return INFINITY;
    circle[0] = cx + v[0];
    circle[1] = cy + v[1];
    circle[2] = sqrt(fmax(0, v[2] + v[0] * v[0] + v[1] * v[1]));
    for (int64_t i = 0; i < n; i++) {
        const double d = hypot(xy[i][0] - circle[0], xy[i][1] - circle[1]) - circle[2];
        sum += d * d;
    }
    return sqrt(sum / (double)n);
}

/* Numbers to begin with, by a pivot: what θ'' is to sin θ. */
static void guess(const problem *q, const path *p, const double circle[3], double v[NUMBERS]) {
    double top = 0, low = 1e-9;
    memcpy(v, circle, sizeof *v * 3);
    for (int64_t t = 1; t + 1 < q->tracks->frames; t++) {
        double a[3];
        for (int k = 0; k < 3; k++) a[k] = atan2(p->at[t + k - 1][0] - v[PX], p->at[t + k - 1][1] - v[PY]);
        if (t == 1) {
            v[ANGLE] = a[0];
            v[SPIN] = a[1] - a[0];
        }
        if (!p->used[t - 1] || !p->used[t] || !p->used[t + 1]) continue;
        top -= (a[0] - 2 * a[1] + a[2]) * sin(a[1]);
        low += sin(a[1]) * sin(a[1]);
    }
    v[PULL] = top / low;
    bound(q, v);
}

/* From the circle that the path tells, then, where that leads nowhere, from strings of several lengths. */
static void fit_pendulum(const problem *q, const path *p, double (*work)[2], ma_law_fit *out) {
    static const double lengths[] = {0, 0.5, 0.35, 0.65, 0.9};
    const int64_t n = q->tracks->frames, used = (int64_t)p->sum[n][N];
    double cost = INFINITY, best[NUMBERS] = {0};
    if (!used) return;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths && cost > 1e-4 * q->side * q->side * (double)used; i++) {
        const double length = lengths[i] * q->floor;
        double circle[3] = {p->sum[n][X] / (double)used, p->sum[n][Y] / (double)used - length, length}, v[NUMBERS];
        int64_t count = 0;
        for (int64_t t = 0; t < n && !i; t++)
            if (p->used[t]) memcpy(work[count++], p->at[t], sizeof *work);
        if (!i && (ma_circle_of((const double(*)[2])work, count, circle) == INFINITY || circle[2] > 2 * q->floor))
            continue;
        guess(q, p, circle, v);
        const double now = descend(q, p, v, work);
        if (now >= cost) continue;
        cost = now;
        memcpy(best, v, sizeof best);
    }
    out->residual = fmax(out->residual, sqrt(cost / fmax((double)used - NUMBERS / 2.0, (double)used / 2)));
    out->number = 2 * M_PI / (sqrt(best[PULL]) * q->tracks->fps);
}

static int fit_pendulums(const problem *q, ma_law_fit *out, ma_err *e) {
    double(*work)[2] = ma_alloc((size_t)q->tracks->frames * (NUMBERS + 1), sizeof *work);
    if (!work) return ma_fail(e, MA_MEMORY, "out of memory");
    for (int k = 0; k < q->n; k++) fit_pendulum(q, &q->path[k], work, out);
    ma_release(work);
    return 0;
}

/* ---- all of it */

int ma_law_of(const ma_tracks *k, ma_world_kind kind, ma_law_fit *out, ma_err *e) {
    problem q = {.tracks = k, .kind = kind, .floor = (double)k->height, .left = -INFINITY, .right = INFINITY};
    int rc = 0;
    *out = (ma_law_fit){0};
    q.side = (double)(k->height < k->width ? k->height : k->width);
    for (int64_t t = 0; t < k->frames; t++) { /* the room is what is seen all the time */
        q.left = fmax(q.left, k->camera[t]);
        q.right = fmin(q.right, k->camera[t] + (double)k->width);
    }
    for (; q.n < k->n && !rc; q.n++)
        if (!path_make(&q.path[q.n], k, &k->track[q.n], kind)) rc = ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc && kind == MA_WORLD_PENDULUM)
        rc = fit_pendulums(&q, out, e);
    else if (!rc && q.n)
        fit_stretches(&q, out);
    for (int i = 0; i < q.n; i++) path_free(&q.path[i]);
    return rc;
}
