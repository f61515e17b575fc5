/* gemm: matrix products on OpenBLAS, cut into tiles that depend on the sizes only, so that the bits of a result do not
 * depend on the number of threads. Row-major throughout. */
#ifndef MA_CPU_GEMM_H
#define MA_CPU_GEMM_H

#include "../../common/op.h"

/* c = alpha·op(a)·op(b) + beta·c   op(a) (m, k), op(b) (k, n), c (m, n)   ta: a is stored (k, m); tb: b is stored (n,
 * k). On all threads. */
void ma_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
             const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* The same on the calling thread alone: for kernels that are parallel themselves. */
void ma_gemm_tile(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                  const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* batch products on all threads; matrix i of a, b, c stands i·(m·k), i·(n·k), i·(m·n) elements in, without gaps. */
void ma_gemm_batch(bool ta, bool tb, int64_t batch, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                   const float *b, float beta, float *c);

/* What follows a product: act(y + bias). */
typedef struct ma_epilogue {
    const float *bias; /* (n), or NULL */
    ma_act act;
    float *pre; /* y + bias is kept here, laid out as y; or NULL */
} ma_epilogue;
/* act(a·bᵀ + bias): a (m, k), b (n, k), c (m, n), dense. On all threads. */
void ma_gemm_act(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c, ma_epilogue);
/* The epilogue on a (rows, cols) part of y, whose rows are ld apart, on the calling thread. bias and pre stand at the
 * part's first element. */
void ma_epilogue_tile(float *y, int64_t rows, int64_t cols, int64_t ld, ma_epilogue);

/* The epilogue backwards: act'(…)·dout, (rows, n). That is dout itself without an activation, else it is written to
 * room. On all threads. */
const float *ma_epilogue_bwd(const ma_call *, ma_act, float *room);
size_t ma_epilogue_work(const ma_call *, ma_act); /* bytes that room needs */

/* sum (n) += the column sums of a (rows, n), in double. On all threads. */
void ma_column_sums(const float *a, int64_t rows, int64_t n, float *sum);

int64_t ma_min(int64_t, int64_t);

#endif
