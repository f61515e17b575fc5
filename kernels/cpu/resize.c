/* resize: trilinear resize and 2×2 pooling. The backward passes gather, so no two threads add to one element.
 */
#include "cpu.h"

#include <math.h>
#include <string.h>

/* One axis of a resize: output o reads input at `scale·o + shift`, held inside. */
typedef struct axis {
    int64_t in, out;
    double scale, shift;
} axis;

/* The two inputs that an output mixes: (1-w)·x[a] + w·x[b]. */
typedef struct mix {
    int64_t a, b;
    float w;
} mix;

/* Aligned corners: the outermost samples' centres coincide. Otherwise their outer edges do (PyTorch's default). */
static axis axis_of(int64_t in, int64_t out, bool align) {
    if (align) return (axis){in, out, out > 1 ? (double)(in - 1) / (double)(out - 1) : 0, 0};
    double scale = (double)in / (double)out;
    return (axis){in, out, scale, 0.5 * scale - 0.5};
}

static mix mix_of(const axis *x, int64_t o) {
    double at = fmax(0, x->scale * (double)o + x->shift);
    int64_t a = (int64_t)at;
    if (a > x->in - 1) a = x->in - 1; /* rounding at the far corner */
    return (mix){a, a + (a < x->in - 1), (float)(at - (double)a)};
}

/* How much of input i is in output o. */
static float share(const axis *x, int64_t o, int64_t i) {
    mix m = mix_of(x, o);
    return (m.a == i ? 1 - m.w : 0) + (m.b == i ? m.w : 0);
}

/* The outputs *from, …, *to-1 that read input i: a guess from the inverse map, then exactly. */
static void readers(const axis *x, int64_t i, int64_t *from, int64_t *to) {
    double guess = x->scale > 0 ? floor(((double)(i - 1) - x->shift) / x->scale) - 1 : 0;
    int64_t o = guess > 0 ? (int64_t)guess : 0;
    while (o < x->out && mix_of(x, o).b < i) o++;
    *from = o;
    while (o < x->out && mix_of(x, o).a <= i) o++;
    *to = o;
}

static void axes_of(const ma_call *call, axis ax[3]) {
    for (int k = 0; k < 3; k++) ax[k] = axis_of(call->in[0]->n[1 + k], call->out->n[1 + k], call->i[0] != 0);
}

/* y += w·x */
static void add_scaled(float *y, const float *x, float w, int64_t n) {
#pragma omp simd
    for (int64_t k = 0; k < n; k++) y[k] += w * x[k];
}

/* One row of output, from the four rows of input around it. */
static void resize_row(float *y, const float *const row[4], const float weight[4], const axis *x, int64_t channels) {
    for (int64_t o = 0; o < x->out; o++, y += channels) {
        mix m = mix_of(x, o);
        memset(y, 0, (size_t)channels * sizeof *y);
        for (int k = 0; k < 4; k++) {
            if (weight[k] == 0) continue;
            add_scaled(y, row[k] + m.a * channels, weight[k] * (1 - m.w), channels);
            if (m.w > 0) add_scaled(y, row[k] + m.b * channels, weight[k] * m.w, channels);
        }
    }
}

int ma_cpu_resize_fwd(const ma_call *call) {
    const ma_tensor *x = call->in[0], *y = call->out;
    const float *in = x->data;
    float *out = y->data;
    int64_t channels = x->n[4], row = x->n[3] * channels, rows = y->n[0] * y->n[1] * y->n[2];
    axis ax[3];
    axes_of(call, ax);
#pragma omp parallel for if (rows > 1)
    for (int64_t r = 0; r < rows; r++) {
        mix t = mix_of(&ax[0], r / y->n[2] % y->n[1]), h = mix_of(&ax[1], r % y->n[2]);
        const float *sample = in + r / (y->n[1] * y->n[2]) * x->n[1] * x->n[2] * row;
        const float *from[4] = {sample + (t.a * x->n[2] + h.a) * row, sample + (t.a * x->n[2] + h.b) * row,
                                sample + (t.b * x->n[2] + h.a) * row, sample + (t.b * x->n[2] + h.b) * row};
        const float weight[4] = {(1 - t.w) * (1 - h.w), (1 - t.w) * h.w, t.w * (1 - h.w), t.w * h.w};
        resize_row(out + r * y->n[3] * channels, from, weight, &ax[2], channels);
    }
    return 0;
}

/* The part of one row of the output's gradient, weighted, that belongs to one row of the input's. */
static void gather_row(float *dx, const float *dy, float weight, const axis *x, int64_t channels) {
    for (int64_t i = 0; i < x->in; i++, dx += channels) {
        int64_t from, to;
        readers(x, i, &from, &to);
        for (int64_t o = from; o < to; o++) add_scaled(dx, dy + o * channels, weight * share(x, o, i), channels);
    }
}

int ma_cpu_resize_bwd(const ma_call *call) {
    const ma_tensor *x = call->in[0], *y = call->out;
    const float *dout = y->grad->data;
    float *din = x->grad->data;
    int64_t channels = x->n[4], rows = x->n[0] * x->n[1] * x->n[2], row = y->n[3] * channels;
    axis ax[3];
    axes_of(call, ax);
#pragma omp parallel for if (rows > 1)
    for (int64_t r = 0; r < rows; r++) {
        int64_t t = r / x->n[2] % x->n[1], h = r % x->n[2], t0, t1, h0, h1;
        const float *sample = dout + r / (x->n[1] * x->n[2]) * y->n[1] * y->n[2] * row;
        readers(&ax[0], t, &t0, &t1);
        readers(&ax[1], h, &h0, &h1);
        for (int64_t i = t0; i < t1; i++)
            for (int64_t j = h0; j < h1; j++) {
                float weight = share(&ax[0], i, t) * share(&ax[1], j, h);
                gather_row(din + r * x->n[3] * channels, sample + (i * y->n[2] + j) * row, weight, &ax[2], channels);
            }
    }
    return 0;
}

/* ---- pool ---- */

int ma_cpu_pool_fwd(const ma_call *call) {
    const ma_tensor *x = call->in[0], *y = call->out;
    const float *in = x->data;
    float *out = y->data;
    int64_t c = x->n[4], row = x->n[3] * c, rows = y->n[0] * y->n[1] * y->n[2];
#pragma omp parallel for if (ma_count(x) > 1 << 14)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t w = 0; w < y->n[3]; w++) {
            const float *a = in + (r / y->n[2] * x->n[2] + r % y->n[2] * 2) * row + 2 * w * c, *b = a + row;
            float *o = out + (r * y->n[3] + w) * c;
            for (int64_t k = 0; k < c; k++) o[k] = 0.25f * (a[k] + a[c + k] + b[k] + b[c + k]);
        }
    return 0;
}

int ma_cpu_pool_bwd(const ma_call *call) {
    const ma_tensor *x = call->in[0], *y = call->out;
    const float *dout = y->grad->data;
    float *din = x->grad->data;
    int64_t c = x->n[4], row = x->n[3] * c, rows = y->n[0] * y->n[1] * y->n[2];
#pragma omp parallel for if (ma_count(x) > 1 << 14)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t w = 0; w < y->n[3]; w++) {
            float *a = din + (r / y->n[2] * x->n[2] + r % y->n[2] * 2) * row + 2 * w * c;
            const float *d = dout + (r * y->n[3] + w) * c;
            for (int k = 0; k < 4; k++) add_scaled(a + k / 2 * row + k % 2 * c, d, 0.25f, c);
        }
    return 0;
}
