/* optim: AdamW. The arithmetic is the device's (kernels' adam and squares); here are the state, the schedule, clipping.
 *
 * The formula is torch.optim.AdamW's: p -= lr·decay·p; m, v moments; p -= lr·(m/(1-β1^t)) / (sqrt(v/(1-β2^t)) + eps).
 * Clipping is torch.nn.utils.clip_grad_norm_'s: gradients times min(1, clip/(norm + 1e-6)).
 * Sharded over a team (Rajbhandari et al. 2020, ZeRO stages 1 and 2), a parameter's state is with one rank, its owner,
 * which alone gets the sum of the gradients, updates, and gives its values to the others.
 * Limits: state lives, on the device or the host, as long as the context. Every leaf is updated in every step, also
 * one whose gradient is zero. State is saved in our layout, not in the published one. Traps: vectors (biases, norms)
 * get no decay; a step that fails changes nothing, so the gradients are still there (of a team: summed). */
#include "optim.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights_private.h"

/* What is kept for a leaf beside the leaf itself. */
enum { M, V, MASTER, KINDS };
static const char *const PREFIX[KINDS] = {"m.", "v.", "master."};

typedef struct state {
    const char *name; /* the parameter's; the set owns it */
    ma_tensor *leaf;
    double decay;
    int owner;              /* the rank that has kept and slot */
    ma_tensor *kept[KINDS]; /* kept[MASTER] is NULL where the leaf is fp32 */
    int slot;               /* of slots; -1: another's */
} state;

struct ma_optim {
    ma_ctx *ctx;
    ma_optim_opts opts;
    ma_slot *slots; /* of what is updated here */
    state *states;  /* of all */
    int n, nslots;
    int64_t steps;
    double scale; /* of the gradients */
};

/* ---- making ---- */

static bool is_far(const ma_optim *o) {
    return o->opts.state == MA_STATE_HOST && ma_ctx_device(o->ctx)->alloc_host;
}

static ma_type type_of(const ma_optim *o, int kind) {
    return kind != MASTER && o->opts.state == MA_STATE_BF16 ? MA_BF16 : MA_F32;
}

static ma_tensor *new_moment(const ma_optim *o, const ma_tensor *like, int kind) {
    ma_ctx *c = o->ctx;
    ma_tensor *t = ma_keep_state(c, type_of(o, kind), is_far(o), like->nd, like->n);
    ma_device *d = ma_ctx_device(c);
    if (!t || d->plan) return t;
    if (!d->zero(d, t->data, ma_bytes(t))) return t;
    ma_fail(ma_ctx_err(c), MA_DEVICE, "%s: optimiser state could not be cleared", d->name);
    return NULL;
}

static ma_tensor *new_master(const ma_optim *o, const ma_tensor *leaf) {
    ma_ctx *c = o->ctx;
    ma_tensor *t = ma_keep_state(c, MA_F32, is_far(o), leaf->nd, leaf->n);
    ma_device *d = ma_ctx_device(c);
    if (!t || d->plan) return t;
    if (!d->cast(d, t->data, MA_F32, leaf->data, leaf->type, ma_count(leaf))) return t;
    ma_fail(ma_ctx_err(c), MA_DEVICE, "%s: master weights could not be made", d->name);
    return NULL;
}

static bool kept_for(const state *s, int kind) {
    return kind != MASTER || s->leaf->type != MA_F32;
}

/* The state of a leaf that is updated here. */
static int make_slot(ma_optim *o, state *s) {
    ma_tensor *t = s->leaf;
    const bool half = kept_for(s, MASTER);
    s->kept[M] = new_moment(o, t, M);
    s->kept[V] = new_moment(o, t, V);
    if (half) s->kept[MASTER] = new_master(o, t);
    if (!s->kept[M] || !s->kept[V] || (half && !s->kept[MASTER])) return -1;
    s->slot = o->nslots;
    o->slots[o->nslots++] = (ma_slot){.data = t->data,
                                      .type = t->type,
                                      .master = half ? s->kept[MASTER]->data : NULL,
                                      .grad = t->grad->data,
                                      .m = s->kept[M]->data,
                                      .v = s->kept[V]->data,
                                      .count = ma_count(t),
                                      .number = s - o->states,
                                      .decay = s->decay};
    return 0;
}

static int by_size(const void *a, const void *b) {
    const state *const *x = a, *const *y = b;
    const int64_t n = ma_count((*x)->leaf), m = ma_count((*y)->leaf);
    return n != m ? (n < m) - (n > m) : (*x > *y) - (*x < *y);
}

/* The largest first, each to the rank that has least. */
static int choose_owners(ma_optim *o) {
    const int ranks = ma_team_count(o->opts.team);
    state **order = ma_alloc((size_t)o->n + 1, sizeof(state *));
    int64_t *load = ma_alloc((size_t)ranks, sizeof *load);
    for (int i = 0; order && i < o->n; i++) order[i] = &o->states[i];
    if (order && load) qsort(order, (size_t)o->n, sizeof(state *), by_size);
    for (int i = 0; order && load && i < o->n; i++) {
        int least = 0;
        for (int k = 1; k < ranks; k++)
            if (load[k] < load[least]) least = k;
        order[i]->owner = least;
        load[least] += ma_count(order[i]->leaf);
    }
    const bool good = order && load;
    ma_release(order);
    ma_release(load);
    return good ? 0 : ma_fail(ma_ctx_err(o->ctx), MA_MEMORY, "optimiser: out of memory");
}

static bool sharded(const ma_optim *o) {
    return o->opts.shard && ma_team_count(o->opts.team) > 1;
}

/* Tells the team what it shares. */
static int share_leaves(ma_optim *o) {
    ma_tensor **leaf = ma_alloc((size_t)o->n + 1, sizeof(ma_tensor *));
    int *owner = ma_alloc((size_t)o->n + 1, sizeof *owner);
    ma_err *err = ma_ctx_err(o->ctx);
    int rc = leaf && owner ? 0 : ma_fail(err, MA_MEMORY, "optimiser: out of memory");
    for (int i = 0; i < o->n && !rc; i++) {
        leaf[i] = o->states[i].leaf;
        owner[i] = o->states[i].owner;
    }
    if (!rc) rc = ma_team_leaves(o->opts.team, leaf, sharded(o) ? owner : NULL, o->n, err);
    ma_release(leaf);
    ma_release(owner);
    return rc;
}

ma_optim *ma_optim_new(ma_ctx *ctx, ma_params *const *sets, int n, const ma_optim_opts *opts) {
    if (ma_failed(ctx)) return NULL;
    size_t most = 1;
    for (int i = 0; i < n; i++) most += (size_t)sets[i]->n;
    ma_optim *o = calloc(1, sizeof *o);
    if (o) *o = (ma_optim){.ctx = ctx, .opts = *opts, .scale = 1};
    if (o) o->slots = ma_alloc(most, sizeof *o->slots);
    if (o) o->states = ma_alloc(most, sizeof *o->states);
    int rc = o && o->slots && o->states ? 0 : ma_fail(ma_ctx_err(ctx), MA_MEMORY, "optimiser: out of memory");
    for (int i = 0; i < n && !rc; i++)
        for (int k = 0; k < sets[i]->n; k++) {
            const ma_param_t *p = &sets[i]->at[k];
            if (p->t->leaf) o->states[o->n++] = (state){p->name, p->t, p->decay ? opts->decay : 0, .slot = -1};
        }
    if (!rc && sharded(o)) rc = choose_owners(o);
    for (int i = 0; i < (o ? o->n : 0) && !rc; i++)
        if (!sharded(o) || o->states[i].owner == ma_team_rank(opts->team)) rc = make_slot(o, &o->states[i]);
    if (!rc && !ma_ctx_device(ctx)->plan) rc = share_leaves(o);
    if (!rc) return o;
    ma_optim_free(o);
    return NULL;
}

void ma_optim_free(ma_optim *o) {
    if (!o) return;
    ma_release(o->slots);
    ma_release(o->states);
    free(o);
}

/* ---- a step ---- */

double ma_optim_lr(const ma_optim *o, int64_t step) {
    const ma_optim_opts *a = &o->opts;
    if (step < a->warmup) return a->lr * (double)step / (double)a->warmup;
    if (a->total <= 0) return a->lr;
    if (step >= a->total) return 0;
    double done = (double)(step - a->warmup) / (double)(a->total - a->warmup);
    return a->lr * 0.5 * (1 + cos(acos(-1.0) * done));
}

int64_t ma_optim_steps(const ma_optim *o) {
    return o->steps;
}

static int device_failed(const ma_optim *o, const char *what, ma_err *err) {
    return ma_fail(err, MA_DEVICE, "%s: the optimiser's %s failed", ma_ctx_device(o->ctx)->name, what);
}

/* Names the first leaf whose gradient is not finite; sharded, of those that are updated here. */
static int blame(const ma_optim *o, ma_err *err) {
    ma_device *d = ma_ctx_device(o->ctx);
    for (int i = 0; i < o->n; i++) {
        double sum = 0;
        const int slot = o->states[i].slot;
        if (slot >= 0 && d->squares(d, &o->slots[slot], 1, &sum)) return device_failed(o, "norm", err);
        if (!isfinite(sum))
            return ma_fail(err, MA_NOTFINITE, "step %lld: the gradient of %s is not finite", (long long)o->steps + 1,
                           o->states[i].name);
    }
    return ma_fail(err, MA_NOTFINITE, "step %lld: the gradient's norm is not finite", (long long)o->steps + 1);
}

void ma_optim_scale(ma_optim *o, double factor) {
    o->scale = factor;
}

/* Of all gradients, summed over the team. The device has been waited for when it is known. */
static int global_norm(ma_optim *o, double *norm, ma_err *err) {
    ma_device *d = ma_ctx_device(o->ctx);
    double sum = 0;
    if (ma_settle_grads(o->ctx)) return ma_ctx_failed(o->ctx, err);
    if (ma_team_gradients(o->opts.team, err)) return -1;
    const bool failed = !d->plan && d->squares(d, o->slots, o->nslots, &sum);
    if (ma_team_whole(o->opts.team, err)) return -1;
    if (failed) return device_failed(o, "norm", err);
    if (sharded(o) && ma_team_sum(o->opts.team, &sum, 1, err)) return -1;
    *norm = o->scale * sqrt(sum);
    return 0;
}

int ma_optim_step(ma_optim *o, double *norm, ma_err *err) {
    ma_device *d = ma_ctx_device(o->ctx);
    const ma_optim_opts *a = &o->opts;
    if (ma_ctx_failed(o->ctx, err) || global_norm(o, norm, err)) return -1;
    if (!isfinite(*norm)) return blame(o, err);
    double clip = a->clip > 0 ? fmin(1, a->clip / (*norm + 1e-6)) : 1;
    int64_t step = o->steps + 1;
    ma_adam how = {ma_optim_lr(o, step), a->beta1, a->beta2, a->eps, clip * o->scale, step, type_of(o, M), is_far(o)};
    if (!d->plan && d->adam(d, o->slots, o->nslots, &how)) return device_failed(o, "update", err);
    if (sharded(o) && ma_team_spread(a->team, err)) return -1;
    o->steps = step;
    ma_zero_grads(o->ctx);
    return ma_ctx_failed(o->ctx, err);
}

/* ---- saving and loading ---- */

/* A tensor of the whole state, whether it is here or not: its number, of which state and kind follow. */
static const state *state_of(const ma_optim *o, int tensor) {
    return &o->states[tensor / KINDS];
}

/* Calls f for every tensor of the state with the name that it has in the file. */
static int each(ma_optim *o, int (*f)(void *user, const char *name, int tensor), void *user, ma_err *err) {
    int rc = 0;
    for (int i = 0; i < o->n * KINDS && !rc; i++) {
        const state *s = state_of(o, i);
        if (!kept_for(s, i % KINDS)) continue;
        char *name = ma_format("%s%s", PREFIX[i % KINDS], s->name);
        rc = name ? f(user, name, i) : ma_fail(err, MA_MEMORY, "%s: out of memory", s->name);
        free(name);
    }
    return rc;
}

static size_t host_bytes(const ma_optim *o, int tensor) {
    return (size_t)ma_count(state_of(o, tensor)->leaf) * ma_type_size(type_of(o, tensor % KINDS));
}

/* Its values as they are, to be released. NULL: e says why. */
static void *host_values(ma_optim *o, int tensor, bool here, ma_err *e) {
    const state *s = state_of(o, tensor);
    void *host = ma_alloc(host_bytes(o, tensor), 1);
    if (host && (!here || !ma_get_as(o->ctx, s->kept[tensor % KINDS], type_of(o, tensor % KINDS), host))) return host;
    if (!host)
        ma_fail(e, MA_MEMORY, "%s: out of memory", s->name);
    else if (!ma_ctx_failed(o->ctx, e))
        ma_fail(e, MA_DEVICE, "%s: cannot be read", s->name);
    ma_release(host);
    return NULL;
}

enum { NO_MORE = -1 }; /* asked for by rank 0 when it has all */

/* Of a sharded state rank 0 asks all for what it wants next; its owner answers. */
static void *bring_values(ma_optim *o, int tensor, ma_err *e) {
    const state *s = state_of(o, tensor);
    if (!sharded(o)) return host_values(o, tensor, true, e);
    if (ma_team_tell(o->opts.team, &tensor, sizeof tensor, e)) return NULL;
    void *host = host_values(o, tensor, s->owner == 0, e);
    if (host && !ma_team_bring(o->opts.team, s->owner, host, host_bytes(o, tensor), e)) return host;
    ma_release(host);
    return NULL;
}

static int answer(ma_optim *o, ma_err *e) {
    const int rank = ma_team_rank(o->opts.team);
    int tensor, rc = 0;
    while (!rc && !(rc = ma_team_tell(o->opts.team, &tensor, sizeof tensor, e)) && tensor != NO_MORE) {
        const state *s = state_of(o, tensor);
        if (s->owner != rank) continue;
        void *host = host_values(o, tensor, true, e);
        rc = host ? ma_team_bring(o->opts.team, rank, host, host_bytes(o, tensor), e) : -1;
        ma_release(host);
    }
    return rc;
}

/* The list of what a file holds, and one tensor of it on the host. */
typedef struct saver {
    ma_optim *o;
    ma_named *list;
    int *tensors;
    int n;
    void *host;
    ma_err *err;
} saver;

static int list_one(void *user, const char *name, int tensor) {
    saver *s = user;
    const ma_tensor *t = state_of(s->o, tensor)->leaf;
    ma_named *a = &s->list[s->n];
    *a = (ma_named){.name = ma_strdup(name), .a = {.type = type_of(s->o, tensor % KINDS), .nd = t->nd}};
    memcpy(a->a.n, t->n, (size_t)t->nd * sizeof *t->n);
    s->tensors[s->n] = tensor;
    return a->name ? (s->n++, 0) : ma_fail(s->err, MA_MEMORY, "%s: out of memory", name);
}

static const void *fill(void *user, int i, ma_err *err) {
    saver *s = user;
    ma_release(s->host);
    return s->host = bring_values(s->o, s->tensors[i], err);
}

static int write_state(ma_optim *o, const char *path, ma_err *err) {
    char step[24];
    snprintf(step, sizeof step, "%lld", (long long)o->steps);
    size_t most = (size_t)o->n * KINDS + 1;
    saver s = {.o = o, .err = err};
    s.list = ma_alloc(most, sizeof *s.list);
    s.tensors = ma_alloc(most, sizeof *s.tensors);
    int rc = s.list && s.tensors ? each(o, list_one, &s, err) : ma_fail(err, MA_MEMORY, "%s: out of memory", path);
    if (!rc) rc = ma_safetensors_write(path, s.list, s.n, (const char *const[]){"step", step, NULL}, fill, &s, err);
    for (int i = 0; i < s.n; i++) free((char *)s.list[i].name);
    ma_release(s.host);
    ma_release(s.list);
    ma_release(s.tensors);
    return rc;
}

int ma_optim_save(ma_optim *o, const char *path, ma_err *err) {
    int no_more = NO_MORE;
    if (ma_team_rank(o->opts.team)) return sharded(o) ? answer(o, err) : 0;
    int rc = path ? write_state(o, path, err) : 0;
    if (sharded(o) && ma_team_tell(o->opts.team, &no_more, sizeof no_more, err)) rc = -1;
    return rc;
}

typedef struct loader {
    ma_optim *o;
    const ma_weights *w;
    bool put; /* false: only check */
    int n;
    ma_err *err;
} loader;

static int load_one(void *user, const char *name, int tensor) {
    loader *l = user;
    const state *s = state_of(l->o, tensor);
    const ma_tensor *t = s->leaf;
    const char *path = ma_weights_path(l->w);
    const ma_entry *e = ma_weights_find(l->w, name);
    char is[160], must[160];
    l->n++;
    if (!e) return ma_fail(l->err, MA_MISSING, "%s: %s is missing", path, name);
    if (e->nd != t->nd || memcmp(e->n, t->n, (size_t)t->nd * sizeof *t->n))
        return ma_fail(l->err, MA_SHAPE, "%s: %s is %s, must be %s", path, name, ma_shape_text(is, e->nd, e->n),
                       ma_shape_text(must, t->nd, t->n));
    if (!l->put || s->slot < 0) return 0;
    float *v = ma_alloc((size_t)ma_count(t), sizeof *v);
    ma_err why = {0};
    int rc = v ? ma_entry_read(e, v, &why) : ma_fail(&why, MA_MEMORY, "%s: out of memory", name);
    if (!rc && ma_put(l->o->ctx, s->kept[tensor % KINDS], v)) rc = ma_ctx_failed(l->o->ctx, &why);
    ma_release(v);
    return rc ? ma_fail(l->err, why.reason, "%s: %s", path, why.text) : 0;
}

/* The step count in the metadata: digits alone. -1: not there. */
static int64_t steps_of(const ma_weights *w) {
    const char *s = ma_weights_meta(w, "step");
    if (!s || !*s || strspn(s, "0123456789") != strlen(s) || strlen(s) > 18) return -1;
    return strtoll(s, NULL, 10);
}

int ma_optim_load(ma_optim *o, const char *path, ma_err *err) {
    ma_weights *w = ma_weights_open(path, err);
    if (!w) return -1;
    int64_t steps = steps_of(w);
    loader l = {.o = o, .w = w, .err = err};
    int rc = steps < 0 ? ma_fail(err, MA_CORRUPT, "%s: no step count: not an optimiser's state", path) : 0;
    if (!rc) rc = each(o, load_one, &l, err);
    if (!rc && l.n != ma_weights_count(w))
        rc = ma_fail(err, MA_UNSUPPORTED, "%s: %d tensors, must be %d", path, ma_weights_count(w), l.n);
    l.put = true;
    if (!rc && !ma_ctx_device(o->ctx)->plan) rc = each(o, load_one, &l, err);
    if (!rc) o->steps = steps;
    ma_weights_close(w);
    return rc;
}
