/* track: see track.h.
 *
 * A ball is told from wall, pillar and string by its chroma alone: the distance from grey in the plane that RGB leaves
 * when light is taken out, where a mixture of two colours lies on the line between them and shading only scales. The
 * colours are the clip's own: peaks of its histogram of hues. A frame's pixels of one hue that hang together are a
 * blob; a disc is fitted to each, which finds a centre to a tenth of a pixel or so, also of a ball that is cut by the
 * picture's border or hidden in part by another. Blobs are linked to tracks by place and hue, so that a ball that
 * changes one of the two is still the same ball.
 *
 * Limits: MA_TRACKS balls; two balls of one colour that touch are one blob for that time. The camera goes to the left
 * and right only. A hue is that of what is seen, code and all: at 4:2:0 a ball of 4 pixels has chroma of 2.
 * Traps:
 *  - Where two colours meet they mix, in the lens as in the codec, and the mixture has a hue of its own: blobs of a
 *    few pixels are not looked at, nor are hues that only few pixels of the whole clip have.
 *  - A dark pattern may cut a ball in two: pieces of one hue that fit into one ball are one.
 *  - A wall may be periodic: the camera's way is looked for between neighbouring frames first.
 */
#include "track.h"

#include "linear.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Lengths are parts of the picture's shorter side. */
static const double COLOURFUL = 38;             /* chroma that no wall has, 0..255 */
static const double LEAST = 0.035, MOST = 0.25; /* radii of what may be a ball */
static const double HUE_APART = 15;             /* degrees from a peak of the histogram to the next, at least */
static const double HUE_REACH = 25;             /* degrees from its peak that a pixel may lie */
static const double GATE = 0.35, GATE_HUE = 20; /* per frame: farther apart is not linked for being near */
static const double PAN_MOST = 0.45;            /* of the width: the camera's way in a clip */
static const double STILL = 0.9;      /* a camera that moves makes the wall's difference smaller by this, at least */
static const float OUTLIER = 8;       /* of 255: a difference of light that is half believed */
static const double PAN_LEAST = 0.75; /* pixels in a clip: less is a camera that stands still */

enum { BINS = 72, HUES = 8, BLOBS = 24, LINKS = 32, STRAY = 255 };

typedef struct colour {
    double hue, u[2];  /* degrees; its direction in the plane of chroma */
    double base, full; /* chroma along u that is the wall's, and that is a ball's for sure */
} colour;

/* The clip in the coordinates that it is looked at in; smoothed. */
typedef struct field {
    int64_t n, h, w;
    double side;
    float *light, *a, *b; // (n,h,w): grey, and the plane of chroma
    uint8_t *label;       // (n,h,w): 0 not colourful, 1 + index of its colour, or STRAY
    uint8_t *wall;        // (n,h,w): 1 where nothing colourful is near
    double tint[2];       /* the wall's mean chroma */
    int colours;
    colour colour[HUES];
} field;

typedef struct blob {
    int label;
    int64_t area, x0, y0, x1, y1; /* pixels; its box, ends included */
    double x, y, radius, hue;
    double sx, sy, sa, sb; /* sums over its pixels */
} blob;

double ma_hue_between(double a, double b) {
    return fabs(remainder(a - b, 360));
}

static double hue_of(double a, double b) {
    double d = atan2(b, a) * 180 / M_PI;
    return d < 0 ? d + 360 : d;
}

static double clamp01(double v) {
    return v < 0 ? 0 : v > 1 ? 1 : v;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double ma_quantile(double *v, int64_t n, double part) {
    if (n <= 0) return 0;
    qsort(v, (size_t)n, sizeof *v, by_size);
    return v[(int64_t)(part * (double)(n - 1) + 0.5)];
}

/* ---- planes */

/* 1 2 1 along a row of n numbers that lie step apart, in place; the border's neighbours are the border's. */
static void smooth(float *p, int64_t n, int64_t step) {
    float before = p[0];
    for (int64_t i = 0; i < n; i++) {
        const float now = p[i * step], after = p[(i + 1 < n ? i + 1 : i) * step];
        p[i * step] = (before + 2 * now + after) / 4;
        before = now;
    }
}

static void smooth_plane(float *p, int64_t h, int64_t w) {
    for (int64_t y = 0; y < h; y++) smooth(p + y * w, w, 1);
    for (int64_t x = 0; x < w; x++) smooth(p + x, h, w);
}

static void split(field *f, const uint8_t *rgb) {
    const int64_t pixels = f->h * f->w;
    for (int64_t i = 0; i < f->n * pixels; i++, rgb += 3) {
        const float r = rgb[0], g = rgb[1], b = rgb[2];
        f->light[i] = (r + g + b) / 3;
        f->a[i] = r - (g + b) / 2;
        f->b[i] = 0.8660254f * (g - b);
    }
    for (int64_t t = 0; t < f->n; t++) {
        smooth_plane(f->light + t * pixels, f->h, f->w);
        smooth_plane(f->a + t * pixels, f->h, f->w);
        smooth_plane(f->b + t * pixels, f->h, f->w);
    }
}

static int field_make(field *f, const uint8_t *rgb, int64_t n, int64_t h, int64_t w, ma_err *e) {
    size_t pixels = 0;
    *f = (field){.n = n, .h = h, .w = w, .side = (double)(h < w ? h : w)};
    if (ma_mul((size_t)h, (size_t)w, &pixels) && ma_mul(pixels, (size_t)n, &pixels)) {
        f->light = ma_alloc(pixels, sizeof(float));
        f->a = ma_alloc(pixels, sizeof(float));
        f->b = ma_alloc(pixels, sizeof(float));
        f->label = ma_alloc(pixels, 1);
        f->wall = ma_alloc(pixels, 1);
    }
    if (!f->light || !f->a || !f->b || !f->label || !f->wall) return ma_fail(e, MA_MEMORY, "out of memory");
    split(f, rgb);
    return 0;
}

static void field_free(field *f) {
    ma_release(f->light);
    ma_release(f->a);
    ma_release(f->b);
    ma_release(f->label);
    ma_release(f->wall);
}

/* ---- colours */

static void find_tint(field *f) {
    double sa = 0, sb = 0, n = 1;
    for (int64_t i = 0; i < f->n * f->h * f->w; i++) {
        const double a = f->a[i], b = f->b[i];
        if (a * a + b * b > COLOURFUL * COLOURFUL) continue;
        sa += a;
        sb += b;
        n++;
    }
    f->tint[0] = sa / n;
    f->tint[1] = sb / n;
}

static bool colourful(const field *f, int64_t i) {
    const double a = f->a[i], b = f->b[i], da = a - f->tint[0], db = b - f->tint[1];
    const double c = da * da + db * db;
    return c > COLOURFUL * COLOURFUL && 2 * (a * a + b * b) > c;
}

/* Peaks of the histogram become the clip's colours, the largest first. What belongs to a peak is taken away with it.
 * What is less than the smallest ball in three frames is none. */
static void find_colours(field *f, const double *bin) {
    const double least = M_PI * LEAST * LEAST * f->side * f->side * 3;
    const int reach = (int)(HUE_REACH * BINS / 360), apart = (int)(HUE_APART * BINS / 360);
    double soft[BINS];
    for (int i = 0; i < BINS; i++) soft[i] = 2 * bin[i] + bin[(i + 1) % BINS] + bin[(i + BINS - 1) % BINS];
    for (int i = 0; i < BINS && f->colours < HUES; i++) {
        double mass = 0, sum = 0;
        bool peak = soft[i] > 0;
        for (int k = -apart; k <= apart && peak; k++) {
            const double other = soft[(i + k + BINS) % BINS];
            peak = k < 0 ? other < soft[i] : other <= soft[i];
        }
        for (int k = -reach / 2; k <= reach / 2 && peak; k++) {
            mass += bin[(i + k + BINS) % BINS];
            sum += k * bin[(i + k + BINS) % BINS];
        }
        if (!peak || mass < least) continue;
        const double hue = (i + 0.5 + sum / mass) * 360 / BINS, turn = hue * M_PI / 180;
        f->colour[f->colours++] = (colour){.hue = hue, .u = {cos(turn), sin(turn)}};
    }
}

static int nearest_colour(const field *f, double hue) {
    double least = HUE_REACH;
    int best = STRAY;
    for (int k = 0; k < f->colours; k++) {
        const double d = ma_hue_between(hue, f->colour[k].hue);
        if (d < least) {
            least = d;
            best = k + 1;
        }
    }
    return best;
}

/* Marks the pixels that lie two or fewer from a colourful one as not wall's. */
static void find_wall(field *f) {
    const int64_t pixels = f->h * f->w;
    memset(f->wall, 1, (size_t)(f->n * pixels));
    for (int64_t t = 0; t < f->n; t++)
        for (int64_t y = 0; y < f->h; y++)
            for (int64_t x = 0; x < f->w; x++) {
                if (!f->label[t * pixels + y * f->w + x]) continue;
                for (int64_t i = y > 2 ? y - 2 : 0; i <= y + 2 && i < f->h; i++)
                    for (int64_t j = x > 2 ? x - 2 : 0; j <= x + 2 && j < f->w; j++)
                        f->wall[t * pixels + i * f->w + j] = 0;
            }
}

/* How much chroma along its direction each colour has where it is one, and the wall. */
static void find_levels(field *f) {
    double sum[HUES] = {0}, n[HUES] = {0};
    for (int64_t i = 0; i < f->n * f->h * f->w; i++) {
        const int k = f->label[i] - 1;
        if (k < 0 || k >= f->colours) continue;
        sum[k] += f->a[i] * f->colour[k].u[0] + f->b[i] * f->colour[k].u[1];
        n[k]++;
    }
    for (int k = 0; k < f->colours; k++) {
        colour *c = &f->colour[k];
        c->base = f->tint[0] * c->u[0] + f->tint[1] * c->u[1];
        c->full = n[k] > 0 ? fmax(sum[k] / n[k], c->base + COLOURFUL) : c->base + COLOURFUL;
    }
}

static void label_pixels(field *f) {
    const int64_t all = f->n * f->h * f->w;
    double bin[BINS] = {0};
    find_tint(f);
    for (int64_t i = 0; i < all; i++) {
        if (!colourful(f, i)) continue;
        const int at = (int)(hue_of(f->a[i], f->b[i]) * BINS / 360);
        f->label[i] = STRAY;
        bin[at % BINS]++;
    }
    find_colours(f, bin);
    for (int64_t i = 0; i < all; i++)
        if (f->label[i]) f->label[i] = (uint8_t)nearest_colour(f, hue_of(f->a[i], f->b[i]));
    find_levels(f);
    find_wall(f);
}

/* ---- camera */

/* Σ over the wall of the squared difference between frame t + lag and frame t looked up `shift` pixels to the right,
 * and what Gauss and Newton ask for; every `step`th row. What differs much, such as a string that swings, counts
 * little. */
typedef struct fit {
    double error, slope, weight, n;
} fit;

static void compare(const field *f, int64_t t, int64_t lag, double shift, int64_t step, fit *sum) {
    const int64_t pixels = f->h * f->w, whole = (int64_t)floor(shift);
    const float u = (float)(shift - (double)whole);
    for (int64_t y = 0; y < f->h; y += step) {
        const float *from = f->light + t * pixels + y * f->w, *to = from + lag * pixels;
        const uint8_t *wall = f->wall + t * pixels + y * f->w;
        int64_t lo = whole < 1 ? 1 - whole : 0, hi = whole > 0 ? f->w - 2 - whole : f->w - 2;
        if (lo < 0) lo = 0;
        if (hi > f->w) hi = f->w;
        float error = 0, slope = 0, weight = 0, n = 0;
#pragma omp simd reduction(+ : error, slope, weight, n)
        for (int64_t x = lo; x < hi; x++) {
            const int64_t k = x + whole;
            const float both = (float)(wall[k] & wall[lag * pixels + x]);
            const float d = to[x] - ((1 - u) * from[k] + u * from[k + 1]);
            const float g = ((1 - u) * (from[k + 1] - from[k - 1]) + u * (from[k + 2] - from[k])) / 2;
            const float trust = both / (1 + d * d / (OUTLIER * OUTLIER));
            error += d * d * trust;
            slope += g * d * trust;
            weight += g * g * trust;
            n += both;
        }
        sum->error += (double)error;
        sum->slope += (double)slope;
        sum->weight += (double)weight;
        sum->n += (double)n;
    }
}

/* From one pair of frames so far apart to the next that is compared: eight or so are enough. */
static int64_t hop(const field *f, int64_t lag) {
    return (f->n - lag + 7) / 8;
}

/* A shift that all pairs of frames so far apart have in common, beginning at a guess. */
static double refine(const field *f, int64_t lag, double shift, int64_t step) {
    for (int i = 0; i < 4; i++) {
        fit sum = {0};
        for (int64_t t = 0; t + lag < f->n; t += hop(f, lag)) compare(f, t, lag, shift, step, &sum);
        if (sum.n < 32 || sum.weight <= sum.n * 0.01) return shift; /* nothing to go by */
        const double by = fmin(fmax(sum.slope / sum.weight, -1), 1);
        shift += by;
        if (fabs(by) < 0.005) return shift;
    }
    return shift;
}

/* The same of one pair, near the guess or the guess itself. */
static double refine_pair(const field *f, int64_t from, int64_t to, double guess, int64_t step) {
    double shift = guess;
    for (int i = 0; i < 3; i++) {
        fit sum = {0};
        compare(f, from, to - from, shift, step, &sum);
        if (sum.n < 32 || sum.weight <= sum.n * 0.01) return guess;
        shift += sum.slope / sum.weight;
        if (fabs(shift - guess) > 1) return guess;
    }
    return shift;
}

/* Pixels a frame: the best of whole shifts, then refined over ever longer times. */
static double find_pan(const field *f, int64_t step) {
    const int64_t reach = (int64_t)ceil(PAN_MOST * (double)f->w / (double)(f->n - 1)) + 1;
    double best = INFINITY, pan = 0;
    for (int64_t s = -reach; s <= reach; s++) {
        fit sum = {0};
        for (int64_t t = 0; t + 1 < f->n; t += hop(f, 1)) compare(f, t, 1, (double)s, step, &sum);
        if (sum.n >= 32 && sum.error / sum.n < best) {
            best = sum.error / sum.n;
            pan = (double)s;
        }
    }
    int64_t lag = 1;
    for (; 2 * lag <= f->n; lag *= 2) pan = refine(f, lag, pan * (double)lag, step) / (double)lag;
    fit moved = {0}, still = {0};
    for (int64_t t = 0, far = lag / 2; t + far < f->n; t += hop(f, far)) {
        compare(f, t, far, pan * (double)far, step, &moved);
        compare(f, t, far, 0, step, &still);
    }
    return moved.error * still.n < STILL * still.error * moved.n ? pan : 0;
}

/* The camera goes evenly, or nearly so: each frame is compared with the middle one, too. */
static void find_camera(const field *f, double *camera) {
    const int64_t step = f->h / 48 > 1 ? f->h / 48 : 1, middle = f->n / 2;
    const double pan = find_pan(f, step);
    memset(camera, 0, sizeof *camera * (size_t)f->n);
    if (fabs(pan) * (double)(f->n - 1) < PAN_LEAST) return;
    for (int64_t t = 0; t < f->n; t++)
        camera[t] = t == middle ? 0 : refine_pair(f, middle, t, pan * (double)(t - middle), step);
    const double first = camera[0];
    for (int64_t t = 0; t < f->n; t++) camera[t] -= first;
}

/* Mean difference of the wall between neighbouring frames. */
static double find_flicker(const field *f, const uint8_t *rgb, const double *camera) {
    const int64_t pixels = f->h * f->w;
    double sum = 0, n = 0;
    for (int64_t t = 0; t + 1 < f->n; t++) {
        const double shift = camera[t + 1] - camera[t];
        const int64_t whole = (int64_t)floor(shift);
        const double u = shift - (double)whole;
        for (int64_t i = 0; i < pixels; i++) {
            const int64_t x = i % f->w, k = i + whole;
            if (x + whole < 0 || x + whole + 1 >= f->w) continue;
            if (!f->wall[t * pixels + k] || !f->wall[(t + 1) * pixels + i]) continue;
            const uint8_t *from = rgb + (t * pixels + k) * 3, *to = rgb + ((t + 1) * pixels + i) * 3;
            for (int c = 0; c < 3; c++) sum += fabs(to[c] - ((1 - u) * from[c] + u * from[c + 3]));
            n += 3;
        }
    }
    return n > 0 ? sum / n : 0;
}

/* ---- blobs */

/* The pixels of one label that hang together with (x, y), corners too. stack: (h·w) places; what is counted gets
 * done[i] = 1. */
static blob flood(const field *f, int64_t t, int64_t x, int64_t y, int64_t *stack, uint8_t *done) {
    const int64_t first = t * f->h * f->w;
    const uint8_t *label = f->label + first;
    blob b = {.label = label[y * f->w + x], .x0 = x, .x1 = x, .y0 = y, .y1 = y};
    int64_t n = 0;
    stack[n++] = y * f->w + x;
    done[y * f->w + x] = 1;
    while (n > 0) {
        const int64_t p = stack[--n], px = p % f->w, py = p / f->w;
        b.area++;
        b.sx += (double)px + 0.5;
        b.sy += (double)py + 0.5;
        b.sa += (double)f->a[first + p];
        b.sb += (double)f->b[first + p];
        b.x0 = px < b.x0 ? px : b.x0;
        b.x1 = px > b.x1 ? px : b.x1;
        b.y0 = py < b.y0 ? py : b.y0;
        b.y1 = py > b.y1 ? py : b.y1;
        for (int64_t i = py > 0 ? py - 1 : 0; i <= py + 1 && i < f->h; i++)
            for (int64_t j = px > 0 ? px - 1 : 0; j <= px + 1 && j < f->w; j++) {
                const int64_t q = i * f->w + j;
                if (done[q] || label[q] != b.label) continue;
                done[q] = 1;
                stack[n++] = q;
            }
    }
    return b;
}

static blob joined(const blob *a, const blob *b) {
    return (blob){.label = a->label,
                  .area = a->area + b->area,
                  .x0 = a->x0 < b->x0 ? a->x0 : b->x0,
                  .y0 = a->y0 < b->y0 ? a->y0 : b->y0,
                  .x1 = a->x1 > b->x1 ? a->x1 : b->x1,
                  .y1 = a->y1 > b->y1 ? a->y1 : b->y1,
                  .sx = a->sx + b->sx,
                  .sy = a->sy + b->sy,
                  .sa = a->sa + b->sa,
                  .sb = a->sb + b->sb};
}

/* Whether two blobs are pieces of one ball: of one hue, close, and together not larger than one, nor emptier. */
static bool one_ball(const field *f, const blob *a, const blob *b) {
    if (a->label != b->label) return false;
    const blob c = joined(a, b);
    const double wide = (double)(c.x1 - c.x0 + 1), high = (double)(c.y1 - c.y0 + 1);
    const double gap =
        fmax((double)llabs((a->x0 + a->x1) - (b->x0 + b->x1)) / 2 - (double)(a->x1 - a->x0 + b->x1 - b->x0) / 2,
             (double)llabs((a->y0 + a->y1) - (b->y0 + b->y1)) / 2 - (double)(a->y1 - a->y0 + b->y1 - b->y0) / 2);
    return fmax(wide, high) <= 1.6 * MOST * f->side && gap <= 0.08 * f->side && (double)c.area > 0.4 * wide * high;
}

static int join_pieces(const field *f, blob *b, int n) {
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++)
            if (one_ball(f, &b[i], &b[j])) {
                b[i] = joined(&b[i], &b[j]);
                b[j] = b[--n];
                j = i; /* the larger one may reach others */
            }
    return n;
}

/* The least-squares disc with an edge of `edge` pixels: one step of Gauss and Newton for c = x, y and, of three
 * unknowns, radius. What other balls cover is left out. */
static void step_disc(const field *f, int64_t t, int label, double edge, int unknowns, double c[3]) {
    const colour *k = &f->colour[label - 1];
    const double reach = c[2] + edge / 2;
    double m[9] = {0}, v[3] = {0};
    int64_t x0 = (int64_t)floor(c[0] - reach), x1 = (int64_t)ceil(c[0] + reach);
    int64_t y0 = (int64_t)floor(c[1] - reach), y1 = (int64_t)ceil(c[1] + reach);
    for (int64_t y = y0 < 0 ? 0 : y0; y < f->h && y <= y1; y++)
        for (int64_t x = x0 < 0 ? 0 : x0; x < f->w && x <= x1; x++) {
            const int64_t i = (t * f->h + y) * f->w + x;
            const double dx = (double)x + 0.5 - c[0], dy = (double)y + 0.5 - c[1], d = sqrt(dx * dx + dy * dy);
            const double disc = 0.5 + (c[2] - d) / edge;
            if (disc <= 0 || disc >= 1 || d < 1e-6) continue; /* only the edge tells */
            if (f->label[i] && f->label[i] != label) continue;
            const double along = (double)f->a[i] * k->u[0] + (double)f->b[i] * k->u[1];
            const double off = clamp01((along - k->base) / (0.85 * (k->full - k->base))) - disc;
            const double g[3] = {dx / (d * edge), dy / (d * edge), 1 / edge};
            for (int p = 0; p < unknowns; p++) {
                v[p] += g[p] * off;
                for (int q = 0; q <= p; q++) m[p * unknowns + q] += g[p] * g[q];
            }
        }
    for (int p = 0; p < unknowns; p++) m[p * unknowns + p] += 0.02;
    if (!ma_solve(m, v, unknowns)) return;
    for (int p = 0; p < unknowns; p++) c[p] += fmin(fmax(v[p], -1), 1);
}

/* Centre, and of three unknowns the radius too, from where the blob is; as they were where the fit runs away. */
static void fit_disc(const field *f, int64_t t, int label, int unknowns, double *x, double *y, double *radius) {
    double c[3] = {*x, *y, *radius};
    for (int i = 0; i < 8; i++) step_disc(f, t, label, i < 3 ? 4 : 2, unknowns, c);
    if (hypot(c[0] - *x, c[1] - *y) > *radius || c[2] < 0.5 * *radius || c[2] > 2 * *radius) return;
    *x = c[0];
    *y = c[1];
    *radius = c[2];
}

/* Blobs of a frame that may be balls. */
static int find_blobs(const field *f, int64_t t, int64_t *stack, uint8_t *done, blob out[BLOBS]) {
    const double least = M_PI * LEAST * LEAST * f->side * f->side;
    const uint8_t *label = f->label + t * f->h * f->w;
    int n = 0, kept = 0;
    memset(done, 0, (size_t)(f->h * f->w));
    for (int64_t i = 0; i < f->h * f->w; i++) {
        if (!label[i] || label[i] == STRAY || done[i]) continue;
        const blob b = flood(f, t, i % f->w, i / f->w, stack, done);
        if (n < BLOBS && (double)b.area >= least / 4) out[n++] = b;
    }
    n = join_pieces(f, out, n);
    for (int k = 0; k < n; k++) {
        blob *b = &out[k];
        if ((double)b->area < least) continue;
        b->x = b->sx / (double)b->area;
        b->y = b->sy / (double)b->area;
        b->hue = hue_of(b->sa, b->sb);
        b->radius = fmax((double)(b->x1 - b->x0 + 1), (double)(b->y1 - b->y0 + 1)) / 2;
        fit_disc(f, t, b->label, 3, &b->x, &b->y, &b->radius);
        out[kept++] = *b;
    }
    return kept;
}

/* ---- tracks */

typedef struct linker {
    int n;
    ma_seen *at[LINKS]; // (frames) each
    int *label[LINKS];  // (frames)
    double *area[LINKS];
    int64_t last[LINKS];               /* the frame it was seen in last */
    double largest[LINKS], hue[LINKS]; /* area, and the hue that it had then */
} linker;

static int new_track(linker *l, int64_t frames, ma_err *e) {
    const int k = l->n;
    l->at[k] = ma_alloc((size_t)frames, sizeof *l->at[k]);
    l->label[k] = ma_alloc((size_t)frames, sizeof *l->label[k]);
    l->area[k] = ma_alloc((size_t)frames, sizeof *l->area[k]);
    l->n++;
    return l->at[k] && l->label[k] && l->area[k] ? k : ma_fail(e, MA_MEMORY, "out of memory");
}

static void linker_free(linker *l) {
    for (int k = 0; k < l->n; k++) {
        ma_release(l->at[k]);
        ma_release(l->label[k]);
        ma_release(l->area[k]);
    }
}

static void put(linker *l, int k, int64_t t, const blob *b) {
    l->at[k][t] = (ma_seen){.seen = true, .x = b->x, .y = b->y, .radius = b->radius, .hue = b->hue};
    l->label[k][t] = b->label;
    l->area[k][t] = (double)b->area;
    l->last[k] = t;
    if (l->area[k][t] <= l->largest[k]) return;
    l->largest[k] = l->area[k][t];
    l->hue[k] = b->hue;
}

/* How unlike the track's next one a blob is: one for the place, one for the hue, at most. Where it would be had it gone
 * on as before counts as well as where it was. */
static double unlike(const field *f, const linker *l, int k, int64_t t, const blob *b) {
    const int64_t last = l->last[k];
    const ma_seen *s = &l->at[k][last], *p = last > 0 && l->at[k][last - 1].seen ? s - 1 : s;
    const double gap = (double)(t - last);
    const double there = hypot(b->x - s->x, b->y - s->y);
    const double on = hypot(b->x - s->x - gap * (s->x - p->x), b->y - s->y - gap * (s->y - p->y));
    const double hue = fmin(ma_hue_between(b->hue, s->hue), ma_hue_between(b->hue, l->hue[k]));
    return fmin(fmin(there, on) / (GATE * fmin(gap, 3) * f->side), 1) + fmin(hue / GATE_HUE, 1);
}

/* Links a frame's blobs: the likest pair first, and so on; what is left over begins a track. */
static int link_frame(const field *f, linker *l, int64_t t, const blob *b, int n, ma_err *e) {
    bool used[BLOBS] = {0};
    for (;;) {
        double least = 1.3;
        int track = -1, which = -1;
        for (int k = 0; k < l->n; k++)
            for (int i = 0; i < n; i++) {
                if (used[i] || l->at[k][t].seen) continue;
                const double u = unlike(f, l, k, t, &b[i]);
                if (u >= least) continue;
                least = u;
                track = k;
                which = i;
            }
        if (track < 0) break;
        put(l, track, t, &b[which]);
        used[which] = true;
    }
    for (int i = 0; i < n; i++) {
        if (used[i] || l->n == LINKS) continue;
        const int k = new_track(l, f->n, e);
        if (k < 0) return -1;
        put(l, k, t, &b[i]);
    }
    return 0;
}

/* The hue that is nearest to all others. */
static double middle_hue(const ma_seen *s, int64_t n) {
    double least = INFINITY, hue = 0;
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t j = 0; j < n && s[i].seen; j++)
            if (s[j].seen) sum += ma_hue_between(s[i].hue, s[j].hue);
        if (!s[i].seen || sum >= least) continue;
        least = sum;
        hue = s[i].hue;
    }
    return hue;
}

/* Places where it was not seen: on the line between those before and after, or as it went on. */
static void fill_gaps(ma_seen *s, int64_t n) {
    for (int64_t t = 0; t < n; t++) {
        int64_t a = t, b = t;
        if (s[t].seen) continue;
        while (a >= 0 && !s[a].seen) a--;
        while (b < n && !s[b].seen) b++;
        if (a < 0) { /* two after it, if there are */
            a = b;
            b = b + 1 < n && s[b + 1].seen ? b + 1 : b;
        } else if (b == n) {
            b = a;
            a = a > 0 && s[a - 1].seen ? a - 1 : a;
        }
        const double u = a == b ? 0 : (double)(t - a) / (double)(b - a);
        s[t].x = s[a].x + u * (s[b].x - s[a].x);
        s[t].y = s[a].y + u * (s[b].y - s[a].y);
        s[t].radius = s[a].radius;
        s[t].hue = s[a].hue;
    }
}

/* Medians, the radius's of frames that show it whole; centres once more, with the radius known; what part is seen. */
static int finish_track(const field *f, const linker *l, int k, ma_track *out, ma_err *e) {
    double *v = ma_alloc((size_t)f->n, sizeof *v);
    ma_seen *s = l->at[k];
    int64_t n = 0;
    if (!v) return ma_fail(e, MA_MEMORY, "out of memory");
    for (int64_t t = 0; t < f->n; t++)
        if (s[t].seen) v[n++] = l->area[k][t];
    *out = (ma_track){.at = s, .seen = n, .hue = middle_hue(s, f->n)};
    const double area = ma_quantile(v, n, 0.75);
    n = 0;
    for (int64_t t = 0; t < f->n; t++)
        if (s[t].seen && l->area[k][t] >= 0.8 * area) v[n++] = s[t].radius;
    out->radius = ma_quantile(v, n, 0.5);
    for (int64_t t = 0; t < f->n; t++) {
        if (!s[t].seen) continue;
        double radius = out->radius;
        fit_disc(f, t, l->label[k][t], 2, &s[t].x, &s[t].y, &radius);
        s[t].part = fmin(l->area[k][t] / area, 1);
    }
    fill_gaps(s, f->n);
    ma_release(v);
    return 0;
}

static int64_t times_seen(const ma_seen *s, int64_t n) {
    int64_t count = 0;
    for (int64_t t = 0; t < n; t++) count += s[t].seen;
    return count;
}

static int finish(ma_tracks *out, const field *f, linker *l, ma_err *e) {
    const int64_t least = f->n / 8 > 3 ? f->n / 8 : 3;
    int rc = 0;
    for (;;) {
        int best = -1;
        int64_t most = least - 1;
        for (int k = 0; k < l->n; k++) {
            const int64_t n = l->at[k] ? times_seen(l->at[k], f->n) : 0;
            if (n <= most) continue;
            most = n;
            best = k;
        }
        if (rc || best < 0 || out->n == MA_TRACKS) return rc;
        rc = finish_track(f, l, best, &out->track[out->n++], e);
        l->at[best] = NULL; /* out's, from now on */
    }
}

static int follow(ma_tracks *out, const field *f, ma_err *e) {
    linker l = {0};
    blob blobs[BLOBS];
    int64_t *stack = ma_alloc((size_t)(f->h * f->w), sizeof *stack);
    uint8_t *done = ma_alloc((size_t)(f->h * f->w), 1);
    int rc = stack && done ? 0 : ma_fail(e, MA_MEMORY, "out of memory");
    for (int64_t t = 0; t < f->n && !rc; t++) rc = link_frame(f, &l, t, blobs, find_blobs(f, t, stack, done, blobs), e);
    if (!rc) rc = finish(out, f, &l, e);
    ma_release(stack);
    ma_release(done);
    linker_free(&l);
    return rc;
}

int ma_tracks_find(ma_tracks *out, const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, double fps,
                   ma_err *e) {
    field f;
    *out = (ma_tracks){.frames = frames, .height = height, .width = width, .fps = fps};
    out->camera = ma_alloc((size_t)frames, sizeof *out->camera);
    int rc = out->camera ? field_make(&f, rgb, frames, height, width, e) : ma_fail(e, MA_MEMORY, "out of memory");
    if (!out->camera) return rc;
    if (!rc) {
        label_pixels(&f);
        find_camera(&f, out->camera);
        out->flicker = find_flicker(&f, rgb, out->camera);
        rc = follow(out, &f, e);
    }
    field_free(&f);
    return rc;
}

void ma_tracks_free(ma_tracks *t) {
    for (int k = 0; k < t->n; k++) ma_release(t->track[k].at);
    ma_release(t->camera);
    *t = (ma_tracks){0};
}
