/* array: element types and host arrays. See array.h for the contracts.
 *
 * Limits: little-endian machines.
 * Traps minded:
 * - input of ma_to_f32 may be unaligned (a member of a shard, viewed in place): every load goes through memcpy;
 * - float16 has subnormals, bf16's rounding would turn some NaNs into infinity: both have a branch of their own.
 */
#include "array.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian and read in place");

/* Element types */

static const struct {
    const char *name;
    size_t size;
} types[MA_TYPES] = {
    [MA_F32] = {"f32", 4}, [MA_F16] = {"f16", 2}, [MA_BF16] = {"bf16", 2}, [MA_F64] = {"f64", 8},
    [MA_I64] = {"i64", 8}, [MA_I32] = {"i32", 4}, [MA_I16] = {"i16", 2},   [MA_I8] = {"i8", 1},
    [MA_U8] = {"u8", 1},   [MA_U16] = {"u16", 2}, [MA_BOOL] = {"bool", 1},
};

size_t ma_type_size(ma_type t) {
    return (unsigned)t < MA_TYPES ? types[t].size : 0;
}

const char *ma_type_name(ma_type t) {
    return (unsigned)t < MA_TYPES ? types[t].name : "unknown";
}

static inline float as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t as_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* The four below are selections without branches or tables, so that the loops over them become
 * vector code.
 * float16: 1 sign, 5 exponent (bias 15), 10 mantissa; float32: 1, 8 (bias 127), 23; bf16: the upper half of a float32.
 */

static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t body = (uint32_t)(h & 0x7fff) << 13; /* exponent and mantissa at float32's places, bias still 15 */
    uint32_t normal = body + ((127u - 15) << 23);
    uint32_t special = normal + ((127u - 15) << 23);                               /* exponent 31 becomes 255 */
    uint32_t tiny = as_bits(as_float(body + (113u << 23)) - as_float(113u << 23)); /* subnormal: 2^-14·0.m, exact */
    uint32_t u = body >= (31u << 23) ? special : normal;
    return as_float(sign | (body < (1u << 23) ? tiny : u));
}

static inline uint16_t f32_to_f16(float f) {
    uint32_t u = as_bits(f), sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    uint32_t normal = (u - ((127u - 15) << 23) + 0xfff + (u >> 13 & 1)) >> 13; /* a carry may reach infinity: right */
    uint32_t tiny = as_bits(as_float(u) + 0.5f) - as_bits(0.5f); /* 0.5's last place is 2^-24: the FPU rounds */
    uint32_t special = u > 0x7f800000 ? 0x7e00 | (u >> 13 & 0x3ff) : 0x7c00; /* NaN stays NaN, quiet */
    uint32_t h = u < (113u << 23) ? tiny : normal;
    return (uint16_t)(sign | (u >= (143u << 23) ? special : h));
}

static inline float bf16_to_f32(uint16_t h) {
    return as_float((uint32_t)h << 16);
}

static inline uint16_t f32_to_bf16(float f) {
    uint32_t u = as_bits(f);
    uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : rounded);
}

float ma_f16_to_f32(uint16_t h) {
    return f16_to_f32(h);
}

uint16_t ma_f32_to_f16(float f) {
    return f32_to_f16(f);
}

float ma_bf16_to_f32(uint16_t h) {
    return bf16_to_f32(h);
}

uint16_t ma_f32_to_bf16(float f) {
    return f32_to_bf16(f);
}

static inline uint16_t load16(const char *p, size_t i) {
    uint16_t v;
    memcpy(&v, p + 2 * i, 2);
    return v;
}

static inline void store16(char *p, size_t i, uint16_t v) {
    memcpy(p + 2 * i, &v, 2);
}

/* The types that no hot path reads, one element. */
static double load_any(const char *p, ma_type t) {
    int64_t i64 = 0;
    int32_t i32;
    int16_t i16;
    double f64;
    switch (t) {
    case MA_F64: return memcpy(&f64, p, 8), f64;
    case MA_I64: return memcpy(&i64, p, 8), (double)i64;
    case MA_I32: return memcpy(&i32, p, 4), i32;
    case MA_I16: return memcpy(&i16, p, 2), i16;
    case MA_U16: return load16(p, 0);
    case MA_I8: return (signed char)*p;
    case MA_BOOL: return *p != 0;
    default: return NAN;
    }
}

static void to_f32(float *restrict out, const char *restrict in, ma_type t, size_t n) {
    switch (t) {
    case MA_F32: memcpy(out, in, n * 4); break;
    case MA_F16:
        for (size_t i = 0; i < n; i++) out[i] = f16_to_f32(load16(in, i));
        break;
    case MA_BF16:
        for (size_t i = 0; i < n; i++) out[i] = bf16_to_f32(load16(in, i));
        break;
    case MA_U8:
        for (size_t i = 0; i < n; i++) out[i] = (unsigned char)in[i];
        break;
    default:
        for (size_t i = 0; i < n; i++) out[i] = (float)load_any(in + i * ma_type_size(t), t);
    }
}

static void from_f32(char *restrict out, const float *restrict in, ma_type t, size_t n) {
    switch (t) {
    case MA_F32: memcpy(out, in, n * 4); break;
    case MA_F16:
        for (size_t i = 0; i < n; i++) store16(out, i, f32_to_f16(in[i]));
        break;
    case MA_BF16:
        for (size_t i = 0; i < n; i++) store16(out, i, f32_to_bf16(in[i]));
        break;
    case MA_U8:
        for (size_t i = 0; i < n; i++) {
            float v = in[i] > 0 ? in[i] : 0; /* NaN becomes 0 */
            out[i] = (char)(unsigned char)rintf(v < 255 ? v : 255);
        }
        break;
    case MA_F64:
        for (size_t i = 0; i < n; i++) {
            double v = in[i];
            memcpy(out + 8 * i, &v, 8);
        }
        break;
    default: memset(out, 0, n * ma_type_size(t)); /* not a type we write: zeros rather than what was there */
    }
}

/* Elements one thread converts at a time; fewer than that are not worth a thread. */
enum { SLICE = 1 << 18 };

void ma_to_f32(float *out, const void *in, ma_type t, size_t n) {
    if (!n) return;
    size_t slices = (n - 1) / SLICE + 1;
#pragma omp parallel for if (slices > 1)
    for (size_t s = 0; s < slices; s++) {
        size_t i = s * SLICE;
        to_f32(out + i, (const char *)in + i * ma_type_size(t), t, n - i < SLICE ? n - i : SLICE);
    }
}

void ma_from_f32(void *out, const float *in, ma_type t, size_t n) {
    if (!n) return;
    size_t slices = (n - 1) / SLICE + 1;
#pragma omp parallel for if (slices > 1)
    for (size_t s = 0; s < slices; s++) {
        size_t i = s * SLICE;
        from_f32((char *)out + i * ma_type_size(t), in + i, t, n - i < SLICE ? n - i : SLICE);
    }
}

/* Arrays */

size_t ma_array_count(const ma_array *a) {
    size_t n = 1;
    for (int d = 0; d < a->nd; d++) n *= (size_t)a->n[d];
    return n;
}

size_t ma_array_bytes(const ma_array *a) {
    return ma_array_count(a) * ma_type_size(a->type);
}

int ma_array_new(ma_array *a, ma_type t, int nd, const int64_t *n, ma_err *e) {
    *a = (ma_array){.type = t, .nd = nd};
    size_t bytes = ma_type_size(t);
    if (!bytes) return ma_fail(e, MA_UNSUPPORTED, "array: unknown type");
    if (nd < 0 || nd > MA_MAX_DIMS) return ma_fail(e, MA_SHAPE, "array: %d dimensions", nd);
    char shape[160];
    size_t extent = bytes; /* the product without the zeros: sizes beside a zero must fit too */
    for (int d = 0; d < nd; d++) {
        a->n[d] = n[d];
        if (n[d] < 0 || !ma_mul(bytes, (size_t)n[d], &bytes) || !ma_mul(extent, n[d] ? (size_t)n[d] : 1, &extent))
            return ma_fail(e, MA_SHAPE, "array: impossible size %s", ma_shape_text(shape, nd, n));
    }
    a->data = ma_alloc(bytes, 1);
    if (!a->data)
        return ma_fail(e, MA_MEMORY, "array: no memory for %s %s", ma_shape_text(shape, nd, n), ma_type_name(t));
    return 0;
}

void ma_array_free(ma_array *a) {
    ma_release(a->data);
    *a = (ma_array){0};
}

float *ma_array_f32(const ma_array *a, ma_err *e) {
    if (!ma_type_size(a->type)) return ma_fail(e, MA_UNSUPPORTED, "array: not a number type"), NULL;
    size_t n = ma_array_count(a);
    float *out = ma_alloc(n, sizeof *out);
    if (!out) return ma_fail(e, MA_MEMORY, "array: no memory for %zu numbers", n), NULL;
    ma_to_f32(out, a->data, a->type, n);
    return out;
}

/* Looked at block by block, which goes many at a time. */
static size_t half_not_finite(const uint16_t *half, size_t n) {
    enum { BLOCK = 1024 };
    size_t at = 0;
    for (; at < n; at += BLOCK) {
        size_t count = n - at < BLOCK ? n - at : BLOCK;
        uint16_t most = 0; /* of the exponents */
        for (size_t k = 0; k < count; k++) {
            uint16_t exponent = half[at + k] & 0x7c00;
            most = exponent > most ? exponent : most;
        }
        if (most == 0x7c00) break;
    }
    while (at < n && (half[at] & 0x7c00) != 0x7c00) at++;
    return at < n ? at : n;
}

size_t ma_array_not_finite(const ma_array *a) {
    const float *v = a->data;
    size_t n = ma_array_count(a), k = 0;
    if (a->type == MA_F16) return half_not_finite(a->data, n);
    while (a->type == MA_F32 && k < n && isfinite(v[k])) k++;
    return a->type == MA_F32 ? k : n;
}

char *ma_shape_text(char *out, int nd, const int64_t *n) {
    const size_t room = 160;
    size_t at = 0;
    snprintf(out, room, "scalar");
    for (int d = 0; d < nd && d < MA_MAX_DIMS && at < room; d++)
        at += (size_t)snprintf(out + at, room - at, d ? "x%lld" : "%lld", (long long)n[d]);
    return out;
}
