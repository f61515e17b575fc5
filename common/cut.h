/* cut: where the samples of a shard lie, told without decoding them, so that several can be read at once, each alone.
 */
#ifndef MA_CUT_H
#define MA_CUT_H

#include "base.h"

typedef struct ma_cut ma_cut;
/* NULL: not a shard that can be cut, no file at all, or no memory: read it as a stream. */
ma_cut *ma_cut_open(const char *path);
/* 1: a sample's bytes are *from .. *to - 1; 0: that was all, and the end is as it must be; -1: what follows from *from
 * on cannot be cut. */
int ma_cut_next(ma_cut *, int64_t *from, int64_t *to);
void ma_cut_close(ma_cut *);

#endif
