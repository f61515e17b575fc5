/* ma-subspace: the motion subspace of an encoder's features, learned by predicting flow (METHOD, stage 1).
 *   train   KEY.videomae.npy + KEY.flow.npy (and with --mask KEY.flow-valid.npy) → motion.safetensors
 *   apply   adds KEY.motion.npy (and with --flow the decoded KEY.motion-flow.npy)
 *   eval    end-point error of the decoded flow, beside predicting no motion and the mean motion
 */
#include "../common/context.h"
#include "../common/file.h"
#include "../common/models/motion.h"
#include "../common/train.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TRAIN, APPLY, EVAL };
enum { MOST = 64 }; /* samples that apply takes at once */
static const char *const verbs[] = {"train", "apply", "eval", NULL};

static ma_train_opts train = {MA_TRAIN_DEFAULTS, .lr = 1e-4, .decay = 0.01, .beta2 = 0.999, .warmup = 100};
static const char *model, *features = "videomae";
static int64_t hidden = 256, width = 64;
static bool want_flow, masked, bare;

static const ma_opt options[] = {
    {"model", 'm', MA_OPT_TEXT, &model, "FILE", "apply, eval: motion.safetensors", 0, 0},
    {"features", 0, MA_OPT_TEXT, &features, "MEMBER", "the encoder's member, KEY.MEMBER.npy (default videomae)", 0, 0},
    {"flow", 0, MA_OPT_FLAG, &want_flow, NULL, "apply: also write the decoded flow, KEY.motion-flow.npy", 0, 0},
    {"mask", 0, MA_OPT_FLAG, &masked, NULL, "train: learn from the pixels alone that KEY.flow-valid.npy marks", 0, 0},
    {"hidden", 0, MA_OPT_INT, &hidden, "N", "train: width between the two layers of the projection (default 256)", 1,
     65536},
    {"width", 0, MA_OPT_INT, &width, "N", "train: dimensions of the motion subspace (default 64)", 1, 65536},
    {"no-projection", 0, MA_OPT_FLAG, &bare, NULL, "train: the decoder alone, on the features as they are", 0, 0},
    MA_TRAIN_OPTIONS(train),
    {0},
};
static ma_cli cli = {.name = "ma-subspace",
                     .does = "learns and applies the motion subspace of an encoder's features",
                     .args = "[INPUT]…",
                     .opts = options,
                     .verbs = verbs,
                     .presets = true};

/* What all three verbs work with. */
typedef struct work {
    ma_team *team; /* of train; NULL: alone */
    ma_device *dev;
    ma_ctx *ctx;
    ma_weights *weights;
    ma_params *params;
    motion *net;
    motion_size size;
    char member[64]; /* "videomae.npy" */
} work;

static int close_work(work *w, ma_err *e) {
    ma_team_close(w->team, e);
    const int status = ma_exit_status(&cli, e, -1);
    motion_free(w->net);
    ma_params_free(w->params);
    ma_weights_close(w->weights);
    ma_ctx_free(w->ctx);
    ma_device_close(w->dev);
    return status;
}

/* The network, drawn at random or from the file. */
static int make_net(work *w, bool drawn, ma_err *e) {
    if (!drawn) {
        if (!model) return ma_fail(e, MA_USAGE, "%s needs -m FILE", verbs[cli.verb]);
        w->weights = ma_weights_open(model, e);
        if (!w->weights) return -1;
        const char *grid = ma_weights_meta(w->weights, "flow");
        long long n[3];
        if (!grid || sscanf(grid, "%lldx%lldx%lld", &n[0], &n[1], &n[2]) != 3 || n[0] < 1 || n[1] < 1 || n[2] < 1)
            return ma_fail(e, MA_CORRUPT, "%s: its metadata lack the flow's grid", model);
        for (int k = 0; k < 3; k++) w->size.flow[k] = n[k];
    }
    w->params = ma_params_new(w->ctx, w->weights, drawn, (uint64_t)cli.common.seed);
    w->net = w->params ? motion_make(w->params, &w->size) : NULL;
    if (w->net) ma_params_end(w->params, NULL);
    if (w->net) w->size = motion_sizes(w->net);
    if (w->net && cli.verb == APPLY && w->size.bare)
        return ma_fail(e, MA_USAGE, "%s: a decoder without a projection: nothing to apply", model);
    return ma_ctx_failed(w->ctx, e);
}

static ma_tensor *project_items(const work *w, const ma_item *items, int n) {
    return motion_project(w->ctx, w->net, ma_items_tensor(w->ctx, items, n, 0, false));
}

/* Features, flow and where it is known, of the input; members: the first so many of them. */
static ma_dataset *open_data(const work *w, int members, int64_t window, int64_t epochs, ma_tally *tally, ma_err *e) {
    const ma_dataset_opts o = {.cli = &cli,
                               .member = {w->member, "flow.npy", "flow-valid.npy"},
                               .members = members,
                               .window = window,
                               .seed = (uint64_t)cli.common.seed,
                               .epochs = epochs,
                               .tally = tally,
                               .device = cli.verb == TRAIN ? w->dev : NULL};
    return ma_dataset_open(&o, e);
}

/* ---- train ---- */

/* 1 where the flow is known, else 0, for u and v alike (n,T,h,w,2). *factor: by which a mean over all is one over these. */
static ma_tensor *known_pixels(ma_ctx *c, const ma_item *items, int n, double *factor) {
    const ma_array *first = &items[0].a[2]; // (T,h,w)
    const size_t count = ma_array_count(first);
    float *m = ma_alloc((size_t)n * count, 2 * sizeof *m);
    if (!m) {
        ma_fail(ma_ctx_err(c), MA_MEMORY, "batch: out of memory");
        return NULL;
    }
    double known = 0;
    for (size_t k = 0; k < (size_t)n * count; k++) {
        m[2 * k] = m[2 * k + 1] = ((const bool *)items[k / count].a[2].data)[k % count];
        known += m[2 * k];
    }
    *factor = known > 0 ? (double)n * (double)count / known : 0;
    ma_tensor *t = ma_input(c, m, MA_SHAPE(n, first->n[0], first->n[1], first->n[2], 2));
    ma_release(m);
    return t;
}

/* L1, over all pixels or those that are known: what is not is 0 on both sides. */
static ma_tensor *flow_loss(void *self, const ma_item *items, int n, int64_t step, ma_parts *parts) {
    const work *w = self;
    (void)step, (void)parts;
    ma_tensor *got = motion_decode(w->ctx, w->net, project_items(w, items, n)); // (n,T,h,w,2)
    ma_tensor *want = ma_items_tensor(w->ctx, items, n, 1, true);
    if (!masked) return ma_l1(w->ctx, got, want);
    double factor = 0;
    ma_tensor *known = known_pixels(w->ctx, items, n, &factor);
    return ma_affine(w->ctx, ma_l1(w->ctx, ma_mul_(w->ctx, got, known), ma_mul_(w->ctx, want, known)), factor, 0);
}

static int save_model(work *w, const char *path, ma_err *e) {
    char grid[64];
    const int64_t *n = w->size.flow;
    snprintf(grid, sizeof grid, "%lldx%lldx%lld", (long long)n[0], (long long)n[1], (long long)n[2]);
    const char *meta[] = {"flow", grid, "features", features, "made_by", "ma-subspace " MA_VERSION, NULL};
    return ma_params_save(w->params, path, MA_F32, 0, meta, e);
}

/* Sizes from the first sample: features (T,H,W,D), flow (T-1,h,w,2), where it is known (T-1,h,w). */
static int fit_sizes(work *w, ma_dataset *data, ma_err *e) {
    const ma_array *s = ma_dataset_shape(data, 0, e), *o = s ? ma_dataset_shape(data, 1, e) : NULL;
    char x[160], y[160];
    if (!o) return -1;
    if (s->nd != 4 || o->nd != 4 || o->n[0] != s->n[0] - 1 || o->n[3] != 2)
        return ma_fail(
            e, MA_SHAPE, "flow of %s does not go with features of %s: %lld time steps have %lld gaps (--stride 2?)",
            ma_shape_text(x, o->nd, o->n), ma_shape_text(y, s->nd, s->n), (long long)s->n[0], (long long)(s->n[0] - 1));
    const ma_array *m = masked ? ma_dataset_shape(data, 2, e) : NULL;
    if (masked && !m) return -1;
    if (m && (m->type != MA_BOOL || m->nd != 3 || memcmp(m->n, o->n, 3 * sizeof *m->n)))
        return ma_fail(e, MA_SHAPE, "flow-valid.npy of %s, %s, does not go with flow of %s",
                       ma_shape_text(x, m->nd, m->n), ma_type_name(m->type), ma_shape_text(y, o->nd, o->n));
    w->size = (motion_size){s->n[3], hidden, width, {o->n[0], o->n[1], o->n[2]}, bare};
    return 0;
}

static ma_train training(work *w, ma_dataset *data, ma_tally *tally, const char *state) {
    return (ma_train){.cli = &cli,
                      .o = &train,
                      .ctx = w->ctx,
                      .data = data,
                      .tally = tally,
                      .team = w->team,
                      .params = {w->params},
                      .nparams = 1,
                      .state = state,
                      .self = w,
                      .loss = flow_loss};
}

static int run_train(work *w, ma_err *e) {
    const char *dot = cli.common.out ? strrchr(cli.common.out, '.') : NULL;
    if (!dot || strcmp(dot, ".safetensors")) return ma_fail(e, MA_USAGE, "train needs -o FILE.safetensors");
    char *state = ma_format("%s.state", cli.common.out), *log = ma_format("%s.jsonl", cli.common.out);
    ma_tally tally = {.cli = &cli};
    ma_dataset *data = state && log ? open_data(w, 2 + masked, train.window, train.epochs, &tally, e) : NULL;
    int rc = data ? fit_sizes(w, data, e) : -1;
    if (!train.log) train.log = log;
    if (!rc) rc = make_net(w, true, e);
    if (!rc) {
        const ma_train run = training(w, data, &tally, state);
        int64_t steps;
        rc = ma_train_run(&run, &steps, e);
        if (!rc && !cli.rank) rc = save_model(w, cli.common.out, e);
        if (!rc) ma_say(&cli, 1, "%s: %lld steps", cli.common.out, (long long)steps);
    }
    ma_dataset_close(data);
    free(state);
    free(log);
    return rc ? -1 : ma_tally_end(&tally);
}

/* ---- apply ---- */

/* The features of a sample, checked. */
static int load_features(const work *w, const ma_sample *s, ma_array *a, ma_err *why) {
    char shape[160];
    if (ma_sample_array(s, w->member, a, why)) return -1;
    const bool fits =
        a->nd == 4 && a->n[3] == w->size.in && a->n[0] > want_flow && (a->type == MA_F16 || a->type == MA_F32);
    if (fits) return 0;
    ma_fail(why, MA_SHAPE, "%s: %s is %s; floats (T,H,W,%lld) are needed%s", s->key, w->member,
            ma_shape_text(shape, a->nd, a->n), (long long)w->size.in,
            want_flow ? ", and for a flow two time steps" : "");
    ma_array_free(a);
    return -1;
}

/* Member ext of every good sample from tensor t, (B, …). */
static int store(work *w, ma_tensor *t, ma_sample **s, const int *good, int n, const char *ext, ma_err *why,
                 ma_err *e) {
    size_t count = t ? (size_t)(ma_count(t) / t->n[0]) : 0;
    float *host = count ? ma_alloc((size_t)n * count, sizeof *host) : NULL;
    if (!host || ma_get(w->ctx, t, host)) {
        ma_release(host);
        return ma_ctx_failed(w->ctx, e) ? -1 : ma_fail(e, MA_MEMORY, "out of memory");
    }
    for (int k = 0; k < n; k++)
        ma_sample_put_f16(s[good[k]], ext, host + (size_t)k * count, t->nd - 1, t->n + 1, &why[good[k]]);
    ma_release(host);
    return 0;
}

static cJSON *entry_of(const work *w, const ma_sample *s) {
    const ma_member *m = ma_sample_get(s, w->member);
    char sha[65] = "";
    cJSON *e = cJSON_CreateObject(), *o = cJSON_AddObjectToObject(e, "options");
    cJSON_AddStringToObject(e, "version", MA_VERSION);
    cJSON_AddStringToObject(o, "features", features);
    cJSON_AddBoolToObject(o, "flow", want_flow);
    cJSON_AddStringToObject(e, "weights", ma_weights_sha(w->weights));
    if (m) ma_sha_bytes(m->data, m->size, sha);
    cJSON_AddStringToObject(e, "input", sha);
    return e;
}

static bool have_all(ma_sample *s, const cJSON *entry) {
    return ma_entry_same(&cli, s, cli.name, "motion.npy", entry) &&
           (!want_flow || ma_entry_same(&cli, s, cli.name, "motion-flow.npy", entry));
}

/* Samples s[at[0]], s[at[1]], … whose features, items, have one shape. */
static int apply_batch(work *w, ma_sample **s, const ma_item *items, const int *at, int n, ma_err *why, ma_err *e) {
    ma_tensor *m = project_items(w, items, n);
    int rc = store(w, m, s, at, n, "motion.npy", why, e);
    if (!rc && want_flow) rc = store(w, motion_decode(w->ctx, w->net, m), s, at, n, "motion-flow.npy", why, e);
    for (int k = 0; k < n && !rc; k++) rc = ma_entry_put(s[at[k]], cli.name, entry_of(w, s[at[k]]), e);
    ma_reset(w->ctx);
    return rc;
}

static int apply(void *self, ma_sample **s, void **pre, int n, ma_err *why, ma_err *e) {
    work *w = self;
    ma_item item[MOST] = {0}, batch[MOST];
    int at[MOST], rc = 0;
    (void)pre;
    for (int k = 0; k < n; k++) {
        cJSON *entry = entry_of(w, s[k]);
        if (!have_all(s[k], entry)) load_features(w, s[k], &item[k].a[0], &why[k]);
        cJSON_Delete(entry);
    }
    for (int k = 0; k < n && !rc; k++) {
        const ma_array first = item[k].a[0];
        int many = 0;
        for (int j = k; j < n && first.data; j++) {
            if (!item[j].a[0].data || memcmp(item[j].a[0].n, first.n, 4 * sizeof *first.n)) continue;
            batch[many] = item[j];
            at[many++] = j;
            item[j] = (ma_item){0};
        }
        if (many) rc = apply_batch(w, s, batch, at, many, why, e);
        for (int j = 0; j < many; j++) ma_item_free(&batch[j]);
    }
    for (int k = 0; k < n; k++) ma_item_free(&item[k]);
    return rc;
}

static int run_apply(work *w, ma_err *e) {
    if (make_net(w, false, e)) return -1;
    ma_stage stage = {.cli = &cli, .self = w, .work = apply, .batch = train.batch > MOST ? MOST : (int)train.batch};
    return ma_stage_run(&stage, STDOUT_FILENO);
}

/* ---- eval ---- */

/* Sums over all pixels of all samples. */
typedef struct flow_error {
    double predicted, none, mean; /* Σ end-point error */
    double u, v;                  /* Σ of the true flow; after the first pass its mean */
    double pixels;
} flow_error;

static void add_errors(const float *got, const float *want, size_t pixels, const flow_error *at, flow_error *sum) {
    for (size_t k = 0; k < pixels; k++) {
        double u = want[2 * k], v = want[2 * k + 1];
        sum->predicted += hypot(got[2 * k] - u, got[2 * k + 1] - v);
        sum->none += hypot(u, v);
        sum->mean += hypot(at->u - u, at->v - v);
        sum->pixels++;
    }
}

static int eval_item(work *w, const ma_item *item, const flow_error *at, flow_error *sum, ma_err *e) {
    size_t count = ma_array_count(&item->a[1]);
    ma_tensor *flow = motion_decode(w->ctx, w->net, project_items(w, item, 1));
    float *got = ma_alloc(count, sizeof *got), *want = ma_array_f32(&item->a[1], e);
    int rc = got && want && !ma_get(w->ctx, flow, got) ? 0 : -1;
    if (!rc) add_errors(got, want, count / 2, at, sum);
    ma_release(got);
    ma_release(want);
    ma_reset(w->ctx);
    return rc ? (ma_ctx_failed(w->ctx, e) ? -1 : ma_fail(e, MA_MEMORY, "out of memory")) : 0;
}

static int add_flow(const ma_item *item, flow_error *sum, ma_err *e) {
    float *want = ma_array_f32(&item->a[1], e);
    size_t pixels = ma_array_count(&item->a[1]) / 2;
    if (!want) return -1;
    for (size_t k = 0; k < pixels; k++) {
        sum->u += want[2 * k];
        sum->v += want[2 * k + 1];
    }
    sum->pixels += (double)pixels;
    ma_release(want);
    return 0;
}

/* The flow must be on the grid that the network predicts. */
static int check_grid(const work *w, const ma_array *flow, ma_err *e) {
    char x[160], y[160];
    const int64_t want[4] = {w->size.flow[0], w->size.flow[1], w->size.flow[2], 2};
    if (flow->nd == 4 && !memcmp(flow->n, want, sizeof want)) return 0;
    return ma_fail(e, MA_SHAPE, "flow.npy is %s; %s predicts %s", ma_shape_text(x, flow->nd, flow->n), model,
                   ma_shape_text(y, 4, want));
}

/* One pass over the input. at NULL: the flow is summed, otherwise the errors. */
static int pass(work *w, ma_tally *tally, const flow_error *at, flow_error *sum, int64_t *samples, ma_err *e) {
    ma_dataset *data = open_data(w, 2, 1, 1, tally, e);
    const ma_array *flow = data ? ma_dataset_shape(data, 1, e) : NULL;
    ma_item item;
    int rc = flow && !check_grid(w, flow, e) ? 1 : -1;
    *samples = 0;
    while (rc > 0 && !ma_stopped && (rc = ma_dataset_next(data, &item, e)) > 0) {
        if (at ? eval_item(w, &item, at, sum, e) : add_flow(&item, sum, e)) rc = -1;
        ma_item_free(&item);
        ++*samples;
    }
    ma_dataset_close(data);
    return rc < 0 ? -1 : ma_stopped ? ma_fail(e, MA_IO, "stopped") : 0;
}

static int run_eval(work *w, ma_err *e) {
    ma_tally tally = {.cli = &cli};
    flow_error first = {0}, sum = {0};
    int64_t samples;
    if (ma_dataset_once(&cli)) return ma_fail(e, MA_USAGE, "eval reads its input twice: name the shards");
    if (make_net(w, false, e) || pass(w, &tally, NULL, &first, &samples, e)) return -1;
    first.u /= first.pixels;
    first.v /= first.pixels;
    if (pass(w, NULL, &first, &sum, &samples, e)) return -1;
    printf("samples %lld\nepe %.4f\nepe_no_motion %.4f\nepe_mean_motion %.4f\n", (long long)samples,
           sum.predicted / sum.pixels, sum.none / sum.pixels, sum.mean / sum.pixels);
    if (ma_flush_stdout(e)) return -1;
    return ma_tally_end(&tally);
}

/* ---- plan ---- */

/* One batch forward; how many samples it had. */
static int forward_once(work *w, ma_dataset *data, bool flow, int64_t *n, ma_err *e) {
    ma_item *items = calloc((size_t)train.batch, sizeof *items);
    int rc = items ? 1 : ma_fail(e, MA_MEMORY, "out of memory");
    while (rc > 0 && *n < train.batch && (rc = ma_dataset_next(data, &items[*n], e)) > 0) ++*n;
    if (!rc && !*n) rc = ma_fail(e, MA_MISSING, "no sample");
    ma_recording(w->ctx, false);
    if (rc >= 0) {
        ma_tensor *m = project_items(w, items, (int)*n);
        if (flow) motion_decode(w->ctx, w->net, m);
    }
    for (int64_t k = 0; k < *n; k++) ma_item_free(&items[k]);
    free(items);
    return rc < 0 ? -1 : ma_ctx_failed(w->ctx, e);
}

/* --dry-run: a batch of the input on the counting device. */
static int run_plan(work *w, ma_err *e) {
    const bool learns = cli.verb == TRAIN, flow = cli.verb != APPLY || want_flow;
    const int members = learns ? 2 + masked : flow ? 2 : 1;
    ma_dataset *data = open_data(w, members, train.batch, 1, NULL, e);
    const ma_array *first = data ? ma_dataset_shape(data, 0, e) : NULL;
    char shape[160], memory[160];
    int64_t n = 0;
    int rc = first ? 0 : -1;
    if (first) ma_shape_text(shape, first->nd, first->n);
    if (!rc && learns) rc = fit_sizes(w, data, e);
    if (!rc) rc = make_net(w, learns, e);
    if (!rc && learns) {
        const ma_train plan = training(w, data, NULL, NULL);
        rc = ma_train_plan(&plan, &n, e);
    } else if (!rc) {
        rc = forward_once(w, data, flow, &n, e);
    }
    if (!rc && !cli.rank) {
        printf("parameters %lld\nfeatures %lldx%s -> motion of %lld dimensions\nmemory: %s\n",
               (long long)ma_params_count(w->params), (long long)n, shape,
               (long long)(w->size.bare ? w->size.in : w->size.out), ma_memory_text(memory, w->ctx));
        rc = ma_flush_stdout(e);
    }
    ma_dataset_close(data);
    return rc;
}

/* The device, and the ranks that train together. */
static int open_work(work *w, ma_err *e) {
    char *state = cli.verb == TRAIN && cli.common.out ? ma_format("%s.state", cli.common.out) : NULL;
    int rc = state ? ma_team_open(&w->team, &cli, state, e) : 0;
    free(state);
    return rc || ma_context_open(&cli, &w->dev, &w->ctx, e) ? -1 : ma_team_join(w->team, w->ctx, e);
}

int main(int argc, char **argv) {
    static int (*const run[])(work *, ma_err *) = {run_train, run_apply, run_eval};
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    ma_catch_signals();
    ma_err e = {0};
    work w = {0};
    rc = -1;
    if (snprintf(w.member, sizeof w.member, "%s.npy", features) >= (int)sizeof w.member)
        ma_fail(&e, MA_USAGE, "--features: name too long");
    else if (!open_work(&w, &e)) {
        ma_ctx_lever(w.ctx, cli.verb == TRAIN && train.state != MA_STATE_HOST
                               ? "lower --batch, or give --optimizer-state bf16 or host"
                               : "lower --batch");
        rc = cli.common.dry_run ? run_plan(&w, &e) : run[cli.verb](&w, &e);
    }
    int status = close_work(&w, &e);
    ma_cli_free(&cli);
    return status ? status : rc < 0 ? 1 : rc;
}
