/* cases: every op as a table of cases, for the tests here and on other devices. A case says how to call the op on
 * small, odd shapes and, where this is short, defines it in plain double precision. */
#ifndef CASES_H
#define CASES_H

#include "../../common/ops.h"
#include "../../common/rng.h"
#include "../tap.h"

#include <string.h>

enum { INPUTS = 6 };

typedef struct op_case op_case;
struct op_case {
    const char *name;
    ma_op op;
    int64_t in[INPUTS][MA_DIMS]; /* shapes, ended by 0; all 0: NULL */
    unsigned fixed;              /* bit k: input k takes no gradient */
    int64_t i[6];                /* for run and define */
    double f[2];
    ma_tensor *(*run)(ma_ctx *, ma_tensor **in, const op_case *);
    void (*define)(const op_case *, double *const *in, double *out); /* or NULL */
    bool kinked; /* and not defined here: finite differences in fp32 would step over its kinks */
};

static inline int dims(const int64_t *n) {
    int nd = 0;
    while (nd < MA_DIMS && n[nd]) nd++;
    return nd;
}

static inline int64_t elements(const int64_t *n) {
    int64_t count = dims(n) > 0;
    for (int k = 0; k < dims(n); k++) count *= n[k];
    return count;
}

/* ---- definitions ---- */

static double activate(int64_t act, double x) {
    switch ((ma_act)act) {
    case MA_RELU: return x > 0 ? x : 0;
    case MA_SIGMOID: return 1 / (1 + exp(-x));
    case MA_TANH: return tanh(x);
    case MA_SILU: return x / (1 + exp(-x));
    case MA_GELU: return x / 2 * (1 + erf(x / sqrt(2)));
    case MA_GELU_TANH: return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case MA_NONE: break;
    }
    return x;
}

static void def_act(const op_case *k, double *const *in, double *out) {
    for (int64_t e = 0; e < elements(k->in[0]); e++) out[e] = activate(k->i[0], in[0][e]);
}

static void def_add(const op_case *k, double *const *in, double *out) {
    for (int64_t e = 0; e < elements(k->in[0]); e++)
        out[e] = activate(k->i[0], in[0][e] + in[1][e % elements(k->in[1])]);
}

static void def_sum(const op_case *k, double *const *in, double *out) {
    for (int64_t e = 0; e < elements(k->in[0]); e++) out[e] = in[0][e] + in[1][e];
}

static void def_mul(const op_case *k, double *const *in, double *out) {
    for (int64_t e = 0; e < elements(k->in[0]); e++) out[e] = in[0][e] * in[1][e % elements(k->in[1])];
}

static void def_twice(const op_case *k, double *const *in, double *out) {
    for (int64_t e = 0; e < elements(k->in[0]); e++) out[e] = 2 * in[0][e];
}

static void def_square(const op_case *k, double *const *in, double *out) {
    for (int64_t e = 0; e < elements(k->in[0]); e++) out[e] = in[0][e] * in[0][e];
}

static void def_affine(const op_case *k, double *const *in, double *out) {
    for (int64_t e = 0; e < elements(k->in[0]); e++) out[e] = k->f[0] * in[0][e] + k->f[1];
}

static void def_rope(const op_case *k, double *const *in, double *out) {
    int64_t len = k->in[0][1], heads = k->in[0][2], dim = k->in[0][3];
    for (int64_t e = 0; e < elements(k->in[0]); e++) {
        int64_t l = e / dim / heads % len - k->i[0], d = e % dim, odd = d % 2;
        double other = odd ? in[0][e - 1] : -in[0][e + 1];
        out[e] = l < 0 ? in[0][e] : in[0][e] * in[1][l * dim + d] + other * in[2][l * dim + d];
    }
}

/* mean and 1/deviation of n numbers that stand in runs of `run`, `step` apart. */
static void def_spread(const double *x, int64_t runs, int64_t run, int64_t step, double eps, double *mean,
                        double *inv) {
    double sum = 0, squares = 0, n = (double)(runs * run);
    for (int64_t a = 0; a < runs; a++)
        for (int64_t b = 0; b < run; b++) sum += x[a * step + b];
    *mean = sum / n;
    for (int64_t a = 0; a < runs; a++)
        for (int64_t b = 0; b < run; b++) {
            double d = x[a * step + b] - *mean;
            squares += d * d;
        }
    *inv = 1 / sqrt(squares / n + eps);
}

static void def_layer_norm(const op_case *k, double *const *in, double *out) {
    int64_t c = k->in[0][dims(k->in[0]) - 1];
    for (int64_t r = 0; r < elements(k->in[0]); r += c) {
        double mean, inv;
        def_spread(in[0] + r, 1, c, 0, k->f[0], &mean, &inv);
        for (int64_t j = 0; j < c; j++)
            out[r + j] = (in[0][r + j] - mean) * inv * (in[1] ? in[1][j] : 1) + (in[2] ? in[2][j] : 0);
    }
}

static void def_modulate(const op_case *k, double *const *in, double *out) {
    int64_t len = k->in[0][1], c = k->in[0][2], rows = k->in[3][1];
    def_layer_norm(k, in, out);
    for (int64_t e = 0; e < elements(k->in[0]); e++) {
        int64_t text = e / c % len < k->i[0];
        const double *mod = in[3] + e / c / len * rows * c + e % c;
        out[e] = out[e] * (1 + mod[k->i[2 + 2 * text] * c]) + mod[k->i[1 + 2 * text] * c];
    }
}

static void def_gate(const op_case *k, double *const *in, double *out) {
    int64_t len = k->in[0][1], c = k->in[0][2], rows = k->in[2][1];
    for (int64_t e = 0; e < elements(k->in[0]); e++) {
        int64_t row = e / c % len < k->i[0] ? k->i[2] : k->i[1];
        out[e] = in[0][e] + in[2][(e / c / len * rows + row) * c + e % c] * in[1][e];
    }
}

static void def_group_norm(const op_case *k, double *const *in, double *out) {
    const int64_t *n = k->in[0], c = n[4], space = n[1] * n[2] * n[3], per = c / k->i[0];
    for (int64_t g = 0; g < n[0] * k->i[0]; g++) {
        int64_t first = g / k->i[0] * space * c + g % k->i[0] * per;
        double mean, inv;
        def_spread(in[0] + first, space, per, c, k->f[0], &mean, &inv);
        for (int64_t e = 0; e < space * per; e++) {
            int64_t at = first + e / per * c + e % per, j = at % c;
            out[at] = activate(k->i[1], (in[0][at] - mean) * inv * (in[1] ? in[1][j] : 1) + (in[2] ? in[2][j] : 0));
        }
    }
}

/* Frame t of T, or position of n, in a map of m: of an odd number of frames the first is apart. */
static int64_t def_nearest(int64_t at, int64_t n, int64_t m, bool frames) {
    int64_t apart = frames && n > 1 && n % 2;
    return at < apart ? 0 : apart + (at - apart) * (m - apart) / (n - apart);
}

static void def_moments(const op_case *k, double *const *in, double *out) {
    const int64_t *n = k->in[0], c = n[4], space = n[1] * n[2] * n[3], groups = n[0] * k->i[0], per = c / k->i[0];
    double *sum = ma_alloc((size_t)elements(n), sizeof *sum);
    for (int64_t e = 0; e < elements(n); e++) sum[e] = in[0][e] + (in[1] ? in[1][e] : 0);
    for (int64_t g = 0; g < groups; g++) {
        int64_t first = g / k->i[0] * space * c + g % k->i[0] * per;
        double inv;
        def_spread(sum + first, space, per, c, 0, &out[g], &inv);
        out[groups + g] = 1 / (inv * inv);
    }
    ma_release(sum);
}

/* y (B,T,H,W,C): what stands behind the past. */
static void def_causal_frames(const op_case *k, double *const *in, double *y) {
    const int64_t *n = k->in[0], *m = k->in[3], c = n[4];
    op_case norm = *k;
    norm.i[1] = MA_NONE;
    if (k->i[0])
        def_group_norm(&norm, in, y);
    else
        memcpy(y, in[0], (size_t)elements(n) * sizeof *y);
    for (int64_t e = 0; e < elements(n); e++) {
        int64_t p = e / c, w = p % n[3], h = p / n[3] % n[2], t = p / n[3] / n[2] % n[1], b = p / n[3] / n[2] / n[1];
        if (in[3]) {
            int64_t at = (b * m[1] + def_nearest(t, n[1], m[1], true)) * m[2] + def_nearest(h, n[2], m[2], false);
            at = (at * m[3] + def_nearest(w, n[3], m[3], false)) * m[4] + k->i[4] + e % c;
            y[e] = y[e] * in[3][at] + in[3][at + c];
        }
        y[e] = activate(k->i[1], y[e]);
    }
}

/* Of two calls with the same x the second, as run_causal_norm; without a past, of one. */
static void def_causal_norm(const op_case *k, double *const *in, double *out) {
    const int64_t *n = k->in[0], lead = k->i[2], plane = n[2] * n[3] * n[4], frames = lead + n[1];
    double *y = ma_alloc((size_t)elements(n), sizeof *y);
    def_causal_frames(k, in, y);
    for (int64_t f = 0; f < n[0] * frames; f++) {
        int64_t b = f / frames, t = f % frames - lead; /* of this call; of the one before, from its frames on: */
        const double *from = y + (b * n[1] + (t < 0 && !in[4] ? 0 : t)) * plane;
        if (t < 0 && in[4] && (t += n[1]) >= 0) from = y + (b * n[1] + t) * plane;
        if (t < 0 && in[4]) from = k->i[3] ? y + b * n[1] * plane : in[4] + (b * lead + lead + t) * plane;
        for (int64_t e = 0; e < plane; e++) out[f * plane + e] = from[e];
    }
    ma_release(y);
}

/* Along one axis: each input as (outer, length·inner). */
static void def_concat(const op_case *k, double *const *in, double *out) {
    int64_t axis = k->i[0], outer = 1;
    for (int64_t d = 0; d < axis; d++) outer *= k->in[0][d];
    for (int64_t o = 0; o < outer; o++)
        for (int j = 0; j < INPUTS && in[j]; j++) {
            int64_t run = elements(k->in[j]) / outer;
            for (int64_t e = 0; e < run; e++) *out++ = in[j][o * run + e];
        }
}

static void def_slice(const op_case *k, double *const *in, double *out) {
    int64_t axis = k->i[0], outer = 1, length = k->in[0][axis];
    for (int64_t d = 0; d < axis; d++) outer *= k->in[0][d];
    int64_t inner = elements(k->in[0]) / outer / length;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t e = 0; e < k->i[2] * inner; e++) *out++ = in[0][(o * length + k->i[1]) * inner + e];
}

/* A gate's channel k of 3·c, position p: its two sums with inputs 2 and 3. */
static double def_gate_sum(double *const *in, int64_t p, int64_t c, int64_t k) {
    return in[2][3 * p * c + k] + in[3][3 * p * c + k];
}

static void def_gru_reset(const op_case *k, double *const *in, double *out) {
    int64_t c = k->in[0][dims(k->in[0]) - 1];
    for (int64_t e = 0; e < elements(k->in[0]); e++) {
        int64_t p = e / c, r = c + e % c;
        out[e] = in[0][e] * activate(MA_SIGMOID, in[1][2 * p * c + r] + def_gate_sum(in, p, c, r));
    }
}

static void def_gru_update(const op_case *k, double *const *in, double *out) {
    int64_t c = k->in[0][dims(k->in[0]) - 1];
    for (int64_t e = 0; e < elements(k->in[0]); e++) {
        int64_t p = e / c, z = e % c, q = 2 * c + z;
        double share = activate(MA_SIGMOID, in[1][2 * p * c + z] + def_gate_sum(in, p, c, z));
        out[e] = (1 - share) * in[0][e] + share * tanh(in[4][e] + def_gate_sum(in, p, c, q));
    }
}

static void def_cast(const op_case *k, double *const *in, double *out) {
    int64_t have = k->in[0][dims(k->in[0]) - 1], width = k->i[0];
    for (int64_t e = 0; e < elements(k->in[0]) / have * width; e++)
        out[e] = e % width < have ? in[0][e / width * have + e % width] : 0;
}

/* A byte out of a random number, and how a colour of it is seen. */
static uint8_t pixel_byte(double x) {
    return (uint8_t)(int)(fabs(x) * 97);
}

static ma_colours pixel_colours(const op_case *k) {
    ma_colours m;
    for (int c = 0; c < 3; c++) {
        m.mul[c] = k->f[0] * (c + 1);
        m.add[c] = k->f[1] - c;
    }
    return m;
}

static void def_pixels(const op_case *k, double *const *in, double *out) {
    const ma_colours m = pixel_colours(k);
    int64_t width = k->i[0];
    for (int64_t e = 0; e < elements(k->in[0]) / 3 * width; e++) {
        int64_t c = e % width;
        out[e] = c < 3 ? pixel_byte(in[0][e / width * 3 + c]) * m.mul[c] + m.add[c] : 0;
    }
}

/* A few samples' noising: i[0] the step; i[1]: the posterior is f16. */
static void noisings(ma_noising *how, int64_t n) {
    for (int64_t b = 0; b < n; b++) {
        const ma_rng rng = ma_rng_make(5, (char[]){(char)('a' + b), 0}, 0, MA_RNG_TEST);
        how[b] = (ma_noising){.signal = 0.9f / (float)(b + 1), .noise = 0.3f * (float)(b + 1)};
        memcpy(how[b].key, rng.key, sizeof rng.key);
    }
}

static void def_diffuse(const op_case *k, double *const *in, double *out) {
    const int64_t *n = k->in[0], batch = n[0], channels = n[1] / 2, plane = n[2] * n[3] * n[4], count = channels * plane;
    ma_noising how[8];
    noisings(how, batch);
    for (int64_t b = 0; b < batch; b++) {
        float *z[2];
        for (int j = 0; j < 2; j++) {
            ma_rng rng = ma_rng_make(0, NULL, (uint64_t)k->i[0], j ? MA_RNG_NOISE : MA_RNG_POSTERIOR);
            memcpy(rng.key, how[b].key, sizeof rng.key);
            z[j] = ma_alloc((size_t)count, sizeof *z[j]);
            ma_rng_fill_normal(&rng, z[j], (size_t)count);
        }
        for (int64_t e = 0; e < count; e++) {
            double two[2];
            for (int j = 0; j < 2; j++) {
                two[j] = in[0][((2 * b + j) * channels + e % channels) * plane + e / channels];
                if (k->i[1]) two[j] = ma_f16_to_f32(ma_f32_to_f16((float)two[j]));
            }
            double x0 = k->f[0] * (two[0] + exp(fmin(fmax(two[1], -30), 20) / 2) * z[0][e]);
            out[b * count + e] = how[b].signal * x0 + how[b].noise * z[1][e];
            out[(batch + b) * count + e] = how[b].signal * z[1][e] - how[b].noise * x0;
        }
        ma_release(z[0]);
        ma_release(z[1]);
    }
}

/* Numbers that are no row's take the nearest. */
static void def_embed(const op_case *k, double *const *in, double *out) {
    int64_t width = k->in[0][1];
    for (int64_t e = 0; e < elements(k->in[1]) * width; e++) {
        double row = fmin(fmax(floor(in[1][e / width]), 0), (double)k->in[0][0] - 1);
        out[e] = in[0][(int64_t)row * width + e % width];
    }
}

static void def_rms_norm(const op_case *k, double *const *in, double *out) {
    int64_t c = elements(k->in[1]);
    for (int64_t r = 0; r < elements(k->in[0]); r += c) {
        double squares = 0;
        for (int64_t j = 0; j < c; j++) squares += in[0][r + j] * in[0][r + j];
        for (int64_t j = 0; j < c; j++) out[r + j] = in[0][r + j] / sqrt(squares / (double)c + k->f[0]) * in[1][j];
    }
}

static void def_linear_add(const op_case *k, double *const *in, double *out) {
    int64_t n = k->in[2][0], c = k->in[2][1];
    for (int64_t e = 0; e < elements(k->in[0]); e++) {
        out[e] = in[0][e] + (in[3] ? in[3][e % n] : 0);
        for (int64_t j = 0; j < c; j++) out[e] += in[1][e / n * c + j] * in[2][e % n * c + j];
    }
}

static void def_attention_relative(const op_case *k, double *const *in, double *out) {
    int64_t l = k->in[0][1], heads = k->in[0][2], d = k->in[0][3], m = k->in[1][1];
    for (int64_t row = 0; row < elements(k->in[0]) / d; row++) { /* of (B,L,H) */
        int64_t b = row / heads / l, i = row / heads % l, h = row % heads;
        double *o = out + row * d, sum = 0;
        memset(o, 0, (size_t)d * sizeof *o);
        for (int64_t j = 0; j < m; j++) {
            int64_t key = ((b * m + j) * heads + h) * d;
            double score = in[3][h * (l + m - 1) + j - i + l - 1], p;
            for (int64_t e = 0; e < d; e++) score += k->f[0] * in[0][row * d + e] * in[1][key + e];
            sum += p = exp(score);
            for (int64_t e = 0; e < d; e++) o[e] += p * in[2][key + e];
        }
        for (int64_t e = 0; e < d; e++) o[e] /= sum;
    }
}

static void def_unpatch(const op_case *k, double *const *in, double *out) {
    int64_t p = k->i[0], h = k->in[0][2], w = k->in[0][3], size = k->in[0][4], c = size / (p * p);
    for (int64_t f = 0; f < k->in[0][0] * k->in[0][1]; f++)
        for (int64_t y = 0; y < h * p; y++)
            for (int64_t x = 0; x < w * p; x++)
                for (int64_t j = 0; j < c; j++)
                    *out++ = in[0][((f * h + y / p) * w + x / p) * size + j * p * p + y % p * p + x % p];
}

/* Weight of input i in output o of one axis: a tent around where the output looks. */
static double def_tent(int64_t in, int64_t out, int64_t align, int64_t o, int64_t i) {
    double at = align ? (out > 1 ? (double)o * (double)(in - 1) / (double)(out - 1) : 0)
                      : ((double)o + 0.5) * (double)in / (double)out - 0.5;
    at = fmin(fmax(at, 0), (double)(in - 1));
    return fmax(0, 1 - fabs(at - (double)i));
}

static void def_resize(const op_case *k, double *const *in, double *out) {
    const int64_t *n = k->in[0], *to = k->i + 1, c = n[4];
    for (int64_t e = 0; e < n[0] * to[0] * to[1] * to[2] * c; e++) {
        int64_t x = e / c % to[2], y = e / c / to[2] % to[1], t = e / c / to[2] / to[1] % to[0];
        out[e] = 0;
        for (int64_t s = 0; s < n[1] * n[2] * n[3]; s++) {
            double weight = def_tent(n[1], to[0], k->i[0], t, s / n[3] / n[2]) *
                            def_tent(n[2], to[1], k->i[0], y, s / n[3] % n[2]) *
                            def_tent(n[3], to[2], k->i[0], x, s % n[3]);
            int64_t sample = e / (to[0] * to[1] * to[2] * c);
            out[e] += weight * in[0][(sample * n[1] * n[2] * n[3] + s) * c + e % c];
        }
    }
}

static void def_pool(const op_case *k, double *const *in, double *out) {
    const int64_t *n = k->in[0], c = n[4];
    for (int64_t f = 0; f < n[0] * n[1]; f++)
        for (int64_t y = 0; y < n[2] / 2; y++)
            for (int64_t x = 0; x < n[3] / 2; x++)
                for (int64_t j = 0; j < c; j++) {
                    const double *a = in[0] + ((f * n[2] + 2 * y) * n[3] + 2 * x) * c + j;
                    *out++ = (a[0] + a[c] + a[n[3] * c] + a[(n[3] + 1) * c]) / 4;
                }
}

static void def_l1(const op_case *k, double *const *in, double *out) {
    *out = 0;
    for (int64_t e = 0; e < elements(k->in[0]); e++) *out += fabs(in[0][e] - in[1][e]);
    *out /= (double)elements(k->in[0]);
}

static void def_mse(const op_case *k, double *const *in, double *out) {
    *out = 0;
    for (int64_t e = 0; e < elements(k->in[0]); e++) *out += (in[0][e] - in[1][e]) * (in[0][e] - in[1][e]);
    *out /= (double)elements(k->in[0]);
}

/* ---- calls ---- */

static ma_window window_of(const op_case *k) { /* i: stride (t, h, w), padding (t, h, w) */
    return MA_WINDOW(k->i[0], k->i[1], k->i[2], k->i[3], k->i[4], k->i[5]);
}

#define CALL(name, ...)                                                                                                \
    static ma_tensor *run_##name(ma_ctx *c, ma_tensor **in, const op_case *k) {                                        \
        (void)k;                                                                                                       \
        return __VA_ARGS__;                                                                                            \
    }
CALL(linear, ma_linear(c, in[0], in[1], in[2], (ma_act)k->i[0]))
CALL(matmul, ma_matmul(c, in[0], in[1], k->f[0]))
CALL(conv, ma_conv(c, in[0], in[1], in[2], window_of(k), (ma_act)k->f[0]))
CALL(conv_transpose, ma_conv_transpose(c, in[0], in[1], in[2], window_of(k), (ma_act)k->f[0]))
CALL(attention, ma_attention(c, in[0], in[1], in[2], k->f[0]))
CALL(layer_norm, ma_layer_norm(c, in[0], in[1], in[2], k->f[0]))
CALL(modulate, ma_modulate(c, in[0], in[1], in[2], in[3], k->f[0], k->i[0], (int)k->i[1], (int)k->i[2], (int)k->i[3],
                           (int)k->i[4]))
CALL(gate, ma_gate(c, in[0], in[1], in[2], k->i[0], (int)k->i[1], (int)k->i[2]))
CALL(group_norm, ma_group_norm(c, in[0], in[1], in[2], k->i[0], k->f[0], (ma_act)k->i[1]))
CALL(moments, ma_moments(c, in[0], in[1], k->i[0]))
/* The sum that it makes in place. */
static ma_tensor *run_moments_sum(ma_ctx *c, ma_tensor **in, const op_case *k) {
    return ma_moments(c, in[0], in[1], k->i[0]) ? in[0] : NULL;
}
/* i: groups or 0, act, lead, fresh, from */
static ma_tensor *run_causal_norm(ma_ctx *c, ma_tensor **in, const op_case *k) {
    ma_causal how = {k->f[0], (ma_act)k->i[1], k->i[2], k->i[4], k->i[3]};
    ma_tensor *moments = k->i[0] ? ma_moments(c, in[0], NULL, k->i[0]) : NULL;
    ma_tensor *out = ma_causal_norm(c, in[0], moments, in[1], in[2], in[3], in[4], how);
    how.fresh = false;
    return in[4] ? ma_causal_norm(c, in[0], moments, in[1], in[2], in[3], in[4], how) : out;
}
CALL(rope, ma_rope(c, in[0], in[1], in[2], k->i[0]))
CALL(act, ma_act_(c, in[0], (ma_act)k->i[0]))
CALL(add, ma_add_act(c, in[0], in[1], (ma_act)k->i[0]))
CALL(add_to, ma_add_to(c, in[0], in[1]))
CALL(twice, ma_add(c, in[0], in[0]))
CALL(mul, ma_mul_(c, in[0], in[1]))
CALL(square, ma_mul_(c, in[0], in[0]))
CALL(affine, ma_affine(c, in[0], k->f[0], k->f[1]))
CALL(concat, ma_concat(c, in, in[2] ? 3 : 2, (int)k->i[0]))
CALL(slice, ma_slice(c, in[0], (int)k->i[0], k->i[1], k->i[2]))
CALL(unpatch, ma_unpatch(c, in[0], k->i[0]))
CALL(resize, ma_resize(c, in[0], k->i[1], k->i[2], k->i[3], k->i[0] != 0))
CALL(pool, ma_pool(c, in[0]))
CALL(corr_lookup, ma_corr_lookup(c, in[0], in + 1, 2, k->i[0], 2 * (2 * k->i[0] + 1) * (2 * k->i[0] + 1) + k->i[1]))
CALL(gru_reset, ma_gru_reset(c, in[0], in[1], in[2], in[3]))
CALL(gru_update, ma_gru_update(c, in[0], in[1], in[2], in[3], in[4]))
CALL(cast, ma_cast(c, in[0], MA_F32, k->i[0]))
CALL(embed, ma_embed(c, in[0], in[1]))

static ma_tensor *run_pixels(ma_ctx *c, ma_tensor **in, const op_case *k) {
    const ma_colours m = pixel_colours(k);
    int64_t n = ma_count(in[0]);
    ma_tensor *bytes = ma_new(c, MA_U8, in[0]->nd, in[0]->n);
    uint8_t *host = ma_alloc((size_t)n, 1);
    float *values = ma_alloc((size_t)n, sizeof *values);
    ma_get(c, in[0], values);
    for (int64_t e = 0; e < n; e++) host[e] = pixel_byte(values[e]);
    ma_put_raw(c, bytes, host);
    ma_release(values);
    ma_release(host);
    return ma_pixels(c, bytes, &m, k->i[0]);
}

static ma_tensor *run_diffuse(ma_ctx *c, ma_tensor **in, const op_case *k) {
    ma_noising how[8];
    ma_tensor *posterior = in[0];
    noisings(how, in[0]->n[0]);
    if (k->i[1]) {
        const size_t n = (size_t)ma_count(in[0]);
        float *values = ma_alloc(n, sizeof *values);
        posterior = ma_new(c, MA_F16, in[0]->nd, in[0]->n);
        ma_get(c, in[0], values);
        ma_from_f32(values, values, MA_F16, n);
        ma_put_raw(c, posterior, values);
        ma_release(values);
    }
    return ma_diffuse(c, posterior, how, k->i[0], k->f[0]);
}
CALL(rms_norm, ma_rms_norm(c, in[0], in[1], k->f[0]))
CALL(linear_add, ma_linear_add(c, in[0], in[1], in[2], in[3]))
CALL(attention_relative, ma_attention_relative(c, in[0], in[1], in[2], in[3], k->f[0]))
CALL(upsample_convex, ma_upsample_convex(c, in[0], in[1]))
CALL(l1, ma_l1(c, in[0], in[1]))
CALL(mse, ma_mse(c, in[0], in[1]))
CALL(relation, ma_relation(c, in[0], in[1], in[2], k->f[0]))
CALL(cosine, ma_cosine(c, in[0], in[1]))
#undef CALL

/* ---- the table ---- */

#define OP(UPPER, lower)      .op = MA_OP_##UPPER, .run = run_##lower
#define DEFINED(UPPER, lower) OP(UPPER, lower), .define = def_##lower
static const op_case cases[] = {
    {"linear", OP(LINEAR, linear), .in = {{5, 7}, {3, 7}, {3}}},
    {"linear, silu, no bias", OP(LINEAR, linear), .in = {{2, 3, 7}, {5, 7}}, .i = {MA_SILU}},
    {"linear, gelu, many rows", OP(LINEAR, linear), .in = {{301, 33}, {70, 33}, {70}}, .i = {MA_GELU}},
    {"linear, tanh", OP(LINEAR, linear), .in = {{5, 7}, {3, 7}, {3}}, .i = {MA_TANH}},
    {"matmul", OP(MATMUL, matmul), .in = {{2, 5, 7}, {2, 3, 7}}, .f = {0.3}},
    {"conv", OP(CONV, conv), .in = {{2, 3, 5, 4, 3}, {4, 2, 3, 3, 3}, {4}}, .i = {1, 2, 1, 0, 1, 1}},
    {"conv, sigmoid", OP(CONV, conv), .in = {{1, 3, 4, 5, 2}, {3, 3, 1, 1, 2}, {3}}, .i = {1, 1, 1, 1, 0, 0},
     .f = {MA_SIGMOID}},
    {"conv, silu, 1x1", OP(CONV, conv), .in = {{2, 1, 3, 5, 7}, {4, 1, 1, 1, 7}}, .i = {1, 1, 1, 0, 0, 0},
     .f = {MA_SILU}},
    {"conv_transpose, silu", OP(CONV_TRANSPOSE, conv_transpose), .in = {{1, 2, 3, 4, 3}, {3, 1, 4, 4, 2}, {2}},
     .i = {1, 2, 2, 0, 1, 1}, .f = {MA_SILU}},
    {"attention", OP(ATTENTION, attention), .in = {{2, 5, 3, 4}, {2, 7, 3, 4}, {2, 7, 3, 4}}, .f = {0.5}},
    {"attention, long", OP(ATTENTION, attention), .in = {{1, 131, 2, 8}, {1, 131, 2, 8}, {1, 131, 2, 8}}, .f = {0.35}},

    {"layer_norm", DEFINED(LAYER_NORM, layer_norm), .in = {{3, 4, 7}, {7}, {7}}, .f = {1e-5}},
    {"layer_norm, bare", DEFINED(LAYER_NORM, layer_norm), .in = {{5, 33}}, .f = {1e-6}},
    {"layer_norm, many rows", DEFINED(LAYER_NORM, layer_norm), .in = {{300, 131}, {131}, {131}}, .f = {1e-5}},
    {"modulate", DEFINED(MODULATE, modulate), .in = {{2, 5, 7}, {7}, {7}, {2, 6, 7}}, .i = {2, 0, 1, 3, 4},
     .f = {1e-5}},
    {"modulate, no text, bare", DEFINED(MODULATE, modulate), .in = {{2, 5, 7}, {0}, {0}, {2, 2, 7}},
     .i = {0, 1, 0, 0, 0}, .f = {1e-5}},
    {"modulate, all text, shared rows", DEFINED(MODULATE, modulate), .in = {{1, 4, 5}, {5}, {5}, {1, 2, 5}},
     .i = {4, 0, 1, 0, 1}, .f = {1e-5}},
    {"modulate, many tokens", DEFINED(MODULATE, modulate), .in = {{2, 300, 70}, {70}, {70}, {2, 6, 70}},
     .i = {130, 0, 1, 3, 4}, .f = {1e-5}},
    {"gate", DEFINED(GATE, gate), .in = {{2, 5, 7}, {2, 5, 7}, {2, 6, 7}}, .i = {2, 2, 5}},
    {"gate, many tokens", DEFINED(GATE, gate), .in = {{2, 300, 70}, {2, 300, 70}, {2, 6, 70}}, .i = {130, 2, 5}},
    {"group_norm", DEFINED(GROUP_NORM, group_norm), .in = {{2, 3, 2, 3, 6}, {6}, {6}}, .i = {3, MA_NONE}, .f = {1e-5}},
    {"group_norm, silu", DEFINED(GROUP_NORM, group_norm), .in = {{2, 2, 3, 3, 8}, {8}, {8}}, .i = {2, MA_SILU},
     .f = {1e-6}},
    {"group_norm, instance, relu", DEFINED(GROUP_NORM, group_norm), .in = {{2, 1, 5, 3, 4}}, .i = {4, MA_RELU},
     .f = {1e-5}},
    {"group_norm, many positions", DEFINED(GROUP_NORM, group_norm), .in = {{1, 3, 11, 19, 70}, {70}, {70}},
     .i = {7, MA_SILU}, .f = {1e-5}},
    {"group_norm, many channels", DEFINED(GROUP_NORM, group_norm), .in = {{1, 1, 2, 3, 520}, {520}, {520}},
     .i = {8, MA_GELU}, .f = {1e-5}},
    {"moments", DEFINED(MOMENTS, moments), .in = {{2, 3, 2, 5, 6}}, .i = {3}},
    {"moments of a sum", DEFINED(MOMENTS, moments), .in = {{2, 3, 5, 7, 24}, {2, 3, 5, 7, 24}}, .i = {4}},
    {"moments of a sum, many positions", DEFINED(MOMENTS, moments), .in = {{1, 9, 24, 40, 70}, {1, 9, 24, 40, 70}},
     .i = {7}},
    {"moments, the sum", .op = MA_OP_MOMENTS, .run = run_moments_sum, .define = def_sum,
     .in = {{2, 3, 24, 40, 24}, {2, 3, 24, 40, 24}}, .i = {2}},
    {"causal_norm, bare", DEFINED(CAUSAL_NORM, causal_norm), .in = {{2, 3, 2, 5, 3}}, .i = {0, MA_NONE, 2}},
    {"causal_norm, silu", DEFINED(CAUSAL_NORM, causal_norm), .in = {{2, 2, 3, 5, 8}, {8}, {8}}, .i = {2, MA_SILU, 2},
     .f = {1e-6}},
    {"causal_norm, past", DEFINED(CAUSAL_NORM, causal_norm), .in = {{2, 5, 3, 4, 6}, {6}, {6}, {0}, {2, 2, 3, 4, 6}},
     .i = {3, MA_SILU, 2}, .f = {1e-5}},
    {"causal_norm, one frame, past", DEFINED(CAUSAL_NORM, causal_norm),
     .in = {{1, 1, 3, 4, 16}, {16}, {16}, {0}, {1, 2, 3, 4, 16}}, .i = {4, MA_SILU, 2}, .f = {1e-5}},
    {"causal_norm, one frame, fresh past", DEFINED(CAUSAL_NORM, causal_norm),
     .in = {{1, 1, 3, 4, 16}, {16}, {16}, {0}, {1, 2, 3, 4, 16}}, .i = {4, MA_SILU, 2, true}, .f = {1e-5}},
    {"causal_norm, long past", DEFINED(CAUSAL_NORM, causal_norm), .in = {{1, 2, 3, 4, 8}, {0}, {0}, {0}, {1, 6, 3, 4, 8}},
     .i = {4, MA_TANH, 6}, .f = {1e-5}},
    {"causal_norm, scaled, odd frames", DEFINED(CAUSAL_NORM, causal_norm),
     .in = {{2, 5, 4, 9, 8}, {8}, {8}, {2, 3, 2, 3, 40}, {2, 2, 4, 9, 8}}, .i = {2, MA_SILU, 2, true, 16}, .f = {1e-6}},
    {"causal_norm, scaled, even frames", DEFINED(CAUSAL_NORM, causal_norm),
     .in = {{1, 8, 4, 10, 7}, {7}, {7}, {1, 2, 1, 10, 14}, {1, 3, 4, 10, 7}}, .i = {7, MA_NONE, 3}, .f = {1e-6}},
    {"causal_norm, scaled from an odd channel", DEFINED(CAUSAL_NORM, causal_norm),
     .in = {{1, 4, 4, 10, 8}, {8}, {8}, {1, 4, 2, 5, 21}}, .i = {2, MA_SILU, 2, false, 3}, .f = {1e-6}},
    {"causal_norm, many positions", DEFINED(CAUSAL_NORM, causal_norm),
     .in = {{1, 9, 24, 40, 24}, {24}, {24}, {1, 3, 3, 5, 48}, {1, 2, 24, 40, 24}}, .i = {4, MA_SILU, 2}, .f = {1e-6}},
    {"rope", DEFINED(ROPE, rope), .in = {{2, 5, 3, 4}, {3, 4}, {3, 4}}, .fixed = 6, .i = {2}},
    {"rope, many tokens", DEFINED(ROPE, rope), .in = {{2, 300, 5, 6}, {300, 6}, {300, 6}}, .fixed = 6},
    {"act none", DEFINED(ACT, act), .in = {{3, 7}}, .i = {MA_NONE}},
    {"act relu", DEFINED(ACT, act), .in = {{3, 7}}, .i = {MA_RELU}},
    {"act sigmoid", DEFINED(ACT, act), .in = {{3, 7}}, .i = {MA_SIGMOID}},
    {"act tanh", DEFINED(ACT, act), .in = {{3, 7}}, .i = {MA_TANH}},
    {"act silu", DEFINED(ACT, act), .in = {{3, 7}}, .i = {MA_SILU}},
    {"act gelu", DEFINED(ACT, act), .in = {{3, 7}}, .i = {MA_GELU}},
    {"act gelu_tanh, large", DEFINED(ACT, act), .in = {{3, 7, 2001}}, .i = {MA_GELU_TANH}},
    {"add", DEFINED(ADD, add), .in = {{3, 7}, {3, 7}}},
    {"add, in place", OP(ADD, add_to), .define = def_add, .in = {{3, 200, 71}, {3, 200, 71}}, .fixed = 3},
    {"add, repeated", DEFINED(ADD, add), .in = {{3, 5, 7}, {5, 7}}},
    {"add, repeated, large", DEFINED(ADD, add), .in = {{3, 200, 71}, {71}}},
    {"add, relu", DEFINED(ADD, add), .in = {{3, 200, 71}, {3, 200, 71}}, .i = {MA_RELU}},
    {"add, to itself", OP(ADD, twice), .define = def_twice, .in = {{3, 7}}},
    {"mul", DEFINED(MUL, mul), .in = {{3, 7}, {3, 7}}},
    {"mul, repeated", DEFINED(MUL, mul), .in = {{3, 5, 7}, {7}}},
    {"mul, repeated, large", DEFINED(MUL, mul), .in = {{3, 200, 71}, {200, 71}}},
    {"mul, by itself", OP(MUL, square), .define = def_square, .in = {{3, 7}}},
    {"affine", DEFINED(AFFINE, affine), .in = {{3, 7}}, .f = {-1.7, 0.4}},
    {"affine, large", DEFINED(AFFINE, affine), .in = {{200, 131}}, .f = {2, -1}},
    {"concat, axis 0", DEFINED(CONCAT, concat), .in = {{2, 3, 5}, {4, 3, 5}}, .i = {0}},
    {"concat, axis 1", DEFINED(CONCAT, concat), .in = {{2, 3, 5}, {2, 1, 5}, {2, 2, 5}}, .i = {1}},
    {"concat, last axis, large", DEFINED(CONCAT, concat), .in = {{500, 30}, {500, 7}}, .i = {1}},
    {"slice, axis 0", DEFINED(SLICE, slice), .in = {{4, 3, 5}}, .i = {0, 1, 2}},
    {"slice, last axis", DEFINED(SLICE, slice), .in = {{4, 3, 5}}, .i = {2, 2, 3}},
    {"slice, large", DEFINED(SLICE, slice), .in = {{3, 200, 71}}, .i = {1, 13, 150}},
    {"unpatch", DEFINED(UNPATCH, unpatch), .in = {{2, 3, 2, 3, 12}}, .i = {2}},
    {"unpatch, large", DEFINED(UNPATCH, unpatch), .in = {{1, 2, 30, 20, 16}}, .i = {2}},
    {"resize, up", DEFINED(RESIZE, resize), .in = {{2, 2, 3, 4, 3}}, .i = {0, 4, 7, 6}},
    {"resize, up, aligned", DEFINED(RESIZE, resize), .in = {{1, 2, 3, 4, 3}}, .i = {1, 3, 7, 9}},
    {"resize, down", DEFINED(RESIZE, resize), .in = {{1, 5, 9, 8, 2}}, .i = {0, 2, 4, 3}},
    {"resize, down, aligned", DEFINED(RESIZE, resize), .in = {{1, 5, 9, 8, 2}}, .i = {1, 2, 1, 3}},
    {"resize, same and from one", DEFINED(RESIZE, resize), .in = {{1, 1, 3, 5, 2}}, .i = {0, 3, 3, 5}},
    {"resize, same, aligned", DEFINED(RESIZE, resize), .in = {{1, 1, 3, 5, 2}}, .i = {1, 1, 3, 5}},
    {"pool", DEFINED(POOL, pool), .in = {{2, 1, 5, 7, 3}}},
    {"pool, large", DEFINED(POOL, pool), .in = {{1, 2, 100, 51, 3}}},
    {"corr_lookup", OP(CORR_LOOKUP, corr_lookup), .in = {{1, 1, 3, 5, 2}, {15, 1, 6, 10, 1}, {15, 1, 3, 5, 1}},
     .fixed = 7, .i = {2, 6}},
    {"gru_reset", DEFINED(GRU_RESET, gru_reset), .in = {{2, 5, 7}, {2, 5, 14}, {2, 5, 21}, {2, 5, 21}}},
    {"gru_reset, wide", DEFINED(GRU_RESET, gru_reset), .in = {{3, 30, 72}, {3, 30, 144}, {3, 30, 216}, {3, 30, 216}}},
    {"gru_update", DEFINED(GRU_UPDATE, gru_update), .in = {{2, 5, 7}, {2, 5, 14}, {2, 5, 21}, {2, 5, 21}, {2, 5, 7}}},
    {"gru_update, wide", DEFINED(GRU_UPDATE, gru_update),
     .in = {{3, 30, 72}, {3, 30, 144}, {3, 30, 216}, {3, 30, 216}, {3, 30, 72}}},
    {"cast", DEFINED(CAST, cast), .in = {{3, 5, 7}}, .i = {7}},
    {"cast, widened", DEFINED(CAST, cast), .in = {{300, 3}}, .i = {16}},
    {"pixels", DEFINED(PIXELS, pixels), .in = {{5, 7, 3}}, .fixed = 1, .i = {3}, .f = {0.01, 0.5}},
    {"pixels, packs", DEFINED(PIXELS, pixels), .in = {{4, 26, 3}}, .fixed = 1, .i = {3}, .f = {0.01, 0.5}},
    {"pixels, widened", DEFINED(PIXELS, pixels), .in = {{1, 2, 130, 3}}, .fixed = 1, .i = {8}, .f = {1 / 127.5, -1}},
    {"pixels, widened by two", DEFINED(PIXELS, pixels), .in = {{2, 3, 3}}, .fixed = 1, .i = {5}, .f = {1, 0}},
    {"diffuse", DEFINED(DIFFUSE, diffuse), .in = {{3, 6, 5, 3, 7}}, .fixed = 1, .i = {7}, .f = {0.9}},
    {"diffuse, of f16", DEFINED(DIFFUSE, diffuse), .in = {{2, 32, 3, 5, 8}}, .fixed = 1, .i = {123456, 1}, .f = {2}},
    {"embed", DEFINED(EMBED, embed), .in = {{5, 7}, {3, 4}}, .fixed = 2},
    {"embed, wide", DEFINED(EMBED, embed), .in = {{3, 520}, {2, 70}}, .fixed = 2},
    {"rms_norm", DEFINED(RMS_NORM, rms_norm), .in = {{3, 4, 7}, {7}}, .f = {1e-6}},
    {"rms_norm, wide", DEFINED(RMS_NORM, rms_norm), .in = {{5, 2, 4112}, {4112}}, .f = {1e-6}},
    {"rms_norm, many rows of fp32", DEFINED(RMS_NORM, rms_norm), .in = {{300, 136}, {136}}, .fixed = 1, .f = {1e-5}},
    {"linear_add", DEFINED(LINEAR_ADD, linear_add), .in = {{2, 3, 5}, {2, 3, 7}, {5, 7}}, .fixed = 1},
    {"linear_add, of one type, with a bias", DEFINED(LINEAR_ADD, linear_add), .in = {{2, 33, 24}, {2, 33, 40}, {24, 40}, {24}}},
    {"layer_norm, of fp32", OP(LAYER_NORM, layer_norm), .in = {{70, 136}, {136}, {136}}, .fixed = 1, .f = {1e-6}},
    {"linear_add, odd, with a bias", DEFINED(LINEAR_ADD, linear_add), .in = {{300, 71}, {300, 33}, {71, 33}, {71}}},
    {"linear_add, wide", DEFINED(LINEAR_ADD, linear_add), .in = {{70, 136}, {70, 264}, {136, 264}}, .fixed = 1},
    {"attention_relative", DEFINED(ATTENTION_RELATIVE, attention_relative),
     .in = {{2, 5, 3, 4}, {2, 7, 3, 4}, {2, 7, 3, 4}, {3, 11}}, .fixed = 8, .f = {0.5}},
    {"attention_relative, a token", DEFINED(ATTENTION_RELATIVE, attention_relative),
     .in = {{3, 1, 2, 8}, {3, 1, 2, 8}, {3, 1, 2, 8}, {2, 1}}, .fixed = 8, .f = {1}},
    {"attention_relative, 24 values", DEFINED(ATTENTION_RELATIVE, attention_relative),
     .in = {{1, 131, 2, 24}, {1, 70, 2, 24}, {1, 70, 2, 24}, {2, 200}}, .fixed = 8, .f = {0.2}},
    {"attention_relative, 72 values", DEFINED(ATTENTION_RELATIVE, attention_relative),
     .in = {{2, 64, 1, 72}, {2, 129, 1, 72}, {2, 129, 1, 72}, {1, 192}}, .fixed = 8, .f = {0.1}},
    {"attention_relative, 300 keys", DEFINED(ATTENTION_RELATIVE, attention_relative),
     .in = {{1, 140, 2, 16}, {1, 300, 2, 16}, {1, 300, 2, 16}, {2, 439}}, .fixed = 8, .f = {0.25}},
    {"upsample_convex", OP(UPSAMPLE_CONVEX, upsample_convex), .in = {{2, 1, 3, 5, 2}, {2, 1, 3, 5, 576}}, .fixed = 1},
    {"l1", DEFINED(L1, l1), .in = {{3, 5, 7}, {3, 5, 7}}, .fixed = 2},
    {"l1, large", DEFINED(L1, l1), .in = {{300, 131}, {300, 131}}, .fixed = 2},
    {"mse", DEFINED(MSE, mse), .in = {{3, 5, 7}, {3, 5, 7}}, .fixed = 2},
    {"mse, large", DEFINED(MSE, mse), .in = {{300, 131}, {300, 131}}, .fixed = 2},
    {"relation", OP(RELATION, relation), .in = {{2, 3, 5, 4}, {2, 3, 5, 6}, {3}}, .fixed = 6, .f = {0.1},
     .kinked = true},
    {"cosine", OP(COSINE, cosine), .in = {{2, 3, 5}, {2, 3, 5}}, .fixed = 2},
};
#undef OP
#undef DEFINED
enum { CASES = sizeof cases / sizeof *cases };

/* ---- running one ---- */

/* What goes in, and what comes out. */
typedef struct trial {
    float *in[INPUTS], *grad[INPUTS]; /* NULL where there is no such input; grad also where none is wanted */
    float *out, *cotangent;
    int64_t count; /* of out */
    bool through;  /* all inputs but vectors are activations: their gradients are of the context's type, from the pool */
} trial;

/* Normal numbers, from a generator of the test's own: the same on every machine. */
static inline void random_fill(float *x, int64_t n, uint64_t seed) {
    uint64_t s = seed * 0x9e3779b97f4a7c15u + 1;
    for (int64_t k = 0; k < n; k++) {
        double sum = 0;
        for (int j = 0; j < 12; j++) {
            s ^= s << 13, s ^= s >> 7, s ^= s << 17;
            sum += (double)(s >> 11) * 0x1p-53;
        }
        x[k] = (float)(sum - 6);
    }
}

static inline bool wants(const op_case *k, int input) {
    return dims(k->in[input]) && !(k->fixed >> input & 1);
}

static inline void trial_free(trial *t) {
    for (int k = 0; k < INPUTS; k++) {
        ma_release(t->in[k]);
        ma_release(t->grad[k]);
    }
    ma_release(t->out);
    ma_release(t->cotangent);
    *t = (trial){0};
}

/* The first time, when the size of out is known. */
static inline void trial_room(trial *t, int64_t count) {
    if (t->out) return;
    t->count = count;
    t->out = ma_alloc((size_t)count, sizeof *t->out);
    t->cotangent = ma_alloc((size_t)count, sizeof *t->cotangent);
    random_fill(t->cotangent, count, 99);
}

/* Input j: a leaf whose gradient holds `start`, or a plain one that the next reset frees. */
static inline ma_tensor *trial_input(const op_case *k, ma_ctx *c, int j, bool want, float start, trial *t) {
    const bool f32 = k->fixed >> j & 1; /* tables, targets, coordinates: fp32 in every context */
    if (!want && f32) return ma_input_f32(c, t->in[j], dims(k->in[j]), k->in[j]);
    if (!want) return ma_input(c, t->in[j], dims(k->in[j]), k->in[j]);
    ma_tensor *in = ma_leaf(c, ma_keep(c, ma_get_type(c), dims(k->in[j]), k->in[j]));
    ma_put(c, in, t->in[j]);
    for (int64_t n = 0; n < elements(k->in[j]); n++) t->grad[j][n] = start;
    if (in) ma_put(c, in->grad, t->grad[j]);
    return in;
}

/* Runs forward on t->in and, for the inputs in want, backward, on gradients that hold `start`; where that is not a
 * number, on such as hold nothing yet. The stack is empty after it. -1: the context has failed. */
static inline int trial_run(const op_case *k, ma_ctx *c, unsigned want, float start, trial *t) {
    ma_tensor *in[INPUTS] = {0}, *seen[INPUTS] = {0};
    for (int j = 0; j < INPUTS; j++) {
        const bool wanted = want >> j & 1;
        if (t->in[j]) seen[j] = in[j] = trial_input(k, c, j, wanted, start, t);
        if (in[j] && wanted && t->through && dims(k->in[j]) > 1) seen[j] = ma_affine(c, in[j], 1, 0);
    }
    if (isnan(start)) ma_zero_grads(c);
    ma_tensor *out = k->run(c, seen, k);
    if (out) trial_room(t, ma_count(out));
    ma_get(c, out, t->out);
    if (out && want) ma_backward_from(c, out, t->cotangent);
    for (int j = 0; j < INPUTS; j++)
        if (in[j] && want >> j & 1) ma_get(c, in[j]->grad, t->grad[j]);
    ma_reset(c);
    return ma_failed(c) ? -1 : 0;
}

/* FNV-1a: every case has numbers of its own. */
static inline uint64_t name_seed(const char *name) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h;
}

/* Random inputs, for the op to be run on. corr_lookup's coordinates reach over the edges of its 6×10 image. */
static inline trial trial_new(const op_case *k) {
    trial t = {0};
    for (int j = 0; j < INPUTS; j++) {
        int64_t n = elements(k->in[j]);
        if (!n) continue;
        t.in[j] = ma_alloc((size_t)n, sizeof *t.in[j]);
        t.grad[j] = ma_alloc((size_t)n, sizeof *t.grad[j]);
        random_fill(t.in[j], n, name_seed(k->name) + (uint64_t)j);
        for (int64_t m = 0; m < n && k->op == MA_OP_CORR_LOOKUP && !j; m++) t.in[j][m] = 4 + 4 * t.in[j][m];
    }
    return t;
}

/* check for every case, each in a context of its own, on the CPU. */
static inline void for_each_case(void (*check)(const op_case *, ma_ctx *)) {
    ma_err e = {0};
    char note[160];
    ma_device *dev = ma_device_open("cpu", false, note, &e);
    for (int k = 0; k < CASES; k++) {
        ma_ctx *c = ma_ctx_new(dev, &e);
        check(&cases[k], c);
        ma_ctx_free(c);
    }
    ma_device_close(dev);
}

/* The inputs that take a gradient, as bits. */
static inline unsigned all_wanted(const op_case *k) {
    unsigned want = 0;
    for (int j = 0; j < INPUTS; j++) want |= (unsigned)wants(k, j) << j;
    return want;
}

#endif
