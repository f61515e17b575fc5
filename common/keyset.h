/* keyset: the keys that a shard has had so far, to tell one that comes again. */
#ifndef MA_KEYSET_H
#define MA_KEYSET_H
#include "base.h"

/* Zero-initialised is empty. Only 64-bit hashes are kept (8 to 16 bytes a key): among a million keys the odds that two
 * different ones are taken for the same are 1 in 37 million. */
typedef struct ma_keyset {
    uint64_t *hash; /* open addressing; 0: free */
    size_t n, room; /* room: a power of two */
} ma_keyset;

int ma_keyset_add(ma_keyset *, const char *key); /* 1: new; 0: was there; -1: out of memory */
void ma_keyset_free(ma_keyset *);                /* leaves it empty */

#endif
