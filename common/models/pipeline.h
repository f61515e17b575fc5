/* pipeline: a text-to-video folder in diffusers' layout: what its config files say, its weights, its prompts'
 * embeddings. DIR/model_index.json, transformer/, vae/, scheduler/scheduler_config.json, text_encoder/,
 * tokenizer/spiece.model The codec is named by vae/config.json: AutoencoderKLCogVideoX, or MaPixelCodec with its
 * patch_size (pixel.h). A folder without text_encoder/config.json embeds no text. Messages name the file and the key.
 */
#ifndef MA_PIPELINE_H
#define MA_PIPELINE_H

#include "../schedule.h"
#include "cogvideox.h"
#include "t5.h"
#include "vae.h"

typedef struct ma_pipeline {
    cogvideox_config transformer;
    ma_schedule schedule;
    int64_t pixel;  /* P of the pixel codec; 0: a VAE */
    double scaling; /* latents are multiplied by it before diffusion */
    vae_config vae; /* where pixel is 0 */
    bool reads;     /* it has a text encoder: */
    t5_config text;
} ma_pipeline;

int ma_pipeline_read(const char *dir, ma_pipeline *, ma_err *);
/* Takes the transformer's settings from another folder, where that has a config.json. */
int ma_pipeline_swap(const char *transformer, ma_pipeline *, ma_err *);
/* The config files, as a folder that ma_pipeline_read takes; pixel codec only. Weights are not its business. */
int ma_pipeline_write(const char *dir, const ma_pipeline *, ma_err *);

/* Pixels to a latent along height and width. */
int64_t ma_pipeline_scale(const ma_pipeline *);
/* The least latent frames that make so many frames, and how many so many make: the VAE's are 1, 8, 9, 16, 17 … */
int64_t ma_pipeline_latents(const ma_pipeline *, int64_t frames);
int64_t ma_pipeline_frames(const ma_pipeline *, int64_t latents);

/* Opens DIR/transformer's weights. transformer: another folder or file to take them from, or NULL. */
ma_weights *ma_pipeline_weights(const char *dir, const char *transformer, ma_err *);
/* Opens DIR/PART's: vae, text_encoder. */
ma_weights *ma_pipeline_part(const char *dir, const char *part, ma_err *);
/* What training left beside the transformer (VideoREPA's projector): prefixes for ma_params_end, NULL at the end; and
 * a line that names what of it is there, NULL where nothing is. free() */
extern const char *const ma_pipeline_beside[];
char *ma_pipeline_extra(const char *transformer, const ma_weights *);
/* A hash that tells weights apart without reading all of them: names, types, shapes, and 12 KB of every array; of a
 * LoRA its metadata, too, where alpha is. */
void ma_pipeline_mark(const ma_weights *, char hex[65]);

/* A prompt on its way to its embedding. */
typedef struct ma_embedded {
    const char *text;
    ma_array at;    /* (max_text, text_embed_dim) of the type asked for; ma_array_free */
    int64_t tokens; /* of the whole text; more than max_text: it was cut */
} ma_embedded;
/* Embeds n prompts by DIR's tokenizer and text encoder, in a context of its own that is gone afterwards. memory: what
 * it took; may be NULL. step(self, done): after loading, with 0, and after each batch; -1 stops. */
int ma_pipeline_embed(ma_device *, ma_type, const char *dir, const ma_pipeline *, ma_embedded *, int n,
                      int (*step)(void *self, int done), void *self, ma_memory *memory, ma_err *);

#endif
