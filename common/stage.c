/* stage: the loop of every streaming tool. A thread reads ahead while the tool works; the writer has threads of its
 * own. Everything a user sees of a run's course is here: bad samples and their tally, progress, what a stop, a full
 * disk or a closed pipe means for output and exit status. Limits: up to 2·batch + 2 samples are held beside the batch.
 * Traps:
 * - a reader of our output that has seen enough (head) is not an error worth words: exit 1 in silence;
 * - the thread may be waiting for input that never comes when the run ends early: ma_stopped wakes it. */
#include "stage.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- reading ahead */

/* What ma_inputs_next said, and what prepare made of it. */
typedef struct item {
    int rc;
    ma_sample *s;
    void *pre;
    ma_err why;
} item;

typedef struct ahead {
    const ma_stage *st;
    ma_inputs *in;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t change;
    item *ring;
    size_t room, put, got; /* put and got count items; got ≤ put ≤ got + room */
    bool quit;
} ahead;

static void drop(const ahead *q, item *i) {
    if (i->pre) q->st->release(q->st->self, i->pre);
    ma_sample_free(i->s);
    *i = (item){0};
}

static void *read_ahead(void *arg) {
    ahead *q = arg;
    bool more = true;
    while (more) {
        item i = {0};
        i.rc = ma_inputs_next(q->in, &i.s, &i.why);
        if (i.rc > 0 && q->st->prepare) i.pre = q->st->prepare(q->st->self, &i.s, &i.why);
        pthread_mutex_lock(&q->lock);
        while (q->put - q->got == q->room && !q->quit) pthread_cond_wait(&q->change, &q->lock);
        more = i.rc != 0 && !q->quit && !ma_stopped;
        if (q->quit)
            drop(q, &i);
        else
            q->ring[q->put++ % q->room] = i;
        pthread_cond_broadcast(&q->change);
        pthread_mutex_unlock(&q->lock);
    }
    return NULL;
}

static int ahead_start(ahead *q, const ma_stage *st, ma_inputs *in, int batch, ma_err *e) {
    *q = (ahead){.st = st, .in = in, .room = 2 * (size_t)batch};
    q->ring = calloc(q->room, sizeof *q->ring);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->change, NULL);
    if (q->ring && !pthread_create(&q->thread, NULL, read_ahead, q)) return 0;
    free(q->ring);
    return ma_fail(e, MA_MEMORY, "no thread to read with");
}

/* The next; its rc is 0 for ever after the end. */
static item ahead_next(ahead *q) {
    pthread_mutex_lock(&q->lock);
    while (q->put == q->got) pthread_cond_wait(&q->change, &q->lock);
    item i = q->ring[q->got % q->room];
    if (i.rc) q->got++; /* the end stays */
    pthread_cond_broadcast(&q->change);
    pthread_mutex_unlock(&q->lock);
    return i;
}

static void ahead_stop(ahead *q) {
    pthread_mutex_lock(&q->lock);
    q->quit = true;
    pthread_cond_broadcast(&q->change);
    pthread_mutex_unlock(&q->lock);
    pthread_join(q->thread, NULL);
    for (; q->got < q->put; q->got++) drop(q, &q->ring[q->got % q->room]);
    pthread_mutex_destroy(&q->lock);
    pthread_cond_destroy(&q->change);
    free(q->ring);
}

/* ---- tally */

int ma_tally_bad(ma_tally *t, const char *key, const ma_err *why) {
    const ma_common *c = &t->cli->common;
    size_t n = key ? strlen(key) : 0;
    bool named = !key || (!strncmp(why->text, key, n) && (why->text[n] == ':' || why->text[n] == '.'));
    ma_say(t->cli, 0, "%s%s%s", named ? "" : key, named ? "" : ": ", why->text);
    t->bad++;
    t->by_reason[why->reason]++;
    int64_t most = c->strict ? 0 : c->max_bad;
    if (most < 0 || t->bad <= most) return 0;
    ma_say(t->cli, 0, most ? "more than %lld bad: stopped" : "stopped at the first bad one", (long long)most);
    return -1;
}

int ma_tally_end(const ma_tally *t) {
    if (!t->bad) return 0;
    ma_buf b = {0};
    for (int i = 0; i < MA_REASONS; i++)
        if (t->by_reason[i])
            ma_buf_printf(&b, "%s%lld %s", b.size ? ", " : "", (long long)t->by_reason[i],
                          ma_reason_name((ma_reason)i));
    ma_say(t->cli, 0, "%lld good, %lld bad: %s", (long long)t->good, (long long)t->bad, b.data ? b.data : "");
    ma_buf_free(&b);
    return 1;
}

/* ---- the run */

typedef struct run {
    const ma_stage *st;
    int batch;
    ma_tally tally;
    ma_progress progress;
    ahead in;
    ma_writer *out; /* NULL: none wanted */
    ma_sample **s;  /* batch of them */
    void **pre;
    ma_err *why;
    bool quit; /* --max-bad, --strict */
} run;

static void bad(run *r, const char *key, const ma_err *why) {
    if (ma_tally_bad(&r->tally, key, why)) r->quit = true;
    r->progress.bad = r->tally.bad;
}

/* Up to a batch of samples. 0: the end. */
static int gather(run *r) {
    int n = 0;
    while (n < r->batch && !r->quit && !ma_stopped) {
        item i = ahead_next(&r->in);
        if (!i.rc) break;
        if (i.rc > 0 && !i.why.reason && i.s) {
            r->s[n] = i.s;
            r->pre[n++] = i.pre;
            continue;
        }
        if (i.why.reason && !ma_stopped) bad(r, i.s ? i.s->key : NULL, &i.why);
        drop(&r->in, &i);
    }
    return n;
}

/* Hands a sample on; its key is needed where the writer refuses it. -1: nothing more can be written. */
static int hand_on(run *r, ma_sample *s, ma_err *e) {
    ma_err why = {0};
    if (!r->out)
        ma_sample_free(s);
    else if (ma_writer_add(r->out, s, &why)) {
        if (why.reason == MA_IO || why.reason == MA_MEMORY) return ma_fail(e, why.reason, "%s", why.text);
        bad(r, NULL, &why);
        return 0;
    }
    r->tally.good++;
    r->progress.done++;
    return 0;
}

/* Works on r->s[0 .. n) and hands on or frees every one. */
static int do_batch(run *r, int n, ma_err *e) {
    memset(r->why, 0, sizeof *r->why * (size_t)n);
    int rc = r->st->work(r->st->self, r->s, r->pre, n, r->why, e);
    for (int i = 0; i < n; i++) {
        if (r->pre[i]) r->st->release(r->st->self, r->pre[i]);
        if (!r->s[i]) continue; /* taken away by the tool */
        if (rc || r->why[i].reason) {
            if (!rc) bad(r, r->s[i]->key, &r->why[i]);
            ma_sample_free(r->s[i]);
        } else {
            rc = hand_on(r, r->s[i], e);
        }
    }
    ma_progress_step(&r->progress);
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

static int set_up(run *r, ma_inputs *in, int out_fd, ma_err *e) {
    r->s = calloc((size_t)r->batch, sizeof *r->s);
    r->pre = calloc((size_t)r->batch, sizeof *r->pre);
    r->why = calloc((size_t)r->batch, sizeof *r->why);
    if (!r->s || !r->pre || !r->why) return ma_fail(e, MA_MEMORY, "out of memory");
    if (!r->st->no_output && !(r->out = ma_output_open(r->st->cli, out_fd, e))) return -1;
    return ahead_start(&r->in, r->st, in, r->batch, e);
}

/* The stream, from the first sample to the end of the archive. */
static int stream(run *r, ma_err *e) {
    int n, rc = 0;
    while (!rc && !r->quit && !ma_stopped && (n = gather(r)) > 0) rc = do_batch(r, n, e);
    bool whole = !rc && !r->quit && !ma_stopped;
    if (ma_stopped) ma_err_clear(e); /* who stopped it knows why */
    if (!whole) ma_stopped = 1;      /* wakes the reading thread, and a writer in front of a full pipe */
    ahead_stop(&r->in);
    if (whole && r->out)
        rc = ma_writer_close(r->out, e);
    else
        ma_writer_abort(r->out);
    r->out = NULL;
    return whole && !rc ? 0 : -1;
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
    ma_writer_abort(r.out); /* where setting up failed behind it */
    ma_inputs_close(in);
    free(r.s);
    free(r.pre);
    free(r.why);
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
    static bool said; /* once a run is enough: it is all samples or none, mostly */
    if (!ma_sample_get(s, ext)) return false;
    const cJSON *json = ma_sample_json(s, NULL), *old = cJSON_GetObjectItemCaseSensitive(json, tool);
    if (old && same_entry(old, entry)) return true;
    if (!said) ma_say(cli, 1, "%s.%s was made with other options or weights: made anew", s->key, ext);
    said = true;
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
