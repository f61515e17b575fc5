/* loss: l1 and mse, means over all elements: each block's sum in double, then the blocks' in order. The target gets no
 * gradient; l1's at 0 is 0. x and target may differ in type. */
#include "pack.cuh"

using namespace packs;

namespace {

/* The distance of two numbers, and its derivative. */
struct absolute {
    static __device__ float of(float d) {
        return fabsf(d);
    }
    static __device__ float slope(float d) {
        return d > 0 ? 1.0f : d < 0 ? -1.0f : 0.0f;
    }
};

struct squared {
    static __device__ float of(float d) {
        return d * d;
    }
    static __device__ float slope(float d) {
        return 2 * d;
    }
};

template <int N, class D>
__global__ void __launch_bounds__(THREADS) distance_kernel(array x, array target, int64_t n, double *part) {
    double sum = 0;
    for (int64_t k = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N; k < n; k += (int64_t)gridDim.x * THREADS * N) {
        raw<N> rx = fetch<N>(x, k), rt = fetch<N>(target, k);
        pack<N> p = widen<N>(rx, x.type), q = widen<N>(rt, target.type);
        float few = 0;
#pragma unroll
        for (int j = 0; j < N; j++) few += D::of(p.v[j] - q.v[j]);
        sum += few;
    }
    sum = sum_block<THREADS>(sum);
    if (!threadIdx.x) part[blockIdx.x] = sum;
}

/* dx += slope·dloss/n */
template <class D> struct distance_bwd {
    array x, target, dx;
    const float *dloss;
    double n;
    template <int N> __device__ void at(int64_t, int64_t k) const {
        raw<N> rx = fetch<N>(x, k), rt = fetch<N>(target, k);
        pack<N> p = widen<N>(rx, x.type), q = widen<N>(rt, target.type);
        float g = (float)(*dloss / n);
#pragma unroll
        for (int j = 0; j < N; j++) p.v[j] = g * D::slope(p.v[j] - q.v[j]);
        add_to<N>(dx, k, p);
    }
};

template <class D> int distance(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    array x = data_of(call->in[0]), target = data_of(call->in[1]);
    int64_t count = ma_count(call->in[0]), blocks = ceil_div(count, PACK * THREADS);
    double *part = (double *)call->work;
    int n = grain(count, {x, target});
    if (!n || count < 1) return -1;
    if (blocks > LOSS_PARTS) blocks = LOSS_PARTS;
    if (n == PACK)
        distance_kernel<PACK, D><<<(unsigned)blocks, THREADS, 0, d->stream>>>(x, target, count, part);
    else
        distance_kernel<1, D><<<(unsigned)blocks, THREADS, 0, d->stream>>>(x, target, count, part);
    if (launched(d, "loss")) return -1;
    return run_total(d, "loss", part, blocks, 1 / (double)count, call->out->data);
}

template <class D> int distance_backward(const ma_call *call) {
    array dx = grad_of(call, 0);
    int64_t n = ma_count(call->in[0]);
    distance_bwd<D> f = {data_of(call->in[0]), data_of(call->in[1]), dx, (const float *)call->out->grad->data,
                         (double)n};
    return dx.p ? run_plane((ma_cuda *)call->stream, "loss's gradient", f, 1, n, grain(n, {f.x, f.target, dx})) : 0;
}

} // namespace

int ma_cuda_l1_fwd(const ma_call *call) {
    return distance<absolute>(call);
}

int ma_cuda_l1_bwd(const ma_call *call) {
    return distance_backward<absolute>(call);
}

int ma_cuda_mse_fwd(const ma_call *call) {
    return distance<squared>(call);
}

int ma_cuda_mse_bwd(const ma_call *call) {
    return distance_backward<squared>(call);
}
