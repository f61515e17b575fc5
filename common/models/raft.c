/* raft: optical flow by recurrent all-pairs field transforms (Teed & Deng, ECCV 2020), forward only.
 *
 * Every width is read off the weights. What the flavours differ in is told by what the file holds: bottleneck blocks
 * (small) or plain ones (large), one GRU (3×3) or two (1×5, then 5×1), a mask head or none.
 * Features, context and hidden state are of the context's type; correlation, coordinates and flow are fp32.
 * Limits: no gradient.
 * Source: princeton-vl/RAFT core/{raft,extractor,update,corr}.py; torchvision models/optical_flow/raft.py for its
 * names.
 *
 * A convolution of tensors side by side is a sum of convolutions, one a tensor. So the GRUs' weights are cut at
 * loading: what they make of the context is computed once, what they make of the motion once an update for all three
 * gates, and nothing is put beside the hidden state. Likewise the mean of correlations is the correlation with a mean:
 * the coarser levels are products with pooled features. Convolutions that read or write a few channels have zeros added
 * to whole 16 bytes, which is what matrix units load.
 *
 * Traps:
 * - Only the block that halves the image has `downsample`: its presence tells the stride, which stands at the block's
 *   first convolution in the large net and at its second, the 3×3 one, in the small net.
 * - Batch norm runs on its stored statistics and is folded. princeton-vl stores the norm of `downsample` twice.
 * - Instance norm has no parameters; one in the context encoder of RAFT-small would be invisible: there is none.
 * - The flow that the update block sees is coords1 - coords0, rounded as such, not a sum of updates.
 * - Below 128 pixels the coarsest level of the pyramid is a single row, and look-ups there are all outside.
 */
#include "raft.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LEVELS = 4, STAGES = 3, BLOCKS = 2, LEAST = 128, GRUS = 2 };

typedef struct conv_layer {
    ma_tensor *w, *b; // (O,1,kh,kw,C), (O) or NULL
} conv_layer;

typedef struct residual {
    conv_layer conv[3], down; // two 3×3, or 1×1, 3×3, 1×1; down.w NULL: the image keeps its size
} residual;

typedef struct encoder {
    bool instance; // instance norm after every convolution
    conv_layer stem;
    residual block[STAGES * BLOCKS];
} encoder;

/* Its convolutions by what they read. C channels a gate. */
typedef struct gru {
    conv_layer context, x; // z, r, q: 3C; x is motion features and flow
    conv_layer h, rh;      // z, r: 2C; q: C
} gru;

struct raft {
    ma_params *params;
    bool small, torchvision;
    encoder fnet, cnet;
    conv_layer features, hidden, context; // the last convolutions of fnet, and of cnet in two
    conv_layer corr[2], flow[2], motion;  // motion encoder; corr[1].w NULL in the small net
    gru gru[GRUS];                        // gru[1].h.w NULL in the small net
    conv_layer head[2], mask[2];          // mask[0].w NULL in the small net
    int64_t radius;
};

/* ---- loading: convolutions are put together on the host ---- */

typedef struct host_conv {
    int64_t n[5]; // (O,1,kh,kw,C)
    float *w, *b; // w NULL: the context has failed, or there is none. b NULL: no bias
} host_conv;

static void host_free(host_conv *h) {
    ma_release(h->w);
    ma_release(h->b);
    *h = (host_conv){0};
}

static host_conv no_memory(ma_params *p, host_conv *h) {
    ma_fail(ma_ctx_err(p->ctx), MA_MEMORY, "%s: out of memory", ma_weights_path(p->from));
    host_free(h);
    return *h;
}

/* Zeros, with the kernel of `like`. */
static host_conv host_zeros(ma_params *p, const host_conv *like, int64_t out, int64_t in, bool bias) {
    host_conv h = {.n = {out, 1, like->n[2], like->n[3], in}};
    h.w = ma_alloc((size_t)(out * h.n[2] * h.n[3] * in), sizeof *h.w);
    if (bias) h.b = ma_alloc((size_t)out, sizeof *h.b);
    return h.w && (h.b || !bias) ? h : no_memory(p, &h);
}

/* The outputs from, …, from+count-1 alone: part of h, which owns it. */
static host_conv host_outputs(const host_conv *h, int64_t from, int64_t count) {
    host_conv part = *h;
    if (!h->w) return part;
    part.n[0] = count;
    part.w += from * h->n[2] * h->n[3] * h->n[4];
    if (part.b) part.b += from;
    return part;
}

/* The inputs from, …, from+count-1 of h, and its biases, to outputs `row` on and inputs `column` on of `to`. */
static void host_copy(host_conv *to, int64_t row, int64_t column, const host_conv *h, int64_t from, int64_t count) {
    int64_t taps = h->n[2] * h->n[3];
    if (!to->w || !h->w) return;
    for (int64_t k = 0; k < h->n[0] * taps; k++)
        memcpy(to->w + (row * taps + k) * to->n[4] + column, h->w + k * h->n[4] + from, (size_t)count * sizeof *h->w);
    if (to->b) memcpy(to->b + row, h->b, (size_t)h->n[0] * sizeof *h->b);
}

/* The shape of a convolution in our layout. */
static bool conv_shape(ma_params *p, const char *name, int64_t n[5]) {
    const ma_entry *e = ma_param_entry(p, "%s.weight", name);
    bool good = e && e->nd == 4;
    for (int k = 0; good && k < 4; k++) good = e->n[k] > 0;
    if (good)
        memcpy(n, (int64_t[]){e->n[0], 1, e->n[2], e->n[3], e->n[1]}, 5 * sizeof *n);
    else
        ma_fail(ma_ctx_err(p->ctx), e ? MA_SHAPE : MA_MISSING, "%s: %s.weight: %s", ma_weights_path(p->from), name,
                e ? "not a convolution of images" : "not there");
    return good;
}

static host_conv host_read(ma_params *p, const char *name) {
    host_conv h = {0};
    if (ma_failed(p->ctx) || !conv_shape(p, name, h.n)) return h;
    int64_t count = h.n[0] * h.n[2] * h.n[3] * h.n[4];
    float *file = ma_param_host(p, count, "%s.weight", name);
    h.b = ma_param_host(p, h.n[0], "%s.bias", name);
    if (file && h.b && !(h.w = ma_alloc((size_t)count, sizeof *h.w))) no_memory(p, &h);
    if (h.w) ma_layout_from_file(h.w, file, MA_CONV2D, 5, h.n);
    ma_release(file);
    if (!h.w) host_free(&h);
    return h;
}

/* The batch norm behind h, g·(x - mean)/√(var + 1e-5) + beta, becomes part of it. */
static void host_fold(ma_params *p, host_conv *h, const char *norm) {
    enum { G, BETA, MEAN, VAR, ALL };
    static const char *const part[ALL] = {"weight", "bias", "running_mean", "running_var"};
    float *file[ALL];
    bool all = h->w;
    for (int k = G; k < ALL; k++) {
        file[k] = all ? ma_param_host(p, h->n[0], "%s.%s", norm, part[k]) : NULL;
        all = all && file[k];
    }
    ma_param_has(p, "%s.num_batches_tracked", norm);
    int64_t fan = h->n[2] * h->n[3] * h->n[4];
    for (int64_t o = 0; all && o < h->n[0]; o++) {
        float scale = file[G][o] / sqrtf(file[VAR][o] + 1e-5f);
        for (int64_t i = 0; i < fan; i++) h->w[o * fan + i] *= scale;
        h->b[o] = (h->b[o] - file[MEAN][o]) * scale + file[BETA][o];
    }
    for (int k = G; k < ALL; k++) ma_release(file[k]);
}

static int64_t round_up(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* Channels in 16 bytes of the context's type. */
static int64_t whole(const ma_params *p) {
    return 16 / (int64_t)ma_type_size(ma_get_type(p->ctx));
}

/* Zeros behind h's outputs and inputs, up to multiples of `out` and `in`. */
static void host_pad(ma_params *p, host_conv *h, int64_t out, int64_t in) {
    int64_t rows = round_up(h->n[0], out), columns = round_up(h->n[4], in);
    if (!h->w || (rows == h->n[0] && columns == h->n[4])) return;
    host_conv wide = host_zeros(p, h, rows, columns, true);
    host_copy(&wide, 0, 0, h, 0, h->n[4]);
    host_free(h);
    *h = wide;
}

/* The layer as parameters. */
static conv_layer host_put(ma_params *p, const host_conv *h) {
    conv_layer l = {0};
    if (!h->w) return l;
    l.w = ma_param_values(p, h->w, 5, h->n);
    if (h->b) l.b = ma_param_values(p, h->b, 1, h->n);
    return l;
}

/* The same, and h is done with. */
static conv_layer host_give(ma_params *p, host_conv *h) {
    conv_layer l = host_put(p, h);
    host_free(h);
    return l;
}

static conv_layer load_padded(ma_params *p, const char *name, int64_t out, int64_t in) {
    host_conv h = host_read(p, name);
    host_pad(p, &h, out, in);
    return host_give(p, &h);
}

static conv_layer load_conv(ma_params *p, const char *name) {
    return load_padded(p, name, 1, 1);
}

static conv_layer load_optional(ma_params *p, const char *name) {
    return ma_param_entry(p, "%s.weight", name) ? load_conv(p, name) : (conv_layer){0};
}

/* A convolution of an encoder with what normalises behind it, its inputs in multiples of `in`. twin: another name under
 * which the file repeats the norm. */
static conv_layer load_normed(ma_params *p, const char *name, const char *norm, const char *twin, int64_t in) {
    static const char *const part[] = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"};
    for (size_t k = 0; twin && k < sizeof part / sizeof *part; k++) ma_param_has(p, "%s.%s", twin, part[k]);
    host_conv h = host_read(p, name);
    if (ma_param_entry(p, "%s.running_var", norm)) host_fold(p, &h, norm);
    host_pad(p, &h, 1, in);
    return host_give(p, &h);
}

static void load_block(raft *r, residual *b, const char *at) {
    const char *name = r->torchvision ? "convnormrelu" : "conv", *zero = r->torchvision ? ".0" : "";
    const char *norm = r->torchvision ? "convnormrelu" : "norm", *one = r->torchvision ? ".1" : "";
    int convs = r->small ? 3 : 2;
    for (int k = 0; k < convs; k++)
        b->conv[k] = load_normed(r->params, ma_label_of("%s.%s%d%s", at, name, k + 1, zero).s,
                                 ma_label_of("%s.%s%d%s", at, norm, k + 1, one).s, NULL, 1);
    if (ma_param_entry(r->params, "%s.downsample.0.weight", at))
        b->down = load_normed(r->params, ma_label_of("%s.downsample.0", at).s, ma_label_of("%s.downsample.1", at).s,
                              ma_label_of("%s.norm%d", at, convs + 1).s, 1);
}

static void load_encoder(raft *r, encoder *e, const char *root) {
    bool tv = r->torchvision;
    e->stem = load_normed(r->params, ma_label_of("%s.%s", root, tv ? "convnormrelu.0" : "conv1").s,
                          ma_label_of("%s.%s", root, tv ? "convnormrelu.1" : "norm1").s, NULL, whole(r->params));
    for (int k = 0; k < STAGES * BLOCKS; k++)
        load_block(r, &e->block[k], ma_label_of("%s.layer%d.%d", root, k / BLOCKS + 1, k % BLOCKS).s);
}

static int wrong_widths(const raft *r, const char *what) {
    return ma_fail(ma_ctx_err(r->params->ctx), MA_SHAPE, "%s: %s: not RAFT's widths", ma_weights_path(r->params->from),
                   what);
}

/* cnet's last convolution: its first `hidden` outputs begin the hidden state, the others are the context. */
static void load_context(raft *r, const char *name, int64_t hidden) {
    host_conv h = host_read(r->params, name);
    if (h.w && h.n[0] <= hidden) wrong_widths(r, name);
    if (h.w && h.n[0] > hidden) {
        host_conv first = host_outputs(&h, 0, hidden), others = host_outputs(&h, hidden, h.n[0] - hidden);
        r->hidden = host_put(r->params, &first);
        r->context = host_put(r->params, &others);
    }
    host_free(&h);
}

/* Three convolutions that read hidden state, context, motion features and flow, by what they read. */
static gru cut_gates(ma_params *p, const host_conv gate[3], int64_t hidden, int64_t context) {
    int64_t before = hidden + context, x = gate[0].n[4] - before;
    host_conv of_context = host_zeros(p, gate, 3 * hidden, context, true);
    host_conv of_x = host_zeros(p, gate, 3 * hidden, round_up(x, whole(p)), false);
    host_conv of_h = host_zeros(p, gate, 2 * hidden, hidden, false);
    host_conv of_rh = host_zeros(p, gate, hidden, hidden, false);
    for (int k = 0; k < 3; k++) {
        host_copy(&of_context, k * hidden, 0, &gate[k], hidden, context);
        host_copy(&of_x, k * hidden, 0, &gate[k], before, x);
        host_copy(k < 2 ? &of_h : &of_rh, k % 2 * hidden, 0, &gate[k], 0, hidden);
    }
    return (gru){host_give(p, &of_context), host_give(p, &of_x), host_give(p, &of_h), host_give(p, &of_rh)};
}

static void load_gru(raft *r, gru *g, const char *at, const char *suffix) {
    ma_params *p = r->params;
    host_conv gate[3] = {0};
    int64_t hidden = r->hidden.w ? r->hidden.w->n[0] : 0, context = r->context.w ? r->context.w->n[0] : 0;
    int64_t x = r->motion.w ? r->motion.w->n[0] + 2 : 0;
    for (int k = 0; k < 3; k++) gate[k] = host_read(p, ma_label_of("%s.conv%c%s", at, "zrq"[k], suffix).s);
    bool good = gate[0].w && gate[0].n[0] == hidden && gate[0].n[4] == hidden + context + x;
    for (int k = 1; k < 3; k++) good = good && gate[k].w && !memcmp(gate[k].n, gate[0].n, sizeof gate[k].n);
    if (good)
        *g = cut_gates(p, gate, hidden, context);
    else if (!ma_failed(p->ctx))
        wrong_widths(r, at);
    for (int k = 0; k < 3; k++) host_free(&gate[k]);
}

/* Logits are multiplied by a quarter: the gradients' scale when it was trained. */
static void load_mask(raft *r, const char *first, const char *second) {
    r->mask[0] = load_optional(r->params, first);
    if (!r->mask[0].w) return;
    host_conv h = host_read(r->params, second);
    for (int64_t k = 0; h.w && k < h.n[0] * h.n[2] * h.n[3] * h.n[4]; k++) h.w[k] *= 0.25f;
    for (int64_t k = 0; h.w && k < h.n[0]; k++) h.b[k] *= 0.25f;
    r->mask[1] = host_give(r->params, &h);
}

static void load_update(raft *r) {
    ma_params *p = r->params;
    bool tv = r->torchvision, twice = ma_param_entry(p, "update_block.gru.convz2.weight") ||
                                      ma_param_entry(p, "update_block.recurrent_block.convgru2.convz.weight");
    const char *first = tv ? "update_block.recurrent_block.convgru1" : "update_block.gru";
    const char *second = tv ? "update_block.recurrent_block.convgru2" : "update_block.gru";
    const char *suffix = tv || !twice ? "" : "1";
    int64_t unit = whole(p), n[5];
    r->corr[0] =
        load_padded(p, tv ? "update_block.motion_encoder.convcorr1.0" : "update_block.encoder.convc1", 1, unit);
    r->corr[1] = load_optional(p, tv ? "update_block.motion_encoder.convcorr2.0" : "update_block.encoder.convc2");
    r->flow[0] =
        load_padded(p, tv ? "update_block.motion_encoder.convflow1.0" : "update_block.encoder.convf1", 1, unit);
    r->flow[1] = load_conv(p, tv ? "update_block.motion_encoder.convflow2.0" : "update_block.encoder.convf2");
    r->motion = load_conv(p, tv ? "update_block.motion_encoder.conv.0" : "update_block.encoder.conv");
    r->head[0] = load_conv(p, "update_block.flow_head.conv1");
    r->head[1] = load_padded(p, "update_block.flow_head.conv2", unit, 1);
    if (!ma_failed(p->ctx) && conv_shape(p, ma_label_of("%s.convz%s", first, suffix).s, n))
        load_context(r, tv ? "context_encoder.conv" : "cnet.conv2", n[0]);
    load_gru(r, &r->gru[0], first, suffix);
    if (twice) load_gru(r, &r->gru[1], second, tv ? "" : "2");
    load_mask(r, tv ? "mask_predictor.convrelu.0" : "update_block.mask.0",
              tv ? "mask_predictor.conv" : "update_block.mask.2");
}

/* The look-up's radius, from LEVELS·(2r+1)² channels. */
static int read_radius(raft *r) {
    const ma_entry *e = ma_param_entry(r->params, r->torchvision ? "update_block.motion_encoder.convcorr1.0.weight"
                                                                 : "update_block.encoder.convc1.weight");
    int64_t side = 3;
    while (LEVELS * side * side < e->n[1]) side += 2;
    r->radius = side / 2;
    return LEVELS * side * side == e->n[1] ? 0 : wrong_widths(r, e->name);
}

/* What a file holds that is no RAFT: its first names. */
static void not_raft(ma_ctx *c, const ma_weights *from) {
    ma_buf names = {0};
    int n = ma_weights_count(from);
    for (int k = 0; k < n && k < 4; k++) ma_buf_printf(&names, "%s%s", k ? ", " : "", ma_weights_at(from, k)->name);
    ma_fail(ma_ctx_err(c), MA_UNSUPPORTED,
            "%s: not RAFT: neither fnet.conv2.weight nor feature_encoder.conv.weight among its %d tensors (%.300s%s)",
            ma_weights_path(from), n, names.data ? names.data : "", n > 4 ? ", …" : "");
    ma_buf_free(&names);
}

raft *raft_load(ma_ctx *c, const ma_weights *from) {
    static const char *const none[] = {NULL};
    raft *r = ma_alloc(1, sizeof *r);
    if (!r || !(r->params = ma_params_new(c, from, false, 0))) {
        ma_fail(ma_ctx_err(c), MA_MEMORY, "%s: out of memory", ma_weights_path(from));
        raft_free(r);
        return NULL;
    }
    if (ma_weights_find(from, "module.update_block.flow_head.conv1.weight")) r->params->prefix = "module.";
    r->torchvision = ma_param_entry(r->params, "feature_encoder.conv.weight");
    if (!r->torchvision && !ma_param_entry(r->params, "fnet.conv2.weight")) not_raft(c, from);
    r->small = ma_param_entry(r->params, r->torchvision ? "feature_encoder.layer1.0.convnormrelu3.0.weight"
                                                        : "fnet.layer1.0.conv3.weight");
    r->fnet.instance = true;
    load_encoder(r, &r->fnet, r->torchvision ? "feature_encoder" : "fnet");
    load_encoder(r, &r->cnet, r->torchvision ? "context_encoder" : "cnet");
    r->features = load_conv(r->params, r->torchvision ? "feature_encoder.conv" : "fnet.conv2");
    load_update(r);
    ma_params_end(r->params, none);
    if (!ma_failed(c) && !read_radius(r)) return r;
    raft_free(r);
    return NULL;
}

void raft_free(raft *r) {
    if (!r) return;
    ma_params_free(r->params);
    ma_release(r);
}

const char *raft_flavour(const raft *r) {
    if (r->small) return r->torchvision ? "RAFT-small, torchvision" : "RAFT-small, princeton-vl";
    return r->torchvision ? "RAFT-large, torchvision" : "RAFT-large, princeton-vl";
}

/* ---- the network: x (B,1,H,W,·), h = H/8, w = W/8 ---- */

static ma_tensor *conv(ma_ctx *c, const conv_layer *l, ma_tensor *x, int64_t stride, ma_act act) {
    int64_t ph = l->w->n[2] / 2, pw = l->w->n[3] / 2;
    return ma_conv(c, x, l->w, l->b, MA_WINDOW(1, stride, stride, 0, ph, pw), act);
}

static ma_tensor *conv_norm(ma_ctx *c, const encoder *e, const conv_layer *l, ma_tensor *x, int64_t stride,
                            ma_act act) {
    if (!e->instance) return conv(c, l, x, stride, act);
    return ma_group_norm(c, conv(c, l, x, stride, MA_NONE), NULL, NULL, l->w->n[0], 1e-5, act);
}

static ma_tensor *block(ma_ctx *c, const raft *r, const encoder *e, const residual *b, ma_tensor *x) {
    int64_t stride = b->down.w ? 2 : 1;
    ma_tensor *y;
    if (r->small) {
        y = conv_norm(c, e, &b->conv[0], x, 1, MA_RELU);      // (B,1,H,W,C/4)
        y = conv_norm(c, e, &b->conv[1], y, stride, MA_RELU); // (B,1,H/s,W/s,C/4)
        y = conv_norm(c, e, &b->conv[2], y, 1, MA_RELU);      // (B,1,H/s,W/s,C)
    } else {
        y = conv_norm(c, e, &b->conv[0], x, stride, MA_RELU); // (B,1,H/s,W/s,C)
        y = conv_norm(c, e, &b->conv[1], y, 1, MA_RELU);      // (B,1,H/s,W/s,C)
    }
    if (b->down.w) x = conv_norm(c, e, &b->down, x, stride, MA_NONE);
    return ma_add_act(c, x, y, MA_RELU);
}

/* All of an encoder but its last convolution. */
static ma_tensor *encode(ma_ctx *c, const raft *r, const encoder *e, ma_tensor *x) {
    ma_mark_t m = ma_mark(c);
    x = conv_norm(c, e, &e->stem, x, 2, MA_RELU); // (B,1,H/2,W/2,64 or 32)
    for (int k = 0; k < STAGES * BLOCKS; k++) {
        x = block(c, r, e, &e->block[k], x);
        ma_rewind_keep(c, m, &x, 1);
    }
    return x; // (B,1,h,w,128 or 96)
}

/* All pairs: the dot product of every position of a with every one of b, and with b's means over 2×2, 4×4, 8×8. fp32.
 */
static void pyramid(ma_ctx *c, ma_tensor *fa, ma_tensor *fb, ma_tensor *level[LEVELS]) {
    for (int k = 0; k < LEVELS && fa && fb; k++) {
        int64_t b = fa->n[0], d = fa->n[4], points = fa->n[2] * fa->n[3], h = fb->n[2], w = fb->n[3];
        ma_tensor *rows = ma_view(c, fa, MA_SHAPE(b, points, d)), *columns = ma_view(c, fb, MA_SHAPE(b, h * w, d));
        ma_tensor *all = ma_matmul_f32(c, rows, columns, 1 / sqrt((double)d)); // (B,h·w,hₖ·wₖ)
        level[k] = all ? ma_view(c, all, MA_SHAPE(b * points, 1, h, w, 1)) : NULL;
        if (k < LEVELS - 1) fb = ma_pool(c, fb); // (B,1,hₖ/2,wₖ/2,D)
    }
}

/* x and y of every position. */
static ma_tensor *grid(ma_ctx *c, int64_t b, int64_t h, int64_t w) {
    float *at = ma_alloc((size_t)(b * h * w), 2 * sizeof *at);
    if (!at) {
        ma_fail(ma_ctx_err(c), MA_MEMORY, "raft: out of memory");
        return NULL;
    }
    for (int64_t i = 0; i < b * h * w; i++) {
        at[2 * i] = (float)(i % w);
        at[2 * i + 1] = (float)(i / w % h);
    }
    ma_tensor *t = ma_input_f32(c, at, MA_SHAPE(b, 1, h, w, 2));
    ma_release(at);
    return t;
}

static ma_tensor *gru_step(ma_ctx *c, const gru *g, ma_tensor *h, ma_tensor *x, ma_tensor *of_context) {
    ma_tensor *of_x = conv(c, &g->x, x, 1, MA_NONE); // (B,1,h,w,3C)
    ma_tensor *of_h = conv(c, &g->h, h, 1, MA_NONE); // (B,1,h,w,2C)
    ma_tensor *of_rh = conv(c, &g->rh, ma_gru_reset(c, h, of_h, of_x, of_context), 1, MA_NONE);
    return ma_gru_update(c, h, of_h, of_x, of_context, of_rh);
}

/* One update of the hidden state; look-up and flow in. */
static ma_tensor *update(ma_ctx *c, const raft *r, ma_tensor *h, ma_tensor *const of_context[GRUS], ma_tensor *look,
                         ma_tensor *flow) {
    ma_type type = ma_get_type(c);
    ma_tensor *x = conv(c, &r->corr[0], look, 1, MA_RELU);                                       // (B,1,h,w,256 or 96)
    if (r->corr[1].w) x = conv(c, &r->corr[1], x, 1, MA_RELU);                                   // (B,1,h,w,192)
    ma_tensor *f = conv(c, &r->flow[0], ma_cast(c, flow, type, r->flow[0].w->n[4]), 1, MA_RELU); // (B,1,h,w,128 or 64)
    f = conv(c, &r->flow[1], f, 1, MA_RELU);                                                     // (B,1,h,w,64 or 32)
    x = ma_concat(c, (ma_tensor *[]){x, f}, 2, 4);
    x = conv(c, &r->motion, x, 1, MA_RELU); // (B,1,h,w,126 or 80)
    flow = ma_cast(c, flow, type, r->gru[0].x.w->n[4] - r->motion.w->n[0]);
    x = ma_concat(c, (ma_tensor *[]){x, flow}, 2, 4);
    for (int k = 0; k < GRUS && r->gru[k].h.w; k++) h = gru_step(c, &r->gru[k], h, x, of_context[k]);
    return h;
}

/* What the flow changes by, (B,1,h,w,2). */
static ma_tensor *change(ma_ctx *c, const raft *r, ma_tensor *h) {
    return ma_slice(c, conv(c, &r->head[1], conv(c, &r->head[0], h, 1, MA_RELU), 1, MA_NONE), 4, 0, 2);
}

/* To eight times the size, in pixels of it. */
static ma_tensor *upsample(ma_ctx *c, const raft *r, ma_tensor *flow, ma_tensor *h) {
    if (!flow) return NULL;
    if (!r->mask[0].w) return ma_affine(c, ma_resize(c, flow, 1, 8 * flow->n[2], 8 * flow->n[3], true), 8, 0);
    ma_tensor *mask = conv(c, &r->mask[0], h, 1, MA_RELU);                      // (B,1,h,w,256)
    return ma_upsample_convex(c, flow, conv(c, &r->mask[1], mask, 1, MA_NONE)); // from (B,1,h,w,9·64)
}

/* Frames as images.   x (B,F,H,W,C) → (B·F,1,H,W,C) */
static ma_tensor *images(ma_ctx *c, ma_tensor *x) {
    return x ? ma_view(c, x, MA_SHAPE(x->n[0] * x->n[1], 1, x->n[2], x->n[3], x->n[4])) : NULL;
}

/* Features of every frame, clips one after another; hidden state and context of frames from, …, from+n-1 of each. */
typedef enum { FEATURES, HIDDEN, CONTEXT, ENCODED } encoded;
static void encode_frames(ma_ctx *c, const raft *r, ma_tensor *frames, int64_t n, int64_t from, ma_tensor *t[ENCODED]) {
    static const ma_colours colours = {{2 / 255.0, 2 / 255.0, 2 / 255.0}, {-1, -1, -1}};
    ma_mark_t start = ma_mark(c);
    ma_tensor *x = ma_pixels(c, frames, &colours, r->fnet.stem.w->n[4]);                   // (B,F,H,W,·)
    t[FEATURES] = conv(c, &r->features, encode(c, r, &r->fnet, images(c, x)), 1, MA_NONE); // (B·F,1,h,w,256 or 128)
    ma_tensor *both = encode(c, r, &r->cnet, images(c, ma_slice(c, x, 1, from, n)));
    t[HIDDEN] = conv(c, &r->hidden, both, 1, MA_TANH);   // (B·n,1,h,w,128 or 96)
    t[CONTEXT] = conv(c, &r->context, both, 1, MA_RELU); // (B·n,1,h,w,128 or 64)
    ma_rewind_keep(c, start, t, ENCODED);
}

/* Features of frames from, …, from+n-1 of each of b clips.   t (b·F,1,h,w,D) → (b·n,1,h,w,D) */
static ma_tensor *features_of(ma_ctx *c, ma_tensor *t, int64_t b, int64_t from, int64_t n) {
    if (!t) return NULL;
    return images(c, ma_slice(c, ma_view(c, t, MA_SHAPE(b, t->n[0] / b, t->n[2], t->n[3], t->n[4])), 1, from, n));
}

ma_tensor *raft_between(ma_ctx *c, const raft *r, ma_tensor *frames, int64_t n, int64_t from, int64_t to, int updates) {
    if (!frames) return NULL;
    const int64_t *s = frames->n, last = from > to ? from : to, h8 = s[2] / 8, w8 = s[3] / 8;
    if (frames->nd != 5 || s[4] != 3 || s[2] % 8 || s[3] % 8 || s[2] < LEAST || s[3] < LEAST || n < 1 || from < 0 ||
        to < 0 || last > s[1] - n) {
        ma_fail(ma_ctx_err(c), MA_SHAPE, "raft: frames (B,F,H,W,3) of multiples of 8, at least %d", LEAST);
        return NULL;
    }
    ma_mark_t start = ma_mark(c);
    ma_tensor *t[ENCODED] = {0}, *level[LEVELS] = {0}, *of_context[GRUS] = {0};
    encode_frames(c, r, frames, n, from, t);
    if (ma_failed(c)) return NULL;
    pyramid(c, features_of(c, t[FEATURES], s[0], from, n), features_of(c, t[FEATURES], s[0], to, n), level);
    for (int k = 0; k < GRUS && r->gru[k].h.w; k++) of_context[k] = conv(c, &r->gru[k].context, t[CONTEXT], 1, MA_NONE);
    ma_tensor *coords0 = grid(c, s[0] * n, h8, w8), *minus0 = ma_affine(c, coords0, -1, 0),
              *state[] = {t[HIDDEN], coords0};
    ma_mark_t m = ma_mark(c);
    for (int k = 0; k < updates && !ma_failed(c); k++) {
        ma_tensor *look = ma_corr_lookup(c, state[1], level, LEVELS, r->radius, r->corr[0].w->n[4]);
        ma_tensor *flow = ma_add(c, state[1], minus0);
        state[0] = update(c, r, state[0], of_context, look, flow);
        state[1] = ma_add(c, state[1], change(c, r, state[0]));
        ma_rewind_keep(c, m, state, 2);
    }
    ma_tensor *flow = upsample(c, r, ma_add(c, state[1], minus0), state[0]);
    ma_rewind_keep(c, start, &flow, 1);
    return flow; // (B·n,1,H,W,2)
}

/* ---- input ---- */

static int64_t padded(int64_t n) {
    return n <= LEAST ? LEAST : (n + 7) / 8 * 8;
}

static int64_t clamp(int64_t i, int64_t n) {
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

void raft_padding(int64_t h, int64_t w, int64_t pad[4]) {
    pad[2] = padded(h);
    pad[3] = padded(w);
    pad[0] = (pad[2] - h) / 2;
    pad[1] = (pad[3] - w) / 2;
}

void raft_pad(const uint8_t *rgb, int64_t h, int64_t w, uint8_t *out) {
    int64_t pad[4];
    raft_padding(h, w, pad);
    int64_t left = pad[1], right = pad[3] - left - w;
    for (int64_t y = 0; y < pad[2]; y++, out += pad[3] * 3) {
        const uint8_t *row = rgb + clamp(y - pad[0], h) * w * 3;
        memcpy(out + left * 3, row, (size_t)w * 3);
        for (int64_t x = 0; x < left; x++) memcpy(out + x * 3, row, 3);
        for (int64_t x = 0; x < right; x++) memcpy(out + (left + w + x) * 3, row + (w - 1) * 3, 3);
    }
}
