/* base: errors, checked sizes, memory, element types, hashes, files. See base.h for the contracts.
 *
 * Limits: little-endian machines. Messages are cut at 479 bytes.
 * Traps minded:
 * - names in messages come from files: control bytes would reach the user's terminal, so they are replaced;
 * - input of ma_to_f32 may be unaligned (a member of a shard, viewed in place): every load goes through memcpy;
 * - float16 has subnormals, bf16's rounding would turn some NaNs into infinity: both have a branch of their own;
 * - rename() over /dev/null would replace the device: only regular files are written by way of a temporary one.
 */
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <libavutil/mem.h>
#include <libavutil/sha.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian and read in place");

/* Errors */

const char *ma_reason_name(ma_reason r) {
    static const char *const names[MA_REASONS] = {"ok",    "cut",    "corrupt", "unsupported", "missing",
                                                  "shape", "short",  "timeout", "not-finite",  "duplicate",
                                                  "io",    "memory", "device",  "usage"};
    return (unsigned)r < MA_REASONS ? names[r] : "unknown";
}

/* Makes text safe to print: no control bytes, and no UTF-8 sequence cut short at the end of the field. */
static void clean(char *text, bool was_cut) {
    size_t n = strlen(text);
    if (was_cut) {
        while (n && (text[n - 1] & 0xc0) == 0x80) n--;
        if (n && (text[n - 1] & 0xc0) == 0xc0) n--;
        text[n] = 0;
    }
    for (char *c = text; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    }
}

int ma_fail(ma_err *e, ma_reason reason, const char *text, ...) {
    if (!e || e->reason != MA_OK) return -1;
    va_list ap;
    va_start(ap, text);
    int n = vsnprintf(e->text, sizeof e->text, text, ap);
    va_end(ap);
    clean(e->text, n >= (int)sizeof e->text);
    e->reason = reason;
    return -1;
}

void ma_err_clear(ma_err *e) {
    e->reason = MA_OK;
    e->text[0] = 0;
}

/* Sizes and memory */

bool ma_mul(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

bool ma_sum(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

/* calloc gives large blocks as untouched zero pages, which aligned_alloc and memset would not; so the block is
 * calloc's, and its true start stands just below the aligned address. */
void *ma_alloc(size_t n, size_t size) {
    const size_t align = 64;
    size_t bytes;
    if (!ma_mul(n, size, &bytes) || !ma_sum(bytes, align + sizeof(void *), &bytes) || bytes > PTRDIFF_MAX) return NULL;
    char *block = calloc(1, bytes);
    if (!block) return NULL;
    char *at = block + sizeof(void *);
    at += (align - (uintptr_t)at % align) % align;
    memcpy(at - sizeof(void *), &block, sizeof block);
    return at;
}

void ma_release(void *p) {
    if (!p) return;
    char *block;
    memcpy(&block, (char *)p - sizeof(void *), sizeof block);
    free(block);
}

char *ma_strdup(const char *s) {
    return strdup(s);
}

char *ma_format(const char *fmt, ...) {
    char *s;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    return n < 0 ? NULL : s;
}

/* Room for n more bytes and a closing 0, so that text in a buffer is a C string. */
static int reserve(ma_buf *b, size_t n) {
    size_t need;
    if (!ma_sum(b->size, n, &need) || !ma_sum(need, 1, &need) || need > PTRDIFF_MAX) return -1;
    if (need <= b->room) return 0;
    size_t room = b->room < 64 ? 64 : b->room;
    while (room < need) room = room > PTRDIFF_MAX / 2 ? need : room * 2;
    char *data = realloc(b->data, room);
    if (!data) return -1;
    b->data = data;
    b->room = room;
    return 0;
}

int ma_buf_add(ma_buf *b, const void *bytes, size_t n) {
    if (reserve(b, n) < 0) return -1;
    if (n) memcpy(b->data + b->size, bytes, n);
    b->size += n;
    b->data[b->size] = 0;
    return 0;
}

int ma_buf_printf(ma_buf *b, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    int rc = n < 0 ? -1 : reserve(b, (size_t)n);
    if (rc == 0) {
        vsnprintf(b->data + b->size, (size_t)n + 1, fmt, again);
        b->size += (size_t)n;
    }
    va_end(again);
    return rc;
}

void ma_buf_free(ma_buf *b) {
    free(b->data);
    *b = (ma_buf){0};
}

/* Element types */

static const struct {
    const char *name;
    size_t size;
} types[MA_TYPES] = {
    [MA_F32] = {"f32", 4}, [MA_F16] = {"f16", 2}, [MA_BF16] = {"bf16", 2}, [MA_F64] = {"f64", 8},
    [MA_I64] = {"i64", 8}, [MA_I32] = {"i32", 4}, [MA_I16] = {"i16", 2},   [MA_I8] = {"i8", 1},
    [MA_U8] = {"u8", 1},   [MA_U16] = {"u16", 2}, [MA_BOOL] = {"bool", 1},
};

size_t ma_type_size(ma_type t) {
    return (unsigned)t < MA_TYPES ? types[t].size : 0;
}

const char *ma_type_name(ma_type t) {
    return (unsigned)t < MA_TYPES ? types[t].name : "unknown";
}

static inline float as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t as_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* The four below are selections without branches or tables, so that the loops over them become
 * vector code.
 * float16: 1 sign, 5 exponent (bias 15), 10 mantissa; float32: 1, 8 (bias 127), 23; bf16: the upper half of a float32.
 */

static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t body = (uint32_t)(h & 0x7fff) << 13; /* exponent and mantissa at float32's places, bias still 15 */
    uint32_t normal = body + ((127u - 15) << 23);
    uint32_t special = normal + ((127u - 15) << 23);                               /* exponent 31 becomes 255 */
    uint32_t tiny = as_bits(as_float(body + (113u << 23)) - as_float(113u << 23)); /* subnormal: 2^-14·0.m, exact */
    uint32_t u = body >= (31u << 23) ? special : normal;
    return as_float(sign | (body < (1u << 23) ? tiny : u));
}

static inline uint16_t f32_to_f16(float f) {
    uint32_t u = as_bits(f), sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    uint32_t normal = (u - ((127u - 15) << 23) + 0xfff + (u >> 13 & 1)) >> 13; /* a carry may reach infinity: right */
    uint32_t tiny = as_bits(as_float(u) + 0.5f) - as_bits(0.5f); /* 0.5's last place is 2^-24: the FPU rounds */
    uint32_t special = u > 0x7f800000 ? 0x7e00 | (u >> 13 & 0x3ff) : 0x7c00; /* NaN stays NaN, quiet */
    uint32_t h = u < (113u << 23) ? tiny : normal;
    return (uint16_t)(sign | (u >= (143u << 23) ? special : h));
}

static inline float bf16_to_f32(uint16_t h) {
    return as_float((uint32_t)h << 16);
}

static inline uint16_t f32_to_bf16(float f) {
    uint32_t u = as_bits(f);
    uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : rounded);
}

float ma_f16_to_f32(uint16_t h) {
    return f16_to_f32(h);
}

uint16_t ma_f32_to_f16(float f) {
    return f32_to_f16(f);
}

float ma_bf16_to_f32(uint16_t h) {
    return bf16_to_f32(h);
}

uint16_t ma_f32_to_bf16(float f) {
    return f32_to_bf16(f);
}

static inline uint16_t load16(const char *p, size_t i) {
    uint16_t v;
    memcpy(&v, p + 2 * i, 2);
    return v;
}

static inline void store16(char *p, size_t i, uint16_t v) {
    memcpy(p + 2 * i, &v, 2);
}

/* The types that no hot path reads, one element. */
static double load_any(const char *p, ma_type t) {
    int64_t i64 = 0;
    int32_t i32;
    int16_t i16;
    double f64;
    switch (t) {
    case MA_F64: return memcpy(&f64, p, 8), f64;
    case MA_I64: return memcpy(&i64, p, 8), (double)i64;
    case MA_I32: return memcpy(&i32, p, 4), i32;
    case MA_I16: return memcpy(&i16, p, 2), i16;
    case MA_U16: return load16(p, 0);
    case MA_I8: return (signed char)*p;
    case MA_BOOL: return *p != 0;
    default: return NAN;
    }
}

static void to_f32(float *restrict out, const char *restrict in, ma_type t, size_t n) {
    switch (t) {
    case MA_F32: memcpy(out, in, n * 4); break;
    case MA_F16:
        for (size_t i = 0; i < n; i++) out[i] = f16_to_f32(load16(in, i));
        break;
    case MA_BF16:
        for (size_t i = 0; i < n; i++) out[i] = bf16_to_f32(load16(in, i));
        break;
    case MA_U8:
        for (size_t i = 0; i < n; i++) out[i] = (unsigned char)in[i];
        break;
    default:
        for (size_t i = 0; i < n; i++) out[i] = (float)load_any(in + i * ma_type_size(t), t);
    }
}

static void from_f32(char *restrict out, const float *restrict in, ma_type t, size_t n) {
    switch (t) {
    case MA_F32: memcpy(out, in, n * 4); break;
    case MA_F16:
        for (size_t i = 0; i < n; i++) store16(out, i, f32_to_f16(in[i]));
        break;
    case MA_BF16:
        for (size_t i = 0; i < n; i++) store16(out, i, f32_to_bf16(in[i]));
        break;
    case MA_U8:
        for (size_t i = 0; i < n; i++) {
            float v = in[i] > 0 ? in[i] : 0; /* NaN becomes 0 */
            out[i] = (char)(unsigned char)rintf(v < 255 ? v : 255);
        }
        break;
    case MA_F64:
        for (size_t i = 0; i < n; i++) {
            double v = in[i];
            memcpy(out + 8 * i, &v, 8);
        }
        break;
    default: memset(out, 0, n * ma_type_size(t)); /* not a type we write: zeros rather than what was there */
    }
}

/* Elements one thread converts at a time; fewer than that are not worth a thread. */
enum { SLICE = 1 << 18 };

void ma_to_f32(float *out, const void *in, ma_type t, size_t n) {
    if (!n) return;
    size_t slices = (n - 1) / SLICE + 1;
#pragma omp parallel for if (slices > 1)
    for (size_t s = 0; s < slices; s++) {
        size_t i = s * SLICE;
        to_f32(out + i, (const char *)in + i * ma_type_size(t), t, n - i < SLICE ? n - i : SLICE);
    }
}

void ma_from_f32(void *out, const float *in, ma_type t, size_t n) {
    if (!n) return;
    size_t slices = (n - 1) / SLICE + 1;
#pragma omp parallel for if (slices > 1)
    for (size_t s = 0; s < slices; s++) {
        size_t i = s * SLICE;
        from_f32((char *)out + i * ma_type_size(t), in + i, t, n - i < SLICE ? n - i : SLICE);
    }
}

/* Arrays */

size_t ma_array_count(const ma_array *a) {
    size_t n = 1;
    for (int d = 0; d < a->nd; d++) n *= (size_t)a->n[d];
    return n;
}

size_t ma_array_bytes(const ma_array *a) {
    return ma_array_count(a) * ma_type_size(a->type);
}

int ma_array_new(ma_array *a, ma_type t, int nd, const int64_t *n, ma_err *e) {
    *a = (ma_array){.type = t, .nd = nd};
    size_t bytes = ma_type_size(t);
    if (!bytes) return ma_fail(e, MA_UNSUPPORTED, "array: unknown type");
    if (nd < 0 || nd > MA_MAX_DIMS) return ma_fail(e, MA_SHAPE, "array: %d dimensions", nd);
    char shape[160];
    size_t extent = bytes; /* the product without the zeros: sizes beside a zero must fit too */
    for (int d = 0; d < nd; d++) {
        a->n[d] = n[d];
        if (n[d] < 0 || !ma_mul(bytes, (size_t)n[d], &bytes) || !ma_mul(extent, n[d] ? (size_t)n[d] : 1, &extent))
            return ma_fail(e, MA_SHAPE, "array: impossible size %s", ma_shape_text(shape, nd, n));
    }
    a->data = ma_alloc(bytes, 1);
    if (!a->data)
        return ma_fail(e, MA_MEMORY, "array: no memory for %s %s", ma_shape_text(shape, nd, n), ma_type_name(t));
    return 0;
}

void ma_array_free(ma_array *a) {
    ma_release(a->data);
    *a = (ma_array){0};
}

float *ma_array_f32(const ma_array *a, ma_err *e) {
    if (!ma_type_size(a->type)) return ma_fail(e, MA_UNSUPPORTED, "array: not a number type"), NULL;
    size_t n = ma_array_count(a);
    float *out = ma_alloc(n, sizeof *out);
    if (!out) return ma_fail(e, MA_MEMORY, "array: no memory for %zu numbers", n), NULL;
    ma_to_f32(out, a->data, a->type, n);
    return out;
}

char *ma_shape_text(char *out, int nd, const int64_t *n) {
    const size_t room = 160;
    size_t at = 0;
    snprintf(out, room, "scalar");
    for (int d = 0; d < nd && d < MA_MAX_DIMS && at < room; d++)
        at += (size_t)snprintf(out + at, room - at, d ? "x%lld" : "%lld", (long long)n[d]);
    return out;
}

/* SHA-256 */

struct ma_sha {
    struct AVSHA *state;
};

ma_sha *ma_sha_new(void) {
    ma_sha *s = malloc(sizeof *s);
    if (!s) return NULL;
    s->state = av_sha_alloc();
    if (!s->state || av_sha_init(s->state, 256) < 0) {
        av_free(s->state);
        free(s);
        return NULL;
    }
    return s;
}

void ma_sha_add(ma_sha *s, const void *bytes, size_t n) {
    if (!s) return;
    const size_t most = 1 << 30; /* FFmpeg 4's length is an unsigned int */
    const uint8_t *p = bytes;
    for (; n > most; p += most, n -= most) av_sha_update(s->state, p, most);
    if (n) av_sha_update(s->state, p, n);
}

void ma_sha_end(ma_sha *s, char hex[65]) {
    uint8_t digest[32];
    hex[0] = 0;
    if (!s) return;
    av_sha_final(s->state, digest);
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    av_free(s->state);
    free(s);
}

void ma_sha_bytes(const void *bytes, size_t n, char hex[65]) {
    ma_sha *s = ma_sha_new();
    ma_sha_add(s, bytes, n);
    ma_sha_end(s, hex);
}

double ma_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Files read */

static int fail_errno(ma_err *e, const char *path) {
    int why = errno;
    return ma_fail(e,
                   why == ENOENT || why == ENOTDIR ? MA_MISSING
                   : why == ENOMEM                 ? MA_MEMORY
                                                   : MA_IO,
                   "%s: %s", path, strerror(why));
}

static int open_read(const char *path, ma_err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail_errno(e, path);
    return fd;
}

static ssize_t read_some(int fd, void *to, size_t n) {
    ssize_t got;
    do {
        got = read(fd, to, n);
    } while (got < 0 && errno == EINTR);
    return got;
}

int ma_read_file(const char *path, size_t most, ma_buf *out, ma_err *e) {
    int fd = open_read(path, e), rc = 0;
    if (fd < 0) return -1;
    struct stat st;
    size_t guess = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? (size_t)st.st_size : 0, begin = out->size;
    if (guess > most) rc = ma_fail(e, MA_SHAPE, "%s: %zu bytes, at most %zu are read", path, guess, most);
    for (size_t step = guess + 1; rc == 0;) { /* one more than expected, to see the end of the file at once */
        if (reserve(out, step) < 0) {
            rc = ma_fail(e, MA_MEMORY, "%s: out of memory", path);
            break;
        }
        ssize_t got = read_some(fd, out->data + out->size, step);
        if (got < 0) rc = fail_errno(e, path);
        if (got <= 0) break;
        out->size += (size_t)got;
        if (out->size - begin > most) rc = ma_fail(e, MA_SHAPE, "%s: more than %zu bytes", path, most);
        step = 1 << 16;
    }
    if (out->data) out->data[out->size] = 0;
    close(fd);
    return rc;
}

int ma_sha_file(const char *path, char hex[65], ma_err *e) {
    hex[0] = 0;
    int fd = open_read(path, e);
    if (fd < 0) return -1;
    enum { CHUNK = 1 << 18 };
    ma_sha *s = ma_sha_new();
    char *chunk = malloc(CHUNK);
    ssize_t got = -1;
    if (s && chunk) {
        while ((got = read_some(fd, chunk, CHUNK)) > 0) ma_sha_add(s, chunk, (size_t)got);
        if (got < 0) fail_errno(e, path);
    } else {
        ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    }
    ma_sha_end(s, hex);
    free(chunk);
    close(fd);
    return got == 0 ? 0 : -1;
}

/* Files written */

int ma_write_all(int fd, const void *bytes, size_t n, ma_err *e) {
    const char *p = bytes;
    while (n) {
        ssize_t put = write(fd, p, n);
        if (put > 0) {
            p += put;
            n -= (size_t)put;
        } else if (put < 0 && errno == EAGAIN) { /* somebody made our end of a pipe non-blocking */
            poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, -1);
        } else if (put < 0 && errno != EINTR) {
            return ma_fail(e, MA_IO, "write: %s", strerror(errno));
        }
    }
    return 0;
}

struct ma_outfile {
    char *path, *temp; /* temp == path: a device or a pipe, written straight */
    int fd;
    pid_t owner; /* a forked child must not remove its parent's file */
    struct ma_outfile *next;
};

/* Files being written, for the sweep. The lock is a flag, not a mutex: a signal handler may try it. */
static ma_outfile *open_files;
static atomic_flag open_files_lock = ATOMIC_FLAG_INIT;

static void lock_files(void) {
    while (atomic_flag_test_and_set(&open_files_lock)) usleep(100);
}

static void unlock_files(void) {
    atomic_flag_clear(&open_files_lock);
}

void ma_outfile_sweep(void) {
    for (int tries = 0; atomic_flag_test_and_set(&open_files_lock); tries++) {
        if (tries == 1000) return; /* a handler that interrupted the holder: leave the files rather than hang */
    }
    for (ma_outfile *f = open_files; f; f = f->next)
        if (f->temp != f->path && f->owner == getpid()) unlink(f->temp);
    unlock_files();
}

static void remember(ma_outfile *f) {
    static bool at_exit;
    lock_files();
    if (!at_exit) at_exit = atexit(ma_outfile_sweep) == 0;
    f->next = open_files;
    open_files = f;
    unlock_files();
}

static void forget(ma_outfile *f) {
    lock_files();
    for (ma_outfile **at = &open_files; *at; at = &(*at)->next) {
        if (*at == f) {
            *at = f->next;
            break;
        }
    }
    unlock_files();
}

static void outfile_free(ma_outfile *f) {
    if (f->temp != f->path) free(f->temp);
    free(f->path);
    free(f);
}

/* Where the directory part of a path ends: 0 for a bare name, else behind the last slash. */
static int dir_length(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (int)(slash + 1 - path) : 0;
}

/* Opens a name beside f->path that nobody has: a killed run may have left its own behind under our pid. */
static int open_temp(ma_outfile *f) {
    int dir = dir_length(f->path);
    for (int i = 0; i < 100; i++) {
        f->temp = ma_format("%.*s.%.200s.tmp.%ld.%d", dir, f->path, f->path + dir, (long)f->owner, i);
        if (!f->temp) return errno = ENOMEM, -1;
        f->fd = open(f->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (f->fd >= 0 || errno != EEXIST) break;
        free(f->temp);
        f->temp = NULL;
    }
    return f->fd < 0 ? -1 : 0;
}

ma_outfile *ma_outfile_open(const char *path, ma_err *e) {
    struct stat st;
    bool there = stat(path, &st) == 0, straight = there && !S_ISREG(st.st_mode);
    if (!*path || (there && S_ISDIR(st.st_mode)))
        return ma_fail(e, MA_IO, "%s: %s", path, *path ? "is a directory" : "an output file needs a name"), NULL;
    ma_outfile *f = calloc(1, sizeof *f);
    /* a link to a file is followed: its target is replaced, the link stays */
    char *real = there && !straight ? realpath(path, NULL) : NULL;
    if (f) *f = (ma_outfile){.path = real ? real : ma_strdup(path), .fd = -1, .owner = getpid()};
    if (!f || !f->path) {
        ma_fail(e, MA_MEMORY, "%s: out of memory", path);
        if (!f) free(real);
        free(f);
        return NULL;
    }
    if (straight) {
        f->temp = f->path;
        f->fd = open(f->path, O_WRONLY | O_CLOEXEC);
    }
    if (straight ? f->fd < 0 : open_temp(f) < 0) {
        fail_errno(e, path);
        outfile_free(f);
        return NULL;
    }
    remember(f);
    return f;
}

int ma_outfile_fd(const ma_outfile *f) {
    return f->fd;
}

const char *ma_outfile_temp(const ma_outfile *f) {
    return f->temp;
}

static int sync_dir(const char *path, ma_err *e) {
    int dir = dir_length(path), rc = 0;
    char *name = ma_format("%.*s", dir ? dir : 1, dir ? path : ".");
    int fd = name ? open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0 && fsync(fd) < 0 && errno == EIO) rc = fail_errno(e, name); /* many file systems cannot: fine */
    if (fd >= 0) close(fd);
    free(name);
    return rc;
}

int ma_outfile_commit(ma_outfile *f, ma_err *e) {
    bool straight = f->temp == f->path;
    int rc = 0;
    if (fsync(f->fd) < 0 && !(straight && (errno == EINVAL || errno == EROFS))) rc = fail_errno(e, f->path);
    if (close(f->fd) < 0 && rc == 0) rc = fail_errno(e, f->path);
    f->fd = -1;
    if (rc == 0 && !straight && rename(f->temp, f->path) < 0) rc = fail_errno(e, f->path);
    if (rc < 0) {
        ma_outfile_abort(f);
        return -1;
    }
    forget(f);
    if (!straight) rc = sync_dir(f->path, e);
    outfile_free(f);
    return rc;
}

void ma_outfile_abort(ma_outfile *f) {
    if (!f) return;
    if (f->fd >= 0) close(f->fd);
    forget(f);
    if (f->temp != f->path) unlink(f->temp);
    outfile_free(f);
}

int ma_write_file(const char *path, const void *bytes, size_t n, ma_err *e) {
    ma_outfile *f = ma_outfile_open(path, e);
    if (!f) return -1;
    ma_err why = {0};
    if (ma_write_all(f->fd, bytes, n, &why) < 0) {
        ma_outfile_abort(f);
        return ma_fail(e, why.reason, "%s: %s", path, why.text);
    }
    return ma_outfile_commit(f, e);
}

int ma_make_dirs(const char *path, ma_err *e) {
    char *p = ma_strdup(path);
    if (!p) return ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    int rc = 0;
    for (char *at = p + (*p == '/'); rc == 0 && *at;) {
        char *slash = strchrnul(at, '/'), was = *slash;
        *slash = 0;
        struct stat st;
        if (mkdir(p, 0777) < 0 && !(errno == EEXIST && stat(p, &st) == 0 && S_ISDIR(st.st_mode))) rc = fail_errno(e, p);
        *slash = was;
        at = slash + strspn(slash, "/");
    }
    free(p);
    return rc;
}
