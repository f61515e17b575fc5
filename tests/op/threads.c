/* Every op, forward and backward, gives the same bits on one, two and three threads. */
#include "cases.h"

#include <omp.h>

static bool same(const float *a, const float *b, int64_t n) {
    return !memcmp(a, b, (size_t)n * sizeof *a);
}

static void check(const op_case *k, ma_ctx *c) {
    const unsigned want = ma_ctx_device(c)->bwd[k->op] ? all_wanted(k) : 0;
    trial one = trial_new(k);
    omp_set_num_threads(1);
    bool good = ok(!trial_run(k, c, want, 0, &one), "%s: runs %s", k->name, ma_ctx_err(c)->text);
    for (int threads = 2; threads <= 3 && good; threads++) {
        trial more = trial_new(k);
        omp_set_num_threads(threads);
        good = !trial_run(k, c, want, 0, &more) && same(one.out, more.out, one.count);
        for (int j = 0; j < INPUTS && good; j++)
            good = !wants(k, j) || same(one.grad[j], more.grad[j], elements(k->in[j]));
        trial_free(&more);
    }
    ok(good, "%s: the same bits on 1, 2 and 3 threads", k->name);
    trial_free(&one);
}

int main(void) {
    for_each_case(check);
    return tap_done();
}
