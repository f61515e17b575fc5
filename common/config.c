/* config: see config.h. */
#include "config.h"
#include "file.h"

#include <math.h>
#include <string.h>

enum { MOST_BYTES = 1 << 20 };

cJSON *ma_config_open(const char *path, ma_err *e) {
    ma_buf text = {0};
    cJSON *j = ma_read_file(path, MOST_BYTES, &text, e) == 0 ? ma_json_parse(text.data, text.size, path, e) : NULL;
    ma_buf_free(&text);
    if (!j || cJSON_IsObject(j)) return j;
    ma_fail(e, MA_CORRUPT, "%s: not a JSON object", path);
    cJSON_Delete(j);
    return NULL;
}

static int read_bool(const cJSON *item, const ma_setting *s, const char *path, ma_err *e) {
    if (!cJSON_IsBool(item)) return ma_fail(e, MA_CORRUPT, "%s: %s: neither true nor false", path, s->key);
    *(bool *)s->at = cJSON_IsTrue(item);
    return 0;
}

static int read_number(const cJSON *item, const ma_setting *s, const char *path, ma_err *e) {
    double x = item->valuedouble;
    if (!cJSON_IsNumber(item)) return ma_fail(e, MA_CORRUPT, "%s: %s: not a number", path, s->key);
    if (!(x >= s->lo && x <= s->hi))
        return ma_fail(e, MA_UNSUPPORTED, "%s: %s: %g is not in %g..%g", path, s->key, x, s->lo, s->hi);
    if (s->kind == MA_SET_REAL)
        *(double *)s->at = x;
    else if (x == floor(x))
        *(int *)s->at = (int)x;
    else
        return ma_fail(e, MA_UNSUPPORTED, "%s: %s: %g is not whole", path, s->key, x);
    return 0;
}

int ma_config_read(const cJSON *j, const ma_setting *s, int n, const char *path, ma_err *e) {
    for (int k = 0; k < n; k++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(j, s[k].key);
        if (item && (s[k].kind == MA_SET_BOOL ? read_bool : read_number)(item, &s[k], path, e) < 0) return -1;
    }
    return 0;
}

int ma_config_word(const cJSON *j, const char *key, const char *absent, const char *const *known, const char *path,
                   ma_err *e) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(j, key);
    const char *word = item ? cJSON_GetStringValue(item) : absent;
    for (int k = 0; word && known[k]; k++)
        if (!strcmp(word, known[k])) return k;
    return ma_fail(e, MA_UNSUPPORTED, "%s: %s: %s is not supported%s", path, key, word ? word : "not a word",
                   item ? "" : " (the default of an absent key)");
}
