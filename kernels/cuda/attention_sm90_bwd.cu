/* attention_sm90_bwd: attention backwards on Hopper's tensor cores (wgmma, fed by TMA), in 16 bits, for heads of up to
 * 128 values, a multiple of 8. attention.cu has the formulas, and all other cards, types and sizes.
 *
 * Two kernels of one template: one owns keys and sums dk and dv over all queries, one owns queries and sums dq over all
 * keys. That is seven products instead of five, S and dP being computed by both, but nothing is added across blocks: no
 * atomics, the same bits every time, and no scratch beyond two numbers a query. A block owns ROWS rows X of a head, 64
 * for each of two warpgroups, and passes over tiles of N rows Y of the other side:
 *   keys:     X1 = k   X2 = v      Y1 = q   Y2 = dout      sum1 = dk   sum2 = dv
 *   queries:  X1 = q   X2 = dout   Y1 = k   Y2 = v         sum1 = dq
 *   S = X1·Y1ᵀ   dP = X2·Y2ᵀ   P = exp(scale·S - lse)   dS = P∘(dP - δ)   sum1 += dS·Y1   sum2 += P·Y2
 * S and dP come out of the tensor cores in just the layout that P and dS go in with, so that they stay in registers.
 * One more warp only fetches tiles, some ahead. While a warpgroup takes exponentials, the products of the other run,
 * and its own S of the next tile. `make bench` has the time that all this takes.
 *
 * Traps: TMA fills with zeros past the last row, but exp(0 - lse) is not zero: padded queries have -lse = -inf; keys
 * past the last get P = 0. Registers are what limits N: with 240 a thread the sums, S, dP and the two operands made of
 * them just fit, and a spill costs more than a small tile. sm90.cuh has more of them. */
#include "sm90.cuh"

#ifdef MA_HOPPER

namespace {

using namespace sm90;

enum {
    GROUPS = 2,                 /* warpgroups that compute; one more fetches */
    ROWS = GROUPS * GROUP_ROWS, /* of X, a block */
    THREADS = (GROUPS + 1) * WARPGROUP,
    PAD = 384 /* the queries' lse and δ are padded to a multiple of this, and of every N */
};

/* What a launch gets. */
struct job {
    CUtensorMap x[2], y[2]; /* (B,rows,H,D) */
    const float *lse;       /* -log₂e·lse (B,H,padded) */
    const float *delta;     /* δ (B,H,padded) */
    int64_t padded;
    int rows, others; /* of X and Y in memory */
    int heads, d;
    float scale;
    void *grad[2]; /* of X1 and X2, added to; NULL: not wanted */
    bool full[2];  /* they are f32 */
    bool fresh[2]; /* they are set instead */
};

/* ---- a block ---- */

template <int D, int N> struct room {
    static constexpr int STAGE_BYTES = 2 * N * D * 2 + 2 * N * 4,
                         FIT = (MOST_SHARED - 2 * SWIZZLED - 2 * ROWS * D * 2) / STAGE_BYTES;
    static constexpr int STAGES = FIT < 4 ? FIT : 4;
    static_assert(STAGES >= 2 && N % BOX == 0 && PAD % N == 0 && D % PANEL == 0, "");
    alignas(SWIZZLED) uint16_t x[2][ROWS * D];
    alignas(SWIZZLED) uint16_t y[STAGES][2][N * D];
    alignas(16) float lse[STAGES][N], delta[STAGES][N]; /* of the queries in y: used where keys are owned */
    uint64_t x_full, full[STAGES], empty[STAGES];
};

/* The warp that fetches; one thread of it. */
template <int D, int N, bool KEYS>
__device__ __forceinline__ void produce(const job &a, room<D, N> &s, int first, int head, int tiles) {
    typedef room<D, N> here;
    const int h = head % a.heads, sample = head / a.heads;
    const float *lse = a.lse + head * a.padded, *delta = a.delta + head * a.padded;
    expect(&s.x_full, sizeof s.x);
    fetch_tile<D, ROWS>(s.x[0], &a.x[0], first, h, sample, &s.x_full);
    fetch_tile<D, ROWS>(s.x[1], &a.x[1], first, h, sample, &s.x_full);
    for (int j = 0; j < tiles; j++) {
        const int stage = j % here::STAGES, turn = j / here::STAGES;
        if (turn) wait_for(&s.empty[stage], turn - 1);
        expect(&s.full[stage], sizeof s.y[0] + (KEYS ? 2 * sizeof s.lse[0] : 0));
        fetch_tile<D, N>(s.y[stage][0], &a.y[0], j * N, h, sample, &s.full[stage]);
        fetch_tile<D, N>(s.y[stage][1], &a.y[1], j * N, h, sample, &s.full[stage]);
        if constexpr (KEYS) {
            fetch_floats(s.lse[stage], lse + j * N, sizeof s.lse[0], &s.full[stage]);
            fetch_floats(s.delta[stage], delta + j * N, sizeof s.delta[0], &s.full[stage]);
        }
    }
}

/* Adds factor·sum to a gradient, type T or f32, (rows, heads·d) at the head's first value. row: the warp's first. */
template <class T, int D>
__device__ __forceinline__ void add_sums(const job &a, int k, const float (&sum)[D / 2], float factor, int64_t head,
                                         int row) {
    if (!a.grad[k]) return;
    const int lane = threadIdx.x % 32;
    const int64_t ld = (int64_t)a.heads * a.d, begin = head / a.heads * a.rows * ld + head % a.heads * a.d;
#pragma unroll
    for (int j = 0; j < D / 4; j++) {
        const int r = row + lane / 4 + j % 2 * 8, c = j / 2 * 8 + lane % 4 * 2;
        if (r >= a.rows || c >= a.d) continue;
        const int64_t at = begin + r * ld + c;
        const float x = factor * sum[2 * j], y = factor * sum[2 * j + 1];
        if (a.full[k]) {
            float2 *g = (float2 *)((float *)a.grad[k] + at), was = make_float2(0, 0);
            if (!a.fresh[k]) was = *g;
            *g = make_float2(was.x + x, was.y + y);
        } else {
            unsigned *g = (unsigned *)((T *)a.grad[k] + at), was = 0; /* two zeros */
            if (!a.fresh[k]) was = *g;
            const T *w = (const T *)&was;
            *g = pair<T>((float)w[0] + x, (float)w[1] + y);
        }
    }
}

/* A warpgroup that computes. */
template <class T, int D, int N, bool KEYS>
__device__ __forceinline__ void consume(const job &a, room<D, N> &s, int first, int head, int tiles) {
    typedef room<D, N> here;
    const int lane = threadIdx.x % 32, group = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);
    const int row = first + group * GROUP_ROWS + threadIdx.x / 32 % 4 * 16; /* the warp's first */
    const int column = lane % 4 * 2;                                        /* the thread's first */
    const float factor = a.scale * LOG2_E;
    const uint16_t *x1 = s.x[0] + group * GROUP_ROWS * PANEL, *x2 = s.x[1] + group * GROUP_ROWS * PANEL;
    float sum1[D / 2] = {}, sum2[KEYS ? D / 2 : 1] = {}; /* zeros: products add */
    float p[N / 2], dp[N / 2];                           /* S, then P; dP */
    float lse[2] = {}, delta[2] = {};                    /* of the thread's two rows, where these are queries */
    if constexpr (!KEYS)
        for (int h = 0; h < 2; h++) {
            const int r = row + lane / 4 + 8 * h;
            lse[h] = r < a.rows ? a.lse[head * a.padded + r] : -INFINITY;
            delta[h] = r < a.rows ? a.delta[head * a.padded + r] : 0;
        }

    /* S of a tile. */
    auto start = [&](int stage) {
        products_fence();
        scores<T, D, N, ROWS>(p, x1, s.y[stage][0]);
    };
    auto release = [&](int j) {
        __syncwarp();
        if (lane == 0) arrive(&s.empty[j % here::STAGES]);
    };
    /* S of tile j is there. */
    auto step = [&](int j, auto last) {
        const int stage = j % here::STAGES;
        const uint16_t *y1 = s.y[stage][0], *y2 = s.y[stage][1];
        unsigned ds16[N / 16][4];
        products_fence();
        scores<T, D, N, ROWS>(dp, x2, y2);
#pragma unroll
        for (int c = 0; c < N / 8; c++) {
            float2 l = make_float2(0, 0);
            if constexpr (KEYS) l = *(const float2 *)&s.lse[stage][8 * c + column];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float &q = p[4 * c + e];
                q = exp2_fast(fmaf(q, factor, KEYS ? (e % 2 ? l.y : l.x) : lse[e / 2]));
                if (!KEYS && last.value && j * N + 8 * c + column + e % 2 >= a.others) q = 0;
            }
        }
        if constexpr (KEYS) {
            unsigned p16[N / 16][4];
#pragma unroll
            for (int k = 0; k < N / 4; k++) p16[k / 4][k % 4] = pair<T>(p[2 * k], p[2 * k + 1]);
            gather<T, D, N>(sum2, p16, y2);
            products_wait<1>();
        } else
            products_wait<0>();
        hold(dp);
        if (j > 0) release(j - 1);
#pragma unroll
        for (int c = 0; c < N / 8; c++) {
            float2 d = make_float2(0, 0);
            if constexpr (KEYS) d = *(const float2 *)&s.delta[stage][8 * c + column];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int k = 4 * c + 2 * h;
                ds16[c / 2][c % 2 * 2 + h] =
                    pair<T>(p[k] * (dp[k] - (KEYS ? d.x : delta[h])), p[k + 1] * (dp[k + 1] - (KEYS ? d.y : delta[h])));
            }
        }
        if constexpr (!last.value) {
            wait_for(&s.full[(j + 1) % here::STAGES], (j + 1) / here::STAGES);
            start((j + 1) % here::STAGES);
        }
        gather<T, D, N>(sum1, ds16, y1);
        products_wait<(last.value || D > PANEL) ? 0 : 1>(); /* with D > PANEL the registers do not suffice */
        hold(p);
    };

    wait_for(&s.x_full, 0);
    wait_for(&s.full[0], 0);
    start(0);
    products_wait<0>();
    hold(p);
    for (int j = 0; j < tiles - 1; j++) step(j, std::false_type{});
    step(tiles - 1, std::true_type{});
    hold(sum1);
    if constexpr (KEYS) {
        hold(sum2);
        add_sums<T, D>(a, 1, sum2, 1, head, row);
    }
    add_sums<T, D>(a, 0, sum1, a.scale, head, row);
}

template <class T, int D, int N, bool KEYS>
__global__ void __launch_bounds__(THREADS, 1) gradients(const __grid_constant__ job a) {
    typedef room<D, N> here;
    extern __shared__ unsigned char raw[];
    here &s = *(here *)swizzled(raw);
    const int blocks = (a.rows + ROWS - 1) / ROWS, tiles = (a.others + N - 1) / N;
    const int head = blockIdx.x / blocks, first = blockIdx.x % blocks * ROWS;
    if (threadIdx.x == 0) {
        barrier_init(&s.x_full, 1);
        for (int k = 0; k < here::STAGES; k++) {
            barrier_init(&s.full[k], 1);
            barrier_init(&s.empty[k], GROUPS * 4); /* one a warp */
        }
        barriers_made();
    }
    __syncthreads();
    if (threadIdx.x >= GROUPS * WARPGROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == GROUPS * WARPGROUP) produce<D, N, KEYS>(a, s, first, head, tiles);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        consume<T, D, N, KEYS>(a, s, first, head, tiles);
    }
}

/* ---- before both: -log₂e·lse and δ = Σ_d dout·out, padded ---- */

enum { LANES = 8, PREPARE_THREADS = 256 }; /* a row; a block */

template <class T>
__global__ void __launch_bounds__(PREPARE_THREADS)
    prepare(int64_t rows, int64_t padded, int l, int heads, int d, const T *out, const T *dout, const float *lse,
            float *to_lse, float *to_delta) {
    const int64_t n = (blockIdx.x * (int64_t)PREPARE_THREADS + threadIdx.x) / LANES; /* as (B,padded,H) */
    if (n >= rows) return;
    const int64_t head = n % heads, query = n / heads % padded, sample = n / heads / padded;
    const int64_t item = sample * heads + head;
    float sum = 0;
    if (query < l) {
        const int64_t at = ((sample * l + query) * heads + head) * d;
        for (int c = threadIdx.x % LANES * 8; c < d; c += LANES * 8) {
            const uint4 x = *(const uint4 *)(out + at + c), y = *(const uint4 *)(dout + at + c);
            const T *u = (const T *)&x, *w = (const T *)&y;
#pragma unroll
            for (int k = 0; k < 8; k++) sum += (float)u[k] * (float)w[k];
        }
    }
#pragma unroll
    for (int k = LANES / 2; k; k /= 2) sum += __shfl_xor_sync(~0u, sum, k);
    if (threadIdx.x % LANES) return;
    to_lse[item * padded + query] = query < l ? -LOG2_E * lse[item * l + query] : -INFINITY;
    to_delta[item * padded + query] = sum;
}

/* ---- on the host ---- */

int64_t padded_of(int64_t l) {
    return (l + PAD - 1) / PAD * PAD;
}

/* grad[k] of a job is that of in[i]. */
void set_grad(job *a, int k, const ma_call *call, int i) {
    const ma_tensor *t = call->in[i];
    a->grad[k] = t->want ? t->grad->data : NULL;
    a->full[k] = t->want && t->grad->type == MA_F32;
    a->fresh[k] = ma_fresh(call, i);
}

/* The jobs of both kernels. */
bool make_jobs(const ma_call *call, job *keys, job *queries) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_tensor *q = call->in[0], *k = call->in[1], *v = call->in[2];
    const int64_t batch = q->n[0], l = q->n[1], m = k->n[1], heads = q->n[2], d = q->n[3], padded = padded_of(l);
    if (!make_map(c, &queries->x[0], q, q->data) || !make_map(c, &queries->x[1], q, call->out->grad->data) ||
        !make_map(c, &keys->x[0], k, k->data) || !make_map(c, &keys->x[1], v, v->data))
        return false;
    for (int i = 0; i < 2; i++) {
        queries->y[i] = keys->x[i];
        keys->y[i] = queries->x[i];
    }
    for (job *a : {keys, queries}) {
        a->lse = (const float *)call->work;
        a->delta = a->lse + batch * heads * padded;
        a->padded = padded;
        a->rows = (int)(a == keys ? m : l);
        a->others = (int)(a == keys ? l : m);
        a->heads = (int)heads;
        a->d = (int)d;
        a->scale = (float)call->f[0];
    }
    set_grad(queries, 0, call, 0);
    set_grad(keys, 0, call, 1);
    set_grad(keys, 1, call, 2);
    return true;
}

template <class T> bool launch_prepare(const ma_call *call) {
    ma_cuda *c = (ma_cuda *)call->stream;
    const ma_tensor *q = call->in[0];
    const int64_t padded = padded_of(q->n[1]), rows = q->n[0] * q->n[2] * padded;
    const int64_t blocks = (rows * LANES + PREPARE_THREADS - 1) / PREPARE_THREADS;
    if (blocks > INT_MAX) return false;
    float *lse = (float *)call->work;
    prepare<T><<<(unsigned)blocks, PREPARE_THREADS, 0, c->stream>>>(
        rows, padded, (int)q->n[1], (int)q->n[2], (int)q->n[3], (const T *)call->out->data,
        (const T *)call->out->grad->data, (const float *)call->save[0]->data, lse, lse + rows);
    return !ma_cuda_bad(c, cudaGetLastError(), "attention");
}

template <class T, int D, int N, bool KEYS> bool run(const ma_call *call, const job &a) {
    const ma_tensor *q = call->in[0];
    return launch<room<D, N>>((ma_cuda *)call->stream, gradients<T, D, N, KEYS>, a, q->n[0] * q->n[2], a.rows, ROWS,
                              THREADS);
}

template <class T> int backward_as(const ma_call *call) {
    const bool wide = call->in[0]->n[3] > 64, any_keys = call->in[1]->want || call->in[2]->want;
    job keys = {}, queries = {};
    if (!launch_prepare<T>(call) || !make_jobs(call, &keys, &queries)) return -1;
    if (any_keys && !(wide ? run<T, 128, 64, true>(call, keys) : run<T, 64, 96, true>(call, keys))) return -1;
    if (call->in[0]->want && !(wide ? run<T, 128, 64, false>(call, queries) : run<T, 64, 128, false>(call, queries)))
        return -1;
    return 0;
}

} // namespace

size_t ma_cuda_attention_sm90_work(const ma_call *call) {
    const ma_tensor *q = call->in[0];
    return 2 * (size_t)(q->n[0] * q->n[2] * padded_of(q->n[1])) * sizeof(float);
}

int ma_cuda_attention_sm90_bwd(const ma_call *call) {
    return call->in[0]->type == MA_F16 ? backward_as<__half>(call) : backward_as<__nv_bfloat16>(call);
}

#else

size_t ma_cuda_attention_sm90_work(const ma_call *) {
    return 0;
}

int ma_cuda_attention_sm90_bwd(const ma_call *) {
    return -1;
}

#endif
