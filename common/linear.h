/* linear: what is solved in closed form, in double: linear equations, ridge regression, principal components.
 * The same bits on any number of threads. */
#ifndef MA_LINEAR_H
#define MA_LINEAR_H

#include "base.h"

/* a (n, n), symmetric and positive definite, of which the lower half is read, becomes L there, L·Lᵀ = a. false: it is
 * not positive definite. */
bool ma_cholesky(double *a, int64_t n);
/* L·Lᵀ x = b: b (n) becomes x. */
void ma_cholesky_solve(const double *l, int64_t n, double *b);
/* Both: a becomes L, b the x of a x = b. */
bool ma_solve(double *a, double *b, int64_t n);

/* A linear map that was fitted: ŷ = bias + weight · ((x − mean) ⊙ scale). */
typedef struct ma_ridge {
    int64_t in, out;
    double *mean, *scale; /* (in): of the rows fitted to; scale 1/deviation, 0 where they are all alike */
    double *weight;       /* (out, in) */
    double *bias;         /* (out): the targets' means */
    double strength;
} ma_ridge;

/* Fits n rows of x, (n, in), to those of y, (n, out): the least Σ|y − ŷ|² + n·strength·|weight|². strength 0: of the
 * powers of ten from 10⁻⁵ to 100 the one whose fit to four fifths of the rows is best on every fifth one. -1: fewer
 * than 5 rows to choose by, or than 1; out of memory. To be freed either way. */
int ma_ridge_fit(ma_ridge *, const double *x, const double *y, int64_t n, int64_t in, int64_t out, double strength,
                 ma_err *);
void ma_ridge_predict(const ma_ridge *, const double *x, double *y); /* one row */
void ma_ridge_free(ma_ridge *);

/* The first k principal components of n rows of x, (n, in): their mean (in), axes of unit length (k, in), the largest
 * element of each positive, and the rows' deviation along each (k). Where the rows span fewer, what is left is 0. */
int ma_principal(const double *x, int64_t n, int64_t in, int k, double *mean, double *axis, double *deviation,
                 ma_err *);

#endif
