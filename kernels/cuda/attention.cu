/* attention: softmax(scale·q·kᵀ)·v. In 16 bits with heads of up to 128 values, a multiple of 8: on cuDNN's fused
 * engines, whose graphs are those of the formulas, operation by operation (cuDNN knows them again), but on Hopper by
 * attention_sm90_*.cu. All else (fp32 among it) goes through kernels of our own, in fp32: a tile of queries against a
 * tile of keys in shared memory, with a running maximum and sum a query; backwards P is computed again from the saved
 * log-sum-exp, once by blocks that own keys and once by blocks that own queries.
 *
 * Backwards, with P = exp(S - lse) and δ_i = Σ_d dout_id·out_id:
 *   dv = Pᵀ·dout   dS = P∘(dout·vᵀ - δ)   dq = scale·dS·k   dk = scale·dSᵀ·q
 *
 * Traps: cuDNN's faster backward sums dq with atomics and does not give the same bits twice; the graph in which dq is a
 * plain product is computed in order, but keeps dS, B·H·L·M values of 16 bits, in its workspace. So the heads are taken
 * a few at a time, as many as MA_GRAPH_WORK allows. Its gradients are written to the workspace, then added.
 * Limits: heads of up to 128 values; backwards and not on Hopper, beyond 41,000 tokens our own kernels take over, which
 * are slow. */
#include "graph.h"
#include "pack.cuh"

#include <climits>
#include <cmath>
#include <type_traits>

namespace {

/* ---- cuDNN ---- */

enum { Q = 1, K, V, OUT, LSE, SCALE, ONE, DOUT, DQ, DK, DV, DELTA }; /* numbers of the tensors in a graph */

struct sizes {
    int64_t batch, heads, l, m, d; /* l queries, m keys */
    ma_type type;
    bool stats;   /* forward: lse is wanted */
    int64_t all;  /* heads in memory, of which `heads` are computed */
    int64_t keys; /* keys in memory, of which the first m are */
};

sizes sizes_of(const ma_call *call) {
    const ma_tensor *q = call->in[0], *k = call->in[1]; /* (B,L,H,D), (B,M,H,D) */
    return {q->n[0], q->n[2], q->n[1], k->n[1], q->n[3], q->type, call->save[0] != NULL, q->n[2], k->n[1]};
}

/* Sizes and strides as cuDNN names them, (B, H, rows, columns), of what lies as (B, rows, H, D) and so on. */
typedef std::vector<int64_t> list;

struct layouts {
    list tokens_q, stride_q;   /* (B,H,L,D) */
    list tokens_k, stride_k;   /* (B,H,M,D) */
    list turned_k, turn_k;     /* (B,H,D,M) */
    list scores, score_stride; /* (B,H,L,M), inside */
    list turned, turn;         /* (B,H,M,L), the same values */
    list rows, row_stride;     /* (B,H,L,1), dense in all heads; of those computed, inside */
    list inner_rows;
};

layouts layouts_of(const sizes &s) {
    int64_t b = s.batch, h = s.heads, l = s.l, m = s.m, d = s.d, ld = s.all * d, sample = s.keys * ld;
    return {{b, h, l, d},    {l * ld, d, ld, 1},       {b, h, m, d}, {sample, d, ld, 1},
            {b, h, d, m},    {sample, d, 1, ld},       {b, h, l, m}, {h * l * m, l * m, m, 1},
            {b, h, m, l},    {h * l * m, l * m, 1, m}, {b, h, l, 1}, {s.all * l, l, 1, 1},
            {h * l, l, 1, 1}};
}

constexpr cudnnDataType_t F32 = CUDNN_DATA_FLOAT;

ma_plan make_forward(ma_cuda *c, const void *of) {
    const sizes *s = (const sizes *)of;
    layouts a = layouts_of(*s);
    cudnnDataType_t type = ma_dnn_type(s->type);
    ma_graph g(c);
    auto score = [&](cudnnDataType_t t) { return g.tensor(0, t, a.scores, a.score_stride); };
    auto row = [&] { return g.tensor(0, F32, a.rows, a.inner_rows); };
    ma_node q = g.tensor(Q, type, a.tokens_q, a.stride_q), k = g.tensor(K, type, a.turned_k, a.turn_k);
    ma_node v = g.tensor(V, type, a.tokens_k, a.stride_k), out = g.tensor(OUT, type, a.tokens_q, a.stride_q);
    ma_node lse = g.tensor(s->stats ? LSE : 0, F32, a.rows, a.row_stride);
    ma_node qk = score(F32), scaled = score(F32), top = row(), below = score(F32), e = score(F32), sum = row();
    ma_node log = row(), p = score(type);
    g.matmul(q, k, qk);
    g.pointwise(CUDNN_POINTWISE_MUL, qk, g.scalar(SCALE, 4), scaled);
    g.reduce(CUDNN_REDUCE_TENSOR_MAX, scaled, top);
    g.pointwise(CUDNN_POINTWISE_SUB, scaled, top, below);
    g.pointwise(CUDNN_POINTWISE_EXP, below, NULL, e);
    g.reduce(CUDNN_REDUCE_TENSOR_ADD, e, sum);
    g.pointwise(CUDNN_POINTWISE_LOG, sum, NULL, log);
    g.pointwise(CUDNN_POINTWISE_ADD, top, log, lse);
    g.pointwise(CUDNN_POINTWISE_DIV, e, sum, p);
    g.matmul(p, v, out);
    return g.finish(false);
}

ma_plan make_backward(ma_cuda *c, const void *of) {
    const sizes *s = (const sizes *)of;
    layouts a = layouts_of(*s);
    cudnnDataType_t type = ma_dnn_type(s->type);
    ma_graph g(c);
    auto query = [&](int64_t id) { return g.tensor(id, type, a.tokens_q, a.stride_q); };
    auto key = [&](int64_t id) { return g.tensor(id, type, a.tokens_k, a.stride_k); };
    auto turned_key = [&](int64_t id) { return g.tensor(id, type, a.turned_k, a.turn_k); };
    auto score = [&](cudnnDataType_t t) { return g.tensor(0, t, a.scores, a.score_stride); };
    auto turned = [&] { return g.tensor(0, type, a.turned, a.turn); };
    ma_node q = query(Q), k = turned_key(K), v = turned_key(V), out = query(OUT), dout = query(DOUT);
    ma_node scale = g.scalar(SCALE, 4), lse = g.tensor(LSE, F32, a.rows, a.row_stride, sizeof(float));
    /* δ. It is multiplied by one, as without that cuDNN does not know the graph. */
    ma_node products = g.tensor(0, F32, a.tokens_q, {s->heads * s->l * s->d, s->l * s->d, s->heads * s->d, 1});
    ma_node sums = g.tensor(0, F32, a.rows, a.inner_rows), delta = g.tensor(DELTA, F32, a.rows, a.inner_rows);
    g.pointwise(CUDNN_POINTWISE_MUL, dout, out, products);
    g.reduce(CUDNN_REDUCE_TENSOR_ADD, products, sums);
    g.pointwise(CUDNN_POINTWISE_MUL, sums, g.scalar(ONE, 4), delta);
    /* P and dv */
    ma_node qk = score(F32), scaled = score(F32), below = score(F32), p = score(F32), pt = turned();
    g.matmul(q, k, qk);
    g.pointwise(CUDNN_POINTWISE_MUL, qk, scale, scaled);
    g.pointwise(CUDNN_POINTWISE_SUB, scaled, lse, below);
    g.pointwise(CUDNN_POINTWISE_EXP, below, NULL, p);
    g.reshape(p, pt);
    g.matmul(pt, dout, key(DV));
    /* dS and dk */
    ma_node dp = score(F32), less = score(F32), weighed = score(F32), ds = score(type), dst = turned();
    g.matmul(dout, v, dp);
    g.pointwise(CUDNN_POINTWISE_SUB, dp, delta, less);
    g.pointwise(CUDNN_POINTWISE_MUL, less, p, weighed);
    g.pointwise(CUDNN_POINTWISE_MUL, weighed, scale, ds);
    g.reshape(ds, dst);
    g.matmul(dst, q, key(DK));
    /* dq, as a plain product: in order */
    ma_node straight = key(0);
    g.reshape(k, straight);
    g.matmul(ds, straight, query(DQ));
    return g.finish(false);
}

/* Whether cuDNN is to be asked at all. A single query with a single key it does not take; in 9.10.0 and 9.10.1 its
 * backward is wrong. */
bool fits(const sizes &s, bool backward) {
    if (s.type == MA_F32 || s.d % 8 || s.d > 128 || s.m < 1 || (s.l == 1 && s.m == 1)) return false;
    return !backward || (cudnnGetVersion() != 91000 && cudnnGetVersion() != 91001);
}

/* The keys that cuDNN's backward may have: before 9.16 it is wrong, without a mask, where they do not fill its tiles.
 * What is left, less than a tile, goes through our own kernels: gradients are sums over keys. */
sizes bulk_of(sizes s) {
    if (cudnnGetVersion() < 91600) s.m = s.m / 128 * 128;
    return s;
}

const ma_plan *plan_of(ma_cuda *c, const sizes &s, bool backward) {
    if (!fits(s, backward)) return NULL;
    return ma_plan_of(c, {'a', backward, s.type, s.stats, s.batch, s.heads, s.l, s.m, s.d, s.all, s.keys},
                      backward ? make_backward : make_forward, &s);
}

size_t room(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* What cuDNN's backward needs for one head of one sample; it was read off its plans. */
size_t head_scratch(const sizes &s) {
    return (size_t)((s.l + 63) / 64 * 64) * (size_t)((s.m + 127) / 128 * 128) * 2;
}

enum { EXTRA = 1024 }; /* bytes that cuDNN's plans need besides */

/* The samples and heads of one call backwards, evenly cut. */
sizes chunk_of(sizes s) {
    int64_t most = (int64_t)((MA_GRAPH_WORK - EXTRA) / head_scratch(s));
    int64_t calls = most ? (s.heads - 1) / most + 1 : s.heads;
    s.batch = most > s.heads ? (most / s.heads < s.batch ? most / s.heads : s.batch) : 1;
    s.heads = (s.heads - 1) / calls + 1;
    s.stats = false;
    return s;
}

/* ---- our own: TILE queries against TILE keys, 4 × 4 values a thread ---- */

enum { TILE = 64, SIDE = 16, THREADS = SIDE * SIDE, EACH = TILE / SIDE };

/* Where the values of one head begin, and how far its tokens are apart. */
struct view {
    int64_t heads, l, m, d;
    int64_t first, keys; /* of the m, and how many there are in memory */
    float scale;
    __device__ int64_t ld() const {
        return heads * d;
    }
    __device__ int64_t query(int64_t head) const {
        return head / heads * l * ld() + head % heads * d;
    }
    __device__ int64_t key(int64_t head) const {
        return (head / heads * keys + first) * ld() + head % heads * d;
    }
};

/* A tile in shared memory has rows of STEPS·SIDE values, zeros where there are none, and one more against conflicts. */
template <int STEPS> struct tile {
    static constexpr int WIDTH = STEPS * SIDE + 1;
    float v[TILE][WIDTH];
};
struct score_tile {
    float v[TILE][TILE + 1];
};

/* Tokens first … of a head, of which there are n in all. */
template <class T, int STEPS>
__device__ void fetch(tile<STEPS> *t, const T *from, int64_t first, int64_t n, int64_t d, int64_t ld) {
    for (int i = threadIdx.x; i < TILE * STEPS * SIDE; i += THREADS) {
        int r = i / (STEPS * SIDE), c = i % (STEPS * SIDE);
        t->v[r][c] = first + r < n && c < d ? ma_up(from[(first + r) * ld + c]) : 0;
    }
}

/* a·bᵀ: rows y·EACH + i of a, rows x + SIDE·j of b. */
template <int STEPS> __device__ void products(const tile<STEPS> &a, const tile<STEPS> &b, float s[EACH][EACH]) {
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) s[i][j] = 0;
    for (int c = 0; c < STEPS * SIDE; c++) {
        float f[EACH], g[EACH];
        for (int i = 0; i < EACH; i++) f[i] = a.v[y * EACH + i][c];
        for (int j = 0; j < EACH; j++) g[j] = b.v[x + SIDE * j][c];
        for (int i = 0; i < EACH; i++)
            for (int j = 0; j < EACH; j++) s[i][j] += f[i] * g[j];
    }
}

/* sum += p·b: rows y·EACH + i, columns x + SIDE·j. */
template <int STEPS> __device__ void gather(const score_tile &p, const tile<STEPS> &b, float sum[EACH][STEPS]) {
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    for (int k = 0; k < TILE; k++) {
        float f[EACH], g[STEPS];
        for (int i = 0; i < EACH; i++) f[i] = p.v[y * EACH + i][k];
        for (int j = 0; j < STEPS; j++) g[j] = b.v[k][x + SIDE * j];
        for (int i = 0; i < EACH; i++)
            for (int j = 0; j < STEPS; j++) sum[i][j] += f[i] * g[j];
    }
}

/* f(place, value) for every sum that is inside: of n tokens of d values, ld apart; the tile begins at `first`. */
template <int STEPS, class F>
__device__ void each(const float sum[EACH][STEPS], int64_t first, int64_t n, int64_t d, int64_t ld, F f) {
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < STEPS; j++)
            if (first + y * EACH + i < n && x + SIDE * j < d) f((first + y * EACH + i) * ld + x + SIDE * j, sum[i][j]);
}

__device__ void share(score_tile *t, const float s[EACH][EACH]) {
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) t->v[y * EACH + i][x + SIDE * j] = s[i][j];
}

/* Over the SIDE threads that share a row; all of them get it. */
__device__ float row_max(float a) {
    for (int k = SIDE / 2; k; k /= 2) a = fmaxf(a, __shfl_xor_sync(~0u, a, k));
    return a;
}

__device__ float row_sum(float a) {
    for (int k = SIDE / 2; k; k /= 2) a += __shfl_xor_sync(~0u, a, k);
    return a;
}

template <int STEPS> struct forward_room {
    tile<STEPS> q, k, v;
    score_tile p;
};

/* One block: a tile of queries of one head. */
template <class T, int STEPS>
__global__ void __launch_bounds__(THREADS) forward(view a, const T *q, const T *k, const T *v, T *out, float *lse) {
    extern __shared__ float shared[];
    forward_room<STEPS> &s = *(forward_room<STEPS> *)shared;
    int64_t tiles = (a.l + TILE - 1) / TILE, head = blockIdx.x / tiles, first = blockIdx.x % tiles * TILE;
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    float acc[EACH][STEPS] = {}, top[EACH], sum[EACH] = {}, score[EACH][EACH];
    for (int i = 0; i < EACH; i++) top[i] = -INFINITY;
    fetch(&s.q, q + a.query(head), first, a.l, a.d, a.ld());
    for (int64_t key = 0; key < a.m; key += TILE) {
        __syncthreads();
        fetch(&s.k, k + a.key(head), key, a.m, a.d, a.ld());
        fetch(&s.v, v + a.key(head), key, a.m, a.d, a.ld());
        __syncthreads();
        products(s.q, s.k, score);
        for (int i = 0; i < EACH; i++) {
            float high = top[i], part = 0;
            for (int j = 0; j < EACH; j++) {
                score[i][j] = key + x + SIDE * j < a.m ? score[i][j] * a.scale : -INFINITY;
                high = fmaxf(high, score[i][j]);
            }
            high = row_max(high);
            for (int j = 0; j < EACH; j++) {
                score[i][j] = expf(score[i][j] - high);
                part += score[i][j];
            }
            float keep = expf(top[i] - high);
            sum[i] = sum[i] * keep + row_sum(part);
            top[i] = high;
            for (int j = 0; j < STEPS; j++) acc[i][j] *= keep;
        }
        share(&s.p, score);
        __syncwarp(); /* a row of p is written and read within one warp */
        gather(s.p, s.v, acc);
    }
    for (int i = 0; i < EACH; i++) {
        for (int j = 0; j < STEPS; j++) acc[i][j] /= sum[i];
        int64_t row = first + y * EACH + i;
        if (lse && x == 0 && row < a.l) lse[head * a.l + row] = top[i] + logf(sum[i]);
    }
    T *to = out + a.query(head);
    each(acc, first, a.l, a.d, a.ld(), [&](int64_t at, float x) { to[at] = ma_down<T>(x); });
}

/* δ (B,H,L): a warp a row. */
template <class T> __global__ void row_products(view a, int64_t rows, const T *out, const T *dout, float *delta) {
    int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int64_t head = row / a.l, at = a.query(head) + row % a.l * a.ld();
    float sum = 0;
    for (int64_t k = threadIdx.x % 32; k < a.d; k += 32) sum += ma_up(out[at + k]) * ma_up(dout[at + k]);
    for (int k = 16; k; k /= 2) sum += __shfl_xor_sync(~0u, sum, k);
    if (threadIdx.x % 32 == 0) delta[row] = sum;
}

template <int STEPS> struct backward_room {
    tile<STEPS> x1, x2, y1, y2;
    score_tile p; /* P, then dS; or dS alone */
};

/* What a backward pass reads, and adds to. */
template <class T> struct pass {
    const T *q, *k, *v, *dout;
    const float *lse, *delta;
    packs::array dq, dk, dv; /* p NULL: not wanted */
};

/* The thread's values of P and dS for the tiles in s, of rows from `row` and columns from `column` on. */
template <int STEPS, bool KEYS>
__device__ void scores(const view &a, const backward_room<STEPS> &s, const float *lse, const float *delta, int64_t row,
                       int64_t column, float p[EACH][EACH], float ds[EACH][EACH]) {
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    products(s.x1, s.y1, p);
    products(s.x2, s.y2, ds);
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) {
            int64_t own = row + y * EACH + i, other = column + x + SIDE * j;
            int64_t query = KEYS ? other : own, key = KEYS ? own : other;
            bool inside = query < a.l && key < a.m;
            p[i][j] = inside ? expf(p[i][j] * a.scale - lse[query]) : 0;
            ds[i][j] = inside ? p[i][j] * (ds[i][j] - delta[query]) * a.scale : 0;
        }
}

template <int STEPS>
__device__ void add_sums(packs::array to, int64_t begin, const float sum[EACH][STEPS], int64_t first, int64_t n,
                         const view &a) {
    if (!to.p) return;
    each(sum, first, n, a.d, a.ld(), [&](int64_t at, float x) { packs::add_one(to, begin + at, x); });
}

/* One block: a tile of rows X of one head, against all rows Y of the other side. KEYS: it owns keys, X1 = k, X2 = v,
 * Y1 = q, Y2 = dout, and sums dk and dv; else queries, X1 = q, X2 = dout, Y1 = k, Y2 = v, and dq. */
template <class T, int STEPS, bool KEYS> __global__ void __launch_bounds__(THREADS) backward(view a, pass<T> of) {
    extern __shared__ float shared[];
    backward_room<STEPS> &s = *(backward_room<STEPS> *)shared;
    int64_t n = KEYS ? a.m : a.l, others = KEYS ? a.l : a.m;
    int64_t tiles = (n + TILE - 1) / TILE, head = blockIdx.x / tiles, first = blockIdx.x % tiles * TILE;
    int64_t x = KEYS ? a.key(head) : a.query(head), y = KEYS ? a.query(head) : a.key(head);
    float sum1[EACH][STEPS] = {}, sum2[EACH][STEPS] = {}, p[EACH][EACH], ds[EACH][EACH];
    fetch(&s.x1, (KEYS ? of.k : of.q) + x, first, n, a.d, a.ld());
    fetch(&s.x2, (KEYS ? of.v : of.dout) + x, first, n, a.d, a.ld());
    for (int64_t other = 0; other < others; other += TILE) {
        __syncthreads();
        fetch(&s.y1, (KEYS ? of.q : of.k) + y, other, others, a.d, a.ld());
        fetch(&s.y2, (KEYS ? of.dout : of.v) + y, other, others, a.d, a.ld());
        __syncthreads();
        scores<STEPS, KEYS>(a, s, of.lse + head * a.l, of.delta + head * a.l, first, other, p, ds);
        if (KEYS) {
            share(&s.p, p);
            __syncwarp(); /* as forward: rows stay within a warp */
            gather(s.p, s.y2, sum2);
            __syncwarp();
        }
        share(&s.p, ds);
        __syncwarp();
        gather(s.p, s.y1, sum1);
    }
    if (KEYS) add_sums(of.dv, x, sum2, first, n, a);
    add_sums(KEYS ? of.dk : of.dq, x, sum1, first, n, a);
}

/* A kernel with so much shared memory a block. */
template <class F> bool allow(ma_cuda *c, F *kernel, size_t bytes) {
    return !ma_cuda_bad(c, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                        "attention: shared memory");
}

/* All queries, the keys from `first` on. */
view view_of(const ma_call *call, int64_t first) {
    const ma_tensor *q = call->in[0];
    const int64_t keys = call->in[1]->n[1];
    return {q->n[2], q->n[1], keys - first, q->n[3], first, keys, (float)call->f[0]};
}

int64_t blocks_of(int64_t heads, int64_t n) {
    return heads * ((n + TILE - 1) / TILE);
}

template <class T, int STEPS> int forward_as(const ma_call *call) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_tensor *q = call->in[0];
    int64_t blocks = blocks_of(q->n[0] * q->n[2], q->n[1]);
    size_t bytes = sizeof(forward_room<STEPS>);
    if (blocks > INT_MAX || !allow(c, forward<T, STEPS>, bytes)) return -1;
    forward<T, STEPS><<<(unsigned)blocks, THREADS, bytes, c->stream>>>(
        view_of(call, 0), (const T *)q->data, (const T *)call->in[1]->data, (const T *)call->in[2]->data,
        (T *)call->out->data, call->save[0] ? (float *)call->save[0]->data : NULL);
    return ma_cuda_launched(call);
}

template <class T, int STEPS, bool KEYS> int launch_backward(const ma_call *call, const view &a, const pass<T> &of) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_tensor *q = call->in[0];
    int64_t blocks = blocks_of(q->n[0] * q->n[2], KEYS ? a.m : a.l);
    size_t bytes = sizeof(backward_room<STEPS>);
    if (blocks > INT_MAX || !allow(c, backward<T, STEPS, KEYS>, bytes)) return -1;
    backward<T, STEPS, KEYS><<<(unsigned)blocks, THREADS, bytes, c->stream>>>(a, of);
    return ma_cuda_launched(call);
}

/* The keys from `first` on. */
template <class T, int STEPS> int backward_as(const ma_call *call, float *delta, int64_t first) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_tensor *q = call->in[0], *k = call->in[1], *v = call->in[2], *out = call->out;
    view a = view_of(call, first);
    int64_t rows = q->n[0] * q->n[2] * a.l, groups = (rows - 1) / (THREADS / 32) + 1;
    if (groups > INT_MAX) return -1;
    packs::array dq = packs::grad_of(call, 0);
    if (first) dq.fresh = false; /* it has the part that is of the keys before */
    pass<T> of = {(const T *)q->data,
                  (const T *)k->data,
                  (const T *)v->data,
                  (const T *)out->grad->data,
                  (const float *)call->save[0]->data,
                  delta,
                  dq,
                  packs::grad_of(call, 1),
                  packs::grad_of(call, 2)};
    row_products<T><<<(unsigned)groups, THREADS, 0, c->stream>>>(a, rows, (const T *)out->data, of.dout, delta);
    if (q->want && launch_backward<T, STEPS, false>(call, a, of)) return -1;
    if ((k->want || v->want) && launch_backward<T, STEPS, true>(call, a, of)) return -1;
    return ma_cuda_launched(call);
}

/* Calls f with the type and the steps that heads of d values take. */
template <class F> int with_steps(const ma_call *call, F f) {
    int64_t d = call->in[0]->n[3];
    return ma_dispatch(call->in[0]->type, [&](auto t) {
        if (d <= SIDE) return f(t, std::integral_constant<int, 1>{});
        if (d <= 2 * SIDE) return f(t, std::integral_constant<int, 2>{});
        if (d <= 4 * SIDE) return f(t, std::integral_constant<int, 4>{});
        if (d <= 8 * SIDE) return f(t, std::integral_constant<int, 8>{});
        return -1;
    });
}

/* ---- the op ---- */

size_t delta_bytes(const ma_call *call) {
    return room((size_t)(ma_count(call->in[0]) / call->in[0]->n[3]) * sizeof(float));
}

bool alike(const ma_call *call) {
    ma_type type = call->out->type;
    return call->in[0]->type == type && call->in[1]->type == type && call->in[2]->type == type;
}

/* What a backward pass has in the workspace: δ, and where cuDNN computes it the gradients before they are added. */
struct results {
    float *delta;
    void *dq, *dk, *dv, *scratch;
};

/* Where it lies; returns what is before the scratch. */
size_t lay_out(const ma_call *call, results *to) {
    size_t q = room(ma_bytes(call->in[0])), k = room(ma_bytes(call->in[1])), delta = delta_bytes(call);
    char *grads = (char *)call->work + delta;
    if (to) *to = {(float *)call->work, grads, grads + q, grads + q + k, grads + q + 2 * k};
    return delta + q + 2 * k;
}

/* One chunk: samples from b on, heads from h on. */
int run_chunk(const ma_call *call, const sizes &part, const results &to, int64_t b, int64_t h) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_plan *p = plan_of(c, part, true);
    if (!p) return -1;
    const float scale = (float)call->f[0], one = 1;
    int64_t item = 2, ld = part.all * part.d; /* bytes a value; values a token */
    int64_t query = (b * part.l * ld + h * part.d) * item, key = (b * part.keys * ld + h * part.d) * item;
    auto at = [](const void *base, int64_t bytes) { return (const void *)((const char *)base + bytes); };
    const float *lse = (const float *)call->save[0]->data + (b * part.all + h) * part.l;
    return ma_plan_run(c, p,
                       {{Q, at(call->in[0]->data, query)},
                        {K, at(call->in[1]->data, key)},
                        {V, at(call->in[2]->data, key)},
                        {OUT, at(call->out->data, query)},
                        {DOUT, at(call->out->grad->data, query)},
                        {LSE, lse},
                        {SCALE, &scale},
                        {ONE, &one},
                        {DELTA, to.delta},
                        {DQ, at(to.dq, query)},
                        {DK, at(to.dk, key)},
                        {DV, at(to.dv, key)}},
                       to.scratch);
}

/* The largest chunk; the last ones of samples and of heads are smaller where they do not divide. */
sizes cut(const sizes &chunk, int64_t batch_left, int64_t heads_left) {
    sizes s = chunk;
    if (batch_left < s.batch) s.batch = batch_left;
    if (heads_left < s.heads) s.heads = heads_left;
    return s;
}

/* Whether cuDNN has plans for all chunks, and the scratch that they need. */
bool chunks_known(ma_cuda *c, const sizes &s, size_t *scratch) {
    sizes chunk = chunk_of(s);
    *scratch = 0;
    for (int64_t batch : {chunk.batch, (s.batch - 1) % chunk.batch + 1})
        for (int64_t heads : {chunk.heads, (s.heads - 1) % chunk.heads + 1}) {
            const ma_plan *p = plan_of(c, cut(chunk, batch, heads), true);
            if (!p) return false;
            if (p->work > *scratch) *scratch = p->work;
        }
    return true;
}

int run_chunks(const ma_call *call, const sizes &s, const results &to) {
    sizes chunk = chunk_of(s);
    for (int64_t b = 0; b < s.batch; b += chunk.batch)
        for (int64_t h = 0; h < s.heads; h += chunk.heads)
            if (run_chunk(call, cut(chunk, s.batch - b, s.heads - h), to, b, h)) return -1;
    return 0;
}

/* To the gradient of in[i], the first `rows` tokens of every sample. */
int add_gradient(const ma_call *call, int i, const void *part, int64_t rows) {
    const ma_tensor *t = call->in[i];
    const bool add = !ma_fresh(call, i);
    const int64_t sample = ma_count(t) / t->n[0], n = rows * (sample / t->n[1]);
    for (int64_t b = 0; t->want && b < t->n[0]; b++) {
        char *to = (char *)t->grad->data + (size_t)(b * sample) * ma_type_size(t->grad->type);
        const char *from = (const char *)part + (size_t)(b * sample) * ma_type_size(t->type);
        if (ma_cuda_cast_add((ma_cuda *)call->stream, to, t->grad->type, from, t->type, n, add)) return -1;
    }
    return 0;
}

/* The first s.m keys, by cuDNN. */
int dnn_backward(const ma_call *call, const sizes &s) {
    results to;
    lay_out(call, &to);
    if (run_chunks(call, s, to) || add_gradient(call, 0, to.dq, s.l)) return -1;
    return add_gradient(call, 1, to.dk, s.m) || add_gradient(call, 2, to.dv, s.m) ? -1 : 0;
}

} // namespace

/* In a plan, which has no cuDNN to ask, its scratch is what its plans were seen to need. */
size_t ma_cuda_attention_work(ma_cuda *c, const ma_call *call, bool backward) {
    if (ma_cuda_attention_sm90(c, call)) return backward ? ma_cuda_attention_sm90_work(call) : 0; /* also for δ alone */
    if (!backward) {
        const ma_plan *p = c->device.plan ? NULL : plan_of(c, sizes_of(call), false);
        return c->device.plan ? EXTRA : p ? p->work : 0;
    }
    const sizes s = bulk_of(sizes_of(call));
    if (!fits(s, true)) return delta_bytes(call);
    const sizes part = chunk_of(s);
    size_t scratch = (size_t)(part.batch * part.heads) * head_scratch(s) + EXTRA;
    if (!c->device.plan && !chunks_known(c, s, &scratch)) return delta_bytes(call);
    return lay_out(call, NULL) + scratch;
}

int ma_cuda_attention_fwd(const ma_call *call) {
    ma_cuda *c = (ma_cuda *)call->stream;
    void *q = call->in[0]->data, *k = call->in[1]->data, *v = call->in[2]->data, *out = call->out->data;
    void *lse = call->save[0] ? call->save[0]->data : NULL;
    if (!alike(call)) return -1;
    const bool hopper = ma_cuda_attention_sm90(c, call), aligned = ma_graph_aligned({q, k, v, out, lse});
    if (hopper && aligned) return ma_cuda_attention_sm90_fwd(call);
    const bool asked = !hopper && aligned && fits(sizes_of(call), false);
    if (asked && !ma_cuda_dnn(c)) return -1;
    const ma_plan *p = asked ? plan_of(c, sizes_of(call), false) : NULL;
    if (!p) return with_steps(call, [&](auto t, auto steps) { return forward_as<decltype(t), steps.value>(call); });
    const float scale = (float)call->f[0];
    if (!lse) return ma_plan_run(c, p, {{Q, q}, {K, k}, {V, v}, {OUT, out}, {SCALE, &scale}}, call->work);
    return ma_plan_run(c, p, {{Q, q}, {K, k}, {V, v}, {OUT, out}, {LSE, lse}, {SCALE, &scale}}, call->work);
}

int ma_cuda_attention_bwd(const ma_call *call) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_tensor *q = call->in[0], *k = call->in[1], *v = call->in[2], *out = call->out;
    if (!alike(call) || out->grad->type != out->type) return -1;
    const bool hopper = ma_cuda_attention_sm90(c, call);
    const bool aligned =
        ma_graph_aligned({q->data, k->data, v->data, out->data, out->grad->data, packs::grad_of(call, 0).p,
                          packs::grad_of(call, 1).p, packs::grad_of(call, 2).p});
    if (hopper && aligned) return ma_cuda_attention_sm90_bwd(call);
    const sizes bulk = bulk_of(sizes_of(call));
    const bool asked = !hopper && aligned && fits(bulk, true);
    if (asked && !ma_cuda_dnn(c)) return -1;
    size_t scratch;
    const bool dnn = asked && chunks_known(c, bulk, &scratch);
    const int64_t done = dnn ? bulk.m : 0;
    if (dnn && dnn_backward(call, bulk)) return -1;
    if (done == k->n[1]) return 0;
    return with_steps(call, [&](auto t, auto steps) {
        return backward_as<decltype(t), steps.value>(call, (float *)call->work, done);
    });
}
