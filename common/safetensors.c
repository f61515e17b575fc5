/* safetensors: read and write. The format: a 64-bit little-endian length, that many bytes of JSON, then the data.
 *
 * Reading refuses what the reference implementation refuses: a header of more than 100 MB or that does not begin with
 * '{', metadata that are not strings, a name twice, sizes that contradict the offsets, holes and overlaps.
 * Limits: types up to 64 bits without complex and 8-bit floats; MA_MAX_DIMS dimensions.
 * Traps: an empty tensor has two equal offsets, which may be those of a neighbour; a rank-0 tensor has an empty shape;
 * cJSON keeps numbers as doubles, so offsets above 2^53 are refused rather than rounded. */
#include "weights_private.h"
#include "file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const TYPES[MA_TYPES] = {
    [MA_F32] = "F32", [MA_F16] = "F16", [MA_BF16] = "BF16", [MA_F64] = "F64", [MA_I64] = "I64",  [MA_I32] = "I32",
    [MA_I16] = "I16", [MA_I8] = "I8",   [MA_U8] = "U8",     [MA_U16] = "U16", [MA_BOOL] = "BOOL"};

/* ---- reading ---- */

/* A whole number from 0 to 2^53. */
static bool whole(const cJSON *j, int64_t *out) {
    if (!cJSON_IsNumber(j) || !(j->valuedouble >= 0 && j->valuedouble <= 0x1p53) ||
        j->valuedouble != floor(j->valuedouble))
        return false;
    *out = (int64_t)j->valuedouble;
    return true;
}

static int read_meta(ma_weights *w, const char *path, const cJSON *j, ma_err *err) {
    if (!cJSON_IsObject(j)) return ma_fail(err, MA_CORRUPT, "%s: __metadata__ is not an object", path);
    for (const cJSON *m = j->child; m; m = m->next) {
        if (!cJSON_IsString(m))
            return ma_fail(err, MA_CORRUPT, "%s: __metadata__: %s is not a string", path, m->string);
        char **meta = realloc(w->meta, ((size_t)w->nmeta + 2) * sizeof *meta);
        if (!meta) return ma_fail(err, MA_MEMORY, "%s: out of memory", path);
        w->meta = meta;
        meta[w->nmeta++] = ma_strdup(m->string);
        meta[w->nmeta++] = ma_strdup(m->valuestring);
        if (!meta[w->nmeta - 2] || !meta[w->nmeta - 1]) return ma_fail(err, MA_MEMORY, "%s: out of memory", path);
    }
    return 0;
}

static int read_type(const char *path, const cJSON *j, ma_entry *e, ma_err *err) {
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(j, "dtype");
    if (!cJSON_IsString(dtype)) return ma_fail(err, MA_CORRUPT, "%s: %s has no dtype", path, e->name);
    for (int t = 0; t < MA_TYPES; t++)
        if (!strcmp(dtype->valuestring, TYPES[t])) {
            e->type = (ma_type)t;
            return 0;
        }
    return ma_fail(err, MA_UNSUPPORTED, "%s: %s is of type \"%.20s\", which is not supported", path, e->name,
                   dtype->valuestring);
}

static int read_shape(const char *path, const cJSON *j, ma_entry *e, ma_err *err) {
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(j, "shape");
    if (!cJSON_IsArray(shape)) return ma_fail(err, MA_CORRUPT, "%s: %s has no shape", path, e->name);
    for (const cJSON *d = shape->child; d; d = d->next) {
        if (e->nd == MA_MAX_DIMS)
            return ma_fail(err, MA_UNSUPPORTED, "%s: %s has more than %d dimensions", path, e->name, MA_MAX_DIMS);
        if (!whole(d, &e->n[e->nd++])) return ma_fail(err, MA_CORRUPT, "%s: %s: malformed shape", path, e->name);
    }
    return 0;
}

/* One "name": {"dtype": …, "shape": […], "data_offsets": [begin, end]}; data: what the offsets count from. */
static int read_entry(ma_weights *w, int file, const cJSON *j, const unsigned char *data, size_t size, ma_err *err) {
    const char *path = w->files[file].path;
    ma_entry *e = ma_weights_add(w, file, j->string, strlen(j->string), err);
    if (!e) return -1;
    if (!cJSON_IsObject(j) || cJSON_GetArraySize(j) != 3)
        return ma_fail(err, MA_CORRUPT, "%s: %s: not dtype, shape and data_offsets", path, e->name);
    size_t bytes;
    if (read_type(path, j, e, err) || read_shape(path, j, e, err) || ma_entry_dense(path, e, &bytes, err)) return -1;
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(j, "data_offsets");
    int64_t begin, end;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 || !whole(offsets->child, &begin) ||
        !whole(offsets->child->next, &end) || begin > end)
        return ma_fail(err, MA_CORRUPT, "%s: %s: malformed data_offsets", path, e->name);
    if ((uint64_t)end > size) return ma_fail(err, MA_CUT, "%s: %s ends behind the end of the file", path, e->name);
    if ((uint64_t)(end - begin) != bytes)
        return ma_fail(err, MA_CORRUPT, "%s: %s takes %zu bytes, its data_offsets say %lld", path, e->name, bytes,
                       (long long)(end - begin));
    e->data = data + begin;
    return 0;
}

typedef struct span {
    const unsigned char *from, *to;
    const char *name;
} span;

static int by_place(const void *a, const void *b) {
    const span *x = a, *y = b;
    if (x->from != y->from) return x->from < y->from ? -1 : 1;
    return (x->to > y->to) - (x->to < y->to); /* the empty ones first */
}

/* The file's entries (items first, …, n-1) cover the data from the first byte to the last, each byte once. */
static int check_cover(const ma_weights *w, const char *path, int first, const unsigned char *data, size_t size,
                       ma_err *err) {
    size_t n = (size_t)(w->n - first);
    span *s = ma_alloc(n + 1, sizeof *s);
    if (!s) return ma_fail(err, MA_MEMORY, "%s: out of memory", path);
    for (size_t i = 0; i < n; i++) {
        const ma_entry *e = &w->items[(size_t)first + i].e;
        const unsigned char *from = e->data;
        s[i] = (span){from, from + ma_entry_count(e) * ma_type_size(e->type), e->name};
    }
    qsort(s, n, sizeof *s, by_place);
    s[n] = (span){data + size, data + size, "the end of the file"};
    const unsigned char *at = data;
    int rc = 0;
    for (size_t i = 0; i <= n && !rc; at = s[i++].to)
        if (s[i].from != at)
            rc =
                ma_fail(err, MA_CORRUPT, "%s: %s before %s", path, s[i].from < at ? "an overlap" : "a hole", s[i].name);
    ma_release(s);
    return rc;
}

int ma_safetensors_read(ma_weights *w, int file, ma_err *err) {
    const ma_mapped *m = &w->files[file];
    uint64_t length = m->size >= 8 ? ma_little(m->data, 8) : 0;
    if (m->size >= 9 && m->data[8] != '{')
        return ma_fail(err, MA_CORRUPT, "%s: neither safetensors nor a PyTorch file", m->path);
    if (length > MA_JSON_MOST) return ma_fail(err, MA_CORRUPT, "%s: a header of more than 100 MB", m->path);
    if (m->size < 10 || length > m->size - 8) return ma_fail(err, MA_CUT, "%s: ends inside its header", m->path);
    cJSON *header = ma_weights_json(m->path, (const char *)m->data + 8, (size_t)length, err);
    if (!header) return -1;
    const unsigned char *data = m->data + 8 + length;
    size_t size = m->size - 8 - (size_t)length;
    int rc = 0, first = w->n;
    for (const cJSON *j = header->child; j && !rc; j = j->next)
        if (strcmp(j->string, "__metadata__"))
            rc = read_entry(w, file, j, data, size, err);
        else
            rc = read_meta(w, m->path, j, err);
    cJSON_Delete(header);
    return rc ? -1 : check_cover(w, m->path, first, data, size, err);
}

/* ---- writing ---- */

typedef struct place {
    const ma_named *t;
    int index; /* in the caller's list */
} place;

static int by_name(const void *a, const void *b) {
    return strcmp(((const place *)a)->t->name, ((const place *)b)->t->name);
}

/* Wide types first, so that every array is aligned; then by name. */
static int by_alignment(const void *a, const void *b) {
    const ma_named *x = ((const place *)a)->t, *y = ((const place *)b)->t;
    size_t sx = ma_type_size(x->a.type), sy = ma_type_size(y->a.type);
    return sx != sy ? (sx < sy ? 1 : -1) : by_name(a, b);
}

/* "[1,2,3]" under name in j. */
static bool add_numbers(cJSON *j, const char *name, const int64_t *n, int count) {
    ma_buf text = {0};
    bool good = !ma_buf_add(&text, "[", 1);
    for (int i = 0; i < count && good; i++) good = !ma_buf_printf(&text, i ? ",%lld" : "%lld", (long long)n[i]);
    good = good && !ma_buf_add(&text, "]", 2) && cJSON_AddRawToObject(j, name, text.data);
    ma_buf_free(&text);
    return good;
}

static bool add_entry(cJSON *header, const ma_named *t, int64_t *offset) {
    int64_t ends[2] = {*offset, *offset + (int64_t)ma_array_bytes(&t->a)};
    *offset = ends[1];
    cJSON *j = cJSON_AddObjectToObject(header, t->name);
    return j && cJSON_AddStringToObject(j, "dtype", TYPES[t->a.type]) && add_numbers(j, "shape", t->a.n, t->a.nd) &&
           add_numbers(j, "data_offsets", ends, 2);
}

/* The JSON text for the arrays in this order, freed with cJSON_free. NULL: out of memory. */
static char *header_text(const place *order, int n, const char *const *meta) {
    cJSON *header = cJSON_CreateObject(), *m = cJSON_AddObjectToObject(header, "__metadata__");
    bool good = m && cJSON_AddStringToObject(m, "format", "pt");
    for (; good && meta && meta[0]; meta += 2) good = cJSON_AddStringToObject(m, meta[0], meta[1]) != NULL;
    int64_t offset = 0;
    for (int i = 0; i < n && good; i++) good = add_entry(header, order[i].t, &offset);
    char *text = good ? cJSON_PrintUnformatted(header) : NULL;
    cJSON_Delete(header);
    return text;
}

/* Length, header and the spaces that align what follows. */
static int write_header(int fd, const char *text, ma_err *err) {
    size_t n = strlen(text), padded = (n + 7) / 8 * 8;
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    if (ma_write_all(fd, length, 8, err) || ma_write_all(fd, text, n, err)) return -1;
    return ma_write_all(fd, "       ", padded - n, err);
}

static int write_arrays(int fd, const place *order, int n, ma_fill fill, void *user, ma_err *err) {
    for (int i = 0; i < n; i++) {
        const void *data = fill(user, order[i].index, err);
        if (!data || ma_write_all(fd, data, ma_array_bytes(&order[i].t->a), err)) return -1;
    }
    return 0;
}

/* The arrays in the order in which they are written. NULL: a name twice, or out of memory. */
static place *order_of(const char *path, const ma_named *list, int n, ma_err *err) {
    place *order = ma_alloc((size_t)n + 1, sizeof *order);
    if (!order) {
        ma_fail(err, MA_MEMORY, "%s: out of memory", path);
        return NULL;
    }
    for (int i = 0; i < n; i++) order[i] = (place){&list[i], i};
    qsort(order, (size_t)n, sizeof *order, by_name);
    for (int i = 1; i < n; i++)
        if (!strcmp(order[i - 1].t->name, order[i].t->name)) {
            ma_fail(err, MA_DUPLICATE, "%s: %s is there twice", path, order[i].t->name);
            ma_release(order);
            return NULL;
        }
    qsort(order, (size_t)n, sizeof *order, by_alignment);
    return order;
}

int ma_safetensors_write(const char *path, const ma_named *list, int n, const char *const *meta, ma_fill fill,
                         void *user, ma_err *err) {
    place *order = order_of(path, list, n, err);
    if (!order) return -1;
    char *text = header_text(order, n, meta);
    ma_outfile *o = text ? ma_outfile_open(path, err) : NULL;
    int rc = o ? 0 : ma_fail(err, MA_MEMORY, "%s: out of memory", path);
    if (!rc) rc = write_header(ma_outfile_fd(o), text, err);
    if (!rc) rc = write_arrays(ma_outfile_fd(o), order, n, fill, user, err);
    if (rc)
        ma_outfile_abort(o);
    else
        rc = ma_outfile_commit(o, err);
    cJSON_free(text);
    ma_release(order);
    return rc;
}

static const void *at_hand(void *user, int i, ma_err *err) {
    (void)err;
    const ma_named *list = user;
    return list[i].a.data ? list[i].a.data : ""; /* an empty array need not have any */
}

int ma_weights_save(const char *path, const ma_named *list, int n, const char *const *meta, ma_err *err) {
    return ma_safetensors_write(path, list, n, meta, at_hand, (void *)list, err);
}
