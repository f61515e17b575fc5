/* op: what a kernel sees. The table of a device maps each op to a forward and a backward function; kernels/NAME/op.c
 * hold the bodies. A kernel looks at the ma_call it is given and at nothing else.
 *
 * Layout: dense, row-major. Images and videos are channels-last, (B,T,H,W,C); tokens (B,L,C); heads (B,L,H,D).
 * Attributes stand in f[] and i[] as the comments at the op's function in ops.h number them.
 */
#ifndef MA_OP_H
#define MA_OP_H

#include "array.h"

#define MA_DIMS 5

/* A tensor on a device. */
typedef struct ma_tensor {
    ma_type type;
    int nd;
    bool want;               /* a gradient must reach it */
    bool leaf;               /* a parameter or a marked input: its gradient outlives the backward pass */
    bool kept;               /* lives as long as the context, not on the activation stack */
    int64_t n[MA_DIMS];
    void *data;              /* on the device; NULL in a plan */
    struct ma_tensor *grad;  /* same shape; NULL until something is to be added to it. Type f32 for leaves */
    struct ma_tensor *base;  /* a view: shares data and gradient of base, from element `offset` on */
    int64_t offset;
} ma_tensor;

int64_t ma_count(const ma_tensor *); /* elements */
size_t ma_bytes(const ma_tensor *);

/* Activations that can be fused behind a linear map or a convolution. */
typedef enum { MA_NONE, MA_RELU, MA_SIGMOID, MA_TANH, MA_SILU, MA_GELU, MA_GELU_TANH } ma_act;

/* Every op has a forward function; these have a backward one, too: all but RAFT's look-up and upsampling, which are
 * only ever run. */
#define MA_OPS_BACKWARD(X)                                                                                             \
    X(LINEAR, linear)                                                                                                  \
    X(MATMUL, matmul)                                                                                                  \
    X(CONV, conv)                                                                                                      \
    X(CONV_TRANSPOSE, conv_transpose)                                                                                  \
    X(ATTENTION, attention)                                                                                            \
    X(LAYER_NORM, layer_norm)                                                                                          \
    X(MODULATE, modulate)                                                                                              \
    X(GATE, gate)                                                                                                      \
    X(GROUP_NORM, group_norm)                                                                                          \
    X(ROPE, rope)                                                                                                      \
    X(ACT, act)                                                                                                        \
    X(ADD, add)                                                                                                        \
    X(MUL, mul)                                                                                                        \
    X(LERP, lerp)                                                                                                      \
    X(AFFINE, affine)                                                                                                  \
    X(CONCAT, concat)                                                                                                  \
    X(SLICE, slice)                                                                                                    \
    X(UNPATCH, unpatch)                                                                                                \
    X(RESIZE, resize)                                                                                                  \
    X(POOL, pool)                                                                                                      \
    X(L1, l1)                                                                                                          \
    X(MSE, mse)                                                                                                        \
    X(RELATION, relation)                                                                                              \
    X(COSINE, cosine)
#define MA_OPS(X)                                                                                                      \
    MA_OPS_BACKWARD(X)                                                                                                 \
    X(CORR_LOOKUP, corr_lookup)                                                                                        \
    X(UPSAMPLE_CONVEX, upsample_convex)

#define MA_OP_ENUM(UPPER, lower) MA_OP_##UPPER,
typedef enum { MA_OPS(MA_OP_ENUM) MA_NOPS } ma_op;
#undef MA_OP_ENUM

/* One call of an op: all that a kernel may look at. */
typedef struct ma_call {
    ma_op op;
    double f[4];
    int64_t i[12];
    ma_tensor *in[8], *out; /* in[k] may be NULL where the op says so */
    ma_tensor *save[3];     /* forward writes, backward reads; NULL where no gradient is wanted */
    void *work;             /* as many bytes as the device's work() asked for */
    void *stream;
} ma_call;

typedef int (*ma_kernel)(const ma_call *); /* 0, or -1: not supported for these types or shapes */

/* One parameter as the optimiser sees it: fp32 state beside storage of any type. */
typedef struct ma_slot {
    void *data;                    /* storage, of `type` */
    ma_type type;
    float *master;                 /* fp32 copy; NULL where data is fp32 itself */
    float *grad, *m, *v;           /* fp32 */
    int64_t count;
    double decay;                  /* weight decay, decoupled */
} ma_slot;

typedef struct ma_adam {
    double lr, beta1, beta2, eps;
    double clip;                   /* factor on every gradient (clipping, 1/accumulation) */
    int64_t step;                  /* from 1: bias correction */
} ma_adam;

/* A device: memory, the op table, the optimiser. All calls are in order on one stream; get() waits for it. */
typedef struct ma_device {
    const char *name;
    bool plan;                                             /* sizes only: nothing is computed, addresses are NULL */
    void *(*alloc)(struct ma_device *, size_t);            /* 256-byte aligned; NULL: out of memory */
    void (*release)(struct ma_device *, void *);
    int (*put)(struct ma_device *, void *dst, const void *host, size_t);
    int (*get)(struct ma_device *, void *host, const void *src, size_t);
    int (*move)(struct ma_device *, void *dst, const void *src, size_t); /* may overlap when dst < src */
    int (*zero)(struct ma_device *, void *dst, size_t);
    int (*cast)(struct ma_device *, void *dst, ma_type to, const void *src, ma_type from, int64_t n);
    size_t (*work)(struct ma_device *, const ma_call *, bool backward);  /* scratch bytes an op needs */
    int (*squares)(struct ma_device *, const ma_slot *, int n, double *sum);  /* Σ grad², NaN passes through */
    int (*adam)(struct ma_device *, const ma_slot *, int n, const ma_adam *); /* update, then nothing is zeroed */
    ma_kernel fwd[MA_NOPS];                                /* out = f(in) */
    ma_kernel bwd[MA_NOPS];                                /* in[k]->grad += …, for each in[k]->want. NULL: none */
    bool types[MA_TYPES];                                  /* storage types that the kernels take */
    double (*timer)(struct ma_device *, bool stop);        /* start; stop: milliseconds since, by the device's own clock */
    void (*close)(struct ma_device *);                     /* NULL: nothing to give back */
    void (*tf32)(struct ma_device *, bool on);             /* f32 products rounded to tf32; off at first. NULL: never */
    void *stream, *state;
    size_t free_bytes;                                     /* memory there at the start; 0: not known */
    const char *failure;                                   /* the last failure in words, "" before it; NULL: not kept */
} ma_device;

const char *ma_op_name(ma_op);

#endif
