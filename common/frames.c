/* frames: see frames.h. Traps: a folder that holds pictures of a longer clip is rid of those behind the last. */
#include "frames.h"

#include "file.h"
#include "npy.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

static const struct {
    const char *ext, *video; /* video: FFmpeg writes it, under this name */
} kinds[] = {[MA_FRAMES_MP4] = {".mp4", "mp4"},
             [MA_FRAMES_PNG] = {"", NULL},
             [MA_FRAMES_Y4M] = {".y4m", "y4m"},
             [MA_FRAMES_NPY] = {".npy", NULL}};

struct ma_frames {
    ma_frames_opts o;
    char *folder;
    int64_t done;
    uint8_t *rgb; /* one frame's, of npy all */
    ma_buf file;
    ma_video_writer *video;
};

const char *ma_frames_ext(ma_frames_format f) {
    return kinds[f].ext;
}

ma_frames *ma_frames_open(const ma_frames_opts *o, const char *folder, ma_err *e) {
    ma_frames *f = ma_alloc(1, sizeof *f);
    const size_t frame = (size_t)(o->height * o->width * 3), held = o->format == MA_FRAMES_NPY ? (size_t)o->frames : 1;
    if (f) {
        f->o = *o;
        f->folder = folder ? ma_strdup(folder) : NULL;
        f->rgb = ma_alloc(held, frame);
    }
    if (!f || !f->rgb || (folder && !f->folder)) {
        ma_fail(e, MA_MEMORY, "frames: out of memory");
        ma_frames_free(f);
        return NULL;
    }
    const char *video = kinds[o->format].video;
    if (video) f->video = ma_video_begin(o->frames, o->height, o->width, o->fps, video, o->crf, &f->file, e);
    if (video ? f->video != NULL : !folder || !ma_make_dirs(folder, e)) return f;
    ma_frames_free(f);
    return NULL;
}

void ma_frames_free(ma_frames *f) {
    if (!f) return;
    ma_video_abort(f->video);
    ma_buf_free(&f->file);
    ma_release(f->rgb);
    free(f->folder);
    ma_release(f);
}

/* ±1 to 0..255 */
static void to_bytes(uint8_t *out, const float *in, size_t n) {
#pragma omp parallel for if (n >= 1 << 16)
    for (size_t k = 0; k < n; k++) out[k] = (uint8_t)lrintf(fminf(fmaxf((in[k] + 1) * 127.5f, 0), 255));
}

static char *picture_path(const ma_frames *f, int64_t k) {
    return ma_format("%s/%04lld.png", f->folder, (long long)k);
}

static int write_picture(const ma_frames *f, ma_err *e) {
    ma_buf png = {0};
    char *path = picture_path(f, f->done);
    int rc =
        path ? ma_png_write(f->rgb, f->o.height, f->o.width, &png, e) : ma_fail(e, MA_MEMORY, "frames: out of memory");
    if (!rc) rc = ma_write_file(path, png.data, png.size, e);
    ma_buf_free(&png);
    free(path);
    return rc;
}

int ma_frames_add(ma_frames *f, const float *rgb, int64_t n, ma_err *e) {
    const size_t frame = (size_t)(f->o.height * f->o.width * 3);
    int rc = 0;
    if (n > f->o.frames - f->done)
        return ma_fail(e, MA_SHAPE, "frames: more than the %lld that were to come", (long long)f->o.frames);
    for (int64_t k = 0; k < n && !rc; k++, f->done++) {
        uint8_t *to = f->rgb + (f->o.format == MA_FRAMES_NPY ? (size_t)f->done * frame : 0);
        to_bytes(to, rgb + (size_t)k * frame, frame);
        if (f->video) rc = ma_video_add(f->video, to, e);
        if (f->o.format == MA_FRAMES_PNG) rc = write_picture(f, e);
    }
    return rc;
}

/* Pictures of a longer clip that stood here. */
static void remove_rest(const ma_frames *f) {
    bool gone = true;
    for (int64_t k = f->done; gone; k++) {
        char *path = picture_path(f, k);
        gone = path && !unlink(path);
        free(path);
    }
}

int ma_frames_end(ma_frames *f, ma_buf *file, ma_err *e) {
    const ma_array all = {MA_U8, 4, {f->done, f->o.height, f->o.width, 3}, f->rgb};
    ma_video_writer *video = f->video;
    int rc = 0;
    if (f->done != f->o.frames)
        return ma_fail(e, MA_SHORT, "frames: %lld of %lld came", (long long)f->done, (long long)f->o.frames);
    f->video = NULL;
    if (video) rc = ma_video_end(video, e);
    if (f->o.format == MA_FRAMES_NPY) rc = ma_npy_write(&all, &f->file, e);
    if (f->o.format == MA_FRAMES_PNG) remove_rest(f);
    if (rc) return rc;
    *file = f->file;
    f->file = (ma_buf){0};
    return 0;
}
