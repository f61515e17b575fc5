/* cpu: the device. Memory, the table of kernels, casts, the optimiser.
 *
 * Limits: kernels take f32 only; casts and the optimiser also know 16-bit storage, the optimiser a state in bf16. A
 * plan has no memory: alloc gives NULL and everything that would touch memory does nothing.
 */
#include "cpu.h"
#include "../dither.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 256

static void *cpu_alloc(ma_device *d, size_t size) {
    size_t room;
    if (d->plan || !ma_sum(size, ALIGN - 1, &room)) return NULL;
    return aligned_alloc(ALIGN, room / ALIGN * ALIGN);
}

static void cpu_release(ma_device *d, void *p) {
    if (!d->plan) free(p); /* a plan's addresses are only names */
}

static int cpu_move(ma_device *d, void *dst, const void *src, size_t size) {
    if (!d->plan && size) memmove(dst, src, size);
    return 0;
}

static int cpu_zero(ma_device *d, void *dst, size_t size) {
    if (!d->plan && size) memset(dst, 0, size);
    return 0;
}

/* By way of f32, which every pair that is used fits: 16-bit storage from and to its master. */
static int cpu_cast(ma_device *d, void *dst, ma_type to, const void *src, ma_type from, int64_t n) {
    enum { BLOCK = 4096 };
    if (d->plan) return 0;
    int64_t blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for if (blocks > 4)
    for (int64_t k = 0; k < blocks; k++) {
        float room[BLOCK];
        size_t at = (size_t)k * BLOCK, count = (size_t)(k + 1 < blocks ? BLOCK : n - k * BLOCK);
        const void *part = (const char *)src + at * ma_type_size(from);
        if (from != MA_F32) ma_to_f32(room, part, from, count);
        ma_from_f32((char *)dst + at * ma_type_size(to), from == MA_F32 ? part : room, to, count);
    }
    return 0;
}

static size_t cpu_work(ma_device *d, const ma_call *call, bool backward) {
    (void)d;
    switch (call->op) {
    case MA_OP_LINEAR: return ma_cpu_linear_work(call, backward);
    case MA_OP_CONV: return ma_cpu_conv_work(call, backward);
    case MA_OP_CONV_TRANSPOSE: return ma_cpu_conv_transpose_work(call, backward);
    case MA_OP_ATTENTION:
    case MA_OP_ATTENTION_RELATIVE: return ma_cpu_attention_work(call, backward);
    case MA_OP_LAYER_NORM: return ma_cpu_layer_norm_work(call, backward);
    case MA_OP_MODULATE: return ma_cpu_modulate_work(call, backward);
    case MA_OP_GATE: return ma_cpu_gate_work(call, backward);
    case MA_OP_GROUP_NORM: return ma_cpu_group_norm_work(call, backward);
    case MA_OP_MOMENTS: return ma_cpu_moments_work(call, backward);
    case MA_OP_CAUSAL_NORM: return ma_cpu_causal_norm_work(call, backward);
    case MA_OP_RELATION: return ma_cpu_relation_work(call, backward);
    case MA_OP_COSINE: return ma_cpu_cosine_work(call, backward);
    default: return 0;
    }
}

/* ---- sums ---- */

double ma_cpu_sum(ma_cpu_part part, const void *self, int64_t n) {
    enum { PARTS = 256, LEAST = 1 << 14 };
    double sums[PARTS], sum = 0;
    int64_t size = (n + PARTS - 1) / PARTS;
    if (size < LEAST) size = LEAST;
    int64_t parts = (n + size - 1) / size;
#pragma omp parallel for if (parts > 1)
    for (int64_t k = 0; k < parts; k++) sums[k] = part(self, k * size, k + 1 < parts ? (k + 1) * size : n);
    for (int64_t k = 0; k < parts; k++) sum += sums[k];
    return sum;
}

static double squares_part(const void *self, int64_t from, int64_t to) {
    const float *g = self;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = from; k < to; k++) sum += (double)g[k] * g[k];
    return sum;
}

static int cpu_squares(ma_device *d, const ma_slot *slots, int n, double *sum) {
    *sum = 0;
    for (int k = 0; k < n && !d->plan; k++) *sum += ma_cpu_sum(squares_part, slots[k].grad, slots[k].count);
    return 0;
}

/* ---- the optimiser ---- */

/* AdamW's numbers of one step and one parameter, ready to multiply. */
typedef struct rates {
    float beta1, beta2, rest1, rest2; /* rest: 1 - beta, taken before rounding */
    float eps, clip;
    float keep;   /* 1 - lr·decay */
    float step;   /* lr / (1 - beta1^t) */
    float spread; /* 1 / sqrt(1 - beta2^t) */
} rates;

static rates rates_of(const ma_adam *o, double decay) {
    return (rates){.beta1 = (float)o->beta1,
                   .beta2 = (float)o->beta2,
                   .rest1 = (float)(1 - o->beta1),
                   .rest2 = (float)(1 - o->beta2),
                   .eps = (float)o->eps,
                   .clip = (float)o->clip,
                   .keep = (float)(1 - o->lr * decay),
                   .step = (float)(o->lr / (1 - pow(o->beta1, (double)o->step))),
                   .spread = (float)(1 / sqrt(1 - pow(o->beta2, (double)o->step)))};
}

/* Vectorised where sqrtf need not set errno (-fno-math-errno). */
static void adam_part(rates r, float *restrict p, const float *restrict grad, float *restrict m, float *restrict v,
                      int64_t n) {
    for (int64_t k = 0; k < n; k++) {
        float g = grad[k] * r.clip;
        m[k] = m[k] * r.beta1 + g * r.rest1;
        v[k] = v[k] * r.beta2 + g * g * r.rest2;
        p[k] = p[k] * r.keep - r.step * m[k] / (sqrtf(v[k]) * r.spread + r.eps);
    }
}

enum { BLOCK = 1 << 13 }; /* of a parameter: what is updated at a time */

/* The same where the state is bf16: widened, and rounded back at random. */
static void adam_bf16(rates r, float *p, const ma_slot *s, uint32_t key, int64_t at, int64_t n) {
    float m[BLOCK], v[BLOCK];
    uint16_t *m16 = (uint16_t *)s->m + at, *v16 = (uint16_t *)s->v + at;
    ma_to_f32(m, m16, MA_BF16, (size_t)n);
    ma_to_f32(v, v16, MA_BF16, (size_t)n);
    adam_part(r, p, s->grad + at, m, v, n);
    for (int64_t k = 0; k < n; k++) {
        const uint32_t random = ma_dither_bits(key, at + k);
        m[k] = ma_dither_bf16(m[k], random >> 16);
        v[k] = ma_dither_bf16(v[k], random & 0xffff);
    }
    ma_from_f32(m16, m, MA_BF16, (size_t)n);
    ma_from_f32(v16, v, MA_BF16, (size_t)n);
}

static int cpu_adam(ma_device *d, const ma_slot *slots, int n, const ma_adam *o) {
    for (int k = 0; k < n && !d->plan; k++) {
        const ma_slot *s = &slots[k];
        const rates r = rates_of(o, s->decay);
        const uint32_t key = ma_dither_key(o->step, s->number);
        float *p = s->master ? s->master : s->data;
#pragma omp parallel for if (s->count > BLOCK)
        for (int64_t at = 0; at < s->count; at += BLOCK) {
            int64_t count = s->count - at < BLOCK ? s->count - at : BLOCK;
            if (o->state == MA_BF16)
                adam_bf16(r, p + at, s, key, at, count);
            else
                adam_part(r, p + at, s->grad + at, (float *)s->m + at, (float *)s->v + at, count);
            if (s->master)
                ma_from_f32((char *)s->data + (size_t)at * ma_type_size(s->type), p + at, s->type, (size_t)count);
        }
    }
    return 0;
}

static double cpu_timer(ma_device *d, bool stop) {
    static double start;
    (void)d;
    if (!stop) start = ma_now();
    return (ma_now() - start) * 1e3;
}

/* ---- the table ---- */

#define FWD(UPPER, lower) [MA_OP_##UPPER] = ma_cpu_##lower##_fwd,
#define BWD(UPPER, lower) [MA_OP_##UPPER] = ma_cpu_##lower##_bwd,
static ma_device cpu = {
    .name = "cpu",
    .alloc = cpu_alloc,
    .release = cpu_release,
    .put = cpu_move,
    .get = cpu_move,
    .move = cpu_move,
    .zero = cpu_zero,
    .cast = cpu_cast,
    .work = cpu_work,
    .squares = cpu_squares,
    .adam = cpu_adam,
    .timer = cpu_timer,
    .fwd = {MA_OPS(FWD)},
    .bwd = {MA_OPS_BACKWARD(BWD)},
    .types = {[MA_F32] = true},
};

ma_device *ma_cpu_device(bool plan) {
    static ma_device dry;
    if (!plan) return &cpu;
    dry = cpu;
    dry.plan = true;
    return &dry;
}
