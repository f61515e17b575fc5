/* gemm: see gemm.h.
 * Limits: a leading dimension or k must fit OpenBLAS's integer (2³¹ elements).
 * Traps: OpenBLAS's own threads split a product by their number, and the bits follow; here it always runs on one
 * thread, called from OpenMP's. Tiles are cut along m and n, never along k, and never by the number of threads. Every
 * tile packs its operands anew: tiles much smaller than 512×768 cost a tenth of the rate and more. */
#include "gemm.h"
#include "math.h"

#include <cblas.h>
#include <pthread.h>
#include <string.h>

int64_t ma_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void one_thread(void) {
    openblas_set_num_threads(1);
}

void ma_gemm_tile(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                  const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, one_thread);
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (blasint)m, (blasint)n,
                (blasint)k, alpha, a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}

/* How a product is cut: tiles of rows × cols, down × across of them. */
typedef struct cut {
    int64_t rows, cols, down, across;
} cut;

static int64_t pieces(int64_t n, int64_t most) {
    return (n + most - 1) / most;
}

/* Equal pieces in whole multiples of 16, the width of the kernels. */
static int64_t even(int64_t n, int64_t most) {
    return n ? pieces(pieces(n, pieces(n, most)), 16) * 16 : 16;
}

/* Large tiles, but at least 8 of them where that leaves each 2 MFLOP and 64×64 elements. */
static cut cut_of(int64_t batch, int64_t m, int64_t n, int64_t k) {
    int64_t rows = 512, cols = 768;
    for (;;) {
        cut t = {even(m, rows), even(n, cols), 0, 0};
        t.down = pieces(m, t.rows);
        t.across = pieces(n, t.cols);
        int64_t size = t.rows * t.cols;
        if (batch * t.down * t.across >= 8 || size * k <= 1 << 20 || size <= 64 * 64) return t;
        if (t.rows > t.cols)
            rows = t.rows / 2;
        else
            cols = t.cols / 2;
    }
}

/* Everything above a tile: batch products of one size, with or without an epilogue. */
typedef struct product {
    bool ta, tb;
    int64_t batch, m, n, k;
    float alpha, beta;
    const float *a, *b;
    float *c;
    int64_t lda, ldb, ldc;
    const ma_epilogue *after;
} product;

static void run(const product *p) {
    cut t = cut_of(p->batch, p->m, p->n, p->k);
    int64_t tiles = p->batch * t.down * t.across;
#pragma omp parallel for schedule(dynamic, 1) if (tiles > 1)
    for (int64_t i = 0; i < tiles; i++) {
        int64_t s = i / (t.down * t.across);
        int64_t row = i / t.across % t.down * t.rows, col = i % t.across * t.cols;
        int64_t rows = ma_min(t.rows, p->m - row), cols = ma_min(t.cols, p->n - col);
        const float *a = p->a + s * p->m * p->k + (p->ta ? row : row * p->lda);
        const float *b = p->b + s * p->n * p->k + (p->tb ? col * p->ldb : col);
        int64_t at = s * p->m * p->n + row * p->ldc + col;
        ma_gemm_tile(p->ta, p->tb, rows, cols, p->k, p->alpha, a, p->lda, b, p->ldb, p->beta, p->c + at, p->ldc);
        if (!p->after) continue;
        ma_epilogue e = *p->after;
        if (e.bias) e.bias += col;
        if (e.pre) e.pre += at;
        ma_epilogue_tile(p->c + at, rows, cols, p->ldc, e);
    }
}

void ma_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
             const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    run(&(product){ta, tb, 1, m, n, k, alpha, beta, a, b, c, lda, ldb, ldc, NULL});
}

void ma_gemm_batch(bool ta, bool tb, int64_t batch, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                   const float *b, float beta, float *c) {
    run(&(product){ta, tb, batch, m, n, k, alpha, beta, a, b, c, ta ? m : k, tb ? k : n, n, NULL});
}

void ma_gemm_act(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c, ma_epilogue e) {
    bool nothing = !e.bias && !e.pre && e.act == MA_NONE;
    run(&(product){false, true, 1, m, n, k, 1, 0, a, b, c, k, k, n, nothing ? NULL : &e});
}

void ma_epilogue_tile(float *y, int64_t rows, int64_t cols, int64_t ld, ma_epilogue e) {
    for (int64_t r = 0; r < rows; r++, y += ld) {
        if (e.bias)
            for (int64_t i = 0; i < cols; i++) y[i] += e.bias[i];
        if (e.pre) memcpy(e.pre + r * ld, y, (size_t)cols * sizeof *y);
        if (e.act != MA_NONE) ma_act_fwd(e.act, y, y, (size_t)cols);
    }
}

size_t ma_epilogue_work(const ma_call *call, ma_act act) {
    return act == MA_NONE ? 0 : (size_t)ma_count(call->out) * sizeof(float);
}

const float *ma_epilogue_bwd(const ma_call *call, ma_act act, float *room) {
    const float *dout = call->out->grad->data, *out = call->out->data;
    const float *pre = call->save[0] ? call->save[0]->data : NULL;
    if (act == MA_NONE) return dout;
    int64_t n = ma_count(call->out), chunk = 1 << 14;
#pragma omp parallel for
    for (int64_t i = 0; i < n; i += chunk)
        ma_act_bwd(act, pre ? pre + i : NULL, out + i, dout + i, room + i, (size_t)ma_min(chunk, n - i), false);
    return room;
}

/* A strip of columns, up to STRIP of them: single precision over 64 rows, double above. */
enum { STRIP = 64 };
static void strip_sums(const float *a, int64_t rows, int64_t n, int64_t cols, float *sum) {
    double total[STRIP] = {0};
    for (int64_t r = 0; r < rows; r += 64) {
        float part[STRIP] = {0};
        for (int64_t i = r; i < ma_min(r + 64, rows); i++)
            for (int64_t j = 0; j < cols; j++) part[j] += a[i * n + j];
        for (int64_t j = 0; j < cols; j++) total[j] += part[j];
    }
    for (int64_t j = 0; j < cols; j++) sum[j] += (float)total[j];
}

void ma_column_sums(const float *a, int64_t rows, int64_t n, float *sum) {
#pragma omp parallel for if (rows * n > 1 << 14)
    for (int64_t j = 0; j < n; j += STRIP) strip_sums(a + j, rows, n, ma_min(STRIP, n - j), sum + j);
}
