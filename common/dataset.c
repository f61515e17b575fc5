/* dataset: see dataset.h. Reading is in the caller's thread; what a draw costs is measured, not hidden. */
#include "dataset.h"
#include "rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct ma_dataset {
    ma_dataset_opts o;
    ma_inputs *in;
    ma_item *window;
    int64_t held, epoch, draws, seen; /* seen: good samples of this epoch */
    bool ended;                       /* this epoch is read to its end; the next begins when the window is empty */
    ma_array like[MA_ITEM_ARRAYS];    /* shapes that all must have; no data */
    bool begun;                       /* there was a good sample: like stands */
    bool over;
    double waited;
};

void ma_item_free(ma_item *item) {
    free(item->key);
    for (int k = 0; k < MA_ITEM_ARRAYS; k++) ma_array_free(&item->a[k]);
    *item = (ma_item){0};
}

bool ma_dataset_once(const ma_cli *cli) {
    struct stat s;
    for (int k = 0; k < cli->inputs.n; k++)
        if (!strcmp(cli->inputs.at[k], "-") || (!stat(cli->inputs.at[k], &s) && !S_ISREG(s.st_mode))) return true;
    return !cli->inputs.n;
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
    if (once) d->o.epochs = 1;
    d->in = ma_inputs_open(o->cli, false, e);
    if (!d->in) {
        ma_dataset_close(d);
        return NULL;
    }
    return d;
}

void ma_dataset_close(ma_dataset *d) {
    if (!d) return;
    for (int64_t k = 0; k < d->held; k++) ma_item_free(&d->window[k]);
    ma_inputs_close(d->in);
    free(d->window);
    free(d);
}

static bool finite_array(const ma_array *a) {
    const uint16_t *h = a->data;
    const float *f = a->data;
    size_t n = ma_array_count(a);
    bool good = true;
    if (a->type == MA_F16)
        for (size_t k = 0; k < n; k++) good &= (h[k] & 0x7c00) != 0x7c00;
    else if (a->type == MA_F32)
        for (size_t k = 0; k < n; k++) good &= isfinite(f[k]) != 0;
    return good;
}

static bool same_shape(const ma_array *a, const ma_array *b) {
    return a->nd == b->nd && !memcmp(a->n, b->n, (size_t)a->nd * sizeof *a->n);
}

/* Member k of a sample, checked. Batches are whole tensors: what the first good sample had, and in what shape, all
 * must. */
static int take_member(const ma_dataset *d, const ma_sample *s, int k, ma_array *a, ma_err *why) {
    const char *ext = d->o.member[k];
    const ma_array *like = &d->like[k];
    const bool here = ma_sample_get(s, ext) != NULL;
    if (d->o.optional[k] && d->begun && here != (like->nd > 0))
        return ma_fail(why, MA_SHAPE, "%s: has %s %s, unlike the first sample", s->key, here ? "a" : "no", ext);
    if (d->o.optional[k] && !here) return 0;
    if (ma_sample_array(s, ext, a, why)) return -1;
    if (a->type != MA_F16 && a->type != MA_F32 && a->type != MA_BOOL)
        return ma_fail(why, MA_SHAPE, "%s: %s is neither f16 nor f32 nor bool", s->key, ext);
    if (!finite_array(a)) return ma_fail(why, MA_NOTFINITE, "%s: %s holds NaN or infinity", s->key, ext);
    char x[160], y[160];
    if (d->begun && !same_shape(a, like))
        return ma_fail(why, MA_SHAPE, "%s: %s is %s, the first sample's was %s", s->key, ext,
                       ma_shape_text(x, a->nd, a->n), ma_shape_text(y, like->nd, like->n));
    return 0;
}

/* The arrays out of a sample. */
static int take(ma_dataset *d, const ma_sample *s, ma_item *item, ma_err *why) {
    for (int k = 0; k < d->o.members; k++)
        if (take_member(d, s, k, &item->a[k], why)) return -1;
    item->key = strdup(s->key);
    if (!item->key) return ma_fail(why, MA_MEMORY, "dataset: out of memory");
    for (int k = 0; k < d->o.members && !d->begun; k++) {
        d->like[k] = item->a[k];
        d->like[k].data = NULL;
    }
    d->begun = true;
    return 0;
}

/* A bad sample, told in the first epoch: it is bad in every other, too. -1: enough of them, or a signal has come, by
 * which any read may fail. */
static int bad(const ma_dataset *d, const ma_sample *s, const ma_err *why, ma_err *e) {
    if (ma_stopped) return ma_fail(e, MA_IO, "stopped");
    if (!d->o.tally || d->epoch || !ma_tally_bad(d->o.tally, s ? s->key : NULL, why)) return 0;
    return ma_fail(e, why->reason, "too many bad samples");
}

/* The stream from its beginning, or its end for good. */
static int next_epoch(ma_dataset *d, ma_err *e) {
    d->epoch++;
    d->seen = 0;
    d->ended = false;
    if (d->epoch == d->o.epochs) {
        d->over = true;
        return 0;
    }
    ma_inputs_close(d->in);
    d->in = ma_inputs_open(d->o.cli, false, e);
    return d->in ? 0 : -1;
}

/* Brings the window up to its size, or the epoch to its end. */
static int refill(ma_dataset *d, ma_err *e) {
    bool failed = d->ended && !d->held && next_epoch(d, e);
    while (!failed && !d->over && !d->ended && d->held < d->o.window) {
        ma_err why = {0};
        ma_sample *s = NULL;
        ma_item item = {0};
        int rc = ma_inputs_next(d->in, &s, &why);
        if (rc > 0 && !take(d, s, &item, &why)) {
            d->window[d->held++] = item;
            d->seen++;
            if (d->o.tally && !d->epoch) d->o.tally->good++;
        } else if (rc == 0) {
            d->ended = true;
        } else {
            ma_item_free(&item);
            failed = bad(d, s, &why, e) != 0;
        }
        ma_sample_free(s);
    }
    if (failed) return -1;
    if (d->ended && !d->seen) return ma_fail(e, MA_MISSING, "the input has no sample to train on");
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
