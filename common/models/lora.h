/* lora: low-rank adapters of a network's linear maps, y = Wx + alpha/rank·B(Ax) (Hu et al. 2021), and the file of them
 * that diffusers' load_lora_weights reads: pytorch_lora_weights.safetensors, transformer.MODULE.lora_{A,B}.weight, rank
 * and alpha in the metadata.
 *
 *     lora *l = lora_new(ctx, 64, 64, LORA_TARGETS, seed);      to train: A drawn, B zero
 *     lora *l = lora_open(ctx, "OUT", &err);                    to use
 *     cogvideox_adapt(net, l);                                  the network asks for a pair for each of its maps
 *     lora_merge(l, 1);                                         W += …: the network is then one without adapters
 */
#ifndef MA_LORA_H
#define MA_LORA_H

#include "../ops.h"
#include "../param.h"

#define LORA_FILE    "pytorch_lora_weights.safetensors"
#define LORA_META    "lora_adapter_metadata" /* of the file's __metadata__: a LoraConfig */
#define LORA_TARGETS "to_q,to_k,to_v,to_out.0"

/* Beside a weight (out, in): a (rank, in), b (out, rank). All zero: no adapter. */
typedef struct lora_pair {
    ma_tensor *a, *b;
    double scale;
} lora_pair;

typedef struct lora lora;

/* targets: the ends of modules' names, by commas. NULL: the context has failed. */
lora *lora_new(ma_ctx *, int64_t rank, double alpha, const char *targets, uint64_t seed);
/* path: the file, or the folder that holds it. Alpha is the metadata's, or MODULE.alpha, or else the rank. */
lora *lora_open(ma_ctx *, const char *path, ma_err *);
/* What lora_open reads, for fingerprints; and whether path is such a file or folder at all. */
ma_weights *lora_weights(const char *path, ma_err *);
bool lora_is(const char *path);
void lora_free(lora *); /* the tensors belong to the context */

/* For networks: the pair for a module, whose weight is w, where it is to have one. pair stays where it is. */
int lora_adapt(lora *, const char *module, ma_tensor *w, lora_pair *pair);
/* After the last module: a target, or a name in the file, that fits none is an error. -1: the context has failed. */
int lora_end(lora *);
/* act(y + scale·b(a·x)) */
ma_tensor *lora_add(ma_ctx *, const lora_pair *, ma_tensor *x, ma_tensor *y, ma_act);

ma_params *lora_params(lora *);
int lora_save(lora *, const char *path, ma_err *);
/* Adds strength times what the adapters do to the weights themselves, and takes them out of the network. */
int lora_merge(lora *, double strength);
/* ma_params.edit of the network's parameters, self a lora: what is saved is merged, what is trained is not. */
int lora_edit(void *self, const char *name, float *values, ma_err *);

#endif
