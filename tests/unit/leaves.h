/* leaves: square weights that are the same in every run, for tests of gradients. Who includes it says LEAVES and WIDTH
 * before. */
#ifndef LEAVES_H
#define LEAVES_H
#include "../../common/ops.h"

enum { SIZE = WIDTH * WIDTH };

/* (WIDTH, WIDTH) each, fp32. */
static void make_leaves(ma_ctx *c, ma_tensor *leaf[LEAVES]) {
    for (int k = 0; k < LEAVES; k++) {
        float x[SIZE];
        for (int i = 0; i < SIZE; i++) x[i] = (float)((i * 7 + k * 5) % 13 - 6) / 16;
        leaf[k] = ma_leaf(c, ma_keep(c, MA_F32, MA_SHAPE(WIDTH, WIDTH)));
        ma_put(c, leaf[k], x);
    }
}

#endif
