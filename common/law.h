/* law: laws of motion fitted to tracked balls: which motion that obeys the law comes closest to what was seen, and by
 * how much what was seen differs from it. */
#ifndef MA_LAW_H
#define MA_LAW_H

#include "track.h"
#include "world.h"

typedef struct ma_law_fit {
    double residual; /* pixels: root mean square distance of what was seen from what was fitted; the worst ball's */
    /* What was fitted for all balls: fall: gravity, heights / s²; pendulum: the time of a small swing, s; slide:
     * deceleration, shorter sides / s²; pass: nothing. */
    double number;
    double gain; /* fall, slide: how much of the most energy that the balls ever have comes from nowhere */
} ma_law_fit;

/* Of all balls together. Frames in which a ball is not seen, or too little of it, do not count. No balls: residual
 * 0. -1: out of memory. */
int ma_law_of(const ma_tracks *, ma_world_kind, ma_law_fit *, ma_err *);

/* The circle nearest to n points (Kåsa's): centre x, y, radius. Root mean square distance from it, in pixels, is
 * returned; INFINITY where the points do not tell one. */
double ma_circle_of(const double (*xy)[2], int64_t n, double circle[3]);

#endif
