/* ops: shapes checked, output and saved tensors made, call run. One function an op, in the order of ops.h.
 * Attribute numbers stand there too.
 */
#include "ops.h"

#include <string.h>

/* The context fails: "linear: 4x8 and 3x9 do not go together". b may be NULL. Always NULL. */
static ma_tensor *mismatch(ma_ctx *c, ma_op op, const ma_tensor *a, const ma_tensor *b) {
    char x[160], y[160];
    ma_shape_text(x, a->nd, a->n);
    if (b)
        ma_fail(ma_ctx_err(c), MA_SHAPE, "%s: %s and %s do not go together", ma_op_name(op), x,
                ma_shape_text(y, b->nd, b->n));
    else
        ma_fail(ma_ctx_err(c), MA_SHAPE, "%s: %s does not fit", ma_op_name(op), x);
    return NULL;
}

static bool same_shape(const ma_tensor *a, const ma_tensor *b) {
    return a->nd == b->nd && !memcmp(a->n, b->n, (size_t)a->nd * sizeof *a->n);
}

/* b's shape is the trailing part of a's. */
static bool trails(const ma_tensor *a, const ma_tensor *b) {
    return b->nd <= a->nd && !memcmp(a->n + a->nd - b->nd, b->n, (size_t)b->nd * sizeof *b->n);
}

static bool is_vector(const ma_tensor *t, int64_t n) {
    return !t || (t->nd == 1 && t->n[0] == n);
}

static int64_t last(const ma_tensor *t) {
    return t->nd ? t->n[t->nd - 1] : 1;
}

static ma_tensor *like(ma_ctx *c, const ma_tensor *t) {
    return ma_new(c, t->type, t->nd, t->n);
}

static ma_tensor *loss_value(ma_ctx *c) {
    return ma_new(c, MA_F32, MA_SHAPE(1));
}

/* Activations whose derivative needs what went in, not what came out. */
static bool needs_input(ma_act act) {
    return act == MA_SILU || act == MA_GELU || act == MA_GELU_TANH;
}

/* Mean and 1/deviation, one a normalised group, for the backward pass. */
static void save_moments(ma_ctx *c, ma_call *call, int nd, const int64_t *n) {
    if (!ma_wanted(c, call)) return;
    call->save[0] = ma_new(c, MA_F32, nd, n);
    call->save[1] = ma_new(c, MA_F32, nd, n);
}

ma_tensor *ma_linear(ma_ctx *c, ma_tensor *x, ma_tensor *w, ma_tensor *b, ma_act act) {
    if (!x || !w) return NULL;
    if (w->nd != 2 || x->nd < 1 || last(x) != w->n[1] || !is_vector(b, w->n[0])) return mismatch(c, MA_OP_LINEAR, x, w);
    ma_call call = {.op = MA_OP_LINEAR, .in = {x, w, b}, .i = {act}};
    int64_t n[MA_DIMS];
    memcpy(n, x->n, sizeof n);
    n[x->nd - 1] = w->n[0];
    call.out = ma_new(c, x->type, x->nd, n);
    if (ma_wanted(c, &call) && needs_input(act)) call.save[0] = ma_new(c, x->type, x->nd, n);
    return ma_run(c, &call);
}

static ma_tensor *matmul(ma_ctx *c, ma_tensor *a, ma_tensor *b, double scale, bool f32) {
    if (!a || !b) return NULL;
    if (a->nd != 3 || b->nd != 3 || a->n[0] != b->n[0] || a->n[2] != b->n[2]) return mismatch(c, MA_OP_MATMUL, a, b);
    ma_call call = {.op = MA_OP_MATMUL, .in = {a, b}, .f = {scale}};
    call.out = ma_new(c, f32 ? MA_F32 : a->type, MA_SHAPE(a->n[0], a->n[1], b->n[1]));
    return ma_run(c, &call);
}

ma_tensor *ma_matmul(ma_ctx *c, ma_tensor *a, ma_tensor *b, double scale) {
    return matmul(c, a, b, scale, false);
}

ma_tensor *ma_matmul_f32(ma_ctx *c, ma_tensor *a, ma_tensor *b, double scale) {
    return matmul(c, a, b, scale, true);
}

/* Convolutions of both kinds share attributes; n is the output's shape. */
static ma_tensor *convolution(ma_ctx *c, ma_op op, ma_tensor *x, ma_tensor *w, ma_tensor *b, ma_window v, ma_act act,
                              const int64_t *n) {
    ma_call call = {.op = op, .in = {x, w, b}};
    for (int k = 0; k < 3; k++) {
        call.i[k] = v.stride[k];
        call.i[3 + k] = v.before[k];
        call.i[6 + k] = v.after[k];
    }
    call.i[9] = act;
    for (int k = 1; k < 4; k++)
        if (n[k] < 1 || v.stride[k - 1] < 1) return mismatch(c, op, x, w);
    call.out = ma_new(c, x->type, 5, n);
    if (ma_wanted(c, &call) && needs_input(act)) call.save[0] = ma_new(c, x->type, 5, n);
    return ma_run(c, &call);
}

ma_tensor *ma_conv(ma_ctx *c, ma_tensor *x, ma_tensor *w, ma_tensor *b, ma_window v, ma_act act) {
    if (!x || !w) return NULL;
    if (x->nd != 5 || w->nd != 5 || x->n[4] != w->n[4] || !is_vector(b, w->n[0])) return mismatch(c, MA_OP_CONV, x, w);
    int64_t n[5] = {x->n[0], 0, 0, 0, w->n[0]};
    for (int k = 0; k < 3; k++) {
        int64_t room = x->n[1 + k] + v.before[k] + v.after[k] - w->n[1 + k];
        n[1 + k] = room < 0 ? 0 : room / v.stride[k] + 1;
    }
    return convolution(c, MA_OP_CONV, x, w, b, v, act, n);
}

ma_tensor *ma_conv_transpose(ma_ctx *c, ma_tensor *x, ma_tensor *w, ma_tensor *b, ma_window v, ma_act act) {
    if (!x || !w) return NULL;
    if (x->nd != 5 || w->nd != 5 || x->n[4] != w->n[0] || !is_vector(b, w->n[4]))
        return mismatch(c, MA_OP_CONV_TRANSPOSE, x, w);
    int64_t n[5] = {x->n[0], 0, 0, 0, w->n[4]};
    for (int k = 0; k < 3; k++) n[1 + k] = (x->n[1 + k] - 1) * v.stride[k] - v.before[k] - v.after[k] + w->n[1 + k];
    return convolution(c, MA_OP_CONV_TRANSPOSE, x, w, b, v, act, n);
}

/* q (B,L,H,D) goes with k and v (B,M,H,D). */
static bool attends(const ma_tensor *q, const ma_tensor *k, const ma_tensor *v) {
    return q->nd == 4 && k->nd == 4 && q->n[0] == k->n[0] && q->n[2] == k->n[2] && q->n[3] == k->n[3] && same_shape(k, v);
}

ma_tensor *ma_attention(ma_ctx *c, ma_tensor *q, ma_tensor *k, ma_tensor *v, double scale) {
    if (!q || !k || !v) return NULL;
    if (!attends(q, k, v)) return mismatch(c, MA_OP_ATTENTION, q, k);
    ma_call call = {.op = MA_OP_ATTENTION, .in = {q, k, v}, .f = {scale}, .out = like(c, q)};
    if (ma_wanted(c, &call)) call.save[0] = ma_new(c, MA_F32, MA_SHAPE(q->n[0], q->n[2], q->n[1]));
    return ma_run(c, &call);
}

ma_tensor *ma_layer_norm(ma_ctx *c, ma_tensor *x, ma_tensor *g, ma_tensor *b, double eps) {
    if (!x) return NULL;
    if (!g != !b || !is_vector(g, last(x)) || !is_vector(b, last(x)))
        return mismatch(c, MA_OP_LAYER_NORM, x, g ? g : b);
    ma_call call = {.op = MA_OP_LAYER_NORM, .in = {x, g, b}, .f = {eps}};
    call.out = ma_new(c, g ? g->type : x->type, x->nd, x->n);
    save_moments(c, &call, MA_SHAPE(ma_count(x) / last(x)));
    return ma_run(c, &call);
}

/* mod (B,R,C) goes with x (B,L,C), and rows lie in it. */
static bool modulates(const ma_tensor *x, const ma_tensor *mod, int64_t text, int rows) {
    return x->nd == 3 && mod->nd == 3 && x->n[0] == mod->n[0] && x->n[2] == mod->n[2] && text >= 0 && text <= x->n[1] &&
           rows < mod->n[1];
}

static int most(int a, int b) {
    return a > b ? a : b;
}

ma_tensor *ma_modulate(ma_ctx *c, ma_tensor *x, ma_tensor *g, ma_tensor *b, ma_tensor *mod, double eps, int64_t text,
                       int shift, int scale, int text_shift, int text_scale) {
    if (!x || !mod) return NULL;
    if (!modulates(x, mod, text, most(most(shift, scale), text ? most(text_shift, text_scale) : 0)) || !g != !b ||
        !is_vector(g, x->n[2]) || !is_vector(b, x->n[2]))
        return mismatch(c, MA_OP_MODULATE, x, mod);
    ma_call call = {.op = MA_OP_MODULATE,
                    .in = {x, g, b, mod},
                    .i = {text, shift, scale, text_shift, text_scale},
                    .f = {eps},
                    .out = like(c, x)};
    save_moments(c, &call, MA_SHAPE(x->n[0] * x->n[1]));
    return ma_run(c, &call);
}

ma_tensor *ma_gate(ma_ctx *c, ma_tensor *x, ma_tensor *y, ma_tensor *mod, int64_t text, int row, int text_row) {
    if (!x || !y || !mod) return NULL;
    if (!same_shape(x, y) || !modulates(x, mod, text, most(row, text ? text_row : 0)))
        return mismatch(c, MA_OP_GATE, x, mod);
    ma_call call = {.op = MA_OP_GATE, .in = {x, y, mod}, .i = {text, row, text_row}, .out = like(c, x)};
    return ma_run(c, &call);
}

ma_tensor *ma_group_norm(ma_ctx *c, ma_tensor *x, ma_tensor *g, ma_tensor *b, int64_t groups, double eps, ma_act act) {
    if (!x) return NULL;
    if (x->nd != 5 || groups < 1 || x->n[4] % groups || !g != !b || !is_vector(g, x->n[4]) || !is_vector(b, x->n[4]))
        return mismatch(c, MA_OP_GROUP_NORM, x, g);
    ma_call call = {.op = MA_OP_GROUP_NORM, .in = {x, g, b}, .i = {groups, act}, .f = {eps}, .out = like(c, x)};
    save_moments(c, &call, MA_SHAPE(x->n[0], groups));
    return ma_run(c, &call);
}

ma_tensor *ma_moments(ma_ctx *c, ma_tensor *x, ma_tensor *add, int64_t groups) {
    if (!x) return NULL;
    ma_call call = {.op = MA_OP_MOMENTS, .in = {x, add}, .i = {groups}};
    if (x->nd != 5 || groups < 1 || x->n[4] % groups || (add && !same_shape(x, add)) ||
        (add && ma_recorded(c) && (x->want || add->want)))
        return mismatch(c, MA_OP_MOMENTS, x, add);
    call.out = ma_new(c, MA_F32, MA_SHAPE(2, x->n[0], groups));
    return ma_run(c, &call);
}

/* The nearest position of every one of x is a position of map, which has channels enough: see ma_causal_norm. */
static bool repeats(const ma_tensor *x, const ma_tensor *map, int64_t from) {
    bool apart = x->n[1] > 1 && x->n[1] % 2;
    int64_t frames = x->n[1] - apart, of = map->nd == 5 ? map->n[1] - apart : 0;
    return of > 0 && x->n[0] == map->n[0] && from >= 0 && from <= map->n[4] - 2 * x->n[4] && frames % of == 0 &&
           x->n[2] % map->n[2] == 0 && x->n[3] % map->n[3] == 0;
}

/* What ma_moments made of a tensor of x's shape. */
static bool describes(const ma_tensor *moments, const ma_tensor *x) {
    return moments->type == MA_F32 && moments->nd == 3 && moments->n[0] == 2 && moments->n[1] == x->n[0] &&
           moments->n[2] > 0 && x->n[4] % moments->n[2] == 0;
}

ma_tensor *ma_causal_norm(ma_ctx *c, ma_tensor *x, ma_tensor *moments, ma_tensor *g, ma_tensor *b, ma_tensor *map,
                          ma_tensor *past, ma_causal how) {
    if (!x) return NULL;
    if (x->nd != 5 || how.lead < 0 || (g && !moments) || !g != !b || !is_vector(g, x->n[4]) || !is_vector(b, x->n[4]))
        return mismatch(c, MA_OP_CAUSAL_NORM, x, g);
    if (moments && !describes(moments, x)) return mismatch(c, MA_OP_CAUSAL_NORM, x, moments);
    if (map && !repeats(x, map, how.from)) return mismatch(c, MA_OP_CAUSAL_NORM, x, map);
    const int64_t n[5] = {x->n[0], how.lead, x->n[2], x->n[3], x->n[4]};
    if (past && (past->nd != 5 || memcmp(past->n, n, sizeof n))) return mismatch(c, MA_OP_CAUSAL_NORM, x, past);
    ma_call call = {.op = MA_OP_CAUSAL_NORM,
                    .in = {x, g, b, moments, map, past},
                    .i = {how.from, how.act, how.lead, how.fresh || !past},
                    .f = {how.eps}};
    call.out = ma_new(c, x->type, MA_SHAPE(n[0], how.lead + x->n[1], n[2], n[3], n[4]));
    return ma_run(c, &call);
}

ma_tensor *ma_rope(ma_ctx *c, ma_tensor *x, ma_tensor *cosine, ma_tensor *sine, int64_t text) {
    if (!x || !cosine || !sine) return NULL;
    if (x->nd != 4 || x->n[3] % 2 || !same_shape(cosine, sine) || cosine->nd != 2 || cosine->n[0] != x->n[1] - text ||
        cosine->n[1] != x->n[3])
        return mismatch(c, MA_OP_ROPE, x, cosine);
    ma_call call = {.op = MA_OP_ROPE, .in = {x, cosine, sine}, .i = {text}, .out = like(c, x)};
    return ma_run(c, &call);
}

ma_tensor *ma_act_(ma_ctx *c, ma_tensor *x, ma_act act) {
    if (!x) return NULL;
    ma_call call = {.op = MA_OP_ACT, .in = {x}, .i = {act}, .out = like(c, x)};
    return ma_run(c, &call);
}

static ma_tensor *binary(ma_ctx *c, ma_op op, ma_tensor *a, ma_tensor *b, ma_act act) {
    if (!a || !b) return NULL;
    if (!trails(a, b)) return mismatch(c, op, a, b);
    ma_call call = {.op = op, .in = {a, b}, .i = {act}};
    if (act != MA_NONE && ma_recorded(c) && (a->want || b->want))
        return ma_act_(c, binary(c, op, a, b, MA_NONE), act);
    call.out = like(c, a);
    return ma_run(c, &call);
}

ma_tensor *ma_add(ma_ctx *c, ma_tensor *a, ma_tensor *b) {
    return binary(c, MA_OP_ADD, a, b, MA_NONE);
}

ma_tensor *ma_add_act(ma_ctx *c, ma_tensor *a, ma_tensor *b, ma_act act) {
    return binary(c, MA_OP_ADD, a, b, act);
}

ma_tensor *ma_add_to(ma_ctx *c, ma_tensor *a, ma_tensor *b) {
    if (!a || !b) return NULL;
    ma_call call = {.op = MA_OP_ADD, .in = {a, b}, .out = a};
    if (!trails(a, b) || (ma_recorded(c) && (a->want || b->want))) return mismatch(c, MA_OP_ADD, a, b);
    return ma_run(c, &call);
}

ma_tensor *ma_mul_(ma_ctx *c, ma_tensor *a, ma_tensor *b) {
    return binary(c, MA_OP_MUL, a, b, MA_NONE);
}

ma_tensor *ma_affine(ma_ctx *c, ma_tensor *x, double mul, double add) {
    if (!x) return NULL;
    ma_call call = {.op = MA_OP_AFFINE, .in = {x}, .f = {mul, add}, .out = like(c, x)};
    return ma_run(c, &call);
}

ma_tensor *ma_concat(ma_ctx *c, ma_tensor **t, int n, int axis) {
    if (n < 1 || n > 8) {
        ma_fail(ma_ctx_err(c), MA_USAGE, "concat: %d tensors; 1 to 8 are possible", n);
        return NULL;
    }
    ma_call call = {.op = MA_OP_CONCAT, .i = {axis}};
    int64_t shape[MA_DIMS] = {0}, length = 0;
    for (int k = 0; k < n; k++) {
        if (!t[k]) return NULL;
        call.in[k] = t[k];
        memcpy(shape, t[k]->n, sizeof shape);
        if (axis < 0 || axis >= t[k]->nd) return mismatch(c, MA_OP_CONCAT, t[0], t[k]);
        shape[axis] = t[0]->n[axis];
        if (t[k]->nd != t[0]->nd || memcmp(shape, t[0]->n, (size_t)t[0]->nd * sizeof *shape))
            return mismatch(c, MA_OP_CONCAT, t[0], t[k]);
        length += t[k]->n[axis];
    }
    shape[axis] = length;
    call.out = ma_new(c, t[0]->type, t[0]->nd, shape);
    return ma_run(c, &call);
}

ma_tensor *ma_slice(ma_ctx *c, ma_tensor *x, int axis, int64_t from, int64_t count) {
    if (!x) return NULL;
    if (axis < 0 || axis >= x->nd || from < 0 || count < 1 || from > x->n[axis] - count)
        return mismatch(c, MA_OP_SLICE, x, NULL);
    ma_call call = {.op = MA_OP_SLICE, .in = {x}, .i = {axis, from, count}};
    int64_t n[MA_DIMS];
    memcpy(n, x->n, sizeof n);
    n[axis] = count;
    call.out = ma_new(c, x->type, x->nd, n);
    return ma_run(c, &call);
}

ma_tensor *ma_unpatch(ma_ctx *c, ma_tensor *x, int64_t p) {
    if (!x) return NULL;
    if (x->nd != 5 || p < 1 || x->n[4] % (p * p)) return mismatch(c, MA_OP_UNPATCH, x, NULL);
    ma_call call = {.op = MA_OP_UNPATCH, .in = {x}, .i = {p}};
    call.out = ma_new(c, x->type, MA_SHAPE(x->n[0], x->n[1], x->n[2] * p, x->n[3] * p, x->n[4] / (p * p)));
    return ma_run(c, &call);
}

ma_tensor *ma_resize(ma_ctx *c, ma_tensor *x, int64_t t, int64_t h, int64_t w, bool align) {
    if (!x) return NULL;
    if (x->nd != 5 || t < 1 || h < 1 || w < 1) return mismatch(c, MA_OP_RESIZE, x, NULL);
    ma_call call = {.op = MA_OP_RESIZE, .in = {x}, .i = {align}};
    call.out = ma_new(c, x->type, MA_SHAPE(x->n[0], t, h, w, x->n[4]));
    return ma_run(c, &call);
}

ma_tensor *ma_pool(ma_ctx *c, ma_tensor *x) {
    if (!x) return NULL;
    if (x->nd != 5 || x->n[2] < 2 || x->n[3] < 2) return mismatch(c, MA_OP_POOL, x, NULL);
    ma_call call = {.op = MA_OP_POOL, .in = {x}};
    call.out = ma_new(c, x->type, MA_SHAPE(x->n[0], x->n[1], x->n[2] / 2, x->n[3] / 2, x->n[4]));
    return ma_run(c, &call);
}

ma_tensor *ma_corr_lookup(ma_ctx *c, ma_tensor *coords, ma_tensor **level, int levels, int64_t radius, int64_t width) {
    if (!coords) return NULL;
    if (coords->nd != 5 || coords->n[1] != 1 || coords->n[4] != 2 || coords->type != MA_F32 || levels < 1 ||
        levels > 7 || radius < 1 || width < levels * (2 * radius + 1) * (2 * radius + 1))
        return mismatch(c, MA_OP_CORR_LOOKUP, coords, NULL);
    ma_call call = {.op = MA_OP_CORR_LOOKUP, .in = {coords}, .i = {radius, levels}};
    int64_t pixels = ma_count(coords) / 2;
    for (int k = 0; k < levels; k++) {
        if (!level[k]) return NULL;
        call.in[1 + k] = level[k];
        if (level[k]->nd != 5 || level[k]->n[0] != pixels || level[k]->n[1] != 1 || level[k]->n[4] != 1)
            return mismatch(c, MA_OP_CORR_LOOKUP, coords, level[k]);
    }
    call.out = ma_new(c, ma_get_type(c), MA_SHAPE(coords->n[0], 1, coords->n[2], coords->n[3], width));
    return ma_run(c, &call);
}

ma_tensor *ma_upsample_convex(ma_ctx *c, ma_tensor *flow, ma_tensor *mask) {
    if (!flow || !mask) return NULL;
    if (flow->nd != 5 || mask->nd != 5 || memcmp(flow->n, mask->n, 4 * sizeof *flow->n) || flow->n[1] != 1 ||
        flow->n[4] != 2 || mask->n[4] != 9 * 64)
        return mismatch(c, MA_OP_UPSAMPLE_CONVEX, flow, mask);
    ma_call call = {.op = MA_OP_UPSAMPLE_CONVEX, .in = {flow, mask}};
    call.out = ma_new(c, flow->type, MA_SHAPE(flow->n[0], 1, 8 * flow->n[2], 8 * flow->n[3], 2));
    return ma_run(c, &call);
}

/* t is h's shape with so many times its channels. */
static bool times_channels(const ma_tensor *h, const ma_tensor *t, int64_t times) {
    return t->nd == h->nd && h->nd > 0 && !memcmp(t->n, h->n, (size_t)(h->nd - 1) * sizeof *h->n) &&
           last(t) == times * last(h);
}

static ma_tensor *gru(ma_ctx *c, ma_op op, ma_tensor *h, ma_tensor *of_h, ma_tensor *of_x, ma_tensor *of_rest,
                      ma_tensor *of_rh) {
    if (!h || !of_h || !of_x || !of_rest) return NULL;
    if (!times_channels(h, of_h, 2)) return mismatch(c, op, h, of_h);
    if (!times_channels(h, of_x, 3) || !same_shape(of_x, of_rest)) return mismatch(c, op, h, of_x);
    if (of_rh && !same_shape(h, of_rh)) return mismatch(c, op, h, of_rh);
    ma_call call = {.op = op, .in = {h, of_h, of_x, of_rest, of_rh}, .out = like(c, h)};
    return ma_run(c, &call);
}

ma_tensor *ma_gru_reset(ma_ctx *c, ma_tensor *h, ma_tensor *of_h, ma_tensor *of_x, ma_tensor *of_rest) {
    return gru(c, MA_OP_GRU_RESET, h, of_h, of_x, of_rest, NULL);
}

ma_tensor *ma_gru_update(ma_ctx *c, ma_tensor *h, ma_tensor *of_h, ma_tensor *of_x, ma_tensor *of_rest,
                         ma_tensor *of_rh) {
    return of_rh ? gru(c, MA_OP_GRU_UPDATE, h, of_h, of_x, of_rest, of_rh) : NULL;
}

ma_tensor *ma_cast(ma_ctx *c, ma_tensor *x, ma_type type, int64_t width) {
    if (!x) return NULL;
    if (x->nd < 1 || width < last(x)) return mismatch(c, MA_OP_CAST, x, NULL);
    ma_call call = {.op = MA_OP_CAST, .in = {x}};
    int64_t n[MA_DIMS];
    memcpy(n, x->n, sizeof n);
    n[x->nd - 1] = width;
    call.out = ma_new(c, type, x->nd, n);
    return ma_run(c, &call);
}

ma_tensor *ma_pixels(ma_ctx *c, ma_tensor *x, const ma_colours *m, int64_t width) {
    if (!x) return NULL;
    if (x->nd < 1 || last(x) != 3 || x->type != MA_U8 || width < 3) return mismatch(c, MA_OP_PIXELS, x, NULL);
    ma_call call = {.op = MA_OP_PIXELS, .in = {x}};
    for (int k = 0; k < 3; k++) {
        call.f[k] = m->mul[k];
        call.f[3 + k] = m->add[k];
    }
    int64_t n[MA_DIMS];
    memcpy(n, x->n, sizeof n);
    n[x->nd - 1] = width;
    call.out = ma_new(c, ma_get_type(c), x->nd, n);
    return ma_run(c, &call);
}

ma_tensor *ma_diffuse(ma_ctx *c, ma_tensor *posterior, const ma_noising *how, int64_t step, double scale) {
    if (!posterior) return NULL;
    const int64_t *n = posterior->n;
    if (posterior->nd != 5 || n[1] % 2 || (posterior->type != MA_F32 && posterior->type != MA_F16))
        return mismatch(c, MA_OP_DIFFUSE, posterior, NULL);
    ma_tensor *out = ma_new(c, MA_F32, 5, (int64_t[]){2 * n[0], n[2], n[3], n[4], n[1] / 2}),
              *table = ma_new(c, MA_U8, 2, (int64_t[]){n[0], sizeof *how});
    if (!table || ma_put_raw(c, table, how)) return NULL;
    ma_call call = {.op = MA_OP_DIFFUSE, .f = {scale}, .i = {step}, .in = {posterior, table}, .out = out};
    return ma_run(c, &call);
}

ma_tensor *ma_embed(ma_ctx *c, ma_tensor *table, ma_tensor *at) {
    if (!table || !at) return NULL;
    if (table->nd != 2 || at->nd >= MA_DIMS || at->type != MA_F32) return mismatch(c, MA_OP_EMBED, table, at);
    ma_call call = {.op = MA_OP_EMBED, .in = {table, at}};
    int64_t n[MA_DIMS];
    memcpy(n, at->n, sizeof n);
    n[at->nd] = table->n[1];
    call.out = ma_new(c, MA_F32, at->nd + 1, n);
    return ma_run(c, &call);
}

ma_tensor *ma_rms_norm(ma_ctx *c, ma_tensor *x, ma_tensor *g, double eps) {
    if (!x || !g) return NULL;
    if (!is_vector(g, last(x))) return mismatch(c, MA_OP_RMS_NORM, x, g);
    ma_call call = {.op = MA_OP_RMS_NORM, .in = {x, g}, .f = {eps}, .out = ma_new(c, g->type, x->nd, x->n)};
    return ma_run(c, &call);
}

ma_tensor *ma_linear_add(ma_ctx *c, ma_tensor *r, ma_tensor *x, ma_tensor *w, ma_tensor *b) {
    if (!r || !x || !w) return NULL;
    if (w->nd != 2 || x->nd < 1 || last(x) != w->n[1] || !is_vector(b, w->n[0])) return mismatch(c, MA_OP_LINEAR_ADD, x, w);
    if (r->nd != x->nd || last(r) != w->n[0] || memcmp(r->n, x->n, (size_t)(x->nd - 1) * sizeof *x->n))
        return mismatch(c, MA_OP_LINEAR_ADD, r, x);
    ma_call call = {.op = MA_OP_LINEAR_ADD, .in = {r, x, w, b}, .out = r};
    return ma_run(c, &call);
}

ma_tensor *ma_attention_relative(ma_ctx *c, ma_tensor *q, ma_tensor *k, ma_tensor *v, ma_tensor *bias, double scale) {
    if (!q || !k || !v || !bias) return NULL;
    if (!attends(q, k, v)) return mismatch(c, MA_OP_ATTENTION_RELATIVE, q, k);
    if (bias->type != MA_F32 || bias->nd != 2 || bias->n[0] != q->n[2] || bias->n[1] != q->n[1] + k->n[1] - 1)
        return mismatch(c, MA_OP_ATTENTION_RELATIVE, q, bias);
    ma_call call = {.op = MA_OP_ATTENTION_RELATIVE, .in = {q, k, v, bias}, .f = {scale}, .out = like(c, q)};
    return ma_run(c, &call);
}

static ma_tensor *distance(ma_ctx *c, ma_op op, ma_tensor *x, ma_tensor *target) {
    if (!x || !target) return NULL;
    if (!same_shape(x, target)) return mismatch(c, op, x, target);
    ma_call call = {.op = op, .in = {x, target}, .out = loss_value(c)};
    return ma_run(c, &call);
}

ma_tensor *ma_l1(ma_ctx *c, ma_tensor *x, ma_tensor *target) {
    return distance(c, MA_OP_L1, x, target);
}

ma_tensor *ma_mse(ma_ctx *c, ma_tensor *x, ma_tensor *target) {
    return distance(c, MA_OP_MSE, x, target);
}

ma_tensor *ma_relation(ma_ctx *c, ma_tensor *z, ma_tensor *m, ma_tensor *weight, double margin) {
    if (!z || !m || !weight) return NULL;
    if (z->nd != 4 || m->nd != 4 || memcmp(z->n, m->n, 3 * sizeof *z->n)) return mismatch(c, MA_OP_RELATION, z, m);
    if (weight->type != MA_F32 || !is_vector(weight, z->n[1])) return mismatch(c, MA_OP_RELATION, z, weight);
    ma_call call = {.op = MA_OP_RELATION, .in = {z, m, weight}, .f = {margin}, .out = loss_value(c)};
    if (ma_wanted(c, &call)) call.save[0] = ma_new(c, MA_F32, z->nd, z->n);
    return ma_run(c, &call);
}

ma_tensor *ma_cosine(ma_ctx *c, ma_tensor *z, ma_tensor *m) {
    return distance(c, MA_OP_COSINE, z, m);
}
