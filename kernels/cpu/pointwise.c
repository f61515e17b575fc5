/* pointwise: act, add, mul, affine, rope, cast, pixels. Forward beside backward.
 *
 * Minds: the inputs of add and mul may be one tensor, so each input's gradient is added in a pass of its own.
 * Limits: rope gives no gradient to its tables.
 */
#include "cpu.h"
#include "gemm.h"
#include "math.h"

#include <string.h>

/* Elements that a thread takes at a time. */
#define BLOCK ((int64_t)1 << 14)

/* ---- act ---- */

int ma_cpu_act_fwd(const ma_call *call) {
    const float *x = call->in[0]->data;
    float *y = call->out->data;
    int64_t n = ma_count(call->out);
#pragma omp parallel for if (n > BLOCK)
    for (int64_t k = 0; k < n; k += BLOCK) {
        size_t count = (size_t)ma_min(BLOCK, n - k);
        if (call->i[0] == MA_NONE)
            memcpy(y + k, x + k, count * sizeof *y);
        else
            ma_act_fwd((ma_act)call->i[0], x + k, y + k, count);
    }
    return 0;
}

int ma_cpu_act_bwd(const ma_call *call) {
    const float *x = call->in[0]->data, *y = call->out->data, *dy = call->out->grad->data;
    float *dx = call->in[0]->grad->data;
    int64_t n = ma_count(call->out);
#pragma omp parallel for if (n > BLOCK)
    for (int64_t k = 0; k < n; k += BLOCK)
        ma_act_bwd((ma_act)call->i[0], x + k, y + k, dy + k, dx + k, (size_t)ma_min(BLOCK, n - k), true);
    return 0;
}

/* ---- add, mul: b (m) is repeated along a (n) ---- */

typedef enum { SUM, PRODUCT } kind;

/* A run in which neither end of b is crossed. */
static void combine(kind op, ma_act act, const float *a, const float *b, float *y, int64_t n) {
    if (op == SUM) {
#pragma omp simd
        for (int64_t k = 0; k < n; k++) y[k] = a[k] + b[k];
    } else {
#pragma omp simd
        for (int64_t k = 0; k < n; k++) y[k] = a[k] * b[k];
    }
    if (act != MA_NONE) ma_act_fwd(act, y, y, (size_t)n);
}

static int binary_fwd(const ma_call *call, kind op) {
    const float *a = call->in[0]->data, *b = call->in[1]->data;
    float *y = call->out->data;
    int64_t n = ma_count(call->out), m = ma_count(call->in[1]);
#pragma omp parallel for if (n > BLOCK)
    for (int64_t from = 0; from < n; from += BLOCK) {
        int64_t to = ma_min(from + BLOCK, n);
        for (int64_t k = from, run; k < to; k += run) {
            run = ma_min(m - k % m, to - k);
            combine(op, (ma_act)call->i[0], a + k, b + k % m, y + k, run);
        }
    }
    return 0;
}

/* dx += dy, or dy·f with f (m) repeated where there is one. */
static void add_scaled(float *dx, const float *dy, const float *f, int64_t n, int64_t m) {
#pragma omp parallel for if (n > BLOCK)
    for (int64_t from = 0; from < n; from += BLOCK) {
        int64_t to = ma_min(from + BLOCK, n);
        for (int64_t k = from, run; k < to; k += run) {
            run = ma_min(m - k % m, to - k);
            const float *g = f + k % m;
#pragma omp simd
            for (int64_t j = 0; j < run; j++) dx[k + j] += dy[k + j] * g[j];
        }
    }
}

static void add_to(float *dx, const float *dy, int64_t n) {
#pragma omp parallel for simd if (parallel : n > BLOCK)
    for (int64_t k = 0; k < n; k++) dx[k] += dy[k];
}

int ma_cpu_add_fwd(const ma_call *call) {
    return binary_fwd(call, SUM);
}

int ma_cpu_add_bwd(const ma_call *call) {
    const float *dy = call->out->grad->data;
    float *da = ma_cpu_grad(call->in[0]), *db = ma_cpu_grad(call->in[1]);
    int64_t n = ma_count(call->out), m = ma_count(call->in[1]);
    if (da) add_to(da, dy, n);
    if (db && m == n)
        add_to(db, dy, n);
    else if (db)
        ma_column_sums(dy, n / m, m, db);
    return 0;
}

int ma_cpu_mul_fwd(const ma_call *call) {
    return binary_fwd(call, PRODUCT);
}

/* db (m) += the column sums of a·dy (rows, m): strips of columns, each down all rows, in double. */
static void add_products(float *db, const float *a, const float *dy, int64_t rows, int64_t m) {
    enum { STRIP = 64 };
#pragma omp parallel for if (rows * m > BLOCK)
    for (int64_t at = 0; at < m; at += STRIP) {
        double sum[STRIP] = {0};
        int64_t cols = ma_min(STRIP, m - at);
        for (int64_t r = 0; r < rows; r++) {
            const float *x = a + r * m + at, *d = dy + r * m + at;
#pragma omp simd
            for (int64_t k = 0; k < cols; k++) sum[k] += (double)x[k] * d[k];
        }
        for (int64_t k = 0; k < cols; k++) db[at + k] += (float)sum[k];
    }
}

int ma_cpu_mul_bwd(const ma_call *call) {
    const float *a = call->in[0]->data, *b = call->in[1]->data, *dy = call->out->grad->data;
    float *da = ma_cpu_grad(call->in[0]), *db = ma_cpu_grad(call->in[1]);
    int64_t n = ma_count(call->out), m = ma_count(call->in[1]);
    if (da) add_scaled(da, dy, b, n, m);
    if (db && m == n)
        add_scaled(db, dy, a, n, n);
    else if (db)
        add_products(db, a, dy, n / m, m);
    return 0;
}

/* ---- affine ---- */

int ma_cpu_affine_fwd(const ma_call *call) {
    const float *x = call->in[0]->data;
    float *y = call->out->data, mul = (float)call->f[0], add = (float)call->f[1];
    int64_t n = ma_count(call->out);
#pragma omp parallel for simd if (parallel : n > BLOCK)
    for (int64_t k = 0; k < n; k++) y[k] = x[k] * mul + add;
    return 0;
}

int ma_cpu_affine_bwd(const ma_call *call) {
    const float *dy = call->out->grad->data;
    float *dx = call->in[0]->grad->data, mul = (float)call->f[0];
    int64_t n = ma_count(call->out);
#pragma omp parallel for simd if (parallel : n > BLOCK)
    for (int64_t k = 0; k < n; k++) dx[k] += dy[k] * mul;
    return 0;
}

/* ---- rope: pairs are rotated; backward, by the transposed matrix ---- */

int ma_cpu_rope_fwd(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    const float *in = x->data, *cosine = call->in[1]->data, *sine = call->in[2]->data;
    float *out = call->out->data;
    int64_t text = call->i[0], len = x->n[1], heads = x->n[2], dim = x->n[3], tokens = x->n[0] * len;
#pragma omp parallel for if (ma_count(x) > BLOCK)
    for (int64_t k = 0; k < tokens; k++) {
        const float *u = in + k * heads * dim;
        float *y = out + k * heads * dim;
        if (k % len < text) {
            memcpy(y, u, (size_t)(heads * dim) * sizeof *y);
            continue;
        }
        const float *c = cosine + (k % len - text) * dim, *s = sine + (k % len - text) * dim;
        for (int64_t h = 0; h < heads; h++, u += dim, y += dim) {
#pragma omp simd
            for (int64_t j = 0; j < dim; j += 2) {
                y[j] = u[j] * c[j] - u[j + 1] * s[j];
                y[j + 1] = u[j + 1] * c[j + 1] + u[j] * s[j + 1];
            }
        }
    }
    return 0;
}

int ma_cpu_rope_bwd(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    const float *dout = call->out->grad->data, *cosine = call->in[1]->data, *sine = call->in[2]->data;
    float *din = ma_cpu_grad(x);
    if (call->in[1]->want || call->in[2]->want) return -1;
    int64_t text = call->i[0], len = x->n[1], heads = x->n[2], dim = x->n[3], tokens = x->n[0] * len;
#pragma omp parallel for if (ma_count(x) > BLOCK)
    for (int64_t k = 0; k < tokens; k++) {
        const float *dy = dout + k * heads * dim;
        float *dx = din + k * heads * dim;
        if (k % len < text) {
            for (int64_t j = 0; j < heads * dim; j++) dx[j] += dy[j];
            continue;
        }
        const float *c = cosine + (k % len - text) * dim, *s = sine + (k % len - text) * dim;
        for (int64_t h = 0; h < heads; h++, dy += dim, dx += dim) {
#pragma omp simd
            for (int64_t j = 0; j < dim; j += 2) {
                dx[j] += dy[j] * c[j] + dy[j + 1] * s[j + 1];
                dx[j + 1] += dy[j + 1] * c[j + 1] - dy[j] * s[j];
            }
        }
    }
    return 0;
}

/* ---- cast: f32 is the only type here; zeros fill the rows up ---- */

int ma_cpu_cast_fwd(const ma_call *call) {
    const ma_tensor *in = call->in[0], *out = call->out;
    const float *x = in->data;
    float *y = out->data;
    int64_t from = in->n[in->nd - 1], to = out->n[out->nd - 1], rows = to ? ma_count(out) / to : 0;
    if (in->type != MA_F32 || out->type != MA_F32) return -1;
#pragma omp parallel for if (rows * to > BLOCK)
    for (int64_t r = 0; r < rows; r++) {
        memcpy(y + r * to, x + r * from, (size_t)from * sizeof *y);
        memset(y + r * to + from, 0, (size_t)(to - from) * sizeof *y);
    }
    return 0;
}

/* ---- pixels: bytes to f32, each colour its own way; zeros fill the rows up ---- */

int ma_cpu_pixels_fwd(const ma_call *call) {
    const ma_tensor *in = call->in[0], *out = call->out;
    const uint8_t *x = in->data;
    float *y = out->data, mul[3], add[3];
    int64_t width = out->n[out->nd - 1], rows = ma_count(in) / 3;
    if (in->type != MA_U8 || out->type != MA_F32) return -1;
    for (int c = 0; c < 3; c++) {
        mul[c] = (float)call->f[c];
        add[c] = (float)call->f[3 + c];
    }
    if (width > 3) memset(y, 0, (size_t)(rows * width) * sizeof *y);
#pragma omp parallel for if (rows > BLOCK)
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < 3; c++) y[r * width + c] = (float)x[3 * r + c] * mul[c] + add[c];
    return 0;
}
