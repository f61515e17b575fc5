/* image: flow as a picture. No file formats here: see image_file.c; and scale.c for sizes. */
#include "video.h"
#include <math.h>
#include <string.h>

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
