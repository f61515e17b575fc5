/* npy: NumPy's .npy. The header is a Python dictionary literal; only the three keys and the forms of value that NumPy
 * writes are taken, everything else is refused by name. Written: version 1.0. Read: 1.0, 2.0, 3.0.
 * Limits: little-endian, C order (Fortran order where it makes no difference: one dimension or none), up to 8
 * dimensions, no objects (they would be pickles), no structures, no complex numbers, no strings.
 * Trap: the length of the data must be exactly what the shape says; too many bytes are as wrong as too few. */
#include "npy.h"
#include <stdlib.h>
#include <string.h>

static const char magic[6] = {'\x93', 'N', 'U', 'M', 'P', 'Y'};

static const struct dtype {
    char text[4];
    ma_type type;
} dtypes[] = {
    /* the first of each type is the one that is written */
    {"<f2", MA_F16}, {"<f4", MA_F32}, {"<f8", MA_F64},  {"|i1", MA_I8},  {"<i2", MA_I16},
    {"<i4", MA_I32}, {"<i8", MA_I64}, {"|u1", MA_U8},   {"<u2", MA_U16}, {"|b1", MA_BOOL},
    {"<i1", MA_I8},  {"<u1", MA_U8},  {"<b1", MA_BOOL},
};
enum { NDTYPES = sizeof dtypes / sizeof *dtypes };

/* The header's text while it is read. */
typedef struct cursor {
    const char *at, *end;
} cursor;

static void space(cursor *c) {
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\t')) c->at++;
}

static bool eat(cursor *c, char want) {
    space(c);
    if (c->at == c->end || *c->at != want) return false;
    c->at++;
    return true;
}

/* 'text' or "text" without escapes, into out, which holds room bytes. */
static bool string(cursor *c, char *out, size_t room) {
    space(c);
    if (c->at == c->end || (*c->at != '\'' && *c->at != '"')) return false;
    const char *from = c->at + 1, *to = memchr(from, *c->at, (size_t)(c->end - from));
    if (!to || (size_t)(to - from) >= room || memchr(from, '\\', (size_t)(to - from)) ||
        memchr(from, 0, (size_t)(to - from)))
        return false;
    memcpy(out, from, (size_t)(to - from));
    out[to - from] = 0;
    c->at = to + 1;
    return true;
}

static bool word(cursor *c, const char *want) {
    space(c);
    size_t n = strlen(want);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, want, n)) return false;
    c->at += n;
    return true;
}

/* Decimal, not negative, no leading zeros to hide behind, at most 18 digits. */
static bool number(cursor *c, int64_t *out) {
    space(c);
    const char *from = c->at;
    int64_t v = 0;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9' && c->at - from < 18) v = 10 * v + (*c->at++ - '0');
    *out = v;
    return c->at > from && !(*from == '0' && c->at - from > 1) && (c->at == c->end || *c->at < '0' || *c->at > '9');
}

/* (), (3,), (3, 4), (3, 4,) */
static int shape(cursor *c, ma_array *a, const char *name, ma_err *e) {
    if (!eat(c, '(')) return ma_fail(e, MA_CORRUPT, "%s: npy header: the shape is not a tuple", name);
    bool comma = true;
    for (a->nd = 0; !eat(c, ')'); a->nd++) {
        if (a->nd == MA_MAX_DIMS) return ma_fail(e, MA_UNSUPPORTED, "%s: more than %d dimensions", name, MA_MAX_DIMS);
        if (!comma || !number(c, &a->n[a->nd])) return ma_fail(e, MA_CORRUPT, "%s: npy header: bad shape", name);
        comma = eat(c, ',');
    }
    /* (3) is a number in Python, not a tuple */
    if (a->nd == 1 && !comma) return ma_fail(e, MA_CORRUPT, "%s: npy header: the shape is not a tuple", name);
    return 0;
}

static int descr(cursor *c, ma_array *a, const char *name, ma_err *e) {
    char text[32];
    space(c);
    if (c->at < c->end && *c->at == '[') return ma_fail(e, MA_UNSUPPORTED, "%s: a structured type", name);
    if (!string(c, text, sizeof text)) return ma_fail(e, MA_CORRUPT, "%s: npy header: bad descr", name);
    for (int i = 0; i < NDTYPES; i++)
        if (!strcmp(text, dtypes[i].text)) {
            a->type = dtypes[i].type;
            return 0;
        }
    if (strchr(text, 'O')) return ma_fail(e, MA_UNSUPPORTED, "%s: holds Python objects, which are not read", name);
    if (*text == '>') return ma_fail(e, MA_UNSUPPORTED, "%s: big-endian ('%s')", name, text);
    return ma_fail(e, MA_UNSUPPORTED, "%s: type '%s'", name, text);
}

/* One key and its value. have: a bit for each key that has been. */
static int pair(cursor *c, ma_array *a, bool *fortran, unsigned *have, const char *name, ma_err *e) {
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    char key[32];
    unsigned k = 0;
    if (!string(c, key, sizeof key) || !eat(c, ':')) return ma_fail(e, MA_CORRUPT, "%s: npy header: bad key", name);
    while (k < 3 && strcmp(key, keys[k])) k++;
    if (k == 3) return ma_fail(e, MA_CORRUPT, "%s: npy header: unknown key '%s'", name, key);
    if (*have & 1u << k) return ma_fail(e, MA_CORRUPT, "%s: npy header: '%s' stands twice", name, key);
    *have |= 1u << k;
    if (k == 0) return descr(c, a, name, e);
    if (k == 2) return shape(c, a, name, e);
    *fortran = word(c, "True");
    if (!*fortran && !word(c, "False")) return ma_fail(e, MA_CORRUPT, "%s: npy header: bad fortran_order", name);
    return 0;
}

/* {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } and blanks. */
static int header(cursor c, ma_array *a, const char *name, ma_err *e) {
    bool fortran = false, comma = true;
    unsigned have = 0;
    if (!eat(&c, '{')) return ma_fail(e, MA_CORRUPT, "%s: npy header is not a dictionary", name);
    while (!eat(&c, '}')) {
        if (!comma) return ma_fail(e, MA_CORRUPT, "%s: npy header: a comma is missing", name);
        if (pair(&c, a, &fortran, &have, name, e)) return -1;
        comma = eat(&c, ',');
    }
    space(&c);
    if (c.at != c.end) return ma_fail(e, MA_CORRUPT, "%s: npy header: text after the dictionary", name);
    if (have != 7) return ma_fail(e, MA_CORRUPT, "%s: npy header lacks descr, fortran_order or shape", name);
    if (fortran && a->nd > 1) return ma_fail(e, MA_UNSUPPORTED, "%s: Fortran order", name);
    return 0;
}

/* The bytes that the shape asks for; false if no memory could hold them. */
static bool bytes_of(const ma_array *a, size_t *out) {
    size_t n = ma_type_size(a->type);
    bool empty = false;
    for (int i = 0; i < a->nd; i++) {
        empty |= a->n[i] == 0;
        if (a->n[i] && !ma_mul(n, (size_t)a->n[i], &n)) return false; /* 0 must not hide an overflow */
    }
    *out = empty ? 0 : n;
    return n <= PTRDIFF_MAX;
}

int ma_npy_view(const void *bytes, size_t size, ma_array *out, const char *name, ma_err *e) {
    const unsigned char *b = bytes;
    *out = (ma_array){0};
    if (size < sizeof magic || memcmp(b, magic, sizeof magic)) return ma_fail(e, MA_CORRUPT, "%s: not npy", name);
    if (size < 12) return ma_fail(e, MA_CUT, "%s: ends inside its npy header", name);
    if (b[6] < 1 || b[6] > 3 || b[7]) return ma_fail(e, MA_UNSUPPORTED, "%s: npy version %d.%d", name, b[6], b[7]);
    size_t start = b[6] == 1 ? 10 : 12, length = (size_t)ma_little(b + 8, b[6] == 1 ? 2 : 4), want;
    if (length > size - start) return ma_fail(e, MA_CUT, "%s: ends inside its npy header", name);
    const char *text = (const char *)b + start;
    ma_array a = {0};
    if (header((cursor){text, text + length}, &a, name, e)) return -1;
    size_t have = size - start - length;
    if (!bytes_of(&a, &want)) return ma_fail(e, MA_SHAPE, "%s: the shape is larger than any memory", name);
    if (have < want) return ma_fail(e, MA_CUT, "%s: %zu bytes of data, the shape asks for %zu", name, have, want);
    if (have > want) return ma_fail(e, MA_CORRUPT, "%s: %zu bytes after the data", name, have - want);
    a.data = (void *)(uintptr_t)(text + length); /* the caller knows whether these bytes may be written */
    *out = a;
    return 0;
}

int ma_npy_read(const void *bytes, size_t size, ma_array *out, const char *name, ma_err *e) {
    ma_array view;
    *out = (ma_array){0};
    if (ma_npy_view(bytes, size, &view, name, e)) return -1;
    if (ma_array_new(out, view.type, view.nd, view.n, e)) return -1;
    size_t n = ma_array_bytes(out);
    if (n) memcpy(out->data, view.data, n);
    return 0;
}

/* Appends all that stands before the values; -1: nothing was appended. */
static int write_head(const ma_array *a, ma_buf *out, ma_err *e) {
    const struct dtype *d = dtypes;
    while (d < dtypes + NDTYPES && d->type != a->type) d++;
    if (d == dtypes + NDTYPES) return ma_fail(e, MA_UNSUPPORTED, "npy has no type for %s", ma_type_name(a->type));
    size_t begin = out->size;
    int bad = ma_buf_add(out, magic, sizeof magic) | ma_buf_add(out, "\1\0\0\0", 4);
    bad |= ma_buf_printf(out, "{'descr': '%s', 'fortran_order': False, 'shape': (", d->text);
    for (int i = 0; i < a->nd && !bad; i++)
        bad |= ma_buf_printf(out, i ? ", %lld" : a->nd > 1 ? "%lld" : "%lld,", (long long)a->n[i]);
    bad |= ma_buf_printf(out, "), }");
    size_t pad = 64 - (out->size - begin) % 64; /* 1..64, the newline included */
    bad |= ma_buf_printf(out, "%*s", (int)pad, "\n");
    if (bad) {
        out->size = begin;
        return ma_fail(e, MA_MEMORY, "out of memory");
    }
    size_t length = out->size - begin - 10;
    out->data[begin + 8] = (char)(length & 255);
    out->data[begin + 9] = (char)(length >> 8);
    return 0;
}

int ma_npy_write(const ma_array *a, ma_buf *out, ma_err *e) {
    size_t begin = out->size;
    if (write_head(a, out, e)) return -1;
    if (!ma_array_bytes(a) || !ma_buf_add(out, a->data, ma_array_bytes(a))) return 0;
    out->size = begin;
    return ma_fail(e, MA_MEMORY, "out of memory");
}

int ma_npy_begin(ma_array *a, ma_buf *out, ma_err *e) {
    size_t n, size;
    *out = (ma_buf){0};
    if (write_head(a, out, e)) return -1;
    char *data = bytes_of(a, &n) && ma_sum(out->size, n, &size) ? realloc(out->data, size) : NULL;
    if (!data) {
        ma_buf_free(out);
        return ma_fail(e, MA_MEMORY, "out of memory");
    }
    a->data = data + out->size;
    *out = (ma_buf){data, size, size};
    return 0;
}
