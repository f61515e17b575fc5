/* video_write: RGB frames as a video file in memory.
 *
 * mp4: H.264 by libx264, yuv420p, BT.709 limited range, tagged as such; the index stands before the data. mkv: FFV1,
 * RGB, lossless. y4m: 4:4:4 in BT.601 limited range, which is what readers take a format without colour tags for.
 * Limits: the file is made in memory; constant frame rate; the bytes depend on the input alone, so the number of
 * threads does on the frames' size, not on the machine, and x264 is told to decide alike on all processors. Traps:
 * players need the mp4 index first, and FFmpeg's own "faststart" opens the file anew by name, of which there is none;
 * so room is kept for the index beforehand (moov_size), which must not be too small. x264's macroblock tree reads
 * memory that it never wrote: on small frames the bytes differ from run to run. 4:2:0 has no odd sizes.
 */
#include "av.h"
#include "video.h"
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <math.h>
#include <string.h>

static const int64_t MOST_SIDE = 16384; /* pixels */

typedef struct recipe {
    const char *format, *muxer, *encoder;
    ma_av_pixels pixels;
} recipe;

static const recipe recipes[] = {
    {"mp4", "mp4", "libx264", {AV_PIX_FMT_YUV420P, AVCOL_SPC_BT709, AVCOL_RANGE_MPEG}},
    {"mkv", "matroska", "ffv1", {AV_PIX_FMT_0RGB32, AVCOL_SPC_RGB, AVCOL_RANGE_UNSPECIFIED}},
    {"y4m", NULL, NULL, {AV_PIX_FMT_YUV444P, AVCOL_SPC_SMPTE170M, AVCOL_RANGE_MPEG}},
};

typedef struct ma_video_writer writer;

/* The output, seekable: what stood in the buffer before is left alone. */
typedef struct sink {
    ma_buf *buf;
    size_t base; /* where the file begins in buf */
    size_t at;   /* position in the file */
} sink;

struct ma_video_writer {
    const recipe *how;
    int64_t frames, done; /* that were told of; that came */
    int height, width, crf;
    AVRational rate;
    sink sink;
    struct SwsContext *sws;
    AVFrame *frame;
    AVIOContext *io;
    AVFormatContext *file;
    AVCodecContext *codec;
    AVPacket *packet;
};

/* --- memory as FFmpeg's output --- */

static int put_bytes(sink *s, const uint8_t *bytes, int n) {
    static const uint8_t zeros[4096];
    size_t end = s->base + s->at;
    while (s->buf->size < end) { /* a gap that a seek left */
        size_t gap = end - s->buf->size;
        if (ma_buf_add(s->buf, zeros, gap < sizeof zeros ? gap : sizeof zeros)) return AVERROR(ENOMEM);
    }
    size_t over = s->buf->size - end; /* bytes that are there already */
    if (over > (size_t)n) over = (size_t)n;
    if (over) memcpy(s->buf->data + end, bytes, over);
    if (ma_buf_add(s->buf, bytes + over, (size_t)n - over)) return AVERROR(ENOMEM);
    s->at += (size_t)n;
    return n;
}

#if LIBAVFORMAT_VERSION_MAJOR < 61
static int write_bytes(void *opaque, uint8_t *bytes, int n) {
    return put_bytes(opaque, bytes, n);
}
#else
static int write_bytes(void *opaque, const uint8_t *bytes, int n) {
    return put_bytes(opaque, bytes, n);
}
#endif

static int64_t seek_bytes(void *opaque, int64_t to, int whence) {
    sink *s = opaque;
    int64_t size = (int64_t)(s->buf->size - s->base);
    if (whence & AVSEEK_SIZE) return size;
    whence &= ~AVSEEK_FORCE;
    if (whence == SEEK_CUR) to += (int64_t)s->at;
    if (whence == SEEK_END) to += size;
    if (to < 0) return AVERROR(EINVAL);
    s->at = (size_t)to;
    return to;
}

/* --- frames --- */

static int open_frame(writer *w) {
    ma_av_pixels rgb = {.format = AV_PIX_FMT_RGB24};
    w->sws = ma_av_scaler(w->width, w->height, rgb, w->how->pixels,
                          SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP | SWS_BITEXACT);
    w->frame = av_frame_alloc();
    if (!w->sws || !w->frame) return AVERROR(ENOMEM);
    w->frame->format = w->how->pixels.format;
    w->frame->width = w->width;
    w->frame->height = w->height;
    w->frame->colorspace = w->how->pixels.space;
    w->frame->color_range = w->how->pixels.range;
    return av_frame_get_buffer(w->frame, 0);
}

static int fill_frame(writer *w, const uint8_t *rgb) {
    int rc = av_frame_make_writable(w->frame);
    const uint8_t *planes[4] = {rgb};
    int rows[4] = {3 * w->width};
    if (rc < 0) return rc;
    w->frame->pts = w->done;
    rc = sws_scale(w->sws, planes, rows, 0, w->height, w->frame->data, w->frame->linesize);
    return rc == w->height ? 0 : AVERROR_UNKNOWN;
}

/* --- y4m: a line of text, then planes --- */

static int begin_y4m(writer *w) {
    int rc = ma_buf_printf(w->sink.buf, "YUV4MPEG2 W%d H%d F%d:%d Ip A1:1 C444 XCOLORRANGE=LIMITED\n", w->width,
                           w->height, w->rate.num, w->rate.den);
    return rc ? AVERROR(ENOMEM) : 0;
}

static int put_y4m(writer *w) {
    ma_buf *out = w->sink.buf;
    int rc = ma_buf_printf(out, "FRAME\n");
    for (int y = 0; !rc && y < 3 * w->height; y++) {
        int plane = y / w->height, row = y % w->height;
        const uint8_t *from = w->frame->data[plane] + (ptrdiff_t)row * w->frame->linesize[plane];
        rc = ma_buf_add(out, from, (size_t)w->width);
    }
    return rc ? AVERROR(ENOMEM) : 0;
}

/* --- mp4 and mkv: an encoder and a muxer --- */

/* x264's: it encodes frames beside each other while the caller makes more. Small ones are not worth threads. */
static int threads_for(int height, int width) {
    return (int64_t)height * width < 256 * 256 ? 1 : 8;
}

static int open_codec(writer *w, const AVCodec *encoder) {
    w->codec = avcodec_alloc_context3(encoder);
    if (!w->codec) return AVERROR(ENOMEM);
    AVCodecContext *c = w->codec;
    c->width = w->width;
    c->height = w->height;
    c->pix_fmt = w->how->pixels.format;
    c->colorspace = w->how->pixels.space;
    c->color_range = w->how->pixels.range;
    c->time_base = av_inv_q(w->rate);
    c->framerate = w->rate;
    c->sample_aspect_ratio = (AVRational){1, 1};
    c->thread_count = 1;
    c->flags |= AV_CODEC_FLAG_BITEXACT | AV_CODEC_FLAG_GLOBAL_HEADER;
    AVDictionary *opts = NULL;
    if (c->colorspace == AVCOL_SPC_BT709) {
        c->color_primaries = AVCOL_PRI_BT709;
        c->color_trc = AVCOL_TRC_BT709;
        av_dict_set_int(&opts, "crf", w->crf, 0);
        av_dict_set(&opts, "preset", "medium", 0);
        av_dict_set(&opts, "mbtree", "0", 0);
        av_dict_set(&opts, "x264-params", "cpu-independent=1", 0);
        c->thread_count = threads_for(w->height, w->width);
    } else {
        c->gop_size = 1;
        c->level = 3; /* the version of FFV1 with checksums */
        av_dict_set(&opts, "slicecrc", "1", 0);
    }
    int rc = avcodec_open2(c, encoder, &opts);
    av_dict_free(&opts);
    return rc;
}

static int open_file(writer *w) {
    enum { CHUNK = 1 << 16 };
    int rc = avformat_alloc_output_context2(&w->file, NULL, w->how->muxer, NULL);
    if (rc < 0) return rc;
    uint8_t *chunk = av_malloc(CHUNK);
    w->io = chunk ? avio_alloc_context(chunk, CHUNK, 1, &w->sink, NULL, write_bytes, seek_bytes) : NULL;
    if (!w->io) av_free(chunk);
    AVStream *s = avformat_new_stream(w->file, NULL);
    if (!w->io || !s) return AVERROR(ENOMEM);
    w->file->pb = w->io;
    w->file->flags |= AVFMT_FLAG_BITEXACT;
    s->time_base = w->codec->time_base;
    s->avg_frame_rate = w->rate;
    rc = avcodec_parameters_from_context(s->codecpar, w->codec);
    AVDictionary *opts = NULL;
    /* What the index takes at most: a head, and 5 tables of up to 12 bytes a frame. */
    if (!strcmp(w->how->muxer, "mp4")) av_dict_set_int(&opts, "moov_size", 2048 + 48 * w->frames, 0);
    if (rc >= 0) rc = avformat_write_header(w->file, &opts);
    av_dict_free(&opts);
    return rc < 0 ? rc : 0;
}

/* Encodes one frame, or with NULL the rest, and writes what comes out. */
static int encode(writer *w, const AVFrame *f) {
    int rc = avcodec_send_frame(w->codec, f);
    while (rc >= 0) {
        rc = avcodec_receive_packet(w->codec, w->packet);
        if (rc == AVERROR(EAGAIN) || rc == AVERROR_EOF) return 0;
        if (rc < 0) break;
        w->packet->duration = 1;
        w->packet->stream_index = 0;
        av_packet_rescale_ts(w->packet, w->codec->time_base, w->file->streams[0]->time_base);
        rc = av_interleaved_write_frame(w->file, w->packet);
    }
    return rc;
}

static int begin_coded(writer *w, ma_err *e) {
    const AVCodec *encoder = avcodec_find_encoder_by_name(w->how->encoder);
    if (!encoder) {
        ma_fail(e, MA_UNSUPPORTED, "%s: this FFmpeg has no encoder %s", w->how->format, w->how->encoder);
        return AVERROR_ENCODER_NOT_FOUND;
    }
    w->packet = av_packet_alloc();
    int rc = w->packet ? open_codec(w, encoder) : AVERROR(ENOMEM);
    return rc < 0 ? rc : open_file(w);
}

static int end_coded(writer *w) {
    int rc = encode(w, NULL);
    return rc < 0 ? rc : av_write_trailer(w->file);
}

static void close_writer(writer *w) {
    sws_freeContext(w->sws);
    av_frame_free(&w->frame);
    av_packet_free(&w->packet);
    avcodec_free_context(&w->codec);
    avformat_free_context(w->file);
    if (w->io) av_freep(&w->io->buffer);
    avio_context_free(&w->io);
}

static int check(const writer *w, int64_t height, int64_t width, double fps, const char *format, ma_err *e) {
    if (!w->how) return ma_fail(e, MA_USAGE, "%s: no video format that is written (mp4, mkv, y4m)", format);
    if (w->frames < 1 || height < 1 || width < 1 || height > MOST_SIDE || width > MOST_SIDE)
        return ma_fail(e, MA_SHAPE, "%s: %lld frames of %lldx%lld", format, (long long)w->frames, (long long)height,
                       (long long)width);
    if (w->how->pixels.format == AV_PIX_FMT_YUV420P && (height % 2 || width % 2))
        return ma_fail(e, MA_SHAPE, "%s: %lldx%lld: height and width must be even", format, (long long)height,
                       (long long)width);
    if (!(fps >= 0.001 && fps <= 1000)) return ma_fail(e, MA_USAGE, "%s: %g frames per second", format, fps);
    if (w->crf < 0 || w->crf > 51) return ma_fail(e, MA_USAGE, "%s: crf %d is not in 0..51", format, w->crf);
    return 0;
}

static int begin(writer *w, double fps, ma_err *e) {
    w->rate = av_d2q(fps, 1001000);
    ma_av_quiet();
    int rc = w->how->muxer ? begin_coded(w, e) : begin_y4m(w);
    return rc < 0 ? rc : open_frame(w);
}

ma_video_writer *ma_video_begin(int64_t frames, int64_t height, int64_t width, double fps, const char *format, int crf,
                                ma_buf *out, ma_err *e) {
    writer *w = ma_alloc(1, sizeof *w);
    if (!w) {
        ma_fail(e, MA_MEMORY, "%s: out of memory", format);
        return NULL;
    }
    *w =
        (writer){.frames = frames, .height = (int)height, .width = (int)width, .crf = crf, .sink = {out, out->size, 0}};
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++)
        if (!strcmp(recipes[i].format, format)) w->how = &recipes[i];
    if (check(w, height, width, fps, format, e)) {
        ma_release(w);
        return NULL;
    }
    int rc = begin(w, fps, e);
    if (rc >= 0) return w;
    ma_av_fail(e, MA_UNSUPPORTED, format, "encoding", rc);
    ma_video_abort(w);
    return NULL;
}

static int failed(const writer *w, int rc, ma_err *e) {
    return rc < 0 ? ma_av_fail(e, MA_UNSUPPORTED, w->how->format, "encoding", rc) : 0;
}

int ma_video_add(ma_video_writer *w, const uint8_t *rgb, ma_err *e) {
    if (w->done == w->frames)
        return ma_fail(e, MA_SHAPE, "%s: more than the %lld frames that were to come", w->how->format,
                       (long long)w->frames);
    int rc = fill_frame(w, rgb);
    if (rc >= 0) rc = w->how->muxer ? encode(w, w->frame) : put_y4m(w);
    w->done++;
    return failed(w, rc, e);
}

int ma_video_end(ma_video_writer *w, ma_err *e) {
    int rc = failed(w, w->how->muxer ? end_coded(w) : 0, e);
    if (rc) {
        ma_video_abort(w);
        return rc;
    }
    close_writer(w);
    ma_release(w);
    return 0;
}

void ma_video_abort(ma_video_writer *w) {
    if (!w) return;
    close_writer(w);
    w->sink.buf->size = w->sink.base;
    ma_release(w);
}

int ma_video_write(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, double fps, const char *format,
                   int crf, ma_buf *out, ma_err *e) {
    writer *w = ma_video_begin(frames, height, width, fps, format, crf, out, e);
    for (int64_t k = 0; w && k < frames; k++)
        if (ma_video_add(w, rgb + k * height * width * 3, e)) {
            ma_video_abort(w);
            return -1;
        }
    return w ? ma_video_end(w, e) : -1;
}
