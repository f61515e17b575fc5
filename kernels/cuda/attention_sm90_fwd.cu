/* attention_sm90_fwd: attention on Hopper's tensor cores (wgmma, fed by TMA), in 16 bits, for heads of up to 128
 * values, a multiple of 8, and scale > 0. attention.cu has all other cards, types and sizes.
 *
 * A block owns 64 queries of a head for each of its warpgroups, and passes over tiles of N keys (Dao et al. 2022,
 * FlashAttention; Shah et al. 2024, FlashAttention-3, for what runs beside what):
 *   S = q·kᵀ   top' = max(top, S)   keep = exp(scale·(top - top'))   P = exp(scale·(S - top'))
 *   sum = keep·sum + ΣP   out = keep·out + P·v;   at the end out /= sum, lse = scale·top + log(sum)
 * S comes out of the tensor cores in just the layout that P goes in with, so that it stays in registers. One more warp
 * only fetches tiles, some ahead. S of a tile and P·v of the one before are started together; while P·v runs, so do the
 * exponentials of S. They take as long as the products where heads are of 64 values, so there three warpgroups take
 * turns at starting products, and one's exponentials run beside the others' products. With heads of 128 the products
 * are the more, and room there is for two.
 *
 * No sum is over more than one block: the same bits every time. N is what was fastest on an H100.
 *
 * Traps: tiles are filled with zeros past the last key, whose S is set to -inf. The maximum is of S as it is, which
 * asks for scale > 0. The first tile finds top = -inf: keep is 0 there, and nothing but 0 may be multiplied by it.
 * Registers are what limits N: 65,536 over all threads. sm90.cuh has more traps. */
#include "sm90.cuh"

#ifdef MA_HOPPER

namespace {

using namespace sm90;

/* What a launch gets. */
struct job {
    CUtensorMap q, k, v; /* (B,L,H,D), (B,M,H,D) */
    void *out;           /* (B,L,H,D) */
    float *lse;          /* (B,H,L); NULL: not wanted */
    int l, m;            /* queries, keys */
    int heads, d;
    float scale;
};

template <int D, int N, int GROUPS> struct room {
    static constexpr int ROWS = GROUPS * GROUP_ROWS;         /* of q, a block */
    static constexpr int THREADS = (GROUPS + 1) * WARPGROUP; /* one group fetches */
    static constexpr int FIT = (MOST_SHARED - 2 * SWIZZLED - ROWS * D * 2) / (2 * N * D * 2);
    static constexpr int STAGES = FIT < 4 ? FIT : 4;
    static_assert(STAGES >= 2 && N % BOX == 0 && D % PANEL == 0, "");
    alignas(SWIZZLED) uint16_t q[ROWS * D];
    alignas(SWIZZLED) uint16_t k[STAGES][N * D], v[STAGES][N * D];
    uint64_t q_full, k_full[STAGES], v_full[STAGES], k_empty[STAGES], v_empty[STAGES];
};

/* The warp that fetches; one thread of it. */
template <int D, int N, int GROUPS>
__device__ __forceinline__ void produce(const job &a, room<D, N, GROUPS> &s, int first, int head, int tiles) {
    typedef room<D, N, GROUPS> here;
    const int h = head % a.heads, sample = head / a.heads;
    expect(&s.q_full, sizeof s.q);
    fetch_tile<D, here::ROWS>(s.q, &a.q, first, h, sample, &s.q_full);
    for (int j = 0; j < tiles; j++) {
        const int stage = j % here::STAGES, turn = j / here::STAGES;
        if (turn) wait_for(&s.k_empty[stage], turn - 1);
        expect(&s.k_full[stage], sizeof s.k[0]);
        fetch_tile<D, N>(s.k[stage], &a.k, j * N, h, sample, &s.k_full[stage]);
        if (turn) wait_for(&s.v_empty[stage], turn - 1);
        expect(&s.v_full[stage], sizeof s.v[0]);
        fetch_tile<D, N>(s.v[stage], &a.v, j * N, h, sample, &s.v_full[stage]);
    }
}

/* Of a thread's two rows, so far. */
struct running {
    float top[2];  /* the maximum of S */
    float sum[2];  /* of P, over the thread's own columns */
    float keep[2]; /* what the last tile left of the sums before it */
};

/* S of a tile becomes P. LAST: only `keys` of its columns are keys. */
template <int N, bool LAST>
__device__ __forceinline__ void soften(float (&p)[N / 2], running &r, float factor, int keys) {
    const int column = threadIdx.x % 4 * 2; /* the thread's first */
    if constexpr (LAST)
#pragma unroll
        for (int c = 0; c < N / 2; c++)
            if (c / 4 * 8 + column + c % 2 >= keys) p[c] = -INFINITY;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float high = r.top[h], part[2] = {};
#pragma unroll
        for (int c = 0; c < N / 8; c++) high = fmaxf(high, fmaxf(p[4 * c + 2 * h], p[4 * c + 2 * h + 1]));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
        r.keep[h] = exp2_fast((r.top[h] - high) * factor);
        r.top[h] = high;
        const float base = -high * factor;
#pragma unroll
        for (int c = 0; c < N / 8; c++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = p[4 * c + 2 * h + e];
                x = exp2_fast(fmaf(x, factor, base));
                part[e] += x;
            }
        r.sum[h] = fmaf(r.sum[h], r.keep[h], part[0] + part[1]);
    }
}

/* The rows that are queries, divided by their sums. row: the thread's first. */
template <class T, int D>
__device__ __forceinline__ void store(const job &a, const float (&out)[D / 2], const running &r, int row, int head) {
    const int lane = threadIdx.x % 32, column = lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = r.sum[h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int query = row + 8 * h;
        if (query >= a.l) continue;
        if (a.lse && lane % 4 == 0) a.lse[(int64_t)head * a.l + query] = r.top[h] * a.scale + logf(sum);
        const float each = 1 / sum;
        T *to = (T *)a.out + ((head / a.heads * (int64_t)a.l + query) * a.heads + head % a.heads) * a.d;
#pragma unroll
        for (int c = 0; c < D / 8; c++)
            if (8 * c + column < a.d)
                *(unsigned *)(to + 8 * c + column) = pair<T>(out[4 * c + 2 * h] * each, out[4 * c + 2 * h + 1] * each);
    }
}

/* Warpgroups take turns, each by a barrier of its own (0 is __syncthreads'), on which it waits and the one before it
 * arrives. */
__device__ __forceinline__ void turn_await(int group) {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(2 * WARPGROUP) : "memory");
}

__device__ __forceinline__ void turn_give(int group) {
    asm volatile("bar.arrive %0, %1;" ::"r"(1 + group), "n"(2 * WARPGROUP) : "memory");
}

/* A warpgroup that computes. */
template <class T, int D, int N, int GROUPS>
__device__ __forceinline__ void consume(const job &a, room<D, N, GROUPS> &s, int first, int head, int tiles) {
    typedef room<D, N, GROUPS> here;
    constexpr bool TURNS = GROUPS > 2;
    const int lane = threadIdx.x % 32, group = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);
    const float factor = a.scale * LOG2_E;
    const uint16_t *q = s.q + group * GROUP_ROWS * PANEL;
    float out[D / 2] = {}, p[N / 2]; /* out: zeros, as products add; p: S, then P */
    unsigned p16[N / 16][4];         /* P of the tile before */
    running r = {{-INFINITY, -INFINITY}, {}, {}};

    auto release = [&](uint64_t *b) {
        __syncwarp();
        if (lane == 0) arrive(b);
    };
    auto narrow = [&] {
#pragma unroll
        for (int k = 0; k < N / 4; k++) p16[k / 4][k % 4] = pair<T>(p[2 * k], p[2 * k + 1]);
    };
    /* P·v of tile j joins out. */
    auto gather_values = [&](int j) {
        wait_for(&s.v_full[j % here::STAGES], j / here::STAGES);
        gather<T, D, N>(out, p16, s.v[j % here::STAGES]);
    };
    /* P of tile j, and P·v of the one before. */
    auto step = [&](int j, auto last) {
        wait_for(&s.k_full[j % here::STAGES], j / here::STAGES);
        if constexpr (TURNS) turn_await(group);
        products_fence();
        scores<T, D, N, here::ROWS>(p, q, s.k[j % here::STAGES]);
        gather_values(j - 1);
        if constexpr (TURNS) /* after the last turn nobody waits */
            if (!last.value || group < GROUPS - 1) turn_give((group + 1) % GROUPS);
        products_wait<1>();
        hold(p);
        release(&s.k_empty[j % here::STAGES]);
        soften<N, last.value>(p, r, factor, a.m - j * N);
        products_wait<0>();
        hold(out);
        hold(p16);
        hold(p);
        release(&s.v_empty[(j - 1) % here::STAGES]);
#pragma unroll
        for (int k = 0; k < D / 2; k++) out[k] *= r.keep[k / 2 % 2];
        narrow();
    };

    if constexpr (TURNS)
        if (tiles > 1 && group == GROUPS - 1) turn_give(0);
    wait_for(&s.q_full, 0);
    wait_for(&s.k_full[0], 0);
    products_fence();
    scores<T, D, N, here::ROWS>(p, q, s.k[0]);
    products_wait<0>();
    hold(p);
    release(&s.k_empty[0]);
    if (tiles > 1)
        soften<N, false>(p, r, factor, N);
    else
        soften<N, true>(p, r, factor, a.m);
    narrow();
    for (int j = 1; j < tiles - 1; j++) step(j, std::false_type{});
    if (tiles > 1) step(tiles - 1, std::true_type{});
    gather_values(tiles - 1);
    products_wait<0>();
    hold(out);
    store<T, D>(a, out, r, first + group * GROUP_ROWS + threadIdx.x / 32 % 4 * 16 + lane / 4, head);
}

template <class T, int D, int N, int GROUPS>
__global__ void __launch_bounds__((GROUPS + 1) * WARPGROUP, 1) attend(const __grid_constant__ job a) {
    typedef room<D, N, GROUPS> here;
    extern __shared__ unsigned char raw[];
    here &s = *(here *)swizzled(raw);
    const int blocks = (a.l + here::ROWS - 1) / here::ROWS, tiles = (a.m + N - 1) / N;
    const int head = blockIdx.x / blocks, first = blockIdx.x % blocks * here::ROWS;
    if (threadIdx.x == 0) {
        barrier_init(&s.q_full, 1);
        for (int k = 0; k < here::STAGES; k++) {
            barrier_init(&s.k_full[k], 1);
            barrier_init(&s.v_full[k], 1);
            barrier_init(&s.k_empty[k], GROUPS * 4); /* one a warp */
            barrier_init(&s.v_empty[k], GROUPS * 4);
        }
        barriers_made();
    }
    __syncthreads();
    if (threadIdx.x >= GROUPS * WARPGROUP) { /* registers: 65,536 in all */
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(GROUPS == 2 ? 24 : 32));
        if (threadIdx.x == GROUPS * WARPGROUP) produce<D, N, GROUPS>(a, s, first, head, tiles);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(GROUPS == 2 ? 240 : 160));
        consume<T, D, N, GROUPS>(a, s, first, head, tiles);
    }
}

/* ---- on the host ---- */

template <class T, int D, int N, int GROUPS> bool run(ma_cuda *c, const job &a, int64_t heads) {
    typedef room<D, N, GROUPS> here;
    return launch<here>(c, attend<T, D, N, GROUPS>, a, heads, a.l, here::ROWS, here::THREADS);
}

template <class T> int forward_as(const ma_call *call) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_tensor *q = call->in[0], *k = call->in[1], *v = call->in[2];
    const int64_t heads = q->n[0] * q->n[2];
    job a = {};
    if (!make_map(c, &a.q, q, q->data) || !make_map(c, &a.k, k, k->data) || !make_map(c, &a.v, v, v->data)) return -1;
    a.out = call->out->data;
    a.lse = call->save[0] ? (float *)call->save[0]->data : NULL;
    a.l = (int)q->n[1];
    a.m = (int)k->n[1];
    a.heads = (int)q->n[2];
    a.d = (int)q->n[3];
    a.scale = (float)call->f[0];
    const bool good = a.d > 64 ? run<T, 128, 128, 2>(c, a, heads) : run<T, 64, 128, 3>(c, a, heads);
    return good ? 0 : -1;
}

} // namespace

bool ma_cuda_attention_sm90(ma_cuda *c, const ma_call *call) {
    const ma_tensor *q = call->in[0], *k = call->in[1];
    int major = 0, minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->index) ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, c->index)) {
        cudaGetLastError();
        return false;
    }
    return major == 9 && minor == 0 && (q->type == MA_BF16 || q->type == MA_F16) && q->n[3] % 8 == 0 &&
           q->n[3] <= 128 && q->n[1] <= INT_MAX / 2 && k->n[1] <= INT_MAX / 2 && call->f[0] > 0;
}

int ma_cuda_attention_sm90_fwd(const ma_call *call) {
    return call->in[0]->type == MA_F16 ? forward_as<__half>(call) : forward_as<__nv_bfloat16>(call);
}

#else

bool ma_cuda_attention_sm90(ma_cuda *, const ma_call *) {
    return false;
}

int ma_cuda_attention_sm90_fwd(const ma_call *) {
    return -1;
}

#endif
