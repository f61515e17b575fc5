/* param: parameters by their published names.
 *
 * Limits: a set belongs to one context; a tensor is read, drawn and saved one at a time through host fp32, so the host
 * needs room for the largest one twice.
 * Traps: convolutions stand channels-last here and channels-second in files; a random value depends on seed, name and
 * place alone, so the order of declaration does not matter; in a plan nothing is read or drawn, but names and shapes
 * are checked all the same. Saving shards replaces several files one by one: write into a new folder where a half-done
 * set would hurt. */
#include "param.h"

#include <errno.h>
#include <fnmatch.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "file.h"
#include "rng.h"
#include "weights_private.h"

/* ---- layouts ---- */

/* Only what has kernel dimensions has a layout. */
static bool is_plain(ma_layout layout, int nd) {
    return layout == MA_PLAIN || nd < 3;
}

/* (rows, a, b) → (rows, b, a) */
static void transpose(float *out, const float *in, int64_t rows, int64_t a, int64_t b) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < a; i++)
            for (int64_t j = 0; j < b; j++) out[(r * b + j) * a + i] = in[(r * a + i) * b + j];
}

static int64_t product(const int64_t *n, int from, int to) {
    int64_t p = 1;
    for (int d = from; d < to; d++) p *= n[d];
    return p;
}

void ma_layout_to_file(float *out, const float *in, ma_layout layout, int nd, const int64_t *n) {
    if (is_plain(layout, nd))
        memcpy(out, in, (size_t)product(n, 0, nd) * sizeof *out);
    else
        transpose(out, in, n[0], product(n, 1, nd - 1), n[nd - 1]);
}

void ma_layout_from_file(float *out, const float *in, ma_layout layout, int nd, const int64_t *n) {
    if (is_plain(layout, nd))
        memcpy(out, in, (size_t)product(n, 0, nd) * sizeof *out);
    else
        transpose(out, in, n[0], n[nd - 1], product(n, 1, nd - 1));
}

/* Our shape as the file has it, with `kernel` kernel dimensions; those before them are 1. Returns the dimensions, or -1
 * where ours cannot be written so. */
static int file_shape(int kernel, int nd, const int64_t *n, int64_t *out) {
    int ours = nd - 2, skip = ours - kernel;
    if (ours < kernel || product(n, 1, 1 + skip) != 1) return -1;
    out[0] = n[0];
    out[1] = n[nd - 1];
    for (int d = 0; d < kernel; d++) out[2 + d] = n[1 + skip + d];
    return 2 + kernel;
}

/* Our shape in the layout that we save. -1: it does not fit. */
static int saved_shape(ma_layout layout, int nd, const int64_t *n, int64_t *out) {
    static const int kernel[] = {[MA_CONV1D] = 1, [MA_CONV2D] = 2, [MA_CONV3D] = 3};
    if (!is_plain(layout, nd)) return file_shape(kernel[layout], nd, n, out);
    memcpy(out, n, (size_t)nd * sizeof *n);
    return nd;
}

static bool same_shape(const ma_entry *e, int nd, const int64_t *n) {
    return e->nd == nd && !memcmp(e->n, n, (size_t)nd * sizeof *n);
}

/* Whether e may be read as our shape: in the layout, or with leading kernel dimensions of 1 left out. */
static bool fits(const ma_entry *e, ma_layout layout, int nd, const int64_t *n) {
    int64_t want[MA_DIMS];
    if (is_plain(layout, nd)) return same_shape(e, nd, n);
    return e->nd >= 2 && e->nd <= nd && file_shape(e->nd - 2, nd, n, want) > 0 && same_shape(e, e->nd, want);
}

/* ---- sets ---- */

static int set_error(ma_params *p, ma_reason reason, const char *text) {
    return ma_fail(ma_ctx_err(p->ctx), reason, "%s", text);
}

static int no_memory(ma_params *p) {
    return set_error(p, MA_MEMORY, "parameters: out of memory");
}

static bool planned(const ma_params *p) {
    return ma_ctx_device(p->ctx)->plan;
}

ma_params *ma_params_new(ma_ctx *ctx, const ma_weights *from, bool train, uint64_t seed) {
    ma_params *p = calloc(1, sizeof *p);
    if (p) *p = (ma_params){.ctx = ctx, .from = from, .train = train, .seed = seed, .fan = 1};
    if (p && from) p->used = ma_alloc((size_t)ma_weights_count(from) + 1, sizeof *p->used);
    if (p && (!from || p->used)) return p;
    ma_fail(ma_ctx_err(ctx), MA_MEMORY, "parameters: out of memory");
    free(p);
    return NULL;
}

void ma_params_free(ma_params *p) {
    if (!p) return;
    for (int i = 0; i < p->n; i++) free(p->at[i].name);
    free(p->at);
    ma_release(p->used);
    free(p);
}

int64_t ma_params_count(const ma_params *p) {
    int64_t count = 0;
    for (int i = 0; i < p->n; i++) count += ma_count(p->at[i].t);
    return count;
}

/* ---- looking up and reading ---- */

/* The file's array prefix+name, marked as used; NULL: not there, or out of memory. */
static const ma_entry *look_up(ma_params *p, const char *name) {
    char *full = ma_format("%s%s", p->prefix ? p->prefix : "", name);
    int i = full && p->from ? ma_weights_index(p->from, full) : -1;
    if (!full) no_memory(p);
    free(full);
    if (i < 0) return NULL;
    p->used[i] = true;
    return ma_weights_at(p->from, i);
}

static void missing(ma_params *p, const char *name) {
    ma_fail(ma_ctx_err(p->ctx), MA_MISSING, "%s: %s%s is missing", p->from ? ma_weights_path(p->from) : "weights",
            p->prefix ? p->prefix : "", name);
}

/* e's values in our layout, ma_release. NULL: out of memory, or not finite. */
static float *values_of(const ma_entry *e, const char *path, ma_layout layout, int nd, const int64_t *n, ma_err *err) {
    size_t count = (size_t)product(n, 0, nd);
    float *in = ma_alloc(count, sizeof *in), *out = is_plain(layout, nd) ? in : ma_alloc(count, sizeof *out);
    ma_err why = {0};
    if (!in || !out)
        ma_fail(err, MA_MEMORY, "%s: out of memory", path);
    else if (ma_entry_read(e, in, &why))
        ma_fail(err, why.reason, "%s: %s", path, why.text);
    else if (in != out)
        ma_layout_from_file(out, in, layout, nd, n);
    bool good = in && out && !why.reason;
    if (in != out) ma_release(in);
    if (good) return out;
    ma_release(out);
    return NULL;
}

/* Reads e of the file at path into t, after a check of its shape. */
static int read_into(ma_params *p, ma_tensor *t, ma_layout layout, const ma_entry *e, const char *path, ma_err *err) {
    if (!fits(e, layout, t->nd, t->n)) {
        char is[160], must[160];
        int64_t n[MA_DIMS];
        int nd = saved_shape(layout, t->nd, t->n, n);
        return ma_fail(err, MA_SHAPE, "%s: %s is %s, must be %s", path, e->name, ma_shape_text(is, e->nd, e->n),
                       nd < 0 ? ma_shape_text(must, t->nd, t->n) : ma_shape_text(must, nd, n));
    }
    if (planned(p)) return 0;
    float *v = values_of(e, path, layout, t->nd, t->n, err);
    int rc = v ? ma_put(p->ctx, t, v) : -1;
    ma_release(v);
    if (rc) ma_ctx_failed(p->ctx, err);
    return rc;
}

/* ---- drawing ---- */

static void scale(float *v, int64_t count, double mul, double add) {
    for (int64_t i = 0; i < count; i++) v[i] = (float)(v[i] * mul + add);
}

/* The values of a new parameter, our layout (fan in: all but the first dimension; the kernel counts for both ends). */
static void draw(const ma_params *p, float *v, ma_init init, int nd, const int64_t *n, const char *name) {
    int64_t count = product(n, 0, nd), in = nd > 1 ? product(n, 1, nd) : p->fan;
    int64_t out = nd > 1 ? product(n, 0, nd - 1) : 1;
    double bound = init == MA_INIT_XAVIER ? sqrt(6.0 / (double)(in + out)) : 1 / sqrt((double)in);
    ma_rng r = ma_rng_make(p->seed, name, 0, MA_RNG_INIT);
    switch (init) {
    case MA_INIT_ZERO: return scale(v, count, 0, 0);
    case MA_INIT_ONE: return scale(v, count, 0, 1);
    case MA_INIT_FAN:
    case MA_INIT_XAVIER: ma_rng_fill_uniform(&r, v, (size_t)count); return scale(v, count, 2 * bound, -bound);
    case MA_INIT_SMALL: ma_rng_fill_normal(&r, v, (size_t)count); return scale(v, count, 0.02, 0);
    }
}

static int draw_into(ma_params *p, ma_tensor *t, ma_init init, const char *name) {
    if (planned(p)) return 0;
    float *v = ma_alloc((size_t)ma_count(t), sizeof *v);
    if (!v) return no_memory(p);
    draw(p, v, init, t->nd, t->n, name);
    int rc = ma_put(p->ctx, t, v);
    ma_release(v);
    return rc;
}

/* ---- declaring ---- */

static char *name_of(ma_params *p, const char *fmt, va_list ap) {
    char *name = NULL;
    if (vasprintf(&name, fmt, ap) >= 0) return name;
    no_memory(p);
    return NULL;
}

/* Adds the tensor to the list, which takes over the name. */
static int enlist(ma_params *p, char *name, ma_tensor *t, ma_layout layout) {
    if (p->n == p->room) {
        int room = p->room ? 2 * p->room : 64;
        ma_param_t *at = realloc(p->at, (size_t)room * sizeof *at);
        if (!at) return no_memory(p);
        p->at = at;
        p->room = room;
    }
    p->at[p->n++] = (ma_param_t){.name = name, .t = t, .layout = layout, .decay = t->nd >= 2};
    return 0;
}

/* ---- what is trained ---- */

/* Whether a pattern, the n bytes at p, fits the name. */
static bool fits_pattern(const char *p, size_t n, const char *name) {
    char pattern[256];
    if (n >= sizeof pattern) return false;
    memcpy(pattern, p, n);
    pattern[n] = 0;
    return !fnmatch(pattern, name, 0);
}

static bool trained(const ma_params *p, const char *name) {
    bool fit = !p->only;
    for (const char *s = p->only, *end; s && !fit; s = *end ? end + 1 : NULL) {
        end = strchrnul(s, ',');
        fit = fits_pattern(s, (size_t)(end - s), name);
    }
    return p->train && fit;
}

/* A pattern that fits no name is a slip. */
static int check_patterns(const ma_params *p) {
    for (const char *s = p->only, *end; s; s = *end ? end + 1 : NULL) {
        end = strchrnul(s, ',');
        bool fit = false;
        for (int i = 0; i < p->n && !fit; i++) fit = fits_pattern(s, (size_t)(end - s), p->at[i].name);
        if (!fit)
            return ma_fail(ma_ctx_err(p->ctx), MA_USAGE, "no parameter is called %.*s, such as %s is", (int)(end - s),
                           s, p->n ? p->at[p->n - 1].name : "");
    }
    return 0;
}

/* Makes the tensor and gives it its values. */
static ma_tensor *declare(ma_params *p, ma_layout layout, ma_init init, int nd, const int64_t *n, const char *name) {
    const ma_entry *e = p->from ? look_up(p, name) : NULL;
    if (p->from && !e) {
        missing(p, name);
        return NULL;
    }
    ma_tensor *t = ma_keep(p->ctx, ma_get_type(p->ctx), nd, n);
    if (!t || (trained(p, name) && !ma_leaf(p->ctx, t))) return NULL;
    if (e ? read_into(p, t, layout, e, ma_weights_path(p->from), ma_ctx_err(p->ctx)) : draw_into(p, t, init, name))
        return NULL;
    if (nd >= 2) p->fan = product(n, 1, nd);
    return t;
}

ma_tensor *ma_param(ma_params *p, ma_layout layout, ma_init init, int nd, const int64_t *n, const char *fmt, ...) {
    if (!p || ma_failed(p->ctx)) return NULL;
    va_list ap;
    va_start(ap, fmt);
    char *name = name_of(p, fmt, ap);
    va_end(ap);
    ma_tensor *t = name ? declare(p, layout, init, nd, n, name) : NULL;
    if (t && !enlist(p, name, t, layout)) return t;
    free(name);
    return NULL;
}

ma_tensor *ma_param_values(ma_params *p, const float *values, int nd, const int64_t *n) {
    if (!p || ma_failed(p->ctx)) return NULL;
    ma_tensor *t = ma_keep(p->ctx, ma_get_type(p->ctx), nd, n);
    return t && (planned(p) || !ma_put(p->ctx, t, values)) ? t : NULL;
}

const ma_entry *ma_param_entry(const ma_params *p, const char *fmt, ...) {
    char name[256], full[512];
    if (!p || !p->from) return NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    int m = snprintf(full, sizeof full, "%s%s", p->prefix ? p->prefix : "", name);
    return n < (int)sizeof name && m < (int)sizeof full ? ma_weights_find(p->from, full) : NULL;
}

bool ma_param_has(ma_params *p, const char *fmt, ...) {
    if (!p || !p->from) return false;
    va_list ap;
    va_start(ap, fmt);
    char *name = name_of(p, fmt, ap);
    va_end(ap);
    bool has = name && look_up(p, name);
    free(name);
    return has;
}

/* A file's array of so many elements; zeros in a plan. */
static float *host_values(ma_params *p, int64_t count, const char *name) {
    const ma_entry *e = look_up(p, name);
    if (!e) {
        missing(p, name);
        return NULL;
    }
    const char *path = ma_weights_path(p->from);
    if (ma_entry_count(e) != (size_t)count) {
        ma_fail(ma_ctx_err(p->ctx), MA_SHAPE, "%s: %s has %zu elements, must have %lld", path, e->name,
                ma_entry_count(e), (long long)count);
        return NULL;
    }
    if (!planned(p)) return values_of(e, path, MA_PLAIN, 1, &count, ma_ctx_err(p->ctx));
    float *zeros = ma_alloc((size_t)count, sizeof *zeros);
    if (!zeros) no_memory(p);
    return zeros;
}

float *ma_param_host(ma_params *p, int64_t count, const char *fmt, ...) {
    if (!p || ma_failed(p->ctx)) return NULL;
    va_list ap;
    va_start(ap, fmt);
    char *name = name_of(p, fmt, ap);
    va_end(ap);
    float *v = name ? host_values(p, count, name) : NULL;
    free(name);
    return v;
}

static bool begins(const char *s, const char *prefix) {
    return !strncmp(s, prefix, strlen(prefix));
}

/* Names to ignore may be given with the file's prefix or without. */
static bool ignored(const ma_params *p, const char *name, const char *const *ignore) {
    const char *bare = p->prefix && begins(name, p->prefix) ? name + strlen(p->prefix) : name;
    for (; ignore && *ignore; ignore++)
        if (begins(name, *ignore) || begins(bare, *ignore)) return true;
    return false;
}

ma_label ma_label_of(const char *fmt, ...) {
    ma_label l;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(l.s, sizeof l.s, fmt, ap);
    va_end(ap);
    return l;
}

int ma_params_end(ma_params *p, const char *const *ignore) {
    if (!p || ma_failed(p->ctx)) return -1;
    ma_buf names = {0};
    int left = 0;
    for (int i = 0; p->from && i < ma_weights_count(p->from); i++) {
        const char *name = ma_weights_at(p->from, i)->name;
        if (p->used[i] || ignored(p, name, ignore)) continue;
        if (left++ < 5) ma_buf_printf(&names, "%s%s", left > 1 ? ", " : "", name);
    }
    if (left)
        ma_fail(ma_ctx_err(p->ctx), MA_UNSUPPORTED, "%s: %d not known: %.*s%s", ma_weights_path(p->from), left,
                (int)names.size, names.data ? names.data : "", left > 5 ? ", …" : "");
    ma_buf_free(&names);
    return left ? -1 : check_patterns(p);
}

/* ---- saving ---- */

/* The part of a set that goes into one file. Holds one tensor at a time. */
typedef struct saver {
    ma_params *p;
    int from; /* the file's first in p->at */
    ma_type type;
    void *bytes; /* what was handed out last */
} saver;

/* Number i of the file's parameters as the file has it: layout, then type. */
static const void *fill(void *user, int i, ma_err *err) {
    saver *s = user;
    const ma_param_t *a = &s->p->at[s->from + i];
    size_t count = (size_t)ma_count(a->t);
    ma_release(s->bytes);
    s->bytes = ma_alloc(count, ma_type_size(s->type));
    float *ours = ma_alloc(count, sizeof *ours), *file = ma_alloc(count, sizeof *file);
    ma_err *why = ma_ctx_err(s->p->ctx);
    int rc = s->bytes && ours && file ? 0 : ma_fail(err, MA_MEMORY, "%s: out of memory", a->name);
    if (!rc && ma_get(s->p->ctx, a->t, ours)) rc = ma_fail(err, why->reason, "%s: %s", a->name, why->text);
    if (!rc) {
        ma_layout_to_file(file, ours, a->layout, a->t->nd, a->t->n);
        if (s->p->edit) rc = s->p->edit(s->p->edit_self, a->name, file, err);
    }
    if (!rc) ma_from_f32(s->bytes, file, s->type, count);
    ma_release(ours);
    ma_release(file);
    return rc ? NULL : s->bytes;
}

/* Every parameter's name, type and shape in the file, without data; ma_release. */
static ma_named *describe(const ma_params *p, const char *path, ma_type type, ma_err *err) {
    ma_named *list = ma_alloc((size_t)p->n + 1, sizeof *list);
    if (!list) ma_fail(err, MA_MEMORY, "%s: out of memory", path);
    for (int i = 0; i < p->n && list; i++) {
        const ma_param_t *a = &p->at[i];
        list[i] = (ma_named){.name = a->name, .a.type = type};
        list[i].a.nd = saved_shape(a->layout, a->t->nd, a->t->n, list[i].a.n);
        if (list[i].a.nd >= 0) continue;
        char shape[160];
        ma_fail(err, MA_USAGE, "%s: %s is %s, which its layout cannot hold", path, a->name,
                ma_shape_text(shape, a->t->nd, a->t->n));
        ma_release(list);
        return NULL;
    }
    return list;
}

/* Numbers from, …, to-1 of the list, whose data are those of p's. */
static int save_range(ma_params *p, const char *path, ma_named *list, int from, int to, const char *const *meta,
                      ma_err *err) {
    saver s = {.p = p, .from = from, .type = to > from ? list[from].a.type : MA_F32};
    int rc = ma_safetensors_write(path, list + from, to - from, meta, fill, &s, err);
    ma_release(s.bytes);
    return rc;
}

/* ---- shards ---- */

/* Puts the parameters into files of at most max_bytes, in order; shard[i] from 0. Returns how many. */
static int assign_shards(const ma_named *list, int n, size_t max_bytes, int *shard, size_t *total) {
    int shards = 0;
    size_t used = 0;
    *total = 0;
    for (int i = 0; i < n; i++) {
        size_t bytes = ma_array_bytes(&list[i].a);
        if (!shards || bytes > max_bytes || used > max_bytes - bytes) {
            shards++;
            used = 0;
        }
        used += bytes;
        *total += bytes;
        shard[i] = shards - 1;
    }
    return shards;
}

/* "DIR/NAME" and 1, 2 → "DIR/NAME-00001-of-00002.safetensors" */
static char *shard_path(const char *stem, int i, int n) {
    return ma_format("%s-%05d-of-%05d.safetensors", stem, i + 1, n);
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* {"metadata": {"total_size": …}, "weight_map": {NAME: FILE, …}} */
static int save_index(const char *index, const char *stem, const ma_named *list, const int *shard, int n, int shards,
                      size_t total, ma_err *err) {
    cJSON *j = cJSON_CreateObject(), *meta = cJSON_AddObjectToObject(j, "metadata");
    cJSON *map = meta ? cJSON_AddObjectToObject(j, "weight_map") : NULL;
    char *size = ma_format("%zu", total), *text = NULL;
    bool good = map && size && cJSON_AddRawToObject(meta, "total_size", size);
    for (int i = 0; i < n && good; i++) {
        char *file = shard_path(base_name(stem), shard[i], shards);
        good = file && cJSON_AddStringToObject(map, list[i].name, file);
        free(file);
    }
    if (good) text = cJSON_Print(j);
    int rc = text ? ma_write_file(index, text, strlen(text), err) : ma_fail(err, MA_MEMORY, "%s: out of memory", index);
    cJSON_free(text);
    cJSON_Delete(j);
    free(size);
    return rc;
}

static int save_shards(ma_params *p, const char *stem, ma_named *list, const int *shard, int shards,
                       const char *const *meta, ma_err *err) {
    int rc = 0;
    for (int k = 0, from = 0, to; k < shards && !rc; k++, from = to) {
        for (to = from; to < p->n && shard[to] == k;) to++;
        char *path = shard_path(stem, k, shards);
        rc = path ? save_range(p, path, list, from, to, meta, err) : ma_fail(err, MA_MEMORY, "%s: out of memory", stem);
        free(path);
    }
    return rc;
}

/* Removes what an earlier save left in the other form, which would be read instead or by mistake. */
static int remove_old(const char *path, ma_err *err) {
    return unlink(path) && errno != ENOENT ? ma_fail(err, MA_IO, "%s: %s", path, strerror(errno)) : 0;
}

int ma_params_save(ma_params *p, const char *path, ma_type type, size_t max_bytes, const char *const *meta,
                   ma_err *err) {
    static const char suffix[] = ".safetensors";
    size_t n = strlen(path), m = strlen(suffix);
    if (n <= m || strcmp(path + n - m, suffix) || (type != MA_F32 && type != MA_F16 && type != MA_BF16))
        return ma_fail(err, MA_USAGE, "%s: parameters are saved as .safetensors in f32, f16 or bf16", path);
    size_t total = 0;
    ma_named *list = describe(p, path, type, err);
    if (!list) return -1;
    int *shard = ma_alloc((size_t)p->n + 1, sizeof *shard);
    char *stem = ma_format("%.*s", (int)(n - m), path), *index = ma_format("%s.index.json", path);
    int rc = shard && stem && index ? 0 : ma_fail(err, MA_MEMORY, "%s: out of memory", path);
    int shards = rc ? 0 : assign_shards(list, p->n, max_bytes ? max_bytes : SIZE_MAX, shard, &total);
    if (!rc && shards <= 1) {
        rc = save_range(p, path, list, 0, p->n, meta, err);
        if (!rc) rc = remove_old(index, err);
    } else if (!rc) {
        rc = save_shards(p, stem, list, shard, shards, meta, err);
        if (!rc) rc = save_index(index, stem, list, shard, p->n, shards, total, err);
        if (!rc) rc = remove_old(path, err);
    }
    free(stem);
    free(index);
    ma_release(shard);
    ma_release(list);
    return rc;
}

int ma_params_load(ma_params *p, const ma_weights *w, ma_err *err) {
    const char *path = ma_weights_path(w);
    for (int i = 0; i < p->n; i++) {
        const ma_param_t *a = &p->at[i];
        const ma_entry *e = ma_weights_find(w, a->name);
        if (!e) return ma_fail(err, MA_MISSING, "%s: %s is missing", path, a->name);
        if (read_into(p, a->t, a->layout, e, path, err)) return -1;
    }
    if (ma_weights_count(w) != p->n)
        return ma_fail(err, MA_UNSUPPORTED, "%s: %d tensors, must be %d", path, ma_weights_count(w), p->n);
    return 0;
}
