/* latents: as files hold them, (B,F,C,h,w), which is how diffusers has them; networks here read (F,h,w,C). */
#ifndef MA_LATENTS_H
#define MA_LATENTS_H

#include "../npy.h"

/* shape: 1, F, h, w, C. Of the file, 1 or `many` such; how many is left in *got. ma_release; NULL: failed. */
float *latents_read(const char *path, const int64_t shape[5], int64_t many, int64_t *got, ma_err *);
/* One as .npy, f32 (1,F,C,h,w), added to out. */
int latents_write(const float *x, const int64_t shape[5], ma_buf *out, ma_err *);

#endif
