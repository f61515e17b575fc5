/* optim: AdamW against torch (tests/golden/optim.py); the schedule; what a NaN does; resuming bit for bit; where the
 * state is, and of which type. */
#include "../tap.h"
#include "../weights/temp.h"
#include "../../common/optim.h"

enum { SETS = 2, PARAMS = 3 };
static const ma_optim_opts OPTS = {
    .lr = 0.02, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.1, .clip = 1, .warmup = 4, .total = 30};
static const char *const NAME[PARAMS] = {"w", "b", "conv"};
static ma_device *device;

/* Three leaves in two sets, their values as in the script, and an optimiser over them. */
typedef struct net {
    ma_ctx *ctx;
    ma_params *sets[SETS];
    ma_tensor *t[PARAMS];
    ma_optim *optim;
} net;

static float value(int64_t k, int64_t i) {
    return (float)((i * 7 + k * 3) % 11 - 5) / 8;
}

static float gradient(int64_t k, int64_t i, int64_t step) {
    return (float)((double)((i * 5 + k + step * 3) % 13 - 6) / 16 * (step % 3 == 0 ? 0.1 : 1));
}

static net net_new(ma_optim_opts opts) {
    net n = {.ctx = ma_ctx_new(device, NULL)};
    n.sets[0] = ma_params_new(n.ctx, NULL, true, 1);
    n.sets[1] = ma_params_new(n.ctx, NULL, true, 1);
    n.t[0] = ma_param(n.sets[0], MA_PLAIN, MA_INIT_ZERO, MA_SHAPE(3, 5), "%s", NAME[0]);
    n.t[1] = ma_param(n.sets[0], MA_PLAIN, MA_INIT_ZERO, MA_SHAPE(5), "%s", NAME[1]);
    n.t[2] = ma_param(n.sets[1], MA_PLAIN, MA_INIT_ZERO, MA_SHAPE(2, 3, 4, 1, 2), "%s", NAME[2]);
    for (int k = 0; k < PARAMS; k++) {
        float v[48];
        for (int64_t i = 0; i < ma_count(n.t[k]); i++) v[i] = value(k, i);
        ma_put(n.ctx, n.t[k], v);
    }
    n.optim = ma_optim_new(n.ctx, n.sets, SETS, &opts);
    return n;
}

static void net_free(net *n) {
    ma_optim_free(n->optim);
    for (int i = 0; i < SETS; i++) ma_params_free(n->sets[i]);
    ma_ctx_free(n->ctx);
}

static void set_gradients(net *n, int64_t step) {
    for (int k = 0; k < PARAMS; k++) {
        float g[48];
        for (int64_t i = 0; i < ma_count(n->t[k]); i++) g[i] = gradient(k, i, step);
        ma_put(n->ctx, n->t[k]->grad, g);
    }
}

static int run(net *n, int steps, double *norms) {
    int rc = 0;
    for (int s = 0; s < steps && !rc; s++) {
        double norm;
        set_gradients(n, ma_optim_steps(n->optim) + 1);
        rc = ma_optim_step(n->optim, &norm, NULL);
        if (norms) norms[s] = norm;
    }
    return rc;
}

static void compare(net *n, const ma_weights *w, int step) {
    for (int k = 0; k < PARAMS; k++) {
        float got[48], want[48];
        char name[32];
        snprintf(name, sizeof name, "%d.%s", step, NAME[k]);
        const ma_entry *e = ma_weights_find(w, name);
        ma_get(n->ctx, n->t[k], got);
        double error = e && !ma_entry_read(e, want, NULL) ? rel_error(got, want, (size_t)ma_count(n->t[k])) : NAN;
        ok(error < 1e-6, "%s after step %d as torch: %.1e", NAME[k], step, error);
    }
}

static void against_torch(void) {
    ma_err e = {0};
    ma_weights *w = ma_weights_open("tests/unit/optim.safetensors", &e);
    if (!ok(w != NULL, "fixture %s", e.text)) exit(tap_done());
    net n = net_new(OPTS);
    double norms[20];
    float got[20], want[20];
    run(&n, 1, norms);
    compare(&n, w, 1);
    run(&n, 4, norms + 1);
    compare(&n, w, 5);
    run(&n, 15, norms + 5);
    compare(&n, w, 20);
    ma_entry_read(ma_weights_find(w, "norms"), want, NULL);
    for (int i = 0; i < 20; i++) got[i] = (float)norms[i];
    ok(rel_error(got, want, 20) < 1e-6 && want[0] > 1 && want[2] < 1, "norms as torch, clipped and not");
    float g[48];
    ma_get(n.ctx, n.t[2]->grad, g);
    bool zero = true;
    for (int i = 0; i < 48; i++) zero = zero && g[i] == 0;
    ok(zero, "gradients are zero after a step");
    net_free(&n);
    ma_weights_close(w);
}

static void schedule(void) {
    net n = net_new(OPTS);
    ok(ma_optim_lr(n.optim, 1) == 0.005 && ma_optim_lr(n.optim, 3) == 0.015 && ma_optim_lr(n.optim, 4) == 0.02,
       "warm-up");
    ok(fabs(ma_optim_lr(n.optim, 17) - 0.01) < 1e-15 && ma_optim_lr(n.optim, 30) == 0 && ma_optim_lr(n.optim, 40) == 0,
       "cosine, and 0 from the end on");
    net_free(&n);
    ma_optim_opts flat = OPTS;
    flat.total = flat.warmup = 0;
    n = net_new(flat);
    ok(ma_optim_lr(n.optim, 1) == 0.02 && ma_optim_lr(n.optim, 1000000) == 0.02, "constant");
    net_free(&n);
}

/* All parameters, one behind the other. */
static void values_of(net *n, float out[68]) {
    for (int k = 0; k < PARAMS; out += ma_count(n->t[k++])) ma_get(n->ctx, n->t[k], out);
}

static void not_finite(void) {
    net n = net_new(OPTS);
    float before[68], after[68], bad[5] = {0, 0, NAN, 0, 0};
    double norm;
    ma_err e = {0};
    run(&n, 2, NULL);
    values_of(&n, before);
    set_gradients(&n, 3);
    ma_put(n.ctx, n.t[1]->grad, bad);
    ok(ma_optim_step(n.optim, &norm, &e) && e.reason == MA_NOTFINITE && strstr(e.text, "gradient of b "), "%s", e.text);
    values_of(&n, after);
    ok(!memcmp(before, after, sizeof before) && ma_optim_steps(n.optim) == 2, "and nothing has changed");
    net_free(&n);
}

static void resume(ma_optim_opts opts) {
    const char *state = temp_path("optim.safetensors"), *one = temp_path("one.safetensors"),
               *two = temp_path("two.safetensors");
    float want[68], got[68];
    ma_err e = {0};
    net n = net_new(opts);
    run(&n, 10, NULL);
    values_of(&n, want);
    net_free(&n);

    n = net_new(opts);
    run(&n, 5, NULL);
    ok(!ma_optim_save(n.optim, state, &e) && !ma_params_save(n.sets[0], one, MA_F32, 0, NULL, &e) &&
           !ma_params_save(n.sets[1], two, MA_F32, 0, NULL, &e),
       "saved after 5 steps %s", e.text);
    net_free(&n);

    n = net_new(opts);
    run(&n, 1, NULL); /* something else than the start */
    ma_weights *a = ma_weights_open(one, &e), *b = ma_weights_open(two, &e);
    ok(a && b && !ma_params_load(n.sets[0], a, &e) && !ma_params_load(n.sets[1], b, &e) &&
           !ma_optim_load(n.optim, state, &e) && ma_optim_steps(n.optim) == 5,
       "loaded %s", e.text);
    run(&n, 5, NULL);
    values_of(&n, got);
    ok(!memcmp(got, want, sizeof got), "10 steps = 5 + resume + 5, bit for bit");
    ok(ma_optim_load(n.optim, one, &e) && strstr(e.text, "step"), "%s", e.text);
    ma_err_clear(&e);
    ok(ma_params_load(n.sets[0], b, &e) && e.reason == MA_MISSING && strstr(e.text, "w is missing"), "%s", e.text);
    net_free(&n);
    ma_weights_close(a);
    ma_weights_close(b);
}

/* Of a leaf of 2^20 numbers. */
static size_t state_bytes(ma_optim_state state) {
    const ma_optim_opts opts = {.lr = 1, .state = state};
    ma_ctx *c = ma_ctx_new(device, NULL);
    ma_params *p = ma_params_new(c, NULL, true, 1);
    ma_param(p, MA_PLAIN, MA_INIT_ZERO, MA_SHAPE(1024, 1024), "x");
    ma_optim *o = ma_optim_new(c, &p, 1, &opts);
    const size_t bytes = ma_ctx_memory(c).optimiser;
    ma_optim_free(o);
    ma_params_free(p);
    ma_ctx_free(c);
    return bytes;
}

/* Two leaves that are alike stay so, but for the rounding of what is kept of them. */
static bool apart(ma_optim_state state) {
    enum { SIZE = 1024 };
    const ma_optim_opts opts = {.lr = 0.1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .state = state};
    float g[SIZE], x[2][SIZE];
    double norm;
    ma_ctx *c = ma_ctx_new(device, NULL);
    ma_params *p = ma_params_new(c, NULL, true, 1);
    ma_tensor *t[2];
    for (int k = 0; k < 2; k++) t[k] = ma_param(p, MA_PLAIN, MA_INIT_ZERO, MA_SHAPE(SIZE), "x%d", k);
    ma_optim *o = ma_optim_new(c, &p, 1, &opts);
    for (int step = 0; step < 2; step++) {
        for (int i = 0; i < SIZE; i++) g[i] = gradient(1, i, step);
        for (int k = 0; k < 2; k++) ma_put(c, t[k]->grad, g);
        ma_optim_step(o, &norm, NULL);
    }
    for (int k = 0; k < 2; k++) ma_get(c, t[k], x[k]);
    ma_optim_free(o);
    ma_params_free(p);
    ma_ctx_free(c);
    return memcmp(x[0], x[1], sizeof g) != 0;
}

/* Half the memory, about the same result; saved as it is; an fp32 state that is loaded is rounded. */
static void light_state(void) {
    ma_optim_opts light = OPTS;
    light.state = MA_STATE_BF16;
    const char *state = temp_path("light.safetensors");
    float want[68], got[68], m[48], v[48];
    ma_err e = {0};
    net plain = net_new(OPTS), n = net_new(light);
    ok(state_bytes(MA_STATE_F32) == 8 << 20 && state_bytes(MA_STATE_BF16) == 4 << 20, "bf16: half the memory");
    ok(apart(MA_STATE_BF16) && !apart(MA_STATE_F32), "each parameter is rounded by itself");
    run(&plain, 20, NULL);
    run(&n, 20, NULL);
    values_of(&plain, want);
    values_of(&n, got);
    double error = rel_error(got, want, 68);
    ok(error > 0 && error < 2e-2, "a state in bf16 goes about where one in f32 goes: %.1e", error);

    ma_weights *w = NULL;
    const ma_entry *entry = NULL;
    ok(!ma_optim_save(n.optim, state, &e) && (w = ma_weights_open(state, &e)) &&
           (entry = ma_weights_find(w, "v.conv")) && entry->type == MA_BF16,
       "it is saved as it is %s", e.text);
    ma_weights_close(w);
    ok(!ma_optim_load(plain.optim, state, &e) && !ma_optim_save(plain.optim, state, &e) &&
           (w = ma_weights_open(state, &e)) && (entry = ma_weights_find(w, "v.conv")) && entry->type == MA_F32 &&
           !ma_entry_read(entry, v, &e),
       "and loaded where f32 is kept %s", e.text);
    ma_weights_close(w);
    run(&plain, 1, NULL);
    ok(!ma_optim_save(plain.optim, state, &e) && !ma_optim_load(n.optim, state, &e) &&
           !ma_optim_save(n.optim, state, &e) && (w = ma_weights_open(state, &e)) &&
           !ma_entry_read(ma_weights_find(w, "v.conv"), m, &e),
       "and the other way %s", e.text);
    error = rel_error(m, v, 48);
    ok(error > 1e-3 && error < 0.2, "a step apart: %.1e", error);
    ma_weights_close(w);
    net_free(&plain);
    net_free(&n);
}

static size_t host_blocks;

static void *take_host(ma_device *d, size_t size) {
    host_blocks++;
    return d->alloc(d, size);
}

static void release_host(ma_device *d, void *p) {
    host_blocks--;
    d->release(d, p);
}

/* A device beside the host: here they are one, but what is taken is counted. */
static void far_state(void) {
    ma_device *own = device, beside = *device, dry = *device;
    ma_optim_opts far = OPTS;
    float want[68], got[68];
    far.state = MA_STATE_HOST;
    net plain = net_new(OPTS), same = net_new(far);
    run(&plain, 20, NULL);
    run(&same, 20, NULL);
    values_of(&plain, want);
    values_of(&same, got);
    ok(!memcmp(want, got, sizeof want) && !ma_ctx_memory(same.ctx).host && ma_ctx_memory(same.ctx).optimiser == 6 * 256,
       "where the device is the host, host is f32");
    net_free(&same);
    net_free(&plain);

    beside.alloc_host = dry.alloc_host = take_host;
    beside.release_host = dry.release_host = release_host;
    device = &beside;
    net n = net_new(far);
    ok(host_blocks == 1 && !ma_ctx_memory(n.ctx).optimiser && ma_ctx_memory(n.ctx).host == 6 * 256,
       "else none of the state is the device's");
    run(&n, 20, NULL);
    values_of(&n, got);
    ok(!memcmp(want, got, sizeof want), "with the same bits");
    net_free(&n);
    ok(!host_blocks, "and given back");

    dry.plan = true;
    device = &dry;
    n = net_new(far);
    ok(!ma_failed(n.ctx) && ma_ctx_memory(n.ctx).host == 6 * 256 && !ma_ctx_memory(n.ctx).optimiser,
       "a plan counts alike");
    net_free(&n);
    device = own;
}

/* 16-bit storage has an fp32 master: what is too small for the storage adds up there. */
static void master(void) {
    ma_device half = *device;
    half.types[MA_BF16] = true; /* no kernel is run but the optimiser's */
    ma_ctx *c = ma_ctx_new(&half, NULL);
    ma_set_type(c, MA_BF16);
    ma_params *p = ma_params_new(c, NULL, true, 1);
    ma_tensor *t = ma_param(p, MA_PLAIN, MA_INIT_ONE, MA_SHAPE(4), "x");
    ma_optim_opts opts = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    ma_optim *o = ma_optim_new(c, &p, 1, &opts);
    float v[4] = {0}, g[4] = {1, 1, 1, 1};
    double norm;
    ma_err e = {0};
    for (int i = 0; i < 40 && t && o; i++) {
        ma_put(c, t->grad, g);
        ma_optim_step(o, &norm, &e);
    }
    ok(t && o && t->type == MA_BF16 && !ma_get(c, t, v) && v[0] == 0.99609375f, "bf16 with a master: %g %s", v[0],
       ma_ctx_err(c)->text);
    const char *state = temp_path("half.safetensors");
    ma_weights *w = NULL;
    ok(o && !ma_optim_save(o, state, &e) && (w = ma_weights_open(state, &e)) && ma_weights_count(w) == 3 &&
           ma_weights_find(w, "master.x") && !ma_entry_read(ma_weights_find(w, "master.x"), v, &e) &&
           fabsf(v[0] - 0.996f) < 1e-6f,
       "the master is saved: %g %s", v[0], e.text);
    ma_weights_close(w);
    ma_optim_free(o);
    ma_params_free(p);
    ma_ctx_free(c);
}

int main(void) {
    char note[160];
    temp_make();
    device = ma_device_open("cpu", false, note, NULL);
    against_torch();
    schedule();
    not_finite();
    resume(OPTS);
    ma_optim_opts light = OPTS;
    light.state = MA_STATE_BF16;
    resume(light);
    light_state();
    far_state();
    master();
    ma_device_close(device);
    return tap_done();
}
