/* gemm: matrix products on cuBLASLt, row-major as everywhere (kernels/cpu/gemm.h). How a product is computed is chosen
 * once for all that it depends on (sizes, types, what is fused, alignments), by cuBLASLt's heuristics and without
 * timing, so that a run repeated makes the same choices; the choice is kept with the device. linear.cu, matmul.cu and
 * conv.cu use this. */
#ifndef MA_CUDA_GEMM_H
#define MA_CUDA_GEMM_H

#include "cuda.h"

/* c = act(alpha·op(a)·op(b) + bias)   op(a) (m, k), op(b) (k, n), c (m, n), dense; or c += …, without act */
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

/* ---- act(x·wᵀ + b), for every op that comes to it; in linear.cu ---- */

/* A call's tensors as matrices, whatever their dimensions: x (rows, k), w (n, k), out (rows, n). As linear has them,
 * the call's in[1] is w, in[2] is b (n) or NULL, and save[0] is what act is taken of. */
typedef struct ma_dense {
    int64_t rows, k, n;
    ma_act act;
} ma_dense;

/* Scratch bytes in call->work, on 256 bytes unless backward. */
size_t ma_cuda_dense_work(const ma_call *, ma_dense, bool backward);
/* x lies where the caller says: in in[0], or gathered from it behind the scratch. */
int ma_cuda_dense_fwd(const ma_call *, ma_dense, const void *x);
/* x is in[0]. */
int ma_cuda_dense_bwd(const ma_call *, ma_dense);

#endif
