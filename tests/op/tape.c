/* The tape and the arenas: checkpoints and what they keep, views, rewinding, wanting, errors, the dry run, memory that
 * runs out, replaying. */
#include "../../common/ops.h"
#include "../tap.h"

#include <string.h>

enum { ROWS = 6, WIDTH = 5, SIZE = ROWS * WIDTH };

/* One residual block: x + w·gelu(LN(x)), on parameters of its own. */
typedef struct layer {
    ma_tensor *gain, *bias, *w;
} layer;

static ma_device *open_device(bool plan) {
    char note[160];
    ma_err e = {0};
    return ma_device_open("cpu", plan, note, &e);
}

static ma_tensor *random_leaf(ma_ctx *c, int nd, const int64_t *n, uint32_t seed) {
    ma_tensor *t = ma_leaf(c, ma_keep(c, MA_F32, nd, n));
    float *x = ma_alloc((size_t)ma_count(t), sizeof *x);
    for (int64_t k = 0; k < ma_count(t); k++) {
        seed = seed * 1664525u + 1013904223u;
        x[k] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
    ma_put(c, t, x);
    ma_release(x);
    return t;
}

static layer layer_new(ma_ctx *c, uint32_t seed) {
    return (layer){random_leaf(c, MA_SHAPE(WIDTH), seed), random_leaf(c, MA_SHAPE(WIDTH), seed + 1),
                   random_leaf(c, MA_SHAPE(WIDTH, WIDTH), seed + 2)};
}

static ma_tensor *layer_forward(ma_ctx *c, const void *self, ma_tensor **in) {
    const layer *l = self;
    ma_tensor *h = ma_act_(c, ma_layer_norm(c, in[0], l->gain, l->bias, 1e-5), MA_GELU);
    return ma_add(c, in[0], ma_linear(c, h, l->w, NULL, MA_NONE));
}

/* x, then the gradients of both layers' parameters, one after the other. */
enum { GRADS = SIZE + 2 * (2 * WIDTH + WIDTH * WIDTH) };

/* Three times two layers on x, twice into one loss; the memory at its end. */
static ma_memory two_layers(ma_device *dev, bool checkpoint, float *grads) {
    ma_err e = {0};
    ma_ctx *c = ma_ctx_new(dev, &e);
    ma_tensor *x = random_leaf(c, MA_SHAPE(ROWS, WIDTH), 1);
    layer l[2] = {layer_new(c, 10), layer_new(c, 20)};
    ma_tensor *h = ma_affine(c, x, 2, 0);
    for (int k = 0; k < 6; k++)
        h = checkpoint ? ma_checkpoint(c, layer_forward, &l[k % 2], &h, 1) : layer_forward(c, &l[k % 2], &h);
    ma_backward(c, ma_mse(c, h, ma_affine(c, x, 0, 1)), 1);
    ma_tensor *all[7] = {x, l[0].gain, l[0].bias, l[0].w, l[1].gain, l[1].bias, l[1].w};
    for (int k = 0; k < 7; k++) {
        ma_get(c, all[k]->grad, grads);
        grads += ma_count(all[k]);
    }
    ok(!ma_failed(c), "a network of six layers runs%s %s", checkpoint ? ", checkpointed" : "", ma_ctx_err(c)->text);
    ma_memory memory = ma_ctx_memory(c);
    ma_ctx_free(c);
    return memory;
}

static void check_checkpoint(ma_device *dev) {
    float plain[GRADS], again[GRADS];
    ma_memory all = two_layers(dev, false, plain), few = two_layers(dev, true, again);
    double size = 0;
    for (int k = 0; k < GRADS; k++) size += fabsf(plain[k]);
    ok(size > 0 && !memcmp(plain, again, sizeof plain), "a checkpoint changes no bit of any gradient");
    ok(few.stack_peak < all.stack_peak, "and needs a smaller stack: %zu of %zu bytes", few.stack_peak, all.stack_peak);

    float nothing[GRADS];
    ma_device *dry = open_device(true);
    ma_memory plan = two_layers(dry, true, nothing);
    ok(plan.keep == few.keep && plan.keep_grad == few.keep_grad && plan.stack_peak == few.stack_peak &&
           plan.pool == few.pool && plan.work == few.work,
       "a dry run counts the same bytes");
    ma_device_close(dry);
}

/* ---- what checkpoints keep of attention ---- */

enum { TOKENS = 40, HEADS = 2, HEAD = 8, CHANNELS = HEADS * HEAD, BLOCKS = 6 };

/* x + attention of x, on parameters of its own. */
typedef struct attends {
    ma_tensor *q, *k, *v;
} attends;

static ma_tensor *attend(ma_ctx *c, const void *self, ma_tensor **in) {
    const attends *a = self;
    ma_tensor *const w[3] = {a->q, a->k, a->v};
    ma_tensor *part[3];
    for (int k = 0; k < 3; k++) {
        ma_tensor *y = ma_linear(c, in[0], w[k], NULL, MA_NONE);
        if (!y) return NULL;
        part[k] = ma_view(c, y, MA_SHAPE(1, TOKENS, HEADS, HEAD));
    }
    ma_tensor *y = ma_attention(c, part[0], part[1], part[2], 0.3);
    return y ? ma_add(c, in[0], ma_view(c, y, MA_SHAPE(1, TOKENS, CHANNELS))) : NULL;
}

/* Two such blocks, of which the second is itself checkpointed where the whole is. */
static ma_tensor *attend_twice(ma_ctx *c, const void *self, ma_tensor **in) {
    ma_tensor *y = attend(c, self, in);
    return ma_checkpoint(c, attend, (const attends *)self + 1, &y, 1);
}

static ma_kernel attention;
static int attended, allocated;
static void *(*plain_alloc)(ma_device *, size_t);

static int count_attention(const ma_call *call) {
    attended++;
    return attention(call);
}

static void *count_alloc(ma_device *d, size_t size) {
    allocated++;
    return plain_alloc(d, size);
}

enum { PLAIN, CHECKPOINT, NESTED };
enum { WEIGHTS = CHANNELS * CHANNELS, ATTEND_GRADS = BLOCKS * 3 * WEIGHTS };

typedef struct attempt {
    ma_memory memory;
    int attended, allocated; /* in the last of three steps */
    ma_err err;
} attempt;

/* Three steps without an optimiser: the gradients add up. */
static attempt attend_steps(ma_device *dev, int how, float *grads) {
    attempt a = {0};
    ma_ctx *c = ma_ctx_new(dev, &a.err);
    attends w[BLOCKS];
    ma_ctx_lever(c, "pull this");
    for (uint32_t k = 0; k < BLOCKS; k++)
        w[k] = (attends){random_leaf(c, MA_SHAPE(CHANNELS, CHANNELS), 3 * k),
                         random_leaf(c, MA_SHAPE(CHANNELS, CHANNELS), 3 * k + 1),
                         random_leaf(c, MA_SHAPE(CHANNELS, CHANNELS), 3 * k + 2)};
    ma_tensor *x = random_leaf(c, MA_SHAPE(1, TOKENS, CHANNELS), 99);
    for (int step = 0; step < 3; step++) {
        attended = allocated = 0;
        ma_tensor *y = ma_affine(c, x, 0.1, 0);
        for (int k = 0; k < BLOCKS; k += how == NESTED ? 2 : 1)
            y = how == PLAIN ? attend(c, &w[k], &y)
                             : ma_checkpoint(c, how == NESTED ? attend_twice : attend, &w[k], &y, 1);
        ma_backward(c, ma_mse(c, y, ma_affine(c, x, 0, 1)), 1);
        ma_reset(c);
    }
    a.attended = attended;
    a.allocated = allocated;
    a.memory = ma_ctx_memory(c);
    for (int k = 0; k < BLOCKS && !ma_failed(c); k++) {
        ma_get(c, w[k].q->grad, grads + 3 * k * WEIGHTS);
        ma_get(c, w[k].k->grad, grads + (3 * k + 1) * WEIGHTS);
        ma_get(c, w[k].v->grad, grads + (3 * k + 2) * WEIGHTS);
    }
    if (ma_failed(c)) a.err = *ma_ctx_err(c);
    ma_ctx_free(c);
    return a;
}

/* The same with less and less memory, until it is too little: dropping what is kept changes no bit. */
static void check_scarcity(ma_device *dev, size_t enough, const float *want) {
    static float grads[ATTEND_GRADS];
    ma_device *dry = open_device(true);
    bool same = true, some = false, steady = true, planned = true;
    attempt a;
    for (size_t limit = enough;; limit -= 1 << 10) {
        dev->limit = dev->free_bytes = limit;
        a = attend_steps(dev, CHECKPOINT, grads);
        if (a.err.reason) break;
        same = same && !memcmp(grads, want, sizeof grads);
        some = some || (a.attended > BLOCKS && a.attended < 2 * BLOCKS);
        steady = steady && !a.allocated;
        dry->limit = dry->free_bytes = limit;
        float nothing[ATTEND_GRADS];
        const attempt plan = attend_steps(dry, CHECKPOINT, nothing);
        planned = planned && plan.memory.in_all == a.memory.in_all && plan.memory.pool == a.memory.pool;
    }
    ok(same, "with less memory the gradients are the same bits");
    ok(some, "some of what was kept made room");
    ok(steady, "nothing is allocated in the third step");
    ok(planned, "a dry run with that memory takes the same");
    ok(a.err.reason == MA_MEMORY && strstr(a.err.text, " more for ") && strstr(a.err.text, "MB allowed: parameters ") &&
           strstr(a.err.text, "; pull this"),
       "too little: %s", a.err.text);
    dev->limit = dev->free_bytes = 0;
    ok(dev->taken == 0, "all is given back");
    ma_device_close(dry);
}

/* A forward pass that no backward pass follows. */
static void check_forgotten(ma_device *dev) {
    ma_err e = {0};
    ma_ctx *c = ma_ctx_new(dev, &e);
    const attends w = {random_leaf(c, MA_SHAPE(CHANNELS, CHANNELS), 1), random_leaf(c, MA_SHAPE(CHANNELS, CHANNELS), 2),
                       random_leaf(c, MA_SHAPE(CHANNELS, CHANNELS), 3)};
    ma_tensor *x = random_leaf(c, MA_SHAPE(1, TOKENS, CHANNELS), 4);
    size_t pool[2];
    for (int k = 0; k < 2; k++) {
        ma_checkpoint(c, attend, &w, &x, 1);
        ma_reset(c);
        pool[k] = ma_ctx_memory(c).pool;
    }
    ok(!ma_failed(c) && pool[0] > 0 && pool[1] == pool[0], "a reset gives up what was kept");
    ma_ctx_free(c);
}

static void check_kept_attention(ma_device *dev) {
    static float plain[ATTEND_GRADS], again[ATTEND_GRADS], nested[ATTEND_GRADS];
    attention = dev->fwd[MA_OP_ATTENTION];
    plain_alloc = dev->alloc;
    dev->fwd[MA_OP_ATTENTION] = count_attention;
    dev->alloc = count_alloc;
    attempt a = attend_steps(dev, PLAIN, plain), b = attend_steps(dev, CHECKPOINT, again),
            n = attend_steps(dev, NESTED, nested);
    double size = 0;
    for (int k = 0; k < ATTEND_GRADS; k++) size += fabsf(plain[k]);
    ok(a.attended == BLOCKS && b.attended == BLOCKS, "a checkpointed block runs attention once: %d in %d blocks",
       b.attended, BLOCKS);
    ok(size > 0 && !memcmp(plain, again, sizeof plain), "and changes no bit of any gradient");
    ok(n.attended == BLOCKS / 2 * 3 && !memcmp(plain, nested, sizeof plain),
       "a block within a block keeps its own: %d runs", n.attended);
    const ma_memory m = b.memory;
    check_scarcity(dev, (m.keep + m.keep_grad + m.stack_peak + m.pool + m.work) / 16 * 17, plain);
    check_forgotten(dev);
    dev->fwd[MA_OP_ATTENTION] = attention;
    dev->alloc = plain_alloc;
}

/* s = Σ a² of the first two rows and 3·Σ a² of all, by views, both of a leaf and of an activation. */
static void check_views(ma_device *dev) {
    ma_err e = {0};
    ma_ctx *c = ma_ctx_new(dev, &e);
    ma_tensor *x = random_leaf(c, MA_SHAPE(ROWS, WIDTH), 1), *y = ma_affine(c, x, 2, 0);
    float host[SIZE], grad[SIZE], zeros[SIZE] = {0};
    ma_get(c, x, host);
    ma_tensor *rows = ma_rows(c, y, 0, 2), *flat = ma_view(c, y, MA_SHAPE(SIZE)),
              *zero = ma_input(c, zeros, MA_SHAPE(SIZE));
    ma_tensor *top = ma_mse(c, ma_view(c, rows, MA_SHAPE(2 * WIDTH)), ma_rows(c, zero, 0, 2 * WIDTH));
    ma_tensor *both = ma_add(c, ma_affine(c, top, 2 * WIDTH, 0), ma_affine(c, ma_mse(c, flat, zero), 3.0 * SIZE, 0));
    ma_backward(c, both, 1);
    ma_get(c, x->grad, grad);
    double worst = 0;
    for (int k = 0; k < SIZE; k++) worst = fmax(worst, fabs(grad[k] - (k < 2 * WIDTH ? 4 : 3) * 8.0 * host[k]));
    ok(!ma_failed(c) && worst < 1e-4, "views of an activation add to one gradient (%.1e)", worst);

    ma_zero_grads(c);
    ma_backward(c, ma_mse(c, ma_rows(c, x, 2, 1), ma_view(c, ma_rows(c, zero, 0, WIDTH), MA_SHAPE(1, WIDTH))), WIDTH);
    ma_get(c, x->grad, grad);
    for (int k = 0; k < SIZE; k++) worst = fmax(worst, fabs(grad[k] - (k / WIDTH == 2 ? 2 * host[k] : 0)));
    ok(!ma_failed(c) && worst < 1e-4, "a row of a leaf adds to the leaf's gradient (%.1e)", worst);
    ok(ma_rows(c, x, 2, 1) == ma_rows(c, x, 2, 1), "a leaf's view is made once");
    ok(!ma_view(c, x, MA_SHAPE(7, 7)) && strstr(ma_ctx_err(c)->text, "7x7"), "a view of another size is an error");
    ma_ctx_free(c);
}

static void check_rewind(ma_device *dev) {
    ma_err e = {0};
    ma_ctx *c = ma_ctx_new(dev, &e);
    float host[SIZE], grad[SIZE], got[SIZE], one = 1;
    for (int k = 0; k < SIZE; k++) host[k] = (float)k;
    ma_tensor *x = ma_leaf(c, ma_keep(c, MA_F32, MA_SHAPE(ROWS, WIDTH)));
    ma_put(c, x, host);
    size_t before = ma_ctx_memory(c).stack;
    ma_mark_t m = ma_mark(c);
    ma_tensor *lost = ma_affine(c, x, 3, 0);
    (void)lost;
    ma_rewind(c, m);
    ok(ma_ctx_memory(c).stack == before, "rewinding gives the bytes back");

    bool was = ma_recording(c, false);
    m = ma_mark(c);
    ma_tensor *low = ma_affine(c, x, 1, 1), *mid = ma_affine(c, low, 2, 0), *high = ma_affine(c, mid, 0, 5);
    ma_tensor *keep[2] = {high, mid};
    ma_rewind_keep(c, m, keep, 2);
    ma_get(c, keep[0], got);
    bool good = was && got[0] == 5 && got[SIZE - 1] == 5;
    ma_get(c, keep[1], got);
    for (int k = 0; k < SIZE; k++) good = good && got[k] == 2 * (host[k] + 1);
    ok(good, "what is kept is carried over, in any order");
    ok(!keep[0]->want, "nothing is wanted while nothing is recorded");
    ma_recording(c, was);

    ma_tensor *sum = ma_linear(c, ma_view(c, x, MA_SHAPE(SIZE, 1)), ma_input(c, &one, MA_SHAPE(1, 1)), NULL, MA_NONE);
    ma_tensor *ones = ma_affine(c, ma_view(c, x, MA_SHAPE(1, SIZE)), 0, 1);
    sum = ma_linear(c, ma_view(c, sum, MA_SHAPE(1, SIZE)), ones, NULL, MA_NONE);
    ma_backward(c, sum, 0.5);
    ma_get(c, x->grad, grad);
    good = true;
    for (int k = 0; k < SIZE; k++) good = good && grad[k] == 0.5f;
    ok(good, "what was rewound leaves nothing on the tape; a loss's scale scales");
    ma_reset(c);
    ok(ma_ctx_memory(c).stack == 0, "a reset leaves an empty stack");
    ma_ctx_free(c);
}

static void check_wanting(ma_device *dev) {
    ma_err e = {0};
    ma_ctx *c = ma_ctx_new(dev, &e);
    ma_tensor *flow = ma_leaf(c, ma_keep(c, MA_F32, MA_SHAPE(1, 1, 2, 2, 2)));
    ma_tensor *mask = ma_new(c, MA_F32, MA_SHAPE(1, 1, 2, 2, 576));
    float zeros[4 * 576] = {0};
    ma_put(c, mask, zeros);
    ma_put(c, flow, zeros);
    bool was = ma_recording(c, false);
    ok(ma_upsample_convex(c, flow, mask), "an op without a backward runs where nothing is recorded");
    ma_recording(c, was);
    ok(!ma_upsample_convex(c, flow, mask) && strstr(ma_ctx_err(c)->text, "upsample_convex"),
       "a gradient through it is an error that names it: %s", ma_ctx_err(c)->text);
    ma_ctx_free(c);
}

static void check_errors(ma_device *dev) {
    ma_err e = {0};
    ma_ctx *c = ma_ctx_new(dev, &e);
    ma_tensor *x = random_leaf(c, MA_SHAPE(4, 8), 1), *w = random_leaf(c, MA_SHAPE(3, 9), 2);
    ok(!ma_act_(c, NULL, MA_RELU) && !ma_failed(c), "NULL in, NULL out, and no error of its own");
    ok(!ma_linear(c, x, w, NULL, MA_NONE) && ma_ctx_err(c)->reason == MA_SHAPE &&
           strstr(ma_ctx_err(c)->text, "linear: 4x8 and 3x9"),
       "shapes that do not fit: %s", ma_ctx_err(c)->text);
    ok(!ma_add(c, x, x), "after an error nothing runs");
    ma_view(c, x, MA_SHAPE(5));
    ok(strstr(ma_ctx_err(c)->text, "linear"), "the first error is kept");
    ma_ctx_free(c);
}

int main(void) {
    ma_device *dev = open_device(false);
    check_checkpoint(dev);
    check_kept_attention(dev);
    check_views(dev);
    check_rewind(dev);
    check_wanting(dev);
    check_errors(dev);
    ma_device_close(dev);
    return tap_done();
}
