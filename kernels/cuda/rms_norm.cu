/* rms_norm: x/sqrt(mean(x²) + eps)·g over the last dimension. Forward only. Up to a block's threads take a row; it is
 * read twice, the second time from the first cache. x, g and y may differ in type. */
#include "pack.cuh"

using namespace packs;

namespace {

template <int N>
__global__ void __launch_bounds__(THREADS)
    rms_norm_kernel(array x, array g, array y, int64_t rows, int64_t width, int lanes, float eps) {
    __shared__ float room[THREADS / 32];
    int lane = threadIdx.x % lanes, tile = THREADS / lanes;
    for (int64_t first = (int64_t)blockIdx.x * tile; first < rows; first += (int64_t)gridDim.x * tile) {
        int64_t row = first + threadIdx.x / lanes, end = row < rows ? width : 0; /* all threads come to the sum */
        float squares = 0;
#pragma unroll 2
        for (int64_t c = (int64_t)lane * N; c < end; c += (int64_t)lanes * N) {
            pack<N> v = load<N>(x, row * width + c);
#pragma unroll
            for (int k = 0; k < N; k++) squares += v.v[k] * v.v[k];
        }
        float inverse = rsqrtf(sum_lanes(squares, lanes, room) / (float)width + eps);
#pragma unroll 2
        for (int64_t c = (int64_t)lane * N; c < end; c += (int64_t)lanes * N) {
            raw<N> rx = fetch<N>(x, row * width + c), rg = fetch<N>(g, c);
            pack<N> v = widen<N>(rx, x.type), by = widen<N>(rg, g.type);
#pragma unroll
            for (int k = 0; k < N; k++) v.v[k] *= inverse * by.v[k];
            store<N>(y, row * width + c, v);
        }
    }
}

} // namespace

int ma_cuda_rms_norm_fwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    array x = data_of(call->in[0]), g = data_of(call->in[1]), y = data_of(call->out);
    int64_t width = call->in[1]->n[0], rows = ma_count(call->out) / width;
    int n = grain(width, {x, g, y});
    if (!n) return -1;
    int lanes = lanes_for(ceil_div(width, n), THREADS);
    int64_t blocks = ceil_div(rows, THREADS / lanes);
    unsigned grid = blocks > INT_MAX ? INT_MAX : (unsigned)blocks;
    float eps = (float)call->f[0];
    if (n == PACK)
        rms_norm_kernel<PACK><<<grid, THREADS, 0, d->stream>>>(x, g, y, rows, width, lanes, eps);
    else
        rms_norm_kernel<1><<<grid, THREADS, 0, d->stream>>>(x, g, y, rows, width, lanes, eps);
    return launched(d, "rms_norm");
}
