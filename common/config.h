/* config: what is asked of a JSON file of settings, as a table: key, kind, place, range. A key that is absent leaves what
 * stands there. Messages name the file and the key. */
#ifndef MA_CONFIG_H
#define MA_CONFIG_H

#include "shard.h"

/* The file's object (cJSON_Delete). NULL: not to be read, not JSON, not an object. */
cJSON *ma_config_open(const char *path, ma_err *);

typedef struct ma_setting {
    const char *key;
    enum { MA_SET_INT, MA_SET_REAL, MA_SET_BOOL } kind;
    void *at;      /* int, double, bool */
    double lo, hi; /* of numbers */
} ma_setting;
int ma_config_read(const cJSON *, const ma_setting *, int n, const char *path, ma_err *);

/* Which of `known` (NULL at the end) stands under key; absent: what a file without the key means. -1: another word, or
 * none: not supported. */
int ma_config_word(const cJSON *, const char *key, const char *absent, const char *const *known, const char *path,
                   ma_err *);

#endif
