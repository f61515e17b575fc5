/* golden: what the golden tests share: a fixture made by a script here, its cases, and the weights and inputs that both
 * sides compute from a formula (formula.py). Only for tests: any trouble with a fixture ends the program. */
#ifndef GOLDEN_H
#define GOLDEN_H

#include "../../common/file.h"
#include "../../common/ops.h"
#include "../../common/param.h"
#include "../tap.h"

#include <cjson/cJSON.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN_OUTPUT 2e-5 /* most relative error of an output */
#define GOLDEN_GRAD   1e-4 /* and of a parameter's gradient */

/* A case of a fixture. */
typedef struct golden {
    const ma_weights *fixture;
    const char *name;
    cJSON *meta;         // settings
    ma_weights *weights; // the network's, as a published file would hold them
    ma_ctx *ctx;         // on the CPU, fp32
} golden;

static inline void golden_need(bool good, const char *what, const ma_err *e) {
    if (good) return;
    printf("Bail out! %s: %s\n", what, e ? e->text : "");
    exit(1);
}

static inline ma_weights *golden_open(const char *path) {
    ma_err e = {0};
    ma_weights *w = ma_weights_open(path, &e);
    golden_need(w, path, &e);
    return w;
}

/* name's element i: add + mul·u, u in [-1, 1) from splitmix64 over FNV-1a of the name. */
static inline void golden_values(float *out, size_t n, const char *name, float add, float mul) {
    uint64_t seed = 0xCBF29CE484222325u;
    for (const char *c = name; *c; c++) seed = (seed ^ (uint8_t)*c) * 0x100000001B3u;
    for (size_t i = 0; i < n; i++) {
        uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        z ^= z >> 31;
        float u = (float)((int64_t)(z >> 40) - (1 << 23)) / (1 << 23);
        out[i] = add + mul * u;
    }
}

static inline int golden_shape(const cJSON *list, int64_t *n) {
    int nd = 0;
    for (const cJSON *x = list->child; x; x = x->next) n[nd++] = (int64_t)x->valuedouble;
    return nd;
}

/* The array that [shape, add, mul, of] describes; freed with ma_array_free. */
static inline ma_array golden_array(const cJSON *rule) {
    int64_t n[MA_MAX_DIMS];
    int nd = golden_shape(cJSON_GetArrayItem(rule, 0), n);
    const cJSON *add = cJSON_GetArrayItem(rule, 1), *mul = cJSON_GetArrayItem(rule, 2),
                *of = cJSON_GetArrayItem(rule, 3);
    ma_array a;
    ma_err e = {0};
    golden_need(!ma_array_new(&a, add ? MA_F32 : MA_I64, nd, n, &e), rule->string, &e);
    if (add)
        golden_values(a.data, ma_array_count(&a), of ? of->valuestring : rule->string, (float)add->valuedouble,
                      (float)mul->valuedouble);
    return a;
}

/* The case's weights, by way of a file: written in the published layout, opened as a user's would be. */
static inline ma_weights *golden_weights(const cJSON *params) {
    int n = cJSON_GetArraySize(params), i = 0;
    ma_named *named = ma_alloc((size_t)n, sizeof *named);
    for (const cJSON *p = params->child; p; p = p->next) named[i++] = (ma_named){p->string, golden_array(p)};
    char dir[] = "/tmp/ma-golden-XXXXXX";
    golden_need(mkdtemp(dir), dir, NULL);
    char *path = ma_format("%s/model.safetensors", dir);
    ma_err e = {0};
    golden_need(!ma_weights_save(path, named, n, NULL, &e), path, &e);
    ma_weights *w = ma_weights_open(path, &e);
    golden_need(w, path, &e);
    unlink(path);
    rmdir(dir);
    free(path);
    for (i = 0; i < n; i++) ma_array_free(&named[i].a);
    ma_release(named);
    return w;
}

static inline golden golden_begin(const ma_weights *fixture, const char *name) {
    golden g = {.fixture = fixture, .name = name};
    const char *text = ma_weights_meta(fixture, name);
    golden_need(text, name, NULL);
    g.meta = cJSON_Parse(text);
    golden_need(g.meta, name, NULL);
    g.weights = golden_weights(cJSON_GetObjectItem(g.meta, "params"));
    char note[160];
    ma_err e = {0};
    const char *where = getenv("MA_TEST_DEVICE"); /* make check-gpu runs these tests there too */
    ma_device *device = ma_device_open(where ? where : "cpu", false, note, &e);
    golden_need(device, where ? where : "cpu", &e);
    g.ctx = ma_ctx_new(device, &e);
    golden_need(g.ctx, "context", &e);
    return g;
}

static inline void golden_end(golden *g) {
    ma_device *device = ma_ctx_device(g->ctx);
    ma_ctx_free(g->ctx);
    ma_device_close(device);
    ma_weights_close(g->weights);
    cJSON_Delete(g->meta);
}

static inline double golden_number(const golden *g, const char *key) {
    const cJSON *x = cJSON_GetObjectItem(g->meta, key);
    golden_need(x, key, NULL);
    return x->valuedouble;
}

static inline int golden_list(const golden *g, const char *key, int64_t *n) {
    const cJSON *x = cJSON_GetObjectItem(g->meta, key);
    golden_need(x, key, NULL);
    return golden_shape(x, n);
}

/* What a JSON setting says, as the file that the reader reads. */
typedef int golden_reader(const char *path, void *out, ma_err *);
static inline void golden_setting(const golden *g, const char *key, golden_reader *read, void *out) {
    char path[] = "/tmp/ma-golden-XXXXXX";
    int fd = mkstemp(path);
    char *text = cJSON_PrintUnformatted(cJSON_GetObjectItem(g->meta, key));
    ma_err e = {0};
    golden_need(fd >= 0 && text && !ma_write_all(fd, text, strlen(text), &e), path, &e);
    close(fd);
    ok(!read(path, out, &e), "%s: %s.json is read %s", g->name, key, e.text);
    unlink(path);
    free(text);
}

/* An input's values, in our layout (ma_array_free). */
static inline ma_array golden_input(const golden *g, const char *name) {
    const cJSON *rule = cJSON_GetObjectItem(cJSON_GetObjectItem(g->meta, "inputs"), name);
    golden_need(rule, name, NULL);
    return golden_array(rule);
}

static inline ma_tensor *golden_tensor(const golden *g, const char *name) {
    ma_array a = golden_input(g, name);
    ma_tensor *t = ma_input(g->ctx, a.data, a.nd, a.n);
    ma_array_free(&a);
    return t;
}

/* The reference's CASE/NAME; count: its elements. NULL: there is none. Freed with ma_release. */
static inline float *golden_find(const golden *g, const char *name, size_t *count) {
    char *key = ma_format("%s/%s", g->name, name);
    const ma_entry *entry = ma_weights_find(g->fixture, key);
    float *x = NULL;
    if (entry) {
        *count = 1;
        for (int i = 0; i < entry->nd; i++) *count *= (size_t)entry->n[i];
        x = ma_alloc(*count, sizeof *x);
        ma_err e = {0};
        golden_need(!ma_entry_read(entry, x, &e), key, &e);
    }
    free(key);
    return x;
}

/* A tensor's values on the host (ma_release). NULL: the context has failed, and the message was printed. */
static inline float *golden_host(const golden *g, const ma_tensor *t) {
    float *x = t ? ma_alloc((size_t)ma_count(t), sizeof *x) : NULL;
    if (x && !ma_get(g->ctx, t, x)) return x;
    printf("# %s: %s\n", g->name, ma_ctx_err(g->ctx)->text);
    ma_release(x);
    return NULL;
}

/* Checks that t's rows 0, every, 2·every, … of its last dimension are CASE/NAME. */
static inline void golden_check(const golden *g, const ma_tensor *t, const char *name, int64_t every) {
    size_t count, n = 0;
    float *want = golden_find(g, name, &count), *got = golden_host(g, t);
    golden_need(want, name, NULL);
    int64_t width = t && t->nd ? t->n[t->nd - 1] : 1;
    for (int64_t row = 0; got && (row + 1) * width <= ma_count(t); row += every, n += (size_t)width)
        memmove(got + n, got + row * width, (size_t)width * sizeof *got);
    double error = got && n == count ? rel_error(got, want, n) : INFINITY;
    ok(error <= GOLDEN_OUTPUT, "%s: %s within %.0e (%.1e)", g->name, name, GOLDEN_OUTPUT, error);
    ma_release(got);
    ma_release(want);
}

/* Checks every parameter's gradient against CASE/grad/LOSS/PARAMETER (in the published layout), or that of `other`
 * where there is none. An error is relative to the reference's norm, or to a thousandth of the norm over all parameters
 * where that is more: a gradient that is zero in exact arithmetic (a key's bias) is rounding here and there. */
static inline void golden_check_grads(const golden *g, const ma_params *p, const char *loss, const char *other) {
    float **want = ma_alloc((size_t)p->n, sizeof *want);
    double total = 0, worst = 0;
    const char *where = "";
    for (int k = 0; k < p->n; k++) {
        size_t count = 0;
        const char *of[2] = {loss, other};
        for (int i = 0; i < 2 && !want[k]; i++) {
            char *key = ma_format("grad/%s/%s", of[i], p->at[k].name);
            want[k] = golden_find(g, key, &count);
            free(key);
        }
        golden_need(want[k] && (int64_t)count == ma_count(p->at[k].t), p->at[k].name, NULL);
        for (size_t i = 0; i < count; i++) total += (double)want[k][i] * want[k][i];
    }
    for (int k = 0; k < p->n; k++) {
        const ma_tensor *t = p->at[k].t;
        size_t count = (size_t)ma_count(t);
        float *ours = golden_host(g, t->grad), *got = ma_alloc(count, sizeof *got);
        if (ours) ma_layout_to_file(got, ours, p->at[k].layout, t->nd, t->n);
        double miss = 0, norm = 0;
        for (size_t i = 0; i < count; i++) {
            double d = (double)got[i] - want[k][i];
            miss += d * d;
            norm += (double)want[k][i] * want[k][i];
        }
        double error = ours ? sqrt(miss / fmax(norm, 1e-6 * total)) : INFINITY;
        if (!(error <= worst)) worst = error, where = p->at[k].name;
        if (!(error <= GOLDEN_GRAD)) printf("# %s: %s: %.1e of %.1e\n", loss, p->at[k].name, error, sqrt(norm));
        ma_release(ours);
        ma_release(got);
        ma_release(want[k]);
    }
    ma_release(want);
    ok(worst <= GOLDEN_GRAD, "%s: %s: gradients of %d parameters within %.0e (worst %.1e, %s)", g->name, loss, p->n,
       GOLDEN_GRAD, worst, where);
}

#endif
