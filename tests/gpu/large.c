/* large: a convolution over more elements than 32 bits count, which cuDNN is given in parts where it has no engine for
 * the whole. What goes in repeats every two frames, so what comes out must, too, and be what two frames alone give. */
#include "../../common/ops.h"
#include "../../common/rng.h"
#include "../tap.h"

enum { H = 480, W = 720, THIN = 64, C = 8 * THIN, PAIRS = 7, O = 8, FRAME = H * W * O };

static ma_tensor *draw(ma_ctx *c, const char *name, float scale, int nd, const int64_t *n) {
    ma_tensor *t = ma_new(c, ma_get_type(c), nd, n);
    float *host = t ? ma_alloc((size_t)ma_count(t), sizeof *host) : NULL;
    ma_rng r = ma_rng_make(1, name, 0, MA_RNG_TEST);
    if (!host) return NULL;
    ma_rng_fill_normal(&r, host, (size_t)ma_count(t));
    for (int64_t k = 0; k < ma_count(t); k++) host[k] *= scale;
    ma_put(c, t, host);
    ma_release(host);
    return t;
}

/* t, n times in a row. */
static ma_tensor *repeat(ma_ctx *c, ma_tensor *t, int n, int axis) {
    ma_tensor *all[8];
    for (int k = 0; k < n; k++) all[k] = t;
    return ma_concat(c, all, n, axis);
}

static void check(ma_ctx *c, ma_window v) {
    ma_tensor *x = repeat(c, draw(c, "x", 1, MA_SHAPE(1, 2, H, W, THIN)), C / THIN, 4); // (1,2,480,720,512)
    ma_tensor *w = draw(c, "w", 0.01f, MA_SHAPE(O, 3, 3, 3, C)), *b = draw(c, "b", 1, MA_SHAPE(O));
    ma_tensor *few = ma_conv(c, repeat(c, x, 2, 1), w, b, v, MA_SILU);
    ma_tensor *many = ma_conv(c, repeat(c, x, PAIRS, 1), w, b, v, MA_SILU); // of 2.5e9 elements
    int64_t pad = v.before[0], frames = many ? many->n[1] : 0;
    float *want = ma_alloc((size_t)(4 + pad) * FRAME, sizeof *want),
          *got = ma_alloc((size_t)(frames + 1) * FRAME, sizeof *got);
    if (!ok(few && many && !ma_get(c, few, want) && !ma_get(c, many, got), "runs %s", ma_ctx_err(c)->text)) return;
    double worst = 0;
    for (int64_t t = 0; t < frames - pad; t++) { /* with padding before, the first frame is one of its own */
        const float *like = want + (t < pad ? t : pad + (t - pad) % 2) * FRAME;
        worst = fmax(worst, rel_error(got + t * FRAME, like, FRAME));
    }
    ok(worst < 1e-2, "%d frames, padding %d: %.1e", (int)frames, (int)pad, worst);
    ma_release(want);
    ma_release(got);
    ma_reset(c);
}

int main(void) {
    ma_err e = {0};
    char note[160];
    ma_device *gpu = ma_device_open("cuda", false, note, &e);
    if (!gpu) {
        ok(false, "%s", e.text);
        return tap_done();
    }
    ma_ctx *c = ma_ctx_new(gpu, &e);
    ma_set_type(c, MA_BF16);
    check(c, MA_WINDOW(1, 1, 1, 0, 1, 1));
    check(c, MA_WINDOW(1, 1, 1, 1, 1, 1));
    ma_ctx_free(c);
    ma_device_close(gpu);
    return tap_done();
}
