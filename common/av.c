/* av: FFmpeg's messages and its pixel converter.
 *
 * Limits: the message hook is one for the process, the line it keeps one a thread; decoders and encoders therefore run
 * on the thread that calls them. Traps: swscale takes full range and the matrix only through sws_setColorspaceDetails,
 * after the context stands; its answer there is no error (RGB to RGB has nothing to set). 4:2:0 chroma sits midway
 * between lines unless told otherwise: the ffmpeg program says 128 (of 256), and so do we.
 */
#include "av.h"
#include <libavutil/error.h>
#include <libavutil/log.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char said[200];

static void hear(void *who, int level, const char *fmt, va_list ap) {
    (void)who;
    if (level > AV_LOG_ERROR) return;
    vsnprintf(said, sizeof said, fmt, ap);
    for (char *c = said; *c; c++)
        if ((unsigned char)*c < ' ') *c = ' ';
    for (size_t n = strlen(said); n && said[n - 1] == ' '; n--) said[n - 1] = 0;
}

static void hook(void) {
    av_log_set_callback(hear);
}

void ma_av_quiet(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, hook);
    said[0] = 0;
}

const char *ma_av_said(void) {
    return said;
}

int ma_av_fail(ma_err *e, ma_reason reason, const char *name, const char *what, int code) {
    char words[AV_ERROR_MAX_STRING_SIZE] = "";
    av_strerror(code, words, sizeof words);
    if (code == AVERROR_EXIT) return ma_fail(e, MA_TIMEOUT, "%s: %s: the time allowed is over", name, what);
    if (code == AVERROR(ENOMEM)) reason = MA_MEMORY;
    if (!said[0]) return ma_fail(e, reason, "%s: %s: %s", name, what, words);
    return ma_fail(e, reason, "%s: %s: %s (%s)", name, what, words, said);
}

static void set_colours(struct SwsContext *s, ma_av_pixels from, ma_av_pixels to) {
    int *inverse, *table, full_in, full_out, brightness, contrast, saturation;
    sws_getColorspaceDetails(s, &inverse, &full_in, &table, &full_out, &brightness, &contrast, &saturation);
    if (from.range != AVCOL_RANGE_UNSPECIFIED) full_in = from.range == AVCOL_RANGE_JPEG;
    if (to.range != AVCOL_RANGE_UNSPECIFIED) full_out = to.range == AVCOL_RANGE_JPEG;
    sws_setColorspaceDetails(s, sws_getCoefficients((int)from.space), full_in, sws_getCoefficients((int)to.space),
                             full_out, brightness, contrast, saturation);
}

static bool chroma_between_lines(enum AVPixelFormat f) {
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(f);
    return d && d->log2_chroma_h == 1;
}

struct SwsContext *ma_av_scaler(int width, int height, ma_av_pixels from, ma_av_pixels to, int flags) {
    struct SwsContext *s = sws_alloc_context();
    if (!s) return NULL;
    av_opt_set_int(s, "srcw", width, 0);
    av_opt_set_int(s, "srch", height, 0);
    av_opt_set_int(s, "dstw", width, 0);
    av_opt_set_int(s, "dsth", height, 0);
    av_opt_set_int(s, "src_format", from.format, 0);
    av_opt_set_int(s, "dst_format", to.format, 0);
    av_opt_set_int(s, "sws_flags", flags, 0);
    if (chroma_between_lines(from.format)) av_opt_set_int(s, "src_v_chr_pos", 128, 0);
    if (chroma_between_lines(to.format)) av_opt_set_int(s, "dst_v_chr_pos", 128, 0);
    if (sws_init_context(s, NULL, NULL) < 0) {
        sws_freeContext(s);
        return NULL;
    }
    set_colours(s, from, to);
    return s;
}

int ma_av_to_rgb(const AVFrame *f, struct SwsContext **sws, uint8_t *rgb, const char *name, ma_err *e) {
    ma_av_pixels from = {f->format, f->colorspace, f->color_range},
                 to = {AV_PIX_FMT_RGB24, f->colorspace, AVCOL_RANGE_UNSPECIFIED};
    if (!*sws) *sws = ma_av_scaler(f->width, f->height, from, to, SWS_BICUBIC);
    if (!*sws) {
        const char *format = av_get_pix_fmt_name(from.format);
        return ma_fail(e, MA_UNSUPPORTED, "%s: no way from %s to RGB", name, format ? format : "an unknown format");
    }
    uint8_t *planes[4] = {rgb};
    int rows[4] = {3 * f->width};
    int done = sws_scale(*sws, (const uint8_t *const *)f->data, f->linesize, 0, f->height, planes, rows);
    return done == f->height ? 0 : ma_fail(e, MA_CORRUPT, "%s: colours cannot be converted", name);
}

bool ma_av_yuv(const AVFrame *f, ma_scale_yuv *out) {
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(f->format);
    const uint64_t other =
        AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_PAL | AV_PIX_FMT_FLAG_BITSTREAM | AV_PIX_FMT_FLAG_HWACCEL;
    if (!d || d->nb_components != 3 || d->flags & other || f->colorspace == AVCOL_SPC_YCGCO) return false;
    for (int k = 0; k < 3; k++)
        if (d->comp[k].plane != k || d->comp[k].step != 1 || d->comp[k].depth != 8 || f->linesize[k] <= 0) return false;
    bool full =
        f->color_range == AVCOL_RANGE_UNSPECIFIED ? !strncmp(d->name, "yuvj", 4) : f->color_range == AVCOL_RANGE_JPEG;
    const int *c = sws_getCoefficients((int)f->colorspace); /* of limited range, in 65536ths: Cr to R, Cb to B, to G */
    float luma = full ? 1 : 255 / 219.0f, chroma = full ? 224 / 255.0f / 65536 : 1 / 65536.0f, black = full ? 0 : 16;
    float of[3][2] = {{0, (float)c[0]}, {(float)-c[2], (float)-c[3]}, {(float)c[1], 0}};
    *out = (ma_scale_yuv){.down = d->log2_chroma_h, .across = d->log2_chroma_w};
    for (int k = 0; k < 3; k++) {
        float u = of[k][0] * chroma, v = of[k][1] * chroma;
        memcpy(out->matrix[k], (float[]){luma, u, v, -luma * black - 128 * (u + v)}, sizeof out->matrix[k]);
    }
    return true;
}
