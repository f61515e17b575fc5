/* encoder: see encoder.h.
 *
 * Between host and device go bytes of pictures and half-precision results: what is between is done on the device. While
 * it works on one batch the next one is put.
 *
 * Limits: settings are separated by commas, so a file's name has none.
 * Traps: frames that the encoder does not see are left out at the front (skip), since 49 frames are 24 tubelets and
 * one; where it sees fewer than are left, those are spread evenly. The posterior's log-variance is clamped as diffusers
 * clamps it when it draws from it: beyond half precision it has no meaning, and clamping twice changes nothing.
 */
#include "encoder.h"

#include "../npy.h"
#include "../scale.h"
#include "../tokenizer.h"
#include "../weights.h"
#include "dinov2.h"
#include "pixel.h"
#include "t5.h"
#include "vae.h"
#include "videomae.h"
#include "vjepa.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What may stand behind a comma. Numbers; -1 or 0: not given. */
typedef struct settings {
    int64_t unit; /* pixels are divided by 255 only */
    int64_t heads, skip, frames, layer, patch, length;
    int64_t size[2], tile[2]; /* tile -1: none */
} settings;

typedef struct kind kind;

struct encoder {
    const kind *kind;
    ma_ctx *ctx;
    ma_clip_size clip;
    uint64_t seed;
    settings set;
    int64_t n[4]; /* shape of the member */
    int nd;
    ma_weights *file; /* NULL: drawn, or there are none */
    char weights[80];
    ma_clip_size seen; /* what a network is given of a clip */
    ma_colours colours;
    vit *net;
    int64_t pixel; /* of pixel: the square's side */
    /* Of vae: */
    ma_params *params;
    vae_config codec;
    vae *vae;
    vae_tiles tiles; /* height 0: the frame as a whole */
    /* Of t5: */
    t5_config language;
    t5 *t5;
    ma_tokenizer *tokenizer; /* NULL: drawn weights; tokens are bytes */
};

struct kind {
    const char *name, *member;
    const char *takes;   /* settings, each with a space before and behind */
    const vit_kind *vit; /* and for what is drawn: */
    int patch, tubelet;
    int rank;
    bool alone, reads; /* one sample at a time; captions */
    int (*open)(encoder *, const char *what, ma_err *);
    int (*settle)(encoder *, ma_device *plan, ma_err *);                               /* NULL: nothing to settle */
    int (*take)(const encoder *, const encoder_source *, encoder_item *, ma_err *why); /* half is there */
    int (*run)(encoder *, encoder_item *const *, int n, int batch, ma_err *);          /* NULL: take does all */
    ma_tensor *(*see)(encoder *, ma_tensor *);             /* of those that see: u8 (B,T,H,W,3) → (B,…) */
    int (*arrange)(const encoder *, uint16_t *, ma_err *); /* of the item to the member's layout; NULL: it is that */
    int (*plan)(encoder *, int n, ma_buf *, ma_err *);
    cJSON *(*options)(const encoder *);
};

/* ---- numbers in texts */

static int number(const char *kind_name, const char *name, const char *text, int64_t lo, int64_t hi, int64_t *out,
                  ma_err *e) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || v < lo || v > hi)
        return ma_fail(e, MA_USAGE, "--encoder: %s: %s '%s' is not a number from %lld to %lld", kind_name, name, text,
                       (long long)lo, (long long)hi);
    *out = v;
    return 0;
}

/* "160x240" */
static int pair(const char *kind_name, const char *name, const char *text, int64_t out[2], ma_err *e) {
    int h, w, end = 0;
    if (sscanf(text, "%dx%d%n", &h, &w, &end) != 2 || text[end] || h < 1 || w < 1 || h > 1 << 15 || w > 1 << 15)
        return ma_fail(e, MA_USAGE, "--encoder: %s: %s '%s' is not two numbers, AxB", kind_name, name, text);
    out[0] = h;
    out[1] = w;
    return 0;
}

/* What is drawn: the text behind "random:", "" for random alone; NULL: something else. */
static const char *drawn(const char *what) {
    const size_t n = strlen("random");
    if (strncmp(what, "random", n) || (what[n] && what[n] != ':')) return NULL;
    return what[n] ? what + n + 1 : "";
}

/* Takes the weights' name for KEY.json; a plan makes none, and need not read all of them. */
static void note_weights(encoder *x) {
    if (!ma_ctx_device(x->ctx)->plan) snprintf(x->weights, sizeof x->weights, "%s", ma_weights_sha(x->file));
}

/* DIR/part, or DIR itself, whichever holds `name`. free() */
static char *folder_of(const char *dir, const char *part, const char *name, ma_err *e) {
    char *inner = ma_format("%s/%s", dir, part), *path = inner ? ma_format("%s/%s", inner, name) : NULL;
    bool there = path && !access(path, R_OK);
    if (!path) ma_fail(e, MA_MEMORY, "%s: out of memory", dir);
    if (path && !there) {
        free(inner);
        inner = ma_strdup(dir);
    }
    free(path);
    return inner;
}

/* ---- clips for a network */

/* Frames, height and width that the network is given; refused where they are not whole patches. */
static int measure(encoder *x, int tubelet, int patch, ma_err *e) {
    settings *set = &x->set;
    if (set->skip < 0) set->skip = x->clip.frames % tubelet;
    int64_t left = x->clip.frames - set->skip, t = set->frames ? set->frames : left;
    int64_t h = set->size[0] ? set->size[0] : x->clip.height, w = set->size[0] ? set->size[1] : x->clip.width;
    if (t > left)
        return ma_fail(e, MA_USAGE, "--encoder: %s: frames=%lld, but a clip has %lld, less %lld that are skipped",
                       x->kind->name, (long long)t, (long long)x->clip.frames, (long long)set->skip);
    if (t < tubelet || t % tubelet || h % patch || w % patch)
        return ma_fail(
            e, MA_USAGE,
            "--encoder: %s: %lldx%lldx%lld is not whole patches of %dx%dx%d: another --clip, skip=, frames= or "
            "size=%lldx%lld",
            x->kind->name, (long long)t, (long long)h, (long long)w, tubelet, patch, patch,
            (long long)((h + patch - 1) / patch * patch), (long long)((w + patch - 1) / patch * patch));
    x->seen = (ma_clip_size){t, h, w, 0};
    return 0;
}

/* The frames that are seen, where they do not stand in the clip as they are: chosen, and resized. */
static int gather(const encoder *x, const ma_clip *clip, uint8_t *out, const char *key, ma_err *why) {
    const ma_clip_size *s = &x->seen, *c = &x->clip;
    int64_t from = c->height * c->width * 3, to = s->height * s->width * 3, left = c->frames - x->set.skip;
    ma_scaler *scaler = NULL;
    if (from != to || s->width != c->width) {
        scaler = ma_scaler_new(&(ma_scale_sizes){0, 0, c->height, c->width, s->height, s->width}, NULL);
        if (!scaler) return ma_fail(why, MA_MEMORY, "%s: out of memory for resizing", key);
    }
    for (int64_t k = 0; k < s->frames; k++) {
        const uint8_t *rgb = clip->rgb + (x->set.skip + k * left / s->frames) * from;
        if (scaler)
            ma_scaler_run(scaler, &rgb, &(int){(int)c->width * 3}, out + k * to, s->width * 3);
        else
            memcpy(out + k * to, rgb, (size_t)to);
    }
    ma_scaler_free(scaler);
    return 0;
}

static int take_frames(const encoder *x, const encoder_source *s, encoder_item *item, ma_err *why) {
    const ma_clip_size *seen = &x->seen, *c = &x->clip;
    const bool there = seen->height == c->height && seen->width == c->width && seen->frames == c->frames - x->set.skip;
    if (there) {
        item->rgb = s->clip->rgb + x->set.skip * c->height * c->width * 3;
        return 0;
    }
    item->room = ma_alloc((size_t)seen->frames, (size_t)(seen->height * seen->width) * 3);
    if (!item->room) return ma_fail(why, MA_MEMORY, "%s: out of memory for frames", s->key);
    item->bytes += (size_t)(seen->frames * seen->height * seen->width) * 3;
    item->rgb = item->room;
    return gather(x, s->clip, item->room, s->key, why);
}

/* u8 (B,T,H,W,3) */
static ma_tensor *new_frames(const encoder *x, int64_t n) {
    return ma_new(x->ctx, MA_U8, MA_SHAPE(n, x->seen.frames, x->seen.height, x->seen.width, 3));
}

/* Samples from, …, at most `batch` of them, to the device; how many. */
static int put_frames(encoder *x, ma_tensor *to, encoder_item *const *item, int from, int n, int batch) {
    int count = n - from < batch ? n - from : batch;
    for (int k = 0; k < count; k++) ma_put_raw(x->ctx, ma_rows(x->ctx, to, k, 1), item[from + k]->rgb);
    return count;
}

/* t (B,…) to the samples' results. */
static void get_results(ma_ctx *c, ma_tensor *t, encoder_item *const *item) {
    for (int k = 0; t && k < t->n[0] && !ma_failed(c); k++) ma_get_as(c, ma_rows(c, t, k, 1), MA_F16, item[k]->half);
}

/* -1: failed, or stopped. */
static int over(ma_ctx *c, ma_err *e) {
    return ma_ctx_failed(c, e) || ma_stopped ? -1 : 0;
}

static int run_frames(encoder *x, encoder_item *const *item, int n, int batch, ma_err *e) {
    ma_ctx *c = x->ctx;
    int room = n < batch ? n : batch, turn = 0;
    ma_tensor *in[2] = {new_frames(x, room), n > batch ? new_frames(x, room) : NULL};
    int count = put_frames(x, in[0], item, 0, n, batch);
    ma_mark_t m = ma_mark(c);
    for (int at = 0, next; at < n && !over(c, e); at += count, count = next, turn = !turn) {
        ma_tensor *out = x->kind->see(x, count < room ? ma_rows(c, in[turn], 0, count) : in[turn]);
        next = at + count < n ? put_frames(x, in[!turn], item, at + count, n, batch) : 0;
        get_results(c, out, item + at);
        ma_rewind(c, m);
    }
    int rc = over(c, e);
    ma_reset(c);
    return rc;
}

/* A run without samples: two batches are there at a time. NULL: failed. */
static ma_tensor *plan_frames(encoder *x, int n) {
    ma_tensor *in = new_frames(x, n);
    new_frames(x, n);
    ma_tensor *out = x->kind->see(x, in);
    if (out) ma_get_as(x->ctx, ma_rows(x->ctx, out, 0, 1), MA_F16, NULL);
    return out;
}

static bool add_number(cJSON *o, const char *name, int64_t value, int64_t absent) {
    return value == absent || cJSON_AddNumberToObject(o, name, (double)value);
}

static bool add_pair(cJSON *o, const char *name, int64_t h, int64_t w) {
    char text[48];
    snprintf(text, sizeof text, "%lldx%lld", (long long)h, (long long)w);
    return h < 1 || cJSON_AddStringToObject(o, name, text);
}

/* What was asked for, and what decides the result without being asked for: what all that see have. */
static bool add_seen(const encoder *x, cJSON *o) {
    const settings *s = &x->set;
    return add_number(o, "skip", s->skip, -1) && add_number(o, "frames", s->frames, 0) &&
           add_pair(o, "size", s->size[0], s->size[1]);
}

static cJSON *whole(cJSON *o, bool good) {
    if (good) return o;
    cJSON_Delete(o);
    return NULL;
}

/* ---- transformers */

/* Pixels as a transformer is used to them: by ImageNet's mean and deviation, or 0..1. */
static void set_norm_of(encoder *x) {
    static const double mean[3] = {0.485, 0.456, 0.406}, deviation[3] = {0.229, 0.224, 0.225};
    for (int c = 0; c < 3; c++) {
        x->colours.mul[c] = x->set.unit ? 1 / 255.0 : 1 / (255 * deviation[c]);
        x->colours.add[c] = x->set.unit ? 0 : -mean[c] / deviation[c];
    }
}

/* WIDTHxDEPTH */
static int draw_vit(encoder *x, const char *what, ma_err *e) {
    int64_t size[2] = {0};
    if (pair(x->kind->name, "random:WIDTHxDEPTH", what, size, e)) return -1;
    if (size[0] > 8192 || size[1] > 256)
        return ma_fail(e, MA_USAGE, "--encoder: %s: random:%s is beyond 8192x256", x->kind->name, what);
    int patch = x->set.patch ? (int)x->set.patch : x->kind->patch;
    vit_size s = {(int)size[1], (int)size[0], (int)x->set.heads, patch, x->kind->tubelet};
    snprintf(x->weights, sizeof x->weights, "random:%lldx%lld,patch=%d", (long long)size[0], (long long)size[1], patch);
    x->net = vit_random(x->kind->vit, x->ctx, &s, x->seed, false);
    return 0;
}

static int load_vit(encoder *x, const char *what, ma_err *e) {
    if (x->set.patch) return ma_fail(e, MA_USAGE, "--encoder: %s: patch= is for drawn weights only", x->kind->name);
    if (!(x->file = ma_weights_open(what, e))) return -1;
    note_weights(x);
    x->net = vit_load(x->kind->vit, x->ctx, x->file, (int)x->set.heads, false);
    return 0;
}

static int open_vit(encoder *x, const char *what, ma_err *e) {
    const char *random = drawn(what);
    if (random ? draw_vit(x, random, e) : load_vit(x, what, e)) return -1;
    if (!x->net) return ma_ctx_failed(x->ctx, e);
    vit_size s = vit_sizes(x->net);
    if (measure(x, s.tubelet, s.patch, e)) return -1;
    if (x->set.layer > s.depth)
        return ma_fail(e, MA_USAGE, "--encoder: %s: layer=%lld, but there are %d", x->kind->name,
                       (long long)x->set.layer, s.depth);
    set_norm_of(x);
    x->nd = 4;
    memcpy(x->n, (int64_t[]){x->seen.frames / s.tubelet, x->seen.height / s.patch, x->seen.width / s.patch, s.width},
           sizeof x->n);
    return 0;
}

static ma_tensor *forward(ma_ctx *c, const void *self, ma_tensor **in) {
    const encoder *x = self;
    return vit_forward(c, x->net, ma_pixels(c, in[0], &x->colours, 3), (int)x->set.layer);
}

static ma_tensor *see_vit(encoder *x, ma_tensor *in) { // → (B,T',H',W',D)
    bool was = ma_recording(x->ctx, false);
    ma_tensor *tokens = in ? ma_replay(x->ctx, forward, x, &in, 1, 0) : NULL;
    ma_recording(x->ctx, was);
    return tokens;
}

static int plan_vit(encoder *x, int n, ma_buf *text, ma_err *e) {
    char shape[160];
    vit_size s = vit_sizes(x->net);
    ma_tensor *tokens = plan_frames(x, n);
    if (!tokens) return ma_ctx_failed(x->ctx, e);
    ma_buf_printf(text, "%s: %d blocks of width %d, %d heads, patches %dx%dx%d, %.1f M parameters\n", x->kind->name,
                  s.depth, s.width, s.heads, s.tubelet, s.patch, s.patch, (double)vit_parameters(x->net) / 1e6);
    ma_buf_printf(text, "  %dx%lldx%lldx%lldx3 -> %s\n", n, (long long)x->seen.frames, (long long)x->seen.height,
                  (long long)x->seen.width, ma_shape_text(shape, tokens->nd, tokens->n));
    ma_reset(x->ctx);
    return 0;
}

static cJSON *options_vit(const encoder *x) {
    cJSON *o = cJSON_CreateObject();
    return whole(o, cJSON_AddStringToObject(o, "norm", x->set.unit ? "unit" : "imagenet") &&
                        cJSON_AddNumberToObject(o, "heads", vit_sizes(x->net).heads) && add_seen(x, o) &&
                        add_number(o, "layer", x->set.layer, 0));
}

/* ---- pixel */

static int open_pixel(encoder *x, const char *what, ma_err *e) {
    const ma_clip_size *c = &x->clip;
    if (number(x->kind->name, "side", what, 1, 64, &x->pixel, e)) return -1;
    if (c->height % x->pixel || c->width % x->pixel)
        return ma_fail(e, MA_USAGE, "--clip: %lldx%lld does not divide into pixel=%lld", (long long)c->height,
                       (long long)c->width, (long long)x->pixel);
    int64_t p = x->pixel, n[] = {2 * 3 * p * p, c->frames, c->height / p, c->width / p}; // (2C,T,H/P,W/P)
    memcpy(x->n, n, sizeof n);
    x->nd = 4;
    return 0;
}

static int take_pixel(const encoder *x, const encoder_source *s, encoder_item *item, ma_err *why) {
    size_t count = (size_t)(x->n[0] * x->n[1] * x->n[2] * x->n[3]);
    float *latent = ma_alloc(count, sizeof *latent);
    if (!latent) return ma_fail(why, MA_MEMORY, "%s: out of memory for a latent", s->key);
    pixel_encode(s->clip->rgb, s->clip->frames, s->clip->height, s->clip->width, x->pixel, latent);
    ma_from_f32(item->half, latent, MA_F16, count);
    ma_release(latent);
    return 0;
}

static int plan_pixel(encoder *x, int n, ma_buf *text, ma_err *e) {
    char shape[160];
    (void)n, (void)e;
    ma_buf_printf(text, "pixel: %lldx%lldx%lldx3 -> %s\n", (long long)x->clip.frames, (long long)x->clip.height,
                  (long long)x->clip.width, ma_shape_text(shape, x->nd, x->n));
    return 0;
}

static cJSON *options_pixel(const encoder *x) {
    return cJSON_CreateNumber((double)x->pixel);
}

/* ---- vae */

/* "WIDTH": channels of the first block; of the published one 128. */
static int draw_vae(encoder *x, const char *what, ma_err *e) {
    vae_config *c = &x->codec;
    int64_t width = 128;
    vae_2b(c);
    if (*what && number(x->kind->name, "random", what, 8, 1024, &width, e)) return -1;
    if (width % 8) return ma_fail(e, MA_USAGE, "--encoder: %s: random:%s is not a multiple of 8", x->kind->name, what);
    for (int k = 0; k < c->blocks; k++) c->channels[k] = (int)width * c->channels[k] / 128;
    if (width % c->groups) c->groups = 8;
    snprintf(x->weights, sizeof x->weights, "random:%lld", (long long)width);
    return 0;
}

static int find_vae(encoder *x, const char *what, ma_err *e) {
    char *dir = folder_of(what, "vae", "config.json", e), *config = dir ? ma_format("%s/config.json", dir) : NULL;
    int rc = config ? vae_config_read(config, &x->codec, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", what);
    if (!rc && !(x->file = ma_weights_open(dir, e))) rc = -1;
    if (!rc) note_weights(x);
    free(config);
    free(dir);
    return rc;
}

static int open_vae(encoder *x, const char *what, ma_err *e) {
    const char *random = drawn(what);
    if (random ? draw_vae(x, random, e) : find_vae(x, what, e)) return -1;
    const vae_config *c = &x->codec;
    int64_t scale = vae_scale(c);
    if (measure(x, 1, (int)scale, e)) return -1;
    x->params = ma_params_new(x->ctx, x->file, false, x->seed);
    if (!x->params) return ma_fail(e, MA_MEMORY, "vae: out of memory");
    x->vae = vae_make(x->params, c, VAE_ENCODER);
    x->colours = (ma_colours){{1 / 127.5, 1 / 127.5, 1 / 127.5}, {-1, -1, -1}};
    if (x->set.tile[0] > 0) x->tiles = (vae_tiles){x->set.tile[0], x->set.tile[1]};
    x->nd = 4;
    memcpy(x->n,
           (int64_t[]){2 * c->latent_channels, vae_latent_frames(c, x->seen.frames), x->seen.height / scale,
                       x->seen.width / scale},
           sizeof x->n);
    return ma_ctx_failed(x->ctx, e);
}

/* A frame is cut into tiles where it is told to be, or else where it would not fit beside what is there already. */
static int settle_vae(encoder *x, ma_device *plan, ma_err *e) {
    const ma_device *d = ma_ctx_device(x->ctx);
    const int64_t n[4] = {1, x->seen.frames, x->seen.height, x->seen.width};
    if (x->set.tile[0] || !d->free_bytes) return 0;
    const ma_type type = ma_get_type(x->ctx);
    size_t value = ma_type_size(type),
           clip = (size_t)(n[1] * n[2] * n[3]) * 3 * (2 + value); /* two in bytes, one not */
    size_t before = plan->taken, own = (size_t)ma_params_count(x->params) * value;
    size_t bytes = vae_bytes(plan, type, &x->codec, VAE_ENCODER, n, NULL, e);
    if (!bytes) return -1;
    if (d->taken + clip + bytes - before - own > d->free_bytes) x->tiles = vae_default_tiles(&x->codec);
    return 0;
}

static ma_tensor *see_vae(encoder *x, ma_tensor *in) { // → (1,t,h,w,2C)
    bool was = ma_recording(x->ctx, false);
    ma_tensor *z =
        vae_encode(x->ctx, x->vae, ma_pixels(x->ctx, in, &x->colours, 3), x->tiles.height ? &x->tiles : NULL);
    ma_recording(x->ctx, was);
    return z;
}

/* (t,h,w,2C) → (2C,t,h,w), log-variances clamped to -30..20. */
static int arrange_vae(const encoder *x, uint16_t *half, ma_err *e) {
    const int64_t channels = x->n[0], places = x->n[1] * x->n[2] * x->n[3];
    const float lo = PIXEL_LOG_VARIANCE, hi = 20;
    uint16_t *from = ma_alloc((size_t)(channels * places), sizeof *from);
    if (!from) return ma_fail(e, MA_MEMORY, "vae: out of memory");
    memcpy(from, half, (size_t)(channels * places) * sizeof *from);
    for (int64_t c = 0; c < channels; c++)
        for (int64_t k = 0; k < places; k++) {
            uint16_t v = from[k * channels + c];
            float value = c < channels / 2 ? 0 : ma_f16_to_f32(v);
            half[c * places + k] = value < lo ? ma_f32_to_f16(lo) : value > hi ? ma_f32_to_f16(hi) : v;
        }
    ma_release(from);
    return 0;
}

static int plan_vae(encoder *x, int n, ma_buf *text, ma_err *e) {
    char in[160], out[160], tiles[64] = "whole frames";
    const vae_config *c = &x->codec;
    (void)n;
    if (!plan_frames(x, 1)) return ma_ctx_failed(x->ctx, e);
    if (x->tiles.height)
        snprintf(tiles, sizeof tiles, "tiles of %lldx%lld", (long long)x->tiles.height, (long long)x->tiles.width);
    ma_buf_printf(text, "vae: %d blocks of %d to %d channels, %s, %.1f M parameters\n  %s -> %s\n", c->blocks,
                  c->channels[0], c->channels[c->blocks - 1], tiles, (double)ma_params_count(x->params) / 1e6,
                  ma_shape_text(in, MA_SHAPE(1, x->seen.frames, x->seen.height, x->seen.width, 3)),
                  ma_shape_text(out, x->nd, x->n));
    ma_reset(x->ctx);
    return 0;
}

static cJSON *options_vae(const encoder *x) {
    cJSON *o = cJSON_CreateObject();
    return whole(o, add_seen(x, o) && add_pair(o, "tile", x->tiles.height, x->tiles.width));
}

/* ---- t5 */

enum { BYTES = 256, FIRST_BYTE = 3 /* behind padding 0, end 1, unknown 2 */ };

/* WIDTHxDEPTH; of the published one 4096x24. Without a vocabulary: its tokens are bytes. */
static int draw_t5(encoder *x, const char *what, ma_err *e) {
    int64_t size[2] = {0};
    if (pair(x->kind->name, "random:WIDTHxDEPTH", what, size, e)) return -1;
    if (size[0] > 8192 || size[1] > 256 || size[0] % 8)
        return ma_fail(e, MA_USAGE, "--encoder: %s: random:%s is beyond 8192x256, or no multiple of 8", x->kind->name,
                       what);
    t5_config *c = &x->language;
    t5_xxl(c);
    c->width = (int)size[0];
    c->layers = (int)size[1];
    c->head_dim = c->width < 64 ? c->width : 64;
    c->heads = c->width / c->head_dim;
    c->hidden = c->width / 2 * 5;
    c->vocab = FIRST_BYTE + BYTES;
    snprintf(x->weights, sizeof x->weights, "random:%lldx%lld", (long long)size[0], (long long)size[1]);
    return 0;
}

static int find_t5(encoder *x, const char *what, ma_err *e) {
    char *dir = folder_of(what, "text_encoder", "config.json", e),
         *config = dir ? ma_format("%s/config.json", dir) : NULL;
    char *pieces = folder_of(what, "tokenizer", "spiece.model", e);
    int rc =
        config && pieces ? t5_config_read(config, &x->language, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", what);
    if (!rc && (!(x->tokenizer = ma_tokenizer_open(pieces, e)) || !(x->file = ma_weights_open(dir, e)))) rc = -1;
    if (!rc && ma_tokenizer_size(x->tokenizer) > x->language.vocab)
        rc = ma_fail(e, MA_SHAPE, "%s: %d tokens, but %s: vocab_size: %d", pieces, ma_tokenizer_size(x->tokenizer),
                     config, x->language.vocab);
    if (!rc) note_weights(x);
    free(pieces);
    free(config);
    free(dir);
    return rc;
}

static int open_t5(encoder *x, const char *what, ma_err *e) {
    const char *random = drawn(what);
    if (random ? draw_t5(x, random, e) : find_t5(x, what, e)) return -1;
    if (!x->set.length) x->set.length = 226;
    x->nd = 2;
    x->n[0] = x->set.length;
    x->n[1] = x->language.width;
    x->t5 = t5_load(x->ctx, x->file, &x->language, x->seed);
    return ma_ctx_failed(x->ctx, e);
}

/* As ma_tokenize, where there is no vocabulary. */
static int64_t bytes_as_tokens(const char *text, size_t size, int32_t *ids, int64_t length) {
    int64_t n = (int64_t)size < length ? (int64_t)size : length - 1;
    for (int64_t k = 0; k < length; k++) ids[k] = k < n ? FIRST_BYTE + (unsigned char)text[k] : k == n;
    return (int64_t)size + 1;
}

static int take_text(const encoder *x, const encoder_source *s, encoder_item *item, ma_err *why) {
    const int64_t length = x->set.length;
    ma_err e = {0};
    item->ids = ma_alloc((size_t)length, sizeof *item->ids);
    if (!item->ids) return ma_fail(why, MA_MEMORY, "%s: out of memory", s->key);
    item->tokens = x->tokenizer ? ma_tokenize(x->tokenizer, s->text, s->size, item->ids, length, &e)
                                : bytes_as_tokens(s->text, s->size, item->ids, length);
    return item->tokens < 0 ? ma_fail(why, e.reason, "%s: %s", s->key, e.text) : 0;
}

static int run_text(encoder *x, encoder_item *const *item, int n, int batch, ma_err *e) {
    ma_ctx *c = x->ctx;
    const int64_t length = x->set.length;
    int32_t *ids = ma_alloc((size_t)batch, (size_t)length * sizeof *ids);
    if (!ids) return ma_fail(e, MA_MEMORY, "t5: out of memory");
    for (int at = 0, count; at < n && !over(c, e); at += count) {
        count = n - at < batch ? n - at : batch;
        for (int k = 0; k < count; k++) memcpy(ids + k * length, item[at + k]->ids, (size_t)length * sizeof *ids);
        get_results(c, t5_forward(c, x->t5, ids, count, length), item + at);
        ma_reset(c);
    }
    ma_release(ids);
    return over(c, e);
}

static int plan_t5(encoder *x, int n, ma_buf *text, ma_err *e) {
    char shape[160];
    const t5_config *c = &x->language;
    int32_t *ids = ma_alloc((size_t)n, (size_t)x->set.length * sizeof *ids);
    ma_tensor *out = ids ? t5_forward(x->ctx, x->t5, ids, n, x->set.length) : NULL;
    ma_release(ids);
    if (!out) return ma_ctx_failed(x->ctx, e) ? -1 : ma_fail(e, MA_MEMORY, "t5: out of memory");
    ma_get_as(x->ctx, ma_rows(x->ctx, out, 0, 1), MA_F16, NULL);
    ma_buf_printf(text, "t5: %d blocks of width %d, %d heads, %.1f M parameters\n  %d texts of %lld tokens -> %s\n",
                  c->layers, c->width, c->heads, (double)t5_parameters(x->t5) / 1e6, n, (long long)x->set.length,
                  ma_shape_text(shape, out->nd, out->n));
    ma_reset(x->ctx);
    return 0;
}

static cJSON *options_t5(const encoder *x) {
    cJSON *o = cJSON_CreateObject();
    return whole(o, cJSON_AddNumberToObject(o, "length", (double)x->set.length));
}

/* ---- the kinds */

#define OF_VIT(what, width, depth)                                                                                     \
    .takes = " norm skip frames size layer heads patch ", .vit = (what), .patch = (width), .tubelet = (depth),         \
    .rank = 1, .open = open_vit, .take = take_frames, .run = run_frames, .see = see_vit, .plan = plan_vit,             \
    .options = options_vit

static const kind kinds[] = {
    {.name = "videomae", .member = "videomae.npy", OF_VIT(&videomae_kind, 16, 2)},
    {.name = "vjepa2", .member = "vjepa2.npy", OF_VIT(&vjepa_kind, 16, 2)},
    {.name = "dinov2", .member = "dinov2.npy", OF_VIT(&dinov2_kind, 14, 1)},
    {.name = "vae",
     .member = "latent.npy",
     .takes = " skip frames size tile ",
     .alone = true,
     .open = open_vae,
     .settle = settle_vae,
     .take = take_frames,
     .run = run_frames,
     .see = see_vae,
     .arrange = arrange_vae,
     .plan = plan_vae,
     .options = options_vae},
    {.name = "t5",
     .member = "text.npy",
     .takes = " length ",
     .rank = 2,
     .reads = true,
     .open = open_t5,
     .take = take_text,
     .run = run_text,
     .plan = plan_t5,
     .options = options_t5},
    {.name = "pixel",
     .member = "latent.npy",
     .takes = "",
     .open = open_pixel,
     .take = take_pixel,
     .plan = plan_pixel,
     .options = options_pixel},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static int set_norm(const encoder *x, const char *value, int64_t *unit, ma_err *e) {
    *unit = !strcmp(value, "unit");
    if (*unit || !strcmp(value, "imagenet")) return 0;
    return ma_fail(e, MA_USAGE, "--encoder: %s: norm '%s' is neither imagenet nor unit", x->kind->name, value);
}

static int set_tile(const encoder *x, const char *value, int64_t tile[2], ma_err *e) {
    if (strcmp(value, "none")) return pair(x->kind->name, "tile", value, tile, e);
    tile[0] = -1;
    return 0;
}

/* NAME=VALUE */
static int set_one(encoder *x, char *text, ma_err *e) {
    settings *s = &x->set;
    const struct {
        const char *name;
        int64_t *to, lo, hi;
    } numbers[] = {{"heads", &s->heads, 1, 1024}, {"skip", &s->skip, 0, 1 << 20}, {"frames", &s->frames, 1, 1 << 20},
                   {"layer", &s->layer, 1, 256},  {"patch", &s->patch, 1, 224},   {"length", &s->length, 1, 4096}};
    char *value = strchr(text, '='), name[32];
    if (value) *value++ = 0;
    snprintf(name, sizeof name, " %.29s ", text);
    if (!value || !strstr(x->kind->takes, name))
        return ma_fail(e, MA_USAGE, "--encoder: %s: unknown setting '%s'; there are:%s", x->kind->name, text,
                       *x->kind->takes ? x->kind->takes : " none");
    if (!strcmp(text, "norm")) return set_norm(x, value, &s->unit, e);
    if (!strcmp(text, "size")) return pair(x->kind->name, "size", value, s->size, e);
    if (!strcmp(text, "tile")) return set_tile(x, value, s->tile, e);
    for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
        if (!strcmp(text, numbers[k].name))
            return number(x->kind->name, text, value, numbers[k].lo, numbers[k].hi, numbers[k].to, e);
    return 0;
}

/* The kind whose name is the first n characters; NULL: there is none. */
static const kind *find_kind(const char *name, size_t n) {
    for (int k = 0; k < KINDS; k++)
        if (n && strlen(kinds[k].name) == n && !strncmp(kinds[k].name, name, n)) return &kinds[k];
    return NULL;
}

/* KIND=WHAT,NAME=VALUE,…, which is cut up. */
static int open_text(encoder *x, char *text, ma_err *e) {
    char *what = strchr(text, '='), *next;
    x->kind = find_kind(text, what ? (size_t)(what - text) : 0);
    if (!x->kind) {
        ma_buf names = {0};
        for (int k = 0; k < KINDS; k++) ma_buf_printf(&names, "%s%s=…", k ? ", " : "", kinds[k].name);
        ma_fail(e, MA_USAGE, "--encoder: '%s' is none of %s", text, names.data ? names.data : "the kinds");
        ma_buf_free(&names);
        return -1;
    }
    next = ++what;
    strsep(&next, ",");
    for (char *one; (one = strsep(&next, ","));)
        if (set_one(x, one, e)) return -1;
    return x->kind->open(x, what, e);
}

/* ---- the interface */

encoder *encoder_open(ma_ctx *c, const char *text, const ma_clip_size *clip, uint64_t seed, ma_err *e) {
    encoder *x = ma_alloc(1, sizeof *x);
    char *copy = ma_strdup(text);
    int rc = x && copy ? 0 : ma_fail(e, MA_MEMORY, "--encoder: out of memory");
    if (!rc) {
        *x = (encoder){.ctx = c, .clip = *clip, .seed = seed, .set.skip = -1};
        rc = open_text(x, copy, e);
    }
    free(copy);
    if (!rc) return x;
    encoder_close(x);
    return NULL;
}

int encoder_settle(encoder *x, ma_device *plan, ma_err *e) {
    return x->kind->settle ? x->kind->settle(x, plan, e) : 0;
}

void encoder_close(encoder *x) {
    if (!x) return;
    vit_free(x->net);
    vae_free(x->vae);
    ma_params_free(x->params);
    t5_free(x->t5);
    if (x->tokenizer) ma_tokenizer_free(x->tokenizer);
    ma_weights_close(x->file);
    ma_release(x);
}

const char *encoder_name(const encoder *x) {
    return x->kind->name;
}

const char *encoder_member(const encoder *x) {
    return x->kind->member;
}

const char *encoder_weights(const encoder *x) {
    return *x->weights ? x->weights : NULL;
}

bool encoder_drawn(const encoder *x) {
    return *x->weights && !x->file;
}

bool encoder_reads(const encoder *x) {
    return x->kind->reads;
}

cJSON *encoder_options(const encoder *x) {
    return x->kind->options(x);
}

int encoder_shape(const encoder *x, int64_t n[4]) {
    memcpy(n, x->n, sizeof x->n);
    return x->nd;
}

int encoder_rank(const encoder *x) {
    return x->kind->rank;
}

const char *encoder_kind_member(const char *name) {
    const kind *k = find_kind(name, strlen(name));
    return k ? k->member : NULL;
}

static ma_array member_of(const encoder *x) {
    ma_array a = {.type = MA_F16, .nd = x->nd};
    memcpy(a.n, x->n, sizeof x->n);
    return a;
}

int encoder_take(const encoder *x, const encoder_source *s, encoder_item *item, ma_err *why) {
    ma_array a = member_of(x);
    if (ma_npy_begin(&a, &item->npy, NULL)) return ma_fail(why, MA_MEMORY, "%s: out of memory", s->key);
    item->half = a.data;
    item->bytes = item->npy.size;
    return x->kind->take(x, s, item, why);
}

void encoder_drop(encoder_item *item) {
    ma_release(item->room);
    ma_release(item->ids);
    ma_buf_free(&item->npy);
    *item = (encoder_item){0};
}

int encoder_run(encoder *x, encoder_item *const *item, int n, int batch, ma_err *e) {
    if (!x->kind->run || n < 1) return 0;
    return x->kind->run(x, item, n, x->kind->alone ? 1 : batch, e);
}

int encoder_put(const encoder *x, encoder_item *item, ma_sample *s, ma_err *why) {
    if (x->kind->arrange && x->kind->arrange(x, item->half, why)) return -1;
    ma_array a = member_of(x);
    a.data = item->half;
    return ma_sample_put_half(s, x->kind->member, &a, &item->npy, why);
}

int encoder_plan(encoder *x, int n, ma_buf *text, ma_err *e) {
    return x->kind->plan(x, n, text, e);
}
