/* raft: optical flow (Teed & Deng 2020), large and small, princeton-vl's and torchvision's names. */
#ifndef MA_RAFT_H
#define MA_RAFT_H

#include "../ops.h"
#include "../param.h"

typedef struct raft raft;

/* Flavour and naming told by the keys; prefix "module." accepted. Batch norm is folded. Forward only. */
raft *raft_load(ma_ctx *, const ma_weights *);
void raft_free(raft *);
const char *raft_flavour(const raft *); /* "RAFT-small, princeton-vl" */

/* a, b (B,1,H,W,3), RGB 0..255, H and W multiples of 8 and ≥ 128 → flow a→b (B,1,H,W,2): u, v in pixels. */
ma_tensor *raft_forward(ma_ctx *, const raft *, ma_tensor *a, ma_tensor *b, int updates);

/* How frames are padded: to multiples of 8, split on both sides ("sintel"), and at least 128: top, left, and the padded
 * height and width. */
void raft_padding(int64_t h, int64_t w, int64_t pad[4]);
/* Pads host frames (n,H,W,3) so, by replication. Freed with ma_release; NULL: out of memory. */
float *raft_pad(const uint8_t *rgb, int64_t n, int64_t h, int64_t w, int64_t pad[4]);

#endif
