/* tensor: context, arenas, tape. Ops (ops.h) run at once and leave a record on the tape where a gradient is wanted.
 *
 *     ma_ctx *c = ma_ctx_new(device, &err);
 *     ma_tensor *loss = ma_l1(c, model_forward(c, net, x), target);
 *     ma_backward(c, loss, 1.0);            gradients are added to the leaves' ->grad
 *     ma_reset(c);                          every activation is gone; parameters stay
 *     if (ma_failed(c)) … ma_ctx_err(c)->text
 *
 * An op given NULL returns NULL and the context keeps its first error, so models are free of checks.
 *
 * Memory: parameters, their gradients and other tensors made by ma_keep live as long as the context. Activations are a
 * stack: ma_mark and ma_rewind. Gradients of activations come from a pool and go back to it as soon as the backward
 * pass has used them. Workspace is one buffer, as large as the hungriest op.
 */
#ifndef MA_TENSOR_H
#define MA_TENSOR_H

#include "op.h"

typedef struct ma_ctx ma_ctx;

ma_ctx *ma_ctx_new(ma_device *, ma_err *);
void ma_ctx_free(ma_ctx *);
ma_device *ma_ctx_device(ma_ctx *);
ma_err *ma_ctx_err(ma_ctx *);
bool ma_failed(const ma_ctx *);
int ma_ctx_failed(const ma_ctx *, ma_err *); /* -1, and its error in e, where it has failed; else 0 */

/* "cpu", "cuda", "cuda:1", "auto" (a GPU if there is one, else the CPU, said in note). plan: a dry run on it. */
ma_device *ma_device_open(const char *name, bool plan, char note[160], ma_err *);
void ma_device_close(ma_device *);

/* Bytes in use and at the peak, by arena. */
typedef struct ma_memory {
    size_t keep, keep_grad, stack, stack_peak, pool, work;
} ma_memory;
ma_memory ma_ctx_memory(const ma_ctx *);

/* Storage type of activations: f32 (the default), bf16, f16. Parameters are made in it too. */
void ma_set_type(ma_ctx *, ma_type);
ma_type ma_get_type(const ma_ctx *);

/* A tensor that lives as long as the context. Contents undefined. ma_leaf makes a tensor one that gathers a gradient
 * (fp32, zero at first, kept). */
ma_tensor *ma_keep(ma_ctx *, ma_type, int nd, const int64_t *n);
ma_tensor *ma_leaf(ma_ctx *, ma_tensor *);
/* A tensor on the activation stack. Contents undefined. */
ma_tensor *ma_new(ma_ctx *, ma_type, int nd, const int64_t *n);
#define MA_SHAPE(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__}

/* Host fp32 ↔ tensor of any type. ma_input: ma_new of the context's type and ma_put in one. */
int ma_put(ma_ctx *, ma_tensor *, const float *);
int ma_get(ma_ctx *, const ma_tensor *, float *);
ma_tensor *ma_input(ma_ctx *, const float *, int nd, const int64_t *n);
ma_tensor *ma_input_f32(ma_ctx *, const float *, int nd, const int64_t *n); /* fp32 whatever the context's type: losses' targets, coordinates */
double ma_scalar(ma_ctx *, const ma_tensor *); /* the value of a one-element tensor */

/* The same data under another shape; shares the gradient. A view lives as long as what it shows; asking twice for the
 * same view of a kept tensor gives the same descriptor. */
ma_tensor *ma_view(ma_ctx *, ma_tensor *, int nd, const int64_t *n);
/* Rows from, …, from+count-1 of the first dimension; shares data and gradient. */
ma_tensor *ma_rows(ma_ctx *, ma_tensor *, int64_t from, int64_t count);

/* The activation stack. Rewinding to a mark frees every tensor made since (descriptors too) and forgets its records. */
typedef struct ma_mark_t {
    size_t chunk, used, tensors, tape, bytes;
} ma_mark_t;
ma_mark_t ma_mark(const ma_ctx *);
void ma_rewind(ma_ctx *, ma_mark_t);
/* Rewinds to the mark but carries these n tensors over, in order (data moved down, descriptors made anew in place). No
 * record may refer to them. */
void ma_rewind_keep(ma_ctx *, ma_mark_t, ma_tensor **t, int n);
void ma_reset(ma_ctx *); /* rewinds to the beginning */

/* While off, nothing is recorded and nothing is saved for a backward pass. Returns what it was. */
bool ma_recording(ma_ctx *, bool on);
bool ma_recorded(const ma_ctx *); /* whether it is on */

/* A block whose activations are not kept: forward without records, forward again in the backward pass. The block must
 * read activations only through in[]; its parameters are reached through self. Returns one tensor. */
typedef ma_tensor *(*ma_block)(ma_ctx *, const void *self, ma_tensor **in);
ma_tensor *ma_checkpoint(ma_ctx *, ma_block, const void *self, ma_tensor **in, int nin);

/* Runs the tape backwards from loss (one element), whose gradient is set to scale; adds to the leaves' gradients; the
 * tape is then empty. Values of activations stay readable until ma_reset. -1: the context has failed. */
int ma_backward(ma_ctx *, ma_tensor *loss, double scale);
/* The same from any tensor: its gradient is set to cotangent (as many fp32 numbers as it has elements, on the host). */
int ma_backward_from(ma_ctx *, ma_tensor *, const float *cotangent);
int ma_zero_grads(ma_ctx *); /* every leaf's */

/* For ops.c: runs the call (out and save already made), records it where wanted. Returns call->out, or NULL. */
ma_tensor *ma_run(ma_ctx *, ma_call *);
bool ma_wanted(const ma_ctx *, const ma_call *); /* recording, and some in[] wants a gradient */

#endif
