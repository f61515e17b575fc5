/* shard: the stream. A USTAR tar of samples, each its own zstd frame (see man/ma-shard.5). */
#ifndef MA_SHARD_H
#define MA_SHARD_H
#include "array.h"
#include "keyset.h"
#include <cjson/cJSON.h>

/* One file of a sample: KEY.ext. */
typedef struct ma_member {
    char *ext;    /* lower case, without the first dot: "mp4", "flow.npy" is ext "flow.npy" */
    void *data;
    size_t size;
    char sha[65]; /* SHA-256 of data, where whoever put it knew; else "" */
} ma_member;

/* Where a sample that is read apart from its stream lies: bytes from .. to - 1 of its file. to 0: it came in a stream;
 * below 0: it, and what is behind it in the file, can be read as a stream only. */
typedef struct ma_place {
    int64_t from, to;
    size_t file; /* for inputs.c */
    bool here;   /* it has been read */
} ma_place;

/* Files that share the name up to the first dot after the last slash, and stand next to each other. */
typedef struct ma_sample {
    char *key;       /* directories are kept: "a/b/000017" */
    ma_member *m;
    int n;
    char *from;      /* the file it came from, for messages */
    cJSON *json;     /* KEY.json parsed, made on demand by ma_sample_json; written back over the member on writing */
    ma_place place;  /* where it is to be read */
} ma_sample;

ma_sample *ma_sample_new(const char *key);
void ma_sample_free(ma_sample *);
ma_member *ma_sample_get(const ma_sample *, const char *ext);                 /* NULL: not there */
/* Adds or replaces (in place, order kept) a member. Takes data over (malloc), also on failure. */
int ma_sample_put(ma_sample *, const char *ext, void *data, size_t size, ma_err *);
int ma_sample_put_array(ma_sample *, const char *ext, const ma_array *, ma_err *);  /* as .npy */
/* Puts values as a half-precision member. NaN, infinity, or a value that overflows: MA_NOTFINITE. */
int ma_sample_put_f16(ma_sample *, const char *ext, const float *, int nd, const int64_t *n, ma_err *);
/* The same for values in half precision already, in an .npy that ma_npy_begin made, which is taken over where they are
 * finite. */
int ma_sample_put_half(ma_sample *, const char *ext, const ma_array *, ma_buf *npy, ma_err *);
/* The member as an array. Missing is MA_MISSING. The caller frees it. */
int ma_sample_array(const ma_sample *, const char *ext, ma_array *out, ma_err *);
void ma_sample_drop(ma_sample *, const char *ext);
/* KEY.json, {} if absent. Belongs to the sample; tools change it in place. NULL: it is there but is not an object. */
cJSON *ma_sample_json(ma_sample *, ma_err *);

/* Reading. Paths are shards (.tar, .tar.zst, .tgz, .tar.xz: told by their bytes) one after another; "-" is standard
 * input; no paths at all is standard input. Frames are read on, skippable ones skipped. */
typedef struct ma_reader ma_reader;
ma_reader *ma_reader_open(const char *const *paths, int n, ma_err *);
/* 1: a sample (the caller frees it). 0: the end. -1: error, names file and sample; what is left of this file is given
 * up (except after MA_DUPLICATE), the next call goes on with the next file. */
int ma_reader_next(ma_reader *, ma_sample **out, ma_err *);
void ma_reader_close(ma_reader *);
/* How a reader differs from one that was just opened; to be said before its first sample. */
typedef struct ma_reader_how {
    /* Where a file can be cut (cut.h), ma_reader_next gives its samples' places only: no members, no key. */
    bool apart;
    /* Goes on at this byte of the first file, behind samples of these keys, the last of which is given; both are taken
     * over. */
    int64_t from;
    ma_keyset *seen;
    char *last;
    const _Atomic bool *quit; /* reading, which may wait for a pipe, ends when this is set; NULL: by ma_stopped only */
} ma_reader_how;
void ma_reader_set(ma_reader *, const ma_reader_how *);
/* Reads a sample that is a place only: on any thread. -1: what is there is not one whole sample. What is wrong is told,
 * in the words of the stream, by a reader that goes on from there. */
int ma_sample_load(ma_sample **, const _Atomic bool *quit);

/* A member's name taken apart (free both; NULL: out of memory). false: no part of a sample: no extension, hidden, or of
 * the __x__ kind. */
bool ma_name_split(const char *name, char **key, char **ext);
/* The error of a key that comes again. */
int ma_reader_twice(const char *file, const char *key, ma_err *);
#define MA_END_MARK 0x184D2A5Eu /* magic of the skippable zstd frame that, empty, ends a sample */

/* Writing, to a descriptor (fd ≥ 0, not closed) or, with path, by way of a file beside it. level 0: plain tar.
 * Frames are compressed on `threads` threads (0: all) and written in order. */
typedef struct ma_writer ma_writer;
typedef struct ma_writer_opts {
    const char *path; /* or NULL and: */
    int fd;
    int level, threads;
    const char *const *drop; /* extensions left out */
    int ndrop;
} ma_writer_opts;
ma_writer *ma_writer_open(const ma_writer_opts *, ma_err *);
/* Takes the sample over. Two samples of one key are MA_DUPLICATE. An I/O error may be reported by a later call. */
int ma_writer_add(ma_writer *, ma_sample *, ma_err *);
int ma_writer_close(ma_writer *, ma_err *);  /* writes the end of the archive, syncs, renames; frees, also on error */
void ma_writer_abort(ma_writer *);           /* removes what was written under the temporary name */

/* A key for a file name: directories and extension off, dots mapped to '_'. Freed with free(). */
char *ma_key_of(const char *path);

/* cJSON with errors of ours: NULL on bad text (names where), duplicate keys refused. */
cJSON *ma_json_parse(const char *text, size_t size, const char *name, ma_err *);

#endif
