/* golden/pipeline: from a prompt and given noise to frames, against diffusers' CogVideoXPipeline (pipeline.py): DDIM,
 * DPM with its noise, dynamic guidance, a negative prompt, tiles, guidance in one pass and in two; 2B style and 5B.
 *
 *     pipeline write 2b|5b FOLDER      leaves the tiny model as a folder in diffusers' layout, for the tests of tools
 */
#include "../../common/models/generate.h"
#include "golden.h"

#define FIXTURE    "tests/golden/pipeline.safetensors"
#define PIECES     "tests/golden/spiece.model"
#define MOST_WRONG 1e-4 /* of a value of a frame, in 0..1; relative, of the latents */

/* ---- the folder ---- */

static void write_config(const char *dir, const char *part, const char *name, const cJSON *json) {
    ma_err e = {0};
    char *folder = ma_format("%s/%s", dir, part), *path = ma_format("%s/%s", folder, name);
    char *text = cJSON_PrintUnformatted(json);
    golden_need(!ma_make_dirs(folder, &e) && text && !ma_write_file(path, text, strlen(text), &e), path, &e);
    free(text);
    free(path);
    free(folder);
}

/* The weights whose names begin with PART/, without it. */
static void write_weights(const char *dir, const char *part, const char *file, const cJSON *params) {
    const size_t prefix = strlen(part) + 1;
    ma_named *named = ma_alloc((size_t)cJSON_GetArraySize(params), sizeof *named);
    ma_err e = {0};
    int n = 0;
    for (const cJSON *p = params->child; p; p = p->next)
        if (!strncmp(p->string, part, prefix - 1) && p->string[prefix - 1] == '/' && !cJSON_GetArrayItem(p, 3))
            named[n++] = (ma_named){p->string + prefix, golden_array(p)};
    char *path = ma_format("%s/%s/%s.safetensors", dir, part, file);
    golden_need(!ma_weights_save(path, named, n, NULL, &e), path, &e);
    for (int k = 0; k < n; k++) ma_array_free(&named[k].a);
    ma_release(named);
    free(path);
}

static void write_tokenizer(const char *dir) {
    ma_err e = {0};
    ma_buf pieces = {0};
    char *folder = ma_format("%s/tokenizer", dir), *path = ma_format("%s/spiece.model", folder);
    golden_need(!ma_read_file(PIECES, (size_t)1 << 20, &pieces, &e) && !ma_make_dirs(folder, &e) &&
                    !ma_write_file(path, pieces.data, pieces.size, &e),
                path, &e);
    ma_buf_free(&pieces);
    free(path);
    free(folder);
}

static void write_folder(const cJSON *meta, const char *dir) {
    static const struct {
        const char *part, *config, *weights;
    } parts[] = {{"transformer", "config.json", "diffusion_pytorch_model"},
                 {"vae", "config.json", "diffusion_pytorch_model"},
                 {"text_encoder", "config.json", "model"},
                 {"scheduler", "scheduler_config.json", NULL}};
    cJSON *index = cJSON_CreateObject();
    cJSON_AddStringToObject(index, "_class_name", "CogVideoXPipeline");
    write_config(dir, ".", "model_index.json", index);
    cJSON_Delete(index);
    write_tokenizer(dir);
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        write_config(dir, parts[k].part, parts[k].config,
                     cJSON_GetObjectItem(cJSON_GetObjectItem(meta, "configs"), parts[k].part));
        if (parts[k].weights) write_weights(dir, parts[k].part, parts[k].weights, cJSON_GetObjectItem(meta, "params"));
    }
}

/* ---- a run ---- */

typedef struct bench {
    golden g;
    const char *dir;
    ma_pipeline pipe;
    const cJSON *run;
    int64_t shape[5];
} bench;

/* Frames as diffusers' "np": 0..1. */
typedef struct taken {
    float *rgb;
    size_t n, frame;
} taken;

static int take(void *self, const float *rgb, int64_t n, ma_err *e) {
    taken *t = self;
    (void)e;
    for (size_t k = 0; k < (size_t)n * t->frame; k++) t->rgb[t->n++] = fminf(fmaxf(rgb[k] / 2 + 0.5f, 0), 1);
    return 0;
}

static double number(const bench *b, const char *key) {
    return cJSON_GetObjectItem(b->run, key)->valuedouble;
}

static ma_array input(const bench *b, const char *name) {
    char *key = ma_format("%s/%s", cJSON_GetObjectItem(b->run, "name")->valuestring, name);
    ma_array a = golden_input(&b->g, key);
    free(key);
    return a;
}

static float *expected(const bench *b, const char *name, size_t *count) {
    char *key = ma_format("%s/%s", cJSON_GetObjectItem(b->run, "name")->valuestring, name);
    float *x = golden_find(&b->g, key, count);
    golden_need(x, key, NULL);
    free(key);
    return x;
}

static void check_latents(const bench *b, const float *x, const char *how) {
    size_t n;
    float *want = expected(b, "latents", &n);
    double error = rel_error(x, want, n);
    ok(error <= MOST_WRONG, "%s: %s: latents within %.0e (%.1e)", b->g.name, how, MOST_WRONG, error);
    ma_release(want);
}

static void check_frames(const bench *b, const taken *t, const char *how) {
    const size_t every = (size_t)golden_number(&b->g, "every");
    size_t n, worst_n = 0;
    float *want = expected(b, "frames", &n);
    double worst = 0;
    for (size_t k = 0; k * every * 3 + 2 < t->n; k++)
        for (size_t c = 0; c < 3; c++, worst_n++) {
            double d = worst_n < n ? fabs((double)t->rgb[k * every * 3 + c] - want[worst_n]) : INFINITY;
            if (!(d <= worst)) worst = d;
        }
    ok(worst <= MOST_WRONG && worst_n == n, "%s: %s: frames within %.0e (%.1e)", b->g.name, how, MOST_WRONG, worst);
    ma_release(want);
}

static generate_options options_of(const bench *b, generate_choice paired) {
    generate_options o = {.text = b->pipe.transformer.max_text,
                          .sampler =
                              !strcmp(cJSON_GetObjectItem(b->run, "scheduler")->valuestring, "dpm") ? MA_DPM : MA_DDIM,
                          .steps = (int)number(b, "steps"),
                          .guidance = golden_number(&b->g, "guidance"),
                          .dynamic = cJSON_IsTrue(cJSON_GetObjectItem(b->run, "dynamic")),
                          .paired = paired,
                          .tiles = cJSON_IsTrue(cJSON_GetObjectItem(b->run, "tiles")) ? GENERATE_ON : GENERATE_OFF};
    memcpy(o.shape, b->shape, sizeof o.shape);
    return o;
}

static void check_run(bench *b, ma_device *dev, const ma_embedded text[2], generate_choice paired) {
    int64_t size[2];
    golden_list(&b->g, "size", size);
    memcpy(b->shape,
           (int64_t[]){1, (int64_t)number(b, "latents"), size[0] / 8, size[1] / 8, b->pipe.transformer.in_channels},
           sizeof b->shape);
    const generate_options o = options_of(b, paired);
    const int64_t frames = ma_pipeline_frames(&b->pipe, b->shape[1]);
    ma_err e = {0};
    ma_array start = input(b, "start"), drawn = input(b, "drawn");
    taken t = {.frame = (size_t)(size[0] * size[1] * 3)};
    t.rgb = ma_alloc((size_t)frames * t.frame, sizeof *t.rgb);
    float *x = ma_alloc(ma_array_count(&start), sizeof *x);
    char how[64];
    snprintf(how, sizeof how, "%s, %s", cJSON_GetObjectItem(b->run, "name")->valuestring,
             paired == GENERATE_ON ? "one pass" : "two passes");
    char note[160];
    ma_device *plan = ma_device_open(dev->name, true, note, &e);
    golden_need(plan, dev->name, &e);
    generator *g = generator_open(dev, plan, MA_F32, b->dir, NULL, &b->pipe, &o, &e);
    bool good = g && !generator_denoise(g, "x", &text[0].at, &text[1].at, start.data, drawn.data, x, NULL, NULL, &e);
    if (good) check_latents(b, x, how);
    good = good && !generator_decode(g, x, take, &t, &e);
    if (ok(good && t.n == (size_t)frames * t.frame, "%s: %s: %d frames %s", b->g.name, how, (int)frames, e.text))
        check_frames(b, &t, how);
    generator_close(g);
    ma_device_close(plan);
    ma_release(t.rgb);
    ma_release(x);
    ma_array_free(&start);
    ma_array_free(&drawn);
}

static void check_case(const ma_weights *fixture, const char *name) {
    char dir[] = "/tmp/ma-golden-XXXXXX";
    golden_need(mkdtemp(dir), dir, NULL);
    bench b = {.g = golden_begin(fixture, name), .dir = dir};
    ma_device *dev = ma_ctx_device(b.g.ctx);
    ma_err e = {0};
    write_folder(b.g.meta, dir);
    ok(!ma_pipeline_read(dir, &b.pipe, &e) && b.pipe.reads && !b.pipe.pixel, "%s: the folder is read %s", name, e.text);
    ok(b.pipe.schedule.sampler == (b.pipe.transformer.rotary ? MA_DPM : MA_DDIM), "%s: the folder's scheduler", name);
    cJSON *runs = cJSON_GetObjectItem(b.g.meta, "runs");
    for (const cJSON *run = runs->child; run; run = run->next) {
        ma_embedded text[2] = {{.text = cJSON_GetObjectItem(b.g.meta, "prompt")->valuestring},
                               {.text = cJSON_GetObjectItem(run, "negative")->valuestring}};
        b.run = run;
        ok(!ma_pipeline_embed(dev, MA_F32, dir, &b.pipe, text, 2, NULL, NULL, NULL, &e), "%s: %s: embedded %s", name,
           cJSON_GetObjectItem(run, "name")->valuestring, e.text);
        check_run(&b, dev, text, GENERATE_ON);
        if (run == runs->child) check_run(&b, dev, text, GENERATE_OFF);
        for (int k = 0; k < 2; k++) ma_array_free(&text[k].at);
    }
    golden_end(&b.g);
    char *command = ma_format("rm -r %s", dir);
    ok(!system(command), "%s: tidied", name);
    free(command);
}

int main(int argc, char **argv) {
    ma_weights *fixture = golden_open(FIXTURE);
    if (argc == 4 && !strcmp(argv[1], "write")) {
        cJSON *meta = cJSON_Parse(ma_weights_meta(fixture, argv[2]));
        golden_need(meta, argv[2], NULL);
        write_folder(meta, argv[3]);
        cJSON_Delete(meta);
        ma_weights_close(fixture);
        return 0;
    }
    check_case(fixture, "2b");
    check_case(fixture, "5b");
    ma_weights_close(fixture);
    return tap_done();
}
