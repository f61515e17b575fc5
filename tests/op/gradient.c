/* Gradients under a random cotangent r against central differences of s = Σ r·out, along random directions and element
 * by element; and the manners of a backward pass: it adds, unless there is nothing yet, and each input's gradient is
 * the same whoever else wants one.
 *
 * Differences are extrapolated from two steps (error h⁴). With a definition in double they are exact to 1e-8, and what
 * is left is the rounding of our own gradient: 5e-6 of the gradient's size. Without one they are differences of fp32
 * results, rounded at 6e-8: at h = 0.02 that is up to 1e-4 of a typical slope along a direction, and more for one
 * element of many; hence 2e-3 and 1e-2.
 */
#include "cases.h"

#include <omp.h>

enum { DIRECTIONS = 2, ELEMENTS = 16 };

/* Where and how s is evaluated. */
typedef struct field {
    const op_case *k;
    ma_ctx *c;
    trial *t;    /* point and cotangent */
    trial moved; /* inputs in fp32, without a definition */
    double *at[INPUTS], *out;
} field;

static field field_new(const op_case *k, ma_ctx *c, trial *t) {
    field f = {.k = k, .c = c, .t = t, .moved = trial_new(k)};
    f.out = ma_alloc((size_t)t->count, sizeof *f.out);
    for (int j = 0; j < INPUTS; j++) {
        int64_t n = elements(k->in[j]);
        if (n) f.at[j] = ma_alloc((size_t)n, sizeof *f.at[j]);
        for (int64_t m = 0; m < n; m++) f.at[j][m] = t->in[j][m];
    }
    return f;
}

static void field_free(field *f) {
    for (int j = 0; j < INPUTS; j++) ma_release(f->at[j]);
    ma_release(f->out);
    trial_free(&f->moved);
}

/* s with input j moved by h·u. */
static double value(field *f, int j, const float *u, double h) {
    int64_t n = elements(f->k->in[j]);
    double sum = 0;
    if (f->k->define) {
        for (int64_t m = 0; m < n; m++) f->at[j][m] = f->t->in[j][m] + h * u[m];
        f->k->define(f->k, f->at, f->out);
        for (int64_t m = 0; m < n; m++) f->at[j][m] = f->t->in[j][m];
    } else {
        for (int64_t m = 0; m < n; m++) f->moved.in[j][m] = (float)(f->t->in[j][m] + h * u[m]);
        if (trial_run(f->k, f->c, 0, 0, &f->moved)) return NAN;
        for (int64_t m = 0; m < f->t->count; m++) f->out[m] = f->moved.out[m];
        memcpy(f->moved.in[j], f->t->in[j], (size_t)n * sizeof *f->t->in[j]);
    }
    for (int64_t m = 0; m < f->t->count; m++) sum += f->t->cotangent[m] * f->out[m];
    return sum;
}

static double slope(field *f, int j, const float *u) {
    double h = f->k->define ? 1e-5 : 2e-2;
    double near = (value(f, j, u, h) - value(f, j, u, -h)) / (2 * h);
    double far = (value(f, j, u, 2 * h) - value(f, j, u, -2 * h)) / (4 * h);
    return (4 * near - far) / 3;
}

/* The larger; NaN stays, and is below nothing. */
static double worse(double a, double b) {
    return b <= a ? a : b;
}

/* The worst error along random directions, and of single elements, relative to the gradient's size. */
static void check_input(field *f, int j) {
    int64_t n = elements(f->k->in[j]), stride = n / ELEMENTS + 1;
    const float *g = f->t->grad[j];
    float *u = ma_alloc((size_t)n, sizeof *u);
    double along = 0, alone = 0, size = 0;
    for (int64_t m = 0; m < n; m++) size += (double)g[m] * g[m];
    size = sqrt(size);
    for (int d = 0; d < DIRECTIONS; d++) {
        double want = 0;
        random_fill(u, n, (uint64_t)(7000 + d));
        for (int64_t m = 0; m < n; m++) want += (double)g[m] * u[m];
        along = worse(along, fabs(slope(f, j, u) - want) / size);
    }
    memset(u, 0, (size_t)n * sizeof *u);
    for (int64_t m = 0; m < n; m += stride) {
        u[m] = 1;
        alone = worse(alone, fabs(slope(f, j, u) - g[m]) / fmax(fabs(g[m]), size / sqrt((double)n)));
        u[m] = 0;
    }
    bool exact = f->k->define;
    ok(size > 0 && along <= (exact ? 5e-6 : 2e-3) && alone <= (exact ? 5e-6 : 1e-2),
       "%s: gradient to input %d (directions %.1e, elements %.1e)", f->k->name, j, along, alone);
    ma_release(u);
}

/* On gradients that hold ones, ones more. */
static void check_adds(const op_case *k, ma_ctx *c, const trial *first) {
    trial t = trial_new(k);
    bool adds = !trial_run(k, c, all_wanted(k), 1, &t);
    for (int j = 0; j < INPUTS && adds; j++)
        for (int64_t m = 0; wants(k, j) && m < elements(k->in[j]); m++)
            adds = adds && fabs(t.grad[j][m] - 1.0 - first->grad[j][m]) <= 1e-6 * (1 + fabs(first->grad[j][m]));
    ok(adds, "%s: adds to what is there", k->name);
    trial_free(&t);
}

/* On gradients that hold nothing, whatever stands in their memory, as on zeros. through: by way of activations. */
static void check_fresh(const op_case *k, ma_ctx *c, const trial *first, bool through) {
    trial t = trial_new(k);
    t.through = through;
    bool same = !trial_run(k, c, all_wanted(k), NAN, &t);
    for (int j = 0; j < INPUTS && same; j++)
        for (int64_t m = 0; wants(k, j) && m < elements(k->in[j]); m++)
            same = same && t.grad[j][m] == first->grad[j][m];
    ok(same, "%s: does not see what stands where nothing was added%s", k->name, through ? ", of activations" : "");
    trial_free(&t);
}

static void check_alone(const op_case *k, ma_ctx *c, const trial *first) {
    bool same = true;
    for (int j = 0; j < INPUTS; j++) {
        if (!wants(k, j)) continue;
        trial t = trial_new(k);
        same = same && !trial_run(k, c, 1u << j, 0, &t) &&
               !memcmp(t.grad[j], first->grad[j], (size_t)elements(k->in[j]) * sizeof *t.grad[j]);
        trial_free(&t);
    }
    ok(same, "%s: an input's gradient does not depend on who else wants one", k->name);
}

static void check(const op_case *k, ma_ctx *c) {
    if (!all_wanted(k) || !ma_ctx_device(c)->bwd[k->op]) return;
    trial t = trial_new(k);
    if (ok(!trial_run(k, c, all_wanted(k), 0, &t), "%s: runs backwards %s", k->name, ma_ctx_err(c)->text)) {
        field f = field_new(k, c, &t);
        for (int j = 0; j < INPUTS; j++)
            if (wants(k, j) && !k->kinked) check_input(&f, j);
        check_adds(k, c, &t);
        check_fresh(k, c, &t, false);
        check_fresh(k, c, &t, true);
        check_alone(k, c, &t);
        field_free(&f);
    }
    trial_free(&t);
}

int main(void) {
    omp_set_num_threads(1); /* small work; threads.c sees to the others */
    for_each_case(check);
    return tap_done();
}
