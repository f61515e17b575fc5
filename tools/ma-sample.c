/* ma-sample: generates clips by DDIM from a text-to-video folder. Prompts are arguments, lines of standard input, or,
 * with --shard, a shard's samples (KEY.txt, KEY.text.npy). Clip n of a prompt depends on (--seed, its key) alone.
 *
 * Limits: the codec is the pixel codec; text reaches the network only as KEY.text.npy.
 */
#include "../common/context.h"
#include "../common/file.h"
#include "../common/models/pipeline.h"
#include "../common/models/pixel.h"
#include "../common/npy.h"
#include "../common/rng.h"
#include "../common/stage.h"
#include "../common/video.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MP4, PNG, Y4M, NPY, SHARD };

static const char *base, *transformer;
static int64_t steps = 50, clips = 1, crf = 18;
static double guidance = 6;
static int format;
static bool from_shard;
static ma_clip_size size = {0};

static const ma_opt options[] = {
    {"base", 'b', MA_OPT_TEXT, &base, "DIR", "the model, a folder in diffusers' layout", 0, 0},
    {"transformer", 't', MA_OPT_TEXT, &transformer, "DIR",
     "take the transformer's weights from here (ma-align's OUT/transformer)", 0, 0},
    {"steps", 0, MA_OPT_INT, &steps, "N", "denoising steps (default 50)", 1, 1000},
    {"guidance", 0, MA_OPT_REAL, &guidance, "X", "classifier-free guidance, where there is text; 1: none (default 6)",
     0, 100},
    {"clips", 'n', MA_OPT_INT, &clips, "N", "clips a prompt (default 1)", 1, 1e6},
    {"clip", 0, MA_OPT_CLIP, &size, "FxHxW[@FPS]",
     "of the clip in pixels (default what the model was made for, at 8 fps)", 0, 0},
    {"format", 0, MA_OPT_CHOICE, &format, "mp4|png|y4m|npy|shard",
     "png: a folder a clip; shard: a stream (default mp4)", 0, 0},
    {"crf", 0, MA_OPT_INT, &crf, "N", "quality of mp4: 0 lossless … 51 (default 18)", 0, 51},
    {"shard", 0, MA_OPT_FLAG, &from_shard, NULL, "the inputs are shards whose samples are the prompts", 0, 0},
    {0},
};
static ma_cli cli = {.name = "ma-sample",
                     .does = "generates clips from a text-to-video diffusion model",
                     .args = "[PROMPT]…",
                     .opts = options};

typedef struct work {
    ma_device *dev;
    ma_ctx *ctx;
    ma_pipeline pipe;
    ma_weights *weights;
    ma_params *params;
    cogvideox *net;
    int64_t shape[5]; /* of the latent: 1, F, h, w, C */
    ma_writer *writer;
    ma_tally tally;
    ma_progress progress;
} work;

/* ---- denoising ---- */

/* One velocity (count numbers) for the latent x at time t; text (1,L,E) on the host, or NULL. */
static int velocity(work *w, const float *x, int t, const ma_array *text, float *v, ma_err *e) {
    const cogvideox_run run = {0};
    const double time = t;
    ma_tensor *in = ma_input(w->ctx, x, 5, w->shape), *words = NULL;
    if (text) {
        float *host = ma_array_f32(text, e);
        if (!host) return -1;
        words = ma_input(w->ctx, host, MA_SHAPE(1, text->n[0], text->n[1]));
        ma_release(host);
    }
    ma_tensor *out = cogvideox_forward(w->ctx, w->net, in, &time, words, &run, NULL);
    int rc = ma_get(w->ctx, out, v);
    ma_reset(w->ctx);
    return rc ? (ma_ctx_failed(w->ctx, e), -1) : 0;
}

/* v_uncond + g·(v - v_uncond): the text against an embedding of zeros. */
static int guided(work *w, const float *x, int t, const ma_array *text, float *v, float *scratch, ma_err *e) {
    if (velocity(w, x, t, text, v, e)) return -1;
    if (!text || guidance == 1) return 0;
    ma_array none;
    if (ma_array_new(&none, MA_F32, text->nd, text->n, e)) return -1;
    int rc = velocity(w, x, t, &none, scratch, e);
    ma_array_free(&none);
    const size_t count = (size_t)(w->shape[1] * w->shape[2] * w->shape[3] * w->shape[4]);
    for (size_t k = 0; !rc && k < count; k++) v[k] = scratch[k] + (float)guidance * (v[k] - scratch[k]);
    return rc;
}

static int denoise(work *w, const char *key, const ma_array *text, float *x, size_t count, ma_err *e) {
    int t[1000];
    float *v = ma_alloc(2 * count, sizeof *v);
    if (!v) return ma_fail(e, MA_MEMORY, "%s: out of memory", key);
    ma_rng rng = ma_rng_make((uint64_t)cli.common.seed, key, 0, MA_RNG_NOISE);
    ma_rng_fill_normal(&rng, x, count);
    ma_schedule_trailing(&w->pipe.schedule, (int)steps, t);
    int rc = 0;
    for (int k = 0; k < steps && !rc; k++) {
        if (ma_stopped) rc = ma_fail(e, MA_IO, "stopped");
        if (!rc) rc = guided(w, x, t[k], text, v, v + count, e);
        if (!rc)
            ma_ddim_step(&w->pipe.schedule, t[k], ma_schedule_prev(&w->pipe.schedule, t[k], (int)steps), v, x, count);
        snprintf(w->progress.note, sizeof w->progress.note, "step %d of %lld", k + 1, (long long)steps);
        ma_progress_step(&w->progress);
    }
    for (size_t k = 0; k < count && !rc; k++) {
        if (!isfinite(x[k])) rc = ma_fail(e, MA_NOTFINITE, "%s: the latent is not finite", key);
        x[k] /= (float)w->pipe.scaling;
    }
    ma_release(v);
    return rc;
}

/* ---- output ---- */

/* -o: a file for one clip, a folder for several; without: the current folder. Freed with free(). */
static char *output_path(const char *key, const char *ext, bool many) {
    if (cli.common.out && !many) return ma_strdup(cli.common.out);
    return ma_format("%s/%s%s%s", cli.common.out ? cli.common.out : ".", key, *ext ? "." : "", ext);
}

/* The folders of a path: a sample's key may have some. */
static int make_parents(const char *path, ma_err *e) {
    const char *slash = strrchr(path, '/');
    char *dir = slash && slash > path ? ma_format("%.*s", (int)(slash - path), path) : NULL;
    int rc = dir ? ma_make_dirs(dir, e) : 0;
    free(dir);
    return rc;
}

static int write_pictures(const char *folder, const uint8_t *rgb, int64_t frames, int64_t h, int64_t width, ma_err *e) {
    int rc = ma_make_dirs(folder, e);
    for (int64_t f = 0; f < frames && !rc; f++) {
        ma_buf png = {0};
        char *path = ma_format("%s/%04lld.png", folder, (long long)f);
        rc = path && !ma_png_write(rgb + f * h * width * 3, h, width, &png, e)
                 ? ma_write_file(path, png.data, png.size, e)
                 : -1;
        free(path);
        ma_buf_free(&png);
    }
    return rc;
}

static int encode(const uint8_t *rgb, const int64_t n[4], double fps, const char *kind, ma_buf *out, ma_err *e) {
    if (!strcmp(kind, "npy")) {
        const ma_array a = {MA_U8, 4, {n[0], n[1], n[2], 3}, (void *)rgb};
        return ma_npy_write(&a, out, e);
    }
    return ma_video_write(rgb, n[0], n[1], n[2], fps, kind, (int)crf, out, e);
}

static cJSON *entry_of(const work *w, const char *prompt) {
    cJSON *e = cJSON_CreateObject(), *o = cJSON_AddObjectToObject(e, "options");
    cJSON_AddStringToObject(e, "version", MA_VERSION);
    cJSON_AddStringToObject(e, "weights", ma_weights_sha(w->weights));
    cJSON_AddStringToObject(e, "prompt", prompt);
    cJSON_AddNumberToObject(o, "steps", (double)steps);
    cJSON_AddNumberToObject(o, "guidance", guidance);
    cJSON_AddNumberToObject(o, "seed", (double)cli.common.seed);
    return e;
}

/* The clip as a sample of the stream: KEY.sample.mp4 beside what the prompt's sample had. */
static int write_sample(work *w, const char *key, const char *prompt, const uint8_t *rgb, const int64_t n[4],
                        double fps, ma_err *e) {
    ma_sample *s = ma_sample_new(key);
    ma_buf mp4 = {0};
    int rc = s ? encode(rgb, n, fps, "mp4", &mp4, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", key);
    char *text = ma_format("%s\n", prompt);
    if (!rc) rc = text ? ma_sample_put(s, "txt", text, strlen(text), e) : -1;
    if (!rc) rc = ma_sample_put(s, "sample.mp4", mp4.data, mp4.size, e);
    if (!rc) rc = ma_entry_put(s, "ma-sample", entry_of(w, prompt), e);
    if (!rc) return ma_writer_add(w->writer, s, e);
    ma_sample_free(s);
    return -1;
}

/* The clip as a file, or a folder of pictures. */
static int write_files(const char *key, const uint8_t *rgb, const int64_t n[4], double fps, bool many, ma_err *e) {
    static const char *const kinds[] = {"mp4", "", "y4m", "npy"};
    char *path = output_path(key, kinds[format], many);
    if (!path) return ma_fail(e, MA_MEMORY, "%s: out of memory", key);
    ma_buf out = {0};
    int rc = many ? make_parents(path, e) : 0;
    if (!rc && format == PNG)
        rc = write_pictures(path, rgb, n[0], n[1], n[2], e);
    else if (!rc && !(rc = encode(rgb, n, fps, kinds[format], &out, e)))
        rc = ma_write_file(path, out.data, out.size, e);
    ma_buf_free(&out);
    free(path);
    return rc;
}

static int write_clip(work *w, const char *key, const char *prompt, const float *x, bool many, ma_err *e) {
    const int64_t *s = w->shape, p = w->pipe.pixel, n[4] = {s[1], s[2] * p, s[3] * p, 3};
    const double fps = size.fps > 0 ? size.fps : 8;
    uint8_t *rgb = ma_alloc((size_t)(n[0] * n[1] * n[2]), 3);
    if (!rgb) return ma_fail(e, MA_MEMORY, "%s: out of memory", key);
    pixel_decode(x, s[1], s[2], s[3], p, rgb);
    int rc = format == SHARD ? write_sample(w, key, prompt, rgb, n, fps, e) : write_files(key, rgb, n, fps, many, e);
    ma_release(rgb);
    return rc;
}

/* ---- prompts ---- */

/* A key for a prompt: its number and first words, in letters that every file system takes. */
static void prompt_key(char key[96], int64_t number, const char *prompt) {
    int used = snprintf(key, 96, "%05lld-", (long long)number);
    for (const char *s = prompt; *s && used < 60; s++) {
        bool letter = isalnum((unsigned char)*s) != 0;
        if (letter || key[used - 1] != '-') key[used++] = letter ? (char)tolower((unsigned char)*s) : '-';
    }
    while (used && key[used - 1] == '-') used--;
    key[used] = 0;
}

/* Every clip of one prompt. -1: the run is over. */
static int sample_prompt(work *w, const char *key, const char *prompt, const ma_array *text, bool many, ma_err *e) {
    const size_t count = (size_t)(w->shape[1] * w->shape[2] * w->shape[3] * w->shape[4]);
    float *x = ma_alloc(count, sizeof *x);
    if (!x) return ma_fail(e, MA_MEMORY, "%s: out of memory", key);
    int rc = 0;
    for (int64_t n = 0; n < clips && !rc; n++) {
        char name[128];
        ma_err why = {0};
        snprintf(name, sizeof name, clips > 1 ? "%s-%lld" : "%s", key, (long long)n);
        if (denoise(w, name, text, x, count, &why) || write_clip(w, name, prompt, x, many, &why)) {
            if (why.reason != MA_NOTFINITE || ma_tally_bad(&w->tally, name, &why))
                rc = ma_fail(e, why.reason, "%s", why.text);
        } else
            w->tally.good++;
        w->progress.done++;
        w->progress.bad = w->tally.bad;
        ma_progress_step(&w->progress);
    }
    ma_release(x);
    return rc;
}

static int from_arguments(work *w, ma_err *e) {
    int rc = 0;
    for (int k = 0; k < cli.inputs.n && !rc; k++) {
        char key[96];
        prompt_key(key, k, cli.inputs.at[k]);
        rc = sample_prompt(w, key, cli.inputs.at[k], NULL, cli.inputs.n > 1 || clips > 1, e);
    }
    return rc;
}

static int from_lines(work *w, ma_err *e) {
    char *line = NULL, key[96];
    size_t room = 0;
    int64_t number = 0;
    int rc = 0;
    while (!rc && !ma_stopped && getline(&line, &room, stdin) > 0) {
        line[strcspn(line, "\r\n")] = 0;
        if (!*line) continue;
        prompt_key(key, number++, line);
        rc = sample_prompt(w, key, line, NULL, true, e);
    }
    free(line);
    return rc                     ? -1
           : number || ma_stopped ? 0
                                  : ma_fail(e, MA_USAGE, "no prompt: give it as an argument or on standard input");
}

/* Whether files named by this key stay below the folder that they are meant for. */
static bool stays_below(const char *key) {
    bool below = *key != '/';
    for (const char *s = key; s; s = strchr(s, '/')) {
        s += *s == '/';
        below &= !(!strncmp(s, "..", 2) && (!s[2] || s[2] == '/'));
    }
    return below;
}

/* Of a caption, whose bytes nothing ends; "" where there is none. Freed with free(). */
static char *first_line(const ma_member *m) {
    enum { MOST = 1 << 16 };
    const char *text = m ? m->data : NULL;
    int n = 0;
    while (text && n < MOST && (size_t)n < m->size && text[n] && text[n] != '\r' && text[n] != '\n') n++;
    return ma_format("%.*s", n, n ? text : "");
}

static int from_samples(work *w, ma_err *e) {
    ma_inputs *in = ma_inputs_open(&cli, false, e);
    int rc = in ? 0 : -1;
    while (!rc && !ma_stopped) {
        ma_err why = {0};
        ma_sample *s = NULL;
        int got = ma_inputs_next(in, &s, &why);
        if (!got) break;
        ma_array text = {0};
        char *prompt = first_line(got > 0 ? ma_sample_get(s, "txt") : NULL);
        if (got > 0 && !stays_below(s->key))
            got = ma_fail(&why, MA_UNSUPPORTED, "%s: the key leaves the output's folder", s->key);
        if (got > 0 && ma_sample_get(s, "text.npy") && ma_sample_array(s, "text.npy", &text, &why)) got = -1;
        if (got > 0 && text.data && (text.nd != 2 || text.n[1] != w->pipe.transformer.text_embed_dim))
            got = ma_fail(&why, MA_SHAPE, "%s: text.npy is not (L, %d)", s->key, w->pipe.transformer.text_embed_dim);
        rc = got < 0 ? ma_tally_bad(&w->tally, s ? s->key : NULL, &why)
                     : sample_prompt(w, s->key, prompt, text.data ? &text : NULL, true, e);
        if (rc && got < 0) ma_fail(e, why.reason, "%s", why.text);
        free(prompt);
        ma_array_free(&text);
        ma_sample_free(s);
    }
    ma_inputs_close(in);
    return rc;
}

/* ---- start ---- */

/* The latent's shape from --clip, or from what the transformer was made for. */
static int fit_shape(work *w, ma_err *e) {
    const cogvideox_config *t = &w->pipe.transformer;
    const int64_t p = w->pipe.pixel, unit = p * t->patch;
    if (!p) return ma_fail(e, MA_UNSUPPORTED, "%s: only the pixel codec can be decoded", base);
    if (!size.frames) size = (ma_clip_size){t->sample_frames, t->sample_height * p, t->sample_width * p, size.fps};
    if (size.height % unit || size.width % unit)
        return ma_fail(e, MA_USAGE, "--clip: %lldx%lld is not a multiple of %lld", (long long)size.height,
                       (long long)size.width, (long long)unit);
    memcpy(w->shape, (int64_t[]){1, size.frames, size.height / p, size.width / p, t->in_channels}, sizeof w->shape);
    return 0;
}

static int start(work *w, ma_err *e) {
    if (ma_pipeline_read(base, &w->pipe, e) || fit_shape(w, e)) return -1;
    if (steps > w->pipe.schedule.steps)
        return ma_fail(e, MA_USAGE, "--steps: the model knows %d", w->pipe.schedule.steps);
    if (!(w->weights = ma_pipeline_weights(base, transformer, e))) return -1;
    w->params = ma_params_new(w->ctx, w->weights, false, 0);
    w->net = w->params ? cogvideox_make(w->params, &w->pipe.transformer) : NULL;
    if (w->net) ma_params_end(w->params, NULL);
    return ma_ctx_failed(w->ctx, e);
}

/* The shard, or the folder for several clips. */
static int open_output(work *w, ma_err *e) {
    if (format == SHARD) {
        if (!(w->writer = ma_output_open(&cli, STDOUT_FILENO, e))) return -1;
    } else if (cli.common.out && (from_shard || cli.inputs.n != 1 || clips > 1))
        return ma_make_dirs(cli.common.out, e);
    return 0;
}

static int dry_run(work *w, ma_err *e) {
    float *v = ma_alloc((size_t)(w->shape[1] * w->shape[2] * w->shape[3] * w->shape[4]), sizeof *v);
    int rc = v ? velocity(w, v, 0, NULL, v, e) : ma_fail(e, MA_MEMORY, "out of memory");
    char text[160];
    ma_release(v);
    if (rc) return -1;
    printf("parameters %lld\nlatent %lldx%lldx%lldx%lld\n%s\n", (long long)ma_params_count(w->params),
           (long long)w->shape[1], (long long)w->shape[2], (long long)w->shape[3], (long long)w->shape[4],
           ma_memory_text(text, w->ctx));
    return ma_flush_stdout(e);
}

static int run(work *w, ma_err *e) {
    if (start(w, e)) return -1;
    ma_recording(w->ctx, false);
    if (cli.common.dry_run) return dry_run(w, e);
    if (open_output(w, e)) return -1;
    ma_progress_start(&w->progress, &cli, "clips", cli.inputs.n && !from_shard ? cli.inputs.n * clips : 0);
    int rc = from_shard ? from_samples(w, e) : cli.inputs.n ? from_arguments(w, e) : from_lines(w, e);
    ma_progress_end(&w->progress);
    return !rc && ma_stopped ? ma_fail(e, MA_IO, "stopped") : rc;
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    ma_catch_signals();
    ma_err e = {0};
    work w = {.tally.cli = &cli};
    if (!base)
        ma_fail(&e, MA_USAGE, "-b DIR is needed");
    else if (!ma_context_open(&cli, &w.dev, &w.ctx, &e) && !run(&w, &e) && w.writer) {
        ma_writer_close(w.writer, &e);
        w.writer = NULL;
    }
    ma_writer_abort(w.writer);
    const int status = ma_exit_status(&cli, &e, format == SHARD ? STDOUT_FILENO : -1);
    rc = ma_tally_end(&w.tally);
    cogvideox_free(w.net);
    ma_params_free(w.params);
    ma_weights_close(w.weights);
    ma_ctx_free(w.ctx);
    ma_device_close(w.dev);
    ma_cli_free(&cli);
    return status ? status : rc;
}
