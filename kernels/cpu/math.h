/* math: exp, tanh, sigmoid, erf and the activations, so that compilers vectorise loops over them without -ffast-math.
 *
 * Branch-free: both sides are computed and one is selected. Polynomials are our own minimax fits (Lawson's iteration).
 * NaN goes through; no function traps or calls the C library. Measured over all of f32 by tests/op/math.c:
 * ma_expf 2 ulp, subnormal results included; ma_tanhf 3 ulp; ma_sigmoidf 3 ulp (a result below 2^-126 is 0);
 * ma_erff 1e-7 absolute.
 */
#ifndef MA_CPU_MATH_H
#define MA_CPU_MATH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "../../common/op.h"

/* A call that is not inlined keeps its loop from being vectorised. */
#define MA_INLINE static inline __attribute__((always_inline))

MA_INLINE uint32_t ma_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

MA_INLINE float ma_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

MA_INLINE float ma_absf(float x) {
    return ma_from_bits(ma_bits(x) & 0x7fffffffu);
}

/* |x| with the sign of s. */
MA_INLINE float ma_signf(float x, float s) {
    return ma_from_bits((ma_bits(x) & 0x7fffffffu) | (ma_bits(s) & 0x80000000u));
}

/* e^x = 2^n · e^r, |r| <= ln 2 / 2. Adding 1.5·2^23 rounds x / ln 2 to an integer and leaves it in the low bits. 2^n is
 * applied in two factors: n reaches from -150 (subnormal results) to 128 (overflow). */
MA_INLINE float ma_expf(float x) {
    const float magic = 12582912.0f;
    x = x > 89.0f ? 89.0f : x;     /* infinity */
    x = x < -104.0f ? -104.0f : x; /* rounds to 0 */
    float t = x * 1.44269504f + magic, n = t - magic;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts; n times the first is exact */
    float p = 0.00139506313f;
    p = p * r + 0.00836896989f;
    p = p * r + 0.0416662022f;
    p = p * r + 0.166665182f;
    p = p * r + 0.5f;
    p = (p * (r * r) + r) + 1.0f;
    uint32_t e = ma_bits(t) - 0x4b400000u; /* n in two's complement */
    uint32_t half = (uint32_t)((int32_t)e >> 1);
    return p * ma_from_bits((half + 127u) << 23) * ma_from_bits((e - half + 127u) << 23);
}

MA_INLINE float ma_sigmoidf(float x) {
    return 1.0f / (1.0f + ma_expf(-x));
}

/* Odd polynomial below 0.625, 1 - 2/(e^2a + 1) above, a = |x|. */
MA_INLINE float ma_tanhf(float x) {
    float a = ma_absf(x), z = x * x;
    float p = -0.00567855919f;
    p = p * z + 0.0206174776f;
    p = p * z - 0.0537338108f;
    p = p * z + 0.13331382f;
    p = p * z - 0.333332807f;
    float small = x + x * (z * p);
    float large = 1.0f - 2.0f / (ma_expf(2.0f * a) + 1.0f);
    return a < 0.625f ? small : ma_signf(large, x);
}

/* Odd polynomial below 0.9; above, 1 - e^g(a) with a polynomial g = log erfc. */
MA_INLINE float ma_erff(float x) {
    float a = ma_absf(x), z = x * x;
    a = a > 4.0f ? 4.0f : a;
    float p = 8.09461781e-05f;
    p = p * z - 0.000807250035f;
    p = p * z + 0.00519431895f;
    p = p * z - 0.0268564485f;
    p = p * z + 0.112836383f;
    p = p * z - 0.376126289f;
    float small = x + x * (0.128379167f + z * p);
    float g = 0.00019718158f;
    g = g * a - 0.00305560627f;
    g = g * a + 0.0222770814f;
    g = g * a - 0.104037352f;
    g = g * a - 0.637059748f;
    g = g * a - 1.12774956f;
    g = g * a - 0.000177496113f;
    float large = 1.0f - ma_expf(g);
    return a < 0.9f ? small : ma_signf(large, x);
}

/* out = act(pre). out may be pre. One thread: callers cut the array. */
void ma_act_fwd(ma_act, const float *pre, float *out, size_t n);

/* din = dout·act'(pre), or += where add. relu, sigmoid and tanh read out (pre may be NULL), silu, gelu and gelu_tanh
 * read pre (out may be NULL). din may be dout. */
void ma_act_bwd(ma_act, const float *pre, const float *out, const float *dout, float *din, size_t n, bool add);

/* Whether the backward pass of the activation needs pre. */
static inline bool ma_act_needs_pre(ma_act act) {
    return act == MA_SILU || act == MA_GELU || act == MA_GELU_TANH;
}

#endif
