/* ma-flow: optical flow by RAFT between frames of each sample's clip. Adds KEY.flow.npy, (T,H,W,2) in half precision,
 * or pictures KEY.flow-000.png, … (colours, or KITTI's 16 bit), or KEY.flow-000.flo, ….
 *
 * Frames skip, skip + stride, skip + 2·stride, … are taken; flow k goes from the k-th of them to the next. With the
 * defaults these are the first frames of a VideoMAE encoder's tubelets.
 * Limits: fp32. The flow is resized without a filter: going down by more than 2 in one step loses thin motion.
 */
#include "../common/clip.h"
#include "../common/context.h"
#include "../common/models/raft.h"
#include "../common/stage.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NPY, FLO, KITTI, PNG };
static const char *const formats[] = {"npy", "flo", "kitti", "png"};

static const char *model;
static int64_t updates = 12, stride = 2, skip = -1, batch = 4, size[2], out_size[2] = {128, 192};
static int format;
static ma_clip_args args = MA_CLIP_DEFAULTS;

static const ma_opt options[] = {
    {"model", 'm', MA_OPT_TEXT, &model, "WEIGHTS", "RAFT, small or large: princeton-vl's or torchvision's file", 0, 0},
    {"updates", 0, MA_OPT_INT, &updates, "N", "refinement steps (default 12)", 1, 100},
    MA_CLIP_OPTIONS(args),
    {"skip", 0, MA_OPT_INT, &skip, "N", "frames dropped at the front (default what the stride leaves over)", 0, 1e6},
    {"stride", 0, MA_OPT_INT, &stride, "N", "frames from one flow to the next (default 2)", 1, 1000},
    {"size", 0, MA_OPT_SIZE, size, "native|HxW", "size RAFT works at; native is the clip's (default native)", 16, 8192},
    {"out-size", 0, MA_OPT_SIZE, out_size, "native|HxW", "size of the flow, in whose pixels it is (default 128x192)", 1,
     8192},
    {"format", 0, MA_OPT_CHOICE, &format, "npy|flo|kitti|png", "png is the colour wheel (default npy)", 0, 0},
    {"batch", 0, MA_OPT_INT, &batch, "N", "pairs of frames per forward pass (default 4)", 1, 1024},
    {0},
};

static ma_cli cli = {
    .name = "ma-flow",
    .does = "adds optical flow to every sample",
    .args = "-m WEIGHTS [INPUT]…",
    .opts = options,
};

typedef struct flow {
    ma_device *dev;
    ma_ctx *ctx;
    ma_weights *weights;
    raft *net;
    int64_t pairs;
} flow;

/* ---- options */

/* RAFT's size is what the clip is decoded to: one resampling, not two. The clip's shape chose the crop, so it must be
 * the same shape. */
static int set_sizes(flow *f, ma_err *e) {
    ma_clip_size *c = &args.size;
    if (size[0] && size[0] * c->width != size[1] * c->height)
        return ma_fail(e, MA_USAGE, "--size: %lldx%lld has not the shape of the clip's %lldx%lld", (long long)size[0],
                       (long long)size[1], (long long)c->height, (long long)c->width);
    if (size[0]) {
        c->height = size[0];
        c->width = size[1];
    }
    if (!out_size[0]) memcpy(out_size, (int64_t[]){c->height, c->width}, sizeof out_size);
    if (skip < 0) skip = c->frames % stride;
    f->pairs = c->frames > skip ? (c->frames - skip - 1) / stride : 0;
    if (f->pairs > 0) return 0;
    return ma_fail(e, MA_USAGE, "--clip: %lld frames, %lld skipped, at stride %lld: not a pair", (long long)c->frames,
                   (long long)skip, (long long)stride);
}

static int load(flow *f, ma_err *e) {
    if (!model) return ma_fail(e, MA_USAGE, "no model: give -m WEIGHTS");
    if (!cli.common.dtype) ma_set_type(f->ctx, MA_F32); // what auto means here
    if (ma_get_type(f->ctx) != MA_F32) return ma_fail(e, MA_USAGE, "--dtype: RAFT is computed in f32");
    if (!(f->weights = ma_weights_open(model, e))) return -1;
    if (!(f->net = raft_load(f->ctx, f->weights))) *e = *ma_ctx_err(f->ctx);
    return f->net ? 0 : -1;
}

static cJSON *make_entry(const flow *f, const ma_sample *s) {
    cJSON *o = ma_clip_options_json(&args), *w = cJSON_CreateObject();
    int out[] = {(int)out_size[0], (int)out_size[1]};
    cJSON_AddNumberToObject(o, "updates", (double)updates);
    cJSON_AddNumberToObject(o, "skip", (double)skip);
    cJSON_AddNumberToObject(o, "stride", (double)stride);
    cJSON_AddItemToObject(o, "out-size", cJSON_CreateIntArray(out, 2));
    cJSON_AddStringToObject(o, "format", formats[format]);
    cJSON_AddStringToObject(w, "raft", ma_weights_sha(f->weights));
    return ma_clip_entry(s, o, w);
}

/* ---- flow of a clip */

/* The frames that are looked at, padded for RAFT: (pairs+1,PH,PW,3). */
static float *take_frames(const flow *f, const ma_clip *clip, int64_t pad[4]) {
    size_t frame = (size_t)(clip->height * clip->width * 3);
    uint8_t *rgb = ma_alloc((size_t)f->pairs + 1, frame);
    if (!rgb) return NULL;
    for (int64_t k = 0; k <= f->pairs; k++)
        memcpy(rgb + (size_t)k * frame, clip->rgb + (size_t)(skip + k * stride) * frame, frame);
    float *frames = raft_pad(rgb, f->pairs + 1, clip->height, clip->width, pad);
    ma_release(rgb);
    return frames;
}

/* From frames k, …, k+n-1 to those one later, cut back to the clip, resized, in pixels of the new size. */
static ma_tensor *forward(flow *f, ma_tensor *from, ma_tensor *to, const int64_t pad[4]) {
    ma_ctx *c = f->ctx;
    int64_t h = args.size.height, w = args.size.width;
    float scale[] = {(float)out_size[1] / (float)w, (float)out_size[0] / (float)h};
    ma_tensor *uv = raft_forward(c, f->net, from, to, (int)updates); // (n,1,PH,PW,2)
    uv = ma_slice(c, ma_slice(c, uv, 2, pad[0], h), 3, pad[1], w);   // (n,1,H,W,2)
    if (out_size[0] == h && out_size[1] == w) return uv;
    uv = ma_resize(c, uv, 1, out_size[0], out_size[1], false);
    return ma_mul_(c, uv, ma_input(c, scale, MA_SHAPE(2)));
}

/* All flows of a clip into uv, (pairs,H,W,2). -1: the run is over. */
static int run_clip(flow *f, const float *frames, const int64_t pad[4], float *uv, ma_err *e) {
    int64_t frame = pad[2] * pad[3] * 3, each = out_size[0] * out_size[1] * 2;
    for (int64_t k = 0; k < f->pairs && !ma_failed(f->ctx) && !ma_stopped; k += batch) {
        int64_t n = k + batch < f->pairs ? batch : f->pairs - k, shape[] = {n, 1, pad[2], pad[3], 3};
        ma_tensor *from = ma_input(f->ctx, frames + k * frame, 5, shape);
        ma_tensor *to = ma_input(f->ctx, frames + (k + 1) * frame, 5, shape);
        ma_tensor *t = forward(f, from, to, pad);
        if (t) ma_get(f->ctx, t, uv + k * each);
        ma_reset(f->ctx);
    }
    if (ma_stopped) return -1;
    return ma_ctx_failed(f->ctx, e);
}

/* ---- output */

/* Middlebury's .flo: a magic number, width, height, u and v interleaved. Little-endian. */
static int flo_write(const float *uv, int64_t h, int64_t w, ma_buf *out, ma_err *e) {
    float magic = 202021.25f;
    int32_t wh[] = {(int32_t)w, (int32_t)h};
    if (ma_buf_add(out, &magic, sizeof magic) || ma_buf_add(out, wh, sizeof wh) ||
        ma_buf_add(out, uv, (size_t)(h * w) * 2 * sizeof *uv))
        return ma_fail(e, MA_MEMORY, "out of memory");
    return 0;
}

static int kitti_write(const float *uv, int64_t h, int64_t w, ma_buf *out, ma_err *e) {
    uint16_t *rgb = ma_alloc((size_t)(h * w), 3 * sizeof *rgb);
    if (!rgb) return ma_fail(e, MA_MEMORY, "out of memory");
    for (int64_t i = 0; i < h * w; i++) {
        for (int k = 0; k < 2; k++) rgb[3 * i + k] = (uint16_t)fmin(fmax(rint(uv[2 * i + k] * 64.0 + 32768), 0), 65535);
        rgb[3 * i + 2] = 1; /* valid */
    }
    int rc = ma_png_write16(rgb, h, w, out, e);
    ma_release(rgb);
    return rc;
}

/* max: the length of full colour, one for the whole clip. */
static int colour_write(const float *uv, int64_t h, int64_t w, float max, ma_buf *out, ma_err *e) {
    uint8_t *rgb = ma_alloc((size_t)(h * w), 3);
    if (!rgb) return ma_fail(e, MA_MEMORY, "out of memory");
    ma_flow_picture(uv, h, w, max, rgb);
    int rc = ma_png_write(rgb, h, w, out, e);
    ma_release(rgb);
    return rc;
}

/* Members of an earlier run with more frames would stay behind. */
static void drop_pictures(ma_sample *s) {
    for (int k = s->n - 1; k >= 0; k--)
        if (!strncmp(s->m[k].ext, "flow-", 5)) ma_sample_drop(s, s->m[k].ext);
}

static int put_pictures(ma_sample *s, const float *uv, int64_t n, ma_err *e) {
    int64_t h = out_size[0], w = out_size[1], each = h * w * 2;
    float max = ma_flow_longest(uv, n * h * w);
    drop_pictures(s);
    for (int64_t k = 0; k < n; k++) {
        ma_buf b = {0};
        char ext[32];
        snprintf(ext, sizeof ext, "flow-%03lld.%s", (long long)k, format == FLO ? "flo" : "png");
        int rc = format == FLO     ? flo_write(uv + k * each, h, w, &b, e)
                 : format == KITTI ? kitti_write(uv + k * each, h, w, &b, e)
                                   : colour_write(uv + k * each, h, w, max, &b, e);
        if (rc) {
            ma_buf_free(&b);
            return -1;
        }
        if (ma_sample_put(s, ext, b.data, b.size, e)) return -1;
    }
    return 0;
}

static int put_flow(ma_sample *s, const float *uv, int64_t n, ma_err *e) {
    int64_t count = n * out_size[0] * out_size[1] * 2;
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(uv[i])) return ma_fail(e, MA_NOTFINITE, "%s: the flow is not finite", s->key);
    if (format != NPY) return put_pictures(s, uv, n, e);
    return ma_sample_put_f16(s, "flow.npy", uv, 4, (int64_t[]){n, out_size[0], out_size[1], 2}, e);
}

/* ---- the stream */

/* Adds flow to one sample. why: it is bad. -1: the run is over. */
static int add_flow(flow *f, ma_sample *s, const ma_clip *clip, ma_err *why, ma_err *e) {
    int64_t pad[4];
    float *frames = take_frames(f, clip, pad);
    float *uv = ma_alloc((size_t)(f->pairs * out_size[0] * out_size[1]), 2 * sizeof *uv);
    int rc = frames && uv ? run_clip(f, frames, pad, uv, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    if (!rc) put_flow(s, uv, f->pairs, why);
    ma_release(frames);
    ma_release(uv);
    return rc;
}

static void *prepare(void *self, ma_sample **s, ma_err *why) {
    static const char *const member[] = {"flow.npy", "flow-000.flo", "flow-000.png", "flow-000.png"};
    cJSON *entry = make_entry(self, *s);
    return ma_clip_begin(&cli, &args, s, entry, entry && ma_entry_same(&cli, *s, cli.name, member[format], entry), why);
}

/* One sample: a batch is made of its pairs. */
static int work(void *self, ma_sample **s, void **pre, int n, ma_err *why, ma_err *e) {
    ma_clip_job *j = *pre;
    int rc = j->clip.rgb ? add_flow(self, *s, &j->clip, why, e) : 0;
    if (!rc) ma_clip_finish(&cli, *s, j, why);
    (void)n;
    return rc;
}

/* Millions of numbers in the weights. */
static double millions(const ma_weights *w) {
    double sum = 0;
    for (int k = 0; k < ma_weights_count(w); k++) {
        const ma_entry *m = ma_weights_at(w, k);
        double count = 1;
        for (int d = 0; d < m->nd; d++) count *= (double)m->n[d];
        sum += count;
    }
    return sum / 1e6;
}

/* --dry-run: what would be computed, and in how much memory. */
static int plan(flow *f, ma_err *e) {
    char text[160];
    int64_t n = batch < f->pairs ? batch : f->pairs, pad[4];
    raft_padding(args.size.height, args.size.width, pad);
    int64_t shape[] = {n, 1, pad[2], pad[3], 3};
    ma_tensor *from = ma_new(f->ctx, MA_F32, 5, shape), *to = ma_new(f->ctx, MA_F32, 5, shape);
    if (!forward(f, from, to, pad)) return ma_ctx_failed(f->ctx, e);
    printf("%s: %.2f M parameters, %lld updates\n", raft_flavour(f->net), millions(f->weights), (long long)updates);
    printf("  %lld flows a clip, %lld at a time: %lldx%lldx%lldx3, twice -> %lldx%lldx%lldx2\n", (long long)f->pairs,
           (long long)n, (long long)n, (long long)pad[2], (long long)pad[3], (long long)n, (long long)out_size[0],
           (long long)out_size[1]);
    printf("memory: %s\n", ma_memory_text(text, f->ctx));
    return ma_flush_stdout(e);
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    ma_err e = {0};
    flow f = {0};
    rc = set_sizes(&f, &e) || ma_context_open(&cli, &f.dev, &f.ctx, &e) || load(&f, &e) ? -1 : 0;
    if (!rc && cli.common.dry_run) rc = plan(&f, &e);
    rc = ma_exit_status(&cli, &e, -1);
    if (!rc && !cli.common.dry_run)
        rc = ma_stage_run(&(ma_stage){.cli = &cli,
                                      .self = &f,
                                      .prepare = prepare,
                                      .work = work,
                                      .release = ma_clip_release,
                                      .batch = 1,
                                      .video = true},
                          STDOUT_FILENO);
    raft_free(f.net);
    ma_weights_close(f.weights);
    ma_ctx_free(f.ctx);
    ma_device_close(f.dev);
    ma_cli_free(&cli);
    return rc;
}
