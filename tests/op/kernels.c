/* CPU kernels of the products, convolutions, attention, token relations and RAFT's look-ups, called directly.
 * Every case has a plain definition in double precision. Forward is compared with it; backward with its directional
 * derivative along a random direction an input, under a random cotangent, on gradients that already hold ones; and the
 * bits must be the same on one, two and three threads. Sizes are odd and go past the edges of tiles. */
#include "../../kernels/cpu/cpu.h"
#include "../tap.h"

#include <omp.h>
#include <string.h>

enum { INPUTS = 4 };

/* The definition: out from in[], all in double; shapes and attributes are the call's. */
typedef void (*definition)(const ma_call *, double *const *in, double *out);

typedef struct subject {
    const char *name;
    ma_kernel fwd, bwd;
    size_t (*work)(const ma_call *, bool backward);
    definition def;
    double tolerance; /* relative, of both passes */
} subject;

static uint32_t state = 1;
static float uniform(void) { /* -1..1 */
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static float *fresh(int64_t n, float scale) {
    float *p = ma_alloc((size_t)n, sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = scale * uniform();
    return p;
}

static ma_tensor *tensor(int nd, const int64_t *n, bool want, float scale) {
    ma_tensor *t = ma_alloc(1, sizeof *t);
    t->nd = nd;
    t->want = want;
    memcpy(t->n, n, (size_t)nd * sizeof *n);
    t->data = fresh(ma_count(t), scale);
    if (!want) return t;
    t->grad = ma_alloc(1, sizeof *t);
    *t->grad = (ma_tensor){.nd = nd, .data = fresh(ma_count(t), 1)};
    memcpy(t->grad->n, n, (size_t)nd * sizeof *n);
    return t;
}
#define N(...)                                                                                                         \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]) {                                     \
        __VA_ARGS__                                                                                                    \
    }

static void tensor_free(ma_tensor *t) {
    if (t && t->grad) ma_release(t->grad->data);
    if (t) ma_release(t->grad);
    if (t) ma_release(t->data);
    ma_release(t);
}

static void call_free(ma_call *c) {
    for (int k = 0; k < 8; k++) tensor_free(c->in[k]);
    for (int k = 0; k < 3; k++) tensor_free(c->save[k]);
    tensor_free(c->out);
}

static bool run(const subject *s, ma_call *c, bool backward, int threads) {
    omp_set_num_threads(threads);
    c->work = s->work ? ma_alloc(s->work(c, backward) + 1, 1) : NULL;
    int rc = (backward ? s->bwd : s->fwd)(c);
    ma_release(c->work);
    c->work = NULL;
    return rc == 0;
}

static double *widen(const float *x, int64_t n) {
    double *p = ma_alloc((size_t)n, sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = x[i];
    return p;
}

/* Σ dout·out of the definition, with input k moved by step along u. */
static double projected(const subject *s, const ma_call *c, double *const *in, int k, const float *u, double step,
                        double *out) {
    double *moved[INPUTS], sum = 0;
    int64_t n = ma_count(c->in[k]);
    memcpy(moved, in, sizeof moved);
    moved[k] = ma_alloc((size_t)n, sizeof(double));
    for (int64_t i = 0; i < n; i++) moved[k][i] = in[k][i] + step * u[i];
    s->def(c, moved, out);
    for (int64_t i = 0; i < ma_count(c->out); i++) sum += ((float *)c->out->grad->data)[i] * out[i];
    ma_release(moved[k]);
    return sum;
}

/* The gradient of input k less the ones that stood there, against the definition, along a random direction. */
static void check_gradient(const subject *s, const ma_call *c, double *const *in, int k, double *out) {
    int64_t n = ma_count(c->in[k]);
    const float *grad = c->in[k]->grad->data;
    float *u = fresh(n, 1);
    double got = 0, size = 0, step = 1e-6;
    for (int64_t i = 0; i < n; i++) {
        got += (grad[i] - 1.0) * u[i];
        size += (grad[i] - 1.0) * (grad[i] - 1.0);
    }
    double want = (projected(s, c, in, k, u, step, out) - projected(s, c, in, k, u, -step, out)) / (2 * step);
    double error = fabs(got - want) / (sqrt(size / 3) + 1e-30); // a random direction sees |grad|/√3
    ok(size > 0 && error < s->tolerance * 10, "%s: gradient to input %d (%.1e)", s->name, k, error);
    ma_release(u);
}

static void fill(ma_tensor *t, float value) {
    for (int64_t i = 0; t && i < ma_count(t); i++) ((float *)t->data)[i] = value;
}

static bool same_bits(const ma_tensor *t, const float *was) {
    return !memcmp(t->data, was, (size_t)ma_count(t) * sizeof *was);
}

static float *copy_of(const ma_tensor *t) {
    float *p = ma_alloc((size_t)ma_count(t), sizeof *p);
    return memcpy(p, t->data, (size_t)ma_count(t) * sizeof *p);
}

static void check_backward(const subject *s, ma_call *c, double *const *in, double *out) {
    float *first[INPUTS] = {0};
    bool same = true;
    for (int threads = 1; threads <= 3; threads++) {
        for (int k = 0; k < INPUTS; k++)
            if (c->in[k] && c->in[k]->want) fill(c->in[k]->grad, 1);
        if (!ok(run(s, c, true, threads), "%s: runs backwards on %d threads", s->name, threads)) return;
        for (int k = 0; k < INPUTS; k++) {
            if (!c->in[k] || !c->in[k]->want) continue;
            if (threads == 1) first[k] = copy_of(c->in[k]->grad);
            same = same && same_bits(c->in[k]->grad, first[k]);
        }
    }
    ok(same, "%s: gradients have the same bits on 1, 2 and 3 threads", s->name);
    for (int k = 0; k < INPUTS; k++) {
        if (c->in[k] && c->in[k]->want) check_gradient(s, c, in, k, out);
        ma_release(first[k]);
    }
}

/* The whole examination; frees the call's tensors. */
static void check(const subject *s, ma_call c) {
    double *in[INPUTS] = {0}, *out = ma_alloc((size_t)ma_count(c.out), sizeof *out);
    int64_t n = ma_count(c.out);
    for (int k = 0; k < INPUTS; k++)
        if (c.in[k]) in[k] = widen(c.in[k]->data, ma_count(c.in[k]));
    fill(c.out, NAN);
    ok(run(s, &c, false, 1), "%s: runs", s->name);
    float *first = copy_of(c.out), *exact = ma_alloc((size_t)n, sizeof *exact);
    s->def(&c, in, out);
    for (int64_t i = 0; i < n; i++) exact[i] = (float)out[i];
    double error = rel_error(first, exact, (size_t)n);
    ok(error < s->tolerance, "%s: forward (%.1e)", s->name, error);
    bool same = true;
    for (int threads = 2; threads <= 3; threads++) {
        fill(c.out, NAN);
        same = same && run(s, &c, false, threads) && same_bits(c.out, first);
    }
    ok(same, "%s: the same bits on 1, 2 and 3 threads", s->name);
    if (s->bwd) check_backward(s, &c, in, out);
    for (int k = 0; k < INPUTS; k++) ma_release(in[k]);
    ma_release(out);
    ma_release(first);
    ma_release(exact);
    call_free(&c);
}

static double activate(ma_act act, double x) {
    switch (act) {
    case MA_RELU: return x > 0 ? x : 0;
    case MA_SIGMOID: return 1 / (1 + exp(-x));
    case MA_TANH: return tanh(x);
    case MA_SILU: return x / (1 + exp(-x));
    case MA_GELU: return x / 2 * (1 + erf(x / sqrt(2)));
    case MA_GELU_TANH: return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    default: return x;
    }
}

static void linear(const ma_call *c, double *const *in, double *out) {
    int64_t n = c->in[1]->n[0], k = c->in[1]->n[1];
    for (int64_t i = 0; i < ma_count(c->out); i++) {
        double sum = in[2] ? in[2][i % n] : 0;
        for (int64_t j = 0; j < k; j++) sum += in[0][i / n * k + j] * in[1][i % n * k + j];
        out[i] = activate((ma_act)c->i[0], sum);
    }
}

static void matmul(const ma_call *c, double *const *in, double *out) {
    int64_t m = c->in[0]->n[1], n = c->in[1]->n[1], k = c->in[0]->n[2];
    for (int64_t i = 0; i < ma_count(c->out); i++) {
        const double *a = in[0] + i / n * k, *b = in[1] + (i / (m * n) * n + i % n) * k;
        out[i] = 0;
        for (int64_t j = 0; j < k; j++) out[i] += c->f[0] * a[j] * b[j];
    }
}

/* Calls visit for every wide position, narrow position and tap that meet: their three indices. */
static void meetings(const ma_call *c, const ma_tensor *wide, const ma_tensor *narrow,
                     void (*visit)(const int64_t index[3], void *), void *to) {
    const int64_t *k = c->in[1]->n + 1, *y = narrow->n + 1, *x = wide->n + 1;
    int64_t taps = k[0] * k[1] * k[2], positions = narrow->n[0] * y[0] * y[1] * y[2];
    for (int64_t i = 0; i < positions * taps; i++) {
        int64_t tap = i % taps, p = i / taps, b = p / (y[0] * y[1] * y[2]);
        int64_t at[3] = {p / (y[1] * y[2]) % y[0], p / y[2] % y[1], p % y[2]};
        int64_t of[3] = {tap / (k[1] * k[2]), tap / k[2] % k[1], tap % k[2]};
        bool inside = true;
        for (int d = 0; d < 3; d++) {
            at[d] = at[d] * c->i[d] - c->i[3 + d] + of[d];
            inside = inside && at[d] >= 0 && at[d] < x[d];
        }
        if (inside) visit((int64_t[3]){((b * x[0] + at[0]) * x[1] + at[1]) * x[2] + at[2], p, tap}, to);
    }
}

typedef struct conv_sum {
    const double *from, *w;
    double *to;
    int64_t c, o, taps;
} conv_sum;

static void conv_visit(const int64_t at[3], void *to) { /* wide → narrow */
    conv_sum *s = to;
    for (int64_t o = 0; o < s->o; o++)
        for (int64_t c = 0; c < s->c; c++)
            s->to[at[1] * s->o + o] += s->from[at[0] * s->c + c] * s->w[(o * s->taps + at[2]) * s->c + c];
}

static void transpose_visit(const int64_t at[3], void *to) { /* narrow → wide */
    conv_sum *s = to;
    for (int64_t o = 0; o < s->o; o++)
        for (int64_t c = 0; c < s->c; c++)
            s->to[at[0] * s->c + c] += s->from[at[1] * s->o + o] * s->w[(o * s->taps + at[2]) * s->c + c];
}

static void finish(const ma_call *c, const double *bias, double *out) {
    for (int64_t i = 0, n = c->out->n[4]; i < ma_count(c->out); i++)
        out[i] = activate((ma_act)c->i[9], out[i] + (bias ? bias[i % n] : 0));
}

static void conv(const ma_call *c, double *const *in, double *out) {
    const int64_t *w = c->in[1]->n;
    memset(out, 0, (size_t)ma_count(c->out) * sizeof *out);
    meetings(c, c->in[0], c->out, conv_visit, &(conv_sum){in[0], in[1], out, w[4], w[0], w[1] * w[2] * w[3]});
    finish(c, in[2], out);
}

static void conv_transpose(const ma_call *c, double *const *in, double *out) {
    const int64_t *w = c->in[1]->n;
    memset(out, 0, (size_t)ma_count(c->out) * sizeof *out);
    meetings(c, c->out, c->in[0], transpose_visit, &(conv_sum){in[0], in[1], out, w[4], w[0], w[1] * w[2] * w[3]});
    finish(c, in[2], out);
}

static void attention(const ma_call *c, double *const *in, double *out) {
    const ma_tensor *q = c->in[0];
    int64_t l = q->n[1], m = c->in[1]->n[1], h = q->n[2], d = q->n[3];
    double *p = ma_alloc((size_t)m, sizeof *p);
    for (int64_t i = 0; i < q->n[0] * l * h; i++) { // a query of a head
        const int64_t first = i / (l * h) * m * h + i % h;
        double sum = 0, *o = out + i * d;
        memset(o, 0, (size_t)d * sizeof *o);
        for (int64_t j = 0; j < m; j++) {
            double s = 0;
            for (int64_t e = 0; e < d; e++) s += in[0][i * d + e] * in[1][(first + j * h) * d + e];
            sum += p[j] = exp(c->f[0] * s);
        }
        for (int64_t j = 0; j < m; j++)
            for (int64_t e = 0; e < d; e++) o[e] += p[j] / sum * in[2][(first + j * h) * d + e];
    }
    ma_release(p);
}

static double cosine_of(const double *a, const double *b, int64_t d) {
    double ab = 0, aa = 0, bb = 0;
    for (int64_t i = 0; i < d; i++) {
        ab += a[i] * b[i];
        aa += a[i] * a[i];
        bb += b[i] * b[i];
    }
    return ab / sqrt(aa) / sqrt(bb);
}

static void relation(const ma_call *c, double *const *in, double *out) {
    const ma_tensor *z = c->in[0];
    int64_t frames = z->n[1], n = z->n[2], d = z->n[3], dm = c->in[1]->n[3], all = frames * n;
    out[0] = 0;
    for (int64_t i = 0; i < z->n[0] * all * all; i++) {
        int64_t a = i / all, b = i / (all * all) * all + i % all, fa = a / n % frames, fb = b / n % frames;
        if (a == b) continue; // cos is 1 on both sides
        double diff = cosine_of(in[0] + a * d, in[0] + b * d, d) - cosine_of(in[1] + a * dm, in[1] + b * dm, dm);
        double over = fabs(diff) - c->f[0];
        if (over > 0) out[0] += in[2][llabs(fa - fb)] * over / (double)z->n[0];
    }
}

static void cosine(const ma_call *c, double *const *in, double *out) {
    int64_t d = c->in[0]->n[3], n = ma_count(c->in[0]) / d;
    out[0] = 0;
    for (int64_t i = 0; i < n; i++) out[0] -= cosine_of(in[0] + i * d, in[1] + i * d, d) / (double)n;
}

/* Bilinear value of an image (h, w) at (x, y), zeros outside. */
static double sample(const double *image, int64_t h, int64_t w, double x, double y) {
    double sum = 0;
    for (int64_t i = 0; i < h; i++)
        for (int64_t j = 0; j < w; j++) sum += image[i * w + j] * fmax(0, 1 - fabs(x - j)) * fmax(0, 1 - fabs(y - i));
    return sum;
}

static void corr_lookup(const ma_call *c, double *const *in, double *out) {
    int64_t r = c->i[0], side = 2 * r + 1, points = ma_count(c->in[0]) / 2;
    for (int64_t p = 0; p < points; p++)
        for (int64_t k = 0; k < c->i[1]; k++) {
            int64_t h = c->in[1 + k]->n[2], w = c->in[1 + k]->n[3];
            double x = in[0][2 * p] / (1 << k), y = in[0][2 * p + 1] / (1 << k);
            for (int64_t j = 0; j < side * side; j++)
                *out++ = sample(in[1 + k] + p * h * w, h, w, x + (double)(j / side - r), y + (double)(j % side - r));
        }
}

static void upsample_convex(const ma_call *c, double *const *in, double *out) {
    int64_t h = c->in[0]->n[2], w = c->in[0]->n[3];
    for (int64_t i = 0; i < ma_count(c->out); i++) {
        int64_t x = i / 2 % (8 * w), y = i / (16 * w) % (8 * h), b = i / (128 * w * h);
        const double *mask = in[1] + ((b * h + y / 8) * w + x / 8) * 576 + y % 8 * 8 + x % 8;
        double sum = 0;
        out[i] = 0;
        for (int k = 0; k < 9; k++) {
            int64_t ny = y / 8 + k / 3 - 1, nx = x / 8 + k % 3 - 1;
            sum += exp(mask[k * 64]);
            if (ny < 0 || ny >= h || nx < 0 || nx >= w) continue;
            out[i] += exp(mask[k * 64]) * 8 * in[0][((b * h + ny) * w + nx) * 2 + i % 2];
        }
        out[i] /= sum;
    }
}

static void check_linear(int64_t rows, int64_t k, int64_t n, ma_act act, bool bias) {
    char name[80];
    snprintf(name, sizeof name, "linear %dx%d by %d, act %d", (int)rows, (int)k, (int)n, act);
    subject s = {name, ma_cpu_linear_fwd, ma_cpu_linear_bwd, ma_cpu_linear_work, linear, 2e-6};
    ma_call c = {.op = MA_OP_LINEAR, .i = {act}, .in = {tensor(N(rows, k), true, 1), tensor(N(n, k), true, 0.1f)}};
    if (bias) c.in[2] = tensor(N(n), true, 1);
    c.out = tensor(N(rows, n), true, 1);
    c.save[0] = tensor(N(rows, n), false, 1);
    check(&s, c);
}

/* in, out: sizes of x and of the output, without batch (2) and channels. attributes: stride, before, after. */
static void check_conv(bool transpose, const char *what, const int64_t in[4], const int64_t kernel[3], int64_t o,
                       const int64_t *attributes, ma_act act) {
    char name[120];
    snprintf(name, sizeof name, "%s, %s", transpose ? "conv_transpose" : "conv", what);
    subject s = {name, ma_cpu_conv_fwd, ma_cpu_conv_bwd, ma_cpu_conv_work, conv, 2e-6};
    if (transpose)
        s = (subject){
            name, ma_cpu_conv_transpose_fwd, ma_cpu_conv_transpose_bwd, ma_cpu_conv_transpose_work, conv_transpose,
            2e-6};
    ma_call c = {.op = transpose ? MA_OP_CONV_TRANSPOSE : MA_OP_CONV};
    int64_t n[3], w0 = transpose ? in[3] : o, w4 = transpose ? o : in[3];
    memcpy(c.i, attributes, 9 * sizeof *attributes);
    c.i[9] = act;
    for (int d = 0; d < 3; d++) {
        int64_t pad = c.i[3 + d] + c.i[6 + d];
        n[d] = transpose ? (in[d] - 1) * c.i[d] - pad + kernel[d] : (in[d] + pad - kernel[d]) / c.i[d] + 1;
    }
    c.in[0] = tensor(N(2, in[0], in[1], in[2], in[3]), true, 1);
    c.in[1] = tensor(N(w0, kernel[0], kernel[1], kernel[2], w4), true, 0.3f);
    c.in[2] = tensor(N(o), true, 1);
    c.out = tensor(N(2, n[0], n[1], n[2], o), true, 1);
    c.save[0] = tensor(N(2, n[0], n[1], n[2], o), false, 1);
    check(&s, c);
}
#define I(...)                                                                                                         \
    (const int64_t[]) {                                                                                                \
        __VA_ARGS__                                                                                                    \
    }

static void check_convs(void) {
    check_conv(false, "3x3x3, same", I(3, 9, 11, 5), I(3, 3, 3), 7, I(1, 1, 1, 1, 1, 1, 1, 1, 1), MA_SILU);
    check_conv(false, "7x7, stride 2", I(1, 23, 29, 3), I(1, 7, 7), 6, I(1, 2, 2, 0, 3, 3, 0, 3, 3), MA_RELU);
    check_conv(false, "causal in time", I(5, 6, 7, 4), I(3, 3, 3), 5, I(1, 1, 1, 2, 1, 1, 0, 1, 1), MA_NONE);
    check_conv(false, "asymmetric, stride 2", I(4, 9, 8, 3), I(2, 3, 3), 5, I(2, 2, 2, 1, 0, 2, 0, 1, 0), MA_GELU_TANH);
    check_conv(false, "patches", I(4, 16, 24, 3), I(2, 8, 8), 17, I(2, 8, 8, 0, 0, 0, 0, 0, 0), MA_NONE);
    check_conv(false, "1x1x1", I(3, 13, 14, 9), I(1, 1, 1), 10, I(1, 1, 1, 0, 0, 0, 0, 0, 0), MA_TANH);
    check_conv(false, "1x1 with stride 3", I(3, 10, 11, 4), I(1, 1, 1), 3, I(2, 3, 3, 0, 0, 0, 0, 0, 0), MA_SIGMOID);
    check_conv(false, "kernel wider than the image", I(1, 3, 2, 4), I(1, 5, 7), 3, I(1, 1, 1, 0, 2, 3, 0, 2, 3),
               MA_GELU);
    check_conv(true, "1x4x4, stride 2", I(3, 7, 9, 5), I(1, 4, 4), 6, I(1, 2, 2, 0, 1, 1, 0, 1, 1), MA_SILU);
    check_conv(true, "stride 3 beyond kernel 2", I(2, 5, 4, 5), I(2, 2, 2), 3, I(1, 3, 3, 0, 0, 0, 0, 0, 0), MA_NONE);
    check_conv(true, "asymmetric", I(3, 8, 7, 4), I(3, 3, 5), 6, I(2, 1, 2, 1, 0, 2, 0, 2, 1), MA_RELU);
    check_conv(true, "1x1x1", I(3, 8, 17, 4), I(1, 1, 1), 6, I(1, 1, 1, 0, 0, 0, 0, 0, 0), MA_GELU);
}

static void check_matmul(int64_t b, int64_t m, int64_t n, int64_t k) {
    subject s = {"matmul", ma_cpu_matmul_fwd, ma_cpu_matmul_bwd, NULL, matmul, 2e-6};
    ma_call c = {.op = MA_OP_MATMUL, .f = {0.25}, .in = {tensor(N(b, m, k), true, 1), tensor(N(b, n, k), true, 1)}};
    c.out = tensor(N(b, m, n), true, 1);
    check(&s, c);
}

static void check_attention(const char *name, int64_t b, int64_t l, int64_t m, int64_t h, int64_t d, float sharp) {
    subject s = {name, ma_cpu_attention_fwd, ma_cpu_attention_bwd, ma_cpu_attention_work, attention, 5e-6};
    ma_call c = {.op = MA_OP_ATTENTION, .f = {0.3}};
    c.in[0] = tensor(N(b, l, h, d), true, sharp);
    c.in[1] = tensor(N(b, m, h, d), true, 1);
    c.in[2] = tensor(N(b, m, h, d), true, 1);
    c.out = tensor(N(b, l, h, d), true, 1);
    c.save[0] = tensor(N(b, h, l), false, 1);
    check(&s, c);
}

static void check_relation(const char *name, int64_t n, int64_t d, double margin, float near, float far) {
    subject s = {name, ma_cpu_relation_fwd, ma_cpu_relation_bwd, ma_cpu_relation_work, relation, 1e-5};
    ma_call c = {.op = MA_OP_RELATION, .f = {margin}};
    c.in[0] = tensor(N(2, 3, n, d), true, 1);
    c.in[1] = tensor(N(2, 3, n, d + 2), false, 1);
    c.in[2] = tensor(N(3), false, 1);
    memcpy(c.in[2]->data, (float[]){near, far, far / 2}, 3 * sizeof(float));
    c.out = tensor(N(1), true, 1);
    c.save[0] = tensor(N(2, 3, n, d), false, 1);
    check(&s, c);
}

static void check_cosine(void) {
    subject s = {"cosine", ma_cpu_cosine_fwd, ma_cpu_cosine_bwd, ma_cpu_cosine_work, cosine, 1e-5};
    ma_call c = {.op = MA_OP_COSINE, .in = {tensor(N(2, 3, 5, 9), true, 1), tensor(N(2, 3, 5, 9), false, 1)}};
    c.out = tensor(N(1), true, 1);
    check(&s, c);
}

static void check_raft(void) {
    subject look = {"corr_lookup", ma_cpu_corr_lookup_fwd, NULL, NULL, corr_lookup, 1e-6};
    ma_call c = {.op = MA_OP_CORR_LOOKUP, .i = {3, 2}, .in = {tensor(N(2, 1, 9, 11, 2), false, 20)}};
    c.in[1] = tensor(N(198, 1, 9, 11, 1), false, 1);
    c.in[2] = tensor(N(198, 1, 4, 5, 1), false, 1);
    c.out = tensor(N(2, 1, 9, 11, 98), false, 1);
    memcpy(c.in[0]->data, (float[]){4, 5, -1, 0, 1e30f, 2, 3, -1e30f}, 8 * sizeof(float));
    check(&look, c);
    subject up = {"upsample_convex", ma_cpu_upsample_convex_fwd, NULL, NULL, upsample_convex, 1e-6};
    ma_call d = {.op = MA_OP_UPSAMPLE_CONVEX};
    d.in[0] = tensor(N(2, 1, 5, 3, 2), false, 3);
    d.in[1] = tensor(N(2, 1, 5, 3, 576), false, 4);
    d.out = tensor(N(2, 1, 40, 24, 2), false, 1);
    check(&up, d);
}

int main(void) {
    for (int act = MA_NONE; act <= MA_GELU_TANH; act++) check_linear(67, 19, 83, (ma_act)act, act % 2);
    check_linear(801, 35, 130, MA_GELU, true);
    check_linear(40, 50, 1700, MA_GELU, true);
    check_linear(3, 400, 5, MA_NONE, true);
    check_matmul(3, 45, 70, 20);
    check_matmul(1, 401, 790, 9);
    check_convs();
    check_attention("attention over several tiles", 2, 300, 530, 3, 20, 1);
    check_attention("attention, sharp, short", 1, 7, 5, 2, 8, 20);
    check_relation("relation", 150, 9, 0, 1, 0.7f);
    check_relation("relation, margin, two column tiles", 270, 4, 0.1, 1, 1);
    check_relation("relation, frames apart only", 20, 9, 0, 0, 1);
    check_relation("relation, same frame only", 20, 9, 0.05, 1, 0);
    check_cosine();
    check_raft();
    return tap_done();
}
