/* linear: act(x·wᵀ + b). Backwards, with d = act'·dout: dx += d·w, dw += dᵀ·x, db += column sums of d (= where fresh).
 * linear_add: r += x·wᵀ + b by the product itself, forward only; r, with b, may be f32 beside 16 bits.
 *
 * The bias is fused behind the product, and so is relu, and the tanh form of gelu in 16 bits (in fp32 cuBLASLt's is not
 * exact enough). Other activations, the exact gelu among them, are one more pass over the result, in place.
 */
#include "cuda.h"
#include "gemm.h"

namespace {

ma_dense dense_of(const ma_call *call) {
    const ma_tensor *w = call->in[1];
    return {ma_count(call->out) / w->n[0], w->n[1], w->n[0], (ma_act)call->i[0]};
}

/* The backward's work: that of products and column sums, which come one after the other, then d. */
size_t shared_work(const ma_dense &s) {
    size_t columns = (ma_cuda_columns_work(s.rows, s.n) + 255) / 256 * 256;
    return columns > MA_GEMM_WORK ? columns : MA_GEMM_WORK;
}

/* Whether the activation goes behind the product itself. */
bool fuses(const ma_call *call, const ma_dense &s) {
    switch (s.act) {
    case MA_RELU: return true;
    case MA_GELU_TANH: return call->out->type != MA_F32 && (!call->save[0] || s.n % 8 == 0);
    default: return false;
    }
}

bool alike(const ma_call *call) {
    ma_type type = call->out->type;
    return call->in[0]->type == type && call->in[1]->type == type && (!call->in[2] || call->in[2]->type == type) &&
           (!call->save[0] || call->save[0]->type == type);
}

/* The gradient of in[k] += op(a)·op(b), where it is wanted. */
int add_product(const ma_call *call, int k, ma_gemm g) {
    const ma_tensor *t = call->in[k];
    if (!t->want) return 0;
    g.batch = 1;
    g.out = t->grad->type;
    g.alpha = 1;
    g.add = !ma_fresh(call, k);
    g.c = t->grad->data;
    return ma_cuda_gemm((ma_cuda *)call->stream, &g, call->work);
}

} // namespace

size_t ma_cuda_dense_work(const ma_call *call, ma_dense s, bool backward) {
    if (!backward) return MA_GEMM_WORK;
    return shared_work(s) + (s.act == MA_NONE ? 0 : ma_bytes(call->out));
}

int ma_cuda_dense_fwd(const ma_call *call, ma_dense s, const void *x) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_tensor *b = call->in[2];
    ma_act act = s.act, after = fuses(call, s) ? MA_NONE : act;
    const void *bias = b ? b->data : NULL;
    void *pre = call->save[0] ? call->save[0]->data : NULL, *out = call->out->data;
    if (!alike(call)) return -1;

    ma_gemm g = {};
    g.tb = true;
    g.batch = 1, g.m = s.rows, g.n = s.n, g.k = s.k;
    g.in = g.out = call->out->type;
    g.alpha = 1;
    g.a = x, g.b = call->in[1]->data, g.c = out;
    g.bias = bias;
    if (after != act) g.act = act, g.pre = pre;
    if (!ma_cuda_gemm(c, &g, call->work))
        return after == MA_NONE ? 0 : ma_cuda_bias_act(c, after, g.out, out, NULL, pre, out, s.rows, s.n);

    /* Not so fused: the bare product, and all else in a second pass. */
    g.bias = g.pre = NULL;
    g.act = MA_NONE;
    if (ma_cuda_gemm(c, &g, call->work)) return -1;
    c->failure[0] = 0;
    return !bias && act == MA_NONE ? 0 : ma_cuda_bias_act(c, act, g.out, out, bias, pre, out, s.rows, s.n);
}

int ma_cuda_dense_bwd(const ma_call *call, ma_dense s) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_tensor *x = call->in[0], *w = call->in[1], *b = call->in[2], *dout = call->out->grad;
    ma_type type = call->out->type;
    if (!alike(call) || dout->type != type) return -1;

    const void *d = dout->data; // (rows, n)
    if (s.act != MA_NONE) {
        void *room = (char *)call->work + shared_work(s);
        const void *pre = call->save[0] ? call->save[0]->data : NULL;
        if (ma_cuda_act_grad(c, s.act, type, pre, call->out->data, d, room, s.rows * s.n)) return -1;
        d = room;
    }
    ma_gemm dx = {}, dw = {};
    dx.m = s.rows, dx.n = s.k, dx.k = s.n;
    dx.a = d, dx.b = w->data; // (rows, n)·(n, k)
    dw.ta = true;
    dw.m = s.n, dw.n = s.k, dw.k = s.rows;
    dw.a = d, dw.b = x->data; // (rows, n)ᵀ·(rows, k)
    dx.in = dw.in = type;
    if (add_product(call, 0, dx) || add_product(call, 1, dw)) return -1;
    if (!b || !b->want) return 0;
    if (b->grad->type != MA_F32) return -1;
    return ma_cuda_columns(c, d, type, s.rows, s.n, (float *)b->grad->data, !ma_fresh(call, 2), call->work);
}

size_t ma_cuda_linear_work(ma_cuda *, const ma_call *call, bool backward) {
    return ma_cuda_dense_work(call, dense_of(call), backward);
}

int ma_cuda_linear_fwd(const ma_call *call) {
    return ma_cuda_dense_fwd(call, dense_of(call), call->in[0]->data);
}

int ma_cuda_linear_bwd(const ma_call *call) {
    return ma_cuda_dense_bwd(call, dense_of(call));
}

size_t ma_cuda_linear_add_work(ma_cuda *, const ma_call *, bool) {
    return MA_GEMM_WORK;
}

int ma_cuda_linear_add_fwd(const ma_call *call) {
    const ma_tensor *x = call->in[1], *w = call->in[2], *b = call->in[3], *r = call->out;
    if (x->type != w->type || (b && b->type != r->type)) return -1;
    ma_gemm g = {};
    g.tb = true;
    g.batch = 1, g.m = ma_count(r) / w->n[0], g.n = w->n[0], g.k = w->n[1];
    g.in = x->type, g.out = r->type;
    g.alpha = 1;
    g.add = true;
    g.a = x->data, g.b = w->data, g.c = r->data;
    g.bias = b ? b->data : NULL;
    ma_cuda *c = (ma_cuda *)call->stream;
    if (!ma_cuda_gemm(c, &g, call->work)) return 0;
    if (!b) return -1;
    g.bias = NULL; /* the bias in a second pass */
    if (ma_cuda_gemm(c, &g, call->work)) return -1;
    c->failure[0] = 0;
    return ma_cuda_bias_act(c, MA_NONE, g.out, r->data, b->data, NULL, r->data, g.m, g.n);
}
