/* diffuse: what a diffusion model learns from, out of stored posteriors (ops.h). Forward only. A thread takes the four
 * elements of a block of Philox; the posterior is channels first, so what neighbours read is near, not side by side. */
#include "../../common/ops.h"
#include "../../common/philox.h"
#include "../../common/rng.h"
#include "pack.cuh"

namespace {

using namespace packs;

struct diffusion {
    array in;
    const ma_noising *how;
    float *out;
    int64_t batch, channels, plane;
    float scale;
    uint32_t inner[2], outer[2]; /* the upper halves of the two streams' counters */
};

__global__ void __launch_bounds__(THREADS) diffuse(diffusion d) {
    const int64_t count = d.channels * d.plane, fours = (count + 3) / 4;
    for (int64_t f = blockIdx.x * (int64_t)THREADS + threadIdx.x; f < d.batch * fours;
         f += gridDim.x * (int64_t)THREADS) {
        const int64_t b = f / fours, first = f % fours * 4;
        const ma_noising h = d.how[b];
        float inner[4], outer[4], *x = d.out + b * count, *v = x + d.batch * count;
        ma_philox_four(h.key, d.inner, first / 4, inner);
        ma_philox_four(h.key, d.outer, first / 4, outer);
        for (int k = 0; k < 4 && first + k < count; k++) {
            const int64_t e = first + k, mean = (b * 2 * d.channels + e % d.channels) * d.plane + e / d.channels;
            const float spread = expf(0.5f * fminf(fmaxf(load_one(d.in, mean + count), -30), 20));
            const float x0 = d.scale * (load_one(d.in, mean) + spread * inner[k]);
            x[e] = h.signal * x0 + h.noise * outer[k];
            v[e] = h.signal * outer[k] - h.noise * x0;
        }
    }
}

} // namespace

int ma_cuda_diffuse_fwd(const ma_call *call) {
    ma_cuda *cuda = (ma_cuda *)call->stream;
    const ma_tensor *in = call->in[0];
    diffusion d = {data_of(in),
                   (const ma_noising *)call->in[1]->data,
                   (float *)call->out->data,
                   in->n[0],
                   in->n[1] / 2,
                   in->n[2] * in->n[3] * in->n[4],
                   (float)call->f[0],
                   {},
                   {}};
    if (call->out->type != MA_F32) return -1;
    ma_philox_high(call->i[0], MA_RNG_POSTERIOR, d.inner);
    ma_philox_high(call->i[0], MA_RNG_NOISE, d.outer);
    const int64_t blocks = ceil_div(d.batch * ceil_div(d.channels * d.plane, 4), THREADS);
    if (!blocks) return 0;
    diffuse<<<(unsigned)(blocks < 1 << 16 ? blocks : 1 << 16), THREADS, 0, cuda->stream>>>(d);
    return launched(cuda, "diffuse");
}
