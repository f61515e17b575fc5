/* pixel: see pixel.h. */
#include "pixel.h"

void pixel_encode(const uint8_t *rgb, int64_t t, int64_t h, int64_t w, int64_t p, float *latent) {
    const int64_t rows = h / p, columns = w / p, channels = 3 * p * p, plane = t * rows * columns;
    for (int64_t n = 0; n < t; n++)
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++)
                for (int64_t c = 0; c < 3; c++)
                    latent[(c * p * p + y % p * p + x % p) * plane + (n * rows + y / p) * columns + x / p] =
                        (float)rgb[((n * h + y) * w + x) * 3 + c] / 127.5f - 1;
    for (int64_t k = channels * plane; k < 2 * channels * plane; k++) latent[k] = PIXEL_LOG_VARIANCE;
}

void pixel_decode(const float *x, int64_t t, int64_t h, int64_t w, int64_t p, float *rgb) {
    const int64_t height = h * p, width = w * p, channels = 3 * p * p;
    for (int64_t n = 0; n < t; n++)
        for (int64_t y = 0; y < height; y++)
            for (int64_t k = 0; k < width; k++)
                for (int64_t c = 0; c < 3; c++) {
                    const float *token = x + ((n * h + y / p) * w + k / p) * channels;
                    rgb[((n * height + y) * width + k) * 3 + c] = token[c * p * p + y % p * p + k % p];
                }
}
