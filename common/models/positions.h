/* positions: tables of positions for grids other than those of pretraining. */
#ifndef MA_POSITIONS_H
#define MA_POSITIONS_H

#include "../base.h"

/* LINEAR and CUBIC are PyTorch's interpolate, half pixels, edges repeated; SMOOTH is its bicubic with antialias. */
typedef enum { POSITIONS_LINEAR, POSITIONS_CUBIC, POSITIONS_SMOOTH } positions_way;

/* Resamples the middle of x (outer, in, inner) to (outer, out, inner). step: input positions an output one (in/out,
 * where the caller knows no better). Takes x over. NULL where x is, or out of memory. */
float *positions_resample(float *x, int64_t outer, int64_t in, int64_t out, int64_t inner, double step, positions_way);

#endif
