/* corr_lookup, upsample_convex: what RAFT does between its networks (Teed & Deng 2020). Forward only.
 *
 * All neighbours of a point share their fractions, so a look-up reads one (2r+2)² patch and interpolates it.
 * Traps: the neighbourhood is laid out dx slowest, as in the original; a point may lie anywhere, or be NaN (then it
 * reads zeros): it is compared as a float before it becomes an index. */
#include "cpu.h"
#include "math.h"

#include <math.h>

enum { RADIUS = 8, SIDE = 2 * RADIUS + 2 }; /* the largest radius, and its patch */

/* The values at column x and row y and `side` on, from an image (h, w); zeros outside. */
static void patch(const float *image, int64_t h, int64_t w, int64_t x, int64_t y, int64_t side, float to[SIDE][SIDE]) {
    for (int64_t i = 0; i < side; i++)
        for (int64_t j = 0; j < side; j++) {
            bool inside = y + i >= 0 && y + i < h && x + j >= 0 && x + j < w;
            to[i][j] = inside ? image[(y + i) * w + x + j] : 0;
        }
}

/* One point of one level: (2r+1)² bilinear samples around (x, y). */
static void look_up(const float *image, int64_t h, int64_t w, float x, float y, int64_t r, float *out) {
    int64_t n = 2 * r + 1;
    float reach = (float)r + 1, left = floorf(x), top = floorf(y);
    if (!(x > -reach && x < (float)w + reach && y > -reach && y < (float)h + reach)) {
        for (int64_t i = 0; i < n * n; i++) out[i] = 0;
        return;
    }
    float at[SIDE][SIDE], fx = x - left, fy = y - top;
    patch(image, h, w, (int64_t)left - r, (int64_t)top - r, n + 1, at);
    for (int64_t dx = 0; dx < n; dx++)
        for (int64_t dy = 0; dy < n; dy++) {
            float upper = at[dy][dx] * (1 - fx) + at[dy][dx + 1] * fx;
            float lower = at[dy + 1][dx] * (1 - fx) + at[dy + 1][dx + 1] * fx;
            *out++ = upper * (1 - fy) + lower * fy;
        }
}

int ma_cpu_corr_lookup_fwd(const ma_call *call) {
    const ma_tensor *coords = call->in[0]; // (B,1,H,W,2)
    int64_t r = call->i[0], levels = call->i[1], points = ma_count(coords) / 2, each = (2 * r + 1) * (2 * r + 1);
    if (r > RADIUS) return -1;
#pragma omp parallel for
    for (int64_t p = 0; p < points; p++)
        for (int64_t k = 0; k < levels; k++) {
            const ma_tensor *level = call->in[1 + k]; // (B·H·W, 1, H>>k, W>>k, 1)
            int64_t h = level->n[2], w = level->n[3];
            const float *at = (float *)coords->data + 2 * p;
            float scale = 1.0f / (float)(1 << k), *out = call->out->data;
            look_up((float *)level->data + p * h * w, h, w, at[0] * scale, at[1] * scale, r,
                    out + (p * levels + k) * each);
        }
    return 0;
}

enum { UP = 8, CELLS = UP * UP, TAPS = 9 };

/* The weights of a point, (9, 64): softmax over the taps for each of its 8×8 cells. */
static void tap_weights(const float *mask, float weight[TAPS][CELLS]) {
    float top[CELLS], sum[CELLS] = {0};
    for (int i = 0; i < CELLS; i++) top[i] = mask[i];
    for (int k = 1; k < TAPS; k++)
        for (int i = 0; i < CELLS; i++) top[i] = mask[k * CELLS + i] > top[i] ? mask[k * CELLS + i] : top[i];
    for (int k = 0; k < TAPS; k++)
        for (int i = 0; i < CELLS; i++) {
            weight[k][i] = ma_expf(mask[k * CELLS + i] - top[i]);
            sum[i] += weight[k][i];
        }
    for (int k = 0; k < TAPS; k++)
        for (int i = 0; i < CELLS; i++) weight[k][i] /= sum[i];
}

/* One line of points: 8 lines of the output. flow (H,W,2) and mask (W, 9·64) of this line, out at its first line. */
static void upsample_line(const float *flow, const float *mask, int64_t h, int64_t w, int64_t y, float *out) {
    for (int64_t x = 0; x < w; x++) {
        float weight[TAPS][CELLS], cell[2][CELLS] = {{0}};
        tap_weights(mask + x * TAPS * CELLS, weight);
        for (int k = 0; k < TAPS; k++) {
            int64_t ny = y + k / 3 - 1, nx = x + k % 3 - 1;
            if (ny < 0 || ny >= h || nx < 0 || nx >= w) continue;
            const float *uv = flow + (ny * w + nx) * 2;
            for (int i = 0; i < CELLS; i++) {
                cell[0][i] += weight[k][i] * (UP * uv[0]);
                cell[1][i] += weight[k][i] * (UP * uv[1]);
            }
        }
        for (int i = 0; i < CELLS; i++)
            for (int d = 0; d < 2; d++) out[((i / UP * w + x) * UP + i % UP) * 2 + d] = cell[d][i];
    }
}

int ma_cpu_upsample_convex_fwd(const ma_call *call) {
    const ma_tensor *flow = call->in[0]; // (B,1,H,W,2)
    int64_t h = flow->n[2], w = flow->n[3];
    const float *f = flow->data, *mask = call->in[1]->data; // mask (B,1,H,W,9·64)
    float *out = call->out->data;                           // (B,1,8H,8W,2)
#pragma omp parallel for
    for (int64_t i = 0; i < flow->n[0] * h; i++)
        upsample_line(f + i / h * h * w * 2, mask + i * w * TAPS * CELLS, h, w, i % h, out + i * w * CELLS * 2);
    return 0;
}
