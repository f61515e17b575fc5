/* conv, conv_transpose: cuDNN's convolutions, channels last. Both ops are three functions of a wide side x (B,T,H,W,C)
 * and a narrow side y (B,T',H',W',O), w (O,kt,kh,kw,C), as on the CPU:
 *   GATHER  y = x ⋆ w     conv forward; conv_transpose backwards to its input
 *   SPREAD  x = its adjoint on y    conv backwards to its input; conv_transpose forward
 *   WEIGH   dw            for both
 * Bias and activation are fused behind GATHER where there is an engine for it, else they are one more pass.
 *
 * cuDNN is told of as few dimensions as will do: where the kernel does not reach over time, times are samples; where it
 * reaches over time alone, rows are columns. Its engines for two dimensions are more, and better.
 *
 * Where windows are patches that tile x side by side, conv forward is one product instead: cuDNN is slow at them where
 * channels are few: a patch, its values in w's order, is a row of a matrix. Patches that reach over w alone, 1×1×1
 * among them, lie in x as that matrix, and backwards it is products, too; others are copied to the workspace first.
 *
 * Conv forward of few channels that reaches over time is products, too, for cuDNN would pad every tap to tens of them:
 * windows are unfolded to rows, some at a time, so that they are still in the second-level cache when they are read.
 *
 * Tensors of more than 2^31 elements, for which cuDNN may have no engine, are done by halves of the samples, then of
 * time. What cuDNN does not take (an address aligned to less than 16 bytes; shapes without an engine) plain kernels
 * compute: right, but slow. Backwards cuDNN overwrites: the result goes to the workspace and is then added. In 16 bits
 * dw is rounded to 16 bits before it is added, as there is no engine that writes it in fp32.
 *
 * Limits: a plan without a GPU does not know cuDNN's scratch: it is taken to be the copies with padded channels that
 * engines make in 16 bits, and in fp32 those with the channels first. */
#include "gemm.h"
#include "graph.h"

#include <climits>
#include <cstring>

namespace {

enum way { GATHER, SPREAD, WEIGH };
enum { X = 1, W, Y, BIAS }; /* numbers of the tensors in a graph */

struct window {
    int64_t batch, wide[3], c, narrow[3], o;
    int64_t k[3], stride[3], before[3], after[3];
};

int64_t volume(const int64_t n[3]) {
    return n[0] * n[1] * n[2];
}

int64_t rows_of(const window &v) { /* narrow positions */
    return v.batch * volume(v.narrow);
}

window window_of(const ma_call *call, const ma_tensor *wide, const ma_tensor *narrow) {
    window v = {};
    v.batch = wide->n[0];
    v.c = wide->n[4];
    v.o = narrow->n[4];
    memcpy(v.wide, wide->n + 1, sizeof v.wide);
    memcpy(v.narrow, narrow->n + 1, sizeof v.narrow);
    memcpy(v.k, call->in[1]->n + 1, sizeof v.k);
    memcpy(v.stride, call->i, sizeof v.stride);
    memcpy(v.before, call->i + 3, sizeof v.before);
    memcpy(v.after, call->i + 6, sizeof v.after);
    return v;
}

size_t room(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* ---- cuDNN ---- */

/* What a plan depends on. */
struct what {
    way how;
    ma_type type;
    bool exact, bias;
    ma_act act;
    window v;
};

/* In which dimension d the window is a single position that stays where it is. */
bool still(const window &v, int d) {
    return v.k[d] == 1 && v.stride[d] == 1 && !v.before[d] && !v.after[d];
}

/* Channels last: strides for the sizes n = (N, C, …). */
std::vector<int64_t> last(const std::vector<int64_t> &n) {
    std::vector<int64_t> stride(n.size(), 1);
    int64_t run = n[1];
    for (size_t d = n.size(); d-- > 2; run *= n[d]) stride[d] = run;
    stride[0] = run;
    return stride;
}

/* The window in as few dimensions as will do, in the order that cuDNN names them. */
struct shape {
    std::vector<int64_t> x, w, y; /* (N, C, …), (O, C, …), (N, O, …) */
    std::vector<int64_t> stride, before, after;
};

void add_dimension(shape *s, const window &v, int d, int64_t times) {
    s->x.push_back(v.wide[d] * times);
    s->y.push_back(v.narrow[d] * times);
    s->w.push_back(v.k[d]);
    s->stride.push_back(v.stride[d]);
    s->before.push_back(v.before[d]);
    s->after.push_back(v.after[d]);
}

shape shape_of(const window &v) {
    bool times = still(v, 0), rows = !times && still(v, 1) && still(v, 2);
    int64_t n = times ? v.batch * v.wide[0] : v.batch;
    shape s = {{n, v.c}, {v.o, v.c}, {n, v.o}, {}, {}, {}};
    if (!times) add_dimension(&s, v, 0, 1);
    if (!rows) add_dimension(&s, v, 1, 1);
    add_dimension(&s, v, 2, rows ? v.wide[1] : 1);
    return s;
}

cudnnPointwiseMode_t mode_of(ma_act act) {
    switch (act) {
    case MA_SIGMOID: return CUDNN_POINTWISE_SIGMOID_FWD;
    case MA_TANH: return CUDNN_POINTWISE_TANH_FWD;
    case MA_SILU: return CUDNN_POINTWISE_SWISH_FWD;
    case MA_GELU: return CUDNN_POINTWISE_GELU_FWD;
    case MA_GELU_TANH: return CUDNN_POINTWISE_GELU_APPROX_TANH_FWD;
    case MA_RELU: return CUDNN_POINTWISE_RELU_FWD;
    case MA_NONE: break;
    }
    return CUDNN_POINTWISE_IDENTITY;
}

ma_plan make_plan(ma_cuda *c, const void *of) {
    const what *a = (const what *)of;
    static const cudnnBackendDescriptorType_t kinds[] = {
        CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
        CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
        CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR};
    ma_graph g(c);
    shape s = shape_of(a->v);
    std::vector<int64_t> per_channel(s.y.size(), 1);
    per_channel[1] = a->v.o;
    cudnnDataType_t type = ma_dnn_type(a->type);
    bool more = a->bias || a->act != MA_NONE;
    ma_node x = g.tensor(X, type, s.x, last(s.x)), w = g.tensor(W, type, s.w, last(s.w));
    ma_node y = more ? g.tensor(0, CUDNN_DATA_FLOAT, s.y, last(s.y)) : g.tensor(Y, type, s.y, last(s.y));
    g.convolution(kinds[a->how], x, w, y, s.stride, s.before, s.after);
    if (a->bias) {
        bool end = a->act == MA_NONE;
        ma_node b = g.tensor(BIAS, type, per_channel, last(per_channel));
        ma_node sum = g.tensor(end ? Y : 0, end ? type : CUDNN_DATA_FLOAT, s.y, last(s.y));
        g.pointwise(CUDNN_POINTWISE_ADD, y, b, sum);
        y = sum;
    }
    if (a->act != MA_NONE) g.pointwise(mode_of(a->act), y, NULL, g.tensor(Y, type, s.y, last(s.y)));
    return g.finish(a->exact);
}

const ma_plan *plan_of(ma_cuda *c, const what &a) {
    const window &v = a.v;
    std::vector<int64_t> key = {'c', a.how, a.type, a.exact, a.bias, a.act, v.batch, v.c, v.o};
    for (const int64_t *n : {v.wide, v.narrow, v.k, v.stride, v.before, v.after}) key.insert(key.end(), n, n + 3);
    return ma_plan_of(c, key, make_plan, &a);
}

what plain(const ma_cuda *c, way how, ma_type type, const window &v) {
    return {how, type, type == MA_F32 && !c->tf32, false, MA_NONE, v};
}

/* The plan for as much of GATHER, bias and activation as one engine does; what it does is noted in *a. */
const ma_plan *fused_plan(ma_cuda *c, what *a, bool bias, ma_act act) {
    bool fits = a->type != MA_F32 || act == MA_RELU; /* the other activations are not exact enough for fp32 */
    const struct {
        bool bias;
        ma_act act;
    } tries[] = {{bias, fits ? act : MA_NONE}, {bias, MA_NONE}, {false, MA_NONE}};
    for (auto t : tries) {
        a->bias = t.bias;
        a->act = t.act;
        const ma_plan *p = plan_of(c, *a);
        if (p) return p;
    }
    return NULL;
}

/* cuDNN's scratch where it cannot be asked: see the head of this file. Patches that do not overlap it reads as they
 * are. */
size_t guess(way how, const window &v, ma_type type) {
    int64_t wide = v.batch * volume(v.wide), narrow = rows_of(v), taps = volume(v.k);
    if (type == MA_F32) return (size_t)(wide * v.c + narrow * v.o + taps * v.c * v.o) * sizeof(float);
    if (how == GATHER && taps > 1 && !memcmp(v.k, v.stride, sizeof v.k)) return (size_t)(taps * v.c * v.o) * 2;
    int64_t c = (v.c + 7) / 8 * 8, o = (v.o + 7) / 8 * 8;
    int64_t n = (c == v.c ? 0 : wide * c) + (o == v.o ? 0 : narrow * o);
    return n ? (size_t)(n + taps * c * o) * 2 : 0;
}

/* A part of a convolution: its window, and the elements of x and y that stand before it. */
struct fraction {
    window v;
    int64_t x, y;
};

/* Cuts what counts more elements than fit 32 bits in two, along the samples or else along y's time. false: it need not,
 * or cannot be. A piece of x is written by one piece of y alone only where the windows do not reach over time. */
bool halve(way how, const window &v, fraction part[2]) {
    int64_t x = volume(v.wide) * v.c, y = volume(v.narrow) * v.o, n = v.batch > 1 ? v.batch : v.narrow[0];
    if ((x * v.batch <= INT_MAX && y * v.batch <= INT_MAX) || n < 2 || how == WEIGH) return false;
    if (v.batch == 1 && how == SPREAD && !still(v, 0)) return false;
    for (int i = 0; i < 2; i++) {
        int64_t from = i ? n / 2 : 0, count = i ? n - n / 2 : n / 2;
        window *h = &part[i].v;
        *h = v;
        if (v.batch > 1) {
            h->batch = count;
            part[i].x = from * x;
            part[i].y = from * y;
            continue;
        }
        int64_t first = from * v.stride[0] - v.before[0], end = first + (count - 1) * v.stride[0] + v.k[0];
        int64_t lo = first > 0 ? first : 0, hi = end < v.wide[0] ? end : v.wide[0]; /* what lies in x */
        h->narrow[0] = count;
        h->wide[0] = hi - lo;
        h->before[0] = lo - first;
        h->after[0] = end - hi;
        part[i].x = lo * (x / v.wide[0]);
        part[i].y = from * (y / n);
        if (hi <= lo) return false;
    }
    return true;
}

size_t scratch(ma_cuda *c, way how, ma_type type, const window &v) {
    if (c->device.plan) return guess(how, v, type);
    const ma_plan *p = plan_of(c, plain(c, how, type, v));
    fraction part[2];
    if (p || !halve(how, v, part)) return p ? p->work : 0;
    size_t a = scratch(c, how, type, part[0].v), b = scratch(c, how, type, part[1].v);
    return a > b ? a : b;
}

size_t fused_scratch(ma_cuda *c, ma_type type, const window &v, bool bias, ma_act act) {
    if (c->device.plan) return guess(GATHER, v, type);
    what a = plain(c, GATHER, type, v);
    const ma_plan *p = fused_plan(c, &a, bias, act);
    return p ? p->work : scratch(c, GATHER, type, v);
}

/* ---- without cuDNN ---- */

enum { THREADS = 256, LANES = 32, GROUPS = THREADS / LANES };

/* One value of y. */
template <class T> __global__ void gather(window v, const T *x, const T *w, T *y) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, left = i / v.o, at[3];
    if (i >= v.batch * v.narrow[0] * v.narrow[1] * v.narrow[2] * v.o) return;
    for (int d = 2; d >= 0; d--) {
        at[d] = left % v.narrow[d] * v.stride[d] - v.before[d];
        left /= v.narrow[d];
    }
    const T *f = w + i % v.o * (v.k[0] * v.k[1] * v.k[2] * v.c);
    float sum = 0;
    for (int64_t t = at[0]; t < at[0] + v.k[0]; t++)
        for (int64_t h = at[1]; h < at[1] + v.k[1]; h++)
            for (int64_t q = at[2]; q < at[2] + v.k[2]; q++, f += v.c) {
                if (t < 0 || t >= v.wide[0] || h < 0 || h >= v.wide[1] || q < 0 || q >= v.wide[2]) continue;
                const T *from = x + (((left * v.wide[0] + t) * v.wide[1] + h) * v.wide[2] + q) * v.c;
                for (int64_t k = 0; k < v.c; k++) sum += ma_up(from[k]) * ma_up(f[k]);
            }
    y[i] = ma_down<T>(sum);
}

/* Which narrow position reaches wide position i by tap k; -1: none. */
__device__ int64_t reach(const window &v, int d, int64_t i, int64_t k) {
    int64_t far = i + v.before[d] - k;
    return far >= 0 && far % v.stride[d] == 0 && far / v.stride[d] < v.narrow[d] ? far / v.stride[d] : -1;
}

/* One value of x. */
template <class T> __global__ void spread(window v, const T *y, const T *w, T *x) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, left = i / v.c, at[3];
    if (i >= v.batch * v.wide[0] * v.wide[1] * v.wide[2] * v.c) return;
    for (int d = 2; d >= 0; d--) {
        at[d] = left % v.wide[d];
        left /= v.wide[d];
    }
    int64_t taps = v.k[0] * v.k[1] * v.k[2];
    float sum = 0;
    for (int64_t tap = 0; tap < taps; tap++) {
        int64_t t = reach(v, 0, at[0], tap / (v.k[1] * v.k[2])), h = reach(v, 1, at[1], tap / v.k[2] % v.k[1]);
        int64_t q = reach(v, 2, at[2], tap % v.k[2]);
        if (t < 0 || h < 0 || q < 0) continue;
        const T *from = y + (((left * v.narrow[0] + t) * v.narrow[1] + h) * v.narrow[2] + q) * v.o;
        const T *f = w + tap * v.c + i % v.c;
        for (int64_t o = 0; o < v.o; o++) sum += ma_up(from[o]) * ma_up(f[o * taps * v.c]);
    }
    x[i] = ma_down<T>(sum);
}

/* LANES channels of one tap of one output channel: GROUPS partial sums over the positions, added in order. */
template <class T> __global__ void weigh(window v, const T *x, const T *y, T *dw) {
    __shared__ float part[GROUPS][LANES];
    int64_t strips = (v.c + LANES - 1) / LANES, taps = v.k[0] * v.k[1] * v.k[2];
    int64_t c = blockIdx.x % strips * LANES + threadIdx.x, tap = blockIdx.x / strips % taps;
    int64_t o = blockIdx.x / strips / taps, rows = v.batch * v.narrow[0] * v.narrow[1] * v.narrow[2];
    int64_t k[3] = {tap / (v.k[1] * v.k[2]), tap / v.k[2] % v.k[1], tap % v.k[2]};
    float sum = 0;
    for (int64_t r = threadIdx.y; r < rows && c < v.c; r += GROUPS) {
        int64_t left = r, at[3];
        bool inside = true;
        for (int d = 2; d >= 0; d--) {
            at[d] = left % v.narrow[d] * v.stride[d] - v.before[d] + k[d];
            left /= v.narrow[d];
            inside = inside && at[d] >= 0 && at[d] < v.wide[d];
        }
        if (!inside) continue;
        int64_t from = ((left * v.wide[0] + at[0]) * v.wide[1] + at[1]) * v.wide[2] + at[2];
        sum += ma_up(x[from * v.c + c]) * ma_up(y[r * v.o + o]);
    }
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || c >= v.c) return;
    for (int g = 1; g < GROUPS; g++) sum += part[g][threadIdx.x];
    dw[(o * taps + tap) * v.c + c] = ma_down<T>(sum);
}

/* As run, below. */
template <class T> int slowly(ma_cuda *c, way how, const window &v, void *x, void *w, void *y) {
    int64_t n = how == GATHER ? rows_of(v) * v.o : v.batch * volume(v.wide) * v.c;
    unsigned blocks = (unsigned)((n + THREADS - 1) / THREADS);
    unsigned strips = (unsigned)((v.c + LANES - 1) / LANES * volume(v.k) * v.o);
    switch (how) {
    case GATHER: gather<T><<<blocks, THREADS, 0, c->stream>>>(v, (const T *)x, (const T *)w, (T *)y); break;
    case SPREAD: spread<T><<<blocks, THREADS, 0, c->stream>>>(v, (const T *)y, (const T *)w, (T *)x); break;
    case WEIGH: weigh<T><<<strips, dim3(LANES, GROUPS), 0, c->stream>>>(v, (const T *)x, (const T *)y, (T *)w); break;
    }
    return ma_cuda_bad(c, cudaGetLastError(), "convolution") ? -1 : 0;
}

int slowly(ma_cuda *c, way how, ma_type type, const window &v, void *x, void *w, void *y) {
    return ma_dispatch(type, [&](auto t) { return slowly<decltype(t)>(c, how, v, x, w, y); });
}

/* ---- the three functions ---- */

/* Of x, w and y the one that the way leads to is written, the others are read. */
int run(ma_cuda *c, way how, ma_type type, const window &v, void *x, void *w, void *y, void *work) {
    const ma_plan *p = ma_graph_aligned({x, w, y}) ? plan_of(c, plain(c, how, type, v)) : NULL;
    if (p) return ma_plan_run(c, p, {{X, x}, {W, w}, {Y, y}}, work);
    fraction part[2];
    if (!halve(how, v, part)) return slowly(c, how, type, v, x, w, y);
    const int64_t size = (int64_t)ma_type_size(type);
    for (const fraction &f : part)
        if (run(c, how, type, f.v, (char *)x + f.x * size, w, (char *)y + f.y * size, work)) return -1;
    return 0;
}

bool alike(const ma_call *call) {
    ma_type type = call->out->type;
    return call->in[0]->type == type && call->in[1]->type == type && (!call->in[2] || call->in[2]->type == type) &&
           (!call->save[0] || call->save[0]->type == type);
}

void *bias_of(const ma_call *call) {
    return call->in[2] ? call->in[2]->data : NULL;
}

ma_act act_of(const ma_call *call) {
    return (ma_act)call->i[9];
}

/* Where the sums go: to what is saved for the backward pass, if it is, else to out. */
void *target_of(const ma_call *call) {
    return call->save[0] ? call->save[0]->data : call->out->data;
}

/* What is left to do when the sums (and the bias, the activation) are in their target. */
int complete(const ma_call *call, bool biased, bool activated) {
    const ma_tensor *out = call->out;
    void *from = target_of(call), *bias = biased ? NULL : bias_of(call);
    ma_act act = activated ? MA_NONE : act_of(call);
    if (from == out->data && !bias && act == MA_NONE) return 0;
    return ma_cuda_bias_act((ma_cuda *)call->stream, act, out->type, from, bias, bias && call->save[0] ? from : NULL,
                            out->data, ma_count(out) / out->n[4], out->n[4]);
}

window window_of(const ma_call *call, bool transposed) {
    return transposed ? window_of(call, call->out, call->in[0]) : window_of(call, call->in[0], call->out);
}

/* The backward's work: dout before the activation, one gradient before it is added, scratch. */
struct parts {
    size_t gradient, scratch, bytes; /* where they begin; their end */
};

parts parts_of(ma_cuda *c, const ma_call *call, bool transposed) {
    const ma_tensor *x = call->in[0], *w = call->in[1], *b = call->in[2], *out = call->out;
    window v = window_of(call, transposed);
    size_t most = 0, need = 0;
    auto more = [](size_t *a, size_t n) { *a = n > *a ? n : *a; };
    if (x->want) more(&most, ma_bytes(x));
    if (w->want) more(&most, ma_bytes(w));
    if (x->want) more(&need, scratch(c, transposed ? GATHER : SPREAD, out->type, v));
    if (w->want) more(&need, scratch(c, WEIGH, out->type, v));
    if (b && b->want) more(&need, ma_cuda_columns_work(ma_count(out) / out->n[4], out->n[4]));
    parts p = {act_of(call) == MA_NONE ? 0 : room(ma_bytes(out)), 0, 0};
    p.scratch = p.gradient + room(most);
    p.bytes = p.scratch + need;
    return p;
}

int backward(const ma_call *call, bool transposed) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_tensor *x = call->in[0], *w = call->in[1], *b = call->in[2], *out = call->out, *pre = call->save[0];
    ma_type type = out->type;
    if (!alike(call) || out->grad->type != type || !ma_cuda_dnn(c)) return -1;
    window v = window_of(call, transposed);
    parts p = parts_of(c, call, transposed);
    char *work = (char *)call->work;
    void *d = out->grad->data, *part = work + p.gradient, *rest = work + p.scratch;
    if (act_of(call) != MA_NONE) {
        d = work;
        if (ma_cuda_act_grad(c, act_of(call), type, pre ? pre->data : NULL, out->data, out->grad->data, d,
                             ma_count(out)))
            return -1;
    }
    auto add = [&](int k) {
        const ma_tensor *t = call->in[k];
        return ma_cuda_cast_add(c, t->grad->data, t->grad->type, part, type, ma_count(t), !ma_fresh(call, k));
    };
    void *wide = transposed ? d : x->data, *narrow = transposed ? x->data : d;
    if (w->want && (run(c, WEIGH, type, v, wide, part, narrow, rest) || add(1))) return -1;
    if (x->want && transposed && (run(c, GATHER, type, v, d, w->data, part, rest) || add(0))) return -1;
    if (x->want && !transposed && (run(c, SPREAD, type, v, part, w->data, d, rest) || add(0))) return -1;
    if (b && b->want)
        return ma_cuda_columns(c, d, type, ma_count(out) / out->n[4], out->n[4], (float *)b->grad->data,
                               !ma_fresh(call, 2), rest);
    return 0;
}

/* ---- patches ---- */

/* Windows side by side that tile x. */
bool tiled(const window &v) {
    if (v.wide[2] * v.c > INT_MAX) return false; /* a line, which is counted in 32 bits */
    for (int d = 0; d < 3; d++)
        if (v.stride[d] != v.k[d] || v.narrow[d] * v.k[d] != v.wide[d] || v.before[d] || v.after[d]) return false;
    return true;
}

/* Of patches: whether x is their matrix as it lies. */
bool lies(const window &v) {
    return v.k[0] == 1 && v.k[1] == 1;
}

ma_dense dense_of(const ma_call *call, const window &v) {
    return {rows_of(v), volume(v.k) * v.c, v.o, act_of(call)};
}

/* x to patches (B,T',H',W', kt,kh,kw·C), a warp a line of x, which is W' runs of kw·C values, one for each of W'
 * patches. U: what is copied at a time; run: so many of them. As T = T'·kt, samples need not be told apart. */
template <class U> __global__ void copy_lines(window v, unsigned run, const U *__restrict__ x, U *__restrict__ to) {
    int64_t line = (int64_t)blockIdx.x * GROUPS + threadIdx.y, t = line / v.wide[1], h = line % v.wide[1];
    if (line >= v.batch * v.wide[0] * v.wide[1]) return;
    int64_t first = (t / v.k[0] * v.narrow[1] + h / v.k[1]) * v.narrow[2]; /* the leftmost patch */
    int64_t patch = v.k[0] * v.k[1] * run, tap = t % v.k[0] * v.k[1] + h % v.k[1];
    unsigned width = (unsigned)v.narrow[2] * run;
    x += line * width;
    to += first * patch + tap * run;
    for (unsigned i = threadIdx.x; i < width; i += LANES) to[i / run * patch + i % run] = x[i];
}

/* 16 bytes at a time where runs and address allow, else value by value. `to` is on 256 bytes. */
template <class T> int copy_patches(ma_cuda *c, const window &v, const void *x, void *to) {
    size_t run = (size_t)(v.k[2] * v.c), wide = sizeof(uint4) / sizeof(T);
    unsigned blocks = (unsigned)((v.batch * v.wide[0] * v.wide[1] + GROUPS - 1) / GROUPS);
    dim3 threads(LANES, GROUPS);
    if (run % wide == 0 && (uintptr_t)x % sizeof(uint4) == 0)
        copy_lines<<<blocks, threads, 0, c->stream>>>(v, (unsigned)(run / wide), (const uint4 *)x, (uint4 *)to);
    else
        copy_lines<<<blocks, threads, 0, c->stream>>>(v, (unsigned)run, (const T *)x, (T *)to);
    return ma_cuda_bad(c, cudaGetLastError(), "patches") ? -1 : 0;
}

int forward_tiled(const ma_call *call, const window &v) {
    ma_cuda *c = (ma_cuda *)call->stream;
    ma_dense s = dense_of(call, v);
    const ma_tensor *x = call->in[0];
    if (lies(v)) return ma_cuda_dense_fwd(call, s, x->data);
    void *patches = (char *)call->work + ma_cuda_dense_work(call, s, false); /* (rows, taps·C) */
    if (ma_dispatch(x->type, [&](auto t) { return copy_patches<decltype(t)>(c, v, x->data, patches); })) return -1;
    return ma_cuda_dense_fwd(call, s, patches);
}

/* ---- few channels ---- */

enum { FEW = 4, COLUMNS = 512 };       /* at most: channels; values of a window */
constexpr int64_t UNFOLDED = 16 << 20; /* bytes at a time */

bool few(const window &v) {
    return v.c <= FEW && v.k[0] > 1 && volume(v.k) <= UCHAR_MAX && volume(v.k) * v.c <= COLUMNS &&
           (v.k[0] + 1) * v.wide[1] * v.wide[2] * v.c <= INT_MAX;
}

/* Of the unfolded matrix: a window's values, with zeros up to a multiple of 8; and rows at a time, a multiple of 128.
 */
int columns_of(const window &v) {
    return (int)((volume(v.k) * v.c + 7) / 8 * 8);
}

int64_t rows_at_once(const window &v, ma_type type) {
    int64_t n = UNFOLDED / (columns_of(v) * (int64_t)ma_type_size(type)) / 128 * 128, rows = rows_of(v);
    return n < rows ? n : rows;
}

/* The products' scratch, w with zeros behind its rows, the unfolded rows. */
struct few_parts {
    size_t w, rows, bytes; /* where they begin; their end */
};

few_parts few_parts_of(const window &v, ma_type type) {
    const size_t row = (size_t)columns_of(v) * ma_type_size(type);
    few_parts p = {MA_GEMM_WORK, MA_GEMM_WORK + room((size_t)v.o * row), 0};
    p.bytes = p.rows + (size_t)rows_at_once(v, type) * row;
    return p;
}

/* A value of a window: where it stands, from the window's first on. */
struct tap {
    int at;
    unsigned char t, h, w, there; /* there 0: it is a zero at the row's end */
};

/* Windows number `first` and on, as rows of so many columns. A thread writes some of a row, 16 bytes at a time. */
template <class T>
__global__ void unfold(window v, int64_t first, int64_t rows, int columns, const T *__restrict__ x,
                       T *__restrict__ to) {
    enum { WIDE = 16 / sizeof(T) };
    __shared__ tap taps[COLUMNS];
    const int c = (int)v.c, kh = (int)v.k[1], kw = (int)v.k[2], used = (int)v.k[0] * kh * kw * c;
    for (int k = threadIdx.y * LANES + threadIdx.x; k < columns; k += blockDim.y * LANES) {
        const int w = k / c % kw, h = k / c / kw % kh, t = k / c / kw / kh;
        tap p = {};
        p.at = ((t * (int)v.wide[1] + h) * (int)v.wide[2] + w) * c + k % c;
        p.t = (unsigned char)t;
        p.h = (unsigned char)h;
        p.w = (unsigned char)w;
        p.there = k < used;
        taps[k] = p;
    }
    __syncthreads();
    const int64_t row = (int64_t)blockIdx.x * LANES + threadIdx.x;
    if (row >= rows) return;
    int64_t left = first + row, at[3];
    bool whole = true; /* the window lies in x */
    for (int d = 2; d >= 0; d--) {
        at[d] = left % v.narrow[d] * v.stride[d] - v.before[d];
        left /= v.narrow[d];
        whole = whole && at[d] >= 0 && at[d] + v.k[d] <= v.wide[d];
    }
    x += (((left * v.wide[0] + at[0]) * v.wide[1] + at[1]) * v.wide[2] + at[2]) * v.c;
    for (int k = threadIdx.y * WIDE; k < columns; k += blockDim.y * WIDE) {
        alignas(16) T value[WIDE];
#pragma unroll
        for (int e = 0; e < WIDE; e++) {
            const tap p = taps[k + e];
            bool inside = p.there && (whole || ((uint64_t)(at[0] + p.t) < (uint64_t)v.wide[0] &&
                                                (uint64_t)(at[1] + p.h) < (uint64_t)v.wide[1] &&
                                                (uint64_t)(at[2] + p.w) < (uint64_t)v.wide[2]));
            value[e] = inside ? x[p.at] : ma_down<T>(0);
        }
        *(uint4 *)(to + row * columns + k) = *(const uint4 *)value;
    }
}

int run_unfold(ma_cuda *c, ma_type type, const window &v, int64_t first, int64_t rows, const void *x, void *to) {
    enum { ROW = 4 }; /* threads a row */
    const unsigned blocks = (unsigned)((rows + LANES - 1) / LANES);
    return ma_dispatch(type, [&](auto t) {
        using T = decltype(t);
        unfold<<<blocks, dim3(LANES, ROW), 0, c->stream>>>(v, first, rows, columns_of(v), (const T *)x, (T *)to);
        return ma_cuda_bad(c, cudaGetLastError(), "unfolding") ? -1 : 0;
    });
}

int forward_few(const ma_call *call, const window &v) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_type type = call->out->type;
    const size_t size = ma_type_size(type), row = (size_t)columns_of(v) * size,
                 used = (size_t)(volume(v.k) * v.c) * size;
    const few_parts p = few_parts_of(v, type);
    const int64_t rows = rows_of(v), each = rows_at_once(v, type);
    char *w = (char *)call->work + p.w, *part = (char *)call->work + p.rows;
    if (!alike(call)) return -1;
    if (ma_cuda_bad(c, cudaMemsetAsync(w, 0, (size_t)v.o * row, c->stream), "clearing") ||
        ma_cuda_bad(
            c,
            cudaMemcpy2DAsync(w, row, call->in[1]->data, used, used, (size_t)v.o, cudaMemcpyDeviceToDevice, c->stream),
            "copying weights"))
        return -1;
    auto products = [&](const void *bias) {
        for (int64_t from = 0; from < rows; from += each) {
            ma_gemm g = {};
            g.tb = true;
            g.batch = 1, g.m = each < rows - from ? each : rows - from, g.n = v.o, g.k = columns_of(v);
            g.in = g.out = type;
            g.alpha = 1;
            g.a = part, g.b = w, g.c = (char *)target_of(call) + (size_t)(from * v.o) * size;
            g.bias = bias;
            if (run_unfold(c, type, v, from, g.m, call->in[0]->data, part) || ma_cuda_gemm(c, &g, call->work))
                return -1;
        }
        return 0;
    };
    void *bias = bias_of(call);
    if (bias && !products(bias)) return complete(call, true, false);
    if (products(NULL)) return -1; /* the bias in a second pass */
    c->failure[0] = 0;
    return complete(call, false, false);
}

} // namespace

size_t ma_cuda_conv_work(ma_cuda *c, const ma_call *call, bool backward) {
    window v = window_of(call, false);
    if (tiled(v) && (lies(v) || !backward))
        return ma_cuda_dense_work(call, dense_of(call, v), backward) + (lies(v) ? 0 : ma_bytes(call->in[0]));
    if (backward) return parts_of(c, call, false).bytes;
    if (few(v)) return few_parts_of(v, call->out->type).bytes;
    return fused_scratch(c, call->out->type, v, call->in[2], call->save[0] ? MA_NONE : act_of(call));
}

int ma_cuda_conv_fwd(const ma_call *call) {
    ma_cuda *c = (ma_cuda *)call->stream;
    ma_type type = call->out->type;
    window v = window_of(call, false);
    if (tiled(v)) return forward_tiled(call, v);
    if (few(v)) return forward_few(call, v);
    if (!alike(call) || !ma_cuda_dnn(c)) return -1;
    what a = plain(c, GATHER, type, v);
    void *x = call->in[0]->data, *w = call->in[1]->data, *bias = bias_of(call), *y = target_of(call);
    const bool aligned = ma_graph_aligned({x, w, bias, y});
    const ma_plan *p = aligned ? fused_plan(c, &a, bias, call->save[0] ? MA_NONE : act_of(call)) : NULL;
    int failed = !aligned ? slowly(c, GATHER, type, v, x, w, y)
                 : !p     ? run(c, GATHER, type, v, x, w, y, call->work) /* in parts, if at all */
                 : a.bias ? ma_plan_run(c, p, {{X, x}, {W, w}, {Y, y}, {BIAS, bias}}, call->work)
                          : ma_plan_run(c, p, {{X, x}, {W, w}, {Y, y}}, call->work);
    return failed ? -1 : complete(call, a.bias, a.act != MA_NONE);
}

int ma_cuda_conv_bwd(const ma_call *call) {
    window v = window_of(call, false);
    return tiled(v) && lies(v) ? ma_cuda_dense_bwd(call, dense_of(call, v)) : backward(call, false);
}

size_t ma_cuda_conv_transpose_work(ma_cuda *c, const ma_call *call, bool backward) {
    if (backward) return parts_of(c, call, true).bytes;
    return scratch(c, SPREAD, call->out->type, window_of(call, true));
}

int ma_cuda_conv_transpose_fwd(const ma_call *call) {
    ma_cuda *c = (ma_cuda *)call->stream;
    void *x = target_of(call), *w = call->in[1]->data, *y = call->in[0]->data;
    if (!alike(call) || !ma_cuda_dnn(c)) return -1;
    if (run(c, SPREAD, call->out->type, window_of(call, true), x, w, y, call->work)) return -1;
    return complete(call, false, false);
}

int ma_cuda_conv_transpose_bwd(const ma_call *call) {
    return backward(call, true);
}
