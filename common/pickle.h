/* pickle: what a pickle makes, as values. pth.c turns them into tensors. */
#ifndef MA_PICKLE_H
#define MA_PICKLE_H

#include "array.h"

typedef struct ma_text {
    const char *s; /* in the mapping: no 0 at the end */
    size_t n;
} ma_text;

bool ma_text_is(ma_text, const char *);
int ma_text_order(ma_text, ma_text); /* as memcmp */
int ma_text_shown(ma_text);          /* how much of it goes into a message, for %.*s */

typedef enum { V_OPAQUE, V_INT, V_TEXT, V_GLOBAL, V_TUPLE, V_LIST, V_DICT, V_STORAGE, V_TENSOR } ma_value_kind;

typedef struct ma_value {
    struct ma_value *next; /* of all, for freeing */
    ma_value_kind kind;
    bool holds;   /* a tensor or a storage is in it, or went into its making */
    ma_type type; /* of a storage */
    union {
        int64_t integer; /* booleans too */
        ma_text text;
        struct {
            ma_text module, name;
        } global; /* also of what an opaque value was made by */
        struct {
            struct ma_value **at; /* a dictionary: key, value, key, value, … */
            size_t n, room;
        } list;
        struct {
            ma_text key;
            int64_t count; /* elements */
        } storage;
        struct {
            struct ma_value *storage, *size, *stride; /* two tuples */
            int64_t offset;
        } tensor;
    };
} ma_value;

/* What a dictionary has under a key; NULL: nothing. */
const ma_value *ma_value_find(const ma_value *dict, const char *key);

/* Runs the pickle at *at up to its STOP; *at is then behind it. NULL: failed. Every value made, whatever the outcome,
 * is put before those in *all, which ma_values_free takes; text points into the pickle. path: for messages. */
const ma_value *ma_pickle_run(const char *path, const unsigned char **at, const unsigned char *end, ma_value **all,
                              ma_err *);
void ma_values_free(ma_value *all);

#endif
