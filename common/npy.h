/* npy: NumPy's .npy version 1.0 in memory (2.0 and 3.0 are read too). Little-endian, C order. */
#ifndef MA_NPY_H
#define MA_NPY_H
#include "array.h"

/* Reads an array out of bytes. data is a fresh allocation (ma_array_free). Fortran order, big-endian, object and
 * structured types are refused. name: for the message. */
int ma_npy_read(const void *bytes, size_t size, ma_array *out, const char *name, ma_err *);
/* The same without the copy: out->data points into bytes (aligned as they are; use memcpy or ma_to_f32). */
int ma_npy_view(const void *bytes, size_t size, ma_array *out, const char *name, ma_err *);
/* Appends the array as .npy 1.0, header padded to 64. bf16 has no npy type: refused. */
int ma_npy_write(const ma_array *, ma_buf *out, ma_err *);
/* An .npy whose values are still to come, in a buffer of its own: a's type and shape are given, a->data is set to where
 * in out they go. */
int ma_npy_begin(ma_array *a, ma_buf *out, ma_err *);

#endif
