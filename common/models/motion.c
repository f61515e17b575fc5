/* motion: MoAlign's motion subspace (METHOD, stage 1).
 *
 * Traps: the paper leaves the decoder open; ours takes 24 time steps to 23 with a kernel of 2, then twice ×2 in space by
 * transposed convolutions, and resizes to the flow's grid. PyTorch's ConvTranspose3d keeps weights as (in, out, …).
 */
#include "motion.h"

#include <stdlib.h>

struct motion {
    motion_size size;
    ma_tensor *project[2], *project_bias[2]; /* NULL: bare */
    ma_tensor *gap, *gap_bias;               /* 24 time steps → 23 */
    ma_tensor *up[2], *up_bias[2];
    ma_tensor *flow, *flow_bias;
};

/* Widths as the file has them; those asked for stand. */
static void read_sizes(ma_params *p, motion_size *s) {
    const ma_entry *a = p->from ? ma_weights_find(p->from, "projection.0.weight") : NULL;
    const ma_entry *b = p->from ? ma_weights_find(p->from, "projection.2.weight") : NULL;
    const ma_entry *gap = p->from ? ma_weights_find(p->from, "decoder.0.weight") : NULL;
    if (gap && gap->nd == 5 && !a && !s->in) {
        s->in = gap->n[1];
        s->out = gap->n[0];
        s->bare = true;
    }
    if (a && a->nd == 5 && !s->in) {
        s->in = a->n[1];
        s->hidden = a->n[0];
    }
    if (b && b->nd == 5 && !s->out) s->out = b->n[0];
    if (!s->in) s->in = 768;
    if (!s->hidden) s->hidden = 256;
    if (!s->out) s->out = 64;
}

static void make_projection(ma_params *p, motion *m) {
    const int64_t in = m->size.in, hidden = m->size.hidden, out = m->size.out;
    const ma_init fan = MA_INIT_FAN;
    m->project[0] = ma_param(p, MA_CONV3D, fan, MA_SHAPE(hidden, 3, 1, 1, in), "projection.0.weight");
    m->project_bias[0] = ma_param(p, MA_PLAIN, fan, MA_SHAPE(hidden), "projection.0.bias");
    m->project[1] = ma_param(p, MA_CONV3D, fan, MA_SHAPE(out, 1, 1, 1, hidden), "projection.2.weight");
    m->project_bias[1] = ma_param(p, MA_PLAIN, fan, MA_SHAPE(out), "projection.2.bias");
}

motion *motion_make(ma_params *p, const motion_size *size) {
    motion *m = calloc(1, sizeof *m);
    if (!m) {
        ma_fail(ma_ctx_err(p->ctx), MA_MEMORY, "motion: out of memory");
        return NULL;
    }
    m->size = *size;
    read_sizes(p, &m->size);
    if (!m->size.bare) make_projection(p, m);
    const int64_t in = m->size.bare ? m->size.in : m->size.out, out = m->size.out;
    const ma_layout conv = MA_CONV3D;
    const ma_init fan = MA_INIT_FAN;

    m->gap = ma_param(p, conv, fan, MA_SHAPE(out, 2, 1, 1, in), "decoder.0.weight");
    m->gap_bias = ma_param(p, MA_PLAIN, fan, MA_SHAPE(out), "decoder.0.bias");
    m->up[0] = ma_param(p, conv, fan, MA_SHAPE(out, 1, 4, 4, out), "decoder.2.weight");
    m->up_bias[0] = ma_param(p, MA_PLAIN, fan, MA_SHAPE(out), "decoder.2.bias");
    m->up[1] = ma_param(p, conv, fan, MA_SHAPE(out, 1, 4, 4, 32), "decoder.4.weight");
    m->up_bias[1] = ma_param(p, MA_PLAIN, fan, MA_SHAPE(32), "decoder.4.bias");
    m->flow = ma_param(p, conv, fan, MA_SHAPE(2, 1, 1, 1, 32), "decoder.6.weight");
    m->flow_bias = ma_param(p, MA_PLAIN, fan, MA_SHAPE(2), "decoder.6.bias");
    return m;
}

void motion_free(motion *m) {
    free(m);
}

motion_size motion_sizes(const motion *m) {
    return m->size;
}

ma_tensor *motion_project(ma_ctx *c, const motion *m, ma_tensor *s) {
    if (m->size.bare) return s;
    ma_tensor *x;                                                                                 /* S  (B,24,10,15,768) */
    x = ma_conv(c, s, m->project[0], m->project_bias[0], MA_WINDOW(1, 1, 1, 1, 0, 0), MA_SILU);   /*    (B,24,10,15,256) */
    return ma_conv(c, x, m->project[1], m->project_bias[1], MA_WINDOW(1, 1, 1, 0, 0, 0), MA_SILU); /* M (B,24,10,15,64) */
}

ma_tensor *motion_decode(ma_ctx *c, const motion *m, ma_tensor *x) {
    const ma_window up = MA_WINDOW(1, 2, 2, 0, 1, 1), none = MA_WINDOW(1, 1, 1, 0, 0, 0);
    const int64_t *n = m->size.flow;
    x = ma_conv(c, x, m->gap, m->gap_bias, none, MA_SILU);                   /*   (B,23,10,15,64) */
    x = ma_conv_transpose(c, x, m->up[0], m->up_bias[0], up, MA_SILU);       /*   (B,23,20,30,64) */
    x = ma_conv_transpose(c, x, m->up[1], m->up_bias[1], up, MA_SILU);       /*   (B,23,40,60,32) */
    x = ma_conv(c, x, m->flow, m->flow_bias, none, MA_NONE);                 /*   (B,23,40,60,2) */
    return ma_resize(c, x, n[0], n[1], n[2], false);                         /* Ô (B,23,128,192,2) */
}
