/* relation, cosine: losses on the directions of tokens (METHOD, soft token-relation distillation; REPA).
 *
 * relation: mean over the batch of Σ_ij c(|f_i - f_j|)·relu(|ẑ_i·ẑ_j - m̂_i·m̂_j| - margin). The (F·N)² cosines never
 * stand in memory: a block takes TILE rows of a sample and goes over its columns, TILE at a time: the cosines of z and
 * of m in registers, the weighted signs in shared memory, and from these its rows' part of the gradient to ẑ, which
 * forward leaves in save[0]: (i,j) and (j,i) are the same term, hence 2·Σ_j c·sign·ẑ_j. Tiles of which every c is 0 are
 * passed over. Where the difference is 0 or the margin is not passed, sign is 0. All in fp32 on fp32 cores; a block's
 * sum is double.
 *
 * The unit tokens stand in work, padded with zeros to whole tiles: ẑ and m̂ transposed, (width, tokens), for the
 * cosines, ẑ also as it is, for the gradient. A gradient of at most TILE columns stays in registers; a wider one is
 * added up in save[0], each element by one thread alone.
 *
 * Unit vectors as PyTorch's F.normalize: z / max(|z|, 1e-12). Below that length the divisor is a constant, and
 * backwards nothing is projected out. */
#include "pack.cuh"

using namespace packs;

namespace {

enum { TILE = 64, STEP = 32, SIDE = 4 }; /* STEP: of the widths, at a time. SIDE: a thread has SIDE × SIDE of a tile */
static_assert((TILE / SIDE) * (TILE / SIDE) == THREADS, "a block is a tile");

__device__ inline float sum_warp(float x) {
    for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}

/* The token of this warp. */
__device__ inline int64_t warp_token() {
    return ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 32;
}

/* Blocks for a warp a token; 0: too many. */
unsigned token_blocks(int64_t tokens) {
    int64_t blocks = ceil_div(tokens * 32, THREADS);
    return blocks > INT_MAX ? 0 : (unsigned)blocks;
}

/* max(|z|, 1e-12), by a warp */
__device__ inline float length_of(array z, int64_t start, int64_t d) {
    float sum = 0;
    for (int64_t i = threadIdx.x % 32; i < d; i += 32) {
        float v = load_one(z, start + i);
        sum += v * v;
    }
    float n = sqrtf(sum_warp(sum));
    return n < 1e-12f ? 1e-12f : n; /* NaN goes through */
}

__device__ inline float dot_of(array a, array b, int64_t start, int64_t d) {
    float sum = 0;
    for (int64_t i = threadIdx.x % 32; i < d; i += 32) sum += load_one(a, start + i) * load_one(b, start + i);
    return sum_warp(sum);
}

/* dz += scale·(g - ẑ(ẑ·g))/|z|: the gradient g to a unit vector, carried to the vector it came from. By a warp. */
__device__ inline void denormalise(array z, array g, int64_t start, int64_t d, float scale, array dz) {
    float n = length_of(z, start, d), along = n > 1e-12f ? dot_of(z, g, start, d) / (n * n) : 0;
    for (int64_t i = threadIdx.x % 32; i < d; i += 32)
        add_one(dz, start + i, scale / n * (load_one(g, start + i) - along * load_one(z, start + i)));
}

/* ---- relation ---- */

struct sizes {
    int64_t batch, frames, n, dz, dm; /* n tokens a frame; z and m have widths of their own */
    int64_t tokens, padded;           /* of a sample; to whole tiles */
    int64_t wz, wm;                   /* the widths, padded to TILE */
    int64_t tiles;                    /* in a sample */
};

int64_t whole_tiles(int64_t n) {
    return ceil_div(n, TILE) * TILE;
}

sizes sizes_of(const ma_call *call) {
    const ma_tensor *z = call->in[0]; // (B,F,N,D)
    sizes s = {};
    s.batch = z->n[0], s.frames = z->n[1], s.n = z->n[2], s.dz = z->n[3], s.dm = call->in[1]->n[3];
    s.tokens = s.frames * s.n;
    s.padded = whole_tiles(s.tokens);
    s.wz = whole_tiles(s.dz);
    s.wm = whole_tiles(s.dm);
    s.tiles = s.padded / TILE;
    return s;
}

/* What a block of relation_kernel reads. */
struct units {
    const float *zt, *mt; // (B, wz, padded), (B, wm, padded)
    const float *z;       // (B, padded, wz)
    const float *c;       // (F)
};

/* Unit tokens, a warp each, padding included; flat may be NULL. */
__global__ void __launch_bounds__(THREADS) unit_kernel(array x, int64_t batch, int64_t tokens, int64_t padded,
                                                       int64_t d, int64_t width, float *transposed, float *flat) {
    int64_t w = warp_token(), sample = w / padded, t = w % padded, start = (sample * tokens + t) * d;
    if (sample >= batch) return;
    bool live = t < tokens;
    float n = live ? length_of(x, start, d) : 1;
    for (int64_t i = threadIdx.x % 32; i < width; i += 32) {
        float u = live && i < d ? load_one(x, start + i) / n : 0;
        transposed[(sample * width + i) * padded + t] = u;
        if (flat) flat[w * width + i] = u;
    }
}

/* Shared memory of a block: two operands of a step, or the ẑ of a tile's columns; and a tile of weighted signs, by
 * column, its rows apart so that not all of a warp's stores meet in one bank. */
struct room {
    union {
        float step[2][STEP][TILE];
        float z[TILE][TILE];
    };
    float sign[TILE][TILE + SIDE];
};

/* acc[i][j] += a[i]·b[j] */
__device__ inline void outer_product(float acc[SIDE][SIDE], const float *a, const float *b) {
    float4 u = *(const float4 *)a, v = *(const float4 *)b;
    const float x[SIDE] = {u.x, u.y, u.z, u.w}, y[SIDE] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < SIDE; i++)
#pragma unroll
        for (int j = 0; j < SIDE; j++) acc[i][j] += x[i] * y[j];
}

/* rows × TILE floats that stand `apart` in memory, to shared memory. All threads. */
__device__ inline void copy_rows(float (*to)[TILE], const float *from, int rows, int64_t apart) {
    for (int k = threadIdx.x; k < rows * (TILE / 4); k += THREADS) {
        int r = k / (TILE / 4), x = k % (TILE / 4) * 4;
        *(float4 *)&to[r][x] = *(const float4 *)(from + r * apart + x);
    }
}

/* This thread's cosines of a tile: rows and columns of t (width, padded). */
__device__ inline void cosines(room &s, const float *t, int64_t width, int64_t padded, int64_t row, int64_t column,
                               float acc[SIDE][SIDE]) {
    int y = threadIdx.x / (TILE / SIDE) * SIDE, x = threadIdx.x % (TILE / SIDE) * SIDE;
#pragma unroll
    for (int k = 0; k < SIDE * SIDE; k++) acc[k / SIDE][k % SIDE] = 0;
    for (int64_t d = 0; d < width; d += STEP) {
        __syncthreads(); /* the step before, or the gradient, still reads */
        copy_rows(s.step[0], t + d * padded + row, STEP, padded);
        copy_rows(s.step[1], t + d * padded + column, STEP, padded);
        __syncthreads();
#pragma unroll 8
        for (int k = 0; k < STEP; k++) outer_product(acc, &s.step[0][k][y], &s.step[1][k][x]);
    }
}

/* grad (tokens, dz) of the block's rows += signᵀ·ẑ of a tile's columns. Where the width is one tile, held is the sum so
 * far and nothing is written yet. */
__device__ inline void add_gradient(room &s, const sizes &n, const float *z, int64_t row, float *grad,
                                    float held[SIDE][SIDE]) {
    int y = threadIdx.x / (TILE / SIDE) * SIDE, x = threadIdx.x % (TILE / SIDE) * SIDE;
    bool one = n.wz == TILE;
    for (int64_t d = 0; d < n.wz; d += TILE) {
        __syncthreads(); /* the signs are written; the cosines' steps and the columns before are read */
        copy_rows(s.z, z + d, TILE, n.wz);
        __syncthreads();
        for (int k = 0; k < SIDE * SIDE && !one; k++) {
            int64_t t = row + y + k / SIDE, e = d + x + k % SIDE;
            held[k / SIDE][k % SIDE] = t < n.tokens && e < n.dz ? grad[t * n.dz + e] : 0;
        }
#pragma unroll 8
        for (int j = 0; j < TILE; j++) outer_product(held, &s.sign[j][y], &s.z[j][x]);
        for (int k = 0; k < SIDE * SIDE && !one; k++) {
            int64_t t = row + y + k / SIDE, e = d + x + k % SIDE;
            if (t < n.tokens && e < n.dz) grad[t * n.dz + e] = held[k / SIDE][k % SIDE];
        }
    }
}

/* Whether any pair of a row tile and a column tile counts. */
__device__ inline bool counts(const sizes &n, const float *c, int64_t row, int64_t column) {
    int64_t end = n.tokens - 1, r0 = row / n.n, r1 = min(row + TILE - 1, end) / n.n;
    int64_t c0 = column / n.n, c1 = min(column + TILE - 1, end) / n.n;
    int64_t nearest = max(max(c0 - r1, r0 - c1), (int64_t)0), farthest = max(c1 - r0, r1 - c0);
    for (int64_t k = nearest; k <= farthest; k++)
        if (c[k] != 0) return true;
    return false;
}

/* Compares the cosines of a tile: the weighted differences' sum; sz becomes the weighted signs. */
__device__ inline float compare(const sizes &n, const float *c, int64_t row, int64_t column, float margin,
                                float sz[SIDE][SIDE], const float sm[SIDE][SIDE]) {
    int y = threadIdx.x / (TILE / SIDE) * SIDE, x = threadIdx.x % (TILE / SIDE) * SIDE;
    int64_t frame[SIDE];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < SIDE; i++) frame[i] = quotient(row + y + i, n.n);
#pragma unroll
    for (int j = 0; j < SIDE; j++) {
        int64_t at = column + x + j, other = quotient(at, n.n);
#pragma unroll
        for (int i = 0; i < SIDE; i++) {
            bool live = at < n.tokens && row + y + i < n.tokens;
            float weight = live ? c[other < frame[i] ? frame[i] - other : other - frame[i]] : 0;
            float diff = sz[i][j] - sm[i][j], over = fabsf(diff) - margin;
            if (weight != 0) sum += weight * (over <= 0 ? 0 : over); // NaN goes through
            sz[i][j] = over > 0 ? (diff > 0 ? weight : diff < 0 ? -weight : 0) : 0;
        }
    }
    return sum;
}

__global__ void __launch_bounds__(THREADS) relation_kernel(sizes n, units u, float margin, double *part, float *grad) {
    __shared__ __align__(16) room s;
    int64_t sample = blockIdx.x / n.tiles, row = blockIdx.x % n.tiles * TILE;
    int y = threadIdx.x / (TILE / SIDE) * SIDE, x = threadIdx.x % (TILE / SIDE) * SIDE;
    const float *zt = u.zt + sample * n.wz * n.padded, *mt = u.mt + sample * n.wm * n.padded,
                *z = u.z + sample * n.padded * n.wz;
    float held[SIDE][SIDE] = {}, by = 2 / (float)n.batch;
    double total = 0;
    if (grad) grad += sample * n.tokens * n.dz;
    for (int64_t column = 0; column < n.tokens; column += TILE) {
        if (!counts(n, u.c, row, column)) continue;
        float sz[SIDE][SIDE], sm[SIDE][SIDE];
        cosines(s, zt, n.wz, n.padded, row, column, sz);
        cosines(s, mt, n.wm, n.padded, row, column, sm);
        total += compare(n, u.c, row, column, margin, sz, sm);
        if (!grad) continue;
#pragma unroll
        for (int j = 0; j < SIDE; j++)
            *(float4 *)&s.sign[x + j][y] = make_float4(by * sz[0][j], by * sz[1][j], by * sz[2][j], by * sz[3][j]);
        add_gradient(s, n, z + column * n.wz, row, grad, held);
    }
    for (int k = 0; k < SIDE * SIDE && grad && n.wz == TILE; k++) {
        int64_t t = row + y + k / SIDE;
        if (t < n.tokens && x + k % SIDE < n.dz) grad[t * n.dz + x + k % SIDE] = held[k / SIDE][k % SIDE];
    }
    total = sum_block<THREADS>(total);
    if (!threadIdx.x) part[blockIdx.x] = total;
}

__global__ void __launch_bounds__(THREADS)
    relation_bwd_kernel(array z, array g, int64_t tokens, int64_t d, const float *dloss, array dz) {
    int64_t t = warp_token();
    if (t < tokens) denormalise(z, g, t * d, d, *dloss, dz);
}

int64_t width(const ma_tensor *t) {
    return t->n[t->nd - 1];
}

} // namespace

/* Unit tokens, then the blocks' sums. */
size_t ma_cuda_relation_work(ma_cuda *, const ma_call *call, bool backward) {
    sizes s = sizes_of(call);
    size_t floats = (size_t)(s.batch * s.padded) * (size_t)(2 * s.wz + s.wm);
    return backward ? 0 : floats * sizeof(float) + (size_t)(s.batch * s.tiles) * sizeof(double);
}

int ma_cuda_relation_fwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    sizes s = sizes_of(call);
    array z = data_of(call->in[0]), m = data_of(call->in[1]);
    int64_t padded = s.batch * s.padded, blocks = s.batch * s.tiles;
    float *zt = (float *)call->work, *flat = zt + padded * s.wz, *mt = flat + padded * s.wz;
    double *part = (double *)(mt + padded * s.wm);
    float *grad = call->save[0] ? (float *)call->save[0]->data : nullptr; // (B,F,N,D)
    if (!grain(1, {z, m}) || !token_blocks(padded) || s.tokens < 1) return -1;
    /* a wide gradient is added up where it stands */
    if (grad && s.wz > TILE &&
        ma_cuda_bad(d, cudaMemsetAsync(grad, 0, (size_t)(s.batch * s.tokens * s.dz) * sizeof(float), d->stream),
                    "relation"))
        return -1;
    unit_kernel<<<token_blocks(padded), THREADS, 0, d->stream>>>(z, s.batch, s.tokens, s.padded, s.dz, s.wz, zt, flat);
    unit_kernel<<<token_blocks(padded), THREADS, 0, d->stream>>>(m, s.batch, s.tokens, s.padded, s.dm, s.wm, mt,
                                                                 nullptr);
    if (launched(d, "relation")) return -1;
    units u = {zt, mt, flat, (const float *)call->in[2]->data};
    relation_kernel<<<(unsigned)blocks, THREADS, 0, d->stream>>>(s, u, (float)call->f[0], part, grad);
    if (launched(d, "relation")) return -1;
    return run_total(d, "relation", part, blocks, 1 / (double)s.batch, call->out->data);
}

int ma_cuda_relation_bwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    array z = data_of(call->in[0]), g = data_of(call->save[0]), dz = grad_of(call, 0);
    int64_t dim = width(call->in[0]), tokens = ma_count(call->in[0]) / dim;
    if (!dz.p) return 0;
    if (!grain(1, {z, dz}) || !token_blocks(tokens)) return -1;
    relation_bwd_kernel<<<token_blocks(tokens), THREADS, 0, d->stream>>>(z, g, tokens, dim,
                                                                         (const float *)call->out->grad->data, dz);
    return launched(d, "relation's gradient");
}

/* ---- cosine ---- */

namespace {

__global__ void __launch_bounds__(THREADS) cosine_kernel(array z, array m, int64_t tokens, int64_t d, double *part) {
    int64_t t = warp_token();
    if (t >= tokens) return;
    float dot = dot_of(z, m, t * d, d), a = length_of(z, t * d, d), b = length_of(m, t * d, d);
    if (threadIdx.x % 32 == 0) part[t] = dot / ((double)a * b);
}

__global__ void __launch_bounds__(THREADS)
    cosine_bwd_kernel(array z, array m, int64_t tokens, int64_t d, const float *dloss, array dz) {
    int64_t t = warp_token();
    if (t < tokens) denormalise(z, m, t * d, d, -*dloss / (float)tokens / length_of(m, t * d, d), dz);
}

} // namespace

/* One double a token. */
size_t ma_cuda_cosine_work(ma_cuda *, const ma_call *call, bool backward) {
    return backward ? 0 : (size_t)(ma_count(call->in[0]) / width(call->in[0])) * sizeof(double);
}

int ma_cuda_cosine_fwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    array z = data_of(call->in[0]), m = data_of(call->in[1]);
    int64_t dim = width(call->in[0]), tokens = ma_count(call->in[0]) / dim;
    double *part = (double *)call->work;
    if (!grain(1, {z, m}) || !token_blocks(tokens)) return -1;
    cosine_kernel<<<token_blocks(tokens), THREADS, 0, d->stream>>>(z, m, tokens, dim, part);
    if (launched(d, "cosine")) return -1;
    return run_total(d, "cosine", part, tokens, -1 / (double)tokens, call->out->data);
}

int ma_cuda_cosine_bwd(const ma_call *call) {
    ma_cuda *d = (ma_cuda *)call->stream;
    array z = data_of(call->in[0]), m = data_of(call->in[1]), dz = grad_of(call, 0);
    int64_t dim = width(call->in[0]), tokens = ma_count(call->in[0]) / dim;
    if (!dz.p) return 0;
    if (!grain(1, {z, m, dz}) || !token_blocks(tokens)) return -1;
    cosine_bwd_kernel<<<token_blocks(tokens), THREADS, 0, d->stream>>>(z, m, tokens, dim,
                                                                       (const float *)call->out->grad->data, dz);
    return launched(d, "cosine's gradient");
}
