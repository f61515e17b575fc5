/* base: errors as data, checked sizes, memory, text and buffers. Everything else stands on this. */
#ifndef MA_BASE_H
#define MA_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Why something failed. The names (ma_reason_name) are what a run's closing tally counts by. */
typedef enum {
    MA_OK,
    MA_CUT,         /* the data end too early */
    MA_CORRUPT,     /* the data contradict their own format or checksum */
    MA_UNSUPPORTED, /* well-formed, but not something we read */
    MA_MISSING,     /* a file, member, tensor or stream that must be there is not */
    MA_SHAPE,       /* a size or type that does not fit */
    MA_SHORT,       /* fewer frames than asked for */
    MA_TIMEOUT,     /* took longer than allowed */
    MA_NOTFINITE,   /* NaN or infinity */
    MA_DUPLICATE,   /* two inputs of one name */
    MA_IO,          /* the operating system said no */
    MA_MEMORY,      /* out of memory */
    MA_DEVICE,      /* no such device, or it failed */
    MA_USAGE,       /* an argument that makes no sense */
    MA_REASONS
} ma_reason;

const char *ma_reason_name(ma_reason); /* "cut", "corrupt", … */

/* An error is data until a tool prints it. Zero-initialised means none; the first one is kept. */
typedef struct ma_err {
    ma_reason reason;
    char text[480];
} ma_err;

/* Records the error unless one is there already; always returns -1. text: no newline, names the file, sample or
 * option first. e may be NULL. */
int ma_fail(ma_err *e, ma_reason, const char *text, ...) __attribute__((format(printf, 3, 4), nonnull(3)));
void ma_err_clear(ma_err *e);

/* a·b and a+b; false if the result does not fit. For every size that comes from a file. */
bool ma_mul(size_t a, size_t b, size_t *out);
bool ma_sum(size_t a, size_t b, size_t *out);
/* The little-endian number of n bytes, 8 at most; they need not be aligned. */
uint64_t ma_little(const unsigned char *, int n);

void *ma_alloc(size_t n, size_t size); /* zeroed, 64-byte aligned; NULL if it does not fit or n·size overflows */
void ma_release(void *);               /* what ma_alloc gave; NULL is fine */
/* Both are freed with free(); NULL: out of memory. */
char *ma_strdup(const char *);
char *ma_format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A growing byte buffer. Zero-initialised is empty. */
typedef struct ma_buf {
    char *data;
    size_t size, room;
} ma_buf;
int ma_buf_add(ma_buf *, const void *bytes, size_t n); /* -1: out of memory, the buffer unchanged */
/* Room for n more bytes and a closing 0 (which ma_buf_add keeps there: text in a buffer is a C string); -1 as above. */
int ma_buf_reserve(ma_buf *, size_t n);
int ma_buf_printf(ma_buf *, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ma_buf_free(ma_buf *);

double ma_now(void); /* seconds, monotonic */

#endif
