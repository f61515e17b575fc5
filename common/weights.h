/* weights: named arrays in files. Reads safetensors (one file, a folder or an index with shards) and PyTorch's .pth and
 * .bin (the zip form and the older run of pickles; nothing is executed). Writes safetensors. */
#ifndef MA_WEIGHTS_H
#define MA_WEIGHTS_H
#include "array.h"

/* One named array in a file. data points into the mapping. Strided only in .pth files. */
typedef struct ma_entry {
    const char *name;
    ma_type type;
    int nd;
    int64_t n[MA_MAX_DIMS];
    int64_t stride[MA_MAX_DIMS]; /* in elements */
    const void *data;            /* first element; may be unaligned */
} ma_entry;

typedef struct ma_weights ma_weights;
/* Opens, maps and checks everything: no hole, no overlap, no overflow, no duplicate. path: .safetensors,
 * .safetensors.index.json, .pth/.pt/.bin, or a folder that holds diffusion_pytorch_model or model in one of these.
 * .pth: top-level keys "module", "model", "state_dict" that hold a dictionary of tensors are entered. */
ma_weights *ma_weights_open(const char *path, ma_err *);
void ma_weights_close(ma_weights *);
const char *ma_weights_path(const ma_weights *);
int ma_weights_count(const ma_weights *);
const ma_entry *ma_weights_at(const ma_weights *, int);
const ma_entry *ma_weights_find(const ma_weights *, const char *name);
/* safetensors' __metadata__ value, or NULL. */
const char *ma_weights_meta(const ma_weights *, const char *key);
/* SHA-256 over names, types, shapes and data: the same for the same tensors, whatever the container. */
const char *ma_weights_sha(ma_weights *);
/* Dense copy as fp32 into out (count elements). NaN or infinity anywhere is MA_NOTFINITE and names the tensor. */
int ma_entry_read(const ma_entry *, float *out, ma_err *);

/* Writing: arrays sorted by alignment, then name; header padded; __metadata__ {"format":"pt"} and pairs key, value, …,
 * NULL. path is written beside and renamed. */
typedef struct ma_named {
    const char *name;
    ma_array a;
} ma_named;
int ma_weights_save(const char *path, const ma_named *, int n, const char *const *meta, ma_err *);

#endif
