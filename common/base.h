/* base: errors as data, checked sizes, element types and host arrays. Everything else stands on this. */
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

void *ma_alloc(size_t n, size_t size);         /* zeroed, 64-byte aligned; NULL if it does not fit or n·size overflows */
void ma_release(void *);                       /* what ma_alloc gave; NULL is fine */
char *ma_strdup(const char *);                 /* freed with free() */
char *ma_format(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* freed with free(); NULL: out of memory */

/* A growing byte buffer. Zero-initialised is empty. */
typedef struct ma_buf {
    char *data;
    size_t size, room;
} ma_buf;
int ma_buf_add(ma_buf *, const void *bytes, size_t n); /* -1: out of memory, the buffer unchanged */
int ma_buf_printf(ma_buf *, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ma_buf_free(ma_buf *);

/* Element types of arrays, tensors and files. */
typedef enum { MA_F32, MA_F16, MA_BF16, MA_F64, MA_I64, MA_I32, MA_I16, MA_I8, MA_U8, MA_U16, MA_BOOL, MA_TYPES } ma_type;
size_t ma_type_size(ma_type);
const char *ma_type_name(ma_type); /* "f32", "bf16", … */

float ma_f16_to_f32(uint16_t);
uint16_t ma_f32_to_f16(float);  /* round to nearest even; overflow gives infinity */
float ma_bf16_to_f32(uint16_t);
uint16_t ma_f32_to_bf16(float); /* round to nearest even */
void ma_to_f32(float *out, const void *in, ma_type, size_t n);
void ma_from_f32(void *out, const float *in, ma_type, size_t n); /* f32, f16, bf16, f64; u8 rounds and clamps */

/* An array in host memory: dense, row-major, little-endian. */
#define MA_MAX_DIMS 8
typedef struct ma_array {
    ma_type type;
    int nd;
    int64_t n[MA_MAX_DIMS];
    void *data;
} ma_array;
size_t ma_array_count(const ma_array *);        /* elements; an array that was made or read has been checked to fit */
size_t ma_array_bytes(const ma_array *);
/* Allocates data (ma_alloc) for type and shape. -1: too large, or out of memory. */
int ma_array_new(ma_array *, ma_type, int nd, const int64_t *n, ma_err *);
void ma_array_free(ma_array *);
/* The array as fp32, owned by the caller (ma_release). NULL: out of memory or not a number type. */
float *ma_array_f32(const ma_array *, ma_err *);
/* "24x10x15x768", for messages. out holds at least 160 bytes; returns out. */
char *ma_shape_text(char *out, int nd, const int64_t *n);

/* SHA-256 in hexadecimal (64 characters and a 0), streamed. */
typedef struct ma_sha ma_sha;
ma_sha *ma_sha_new(void);
void ma_sha_add(ma_sha *, const void *, size_t);
void ma_sha_end(ma_sha *, char hex[65]); /* frees it */
int ma_sha_file(const char *path, char hex[65], ma_err *);
void ma_sha_bytes(const void *, size_t, char hex[65]);

double ma_now(void); /* seconds, monotonic */

/* Makes OUT by way of a file beside it: written, synced, renamed. Nothing half-written ever has the final name. */
typedef struct ma_outfile ma_outfile;
ma_outfile *ma_outfile_open(const char *path, ma_err *);
int ma_outfile_fd(const ma_outfile *);
const char *ma_outfile_temp(const ma_outfile *);   /* the name it has while it is written, for libraries that open names */
int ma_outfile_commit(ma_outfile *, ma_err *);     /* sync, rename, free */
void ma_outfile_abort(ma_outfile *);               /* remove, free; NULL is fine */
void ma_outfile_sweep(void);                       /* removes every file still being written; safe in a signal handler */
int ma_write_file(const char *path, const void *, size_t, ma_err *); /* all of the above for bytes at hand */
int ma_read_file(const char *path, size_t most, ma_buf *out, ma_err *); /* the whole file; larger than most is an error */
int ma_make_dirs(const char *path, ma_err *);      /* like mkdir -p */
int ma_write_all(int fd, const void *, size_t, ma_err *); /* until all is written; a closed pipe is MA_IO */

#endif
