/* far: the CPU as a device beside the host, whose memory it reads itself, late: what was read from there and is another
 * by the time the device is waited for (get) had been given back too early.
 * What a block holds at first is nothing. */
#ifndef FAR_H
#define FAR_H
#include "../../common/tensor.h"

#include <pthread.h>
#include <string.h>

enum { FAR_MOST = 4096 };

static struct far_state {
    ma_device dev; /* the CPU's, changed */
    ma_device *cpu;
    struct far_block {
        char *data;
        size_t size;
    } block[FAR_MOST];
    struct far_read {
        const char *from;
        char *was;
        size_t size;
    } read[FAR_MOST];
    pthread_mutex_t lock;              /* for the blocks, which any thread may ask for */
    int blocks, ever, most, reads;     /* blocks: there are, have been, at most; reads: not waited for yet */
    int all, early, unwaited, refused; /* of all reads; refused: asked for a block beyond most */
    int casts, fail_at;                /* of casts the one that fails; 0: none */
} far;

static void far_settle(void) {
    for (int k = 0; k < far.reads; k++) {
        far.early += memcmp(far.read[k].from, far.read[k].was, far.read[k].size) != 0;
        free(far.read[k].was);
    }
    far.reads = 0;
}

static void *far_alloc(ma_device *d, size_t size) {
    char *p = NULL;
    pthread_mutex_lock(&far.lock);
    if (far.blocks == far.most)
        far.refused++;
    else if ((p = d->alloc(d, size)))
        far.block[far.blocks++] = (struct far_block){memset(p, 0xa5, size), size}, far.ever++;
    pthread_mutex_unlock(&far.lock);
    return p;
}

static void far_release(ma_device *d, void *p) {
    int k = 0;
    far.unwaited += far.reads > 0;
    while (k < far.blocks && far.block[k].data != p) k++;
    if (k < far.blocks) far.block[k] = far.block[--far.blocks];
    d->release(d, p);
}

static bool is_far(const char *p) {
    bool is = false;
    pthread_mutex_lock(&far.lock);
    for (int k = 0; k < far.blocks; k++) is |= p >= far.block[k].data && p < far.block[k].data + far.block[k].size;
    pthread_mutex_unlock(&far.lock);
    return is;
}

static int far_move(ma_device *d, void *dst, const void *src, size_t size) {
    if (is_far(src) && far.reads < FAR_MOST) {
        char *was = malloc(size);
        far.read[far.reads++] = (struct far_read){src, memcpy(was, src, size), size};
        far.all++;
    }
    return far.cpu->move(d, dst, src, size);
}

static int far_get(ma_device *d, void *host, const void *src, size_t size) {
    far_settle();
    return far.cpu->get(d, host, src, size);
}

static int far_cast(ma_device *d, void *dst, ma_type to, const void *src, ma_type from, int64_t n) {
    return ++far.casts == far.fail_at ? -1 : far.cpu->cast(d, dst, to, src, from, n);
}

static ma_device *far_open(int most) {
    char note[160];
    memset(&far, 0, sizeof far);
    pthread_mutex_init(&far.lock, NULL);
    far.cpu = ma_device_open("cpu", false, note, NULL);
    far.dev = *far.cpu;
    far.dev.alloc_host = far_alloc;
    far.dev.release_host = far_release;
    far.dev.move = far_move;
    far.dev.get = far_get;
    far.dev.cast = far_cast;
    far.most = most;
    return &far.dev;
}

#endif
