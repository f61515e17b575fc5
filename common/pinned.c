/* pinned: see pinned.h. A list of idle blocks for each size, the one that came back last first; a block's own first
 * bytes link it to the next.
 *
 * Limits: blocks of SIZES sizes, those that come first, or a file whose arrays all differ would leave one of each.
 * Nothing goes back to the device before the end. A device that refused once is not asked again: that is slow, and the
 * next sample is no smaller. */
#include "pinned.h"
#include "op.h"

#include <pthread.h>
#include <stdlib.h>

enum { SIZES = 16, GRAIN = 1 << 16 };

typedef struct block {
    struct block *next;
} block;

struct ma_pinned {
    ma_device *dev;
    pthread_mutex_t lock; /* for all below */
    struct {
        size_t size;
        block *idle;
    } of[SIZES];
    int sizes;
    bool full; /* the device gave no more */
};

ma_pinned *ma_pinned_new(ma_device *dev) {
    if (!dev || dev->plan || !dev->alloc_host) return NULL;
    ma_pinned *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->dev = dev;
    pthread_mutex_init(&p->lock, NULL);
    return p;
}

/* The place of a size in the table, which may be new; -1: it is full, or there is no such size. */
static int find(ma_pinned *p, size_t size) {
    int k = 0;
    if (!size || size > PTRDIFF_MAX) return -1;
    size = (size + GRAIN - 1) / GRAIN * GRAIN;
    while (k < p->sizes && p->of[k].size != size) k++;
    if (k == SIZES) return -1;
    if (k == p->sizes) p->of[p->sizes++].size = size;
    return k;
}

void *ma_pinned_take(ma_pinned *p, size_t size) {
    pthread_mutex_lock(&p->lock);
    const int k = find(p, size);
    block *b = k < 0 ? NULL : p->of[k].idle;
    if (b) {
        p->of[k].idle = b->next;
    } else if (k >= 0 && !p->full) {
        b = p->dev->alloc_host(p->dev, p->of[k].size);
        p->full = !b;
    }
    pthread_mutex_unlock(&p->lock);
    return b;
}

void ma_pinned_give(ma_pinned *p, void *data, size_t size) {
    if (!data) return;
    block *b = data;
    pthread_mutex_lock(&p->lock);
    const int k = find(p, size); /* it was taken, so it is there */
    b->next = p->of[k].idle;
    p->of[k].idle = b;
    pthread_mutex_unlock(&p->lock);
}

void ma_pinned_free(ma_pinned *p) {
    if (!p) return;
    for (int k = 0; k < p->sizes; k++)
        for (block *b = p->of[k].idle, *next; b; b = next) {
            next = b->next;
            p->dev->release_host(p->dev, b);
        }
    pthread_mutex_destroy(&p->lock);
    free(p);
}
