/* pinned: blocks lent on several threads at once, refused where there are none, all given back; and in training, where
 * samples that lie in them must stay until the device has read them, and nothing else may change. */
#include "../shard/samples.h"
#include "../../common/ops.h"
#include "../../common/train.h"
#include "far.h"

#include <omp.h>
#include <pthread.h>

enum { N = 30, IN = 24, OUT = 6, TIMES = 3000, THREADS = 4 };

/* ---- blocks */

/* Holds a few at a time; none may be anybody else's. */
static void *lend(void *arg) {
    ma_pinned *p = arg;
    uint64_t state = (uint64_t)(uintptr_t)pthread_self();
    unsigned char *held[5] = {0};
    size_t size[5] = {0}, wrong = 0;
    for (int k = 0; k < TIMES; k++) {
        const int at = (int)(noise(&state) % 5);
        const unsigned char mark = (unsigned char)(noise(&state) % 255);
        if (held[at]) wrong += held[at][0] != held[at][size[at] - 1];
        ma_pinned_give(p, held[at], size[at]);
        size[at] = 1 + noise(&state) % 300000;
        if ((held[at] = ma_pinned_take(p, size[at]))) held[at][0] = held[at][size[at] - 1] = mark;
    }
    for (int k = 0; k < 5; k++) ma_pinned_give(p, held[k], size[k]);
    return (void *)wrong;
}

static void test_blocks(void) {
    ma_device *d = far_open(12);
    ma_device plan = *d;
    plan.plan = true;
    ok(!ma_pinned_new(NULL) && !ma_pinned_new(far.cpu) && !ma_pinned_new(&plan), "none where there is no use for them");
    ma_pinned *p = ma_pinned_new(d);
    pthread_t thread[THREADS];
    size_t wrong = 0;
    void *more;
    for (int k = 0; k < THREADS; k++) pthread_create(&thread[k], NULL, lend, p);
    for (int k = 0; k < THREADS; k++) {
        pthread_join(thread[k], &more);
        wrong += (size_t)(uintptr_t)more;
    }
    ok(!wrong && far.blocks == 12, "no block is lent twice: %zu", wrong);
    ok(far.refused == 1, "who refused is not asked again: %d", far.refused);
    ma_pinned_free(p);
    ok(!far.blocks, "all are given back");

    p = ma_pinned_new(far_open(100));
    void *a = ma_pinned_take(p, 1), *b = ma_pinned_take(p, 65536);
    ma_pinned_give(p, a, 1);
    void *again = ma_pinned_take(p, 40000);
    ok(a && b && a != b && again == a && far.blocks == 2, "what came back is lent first");
    ma_pinned_give(p, again, 40000);
    ma_pinned_give(p, b, 65536);
    ma_pinned_give(p, NULL, 5);
    int got = 0;
    for (size_t k = 1; k <= 40; k++) {
        void *x = ma_pinned_take(p, k << 17);
        got += x != NULL;
        ma_pinned_give(p, x, k << 17);
    }
    ok(got == 15, "not of every size there is: %d", got);
    ok(!ma_pinned_take(p, 0) && !ma_pinned_take(p, SIZE_MAX) && !ma_pinned_take(p, SIZE_MAX - 70000), "nor of any");
    ma_pinned_free(p);
    ok(!far.blocks, "all are given back");
}

/* ---- training */

static const char *paths[] = {"a.tar.zst", "b.tar"};
static const ma_opt options[] = {{0}};
static ma_cli cli = {
    .name = "pinned", .opts = options, .common = {.max_bad = -1, .part = {0, 1}, .quiet = true}, .inputs = {paths, 2}};

/* Rows x (IN) in half precision, y (OUT) in either; noise; every seventh is of another shape. */
static void shard(const char *path, int level, bool half) {
    ma_err e = {0};
    ma_writer *w = ma_writer_open(&(ma_writer_opts){.path = path, .level = level}, &e);
    uint64_t state = 7;
    for (int k = 0; k < N; k++) {
        float v[2 * IN];
        char key[32];
        const int64_t in = k % 7 == 6 ? IN + 1 : IN, out = OUT;
        snprintf(key, sizeof key, "%c-%03d", *path, k);
        ma_sample *s = ma_sample_new(key);
        for (int i = 0; i < 2 * IN; i++) v[i] = (float)(noise(&state) % 4096) / 1024 - 2;
        ma_sample_put_f16(s, "x.npy", v, 1, &in, &e);
        ma_array y = {.type = MA_F32, .nd = 1, .n = {out}, .data = v + IN};
        if (half)
            ma_sample_put_f16(s, "y.npy", v + IN, 1, &out, &e);
        else
            ma_sample_put_array(s, "y.npy", &y, &e);
        ma_writer_add(w, s, &e);
    }
    if (ma_writer_close(w, &e) || e.reason) printf("# %s\n", e.text);
}

typedef struct net {
    ma_ctx *ctx;
    ma_tensor *w;
    bool look; /* whether batches are what the items hold, which waits for the device */
    int unlike;
} net;

static bool same_rows(ma_ctx *c, const ma_tensor *t, const ma_item *items, int n, int k) {
    bool same = t && ma_count(t) == n * (int64_t)ma_array_count(&items[0].a[k]);
    float *got = same ? ma_alloc((size_t)ma_count(t), sizeof *got) : NULL;
    same = got && !ma_get(c, t, got);
    for (int b = 0; b < n && same; b++) {
        const size_t count = ma_array_count(&items[b].a[k]);
        float *want = ma_array_f32(&items[b].a[k], NULL);
        same = want && !memcmp(got + (size_t)b * count, want, count * sizeof *want);
        ma_release(want);
    }
    ma_release(got);
    return same;
}

static ma_tensor *loss_of(void *self, const ma_item *items, int n, int64_t step, ma_parts *parts) {
    net *a = self;
    ma_ctx *c = a->ctx;
    (void)step, (void)parts;
    ma_tensor *x = ma_items_tensor(c, items, n, 0, false), *y = ma_items_tensor(c, items, n, 1, true);
    if (a->look) {
        ma_tensor *raw = ma_items_raw(c, items, n, 0), *raw_y = ma_items_raw(c, items, n, 1);
        a->unlike += !same_rows(c, x, items, n, 0) || !same_rows(c, raw, items, n, 0) || raw->type != MA_F16;
        a->unlike += !same_rows(c, y, items, n, 1) || !same_rows(c, raw_y, items, n, 1);
        a->unlike += raw_y && raw_y->type != items[0].a[1].type;
    }
    return ma_mse(c, ma_linear(c, x, a->w, NULL, MA_NONE), y);
}

/* More than is cast at once, of a few arrays again and again. */
static void test_large(void) {
    enum { COUNT = 7 << 20, ROWS = 5 };
    ma_ctx *c = ma_ctx_new(far_open(0), NULL);
    ma_array a[3];
    ma_item items[ROWS] = {0};
    for (int k = 0; k < 3; k++) {
        ma_array_new(&a[k], MA_F16, 1, (int64_t[]){COUNT}, NULL);
        for (int i = 0; i < COUNT; i++) ((uint16_t *)a[k].data)[i] = (uint16_t)(i * (k + 3) & 0x3fff);
    }
    for (int b = 0; b < ROWS; b++) items[b].a[0] = a[b % 3];
    const bool same = same_rows(c, ma_items_tensor(c, items, ROWS, 0, false), items, ROWS, 0);
    ok(same && far.casts == 2, "a large batch, cast by %d", far.casts);
    ok(ma_ctx_memory(c).stack_peak < COUNT * ROWS * 4 + (64u << 20), "with little beside it");
    for (int k = 0; k < 3; k++) ma_array_free(&a[k]);
    ma_ctx_free(c);
}

/* Where training ends up. dev: the device, which is the samples' too where far. */
typedef struct result {
    float w[OUT * IN];
    int64_t steps;
    int rc, unlike;
    ma_err e;
} result;

static result learn(ma_device *dev, bool reads, bool look) {
    static int runs;
    result r = {0};
    char *state = ma_format("state-%d", runs), *log = ma_format("log-%d", runs++);
    net a = {.ctx = ma_ctx_new(dev, NULL), .look = look};
    ma_params *p = ma_params_new(a.ctx, NULL, true, 3);
    a.w = ma_param(p, MA_PLAIN, MA_INIT_XAVIER, MA_SHAPE(OUT, IN), "w");
    ma_tally tally = {.cli = &cli};
    const ma_dataset_opts d = {.cli = &cli,
                               .member = {"x.npy", "y.npy"},
                               .members = 2,
                               .window = 12,
                               .seed = 5,
                               .epochs = 3,
                               .tally = &tally,
                               .device = reads ? dev : NULL};
    const ma_train_opts o = {
        .steps = 1000, .batch = 8, .accumulate = 2, .lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .log = log, .keep = 1};
    ma_train t = {.cli = &cli,
                  .o = &o,
                  .ctx = a.ctx,
                  .data = ma_dataset_open(&d, &r.e),
                  .tally = &tally,
                  .params = {p},
                  .nparams = 1,
                  .state = state,
                  .self = &a,
                  .loss = loss_of};
    r.rc = t.data ? ma_train_run(&t, &r.steps, &r.e) : -1;
    ma_dataset_close(t.data);
    if (!ma_failed(a.ctx)) ma_get(a.ctx, a.w, r.w);
    r.unlike = a.unlike;
    ma_params_free(p);
    ma_ctx_free(a.ctx);
    free(state);
    free(log);
    return r;
}

static bool alike(const result *a, const result *b) {
    if (a->rc || b->rc) printf("# %s; %s\n", a->e.text, b->e.text);
    return !a->rc && !b->rc && a->steps == b->steps && !a->unlike && !b->unlike && !memcmp(a->w, b->w, sizeof a->w);
}

static void test_training(void) {
    far_open(0);
    const result plain = learn(&far.dev, false, true);
    ok(plain.steps == 10 && !plain.rc, "training: %lld steps %s", (long long)plain.steps, plain.e.text);
    static const struct {
        int most;
        bool look;
    } how[] = {{FAR_MOST, true}, {FAR_MOST, false}, {9, true}, {9, false}, {0, false}};
    for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
        far_open(how[k].most);
        result r = learn(&far.dev, true, how[k].look);
        ok(alike(&plain, &r), "the same bits with %d blocks at most", how[k].most);
        ok(how[k].most ? far.all > 20 : !far.all, "%d reads", far.all);
        ok(!far.early && !far.unwaited && !far.blocks, "no block went back before it was read: %d, %d", far.early,
           far.blocks);
    }
    far_open(FAR_MOST);
    far.fail_at = 5; /* the rows that it casts have been queued */
    result r = learn(&far.dev, true, false);
    ok(r.rc && strstr(r.e.text, "a cast"), "a failure on the way: %s", r.e.text);
    ok(far.all && !far.early && !far.unwaited && !far.blocks, "is waited for as well: %d, %d", far.early, far.unwaited);
}

int main(void) {
    enter_temp();
    omp_set_num_threads(3);
    test_blocks();
    shard("a.tar.zst", 1, true);
    shard("b.tar", 0, false);
    test_training();
    test_large();
    leave_temp();
    return tap_done();
}
