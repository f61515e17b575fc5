/* math: activations over arrays, forward beside derivative. Limits: f32, one thread.
 * Minds: relu passes NaN on, and its derivative at 0 is 0; gelu and silu of -infinity are NaN, as in PyTorch. */
#include "math.h"

#define SQRT_HALF    0.70710678f /* 1/√2 */
#define SQRT_2_PI    0.79788456f /* √(2/π) */
#define INV_SQRT_2PI 0.39894228f /* 1/√(2π) */
#define GELU_CUBIC   0.044715f

MA_INLINE float none(float x) {
    return x;
}

MA_INLINE float relu(float x) {
    return x < 0.0f ? 0.0f : x;
}

MA_INLINE float silu(float x) {
    return x * ma_sigmoidf(x);
}

MA_INLINE float gelu(float x) {
    return 0.5f * x * (1.0f + ma_erff(x * SQRT_HALF));
}

MA_INLINE float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + ma_tanhf(SQRT_2_PI * (x + GELU_CUBIC * x * x * x)));
}

/* Derivatives, of the output for the first four, of the input for the others. */
MA_INLINE float none_d(float y) {
    (void)y;
    return 1.0f;
}

MA_INLINE float relu_d(float y) {
    return y > 0.0f ? 1.0f : 0.0f;
}

MA_INLINE float sigmoid_d(float y) {
    return y * (1.0f - y);
}

MA_INLINE float tanh_d(float y) {
    return 1.0f - y * y;
}

MA_INLINE float silu_d(float x) {
    float s = ma_sigmoidf(x);
    return s * (1.0f + x * (1.0f - s));
}

MA_INLINE float gelu_d(float x) {
    return 0.5f * (1.0f + ma_erff(x * SQRT_HALF)) + x * INV_SQRT_2PI * ma_expf(-0.5f * x * x);
}

MA_INLINE float gelu_tanh_d(float x) {
    float t = ma_tanhf(SQRT_2_PI * (x + GELU_CUBIC * x * x * x));
    float du = SQRT_2_PI * (1.0f + 3.0f * GELU_CUBIC * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * du;
}

/* The function is a constant at each call, so each call is a loop of its own, inlined and vectorised. */
MA_INLINE void map(float (*f)(float), const float *x, float *y, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) y[i] = f(x[i]);
}

MA_INLINE void chain(float (*d)(float), const float *at, const float *dout, float *din, size_t n, bool add) {
    if (add) {
#pragma omp simd
        for (size_t i = 0; i < n; i++) din[i] += dout[i] * d(at[i]);
    } else {
#pragma omp simd
        for (size_t i = 0; i < n; i++) din[i] = dout[i] * d(at[i]);
    }
}

void ma_act_fwd(ma_act act, const float *pre, float *out, size_t n) {
    switch (act) {
    case MA_NONE:
        if (out != pre) map(none, pre, out, n);
        break;
    case MA_RELU: map(relu, pre, out, n); break;
    case MA_SIGMOID: map(ma_sigmoidf, pre, out, n); break;
    case MA_TANH: map(ma_tanhf, pre, out, n); break;
    case MA_SILU: map(silu, pre, out, n); break;
    case MA_GELU: map(gelu, pre, out, n); break;
    case MA_GELU_TANH: map(gelu_tanh, pre, out, n); break;
    }
}

void ma_act_bwd(ma_act act, const float *pre, const float *out, const float *dout, float *din, size_t n, bool add) {
    switch (act) {
    case MA_NONE: chain(none_d, dout, dout, din, n, add); break;
    case MA_RELU: chain(relu_d, out, dout, din, n, add); break;
    case MA_SIGMOID: chain(sigmoid_d, out, dout, din, n, add); break;
    case MA_TANH: chain(tanh_d, out, dout, din, n, add); break;
    case MA_SILU: chain(silu_d, pre, dout, din, n, add); break;
    case MA_GELU: chain(gelu_d, pre, dout, din, n, add); break;
    case MA_GELU_TANH: chain(gelu_tanh_d, pre, dout, din, n, add); break;
    }
}
