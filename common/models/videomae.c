/* videomae: the encoder of VideoMAE (Tong et al., NeurIPS 2022) and VideoMAEv2 (Wang et al., CVPR 2023): a plain ViT
 * over tubelets with attention over all of space and time.
 *
 * Limits: learned positions are refused (as a name left over).
 * Source: OpenGVLab/VideoMAEv2 models/modeling_finetune.py; transformers models/videomae/modeling_videomae.py.
 *
 * Traps:
 * - The position table is sin and cos of the *flat* index of (t,y,x), not a sum over axes, and is not in the file.
 * - Where the grid is another than in pretraining the two published forms part: see place().
 * - Layer norm's eps is 1e-6 in OpenGVLab's form, 1e-12 in transformers'.
 */
#include "videomae.h"

#include "positions.h"

#include <math.h>

static const vit_naming opengvlab = {
    .publisher = "OpenGVLab",
    .prefixes = {"", "model.", "encoder.", "module."},
    .patch = "patch_embed.proj",
    .layer = "blocks.",
    .norm1 = "norm1",
    .norm2 = "norm2",
    .proj = "attn.proj",
    .fc1 = "mlp.fc1",
    .fc2 = "mlp.fc2",
    .qkv = "attn.qkv",
    .q_bias = "attn.q_bias",
    .v_bias = "attn.v_bias",
    .scale1 = "gamma_1",
    .scale2 = "gamma_2",
    .eps = 1e-6,
    .ignore = {"fc_norm.", "norm.", "head.", "decoder.", "encoder_to_decoder.", "mask_token"},
};

static const vit_naming transformers = {
    .publisher = "transformers",
    .prefixes = {"", "videomae."},
    .patch = "embeddings.patch_embeddings.projection",
    .layer = "encoder.layer.",
    .norm1 = "layernorm_before",
    .norm2 = "layernorm_after",
    .proj = "attention.output.dense",
    .fc1 = "intermediate.dense",
    .fc2 = "output.dense",
    .q = "attention.attention.query",
    .k = "attention.attention.key",
    .v = "attention.attention.value",
    .q_bias = "attention.attention.q_bias",
    .v_bias = "attention.attention.v_bias",
    .norm = "layernorm",
    .eps = 1e-12,
    .ignore = {"fc_norm.", "classifier.", "decoder.", "encoder_to_decoder.", "mask_token"},
};

/* p(i, 2j) = sin(i / 10000^(2j/D)), p(i, 2j+1) = cos of the same. NULL: out of memory. */
static float *make_table(int64_t n, int64_t d) { // (n,D)
    float *out = ma_alloc((size_t)n, (size_t)d * sizeof *out);
#pragma omp parallel for
    for (int64_t j = 0; j < (out ? d : 0); j++) {
        double rate = pow(10000, (double)(j / 2 * 2) / (double)d);
        for (int64_t i = 0; i < n; i++) {
            double angle = (double)i / rate;
            out[i * d + j] = (float)(j % 2 ? cos(angle) : sin(angle));
        }
    }
    return out;
}

/* x (T0,H0,W0,D) from one grid to another. */
static float *stretch(float *x, const int64_t from[3], const int64_t to[3], int64_t d) {
    const int64_t *f = from, *t = to;
    double step[3] = {(double)f[0] / (double)t[0], (double)f[1] / (double)t[1], (double)f[2] / (double)t[2]};
    x = positions_resample(x, f[0] * f[1], f[2], t[2], d, step[2], POSITIONS_CUBIC);         // (T0,H0,W,D)
    x = positions_resample(x, f[0], f[1], t[1], t[2] * d, step[1], POSITIONS_CUBIC);         // (T0,H,W,D)
    return positions_resample(x, 1, f[0], t[0], t[1] * t[2] * d, step[0], POSITIONS_LINEAR); // (T,H,W,D)
}

static int place(vit *net, const int64_t grid[3]) {
    int64_t d = net->size.width, side = 224 / net->size.patch, base[] = {16 / net->size.tubelet, side, side};
    bool native = net->names == &transformers;
    const int64_t *from = native ? grid : base;
    float *x = make_table(from[0] * from[1] * from[2], d);
    if (!native) x = stretch(x, base, grid, d);
    return vit_keep(net, &net->at, ma_get_type(net->params->ctx), grid[0] * grid[1] * grid[2], d, x);
}

const vit_kind videomae_kind = {
    .name = "VideoMAE",
    .names = (const vit_naming *const[]){&opengvlab, &transformers, NULL},
    .odd = {{1280, 16}, {1408, 16}, {1664, 16}}, /* huge, giant, gigantic */
    .place = place,
};
