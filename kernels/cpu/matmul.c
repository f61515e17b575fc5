/* matmul: scale·a·bᵀ, batch by batch. Backwards: da += scale·dout·b, db += scale·doutᵀ·a. */
#include "cpu.h"
#include "gemm.h"

int ma_cpu_matmul_fwd(const ma_call *call) {
    const ma_tensor *a = call->in[0], *b = call->in[1]; // (B, M, K), (B, N, K)
    ma_gemm_batch(false, true, a->n[0], a->n[1], b->n[1], a->n[2], (float)call->f[0], a->data, b->data, 0,
                  call->out->data);
    return 0;
}

int ma_cpu_matmul_bwd(const ma_call *call) {
    const ma_tensor *a = call->in[0], *b = call->in[1];
    int64_t batch = a->n[0], m = a->n[1], n = b->n[1], k = a->n[2];
    float scale = (float)call->f[0], *da = ma_cpu_grad(a), *db = ma_cpu_grad(b);
    const float *dout = call->out->grad->data; // (B, M, N)
    if (da) ma_gemm_batch(false, false, batch, m, k, n, scale, dout, b->data, 1, da);
    if (db) ma_gemm_batch(true, false, batch, n, k, m, scale, dout, a->data, 1, db);
    return 0;
}
