/* team: see team.h. Buckets are the leaves in the reverse of their order, which is about the order in which a backward
 * pass ends with them, cut where a bucket is full; they are summed one after another in that order on all ranks,
 * whatever each of them does: a rank without samples has no backward pass. Traps:
 * - an aborted sum leaves anything in the gradients, and the stream goes on: who reads them asks ma_team_whole first;
 * - a peer's death may be seen by NCCL before the watcher of ranks.h knows of it: the message waits for the name.
 */
#include "team.h"
#include "file.h"
#include "ranks.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATIENCE = 300 /* seconds to meet in */ };

typedef struct bucket {
    int from, to; /* pieces */
    int left;     /* of them, how many are not yet final in this step */
} bucket;

typedef struct place {
    const ma_tensor *leaf;
    int bucket;
} place;

struct ma_team {
    ma_ranks *ranks; /* NULL: a dry run */
    int rank, count;
    ma_device *dev;
    ma_ctx *ctx;
    ma_share how;              /* the gradients are summed */
    ma_piece *grads, *weights; /* of the leaves, bucket by bucket */
    place *places;             /* by address */
    int n;
    bucket *buckets;
    int nbuckets, shared; /* shared: so many have been, in this step */
    double waited;        /* seconds, for gradients */
    ma_err err;           /* of what was shared within the backward pass */
};

int ma_team_rank(const ma_team *t) {
    return t ? t->rank : 0;
}

int ma_team_count(const ma_team *t) {
    return t ? t->count : 1;
}

int ma_team_whole(const ma_team *t, ma_err *e) {
    return t && t->ranks ? ma_ranks_whole(t->ranks, e) : 0;
}

/* ---- numbers ---- */

int ma_team_sum(ma_team *t, double *x, int n, ma_err *e) {
    return t && t->ranks ? ma_ranks_sum_f64(t->ranks, x, (size_t)n, e) : 0;
}

int ma_team_tell(ma_team *t, void *data, size_t bytes, ma_err *e) {
    return t && t->ranks ? ma_ranks_tell(t->ranks, data, bytes, e) : 0;
}

int ma_team_bring(ma_team *t, int from, void *data, size_t bytes, ma_err *e) {
    return t && t->ranks ? ma_ranks_bring(t->ranks, from, data, bytes, e) : 0;
}

/* FNV-1a, cut to what a double holds. */
static double hash_of(const char *text) {
    uint64_t h = 0xcbf29ce484222325;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001b3;
    return (double)(h >> 12);
}

/* A text's hash of every rank. NULL: e says why. Freed with free(). */
static double *all_hashes(ma_team *t, const char *text, ma_err *e) {
    double *h = calloc((size_t)t->count, sizeof *h);
    if (!h) {
        ma_fail(e, MA_MEMORY, "ranks: out of memory");
        return NULL;
    }
    h[t->rank] = hash_of(text);
    if (!ma_team_sum(t, h, t->count, e)) return h;
    free(h);
    return NULL;
}

int ma_team_alike(ma_team *t, const char *what, const char *text, ma_err *e) {
    if (!t || !t->ranks) return 0;
    double *h = all_hashes(t, text, e);
    int rc = h ? 0 : -1;
    for (int k = 1; k < t->count && !rc; k++)
        if (h[k] != h[0]) rc = ma_fail(e, MA_USAGE, "rank %d has other %s than rank 0", k, what);
    free(h);
    return rc;
}

int ma_team_agree(ma_team *t, ma_err *e) {
    ma_err first = *e, why = {0};
    double *bad = t && t->ranks ? calloc((size_t)t->count, sizeof *bad) : NULL;
    int who = 0;
    if (!bad) return e->reason == MA_OK ? 0 : -1;
    bad[t->rank] = e->reason != MA_OK;
    int rc = ma_team_sum(t, bad, t->count, &why);
    while (!rc && who < t->count && !bad[who]) who++;
    if (!rc && who < t->count) {
        if (!t->rank || t->rank == who) rc = ma_team_bring(t, who, &first, sizeof first, &why);
        if (!rc) rc = ma_team_tell(t, &first, sizeof first, &why);
        if (!rc && who != t->rank) ma_fail(&why, first.reason, "rank %d: %.460s", who, first.text);
        if (!rc) rc = who == t->rank ? -1 : ma_fail(e, why.reason, "%s", why.text);
    } else if (rc) {
        ma_fail(e, why.reason, "%s", why.text);
    }
    free(bad);
    return rc;
}

/* ---- opening and closing ---- */

/* Where -j does not say, the ranks of a host share its cores. */
static int share_cores(ma_team *t, const ma_cli *cli, ma_err *e) {
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    double *h = all_hashes(t, name, e);
    int here = 0;
    for (int k = 0; h && k < t->count; k++) here += h[k] == h[t->rank];
    if (h && !cli->common.threads) omp_set_num_threads(here < omp_get_num_procs() ? omp_get_num_procs() / here : 1);
    free(h);
    return h ? 0 : -1;
}

static int meet(ma_team *t, const ma_cli *cli, const char *folder, ma_err *e) {
    char *meeting = ma_format("%s/.ranks", folder);
    int rc = meeting ? ma_make_dirs(folder, e) : ma_fail(e, MA_MEMORY, "ranks: out of memory");
    if (!rc && !(t->ranks = ma_ranks_open(meeting, PATIENCE, e))) rc = -1;
    if (!rc) rc = share_cores(t, cli, e);
    free(meeting);
    return rc;
}

int ma_team_open(ma_team **out, ma_cli *cli, const char *folder, ma_err *e) {
    int rank, count, local;
    *out = NULL;
    if (ma_ranks_environment(&rank, &count, &local, e)) return -1;
    if (count == 1) {
        const int tasks = ma_ranks_allotted();
        if (tasks > 1) ma_say(cli, 1, "alone, though Slurm has room for %d tasks: srun would start them", tasks);
        return 0;
    }
    cli->rank = rank;
    cli->ranks = count;
    cli->local = local;
    ma_team *t = *out = calloc(1, sizeof *t);
    if (!t) return ma_fail(e, MA_MEMORY, "ranks: out of memory");
    t->rank = rank;
    t->count = count;
    return cli->common.dry_run ? 0 : meet(t, cli, folder, e);
}

/* A rank is gone; the watcher's thread. What the device waits for will not come. */
static void lost(void *self) {
    ma_team *t = self;
    t->dev->team->abort(t->dev);
}

static int failed(ma_team *t, const char *what, ma_err *e) {
    for (int k = 0; k < 40 && !ma_ranks_lost(t->ranks); k++) usleep(50000);
    if (ma_team_whole(t, e)) return -1;
    const char *why = t->dev->failure && *t->dev->failure ? t->dev->failure : "no reason given";
    return ma_fail(e, MA_DEVICE, "%s: %s: %s", t->dev->name, what, why);
}

static int join_devices(ma_team *t, ma_err *e) {
    const ma_team_ops *ops = t->dev->team;
    char id[128] = "";
    if (ops->open(t->dev)) return ma_fail(e, MA_DEVICE, "%s: several ranks: %s", t->dev->name, t->dev->failure);
    ma_ranks_watch(t->ranks, lost, t);
    if (!t->rank && ops->id(t->dev, id)) return failed(t, "joining the ranks", e);
    if (ma_team_tell(t, id, sizeof id, e)) return -1;
    return ops->join(t->dev, id, t->rank, t->count) ? failed(t, "joining the ranks", e) : 0;
}

int ma_team_join(ma_team *t, ma_ctx *c, ma_err *e) {
    ma_device *dev = ma_ctx_device(c);
    if (!t) return 0;
    if (dev->team) dev->reserve += dev->team->reserve;
    if (dev->plan) return 0;
    t->ctx = c;
    t->dev = dev;
    char text[64];
    snprintf(text, sizeof text, "%s %s", t->dev->name, ma_type_name(ma_get_type(c)));
    if (ma_team_alike(t, "device or type", text, e)) return -1;
    if (!t->dev->team && strcmp(t->dev->name, "cpu"))
        return ma_fail(e, MA_DEVICE, "%s: several ranks need NCCL, without which this build was made (nccl.h)",
                       t->dev->name);
    return t->dev->team ? join_devices(t, e) : 0;
}

void ma_team_close(ma_team *t, ma_err *e) {
    double here = 1;
    if (!t) return;
    if (t->ctx) ma_on_final(t->ctx, NULL, NULL);
    const ma_team_ops *ops = t->dev ? t->dev->team : NULL;
    if (e->reason == MA_OK && ops && ops->finish(t->dev)) failed(t, "sharing among the ranks", e);
    if (e->reason == MA_OK) ma_team_sum(t, &here, 1, e);
    if (e->reason != MA_OK && ops) ops->abort(t->dev);
    if (ops) ma_ranks_watch(t->ranks, NULL, NULL);
    ma_ranks_close(t->ranks, e->reason == MA_OK);
    free(t->grads);
    free(t->weights);
    free(t->places);
    free(t->buckets);
    free(t);
}

/* ---- buckets ---- */

static int by_leaf(const void *a, const void *b) {
    const place *x = a, *y = b;
    return (x->leaf > y->leaf) - (x->leaf < y->leaf);
}

int ma_team_leaves(ma_team *t, ma_tensor *const *leaf, const int *owner, int n, ma_err *e) {
    if (!t || !n) return 0;
    const size_t most = (size_t)n;
    t->how = owner ? MA_SUM_OWNER : MA_SUM_ALL;
    t->grads = calloc(most, sizeof *t->grads);
    t->weights = calloc(most, sizeof *t->weights);
    t->places = calloc(most, sizeof *t->places);
    t->buckets = calloc(most, sizeof *t->buckets);
    if (!t->grads || !t->weights || !t->places || !t->buckets) return ma_fail(e, MA_MEMORY, "ranks: out of memory");
    const size_t full = t->dev->team ? t->dev->team->bucket : SIZE_MAX;
    size_t bytes = full;
    for (int k = 0; k < n; k++) {
        const ma_tensor *x = leaf[n - 1 - k];
        const int whose = owner ? owner[n - 1 - k] : 0;
        if (bytes >= full) {
            t->buckets[t->nbuckets++] = (bucket){.from = k};
            bytes = 0;
        }
        bucket *b = &t->buckets[t->nbuckets - 1];
        b->to = k + 1;
        b->left++;
        t->grads[k] = (ma_piece){x->grad->data, (size_t)ma_count(x), whose};
        t->weights[k] = (ma_piece){x->data, ma_bytes(x), whose};
        t->places[k] = (place){x, t->nbuckets - 1};
        bytes += ma_bytes(x->grad);
    }
    t->n = n;
    qsort(t->places, most, sizeof *t->places, by_leaf);
    return 0;
}

static void share(ma_team *t, ma_share how, const ma_piece *pieces, const bucket *b) {
    if (t->err.reason == MA_OK && t->dev->team->share(t->dev, how, pieces + b->from, b->to - b->from))
        failed(t, "sharing among the ranks", &t->err);
}

/* All buckets whose turn it is and that are final, or all. */
static void share_gradients(ma_team *t, bool all) {
    while (t->shared < t->nbuckets && (all || !t->buckets[t->shared].left))
        share(t, t->how, t->grads, &t->buckets[t->shared++]);
}

static void final(void *self, ma_tensor *leaf) {
    ma_team *t = self;
    const place wanted = {.leaf = leaf};
    const place *p = bsearch(&wanted, t->places, (size_t)t->n, sizeof wanted, by_leaf);
    if (!p) return;
    t->buckets[p->bucket].left--;
    share_gradients(t, false);
}

void ma_team_behind(ma_team *t) {
    if (t && t->ranks && t->dev->team) ma_on_final(t->ctx, final, t);
}

/* What was queued since is waited for by what is queued from here on; the first error of all that. */
static int settle(ma_team *t, ma_err *e) {
    if (t->err.reason == MA_OK && t->dev->team->wait(t->dev)) failed(t, "sharing among the ranks", &t->err);
    return t->err.reason == MA_OK ? 0 : ma_fail(e, t->err.reason, "%s", t->err.text);
}

static int sum_gradients(ma_team *t, ma_err *e) {
    int rc = 0;
    if (!t->dev->team) {
        for (int k = 0; k < t->n && !rc; k++) rc = ma_ranks_sum_f32(t->ranks, t->grads[k].data, t->grads[k].count, e);
        return rc;
    }
    ma_on_final(t->ctx, NULL, NULL);
    share_gradients(t, true);
    t->shared = 0;
    for (int k = 0; k < t->nbuckets; k++) t->buckets[k].left = t->buckets[k].to - t->buckets[k].from;
    if (settle(t, e)) return -1;
    /* the optimiser waits for the gradients' norm at once, so to wait here costs nothing, and tells how long it takes
     */
    return t->dev->team->finish(t->dev) ? failed(t, "sharing among the ranks", e) : 0;
}

int ma_team_gradients(ma_team *t, ma_err *e) {
    if (!t || !t->ranks) return 0;
    if (ma_settle_grads(t->ctx)) return ma_ctx_failed(t->ctx, e);
    const double start = ma_now();
    const int rc = sum_gradients(t, e);
    t->waited += ma_now() - start;
    return rc;
}

double ma_team_waited(ma_team *t) {
    const double w = t ? t->waited : 0;
    if (t) t->waited = 0;
    return w;
}

/* On the CPU all is fp32, and what does not belong to this rank counts as zero. */
static int spread_on_host(ma_team *t, ma_err *e) {
    int rc = 0;
    for (int k = 0; k < t->n && !rc; k++) {
        const ma_piece *w = &t->weights[k];
        if (w->owner != t->rank) memset(w->data, 0, w->count);
        rc = ma_ranks_sum_f32(t->ranks, w->data, w->count / sizeof(float), e);
    }
    return rc;
}

int ma_team_spread(ma_team *t, ma_err *e) {
    if (!t || !t->ranks) return 0;
    if (!t->dev->team) return spread_on_host(t, e);
    for (int k = 0; k < t->nbuckets; k++) share(t, MA_SPREAD, t->weights, &t->buckets[k]);
    return settle(t, e);
}
