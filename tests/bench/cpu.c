/* Rates of the CPU's products, convolutions and attention beside OpenBLAS's own threads on the same sizes: `make
 * bench-cpu`. Prints GFLOP/s, the best of several runs; no test, nothing can fail. */
#include "../../kernels/cpu/cpu.h"
#include "../../kernels/cpu/gemm.h"

#include <cblas.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 5 };

static float *noise(int64_t n) {
    float *p = ma_alloc((size_t)n, sizeof *p);
    if (!p) exit(1);
    for (int64_t i = 0; i < n; i++) p[i] = (float)(i * 2654435761u % 1000) / 1000 - 0.5f;
    return p;
}

static ma_tensor tensor(int nd, const int64_t *n) {
    ma_tensor t = {.nd = nd, .want = true};
    memcpy(t.n, n, (size_t)nd * sizeof *n);
    t.data = noise(ma_count(&t));
    t.grad = ma_alloc(1, sizeof t);
    *t.grad = t;
    t.grad->data = noise(ma_count(&t));
    return t;
}

static void tensor_free(ma_tensor *t) {
    ma_release(t->grad->data);
    ma_release(t->grad);
    ma_release(t->data);
}

static double rate(double seconds, double flop) {
    return flop / seconds * 1e-9;
}

/* The best of RUNS, in seconds. */
static double best_call(ma_kernel f, ma_call *c, size_t work) {
    double best = 1e30;
    c->work = ma_alloc(work + 1, 1);
    for (int i = 0; i < RUNS; i++) {
        double start = ma_now();
        f(c);
        double took = ma_now() - start;
        best = took < best ? took : best;
    }
    ma_release(c->work);
    return best;
}

/* OpenBLAS on its own threads. */
static double best_blas(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c) {
    double best = 1e30;
    openblas_set_num_threads(omp_get_max_threads());
    for (int i = 0; i < RUNS; i++) {
        double start = ma_now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)m, (blasint)n, (blasint)k, 1, a, (blasint)k, b,
                    (blasint)k, 0, c, (blasint)n);
        double took = ma_now() - start;
        best = took < best ? took : best;
    }
    openblas_set_num_threads(1);
    return best;
}

static double best_gemm(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c) {
    double best = 1e30;
    for (int i = 0; i < RUNS; i++) {
        double start = ma_now();
        ma_gemm(false, true, m, n, k, 1, a, k, b, k, 0, c, n);
        double took = ma_now() - start;
        best = took < best ? took : best;
    }
    return best;
}

static void product(int64_t m, int64_t n, int64_t k) {
    float *a = noise(m * k), *b = noise(n * k), *c = noise(m * n);
    double flop = 2.0 * (double)m * (double)n * (double)k;
    double own = rate(best_gemm(m, n, k, a, b, c), flop), blas = rate(best_blas(m, n, k, a, b, c), flop);
    printf("product  %5dx%dx%-6d %28.0f   OpenBLAS %5.0f   %3.0f%%\n", (int)m, (int)n, (int)k, own, blas,
           100 * own / blas);
    ma_release(a);
    ma_release(b);
    ma_release(c);
}

static void attention(int64_t l, int64_t h, int64_t d) {
    ma_tensor t[4], lse = tensor(3, (int64_t[]){1, h, l});
    for (int i = 0; i < 4; i++) t[i] = tensor(4, (int64_t[]){1, l, h, d});
    ma_call c = {.op = MA_OP_ATTENTION, .f = {0.125}, .in = {t, t + 1, t + 2}, .out = t + 3, .save = {&lse}};
    double flop = 4.0 * (double)(l * l) * (double)(h * d);
    double f = rate(best_call(ma_cpu_attention_fwd, &c, ma_cpu_attention_work(&c, false)), flop);
    double b = rate(best_call(ma_cpu_attention_bwd, &c, ma_cpu_attention_work(&c, true)), 2.5 * flop);
    printf("attention %5d tokens, %2d heads of %-3d    forward %5.0f   backward %5.0f\n", (int)l, (int)h, (int)d, f, b);
    for (int i = 0; i < 4; i++) tensor_free(t + i);
    tensor_free(&lse);
}

/* x (1,T,H,W,C), w (O,kt,k,k,C), "same" padding. */
static void conv(int64_t t, int64_t h, int64_t w, int64_t c, int64_t o, int64_t kt, int64_t k) {
    ma_tensor x = tensor(5, (int64_t[]){1, t, h, w, c}), y = tensor(5, (int64_t[]){1, t, h, w, o});
    ma_tensor kernel = tensor(5, (int64_t[]){o, kt, k, k, c}), bias = tensor(1, &o);
    int64_t p = kt / 2, q = k / 2;
    ma_call call = {.op = MA_OP_CONV, .i = {1, 1, 1, p, q, q, p, q, q, MA_RELU}, .in = {&x, &kernel, &bias}, .out = &y};
    double flop = 2.0 * (double)ma_count(&y) * (double)(c * kt * k * k);
    double f = rate(best_call(ma_cpu_conv_fwd, &call, ma_cpu_conv_work(&call, false)), flop);
    double b = rate(best_call(ma_cpu_conv_bwd, &call, ma_cpu_conv_work(&call, true)), 2 * flop);
    printf("conv %2dx%dx%dx%-4d to %-4d %dx%dx%d           forward %5.0f   backward %5.0f\n", (int)t, (int)h, (int)w,
           (int)c, (int)o, (int)kt, (int)k, (int)k, f, b);
    tensor_free(&x);
    tensor_free(&y);
    tensor_free(&kernel);
    tensor_free(&bias);
}

int main(void) {
    printf("%s, OpenBLAS for %s, %d threads, GFLOP/s\n", openblas_get_config(), openblas_get_corename(),
           omp_get_max_threads());
    product(1568, 768, 3072); /* VideoMAE-B: the second half of the MLP */
    product(1568, 3072, 768); /* the first half */
    product(1568, 768, 768);  /* the projection after attention */
    product(4800, 4800, 256); /* RAFT's correlation, 480×640 */
    product(64, 3072, 3072);  /* few rows */
    attention(1568, 12, 64);  /* VideoMAE-B */
    attention(4096, 4, 64);
    conv(1, 240, 320, 64, 64, 1, 3); /* RAFT's encoder */
    conv(1, 60, 80, 256, 192, 1, 3); /* RAFT's motion encoder */
    conv(1, 60, 80, 384, 128, 1, 5);
    conv(13, 30, 45, 256, 64, 1, 1);  /* pointwise */
    conv(12, 30, 45, 768, 256, 3, 1); /* Pζ, in time */
    return 0;
}
