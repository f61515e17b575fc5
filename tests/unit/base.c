/* base: errors, sizes, number types (every 16-bit value), hashes, files and what a killed run leaves behind. */
#include "../../common/array.h"
#include "../../common/file.h"
#include "../tap.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[256]; /* ours, empty at the start */

static const char *in_dir(const char *name) {
    static char path[4][600];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}

/* Files in dir, hidden ones too. */
static int files(void) {
    DIR *d = opendir(dir);
    int n = -2; /* . and .. */
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return n;
}

static void test_errors(void) {
    ma_err e = {0};
    ok(ma_fail(&e, MA_CUT, "a.tar: %s", "end\033[2J\n") == -1 && e.reason == MA_CUT, "an error is recorded");
    ok(!strcmp(e.text, "a.tar: end?[2J?"), "control bytes of a name do not reach the terminal");
    ma_fail(&e, MA_IO, "second");
    ok(e.reason == MA_CUT && strstr(e.text, "a.tar"), "the first error is kept");
    ok(ma_fail(NULL, MA_IO, "nobody listens") == -1, "no ma_err is fine");
    ma_err_clear(&e);
    char longest[600];
    memset(longest, 'x', sizeof longest);
    longest[478] = '\xc3', longest[479] = '\xa9', longest[599] = 0;
    ma_fail(&e, MA_IO, "%s", longest);
    ok(strlen(e.text) == 478, "a long message is cut between characters");
    bool named = true;
    for (int r = 0; r < MA_REASONS; r++) named = named && ma_reason_name(r) && *ma_reason_name(r);
    ok(named && !strcmp(ma_reason_name(99), "unknown"), "every reason has a name");
}

static void test_memory(void) {
    size_t n = 7;
    ok(ma_mul(SIZE_MAX, 1, &n) && n == SIZE_MAX && !ma_mul(SIZE_MAX / 2 + 1, 2, &n), "multiplication is checked");
    ok(ma_sum(SIZE_MAX - 1, 1, &n) && n == SIZE_MAX && !ma_sum(SIZE_MAX, 1, &n), "addition is checked");
    char *p = ma_alloc(1000, 3), *none = ma_alloc(0, 8);
    bool zero = true;
    for (int i = 0; i < 3000; i++) zero = zero && p[i] == 0;
    ok(zero && (uintptr_t)p % 64 == 0, "memory is zero and aligned to 64 bytes");
    ok(none != NULL, "nothing is a block too");
    ok(!ma_alloc(SIZE_MAX / 2, 3) && !ma_alloc(SIZE_MAX, 1), "too much is refused");
    ma_release(p);
    ma_release(none);
    ma_release(NULL);
    ma_buf b = {0};
    for (int i = 0; i < 1000; i++) ma_buf_printf(&b, "%d,", i);
    ma_buf_add(&b, "\0end", 4);
    ok(b.size == 3894 && !memcmp(b.data + 3882, "998,999,", 8) && !memcmp(b.data + 3890, "\0end", 5), "a buffer grows");
    ok(ma_buf_add(&b, "", SIZE_MAX - 10) == -1 && b.size == 3894, "a buffer that cannot grow stays as it is");
    ma_buf_free(&b);
}

/* A 16-bit float by its definition. */
static double f16_value(uint16_t h) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double v = exponent == 31 ? (mantissa ? NAN : INFINITY)
               : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                              : ldexp(mantissa, -24);
    return h & 0x8000 ? -v : v;
}

/* Whether every finite value, every midpoint between neighbours and the floats next to it come out right. */
static bool rounds_to_even(float (*widen)(uint16_t), uint16_t (*narrow)(float), int infinity) {
    for (int h = 0; h < infinity; h++) {
        float a = widen((uint16_t)h);
        if (narrow(a) != h || narrow(-a) != (h | 0x8000)) return false;
        if (h + 1 == infinity) break;
        float b = widen((uint16_t)(h + 1)), middle = (float)(((double)a + b) / 2);
        int even = h & 1 ? h + 1 : h;
        if ((double)middle == ((double)a + b) / 2 && (narrow(middle) != even || narrow(-middle) != (even | 0x8000)))
            return false;
        if (narrow(nextafterf(middle, a)) != h || narrow(nextafterf(middle, b)) != h + 1) return false;
    }
    return true;
}

static void test_numbers(void) {
    bool right = true, nan = true;
    for (int h = 0; h < 65536; h++) {
        float f = ma_f16_to_f32((uint16_t)h), b = ma_bf16_to_f32((uint16_t)h);
        double want = f16_value((uint16_t)h);
        right = right && (isnan(want) ? isnan(f) : f == want && !signbit(f) == !signbit(want));
        if (isnan(f)) nan = nan && isnan(ma_f16_to_f32(ma_f32_to_f16(f)));
        if (isnan(b)) nan = nan && isnan(ma_bf16_to_f32(ma_f32_to_bf16(b)));
    }
    ok(right, "every f16 has its value");
    uint32_t thin = 0x7f800001; /* a NaN whose upper half alone would be infinity */
    float f;
    memcpy(&f, &thin, 4);
    ok(nan && isnan(ma_bf16_to_f32(ma_f32_to_bf16(f))) && isnan(ma_f16_to_f32(ma_f32_to_f16(-f))), "NaN stays NaN");
    ok(rounds_to_even(ma_f16_to_f32, ma_f32_to_f16, 0x7c00), "f16: halves go to the even neighbour");
    ok(rounds_to_even(ma_bf16_to_f32, ma_f32_to_bf16, 0x7f80), "bf16: halves go to the even neighbour");
    ok(ma_f32_to_f16(65519.996f) == 0x7bff && ma_f32_to_f16(65520) == 0x7c00 && ma_f32_to_f16(-INFINITY) == 0xfc00 &&
           ma_f32_to_f16(1e30f) == 0x7c00 && ma_f32_to_f16(0x1p-25f) == 0 && ma_f32_to_f16(0x1.8p-25f) == 1,
       "f16: overflow is infinity, underflow is zero");
}

static void test_bulk(void) {
    enum { N = 600001 }; /* more than two slices, and odd */
    float *x = ma_alloc(N, sizeof *x), *back = ma_alloc(N, sizeof *back);
    char *bytes = ma_alloc(N + 1, 2);
    uint32_t u = 1;
    for (int i = 0; i < N; i++) {
        u = u * 1664525 + 1013904223;
        memcpy(&x[i], &u, 4);
    }
    for (int t = MA_F16; t <= MA_BF16; t++) {
        bool same = true;
        ma_from_f32(bytes + 1, x, (ma_type)t, N); /* odd addresses, as in a shard */
        ma_to_f32(back, bytes + 1, (ma_type)t, N);
        for (int i = 0; i < N; i++) {
            uint16_t h, want = t == MA_F16 ? ma_f32_to_f16(x[i]) : ma_f32_to_bf16(x[i]);
            memcpy(&h, bytes + 1 + 2 * i, 2);
            float f = t == MA_F16 ? ma_f16_to_f32(h) : ma_bf16_to_f32(h);
            same = same && h == want && !memcmp(&f, &back[i], 4);
        }
        ok(same, "%s: an array is converted as its elements are", ma_type_name((ma_type)t));
    }
    ma_release(x);
    ma_release(back);
    ma_release(bytes);
    uint8_t u8[6];
    ma_from_f32(u8, (float[]){-3, 0.5f, 1.5f, 254.6f, 1000, NAN}, MA_U8, 6);
    ok(u8[0] == 0 && u8[1] == 0 && u8[2] == 2 && u8[3] == 255 && u8[4] == 255 && u8[5] == 0, "u8 rounds and clamps");
    double f64[2];
    ma_from_f32(f64, (float[]){0.1f, -2}, MA_F64, 2);
    ok(f64[0] == (double)0.1f && f64[1] == -2, "f64");
    float f[2];
    bool right = true;
#define READS(T, type, a, b)                                                                                           \
    (ma_to_f32(f, (T[]){a, b}, type, 2), right = right && f[0] == (float)(a) && f[1] == (float)(b))
    READS(double, MA_F64, 0.25, -1e9);
    READS(int64_t, MA_I64, -5000000000, 3);
    READS(int32_t, MA_I32, -70000, 70000);
    READS(int16_t, MA_I16, -32768, 5);
    READS(int8_t, MA_I8, -128, 127);
    READS(uint8_t, MA_U8, 0, 255);
    READS(uint16_t, MA_U16, 65535, 1);
    READS(bool, MA_BOOL, true, false);
    ok(right, "every type is read");
}

static void test_arrays(void) {
    ma_err e = {0};
    ma_array a;
    ok(ma_array_new(&a, MA_F16, 3, (int64_t[]){2, 3, 4}, &e) == 0 && ma_array_count(&a) == 24 &&
           ma_array_bytes(&a) == 48,
       "an array");
    float *f = ma_array_f32(&a, &e);
    ok(f && f[23] == 0, "as fp32");
    ma_release(f);
    ma_array_free(&a);
    ok(ma_array_new(&a, MA_F32, 0, NULL, &e) == 0 && ma_array_count(&a) == 1, "a scalar has one element");
    ma_array_free(&a);
    ok(ma_array_new(&a, MA_F32, 1, (int64_t[]){-1}, &e) < 0 && e.reason == MA_SHAPE, "a negative size: %s", e.text);
    ma_err_clear(&e);
    ok(ma_array_new(&a, MA_F32, 3, (int64_t[]){INT64_MAX, INT64_MAX, 0}, &e) < 0 && e.reason == MA_SHAPE,
       "sizes that only a zero makes fit: %s", e.text);
    ma_err_clear(&e);
    ok(ma_array_new(&a, MA_F32, 9, (int64_t[9]){0}, &e) < 0 && e.reason == MA_SHAPE, "too many dimensions");
    ma_err_clear(&e);
    ok(ma_array_new(&a, MA_F64, 2, (int64_t[]){1ll << 30, 1ll << 30}, &e) < 0 && !a.data, "too large: %s", e.text);
    char text[160];
    ok(!strcmp(ma_shape_text(text, 4, (int64_t[]){24, 10, 15, 768}), "24x10x15x768"), "a shape as text");
    int64_t m = INT64_MIN;
    ok(strlen(ma_shape_text(text, 8, (int64_t[]){m, m, m, m, m, m, m, m})) < 160, "the longest shape fits");
}

static void test_sha(void) {
    char hex[65], at_once[65];
    ma_sha_bytes("", 0, hex);
    ok(!strcmp(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), "SHA-256 of nothing");
    ma_sha_bytes("abc", 3, hex);
    ok(!strcmp(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), "SHA-256 of abc (FIPS 180-2)");
    ma_sha *s = ma_sha_new();
    for (int i = 0; i < 100000; i++) ma_sha_add(s, "aaaaaaaaaa", 10);
    ma_sha_end(s, hex);
    ok(!strcmp(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
       "SHA-256 of a million a (FIPS 180-2)");
    char *a = malloc(1000000);
    memset(a, 'a', 1000000);
    ma_sha_bytes(a, 1000000, at_once);
    ok(!strcmp(hex, at_once), "SHA-256 of them at once");
    free(a);
}

static void test_read(void) {
    ma_err e = {0};
    ma_buf b = {0};
    ok(ma_write_file(in_dir("f"), "hello", 5, &e) == 0 && ma_read_file(in_dir("f"), 5, &b, &e) == 0 && b.size == 5 &&
           !strcmp(b.data, "hello"),
       "written and read again, a 0 behind");
    ok(ma_read_file(in_dir("f"), 4, &b, &e) < 0 && e.reason == MA_SHAPE, "too large: %s", e.text);
    ma_buf_free(&b);
    ma_err_clear(&e);
    ok(ma_read_file("/dev/zero", 100000, &b, &e) < 0 && b.size < 400000, "an endless file ends: %s", e.text);
    ma_buf_free(&b);
    ma_err_clear(&e);
    ok(ma_write_file(in_dir("f"), "", 0, &e) == 0 && ma_read_file(in_dir("f"), 5, &b, &e) == 0 && b.size == 0 && b.data,
       "an empty file is an empty string");
    ma_buf_free(&b);
    unlink(in_dir("f"));
    ok(ma_read_file(in_dir("f"), 5, &b, &e) < 0 && e.reason == MA_MISSING, "none: %s", e.text);
    ma_err_clear(&e);
    ok(ma_make_dirs(in_dir("x/y//z/"), &e) == 0 && ma_make_dirs(in_dir("x/y/z"), &e) == 0 &&
           !access(in_dir("x/y/z"), W_OK),
       "directories are made, or are there");
    rmdir(in_dir("x/y/z"));
    ma_write_file(in_dir("x/y/z"), "", 0, &e);
    ok(ma_make_dirs(in_dir("x/y/z"), &e) < 0, "a file in the way: %s", e.text);
    unlink(in_dir("x/y/z")), rmdir(in_dir("x/y")), rmdir(in_dir("x"));
}

static void test_outfile(void) {
    ma_err e = {0};
    ma_buf b = {0};
    const char *name = in_dir("out");
    ma_write_file(name, "old", 3, &e);
    ma_outfile *f = ma_outfile_open(name, &e), *g = ma_outfile_open(name, &e);
    ok(f && g && strcmp(ma_outfile_temp(f), ma_outfile_temp(g)), "two writers of one name have files of their own");
    ma_write_all(ma_outfile_fd(f), "new", 3, &e);
    ok(ma_read_file(name, 99, &b, &e) == 0 && !strcmp(b.data, "old"),
       "the old file stands while the new one is written");
    ma_buf_free(&b);
    ma_outfile_abort(g);
    ok(ma_outfile_commit(f, &e) == 0 && ma_read_file(name, 99, &b, &e) == 0 && !strcmp(b.data, "new"),
       "then the new one");
    ma_buf_free(&b);
    ok(files() == 1, "and nothing else is left");
    f = ma_outfile_open(name, &e);
    ma_outfile_abort(f);
    ma_outfile_abort(NULL);
    ok(files() == 1 && ma_read_file(name, 99, &b, &e) == 0 && !strcmp(b.data, "new"), "abort leaves all as it was");
    ma_buf_free(&b);
    ok(symlink("out", in_dir("link")) == 0 && ma_write_file(in_dir("link"), "via", 3, &e) == 0 &&
           ma_read_file(name, 99, &b, &e) == 0 && !strcmp(b.data, "via"),
       "a symbolic link is followed");
    ma_buf_free(&b);
    unlink(in_dir("link")), unlink(name);
    char longest[256];
    memset(longest, 'n', 255), longest[255] = 0;
    ok(ma_write_file(in_dir(longest), "", 0, &e) == 0 && files() == 1, "a name of 255 bytes %s", e.text);
    unlink(in_dir(longest));
}

static void test_refused(void) {
    ma_err e = {0};
    ok(!ma_outfile_open(in_dir("no/such"), &e) && e.reason == MA_MISSING, "no such directory: %s", e.text);
    ma_err_clear(&e);
    ok(!ma_outfile_open(dir, &e), "a directory: %s", e.text);
    ma_err_clear(&e);
    /* A pipe of ours stands for /dev/null: were the code wrong, root would replace the machine's. */
    struct stat st;
    const char *fifo = in_dir("fifo");
    int reader = mkfifo(fifo, 0600) == 0 ? open(fifo, O_RDWR) : -1;
    char got = 0;
    ok(reader >= 0 && ma_write_file(fifo, "x", 1, &e) == 0 && stat(fifo, &st) == 0 && S_ISFIFO(st.st_mode) &&
           read(reader, &got, 1) == 1 && got == 'x',
       "what is no regular file is written to, not replaced");
    close(reader);
    unlink(fifo);
    int full = open("/dev/full", O_WRONLY);
    ok(ma_write_all(full, "x", 1, &e) < 0 && e.reason == MA_IO, "a full disk: %s", e.text);
    close(full);
    ma_err_clear(&e);
    struct rlimit was, small = {.rlim_cur = 4096};
    getrlimit(RLIMIT_FSIZE, &was);
    small.rlim_max = was.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    fflush(stdout); /* where standard output is a file, it is under the limit too */
    setrlimit(RLIMIT_FSIZE, &small);
    static char large[10000];
    int rc = ma_write_file(in_dir("large"), large, sizeof large, &e);
    setrlimit(RLIMIT_FSIZE, &was);
    ok(rc < 0 && e.reason == MA_IO && files() == 0, "a file cut short is not left: %s", e.text);
    ma_err_clear(&e);
    int ends[2];
    signal(SIGPIPE, SIG_IGN);
    ok(pipe(ends) == 0 && close(ends[0]) == 0 && ma_write_all(ends[1], "x", 1, &e) < 0 && e.reason == MA_IO,
       "a closed pipe: %s", e.text);
    close(ends[1]);
}

/* A child opens an output and leaves in its own way; what is left of the file? */
static int left_after(void (*leave)(void)) {
    pid_t child = fork();
    if (child == 0) {
        ma_outfile *f = ma_outfile_open(in_dir("out"), NULL);
        if (!f || files() != 1) _exit(99);
        leave();
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 99 ? -1 : files();
}

static void leave_by_exit(void) {
    exit(3);
}

static void leave_by_sweep(void) {
    ma_outfile_sweep();
}

static void leave_by_grandchild(void) {
    if (fork() == 0) exit(0); /* must not remove its parent's file */
    wait(NULL);
    if (files() != 1) _exit(99);
    ma_outfile_sweep();
}

static void test_exits(void) {
    fflush(stdout);
    ok(left_after(leave_by_exit) == 0, "exit() with a file open leaves none");
    ok(left_after(leave_by_sweep) == 0, "nor does the sweep");
    ok(left_after(leave_by_grandchild) == 0, "a child of fork() keeps its hands off");
}

int main(void) {
    snprintf(dir, sizeof dir, "%s/ma-base-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    if (!mkdtemp(dir)) return ok(false, "no temporary directory"), tap_done();
    test_exits(); /* first: forked before OpenMP has threads */
    test_errors();
    test_memory();
    test_numbers();
    test_bulk();
    test_arrays();
    test_sha();
    test_read();
    test_outfile();
    test_refused();
    ok(files() == 0 && rmdir(dir) == 0, "nothing is left over");
    return tap_done();
}
