/* keyset: hashes of keys in one open-addressed table. Limits: nothing can be taken out; see keyset.h for false alarms.
 */
#include "keyset.h"
#include <stdlib.h>

/* FNV-1a with a last stir, so that the low bits, which choose the place, depend on all of the key. Never 0. */
static uint64_t hash_of(const char *key) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *key; key++) h = (h ^ (unsigned char)*key) * 0x100000001b3u;
    h = (h ^ h >> 32) * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
    return h ? h : 1;
}

/* Where h is, or the free place where it belongs. At least one place must be free. */
static uint64_t *place(uint64_t *table, size_t room, uint64_t h) {
    size_t i = h & (room - 1);
    while (table[i] && table[i] != h) i = (i + 1) & (room - 1);
    return &table[i];
}

static int grow(ma_keyset *k) {
    size_t room = k->room ? 2 * k->room : 256;
    uint64_t *table = calloc(room, sizeof *table);
    if (!table) return -1;
    for (size_t i = 0; i < k->room; i++)
        if (k->hash[i]) *place(table, room, k->hash[i]) = k->hash[i];
    free(k->hash);
    k->hash = table;
    k->room = room;
    return 0;
}

int ma_keyset_add(ma_keyset *k, const char *key) {
    if (k->n >= k->room / 4 * 3 && grow(k)) return -1;
    uint64_t h = hash_of(key), *at = place(k->hash, k->room, h);
    if (*at) return 0;
    *at = h;
    k->n++;
    return 1;
}

void ma_keyset_free(ma_keyset *k) {
    free(k->hash);
    *k = (ma_keyset){0};
}
