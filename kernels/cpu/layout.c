/* layout: concat, slice, unpatch. Nothing is computed: backward adds along the ways that forward copied.
 */
#include "cpu.h"
#include "gemm.h"

#include <string.h>

/* A part of a tensor: rows runs of `run` elements, each `step` after the one before. */
typedef struct strided {
    float *at;
    int64_t step;
} strided;

typedef enum { COPY, ADD } way;

static void transfer(way w, strided to, strided from, int64_t rows, int64_t run) {
    const int64_t block = 1 << 14;
#pragma omp parallel for collapse(2) if (rows * run > block)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < run; k += block) {
            float *d = to.at + r * to.step + k;
            const float *s = from.at + r * from.step + k;
            int64_t n = ma_min(block, run - k);
            if (w == COPY)
                memcpy(d, s, (size_t)n * sizeof *d);
            else
                for (int64_t j = 0; j < n; j++) d[j] += s[j];
        }
}

/* Elements of one step of the axis, and how often the axis is gone through. */
static int64_t inner(const ma_tensor *t, int64_t axis) {
    int64_t n = 1;
    for (int k = (int)axis + 1; k < t->nd; k++) n *= t->n[k];
    return n;
}

static int64_t outer(const ma_tensor *t, int64_t axis) {
    int64_t n = 1;
    for (int k = 0; k < axis; k++) n *= t->n[k];
    return n;
}

/* whole's part from, …, from+count-1 along the axis, data or gradient. */
static strided part(const ma_tensor *whole, float *data, int64_t axis, int64_t from) {
    int64_t one = inner(whole, axis);
    return (strided){data + from * one, whole->n[axis] * one};
}

int ma_cpu_concat_fwd(const ma_call *call) {
    const ma_tensor *y = call->out;
    int64_t axis = call->i[0], from = 0;
    for (int k = 0; k < 8 && call->in[k]; k++) {
        const ma_tensor *x = call->in[k];
        transfer(COPY, part(y, y->data, axis, from), part(x, x->data, axis, 0), outer(x, axis),
                 x->n[axis] * inner(x, axis));
        from += x->n[axis];
    }
    return 0;
}

int ma_cpu_concat_bwd(const ma_call *call) {
    const ma_tensor *y = call->out;
    int64_t axis = call->i[0], from = 0;
    for (int k = 0; k < 8 && call->in[k]; k++) {
        const ma_tensor *x = call->in[k];
        float *dx = ma_cpu_grad(x);
        if (dx)
            transfer(ADD, part(x, dx, axis, 0), part(y, y->grad->data, axis, from), outer(x, axis),
                     x->n[axis] * inner(x, axis));
        from += x->n[axis];
    }
    return 0;
}

int ma_cpu_slice_fwd(const ma_call *call) {
    const ma_tensor *x = call->in[0], *y = call->out;
    int64_t axis = call->i[0];
    transfer(COPY, part(y, y->data, axis, 0), part(x, x->data, axis, call->i[1]), outer(y, axis),
             y->n[axis] * inner(y, axis));
    return 0;
}

int ma_cpu_slice_bwd(const ma_call *call) {
    const ma_tensor *x = call->in[0], *y = call->out;
    int64_t axis = call->i[0];
    transfer(ADD, part(x, x->grad->data, axis, call->i[1]), part(y, y->grad->data, axis, 0), outer(y, axis),
             y->n[axis] * inner(y, axis));
    return 0;
}

/* One token to or from its p×p pixels: element c·p·p + r·p + s of the token is channel c of pixel (r, s). */
static void token(way w, float *tok, float *pixel, int64_t p, int64_t row, int64_t channels) {
    for (int64_t r = 0; r < p; r++)
        for (int64_t s = 0; s < p; s++)
            for (int64_t c = 0; c < channels; c++) {
                float *at = pixel + r * row + s * channels + c, *t = tok + (c * p + r) * p + s;
                if (w == COPY)
                    *at = *t;
                else
                    *t += *at;
            }
}

static void unpatch(way w, const ma_call *call, float *tokens, float *pixels) {
    const ma_tensor *x = call->in[0];
    int64_t p = call->i[0], width = x->n[3], size = x->n[4], channels = call->out->n[4], row = width * p * channels;
    int64_t rows = x->n[0] * x->n[1] * x->n[2]; /* a row of tokens is p rows of pixels */
#pragma omp parallel for if (ma_count(x) > 1 << 14)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < width; k++)
            token(w, tokens + (r * width + k) * size, pixels + r * p * row + k * p * channels, p, row, channels);
}

int ma_cpu_unpatch_fwd(const ma_call *call) {
    unpatch(COPY, call, call->in[0]->data, call->out->data);
    return 0;
}

int ma_cpu_unpatch_bwd(const ma_call *call) {
    unpatch(ADD, call, call->in[0]->grad->data, call->out->grad->data);
    return 0;
}
