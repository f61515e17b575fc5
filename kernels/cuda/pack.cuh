/* pack: what the memory-bound kernels share. Elements whose type is known at run time, eight at a time; the two shapes
 * that nearly all of these kernels have (a plane of rows and columns; column sums); sums over parts in a fixed order.
 *
 * A kernel is compiled for N = 8, where pointers are 16-byte aligned and rows are multiples of 8 long, and for a small
 * N, element by element, which takes the rest. The type is a uniform branch beside a memory access, not a template
 * parameter: any mixture of f32, bf16 and f16 works, and gradients are of another type than data where they are
 * leaves'. Traps: fetch all that a step reads before widening any of it, or each load waits for the one before.
 * Functors live in unnamed namespaces, so that kernels of one name in two files stay two. */
#ifndef MA_CUDA_PACK_CUH
#define MA_CUDA_PACK_CUH

#include "cuda.h"

#include <initializer_list>
#include <limits.h>

namespace packs {

enum {
    PACK = 8,
    THREADS = 256,    /* of a block */
    LOSS_PARTS = 1024 /* that l1 and mse are cut into */
};

/* ---- on the host ---- */

struct array {
    void *p; /* NULL: there is none */
    ma_type type;
    bool fresh = false; /* a gradient that holds nothing yet: what is added to it is all that will be there */
};

inline array data_of(const ma_tensor *t) {
    return t ? array{t->data, t->type} : array{nullptr, MA_F32};
}

/* The gradient of in[k], or none where none is wanted (or there is no such input). One that may be fresh is added to
 * once an element, all over. */
inline array grad_of(const ma_call *call, int k) {
    const ma_tensor *t = call->in[k];
    return t && t->want ? array{t->grad->data, t->grad->type, ma_fresh(call, k)} : array{nullptr, MA_F32};
}

inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* How many elements to take at a time: PACK, or 1 where rows of this length, or addresses, do not allow it; 0 for a
 * type that is not taken. */
inline int grain(int64_t row, std::initializer_list<array> all) {
    bool wide = row % PACK == 0;
    for (const array &a : all) {
        if (a.type != MA_F32 && a.type != MA_BF16 && a.type != MA_F16) return 0;
        if ((uintptr_t)a.p % 16) wide = false;
    }
    return wide ? PACK : 1;
}

/* No two of these gradients of n elements each share memory, unless there is only one. */
inline bool apart(int64_t n, std::initializer_list<array> all) {
    for (const array *a = all.begin(); a != all.end(); a++)
        for (const array *b = all.begin(); b != a; b++) {
            const char *x = (const char *)a->p, *y = (const char *)b->p;
            if (x && y && x < y + (size_t)n * ma_type_size(b->type) && y < x + (size_t)n * ma_type_size(a->type))
                return false;
        }
    return true;
}

inline int launched(ma_cuda *d, const char *where) {
    return ma_cuda_bad(d, cudaGetLastError(), where) ? -1 : 0;
}

/* The smallest power of two that is at least n, and no more than most. */
inline int lanes_for(int64_t n, int most) {
    int lanes = 1;
    while (lanes < most && lanes < n) lanes *= 2;
    return lanes;
}

/* ---- elements and packs, on the device ---- */

template <int N> struct pack { float v[N]; };

/* Loaded, not yet fp32. */
template <int N> struct raw { float v[N]; };
template <> struct raw<PACK> { uint4 lo, hi; /* hi: of f32 only */ };

__device__ inline float load_one(array a, int64_t at) {
    if (a.type == MA_F32) return ((const float *)a.p)[at];
    if (a.type == MA_BF16) return __bfloat162float(((const __nv_bfloat16 *)a.p)[at]);
    return __half2float(((const __half *)a.p)[at]);
}

__device__ inline void store_one(array a, int64_t at, float x) {
    if (a.type == MA_F32)
        ((float *)a.p)[at] = x;
    else if (a.type == MA_BF16)
        ((__nv_bfloat16 *)a.p)[at] = __float2bfloat16_rn(x);
    else
        ((__half *)a.p)[at] = __float2half_rn(x);
}

__device__ inline void add_one(array a, int64_t at, float x) {
    store_one(a, at, a.fresh ? x : load_one(a, at) + x);
}

template <int N> __device__ inline raw<N> fetch(array a, int64_t at) {
    raw<N> r;
    if constexpr (N == PACK) {
        bool full = a.type == MA_F32;
        const uint4 *p = (const uint4 *)((const char *)a.p + at * (full ? 4 : 2));
        r.lo = p[0];
        r.hi = full ? p[1] : uint4{};
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) r.v[k] = load_one(a, at + k);
    }
    return r;
}

template <int N> __device__ inline pack<N> widen(const raw<N> &r, ma_type type) {
    pack<N> x;
    if constexpr (N == PACK) {
        const unsigned w[8] = {r.lo.x, r.lo.y, r.lo.z, r.lo.w, r.hi.x, r.hi.y, r.hi.z, r.hi.w};
        if (type == MA_F32) {
#pragma unroll
            for (int k = 0; k < 8; k++) x.v[k] = __uint_as_float(w[k]);
        } else if (type == MA_BF16) { /* the upper half of an fp32 number */
#pragma unroll
            for (int k = 0; k < 4; k++) {
                x.v[2 * k] = __uint_as_float(w[k] << 16);
                x.v[2 * k + 1] = __uint_as_float(w[k] & 0xffff0000u);
            }
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                x.v[2 * k] = __half2float(__ushort_as_half((unsigned short)(w[k] & 0xffffu)));
                x.v[2 * k + 1] = __half2float(__ushort_as_half((unsigned short)(w[k] >> 16)));
            }
        }
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) x.v[k] = r.v[k];
    }
    return x;
}

template <int N> __device__ inline pack<N> load(array a, int64_t at) {
    return widen<N>(fetch<N>(a, at), a.type);
}

/* Two 16-bit numbers in a word, the first in the lower half. */
__device__ inline unsigned narrow(float first, float second, ma_type type) {
    unsigned lo =
        type == MA_BF16 ? __bfloat16_as_ushort(__float2bfloat16_rn(first)) : __half_as_ushort(__float2half_rn(first));
    unsigned hi =
        type == MA_BF16 ? __bfloat16_as_ushort(__float2bfloat16_rn(second)) : __half_as_ushort(__float2half_rn(second));
    return lo | hi << 16;
}

template <int N> __device__ inline void store(array a, int64_t at, const pack<N> &x) {
    if constexpr (N == PACK) {
        if (a.type == MA_F32) {
            float4 *p = (float4 *)((float *)a.p + at);
            p[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
            p[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
        } else {
            *(uint4 *)((unsigned short *)a.p + at) =
                make_uint4(narrow(x.v[0], x.v[1], a.type), narrow(x.v[2], x.v[3], a.type),
                           narrow(x.v[4], x.v[5], a.type), narrow(x.v[6], x.v[7], a.type));
        }
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) store_one(a, at + k, x.v[k]);
    }
}

/* a += x, or a = x where a is fresh */
template <int N> __device__ inline void add_to(array a, int64_t at, const pack<N> &x) {
    pack<N> sum = x;
    if (!a.fresh) {
        pack<N> was = load<N>(a, at);
#pragma unroll
        for (int k = 0; k < N; k++) sum.v[k] += was.v[k];
    }
    store<N>(a, at, sum);
}

/* a / b; 64-bit division is slow, and most numbers are small. */
__device__ inline int64_t quotient(int64_t a, int64_t b) {
    return (a | b) >> 32 ? a / b : (int64_t)((unsigned)a / (unsigned)b);
}

/* Σ over groups of `lanes` neighbouring threads (a power of two); each of them gets it, with the same bits. room: one
 * number a warp. All threads of the block come here together. */
__device__ inline float sum_lanes(float x, int lanes, float *room) {
    for (int d = (lanes < 32 ? lanes : 32) / 2; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    if (lanes <= 32) return x;
    int warp = threadIdx.x / 32, warps = lanes / 32;
    __syncthreads(); /* room may still be read from the time before */
    if (threadIdx.x % 32 == 0) room[warp] = x;
    __syncthreads();
    x = 0;
    for (int k = 0; k < warps; k++) x += room[warp / warps * warps + k];
    return x;
}

/* ---- activations ---- */

__device__ inline float sigmoid(float x) {
    return __fdividef(1.0f, 1.0f + expf(-x));
}

/* tanh to 1e-7 absolute, which is enough beside 1. */
__device__ inline float tanh_near_one(float x) {
    return 1.0f - __fdividef(2.0f, 1.0f + expf(2.0f * x));
}

__device__ inline float gelu_tanh_inner(float x) {
    return 0.79788456f * (x + 0.044715f * x * x * x); /* √(2/π)·… */
}

template <int N, class F> __device__ inline void each(pack<N> &x, F f) {
#pragma unroll
    for (int k = 0; k < N; k++) x.v[k] = f(x.v[k]);
}

/* x = act(x). NaN passes. */
template <int N> __device__ inline void activate(ma_act act, pack<N> &x) {
    switch (act) {
    case MA_NONE: break;
    case MA_RELU: each(x, [](float v) { return v < 0 ? 0.0f : v; }); break;
    case MA_SIGMOID: each(x, [](float v) { return sigmoid(v); }); break;
    case MA_TANH: each(x, [](float v) { return tanhf(v); }); break;
    case MA_SILU: each(x, [](float v) { return v * sigmoid(v); }); break;
    case MA_GELU: each(x, [](float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678f)); }); break;
    case MA_GELU_TANH: each(x, [](float v) { return 0.5f * v * (1.0f + tanh_near_one(gelu_tanh_inner(v))); }); break;
    }
}

/* x = act', of the output for relu, sigmoid and tanh, of the input for silu and the gelus. */
template <int N> __device__ inline void derive(ma_act act, pack<N> &x) {
    switch (act) {
    case MA_NONE: each(x, [](float) { return 1.0f; }); break;
    case MA_RELU: each(x, [](float y) { return y > 0 ? 1.0f : 0.0f; }); break;
    case MA_SIGMOID: each(x, [](float y) { return y * (1.0f - y); }); break;
    case MA_TANH: each(x, [](float y) { return 1.0f - y * y; }); break;
    case MA_SILU:
        each(x, [](float v) {
            float s = sigmoid(v);
            return s * (1.0f + v * (1.0f - s));
        });
        break;
    case MA_GELU:
        each(x, [](float v) {
            return 0.5f * (1.0f + erff(v * 0.70710678f)) + v * 0.39894228f * expf(-0.5f * v * v); /* 1/√2, 1/√(2π) */
        });
        break;
    case MA_GELU_TANH:
        each(x, [](float v) {
            float t = tanh_near_one(gelu_tanh_inner(v)), du = 0.79788456f * (1.0f + 3.0f * 0.044715f * v * v);
            return 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * du;
        });
        break;
    }
}

inline bool needs_input(ma_act act) {
    return act == MA_SILU || act == MA_GELU || act == MA_GELU_TANH;
}

/* ---- a plane: f.at<N>(row, column) for every N-th column of every row ---- */

/* lanes threads lie along a row, the rest of the block on the rows below. */
template <int N, class F>
__global__ void __launch_bounds__(THREADS) plane_kernel(F f, int64_t rows, int64_t columns, int lanes) {
    int64_t column = ((int64_t)blockIdx.x * lanes + threadIdx.x % lanes) * N, tile = THREADS / lanes;
    if (column >= columns) return;
    for (int64_t row = blockIdx.y * tile + threadIdx.x / lanes; row < rows; row += gridDim.y * tile)
        f.template at<N>(row, column);
}

/* f over a plane, N columns at a time. A thread takes up to 4 rows where there are many: what belongs to a column is
 * then read from the first cache. */
template <int N, class F> int run_each(ma_cuda *d, const char *where, F f, int64_t rows, int64_t columns) {
    if (columns % N) return -1;
    if (rows < 1 || columns < 1) return 0;
    int lanes = lanes_for(columns / N, THREADS), tile = THREADS / lanes;
    int64_t across = ceil_div(columns / N, lanes), down = ceil_div(rows, tile);
    if (across > INT_MAX) return -1;
    if (across * down > 4096) down = ceil_div(down, 4);
    dim3 grid((unsigned)across, (unsigned)(down > 65535 ? 65535 : down));
    plane_kernel<N><<<grid, THREADS, 0, d->stream>>>(f, rows, columns, lanes);
    return launched(d, where);
}

/* n: grain() of all that f touches; SCALAR: what to take at a time where that is 1. */
template <int SCALAR = 1, class F>
int run_plane(ma_cuda *d, const char *where, F f, int64_t rows, int64_t columns, int n) {
    if (!n) return -1;
    return n == PACK ? run_each<PACK>(d, where, f, rows, columns) : run_each<SCALAR>(d, where, f, rows, columns);
}

/* ---- column sums over the tokens of a batch ---- */

/* In each sample the first `text` of `len` tokens are text, the others video. Both are cut into pieces of `size`
 * tokens, by shapes alone; each piece's sums are a part, and the parts are added in order. */
struct tokens {
    int64_t batch, len, text, width;
    int64_t size, text_pieces, pieces; /* pieces: of a sample */
};

inline tokens tokens_of(int64_t batch, int64_t len, int64_t text, int64_t width) {
    int64_t most = 2048 / ceil_div(width, THREADS); /* pieces that keep the device busy */
    most = most < 64 ? 64 : most > 1024 ? 1024 : most;
    int64_t size = ceil_div(batch * len, most);
    if (size < 32) size = 32;
    int64_t first = ceil_div(text, size);
    return {batch, len, text, width, size, first, first + ceil_div(len - text, size)};
}

/* Bytes of the parts, K sums a column. */
inline size_t parts_bytes(const tokens &t, int k) {
    return (size_t)(t.batch * t.pieces * t.width) * (size_t)k * sizeof(float);
}

/* Rows from, …, to-1 (counted over the whole batch), all of one sample and one kind. */
struct piece {
    int64_t sample, from, to;
    bool text;
};

__device__ inline piece piece_of(const tokens &t, int64_t k) {
    int64_t sample = k / t.pieces, j = k % t.pieces;
    bool text = j < t.text_pieces;
    int64_t from = text ? j * t.size : t.text + (j - t.text_pieces) * t.size, end = text ? t.text : t.len;
    int64_t to = from + t.size < end ? from + t.size : end;
    return {sample, sample * t.len + from, sample * t.len + to, text};
}

/* part (pieces of the batch, K, width): what F::column<N>(f, piece, column).add(row, sum) adds to sum[K][N] over the
 * rows of a piece. A block takes one piece and lanes·N columns. */
template <int N, int K, class F>
__global__ void __launch_bounds__(THREADS) parts_kernel(F f, tokens t, int lanes, int strips, float *part) {
    __shared__ float room[K * N * THREADS];
    int x = threadIdx.x % lanes, y = threadIdx.x / lanes, tile = THREADS / lanes;
    int64_t k = blockIdx.x / strips, first = (int64_t)(blockIdx.x % strips) * lanes * N, column = first + x * N;
    piece p = piece_of(t, k);
    float sum[K][N] = {};
    if (column < t.width) {
        typename F::template column<N> c(f, p, column);
#pragma unroll 2
        for (int64_t row = p.from + y; row < p.to; row += tile) c.add(row, sum);
    }
#pragma unroll
    for (int j = 0; j < K * N; j++) room[j * THREADS + threadIdx.x] = sum[j / N][j % N];
    __syncthreads();
    for (int u = threadIdx.x; u < K * N * lanes; u += THREADS) {
        int j = u / lanes;
        int64_t at = first + u % lanes * N + j % N;
        float total = 0;
        for (int r = 0; r < tile; r++) total += room[j * THREADS + r * lanes + u % lanes];
        if (at < t.width) part[(k * K + j / N) * t.width + at] = total;
    }
}

/* g.add(sample, text, column, total[K], carry) with the totals over each sample's video, then its text; g.end(column,
 * carry) after the last. A block takes 32 columns, its 32 warps each every 32nd part. */
template <int K, class G> __global__ void __launch_bounds__(1024) totals_kernel(G g, tokens t, const float *part) {
    __shared__ double room[K][32][32];
    int x = threadIdx.x % 32, y = threadIdx.x / 32;
    int64_t column = (int64_t)blockIdx.x * 32 + x;
    double carry[2] = {0, 0};
    for (int64_t k = 2 * (int64_t)blockIdx.y; k < 2 * t.batch; k += k % 2 ? 2 * (int64_t)gridDim.y - 1 : 1) {
        bool text = k % 2;
        int64_t first = k / 2 * t.pieces, from = text ? 0 : t.text_pieces, to = text ? t.text_pieces : t.pieces;
        if (from == to) continue;
        double sum[K] = {};
        for (int64_t j = from + y; j < to && column < t.width; j += 32)
#pragma unroll
            for (int i = 0; i < K; i++) sum[i] += part[((first + j) * K + i) * t.width + column];
        __syncthreads(); /* the first warp may still add what was here */
#pragma unroll
        for (int i = 0; i < K; i++) room[i][y][x] = sum[i];
        __syncthreads();
        if (y || column >= t.width) continue;
#pragma unroll
        for (int i = 0; i < K; i++)
            for (int r = 1; r < 32; r++) sum[i] += room[i][r][x];
        g.add(k / 2, text, column, sum, carry);
    }
    if (!y && column < t.width) g.end(column, carry);
}

/* split: samples go to blocks of their own; g then carries nothing and adds to no place twice. */
template <int K, class G>
int run_totals(ma_cuda *d, const char *where, G g, const tokens &t, const float *part, bool split) {
    int64_t samples = !split ? 1 : t.batch < 65535 ? t.batch : 65535;
    dim3 grid((unsigned)ceil_div(t.width, 32), (unsigned)samples);
    totals_kernel<K><<<grid, 1024, 0, d->stream>>>(g, t, part);
    return launched(d, where);
}

/* Both of the above. */
template <int K, class F, class G>
int run_columns(ma_cuda *d, const char *where, F f, G g, const tokens &t, int n, float *part, bool split) {
    if (!n) return -1;
    if (t.batch < 1 || t.len < 1 || t.width < 1) return 0;
    int lanes = lanes_for(t.width / n, 32);
    int64_t strips = ceil_div(t.width / n, lanes), blocks = strips * t.batch * t.pieces;
    if (blocks > INT_MAX || !part) return -1;
    if (n == PACK)
        parts_kernel<PACK, K><<<(unsigned)blocks, THREADS, 0, d->stream>>>(f, t, lanes, (int)strips, part);
    else
        parts_kernel<1, K><<<(unsigned)blocks, THREADS, 0, d->stream>>>(f, t, lanes, (int)strips, part);
    return launched(d, where) ? -1 : run_totals<K>(d, where, g, t, part, split);
}

/* ---- one number out of many ---- */

/* Σ over the block, in a fixed order; thread 0 gets it. */
template <int BLOCK> __device__ inline double sum_block(double x) {
    __shared__ double room[BLOCK];
    room[threadIdx.x] = x;
    for (int n = BLOCK / 2; n; n /= 2) {
        __syncthreads();
        if (threadIdx.x < n) room[threadIdx.x] += room[threadIdx.x + n];
    }
    return room[0];
}

/* out = scale·Σ part, n of them, by one block. */
template <int BLOCK>
__global__ void __launch_bounds__(BLOCK) total_kernel(const double *part, int64_t n, double scale, float *out) {
    double sum = 0;
    for (int64_t k = threadIdx.x; k < n; k += BLOCK) sum += part[k];
    sum = sum_block<BLOCK>(sum);
    if (!threadIdx.x) *out = (float)(scale * sum);
}

template <int BLOCK = 1024>
int run_total(ma_cuda *d, const char *where, const double *part, int64_t n, double scale, void *out) {
    total_kernel<BLOCK><<<1, BLOCK, 0, d->stream>>>(part, n, scale, (float *)out);
    return launched(d, where);
}

} // namespace packs
#endif
