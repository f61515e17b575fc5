/* dataset: reading for training alone: samples and MB (of arrays) a second by threads, and MB by what the threads had
 * of the processors, of shards as ma-subspace train reads them: features (24, 10, 15, 768) and flow (23, 128, 192, 2),
 * both f16. On a GPU into pinned memory, as for training there; with -d cpu as for the CPU.
 *   dataset [-d DEVICE] [-j THREADS] [--samples N] [--seconds S] [SHARD]…
 * Without shards two of N samples are written to TMPDIR for each level, and removed; they are then in the system's
 * cache, so that what is measured is decoding, not the disk. No test. */
#include "../../common/dataset.h"
#include "../../common/file.h"
#include "../../common/rng.h"
#include "../../common/tensor.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { SHARDS = 2 };
static const int levels[] = {0, 1, 3};
static const int64_t features[] = {24, 10, 15, 768}, flow[] = {23, 128, 192, 2};
static ma_device *device;
static int64_t samples = 128;
static double seconds = 5;
static const ma_opt options[] = {
    {"samples", 0, MA_OPT_INT, &samples, "N", "of each shard (default 128)", 1, 1e5},
    {"seconds", 0, MA_OPT_REAL, &seconds, "S", "to read for, each time (default 5)", 0.1, 1e3},
    {0},
};
static ma_cli cli = {.name = "dataset", .does = "measures reading", .args = "[SHARD]…", .opts = options};

/* Numbers like features (normal) or like flow (slowly changing, rounded by having been f16 all along). */
static int put(ma_sample *s, const char *ext, const int64_t *shape, int which, ma_err *e) {
    ma_array a;
    if (ma_array_new(&a, MA_F32, 4, shape, e)) return -1;
    float *v = a.data;
    const size_t n = ma_array_count(&a);
    ma_rng rng = ma_rng_make(1, s->key, (uint64_t)which, MA_RNG_ORDER);
    for (size_t k = 0; k < n; k++) {
        const float x = (float)ma_rng_normal(&rng);
        v[k] = !which || k < 2 ? x : v[k - 2] + x / 64;
    }
    const int rc = ma_sample_put_f16(s, ext, v, 4, shape, e);
    ma_array_free(&a);
    return rc;
}

static int write_shard(const char *path, int level, int which, ma_err *e) {
    ma_writer *w = ma_writer_open(&(ma_writer_opts){.path = path, .level = level}, e);
    int rc = w ? 0 : -1;
#pragma omp parallel for schedule(dynamic)
    for (int64_t k = 0; k < samples; k++) {
        char key[32];
        snprintf(key, sizeof key, "clip-%d-%06lld", which, (long long)k);
        ma_sample *s = ma_sample_new(key);
        ma_err why = {0};
        const int bad = put(s, "videomae.npy", features, 0, &why) || put(s, "flow.npy", flow, 1, &why);
#pragma omp critical
        if (rc || bad || ma_writer_add(w, s, e)) rc = -1;
    }
    return w && ma_writer_close(w, e) ? -1 : rc;
}

/* Seconds that all threads have computed. */
static double worked(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Draws for a while. */
static int measure(const char *what, int threads, ma_err *e) {
    const ma_dataset_opts o = {
        .cli = &cli, .member = {"videomae.npy", "flow.npy"}, .members = 2, .window = 64, .seed = 1, .device = device};
    omp_set_num_threads(threads);
    ma_dataset *d = ma_dataset_open(&o, e);
    ma_item item;
    int64_t n = 0;
    double bytes = 0, start = 0, now = 0, work = 0;
    int rc = d && ma_dataset_shape(d, 0, e) ? 1 : -1; /* the window is full */
    work = worked();
    for (start = ma_now(); rc > 0 && (now = ma_now()) < start + seconds; n++) {
        if ((rc = ma_dataset_next(d, &item, e)) <= 0) break;
        for (int k = 0; k < 2; k++) bytes += (double)ma_array_bytes(&item.a[k]);
        ma_item_free(&item);
    }
    if (rc > 0)
        printf("%s  %2d threads  %7.1f samples/s  %6.0f MB/s  %6.0f MB a second of a core\n", what, threads,
               (double)n / (now - start), bytes / (now - start) * 1e-6, bytes / (worked() - work) * 1e-6);
    fflush(stdout);
    ma_dataset_close(d);
    return rc < 0 ? -1 : 0;
}

static int by_threads(const char *what, ma_err *e) {
    const int most = omp_get_max_threads();
    int rc = 0;
    for (int n = 1; n <= most && !rc; n = n < most && 2 * n > most ? most : 2 * n) rc = measure(what, n, e);
    omp_set_num_threads(most);
    return rc;
}

static int by_level(const char *folder, int level, ma_err *e) {
    char *path[SHARDS] = {0}, what[64];
    int rc = 0;
    for (int k = 0; k < SHARDS && !rc; k++) {
        path[k] = ma_format("%s/bench-dataset-%d.tar", folder, k);
        rc = path[k] ? write_shard(path[k], level, k, e) : -1;
    }
    snprintf(what, sizeof what, level ? "zstd level %d" : "plain tar   ", level);
    cli.inputs = (ma_list){(const char **)path, SHARDS};
    if (!rc) rc = by_threads(what, e);
    cli.inputs = (ma_list){0};
    for (int k = 0; k < SHARDS; k++) {
        if (path[k]) unlink(path[k]);
        free(path[k]);
    }
    return rc;
}

int main(int argc, char **argv) {
    ma_err e = {0};
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    char note[160];
    const char *temp = getenv("TMPDIR");
    const bool own = !cli.inputs.n;
    device = ma_device_open(cli.common.device, false, note, &e);
    rc = !device ? -1 : own ? 0 : by_threads("", &e);
    for (size_t k = 0; own && k < sizeof levels / sizeof *levels && !rc; k++)
        rc = by_level(temp ? temp : "/tmp", levels[k], &e);
    if (rc) fprintf(stderr, "dataset: %s\n", e.text);
    ma_device_close(device);
    return rc ? 1 : 0;
}
