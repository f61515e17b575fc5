/* pipeline: a text-to-video folder in diffusers' layout: what its config files say.
 *     DIR/transformer/config.json   DIR/scheduler/scheduler_config.json   DIR/vae/config.json   DIR/model_index.json
 * The codec is named by vae/config.json: AutoencoderKLCogVideoX, or MaPixelCodec with its patch_size (pixel.h). */
#ifndef MA_PIPELINE_H
#define MA_PIPELINE_H

#include "../schedule.h"
#include "cogvideox.h"

typedef struct ma_pipeline {
    cogvideox_config transformer;
    ma_schedule schedule;
    int64_t pixel;   /* P of the pixel codec; 0: a VAE */
    double scaling;  /* latents are multiplied by it before diffusion */
} ma_pipeline;

int ma_pipeline_read(const char *dir, ma_pipeline *, ma_err *);
/* The config files, as a folder that ma_pipeline_read takes; pixel codec only. Weights are not its business. */
int ma_pipeline_write(const char *dir, const ma_pipeline *, ma_err *);

/* Opens DIR/transformer's weights. transformer: another folder to take it from, or NULL. */
ma_weights *ma_pipeline_weights(const char *dir, const char *transformer, ma_err *);

#endif
