/* rms_norm: x/sqrt(mean(x²) + eps)·g over the last dimension. Forward only. */
#include "cpu.h"

#include <math.h>

int ma_cpu_rms_norm_fwd(const ma_call *call) {
    const float *x = call->in[0]->data, *g = call->in[1]->data;
    float *y = call->out->data;
    int64_t width = call->in[1]->n[0], rows = ma_count(call->out) / width;
#pragma omp parallel for if (rows > 16)
    for (int64_t r = 0; r < rows; r++) {
        const float *in = x + r * width;
        float *out = y + r * width;
        double squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t k = 0; k < width; k++) squares += (double)in[k] * in[k];
        float inverse = (float)(1 / sqrt(squares / (double)width + call->f[0]));
#pragma omp simd
        for (int64_t k = 0; k < width; k++) out[k] = in[k] * inverse * g[k];
    }
    return 0;
}
