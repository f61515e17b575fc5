/* vjepa: see vjepa.h.
 *
 * Source: facebookresearch/vjepa2 src/models/utils/modules.py (RoPEAttention); transformers
 * models/vjepa2/modeling_vjepa2.py.
 *
 * Traps:
 * - A head is cut into three parts of equal, even width, for frame, row and column; what is left over is not turned.
 * - Neighbours are turned in pairs, but the frequencies run through the half twice over: element j has that of j mod
 *   half, so the two of a pair have different ones. So it was trained.
 * - transformers takes tokens for those of a square of the size in its configuration, whatever the clip's; here, as in
 *   the original, they stand where they are. They agree where the clip has that size.
 */
#include "vjepa.h"

#include <math.h>

static const vit_naming transformers = {
    .publisher = "transformers",
    .prefixes = {"", "vjepa2."},
    .patch = "encoder.embeddings.patch_embeddings.proj",
    .layer = "encoder.layer.",
    .norm1 = "norm1",
    .norm2 = "norm2",
    .proj = "attention.proj",
    .fc1 = "mlp.fc1",
    .fc2 = "mlp.fc2",
    .q = "attention.query",
    .k = "attention.key",
    .v = "attention.value",
    .norm = "encoder.layernorm",
    .eps = 1e-6,
    .ignore = {"predictor.", "pooler.", "classifier."},
};

/* Angles of the rotation, (T·H·W,D/heads); 0: none. */
static void fill_angles(double *angle, const int64_t grid[3], int64_t d) {
    int64_t part = d / 3 / 2 * 2, half = part / 2;
    for (int64_t i = 0; i < grid[0] * grid[1] * grid[2]; i++) {
        int64_t at[] = {i / (grid[1] * grid[2]), i / grid[2] % grid[1], i % grid[2]};
        for (int64_t j = 0; j < 3 * part; j++)
            angle[i * d + j] = (double)at[j / part] * pow(10000, -(double)(j % part % half) / (double)half);
    }
}

static int place(vit *net, const int64_t grid[3]) {
    int64_t d = net->size.width / net->size.heads, n = grid[0] * grid[1] * grid[2];
    double *angle = ma_alloc((size_t)n, (size_t)d * sizeof *angle);
    float *cosine = ma_alloc((size_t)n, (size_t)d * sizeof *cosine), *sine = NULL;
    if (angle) sine = ma_alloc((size_t)n, (size_t)d * sizeof *sine);
    if (sine) fill_angles(angle, grid, d);
    for (int64_t i = 0; sine && cosine && i < n * d; i++) {
        cosine[i] = (float)cos(angle[i]);
        sine[i] = (float)sin(angle[i]);
    }
    ma_release(angle);
    int rc = vit_keep(net, &net->cosine, MA_F32, n, d, cosine);
    return vit_keep(net, &net->sine, MA_F32, n, d, sine) || rc ? -1 : 0;
}

static int begin(vit *net) {
    int d = net->size.width / net->size.heads;
    if (d % 2 == 0) return 0;
    return ma_fail(ma_ctx_err(net->params->ctx), MA_USAGE, "V-JEPA 2: heads of %d values cannot be turned in pairs", d);
}

const vit_kind vjepa_kind = {
    .name = "V-JEPA 2",
    .names = (const vit_naming *const[]){&transformers, NULL},
    .odd = {{1280, 16}}, /* huge */
    .begin = begin,
    .place = place,
};
