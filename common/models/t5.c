/* t5: token embeddings, then blocks of attention and feed-forward behind RMS norms, then a last norm.
 *
 * Limits: no mask (none is used for CogVideoX); feed_forward_proj gated-gelu and relu; no gradients.
 * Traps: scores are not scaled by 1/√d; the position bias of block 0 serves all blocks; norms subtract no mean; the
 * inner width heads·head_dim need not be the model's. The bucket of a distance is computed in fp32, as the reference
 * does: in double, distances on an edge fall to the other side. The residual stream of the XXL passes 65,504: it is f32
 * in every type, and what is added to it never is in 16 bits, so that fp16 needs none of the reference's clamps. */
#include "t5.h"

#include "../config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- configuration ---- */

void t5_xxl(t5_config *c) {
    *c = (t5_config){.width = 4096,
                     .heads = 64,
                     .head_dim = 64,
                     .hidden = 10240,
                     .layers = 24,
                     .vocab = 32128,
                     .buckets = 32,
                     .max_distance = 128,
                     .eps = 1e-6,
                     .gated = true};
}

int t5_config_read(const char *path, t5_config *c, ma_err *e) {
    static const char *const models[] = {"t5", NULL}, *const projections[] = {"relu", "gated-gelu", NULL};
    /* Absent keys: transformers' defaults, the first T5's small size. */
    *c = (t5_config){512, 8, 64, 2048, 6, 32128, 32, 128, 1e-6, false};
    const ma_setting settings[] = {
        {"d_model", MA_SET_INT, &c->width, 1, 65536},
        {"num_heads", MA_SET_INT, &c->heads, 1, 1024},
        {"d_kv", MA_SET_INT, &c->head_dim, 1, 128},
        {"d_ff", MA_SET_INT, &c->hidden, 1, 1 << 20},
        {"num_layers", MA_SET_INT, &c->layers, 1, 1024},
        {"vocab_size", MA_SET_INT, &c->vocab, 2, 1 << 22},
        {"relative_attention_num_buckets", MA_SET_INT, &c->buckets, 4, 65536},
        {"relative_attention_max_distance", MA_SET_INT, &c->max_distance, 2, 65536},
        {"layer_norm_epsilon", MA_SET_REAL, &c->eps, 0, 1},
    };
    cJSON *json = ma_config_open(path, e);
    if (!json) return -1;
    int projection = ma_config_word(json, "feed_forward_proj", "relu", projections, path, e), rc = -1;
    if (projection >= 0 && ma_config_word(json, "model_type", "t5", models, path, e) >= 0)
        rc = ma_config_read(json, settings, sizeof settings / sizeof *settings, path, e);
    c->gated = projection == 1;
    if (!rc && (c->buckets % 4 || c->max_distance <= c->buckets / 4))
        rc = ma_fail(e, MA_UNSUPPORTED, "%s: %d relative_attention_num_buckets do not go with a distance of %d", path,
                     c->buckets, c->max_distance);
    cJSON_Delete(json);
    return rc;
}

/* ---- parameters ---- */

typedef struct block {
    ma_tensor *norm1, *q, *k, *v, *o;      /* (D), (H·d, D) three times, (D, H·d) */
    ma_tensor *norm2, *wi, *gated_by, *wo; /* (D), (F, D), (F, D) or NULL, (D, F) */
} block;

struct t5 {
    t5_config c;
    ma_params *params;
    ma_tensor *table; /* (V, D) */
    block *blocks;
    ma_tensor *norm;  /* (D) */
    float *distances; /* (buckets, H), on the host */
};

static void make_block(ma_params *p, const t5_config *c, int index, block *b) {
    const int64_t width = c->width, inner = (int64_t)c->heads * c->head_dim, hidden = c->hidden;
    const struct {
        ma_tensor **to;
        const char *part;
        int64_t out, in; /* in 0: a norm's gain */
    } parts[] = {
        {&b->norm1, "0.layer_norm", width, 0},
        {&b->q, "0.SelfAttention.q", inner, width},
        {&b->k, "0.SelfAttention.k", inner, width},
        {&b->v, "0.SelfAttention.v", inner, width},
        {&b->o, "0.SelfAttention.o", width, inner},
        {&b->norm2, "1.layer_norm", width, 0},
        {&b->wi, c->gated ? "1.DenseReluDense.wi_0" : "1.DenseReluDense.wi", hidden, width},
        {&b->gated_by, c->gated ? "1.DenseReluDense.wi_1" : NULL, hidden, width},
        {&b->wo, "1.DenseReluDense.wo", width, hidden},
    };
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        if (!parts[k].part) continue;
        const int64_t n[2] = {parts[k].out, parts[k].in};
        *parts[k].to = ma_param(p, MA_PLAIN, n[1] ? MA_INIT_FAN : MA_INIT_ONE, n[1] ? 2 : 1, n,
                                "encoder.block.%d.layer.%s.weight", index, parts[k].part);
    }
}

/* The bias by bucket is wanted on the host, rounded as the parameter is. */
static void load_distances(t5 *net) {
    ma_ctx *c = net->params->ctx;
    int64_t buckets = net->c.buckets, heads = net->c.heads;
    ma_tensor *t = ma_param(net->params, MA_PLAIN, MA_INIT_SMALL, MA_SHAPE(buckets, heads),
                            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
    net->distances = ma_alloc((size_t)(buckets * heads), sizeof *net->distances);
    if (!net->distances)
        ma_fail(ma_ctx_err(c), MA_MEMORY, "t5: out of memory");
    else
        ma_get(c, t, net->distances);
}

t5 *t5_load(ma_ctx *ctx, const ma_weights *from, const t5_config *config, uint64_t seed) {
    static const char *const ignore[] = {"decoder.", "lm_head.", "encoder.embed_tokens.", "shared.", NULL};
    t5 *net = ma_alloc(1, sizeof *net);
    if (net) net->params = ma_params_new(ctx, from, false, seed);
    if (net) net->blocks = ma_alloc((size_t)config->layers, sizeof *net->blocks);
    if (!net || !net->params || !net->blocks) {
        ma_fail(ma_ctx_err(ctx), MA_MEMORY, "t5: out of memory");
        t5_free(net);
        return NULL;
    }
    ma_params *p = net->params;
    net->c = *config;
    /* One table under two names; files hold one or both. */
    bool own = ma_param_entry(p, "encoder.embed_tokens.weight") && !ma_param_entry(p, "shared.weight");
    net->table = ma_param(p, MA_PLAIN, MA_INIT_SMALL, MA_SHAPE(config->vocab, config->width),
                          own ? "encoder.embed_tokens.weight" : "shared.weight");
    load_distances(net);
    for (int k = 0; k < config->layers && !ma_failed(ctx); k++) make_block(p, config, k, &net->blocks[k]);
    net->norm = ma_param(p, MA_PLAIN, MA_INIT_ONE, MA_SHAPE(config->width), "encoder.final_layer_norm.weight");
    if (!ma_failed(ctx)) ma_params_end(p, ignore);
    if (!ma_failed(ctx)) return net;
    t5_free(net);
    return NULL;
}

void t5_free(t5 *net) {
    if (!net) return;
    ma_params_free(net->params);
    ma_release(net->distances);
    ma_release(net->blocks);
    ma_release(net);
}

int64_t t5_parameters(const t5 *net) {
    return ma_params_count(net->params);
}

/* ---- positions ---- */

/* Half of the buckets for keys behind the query, half for those up to it; in each, half for the distances themselves,
 * half for ever wider ranges, to max_distance. */
static int bucket_of(const t5_config *c, int64_t apart) {
    int half = c->buckets / 2, exact = half / 2, far = (int)(apart < 0 ? -apart : apart);
    if (far >= exact) {
        float ratio = logf((float)far / (float)exact) / (float)log((double)c->max_distance / exact);
        far = exact + (int)(ratio * (float)(half - exact));
        if (far >= half) far = half - 1;
    }
    return far + (apart > 0 ? half : 0);
}

/* What ma_attention_relative adds, for texts of l tokens. */
static ma_tensor *position_bias(ma_ctx *c, const t5 *net, int64_t l) { // (H, 2L-1)
    int64_t heads = net->c.heads, wide = 2 * l - 1;
    float *bias = ma_alloc((size_t)heads, (size_t)wide * sizeof *bias);
    if (!bias) ma_fail(ma_ctx_err(c), MA_MEMORY, "t5: no memory for the positions of %lld tokens", (long long)l);
    for (int64_t k = 0; bias && k < wide; k++)
        for (int64_t h = 0; h < heads; h++)
            bias[h * wide + k] = net->distances[bucket_of(&net->c, k - (l - 1)) * heads + h];
    ma_tensor *t = bias ? ma_input_f32(c, bias, MA_SHAPE(heads, wide)) : NULL;
    ma_release(bias);
    return t;
}

/* ---- the network ---- */

/* One token's number a place, as f32: whole numbers to 16 million are exact. */
static ma_tensor *embed(ma_ctx *c, const t5 *net, const int32_t *ids, int64_t batch, int64_t length) { // f32 (B,L,D)
    float *at = ma_alloc((size_t)batch, (size_t)length * sizeof *at);
    bool good = at;
    if (!at) ma_fail(ma_ctx_err(c), MA_MEMORY, "t5: no memory for %lld texts", (long long)batch);
    for (int64_t k = 0; good && k < batch * length; k++) {
        good = ids[k] >= 0 && ids[k] < net->c.vocab;
        at[k] = (float)ids[k];
        if (!good)
            ma_fail(ma_ctx_err(c), MA_SHAPE, "t5: token %d is not one of %d: another model's tokenizer?", (int)ids[k],
                    net->c.vocab);
    }
    ma_tensor *x = good ? ma_embed(c, net->table, ma_input_f32(c, at, MA_SHAPE(batch, length))) : NULL;
    ma_release(at);
    return x;
}

/* x, f32 (B,L,D), in place. */
static void add_attention(ma_ctx *c, const t5 *net, const block *b, ma_tensor *bias, ma_tensor *x) {
    int64_t batch = x->n[0], length = x->n[1], heads = net->c.heads, d = net->c.head_dim;
    ma_tensor *n = ma_rms_norm(c, x, b->norm1, net->c.eps); // (B,L,D)
    ma_tensor *q = ma_linear(c, n, b->q, NULL, MA_NONE);    // (B,L,H·d)
    ma_tensor *k = ma_linear(c, n, b->k, NULL, MA_NONE);
    ma_tensor *v = ma_linear(c, n, b->v, NULL, MA_NONE);
    q = ma_view(c, q, MA_SHAPE(batch, length, heads, d));
    k = ma_view(c, k, MA_SHAPE(batch, length, heads, d));
    v = ma_view(c, v, MA_SHAPE(batch, length, heads, d));
    ma_tensor *y = ma_attention_relative(c, q, k, v, bias, 1); // (B,L,H,d)
    ma_linear_add(c, x, ma_view(c, y, MA_SHAPE(batch, length, heads * d)), b->o, NULL);
}

static void add_feed_forward(ma_ctx *c, const t5 *net, const block *b, ma_tensor *x) {
    ma_tensor *n = ma_rms_norm(c, x, b->norm2, net->c.eps);                             // (B,L,D)
    ma_tensor *h = ma_linear(c, n, b->wi, NULL, net->c.gated ? MA_GELU_TANH : MA_RELU); // (B,L,F)
    if (b->gated_by) h = ma_mul_(c, h, ma_linear(c, n, b->gated_by, NULL, MA_NONE));
    ma_linear_add(c, x, h, b->wo, NULL);
}

ma_tensor *t5_forward(ma_ctx *c, const t5 *net, const int32_t *ids, int64_t batch, int64_t length) {
    ma_tensor *bias = position_bias(c, net, length);
    ma_tensor *x = embed(c, net, ids, batch, length);
    ma_mark_t m = ma_mark(c);
    for (int k = 0; x && k < net->c.layers; k++) {
        add_attention(c, net, &net->blocks[k], bias, x);
        add_feed_forward(c, net, &net->blocks[k], x);
        ma_rewind(c, m);
    }
    return ma_rms_norm(c, x, net->norm, net->c.eps);
}
