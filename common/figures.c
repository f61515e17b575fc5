/* figures: see figures.h.
 *
 * Trap: VBench samples 8 frames a second and asks for 6 pixels at 256: what is here is that per second and side.
 */
#include "figures.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double FASTEST = 0.05;       /* the part of the pixels that is looked at: those that move most */
static const double MOVES = 6 * 8 / 256.; /* shorter sides a second that are motion */
static const double OFTEN = 0.25;         /* of the frames that must have it */

/* u, v at a place of the picture, in its pixels. */
static void flow_at(const ma_flow_clip *c, const float *uv, double x, double y, double out[2]) {
    const double fx = (double)c->w / (double)c->width, fy = (double)c->h / (double)c->height;
    const double gx = fmin(fmax(x * fx - 0.5, 0), (double)(c->w - 1)),
                 gy = fmin(fmax(y * fy - 0.5, 0), (double)(c->h - 1));
    const int64_t j = (int64_t)gx, i = (int64_t)gy, right = j + 1 < c->w, down = i + 1 < c->h ? c->w : 0;
    const double s = gx - (double)j, t = gy - (double)i;
    for (int k = 0; k < 2; k++) {
        const float *p = uv + (i * c->w + j) * 2 + k;
        const double top = (1 - s) * (double)p[0] + s * (double)p[2 * right];
        const double low = (1 - s) * (double)p[2 * down] + s * (double)p[2 * (down + right)];
        out[k] = ((1 - t) * top + t * low) / (k ? fy : fx);
    }
}

/* |a pixel - the next frame at (x, y)|, summed over the colours; -1: that is outside. */
static double difference(const ma_flow_clip *c, const uint8_t *pixel, const uint8_t *next, double x, double y) {
    const double gx = x - 0.5, gy = y - 0.5, j = floor(gx), i = floor(gy), s = gx - j, t = gy - i;
    double sum = 0;
    if (!(j >= 0 && i >= 0 && j + 1 < (double)c->width && i + 1 < (double)c->height)) return -1;
    const uint8_t *p = next + ((int64_t)i * c->width + (int64_t)j) * 3, *q = p + c->width * 3;
    for (int k = 0; k < 3; k++)
        sum += fabs((1 - t) * ((1 - s) * p[k] + s * p[k + 3]) + t * ((1 - s) * q[k] + s * q[k + 3]) - pixel[k]);
    return sum;
}

static int falling(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* Pixels a frame of the fastest few; length: (height·width), is used up. */
static double fastest(float *length, int64_t n) {
    const int64_t most = (int64_t)(FASTEST * (double)n) > 1 ? (int64_t)(FASTEST * (double)n) : 1;
    double sum = 0;
    qsort(length, (size_t)n, sizeof *length, falling);
    for (int64_t i = 0; i < most; i++) sum += (double)length[i];
    return sum / (double)most;
}

/* Adds a pair's differences and their number; the length of each pixel's motion. */
static void compare(const ma_flow_clip *c, int64_t pair, double sum[2], float *length) {
    const float *uv = c->flow + pair * c->h * c->w * 2;
    const uint8_t *from = c->rgb + (c->skip + pair * c->stride) * c->height * c->width * 3;
    for (int64_t y = 0; y < c->height; y++)
        for (int64_t x = 0; x < c->width; x++) {
            const int64_t i = y * c->width + x;
            double by[2];
            flow_at(c, uv, (double)x + 0.5, (double)y + 0.5, by);
            length[i] = (float)hypot(by[0], by[1]);
            const double d = difference(c, from + i * 3, from + c->stride * c->height * c->width * 3,
                                        (double)x + 0.5 + by[0], (double)y + 0.5 + by[1]);
            if (d < 0) continue;
            sum[0] += d / (3 * 255);
            sum[1]++;
        }
}

int ma_figures_of(const ma_flow_clip *c, ma_figures *out, ma_err *e) {
    const double side = (double)(c->height < c->width ? c->height : c->width);
    const double moves = MOVES * side * (double)c->stride / c->fps;
    float *length = ma_alloc((size_t)(c->height * c->width), sizeof *length);
    double sum[2] = {0}, often = 0;
    if (!length) return ma_fail(e, MA_MEMORY, "out of memory");
    for (int64_t k = 0; k < c->pairs; k++) {
        compare(c, k, sum, length);
        often += fastest(length, c->height * c->width) > moves;
    }
    ma_release(length);
    out->smoothness = sum[1] > 0 ? 1 - sum[0] / sum[1] : 0;
    out->dynamic = often >= fmax(1, round(OFTEN * (double)(c->pairs + 1)));
    return 0;
}
