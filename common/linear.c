/* linear: see linear.h.
 *
 * Limits: a copy of the rows is made; products of all pairs of features are held, in² of them, twice.
 * Traps: sums run in one order, whatever the number of threads, which share rows of the products out. The strength is
 * by the row, so that it means the same for any number of rows. Features that do not vary get no weight. */
#include "linear.h"
#include "rng.h"

#include <math.h>
#include <string.h>

enum { HELD_OUT = 5, ROUNDS = 300 }; /* one row in so many chooses the strength; steps to the principal axes */

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Row k is not fitted to, but measured on. */
static bool held(int64_t k, bool holding) {
    return holding && k % HELD_OUT == HELD_OUT - 1;
}

/* The columns of x, (n, in), as rows of t, (in, *rows), without what is held out; their means are taken off. */
static void columns_of(const double *x, int64_t n, int64_t in, bool holding, double *t, double *mean, int64_t *rows) {
    *rows = holding ? n - n / HELD_OUT : n;
#pragma omp parallel for
    for (int64_t i = 0; i < in; i++) {
        double *to = t + i * *rows, sum = 0;
        int64_t at = 0;
        for (int64_t k = 0; k < n; k++)
            if (!held(k, holding)) sum += to[at++] = x[k * in + i];
        mean[i] = sum / (double)*rows;
        for (int64_t k = 0; k < *rows; k++) to[k] -= mean[i];
    }
}

/* g (n, n): products of the rows of t, (n, rows), over their number; both halves. */
static void gram(const double *t, int64_t n, int64_t rows, double *g) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++)
            g[i * n + j] = g[j * n + i] = dot(t + i * rows, t + j * rows, rows) / (double)rows;
}

bool ma_cholesky(double *a, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        const double pivot = a[j * n + j] - dot(a + j * n, a + j * n, j);
        if (!(pivot > 0)) return false;
        a[j * n + j] = sqrt(pivot);
        for (int64_t i = j + 1; i < n; i++) a[i * n + j] = (a[i * n + j] - dot(a + i * n, a + j * n, j)) / a[j * n + j];
    }
    return true;
}

void ma_cholesky_solve(const double *l, int64_t n, double *b) {
    for (int64_t i = 0; i < n; i++) b[i] = (b[i] - dot(l + i * n, b, i)) / l[i * n + i];
    for (int64_t i = n - 1; i >= 0; i--) {
        b[i] /= l[i * n + i];
        for (int64_t j = 0; j < i; j++) b[j] -= l[i * n + j] * b[i];
    }
}

bool ma_solve(double *a, double *b, int64_t n) {
    const bool definite = ma_cholesky(a, n);
    if (definite) ma_cholesky_solve(a, n, b);
    return definite;
}

/* ---- ridge regression ---- */

/* The normal equations of some rows. */
typedef struct normal {
    double *x, *y;    /* (in, n), (out, n): columns, without their means */
    double *gram, *l; /* (in, in): of what is scaled; its factor for some strength */
    double *right;    /* (out, in) */
} normal;

static void normal_free(normal *m) {
    ma_release(m->x);
    ma_release(m->y);
    ma_release(m->gram);
    ma_release(m->l);
    ma_release(m->right);
}

static int normal_new(normal *m, int64_t n, int64_t in, int64_t out, ma_err *e) {
    size_t square;
    if (!ma_mul((size_t)in, (size_t)in, &square)) square = SIZE_MAX;
    m->x = ma_alloc((size_t)n, (size_t)in * sizeof *m->x);
    m->y = ma_alloc((size_t)n, (size_t)out * sizeof *m->y);
    m->gram = ma_alloc(square, sizeof *m->gram);
    m->l = ma_alloc(square, sizeof *m->l);
    m->right = ma_alloc((size_t)out, (size_t)in * sizeof *m->right);
    return m->x && m->y && m->gram && m->l && m->right ? 0 : ma_fail(e, MA_MEMORY, "ridge: out of memory");
}

/* Means and scales into r, the equations into m. */
static void normal_fill(normal *m, ma_ridge *r, const double *x, const double *y, int64_t n, bool holding) {
    int64_t rows;
    columns_of(y, n, r->out, holding, m->y, r->bias, &rows);
    columns_of(x, n, r->in, holding, m->x, r->mean, &rows);
    for (int64_t i = 0; i < r->in; i++) {
        double *c = m->x + i * rows, deviation = sqrt(dot(c, c, rows) / (double)rows);
        r->scale[i] = deviation > 1e-9 * (fabs(r->mean[i]) + 1e-30) ? 1 / deviation : 0;
        for (int64_t k = 0; k < rows; k++) c[k] *= r->scale[i];
    }
    gram(m->x, r->in, rows, m->gram);
#pragma omp parallel for
    for (int64_t i = 0; i < r->in; i++)
        for (int64_t j = 0; j < r->out; j++)
            m->right[j * r->in + i] = dot(m->y + j * rows, m->x + i * rows, rows) / (double)rows;
}

/* false: not all is finite. */
static bool normal_solve(normal *m, ma_ridge *r, double strength) {
    memcpy(m->l, m->gram, (size_t)(r->in * r->in) * sizeof *m->l);
    memcpy(r->weight, m->right, (size_t)(r->out * r->in) * sizeof *m->right);
    for (int64_t i = 0; i < r->in; i++) m->l[i * r->in + i] += strength;
    r->strength = strength;
    if (!ma_cholesky(m->l, r->in)) return false;
    for (int64_t j = 0; j < r->out; j++) ma_cholesky_solve(m->l, r->in, r->weight + j * r->in);
    return true;
}

void ma_ridge_predict(const ma_ridge *r, const double *x, double *y) {
    for (int64_t j = 0; j < r->out; j++) {
        const double *w = r->weight + j * r->in;
        y[j] = r->bias[j];
        for (int64_t i = 0; i < r->in; i++) y[j] += w[i] * ((x[i] - r->mean[i]) * r->scale[i]);
    }
}

/* Σ|y − ŷ|² over the rows that were held out; guess: (out), for its use. */
static double error_held_out(const ma_ridge *r, const double *x, const double *y, int64_t n, double *guess) {
    double sum = 0;
    for (int64_t k = 0; k < n; k++) {
        if (!held(k, true)) continue;
        ma_ridge_predict(r, x + k * r->in, guess);
        for (int64_t j = 0; j < r->out; j++) sum += pow(y[k * r->out + j] - guess[j], 2);
    }
    return sum;
}

/* 0: not all is finite. */
static double choose(normal *m, ma_ridge *r, const double *x, const double *y, int64_t n, double *guess) {
    double best = 0, least = INFINITY;
    normal_fill(m, r, x, y, n, true);
    for (int power = 2; power >= -5; power--) {
        if (!normal_solve(m, r, pow(10, power))) continue;
        const double error = error_held_out(r, x, y, n, guess);
        if (error < least) least = error, best = r->strength;
    }
    return best;
}

int ma_ridge_fit(ma_ridge *r, const double *x, const double *y, int64_t n, int64_t in, int64_t out, double strength,
                 ma_err *e) {
    normal m = {0};
    *r = (ma_ridge){.in = in, .out = out};
    if (n < (strength > 0 ? 1 : HELD_OUT)) return ma_fail(e, MA_SHORT, "ridge: %lld rows are too few", (long long)n);
    r->mean = ma_alloc((size_t)in, sizeof *r->mean);
    r->scale = ma_alloc((size_t)in, sizeof *r->scale);
    r->weight = ma_alloc((size_t)out, (size_t)in * sizeof *r->weight);
    r->bias = ma_alloc((size_t)out, sizeof *r->bias);
    double *guess = ma_alloc((size_t)out, sizeof *guess);
    int rc = normal_new(&m, n, in, out, e);
    if (!rc && !(r->mean && r->scale && r->weight && r->bias && guess))
        rc = ma_fail(e, MA_MEMORY, "ridge: out of memory");
    if (!rc && !(strength > 0)) strength = choose(&m, r, x, y, n, guess);
    if (!rc && strength > 0) normal_fill(&m, r, x, y, n, false);
    if (!rc && !(strength > 0 && normal_solve(&m, r, strength)))
        rc = ma_fail(e, MA_NOTFINITE, "ridge: the rows hold NaN or infinity");
    ma_release(guess);
    normal_free(&m);
    return rc;
}

void ma_ridge_free(ma_ridge *r) {
    ma_release(r->mean);
    ma_release(r->scale);
    ma_release(r->weight);
    ma_release(r->bias);
    *r = (ma_ridge){0};
}

/* ---- principal components ---- */

/* Takes off what v has of the k axes before it, and gives it unit length; 0 where it is no longer than `nothing`. */
static void orthonormal(double *v, const double *axis, int k, int64_t in, double nothing) {
    for (int twice = 0; twice < 2; twice++) // once leaves rounding behind
        for (int j = 0; j < k; j++) {
            const double along = dot(v, axis + j * in, in);
            for (int64_t i = 0; i < in; i++) v[i] -= along * axis[j * in + i];
        }
    const double length = sqrt(dot(v, v, in));
    for (int64_t i = 0; i < in; i++) v[i] = length > nothing ? v[i] / length : 0;
}

/* The sign of an axis is arbitrary; by this one pictures of the same features look the same. */
static void fix_sign(double *v, int64_t in) {
    int64_t most = 0;
    for (int64_t i = 1; i < in; i++)
        if (fabs(v[i]) > fabs(v[most])) most = i;
    const double sign = v[most] < 0 ? -1 : 1;
    for (int64_t i = 0; i < in; i++) v[i] *= sign;
}

/* v ← c·v, by way of `to`. */
static void multiply(const double *c, int64_t in, double *v, double *to) {
    for (int64_t i = 0; i < in; i++) to[i] = dot(c + i * in, v, in);
    memcpy(v, to, (size_t)in * sizeof *v);
}

int ma_principal(const double *x, int64_t n, int64_t in, int k, double *mean, double *axis, double *deviation,
                 ma_err *e) {
    size_t square;
    if (!ma_mul((size_t)in, (size_t)in, &square)) square = SIZE_MAX;
    double *columns = ma_alloc((size_t)n, (size_t)in * sizeof *columns), *c = ma_alloc(square, sizeof *c);
    double *to = ma_alloc((size_t)in, sizeof *to);
    int rc = columns && c && to ? 0 : ma_fail(e, MA_MEMORY, "principal components: out of memory");
    double variance = 0;
    ma_rng start = ma_rng_make(0, NULL, 0, MA_RNG_INIT);
    if (!rc) {
        int64_t rows;
        columns_of(x, n, in, false, columns, mean, &rows);
        gram(columns, in, n, c);
        for (int64_t i = 0; i < k * in; i++) axis[i] = ma_rng_normal(&start);
        for (int64_t i = 0; i < in; i++) variance += c[i * in + i];
    }
    for (int round = 0; round < ROUNDS && !rc; round++)
        for (int j = 0; j < k; j++) {
            multiply(c, in, axis + j * in, to);
            orthonormal(axis + j * in, axis, j, in, 1e-12 * variance);
        }
    for (int j = 0; j < k && !rc; j++) {
        double *v = axis + j * in;
        fix_sign(v, in);
        memcpy(to, v, (size_t)in * sizeof *v);
        double *image = columns; // free by now
        multiply(c, in, to, image);
        deviation[j] = sqrt(fmax(dot(v, to, in), 0));
    }
    ma_release(columns);
    ma_release(c);
    ma_release(to);
    return rc;
}
