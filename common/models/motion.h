/* motion: MoAlign's motion subspace (METHOD, stage 1): projection Mψ of encoder tokens and flow decoder Fω. */
#ifndef MA_MOTION_H
#define MA_MOTION_H

#include "../ops.h"
#include "../param.h"

typedef struct motion_size {
    int64_t in, hidden, out; /* 768, 256, 64 */
    int64_t flow[3];         /* T, H, W of the decoder's output: 23, 128, 192 */
    bool bare;               /* no projection, M = S: the decoder alone, whose layers are `out` wide as ever */
} motion_size;
typedef struct motion motion;

/* size.in 0: read off the weights, and whether they have a projection. Names: projection.{0,2}.{weight,bias},
 * decoder.{0,2,4,6}.{weight,bias} (Conv3d layouts of PyTorch, nn.Sequential's numbers with SiLU between). */
motion *motion_make(ma_params *, const motion_size *);
void motion_free(motion *);
motion_size motion_sizes(const motion *);

ma_tensor *motion_project(ma_ctx *, const motion *, ma_tensor *s);  /* (B,T,H,W,in) → (B,T,H,W,out); bare: s itself */
ma_tensor *motion_decode(ma_ctx *, const motion *, ma_tensor *m);   /* M → flow (B,T-1 resized to flow[0..2],2) */

#endif
