/* ma-sample: generates clips from a text-to-video folder. Prompts are arguments, lines of standard input, a file's
 * lines or columns, or a shard's samples (KEY.txt, KEY.text.npy). A clip depends on the model, the options, (--seed,
 * its key) alone. All prompts are embedded before the transformer is loaded: the text encoder is the largest part.
 *
 * In a folder, KEY.json beside a clip tells what it was made with; it is taken away before the clip is touched and
 * written after it, so that a clip with a KEY.json is a whole one, and is not made again.
 */
#include "../common/context.h"
#include "../common/file.h"
#include "../common/frames.h"
#include "../common/models/generate.h"
#include "../common/models/latents.h"
#include "../common/naming.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SHARD = MA_FRAMES_NPY + 1, /* of format, behind ma_frames_format */
    TF32 = 4                   /* of --dtype */
};

static const char *base, *tuned, *prompts_file, *negative, *noise_file;
static int64_t steps = 50, clips = 1, crf = 18;
static double guidance = 6, strength = 1;
static int format, naming, sampler, paired, tiles;
static bool from_shard, dynamic, save_latents;
static ma_clip_size size = {0};

static const ma_opt options[] = {
    {"base", 'b', MA_OPT_TEXT, &base, "DIR", "the model, a folder in diffusers' layout", 0, 0},
    {"transformer", 't', MA_OPT_TEXT, &tuned, "PATH",
     "the transformer from here (ma-align's OUT/transformer), or the base's with this LoRA (OUT)", 0, 0},
    {"lora-strength", 0, MA_OPT_REAL, &strength, "X", "how much of the LoRA is added (default 1)", -100, 100},
    {"prompts", 'p', MA_OPT_TEXT, &prompts_file, "FILE", "prompts, one a line, or columns of a .csv or .tsv", 0, 0},
    {"shard", 0, MA_OPT_FLAG, &from_shard, NULL, "the inputs are shards whose samples are the prompts", 0, 0},
    {"negative", 0, MA_OPT_TEXT, &negative, "TEXT", "what guidance leads away from (default nothing)", 0, 0},
    {"steps", 0, MA_OPT_INT, &steps, "N", "denoising steps (default 50)", 1, 1000},
    {"scheduler", 0, MA_OPT_CHOICE, &sampler, "auto|ddim|dpm", "how a step is taken (default what the folder names)", 0,
     0},
    {"guidance", 0, MA_OPT_REAL, &guidance, "X",
     "classifier-free guidance, where there is text; 1 and less: none (default 6)", 0, 100},
    {"dynamic-cfg", 0, MA_OPT_FLAG, &dynamic, NULL, "guidance that changes with time, as diffusers has it", 0, 0},
    {"guidance-batch", 0, MA_OPT_CHOICE, &paired, "auto|2|1",
     "with and without the text in one pass of 2, or two of 1 (default by memory)", 0, 0},
    {"clips", 'n', MA_OPT_INT, &clips, "N", "clips a prompt (default 1)", 1, 1e6},
    {"clip", 0, MA_OPT_CLIP, &size, "FxHxW[@FPS]",
     "of the clip in pixels (default what the model was made for, at 8 fps)", 0, 0},
    {"noise", 0, MA_OPT_TEXT, &noise_file, "FILE", "start from this .npy, (B,F,C,h,w): B 1, or one for each of -n", 0,
     0},
    {"tile", 0, MA_OPT_CHOICE, &tiles, "auto|on|off", "decode frames in tiles (default by memory)", 0, 0},
    {"format", 0, MA_OPT_CHOICE, &format, "mp4|png|y4m|npy|shard",
     "png: a folder a clip; shard: a stream (default mp4)", 0, 0},
    {"crf", 0, MA_OPT_INT, &crf, "N", "quality of mp4: 0 lossless … 51 (default 18)", 0, 51},
    {"naming", 0, MA_OPT_CHOICE, &naming, "plain|vbench|vbench2|videophy",
     "names and lists that an evaluator reads (default plain)", 0, 0},
    {"save-latents", 0, MA_OPT_FLAG, &save_latents, NULL, "write KEY.latents.npy too, (1,F,C,h,w)", 0, 0},
    {0},
};
static ma_cli cli = {.name = "ma-sample",
                     .does = "generates clips from a text-to-video diffusion model",
                     .args = "[PROMPT]…",
                     .opts = options};

typedef struct work {
    ma_device *dev;
    ma_type type;
    const char *transformer; /* where its weights are; NULL: in the base */
    ma_pipeline pipe;
    generate_options how;
    generator *g;
    ma_prompts prompts;
    ma_names names;
    ma_array negative; /* its embedding; data NULL: none yet */
    float *noise;      /* as the latents lie, noises of them; NULL: drawn */
    int64_t noises;
    size_t count;   /* numbers of a latent */
    bool folder;    /* clips have a folder, and KEY.json beside them */
    cJSON *weights; /* of fingerprints */
    ma_writer *writer;
    ma_tally tally;
    ma_progress progress;
    double step_began, took[1000]; /* seconds of the clip's steps */
    double text, load, denoise, decode;
} work;

/* ---- what a clip was made with ---- */

static const char *choice(const char *name, int index, char out[16]) {
    const ma_opt *o = options;
    while (strcmp(o->name, name)) o++;
    const char *at = o->arg;
    for (; index > 0; index--) at = strchr(at, '|') + 1;
    snprintf(out, 16, "%.*s", (int)strcspn(at, "|"), at);
    return out;
}

static cJSON *options_of(const work *w) {
    cJSON *o = cJSON_CreateObject();
    char text[64], word[16];
    snprintf(text, sizeof text, "%lldx%lldx%lld@%g", (long long)size.frames, (long long)size.height,
             (long long)size.width, size.fps);
    cJSON_AddStringToObject(o, "clip", text);
    cJSON_AddNumberToObject(o, "steps", (double)steps);
    cJSON_AddStringToObject(o, "scheduler", choice("scheduler", w->how.sampler == MA_DPM ? 2 : 1, word));
    cJSON_AddNumberToObject(o, "guidance", guidance);
    cJSON_AddBoolToObject(o, "dynamic-cfg", dynamic);
    if (w->how.lora) cJSON_AddNumberToObject(o, "lora-strength", strength);
    cJSON_AddStringToObject(o, "tile", choice("tile", tiles, word));
    cJSON_AddStringToObject(o, "dtype", cli.common.dtype == TF32 ? "tf32" : ma_type_name(w->type));
    cJSON_AddStringToObject(o, "format", choice("format", format, word));
    if (format == MA_FRAMES_MP4 || format == SHARD) cJSON_AddNumberToObject(o, "crf", (double)crf);
    return o;
}

static void add_sha(cJSON *to, const char *name, const void *bytes, size_t n) {
    char hex[65];
    ma_sha_bytes(bytes, n, hex);
    cJSON_AddStringToObject(to, name, hex);
}

static cJSON *entry_of(const work *w, const ma_clip_name *c) {
    const ma_prompt *p = &w->prompts.at[c->prompt];
    cJSON *e = cJSON_CreateObject(), *input = cJSON_CreateObject();
    cJSON_AddStringToObject(e, "version", MA_VERSION);
    cJSON_AddItemToObject(e, "options", options_of(w));
    cJSON_AddItemToObject(e, "weights", cJSON_Duplicate(w->weights, true));
    cJSON_AddStringToObject(input, "prompt", p->text);
    if (negative) cJSON_AddStringToObject(input, "negative", negative);
    if (p->given) add_sha(input, "text.npy", p->embedding.data, ma_array_bytes(&p->embedding));
    if (w->noise)
        add_sha(input, "noise", w->noise + (size_t)(c->number % w->noises) * w->count, w->count * sizeof *w->noise);
    cJSON_AddItemToObject(e, "input", input);
    cJSON_AddNumberToObject(e, "seed", (double)cli.common.seed);
    return e;
}

/* The folders of a path: a key may have some. */
static int make_parents(const char *path, ma_err *e) {
    const char *slash = strrchr(path, '/');
    char *dir = slash && slash > path ? ma_format("%.*s", (int)(slash - path), path) : NULL;
    int rc = dir ? ma_make_dirs(dir, e) : 0;
    free(dir);
    return rc;
}

/* A file below the output's folder; free(). */
static char *path_of(const char *name, const char *ext, ma_err *e) {
    char *path = ma_format("%s/%s%s", cli.common.out ? cli.common.out : ".", name, ext);
    if (!path) ma_fail(e, MA_MEMORY, "%s: out of memory", name);
    return path;
}

/* KEY.json beside the clip as a sample, and whether it says that the clip is what would be made now. */
static bool is_there(const work *w, const ma_clip_name *c) {
    ma_err none = {0};
    ma_buf json = {0};
    char *clip = path_of(c->file, "", &none), *beside = path_of(c->key, ".json", &none),
         *latents = path_of(c->key, ".latents.npy", &none);
    const char *ext = *ma_frames_ext(format) ? ma_frames_ext(format) + 1 : "png";
    bool there = clip && beside && latents && !access(clip, F_OK) && (!save_latents || !access(latents, F_OK)) &&
                 !ma_read_file(beside, (size_t)1 << 20, &json, &none);
    ma_sample *s = there ? ma_sample_new(c->key) : NULL;
    cJSON *entry = s ? entry_of(w, c) : NULL;
    there = s && !ma_sample_put(s, "json", json.data, json.size, &none) &&
            !ma_sample_put(s, ext, malloc(1), 0, &none) && ma_entry_same(&cli, s, "ma-sample", ext, entry);
    if (!s) ma_buf_free(&json);
    cJSON_Delete(entry);
    ma_sample_free(s);
    free(clip);
    free(beside);
    free(latents);
    return there;
}

static int write_json(const work *w, const ma_clip_name *c, ma_err *e) {
    cJSON *all = cJSON_CreateObject();
    cJSON_AddItemToObject(all, "ma-sample", entry_of(w, c));
    char *json = cJSON_Print(all), *text = json ? ma_format("%s\n", json) : NULL, *path = path_of(c->key, ".json", e);
    int rc = path && text ? make_parents(path, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", c->key);
    if (!rc) rc = ma_write_file(path, text, strlen(text), e);
    cJSON_free(json);
    cJSON_Delete(all);
    free(text);
    free(path);
    return rc;
}

/* ---- output ---- */

/* -o for one clip, or its key in the current folder; in folders what naming says; free(). */
static char *clip_path(const work *w, const ma_clip_name *c, ma_err *e) {
    if (w->folder || !cli.common.out) return path_of(c->file, "", e);
    char *path = ma_strdup(cli.common.out);
    if (!path) ma_fail(e, MA_MEMORY, "%s: out of memory", c->key);
    return path;
}

/* Beside the clip: KEY.latents.npy in a folder, else by the file's name. */
static int write_latents(const work *w, const ma_clip_name *c, const char *clip, float *x, ma_err *e) {
    const size_t n = strlen(clip), ext = strlen(ma_frames_ext(format));
    const bool ends = n > ext && !strcmp(clip + n - ext, ma_frames_ext(format));
    char *path =
        w->folder ? path_of(c->key, ".latents.npy", e) : ma_format("%.*s.latents.npy", (int)(ends ? n - ext : n), clip);
    ma_buf npy = {0};
    int rc = path ? latents_write(x, w->how.shape, &npy, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", c->key);
    if (!rc) rc = make_parents(path, e);
    if (!rc) rc = ma_write_file(path, npy.data, npy.size, e);
    ma_buf_free(&npy);
    free(path);
    return rc;
}

/* The clip as a file, or a folder of pictures, and what belongs beside it. */
static int write_files(work *w, const ma_clip_name *c, const char *path, const ma_buf *file, float *x, ma_err *e) {
    int rc = format == MA_FRAMES_PNG ? 0 : ma_write_file(path, file->data, file->size, e);
    if (!rc && save_latents) rc = write_latents(w, c, path, x, e);
    return !rc && w->folder ? write_json(w, c, e) : rc;
}

/* The clip as a sample of the stream: KEY.sample.mp4, KEY.txt, KEY.json. Takes the file's bytes over. */
static int write_sample(work *w, const ma_clip_name *c, ma_buf *file, float *x, ma_err *e) {
    ma_sample *s = ma_sample_new(c->key);
    ma_buf npy = {0};
    int rc = s ? 0 : ma_fail(e, MA_MEMORY, "%s: out of memory", c->key);
    char *text = ma_format("%s\n", w->prompts.at[c->prompt].text);
    if (!rc) rc = text ? ma_sample_put(s, "txt", text, strlen(text), e) : -1;
    if (!rc) {
        rc = ma_sample_put(s, "sample.mp4", file->data, file->size, e);
        *file = (ma_buf){0};
    }
    if (!rc && save_latents && !(rc = latents_write(x, w->how.shape, &npy, e)))
        rc = ma_sample_put(s, "sample.latents.npy", npy.data, npy.size, e);
    if (!rc) rc = ma_entry_put(s, "ma-sample", entry_of(w, c), e);
    if (!rc) return ma_writer_add(w->writer, s, e);
    ma_sample_free(s);
    return -1;
}

static int take_frames(void *self, const float *rgb, int64_t n, ma_err *e) {
    return ma_frames_add(self, rgb, n, e);
}

/* From the latent to the file. */
static int write_clip(work *w, const ma_clip_name *c, float *x, ma_err *e) {
    const ma_frames_opts o = {format == SHARD ? MA_FRAMES_MP4 : (ma_frames_format)format,
                              size.frames,
                              size.height,
                              size.width,
                              size.fps,
                              (int)crf};
    char *path = clip_path(w, c, e), *beside = path_of(c->key, ".json", e);
    int rc = path && beside ? 0 : -1;
    if (!rc && format != SHARD) rc = make_parents(path, e);
    if (!rc && w->folder) unlink(beside);
    ma_frames *f = rc ? NULL : ma_frames_open(&o, format == MA_FRAMES_PNG ? path : NULL, e);
    ma_buf file = {0};
    if (!f || generator_decode(w->g, x, take_frames, f, e) || ma_frames_end(f, &file, e)) rc = -1;
    if (!rc) rc = format == SHARD ? write_sample(w, c, &file, x, e) : write_files(w, c, path, &file, x, e);
    ma_frames_free(f);
    ma_buf_free(&file);
    free(path);
    free(beside);
    return rc;
}

/* ---- clips ---- */

/* Before step k: how long this clip's others will take. */
static int show_step(void *self, int k) {
    work *w = self;
    const double now = ma_now();
    int n = snprintf(w->progress.note, sizeof w->progress.note, "step %d of %lld", k + 1, (long long)steps);
    if (k) w->took[k - 1] = now - w->step_began;
    if (k > 1) /* the first one also prepares */
        snprintf(w->progress.note + n, sizeof w->progress.note - (size_t)n, ", %.0f s left for this clip",
                 w->took[k - 1] * (double)(steps - k));
    w->step_began = now;
    ma_progress_step(&w->progress);
    return ma_stopped ? -1 : 0;
}

/* The negative prompt's embedding: where nothing embeds, zeros like the prompt's. */
static const ma_array *negative_like(work *w, const ma_array *text, ma_err *e) {
    if (w->pipe.reads) return &w->negative;
    if (w->negative.data && w->negative.n[0] == text->n[0]) return &w->negative;
    ma_array_free(&w->negative);
    return ma_array_new(&w->negative, MA_F32, text->nd, text->n, e) ? NULL : &w->negative;
}

static int make_clip(work *w, const ma_clip_name *c, float *x, ma_err *e) {
    const ma_prompt *p = &w->prompts.at[c->prompt];
    const ma_array *text = p->embedding.data ? &p->embedding : NULL,
                   *none = text && guidance > 1 ? negative_like(w, text, e) : NULL;
    const float *start = w->noise ? w->noise + (size_t)(c->number % w->noises) * w->count : NULL;
    if (text && guidance > 1 && !none) return -1;
    double began = ma_now();
    if (generator_denoise(w->g, c->key, text, none, start, NULL, x, show_step, w, e)) return -1;
    w->took[steps - 1] = ma_now() - w->step_began;
    w->denoise += ma_now() - began;
    snprintf(w->progress.note, sizeof w->progress.note, "decoding");
    ma_progress_step(&w->progress);
    began = ma_now();
    int rc = write_clip(w, c, x, e);
    w->decode += ma_now() - began;
    return rc;
}

static int make_clips(work *w, ma_err *e) {
    float *x = ma_alloc(w->count, sizeof *x);
    int rc = x ? 0 : ma_fail(e, MA_MEMORY, "clips: out of memory");
    for (size_t k = 0; k < w->names.n && !rc; k++) {
        ma_clip_name *c = &w->names.at[k];
        ma_err why = {0};
        if (c->there) continue;
        if (!make_clip(w, c, x, &why)) {
            c->there = true;
            w->tally.good++;
        } else if (why.reason != MA_NOTFINITE || ma_tally_bad(&w->tally, c->key, &why))
            rc = ma_fail(e, why.reason, "%s", why.text);
        w->progress.done++;
        w->progress.bad = w->tally.bad;
        ma_progress_step(&w->progress);
    }
    ma_release(x);
    return rc;
}

/* ---- text ---- */

static int show_text(void *self, int done) {
    work *w = self;
    snprintf(w->progress.note, sizeof w->progress.note, "%d prompts embedded", done);
    if (!done) w->text = ma_now();
    ma_progress_step(&w->progress);
    return ma_stopped ? -1 : 0;
}

/* Whether a clip of it is to be made, for which it lacks the embedding. */
static bool lacks_text(const work *w, size_t prompt) {
    for (int64_t k = 0; k < clips; k++)
        if (!w->names.at[(int64_t)prompt * clips + k].there) return !w->prompts.at[prompt].embedding.data;
    return false;
}

static void say_cut(const work *w, const char *key, const ma_embedded *t) {
    if (t->tokens > w->pipe.transformer.max_text)
        ma_say(&cli, 1, "%s: the prompt has %lld tokens: cut at %d", key, (long long)t->tokens,
               w->pipe.transformer.max_text);
}

/* The prompts of clips that are to be made, and the negative one. */
static int embed(work *w, ma_err *e) {
    const bool guides = guidance > 1;
    ma_embedded *at = ma_alloc(w->prompts.n + 1, sizeof *at);
    ma_prompt **of = ma_alloc(w->prompts.n + 1, sizeof *of);
    int n = 0, rc = at && of ? 0 : ma_fail(e, MA_MEMORY, "prompts: out of memory");
    for (size_t k = 0; !rc && k < w->prompts.n; k++)
        if (lacks_text(w, k)) {
            of[n] = &w->prompts.at[k];
            at[n++].text = w->prompts.at[k].text;
        }
    if (!rc && guides) at[n++].text = negative ? negative : "";
    const double began = ma_now();
    if (!rc && n) rc = ma_pipeline_embed(w->dev, w->type, base, &w->pipe, at, n, show_text, w, NULL, e);
    if (!rc && n) w->load = w->text - began, w->text = ma_now() - w->text;
    for (int k = 0; at && k < n; k++) {
        say_cut(w, of[k] ? of[k]->key : "--negative", &at[k]);
        *(of[k] ? &of[k]->embedding : &w->negative) = at[k].at;
    }
    ma_release(at);
    ma_release(of);
    return rc;
}

/* ---- start ---- */

/* The latent's shape from --clip, or from what the transformer was made for. */
static int fit_shape(work *w, ma_err *e) {
    const cogvideox_config *t = &w->pipe.transformer;
    const int64_t scale = ma_pipeline_scale(&w->pipe), unit = scale * t->patch;
    if (!size.frames)
        size = (ma_clip_size){t->sample_frames, t->sample_height * scale, t->sample_width * scale, size.fps};
    if (!(size.fps > 0)) size.fps = 8;
    const int64_t frames = ma_pipeline_latents(&w->pipe, size.frames), made = ma_pipeline_frames(&w->pipe, frames);
    if (made != size.frames)
        return ma_fail(e, MA_USAGE, "--clip: %lld frames: the codec makes %lld or %lld", (long long)size.frames,
                       (long long)ma_pipeline_frames(&w->pipe, frames - 1), (long long)made);
    if (size.height % unit || size.width % unit)
        return ma_fail(e, MA_USAGE, "--clip: %lldx%lld is not a multiple of %lld", (long long)size.height,
                       (long long)size.width, (long long)unit);
    memcpy(w->how.shape, (int64_t[]){1, frames, size.height / scale, size.width / scale, t->in_channels},
           sizeof w->how.shape);
    w->count = (size_t)frames * (size_t)(size.height / scale * (size.width / scale)) * (size_t)t->in_channels;
    return 0;
}

static int read_prompts(work *w, ma_err *e) {
    ma_prompts *p = &w->prompts;
    int rc = 0;
    if (from_shard) return ma_prompts_samples(p, &cli, w->pipe.transformer.text_embed_dim, &w->tally, e);
    for (int k = 0; k < cli.inputs.n && !rc; k++) rc = ma_prompts_add(p, cli.inputs.at[k], NULL, e);
    if (!rc && prompts_file) rc = ma_prompts_file(p, prompts_file, e);
    if (!rc && !cli.inputs.n && !prompts_file) rc = ma_prompts_file(p, "-", e);
    if (!rc && !p->n && !ma_stopped)
        rc = ma_fail(e, MA_USAGE, "no prompt: give it as an argument, in a file, or on standard input");
    return rc;
}

/* What the generator is asked for. Tokens: as many as any prompt will have. */
static void ask(work *w) {
    w->how.sampler = sampler ? (sampler == 2 ? MA_DPM : MA_DDIM) : w->pipe.schedule.sampler;
    w->how.steps = (int)steps;
    w->how.guidance = guidance;
    w->how.dynamic = dynamic;
    w->how.paired = (generate_choice)paired;
    w->how.tiles = (generate_choice)tiles;
    w->how.seed = (uint64_t)cli.common.seed;
    if (w->pipe.reads) w->how.text = w->pipe.transformer.max_text;
    for (size_t k = 0; k < w->prompts.n; k++) {
        const ma_array *a = &w->prompts.at[k].embedding;
        if (a->data && a->n[0] > w->how.text) w->how.text = a->n[0];
    }
}

static void add_mark(cJSON *to, const char *part, const ma_weights *w) {
    char hex[65];
    ma_pipeline_mark(w, hex);
    cJSON_AddStringToObject(to, part, hex);
}

/* The mark of weights that are opened for it alone; they are closed. NULL: they could not be. */
static int add_opened(cJSON *to, const char *part, ma_weights *w) {
    if (w) add_mark(to, part, w);
    ma_weights_close(w);
    return w ? 0 : -1;
}

/* Of the parts, by which a clip is told from that of other weights. */
static int mark_weights(work *w, ma_err *e) {
    cJSON *to = w->weights = cJSON_CreateObject();
    add_mark(to, "transformer", generator_weights(w->g, false));
    if (w->how.lora && add_opened(to, "lora", lora_weights(w->how.lora, e))) return -1;
    if (generator_weights(w->g, true)) add_mark(to, "vae", generator_weights(w->g, true));
    return w->pipe.reads ? add_opened(to, "text_encoder", ma_pipeline_part(base, "text_encoder", e)) : 0;
}

/* What of the transformer's folder is not used, and what is known to go wrong. */
static void say_oddities(const work *w) {
    char *path = w->transformer ? ma_strdup(w->transformer) : ma_format("%s/transformer", base);
    char *extra = path ? ma_pipeline_extra(path, generator_weights(w->g, false)) : NULL;
    if (extra) ma_say(&cli, 1, "%s", extra);
    if (w->type == MA_F16 && w->pipe.transformer.rotary)
        ma_say(&cli, 1, "%s: CogVideoX-5b overflows in f16: --dtype bf16 does not", base);
    free(path);
    free(extra);
}

/* -t is a transformer, or a LoRA for that of the base. */
static int sort_tuned(work *w, ma_err *e) {
    const bool low = tuned && lora_is(tuned);
    *(low ? &w->how.lora : &w->transformer) = tuned;
    w->how.strength = strength;
    return low || strength == 1 ? 0 : ma_fail(e, MA_USAGE, "--lora-strength: no LoRA is given (-t)");
}

static int start(work *w, ma_err *e) {
    if (sort_tuned(w, e) || ma_pipeline_read(base, &w->pipe, e) ||
        (w->transformer && ma_pipeline_swap(w->transformer, &w->pipe, e)) || fit_shape(w, e))
        return -1;
    if (steps > w->pipe.schedule.steps)
        return ma_fail(e, MA_USAGE, "--steps: the model knows %d", w->pipe.schedule.steps);
    if (negative && !w->pipe.reads) return ma_fail(e, MA_USAGE, "--negative: %s has no text_encoder", base);
    if (noise_file && !(w->noise = latents_read(noise_file, w->how.shape, clips, &w->noises, e))) return -1;
    if (!cli.common.dry_run && read_prompts(w, e)) return -1;
    ask(w);
    ma_device *plan = ma_context_plan(&cli, w->dev, e);
    w->g = plan ? generator_open(w->dev, plan, w->type, base, w->transformer, &w->pipe, &w->how, e) : NULL;
    if (plan != w->dev) ma_device_close(plan);
    if (!w->g || mark_weights(w, e)) return -1;
    say_oddities(w);
    return 0;
}

/* The shard, or the folder for several clips. */
static int open_output(work *w, ma_err *e) {
    const ma_frames_format f = format == SHARD ? MA_FRAMES_MP4 : (ma_frames_format)format;
    const bool one = cli.inputs.n == 1 && clips == 1 && !from_shard && !prompts_file && naming == MA_NAME_PLAIN;
    if (ma_names_make(&w->names, &w->prompts, (ma_naming)naming, clips, ma_frames_ext(f), e)) return -1;
    if (format == SHARD && naming != MA_NAME_PLAIN)
        return ma_fail(e, MA_USAGE, "--naming: a shard has keys, not names");
    if (format == SHARD) return (w->writer = ma_output_open(&cli, STDOUT_FILENO, e)) ? 0 : -1;
    w->folder = !one;
    return w->folder && cli.common.out ? ma_make_dirs(cli.common.out, e) : 0;
}

/* Finds what was made before. Returns how many clips are to be made. */
static int64_t find_done(work *w) {
    int64_t left = 0;
    for (size_t k = 0; k < w->names.n; k++) {
        ma_clip_name *c = &w->names.at[k];
        c->there = w->folder && is_there(w, c);
        left += !c->there;
    }
    if (left < (int64_t)w->names.n)
        ma_say(&cli, 1, "%lld of %zu clips were made before", (long long)((int64_t)w->names.n - left), w->names.n);
    return left;
}

/* ---- the end ---- */

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* -v: what it took, and how many steps were launched as recorded. */
static void tell(work *w) {
    char text[160];
    ma_ctx *c = generator_context(w->g);
    if (!c) return;
    const ma_replayed r = ma_ctx_replayed(c);
    qsort(w->took, (size_t)steps, sizeof *w->took, by_value);
    ma_say(&cli, 2, "memory: %s", ma_memory_text(text, c));
    ma_say(&cli, 2, "forward passes: %lld run, %lld launched from a recording, %lld that could not be recorded",
           (long long)(r.run - r.refused), (long long)r.replayed, (long long)r.refused);
    ma_say(&cli, 2, "%s", generator_way(w->g, text));
    ma_say(&cli, 2, "seconds: loading %.2f, text %.3f, denoising %.2f (a step %.4f), decoding and writing %.2f",
           w->load, w->text, w->denoise, w->took[steps / 2], w->decode);
}

static int dry_run(work *w, ma_err *e) {
    ma_memory text = {0};
    ma_embedded prompt = {.text = ""};
    char line[160];
    const int64_t *s = w->how.shape;
    if (w->pipe.reads && ma_pipeline_embed(w->dev, w->type, base, &w->pipe, &prompt, 1, NULL, NULL, &text, e))
        return -1;
    ma_array_free(&prompt.at);
    if (generator_rehearse(w->g, e)) return -1;
    printf("parameters %lld\nlatent %lldx%lldx%lldx%lld\n%s\n", (long long)generator_parameters(w->g), (long long)s[1],
           (long long)s[2], (long long)s[3], (long long)s[4], generator_way(w->g, line));
    if (w->pipe.reads) printf("text encoder, before: %.1f MB\n", (double)text.in_all / 1e6);
    printf("memory: %s\n", ma_memory_text(line, generator_context(w->g)));
    return ma_flush_stdout(e);
}

static int run(work *w, ma_err *e) {
    if (start(w, e)) return -1;
    if (cli.common.dry_run) return dry_run(w, e);
    if (open_output(w, e)) return -1;
    const int64_t left = find_done(w);
    ma_progress_start(&w->progress, &cli, "clips", left);
    int rc = left && w->pipe.reads ? embed(w, e) : 0;
    const double began = ma_now();
    if (left && !rc) rc = generator_load(w->g, e);
    w->load += ma_now() - began;
    if (left && !rc) rc = make_clips(w, e);
    ma_progress_end(&w->progress);
    tell(w);
    if (w->folder &&
        ma_names_write(&w->names, &w->prompts, (ma_naming)naming, cli.common.out ? cli.common.out : ".", e))
        rc = -1;
    return !rc && ma_stopped ? ma_fail(e, MA_IO, "stopped") : rc;
}

/* Device and type; the context itself is the generator's to make. */
static int open_device(work *w, ma_err *e) {
    ma_ctx *c = NULL;
    int rc = ma_context_open(&cli, &w->dev, &c, e);
    if (!rc) w->type = ma_get_type(c);
    ma_ctx_free(c);
    return rc;
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    ma_catch_signals();
    ma_err e = {0};
    work w = {.tally.cli = &cli};
    if (!base)
        ma_fail(&e, MA_USAGE, "-b DIR is needed");
    else if (!open_device(&w, &e) && !run(&w, &e) && w.writer) {
        ma_writer_close(w.writer, &e);
        w.writer = NULL;
    }
    ma_writer_abort(w.writer);
    rc = ma_tally_status(&w.tally, &e, format == SHARD ? STDOUT_FILENO : -1);
    generator_close(w.g);
    ma_names_free(&w.names);
    ma_prompts_free(&w.prompts);
    ma_array_free(&w.negative);
    ma_release(w.noise);
    cJSON_Delete(w.weights);
    ma_device_close(w.dev);
    ma_cli_free(&cli);
    return rc;
}
