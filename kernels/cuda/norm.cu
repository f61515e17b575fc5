/* norm: layer_norm, modulate, group_norm. Forward beside backward. With h = (x - mean)/deviation over n elements and f
 * the gradient to h:  dx = (f - mean(f) - h·mean(f·h)) / deviation.
 *
 * Layer norm is modulate without modulation. A row lies in the registers of 1 to 512 neighbouring threads, read once;
 * parameters and modulation rows gather their gradients by the column sums of pack.cuh. Counting instructions is what
 * keeps up with memory here: common widths, of one type throughout, have kernels of their own, where a warp or less
 * takes a row (or several at a time, if short) and no type is looked at; all else goes to one with everything at run
 * time. Group norm sums by channel over parts of the positions, as differences from the channel's first element, so
 * that a large mean cancels no digits; the sums are put together in double. Limits: rows of 8,192 elements. */
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
    return {a.p, TYPE == ANY ? a.type : (ma_type)TYPE};
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
        __device__ column(const layer_sums &of, int64_t, int64_t where) : f(of), at(where) {}
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

int layer_bwd(const ma_call *call) {
    layer l = layer_of(call);
    array dy = data_of(call->out->grad), dx = grad_of(call->in[0]);
    if (dx.p && run_layer_dx(call, l, dy, dx)) return -1;
    if (!layer_trained(call)) return 0;
    layer_sums f = {l.x, dy, (const float *)call->save[0]->data, (const float *)call->save[1]->data, l.width};
    array dmod = call->op == MA_OP_MODULATE ? grad_of(call->in[3]) : array{nullptr, MA_F32};
    into_parameters g = {l, grad_of(call->in[1]), grad_of(call->in[2]), dmod};
    return run_columns<2>((ma_cuda *)call->stream, "layer norm's parameters", f, g, layer_tokens(call),
                          grain(l.width, {l.x, dy, l.gain, l.bias, l.mod}), (float *)call->work, false);
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

/* Totals, two numbers a group, parts. */
size_t group_bytes(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    return (size_t)(x->n[0] * x->n[4]) * 2 * sizeof(double) + (size_t)(x->n[0] * call->i[0]) * 2 * sizeof(float) +
           parts_bytes(group_tokens(call), 2);
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

/* Σ (x - first) and Σ (x - first)², first being the sample's first position. */
struct group_sums {
    group g;
    template <int N> struct column {
        const group &g;
        int64_t at;
        pack<N> first;
        __device__ column(const group_sums &f, int64_t sample, int64_t where) : g(f.g), at(where) {
            first = load<N>(g.x, sample * g.space * g.channels + at);
        }
        __device__ void add(int64_t row, float sum[2][N]) const {
            pack<N> x = load<N>(g.x, row * g.channels + at);
#pragma unroll
            for (int k = 0; k < N; k++) {
                float d = x.v[k] - first.v[k];
                sum[0][k] += d;
                sum[1][k] += d * d;
            }
        }
    };
};

/* Σ d·h and Σ d, d being the gradient before the activation. */
struct group_bwd_sums {
    group g;
    template <int N> struct column {
        const group &g;
        int64_t at;
        channels<N> c;
        __device__ column(const group_bwd_sums &f, int64_t sample, int64_t where)
            : g(f.g), at(where), c(f.g, sample, where) {}
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

/* Mean and 1/deviation of each group, a warp a group: the channels' means first, then the squares about the group's. */
__global__ void __launch_bounds__(THREADS) moments_kernel(group g) {
    int64_t j = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 32, sample = j / g.groups;
    int lane = threadIdx.x % 32, from = (int)(j % g.groups) * g.per;
    if (j >= g.batch * g.groups) return;
    const double *sum = g.total + 2 * sample * g.channels + from, *squares = sum + g.channels;
    double space = (double)g.space, mean = 0, spread = 0;
    int64_t start = sample * g.space * g.channels + from;
    for (int c = lane; c < g.per; c += 32) mean += load_one(g.x, start + c) + sum[c] / space;
    mean = sum_warp(mean) / g.per;
    for (int c = lane; c < g.per; c += 32) {
        double own = load_one(g.x, start + c) + sum[c] / space - mean;
        spread += squares[c] - sum[c] * sum[c] / space + space * own * own;
    }
    spread = sum_warp(spread) / (space * g.per);
    if (lane) return;
    g.mean[j] = (float)mean;
    g.inverse[j] = (float)(1 / sqrt((spread < 0 ? 0 : spread) + (double)g.eps));
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

int run_moments(ma_cuda *d, const group &g) {
    moments_kernel<<<warp_blocks(g), THREADS, 0, d->stream>>>(g);
    return launched(d, "group norm");
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

size_t ma_cuda_group_norm_work(ma_cuda *, const ma_call *call, bool) {
    return group_bytes(call);
}

int ma_cuda_group_norm_fwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    float *part;
    group g = group_of(call, false, &part);
    int n = grain(g.channels, {g.x, g.gain, g.bias, g.y});
    if (empty(g) || !n) return empty(g) ? 0 : -1;
    if (run_columns<2>(d, "group norm", group_sums{g}, into_totals{g.total, g.channels}, group_tokens(call), n, part,
                       true))
        return -1;
    return run_moments(d, g) || run_group(d, g, n) ? -1 : 0;
}

int ma_cuda_group_norm_bwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    float *part;
    group g = group_of(call, true, &part);
    array dx = grad_of(call->in[0]), dgain = grad_of(call->in[1]), dbias = grad_of(call->in[2]);
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
