/* av: what reading and writing share of FFmpeg: its messages made data, and conversion between pixel formats with the
 * colours spelt out. Only video_*.c and image_file.c include it. */
#ifndef MA_AV_H
#define MA_AV_H
#include "scale.h"
#include <libavutil/frame.h>
#include <libswscale/swscale.h>

/* FFmpeg prints nothing from here on (for the process); forgets what it last said on this thread. */
void ma_av_quiet(void);
/* The last error line that FFmpeg logged on this thread since ma_av_quiet(); "" if none. */
const char *ma_av_said(void);
/* Records "name: what: FFmpeg's words for code (its last line)"; MA_TIMEOUT and MA_MEMORY are told from the code, all
 * else is `reason`. -1. */
int ma_av_fail(ma_err *, ma_reason reason, const char *name, const char *what, int code);

/* A scaler between pixel formats at one size. A colour of AVCOL_SPC_UNSPECIFIED is BT.601 whatever the height, and a
 * range of AVCOL_RANGE_UNSPECIFIED what the pixel format implies: both as the ffmpeg program has them. NULL: cannot. */
typedef struct ma_av_pixels {
    enum AVPixelFormat format;
    enum AVColorSpace space;
    enum AVColorRange range;
} ma_av_pixels;
struct SwsContext *ma_av_scaler(int width, int height, ma_av_pixels from, ma_av_pixels to, int flags);

/* A decoded frame as RGB, (height, width, 3), as the ffmpeg program would give it. *sws is made when NULL, and is the
 * caller's: sws_freeContext. */
int ma_av_to_rgb(const AVFrame *, struct SwsContext **sws, uint8_t *rgb, const char *name, ma_err *);
/* How a frame's planes make RGB, in the same colours, for scale.h. false: it has not the three of 8 bit for that. */
bool ma_av_yuv(const AVFrame *, ma_scale_yuv *);

#endif
