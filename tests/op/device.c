/* The CPU device beside its kernels: AdamW, also with a state in bf16, Σ grad², casts, memory, the plan. */
#include "../../common/tensor.h"
#include "../../kernels/dither.h"
#include "../tap.h"

#include <omp.h>
#include <string.h>

enum { N = 40001 };

static float uniform(void) { /* -1..1 */
    static uint32_t state = 7;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

/* PyTorch's AdamW in double: decay first, then the step on bias-corrected moments. */
static void adam_reference(const ma_adam *o, double decay, double *p, double g, double *m, double *v) {
    g *= o->clip;
    *p -= o->lr * decay * *p;
    *m = o->beta1 * *m + (1 - o->beta1) * g;
    *v = o->beta2 * *v + (1 - o->beta2) * g * g;
    double step = (double)o->step;
    *p -= o->lr * (*m / (1 - pow(o->beta1, step))) / (sqrt(*v / (1 - pow(o->beta2, step))) + o->eps);
}

static void check_adam(ma_device *dev) {
    float *x = ma_alloc(5 * N, sizeof *x), *p = x, *g = x + N, *m = x + 2 * N, *v = x + 3 * N, *master = x + 4 * N;
    double *want = ma_alloc(3 * N, sizeof *want), worst = 0, master_worst = 0;
    uint16_t *half = ma_alloc(N, sizeof *half);
    bool same = true;
    for (int k = 0; k < N; k++) want[k] = p[k] = master[k] = uniform();
    ma_slot plain = {.data = p, .type = MA_F32, .grad = g, .m = m, .v = v, .count = N, .decay = 0.1};
    for (int step = 1; step <= 5; step++) {
        ma_adam o = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .clip = 0.5, .step = step};
        for (int k = 0; k < N; k++) g[k] = uniform();
        dev->adam(dev, &plain, 1, &o);
        for (int k = 0; k < N; k++) adam_reference(&o, 0.1, want + k, g[k], want + N + k, want + 2 * N + k);
    }
    for (int k = 0; k < N; k++) worst = fmax(worst, fabs(p[k] - want[k]));
    ok(worst < 1e-6, "adam: five steps are AdamW's (%.1e)", worst);

    ma_adam first = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .clip = 1, .step = 1};
    ma_slot stored = {.data = half, .type = MA_BF16, .master = master, .grad = g, .m = m, .v = v, .count = N};
    memset(m, 0, 2 * N * sizeof *m);
    memcpy(p, master, N * sizeof *p);
    dev->adam(dev, &stored, 1, &first);
    for (int k = 0; k < N; k++) {
        same = same && half[k] == ma_f32_to_bf16(master[k]);
        double sign = g[k] / (fabs(g[k]) + 1e-8); /* the first step goes lr along it */
        master_worst = fmax(master_worst, fabs(master[k] - (p[k] - 1e-2 * sign)));
    }
    ok(same, "adam: storage in 16 bits is its master, rounded");
    ok(master_worst < 1e-6, "adam: the first step is lr long (%.1e)", master_worst);
    ma_release(x);
    ma_release(want);
    ma_release(half);
}

/* Parameters with a state in bf16, m and v zero at first. */
typedef struct light {
    float p[N], grad[N];
    uint16_t m[N], v[N];
} light;

static void step_light(ma_device *dev, light *x, ma_adam o, int64_t number) {
    ma_slot s = {.data = x->p, .type = MA_F32, .grad = x->grad, .m = x->m, .v = x->v, .count = N, .number = number};
    o.state = MA_BF16;
    o.lr = 1e-2;
    o.eps = 1e-8;
    o.clip = 1;
    dev->adam(dev, &s, 1, &o);
}

static double mean_of(const uint16_t *x) {
    double sum = 0;
    for (int k = 0; k < N; k++) sum += ma_bf16_to_f32(x[k]);
    return sum / N;
}

/* Of N draws between two neighbours `gap` apart the mean is 5 deviations off once in a million times. */
static bool near_mean(const uint16_t *x, double want, double gap) {
    return fabs(mean_of(x) - want) < 5 * gap / 2 / sqrt(N);
}

static void check_state(ma_device *dev) {
    static light a, b;
    ma_adam o = {.beta1 = 0.5, .beta2 = 0.5, .step = 1};
    const float g = 2.00390625f; /* m is 1 + 2^-9, v is 2 + 2^-7 + 2^-17: a quarter and a half from one neighbour */
    bool neighbours = true, repeats = false;
    int both = 0; /* went up */
    for (int k = 0; k < N; k++) a.grad[k] = b.grad[k] = g;
    omp_set_num_threads(1);
    step_light(dev, &a, o, 7);
    omp_set_num_threads(3);
    step_light(dev, &b, o, 7);
    ok(!memcmp(&a, &b, sizeof a), "state in bf16: the same bits on 1 and 3 threads");
    for (int k = 0; k < N; k++) {
        neighbours = neighbours && (a.m[k] == 0x3f80 || a.m[k] == 0x3f81) && (a.v[k] == 0x4000 || a.v[k] == 0x4001);
        both += a.m[k] == 0x3f81 && a.v[k] == 0x4001;
    }
    for (int n = 1024; n < N / 2; n *= 2) repeats = repeats || !memcmp(a.m, a.m + n, (size_t)n * sizeof *a.m);
    ok(neighbours && !repeats, "state in bf16: each element rounded to one of its neighbours");
    ok(fabs(both - N / 8.0) < 5 * sqrt(N * 7 / 64.0), "state in bf16: m and v each by themselves (%d)", both);
    ok(near_mean(a.m, g / 2, 0x1p-7) && near_mean(a.v, g * g / 2, 0x1p-6),
       "state in bf16: right in the mean (%.6f, %.6f)", mean_of(a.m), mean_of(a.v));
    ok(a.p[0] == a.p[N - 1] && fabs(a.p[0] + 1e-2) < 1e-6, "state in bf16: the step is made before it is rounded");

    memset(b.m, 0, sizeof b.m), memset(b.v, 0, sizeof b.v);
    step_light(dev, &b, o, 8);
    ok(memcmp(a.m, b.m, sizeof a.m), "state in bf16: another parameter, other bits");
    memset(b.m, 0, sizeof b.m), memset(b.v, 0, sizeof b.v);
    o.step = 2;
    step_light(dev, &b, o, 7);
    ok(memcmp(a.m, b.m, sizeof a.m), "state in bf16: another step, other bits");

    memset(a.grad, 0, sizeof a.grad);
    for (int k = 0; k < N; k++) a.v[k] = 0x3f80;
    for (o.step = 1, o.beta2 = 0.999; o.step <= 100; o.step++) step_light(dev, &a, o, 7);
    ok(fabs(mean_of(a.v) / pow(0.999, 100) - 1) < 1e-3, "state in bf16: with beta2 0.999 v comes down (%.4f)",
       mean_of(a.v));
    const float odd[] = {NAN, INFINITY, -INFINITY, 0, -0.0f, 1};
    bool kept = isnan(ma_dither_bf16(odd[0], 0xffff));
    for (int k = 1; k < 6; k++) kept = kept && ma_dither_bf16(odd[k], 0xffff) == odd[k];
    ok(kept, "state in bf16: what it holds stays, NaN and infinity too");
}

static void check_squares(ma_device *dev) {
    float *g = ma_alloc(N, sizeof *g);
    double want = 0, sum = 0, again = 0;
    for (int k = 0; k < N; k++) {
        g[k] = 1e3f * uniform();
        want += (double)g[k] * g[k];
    }
    ma_slot two[2] = {{.grad = g, .count = N - 3}, {.grad = g + N - 3, .count = 3}};
    omp_set_num_threads(1);
    dev->squares(dev, two, 2, &sum);
    omp_set_num_threads(3);
    dev->squares(dev, two, 2, &again);
    ok(fabs(sum / want - 1) < 1e-13, "squares: Σ grad² (%.1e)", sum / want - 1);
    ok(sum == again, "squares: the same bits on 1 and 3 threads");
    g[N - 1] = NAN;
    dev->squares(dev, two, 2, &sum);
    ok(isnan(sum), "squares: NaN passes through");
    ma_release(g);
}

static void check_memory(ma_device *dev) {
    float *p = dev->alloc(dev, 1001 * sizeof *p), back[1001], wide[1001];
    uint16_t half[1001];
    ok(p && (uintptr_t)p % 256 == 0, "alloc: on 256 bytes");
    ok(!dev->alloc(dev, SIZE_MAX - 8), "alloc: what cannot be is NULL");
    for (int k = 0; k < 1001; k++) back[k] = (float)k;
    dev->put(dev, p, back, sizeof back);
    dev->move(dev, p, p + 1, 1000 * sizeof *p);
    dev->get(dev, back, p, sizeof back);
    ok(back[0] == 1 && back[999] == 1000 && back[1000] == 1000, "move: over itself, downwards");
    dev->cast(dev, half, MA_BF16, p, MA_F32, 1001);
    dev->cast(dev, wide, MA_F32, half, MA_BF16, 1001);
    bool good = true;
    for (int k = 0; k < 1001; k++) good = good && wide[k] == ma_bf16_to_f32(ma_f32_to_bf16(back[k]));
    ok(good, "cast: to bf16 and back");
    dev->zero(dev, p, 1000 * sizeof *p);
    dev->get(dev, back, p, sizeof back);
    ok(back[0] == 0 && back[999] == 0 && back[1000] == 1000, "zero: as many bytes as asked");
    dev->release(dev, p);
}

static void check_plan(void) {
    ma_err e = {0};
    char note[160];
    double sum = 1;
    ma_device *dry = ma_device_open("cpu", true, note, &e);
    ma_slot slot = {.count = N};
    ma_adam o = {.step = 1};
    ok(dry->plan && !dry->alloc(dry, 100), "plan: no memory");
    ok(!dry->zero(dry, NULL, 100) && !dry->adam(dry, &slot, 1, &o) && !dry->squares(dry, &slot, 1, &sum) && sum == 0,
       "plan: nothing is touched");
    ma_device_close(dry);
}

int main(void) {
    ma_err e = {0};
    char note[160];
    ma_device *dev = ma_device_open("cpu", false, note, &e);
    check_adam(dev);
    check_state(dev);
    check_squares(dev);
    check_memory(dev);
    check_plan();
    ok(!dev->plan, "a plan leaves the device as it was");
    ma_device_close(dev);
    return tap_done();
}
