/* ma-flow: optical flow by RAFT between frames of each sample's clip. Adds KEY.flow.npy, (T,H,W,2) in half precision,
 * or pictures KEY.flow-000.png, … (colours, or KITTI's 16 bit), or KEY.flow-000.flo, …; with --bidirectional also
 * KEY.flow-valid.npy, where the flow there and the flow back agree. ma-flow eval compares flows with true ones.
 *
 * Frames skip, skip + stride, skip + 2·stride, … are taken; flow k goes from the k-th of them to the next. With the
 * defaults these are the first frames of a VideoMAE encoder's tubelets.
 * A batch is part of a clip, or several whole ones, so that there are two shapes at most, which are launched as one
 * (ma_replay); where clips run out, what was there before stands in for them. While the device works on one batch the
 * frames of the next are put.
 *
 * Limits: what 16 bits hold: a network that overflows them gives no flow. The flow is resized without a filter: going
 * down by more than 2 in one step loses thin motion.
 */
#include "../common/clip.h"
#include "../common/context.h"
#include "../common/file.h"
#include "../common/flow.h"
#include "../common/flow_file.h"
#include "../common/models/raft.h"
#include "../common/npy.h"
#include "../common/stage.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NPY, FLO, KITTI, PNG };
static const char *const formats[] = {"npy", "flo", "kitti", "png"};

static const char *model;
static int64_t updates = 12, stride = 2, skip = -1, batch, size[2], out_size[2] = {128, 192};
static int format;
static bool bidirectional, keep_back;
static ma_clip_args args = MA_CLIP_DEFAULTS;

static const ma_opt options[] = {
    {"model", 'm', MA_OPT_TEXT, &model, "WEIGHTS", "RAFT: princeton-vl's or torchvision's file (default a small one's)",
     0, 0},
    {"updates", 0, MA_OPT_INT, &updates, "N", "refinement steps (default 12)", 1, 100},
    MA_CLIP_OPTIONS(args),
    {"skip", 0, MA_OPT_INT, &skip, "N", "frames dropped at the front (default what the stride leaves over)", 0, 1e6},
    {"stride", 0, MA_OPT_INT, &stride, "N", "frames from one flow to the next (default 2)", 1, 1000},
    {"size", 0, MA_OPT_SIZE, size, "native|HxW", "size RAFT works at; native is the clip's (default native)", 16, 8192},
    {"out-size", 0, MA_OPT_SIZE, out_size, "native|HxW", "size of the flow, in whose pixels it is (default 128x192)", 1,
     8192},
    {"format", 0, MA_OPT_CHOICE, &format, "npy|flo|kitti|png", "png is the colour wheel (default npy)", 0, 0},
    {"bidirectional", 0, MA_OPT_FLAG, &bidirectional, NULL, "also flow back, and KEY.flow-valid.npy: where both agree",
     0, 0},
    {"back", 0, MA_OPT_FLAG, &keep_back, NULL, "with --bidirectional: also KEY.flow-back.npy", 0, 0},
    {"batch", 0, MA_OPT_INT, &batch, "N", "most pairs of frames per forward pass (default by their size)", 1, 1024},
    {0},
};

static ma_cli cli = {
    .name = "ma-flow",
    .does = "adds optical flow to every sample",
    .args = "[-m WEIGHTS] [INPUT]… | eval REFERENCE ESTIMATE",
    .opts = options,
    .video = true,
    .presets = true,
};

enum {
    PIXELS = 2500000, /* of a batch, about, on a GPU: what fills a large one */
    FEW = 4,          /* pairs of a batch, of one clip, on a CPU, which gains nothing by more */
    WAVES = 4         /* batches, at least, that a GPU is given at a time */
};

typedef struct flow {
    ma_device *dev;
    ma_ctx *ctx;
    ma_weights *weights;
    raft *net;
    int64_t pairs;  /* of a clip */
    int64_t pad[4]; /* raft_padding of its frames */
    int64_t step;   /* pairs of a clip that a batch takes … */
    int64_t clips;  /* … and of how many clips: more than one only where step is all of a clip's pairs */
    int64_t waves;  /* batches that work is given at a time, at least */
} flow;

/* A sample on its way. */
typedef struct job {
    ma_clip_job *clip;
    uint8_t *frames; // (pairs+1,PH,PW,3): those that are looked at, padded; NULL: nothing is to be done
    ma_array uv[2];  // (pairs,H,W,2), there and, where wanted, back; of result_type()
    ma_buf npy[2];   /* the members that they are */
    size_t bytes;    /* of frames and npy */
} job;

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
    args.first = skip;
    args.every = stride;
    raft_padding(c->height, c->width, f->pad);
    if (f->pairs > 0) return 0;
    return ma_fail(e, MA_USAGE, "--clip: %lld frames, %lld skipped, at stride %lld: not a pair", (long long)c->frames,
                   (long long)skip, (long long)stride);
}

/* A clip that is more than a batch is cut into parts as alike as can be. */
static void set_batch(flow *f) {
    const bool gpu = f->dev->capture;
    int64_t most = batch ? batch : gpu ? PIXELS / (f->pad[2] * f->pad[3]) : f->pairs < FEW ? f->pairs : FEW;
    if (most < 1) most = 1;
    int64_t parts = (f->pairs + most - 1) / most;
    f->step = (f->pairs + parts - 1) / parts;
    f->clips = parts > 1 ? 1 : most / f->pairs;
    f->waves = gpu ? WAVES : 1;
}

/* Without -m it is the one that comes with the tools. NULL: an error. */
static ma_weights *open_weights(ma_err *e) {
    if (model) return ma_weights_open(model, e);
    ma_err why = {0};
    char *path = ma_shipped("toy/weights/raft-small.safetensors", &why);
    ma_weights *w = path ? ma_weights_open(path, e) : NULL;
    if (path) ma_say(&cli, 2, "weights: %s", path);
    if (!path) ma_fail(e, MA_USAGE, "no model: give -m WEIGHTS (%s)", why.text);
    free(path);
    return w;
}

static int load(flow *f, ma_err *e) {
    if (keep_back && !bidirectional) return ma_fail(e, MA_USAGE, "--back goes with --bidirectional");
    // What auto means here. Features have no range that asks for bf16, and flow lives of f16's three more bits.
    if (!cli.common.dtype) ma_set_type(f->ctx, f->dev->types[MA_F16] ? MA_F16 : MA_F32);
    ma_ctx_lever(f->ctx, "lower --batch");
    if (!(f->weights = open_weights(e))) return -1;
    if (!(f->net = raft_load(f->ctx, f->weights))) *e = *ma_ctx_err(f->ctx);
    ma_weights_sha(f->weights); // made once, here: prepare asks for it on many threads
    if (f->net) ma_say(&cli, 2, "%s", raft_flavour(f->net));
    ma_recording(f->ctx, false);
    set_batch(f);
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
    cJSON_AddBoolToObject(o, "bidirectional", bidirectional);
    cJSON_AddBoolToObject(o, "back", keep_back);
    cJSON_AddStringToObject(w, "raft", ma_weights_sha(f->weights));
    return ma_clip_entry(s, o, w);
}

/* ---- flow of a batch */

/* n flows between neighbouring frames of each clip, to the later one or back to the earlier, cut back to the clip,
 * resized, in pixels of the new size.   frames (B,n+1,PH,PW,3) → (B·n,1,H,W,2) */
static ma_tensor *forward(ma_ctx *c, const flow *f, ma_tensor *frames, bool back) {
    int64_t h = args.size.height, w = args.size.width, n = frames->n[1] - 1;
    float scale[] = {(float)out_size[1] / (float)w, (float)out_size[0] / (float)h};
    ma_tensor *uv = raft_between(c, f->net, frames, n, back, !back, (int)updates); // (B·n,1,PH,PW,2)
    uv = ma_slice(c, ma_slice(c, uv, 2, f->pad[0], h), 3, f->pad[1], w);           // (B·n,1,h,w,2)
    if (out_size[0] == h && out_size[1] == w) return uv;
    uv = ma_resize(c, uv, 1, out_size[0], out_size[1], false);
    return ma_mul_(c, uv, ma_input_f32(c, scale, MA_SHAPE(2)));
}

static ma_tensor *flow_there(ma_ctx *c, const void *self, ma_tensor **in) {
    return forward(c, self, in[0], false);
}

static ma_tensor *flow_back(ma_ctx *c, const void *self, ma_tensor **in) {
    return forward(c, self, in[0], true);
}

/* What is asked of one pass: pairs from, …, from+pairs-1 of so many clips. */
typedef struct part {
    int64_t clip, clips, from, pairs;
} part;

/* The k-th of those that n clips are cut into; clips 0: there are no more. */
static part part_of(const flow *f, int64_t n, int64_t k) {
    int64_t parts = (f->pairs + f->step - 1) / f->step, clip = k / parts * f->clips, from = k % parts * f->step;
    if (clip >= n) return (part){0};
    return (part){clip, n - clip < f->clips ? n - clip : f->clips, from,
                  f->pairs - from < f->step ? f->pairs - from : f->step};
}

/* Room for the frames of the largest batch. */
static ma_tensor *new_frames(const flow *f) {
    return ma_new(f->ctx, MA_U8, MA_SHAPE(f->clips * (f->step + 1), 1, f->pad[2], f->pad[3], 3));
}

/* A batch of so many pairs of each clip, at the room's beginning: (clips,pairs+1,PH,PW,3). */
static ma_tensor *frames_of(const flow *f, ma_tensor *room, int64_t pairs) {
    return ma_view(f->ctx, ma_rows(f->ctx, room, 0, f->clips * (pairs + 1)),
                   MA_SHAPE(f->clips, pairs + 1, f->pad[2], f->pad[3], 3));
}

static void put_frames(const flow *f, ma_tensor *room, job *const *j, const part *p) {
    ma_tensor *to = frames_of(f, room, p->pairs);
    for (int64_t k = 0; k < p->clips; k++)
        ma_put_raw(f->ctx, ma_rows(f->ctx, to, k, 1), j[p->clip + k]->frames + p->from * f->pad[2] * f->pad[3] * 3);
}

/* Results come in the type that they are written in. */
static ma_type result_type(void) {
    return format == NPY ? MA_F16 : MA_F32;
}

static void get_flow(const flow *f, ma_tensor *uv, job *const *j, const part *p, int back) {
    size_t each = (size_t)(out_size[0] * out_size[1] * 2) * ma_type_size(result_type());
    for (int64_t k = 0; uv && k < p->clips && !ma_failed(f->ctx); k++)
        ma_get_as(f->ctx, ma_rows(f->ctx, uv, k * p->pairs, p->pairs), result_type(),
                  (char *)j[p->clip + k]->uv[back].data + (size_t)p->from * each);
}

/* All flows of n clips. -1: the run is over. */
static int run_clips(const flow *f, job *const *j, int64_t n, ma_err *e) {
    static const ma_block way[2] = {flow_there, flow_back};
    ma_ctx *c = f->ctx;
    ma_tensor *room[2] = {new_frames(f), new_frames(f)}, *uv[2] = {0};
    part now = part_of(f, n, 0), next;
    put_frames(f, room[0], j, &now);
    ma_mark_t m = ma_mark(c);
    for (int64_t k = 0; now.clips && !ma_failed(c) && !ma_stopped; now = next, k++) {
        ma_tensor *in = frames_of(f, room[k % 2], now.pairs);
        for (int back = 0; back <= bidirectional; back++) uv[back] = ma_replay(c, way[back], f, &in, 1, 0);
        next = part_of(f, n, k + 1);
        put_frames(f, room[(k + 1) % 2], j, &next);
        for (int back = 0; back <= bidirectional; back++) get_flow(f, uv[back], j, &now, back);
        ma_rewind(c, m);
    }
    ma_reset(c);
    return ma_ctx_failed(c, e) || ma_stopped ? -1 : 0;
}

/* ---- output */

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
        if (!strncmp(s->m[k].ext, "flow-", 5) && strchr("0123456789", s->m[k].ext[5])) ma_sample_drop(s, s->m[k].ext);
}

/* valid: NULL, or what KITTI's pictures say of each pixel. */
static int put_pictures(ma_sample *s, const float *uv, const uint8_t *valid, int64_t n, ma_err *e) {
    int64_t h = out_size[0], w = out_size[1], each = h * w * 2;
    float max = ma_flow_longest(uv, n * h * w);
    drop_pictures(s);
    for (int64_t k = 0; k < n; k++) {
        ma_buf b = {0};
        char ext[32];
        snprintf(ext, sizeof ext, "flow-%03lld.%s", (long long)k, format == FLO ? "flo" : "png");
        int rc = format == FLO     ? ma_flo_write(uv + k * each, h, w, &b, e)
                 : format == KITTI ? ma_kitti_write(uv + k * each, valid ? valid + k * h * w : NULL, h, w, &b, e)
                                   : colour_write(uv + k * each, h, w, max, &b, e);
        if (rc) {
            ma_buf_free(&b);
            return -1;
        }
        if (ma_sample_put(s, ext, b.data, b.size, e)) return -1;
    }
    return 0;
}

/* Where the flows there and back agree, (n,H,W); ma_release. */
static uint8_t *make_valid(const float *const uv[2], int64_t n, ma_err *e) {
    int64_t h = out_size[0], w = out_size[1];
    uint8_t *valid = ma_alloc((size_t)(n * h * w), 1);
    if (!valid) ma_fail(e, MA_MEMORY, "out of memory");
    for (int64_t k = 0; valid && k < n; k++)
        ma_flow_consistent(uv[0] + k * h * w * 2, uv[1] + k * h * w * 2, h, w, valid + k * h * w);
    return valid;
}

/* In half precision. */
static int put_npy(ma_sample *s, const char *ext, job *j, int back, ma_err *e) {
    const ma_array *a = &j->uv[back];
    if (a->type == MA_F16) return ma_sample_put_half(s, ext, a, &j->npy[back], e);
    return ma_sample_put_f16(s, ext, a->data, a->nd, a->n, e);
}

/* The members: of the flow there, and what --bidirectional asks for. Those of an earlier run do not stay. uv: j's in
 * fp32, where anything but the flow itself is to be made. */
static int put_flow(ma_sample *s, job *j, const float *const uv[2], ma_err *e) {
    const int64_t *shape = j->uv[0].n, n = shape[0];
    for (int back = 0; back <= bidirectional; back++)
        if (ma_array_not_finite(&j->uv[back]) < ma_array_count(&j->uv[back]))
            return ma_fail(e, MA_NOTFINITE, "%s: the flow is not finite", s->key);
    uint8_t *valid = bidirectional ? make_valid(uv, n, e) : NULL;
    int rc = bidirectional && !valid ? -1 : 0;
    ma_sample_drop(s, "flow-valid.npy");
    ma_sample_drop(s, "flow-back.npy");
    if (!rc && format != NPY) rc = put_pictures(s, uv[0], valid, n, e);
    if (!rc && format == NPY) rc = put_npy(s, "flow.npy", j, 0, e);
    if (!rc && valid)
        rc =
            ma_sample_put_array(s, "flow-valid.npy", &(ma_array){MA_BOOL, 3, {shape[0], shape[1], shape[2]}, valid}, e);
    if (!rc && valid && keep_back) rc = put_npy(s, "flow-back.npy", j, 1, e);
    ma_release(valid);
    return rc;
}

/* ---- the stream */

/* Frames for the device, and room for what comes back. */
static int take(const flow *f, job *j, const char *key, ma_err *why) {
    const ma_clip *clip = &j->clip->clip;
    size_t from = (size_t)(clip->height * clip->width) * 3, to = (size_t)(f->pad[2] * f->pad[3]) * 3;
    size_t n = (size_t)f->pairs + 1, frames;
    bool good = ma_mul(n, to, &frames) && (j->frames = malloc(frames));
    for (int back = 0; back <= bidirectional && good; back++) {
        j->uv[back] = (ma_array){result_type(), 4, {f->pairs, out_size[0], out_size[1], 2}, NULL};
        good = !ma_npy_begin(&j->uv[back], &j->npy[back], NULL);
    }
    if (!good) return ma_fail(why, MA_MEMORY, "%s: out of memory", key);
    for (size_t k = 0; k < n; k++)
        raft_pad(clip->rgb + ((size_t)skip + k * (size_t)stride) * from, clip->height, clip->width, j->frames + k * to);
    j->bytes = frames + j->npy[0].size + j->npy[1].size;
    return 0;
}

static void *prepare(void *self, ma_sample **s, ma_err *why) {
    static const char *const member[] = {"flow.npy", "flow-000.flo", "flow-000.png", "flow-000.png"};
    cJSON *entry = make_entry(self, *s);
    bool there = entry && ma_entry_same(&cli, *s, cli.name, member[format], entry) &&
                 (!bidirectional || ma_sample_get(*s, "flow-valid.npy")) &&
                 (!keep_back || ma_sample_get(*s, "flow-back.npy"));
    job *j = calloc(1, sizeof *j);
    if (!j) {
        ma_fail(why, MA_MEMORY, "%s: out of memory", (*s)->key);
        cJSON_Delete(entry);
        return NULL;
    }
    j->clip = ma_clip_begin(&cli, &args, s, entry, there, why);
    if (*s && !why->reason && !there) take(self, j, (*s)->key, why);
    return j;
}

static int work(void *self, ma_sample **s, void **pre, int n, ma_err *why, ma_err *e) {
    job **todo = ma_alloc((size_t)n, sizeof *todo);
    int count = 0;
    for (int k = 0; todo && k < n; k++) {
        job *j = pre[k];
        if (j->frames) todo[count++] = j;
    }
    int rc = todo ? run_clips(self, todo, count, e) : ma_fail(e, MA_MEMORY, "out of memory");
    ma_release(todo);
    (void)s, (void)why;
    return rc;
}

static void finish(void *self, ma_sample *s, void *pre, ma_err *why) {
    job *j = pre;
    float *uv[2] = {0};
    bool good = true, more = bidirectional || format != NPY;
    if (!j->frames) return;
    for (int back = 0; back <= bidirectional && more && good; back++)
        good = (uv[back] = ma_array_f32(&j->uv[back], why));
    if (good) put_flow(s, j, (const float *const *)uv, why);
    (void)self;
    ma_clip_finish(&cli, s, j->clip, why);
    for (int k = 0; k < 2; k++) ma_release(uv[k]);
}

static void release(void *self, void *pre) {
    job *j = pre;
    if (j->clip) ma_clip_release(self, j->clip);
    free(j->frames);
    for (int k = 0; k < 2; k++) ma_buf_free(&j->npy[k]);
    free(j);
}

static size_t bytes(const void *pre) {
    const job *j = pre;
    return j->bytes + (j->clip ? ma_clip_bytes(j->clip) : 0);
}

/* With -v: whether passes were launched as one. */
static void tell(const flow *f) {
    const ma_replayed r = ma_ctx_replayed(f->ctx);
    ma_say(&cli, 2, "forward passes: %lld run, %lld launched from a recording, %lld that could not be recorded",
           (long long)(r.run - r.refused), (long long)r.replayed, (long long)r.refused);
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
    ma_tensor *frames = frames_of(f, new_frames(f), f->step);
    new_frames(f);
    ma_tensor *uv = NULL;
    for (int back = 0; back <= bidirectional; back++) uv = frames ? forward(f->ctx, f, frames, back) : NULL;
    if (!uv || ma_get_as(f->ctx, ma_rows(f->ctx, uv, 0, f->step), result_type(), NULL)) return ma_ctx_failed(f->ctx, e);
    printf("%s: %.2f M parameters, %lld updates\n", raft_flavour(f->net), millions(f->weights), (long long)updates);
    printf("  %lld flows a clip%s, %lld at a time, in %s: %lldx%lldx%lldx%lldx3 -> %lldx%lldx%lldx2\n",
           (long long)f->pairs, bidirectional ? ", there and back" : "", (long long)(f->clips * f->step),
           ma_type_name(ma_get_type(f->ctx)), (long long)f->clips, (long long)f->step + 1, (long long)f->pad[2],
           (long long)f->pad[3], (long long)(f->clips * f->step), (long long)out_size[0], (long long)out_size[1]);
    printf("memory: %s\n", ma_memory_text(text, f->ctx));
    return ma_flush_stdout(e);
}

/* ---- eval */

static void print_error(const char *name, const ma_flow_error *f) {
    double share = f->pixels ? 100 / (double)f->pixels : 0;
    printf("%-32s %11lld %10.4f %8.3f %8.3f\n", name, (long long)f->pixels, f->sum * share / 100,
           (double)f->over1 * share, (double)f->over3 * share);
}

/* A file's or sample's errors, a line of the table, and part of the mean. */
static void count_error(const char *name, const ma_flow_error *one, ma_flow_error *all) {
    print_error(name, one);
    *all = (ma_flow_error){all->sum + one->sum, all->pixels + one->pixels, all->over1 + one->over1,
                           all->over3 + one->over3};
}

static int read_flow(const char *path, ma_flow *f, ma_err *e) {
    ma_buf bytes = {0};
    int rc = ma_read_file(path, (size_t)1 << 31, &bytes, e);
    if (!rc) rc = ma_flow_read(bytes.data, bytes.size, path, f, e);
    ma_buf_free(&bytes);
    return rc;
}

static int eval_files(const char *reference, const char *estimate, ma_flow_error *all, ma_err *e) {
    ma_flow truth = {0}, got = {0};
    int rc = read_flow(reference, &truth, e) || read_flow(estimate, &got, e) ? -1 : 0;
    if (!rc && (truth.h != got.h || truth.w != got.w))
        rc = ma_fail(e, MA_SHAPE, "%s is %lldx%lld, %s %lldx%lld", estimate, (long long)got.h, (long long)got.w,
                     reference, (long long)truth.h, (long long)truth.w);
    if (!rc) {
        const char *slash = strrchr(reference, '/');
        ma_flow_error one = {0};
        ma_flow_compare(got.uv, truth.uv, truth.valid, truth.h * truth.w, &one);
        count_error(slash ? slash + 1 : reference, &one, all);
    }
    ma_flow_free(&truth);
    ma_flow_free(&got);
    return rc;
}

static bool ends(const char *name, const char *tail) {
    size_t n = strlen(name), m = strlen(tail);
    return n > m && !strcasecmp(name + n - m, tail);
}

static bool is_flow_file(const char *name) {
    return ends(name, ".flo") || ends(name, ".png");
}

static int flow_names(const struct dirent *d) {
    return is_flow_file(d->d_name);
}

/* Every flow of a folder, against the other's of the same name, with .flo or .png behind it. */
static int eval_folders(const char *reference, const char *estimate, ma_flow_error *all, ma_err *e) {
    struct dirent **list = NULL;
    int n = scandir(reference, &list, flow_names, alphasort), rc = 0;
    if (n < 0) return ma_fail(e, MA_IO, "%s: %s", reference, strerror(errno));
    if (!n) rc = ma_fail(e, MA_MISSING, "%s: no .flo or .png in it", reference);
    for (int k = 0; k < n; k++) {
        const char *name = list[k]->d_name;
        int stem = (int)strlen(name) - 4;
        char *truth = ma_format("%s/%s", reference, name), *flo = ma_format("%s/%.*s.flo", estimate, stem, name);
        char *png = ma_format("%s/%.*s.png", estimate, stem, name);
        if (!rc && !(truth && flo && png)) rc = ma_fail(e, MA_MEMORY, "out of memory");
        if (!rc) rc = eval_files(truth, access(flo, R_OK) ? png : flo, all, e);
        free(truth);
        free(flo);
        free(png);
        free(list[k]);
    }
    free(list);
    return rc;
}

/* flow.npy of both samples; where the reference has flow-valid.npy, its pixels alone. */
static int eval_sample(const ma_sample *reference, const ma_sample *estimate, ma_flow_error *all, ma_err *e) {
    ma_array a[3] = {0};
    char x[160], y[160];
    ma_flow_error one = {0};
    float *truth = NULL, *got = NULL;
    bool masked = ma_sample_get(reference, "flow-valid.npy");
    int rc = ma_sample_array(reference, "flow.npy", &a[0], e) || ma_sample_array(estimate, "flow.npy", &a[1], e) ||
                     (masked && ma_sample_array(reference, "flow-valid.npy", &a[2], e))
                 ? -1
                 : 0;
    bool fits = a[0].nd == 4 && a[0].n[3] == 2 && a[1].nd == 4 && !memcmp(a[0].n, a[1].n, 4 * sizeof *a->n);
    if (masked) fits = fits && a[2].type == MA_BOOL && a[2].nd == 3 && !memcmp(a[0].n, a[2].n, 3 * sizeof *a->n);
    if (!rc && !fits)
        rc = ma_fail(e, MA_SHAPE, "%s: flow.npy is %s in the reference, %s in the estimate", reference->key,
                     ma_shape_text(x, a[0].nd, a[0].n), ma_shape_text(y, a[1].nd, a[1].n));
    if (!rc && !((truth = ma_array_f32(&a[0], e)) && (got = ma_array_f32(&a[1], e)))) rc = -1;
    if (!rc) {
        ma_flow_compare(got, truth, a[2].data, (int64_t)ma_array_count(&a[0]) / 2, &one);
        count_error(reference->key, &one, all);
    }
    ma_release(truth);
    ma_release(got);
    for (int k = 0; k < 3; k++) ma_array_free(&a[k]);
    return rc;
}

/* Samples of one key, in one order. */
static int eval_shards(const char *const path[2], ma_flow_error *all, ma_err *e) {
    ma_reader *r[2] = {ma_reader_open(&path[0], 1, e), NULL};
    if (r[0]) r[1] = ma_reader_open(&path[1], 1, e);
    int rc = r[1] ? 1 : -1;
    while (rc > 0) {
        ma_sample *s[2] = {0};
        int more[2] = {ma_reader_next(r[0], &s[0], e), 0};
        if (more[0] >= 0) more[1] = ma_reader_next(r[1], &s[1], e);
        rc = more[0] < 0 || more[1] < 0 ? -1 : more[0] && more[1];
        if (rc >= 0 && (more[0] != more[1] || (rc && strcmp(s[0]->key, s[1]->key))))
            rc = ma_fail(e, MA_MISSING, "%s has %s where %s has %s", path[0], s[0] ? s[0]->key : "ended", path[1],
                         s[1] ? s[1]->key : "ended");
        if (rc > 0 && eval_sample(s[0], s[1], all, e)) rc = -1;
        ma_sample_free(s[0]);
        ma_sample_free(s[1]);
    }
    for (int k = 0; k < 2; k++)
        if (r[k]) ma_reader_close(r[k]);
    return rc;
}

static bool is_folder(const char *path) {
    struct stat s;
    return !stat(path, &s) && S_ISDIR(s.st_mode);
}

/* ma-flow eval REFERENCE ESTIMATE: end-point errors, a line a file and the mean over all their pixels. */
static int eval(int argc, char **argv) {
    static const ma_opt no_options[] = {{0}};
    ma_cli c = {.name = "ma-flow eval",
                .does = "compares flows: .flo, KITTI's png, folders of them, or shards",
                .args = "REFERENCE ESTIMATE",
                .opts = no_options};
    ma_err e = {0};
    ma_flow_error all = {0};
    int rc = ma_cli_parse(&c, argc, argv, stdout);
    if (rc >= 0) return rc;
    const char *const *in = c.inputs.at;
    if (c.inputs.n != 2) {
        rc = ma_fail(&e, MA_USAGE, "%d inputs: give REFERENCE and ESTIMATE", c.inputs.n);
    } else {
        printf("%-32s %11s %10s %8s %8s\n", "# flow", "pixels", "epe", ">1px %", ">3px %");
        rc = is_folder(in[0])      ? eval_folders(in[0], in[1], &all, &e)
             : is_flow_file(in[0]) ? eval_files(in[0], in[1], &all, &e)
                                   : eval_shards(in, &all, &e);
        if (!rc) print_error("mean", &all);
        if (!rc) rc = ma_flush_stdout(&e);
    }
    rc = ma_exit_status(&c, &e, -1);
    ma_cli_free(&c);
    return rc;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "eval")) return eval(argc - 1, argv + 1);
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    if (cli.common.print_list) return ma_inputs_print(&cli, stdout);
    ma_err e = {0};
    flow f = {0};
    rc = set_sizes(&f, &e) || ma_context_open(&cli, &f.dev, &f.ctx, &e) || load(&f, &e) ? -1 : 0;
    if (!rc && cli.common.dry_run) rc = plan(&f, &e);
    rc = ma_exit_status(&cli, &e, -1);
    if (!rc && !cli.common.dry_run) {
        rc = ma_stage_run(&(ma_stage){.cli = &cli,
                                      .self = &f,
                                      .prepare = prepare,
                                      .work = work,
                                      .finish = finish,
                                      .release = release,
                                      .bytes = bytes,
                                      .batch = (int)(f.clips * f.waves),
                                      .video = true},
                          STDOUT_FILENO);
        tell(&f);
    }
    raft_free(f.net);
    ma_weights_close(f.weights);
    ma_ctx_free(f.ctx);
    ma_device_close(f.dev);
    ma_cli_free(&cli);
    return rc;
}
