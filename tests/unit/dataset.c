/* dataset: what is drawn, and what is told of bad samples, is what one thread would have that reads the shards from end
 * to end: for shards that can be cut and those that cannot, whole and damaged; with any number of threads; where arrays
 * stay and where a device reads them. */
#include "../../common/dataset.h"
#include "../../common/rng.h"
#include "../shard/samples.h"
#include "far.h"
#include <omp.h>
#include <signal.h>
#include <stdatomic.h>

enum { N = 24, BAD = 7 };

/* Sample k of a shard: features, noise that nobody asks for, and here and there a fault. */
static ma_sample *make(const char *name, int k, bool faults) {
    char key[64];
    uint64_t state = (uint64_t)k + 1;
    snprintf(key, sizeof key, "%s-%03d", name, k);
    ma_sample *s = ma_sample_new(key);
    ma_array a;
    const int64_t shape[] = {3, 5, faults && k == BAD ? 8 : 7};
    ma_array_new(&a, MA_F32, 3, shape, NULL);
    float *v = a.data;
    for (size_t i = 0; i < ma_array_count(&a); i++) v[i] = (float)noise(&state) / 1e6f;
    if (faults && k == BAD + 3) v[11] = NAN;
    if (!faults || k != BAD + 5) ma_sample_put_array(s, "x.npy", &a, NULL);
    ma_array_free(&a);
    char *bytes = malloc(200000);
    for (int i = 0; i < 200000; i++) bytes[i] = (char)noise(&state);
    ma_sample_put(s, "bin", bytes, k % 3 ? 200000 : 7, NULL);
    return s;
}

static void shard(const char *path, int level, const char *name, int n, bool faults) {
    ma_err e = {0};
    ma_writer *w = ma_writer_open(&(ma_writer_opts){.path = path, .level = level}, &e);
    for (int k = 0; k < n; k++) ma_writer_add(w, make(name, k, faults), &e);
    if (ma_writer_close(w, &e) || e.reason) printf("# %s\n", e.text);
}

/* What was drawn and told. */
typedef struct account {
    char *keys[1000];
    int n;
    double sum; /* of the numbers drawn, in order */
    int64_t good, bad;
    char *told;
    ma_err e;
} account;

static void note(account *a, const char *key, const ma_array *x) {
    a->keys[a->n++] = ma_strdup(key);
    for (size_t k = 0; k < ma_array_count(x); k++) a->sum = a->sum * 1.000001 + (double)((const float *)x->data)[k];
}

static void end(account *a, ma_tally *t) {
    a->good = t->good;
    a->bad = t->bad;
    a->told = cJSON_Print(t->list);
    cJSON_Delete(t->list);
}

static void forget(account *a) {
    for (int k = 0; k < a->n; k++) free(a->keys[k]);
    cJSON_free(a->told);
}

/* The next good sample in the order of the files, with x, which the sample owns otherwise. */
static int next_good(ma_inputs *in, ma_tally *t, bool first, ma_array *like, char **key, ma_array *x) {
    for (;;) {
        ma_sample *s;
        ma_err why = {0};
        char was[160], is[160];
        int rc = ma_inputs_next(in, &s, &why);
        if (!rc) return 0;
        if (rc > 0 && !ma_sample_array(s, "x.npy", x, &why)) {
            bool finite = true;
            for (size_t k = 0; k < ma_array_count(x); k++) finite &= isfinite(((float *)x->data)[k]) != 0;
            if (!finite)
                ma_fail(&why, MA_NOTFINITE, "%s: x.npy holds NaN or infinity", s->key);
            else if (like->nd && memcmp(like->n, x->n, sizeof *x->n * 3))
                ma_fail(&why, MA_SHAPE, "%s: x.npy is %s, the first sample's was %s", s->key,
                        ma_shape_text(is, x->nd, x->n), ma_shape_text(was, like->nd, like->n));
            if (!why.reason) {
                *like = *x;
                *key = ma_strdup(s->key);
                ma_sample_free(s);
                t->good += first;
                return 1;
            }
            ma_array_free(x);
        }
        if (first) ma_tally_bad(t, s ? s->key : NULL, &why);
        ma_sample_free(s);
    }
}

/* As dataset.h has it, by one thread that reads on. */
static account expected(const ma_cli *cli, int window, int epochs) {
    account a = {0};
    ma_tally t = {.cli = cli, .list = cJSON_CreateArray()};
    ma_array x[200], like = {0};
    char *key[200];
    uint64_t draws = 0;
    for (int epoch = 0; epoch < epochs; epoch++) {
        ma_inputs *in = ma_inputs_open(cli, false, &a.e);
        int64_t held = 0;
        for (bool more = true;;) {
            while (more && held < window) {
                more = next_good(in, &t, !epoch, &like, &key[held], &x[held]) > 0;
                held += more;
            }
            if (!held) break;
            ma_rng rng = ma_rng_make(5, NULL, draws++, MA_RNG_ORDER);
            const int64_t k = ma_rng_below(&rng, held--);
            note(&a, key[k], &x[k]);
            free(key[k]);
            ma_array_free(&x[k]);
            key[k] = key[held];
            x[k] = x[held];
        }
        ma_inputs_close(in);
    }
    end(&a, &t);
    return a;
}

static account drawn(const ma_cli *cli, int window, int epochs, ma_device *device) {
    account a = {0};
    ma_tally t = {.cli = cli, .list = cJSON_CreateArray()};
    const ma_dataset_opts o = {.cli = cli,
                               .member = {"x.npy", "x.npy"},
                               .members = 2, /* the same twice */
                               .window = window,
                               .seed = 5,
                               .epochs = epochs,
                               .tally = &t,
                               .device = device};
    ma_dataset *d = ma_dataset_open(&o, &a.e);
    ma_item item;
    while (d && ma_dataset_next(d, &item, &a.e) > 0) {
        note(&a, item.key, &item.a[a.n % 2]);
        ma_item_free(&item);
    }
    ma_dataset_close(d);
    end(&a, &t);
    return a;
}

static bool alike(const account *a, const account *b) {
    bool good = a->n == b->n && a->sum == b->sum && a->good == b->good && a->bad == b->bad && !strcmp(a->told, b->told);
    for (int k = 0; k < a->n && good; k++) good = !strcmp(a->keys[k], b->keys[k]);
    if (!good) printf("# %d and %d drawn, %s\n# %s\n# %s\n", a->n, b->n, b->e.text, a->told, b->told);
    return good;
}

/* The shards' names end with NULL. least: of samples, and of faults, that there must be for this to be worth a test. */
static void compare(const char *what, const char **paths, int least, int faults) {
    ma_cli cli = {.name = "dataset", .rank = 1, .common = {.max_bad = -1, .part = {0, 1}, .quiet = true}};
    while (paths[cli.inputs.n]) cli.inputs.n++;
    cli.inputs.at = paths;
    static const int windows[] = {1, 10, 150};
    for (int w = 0; w < 3; w++) {
        account a = expected(&cli, windows[w], 2);
        ok(a.good >= least && a.bad >= faults && a.n == 2 * a.good, "%s: %lld samples, %lld bad", what,
           (long long)a.good, (long long)a.bad);
        for (int threads = 1; threads <= 5; threads += 2) {
            omp_set_num_threads(threads);
            far_open(threads == 1 ? 0 : threads == 3 ? 9 : FAR_MOST);
            account b = drawn(&cli, windows[w], 2, &far.dev);
            ok(alike(&a, &b), "%s, window %d, %d threads: as by one that reads on", what, windows[w], threads);
            ok((threads == 1 || far.ever) && !far.blocks, "every block of %d went back", far.ever);
            forget(&b);
        }
        forget(&a);
    }
}

static void join(const char *to, const char *a, const char *b) {
    ma_buf x = slurp(a), y = slurp(b);
    ma_buf_add(&x, y.data, y.size);
    ma_write_file(to, x.data, x.size, NULL);
    ma_buf_free(&x);
    ma_buf_free(&y);
}

/* A copy of a part, without the last so many bytes of it, or with a byte turned. */
static void damage(const char *to, const char *from, double keep, size_t less, double turn) {
    ma_buf x = slurp(from);
    if (turn > 0) x.data[(size_t)((double)x.size * turn)] ^= 0x10;
    ma_write_file(to, x.data, (size_t)((double)x.size * keep) - less, NULL);
    ma_buf_free(&x);
}

static bool drew_some(ma_dataset *d, int n) {
    ma_err e = {0};
    ma_item item;
    while (n && ma_dataset_next(d, &item, &e) > 0) {
        ma_item_free(&item);
        n--;
    }
    return !n;
}

/* Left in the middle of an epoch; and while a pipe gives nothing. */
static void test_leaving(void) {
    const char *paths[] = {"a.tar.zst"}, *pipes[] = {"pipe"};
    ma_cli cli = {.name = "dataset", .common = {.max_bad = -1, .part = {0, 1}}, .inputs = {paths, 1}};
    ma_err e = {0};
    ma_dataset_opts o = {.cli = &cli, .member = {"x.npy"}, .members = 1, .window = 4};
    ma_dataset *d = ma_dataset_open(&o, &e);
    ok(d && drew_some(d, 7), "draws, %s", e.text);
    ma_dataset_close(d);
    ok(true, "left in the middle");
    if (mkfifo("pipe", 0600)) return;
    const int fd = open("pipe", O_RDWR);
    cli.inputs.at = pipes;
    o.window = 1;
    d = ma_dataset_open(&o, &e);
    usleep(50000);
    ma_dataset_close(d);
    ok(d != NULL, "left while it waits for a pipe %s", e.text);
    d = ma_dataset_open(&o, &e);
    ma_stopped = 1;
    ma_item item;
    ok(ma_dataset_next(d, &item, &e) < 0 && strstr(e.text, "stopped"), "a signal ends the waiting: %s", e.text);
    ma_dataset_close(d);
    ma_stopped = 0;
    close(fd);
}

int main(void) {
    enter_temp();
    shard("a.tar.zst", 1, "a", N, false);
    shard("b.tar.zst", 1, "b", N, true);
    shard("c.tar", 0, "c", N, false);
    shard("d.tar", 0, "d", N, true);
    compare("shards of zstd", (const char *[]){"a.tar.zst", "b.tar.zst", NULL}, 2 * N - 3, 3);
    compare("plain tars", (const char *[]){"c.tar", "d.tar", NULL}, 2 * N - 3, 3);
    compare("a shard twice", (const char *[]){"a.tar.zst", "a.tar.zst", "c.tar", NULL}, 3 * N, 0);
    join("ab.tar.zst", "a.tar.zst", "b.tar.zst");
    compare("two as one", (const char *[]){"ab.tar.zst", "c.tar", NULL}, 3 * N - 3, 3);
    join("aa.tar.zst", "a.tar.zst", "a.tar.zst");
    join("cc.tar", "c.tar", "c.tar");
    compare("keys again", (const char *[]){"aa.tar.zst", "cc.tar", NULL}, 2 * N, 2 * N);
    damage("cut.tar.zst", "a.tar.zst", 0.6, 0, 0);
    damage("cut.tar", "c.tar", 0.6, 0, 0);
    compare("cut", (const char *[]){"cut.tar.zst", "b.tar.zst", "cut.tar", NULL}, 2 * N, 5);
    damage("turned.tar.zst", "a.tar.zst", 1, 0, 0.55);
    damage("turned.tar", "c.tar", 1, 0, 0.5);
    compare("a byte turned", (const char *[]){"turned.tar.zst", "turned.tar", "a.tar.zst", NULL}, N, 1);
    damage("short.tar.zst", "a.tar.zst", 1, 12, 0);
    damage("end.tar", "c.tar", 1, 600, 0);
    compare("without an end", (const char *[]){"short.tar.zst", "end.tar", "b.tar.zst", NULL}, 2 * N, 2);
    if (system("gzip -c c.tar > c.tgz && { zstd -q -dc a.tar.zst | zstd -q -c > one.tar.zst; } && "
               "mkdir t && for k in 1 2 3 4; do echo 12345 > t/k$k.txt; done && tar -C t -c --format=pax "
               "--pax-option=a=b -f "
               "pax.tar . && cat c.tar > tail.tar && echo more >> tail.tar"))
        skip("no gzip, zstd or tar");
    else
        compare("others' shards", (const char *[]){"c.tgz", "missing", "one.tar.zst", "pax.tar", "tail.tar", NULL},
                2 * N, 5);
    test_leaving();
    leave_temp();
    return tap_done();
}
