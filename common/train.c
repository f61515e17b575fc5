/* train: see train.h. One forward and backward pass is micro(); a step is `accumulate` of them and an optimiser step.
 */
#include "train.h"
#include "file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- batches ---- */

ma_tensor *ma_items_tensor(ma_ctx *c, const ma_item *items, int n, int k, bool f32) {
    const ma_array *first = &items[0].a[k];
    if (!first->data) return NULL;
    const size_t count = ma_array_count(first);
    int64_t shape[MA_DIMS] = {n};
    memcpy(shape + 1, first->n, (size_t)first->nd * sizeof *shape);
    float *all = ma_alloc((size_t)n * count, sizeof *all);
    if (!all) {
        ma_fail(ma_ctx_err(c), MA_MEMORY, "batch: out of memory");
        return NULL;
    }
    for (int b = 0; b < n; b++) ma_to_f32(all + (size_t)b * count, items[b].a[k].data, items[b].a[k].type, count);
    ma_tensor *t = (f32 ? ma_input_f32 : ma_input)(c, all, first->nd + 1, shape);
    ma_release(all);
    return t;
}

/* ---- folders ---- */

static int remove_one(const char *path, const struct stat *s, int kind, struct FTW *where) {
    (void)s, (void)kind, (void)where;
    return remove(path);
}

int ma_folder_remove(const char *path, ma_err *e) {
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) && errno != ENOENT)
        return ma_fail(e, MA_IO, "%s: %s", path, strerror(errno));
    return 0;
}

/* Makes a folder's names, and its files' bytes, durable. */
static int sync_one(const char *path, const struct stat *s, int kind, struct FTW *where) {
    (void)s, (void)where;
    int fd = open(path, O_RDONLY | (kind == FTW_DP ? O_DIRECTORY : 0));
    int rc = fd < 0 ? -1 : fsync(fd);
    if (fd >= 0) close(fd);
    return rc;
}

int ma_folder_replace(const char *from, const char *to, ma_err *e) {
    char *old = ma_format("%s.old", to);
    int rc = old ? ma_folder_remove(old, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", to);
    if (!rc && nftw(from, sync_one, 16, FTW_DEPTH | FTW_PHYS)) rc = ma_fail(e, MA_IO, "%s: %s", from, strerror(errno));
    if (!rc && rename(to, old) && errno != ENOENT) rc = ma_fail(e, MA_IO, "%s: %s", to, strerror(errno));
    if (!rc && rename(from, to)) rc = ma_fail(e, MA_IO, "%s: %s", to, strerror(errno));
    if (!rc) rc = ma_folder_remove(old, e);
    free(old);
    return rc;
}

/* ---- checkpoints ---- */

/* The newest folder step-N in state (N), or -1. */
static int64_t newest(const char *state, int64_t below) {
    int64_t best = -1;
    DIR *dir = opendir(state);
    for (struct dirent *d; dir && (d = readdir(dir));) {
        char *end;
        if (strncmp(d->d_name, "step-", 5)) continue;
        long long n = strtoll(d->d_name + 5, &end, 10);
        if (!*end && end > d->d_name + 5 && n > best && n < below) best = n;
    }
    if (dir) closedir(dir);
    return best;
}

static char *step_folder(const ma_train *t, int64_t step) {
    return ma_format("%s/step-%06lld", t->state, (long long)step);
}

static char *params_file(const char *folder, int k) {
    return ma_format("%s/params-%d.safetensors", folder, k);
}

static int write_state(const char *folder, int64_t step, int64_t draws, ma_err *e) {
    char *path = ma_format("%s/state.json", folder);
    char *text = ma_format("{\"version\": \"" MA_VERSION "\", \"step\": %lld, \"draws\": %lld}\n", (long long)step,
                           (long long)draws);
    int rc = path && text ? ma_write_file(path, text, strlen(text), e) : ma_fail(e, MA_MEMORY, "out of memory");
    free(path);
    free(text);
    return rc;
}

static int fill_checkpoint(const ma_train *t, ma_optim *optim, const char *folder, int64_t step, int64_t draws,
                           ma_err *e) {
    if (ma_make_dirs(folder, e)) return -1;
    for (int k = 0; k < t->nparams; k++) {
        char *path = params_file(folder, k);
        int rc = path ? ma_params_save(t->params[k], path, MA_F32, 0, NULL, e) : -1;
        free(path);
        if (rc) return -1;
    }
    char *path = ma_format("%s/optimiser.safetensors", folder);
    int rc = path ? ma_optim_save(optim, path, e) : -1;
    free(path);
    if (rc || (t->save && t->save(t->self, folder, e))) return -1;
    return write_state(folder, step, draws, e);
}

static int save_checkpoint(const ma_train *t, ma_optim *optim, int64_t step, int64_t draws, ma_err *e) {
    char *folder = step_folder(t, step), *beside = folder ? ma_format("%s.tmp", folder) : NULL;
    int rc = beside ? ma_folder_remove(beside, e) : ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc) rc = fill_checkpoint(t, optim, beside, step, draws, e);
    if (!rc) rc = ma_folder_replace(beside, folder, e);
    if (rc && beside) ma_folder_remove(beside, NULL);
    int64_t old = step + 1;
    for (int64_t kept = 0; !rc && (old = newest(t->state, old)) >= 0; kept++) {
        if (kept < t->o->keep) continue;
        char *gone = step_folder(t, old);
        rc = gone ? ma_folder_remove(gone, e) : -1;
        free(gone);
    }
    free(folder);
    free(beside);
    return rc;
}

static int read_state(const char *folder, int64_t *step, int64_t *draws, ma_err *e) {
    char *path = ma_format("%s/state.json", folder);
    ma_buf text = {0};
    cJSON *json = NULL;
    int rc = path ? ma_read_file(path, 65536, &text, e) : -1;
    if (!rc && !(json = ma_json_parse(text.data, text.size, path, e))) rc = -1;
    const cJSON *s = cJSON_GetObjectItemCaseSensitive(json, "step"),
                *d = cJSON_GetObjectItemCaseSensitive(json, "draws");
    if (!rc && (!cJSON_IsNumber(s) || !cJSON_IsNumber(d) || s->valuedouble < 0 || d->valuedouble < 0))
        rc = ma_fail(e, MA_CORRUPT, "%s: lacks step or draws", path);
    if (!rc) {
        *step = (int64_t)s->valuedouble;
        *draws = (int64_t)d->valuedouble;
    }
    cJSON_Delete(json);
    ma_buf_free(&text);
    free(path);
    return rc;
}

static int load_params(const ma_train *t, const char *folder, ma_err *e) {
    for (int k = 0; k < t->nparams; k++) {
        char *path = params_file(folder, k);
        ma_weights *w = path ? ma_weights_open(path, e) : NULL;
        int rc = w ? ma_params_load(t->params[k], w, e) : -1;
        ma_weights_close(w);
        free(path);
        if (rc) return -1;
    }
    return 0;
}

static int load_checkpoint(const ma_train *t, ma_optim *optim, int64_t *step, int64_t *draws, ma_err *e) {
    int64_t found = newest(t->state, INT64_MAX);
    if (found < 0) return ma_fail(e, MA_MISSING, "--resume: %s has no checkpoint", t->state);
    char *folder = step_folder(t, found), *path = folder ? ma_format("%s/optimiser.safetensors", folder) : NULL;
    int rc = path ? read_state(folder, step, draws, e) : -1;
    if (!rc) rc = load_params(t, folder, e);
    if (!rc) rc = ma_optim_load(optim, path, e);
    if (!rc) rc = ma_dataset_skip(t->data, *draws, e);
    if (!rc) ma_say(t->cli, 1, "resumed from %s", folder);
    ma_dataset_waited(t->data);
    free(folder);
    free(path);
    return rc;
}

/* A run that begins anew would leave its checkpoints among another's, and --resume would take the newest of both. */
static int refuse_old(const ma_train *t, ma_err *e) {
    int64_t found = newest(t->state, INT64_MAX);
    if (found < 0) return 0;
    return ma_fail(e, MA_DUPLICATE, "%s has step %lld of an earlier run: --resume, or remove the folder", t->state,
                   (long long)found);
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
    double wait, forward, backward, optimiser;
    const char *part_name[8];
    int parts;
    int64_t samples;
    char keys[320]; /* of the samples, for an error; the first of many */
} step_log;

static void forget(ma_item *items, int64_t n) {
    for (int64_t k = 0; k < n; k++) ma_item_free(&items[k]);
}

/* Adds "a, b, c" of a batch. */
static void note_keys(step_log *log, const ma_item *items, int64_t n) {
    size_t used = strlen(log->keys);
    for (int64_t k = 0; k < n && used < sizeof log->keys - 64; k++)
        used += (size_t)snprintf(log->keys + used, sizeof log->keys - used, "%s%.40s", used ? ", " : "", items[k].key);
}

/* One forward and backward pass. 1: done; 0: no more data; -1: error. */
static int micro(const ma_train *t, ma_item *items, int64_t step, step_log *log, ma_err *e) {
    const int64_t batch = t->o->batch, parts_of = t->o->accumulate;
    int64_t n = 0;
    int rc = 1;
    while (n < batch && (rc = ma_dataset_next(t->data, &items[n], e)) > 0) n++;
    if (rc < 0 || !n) {
        forget(items, n);
        return rc < 0 ? -1 : 0;
    }
    double start = ma_now();
    note_keys(log, items, n);
    ma_parts parts = {0};
    ma_tensor *loss = t->loss(t->self, items, (int)n, step, &parts);
    double value = ma_scalar(t->ctx, loss), middle;
    log->loss += value / (double)parts_of;
    log->parts = parts.n;
    for (int k = 0; k < parts.n; k++) {
        log->part_name[k] = parts.name[k];
        log->part[k] += ma_scalar(t->ctx, parts.value[k]) / (double)parts_of;
    }
    log->forward += (middle = ma_now()) - start;
    if (!ma_failed(t->ctx) && !isfinite(value))
        ma_fail(e, MA_NOTFINITE, "step %lld: the loss is not finite; samples %s", (long long)step, log->keys);
    if (e->reason == MA_OK) ma_backward(t->ctx, loss, 1 / (double)parts_of);
    ma_reset(t->ctx);
    log->backward += ma_now() - middle;
    log->samples += n;
    forget(items, n);
    if (ma_ctx_failed(t->ctx, e)) return -1;
    return e->reason == MA_OK ? 1 : -1;
}

static int write_log(const ma_train *t, FILE *f, int64_t step, const step_log *l, ma_err *e) {
    ma_memory m = ma_ctx_memory(t->ctx);
    double total = l->wait + l->forward + l->backward + l->optimiser;
    fprintf(f, "{\"step\":%lld,\"loss\":%.9g", (long long)step, l->loss);
    for (int k = 0; k < l->parts; k++) fprintf(f, ",\"%s\":%.9g", l->part_name[k], l->part[k]);
    fprintf(f,
            ",\"grad_norm\":%.9g,\"lr\":%.9g,\"samples_per_s\":%.4g,\"wait_s\":%.3g,\"forward_s\":%.3g,"
            "\"backward_s\":%.3g,\"optimiser_s\":%.3g,\"peak_bytes\":%zu}\n",
            l->norm, l->lr, (double)l->samples / total, l->wait, l->forward, l->backward, l->optimiser,
            m.keep + m.keep_grad + m.stack_peak + m.pool + m.work);
    return fflush(f) ? ma_fail(e, MA_IO, "log: %s", strerror(errno)) : 0;
}

/* The data may end within a step: the loss is then the mean of the passes that there were. */
static void mean_of(step_log *log, double share) {
    log->loss /= share;
    for (int k = 0; k < log->parts; k++) log->part[k] /= share;
}

/* One optimiser step. 1: done; 0: no more data; -1: error. */
static int one_step(const ma_train *t, ma_optim *optim, ma_item *items, int64_t step, step_log *log, ma_err *e) {
    int64_t passes = 0;
    int rc = 1;
    while (passes < t->o->accumulate && (rc = micro(t, items, step, log, e)) > 0) passes++;
    if (rc < 0 || !log->samples) return rc;
    mean_of(log, (double)passes / (double)t->o->accumulate);
    double start = ma_now();
    log->lr = ma_optim_lr(optim, step);
    ma_err why = {0};
    if (ma_optim_step(optim, &log->norm, &why)) return ma_fail(e, why.reason, "%s; samples %s", why.text, log->keys);
    log->optimiser = ma_now() - start;
    log->wait = ma_dataset_waited(t->data);
    return 1;
}

static int loop(const ma_train *t, ma_optim *optim, FILE *log, ma_item *items, int64_t *step, int64_t *draws,
                ma_err *e) {
    ma_progress p;
    const int64_t first = *step;
    int64_t saved = first;
    int rc = 1;
    ma_progress_start(&p, t->cli, "steps", t->o->steps - first);
    while (*step < t->o->steps && !ma_stopped) {
        step_log l = {0};
        if ((rc = one_step(t, optim, items, *step + 1, &l, e)) <= 0) break;
        ++*step;
        *draws += l.samples;
        if (write_log(t, log, *step, &l, e)) rc = -1;
        p.done = *step - first;
        p.bad = t->tally->bad;
        snprintf(p.note, sizeof p.note, "loss %.4g", l.loss);
        ma_progress_step(&p);
        if (rc > 0 && t->o->save_every && *step % t->o->save_every == 0) {
            if (save_checkpoint(t, optim, *step, *draws, e)) rc = -1;
            saved = *step;
        }
        if (rc < 0) break;
    }
    ma_progress_end(&p);
    if (rc < 0 && ma_stopped) { /* within a step, which is as if it had not begun */
        ma_err_clear(e);
        rc = 0;
    }
    ma_err late = {0};
    if (*step != saved && save_checkpoint(t, optim, *step, *draws, rc < 0 ? &late : e)) rc = -1;
    if (rc >= 0 && ma_stopped)
        rc = *step ? ma_fail(e, MA_IO, "stopped after step %lld; --resume goes on from there", (long long)*step)
                   : ma_fail(e, MA_IO, "stopped before the first step");
    return rc < 0 ? -1 : 0;
}

int ma_train_run(const ma_train *t, int64_t *steps, ma_err *e) {
    const ma_train_opts *o = t->o;
    ma_optim_opts adam = {.lr = o->lr,
                          .beta1 = o->beta1,
                          .beta2 = o->beta2,
                          .eps = 1e-8,
                          .decay = o->decay,
                          .clip = o->clip,
                          .warmup = o->warmup,
                          .total = o->constant ? 0 : o->steps};
    int64_t draws = 0;
    *steps = 0;
    ma_optim *optim = ma_optim_new(t->ctx, t->params, t->nparams, &adam);
    ma_item *items = calloc((size_t)o->batch, sizeof *items);
    int rc = optim && items ? ma_make_dirs(t->state, e) : ma_fail(e, MA_MEMORY, "training: out of memory");
    if (ma_ctx_failed(t->ctx, e)) rc = -1;
    if (!rc) rc = o->resume ? load_checkpoint(t, optim, steps, &draws, e) : refuse_old(t, e);
    FILE *log = rc ? NULL : open_log(o->log, *steps, e);
    if (!rc) rc = log && e->reason == MA_OK ? loop(t, optim, log, items, steps, &draws, e) : -1;
    if (log) fclose(log);
    free(items);
    ma_optim_free(optim);
    return rc;
}
