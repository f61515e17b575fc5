/* file: SHA-256, files read and written whole. */
#ifndef MA_FILE_H
#define MA_FILE_H

#include "base.h"

/* SHA-256 in hexadecimal (64 characters and a 0), streamed. */
typedef struct ma_sha ma_sha;
ma_sha *ma_sha_new(void);
void ma_sha_add(ma_sha *, const void *, size_t);
void ma_sha_end(ma_sha *, char hex[65]); /* frees it */
void ma_sha_bytes(const void *, size_t, char hex[65]);

/* Makes a file by way of one beside it: written, synced, renamed. Nothing half-written ever has the final name. */
typedef struct ma_outfile ma_outfile;
ma_outfile *ma_outfile_open(const char *path, ma_err *);
int ma_outfile_fd(const ma_outfile *);
const char *ma_outfile_temp(const ma_outfile *); /* its name while it is written, for libraries that open names */
int ma_outfile_sync(ma_outfile *, ma_err *);     /* what was written so far is on the disk; on any thread */
int ma_outfile_commit(ma_outfile *, ma_err *);   /* sync, rename, free */
void ma_outfile_abort(ma_outfile *);             /* remove, free; NULL is fine */
void ma_outfile_sweep(void);                     /* removes every file still being written; safe in a signal handler */

/* All of the above for bytes at hand. */
int ma_write_file(const char *path, const void *, size_t, ma_err *);
/* Adds the whole file to out; one larger than most is an error. */
int ma_read_file(const char *path, size_t most, ma_buf *out, ma_err *);
/* A file that comes with the tools, by its name below pipelines/, such as "presets/moalign-2b": looked for in
 * ../share/ma-tools beside the program's folder, where make install puts it, then in the source tree's pipelines,
 * beside that folder and in the working one. free() it; NULL and an error that names the places: in none. */
char *ma_shipped(const char *name, ma_err *);
int ma_make_dirs(const char *path, ma_err *);             /* like mkdir -p */
int ma_write_all(int fd, const void *, size_t, ma_err *); /* until all is written; a closed pipe is MA_IO */

#endif
