/* ma-subspace: the motion subspace of an encoder's features, learned by predicting flow (METHOD, stage 1).
 *   train   KEY.videomae.npy + KEY.flow.npy → motion.safetensors
 *   apply   adds KEY.motion.npy (and with --flow the decoded KEY.motion-flow.npy)
 *   eval    end-point error of the decoded flow, beside predicting no motion and the mean motion
 */
#include "../common/clip.h"
#include "../common/models/motion.h"
#include "../common/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TRAIN, APPLY, EVAL };
static const char *const verbs[] = {"train", "apply", "eval", NULL};

static ma_train_opts train = {MA_TRAIN_DEFAULTS, .lr = 1e-4, .decay = 0.01, .beta2 = 0.999, .warmup = 100};
static const char *model, *features = "videomae";
static int64_t hidden = 256, width = 64;
static bool want_flow;

static const ma_opt options[] = {
    {"model", 'm', MA_OPT_TEXT, &model, "FILE", "apply, eval: motion.safetensors", 0, 0},
    {"features", 0, MA_OPT_TEXT, &features, "MEMBER", "the encoder's member, KEY.MEMBER.npy (default videomae)", 0, 0},
    {"flow", 0, MA_OPT_FLAG, &want_flow, NULL, "apply: also write the decoded flow, KEY.motion-flow.npy", 0, 0},
    {"hidden", 0, MA_OPT_INT, &hidden, "N", "train: width between the two layers of the projection (default 256)", 1, 65536},
    {"width", 0, MA_OPT_INT, &width, "N", "train: dimensions of the motion subspace (default 64)", 1, 65536},
    MA_TRAIN_OPTIONS(train),
    {0},
};
static ma_cli cli = {.name = "ma-subspace",
                     .does = "learns and applies the motion subspace of an encoder's features",
                     .args = "[INPUT]…",
                     .opts = options,
                     .verbs = verbs};

/* What all three verbs work with. */
typedef struct work {
    ma_device *dev;
    ma_ctx *ctx;
    ma_weights *weights;
    ma_params *params;
    motion *net;
    motion_size size;
    char member[64];   /* "videomae.npy" */
} work;

static int close_work(work *w, const ma_err *e) {
    if (e->reason != MA_OK) ma_say(&cli, 0, "%s", e->text);
    motion_free(w->net);
    ma_params_free(w->params);
    ma_weights_close(w->weights);
    ma_ctx_free(w->ctx);
    ma_device_close(w->dev);
    return e->reason == MA_USAGE ? 2 : e->reason != MA_OK;
}

static int context_error(const work *w, ma_err *e) {
    return ma_failed(w->ctx) ? ma_fail(e, ma_ctx_err(w->ctx)->reason, "%s", ma_ctx_err(w->ctx)->text) : 0;
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
    return context_error(w, e);
}

/* n items' array k, one after another, as fp32 (ma_release). */
static float *stack_items(const ma_item *items, int n, int k) {
    size_t count = ma_array_count(&items[0].a[k]);
    float *all = ma_alloc((size_t)n * count, sizeof *all);
    for (int b = 0; all && b < n; b++) ma_to_f32(all + (size_t)b * count, items[b].a[k].data, items[b].a[k].type, count);
    return all;
}

static ma_tensor *put_items(ma_ctx *c, const ma_item *items, int n, int k, bool f32) {
    const ma_array *a = &items[0].a[k];
    int64_t shape[MA_DIMS] = {n};
    memcpy(shape + 1, a->n, (size_t)a->nd * sizeof *shape);
    float *all = stack_items(items, n, k);
    ma_tensor *t = !all ? NULL : f32 ? ma_input_f32(c, all, a->nd + 1, shape) : ma_input(c, all, a->nd + 1, shape);
    ma_release(all);
    return t;
}

/* ---- train ---- */

static ma_tensor *flow_loss(void *self, const ma_item *items, int n, int64_t step, ma_parts *parts) {
    const work *w = self;
    (void)step, (void)parts;
    ma_tensor *s = put_items(w->ctx, items, n, 0, false), *o = put_items(w->ctx, items, n, 1, true);
    return ma_l1(w->ctx, motion_decode(w->ctx, w->net, motion_project(w->ctx, w->net, s)), o);
}

static int save_model(work *w, const char *path, ma_err *e) {
    char grid[64];
    const int64_t *n = w->size.flow;
    snprintf(grid, sizeof grid, "%lldx%lldx%lld", (long long)n[0], (long long)n[1], (long long)n[2]);
    const char *meta[] = {"flow", grid, "features", features, "made_by", "ma-subspace " MA_VERSION, NULL};
    return ma_params_save(w->params, path, MA_F32, 0, meta, e);
}

/* Sizes from the first sample: features (T,H,W,D), flow (T-1,h,w,2). */
static int fit_sizes(work *w, ma_dataset *data, ma_err *e) {
    const ma_array *s = ma_dataset_shape(data, 0, e), *o = s ? ma_dataset_shape(data, 1, e) : NULL;
    char x[160], y[160];
    if (!o) return -1;
    if (s->nd != 4 || o->nd != 4 || o->n[0] != s->n[0] - 1 || o->n[3] != 2)
        return ma_fail(e, MA_SHAPE, "flow of %s does not go with features of %s: %lld time steps have %lld gaps (--stride 2?)",
                       ma_shape_text(x, o->nd, o->n), ma_shape_text(y, s->nd, s->n), (long long)s->n[0],
                       (long long)(s->n[0] - 1));
    w->size = (motion_size){s->n[3], hidden, width, {o->n[0], o->n[1], o->n[2]}};
    return 0;
}

static int run_train(work *w, ma_err *e) {
    if (!cli.common.out) return ma_fail(e, MA_USAGE, "train needs -o FILE");
    char *state = ma_format("%s.state", cli.common.out), *log = ma_format("%s.jsonl", cli.common.out);
    ma_tally tally = {.cli = &cli};
    ma_dataset_opts o = {.cli = &cli,
                         .member = {w->member, "flow.npy"},
                         .members = 2,
                         .window = train.window,
                         .seed = (uint64_t)cli.common.seed,
                         .epochs = cli.inputs.n ? train.epochs : 1,
                         .tally = &tally};
    ma_dataset *data = state && log ? ma_dataset_open(&o, e) : NULL;
    int rc = data ? fit_sizes(w, data, e) : -1;
    if (!train.log) train.log = log;
    if (!rc) rc = make_net(w, true, e);
    if (!rc && cli.common.dry_run) {
        ma_say(&cli, 0, "train: %lld parameters, features %lldx…, flow %lldx%lldx%lld", (long long)ma_params_count(w->params),
               (long long)w->size.in, (long long)w->size.flow[0], (long long)w->size.flow[1], (long long)w->size.flow[2]);
    } else if (!rc) {
        ma_train run = {.cli = &cli, .o = &train, .ctx = w->ctx, .data = data, .tally = &tally, .params = {w->params},
                        .nparams = 1, .state = state, .self = w, .loss = flow_loss};
        int64_t steps;
        rc = ma_train_run(&run, &steps, e);
        if (!rc) rc = save_model(w, cli.common.out, e);
        if (!rc) ma_say(&cli, 1, "%s: %lld steps", cli.common.out, (long long)steps);
    }
    ma_dataset_close(data);
    free(state);
    free(log);
    return rc ? -1 : ma_tally_end(&tally);
}

/* ---- apply ---- */

/* Features of n samples as one batch. A sample that does not fit is marked in why and left out. */
static ma_tensor *load_features(work *w, ma_sample **s, int n, ma_err *why, int *good, int *ngood) {
    ma_item *items = calloc((size_t)n, sizeof *items);
    *ngood = 0;
    for (int k = 0; items && k < n; k++) {
        ma_item *it = &items[*ngood];
        if (ma_sample_array(s[k], w->member, &it->a[0], &why[k])) continue;
        const ma_array *a = &it->a[0], *first = &items[0].a[0];
        char shape[160];
        if (a->nd != 4 || a->n[3] != w->size.in || (*ngood && memcmp(a->n, first->n, 4 * sizeof *a->n))) {
            ma_fail(&why[k], MA_SHAPE, "%s is %s; %lld channels are needed, and one shape in a batch", w->member,
                    ma_shape_text(shape, a->nd, a->n), (long long)w->size.in);
            ma_item_free(it);
            continue;
        }
        good[(*ngood)++] = k;
    }
    ma_tensor *t = items && *ngood ? put_items(w->ctx, items, *ngood, 0, false) : NULL;
    for (int k = 0; items && k < *ngood; k++) ma_item_free(&items[k]);
    free(items);
    return t;
}

/* Member ext of every good sample from tensor t, (B, …). */
static int store(work *w, ma_tensor *t, ma_sample **s, const int *good, int n, const char *ext, ma_err *why, ma_err *e) {
    size_t count = t ? (size_t)(ma_count(t) / t->n[0]) : 0;
    float *host = count ? ma_alloc((size_t)n * count, sizeof *host) : NULL;
    if (!host || ma_get(w->ctx, t, host)) {
        ma_release(host);
        return context_error(w, e) ? -1 : ma_fail(e, MA_MEMORY, "out of memory");
    }
    for (int k = 0; k < n; k++) ma_sample_put_f16(s[good[k]], ext, host + (size_t)k * count, t->nd - 1, t->n + 1, &why[good[k]]);
    ma_release(host);
    return 0;
}

static cJSON *entry_of(work *w) {
    cJSON *e = cJSON_CreateObject(), *o = cJSON_AddObjectToObject(e, "options");
    cJSON_AddStringToObject(e, "version", MA_VERSION);
    cJSON_AddStringToObject(o, "features", features);
    cJSON_AddBoolToObject(o, "flow", want_flow);
    cJSON_AddStringToObject(e, "weights", ma_weights_sha(w->weights));
    return e;
}

static int apply(void *self, ma_sample **s, int n, ma_err *why, ma_err *e) {
    work *w = self;
    int good[64], ngood;
    ma_tensor *x = load_features(w, s, n, why, good, &ngood);
    int rc = 0;
    if (ngood) {
        ma_tensor *m = motion_project(w->ctx, w->net, x);
        rc = store(w, m, s, good, ngood, "motion.npy", why, e);
        if (!rc && want_flow) rc = store(w, motion_decode(w->ctx, w->net, m), s, good, ngood, "motion-flow.npy", why, e);
        for (int k = 0; k < ngood && !rc; k++) rc = ma_entry_put(s[good[k]], "ma-subspace", entry_of(w), e);
    }
    ma_reset(w->ctx);
    return rc;
}

static int run_apply(work *w, ma_err *e) {
    if (make_net(w, false, e)) return -1;
    ma_stage stage = {.cli = &cli, .self = w, .work = apply, .batch = train.batch > 64 ? 64 : (int)train.batch};
    return ma_stage_run(&stage, STDOUT_FILENO);
}

/* ---- eval ---- */

/* Sums over all pixels of all samples. */
typedef struct flow_error {
    double predicted, none, mean;  /* Σ end-point error */
    double u, v;                   /* Σ of the true flow; after the first pass its mean */
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
    ma_tensor *x = put_items(w->ctx, item, 1, 0, false);
    ma_tensor *flow = motion_decode(w->ctx, w->net, motion_project(w->ctx, w->net, x));
    float *got = ma_alloc(count, sizeof *got), *want = stack_items(item, 1, 1);
    int rc = got && want && !ma_get(w->ctx, flow, got) ? 0 : -1;
    if (!rc) add_errors(got, want, count / 2, at, sum);
    ma_release(got);
    ma_release(want);
    ma_reset(w->ctx);
    return rc ? (context_error(w, e) ? -1 : ma_fail(e, MA_MEMORY, "out of memory")) : 0;
}

static void add_flow(const ma_item *item, flow_error *sum) {
    float *want = stack_items(item, 1, 1);
    size_t pixels = ma_array_count(&item->a[1]) / 2;
    for (size_t k = 0; want && k < pixels; k++) {
        sum->u += want[2 * k];
        sum->v += want[2 * k + 1];
    }
    sum->pixels += want ? (double)pixels : 0;
    ma_release(want);
}

/* One pass over the input; with a network errors are summed, without one the flow. */
static int pass(work *w, ma_tally *tally, const flow_error *at, flow_error *sum, int64_t *samples, ma_err *e) {
    ma_dataset_opts o = {.cli = &cli, .member = {w->member, "flow.npy"}, .members = 2, .window = 1, .epochs = 1, .tally = tally};
    ma_dataset *data = ma_dataset_open(&o, e);
    ma_item item;
    int rc = data && ma_dataset_shape(data, 0, e) ? 0 : -1;
    const ma_array *flow = rc ? NULL : ma_dataset_shape(data, 1, e);
    if (!flow || flow->nd != 4 || flow->n[3] != 2)
        rc = ma_fail(e, MA_SHAPE, "flow.npy is not (T,H,W,2)");
    else
        memcpy(w->size.flow, flow->n, sizeof w->size.flow);
    if (!rc && w->net == NULL && at) rc = make_net(w, false, e);
    *samples = 0;
    while (!rc && !ma_stopped && (rc = ma_dataset_next(data, &item, e)) > 0) {
        rc = at ? eval_item(w, &item, at, sum, e) : (add_flow(&item, sum), 0);
        ma_item_free(&item);
        ++*samples;
    }
    ma_dataset_close(data);
    return rc;
}

static int run_eval(work *w, ma_err *e) {
    ma_tally tally = {.cli = &cli}, once = {.cli = &cli};
    flow_error first = {0}, sum = {0};
    int64_t samples;
    if (!cli.inputs.n) return ma_fail(e, MA_USAGE, "eval reads its input twice: name the shards");
    if (pass(w, &once, NULL, &first, &samples, e)) return -1;
    first.u /= first.pixels;
    first.v /= first.pixels;
    if (pass(w, &tally, &first, &sum, &samples, e)) return -1;
    printf("samples %lld\nepe %.4f\nepe_no_motion %.4f\nepe_mean_motion %.4f\n", (long long)samples,
           sum.predicted / sum.pixels, sum.none / sum.pixels, sum.mean / sum.pixels);
    return ma_tally_end(&tally);
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
    else if (!ma_context_open(&cli, &w.dev, &w.ctx, &e))
        rc = run[cli.verb](&w, &e);
    int status = close_work(&w, &e);
    ma_cli_free(&cli);
    return status ? status : rc;
}
