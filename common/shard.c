/* shard: samples in memory: a key and its members. Reading is reader.c, writing writer.c.
 * Limits: members are held whole; a sample's members are found by walking them (there are a handful).
 * Traps: half precision ends at 65,504: what is larger becomes infinity in silence unless it is looked for.
 * Once KEY.json has been parsed (ma_sample_json) the parsed form is the true one until the sample is written; the
 * bytes of the member "json" are then old. Putting or dropping "json" forgets the parsed form. */
#include "shard.h"
#include "npy.h"
#include <stdlib.h>
#include <string.h>

ma_sample *ma_sample_new(const char *key) {
    ma_sample *s = calloc(1, sizeof *s);
    if (s && !(s->key = ma_strdup(key))) {
        free(s);
        s = NULL;
    }
    return s;
}

void ma_sample_free(ma_sample *s) {
    if (!s) return;
    for (int i = 0; i < s->n; i++) {
        free(s->m[i].ext);
        free(s->m[i].data);
    }
    cJSON_Delete(s->json);
    free(s->m);
    free(s->key);
    free(s->from);
    free(s);
}

ma_member *ma_sample_get(const ma_sample *s, const char *ext) {
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->m[i].ext, ext)) return &s->m[i];
    return NULL;
}

static void forget_json(ma_sample *s, const char *ext) {
    if (strcmp(ext, "json")) return;
    cJSON_Delete(s->json);
    s->json = NULL;
}

/* Room for one more, at most doubling now and then: n is 0 or a power of two when the array is full. */
static ma_member *append(ma_sample *s, const char *ext) {
    if (!(s->n & (s->n - 1))) {
        ma_member *m = realloc(s->m, sizeof *m * (s->n ? 2 * (size_t)s->n : 1));
        if (!m) return NULL;
        s->m = m;
    }
    char *copy = ma_strdup(ext);
    if (!copy) return NULL;
    s->m[s->n] = (ma_member){.ext = copy};
    return &s->m[s->n++];
}

int ma_sample_put(ma_sample *s, const char *ext, void *data, size_t size, ma_err *e) {
    ma_member *m = ma_sample_get(s, ext);
    if (!m && !(m = append(s, ext))) {
        free(data);
        return ma_fail(e, MA_MEMORY, "%s.%s: out of memory", s->key, ext);
    }
    forget_json(s, ext);
    free(m->data);
    m->data = data;
    m->size = size;
    m->sha[0] = 0;
    return 0;
}

int ma_sample_put_array(ma_sample *s, const char *ext, const ma_array *a, ma_err *e) {
    ma_buf b = {0};
    ma_err why = {0};
    if (ma_npy_write(a, &b, &why)) {
        ma_buf_free(&b);
        return ma_fail(e, why.reason, "%s.%s: %s", s->key, ext, why.text);
    }
    return ma_sample_put(s, ext, b.data, b.size, e);
}

static int not_half(const ma_sample *s, const char *ext, size_t at, double value, ma_err *e) {
    return ma_fail(e, MA_NOTFINITE, "%s.%s: element %zu is %g: not a half-precision number", s->key, ext, at, value);
}

int ma_sample_put_half(ma_sample *s, const char *ext, const ma_array *a, ma_buf *npy, ma_err *e) {
    size_t count = ma_array_count(a), bad = ma_array_not_finite(a);
    if (bad < count) return not_half(s, ext, bad, (double)ma_f16_to_f32(((const uint16_t *)a->data)[bad]), e);
    const ma_buf b = *npy;
    *npy = (ma_buf){0};
    return ma_sample_put(s, ext, b.data, b.size, e);
}

int ma_sample_put_f16(ma_sample *s, const char *ext, const float *v, int nd, const int64_t *n, ma_err *e) {
    ma_array a = {.type = MA_F16, .nd = nd};
    ma_buf npy;
    memcpy(a.n, n, (size_t)nd * sizeof *n);
    if (ma_npy_begin(&a, &npy, NULL)) return ma_fail(e, MA_MEMORY, "%s.%s: out of memory", s->key, ext);
    size_t count = ma_array_count(&a);
    ma_from_f32(a.data, v, MA_F16, count);
    size_t bad = ma_array_not_finite(&a);
    if (bad == count) return ma_sample_put(s, ext, npy.data, npy.size, e);
    ma_buf_free(&npy);
    return not_half(s, ext, bad, (double)v[bad], e);
}

int ma_sample_array(const ma_sample *s, const char *ext, ma_array *out, ma_err *e) {
    const ma_member *m = ma_sample_get(s, ext);
    *out = (ma_array){0};
    if (!m) return ma_fail(e, MA_MISSING, "%s.%s: not in the sample", s->key, ext);
    char *name = ma_format("%s.%s", s->key, ext);
    int rc = name ? ma_npy_read(m->data, m->size, out, name, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    free(name);
    return rc;
}

void ma_sample_drop(ma_sample *s, const char *ext) {
    ma_member *m = ma_sample_get(s, ext);
    forget_json(s, ext);
    if (!m) return;
    free(m->ext);
    free(m->data);
    /* shrinking to a power of two only makes the next append reallocate to what is there already */
    memmove(m, m + 1, sizeof *m * (size_t)(s->m + s->n - (m + 1)));
    s->n--;
}

cJSON *ma_sample_json(ma_sample *s, ma_err *e) {
    const ma_member *m = ma_sample_get(s, "json");
    if (s->json) return s->json;
    char *name = ma_format("%s.json", s->key);
    cJSON *v = !name ? NULL : m ? ma_json_parse(m->data, m->size, name, e) : cJSON_CreateObject();
    if (v && !cJSON_IsObject(v)) {
        ma_fail(e, MA_CORRUPT, "%s: not an object", name);
        cJSON_Delete(v);
        v = NULL;
    } else if (!v && (!name || !m)) {
        ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    }
    free(name);
    return s->json = v;
}

char *ma_key_of(const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
    char *key = ma_strdup(name);
    if (!key) return NULL;
    if (dot && dot > name) key[dot - name] = 0;
    for (char *c = key; *c; c++)
        if (*c == '.' || (unsigned char)*c < ' ' || *c == 127) *c = '_';
    return key;
}
