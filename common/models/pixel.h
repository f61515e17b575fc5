/* pixel: the codec without an autoencoder. P×P pixels in ±1 are folded into 3·P·P channels, frame by frame; its
 * posterior has no spread. It stands where a VAE stands, so that the whole pipeline runs without one. */
#ifndef MA_PIXEL_H
#define MA_PIXEL_H

#include "../base.h"

/* rgb (T,H,W,3) → latent (2C,T,H/P,W/P), C = 3·P·P: means, then log-variances. Channel c·P·P + row·P + column. H and W
 * are multiples of P. */
void pixel_encode(const uint8_t *rgb, int64_t t, int64_t h, int64_t w, int64_t p, float *latent);
/* x (T,h,w,C), channels last as the networks have them → rgb (T,h·P,w·P,3) in ±1, not clamped. */
void pixel_decode(const float *x, int64_t t, int64_t h, int64_t w, int64_t p, float *rgb);

#define PIXEL_LOG_VARIANCE (-30.0f) /* the least that diffusers' posterior lets stand: none */

#endif
