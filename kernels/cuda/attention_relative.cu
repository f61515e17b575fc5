/* attention_relative: softmax(scale·q·kᵀ + bias)·v, the bias by head and distance. Forward only: what T5 needs, whose
 * texts are short.
 *
 * In 16 bits, with heads of up to 128 values, a multiple of 8: a block takes 64 queries of a head, 16 a warp, against
 * tiles of 64 keys, on the tensor cores (mma m16n8k16), with a running maximum and sum a query. A warp's scores become
 * the first operand of the second product in its registers. All else: a warp a query, a lane a key, in fp32.
 *
 * Fragments, with g = lane/4 and t = lane%4 (PTX, "Matrix Fragments for mma.m16n8k16"): the accumulator's four values
 * are (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1); the first operand's pairs (g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8);
 * the second's, of k rows and n columns, begin at k = 2t and 2t+8 of column g.
 * Traps: what is not there must be zero in q, k and v (0·NaN is NaN), and -∞ among the scores. A row in shared memory
 * is 16 bytes longer than its values: eight rows then lie in different banks. */
#include "pack.cuh"

#include <cmath>
#include <type_traits>

using namespace packs;

namespace {

struct shape {
    int64_t heads, l, m, d; /* l queries, m keys */
    float scale;
    const float *bias; /* (H, L+M-1) */
    __host__ __device__ int64_t ld() const {
        return heads * d;
    }
    /* Where head `head` of all samples' starts in what has n tokens. */
    __device__ int64_t start(int64_t head, int64_t n) const {
        return head / heads * n * ld() + head % heads * d;
    }
    /* What the head has for key 0 and query 0: for key j and query i it stands j - i further. */
    __device__ const float *origin(int64_t head) const {
        return bias + head % heads * (l + m - 1) + l - 1;
    }
};

/* ---- tensor cores ---- */

enum { TILE = 64, WARPS = 4, ROWS = 16 }; /* queries and keys of a tile; queries of a warp */

/* D: a head's values, rounded up; zeros beyond. */
template <class T, int D> struct __align__(16) tiles {
    T k[TILE][D + 8], v[TILE][D + 8];
    float by[2 * TILE]; /* the bias of distances from 1-TILE on, counted from the tile's corner */
};

__device__ inline unsigned word(const void *p) {
    return *(const unsigned *)p;
}

template <class T> __device__ inline unsigned pair(float first, float second);
template <> __device__ inline unsigned pair<__nv_bfloat16>(float first, float second) {
    return narrow(first, second, MA_BF16);
}
template <> __device__ inline unsigned pair<__half>(float first, float second) {
    return narrow(first, second, MA_F16);
}

/* c += a·b */
template <class T> __device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    if constexpr (std::is_same<T, __half>::value)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8×8 matrices, each turned: rows from the addresses of lanes 0-7, 8-15, 16-23, 24-31. */
__device__ inline void load_turned(unsigned (&r)[4], const void *p) {
    unsigned at = (unsigned)__cvta_generic_to_shared(p);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* A tile of keys or values from token `first` on; zeros where there is none. from: at the head's start. */
template <class T, int D>
__device__ inline void fetch_tile(T (*to)[D + 8], const T *from, int64_t first, const shape &s) {
    for (int i = threadIdx.x; i < TILE * D / 8; i += WARPS * 32) {
        int row = i / (D / 8), column = i % (D / 8) * 8;
        bool there = first + row < s.m && column < s.d;
        uint4 value = {};
        if (there) value = *(const uint4 *)(from + (first + row) * s.ld() + column);
        *(uint4 *)&to[row][column] = value;
    }
}

/* A warp's 16 queries, as first operands. from: at the warp's first query. */
template <class T, int D>
__device__ inline void fetch_queries(unsigned (&q)[D / 16][4], const T *from, int64_t rows, const shape &s) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < D / 16 * 4; i++) {
        int row = g + (i % 2) * 8, column = i / 4 * 16 + 2 * t + (i % 4 / 2) * 8;
        q[i / 4][i % 4] = row < rows && column < s.d ? word(from + row * s.ld() + column) : 0;
    }
}

/* The largest of the four lanes that share a row; and the sum. */
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* Scaled and biased scores of the warp's queries with a tile of keys, of which `keys` are there. first: the warp's
 * first query in the block. */
template <class T, int D>
__device__ inline void score_tile(float (&p)[TILE / 8][4], const unsigned (&q)[D / 16][4], const tiles<T, D> &s,
                                  int first, int64_t keys, float scale) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
        p[n][0] = p[n][1] = p[n][2] = p[n][3] = 0;
#pragma unroll
        for (int c = 0; c < D / 16; c++) {
            const T *k = &s.k[n * 8 + g][c * 16 + 2 * t];
            multiply<T>(p[n], q[c], word(k), word(k + 8));
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int query = first + g + e / 2 * 8, key = n * 8 + 2 * t + e % 2;
            p[n][e] = key < keys ? p[n][e] * scale + s.by[key - query + TILE - 1] : -INFINITY;
        }
    }
}

/* Scores become exp(score - maximum); acc and sum follow the maximum. Half h of a thread's values is row g + 8h. */
template <int D>
__device__ inline void soften(float (&p)[TILE / 8][4], float (&acc)[D / 8][4], float (&top)[2], float (&sum)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float high = top[h];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) high = fmaxf(high, fmaxf(p[n][2 * h], p[n][2 * h + 1]));
        high = quad_max(high);
        float keep = __expf(top[h] - high);
        top[h] = high;
        sum[h] *= keep;
#pragma unroll
        for (int n = 0; n < D / 8; n++) acc[n][2 * h] *= keep, acc[n][2 * h + 1] *= keep;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; e++) {
                p[n][e] = __expf(p[n][e] - high);
                sum[h] += p[n][e];
            }
    }
}

/* acc += p·v */
template <class T, int D>
__device__ inline void gather(float (&acc)[D / 8][4], const float (&p)[TILE / 8][4], const tiles<T, D> &s) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        const float(&x)[4] = p[2 * k], (&y)[4] = p[2 * k + 1];
        const unsigned a[4] = {pair<T>(x[0], x[1]), pair<T>(x[2], x[3]), pair<T>(y[0], y[1]), pair<T>(y[2], y[3])};
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            unsigned b[4];
            load_turned(b, &s.v[k * 16 + lane % 16][n * 8 + lane / 16 * 8]);
            multiply<T>(acc[n], a, b[0], b[1]);
            multiply<T>(acc[n + 1], a, b[2], b[3]);
        }
    }
}

/* One block: a tile of queries of one head. */
template <class T, int D>
__global__ void __launch_bounds__(WARPS * 32, D > 64 ? 2 : 4)
    tile_kernel(shape s, const T *q, const T *k, const T *v, T *out) {
    __shared__ tiles<T, D> room;
    int64_t tiles_a_head = (s.l + TILE - 1) / TILE, head = blockIdx.x / tiles_a_head;
    int64_t block = blockIdx.x % tiles_a_head * TILE, keys = s.start(head, s.m);
    int first = threadIdx.x / 32 * ROWS, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    int64_t query = block + first, at = s.start(head, s.l) + query * s.ld();
    const float *by = s.origin(head) - block - (TILE - 1); /* query block + TILE-1 with key 0 */

    unsigned mine[D / 16][4];
    float acc[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    fetch_queries<T, D>(mine, q + at, s.l - query, s);
    for (int64_t key = 0; key < s.m; key += TILE) {
        __syncthreads();
        fetch_tile<T, D>(room.k, k + keys, key, s);
        fetch_tile<T, D>(room.v, v + keys, key, s);
        for (int i = threadIdx.x; i < 2 * TILE - 1; i += WARPS * 32) {
            int64_t apart = key + i - block - (TILE - 1); /* of a key from a query; not all are in the table */
            room.by[i] = apart > -s.l && apart < s.m ? by[key + i] : 0;
        }
        __syncthreads();
        float p[TILE / 8][4];
        score_tile<T, D>(p, mine, room, first, s.m - key, s.scale);
        soften<D>(p, acc, top, sum);
        gather<T, D>(acc, p, room);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float inverse = 1 / quad_sum(sum[h]);
        T *row = out + at + (g + 8 * h) * s.ld();
        if (query + g + 8 * h >= s.l) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            if (n * 8 < s.d)
                *(unsigned *)(row + n * 8 + 2 * t) = pair<T>(acc[n][2 * h] * inverse, acc[n][2 * h + 1] * inverse);
    }
}

/* ---- any type ---- */

enum { HELD = 4 }; /* values of a head that a lane has */

/* One warp: a query. */
__global__ void __launch_bounds__(THREADS) row_kernel(shape s, array q, array k, array v, array out, int64_t rows) {
    int lane = threadIdx.x % 32;
    int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int64_t head = row / s.l, query = row % s.l, ld = s.ld();
    int64_t at = s.start(head, s.l) + query * ld, keys = s.start(head, s.m);
    const float *by = s.origin(head) - query;
    float acc[HELD] = {}, top = -INFINITY, sum = 0;
    for (int64_t key = 0; key < s.m; key += 32) {
        bool there = key + lane < s.m;
        float score = 0;
        for (int64_t c = 0; c < s.d && there; c++)
            score += load_one(q, at + c) * load_one(k, keys + (key + lane) * ld + c);
        score = there ? score * s.scale + by[key + lane] : -INFINITY;
        float high = fmaxf(top, score);
        for (int n = 16; n; n /= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, n));
        float keep = expf(top - high), p = expf(score - high), part = p;
        for (int n = 16; n; n /= 2) part += __shfl_xor_sync(~0u, part, n);
        sum = sum * keep + part;
        top = high;
        for (int i = 0; i < HELD; i++) acc[i] *= keep;
        for (int j = 0; j < 32 && key + j < s.m; j++) {
            float weight = __shfl_sync(~0u, p, j);
            for (int i = 0; i < HELD; i++)
                if (lane + 32 * i < s.d) acc[i] += weight * load_one(v, keys + (key + j) * ld + lane + 32 * i);
        }
    }
    for (int i = 0; i < HELD; i++)
        if (lane + 32 * i < s.d) store_one(out, at + lane + 32 * i, acc[i] / sum);
}

/* ---- the op ---- */

template <class T, int D> int run_tiles(const ma_call *call, const shape &s) {
    ma_cuda *c = (ma_cuda *)call->stream;
    int64_t blocks = call->in[0]->n[0] * s.heads * ((s.l + TILE - 1) / TILE);
    if (blocks > INT_MAX) return -1;
    tile_kernel<T, D>
        <<<(unsigned)blocks, WARPS * 32, 0, c->stream>>>(s, (const T *)call->in[0]->data, (const T *)call->in[1]->data,
                                                         (const T *)call->in[2]->data, (T *)call->out->data);
    return launched(c, "attention_relative");
}

int run_rows(const ma_call *call, const shape &s) {
    ma_cuda *c = (ma_cuda *)call->stream;
    array q = data_of(call->in[0]), k = data_of(call->in[1]), v = data_of(call->in[2]), out = data_of(call->out);
    int64_t rows = call->in[0]->n[0] * s.heads * s.l, blocks = ceil_div(rows, THREADS / 32);
    if (blocks > INT_MAX || s.d > 32 * HELD || !grain(1, {q, k, v, out})) return -1;
    row_kernel<<<(unsigned)blocks, THREADS, 0, c->stream>>>(s, q, k, v, out, rows);
    return launched(c, "attention_relative");
}

} // namespace

int ma_cuda_attention_relative_fwd(const ma_call *call) {
    const ma_tensor *q = call->in[0], *k = call->in[1], *v = call->in[2], *out = call->out; // (B,L,H,D), (B,M,H,D)
    shape s = {q->n[2], q->n[1], k->n[1], q->n[3], (float)call->f[0], (const float *)call->in[3]->data};
    bool alike = q->type == k->type && q->type == v->type && q->type == out->type;
    if (!alike || q->type == MA_F32 || s.d > 128 ||
        grain(s.d, {data_of(q), data_of(k), data_of(v), data_of(out)}) != PACK)
        return run_rows(call, s);
    if (q->type == MA_BF16)
        return s.d <= 64 ? run_tiles<__nv_bfloat16, 64>(call, s) : run_tiles<__nv_bfloat16, 128>(call, s);
    return s.d <= 64 ? run_tiles<__half, 64>(call, s) : run_tiles<__half, 128>(call, s);
}
