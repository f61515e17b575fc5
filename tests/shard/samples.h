/* samples: the shard that these tests read and write. Sample k is the same each time: small ones first, so that many
 * fit into the first 64 KiB, then some above 64 KiB of noise. */
#ifndef SAMPLES_H
#define SAMPLES_H
#include "../../common/file.h"
#include "../tap.h"
#include "../../common/shard.h"
#include "../../common/npy.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SAMPLES = 6 };

__attribute__((unused)) static uint32_t noise(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

__attribute__((unused)) static ma_sample *sample(int k) {
    static const size_t sizes[SAMPLES] = {1500, 0, 9000, 3, 70000, 140000};
    char key[32];
    uint64_t state = (uint64_t)k + 1;
    snprintf(key, sizeof key, "clip-%06d", k);
    ma_sample *s = ma_sample_new(key);
    char *bytes = malloc(sizes[k] + 1);
    for (size_t i = 0; i < sizes[k]; i++) bytes[i] = (char)noise(&state);
    char *text = ma_format("a red ball, number %d", k);
    ma_array a;
    ma_array_new(&a, MA_F32, 3, (int64_t[]){2, 3, k}, NULL);
    for (int i = 0; i < 6 * k; i++) ((float *)a.data)[i] = (float)i;
    ma_sample_put(s, "mp4", bytes, sizes[k], NULL);
    ma_sample_put(s, "txt", text, strlen(text), NULL);
    ma_sample_put_array(s, "flow.npy", &a, NULL);
    ma_array_free(&a);
    return s;
}

__attribute__((unused)) static bool same(const ma_sample *a, const ma_sample *b) {
    if (strcmp(a->key, b->key) || a->n != b->n) return false;
    for (int i = 0; i < a->n; i++)
        if (strcmp(a->m[i].ext, b->m[i].ext) || a->m[i].size != b->m[i].size ||
            (a->m[i].size && memcmp(a->m[i].data, b->m[i].data, a->m[i].size)))
            return false;
    return true;
}

/* Writes samples 0 .. n-1. */
__attribute__((unused)) static int write_shard(const char *path, int n, int level, int threads) {
    ma_err e = {0};
    ma_writer *w = ma_writer_open(&(ma_writer_opts){.path = path, .level = level, .threads = threads}, &e);
    for (int k = 0; w && k < n; k++) ma_writer_add(w, sample(k), &e);
    if (!w || ma_writer_close(w, &e) || e.reason) {
        printf("# %s\n", e.text);
        return -1;
    }
    return 0;
}

/* What came of reading: how many samples in order and equal to the originals (-1: one was not), and the first error. */
typedef struct reading {
    int n, errors;
    ma_err e;
} reading;

__attribute__((unused)) static reading read_shards(const char *const *paths, int n) {
    reading r = {0};
    ma_reader *in = ma_reader_open(paths, n, NULL);
    ma_sample *s;
    for (;;) {
        ma_err e = {0};
        int rc = ma_reader_next(in, &s, &e);
        if (!rc) break;
        if (rc < 0) {
            if (!r.errors++) r.e = e;
            continue;
        }
        ma_sample *want = sample(r.n < 0 ? 0 : r.n % SAMPLES);
        r.n = r.n >= 0 && same(s, want) ? r.n + 1 : -1;
        ma_sample_free(want);
        ma_sample_free(s);
    }
    ma_reader_close(in);
    return r;
}

__attribute__((unused)) static reading read_shard(const char *path) {
    return read_shards(&path, 1);
}

__attribute__((unused)) static ma_buf slurp(const char *path) {
    ma_buf b = {0};
    ma_read_file(path, (size_t)1 << 30, &b, NULL);
    return b;
}

/* A folder of our own, which is also made the current one. */
__attribute__((unused)) static void enter_temp(void) {
    char *dir = ma_format("%s/ma-test-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    if (!mkdtemp(dir) || chdir(dir)) exit(2);
    free(dir);
}

__attribute__((unused)) static void leave_temp(void) {
    char *dir = getcwd(NULL, 0), *command = ma_format("rm -rf '%s'", dir);
    if (chdir("/") || system(command)) puts("# the temporary folder stays");
    free(command);
    free(dir);
}

#endif
