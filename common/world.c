/* world: motion, pictures and flow of the toy clips.
 *
 * Limits: balls do not turn, there is no friction and no ceiling; the camera moves to the left or the right only.
 * Shadows, light and blur are left out: they would move otherwise than the flow says. Traps:
 *  - Flow is exact only if texture moves with what carries it: patterns are functions of the distance from the ball's
 *    centre, or of the place on the wall, and soft enough (edges of two pixels) to be sampled once a pixel.
 *  - Edges are drawn with the part of the pixel that is covered; flow belongs to what is at the pixel's centre.
 *  - Everything depends on draws in a fixed order: a new draw goes to the end of ma_world_make, or all clips change.
 */
#include "world.h"
#include "rng.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PLAIN, STRIPES, CHECKS, DOTS, PATTERNS }; /* on a ball */
enum { WALL_NOISE, WALL_CHECKS, WALL_STRIPES, WALL_GRADIENT, WALLS };

static const struct {
    const char *name;
    double rgb[3];
} colours[] = {
    {"red", {214, 40, 40}},     {"green", {46, 160, 67}},   {"blue", {38, 84, 214}},    {"yellow", {240, 205, 40}},
    {"orange", {240, 130, 30}}, {"purple", {130, 50, 170}}, {"white", {240, 240, 240}},
};
enum { COLOURS = sizeof colours / sizeof *colours };

static const double STEP = 1.0 / 480; /* seconds, at most */

/* --- motion --- */

static bool touch_room(ma_ball *b, const ma_room *r) {
    bool floor = b->y > r->floor - b->radius;
    if (floor) {
        b->y = r->floor - b->radius;
        if (b->vy > 0) b->vy *= -r->restitution;
    }
    if (b->x < r->left + b->radius) {
        b->x = r->left + b->radius;
        b->vx = fabs(b->vx) * r->restitution;
    }
    if (b->x > r->right - b->radius) {
        b->x = r->right - b->radius;
        b->vx = -fabs(b->vx) * r->restitution;
    }
    return floor;
}

/* Pushes two balls apart and exchanges momentum along the line between their centres. */
static bool touch_ball(ma_ball *a, ma_ball *b, double restitution) {
    double dx = b->x - a->x, dy = b->y - a->y, d = hypot(dx, dy), overlap = a->radius + b->radius - d;
    if (overlap <= 0 || d == 0) return false;
    double ma = pow(a->radius, 3), mb = pow(b->radius, 3), nx = dx / d, ny = dy / d;
    double part = mb / (ma + mb); /* how far a gives way */
    a->x -= part * overlap * nx;
    a->y -= part * overlap * ny;
    b->x += (1 - part) * overlap * nx;
    b->y += (1 - part) * overlap * ny;
    double closing = (a->vx - b->vx) * nx + (a->vy - b->vy) * ny;
    if (closing <= 0) return true;
    double push = (1 + restitution) * closing; /* the change of relative speed */
    a->vx -= part * push * nx;
    a->vy -= part * push * ny;
    b->vx += (1 - part) * push * nx;
    b->vy += (1 - part) * push * ny;
    return true;
}

int ma_world_step(ma_ball *b, int n, const ma_room *r, double dt) {
    int touched = 0;
    for (int i = 0; i < n; i++) { /* exact in free fall */
        b[i].x += b[i].vx * dt;
        b[i].y += b[i].vy * dt + r->gravity * dt * dt / 2;
        b[i].vy += r->gravity * dt;
    }
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++)
            if (touch_ball(&b[i], &b[j], r->restitution)) touched |= 2;
    for (int i = 0; i < n; i++)
        if (touch_room(&b[i], r)) touched |= 1;
    return touched;
}

static void run(ma_world *w) {
    int steps = (int)ceil(1 / (w->size.fps * STEP));
    double dt = 1 / (w->size.fps * steps);
    ma_ball b[MA_WORLD_BALLS];
    memcpy(b, w->ball, sizeof b);
    for (int64_t t = 0; t < w->size.frames; t++) {
        for (int k = 0; k < w->balls; k++)
            memcpy(w->path[t * w->balls + k], (double[2]){b[k].x, b[k].y}, sizeof w->path[0]);
        if (t + 1 == w->size.frames) break;
        for (int s = 0; s < steps; s++) {
            int touched = ma_world_step(b, w->balls, &w->room, dt);
            w->bounces |= touched & 1;
            w->meets |= touched >> 1;
        }
    }
}

/* --- making --- */

static double between(ma_rng *g, double lo, double hi) {
    return lo + (hi - lo) * ma_rng_uniform(g);
}

static void shuffle(ma_rng *g, uint8_t *p, int n) {
    for (int i = 0; i < n; i++) p[i] = (uint8_t)i;
    for (int i = n - 1; i > 0; i--) {
        int64_t j = ma_rng_below(g, i + 1);
        uint8_t t = p[i];
        p[i] = p[j];
        p[j] = t;
    }
}

static void make_wall(ma_world *w, ma_rng *g) {
    double side = fmin((double)w->size.height, (double)w->size.width);
    w->wall = (int)ma_rng_below(g, WALLS);
    w->wall_period = fmax(8, side * between(g, 0.12, 0.25));
    w->wall_angle = between(g, 0, M_PI);
    double light[2] = {between(g, 60, 100), between(g, 150, 200)};
    for (int i = 0; i < 2; i++)
        for (int c = 0; c < 3; c++)
            w->wall_colour[i][c] = light[i] + between(g, -25, 25); /* dull, so that balls stand out */
    shuffle(g, w->shuffle, 256);
    for (int i = 0; i < 256; i++) w->noise[i] = (float)ma_rng_uniform(g);
}

/* The camera goes some way along the wall; the room is what it sees all that way, so that no ball is lost from sight.
 */
static void make_room(ma_world *w, ma_rng *g, double pan) {
    double height = (double)w->size.height, width = (double)w->size.width;
    bool moves = ma_rng_uniform(g) < pan, back = ma_rng_uniform(g) < 0.5;
    double way = between(g, 0.15, 0.4) * width * (back ? -1 : 1);
    w->room.gravity = between(g, 0.8, 2) * height;
    w->room.restitution = between(g, 0.75, 0.95);
    w->room.floor = height;
    w->room.right = width;
    if (!moves || w->size.frames < 2) return;
    w->pan = way / (double)(w->size.frames - 1);
    if (back)
        w->room.right += way;
    else
        w->room.left = way;
}

static bool clashes(const ma_world *w, const ma_ball *b) {
    for (int k = 0; k < w->balls; k++)
        if (hypot(b->x - w->ball[k].x, b->y - w->ball[k].y) < b->radius + w->ball[k].radius) return true;
    return false;
}

static void make_balls(ma_world *w, ma_rng *g) {
    double height = (double)w->size.height, side = fmin(height, (double)w->size.width);
    uint8_t colour[COLOURS];
    int wanted = 1 + (int)ma_rng_below(g, MA_WORLD_BALLS);
    shuffle(g, colour, COLOURS);
    for (int tries = 0; w->balls < wanted && tries < 1000; tries++) { /* a full room gets fewer */
        ma_ball b = {.radius = side * between(g, 0.06, 0.14), .colour = colour[w->balls]};
        b.x = between(g, w->room.left + b.radius, w->room.right - b.radius);
        b.y = between(g, b.radius, 0.6 * height);
        b.vx = side * between(g, -0.8, 0.8);
        b.vy = side * between(g, -0.4, 0.3);
        b.pattern = (int)ma_rng_below(g, PATTERNS);
        b.angle = between(g, 0, M_PI);
        b.phase = between(g, 0, 1);
        if (!clashes(w, &b)) w->ball[w->balls++] = b;
    }
}

ma_world *ma_world_make(uint64_t seed, const char *key, ma_clip_size size, double pan, ma_err *e) {
    ma_world *w = ma_alloc(1, sizeof *w);
    size_t most;
    if (w && ma_mul((size_t)size.frames, MA_WORLD_BALLS, &most)) w->path = ma_alloc(most, sizeof *w->path);
    if (!w || !w->path) {
        ma_fail(e, MA_MEMORY, "%s: out of memory", key);
        ma_world_free(w);
        return NULL;
    }
    ma_rng g = ma_rng_make(seed, key, 0, MA_RNG_TOY);
    w->size = size;
    make_wall(w, &g);
    make_room(w, &g, pan);
    make_balls(w, &g);
    run(w);
    return w;
}

void ma_world_free(ma_world *w) {
    if (w) ma_release(w->path);
    ma_release(w);
}

/* --- pictures --- */

static double clamp01(double v) {
    return v < 0 ? 0 : v > 1 ? 1 : v;
}

/* -1 … 1 with period; edges two pixels wide. */
static double square_wave(double at, double period) {
    double s = sin(2 * M_PI * at / period) * period / (2 * M_PI);
    return s < -1 ? -1 : s > 1 ? 1 : s;
}

static double lattice(const ma_world *w, int64_t i, int64_t j) {
    return w->noise[(w->shuffle[i & 255] + j) & 255];
}

/* Value noise, 0 … 1, with cells of that size. */
static double noise(const ma_world *w, double x, double y, double cell) {
    double fx = floor(x / cell), fy = floor(y / cell), u = x / cell - fx, v = y / cell - fy;
    int64_t i = (int64_t)fx, j = (int64_t)fy;
    u *= u * (3 - 2 * u);
    v *= v * (3 - 2 * v);
    double top = lattice(w, i, j) + u * (lattice(w, i + 1, j) - lattice(w, i, j));
    double low = lattice(w, i, j + 1) + u * (lattice(w, i + 1, j + 1) - lattice(w, i, j + 1));
    return top + v * (low - top);
}

/* The wall at a place. Some noise is everywhere: flow without texture cannot be seen. Left and right of the room it is
 * dark: there the balls turn back. */
static void wall_at(const ma_world *w, double x, double y, double rgb[3]) {
    double c = cos(w->wall_angle), s = sin(w->wall_angle), p = w->wall_period, a = c * x + s * y, b = c * y - s * x;
    double grain = 0.65 * noise(w, x, y, p / 2) + 0.35 * noise(w, x + 37, y + 11, p / 4), t = grain;
    if (w->wall == WALL_CHECKS) t = 0.4 + 0.4 * square_wave(a, p) * square_wave(b, p) + 0.2 * grain;
    if (w->wall == WALL_STRIPES) t = 0.4 + 0.4 * square_wave(a, p) + 0.2 * grain;
    if (w->wall == WALL_GRADIENT) t = 0.8 * clamp01(y / (double)w->size.height) + 0.2 * grain;
    double light = 0.4 + 0.6 * clamp01(x - w->room.left + 0.5) * clamp01(w->room.right - x + 0.5);
    for (int k = 0; k < 3; k++)
        rgb[k] = light * (w->wall_colour[0][k] + t * (w->wall_colour[1][k] - w->wall_colour[0][k]));
}

/* A ball at (dx, dy) from its centre: its colour, darker towards the rim, with a pattern of a darker shade. */
static void ball_at(const ma_ball *b, double dx, double dy, double rgb[3]) {
    double r = b->radius, c = cos(b->angle), s = sin(b->angle);
    double p = fmax(r * 0.8, 4), u = c * dx + s * dy + b->phase * r, v = c * dy - s * dx + b->phase * r, mark = 0;
    if (b->pattern == STRIPES) mark = 0.5 + 0.5 * square_wave(u, p);
    if (b->pattern == CHECKS) mark = 0.5 + 0.5 * square_wave(u, p) * square_wave(v, p);
    if (b->pattern == DOTS) mark = clamp01(square_wave(u, p)) * clamp01(square_wave(v, p));
    double shade = (1 - 0.35 * (dx * dx + dy * dy) / (r * r)) * (1 - 0.55 * mark);
    double shine = 50 * exp(-8 * ((dx / r + 0.35) * (dx / r + 0.35) + (dy / r + 0.4) * (dy / r + 0.4)));
    for (int k = 0; k < 3; k++) rgb[k] = fmin(colours[b->colour].rgb[k] * shade + shine, 255);
}

void ma_world_where(const ma_world *w, int64_t frame, int k, double xy[2]) {
    const double *p = w->path[frame * w->balls + k];
    xy[0] = p[0] - w->pan * (double)frame;
    xy[1] = p[1];
}

static void pixel(const ma_world *w, double at[][2], double camera, double x, double y, uint8_t *out) {
    double rgb[3], on[3];
    wall_at(w, x + camera, y, rgb);
    for (int k = 0; k < w->balls; k++) { /* later ones are in front */
        double dx = x - at[k][0], dy = y - at[k][1], reach = w->ball[k].radius + 0.5;
        if (dx * dx + dy * dy >= reach * reach) continue;
        double covered = clamp01(reach - hypot(dx, dy));
        ball_at(&w->ball[k], dx, dy, on);
        for (int c = 0; c < 3; c++) rgb[c] += covered * (on[c] - rgb[c]);
    }
    for (int c = 0; c < 3; c++) out[c] = (uint8_t)(rgb[c] + 0.5);
}

void ma_world_render(const ma_world *w, int64_t frame, uint8_t *rgb) {
    double at[MA_WORLD_BALLS][2];
    for (int k = 0; k < w->balls; k++) ma_world_where(w, frame, k, at[k]);
    for (int64_t i = 0; i < w->size.height; i++)
        for (int64_t j = 0; j < w->size.width; j++)
            pixel(w, at, w->pan * (double)frame, (double)j + 0.5, (double)i + 0.5, rgb + (i * w->size.width + j) * 3);
}

void ma_world_flow(const ma_world *w, int64_t frame, int64_t until, float *uv) {
    double at[MA_WORLD_BALLS][2], to[MA_WORLD_BALLS][2];
    for (int k = 0; k < w->balls; k++) {
        ma_world_where(w, frame, k, at[k]);
        ma_world_where(w, until, k, to[k]);
    }
    for (int64_t i = 0; i < w->size.height; i++)
        for (int64_t j = 0; j < w->size.width; j++, uv += 2) {
            uv[0] = (float)(-w->pan * (double)(until - frame));
            uv[1] = 0;
            for (int k = 0; k < w->balls; k++) {
                if (hypot((double)j + 0.5 - at[k][0], (double)i + 0.5 - at[k][1]) >= w->ball[k].radius) continue;
                uv[0] = (float)(to[k][0] - at[k][0]);
                uv[1] = (float)(to[k][1] - at[k][1]);
            }
        }
}

/* --- words --- */

const char *ma_world_colour(int colour) {
    return colours[colour].name;
}

/* "one red, one blue and one green" */
static int name_balls(const ma_world *w, ma_buf *b) {
    int rc = 0;
    for (int k = 0; k < w->balls; k++) {
        const char *before = k == 0 ? "" : k == w->balls - 1 ? " and " : ", ";
        rc |= ma_buf_printf(b, "%sone %s", before, colours[w->ball[k].colour].name);
    }
    return rc;
}

char *ma_world_caption(const ma_world *w) {
    static const char *const count[] = {"no", "one", "two", "three", "four", "five"};
    static const char *const wall[] = {"mottled", "chequered", "striped", "plain"};
    ma_buf b = {0};
    int rc = 0;
    if (w->balls == 1) {
        rc = ma_buf_printf(&b, "a %s ball falls%s", colours[w->ball[0].colour].name, w->bounces ? " and bounces" : "");
    } else {
        rc |= ma_buf_printf(&b, "%s balls, ", count[w->balls]);
        rc |= name_balls(w, &b);
        rc |= ma_buf_printf(&b, ", fall%s", !w->bounces ? "" : w->meets ? ", bounce" : " and bounce");
        if (w->meets) rc |= ma_buf_printf(&b, " and hit each other");
    }
    rc |= ma_buf_printf(&b, " in front of a %s wall", wall[w->wall]);
    if (w->pan != 0) rc |= ma_buf_printf(&b, ", the camera pans %s", w->pan > 0 ? "right" : "left");
    if (!rc) return b.data;
    ma_buf_free(&b);
    return NULL;
}
