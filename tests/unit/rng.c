/* rng: Philox against its published vectors; what streams promise: the same whatever the threads, all different. */
#include "../../common/rng.h"
#include "../tap.h"

#include <omp.h>
#include <string.h>

/* Known answers: the file kat_vectors of Random123. */
static void test_known(void) {
    static const uint32_t kat[3][10] = {
        /* counter, key, result */
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
         0x24126ea1},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        ma_philox(kat[i] + 4, kat[i], out);
        ok(!memcmp(out, kat[i] + 6, sizeof out), "known answer %d", i);
    }
}

enum { N = 1000003 };

static void test_threads(void) {
    float *one = malloc(N * sizeof *one), *four = malloc(N * sizeof *four), *some = malloc(1000 * sizeof *some);
    ma_rng r = ma_rng_make(1, "clip-000", 7, MA_RNG_NOISE);
    void (*const fill[])(const ma_rng *, float *, size_t) = {ma_rng_fill_normal, ma_rng_fill_uniform};
    static const char *const name[] = {"normals", "uniforms"};
    for (int k = 0; k < 2; k++) {
        omp_set_num_threads(1);
        fill[k](&r, one, N);
        omp_set_num_threads(4);
        fill[k](&r, four, N);
        ok(!memcmp(one, four, N * sizeof *one), "%s: the same bits from one thread and from four", name[k]);
        bool prefix = true;
        for (size_t n = 0; n < 9; n++) {
            some[n] = 42;
            fill[k](&r, some, n);
            prefix = prefix && some[n] == 42 && !memcmp(some, one, n * sizeof *some);
        }
        ok(prefix, "%s: the first few of many are the same as few, and no more are written", name[k]);
    }
    free(one);
    free(four);
    free(some);
}

static void test_moments(void) {
    float *x = malloc(N * sizeof *x);
    ma_rng r = ma_rng_make(3, NULL, 0, MA_RNG_TEST);
    ma_rng_fill_normal(&r, x, N);
    double m[5] = {0}, next = 0, beyond3 = 0;
    for (int i = 0; i < N; i++) {
        double v = 1;
        for (int k = 1; k < 5; k++) m[k] += (v *= x[i]) / N;
        beyond3 += fabsf(x[i]) > 3;
        if (i) next += (double)x[i] * x[i - 1] / N;
    }
    ok(fabs(m[1]) < 0.005 && fabs(m[2] - 1) < 0.007 && fabs(m[3]) < 0.012 && fabs(m[4] - 3) < 0.05,
       "normal: moments %.4f %.4f %.4f %.4f", m[1], m[2], m[3], m[4]);
    ok(fabs(next) < 0.005, "normal: neighbours do not correlate (%.4f)", next);
    ok(fabs(beyond3 - 0.0026998 * N) < 270, "normal: %.0f of %d beyond 3", beyond3, N);
    ma_rng_fill_uniform(&r, x, N);
    double mean = 0, low = 1, high = 0;
    for (int i = 0; i < N; i++) {
        mean += x[i] / N;
        low = fmin(low, x[i]);
        high = fmax(high, x[i]);
    }
    ok(fabs(mean - 0.5) < 0.0015 && low >= 0 && low < 1e-4 && high < 1 && high > 0.9999, "uniform: mean %.4f, in [0,1)",
       mean);
    free(x);
}

static void test_streams(void) {
    const ma_rng all[] = {
        ma_rng_make(1, "a", 0, MA_RNG_INIT), ma_rng_make(2, "a", 0, MA_RNG_INIT),  ma_rng_make(1, "b", 0, MA_RNG_INIT),
        ma_rng_make(1, "a", 1, MA_RNG_INIT), ma_rng_make(1, "a", 0, MA_RNG_NOISE), ma_rng_make(1, NULL, 0, MA_RNG_INIT),
    };
    enum { STREAMS = sizeof all / sizeof *all };
    float x[STREAMS][64];
    for (int i = 0; i < STREAMS; i++) ma_rng_fill_uniform(&all[i], x[i], 64);
    int shared = 0;
    for (int i = 0; i < STREAMS; i++)
        for (int j = 0; j < i; j++)
            for (int k = 0; k < 64; k++) shared += x[i][k] == x[j][k];
    ok(shared == 0, "seed, name, step and purpose each make another stream");
    ma_rng again = ma_rng_make(1, "a", 0, MA_RNG_INIT), empty = ma_rng_make(1, "", 0, MA_RNG_INIT);
    ok(!memcmp(&again, &all[0], sizeof again) && !memcmp(&empty, &all[5], sizeof empty), "the same ones the same");
    /* A fixture: a change here changes every run that anybody has recorded. */
    ma_rng r = ma_rng_make(42, "clip-000012", 1000, MA_RNG_NOISE);
    uint64_t first = ma_rng_u64(&r), second = ma_rng_u64(&r);
    float z;
    ma_rng_fill_normal(&r, &z, 1);
    ok(first == 0x520ae526f150a8d6 && second == 0x151e6a906e43a7ab && fabsf(z + 0.31484947f) < 1e-6f,
       "recorded: %#llx %#llx %.8f", (unsigned long long)first, (unsigned long long)second, z);
}

static void test_draws(void) {
    ma_rng r = ma_rng_make(5, "draws", 0, MA_RNG_TEST);
    int count[6] = {0};
    for (int i = 0; i < 60000; i++) {
        int64_t k = ma_rng_below(&r, 6);
        if (k >= 0 && k < 6) count[k]++;
    }
    double chi = 0;
    for (int k = 0; k < 6; k++) chi += (count[k] - 1e4) * (count[k] - 1e4) / 1e4;
    ok(chi < 20, "below 6: six even faces (chi square %.2f)", chi);
    int64_t large = 3ll << 61, upper = 0;
    bool within = true;
    for (int i = 0; i < 10000; i++) {
        int64_t k = ma_rng_below(&r, large);
        within = within && k >= 0 && k < large;
        upper += k >= large / 2;
    }
    ok(within && llabs(upper - 5000) < 250, "below 3·2^61: no bias (%lld of 10000 in the upper half)",
       (long long)upper);
    ok(ma_rng_below(&r, 1) == 0 && ma_rng_below(&r, 0) == 0, "below 1 and 0: 0");
    double sum = 0, squares = 0;
    for (int i = 0; i < 20000; i++) {
        double u = ma_rng_uniform(&r), z = ma_rng_normal(&r);
        within = within && u >= 0 && u < 1;
        sum += z / 20000;
        squares += z * z / 20000;
    }
    ok(within && fabs(sum) < 0.04 && fabs(squares - 1) < 0.05, "draws: uniform in [0,1), normal %.3f %.3f", sum,
       squares);
}

int main(void) {
    test_known();
    test_threads();
    test_moments();
    test_streams();
    test_draws();
    return tap_done();
}
