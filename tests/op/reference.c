/* Forward against the definition in double precision, and every op has a case. */
#include "cases.h"

static void check(const op_case *k, ma_ctx *c) {
    trial t = trial_new(k);
    double *in[INPUTS] = {0};
    if (!ok(!trial_run(k, c, 0, 0, &t), "%s: runs %s", k->name, ma_ctx_err(c)->text) || !k->define) {
        trial_free(&t);
        return;
    }
    double *want = ma_alloc((size_t)t.count, sizeof *want), worst = 0, size = 0;
    for (int j = 0; j < INPUTS; j++) {
        int64_t n = elements(k->in[j]);
        if (n) in[j] = ma_alloc((size_t)n, sizeof *in[j]);
        for (int64_t m = 0; m < n; m++) in[j][m] = t.in[j][m];
    }
    k->define(k, in, want);
    for (int64_t n = 0; n < t.count; n++) {
        double error = fabs(t.out[n] - want[n]);
        if (!(error <= worst)) worst = error; /* NaN stays */
        size = fmax(size, fabs(want[n]));
    }
    ok(worst <= 1e-6 * size, "%s: is what it is defined to be (%.1e)", k->name, worst / size);
    for (int j = 0; j < INPUTS; j++) ma_release(in[j]);
    ma_release(want);
    trial_free(&t);
}

int main(void) {
    bool seen[MA_NOPS] = {0};
    for_each_case(check);
    for (int k = 0; k < CASES; k++) seen[cases[k].op] = true;
    for (int op = 0; op < MA_NOPS; op++) ok(seen[op], "%s has a case", ma_op_name((ma_op)op));
    return tap_done();
}
