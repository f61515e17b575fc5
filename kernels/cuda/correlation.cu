/* corr_lookup, upsample_convex, gru_reset, gru_update: what RAFT does between its convolutions (Teed & Deng 2020).
 * Forward only.
 *
 * All neighbours of a point share their fractions, so a look-up reads one (2r+2)² patch and interpolates it: a warp for
 * each point and level, the patch in shared memory. A thread of the upsampling makes one of a point's 8×8 cells. Traps:
 * the neighbourhood is laid out dx slowest, as in the original; a point may lie anywhere, or be NaN (then it reads
 * zeros): it is compared as a float before it becomes an index. */
#include "pack.cuh"

using namespace packs;

namespace {

enum { RADIUS = 8, SIDE = 2 * RADIUS + 2, LEVELS = 7, WARPS = THREADS / 32 }; /* the largest radius, and its patch */

struct pyramid {
    array level[LEVELS];
    int h[LEVELS], w[LEVELS];
    int levels, radius;
    int width; /* channels of out */
};

/* One point of one level, by a warp: (2r+1)² bilinear samples around (x, y) to out[at…]. */
__device__ void look_up(array image, int64_t start, int h, int w, float x, float y, int r, float *patch, array out,
                        int64_t at) {
    int n = 2 * r + 1, side = n + 1, lane = threadIdx.x % 32;
    float reach = (float)r + 1, left = floorf(x), top = floorf(y), fx = x - left, fy = y - top;
    if (!(x > -reach && x < (float)w + reach && y > -reach && y < (float)h + reach)) {
        for (int k = lane; k < n * n; k += 32) store_one(out, at + k, 0);
        return;
    }
    for (int k = lane; k < side * side; k += 32) {
        int i = (int)top - r + k / side, j = (int)left - r + k % side;
        bool inside = i >= 0 && i < h && j >= 0 && j < w;
        patch[k] = inside ? load_one(image, start + (int64_t)i * w + j) : 0;
    }
    __syncwarp();
    for (int k = lane; k < n * n; k += 32) {
        const float *p = patch + k % n * side + k / n; /* dx = k / n, dy = k mod n */
        float upper = p[0] * (1 - fx) + p[1] * fx, lower = p[side] * (1 - fx) + p[side + 1] * fx;
        store_one(out, at + k, upper * (1 - fy) + lower * fy);
    }
}

__global__ void __launch_bounds__(THREADS)
    corr_lookup_kernel(pyramid p, const float *coords, array out, int64_t points) {
    __shared__ float patches[WARPS][SIDE * SIDE];
    int warp = threadIdx.x / 32, each = (2 * p.radius + 1) * (2 * p.radius + 1);
    for (int64_t i = (int64_t)blockIdx.x * WARPS + warp; i < points * p.levels; i += (int64_t)gridDim.x * WARPS) {
        int64_t point = quotient(i, p.levels);
        int k = (int)(i - point * p.levels), h = p.h[k], w = p.w[k];
        float scale = 1.0f / (float)(1 << k), x = coords[2 * point] * scale, y = coords[2 * point + 1] * scale;
        look_up(p.level[k], point * h * w, h, w, x, y, p.radius, patches[warp], out, point * p.width + k * each);
        if (k == p.levels - 1)
            for (int j = p.levels * each + threadIdx.x % 32; j < p.width; j += 32)
                store_one(out, point * p.width + j, 0);
        __syncwarp(); /* before the next patch */
    }
}

unsigned blocks_for(int64_t threads) {
    int64_t blocks = ceil_div(threads, THREADS);
    return blocks > INT_MAX ? INT_MAX : (unsigned)blocks;
}

} // namespace

int ma_cuda_corr_lookup_fwd(const ma_call *call) {
    const ma_tensor *coords = call->in[0]; // (B,1,H,W,2)
    ma_cuda *d = (ma_cuda *)call->stream;
    int64_t points = ma_count(coords) / 2;
    if (call->i[0] > RADIUS || call->i[1] < 1 || call->i[1] > LEVELS || coords->type != MA_F32) return -1;
    pyramid p = {};
    p.radius = (int)call->i[0];
    p.levels = (int)call->i[1];
    p.width = (int)call->out->n[4];
    for (int k = 0; k < p.levels; k++) {
        const ma_tensor *level = call->in[1 + k]; // (B·H·W, 1, H>>k, W>>k, 1)
        p.level[k] = data_of(level);
        if (level->n[2] > INT_MAX / 2 || level->n[3] > INT_MAX / 2 || !grain(1, {p.level[k]})) return -1;
        p.h[k] = (int)level->n[2];
        p.w[k] = (int)level->n[3];
    }
    array out = data_of(call->out);
    if (!grain(1, {out})) return -1;
    if (!points) return 0;
    corr_lookup_kernel<<<blocks_for(points * p.levels * 32), THREADS, 0, d->stream>>>(p, (const float *)coords->data,
                                                                                      out, points);
    return launched(d, "corr_lookup");
}

/* ---- upsample_convex ---- */

namespace {

enum { UP = 8, CELLS = UP * UP, TAPS = 9 };

/* Softmax over a cell's taps, in place. */
__device__ inline void softmax(float w[TAPS]) {
    float top = w[0], sum = 0;
#pragma unroll
    for (int k = 1; k < TAPS; k++) top = w[k] > top ? w[k] : top;
#pragma unroll
    for (int k = 0; k < TAPS; k++) {
        w[k] = expf(w[k] - top);
        sum += w[k];
    }
#pragma unroll
    for (int k = 0; k < TAPS; k++) w[k] /= sum;
}

__global__ void __launch_bounds__(THREADS)
    upsample_convex_kernel(array flow, array mask, array out, int64_t points, int h, int w) {
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x; e < points * CELLS; e += step) {
        int64_t point = e / CELLS, line = quotient(point, w), image = quotient(line, h);
        int cell = (int)(e % CELLS), x = (int)(point - line * w), y = (int)(line - image * h);
        float weight[TAPS], u = 0, v = 0;
#pragma unroll
        for (int k = 0; k < TAPS; k++) weight[k] = load_one(mask, (point * TAPS + k) * CELLS + cell);
        softmax(weight);
#pragma unroll
        for (int k = 0; k < TAPS; k++) {
            int ny = y + k / 3 - 1, nx = x + k % 3 - 1;
            if (ny < 0 || ny >= h || nx < 0 || nx >= w) continue;
            int64_t at = 2 * ((image * h + ny) * w + nx);
            u += weight[k] * (UP * load_one(flow, at));
            v += weight[k] * (UP * load_one(flow, at + 1));
        }
        int64_t to = 2 * (((line * UP + cell / UP) * w + x) * UP + cell % UP);
        store_one(out, to, u);
        store_one(out, to + 1, v);
    }
}

} // namespace

int ma_cuda_upsample_convex_fwd(const ma_call *call) {
    const ma_tensor *t = call->in[0]; // (B,1,H,W,2)
    ma_cuda *d = (ma_cuda *)call->stream;
    array flow = data_of(t), mask = data_of(call->in[1]),
          out = data_of(call->out); // mask (B,1,H,W,9·64), out (B,1,8H,8W,2)
    int64_t points = ma_count(t) / 2;
    if (t->n[2] > INT_MAX / 2 || t->n[3] > INT_MAX / 2 || !grain(1, {flow, mask, out})) return -1;
    if (!points) return 0;
    upsample_convex_kernel<<<blocks_for(points * CELLS), THREADS, 0, d->stream>>>(flow, mask, out, points, (int)t->n[2],
                                                                                  (int)t->n[3]);
    return launched(d, "upsample_convex");
}

/* ---- the GRU: positions are the plane's rows, channels its columns ---- */

namespace {

/* The terms of a gate, loaded. */
template <int N> struct terms { raw<N> a, b, c; };

/* What the convolutions left: of_h (…, 2C), of_x and of_rest (…, 3C). */
struct gates {
    array of_h, of_x, of_rest;
    int64_t width;
    /* Those of gate k: `of` and `at` tell the first. */
    template <int N> __device__ terms<N> load_terms(array of, int64_t at, int k, int64_t row, int64_t column) const {
        int64_t there = (3 * row + k) * width + column;
        return {fetch<N>(of, at), fetch<N>(of_x, there), fetch<N>(of_rest, there)};
    }
    template <int N> __device__ pack<N> gate(ma_act act, const terms<N> &t, ma_type first) const {
        pack<N> a = widen<N>(t.a, first), b = widen<N>(t.b, of_x.type), c = widen<N>(t.c, of_rest.type);
#pragma unroll
        for (int j = 0; j < N; j++) a.v[j] += b.v[j] + c.v[j];
        activate<N>(act, a);
        return a;
    }
};

struct gru_reset {
    gates g;
    array h, out;
    template <int N> __device__ void at(int64_t row, int64_t column) const {
        int64_t k = row * g.width + column;
        terms<N> tr = g.load_terms<N>(g.of_h, (2 * row + 1) * g.width + column, 1, row, column);
        raw<N> rh = fetch<N>(h, k);
        pack<N> r = g.gate<N>(MA_SIGMOID, tr, g.of_h.type), x = widen<N>(rh, h.type);
#pragma unroll
        for (int j = 0; j < N; j++) r.v[j] *= x.v[j];
        store<N>(out, k, r);
    }
};

struct gru_update {
    gates g;
    array h, of_rh, out;
    template <int N> __device__ void at(int64_t row, int64_t column) const {
        int64_t k = row * g.width + column;
        terms<N> tz = g.load_terms<N>(g.of_h, 2 * row * g.width + column, 0, row, column);
        terms<N> tq = g.load_terms<N>(of_rh, k, 2, row, column);
        raw<N> rh = fetch<N>(h, k);
        pack<N> z = g.gate<N>(MA_SIGMOID, tz, g.of_h.type), q = g.gate<N>(MA_TANH, tq, of_rh.type);
        pack<N> x = widen<N>(rh, h.type);
#pragma unroll
        for (int j = 0; j < N; j++) x.v[j] = (1 - z.v[j]) * x.v[j] + z.v[j] * q.v[j];
        store<N>(out, k, x);
    }
};

gates gates_of(const ma_call *call) {
    const ma_tensor *out = call->out;
    return {data_of(call->in[1]), data_of(call->in[2]), data_of(call->in[3]), out->n[out->nd - 1]};
}

} // namespace

int ma_cuda_gru_reset_fwd(const ma_call *call) {
    gru_reset f = {gates_of(call), data_of(call->in[0]), data_of(call->out)};
    int64_t width = f.g.width;
    return run_plane((ma_cuda *)call->stream, "gru_reset", f, ma_count(call->out) / width, width,
                     grain(width, {f.g.of_h, f.g.of_x, f.g.of_rest, f.h, f.out}));
}

int ma_cuda_gru_update_fwd(const ma_call *call) {
    gru_update f = {gates_of(call), data_of(call->in[0]), data_of(call->in[4]), data_of(call->out)};
    int64_t width = f.g.width;
    return run_plane((ma_cuda *)call->stream, "gru_update", f, ma_count(call->out) / width, width,
                     grain(width, {f.g.of_h, f.g.of_x, f.g.of_rest, f.h, f.of_rh, f.out}));
}
