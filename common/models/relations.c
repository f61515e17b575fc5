/* relations: see relations.h. Sources: MoAlign, soft token-relation distillation; VideoREPA, its loss and ablations;
 * REPA. */
#include "relations.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- names ---- */

static const char *const NAMES[ALIGN_KINDS] = {[ALIGN_SOFT_TRD] = "soft-trd",
                                               [ALIGN_TRD] = "trd",
                                               [ALIGN_TRD_SPATIAL] = "trd-spatial",
                                               [ALIGN_TRD_TEMPORAL] = "trd-temporal",
                                               [ALIGN_REPA] = "repa"};

const char *align_name(align_loss kind) {
    return NAMES[kind];
}

/* One of them, the n bytes at s: NAME or NAME=WEIGHT. */
static int read_term(const char *s, size_t n, double lambda, align_terms *t, ma_err *e) {
    const char *equals = memchr(s, '=', n);
    char *end = NULL;
    const size_t length = equals ? (size_t)(equals - s) : n;
    const double weight = equals ? strtod(equals + 1, &end) : lambda;
    int kind = 0;
    while (kind < ALIGN_KINDS && (strlen(NAMES[kind]) != length || memcmp(NAMES[kind], s, length))) kind++;
    if (kind == ALIGN_KINDS)
        return ma_fail(e, MA_USAGE, "--loss: %.*s is not one of soft-trd, trd, trd-spatial, trd-temporal, repa, none",
                       (int)length, s);
    if (equals && (end != s + n || end == equals + 1 || !(weight >= 0 && weight <= 1e6)))
        return ma_fail(e, MA_USAGE, "--loss: %.*s: the weight is not a number in 0..1e6", (int)n, s);
    for (int k = 0; k < t->n; k++)
        if ((int)t->at[k].kind == kind) return ma_fail(e, MA_USAGE, "--loss: %s twice", NAMES[kind]);
    t->at[t->n].kind = (align_loss)kind;
    t->at[t->n++].weight = weight;
    return 0;
}

int align_terms_read(const char *text, double lambda, align_terms *t, ma_err *e) {
    *t = (align_terms){0};
    int rc = 0;
    if (!strcmp(text, "none")) return 0;
    for (const char *s = text, *end; s && !rc; s = *end ? end + 1 : NULL) {
        end = strchrnul(s, ',');
        rc = read_term(s, (size_t)(end - s), lambda, t, e);
    }
    return rc;
}

/* ---- losses ---- */

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
