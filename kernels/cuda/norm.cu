/* norm: layer_norm, modulate, group_norm. Forward beside backward. With h = (x - mean)/deviation over n elements and f
 * the gradient to h:  dx = (f - mean(f) - h·mean(f·h)) / deviation.
 *
 * Layer norm is modulate without modulation. A row lies in the registers of 1 to 512 neighbouring threads, read once;
 * parameters and modulation rows gather their gradients by the column sums of pack.cuh. Group norm sums by channel over
 * parts of the positions, as differences from the channel's first element, so that a large mean cancels no digits; the
 * sums are put together in double.
 * Limits: rows of 8,192 elements. */
#include "pack.cuh"

using namespace packs;

/* ---- layer_norm, modulate ---- */

namespace {

enum { WIDEST = 512, HELD = 16 }; /* threads a row; elements a thread */

struct layer {
    array x, gain, bias, mod;            /* gain, bias (C); mod (B,R,C); or none */
    int64_t rows, len, text;             /* rows of x in all; tokens of a sample */
    int64_t vectors, shift[2], scale[2]; /* R, and the rows of mod for video, text */
    int width;
    float eps;
    __device__ int64_t shift_at(int64_t sample, bool is_text) const {
        return (sample * vectors + shift[is_text]) * width;
    }
    __device__ int64_t scale_at(int64_t sample, bool is_text) const {
        return (sample * vectors + scale[is_text]) * width;
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

/* A row's part of this thread: PER packs, `lanes` packs apart. What is beyond the row is 0. */
template <int N, int PER> struct row_part {
    pack<N> v[PER];
    __device__ void read(array a, int64_t start, int lane, int lanes, int width) {
        raw<N> r[PER];
#pragma unroll
        for (int p = 0; p < PER; p++)
            if ((lane + p * lanes) * N < width) r[p] = fetch<N>(a, start + (lane + p * lanes) * N);
#pragma unroll
        for (int p = 0; p < PER; p++)
            if ((lane + p * lanes) * N < width)
                v[p] = widen<N>(r[p], a.type);
            else
                v[p] = pack<N>{};
    }
};

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

/* y = h·gain + bias, then ·(1 + scale) + shift */
template <int N> __device__ inline void finish(const layer &l, int64_t shift, int64_t scale, int column, pack<N> &h) {
    if (l.gain.p) {
        raw<N> rg = fetch<N>(l.gain, column), rb = fetch<N>(l.bias, column);
        pack<N> g = widen<N>(rg, l.gain.type), b = widen<N>(rb, l.bias.type);
#pragma unroll
        for (int k = 0; k < N; k++) h.v[k] = h.v[k] * g.v[k] + b.v[k];
    }
    if (l.mod.p) {
        raw<N> rs = fetch<N>(l.mod, scale + column), rt = fetch<N>(l.mod, shift + column);
        pack<N> s = widen<N>(rs, l.mod.type), t = widen<N>(rt, l.mod.type);
#pragma unroll
        for (int k = 0; k < N; k++) h.v[k] = h.v[k] * (1 + s.v[k]) + t.v[k];
    }
}

template <int N, int PER>
__global__ void __launch_bounds__(WIDEST, 2)
    layer_kernel(layer l, int lanes, array y, float *mean_out, float *inverse_out) {
    __shared__ float room[WIDEST / 32];
    int lane = threadIdx.x % lanes, tile = blockDim.x / lanes;
    for (int64_t first = (int64_t)blockIdx.x * tile; first < l.rows; first += (int64_t)gridDim.x * tile) {
        int64_t row = first + threadIdx.x / lanes;
        int width = row < l.rows ? l.width : 0; /* a row that is not there has no elements */
        row_part<N, PER> x;
        x.read(l.x, row * l.width, lane, lanes, width);
        float sum = 0, squares = 0;
#pragma unroll
        for (int j = 0; j < PER * N; j++) sum += x.v[j / N].v[j % N];
        float mean = sum_lanes(sum, lanes, room) / l.width;
#pragma unroll
        for (int p = 0; p < PER; p++)
            if ((lane + p * lanes) * N < width)
#pragma unroll
                for (int k = 0; k < N; k++) {
                    x.v[p].v[k] -= mean;
                    squares += x.v[p].v[k] * x.v[p].v[k];
                }
        float inverse = 1.0f / sqrtf(sum_lanes(squares, lanes, room) / l.width + l.eps);
        if (!width) continue;
        if (mean_out && !lane) mean_out[row] = mean;
        if (inverse_out && !lane) inverse_out[row] = inverse;
        int64_t sample = l.mod.p ? quotient(row, l.len) : 0;
        bool text = row - sample * l.len < l.text;
        int64_t shift = l.shift_at(sample, text), scale = l.scale_at(sample, text);
#pragma unroll
        for (int p = 0; p < PER; p++) {
            int column = (lane + p * lanes) * N;
            if (column >= width) continue;
#pragma unroll
            for (int k = 0; k < N; k++) x.v[p].v[k] *= inverse;
            finish<N>(l, shift, scale, column, x.v[p]);
            store<N>(y, row * l.width + column, x.v[p]);
        }
    }
}

/* dx += …; a row's dy becomes f in its registers, and x becomes h. */
template <int N, int PER>
__global__ void __launch_bounds__(WIDEST)
    layer_bwd_kernel(layer l, int lanes, array dy, array dx, const float *mean, const float *inverse) {
    __shared__ float room[WIDEST / 32];
    int lane = threadIdx.x % lanes, tile = blockDim.x / lanes;
    for (int64_t first = (int64_t)blockIdx.x * tile; first < l.rows; first += (int64_t)gridDim.x * tile) {
        int64_t row = first + threadIdx.x / lanes;
        int width = row < l.rows ? l.width : 0;
        row_part<N, PER> h, f;
        h.read(l.x, row * l.width, lane, lanes, width);
        f.read(dy, row * l.width, lane, lanes, width);
        float m = width ? mean[row] : 0, i = width ? inverse[row] : 0, sum = 0, along = 0;
        int64_t sample = l.mod.p && width ? quotient(row, l.len) : 0;
        int64_t scale = l.scale_at(sample, row - sample * l.len < l.text);
#pragma unroll
        for (int p = 0; p < PER; p++) {
            int column = (lane + p * lanes) * N;
            if (column >= width) continue;
            pack<N> by = factor_at<N>(l, scale, column);
#pragma unroll
            for (int k = 0; k < N; k++) {
                f.v[p].v[k] *= by.v[k];
                h.v[p].v[k] = (h.v[p].v[k] - m) * i;
                sum += f.v[p].v[k];
                along += f.v[p].v[k] * h.v[p].v[k];
            }
        }
        float mean_f = sum_lanes(sum, lanes, room) / l.width, mean_fh = sum_lanes(along, lanes, room) / l.width;
#pragma unroll
        for (int p = 0; p < PER; p++) {
            int column = (lane + p * lanes) * N;
            if (column >= width) continue;
#pragma unroll
            for (int k = 0; k < N; k++) f.v[p].v[k] = i * (f.v[p].v[k] - mean_f - h.v[p].v[k] * mean_fh);
            add_to<N>(dx, row * l.width + column, f.v[p]);
        }
    }
}

/* How the rows of a layer lie on threads. */
struct shape {
    int n, lanes, threads; /* elements at a time; threads a row and a block */
    bool one;              /* one pack a thread is enough */
    unsigned blocks;
};

/* false: not taken. */
bool shape_of(const layer &l, int n, shape *s) {
    if (!n || l.width < 1) return false;
    int packs = l.width / n, warp = lanes_for(packs, 32);
    s->n = n;
    s->one = packs <= warp;
    s->lanes = s->one ? warp : lanes_for(ceil_div(packs, HELD / n), WIDEST);
    if (!s->one && s->lanes < 32) s->lanes = 32;
    if ((int64_t)s->lanes * HELD < l.width) return false;
    s->threads = s->lanes > THREADS ? s->lanes : THREADS;
    int64_t blocks = ceil_div(l.rows, s->threads / s->lanes);
    s->blocks = blocks > INT_MAX ? INT_MAX : (unsigned)blocks;
    return true;
}

int layer_fwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    layer l = layer_of(call);
    shape s;
    array y = data_of(call->out);
    if (!shape_of(l, grain(l.width, {l.x, l.gain, l.bias, l.mod, y}), &s)) return -1;
    if (!l.rows) return 0;
    float *mean = call->save[0] ? (float *)call->save[0]->data : nullptr;
    float *inverse = call->save[1] ? (float *)call->save[1]->data : nullptr;
    if (s.n != PACK)
        layer_kernel<1, HELD><<<s.blocks, s.threads, 0, d->stream>>>(l, s.lanes, y, mean, inverse);
    else if (s.one)
        layer_kernel<PACK, 1><<<s.blocks, s.threads, 0, d->stream>>>(l, s.lanes, y, mean, inverse);
    else
        layer_kernel<PACK, HELD / PACK><<<s.blocks, s.threads, 0, d->stream>>>(l, s.lanes, y, mean, inverse);
    return launched(d, "layer norm");
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

int run_layer_dx(const ma_call *call, const layer &l, array dy, array dx) {
    ma_cuda *d = (ma_cuda *)call->stream;
    const float *mean = (const float *)call->save[0]->data, *inverse = (const float *)call->save[1]->data;
    shape s;
    if (!shape_of(l, grain(l.width, {l.x, l.gain, l.mod, dy, dx}), &s)) return -1;
    if (!l.rows) return 0;
    if (s.n != PACK)
        layer_bwd_kernel<1, HELD><<<s.blocks, s.threads, 0, d->stream>>>(l, s.lanes, dy, dx, mean, inverse);
    else if (s.one)
        layer_bwd_kernel<PACK, 1><<<s.blocks, s.threads, 0, d->stream>>>(l, s.lanes, dy, dx, mean, inverse);
    else
        layer_bwd_kernel<PACK, HELD / PACK><<<s.blocks, s.threads, 0, d->stream>>>(l, s.lanes, dy, dx, mean, inverse);
    return launched(d, "layer norm's gradient");
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
