/* image_file: single pictures as files, through FFmpeg's codecs.
 *
 * Limits: writes PNG; reads PNG and JPEG, told by their first bytes, as 8 bit RGB (transparency is dropped).
 * Traps: the JPEG decoder makes up what a cut file lacks and says so only in its log; anything logged is an error here.
 */
#include "av.h"
#include "video.h"
#include <libavcodec/avcodec.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const int MOST_SIDE = 16384; /* pixels */

static AVCodecContext *open_encoder(enum AVPixelFormat format, int height, int width) {
    const AVCodec *png = avcodec_find_encoder(AV_CODEC_ID_PNG);
    AVCodecContext *c = png ? avcodec_alloc_context3(png) : NULL;
    if (!c) return NULL;
    c->width = width;
    c->height = height;
    c->pix_fmt = format;
    c->time_base = (AVRational){1, 1};
    c->thread_count = 1;
    c->flags |= AV_CODEC_FLAG_BITEXACT;
    if (avcodec_open2(c, png, NULL) < 0) avcodec_free_context(&c);
    return c;
}

/* bytes: rows of RGB as the format has them, row bytes each. */
static int write_png(const void *bytes, size_t row, enum AVPixelFormat format, int64_t height, int64_t width,
                     ma_buf *out, ma_err *e) {
    if (height < 1 || width < 1 || height > MOST_SIDE || width > MOST_SIDE)
        return ma_fail(e, MA_SHAPE, "png: a picture of %lldx%lld", (long long)height, (long long)width);
    ma_av_quiet();
    AVCodecContext *c = open_encoder(format, (int)height, (int)width);
    AVFrame *f = av_frame_alloc();
    AVPacket *p = av_packet_alloc();
    int rc = c && f && p ? 0 : AVERROR(ENOMEM);
    if (!rc) {
        f->format = format;
        f->width = (int)width;
        f->height = (int)height;
        rc = av_frame_get_buffer(f, 0);
    }
    for (int64_t y = 0; !rc && y < height; y++)
        memcpy(f->data[0] + y * f->linesize[0], (const uint8_t *)bytes + (size_t)y * row, row);
    if (!rc) rc = avcodec_send_frame(c, f);
    if (!rc) rc = avcodec_receive_packet(c, p);
    if (!rc && ma_buf_add(out, p->data, (size_t)p->size)) rc = AVERROR(ENOMEM);
    if (rc) ma_av_fail(e, MA_UNSUPPORTED, "png", "encoding", rc);
    av_packet_free(&p);
    av_frame_free(&f);
    avcodec_free_context(&c);
    return rc ? -1 : 0;
}

int ma_png_write(const uint8_t *rgb, int64_t height, int64_t width, ma_buf *out, ma_err *e) {
    return write_png(rgb, (size_t)width * 3, AV_PIX_FMT_RGB24, height, width, out, e);
}

int ma_png_write16(const uint16_t *rgb, int64_t height, int64_t width, ma_buf *out, ma_err *e) {
    size_t n;
    if (height < 0 || width < 0 || !ma_mul((size_t)height, (size_t)width, &n) || !ma_mul(n, 3, &n))
        return ma_fail(e, MA_SHAPE, "png: a picture of %lldx%lld", (long long)height, (long long)width);
    uint8_t *big = ma_alloc(n, 2); /* PNG has the high byte first */
    if (!big) return ma_fail(e, MA_MEMORY, "png: out of memory");
    for (size_t i = 0; i < n; i++) {
        big[2 * i] = (uint8_t)(rgb[i] >> 8);
        big[2 * i + 1] = (uint8_t)rgb[i];
    }
    int rc = write_png(big, (size_t)width * 6, AV_PIX_FMT_RGB48BE, height, width, out, e);
    ma_release(big);
    return rc;
}

/* AV_CODEC_ID_NONE: neither. */
static enum AVCodecID kind_of(const void *bytes, size_t size) {
    if (size > 8 && !memcmp(bytes, "\x89PNG\r\n\x1a\n", 8)) return AV_CODEC_ID_PNG;
    if (size > 3 && !memcmp(bytes, "\xff\xd8\xff", 3)) return AV_CODEC_ID_MJPEG;
    return AV_CODEC_ID_NONE;
}

static int decode_still(enum AVCodecID id, const void *bytes, size_t size, AVFrame *out) {
    const AVCodec *decoder = avcodec_find_decoder(id);
    AVCodecContext *c = decoder ? avcodec_alloc_context3(decoder) : NULL;
    AVPacket *p = av_packet_alloc();
    int rc = c && p ? 0 : decoder ? AVERROR(ENOMEM) : AVERROR_DECODER_NOT_FOUND;
    if (!rc) {
        c->thread_count = 1;
        c->max_pixels = (int64_t)MOST_SIDE * MOST_SIDE;
        c->err_recognition = AV_EF_CRCCHECK | AV_EF_EXPLODE;
        rc = avcodec_open2(c, decoder, NULL);
    }
    if (!rc) rc = av_new_packet(p, (int)size); /* a copy, padded as decoders want it */
    if (!rc) {
        memcpy(p->data, bytes, size);
        rc = avcodec_send_packet(c, p);
    }
    if (!rc) avcodec_send_packet(c, NULL); /* the end: what is held back comes out */
    if (!rc) rc = avcodec_receive_frame(c, out);
    if (!rc && (out->decode_error_flags || out->flags & AV_FRAME_FLAG_CORRUPT || ma_av_said()[0]))
        rc = AVERROR_INVALIDDATA;
    av_packet_free(&p);
    avcodec_free_context(&c);
    return rc;
}

/* av_frame_free. NULL: not a picture of these kinds, or damaged. */
static AVFrame *read_still(const void *bytes, size_t size, const char *name, ma_err *e) {
    enum AVCodecID id = kind_of(bytes, size);
    if (id == AV_CODEC_ID_NONE) {
        ma_fail(e, MA_UNSUPPORTED, "%s: neither PNG nor JPEG", name);
        return NULL;
    }
    if (size > INT_MAX / 2) {
        ma_fail(e, MA_UNSUPPORTED, "%s: larger than 1 GiB", name);
        return NULL;
    }
    ma_av_quiet();
    AVFrame *f = av_frame_alloc();
    int rc = f ? decode_still(id, bytes, size, f) : AVERROR(ENOMEM);
    if (rc) {
        ma_av_fail(e, MA_CORRUPT, name, "not a whole picture", rc);
        av_frame_free(&f);
    }
    return f;
}

/* The clip of one picture around the decoded frame. */
static int make_clip(const AVFrame *f, const char *name, ma_clip *c, ma_err *e) {
    size_t bytes;
    if (f->width > MOST_SIDE || f->height > MOST_SIDE)
        return ma_fail(e, MA_UNSUPPORTED, "%s: %dx%d pixels are too many", name, f->height, f->width);
    if (!ma_mul((size_t)f->height, (size_t)f->width * 3, &bytes)) return ma_fail(e, MA_MEMORY, "%s: too large", name);
    *c = (ma_clip){.frames = 1, .height = f->height, .width = f->width, .fps = 1};
    c->source_height = f->height;
    c->source_width = f->width;
    c->crop[2] = f->height;
    c->crop[3] = f->width;
    c->rgb = malloc(bytes);
    c->index = calloc(1, sizeof *c->index);
    c->time = calloc(1, sizeof *c->time);
    if (!c->rgb || !c->index || !c->time) return ma_fail(e, MA_MEMORY, "%s: out of memory", name);
    struct SwsContext *sws = NULL;
    int rc = ma_av_to_rgb(f, &sws, c->rgb, name, e);
    sws_freeContext(sws);
    return rc;
}

/* The values of a decoded picture of 16 bits a channel, high byte first. */
static uint16_t *take_values(const AVFrame *f, const char *name, ma_err *e) {
    if (f->format != AV_PIX_FMT_RGB48BE || f->width > MOST_SIDE || f->height > MOST_SIDE) {
        ma_fail(e, MA_UNSUPPORTED, "%s: %dx%d pixels, and not RGB of 16 bits", name, f->height, f->width);
        return NULL;
    }
    size_t row = (size_t)f->width * 3;
    uint16_t *rgb = ma_alloc((size_t)f->height, row * sizeof *rgb);
    if (!rgb) ma_fail(e, MA_MEMORY, "%s: out of memory", name);
    for (int y = 0; rgb && y < f->height; y++) {
        const uint8_t *from = f->data[0] + y * f->linesize[0];
        for (size_t i = 0; i < row; i++) rgb[(size_t)y * row + i] = (uint16_t)(from[2 * i] << 8 | from[2 * i + 1]);
    }
    return rgb;
}

uint16_t *ma_png_read16(const void *bytes, size_t size, const char *name, int64_t *height, int64_t *width, ma_err *e) {
    AVFrame *f = read_still(bytes, size, name, e);
    uint16_t *rgb = f ? take_values(f, name, e) : NULL;
    if (rgb) {
        *height = f->height;
        *width = f->width;
    }
    av_frame_free(&f);
    return rgb;
}

int ma_image_read(const void *bytes, size_t size, const char *name, ma_clip *out, ma_err *e) {
    *out = (ma_clip){0};
    AVFrame *f = read_still(bytes, size, name, e);
    int rc = f ? make_clip(f, name, out, e) : -1;
    av_frame_free(&f);
    if (rc) ma_clip_free(out);
    return rc;
}
