/* vae: CogVideoX's autoencoder, in time a few frames and in space a tile at a time.
 *
 * What it is made of is one step over and over: norm, silu, a 3×3×3 convolution that is causal in time. The norm writes
 * behind the two frames that the convolution needs of the past, and keeps its own last two for the next piece
 * (ma_causal_norm), so that nothing is copied to pad. A residual is added in place, and the next norm's moments are
 * gathered by the way; what a step needs lies above it on the stack and is dropped behind it. In the decoder the norm
 * is scaled and shifted by 1×1×1 convolutions of the latents enlarged to x's size: these are done on the latents as
 * they are, for all norms of a block at once, and the norm looks up what is nearest. Nearest ×2 and a 3×3 convolution
 * are one transposed convolution of 4×4 and stride 2, whose taps are sums of the 3×3's: 4 products a pixel instead of
 * 9, and no enlarged tensor. Frames are repeated behind it, not before. Three channels of pixels are few for a matrix
 * product: the last convolution makes those of FOLD neighbours at once.
 *
 * Traps: of an odd number of frames the first stands alone, in the norm's look-up, when frames are averaged by pairs
 * and when they are repeated; a single frame is never doubled. Downsampling pads behind only. eps is the config's in
 * the encoder's resnets, 1e-6 elsewhere. Tiles are blended in the order of reading, with neighbours already blended.
 * Limits: one stream of a context at a time. */
#include "vae.h"

#include "../config.h"

#include <stdio.h>
#include <string.h>

enum { ENCODE_FRAMES = 8, DECODE_FRAMES = 2, FOLD = 8, LEAD = 2 /* frames of the past: the kernel's 3, less one */ };

/* A tile overlaps its neighbours by these shares of its height and width. */
static const double overlap[2] = {1.0 / 6, 1.0 / 5};

/* ---- configuration ---- */

void vae_2b(vae_config *c) {
    *c = (vae_config){.blocks = 4,
                      .channels = {128, 256, 256, 512},
                      .latent_channels = 16,
                      .layers_per_block = 3,
                      .groups = 32,
                      .temporal_compression = 4,
                      .sample_height = 480,
                      .sample_width = 720,
                      .norm_eps = 1e-6,
                      .scaling_factor = 1.15258426};
}

/* What diffusers' class can be told but this network does not do: a key that is there has this value, as JSON; of a
 * list, every element. */
static const struct {
    const char *key, *value;
} fixed[] = {{"in_channels", "3"},
             {"out_channels", "3"},
             {"act_fn", "\"silu\""},
             {"down_block_types", "\"CogVideoXDownBlock3D\""},
             {"up_block_types", "\"CogVideoXUpBlock3D\""},
             {"shift_factor", "null"},
             {"latents_mean", "null"},
             {"latents_std", "null"},
             {"use_quant_conv", "false"},
             {"use_post_quant_conv", "false"}};

static bool reads(const cJSON *v, const char *text) {
    char *printed = cJSON_PrintUnformatted(v);
    bool same = printed && !strcmp(printed, text);
    cJSON_free(printed);
    return same;
}

static int check_fixed(const cJSON *json, const char *path, ma_err *e) {
    for (size_t k = 0; k < sizeof fixed / sizeof *fixed; k++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(json, fixed[k].key), *one = cJSON_IsArray(v) ? v->child : v;
        for (; one; one = v == one ? NULL : one->next)
            if (!reads(one, fixed[k].value))
                return ma_fail(e, MA_UNSUPPORTED, "%s: %s: only %s is supported", path, fixed[k].key, fixed[k].value);
    }
    return 0;
}

static int read_channels(const cJSON *json, const char *path, vae_config *c, ma_err *e) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, "block_out_channels");
    if (!list) return 0;
    c->blocks = cJSON_GetArraySize(list);
    if (!cJSON_IsArray(list) || c->blocks < 1 || c->blocks > VAE_BLOCKS)
        return ma_fail(e, MA_UNSUPPORTED, "%s: block_out_channels: must be a list of 1 to %d numbers", path,
                       VAE_BLOCKS);
    for (int k = 0; k < c->blocks; k++) {
        double n = cJSON_GetNumberValue(cJSON_GetArrayItem(list, k));
        if (!(n >= 1 && n <= 65536) || n != (int)n || (int)n % c->groups)
            return ma_fail(e, MA_UNSUPPORTED, "%s: block_out_channels: must be multiples of norm_num_groups, %d", path,
                           c->groups);
        c->channels[k] = (int)n;
    }
    return 0;
}

int vae_config_read(const char *path, vae_config *c, ma_err *e) {
    vae_2b(c); /* diffusers' defaults */
    const ma_setting settings[] = {
        {"latent_channels", MA_SET_INT, &c->latent_channels, 1, 1024},
        {"layers_per_block", MA_SET_INT, &c->layers_per_block, 1, VAE_LAYERS},
        {"norm_num_groups", MA_SET_INT, &c->groups, 1, 65536},
        {"temporal_compression_ratio", MA_SET_INT, &c->temporal_compression, 1, 64},
        {"sample_height", MA_SET_INT, &c->sample_height, 1, 65536},
        {"sample_width", MA_SET_INT, &c->sample_width, 1, 65536},
        {"norm_eps", MA_SET_REAL, &c->norm_eps, 0, 1},
        {"scaling_factor", MA_SET_REAL, &c->scaling_factor, 1e-6, 1e6},
        {"invert_scale_latents", MA_SET_BOOL, &c->invert_scale_latents, 0, 0},
    };
    cJSON *json = ma_config_open(path, e);
    if (!json) return -1;
    int rc = check_fixed(json, path, e);
    if (!rc) rc = ma_config_read(json, settings, sizeof settings / sizeof *settings, path, e);
    if (!rc) rc = read_channels(json, path, c, e);
    if (!rc && (c->temporal_compression & (c->temporal_compression - 1)))
        rc = ma_fail(e, MA_UNSUPPORTED, "%s: temporal_compression_ratio: %d is not a power of two", path,
                     c->temporal_compression);
    cJSON_Delete(json);
    return rc;
}

int64_t vae_scale(const vae_config *c) {
    return (int64_t)1 << (c->blocks - 1);
}

vae_tiles vae_default_tiles(const vae_config *c) {
    return (vae_tiles){c->sample_height / 2, c->sample_width / 2};
}

/* How often time is halved: at the first samplers, of which there is one less than blocks. */
static int time_levels(const vae_config *c) {
    int n = 0;
    while (n < c->blocks - 1 && (int64_t)2 << n <= c->temporal_compression) n++;
    return n;
}

/* Frames that come of n in one piece. */
static int64_t frames_of(const vae_config *c, vae_part which, int64_t n) {
    for (int k = 0; k < time_levels(c); k++)
        if (which == VAE_ENCODER)
            n = (n + 1) / 2;
        else if (n > 1)
            n = 2 * n - n % 2;
    return n;
}

/* Frames of the next piece, when `at` of n are done. */
static int64_t piece_of(vae_part which, int64_t n, int64_t at) {
    int64_t size = which == VAE_ENCODER ? ENCODE_FRAMES : DECODE_FRAMES;
    if (at >= n) return 0;
    return at ? size : n < size ? n : size + n % size;
}

static int64_t all_frames_of(const vae_config *c, vae_part which, int64_t n) {
    int64_t sum = 0;
    for (int64_t at = 0, piece; (piece = piece_of(which, n, at)) > 0; at += piece) sum += frames_of(c, which, piece);
    return sum;
}

int64_t vae_latent_frames(const vae_config *c, int64_t frames) {
    return all_frames_of(c, VAE_ENCODER, frames);
}

int64_t vae_frames(const vae_config *c, int64_t latent_frames) {
    return all_frames_of(c, VAE_DECODER, latent_frames);
}

/* ---- weights ---- */

typedef struct conv_layer {
    ma_tensor *w, *b; /* w NULL: there is none */
} conv_layer;

/* Norm, silu, causal convolution; or the convolution alone. */
typedef struct step {
    ma_tensor *g, *b; /* NULL: no norm */
    int64_t from;     /* in the decoder: where its scale, then its shift, stand in the block's maps */
    double eps;
    conv_layer conv;   /* (O,3,3,3,C), or (fold·O,3,3,2+fold,C) */
    int64_t fold;      /* neighbours in a line that it makes at once */
    int number, level; /* of its part; how often height and width are halved where it works */
} step;

typedef struct resnet {
    step first, second;
    conv_layer shortcut; /* where the number of channels changes */
} resnet;

typedef struct block {
    resnet *at;
    conv_layer maps;    /* of the latents, in the decoder: what scales and shifts its norms (the last one's: and out) */
    conv_layer sampler; /* to half or twice the height and width; the last block has none */
    bool time;          /* and to half or twice the frames */
} block;

/* The encoder or the decoder; its blocks in the order of the work. */
typedef struct half {
    step in, out;
    resnet mid[2], *resnets;
    conv_layer maps; /* of mid's norms, as a block's */
    block block[VAE_BLOCKS];
    int layers;         /* resnets a block */
    const step **steps; /* by number */
    int nsteps;
} half;

struct vae {
    vae_config c;
    half *encoder, *decoder; /* NULL: not there */
};

/* A part that is being loaded. */
typedef struct loader {
    ma_params *p;
    const vae_config *c;
    half *to;
    bool decoder;
    conv_layer map[2 * (2 * (VAE_LAYERS + 1) + 1)]; /* of this block so far: two a norm, two norms a resnet, out */
    int maps;
    int64_t channels; /* of these */
} loader;

static conv_layer load_conv(ma_params *p, ma_layout layout, int64_t o, const int64_t k[3], int64_t c, const char *at) {
    conv_layer l;
    l.w = ma_param(p, layout, MA_INIT_FAN, MA_SHAPE(o, k[0], k[1], k[2], c), "%s.weight", at);
    l.b = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(o), "%s.bias", at);
    return l;
}

/* A parameter's values on the host, to make another of it (ma_release). NULL: the context has failed. */
static float *values_of(ma_params *p, const ma_tensor *t, int64_t room, float **made) {
    float *v = t ? ma_alloc((size_t)ma_count(t), sizeof *v) : NULL;
    *made = v ? ma_alloc((size_t)room, sizeof **made) : NULL;
    if (*made && !ma_get(p->ctx, t, v)) return v;
    if (t && !*made) ma_fail(ma_ctx_err(p->ctx), MA_MEMORY, "vae: out of memory");
    ma_release(*made);
    ma_release(v);
    return NULL;
}

/* The 4×4 transposed convolution that is nearest ×2 and then w (O,1,3,3,C): (C,1,4,4,O). Along one axis output 2i is
 * w0·x[i-1] + (w1+w2)·x[i], and 2i+1 is (w0+w1)·x[i] + w2·x[i+1]; tap k of a transposed one takes x[i] to 2i-1+k. */
static ma_tensor *enlarging(ma_params *p, ma_tensor *w) {
    static const int sum[4][2] = {{2, 2}, {1, 2}, {0, 1}, {0, 0}}; /* tap k: w's from … to … */
    if (!w) return NULL;
    int64_t o = w->n[0], c = w->n[4];
    float *to, *from = values_of(p, w, c * 16 * o, &to);
    if (!from) return NULL;
    for (int64_t i = 0; i < c * 16 * o; i++) {
        const int *h = sum[i / o / 4 % 4], *v = sum[i / o % 4];
        const float *tap = from + i % o * 9 * c + i / o / 16;
        float value = 0;
        for (int a = h[0]; a <= h[1]; a++)
            for (int b = v[0]; b <= v[1]; b++) value += tap[(3 * a + b) * c];
        to[i] = value;
    }
    ma_tensor *made = ma_param_values(p, to, MA_SHAPE(c, 1, 4, 4, o));
    ma_release(from);
    ma_release(to);
    return made;
}

/* A convolution (O,3,3,3,C) and its bias, as one that makes `fold` neighbours in a line at once, at a stride of as
 * many: (fold·O,3,3,2+fold,C), whose taps are the first's, moved to each neighbour. */
static conv_layer folded(ma_params *p, conv_layer l, int64_t fold) {
    if (!l.w || !l.b || fold == 1) return l;
    int64_t o = l.w->n[0], c = l.w->n[4], wide = 2 + fold;
    float *w, *b, *from = values_of(p, l.w, fold * o * 9 * wide * c, &w);
    if (!from) return l;
    for (int64_t r = 0; r < fold * o * 9; r++)
        memcpy(w + (r * wide + r / 9 / o) * c, from + r % (o * 9) * 3 * c, (size_t)(3 * c) * sizeof *w);
    l.w = ma_param_values(p, w, MA_SHAPE(fold * o, 3, 3, wide, c));
    ma_release(from);
    ma_release(w);
    from = values_of(p, l.b, fold * o, &b);
    if (!from) return l;
    for (int64_t r = 0; r < fold * o; r++) b[r] = from[r % o];
    l.b = ma_param_values(p, b, MA_SHAPE(fold * o));
    ma_release(from);
    ma_release(b);
    return l;
}

static const int64_t one[3] = {1, 1, 1}, flat[3] = {1, 3, 3}, cube[3] = {LEAD + 1, 3, 3};

/* The maps of one norm: its scale, then its shift, behind those of the block's other norms. Where they stand. */
static int64_t load_maps(loader *l, const char *norm, int64_t channels) {
    static const char *const names[2] = {"conv_y", "conv_b"};
    int64_t from = l->channels;
    for (int k = 0; k < 2; k++)
        l->map[l->maps++] = load_conv(l->p, MA_CONV3D, channels, one, l->c->latent_channels,
                                      ma_label_of("%s.%s.conv", norm, names[k]).s);
    l->channels += 2 * channels;
    return from;
}

/* All maps since the last time, as one convolution of the latents. */
static conv_layer join_maps(loader *l) {
    const int64_t c = l->c->latent_channels, all = l->channels;
    ma_ctx *ctx = l->p->ctx;
    conv_layer joined = {0};
    float *w = all ? ma_alloc((size_t)(all * c), sizeof *w) : NULL, *b = w ? ma_alloc((size_t)all, sizeof *b) : NULL;
    if (all && !b) ma_fail(ma_ctx_err(ctx), MA_MEMORY, "vae: out of memory");
    for (int64_t k = 0, at = 0; k < l->maps && !ma_failed(ctx); at += l->map[k++].b->n[0])
        if (ma_get(ctx, l->map[k].w, w + at * c) || ma_get(ctx, l->map[k].b, b + at)) break;
    if (all && !ma_failed(ctx))
        joined =
            (conv_layer){ma_param_values(l->p, w, MA_SHAPE(all, 1, 1, 1, c)), ma_param_values(l->p, b, MA_SHAPE(all))};
    ma_release(w);
    ma_release(b);
    l->maps = 0;
    l->channels = 0;
    return joined;
}

/* norm: NULL where there is none. */
static void load_step(loader *l, step *s, const char *norm, const char *conv, int64_t in, int64_t out, int level) {
    s->level = level;
    s->fold = 1;
    s->number = l->to->nsteps++;
    l->to->steps[s->number] = s;
    s->eps = l->decoder ? 1e-6 : l->c->norm_eps;
    if (norm) {
        const char *bare = l->decoder ? ".norm_layer" : "";
        s->g = ma_param(l->p, MA_PLAIN, MA_INIT_ONE, MA_SHAPE(in), "%s%s.weight", norm, bare);
        s->b = ma_param(l->p, MA_PLAIN, MA_INIT_ZERO, MA_SHAPE(in), "%s%s.bias", norm, bare);
    }
    if (norm && l->decoder) s->from = load_maps(l, norm, in);
    s->conv = load_conv(l->p, MA_CONV3D, out, cube, in, conv);
}

static void load_resnet(loader *l, resnet *r, const char *at, int64_t in, int64_t out, int level) {
    load_step(l, &r->first, ma_label_of("%s.norm1", at).s, ma_label_of("%s.conv1.conv", at).s, in, out, level);
    load_step(l, &r->second, ma_label_of("%s.norm2", at).s, ma_label_of("%s.conv2.conv", at).s, out, out, level);
    if (in != out) r->shortcut = load_conv(l->p, MA_CONV3D, out, one, in, ma_label_of("%s.conv_shortcut", at).s);
}

/* Block number k from the part's side of the pixels or of the latents. */
static void load_block(loader *l, int k, int64_t in, int64_t out) {
    const vae_config *c = l->c;
    const char *root = l->decoder ? "decoder.up_blocks" : "encoder.down_blocks";
    block *b = &l->to->block[k];
    b->at = l->to->resnets + k * l->to->layers;
    for (int j = 0; j < l->to->layers; j++)
        load_resnet(l, &b->at[j], ma_label_of("%s.%d.resnets.%d", root, k, j).s, j ? out : in, out,
                    l->decoder ? c->blocks - 1 - k : k);
    if (k == c->blocks - 1) return;
    b->time = k < time_levels(c);
    const char *kind = l->decoder ? "upsamplers" : "downsamplers";
    b->sampler = load_conv(l->p, MA_CONV2D, out, flat, out, ma_label_of("%s.%d.%s.0.conv", root, k, kind).s);
    if (l->decoder) b->sampler.w = enlarging(l->p, b->sampler.w);
}

static void load_part(loader *l) {
    const vae_config *c = l->c;
    const char *root = l->decoder ? "decoder" : "encoder";
    const int last = c->blocks - 1, pixels = 0;
    int64_t wide = c->channels[last], narrow = c->channels[0];
    if (l->decoder)
        load_step(l, &l->to->in, NULL, "decoder.conv_in.conv", c->latent_channels, wide, last);
    else
        load_step(l, &l->to->in, NULL, "encoder.conv_in.conv", 3, narrow, pixels);
    for (int k = 0; k < 2; k++)
        load_resnet(l, &l->to->mid[k], ma_label_of("%s.mid_block.resnets.%d", root, k).s, wide, wide, last);
    l->to->maps = join_maps(l);
    for (int k = 0; k < c->blocks; k++) {
        int at = l->decoder ? last - k : k, before = l->decoder ? at + 1 : at - 1;
        load_block(l, k, k ? c->channels[before] : c->channels[at], c->channels[at]);
        if (k < last) l->to->block[k].maps = join_maps(l);
    }
    step *out = &l->to->out;
    if (l->decoder)
        load_step(l, out, "decoder.norm_out", "decoder.conv_out.conv", narrow, 3, pixels);
    else
        load_step(l, out, "encoder.norm_out", "encoder.conv_out.conv", wide, 2 * c->latent_channels, last);
    l->to->block[last].maps = join_maps(l);
    out->eps = 1e-6;
    if (l->decoder) {
        out->fold = vae_scale(c) < FOLD ? vae_scale(c) : FOLD; /* which divides the width */
        out->conv = folded(l->p, out->conv, out->fold);
    }
}

static void free_part(half *t) {
    if (!t) return;
    ma_release(t->resnets);
    ma_release(t->steps);
    ma_release(t);
}

static half *make_part(ma_params *p, const vae_config *c, bool decoder) {
    half *t = ma_alloc(1, sizeof *t);
    if (t) {
        t->layers = (int)c->layers_per_block + decoder;
        size_t resnets = (size_t)(c->blocks * t->layers);
        t->resnets = ma_alloc(resnets, sizeof *t->resnets);
        t->steps = ma_alloc(2 * resnets + 6, sizeof *t->steps); /* two a resnet, two of them in the middle, in, out */
    }
    if (!t || !t->resnets || !t->steps) {
        ma_fail(ma_ctx_err(p->ctx), MA_MEMORY, "vae: out of memory");
        free_part(t);
        return NULL;
    }
    load_part(&(loader){.p = p, .c = c, .to = t, .decoder = decoder});
    return t;
}

vae *vae_make(ma_params *p, const vae_config *c, vae_part parts) {
    const char *const others[] = {parts & VAE_ENCODER ? "decoder." : "encoder.", NULL};
    vae *net = ma_alloc(1, sizeof *net);
    if (!net) {
        ma_fail(ma_ctx_err(p->ctx), MA_MEMORY, "vae: out of memory");
        return NULL;
    }
    net->c = *c;
    if (parts & VAE_ENCODER) net->encoder = make_part(p, c, false);
    if (parts & VAE_DECODER) net->decoder = make_part(p, c, true);
    ma_params_end(p, parts == VAE_BOTH ? NULL : others);
    if (!ma_failed(p->ctx)) return net;
    vae_free(net);
    return NULL;
}

void vae_free(vae *net) {
    if (!net) return;
    free_part(net->encoder);
    free_part(net->decoder);
    ma_release(net);
}

/* ---- the network: x (B,T,H,W,·) ---- */

/* A piece on its way through one part. */
typedef struct run {
    ma_ctx *c;
    const vae *net;
    const half *part;
    ma_tensor **past; /* by step; NULL: there will be no other piece */
    bool fresh;       /* the first piece */
    ma_tensor *z;     /* the latents that the decoder's norms look at */
    ma_tensor *maps;  /* and what the block that it is in makes of them, or NULL */
    ma_mark_t start;  /* above what is there before */
} run;

/* What goes from resnet to resnet. */
typedef struct flow {
    ma_tensor *x, *moments; /* moments NULL: not known yet */
} flow;

static ma_tensor *pointwise(ma_ctx *c, const conv_layer *l, ma_tensor *x) {
    return ma_conv(c, x, l->w, l->b, MA_WINDOW(1, 1, 1, 0, 0, 0), MA_NONE);
}

/* From here on norms look at what l makes of the latents. */
static void enter(run *r, const conv_layer *l) {
    r->maps = l->w ? pointwise(r->c, l, r->z) : NULL; // (B,t,h,w,ΣC)
}

static ma_tensor *do_step(const run *r, const step *s, flow f) {
    const ma_window window = {{1, 1, s->fold}, {0, 1, 1}, {0, 1, 1}};
    if (s->g && !f.moments) f.moments = ma_moments(r->c, f.x, NULL, r->net->c.groups);
    if (!f.x || (s->g && !f.moments)) return NULL;
    ma_tensor *x = ma_causal_norm(r->c, f.x, s->g ? f.moments : NULL, s->g, s->b, s->g ? r->maps : NULL,
                                  r->past ? r->past[s->number] : NULL,
                                  (ma_causal){.eps = s->eps,
                                              .act = s->g ? MA_SILU : MA_NONE,
                                              .lead = LEAD,
                                              .from = s->from,
                                              .fresh = r->fresh}); // (B,2+T,H,W,C)
    x = ma_conv(r->c, x, s->conv.w, s->conv.b, window, MA_NONE);   // (B,T,H,W/fold,fold·O)
    return !x || s->fold == 1
               ? x
               : ma_view(r->c, x, MA_SHAPE(x->n[0], x->n[1], x->n[2], x->n[3] * s->fold, x->n[4] / s->fold));
}

/* x is spent. Where channels change the tensors are the largest of all: there it is worth a copy to free what was. */
static flow do_resnet(run *r, const resnet *n, flow f) {
    const bool changes = n->shortcut.w;
    ma_tensor *sum = changes ? pointwise(r->c, &n->shortcut, f.x) : f.x; // (B,T,H,W,O)
    ma_mark_t m = ma_mark(r->c);
    f.x = do_step(r, &n->first, f);
    if (changes) ma_rewind_keep(r->c, m, &f.x, 1);
    f.x = do_step(r, &n->second, (flow){f.x, NULL});
    f.moments = f.x ? ma_moments(r->c, sum, f.x, r->net->c.groups) : NULL; // and sum += x
    ma_rewind_keep(r->c, m, &f.moments, 1);
    ma_tensor *keep[] = {sum, f.moments, r->maps};
    if (changes) ma_rewind_keep(r->c, r->start, keep, r->maps ? 3 : 2);
    r->maps = keep[2];
    return ma_failed(r->c) ? (flow){NULL, NULL} : (flow){keep[0], keep[1]};
}

/* The mean of every two frames. */
static ma_tensor *halve_time(ma_ctx *c, ma_tensor *x) {
    if (!x || x->n[1] == 1) return x;
    if (x->n[1] % 2 == 0) return ma_resize(c, x, x->n[1] / 2, x->n[2], x->n[3], false);
    ma_tensor *first = ma_slice(c, x, 1, 0, 1), *rest = halve_time(c, ma_slice(c, x, 1, 1, x->n[1] - 1));
    return ma_concat(c, (ma_tensor *[]){first, rest}, 2, 1);
}

/* Every frame twice. */
static ma_tensor *double_time(ma_ctx *c, ma_tensor *x) {
    if (!x || x->n[1] == 1) return x;
    int64_t b = x->n[0], t = x->n[1], h = x->n[2], w = x->n[3], n = x->n[4];
    if (t % 2 == 0) {
        x = ma_view(c, x, MA_SHAPE(b * t, 1, h, w, n));
        x = ma_concat(c, (ma_tensor *[]){x, x}, 2, 1); // (B·T,2,H,W,C)
        return ma_view(c, x, MA_SHAPE(b, 2 * t, h, w, n));
    }
    ma_tensor *first = ma_slice(c, x, 1, 0, 1), *rest = double_time(c, ma_slice(c, x, 1, 1, t - 1));
    return ma_concat(c, (ma_tensor *[]){first, rest}, 2, 1);
}

static flow do_block(run *r, const block *b, flow f) {
    const ma_window down = {{1, 2, 2}, {0, 0, 0}, {0, 1, 1}}, up = MA_WINDOW(1, 2, 2, 0, 1, 1);
    enter(r, &b->maps);
    for (int k = 0; k < r->part->layers; k++) f = do_resnet(r, &b->at[k], f);
    if (!b->sampler.w) return f;
    ma_tensor *x = f.x;
    if (r->part == r->net->encoder) {
        if (b->time) x = halve_time(r->c, x);                            // (B,⌈T/2⌉,H,W,C)
        x = ma_conv(r->c, x, b->sampler.w, b->sampler.b, down, MA_NONE); // (B,·,H/2,W/2,C)
    } else {
        x = ma_conv_transpose(r->c, x, b->sampler.w, b->sampler.b, up, MA_NONE); // (B,T,2H,2W,C)
        if (b->time) x = double_time(r->c, x);                                   // (B,2T or 2T-1,2H,2W,C)
    }
    if (b->time) ma_rewind_keep(r->c, r->start, &x, 1);
    return (flow){x, NULL};
}

/* One piece: pixels to moments, or latents to pixels. */
static ma_tensor *forward(run *r, ma_tensor *x) {
    const half *t = r->part;
    const bool decoder = t == r->net->decoder;
    if (!x) return NULL;
    enter(r, &t->maps);
    flow f = {do_step(r, &t->in, (flow){ma_cast(r->c, x, ma_get_type(r->c), x->n[4]), NULL}), NULL};
    for (int k = 0; k < 2 && decoder; k++) f = do_resnet(r, &t->mid[k], f);
    for (int k = 0; k < r->net->c.blocks; k++) f = do_block(r, &t->block[k], f);
    for (int k = 0; k < 2 && !decoder; k++) f = do_resnet(r, &t->mid[k], f);
    return do_step(r, &t->out, f);
}

/* ---- tiles ---- */

/* How one axis of a frame is cut. */
typedef struct cuts {
    int64_t size, tile, stride, n; /* of what goes in; n tiles, the last ones shorter */
    int64_t blend, keep;           /* of what comes out: blended with the tile before; kept of a tile */
} cuts;

/* One tile's first position and length. */
static int64_t tile_from(const cuts *a, int64_t k) {
    return k * a->stride;
}

static int64_t tile_length(const cuts *a, int64_t k) {
    int64_t left = a->size - tile_from(a, k);
    return left < a->tile ? left : a->tile;
}

/* pixels: a tile's size; in, out: of a pixel and a latent, whichever goes in and comes out, in pixels. */
static cuts cut(int64_t size, int64_t pixels, double share, int64_t in, int64_t out) {
    cuts a = {.size = size, .tile = pixels / in};
    a.stride = (int64_t)((double)a.tile * (1 - share));
    a.blend = (int64_t)((double)(pixels / out) * share);
    a.keep = pixels / out - a.blend;
    a.n = a.stride > 0 ? (size + a.stride - 1) / a.stride : 0;
    return a;
}

static cuts whole(int64_t size) {
    return (cuts){.size = size, .tile = size, .stride = size, .n = 1};
}

/* ---- streams ---- */

struct vae_stream {
    ma_ctx *c;
    const vae *net;
    vae_part part;
    int64_t n[4], done; /* (B,T,H,W) of the input; frames that are through */
    cuts h, w;
    ma_tensor **past; /* by tile, then step; NULL: one piece is all */
    ma_mark_t mark;
};

static const half *part_of(const vae_stream *s) {
    return s->part == VAE_ENCODER ? s->net->encoder : s->net->decoder;
}

static int refuse(ma_ctx *c, const char *what, int64_t h, int64_t w) {
    return ma_fail(ma_ctx_err(c), MA_SHAPE, "vae: %s %lldx%lld", what, (long long)h, (long long)w);
}

static int set_tiles(vae_stream *s, const vae_tiles *t) {
    int64_t scale = vae_scale(&s->net->c), in = s->part == VAE_ENCODER ? 1 : scale, out = scale / in;
    s->h = whole(s->n[2]);
    s->w = whole(s->n[3]);
    if (s->n[2] * in % scale || s->n[3] * in % scale)
        return ma_fail(ma_ctx_err(s->c), MA_SHAPE, "vae: frames of %lldx%lld: must be multiples of %lld",
                       (long long)s->n[2], (long long)s->n[3], (long long)scale);
    if (!t || (s->n[2] * in <= t->height && s->n[3] * in <= t->width)) return 0;
    s->h = cut(s->n[2], t->height, overlap[0], in, out);
    s->w = cut(s->n[3], t->width, overlap[1], in, out);
    if (t->height % scale || t->width % scale || s->h.keep < 1 || s->w.keep < 1 ||
        s->h.stride * in != s->h.keep * out || s->w.stride * in != s->w.keep * out)
        return refuse(s->c, "tiles do not come out even:", t->height, t->width);
    return 0;
}

/* What the steps of every tile keep from piece to piece. */
static int keep_past(vae_stream *s) {
    const half *t = part_of(s);
    int64_t tiles = s->h.n * s->w.n, in = s->part == VAE_ENCODER ? 1 : vae_scale(&s->net->c);
    if (piece_of(s->part, s->n[1], 0) == s->n[1]) return 0;
    s->past = ma_alloc((size_t)(tiles * t->nsteps), sizeof *s->past);
    if (!s->past) return ma_fail(ma_ctx_err(s->c), MA_MEMORY, "vae: out of memory");
    for (int64_t k = 0; k < tiles * t->nsteps; k++) {
        const step *p = t->steps[k % t->nsteps];
        int64_t h = tile_length(&s->h, k / t->nsteps / s->w.n) * in,
                w = tile_length(&s->w, k / t->nsteps % s->w.n) * in;
        s->past[k] =
            ma_new(s->c, ma_get_type(s->c), MA_SHAPE(s->n[0], LEAD, h >> p->level, w >> p->level, p->conv.w->n[4]));
        if (!s->past[k]) return -1;
    }
    return 0;
}

/* reserve: bytes of stack that are taken in one piece first; grown bit by bit it would leave its chunks' ends unused.
 */
static vae_stream *open_stream(ma_ctx *c, const vae *net, vae_part which, const int64_t n[4], const vae_tiles *tiles,
                               size_t reserve) {
    vae_stream *s = ma_alloc(1, sizeof *s);
    if (!s) {
        ma_fail(ma_ctx_err(c), MA_MEMORY, "vae: out of memory");
        return NULL;
    }
    *s = (vae_stream){.c = c, .net = net, .part = which, .mark = ma_mark(c)};
    memcpy(s->n, n, sizeof s->n);
    if (reserve) ma_new(c, MA_U8, MA_SHAPE((int64_t)reserve));
    ma_rewind(c, s->mark);
    if (!part_of(s))
        ma_fail(ma_ctx_err(c), MA_USAGE, "vae: the %s was not loaded", which == VAE_ENCODER ? "encoder" : "decoder");
    else if (n[0] < 1 || n[1] < 1 || n[2] < 1 || n[3] < 1)
        refuse(c, "no frames of", n[2], n[3]);
    if (!ma_failed(c) && !set_tiles(s, tiles) && !keep_past(s)) return s;
    vae_close(s);
    return NULL;
}

void vae_close(vae_stream *s) {
    if (!s) return;
    ma_rewind(s->c, s->mark);
    ma_release(s->past);
    ma_release(s);
}

int64_t vae_wants(const vae_stream *s) {
    return piece_of(s->part, s->n[1], s->done);
}

/* x's tile (i, j) through the network. */
static ma_tensor *do_tile(const vae_stream *s, ma_tensor *x, int64_t i, int64_t j) {
    const half *t = part_of(s);
    ma_mark_t m = ma_mark(s->c);
    if (s->h.n * s->w.n > 1) {
        x = ma_slice(s->c, x, 2, tile_from(&s->h, i), tile_length(&s->h, i));
        x = ma_slice(s->c, x, 3, tile_from(&s->w, j), tile_length(&s->w, j));
    }
    run r = {.c = s->c,
             .net = s->net,
             .part = t,
             .past = s->past ? s->past + (i * s->w.n + j) * t->nsteps : NULL,
             .fresh = !s->done,
             .z = x,
             .start = ma_mark(s->c)};
    ma_tensor *y = forward(&r, x);
    if (y) ma_rewind_keep(s->c, m, &y, 1);
    return y;
}

/* k/n, or 1 - k/n, for positions k < n along `axis` of t, repeated over what lies behind it. */
static ma_tensor *ramp(ma_ctx *c, const ma_tensor *t, int axis, int64_t n, bool falling) {
    int64_t inner = axis == 2 ? t->n[3] * t->n[4] : t->n[4];
    float *v = ma_alloc((size_t)(n * inner), sizeof *v);
    if (!v) {
        ma_fail(ma_ctx_err(c), MA_MEMORY, "vae: out of memory");
        return NULL;
    }
    for (int64_t k = 0; k < n * inner; k++) {
        double part = (double)(k / inner) / (double)n;
        v[k] = (float)(falling ? 1 - part : part);
    }
    ma_tensor *r = axis == 2 ? ma_input(c, v, MA_SHAPE(n, t->n[3], t->n[4])) : ma_input(c, v, MA_SHAPE(n, t->n[4]));
    ma_release(v);
    return r;
}

/* b, its first positions along the axis mixed with the last ones of a, the tile before it. */
static ma_tensor *blend(ma_ctx *c, ma_tensor *a, ma_tensor *b, int axis, int64_t n) {
    if (!a || !b) return NULL;
    if (a->n[axis] < n) n = a->n[axis];
    if (b->n[axis] < n) n = b->n[axis];
    if (n < 1) return b;
    ma_tensor *from = ma_mul_(c, ma_slice(c, a, axis, a->n[axis] - n, n), ramp(c, a, axis, n, true));
    ma_tensor *to = ma_mul_(c, ma_slice(c, b, axis, 0, n), ramp(c, b, axis, n, false));
    ma_tensor *mixed = ma_add(c, from, to);
    if (b->n[axis] == n) return mixed;
    return ma_concat(c, (ma_tensor *[]){mixed, ma_slice(c, b, axis, n, b->n[axis] - n)}, 2, axis);
}

/* At most n positions along the axis. */
static ma_tensor *crop(ma_ctx *c, ma_tensor *t, int axis, int64_t n) {
    return t && t->n[axis] > n ? ma_slice(c, t, axis, 0, n) : t;
}

/* sum, and t behind it; sum NULL: t alone. */
static ma_tensor *append(ma_ctx *c, ma_tensor *sum, ma_tensor *t, int axis) {
    return sum ? ma_concat(c, (ma_tensor *[]){sum, t}, 2, axis) : t;
}

/* All tiles in the order of reading; row holds the tiles of the row above, and takes this one's. */
static ma_tensor *do_tiles(const vae_stream *s, ma_tensor *x, ma_tensor **row) {
    ma_tensor *all = NULL;
    for (int64_t i = 0; i < s->h.n; i++) {
        ma_tensor *line = NULL;
        for (int64_t j = 0; j < s->w.n; j++) {
            ma_tensor *t = do_tile(s, x, i, j);
            if (i) t = blend(s->c, row[j], t, 2, s->h.blend);
            if (j) t = blend(s->c, row[j - 1], t, 3, s->w.blend);
            row[j] = t;
            line = append(s->c, line, crop(s->c, crop(s->c, t, 2, s->h.keep), 3, s->w.keep), 3);
            if (!line) return NULL;
        }
        all = append(s->c, all, line, 2);
    }
    return all;
}

ma_tensor *vae_next(vae_stream *s, ma_tensor *x) {
    if (!x || ma_failed(s->c)) return NULL;
    const int64_t channels = s->part == VAE_ENCODER ? 3 : s->net->c.latent_channels;
    const int64_t n[5] = {s->n[0], vae_wants(s), s->n[2], s->n[3], channels};
    if (x->nd != 5 || memcmp(x->n, n, sizeof n)) {
        char is[160], must[160];
        ma_fail(ma_ctx_err(s->c), MA_SHAPE, "vae: %s given, %s wanted", ma_shape_text(is, x->nd, x->n),
                ma_shape_text(must, 5, n));
        return NULL;
    }
    ma_mark_t m = ma_mark(s->c);
    ma_tensor **row = ma_alloc((size_t)s->w.n, sizeof *row), *y = NULL;
    if (!row)
        ma_fail(ma_ctx_err(s->c), MA_MEMORY, "vae: out of memory");
    else if (s->h.n * s->w.n == 1)
        y = do_tile(s, x, 0, 0);
    else
        y = do_tiles(s, x, row);
    ma_release(row);
    if (!y) return NULL;
    if (s->h.n * s->w.n > 1) ma_rewind_keep(s->c, m, &y, 1);
    s->done += n[1];
    return y;
}

/* ---- memory ---- */

/* The first piece, the largest, in a plan; stack bytes at the peak, or all of the device's where reserve is given. */
static size_t measure(ma_device *plan, ma_type type, const vae_config *config, vae_part which, const int64_t n[4],
                      const vae_tiles *tiles, size_t reserve, ma_err *e) {
    ma_ctx *c = ma_ctx_new(plan, e);
    if (!c) return 0;
    ma_set_type(c, type);
    ma_params *p = ma_params_new(c, NULL, false, 0);
    vae *net = p ? vae_make(p, config, which) : NULL;
    vae_stream *s = net ? open_stream(c, net, which, n, tiles, reserve) : NULL;
    if (s)
        vae_next(s,
                 ma_new(c, type,
                        MA_SHAPE(n[0], vae_wants(s), n[2], n[3], which == VAE_ENCODER ? 3 : config->latent_channels)));
    vae_close(s);
    size_t bytes = ma_ctx_failed(c, e) ? 0 : reserve ? ma_ctx_memory(c).in_all : ma_ctx_memory(c).stack_peak;
    vae_free(net);
    ma_params_free(p);
    ma_ctx_free(c);
    return bytes;
}

size_t vae_bytes(ma_device *plan, ma_type type, const vae_config *config, vae_part which, const int64_t n[4],
                 const vae_tiles *tiles, ma_err *e) {
    size_t stack = measure(plan, type, config, which, n, tiles, 0, e);
    return stack ? measure(plan, type, config, which, n, tiles, stack, e) : 0;
}

/* A device that only counts what stands on the stack: the same kernels, no memory, no workspace. */
static ma_device counting(const ma_device *d) {
    ma_device plan = *d;
    plan.plan = true;
    plan.work = NULL;
    plan.used = NULL;
    return plan;
}

vae_stream *vae_open(ma_ctx *c, const vae *net, vae_part which, const int64_t n[4], const vae_tiles *tiles) {
    if (ma_failed(c) || !net) return NULL;
    ma_device plan = counting(ma_ctx_device(c));
    ma_err e = {0};
    size_t stack = measure(&plan, ma_get_type(c), &net->c, which, n, tiles, 0, &e);
    if (!stack) ma_fail(ma_ctx_err(c), e.reason, "%s", e.text);
    return stack ? open_stream(c, net, which, n, tiles, stack) : NULL;
}

/* ---- whole clips ---- */

/* Frames of y into out, from frame `at` on. */
static int put_frames(ma_ctx *c, const ma_tensor *out, const ma_tensor *y, int64_t at) {
    ma_device *dev = ma_ctx_device(c);
    size_t frame = ma_bytes(y) / (size_t)(y->n[0] * y->n[1]);
    for (int64_t b = 0; b < y->n[0] && !dev->plan; b++) {
        char *to = (char *)out->data + (size_t)(b * out->n[1] + at) * frame;
        const char *from = (const char *)y->data + (size_t)(b * y->n[1]) * frame;
        if (dev->move(dev, to, from, (size_t)y->n[1] * frame))
            return ma_fail(ma_ctx_err(c), MA_DEVICE, "%s: copying frames failed", dev->name);
    }
    return 0;
}

static ma_tensor *clip(ma_ctx *c, const vae *net, vae_part which, ma_tensor *x, const vae_tiles *tiles) {
    if (!x || !net || ma_failed(c)) return NULL;
    const bool encode = which == VAE_ENCODER;
    if (x->nd != 5) {
        ma_fail(ma_ctx_err(c), MA_SHAPE, "vae: a clip has 5 dimensions, not %d", x->nd);
        return NULL;
    }
    int64_t scale = vae_scale(&net->c), h = encode ? x->n[2] / scale : x->n[2] * scale,
            w = encode ? x->n[3] / scale : x->n[3] * scale;
    ma_tensor *out = ma_new(
        c, ma_get_type(c),
        MA_SHAPE(x->n[0], all_frames_of(&net->c, which, x->n[1]), h, w, encode ? 2 * net->c.latent_channels : 3));
    vae_stream *s = vae_open(c, net, which, x->n, tiles);
    for (int64_t at = 0, from = 0, n; s && (n = vae_wants(s)) > 0; from += n) {
        ma_mark_t m = ma_mark(c);
        ma_tensor *y = vae_next(s, ma_slice(c, x, 1, from, n));
        if (!y || put_frames(c, out, y, at)) break;
        at += y->n[1];
        ma_rewind(c, m);
    }
    vae_close(s);
    return ma_failed(c) ? NULL : out;
}

ma_tensor *vae_encode(ma_ctx *c, const vae *net, ma_tensor *x, const vae_tiles *tiles) {
    return clip(c, net, VAE_ENCODER, x, tiles);
}

ma_tensor *vae_decode(ma_ctx *c, const vae *net, ma_tensor *z, const vae_tiles *tiles) {
    return clip(c, net, VAE_DECODER, z, tiles);
}
