/* train: the loop that ma-subspace and ma-align share: batches, forward, backward, optimiser, log, checkpoints, resuming.
 *
 * A checkpoint is a folder STATE/step-000100 (state.h) holding what the tool's save() writes, params-K.safetensors (fp32)
 * for what that does not hold bit for bit, optimiser.safetensors and state.json. It is written beside its place, synced
 * and renamed; older ones go afterwards. SIGUSR1 asks for one at the next step's end.
 *
 * Several ranks (team.h) read the same samples in the same order, and of each batch times ranks of them work on a batch
 * each: so what is learnt depends on that product, not on the number of ranks. Rank 0 alone writes. What one rank meets
 * on the way, an error or a signal, all know before the gradients are made, and go on or end alike. */
#ifndef MA_TRAIN_H
#define MA_TRAIN_H

#include "dataset.h"
#include "optim.h"
#include "state.h"

typedef struct ma_train_opts {
    int64_t steps, batch, accumulate, save_every, keep, window, epochs;
    double lr, decay, clip, beta1, beta2;
    int64_t warmup;
    int constant;     /* 0: cosine to zero after warm-up, 1: constant */
    const char *log;  /* JSON lines; NULL: OUT's name with .jsonl */
    bool resume, resume_anyway;
    bool shard;       /* the optimiser's state over the ranks */
    int state;        /* an ma_optim_state */
    int on_nan;       /* a loss or gradient that is not finite. 0: ends the run, 1: the step is left out, counted */
} ma_train_opts;

/* Defaults and the option table's entries; o is a ma_train_opts. */
#define MA_TRAIN_DEFAULTS                                                                                              \
    .steps = 1000, .batch = 8, .accumulate = 1, .save_every = 500, .keep = 1, .window = 256, .clip = 1, .beta1 = 0.9
#define MA_TRAIN_OPTIONS(o)                                                                                            \
    {"steps", 0, MA_OPT_INT, &(o).steps, "N", "optimiser steps", 1, 1e9},                                              \
        {"batch", 0, MA_OPT_INT, &(o).batch, "N", "samples a forward pass, of each rank", 1, 65536},                   \
        {"accumulate", 0, MA_OPT_INT, &(o).accumulate, "N", "forward passes a step", 1, 65536},                        \
        {"epochs", 0, MA_OPT_INT, &(o).epochs, "N", "passes over the input; 0: until --steps (a pipe: 1)", 0, 1e9},    \
        {"window", 0, MA_OPT_INT, &(o).window, "N", "samples held for shuffling; 1: in order", 1, 1e7},                \
        {"lr", 0, MA_OPT_REAL, &(o).lr, "X", "learning rate", 0, 1},                                                   \
        {"warmup", 0, MA_OPT_INT, &(o).warmup, "N", "steps of linear warm-up", 0, 1e9},                                \
        {"lr-schedule", 0, MA_OPT_CHOICE, &(o).constant, "cosine|constant", "after the warm-up", 0, 0},                \
        {"weight-decay", 0, MA_OPT_REAL, &(o).decay, "X", "decoupled weight decay", 0, 10},                            \
        {"beta1", 0, MA_OPT_REAL, &(o).beta1, "X", "AdamW's first beta", 0, 1},                                        \
        {"beta2", 0, MA_OPT_REAL, &(o).beta2, "X", "AdamW's second beta", 0, 1},                                       \
        {"clip", 0, MA_OPT_REAL, &(o).clip, "X", "most the gradient's norm may be; 0: no limit", 0, 1e9},              \
        {"shard-optimizer", 0, MA_OPT_FLAG, &(o).shard, NULL, "each of several ranks holds a part of its state", 0, 0},\
        {"optimizer-state", 0, MA_OPT_CHOICE, &(o).state, "f32|bf16|host",                                             \
         "AdamW's moments: their type, or place (default f32)", 0, 0},                                                 \
        {"save-every", 0, MA_OPT_INT, &(o).save_every, "N", "steps between checkpoints; 0: at the end only", 0, 1e9},  \
        {"keep", 0, MA_OPT_INT, &(o).keep, "N", "checkpoints that stay", 1, 1e6},                                      \
        {"log", 0, MA_OPT_TEXT, &(o).log, "FILE", "JSON lines, one a step (default beside the output)", 0, 0},         \
        {"on-nan", 0, MA_OPT_CHOICE, &(o).on_nan, "stop|skip", "a loss or gradient that is not finite (default stop)", \
         0, 0},                                                                                                        \
        {"resume", 0, MA_OPT_FLAG, &(o).resume, NULL, "go on from the newest checkpoint; none is an error", 0, 0},     \
        {"resume-anyway", 0, MA_OPT_FLAG, &(o).resume_anyway, NULL, "the same, though other options are given", 0, 0}

/* Parts of a loss, for the log: one-element tensors, read after the forward pass. */
typedef struct ma_parts {
    const char *name[8];
    ma_tensor *value[8];
    int n;
} ma_parts;

typedef struct ma_train {
    const ma_cli *cli;
    const ma_train_opts *o;
    ma_ctx *ctx;
    ma_dataset *data;
    ma_tally *tally;
    ma_team *team; /* NULL: alone */
    ma_params *params[4];
    /* Where save() puts params[k] within the folder, exactly as they are; NULL: params-K.safetensors is written. */
    const char *file[4];
    int nparams;
    const char *state; /* folder of checkpoints */
    size_t saved;      /* about how many bytes save() writes */
    void *self;
    /* The loss of n samples, one fp32 element; NULL: the context has failed. The items are there until its value is
     * known. */
    ma_tensor *(*loss)(void *self, const ma_item *, int n, int64_t step, ma_parts *);
    /* Writes what users want of the weights into a folder. NULL: nothing more. */
    int (*save)(void *self, const char *folder, ma_err *);
} ma_train;

/* SIGUSR1 asks for a checkpoint from here on, where it would end the program. ma_train_run does so by itself. */
void ma_train_signals(void);
/* Trains; -1: the reason is in e, and the newest checkpoint is whole. What was reached stands in *steps. The last
 * checkpoint is always written, also when stopped by a signal (then e says so). */
int ma_train_run(const ma_train *, int64_t *steps, ma_err *e);

/* Member k of n items as one tensor (n, …), of the context's type or fp32. NULL: an optional one that is not there, or
 * the context has failed. */
ma_tensor *ma_items_tensor(ma_ctx *, const ma_item *, int n, int k, bool f32);
/* The same in the type that the first has, f16 or f32; others are cast to it. */
ma_tensor *ma_items_raw(ma_ctx *, const ma_item *, int n, int k);

/* The plan of it, on a device that only counts: the optimiser's state and one forward and backward pass over a batch of
 * the first sample's shapes; no sample is drawn. What that takes stands in the context; *samples: of the batch. */
int ma_train_plan(const ma_train *, int64_t *samples, ma_err *e);
/* About the bytes of a checkpoint, once that or the optimiser is made. */
size_t ma_train_bytes(const ma_train *);

#endif
