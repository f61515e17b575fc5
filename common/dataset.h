/* dataset: samples as training sees them. A seeded window of samples is kept; each draw takes one at random out of it
 * and refills it from the stream; at an epoch's end the window is emptied before the next begins. The order depends on
 * (seed, window, files) alone, not on the threads that read ahead, so a run that is resumed skips what it has drawn and
 * goes on where it was. */
#ifndef MA_DATASET_H
#define MA_DATASET_H

#include "pinned.h"
#include "stage.h"

enum { MA_ITEM_ARRAYS = 4 };

/* A sample's arrays in the order of the members asked for; data NULL: an optional one that is not there. */
typedef struct ma_item {
    char *key;
    ma_array a[MA_ITEM_ARRAYS];
    ma_sample *sample; /* whose key and arrays these are; NULL: the item's own */
    unsigned far;      /* bit k: a[k] is a block of pinned, which the device reads itself: until then it must stay */
    ma_pinned *pinned;
} ma_item;

typedef struct ma_dataset_opts {
    const ma_cli *cli; /* inputs; messages */
    const char *member[MA_ITEM_ARRAYS];
    bool optional[MA_ITEM_ARRAYS];
    int members;
    int64_t window; /* 1: in the order of the files */
    uint64_t seed;
    int64_t epochs;           /* 0: without end, or once where the input can be read once only */
    ma_tally *tally;          /* samples with a missing member, a shape unlike the first one's, or a NaN are skipped,
                                 and in the first epoch named and counted; NULL: in silence */
    struct ma_device *device; /* arrays are put where it reads them itself, as far as there is such memory and room in
                                 it; NULL: nowhere but where they were read */
} ma_dataset_opts;

typedef struct ma_dataset ma_dataset;
/* Whether the inputs can be read once only: they are, or hold, standard input or a pipe. */
bool ma_dataset_once(const ma_cli *);
ma_dataset *ma_dataset_open(const ma_dataset_opts *, ma_err *);
/* 1: an item (ma_item_free); 0: the last epoch is over; -1: error. */
int ma_dataset_next(ma_dataset *, ma_item *, ma_err *);
/* Shape and type of a member as the first good sample has it, no data; reads that far. NULL: error, or no sample has
 * it. */
const ma_array *ma_dataset_shape(ma_dataset *, int member, ma_err *);
double ma_dataset_waited(ma_dataset *); /* seconds spent in next since the last call */
void ma_dataset_close(ma_dataset *);    /* its items must have been freed */
void ma_item_free(ma_item *);

#endif
