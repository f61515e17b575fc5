/* gemm: matrix products on cuBLASLt, row-major as everywhere (kernels/cpu/gemm.h). How a product is computed is chosen
 * once for all that it depends on (sizes, types, what is fused, alignments), by cuBLASLt's heuristics and without
 * timing, so that a run repeated makes the same choices; the choice is kept with the device. linear.cu and matmul.cu
 * use this. */
#ifndef MA_CUDA_GEMM_H
#define MA_CUDA_GEMM_H

#include "cuda.h"

/* c = act(alpha·op(a)·op(b) + bias)   op(a) (m, k), op(b) (k, n), c (m, n), dense; or c += …, without bias and act */
typedef struct ma_gemm {
    bool ta, tb;            /* a is stored (k, m); b is stored (n, k) */
    int64_t batch, m, n, k; /* batch: so many products, the matrices one behind the other */
    ma_type in, out;        /* of a and b; of c, bias and pre */
    float alpha;
    bool add;
    const void *a, *b;
    void *c;
    const void *bias; /* (n), or NULL */
    ma_act act;       /* MA_NONE, MA_RELU or MA_GELU_TANH */
    void *pre; /* what act is taken of is kept here, laid out as c; or NULL. For MA_GELU_TANH, n a multiple of 8 */
} ma_gemm;

/* Scratch bytes of any product, on 256 bytes. */
constexpr size_t MA_GEMM_WORK = (size_t)32 << 20;

/* 0, or -1: cuBLASLt has nothing for it, or failed (->failure says which). Products of f32 are rounded to tf32 where
 * ->tf32; sums are always in fp32. */
int ma_cuda_gemm(ma_cuda *, const ma_gemm *, void *work);
/* When the device closes: forgets what was chosen. */
void ma_cuda_gemm_close(ma_cuda *);

#endif
