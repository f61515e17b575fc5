/* resize: trilinear resize and 2×2 pooling. The backward passes gather, so that no two threads add to one element;
 * where an output looks is computed in double, as on the CPU.
 *
 * In a resize a thread has a fixed place in the plane and goes through the planes: what depends on row and column
 * alone, which is nearly all of that arithmetic, is computed once. Limits: INT_MAX planes and rows; rows of half as
 * many elements. */
#include "pack.cuh"

using namespace packs;

namespace {

/* One axis of a resize: output o reads input at `scale·o + shift`, held inside. */
struct axis {
    int in, out;
    double scale, shift;
};

/* Aligned corners: the outermost samples' centres coincide. Otherwise their outer edges do (PyTorch's default). */
axis axis_of(int64_t in, int64_t out, bool align) {
    if (align) return {(int)in, (int)out, out > 1 ? (double)(in - 1) / (double)(out - 1) : 0, 0};
    double scale = (double)in / (double)out;
    return {(int)in, (int)out, scale, 0.5 * scale - 0.5};
}

/* The two inputs that an output mixes: (1-w)·x[a] + w·x[b]. */
struct mix {
    int a, b;
    float w;
};

__device__ inline mix mix_of(const axis &x, int o) {
    if (x.in == x.out) return {o, o, 0};
    double at = fmax(0.0, x.scale * o + x.shift);
    int a = (int)at;
    if (a > x.in - 1) a = x.in - 1; /* rounding at the far corner */
    return {a, a + (a < x.in - 1), (float)(at - a)};
}

/* How much of input i is in an output. */
__device__ inline float share(const mix &m, int i) {
    return (m.a == i ? 1 - m.w : 0) + (m.b == i ? m.w : 0);
}

enum { KEPT = 18 }; /* shares that a thread keeps, of an axis: enough to enlarge eightfold */

/* The outputs from, …, to-1 that read an input: a guess from the inverse map, then exactly. The shares of those before
 * `kept` are in `room`, where there is one. */
struct readers {
    int input, from, kept, to;
    float (*room)[THREADS]; /* (KEPT, THREADS): a column a thread */
    __device__ readers(const axis &x, int i, float (*to_keep)[THREADS]) : input(i), room(to_keep) {
        double guess = x.scale > 0 ? floor((i - 1 - x.shift) / x.scale) - 1 : 0;
        int o = guess > 0 ? (int)guess : 0;
        while (o < x.out && mix_of(x, o).b < i) o++;
        from = kept = o;
        for (; o < x.out; o++) {
            mix m = mix_of(x, o);
            if (m.a > i) break;
            if (!room || o - from >= KEPT) continue;
            room[o - from][threadIdx.x] = share(m, i);
            kept = o + 1;
        }
        to = o;
    }
    __device__ float of(const axis &x, int o) const {
        return o < kept ? room[o - from][threadIdx.x] : share(mix_of(x, o), input);
    }
};

/* N channels of a pixel, loaded at once where N is a power of two. */
template <class T, int N> struct alignas(N &(N - 1) ? sizeof(T) : N * sizeof(T) < 16 ? N * sizeof(T) : 16) few {
    T v[N];
};

template <int N, class T> __device__ inline few<T, N> few_at(const T *p) {
    return *(const few<T, N> *)p;
}

struct resize {
    axis t, h, w;
    array x, y; /* or the gradients, backwards */
    int64_t planes;
    int channels, lanes, strips;
};

/* What a thread writes: from channel c on, of pixels from `column` on. lanes threads lie along a row, the rest of the
 * block on the rows below. */
struct place {
    int row, column, c;
    template <int N, int P> static __device__ place here(const resize &f) {
        int parts = f.channels / N, strip = blockIdx.x % f.strips, tile = THREADS / f.lanes;
        int unit = strip * f.lanes + threadIdx.x % f.lanes;
        return {(int)(blockIdx.x / f.strips * tile + threadIdx.x / f.lanes), unit / parts * P, unit % parts * N};
    }
};

/* N channels of P pixels a thread. */
template <class T, int N, int P> __global__ void __launch_bounds__(THREADS) resize_kernel(resize f) {
    place o = place::here<N, P>(f);
    if (o.column >= f.w.out || o.row >= f.h.out) return;
    mix down = mix_of(f.h, o.row), across[P];
#pragma unroll
    for (int p = 0; p < P; p++) across[p] = mix_of(f.w, o.column + p);
    for (int64_t plane = blockIdx.y; plane < f.planes; plane += gridDim.y) {
        int64_t sample = quotient(plane, f.t.out);
        mix time = mix_of(f.t, (int)(plane - sample * f.t.out));
        float sum[P * N] = {};
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float weight = (r / 2 ? time.w : 1 - time.w) * (r % 2 ? down.w : 1 - down.w);
            if (weight == 0) continue;
            int64_t line = (sample * f.t.in + (r / 2 ? time.b : time.a)) * f.h.in + (r % 2 ? down.b : down.a);
            const T *x = (const T *)f.x.p + line * f.w.in * f.channels + o.c;
            few<T, N> a[P], b[P];
#pragma unroll
            for (int p = 0; p < P; p++) {
                a[p] = few_at<N>(x + across[p].a * f.channels);
                b[p] = few_at<N>(x + across[p].b * f.channels);
            }
#pragma unroll
            for (int j = 0; j < P * N; j++) {
                float w = across[j / N].w;
                sum[j] += weight * (1 - w) * ma_up(a[j / N].v[j % N]);
                if (w > 0) sum[j] += weight * w * ma_up(b[j / N].v[j % N]);
            }
        }
        constexpr int M = P * N % PACK ? N : PACK; /* stored at a time */
        int64_t at = ((plane * f.h.out + o.row) * f.w.out + o.column) * f.channels + o.c;
#pragma unroll
        for (int j = 0; j < P * N; j += M) {
            pack<M> y;
#pragma unroll
            for (int k = 0; k < M; k++) y.v[k] = sum[j + k];
            store<M>(f.y, at + j, y);
        }
    }
}

/* N channels of a pixel a thread: dx += …, from the outputs that read it. */
template <class T, int N> __global__ void __launch_bounds__(THREADS) resize_bwd_kernel(resize f) {
    __shared__ float room[2][KEPT][THREADS];
    place i = place::here<N, 1>(f);
    if (i.column >= f.w.in || i.row >= f.h.in) return;
    readers down(f.h, i.row, room[0]), across(f.w, i.column, room[1]);
    for (int64_t plane = blockIdx.y; plane < f.planes; plane += gridDim.y) {
        int64_t sample = quotient(plane, f.t.in);
        readers time(f.t, (int)(plane - sample * f.t.in), nullptr);
        pack<N> sum = {};
        for (int a = time.from; a < time.to; a++) {
            float of_plane = time.of(f.t, a);
            for (int b = down.from; b < down.to; b++) {
                float weight = of_plane * down.of(f.h, b);
                int64_t line = (sample * f.t.out + a) * f.h.out + b;
                const T *dy = (const T *)f.y.p + line * f.w.out * f.channels + i.c;
#pragma unroll 4
                for (int o = across.from; o < across.kept; o++) {
                    few<T, N> d = few_at<N>(dy + o * f.channels);
                    float by = weight * room[1][o - across.from][threadIdx.x];
#pragma unroll
                    for (int k = 0; k < N; k++) sum.v[k] += by * ma_up(d.v[k]);
                }
#pragma unroll 1
                for (int o = across.kept; o < across.to; o++) {
                    float by = weight * across.of(f.w, o);
                    for (int k = 0; k < N; k++) sum.v[k] += by * ma_up(dy[o * f.channels + k]);
                }
            }
        }
        add_to<N>(f.x, ((plane * f.h.in + i.row) * f.w.in + i.column) * f.channels + i.c, sum);
    }
}

/* x and y, or their gradients; n: of the tensor that is written. false: too large. */
bool resize_of(const ma_call *call, array x, array y, const int64_t n[5], resize *f) {
    const int64_t *in = call->in[0]->n, *out = call->out->n;
    bool align = call->i[0] != 0;
    for (const int64_t *size : {in, out})
        if (size[1] > INT_MAX || size[2] > INT_MAX || size[3] > INT_MAX / 2 / (size[4] > 0 ? size[4] : 1)) return false;
    *f = {axis_of(in[1], out[1], align),
          axis_of(in[2], out[2], align),
          axis_of(in[3], out[3], align),
          x,
          y,
          n[0] * n[1],
          (int)in[4],
          1,
          1};
    return true;
}

/* The grid for `rows` rows of `units` threads, some `blocks` in all where there is enough to do; each thread sees a few
 * planes. */
dim3 spread(resize *f, int64_t units, int64_t rows, int64_t blocks) {
    f->lanes = lanes_for(units, THREADS);
    f->strips = (int)ceil_div(units, f->lanes);
    int64_t tiles = f->strips * ceil_div(rows, THREADS / f->lanes), step = tiles * f->planes / blocks;
    int64_t deep = ceil_div(f->planes, step < 1 ? 1 : step > 16 ? 16 : step);
    return dim3((unsigned)(tiles > INT_MAX ? 0 : tiles), (unsigned)(deep > 65535 ? 65535 : deep)); /* 0 is refused */
}

template <class T, int N, int P> int run_resize(ma_cuda *d, resize f) {
    dim3 grid = spread(&f, (int64_t)f.w.out / P * (f.channels / N), f.h.out, 2048);
    resize_kernel<T, N, P><<<grid, THREADS, 0, d->stream>>>(f);
    return launched(d, "resize");
}

template <class T, int N> int run_resize_bwd(ma_cuda *d, resize f) {
    dim3 grid = spread(&f, (int64_t)f.w.in * (f.channels / N), f.h.in, 1024);
    resize_bwd_kernel<T, N><<<grid, THREADS, 0, d->stream>>>(f);
    return launched(d, "resize's gradient");
}

} // namespace

int ma_cuda_resize_fwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    const ma_tensor *y = call->out;
    resize f;
    if (!resize_of(call, data_of(call->in[0]), data_of(y), y->n, &f)) return -1;
    if (!ma_count(y)) return 0;
    int n = grain(y->n[3] * y->n[4], {f.x, f.y});
    if (!n) return -1;
    return ma_dispatch(f.x.type, [&](auto zero) {
        using T = decltype(zero);
        if (n == PACK && f.channels == 1) return run_resize<T, 1, 8>(d, f);
        if (n == PACK && f.channels == 2) return run_resize<T, 2, 4>(d, f);
        if (n == PACK && f.channels == 3) return run_resize<T, 3, 8>(d, f);
        if (n == PACK && f.channels == 4) return run_resize<T, 4, 2>(d, f);
        if (n == PACK && f.channels % PACK == 0) return run_resize<T, PACK, 1>(d, f);
        return run_resize<T, 1, 1>(d, f);
    });
}

int ma_cuda_resize_bwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    const ma_tensor *x = call->in[0];
    resize f;
    if (!resize_of(call, grad_of(call, 0), data_of(call->out->grad), x->n, &f)) return -1;
    if (!ma_count(x)) return 0;
    int n = grain(PACK, {f.x, f.y}); /* of the addresses alone: a pixel is not wider than a pack */
    if (!n) return -1;
    return ma_dispatch(f.y.type, [&](auto zero) {
        using T = decltype(zero);
        if (n == PACK && f.channels == 2) return run_resize_bwd<T, 2>(d, f);
        if (n == PACK && f.channels == 3) return run_resize_bwd<T, 3>(d, f);
        if (n == PACK && f.channels == 4) return run_resize_bwd<T, 4>(d, f);
        if (n == PACK && f.channels % PACK == 0) return run_resize_bwd<T, PACK>(d, f);
        return run_resize_bwd<T, 1>(d, f);
    });
}

/* ---- pool ---- */

namespace {

/* Over the smaller tensor's lines. Forward: small = mean of four of large; back: each of the four of large += small/4.
 */
struct pool {
    array large, small;
    int64_t rows, small_rows, width, small_width; /* lines a plane, pixels a line */
    int channels;
    bool back;
    template <int N> __device__ void at(int64_t line, int64_t column) const {
        int64_t plane = quotient(line, small_rows), pixel = quotient(column, channels), row = width * channels;
        int64_t first =
            (plane * rows + 2 * (line - plane * small_rows)) * row + 2 * pixel * channels + column - pixel * channels;
        const int64_t four[4] = {first, first + channels, first + row, first + row + channels};
        int64_t k = line * small_width * channels + column;
        if (back) {
            pack<N> d = load<N>(small, k);
            for (int j = 0; j < N; j++) d.v[j] *= 0.25f;
#pragma unroll
            for (int i = 0; i < 4; i++) add_to<N>(large, four[i], d);
            return;
        }
        raw<N> r[4];
#pragma unroll
        for (int i = 0; i < 4; i++) r[i] = fetch<N>(large, four[i]);
        pack<N> sum = widen<N>(r[0], large.type);
#pragma unroll
        for (int i = 1; i < 4; i++) {
            pack<N> v = widen<N>(r[i], large.type);
            for (int j = 0; j < N; j++) sum.v[j] += v.v[j];
        }
        for (int j = 0; j < N; j++) sum.v[j] *= 0.25f;
        store<N>(small, k, sum);
    }
};

int run_pool(const ma_call *call, array large, array small, bool back) {
    const int64_t *in = call->in[0]->n, *out = call->out->n;
    pool f = {large, small, in[2], out[2], in[3], out[3], (int)in[4], back};
    return run_plane((ma_cuda *)call->stream, "pool", f, out[0] * out[1] * out[2], out[3] * out[4],
                     grain(in[4], {large, small}));
}

} // namespace

int ma_cuda_pool_fwd(const ma_call *call) {
    return run_pool(call, data_of(call->in[0]), data_of(call->out), false);
}

int ma_cuda_pool_bwd(const ma_call *call) {
    return run_pool(call, grad_of(call, 0), data_of(call->out->grad), true);
}
