/* sha: SHA-256 (FIPS 180-4), by the processor's own instructions where it has them: they are seven times as fast, and
 * every input and every weight is hashed. */
#include "file.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#endif

enum { BLOCK = 64, ROUNDS = 64 };

static const uint32_t constant[ROUNDS] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

struct ma_sha {
    void (*blocks)(uint32_t state[8], const uint8_t *, size_t n);
    uint32_t state[8];
    uint64_t size; /* bytes so far; those that do not fill a block wait in rest */
    uint8_t rest[BLOCK];
};

static uint32_t turn(uint32_t v, int by) {
    return v >> by | v << (32 - by);
}

/* One round; kw: its constant and word. Who is a, b, … turns by one each round, so that nothing is moved. */
static inline void round_of(uint32_t a, uint32_t b, uint32_t c, uint32_t *d, uint32_t e, uint32_t f, uint32_t g,
                            uint32_t *h, uint32_t kw) {
    uint32_t t = *h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + kw;
    *d += t;
    *h = t + (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
}

static void blocks_plain(uint32_t state[8], const uint8_t *p, size_t n) {
    for (; n; n--, p += BLOCK) {
        uint32_t w[ROUNDS];
        for (int t = 0; t < 16; t++)
            w[t] = (uint32_t)p[4 * t] << 24 | (uint32_t)p[4 * t + 1] << 16 | (uint32_t)p[4 * t + 2] << 8 | p[4 * t + 3];
        for (int t = 16; t < ROUNDS; t++) {
            uint32_t a = w[t - 15], b = w[t - 2];
            w[t] = w[t - 16] + w[t - 7] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6],
                 h = state[7];
        for (int t = 0; t < ROUNDS; t += 8) {
            const uint32_t *k = constant + t, *v = w + t;
            round_of(a, b, c, &d, e, f, g, &h, k[0] + v[0]);
            round_of(h, a, b, &c, d, e, f, &g, k[1] + v[1]);
            round_of(g, h, a, &b, c, d, e, &f, k[2] + v[2]);
            round_of(f, g, h, &a, b, c, d, &e, k[3] + v[3]);
            round_of(e, f, g, &h, a, b, c, &d, k[4] + v[4]);
            round_of(d, e, f, &g, h, a, b, &c, k[5] + v[5]);
            round_of(c, d, e, &f, g, h, a, &b, k[6] + v[6]);
            round_of(b, c, d, &e, f, g, h, &a, k[7] + v[7]);
        }
        const uint32_t add[8] = {a, b, c, d, e, f, g, h};
        for (int k = 0; k < 8; k++) state[k] += add[k];
    }
}

#ifdef __x86_64__
static bool has_instructions(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & 1u << 29;
}

/* The instructions want the state as two vectors, ABEF and CDGH, A in the uppermost lane, and do two rounds. */
__attribute__((target("sha,sse4.1"))) static void blocks_fast(uint32_t state[8], const uint8_t *p, size_t n) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xb1);
    __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0x1b);
    __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);
    for (; n; n--, p += BLOCK) {
        __m128i before[] = {abef, cdgh}, w[4] = {{0}};
#pragma GCC unroll 16
        for (int t = 0; t < ROUNDS / 4; t++) { /* w[t % 4] becomes words 4t … 4t + 3 */
            __m128i *now = &w[t & 3], last = w[(t + 3) & 3];
            if (t < 4) {
                *now = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(p + 16 * t)), swap);
            } else {
                __m128i sum =
                    _mm_add_epi32(_mm_sha256msg1_epu32(*now, w[(t + 1) & 3]), _mm_alignr_epi8(last, w[(t + 2) & 3], 4));
                *now = _mm_sha256msg2_epu32(sum, last);
            }
            __m128i k = _mm_add_epi32(*now, _mm_loadu_si128((const __m128i *)(constant + 4 * t)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(k, 0x0e));
        }
        abef = _mm_add_epi32(abef, before[0]);
        cdgh = _mm_add_epi32(cdgh, before[1]);
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}
#endif

ma_sha *ma_sha_new(void) {
    static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    ma_sha *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    memcpy(s->state, first, sizeof first);
    s->blocks = blocks_plain;
#ifdef __x86_64__
    if (has_instructions()) s->blocks = blocks_fast;
#endif
    return s;
}

void ma_sha_add(ma_sha *s, const void *bytes, size_t n) {
    const uint8_t *p = bytes;
    if (!s || !n) return;
    size_t waits = s->size % BLOCK, fits = BLOCK - waits;
    s->size += n;
    if (waits) {
        memcpy(s->rest + waits, p, n < fits ? n : fits);
        if (n < fits) return;
        s->blocks(s->state, s->rest, 1);
        p += fits;
        n -= fits;
    }
    s->blocks(s->state, p, n / BLOCK);
    memcpy(s->rest, p + n / BLOCK * BLOCK, n % BLOCK);
}

void ma_sha_end(ma_sha *s, char hex[65]) {
    hex[0] = 0;
    if (!s) return;
    uint8_t end[2 * BLOCK] = {0x80};
    uint64_t bits = s->size * 8;
    size_t n = BLOCK - s->size % BLOCK; /* bytes of end: to the block's, or where 9 do not fit to the next one's */
    if (n < 9) n += BLOCK;
    for (int i = 0; i < 8; i++) end[n - 1 - (size_t)i] = (uint8_t)(bits >> 8 * i);
    ma_sha_add(s, end, n);
    for (int i = 0; i < 8; i++) snprintf(hex + 8 * i, 9, "%08x", s->state[i]);
    free(s);
}

void ma_sha_bytes(const void *bytes, size_t n, char hex[65]) {
    ma_sha *s = ma_sha_new();
    ma_sha_add(s, bytes, n);
    ma_sha_end(s, hex);
}
