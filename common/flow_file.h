/* flow_file: optical flow as the benchmarks' files have it: Middlebury's and Sintel's .flo, KITTI's 16-bit png. */
#ifndef MA_FLOW_FILE_H
#define MA_FLOW_FILE_H

#include "base.h"

/* A flow field on the host. */
typedef struct ma_flow {
    int64_t h, w;
    float *uv;      /* (h,w,2): u to the right, v down, in pixels */
    uint8_t *valid; /* (h,w): 1 where the flow is known */
} ma_flow;

/* Reads either, told by the first bytes. name: for messages. A .flo of another length than its header says is MA_CUT or
 * MA_CORRUPT; its pixels with |u| or |v| over 1e9, or NaN, are not known, as are those whose mask is 0 in a png. */
int ma_flow_read(const void *bytes, size_t size, const char *name, ma_flow *out, ma_err *);
void ma_flow_free(ma_flow *);

/* Append a file of uv (h,w,2). KITTI: to 1/64 pixel, ±512; valid (h,w), or NULL: all. */
int ma_flo_write(const float *uv, int64_t h, int64_t w, ma_buf *out, ma_err *);
int ma_kitti_write(const float *uv, const uint8_t *valid, int64_t h, int64_t w, ma_buf *out, ma_err *);

#endif
