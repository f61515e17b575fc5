/* param: the parameters of a network by their published names: loaded from weights, drawn at random, or only counted;
 * trained, and saved again under the same names and in the published layout.
 *
 *     ma_params *p = ma_params_new(ctx, weights, train, seed);        weights NULL: drawn
 *     w = ma_param(p, MA_CONV3D, MA_INIT_FAN, MA_SHAPE(256,3,1,1,768), "projection.0.weight");
 *     ma_params_end(p, …)                                            says what was missing or left over
 */
#ifndef MA_PARAM_H
#define MA_PARAM_H

#include "tensor.h"
#include "weights.h"

/* How the file's shape relates to ours. Convolutions: the file's second dimension moves to the end, and missing kernel
 * dimensions are 1: our (O,kt,kh,kw,C) is (O,C,kt,kh,kw), (O,C,kh,kw), (O,C,kw) or, as LINEAR, (O,C) in the file. The
 * same holds for transposed ones: our (C,kt,kh,kw,O) is (C,O,kt,kh,kw). */
typedef enum { MA_PLAIN, MA_CONV3D, MA_CONV2D, MA_CONV1D } ma_layout;

/* How it is drawn where there are no weights. FAN: uniform ±1/sqrt(fan in), as PyTorch's default for linear maps and
 * convolutions (a bias gets its weight's bound: MA_INIT_FAN on a vector uses the fan of the parameter made just before).
 * XAVIER: uniform ±sqrt(6/(in+out)). SMALL: normal, deviation 0.02. */
typedef enum { MA_INIT_ZERO, MA_INIT_ONE, MA_INIT_FAN, MA_INIT_XAVIER, MA_INIT_SMALL } ma_init;

typedef struct ma_param_t {
    char *name;
    ma_tensor *t;
    ma_layout layout;
    bool decay;        /* weight decay applies: two dimensions or more */
} ma_param_t;

typedef struct ma_params {
    ma_ctx *ctx;
    const ma_weights *from; /* NULL: draw */
    const char *prefix;     /* put before every name when looking it up; NULL: none */
    bool train;             /* parameters are leaves */
    const char *only;       /* of those, the ones whose names a pattern fits: "*.attn1.*,proj_out.*"; NULL: all */
    /* Of saving: changes values, which are in the file's layout, on their way into the file. NULL: as they are. */
    int (*edit)(void *self, const char *name, float *values, ma_err *);
    void *edit_self;
    uint64_t seed;
    ma_param_t *at;
    int n, room;
    bool *used;             /* of from's entries */
    int64_t fan;
} ma_params;

ma_params *ma_params_new(ma_ctx *, const ma_weights *from, bool train, uint64_t seed);
void ma_params_free(ma_params *); /* the tensors belong to the context */

/* Declares a parameter. NULL, and the context has failed: missing in the file, or of another shape (both named). */
ma_tensor *ma_param(ma_params *, ma_layout, ma_init, int nd, const int64_t *n, const char *name, ...)
    __attribute__((format(printf, 6, 7)));
/* The same from values at hand, in our layout (folded batch norm): not saved, not trained. Marks no name as used. */
ma_tensor *ma_param_values(ma_params *, const float *, int nd, const int64_t *n);
/* Whether the file has it; marks it as used. Without a file: false. */
bool ma_param_has(ma_params *, const char *name, ...) __attribute__((format(printf, 2, 3)));
/* The file's entry, for sizes that are read off the weights; marks nothing. NULL: not there, or no file. */
const ma_entry *ma_param_entry(const ma_params *, const char *name, ...) __attribute__((format(printf, 2, 3)));
/* A file's array by name as fp32 in the file's layout, marked as used (ma_release). NULL: the context has failed. */
float *ma_param_host(ma_params *, int64_t count, const char *name, ...) __attribute__((format(printf, 3, 4)));

/* A name put together; lives until the end of the full expression: ma_label_of("%s.weight", at).s */
typedef struct ma_label {
    char s[96];
} ma_label;
ma_label ma_label_of(const char *, ...) __attribute__((format(printf, 1, 2)));

/* After the last: entries of the file that nobody asked for, and that none of `ignore` (prefixes, NULL at the end)
 * covers, are an error that names them; so is a pattern of `only` that fits none. */
int ma_params_end(ma_params *, const char *const *ignore);

int64_t ma_params_count(const ma_params *); /* elements */
/* Published names and layouts. type: f32, f16 or bf16 in the file. More than max_bytes (0: no limit): shards and an
 * index. path: the file, …safetensors. */
int ma_params_save(ma_params *, const char *path, ma_type, size_t max_bytes, const char *const *meta, ma_err *);
/* Loads values into what is declared, from a file saved so (resuming). */
int ma_params_load(ma_params *, const ma_weights *, ma_err *);

/* Our layout ↔ the file's. in and out do not overlap. */
void ma_layout_to_file(float *out, const float *in, ma_layout, int nd, const int64_t *n);
void ma_layout_from_file(float *out, const float *in, ma_layout, int nd, const int64_t *n);

#endif
