/* tensor: context, arenas, tape, checkpointing, replaying.
 *
 * Three places of memory. `keep`: parameters and their gradients, never freed. `stack`: activations, freed by
 * rewinding. `pool`: gradients of activations; the tape runs backwards, so each is born late and dies early, and a list
 * of free blocks serves them with little more than the widest moment needs. What checkpoints keep of attention
 * (spares) is in the pool, too; spares are a stack of their own, in step with the tape. A fourth, `host`, is for
 * parameters' state that the device reaches in the host's memory; what it takes is not counted with the device's.
 *
 * A plan (device->plan) takes the same ways without memory: chunks and blocks are counted as the device would have
 * given them, tensors have no address, kernels are not called. Where a device would have no more it drops spares as a
 * run would, then goes on, so that the whole is told.
 *
 * Traps: spares of blocks that are running are in use and must not be dropped. A recording knows addresses: it goes
 * stale with the workspace. Uses of a leaf are counted where a call is first run: a block that runs again in the
 * backward pass has been counted when it ran forward, though its calls were not recorded then. Zeros are written to a
 * gradient only where its first kernel cannot set it: because it is one that adds, or writes but a part (a view), or
 * comes to it twice (x·x).
 */
#include "tensor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 256

typedef struct chunk {
    char *base;
    size_t size, used;
} chunk;

/* Chunks are filled in order; one that is too small for a request is passed over. */
typedef struct arena {
    chunk *at;
    size_t n, now;      /* chunks; the one being filled */
    size_t bytes, peak; /* in use */
} arena;

typedef struct record {
    ma_call call;
    ma_block block; /* a checkpoint: call.in and call.out are its inputs and its result */
    const void *self;
    size_t spares, nspares; /* the first spare that is not older, and how many are the checkpoint's */
} record;

/* What a checkpoint keeps of one call: the data of out and of save[0], blocks of the pool; NULL: not kept, dropped. */
typedef struct spare {
    void *data[2];
    size_t bytes;
} spare;

/* What to do with calls that a checkpoint may keep the results of. */
typedef struct pass {
    enum { COMPUTE, KEEP, REUSE } way;
    size_t next, end; /* REUSE: these spares, in order */
    size_t in_use;    /* spares from this one on belong to blocks that run */
} pass;

/* Work that was run before, perhaps recorded. */
typedef struct replay {
    ma_block block;
    const void *self;
    uint64_t key;
    ma_tensor in[8], out;
    int nin, runs;
    ma_mark_t mark;
    void *work;      /* the workspace that the recording knows */
    size_t puts;     /* bytes that one run puts */
    void *recording; /* the device's; NULL: none (yet) */
    bool refused;
} replay;

typedef struct pooled {
    void *data;
    size_t size;
    bool busy;
} pooled;

struct ma_ctx {
    ma_device *dev;
    ma_err err;
    ma_type type;
    bool record, saw_want;
    bool again, back; /* what runs will run again, recorded, in the backward pass; that is under way */
    void (*final)(void *, ma_tensor *);
    void *final_self;
    arena keep, stack, host;
    size_t keep_grad, optimiser;
    size_t peak; /* of the device's taken bytes */
    size_t names;
    const char *lever;
    pooled *pool;
    size_t npool, pool_bytes;
    void *work;
    size_t work_bytes;
    ma_tensor **made; /* descriptors on the stack; those past nmade are spare */
    size_t nmade, made_room;
    ma_tensor **kept;
    size_t nkept, kept_room;
    record *tape;
    size_t ntape, tape_room;
    spare *spares;
    size_t nspares, spares_room;
    size_t spare_bytes, spare_peak, spare_most; /* kept now; the most of this step; the most that may be */
    pass pass;
    replay *replays;
    size_t nreplays, replays_room;
    ma_replayed replayed;
    size_t puts;               /* bytes put so far */
    bool replaying, capturing; /* within a block of ma_replay; one that is being recorded */
};

static const char *const op_names[] = {
#define NAME(UPPER, lower) #lower,
    MA_OPS(NAME)
#undef NAME
};

const char *ma_op_name(ma_op op) {
    return op < MA_NOPS ? op_names[op] : "?";
}

int64_t ma_count(const ma_tensor *t) {
    int64_t count = 1;
    for (int k = 0; k < t->nd; k++) count *= t->n[k];
    return count;
}

size_t ma_bytes(const ma_tensor *t) {
    return (size_t)ma_count(t) * ma_type_size(t->type);
}

/* ---- context ---- */

ma_ctx *ma_ctx_new(ma_device *dev, ma_err *e) {
    ma_ctx *c = calloc(1, sizeof *c);
    if (!c) {
        ma_fail(e, MA_MEMORY, "context: out of memory");
        return NULL;
    }
    c->dev = dev;
    c->type = MA_F32;
    c->record = true;
    c->spare_most = c->pass.in_use = SIZE_MAX;
    return c;
}

/* Gives back what take() gave. */
static void give(ma_ctx *c, void *p, size_t size) {
    if (p) c->dev->taken -= size;
    c->dev->release(c->dev, p);
}

static void arena_free(ma_ctx *c, arena *a) {
    for (size_t k = 0; k < a->n; k++) give(c, a->at[k].base, a->at[k].size);
    free(a->at);
}

static void free_all(ma_tensor **t, size_t n) {
    for (size_t k = 0; k < n; k++) free(t[k]);
    free(t);
}

void ma_ctx_free(ma_ctx *c) {
    if (!c) return;
    for (size_t k = 0; k < c->nmade; k++) free(c->made[k]->grad);
    for (size_t k = 0; k < c->nkept; k++) free(c->kept[k]->grad);
    free_all(c->made, c->made_room);
    free_all(c->kept, c->nkept);
    arena_free(c, &c->keep);
    arena_free(c, &c->stack);
    for (size_t k = 0; k < c->host.n; k++) c->dev->release_host(c->dev, c->host.at[k].base);
    free(c->host.at);
    for (size_t k = 0; k < c->npool; k++) give(c, c->pool[k].data, c->pool[k].size);
    for (size_t k = 0; k < c->nreplays; k++)
        if (c->replays[k].recording) c->dev->forget(c->dev, c->replays[k].recording);
    free(c->pool);
    give(c, c->work, c->work_bytes);
    free(c->tape);
    free(c->spares);
    free(c->replays);
    free(c);
}

ma_device *ma_ctx_device(ma_ctx *c) {
    return c->dev;
}

ma_err *ma_ctx_err(ma_ctx *c) {
    return &c->err;
}

bool ma_failed(const ma_ctx *c) {
    return c->err.reason != MA_OK;
}

int ma_ctx_failed(const ma_ctx *c, ma_err *e) {
    return ma_failed(c) ? ma_fail(e, c->err.reason, "%s", c->err.text) : 0;
}

void ma_set_type(ma_ctx *c, ma_type type) {
    if (c->dev->types[type])
        c->type = type;
    else
        ma_fail(&c->err, MA_DEVICE, "%s: no kernels for %s", c->dev->name, ma_type_name(type));
}

ma_type ma_get_type(const ma_ctx *c) {
    return c->type;
}

bool ma_recording(ma_ctx *c, bool on) {
    bool was = c->record;
    c->record = on;
    return was;
}

bool ma_recorded(const ma_ctx *c) {
    return c->record;
}

/* A run asks the device, which also knows what it took for itself; what has been given back since the peak is added. */
static size_t in_all(const ma_ctx *c) {
    if (c->dev->plan || !c->dev->used) return c->peak + c->dev->reserve;
    return c->dev->used(c->dev) + c->peak - c->dev->taken;
}

ma_memory ma_ctx_memory(const ma_ctx *c) {
    return (ma_memory){.keep = c->keep.bytes - c->keep_grad - c->optimiser,
                       .keep_grad = c->keep_grad,
                       .optimiser = c->optimiser,
                       .stack = c->stack.bytes,
                       .stack_peak = c->stack.peak,
                       .pool = c->pool_bytes,
                       .work = c->work_bytes,
                       .host = c->host.bytes,
                       .in_all = in_all(c)};
}

void ma_ctx_lever(ma_ctx *c, const char *lever) {
    c->lever = lever;
}

/* Makes room for one more in an array that doubles. */
static int grow(ma_ctx *c, void **at, size_t *room, size_t n, size_t size) {
    if (n < *room) return 0;
    size_t more = *room ? 2 * *room : 64;
    void *p = realloc(*at, more * size);
    if (!p) return ma_fail(&c->err, MA_MEMORY, "context: out of memory");
    memset((char *)p + *room * size, 0, (more - *room) * size);
    *at = p;
    *room = more;
    return 0;
}

/* ---- the device's memory ---- */

/* What is in use by arena, what was asked for, what there is, and the lever to pull. */
static int out_of_memory(ma_ctx *c, const char *what, size_t size) {
    const ma_memory m = ma_ctx_memory(c);
    const double mb = 1e6;
    char there[64] = "";
    if (c->dev->free_bytes)
        snprintf(there, sizeof there, " of %.1f MB%s", (double)c->dev->free_bytes / mb,
                 c->dev->limit ? " allowed" : "");
    return ma_fail(&c->err, MA_MEMORY,
                   "%s: out of memory: %.1f MB more for %s; taken %.1f%s: parameters %.1f, gradients %.1f, "
                   "optimiser %.1f, activations %.1f, workspace %.1f%s%s",
                   c->dev->name, (double)size / mb, what, (double)c->dev->taken / mb, there, (double)m.keep / mb,
                   (double)m.keep_grad / mb, (double)m.optimiser / mb, (double)(m.stack + m.pool) / mb,
                   (double)m.work / mb, c->lever ? "; " : "", c->lever ? c->lever : "");
}

/* What contexts may take. A plan and a run agree on it. */
static size_t most_of(const ma_device *d) {
    return !d->free_bytes ? SIZE_MAX : d->free_bytes > d->reserve ? d->free_bytes - d->reserve : 0;
}

static void *took(ma_ctx *c, void *p, size_t size) {
    c->dev->taken += size;
    if (c->dev->taken > c->peak) c->peak = c->dev->taken;
    return p;
}

/* In a plan the address is only a name. */
static void *name(ma_ctx *c) {
    return (void *)(uintptr_t)++c->names;
}

/* What the device takes from its memory for a block; small ones share a grain. */
static size_t whole(const ma_ctx *c, size_t size) {
    const size_t grain = c->dev->grain;
    return grain && size >= grain / 2 ? (size + grain - 1) / grain * grain : size;
}

/* NULL: the device has no more. */
static void *try_take(ma_ctx *c, size_t size) {
    size_t sum;
    if (!ma_sum(c->dev->taken, size, &sum) || sum > most_of(c->dev)) return NULL;
    void *p = c->dev->plan ? name(c) : c->dev->alloc(c->dev, size);
    return p ? took(c, p, size) : NULL;
}

static bool drop_spare(ma_ctx *c);

/* The same, if need be in the place of spares. NULL: the context has failed. */
static void *take(ma_ctx *c, size_t size, const char *what) {
    void *p;
    while (!(p = try_take(c, size)) && drop_spare(c)) continue;
    if (!p && c->dev->plan) p = took(c, name(c), size);
    if (!p) out_of_memory(c, what, size);
    return p;
}

/* ---- the pool ---- */

static pooled *pool_find(const ma_ctx *c, const void *data) {
    for (size_t k = 0; k < c->npool; k++)
        if (c->pool[k].data == data) return &c->pool[k];
    return NULL;
}

/* The smallest free block that fits and is not twice too large; else a new one, for which spares are dropped where
 * there is need. what NULL: they are not, and NULL is no error. */
static void *pool_take(ma_ctx *c, size_t size, const char *what) {
    pooled *best = NULL;
    size = whole(c, (size + ALIGN - 1) / ALIGN * ALIGN);
    for (size_t k = 0; k < c->npool; k++) {
        pooled *p = &c->pool[k];
        if (!p->busy && p->size >= size && p->size <= 2 * size && (!best || p->size < best->size)) best = p;
    }
    if (best) {
        best->busy = true;
        return best->data;
    }
    void *p = what ? take(c, size, what) : try_take(c, size);
    if (!p) return NULL;
    pooled *more = realloc(c->pool, (c->npool + 1) * sizeof *more);
    if (!more) {
        ma_fail(&c->err, MA_MEMORY, "context: out of memory");
        give(c, p, size);
        return NULL;
    }
    c->pool = more;
    c->pool[c->npool++] = (pooled){p, size, true};
    c->pool_bytes += size;
    return p;
}

static void pool_give(ma_ctx *c, const void *data) {
    pooled *p = pool_find(c, data);
    if (p) p->busy = false;
}

/* Gives the block back to the device. */
static void pool_drop(ma_ctx *c, const void *data) {
    pooled *p = pool_find(c, data);
    if (!p) return;
    give(c, p->data, p->size);
    c->pool_bytes -= p->size;
    *p = c->pool[--c->npool];
}

/* ---- spares ---- */

/* An op that is worth its memory: a checkpointed block spends most of its time in it. */
static bool lasting(const ma_call *call) {
    return call->op == MA_OP_ATTENTION;
}

static void forget_spares(ma_ctx *c, size_t from) {
    while (c->nspares > from) {
        const spare *s = &c->spares[--c->nspares];
        for (int k = 0; k < 2; k++) pool_give(c, s->data[k]);
        c->spare_bytes -= s->bytes;
    }
    if (!c->nspares) c->spare_peak = 0;
}

/* The oldest that is not in use goes, and the steps to come keep no more than this one could. */
static bool drop_spare(ma_ctx *c) {
    for (size_t k = 0; k < c->nspares && k < c->pass.in_use; k++) {
        spare *s = &c->spares[k];
        if (!s->bytes) continue;
        for (int j = 0; j < 2; j++) pool_drop(c, s->data[j]);
        if (c->spare_peak < c->spare_most) c->spare_most = c->spare_peak;
        c->spare_most -= s->bytes < c->spare_most ? s->bytes : c->spare_most;
        c->spare_bytes -= s->bytes;
        *s = (spare){0};
        return true;
    }
    return false;
}

/* Lets the call write where what it makes can stay, while there is room. */
static void keep_spare(ma_ctx *c, ma_call *call) {
    if (grow(c, (void **)&c->spares, &c->spares_room, c->nspares, sizeof *c->spares)) return;
    spare *s = &c->spares[c->nspares++];
    ma_tensor *made[2] = {call->out, call->save[0]};
    *s = (spare){.bytes = ma_bytes(made[0]) + ma_bytes(made[1])};
    bool fits = s->bytes <= c->spare_most && c->spare_bytes <= c->spare_most - s->bytes;
    for (int k = 0; k < 2 && fits; k++) fits = (s->data[k] = pool_take(c, ma_bytes(made[k]), NULL)) != NULL;
    if (!fits) {
        for (int k = 0; k < 2; k++) pool_give(c, s->data[k]);
        *s = (spare){0};
        return;
    }
    c->spare_bytes += s->bytes;
    if (c->spare_bytes > c->spare_peak) c->spare_peak = c->spare_bytes;
    for (int k = 0; k < 2 && !c->dev->plan; k++) made[k]->data = s->data[k];
}

/* Where the block's first run left what the call would make: takes it and is true. */
static bool reuse_spare(ma_ctx *c, ma_call *call) {
    if (c->pass.next == c->pass.end) return false;
    const spare *s = &c->spares[c->pass.next++];
    ma_tensor *made[2] = {call->out, call->save[0]};
    for (int k = 0; k < 2 && s->bytes && !c->dev->plan; k++)
        if (made[k]) made[k]->data = s->data[k];
    return s->bytes > 0;
}

/* Begins a pass; returns the one before. first: of the spares that are in use until it is back. */
static pass begin_pass(ma_ctx *c, int way, size_t first, size_t n) {
    const pass was = c->pass;
    c->pass = (pass){way, first, first + n, first < was.in_use ? first : was.in_use};
    return was;
}

/* ---- arenas ---- */

/* What is asked of the device at a time, to be shared by small tensors. One of a 32nd of it or more gets a chunk of
 * just its size: what a chunk's end is too short for is lost, and of tensors a little larger than half a chunk that is
 * nearly half. */
static size_t chunk_size(const ma_ctx *c) {
    const size_t usual = (size_t)64 << 20, large = (size_t)1 << 30, share = c->dev->free_bytes / 32;
    return !c->dev->free_bytes ? usual : share < large ? share : large;
}

/* How much the host has is not known. */
static void *take_host(ma_ctx *c, size_t size, const char *what) {
    void *p = c->dev->plan ? name(c) : c->dev->alloc_host(c->dev, size);
    if (!p)
        ma_fail(&c->err, MA_MEMORY, "%s: out of memory: the host gave no %.1f MB more for %s; there it has taken %.1f",
                c->dev->name, (double)size / 1e6, what, (double)c->host.bytes / 1e6);
    return p;
}

static int arena_more(ma_ctx *c, arena *a, size_t size, const char *what) {
    chunk *at = realloc(a->at, (a->n + 1) * sizeof *at);
    if (!at) return ma_fail(&c->err, MA_MEMORY, "context: out of memory");
    a->at = at;
    size = whole(c, size < chunk_size(c) / 32 ? chunk_size(c) : size);
    void *base = a == &c->host ? take_host(c, size, what) : take(c, size, what);
    if (!base) return -1;
    a->at[a->n++] = (chunk){base, size, 0};
    return 0;
}

static int arena_take(ma_ctx *c, arena *a, size_t size, void **data, const char *what) {
    size = (size + ALIGN - 1) / ALIGN * ALIGN;
    *data = NULL;
    while (a->now < a->n && a->at[a->now].size - a->at[a->now].used < size) a->now++;
    if (a->now == a->n && arena_more(c, a, size, what)) return -1;
    chunk *k = &a->at[a->now];
    if (!c->dev->plan) *data = k->base + k->used;
    k->used += size;
    a->bytes += size;
    if (a->bytes > a->peak) a->peak = a->bytes;
    return 0;
}

ma_mark_t ma_mark(const ma_ctx *c) {
    const arena *a = &c->stack;
    return (ma_mark_t){a->now, a->now < a->n ? a->at[a->now].used : 0, c->nmade, c->ntape, a->bytes};
}

void ma_rewind(ma_ctx *c, ma_mark_t m) {
    arena *a = &c->stack;
    if (m.tape < c->ntape) forget_spares(c, c->tape[m.tape].spares);
    for (size_t k = m.chunk + 1; k < a->n && k <= a->now; k++) a->at[k].used = 0;
    if (m.chunk < a->n) a->at[m.chunk].used = m.used;
    a->now = m.chunk;
    a->bytes = m.bytes;
    for (size_t k = m.tensors; k < c->nmade; k++) {
        ma_tensor *t = c->made[k];
        if (t->grad && !t->leaf) { /* left over by a backward pass that did not reach it, or a view's descriptor */
            if (!t->base) pool_give(c, t->grad->data);
            free(t->grad);
            t->grad = NULL;
        }
    }
    c->nmade = m.tensors;
    c->ntape = m.tape;
}

static void forget_uses(ma_ctx *c);

void ma_reset(ma_ctx *c) {
    ma_rewind(c, (ma_mark_t){0});
    forget_uses(c);
}

/* ---- tensors ---- */

/* Shape and size, checked; no data yet. */
static int describe(ma_ctx *c, ma_tensor *t, ma_type type, int nd, const int64_t *n) {
    size_t bytes = ma_type_size(type);
    if (nd < 0 || nd > MA_DIMS) return ma_fail(&c->err, MA_SHAPE, "tensor: %d dimensions", nd);
    *t = (ma_tensor){.type = type, .nd = nd};
    for (int k = 0; k < nd; k++) {
        t->n[k] = n[k];
        if (n[k] <= 0 || !ma_mul(bytes, (size_t)n[k], &bytes)) {
            char text[160];
            return ma_fail(&c->err, MA_SHAPE, "tensor: impossible shape %s", ma_shape_text(text, nd, n));
        }
    }
    return 0;
}

static ma_tensor *stack_descriptor(ma_ctx *c) {
    if (grow(c, (void **)&c->made, &c->made_room, c->nmade, sizeof *c->made)) return NULL;
    ma_tensor **t = &c->made[c->nmade];
    if (!*t) *t = calloc(1, sizeof **t);
    if (!*t) {
        ma_fail(&c->err, MA_MEMORY, "context: out of memory");
        return NULL;
    }
    c->nmade++;
    **t = (ma_tensor){0};
    return *t;
}

static ma_tensor *kept_descriptor(ma_ctx *c) {
    if (grow(c, (void **)&c->kept, &c->kept_room, c->nkept, sizeof *c->kept)) return NULL;
    ma_tensor *t = calloc(1, sizeof *t);
    if (!t)
        ma_fail(&c->err, MA_MEMORY, "context: out of memory");
    else
        c->kept[c->nkept++] = t;
    return t;
}

static ma_tensor *keep_in(ma_ctx *c, arena *a, ma_type type, int nd, const int64_t *n, const char *what) {
    ma_tensor *t = ma_failed(c) ? NULL : kept_descriptor(c);
    if (!t || describe(c, t, type, nd, n) || arena_take(c, a, ma_bytes(t), &t->data, what)) return NULL;
    t->kept = true;
    return t;
}

ma_tensor *ma_keep(ma_ctx *c, ma_type type, int nd, const int64_t *n) {
    return keep_in(c, &c->keep, type, nd, n, "parameters");
}

ma_tensor *ma_keep_state(ma_ctx *c, ma_type type, bool far, int nd, const int64_t *n) {
    const size_t before = c->keep.bytes;
    arena *a = far && c->dev->alloc_host ? &c->host : &c->keep;
    ma_tensor *t = keep_in(c, a, type, nd, n, "the optimiser");
    c->optimiser += c->keep.bytes - before;
    return t;
}

ma_tensor *ma_new(ma_ctx *c, ma_type type, int nd, const int64_t *n) {
    ma_tensor *t = ma_failed(c) ? NULL : stack_descriptor(c);
    if (!t || describe(c, t, type, nd, n) || arena_take(c, &c->stack, ma_bytes(t), &t->data, "activations"))
        return NULL;
    return t;
}

/* ": what the device says", or nothing. */
static const char *said(const ma_ctx *c, char text[280]) {
    const bool any = c->dev->failure && *c->dev->failure;
    snprintf(text, 280, "%s%.256s", any ? ": " : "", any ? c->dev->failure : "");
    return text;
}

static int device_failed(ma_ctx *c, const char *what) {
    char why[280];
    return ma_fail(&c->err, MA_DEVICE, "%s: %s failed%s", c->dev->name, what, said(c, why));
}

static int zero(ma_ctx *c, ma_tensor *t) {
    if (c->dev->plan || !c->dev->zero(c->dev, t->data, ma_bytes(t))) return 0;
    return device_failed(c, "clearing memory");
}

ma_tensor *ma_leaf(ma_ctx *c, ma_tensor *t) {
    if (!t || ma_failed(c)) return NULL;
    size_t before = c->keep.bytes;
    ma_tensor *g = calloc(1, sizeof *g);
    if (!g) {
        ma_fail(&c->err, MA_MEMORY, "context: out of memory");
        return NULL;
    }
    t->grad = g;
    t->want = t->leaf = true;
    if (describe(c, g, MA_F32, t->nd, t->n) || arena_take(c, &c->keep, ma_bytes(g), &g->data, "gradients") ||
        zero(c, g))
        return NULL;
    c->keep_grad += c->keep.bytes - before;
    return t;
}

/* The tensor of whose memory t is a part, or all. */
static ma_tensor *root_of(ma_tensor *t) {
    return t->base ? t->base : t;
}

/* Zeros in a gradient that counts as zero. */
static int settle(ma_ctx *c, ma_tensor *grad) {
    if (!grad->fresh) return 0;
    grad->fresh = false;
    return zero(c, grad);
}

int ma_put_raw(ma_ctx *c, ma_tensor *t, const void *host) {
    if (!t || ma_failed(c)) return -1;
    if (!t->base) t->fresh = false;
    if (t->base && settle(c, t->base)) return -1;
    if (c->dev->plan) return 0;
    c->puts += (ma_bytes(t) + ALIGN - 1) / ALIGN * ALIGN;
    return c->dev->put(c->dev, t->data, host, ma_bytes(t)) ? device_failed(c, "copying to the device") : 0;
}

int ma_put(ma_ctx *c, ma_tensor *t, const float *host) {
    if (!t || ma_failed(c)) return -1;
    if (c->dev->plan) return 0;
    const void *from = host;
    void *cast = NULL;
    if (t->type != MA_F32) {
        from = cast = ma_alloc((size_t)ma_count(t), ma_type_size(t->type));
        if (!cast) return ma_fail(&c->err, MA_MEMORY, "context: out of memory");
        ma_from_f32(cast, host, t->type, (size_t)ma_count(t));
    }
    int rc = ma_put_raw(c, t, from);
    ma_release(cast);
    return rc;
}

static bool is_fresh(const ma_tensor *t) {
    return t->base ? t->base->fresh : t->fresh;
}

int ma_get(ma_ctx *c, const ma_tensor *t, float *host) {
    if (!t || ma_failed(c)) return -1;
    if (c->capturing) return device_failed(c, "reading within a recording");
    if (c->dev->plan || is_fresh(t)) {
        memset(host, 0, (size_t)ma_count(t) * sizeof *host);
        return 0;
    }
    void *to = host;
    if (t->type != MA_F32 && !(to = ma_alloc((size_t)ma_count(t), ma_type_size(t->type))))
        return ma_fail(&c->err, MA_MEMORY, "context: out of memory");
    int rc = c->dev->get(c->dev, to, t->data, ma_bytes(t)) ? device_failed(c, "copying from the device") : 0;
    if (to != host) {
        if (!rc) ma_to_f32(host, to, t->type, (size_t)ma_count(t));
        ma_release(to);
    }
    return rc;
}

int ma_get_as(ma_ctx *c, const ma_tensor *t, ma_type type, void *host) {
    if (!t || ma_failed(c)) return -1;
    if (c->capturing) return device_failed(c, "reading within a recording");
    if (is_fresh(t)) {
        memset(host, 0, (size_t)ma_count(t) * ma_type_size(type));
        return 0;
    }
    ma_mark_t m = ma_mark(c);
    ma_tensor *as = t->type == type ? NULL : ma_new(c, type, t->nd, t->n);
    if (!as && t->type != type) return -1;
    ma_device *d = c->dev;
    if (as && !d->plan && d->cast(d, as->data, type, t->data, t->type, ma_count(t))) return device_failed(c, "a cast");
    const ma_tensor *from = as ? as : t;
    int rc = !d->plan && d->get(d, host, from->data, ma_bytes(from)) ? device_failed(c, "copying from the device") : 0;
    ma_rewind(c, m);
    return rc;
}

static ma_tensor *input(ma_ctx *c, ma_type type, const float *host, int nd, const int64_t *n) {
    ma_tensor *t = ma_new(c, type, nd, n);
    return ma_put(c, t, host) ? NULL : t;
}

ma_tensor *ma_input(ma_ctx *c, const float *host, int nd, const int64_t *n) {
    return input(c, c->type, host, nd, n);
}

ma_tensor *ma_input_f32(ma_ctx *c, const float *host, int nd, const int64_t *n) {
    return input(c, MA_F32, host, nd, n);
}

double ma_scalar(ma_ctx *c, const ma_tensor *t) {
    float value = NAN;
    if (t && ma_count(t) == 1) ma_get(c, t, &value);
    return value;
}

/* ---- views ---- */

static ma_tensor *view(ma_ctx *c, ma_tensor *t, int64_t offset, int nd, const int64_t *n) {
    ma_tensor *root = t->base ? t->base : t, *v;
    offset += t->offset;
    for (size_t k = 0; root->kept && k < c->nkept; k++) {
        v = c->kept[k];
        if (v->base == root && v->offset == offset && v->nd == nd && !memcmp(v->n, n, (size_t)nd * sizeof *n)) return v;
    }
    v = root->kept ? kept_descriptor(c) : stack_descriptor(c);
    if (!v || describe(c, v, t->type, nd, n)) return NULL;
    v->want = root->want;
    v->kept = root->kept;
    v->base = root;
    v->offset = offset;
    if (root->data) v->data = (char *)root->data + (size_t)offset * ma_type_size(root->type);
    return v;
}

ma_tensor *ma_view(ma_ctx *c, ma_tensor *t, int nd, const int64_t *n) {
    if (!t || ma_failed(c)) return NULL;
    int64_t count = 1;
    for (int k = 0; k < nd; k++) count *= n[k];
    if (count != ma_count(t)) {
        char a[160], b[160];
        ma_fail(&c->err, MA_SHAPE, "view: %s is not %s", ma_shape_text(a, t->nd, t->n), ma_shape_text(b, nd, n));
        return NULL;
    }
    return view(c, t, 0, nd, n);
}

ma_tensor *ma_rows(ma_ctx *c, ma_tensor *t, int64_t from, int64_t count) {
    if (!t || ma_failed(c)) return NULL;
    if (t->nd < 1 || from < 0 || count < 1 || from > t->n[0] - count) {
        ma_fail(&c->err, MA_SHAPE, "rows: %lld..%lld of %lld", (long long)from, (long long)(from + count),
                (long long)(t->nd ? t->n[0] : 0));
        return NULL;
    }
    int64_t n[MA_DIMS];
    memcpy(n, t->n, sizeof n);
    n[0] = count;
    return view(c, t, from * (ma_count(t) / t->n[0]), t->nd, n);
}

/* What is to be carried over a rewind, in the order of its address. */
static int by_address(const void *a, const void *b) {
    const ma_tensor *const *x = a, *const *y = b;
    return ((*x)->data > (*y)->data) - ((*x)->data < (*y)->data);
}

void ma_rewind_keep(ma_ctx *c, ma_mark_t m, ma_tensor **t, int n) {
    enum { MOST = 8 };
    ma_tensor was[MOST], *order[MOST];
    if (n > MOST) ma_fail(&c->err, MA_USAGE, "rewind: %d tensors to keep, %d are the most", n, MOST);
    for (int k = 0; k < n; k++)
        if (!t[k]) ma_fail(&c->err, MA_USAGE, "rewind: nothing to keep");
    if (ma_failed(c)) return;
    for (int k = 0; k < n; k++) {
        was[k] = *t[k];
        order[k] = &was[k];
    }
    /* A chunk that was passed over is before one that was filled, so addresses order tensors within a chunk, and moving
     * in that order never overwrites what is still to be moved: each goes to where it was or further down. */
    ma_rewind(c, m);
    qsort(order, (size_t)n, sizeof *order, by_address);
    for (int k = 0; k < n; k++) {
        const ma_tensor *old = order[k];
        if (old->kept) continue;
        ma_tensor *now = ma_new(c, old->type, old->nd, old->n);
        if (!now) return;
        if (!c->dev->plan && now->data != old->data && c->dev->move(c->dev, now->data, old->data, ma_bytes(now)))
            device_failed(c, "moving memory");
        t[old - was] = now;
    }
}

/* ---- gradients ---- */

/* t->grad, made if there is none yet: fresh. A view's is a part of its base's. */
static ma_tensor *grad_of(ma_ctx *c, ma_tensor *t) {
    if (t->grad) return t->grad;
    ma_tensor *whole = t->base ? grad_of(c, t->base) : NULL;
    ma_tensor *g = t->base && !whole ? NULL : calloc(1, sizeof *g);
    if (!g) {
        ma_fail(&c->err, MA_MEMORY, "context: out of memory");
        return NULL;
    }
    *g = (ma_tensor){.type = whole ? whole->type : t->type, .nd = t->nd, .base = whole, .fresh = !whole};
    memcpy(g->n, t->n, sizeof g->n);
    if (whole)
        g->data = whole->data ? (char *)whole->data + (size_t)t->offset * ma_type_size(g->type) : NULL;
    else if (!(g->data = pool_take(c, ma_bytes(g), "gradients of activations"))) {
        free(g);
        return NULL;
    }
    return t->grad = g;
}

static void grad_done(ma_ctx *c, ma_tensor *t) {
    if (t->leaf || t->base || !t->grad) return;
    pool_give(c, t->grad->data);
    free(t->grad);
    t->grad = NULL;
}

void ma_zero_grads(ma_ctx *c) {
    for (size_t k = 0; k < c->nkept; k++)
        if (c->kept[k]->leaf) c->kept[k]->grad->fresh = true;
}

int ma_settle_grads(ma_ctx *c) {
    for (size_t k = 0; k < c->nkept; k++)
        if (c->kept[k]->leaf && settle(c, c->kept[k]->grad)) return -1;
    return 0;
}

/* ---- running and the tape ---- */

static int need_work(ma_ctx *c, ma_call *call, bool backward) {
    const size_t size = whole(c, c->dev->work ? c->dev->work(c->dev, call, backward) : 0);
    if (size > c->work_bytes) {
        give(c, c->work, c->work_bytes);
        c->work_bytes = 0;
        c->work = take(c, size, "workspace");
        if (!c->work) return -1;
        c->work_bytes = size;
    }
    call->work = c->work;
    call->stream = c->dev->stream;
    return 0;
}

static int kernel_failed(ma_ctx *c, const ma_call *call, const char *way) {
    char shape[160], why[280];
    const ma_tensor *t = call->in[0];
    return ma_fail(&c->err, MA_UNSUPPORTED, "%s: %s%s does not take %s of %s%s", c->dev->name, ma_op_name(call->op),
                   way, ma_shape_text(shape, t->nd, t->n), ma_type_name(t->type), said(c, why));
}

/* The leaf that is behind in[k], or NULL. */
static ma_tensor *leaf_of(const ma_call *call, int k) {
    ma_tensor *t = call->in[k] ? root_of(call->in[k]) : NULL;
    return t && t->leaf ? t : NULL;
}

/* A call that the backward pass will come to. */
static void note_uses(const ma_call *call) {
    for (int k = 0; k < 8; k++)
        if (leaf_of(call, k)) leaf_of(call, k)->uses++;
}

/* It has come to it. */
static int note_used(ma_ctx *c, const ma_call *call) {
    for (int k = 0; k < 8; k++) {
        ma_tensor *leaf = leaf_of(call, k);
        if (!leaf || !leaf->uses || --leaf->uses || !c->final) continue;
        if (settle(c, leaf->grad)) return -1;
        c->final(c->final_self, leaf);
    }
    return 0;
}

/* What was counted and never came: the tape was rewound, or no gradient reached it. */
static void forget_uses(ma_ctx *c) {
    for (size_t k = 0; k < c->nkept; k++) c->kept[k]->uses = 0;
}

void ma_on_final(ma_ctx *c, void (*final)(void *, ma_tensor *), void *self) {
    c->final = final;
    c->final_self = self;
}

static bool any_want(const ma_call *call) {
    for (int k = 0; k < 8; k++)
        if (call->in[k] && call->in[k]->want) return true;
    return false;
}

bool ma_wanted(const ma_ctx *c, const ma_call *call) {
    return (c->record && any_want(call)) || (c->pass.way == KEEP && lasting(call));
}

static record *tape_add(ma_ctx *c) {
    if (grow(c, (void **)&c->tape, &c->tape_room, c->ntape, sizeof *c->tape)) return NULL;
    record *r = &c->tape[c->ntape++];
    *r = (record){.spares = c->nspares};
    return r;
}

static int run_forward(ma_ctx *c, ma_call *call) {
    if (need_work(c, call, false)) return -1;
    if (!c->dev->plan && c->dev->fwd[call->op](call)) return kernel_failed(c, call, "");
    return 0;
}

/* Whether the device has the op for numbers of this type; two take what files hold, and look at the type themselves. */
static bool takes(const ma_device *d, const ma_call *call) {
    const bool any = call->op == MA_OP_PIXELS || call->op == MA_OP_DIFFUSE;
    return d->fwd[call->op] && (any || d->types[call->in[0]->type]);
}

ma_tensor *ma_run(ma_ctx *c, ma_call *call) {
    if (ma_failed(c) || !call->out) return NULL;
    if (!takes(c->dev, call)) {
        kernel_failed(c, call, "");
        return NULL;
    }
    bool wanted = any_want(call);
    c->saw_want |= wanted;
    if (wanted && c->record && !c->dev->bwd[call->op]) {
        ma_fail(&c->err, MA_UNSUPPORTED, "%s: no gradient through %s", c->dev->name, ma_op_name(call->op));
        return NULL;
    }
    if (c->pass.way == KEEP && lasting(call)) keep_spare(c, call);
    if (!(c->pass.way == REUSE && lasting(call) && reuse_spare(c, call)) && run_forward(c, call)) return NULL;
    if ((c->record || c->again) && !c->back) note_uses(call);
    if (wanted && c->record) {
        record *r = tape_add(c);
        if (!r) return NULL;
        r->call = *call;
        call->out->want = true;
    }
    return call->out;
}

ma_tensor *ma_checkpoint(ma_ctx *c, ma_block block, const void *self, ma_tensor **in, int nin) {
    for (int k = 0; k < nin; k++)
        if (!in[k]) return NULL;
    if (nin > 8) ma_fail(&c->err, MA_USAGE, "checkpoint: %d inputs, 8 are the most", nin);
    if (ma_failed(c)) return NULL;
    ma_mark_t m = ma_mark(c);
    const size_t first = c->nspares;
    bool saw = c->saw_want, record_on = ma_recording(c, false), again = c->again;
    c->saw_want = false;
    c->again |= record_on;
    const pass was = begin_pass(c, record_on ? KEEP : COMPUTE, first, 0);
    ma_tensor *out = block(c, self, in);
    bool wanted = c->saw_want && record_on;
    c->saw_want |= saw;
    c->again = again;
    ma_recording(c, record_on);
    if (out && !ma_failed(c)) ma_rewind_keep(c, m, &out, 1);
    c->pass = was;
    if (!wanted) forget_spares(c, first);
    record *r = out && wanted && !ma_failed(c) ? tape_add(c) : NULL;
    if (!out || ma_failed(c)) return NULL;
    if (r) {
        *r = (record){.block = block, .self = self, .call.out = out, .spares = first, .nspares = c->nspares - first};
        memcpy(r->call.in, in, (size_t)nin * sizeof *in);
        out->want = true;
    }
    return out;
}

static int unwind(ma_ctx *c, size_t from);

/* Runs a checkpointed block again, this time on the tape, and that piece of tape backwards. */
static int block_backward(ma_ctx *c, record *r) {
    size_t records = c->ntape;
    ma_mark_t m = ma_mark(c);
    const pass was = begin_pass(c, REUSE, r->spares, r->nspares);
    ma_tensor *again = r->block(c, r->self, r->call.in);
    if (!again) return -1;
    if (again->base || again->grad || again->kept)
        return ma_fail(&c->err, MA_USAGE, "checkpoint: a block must return a tensor of its own");
    again->grad = r->call.out->grad;
    r->call.out->grad = NULL;
    if (unwind(c, records)) return -1;
    ma_rewind(c, m);
    c->pass = was;
    return 0;
}

/* Another input that wants a gradient has its memory in common with in[k]. */
static bool is_twice(const ma_call *call, int k) {
    for (int j = 0; j < 8; j++)
        if (j != k && call->in[j] && call->in[j]->want && root_of(call->in[j]) == root_of(call->in[k])) return true;
    return false;
}

/* Makes the gradient of in[k], if need be, for the kernel to add to or to set. */
static int ready_grad(ma_ctx *c, ma_call *call, int k) {
    ma_tensor *t = call->in[k];
    if (!t || !t->want) return 0;
    if (!grad_of(c, t)) return -1;
    ma_tensor *whole = root_of(t)->grad;
    const bool all = ma_count(t) == ma_count(whole) && !is_twice(call, k);
    if (!whole->fresh || !all || !(c->dev->sets[call->op] >> k & 1)) return settle(c, whole);
    whole->fresh = false;
    call->fresh |= 1u << k;
    return 0;
}

/* Whether in[0]'s gradient is out's as it stands, and can be the same memory. */
static bool passes_on(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    return (call->op == MA_OP_ADD || call->op == MA_OP_GATE) && x->want && !x->leaf && !x->base && !x->grad &&
           !call->out->leaf && !is_twice(call, 0);
}

static int call_backward(ma_ctx *c, ma_call *call) {
    ma_tensor *x = passes_on(call) ? call->in[0] : NULL, unasked;
    if (x) {
        unasked = *x;
        unasked.want = false;
        call->in[0] = &unasked;
    }
    for (int k = 0; k < 8; k++)
        if (ready_grad(c, call, k)) return -1;
    if (need_work(c, call, true)) return -1;
    if (!c->dev->plan && c->dev->bwd[call->op](call)) return kernel_failed(c, call, "'s backward");
    if (x) {
        call->in[0] = x;
        x->grad = call->out->grad;
        call->out->grad = NULL;
    }
    grad_done(c, call->out);
    return 0;
}

/* Takes the tape back to where it had `from` records. */
static int unwind(ma_ctx *c, size_t from) {
    while (c->ntape > from) {
        record r = c->tape[--c->ntape]; /* a copy: the tape may move while a block grows it */
        if (r.call.out->grad && (r.block ? block_backward(c, &r) : call_backward(c, &r.call))) return -1;
        forget_spares(c, r.spares); /* without a gradient, nothing that mattered came of it */
        if (!r.block && note_used(c, &r.call)) return -1;
    }
    return 0;
}

int ma_backward_from(ma_ctx *c, ma_tensor *out, const float *cotangent) {
    if (!out || ma_failed(c)) return -1;
    ma_tensor *g = out->want ? grad_of(c, out) : NULL;
    if (out->want && (!g || ma_put(c, g, cotangent))) return -1;
    bool was = ma_recording(c, true);
    c->back = true;
    int rc = unwind(c, 0);
    c->back = false;
    forget_uses(c);
    ma_recording(c, was);
    return rc;
}

int ma_backward(ma_ctx *c, ma_tensor *loss, double scale) {
    const float seed = (float)scale;
    if (loss && (ma_count(loss) != 1 || loss->type != MA_F32))
        return ma_fail(&c->err, MA_SHAPE, "backward: a loss is one fp32 number");
    return ma_backward_from(c, loss, &seed);
}

/* ---- replaying ---- */

enum {
    REPLAYS = 16, /* kept at a time; the oldest makes room */
    WARM = 2      /* runs before the recording: all plans are made then, all tables put */
};

/* Runs the block as it stands. Within it nothing else is recorded. */
static ma_tensor *run_block(ma_ctx *c, ma_block block, const void *self, ma_tensor **in) {
    ma_mark_t m = ma_mark(c);
    const bool was = c->replaying;
    c->replaying = true;
    ma_tensor *out = block(c, self, in);
    c->replaying = was;
    if (!c->record && out) ma_rewind_keep(c, m, &out, 1);
    return ma_failed(c) ? NULL : out;
}

static bool same_tensor(const ma_tensor *a, const ma_tensor *b) {
    return a->type == b->type && a->nd == b->nd && a->data == b->data &&
           !memcmp(a->n, b->n, (size_t)a->nd * sizeof *a->n);
}

static bool same_work(const replay *a, const replay *b) {
    bool same = a->block == b->block && a->self == b->self && a->key == b->key && a->nin == b->nin &&
                a->mark.chunk == b->mark.chunk && a->mark.used == b->mark.used;
    for (int k = 0; k < a->nin && same; k++) same = same_tensor(&a->in[k], &b->in[k]);
    return same;
}

static void forget_recording(ma_ctx *c, replay *r) {
    if (r->recording) c->dev->forget(c->dev, r->recording);
    r->recording = NULL;
}

/* What is known of this work; made where nothing is. NULL: the context has failed. */
static replay *find_replay(ma_ctx *c, const replay *wanted) {
    for (size_t k = 0; k < c->nreplays; k++)
        if (same_work(&c->replays[k], wanted)) return &c->replays[k];
    if (c->nreplays == REPLAYS) {
        forget_recording(c, &c->replays[0]);
        memmove(c->replays, c->replays + 1, --c->nreplays * sizeof *c->replays);
    }
    if (grow(c, (void **)&c->replays, &c->replays_room, c->nreplays, sizeof *c->replays)) return NULL;
    c->replays[c->nreplays] = *wanted;
    return &c->replays[c->nreplays++];
}

/* Runs the block on a device that notes instead of computing. Where that fails the work is refused for good: what was
 * wrong is told when it is run as it stands, if it is wrong there. */
static void capture(ma_ctx *c, replay *r, ma_tensor **in) {
    ma_mark_t m = ma_mark(c);
    r->refused = c->dev->capture(c->dev, r->puts) != 0;
    if (r->refused) return;
    c->capturing = true;
    ma_tensor *out = run_block(c, r->block, r->self, in);
    c->capturing = false;
    r->recording = c->dev->captured(c->dev);
    r->refused = !out || out->kept || !r->recording;
    if (out) r->out = *out;
    r->work = c->work;
    if (r->refused) forget_recording(c, r);
    ma_err_clear(&c->err);
    ma_rewind(c, m);
}

/* The result stands where it stood, as all before it does. */
static ma_tensor *launch(ma_ctx *c, const replay *r) {
    ma_tensor *out = ma_new(c, r->out.type, r->out.nd, r->out.n);
    if (!out) return NULL;
    if (out->data != r->out.data || c->dev->replay(c->dev, r->recording)) {
        device_failed(c, "running a recording");
        return NULL;
    }
    c->replayed.replayed++;
    return out;
}

/* Runs the block and notes what it puts. */
static ma_tensor *warm(ma_ctx *c, replay *r, ma_tensor **in) {
    const size_t before = c->puts;
    ma_tensor *out = run_block(c, r->block, r->self, in);
    r->puts = c->puts - before;
    r->runs++;
    c->replayed.run++;
    c->replayed.refused += r->refused;
    return out;
}

ma_tensor *ma_replay(ma_ctx *c, ma_block block, const void *self, ma_tensor **in, int nin, uint64_t key) {
    replay this = {.block = block, .self = self, .key = key, .nin = nin, .mark = ma_mark(c)};
    if (nin > 8) ma_fail(&c->err, MA_USAGE, "replay: %d inputs, 8 are the most", nin);
    if (ma_failed(c)) return NULL;
    for (int k = 0; k < nin; k++) {
        if (!in[k]) return NULL;
        this.in[k] = *in[k];
    }
    const bool able = c->dev->capture && !c->dev->plan && !c->record && !c->replaying;
    if (!able) return warm(c, &this, in);
    replay *r = find_replay(c, &this);
    if (!r) return NULL;
    if (r->recording && r->work != c->work) {
        forget_recording(c, r);
        r->runs = 0;
    }
    if (!r->recording && !r->refused && r->runs >= WARM) capture(c, r, in);
    return r->recording ? launch(c, r) : warm(c, r, in);
}

ma_replayed ma_ctx_replayed(const ma_ctx *c) {
    return c->replayed;
}
