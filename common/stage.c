/* stage: the loop of every streaming tool. Threads read, prepare and finish around it (ahead.c); the writer has threads
 * of its own. Everything a user sees of a run's course is here: bad samples and their tally, progress, what it waits
 * for, what a stop, a full disk or a closed pipe means for output and exit status.
 * Traps:
 * - a reader of our output that has seen enough (head) is not an error worth words: exit 1 in silence;
 * - a thread may be waiting for input that never comes when the run ends early: ma_stopped wakes it. */
#include "stage.h"
#include "ahead.h"
#include "file.h"
#include <errno.h>
#include <omp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- tally */

int ma_tally_bad(ma_tally *t, const char *key, const ma_err *why) {
    const ma_common *c = &t->cli->common;
    size_t n = key ? strlen(key) : 0;
    bool named = !key || (!strncmp(why->text, key, n) && (why->text[n] == ':' || why->text[n] == '.'));
    const int level = t->cli->rank != 0; /* of several ranks all see it: one tells */
    ma_say(t->cli, level, "%s%s%s", named ? "" : key, named ? "" : ": ", why->text);
    t->bad++;
    t->by_reason[why->reason]++;
    if (t->list) {
        cJSON *one = cJSON_CreateObject();
        cJSON_AddStringToObject(one, "skipped", key ? key : "");
        cJSON_AddStringToObject(one, "reason", ma_reason_name(why->reason));
        cJSON_AddStringToObject(one, "text", why->text);
        cJSON_AddItemToArray(t->list, one);
    }
    int64_t most = c->strict ? 0 : c->max_bad;
    if (most < 0 || t->bad <= most) return 0;
    ma_say(t->cli, level, most ? "more than %lld bad: stopped" : "stopped at the first bad one", (long long)most);
    return -1;
}

int ma_tally_end(const ma_tally *t) {
    if (!t->bad) return 0;
    ma_buf b = {0};
    for (int i = 0; i < MA_REASONS; i++)
        if (t->by_reason[i])
            ma_buf_printf(&b, "%s%lld %s", b.size ? ", " : "", (long long)t->by_reason[i],
                          ma_reason_name((ma_reason)i));
    ma_say(t->cli, t->cli->rank != 0, "%lld good, %lld bad: %s", (long long)t->good, (long long)t->bad,
           b.data ? b.data : "");
    ma_buf_free(&b);
    return 1;
}

int ma_tally_status(const ma_tally *t, const ma_err *e, int out_fd) {
    const int status = ma_exit_status(t->cli, e, out_fd), bad = ma_tally_end(t);
    return status ? status : bad;
}

/* ---- the run */

typedef struct run {
    const ma_stage *st;
    int batch;
    ma_tally tally;
    ma_progress progress;
    ma_ahead *ahead;
    ma_writer *out; /* NULL: none wanted */
    ma_ticket **t;  /* batch of them, and what they hold, as work takes it */
    ma_sample **s;
    void **pre;
    ma_err *why;
    bool quit; /* --max-bad, --strict */
} run;

static void bad(run *r, const char *key, const ma_err *why) {
    if (ma_tally_bad(&r->tally, key, why)) r->quit = true;
    r->progress.bad = r->tally.bad;
}

/* Hands a good sample on; its key is needed where the writer refuses it. -1: nothing more can be written. */
static int pass_on(run *r, ma_sample *s, ma_err *e) {
    ma_err why = {0};
    double from = ma_now();
    if (!r->out)
        ma_sample_free(s);
    else if (ma_writer_add(r->out, s, &why)) {
        if (why.reason == MA_IO || why.reason == MA_MEMORY) return ma_fail(e, why.reason, "%s", why.text);
        bad(r, NULL, &why);
        return 0;
    }
    ma_ahead_spent(r->ahead, MA_SPENT_WRITER, ma_now() - from);
    r->tally.good++;
    r->progress.done++;
    return 0;
}

/* A sample, good or bad, or what was not read as one, leaves. */
static int leave(run *r, ma_ticket *t, ma_err *e) {
    ma_sample *s = t->s;
    int rc = 0;
    t->s = NULL;
    if (t->why.reason) {
        bad(r, s ? s->key : NULL, &t->why);
        ma_sample_free(s);
    } else if (s) {
        rc = pass_on(r, s, e);
    }
    ma_ahead_account(r->ahead, r->progress.note);
    ma_progress_step(&r->progress);
    return rc;
}

/* Up to a batch of samples; those whose turn it is leave meanwhile. 0: the end; -1: the run is over. */
static int gather(run *r, ma_err *e) {
    ma_ticket *t;
    ma_todo todo;
    int n = 0;
    while (n < r->batch && !r->quit && (todo = ma_ahead_next(r->ahead, &t)) != MA_AHEAD_END) {
        if (todo == MA_TO_WORK)
            r->t[n++] = t;
        else if (leave(r, t, e))
            return -1;
    }
    return n;
}

/* Works on r->t[0 .. n). */
static int do_batch(run *r, int n, ma_err *e) {
    double from = ma_now();
    memset(r->why, 0, sizeof *r->why * (size_t)n);
    for (int i = 0; i < n; i++) {
        r->s[i] = r->t[i]->s;
        r->pre[i] = r->t[i]->pre;
    }
    int rc = r->st->work(r->st->self, r->s, r->pre, n, r->why, e);
    for (int i = 0; i < n; i++) {
        r->t[i]->s = r->s[i];
        r->t[i]->why = r->why[i];
    }
    ma_ahead_spent(r->ahead, MA_SPENT_WORK, ma_now() - from);
    ma_ahead_worked(r->ahead, r->t, n);
    return rc;
}

/* Whether fd is a pipe whose reader has gone. */
static bool closed_early(int fd) {
    struct pollfd p = {.fd = fd};
    return poll(&p, 1, 0) == 1 && p.revents & POLLERR;
}

int ma_exit_status(const ma_cli *cli, const ma_err *e, int out_fd) {
    if (e->reason == MA_OK) return 0;
    if (e->reason != MA_IO || cli->common.out || !closed_early(out_fd)) ma_say(cli, 0, "%s", e->text);
    return e->reason == MA_USAGE ? 2 : 1;
}

static int refuse_terminal(const ma_cli *cli, int fd, ma_err *e) {
    if (cli->common.out || !isatty(fd)) return 0;
    return ma_fail(e, MA_USAGE, "a shard is not for a terminal: redirect it, pipe it on, or give -o FILE");
}

ma_writer *ma_output_open(const ma_cli *cli, int fd, ma_err *e) {
    const ma_common *c = &cli->common;
    const ma_writer_opts o = {.path = c->out,
                              .fd = fd,
                              .level = (int)c->level,
                              .threads = (int)c->threads,
                              .drop = c->drop.at,
                              .ndrop = c->drop.n};
    return refuse_terminal(cli, fd, e) ? NULL : ma_writer_open(&o, e);
}

int ma_output_write(const ma_cli *cli, const ma_buf *b, ma_err *e) {
    const char *path = cli->common.out;
    return path ? ma_write_file(path, b->data, b->size, e) : ma_write_all(STDOUT_FILENO, b->data, b->size, e);
}

static int set_up(run *r, ma_inputs *in, int out_fd, ma_err *e) {
    r->t = calloc((size_t)r->batch, sizeof(*r->t));
    r->s = calloc((size_t)r->batch, sizeof *r->s);
    r->pre = calloc((size_t)r->batch, sizeof *r->pre);
    r->why = calloc((size_t)r->batch, sizeof *r->why);
    if (!r->t || !r->s || !r->pre || !r->why) return ma_fail(e, MA_MEMORY, "out of memory");
    if (!r->st->no_output && !(r->out = ma_output_open(r->st->cli, out_fd, e))) return -1;
    r->ahead = ma_ahead_start(r->st, in, omp_get_max_threads(), e);
    return r->ahead ? 0 : -1;
}

/* The stream, from the first sample to the end of the archive. */
static int stream(run *r, ma_err *e) {
    ma_ticket *t;
    int n, rc = 0;
    while (!rc && !r->quit && !ma_stopped && (n = gather(r, e)) != 0) rc = n < 0 ? -1 : do_batch(r, n, e);
    while (!rc && !r->quit && ma_ahead_last(r->ahead, &t) != MA_AHEAD_END) rc = leave(r, t, e);
    bool whole = !rc && !r->quit && !ma_stopped;
    if (ma_stopped) ma_err_clear(e); /* who stopped it knows why */
    if (!whole) ma_stopped = 1;      /* wakes a thread that reads, and a writer in front of a full pipe */
    double from = ma_now();
    if (whole && r->out)
        rc = ma_writer_close(r->out, e);
    else
        ma_writer_abort(r->out);
    r->out = NULL;
    ma_ahead_spent(r->ahead, MA_SPENT_WRITER, ma_now() - from);
    return whole && !rc ? 0 : -1;
}

/* Where the time went, and the end of those it went to. */
static void tear_down(run *r) {
    char text[96];
    if (r->ahead) ma_say(r->st->cli, 2, "time went to: %s", ma_ahead_account(r->ahead, text));
    ma_ahead_stop(r->ahead);
    ma_writer_abort(r->out); /* where setting up failed behind it */
    free(r->t);
    free(r->s);
    free(r->pre);
    free(r->why);
}

int ma_stage_run(const ma_stage *st, int out_fd) {
    ma_cli *cli = st->cli;
    run r = {.st = st, .batch = st->batch > 0 ? st->batch : 1, .tally = {.cli = cli}};
    ma_err e = {0};
    if (!st->no_output && refuse_terminal(cli, out_fd, &e)) return ma_exit_status(cli, &e, -1);
    ma_catch_signals();
    ma_inputs *in = ma_inputs_open(cli, st->video, &e);
    int rc = in ? set_up(&r, in, out_fd, &e) : -1;
    if (!rc) {
        ma_progress_start(&r.progress, cli, "samples", 0);
        rc = stream(&r, &e);
        ma_progress_end(&r.progress);
    }
    tear_down(&r);
    ma_inputs_close(in);
    int status = ma_exit_status(cli, &e, st->no_output ? -1 : out_fd);
    if (status == 2 && !in) return 2;
    return ma_tally_end(&r.tally) || rc ? 1 : 0;
}

/* ---- KEY.json */

/* What the member depends on; other keys of an entry tell what came out. */
static const char *const fingerprint[] = {"version", "options", "weights", "input", "seed"};

static bool same_entry(const cJSON *a, const cJSON *b) {
    for (size_t i = 0; i < sizeof fingerprint / sizeof *fingerprint; i++) {
        const cJSON *x = cJSON_GetObjectItemCaseSensitive(a, fingerprint[i]);
        const cJSON *y = cJSON_GetObjectItemCaseSensitive(b, fingerprint[i]);
        if ((x || y) && !cJSON_Compare(x, y, true)) return false;
    }
    return true;
}

bool ma_entry_same(const ma_cli *cli, ma_sample *s, const char *tool, const char *ext, const cJSON *entry) {
    static atomic_bool said; /* once a run is enough: it is all samples or none, mostly */
    if (!ma_sample_get(s, ext)) return false;
    const cJSON *json = ma_sample_json(s, NULL), *old = cJSON_GetObjectItemCaseSensitive(json, tool);
    if (old && same_entry(old, entry)) return true;
    if (!atomic_exchange(&said, true))
        ma_say(cli, 1, "%s.%s was made with other options or weights: made anew", s->key, ext);
    return false;
}

int ma_entry_put(ma_sample *s, const char *tool, cJSON *entry, ma_err *e) {
    cJSON *json = ma_sample_json(s, e);
    if (json && entry) {
        cJSON_DeleteItemFromObjectCaseSensitive(json, tool);
        if (cJSON_AddItemToObject(json, tool, entry)) return 0;
    }
    cJSON_Delete(entry);
    return ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
}
