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
 * pass has used them. Workspace is one buffer, as large as the hungriest op. A checkpointed block keeps, beside its
 * inputs, what its attention made: in the pool, while the device has room; where something else needs the room, the
 * oldest is dropped and computed again after all. Neither changes a bit of any result.
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

/* "cpu", "cuda", "cuda:1", "auto" (a GPU if there is one, else the CPU, said in note), "auto:1". plan: a dry run on it.
 */
ma_device *ma_device_open(const char *name, bool plan, char note[160], ma_err *);
void ma_device_close(ma_device *);
/* No more than so many bytes, those that the device takes for itself among them; to be set before the first context. */
void ma_device_limit(ma_device *, size_t bytes);

/* Bytes in use and at the peak, by arena. */
typedef struct ma_memory {
    size_t keep, keep_grad, optimiser, stack, stack_peak, pool, work;
    size_t host;   /* of an optimiser's, beside that; not the device's */
    size_t in_all; /* gone from the device at the peak: these, the ends of chunks, what the driver took for itself */
} ma_memory;
ma_memory ma_ctx_memory(const ma_ctx *);
/* What a user can do where memory runs out: ends the message. "lower --batch". A literal. */
void ma_ctx_lever(ma_ctx *, const char *);

/* Storage type of activations: f32 (the default), bf16, f16. Parameters are made in it too. */
void ma_set_type(ma_ctx *, ma_type);
ma_type ma_get_type(const ma_ctx *);

/* A tensor that lives as long as the context. Contents undefined. ma_leaf makes a tensor one that gathers a gradient
 * (fp32, zero at first, kept). ma_keep_state: ma_keep, counted as an optimiser's; far: in the host's memory, where the
 * device has another. */
ma_tensor *ma_keep(ma_ctx *, ma_type, int nd, const int64_t *n);
ma_tensor *ma_keep_state(ma_ctx *, ma_type, bool far, int nd, const int64_t *n);
ma_tensor *ma_leaf(ma_ctx *, ma_tensor *);
/* A tensor on the activation stack. Contents undefined. */
ma_tensor *ma_new(ma_ctx *, ma_type, int nd, const int64_t *n);
#define MA_SHAPE(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__}

/* Host fp32 ↔ tensor of any type. ma_input: ma_new of the context's type and ma_put in one. */
int ma_put(ma_ctx *, ma_tensor *, const float *);
int ma_get(ma_ctx *, const ma_tensor *, float *);
/* Host values in the tensor's own type, as they are; and a tensor in another type, cast on the device. */
int ma_put_raw(ma_ctx *, ma_tensor *, const void *);
int ma_get_as(ma_ctx *, const ma_tensor *, ma_type, void *);
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

/* block(c, self, in), of which only the result stays on the stack. Where nothing is recorded and the device can, it is
 * launched as one piece from the third time on: when in[] has the shapes, types and addresses of before and the stack
 * is where it was (so: ma_reset, the same inputs in the same order, ma_replay). The block's code is then not run. So
 * what it does may depend on in[], on parameters that stay where they are, and on numbers that key tells apart; what
 * it puts itself (tables, positions) must be the same each time. Reading a tensor within is fine, but such a block is
 * always run as it stands. ma_ctx_replayed: how often each came to pass. */
ma_tensor *ma_replay(ma_ctx *, ma_block, const void *self, ma_tensor **in, int nin, uint64_t key);
typedef struct ma_replayed {
    int64_t run, replayed, refused; /* refused: of those run, the ones that could not be captured */
} ma_replayed;
ma_replayed ma_ctx_replayed(const ma_ctx *);

/* Runs the tape backwards from loss (one element), whose gradient is set to scale; adds to the leaves' gradients; the
 * tape is then empty. Values of activations stay readable until ma_reset. -1: the context has failed. */
int ma_backward(ma_ctx *, ma_tensor *loss, double scale);
/* The same from any tensor: its gradient is set to cotangent (as many fp32 numbers as it has elements, on the host). */
int ma_backward_from(ma_ctx *, ma_tensor *, const float *cotangent);
void ma_zero_grads(ma_ctx *); /* every leaf's: from here on they count as zero, and are set by who would add first */
int ma_settle_grads(ma_ctx *); /* puts the zeros where nothing was added since, for who reads without ma_get */
/* final(self, leaf) is called in the backward passes from here on, as soon as nothing of a pass is left that could add
 * to the leaf's gradient, once a pass at most. A leaf that got none may not be told of. final NULL: nobody is told. */
void ma_on_final(ma_ctx *, void (*final)(void *self, ma_tensor *leaf), void *self);

/* For ops.c: runs the call (out and save already made), records it where wanted. Returns call->out, or NULL. */
ma_tensor *ma_run(ma_ctx *, ma_call *);
/* Whether call->save is to be made: recording, and some in[] wants a gradient; or a checkpoint will keep it. */
bool ma_wanted(const ma_ctx *, const ma_call *);

#endif
