/* scale: parts of pictures at another size, as RGB: antialiased bicubic, what torchvision's resize(antialias=True)
 * does. YUV is resized plane by plane and becomes RGB at the new size. As both are sums, that is the RGB picture
 * resized, but for what rounding and clipping at the old size would have taken off: one level of 255, more where
 * colours are out of range. */
#ifndef MA_SCALE_H
#define MA_SCALE_H
#include "base.h"

/* Where a picture's part comes from and goes to. */
typedef struct ma_scale_sizes {
    int64_t y, x, h, w; /* of the picture, in pixels */
    int64_t oh, ow;
} ma_scale_sizes;

/* How planes Y, U, V are meant: pixel (y, x) has the chroma at (y >> down, x >> across), as FFmpeg's own converter
 * takes it where the size stays; colour c is the sum of matrix[c] times Y, U, V and 1, in 0..255. */
typedef struct ma_scale_yuv {
    int down, across;
    float matrix[3][4];
} ma_scale_yuv;

/* For many pictures, one after another on one thread. yuv NULL: pictures are RGB, one plane of three bytes a pixel.
 * NULL: out of memory, or sides of tens of millions. */
typedef struct ma_scaler ma_scaler;
ma_scaler *ma_scaler_new(const ma_scale_sizes *, const ma_scale_yuv *yuv);
/* Strides: bytes from a row to the next. */
void ma_scaler_run(ma_scaler *, const uint8_t *const *planes, const int *strides, uint8_t *rgb, int64_t stride);
void ma_scaler_free(ma_scaler *);

#endif
