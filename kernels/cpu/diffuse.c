/* diffuse: what a diffusion model learns from, out of stored posteriors (ops.h). Forward only. */
#include "../../common/ops.h"
#include "../../common/philox.h"
#include "../../common/rng.h"
#include "cpu.h"

static float number(const ma_tensor *t, int64_t at) {
    return t->type == MA_F16 ? ma_f16_to_f32(((const uint16_t *)t->data)[at]) : ((const float *)t->data)[at];
}

int ma_cpu_diffuse_fwd(const ma_call *call) {
    const ma_tensor *in = call->in[0], *out = call->out;
    const ma_noising *how = call->in[1]->data;
    const int64_t batch = in->n[0], channels = in->n[1] / 2, plane = in->n[2] * in->n[3] * in->n[4],
                  count = channels * plane, fours = (count + 3) / 4;
    const float scale = (float)call->f[0];
    uint32_t posterior[2], noise[2]; /* the upper halves of the two streams' counters */
    ma_philox_high((uint64_t)call->i[0], MA_RNG_POSTERIOR, posterior);
    ma_philox_high((uint64_t)call->i[0], MA_RNG_NOISE, noise);
    if (out->type != MA_F32) return -1;
#pragma omp parallel for
    for (int64_t f = 0; f < batch * fours; f++) {
        const int64_t b = f / fours, first = f % fours * 4;
        const ma_noising h = how[b];
        float inner[4], outer[4], *x = (float *)out->data + b * count, *v = x + batch * count;
        ma_philox_four(h.key, posterior, (uint64_t)first / 4, inner);
        ma_philox_four(h.key, noise, (uint64_t)first / 4, outer);
        for (int64_t k = 0, e = first; k < 4 && e < count; k++, e++) {
            const int64_t mean = (b * 2 * channels + e % channels) * plane + e / channels;
            const float spread = expf(0.5f * fminf(fmaxf(number(in, mean + count), -30), 20));
            const float x0 = scale * (number(in, mean) + spread * inner[k]);
            x[e] = h.signal * x0 + h.noise * outer[k];
            v[e] = h.signal * outer[k] - h.noise * x0;
        }
    }
    return 0;
}
