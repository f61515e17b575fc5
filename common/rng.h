/* rng: Philox4x32-10 (Salmon et al. 2011), counter-based: number i of a stream depends on (seed, name, step, purpose,
 * i) alone, never on threads, batch or device. */
#ifndef MA_RNG_H
#define MA_RNG_H
#include <stddef.h>
#include <stdint.h>

typedef enum { MA_RNG_INIT, MA_RNG_NOISE, MA_RNG_TIME, MA_RNG_ORDER, MA_RNG_POSTERIOR, MA_RNG_TOY, MA_RNG_TEST, MA_RNG_DROP } ma_purpose;

typedef struct ma_rng {
    uint32_t key[2], high[2]; /* key: of seed and name; high: step and purpose, the counter's upper half */
    uint64_t next;            /* for the draw-by-draw calls */
} ma_rng;

ma_rng ma_rng_make(uint64_t seed, const char *name, uint64_t step, ma_purpose); /* name may be NULL */
void ma_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);
uint64_t ma_rng_u64(ma_rng *);
double ma_rng_uniform(ma_rng *);                 /* [0,1) */
double ma_rng_normal(ma_rng *);
int64_t ma_rng_below(ma_rng *, int64_t n);       /* 0..n-1, without bias */
void ma_rng_fill_normal(const ma_rng *, float *out, size_t n);   /* elements 0..n-1, in parallel */
void ma_rng_fill_uniform(const ma_rng *, float *out, size_t n);  /* [0,1) */

#endif
