/* philox: the block function of rng.h, and what it makes of a block, for the CPU and the GPU. */
#ifndef MA_PHILOX_H
#define MA_PHILOX_H

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define MA_PHILOX static inline __host__ __device__
#else
#define MA_PHILOX static inline
#endif

/* Philox4x32-10. */
MA_PHILOX void ma_philox_block(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]) {
    uint32_t k0 = key[0], k1 = key[1], c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u; /* the golden ratio, and √3 - 1 */
        k1 += 0xbb67ae85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* Box and Muller: two words, two independent normals. u > 0, so the logarithm is finite. */
MA_PHILOX void ma_philox_normals(const uint32_t word[2], double out[2]) {
    double u = (word[0] + 0.5) * 0x1p-32, angle = 2 * M_PI * (word[1] * 0x1p-32), radius = sqrt(-2 * log(u));
    out[0] = radius * cos(angle);
    out[1] = radius * sin(angle);
}

/* What all counters of a stream have in common, their upper half. */
MA_PHILOX void ma_philox_high(uint64_t step, int purpose, uint32_t high[2]) {
    high[0] = (uint32_t)step;
    high[1] = (uint32_t)(step >> 32) | (uint32_t)purpose << 24;
}

/* Elements 4·index.. of ma_rng_fill_normal's stream. */
MA_PHILOX void ma_philox_four(const uint32_t key[2], const uint32_t high[2], uint64_t index, float out[4]) {
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), high[0], high[1]};
    uint32_t word[4];
    double z[4];
    ma_philox_block(key, counter, word);
    ma_philox_normals(word, z);
    ma_philox_normals(word + 2, z + 2);
    for (int k = 0; k < 4; k++) out[k] = (float)z[k];
}

#undef MA_PHILOX
#endif
