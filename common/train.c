/* train: see train.h. One forward and backward pass is micro(); a step is `accumulate` of them and an optimiser step.
 */
#include "train.h"
#include "context.h"
#include "file.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- batches ---- */

static const size_t MOST_RAW = (size_t)64 << 20; /* bytes that wait for their cast: little beside a batch */

static int device_failed(ma_ctx *c, const char *what) {
    const ma_device *d = ma_ctx_device(c);
    return ma_fail(ma_ctx_err(c), MA_DEVICE, "%s: %s: %s", d->name, what, d->failure ? d->failure : "");
}

/* Member k of an item as it is. Where the device reads it itself, that is all there is to do. */
static int put_item(ma_ctx *c, ma_tensor *to, const ma_item *item, int k) {
    ma_device *d = ma_ctx_device(c);
    const ma_array *a = &item->a[k];
    if (!(item->far >> k & 1)) return ma_put_raw(c, to, a->data);
    return d->move(d, to->data, a->data, ma_bytes(to)) ? device_failed(c, "a copy") : 0;
}

/* By the host: of a type that the device may not cast. */
static int convert(ma_ctx *c, ma_tensor *to, const ma_array *a) {
    float *host = ma_array_f32(a, ma_ctx_err(c));
    const int rc = host ? ma_put(c, to, host) : -1;
    ma_release(host);
    return rc;
}

static int fill(ma_ctx *c, ma_tensor *to, const ma_item *items, int n, int k);

static int fill_rows(ma_ctx *c, ma_tensor *to, int from, int n, const ma_item *items, int k) {
    const ma_mark_t mark = ma_mark(c);
    ma_tensor *rows = ma_rows(c, to, from, n);
    if (!rows || fill(c, rows, items + from, n, k)) return -1;
    ma_rewind(c, mark);
    return 0;
}

/* Numbers of another type are copied as they are, and the device casts them all at once: it is the faster by far. */
static int fill_cast(ma_ctx *c, ma_tensor *to, ma_type from, const ma_item *items, int n, int k) {
    ma_device *d = ma_ctx_device(c);
    const ma_mark_t mark = ma_mark(c);
    ma_tensor *raw = ma_new(c, from, to->nd, to->n);
    if (!raw || fill(c, raw, items, n, k)) return -1;
    if (!d->plan && d->cast(d, to->data, to->type, raw->data, raw->type, ma_count(to)))
        return device_failed(c, "a cast");
    ma_rewind(c, mark);
    return 0;
}

/* Member k of n items, of one shape, as the rows of a tensor: those of one type together, half by half what is too much
 * at once. */
static int fill(ma_ctx *c, ma_tensor *to, const ma_item *items, int n, int k) {
    const ma_array *first = &items[0].a[k];
    bool cast = first->type != to->type && (first->type == MA_F16 || first->type == MA_F32);
    for (int b = 1; b < n && cast; b++) cast = items[b].a[k].type == first->type;
    if (cast && (n == 1 || (size_t)ma_count(to) <= MOST_RAW / ma_type_size(first->type)))
        return fill_cast(c, to, first->type, items, n, k);
    if (n > 1) return fill_rows(c, to, 0, n / 2, items, k) || fill_rows(c, to, n / 2, n - n / 2, items, k) ? -1 : 0;
    return first->type == to->type ? put_item(c, to, items, k) : convert(c, to, first);
}

static ma_tensor *items_as(ma_ctx *c, ma_type type, const ma_item *items, int n, int k) {
    const ma_array *first = &items[0].a[k];
    int64_t shape[MA_DIMS] = {n};
    if (!first->data) return NULL;
    if (first->nd >= MA_DIMS) {
        ma_fail(ma_ctx_err(c), MA_SHAPE, "%s: an array of %d dimensions", items[0].key, first->nd);
        return NULL;
    }
    memcpy(shape + 1, first->n, (size_t)first->nd * sizeof *shape);
    ma_tensor *t = ma_new(c, type, first->nd + 1, shape);
    return t && !fill(c, t, items, n, k) ? t : NULL;
}

ma_tensor *ma_items_tensor(ma_ctx *c, const ma_item *items, int n, int k, bool f32) {
    return items_as(c, f32 ? MA_F32 : ma_get_type(c), items, n, k);
}

ma_tensor *ma_items_raw(ma_ctx *c, const ma_item *items, int n, int k) {
    return items_as(c, items[0].a[k].type == MA_F16 ? MA_F16 : MA_F32, items, n, k);
}

/* ---- what the run was asked for ---- */

/* Options that may change between a run and its going on: they do not change what is learnt. */
static const char *const FREE[] = {"steps",     "epochs", "save-every",     "keep", "log",
                                   "on-nan",    "resume", "resume-anyway",  "base", "recompute",
                                   "save-type", "merge",  "shard-optimizer"};

static bool is_free(const char *name) {
    for (size_t k = 0; k < sizeof FREE / sizeof *FREE; k++)
        if (!strcmp(FREE[k], name)) return true;
    return false;
}

/* An option's value as it would be typed; NULL: not set, or of a kind that no training has. free() */
static char *value_of(const ma_opt *o) {
    const char *word = o->arg;
    switch (o->type) {
    case MA_OPT_FLAG: return ma_strdup(*(bool *)o->to ? "on" : "off");
    case MA_OPT_INT: return ma_format("%lld", (long long)*(int64_t *)o->to);
    case MA_OPT_REAL: return ma_format("%.12g", *(double *)o->to);
    case MA_OPT_TEXT: return *(const char **)o->to ? ma_strdup(*(const char **)o->to) : NULL;
    case MA_OPT_CHOICE:
        for (int k = *(int *)o->to; k; k--) word = strchr(word, '|') + 1;
        return ma_format("%.*s", (int)strcspn(word, "|"), word);
    default: return NULL;
    }
}

/* The inputs by their names without folders: how many, and a digest. */
static char *inputs_of(const ma_cli *cli) {
    char digest[65];
    ma_sha *sha = ma_sha_new();
    for (int k = 0; sha && k < cli->inputs.n; k++) {
        const char *slash = strrchr(cli->inputs.at[k], '/'), *name = slash ? slash + 1 : cli->inputs.at[k];
        ma_sha_add(sha, name, strlen(name) + 1);
    }
    if (sha) ma_sha_end(sha, digest);
    return sha ? ma_format("%d, names' digest %.12s", cli->inputs.n, digest) : NULL;
}

/* What the ranks, however many, make of --batch together. */
static char *batch_of(const ma_train *t) {
    return ma_format("%lld", (long long)t->o->batch * ma_team_count(t->team));
}

/* On the host it is what it is on the device. */
static char *optimiser_state_of(const ma_train *t) {
    return ma_strdup(t->o->state == MA_STATE_BF16 ? "bf16" : "f32");
}

static cJSON *options_of(const ma_train *t) {
    cJSON *json = cJSON_CreateObject();
    for (const ma_opt *o = t->cli->opts; o->name; o++) {
        char *value = is_free(o->name)                      ? NULL
                      : !strcmp(o->name, "batch")           ? batch_of(t)
                      : !strcmp(o->name, "optimizer-state") ? optimiser_state_of(t)
                                                            : value_of(o);
        if (value) cJSON_AddStringToObject(json, o->name, value);
        free(value);
    }
    char *more[] = {ma_format("%lld", (long long)t->cli->common.seed), inputs_of(t->cli),
                    t->o->constant ? NULL : ma_format("%lld", (long long)t->o->steps)};
    const char *const name[] = {"seed", "inputs", "steps"};
    for (int k = 0; k < 3; k++) {
        if (more[k]) cJSON_AddStringToObject(json, name[k], more[k]);
        free(more[k]);
    }
    cJSON_AddStringToObject(json, "dtype", ma_type_name(ma_get_type(t->ctx)));
    return json;
}

/* Options that both know must be the same, or the run would be neither the old one nor a new one. */
static int compare_options(const ma_train *t, const cJSON *now, const cJSON *was, ma_err *e) {
    const cJSON *o;
    cJSON_ArrayForEach(o, was) {
        const char *old = cJSON_GetStringValue(o);
        const char *new = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(now, o->string));
        if (!old || !new || !strcmp(old, new)) continue;
        if (!t->o->resume_anyway)
            return ma_fail(e, MA_USAGE, "--resume: %s was %s, is %s (--resume-anyway goes on all the same)", o->string,
                           old, new);
        ma_say(t->cli, 0, "%s was %s, is %s", o->string, old, new);
    }
    return 0;
}

/* ---- checkpoints ---- */

static char *params_file(const char *folder, int k) {
    return ma_format("%s/params-%d.safetensors", folder, k);
}

static int save_optim(ma_optim *optim, const char *folder, ma_err *e) {
    char *path = folder ? ma_format("%s/optimiser.safetensors", folder) : NULL;
    if (folder && !path) ma_fail(e, MA_MEMORY, "out of memory");
    int rc = ma_optim_save(optim, path, e);
    free(path);
    return rc || (folder && !path) ? -1 : 0;
}

static int fill_checkpoint(const ma_train *t, const char *folder, ma_err *e) {
    if (ma_make_dirs(folder, e) || (t->save && t->save(t->self, folder, e))) return -1;
    for (int k = 0; k < t->nparams; k++) {
        if (t->file[k]) continue;
        char *path = params_file(folder, k);
        int rc = path ? ma_params_save(t->params[k], path, MA_F32, 0, NULL, e) : -1;
        free(path);
        if (rc) return -1;
    }
    return 0;
}

/* All but the newest --keep of the checkpoints up to a step go. */
static int remove_old(const ma_train *t, int64_t step, ma_err *e) {
    int rc = 0;
    for (int64_t old = step + 1, kept = 0; !rc && (old = ma_state_newest(t->state, old)) >= 0; kept++) {
        if (kept < t->o->keep) continue;
        char *gone = ma_state_folder(t->state, old, e);
        rc = gone ? ma_folder_remove(gone, e) : -1;
        free(gone);
    }
    return rc;
}

static int save_checkpoint(const ma_train *t, ma_optim *optim, const ma_state *state, ma_err *e) {
    char *folder = ma_state_folder(t->state, state->step, e), *beside = folder ? ma_format("%s.tmp", folder) : NULL;
    int rc = beside ? ma_folder_remove(beside, e) : ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc) rc = fill_checkpoint(t, beside, e);
    if (save_optim(optim, rc ? NULL : beside, e)) rc = -1; /* ranks may be waiting for it */
    if (!rc) rc = ma_state_write(beside, state, e);
    if (!rc) rc = ma_folder_replace(beside, folder, e);
    if (rc && beside) ma_folder_remove(beside, NULL);
    if (!rc) rc = remove_old(t, state->step, e);
    free(folder);
    free(beside);
    return rc;
}

/* By all ranks, of which rank 0 writes. */
static int checkpoint(const ma_train *t, ma_optim *optim, const ma_state *state, ma_err *e) {
    if (ma_team_rank(t->team))
        ma_optim_save(optim, NULL, e);
    else
        save_checkpoint(t, optim, state, e);
    return ma_team_agree(t->team, e);
}

static int load_params(const ma_train *t, const char *folder, ma_err *e) {
    for (int k = 0; k < t->nparams; k++) {
        char *path = params_file(folder, k);
        if (path && t->file[k] && access(path, F_OK)) {
            free(path);
            path = ma_format("%s/%s", folder, t->file[k]);
        }
        ma_weights *w = path ? ma_weights_open(path, e) : NULL;
        int rc = w ? ma_params_load(t->params[k], w, e) : -1;
        ma_weights_close(w);
        free(path);
        if (rc) return -1;
    }
    return 0;
}

/* The newest checkpoint that is whole: its folder, and what it holds. Those that are not are told. */
static char *find_whole(const ma_train *t, ma_state *state, ma_err *e) {
    for (int64_t step = INT64_MAX; (step = ma_state_newest(t->state, step)) >= 0;) {
        ma_err why = {0};
        char *folder = ma_state_folder(t->state, step, e);
        if (!folder || !ma_state_read(folder, state, &why)) return folder;
        ma_say(t->cli, 0, "%s is not whole, and left out: %s", folder, why.text);
        free(folder);
    }
    ma_fail(e, MA_MISSING, "--resume: %s has no checkpoint%s", t->state,
            ma_state_newest(t->state, INT64_MAX) < 0 ? "" : " that is whole");
    return NULL;
}

/* FNV-1a over the keys of all that was drawn. */
static uint32_t add_key(uint32_t digest, const char *key) {
    for (; *key; key++) digest = (digest ^ (unsigned char)*key) * 0x01000193;
    return digest;
}

/* Draws again what the run had drawn. */
static int skip_drawn(const ma_train *t, const ma_state *was, ma_err *e) {
    uint32_t keys = 0;
    for (int64_t k = 0; k < was->draws; k++) {
        ma_item item;
        int rc = ma_dataset_next(t->data, &item, e);
        if (rc < 0) return -1;
        if (!rc) return ma_fail(e, MA_CUT, "--resume: the input ends before the sample at which the run was left");
        keys = add_key(keys, item.key);
        ma_item_free(&item);
    }
    if (keys == was->keys) return 0;
    if (!t->o->resume_anyway)
        return ma_fail(e, MA_CORRUPT, "--resume: the samples of the inputs are not those of before");
    ma_say(t->cli, 0, "the samples of the inputs are not those of before");
    return 0;
}

static int load_checkpoint(const ma_train *t, ma_optim *optim, ma_state *state, ma_err *e) {
    ma_state was;
    char *folder = find_whole(t, &was, e), *path = folder ? ma_format("%s/optimiser.safetensors", folder) : NULL;
    if (!folder) return -1;
    int rc = path ? compare_options(t, state->options, was.options, e) : -1;
    if (!rc) rc = load_params(t, folder, e);
    if (!rc) rc = ma_optim_load(optim, path, e);
    if (!rc) rc = skip_drawn(t, &was, e);
    if (!rc) ma_say(t->cli, 1, "resumed from %s", folder);
    ma_dataset_waited(t->data);
    state->step = was.step;
    state->draws = was.draws;
    state->keys = was.keys;
    cJSON_Delete(was.options);
    free(folder);
    free(path);
    return rc;
}

/* A run that begins anew would leave its checkpoints among another's, and --resume would take the newest of both. */
static int refuse_old(const ma_train *t, ma_err *e) {
    int64_t found = ma_state_newest(t->state, INT64_MAX);
    if (found < 0) return 0;
    return ma_fail(e, MA_DUPLICATE, "%s has step %lld of an earlier run: --resume, or remove the folder", t->state,
                   (long long)found);
}

size_t ma_train_bytes(const ma_train *t) {
    const size_t parts = t->o->shard ? (size_t)ma_team_count(t->team) : 1;
    const ma_memory m = ma_ctx_memory(t->ctx);
    size_t bytes = t->saved + (m.optimiser + m.host) * parts;
    for (int k = 0; k < t->nparams; k++)
        if (!t->file[k]) bytes += (size_t)ma_params_count(t->params[k]) * sizeof(float);
    return bytes;
}

/* Room for the checkpoints that stay and the one that is written beside them; those that are there will go. */
static int check_room(const ma_train *t, int64_t from, ma_err *e) {
    const ma_train_opts *o = t->o;
    const int64_t ahead = o->steps - from, more = o->save_every ? (ahead + o->save_every - 1) / o->save_every : ahead > 0;
    int64_t there = 0;
    for (int64_t step = INT64_MAX; (step = ma_state_newest(t->state, step)) >= 0;) there++;
    const int64_t most = o->keep + 1 - there;
    if (more < 1 || most < 1) return 0;
    return ma_state_room(t->state, (size_t)(more < most ? more : most) * ma_train_bytes(t), e);
}

/* ---- log ---- */

/* Opens the log for appending after step; what a lost run wrote beyond it is cut off. */
static FILE *open_log(const char *path, int64_t step, ma_err *e) {
    FILE *f = fopen(path, step ? "r+" : "w");
    if (!f && step && errno == ENOENT) f = fopen(path, "w");
    if (!f) {
        ma_fail(e, MA_IO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    char *line = NULL;
    size_t room = 0;
    off_t good = 0;
    long long n;
    while (step && getline(&line, &room, f) > 0 && sscanf(line, "{\"step\":%lld", &n) == 1 && n <= step)
        good = ftello(f);
    free(line);
    if (fseeko(f, good, SEEK_SET) || ftruncate(fileno(f), good)) ma_fail(e, MA_IO, "%s: %s", path, strerror(errno));
    return f;
}

/* ---- steps ---- */

typedef struct step_log {
    double loss, part[8], norm, lr;
    double wait, forward, backward, share, optimiser; /* share: gradients among ranks, as far as it is not hidden */
    const char *part_name[8];
    int parts;
    int64_t samples;
    uint32_t drawn; /* the digest of all that the run has drawn */
    bool skipped;   /* something was not finite: nothing was learnt */
    bool stop;      /* a rank was told to: the last step */
    bool halted;    /* it could not even do this one */
    bool asked;     /* a rank was asked for a checkpoint */
    char keys[320]; /* of the samples, for an error; the first of many */
} step_log;

/* Once their loss is known the device has read what it reads itself. Where the context failed before, it may be at it
 * still: it is waited for, by getting what comes after all that was queued. */
static void forget(ma_ctx *c, ma_item *items, int64_t n) {
    ma_device *d = ma_ctx_device(c);
    char byte;
    int64_t k = 0;
    while (k < n && !items[k].far) k++;
    if (k < n && ma_failed(c)) d->get(d, &byte, items[k].a[__builtin_ctz(items[k].far)].data, sizeof byte);
    for (k = 0; k < n; k++) ma_item_free(&items[k]);
}

/* Adds "a, b, c" of a batch. */
static void note_keys(step_log *log, const ma_item *items, int64_t n) {
    size_t used = strlen(log->keys);
    for (int64_t k = 0; k < n && used < sizeof log->keys - 64; k++)
        used += (size_t)snprintf(log->keys + used, sizeof log->keys - used, "%s%.40s", used ? ", " : "", items[k].key);
}

/* Names the part of a loss that is not finite. */
static int blame_part(const ma_train *t, const ma_parts *parts, int64_t step, double loss, const step_log *log,
                      ma_err *e) {
    for (int k = 0; k < parts->n; k++) {
        double value = ma_scalar(t->ctx, parts->value[k]);
        if (!isfinite(value))
            return ma_fail(e, MA_NOTFINITE, "step %lld: the loss's part %s is %g; samples %s", (long long)step,
                           parts->name[k], value, log->keys);
    }
    return ma_fail(e, MA_NOTFINITE, "step %lld: the loss is %g; samples %s", (long long)step,
                   loss, log->keys);
}

/* The next batch, read while the device works on the one before. */
typedef struct feed {
    ma_item *items;   /* (batch) */
    int64_t n, drawn; /* of this rank; of all */
    uint32_t keys;    /* a digest of what all drew */
    bool there;
    ma_err err;
} feed;

/* The ranks' slices of what is drawn follow each other. All look at every sample: it may be bad. */
static void fetch(const ma_train *t, feed *f) {
    const int64_t batch = t->o->batch, whole = batch * ma_team_count(t->team);
    ma_item item;
    f->n = f->drawn = 0;
    f->there = true;
    while (f->drawn < whole && ma_dataset_next(t->data, &item, &f->err) > 0) {
        f->keys = add_key(f->keys, item.key);
        if (f->drawn++ / batch == ma_team_rank(t->team))
            f->items[f->n++] = item;
        else
            ma_item_free(&item);
    }
}

/* What the ranks tell each other once a forward pass is done; the losses times samples, to be added up. */
typedef struct news {
    double loss, part[8];
    double error, halt; /* ranks with an error; without a batch, for they were told to stop */
    double stop, asked; /* ranks that got such a signal */
    double keys, keys2; /* the digest of what was drawn, in 20 bits, and its square: sums tell whether all are alike */
} news;

static volatile sig_atomic_t asked; /* for a checkpoint, by SIGUSR1 */

/* The loss of a batch; NULL: e says why. */
static ma_tensor *forward(const ma_train *t, const ma_item *items, int64_t n, int64_t step, news *own, step_log *log,
                          ma_err *e) {
    note_keys(log, items, n);
    ma_parts parts = {0};
    ma_tensor *loss = t->loss(t->self, items, (int)n, step, &parts);
    double value = ma_scalar(t->ctx, loss);
    own->loss = value * (double)n;
    log->parts = parts.n;
    for (int k = 0; k < parts.n; k++) {
        log->part_name[k] = parts.name[k];
        own->part[k] = ma_scalar(t->ctx, parts.value[k]) * (double)n;
    }
    if (!ma_ctx_failed(t->ctx, e) && !isfinite(value)) blame_part(t, &parts, step, value, log, e);
    return e->reason == MA_OK ? loss : NULL;
}

/* Adds all ranks' to the log. -1: one has an error, which e says, or must stop at once. */
static int share_news(const ma_train *t, const feed *f, news *own, step_log *log, ma_err *e) {
    const double ranks = ma_team_count(t->team);
    own->error = e->reason != MA_OK;
    own->keys = f->keys >> 12;
    own->keys2 = own->keys * own->keys;
    own->stop = ma_stopped;
    own->asked = asked;
    asked = 0;
    if (ma_team_sum(t->team, (double *)own, sizeof *own / sizeof(double), e)) return -1;
    log->stop |= own->stop > 0;
    log->asked |= own->asked > 0;
    log->loss += own->loss;
    for (int k = 0; k < log->parts; k++) log->part[k] += own->part[k];
    if (own->error > 0) return ma_team_agree(t->team, e);
    log->halted = own->halt > 0;
    if (log->halted) return ma_fail(e, MA_IO, "stopped");
    if (own->keys2 * ranks == own->keys * own->keys) return 0;
    return ma_fail(e, MA_CORRUPT, "the ranks do not read the same samples: are the shards the same everywhere?");
}

/* Samples that a step has when the data do not end in it. */
static double whole_step(const ma_train *t) {
    return (double)t->o->batch * (double)ma_team_count(t->team) * (double)t->o->accumulate;
}

/* One forward and backward pass over the next batch. last: of the step; more: another one will follow, in whatever
 * step. 1: done; 0: no more data; -1: error. */
static int micro(const ma_train *t, feed *f, int64_t step, bool last, bool more, step_log *log, ma_err *e) {
    news own = {0};
    ma_tensor *loss = NULL;
    if (!f->there) fetch(t, f);
    f->there = false;
    const double begun = ma_now();
    if (f->err.reason != MA_OK && ma_stopped)
        own.halt = 1;
    else if (f->err.reason != MA_OK)
        ma_fail(e, f->err.reason, "%s", f->err.text);
    else if (f->n)
        loss = forward(t, f->items, f->n, step, &own, log, e);
    const int64_t n = f->n, drawn = f->drawn;
    log->drawn = f->keys;
    int rc = share_news(t, f, &own, log, e);
    const double start = ma_now(), waited = ma_dataset_waited(t->data);
    log->forward += start - begun;
    if (!rc && last) ma_team_behind(t->team);
    if (!rc && loss) rc = ma_backward(t->ctx, loss, (double)n / whole_step(t));
    forget(t->ctx, f->items, n);
    if (!rc && drawn && more) fetch(t, f);
    if (!rc && loss) ma_scalar(t->ctx, loss); /* waits for the backward pass */
    const double fetched = ma_dataset_waited(t->data);
    ma_reset(t->ctx);
    log->wait += waited + fetched;
    log->backward += ma_now() - start - fetched;
    log->samples += drawn;
    return rc || ma_ctx_failed(t->ctx, e) ? -1 : drawn > 0;
}

/* What was skipped since the last time, a line each. */
static void write_skipped(const ma_train *t, FILE *f, int64_t step) {
    cJSON *one;
    while ((one = cJSON_DetachItemFromArray(t->tally->list, 0))) {
        char *text = cJSON_PrintUnformatted(one); /* {…} */
        if (text) fprintf(f, "{\"step\":%lld,%s\n", (long long)step, text + 1);
        free(text);
        cJSON_Delete(one);
    }
}

static int write_log(const ma_train *t, FILE *f, int64_t step, const step_log *l, ma_err *e) {
    write_skipped(t, f, step);
    if (l->skipped) return fflush(f) ? ma_fail(e, MA_IO, "log: %s", strerror(errno)) : 0;
    double total = l->wait + l->forward + l->backward + l->share + l->optimiser;
    fprintf(f, "{\"step\":%lld,\"loss\":%.9g", (long long)step, l->loss);
    for (int k = 0; k < l->parts; k++) fprintf(f, ",\"%s\":%.9g", l->part_name[k], l->part[k]);
    fprintf(f,
            ",\"grad_norm\":%.9g,\"lr\":%.9g,\"samples_per_s\":%.4g,\"wait_s\":%.3g,\"forward_s\":%.3g,"
            "\"backward_s\":%.3g,\"optimiser_s\":%.3g,\"peak_bytes\":%zu",
            l->norm, l->lr, (double)l->samples / total, l->wait, l->forward, l->backward, l->optimiser,
            ma_ctx_memory(t->ctx).in_all);
    if (t->team) fprintf(f, ",\"share_s\":%.3g", l->share);
    fputs("}\n", f);
    return fflush(f) ? ma_fail(e, MA_IO, "log: %s", strerror(errno)) : 0;
}

/* From sums over samples to means; the data may have ended within the step. */
static void mean_of(step_log *log) {
    log->loss /= (double)log->samples;
    for (int k = 0; k < log->parts; k++) log->part[k] /= (double)log->samples;
}

/* --on-nan skip: forgets the step, which is told and counted as a bad sample is. -1: the run ends after all. */
static int skip_step(const ma_train *t, step_log *log, ma_err *e) {
    if (e->reason != MA_NOTFINITE || !t->o->on_nan || ma_failed(t->ctx)) return -1;
    if (ma_tally_bad(t->tally, log->keys, e)) return -1;
    ma_err_clear(e);
    log->skipped = true;
    ma_zero_grads(t->ctx);
    return 1;
}

/* One optimiser step. 1: done; 0: no more data; -1: error. */
static int one_step(const ma_train *t, ma_optim *optim, feed *f, int64_t step, step_log *log, ma_err *e) {
    int rc = 1;
    for (int64_t k = 1; k <= t->o->accumulate && rc > 0; k++) {
        const bool last = k == t->o->accumulate;
        rc = micro(t, f, step, last, !last || step < t->o->steps, log, e);
    }
    if (rc < 0) return skip_step(t, log, e);
    if (!log->samples) return 0;
    mean_of(log);
    ma_optim_scale(optim, whole_step(t) / (double)log->samples);
    double start = ma_now();
    log->lr = ma_optim_lr(optim, step);
    ma_err why = {0};
    if (ma_optim_step(optim, &log->norm, &why)) {
        ma_fail(e, why.reason, "%s; samples %s", why.text, log->keys);
        return skip_step(t, log, e);
    }
    log->share = ma_team_waited(t->team);
    log->optimiser = ma_now() - start - log->share;
    return 1;
}

static void on_usr1(int sig) {
    (void)sig;
    asked = 1;
}

void ma_train_signals(void) {
    struct sigaction save_now = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &save_now, NULL);
}

/* Whether a checkpoint is due at the end of a step. */
static bool is_due(const ma_train *t, const step_log *log, int64_t step) {
    return log->asked || (t->o->save_every && step % t->o->save_every == 0);
}

static bool stopping(const ma_train *t, const step_log *log) {
    return t->team ? log->stop : ma_stopped;
}

/* At the end of a run that has, or has not, gone wrong. Where ranks do not know of each other's state, rank 0 writes
 * what it has, if it has all. */
static int last_checkpoint(const ma_train *t, ma_optim *optim, const ma_state *at, bool well, ma_err *e) {
    ma_err late = {0};
    if (well || e->reason == MA_NOTFINITE) return checkpoint(t, optim, at, well ? e : &late);
    return t->o->shard || ma_team_rank(t->team) ? 0 : save_checkpoint(t, optim, at, &late);
}

static int loop(const ma_train *t, ma_optim *optim, FILE *log, feed *f, ma_state *at, ma_err *e) {
    ma_progress p;
    const int64_t first = at->step;
    int64_t saved = first;
    step_log l = {0};
    int rc = 1;
    ma_progress_start(&p, t->cli, "steps", t->o->steps - first);
    while (at->step < t->o->steps && !stopping(t, &l)) {
        l = (step_log){0};
        if ((rc = one_step(t, optim, f, at->step + 1, &l, e)) <= 0) break;
        at->step++;
        at->draws += l.samples;
        at->keys = l.drawn;
        if (log && write_log(t, log, at->step, &l, e)) rc = -1;
        p.done = at->step - first;
        p.bad = t->tally->bad;
        if (!l.skipped) snprintf(p.note, sizeof p.note, "loss %.4g", l.loss);
        ma_progress_step(&p);
        if (rc > 0 && is_due(t, &l, at->step)) {
            if (checkpoint(t, optim, at, e)) rc = -1;
            saved = at->step;
        }
        if (rc < 0) break;
    }
    ma_progress_end(&p);
    if (rc < 0 && (t->team ? l.halted : ma_stopped)) { /* within a step, which is as if it had not begun */
        ma_err_clear(e);
        rc = 0;
    }
    ma_err gone = {0}; /* it may have shown as an error of the device first */
    if (rc < 0 && ma_team_whole(t->team, &gone) && strcmp(gone.text, e->text)) ma_say(t->cli, 0, "%s", gone.text);
    if (at->step != saved && last_checkpoint(t, optim, at, rc >= 0, e)) rc = -1;
    if (rc >= 0 && stopping(t, &l))
        rc = at->step ? ma_fail(e, MA_IO, "stopped after step %lld; --resume goes on from there", (long long)at->step)
                      : ma_fail(e, MA_IO, "stopped before the first step");
    return rc < 0 ? -1 : 0;
}

static ma_optim *new_optim(const ma_train *t) {
    const ma_train_opts *o = t->o;
    ma_optim_opts adam = {.lr = o->lr,
                          .beta1 = o->beta1,
                          .beta2 = o->beta2,
                          .eps = 1e-8,
                          .decay = o->decay,
                          .clip = o->clip,
                          .warmup = o->warmup,
                          .total = o->constant ? 0 : o->steps,
                          .team = t->team,
                          .shard = o->shard,
                          .state = (ma_optim_state)o->state};
    return ma_optim_new(t->ctx, t->params, t->nparams, &adam);
}

/* A sample of zeros in the shapes of the first. */
static int blank(const ma_train *t, ma_item *item, ma_err *e) {
    for (int k = 0; k < MA_ITEM_ARRAYS; k++) {
        const ma_array *like = ma_dataset_shape(t->data, k, NULL);
        if (like && ma_array_new(&item->a[k], like->type, like->nd, like->n, e)) return -1;
    }
    item->key = ma_strdup("plan");
    return item->key ? 0 : ma_fail(e, MA_MEMORY, "training: out of memory");
}

int ma_train_plan(const ma_train *t, int64_t *samples, ma_err *e) {
    step_log l = {0};
    news own = {0};
    ma_optim *optim = new_optim(t);
    ma_item *items = calloc((size_t)t->o->batch, sizeof *items);
    int rc = ma_ctx_failed(t->ctx, e);
    if (!rc && (!optim || !items)) rc = ma_fail(e, MA_MEMORY, "training: out of memory");
    for (int64_t k = 0; !rc && k < t->o->batch; k++) rc = blank(t, &items[k], e);
    ma_tensor *loss = rc ? NULL : forward(t, items, t->o->batch, 1, &own, &l, e);
    if (!rc) rc = loss ? ma_backward(t->ctx, loss, 1) : -1;
    ma_reset(t->ctx);
    if (ma_ctx_failed(t->ctx, e)) rc = -1;
    if (items) forget(t->ctx, items, t->o->batch);
    *samples = t->o->batch;
    free(items);
    ma_optim_free(optim);
    return rc;
}

/* All ranks must do the same from the same place. */
static int check_ranks(const ma_train *t, const ma_state *at, ma_err *e) {
    if (!t->team) return 0;
    if (ma_dataset_once(t->cli))
        return ma_fail(e, MA_USAGE, "several ranks each read all of the input: name shards, not a pipe");
    char *options = cJSON_PrintUnformatted(at->options),
         *text = options ? ma_format("%s from %lld", options, (long long)at->step) : NULL;
    int rc = text ? ma_team_alike(t->team, "options, or another checkpoint,", text, e)
                  : ma_fail(e, MA_MEMORY, "training: out of memory");
    cJSON_free(options);
    free(text);
    return rc;
}

int ma_train_run(const ma_train *t, int64_t *steps, ma_err *e) {
    const ma_train_opts *o = t->o;
    const bool writes = !ma_team_rank(t->team);
    ma_state at = {.options = options_of(t)};
    ma_train_signals();
    ma_optim *optim = new_optim(t);
    feed f = {.items = calloc((size_t)o->batch, sizeof *f.items)};
    int rc = ma_ctx_failed(t->ctx, e);
    if (!rc && (!optim || !f.items)) rc = ma_fail(e, MA_MEMORY, "training: out of memory");
    if (!rc && writes) rc = ma_make_dirs(t->state, e);
    if (!rc && writes) rc = ma_state_sweep(t->state, e);
    if (!rc) rc = o->resume || o->resume_anyway ? load_checkpoint(t, optim, &at, e) : refuse_old(t, e);
    if (!rc && writes) rc = check_room(t, at.step, e);
    if (!rc) rc = check_ranks(t, &at, e);
    f.keys = at.keys;
    ma_zero_grads(t->ctx); /* as after a step: a run that is resumed here goes on as it would have */
    FILE *log = rc || !writes ? NULL : open_log(o->log, at.step, e);
    if (!rc) rc = e->reason == MA_OK ? loop(t, optim, log, &f, &at, e) : -1;
    char memory[160];
    if (!rc) ma_say(t->cli, 2, "memory: %s", ma_memory_text(memory, t->ctx));
    if (log) fclose(log);
    *steps = at.step;
    cJSON_Delete(at.options);
    if (f.there) forget(t->ctx, f.items, f.n);
    free(f.items);
    ma_optim_free(optim);
    return rc;
}
