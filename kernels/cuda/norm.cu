/* norm: layer_norm, modulate, group_norm, moments, causal_norm. Forward beside backward. With h = (x - mean)/deviation
 * over n elements and f the gradient to h:  dx = (f - mean(f) - h·mean(f·h)) / deviation.
 *
 * Layer norm is modulate without modulation. A row lies in the registers of 1 to 512 neighbouring threads, read once;
 * parameters and modulation rows gather their gradients by the column sums of pack.cuh, or by the way, where a block
 * goes down a piece of the rows and keeps its columns' sums. Counting instructions is what keeps up with memory here:
 * common widths, of one type throughout, have kernels of their own, where a warp or less takes a row (or several at a
 * time, if short) and no type is looked at; all else goes to one with everything at run time. A group's moments come of
 * those of its channels over parts of the positions, which are summed as differences from the part's first element, so
 * that a large mean cancels no digits, and put together in double. Limits: rows of 8,192 elements. */
#include "pack.cuh"

#include <type_traits>

using namespace packs;

/* ---- layer_norm, modulate ---- */

namespace {

enum { WIDEST = 512, HELD = 16, ANY = -1 }; /* threads a row; elements a thread; a type known at run time */

struct layer {
    array x, gain, bias, mod;            /* gain, bias (C); mod (B,R,C); or none */
    int64_t rows, len, text;             /* rows of x in all; tokens of a sample */
    int64_t vectors, shift[2], scale[2]; /* R, and the rows of mod for video, text */
    int width;
    float share, eps; /* 1/width */
    __device__ int64_t shift_at(int64_t sample, bool is_text) const {
        return (sample * vectors + (is_text ? shift[1] : shift[0])) * width;
    }
    __device__ int64_t scale_at(int64_t sample, bool is_text) const {
        return (sample * vectors + (is_text ? scale[1] : scale[0])) * width;
    }
};

int64_t last(const ma_tensor *x) {
    return x->n[x->nd - 1];
}

layer layer_of(const ma_call *call) {
    const ma_tensor *x = call->in[0], *mod = call->op == MA_OP_MODULATE ? call->in[3] : nullptr;
    const int64_t *i = call->i;
    layer l = {};
    l.x = data_of(x);
    l.gain = data_of(call->in[1]);
    l.bias = data_of(call->in[2]);
    l.mod = data_of(mod);
    l.rows = last(x) ? ma_count(x) / last(x) : 0;
    l.len = l.rows;
    l.width = last(x) > INT_MAX ? 0 : (int)last(x);
    l.share = 1.0f / l.width;
    l.eps = (float)call->f[0];
    if (!mod) return l;
    l.len = x->n[1];
    l.text = i[0];
    l.vectors = mod->n[1];
    l.shift[0] = i[1], l.scale[0] = i[2], l.shift[1] = i[3], l.scale[1] = i[4];
    return l;
}

tokens layer_tokens(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    if (call->op == MA_OP_MODULATE) return tokens_of(x->n[0], x->n[1], call->i[0], x->n[2]);
    return tokens_of(1, ma_count(x) / last(x), 0, last(x));
}

/* The array with its type known when compiling, unless TYPE is ANY. */
template <int TYPE> __device__ inline array typed(array a) {
    return {a.p, TYPE == ANY ? a.type : (ma_type)TYPE, a.fresh};
}

template <int TYPE> __device__ inline layer typed(layer l) {
    l.x = typed<TYPE>(l.x);
    l.gain = typed<TYPE>(l.gain);
    l.bias = typed<TYPE>(l.bias);
    l.mod = typed<TYPE>(l.mod);
    return l;
}

/* What a thread has of ROWS rows, `apart` rows apart: PER packs of each, `lanes` packs apart. What is not there is 0.
 */
template <int N, int PER, int ROWS> struct rows_part {
    pack<N> v[ROWS][PER];
    __device__ void read(array a, const layer &l, int64_t row, int apart, int lane, int lanes) {
        raw<N> r[ROWS][PER];
#pragma unroll
        for (int j = 0; j < ROWS * PER; j++) {
            int64_t at = row + j / PER * apart;
            int column = (lane + j % PER * lanes) * N;
            if (at < l.rows && column < l.width) r[j / PER][j % PER] = fetch<N>(a, at * l.width + column);
        }
#pragma unroll
        for (int j = 0; j < ROWS * PER; j++) {
            bool there = row + j / PER * apart < l.rows && (lane + j % PER * lanes) * N < l.width;
            v[j / PER][j % PER] = there ? widen<N>(r[j / PER][j % PER], a.type) : pack<N>{};
        }
    }
};

/* sum_lanes of several numbers side by side. */
template <int LANES, int ROWS> __device__ inline void sum_rows(float (&sum)[ROWS], int lanes, float *room) {
    if constexpr (LANES && LANES <= 32) {
#pragma unroll
        for (int d = LANES / 2; d; d /= 2)
#pragma unroll
            for (int r = 0; r < ROWS; r++) sum[r] += __shfl_xor_sync(~0u, sum[r], d);
    } else {
        for (int r = 0; r < ROWS; r++) sum[r] = sum_lanes(sum[r], lanes, room);
    }
}

/* gain·(1 + scale) at a column: the factor from y's gradient to h's. scale: where the row of mod starts. */
template <int N> __device__ inline pack<N> factor_at(const layer &l, int64_t scale, int column) {
    pack<N> f;
#pragma unroll
    for (int k = 0; k < N; k++) f.v[k] = 1;
    if (l.gain.p) f = load<N>(l.gain, column);
    if (!l.mod.p) return f;
    pack<N> s = load<N>(l.mod, scale + column);
#pragma unroll
    for (int k = 0; k < N; k++) f.v[k] *= 1 + s.v[k];
    return f;
}

template <int N> __device__ inline void scale_shift(const layer &l, int64_t scale, int64_t shift, pack<N> &h) {
    raw<N> rs = fetch<N>(l.mod, scale), rt = fetch<N>(l.mod, shift);
    pack<N> s = widen<N>(rs, l.mod.type), t = widen<N>(rt, l.mod.type);
#pragma unroll
    for (int k = 0; k < N; k++) h.v[k] = h.v[k] * (1 + s.v[k]) + t.v[k];
}

/* Where a row's two rows of mod start. */
__device__ inline void place_of(const layer &l, int64_t row, int64_t *scale, int64_t *shift) {
    int64_t sample = quotient(row, l.len);
    bool text = row - sample * l.len < l.text;
    *scale = l.scale_at(sample, text);
    *shift = l.shift_at(sample, text);
}

/* y = h·gain + bias, then ·(1 + scale) + shift. LANES 0: at_run many. */
template <int N, int PER, int ROWS, int LANES, int TYPE>
__global__ void __launch_bounds__(LANES ? THREADS : WIDEST, ROWS > 1 ? 4 : 2)
    layer_kernel(layer of, int at_run, array out, float *mean_out, float *inverse_out) {
    __shared__ float room[WIDEST / 32];
    const layer l = typed<TYPE>(of);
    const array y = typed<TYPE>(out);
    const int lanes = LANES ? LANES : at_run, lane = threadIdx.x % lanes, tile = blockDim.x / lanes;
    int64_t step = (int64_t)gridDim.x * tile * ROWS;
    for (int64_t first = (int64_t)blockIdx.x * tile * ROWS; first < l.rows; first += step) {
        int64_t row = first + threadIdx.x / lanes, shift = 0, scale = 0;
        float mean[ROWS] = {}, inverse[ROWS] = {};
        rows_part<N, PER, ROWS> x;
        x.read(l.x, l, row, tile, lane, lanes);
#pragma unroll
        for (int j = 0; j < ROWS * PER * N; j++) mean[j / (PER * N)] += x.v[j / (PER * N)][j / N % PER].v[j % N];
        sum_rows<LANES>(mean, lanes, room);
#pragma unroll
        for (int r = 0; r < ROWS; r++) mean[r] *= l.share;
#pragma unroll
        for (int j = 0; j < ROWS * PER; j++)
            if ((lane + j % PER * lanes) * N < l.width)
#pragma unroll
                for (int k = 0; k < N; k++) {
                    float &h = x.v[j / PER][j % PER].v[k];
                    h -= mean[j / PER];
                    inverse[j / PER] += h * h;
                }
        sum_rows<LANES>(inverse, lanes, room);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int64_t at = row + r * tile;
            inverse[r] = rsqrtf(inverse[r] * l.share + l.eps);
            if (at < l.rows && !lane && mean_out) mean_out[at] = mean[r];
            if (at < l.rows && !lane && inverse_out) inverse_out[at] = inverse[r];
        }
#pragma unroll
        for (int p = 0; p < PER; p++) {
            int column = (lane + p * lanes) * N;
            if (column >= l.width) continue;
            pack<N> gain = {}, bias = {};
            if (l.gain.p) {
                gain = load<N>(l.gain, column);
                bias = load<N>(l.bias, column);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                int64_t at = row + r * tile;
                if (at >= l.rows) continue;
                pack<N> &h = x.v[r][p];
#pragma unroll
                for (int k = 0; k < N; k++) h.v[k] *= inverse[r];
                if (l.gain.p)
#pragma unroll
                    for (int k = 0; k < N; k++) h.v[k] = h.v[k] * gain.v[k] + bias.v[k];
                if (l.mod.p) {
                    if (ROWS > 1 || p == 0) place_of(l, at, &scale, &shift);
                    scale_shift<N>(l, scale + column, shift + column, h);
                }
                store<N>(y, at * l.width + column, h);
            }
        }
    }
}

/* dx += …; a row's dy becomes f in its registers, and x becomes h. */
template <int N, int PER, int ROWS, int LANES, int TYPE>
__global__ void __launch_bounds__(LANES ? THREADS : WIDEST)
    layer_bwd_kernel(layer of, int at_run, array dout, array din, const float *mean, const float *inverse) {
    __shared__ float room[WIDEST / 32];
    const layer l = typed<TYPE>(of);
    const array dy = typed<TYPE>(dout), dx = typed<TYPE>(din);
    const int lanes = LANES ? LANES : at_run, lane = threadIdx.x % lanes, tile = blockDim.x / lanes;
    int64_t step = (int64_t)gridDim.x * tile * ROWS;
    for (int64_t first = (int64_t)blockIdx.x * tile * ROWS; first < l.rows; first += step) {
        int64_t row = first + threadIdx.x / lanes;
        float i[ROWS] = {}, sum[ROWS] = {}, along[ROWS] = {};
        rows_part<N, PER, ROWS> h, f;
        h.read(l.x, l, row, tile, lane, lanes);
        f.read(dy, l, row, tile, lane, lanes);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int64_t at = row + r * tile;
            if (at >= l.rows) continue;
            float m = mean[at];
            i[r] = inverse[at];
            int64_t sample = l.mod.p ? quotient(at, l.len) : 0;
            int64_t scale = l.scale_at(sample, at - sample * l.len < l.text);
#pragma unroll
            for (int p = 0; p < PER; p++) {
                int column = (lane + p * lanes) * N;
                if (column >= l.width) continue;
                pack<N> by = factor_at<N>(l, scale, column);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    f.v[r][p].v[k] *= by.v[k];
                    h.v[r][p].v[k] = (h.v[r][p].v[k] - m) * i[r];
                    sum[r] += f.v[r][p].v[k];
                    along[r] += f.v[r][p].v[k] * h.v[r][p].v[k];
                }
            }
        }
        sum_rows<LANES>(sum, lanes, room);
        sum_rows<LANES>(along, lanes, room);
#pragma unroll
        for (int j = 0; j < ROWS * PER; j++) {
            int64_t at = row + j / PER * tile;
            int column = (lane + j % PER * lanes) * N;
            if (at >= l.rows || column >= l.width) continue;
            pack<N> &d = f.v[j / PER][j % PER];
            float mean_f = sum[j / PER] * l.share, mean_fh = along[j / PER] * l.share;
#pragma unroll
            for (int k = 0; k < N; k++) d.v[k] = i[j / PER] * (d.v[k] - mean_f - h.v[j / PER][j % PER].v[k] * mean_fh);
            add_to<N>(dx, at * l.width + column, d);
        }
    }
}

/* Two sums side by side over LANES neighbouring threads; each gets them, with the same bits. room: of a warp, for this
 * step; the step before has another. */
template <int LANES, int ROWS> __device__ inline void sum_pairs(float2 (&sum)[ROWS], float2 (*room)[ROWS]) {
    enum { WARPS = LANES / 32 };
#pragma unroll
    for (int d = (LANES < 32 ? LANES : 32) / 2; d; d /= 2)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            sum[r].x += __shfl_xor_sync(~0u, sum[r].x, d);
            sum[r].y += __shfl_xor_sync(~0u, sum[r].y, d);
        }
    if constexpr (WARPS > 1) {
        const int warp = threadIdx.x / 32;
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (threadIdx.x % 32 == 0) room[warp][r] = sum[r];
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            sum[r] = room[warp / WARPS * WARPS][r];
#pragma unroll
            for (int k = 1; k < WARPS; k++) {
                sum[r].x += room[warp / WARPS * WARPS + k][r].x;
                sum[r].y += room[warp / WARPS * WARPS + k][r].y;
            }
        }
    }
}

/* layer_bwd_kernel and the parts of run_columns for layer_sums in one: a block goes down a piece, ROWS rows a step for
 * LANES threads each, which keep what belongs to their columns. */
template <int PER, int ROWS, int LANES, int TYPE>
__global__ void __launch_bounds__(THREADS, 2)
    layer_bwd_sums_kernel(layer of, tokens t, array dout, array din, const float *mean, const float *inverse,
                          float *part) {
    enum { N = PACK, TILE = THREADS / LANES };
    __shared__ float2 pairs[2][THREADS / 32][ROWS];
    __shared__ float room[2 * N * THREADS];
    const array dy = typed<TYPE>(dout), dx = typed<TYPE>(din);
    const piece p = piece_of(t, blockIdx.x);
    layer l = typed<TYPE>(of);
    l.rows = p.to; /* what is behind them is not there */
    const int lane = threadIdx.x % LANES;
    const int64_t scale = l.scale_at(p.sample, p.text);
    pack<N> by[PER];
    float total[PER][2][N] = {};
#pragma unroll
    for (int q = 0; q < PER; q++) {
        const int column = (lane + q * LANES) * N;
        by[q] = column < l.width ? factor_at<N>(l, scale, column) : pack<N>{};
    }
    int turn = 0;
    for (int64_t first = p.from; first < p.to; first += ROWS * TILE, turn ^= 1) {
        const int64_t row = first + threadIdx.x / LANES;
        float m[ROWS] = {}, i[ROWS] = {};
        float2 sum[ROWS] = {};
        raw<N> was[ROWS][PER] = {};
        rows_part<N, PER, ROWS> h, f;
#pragma unroll
        for (int j = 0; j < ROWS * PER; j++) {
            const int64_t at = row + j / PER * TILE;
            const int column = (lane + j % PER * LANES) * N;
            if (!dx.fresh && at < p.to && column < l.width) was[j / PER][j % PER] = fetch<N>(dx, at * l.width + column);
        }
        h.read(l.x, l, row, TILE, lane, LANES);
        f.read(dy, l, row, TILE, lane, LANES);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (row + r * TILE < p.to) {
                m[r] = mean[row + r * TILE];
                i[r] = inverse[row + r * TILE];
            }
#pragma unroll
        for (int j = 0; j < ROWS * PER; j++) {
            const int r = j / PER, q = j % PER;
#pragma unroll
            for (int k = 0; k < N; k++) {
                float &d = f.v[r][q].v[k], &x = h.v[r][q].v[k];
                x = (x - m[r]) * i[r];
                total[q][0][k] += d * x; /* d is 0 where there is nothing, and so is the factor */
                total[q][1][k] += d;
                d *= by[q].v[k];
                sum[r].x += d;
                sum[r].y += d * x;
            }
        }
        sum_pairs<LANES>(sum, pairs[turn]);
#pragma unroll
        for (int j = 0; j < ROWS * PER; j++) {
            const int r = j / PER, q = j % PER, column = (lane + q * LANES) * N;
            const int64_t at = row + r * TILE;
            if (at >= p.to || column >= l.width) continue;
            const float mean_f = sum[r].x * l.share, mean_fh = sum[r].y * l.share;
            pack<N> d = f.v[r][q], old = widen<N>(was[r][q], dx.type);
#pragma unroll
            for (int k = 0; k < N; k++) d.v[k] = i[r] * (d.v[k] - mean_f - h.v[r][q].v[k] * mean_fh) + old.v[k];
            store<N>(dx, at * l.width + column, d);
        }
    }
#pragma unroll
    for (int q = 0; q < PER; q++) {
        __syncthreads(); /* room is still read */
#pragma unroll
        for (int j = 0; j < 2 * N; j++) room[j * THREADS + threadIdx.x] = total[q][j / N][j % N];
        __syncthreads();
        for (int u = threadIdx.x; u < 2 * N * LANES; u += THREADS) {
            const int j = u / LANES, from = u % LANES, column = (from + q * LANES) * N + j % N;
            float x = 0;
            for (int r = 0; r < TILE; r++) x += room[j * THREADS + r * LANES + from];
            if (column < l.width) part[((int64_t)blockIdx.x * 2 + j / N) * l.width + column] = x;
        }
    }
}

/* How the rows of a layer lie on threads, where that is not known before. */
struct shape {
    int lanes, threads; /* threads a row and a block */
    unsigned blocks;
};

unsigned blocks_of(const layer &l, int rows) {
    int64_t blocks = ceil_div(l.rows, rows);
    return blocks > INT_MAX ? INT_MAX : (unsigned)blocks;
}

/* false: not taken. */
bool shape_of(const layer &l, int n, shape *s) {
    s->lanes = lanes_for(ceil_div(l.width / n, HELD / n), WIDEST);
    if ((int64_t)s->lanes * HELD < l.width) return false;
    s->threads = s->lanes > THREADS ? s->lanes : THREADS;
    s->blocks = blocks_of(l, s->threads / s->lanes);
    return true;
}

/* The type that all of these have that are there, or ANY. */
int type_of(std::initializer_list<array> all) {
    int type = all.begin()->type;
    for (const array &a : all)
        if (a.p && a.type != type) return ANY;
    return type;
}

/* f(a type as a constant) */
template <class F> int with_type(int type, F f) {
    if (type == MA_F32) return f(std::integral_constant<int, MA_F32>());
    if (type == MA_BF16) return f(std::integral_constant<int, MA_BF16>());
    return f(std::integral_constant<int, MA_F16>());
}

struct layer_fwd_run {
    ma_cuda *d;
    layer l;
    array y;
    float *mean, *inverse;
    template <int PER, int ROWS, int LANES, int TYPE> int known() const {
        unsigned blocks = blocks_of(l, ROWS * (THREADS / LANES));
        layer_kernel<PACK, PER, ROWS, LANES, TYPE><<<blocks, THREADS, 0, d->stream>>>(l, LANES, y, mean, inverse);
        return launched(d, "layer norm");
    }
    template <int N> int at_run() const {
        shape s;
        if (!shape_of(l, N, &s)) return -1;
        layer_kernel<N, HELD / N, 1, 0, ANY><<<s.blocks, s.threads, 0, d->stream>>>(l, s.lanes, y, mean, inverse);
        return launched(d, "layer norm");
    }
};

int layer_fwd(const ma_call *call) {
    layer l = layer_of(call);
    array y = data_of(call->out);
    int n = grain(l.width, {l.x, l.gain, l.bias, l.mod, y}), type = type_of({l.x, l.gain, l.bias, l.mod, y});
    if (!n || l.width < 1) return -1;
    if (!l.rows) return 0;
    layer_fwd_run run = {(ma_cuda *)call->stream, l, y, call->save[0] ? (float *)call->save[0]->data : nullptr,
                         call->save[1] ? (float *)call->save[1]->data : nullptr};
    if (n != PACK) return run.at_run<1>();
    if (type == ANY || l.width > 2048) return run.at_run<PACK>();
    return with_type(type, [&](auto constant) {
        constexpr int TYPE = decltype(constant)::value;
        if (l.width <= 64) return run.known<1, 2, 8, TYPE>();
        if (l.width <= 256) return run.known<1, 2, 32, TYPE>();
        if (l.width <= 1024) return run.known<4, 1, 32, TYPE>();
        if constexpr (TYPE == MA_F32)
            return run.known<2, 1, 128, TYPE>();
        else
            return run.known<8, 1, 32, TYPE>();
    });
}

/* Σ dy·h and Σ dy */
struct layer_sums {
    array x, dy;
    const float *mean, *inverse;
    int64_t width;
    template <int N> struct column {
        const layer_sums &f;
        int64_t at;
        __device__ column(const layer_sums &of, const piece &, int64_t where) : f(of), at(where) {}
        __device__ void add(int64_t row, float sum[2][N]) const {
            raw<N> rx = fetch<N>(f.x, row * f.width + at), rd = fetch<N>(f.dy, row * f.width + at);
            float m = f.mean[row], i = f.inverse[row];
            pack<N> x = widen<N>(rx, f.x.type), d = widen<N>(rd, f.dy.type);
#pragma unroll
            for (int k = 0; k < N; k++) {
                sum[0][k] += d.v[k] * ((x.v[k] - m) * i);
                sum[1][k] += d.v[k];
            }
        }
    };
};

/* The gradients of gain, bias and mod, from the sums over a sample's video or text; carried from one to the next. */
struct into_parameters {
    layer l;
    array dgain, dbias, dmod;
    __device__ void add(int64_t sample, bool text, int64_t column, const double sum[2], double carry[2]) const {
        int64_t shift = l.shift_at(sample, text) + column, scale = l.scale_at(sample, text) + column;
        double by = l.mod.p ? 1 + (double)load_one(l.mod, scale) : 1;
        carry[0] += by * sum[0];
        carry[1] += by * sum[1];
        if (!dmod.p) return;
        double along = l.gain.p ? load_one(l.gain, column) * sum[0] + load_one(l.bias, column) * sum[1] : sum[0];
        add_one(dmod, shift, (float)sum[1]);
        add_one(dmod, scale, (float)along);
    }
    __device__ void end(int64_t column, const double carry[2]) const {
        if (dgain.p) add_one(dgain, column, (float)carry[0]);
        if (dbias.p) add_one(dbias, column, (float)carry[1]);
    }
};

/* Whether gain, bias or mod is to get a gradient. */
bool layer_trained(const ma_call *call) {
    bool modulated = call->op == MA_OP_MODULATE && call->in[3]->want;
    return modulated || (call->in[1] && (call->in[1]->want || call->in[2]->want));
}

size_t layer_work(const ma_call *call, bool backward) {
    return backward && layer_trained(call) ? parts_bytes(layer_tokens(call), 2) : 0;
}

struct layer_bwd_run {
    ma_cuda *d;
    layer l;
    array dy, dx;
    const float *mean, *inverse;
    template <int PER, int ROWS, int LANES, int TYPE> int known() const {
        unsigned blocks = blocks_of(l, ROWS * (THREADS / LANES));
        layer_bwd_kernel<PACK, PER, ROWS, LANES, TYPE>
            <<<blocks, THREADS, 0, d->stream>>>(l, LANES, dy, dx, mean, inverse);
        return launched(d, "layer norm's gradient");
    }
    template <int N> int at_run() const {
        shape s;
        if (!shape_of(l, N, &s)) return -1;
        layer_bwd_kernel<N, HELD / N, 1, 0, ANY>
            <<<s.blocks, s.threads, 0, d->stream>>>(l, s.lanes, dy, dx, mean, inverse);
        return launched(d, "layer norm's gradient");
    }
};

int run_layer_dx(const ma_call *call, const layer &l, array dy, array dx) {
    int n = grain(l.width, {l.x, l.gain, l.mod, dy, dx}), type = type_of({l.x, l.gain, l.mod, dy, dx});
    if (!n || l.width < 1) return -1;
    if (!l.rows) return 0;
    layer_bwd_run run = {(ma_cuda *)call->stream,           l, dy, dx, (const float *)call->save[0]->data,
                         (const float *)call->save[1]->data};
    if (n != PACK) return run.at_run<1>();
    if (type == ANY || l.width > 2048) return run.at_run<PACK>();
    return with_type(type, [&](auto constant) {
        constexpr int TYPE = decltype(constant)::value;
        if (l.width <= 64) return run.known<1, 2, 8, TYPE>();
        if (l.width <= 256) return run.known<1, 2, 32, TYPE>();
        if (l.width <= 1024) return run.known<4, 1, 32, TYPE>();
        return run.known<2, 1, 128, TYPE>();
    });
}

/* dx and the parts of the sums. */
struct layer_bwd_sums_run {
    ma_cuda *d;
    layer l;
    tokens t;
    array dy, dx;
    const float *mean, *inverse;
    float *part;
    template <int PER, int ROWS, int LANES, int TYPE> int known() const {
        const int64_t blocks = t.batch * t.pieces;
        if (blocks > INT_MAX || !part) return -1;
        layer_bwd_sums_kernel<PER, ROWS, LANES, TYPE>
            <<<(unsigned)blocks, THREADS, 0, d->stream>>>(l, t, dy, dx, mean, inverse, part);
        return launched(d, "layer norm's gradient");
    }
};

/* Whether dx and the sums can be had in one pass. */
bool at_once(const layer &l, array dy, array dx) {
    return dx.p && l.rows && l.width <= 2048 && grain(l.width, {l.x, l.gain, l.mod, dy, dx}) == PACK &&
           type_of({l.x, l.gain, l.mod, dy, dx}) != ANY;
}

int run_layer_dx_sums(const layer_bwd_sums_run &run) {
    return with_type(run.l.x.type, [&](auto constant) {
        constexpr int TYPE = decltype(constant)::value;
        if (run.l.width <= 64) return run.known<1, 2, 8, TYPE>();
        if (run.l.width <= 256) return run.known<1, 2, 32, TYPE>();
        if (run.l.width <= 1024) return run.known<1, 2, 128, TYPE>();
        return run.known<2, 1, 128, TYPE>();
    });
}

int layer_bwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    layer l = layer_of(call);
    array dy = data_of(call->out->grad), dx = grad_of(call, 0);
    const float *mean = (const float *)call->save[0]->data, *inverse = (const float *)call->save[1]->data;
    const char *where = "layer norm's parameters";
    if (!layer_trained(call)) return dx.p ? run_layer_dx(call, l, dy, dx) : 0;
    const tokens t = layer_tokens(call);
    float *part = (float *)call->work;
    into_parameters g = {l, grad_of(call, 1), grad_of(call, 2), {nullptr, MA_F32}};
    if (call->op == MA_OP_MODULATE) g.dmod = grad_of(call, 3);
    if (at_once(l, dy, dx))
        return run_layer_dx_sums({d, l, t, dy, dx, mean, inverse, part}) || run_totals<2>(d, where, g, t, part, false)
                   ? -1
                   : 0;
    if (dx.p && run_layer_dx(call, l, dy, dx)) return -1;
    return run_columns<2>(d, where, layer_sums{l.x, dy, mean, inverse, l.width}, g, t,
                          grain(l.width, {l.x, dy, l.gain, l.bias, l.mod}), part, false);
}

} // namespace

int ma_cuda_layer_norm_fwd(const ma_call *call) {
    return layer_fwd(call);
}

int ma_cuda_layer_norm_bwd(const ma_call *call) {
    return layer_bwd(call);
}

size_t ma_cuda_layer_norm_work(ma_cuda *, const ma_call *call, bool backward) {
    return layer_work(call, backward);
}

int ma_cuda_modulate_fwd(const ma_call *call) {
    return layer_fwd(call);
}

int ma_cuda_modulate_bwd(const ma_call *call) {
    return layer_bwd(call);
}

size_t ma_cuda_modulate_work(ma_cuda *, const ma_call *call, bool backward) {
    return layer_work(call, backward);
}

/* ---- group_norm ---- */

namespace {

struct group {
    array x, gain, bias; /* gain, bias (C), or none */
    array dy, y;         /* the output and its gradient; dy of the backward pass only */
    int64_t batch, space;
    int channels, groups, per;
    ma_act act;
    bool from_input; /* the activation's derivative is one of what went in */
    float eps;
    double *total;           /* (B, 2, C): sums by channel */
    float *mean, *inverse;   /* (B, groups) */
    float *mean_f, *mean_fh; /* (B, groups), backward only */
};

tokens group_tokens(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    return tokens_of(x->n[0], x->n[1] * x->n[2] * x->n[3], 0, x->n[4]);
}

/* The same in more pieces, for what has nothing else to do. */
tokens moments_tokens(const ma_call *call) {
    enum { PIECES = 2048, LEAST = 32 };
    tokens t = group_tokens(call);
    t.size = ceil_div(t.batch * t.len, PIECES);
    if (t.size < LEAST) t.size = LEAST;
    t.pieces = ceil_div(t.len, t.size);
    return t;
}

/* Totals, two numbers a group, parts. */
size_t group_bytes(const ma_call *call, bool backward) {
    const ma_tensor *x = call->in[0];
    return (size_t)(x->n[0] * x->n[4]) * 2 * sizeof(double) + (size_t)(x->n[0] * call->i[0]) * 2 * sizeof(float) +
           parts_bytes(backward ? group_tokens(call) : moments_tokens(call), 2);
}

/* part: where the parts of the column sums go. */
group group_of(const ma_call *call, bool backward, float **part) {
    const ma_tensor *x = call->in[0];
    group g = {};
    g.x = data_of(x);
    g.gain = data_of(call->in[1]);
    g.bias = data_of(call->in[2]);
    g.y = data_of(call->out);
    if (backward) g.dy = data_of(call->out->grad);
    g.batch = x->n[0];
    g.space = x->n[1] * x->n[2] * x->n[3];
    g.channels = (int)x->n[4];
    g.groups = (int)call->i[0];
    g.per = g.channels / g.groups;
    g.act = (ma_act)call->i[1];
    g.from_input = needs_input(g.act);
    g.eps = (float)call->f[0];
    g.total = (double *)call->work;
    float *two = (float *)(g.total + 2 * g.batch * g.channels); /* (2, B, groups) */
    *part = two + 2 * g.batch * g.groups;
    float *saved[2] = {two, two + g.batch * g.groups};
    for (int k = 0; k < 2; k++)
        if (call->save[k]) saved[k] = (float *)call->save[k]->data;
    g.mean = saved[0];
    g.inverse = saved[1];
    if (backward) {
        g.mean_f = two;
        g.mean_fh = two + g.batch * g.groups;
    }
    return g;
}

/* What stands for N channels of a sample. */
template <int N> struct channels {
    pack<N> mean, inverse, gain, bias;
    __device__ channels(const group &g, int64_t sample, int64_t at) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            int64_t j = sample * g.groups + (int)(at + k) / g.per;
            mean.v[k] = g.mean[j];
            inverse.v[k] = g.inverse[j];
            gain.v[k] = g.gain.p ? load_one(g.gain, at + k) : 1;
            bias.v[k] = g.bias.p ? load_one(g.bias, at + k) : 0;
        }
    }
    /* x becomes h. */
    __device__ void normalise(pack<N> &x) const {
#pragma unroll
        for (int k = 0; k < N; k++) x.v[k] = (x.v[k] - mean.v[k]) * inverse.v[k];
    }
    __device__ void scale(pack<N> &h) const {
#pragma unroll
        for (int k = 0; k < N; k++) h.v[k] = h.v[k] * gain.v[k] + bias.v[k];
    }
    /* h and the gradient before the activation, at element e. */
    __device__ void before_act(const group &g, int64_t e, pack<N> &h, pack<N> &grad) const {
        raw<N> rx = fetch<N>(g.x, e), rd = fetch<N>(g.dy, e), ry;
        bool from_output = g.act != MA_NONE && !g.from_input;
        if (from_output) ry = fetch<N>(g.y, e);
        h = widen<N>(rx, g.x.type);
        grad = widen<N>(rd, g.dy.type);
        normalise(h);
        if (g.act == MA_NONE) return;
        pack<N> slope = h;
        if (from_output)
            slope = widen<N>(ry, g.y.type);
        else
            scale(slope);
        derive<N>(g.act, slope);
#pragma unroll
        for (int k = 0; k < N; k++) grad.v[k] *= slope.v[k];
    }
};

/* Σ d·h and Σ d, d being the gradient before the activation. */
struct group_bwd_sums {
    group g;
    template <int N> struct column {
        const group &g;
        int64_t at;
        channels<N> c;
        __device__ column(const group_bwd_sums &f, const piece &p, int64_t where)
            : g(f.g), at(where), c(f.g, p.sample, where) {}
        __device__ void add(int64_t row, float sum[2][N]) const {
            pack<N> h, d;
            c.before_act(g, row * g.channels + at, h, d);
#pragma unroll
            for (int k = 0; k < N; k++) {
                sum[0][k] += d.v[k] * h.v[k];
                sum[1][k] += d.v[k];
            }
        }
    };
};

struct into_totals {
    double *total; /* (B, 2, C) */
    int channels;
    __device__ void add(int64_t sample, bool, int64_t column, const double sum[2], double *) const {
        total[2 * sample * channels + column] = sum[0];
        total[(2 * sample + 1) * channels + column] = sum[1];
    }
    __device__ void end(int64_t, const double *) const {}
};

/* Σ over a warp; every lane gets it. */
__device__ inline double sum_warp(double x) {
    for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}

/* A number as memory will have it. */
template <ma_type TYPE> __device__ inline float rounded(float x) {
    if constexpr (TYPE == MA_BF16) return __bfloat162float(__float2bfloat16_rn(x));
    if constexpr (TYPE == MA_F16) return __half2float(__float2half_rn(x));
    return x;
}

/* The moments of pieces: part (pieces of the batch, 2, width): mean, and the sum of squares about it, of each column of
 * x, or of x += more. Blocks as in parts_kernel. A piece's first row is read before it may be overwritten. */
template <int N, ma_type TYPE, bool ADD>
__global__ void __launch_bounds__(THREADS, ADD ? 3 : 4)
    pieces_kernel(array of, array more, tokens t, int lanes, int strips, float *part) {
    enum { AHEAD = TYPE == MA_F32 ? 2 : 4 }; /* rows fetched before the first is worked on */
    __shared__ float room[2 * N * THREADS], start[N * 32];
    const array x = typed<TYPE>(of), plus = typed<TYPE>(more);
    const int lane = threadIdx.x % lanes, y = threadIdx.x / lanes, tile = THREADS / lanes;
    const int64_t k = blockIdx.x / strips, left = (int64_t)(blockIdx.x % strips) * lanes * N, column = left + lane * N;
    const piece p = piece_of(t, k);
    const bool inside = column < t.width;
    auto sum_at = [&](const raw<N> &rx, const raw<N> &rp) {
        pack<N> v = widen<N>(rx, TYPE);
        if constexpr (ADD) {
            pack<N> w = widen<N>(rp, TYPE);
#pragma unroll
            for (int j = 0; j < N; j++) v.v[j] = rounded<TYPE>(v.v[j] + w.v[j]);
        }
        return v;
    };
    pack<N> first = {};
    float sum[2][N] = {};
    if (inside) {
        raw<N> rx = fetch<N>(x, p.from * t.width + column), rp = {};
        if constexpr (ADD) rp = fetch<N>(plus, p.from * t.width + column);
        first = sum_at(rx, rp);
    }
    if (ADD) __syncthreads();
    for (int64_t row = p.from + y; row < p.to && inside; row += AHEAD * tile) {
        raw<N> rx[AHEAD] = {}, rp[AHEAD] = {};
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int64_t at = (row + j * tile) * t.width + column;
            if (row + j * tile < p.to) rx[j] = fetch<N>(x, at);
            if constexpr (ADD)
                if (row + j * tile < p.to) rp[j] = fetch<N>(plus, at);
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (row + j * tile >= p.to) continue;
            pack<N> v = sum_at(rx[j], rp[j]);
            if constexpr (ADD) store<N>(x, (row + j * tile) * t.width + column, v);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float d = v.v[i] - first.v[i];
                sum[0][i] += d;
                sum[1][i] += d * d;
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 2 * N; j++) room[j * THREADS + threadIdx.x] = sum[j / N][j % N];
#pragma unroll
    for (int j = 0; j < N; j++)
        if (!y) start[j * 32 + lane] = first.v[j];
    __syncthreads();
    const double rows = (double)(p.to - p.from);
    for (int u = threadIdx.x; u < N * lanes; u += THREADS) {
        int j = u / lanes, from = u % lanes;
        int64_t at = left + from * N + j;
        float total = 0, squares = 0;
        for (int r = 0; r < tile; r++) {
            total += room[j * THREADS + r * lanes + from];
            squares += room[(N + j) * THREADS + r * lanes + from];
        }
        if (at >= t.width) continue;
        part[2 * k * t.width + at] = (float)(start[j * 32 + from] + total / rows);
        part[(2 * k + 1) * t.width + at] = (float)(squares - total * (total / rows));
    }
}

/* The moments of groups, a block a group: mean, and variance, or with inverse 1/deviation. */
struct moments {
    tokens t;
    int groups, per;
    const float *part;
    float *mean, *spread; /* (B, groups) */
    bool inverse;
    float eps;
};

/* The block's sum, for all of its threads. */
__device__ inline double total_of_block(double x) {
    __shared__ double total;
    x = sum_block<THREADS>(x);
    if (!threadIdx.x) total = x;
    __syncthreads();
    return total;
}

__global__ void __launch_bounds__(THREADS) moments_kernel(moments m) {
    const tokens &t = m.t;
    const int64_t sample = blockIdx.x / m.groups;
    const float *part = m.part + 2 * sample * t.pieces * t.width + (int64_t)(blockIdx.x % m.groups) * m.per;
    const int parts = (int)t.pieces * m.per;
    const double count = (double)t.len * m.per;
    auto rows = [&](int k) { return (double)(k + 1 < t.pieces ? t.size : t.len - k * t.size); };
    double mean = 0, spread = 0;
    for (int u = threadIdx.x; u < parts; u += THREADS) {
        int k = u / m.per;
        mean += rows(k) * part[2 * k * t.width + u % m.per];
    }
    mean = total_of_block(mean) / count;
    for (int u = threadIdx.x; u < parts; u += THREADS) {
        int k = u / m.per;
        double off = part[2 * k * t.width + u % m.per] - mean;
        spread += part[(2 * k + 1) * t.width + u % m.per] + rows(k) * off * off;
    }
    spread = total_of_block(spread) / count;
    if (spread < 0) spread = 0;
    if (threadIdx.x) return;
    m.mean[blockIdx.x] = (float)mean;
    m.spread[blockIdx.x] = (float)(m.inverse ? 1 / sqrt(spread + (double)m.eps) : spread);
}

/* Means of f and f·h of each group, a warp a group. */
__global__ void __launch_bounds__(THREADS) means_kernel(group g) {
    int64_t j = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 32, sample = j / g.groups;
    int lane = threadIdx.x % 32, from = (int)(j % g.groups) * g.per;
    if (j >= g.batch * g.groups) return;
    const double *along = g.total + 2 * sample * g.channels + from, *sum = along + g.channels;
    double f = 0, fh = 0, count = (double)g.space * g.per;
    for (int c = lane; c < g.per; c += 32) {
        double gain = g.gain.p ? load_one(g.gain, from + c) : 1;
        f += gain * sum[c];
        fh += gain * along[c];
    }
    f = sum_warp(f);
    fh = sum_warp(fh);
    if (lane) return;
    g.mean_f[j] = (float)(f / count);
    g.mean_fh[j] = (float)(fh / count);
}

/* The parameters' gradients: a thread adds a channel over the samples. */
__global__ void __launch_bounds__(THREADS) group_parameters_kernel(group g, array dgain, array dbias) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= g.channels) return;
    double along = 0, sum = 0;
    for (int64_t b = 0; b < g.batch; b++) {
        along += g.total[2 * b * g.channels + c];
        sum += g.total[(2 * b + 1) * g.channels + c];
    }
    if (dgain.p) add_one(dgain, c, (float)along);
    if (dbias.p) add_one(dbias, c, (float)sum);
}

/* y = act(gain·h + bias). A thread keeps its channels and goes down the positions; samples
 * lie along the grid's third side. */
template <int N> __global__ void __launch_bounds__(THREADS) group_kernel(group g, int lanes) {
    int64_t at = ((int64_t)blockIdx.x * lanes + threadIdx.x % lanes) * N, tile = THREADS / lanes;
    if (at >= g.channels) return;
    for (int64_t sample = blockIdx.z; sample < g.batch; sample += gridDim.z) {
        channels<N> c(g, sample, at);
        pack<N> by, plus;
#pragma unroll
        for (int k = 0; k < N; k++) {
            by.v[k] = c.inverse.v[k] * c.gain.v[k];
            plus.v[k] = c.bias.v[k] - c.mean.v[k] * by.v[k];
        }
        int64_t start = sample * g.space * g.channels + at;
#pragma unroll 2
        for (int64_t s = blockIdx.y * tile + threadIdx.x / lanes; s < g.space; s += gridDim.y * tile) {
            pack<N> x = load<N>(g.x, start + s * g.channels);
#pragma unroll
            for (int k = 0; k < N; k++) x.v[k] = x.v[k] * by.v[k] + plus.v[k];
            activate<N>(g.act, x);
            store<N>(g.y, start + s * g.channels, x);
        }
    }
}

template <int N> __global__ void __launch_bounds__(THREADS) group_bwd_kernel(group g, int lanes, array dx) {
    int64_t at = ((int64_t)blockIdx.x * lanes + threadIdx.x % lanes) * N, tile = THREADS / lanes;
    if (at >= g.channels) return;
    for (int64_t sample = blockIdx.z; sample < g.batch; sample += gridDim.z) {
        channels<N> c(g, sample, at);
        pack<N> mean_f, mean_fh;
#pragma unroll
        for (int k = 0; k < N; k++) {
            int64_t j = sample * g.groups + (int)(at + k) / g.per;
            mean_f.v[k] = g.mean_f[j];
            mean_fh.v[k] = g.mean_fh[j];
        }
        int64_t start = sample * g.space * g.channels + at;
        for (int64_t s = blockIdx.y * tile + threadIdx.x / lanes; s < g.space; s += gridDim.y * tile) {
            pack<N> h, d;
            c.before_act(g, start + s * g.channels, h, d);
#pragma unroll
            for (int k = 0; k < N; k++)
                d.v[k] = c.inverse.v[k] * (c.gain.v[k] * d.v[k] - mean_f.v[k] - h.v[k] * mean_fh.v[k]);
            add_to<N>(dx, start + s * g.channels, d);
        }
    }
}

struct places {
    dim3 grid;
    int lanes;
};

/* Some 16 positions a thread: what belongs to its channels is fetched once. */
places places_of(const group &g, int n) {
    int lanes = lanes_for(g.channels / n, THREADS), tile = THREADS / lanes;
    int64_t down = ceil_div(g.space, tile), samples = g.batch < 65535 ? g.batch : 65535;
    int64_t across = ceil_div(g.channels / n, lanes), step = down * samples * across / 2048;
    down = ceil_div(down, step < 1 ? 1 : step > 16 ? 16 : step);
    if (down > 65535) down = 65535;
    return {dim3((unsigned)across, (unsigned)down, (unsigned)samples), lanes};
}

bool empty(const group &g) {
    return g.batch < 1 || g.space < 1 || g.channels < 1;
}

unsigned warp_blocks(const group &g) {
    return (unsigned)ceil_div(g.batch * g.groups * 32, THREADS);
}

template <int N, ma_type TYPE>
void launch_pieces(ma_cuda *d, array x, array add, const tokens &t, int lanes, unsigned blocks, int strips,
                   float *part) {
    if (add.p)
        pieces_kernel<N, TYPE, true><<<blocks, THREADS, 0, d->stream>>>(x, add, t, lanes, strips, part);
    else
        pieces_kernel<N, TYPE, false><<<blocks, THREADS, 0, d->stream>>>(x, add, t, lanes, strips, part);
}

/* Of x, or of x += add; part: room for what m.part then is. */
int run_moments(ma_cuda *d, array x, array add, moments m, float *part) {
    const tokens &t = m.t;
    const int n = grain(t.width, {x, add.p ? add : x});
    if (!n || !part || (add.p && add.type != x.type)) return -1;
    const int lanes = lanes_for(t.width / n, 32);
    const int64_t strips = ceil_div(t.width / n, lanes), blocks = strips * t.batch * t.pieces;
    if (blocks > INT_MAX || t.batch * m.groups > INT_MAX || t.pieces * m.per > INT_MAX) return -1;
    m.part = part;
    with_type(x.type, [&](auto constant) {
        constexpr ma_type TYPE = (ma_type) decltype(constant)::value;
        if (n == PACK)
            launch_pieces<PACK, TYPE>(d, x, add, t, lanes, (unsigned)blocks, (int)strips, part);
        else
            launch_pieces<1, TYPE>(d, x, add, t, lanes, (unsigned)blocks, (int)strips, part);
        return 0;
    });
    if (launched(d, "moments")) return -1;
    moments_kernel<<<(unsigned)(t.batch * m.groups), THREADS, 0, d->stream>>>(m);
    return launched(d, "moments");
}

int run_group(ma_cuda *d, const group &g, int n) {
    places p = places_of(g, n);
    if (n == PACK)
        group_kernel<PACK><<<p.grid, THREADS, 0, d->stream>>>(g, p.lanes);
    else
        group_kernel<1><<<p.grid, THREADS, 0, d->stream>>>(g, p.lanes);
    return launched(d, "group norm");
}

int run_group_bwd(ma_cuda *d, const group &g, int n, array dx) {
    places p = places_of(g, n);
    means_kernel<<<warp_blocks(g), THREADS, 0, d->stream>>>(g);
    if (n == PACK)
        group_bwd_kernel<PACK><<<p.grid, THREADS, 0, d->stream>>>(g, p.lanes, dx);
    else
        group_bwd_kernel<1><<<p.grid, THREADS, 0, d->stream>>>(g, p.lanes, dx);
    return launched(d, "group norm's gradient");
}

} // namespace

size_t ma_cuda_group_norm_work(ma_cuda *, const ma_call *call, bool backward) {
    return group_bytes(call, backward);
}

int ma_cuda_group_norm_fwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    float *part;
    group g = group_of(call, false, &part);
    int n = grain(g.channels, {g.x, g.gain, g.bias, g.y});
    if (empty(g) || !n) return empty(g) ? 0 : -1;
    moments m = {moments_tokens(call), g.groups, g.per, nullptr, g.mean, g.inverse, true, g.eps};
    return run_moments(d, g.x, {}, m, part) || run_group(d, g, n) ? -1 : 0;
}

int ma_cuda_group_norm_bwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    float *part;
    group g = group_of(call, true, &part);
    array dx = grad_of(call, 0), dgain = grad_of(call, 1), dbias = grad_of(call, 2);
    int n = grain(g.channels, {g.x, g.gain, g.bias, g.y, g.dy, dx});
    if (empty(g) || !n) return empty(g) ? 0 : -1;
    if (run_columns<2>(d, "group norm's gradient", group_bwd_sums{g}, into_totals{g.total, g.channels},
                       group_tokens(call), n, part, true))
        return -1;
    if (dgain.p || dbias.p) {
        group_parameters_kernel<<<(unsigned)ceil_div(g.channels, THREADS), THREADS, 0, d->stream>>>(g, dgain, dbias);
        if (launched(d, "group norm's parameters")) return -1;
    }
    return dx.p ? run_group_bwd(d, g, n, dx) : 0;
}

/* ---- moments ---- */

size_t ma_cuda_moments_work(ma_cuda *, const ma_call *call, bool) {
    return parts_bytes(moments_tokens(call), 2);
}

int ma_cuda_moments_fwd(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    const int groups = (int)call->i[0];
    float *mean = (float *)call->out->data;
    if (!ma_count(x)) return 0;
    moments m = {moments_tokens(call), groups, (int)x->n[4] / groups, nullptr, mean, mean + x->n[0] * groups, false, 0};
    return run_moments((ma_cuda *)call->stream, data_of(x), data_of(call->in[1]), m, (float *)call->work);
}

/* ---- causal_norm ---- */

namespace {

struct causal {
    array x, y, gain, bias, map, past;  /* x and y are there, the others may not be */
    const float *mean, *variance;       /* (B, groups), or none */
    int64_t batch, plane;               /* plane: positions of a frame */
    int frames, lead, channels, groups; /* frames: of x */
    ma_act act;
    float eps;
    unsigned width, rows_per, columns_per; /* of x; positions to one of the map's, in h and w */
    unsigned map_width;
    int map_frames, frames_per;
    int64_t map_plane, map_channels, from; /* from: the channel of the map where scales begin */
    bool fresh, apart;                     /* apart: frame 0 has a frame of the map for itself */
};

enum { WIDE = 64 }; /* threads along the channels */

/* exp and 1/x as the hardware has them, to some 1e-6: enough for 16 bits. */
__device__ inline float quick_silu(float x) {
    float e, r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(-1.44269504f * x)); /* 1/ln 2 */
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
    return x * r;
}

template <int N, ma_type TYPE> __device__ inline void causal_act(ma_act act, pack<N> &x) {
    if (TYPE != MA_F32 && act == MA_SILU)
        each(x, [](float v) { return quick_silu(v); });
    else
        activate<N>(act, x);
}

/* N channels of one position, through all frames: a thread alone reads and writes its place of the past. */
template <int N, ma_type TYPE> struct causal_walk {
    enum { AHEAD = TYPE == MA_F32 ? 2 : 4 }; /* frames fetched before the first is worked on */
    const causal &f;
    const float *base_by, *base_plus; /* what the norm comes to, of these channels */
    int64_t x, y, past, map, plane;   /* elements: the first frames' places; a frame of x, y and past */
    pack<N> by, plus;                 /* with the map's scale and shift */

    /* Frame j of y, and of the past where it is one of the last. */
    __device__ void put(int j, const pack<N> &v) const {
        store<N>(typed<TYPE>(f.y), y + j * plane, v);
        if (f.past.p && j >= f.frames) store<N>(typed<TYPE>(f.past), past + (j - f.frames) * plane, v);
    }

    __device__ void copy_past() const {
        for (int j = 0; j < f.lead; j += 2) {
            bool two = j + 1 < f.lead;
            raw<N> a = fetch<N>(typed<TYPE>(f.past), past + j * plane), b = {};
            if (two) b = fetch<N>(typed<TYPE>(f.past), past + (j + 1) * plane);
            put(j, widen<N>(a, TYPE));
            if (two) put(j + 1, widen<N>(b, TYPE));
        }
    }

    __device__ void frame(int t, const raw<N> &r) const {
        pack<N> v = widen<N>(r, TYPE);
#pragma unroll
        for (int k = 0; k < N; k++) v.v[k] = v.v[k] * by.v[k] + plus.v[k];
        causal_act<N, TYPE>(f.act, v);
        for (int j = 0; j < f.lead && !t && f.fresh; j++) put(j, v);
        put(f.lead + t, v);
    }

    __device__ void turn(const raw<N> &scale, const raw<N> &shift) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            by.v[k] = base_by[k];
            plus.v[k] = base_plus[k];
        }
        if (!f.map.p) return;
        pack<N> s = widen<N>(scale, TYPE), a = widen<N>(shift, TYPE);
#pragma unroll
        for (int k = 0; k < N; k++) {
            by.v[k] *= s.v[k];
            plus.v[k] = plus.v[k] * s.v[k] + a.v[k];
        }
    }

    __device__ void run() {
        if (!f.fresh) copy_past();
        int m = 0; /* the map's frame */
        for (int t = 0, end = 0, n; t < f.frames; t += n) {
            raw<N> scale = {}, shift = {}, r[AHEAD] = {};
            const bool turns = t == end;
            if (turns && f.map.p) {
                int64_t at = map + m++ * f.map_plane * f.map_channels;
                scale = fetch<N>(typed<TYPE>(f.map), at);
                shift = fetch<N>(typed<TYPE>(f.map), at + f.channels);
                end += f.apart && !t ? 1 : f.frames_per;
            } else if (turns)
                end = f.frames;
            n = end - t < AHEAD ? end - t : AHEAD;
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (k < n) r[k] = fetch<N>(typed<TYPE>(f.x), x + (t + k) * plane);
            if (turns) turn(scale, shift);
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (k < n) frame(t + k, r[k]);
        }
    }
};

/* A thread keeps its channels and goes over positions; samples lie along the grid's third side. */
template <int N, ma_type TYPE> __global__ void __launch_bounds__(THREADS, 3) causal_kernel(causal f, int lanes) {
    __shared__ __align__(16) float by[WIDE * N], plus[WIDE * N];
    const int lane = threadIdx.x % lanes, tile = THREADS / lanes;
    const int64_t left = (int64_t)blockIdx.x * lanes * N, at = left + lane * N;
    for (int64_t sample = blockIdx.z; sample < f.batch; sample += gridDim.z) {
        __syncthreads(); /* the sample before may still be read */
        for (int k = threadIdx.x; k < lanes * N && left + k < f.channels; k += THREADS) {
            int64_t c = left + k, group = f.mean ? sample * f.groups + c / (f.channels / f.groups) : 0;
            float mean = f.mean ? f.mean[group] : 0, inverse = f.mean ? rsqrtf(f.variance[group] + f.eps) : 1;
            by[k] = inverse * (f.gain.p ? load_one(f.gain, c) : 1);
            plus[k] = (f.bias.p ? load_one(f.bias, c) : 0) - mean * by[k];
        }
        __syncthreads();
        if (at >= f.channels) continue;
        causal_walk<N, TYPE> w = {f, by + lane * N, plus + lane * N};
        w.plane = f.plane * f.channels;
        for (int64_t p = blockIdx.y * tile + threadIdx.x / lanes; p < f.plane; p += gridDim.y * tile) {
            unsigned row = (unsigned)p / f.width, column = (unsigned)p % f.width;
            int64_t m = (int64_t)(row / f.rows_per) * f.map_width + column / f.columns_per;
            w.x = (sample * f.frames * f.plane + p) * f.channels + at;
            w.y = (sample * (f.lead + f.frames) * f.plane + p) * f.channels + at;
            w.past = (sample * f.lead * f.plane + p) * f.channels + at;
            w.map = (sample * f.map_frames * f.map_plane + m) * f.map_channels + f.from + at;
            w.run();
        }
    }
}

/* false: too large, or of several types. */
bool causal_of(const ma_call *call, causal *f) {
    const ma_tensor *x = call->in[0], *moments = call->in[3], *map = call->in[4], *past = call->in[5];
    *f = {};
    for (const ma_tensor *t : std::initializer_list<const ma_tensor *>{map, past, call->out})
        if (t && t->type != x->type) return false;
    f->x = data_of(x);
    f->y = data_of(call->out);
    f->gain = data_of(call->in[1]);
    f->bias = data_of(call->in[2]);
    f->map = data_of(map);
    f->past = data_of(past);
    f->batch = x->n[0];
    f->plane = x->n[2] * x->n[3];
    f->frames = (int)x->n[1];
    f->lead = (int)call->i[2];
    f->channels = (int)x->n[4];
    f->act = (ma_act)call->i[1];
    f->eps = (float)call->f[0];
    f->width = (unsigned)x->n[3];
    f->fresh = call->i[3];
    f->groups = f->rows_per = f->columns_per = f->map_width = f->frames_per = 1;
    if (moments) {
        f->groups = (int)moments->n[2];
        f->mean = (const float *)moments->data;
        f->variance = f->mean + x->n[0] * moments->n[2];
    }
    if (map) {
        f->apart = f->frames > 1 && f->frames % 2;
        f->from = call->i[0];
        f->map_frames = (int)map->n[1];
        f->map_plane = map->n[2] * map->n[3];
        f->map_channels = map->n[4];
        f->map_width = (unsigned)map->n[3];
        f->frames_per = (f->frames - f->apart) / (f->map_frames - f->apart);
        f->rows_per = (unsigned)(x->n[2] / map->n[2]);
        f->columns_per = (unsigned)(x->n[3] / map->n[3]);
    }
    return f->plane <= INT_MAX && x->n[1] + call->i[2] <= INT_MAX && x->n[4] <= INT_MAX;
}

/* Channels that a thread may take at a time. */
int causal_grain(const causal &f) {
    const int n = grain(f.channels, {f.x, f.y, f.map, f.past});
    return n && (f.map_channels | f.from) % PACK ? 1 : n;
}

template <ma_type TYPE> int run_causal(ma_cuda *d, const causal &f, int n) {
    const int lanes = lanes_for(f.channels / n, WIDE);
    const int64_t across = ceil_div(f.channels / n, lanes), samples = f.batch < 65535 ? f.batch : 65535;
    int64_t down = ceil_div(f.plane, THREADS / lanes), each = down * across * samples / 4096;
    down = ceil_div(down, each < 1 ? 1 : each > 8 ? 8 : each); /* some positions a thread: it is ready but once */
    const dim3 grid((unsigned)across, (unsigned)(down < 65535 ? down : 65535), (unsigned)samples);
    if (n == PACK)
        causal_kernel<PACK, TYPE><<<grid, THREADS, 0, d->stream>>>(f, lanes);
    else
        causal_kernel<1, TYPE><<<grid, THREADS, 0, d->stream>>>(f, lanes);
    return launched(d, "causal norm");
}

} // namespace

int ma_cuda_causal_norm_fwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    causal f;
    if (!causal_of(call, &f)) return -1;
    const int n = causal_grain(f);
    if (!n) return -1;
    if (f.batch < 1 || f.plane < 1 || f.channels < 1) return 0;
    return with_type(f.x.type, [&](auto constant) { return run_causal<(ma_type) decltype(constant)::value>(d, f, n); });
}
