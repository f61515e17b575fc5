/* dataset: see dataset.h. Samples are read and checked by the threads of ahead.c, which runs as far ahead as the window
 * has room, and a few samples more; the caller's thread only takes them in, in their order, and draws. At the end of an
 * epoch the threads go on with the next, while the window is drawn empty.
 *
 * Limits: all that a sample's members hold stays in memory as it was read, or for a device that reads the host's memory
 * where it does (pinned.h), but nothing twice.
 * Trap: what a sample must look like is known once the first good one has been taken in, so shapes are compared there,
 * and a sample's faults are told in the order of its members, whoever found them. */
#include "dataset.h"
#include "ahead.h"
#include "npy.h"
#include "rng.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SPARE = 2 /* samples under way for each thread, beside those that the window lacks */ };

struct ma_dataset {
    ma_dataset_opts o;
    ma_stage stage; /* what the threads do */
    ma_inputs *in;
    ma_ahead *ahead;
    ma_pinned *pinned; /* NULL: none */
    ma_err late;       /* of opening the next epoch */
    ma_item *window;
    int64_t held, epoch, draws, seen; /* seen: good samples of this epoch */
    bool ended;                       /* this epoch is read to its end; the next begins when the window is empty */
    ma_array like[MA_ITEM_ARRAYS];    /* shapes that all must have; no data */
    bool begun;                       /* there was a good sample: like stands */
    bool over;
    double waited;
};

/* A sample as a thread leaves it. */
typedef struct draft {
    ma_item item;
    int bad; /* the member with which something is wrong; -1: none */
    ma_err why;
} draft;

/* What is not the sample's. */
static void give_back(ma_item *item) {
    for (int k = 0; k < MA_ITEM_ARRAYS; k++) {
        if (!(item->far >> k & 1)) continue;
        ma_pinned_give(item->pinned, item->a[k].data, ma_array_bytes(&item->a[k]));
        item->a[k].data = NULL;
    }
    item->far = 0;
}

void ma_item_free(ma_item *item) {
    give_back(item);
    for (int k = 0; k < MA_ITEM_ARRAYS && !item->sample; k++) ma_array_free(&item->a[k]);
    if (!item->sample) free(item->key);
    ma_sample_free(item->sample);
    *item = (ma_item){0};
}

bool ma_dataset_once(const ma_cli *cli) {
    struct stat s;
    for (int k = 0; k < cli->inputs.n; k++)
        if (!strcmp(cli->inputs.at[k], "-") || (!stat(cli->inputs.at[k], &s) && !S_ISREG(s.st_mode))) return true;
    return !cli->inputs.n;
}

/* ---- the threads */

/* Array k, which lies in the member's bytes m, goes where the device reads it itself; where that cannot be had it
 * stays in these bytes, moved to where numbers may stand. */
static void place(const ma_dataset *d, const ma_member *m, ma_item *item, int k) {
    ma_array *a = &item->a[k];
    const size_t size = ma_array_bytes(a);
    void *block = d->pinned && size ? ma_pinned_take(d->pinned, size) : NULL;
    if (block) {
        a->data = memcpy(block, a->data, size);
        item->pinned = d->pinned;
        item->far |= 1u << k;
    } else if ((uintptr_t)a->data % sizeof(float)) {
        a->data = memmove(m->data, a->data, size);
    }
}

/* Member k of a sample. */
static int read_member(const ma_dataset *d, const ma_sample *s, int k, ma_item *item, ma_err *why) {
    const char *ext = d->o.member[k];
    ma_array *a = &item->a[k];
    const ma_member *m = ma_sample_get(s, ext);
    if (!m && d->o.optional[k]) return 0;
    if (!m) return ma_fail(why, MA_MISSING, "%s.%s: not in the sample", s->key, ext);
    char *name = ma_format("%s.%s", s->key, ext);
    int rc = name ? ma_npy_view(m->data, m->size, a, name, why) : ma_fail(why, MA_MEMORY, "dataset: out of memory");
    free(name);
    if (rc) return -1;
    if (a->type != MA_F16 && a->type != MA_F32 && a->type != MA_BOOL)
        return ma_fail(why, MA_SHAPE, "%s: %s is neither f16 nor f32 nor bool", s->key, ext);
    place(d, m, item, k);
    if (ma_array_not_finite(a) < ma_array_count(a))
        return ma_fail(why, MA_NOTFINITE, "%s: %s holds NaN or infinity", s->key, ext);
    return 0;
}

/* Whether an array lies in a member's bytes, or will: one that is asked for twice may be needed for one of them. */
static bool is_needed(const ma_dataset *d, const ma_item *item, const char *ext) {
    for (int k = 0; k < d->o.members; k++)
        if (!(item->far >> k & 1) && !strcmp(d->o.member[k], ext)) return true;
    return false;
}

static void drop_rest(const ma_dataset *d, ma_sample *s, const ma_item *item) {
    for (int k = s->n; k-- > 0;)
        if (!is_needed(d, item, s->m[k].ext)) ma_sample_drop(s, s->m[k].ext);
}

static void *read_draft(void *self, ma_sample **s, ma_err *why) {
    const ma_dataset *d = self;
    draft *x = calloc(1, sizeof *x);
    if (!x) return ma_fail(why, MA_MEMORY, "dataset: out of memory"), NULL;
    x->bad = -1;
    drop_rest(d, *s, &x->item);
    for (int k = 0; k < d->o.members && x->bad < 0; k++)
        if (read_member(d, *s, k, &x->item, &x->why)) x->bad = k;
    drop_rest(d, *s, &x->item);
    return x;
}

static void free_draft(void *self, void *pre) {
    draft *x = pre;
    (void)self;
    give_back(&x->item);
    free(x);
}

/* Beside the sample's. */
static size_t draft_bytes(const void *pre) {
    const draft *x = pre;
    size_t sum = 0;
    for (int k = 0; k < MA_ITEM_ARRAYS; k++)
        if (x->item.far >> k & 1) sum += ma_array_bytes(&x->item.a[k]);
    return sum;
}

static void stop_reading(ma_dataset *d) {
    ma_ahead_stop(d->ahead);
    ma_inputs_close(d->in);
    d->ahead = NULL;
    d->in = NULL;
}

static int start_reading(ma_dataset *d, ma_err *e) {
    const int threads = omp_get_max_threads();
    d->stage = (ma_stage){.self = d, .prepare = read_draft, .release = free_draft, .bytes = draft_bytes};
    d->stage.ahead = d->o.window + (SPARE - 1) * threads;
    d->in = ma_inputs_open(d->o.cli, false, e);
    d->ahead = d->in ? ma_ahead_start(&d->stage, d->in, threads, e) : NULL;
    return d->ahead ? 0 : -1;
}

ma_dataset *ma_dataset_open(const ma_dataset_opts *o, ma_err *e) {
    const bool once = ma_dataset_once(o->cli);
    if (once && o->epochs > 1) {
        ma_fail(e, MA_USAGE, "standard input or a pipe can be read once: --epochs 1, or name the shards");
        return NULL;
    }
    ma_dataset *d = calloc(1, sizeof *d);
    if (d) d->window = calloc((size_t)o->window, sizeof *d->window);
    if (!d || !d->window) {
        ma_fail(e, MA_MEMORY, "dataset: out of memory");
        free(d);
        return NULL;
    }
    d->o = *o;
    d->pinned = ma_pinned_new(o->device);
    if (once) d->o.epochs = 1;
    if (!start_reading(d, e)) return d;
    ma_dataset_close(d);
    return NULL;
}

void ma_dataset_close(ma_dataset *d) {
    if (!d) return;
    stop_reading(d);
    for (int64_t k = 0; k < d->held; k++) ma_item_free(&d->window[k]);
    ma_pinned_free(d->pinned);
    free(d->window);
    free(d);
}

/* ---- taking in */

static bool same_shape(const ma_array *a, const ma_array *b) {
    return a->nd == b->nd && !memcmp(a->n, b->n, (size_t)a->nd * sizeof *a->n);
}

/* Member k beside the first sample's. Batches are whole tensors: what the first good sample had, and in what shape, all
 * must. */
static int compare(const ma_dataset *d, const ma_sample *s, const draft *x, int k, ma_err *why) {
    const char *ext = d->o.member[k];
    const ma_array *a = &x->item.a[k], *like = &d->like[k];
    const bool here = a->data || ma_sample_get(s, ext);
    if (d->o.optional[k] && d->begun && here != (like->nd > 0))
        return ma_fail(why, MA_SHAPE, "%s: has %s %s, unlike the first sample", s->key, here ? "a" : "no", ext);
    if (d->o.optional[k] && !here) return 0;
    if (x->bad == k) return ma_fail(why, x->why.reason, "%s", x->why.text);
    char was[160], is[160];
    if (d->begun && !same_shape(a, like))
        return ma_fail(why, MA_SHAPE, "%s: %s is %s, the first sample's was %s", s->key, ext,
                       ma_shape_text(is, a->nd, a->n), ma_shape_text(was, like->nd, like->n));
    return 0;
}

/* A good one comes into the window, which then owns the sample. */
static int take(ma_dataset *d, ma_sample **s, draft *x, ma_err *why) {
    for (int k = 0; k < d->o.members; k++)
        if (compare(d, *s, x, k, why)) return -1;
    for (int k = 0; k < d->o.members && !d->begun; k++) {
        d->like[k] = x->item.a[k];
        d->like[k].data = NULL;
    }
    d->begun = true;
    x->item.key = (*s)->key;
    x->item.sample = *s;
    *s = NULL;
    d->window[d->held++] = x->item;
    d->seen++;
    if (d->o.tally && !d->epoch) d->o.tally->good++;
    return 0;
}

/* A bad sample, told in the first epoch: it is bad in every other, too. -1: enough of them, or a signal has come, by
 * which any read may fail. */
static int bad(const ma_dataset *d, const ma_sample *s, const ma_err *why, ma_err *e) {
    if (ma_stopped) return ma_fail(e, MA_IO, "stopped");
    if (!d->o.tally || d->epoch || !ma_tally_bad(d->o.tally, s ? s->key : NULL, why)) return 0;
    return ma_fail(e, why->reason, "too many bad samples");
}

/* What there is to do with the next ticket. */
static int take_ticket(ma_dataset *d, ma_ticket *t, ma_todo todo, ma_err *e) {
    int rc = 0;
    ma_err why = t->why;
    draft *x = t->pre;
    t->pre = NULL;
    if (x && take(d, &t->s, x, &why)) give_back(&x->item);
    if (why.reason) rc = bad(d, t->s, &why, e);
    ma_sample_free(t->s);
    t->s = NULL;
    free(x);
    if (todo == MA_TO_WORK) ma_ahead_worked(d->ahead, &t, 1);
    return rc;
}

/* The epoch is read to its end; the threads go on with the next, if there is one. */
static void end_epoch(ma_dataset *d) {
    d->ended = true;
    stop_reading(d);
    if (d->seen && d->epoch + 1 != d->o.epochs) start_reading(d, &d->late);
}

/* The window is empty: the next epoch, or the end for good. */
static int next_epoch(ma_dataset *d, ma_err *e) {
    if (!d->seen) return ma_fail(e, MA_MISSING, "the input has no sample to train on");
    d->epoch++;
    d->seen = 0;
    d->ended = false;
    d->over = d->epoch == d->o.epochs;
    return d->over || d->ahead ? 0 : ma_fail(e, d->late.reason, "%s", d->late.text);
}

/* Brings the window up to its size, or the epoch to its end. */
static int refill(ma_dataset *d, ma_err *e) {
    ma_ticket *t;
    ma_todo todo;
    while (!d->over && (d->ended ? !d->held : d->held < d->o.window)) {
        if (d->ended) {
            if (next_epoch(d, e)) return -1;
        } else if ((todo = ma_ahead_next(d->ahead, &t)) == MA_AHEAD_END) {
            if (ma_stopped) return ma_fail(e, MA_IO, "stopped");
            end_epoch(d);
        } else if (take_ticket(d, t, todo, e)) {
            return -1;
        }
    }
    if (d->ahead) ma_ahead_limit(d->ahead, (size_t)(d->o.window - d->held + SPARE * omp_get_max_threads()));
    return 0;
}

int ma_dataset_next(ma_dataset *d, ma_item *item, ma_err *e) {
    double start = ma_now();
    int rc = refill(d, e);
    if (!rc && d->held) {
        ma_rng rng = ma_rng_make(d->o.seed, NULL, (uint64_t)d->draws++, MA_RNG_ORDER);
        int64_t k = ma_rng_below(&rng, d->held);
        *item = d->window[k];
        d->window[k] = d->window[--d->held];
        rc = 1;
    }
    d->waited += ma_now() - start;
    return rc;
}

const ma_array *ma_dataset_shape(ma_dataset *d, int member, ma_err *e) {
    if (refill(d, e)) return NULL;
    if (d->like[member].nd || d->o.optional[member]) return d->like[member].nd ? &d->like[member] : NULL;
    ma_fail(e, MA_MISSING, "the input has no sample with %s", d->o.member[member]);
    return NULL;
}

double ma_dataset_waited(ma_dataset *d) {
    double w = d->waited;
    d->waited = 0;
    return w;
}
