/* gpu: what the CUDA half takes for the work of the published sizes, beside its physical floor: operations over the rate
 * of this card's matrix units and bytes over its memory bandwidth, both measured first. Random weights.
 *     build/tests/bench/gpu [SECTION…]      sections: limits attention conv linear videomae raft subspace cogvideox
 *                                           optimiser train
 * PROFILE=1: and what each op took. One line a figure: name, median ms of the runs (min, max), rate, the floor in ms, time over floor.
 * Memory: the arenas. Forward passes stand there twice: op by op, and launched as one (ma_replay).
 */
#include "../../common/models/motion.h"
#include "../../common/models/cogvideox.h"
#include "../../common/models/raft.h"
#include "../../common/models/videomae.h"
#include "../../common/optim.h"
#include "../../common/rng.h"
#include "../golden/golden.h"

#include <string.h>

typedef struct bench {
    ma_ctx *c;
    ma_device *dev;
    double tflops, tbps; /* measured ceilings */
} bench;

typedef void (*body)(bench *, void *);

static int by_value(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* ---- where the time goes: every kernel of the table, timed by itself ---- */

static ma_kernel plain[2][MA_NOPS];
static double spent[2][MA_NOPS];
static int calls[2][MA_NOPS];
static ma_device *timed_device;

static int timed(const ma_call *call, int backward) {
    timed_device->timer(timed_device, false);
    int rc = plain[backward][call->op](call);
    spent[backward][call->op] += timed_device->timer(timed_device, true);
    calls[backward][call->op]++;
    return rc;
}

static int timed_fwd(const ma_call *call) {
    return timed(call, 0);
}

static int timed_bwd(const ma_call *call) {
    return timed(call, 1);
}

/* One run with every op on a clock of its own; its launches do not overlap, so the sum is more than the run takes. */
static void profile(bench *b, body run, void *with) {
    ma_device *d = timed_device = b->dev;
    memcpy(plain[0], d->fwd, sizeof plain[0]);
    memcpy(plain[1], d->bwd, sizeof plain[1]);
    memset(spent, 0, sizeof spent);
    memset(calls, 0, sizeof calls);
    for (int k = 0; k < MA_NOPS; k++) {
        if (d->fwd[k]) d->fwd[k] = timed_fwd;
        if (d->bwd[k]) d->bwd[k] = timed_bwd;
    }
    run(b, with);
    memcpy(d->fwd, plain[0], sizeof plain[0]);
    memcpy(d->bwd, plain[1], sizeof plain[1]);
    for (int way = 0; way < 2; way++)
        for (int k = 0; k < MA_NOPS; k++)
            if (calls[way][k])
                printf("    %-16s %s %5d calls %9.3f ms\n", ma_op_name((ma_op)k), way ? "backward" : "forward ", calls[way][k], spent[way][k]);
}

/* Runs and prints; the median in ms. */
static double measure(bench *b, const char *name, body run, void *with, double flop, double bytes, double items) {
    enum { RUNS = 7 };
    double ms[RUNS];
    for (int k = 0; k < 3; k++) run(b, with);
    for (int k = 0; k < RUNS; k++) {
        b->dev->timer(b->dev, false);
        run(b, with);
        ms[k] = b->dev->timer(b->dev, true);
    }
    qsort(ms, RUNS, sizeof *ms, by_value);
    double median = ms[RUNS / 2], floor_ms = fmax(b->tflops ? flop / b->tflops / 1e9 : 0, b->tbps ? bytes / b->tbps / 1e9 : 0);
    ma_memory m = ma_ctx_memory(b->c);
    printf("%s: %.3f ms (min %.3f max %.3f)", name, median, ms[0], ms[RUNS - 1]);
    if (flop > 0) printf(" %.0f TFLOP/s", flop / median / 1e9);
    if (items > 0) printf(" %.1f items/s", items / median * 1e3);
    if (floor_ms > 0) printf(" floor %.3f ms, %.2f of it", floor_ms, median / floor_ms);
    printf(" memory %.1f GiB\n", (double)(m.keep + m.keep_grad + m.optimiser + m.stack_peak + m.pool + m.work) / (1 << 30));
    if (ma_failed(b->c)) printf("%s: FAILED: %s\n", name, ma_ctx_err(b->c)->text);
    if (getenv("PROFILE")) profile(b, run, with);
    fflush(stdout);
    return median;
}

static ma_tensor *draw(bench *b, ma_type type, bool leaf, int nd, const int64_t *n, const char *name) {
    ma_tensor *t = ma_keep(b->c, type, nd, n);
    size_t count = t ? (size_t)ma_count(t) : 0;
    float *host = ma_alloc(count, sizeof *host);
    ma_rng rng = ma_rng_make(1, name, 0, MA_RNG_TEST);
    if (host) ma_rng_fill_uniform(&rng, host, count);
    for (size_t k = 0; host && k < count; k++) host[k] = 2 * host[k] - 1;
    ma_put(b->c, t, host);
    ma_release(host);
    return leaf ? ma_leaf(b->c, t) : t;
}

static void fresh(bench *b, ma_type type) {
    ma_err e = {0};
    ma_ctx_free(b->c);
    b->c = ma_ctx_new(b->dev, &e);
    ma_set_type(b->c, type);
}

/* ---- limits ---- */

typedef struct pair {
    ma_tensor *x, *w, *b;
    ma_act act;
    ma_tensor *q[3];
    ma_window window;
} pair;

static void run_copy(bench *b, void *with) {
    pair *p = with;
    b->dev->move(b->dev, p->x->data, p->w->data, ma_bytes(p->x));
}

static void run_linear(bench *b, void *with) {
    pair *p = with;
    ma_linear(b->c, p->x, p->w, p->b, p->act);
    ma_reset(b->c);
}

static void limits(bench *b) {
    fresh(b, MA_BF16);
    pair p = {.x = ma_keep(b->c, MA_BF16, MA_SHAPE(1 << 30)), .w = ma_keep(b->c, MA_BF16, MA_SHAPE(1 << 30))};
    double ms = measure(b, "copy 2 GiB (4 GiB moved)", run_copy, &p, 0, 0, 0);
    b->tbps = 2.0 * (double)ma_bytes(p.x) / ms / 1e9;
    fresh(b, MA_BF16);
    p = (pair){.x = draw(b, MA_BF16, false, MA_SHAPE(17776, 1920), "x"), .w = draw(b, MA_BF16, false, MA_SHAPE(7680, 1920), "w")};
    ms = measure(b, "gemm 17776x1920x7680 bf16", run_linear, &p, 2.0 * 17776 * 1920 * 7680, 0, 0);
    b->tflops = 2.0 * 17776 * 1920 * 7680 / ms / 1e9;
    printf("ceilings: %.0f TFLOP/s, %.2f TB/s\n", b->tflops, b->tbps);
}

static void linear(bench *b) {
    fresh(b, MA_BF16);
    pair p = {.x = draw(b, MA_BF16, false, MA_SHAPE(17776, 1920), "x"), .w = draw(b, MA_BF16, false, MA_SHAPE(7680, 1920), "w"),
              .b = draw(b, MA_BF16, false, MA_SHAPE(7680), "b"), .act = MA_GELU_TANH};
    measure(b, "linear 17776x1920x7680, bias and gelu", run_linear, &p, 2.0 * 17776 * 1920 * 7680, 0, 0);
    pair d = {.x = draw(b, MA_BF16, false, MA_SHAPE(17776, 7680), "y"), .w = draw(b, MA_BF16, false, MA_SHAPE(1920, 7680), "v"),
              .b = draw(b, MA_BF16, false, MA_SHAPE(1920), "c")};
    measure(b, "linear 17776x7680x1920, bias", run_linear, &d, 2.0 * 17776 * 1920 * 7680, 0, 0);
    d = (pair){.x = p.x, .w = draw(b, MA_BF16, false, MA_SHAPE(1920, 1920), "u"), .b = d.b};
    measure(b, "linear 17776x1920x1920, bias", run_linear, &d, 2.0 * 17776 * 1920 * 1920, 0, 0);
}

/* ---- attention, convolution ---- */

static void run_attention(bench *b, void *with) {
    pair *p = with;
    bool was = ma_recording(b->c, false);
    ma_attention(b->c, p->q[0], p->q[1], p->q[2], 0.125);
    ma_recording(b->c, was);
    ma_reset(b->c);
}

static void run_attention_both(bench *b, void *with) {
    pair *p = with;
    ma_tensor *o = ma_attention(b->c, p->q[0], p->q[1], p->q[2], 0.125);
    ma_backward(b->c, ma_mse(b->c, o, p->x), 1);
    ma_reset(b->c);
}

static void attention(bench *b) {
    const double flop = 4.0 * 17776 * 17776 * 64 * 30;
    fresh(b, MA_BF16);
    pair p = {.x = draw(b, MA_F32, false, MA_SHAPE(1, 17776, 30, 64), "target")};
    for (int k = 0; k < 3; k++) p.q[k] = draw(b, MA_BF16, true, MA_SHAPE(1, 17776, 30, 64), "qkv");
    measure(b, "attention forward", run_attention, &p, flop, 0, 0);
    measure(b, "attention forward+backward (and a loss)", run_attention_both, &p, 3.5 * flop, 0, 0);
}

static void run_conv(bench *b, void *with) {
    pair *p = with;
    ma_conv(b->c, p->x, p->w, p->b, p->window, p->act);
    ma_reset(b->c);
}

static void conv(bench *b) {
    static const int64_t sizes[][4] = {{128, 10, 480, 720}, {256, 6, 240, 360}, {512, 4, 120, 180}};
    for (int k = 0; k < 3; k++) {
        const int64_t *n = sizes[k];
        char name[80];
        fresh(b, MA_BF16);
        pair p = {.x = draw(b, MA_BF16, false, MA_SHAPE(1, n[1], n[2], n[3], n[0]), "x"),
                  .w = draw(b, MA_BF16, false, MA_SHAPE(n[0], 3, 3, 3, n[0]), "w"), .window = MA_WINDOW(1, 1, 1, 0, 1, 1)};
        double flop = 2.0 * (double)(n[0] * n[0] * 27 * (n[1] - 2) * n[2] * n[3]);
        snprintf(name, sizeof name, "conv3d NDHWC c%lld %lldx%lldx%lld", (long long)n[0], (long long)n[1], (long long)n[2], (long long)n[3]);
        measure(b, name, run_conv, &p, flop, 0, 0);
    }
}

/* ---- networks ---- */

typedef struct net {
    vit *vit;
    raft *flow;
    motion *head;
    cogvideox *dit;
    ma_params *params;
    ma_optim *optim;
    ma_tensor *x, *y, *z;
    bool checkpoint;
    ma_block forward; /* of in[] */
    ma_tensor *in[3];
    int nin;
    bool replayed;
} net;

static void run_forward(bench *b, void *with) {
    net *n = with;
    bool was = ma_recording(b->c, false);
    if (n->replayed)
        ma_replay(b->c, n->forward, n, n->in, n->nin, 0);
    else
        n->forward(b->c, n, n->in);
    ma_recording(b->c, was);
    ma_reset(b->c);
}

/* As it stands, then replayed. */
static void measure_forward(bench *b, const char *name, net *n, double flop, double items) {
    char again[120];
    measure(b, name, run_forward, n, flop, 0, items);
    n->replayed = true;
    snprintf(again, sizeof again, "%s, replayed", name);
    measure(b, again, run_forward, n, flop, 0, items);
    if (!ma_ctx_replayed(b->c).replayed) printf("%s: could not be recorded\n", name);
}

static ma_tensor *vit_forward_of(ma_ctx *c, const void *self, ma_tensor **in) {
    const net *n = self;
    return vit_forward(c, n->vit, in[0], 0);
}

static void video(bench *b) {
    static const int64_t sizes[][4] = {{48, 160, 240, 8}, {16, 224, 224, 16}};
    for (int k = 0; k < 2; k++) {
        const int64_t *s = sizes[k];
        const vit_size base = {.depth = 12, .width = 768, .heads = 12, .patch = 16, .tubelet = 2};
        double tokens = (double)(s[0] / 2 * (s[1] / 16) * (s[2] / 16));
        char name[80];
        fresh(b, MA_BF16);
        net n = {.vit = vit_random(&videomae_kind, b->c, &base, 1, false), .forward = vit_forward_of, .nin = 1,
                 .in = {draw(b, MA_BF16, false, MA_SHAPE(s[3], s[0], s[1], s[2], 3), "x")}};
        snprintf(name, sizeof name, "VideoMAE-B %lldx%lldx%lld batch %lld", (long long)s[0], (long long)s[1], (long long)s[2], (long long)s[3]);
        measure_forward(b, name, &n, (double)s[3] * 12 * (24 * 768.0 * 768 * tokens + 4 * tokens * tokens * 768), (double)s[3]);
        vit_free(n.vit);
    }
}

static ma_tensor *raft_forward_of(ma_ctx *c, const void *self, ma_tensor **in) {
    const net *n = self;
    return raft_between(c, n->flow, in[0], in[0]->n[1] - 1, 0, 1, 12);
}

/* Bytes of pictures. */
static ma_tensor *draw_bytes(bench *b, int nd, const int64_t *n) {
    ma_tensor *t = ma_keep(b->c, MA_U8, nd, n);
    uint8_t *host = ma_alloc(t ? (size_t)ma_count(t) : 1, 1);
    for (int64_t k = 0; t && host && k < ma_count(t); k++) host[k] = (uint8_t)(k * k >> 7);
    ma_put_raw(b->c, t, host);
    ma_release(host);
    return t;
}

/* Pairs of their own, as PyTorch's is given them, and pairs that share frames, as ma-flow's are. */
static void flow(bench *b) {
    static const struct {
        int64_t height, width, clips, frames;
    } sizes[] = {{480, 720, 4, 2}, {160, 240, 64, 2}, {480, 720, 1, 7}, {160, 240, 2, 24}};
    ma_weights *fixture = golden_open("tests/golden/raft.safetensors");
    for (int k = 0; k < 6; k++) {
        const bool tf32 = k < 2;
        const ma_type type = tf32 ? MA_F32 : MA_F16;
        const int form = tf32 ? k : k - 2;
        const int64_t height = sizes[form].height, width = sizes[form].width, clips = sizes[form].clips,
                      frames = sizes[form].frames;
        char name[80];
        golden g = golden_begin(fixture, "torchvision-large");
        fresh(b, type);
        b->dev->tf32(b->dev, tf32);
        net n = {.flow = raft_load(b->c, g.weights), .forward = raft_forward_of, .nin = 1,
                 .in = {draw_bytes(b, MA_SHAPE(clips, frames, height, width, 3))}};
        snprintf(name, sizeof name, "RAFT-large %lldx%lld %lld x %lld frames, 12 updates, %s", (long long)height,
                 (long long)width, (long long)clips, (long long)frames, tf32 ? "tf32" : "f16");
        measure_forward(b, name, &n, 0, (double)(clips * (frames - 1)));
        raft_free(n.flow);
        golden_end(&g);
    }
    b->dev->tf32(b->dev, false);
    ma_weights_close(fixture);
}

static void run_subspace(bench *b, void *with) {
    net *n = with;
    ma_err e = {0};
    double norm;
    ma_backward(b->c, ma_l1(b->c, motion_decode(b->c, n->head, motion_project(b->c, n->head, n->x)), n->y), 1);
    ma_reset(b->c);
    if (ma_optim_step(n->optim, &norm, &e)) ma_fail(ma_ctx_err(b->c), e.reason, "%s", e.text);
}

static ma_optim *adam_for(bench *b, ma_params *p, ma_optim_state state) {
    const ma_optim_opts o = {.lr = 1e-6, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.01, .state = state};
    return ma_optim_new(b->c, (ma_params *[]){p}, 1, &o);
}

static void subspace(bench *b) {
    const motion_size size = {.in = 768, .hidden = 256, .out = 64, .flow = {23, 128, 192}};
    fresh(b, MA_BF16);
    net n = {.params = ma_params_new(b->c, NULL, true, 1)};
    n.head = motion_make(n.params, &size);
    n.optim = adam_for(b, n.params, MA_STATE_F32);
    n.x = draw(b, MA_BF16, false, MA_SHAPE(32, 24, 10, 15, 768), "x");
    n.y = draw(b, MA_F32, false, MA_SHAPE(32, 23, 128, 192, 2), "y");
    measure(b, "motion subspace, training step, batch 32", run_subspace, &n, 0, 0, 32);
    ma_optim_free(n.optim);
    motion_free(n.head);
    ma_params_free(n.params);
}

static const double flop_2b = 30 * (24.0 * 1920 * 1920 * 17776 + 4.0 * 17776 * 17776 * 1920);

static net make_2b(bench *b, bool train, int64_t batch) {
    cogvideox_config config;
    cogvideox_2b(&config);
    fresh(b, MA_BF16);
    net n = {.params = ma_params_new(b->c, NULL, train, 1)};
    n.dit = cogvideox_make(n.params, &config);
    n.x = draw(b, MA_BF16, false, MA_SHAPE(batch, 13, 60, 90, 16), "x");
    n.y = draw(b, MA_BF16, false, MA_SHAPE(batch, 226, 4096), "text");
    n.z = draw(b, MA_F32, false, MA_SHAPE(batch, 13, 60, 90, 16), "v");
    return n;
}

static void free_2b(net *n) {
    ma_optim_free(n->optim);
    cogvideox_free(n->dit);
    ma_params_free(n->params);
}

static ma_tensor *dit_forward_of(ma_ctx *c, const void *self, ma_tensor **in) {
    const net *n = self;
    const cogvideox_run run = {.times = in[2]};
    return cogvideox_forward(c, n->dit, in[0], NULL, in[1], &run, NULL);
}

static void cogvideo(bench *b) {
    for (int batch = 1; batch <= 2; batch++) {
        net n = make_2b(b, false, batch);
        n.forward = dit_forward_of;
        n.nin = 3;
        memcpy(n.in, (ma_tensor *[]){n.x, n.y, draw(b, MA_BF16, false, MA_SHAPE(batch, 1920), "times")}, sizeof n.in);
        measure_forward(b, batch == 1 ? "CogVideoX-2B forward, batch 1" : "CogVideoX-2B forward, batch 2", &n, batch * flop_2b, 0);
        free_2b(&n);
    }
}

static void run_step(bench *b, void *with) {
    net *n = with;
    const cogvideox_run run = {.checkpoint = n->checkpoint};
    const double t = 500;
    ma_err e = {0};
    double norm;
    ma_backward(b->c, ma_mse(b->c, cogvideox_forward(b->c, n->dit, n->x, &t, n->y, &run, NULL), n->z), 1);
    ma_reset(b->c);
    if (ma_optim_step(n->optim, &norm, &e)) ma_fail(ma_ctx_err(b->c), e.reason, "%s", e.text);
}

static void train(bench *b) {
    net n = make_2b(b, true, 1);
    n.optim = adam_for(b, n.params, MA_STATE_F32);
    n.checkpoint = true;
    const size_t there = b->dev->free_bytes;
    ma_device_limit(b->dev, (size_t)36 << 30);
    measure(b, "CogVideoX-2B training step, batch 1, checkpointing, within 36 GiB", run_step, &n, 3 * flop_2b, 0, 0);
    b->dev->limit = 0;
    b->dev->free_bytes = there;
    free_2b(&n);
    n = make_2b(b, true, 1);
    n.optim = adam_for(b, n.params, MA_STATE_F32);
    n.checkpoint = true;
    measure(b, "CogVideoX-2B training step, batch 1, checkpointing", run_step, &n, 3 * flop_2b, 0, 0);
    n.checkpoint = false;
    measure(b, "CogVideoX-2B training step, batch 1", run_step, &n, 3 * flop_2b, 0, 0);
    free_2b(&n);
}

static void run_optimiser(bench *b, void *with) {
    const net *n = with;
    ma_err e = {0};
    double norm;
    if (ma_optim_step(n->optim, &norm, &e)) ma_fail(ma_ctx_err(b->c), e.reason, "%s", e.text);
}

/* Bytes a parameter: its gradient is cleared, summed and read, 12; its storage written, 2; its state there and back. */
static void optimiser(bench *b) {
    static const struct {
        ma_optim_state state;
        const char *name;
        int bytes; /* on the device */
    } states[] = {{MA_STATE_F32, "f32", 38}, {MA_STATE_BF16, "bf16", 30}, {MA_STATE_HOST, "on the host", 14}};
    for (size_t k = 0; k < sizeof states / sizeof *states; k++) {
        net n = make_2b(b, true, 1);
        char name[80];
        n.optim = adam_for(b, n.params, states[k].state);
        snprintf(name, sizeof name, "CogVideoX-2B optimiser step, state %s", states[k].name);
        measure(b, name, run_optimiser, &n, 0, (double)ma_params_count(n.params) * states[k].bytes, 0);
        free_2b(&n);
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(bench *);
    } sections[] = {{"attention", attention}, {"conv", conv}, {"linear", linear}, {"videomae", video}, {"raft", flow},
                    {"subspace", subspace}, {"cogvideox", cogvideo}, {"optimiser", optimiser}, {"train", train}};
    ma_err e = {0};
    char note[160];
    bench b = {.dev = ma_device_open("cuda", false, note, &e)};
    if (!b.dev) {
        fprintf(stderr, "bench: %s\n", e.text);
        return 1;
    }
    limits(&b);
    for (size_t k = 0; k < sizeof sections / sizeof *sections; k++) {
        bool wanted = argc == 1;
        for (int a = 1; a < argc; a++) wanted |= !strcmp(argv[a], sections[k].name);
        if (wanted) sections[k].run(&b);
    }
    ma_ctx_free(b.c);
    ma_device_close(b.dev);
    return 0;
}
