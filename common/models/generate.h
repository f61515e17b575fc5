/* generate: noise to a clip: the denoising loop with guidance, and the codec's way back to frames.
 *
 *     generator *g = generator_open(device, plan, type, dir, NULL, &pipeline, &options, &err);
 *     generator_denoise(g, key, &text, &negative, NULL, NULL, x, step, self, &err);    x (F,h,w,C), on the host
 *     generator_decode(g, x, frames, self, &err);                         frames(self, rgb, n, …) as they come
 *     generator_close(g);
 *
 * Transformer and codec share one context, so that what one needs for activations serves the other. Where memory does
 * not suffice, found out by a plan before anything is loaded, then in this order: guidance takes two passes instead of
 * one of two; frames are decoded in tiles; each of the two networks is loaded when its turn comes, and freed after it.
 * Only the tiles change the result, at their seams. */
#ifndef MA_GENERATE_H
#define MA_GENERATE_H

#include "pipeline.h"

typedef enum { GENERATE_AUTO, GENERATE_ON, GENERATE_OFF } generate_choice;

typedef struct generate_options {
    int64_t shape[5]; /* of the latent: 1, F, h, w, C */
    int64_t text;     /* tokens of the texts that will come, for the plan; 0: none */
    ma_sampler sampler;
    int steps;
    double guidance;        /* 1 or less: none */
    bool dynamic;           /* ma_dynamic_guidance */
    generate_choice paired; /* with and without the text in one batch */
    generate_choice tiles;  /* frames decoded in tiles */
    uint64_t seed;
    const char *lora; /* adapters, for lora_open; NULL: none */
    double strength;  /* with which they are merged into the transformer */
} generate_options;

typedef struct generator generator;
/* Weights are opened and their names and shapes checked, the way is chosen, nothing is loaded yet. plan: a plan of the
 * device, or the device, where that is one; used here only. transformer: as for ma_pipeline_weights. The device has no
 * other context of size. NULL: failed. */
generator *generator_open(ma_device *, ma_device *plan, ma_type, const char *dir, const char *transformer,
                          const ma_pipeline *, const generate_options *, ma_err *);
void generator_close(generator *);

/* "guidance in one pass, decoded whole". Returns out. */
const char *generator_way(const generator *, char out[160]);
/* Loads what comes first; else the first clip does. */
int generator_load(generator *, ma_err *);
/* On a plan device: loads and goes through a step and a piece of the decoder, for generator_context to tell of. */
int generator_rehearse(generator *, ma_err *);
ma_ctx *generator_context(const generator *);    /* of what is loaded; NULL: nothing is */
int64_t generator_parameters(const generator *); /* of the transformer; 0: it is not loaded */
/* Weights, for fingerprints: of the transformer, of the VAE (NULL: pixels). */
const ma_weights *generator_weights(const generator *, bool codec);

/* x (F,h,w,C): from noise to the latent. text, none: (L,E) embeddings of prompt and negative prompt; text NULL: no text
 * at all. The noise is start, or where that is NULL drawn: element i of x is number i of the normal stream (seed, key,
 * 0, MA_RNG_NOISE). What the sampler adds in step k, from 0, is drawn the same way from (seed, key, k+1, …), or taken
 * from drawn + k·count, where given. step(self, k): before step k; -1 stops. A latent that is not finite: MA_NOTFINITE,
 * names the key. */
int generator_denoise(generator *, const char *key, const ma_array *text, const ma_array *none, const float *start,
                      const float *drawn, float *x, int (*step)(void *self, int k), void *self, ma_err *);
/* The frames of a latent, the first ones first: rgb (n,H,W,3) in ±1 but for overshoot. While n frames are handed out
 * the device works on the next. */
int generator_decode(generator *, const float *x, int (*frames)(void *self, const float *rgb, int64_t n, ma_err *),
                     void *self, ma_err *);

#endif
