/* relation, cosine: losses on the directions of tokens (METHOD, soft token-relation distillation; REPA).
 *
 * relation: mean over the batch of Σ_ij c(|f_i - f_j|)·relu(|ẑ_i·ẑ_j - m̂_i·m̂_j| - margin), in tiles of ROWS × COLS
 * pairs. c decides by frames, so a tile lies in one pair of frames, and pairs with c = 0 are never looked at. Forward
 * also leaves the gradient to ẑ in save[0]: (i,j) and (j,i) are the same term, hence 2·Σ_j c·sign·ẑ_j. Where the
 * difference is 0 or the margin is not passed, sign is 0.
 *
 * Unit vectors as PyTorch's F.normalize: z / max(|z|, 1e-12). Below that length the divisor is a constant, and
 * backwards nothing is projected out. The partial sums are double, one a task, added in order. */
#include "cpu.h"
#include "gemm.h"

#include <math.h>
#include <omp.h>
#include <string.h>

enum { ROWS = 128, COLS = 256 };
static const float SHORTEST = 1e-12f;

/* max(|z|, SHORTEST) */
static float length(const float *z, int64_t d) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < d; i++) sum += z[i] * z[i];
    float n = sqrtf(sum);
    return n < SHORTEST ? SHORTEST : n;
}

static float dot(const float *a, const float *b, int64_t d) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < d; i++) sum += a[i] * b[i];
    return sum;
}

static void normalise(const float *z, int64_t tokens, int64_t d, float *unit) {
#pragma omp parallel for
    for (int64_t t = 0; t < tokens; t++) {
        float n = length(z + t * d, d);
        for (int64_t i = 0; i < d; i++) unit[t * d + i] = z[t * d + i] / n;
    }
}

/* dz += scale·(g - ẑ(ẑ·g))/|z|: the gradient g to a unit vector, carried to the vector it came from. */
static void denormalise(const float *z, const float *g, int64_t d, float scale, float *dz) {
    float n = length(z, d), along = n > SHORTEST ? dot(z, g, d) / (n * n) : 0;
    for (int64_t i = 0; i < d; i++) dz[i] += scale / n * (g[i] - along * z[i]);
}

typedef struct sizes {
    int64_t batch, frames, n, dz, dm; /* n tokens a frame; z and m have widths of their own */
    int64_t tokens, tiles, tasks;     /* in the batch; row tiles a frame; row tiles in all */
} sizes;

static sizes sizes_of(const ma_call *call) {
    const ma_tensor *z = call->in[0]; // (B,F,N,D)
    sizes s = {.batch = z->n[0], .frames = z->n[1], .n = z->n[2], .dz = z->n[3], .dm = call->in[1]->n[3]};
    s.tokens = s.batch * s.frames * s.n;
    s.tiles = (s.n + ROWS - 1) / ROWS;
    s.tasks = s.batch * s.frames * s.tiles;
    return s;
}

/* The tasks' sums, the unit vectors, two tiles a thread. */
size_t ma_cpu_relation_work(const ma_call *call, bool backward) {
    if (backward) return 0;
    sizes s = sizes_of(call);
    int64_t floats = s.tokens * (s.dz + s.dm) + (int64_t)omp_get_max_threads() * 2 * ROWS * COLS;
    return (size_t)s.tasks * sizeof(double) + (size_t)floats * sizeof(float);
}

/* Σ relu(|z - m| - margin) over a row of cosines; z becomes the sign, or 0. */
static double compare(float *z, const float *m, int64_t n, float margin) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        float diff = z[j] - m[j], over = fabsf(diff) - margin;
        float sign = diff > 0 ? 1.0f : diff < 0 ? -1.0f : 0.0f;
        z[j] = over > 0 ? sign : 0.0f;
        sum += over <= 0 ? 0.0f : over; // NaN goes through
    }
    return sum;
}

/* Rows of one frame against every frame of the same sample: returns their part of the sum, and leaves their gradient in
 * grad (rows, dz) unless that is NULL. z, m: the sample's unit tokens; c by distance; room: two tiles. */
static double row_tile(const sizes *s, int64_t frame, int64_t row, const float *z, const float *m, const float *c,
                       float margin, float *grad, float *room) {
    int64_t rows = ma_min(ROWS, s->n - row), first = frame * s->n + row;
    float *sz = room, *sm = room + ROWS * COLS;
    double total = 0;
    if (grad) memset(grad, 0, (size_t)(rows * s->dz) * sizeof *grad);
    for (int64_t f = 0; f < s->frames; f++) {
        float weight = c[f < frame ? frame - f : f - frame];
        for (int64_t col = 0; weight != 0 && col < s->n; col += COLS) {
            int64_t cols = ma_min(COLS, s->n - col), at = f * s->n + col;
            ma_gemm_tile(false, true, rows, cols, s->dz, 1, z + first * s->dz, s->dz, z + at * s->dz, s->dz, 0, sz,
                         COLS);
            ma_gemm_tile(false, true, rows, cols, s->dm, 1, m + first * s->dm, s->dm, m + at * s->dm, s->dm, 0, sm,
                         COLS);
            for (int64_t r = 0; r < rows; r++) total += weight * compare(sz + r * COLS, sm + r * COLS, cols, margin);
            if (!grad) continue;
            ma_gemm_tile(false, false, rows, s->dz, cols, 2 * weight / (float)s->batch, sz, COLS, z + at * s->dz, s->dz,
                         1, grad, s->dz);
        }
    }
    return total;
}

int ma_cpu_relation_fwd(const ma_call *call) {
    sizes s = sizes_of(call);
    double *part = call->work, total = 0;
    float *z = (float *)(part + s.tasks), *m = z + s.tokens * s.dz, *tiles = m + s.tokens * s.dm;
    float *grad = call->save[0] ? call->save[0]->data : NULL, *loss = call->out->data; // grad (B,F,N,D)
    normalise(call->in[0]->data, s.tokens, s.dz, z);
    normalise(call->in[1]->data, s.tokens, s.dm, m);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < s.tasks; i++) {
        int64_t row = i % s.tiles * ROWS, at = i / s.tiles, sample = at / s.frames * s.frames * s.n;
        part[i] =
            row_tile(&s, at % s.frames, row, z + sample * s.dz, m + sample * s.dm, call->in[2]->data, (float)call->f[0],
                     grad ? grad + (at * s.n + row) * s.dz : NULL, tiles + omp_get_thread_num() * 2 * ROWS * COLS);
    }
    for (int64_t i = 0; i < s.tasks; i++) total += part[i];
    loss[0] = (float)(total / (double)s.batch);
    return 0;
}

int ma_cpu_relation_bwd(const ma_call *call) {
    sizes s = sizes_of(call);
    const float *z = call->in[0]->data, *grad = call->save[0]->data, *dout = call->out->grad->data;
    float *dz = ma_cpu_grad(call->in[0]);
    if (!dz) return 0;
#pragma omp parallel for
    for (int64_t t = 0; t < s.tokens; t++) denormalise(z + t * s.dz, grad + t * s.dz, s.dz, dout[0], dz + t * s.dz);
    return 0;
}

static int64_t width(const ma_tensor *t) {
    return t->n[t->nd - 1];
}

/* One double a token. */
size_t ma_cpu_cosine_work(const ma_call *call, bool backward) {
    return backward ? 0 : (size_t)(ma_count(call->in[0]) / width(call->in[0])) * sizeof(double);
}

int ma_cpu_cosine_fwd(const ma_call *call) {
    const float *z = call->in[0]->data, *m = call->in[1]->data; // (tokens, d)
    int64_t d = width(call->in[0]), tokens = ma_count(call->in[0]) / d;
    double *part = call->work, total = 0;
    float *loss = call->out->data;
#pragma omp parallel for
    for (int64_t t = 0; t < tokens; t++)
        part[t] = dot(z + t * d, m + t * d, d) / ((double)length(z + t * d, d) * length(m + t * d, d));
    for (int64_t t = 0; t < tokens; t++) total += part[t];
    loss[0] = (float)(-total / (double)tokens);
    return 0;
}

int ma_cpu_cosine_bwd(const ma_call *call) {
    const float *z = call->in[0]->data, *m = call->in[1]->data, *dout = call->out->grad->data;
    int64_t d = width(call->in[0]), tokens = ma_count(call->in[0]) / d;
    float *dz = ma_cpu_grad(call->in[0]);
    if (!dz) return 0;
#pragma omp parallel for
    for (int64_t t = 0; t < tokens; t++)
        denormalise(z + t * d, m + t * d, d, -dout[0] / (float)tokens / length(m + t * d, d), dz + t * d);
    return 0;
}
