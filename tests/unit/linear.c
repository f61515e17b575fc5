/* linear: ridge regression and principal components against NumPy (linear_table.h, made by tests/golden/linear.py). */
#include "../../common/linear.h"
#include "../tap.h"
#include "linear_table.h"

#include <string.h>

enum { ROWS = 40, IN = 6, OUT = 2 };
static double x[ROWS][IN], y[ROWS][OUT];

static void fill(void) {
    for (int k = 0; k < ROWS; k++) {
        for (int i = 0; i < IN; i++) x[k][i] = sin(3 * k + 0.7 * i * k + i) * (1 + i) + i;
        x[k][3] = 2.5;
        x[k][5] = x[k][0] + 2 * x[k][1];
        for (int j = 0; j < OUT; j++) y[k][j] = cos(0.4 * k + j) + 0.3 * x[k][j] + 5 * j;
    }
}

static double worst(const double *got, const double *want, int n) {
    double most = 0;
    for (int i = 0; i < n; i++) most = fmax(most, fabs(got[i] - want[i]));
    return most;
}

static void test_ridge(const char *name, double strength, const double *weight, const double *guess) {
    ma_err e = {0};
    ma_ridge r;
    double got[OUT];
    int rc = ma_ridge_fit(&r, x[0], y[0], ROWS, IN, OUT, strength, &e);
    if (ok(!rc, "%s: fits %s", name, e.text)) {
        ma_ridge_predict(&r, x[7], got);
        ok(worst(r.weight, weight, IN * OUT) < 1e-9, "weights (%.1e)", worst(r.weight, weight, IN * OUT));
        ok(worst(got, guess, OUT) < 1e-9, "a prediction (%.1e)", worst(got, guess, OUT));
        ok(!r.weight[3] && !r.weight[IN + 3], "what does not vary gets no weight");
    }
    ma_ridge_free(&r);
}

static void test_choice(void) {
    ma_err e = {0};
    ma_ridge r;
    int rc = ma_ridge_fit(&r, x[0], y[0], ROWS, IN, OUT, 0, &e);
    ok(!rc && fabs(r.strength / chosen[0] - 1) < 1e-9, "the strength that NumPy finds best, %g", r.strength);
    ma_ridge_free(&r);
    rc = ma_ridge_fit(&r, x[0], y[0], 4, IN, OUT, 0, &e);
    ok(rc && e.reason == MA_SHORT, "four rows are too few to choose by: %s", e.text);
    ma_ridge_free(&r);
    ma_err_clear(&e);
    double bad[ROWS][IN];
    memcpy(bad, x, sizeof bad);
    bad[6][2] = NAN;
    rc = ma_ridge_fit(&r, bad[0], y[0], ROWS, IN, OUT, 0, &e);
    ok(rc && e.reason == MA_NOTFINITE, "a NaN: %s", e.text);
    ma_ridge_free(&r);
}

static void test_principal(void) {
    ma_err e = {0};
    double m[IN], a[3][IN], d[3];
    ok(!ma_principal(x[0], ROWS, IN, 3, m, a[0], d, &e), "principal components %s", e.text);
    ok(worst(m, mean, IN) < 1e-12, "their mean");
    ok(worst(a[0], axis, 3 * IN) < 1e-9, "axes (%.1e)", worst(a[0], axis, 3 * IN));
    ok(worst(d, deviation, 3) < 1e-9, "deviations (%.1e)", worst(d, deviation, 3));
    double line[ROWS][2];
    for (int k = 0; k < ROWS; k++) line[k][0] = k, line[k][1] = -2 * k;
    ok(!ma_principal(line[0], ROWS, 2, 2, m, a[0], d, &e) && d[0] > 1 && d[1] == 0 && !a[0][2] && !a[0][3],
       "on a line there is one, and no second");
    ok(fabs(a[0][0] + sqrt(0.2)) < 1e-12 && fabs(a[0][1] - sqrt(0.8)) < 1e-12, "its largest element is positive");
}

int main(void) {
    fill();
    test_ridge("weak", 1e-3, weight_weak, guess_weak);
    test_ridge("strong", 3, weight_strong, guess_strong);
    test_choice();
    test_principal();
    return tap_done();
}
