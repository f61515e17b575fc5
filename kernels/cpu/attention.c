/* attention: softmax(scale·q·kᵀ)·v in tiles of QUERIES × KEYS scores, with a running maximum and sum a query
 * (Dao et al. 2022, FlashAttention; the backward pass as in its section 3). A head's slices of q, k, v are multiplied
 * where they lie, H·D elements from token to token.
 *
 * Backwards, with P = exp(S - lse) and δ_i = Σ_d dout_id·out_id:
 *   dv = Pᵀ·dout   dS = P∘(dout·vᵀ - δ)   dq = scale·dS·k   dk = scale·dSᵀ·q
 * A task owns the keys of its group in one head, hence their dk and dv; dq is summed a group apart and then added in
 * order. The groups are cut by the sizes only.
 *
 * attention_relative is the same forward with a bias by distance, (H, L+M-1), added to the scaled scores.
 * Trap: a group's dq is as large as q: with few heads there are several groups. */
#include "cpu.h"
#include "gemm.h"
#include "math.h"

#include <math.h>
#include <omp.h>
#include <string.h>

enum { QUERIES = 128, KEYS = 256, TASKS = 24 }; /* TASKS: as many groups as give so many tasks, where keys allow */

typedef struct sizes {
    int64_t batch, heads, l, m, d, ld; /* l queries, m keys, ld elements from token to token */
    float scale;
    int64_t key_tiles, groups;
} sizes;

static sizes sizes_of(const ma_call *call) {
    const ma_tensor *q = call->in[0], *k = call->in[1]; // (B,L,H,D), (B,M,H,D)
    sizes s = {
        .batch = q->n[0], .heads = q->n[2], .l = q->n[1], .m = k->n[1], .d = q->n[3], .scale = (float)call->f[0]};
    s.ld = s.heads * s.d;
    s.key_tiles = (s.m + KEYS - 1) / KEYS;
    s.groups = ma_min(s.key_tiles, (TASKS - 1) / (s.batch * s.heads) + 1);
    return s;
}

/* Where head h of sample b starts in q (or out); in k and v, count is m. */
static int64_t start(const sizes *s, int64_t b, int64_t h, int64_t count) {
    return b * count * s->ld + h * s->d;
}

/* A thread's room forward: scores, output, maximum and sum a query. */
static int64_t forward_room(const sizes *s) {
    return QUERIES * (KEYS + s->d + 2);
}

/* The highest of n values and high. Lanes of their own, since compilers do not vectorise a maximum that NaN may enter.
 */
static float highest(const float *x, int64_t n, float high) {
    enum { LANES = 16 };
    float lane[LANES];
    int64_t j = 0;
    for (int i = 0; i < LANES; i++) lane[i] = high;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++) lane[i] = x[j + i] > lane[i] ? x[j + i] : lane[i];
    for (; j < n; j++) lane[0] = x[j] > lane[0] ? x[j] : lane[0];
    for (int i = 0; i < LANES; i++) high = lane[i] > high ? lane[i] : high;
    return high;
}

/* One row of scores becomes exp(score - maximum); returns its sum. *top is the maximum so far, before and after. */
static float soften(float *score, int64_t n, float *top) {
    float high = highest(score, n, *top), sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        score[j] = ma_expf(score[j] - high);
        sum += score[j];
    }
    *top = high;
    return sum;
}

/* Adds to rows × keys scores, the first of query `row` and key `key`, what their distance has; bias: of the head. */
static void add_bias(const sizes *s, const float *bias, int64_t row, int64_t rows, int64_t key, int64_t keys,
                     float *score) {
    for (int64_t r = 0; r < rows; r++) {
        const float *by = bias + key - (row + r) + s->l - 1;
#pragma omp simd
        for (int64_t j = 0; j < keys; j++) score[r * KEYS + j] += by[j];
    }
}

/* Queries from `row` on against all keys. q, k, v, out: at the head's start; bias, lse: at the head's, or NULL. */
static void query_tile(const sizes *s, int64_t row, const float *q, const float *k, const float *v, const float *bias,
                       float *out, float *lse, float *room) {
    float *score = room, *acc = score + QUERIES * KEYS, *top = acc + QUERIES * s->d, *sum = top + QUERIES;
    int64_t rows = ma_min(QUERIES, s->l - row);
    for (int64_t r = 0; r < rows; r++) {
        top[r] = -INFINITY;
        sum[r] = 0;
    }
    for (int64_t key = 0; key < s->m; key += KEYS) {
        int64_t keys = ma_min(KEYS, s->m - key);
        ma_gemm_tile(false, true, rows, keys, s->d, s->scale, q + row * s->ld, s->ld, k + key * s->ld, s->ld, 0, score,
                     KEYS);
        if (bias) add_bias(s, bias, row, rows, key, keys, score);
        for (int64_t r = 0; r < rows; r++) {
            float before = top[r], part = soften(score + r * KEYS, keys, &top[r]);
            float keep = key ? ma_expf(before - top[r]) : 0;
            sum[r] = sum[r] * keep + part;
            for (int64_t i = 0; key && i < s->d; i++) acc[r * s->d + i] *= keep;
        }
        ma_gemm_tile(false, false, rows, s->d, keys, 1, score, KEYS, v + key * s->ld, s->ld, key > 0, acc, s->d);
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < s->d; i++) out[(row + r) * s->ld + i] = acc[r * s->d + i] / sum[r];
        if (lse) lse[row + r] = top[r] + logf(sum[r]);
    }
}

static int forward(const ma_call *call, const float *bias) {
    sizes s = sizes_of(call);
    const float *q = call->in[0]->data, *k = call->in[1]->data, *v = call->in[2]->data;
    float *out = call->out->data, *lse = call->save[0] ? call->save[0]->data : NULL; // (B,L,H,D), (B,H,L)
    int64_t tiles = (s.l + QUERIES - 1) / QUERIES;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < s.batch * s.heads * tiles; i++) {
        int64_t head = i / tiles, b = head / s.heads, h = head % s.heads;
        int64_t at = start(&s, b, h, s.l), to = start(&s, b, h, s.m);
        query_tile(&s, i % tiles * QUERIES, q + at, k + to, v + to, bias ? bias + h * (s.l + s.m - 1) : NULL, out + at,
                   lse ? lse + head * s.l : NULL, (float *)call->work + omp_get_thread_num() * forward_room(&s));
    }
    return 0;
}

int ma_cpu_attention_fwd(const ma_call *call) {
    return forward(call, NULL);
}

int ma_cpu_attention_relative_fwd(const ma_call *call) {
    return forward(call, call->in[3]->data);
}

/* What the backward pass reads and writes of one head; gradients NULL where nobody wants them. */
typedef struct head {
    const float *q, *k, *v, *dout; /* ld from token to token */
    const float *lse, *delta;      /* (L) */
    float *dq, *dk, *dv;           /* dq: of the group */
} head;

/* One tile: P and dS out of the scores, then what they add to the gradients. */
static void tile_bwd(const sizes *s, const head *a, int64_t row, int64_t key, float *p, float *ds) {
    int64_t rows = ma_min(QUERIES, s->l - row), keys = ma_min(KEYS, s->m - key), ld = s->ld, d = s->d;
    const float *q = a->q + row * ld, *dout = a->dout + row * ld, *k = a->k + key * ld, *v = a->v + key * ld;
    ma_gemm_tile(false, true, rows, keys, d, s->scale, q, ld, k, ld, 0, p, KEYS);
    ma_gemm_tile(false, true, rows, keys, d, 1, dout, ld, v, ld, 0, ds, KEYS);
    for (int64_t r = 0; r < rows; r++) {
        float lse = a->lse[row + r], delta = a->delta[row + r];
        float *pr = p + r * KEYS, *dr = ds + r * KEYS;
#pragma omp simd
        for (int64_t j = 0; j < keys; j++) {
            pr[j] = ma_expf(pr[j] - lse);
            dr[j] = pr[j] * (dr[j] - delta);
        }
    }
    if (a->dv) ma_gemm_tile(true, false, keys, d, rows, 1, p, KEYS, dout, ld, 1, a->dv + key * ld, ld);
    if (a->dk) ma_gemm_tile(true, false, keys, d, rows, s->scale, ds, KEYS, q, ld, 1, a->dk + key * ld, ld);
    if (a->dq) ma_gemm_tile(false, false, rows, d, keys, s->scale, ds, KEYS, k, ld, 1, a->dq + row * ld, ld);
}

/* δ (B,H,L) */
static void row_products(const sizes *s, const float *out, const float *dout, float *delta) {
#pragma omp parallel for
    for (int64_t i = 0; i < s->batch * s->l; i++)
        for (int64_t h = 0; h < s->heads; h++) {
            const float *o = out + i * s->ld + h * s->d, *g = dout + i * s->ld + h * s->d;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < s->d; j++) sum += o[j] * g[j];
            delta[(i / s->l * s->heads + h) * s->l + i % s->l] = sum;
        }
}

/* dq += the groups' parts, in order. */
static void add_groups(float *dq, const float *part, int64_t n, int64_t groups) {
#pragma omp parallel for
    for (int64_t from = 0; from < n; from += 4096)
        for (int64_t g = 0; g < groups; g++)
            for (int64_t i = from; i < ma_min(from + 4096, n); i++) dq[i] += part[g * n + i];
}

/* Forward: a tile a thread. Backward: δ, then the groups' dq, then two tiles a thread. */
size_t ma_cpu_attention_work(const ma_call *call, bool backward) {
    sizes s = sizes_of(call);
    int64_t queries = s.batch * s.l * s.heads, threads = omp_get_max_threads();
    int64_t floats =
        backward ? queries + s.groups * queries * s.d + threads * 2 * QUERIES * KEYS : threads * forward_room(&s);
    return (size_t)floats * sizeof(float);
}

int ma_cpu_attention_bwd(const ma_call *call) {
    sizes s = sizes_of(call);
    ma_tensor *q = call->in[0], *k = call->in[1], *v = call->in[2];
    int64_t heads = s.batch * s.heads, queries = heads * s.l, n = queries * s.d;
    float *delta = call->work, *part = delta + queries, *tiles = part + s.groups * n; // part (groups, B,L,H,D)
    const float *dout = call->out->grad->data;
    float *dk = ma_cpu_grad(k), *dv = ma_cpu_grad(v);
    row_products(&s, call->out->data, dout, delta);
    memset(part, 0, (size_t)(s.groups * n) * sizeof *part);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < heads * s.groups; i++) {
        int64_t g = i % s.groups, at = i / s.groups;
        int64_t first = start(&s, at / s.heads, at % s.heads, s.l), to = start(&s, at / s.heads, at % s.heads, s.m);
        head a = {.q = (float *)q->data + first, .k = (float *)k->data + to, .v = (float *)v->data + to};
        a.dout = dout + first;
        a.lse = (float *)call->save[0]->data + at * s.l;
        a.delta = delta + at * s.l;
        a.dq = q->want ? part + g * n + first : NULL;
        a.dk = dk ? dk + to : NULL;
        a.dv = dv ? dv + to : NULL;
        float *p = tiles + omp_get_thread_num() * 2 * QUERIES * KEYS;
        for (int64_t tile = g * s.key_tiles / s.groups; tile < (g + 1) * s.key_tiles / s.groups; tile++)
            for (int64_t row = 0; row < s.l; row += QUERIES) tile_bwd(&s, &a, row, tile * KEYS, p, p + QUERIES * KEYS);
    }
    if (q->want) add_groups(q->grad->data, part, n, s.groups);
    return 0;
}
