/* figures: general figures of a clip's motion, from its optical flow, by the names that VBench gives them. */
#ifndef MA_FIGURES_H
#define MA_FIGURES_H

#include "base.h"

typedef struct ma_flow_clip {
    const uint8_t *rgb; // (frames,height,width,3)
    int64_t frames, height, width;
    double fps;
    const float *flow; // (pairs,h,w,2): u, v in pixels of this grid, which covers the picture
    int64_t pairs, h, w;
    int64_t skip, stride; /* pair k is from frame skip + k·stride to the one stride later, which is there */
} ma_flow_clip;

typedef struct ma_figures {
    double smoothness; /* 1 - flow-warping error: mean |difference|, 0..1, of a frame and the next looked up by flow */
    bool dynamic;      /* VBench's dynamic degree of one clip: whether it moves enough */
} ma_figures;

/* -1: out of memory. */
int ma_figures_of(const ma_flow_clip *, ma_figures *, ma_err *);

#endif
