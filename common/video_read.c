/* video_read: the frames of a video in memory that a clip asks for, as RGB.
 *
 * Which frames: frame i is on show from its presentation time until that of frame i+1, the last one for as long as the
 * stream's frame rate says. With a frame rate asked for, output k is the frame on show at start + k/fps; without, every
 * frame from start on, in order. Times count from the first frame that is shown.
 *
 * What is before the last key frame that the clip needs is read, to count it, but not decoded. That gives the frames
 * that decoding from the beginning gives, where each packet is a frame, times are there, and all that follows the key
 * frame is shown after it; anything else, or an error on the way, and it is decoded from the beginning after all.
 *
 * Limits: decodes on the calling thread; at most 16384 pixels a side and 4 GiB of output; pixels are taken as square;
 * quarter turns and mirrors only. A decoder that hangs inside one call is beyond the time-out. Damage in what is not
 * decoded is not seen.
 * Traps:
 *  - nb_frames and durations in headers lie: only decoded frames count.
 *  - Matroska rounds times to milliseconds: at 30 fps frame 2 is "at 67 ms", after the instant 66.67. Hence the slack
 * of one tick, where a tick is short beside a frame.
 *  - A demuxer at the end of a cut file says "end of file": see container.c, and its last words are heard here.
 *  - A damaged H.264 stream decodes without an error code; the frame's flags tell. FFV1's checksums speak in the log
 * only.
 *  - Playlists and "concat" scripts would let a file name others, and streams without sizes (y4m, MPEG-TS) can be cut
 *    unseen: only the containers that container.c knows are read.
 */
#include "av.h"
#include "container.h"
#include "scale.h"
#include "video.h"
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CONTAINERS "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"

static const int64_t MOST_SIDE = 16384;           /* pixels */
static const size_t MOST_BYTES = (size_t)4 << 30; /* of RGB in one clip */
static const double DEFAULT_TIMEOUT = 60;         /* seconds */
enum { REORDER_MOST = 16 };                       /* frames that a codec holds back for one that is shown before them */

typedef struct source {
    const uint8_t *data;
    int64_t size, at;
} source;

/* Where a stored pixel (x, y) is shown: (fx·x, fy·y), after exchanging the two if turned; each f is 1 or -1. */
typedef struct turn {
    bool swap, flip_x, flip_y;
    int degrees; /* clockwise, for the record; a mirror image besides is not told */
} turn;

/* How a frame comes into the clip. (y, x, h, w) of the source is resized to (oh, ow), put at (oy, ox). */
typedef struct fit {
    int64_t y, x, h, w;
    int64_t oy, ox, oh, ow;
} fit;

typedef struct reader {
    const char *name;
    const ma_clip_opts *want;
    ma_clip *clip;
    int64_t room; /* frames that clip's arrays hold */
    bool begun;   /* a frame has been decoded */
    ma_err *e;
    double deadline; /* ma_now() */
    source src;
    AVIOContext *io;
    AVFormatContext *file;
    AVStream *stream;
    AVCodecContext *codec;
    AVPacket *packet;
    AVPacket **queue; /* read already, from a key frame on: to be decoded first */
    size_t queued, fed;
    int64_t skipped, known; /* frames before them; up to this time (ticks) all that is shown is among them */
    AVFrame *got;           /* just decoded */
    AVFrame *shown;         /* the one before: on show until got */
    int64_t index;          /* of shown; -1 before the first */
    int64_t drawn;          /* index of the frame that the clip's last frame was made from */
    double time;            /* of shown, seconds from the first frame */
    int64_t first;          /* presentation time of the first frame, ticks */
    double tick, rate;      /* seconds; frames per second */
    double slack;           /* seconds by which a time may be late through rounding */
    struct SwsContext *sws;
    turn turn;
    fit fit;
    uint8_t *stored;   /* (height, width, 3) as decoded; NULL: not needed */
    uint8_t *turned;   /* (height, width, 3) as shown; NULL: upright */
    ma_scaler *scaler; /* from the part that is shown to its place; NULL: there is nothing to scale */
    bool yuv;          /* it takes the frame as decoded, not RGB */
} reader;

/* --- bytes in memory as FFmpeg's input --- */

static int read_bytes(void *opaque, uint8_t *out, int n) {
    source *s = opaque;
    int64_t left = s->size - s->at;
    if (left <= 0) return AVERROR_EOF;
    if (n > left) n = (int)left;
    memcpy(out, s->data + s->at, (size_t)n);
    s->at += n;
    return n;
}

static int64_t seek_bytes(void *opaque, int64_t to, int whence) {
    source *s = opaque;
    if (whence & AVSEEK_SIZE) return s->size;
    whence &= ~AVSEEK_FORCE;
    if (whence == SEEK_CUR) to += s->at;
    if (whence == SEEK_END) to += s->size;
    if (to < 0 || to > s->size) return AVERROR(EINVAL);
    return s->at = to;
}

/* Also when the run is being stopped: then nobody wants the clip. */
static int late(void *opaque) {
    return ma_stopped || ma_now() > ((const reader *)opaque)->deadline;
}

/* --- opening --- */

/* Whether the container tells all that is asked of it, so that no frame need be decoded twice. In MP4 it tells even by
 * how much the frames of H.264 are out of order (from their times); of other codecs, and where there are several
 * streams to choose from, frames must be looked at. */
static bool told(const AVFormatContext *f) {
    const AVStream *video = NULL;
    if (!strstr(f->iformat->name, "mp4")) return false;
    for (unsigned i = 0; i < f->nb_streams; i++) {
        if (f->streams[i]->codecpar->codec_type != AVMEDIA_TYPE_VIDEO) continue;
        if (video) return false;
        video = f->streams[i];
    }
    const AVCodecParameters *p = video ? video->codecpar : NULL;
    return p && p->codec_id == AV_CODEC_ID_H264 && p->extradata_size > 0 && p->width > 0 && p->height > 0 &&
           video->avg_frame_rate.num > 0 && video->avg_frame_rate.den > 0;
}

static int open_file(reader *r) {
    enum { CHUNK = 1 << 16 };
    AVDictionary *opts = NULL;
    uint8_t *chunk = av_malloc(CHUNK);
    r->io = chunk ? avio_alloc_context(chunk, CHUNK, 0, &r->src, read_bytes, NULL, seek_bytes) : NULL;
    if (!r->io) av_free(chunk);
    r->file = avformat_alloc_context();
    if (!r->io || !r->file || av_dict_set(&opts, "format_whitelist", CONTAINERS, 0) < 0)
        return ma_fail(r->e, MA_MEMORY, "%s: out of memory", r->name);
    r->file->pb = r->io;
    r->file->interrupt_callback = (AVIOInterruptCB){late, r};
    int rc = avformat_open_input(&r->file, NULL, NULL, &opts); /* frees and clears r->file when it fails */
    av_dict_free(&opts);
    if (rc < 0) return ma_av_fail(r->e, MA_CORRUPT, r->name, "not a readable video", rc);
    rc = told(r->file) ? 0 : avformat_find_stream_info(r->file, NULL);
    if (rc < 0) return ma_av_fail(r->e, MA_CORRUPT, r->name, "streams cannot be told", rc);
    rc = av_find_best_stream(r->file, AVMEDIA_TYPE_VIDEO, -1, -1, NULL, 0);
    if (rc < 0) return ma_fail(r->e, MA_MISSING, "%s: no video stream", r->name);
    for (unsigned i = 0; i < r->file->nb_streams; i++)
        r->file->streams[i]->discard = (int)i == rc ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    r->stream = r->file->streams[rc];
    return 0;
}

static int open_codec(reader *r) {
    const AVCodecParameters *par = r->stream->codecpar;
    const AVCodec *decoder = avcodec_find_decoder(par->codec_id);
    if (!decoder)
        return ma_fail(r->e, MA_UNSUPPORTED, "%s: no decoder for %s", r->name, avcodec_get_name(par->codec_id));
    r->codec = avcodec_alloc_context3(decoder);
    r->packet = av_packet_alloc();
    r->got = av_frame_alloc();
    r->shown = av_frame_alloc();
    if (!r->codec || !r->packet || !r->got || !r->shown) return ma_fail(r->e, MA_MEMORY, "%s: out of memory", r->name);
    int rc = avcodec_parameters_to_context(r->codec, par);
    r->codec->thread_count = 1;
    r->codec->pkt_timebase = r->stream->time_base;
    r->codec->max_pixels = MOST_SIDE * MOST_SIDE;
    r->codec->err_recognition = AV_EF_CRCCHECK;
    if (rc >= 0) rc = avcodec_open2(r->codec, decoder, NULL);
    return rc < 0 ? ma_av_fail(r->e, MA_UNSUPPORTED, r->name, "the decoder does not open", rc) : 0;
}

/* The display matrix of the stream, 9 numbers; NULL: upright. */
static const int32_t *display_matrix(const AVStream *s) {
#if LIBAVFORMAT_VERSION_INT >= AV_VERSION_INT(60, 15, 100)
    const AVPacketSideData *d = av_packet_side_data_get(s->codecpar->coded_side_data, s->codecpar->nb_coded_side_data,
                                                        AV_PKT_DATA_DISPLAYMATRIX);
    return d && d->size >= 9 * sizeof(int32_t) ? (const int32_t *)(const void *)d->data : NULL;
#else
    return (const int32_t *)(const void *)av_stream_get_side_data(s, AV_PKT_DATA_DISPLAYMATRIX, NULL);
#endif
}

/* The matrix (a b u; c d v; …) shows (x, y) at (a·x + c·y, b·x + d·y). */
static int read_turn(reader *r) {
    const int32_t *m = display_matrix(r->stream);
    if (!m) return 0;
    double a = m[0], b = m[1], c = m[3], d = m[4];
    double on = fmax(fabs(a), fabs(d)), off = fmax(fabs(b), fabs(c));
    if (fmin(on, off) > 0.02 * fmax(on, off))
        return ma_fail(r->e, MA_UNSUPPORTED, "%s: turned by %.0f degrees: only quarter turns", r->name,
                       -av_display_rotation_get(m));
    if (on == 0 && off == 0) return 0;
    r->turn.swap = off > on;
    r->turn.flip_x = r->turn.swap ? c < 0 : a < 0;
    r->turn.flip_y = r->turn.swap ? b < 0 : d < 0;
    r->turn.degrees = r->turn.swap ? (b > 0 ? 90 : 270) : (d > 0 ? 0 : 180);
    return 0;
}

static void read_clock(reader *r) {
    AVRational rate = r->stream->avg_frame_rate;
    if (rate.num <= 0 || rate.den <= 0) rate = r->stream->r_frame_rate;
    r->rate = rate.num > 0 && rate.den > 0 ? av_q2d(rate) : 0;
    r->tick = av_q2d(r->stream->time_base);
    r->slack = 1e-6 + (r->tick * r->rate <= 0.5 ? r->tick : 0);
}

/* --- the shape of the clip --- */

static void fit_inside(const ma_clip *c, ma_fit how, fit *f) {
    int64_t h = f->h, w = f->w; /* of the source */
    if (how == MA_FIT_CROP && w * c->height > c->width * h) f->w = (h * c->width + c->height / 2) / c->height;
    if (how == MA_FIT_CROP && w * c->height < c->width * h) f->h = (w * c->height + c->width / 2) / c->width;
    if (how == MA_FIT_PAD && w * c->height > c->width * h) f->oh = (h * c->width + w / 2) / w;
    if (how == MA_FIT_PAD && w * c->height < c->width * h) f->ow = (w * c->height + h / 2) / h;
    if (f->w < 1) f->w = 1;
    if (f->h < 1) f->h = 1;
    if (f->ow < 1) f->ow = 1;
    if (f->oh < 1) f->oh = 1;
    f->x = (w - f->w) / 2;
    f->y = (h - f->h) / 2;
    f->ox = (c->width - f->ow) / 2;
    f->oy = (c->height - f->oh) / 2;
}

/* Makes room for `need` frames in the clip, and some more where that saves moving it again. */
static int reserve(reader *r, int64_t need) {
    ma_clip *c = r->clip;
    size_t frame = (size_t)(c->height * c->width) * 3;
    int64_t most = (int64_t)(MOST_BYTES / frame), n = 2 * r->room < most ? 2 * r->room : most;
    if (need <= r->room) return 0;
    if (need > most)
        return ma_fail(r->e, MA_MEMORY, "%s: %lld frames of %lldx%lld are more than 4 GiB: ask for fewer or smaller",
                       r->name, (long long)need, (long long)c->height, (long long)c->width);
    if (n < need) n = need;
    uint8_t *rgb = realloc(c->rgb, (size_t)n * frame);
    if (rgb) c->rgb = rgb;
    int64_t *index = realloc(c->index, (size_t)n * sizeof *index);
    if (index) c->index = index;
    double *time = realloc(c->time, (size_t)n * sizeof *time);
    if (time) c->time = time;
    if (!rgb || !index || !time) return ma_fail(r->e, MA_MEMORY, "%s: out of memory", r->name);
    r->room = n;
    return 0;
}

/* What stands between a decoded frame and its place in the clip. Where only the size changes the frame is scaled as it
 * was decoded, which is half the work; everything else is done to RGB. */
static int set_up_pixels(reader *r, const AVFrame *f) {
    const fit *t = &r->fit;
    bool turned = r->turn.swap || r->turn.flip_x || r->turn.flip_y;
    bool scaled = t->h != t->oh || t->w != t->ow, whole = t->h == r->clip->height && t->w == r->clip->width;
    size_t pixels = (size_t)f->height * (size_t)f->width;
    ma_scale_yuv yuv;
    r->yuv = scaled && !turned && ma_av_yuv(f, &yuv);
    if (scaled)
        r->scaler = ma_scaler_new(&(ma_scale_sizes){t->y, t->x, t->h, t->w, t->oh, t->ow}, r->yuv ? &yuv : NULL);
    bool stored = turned || !(whole || r->yuv);
    if (stored) r->stored = ma_alloc(pixels, 3);
    if (turned) r->turned = ma_alloc(pixels, 3);
    if ((!scaled || r->scaler) && (!stored || r->stored) && (!turned || r->turned)) return 0;
    return ma_fail(r->e, MA_MEMORY, "%s: out of memory", r->name);
}

/* From the first frame: sizes, crop, buffers. */
static int set_up(reader *r, const AVFrame *f) {
    ma_clip *c = r->clip;
    if (f->width > MOST_SIDE || f->height > MOST_SIDE)
        return ma_fail(r->e, MA_UNSUPPORTED, "%s: %dx%d pixels are too many", r->name, f->height, f->width);
    c->source_height = r->turn.swap ? f->width : f->height;
    c->source_width = r->turn.swap ? f->height : f->width;
    c->rotation = r->turn.degrees;
    c->height = r->want->size.height ? r->want->size.height : c->source_height;
    c->width = r->want->size.width ? r->want->size.width : c->source_width;
    r->fit = (fit){.h = c->source_height, .w = c->source_width, .oh = c->height, .ow = c->width};
    fit_inside(c, r->want->fit, &r->fit);
    memcpy(c->crop, (int64_t[]){r->fit.y, r->fit.x, r->fit.h, r->fit.w}, sizeof c->crop);
    return set_up_pixels(r, f) ? -1 : reserve(r, r->want->size.frames ? r->want->size.frames : 1);
}

/* --- pixels --- */

/* The stored picture as it is shown. */
static void turn_stored(const reader *r) {
    const turn *t = &r->turn;
    int64_t h = r->clip->source_height, w = r->clip->source_width, stored_width = t->swap ? h : w;
    uint8_t *out = r->turned;
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++, out += 3) {
            int64_t down = t->flip_y ? h - 1 - y : y, across = t->flip_x ? w - 1 - x : x;
            memcpy(out, r->stored + (t->swap ? across * stored_width + down : down * stored_width + across) * 3, 3);
        }
}

/* The frame on show into its place. */
static int draw(reader *r, uint8_t *out) {
    const fit *f = &r->fit;
    const ma_clip *c = r->clip;
    int64_t row = c->width * 3, width = c->source_width * 3;
    if (!r->yuv && ma_av_to_rgb(r->shown, &r->sws, r->stored ? r->stored : out, r->name, r->e)) return -1;
    if (!r->yuv && !r->stored) return 0;
    if (r->turned) turn_stored(r);
    const uint8_t *rgb = r->turned ? r->turned : r->stored;
    if (f->oh != c->height || f->ow != c->width) memset(out, 0, (size_t)(c->height * row));
    out += f->oy * row + f->ox * 3;
    if (r->yuv)
        ma_scaler_run(r->scaler, (const uint8_t *const *)r->shown->data, r->shown->linesize, out, row);
    else if (r->scaler)
        ma_scaler_run(r->scaler, &rgb, (int[]){(int)width}, out, row);
    for (int64_t y = 0; y < f->h && !r->scaler; y++)
        memcpy(out + y * row, rgb + (f->y + y) * width + f->x * 3, (size_t)f->w * 3);
    return 0;
}

/* Whether anybody looks at the clip's next frame, or at one that it may come to stand for. */
static bool looked_at(const reader *r) {
    const ma_clip_opts *w = r->want;
    const bool once = w->size.fps <= 0 && (w->when_short == MA_SHORT_ERROR || w->when_short == MA_SHORT_SKIP);
    const int64_t k = r->clip->frames - w->first;
    return !once || !w->every || (k >= 0 && k % w->every == 0);
}

/* Adds the frame on show to the clip. */
static int emit(reader *r) {
    ma_clip *c = r->clip;
    if (reserve(r, c->frames + 1)) return -1;
    size_t frame = (size_t)(c->height * c->width) * 3;
    uint8_t *out = c->rgb + (size_t)c->frames * frame;
    if (r->drawn == r->index)
        memcpy(out, out - frame, frame);
    else if (looked_at(r) && draw(r, out))
        return -1;
    r->drawn = r->index;
    c->index[c->frames] = r->index;
    c->time[c->frames++] = r->time;
    return 0;
}

/* --- skipping what is before the clip --- */

/* Codecs of which a packet is a frame on show, and a key frame a new beginning. */
static bool frame_a_packet(enum AVCodecID id) {
    static const enum AVCodecID ids[] = {AV_CODEC_ID_H264, AV_CODEC_ID_HEVC,  AV_CODEC_ID_AV1,   AV_CODEC_ID_VP9,
                                         AV_CODEC_ID_FFV1, AV_CODEC_ID_MJPEG, AV_CODEC_ID_PRORES};
    for (size_t k = 0; k < sizeof ids / sizeof *ids; k++)
        if (ids[k] == id) return true;
    return false;
}

static void forget_queue(reader *r) {
    for (size_t k = 0; k < r->queued; k++) av_packet_free(&r->queue[k]);
    r->queued = 0;
}

/* Takes r->packet over. */
static int enqueue(reader *r) {
    if (!(r->queued & (r->queued - 1))) { /* full: 0 or a power of two */
        AVPacket **larger = realloc(r->queue, (r->queued ? 2 * r->queued : 1) * sizeof *r->queue);
        if (!larger) return -1;
        r->queue = larger;
    }
    AVPacket *p = av_packet_alloc();
    if (!p) return -1;
    av_packet_move_ref(p, r->packet);
    r->queue[r->queued++] = p;
    return 0;
}

/* Reads up to the clip's first frame, and as much further as is needed to know that it was that; keeps the packets from
 * the last key frame before it on. -1: decode from the beginning. */
static int skip(reader *r) {
    int64_t key = INT64_MIN, newest = INT64_MIN; /* times of the key frame, and of the latest that came */
    for (int beyond = 0; beyond <= REORDER_MOST;) {
        const AVPacket *p = r->packet;
        ma_av_quiet();
        int rc = late(r) ? AVERROR_EXIT : av_read_frame(r->file, r->packet);
        if (rc == AVERROR_EOF && !ma_av_said()[0]) break;
        if (rc < 0) return -1;
        if (p->stream_index != r->stream->index) {
            av_packet_unref(r->packet);
            continue;
        }
        const int64_t pts = p->pts;
        const bool is_key = p->flags & AV_PKT_FLAG_KEY;
        if (pts == AV_NOPTS_VALUE || p->flags & (AV_PKT_FLAG_CORRUPT | AV_PKT_FLAG_DISCARD)) return -1;
        if (key == INT64_MIN) {
            if (!is_key) return -1;
            r->first = pts;
            r->known = pts + (int64_t)(r->want->start / r->tick);
        }
        if (is_key && (key == INT64_MIN || (double)(pts - r->first) * r->tick <= r->want->start - 2 * r->slack)) {
            if (pts <= newest) return -1;
            r->skipped += (int64_t)r->queued;
            forget_queue(r);
            key = pts;
        } else if (pts <= key) {
            return -1;
        }
        if (pts > newest) newest = pts;
        beyond += pts > r->known;
        if (enqueue(r)) return -1;
    }
    return r->queued ? 0 : -1;
}

/* Whether the frame just decoded is, by its time, the one that it is by count. */
static bool is_in_place(const reader *r) {
    const int64_t pts = r->got->best_effort_timestamp;
    int64_t index = r->skipped;
    if (!r->skipped || (r->begun && pts > r->known)) return true;
    for (size_t k = 0; k < r->queued; k++) index += r->queue[k]->pts < pts;
    return index == r->index + 1 && pts >= r->queue[0]->pts;
}

/* --- decoding --- */

static int feed(reader *r) {
    ma_av_quiet();
    int rc = r->fed < r->queued ? av_packet_ref(r->packet, r->queue[r->fed++]) : av_read_frame(r->file, r->packet);
    if (rc == AVERROR_EOF && ma_av_said()[0])
        return ma_fail(r->e, MA_CUT, "%s: after %lld frames: %s", r->name, (long long)r->index + 1, ma_av_said());
    if (rc < 0 && rc != AVERROR_EOF) return ma_av_fail(r->e, MA_CORRUPT, r->name, "reading", rc);
    if (rc == 0 && r->packet->stream_index != r->stream->index) {
        av_packet_unref(r->packet);
        return 0;
    }
    if (rc == 0 && r->packet->flags & AV_PKT_FLAG_CORRUPT)
        return ma_fail(r->e, MA_CUT, "%s: after %lld frames: an incomplete packet", r->name, (long long)r->index + 1);
    rc = avcodec_send_packet(r->codec, rc == 0 ? r->packet : NULL);
    av_packet_unref(r->packet);
    return rc < 0 ? ma_av_fail(r->e, MA_CORRUPT, r->name, "decoding", rc) : 0;
}

/* 1: the next frame is in got. 0: no more. */
static int next_frame(reader *r) {
    for (;;) {
        if (late(r))
            return ma_fail(r->e, MA_TIMEOUT, "%s: frame %lld: the time allowed is over", r->name,
                           (long long)r->index + 1);
        int rc = avcodec_receive_frame(r->codec, r->got);
        if (rc == AVERROR_EOF) return 0;
        if (rc == AVERROR(EAGAIN)) {
            if (feed(r)) return -1;
            continue;
        }
        if (rc < 0) return ma_av_fail(r->e, MA_CORRUPT, r->name, "decoding", rc);
        bool bad_sum = r->codec->codec_id == AV_CODEC_ID_FFV1 && ma_av_said()[0];
        if (r->got->decode_error_flags || r->got->flags & AV_FRAME_FLAG_CORRUPT || bad_sum)
            return ma_fail(r->e, MA_CORRUPT, "%s: frame %lld: damaged %s", r->name, (long long)r->index + 1,
                           ma_av_said());
        return 1;
    }
}

static bool complete(const reader *r) {
    return r->want->size.frames && r->clip->frames == r->want->size.frames;
}

/* The frame on show stays until `until`: adds it to the clip as often as it is wanted at the rate asked for. */
static int show(reader *r, double until) {
    const ma_clip_opts *w = r->want;
    while (w->size.fps > 0 && !complete(r) && w->start + (double)r->clip->frames / w->size.fps < until - r->slack)
        if (emit(r)) return -1;
    return 0;
}

/* Takes the frame just decoded for the one on show. */
static int take(reader *r) {
    const AVFrame *g = r->got;
    int64_t pts = g->best_effort_timestamp;
    double time = r->begun ? r->time + (r->rate > 0 ? 1 / r->rate : 0) : 0;
    if (!r->begun && set_up(r, g)) return -1;
    if (r->index < 0)
        r->first = pts;
    else if (pts != AV_NOPTS_VALUE && r->first != AV_NOPTS_VALUE)
        time = fmax(r->time, (double)(pts - r->first) * r->tick);
    if (!is_in_place(r))
        return ma_fail(r->e, MA_UNSUPPORTED, "%s: frame %lld: not where its time says", r->name,
                       (long long)r->index + 1);
    if (r->begun && (g->width != r->shown->width || g->height != r->shown->height || g->format != r->shown->format))
        return ma_fail(r->e, MA_UNSUPPORTED, "%s: frame %lld: size or pixel format changes", r->name,
                       (long long)r->index + 1);
    if (r->begun && show(r, time)) return -1;
    r->begun = true;
    AVFrame *old = r->shown;
    r->shown = r->got;
    r->got = old;
    r->time = time;
    r->index++;
    /* where no rate is asked for each frame is wanted once, and best drawn while it is in the cache */
    return r->want->size.fps <= 0 && time >= r->want->start - r->slack ? emit(r) : 0;
}

static int decode(reader *r) {
    int rc = 0;
    while (!complete(r) && (rc = next_frame(r)) > 0)
        if (take(r)) return -1;
    if (rc < 0) return -1;
    if (!r->begun) return ma_fail(r->e, MA_CORRUPT, "%s: no frame can be decoded", r->name);
    if (r->rate <= 0) r->rate = r->index > 0 && r->time > 0 ? (double)r->index / r->time : 1;
    return complete(r) ? 0 : show(r, r->time + 1 / r->rate);
}

/* A clip shorter than asked: an error, or filled up. */
static int fill(reader *r) {
    ma_clip *c = r->clip;
    const ma_clip_opts *w = r->want;
    int64_t have = c->frames;
    if (have && (complete(r) || !w->size.frames)) return 0;
    if (!have || w->when_short == MA_SHORT_ERROR || w->when_short == MA_SHORT_SKIP)
        return ma_fail(r->e, MA_SHORT, "%s: %lld frames from %gs on, %lld wanted", r->name, (long long)have, w->start,
                       (long long)(w->size.frames ? w->size.frames : 1));
    size_t frame = (size_t)(c->height * c->width) * 3;
    for (int64_t k = have; k < w->size.frames; k++) {
        int64_t from = w->when_short == MA_SHORT_LOOP ? k % have : have - 1;
        memcpy(c->rgb + (size_t)k * frame, c->rgb + (size_t)from * frame, frame);
        c->index[k] = w->when_short == MA_SHORT_LOOP ? c->index[from] : -1;
        c->time[k] = c->time[from];
    }
    c->frames = w->size.frames;
    return 0;
}

static void close_reader(reader *r) {
    sws_freeContext(r->sws);
    av_frame_free(&r->got);
    av_frame_free(&r->shown);
    forget_queue(r);
    free(r->queue);
    av_packet_free(&r->packet);
    avcodec_free_context(&r->codec);
    avformat_close_input(&r->file);
    if (r->io) av_freep(&r->io->buffer);
    avio_context_free(&r->io);
    ma_release(r->stored);
    ma_release(r->turned);
    ma_scaler_free(r->scaler);
}

static int check_options(const ma_clip_opts *w, const char *name, ma_err *e) {
    const ma_clip_size *s = &w->size;
    if (s->frames < 0 || s->height < 0 || s->width < 0 || s->height > MOST_SIDE || s->width > MOST_SIDE ||
        !s->height != !s->width || !(s->fps >= 0 && s->fps < 1e6) || !(w->start >= 0 && w->start < 1e9))
        return ma_fail(e, MA_USAGE, "%s: a clip of %lldx%lldx%lld at %g fps from %gs makes no sense", name,
                       (long long)s->frames, (long long)s->height, (long long)s->width, s->fps, w->start);
    return 0;
}

/* One way through: from what the clip needs on, or from the beginning. *again: the first could not be gone. */
static int read_clip(reader r, bool skipping, bool *again) {
    int rc = open_file(&r);
    if (!rc) rc = open_codec(&r);
    if (!rc) rc = read_turn(&r);
    if (!rc) read_clock(&r);
    const bool opened = !rc;
    if (!rc && skipping && (!frame_a_packet(r.codec->codec_id) || skip(&r))) rc = -1;
    if (!rc) {
        r.index = r.skipped - 1;
        rc = decode(&r);
    }
    if (!rc) rc = fill(&r);
    r.clip->fps = r.want->size.fps > 0 ? r.want->size.fps : r.rate;
    *again = opened && rc < 0 && skipping && r.e->reason != MA_SHORT && r.e->reason != MA_TIMEOUT;
    close_reader(&r);
    if (rc) ma_clip_free(r.clip);
    return rc;
}

int ma_video_read(const void *bytes, size_t size, const char *name, const ma_clip_opts *opts, ma_clip *out, ma_err *e) {
    *out = (ma_clip){0};
    ma_err why = {0};
    reader r = {.name = name, .want = opts, .clip = out, .e = &why, .index = -1, .drawn = -1};
    r.src = (source){bytes, (int64_t)size, 0};
    r.deadline = ma_now() + (opts->timeout > 0 ? opts->timeout : DEFAULT_TIMEOUT);
    ma_av_quiet();
    if (check_options(opts, name, e) || ma_container_whole(bytes, size, name, e)) return -1;
    bool again = opts->start > 0;
    int rc = again ? read_clip(r, true, &again) : -1;
    if (rc && (again || !(opts->start > 0))) {
        ma_err_clear(&why);
        rc = read_clip(r, false, &again);
    }
    return rc < 0 ? ma_fail(e, why.reason, "%s", why.text) : rc;
}

void ma_clip_free(ma_clip *c) {
    free(c->rgb);
    free(c->index);
    free(c->time);
    *c = (ma_clip){0};
}
