/* loss: l1 and mse, means over all elements, summed in double. The target gets no gradient; l1's at 0 is 0.
 */
#include "cpu.h"

#include <math.h>

typedef struct pair {
    const float *x, *target;
} pair;

static pair pair_of(const ma_call *call) {
    return (pair){call->in[0]->data, call->in[1]->data};
}

static double absolute(const void *self, int64_t from, int64_t to) {
    const pair *p = self;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = from; k < to; k++) sum += fabs((double)p->x[k] - p->target[k]);
    return sum;
}

static double squared(const void *self, int64_t from, int64_t to) {
    const pair *p = self;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = from; k < to; k++) {
        double d = (double)p->x[k] - p->target[k];
        sum += d * d;
    }
    return sum;
}

static int mean(const ma_call *call, ma_cpu_part part) {
    pair p = pair_of(call);
    int64_t n = ma_count(call->in[0]);
    *(float *)call->out->data = (float)(ma_cpu_sum(part, &p, n) / (double)n);
    return 0;
}

/* The loss's own gradient over the number of elements. */
static float seed(const ma_call *call) {
    return (float)(*(const float *)call->out->grad->data / (double)ma_count(call->in[0]));
}

int ma_cpu_l1_fwd(const ma_call *call) {
    return mean(call, absolute);
}

int ma_cpu_l1_bwd(const ma_call *call) {
    pair p = pair_of(call);
    float *dx = ma_cpu_grad(call->in[0]), g = seed(call);
    int64_t n = ma_count(call->in[0]);
    if (!dx) return 0;
#pragma omp parallel for simd if (parallel : n > 1 << 14)
    for (int64_t k = 0; k < n; k++) {
        float d = p.x[k] - p.target[k];
        dx[k] += d > 0 ? g : d < 0 ? -g : 0;
    }
    return 0;
}

int ma_cpu_mse_fwd(const ma_call *call) {
    return mean(call, squared);
}

int ma_cpu_mse_bwd(const ma_call *call) {
    pair p = pair_of(call);
    float *dx = ma_cpu_grad(call->in[0]), g = 2 * seed(call);
    int64_t n = ma_count(call->in[0]);
    if (!dx) return 0;
#pragma omp parallel for simd if (parallel : n > 1 << 14)
    for (int64_t k = 0; k < n; k++) dx[k] += g * (p.x[k] - p.target[k]);
    return 0;
}
