/* json: cJSON behind errors of ours. Refused beyond what cJSON refuses: text after the value, and an object that has a
 * key twice (cJSON keeps both and finds the first, other readers the last: a place to hide things).
 * Limits: numbers are doubles; nesting to cJSON's limit of 1,000; UTF-8 is not checked. */
#include "shard.h"
#include <stdlib.h>
#include <string.h>

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A key that this very object has twice, or NULL. *e: out of memory. */
static const char *twice_here(const cJSON *object, ma_err *e) {
    size_t n = (size_t)cJSON_GetArraySize(object), i = 0;
    if (n < 2) return NULL;
    const char **keys = calloc(n, sizeof *keys), *twice = NULL;
    if (!keys) {
        ma_fail(e, MA_MEMORY, "out of memory");
        return NULL;
    }
    for (const cJSON *c = object->child; c; c = c->next) keys[i++] = c->string;
    qsort(keys, n, sizeof *keys, by_text);
    for (i = 1; i < n && !twice; i++)
        if (!strcmp(keys[i - 1], keys[i])) twice = keys[i];
    free(keys);
    return twice;
}

/* The same for the whole tree; as deep as cJSON's own recursion. */
static const char *twice(const cJSON *v, ma_err *e) {
    const char *key = cJSON_IsObject(v) ? twice_here(v, e) : NULL;
    for (const cJSON *c = v->child; c && !key; c = c->next) key = twice(c, e);
    return key;
}

static bool only_space(const char *at, const char *end) {
    while (at < end && strchr(" \t\r\n", *at) && *at) at++;
    return at == end;
}

cJSON *ma_json_parse(const char *text, size_t size, const char *name, ma_err *e) {
    const char *end = NULL;
    cJSON *v = cJSON_ParseWithLengthOpts(text, size, &end, 0);
    if (!v || !only_space(end, text + size)) {
        size_t line = 1, column = 1;
        for (const char *c = text; end && c < end && c < text + size; c++) {
            column = *c == '\n' ? 1 : column + 1;
            line += *c == '\n';
        }
        ma_fail(e, MA_CORRUPT, "%s: not JSON, from line %zu column %zu on", name, line, column);
        cJSON_Delete(v);
        return NULL;
    }
    ma_err memory = {0};
    const char *key = twice(v, &memory);
    if (!key && !memory.reason) return v;
    if (key)
        ma_fail(e, MA_CORRUPT, "%s: the key \"%.100s\" stands twice in one object", name, key);
    else
        ma_fail(e, MA_MEMORY, "%s: out of memory", name);
    cJSON_Delete(v);
    return NULL;
}
