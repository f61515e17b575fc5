/* dither: stochastic rounding of fp32 to bf16, up or down with the probability that is right in the mean; for the CPU
 * and the GPU.
 *
 * Why not to the nearest: bf16 has 8 bits, so what changes a number by less than 2^-9 of it changes nothing. With beta2
 * 0.999 the second moment falls by 2^-10 of itself a step at most, and would never come down.
 *
 * The random bits are a hash of the step, the parameter's number and the element's: a run that is repeated or resumed
 * makes the same decisions, whatever the threads, the device, the ranks that share the state.
 */
#ifndef MA_DITHER_H
#define MA_DITHER_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define MA_DITHER static inline __host__ __device__
#else
#define MA_DITHER static inline
#endif

/* A bijection of which every bit depends on every bit (MurmurHash3's last steps). */
MA_DITHER uint32_t ma_dither_mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return x ^ x >> 16;
}

MA_DITHER uint32_t ma_dither_key(int64_t step, int64_t tensor) {
    return ma_dither_mix(ma_dither_mix((uint32_t)step + 0x9e3779b9u) + (uint32_t)tensor);
}

/* 32 random bits for an element; the same for one 2^32 further on. */
MA_DITHER uint32_t ma_dither_bits(uint32_t key, int64_t element) {
    return ma_dither_mix(key ^ (uint32_t)element);
}

/* A neighbour of x in bf16, as fp32: the one away from zero if the 16 bits of `random` and those that bf16 lacks carry.
 * What bf16 holds stays, as do infinity and NaN. */
MA_DITHER float ma_dither_bf16(float x, uint32_t random) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7f800000u) == 0x7f800000u) return x;
    u = (u + random) & 0xffff0000u;
    memcpy(&x, &u, sizeof x);
    return x;
}

#undef MA_DITHER
#endif
