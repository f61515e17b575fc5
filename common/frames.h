/* frames: a generated clip on its way into a file, frames as they come. */
#ifndef MA_FRAMES_H
#define MA_FRAMES_H

#include "video.h"

typedef enum { MA_FRAMES_MP4, MA_FRAMES_PNG, MA_FRAMES_Y4M, MA_FRAMES_NPY } ma_frames_format;
const char *ma_frames_ext(ma_frames_format); /* ".mp4", …; "" for png, which is a folder */

typedef struct ma_frames_opts {
    ma_frames_format format;
    int64_t frames, height, width;
    double fps;
    int crf; /* of mp4 */
} ma_frames_opts;

typedef struct ma_frames ma_frames;
/* folder: of png, 0000.png and on; NULL for others, whose bytes are gathered. */
ma_frames *ma_frames_open(const ma_frames_opts *, const char *folder, ma_err *);
int ma_frames_add(ma_frames *, const float *rgb, int64_t n, ma_err *); /* (n,H,W,3) in ±1, clamped */
/* The end: what came is the whole file (ma_buf_free), for png nothing. Fewer frames than said: MA_SHORT. */
int ma_frames_end(ma_frames *, ma_buf *file, ma_err *);
void ma_frames_free(ma_frames *); /* NULL is fine */

#endif
