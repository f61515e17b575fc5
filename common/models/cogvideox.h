/* cogvideox: CogVideoX's MM-DiT (Yang et al. 2024), 2B style (sin-cos positions) and 5B style (rotary), and MoAlign's
 * projector Pζ. Source: diffusers CogVideoXTransformer3DModel. */
#ifndef MA_COGVIDEOX_H
#define MA_COGVIDEOX_H

#include "../ops.h"
#include "../param.h"
#include "lora.h"

typedef struct cogvideox_config {
    int heads, head_dim, layers;              /* 30, 64, 30 */
    int in_channels, out_channels;            /* 16, 16 */
    int time_embed_dim, text_embed_dim;       /* 512, 4096 */
    int sample_frames, sample_height, sample_width; /* 49, 60, 90: pixels in time, latents in space */
    int patch, temporal_compression, max_text;/* 2, 4, 226 */
    double spatial_scale, temporal_scale;     /* 1.875, 1.0 */
    double norm_eps;                          /* 1e-5 */
    bool rotary, flip_sin_to_cos;
    double freq_shift;
} cogvideox_config;

void cogvideox_2b(cogvideox_config *);
int cogvideox_config_read(const char *config_json, cogvideox_config *, ma_err *);
int cogvideox_config_write(const char *path, const cogvideox_config *, ma_err *); /* opens in diffusers */

typedef struct cogvideox cogvideox;
cogvideox *cogvideox_make(ma_params *, const cogvideox_config *);
void cogvideox_free(cogvideox *);
/* Gives the linear maps of its blocks the adapters that are meant for them; lora_end is called. -1: the context has
 * failed. */
int cogvideox_adapt(cogvideox *, lora *);

typedef struct cogvideox_run {
    int hidden_after;     /* hand out the hidden state after this block, counted from one; 0: none */
    bool checkpoint;      /* recompute blocks in the backward pass */
    ma_tensor *times;     /* cogvideox_times, for a forward pass that is to be replayed (ma_replay); NULL: made from t */
} cogvideox_run;
/* What the network takes of B timesteps: (B,width). */
ma_tensor *cogvideox_times(ma_ctx *, const cogvideox *, const double *t, int64_t batch);
/* x (B,F,h,w,in) noisy latents; t: B timesteps on the host; text (B,L,text_embed_dim) or NULL
 * → velocity (B,F,h,w,out); *hidden (B,F,h/2,w/2,width) video tokens, where asked. */
ma_tensor *cogvideox_forward(ma_ctx *, cogvideox *, ma_tensor *x, const double *t, ma_tensor *text,
                             const cogvideox_run *, ma_tensor **hidden);

/* Pζ: hidden tokens → the shape of the teacher's. Conv3d width→256 3×1×1, SiLU, Conv3d 256→out 1×1×1, time doubled by
 * trilinear interpolation, a 3×3 convolution of stride 3 in space; latent frame 0 dropped first. Where the teacher's grid
 * is another than (2(F-1), h/3, w/3), the resize goes straight to it and the last convolution has stride 1.
 * Names: projector.{0,2}.{weight,bias}, projector.down.{weight,bias}. */
typedef struct projector projector;
projector *projector_make(ma_params *, int64_t width, int64_t out, const int64_t hidden[3], const int64_t target[3]);
void projector_free(projector *);
ma_tensor *projector_forward(ma_ctx *, const projector *, ma_tensor *hidden); /* (B,F,h,w,width) → (B,T,H,W,out) */

#endif
