/* relations: the losses that align hidden tokens to a teacher's (METHOD, stage 2). One table says what each is: how much
 * a pair of tokens counts by its distance in frames, and the margin. */
#ifndef MA_RELATIONS_H
#define MA_RELATIONS_H

#include "../ops.h"

typedef enum { ALIGN_SOFT_TRD, ALIGN_TRD, ALIGN_TRD_SPATIAL, ALIGN_TRD_TEMPORAL, ALIGN_REPA, ALIGN_NONE } align_loss;
#define ALIGN_LOSSES "soft-trd|trd|trd-spatial|trd-temporal|repa|none"

/* z, m (B,F,h,w,D); m is the teacher, without a gradient. tau: frames; margin: of the trd kinds. → one element. */
ma_tensor *align_loss_of(ma_ctx *, align_loss, ma_tensor *z, ma_tensor *m, double tau, double margin);

#endif
