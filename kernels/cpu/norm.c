/* norm: layer_norm, modulate, gate, group_norm, moments, causal_norm. Forward beside backward. With
 * h = (x - mean)/deviation over n elements and f the gradient to h:  dx = (f - mean(f) - h·mean(f·h)) / deviation.
 *
 * Layer norm is modulate without modulation: one sample of rows. Parameters and modulation rows gather gradients from
 * many tokens: these are cut into pieces that depend on sizes alone, each piece sums in double, and the pieces are
 * added in order. Minds: the variance is E[x²] - E[x]² in double, which is good to 1e-6 up to means of 10⁵ deviations.
 */
#include "cpu.h"
#include "gemm.h"
#include "math.h"

#include <math.h>
#include <string.h>

typedef struct moments {
    float mean, inverse; /* 1/deviation */
} moments;

/* From the sums of n numbers and of their squares. */
static double variance_of(double sum, double squares, int64_t n) {
    double mean = sum / (double)n;
    return fmax(0, squares / (double)n - mean * mean);
}

static moments moments_of(double sum, double squares, int64_t n, double eps) {
    return (moments){(float)(sum / (double)n), (float)(1 / sqrt(variance_of(sum, squares, n) + eps))};
}

static moments row_moments(const float *x, int64_t n, double eps) {
    double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum, squares)
    for (int64_t k = 0; k < n; k++) {
        sum += x[k];
        squares += (double)x[k] * x[k];
    }
    return moments_of(sum, squares, n, eps);
}

/* ---- tokens in pieces ---- */

/* Tokens of a batch: in each sample the first `text` are text, the others video. */
typedef struct tokens {
    int64_t batch, len, text, width;
    int64_t text_pieces, pieces; /* of a sample */
} tokens;

/* Rows from, …, to-1 (counted over the whole batch), all of one sample and one kind. */
typedef struct piece {
    int64_t sample, from, to;
    bool text;
} piece;

enum { PIECE = 128, STRIP = 64 };

static tokens tokens_of(int64_t batch, int64_t len, int64_t text, int64_t width) {
    int64_t first = (text + PIECE - 1) / PIECE, second = (len - text + PIECE - 1) / PIECE;
    return (tokens){batch, len, text, width, first, first + second};
}

static piece piece_of(const tokens *t, int64_t k) {
    int64_t sample = k / t->pieces, j = k % t->pieces, start = sample * t->len;
    bool text = j < t->text_pieces;
    int64_t from = text ? j * PIECE : t->text + (j - t->text_pieces) * PIECE;
    return (piece){sample, start + from, start + ma_min(from + PIECE, text ? t->text : t->len), text};
}

/* sum[j] = Σ of column at+j over the text (or video) pieces of a sample; parts stand `step` doubles apart. */
static void add_pieces(const tokens *t, int64_t sample, bool text, const double *part, int64_t step, int64_t at,
                       double sum[STRIP]) {
    int64_t from = text ? 0 : t->text_pieces, to = text ? t->text_pieces : t->pieces,
            cols = ma_min(STRIP, t->width - at);
    memset(sum, 0, STRIP * sizeof *sum);
    for (int64_t k = from; k < to; k++) {
        const double *p = part + (sample * t->pieces + k) * step + at;
        for (int64_t j = 0; j < cols; j++) sum[j] += p[j];
    }
}

/* ---- layer_norm, modulate ---- */

typedef struct layer {
    tokens t;
    const float *x, *gain, *bias; /* gain, bias (C), or NULL */
    const ma_tensor *mod;         /* (B,R,C), or NULL */
    const int64_t *rows;          /* of mod: shift, scale for video, then for text */
    double eps;
} layer;

static layer layer_of(const ma_call *call) {
    const ma_tensor *x = call->in[0], *gain = call->in[1], *bias = call->in[2];
    int64_t width = x->n[x->nd - 1];
    bool plain = call->op == MA_OP_LAYER_NORM;
    return (layer){.t = plain ? tokens_of(1, ma_count(x) / width, 0, width)
                              : tokens_of(x->n[0], x->n[1], call->i[0], width),
                   .x = x->data,
                   .gain = gain ? gain->data : NULL,
                   .bias = bias ? bias->data : NULL,
                   .mod = plain ? NULL : call->in[3],
                   .rows = call->i + 1,
                   .eps = call->f[0]};
}

/* Where the shift (or the scale) of a sample's text (or video) stands in mod. */
static int64_t mod_at(const layer *l, int64_t sample, bool text, bool scale) {
    return (sample * l->mod->n[1] + l->rows[2 * text + scale]) * l->t.width;
}

static void layer_row(const layer *l, moments m, const float *x, const float *shift, const float *scale, float *y) {
    int64_t width = l->t.width;
#pragma omp simd
    for (int64_t k = 0; k < width; k++) y[k] = (x[k] - m.mean) * m.inverse;
    if (l->gain) {
#pragma omp simd
        for (int64_t k = 0; k < width; k++) y[k] = y[k] * l->gain[k] + l->bias[k];
    }
    if (shift) {
#pragma omp simd
        for (int64_t k = 0; k < width; k++) y[k] = y[k] * (1 + scale[k]) + shift[k];
    }
}

static int layer_fwd(const ma_call *call) {
    layer l = layer_of(call);
    const tokens *t = &l.t;
    float *y = call->out->data, *mean = call->save[0] ? call->save[0]->data : NULL;
    float *inverse = call->save[1] ? call->save[1]->data : NULL;
    const float *mod = l.mod ? l.mod->data : NULL;
#pragma omp parallel for
    for (int64_t k = 0; k < t->batch * t->pieces; k++) {
        piece p = piece_of(t, k);
        const float *shift = mod ? mod + mod_at(&l, p.sample, p.text, false) : NULL;
        const float *scale = mod ? mod + mod_at(&l, p.sample, p.text, true) : NULL;
        for (int64_t r = p.from; r < p.to; r++) {
            moments m = row_moments(l.x + r * t->width, t->width, l.eps);
            if (mean) mean[r] = m.mean;
            if (inverse) inverse[r] = m.inverse;
            layer_row(&l, m, l.x + r * t->width, shift, scale, y + r * t->width);
        }
    }
    return 0;
}

/* A piece's workspace: Σ dy·h (C) and Σ dy (C) in double, then the factor from dy to f, gain·(1 + scale) (C), in float.
 */
static size_t layer_work(const ma_call *call, bool backward) {
    layer l = layer_of(call);
    return backward ? (size_t)(l.t.batch * l.t.pieces * l.t.width) * (2 * sizeof(double) + sizeof(float)) : 0;
}

static void layer_row_bwd(const float *x, const float *dy, moments m, const float *factor, int64_t n, float *dx) {
    double sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (int64_t k = 0; k < n; k++) {
        float f = dy[k] * factor[k];
        sum += f;
        along += (double)f * ((x[k] - m.mean) * m.inverse);
    }
    float mean_f = (float)(sum / (double)n), mean_fh = (float)(along / (double)n);
#pragma omp simd
    for (int64_t k = 0; k < n; k++)
        dx[k] += m.inverse * (dy[k] * factor[k] - mean_f - (x[k] - m.mean) * m.inverse * mean_fh);
}

static void layer_piece_bwd(const layer *l, const ma_call *call, piece p, double *sums, float *factor) {
    int64_t n = l->t.width;
    const float *scale = l->mod ? (const float *)l->mod->data + mod_at(l, p.sample, p.text, true) : NULL;
    const float *mean = call->save[0]->data, *inverse = call->save[1]->data, *dout = call->out->grad->data;
    float *dx = ma_cpu_grad(call->in[0]);
    for (int64_t k = 0; k < n; k++) factor[k] = (l->gain ? l->gain[k] : 1) * (scale ? 1 + scale[k] : 1);
    memset(sums, 0, 2 * (size_t)n * sizeof *sums);
    for (int64_t r = p.from; r < p.to; r++) {
        const float *x = l->x + r * n, *dy = dout + r * n;
        moments m = {mean[r], inverse[r]};
#pragma omp simd
        for (int64_t k = 0; k < n; k++) {
            sums[k] += (double)dy[k] * ((x[k] - m.mean) * m.inverse);
            sums[n + k] += dy[k];
        }
        if (dx) layer_row_bwd(x, dy, m, factor, n, dx + r * n);
    }
}

/* Columns at, …, at+STRIP-1 of the gradients of gain, bias and mod, from the sums of the pieces. */
static void layer_strip_bwd(const layer *l, const ma_call *call, const double *sums, int64_t at) {
    const tokens *t = &l->t;
    float *dgain = ma_cpu_grad(call->in[1]), *dbias = ma_cpu_grad(call->in[2]), *dmod = ma_cpu_grad(l->mod);
    double gain_sum[STRIP] = {0}, bias_sum[STRIP] = {0}, dyh[STRIP], dy[STRIP];
    int64_t cols = ma_min(STRIP, t->width - at);
    for (int64_t k = 0; k < 2 * t->batch; k++) {
        bool text = k % 2;
        if (text && !t->text) continue;
        int64_t shift = l->mod ? mod_at(l, k / 2, text, false) : 0, scale = l->mod ? mod_at(l, k / 2, text, true) : 0;
        add_pieces(t, k / 2, text, sums, 2 * t->width, at, dyh);
        add_pieces(t, k / 2, text, sums + t->width, 2 * t->width, at, dy);
        for (int64_t j = 0; j < cols; j++) {
            float by = l->mod ? 1 + ((const float *)l->mod->data)[scale + at + j] : 1;
            gain_sum[j] += by * dyh[j];
            bias_sum[j] += by * dy[j];
            if (!dmod) continue;
            dmod[shift + at + j] += (float)dy[j];
            dmod[scale + at + j] += (float)(l->gain ? l->gain[at + j] * dyh[j] + l->bias[at + j] * dy[j] : dyh[j]);
        }
    }
    for (int64_t j = 0; j < cols && dgain; j++) dgain[at + j] += (float)gain_sum[j];
    for (int64_t j = 0; j < cols && dbias; j++) dbias[at + j] += (float)bias_sum[j];
}

static int layer_bwd(const ma_call *call) {
    layer l = layer_of(call);
    int64_t pieces = l.t.batch * l.t.pieces, width = l.t.width;
    double *sums = call->work;                            // (pieces, 2, C)
    float *factor = (float *)(sums + 2 * pieces * width); // (pieces, C)
#pragma omp parallel for
    for (int64_t k = 0; k < pieces; k++)
        layer_piece_bwd(&l, call, piece_of(&l.t, k), sums + 2 * k * width, factor + k * width);
#pragma omp parallel for
    for (int64_t at = 0; at < width; at += STRIP) layer_strip_bwd(&l, call, sums, at);
    return 0;
}

int ma_cpu_layer_norm_fwd(const ma_call *call) {
    return layer_fwd(call);
}

int ma_cpu_layer_norm_bwd(const ma_call *call) {
    return layer_bwd(call);
}

size_t ma_cpu_layer_norm_work(const ma_call *call, bool backward) {
    return layer_work(call, backward);
}

int ma_cpu_modulate_fwd(const ma_call *call) {
    return layer_fwd(call);
}

int ma_cpu_modulate_bwd(const ma_call *call) {
    return layer_bwd(call);
}

size_t ma_cpu_modulate_work(const ma_call *call, bool backward) {
    return layer_work(call, backward);
}

/* ---- gate: x + gate·y ---- */

static tokens gate_tokens(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    return tokens_of(x->n[0], x->n[1], call->i[0], x->n[2]);
}

/* Where the gate of a sample's text (or video) stands in mod. */
static int64_t gate_at(const ma_call *call, int64_t sample, bool text) {
    const ma_tensor *mod = call->in[2];
    return (sample * mod->n[1] + call->i[text ? 2 : 1]) * mod->n[2];
}

size_t ma_cpu_gate_work(const ma_call *call, bool backward) {
    tokens t = gate_tokens(call);
    return backward ? (size_t)(t.batch * t.pieces * t.width) * sizeof(double) : 0;
}

int ma_cpu_gate_fwd(const ma_call *call) {
    tokens t = gate_tokens(call);
    const float *x = call->in[0]->data, *y = call->in[1]->data, *mod = call->in[2]->data;
    float *out = call->out->data;
#pragma omp parallel for
    for (int64_t k = 0; k < t.batch * t.pieces; k++) {
        piece p = piece_of(&t, k);
        const float *gate = mod + gate_at(call, p.sample, p.text);
        for (int64_t r = p.from * t.width; r < p.to * t.width; r += t.width) {
#pragma omp simd
            for (int64_t j = 0; j < t.width; j++) out[r + j] = x[r + j] + gate[j] * y[r + j];
        }
    }
    return 0;
}

static void gate_piece_bwd(const ma_call *call, piece p, int64_t n, double *sums) {
    const float *y = call->in[1]->data, *dout = call->out->grad->data;
    const float *gate = (const float *)call->in[2]->data + gate_at(call, p.sample, p.text);
    float *dx = ma_cpu_grad(call->in[0]), *dy = ma_cpu_grad(call->in[1]);
    memset(sums, 0, (size_t)n * sizeof *sums);
    for (int64_t r = p.from * n; r < p.to * n; r += n) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) sums[j] += (double)dout[r + j] * y[r + j];
        for (int64_t j = 0; j < n && dx; j++) dx[r + j] += dout[r + j];
        for (int64_t j = 0; j < n && dy; j++) dy[r + j] += dout[r + j] * gate[j];
    }
}

int ma_cpu_gate_bwd(const ma_call *call) {
    tokens t = gate_tokens(call);
    double *sums = call->work; // (pieces, C)
    float *dmod = ma_cpu_grad(call->in[2]);
#pragma omp parallel for
    for (int64_t k = 0; k < t.batch * t.pieces; k++) gate_piece_bwd(call, piece_of(&t, k), t.width, sums + k * t.width);
    if (!dmod) return 0;
#pragma omp parallel for
    for (int64_t at = 0; at < t.width; at += STRIP)
        for (int64_t k = 0; k < 2 * t.batch; k++) {
            double sum[STRIP];
            bool text = k % 2;
            if (text && !t.text) continue;
            add_pieces(&t, k / 2, text, sums, t.width, at, sum);
            float *d = dmod + gate_at(call, k / 2, text) + at;
            for (int64_t j = 0; j < ma_min(STRIP, t.width - at); j++) d[j] += (float)sum[j];
        }
    return 0;
}

/* ---- group_norm ---- */

/* Positions of a sample in parts of `size`, for sums by channel: parts of 32,768 elements, but no more than 256 of
 * them. */
typedef struct group {
    int64_t batch, space, channels, groups, parts, size;
    ma_act act;
    double eps;
    double *sums;                        /* (B, parts, 2, C), workspace */
    double *total;                       /* (B, 2, C): their sums */
    float *mean, *inverse, *gain, *bias; /* (B, C), workspace: what stands for each channel */
    float *mean_f, *mean_fh;             /* (B, C), backward only */
} group;

static group group_of(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    group g = {.batch = x->n[0], .space = x->n[1] * x->n[2] * x->n[3], .channels = x->n[4], .groups = call->i[0]};
    g.act = (ma_act)call->i[1];
    g.eps = call->f[0];
    int64_t few = (g.space + 255) / 256, small = (1 << 15) / g.channels + 1;
    g.size = few > small ? few : small;
    g.parts = (g.space + g.size - 1) / g.size;
    int64_t each = g.batch * g.channels;
    g.sums = call->work;
    if (!g.sums) return g; /* only the sizes are asked for */
    g.total = g.sums + 2 * g.parts * each;
    g.mean = (float *)(g.total + 2 * each);
    g.inverse = g.mean + each;
    g.gain = g.inverse + each;
    g.bias = g.gain + each;
    g.mean_f = g.bias + each;
    g.mean_fh = g.mean_f + each;
    return g;
}

size_t ma_cpu_group_norm_work(const ma_call *call, bool backward) {
    (void)backward;
    group g = group_of(call);
    return (size_t)(g.batch * g.channels) * ((size_t)(2 * g.parts + 2) * sizeof(double) + 6 * sizeof(float));
}

/* total = the parts added in order. */
static void add_parts(const group *g) {
    int64_t two = 2 * g->channels;
    memset(g->total, 0, (size_t)(g->batch * two) * sizeof *g->total);
    for (int64_t k = 0; k < g->batch * g->parts; k++)
        for (int64_t c = 0; c < two; c++) g->total[k / g->parts * two + c] += g->sums[k * two + c];
}

static int64_t part_end(const group *g, int64_t k) {
    return ma_min((k % g->parts + 1) * g->size, g->space);
}

/* Where position s of the sample that part k belongs to starts. */
static int64_t position(const group *g, int64_t k, int64_t s) {
    return (k / g->parts * g->space + s) * g->channels;
}

/* Of x, or of x += add where add is not NULL. */
static void channel_sums(const group *g, float *x, const float *add, int64_t k) {
    int64_t n = g->channels;
    double *sum = g->sums + k * 2 * n, *squares = sum + n;
    memset(sum, 0, 2 * (size_t)n * sizeof *sum);
    for (int64_t s = k % g->parts * g->size; s < part_end(g, k); s++) {
        int64_t at = position(g, k, s);
        float *row = x + at;
        for (int64_t c = 0; c < n && add; c++) row[c] += add[at + c];
#pragma omp simd
        for (int64_t c = 0; c < n; c++) {
            sum[c] += row[c];
            squares[c] += (double)row[c] * row[c];
        }
    }
}

static void sum_channels(const group *g, float *x, const float *add) {
#pragma omp parallel for
    for (int64_t k = 0; k < g->batch * g->parts; k++) channel_sums(g, x, add, k);
    add_parts(g);
}

/* Of group j (of all samples), from its channels' totals. */
static void group_sums(const group *g, int64_t j, double *sum, double *squares) {
    int64_t n = g->channels, per = n / g->groups;
    const double *total = g->total + j / g->groups * 2 * n + j % g->groups * per;
    *sum = *squares = 0;
    for (int64_t c = 0; c < per; c++) {
        *sum += total[c];
        *squares += total[n + c];
    }
}

/* What group j (of all samples) means for its channels. */
static void set_channels(const group *g, const ma_call *call, int64_t j, moments m) {
    const float *gain = call->in[1] ? call->in[1]->data : NULL, *bias = call->in[2] ? call->in[2]->data : NULL;
    int64_t per = g->channels / g->groups;
    for (int64_t k = j * per; k < (j + 1) * per; k++) {
        g->mean[k] = m.mean;
        g->inverse[k] = m.inverse;
        g->gain[k] = gain ? gain[k % g->channels] : 1;
        g->bias[k] = bias ? bias[k % g->channels] : 0;
    }
}

/* y = gain·h + bias over n channels, from number k (of all samples) on. */
static void group_row(const group *g, int64_t k, const float *x, float *y, int64_t n) {
    const float *mean = g->mean + k, *inverse = g->inverse + k, *gain = g->gain + k, *bias = g->bias + k;
#pragma omp simd
    for (int64_t c = 0; c < n; c++) y[c] = (x[c] - mean[c]) * inverse[c] * gain[c] + bias[c];
}

/* Sums x and sets what stands for each channel. */
static void take_moments(const group *g, const ma_call *call) {
    float *mean = call->save[0] ? call->save[0]->data : NULL, *inverse = call->save[1] ? call->save[1]->data : NULL;
    sum_channels(g, call->in[0]->data, NULL);
    for (int64_t j = 0; j < g->batch * g->groups; j++) {
        double sum, squares;
        group_sums(g, j, &sum, &squares);
        moments m = moments_of(sum, squares, g->channels / g->groups * g->space, g->eps);
        if (mean) mean[j] = m.mean;
        if (inverse) inverse[j] = m.inverse;
        set_channels(g, call, j, m);
    }
}

int ma_cpu_group_norm_fwd(const ma_call *call) {
    group g = group_of(call);
    const float *x = call->in[0]->data;
    float *y = call->out->data;
    int64_t n = g.channels;
    take_moments(&g, call);
#pragma omp parallel for
    for (int64_t k = 0; k < g.batch * g.parts; k++) {
        int64_t from = position(&g, k, k % g.parts * g.size), to = position(&g, k, part_end(&g, k));
        for (int64_t at = from; at < to; at += n) group_row(&g, k / g.parts * n, x + at, y + at, n);
        ma_act_fwd(g.act, y + from, y + from, (size_t)(to - from));
    }
    return 0;
}

/* The gradient before the activation of n <= SPAN channels: the output's own, or what is made of it in room. at: where
 * they stand in x, k: the number of the first (of all samples). */
enum { SPAN = 512 };
static const float *before_act(const group *g, const ma_call *call, int64_t k, int64_t at, int64_t n, float *room) {
    const float *dout = call->out->grad->data, *out = call->out->data;
    float pre[SPAN];
    if (g->act == MA_NONE) return dout + at;
    if (ma_act_needs_pre(g->act)) group_row(g, k, (const float *)call->in[0]->data + at, pre, n);
    ma_act_bwd(g->act, pre, out + at, dout + at, room, (size_t)n, false);
    return room;
}

/* Σ d·h and Σ d by channel, of n <= SPAN channels from c on, over part k; d is the gradient before the activation. */
static void span_sums(const group *g, const ma_call *call, int64_t k, int64_t c, int64_t n) {
    int64_t first = k / g->parts * g->channels + c;
    double *along = g->sums + k * 2 * g->channels + c, *sum = along + g->channels;
    const float *mean = g->mean + first, *inverse = g->inverse + first;
    memset(along, 0, (size_t)n * sizeof *along);
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int64_t s = k % g->parts * g->size; s < part_end(g, k); s++) {
        float room[SPAN];
        int64_t at = position(g, k, s) + c;
        const float *x = (const float *)call->in[0]->data + at, *d = before_act(g, call, first, at, n, room);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            along[j] += (double)d[j] * ((x[j] - mean[j]) * inverse[j]);
            sum[j] += d[j];
        }
    }
}

static void span_bwd(const group *g, const ma_call *call, int64_t k, int64_t c, int64_t n) {
    int64_t first = k / g->parts * g->channels + c;
    const float *mean = g->mean + first, *inverse = g->inverse + first, *gain = g->gain + first;
    const float *mean_f = g->mean_f + first, *mean_fh = g->mean_fh + first;
    for (int64_t s = k % g->parts * g->size; s < part_end(g, k); s++) {
        float room[SPAN];
        int64_t at = position(g, k, s) + c;
        const float *x = (const float *)call->in[0]->data + at, *d = before_act(g, call, first, at, n, room);
        float *dx = (float *)call->in[0]->grad->data + at;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            float h = (x[j] - mean[j]) * inverse[j];
            dx[j] += inverse[j] * (gain[j] * d[j] - mean_f[j] - h * mean_fh[j]);
        }
    }
}

/* From the totals: the parameters' gradients, and what x's needs. */
static void group_means(const group *g, const ma_call *call) {
    float *dgain = ma_cpu_grad(call->in[1]), *dbias = ma_cpu_grad(call->in[2]);
    int64_t n = g->channels, per = n / g->groups;
    for (int64_t j = 0; j < g->batch * g->groups; j++) {
        const double *along = g->total + j / g->groups * 2 * n + j % g->groups * per, *sum = along + n;
        const float *gain = g->gain + j * per;
        double f = 0, fh = 0, count = (double)(per * g->space);
        for (int64_t c = 0; c < per; c++) {
            f += gain[c] * sum[c];
            fh += gain[c] * along[c];
            if (dgain) dgain[j % g->groups * per + c] += (float)along[c];
            if (dbias) dbias[j % g->groups * per + c] += (float)sum[c];
        }
        for (int64_t c = j * per; c < (j + 1) * per; c++) {
            g->mean_f[c] = (float)(f / count);
            g->mean_fh[c] = (float)(fh / count);
        }
    }
}

int ma_cpu_group_norm_bwd(const ma_call *call) {
    group g = group_of(call);
    const float *mean = call->save[0]->data, *inverse = call->save[1]->data;
    int64_t n = g.channels, parts = g.batch * g.parts;
    for (int64_t j = 0; j < g.batch * g.groups; j++) set_channels(&g, call, j, (moments){mean[j], inverse[j]});
#pragma omp parallel for collapse(2)
    for (int64_t k = 0; k < parts; k++)
        for (int64_t c = 0; c < n; c += SPAN) span_sums(&g, call, k, c, ma_min(SPAN, n - c));
    add_parts(&g);
    group_means(&g, call);
    if (!ma_cpu_grad(call->in[0])) return 0;
#pragma omp parallel for collapse(2)
    for (int64_t k = 0; k < parts; k++)
        for (int64_t c = 0; c < n; c += SPAN) span_bwd(&g, call, k, c, ma_min(SPAN, n - c));
    return 0;
}

/* ---- moments ---- */

size_t ma_cpu_moments_work(const ma_call *call, bool backward) {
    return ma_cpu_group_norm_work(call, backward);
}

int ma_cpu_moments_fwd(const ma_call *call) {
    group g = group_of(call);
    int64_t groups = g.batch * g.groups, n = g.channels / g.groups * g.space;
    float *mean = call->out->data, *variance = mean + groups;
    sum_channels(&g, call->in[0]->data, call->in[1] ? call->in[1]->data : NULL);
    for (int64_t j = 0; j < groups; j++) {
        double sum, squares;
        group_sums(&g, j, &sum, &squares);
        mean[j] = (float)(sum / (double)n);
        variance[j] = (float)variance_of(sum, squares, n);
    }
    return 0;
}

/* ---- causal_norm ---- */

/* mean, inverse, gain, bias of each channel: what group_row reads. */
size_t ma_cpu_causal_norm_work(const ma_call *call, bool backward) {
    const ma_tensor *x = call->in[0];
    (void)backward;
    return call->in[3] ? (size_t)(x->n[0] * x->n[4]) * 4 * sizeof(float) : 0;
}

/* groups 0: there is no norm. */
static group causal_group(const ma_call *call) {
    const ma_tensor *x = call->in[0], *given = call->in[3];
    group g = {.batch = x->n[0], .channels = x->n[4], .act = (ma_act)call->i[1]};
    if (!given) return g;
    int64_t each = g.batch * g.channels;
    g.groups = given->n[2];
    g.mean = call->work;
    g.inverse = g.mean + each;
    g.gain = g.inverse + each;
    g.bias = g.gain + each;
    const float *mean = given->data, *variance = mean + g.batch * g.groups;
    for (int64_t j = 0; j < g.batch * g.groups; j++)
        set_channels(&g, call, j, (moments){mean[j], (float)(1 / sqrt((double)variance[j] + call->f[0]))});
    return g;
}

/* Where position (t, h, w) of x finds its factors in the map: the nearest; of an odd number of frames the first is
 * apart. */
static int64_t nearest(const ma_tensor *x, const ma_tensor *map, int64_t sample, int64_t t, int64_t h, int64_t w) {
    bool apart = x->n[1] > 1 && x->n[1] % 2;
    if (t || !apart) t = apart + (t - apart) / ((x->n[1] - apart) / (map->n[1] - apart));
    h /= x->n[2] / map->n[2];
    w /= x->n[3] / map->n[3];
    return (((sample * map->n[1] + t) * map->n[2] + h) * map->n[3] + w) * map->n[4];
}

/* Line h of frame t of a sample, as the result has it. */
static void causal_line(const group *g, const ma_call *call, int64_t sample, int64_t t, int64_t h, float *to) {
    const ma_tensor *x = call->in[0], *map = call->in[4];
    int64_t n = x->n[4];
    const float *from = (const float *)x->data + ((sample * x->n[1] + t) * x->n[2] + h) * x->n[3] * n;
    for (int64_t w = 0; w < x->n[3]; w++, from += n) {
        float *y = to + w * n;
        if (g->groups)
            group_row(g, sample * n, from, y, n);
        else
            memcpy(y, from, (size_t)n * sizeof *y);
        if (!map) continue;
        const float *by = (const float *)map->data + nearest(x, map, sample, t, h, w) + call->i[0], *plus = by + n;
#pragma omp simd
        for (int64_t c = 0; c < n; c++) y[c] = y[c] * by[c] + plus[c];
    }
    ma_act_fwd(g->act, to, to, (size_t)(x->n[3] * n));
}

/* A line goes through all frames before the next: what the past held is read before it is overwritten. */
int ma_cpu_causal_norm_fwd(const ma_call *call) {
    const ma_tensor *x = call->in[0], *past = call->in[5];
    const bool fresh = call->i[3];
    const group g = causal_group(call);
    int64_t lead = call->i[2], frames = x->n[1], height = x->n[2], run = x->n[3] * x->n[4];
#pragma omp parallel for
    for (int64_t k = 0; k < x->n[0] * height; k++) {
        int64_t sample = k / height, h = k % height, step = height * run;
        float *y = (float *)call->out->data + (sample * (lead + frames) * height + h) * run;
        float *kept = past ? (float *)past->data + (sample * lead * height + h) * run : NULL;
        for (int64_t j = 0; j < lead + frames; j++) {
            if (j < lead && !fresh)
                memcpy(y + j * step, kept + j * step, (size_t)run * sizeof *y);
            else
                causal_line(&g, call, sample, j < lead ? 0 : j - lead, h, y + j * step);
            if (kept && j >= frames) memcpy(kept + (j - frames) * step, y + j * step, (size_t)run * sizeof *y);
        }
    }
    return 0;
}
