/* shard: what zstd makes of a shard's members, kind by kind: size of the original, and MB a second on one thread, by
 * level, by the thread's own clock; beside it SHA-256, and writing the whole shard, by the clock on the wall.
 *   shard [-j THREADS] SHARD…
 * No test, nothing can fail but the files. The first 64 samples are taken. */
#include "../../common/cli.h"
#include "../../common/file.h"
#include "../../common/shard.h"
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zstd.h>

enum { SAMPLES = 64, KINDS = 32 };
static const int levels[] = {-5, -1, 1, 2, 3, 6, 9, 19};
static const ma_opt options[] = {{0}};
static ma_cli cli = {.name = "shard", .does = "measures compression", .args = "SHARD…", .opts = options};

/* All members of one kind. */
typedef struct kind {
    const char *ext;
    double bytes, packed, seconds;
} kind;

static int read_samples(ma_sample **s) {
    ma_err e = {0};
    int n = 0;
    ma_reader *in = ma_reader_open(cli.inputs.at, cli.inputs.n, &e);
    while (in && n < SAMPLES && ma_reader_next(in, &s[n], &e) > 0) n++;
    ma_reader_close(in);
    if (e.reason) fprintf(stderr, "%s\n", e.text);
    return n;
}

/* Seconds that this thread has computed. */
static double worked(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void pack(const ma_member *m, int level, kind *k) {
    size_t room = ZSTD_compressBound(m->size), n;
    char *out = malloc(room);
    double from = worked();
    ZSTD_CCtx *c = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, level);
    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
    n = ZSTD_compress2(c, out, room, m->data, m->size);
    ZSTD_freeCCtx(c);
    k->seconds += worked() - from;
    k->packed += ZSTD_isError(n) ? 0 : (double)n;
    free(out);
}

static void by_kind(ma_sample **s, int n) {
    kind all[KINDS];
    int nkinds = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < s[i]->n; j++) {
            int k = 0;
            while (k < nkinds && strcmp(all[k].ext, s[i]->m[j].ext)) k++;
            if (k == KINDS) continue;
            if (k == nkinds) all[nkinds++] = (kind){.ext = s[i]->m[j].ext};
            all[k].bytes += (double)s[i]->m[j].size;
        }
    for (int k = 0; k < nkinds; k++) {
        printf("%s: %d samples, %.2f MB each\n", all[k].ext, n, all[k].bytes / n * 1e-6);
        for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
            kind now = {.ext = all[k].ext};
            for (int i = 0; i < n; i++) {
                const ma_member *m = ma_sample_get(s[i], now.ext);
                if (m) pack(m, levels[l], &now);
            }
            printf("  level %3d  %.3f of it  %6.0f MB/s\n", levels[l], now.packed / all[k].bytes,
                   all[k].bytes / now.seconds * 1e-6);
        }
    }
}

static double sha_rate(ma_sample **s, int n) {
    double bytes = 0, from = worked();
    for (int i = 0; i < n; i++)
        for (int j = 0; j < s[i]->n; j++) {
            char hex[65];
            ma_sha_bytes(s[i]->m[j].data, s[i]->m[j].size, hex);
            bytes += (double)s[i]->m[j].size;
        }
    return bytes / (worked() - from) * 1e-6;
}

/* The whole of the writer, to a file beside the first shard. */
static void write_all(ma_sample **s, int n, int level, int threads) {
    char *path = ma_format("%s.bench", cli.inputs.at[0]);
    ma_err e = {0};
    double bytes = 0, from = ma_now();
    ma_writer *w = ma_writer_open(&(ma_writer_opts){.path = path, .level = level, .threads = threads}, &e);
    for (int i = 0; w && i < n; i++) {
        ma_sample *copy = ma_sample_new(s[i]->key);
        for (int j = 0; j < s[i]->n; j++) {
            const ma_member *m = &s[i]->m[j];
            char *data = malloc(m->size + 1);
            memcpy(data, m->data, m->size);
            ma_sample_put(copy, m->ext, data, m->size, &e);
            bytes += (double)m->size;
        }
        ma_writer_add(w, copy, &e);
    }
    if (w) ma_writer_close(w, &e);
    printf("  level %d, %2d threads: %6.0f MB/s%s\n", level, threads, bytes / (ma_now() - from) * 1e-6, e.text);
    remove(path);
    free(path);
}

int main(int argc, char **argv) {
    static ma_sample *s[SAMPLES];
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    int n = read_samples(s), threads = omp_get_max_threads();
    if (!n) return 1;
    by_kind(s, n);
    printf("SHA-256 %.0f MB/s\nthe writer:\n", sha_rate(s, n));
    for (int level = 0; level <= 3; level++)
        for (int t = 1; t <= threads; t *= 2) write_all(s, n, level, t);
    for (int i = 0; i < n; i++) ma_sample_free(s[i]);
    ma_cli_free(&cli);
    return 0;
}
