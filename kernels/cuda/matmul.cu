/* matmul: scale·a·bᵀ, batch by batch. Backwards: da += scale·dout·b, db += scale·doutᵀ·a (= where fresh). */
#include "cuda.h"
#include "gemm.h"

namespace {

/* What all three products share. */
ma_gemm product(const ma_call *call, int64_t m, int64_t n, int64_t k) {
    ma_gemm g = {};
    g.batch = call->in[0]->n[0], g.m = m, g.n = n, g.k = k;
    g.in = call->in[0]->type;
    g.alpha = (float)call->f[0];
    return g;
}

/* The gradient of in[k] += op(a)·op(b), where it is wanted. */
int add_product(const ma_call *call, int k, ma_gemm g, const void *a, const void *b) {
    const ma_tensor *t = call->in[k];
    if (!t->want) return 0;
    g.out = t->grad->type;
    g.add = !ma_fresh(call, k);
    g.a = a, g.b = b, g.c = t->grad->data;
    return ma_cuda_gemm((ma_cuda *)call->stream, &g, call->work);
}

} // namespace

size_t ma_cuda_matmul_work(ma_cuda *, const ma_call *, bool) {
    return MA_GEMM_WORK;
}

int ma_cuda_matmul_fwd(const ma_call *call) {
    const ma_tensor *a = call->in[0], *b = call->in[1]; // (B, M, K), (B, N, K)
    if (a->type != b->type) return -1;
    ma_gemm g = product(call, a->n[1], b->n[1], a->n[2]);
    g.tb = true;
    g.out = call->out->type;
    g.a = a->data, g.b = b->data, g.c = call->out->data;
    return ma_cuda_gemm((ma_cuda *)call->stream, &g, call->work);
}

int ma_cuda_matmul_bwd(const ma_call *call) {
    const ma_tensor *a = call->in[0], *b = call->in[1], *dout = call->out->grad; // (B, M, N)
    int64_t m = a->n[1], n = b->n[1], k = a->n[2];
    if (a->type != b->type || dout->type != a->type) return -1;
    ma_gemm da = product(call, m, k, n), db = product(call, n, k, m);
    db.ta = true;
    if (add_product(call, 0, da, dout->data, b->data)) return -1;
    return add_product(call, 1, db, dout->data, a->data);
}
