/* fresh: zeros are not written where the first kernel sets a gradient. On a device whose memory holds no numbers at
 * first, and whose kernels are the CPU's but set what they are told to: every gradient comes out as on the plain CPU,
 * through views, inputs that are one tensor, checkpoints, leaves that get nothing, several passes into one gradient. */
#include "../tap.h"
#include <string.h>

enum { ROWS = 6, WIDTH = 8, LEAVES = 6, PASSES = 3 };
#include "leaves.h"

static ma_kernel plain[MA_NOPS];
static void *(*plain_alloc)(ma_device *, size_t);
static int (*plain_zero)(ma_device *, void *, size_t);
static int set, zeroed; /* gradients */

/* A kernel that sets, and does so last, whatever was there or has come there by then. */
static int setting(const ma_call *call) {
    ma_call apart = *call;
    ma_tensor in[8], grad[8];
    for (int k = 0; k < 8; k++) {
        if (!ma_fresh(call, k)) continue;
        in[k] = *call->in[k];
        grad[k] = *in[k].grad;
        grad[k].data = ma_alloc((size_t)ma_count(&grad[k]), sizeof(float)); /* zeros */
        in[k].grad = &grad[k];
        apart.in[k] = &in[k];
    }
    int rc = plain[call->op](&apart);
    for (int k = 0; k < 8; k++) {
        if (!ma_fresh(call, k)) continue;
        memcpy(call->in[k]->grad->data, grad[k].data, ma_bytes(&grad[k]));
        ma_release(grad[k].data);
        set++;
    }
    return rc;
}

/* All bits of fp32's NaN. */
static void *alloc_garbage(ma_device *d, size_t size) {
    void *p = plain_alloc(d, size);
    return p ? memset(p, 0xff, size) : NULL;
}

static int count_zero(ma_device *d, void *p, size_t size) {
    zeroed++;
    return plain_zero(d, p, size);
}

/* Or as it was. */
static void pose(ma_device *d, bool setter) {
    static const ma_op ops[] = {MA_OP_LINEAR, MA_OP_ADD, MA_OP_MUL, MA_OP_ACT, MA_OP_AFFINE, MA_OP_CONCAT, MA_OP_MSE};
    memset(d->sets, 0, sizeof d->sets);
    memcpy(d->bwd, plain, sizeof plain);
    d->alloc = setter ? alloc_garbage : plain_alloc;
    d->zero = setter ? count_zero : plain_zero;
    for (size_t k = 0; setter && k < sizeof ops / sizeof *ops; k++) {
        d->bwd[ops[k]] = setting;
        d->sets[ops[k]] = 255;
    }
}

typedef struct net {
    ma_ctx *c;
    ma_tensor *leaf[LEAVES]; /* (WIDTH, WIDTH) */
} net;

static net net_new(ma_device *d) {
    net n = {.c = ma_ctx_new(d, NULL)};
    make_leaves(n.c, n.leaf);
    return n;
}

/* x + gelu(x·w)·x */
static ma_tensor *block(ma_ctx *c, const void *self, ma_tensor **in) {
    ma_tensor *w = *(ma_tensor *const *)self, *y = ma_linear(c, in[0], w, NULL, MA_GELU);
    return ma_add(c, in[0], ma_mul_(c, y, in[0]));
}

/* Leaf 0 as a whole, from pass to pass; 1 by rows, of which some get nothing; 2 twice in one product; 3 in a checkpoint
 * and beside it; 4 into nothing; 5 only in the first pass. */
static ma_tensor *loss_of(net *n, int pass) {
    ma_ctx *c = n->c;
    float host[ROWS * WIDTH];
    for (int i = 0; i < ROWS * WIDTH; i++) host[i] = (float)((i + pass) % 5) / 4;
    ma_tensor *x = ma_input(c, host, MA_SHAPE(ROWS, WIDTH)), *y, *square;
    x = ma_linear(c, x, n->leaf[0], NULL, MA_NONE);
    x = ma_add(c, x, x);
    y = ma_view(c, x, MA_SHAPE(WIDTH, ROWS));
    y = ma_mul_(c, y, ma_view(c, x, MA_SHAPE(WIDTH, ROWS)));
    x = ma_add(c, x, ma_view(c, y, MA_SHAPE(ROWS, WIDTH)));
    y = ma_act_(c, ma_rows(c, x, 1, 2), MA_TANH); /* a part of x, and its first gradient */
    x = ma_concat(c, (ma_tensor *[]){y, ma_rows(c, n->leaf[1], 2, 3), ma_act_(c, ma_rows(c, x, 0, 1), MA_SILU)}, 3, 0);
    square = ma_linear(c, n->leaf[2], n->leaf[2], NULL, MA_NONE);
    x = ma_linear(c, x, square, NULL, MA_NONE);
    x = ma_checkpoint(c, block, &n->leaf[3], &x, 1);
    x = ma_linear(c, x, ma_view(c, n->leaf[3], MA_SHAPE(WIDTH, WIDTH)), NULL, MA_NONE);
    ma_linear(c, x, n->leaf[4], NULL, MA_NONE);
    if (!pass) x = ma_linear(c, x, n->leaf[5], NULL, MA_NONE);
    return ma_mse(c, x, ma_affine(c, x, 0, 1));
}

typedef struct seen {
    float grad[PASSES][LEAVES][SIZE], told[LEAVES][SIZE];
} seen;

static net *told_net;
static seen *told_seen;

/* As a team reads: by the address. */
static void final(void *self, ma_tensor *leaf) {
    (void)self;
    for (int k = 0; k < LEAVES; k++)
        if (told_net->leaf[k] == leaf) memcpy(told_seen->told[k], leaf->grad->data, sizeof told_seen->told[k]);
}

/* Two passes into one gradient, then zeros, then a third. */
static bool run(ma_device *d, seen *s) {
    net n = net_new(d);
    told_net = &n;
    told_seen = s;
    memset(s, 0, sizeof *s);
    for (int k = 0; k < SIZE; k++) s->told[0][k] = NAN;
    for (int k = 0; k < LEAVES; k++) ma_put(n.c, n.leaf[k]->grad, s->told[0]);
    ma_zero_grads(n.c);
    for (int pass = 0; pass < PASSES; pass++) {
        if (pass == 2) ma_zero_grads(n.c);
        ma_on_final(n.c, pass == 2 ? final : NULL, NULL);
        ma_backward(n.c, loss_of(&n, pass), 0.5);
        for (int k = 0; k < LEAVES; k++) ma_get(n.c, n.leaf[k]->grad, s->grad[pass][k]);
        ma_reset(n.c);
    }
    bool good = !ma_failed(n.c) && !ma_settle_grads(n.c);
    for (int k = 0; k < LEAVES; k++)
        good = good && !memcmp(n.leaf[k]->grad->data, s->grad[PASSES - 1][k], sizeof s->grad[0][k]);
    ma_ctx_free(n.c);
    return good;
}

/* By value: 0 + -0 is not -0. */
static bool same(const float *a, const float *b, size_t n) {
    for (size_t k = 0; k < n; k++)
        if (!(a[k] == b[k])) return false;
    return true;
}

/* A leaf's gradient that is put, all or a part of it, and got while it counts as zero. */
static void check_put(ma_device *d) {
    net n = net_new(d);
    float ones[SIZE], got[SIZE];
    uint16_t half[SIZE];
    bool good = true;
    for (int i = 0; i < SIZE; i++) ones[i] = 1;
    ma_put(n.c, n.leaf[0]->grad, ones);
    ma_zero_grads(n.c);
    ma_get(n.c, n.leaf[0]->grad, got);
    for (int i = 0; i < SIZE; i++) good = good && got[i] == 0;
    ma_get_as(n.c, n.leaf[0]->grad, MA_BF16, half);
    for (int i = 0; i < SIZE; i++) good = good && half[i] == 0;
    ok(good, "what counts as zero is read as zero");
    ma_put(n.c, n.leaf[0]->grad, ones);
    ma_settle_grads(n.c);
    ma_get(n.c, n.leaf[0]->grad, got);
    ok(!memcmp(got, ones, sizeof got), "what is put stays");
    ma_zero_grads(n.c);
    ma_backward_from(n.c, ma_rows(n.c, n.leaf[0], 1, 2), ones);
    ma_get(n.c, n.leaf[0]->grad, got);
    good = !ma_failed(n.c);
    for (int i = 0; i < SIZE; i++) good = good && got[i] == (i / WIDTH == 1 || i / WIDTH == 2);
    ok(good, "a part that is put has zeros around it");
    ma_ctx_free(n.c);
}

int main(void) {
    static seen want, got;
    char note[160];
    ma_device *d = ma_device_open("cpu", false, note, NULL);
    memcpy(plain, d->bwd, sizeof plain);
    plain_alloc = d->alloc;
    plain_zero = d->zero;
    ok(run(d, &want), "the plain CPU runs");
    double size = 0;
    for (int k = 0; k < LEAVES; k++)
        for (int i = 0; i < SIZE; i++) size += fabsf(want.grad[0][k][i]) * (k != 4);
    pose(d, true);
    ok(run(d, &got) && size > 0, "the device that sets runs");
    for (int pass = 0; pass < PASSES; pass++)
        ok(same(got.grad[pass][0], want.grad[pass][0], LEAVES * SIZE), "pass %d: the gradients are the CPU's", pass);
    ok(same(got.told[0], want.grad[2][0], 5 * SIZE) && same(want.told[0], want.grad[2][0], 5 * SIZE),
       "a leaf that is told of has its gradient in its memory");
    ok(set > 20 && zeroed < 2 * set, "%d gradients were set, %d cleared", set, zeroed);
    check_put(d);
    pose(d, false);
    return tap_done();
}
