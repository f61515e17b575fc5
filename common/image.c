/* image: resizing, and flow as a picture. No file formats here: see video_read.c and video_write.c.
 *
 * Limits: 8 bit a channel; bicubic only.
 * Traps: antialiasing means that the kernel widens with the scale when shrinking (as in PIL and in torchvision with
 * antialias=True), with a = -0.5, not the -0.75 of the plain bicubic of torch; weights at the border are cut and
 * normalised anew. Sums stay in fp32 between the two passes, where PIL rounds to 8 bit.
 */
#include "video.h"
#include <math.h>
#include <string.h>

/* What one output position takes: count source positions from `from` on, and their weights. */
typedef struct taps {
    int64_t from, count;
    float *weight;
} taps;

static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return ((x - 5) * x + 8) * x * a - 4 * a;
    return 0;
}

/* The taps from n positions to m; one allocation holds them and their weights. NULL: out of memory. */
static taps *make_taps(int64_t n, int64_t m) {
    double scale = (double)n / (double)m, wide = scale > 1 ? scale : 1;
    size_t most = (size_t)ceil(4 * wide) + 2;
    taps *t = ma_alloc((size_t)m, sizeof *t + most * sizeof(float));
    for (int64_t i = 0; t && i < m; i++) {
        double centre = ((double)i + 0.5) * scale, sum = 0;
        int64_t from = (int64_t)(centre - 2 * wide + 0.5), to = (int64_t)(centre + 2 * wide + 0.5);
        if (from < 0) from = 0;
        if (to > n) to = n;
        t[i] = (taps){from, to - from, (float *)(t + m) + (size_t)i * most};
        for (int64_t j = from; j < to; j++) sum += cubic(((double)j + 0.5 - centre) / wide);
        for (int64_t j = from; j < to; j++)
            t[i].weight[j - from] = (float)(cubic(((double)j + 0.5 - centre) / wide) / sum);
    }
    return t;
}

static void row_across(const uint8_t *in, float *out, const taps *t, int64_t ow, int n) {
    for (int64_t x = 0; x < ow; x++)
        for (int c = 0; c < n; c++) {
            const uint8_t *p = in + t[x].from * n + c;
            float sum = 0;
            for (int64_t k = 0; k < t[x].count; k++) sum += t[x].weight[k] * p[k * n];
            out[x * n + c] = sum;
        }
}

static void row_down(const float *in, float *sum, uint8_t *out, taps t, int64_t row) {
    memset(sum, 0, (size_t)row * sizeof *sum);
    for (int64_t k = 0; k < t.count; k++) {
        const float *p = in + (t.from + k) * row, w = t.weight[k];
        for (int64_t i = 0; i < row; i++) sum[i] += w * p[i];
    }
    for (int64_t i = 0; i < row; i++) {
        float v = sum[i] + 0.5f;
        out[i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
    }
}

int ma_image_resize(const uint8_t *in, int64_t h, int64_t w, uint8_t *out, int64_t oh, int64_t ow, int n) {
    if (h == oh && w == ow) {
        memcpy(out, in, (size_t)(h * w * n));
        return 0;
    }
    taps *across = make_taps(w, ow), *down = make_taps(h, oh);
    float *half = ma_alloc((size_t)h, (size_t)(ow * n) * sizeof *half); /* (h, ow, n) */
    float *sums = ma_alloc((size_t)oh, (size_t)(ow * n) * sizeof *sums);
    bool fits = across && down && half && sums;
    if (fits) {
#pragma omp parallel
        {
#pragma omp for
            for (int64_t y = 0; y < h; y++) row_across(in + y * w * n, half + y * ow * n, across, ow, n);
#pragma omp for
            for (int64_t y = 0; y < oh; y++) row_down(half, sums + y * ow * n, out + y * ow * n, down[y], ow * n);
        }
    }
    ma_release(across);
    ma_release(down);
    ma_release(half);
    ma_release(sums);
    return fits ? 0 : -1;
}

/* Flow of this length or more, or NaN, is unknown, by the convention of .flo files: black. */
static const float UNKNOWN = 1e9f;

/* The wheel: hues in six arcs from one primary to the next, as many steps as the eye tells apart. */
enum { RY = 15, YG = 6, GC = 4, CB = 11, BM = 13, MR = 6, HUES = RY + YG + GC + CB + BM + MR };

static void make_wheel(float wheel[HUES][3]) {
    static const struct {
        int steps, full, moves; /* channel that stays at 1, channel that moves */
        bool up;
    } arc[6] = {{RY, 0, 1, true},  {YG, 1, 0, false}, {GC, 1, 2, true},
                {CB, 2, 1, false}, {BM, 2, 0, true},  {MR, 0, 2, false}};
    int k = 0;
    for (int a = 0; a < 6; a++)
        for (int i = 0; i < arc[a].steps; i++, k++) {
            float part = (float)i / (float)arc[a].steps;
            memset(wheel[k], 0, sizeof wheel[k]);
            wheel[k][arc[a].full] = 1;
            wheel[k][arc[a].moves] = arc[a].up ? part : 1 - part;
        }
}

static void hue_of(const float wheel[HUES][3], float u, float v, float max, uint8_t *rgb) {
    float length = hypotf(u, v);
    if (!(length < UNKNOWN)) {
        memset(rgb, 0, 3);
        return;
    }
    length /= max;
    float at = (atan2f(-v, -u) / (float)M_PI + 1) / 2 * (HUES - 1);
    int k = (int)at, next = (k + 1) % HUES;
    for (int c = 0; c < 3; c++) {
        float hue = wheel[k][c] + (at - (float)k) * (wheel[next][c] - wheel[k][c]);
        hue = length <= 1 ? 1 - length * (1 - hue) : hue * 0.75f;
        rgb[c] = (uint8_t)(255 * hue);
    }
}

float ma_flow_longest(const float *uv, int64_t n) {
    float most = 0;
    for (int64_t i = 0; i < n; i++) {
        float length = hypotf(uv[2 * i], uv[2 * i + 1]);
        if (length > most && length < UNKNOWN) most = length;
    }
    return most;
}

void ma_flow_picture(const float *uv, int64_t h, int64_t w, float max, uint8_t *rgb) {
    float wheel[HUES][3];
    make_wheel(wheel);
    if (!(max > 0)) max = ma_flow_longest(uv, h * w);
    if (!(max > 0)) max = 1;
    for (int64_t i = 0; i < h * w; i++) hue_of(wheel, uv[2 * i], uv[2 * i + 1], max, rgb + 3 * i);
}
