/* parity: every op on the GPU against the CPU, on the odd shapes of tests/op and a few large ones, forward and backward,
 * in fp32, bf16 and fp16; the same when it is run again, on gradients that hold nothing yet; and ones more on such as
 * hold ones. In 16 bits once more on gradients of that type, as activations have them.
 *
 * parity [small]
 * Tolerances are relative norms: 1e-5 in fp32 (sums in another order); in 16 bits what rounding inputs and outputs once
 * costs: 2^-8 for bf16, 2^-11 for fp16, with room for an intermediate that is rounded too, and twice that where there are
 * so few numbers that their roundings do not average. The CPU works on the same rounded inputs. What was saved for the
 * backward pass, attention's log-sums say, is seen in the gradients. At last the optimiser, in each of its states.
 */
#include "../op/cases.h"

#include <time.h>

static const struct {
    ma_type type;
    double limit;
} kinds[] = {{MA_F32, 1e-5}, {MA_BF16, 1e-2}, {MA_F16, 2e-3}};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* A device and what it computes in. Its context serves many cases, as opening one costs more than most of them. */
typedef struct side {
    ma_device *dev;
    ma_type type;
    ma_ctx *c;
} side;

static double seconds[3]; /* drawing numbers, CPU, GPU */

static double clock_now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A new one where the last case failed, or leaves have piled up. */
static ma_ctx *context_of(side *s, ma_err *e) {
    const size_t most = (size_t)256 << 20;
    if (s->c && !ma_failed(s->c) && ma_ctx_memory(s->c).keep < most) return s->c;
    ma_ctx_free(s->c);
    if ((s->c = ma_ctx_new(s->dev, e))) ma_set_type(s->c, s->type);
    return s->c;
}

/* What a device that computes in this type will see of the numbers. */
static void round_to(float *to, const float *from, int64_t n, ma_type type) {
    enum { PIECE = 4096 };
    uint16_t half[PIECE];
    for (int64_t at = 0; at < n; at += PIECE) {
        const size_t count = (size_t)(n - at < PIECE ? n - at : PIECE);
        ma_from_f32(half, from + at, type, count);
        ma_to_f32(to + at, half, type, count);
    }
}

/* Drawn once for all types: t's inputs are those of `drawn`, rounded. */
static void round_inputs(const op_case *k, const trial *drawn, trial *t, ma_type type) {
    for (int j = 0; j < INPUTS; j++) {
        const int64_t n = elements(k->in[j]);
        if (!n) continue;
        if (type == MA_F32 || k->fixed >> j & 1)
            memcpy(t->in[j], drawn->in[j], (size_t)n * sizeof(float));
        else
            round_to(t->in[j], drawn->in[j], n, type);
    }
}

/* Room for inputs and results; with `inputs`, those are the other's. */
static trial trial_room_for(const op_case *k, const trial *inputs) {
    trial t = {0};
    for (int j = 0; j < INPUTS; j++) {
        const size_t n = (size_t)elements(k->in[j]);
        if (!n) continue;
        t.in[j] = inputs ? inputs->in[j] : ma_alloc(n, sizeof *t.in[j]);
        t.grad[j] = ma_alloc(n, sizeof *t.grad[j]);
    }
    return t;
}

/* Drawing a cotangent once is enough, too. */
static void share_cotangent(trial *t, const trial *like) {
    if (t->out || !like->out) return;
    t->count = like->count;
    t->out = ma_alloc((size_t)t->count, sizeof *t->out);
    t->cotangent = ma_alloc((size_t)t->count, sizeof *t->cotangent);
    memcpy(t->cotangent, like->cotangent, (size_t)t->count * sizeof *t->cotangent);
}

static void run_on(const op_case *k, side *s, float first, trial *t, double *spent, ma_err *e) {
    const double start = clock_now();
    ma_ctx *c = context_of(s, e);
    if (c && trial_run(k, c, s->dev->bwd[k->op] ? all_wanted(k) : 0, first, t)) *e = *ma_ctx_err(c);
    *spent += clock_now() - start;
}

/* The same bits, but for the sign of zero: 0 + -0 is not -0. */
static bool same(const op_case *k, const trial *a, const trial *b) {
    bool good = !memcmp(a->out, b->out, (size_t)a->count * sizeof *a->out);
    for (int j = 0; j < INPUTS; j++)
        for (int64_t m = 0; wants(k, j) && m < elements(k->in[j]) && good; m++) good = a->grad[j][m] == b->grad[j][m];
    return good;
}

/* a has ones more. */
static bool adds(const op_case *k, const trial *a, const trial *b) {
    bool good = true;
    for (int j = 0; j < INPUTS; j++)
        for (int64_t m = 0; wants(k, j) && m < elements(k->in[j]) && good; m++)
            good = fabs(a->grad[j][m] - 1.0 - b->grad[j][m]) <= 1e-6 * (1 + fabs(b->grad[j][m]));
    return good;
}

static double limit_of(int kind, int64_t numbers) {
    return kinds[kind].limit * (kinds[kind].type != MA_F32 && numbers < 16 ? 2 : 1);
}

static void compare_gradients(const op_case *k, int kind, double room, const trial *got, const trial *want) {
    for (int j = 0; j < INPUTS; j++) {
        if (!wants(k, j)) continue;
        double error = rel_error(got->grad[j], want->grad[j], (size_t)elements(k->in[j]));
        ok(error <= room * limit_of(kind, elements(k->in[j])), "%s: %s: gradient%s %d %.1e",
           ma_type_name(kinds[kind].type), k->name, got->through ? " of an activation" : "", j, error);
    }
}

static void compare(const op_case *k, bool backward, int kind, const trial *got, const trial *want) {
    double error = rel_error(got->out, want->out, (size_t)want->count);
    ok(error <= limit_of(kind, want->count), "%s: %s: out %.1e", ma_type_name(kinds[kind].type), k->name, error);
    if (backward) compare_gradients(k, kind, 1, got, want);
}

/* On the CPU in fp32, on the GPU in every type, and there again. */
static void check(const op_case *k, side *cpu, side gpu[KINDS], int nkinds) {
    const double start = clock_now();
    trial drawn = trial_new(k);
    seconds[0] += clock_now() - start;
    trial want = trial_room_for(k, NULL), got = trial_room_for(k, &want), again = trial_room_for(k, &want);
    for (int kind = 0; kind < nkinds; kind++) {
        side *g = &gpu[kind];
        ma_err e = {0};
        round_inputs(k, &drawn, &want, g->type);
        run_on(k, cpu, 0, &want, &seconds[1], &e);
        share_cotangent(&got, &want);
        share_cotangent(&again, &want);
        if (e.reason == MA_OK) run_on(k, g, 0, &got, &seconds[2], &e);
        if (!ok(e.reason == MA_OK, "%s: %s: runs %s", ma_type_name(g->type), k->name, e.text)) continue;
        const bool backward = g->dev->bwd[k->op];
        compare(k, backward, kind, &got, &want);
        run_on(k, g, NAN, &again, &seconds[2], &e);
        ok(e.reason == MA_OK && same(k, &got, &again), "%s: %s: again the same, on fresh gradients",
           ma_type_name(g->type), k->name);
        if (backward) {
            run_on(k, g, 1, &again, &seconds[2], &e);
            ok(e.reason == MA_OK && adds(k, &again, &got), "%s: %s: adds to what is there", ma_type_name(g->type),
               k->name);
        }
        if (backward && g->type != MA_F32) { /* they are rounded on their way: twice the room */
            again.through = true;
            run_on(k, g, NAN, &again, &seconds[2], &e);
            if (ok(e.reason == MA_OK, "%s: %s: of activations %s", ma_type_name(g->type), k->name, e.text))
                compare_gradients(k, kind, 2, &again, &want);
            again.through = false;
        }
    }
    memset(got.in, 0, sizeof got.in);
    memset(again.in, 0, sizeof again.in);
    for (trial **t = (trial *[]){&drawn, &want, &got, &again, NULL}; *t; t++) trial_free(*t);
}

/* Three gradients go to one place: a leaf's, in f32, or with i[0] an activation's, of its type. */
static ma_tensor *run_attention_self(ma_ctx *c, ma_tensor **in, const op_case *k) {
    ma_tensor *x = k->i[0] ? ma_affine(c, in[0], 1, 0) : in[0];
    return ma_attention(c, x, x, x, k->f[0]);
}

/* With a single key q and k take no part: without the sum their gradients would be roundings alone. */
static ma_tensor *run_attention_alone(ma_ctx *c, ma_tensor **in, const op_case *k) {
    return ma_add(c, ma_add(c, ma_attention(c, in[0], in[1], in[2], k->f[0]), in[0]), in[1]);
}

/* Once without what a backward pass needs, and once with it. */
static ma_tensor *run_attention_apart(ma_ctx *c, ma_tensor **in, const op_case *k) {
    const bool was = ma_recording(c, false);
    ma_tensor *alone = ma_attention(c, in[0], in[1], in[2], k->f[0]);
    ma_recording(c, was);
    return ma_add(c, alone, ma_attention(c, in[0], in[1], in[2], k->f[0]));
}

/* x gets two gradients: the one that is set, then the norm's. */
static ma_tensor *run_modulate_residual(ma_ctx *c, ma_tensor **in, const op_case *k) {
    return ma_add(c, run_modulate(c, in, k), in[0]);
}

static ma_tensor *run_layer_norm_residual(ma_ctx *c, ma_tensor **in, const op_case *k) {
    return ma_add(c, run_layer_norm(c, in, k), in[0]);
}

/* Heads of 40 that begin three numbers behind an aligned address. */
static ma_tensor *run_attention_odd(ma_ctx *c, ma_tensor **in, const op_case *k) {
    enum { BEFORE = 3, HEADS = 2, DIM = 40 };
    ma_tensor *part[3];
    for (int j = 0; j < 3; j++) {
        const int64_t n = k->in[j][0] - BEFORE;
        part[j] = ma_view(c, ma_rows(c, in[j], BEFORE, n), MA_SHAPE(1, n / (HEADS * DIM), HEADS, DIM));
    }
    return ma_attention(c, part[0], part[1], part[2], k->f[0]);
}

/* Shapes as the networks have them, where the fast paths are. */
static const op_case large[] = {
    {"linear, 512x1920x7680, gelu_tanh", .op = MA_OP_LINEAR, .run = run_linear, .in = {{512, 1920}, {7680, 1920}, {7680}},
     .i = {MA_GELU_TANH}},
    {"linear, 777x768x2304", .op = MA_OP_LINEAR, .run = run_linear, .in = {{777, 768}, {2304, 768}, {2304}}},
    {"attention, 2x1025 with 1300", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{2, 1025, 3, 64}, {2, 1300, 3, 64}, {2, 1300, 3, 64}}, .f = {0.125}},
    {"attention, heads of 40", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{2, 200, 2, 40}, {2, 65, 2, 40}, {2, 65, 2, 40}}, .f = {0.16}},
    {"attention, heads of 96", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{2, 260, 2, 96}, {2, 300, 2, 96}, {2, 300, 2, 96}}, .f = {0.1}},
    {"attention, heads of 128", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{1, 333, 2, 128}, {1, 517, 2, 128}, {1, 517, 2, 128}}, .f = {0.09}},
    {"attention, one query, one key", .op = MA_OP_ATTENTION, .run = run_attention_alone,
     .in = {{2, 1, 3, 64}, {2, 1, 3, 64}, {2, 1, 3, 64}}, .f = {0.125}},
    {"attention, 7 with 13", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{3, 7, 5, 64}, {3, 13, 5, 64}, {3, 13, 5, 64}}, .f = {0.125}},
    {"attention, 226 with 3", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{1, 226, 2, 64}, {1, 3, 2, 64}, {1, 3, 2, 64}}, .f = {0.125}},
    {"attention, one with 226, heads of 8", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{2, 1, 3, 8}, {2, 226, 3, 8}, {2, 226, 3, 8}}, .f = {0.35}},
    {"attention, 193 with 384, high scores", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{1, 193, 2, 64}, {1, 384, 2, 64}, {1, 384, 2, 64}}, .f = {0.5}},
    {"attention, 200 with 8200", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{1, 200, 1, 64}, {1, 8200, 1, 64}, {1, 8200, 1, 64}}, .f = {0.25}},
    {"attention, 5 with 4, heads of 128", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{1, 5, 2, 128}, {1, 4, 2, 128}, {1, 4, 2, 128}}, .f = {0.09}},
    {"attention, not recorded", .op = MA_OP_ATTENTION, .run = run_attention_apart,
     .in = {{2, 130, 2, 64}, {2, 70, 2, 64}, {2, 70, 2, 64}}, .f = {0.125}},
    {"attention of a leaf to itself", .op = MA_OP_ATTENTION, .run = run_attention_self, .in = {{1, 200, 2, 64}}, .f = {0.125}},
    {"attention of an activation to itself", .op = MA_OP_ATTENTION, .run = run_attention_self, .in = {{1, 200, 2, 64}},
     .i = {1}, .f = {0.125}},
    {"attention, addresses at odd places", .op = MA_OP_ATTENTION, .run = run_attention_odd,
     .in = {{3 + 130 * 2 * 40}, {3 + 70 * 2 * 40}, {3 + 70 * 2 * 40}}, .f = {0.16}},
    {"layer_norm over heads", .op = MA_OP_LAYER_NORM, .run = run_layer_norm, .in = {{2, 300, 30, 64}, {64}, {64}}, .f = {1e-6}},
    {"modulate, 2x700x1920", .op = MA_OP_MODULATE, .run = run_modulate, .in = {{2, 700, 1920}, {1920}, {1920}, {2, 6, 1920}},
     .i = {226, 0, 1, 3, 4}, .f = {1e-5}},
    {"modulate of a residual stream", .op = MA_OP_MODULATE, .run = run_modulate_residual,
     .in = {{2, 700, 1920}, {1920}, {1920}, {2, 6, 1920}}, .i = {226, 0, 1, 3, 4}, .f = {1e-5}},
    {"layer_norm of a residual stream, 768", .op = MA_OP_LAYER_NORM, .run = run_layer_norm_residual,
     .in = {{3, 333, 768}, {768}, {768}}, .f = {1e-6}},
    {"layer_norm of a residual stream, 200", .op = MA_OP_LAYER_NORM, .run = run_layer_norm_residual,
     .in = {{3, 333, 200}, {200}, {200}}, .f = {1e-6}},
    {"layer_norm of a residual stream, 64", .op = MA_OP_LAYER_NORM, .run = run_layer_norm_residual,
     .in = {{5, 333, 64}, {64}, {64}}, .f = {1e-6}},
    {"gate, 2x700x1920", .op = MA_OP_GATE, .run = run_gate, .in = {{2, 700, 1920}, {2, 700, 1920}, {2, 6, 1920}}, .i = {226, 2, 5}},
    {"conv, 3x3x3, 64 to 128", .op = MA_OP_CONV, .run = run_conv, .in = {{1, 5, 30, 44, 64}, {128, 3, 3, 3, 64}, {128}},
     .i = {1, 1, 1, 1, 1, 1}},
    {"conv, 7x7 of 3 channels, stride 2", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 1, 64, 96, 3}, {64, 1, 7, 7, 3}, {64}},
     .i = {1, 2, 2, 0, 3, 3}, .f = {MA_RELU}},
    {"conv, 1x5", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 1, 20, 30, 384}, {128, 1, 1, 5, 384}, {128}}, .i = {1, 1, 1, 0, 0, 2}},
    {"conv, 3x1x1, silu", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 24, 10, 15, 768}, {256, 3, 1, 1, 768}, {256}},
     .i = {1, 1, 1, 1, 0, 0}, .f = {MA_SILU}},
    {"conv_transpose, x2", .op = MA_OP_CONV_TRANSPOSE, .run = run_conv_transpose,
     .in = {{2, 23, 10, 15, 64}, {64, 1, 4, 4, 64}, {64}}, .i = {1, 2, 2, 0, 1, 1}, .f = {MA_SILU}},
    {"patch embedding", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 4, 64, 96, 3}, {768, 2, 16, 16, 3}, {768}},
     .i = {2, 16, 16, 0, 0, 0}},
    {"patches of odd length", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 4, 6, 10, 3}, {5, 2, 3, 2, 3}, {5}}, .i = {2, 3, 2, 0, 0, 0}},
    {"instance norm, relu", .op = MA_OP_GROUP_NORM, .run = run_group_norm, .in = {{2, 1, 60, 90, 96}}, .i = {96, MA_RELU}, .f = {1e-5}},
    {"causal norm, scaled, 9 frames of 128", .op = MA_OP_CAUSAL_NORM, .run = run_causal_norm,
     .in = {{1, 9, 48, 72, 128}, {128}, {128}, {1, 3, 6, 9, 320}, {1, 2, 48, 72, 128}}, .i = {32, MA_SILU, 2, false, 64},
     .f = {1e-6}},
    {"causal norm, 5 frames of 512", .op = MA_OP_CAUSAL_NORM, .run = run_causal_norm,
     .in = {{2, 5, 30, 45, 512}, {512}, {512}, {0}, {2, 2, 30, 45, 512}}, .i = {32, MA_SILU, 2, true}, .f = {1e-6}},
    {"moments of a sum, 8 frames of 128", .op = MA_OP_MOMENTS, .run = run_moments,
     .in = {{1, 8, 60, 90, 128}, {1, 8, 60, 90, 128}}, .i = {32}},
    {"conv, 3 channels behind 2 frames", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 5, 61, 93, 3}, {128, 3, 3, 3, 3}, {128}},
     .i = {1, 1, 1, 0, 1, 1}, .f = {MA_SILU}},
    {"conv, 8 neighbours at once", .op = MA_OP_CONV, .run = run_conv, .in = {{1, 5, 30, 48, 128}, {24, 3, 3, 10, 128}, {24}},
     .i = {1, 1, 8, 0, 1, 1}},
    {"conv, 8 channels behind 2 frames", .op = MA_OP_CONV, .run = run_conv, .in = {{1, 7, 40, 60, 8}, {128, 3, 3, 3, 8}, {128}},
     .i = {1, 1, 1, 0, 1, 1}},
    {"conv_transpose, x2, 256 to 256", .op = MA_OP_CONV_TRANSPOSE, .run = run_conv_transpose,
     .in = {{1, 3, 24, 36, 256}, {256, 1, 4, 4, 256}, {256}}, .i = {1, 2, 2, 0, 1, 1}},
    {"relation, 24 frames of 150", .op = MA_OP_RELATION, .run = run_relation, .in = {{1, 24, 150, 64}, {1, 24, 150, 64}, {24}},
     .fixed = 6, .f = {0.05}},
    {"matmul, 1x2400x2400x256", .op = MA_OP_MATMUL, .run = run_matmul, .in = {{1, 2400, 256}, {1, 2400, 256}}, .f = {0.0625}},
};

/* ---- the optimiser ---- */

enum { NUMBERS = 50000, FIRST = 32771 }; /* of two parameters; of the first, so that the second is not aligned */

typedef struct updated {
    float p[NUMBERS], m[NUMBERS], v[NUMBERS];
    uint16_t data[NUMBERS];
} updated;

/* Two steps from the same numbers. Gradients have few bits, so that with betas of 1/2 the moments are exact. */
static bool run_adam(ma_device *d, ma_adam how, updated *r) {
    static float raw[NUMBERS];
    const size_t bytes = sizeof raw, state = NUMBERS * ma_type_size(how.state);
    void *(*take)(ma_device *, size_t) = how.far ? d->alloc_host : d->alloc;
    void (*drop)(ma_device *, void *) = how.far ? d->release_host : d->release;
    float *p = take(d, bytes), *grad = d->alloc(d, bytes);
    char *m = take(d, state), *v = take(d, state);
    uint16_t *data = d->alloc(d, sizeof r->data);
    ma_slot slots[2];
    for (int k = 0; k < 2; k++) {
        const int64_t at = k * FIRST, byte = at * (int64_t)ma_type_size(how.state), n = k ? NUMBERS - FIRST : FIRST;
        slots[k] = (ma_slot){data + at, MA_BF16, p + at, grad + at, m + byte, v + byte, n, k, 0.1};
    }
    for (int k = 0; k < NUMBERS; k++) raw[k] = (float)(k % 1999 - 999) / 512;
    bool good =
        p && grad && m && v && data && !d->put(d, p, raw, bytes) && !d->zero(d, m, state) && !d->zero(d, v, state);
    for (how.step = 1; how.step <= 2 && good; how.step++) {
        for (int k = 0; k < NUMBERS; k++) raw[k] = (float)((k + how.step) * 37 % 4095 - 2047) / 1024;
        good = !d->put(d, grad, raw, bytes) && !d->adam(d, slots, 2, &how);
    }
    good = good && !d->get(d, r->p, p, bytes) && !d->get(d, r->data, data, sizeof r->data) && !d->get(d, raw, m, state);
    if (good) ma_to_f32(r->m, raw, how.state, NUMBERS);
    good = good && !d->get(d, raw, v, state);
    if (good) ma_to_f32(r->v, raw, how.state, NUMBERS);
    drop(d, p), drop(d, m), drop(d, v), d->release(d, grad), d->release(d, data);
    return good;
}

static void check_adam(ma_device *cpu, ma_device *gpu) {
    static updated want, got;
    ma_adam how = {.lr = 1e-2, .beta1 = 0.5, .beta2 = 0.5, .eps = 1e-8, .clip = 1};
    for (int k = 0; k < 2; k++) {
        how.state = k ? MA_BF16 : MA_F32;
        const char *name = ma_type_name(how.state);
        ok(run_adam(cpu, how, &want) && run_adam(gpu, how, &got), "optimiser's state in %s: %s", name, gpu->failure);
        ok(!memcmp(want.m, got.m, sizeof want.m) && !memcmp(want.v, got.v, sizeof want.v), "%s: moments, bit for bit",
           name);
        const double error = rel_error(got.p, want.p, NUMBERS);
        bool stored = true;
        for (int j = 0; j < NUMBERS; j++) stored = stored && got.data[j] == ma_f32_to_bf16(got.p[j]);
        ok(error < 1e-6 && stored, "%s: parameters %.1e", name, error);
    }
    how = (ma_adam){.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 0.7};
    bool good = run_adam(gpu, how, &want);
    how.far = true;
    good = good && run_adam(gpu, how, &got);
    ok(good && !memcmp(&want, &got, sizeof want), "state on the host: the same bits%s%s", good ? "" : ": ",
       good ? "" : gpu->failure);
}

int main(int argc, char **argv) {
    const bool small = argc > 1 && !strcmp(argv[1], "small"); /* under compute-sanitizer: fp32 on odd shapes, our own kernels nearly all */
    const int nkinds = small ? 1 : KINDS;
    ma_err e = {0};
    char note[160];
    side cpu = {ma_device_open("cpu", false, note, &e), MA_F32, NULL}, gpu[KINDS] = {0};
    ma_device *dev = ma_device_open("cuda", false, note, &e);
    if (!dev) {
        ok(false, "%s", e.text);
        return tap_done();
    }
    for (int kind = 0; kind < nkinds; kind++) gpu[kind] = (side){dev, kinds[kind].type, NULL};
    for (int k = 0; k < CASES; k++) check(&cases[k], &cpu, gpu, nkinds);
    for (size_t k = 0; k < (small ? 0 : sizeof large / sizeof *large); k++) check(&large[k], &cpu, gpu, nkinds);
    check_adam(cpu.dev, dev);
    printf("# seconds: drawing %.1f, CPU %.1f, GPU %.1f\n", seconds[0], seconds[1], seconds[2]);
    for (int kind = 0; kind < nkinds; kind++) ma_ctx_free(gpu[kind].c);
    ma_ctx_free(cpu.c);
    ma_device_close(dev);
    return tap_done();
}
