/* Pictures: resizing against torch, PNG there and back, the colour wheel. */
#include "../../common/scale.h"
#include "../../common/video.h"
#include "../tap.h"
#include <math.h>
#include <string.h>

/* A picture that anyone can make again. */
static void paint(uint8_t *p, int h, int w) {
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            for (int c = 0; c < 3; c++) *p++ = (uint8_t)(y * y * 7 + x * 23 + c * 31 + (x * y) % 5 * 40);
}

/* torch.nn.functional.interpolate(float picture, mode="bicubic", antialias=True).clamp(0, 255).round() */
static const uint8_t smaller[4 * 5 * 3] = {47,  70,  105, 117, 125, 106, 126, 135, 164, 172, 133, 158, 166, 102, 87,
                                           109, 135, 114, 133, 82,  98,  178, 93,  125, 118, 109, 140, 85,  105, 139,
                                           148, 153, 112, 148, 104, 84,  121, 80,  110, 113, 121, 154, 125, 126, 161,
                                           124, 135, 171, 120, 144, 129, 128, 149, 96,  118, 129, 131, 135, 146, 134};
static const uint8_t larger[7 * 9 * 3] = {
    0,   29,  60,  4,   35,  66,  17,  48,  79,  28,  59,  89,  39,  70,  101, 49,  80,  124, 63,  94,  145,
    89,  120, 157, 102, 133, 163, 0,   30,  61,  9,   40,  71,  31,  61,  92,  49,  85,  121, 68,  109, 140,
    97,  132, 108, 107, 139, 85,  72,  110, 114, 52,  93,  131, 1,   32,  63,  21,  51,  82,  59,  89,  120,
    92,  127, 172, 126, 165, 196, 180, 214, 84,  180, 211, 0,   55,  92,  44,  0,   24,  75,  9,   40,  70,
    35,  71,  107, 88,  125, 172, 146, 107, 156, 194, 81,  112, 196, 166, 104, 175, 202, 94,  134, 77,  63,
    111, 4,   46,  22,  53,  85,  56,  96,  123, 124, 166, 186, 191, 99,  123, 233, 12,  43,  172, 99,  135,
    135, 157, 195, 211, 60,  93,  255, 2,   33,  42,  73,  119, 90,  124, 100, 176, 210, 69,  198, 187, 103,
    179, 122, 153, 101, 108, 155, 73,  87,  128, 192, 33,  67,  255, 4,   34,  54,  85,  138, 109, 139, 84,
    204, 234, 0,   198, 239, 94,  142, 194, 225, 59,  118, 164, 39,  49,  80,  174, 19,  50,  251, 6,   37};

static void test_resize(int h, int w, int oh, int ow, const uint8_t *want) {
    uint8_t in[9 * 11 * 3], out[7 * 9 * 3];
    int most = 0;
    paint(in, h, w);
    ok(!ma_image_resize(in, h, w, out, oh, ow), "%dx%d to %dx%d", h, w, oh, ow);
    for (int i = 0; i < oh * ow * 3; i++)
        if (abs(out[i] - want[i]) > most) most = abs(out[i] - want[i]);
    ok(most <= 1, "as torch has it (largest difference %d)", most);
}

/* Keys' kernel, a = -1/2. */
static double kernel(double x) {
    x = fabs(x);
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/* What position i of m takes of n values, `apart` from one to the next. */
static double resized(const double *in, int n, int apart, int m, int i) {
    double scale = (double)n / m, wide = scale > 1 ? scale : 1, centre = (i + 0.5) * scale, sum = 0, weights = 0;
    int from = (int)fmax(centre - 2 * wide + 0.5, 0), to = (int)fmin(centre + 2 * wide + 0.5, n);
    for (int k = from; k < to; k++) {
        double weight = kernel((k + 0.5 - centre) / wide);
        weights += weight;
        sum += weight * in[k * apart];
    }
    return sum / weights;
}

/* How far a picture is from `in` resized by the formula at most, (h, w, 3) values to (oh, ow, 3) bytes. */
static double farthest(const double *in, int h, int w, const uint8_t *out, int oh, int ow) {
    double *half = ma_alloc((size_t)(oh * w), 3 * sizeof *half), most = 0;
    for (int y = 0; y < oh; y++)
        for (int i = 0; i < w * 3; i++) half[y * w * 3 + i] = resized(in + i, h, w * 3, oh, y);
    for (int y = 0; y < oh; y++)
        for (int i = 0; i < ow * 3; i++) {
            double want = resized(half + y * w * 3 + i % 3, w, 3, ow, i / 3);
            most = fmax(most, fabs(fmin(fmax(want, 0), 255) - out[y * ow * 3 + i]));
        }
    ma_release(half);
    return most;
}

/* The same by the formula, at sizes where vectors, groups of rows and blocks of columns end in all sorts of places;
 * whole scales, where the kernel's zeros fall on pixels. */
static void test_sizes(void) {
    enum { MOST = 150 };
    static const int size[][4] = {{21, 33, 63, 99}, {48, 48, 16, 16}, {50, 150, 17, 50}, {7, 100, 119, 33},
                                  {64, 22, 64, 22}, {1, 1, 5, 40},    {96, 21, 31, 7},   {40, 66, 80, 22},
                                  {9, 149, 5, 97},  {150, 3, 1, 1}};
    static uint8_t in[MOST * MOST * 3], out[MOST * MOST * 3];
    static double value[MOST * MOST * 3];
    for (size_t t = 0; t < sizeof size / sizeof *size; t++) {
        const int h = size[t][0], w = size[t][1], oh = size[t][2], ow = size[t][3];
        paint(in, h, w);
        for (int i = 0; i < h * w * 3; i++) value[i] = in[i];
        const bool good = !ma_image_resize(in, h, w, out, oh, ow);
        const double most = farthest(value, h, w, out, oh, ow);
        ok(good && most < 0.51, "%dx%d to %dx%d by the formula (largest difference %.3f)", h, w, oh, ow, most);
    }
}

/* One value, whatever the weights of many thousands are rounded to. */
static void test_flat(int w) {
    enum { MOST = 120001 };
    static uint8_t in[MOST * 3], out[3 * 3];
    int wrong = 0;
    for (int v = 0; v < 256; v++) {
        memset(in, v, (size_t)w * 3);
        wrong += ma_image_resize(in, 1, w, out, 1, 3) != 0;
        for (int i = 0; i < 3 * 3; i++) wrong += out[i] != v;
    }
    ok(!wrong, "1x%d to 1x3: what is flat stays what it is (%d differ)", w, wrong);
}

/* From planes, of which two have a sample for each 2^down rows and 2^across columns: the RGB that they are, resized. */
static void test_planes(void) {
    enum { H = 63, W = 147 };
    static const int shape[][4] = {{1, 1, 21, 49}, {0, 1, 40, 100}, {0, 0, 63, 60}, {1, 1, 17, 147}};
    static const float matrix[3][4] = {{1.164384f, 0, 1.596027f, -222.9215f},
                                       {1.164384f, -0.391762f, -0.812968f, 135.5753f},
                                       {1.164384f, 2.017232f, 0, -276.8359f}};
    static uint8_t plane[3][H * W], out[H * W * 3];
    static double rgb[H * W * 3];
    for (size_t t = 0; t < sizeof shape / sizeof *shape; t++) {
        const int down = shape[t][0], across = shape[t][1], oh = shape[t][2], ow = shape[t][3];
        const int stride[3] = {W, W, W};
        for (int i = 0; i < H * W; i++) {
            plane[0][i] = (uint8_t)(16 + (i / W * 7 + i % W * 23) % 220);
            plane[1][i] = (uint8_t)(108 + (i / W * 11 + i % W * 3) % 40);
            plane[2][i] = (uint8_t)(108 + (i / W * 5 + i % W * 17) % 40);
        }
        for (int i = 0; i < H * W * 3; i++) {
            const float *m = matrix[i % 3];
            const int y = i / (W * 3), x = i / 3 % W, c = (y >> down) * W + (x >> across);
            rgb[i] = (double)m[0] * plane[0][i / 3] + (double)m[1] * plane[1][c] + (double)m[2] * plane[2][c] + m[3];
        }
        ma_scale_yuv yuv = {.down = down, .across = across};
        memcpy(yuv.matrix, matrix, sizeof matrix);
        ma_scaler *s = ma_scaler_new(&(ma_scale_sizes){0, 0, H, W, oh, ow}, &yuv);
        if (s) ma_scaler_run(s, (const uint8_t *const[]){plane[0], plane[1], plane[2]}, stride, out, ow * 3);
        const double most = farthest(rgb, H, W, out, oh, ow);
        ok(s && most < 0.53, "planes, by %d and %d, to %dx%d by the formula (largest difference %.3f)", 1 << down,
           1 << across, oh, ow, most);
        ma_scaler_free(s);
    }
}

static void test_png(void) {
    enum { H = 33, W = 41 };
    static uint8_t rgb[H * W * 3];
    static uint16_t deep[H * W * 3];
    ma_buf a = {0}, b = {0};
    ma_clip c;
    ma_err e = {0};
    paint(rgb, H, W);
    for (int i = 0; i < H * W * 3; i++) deep[i] = (uint16_t)(rgb[i] * 257);
    ok(!ma_png_write(rgb, H, W, &a, &e) && !ma_png_write(rgb, H, W, &b, &e), "png: written %s", e.text);
    ok(a.size == b.size && !memcmp(a.data, b.data, a.size), "png: the same bytes twice");
    ok(!ma_image_read(a.data, a.size, "x.png", &c, &e) && c.height == H && c.width == W &&
           !memcmp(c.rgb, rgb, sizeof rgb),
       "png: read back %s", e.text);
    ma_clip_free(&c);
    ok(ma_image_read(a.data, a.size / 2, "x.png", &c, &e) && e.reason == MA_CORRUPT, "png: half: %s", e.text);
    a.data[a.size / 2] ^= 1;
    ma_err_clear(&e);
    ok(ma_image_read(a.data, a.size, "x.png", &c, &e) && e.reason == MA_CORRUPT, "png: damaged: %s", e.text);
    ma_err_clear(&e);
    ok(ma_image_read("GIF89a__________", 16, "x.gif", &c, &e) && e.reason == MA_UNSUPPORTED, "gif: %s", e.text);
    b.size = 0;
    ma_err_clear(&e);
    ok(!ma_png_write16(deep, H, W, &b, &e) && b.data[24] == 16 && b.data[25] == 2, "png: 16 bit RGB %s", e.text);
    if (ok(!ma_image_read(b.data, b.size, "y.png", &c, &e), "png: 16 bit read %s", e.text)) {
        int most = 0;
        for (int i = 0; i < H * W * 3; i++)
            if (abs(c.rgb[i] - rgb[i]) > most) most = abs(c.rgb[i] - rgb[i]);
        ok(most <= 1, "png: 16 bit, high bytes (%d)", most);
        ma_clip_free(&c);
    }
    ok(ma_png_write(rgb, 0, W, &b, &e), "png: no rows: %s", e.text);
    ma_buf_free(&a);
    ma_buf_free(&b);
}

static void test_wheel(void) {
    static const float uv[7][2] = {{2, 0}, {-2, 0}, {0, 2}, {0, -2}, {0, 0}, {1, 0}, {2e9f, 0}};
    static const uint8_t want[7][3] = {{255, 0, 0},     {0, 208, 255},   {255, 229, 0}, {88, 0, 255},
                                       {255, 255, 255}, {255, 127, 127}, {0, 0, 0}};
    uint8_t rgb[7][3];
    ma_flow_picture(&uv[0][0], 1, 7, 0, &rgb[0][0]);
    for (int i = 0; i < 7; i++)
        ok(abs(rgb[i][0] - want[i][0]) < 2 && abs(rgb[i][1] - want[i][1]) < 2 && abs(rgb[i][2] - want[i][2]) < 2,
           "flow (%g, %g): %d %d %d", uv[i][0], uv[i][1], rgb[i][0], rgb[i][1], rgb[i][2]);
    ma_flow_picture(&uv[0][0], 1, 1, 1, &rgb[0][0]);
    ok(rgb[0][0] == 191 && rgb[0][1] == 0, "flow beyond the given length is darker");
}

int main(void) {
    test_resize(9, 11, 4, 5, smaller);
    test_resize(4, 5, 7, 9, larger);
    test_sizes();
    test_flat(9001);
    test_flat(120001); /* more than 16 bits count */
    test_planes();
    test_png();
    test_wheel();
    return tap_done();
}
