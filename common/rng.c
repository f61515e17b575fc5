/* rng: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011).
 *
 * A stream is a key of 64 bits, mixed from the seed and the name, and the upper half of the counter, which holds step
 * and purpose as they are: two streams of one seed and name never overlap; those of different names could only by a
 * collision of 64-bit hashes. The lower half counts blocks of four 32-bit words. Arrays take blocks from 0 on (element
 * i is word i%4 of block i/4), single draws from 2^63 on, a block each.
 * Limits: steps below 2^56. Normals end at 6.8 standard deviations, where one in 10^11 would fall.
 * Trap minded: a device that computes log and cos otherwise gives the same normals to rounding, not to the bit.
 */
#include "rng.h"
#include "philox.h"

void ma_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]) {
    ma_philox_block(key, counter, out);
}

/* The finaliser of splitmix64: every bit in changes every bit out with a chance of a half. */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

/* FNV-1a, 64 bits. */
static uint64_t hash(const char *name) {
    uint64_t h = 0xcbf29ce484222325;
    for (const char *s = name; s && *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3;
    return h;
}

ma_rng ma_rng_make(uint64_t seed, const char *name, uint64_t step, ma_purpose purpose) {
    uint64_t key = mix(mix(seed) + hash(name));
    ma_rng rng = {.key = {(uint32_t)key, (uint32_t)(key >> 32)}};
    ma_philox_high(step, purpose, rng.high);
    return rng;
}

static inline void block(const ma_rng *r, uint64_t index, uint32_t out[4]) {
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), r->high[0], r->high[1]};
    ma_philox_block(r->key, counter, out);
}

static void draw(ma_rng *r, uint32_t out[4]) {
    block(r, r->next++ | 1ull << 63, out);
}

uint64_t ma_rng_u64(ma_rng *r) {
    uint32_t word[4];
    draw(r, word);
    return (uint64_t)word[1] << 32 | word[0];
}

double ma_rng_uniform(ma_rng *r) {
    return (double)(ma_rng_u64(r) >> 11) * 0x1p-53;
}

double ma_rng_normal(ma_rng *r) {
    uint32_t word[4];
    double pair[2];
    draw(r, word);
    ma_philox_normals(word, pair);
    return pair[0];
}

int64_t ma_rng_below(ma_rng *r, int64_t n) {
    if (n <= 1) return 0;
    uint64_t m = (uint64_t)n, uneven = -m % m, u; /* uneven: 2^64 mod n, so many draws would favour small results */
    do u = ma_rng_u64(r);
    while (u < uneven);
    return (int64_t)(u % m);
}

/* Fewer numbers than this are not worth a thread. */
enum { PARALLEL = 1 << 14 };

void ma_rng_fill_normal(const ma_rng *r, float *out, size_t n) {
#pragma omp parallel for if (n >= PARALLEL)
    for (size_t i = 0; i < n; i += 4) {
        float z[4];
        ma_philox_four(r->key, r->high, i / 4, z);
        for (size_t k = 0; k < 4 && i + k < n; k++) out[i + k] = z[k];
    }
}

void ma_rng_fill_uniform(const ma_rng *r, float *out, size_t n) {
#pragma omp parallel for if (n >= PARALLEL)
    for (size_t i = 0; i < n; i += 4) {
        uint32_t word[4];
        block(r, i / 4, word);
        for (size_t k = 0; k < 4 && i + k < n; k++)
            out[i + k] = (float)(word[k] >> 8) * 0x1p-24f; /* 24 bits: below 1 */
    }
}
