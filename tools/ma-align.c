/* ma-align: fine-tunes a text-to-video diffusion transformer so that the relations among its hidden tokens match those
 * of a teacher's (METHOD, stage 2); with --loss none, plain training.
 *
 * L = L_diff + Σ λ·L_align. L_diff is the x0 form weighted by 1/(1-ᾱ), which for a v-prediction is exactly the mean
 * square error in v. Noise, time and whether the prompt is dropped depend on a sample's (seed, key, step) alone.
 * Limits: one teacher and one projector for all the losses of a run.
 */
#include "../common/context.h"
#include "../common/file.h"
#include "../common/models/pipeline.h"
#include "../common/models/relations.h"
#include "../common/npy.h"
#include "../common/rng.h"
#include "../common/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static ma_train_opts train = {MA_TRAIN_DEFAULTS, .lr = 2e-6, .beta2 = 0.95, .decay = 1e-3};
static const char *base, *target = "motion", *losses = "soft-trd", *trained = "all", *lora_targets = LORA_TARGETS;
static const char *empty_text;
static bool from_scratch, merge;
static int64_t layer = 18, rank = 64, align_steps;
static int recompute, save_type;
static double lambda = 0.5, tau = 10, margin = 0.1, alpha = 64, drop_text;

static const ma_opt options[] = {
    {"base", 'b', MA_OPT_TEXT, &base, "DIR", "the model to train, a folder in diffusers' layout", 0, 0},
    {"from-scratch", 0, MA_OPT_FLAG, &from_scratch, NULL, "take only DIR's configuration; weights are drawn", 0, 0},
    {"train", 0, MA_OPT_TEXT, &trained, "all|lora|PATTERN[,PATTERN]…",
     "what is trained: everything, adapters, parameters by name (default all)", 0, 0},
    {"lora-rank", 0, MA_OPT_INT, &rank, "N", "rank of the adapters (default 64)", 1, 4096},
    {"lora-alpha", 0, MA_OPT_REAL, &alpha, "X", "they count alpha/rank (default 64)", 1e-6, 1e6},
    {"lora-targets", 0, MA_OPT_TEXT, &lora_targets, "NAME[,NAME]…", "ends of the names of the maps that get them", 0,
     0},
    {"merge", 0, MA_OPT_FLAG, &merge, NULL, "write the transformer with the adapters merged, too", 0, 0},
    {"layer", 0, MA_OPT_INT, &layer, "K", "align the tokens after block K, counted from one (default 18)", 1, 1024},
    {"loss", 0, MA_OPT_TEXT, &losses, "NAME[=X][,NAME=X]…",
     "soft-trd, trd, trd-spatial, trd-temporal, repa, none; weights (default soft-trd)", 0, 0},
    {"lambda", 0, MA_OPT_REAL, &lambda, "X", "weight of a --loss that has none (default 0.5)", 0, 1e6},
    {"align-steps", 0, MA_OPT_INT, &align_steps, "N", "align in the first N steps only; 0: in all (default)", 0, 1e9},
    {"tau", 0, MA_OPT_REAL, &tau, "X", "frames over which soft-trd fades (default 10)", 1e-3, 1e6},
    {"margin", 0, MA_OPT_REAL, &margin, "X", "margin of trd, trd-spatial, trd-temporal (default 0.1)", 0, 2},
    {"target", 0, MA_OPT_TEXT, &target, "MEMBER", "the teacher: KEY.MEMBER.npy (default motion)", 0, 0},
    {"drop-text", 0, MA_OPT_REAL, &drop_text, "P", "prompts replaced by the empty one, for guidance (default 0)", 0, 1},
    {"empty-text", 0, MA_OPT_TEXT, &empty_text, "FILE|zeros", "its embedding, .npy (default by DIR's text encoder)", 0,
     0},
    {"recompute", 0, MA_OPT_CHOICE, &recompute, "on|off",
     "keep one tensor a block, compute the rest again (default on)", 0, 0},
    {"save-type", 0, MA_OPT_CHOICE, &save_type, "f32|f16|bf16", "of the transformer that is written (default f32)", 0,
     0},
    MA_TRAIN_OPTIONS(train),
    {0},
};
static ma_cli cli = {.name = "ma-align",
                     .does = "trains a video diffusion transformer, its tokens' relations aligned to a teacher's",
                     .args = "[INPUT]…",
                     .opts = options,
                     .presets = true};

enum { LATENT, TEXT, TARGET }; /* a sample's members */

typedef struct work {
    ma_team *team; /* NULL: alone */
    ma_device *dev;
    ma_ctx *ctx;
    ma_pipeline pipe;
    ma_weights *weights;
    ma_params *params, *projector_params;
    cogvideox *net;
    lora *lora;         /* NULL: none */
    projector *project; /* NULL: --loss none */
    align_terms terms;
    ma_array empty;   /* of the prompt that takes a dropped one's place; no data: none is dropped */
    int64_t shape[5]; /* of a sample's latent as the network has it: 1, F, h, w, C */
} work;

/* ---- the loss of a batch ---- */

/* Noisy latents and velocities of a batch, n and n, as ma_diffuse has them, and the times. */
static ma_tensor *draw_noisy(const work *w, const ma_item *items, int n, int64_t step, double *t) {
    const ma_schedule *schedule = &w->pipe.schedule;
    ma_noising *how = ma_alloc((size_t)n, sizeof *how);
    if (!how) ma_fail(ma_ctx_err(w->ctx), MA_MEMORY, "batch: out of memory");
    for (int b = 0; how && b < n; b++) {
        ma_rng rng = ma_rng_make((uint64_t)cli.common.seed, items[b].key, (uint64_t)step, MA_RNG_TIME);
        const int64_t at = ma_rng_below(&rng, schedule->steps);
        how[b] = (ma_noising){.signal = (float)sqrt(schedule->alpha_bar[at]),
                              .noise = (float)sqrt(1 - schedule->alpha_bar[at]),
                              .key = {rng.key[0], rng.key[1]}};
        t[b] = (double)at;
    }
    ma_tensor *both =
        how ? ma_diffuse(w->ctx, ma_items_raw(w->ctx, items, n, LATENT), how, step, w->pipe.scaling) : NULL;
    ma_release(how);
    return both;
}

/* The prompts' embeddings, some of them those of the empty prompt. */
static ma_tensor *draw_text(const work *w, const ma_item *items, int n, int64_t step) {
    if (!w->empty.data) return ma_items_tensor(w->ctx, items, n, TEXT, false);
    ma_item *seen = ma_alloc((size_t)n, sizeof *seen); /* nothing in it is its own */
    if (!seen) ma_fail(ma_ctx_err(w->ctx), MA_MEMORY, "batch: out of memory");
    for (int b = 0; seen && b < n; b++) {
        ma_rng rng = ma_rng_make((uint64_t)cli.common.seed, items[b].key, (uint64_t)step, MA_RNG_DROP);
        seen[b] = items[b];
        if (ma_rng_uniform(&rng) < drop_text) seen[b] = (ma_item){.a = {[TEXT] = w->empty}};
    }
    ma_tensor *text = seen ? ma_items_tensor(w->ctx, seen, n, TEXT, false) : NULL;
    ma_release(seen);
    return text;
}

static void add_part(ma_parts *parts, const char *name, ma_tensor *value) {
    parts->name[parts->n] = name;
    parts->value[parts->n++] = value;
}

/* loss + Σ λ·L_align. A single one is called alignment in the log, several by their names. */
static ma_tensor *add_alignment(const work *w, ma_tensor *loss, ma_tensor *hidden, ma_tensor *teacher,
                                ma_parts *parts) {
    ma_ctx *c = w->ctx;
    ma_tensor *z = projector_forward(c, w->project, hidden);
    for (int k = 0; k < w->terms.n; k++) {
        const align_loss kind = w->terms.at[k].kind;
        ma_tensor *align = align_loss_of(c, kind, z, teacher, tau, margin);
        loss = ma_add(c, loss, ma_affine(c, align, w->terms.at[k].weight, 0));
        add_part(parts, w->terms.n == 1 ? "alignment" : align_name(kind), align);
    }
    return loss;
}

static ma_tensor *batch_loss(void *self, const ma_item *items, int n, int64_t step, ma_parts *parts) {
    work *w = self;
    ma_ctx *c = w->ctx;
    double *t = ma_alloc((size_t)n, sizeof *t);
    if (!t) {
        ma_fail(ma_ctx_err(c), MA_MEMORY, "batch: out of memory");
        return NULL;
    }
    const bool aligns = w->project && (!align_steps || step <= align_steps);
    const cogvideox_run run = {.hidden_after = aligns ? (int)layer : 0, .checkpoint = recompute == 0};
    ma_tensor *hidden = NULL, *both = draw_noisy(w, items, n, step, t), *noisy = ma_rows(c, both, 0, n);
    if (ma_get_type(c) != MA_F32) noisy = ma_cast(c, noisy, ma_get_type(c), w->shape[4]);
    ma_tensor *got = cogvideox_forward(c, w->net, noisy, t, draw_text(w, items, n, step), &run, &hidden);
    ma_tensor *loss = ma_mse(c, got, ma_rows(c, both, n, n));
    add_part(parts, "diffusion", loss);
    if (aligns) loss = add_alignment(w, loss, hidden, ma_items_tensor(c, items, n, TARGET, false), parts);
    ma_release(t);
    return loss;
}

/* ---- what is written ---- */

static const ma_type SAVE_TYPES[] = {MA_F32, MA_F16, MA_BF16};

/* Adapters alone leave the transformer as it was. */
static bool writes_transformer(const work *w) {
    return !w->lora || merge;
}

static int save_transformer(work *w, const char *folder, ma_err *e) {
    char *dir = ma_format("%s/transformer", folder), *config = ma_format("%s/transformer/config.json", folder),
         *file = ma_format("%s/transformer/diffusion_pytorch_model.safetensors", folder);
    int rc = dir && config && file ? ma_make_dirs(dir, e) : ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc) rc = cogvideox_config_write(config, &w->pipe.transformer, e);
    if (!rc) rc = ma_params_save(w->params, file, SAVE_TYPES[save_type], (size_t)10 << 30, NULL, e);
    free(dir);
    free(config);
    free(file);
    return rc;
}

static int save_weights(void *self, const char *folder, ma_err *e) {
    work *w = self;
    char *low = ma_format("%s/" LORA_FILE, folder), *zeta = ma_format("%s/projector.safetensors", folder);
    int rc = low && zeta ? ma_make_dirs(folder, e) : ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc && writes_transformer(w)) rc = save_transformer(w, folder, e);
    if (!rc && w->lora) rc = lora_save(w->lora, low, e);
    if (!rc && w->project) rc = ma_params_save(w->projector_params, zeta, MA_F32, 0, NULL, e);
    free(low);
    free(zeta);
    return rc;
}

/* FROM/NAME to TO/NAME, a file or a folder; nothing there is fine. */
static int move_over(const char *from, const char *to, const char *name, ma_err *e) {
    char *a = ma_format("%s/%s", from, name), *b = ma_format("%s/%s", to, name);
    int rc = a && b ? 0 : ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc && !access(a, F_OK)) rc = ma_folder_replace(a, b, e);
    free(a);
    free(b);
    return rc;
}

/* What is wanted of the run in OUT, and with the pixel codec the configs that make OUT a folder to start from. */
static int write_result(work *w, const char *out, ma_err *e) {
    static const char *const parts[] = {"transformer", LORA_FILE, "projector.safetensors"};
    char *beside = ma_format("%s/result.tmp", out);
    int rc = beside ? ma_folder_remove(beside, e) : ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc) rc = save_weights(w, beside, e);
    if (!rc && w->pipe.pixel) rc = ma_pipeline_write(out, &w->pipe, e);
    for (size_t k = 0; !rc && k < sizeof parts / sizeof *parts; k++) rc = move_over(beside, out, parts[k], e);
    if (!rc) rc = ma_folder_remove(beside, e);
    free(beside);
    return rc;
}

/* About the bytes that save_weights writes. */
static size_t bytes_written(const work *w) {
    size_t bytes = 0;
    if (writes_transformer(w)) bytes += (size_t)ma_params_count(w->params) * ma_type_size(SAVE_TYPES[save_type]);
    if (w->lora) bytes += (size_t)ma_params_count(lora_params(w->lora)) * sizeof(float);
    if (w->project) bytes += (size_t)ma_params_count(w->projector_params) * sizeof(float);
    return bytes;
}

/* ---- the empty prompt ---- */

static int read_array(const char *path, ma_array *a, ma_err *e) {
    ma_buf bytes = {0};
    int rc = ma_read_file(path, (size_t)1 << 30, &bytes, e);
    if (!rc) rc = ma_npy_read(bytes.data, bytes.size, a, path, e);
    ma_buf_free(&bytes);
    return rc;
}

/* By the base's text encoder; kept in OUT for the next time, as that may be large. */
static int embed_empty(work *w, const char *path, ma_err *e) {
    ma_embedded one = {.text = ""};
    ma_buf bytes = {0};
    if (!w->pipe.reads)
        return ma_fail(e, MA_USAGE, "--drop-text: %s has no text encoder: give --empty-text FILE, or zeros", base);
    int rc = ma_pipeline_embed(w->dev, ma_get_type(w->ctx), base, &w->pipe, &one, 1, NULL, NULL, NULL, e);
    if (!rc) rc = ma_array_new(&w->empty, MA_F32, one.at.nd, one.at.n, e);
    if (!rc) ma_to_f32(w->empty.data, one.at.data, one.at.type, ma_array_count(&one.at));
    if (!rc) rc = ma_npy_write(&w->empty, &bytes, e);
    if (!rc) rc = ma_make_dirs(cli.common.out, e);
    if (!rc) rc = ma_write_file(path, bytes.data, bytes.size, e);
    ma_array_free(&one.at);
    ma_buf_free(&bytes);
    return rc;
}

/* The embedding that a dropped prompt gets, of the shape of the data's. */
static int find_empty(work *w, ma_dataset *data, ma_err *e) {
    const ma_array *like = drop_text > 0 ? ma_dataset_shape(data, TEXT, e) : NULL;
    if (!like) return e->reason == MA_OK ? 0 : -1;
    if (cli.common.dry_run || (empty_text && !strcmp(empty_text, "zeros")))
        return ma_array_new(&w->empty, MA_F32, like->nd, like->n, e);
    char *kept = ma_format("%s/empty-text.npy", cli.common.out);
    const char *path = empty_text ? empty_text : kept;
    int rc = !kept                               ? ma_fail(e, MA_MEMORY, "out of memory")
             : !empty_text && access(kept, R_OK) ? embed_empty(w, kept, e)
                                                 : read_array(path, &w->empty, e);
    if (!rc && (w->empty.nd != like->nd || memcmp(w->empty.n, like->n, (size_t)like->nd * sizeof *like->n))) {
        char is[160], must[160];
        rc = ma_fail(e, MA_SHAPE, "%s is %s, must be %s as the samples' text.npy", path,
                     ma_shape_text(is, w->empty.nd, w->empty.n), ma_shape_text(must, like->nd, like->n));
    }
    free(kept);
    return rc;
}

/* ---- start ---- */

static int make_transformer(work *w, ma_err *e) {
    const bool low = !strcmp(trained, "lora");
    w->params = ma_params_new(w->ctx, w->weights, !low, (uint64_t)cli.common.seed);
    if (w->params && !low && strcmp(trained, "all")) w->params->only = trained;
    w->net = w->params ? cogvideox_make(w->params, &w->pipe.transformer) : NULL;
    if (w->net) ma_params_end(w->params, ma_pipeline_beside);
    if (w->net && low) w->lora = lora_new(w->ctx, rank, alpha, lora_targets, (uint64_t)cli.common.seed);
    if (w->lora && !cogvideox_adapt(w->net, w->lora) && merge) {
        w->params->edit = lora_edit;
        w->params->edit_self = w->lora;
    }
    return ma_ctx_failed(w->ctx, e) || !w->net ? -1 : 0;
}

/* Checks the data's shapes against the model; makes both networks. */
static int make_nets(work *w, ma_dataset *data, ma_err *e) {
    const cogvideox_config *t = &w->pipe.transformer;
    const ma_array *latent = ma_dataset_shape(data, LATENT, e), *m = NULL;
    char text[160];
    if (!latent) return -1;
    if (latent->nd != 4 || latent->n[0] != 2 * t->in_channels || latent->n[2] % t->patch || latent->n[3] % t->patch)
        return ma_fail(e, MA_SHAPE,
                       "latent.npy is %s; %s has %d channels (twice: mean, log-variance) and patches of %d",
                       ma_shape_text(text, latent->nd, latent->n), base, t->in_channels, t->patch);
    memcpy(w->shape, (int64_t[]){1, latent->n[1], latent->n[2], latent->n[3], t->in_channels}, sizeof w->shape);
    if (make_transformer(w, e)) return -1;
    if (!w->terms.n) return 0;
    if (layer > t->layers)
        return ma_fail(e, MA_USAGE, "--layer %lld: the model has %d blocks", (long long)layer, t->layers);
    if (!(m = ma_dataset_shape(data, TARGET, e))) return -1;
    if (m->nd != 4)
        return ma_fail(e, MA_SHAPE, "%s.npy is %s, not (T,H,W,D)", target, ma_shape_text(text, m->nd, m->n));
    const int64_t hidden[3] = {latent->n[1], latent->n[2] / t->patch, latent->n[3] / t->patch};
    w->projector_params = ma_params_new(w->ctx, NULL, true, (uint64_t)cli.common.seed);
    if (w->projector_params)
        w->project = projector_make(w->projector_params, (int64_t)t->heads * t->head_dim, m->n[3], hidden, m->n);
    return ma_ctx_failed(w->ctx, e);
}

static void close_nets(work *w) {
    projector_free(w->project);
    cogvideox_free(w->net);
    lora_free(w->lora);
    ma_params_free(w->projector_params);
    ma_params_free(w->params);
    ma_ctx_free(w->ctx);
    ma_device_close(w->dev);
}

/* The run, as the loop knows it. What is saved in a type that holds the parameters as they are is not saved twice. */
static ma_train training(work *w, ma_dataset *data, ma_tally *tally) {
    const bool exact = SAVE_TYPES[save_type] == MA_F32 || SAVE_TYPES[save_type] == ma_get_type(w->ctx);
    return (ma_train){.cli = &cli,
                      .o = &train,
                      .ctx = w->ctx,
                      .data = data,
                      .tally = tally,
                      .team = w->team,
                      .params = {w->lora ? lora_params(w->lora) : w->params, w->projector_params},
                      .file = {w->lora ? LORA_FILE
                               : exact ? "transformer"
                                       : NULL,
                               "projector.safetensors"},
                      .nparams = w->project ? 2 : 1,
                      .state = cli.common.out,
                      .saved = bytes_written(w),
                      .self = w,
                      .loss = batch_loss,
                      .save = save_weights};
}

/* On a device that only counts: what the run takes stands in w's context then; *checkpoint: bytes of one. */
static int count(work *w, ma_dataset *data, size_t *checkpoint, ma_err *e) {
    int64_t n;
    if (make_nets(w, data, e)) return -1;
    const ma_train t = training(w, data, NULL);
    if (ma_train_plan(&t, &n, e)) return -1;
    *checkpoint = ma_train_bytes(&t);
    return 0;
}

static int dry_run(work *w, ma_dataset *data, ma_err *e) {
    char text[160];
    size_t checkpoint;
    if (count(w, data, &checkpoint, e)) return -1;
    if (cli.rank) return 0;
    printf("parameters %lld, projector %lld", (long long)ma_params_count(w->params),
           (long long)(w->project ? ma_params_count(w->projector_params) : 0));
    if (w->lora) printf(", adapters %lld", (long long)ma_params_count(lora_params(w->lora)));
    printf("\nlatent %lldx%lldx%lldx%lld, batch %lld\nmemory: %s\ncheckpoint: %.1f MB\n", (long long)w->shape[1],
           (long long)w->shape[2], (long long)w->shape[3], (long long)w->shape[4], (long long)train.batch,
           ma_memory_text(text, w->ctx), (double)checkpoint / 1e6);
    return ma_flush_stdout(e);
}

/* Says the same before a run. */
static int tell_plan(const work *w, ma_dataset *data, ma_err *e) {
    char text[160];
    size_t checkpoint;
    ma_cli counting = cli;
    counting.common.dry_run = counting.common.quiet = true;
    work p = {.team = w->team, .pipe = w->pipe, .weights = w->weights, .terms = w->terms, .empty = w->empty};
    int rc = ma_context_open(&counting, &p.dev, &p.ctx, e) || ma_team_join(p.team, p.ctx, e) ||
                     count(&p, data, &checkpoint, e)
                 ? -1
                 : 0;
    if (!rc) ma_say(&cli, 1, "plan: %s; a checkpoint %.1f MB", ma_memory_text(text, p.ctx), (double)checkpoint / 1e6);
    close_nets(&p);
    return rc;
}

static int learn(work *w, ma_dataset *data, ma_tally *tally, ma_err *e) {
    int64_t steps;
    if (tell_plan(w, data, e) || make_nets(w, data, e)) return -1;
    const ma_train t = training(w, data, tally);
    if (ma_train_run(&t, &steps, e) || (!cli.rank && write_result(w, cli.common.out, e))) return -1;
    ma_say(&cli, 1, "%s: %lld steps", cli.common.out, (long long)steps);
    return 0;
}

/* Without and with --recompute off; the optimiser's state on the device and on the host. */
static const char *const levers[2][2] = {
    {"lower --batch, and raise --accumulate as much, or give --optimizer-state bf16 or host",
     "lower --batch, and raise --accumulate as much"},
    {"give --recompute on, or --optimizer-state bf16 or host, or lower --batch and raise --accumulate as much",
     "give --recompute on, or lower --batch and raise --accumulate as much"}};

static int run(work *w, ma_tally *tally, ma_err *e) {
    char member[64];
    if (snprintf(member, sizeof member, "%s.npy", target) >= (int)sizeof member)
        return ma_fail(e, MA_USAGE, "--target: name too long");
    if (merge && strcmp(trained, "lora")) return ma_fail(e, MA_USAGE, "--merge goes with --train lora");
    if (align_terms_read(losses, lambda, &w->terms, e) || ma_team_open(&w->team, &cli, cli.common.out, e) ||
        ma_context_open(&cli, &w->dev, &w->ctx, e) || ma_team_join(w->team, w->ctx, e))
        return -1;
    ma_ctx_lever(w->ctx, levers[recompute != 0][train.state == MA_STATE_HOST]);
    if (ma_pipeline_read(base, &w->pipe, e)) return -1;
    if (!from_scratch && !(w->weights = ma_pipeline_weights(base, NULL, e))) return -1;
    char *log = ma_format("%s/log.jsonl", cli.common.out);
    ma_dataset_opts o = {.cli = &cli,
                         .member = {"latent.npy", "text.npy", member},
                         .optional = {false, true},
                         .members = w->terms.n ? 3 : 2,
                         .window = train.window,
                         .seed = (uint64_t)cli.common.seed,
                         .epochs = train.epochs,
                         .tally = tally,
                         .device = w->dev};
    ma_dataset *data = log ? ma_dataset_open(&o, e) : NULL;
    int rc = data ? find_empty(w, data, e) : -1;
    if (!train.log) train.log = log;
    if (!rc) rc = cli.common.dry_run ? dry_run(w, data, e) : learn(w, data, tally, e);
    ma_dataset_close(data);
    free(log);
    return rc;
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    ma_catch_signals();
    ma_train_signals();
    ma_err e = {0};
    work w = {0};
    ma_tally tally = {.cli = &cli, .list = cJSON_CreateArray()};
    if (!base || !cli.common.out)
        ma_fail(&e, MA_USAGE, "%s is needed", base ? "-o OUT" : "-b DIR");
    else
        run(&w, &tally, &e);
    ma_team_close(w.team, &e);
    rc = ma_tally_status(&tally, &e, -1);
    cJSON_Delete(tally.list);
    ma_array_free(&w.empty);
    close_nets(&w);
    ma_weights_close(w.weights);
    ma_cli_free(&cli);
    return rc;
}
