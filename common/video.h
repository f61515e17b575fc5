/* video: FFmpeg. Reading by presentation time; RGB as the eye should see it (rotation, range and matrix honoured). */
#ifndef MA_VIDEO_H
#define MA_VIDEO_H
#include "base.h"
#include "cli.h"

typedef enum { MA_FIT_CROP, MA_FIT_PAD, MA_FIT_STRETCH } ma_fit;
typedef enum { MA_SHORT_ERROR, MA_SHORT_PAD, MA_SHORT_LOOP, MA_SHORT_SKIP } ma_short;

typedef struct ma_clip_opts {
    ma_clip_size size; /* frames 0: all; height/width 0: as the video has them; fps 0: every frame */
    double start;      /* seconds from the first frame */
    ma_fit fit;
    ma_short when_short;
    double timeout; /* seconds for one clip; 0: 60 */
    /* Of the clip's frames only first, first + every, … are looked at: the pixels of others may be left undefined.
     * every 0: all are. */
    int64_t first, every;
} ma_clip_opts;

/* A decoded clip: RGB, uint8, (frames, height, width, 3). */
typedef struct ma_clip {
    int64_t frames, height, width;
    uint8_t *rgb;
    double fps;                                /* of this clip after choosing */
    int64_t *index;                            /* which source frame each frame is; -1 past the end for pad */
    double *time;                              /* presentation time of each, seconds from the first frame */
    int source_height, source_width, rotation; /* after rotation; degrees clockwise */
    int64_t crop[4]; /* the part of the source that is shown: y, x, height, width (after rotation) */
} ma_clip;

/* Decodes the wanted frames of a video in memory. name: for messages ("KEY.mp4"). Cut, damaged or undecodable input,
 * no video stream, a clip shorter than asked (MA_SHORT), a time-out: -1. With MA_SHORT_SKIP too: MA_SHORT. */
int ma_video_read(const void *bytes, size_t size, const char *name, const ma_clip_opts *, ma_clip *out, ma_err *);
void ma_clip_free(ma_clip *);

/* Encodes RGB frames. format: "mp4" (H.264, yuv420p, BT.709, crf, faststart; odd sizes are refused), "y4m" (4:4:4),
 * "mkv" (FFV1, lossless RGB). The result is the same bytes for the same input. crf 0..51. */
int ma_video_write(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, double fps, const char *format,
                   int crf, ma_buf *out, ma_err *);
/* The same frame by frame, `frames` of them; out is not to be touched until the end. end and abort free. */
typedef struct ma_video_writer ma_video_writer;
ma_video_writer *ma_video_begin(int64_t frames, int64_t height, int64_t width, double fps, const char *format, int crf,
                                ma_buf *out, ma_err *);
int ma_video_add(ma_video_writer *, const uint8_t *rgb, ma_err *); /* (height, width, 3) */
int ma_video_end(ma_video_writer *, ma_err *);
void ma_video_abort(ma_video_writer *); /* out as it was before; NULL is fine */

/* One picture. png: 8 bit RGB, or 16 bit RGB (for KITTI flow). */
int ma_png_write(const uint8_t *rgb, int64_t height, int64_t width, ma_buf *out, ma_err *);
int ma_png_write16(const uint16_t *rgb, int64_t height, int64_t width, ma_buf *out, ma_err *);
/* A 16 bit RGB png's values, (height, width, 3) (ma_release). NULL: another kind of picture, or damaged. */
uint16_t *ma_png_read16(const void *bytes, size_t size, const char *name, int64_t *height, int64_t *width, ma_err *);
int ma_image_read(const void *bytes, size_t size, const char *name, ma_clip *out, ma_err *); /* png, jpeg: 1 frame */

/* Antialiased bicubic, what torchvision's resize(antialias=True) does, for one RGB picture. -1: out of memory. */
int ma_image_resize(const uint8_t *in, int64_t h, int64_t w, uint8_t *out, int64_t oh, int64_t ow);

/* The longest of n vectors u, v. */
float ma_flow_longest(const float *uv, int64_t n);
/* The colour wheel that people know for flow (Baker et al. 2007): rgb (h, w, 3) from uv (h, w, 2); max: the length, in
 * pixels, of full saturation; 0: the longest in uv. */
void ma_flow_picture(const float *uv, int64_t h, int64_t w, float max, uint8_t *rgb);

#endif
