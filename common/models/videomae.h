/* videomae: VideoMAE and VideoMAEv2 encoders (Tong et al. 2022, Wang et al. 2023), any size, read off the weights. */
#ifndef MA_VIDEOMAE_H
#define MA_VIDEOMAE_H

#include "../ops.h"
#include "../param.h"

typedef struct videomae videomae;

typedef struct videomae_size {
    int depth, width, heads, patch, tubelet;
} videomae_size;

/* From OpenGVLab's names (blocks.N.attn.qkv.weight; prefix "", "model.", "encoder." or "module.") or transformers'
 * (encoder.layer.N.attention.attention.query.weight; prefix "" or "videomae."). heads 0: what the published sizes have,
 * else width/64. train: parameters are leaves. NULL: the context has failed. Valid as long as the context. */
videomae *videomae_load(ma_ctx *, const ma_weights *, int heads, bool train);
/* Drawn at random, for trials and tests: OpenGVLab's form. heads 0 as above. */
videomae *videomae_random(ma_ctx *, const videomae_size *, uint64_t seed, bool train);
void videomae_free(videomae *);
videomae_size videomae_sizes(const videomae *);
int64_t videomae_parameters(const videomae *);

/* Tokens of the last block: before OpenGVLab's fc_norm, after transformers' final `layernorm` where the file has one.
 * x (B,T,H,W,3), normalised by the caller, T, H, W multiples of tubelet and patch
 * → (B, T/tubelet, H/patch, W/patch, width). Positions are a sin-cos table over a grid's flat index. OpenGVLab's form
 * makes it for the grid of pretraining (16 frames of 224×224) and interpolates, bicubic in space and linear in time;
 * transformers' form makes it for the grid at hand. They agree where the grids do. */
ma_tensor *videomae_forward(ma_ctx *, const videomae *, ma_tensor *x);

extern const float videomae_mean[3], videomae_std[3]; /* ImageNet, on [0,1] */

#endif
