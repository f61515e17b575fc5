/* vae: CogVideoX's 3-D causal autoencoder (Yang et al. 2024, section 2.1), encoder and decoder, a few frames at a time.
 * Source: diffusers AutoencoderKLCogVideoX. For running only: no gradient.
 *
 *     vae_stream *s = vae_open(ctx, net, VAE_DECODER, (int64_t[]){1, 13, 60, 90}, NULL);
 *     while ((n = vae_wants(s)) > 0) {                                   n latent frames are next
 *         ma_mark_t m = ma_mark(ctx);
 *         ma_tensor *rgb = vae_next(s, ma_slice(ctx, latents, 1, at, n));   (1,T,480,720,3), in ±1
 *         …read it…
 *         ma_rewind(ctx, m);
 *         at += n;
 *     }
 *     vae_close(s);
 *
 * The result depends on how a clip is cut, as group norm takes its moments over what it sees at a time: 8 frames are
 * encoded, 2 latent frames decoded at a time, and what does not divide goes into the first piece, as in diffusers.
 * What a convolution needs of the frames before is kept on the activation stack from vae_open to vae_close.
 */
#ifndef MA_VAE_H
#define MA_VAE_H

#include "../ops.h"
#include "../param.h"

enum { VAE_BLOCKS = 8, VAE_LAYERS = 64 /* resnets a block */ }; /* at most */

typedef struct vae_config {
    int blocks;                      /* 4: all but the last halve height and width */
    int channels[VAE_BLOCKS];        /* 128 256 256 512 */
    int latent_channels;             /* C: 16 */
    int layers_per_block;            /* 3; the decoder has one more */
    int groups;                      /* 32 */
    int temporal_compression;        /* 4: a power of two */
    int sample_height, sample_width; /* 480, 720: a tile is half of each */
    double norm_eps;                 /* 1e-6 */
    double scaling_factor;           /* 1.15258426; 0.7 in the 5B: the caller's to apply */
    bool invert_scale_latents;       /* of the image-to-video folders: the caller's */
} vae_config;

void vae_2b(vae_config *);
int vae_config_read(const char *config_json, vae_config *, ma_err *);
int64_t vae_scale(const vae_config *); /* pixels to a latent, in height and width: 8 */
/* Latent frames of so many frames, and frames of so many latent ones, cut as described above. */
int64_t vae_latent_frames(const vae_config *, int64_t frames);
int64_t vae_frames(const vae_config *, int64_t latent_frames);

typedef enum { VAE_ENCODER = 1, VAE_DECODER = 2, VAE_BOTH = 3 } vae_part;

typedef struct vae vae;
/* Declares the parameters by their published names and ends the list (ma_params_end), the other part's names left
 * out. NULL: the context has failed. */
vae *vae_make(ma_params *, const vae_config *, vae_part);
void vae_free(vae *);

/* Tiles in space: each goes through the network alone, neighbours are blended over a sixth of a tile's height and a
 * fifth of its width. Sizes in pixels; multiples of 48 and 40 always fit, others where the parts come out even. */
typedef struct vae_tiles {
    int64_t height, width;
} vae_tiles;
vae_tiles vae_default_tiles(const vae_config *); /* half the sample size, as in diffusers */

/* One clip, or a batch of them, on its way through one part. n: (B,T,H,W) of pixels to encode, of latents to decode.
 * tiles NULL, or no smaller than the frame: the frame as a whole. One stream at a time; what is made on the activation
 * stack after vae_open is gone with vae_close. NULL: the context has failed. */
typedef struct vae_stream vae_stream;
vae_stream *vae_open(ma_ctx *, const vae *, vae_part, const int64_t n[4], const vae_tiles *);
int64_t vae_wants(const vae_stream *); /* frames that vae_next takes next; 0: that was all */
/* x: pixels in ±1 (B,wanted,H,W,3) → (B,t,h,w,2C): means, then log-variances, unscaled (and not clamped);
 * or latents, divided by the scaling factor, (B,wanted,h,w,C) → (B,T,H,W,3), ±1 but for overshoot. The result is all
 * that is left on the stack above x. */
ma_tensor *vae_next(vae_stream *, ma_tensor *x);
void vae_close(vae_stream *);

/* The same for a whole clip that is on the device: (B,T,H,W,3) → (B,t,h,w,2C), and (B,t,h,w,C) → (B,T,H,W,3). */
ma_tensor *vae_encode(ma_ctx *, const vae *, ma_tensor *x, const vae_tiles *);
ma_tensor *vae_decode(ma_ctx *, const vae *, ma_tensor *z, const vae_tiles *);

/* Bytes of device memory that one part takes at the peak, weights included, by a dry run on a plan device. n as for
 * vae_open. 0: it cannot be done (e). */
size_t vae_bytes(ma_device *plan, ma_type, const vae_config *, vae_part, const int64_t n[4], const vae_tiles *,
                 ma_err *e);

#endif
