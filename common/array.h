/* array: element types, half-precision numbers, arrays in host memory. */
#ifndef MA_ARRAY_H
#define MA_ARRAY_H

#include "base.h"

/* Element types of arrays, tensors and files. */
typedef enum {
    MA_F32,
    MA_F16,
    MA_BF16,
    MA_F64,
    MA_I64,
    MA_I32,
    MA_I16,
    MA_I8,
    MA_U8,
    MA_U16,
    MA_BOOL,
    MA_TYPES
} ma_type;
size_t ma_type_size(ma_type);
const char *ma_type_name(ma_type); /* "f32", "bf16", … */

float ma_f16_to_f32(uint16_t);
uint16_t ma_f32_to_f16(float); /* round to nearest even; overflow gives infinity */
float ma_bf16_to_f32(uint16_t);
uint16_t ma_f32_to_bf16(float); /* round to nearest even */
void ma_to_f32(float *out, const void *in, ma_type, size_t n);
void ma_from_f32(void *out, const float *in, ma_type, size_t n); /* f32, f16, bf16, f64; u8 rounds and clamps */

/* An array in host memory: dense, row-major, little-endian. */
#define MA_MAX_DIMS 8
typedef struct ma_array {
    ma_type type;
    int nd;
    int64_t n[MA_MAX_DIMS];
    void *data;
} ma_array;
size_t ma_array_count(const ma_array *); /* elements; an array that was made or read has been checked to fit */
size_t ma_array_bytes(const ma_array *);
/* Allocates data (ma_alloc) for type and shape. -1: too large, or out of memory. */
int ma_array_new(ma_array *, ma_type, int nd, const int64_t *n, ma_err *);
void ma_array_free(ma_array *);
/* The array as fp32, owned by the caller (ma_release). NULL: out of memory or not a number type. */
float *ma_array_f32(const ma_array *, ma_err *);
/* The first element of an f16 or f32 array that is NaN or infinite; their count: none is, as in arrays of other types.
 */
size_t ma_array_not_finite(const ma_array *);
/* "24x10x15x768", for messages. out holds at least 160 bytes; returns out. */
char *ma_shape_text(char *out, int nd, const int64_t *n);

#endif
