/* flow: see flow.h. */
#include "flow.h"

#include <math.h>

/* Component k of b at (x, y), which lies inside. */
static float sample(const float *b, int64_t h, int64_t w, float x, float y, int k) {
    int64_t x0 = (int64_t)x, y0 = (int64_t)y, x1 = x0 + 1 < w ? x0 + 1 : x0, y1 = y0 + 1 < h ? y0 + 1 : y0;
    float fx = x - (float)x0, fy = y - (float)y0;
    float upper = b[2 * (y0 * w + x0) + k] * (1 - fx) + b[2 * (y0 * w + x1) + k] * fx;
    float lower = b[2 * (y1 * w + x0) + k] * (1 - fx) + b[2 * (y1 * w + x1) + k] * fx;
    return upper * (1 - fy) + lower * fy;
}

void ma_flow_consistent(const float *f, const float *b, int64_t h, int64_t w, uint8_t *valid) {
#pragma omp parallel for
    for (int64_t i = 0; i < h * w; i++) {
        float u = f[2 * i], v = f[2 * i + 1], x = (float)(i % w) + u, y = (float)(i / w) + v;
        valid[i] = 0;
        if (!(x >= 0 && x <= (float)(w - 1) && y >= 0 && y <= (float)(h - 1))) continue;
        float back[] = {sample(b, h, w, x, y, 0), sample(b, h, w, x, y, 1)};
        float miss = (u + back[0]) * (u + back[0]) + (v + back[1]) * (v + back[1]);
        valid[i] = miss < 0.01f * (u * u + v * v + back[0] * back[0] + back[1] * back[1]) + 0.5f;
    }
}

void ma_flow_compare(const float *estimate, const float *truth, const uint8_t *valid, int64_t n, ma_flow_error *sum) {
    for (int64_t i = 0; i < n; i++) {
        if (valid && !valid[i]) continue;
        double d = hypot((double)estimate[2 * i] - truth[2 * i], (double)estimate[2 * i + 1] - truth[2 * i + 1]);
        sum->sum += d;
        sum->pixels++;
        sum->over1 += !(d <= 1);
        sum->over3 += !(d <= 3);
    }
}
