/* t5: the encoder of T5 v1.1 (Raffel et al. 2020; Shazeer 2020 for the gates) and of the first T5, any size: a prompt's
 * tokens (tokenizer.h) to its text embedding. Source: transformers T5EncoderModel. Forward only. */
#ifndef MA_T5_H
#define MA_T5_H

#include "../ops.h"
#include "../param.h"

typedef struct t5_config {
    int width, heads, head_dim, hidden, layers; /* d_model 4096, num_heads 64, d_kv 64, d_ff 10240, num_layers 24 */
    int vocab;                                  /* 32128 */
    int buckets, max_distance;                  /* of relative positions: 32, 128 */
    double eps;                                 /* layer_norm_epsilon, 1e-6 */
    bool gated;                                 /* v1.1: gelu(x·wi_0)·(x·wi_1), gelu's tanh form; else relu(x·wi) */
} t5_config;

void t5_xxl(t5_config *); /* v1.1 XXL, that of CogVideoX */
int t5_config_read(const char *config_json, t5_config *, ma_err *);

typedef struct t5 t5;
/* from: a text_encoder folder's weights, or a whole T5's (its decoder is left alone); NULL: drawn. The weights may be
 * closed afterwards. NULL: the context has failed. */
t5 *t5_load(ma_ctx *, const ma_weights *from, const t5_config *, uint64_t seed);
void t5_free(t5 *); /* the tensors belong to the context */
int64_t t5_parameters(const t5 *);

/* ids (batch·length) on the host, each 0..vocab-1 → (batch, length, width) of the context's type. All tokens see all
 * others, padding too. */
ma_tensor *t5_forward(ma_ctx *, const t5 *, const int32_t *ids, int64_t batch, int64_t length);

#endif
