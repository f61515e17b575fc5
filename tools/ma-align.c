/* ma-align: fine-tunes a text-to-video diffusion transformer so that the relations among its hidden tokens match those
 * of a teacher's (METHOD, stage 2); with --loss none, plain training.
 *
 * L = L_diff + λ·L_align. L_diff is the x0 form weighted by 1/(1-ᾱ), which for a v-prediction is exactly the mean
 * square error in v. Noise and time of a sample depend on (seed, key, step) alone.
 */
#include "../common/context.h"
#include "../common/file.h"
#include "../common/models/pipeline.h"
#include "../common/models/relations.h"
#include "../common/rng.h"
#include "../common/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static ma_train_opts train = {MA_TRAIN_DEFAULTS, .lr = 2e-6, .beta2 = 0.95, .decay = 1e-3};
static const char *base, *target = "motion";
static bool from_scratch;
static int64_t layer = 18;
static int loss_kind, recompute;
static double lambda = 0.5, tau = 10, margin = 0.1;
static int save_type;

static const ma_opt options[] = {
    {"base", 'b', MA_OPT_TEXT, &base, "DIR", "the model to train, a folder in diffusers' layout", 0, 0},
    {"from-scratch", 0, MA_OPT_FLAG, &from_scratch, NULL, "take only DIR's configuration; weights are drawn", 0, 0},
    {"layer", 0, MA_OPT_INT, &layer, "K", "align the tokens after block K, counted from one (default 18)", 1, 1024},
    {"loss", 0, MA_OPT_CHOICE, &loss_kind, ALIGN_LOSSES, "alignment loss (default soft-trd)", 0, 0},
    {"lambda", 0, MA_OPT_REAL, &lambda, "X", "weight of the alignment loss (default 0.5)", 0, 1e6},
    {"tau", 0, MA_OPT_REAL, &tau, "X", "frames over which soft-trd fades (default 10)", 1e-3, 1e6},
    {"margin", 0, MA_OPT_REAL, &margin, "X", "margin of trd, trd-spatial, trd-temporal (default 0.1)", 0, 2},
    {"target", 0, MA_OPT_TEXT, &target, "MEMBER", "the teacher: KEY.MEMBER.npy (default motion)", 0, 0},
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
                     .opts = options};

enum { LATENT, TEXT, TARGET }; /* a sample's members */

typedef struct work {
    ma_device *dev;
    ma_ctx *ctx;
    ma_pipeline pipe;
    ma_weights *weights;
    ma_params *params, *projector_params;
    cogvideox *net;
    projector *project; /* NULL: --loss none */
    int64_t shape[5];   /* of a sample's latent as the network has it: 1, F, h, w, C */
} work;

/* ---- the loss of a batch ---- */

/* x0 of one sample: drawn from the stored posterior (2C,T,h,w), scaled, channels last. */
static void draw_latent(const work *w, const ma_item *item, int64_t step, const float *stored, float *noise,
                        float *x0) {
    const int64_t channels = w->shape[4], plane = w->shape[1] * w->shape[2] * w->shape[3];
    ma_rng rng = ma_rng_make((uint64_t)cli.common.seed, item->key, (uint64_t)step, MA_RNG_POSTERIOR);
    ma_rng_fill_normal(&rng, noise, (size_t)(channels * plane));
    for (int64_t c = 0; c < channels; c++)
        for (int64_t k = 0; k < plane; k++) {
            float mean = stored[c * plane + k], log_variance = stored[(channels + c) * plane + k];
            float deviation = expf(0.5f * fminf(fmaxf(log_variance, -30), 20));
            x0[k * channels + c] = (float)w->pipe.scaling * (mean + deviation * noise[k * channels + c]);
        }
}

/* Noisy latent and velocity of one sample; the time. x holds x0 at first. */
static double diffuse(const work *w, const ma_item *item, int64_t step, float *noise, float *x, float *v) {
    const uint64_t seed = (uint64_t)cli.common.seed;
    const size_t count = (size_t)(w->shape[1] * w->shape[2] * w->shape[3] * w->shape[4]);
    ma_rng rng = ma_rng_make(seed, item->key, (uint64_t)step, MA_RNG_TIME);
    const int64_t t = ma_rng_below(&rng, w->pipe.schedule.steps);
    const float a = (float)sqrt(w->pipe.schedule.alpha_bar[t]), b = (float)sqrt(1 - w->pipe.schedule.alpha_bar[t]);
    rng = ma_rng_make(seed, item->key, (uint64_t)step, MA_RNG_NOISE);
    ma_rng_fill_normal(&rng, noise, count);
    for (size_t k = 0; k < count; k++) {
        float x0 = x[k];
        x[k] = a * x0 + b * noise[k];
        v[k] = a * noise[k] - b * x0;
    }
    return (double)t;
}

static ma_tensor *batch_loss(void *self, const ma_item *items, int n, int64_t step, ma_parts *parts) {
    work *w = self;
    ma_ctx *c = w->ctx;
    const size_t count = (size_t)(w->shape[1] * w->shape[2] * w->shape[3] * w->shape[4]);
    float *x = ma_alloc((size_t)n * count, sizeof *x), *v = ma_alloc((size_t)n * count, sizeof *v);
    float *noise = ma_alloc(2 * count, sizeof *noise);
    double *t = calloc((size_t)n, sizeof *t);
    ma_tensor *loss = NULL;
    if (!x || !v || !noise || !t) {
        ma_fail(ma_ctx_err(c), MA_MEMORY, "batch: out of memory");
        goto done;
    }
    for (int b = 0; b < n; b++) {
        float *xb = x + (size_t)b * count;
        float *stored = ma_array_f32(&items[b].a[LATENT], ma_ctx_err(c));
        if (!stored) goto done;
        draw_latent(w, &items[b], step, stored, noise, xb);
        ma_release(stored);
        t[b] = diffuse(w, &items[b], step, noise, xb, v + (size_t)b * count);
    }
    int64_t shape[5];
    memcpy(shape, w->shape, sizeof shape);
    shape[0] = n;
    const cogvideox_run run = {.hidden_after = w->project ? (int)layer : 0, .checkpoint = recompute == 0};
    ma_tensor *hidden = NULL, *noisy = ma_input(c, x, 5, shape), *velocity = ma_input_f32(c, v, 5, shape);
    ma_tensor *got = cogvideox_forward(c, w->net, noisy, t, ma_items_tensor(c, items, n, TEXT, false), &run, &hidden);
    loss = ma_mse(c, got, velocity);
    parts->name[parts->n] = "diffusion";
    parts->value[parts->n++] = loss;
    if (w->project) {
        ma_tensor *z = projector_forward(c, w->project, hidden);
        ma_tensor *align =
            align_loss_of(c, (align_loss)loss_kind, z, ma_items_tensor(c, items, n, TARGET, false), tau, margin);
        loss = ma_add(c, loss, ma_affine(c, align, lambda, 0));
        parts->name[parts->n] = "alignment";
        parts->value[parts->n++] = align;
    }
done:
    ma_release(x);
    ma_release(v);
    ma_release(noise);
    free(t);
    return loss;
}

/* ---- what is written ---- */

static int save_weights(void *self, const char *folder, ma_err *e) {
    static const ma_type types[] = {MA_F32, MA_F16, MA_BF16};
    work *w = self;
    char *dir = ma_format("%s/transformer", folder), *config = ma_format("%s/transformer/config.json", folder),
         *file = ma_format("%s/transformer/diffusion_pytorch_model.safetensors", folder),
         *zeta = ma_format("%s/projector.safetensors", folder);
    int rc = dir && config && file && zeta ? ma_make_dirs(dir, e) : ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc) rc = cogvideox_config_write(config, &w->pipe.transformer, e);
    if (!rc) rc = ma_params_save(w->params, file, types[save_type], (size_t)10 << 30, NULL, e);
    if (!rc && w->project) rc = ma_params_save(w->projector_params, zeta, MA_F32, 0, NULL, e);
    free(dir);
    free(config);
    free(file);
    free(zeta);
    return rc;
}

/* OUT/transformer, and with the pixel codec the configs that make OUT a folder to start from. */
static int write_result(work *w, const char *out, ma_err *e) {
    char *beside = ma_format("%s/result.tmp", out), *from = ma_format("%s/result.tmp/transformer", out),
         *to = ma_format("%s/transformer", out), *zeta = ma_format("%s/projector.safetensors", out),
         *zeta_from = ma_format("%s/result.tmp/projector.safetensors", out);
    int rc = beside && from && to && zeta && zeta_from ? ma_folder_remove(beside, e)
                                                       : ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc) rc = save_weights(w, beside, e);
    if (!rc && w->pipe.pixel) rc = ma_pipeline_write(out, &w->pipe, e);
    if (!rc) rc = ma_folder_replace(from, to, e);
    if (!rc && w->project && rename(zeta_from, zeta)) rc = ma_fail(e, MA_IO, "%s: cannot be replaced", zeta);
    if (!rc) rc = ma_folder_remove(beside, e);
    free(beside);
    free(from);
    free(to);
    free(zeta);
    free(zeta_from);
    return rc;
}

/* ---- start ---- */

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
    w->params = ma_params_new(w->ctx, w->weights, true, (uint64_t)cli.common.seed);
    w->net = w->params ? cogvideox_make(w->params, t) : NULL;
    if (w->net) ma_params_end(w->params, NULL);
    if (ma_ctx_failed(w->ctx, e) || !w->net) return -1;
    if (loss_kind == ALIGN_NONE) return 0;
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

/* The plan: one forward and backward pass on the counting device. */
static int dry_run(work *w, ma_dataset *data, ma_err *e) {
    ma_item *items = calloc((size_t)train.batch, sizeof *items);
    ma_parts parts = {0};
    int64_t n = 0;
    while (items && n < train.batch && ma_dataset_next(data, &items[n], e) > 0) n++;
    ma_tensor *loss = n ? batch_loss(w, items, (int)n, 1, &parts) : NULL;
    int rc = !items ? ma_fail(e, MA_MEMORY, "out of memory") : loss ? ma_backward(w->ctx, loss, 1) : -1;
    char text[160];
    if (!rc) {
        printf("parameters %lld, projector %lld\nlatent %lldx%lldx%lldx%lld, batch %lld\n%s\n",
               (long long)ma_params_count(w->params),
               (long long)(w->projector_params ? ma_params_count(w->projector_params) : 0), (long long)w->shape[1],
               (long long)w->shape[2], (long long)w->shape[3], (long long)w->shape[4], (long long)n,
               ma_memory_text(text, w->ctx));
        rc = ma_flush_stdout(e);
    }
    for (int64_t k = 0; k < n; k++) ma_item_free(&items[k]);
    free(items);
    return ma_ctx_failed(w->ctx, e) ? -1 : rc;
}

static int run(work *w, ma_tally *tally, ma_err *e) {
    const char *out = cli.common.out;
    char member[64];
    if (snprintf(member, sizeof member, "%s.npy", target) >= (int)sizeof member)
        return ma_fail(e, MA_USAGE, "--target: name too long");
    if (ma_pipeline_read(base, &w->pipe, e)) return -1;
    if (!from_scratch && !(w->weights = ma_pipeline_weights(base, NULL, e))) return -1;
    char *log = ma_format("%s/log.jsonl", out);
    ma_dataset_opts o = {.cli = &cli,
                         .member = {"latent.npy", "text.npy", member},
                         .optional = {false, true},
                         .members = loss_kind == ALIGN_NONE ? 2 : 3,
                         .window = train.window,
                         .seed = (uint64_t)cli.common.seed,
                         .epochs = train.epochs,
                         .tally = tally};
    ma_dataset *data = log ? ma_dataset_open(&o, e) : NULL;
    int rc = data ? make_nets(w, data, e) : -1;
    if (!train.log) train.log = log;
    if (!rc && cli.common.dry_run) {
        rc = dry_run(w, data, e);
    } else if (!rc) {
        ma_train t = {.cli = &cli,
                      .o = &train,
                      .ctx = w->ctx,
                      .data = data,
                      .tally = tally,
                      .params = {w->params, w->projector_params},
                      .nparams = w->project ? 2 : 1,
                      .state = out,
                      .self = w,
                      .loss = batch_loss,
                      .save = save_weights};
        int64_t steps;
        rc = ma_train_run(&t, &steps, e);
        if (!rc) rc = write_result(w, out, e);
        if (!rc) ma_say(&cli, 1, "%s: %lld steps", out, (long long)steps);
    }
    ma_dataset_close(data);
    free(log);
    return rc;
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    ma_catch_signals();
    ma_err e = {0};
    work w = {0};
    ma_tally tally = {.cli = &cli};
    if (!base || !cli.common.out)
        ma_fail(&e, MA_USAGE, "%s is needed", base ? "-o OUT" : "-b DIR");
    else if (!ma_context_open(&cli, &w.dev, &w.ctx, &e))
        run(&w, &tally, &e);
    const int status = ma_exit_status(&cli, &e, -1);
    rc = ma_tally_end(&tally);
    projector_free(w.project);
    cogvideox_free(w.net);
    ma_params_free(w.projector_params);
    ma_params_free(w.params);
    ma_weights_close(w.weights);
    ma_ctx_free(w.ctx);
    ma_device_close(w.dev);
    ma_cli_free(&cli);
    return status ? status : rc;
}
