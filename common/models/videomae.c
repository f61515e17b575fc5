/* videomae: the encoder of VideoMAE (Tong et al., NeurIPS 2022) and VideoMAEv2 (Wang et al., CVPR 2023): a plain ViT
 * over tubelets with attention over all of space and time.
 *
 * Depth, widths, patch and tubelet are read off the weights; the number of heads does not stand in them.
 * Limits: no class token, no masking, no decoder; learned positions are refused (as a name left over).
 * Source: OpenGVLab/VideoMAEv2 models/modeling_finetune.py; transformers models/videomae/modeling_videomae.py.
 *
 * Traps:
 * - q and v have a bias, k has none: three views of the packed weight, never one product with one bias.
 * - The position table is sin and cos of the *flat* index of (t,y,x), not a sum over axes, and is not in the file.
 * - Where the grid is another than in pretraining the two published forms part: see positions().
 * - Layer norm's eps is 1e-6 in OpenGVLab's form, 1e-12 in transformers'.
 * - gelu is the exact one.
 */
#include "videomae.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const float videomae_mean[3] = {0.485f, 0.456f, 0.406f}, videomae_std[3] = {0.229f, 0.224f, 0.225f};

/* How the two publishers name things. Below `layer`N. stand the others. */
typedef struct naming {
    const char *prefixes[5]; /* ended by NULL */
    const char *patch, *layer, *norm1, *norm2, *proj, *fc1, *fc2;
    const char *packed; /* q, k, v in one weight; NULL: apart */
    double eps;
    bool native;            /* positions for the grid at hand, not interpolated */
    const char *ignore[16]; /* entries of heads and decoders */
} naming;

static const naming opengvlab = {
    .prefixes = {"", "model.", "encoder.", "module."},
    .patch = "patch_embed.proj",
    .layer = "blocks.",
    .norm1 = "norm1",
    .norm2 = "norm2",
    .proj = "attn.proj",
    .fc1 = "mlp.fc1",
    .fc2 = "mlp.fc2",
    .packed = "attn.qkv",
    .eps = 1e-6,
    .ignore = {"fc_norm.", "norm.", "head.", "model.fc_norm.", "model.norm.", "model.head.", "encoder.fc_norm.",
               "encoder.norm.", "encoder.head.", "module.fc_norm.", "module.norm.", "module.head.", "decoder.",
               "encoder_to_decoder.", "mask_token"},
};

static const naming transformers = {
    .prefixes = {"", "videomae."},
    .patch = "embeddings.patch_embeddings.projection",
    .layer = "encoder.layer.",
    .norm1 = "layernorm_before",
    .norm2 = "layernorm_after",
    .proj = "attention.output.dense",
    .fc1 = "intermediate.dense",
    .fc2 = "output.dense",
    .eps = 1e-12,
    .native = true,
    .ignore = {"fc_norm.", "classifier.", "decoder.", "encoder_to_decoder.", "mask_token"},
};

/* w·x + b, or a norm's gain and bias. */
typedef struct affine {
    ma_tensor *w, *b;
} affine;

typedef struct vit_block {
    affine norm1, q, k, v, proj, norm2, fc1, fc2; // k.b NULL
    ma_tensor *gamma1, *gamma2;                   // (D), or NULL: no layer scale
} vit_block;

/* The position table of the last grid asked for, (T·H·W, D). */
typedef struct table {
    int64_t grid[3];
    float *at;
} table;

struct videomae {
    ma_params *params;
    const naming *names;
    videomae_size size;
    int64_t hidden; // of the MLP
    affine patch;   // (D,t,p,p,3), (D)
    vit_block *block;
    affine norm; // the final one; w NULL: none
    table *positions;
};

/* ---- loading ---- */

static affine load_affine(ma_params *p, ma_init init, int64_t out, int64_t in, const char *name) {
    ma_tensor *w = init == MA_INIT_ONE ? ma_param(p, MA_PLAIN, init, MA_SHAPE(out), "%s.weight", name)
                                       : ma_param(p, MA_PLAIN, init, MA_SHAPE(out, in), "%s.weight", name);
    ma_init bias = init == MA_INIT_ONE ? MA_INIT_ZERO : init;
    return (affine){w, ma_param(p, MA_PLAIN, bias, MA_SHAPE(out), "%s.bias", name)};
}

/* name.one, or name.other where the file has that; NULL where it has neither. */
static ma_tensor *load_vector(ma_params *p, int64_t n, const char *name, const char *one, const char *other) {
    const char *leaf = ma_param_has(p, "%s.%s", name, one) ? one : ma_param_has(p, "%s.%s", name, other) ? other : NULL;
    return leaf ? ma_param(p, MA_PLAIN, MA_INIT_ZERO, MA_SHAPE(n), "%s.%s", name, leaf) : NULL;
}

/* `at` is the layer's name with its point: "blocks.3." */
static void load_qkv(videomae *net, vit_block *b, const char *at) {
    ma_params *p = net->params;
    ma_ctx *c = p->ctx;
    int64_t d = net->size.width;
    if (net->names->packed) {
        ma_tensor *w = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(3 * d, d), "%s%s.weight", at, net->names->packed);
        b->q.w = ma_rows(c, w, 0, d);
        b->k.w = ma_rows(c, w, d, d);
        b->v.w = ma_rows(c, w, 2 * d, d);
    } else {
        b->q.w = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(d, d), "%sattention.attention.query.weight", at);
        b->k.w = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(d, d), "%sattention.attention.key.weight", at);
        b->v.w = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(d, d), "%sattention.attention.value.weight", at);
    }
    char name[160];
    snprintf(name, sizeof name, "%s%s", at, net->names->packed ? "attn" : "attention.attention");
    b->q.b = load_vector(p, d, name, "q_bias", "query.bias");
    b->v.b = load_vector(p, d, name, "v_bias", "value.bias");
}

static affine load_part(videomae *net, ma_init init, int64_t out, int64_t in, const char *at, const char *part) {
    char name[160];
    snprintf(name, sizeof name, "%s%s", at, part);
    return load_affine(net->params, init, out, in, name);
}

static void load_block(videomae *net, vit_block *b, int layer) {
    const naming *nm = net->names;
    int64_t d = net->size.width;
    char at[64];
    snprintf(at, sizeof at, "%s%d.", nm->layer, layer);
    b->norm1 = load_part(net, MA_INIT_ONE, d, 0, at, nm->norm1);
    load_qkv(net, b, at);
    b->proj = load_part(net, MA_INIT_FAN, d, d, at, nm->proj);
    b->norm2 = load_part(net, MA_INIT_ONE, d, 0, at, nm->norm2);
    b->fc1 = load_part(net, MA_INIT_FAN, net->hidden, d, at, nm->fc1);
    b->fc2 = load_part(net, MA_INIT_FAN, d, net->hidden, at, nm->fc2);
    if (ma_param_has(net->params, "%sgamma_1", at)) {
        b->gamma1 = ma_param(net->params, MA_PLAIN, MA_INIT_ONE, MA_SHAPE(d), "%sgamma_1", at);
        b->gamma2 = ma_param(net->params, MA_PLAIN, MA_INIT_ONE, MA_SHAPE(d), "%sgamma_2", at);
    }
}

/* Everything, once names and sizes are known. */
static videomae *load(videomae *net) {
    const videomae_size *s = &net->size;
    ma_params *p = net->params;
    ma_ctx *c = p->ctx;
    net->block = ma_alloc((size_t)s->depth, sizeof *net->block);
    net->positions = ma_alloc(1, sizeof *net->positions);
    if (!net->block || !net->positions) ma_fail(ma_ctx_err(c), MA_MEMORY, "videomae: out of memory");
    if (s->width % s->heads)
        ma_fail(ma_ctx_err(c), MA_USAGE, "videomae: width %d does not divide into %d heads", s->width, s->heads);
    if (!ma_failed(c)) {
        net->patch.w = ma_param(p, MA_CONV3D, MA_INIT_FAN, MA_SHAPE(s->width, s->tubelet, s->patch, s->patch, 3),
                                "%s.weight", net->names->patch);
        net->patch.b = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(s->width), "%s.bias", net->names->patch);
        for (int k = 0; k < s->depth && !ma_failed(c); k++) load_block(net, &net->block[k], k);
        if (net->names == &transformers && ma_param_has(p, "layernorm.weight"))
            net->norm = load_affine(p, MA_INIT_ONE, s->width, 0, "layernorm");
    }
    if (!ma_failed(c)) ma_params_end(p, net->names->ignore);
    if (!ma_failed(c)) return net;
    videomae_free(net);
    return NULL;
}

/* Heads of the published sizes that are not width/64: huge, giant, gigantic. */
static int default_heads(int width) {
    if (width == 1280 || width == 1408 || width == 1664) return 16;
    return width < 64 ? 1 : width / 64;
}

/* Which naming, under which prefix. */
static const naming *find_naming(const ma_weights *w, const char **prefix) {
    const naming *both[] = {&opengvlab, &transformers};
    for (int k = 0; k < 2; k++)
        for (const char *const *p = both[k]->prefixes; *p; p++) {
            char name[128];
            snprintf(name, sizeof name, "%s%s.weight", *p, both[k]->patch);
            *prefix = *p;
            if (ma_weights_find(w, name)) return both[k];
        }
    return NULL;
}

static videomae *start(ma_ctx *c, const ma_weights *from, bool train, uint64_t seed) {
    videomae *net = ma_alloc(1, sizeof *net);
    if (net) net->params = ma_params_new(c, from, train, seed);
    if (net && net->params) return net;
    ma_fail(ma_ctx_err(c), MA_MEMORY, "videomae: out of memory");
    videomae_free(net);
    return NULL;
}

/* Sizes off the weights' shapes. */
static int read_sizes(videomae *net) {
    const ma_params *p = net->params;
    const naming *nm = net->names;
    const ma_entry *patch = ma_param_entry(p, "%s.weight", nm->patch);
    const ma_entry *fc1 = ma_param_entry(p, "%s0.%s.weight", nm->layer, nm->fc1);
    const char *path = ma_weights_path(p->from);
    if (!fc1 || fc1->nd != 2)
        return ma_fail(ma_ctx_err(p->ctx), MA_MISSING, "%s: no %s0.%s.weight", path, nm->layer, nm->fc1);
    if (patch->nd != 5 || patch->n[1] != 3 || patch->n[3] != patch->n[4] || patch->n[0] > 1 << 16 ||
        patch->n[3] > 224 || patch->n[2] > 16)
        return ma_fail(ma_ctx_err(p->ctx), MA_SHAPE, "%s: %s.weight: not a patch embedding of RGB clips", path,
                       nm->patch);
    net->hidden = fc1->n[0];
    net->size.width = (int)patch->n[0];
    net->size.tubelet = (int)patch->n[2];
    net->size.patch = (int)patch->n[3];
    while (ma_param_entry(p, "%s%d.%s.weight", nm->layer, net->size.depth, nm->norm1)) net->size.depth++;
    return 0;
}

videomae *videomae_load(ma_ctx *c, const ma_weights *from, int heads, bool train) {
    videomae *net = start(c, from, train, 0);
    if (!net) return NULL;
    net->names = find_naming(from, &net->params->prefix);
    if (!net->names)
        ma_fail(ma_ctx_err(c), MA_UNSUPPORTED, "%s: not VideoMAE: neither %s.weight nor %s.weight",
                ma_weights_path(from), opengvlab.patch, transformers.patch);
    if (!net->names || read_sizes(net)) {
        videomae_free(net);
        return NULL;
    }
    net->size.heads = heads ? heads : default_heads(net->size.width);
    return load(net);
}

videomae *videomae_random(ma_ctx *c, const videomae_size *size, uint64_t seed, bool train) {
    videomae *net = start(c, NULL, train, seed);
    if (!net) return NULL;
    net->names = &opengvlab;
    net->size = *size;
    net->hidden = 4 * (int64_t)size->width;
    if (!net->size.heads) net->size.heads = default_heads(size->width);
    return load(net);
}

void videomae_free(videomae *net) {
    if (!net) return;
    ma_params_free(net->params);
    ma_release(net->block);
    if (net->positions) ma_release(net->positions->at);
    ma_release(net->positions);
    ma_release(net);
}

videomae_size videomae_sizes(const videomae *net) {
    return net->size;
}

int64_t videomae_parameters(const videomae *net) {
    return ma_params_count(net->params);
}

/* ---- positions ---- */

/* p(i, 2j) = sin(i / 10000^(2j/D)), p(i, 2j+1) = cos of the same. */
static void fill_table(float *out, int64_t n, int64_t d) { // (n,D)
#pragma omp parallel for
    for (int64_t j = 0; j < d; j++) {
        double rate = pow(10000, (double)(j / 2 * 2) / (double)d);
        for (int64_t i = 0; i < n; i++) {
            double angle = (double)i / rate;
            out[i * d + j] = (float)(j % 2 ? cos(angle) : sin(angle));
        }
    }
}

/* Four taps of the cubic kernel (a = -0.75) around where output i falls, half pixels, edges repeated; PyTorch's
 * bicubic. */
static void cubic_taps(int64_t i, int64_t in, int64_t out, int64_t at[4], float w[4]) {
    const double a = -0.75;
    double x = ((double)i + 0.5) * (double)in / (double)out - 0.5, base = floor(x);
    for (int k = 0; k < 4; k++) {
        double t = fabs(x - (base + k - 1));
        w[k] = (float)(t <= 1 ? ((a + 2) * t - (a + 3)) * t * t + 1 : ((a * t - 5 * a) * t + 8 * a) * t - 4 * a);
        int64_t s = (int64_t)base + k - 1;
        at[k] = s < 0 ? 0 : s >= in ? in - 1 : s;
    }
}

/* Two taps of linear interpolation, half pixels, clamped. */
static void linear_taps(int64_t i, int64_t in, int64_t out, int64_t at[2], float w[2]) {
    double x = ((double)i + 0.5) * (double)in / (double)out - 0.5;
    x = x < 0 ? 0 : x;
    at[0] = (int64_t)x < in - 1 ? (int64_t)x : in - 1;
    at[1] = at[0] + 1 < in ? at[0] + 1 : at[0];
    w[1] = (float)(x - (double)at[0]);
    w[0] = 1 - w[1];
}

/* Resamples the middle of (outer, in, inner) to (outer, out, inner), cubic or linear. NULL: out of memory. */
static float *resample(float *x, int64_t outer, int64_t in, int64_t out, int64_t inner, bool cubic) {
    float *y = x ? ma_alloc((size_t)(outer * out * inner), sizeof *y) : NULL;
    for (int64_t i = 0; y && i < out; i++) {
        int64_t at[4];
        float w[4];
        if (cubic)
            cubic_taps(i, in, out, at, w);
        else
            linear_taps(i, in, out, at, w);
        for (int64_t o = 0; o < outer; o++) {
            float *row = y + (o * out + i) * inner;
            for (int k = 0; k < (cubic ? 4 : 2); k++)
                for (int64_t j = 0; j < inner; j++) row[j] += w[k] * x[(o * in + at[k]) * inner + j];
        }
    }
    ma_release(x);
    return y;
}

/* The table for a grid, (T·H·W, D). NULL: out of memory. */
static const float *positions(const videomae *net, const int64_t grid[3]) {
    table *t = net->positions;
    int64_t d = net->size.width, side = 224 / net->size.patch, base[] = {16 / net->size.tubelet, side, side};
    if (t->at && !memcmp(t->grid, grid, sizeof t->grid)) return t->at;
    const int64_t *from = net->names->native ? grid : base;
    float *x = ma_alloc((size_t)(from[0] * from[1] * from[2]), (size_t)d * sizeof *x);
    if (x) fill_table(x, from[0] * from[1] * from[2], d);
    if (!net->names->native) {
        x = resample(x, base[0] * base[1], base[2], grid[2], d, true);      // (T0,H0,W,D)
        x = resample(x, base[0], base[1], grid[1], grid[2] * d, true);      // (T0,H,W,D)
        x = resample(x, 1, base[0], grid[0], grid[1] * grid[2] * d, false); // (T,H,W,D)
    }
    ma_release(t->at);
    t->at = x;
    memcpy(t->grid, grid, sizeof t->grid);
    return x;
}

/* ---- the network ---- */

static ma_tensor *attention(ma_ctx *c, const videomae *net, const vit_block *b, ma_tensor *x) {
    if (!x) return NULL;
    int64_t n = x->n[0], l = x->n[1], d = x->n[2], h = net->size.heads;
    ma_tensor *q = ma_linear(c, x, b->q.w, b->q.b, MA_NONE); // (B,L,D)
    ma_tensor *k = ma_linear(c, x, b->k.w, b->k.b, MA_NONE);
    ma_tensor *v = ma_linear(c, x, b->v.w, b->v.b, MA_NONE);
    q = ma_view(c, q, MA_SHAPE(n, l, h, d / h));
    k = ma_view(c, k, MA_SHAPE(n, l, h, d / h));
    v = ma_view(c, v, MA_SHAPE(n, l, h, d / h));
    ma_tensor *y = ma_attention(c, q, k, v, 1 / sqrt((double)(d / h))); // (B,L,h,D/h)
    return ma_linear(c, ma_view(c, y, MA_SHAPE(n, l, d)), b->proj.w, b->proj.b, MA_NONE);
}

static ma_tensor *scaled(ma_ctx *c, ma_tensor *y, ma_tensor *gamma) {
    return gamma ? ma_mul_(c, y, gamma) : y;
}

static ma_tensor *block_forward(ma_ctx *c, const videomae *net, const vit_block *b, ma_tensor *x) {
    double eps = net->names->eps;
    ma_tensor *y = attention(c, net, b, ma_layer_norm(c, x, b->norm1.w, b->norm1.b, eps)); // (B,L,D)
    x = ma_add(c, x, scaled(c, y, b->gamma1));
    y = ma_layer_norm(c, x, b->norm2.w, b->norm2.b, eps);
    y = ma_linear(c, y, b->fc1.w, b->fc1.b, MA_GELU); // (B,L,4D)
    y = ma_linear(c, y, b->fc2.w, b->fc2.b, MA_NONE); // (B,L,D)
    return ma_add(c, x, scaled(c, y, b->gamma2));
}

/* Tubelets to tokens, and where each stands. */
static ma_tensor *embed(ma_ctx *c, const videomae *net, ma_tensor *x, int64_t grid[3]) {
    const videomae_size *s = &net->size;
    if (x->nd != 5 || x->n[4] != 3 || x->n[1] % s->tubelet || x->n[2] % s->patch || x->n[3] % s->patch) {
        char text[160];
        ma_fail(ma_ctx_err(c), MA_SHAPE, "videomae: a clip of %s (B,T,H,W,3) is not whole tubelets of %dx%dx%d",
                ma_shape_text(text, x->nd, x->n), s->tubelet, s->patch, s->patch);
        return NULL;
    }
    ma_window stride = {{s->tubelet, s->patch, s->patch}, {0}, {0}};
    ma_tensor *t = ma_conv(c, x, net->patch.w, net->patch.b, stride, MA_NONE); // (B,T,H,W,D)
    if (!t) return NULL;
    memcpy(grid, t->n + 1, 3 * sizeof *grid);
    int64_t l = grid[0] * grid[1] * grid[2];
    const float *at = positions(net, grid);
    if (!at) ma_fail(ma_ctx_err(c), MA_MEMORY, "videomae: no memory for a table of %lld positions", (long long)l);
    ma_tensor *p = at ? ma_input(c, at, MA_SHAPE(l, s->width)) : NULL;
    return ma_add(c, ma_view(c, t, MA_SHAPE(t->n[0], l, s->width)), p); // (B,L,D)
}

ma_tensor *videomae_forward(ma_ctx *c, const videomae *net, ma_tensor *x) {
    if (!x) return NULL;
    int64_t batch = x->n[0], grid[3] = {0};
    bool frozen = !net->params->train && !x->want; // nothing is on the tape: activations need not pile up
    ma_mark_t m = ma_mark(c);
    x = embed(c, net, x, grid); // (B,L,D)
    for (int k = 0; k < net->size.depth; k++) {
        x = block_forward(c, net, &net->block[k], x);
        if (frozen) ma_rewind_keep(c, m, &x, 1);
    }
    if (net->norm.w) x = ma_layer_norm(c, x, net->norm.w, net->norm.b, net->names->eps);
    return ma_view(c, x, MA_SHAPE(batch, grid[0], grid[1], grid[2], net->size.width));
}
