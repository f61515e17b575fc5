/* raft: optical flow by recurrent all-pairs field transforms (Teed & Deng, ECCV 2020), forward only.
 *
 * Every width is read off the weights. What the flavours differ in is told by what the file holds: bottleneck blocks
 * (small) or plain ones (large), one GRU (3×3) or two (1×5, then 5×1), a mask head or none.
 * Limits: activations are fp32 (correlation and coordinates lose pixels in 16 bits); no gradient.
 * Source: princeton-vl/RAFT core/{raft,extractor,update,corr}.py; torchvision models/optical_flow/raft.py for its
 * names.
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
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { LEVELS = 4, STAGES = 3, BLOCKS = 2, LEAST = 128 };

typedef struct conv_layer {
    ma_tensor *w, *b; // (O,1,kh,kw,C), (O)
} conv_layer;

typedef struct residual {
    conv_layer conv[3], down; // two 3×3, or 1×1, 3×3, 1×1; down.w NULL: the image keeps its size
} residual;

typedef struct encoder {
    bool instance; // instance norm after every convolution but the last
    conv_layer stem, out;
    residual block[STAGES * BLOCKS];
} encoder;

typedef struct gru {
    conv_layer z, r, q;
} gru;

struct raft {
    ma_params *params;
    bool small, torchvision;
    encoder fnet, cnet;
    conv_layer corr[2], flow[2], motion; // motion encoder; corr[1].w NULL in the small net
    gru gru[2];                          // gru[1].z.w NULL in the small net
    conv_layer head[2], mask[2];         // mask[0].w NULL in the small net
    int64_t hidden, radius;
};

/* ---- loading ---- */

/* The shape of a convolution in our layout, (O,1,kh,kw,C). */
static bool conv_shape(ma_params *p, const char *name, int64_t n[5]) {
    const ma_entry *e = ma_param_entry(p, "%s.weight", name);
    if (!e || e->nd != 4) {
        ma_fail(ma_ctx_err(p->ctx), e ? MA_SHAPE : MA_MISSING, "%s: %s.weight: %s", ma_weights_path(p->from), name,
                e ? "not a convolution of images" : "not there");
        return false;
    }
    memcpy(n, (int64_t[]){e->n[0], 1, e->n[2], e->n[3], e->n[1]}, 5 * sizeof *n);
    return true;
}

static conv_layer load_conv(ma_params *p, const char *name) {
    int64_t n[5];
    if (!conv_shape(p, name, n)) return (conv_layer){0};
    ma_tensor *w = ma_param(p, MA_CONV2D, MA_INIT_FAN, 5, n, "%s.weight", name);
    return (conv_layer){w, ma_param(p, MA_PLAIN, MA_INIT_FAN, 1, n, "%s.bias", name)};
}

static conv_layer load_optional(ma_params *p, const char *name) {
    return ma_param_entry(p, "%s.weight", name) ? load_conv(p, name) : (conv_layer){0};
}

/* The convolution `name` and the batch norm `norm` behind it as one: g·(w·x + b - mean)/√(var + 1e-5) + beta. */
static conv_layer load_folded(ma_params *p, const char *name, const char *norm) {
    enum { W, B, G, BETA, MEAN, VAR, ALL };
    static const char *const part[ALL] = {"weight", "bias", "weight", "bias", "running_mean", "running_var"};
    conv_layer folded = {0};
    int64_t n[5];
    if (!conv_shape(p, name, n)) return folded;
    int64_t fan = n[2] * n[3] * n[4];
    float *file[ALL];
    bool all = true;
    for (int k = W; k < ALL; k++) {
        int64_t count = k == W ? n[0] * fan : n[0];
        file[k] = ma_param_host(p, count, "%s.%s", k <= B ? name : norm, part[k]);
        all = all && file[k];
    }
    ma_param_has(p, "%s.num_batches_tracked", norm);
    float *w = all ? ma_alloc((size_t)(n[0] * fan), sizeof *w) : NULL;
    if (all && !w) ma_fail(ma_ctx_err(p->ctx), MA_MEMORY, "%s: out of memory", name);
    if (w) {
        for (int64_t o = 0; o < n[0]; o++) {
            float scale = file[G][o] / sqrtf(file[VAR][o] + 1e-5f);
            for (int64_t i = 0; i < fan; i++) file[W][o * fan + i] *= scale;
            file[B][o] = (file[B][o] - file[MEAN][o]) * scale + file[BETA][o];
        }
        ma_layout_from_file(w, file[W], MA_CONV2D, 5, n);
        folded = (conv_layer){ma_param_values(p, w, 5, n), ma_param_values(p, file[B], 1, n)};
    }
    for (int k = W; k < ALL; k++) ma_release(file[k]);
    ma_release(w);
    return folded;
}

/* A convolution of an encoder with what normalises behind it. twin: another name under which the file repeats the norm.
 */
static conv_layer load_normed(ma_params *p, const char *name, const char *norm, const char *twin) {
    static const char *const part[] = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"};
    for (size_t k = 0; twin && k < sizeof part / sizeof *part; k++) ma_param_has(p, "%s.%s", twin, part[k]);
    return ma_param_entry(p, "%s.running_var", norm) ? load_folded(p, name, norm) : load_conv(p, name);
}

/* A name put together; lives until the end of the full expression. */
typedef struct label {
    char s[96];
} label;

__attribute__((format(printf, 1, 2))) static label named(const char *fmt, ...) {
    label l;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(l.s, sizeof l.s, fmt, ap);
    va_end(ap);
    return l;
}

static void load_block(raft *r, residual *b, const char *at) {
    const char *name = r->torchvision ? "convnormrelu" : "conv", *zero = r->torchvision ? ".0" : "";
    const char *norm = r->torchvision ? "convnormrelu" : "norm", *one = r->torchvision ? ".1" : "";
    int convs = r->small ? 3 : 2;
    for (int k = 0; k < convs; k++)
        b->conv[k] = load_normed(r->params, named("%s.%s%d%s", at, name, k + 1, zero).s,
                                 named("%s.%s%d%s", at, norm, k + 1, one).s, NULL);
    if (ma_param_entry(r->params, "%s.downsample.0.weight", at))
        b->down = load_normed(r->params, named("%s.downsample.0", at).s, named("%s.downsample.1", at).s,
                              named("%s.norm%d", at, convs + 1).s);
}

static void load_encoder(raft *r, encoder *e, const char *root) {
    bool tv = r->torchvision;
    e->stem = load_normed(r->params, named("%s.%s", root, tv ? "convnormrelu.0" : "conv1").s,
                          named("%s.%s", root, tv ? "convnormrelu.1" : "norm1").s, NULL);
    for (int k = 0; k < STAGES * BLOCKS; k++)
        load_block(r, &e->block[k], named("%s.layer%d.%d", root, k / BLOCKS + 1, k % BLOCKS).s);
    e->out = load_conv(r->params, named("%s.%s", root, tv ? "conv" : "conv2").s);
}

static gru load_gru(ma_params *p, const char *at, const char *suffix) {
    return (gru){load_conv(p, named("%s.convz%s", at, suffix).s), load_conv(p, named("%s.convr%s", at, suffix).s),
                 load_conv(p, named("%s.convq%s", at, suffix).s)};
}

static void load_update(raft *r) {
    ma_params *p = r->params;
    bool tv = r->torchvision, twice = ma_param_entry(p, "update_block.gru.convz2.weight") ||
                                      ma_param_entry(p, "update_block.recurrent_block.convgru2.convz.weight");
    r->corr[0] = load_conv(p, tv ? "update_block.motion_encoder.convcorr1.0" : "update_block.encoder.convc1");
    r->corr[1] = load_optional(p, tv ? "update_block.motion_encoder.convcorr2.0" : "update_block.encoder.convc2");
    r->flow[0] = load_conv(p, tv ? "update_block.motion_encoder.convflow1.0" : "update_block.encoder.convf1");
    r->flow[1] = load_conv(p, tv ? "update_block.motion_encoder.convflow2.0" : "update_block.encoder.convf2");
    r->motion = load_conv(p, tv ? "update_block.motion_encoder.conv.0" : "update_block.encoder.conv");
    if (tv) {
        r->gru[0] = load_gru(p, "update_block.recurrent_block.convgru1", "");
        if (twice) r->gru[1] = load_gru(p, "update_block.recurrent_block.convgru2", "");
    } else {
        r->gru[0] = load_gru(p, "update_block.gru", twice ? "1" : "");
        if (twice) r->gru[1] = load_gru(p, "update_block.gru", "2");
    }
    r->head[0] = load_conv(p, "update_block.flow_head.conv1");
    r->head[1] = load_conv(p, "update_block.flow_head.conv2");
    r->mask[0] = load_optional(p, tv ? "mask_predictor.convrelu.0" : "update_block.mask.0");
    if (r->mask[0].w) r->mask[1] = load_conv(p, tv ? "mask_predictor.conv" : "update_block.mask.2");
}

/* What the widths say: the look-up's radius, from LEVELS·(2r+1)² channels, and the hidden state's share of cnet. */
static int read_sizes(raft *r) {
    int64_t channels = r->corr[0].w->n[4], side = 1;
    while (LEVELS * side * side < channels) side += 2;
    r->radius = side / 2;
    r->hidden = r->gru[0].z.w->n[0];
    if (LEVELS * side * side == channels && r->cnet.out.w->n[0] > r->hidden) return 0;
    return ma_fail(ma_ctx_err(r->params->ctx), MA_SHAPE,
                   "%s: not RAFT's widths: %lld correlation channels, %lld of context",
                   ma_weights_path(r->params->from), (long long)channels, (long long)r->cnet.out.w->n[0]);
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
    if (!r->torchvision && !ma_param_entry(r->params, "fnet.conv2.weight"))
        ma_fail(ma_ctx_err(c), MA_UNSUPPORTED,
                "%s: not RAFT: neither fnet.conv2.weight nor feature_encoder.conv.weight", ma_weights_path(from));
    r->small = ma_param_entry(r->params, r->torchvision ? "feature_encoder.layer1.0.convnormrelu3.0.weight"
                                                        : "fnet.layer1.0.conv3.weight");
    r->fnet.instance = true;
    load_encoder(r, &r->fnet, r->torchvision ? "feature_encoder" : "fnet");
    load_encoder(r, &r->cnet, r->torchvision ? "context_encoder" : "cnet");
    load_update(r);
    ma_params_end(r->params, none);
    if (!ma_failed(c) && !read_sizes(r)) return r;
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
    return ma_act_(c, ma_add(c, x, y), MA_RELU);
}

static ma_tensor *encode(ma_ctx *c, const raft *r, const encoder *e, ma_tensor *x) {
    ma_mark_t m = ma_mark(c);
    x = conv_norm(c, e, &e->stem, x, 2, MA_RELU); // (B,1,H/2,W/2,64 or 32)
    for (int k = 0; k < STAGES * BLOCKS; k++) {
        x = block(c, r, e, &e->block[k], x);
        ma_rewind_keep(c, m, &x, 1);
    }
    x = conv(c, &e->out, x, 1, MA_NONE); // (B,1,h,w,D)
    ma_rewind_keep(c, m, &x, 1);
    return x;
}

/* All pairs: the dot product of every position of a with every one of b, and its means over 2×2, 4×4, 8×8 of b's. */
static void pyramid(ma_ctx *c, ma_tensor *fa, ma_tensor *fb, ma_tensor *level[LEVELS]) {
    if (!fa || !fb) return;
    int64_t b = fa->n[0], h = fa->n[2], w = fa->n[3], d = fa->n[4];
    fa = ma_view(c, fa, MA_SHAPE(b, h * w, d));
    fb = ma_view(c, fb, MA_SHAPE(b, h * w, d));
    ma_tensor *all = ma_matmul(c, fa, fb, 1 / sqrt((double)d)); // (B,h·w,h·w)
    level[0] = ma_view(c, all, MA_SHAPE(b * h * w, 1, h, w, 1));
    for (int k = 1; k < LEVELS; k++) level[k] = ma_pool(c, level[k - 1]);
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

static ma_tensor *gru_step(ma_ctx *c, const gru *g, ma_tensor *h, ma_tensor *x) {
    ma_tensor *hx = ma_concat(c, (ma_tensor *[]){h, x}, 2, 4);
    ma_tensor *z = conv(c, &g->z, hx, 1, MA_SIGMOID);
    ma_tensor *reset = conv(c, &g->r, hx, 1, MA_SIGMOID);
    ma_tensor *rhx = ma_concat(c, (ma_tensor *[]){ma_mul_(c, reset, h), x}, 2, 4);
    ma_tensor *q = conv(c, &g->q, rhx, 1, MA_TANH);
    return ma_lerp(c, h, q, z); // (1-z)·h + z·q
}

/* One update of the hidden state; context, look-up and flow in. */
static ma_tensor *update(ma_ctx *c, const raft *r, ma_tensor *h, ma_tensor *context, ma_tensor *look, ma_tensor *flow) {
    ma_tensor *x = conv(c, &r->corr[0], look, 1, MA_RELU);     // (B,1,h,w,256 or 96)
    if (r->corr[1].w) x = conv(c, &r->corr[1], x, 1, MA_RELU); // (B,1,h,w,192)
    ma_tensor *f = conv(c, &r->flow[0], flow, 1, MA_RELU);     // (B,1,h,w,128 or 64)
    f = conv(c, &r->flow[1], f, 1, MA_RELU);                   // (B,1,h,w,64 or 32)
    x = ma_concat(c, (ma_tensor *[]){x, f}, 2, 4);
    x = conv(c, &r->motion, x, 1, MA_RELU); // (B,1,h,w,126 or 80)
    x = ma_concat(c, (ma_tensor *[]){context, x, flow}, 3, 4);
    h = gru_step(c, &r->gru[0], h, x);
    return r->gru[1].z.w ? gru_step(c, &r->gru[1], h, x) : h;
}

/* To eight times the size, in pixels of it. */
static ma_tensor *upsample(ma_ctx *c, const raft *r, ma_tensor *flow, ma_tensor *h) {
    if (!flow) return NULL;
    if (!r->mask[0].w) return ma_affine(c, ma_resize(c, flow, 1, 8 * flow->n[2], 8 * flow->n[3], true), 8, 0);
    ma_tensor *mask = conv(c, &r->mask[0], h, 1, MA_RELU);                // (B,1,h,w,256)
    mask = ma_affine(c, conv(c, &r->mask[1], mask, 1, MA_NONE), 0.25, 0); // (B,1,h,w,9·64)
    return ma_upsample_convex(c, flow, mask);
}

static bool fits(ma_ctx *c, const ma_tensor *a, const ma_tensor *b) {
    if (!a || !b) return false;
    bool good = a->nd == 5 && b->nd == 5 && a->n[1] == 1 && a->n[4] == 3 && a->n[2] % 8 == 0 && a->n[3] % 8 == 0 &&
                a->n[2] >= LEAST && a->n[3] >= LEAST && !memcmp(a->n, b->n, sizeof a->n);
    if (!good) ma_fail(ma_ctx_err(c), MA_SHAPE, "raft: two frames (B,1,H,W,3) of multiples of 8, at least %d", LEAST);
    return good;
}

ma_tensor *raft_forward(ma_ctx *c, const raft *r, ma_tensor *a, ma_tensor *b, int updates) {
    if (!fits(c, a, b)) return NULL;
    int64_t n = a->n[0], h8 = a->n[2] / 8, w8 = a->n[3] / 8;
    ma_mark_t start = ma_mark(c);
    a = ma_affine(c, a, 2.0 / 255, -1);
    b = ma_affine(c, b, 2.0 / 255, -1);
    ma_tensor *fa = encode(c, r, &r->fnet, a); // (B,1,h,w,256 or 128)
    ma_tensor *fb = encode(c, r, &r->fnet, b);
    ma_tensor *both = encode(c, r, &r->cnet, a); // (B,1,h,w,128+128 or 96+64)
    ma_tensor *level[LEVELS] = {0};
    pyramid(c, fa, fb, level);
    ma_tensor *coords0 = grid(c, n, h8, w8), *minus0 = ma_affine(c, coords0, -1, 0);
    if (ma_failed(c)) return NULL;
    ma_tensor *context = ma_act_(c, ma_slice(c, both, 4, r->hidden, both->n[4] - r->hidden), MA_RELU);
    ma_tensor *h = ma_act_(c, ma_slice(c, both, 4, 0, r->hidden), MA_TANH);

    ma_tensor *state[] = {h, coords0};
    ma_mark_t m = ma_mark(c);
    for (int k = 0; k < updates; k++) {
        ma_tensor *look = ma_corr_lookup(c, state[1], level, LEVELS, r->radius); // (B,1,h,w,4·(2r+1)²)
        ma_tensor *flow = ma_add(c, state[1], minus0);
        state[0] = update(c, r, state[0], context, look, flow);
        ma_tensor *delta = conv(c, &r->head[0], state[0], 1, MA_RELU);
        state[1] = ma_add(c, state[1], conv(c, &r->head[1], delta, 1, MA_NONE));
        ma_rewind_keep(c, m, state, 2);
    }
    ma_tensor *flow = upsample(c, r, ma_add(c, state[1], minus0), state[0]);
    ma_rewind_keep(c, start, &flow, 1);
    return flow; // (B,1,H,W,2)
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

float *raft_pad(const uint8_t *rgb, int64_t n, int64_t h, int64_t w, int64_t pad[4]) {
    raft_padding(h, w, pad);
    int64_t top = pad[0], left = pad[1], ph = pad[2], pw = pad[3];
    float *out = ma_alloc((size_t)(n * ph * pw), 3 * sizeof *out);
    if (!out) return NULL;
    for (int64_t row = 0; row < n * ph; row++) {
        const uint8_t *from = rgb + (row / ph * h + clamp(row % ph - top, h)) * w * 3;
        float *to = out + row * pw * 3;
        for (int64_t x = 0; x < pw; x++)
            for (int k = 0; k < 3; k++) to[3 * x + k] = from[3 * clamp(x - left, w) + k];
    }
    return out;
}
