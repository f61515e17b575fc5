/* values: what the .pth fixtures here hold (tests/golden/pth.py wrote them from the same formula). */
#ifndef VALUES_H
#define VALUES_H

#include "../../common/weights.h"

enum { VALUES = 16 };

/* Element i of storage order is (i - 8) / 8, or i - 2 in the integer types. start and step pick from the storage. */
typedef struct values {
    const char *name;
    ma_type type;
    int nd;
    int64_t n[2], step[2], start;
} values;

static const values VALUE[VALUES] = {
    {"brain", MA_BF16, 1, {5}, {1}, 0},       {"byte", MA_U8, 1, {4}, {1}, 2},
    {"char", MA_I8, 1, {4}, {1}, 0},          {"cut", MA_F32, 2, {4, 3}, {6, 2}, 1},
    {"double", MA_F64, 1, {5}, {1}, 0},       {"empty", MA_F32, 2, {0, 3}, {3, 1}, 0},
    {"flag", MA_BOOL, 1, {3}, {1}, 0},        {"half", MA_F16, 1, {5}, {1}, 0},
    {"int", MA_I32, 1, {4}, {1}, 0},          {"long", MA_I64, 1, {4}, {1}, 0},
    {"param", MA_F32, 1, {3}, {1}, 0},        {"rows", MA_F32, 2, {2, 6}, {6, 1}, 6},
    {"scalar", MA_F32, 0, {0}, {0}, 28},      {"short", MA_I16, 1, {4}, {1}, 0},
    {"turned", MA_F32, 2, {6, 4}, {1, 6}, 0}, {"whole", MA_F32, 2, {4, 6}, {6, 1}, 0},
};

/* Element (i, j) of a 2-d tensor; i = 0 for vectors. */
static inline float value_at(const values *v, int64_t i, int64_t j) {
    int64_t at = v->start + (v->nd == 2 ? i * v->step[0] + j * v->step[1] : j * v->step[0]);
    bool real = v->type == MA_F32 || v->type == MA_F16 || v->type == MA_BF16 || v->type == MA_F64;
    if (v->type == MA_BOOL) return at != 1;
    return real ? (float)(at - 8) / 8 : (float)(at - 2);
}

/* Row-major; returns how many. out holds 24. */
static inline size_t value_fill(const values *v, float *out) {
    size_t k = 0;
    int64_t rows = v->nd == 2 ? v->n[0] : 1, columns = v->nd ? v->n[v->nd - 1] : 1;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) out[k++] = value_at(v, i, j);
    return k;
}

#endif
