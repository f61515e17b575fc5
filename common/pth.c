/* pth: PyTorch's checkpoints, the zip form and the older run of pickles: where the bytes of a tensor stand in the file.
 * What the pickles say is pickle.c's.
 *
 * Limits: zip records stored, not compressed (as torch writes them), CRCs not verified; tensors that repeat elements
 * (stride 0), sparse, quantised and complex ones refused. One level of dictionary is read.
 * Traps: in the old form data are not aligned, and stand in the order of a list of keys behind the pickle; one storage
 * can belong to many tensors, with offset and stride; a dimension of one element may have any stride. */
#include "weights_private.h"
#include "pickle.h"

#include <stdlib.h>
#include <string.h>

/* ---- storages ---- */

/* A named run of bytes: a zip's record, or a storage of the old form. */
typedef struct record {
    ma_text name;
    const unsigned char *data;
    size_t size;
    bool compressed;
} record;

typedef struct records {
    record *at; /* by name */
    size_t n;
} records;

static int record_order(const void *a, const void *b) {
    return ma_text_order(((const record *)a)->name, ((const record *)b)->name);
}

static const record *record_find(const records *r, ma_text name) {
    record key = {.name = name};
    return r->n ? bsearch(&key, r->at, r->n, sizeof key, record_order) : NULL;
}

static int sort_records(const char *path, records *r, ma_err *err) {
    if (r->n > 1) qsort(r->at, r->n, sizeof *r->at, record_order);
    for (size_t i = 1; i < r->n; i++)
        if (!ma_text_order(r->at[i - 1].name, r->at[i].name))
            return ma_fail(err, MA_DUPLICATE, "%s: the record %.*s is there twice", path, ma_text_shown(r->at[i].name),
                           r->at[i].name.s);
    return 0;
}

/* ---- from tensors to entries ---- */

/* Sizes and strides of t. A dimension of one element gets stride 0. */
static int read_sizes(const char *path, const ma_value *t, ma_entry *e, ma_err *err) {
    const ma_value *size = t->tensor.size, *stride = t->tensor.stride;
    if (size->list.n != stride->list.n)
        return ma_fail(err, MA_CORRUPT, "%s: %s: as many strides as sizes must be there", path, e->name);
    if (size->list.n > MA_MAX_DIMS)
        return ma_fail(err, MA_UNSUPPORTED, "%s: %s has more than %d dimensions", path, e->name, MA_MAX_DIMS);
    e->nd = (int)size->list.n;
    for (int d = 0; d < e->nd; d++) {
        const ma_value *n = size->list.at[d], *s = stride->list.at[d];
        if (n->kind != V_INT || s->kind != V_INT || n->integer < 0 || s->integer < 0)
            return ma_fail(err, MA_CORRUPT, "%s: %s: malformed sizes", path, e->name);
        e->n[d] = n->integer;
    }
    size_t bytes;
    if (ma_entry_dense(path, e, &bytes, err)) return -1; /* for its checks; the strides are the tensor's */
    for (int d = 0; d < e->nd; d++) e->stride[d] = e->n[d] == 1 ? 0 : stride->list.at[d]->integer;
    return 0;
}

/* The last element stands inside the storage, and there are no more elements than it has. */
static int check_bounds(const char *path, const ma_value *t, const ma_entry *e, ma_err *err) {
    size_t count = ma_entry_count(e), room = (size_t)t->tensor.storage->storage.count, last, span;
    bool inside = t->tensor.offset >= 0 && (size_t)t->tensor.offset <= room;
    last = inside ? (size_t)t->tensor.offset : 0;
    for (int d = 0; d < e->nd && inside && count; d++)
        inside = ma_mul((size_t)e->stride[d], (size_t)e->n[d] - 1, &span) && ma_sum(last, span, &last);
    if (!inside || (count && last >= room))
        return ma_fail(err, MA_CORRUPT, "%s: %s reaches out of its storage", path, e->name);
    if (count > room) return ma_fail(err, MA_UNSUPPORTED, "%s: %s repeats elements of its storage", path, e->name);
    return 0;
}

static int add_tensor(ma_weights *w, int file, ma_text name, const ma_value *t, const records *r, ma_err *err) {
    const char *path = w->files[file].path;
    const ma_value *storage = t->tensor.storage;
    ma_entry *e = ma_weights_add(w, file, name.s, name.n, err);
    if (!e) return -1;
    e->type = storage->type;
    if (read_sizes(path, t, e, err) || check_bounds(path, t, e, err)) return -1;
    const record *data = record_find(r, storage->storage.key);
    if (!data) return ma_fail(err, MA_MISSING, "%s: the data of %s are not there", path, e->name);
    if (data->compressed)
        return ma_fail(err, MA_UNSUPPORTED, "%s: the data of %s are compressed or encrypted", path, e->name);
    size_t bytes;
    if (!ma_mul((size_t)storage->storage.count, ma_type_size(e->type), &bytes) || bytes != data->size)
        return ma_fail(err, MA_CORRUPT, "%s: the data of %s are %zu bytes, not %lld elements", path, e->name,
                       data->size, (long long)storage->storage.count);
    e->data = data->data + (size_t)t->tensor.offset * ma_type_size(e->type);
    return 0;
}

/* The dictionary of tensors: the top one, or the one that stands in it under a customary name. */
static const ma_value *state_of(const ma_value *v) {
    static const char *const names[] = {"module", "model", "state_dict"};
    for (size_t i = 0; i < 3 && v->kind == V_DICT; i++) {
        const ma_value *inner = ma_value_find(v, names[i]);
        if (inner && inner->kind == V_DICT && inner->holds) return inner;
    }
    return v;
}

static int add_all(ma_weights *w, int file, const ma_value *result, const records *r, ma_err *err) {
    const char *path = w->files[file].path;
    const ma_value *d = state_of(result);
    int before = w->n;
    if (d->kind != V_DICT) return ma_fail(err, MA_UNSUPPORTED, "%s: not a dictionary of tensors", path);
    for (size_t i = 0; i < d->list.n; i += 2) {
        const ma_value *k = d->list.at[i], *v = d->list.at[i + 1];
        if (!v->holds || (v->kind != V_TENSOR && v->kind != V_OPAQUE)) continue; /* not a tensor, and no broken one */
        if (k->kind != V_TEXT) return ma_fail(err, MA_CORRUPT, "%s: a tensor without a name", path);
        if (v->kind == V_OPAQUE)
            return ma_fail(err, MA_UNSUPPORTED, "%s: %.*s was made by %.*s, which is not supported", path,
                           ma_text_shown(k->text), k->text.s, ma_text_shown(v->global.name),
                           v->global.name.s ? v->global.name.s : "");
        if (add_tensor(w, file, k->text, v, r, err)) return -1;
    }
    return w->n > before ? 0 : ma_fail(err, MA_UNSUPPORTED, "%s: no dictionary of tensors in it", path);
}

/* ---- the zip form ---- */

/* Where the central directory is. */
typedef struct directory {
    uint64_t count, size, offset;
} directory;

/* The end record, looked for from the end; its zip64 twin where a field is full. */
static int find_directory(const ma_mapped *f, directory *d, ma_err *err) {
    size_t back = 22;
    const unsigned char *p = NULL;
    for (; back <= f->size && back <= 22 + 0xffff; back++) {
        p = f->data + f->size - back;
        if (ma_little(p, 4) == 0x06054b50 && ma_little(p + 20, 2) == back - 22) break;
    }
    if (back > f->size || back > 22 + 0xffff)
        return ma_fail(err, MA_CUT, "%s: a zip file without its end: cut short", f->path);
    *d = (directory){ma_little(p + 10, 2), ma_little(p + 12, 4), ma_little(p + 16, 4)};
    uint64_t limit = f->size - back;
    if (d->count == 0xffff || d->size == 0xffffffff || d->offset == 0xffffffff) {
        if (limit < 20 + 56 || ma_little(p - 20, 4) != 0x07064b50)
            return ma_fail(err, MA_CORRUPT, "%s: zip64 without its end record", f->path);
        uint64_t at = ma_little(p - 12, 8);
        if (at > limit - 20 - 56 || ma_little(f->data + at, 4) != 0x06064b50)
            return ma_fail(err, MA_CORRUPT, "%s: zip64 without its end record", f->path);
        *d = (directory){ma_little(f->data + at + 32, 8), ma_little(f->data + at + 40, 8),
                         ma_little(f->data + at + 48, 8)};
        limit = at;
    }
    if (d->offset > limit || d->size > limit - d->offset || d->count > d->size / 46)
        return ma_fail(err, MA_CORRUPT, "%s: the zip directory reaches out of the file", f->path);
    return 0;
}

/* Fills in the 64-bit values of the extra field 1: those whose 32-bit field is full, in this order. */
static int read_zip64(const unsigned char *extra, size_t n, uint64_t *const full[3]) {
    while (n >= 4) {
        size_t id = (size_t)ma_little(extra, 2), size = (size_t)ma_little(extra + 2, 2);
        extra += 4;
        n -= 4;
        if (size > n) return -1;
        for (int i = 0; i < 3 && id == 1; i++)
            if (*full[i] == 0xffffffff) {
                if (size < 8) return -1;
                *full[i] = ma_little(extra, 8);
                extra += 8;
                n -= 8;
                size -= 8;
            }
        if (id == 1) return 0;
        extra += size;
        n -= size;
    }
    return -1;
}

/* The directory's entry at p, at most left bytes of it, as a record. Returns its length; 0: malformed. */
static size_t read_record(const ma_mapped *f, const directory *d, const unsigned char *p, size_t left, record *r) {
    if (left < 46 || ma_little(p, 4) != 0x02014b50) return 0;
    size_t name = (size_t)ma_little(p + 28, 2), extra = (size_t)ma_little(p + 30, 2),
           note = (size_t)ma_little(p + 32, 2);
    uint64_t packed = ma_little(p + 20, 4), size = ma_little(p + 24, 4), at = ma_little(p + 42, 4);
    if (left - 46 < name + extra + note) return 0;
    if ((packed == 0xffffffff || size == 0xffffffff || at == 0xffffffff) &&
        read_zip64(p + 46 + name, extra, (uint64_t *const[]){&size, &packed, &at}))
        return 0;
    if (d->offset < 30 || at > d->offset - 30 || ma_little(f->data + at, 4) != 0x04034b50) return 0;
    uint64_t head = 30 + ma_little(f->data + at + 26, 2) + ma_little(f->data + at + 28, 2), room = d->offset - at;
    if (head > room || packed > room - head) return 0;
    if (ma_little(f->data + at + 26, 2) != name || memcmp(f->data + at + 30, p + 46, name)) return 0;
    bool plain = ma_little(p + 10, 2) == 0 && !(ma_little(p + 8, 2) & 1);
    if (plain && packed != size) return 0;
    *r = (record){{(const char *)p + 46, name}, f->data + at + head, (size_t)size, !plain};
    return 46 + name + extra + note;
}

static int read_directory(const ma_mapped *f, records *r, ma_err *err) {
    directory d = {0};
    if (find_directory(f, &d, err)) return -1;
    if (!(r->at = ma_alloc((size_t)d.count + 1, sizeof *r->at)))
        return ma_fail(err, MA_MEMORY, "%s: out of memory", f->path);
    const unsigned char *p = f->data + d.offset, *end = p + d.size;
    for (; r->n < d.count; r->n++) {
        size_t n = read_record(f, &d, p, (size_t)(end - p), &r->at[r->n]);
        if (!n) return ma_fail(err, MA_CORRUPT, "%s: record %zu of the zip directory is malformed", f->path, r->n);
        p += n;
    }
    return sort_records(f->path, r, err);
}

/* The one record NAME/data.pkl; *prefix is then "NAME/". */
static const record *find_program(const ma_mapped *f, const records *r, ma_text *prefix, ma_err *err) {
    const record *found = NULL;
    for (size_t i = 0; i < r->n; i++) {
        ma_text t = r->at[i].name;
        const char *slash = memchr(t.s, '/', t.n);
        if (!slash || !ma_text_is((ma_text){slash, t.n - (size_t)(slash - t.s)}, "/data.pkl")) continue;
        if (found) {
            ma_fail(err, MA_CORRUPT, "%s: more than one data.pkl", f->path);
            return NULL;
        }
        found = &r->at[i];
        *prefix = (ma_text){t.s, (size_t)(slash + 1 - t.s)};
    }
    if (!found)
        ma_fail(err, MA_MISSING, "%s: a zip file without data.pkl", f->path);
    else if (found->compressed)
        ma_fail(err, MA_UNSUPPORTED, "%s: data.pkl is compressed or encrypted", f->path);
    return found && !found->compressed ? found : NULL;
}

/* What of the name stands behind prefix and rest; .s NULL: it does not begin so. */
static ma_text behind(ma_text name, ma_text prefix, const char *rest) {
    size_t n = strlen(rest);
    if (name.n < prefix.n + n || memcmp(name.s, prefix.s, prefix.n) || memcmp(name.s + prefix.n, rest, n))
        return (ma_text){0};
    return (ma_text){name.s + prefix.n + n, name.n - prefix.n - n};
}

/* Leaves the records NAME/data/KEY, called KEY, and refuses data of the other byte order. */
static int keep_storages(const ma_mapped *f, records *r, ma_text prefix, ma_err *err) {
    size_t n = 0;
    for (size_t i = 0; i < r->n; i++) {
        record x = r->at[i];
        ma_text order = behind(x.name, prefix, "byteorder"), key = behind(x.name, prefix, "data/");
        if (order.s && !order.n && !(x.size == 6 && !x.compressed && !memcmp(x.data, "little", 6)))
            return ma_fail(err, MA_UNSUPPORTED, "%s: not little-endian", f->path);
        if (!key.s) continue;
        x.name = key;
        r->at[n++] = x; /* still sorted: all had the same beginning */
    }
    r->n = n;
    return 0;
}

static int read_zip(ma_weights *w, int file, ma_err *err) {
    const ma_mapped *f = &w->files[file];
    records r = {0};
    ma_value *all = NULL;
    ma_text prefix = {0};
    int rc = read_directory(f, &r, err);
    const record *program = rc ? NULL : find_program(f, &r, &prefix, err);
    const unsigned char *at = program ? program->data : NULL, *end = program ? at + program->size : NULL;
    rc = program ? keep_storages(f, &r, prefix, err) : -1;
    const ma_value *result = rc ? NULL : ma_pickle_run(f->path, &at, end, &all, err);
    rc = result ? add_all(w, file, result, &r, err) : -1;
    ma_values_free(all);
    ma_release(r.at);
    return rc;
}

/* ---- the old form ---- */

static const unsigned char MAGIC[10] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};

static int storage_order(const void *a, const void *b) {
    return ma_text_order((*(ma_value *const *)a)->storage.key, (*(ma_value *const *)b)->storage.key);
}

/* The storages among all values, sorted by key; ma_release. */
static ma_value **storages_of(ma_value *all, size_t *n) {
    *n = 0;
    for (ma_value *v = all; v; v = v->next) *n += v->kind == V_STORAGE;
    ma_value **at = ma_alloc(*n + 1, sizeof *at);
    size_t i = 0;
    for (ma_value *v = all; v && at; v = v->next)
        if (v->kind == V_STORAGE) at[i++] = v;
    if (at) qsort(at, *n, sizeof *at, storage_order);
    return at;
}

/* Number i of the data behind the pickles: a 64-bit count of elements, and these. */
static int old_record(const ma_mapped *f, const ma_value *key, ma_value **known, size_t nknown,
                      const unsigned char **at, record *r, ma_err *err) {
    if (key->kind != V_TEXT) return ma_fail(err, MA_CORRUPT, "%s: malformed list of keys", f->path);
    ma_value want = {.storage.key = key->text}, *pointer = &want;
    ma_value **s = bsearch(&pointer, known, nknown, sizeof *known, storage_order);
    if (!s) return ma_fail(err, MA_CORRUPT, "%s: data that belong to no tensor", f->path);
    size_t left = (size_t)(f->data + f->size - *at), bytes;
    if (left < 8) return ma_fail(err, MA_CUT, "%s: ends before its last tensor", f->path);
    if (ma_little(*at, 8) != (uint64_t)(*s)->storage.count ||
        !ma_mul((size_t)(*s)->storage.count, ma_type_size((*s)->type), &bytes))
        return ma_fail(err, MA_CORRUPT, "%s: storage %.*s has another size than said", f->path,
                       ma_text_shown(key->text), key->text.s);
    if (bytes > left - 8)
        return ma_fail(err, MA_CUT, "%s: ends inside storage %.*s", f->path, ma_text_shown(key->text), key->text.s);
    *r = (record){key->text, *at + 8, bytes, false};
    *at += 8 + bytes;
    return 0;
}

static int old_records(const ma_mapped *f, ma_value *all, const ma_value *keys, const unsigned char *at, records *r,
                       ma_err *err) {
    if (keys->kind != V_LIST) return ma_fail(err, MA_CORRUPT, "%s: no list of keys", f->path);
    size_t nknown;
    ma_value **known = storages_of(all, &nknown);
    r->at = ma_alloc(keys->list.n + 1, sizeof *r->at);
    int rc = known && r->at ? 0 : ma_fail(err, MA_MEMORY, "%s: out of memory", f->path);
    for (; r->n < keys->list.n && !rc; r->n++)
        rc = old_record(f, keys->list.at[r->n], known, nknown, &at, &r->at[r->n], err);
    if (!rc && at != f->data + f->size)
        rc =
            ma_fail(err, MA_CORRUPT, "%s: %zu bytes behind the last tensor", f->path, (size_t)(f->data + f->size - at));
    ma_release(known);
    return rc ? -1 : sort_records(f->path, r, err);
}

/* The run of pickles: a magic number, a version, the machine that wrote it, the object, the keys of its storages. */
static int read_old(ma_weights *w, int file, ma_err *err) {
    enum { NUMBER, VERSION, SYSTEM, OBJECT, KEYS, PICKLES };
    const ma_mapped *f = &w->files[file];
    const unsigned char *at = f->data, *end = at + f->size;
    ma_value *all[PICKLES] = {0};
    const ma_value *v[PICKLES];
    records r = {0};
    int rc = 0;
    for (int i = 0; i < PICKLES && !rc; i++) rc = (v[i] = ma_pickle_run(f->path, &at, end, &all[i], err)) ? 0 : -1;
    const ma_value *little_endian = !rc && v[SYSTEM]->kind == V_DICT ? ma_value_find(v[SYSTEM], "little_endian") : NULL;
    if (!rc && (v[VERSION]->kind != V_INT || v[VERSION]->integer != 1001 || !little_endian ||
                little_endian->kind != V_INT || little_endian->integer != 1))
        rc = ma_fail(err, MA_UNSUPPORTED, "%s: not version 1001, or not little-endian", f->path);
    if (!rc) rc = old_records(f, all[OBJECT], v[KEYS], at, &r, err);
    if (!rc) rc = add_all(w, file, v[OBJECT], &r, err);
    for (int i = 0; i < PICKLES; i++) ma_values_free(all[i]);
    ma_release(r.at);
    return rc;
}

static bool is_zip(const unsigned char *data, size_t size) {
    return size >= 4 && ma_little(data, 4) == 0x04034b50;
}

bool ma_pth_is(const unsigned char *data, size_t size) {
    return is_zip(data, size) || (size && data[0] == 0x80 && memmem(data, size < 32 ? size : 32, MAGIC, sizeof MAGIC));
}

int ma_pth_read(ma_weights *w, int file, ma_err *err) {
    bool zip = is_zip(w->files[file].data, w->files[file].size);
    return zip ? read_zip(w, file, err) : read_old(w, file, err);
}
