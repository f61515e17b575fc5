/* resize: trilinear resize and 2×2 pooling. A row of the plane is a line of pixels. The backward passes gather, so that
 * no two threads add to one element; where an output looks is computed in double, as on the CPU. */
#include "pack.cuh"

using namespace packs;

namespace {

/* One axis of a resize: output o reads input at `scale·o + shift`, held inside. */
struct axis {
    int64_t in, out;
    double scale, shift;
};

/* Aligned corners: the outermost samples' centres coincide. Otherwise their outer edges do (PyTorch's default). */
axis axis_of(int64_t in, int64_t out, bool align) {
    if (align) return {in, out, out > 1 ? (double)(in - 1) / (double)(out - 1) : 0, 0};
    double scale = (double)in / (double)out;
    return {in, out, scale, 0.5 * scale - 0.5};
}

/* The two inputs that an output mixes: (1-w)·x[a] + w·x[b]. */
struct mix {
    int64_t a, b;
    float w;
};

__device__ inline mix mix_of(const axis &x, int64_t o) {
    double at = fmax(0.0, x.scale * (double)o + x.shift);
    int64_t a = (int64_t)at;
    if (a > x.in - 1) a = x.in - 1; /* rounding at the far corner */
    return {a, a + (a < x.in - 1), (float)(at - (double)a)};
}

/* How much of input i is in output o. */
__device__ inline float share(const axis &x, int64_t o, int64_t i) {
    mix m = mix_of(x, o);
    return (m.a == i ? 1 - m.w : 0) + (m.b == i ? m.w : 0);
}

/* The outputs from, …, to-1 that read an input: a guess from the inverse map, then exactly. */
struct readers {
    int64_t from, to;
    __device__ readers(const axis &x, int64_t i) {
        double guess = x.scale > 0 ? floor(((double)(i - 1) - x.shift) / x.scale) - 1 : 0;
        int64_t o = guess > 0 ? (int64_t)guess : 0;
        while (o < x.out && mix_of(x, o).b < i) o++;
        from = o;
        while (o < x.out && mix_of(x, o).a <= i) o++;
        to = o;
    }
};

struct resize {
    axis t, h, w;
    array x, y; /* or the gradients, backwards */
    int channels;
    template <int N> __device__ void at(int64_t line, int64_t column) const {
        int64_t plane = quotient(line, h.out), sample = quotient(plane, t.out), o = quotient(column, channels);
        int64_t c = column - o * channels;
        mix m[3] = {mix_of(t, plane - sample * t.out), mix_of(h, line - plane * h.out), mix_of(w, o)};
        pack<N> sum = {};
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float weight = 1;
            int64_t place[3];
#pragma unroll
            for (int j = 0; j < 3; j++) {
                bool second = k >> (2 - j) & 1;
                place[j] = second ? m[j].b : m[j].a;
                weight *= second ? m[j].w : 1 - m[j].w;
            }
            if (weight == 0) continue;
            int64_t pixel = ((sample * t.in + place[0]) * h.in + place[1]) * w.in + place[2];
            pack<N> v = load<N>(x, pixel * channels + c);
#pragma unroll
            for (int j = 0; j < N; j++) sum.v[j] += weight * v.v[j];
        }
        store<N>(y, line * w.out * channels + column, sum);
    }
};

struct resize_bwd {
    axis t, h, w;
    array dx, dy;
    int channels;
    template <int N> __device__ void at(int64_t line, int64_t column) const {
        int64_t plane = quotient(line, h.in), sample = quotient(plane, t.in), i = quotient(column, channels);
        int64_t c = column - i * channels, in_time = plane - sample * t.in, in_row = line - plane * h.in;
        readers time(t, in_time), rows(h, in_row), places(w, i);
        pack<N> sum = {};
        for (int64_t a = time.from; a < time.to; a++)
            for (int64_t b = rows.from; b < rows.to; b++) {
                float weight = share(t, a, in_time) * share(h, b, in_row);
                int64_t start = ((sample * t.out + a) * h.out + b) * w.out;
                for (int64_t o = places.from; o < places.to; o++) {
                    float by = weight * share(w, o, i);
                    pack<N> v = load<N>(dy, (start + o) * channels + c);
#pragma unroll
                    for (int j = 0; j < N; j++) sum.v[j] += by * v.v[j];
                }
            }
        add_to<N>(dx, line * w.in * channels + column, sum);
    }
};

/* x and y, or their gradients, in a functor of either kind. */
template <class F> F resizing(const ma_call *call, array x, array y) {
    const int64_t *in = call->in[0]->n, *out = call->out->n;
    bool align = call->i[0] != 0;
    return {
        axis_of(in[1], out[1], align), axis_of(in[2], out[2], align), axis_of(in[3], out[3], align), x, y, (int)in[4]};
}

} // namespace

int ma_cuda_resize_fwd(const ma_call *call) {
    const ma_tensor *y = call->out;
    resize f = resizing<resize>(call, data_of(call->in[0]), data_of(y));
    return run_plane((ma_cuda *)call->stream, "resize", f, y->n[0] * y->n[1] * y->n[2], y->n[3] * y->n[4],
                     grain(y->n[4], {f.x, f.y}));
}

int ma_cuda_resize_bwd(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    resize_bwd f = resizing<resize_bwd>(call, grad_of(x), data_of(call->out->grad));
    return run_plane((ma_cuda *)call->stream, "resize's gradient", f, x->n[0] * x->n[1] * x->n[2], x->n[3] * x->n[4],
                     grain(x->n[4], {f.dx, f.dy}));
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
    return run_pool(call, grad_of(call->in[0]), data_of(call->out->grad), true);
}
