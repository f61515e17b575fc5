/* corr_lookup, upsample_convex, gru_reset, gru_update: what RAFT does between its convolutions (Teed & Deng 2020).
 * Forward only.
 *
 * All neighbours of a point share their fractions, so a look-up reads one (2r+2)² patch and interpolates it.
 * Traps: the neighbourhood is laid out dx slowest, as in the original; a point may lie anywhere, or be NaN (then it
 * reads zeros): it is compared as a float before it becomes an index. */
#include "cpu.h"
#include "gemm.h"
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
    int64_t width = call->out->n[4];
    if (r > RADIUS) return -1;
#pragma omp parallel for
    for (int64_t p = 0; p < points; p++) {
        float *out = (float *)call->out->data + p * width;
        for (int64_t k = 0; k < levels; k++, out += each) {
            const ma_tensor *level = call->in[1 + k]; // (B·H·W, 1, H>>k, W>>k, 1)
            int64_t h = level->n[2], w = level->n[3];
            const float *at = (float *)coords->data + 2 * p;
            float scale = 1.0f / (float)(1 << k);
            look_up((float *)level->data + p * h * w, h, w, at[0] * scale, at[1] * scale, r, out);
        }
        for (int64_t k = levels * each; k < width; k++) *out++ = 0;
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

/* ---- the GRU ---- */

/* One position's n channels of a gate: act(a + b + c). */
static void gate(ma_act act, const float *a, const float *b, const float *c, float *to, int64_t n) {
#pragma omp simd
    for (int64_t k = 0; k < n; k++) to[k] = a[k] + b[k] + c[k];
    ma_act_fwd(act, to, to, (size_t)n);
}

int ma_cpu_gru_reset_fwd(const ma_call *call) {
    const float *h = call->in[0]->data, *of_h = call->in[1]->data;       // (…, C), (…, 2C)
    const float *of_x = call->in[2]->data, *of_rest = call->in[3]->data; // (…, 3C)
    float *out = call->out->data;                                        // (…, C)
    int64_t c = call->out->n[call->out->nd - 1], rows = ma_count(call->out) / c;
#pragma omp parallel for
    for (int64_t p = 0; p < rows; p++) {
        float *r = out + p * c;
        gate(MA_SIGMOID, of_h + (2 * p + 1) * c, of_x + (3 * p + 1) * c, of_rest + (3 * p + 1) * c, r, c);
        for (int64_t k = 0; k < c; k++) r[k] *= h[p * c + k];
    }
    return 0;
}

int ma_cpu_gru_update_fwd(const ma_call *call) {
    enum { BLOCK = 64 };
    const float *h = call->in[0]->data, *of_h = call->in[1]->data;       // (…, C), (…, 2C)
    const float *of_x = call->in[2]->data, *of_rest = call->in[3]->data; // (…, 3C)
    const float *of_rh = call->in[4]->data;                              // (…, C)
    float *out = call->out->data;                                        // (…, C)
    int64_t c = call->out->n[call->out->nd - 1], rows = ma_count(call->out) / c;
#pragma omp parallel for
    for (int64_t p = 0; p < rows; p++)
        for (int64_t from = 0; from < c; from += BLOCK) {
            int64_t n = ma_min(BLOCK, c - from), one = p * c + from, three = 3 * p * c + from;
            float z[BLOCK], q[BLOCK];
            gate(MA_SIGMOID, of_h + 2 * p * c + from, of_x + three, of_rest + three, z, n);
            gate(MA_TANH, of_rh + one, of_x + three + 2 * c, of_rest + three + 2 * c, q, n);
            for (int64_t k = 0; k < n; k++) out[one + k] = (1 - z[k]) * h[one + k] + z[k] * q[k];
        }
    return 0;
}
