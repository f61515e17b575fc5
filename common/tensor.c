/* tensor: context, arenas, tape, checkpointing.
 *
 * Three places of memory. `keep`: parameters and their gradients, never freed. `stack`: activations, freed by
 * rewinding. `pool`: gradients of activations; the tape runs backwards, so each is born late and dies early, and a list
 * of free blocks serves them with little more than the widest moment needs.
 *
 * A plan (device->plan) takes the same ways without memory: addresses are NULL, sizes are counted, kernels not called.
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
} record;

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
    arena keep, stack;
    size_t keep_grad;
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
    return c;
}

static void arena_free(ma_ctx *c, arena *a) {
    for (size_t k = 0; k < a->n; k++) c->dev->release(c->dev, a->at[k].base);
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
    for (size_t k = 0; k < c->npool; k++) c->dev->release(c->dev, c->pool[k].data);
    free(c->pool);
    c->dev->release(c->dev, c->work);
    free(c->tape);
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

ma_memory ma_ctx_memory(const ma_ctx *c) {
    return (ma_memory){.keep = c->keep.bytes - c->keep_grad,
                       .keep_grad = c->keep_grad,
                       .stack = c->stack.bytes,
                       .stack_peak = c->stack.peak,
                       .pool = c->pool_bytes,
                       .work = c->work_bytes};
}

/* ---- arenas ---- */

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

static int out_of_memory(ma_ctx *c, const char *what, size_t size) {
    return ma_fail(&c->err, MA_MEMORY, "%s: out of memory: %.2f GiB more for %s, beside %.2f GiB in use", c->dev->name,
                   (double)size / (1 << 30), what,
                   (double)(c->keep.bytes + c->stack.bytes + c->pool_bytes + c->work_bytes) / (1 << 30));
}

/* The least that is asked of the device at a time. Large where memory is: what a chunk's end is too short for is lost. */
static size_t chunk_size(const ma_ctx *c) {
    const size_t small = (size_t)64 << 20, large = (size_t)1 << 30;
    return c->dev->free_bytes / 32 > large ? large : c->dev->free_bytes / 32 > small ? c->dev->free_bytes / 32 : small;
}

static int arena_more(ma_ctx *c, arena *a, size_t size, const char *what) {
    chunk *at = realloc(a->at, (a->n + 1) * sizeof *at);
    if (!at) return ma_fail(&c->err, MA_MEMORY, "context: out of memory");
    a->at = at;
    if (size < chunk_size(c)) size = chunk_size(c);
    void *base = c->dev->alloc(c->dev, size);
    if (!base) return out_of_memory(c, what, size);
    a->at[a->n++] = (chunk){base, size, 0};
    return 0;
}

static int arena_take(ma_ctx *c, arena *a, size_t size, void **data, const char *what) {
    size = (size + ALIGN - 1) / ALIGN * ALIGN;
    *data = NULL;
    if (!c->dev->plan) {
        while (a->now < a->n && a->at[a->now].size - a->at[a->now].used < size) a->now++;
        if (a->now == a->n && arena_more(c, a, size, what)) return -1;
        chunk *k = &a->at[a->now];
        *data = k->base + k->used;
        k->used += size;
    }
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
    for (size_t k = m.chunk + 1; k < a->n && k <= a->now; k++) a->at[k].used = 0;
    if (m.chunk < a->n) a->at[m.chunk].used = m.used;
    a->now = m.chunk;
    a->bytes = m.bytes;
    for (size_t k = m.tensors; k < c->nmade; k++) {
        ma_tensor *t = c->made[k];
        if (t->grad && !t->leaf) { /* left over by a backward pass that did not reach it, or a view's descriptor */
            for (size_t j = 0; !t->base && j < c->npool; j++)
                if (c->pool[j].data == t->grad->data && c->pool[j].busy) c->pool[j].busy = false;
            free(t->grad);
            t->grad = NULL;
        }
    }
    c->nmade = m.tensors;
    c->ntape = m.tape;
}

void ma_reset(ma_ctx *c) {
    ma_rewind(c, (ma_mark_t){0});
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

ma_tensor *ma_keep(ma_ctx *c, ma_type type, int nd, const int64_t *n) {
    ma_tensor *t = ma_failed(c) ? NULL : kept_descriptor(c);
    if (!t || describe(c, t, type, nd, n) || arena_take(c, &c->keep, ma_bytes(t), &t->data, "parameters")) return NULL;
    t->kept = true;
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
    int rc = c->dev->put(c->dev, t->data, from, ma_bytes(t)) ? device_failed(c, "copying to the device") : 0;
    ma_release(cast);
    return rc;
}

int ma_get(ma_ctx *c, const ma_tensor *t, float *host) {
    if (!t || ma_failed(c)) return -1;
    if (c->dev->plan) {
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

/* The smallest free block that fits and is not twice too large; else a new one. */
static int pool_take(ma_ctx *c, size_t size, void **data) {
    pooled *best = NULL;
    size = (size + ALIGN - 1) / ALIGN * ALIGN;
    for (size_t k = 0; k < c->npool; k++) {
        pooled *p = &c->pool[k];
        if (!p->busy && p->size >= size && p->size <= 2 * size && (!best || p->size < best->size)) best = p;
    }
    if (!best) {
        pooled *more = realloc(c->pool, (c->npool + 1) * sizeof *more);
        if (!more) return ma_fail(&c->err, MA_MEMORY, "context: out of memory");
        c->pool = more;
        best = &c->pool[c->npool];
        /* in a plan the address is only a name for the block */
        void *p = c->dev->plan ? (void *)(uintptr_t)(c->npool + 1) : c->dev->alloc(c->dev, size);
        if (!p) return out_of_memory(c, "gradients of activations", size);
        *best = (pooled){p, size, false};
        c->npool++;
        c->pool_bytes += size;
    }
    best->busy = true;
    *data = best->data;
    return 0;
}

/* t->grad, made and cleared if there is none yet. A view's is a part of its base's. */
static ma_tensor *grad_of(ma_ctx *c, ma_tensor *t) {
    if (t->grad) return t->grad;
    ma_tensor *whole = t->base ? grad_of(c, t->base) : NULL;
    ma_tensor *g = t->base && !whole ? NULL : calloc(1, sizeof *g);
    if (!g) {
        ma_fail(&c->err, MA_MEMORY, "context: out of memory");
        return NULL;
    }
    *g = (ma_tensor){.type = whole ? whole->type : t->type, .nd = t->nd};
    memcpy(g->n, t->n, sizeof g->n);
    if (whole)
        g->data = whole->data ? (char *)whole->data + (size_t)t->offset * ma_type_size(g->type) : NULL;
    else if (pool_take(c, ma_bytes(g), &g->data) || zero(c, g)) {
        free(g);
        return NULL;
    }
    return t->grad = g;
}

static void grad_done(ma_ctx *c, ma_tensor *t) {
    if (t->leaf || t->base || !t->grad) return;
    for (size_t k = 0; k < c->npool; k++)
        if (c->pool[k].data == t->grad->data) c->pool[k].busy = false;
    free(t->grad);
    t->grad = NULL;
}

int ma_zero_grads(ma_ctx *c) {
    for (size_t k = 0; k < c->nkept; k++)
        if (c->kept[k]->leaf && zero(c, c->kept[k]->grad)) return -1;
    return 0;
}

/* ---- running and the tape ---- */

static int need_work(ma_ctx *c, ma_call *call, bool backward) {
    size_t size = c->dev->work ? c->dev->work(c->dev, call, backward) : 0;
    if (size > c->work_bytes) {
        if (!c->dev->plan) {
            c->dev->release(c->dev, c->work);
            c->work_bytes = 0;
            c->work = c->dev->alloc(c->dev, size);
            if (!c->work) return out_of_memory(c, "workspace", size);
        }
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

static bool any_want(const ma_call *call) {
    for (int k = 0; k < 8; k++)
        if (call->in[k] && call->in[k]->want) return true;
    return false;
}

bool ma_wanted(const ma_ctx *c, const ma_call *call) {
    return c->record && any_want(call);
}

static record *tape_add(ma_ctx *c) {
    if (grow(c, (void **)&c->tape, &c->tape_room, c->ntape, sizeof *c->tape)) return NULL;
    record *r = &c->tape[c->ntape++];
    *r = (record){0};
    return r;
}

ma_tensor *ma_run(ma_ctx *c, ma_call *call) {
    if (ma_failed(c) || !call->out) return NULL;
    if (!c->dev->fwd[call->op] || !c->dev->types[call->in[0]->type]) {
        kernel_failed(c, call, "");
        return NULL;
    }
    bool wanted = any_want(call);
    c->saw_want |= wanted;
    if (wanted && c->record && !c->dev->bwd[call->op]) {
        ma_fail(&c->err, MA_UNSUPPORTED, "%s: no gradient through %s", c->dev->name, ma_op_name(call->op));
        return NULL;
    }
    if (need_work(c, call, false)) return NULL;
    if (!c->dev->plan && c->dev->fwd[call->op](call)) {
        kernel_failed(c, call, "");
        return NULL;
    }
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
    bool saw = c->saw_want, record_on = ma_recording(c, false);
    c->saw_want = false;
    ma_tensor *out = block(c, self, in);
    bool wanted = c->saw_want && record_on;
    c->saw_want |= saw;
    ma_recording(c, record_on);
    if (!out || ma_failed(c)) return NULL;
    ma_rewind_keep(c, m, &out, 1);
    record *r = wanted && !ma_failed(c) ? tape_add(c) : NULL;
    if (ma_failed(c)) return NULL;
    if (r) {
        *r = (record){.block = block, .self = self, .call.out = out};
        memcpy(r->call.in, in, (size_t)nin * sizeof *in);
        out->want = true;
    }
    return out;
}

static int unwind(ma_ctx *c, size_t from);

/* Runs a checkpointed block again, this time on the tape, and that piece of tape backwards. */
static int block_backward(ma_ctx *c, const record *checkpoint) {
    record r = *checkpoint; /* the tape may move while it grows */
    size_t records = c->ntape;
    ma_mark_t m = ma_mark(c);
    ma_tensor *again = r.block(c, r.self, r.call.in);
    if (!again) return -1;
    if (again->base || again->grad || again->kept)
        return ma_fail(&c->err, MA_USAGE, "checkpoint: a block must return a tensor of its own");
    again->grad = r.call.out->grad;
    r.call.out->grad = NULL;
    if (unwind(c, records)) return -1;
    ma_rewind(c, m);
    return 0;
}

static int call_backward(ma_ctx *c, ma_call *call) {
    for (int k = 0; k < 8; k++)
        if (call->in[k] && call->in[k]->want && !grad_of(c, call->in[k])) return -1;
    if (need_work(c, call, true)) return -1;
    if (!c->dev->plan && c->dev->bwd[call->op](call)) return kernel_failed(c, call, "'s backward");
    grad_done(c, call->out);
    return 0;
}

/* Takes the tape back to where it had `from` records. */
static int unwind(ma_ctx *c, size_t from) {
    while (c->ntape > from) {
        record *r = &c->tape[--c->ntape];
        if (!r->call.out->grad) continue; /* nothing that mattered came of it */
        if (r->block ? block_backward(c, r) : call_backward(c, &r->call)) return -1;
    }
    return 0;
}

int ma_backward_from(ma_ctx *c, ma_tensor *out, const float *cotangent) {
    if (!out || ma_failed(c)) return -1;
    ma_tensor *g = out->want ? grad_of(c, out) : NULL;
    if (out->want && (!g || ma_put(c, g, cotangent))) return -1;
    bool was = ma_recording(c, true);
    int rc = unwind(c, 0);
    ma_recording(c, was);
    return rc;
}

int ma_backward(ma_ctx *c, ma_tensor *loss, double scale) {
    const float seed = (float)scale;
    if (loss && (ma_count(loss) != 1 || loss->type != MA_F32))
        return ma_fail(&c->err, MA_SHAPE, "backward: a loss is one fp32 number");
    return ma_backward_from(c, loss, &seed);
}
