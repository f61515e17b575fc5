/* optim: AdamW. The arithmetic is the device's (kernels' adam and squares); here are the state, the schedule, clipping.
 *
 * The formula is torch.optim.AdamW's: p -= lr·decay·p; m, v moments; p -= lr·(m/(1-β1^t)) / (sqrt(v/(1-β2^t)) + eps).
 * Clipping is torch.nn.utils.clip_grad_norm_'s: gradients times min(1, clip/(norm + 1e-6)).
 * Limits: state lives on the device as long as the context. Every leaf is updated in every step, also one whose
 * gradient is zero. State is saved in our layout, not in the published one. Traps: vectors (biases, norms) get no
 * decay; a step that fails changes nothing, so the gradients are still there. */
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
    const char *name;              /* the parameter's; the set owns it */
    ma_tensor *leaf, *kept[KINDS]; /* kept[MASTER] is NULL where the leaf is fp32 */
} state;

struct ma_optim {
    ma_ctx *ctx;
    ma_optim_opts opts;
    ma_slot *slots;
    state *states;
    int n;
    int64_t steps;
};

/* ---- making ---- */

static ma_tensor *new_state(ma_ctx *c, const ma_tensor *like) {
    ma_tensor *t = ma_keep(c, MA_F32, like->nd, like->n);
    ma_device *d = ma_ctx_device(c);
    if (!t || d->plan) return t;
    if (!d->zero(d, t->data, ma_bytes(t))) return t;
    ma_fail(ma_ctx_err(c), MA_DEVICE, "%s: optimiser state could not be cleared", d->name);
    return NULL;
}

static ma_tensor *new_master(ma_ctx *c, const ma_tensor *leaf) {
    ma_tensor *t = ma_keep(c, MA_F32, leaf->nd, leaf->n);
    ma_device *d = ma_ctx_device(c);
    if (!t || d->plan) return t;
    if (!d->cast(d, t->data, MA_F32, leaf->data, leaf->type, ma_count(leaf))) return t;
    ma_fail(ma_ctx_err(c), MA_DEVICE, "%s: master weights could not be made", d->name);
    return NULL;
}

static int add_leaf(ma_optim *o, const ma_param_t *p) {
    ma_tensor *t = p->t;
    bool half = t->type != MA_F32;
    state s = {.name = p->name, .leaf = t, .kept = {[M] = new_state(o->ctx, t), [V] = new_state(o->ctx, t)}};
    if (half) s.kept[MASTER] = new_master(o->ctx, t);
    if (!s.kept[M] || !s.kept[V] || (half && !s.kept[MASTER])) return -1;
    o->slots[o->n] = (ma_slot){.data = t->data,
                               .type = t->type,
                               .master = half ? s.kept[MASTER]->data : NULL,
                               .grad = t->grad->data,
                               .m = s.kept[M]->data,
                               .v = s.kept[V]->data,
                               .count = ma_count(t),
                               .decay = p->decay ? o->opts.decay : 0};
    o->states[o->n++] = s;
    return 0;
}

ma_optim *ma_optim_new(ma_ctx *ctx, ma_params *const *sets, int n, const ma_optim_opts *opts) {
    if (ma_failed(ctx)) return NULL;
    size_t most = 1;
    for (int i = 0; i < n; i++) most += (size_t)sets[i]->n;
    ma_optim *o = calloc(1, sizeof *o);
    if (o) *o = (ma_optim){.ctx = ctx, .opts = *opts};
    if (o) o->slots = ma_alloc(most, sizeof *o->slots);
    if (o) o->states = ma_alloc(most, sizeof *o->states);
    int rc = o && o->slots && o->states ? 0 : ma_fail(ma_ctx_err(ctx), MA_MEMORY, "optimiser: out of memory");
    for (int i = 0; i < n; i++)
        for (int k = 0; k < sets[i]->n && !rc; k++)
            if (sets[i]->at[k].t->leaf) rc = add_leaf(o, &sets[i]->at[k]);
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

/* Names the first leaf whose gradient is not finite. */
static int blame(const ma_optim *o, ma_err *err) {
    ma_device *d = ma_ctx_device(o->ctx);
    for (int i = 0; i < o->n; i++) {
        double sum = 0;
        if (d->squares(d, &o->slots[i], 1, &sum)) return device_failed(o, "norm", err);
        if (!isfinite(sum))
            return ma_fail(err, MA_NOTFINITE, "step %lld: the gradient of %s is not finite", (long long)o->steps + 1,
                           o->states[i].name);
    }
    return ma_fail(err, MA_NOTFINITE, "step %lld: the gradient's norm is not finite", (long long)o->steps + 1);
}

int ma_optim_step(ma_optim *o, double *norm, ma_err *err) {
    ma_device *d = ma_ctx_device(o->ctx);
    const ma_optim_opts *a = &o->opts;
    double sum = 0;
    if (ma_ctx_failed(o->ctx, err)) return -1;
    if (!d->plan && d->squares(d, o->slots, o->n, &sum)) return device_failed(o, "norm", err);
    *norm = sqrt(sum);
    if (!isfinite(*norm)) return blame(o, err);
    double clip = a->clip > 0 ? fmin(1, a->clip / (*norm + 1e-6)) : 1;
    int64_t step = o->steps + 1;
    ma_adam how = {ma_optim_lr(o, step), a->beta1, a->beta2, a->eps, clip, step};
    if (!d->plan && d->adam(d, o->slots, o->n, &how)) return device_failed(o, "update", err);
    o->steps = step;
    ma_zero_grads(o->ctx);
    return ma_ctx_failed(o->ctx, err);
}

/* ---- saving and loading ---- */

/* Calls f for every tensor of the state with the name that it has in the file. */
static int each(ma_optim *o, int (*f)(void *user, const char *name, ma_tensor *), void *user, ma_err *err) {
    int rc = 0;
    for (int i = 0; i < o->n * KINDS && !rc; i++) {
        const state *s = &o->states[i / KINDS];
        if (!s->kept[i % KINDS]) continue;
        char *name = ma_format("%s%s", PREFIX[i % KINDS], s->name);
        rc = name ? f(user, name, s->kept[i % KINDS]) : ma_fail(err, MA_MEMORY, "%s: out of memory", s->name);
        free(name);
    }
    return rc;
}

/* The list of what a file holds, and one tensor of it on the host. */
typedef struct saver {
    ma_optim *o;
    ma_named *list;
    ma_tensor **tensors;
    int n;
    float *host;
    ma_err *err;
} saver;

static int list_one(void *user, const char *name, ma_tensor *t) {
    saver *s = user;
    ma_named *a = &s->list[s->n];
    *a = (ma_named){.name = ma_strdup(name), .a = {.type = MA_F32, .nd = t->nd}};
    memcpy(a->a.n, t->n, (size_t)t->nd * sizeof *t->n);
    s->tensors[s->n] = t;
    return a->name ? (s->n++, 0) : ma_fail(s->err, MA_MEMORY, "%s: out of memory", name);
}

static const void *fill(void *user, int i, ma_err *err) {
    saver *s = user;
    const ma_err *why = ma_ctx_err(s->o->ctx);
    ma_release(s->host);
    s->host = ma_alloc((size_t)ma_count(s->tensors[i]), sizeof *s->host);
    if (!s->host)
        ma_fail(err, MA_MEMORY, "%s: out of memory", s->list[i].name);
    else if (!ma_get(s->o->ctx, s->tensors[i], s->host))
        return s->host;
    else
        ma_fail(err, why->reason, "%s: %s", s->list[i].name, why->text);
    return NULL;
}

int ma_optim_save(ma_optim *o, const char *path, ma_err *err) {
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

typedef struct loader {
    ma_optim *o;
    const ma_weights *w;
    bool put; /* false: only check */
    int n;
    ma_err *err;
} loader;

static int load_one(void *user, const char *name, ma_tensor *t) {
    loader *l = user;
    const char *path = ma_weights_path(l->w);
    const ma_entry *e = ma_weights_find(l->w, name);
    char is[160], must[160];
    l->n++;
    if (!e) return ma_fail(l->err, MA_MISSING, "%s: %s is missing", path, name);
    if (e->nd != t->nd || memcmp(e->n, t->n, (size_t)t->nd * sizeof *t->n))
        return ma_fail(l->err, MA_SHAPE, "%s: %s is %s, must be %s", path, name, ma_shape_text(is, e->nd, e->n),
                       ma_shape_text(must, t->nd, t->n));
    if (!l->put) return 0;
    float *v = ma_alloc((size_t)ma_count(t), sizeof *v);
    ma_err why = {0};
    int rc = v ? ma_entry_read(e, v, &why) : ma_fail(&why, MA_MEMORY, "%s: out of memory", name);
    if (!rc && ma_put(l->o->ctx, t, v)) rc = ma_ctx_failed(l->o->ctx, &why);
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
