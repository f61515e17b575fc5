/* What the weight containers share: weights.c opens and looks up, safetensors.c and pth.c fill in. */
#ifndef MA_WEIGHTS_PRIVATE_H
#define MA_WEIGHTS_PRIVATE_H

#include "shard.h" /* ma_json_parse */
#include "weights.h"

/* Most bytes of JSON that are read at all. */
#define MA_JSON_MOST ((size_t)100 << 20)

typedef struct ma_mapped {
    char *path;
    const unsigned char *data; /* read-only, size bytes */
    size_t size;
} ma_mapped;

typedef struct ma_item {
    ma_entry e;
    int file;    /* of files[] */
    bool listed; /* the index has named it */
} ma_item;

struct ma_weights {
    char *path; /* as given to ma_weights_open */
    ma_mapped *files;
    int nfiles;
    ma_item *items; /* by name, once open */
    int n, room;
    char **meta; /* key, value, key, value, … */
    int nmeta;
    char sha[65]; /* empty until asked for */
};

/* An empty entry called name (copied; len bytes, no 0 among them). NULL: refused. Valid until the next one is added. */
ma_entry *ma_weights_add(ma_weights *, int file, const char *name, size_t len, ma_err *);
/* Sets e->stride to row-major and checks type and sizes: *bytes is what the data must take. */
int ma_entry_dense(const char *path, ma_entry *e, size_t *bytes, ma_err *);
size_t ma_entry_count(const ma_entry *);                    /* elements; checked when the file was opened */
int ma_weights_index(const ma_weights *, const char *name); /* for ma_weights_at; -1: not there */

/* n bytes that must be one JSON object: valid UTF-8, no 0 anywhere, no key twice, only space behind. For cJSON_Delete.
 */
cJSON *ma_weights_json(const char *path, const char *text, size_t n, ma_err *);

/* Adds the entries and metadata of the mapped file; everything is checked. */
int ma_safetensors_read(ma_weights *, int file, ma_err *);
int ma_pth_read(ma_weights *, int file, ma_err *);
bool ma_pth_is(const unsigned char *data, size_t size);

/* ma_weights_save for what is not all in memory at once: the arrays' data are NULL, and fill hands out the bytes of
 * number i of the list, valid until its next call. NULL from it: it failed and said why. */
typedef const void *(*ma_fill)(void *user, int i, ma_err *);
int ma_safetensors_write(const char *path, const ma_named *, int n, const char *const *meta, ma_fill, void *user,
                         ma_err *);

#endif
