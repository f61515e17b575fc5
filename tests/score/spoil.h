/* spoil: what a weak generator does to a clip: a blur of 3×3 pixels, then noise of 8 of 255. */
#ifndef SPOIL_H
#define SPOIL_H

#include "../../common/rng.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int64_t within(int64_t i, int64_t n) {
    return i < 0 ? 0 : i < n ? i : n - 1;
}

/* rgb (frames,h,w,3); the noise depends on the key alone. */
static void spoil(uint8_t *rgb, int64_t frames, int64_t h, int64_t w, const char *key) {
    const size_t frame = (size_t)(h * w * 3);
    uint8_t *sharp = malloc(frame);
    ma_rng g = ma_rng_make(1, key, 0, MA_RNG_TEST);
    for (int64_t t = 0; t < frames && sharp; t++, rgb += frame) {
        memcpy(sharp, rgb, frame);
        for (int64_t i = 0; i < (int64_t)frame; i++) {
            const int64_t y = i / (w * 3), x = i / 3 % w;
            int sum = 0;
            for (int64_t k = 0; k < 9; k++)
                sum += sharp[(within(y + k / 3 - 1, h) * w + within(x + k % 3 - 1, w)) * 3 + i % 3];
            rgb[i] = (uint8_t)fmin(255, fmax(0, sum / 9.0 + 8 * ma_rng_normal(&g) + 0.5));
        }
    }
    free(sharp);
}

#endif
