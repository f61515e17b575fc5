/* vae: what CogVideoX's autoencoder takes on the GPU at its published size, 49x480x720, with random weights.
 *     build/tests/bench/vae [TYPE…]      bf16 f16 (default: both) f32; "tiles": in tiles, too
 * One line a figure: name, median ms of the runs (min, max), products done a second, frames a second, peak of memory.
 * PROFILE=1: and what each op took, by shape, every call on a clock of its own: rates in TFLOP/s of products and TB/s
 * of inputs and outputs, so that what is slow for its size stands out.
 */
#include "../../common/models/vae.h"
#include "../../common/rng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 5, MOST = 512 };

/* The calls of one op on one shape. */
typedef struct line {
    ma_op op;
    int64_t x[5], w[5];
    int calls;
    double ms, flop, bytes;
} line;

static ma_kernel plain[MA_NOPS];
static ma_device *device;
static line lines[MOST];
static int nlines;
static bool timing;

static double flop_of(const ma_call *call) {
    const ma_tensor *w = call->in[1];
    if (call->op == MA_OP_CONV) return 2.0 * (double)ma_count(call->out) * (double)(ma_count(w) / w->n[0]);
    if (call->op == MA_OP_CONV_TRANSPOSE) return 2.0 * (double)ma_count(call->in[0]) * (double)(ma_count(w) / w->n[0]);
    return 0;
}

static line *line_of(const ma_call *call) {
    line now = {.op = call->op};
    memcpy(now.x, call->in[0]->n, sizeof now.x);
    if (flop_of(call) > 0) memcpy(now.w, call->in[1]->n, sizeof now.w);
    for (int k = 0; k < nlines; k++)
        if (lines[k].op == now.op && !memcmp(lines[k].x, now.x, sizeof now.x) &&
            !memcmp(lines[k].w, now.w, sizeof now.w))
            return &lines[k];
    lines[nlines] = now;
    return &lines[nlines < MOST - 1 ? nlines++ : nlines];
}

static int counted(const ma_call *call) {
    line *l = line_of(call);
    if (timing) device->timer(device, false);
    int rc = plain[call->op](call);
    if (timing) l->ms += device->timer(device, true);
    l->calls++;
    l->flop += flop_of(call);
    l->bytes += (double)ma_bytes(call->out);
    for (int k = 0; k < 8; k++)
        if (call->in[k]) l->bytes += (double)ma_bytes(call->in[k]);
    return rc;
}

typedef struct bench {
    ma_ctx *c;
    vae *net;
    vae_part part;
    ma_tensor *x;
    const vae_tiles *tiles;
} bench;

/* As a tool would: piece by piece, what comes out dropped. */
static void run(const bench *b) {
    vae_stream *s = vae_open(b->c, b->net, b->part, b->x->n, b->tiles);
    for (int64_t at = 0, n; s && (n = vae_wants(s)) > 0; at += n) {
        ma_mark_t m = ma_mark(b->c);
        if (!vae_next(s, ma_slice(b->c, b->x, 1, at, n))) break;
        ma_rewind(b->c, m);
    }
    vae_close(s);
}

/* A run with every op looked at; returns the products done. */
static double count(const bench *b, bool with_time) {
    double flop = 0;
    timing = with_time;
    nlines = 0;
    memset(lines, 0, sizeof lines);
    memcpy(plain, device->fwd, sizeof plain);
    for (int k = 0; k < MA_NOPS; k++)
        if (plain[k]) device->fwd[k] = counted;
    run(b);
    memcpy(device->fwd, plain, sizeof plain);
    for (int k = 0; k < nlines; k++) flop += lines[k].flop;
    return flop;
}

static int by_time(const void *a, const void *b) {
    const line *x = a, *y = b;
    return (x->ms < y->ms) - (x->ms > y->ms);
}

static void profile(const bench *b) {
    count(b, true);
    qsort(lines, (size_t)nlines, sizeof *lines, by_time);
    for (int k = 0; k < nlines; k++) {
        const line *l = &lines[k];
        char x[160], w[160];
        printf("    %9.3f ms %4d × %-14s %-22s", l->ms, l->calls, ma_op_name(l->op), ma_shape_text(x, 5, l->x));
        if (l->flop > 0) printf(" by %-16s %5.0f TFLOP/s", ma_shape_text(w, 5, l->w), l->flop / l->ms / 1e9);
        printf(" %6.2f TB/s\n", l->bytes / l->ms / 1e9);
    }
}

static int by_value(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static void measure(const bench *b, const char *name) {
    double ms[RUNS], flop = count(b, false);
    for (int k = 0; k < RUNS; k++) {
        device->timer(device, false);
        run(b);
        ms[k] = device->timer(device, true);
    }
    qsort(ms, RUNS, sizeof *ms, by_value);
    printf("%s: %.1f ms (min %.1f max %.1f) %.0f TFLOP, %.0f TFLOP/s, %.1f frames/s, memory %.2f GiB\n", name,
           ms[RUNS / 2], ms[0], ms[RUNS - 1], flop / 1e12, flop / ms[RUNS / 2] / 1e9, 49e3 / ms[RUNS / 2],
           (double)ma_ctx_memory(b->c).in_all / (1 << 30));
    if (ma_failed(b->c)) printf("%s: FAILED: %s\n", name, ma_ctx_err(b->c)->text);
    if (getenv("PROFILE")) profile(b);
    fflush(stdout);
}

static ma_tensor *draw(ma_ctx *c, int nd, const int64_t *n) {
    ma_tensor *t = ma_keep(c, ma_get_type(c), nd, n);
    float *host = t ? ma_alloc((size_t)ma_count(t), sizeof *host) : NULL;
    ma_rng rng = ma_rng_make(1, "x", 0, MA_RNG_TEST);
    if (!host) return NULL;
    ma_rng_fill_uniform(&rng, host, (size_t)ma_count(t));
    for (int64_t k = 0; k < ma_count(t); k++) host[k] = 2 * host[k] - 1;
    ma_put(c, t, host);
    ma_release(host);
    return t;
}

static void bench_part(ma_type type, vae_part part, bool tiled) {
    ma_err e = {0};
    vae_config config;
    vae_2b(&config);
    const vae_tiles tiles = vae_default_tiles(&config);
    bench b = {.c = ma_ctx_new(device, &e), .part = part, .tiles = tiled ? &tiles : NULL};
    ma_set_type(b.c, type);
    ma_params *p = ma_params_new(b.c, NULL, false, 1);
    b.net = vae_make(p, &config, part);
    b.x = part == VAE_ENCODER ? draw(b.c, MA_SHAPE(1, 49, 480, 720, 3)) : draw(b.c, MA_SHAPE(1, 13, 60, 90, 16));
    char name[80];
    snprintf(name, sizeof name, "VAE %s 49x480x720, %s%s", part == VAE_ENCODER ? "encode" : "decode",
             ma_type_name(type), tiled ? ", in tiles" : "");
    if (b.net && b.x)
        measure(&b, name);
    else
        printf("%s: FAILED: %s\n", name, ma_ctx_err(b.c)->text);
    vae_free(b.net);
    ma_params_free(p);
    ma_ctx_free(b.c);
}

int main(int argc, char **argv) {
    static const ma_type types[] = {MA_BF16, MA_F16, MA_F32};
    ma_err e = {0};
    char note[160];
    bool tiles = false;
    device = ma_device_open("cuda", false, note, &e);
    if (!device) {
        fprintf(stderr, "bench: %s\n", e.text);
        return 1;
    }
    for (int a = 1; a < argc; a++) tiles |= !strcmp(argv[a], "tiles");
    for (int k = 0; k < 3; k++) {
        bool wanted = argc - tiles == 1 && types[k] != MA_F32;
        for (int a = 1; a < argc; a++) wanted |= !strcmp(argv[a], ma_type_name(types[k]));
        for (int tiled = 0; wanted && tiled <= tiles; tiled++) {
            bench_part(types[k], VAE_ENCODER, tiled);
            bench_part(types[k], VAE_DECODER, tiled);
        }
    }
    ma_device_close(device);
    return 0;
}
