/* world_look: what the toy world looks like: colours and textures, pictures, and the flow that is true of them.
 *
 * Limits: shadows, light and blur are left out: they would move otherwise than the flow says.
 * Traps:
 *  - Flow is exact only if texture moves with what carries it: patterns are functions of the distance from the ball's
 *    centre, or of the place on the wall, and soft enough (edges of two pixels) to be sampled once a pixel.
 *  - Edges are drawn with the part of the pixel that is covered; flow belongs to what is at the pixel's centre.
 *  - Colour tells balls from all else: in every pixel of a ball, whatever its pattern and shade, red, green and blue
 * are further apart than anywhere on wall, pillar and string, which are nearly grey (40 of 255 at most).
 *  - ma_looks_make takes its draws in a fixed order: a new one goes to its end, or all clips change.
 */
#include "world_private.h"
#include <math.h>

enum { PLAIN, STRIPES, CHECKS, DOTS, PATTERNS }; /* on a ball */
enum { WALL_NOISE, WALL_CHECKS, WALL_STRIPES, WALL_GRADIENT, WALLS };

static const char *const patterns[PATTERNS] = {"plain", "striped", "chequered", "dotted"};
static const char *const walls[WALLS] = {"mottled", "chequered", "striped", "plain"};

/* Apart in hue: at 358, 131, 228, 53, 28, 281 and 184 degrees. */
static const struct {
    const char *name;
    double rgb[3];
} colours[] = {
    {"red", {225, 30, 36}},     {"green", {25, 190, 55}},   {"blue", {35, 75, 235}},  {"yellow", {245, 220, 20}},
    {"orange", {250, 125, 15}}, {"purple", {160, 40, 215}}, {"cyan", {20, 205, 220}},
};
enum { COLOURS = sizeof colours / sizeof *colours };

const char *ma_world_colour_name(int colour) {
    return colours[colour].name;
}

const char *ma_world_pattern_name(int pattern) {
    return patterns[pattern];
}

const char *ma_world_wall_name(int wall) {
    return walls[wall];
}

/* --- making --- */

static void shuffle(ma_rng *g, uint8_t *p, int n) {
    for (int i = 0; i < n; i++) p[i] = (uint8_t)i;
    for (int i = n - 1; i > 0; i--) {
        int64_t j = ma_rng_below(g, i + 1);
        uint8_t t = p[i];
        p[i] = p[j];
        p[j] = t;
    }
}

static void draw_grey(ma_rng *g, double lo, double hi, double tint, double rgb[3]) {
    double light = ma_between(g, lo, hi);
    for (int c = 0; c < 3; c++) rgb[c] = light + ma_between(g, -tint, tint);
}

static void draw_axis(ma_rng *g, double axis[2]) {
    double angle = ma_between(g, 0, M_PI);
    axis[0] = cos(angle);
    axis[1] = sin(angle);
}

void ma_looks_make(ma_looks *l, const ma_clip_size *size, ma_rng *g) {
    uint8_t colour[COLOURS];
    l->wall = (int)ma_rng_below(g, WALLS);
    l->period = fmax(8, fmin((double)size->height, (double)size->width) * ma_between(g, 0.12, 0.25));
    draw_axis(g, l->axis);
    draw_grey(g, 60, 100, 18, l->tone[0]);
    draw_grey(g, 150, 200, 18, l->tone[1]);
    draw_grey(g, 90, 190, 8, l->pillar);
    l->string = ma_rng_uniform(g) < 0.5 ? 20 : 235;
    shuffle(g, l->shuffle, 256);
    for (int i = 0; i < 256; i++) l->noise[i] = (float)ma_rng_uniform(g);
    shuffle(g, colour, COLOURS);
    for (int k = 0; k < MA_WORLD_BALLS; k++) {
        int pattern = (int)ma_rng_below(g, PATTERNS);
        l->ball[k] = (ma_paint){.colour = colour[k], .pattern = pattern};
        draw_axis(g, l->ball[k].axis);
        l->ball[k].phase = ma_between(g, 0, 1);
    }
}

/* --- textures: the colour at a place; 0..255 --- */

static double clamp01(double v) {
    return v < 0 ? 0 : v > 1 ? 1 : v;
}

/* -1 … 1 with period; edges two pixels wide. */
static double square_wave(double at, double period) {
    double s = sin(2 * M_PI * at / period) * period / (2 * M_PI);
    return s < -1 ? -1 : s > 1 ? 1 : s;
}

static double lattice(const ma_looks *l, int64_t i, int64_t j) {
    return l->noise[(l->shuffle[i & 255] + j) & 255];
}

/* Value noise, 0 … 1, with cells of that size. */
static double noise(const ma_looks *l, double x, double y, double cell) {
    double fx = floor(x / cell), fy = floor(y / cell), u = x / cell - fx, v = y / cell - fy;
    int64_t i = (int64_t)fx, j = (int64_t)fy;
    u *= u * (3 - 2 * u);
    v *= v * (3 - 2 * v);
    double top = lattice(l, i, j) + u * (lattice(l, i + 1, j) - lattice(l, i, j));
    double low = lattice(l, i, j + 1) + u * (lattice(l, i + 1, j + 1) - lattice(l, i, j + 1));
    return top + v * (low - top);
}

/* The wall at a place of the room. Some noise is everywhere: flow without texture cannot be seen. Left and right of the
 * room it is dark: there the balls turn back. */
static void wall_at(const ma_world *w, double x, double y, double rgb[3]) {
    const ma_looks *l = &w->looks;
    const ma_room *r = &w->start.room;
    const double c = l->axis[0], s = l->axis[1], p = l->period, a = c * x + s * y, b = c * y - s * x;
    double grain = 0.65 * noise(l, x, y, p / 2) + 0.35 * noise(l, x + 37, y + 11, p / 4), t = grain;
    if (l->wall == WALL_CHECKS) t = 0.4 + 0.4 * square_wave(a, p) * square_wave(b, p) + 0.2 * grain;
    if (l->wall == WALL_STRIPES) t = 0.4 + 0.4 * square_wave(a, p) + 0.2 * grain;
    if (l->wall == WALL_GRADIENT) t = 0.8 * clamp01(y / (double)w->size.height) + 0.2 * grain;
    double light = 0.4 + 0.6 * clamp01(x - r->left + 0.5) * clamp01(r->right - x + 0.5);
    for (int k = 0; k < 3; k++) rgb[k] = light * (l->tone[0][k] + t * (l->tone[1][k] - l->tone[0][k]));
}

/* A ball at (dx, dy) from its centre: its colour, darker towards the rim, with a pattern of a darker shade. */
static void ball_at(const ma_ball *b, const ma_paint *paint, double dx, double dy, double rgb[3]) {
    double r = b->radius, c = paint->axis[0], s = paint->axis[1];
    double p = fmax(r * 0.8, 4), u = c * dx + s * dy + paint->phase * r, v = c * dy - s * dx + paint->phase * r,
           mark = 0;
    if (paint->pattern == STRIPES) mark = 0.5 + 0.5 * square_wave(u, p);
    if (paint->pattern == CHECKS) mark = 0.5 + 0.5 * square_wave(u, p) * square_wave(v, p);
    if (paint->pattern == DOTS) mark = clamp01(square_wave(u, p)) * clamp01(square_wave(v, p));
    double shade = (1 - 0.3 * (dx * dx + dy * dy) / (r * r)) * (1 - 0.45 * mark);
    double shine = 50 * exp(-8 * ((dx / r + 0.35) * (dx / r + 0.35) + (dy / r + 0.4) * (dy / r + 0.4)));
    for (int k = 0; k < 3; k++) rgb[k] = fmin(colours[paint->colour].rgb[k] * shade + shine, 255);
}

/* The pillar at a place of the room: round, with light from the left, of a grained stone. */
static void pillar_at(const ma_world *w, double x, double y, double rgb[3]) {
    const ma_looks *l = &w->looks;
    const double *p = w->start.pillar, half = (p[2] - p[0]) / 2, across = (x - p[0]) / half - 1; /* -1 … 1 */
    double shade = 1.1 - 0.5 * (across + 0.25) * (across + 0.25) / 1.5;
    double grain = 0.75 + 0.4 * noise(l, x + 19, y + 53, fmax(3, half / 2));
    for (int k = 0; k < 3; k++) rgb[k] = clamp01(l->pillar[k] * shade * grain / 255) * 255;
}

/* --- pictures --- */

/* What a frame shows, in places of the room. */
typedef struct view {
    const ma_world *w;
    double camera;         /* x of the picture's left edge */
    const double (*at)[2]; /* (balls, 2): centres */
    double along[2];       /* the string's direction, where there is one */
    double thin;           /* half its width */
} view;

static view look(const ma_world *w, int64_t frame) {
    const ma_scene *s = &w->start;
    view v = {.w = w, .camera = w->pan * (double)frame, .at = (const double(*)[2])w->path + frame * s->balls};
    v.thin = fmax(0.6, 0.006 * fmin((double)w->size.height, (double)w->size.width));
    for (int i = 0; s->kind == MA_WORLD_PENDULUM && i < 2; i++) v.along[i] = (v.at[0][i] - s->pivot[i]) / s->length;
    return v;
}

/* How far a place is inside of the string's edge, in pixels; it reaches from the pivot to the ball's centre. */
static double in_string(const view *v, double x, double y) {
    const ma_scene *s = &v->w->start;
    if (s->kind != MA_WORLD_PENDULUM) return -1;
    double dx = x - s->pivot[0], dy = y - s->pivot[1], down = dx * v->along[0] + dy * v->along[1];
    if (down < 0 || down > s->length) return -1;
    return v->thin - fabs(dx * v->along[1] - dy * v->along[0]);
}

static double in_ball(const view *v, int k, double x, double y) {
    double dx = x - v->at[k][0], dy = y - v->at[k][1], r = v->w->start.ball[k].radius;
    if (dx * dx + dy * dy >= (r + 1) * (r + 1)) return -1;
    return r - hypot(dx, dy);
}

static double in_pillar(const view *v, double x, double y) {
    const double *p = v->w->start.pillar;
    return v->w->start.kind == MA_WORLD_PASS ? fmin(fmin(x - p[0], p[2] - x), y - p[1]) : -1;
}

/* Lays a colour over another where it covers the pixel whose centre is so far inside of its edge. */
static void cover(double rgb[3], const double on[3], double inside) {
    double covered = clamp01(inside + 0.5);
    for (int c = 0; c < 3; c++) rgb[c] += covered * (on[c] - rgb[c]);
}

/* From the back to the front; of balls later ones are in front. */
static void pixel(const view *v, double x, double y, uint8_t *out) {
    const ma_world *w = v->w;
    double rgb[3], on[3] = {w->looks.string, w->looks.string, w->looks.string}, inside;
    wall_at(w, x, y, rgb);
    if ((inside = in_string(v, x, y)) > -0.5) cover(rgb, on, inside);
    for (int k = 0; k < w->start.balls; k++) {
        if ((inside = in_ball(v, k, x, y)) <= -0.5) continue;
        ball_at(&w->start.ball[k], &w->looks.ball[k], x - v->at[k][0], y - v->at[k][1], on);
        cover(rgb, on, inside);
    }
    if ((inside = in_pillar(v, x, y)) > -0.5) {
        pillar_at(w, x, y, on);
        cover(rgb, on, inside);
    }
    for (int c = 0; c < 3; c++) out[c] = (uint8_t)(rgb[c] + 0.5);
}

void ma_world_render(const ma_world *w, int64_t frame, uint8_t *rgb) {
    const view v = look(w, frame);
    for (int64_t i = 0; i < w->size.height; i++)
        for (int64_t j = 0; j < w->size.width; j++, rgb += 3)
            pixel(&v, v.camera + (double)j + 0.5, (double)i + 0.5, rgb);
}

/* --- flow --- */

static int seen(const view *v, double x, double y) {
    if (in_pillar(v, x, y) > 0) return MA_WORLD_PILLAR;
    for (int k = v->w->start.balls - 1; k >= 0; k--)
        if (in_ball(v, k, x, y) > 0) return k;
    return in_string(v, x, y) > 0 ? MA_WORLD_STRING : MA_WORLD_WALL;
}

int ma_world_seen(const ma_world *w, int64_t frame, double x, double y) {
    const view v = look(w, frame);
    return seen(&v, v.camera + x, y);
}

/* By how much what is at (x, y) of the room moves in it. A string turns around its pivot. */
static void moved(const view *from, const view *to, double x, double y, double by[2]) {
    const int what = seen(from, x, y);
    by[0] = by[1] = 0;
    if (what >= 0)
        for (int i = 0; i < 2; i++) by[i] = to->at[what][i] - from->at[what][i];
    if (what != MA_WORLD_STRING) return;
    const double *pivot = from->w->start.pivot, *a = from->along, *b = to->along, dx = x - pivot[0], dy = y - pivot[1];
    double down = dx * a[0] + dy * a[1], across = dx * a[1] - dy * a[0];
    by[0] = down * b[0] + across * b[1] - dx;
    by[1] = down * b[1] - across * b[0] - dy;
}

void ma_world_flow(const ma_world *w, int64_t frame, int64_t until, float *uv) {
    const view from = look(w, frame), to = look(w, until);
    for (int64_t i = 0; i < w->size.height; i++)
        for (int64_t j = 0; j < w->size.width; j++, uv += 2) {
            double by[2];
            moved(&from, &to, from.camera + (double)j + 0.5, (double)i + 0.5, by);
            uv[0] = (float)(by[0] - (to.camera - from.camera));
            uv[1] = (float)by[1];
        }
}
