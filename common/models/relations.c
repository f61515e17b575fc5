/* relations: see relations.h. Sources: MoAlign, soft token-relation distillation; VideoREPA, its loss and ablations;
 * REPA. */
#include "relations.h"

#include <math.h>

/* What a pair `apart` frames apart counts, of F frames with N tokens each. */
static double weight_of(align_loss kind, int64_t apart, int64_t frames, int64_t tokens, double tau) {
    const double f = (double)frames, n = (double)tokens, all = f * n * f * n;
    const bool same = apart == 0;
    switch (kind) {
    case ALIGN_SOFT_TRD: return same ? 1 / (f * n * n) : exp(-(double)apart / tau) / all;
    case ALIGN_TRD: return 1 / all;
    case ALIGN_TRD_SPATIAL: return same ? 1 / (f * n * n) : 0;
    case ALIGN_TRD_TEMPORAL: return same || frames < 2 ? 0 : 1 / (f * (f - 1) * n * n);
    default: return 0;
    }
}

ma_tensor *align_loss_of(ma_ctx *c, align_loss kind, ma_tensor *z, ma_tensor *m, double tau, double margin) {
    enum { MOST = 1024 };
    if (!z || !m) return NULL;
    const int64_t frames = z->n[1], tokens = z->n[2] * z->n[3];
    float weights[MOST];
    if (frames > MOST) {
        ma_fail(ma_ctx_err(c), MA_SHAPE, "alignment: %lld frames; %d are the most", (long long)frames, MOST);
        return NULL;
    }
    z = ma_view(c, z, MA_SHAPE(z->n[0], frames, tokens, z->n[4]));
    m = ma_view(c, m, MA_SHAPE(m->n[0], m->n[1], m->n[2] * m->n[3], m->n[4]));
    if (kind == ALIGN_REPA) return ma_cosine(c, z, m);
    for (int64_t k = 0; k < frames; k++) weights[k] = (float)weight_of(kind, k, frames, tokens, tau);
    ma_tensor *w = ma_input_f32(c, weights, MA_SHAPE(frames));
    return ma_relation(c, z, m, w, kind == ALIGN_SOFT_TRD ? 0 : margin);
}
