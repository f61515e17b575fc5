/* positions: see positions.h.
 *
 * Limits: CUBIC and LINEAR do not smooth, whatever the step, as in PyTorch.
 * Traps: the cubic kernel has a = -0.75 without antialias and -0.5 with it; only the latter cuts its weights at the
 * border and makes their sum one.
 */
#include "positions.h"

#include <math.h>

/* What an output position takes: n input positions, clamped to the grid one by one, and their weights. */
typedef struct taps {
    int64_t from;
    int n;
    float *weight;
} taps;

static double cubic(double x, double a) {
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? ((x - 5) * x + 8) * x * a - 4 * a : 0;
}

static void linear_taps(taps *t, double centre) {
    double x = centre < 0.5 ? 0 : centre - 0.5;
    t->from = (int64_t)x;
    t->n = 2;
    t->weight[1] = (float)(x - floor(x));
    t->weight[0] = 1 - t->weight[1];
}

static void cubic_taps(taps *t, double centre) {
    double x = centre - 0.5;
    t->from = (int64_t)floor(x) - 1;
    t->n = 4;
    for (int k = 0; k < 4; k++) t->weight[k] = (float)cubic(x - (double)(t->from + k), -0.75);
}

static void smooth_taps(taps *t, double centre, double wide, int64_t in) {
    int64_t to = (int64_t)(centre + 2 * wide + 0.5);
    double sum = 0;
    t->from = centre - 2 * wide + 0.5 > 0 ? (int64_t)(centre - 2 * wide + 0.5) : 0;
    t->n = (int)((to < in ? to : in) - t->from);
    for (int k = 0; k < t->n; k++) sum += cubic(((double)(t->from + k) + 0.5 - centre) / wide, -0.5);
    for (int k = 0; k < t->n; k++)
        t->weight[k] = (float)(cubic(((double)(t->from + k) + 0.5 - centre) / wide, -0.5) / sum);
}

float *positions_resample(float *x, int64_t outer, int64_t in, int64_t out, int64_t inner, double step,
                          positions_way way) {
    double wide = step > 1 ? step : 1; /* of the smoothing kernel */
    float *y = x ? ma_alloc((size_t)(outer * out * inner), sizeof *y) : NULL;
    float *weight = ma_alloc((size_t)ceil(4 * wide) + 2, sizeof *weight);
    for (int64_t i = 0; y && weight && i < out; i++) {
        taps t = {.weight = weight};
        double centre = ((double)i + 0.5) * step;
        if (way == POSITIONS_LINEAR) linear_taps(&t, centre);
        if (way == POSITIONS_CUBIC) cubic_taps(&t, centre);
        if (way == POSITIONS_SMOOTH) smooth_taps(&t, centre, wide, in);
        for (int64_t o = 0; o < outer; o++) {
            float *row = y + (o * out + i) * inner;
            for (int k = 0; k < t.n; k++) {
                int64_t at = t.from + k < 0 ? 0 : t.from + k < in ? t.from + k : in - 1;
                const float *from = x + (o * in + at) * inner;
                for (int64_t j = 0; j < inner; j++) row[j] += weight[k] * from[j];
            }
        }
    }
    ma_release(x);
    if (!weight) {
        ma_release(y);
        y = NULL;
    }
    ma_release(weight);
    return y;
}
