/* vit: see vit.h.
 *
 * Depth, widths, patch and tubelet are read off the weights; the number of heads does not stand in them.
 * Limits: no masking, no heads, no decoders. A frozen net's activations do not pile up: a block adds to the tokens in
 * place.
 * Traps:
 * - Where only q and v have a bias, k has none: three views of the packed weight, never one product with one bias.
 * - Publishers share names: blocks.N.attn.qkv is VideoMAE's and DINOv2's. The patch embedding's dimensions tell clips
 *   from pictures.
 * - gelu is the exact one.
 * - In 16 bits what limits a deep net is the rounding of the sum that all blocks add to: on random weights 0.9 % of the
 *   tokens' norm after 12 blocks and 1.5 % after 40, where a sum in f32 leaves 0.3 and 0.5 %. It costs a twentieth of
 *   the time; nets of more than 12 blocks pay it.
 */
#include "vit.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- loading ---- */

static ma_err *error_of(const vit *net) {
    return ma_ctx_err(net->params->ctx);
}

/* Whether the file has it; without a file, what a drawn net has. */
static bool has(const vit *net, const char *at, const char *part, const char *leaf, bool drawn) {
    return part && (net->params->from ? ma_param_has(net->params, "%s%s%s", at, part, leaf) : drawn);
}

/* (n), at+part+leaf */
static ma_tensor *vector(vit *net, ma_init init, int64_t n, const char *at, const char *part, const char *leaf) {
    return ma_param(net->params, MA_PLAIN, init, MA_SHAPE(n), "%s%s%s", at, part, leaf);
}

static vit_affine load_norm(vit *net, const char *at, const char *part) {
    int64_t d = net->size.width;
    return (vit_affine){vector(net, MA_INIT_ONE, d, at, part, ".weight"),
                        vector(net, MA_INIT_ZERO, d, at, part, ".bias")};
}

/* needs: a bias must be there. */
static vit_affine load_map(vit *net, int64_t out, int64_t in, const char *at, const char *part, bool needs) {
    vit_affine m = {ma_param(net->params, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(out, in), "%s%s.weight", at, part), NULL};
    if (needs || has(net, at, part, ".bias", false)) m.b = vector(net, MA_INIT_FAN, out, at, part, ".bias");
    return m;
}

/* Rows from, …, from+n-1 of a map. */
static vit_affine rows(vit *net, vit_affine m, int64_t from, int64_t n) {
    ma_ctx *c = net->params->ctx;
    return (vit_affine){m.w ? ma_rows(c, m.w, from, n) : NULL, m.b ? ma_rows(c, m.b, from, n) : NULL};
}

/* `at` is the layer's name with its point: "blocks.3." */
static void load_qkv(vit *net, vit_block *b, const char *at) {
    const vit_naming *nm = net->names;
    int64_t d = net->size.width;
    if (nm->qkv) {
        vit_affine all = load_map(net, 3 * d, d, at, nm->qkv, false);
        b->q = rows(net, all, 0, d);
        b->k = rows(net, all, d, d);
        b->v = rows(net, all, 2 * d, d);
    } else {
        b->q = load_map(net, d, d, at, nm->q, false);
        b->k = load_map(net, d, d, at, nm->k, false);
        b->v = load_map(net, d, d, at, nm->v, false);
    }
    if (!b->q.b && has(net, at, nm->q_bias, "", false)) b->q.b = vector(net, MA_INIT_ZERO, d, at, nm->q_bias, "");
    if (!b->v.b && has(net, at, nm->v_bias, "", false)) b->v.b = vector(net, MA_INIT_ZERO, d, at, nm->v_bias, "");
}

static void load_mlp(vit *net, vit_block *b, const char *at) {
    const vit_naming *nm = net->names;
    int64_t d = net->size.width, h = net->hidden;
    if (!has(net, at, nm->glu_in, ".weight", false)) {
        b->fc1 = load_map(net, h, d, at, nm->fc1, true);
        b->fc2 = load_map(net, d, h, at, nm->fc2, true);
        return;
    }
    vit_affine both = load_map(net, 2 * h, d, at, nm->glu_in, true);
    b->gate = rows(net, both, 0, h);
    b->fc1 = rows(net, both, h, h);
    b->fc2 = load_map(net, d, h, at, nm->glu_out, true);
}

/* t (n, rest) with row i times gamma[i]. */
static int scale_rows(vit *net, ma_tensor *t, const float *gamma) {
    int64_t n = t->n[0], rest = ma_count(t) / n;
    float *v = ma_alloc((size_t)ma_count(t), sizeof *v);
    if (!v) return ma_fail(error_of(net), MA_MEMORY, "%s: out of memory", net->kind->name);
    int rc = ma_get(net->params->ctx, t, v);
    for (int64_t i = 0; i < n * rest; i++) v[i] *= gamma[i / rest];
    if (!rc) rc = ma_put(net->params->ctx, t, v);
    ma_release(v);
    return rc;
}

/* A wide net's f32 copy of a bias. */
static ma_tensor *widened(vit *net, const ma_tensor *bias) {
    ma_ctx *c = net->params->ctx;
    if (!net->wide || !bias) return NULL;
    ma_tensor *t = ma_keep(c, MA_F32, 1, bias->n);
    float *v = ma_alloc((size_t)ma_count(bias), sizeof *v);
    if (!v) ma_fail(error_of(net), MA_MEMORY, "%s: out of memory", net->kind->name);
    if (v && !ma_get(c, bias, v)) ma_put(c, t, v);
    ma_release(v);
    return t;
}

/* Layer scale: gamma·(w·x + b). A frozen net has it in the map; a net to be trained gets it back, as (D). */
static ma_tensor *load_scale(vit *net, vit_affine m, const char *at, const char *part) {
    int64_t d = net->size.width;
    if (!has(net, at, part, "", false)) return NULL;
    ma_tensor *t = vector(net, MA_INIT_ONE, d, at, part, "");
    if (!t || net->params->train) return t;
    float *gamma = ma_alloc((size_t)d, sizeof *gamma);
    if (!gamma) ma_fail(error_of(net), MA_MEMORY, "%s: out of memory", net->kind->name);
    if (gamma && !ma_get(net->params->ctx, t, gamma) && !scale_rows(net, m.w, gamma)) scale_rows(net, m.b, gamma);
    ma_release(gamma);
    return NULL;
}

static void load_block(vit *net, vit_block *b, int layer) {
    const vit_naming *nm = net->names;
    int64_t d = net->size.width;
    char at[64];
    snprintf(at, sizeof at, "%s%d.", nm->layer, layer);
    b->norm1 = load_norm(net, at, nm->norm1);
    load_qkv(net, b, at);
    b->proj = load_map(net, d, d, at, nm->proj, true);
    b->norm2 = load_norm(net, at, nm->norm2);
    load_mlp(net, b, at);
    if (ma_failed(net->params->ctx)) return;
    b->gamma1 = load_scale(net, b->proj, at, nm->scale1);
    b->gamma2 = load_scale(net, b->fc2, at, nm->scale2);
    b->wide1 = widened(net, b->proj.b);
    b->wide2 = widened(net, b->fc2.b);
}

/* Everything, once names and sizes are known. */
static vit *load(vit *net) {
    const vit_size *s = &net->size;
    ma_params *p = net->params;
    ma_ctx *c = p->ctx;
    ma_layout layout = net->kind->pictures ? MA_CONV2D : MA_CONV3D;
    net->wide = !p->train && ma_get_type(c) != MA_F32 && s->depth > 12;
    if (!(net->block = ma_alloc((size_t)s->depth, sizeof *net->block)))
        ma_fail(ma_ctx_err(c), MA_MEMORY, "%s: out of memory", net->kind->name);
    if (s->width % s->heads)
        ma_fail(ma_ctx_err(c), MA_USAGE, "%s: width %d does not divide into %d heads", net->kind->name, s->width,
                s->heads);
    net->patch.w = ma_param(p, layout, MA_INIT_FAN, MA_SHAPE(s->width, s->tubelet, s->patch, s->patch, 3), "%s.weight",
                            net->names->patch);
    net->patch.b = vector(net, MA_INIT_FAN, s->width, "", net->names->patch, ".bias");
    for (int k = 0; k < s->depth && !ma_failed(c); k++) load_block(net, &net->block[k], k);
    if (has(net, "", net->names->norm, ".weight", true)) net->norm = load_norm(net, "", net->names->norm);
    if (!ma_failed(c) && net->kind->begin) net->kind->begin(net);
    if (!ma_failed(c)) ma_params_end(p, net->names->ignore);
    if (!ma_failed(c)) return net;
    vit_free(net);
    return NULL;
}

static int default_heads(const vit_kind *kind, int width) {
    for (size_t k = 0; k < sizeof kind->odd / sizeof *kind->odd; k++)
        if (kind->odd[k].width == width) return kind->odd[k].heads;
    return width < 64 ? 1 : width / 64;
}

/* Which naming, under which prefix. NULL: none, and the context has failed. */
static const vit_naming *find_naming(vit *net) {
    const ma_weights *w = net->params->from;
    ma_buf wanted = {0};
    for (const vit_naming *const *n = net->kind->names; *n; n++) {
        for (const char *const *p = (*n)->prefixes; *p; p++) {
            net->params->prefix = *p;
            if (!ma_param_entry(net->params, "%s.weight", (*n)->patch)) continue;
            ma_buf_free(&wanted);
            return *n;
        }
        ma_buf_printf(&wanted, "%s%s.weight (%s)", wanted.size ? ", " : "", (*n)->patch, (*n)->publisher);
    }
    char shape[160] = "";
    const ma_entry *first = ma_weights_count(w) ? ma_weights_at(w, 0) : NULL;
    ma_fail(error_of(net), MA_UNSUPPORTED, "%s: not %s: none of %s; it has %d arrays, first %s %s", ma_weights_path(w),
            net->kind->name, wanted.data ? wanted.data : "its names", ma_weights_count(w), first ? first->name : "none",
            first ? ma_shape_text(shape, first->nd, first->n) : "");
    ma_buf_free(&wanted);
    return NULL;
}

/* The patch embedding's sizes. */
static int read_patch(vit *net, const ma_entry *e) {
    int clip = !net->kind->pictures; /* one dimension more, time */
    const int64_t *side = e->n + e->nd - 2;
    bool fits = e->nd == 4 + clip && e->n[1] == 3 && side[0] == side[1] && e->n[0] <= 1 << 16 && side[0] <= 224 &&
                (!clip || e->n[2] <= 16);
    char is[160];
    if (!fits)
        return ma_fail(error_of(net), MA_SHAPE, "%s: not %s: %s is %s, must be WIDTHx3%sxPATCHxPATCH",
                       ma_weights_path(net->params->from), net->kind->name, e->name, ma_shape_text(is, e->nd, e->n),
                       clip ? "xTUBELET" : "");
    net->size.width = (int)e->n[0];
    net->size.tubelet = clip ? (int)e->n[2] : 1;
    net->size.patch = (int)side[0];
    return 0;
}

/* Sizes off the weights' shapes. */
static int read_sizes(vit *net) {
    const ma_params *p = net->params;
    const vit_naming *nm = net->names;
    const char *path = ma_weights_path(p->from);
    if (read_patch(net, ma_param_entry(p, "%s.weight", nm->patch))) return -1;
    const ma_entry *glu = nm->glu_in ? ma_param_entry(p, "%s0.%s.weight", nm->layer, nm->glu_in) : NULL;
    const ma_entry *fc1 = glu ? glu : ma_param_entry(p, "%s0.%s.weight", nm->layer, nm->fc1);
    if (!fc1 || fc1->nd != 2)
        return ma_fail(error_of(net), MA_MISSING, "%s: no %s%s0.%s.weight, as %s has it", path, p->prefix, nm->layer,
                       nm->fc1, nm->publisher);
    net->hidden = glu ? fc1->n[0] / 2 : fc1->n[0];
    while (ma_param_entry(p, "%s%d.%s.weight", nm->layer, net->size.depth, nm->norm1)) net->size.depth++;
    return net->size.depth ? 0
                           : ma_fail(error_of(net), MA_MISSING, "%s: no %s%s0.%s.weight, as %s has it", path, p->prefix,
                                     nm->layer, nm->norm1, nm->publisher);
}

static vit *start(const vit_kind *kind, ma_ctx *c, const ma_weights *from, bool train, uint64_t seed) {
    vit *net = ma_alloc(1, sizeof *net);
    if (net) net->kind = kind;
    if (net) net->params = ma_params_new(c, from, train, seed);
    if (net && net->params) return net;
    ma_fail(ma_ctx_err(c), MA_MEMORY, "%s: out of memory", kind->name);
    vit_free(net);
    return NULL;
}

vit *vit_load(const vit_kind *kind, ma_ctx *c, const ma_weights *from, int heads, bool train) {
    vit *net = start(kind, c, from, train, 0);
    if (!net) return NULL;
    net->names = find_naming(net);
    if (!net->names || read_sizes(net)) {
        vit_free(net);
        return NULL;
    }
    net->size.heads = heads ? heads : default_heads(kind, net->size.width);
    return load(net);
}

vit *vit_random(const vit_kind *kind, ma_ctx *c, const vit_size *size, uint64_t seed, bool train) {
    vit *net = start(kind, c, NULL, train, seed);
    if (!net) return NULL;
    net->names = kind->names[0];
    net->size = *size;
    net->hidden = 4 * (int64_t)size->width;
    if (!net->size.heads) net->size.heads = default_heads(kind, size->width);
    return load(net);
}

void vit_free(vit *net) {
    if (!net) return;
    ma_params_free(net->params);
    ma_release(net->block);
    ma_release(net->lead);
    ma_release(net->table);
    ma_release(net);
}

vit_size vit_sizes(const vit *net) {
    return net->size;
}

int64_t vit_parameters(const vit *net) {
    return ma_params_count(net->params);
}

int vit_keep(vit *net, ma_tensor **at, ma_type type, int64_t n, int64_t columns, float *values) {
    ma_ctx *c = net->params->ctx;
    if (!values)
        return ma_fail(ma_ctx_err(c), MA_MEMORY, "%s: no memory for %lld positions", net->kind->name, (long long)n);
    if (!*at || (*at)->n[0] != n) *at = ma_keep(c, type, MA_SHAPE(n, columns));
    int rc = *at ? ma_put(c, *at, values) : -1;
    ma_release(values);
    return rc;
}

/* ---- the network ---- */

/* Queries or keys: (B,L,D) → (B,L,h,D/h), turned by where they stand. */
static ma_tensor *heads_of(ma_ctx *c, const vit *net, ma_tensor *x, vit_affine m, bool turn) {
    int64_t d = net->size.width, h = net->size.heads;
    ma_tensor *y = ma_linear(c, x, m.w, m.b, MA_NONE); // (B,L,D)
    y = ma_view(c, y, MA_SHAPE(x->n[0], x->n[1], h, d / h));
    return turn && net->cosine ? ma_rope(c, y, net->cosine, net->sine, 0) : y;
}

static ma_tensor *attention(ma_ctx *c, const vit *net, const vit_block *b, ma_tensor *x) {
    if (!x) return NULL;
    ma_tensor *q = heads_of(c, net, x, b->q, true), *k = heads_of(c, net, x, b->k, true);
    ma_tensor *v = heads_of(c, net, x, b->v, false);
    ma_tensor *y = ma_attention(c, q, k, v, 1 / sqrt((double)net->size.width / net->size.heads)); // (B,L,h,D/h)
    return ma_view(c, y, MA_SHAPE(x->n[0], x->n[1], x->n[2]));
}

static ma_tensor *mlp(ma_ctx *c, const vit_block *b, ma_tensor *x) {
    if (!b->gate.w) return ma_linear(c, x, b->fc1.w, b->fc1.b, MA_GELU); // (B,L,hidden)
    return ma_mul_(c, ma_linear(c, x, b->gate.w, b->gate.b, MA_SILU), ma_linear(c, x, b->fc1.w, b->fc1.b, MA_NONE));
}

/* x + gamma·(w·y + b); of a frozen net in place. wide: b in x's type, where that is another. */
static ma_tensor *add_map(ma_ctx *c, ma_tensor *x, ma_tensor *y, vit_affine m, ma_tensor *wide, ma_tensor *gamma,
                          bool frozen) {
    if (frozen) return ma_linear_add(c, x, y, m.w, wide ? wide : m.b);
    y = ma_linear(c, y, m.w, m.b, MA_NONE);
    return ma_add(c, x, gamma ? ma_mul_(c, y, gamma) : y);
}

static ma_tensor *block_forward(ma_ctx *c, const vit *net, const vit_block *b, ma_tensor *x, bool frozen) {
    double eps = net->names->eps;
    ma_tensor *y = attention(c, net, b, ma_layer_norm(c, x, b->norm1.w, b->norm1.b, eps)); // (B,L,D)
    x = add_map(c, x, y, b->proj, b->wide1, b->gamma1, frozen);
    y = mlp(c, b, ma_layer_norm(c, x, b->norm2.w, b->norm2.b, eps)); // (B,L,hidden)
    return add_map(c, x, y, b->fc2, b->wide2, b->gamma2, frozen);
}

/* Patches, (B,T,H,W,D): of pictures (B·T,1,H,W,D). */
static ma_tensor *patches(ma_ctx *c, const vit *net, ma_tensor *x) {
    const vit_size *s = &net->size;
    if (x->nd != 5 || x->n[4] != 3 || x->n[1] % s->tubelet || x->n[2] % s->patch || x->n[3] % s->patch) {
        char text[160];
        ma_fail(ma_ctx_err(c), MA_SHAPE, "%s: a clip of %s (B,T,H,W,3) is not whole patches of %dx%dx%d",
                net->kind->name, ma_shape_text(text, x->nd, x->n), s->tubelet, s->patch, s->patch);
        return NULL;
    }
    if (net->kind->pictures) x = ma_view(c, x, MA_SHAPE(x->n[0] * x->n[1], 1, x->n[2], x->n[3], 3));
    ma_window stride = {{s->tubelet, s->patch, s->patch}, {0}, {0}};
    return ma_conv(c, x, net->patch.w, net->patch.b, stride, MA_NONE);
}

/* The leading tokens put before x (B,L,D). */
static ma_tensor *with_leads(ma_ctx *c, const vit *net, ma_tensor *x) {
    if (!x || !net->leads) return x;
    int64_t n = x->n[0], each = net->leads * net->size.width;
    float *all = ma_alloc((size_t)(n * each), sizeof *all);
    if (!all) ma_fail(ma_ctx_err(c), MA_MEMORY, "%s: out of memory", net->kind->name);
    for (int64_t k = 0; all && k < n; k++) memcpy(all + k * each, net->lead, (size_t)each * sizeof *all);
    ma_tensor *lead = all ? ma_input(c, all, MA_SHAPE(n, net->leads, net->size.width)) : NULL;
    ma_release(all);
    return lead ? ma_concat(c, (ma_tensor *[]){lead, x}, 2, 1) : NULL;
}

/* A clip to tokens, (B,L,D), that know where they stand, and their grid. */
static ma_tensor *embed(ma_ctx *c, vit *net, ma_tensor *x, int64_t grid[3]) {
    ma_tensor *t = patches(c, net, x);
    if (!t) return NULL;
    memcpy(grid, t->n + 1, 3 * sizeof *grid);
    if (memcmp(grid, net->grid, sizeof net->grid)) {
        if (net->kind->place(net, grid)) return NULL;
        memcpy(net->grid, grid, sizeof net->grid);
    }
    t = ma_view(c, t, MA_SHAPE(t->n[0], grid[0] * grid[1] * grid[2], net->size.width));
    return with_leads(c, net, net->at ? ma_add(c, t, net->at) : t); // (B,L,D)
}

ma_tensor *vit_forward(ma_ctx *c, vit *net, ma_tensor *x, int layer) {
    if (!net || !x) return NULL;
    int64_t batch = x->n[0], grid[3] = {0};
    bool frozen = !net->params->train && !x->want;
    ma_mark_t m = ma_mark(c);
    x = embed(c, net, x, grid); // (B,L,D)
    if (frozen && net->wide) x = ma_cast(c, x, MA_F32, net->size.width);
    if (frozen) ma_rewind_keep(c, m, &x, 1);
    m = ma_mark(c);
    for (int k = 0; k < (layer ? layer : net->size.depth); k++) {
        x = block_forward(c, net, &net->block[k], x, frozen);
        if (frozen) ma_rewind(c, m); /* x was there before: it was added to in place */
    }
    if (!layer && net->norm.w) x = ma_layer_norm(c, x, net->norm.w, net->norm.b, net->names->eps);
    if (x && net->leads) x = ma_slice(c, x, 1, net->leads, x->n[1] - net->leads);
    int64_t frames = net->kind->pictures && x ? x->n[0] / batch : grid[0];
    return ma_view(c, x, MA_SHAPE(batch, frames, grid[1], grid[2], net->size.width));
}
