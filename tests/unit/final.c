/* final: a leaf is told of when its gradient will not change any more in a backward pass, and not before: leaves used
 * several times, through views, in checkpoints and in checkpoints within them, in graphs that change. */
#include "../tap.h"
#include <string.h>

enum { ROWS = 4, WIDTH = 6, LEAVES = 6 };
#include "leaves.h"

typedef struct net {
    ma_ctx *c;
    ma_tensor *leaf[LEAVES];    /* (WIDTH, WIDTH) each */
    float then[LEAVES][SIZE];   /* the gradient when it was told of */
    int told[LEAVES], first, n; /* how often; of the leaves, the first that was, and how many in all */
} net;

static void final(void *self, ma_tensor *leaf) {
    net *n = self;
    for (int k = 0; k < LEAVES; k++) {
        if (n->leaf[k] != leaf) continue;
        ma_get(n->c, leaf->grad, n->then[k]);
        n->told[k]++;
        if (!n->n++) n->first = k;
    }
}

static net net_new(ma_device *d) {
    net n = {.c = ma_ctx_new(d, NULL)};
    make_leaves(n.c, n.leaf);
    return n;
}

static ma_tensor *input(const net *n) {
    float x[ROWS * WIDTH];
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] = (float)(i % 5) / 4;
    return ma_input(n->c, x, MA_SHAPE(ROWS, WIDTH));
}

/* x + gelu(x·w), w the leaf k; then the same with the first leaf, which all layers share. */
static ma_tensor *layer(ma_ctx *c, ma_tensor *const *leaf, ma_tensor *x) {
    ma_tensor *w = ma_view(c, leaf[0], MA_SHAPE(WIDTH, WIDTH)); /* a view of it counts as it does */
    x = ma_add(c, x, ma_linear(c, x, leaf[1], NULL, MA_GELU));
    return ma_add(c, x, ma_linear(c, x, w, NULL, MA_GELU));
}

typedef struct block {
    ma_tensor *leaf[2];
} block;

static ma_tensor *run(ma_ctx *c, const void *self, ma_tensor **in) {
    return layer(c, ((const block *)self)->leaf, in[0]);
}

/* A checkpoint within a checkpoint, and something beside it. */
static ma_tensor *outer(ma_ctx *c, const void *self, ma_tensor **in) {
    const block *b = self;
    ma_tensor *y = ma_checkpoint(c, run, b, in, 1);
    return ma_add(c, y, ma_linear(c, y, b->leaf[1], NULL, MA_NONE));
}

enum { PLAIN, CHECKPOINTED, NESTED };

/* Leaves 1, 2, 3 in turn, 0 in all; 4 into what no gradient comes from; 5 in nothing. */
static ma_tensor *loss_of(net *n, int way, int layers) {
    static block b[3];
    ma_tensor *x = input(n), *want = ma_affine(n->c, x, 0.5, 1);
    for (int k = 0; k < layers; k++) {
        b[k] = (block){{n->leaf[0], n->leaf[1 + k]}};
        x = way == PLAIN ? layer(n->c, b[k].leaf, x) : ma_checkpoint(n->c, way == NESTED ? outer : run, &b[k], &x, 1);
    }
    ma_linear(n->c, x, n->leaf[4], NULL, MA_NONE);
    return ma_mse(n->c, x, want);
}

static void forget(net *n) {
    n->n = 0;
    memset(n->told, 0, sizeof n->told);
}

/* Every leaf of so many layers was told of once, with its gradient whole. */
static bool right(net *n, int layers) {
    bool good = true;
    for (int k = 0; k <= layers; k++) {
        float g[SIZE], size = 0;
        ma_get(n->c, n->leaf[k]->grad, g);
        for (int i = 0; i < SIZE; i++) size += fabsf(g[i]);
        good &= n->told[k] == 1 && size > 0 && !memcmp(g, n->then[k], sizeof g);
    }
    for (int k = layers + 1; k < 4; k++) good &= !n->told[k];
    return good && !n->told[5] && n->first >= layers; /* the last layer's, or what needs no gradient, comes first */
}

int main(void) {
    static const char *const ways[] = {"plain", "checkpointed", "nested"};
    char note[160];
    ma_device *d = ma_device_open("cpu", false, note, NULL);
    for (int way = PLAIN; way <= NESTED; way++) {
        net n = net_new(d);
        ma_on_final(n.c, final, &n);
        ma_backward(n.c, loss_of(&n, way, 3), 1);
        ok(right(&n, 3), "%s: each leaf once, when its gradient is whole", ways[way]);
        ma_reset(n.c);
        forget(&n);
        ma_backward(n.c, loss_of(&n, way, 2), 1);
        ok(right(&n, 2), "%s: another graph, onto what was there", ways[way]);
        ma_reset(n.c);
        forget(&n);
        loss_of(&n, way, 3); /* a forward pass that nothing comes of */
        ma_reset(n.c);
        ma_backward(n.c, loss_of(&n, way, 3), 1);
        ok(right(&n, 3), "%s: after a pass without a backward one", ways[way]);
        ma_reset(n.c);
        forget(&n);
        ma_on_final(n.c, NULL, NULL);
        ma_backward(n.c, loss_of(&n, way, 3), 1);
        ok(!n.n && !ma_failed(n.c), "%s: nobody is told", ways[way]);
        ma_ctx_free(n.c);
    }
    return tap_done();
}
