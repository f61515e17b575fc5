/* encoder: the frozen encoders behind one interface. Each is named by a text, KIND=WHAT,NAME=VALUE,…, and makes one
 * member of a sample out of its clip or its caption. A new kind is a row in encoder.c's table.
 *
 *     encoder *x = encoder_open(ctx, "videomae=FILE,size=160x240", &clip_size, seed, &err);
 *     encoder_settle(x, plan, &err);                       when all encoders of the run are open
 *     encoder_take(x, &source, &item, &why);               a sample's frames or tokens; on any thread
 *     encoder_run(x, items, n, batch, &err);               on the context's thread
 *     encoder_put(x, &item, sample, &why);                 the member; on any thread
 *     encoder_drop(&item);
 */
#ifndef MA_ENCODER_H
#define MA_ENCODER_H

#include "../shard.h"
#include "../tensor.h"
#include "../video.h"

#include <cjson/cJSON.h>

typedef struct encoder encoder;

/* clip: the size of the clips to come. seed: of drawn weights. NULL: e says why; MA_USAGE where the text is wrong or
 * does not go with the clip. Valid as long as the context. */
encoder *encoder_open(ma_ctx *, const char *text, const ma_clip_size *clip, uint64_t seed, ma_err *e);
/* Decides what depends on the memory that is left, such as tiles. plan: a plan of the context's device. */
int encoder_settle(encoder *, ma_device *plan, ma_err *);
void encoder_close(encoder *);

const char *encoder_name(const encoder *);        /* of its kind: "videomae" */
const char *encoder_member(const encoder *);      /* "videomae.npy" */
const char *encoder_weights(const encoder *);     /* SHA-256 of the weights, or what was drawn; NULL: none, or a plan */
bool encoder_drawn(const encoder *);              /* the weights depend on the seed */
bool encoder_reads(const encoder *);              /* captions; else it sees clips */
cJSON *encoder_options(const encoder *);          /* its settings, for KEY.json; NULL: out of memory */
int encoder_shape(const encoder *, int64_t n[4]); /* of a sample's member; returns the dimensions */
int encoder_rank(const encoder *);                /* those of lower rank run first: they need more memory at a time */
const char *encoder_kind_member(const char *name); /* what the kind of that name makes; NULL: there is none */

/* What there is of a sample. */
typedef struct encoder_source {
    const char *key;
    const ma_clip *clip; /* of the size that encoder_open was told; NULL for those that read */
    const char *text;    /* the caption, of `size` bytes; NULL for those that see */
    size_t size;
} encoder_source;

/* A sample as one encoder takes it, and what becomes of it. Zero-initialised is empty. */
typedef struct encoder_item {
    const uint8_t *rgb; // (T,H,W,3), what the network sees: of the clip, or `room`
    uint8_t *room;
    int32_t *ids;   // (L), the caption's tokens
    int64_t tokens; /* all that the caption makes; more than L: it was cut */
    ma_buf npy;     /* the member, and in it … */
    uint16_t *half; /* … its values, as the network lays them out */
    size_t bytes;   /* of room and the member */
} encoder_item;

/* The clip must stay as long as the item. -1: why it is a bad sample. */
int encoder_take(const encoder *, const encoder_source *, encoder_item *, ma_err *why);
void encoder_drop(encoder_item *);

/* The network over n items, `batch` at a time. -1: the run is over; without a word in e: it was stopped. */
int encoder_run(encoder *, encoder_item *const *, int n, int batch, ma_err *);
/* Puts the member. NaN, infinity, or a value beyond half precision: MA_NOTFINITE. */
int encoder_put(const encoder *, encoder_item *, ma_sample *, ma_err *why);

/* A dry run of n samples at a time: what it is and makes, in lines, is added to text. */
int encoder_plan(encoder *, int n, ma_buf *text, ma_err *);

#endif
