/* conv, conv_transpose: convolutions as matrix products over blocks of positions.
 *
 * Both ops are three functions of a wide side x (B,T,H,W,C) and a narrow side y (B,T',H',W',O), w (O,kt,kh,kw,C):
 *   gather  y = x ⋆ w     conv forward; conv_transpose backwards to its input
 *   spread  x = its adjoint on y    conv backwards to its input; conv_transpose forward
 *   weigh   dw            for both
 * Gather unfolds a block of positions into rows of the values under the window, then multiplies. Spread never scatters:
 * the positions of x that share their remainder by the stride see the same taps, so each such class is a gather from y
 * with stride 1 and some of the taps; classes are disjoint, no two threads add to one place.
 *
 * Traps: padding may differ before and after, what is after follows from the sizes; a class without taps (stride beyond
 * the kernel) stays zero; the partial sums of weigh are cut by the sizes only, and added in order. */
#include "cpu.h"
#include "gemm.h"

#include <omp.h>
#include <string.h>

enum { BLOCK = 256, GROUPS = 16 };              /* positions in a block; partial sums of dw, at most */
static const int64_t PARTIAL_FLOATS = 32 << 20; /* all partial sums together, if there is more than one */

typedef struct window {
    int64_t batch, wide[3], c, narrow[3], o;
    int64_t k[3], stride[3], before[3];
    int64_t rows, cols; /* narrow positions; values under the window */
} window;

static int64_t volume(const int64_t n[3]) {
    return n[0] * n[1] * n[2];
}

static window window_of(const ma_call *call, const ma_tensor *wide, const ma_tensor *narrow) {
    window v = {.batch = wide->n[0], .c = wide->n[4], .o = narrow->n[4]};
    memcpy(v.wide, wide->n + 1, sizeof v.wide);
    memcpy(v.narrow, narrow->n + 1, sizeof v.narrow);
    memcpy(v.k, call->in[1]->n + 1, sizeof v.k);
    memcpy(v.stride, call->i, sizeof v.stride);
    memcpy(v.before, call->i + 3, sizeof v.before);
    v.rows = v.batch * volume(v.narrow);
    v.cols = volume(v.k) * v.c;
    return v;
}

/* 1×1×1, position by position: the unfolded rows are x itself. */
static bool pointwise(const window *v) {
    return volume(v->k) == 1 && volume(v->stride) == 1 && !memcmp(v->wide, v->narrow, sizeof v->wide) &&
           !(v->before[0] | v->before[1] | v->before[2]);
}

static int64_t blocks(const window *v) {
    return (v->rows + BLOCK - 1) / BLOCK;
}

/* Which position a row of the narrow side is: batch, t, h, w. */
static void position(const window *v, int64_t row, int64_t at[4]) {
    for (int d = 2; d >= 0; d--) {
        at[1 + d] = row % v->narrow[d];
        row /= v->narrow[d];
    }
    at[0] = row;
}

/* One row of the window along w: k[2]·c values from column w on of a line of x; zeros outside. */
static void line(const window *v, const float *x, int64_t w, float *to) {
    int64_t from = ma_min(w < 0 ? -w : 0, v->k[2]); // the first tap inside
    int64_t end = ma_min(v->wide[2] - w, v->k[2]), c = v->c;
    if (end < from) end = from;
    memset(to, 0, (size_t)(from * c) * sizeof *to);
    if (end > from) memcpy(to + from * c, x + (w + from) * c, (size_t)((end - from) * c) * sizeof *to);
    memset(to + end * c, 0, (size_t)((v->k[2] - end) * c) * sizeof *to);
}

/* The rows of the unfolded matrix from `row` on: x itself, or written to col (rows, cols). */
static const float *unfold(const window *v, const float *x, int64_t row, int64_t rows, float *col) {
    if (pointwise(v)) return x + row * v->c;
    float *to = col;
    int64_t run = v->k[2] * v->c;
    for (int64_t r = row; r < row + rows; r++) {
        int64_t at[4];
        position(v, r, at);
        int64_t w = at[3] * v->stride[2] - v->before[2];
        for (int64_t i = 0; i < v->k[0]; i++)
            for (int64_t j = 0; j < v->k[1]; j++, to += run) {
                int64_t t = at[1] * v->stride[0] - v->before[0] + i, h = at[2] * v->stride[1] - v->before[1] + j;
                if (t < 0 || t >= v->wide[0] || h < 0 || h >= v->wide[1])
                    memset(to, 0, (size_t)run * sizeof *to);
                else
                    line(v, x + ((at[0] * v->wide[0] + t) * v->wide[1] + h) * v->wide[2] * v->c, w, to);
            }
    }
    return col;
}

static int64_t gather_room(const window *v) {
    return pointwise(v) ? 0 : omp_get_max_threads() * BLOCK * v->cols;
}

/* y = act(x ⋆ w + bias), or y += x ⋆ w when add is set (then without epilogue). */
static void gather(const window *v, const float *x, const float *w, float *y, bool add, ma_epilogue after,
                   float *room) {
    if (pointwise(v) && add)
        ma_gemm(false, true, v->rows, v->o, v->c, 1, x, v->c, w, v->c, 1, y, v->o);
    else if (pointwise(v))
        ma_gemm_act(v->rows, v->o, v->c, x, w, y, after);
    if (pointwise(v)) return;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks(v); i++) {
        int64_t row = i * BLOCK, rows = ma_min(BLOCK, v->rows - row);
        float *to = y + row * v->o;
        const float *col = unfold(v, x, row, rows, room + omp_get_thread_num() * BLOCK * v->cols);
        ma_gemm_tile(false, true, rows, v->o, v->cols, 1, col, v->cols, w, v->cols, add, to, v->o);
        if (add) continue;
        ma_epilogue e = after;
        if (e.pre) e.pre += row * v->o;
        ma_epilogue_tile(to, rows, v->o, v->o, e);
    }
}

/* The class of wide positions i = r + stride·q. In each dimension tap k reaches narrow position
 * (i + before - k)/stride, so the taps are first, first + stride, …, and the position falls as the tap rises; the taps
 * are therefore taken from the last one down. The window returned is over y, its narrow side counts q. */
static window class_of(const window *v, const int64_t r[3], int64_t first[3]) {
    window s = {.batch = v->batch, .c = v->o, .o = v->c, .stride = {1, 1, 1}};
    for (int d = 0; d < 3; d++) {
        int64_t step = v->stride[d], reach = r[d] + v->before[d];
        first[d] = reach % step;
        s.k[d] = first[d] < v->k[d] ? (v->k[d] - first[d] - 1) / step + 1 : 0;
        s.wide[d] = v->narrow[d];
        s.narrow[d] = r[d] < v->wide[d] ? (v->wide[d] - r[d] - 1) / step + 1 : 0;
        s.before[d] = s.k[d] - 1 - reach / step;
    }
    s.rows = s.batch * volume(s.narrow);
    s.cols = volume(s.k) * s.c;
    return s;
}

/* The weights that a class uses: (taps of the class, O, C) from w (O, taps, C). */
static void class_weights(const window *v, const window *s, const int64_t first[3], const float *w, float *to) {
    int64_t taps = volume(s->k), all = volume(v->k);
#pragma omp parallel for if (taps * v->o * v->c > 1 << 14)
    for (int64_t i = 0; i < taps * v->o; i++) {
        int64_t tap = i / v->o, o = i % v->o, left = tap, at = 0, unit = 1;
        for (int d = 2; d >= 0; d--) {
            int64_t last = s->k[d] - 1, k = first[d] + (last - left % s->k[d]) * v->stride[d];
            left /= s->k[d];
            at += k * unit;
            unit *= v->k[d];
        }
        memcpy(to + i * v->c, w + (o * all + at) * v->c, (size_t)v->c * sizeof *to);
    }
}

/* Values under the window of the class with the most taps. */
static int64_t most_cols(const window *v) {
    int64_t cols = v->o;
    for (int d = 0; d < 3; d++) cols *= (v->k[d] - 1) / v->stride[d] + 1;
    return cols;
}

static int64_t spread_room(const window *v) {
    return pointwise(v) ? 0
                        : (omp_get_max_threads() * BLOCK + v->c) * most_cols(v) + omp_get_max_threads() * BLOCK * v->c;
}

/* A block's rows (rows, C) to their places in x: assigned or added. */
static void place(const window *v, const window *s, const int64_t r[3], int64_t row, int64_t rows, const float *from,
                  float *x, bool add) {
    for (int64_t i = row; i < row + rows; i++, from += v->c) {
        int64_t at[4], to;
        position(s, i, at);
        to = at[0];
        for (int d = 0; d < 3; d++) to = to * v->wide[d] + r[d] + at[1 + d] * v->stride[d];
        if (!add)
            memcpy(x + to * v->c, from, (size_t)v->c * sizeof *x);
        else
            for (int64_t j = 0; j < v->c; j++) x[to * v->c + j] += from[j];
    }
}

static void spread_class(const window *v, const int64_t r[3], const float *y, const float *w, float *x, bool add,
                         float *room) {
    int64_t first[3];
    window s = class_of(v, r, first);
    if (!s.rows || !s.cols) return;
    float *part = room + v->c * most_cols(v);
    int64_t stride = BLOCK * (most_cols(v) + v->c);
    class_weights(v, &s, first, w, room); // (cols, C)
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks(&s); i++) {
        int64_t row = i * BLOCK, rows = ma_min(BLOCK, s.rows - row);
        float *tile = part + omp_get_thread_num() * stride, *col = tile + BLOCK * v->c;
        const float *from = unfold(&s, y, row, rows, col);
        ma_gemm_tile(false, false, rows, v->c, s.cols, 1, from, s.cols, room, v->c, 0, tile, v->c);
        place(v, &s, r, row, rows, tile, x, add);
    }
}

/* x = or += the adjoint of gather on y. */
static void spread(const window *v, const float *y, const float *w, float *x, bool add, float *room) {
    if (pointwise(v)) {
        ma_gemm(false, false, v->rows, v->c, v->o, 1, y, v->o, w, v->c, add, x, v->c);
        return;
    }
    if (!add) memset(x, 0, (size_t)(v->batch * volume(v->wide) * v->c) * sizeof *x);
    int64_t r[3];
    for (r[0] = 0; r[0] < v->stride[0]; r[0]++)
        for (r[1] = 0; r[1] < v->stride[1]; r[1]++)
            for (r[2] = 0; r[2] < v->stride[2]; r[2]++) spread_class(v, r, y, w, x, add, room);
}

static int64_t groups(const window *v) {
    int64_t fit = PARTIAL_FLOATS / (v->o * v->cols) + 1;
    return ma_min(ma_min(blocks(v), fit), GROUPS);
}

static int64_t weigh_room(const window *v) {
    return groups(v) * v->o * v->cols + gather_room(v);
}

/* dw (O, cols) += yᵀ·unfolded x, each group of blocks into a sum of its own. */
static void weigh(const window *v, const float *x, const float *y, float *dw, float *room) {
    int64_t parts = groups(v), size = v->o * v->cols, all = blocks(v);
    float *cols = room + parts * size;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t g = 0; g < parts; g++)
        for (int64_t first = g * all / parts, i = first; i < (g + 1) * all / parts; i++) {
            int64_t row = i * BLOCK, rows = ma_min(BLOCK, v->rows - row);
            const float *col =
                unfold(v, x, row, rows, cols + (pointwise(v) ? 0 : omp_get_thread_num() * BLOCK * v->cols));
            ma_gemm_tile(true, false, v->o, v->cols, rows, 1, y + row * v->o, v->o, col, v->cols, i > first,
                         room + g * size, v->cols);
        }
#pragma omp parallel for
    for (int64_t from = 0; from < size; from += 4096)
        for (int64_t g = 0; g < parts; g++)
            for (int64_t i = from; i < ma_min(from + 4096, size); i++) dw[i] += room[g * size + i];
}

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Floats of room that the backward pass needs beside the epilogue's; dx is what turns dout into the input's gradient.
 */
static size_t backward_work(const ma_call *call, int64_t dx, int64_t dw) {
    int64_t room = most(call->in[0]->want ? dx : 0, call->in[1]->want ? dw : 0);
    return ma_epilogue_work(call, (ma_act)call->i[9]) + (size_t)room * sizeof(float);
}

/* dout before the activation, and in *room the workspace behind it. */
static const float *before_act(const ma_call *call, float **room) {
    *room = (float *)call->work + ma_epilogue_work(call, (ma_act)call->i[9]) / sizeof(float);
    return ma_epilogue_bwd(call, (ma_act)call->i[9], call->work);
}

static ma_epilogue epilogue_of(const ma_call *call) {
    const ma_tensor *b = call->in[2], *pre = call->save[0];
    return (ma_epilogue){b ? b->data : NULL, (ma_act)call->i[9], pre ? pre->data : NULL};
}

size_t ma_cpu_conv_work(const ma_call *call, bool backward) {
    window v = window_of(call, call->in[0], call->out);
    if (backward) return backward_work(call, spread_room(&v), weigh_room(&v));
    return (size_t)gather_room(&v) * sizeof(float);
}

int ma_cpu_conv_fwd(const ma_call *call) {
    window v = window_of(call, call->in[0], call->out);
    gather(&v, call->in[0]->data, call->in[1]->data, call->out->data, false, epilogue_of(call), call->work);
    return 0;
}

int ma_cpu_conv_bwd(const ma_call *call) {
    const ma_tensor *x = call->in[0], *w = call->in[1];
    window v = window_of(call, x, call->out);
    float *room, *dx = ma_cpu_grad(x), *dw = ma_cpu_grad(w), *db = ma_cpu_grad(call->in[2]);
    const float *d = before_act(call, &room); // (B,T',H',W',O)
    if (dx) spread(&v, d, w->data, dx, true, room);
    if (dw) weigh(&v, x->data, d, dw, room);
    if (db) ma_column_sums(d, v.rows, v.o, db);
    return 0;
}

size_t ma_cpu_conv_transpose_work(const ma_call *call, bool backward) {
    window v = window_of(call, call->out, call->in[0]);
    if (backward) return backward_work(call, gather_room(&v), weigh_room(&v));
    return (size_t)spread_room(&v) * sizeof(float);
}

int ma_cpu_conv_transpose_fwd(const ma_call *call) {
    window v = window_of(call, call->out, call->in[0]);
    float *out = call->out->data;
    ma_epilogue after = epilogue_of(call);
    int64_t rows = v.batch * volume(v.wide);
    spread(&v, call->in[0]->data, call->in[1]->data, out, false, call->work);
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row += BLOCK) {
        ma_epilogue e = after;
        if (e.pre) e.pre += row * v.c;
        ma_epilogue_tile(out + row * v.c, ma_min(BLOCK, rows - row), v.c, v.c, e);
    }
    return 0;
}

int ma_cpu_conv_transpose_bwd(const ma_call *call) {
    const ma_tensor *x = call->in[0], *w = call->in[1];
    window v = window_of(call, call->out, x);
    float *room, *dx = ma_cpu_grad(x), *dw = ma_cpu_grad(w), *db = ma_cpu_grad(call->in[2]);
    const float *d = before_act(call, &room); // (B,T',H',W',O), the wide side
    if (dx) gather(&v, d, w->data, dx, true, (ma_epilogue){0}, room);
    if (dw) weigh(&v, d, x->data, dw, room);
    if (db) ma_column_sums(d, v.batch * volume(v.wide), v.c, db);
    return 0;
}
