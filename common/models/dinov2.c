/* dinov2: see dinov2.h.
 *
 * Source: facebookresearch/dinov2 dinov2/models/vision_transformer.py, hub/backbones.py; transformers
 * models/dinov2/modeling_dinov2.py, models/dinov2_with_registers/….
 *
 * Traps:
 * - Positions are a table of the pretraining's square grid, the class token's first; registers have none.
 * - It is interpolated in four ways: facebook's takes (n + 0.1)/side for the scale, a remedy for rounding, with
 *   registers it smooths and takes n/side; transformers' takes n/side throughout. Where the grid is the table's nothing
 *   is interpolated.
 * - The giant's MLP is gated: silu of the first half times the second.
 * - mask_token stands in every file and is never used.
 */
#include "dinov2.h"

#include "positions.h"

#include <math.h>
#include <string.h>

static const vit_naming facebook = {
    .publisher = "facebook",
    .prefixes = {"", "model.", "backbone.", "teacher.backbone.", "module."},
    .patch = "patch_embed.proj",
    .layer = "blocks.",
    .norm1 = "norm1",
    .norm2 = "norm2",
    .proj = "attn.proj",
    .fc1 = "mlp.fc1",
    .fc2 = "mlp.fc2",
    .qkv = "attn.qkv",
    .glu_in = "mlp.w12",
    .glu_out = "mlp.w3",
    .scale1 = "ls1.gamma",
    .scale2 = "ls2.gamma",
    .norm = "norm",
    .eps = 1e-6,
    .ignore = {"mask_token", "head.", "teacher.dino_head.", "teacher.ibot_head."},
};

static const vit_naming transformers = {
    .publisher = "transformers",
    .prefixes = {"", "dinov2.", "dinov2_with_registers."},
    .patch = "embeddings.patch_embeddings.projection",
    .layer = "encoder.layer.",
    .norm1 = "norm1",
    .norm2 = "norm2",
    .proj = "attention.output.dense",
    .fc1 = "mlp.fc1",
    .fc2 = "mlp.fc2",
    .q = "attention.attention.query",
    .k = "attention.attention.key",
    .v = "attention.attention.value",
    .glu_in = "mlp.weights_in",
    .glu_out = "mlp.weights_out",
    .scale1 = "layer_scale1.lambda1",
    .scale2 = "layer_scale2.lambda1",
    .norm = "layernorm",
    .eps = 1e-6,
    .ignore = {"embeddings.mask_token", "classifier."},
};

/* What stands beside the blocks, as either has it: class token, table of positions, registers. */
static const char *const beside[2][3] = {
    {"cls_token", "pos_embed", "register_tokens"},
    {"embeddings.cls_token", "embeddings.position_embeddings", "embeddings.register_tokens"}};

static const char *const *names_of(const vit *net) {
    return beside[net->names == &transformers];
}

/* Tokens n of (1,N,D) in the file, or drawn, on the host. NULL: the context has failed. */
static float *read_tokens(vit *net, int64_t n, const char *name) {
    int64_t d = net->size.width;
    ma_tensor *t = ma_param(net->params, MA_PLAIN, MA_INIT_SMALL, MA_SHAPE(1, n, d), "%s", name);
    float *v = t ? ma_alloc((size_t)(n * d), sizeof *v) : NULL;
    if (t && !v) ma_fail(ma_ctx_err(net->params->ctx), MA_MEMORY, "DINOv2: out of memory");
    if (v) ma_get(net->params->ctx, t, v);
    return v;
}

/* Tokens in the file's (1,N,D); fallback without a file; 0: none. */
static int64_t count_tokens(const vit *net, const char *name, int64_t fallback) {
    const ma_entry *e = ma_param_entry(net->params, "%s", name);
    if (!net->params->from) return fallback;
    return e && e->nd == 3 ? e->n[1] : 0;
}

/* net->lead: the class token, with its position, and the registers; net->table: the other positions. */
static int begin(vit *net) {
    const char *const *name = names_of(net);
    ma_err *e = ma_ctx_err(net->params->ctx);
    int64_t d = net->size.width, n = count_tokens(net, name[1], 37 * 37 + 1), registers = count_tokens(net, name[2], 0);
    net->side = (int64_t)sqrt((double)(n - 1));
    if (n < 2 || net->side * net->side != n - 1)
        return ma_fail(e, n ? MA_SHAPE : MA_MISSING, "%s: %s%s %s", ma_weights_path(net->params->from),
                       net->params->prefix, name[1],
                       n ? "is not a class token's position and those of a square (1xNxWIDTH)" : "is missing");
    float *class = read_tokens(net, 1, name[0]), *at = read_tokens(net, n, name[1]);
    float *more = registers ? read_tokens(net, registers, name[2]) : NULL;
    net->leads = 1 + registers;
    net->lead = ma_alloc((size_t)net->leads, (size_t)d * sizeof *net->lead);
    bool good = class && at && net->lead && (more || !registers);
    for (int64_t j = 0; good && j < d; j++) net->lead[j] = class[j] + at[j];
    if (good && registers) memcpy(net->lead + d, more, (size_t)(registers * d) * sizeof *more);
    if (good) memmove(at, at + d, (size_t)((n - 1) * d) * sizeof *at);
    net->table = at;
    ma_release(class);
    ma_release(more);
    return good ? 0 : ma_fail(e, MA_MEMORY, "DINOv2: out of memory");
}

/* The table, resampled to the grid. */
static int place(vit *net, const int64_t grid[3]) {
    int64_t d = net->size.width, s = net->side, h = grid[1], w = grid[2];
    bool registers = net->leads > 1;
    double more = net->names == &facebook && !registers ? 0.1 : 0;
    positions_way way = registers ? POSITIONS_SMOOTH : POSITIONS_CUBIC;
    float *x = ma_alloc((size_t)(s * s), (size_t)d * sizeof *x); // (s,s,D)
    if (x) memcpy(x, net->table, (size_t)(s * s * d) * sizeof *x);
    if (h != s || w != s) {
        x = positions_resample(x, s, s, w, d, (double)s / ((double)w + more), way);     // (s,W,D)
        x = positions_resample(x, 1, s, h, w * d, (double)s / ((double)h + more), way); // (H,W,D)
    }
    return vit_keep(net, &net->at, ma_get_type(net->params->ctx), h * w, d, x);
}

const vit_kind dinov2_kind = {
    .name = "DINOv2",
    .names = (const vit_naming *const[]){&facebook, &transformers, NULL},
    .pictures = true,
    .begin = begin,
    .place = place,
};
