/* The accuracy of kernels/cpu/math.h over all of f32 (every 997th bit pattern), and its limits. */
#include "../../kernels/cpu/math.h"
#include "../tap.h"

/* |got - want| in units of the last place of want, subnormals included. */
static double ulps(float got, double want) {
    int exponent;
    if ((double)got == (float)want) return 0;
    if (!isfinite(got) || !isfinite((float)want)) return INFINITY;
    frexp(want, &exponent);
    return fabs(got - want) / ldexp(1, (exponent < -125 ? -125 : exponent) - 24);
}

static void check_everywhere(void) {
    double e = 0, t = 0, s = 0, r = 0;
#pragma omp parallel for reduction(max : e, t, s, r)
    for (uint32_t k = 0; k < UINT32_MAX / 997; k++) {
        float x = ma_from_bits(k * 997);
        if (isnan(x)) continue;
        e = fmax(e, ulps(ma_expf(x), exp(x)));
        t = fmax(t, ulps(ma_tanhf(x), tanh(x)));
        if (x > -87) s = fmax(s, ulps(ma_sigmoidf(x), 1 / (1 + exp(-(double)x))));
        r = fmax(r, fabs(ma_erff(x) - erf(x)));
    }
    ok(e <= 2, "exp: %.2f ulp", e);
    ok(t <= 3, "tanh: %.2f ulp", t);
    ok(s <= 3, "sigmoid: %.2f ulp", s);
    ok(r <= 1e-7, "erf: %.1e", r);
}

static void check_limits(void) {
    ok(ma_expf(-INFINITY) == 0 && ma_expf(INFINITY) == INFINITY && isnan(ma_expf(NAN)), "exp at infinity and NaN");
    ok(ma_expf(0) == 1 && ma_expf(-0.0f) == 1, "exp of 0 is 1");
    ok(ma_expf(-103) > 0 && ma_expf(88.8f) == INFINITY && isfinite(ma_expf(88.7f)), "exp at the ends of its range");
    ok(ma_tanhf(INFINITY) == 1 && ma_tanhf(-INFINITY) == -1 && isnan(ma_tanhf(NAN)), "tanh at infinity and NaN");
    ok(ma_sigmoidf(INFINITY) == 1 && ma_sigmoidf(-INFINITY) == 0 && isnan(ma_sigmoidf(NAN)), "sigmoid likewise");
    ok(ma_erff(INFINITY) == 1 && ma_erff(-INFINITY) == -1 && isnan(ma_erff(NAN)), "erf likewise");
    float x = NAN, y;
    bool nan = true;
    for (ma_act act = MA_NONE; act <= MA_GELU_TANH; act++) {
        ma_act_fwd(act, &x, &y, 1);
        nan = nan && (act == MA_NONE || isnan(y));
    }
    ok(nan, "every activation passes NaN on");
}

/* gelu and its derivative over what activations there are; -12..12. */
static void check_gelu(void) {
    double f = 0, d = 0;
    for (int k = -120000; k <= 120000; k++) {
        float x = (float)k * 1e-4f, one = 1, y, dx;
        ma_act_fwd(MA_GELU, &x, &y, 1);
        ma_act_bwd(MA_GELU, &x, NULL, &one, &dx, 1, false);
        double phi = 0.5 * (1 + erf(x * sqrt(0.5)));
        f = fmax(f, fabs(y - x * phi));
        d = fmax(d, fabs(dx - phi - x * exp(-0.5 * (double)x * x) / sqrt(2 * M_PI)));
    }
    ok(f <= 2e-6, "gelu: %.1e", f);
    ok(d <= 2e-6, "gelu's derivative: %.1e", d);
}

int main(void) {
    check_everywhere();
    check_limits();
    check_gelu();
    return tap_done();
}
