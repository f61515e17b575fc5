/* Replaying, on a device that records as a GPU does: calls are noted with the addresses and numbers that they were made
 * with, and nothing is computed until the recording runs. */
#include "../../common/ops.h"
#include "../tap.h"

#include <string.h>

enum { ROWS = 4, WIDTH = 8, SIZE = ROWS * WIDTH, MOST = 64 };

/* One thing that was asked of the device. */
typedef struct action {
    enum { CALL, MOVE, PUT } what;
    ma_call call;
    ma_tensor tensor[12]; /* what the call points to */
    void *dst, *bytes;    /* bytes: a copy of what was put */
    const void *src;
    size_t size;
} action;

typedef struct recording {
    action at[MOST];
    int n;
    size_t room, puts;
} recording;

static ma_device *cpu, mock;
static recording *noting;
static int launches, recordings, forgotten;
static bool broken; /* no recording comes to its end */

static ma_tensor *copy_of(action *a, int slot, const ma_tensor *t) {
    if (!t) return NULL;
    a->tensor[slot] = *t;
    return &a->tensor[slot];
}

static int note_call(const ma_call *call) {
    if (!noting) return cpu->fwd[call->op](call);
    action *a = &noting->at[noting->n++];
    a->what = CALL;
    a->call = *call;
    for (int k = 0; k < 8; k++) a->call.in[k] = copy_of(a, k, call->in[k]);
    a->call.out = copy_of(a, 8, call->out);
    for (int k = 0; k < 3; k++) a->call.save[k] = copy_of(a, 9 + k, call->save[k]);
    return 0;
}

static int note_move(ma_device *d, void *dst, const void *src, size_t size) {
    if (!noting) return cpu->move(d, dst, src, size);
    noting->at[noting->n++] = (action){.what = MOVE, .dst = dst, .src = src, .size = size};
    return 0;
}

static int note_put(ma_device *d, void *dst, const void *host, size_t size) {
    if (!noting) return cpu->put(d, dst, host, size);
    noting->puts += size;
    if (noting->puts > noting->room) return -1;
    void *bytes = ma_alloc(size, 1);
    memcpy(bytes, host, size);
    noting->at[noting->n++] = (action){.what = PUT, .dst = dst, .bytes = bytes, .size = size};
    return 0;
}

static int capture(ma_device *d, size_t puts) {
    (void)d;
    noting = ma_alloc(1, sizeof *noting);
    noting->room = puts;
    recordings++;
    return 0;
}

static void forget(ma_device *d, void *of) {
    recording *r = of;
    (void)d;
    for (int k = 0; k < r->n; k++) ma_release(r->at[k].bytes);
    ma_release(r);
    forgotten++;
}

static void *captured(ma_device *d) {
    recording *r = noting;
    noting = NULL;
    if (!broken) return r;
    forget(d, r);
    return NULL;
}

static int replay(ma_device *d, void *of) {
    const recording *r = of;
    launches++;
    for (int k = 0; k < r->n; k++) {
        const action *a = &r->at[k];
        if (a->what == CALL && cpu->fwd[a->call.op](&a->call)) return -1;
        if (a->what == MOVE) cpu->move(d, a->dst, a->src, a->size);
        if (a->what == PUT) cpu->put(d, a->dst, a->bytes, a->size);
    }
    return 0;
}

static void make_mock(void) {
    char note[160];
    ma_err e = {0};
    cpu = ma_device_open("cpu", false, note, &e);
    mock = *cpu;
    for (int k = 0; k < MA_NOPS; k++) mock.fwd[k] = note_call;
    mock.move = note_move;
    mock.put = note_put;
    mock.capture = capture;
    mock.captured = captured;
    mock.replay = replay;
    mock.forget = forget;
}

/* gelu(x·w) + y + a table, with its own intermediate tensors; counts how often it is run. */
typedef struct body {
    ma_tensor *w;
    int *runs;
    bool reads; /* looks at a value */
} body;

static ma_tensor *run_body(ma_ctx *c, const void *self, ma_tensor **in) {
    const body *b = self;
    float table[WIDTH], value[SIZE];
    ++*b->runs;
    for (int k = 0; k < WIDTH; k++) table[k] = (float)k;
    ma_tensor *h = ma_act_(c, ma_linear(c, in[0], b->w, NULL, MA_NONE), MA_GELU);
    if (b->reads && h) ma_get(c, h, value);
    return ma_add(c, ma_add(c, h, in[1]), ma_input(c, table, MA_SHAPE(WIDTH)));
}

static ma_tensor *weight(ma_ctx *c) {
    float x[WIDTH * WIDTH];
    for (int k = 0; k < WIDTH * WIDTH; k++) x[k] = (float)(k * 7 % 11) / 11 - 0.4f;
    ma_tensor *w = ma_keep(c, MA_F32, MA_SHAPE(WIDTH, WIDTH));
    ma_put(c, w, x);
    return w;
}

/* One batch: inputs, the block, the result. before: tensors that lie below them on the stack. */
static bool batch(ma_ctx *c, const body *b, int seed, int before, uint64_t key, float *out) {
    float x[SIZE], y[SIZE];
    for (int k = 0; k < SIZE; k++) {
        x[k] = (float)((k + seed) * 13 % 17) / 17;
        y[k] = (float)(seed - k);
    }
    for (int k = 0; k < before; k++) ma_new(c, MA_F32, MA_SHAPE(SIZE));
    ma_tensor *in[2] = {ma_input(c, x, MA_SHAPE(ROWS, WIDTH)), ma_input(c, y, MA_SHAPE(ROWS, WIDTH))};
    ma_tensor *got = ma_replay(c, run_body, b, in, 2, key);
    ma_tensor *after = ma_affine(c, got, 1, 0); /* stands behind the result, not upon it */
    bool good = after && !ma_get(c, after, out);
    float again[SIZE];
    good = good && !ma_get(c, got, again) && !memcmp(again, out, sizeof again);
    ma_reset(c);
    return good;
}

/* What the CPU says to the same. */
static bool right(const body *b, int seed, const float *got) {
    ma_err e = {0};
    ma_ctx *c = ma_ctx_new(cpu, &e);
    float want[SIZE];
    int runs = 0;
    const body plain = {weight(c), &runs, b->reads};
    ma_recording(c, false);
    bool good = batch(c, &plain, seed, 0, 0, want) && runs == 1 && !memcmp(want, got, sizeof want);
    ma_ctx_free(c);
    return good;
}

static ma_ctx *open_context(void) {
    ma_err e = {0};
    ma_ctx *c = ma_ctx_new(&mock, &e);
    ma_recording(c, false);
    launches = recordings = forgotten = 0;
    return c;
}

static void check_batches(void) {
    ma_ctx *c = open_context();
    int runs = 0;
    const body b = {weight(c), &runs, false};
    float out[SIZE];
    bool good = true;
    for (int k = 0; k < 6; k++) good = batch(c, &b, k, 0, 0, out) && right(&b, k, out) && good;
    ok(good, "each batch gives what it gives without %s", ma_ctx_err(c)->text);
    ok(runs == 3 && recordings == 1 && launches == 4, "two are run, one is recorded, four are launched: %d, %d, %d",
       runs, recordings, launches);
    const ma_replayed r = ma_ctx_replayed(c);
    ok(r.run == 2 && r.replayed == 4 && r.refused == 0, "and it is told");
    good = batch(c, &b, 3, 1, 0, out) && right(&b, 3, out);
    ok(good && runs == 4, "where inputs lie elsewhere it is run");
    good = batch(c, &b, 3, 0, 1, out) && right(&b, 3, out);
    ok(good && runs == 5, "with another key, too");
    ma_recording(c, true);
    good = batch(c, &b, 3, 0, 0, out) && right(&b, 3, out);
    ok(good && runs == 6, "and where the tape records");
    ma_recording(c, false);
    ma_tensor *wide = ma_new(c, MA_F32, MA_SHAPE(1, 1, 64, 64, 16)),
              *many = ma_new(c, MA_F32, MA_SHAPE(16, 1, 3, 3, 16));
    ma_conv(c, wide, many, NULL, MA_WINDOW(1, 1, 1, 0, 1, 1), MA_NONE);
    ma_reset(c);
    good = batch(c, &b, 4, 0, 0, out) && right(&b, 4, out);
    ok(good && runs == 7 && forgotten == 1, "a workspace that has moved makes the recording stale %d %d", runs,
       forgotten);
    for (int k = 0; k < 3; k++) good = batch(c, &b, k, 0, 0, out) && right(&b, k, out) && good;
    ok(good && recordings == 2, "it is recorded again");
    ma_ctx_free(c);
    ok(forgotten == 2, "nothing recorded is left behind");
}

/* Inputs that stay where they are, on a stack that does not. */
static void check_stack(void) {
    ma_ctx *c = open_context();
    int runs = 0;
    const body b = {weight(c), &runs, false};
    ma_tensor *in[2] = {ma_keep(c, MA_F32, MA_SHAPE(ROWS, WIDTH)), ma_keep(c, MA_F32, MA_SHAPE(ROWS, WIDTH))};
    float values[SIZE] = {1, 2, 3}, got[2][SIZE];
    ma_put(c, in[0], values);
    ma_put(c, in[1], values);
    for (int k = 0; k < 5; k++) {
        if (k == 4) ma_new(c, MA_F32, MA_SHAPE(SIZE));
        ma_get(c, ma_replay(c, run_body, &b, in, 2, 0), got[k == 4]);
        ma_reset(c);
    }
    ok(!ma_failed(c) && launches == 2 && !memcmp(got[0], got[1], sizeof *got),
       "on another part of the stack it is run %s", ma_ctx_err(c)->text);
    ma_ctx_free(c);
}

static void check_refused(void) {
    ma_ctx *c = open_context();
    int runs = 0;
    const body reads = {weight(c), &runs, true};
    float out[SIZE];
    bool good = true;
    for (int k = 0; k < 5; k++) good = batch(c, &reads, k, 0, 0, out) && right(&reads, k, out) && good;
    ok(good && recordings == 1 && launches == 0 && ma_ctx_replayed(c).refused == 3,
       "what reads values within is always run %s", ma_ctx_err(c)->text);
    ma_ctx_free(c);

    c = open_context();
    broken = true;
    const body plain = {weight(c), &runs, false};
    for (int k = 0; k < 5; k++) good = batch(c, &plain, k, 0, 0, out) && right(&plain, k, out) && good;
    ok(good && recordings == 1 && launches == 0, "so is what cannot be recorded");
    broken = false;
    ma_ctx_free(c);

    c = open_context();
    const body again = {weight(c), &runs, false};
    for (int k = 0; k < 80; k++) good = batch(c, &again, k, 0, (uint64_t)k / 4, out) && right(&again, k, out) && good;
    ok(good && launches == 40 && recordings == 20 && forgotten == 4, "of many recordings the oldest make room %d",
       forgotten);
    ma_ctx_free(c);
    ok(forgotten == 20, "and none stays");
}

int main(void) {
    make_mock();
    check_batches();
    check_stack();
    check_refused();
    return tap_done();
}
