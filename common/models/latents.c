/* latents: see latents.h. */
#include "latents.h"

#include "../file.h"

#include <string.h>

/* (F,C,P) to (F,P,C), for P places; with c and p the other way round, back. */
static void turn(float *out, const float *in, int64_t f, int64_t c, int64_t p) {
    for (int64_t k = 0; k < f; k++)
        for (int64_t i = 0; i < c; i++)
            for (int64_t j = 0; j < p; j++) out[(k * p + j) * c + i] = in[(k * c + i) * p + j];
}

/* The file's array as fp32. */
static float *read_array(const char *path, ma_array *a, ma_err *e) {
    ma_buf file = {0};
    int rc = ma_read_file(path, (size_t)16 << 30, &file, e);
    if (!rc) rc = ma_npy_read(file.data, file.size, a, path, e);
    ma_buf_free(&file);
    return rc ? NULL : ma_array_f32(a, e);
}

float *latents_read(const char *path, const int64_t shape[5], int64_t many, int64_t *got, ma_err *e) {
    const int64_t want[5] = {1, shape[1], shape[4], shape[2], shape[3]};
    ma_array a = {0};
    char is[160], must[160];
    float *theirs = read_array(path, &a, e), *ours = NULL;
    if (theirs && (a.nd != 5 || (a.n[0] != 1 && a.n[0] != many) || memcmp(a.n + 1, want + 1, 4 * sizeof *want)))
        ma_fail(e, MA_SHAPE, "%s: is %s, must be %s, or %lld of it", path, ma_shape_text(is, a.nd, a.n),
                ma_shape_text(must, 5, want), (long long)many);
    else if (theirs && !(ours = ma_alloc(ma_array_count(&a), sizeof *ours)))
        ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    else if (theirs)
        turn(ours, theirs, a.n[0] * a.n[1], a.n[2], a.n[3] * a.n[4]);
    *got = a.n[0];
    ma_release(theirs);
    ma_array_free(&a);
    return ours;
}

int latents_write(const float *x, const int64_t shape[5], ma_buf *out, ma_err *e) {
    ma_array a;
    if (ma_array_new(&a, MA_F32, 5, (int64_t[]){1, shape[1], shape[4], shape[2], shape[3]}, e)) return -1;
    turn(a.data, x, shape[1], shape[2] * shape[3], shape[4]);
    int rc = ma_npy_write(&a, out, e);
    ma_array_free(&a);
    return rc;
}
