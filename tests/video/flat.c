/* flat: 2,000 clips through a stage: its memory must be the same at the 200th and at the last. Every tenth is damaged.
 * QUICK=1: 600. */
#include "../../common/clip.h"
#include "../../common/stage.h"
#include "../tap.h"
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { F = 8, H = 96, W = 128, EARLY = 200 };
static int clips = 2000;
static ma_clip_args args = {.size = {F, 48, 64, 0}};
static const ma_opt options[] = {MA_CLIP_OPTIONS(args), {0}};
static ma_cli cli = {.name = "ma-test", .does = "decodes", .args = "[INPUT]…", .opts = options};

/* Pages at the EARLYth clip, and now; what the test asks for. */
typedef struct memory {
    long early, now;
    int seen;
} memory;

static long resident(void) {
    long all, here = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%ld %ld", &all, &here) != 2) here = 0;
    if (f) fclose(f);
    return here;
}

static void *prepare(void *self, ma_sample **s, ma_err *why) {
    (void)self;
    return ma_clip_begin(&cli, &args, s, ma_clip_entry(*s, ma_clip_options_json(&args), cJSON_CreateObject()), false,
                         why);
}

static int work(void *self, ma_sample **s, void **pre, int n, ma_err *why, ma_err *e) {
    memory *m = self;
    (void)s, (void)pre, (void)why, (void)e;
    for (int k = 0; k < n; k++)
        if (++m->seen == EARLY) m->early = resident();
    m->now = resident();
    return 0;
}

static void finish(void *self, ma_sample *s, void *pre, ma_err *why) {
    (void)self;
    ma_clip_finish(&cli, s, pre, why);
}

static bool write_clips(const char *path) {
    static uint8_t rgb[F][H][W][3];
    ma_buf b = {0};
    ma_err e = {0};
    for (size_t i = 0; i < sizeof rgb; i++) (&rgb[0][0][0][0])[i] = (uint8_t)(i * 7 % 251 + i / 5000);
    if (ma_video_write(&rgb[0][0][0][0], F, H, W, 8, "mp4", 30, &b, &e)) printf("# %s\n", e.text);
    ma_writer *w = ma_writer_open(&(ma_writer_opts){.path = path, .level = 1}, &e);
    for (int k = 0; w && k < clips; k++) {
        char key[32], *copy = malloc(b.size);
        snprintf(key, sizeof key, "clip-%06d", k);
        memcpy(copy, b.data, b.size);
        if (k % 10 == 9) copy[b.size / 2] ^= 0x55;
        ma_sample *s = ma_sample_new(key);
        ma_sample_put(s, "mp4", copy, b.size, &e);
        ma_writer_add(w, s, &e);
    }
    ma_buf_free(&b);
    return w && !ma_writer_close(w, &e) && !e.reason;
}

/* The stage, in a child whose memory is its own; pages at EARLY and at the end come back through a pipe. */
static memory run(char *shard) {
    memory m = {0};
    int p[2];
    if (pipe(p)) return m;
    pid_t child = fork();
    if (!child) {
        char *argv[] = {"ma-test", "-q", "-j4", "-o", "/dev/null", shard};
        int quiet = open("/dev/null", O_WRONLY);
        dup2(quiet, STDERR_FILENO);
        if (ma_cli_parse(&cli, 6, argv, stdout) >= 0) _exit(2);
        ma_stage_run(&(ma_stage){.cli = &cli,
                                 .self = &m,
                                 .work = work,
                                 .prepare = prepare,
                                 .finish = finish,
                                 .release = ma_clip_release,
                                 .bytes = ma_clip_bytes,
                                 .batch = 4,
                                 .video = true},
                     STDOUT_FILENO);
        _exit(write(p[1], &m, sizeof m) != sizeof m);
    }
    close(p[1]);
    if (read(p[0], &m, sizeof m) != sizeof m) m = (memory){0};
    close(p[0]);
    waitpid(child, NULL, 0);
    return m;
}

int main(void) {
    const char *quick = getenv("QUICK");
    char shard[] = "/tmp/ma-flat-XXXXXX";
    if (quick && *quick) clips = 600;
#ifdef __SANITIZE_ADDRESS__
    skip("AddressSanitizer keeps what was freed");
    return tap_done();
#endif
    int fd = mkstemp(shard);
    close(fd);
    if (ok(write_clips(shard), "%d clips", clips)) {
        memory m = run(shard);
        ok(m.seen > clips * 8 / 10 && m.seen <= clips, "%d of them decoded", m.seen);
        ok(m.early > 0 && (double)m.now < 1.05 * (double)m.early + 512, "%ld pages after %d, %ld after all", m.early,
           EARLY, m.now);
    }
    unlink(shard);
    return tap_done();
}
