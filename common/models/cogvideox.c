/* cogvideox: CogVideoX's MM-DiT and MoAlign's projector. Forward only; the tape gives the rest.
 *
 * Traps: text tokens come first in the joint sequence, which is kept joint from the first block to the last, so that
 * every norm, gate and linear map is one call. Rows of a block's modulation: shift, scale, gate for video, then the same
 * three for text. Rotary skips the text. The sin-cos table is a quarter time, then x, then y (the width goes first), and
 * is not stored in the file. The 2B normalises only the video tokens at the end, the 5B the joint sequence: token by token
 * that is the same. patch_size_t (CogVideoX 1.5) is refused. The last linear map's channels are (channel, row, column).
 */
#include "cogvideox.h"

#include "../file.h"
#include "../shard.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- configuration ---- */

void cogvideox_2b(cogvideox_config *c) {
    *c = (cogvideox_config){.heads = 30,
                            .head_dim = 64,
                            .layers = 30,
                            .in_channels = 16,
                            .out_channels = 16,
                            .time_embed_dim = 512,
                            .text_embed_dim = 4096,
                            .sample_frames = 49,
                            .sample_height = 60,
                            .sample_width = 90,
                            .patch = 2,
                            .temporal_compression = 4,
                            .max_text = 226,
                            .spatial_scale = 1.875,
                            .temporal_scale = 1.0,
                            .norm_eps = 1e-5,
                            .flip_sin_to_cos = true};
}

/* One entry of config.json: where it lives in the struct. */
typedef struct field {
    const char *key;
    enum { INT, REAL, BOOL } type;
    void *at;
    double lo, hi;
} field;

enum { FIELDS = 19 };

static void fields_of(cogvideox_config *c, field f[FIELDS]) {
    const field all[FIELDS] = {
        {"num_attention_heads", INT, &c->heads, 1, 1024},
        {"attention_head_dim", INT, &c->head_dim, 2, 1024},
        {"num_layers", INT, &c->layers, 1, 1024},
        {"in_channels", INT, &c->in_channels, 1, 65536},
        {"out_channels", INT, &c->out_channels, 1, 65536},
        {"time_embed_dim", INT, &c->time_embed_dim, 1, 65536},
        {"text_embed_dim", INT, &c->text_embed_dim, 1, 65536},
        {"sample_frames", INT, &c->sample_frames, 1, 65536},
        {"sample_height", INT, &c->sample_height, 1, 65536},
        {"sample_width", INT, &c->sample_width, 1, 65536},
        {"patch_size", INT, &c->patch, 1, 64},
        {"temporal_compression_ratio", INT, &c->temporal_compression, 1, 64},
        {"max_text_seq_length", INT, &c->max_text, 0, 65536},
        {"spatial_interpolation_scale", REAL, &c->spatial_scale, 1e-6, 1e6},
        {"temporal_interpolation_scale", REAL, &c->temporal_scale, 1e-6, 1e6},
        {"norm_eps", REAL, &c->norm_eps, 0, 1},
        {"use_rotary_positional_embeddings", BOOL, &c->rotary, 0, 1},
        {"flip_sin_to_cos", BOOL, &c->flip_sin_to_cos, 0, 1},
        {"freq_shift", REAL, &c->freq_shift, -1e6, 1e6},
    };
    memcpy(f, all, sizeof all);
}

static int read_field(const char *path, const cJSON *json, const field *f, ma_err *e) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(json, f->key);
    if (!v) return 0; /* diffusers' default, which is the 2B's */
    if (f->type == BOOL) {
        if (!cJSON_IsBool(v)) return ma_fail(e, MA_CORRUPT, "%s: %s must be true or false", path, f->key);
        *(bool *)f->at = cJSON_IsTrue(v);
        return 0;
    }
    double x = cJSON_IsNumber(v) ? v->valuedouble : NAN;
    if (!(x >= f->lo && x <= f->hi) || (f->type == INT && x != floor(x)))
        return ma_fail(e, MA_CORRUPT, "%s: %s must be a number in %g..%g", path, f->key, f->lo, f->hi);
    if (f->type == INT)
        *(int *)f->at = (int)x;
    else
        *(double *)f->at = x;
    return 0;
}

/* What diffusers' class can be told but this network does not do. */
static int check_unsupported(const char *path, const cJSON *json, ma_err *e) {
    static const char *const must_be_null[] = {"patch_size_t", "ofs_embed_dim"};
    static const struct {
        const char *key, *value;
    } text[] = {{"activation_fn", "gelu-approximate"}, {"timestep_activation_fn", "silu"}};
    static const struct {
        const char *key;
        bool value;
    } flag[] = {{"attention_bias", true}, {"norm_elementwise_affine", true}, {"use_learned_positional_embeddings", false},
                {"patch_bias", true}};
    for (size_t k = 0; k < sizeof must_be_null / sizeof *must_be_null; k++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(json, must_be_null[k]);
        if (v && !cJSON_IsNull(v)) return ma_fail(e, MA_UNSUPPORTED, "%s: %s is not supported", path, must_be_null[k]);
    }
    for (size_t k = 0; k < sizeof text / sizeof *text; k++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(json, text[k].key);
        if (v && (!cJSON_IsString(v) || strcmp(v->valuestring, text[k].value)))
            return ma_fail(e, MA_UNSUPPORTED, "%s: %s must be \"%s\"", path, text[k].key, text[k].value);
    }
    for (size_t k = 0; k < sizeof flag / sizeof *flag; k++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(json, flag[k].key);
        if (v && cJSON_IsTrue(v) != flag[k].value)
            return ma_fail(e, MA_UNSUPPORTED, "%s: %s must be %s", path, flag[k].key, flag[k].value ? "true" : "false");
    }
    return 0;
}

int cogvideox_config_read(const char *path, cogvideox_config *c, ma_err *e) {
    ma_buf text = {0};
    if (ma_read_file(path, (size_t)1 << 20, &text, e)) return -1;
    cJSON *json = ma_json_parse(text.data, text.size, path, e);
    ma_buf_free(&text);
    if (!json) return -1;
    cogvideox_2b(c);
    field f[FIELDS];
    fields_of(c, f);
    int rc = check_unsupported(path, json, e);
    for (int k = 0; k < FIELDS && !rc; k++) rc = read_field(path, json, &f[k], e);
    if (!rc && (c->heads * c->head_dim) % 16)
        rc = ma_fail(e, MA_UNSUPPORTED, "%s: width %d is not a multiple of 16", path, c->heads * c->head_dim);
    if (!rc && c->rotary && c->head_dim % 16)
        rc = ma_fail(e, MA_UNSUPPORTED, "%s: attention_head_dim %d is not a multiple of 16", path, c->head_dim);
    cJSON_Delete(json);
    return rc;
}

int cogvideox_config_write(const char *path, const cogvideox_config *config, ma_err *e) {
    cogvideox_config c = *config;
    field f[FIELDS];
    fields_of(&c, f);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "_class_name", "CogVideoXTransformer3DModel");
    for (int k = 0; k < FIELDS; k++) {
        if (f[k].type == BOOL)
            cJSON_AddBoolToObject(json, f[k].key, *(bool *)f[k].at);
        else
            cJSON_AddNumberToObject(json, f[k].key, f[k].type == INT ? *(int *)f[k].at : *(double *)f[k].at);
    }
    cJSON_AddNullToObject(json, "patch_size_t");
    cJSON_AddStringToObject(json, "activation_fn", "gelu-approximate");
    cJSON_AddStringToObject(json, "timestep_activation_fn", "silu");
    cJSON_AddBoolToObject(json, "attention_bias", true);
    cJSON_AddBoolToObject(json, "norm_elementwise_affine", true);
    cJSON_AddNumberToObject(json, "dropout", 0);
    char *text = cJSON_Print(json);
    cJSON_Delete(json);
    if (!text) return ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    int rc = ma_write_file(path, text, strlen(text), e);
    free(text);
    return rc;
}

/* ---- parameters ---- */

typedef struct linear {
    ma_tensor *w, *b; /* (out, in), (out) */
    lora_pair lora;
} linear;

typedef struct norm {
    ma_tensor *g, *b; /* (width) each */
} norm;

typedef struct block {
    const struct cogvideox *net;
    linear mod1, mod2; /* silu(time) → 6 rows of width */
    norm norm1, norm2;
    linear q, k, v, out;
    norm norm_q, norm_k; /* over a head */
    linear up, down;     /* feed-forward, ×4 */
} block;

/* Tables for one grid of tokens. */
typedef struct grid {
    int64_t frames, height, width; /* in patches */
    ma_tensor *position;           /* sin-cos (frames·height·width, width of the network) */
    ma_tensor *cosine, *sine;      /* rotary (frames·height·width, head_dim), f32 */
} grid;

struct cogvideox {
    cogvideox_config c;
    int64_t width;
    linear patch, text, time1, time2, mod_out, out;
    norm norm_final, norm_out;
    block *blocks;
    grid grid;
    int64_t text_length; /* of the forward pass that runs */
};

static linear make_linear(ma_params *p, ma_init init, int64_t out, int64_t in, const char *name) {
    linear l = {.w = ma_param(p, MA_PLAIN, init, MA_SHAPE(out, in), "%s.weight", name)};
    l.b = ma_param(p, MA_PLAIN, init, MA_SHAPE(out), "%s.bias", name);
    return l;
}

static norm make_norm(ma_params *p, int64_t width, const char *name) {
    norm n;
    n.g = ma_param(p, MA_PLAIN, MA_INIT_ONE, MA_SHAPE(width), "%s.weight", name);
    n.b = ma_param(p, MA_PLAIN, MA_INIT_ZERO, MA_SHAPE(width), "%s.bias", name);
    return n;
}

/* A linear map of a block: where it lives, its name in the block, how it is drawn, its sizes. */
typedef struct block_map {
    linear *to;
    const char *part;
    ma_init init;
    int64_t out, in;
} block_map;

enum { BLOCK_MAPS = 8 };

/* Drawn networks start with every block as the identity (adaLN-Zero, Peebles & Xie 2023). */
static void maps_of(const cogvideox *net, block *b, block_map maps[BLOCK_MAPS]) {
    const int64_t width = net->width, time = net->c.time_embed_dim;
    const block_map all[BLOCK_MAPS] = {
        {&b->mod1, "norm1.linear", MA_INIT_ZERO, 6 * width, time}, {&b->q, "attn1.to_q", MA_INIT_FAN, width, width},
        {&b->k, "attn1.to_k", MA_INIT_FAN, width, width},          {&b->v, "attn1.to_v", MA_INIT_FAN, width, width},
        {&b->out, "attn1.to_out.0", MA_INIT_FAN, width, width},    {&b->mod2, "norm2.linear", MA_INIT_ZERO, 6 * width, time},
        {&b->up, "ff.net.0.proj", MA_INIT_FAN, 4 * width, width},  {&b->down, "ff.net.2", MA_INIT_FAN, width, 4 * width},
    };
    memcpy(maps, all, sizeof all);
}

static void block_name(char name[96], int index, const char *part) {
    snprintf(name, 96, "transformer_blocks.%d.%s", index, part);
}

static void make_block(ma_params *p, const cogvideox *net, int index, block *b) {
    const int64_t width = net->width, head = net->c.head_dim;
    char name[96];
    block_map maps[BLOCK_MAPS];
    const struct {
        norm *to;
        const char *part;
        int64_t width;
    } norms[] = {{&b->norm1, "norm1.norm", width},
                 {&b->norm_q, "attn1.norm_q", head},
                 {&b->norm_k, "attn1.norm_k", head},
                 {&b->norm2, "norm2.norm", width}};
    b->net = net;
    maps_of(net, b, maps);
    for (int k = 0; k < BLOCK_MAPS; k++) {
        block_name(name, index, maps[k].part);
        *maps[k].to = make_linear(p, maps[k].init, maps[k].out, maps[k].in, name);
    }
    for (size_t k = 0; k < sizeof norms / sizeof *norms; k++) {
        block_name(name, index, norms[k].part);
        *norms[k].to = make_norm(p, norms[k].width, name);
    }
}

cogvideox *cogvideox_make(ma_params *p, const cogvideox_config *config) {
    cogvideox *net = calloc(1, sizeof *net);
    if (net) net->blocks = calloc((size_t)config->layers, sizeof *net->blocks);
    if (!net || !net->blocks) {
        ma_fail(ma_ctx_err(p->ctx), MA_MEMORY, "cogvideox: out of memory");
        free(net);
        return NULL;
    }
    const cogvideox_config *c = &net->c;
    net->c = *config;
    const int64_t width = net->width = (int64_t)c->heads * c->head_dim, time = c->time_embed_dim;
    net->patch.w = ma_param(p, MA_CONV2D, MA_INIT_FAN, MA_SHAPE(width, 1, c->patch, c->patch, c->in_channels),
                            "patch_embed.proj.weight");
    net->patch.b = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(width), "patch_embed.proj.bias");
    net->text = make_linear(p, MA_INIT_FAN, width, c->text_embed_dim, "patch_embed.text_proj");
    net->time1 = make_linear(p, MA_INIT_FAN, time, width, "time_embedding.linear_1");
    net->time2 = make_linear(p, MA_INIT_FAN, time, time, "time_embedding.linear_2");
    for (int k = 0; k < c->layers; k++) make_block(p, net, k, &net->blocks[k]);
    net->norm_final = make_norm(p, width, "norm_final");
    net->mod_out = make_linear(p, MA_INIT_ZERO, 2 * width, time, "norm_out.linear");
    net->norm_out = make_norm(p, width, "norm_out.norm");
    net->out = make_linear(p, MA_INIT_ZERO, (int64_t)c->patch * c->patch * c->out_channels, width, "proj_out");
    return net;
}

int cogvideox_adapt(cogvideox *net, lora *l) {
    for (int k = 0; k < net->c.layers; k++) {
        block_map maps[BLOCK_MAPS];
        maps_of(net, &net->blocks[k], maps);
        for (int m = 0; m < BLOCK_MAPS; m++) {
            char name[96];
            block_name(name, k, maps[m].part);
            if (lora_adapt(l, name, maps[m].to->w, &maps[m].to->lora)) return -1;
        }
    }
    return lora_end(l);
}

void cogvideox_free(cogvideox *net) {
    if (net) free(net->blocks);
    free(net);
}

/* ---- positions ---- */

/* sin of position·ω, then cos: `size` numbers; ω_j = 10000^(-j/(size/2)). */
static void waves(double position, int64_t size, float *out) {
    for (int64_t j = 0; j < size / 2; j++) {
        double x = position / pow(10000, (double)j / (double)(size / 2));
        out[j] = (float)sin(x);
        out[size / 2 + j] = (float)cos(x);
    }
}

/* cos and sin of position·θ_j, each twice; θ_j = 10000^(-2j/size). */
static void rotation(double position, int64_t size, float *cosine, float *sine) {
    for (int64_t j = 0; j < size; j++) {
        double x = position / pow(10000, (double)(j - j % 2) / (double)size);
        cosine[j] = (float)cos(x);
        sine[j] = (float)sin(x);
    }
}

/* Where the grid lies in the grid the network was trained on: start and length in patches along one axis.
 * Source: diffusers, get_resize_crop_region_for_grid. */
static void crop_region(const cogvideox *net, const grid *g, double start[2], double length[2]) {
    double th = net->c.sample_height / net->c.patch, tw = net->c.sample_width / net->c.patch;
    double h = (double)g->height, w = (double)g->width;
    bool tall = h / w > th / tw;
    length[0] = tall ? th : rint(tw / w * h); /* Python rounds to even, as rint does */
    length[1] = tall ? rint(th / h * w) : tw;
    start[0] = rint((th - length[0]) / 2);
    start[1] = rint((tw - length[1]) / 2);
}

/* n points from start; the last is (start+length)·(n-1)/n, as the reference spaces them. */
static double spaced(double start, double length, int64_t n, int64_t k) {
    double end = (start + length) * (double)(n - 1) / (double)n;
    return n > 1 ? start + (end - start) * (double)k / (double)(n - 1) : start;
}

/* One token's row in the tables. */
static void fill_position(const cogvideox *net, int64_t f, int64_t y, int64_t x, float *table) {
    const int64_t time = net->width / 4, space = net->width * 3 / 8;
    waves((double)f / net->c.temporal_scale, time, table);
    waves((double)x / net->c.spatial_scale, space, table + time);
    waves((double)y / net->c.spatial_scale, space, table + time + space);
}

static void fill_rotation(const cogvideox *net, const grid *g, int64_t f, int64_t y, int64_t x, float *cosine,
                          float *sine) {
    const int64_t time = net->c.head_dim / 4, space = net->c.head_dim / 8 * 3;
    double start[2], length[2];
    crop_region(net, g, start, length);
    rotation((double)f, time, cosine, sine);
    rotation(spaced(start[0], length[0], g->height, y), space, cosine + time, sine + time);
    rotation(spaced(start[1], length[1], g->width, x), space, cosine + time + space, sine + time + space);
}

/* Makes the tables unless they are there for this grid. */
static int prepare_grid(ma_ctx *c, cogvideox *net, int64_t frames, int64_t height, int64_t width) {
    grid *g = &net->grid;
    if (g->frames == frames && g->height == height && g->width == width) return 0;
    *g = (grid){.frames = frames, .height = height, .width = width};
    const int64_t tokens = frames * height * width, row = net->c.rotary ? net->c.head_dim : net->width;
    float *table = ma_alloc((size_t)(2 * tokens), (size_t)row * sizeof *table);
    if (!table) return ma_fail(ma_ctx_err(c), MA_MEMORY, "cogvideox: out of memory for positions");
    for (int64_t n = 0; n < tokens; n++) {
        int64_t f = n / (height * width), y = n / width % height, x = n % width;
        if (net->c.rotary)
            fill_rotation(net, g, f, y, x, table + n * row, table + (tokens + n) * row);
        else
            fill_position(net, f, y, x, table + n * row);
    }
    if (net->c.rotary) {
        g->cosine = ma_keep(c, MA_F32, MA_SHAPE(tokens, row));
        g->sine = ma_keep(c, MA_F32, MA_SHAPE(tokens, row));
        ma_put(c, g->cosine, table);
        ma_put(c, g->sine, table + tokens * row);
    } else {
        g->position = ma_keep(c, ma_get_type(c), MA_SHAPE(tokens, row));
        ma_put(c, g->position, table);
    }
    ma_release(table);
    return ma_failed(c) ? -1 : 0;
}

/* ---- forward ---- */

static ma_tensor *apply(ma_ctx *c, const linear *l, ma_tensor *x, ma_act act) {
    if (!l->lora.a) return ma_linear(c, x, l->w, l->b, act);
    return lora_add(c, &l->lora, x, ma_linear(c, x, l->w, l->b, MA_NONE), act);
}

ma_tensor *cogvideox_times(ma_ctx *c, const cogvideox *net, const double *t, int64_t batch) {
    const int64_t width = net->width, half = width / 2;
    float *table = ma_alloc((size_t)batch, (size_t)width * sizeof *table);
    if (!table) {
        ma_fail(ma_ctx_err(c), MA_MEMORY, "cogvideox: out of memory");
        return NULL;
    }
    for (int64_t b = 0; b < batch; b++)
        for (int64_t j = 0; j < half; j++) {
            double x = t[b] * exp(-log(10000) * (double)j / ((double)half - net->c.freq_shift));
            table[b * width + j] = (float)(net->c.flip_sin_to_cos ? cos(x) : sin(x));
            table[b * width + half + j] = (float)(net->c.flip_sin_to_cos ? sin(x) : cos(x));
        }
    ma_tensor *times = ma_input(c, table, MA_SHAPE(batch, width));
    ma_release(table);
    return times;
}

/* silu of the time embedding: every use of it begins so.                          times (B, width) → (B, time_embed_dim) */
static ma_tensor *embed_time(ma_ctx *c, const cogvideox *net, ma_tensor *times) {
    return apply(c, &net->time2, apply(c, &net->time1, times, MA_SILU), MA_SILU);
}

/* A head's view of a projection: normalised and turned where asked.                 x (B,L,C) → (B,L,H,D) */
static ma_tensor *heads_of(ma_ctx *c, const block *b, const linear *l, const norm *n, ma_tensor *x) {
    const cogvideox *net = b->net;
    ma_tensor *y = apply(c, l, x, MA_NONE);
    if (!y) return NULL;
    y = ma_view(c, y, MA_SHAPE(y->n[0], y->n[1], net->c.heads, net->c.head_dim));
    if (n) y = ma_layer_norm(c, y, n->g, n->b, 1e-6);
    if (n && net->c.rotary) y = ma_rope(c, y, net->grid.cosine, net->grid.sine, net->text_length);
    return y;
}

enum { SHIFT, SCALE, GATE, TEXT_SHIFT, TEXT_SCALE, TEXT_GATE, ROWS }; /* of a block's modulation */

/* The six rows of modulation.                                                    time (B, time) → (B, 6, C) */
static ma_tensor *modulation(ma_ctx *c, const linear *l, ma_tensor *time, int64_t rows, int64_t width) {
    ma_tensor *m = apply(c, l, time, MA_NONE);
    return m ? ma_view(c, m, MA_SHAPE(m->n[0], rows, width)) : NULL;
}

/* One block.                                       in[0] joint tokens (B,L,C), in[1] silu of the time (B, time) */
static ma_tensor *run_block(ma_ctx *c, const void *self, ma_tensor **in) {
    const block *b = self;
    const cogvideox *net = b->net;
    const int64_t text = net->text_length, width = net->width;
    const double eps = net->c.norm_eps;
    ma_tensor *x = in[0], *m, *y, *q, *k, *v;

    m = modulation(c, &b->mod1, in[1], ROWS, width);
    y = ma_modulate(c, x, b->norm1.g, b->norm1.b, m, eps, text, SHIFT, SCALE, TEXT_SHIFT, TEXT_SCALE); /* (B,L,C) */
    q = heads_of(c, b, &b->q, &b->norm_q, y);                                                          /* (B,L,H,D) */
    k = heads_of(c, b, &b->k, &b->norm_k, y);
    v = heads_of(c, b, &b->v, NULL, y);
    y = ma_attention(c, q, k, v, 1 / sqrt(net->c.head_dim));                                           /* (B,L,H,D) */
    if (!y) return NULL;
    y = apply(c, &b->out, ma_view(c, y, MA_SHAPE(x->n[0], x->n[1], width)), MA_NONE);                  /* (B,L,C) */
    x = ma_gate(c, x, y, m, text, GATE, TEXT_GATE);

    m = modulation(c, &b->mod2, in[1], ROWS, width);
    y = ma_modulate(c, x, b->norm2.g, b->norm2.b, m, eps, text, SHIFT, SCALE, TEXT_SHIFT, TEXT_SCALE);
    y = apply(c, &b->up, y, MA_GELU_TANH);                                                             /* (B,L,4C) */
    y = apply(c, &b->down, y, MA_NONE);                                                                /* (B,L,C) */
    return ma_gate(c, x, y, m, text, GATE, TEXT_GATE);
}

/* Text, then patches with their positions.      x (B,F,h,w,in), text (B,T,E) or NULL → (B, T + F·h/p·w/p, C) */
static ma_tensor *embed_tokens(ma_ctx *c, const cogvideox *net, ma_tensor *x, ma_tensor *text) {
    const int64_t p = net->c.patch;
    x = ma_conv(c, x, net->patch.w, net->patch.b, MA_WINDOW(1, p, p, 0, 0, 0), MA_NONE); /* (B,F,h/p,w/p,C) */
    if (!x) return NULL;
    x = ma_view(c, x, MA_SHAPE(x->n[0], x->n[1] * x->n[2] * x->n[3], net->width));
    if (net->grid.position) x = ma_add(c, x, net->grid.position);
    if (!text) return x;
    return ma_concat(c, (ma_tensor *[]){apply(c, &net->text, text, MA_NONE), x}, 2, 1);
}

ma_tensor *cogvideox_forward(ma_ctx *c, cogvideox *net, ma_tensor *x, const double *t, ma_tensor *text,
                             const cogvideox_run *run, ma_tensor **hidden) {
    if (!x || ma_failed(c)) return NULL;
    const int64_t p = net->c.patch, batch = x->n[0], frames = x->n[1], height = x->n[2] / p, width = x->n[3] / p;
    if (x->nd != 5 || x->n[2] % p || x->n[3] % p || x->n[4] != net->c.in_channels || run->hidden_after > net->c.layers) {
        char shape[160];
        ma_fail(ma_ctx_err(c), MA_SHAPE, "cogvideox: latents of %s (%d channels, patches of %d, %d layers)",
                ma_shape_text(shape, x->nd, x->n), net->c.in_channels, net->c.patch, net->c.layers);
        return NULL;
    }
    if (prepare_grid(c, net, frames, height, width)) return NULL;
    net->text_length = text ? text->n[1] : 0;
    ma_tensor *times = run->times ? run->times : cogvideox_times(c, net, t, batch);
    ma_tensor *in[2] = {embed_tokens(c, net, x, text), embed_time(c, net, times)};
    const bool lean = run->checkpoint || !ma_recorded(c); /* without a backward pass nothing in a block need stay */
    for (int k = 0; k < net->c.layers; k++) {
        in[0] = lean ? ma_checkpoint(c, run_block, &net->blocks[k], in, 2) : run_block(c, &net->blocks[k], in);
        if (!in[0]) return NULL;
        if (hidden && run->hidden_after == k + 1) {
            *hidden = ma_slice(c, in[0], 1, net->text_length, frames * height * width);
            if (*hidden) *hidden = ma_view(c, *hidden, MA_SHAPE(batch, frames, height, width, net->width));
        }
    }
    ma_tensor *y = ma_slice(c, in[0], 1, net->text_length, frames * height * width);        /* (B,F·h·w,C) */
    y = ma_layer_norm(c, y, net->norm_final.g, net->norm_final.b, net->c.norm_eps);
    y = ma_modulate(c, y, net->norm_out.g, net->norm_out.b, modulation(c, &net->mod_out, in[1], 2, net->width),
                    net->c.norm_eps, 0, 0, 1, 0, 0);
    y = apply(c, &net->out, y, MA_NONE);                                                    /* (B,F·h·w,out·p·p) */
    if (!y) return NULL;
    return ma_unpatch(c, ma_view(c, y, MA_SHAPE(batch, frames, height, width, y->n[2])), p); /* (B,F,h·p,w·p,out) */
}

/* ---- Pζ ---- */

struct projector {
    ma_tensor *w[3], *b[3];
    int64_t target[3];
    int64_t stride; /* of the convolution in space: 3, or 1 where the grids are not as in the paper */
};

projector *projector_make(ma_params *p, int64_t width, int64_t out, const int64_t hidden[3], const int64_t target[3]) {
    projector *j = calloc(1, sizeof *j);
    if (!j) {
        ma_fail(ma_ctx_err(p->ctx), MA_MEMORY, "projector: out of memory");
        return NULL;
    }
    memcpy(j->target, target, sizeof j->target);
    bool as_paper = target[0] == 2 * (hidden[0] - 1) && 3 * target[1] == hidden[1] && 3 * target[2] == hidden[2];
    j->stride = as_paper ? 3 : 1;
    j->w[0] = ma_param(p, MA_CONV3D, MA_INIT_FAN, MA_SHAPE(256, 3, 1, 1, width), "projector.0.weight");
    j->b[0] = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(256), "projector.0.bias");
    j->w[1] = ma_param(p, MA_CONV3D, MA_INIT_FAN, MA_SHAPE(out, 1, 1, 1, 256), "projector.2.weight");
    j->b[1] = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(out), "projector.2.bias");
    j->w[2] = ma_param(p, MA_CONV2D, MA_INIT_FAN, MA_SHAPE(out, 1, 3, 3, out), "projector.down.weight");
    j->b[2] = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(out), "projector.down.bias");
    return j;
}

void projector_free(projector *j) {
    free(j);
}

ma_tensor *projector_forward(ma_ctx *c, const projector *j, ma_tensor *y) {
    if (!y) return NULL;
    const int64_t *n = j->target, s = j->stride, pad = s == 1;
    if (y->n[1] > 1) y = ma_slice(c, y, 1, 1, y->n[1] - 1);                                 /* Y (B,12,30,45,1920) */
    y = ma_conv(c, y, j->w[0], j->b[0], MA_WINDOW(1, 1, 1, 1, 0, 0), MA_SILU);              /*   (B,12,30,45,256) */
    y = ma_conv(c, y, j->w[1], j->b[1], MA_WINDOW(1, 1, 1, 0, 0, 0), MA_NONE);              /*   (B,12,30,45,64) */
    y = ma_resize(c, y, n[0], s * n[1], s * n[2], false);                                   /*   (B,24,30,45,64) */
    return ma_conv(c, y, j->w[2], j->b[2], MA_WINDOW(1, s, s, 0, pad, pad), MA_NONE);       /* Z (B,24,10,15,64) */
}
