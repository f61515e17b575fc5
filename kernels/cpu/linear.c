/* linear: act(x·wᵀ + b). Backwards, with d = act'·dout: dx += d·w, dw += dᵀ·x, db += column sums of d.
 * linear_add: r += x·wᵀ + b, forward only. */
#include "cpu.h"
#include "gemm.h"

typedef struct sizes {
    int64_t rows, k, n; /* x (rows, k), w (n, k), out (rows, n) */
} sizes;

static sizes sizes_of(const ma_call *call) {
    const ma_tensor *w = call->in[1];
    return (sizes){ma_count(call->out) / w->n[0], w->n[1], w->n[0]};
}

size_t ma_cpu_linear_work(const ma_call *call, bool backward) {
    return backward ? ma_epilogue_work(call, (ma_act)call->i[0]) : 0;
}

int ma_cpu_linear_fwd(const ma_call *call) {
    sizes s = sizes_of(call);
    const ma_tensor *b = call->in[2], *pre = call->save[0];
    ma_epilogue after = {b ? b->data : NULL, (ma_act)call->i[0], pre ? pre->data : NULL};
    ma_gemm_act(s.rows, s.n, s.k, call->in[0]->data, call->in[1]->data, call->out->data, after);
    return 0;
}

int ma_cpu_linear_bwd(const ma_call *call) {
    sizes s = sizes_of(call);
    const ma_tensor *x = call->in[0], *w = call->in[1];
    float *dx = ma_cpu_grad(x), *dw = ma_cpu_grad(w), *db = ma_cpu_grad(call->in[2]);
    const float *d = ma_epilogue_bwd(call, (ma_act)call->i[0], call->work); // (rows, n)
    if (dx) ma_gemm(false, false, s.rows, s.k, s.n, 1, d, s.n, w->data, s.k, 1, dx, s.k);
    if (dw) ma_gemm(true, false, s.n, s.k, s.rows, 1, d, s.n, x->data, s.k, 1, dw, s.k);
    if (db) ma_column_sums(d, s.rows, s.n, db);
    return 0;
}

int ma_cpu_linear_add_fwd(const ma_call *call) {
    const ma_tensor *x = call->in[1], *w = call->in[2], *b = call->in[3];
    int64_t n = w->n[0], k = w->n[1], rows = ma_count(call->out) / n;
    float *r = call->out->data;
    ma_gemm(false, true, rows, n, k, 1, x->data, k, w->data, k, 1, r, n);
#pragma omp parallel for if (rows * n > 1 << 14)
    for (int64_t i = 0; i < (b ? rows : 0); i++)
        ma_epilogue_tile(r + i * n, 1, n, n, (ma_epilogue){b->data, MA_NONE, NULL});
    return 0;
}
