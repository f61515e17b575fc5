/* lora: see lora.h. Source: diffusers CogVideoXLoraLoaderMixin; peft LoraConfig, tuners.lora.Linear.
 *
 * Limits: plain adapters of linear maps; no DoRA, no rank-stabilised scale. Traps: the rank is the file's shapes',
 * module by module, whatever its metadata say; metadata's names carry the prefix too; alpha may differ by module. */
#include "lora.h"

#include "../shard.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PREFIX "transformer."

/* A module that has adapters. */
typedef struct map {
    char *name;
    ma_tensor *w; /* (out, in) */
    lora_pair *pair;
} map;

struct lora {
    ma_ctx *ctx;
    ma_params *params;
    ma_weights *file; /* NULL: drawn */
    cJSON *meta;      /* the file's; may be NULL */
    int64_t rank;
    double alpha;
    char *targets;
    map *at;
    int n, room;
};

static int no_memory(const lora *l) {
    return ma_fail(ma_ctx_err(l->ctx), MA_MEMORY, "lora: out of memory");
}

static lora *make(ma_ctx *c, ma_weights *file, uint64_t seed) {
    lora *l = calloc(1, sizeof *l);
    if (!l) {
        ma_fail(ma_ctx_err(c), MA_MEMORY, "lora: out of memory");
        ma_weights_close(file);
        return NULL;
    }
    *l = (lora){.ctx = c, .file = file, .params = ma_params_new(c, file, !file, seed)};
    if (l->params) return l;
    lora_free(l);
    return NULL;
}

lora *lora_new(ma_ctx *c, int64_t rank, double alpha, const char *targets, uint64_t seed) {
    lora *l = make(c, NULL, seed);
    if (!l) return NULL;
    l->rank = rank;
    l->alpha = alpha;
    if ((l->targets = ma_strdup(targets))) return l;
    no_memory(l);
    lora_free(l);
    return NULL;
}

static void forget_maps(lora *l) {
    for (int k = 0; k < l->n; k++) free(l->at[k].name);
    l->n = 0;
}

void lora_free(lora *l) {
    if (!l) return;
    forget_maps(l);
    free(l->at);
    free(l->targets);
    cJSON_Delete(l->meta);
    ma_params_free(l->params);
    ma_weights_close(l->file);
    free(l);
}

ma_params *lora_params(lora *l) {
    return l->params;
}

/* ---- reading ---- */

/* The metadata's entry, with the prefix or without. */
static const cJSON *meta_of(const lora *l, const char *name) {
    char full[64];
    snprintf(full, sizeof full, PREFIX "%s", name);
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(l->meta, full);
    return v ? v : cJSON_GetObjectItemCaseSensitive(l->meta, name);
}

static int read_meta(lora *l, ma_err *e) {
    static const char *const other[] = {"use_dora", "use_rslora"};
    const char *path = ma_weights_path(l->file), *text = ma_weights_meta(l->file, LORA_META);
    if (!text) return 0;
    if (!(l->meta = ma_json_parse(text, strlen(text), path, e))) return -1;
    for (size_t k = 0; k < sizeof other / sizeof *other; k++)
        if (cJSON_IsTrue(meta_of(l, other[k])))
            return ma_fail(e, MA_UNSUPPORTED, "%s: %s is not supported", path, other[k]);
    return 0;
}

static bool is_folder(const char *path) {
    struct stat s;
    return !stat(path, &s) && S_ISDIR(s.st_mode);
}

/* free(); NULL: out of memory */
static char *file_of(const char *path) {
    return ma_format("%s%s", path, is_folder(path) ? "/" LORA_FILE : "");
}

ma_weights *lora_weights(const char *path, ma_err *e) {
    char *file = file_of(path);
    ma_weights *w = file ? ma_weights_open(file, e) : NULL;
    if (!file) ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    free(file);
    return w;
}

bool lora_is(const char *path) {
    ma_err none = {0};
    char *file = file_of(path);
    const bool folder = is_folder(path), there = file && !access(file, R_OK);
    ma_weights *w = there && !folder ? ma_weights_open(file, &none) : NULL;
    bool found = there && folder;
    for (int k = 0; w && k < ma_weights_count(w) && !found; k++)
        found = strstr(ma_weights_at(w, k)->name, ".lora_A.") != NULL;
    ma_weights_close(w);
    free(file);
    return found;
}

lora *lora_open(ma_ctx *c, const char *path, ma_err *e) {
    ma_weights *w = lora_weights(path, e);
    lora *l = w ? make(c, w, 0) : NULL;
    if (l && !read_meta(l, e)) return l;
    ma_ctx_failed(c, e);
    lora_free(l);
    return NULL;
}

/* Alpha of a module of the file. */
static double alpha_of(lora *l, const char *module, int64_t rank) {
    if (ma_param_has(l->params, PREFIX "%s.alpha", module)) {
        float *alpha = ma_param_host(l->params, 1, PREFIX "%s.alpha", module);
        double value = alpha ? *alpha : 0;
        ma_release(alpha);
        return value;
    }
    const cJSON *own = cJSON_GetObjectItemCaseSensitive(meta_of(l, "alpha_pattern"), module);
    const cJSON *all = own ? own : meta_of(l, "lora_alpha");
    return cJSON_IsNumber(all) ? all->valuedouble : (double)rank;
}

/* ---- adapting ---- */

static bool ends_with(const char *name, const char *end, size_t n) {
    const size_t m = strlen(name);
    return n && m >= n && !memcmp(name + m - n, end, n) && (m == n || name[m - n - 1] == '.');
}

/* Whether one of the targets fits the module. */
static bool is_target(const char *targets, const char *module) {
    for (const char *s = targets, *end; s; s = *end ? end + 1 : NULL) {
        end = strchrnul(s, ',');
        if (ends_with(module, s, (size_t)(end - s))) return true;
    }
    return false;
}

static int enlist(lora *l, const char *module, ma_tensor *w, lora_pair *pair) {
    if (l->n == l->room) {
        int room = l->room ? 2 * l->room : 64;
        map *at = realloc(l->at, (size_t)room * sizeof *at);
        if (!at) return no_memory(l);
        l->at = at;
        l->room = room;
    }
    l->at[l->n] = (map){.name = ma_strdup(module), .w = w, .pair = pair};
    return l->at[l->n].name ? (l->n++, 0) : no_memory(l);
}

int lora_adapt(lora *l, const char *module, ma_tensor *w, lora_pair *pair) {
    *pair = (lora_pair){0};
    if (ma_failed(l->ctx) || !w) return -1;
    int64_t rank = l->rank;
    if (l->file) {
        const ma_entry *a = ma_param_entry(l->params, PREFIX "%s.lora_A.weight", module);
        if (!a) return 0;
        rank = a->nd == 2 ? a->n[0] : 0;
    } else if (!is_target(l->targets, module)) {
        return 0;
    }
    const double alpha = l->file ? alpha_of(l, module, rank) : l->alpha;
    if (rank < 1 || !isfinite(alpha))
        return ma_fail(ma_ctx_err(l->ctx), MA_SHAPE, "%s: %s has no rank or no alpha", ma_weights_path(l->file),
                       module);
    pair->a = ma_param(l->params, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(rank, w->n[1]), PREFIX "%s.lora_A.weight", module);
    pair->b = ma_param(l->params, MA_PLAIN, MA_INIT_ZERO, MA_SHAPE(w->n[0], rank), PREFIX "%s.lora_B.weight", module);
    pair->scale = alpha / (double)rank;
    return pair->a && pair->b ? enlist(l, module, w, pair) : -1;
}

int lora_end(lora *l) {
    for (const char *s = l->targets, *end; s; s = *end ? end + 1 : NULL) {
        end = strchrnul(s, ',');
        bool fit = false;
        for (int k = 0; k < l->n && !fit; k++) fit = ends_with(l->at[k].name, s, (size_t)(end - s));
        if (!fit)
            return ma_fail(ma_ctx_err(l->ctx), MA_USAGE, "lora: no linear map of a block is called %.*s",
                           (int)(end - s), s);
    }
    return ma_params_end(l->params, NULL);
}

ma_tensor *lora_add(ma_ctx *c, const lora_pair *p, ma_tensor *x, ma_tensor *y, ma_act act) {
    ma_tensor *low = ma_linear(c, x, p->a, NULL, MA_NONE); /* (…, rank) */
    if (p->scale != 1) low = ma_affine(c, low, p->scale, 0);
    return ma_add_act(c, y, ma_linear(c, low, p->b, NULL, MA_NONE), act);
}

/* ---- merging ---- */

/* w += scale·b·a, on the host. */
static void add_product(float *w, const float *a, const float *b, int64_t out, int64_t in, int64_t rank, float scale) {
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < out; o++)
        for (int64_t k = 0; k < rank; k++) {
            const float by = scale * b[o * rank + k];
            for (int64_t i = 0; i < in; i++) w[o * in + i] += by * a[k * in + i];
        }
}

/* Adds a map's adapters to its weight at w. */
static int add_map(const lora *l, const map *m, float *w, double strength) {
    const lora_pair *p = m->pair;
    const int64_t rank = p->a->n[0], out = m->w->n[0], in = m->w->n[1];
    float *a = ma_alloc((size_t)ma_count(p->a), sizeof *a), *b = ma_alloc((size_t)ma_count(p->b), sizeof *b);
    int rc = a && b ? 0 : no_memory(l);
    if (!rc) rc = ma_get(l->ctx, p->a, a) || ma_get(l->ctx, p->b, b) ? -1 : 0;
    if (!rc) add_product(w, a, b, out, in, rank, (float)(strength * p->scale));
    ma_release(a);
    ma_release(b);
    return rc;
}

static int merge_map(const lora *l, const map *m, double strength) {
    float *w = ma_alloc((size_t)ma_count(m->w), sizeof *w);
    int rc = w ? ma_get(l->ctx, m->w, w) : no_memory(l);
    if (!rc) rc = add_map(l, m, w, strength);
    if (!rc) rc = ma_put(l->ctx, m->w, w);
    ma_release(w);
    return rc;
}

int lora_merge(lora *l, double strength) {
    const bool planned = ma_ctx_device(l->ctx)->plan;
    for (int k = 0; k < l->n; k++) {
        if (!planned && merge_map(l, &l->at[k], strength)) return -1;
        *l->at[k].pair = (lora_pair){0};
    }
    forget_maps(l);
    return 0;
}

int lora_edit(void *self, const char *name, float *values, ma_err *e) {
    static const char tail[] = ".weight";
    const lora *l = self;
    for (int k = 0; k < l->n; k++) {
        const map *m = &l->at[k];
        const size_t n = strlen(m->name);
        if (strncmp(name, m->name, n) || strcmp(name + n, tail)) continue;
        return add_map(l, m, values, 1) ? (ma_ctx_failed(l->ctx, e), -1) : 0;
    }
    return 0;
}

/* ---- saving ---- */

/* What peft makes its LoraConfig of. free() */
static char *meta_text(const lora *l) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, PREFIX "r", (double)l->rank);
    cJSON_AddNumberToObject(json, PREFIX "lora_alpha", l->alpha);
    cJSON *modules = cJSON_AddArrayToObject(json, PREFIX "target_modules");
    for (int k = 0; k < l->n; k++) cJSON_AddItemToArray(modules, cJSON_CreateString(l->at[k].name));
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}

int lora_save(lora *l, const char *path, ma_err *e) {
    char *meta = meta_text(l);
    if (!meta) return ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    int rc = ma_params_save(l->params, path, MA_F32, 0, (const char *const[]){LORA_META, meta, NULL}, e);
    free(meta);
    return rc;
}
