/* ma-extract: frozen encoders over clips. Decodes each sample's clip once and adds KEY.videomae.npy (tokens of a
 * VideoMAE encoder) and KEY.latent.npy (pixels folded into channels, the codec without an autoencoder).
 *
 * Limits: every clip of a run has one size, so that a batch is one tensor.
 */
#include "../common/clip.h"
#include "../common/context.h"
#include "../common/models/pixel.h"
#include "../common/models/videomae.h"
#include "../common/stage.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static ma_list specs;
static int64_t batch = 1;
static ma_clip_args args = MA_CLIP_DEFAULTS;

static const ma_opt options[] = {
    {"encoder", 'e', MA_OPT_LIST, &specs, "KIND=WHAT",
     "videomae=WEIGHTS[,norm=imagenet|unit][,heads=N][,skip=N] or pixel=P", 0, 0},
    MA_CLIP_OPTIONS(args),
    {"batch", 0, MA_OPT_INT, &batch, "N", "clips per forward pass (default 1)", 1, 1024},
    {0},
};

static ma_cli cli = {
    .name = "ma-extract",
    .does = "adds the features of frozen encoders to every sample",
    .args = "-e KIND=WHAT [-e KIND=WHAT]… [INPUT]…",
    .opts = options,
};

typedef struct extract {
    ma_device *dev;
    ma_ctx *ctx;
    ma_weights *weights;
    videomae *vit;       /* NULL: not asked for */
    bool unit, drawn;    /* divide by 255 only; weights are random */
    char sha[80];        /* of the weights, or what was drawn */
    int64_t skip, pixel; /* frames that the ViT does not see; P, 0: not asked for */
} extract;

/* ---- -e KIND=WHAT,NAME=VALUE,… */

/* The value of a setting in "WHAT,norm=unit,heads=6", or NULL. Cut out of text, which is changed. */
static char *take_setting(char *text, const char *name) {
    size_t n = strlen(name);
    for (char *s = strchr(text, ','); s; s = strchr(s + 1, ',')) {
        if (strncmp(s + 1, name, n) || s[n + 1] != '=') continue;
        char *end = strchrnul(s + 1, ','), *value = strndup(s + n + 2, (size_t)(end - s) - n - 2);
        memmove(s, end, strlen(end) + 1);
        return value;
    }
    return NULL;
}

static int number(const char *what, const char *text, long lo, long hi, int64_t *out, ma_err *e) {
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    if (end == text || *end || errno || v < lo || v > hi)
        return ma_fail(e, MA_USAGE, "--encoder: %s '%s' is not a number from %ld to %ld", what, text, lo, hi);
    *out = v;
    return 0;
}

static int number_setting(char *text, const char *name, long lo, long hi, int64_t *out, ma_err *e) {
    char *value = take_setting(text, name);
    int rc = value ? number(name, value, lo, hi, out, e) : 0;
    free(value);
    return rc;
}

/* random:WIDTHxDEPTH */
static int draw(extract *x, const char *what, int64_t heads, int64_t patch, ma_err *e) {
    int width, depth, end = 0;
    if (sscanf(what, "random:%dx%d%n", &width, &depth, &end) != 2 || what[end] || width < 1 || width > 8192 ||
        depth < 1 || depth > 256)
        return ma_fail(e, MA_USAGE, "--encoder: '%s' is not random:WIDTHxDEPTH", what);
    videomae_size size = {depth, width, (int)heads, (int)patch, 2};
    x->drawn = true;
    snprintf(x->sha, sizeof x->sha, "%s,patch=%d", what, size.patch);
    if (!(x->vit = videomae_random(x->ctx, &size, (uint64_t)cli.common.seed, false))) *e = *ma_ctx_err(x->ctx);
    return x->vit ? 0 : -1;
}

static int load(extract *x, const char *path, int64_t heads, ma_err *e) {
    if (!(x->weights = ma_weights_open(path, e))) return -1;
    snprintf(x->sha, sizeof x->sha, "%s", ma_weights_sha(x->weights));
    if (!(x->vit = videomae_load(x->ctx, x->weights, (int)heads, false))) *e = *ma_ctx_err(x->ctx);
    return x->vit ? 0 : -1;
}

/* The clip must be whole tubelets. */
static int check_clip(extract *x, ma_err *e) {
    videomae_size s = videomae_sizes(x->vit);
    const ma_clip_size *c = &args.size;
    if (x->skip < 0) x->skip = c->frames % s.tubelet;
    int64_t t = c->frames - x->skip;
    if (t >= s.tubelet && t % s.tubelet == 0 && c->height % s.patch == 0 && c->width % s.patch == 0) return 0;
    return ma_fail(e, MA_USAGE,
                   "--clip: %lldx%lldx%lld less %lld frames is not whole tubelets of %dx%dx%d; near it: %lldx%lldx%lld",
                   (long long)c->frames, (long long)c->height, (long long)c->width, (long long)x->skip, s.tubelet,
                   s.patch, s.patch, (long long)(t < s.tubelet ? s.tubelet : t - t % s.tubelet) + x->skip,
                   (long long)(c->height + s.patch / 2) / s.patch * s.patch,
                   (long long)(c->width + s.patch / 2) / s.patch * s.patch);
}

static int add_videomae(extract *x, char *text, ma_err *e) {
    int64_t heads = 0, patch = 16;
    if (x->vit) return ma_fail(e, MA_USAGE, "--encoder: videomae is given twice");
    bool drawn = !strncmp(text, "random:", 7);
    char *norm = take_setting(text, "norm");
    x->unit = norm && !strcmp(norm, "unit");
    int rc = norm && !x->unit && strcmp(norm, "imagenet")
                 ? ma_fail(e, MA_USAGE, "--encoder: norm '%s' is neither imagenet nor unit", norm)
                 : 0;
    free(norm);
    if (rc || number_setting(text, "heads", 1, 1024, &heads, e) ||
        number_setting(text, "skip", 0, 1 << 20, &x->skip, e) ||
        (drawn && number_setting(text, "patch", 1, 224, &patch, e)))
        return -1;
    if (strchr(text, ','))
        return ma_fail(e, MA_USAGE, "--encoder: videomae: unknown setting '%s'", strchr(text, ',') + 1);
    if (drawn ? draw(x, text, heads, patch, e) : load(x, text, heads, e)) return -1;
    return check_clip(x, e);
}

static int add_pixel(extract *x, const char *text, ma_err *e) {
    if (x->pixel) return ma_fail(e, MA_USAGE, "--encoder: pixel is given twice");
    if (number("pixel", text, 1, 64, &x->pixel, e)) return -1;
    if (args.size.height % x->pixel == 0 && args.size.width % x->pixel == 0) return 0;
    return ma_fail(e, MA_USAGE, "--clip: %lldx%lld does not divide into pixel=%lld", (long long)args.size.height,
                   (long long)args.size.width, (long long)x->pixel);
}

static int add_encoders(extract *x, ma_err *e) {
    if (!specs.n) return ma_fail(e, MA_USAGE, "no encoder: give -e videomae=WEIGHTS, -e pixel=P, or both");
    for (int k = 0; k < specs.n; k++) {
        char *text = ma_strdup(specs.at[k]);
        int rc = !text                            ? ma_fail(e, MA_MEMORY, "out of memory")
                 : !strncmp(text, "videomae=", 9) ? add_videomae(x, text + 9, e)
                 : !strncmp(text, "pixel=", 6)
                     ? add_pixel(x, text + 6, e)
                     : ma_fail(e, MA_USAGE, "--encoder: '%s' is neither videomae=… nor pixel=…", text);
        free(text);
        if (rc) return -1;
    }
    return 0;
}

/* ---- KEY.json */

static cJSON *make_entry(const extract *x, const ma_sample *s) {
    cJSON *o = ma_clip_options_json(&args), *w = cJSON_CreateObject();
    if (x->vit) {
        cJSON *v = cJSON_AddObjectToObject(o, "videomae");
        cJSON_AddStringToObject(v, "norm", x->unit ? "unit" : "imagenet");
        cJSON_AddNumberToObject(v, "heads", videomae_sizes(x->vit).heads);
        cJSON_AddNumberToObject(v, "skip", (double)x->skip);
        cJSON_AddStringToObject(w, "videomae", x->sha);
    }
    if (x->pixel) cJSON_AddNumberToObject(o, "pixel", (double)x->pixel);
    cJSON *entry = ma_clip_entry(s, o, w);
    if (x->drawn) cJSON_AddNumberToObject(entry, "seed", (double)cli.common.seed);
    return entry;
}

static bool have_all(const extract *x, ma_sample *s, const cJSON *entry) {
    return (!x->vit || ma_entry_same(&cli, s, cli.name, "videomae.npy", entry)) &&
           (!x->pixel || ma_entry_same(&cli, s, cli.name, "latent.npy", entry));
}

/* ---- pixel */

static int put_latent(ma_sample *s, const ma_clip *clip, int64_t p, ma_err *e) {
    int64_t n[] = {2 * 3 * p * p, clip->frames, clip->height / p, clip->width / p};
    float *z = ma_alloc((size_t)(n[0] * n[1] * n[2] * n[3]), sizeof *z); // (2C,T,H/P,W/P)
    if (!z) return ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    pixel_encode(clip->rgb, clip->frames, clip->height, clip->width, p, z);
    int rc = ma_sample_put_f16(s, "latent.npy", z, 4, n, e);
    ma_release(z);
    return rc;
}

/* ---- videomae */

static void normalise(const extract *x, const ma_clip *clip, float *out) {
    int64_t frame = clip->height * clip->width * 3, n = (clip->frames - x->skip) * frame;
    const uint8_t *rgb = clip->rgb + x->skip * frame;
    float mul[3], add[3];
    for (int k = 0; k < 3; k++) {
        mul[k] = x->unit ? 1 / 255.0f : 1 / (255 * videomae_std[k]);
        add[k] = x->unit ? 0 : -videomae_mean[k] / videomae_std[k];
    }
    for (int64_t i = 0; i < n; i++) out[i] = rgb[i] * mul[i % 3] + add[i % 3];
}

/* n clips, or, without values, the plan of it. */
static ma_tensor *encode(extract *x, const float *clips, int64_t n) {
    int64_t shape[] = {n, args.size.frames - x->skip, args.size.height, args.size.width, 3};
    ma_tensor *in = clips ? ma_input(x->ctx, clips, 5, shape) : ma_new(x->ctx, ma_get_type(x->ctx), 5, shape);
    return videomae_forward(x->ctx, x->vit, in); // (n,T/2,H/16,W/16,D)
}

/* Tokens of the samples s[at[0]], s[at[1]], …, n of them. -1: the run is over. */
static int put_tokens(extract *x, ma_sample **s, ma_clip_job **j, const int *at, int n, ma_err *why, ma_err *e) {
    size_t each = (size_t)((args.size.frames - x->skip) * args.size.height * args.size.width * 3);
    float *in = ma_alloc((size_t)n, each * sizeof *in), *out = NULL;
    for (int k = 0; in && k < n; k++) normalise(x, &j[at[k]]->clip, in + (size_t)k * each);
    ma_tensor *tokens = in ? encode(x, in, n) : NULL;
    ma_release(in);
    if (tokens) out = ma_alloc((size_t)ma_count(tokens), sizeof *out);
    if (tokens && out) ma_get(x->ctx, tokens, out);
    int rc = ma_ctx_failed(x->ctx, e);
    if (!rc && !out) rc = ma_fail(e, MA_MEMORY, "%s: out of memory for %d clips: lower --batch", s[at[0]]->key, n);
    for (int k = 0; !rc && k < n; k++)
        ma_sample_put_f16(s[at[k]], "videomae.npy", out + ma_count(tokens) / n * k, 4, tokens->n + 1, &why[at[k]]);
    ma_release(out);
    ma_reset(x->ctx);
    return rc;
}

/* ---- the stream */

static void *prepare(void *self, ma_sample **s, ma_err *why) {
    cJSON *entry = make_entry(self, *s);
    return ma_clip_begin(&cli, &args, s, entry, entry && have_all(self, *s, entry), why);
}

static int work(void *self, ma_sample **s, void **pre, int n, ma_err *why, ma_err *e) {
    extract *x = self;
    ma_clip_job **j = (ma_clip_job **)pre;
    int *at = ma_alloc((size_t)n, sizeof *at), todo = 0, rc = 0;
    if (!at) return ma_fail(e, MA_MEMORY, "out of memory");
    for (int k = 0; k < n; k++)
        if (j[k]->clip.rgb) at[todo++] = k;
    for (int k = 0; x->pixel && k < todo; k++) put_latent(s[at[k]], &j[at[k]]->clip, x->pixel, &why[at[k]]);
    if (ma_stopped)
        rc = -1;
    else if (x->vit && todo)
        rc = put_tokens(x, s, j, at, todo, why, e);
    for (int k = 0; k < n; k++) ma_clip_finish(&cli, s[k], j[k], &why[k]);
    ma_release(at);
    return rc;
}

/* --dry-run: what would be computed, and in how much memory. */
static int plan(extract *x, ma_err *e) {
    const ma_clip_size *c = &args.size;
    char text[160];
    if (x->vit) {
        videomae_size s = videomae_sizes(x->vit);
        ma_tensor *tokens = encode(x, NULL, batch);
        if (!tokens) return ma_ctx_failed(x->ctx, e);
        printf("videomae: %d blocks of width %d, %d heads, tubelets %dx%dx%d, %.1f M parameters\n", s.depth, s.width,
               s.heads, s.tubelet, s.patch, s.patch, (double)videomae_parameters(x->vit) / 1e6);
        printf("  %lldx%lldx%lldx%lldx3 -> %s\n", (long long)batch, (long long)(c->frames - x->skip),
               (long long)c->height, (long long)c->width, ma_shape_text(text, tokens->nd, tokens->n));
    }
    if (x->pixel)
        printf("pixel: %lldx%lldx%lldx3 -> %lldx%lldx%lldx%lld\n", (long long)c->frames, (long long)c->height,
               (long long)c->width, (long long)(6 * x->pixel * x->pixel), (long long)c->frames,
               (long long)(c->height / x->pixel), (long long)(c->width / x->pixel));
    printf("memory: %s\n", ma_memory_text(text, x->ctx));
    return ma_flush_stdout(e);
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    ma_err e = {0};
    extract x = {.skip = -1};
    rc = ma_context_open(&cli, &x.dev, &x.ctx, &e) || add_encoders(&x, &e) ? -1 : 0;
    if (!rc && cli.common.dry_run) rc = plan(&x, &e);
    rc = ma_exit_status(&cli, &e, -1);
    if (!rc && !cli.common.dry_run)
        rc = ma_stage_run(&(ma_stage){.cli = &cli,
                                      .self = &x,
                                      .prepare = prepare,
                                      .work = work,
                                      .release = ma_clip_release,
                                      .batch = (int)batch,
                                      .video = true},
                          STDOUT_FILENO);
    videomae_free(x.vit);
    ma_weights_close(x.weights);
    ma_ctx_free(x.ctx);
    ma_device_close(x.dev);
    ma_cli_free(&cli);
    return rc;
}
