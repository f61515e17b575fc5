/* device: a GPU. Memory, the host's too, copies, casts, the optimiser, the table of kernels; what it takes to say why
 * there is none.
 *
 * All is in order on one stream. Copies from and to the host pass through pinned slots: put() returns when the bytes
 * are in a slot, get() when they are in their place. From its slot a put goes to another one on the device, on a stream
 * of its own, beside what is being computed; from there to its place in order, which is quick. So the next batch
 * comes over while this one is worked on, even to where this one lies. A plan touches no GPU but to ask, where there is
 * one, how much memory is free.
 *
 * Recordings are CUDA graphs. What is put while one is made stays with it, pinned, and is copied each time it runs.
 *
 * Traps: the current device belongs to the thread, so every entry sets it. Device code that the card does not know
 * fails only when a kernel is first loaded: opening tries one. A failed allocation leaves an error behind that the next
 * launch would find. While a recording is made nothing may be allocated or waited for: all that needs it must have
 * run before. What recordings point to must stay where it is: the detour is not in the room, which may move.
 */
#include "../dither.h"
#include "cuda.h"
#include "gemm.h"
#include "graph.h"
#include "pack.cuh"

#include <cublasLt.h>
#include <cudnn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

enum {
    SLOTS = 16,      /* of pinned memory and on the device: so many copies from the host can be under way */
    CHUNK = 1 << 14, /* elements of a parameter that one block of the optimiser takes */
};
constexpr size_t SLOT = (size_t)4 << 20;   /* bytes of a slot */
constexpr size_t DETOUR = (size_t)8 << 20; /* bytes that move() takes at a time when it must not go straight */
constexpr size_t GRAIN = (size_t)2 << 20;  /* what the driver hands out, whole */
constexpr size_t CODE = (size_t)12 << 20;  /* what loaded code takes: read off an H100 in training, without cuDNN */

/* Work that runs again as one. */
struct recording {
    cudaGraphExec_t graph;
    char *values; /* pinned: what it puts */
    size_t used, room;
};

struct gpu {
    ma_cuda c;               /* first: a ma_device * is a gpu * */
    size_t free_at_first;    /* bytes, when it was opened */
    cudaStream_t copies;     /* from slots to those on the device */
    cudaEvent_t come[SLOTS]; /* the last copy on that stream */
    cudaEvent_t done[SLOTS]; /* the last copy from or to a slot */
    int turn;                /* the slot that is used next */
    char *stage;             /* the slots on the device */
    void *detour;            /* of move: DETOUR bytes */
    void *room;              /* on the device: the optimiser's tables and sums */
    size_t room_bytes;
    recording *making;    /* NULL: no recording is being made */
    cudaEvent_t clock[2]; /* of timer() */
};

gpu *here(ma_device *d) {
    gpu *g = (gpu *)d;
    if (!d->plan) cudaSetDevice(g->c.index);
    return g;
}

bool bad(gpu *g, cudaError_t e, const char *where) {
    return ma_cuda_bad(&g->c, e, where);
}

} // namespace

/* ---- what all bodies share ---- */

bool ma_cuda_bad(ma_cuda *c, cudaError_t e, const char *where) {
    if (e == cudaSuccess) return false;
    snprintf(c->failure, sizeof c->failure, "%s: %s", where, cudaGetErrorString(e));
    cudaGetLastError(); /* or the next launch is blamed */
    return true;
}

int ma_cuda_launched(const ma_call *call) {
    return ma_cuda_bad((ma_cuda *)call->stream, cudaGetLastError(), ma_op_name(call->op)) ? -1 : 0;
}

void *ma_cuda_blas(ma_cuda *c) {
    if (c->blas) return c->blas;
    cublasLtHandle_t blas;
    cublasStatus_t status = cublasLtCreate(&blas);
    if (status == CUBLAS_STATUS_SUCCESS) return c->blas = blas;
    snprintf(c->failure, sizeof c->failure, "cuBLASLt: %s", cublasLtGetStatusString(status));
    return NULL;
}

void *ma_cuda_dnn(ma_cuda *c) {
    if (c->dnn) return c->dnn;
    cudnnHandle_t dnn;
    cudnnStatus_t status = cudnnCreate(&dnn);
    if (status == CUDNN_STATUS_SUCCESS) {
        status = cudnnSetStream(dnn, c->stream);
        if (status == CUDNN_STATUS_SUCCESS) return c->dnn = dnn;
        cudnnDestroy(dnn);
    }
    snprintf(c->failure, sizeof c->failure, "cuDNN: %s", cudnnGetErrorString(status));
    return NULL;
}

namespace {

struct cast_plane {
    packs::array dst, src;
    template <int N> __device__ void at(int64_t, int64_t k) {
        packs::pack<N> x = packs::load<N>(src, k);
        packs::add_to<N>(dst, k, x);
    }
};

} // namespace

int ma_cuda_cast_add(ma_cuda *c, void *dst, ma_type to, const void *src, ma_type from, int64_t n, bool add) {
    if (to == from && !add) {
        size_t size = (size_t)n * ma_type_size(to);
        cudaError_t e = cudaMemcpyAsync(dst, src, size, cudaMemcpyDeviceToDevice, c->stream);
        return ma_cuda_bad(c, e, "cast") ? -1 : 0;
    }
    cast_plane f = {{dst, to, !add}, {(void *)src, from}};
    return packs::run_plane(c, "cast", f, 1, n, packs::grain(n, {f.dst, f.src}));
}

/* ---- memory ---- */

namespace {

void *gpu_alloc(ma_device *d, size_t size) {
    void *p = NULL;
    if (d->plan || bad(here(d), cudaMalloc(&p, size ? size : 1), "memory")) return NULL;
    return p;
}

void gpu_release(ma_device *d, void *p) {
    if (!d->plan && p) bad(here(d), cudaFree(p), "memory"); /* a plan's addresses are only names */
}

/* Pinned, and at the same address on the GPU, which goes over PCIe for it. Any thread may ask for some, so that why
 * there is none is not noted. */
void *gpu_alloc_host(ma_device *d, size_t size) {
    void *p = NULL;
    if (d->plan) return NULL;
    here(d);
    if (cudaHostAlloc(&p, size ? size : 1, cudaHostAllocMapped) == cudaSuccess) return p;
    cudaGetLastError(); /* this thread's */
    return NULL;
}

void gpu_release_host(ma_device *d, void *p) {
    gpu *g = here(d);
    if (d->plan || !p) return;
    bad(g, cudaStreamSynchronize(g->c.stream), "the host's memory"); /* kernels may be at it */
    bad(g, cudaFreeHost(p), "the host's memory");
}

/* At least so many bytes at ->room. Made anew only when it must grow; cudaFree waits for who uses it. */
int make_room(gpu *g, size_t size) {
    if (size <= g->room_bytes) return 0;
    if (bad(g, cudaFree(g->room), "memory")) return -1;
    g->room = NULL;
    g->room_bytes = 0;
    if (bad(g, cudaMalloc(&g->room, size), "memory")) return -1;
    g->room_bytes = size;
    return 0;
}

/* The slots, when first needed. */
int make_slots(gpu *g) {
    if (g->c.staging) return 0;
    const char *where = "slots for copies";
    if (!g->copies && bad(g, cudaStreamCreateWithFlags(&g->copies, cudaStreamNonBlocking), where)) return -1;
    for (cudaEvent_t *events : {g->come, g->done})
        for (int k = 0; k < SLOTS; k++)
            if (!events[k] &&
                bad(g, cudaEventCreateWithFlags(&events[k], cudaEventDisableTiming | cudaEventBlockingSync), where))
                return -1;
    if (!g->stage && bad(g, cudaMalloc(&g->stage, SLOTS * SLOT), where)) return -1;
    if (bad(g, cudaMallocHost(&g->c.staging, SLOTS * SLOT), where)) return -1;
    g->c.staging_bytes = SLOTS * SLOT;
    return 0;
}

/* The next slot, when the copy that last used it is over; -1: that failed. */
int next_slot(gpu *g) {
    int k = g->turn;
    g->turn = (k + 1) % SLOTS;
    return bad(g, cudaEventSynchronize(g->done[k]), "waiting for a copy") ? -1 : k;
}

char *slot_of(gpu *g, int k) {
    return (char *)g->c.staging + (size_t)k * SLOT;
}

size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* The values become part of the recording that is being made. */
int put_recorded(gpu *g, void *dst, const void *host, size_t size) {
    recording *r = g->making;
    if (size > r->room - r->used) {
        snprintf(g->c.failure, sizeof g->c.failure, "recording: more values than before");
        return -1;
    }
    char *values = r->values + r->used;
    memcpy(values, host, size);
    r->used = least(r->used + (size + 255) / 256 * 256, r->room);
    return bad(g, cudaMemcpyAsync(dst, values, size, cudaMemcpyHostToDevice, g->c.stream), "recording") ? -1 : 0;
}

int gpu_put(ma_device *d, void *dst, const void *host, size_t size) {
    gpu *g = here(d);
    const char *where = "copying to the GPU";
    if (d->plan || !size) return 0;
    if (g->making) return put_recorded(g, dst, host, size);
    if (make_slots(g)) return -1;
    for (size_t at = 0; at < size; at += SLOT) {
        size_t n = least(size - at, SLOT);
        int k = next_slot(g);
        if (k < 0) return -1;
        char *slot = slot_of(g, k), *there = g->stage + (size_t)k * SLOT;
        memcpy(slot, (const char *)host + at, n);
        if (bad(g, cudaMemcpyAsync(there, slot, n, cudaMemcpyHostToDevice, g->copies), where) ||
            bad(g, cudaEventRecord(g->come[k], g->copies), where) ||
            bad(g, cudaStreamWaitEvent(g->c.stream, g->come[k], 0), where) ||
            bad(g, cudaMemcpyAsync((char *)dst + at, there, n, cudaMemcpyDefault, g->c.stream), where) ||
            bad(g, cudaEventRecord(g->done[k], g->c.stream), where))
            return -1;
    }
    return 0;
}

/* Half of the slots are under way while the others are emptied. */
int gpu_get(ma_device *d, void *host, const void *src, size_t size) {
    gpu *g = here(d);
    if (d->plan) return 0;
    if (make_slots(g)) return -1;
    enum { AHEAD = SLOTS / 2 };
    int slot[AHEAD];
    size_t pieces = (size + SLOT - 1) / SLOT;
    for (size_t k = 0; k < pieces + AHEAD; k++) {
        if (k >= AHEAD && k - AHEAD < pieces) {
            size_t at = (k - AHEAD) * SLOT;
            int from = slot[k % AHEAD];
            if (bad(g, cudaEventSynchronize(g->done[from]), "copying from the GPU")) return -1;
            memcpy((char *)host + at, slot_of(g, from), least(size - at, SLOT));
        }
        if (k >= pieces) continue;
        const char *from = (const char *)src + k * SLOT;
        size_t n = least(size - k * SLOT, SLOT);
        int to = slot[k % AHEAD] = next_slot(g);
        if (to < 0 ||
            bad(g, cudaMemcpyAsync(slot_of(g, to), from, n, cudaMemcpyDefault, g->c.stream), "copying from the GPU") ||
            bad(g, cudaEventRecord(g->done[to], g->c.stream), "copying from the GPU"))
            return -1;
    }
    return 0;
}

int copy(gpu *g, void *dst, const void *src, size_t size) {
    return bad(g, cudaMemcpyAsync(dst, src, size, cudaMemcpyDefault, g->c.stream), "moving") ? -1 : 0; /* src: any */
}

/* From the front, in pieces that do not reach into themselves; where those would be small, by way of the detour. */
int gpu_move(ma_device *d, void *dst, const void *src, size_t size) {
    gpu *g = here(d);
    char *to = (char *)dst;
    const char *from = (const char *)src;
    if (d->plan || to == from || !size) return 0;
    if (to > from && to < from + size) {
        snprintf(g->c.failure, sizeof g->c.failure, "moving: upwards over itself");
        return -1;
    }
    size_t gap = to < from ? (size_t)(from - to) : size;
    bool straight = gap >= size || gap >= DETOUR;
    size_t piece = straight ? gap : DETOUR;
    if (!straight && !g->detour && bad(g, cudaMalloc(&g->detour, DETOUR), "memory")) return -1;
    for (size_t at = 0; at < size; at += piece) {
        size_t n = least(size - at, piece);
        if (straight ? copy(g, to + at, from + at, n)
                     : copy(g, g->detour, from + at, n) || copy(g, to + at, g->detour, n))
            return -1;
    }
    return 0;
}

int gpu_zero(ma_device *d, void *dst, size_t size) {
    gpu *g = here(d);
    if (d->plan || !size) return 0;
    return bad(g, cudaMemsetAsync(dst, 0, size, g->c.stream), "clearing") ? -1 : 0;
}

int gpu_cast(ma_device *d, void *dst, ma_type to, const void *src, ma_type from, int64_t n) {
    gpu *g = here(d);
    return d->plan || !n ? 0 : ma_cuda_cast_add(&g->c, dst, to, src, from, n, false);
}

void gpu_tf32(ma_device *d, bool on) {
    ((gpu *)d)->c.tf32 = on;
}

size_t gpu_work(ma_device *d, const ma_call *call, bool backward) {
    ma_cuda *c = &here(d)->c;
    switch (call->op) {
    case MA_OP_LINEAR: return ma_cuda_linear_work(c, call, backward);
    case MA_OP_LINEAR_ADD: return ma_cuda_linear_add_work(c, call, backward);
    case MA_OP_MATMUL: return ma_cuda_matmul_work(c, call, backward);
    case MA_OP_CONV: return ma_cuda_conv_work(c, call, backward);
    case MA_OP_CONV_TRANSPOSE: return ma_cuda_conv_transpose_work(c, call, backward);
    case MA_OP_ATTENTION: return ma_cuda_attention_work(c, call, backward);
    case MA_OP_LAYER_NORM: return ma_cuda_layer_norm_work(c, call, backward);
    case MA_OP_MODULATE: return ma_cuda_modulate_work(c, call, backward);
    case MA_OP_GATE: return ma_cuda_gate_work(c, call, backward);
    case MA_OP_MOMENTS: return ma_cuda_moments_work(c, call, backward);
    case MA_OP_GROUP_NORM: return ma_cuda_group_norm_work(c, call, backward);
    case MA_OP_ADD:
    case MA_OP_MUL:
    case MA_OP_L1:
    case MA_OP_MSE: return ma_cuda_reduce_work(c, call, backward);
    case MA_OP_RELATION: return ma_cuda_relation_work(c, call, backward);
    case MA_OP_COSINE: return ma_cuda_cosine_work(c, call, backward);
    default: return 0;
    }
}

/* ---- the optimiser: all parameters in one launch ---- */

/* A parameter in the table of a launch. Its chunks are those from `first` up to the next one's. */
struct entry {
    ma_slot slot;
    int64_t first;
    float keep;   /* 1 - lr·decay */
    uint32_t key; /* of dithering */
};

/* Part of a parameter. */
struct span {
    const entry *e;
    int64_t from, to;
};

/* The block's chunk: of the last entry that does not begin after it. */
__device__ span my_span(const entry *table, int n) {
    int lo = 0, hi = n;
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (table[mid].first <= blockIdx.x)
            lo = mid;
        else
            hi = mid;
    }
    int64_t from = (blockIdx.x - table[lo].first) * CHUNK, to = from + CHUNK, end = table[lo].slot.count;
    return {&table[lo], from, to < end ? to : end};
}

__device__ bool aligned(const void *p) {
    return (uintptr_t)p % 16 == 0;
}

/* f.at<N>(k) for every k of the span, by all threads of the block: N elements at a time where wide, the rest one by
 * one. */
template <class F> __device__ void sweep(F &f, int64_t from, int64_t to, bool wide) {
    int64_t middle = wide ? from + (to - from) / packs::PACK * packs::PACK : from;
    for (int64_t k = from + threadIdx.x * packs::PACK; k < middle; k += packs::THREADS * packs::PACK)
        f.template at<packs::PACK>(k);
    for (int64_t k = middle + threadIdx.x; k < to; k += packs::THREADS) f.template at<1>(k);
}

struct squares {
    packs::array grad;
    double sum;
    template <int N> __device__ void at(int64_t k) {
        packs::pack<N> g = packs::load<N>(grad, k);
#pragma unroll
        for (int i = 0; i < N; i++) sum += (double)g.v[i] * g.v[i];
    }
};

/* part[block] = Σ grad² over its chunk. */
__global__ void __launch_bounds__(packs::THREADS) squares_kernel(const entry *table, int n, double *part) {
    span s = my_span(table, n);
    const float *grad = s.e->slot.grad;
    squares f = {{(void *)grad, MA_F32}, 0};
    sweep(f, s.from, s.to, aligned(grad));
    double sum = packs::sum_block<packs::THREADS>(f.sum);
    if (!threadIdx.x) part[blockIdx.x] = sum;
}

/* *sum = Σ part, by one block. */
__global__ void __launch_bounds__(1024) squares_total_kernel(const double *part, int64_t n, double *sum) {
    double x = 0;
    for (int64_t k = threadIdx.x; k < n; k += 1024) x += part[k];
    x = packs::sum_block<1024>(x);
    if (!threadIdx.x) *sum = x;
}

/* AdamW's numbers of one step, ready to multiply. As kernels/cpu/cpu.c has them. */
struct rates {
    float beta1, beta2, rest1, rest2; /* rest: 1 - beta, taken before rounding */
    float eps, clip;
    float step;   /* lr / (1 - beta1^t) */
    float spread; /* 1 / sqrt(1 - beta2^t) */
};

/* STATE: of m and v. Where products are added it is said which one is fused, so that an element has the same bits in
 * whatever company it comes. */
template <ma_type STATE> struct adam {
    rates r;
    float keep;
    uint32_t key;
    packs::array p, grad, m, v, data; /* data: storage beside its master p, or none */
    template <int N> __device__ void at(int64_t k) {
        packs::pack<N> x = packs::load<N>(p, k), g = packs::load<N>(grad, k), a = packs::load<N>(m, k),
                       b = packs::load<N>(v, k);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float y = g.v[i] * r.clip;
            a.v[i] = __fmaf_rn(a.v[i], r.beta1, y * r.rest1);
            b.v[i] = __fmaf_rn(b.v[i], r.beta2, y * y * r.rest2);
            x.v[i] = __fmaf_rn(x.v[i], keep, -(r.step * a.v[i] / __fmaf_rn(sqrtf(b.v[i]), r.spread, r.eps)));
            if constexpr (STATE == MA_BF16) {
                uint32_t random = ma_dither_bits(key, k + i);
                a.v[i] = ma_dither_bf16(a.v[i], random >> 16);
                b.v[i] = ma_dither_bf16(b.v[i], random & 0xffff);
            }
        }
        packs::store<N>(p, k, x);
        packs::store<N>(m, k, a);
        packs::store<N>(v, k, b);
        if (data.p) packs::store<N>(data, k, x);
    }
};

/* FAR: one by one. A warp's access is then a whole line of 128 bytes, which is what PCIe carries best; eight at a time
 * it would be half of every 32 bytes, and then the other. */
template <ma_type STATE, bool FAR>
__global__ void __launch_bounds__(packs::THREADS) adam_kernel(const entry *table, int n, rates r) {
    span s = my_span(table, n);
    const ma_slot &e = s.e->slot;
    void *p = e.master ? e.master : e.data;
    adam<STATE> f = {r,
                     s.e->keep,
                     s.e->key,
                     {p, MA_F32},
                     {e.grad, MA_F32},
                     {e.m, STATE},
                     {e.v, STATE},
                     {e.master ? e.data : nullptr, e.type}};
    bool wide = aligned(p) && aligned(e.grad) && aligned(e.m) && aligned(e.v) && aligned(e.data);
    sweep(f, s.from, s.to, wide && !FAR);
}

/* The table on the device, at the front of room; *sums bytes in, room for a number a chunk and their sum. Gives the
 * count of chunks; -1: it failed. */
int64_t make_table(gpu *g, const ma_slot *slots, int n, const ma_adam &o, size_t *sums) {
    std::vector<entry> table((size_t)n);
    int64_t chunks = 0;
    for (int k = 0; k < n; k++) {
        const ma_slot &s = slots[k];
        table[(size_t)k] = {s, chunks, (float)(1 - o.lr * s.decay), ma_dither_key(o.step, s.number)};
        chunks += packs::ceil_div(slots[k].count, CHUNK);
    }
    *sums = ((size_t)n * sizeof(entry) + 255) / 256 * 256;
    if (chunks > INT_MAX || make_room(g, *sums + ((size_t)chunks + 1) * sizeof(double))) return -1;
    return gpu_put(&g->c.device, g->room, table.data(), (size_t)n * sizeof(entry)) ? -1 : chunks;
}

int gpu_squares(ma_device *d, const ma_slot *slots, int n, double *sum) {
    gpu *g = here(d);
    size_t at;
    *sum = 0;
    if (d->plan || n < 1) return 0;
    int64_t chunks = make_table(g, slots, n, ma_adam{}, &at);
    if (chunks < 1) return chunks ? -1 : 0;
    double *part = (double *)((char *)g->room + at); // (chunks), then their sum
    squares_kernel<<<(unsigned)chunks, packs::THREADS, 0, g->c.stream>>>((entry *)g->room, n, part);
    squares_total_kernel<<<1, 1024, 0, g->c.stream>>>(part, chunks, part + chunks);
    if (packs::launched(&g->c, "the gradients' norm")) return -1;
    return gpu_get(d, sum, part + chunks, sizeof *sum);
}

int gpu_adam(ma_device *d, const ma_slot *slots, int n, const ma_adam *o) {
    gpu *g = here(d);
    size_t at;
    if (d->plan || n < 1) return 0;
    int64_t chunks = make_table(g, slots, n, *o, &at);
    if (chunks < 1) return chunks ? -1 : 0;
    rates r = {(float)o->beta1,
               (float)o->beta2,
               (float)(1 - o->beta1),
               (float)(1 - o->beta2),
               (float)o->eps,
               (float)o->clip,
               (float)(o->lr / (1 - pow(o->beta1, (double)o->step))),
               (float)(1 / sqrt(1 - pow(o->beta2, (double)o->step)))};
    auto kernel = o->state == MA_BF16 ? adam_kernel<MA_BF16, false>
                  : o->far            ? adam_kernel<MA_F32, true>
                                      : adam_kernel<MA_F32, false>;
    kernel<<<(unsigned)chunks, packs::THREADS, 0, g->c.stream>>>((entry *)g->room, n, r);
    return packs::launched(&g->c, "the optimiser");
}

double gpu_timer(ma_device *d, bool stop) {
    gpu *g = here(d);
    float ms = 0;
    for (cudaEvent_t &e : g->clock)
        if (!e && bad(g, cudaEventCreate(&e), "timer")) return 0;
    bool failed = bad(g, cudaEventRecord(g->clock[stop], g->c.stream), "timer");
    if (!stop || failed || bad(g, cudaEventSynchronize(g->clock[1]), "timer")) return 0;
    return bad(g, cudaEventElapsedTime(&ms, g->clock[0], g->clock[1]), "timer") ? 0 : ms;
}

/* cudaMemGetInfo also sees what others take on this card. */
size_t gpu_used(ma_device *d) {
    gpu *g = here(d);
    size_t now, all;
    if (bad(g, cudaMemGetInfo(&now, &all), "memory")) return 0;
    return g->free_at_first > now ? g->free_at_first - now : 0;
}

/* ---- recordings ---- */

void gpu_forget(ma_device *d, void *of) {
    gpu *g = here(d);
    recording *r = (recording *)of;
    if (r->graph) cudaStreamSynchronize(g->c.stream); /* it may be running */
    if (r->graph) cudaGraphExecDestroy(r->graph);
    if (r->values) cudaFreeHost(r->values);
    free(r);
}

int gpu_capture(ma_device *d, size_t puts) {
    gpu *g = here(d);
    recording *r = (recording *)calloc(1, sizeof *r);
    if (!r) return -1;
    r->room = puts;
    if ((puts && bad(g, cudaMallocHost(&r->values, puts), "recording")) ||
        bad(g, cudaStreamBeginCapture(g->c.stream, cudaStreamCaptureModeThreadLocal), "recording")) {
        gpu_forget(d, r);
        return -1;
    }
    g->making = r;
    return 0;
}

/* Why there is none is nobody's concern: the work is then run as it stands. */
void *gpu_captured(ma_device *d) {
    gpu *g = here(d);
    recording *r = g->making;
    cudaGraph_t graph = NULL;
    g->making = NULL;
    bool failed = bad(g, cudaStreamEndCapture(g->c.stream, &graph), "recording") || !graph ||
                  bad(g, cudaGraphInstantiateWithFlags(&r->graph, graph, 0), "recording");
    if (graph) cudaGraphDestroy(graph);
    if (!failed) return r;
    g->c.failure[0] = 0;
    gpu_forget(d, r);
    return NULL;
}

int gpu_replay(ma_device *d, void *of) {
    gpu *g = here(d);
    return bad(g, cudaGraphLaunch(((recording *)of)->graph, g->c.stream), "recording") ? -1 : 0;
}

/* ---- opening and closing ---- */

void gpu_close(ma_device *d) {
    gpu *g = here(d);
    ma_cuda *c = &g->c;
    if (c->stream) cudaStreamSynchronize(c->stream);
    ma_cuda_team_close(c);
    ma_cuda_gemm_close(c);
    ma_cuda_free_plans(c);
    if (c->blas) cublasLtDestroy((cublasLtHandle_t)c->blas);
    if (c->dnn) cudnnDestroy((cudnnHandle_t)c->dnn);
    if (g->copies) cudaStreamSynchronize(g->copies);
    for (cudaEvent_t e : g->come)
        if (e) cudaEventDestroy(e);
    for (cudaEvent_t e : g->done)
        if (e) cudaEventDestroy(e);
    for (cudaEvent_t e : g->clock)
        if (e) cudaEventDestroy(e);
    if (c->staging) cudaFreeHost(c->staging);
    for (void *p : {(void *)g->stage, g->detour, g->room})
        if (p) cudaFree(p);
    if (g->copies) cudaStreamDestroy(g->copies);
    if (c->stream) cudaStreamDestroy(c->stream);
    free(g);
}

/* The ops that are only ever run come last, and have no backward, as on the CPU. */
#define FWD(UPPER, lower) ma_cuda_##lower##_fwd,
#define BWD(UPPER, lower) ma_cuda_##lower##_bwd,
const ma_kernel forward[MA_NOPS] = {MA_OPS(FWD)}, backward[MA_NOPS] = {MA_OPS_BACKWARD(BWD)};

/* Which gradients each op writes whole: not those of mod, of whose rows it may see but some, nor those of slice, and of
 * pool, which leave elements out. */
const struct {
    ma_op op;
    unsigned inputs; /* bits */
} setters[] = {
    {MA_OP_LINEAR, 7},     {MA_OP_MATMUL, 3},     {MA_OP_CONV, 7},     {MA_OP_CONV_TRANSPOSE, 7},
    {MA_OP_ATTENTION, 7},  {MA_OP_LAYER_NORM, 7}, {MA_OP_MODULATE, 7}, {MA_OP_GATE, 3},
    {MA_OP_GROUP_NORM, 7}, {MA_OP_ROPE, 1},       {MA_OP_ACT, 1},      {MA_OP_ADD, 3},
    {MA_OP_MUL, 3},        {MA_OP_AFFINE, 1},     {MA_OP_CONCAT, 255}, {MA_OP_UNPATCH, 1},
    {MA_OP_RESIZE, 1},     {MA_OP_L1, 1},         {MA_OP_MSE, 1},      {MA_OP_RELATION, 1},
    {MA_OP_COSINE, 1},
};

void fill(gpu *g, bool plan) {
    ma_device *d = &g->c.device;
    d->name = "cuda";
    d->plan = plan;
    d->alloc = gpu_alloc;
    d->release = gpu_release;
    d->alloc_host = gpu_alloc_host;
    d->release_host = gpu_release_host;
    d->put = gpu_put;
    d->get = gpu_get;
    d->move = gpu_move;
    d->zero = gpu_zero;
    d->cast = gpu_cast;
    d->work = gpu_work;
    d->squares = gpu_squares;
    d->adam = gpu_adam;
    memcpy(d->fwd, forward, sizeof forward);
    memcpy(d->bwd, backward, sizeof backward);
    for (const auto &s : setters) d->sets[s.op] = s.inputs;
    d->types[MA_F32] = d->types[MA_BF16] = d->types[MA_F16] = true;
    d->timer = gpu_timer;
    d->close = gpu_close;
    d->tf32 = gpu_tf32;
    d->capture = gpu_capture;
    d->captured = gpu_captured;
    d->replay = gpu_replay;
    d->forget = gpu_forget;
    d->used = gpu_used;
    d->grain = GRAIN;
    d->reserve = CODE + SLOTS * SLOT;
    d->stream = g; /* what kernels see */
    d->failure = g->c.failure;
    d->team = ma_cuda_team();
}

/* Why there are no devices. */
int none(cudaError_t why, ma_err *e) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (why == cudaErrorInsufficientDriver && !driver)
        return ma_fail(e, MA_DEVICE, "cuda: no NVIDIA driver (libcuda.so.1)");
    if (why == cudaErrorInsufficientDriver)
        return ma_fail(e, MA_DEVICE, "cuda: the driver is for CUDA %d.%d, this build needs %d.%d", driver / 1000,
                       driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (why == cudaErrorNoDevice || why == cudaSuccess)
        return ma_fail(e, MA_DEVICE, "cuda: the driver shows no GPU (CUDA_VISIBLE_DEVICES may hide it)");
    return ma_fail(e, MA_DEVICE, "cuda: %s", cudaGetErrorString(why));
}

/* The device has no code of ours: which it has, and which it needs. */
int foreign(int index, ma_err *e) {
    static const int built[] = {__CUDA_ARCH_LIST__}; /* 800, 900, … */
    cudaDeviceProp p;
    char list[160] = "";
    size_t at = 0;
    for (int arch : built)
        if (at < sizeof list) at += (size_t)snprintf(list + at, sizeof list - at, " %d.%d", arch / 100, arch / 10 % 10);
    if (cudaGetDeviceProperties(&p, index)) return ma_fail(e, MA_DEVICE, "cuda:%d: no properties", index);
    return ma_fail(e, MA_DEVICE, "cuda:%d: %s has compute capability %d.%d; this build is for%s", index, p.name,
                   p.major, p.minor, list);
}

int start(gpu *g, ma_err *e) {
    int index = g->c.index, count = 0;
    cudaError_t why = cudaGetDeviceCount(&count);
    if (why || !count) return none(why, e);
    if (index >= count) return ma_fail(e, MA_DEVICE, "cuda:%d: the last GPU here is cuda:%d", index, count - 1);
    size_t all;
    cudaFuncAttributes ours;
    /* Who waits sleeps: a core that spins is one that decodes no video. */
    why = cudaInitDevice(index, cudaDeviceScheduleBlockingSync, cudaInitDeviceFlagsAreValid);
    if (!why) why = cudaSetDevice(index);
    if (!why) why = cudaMemGetInfo(&g->free_at_first, &all);
    g->c.device.free_bytes = g->free_at_first;
    if (!why) why = cudaFuncGetAttributes(&ours, adam_kernel<MA_F32, false>);
    if (why == cudaErrorNoKernelImageForDevice || why == cudaErrorInvalidDeviceFunction) return foreign(index, e);
    if (!why) why = cudaStreamCreateWithFlags(&g->c.stream, cudaStreamNonBlocking);
    return why ? ma_fail(e, MA_DEVICE, "cuda:%d: %s", index, cudaGetErrorString(why)) : 0;
}

/* For a plan: 0 where there is no such GPU. */
size_t free_bytes(int index) {
    size_t room = 0, all;
    if (cudaSetDevice(index) || cudaMemGetInfo(&room, &all)) room = 0;
    cudaGetLastError();
    return room;
}

} // namespace

/* The device, to be closed by its close(); NULL: e says why. plan: sizes only, also where there is no GPU. */
extern "C" __attribute__((visibility("default"))) ma_device *ma_cuda_device(int index, bool plan, ma_err *e) {
    gpu *g = (gpu *)calloc(1, sizeof *g);
    if (!g) {
        ma_fail(e, MA_MEMORY, "cuda: out of memory");
        return NULL;
    }
    g->c.index = index;
    fill(g, plan);
    if (plan)
        g->c.device.free_bytes = free_bytes(index);
    else if (start(g, e)) {
        free(g);
        return NULL;
    }
    return &g->c.device;
}
