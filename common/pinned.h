/* pinned: blocks of the host's memory that a device takes for its own (alloc_host of op.h), lent and taken back, so
 * that what threads put there goes to the device without another copy. Making one takes milliseconds, so they are kept.
 */
#ifndef MA_PINNED_H
#define MA_PINNED_H

#include <stddef.h>

struct ma_device;
typedef struct ma_pinned ma_pinned;

/* NULL: the device has no such memory, as it needs none or only counts; or out of memory. */
ma_pinned *ma_pinned_new(struct ma_device *);
/* These two on any thread. take: NULL: there is no more to be had. give: of the size that was asked for; the device
 * must be done with it. NULL is fine. */
void *ma_pinned_take(ma_pinned *, size_t size);
void ma_pinned_give(ma_pinned *, void *, size_t size);
void ma_pinned_free(ma_pinned *); /* when all blocks have come back */

#endif
