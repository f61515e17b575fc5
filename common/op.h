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
    int uses;                /* of a leaf: calls still to come in the backward pass that may add to its gradient */
    bool fresh;              /* a gradient that nothing has been added to: zero, whatever stands in its memory */
} ma_tensor;

int64_t ma_count(const ma_tensor *); /* elements */
size_t ma_bytes(const ma_tensor *);

/* Activations that can be fused behind a linear map or a convolution. */
typedef enum { MA_NONE, MA_RELU, MA_SIGMOID, MA_TANH, MA_SILU, MA_GELU, MA_GELU_TANH } ma_act;

/* Every op has a forward function; these have a backward one, too: all but what RAFT, the autoencoder and the text
 * encoder have for themselves, which is only ever run. */
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
    X(EMBED, embed)                                                                                                    \
    X(RMS_NORM, rms_norm)                                                                                              \
    X(LINEAR_ADD, linear_add)                                                                                          \
    X(ATTENTION_RELATIVE, attention_relative)                                                                          \
    X(CORR_LOOKUP, corr_lookup)                                                                                        \
    X(UPSAMPLE_CONVEX, upsample_convex)                                                                                \
    X(GRU_RESET, gru_reset)                                                                                            \
    X(GRU_UPDATE, gru_update)                                                                                          \
    X(CAST, cast)                                                                                                      \
    X(PIXELS, pixels)                                                                                                  \
    X(DIFFUSE, diffuse)                                                                                                \
    X(MOMENTS, moments)                                                                                                \
    X(CAUSAL_NORM, causal_norm)

#define MA_OP_ENUM(UPPER, lower) MA_OP_##UPPER,
typedef enum { MA_OPS(MA_OP_ENUM) MA_NOPS } ma_op;
#undef MA_OP_ENUM

/* One call of an op: all that a kernel may look at. */
typedef struct ma_call {
    ma_op op;
    double f[6];
    int64_t i[12];
    ma_tensor *in[8], *out; /* in[k] may be NULL where the op says so */
    ma_tensor *save[3];     /* forward writes, backward reads; NULL where no gradient is wanted */
    unsigned fresh;         /* backward: bit k: in[k]->grad holds nothing yet and is to be set, not added to */
    void *work;             /* as many bytes as the device's work() asked for */
    void *stream;
} ma_call;

typedef int (*ma_kernel)(const ma_call *); /* 0, or -1: not supported for these types or shapes */

static inline bool ma_fresh(const ma_call *call, int k) {
    return call->fresh >> k & 1;
}

/* One parameter as the optimiser sees it: its state beside storage of any type. */
typedef struct ma_slot {
    void *data;                    /* storage, of `type` */
    ma_type type;
    float *master;                 /* fp32 copy; NULL where data is fp32 itself */
    float *grad;
    void *m, *v;                   /* moments, of a type that ma_adam says */
    int64_t count;
    int64_t number;                /* of the parameter, for dithering */
    double decay;                  /* weight decay, decoupled */
} ma_slot;

typedef struct ma_adam {
    double lr, beta1, beta2, eps;
    double clip;                   /* factor on every gradient (clipping, 1/accumulation) */
    int64_t step;                  /* from 1: bias correction */
    ma_type state;                 /* of m and v: f32, or bf16, stochastically rounded (kernels/dither.h) */
    bool far;                      /* m, v and master came from alloc_host */
} ma_adam;

/* A piece of memory that the devices of a team share in, alike on all: count is fp32 numbers where they are summed,
 * bytes where they are spread. */
typedef struct ma_piece {
    void *data;
    size_t count;
    int owner;                     /* a rank */
} ma_piece;

typedef enum { MA_SUM_ALL, MA_SUM_OWNER, MA_SPREAD } ma_share; /* sums for all; for the owner alone; the owner's bytes for all */

struct ma_device;

/* Devices of several processes that work as one. What is shared waits for all that was queued before it, and runs beside
 * what is queued after it, up to wait(). 0, or -1 with ->failure. */
typedef struct ma_team_ops {
    size_t reserve;                                                  /* about what it takes of the device's memory */
    size_t bucket;                                                   /* bytes that are worth being shared at once */
    int (*open)(struct ma_device *);
    int (*id)(struct ma_device *, char id[128]);                     /* by one of them, for all */
    int (*join)(struct ma_device *, const char id[128], int rank, int count); /* returns when all have */
    int (*share)(struct ma_device *, ma_share, const ma_piece *, int n);      /* by all alike, in the same order */
    int (*wait)(struct ma_device *);                                 /* what is queued from here on comes after it */
    int (*finish)(struct ma_device *);                               /* returns when all that was shared has come */
    void (*abort)(struct ma_device *); /* from any thread: all of these fail from now on, and what runs ends */
} ma_team_ops;

/* A device: memory, the op table, the optimiser. All calls are in order on one stream; get() waits for it. */
typedef struct ma_device {
    const char *name;
    bool plan;                                             /* sizes only: nothing is computed, addresses are NULL */
    void *(*alloc)(struct ma_device *, size_t);            /* 256-byte aligned; NULL: out of memory */
    void (*release)(struct ma_device *, void *);
    /* The host's memory, which put, get, move, zero, cast to another type and adam take for the
     * device's. Both NULL: it is. */
    void *(*alloc_host)(struct ma_device *, size_t);       /* 256-byte aligned; NULL: out of memory */
    void (*release_host)(struct ma_device *, void *);
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
    unsigned sets[MA_NOPS];                                /* bit k: bwd can set in[k]->grad: it writes all of it */
    bool types[MA_TYPES];                                  /* storage types that the kernels take */
    double (*timer)(struct ma_device *, bool stop);        /* start; stop: milliseconds since, by the device's own clock */
    void (*close)(struct ma_device *);                     /* NULL: nothing to give back */
    void (*tf32)(struct ma_device *, bool on);             /* f32 products rounded to tf32; off at first. NULL: never */
    /* Work that is recorded and run again as one (CUDA graphs). capture: from here on launches are noted instead of run;
     * values that put() is given, `puts` bytes at most, become part of the recording. captured: the recording, or NULL:
     * something in it cannot be recorded. All NULL: the device has no such thing. */
    int (*capture)(struct ma_device *, size_t puts);
    void *(*captured)(struct ma_device *);
    int (*replay)(struct ma_device *, void *recording);
    void (*forget)(struct ma_device *, void *recording);
    void *stream, *state;
    size_t free_bytes;                                     /* memory there at the start; 0: not known */
    size_t limit;                                          /* free_bytes was set to it; 0: it is what there was */
    size_t reserve;                                        /* of it, about what the device takes for itself: contexts leave it */
    size_t taken;                                          /* what contexts have now; kept by tensor.c */
    size_t grain;                                          /* large blocks are whole multiples of it; 0: of anything */
    /* Bytes gone from the device's memory since it was opened, whoever took them. NULL: those that contexts have. */
    size_t (*used)(struct ma_device *);
    const char *failure;                                   /* the last failure in words, "" before it; NULL: not kept */
    const ma_team_ops *team;                               /* NULL: none; what is the host's own needs none */
} ma_device;

const char *ma_op_name(ma_op);

#endif
