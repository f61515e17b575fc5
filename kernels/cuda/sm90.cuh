/* sm90: what the attention of Hopper shares, forward (attention_sm90_fwd.cu) and backward (attention_sm90_bwd.cu):
 * barriers in shared memory and the TMA that fetches tiles, wgmma's products on them, the maps that TMA reads.
 *
 * Tiles in shared memory: panels of 64 columns, 128 bytes a row, rows in groups of 8, 16-byte chunk c of row r at place
 * c ^ r%8 (the 128-byte swizzle of TMA and wgmma, which repeats every 1024 bytes, so tiles begin at multiples of that).
 *
 * Traps: TMA fills with zeros what lies outside a tensor. Products run on while the code goes on: registers that a
 * product reads or writes are not touched before its wait, and `hold` keeps the compiler from moving their uses across
 * it. The instructions are 9.0's alone: build.mk sets MA_SM90A where code for sm_90a is wanted; older toolkits lack the
 * way to the driver's encoder. */
#ifndef MA_CUDA_SM90_CUH
#define MA_CUDA_SM90_CUH

#include "cuda.h"

#if defined MA_SM90A && CUDART_VERSION >= 12050
#define MA_HOPPER

#include <climits>
#include <cmath>
#include <cstdio>
#include <cuda.h>
#include <type_traits>

namespace sm90 {

enum {
    WARPGROUP = 128,         /* threads */
    GROUP_ROWS = 64,         /* that a warpgroup owns of a block's */
    PANEL = 64,              /* columns */
    BOX = 32,                /* rows that TMA fetches at a time */
    SWIZZLED = 1024,         /* bytes after which the swizzle repeats */
    MOST_SHARED = 227 * 1024 /* bytes a block */
};

constexpr float LOG2_E = 1.44269504f;

/* ---- shared memory: barriers, and TMA ---- */

__device__ __forceinline__ unsigned address(const void *shared) {
    return (unsigned)__cvta_generic_to_shared(shared);
}

/* The first place in a block's dynamic shared memory where tiles may begin. */
__device__ __forceinline__ void *swizzled(unsigned char *raw) {
    return raw + (-address(raw) & (SWIZZLED - 1));
}

__device__ __forceinline__ void barrier_init(uint64_t *b, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(b)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(uint64_t *b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(b)) : "memory");
}

/* Arrives, and makes the phase last until so many bytes have come, too. */
__device__ __forceinline__ void expect(uint64_t *b, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(b)), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool passed(uint64_t *b, int phase) {
    unsigned done;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}\n"
                 : "=r"(done)
                 : "r"(address(b)), "r"(phase & 1)
                 : "memory");
    return done;
}

/* Until phase number `phase` (from 0) is over. */
__device__ __forceinline__ void wait_for(uint64_t *b, int phase) {
    while (!passed(b, phase)) {
    }
}

/* Before anybody uses barriers that this thread has made; the block is to wait for it. */
__device__ __forceinline__ void barriers_made() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* R rows from row `first` on of a head, D columns, into a tile. */
template <int D, int R>
__device__ __forceinline__ void fetch_tile(uint16_t *tile, const CUtensorMap *from, int first, int head, int sample,
                                           uint64_t *b) {
#pragma unroll
    for (int c = 0; c < D; c += PANEL)
#pragma unroll
        for (int r = 0; r < R; r += BOX)
            asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                         "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(address(tile + c * R + r * PANEL)),
                         "l"(from), "r"(c), "r"(first + r), "r"(head), "r"(sample), "r"(address(b))
                         : "memory");
}

__device__ __forceinline__ void fetch_floats(float *to, const float *from, unsigned bytes, uint64_t *b) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address(to)),
        "l"(from), "r"(bytes), "r"(address(b))
        : "memory");
}

/* ---- wgmma: sums (64, N) += a (64, 16)·b (16, N) by a warpgroup ----
 * A thread's sums, as its a: rows lane/4 and lane/4 + 8 of its warp's 16, columns 2·(lane%4) and the next of each 8:
 * d[4·j + 2·h + e] is row lane/4 + 8·h, column 8·j + 2·(lane%4) + e. */

/* A matrix in shared memory whose rows (K-major: of a or bᵀ; else: of b) are those of a panel. panel_bytes: from one
 * panel to the next, where it spans two. */
__device__ __forceinline__ uint64_t matrix(const uint16_t *first, unsigned panel_bytes) {
    const uint64_t swizzle_128 = (uint64_t)1 << 62, eight_rows = (uint64_t)(1024 >> 4) << 32;
    return swizzle_128 | eight_rows | (uint64_t)(panel_bytes >> 4) << 16 | address(first) >> 4;
}

__device__ __forceinline__ void products_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until no more than so many of the last commits are under way. */
template <int LEFT> __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

template <int N> __device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
    for (int k = 0; k < N; k++) asm volatile("" : "+f"(d[k])::"memory");
}

template <int N> __device__ __forceinline__ void hold(unsigned (&a)[N][4]) {
#pragma unroll
    for (int k = 0; k < 4 * N; k++) asm volatile("" : "+r"(a[k / 4][k % 4])::"memory");
}

#define D16(d, k)                                                                                                      \
    "+f"(d[k]), "+f"(d[k + 1]), "+f"(d[k + 2]), "+f"(d[k + 3]), "+f"(d[k + 4]), "+f"(d[k + 5]), "+f"(d[k + 6]),        \
        "+f"(d[k + 7]), "+f"(d[k + 8]), "+f"(d[k + 9]), "+f"(d[k + 10]), "+f"(d[k + 11]), "+f"(d[k + 12]),             \
        "+f"(d[k + 13]), "+f"(d[k + 14]), "+f"(d[k + 15])
#define R32                                                                                                            \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "   \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define R48 R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define R64 R48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/* One instruction for both types; WITH: the operands after the sums, which the last arguments name. */
#define PRODUCT(T, SHAPE, WITH, ...)                                                                                   \
    if constexpr (std::is_same_v<T, __half>)                                                                           \
        asm volatile("wgmma.mma_async.sync.aligned." SHAPE ".f32.f16.f16 " WITH __VA_ARGS__);                          \
    else                                                                                                               \
        asm volatile("wgmma.mma_async.sync.aligned." SHAPE ".f32.bf16.bf16 " WITH __VA_ARGS__)

/* Of two matrices in shared memory, both K-major. ADD false: sums = … */
template <class T, int N, bool ADD> __device__ __forceinline__ void product(float (&d)[N / 2], uint64_t a, uint64_t b) {
    static_assert(N == 64 || N == 96 || N == 128, "");
    if constexpr (N == 64)
        PRODUCT(T, "m64n64k16", "{" R32 "}, %32, %33, %34, 1, 1, 0, 0;",
                : D16(d, 0), D16(d, 16)
                : "l"(a), "l"(b), "n"(ADD));
    else if constexpr (N == 96)
        PRODUCT(T, "m64n96k16", "{" R48 "}, %48, %49, %50, 1, 1, 0, 0;",
                : D16(d, 0), D16(d, 16), D16(d, 32)
                : "l"(a), "l"(b), "n"(ADD));
    else
        PRODUCT(T, "m64n128k16", "{" R64 "}, %64, %65, %66, 1, 1, 0, 0;",
                : D16(d, 0), D16(d, 16), D16(d, 32), D16(d, 48)
                : "l"(a), "l"(b), "n"(ADD));
}

/* sums += a·b: a in registers, b in shared memory, its rows the products' inner dimension. */
template <class T, int N>
__device__ __forceinline__ void product(float (&d)[N / 2], const unsigned (&a)[4], uint64_t b) {
    static_assert(N == 64 || N == 128, "");
    if constexpr (N == 64)
        PRODUCT(T, "m64n64k16", "{" R32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;",
                : D16(d, 0), D16(d, 16)
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else
        PRODUCT(T, "m64n128k16", "{" R64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;",
                : D16(d, 0), D16(d, 16), D16(d, 32), D16(d, 48)
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* ---- of attention ---- */

/* s = x·yᵀ of N rows y and the warpgroup's rows x, out of X. */
template <class T, int D, int N, int X>
__device__ __forceinline__ void scores(float (&s)[N / 2], const uint16_t *x, const uint16_t *y) {
    const uint64_t a = matrix(x, 16), b = matrix(y, 16);
    product<T, N, false>(s, a, b);
#pragma unroll
    for (int k = 1; k < D / 16; k++)
        product<T, N, true>(s, a + (k / 4 * X * 128 + k % 4 * 32 >> 4), b + (k / 4 * N * 128 + k % 4 * 32 >> 4));
    products_commit();
}

/* sum += p·y of N rows y */
template <class T, int D, int N>
__device__ __forceinline__ void gather(float (&sum)[D / 2], unsigned (&p)[N / 16][4], const uint16_t *y) {
    const uint64_t b = matrix(y, N * 128);
    hold(p);
    products_fence();
#pragma unroll
    for (int k = 0; k < N / 16; k++) product<T, D>(sum, p[k], b + (k * 16 * 128 >> 4));
    products_commit();
}

template <class T> __device__ __forceinline__ unsigned pair(float first, float second) {
    if constexpr (std::is_same_v<T, __half>) {
        __half2 p = __floats2half2_rn(first, second);
        return *(unsigned *)&p;
    } else {
        __nv_bfloat162 p = __floats2bfloat162_rn(first, second);
        return *(unsigned *)&p;
    }
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- on the host ---- */

/* The map of t, (B,rows,H,D), with its numbers at `data`: a box is BOX rows of one panel of one head. */
inline bool make_map(ma_cuda *c, CUtensorMap *map, const ma_tensor *t, const void *data) {
    typedef CUresult (*encoder)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    const cuuint64_t rows = (cuuint64_t)t->n[1], heads = (cuuint64_t)t->n[2], d = (cuuint64_t)t->n[3];
    const cuuint64_t n[4] = {d, rows, heads, (cuuint64_t)t->n[0]};
    const cuuint64_t bytes[3] = {heads * d * 2, d * 2, rows * heads * d * 2}; /* from row, head, sample to the next */
    const cuuint32_t box[4] = {PANEL, BOX, 1, 1}, step[4] = {1, 1, 1, 1};
    const CUtensorMapDataType type =
        t->type == MA_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    void *f = NULL;
    cudaDriverEntryPointQueryResult how = cudaDriverEntryPointSymbolNotFound;
    cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &how);
    if (ma_cuda_bad(c, e, "attention: cuTensorMapEncodeTiled")) return false;
    if (how == cudaDriverEntryPointSuccess &&
        ((encoder)f)(map, type, 4, (void *)data, n, bytes, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS)
        return true;
    snprintf(c->failure, sizeof c->failure, "attention: TMA takes no tensors like these");
    return false;
}

/* ROOM: what a block has in shared memory. Each head's rows take a whole number of blocks. */
template <class ROOM, class JOB>
bool launch(ma_cuda *c, void (*kernel)(JOB), const JOB &a, int64_t heads, int64_t rows, int block_rows, int threads) {
    const int bytes = (int)sizeof(ROOM) + SWIZZLED; /* to begin at a multiple of that */
    static_assert(sizeof(ROOM) + SWIZZLED <= MOST_SHARED, "");
    const int64_t blocks = heads * ((rows + block_rows - 1) / block_rows);
    if (blocks > INT_MAX) return false;
    if (ma_cuda_bad(c, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                    "attention: shared memory"))
        return false;
    kernel<<<(unsigned)blocks, threads, bytes, c->stream>>>(a);
    return !ma_cuda_bad(c, cudaGetLastError(), "attention");
}

} // namespace sm90

#endif
#endif
