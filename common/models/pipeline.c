/* pipeline: see pipeline.h. */
#include "pipeline.h"

#include "../config.h"
#include "../file.h"
#include "../tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *path_in(const char *dir, const char *name, ma_err *e) {
    char *path = ma_format("%s/%s", dir, name);
    if (!path) ma_fail(e, MA_MEMORY, "%s: out of memory", dir);
    return path;
}

/* ---- config files ---- */

static int read_pixel(const char *path, const cJSON *json, ma_pipeline *p, ma_err *e) {
    int patch = 0;
    const ma_setting settings[] = {{"patch_size", MA_SET_INT, &patch, 1, 64},
                                   {"scaling_factor", MA_SET_REAL, &p->scaling, 1e-6, 1e6}};
    p->scaling = 1;
    if (ma_config_read(json, settings, 2, path, e)) return -1;
    p->pixel = patch;
    return patch ? 0 : ma_fail(e, MA_CORRUPT, "%s: patch_size is missing", path);
}

static int read_codec(const char *path, ma_pipeline *p, ma_err *e) {
    static const char *const classes[] = {"AutoencoderKLCogVideoX", "MaPixelCodec", NULL};
    cJSON *json = ma_config_open(path, e);
    int class = json ? ma_config_word(json, "_class_name", "without a name", classes, path, e) : -1, rc = -1;
    p->pixel = 0;
    if (class == 1) rc = read_pixel(path, json, p, e);
    if (class == 0 && !(rc = vae_config_read(path, &p->vae, e))) p->scaling = p->vae.scaling_factor;
    cJSON_Delete(json);
    return rc;
}

/* model_index.json, where there is one: another pipeline has other parts. */
static int read_index(const char *path, ma_err *e) {
    static const char *const classes[] = {"CogVideoXPipeline", NULL};
    if (access(path, F_OK)) return 0;
    cJSON *json = ma_config_open(path, e);
    int class = json ? ma_config_word(json, "_class_name", "CogVideoXPipeline", classes, path, e) : -1;
    cJSON_Delete(json);
    return class < 0 ? -1 : 0;
}

static int read_text(const char *path, ma_pipeline *p, ma_err *e) {
    p->reads = !access(path, F_OK);
    return p->reads ? t5_config_read(path, &p->text, e) : 0;
}

/* Whether the parts go together. */
static int check(const char *dir, const ma_pipeline *p, ma_err *e) {
    const cogvideox_config *t = &p->transformer;
    const int64_t latent = p->pixel ? 3 * p->pixel * p->pixel : p->vae.latent_channels;
    if (t->in_channels != latent)
        return ma_fail(e, MA_SHAPE, "%s: the transformer's in_channels, %d, are not the codec's %lld", dir,
                       t->in_channels, (long long)latent);
    if (t->out_channels != latent)
        return ma_fail(e, MA_SHAPE, "%s: the transformer's out_channels, %d, are not its in_channels", dir,
                       t->out_channels);
    if (p->reads && p->text.width != t->text_embed_dim)
        return ma_fail(e, MA_SHAPE, "%s: the text encoder's d_model, %d, is not the transformer's text_embed_dim, %d",
                       dir, p->text.width, t->text_embed_dim);
    return 0;
}

int ma_pipeline_read(const char *dir, ma_pipeline *p, ma_err *e) {
    static const char *const names[] = {"model_index.json", "transformer/config.json",
                                        "scheduler/scheduler_config.json", "vae/config.json",
                                        "text_encoder/config.json"};
    enum { INDEX, TRANSFORMER, SCHEDULER, CODEC, TEXT, FILES };
    char *path[FILES];
    int rc = 0;
    for (int k = 0; k < FILES; k++)
        if (!(path[k] = path_in(dir, names[k], e))) rc = -1;
    if (!rc) rc = read_index(path[INDEX], e);
    if (!rc) rc = cogvideox_config_read(path[TRANSFORMER], &p->transformer, e);
    if (!rc) rc = ma_schedule_read(path[SCHEDULER], &p->schedule, e);
    if (!rc) rc = read_codec(path[CODEC], p, e);
    if (!rc) rc = read_text(path[TEXT], p, e);
    if (!rc) rc = check(dir, p, e);
    for (int k = 0; k < FILES; k++) free(path[k]);
    return rc;
}

int ma_pipeline_swap(const char *transformer, ma_pipeline *p, ma_err *e) {
    char *path = path_in(transformer, "config.json", e);
    int rc = path ? 0 : -1;
    if (path && !access(path, F_OK)) {
        rc = cogvideox_config_read(path, &p->transformer, e);
        if (!rc) rc = check(path, p, e);
    }
    free(path);
    return rc;
}

/* dir/part/name holding text; the folder is made. */
static int write_text(const char *dir, const char *part, const char *name, const char *text, ma_err *e) {
    char *folder = path_in(dir, part, e), *path = folder ? path_in(folder, name, e) : NULL;
    int rc = path && !ma_make_dirs(folder, e) ? ma_write_file(path, text, strlen(text), e) : -1;
    free(folder);
    free(path);
    return rc;
}

int ma_pipeline_write(const char *dir, const ma_pipeline *p, ma_err *e) {
    static const char index[] = "{\n  \"_class_name\": \"CogVideoXPipeline\",\n"
                                "  \"scheduler\": [\"diffusers\", \"CogVideoXDDIMScheduler\"],\n"
                                "  \"transformer\": [\"diffusers\", \"CogVideoXTransformer3DModel\"],\n"
                                "  \"vae\": [\"ma-tools\", \"MaPixelCodec\"]\n}\n";
    char codec[160];
    snprintf(codec, sizeof codec,
             "{\n  \"_class_name\": \"MaPixelCodec\",\n  \"patch_size\": %lld,\n  \"scaling_factor\": %.17g\n}\n",
             (long long)p->pixel, p->scaling);
    if (write_text(dir, ".", "model_index.json", index, e) || write_text(dir, "vae", "config.json", codec, e))
        return -1;
    char *folder = path_in(dir, "scheduler", e), *path = folder ? path_in(folder, "scheduler_config.json", e) : NULL;
    int rc = path && !ma_make_dirs(folder, e) ? ma_schedule_write(path, &p->schedule, e) : -1;
    free(folder);
    free(path);
    return rc;
}

int64_t ma_pipeline_scale(const ma_pipeline *p) {
    return p->pixel ? p->pixel : vae_scale(&p->vae);
}

int64_t ma_pipeline_latents(const ma_pipeline *p, int64_t frames) {
    int64_t n = 1;
    if (p->pixel) return frames;
    while (vae_frames(&p->vae, n) < frames) n++;
    return n;
}

int64_t ma_pipeline_frames(const ma_pipeline *p, int64_t latents) {
    return p->pixel ? latents : vae_frames(&p->vae, latents);
}

/* ---- weights ---- */

ma_weights *ma_pipeline_part(const char *dir, const char *part, ma_err *e) {
    char *path = path_in(dir, part, e);
    ma_weights *w = path ? ma_weights_open(path, e) : NULL;
    free(path);
    return w;
}

ma_weights *ma_pipeline_weights(const char *dir, const char *transformer, ma_err *e) {
    ma_weights *w = transformer ? ma_weights_open(transformer, e) : ma_pipeline_part(dir, "transformer", e);
    for (int k = 0; w && k < ma_weights_count(w); k++)
        if (strstr(ma_weights_at(w, k)->name, ".lora_A.")) {
            ma_fail(e, MA_UNSUPPORTED, "%s: %s: the weights of a LoRA, not of a transformer", ma_weights_path(w),
                    ma_weights_at(w, k)->name);
            ma_weights_close(w);
            return NULL;
        }
    return w;
}

const char *const ma_pipeline_beside[] = {"projectors.", "downsampler_cogvideo_output.", NULL};

/* Adds the config's keys that only training reads. */
static void add_keys(ma_buf *text, const char *transformer) {
    ma_err none = {0};
    char *path = path_in(transformer, "config.json", &none);
    cJSON *json = path && !access(path, F_OK) ? ma_config_open(path, &none) : NULL;
    for (const cJSON *v = json ? json->child : NULL; v; v = v->next)
        if (!strncmp(v->string, "align_", 6) || !strncmp(v->string, "projector_", 10))
            ma_buf_printf(text, "%s%s", text->size ? ", " : "", v->string);
    cJSON_Delete(json);
    free(path);
}

char *ma_pipeline_extra(const char *transformer, const ma_weights *w) {
    ma_buf text = {0};
    const char *last = "";
    add_keys(&text, transformer);
    for (int k = 0; k < ma_weights_count(w); k++)
        for (const char *const *p = ma_pipeline_beside; *p; p++)
            if (!strncmp(ma_weights_at(w, k)->name, *p, strlen(*p)) && last != *p)
                ma_buf_printf(&text, "%s%s*", text.size ? ", " : "", last = *p);
    char *line = text.size ? ma_format("%s: left alone: %s", ma_weights_path(w), text.data) : NULL;
    ma_buf_free(&text);
    return line;
}

/* Bytes that lie one behind the other from the first element on: all, or where strides leave gaps, one. */
static size_t bytes_in_a_row(const ma_entry *e) {
    size_t count = 1;
    bool dense = true;
    for (int d = e->nd - 1; d >= 0; d--) {
        dense &= e->n[d] == 1 || e->stride[d] == (int64_t)count;
        count *= (size_t)e->n[d];
    }
    return ma_type_size(e->type) * (dense || !count ? count : 1);
}

void ma_pipeline_mark(const ma_weights *w, char hex[65]) {
    enum { PIECE = 4096 };
    const char *meta = ma_weights_meta(w, LORA_META);
    ma_sha *sha = ma_sha_new();
    if (meta) ma_sha_add(sha, meta, strlen(meta) + 1);
    for (int k = 0; k < ma_weights_count(w); k++) {
        const ma_entry *e = ma_weights_at(w, k);
        const size_t bytes = bytes_in_a_row(e), piece = bytes < PIECE ? bytes : PIECE;
        ma_sha_add(sha, e->name, strlen(e->name) + 1);
        ma_sha_add(sha, &(int64_t){e->type}, sizeof(int64_t));
        ma_sha_add(sha, e->n, (size_t)e->nd * sizeof *e->n);
        for (size_t part = 0; piece && part < 3; part++)
            ma_sha_add(sha, (const char *)e->data + (bytes - piece) / 2 * part, piece);
    }
    ma_sha_end(sha, hex);
}

/* ---- text ---- */

enum { BATCH = 8 }; /* prompts at a time: enough rows for a matrix product to be busy */

/* The prompts' tokens, max_text each. ma_release; NULL: failed. */
static int32_t *tokens_of(const char *dir, int64_t length, ma_embedded *at, int n, ma_err *e) {
    char *path = path_in(dir, "tokenizer", e);
    ma_tokenizer *tokenizer = path ? ma_tokenizer_open(path, e) : NULL;
    int32_t *ids = tokenizer ? ma_alloc((size_t)n, (size_t)length * sizeof *ids) : NULL;
    bool good = ids != NULL;
    if (tokenizer && !ids) ma_fail(e, MA_MEMORY, "%s: out of memory", dir);
    for (int k = 0; k < n && good; k++) {
        at[k].tokens = ma_tokenize(tokenizer, at[k].text, strlen(at[k].text), ids + k * length, length, e);
        good = at[k].tokens >= 0;
    }
    ma_tokenizer_free(tokenizer);
    free(path);
    if (good) return ids;
    ma_release(ids);
    return NULL;
}

/* Prompts first … first+n-1. */
static int embed_batch(ma_ctx *c, const t5 *net, const int32_t *ids, int64_t length, ma_embedded *at, int n,
                       ma_err *e) {
    ma_tensor *y = t5_forward(c, net, ids, n, length); /* (n, length, width) */
    const size_t each = y ? (size_t)(length * y->n[2]) : 0;
    float *host = y ? ma_alloc((size_t)n, each * sizeof *host) : NULL;
    int rc = 0;
    if (y && !host) rc = ma_fail(e, MA_MEMORY, "text: out of memory");
    if (!y || (!rc && ma_get(c, y, host))) rc = ma_ctx_failed(c, e);
    for (int k = 0; k < n && !rc; k++) {
        rc = ma_array_new(&at[k].at, ma_get_type(c), 2, (int64_t[]){length, y->n[2]}, e);
        if (!rc) ma_from_f32(at[k].at.data, host + (size_t)k * each, ma_get_type(c), each);
    }
    ma_release(host);
    ma_reset(c);
    return rc;
}

static int embed_all(ma_ctx *c, const t5 *net, const int32_t *ids, int64_t length, ma_embedded *at, int n,
                     int (*step)(void *self, int done), void *self, ma_err *e) {
    int rc = step && step(self, 0) ? ma_fail(e, MA_IO, "stopped") : 0;
    for (int k = 0; k < n && !rc; k += BATCH) {
        const int now = n - k < BATCH ? n - k : BATCH;
        rc = embed_batch(c, net, ids + k * length, length, at + k, now, e);
        if (!rc && step && step(self, k + now)) rc = ma_fail(e, MA_IO, "stopped");
    }
    return rc;
}

int ma_pipeline_embed(ma_device *dev, ma_type type, const char *dir, const ma_pipeline *p, ma_embedded *at, int n,
                      int (*step)(void *self, int done), void *self, ma_memory *memory, ma_err *e) {
    if (!p->reads) return ma_fail(e, MA_MISSING, "%s: it has no text_encoder", dir);
    const int64_t length = p->transformer.max_text;
    int32_t *ids = tokens_of(dir, length, at, n, e);
    ma_weights *w = ids ? ma_pipeline_part(dir, "text_encoder", e) : NULL;
    ma_ctx *c = w ? ma_ctx_new(dev, e) : NULL;
    t5 *net = NULL;
    int rc = c ? 0 : -1;
    if (c) {
        ma_set_type(c, type);
        ma_recording(c, false);
        ma_ctx_lever(c, "the text encoder is alone on the device: a larger --memory, or --dtype bf16");
        net = t5_load(c, w, &p->text, 0);
        rc = net ? embed_all(c, net, ids, length, at, n, step, self, e) : ma_ctx_failed(c, e);
        if (memory) *memory = ma_ctx_memory(c);
    }
    t5_free(net);
    ma_ctx_free(c);
    ma_weights_close(w);
    ma_release(ids);
    return rc;
}
