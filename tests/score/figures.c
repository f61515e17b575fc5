/* Figures by flow: true flow leads from a frame to the next, on its own grid or another; none leads nowhere; what moves
 * is dynamic. */
#include "../../common/figures.h"
#include "../../common/world.h"
#include "../tap.h"

#include <string.h>

enum { F = 9, H = 48, W = 64, PAIRS = 4 };

static uint8_t rgb[F * H * W * 3];
static float flow[PAIRS * H * W * 2], coarse[PAIRS * (H / 2) * (W / 2) * 2];

/* A fall before a camera that moves; flow from frame 1 on, every other one. */
static void make(void) {
    const ma_world_opts o = {
        .size = {F, H, W, 12}, .kinds = 1u << MA_WORLD_FALL, .balls = 1, .pan = 1, .motion_seed = 3};
    ma_err e = {0};
    ma_world *w = ma_world_make(&o, "figures", &e);
    for (int64_t t = 0; t < F && w; t++) ma_world_render(w, t, rgb + t * H * W * 3);
    for (int64_t k = 0; k < PAIRS && w; k++) ma_world_flow(w, 2 * k, 2 * k + 2, flow + k * H * W * 2);
    ma_world_free(w);
    for (int64_t i = 0; i < PAIRS * (H / 2) * (W / 2); i++) { /* the mean of four, in pixels of the smaller picture */
        const int64_t k = i / (H / 2 * (W / 2)), y = i / (W / 2) % (H / 2), x = i % (W / 2);
        const float *p = flow + ((k * H + 2 * y) * W + 2 * x) * 2;
        for (int c = 0; c < 2; c++) coarse[2 * i + c] = (p[c] + p[2 + c] + p[2 * W + c] + p[2 * W + 2 + c]) / 8;
    }
}

static ma_figures figures_of(const float *uv, int64_t h, int64_t w, double fps) {
    ma_figures out = {0};
    ma_err e = {0};
    const ma_flow_clip c = {rgb, F, H, W, fps, uv, PAIRS, h, w, 0, 2};
    const int rc = ma_figures_of(&c, &out, &e);
    ok(!rc, "figures at %.0f frames per second: smoothness %.4f, %s", fps, out.smoothness,
       out.dynamic ? "dynamic" : "not dynamic");
    return out;
}

int main(void) {
    make();
    const ma_figures own = figures_of(flow, H, W, 12), other = figures_of(coarse, H / 2, W / 2, 12);
    const ma_figures slow = figures_of(flow, H, W, 0.2);
    memset(flow, 0, sizeof flow);
    const ma_figures none = figures_of(flow, H, W, 12);
    ok(own.smoothness > 0.97 && 1 - own.smoothness < (1 - none.smoothness) / 2,
       "true flow leads to the next frame, none does not");
    ok(fabs(own.smoothness - other.smoothness) < 0.01, "on half the grid nearly the same");
    ok(own.dynamic && other.dynamic && !slow.dynamic && !none.dynamic,
       "what moves is dynamic; slowly, or not at all, it is not");
    return tap_done();
}
