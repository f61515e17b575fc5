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

/* frames u8 (B,F,H,W,3), B clips, RGB, H and W multiples of 8 and ≥ 128 → of every clip the flow from frame from+k to
 * frame to+k for every k < n, clip by clip: fp32 (B·n,1,H,W,2), u, v in pixels. Every frame is looked at once. */
ma_tensor *raft_between(ma_ctx *, const raft *, ma_tensor *frames, int64_t n, int64_t from, int64_t to, int updates);

/* How frames are padded: to multiples of 8, split on both sides ("sintel"), and at least 128: top, left, and the padded
 * height and width. */
void raft_padding(int64_t h, int64_t w, int64_t pad[4]);
/* Pads a frame (H,W,3) so, by replication, to out (PH,PW,3); both on the host. */
void raft_pad(const uint8_t *rgb, int64_t h, int64_t w, uint8_t *out);

#endif
