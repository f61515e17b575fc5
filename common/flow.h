/* flow: what is computed of optical flow on the host: where two flows agree, and how far one is from another. */
#ifndef MA_FLOW_H
#define MA_FLOW_H

#include "base.h"

/* Whether there and back leads home: with b taken where pixel x goes, at x + f(x), bilinearly,
 *     |f + b|² < 0.01·(|f|² + |b|²) + 0.5
 * (Sundaram, Brox, Keutzer, ECCV 2010, section 5). valid (h,w): 1, or 0 where it does not, or x + f(x) lies outside:
 * the pixel is occluded, or a flow is wrong. f, b (h,w,2), in pixels. */
void ma_flow_consistent(const float *f, const float *b, int64_t h, int64_t w, uint8_t *valid);

/* Sums over pixels of end-point error, the distance between estimate and truth. */
typedef struct ma_flow_error {
    double sum;
    int64_t pixels, over1, over3; /* counted; with an error of more than 1 and 3 pixels */
} ma_flow_error;

/* Adds n pixels. valid (n): those that count, or NULL: all. A NaN counts as more than 3 pixels and makes the sum NaN.
 */
void ma_flow_compare(const float *estimate, const float *truth, const uint8_t *valid, int64_t n, ma_flow_error *);

#endif
