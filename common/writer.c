/* writer: samples into a shard. Each sample becomes tar members (libarchive's ustar), the members one zstd frame with
 * checksum and size, and behind the frame comes the end-of-sample mark: an empty skippable frame (8 bytes), by which
 * the reader knows the sample whole though nothing follows. The end of the archive, two zero blocks, is a frame of its
 * own.
 *
 * A few threads make the tar and compress; whoever finishes writes all that is then due, in order, and one more sees
 * to it that the disk keeps up. The bytes depend on the samples and the level alone, not on the threads. Limits:
 * ustar's names (100 bytes, or 155 + 100 split at a slash) and sizes (below 8 GiB); each of up to 24 buffers stays as
 * large as the largest sample that it had. Trap: a pipe whose reader sleeps would hold a write() for ever, and with it
 * the thread to be joined when the run is stopped; so pipes are polled, and fed no more at a time than they take at
 * once. */
#include "shard.h"
#include "cli.h"
#include "file.h"
#include "keyset.h"
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

enum { THREADS_MOST = 8, SLOTS_A_THREAD = 2 };
#define MEMBER_MOST ((size_t)8 << 30)  /* ustar's */
#define DISK_STEP   ((size_t)64 << 20) /* bytes that are left to the disk at a time */

/* Skippable frame 0x184D2A5E of no bytes: as in reader.c. */
static const char end_mark[8] = {0x5E, 0x2A, 0x4D, 0x18, 0, 0, 0, 0};

/* A sample on its way: as it came, then as it is written. */
typedef struct slot {
    ma_sample *s;
    ma_buf bytes; /* the memory is kept for the next: fresh pages cost more than what is done with them */
    bool done;    /* bytes are ready to be written */
} slot;

struct ma_writer {
    ma_outfile *file; /* NULL: fd is the caller's */
    int fd, level;
    bool pipe;
    char *name; /* for messages */
    char **drop;
    int ndrop;
    ma_keyset keys;
    pthread_t thread[THREADS_MOST], disk;
    int nthreads;
    bool has_disk;        /* there is such a thread */
    pthread_mutex_t lock; /* for all below */
    pthread_cond_t work, written_more;
    slot slot[THREADS_MOST * SLOTS_A_THREAD];
    size_t nslots;
    size_t written, taken, added; /* counts of samples: written ≤ taken ≤ added ≤ written + nslots */
    size_t bytes;                 /* of those written */
    bool writing, closing, ended; /* ended: no thread writes any more */
    atomic_bool quit;             /* write nothing more */
    ma_err err;                   /* the first */
};

/* ---- one sample's bytes */

static la_ssize_t to_buf(struct archive *a, void *buf, const void *bytes, size_t n) {
    (void)a;
    return ma_buf_add(buf, bytes, n) ? -1 : (la_ssize_t)n;
}

static int add_member(struct archive *a, const ma_sample *s, const char *ext, const void *data, size_t n, ma_err *e) {
    struct archive_entry *entry = archive_entry_new();
    char *name = ma_format("%s.%s", s->key, ext);
    int rc = -1;
    if (!entry || !name || n > INT64_MAX) {
        ma_fail(e, MA_MEMORY, "%s.%s: out of memory", s->key, ext);
    } else {
        archive_entry_set_pathname(entry, name);
        archive_entry_set_filetype(entry, AE_IFREG);
        archive_entry_set_perm(entry, 0444);
        archive_entry_set_mtime(entry, 0, 0);
        archive_entry_set_size(entry, (int64_t)n);
        if (archive_write_header(a, entry) != ARCHIVE_OK)
            ma_fail(e, MA_UNSUPPORTED, "%s.%s: %s", s->key, ext, archive_error_string(a));
        else if ((n && archive_write_data(a, data, n) != (la_ssize_t)n) || archive_write_finish_entry(a) != ARCHIVE_OK)
            ma_fail(e, MA_MEMORY, "%s.%s: %s", s->key, ext, archive_error_string(a));
        else
            rc = 0;
    }
    archive_entry_free(entry);
    free(name);
    return rc;
}

static int add_json(struct archive *a, const ma_sample *s, ma_err *e) {
    char *text = cJSON_PrintUnformatted(s->json), *line = text ? ma_format("%s\n", text) : NULL;
    int rc =
        line ? add_member(a, s, "json", line, strlen(line), e) : ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    cJSON_free(text);
    free(line);
    return rc;
}

static bool dropped(const ma_writer *w, const char *ext) {
    for (int i = 0; i < w->ndrop; i++)
        if (!strcmp(w->drop[i], ext)) return true;
    return false;
}

static int add_members(const ma_writer *w, struct archive *a, const ma_sample *s, ma_err *e) {
    bool json = s->json && !dropped(w, "json");
    for (int i = 0; i < s->n; i++) {
        const ma_member *m = &s->m[i];
        bool parsed = json && !strcmp(m->ext, "json");
        if (dropped(w, m->ext)) continue;
        if (parsed ? add_json(a, s, e) : add_member(a, s, m->ext, m->data, m->size, e)) return -1;
        json &= !parsed;
    }
    return json ? add_json(a, s, e) : 0;
}

static struct archive *new_tar(void) {
    struct archive *a = archive_write_new();
    if (!a) return NULL;
    archive_write_set_format_ustar(a);
    archive_write_set_bytes_per_block(a, 0);
    return a;
}

static la_ssize_t to_nothing(struct archive *a, void *none, const void *bytes, size_t n) {
    (void)a, (void)none, (void)bytes;
    return (la_ssize_t)n;
}

/* Whether a tar can hold these names and sizes. Asked before the sample is queued: it is the sample's fault, not the
 * output's. */
static int check_names(const ma_writer *w, const ma_sample *s, ma_err *e) {
    struct archive *a = new_tar();
    int rc = a && archive_write_open(a, NULL, NULL, to_nothing, NULL) == ARCHIVE_OK
                 ? 0
                 : ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    for (int i = 0; i < s->n && !rc; i++) {
        const ma_member *m = &s->m[i];
        if (dropped(w, m->ext)) continue;
        rc = m->size < MEMBER_MOST ? add_member(a, s, m->ext, NULL, 0, e)
                                   : ma_fail(e, MA_UNSUPPORTED, "%s.%s: a member of 8 GiB or more", s->key, m->ext);
    }
    if (s->json && !dropped(w, "json") && !rc) rc = add_member(a, s, "json", NULL, 0, e);
    archive_write_free(a);
    return rc;
}

/* The sample's tar members, without the end of the archive. tar is emptied first. */
static int make_tar(const ma_writer *w, const ma_sample *s, ma_buf *tar, ma_err *e) {
    struct archive *a = new_tar();
    if (!a) return ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    size_t room = 0;
    for (int i = 0; i < s->n; i++) room += s->m[i].size + 1024; /* to grow it would be to copy it */
    tar->size = 0;
    ma_buf_reserve(tar, room);
    int rc = archive_write_open(a, tar, NULL, to_buf, NULL) == ARCHIVE_OK
                 ? add_members(w, a, s, e)
                 : ma_fail(e, MA_MEMORY, "%s: %s", s->key, archive_error_string(a));
    size_t end = tar->size;
    archive_write_free(a); /* adds the end of the archive, which is not wanted here */
    tar->size = end;
    return rc;
}

/* Packs bytes into out, which is emptied first: one frame. A fresh context each time: what a used one remembers may
 * change what it makes. */
static int compress(const ma_buf *b, ma_buf *out, int level, bool mark, ma_err *e) {
    ZSTD_CCtx *c = ZSTD_createCCtx();
    size_t room = ZSTD_compressBound(b->size), n;
    int rc = -1;
    out->size = 0;
    if (!c || ma_buf_reserve(out, room + sizeof end_mark)) {
        ma_fail(e, MA_MEMORY, "out of memory");
    } else {
        ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, level);
        ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
        n = ZSTD_compress2(c, out->data, room, b->data, b->size);
        rc = ZSTD_isError(n) ? ma_fail(e, MA_MEMORY, "zstd: %s", ZSTD_getErrorName(n)) : 0;
    }
    ZSTD_freeCCtx(c);
    if (rc) return -1;
    out->size = n;
    return mark ? ma_buf_add(out, end_mark, sizeof end_mark) : 0;
}

/* ---- out */

static int put(ma_writer *w, const ma_buf *b, ma_err *e) {
    for (size_t at = 0; at < b->size;) {
        struct pollfd p = {.fd = w->fd, .events = POLLOUT};
        int ready = w->pipe ? poll(&p, 1, 200) : 1;
        if (atomic_load(&w->quit) || ma_stopped) return ma_fail(e, MA_IO, "%s: stopped", w->name);
        if (ready == 0 || (ready < 0 && errno == EINTR)) continue;
        size_t most = w->pipe ? PIPE_BUF : SSIZE_MAX, n = b->size - at;
        ssize_t did = write(w->fd, b->data + at, n < most ? n : most);
        if (did >= 0)
            at += (size_t)did;
        else if (errno != EINTR && errno != EAGAIN)
            return ma_fail(e, MA_IO, "%s: %s", w->name, strerror(errno));
    }
    return 0;
}

/* Has the disk keep up with what is written, or closing the file would wait for all of it. A thread of its own, as the
 * disk takes its time. An error is told to whoever syncs first, so it is noted here. */
static void *keep_disk(void *writer) {
    ma_writer *w = writer;
    size_t safe = 0;
    pthread_mutex_lock(&w->lock);
    while (!w->ended) {
        if (w->bytes - safe < DISK_STEP) {
            pthread_cond_wait(&w->written_more, &w->lock);
            continue;
        }
        ma_err e = {0};
        safe = w->bytes;
        pthread_mutex_unlock(&w->lock);
        ma_outfile_sync(w->file, &e);
        pthread_mutex_lock(&w->lock);
        if (e.reason) ma_fail(&w->err, e.reason, "%s", e.text);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* Writes what is due. The lock is held, but not while writing. */
static void write_due(ma_writer *w) {
    while (!w->writing && w->written < w->taken && w->slot[w->written % w->nslots].done) {
        slot *s = &w->slot[w->written % w->nslots];
        ma_err e = {0};
        w->writing = true;
        bool skip = w->err.reason != MA_OK;
        pthread_mutex_unlock(&w->lock);
        if (!skip) put(w, &s->bytes, &e);
        pthread_mutex_lock(&w->lock);
        if (e.reason) ma_fail(&w->err, e.reason, "%s", e.text);
        w->bytes += s->bytes.size;
        s->done = false;
        w->writing = false;
        w->written++;
        pthread_cond_broadcast(&w->written_more);
    }
}

/* The sample's part of the shard, into the slot. tar: memory that its thread keeps. */
static int make(const ma_writer *w, slot *s, ma_buf *tar, ma_err *e) {
    if (!w->level) return make_tar(w, s->s, &s->bytes, e);
    return make_tar(w, s->s, tar, e) || compress(tar, &s->bytes, w->level, true, e) ? -1 : 0;
}

static void *worker(void *writer) {
    ma_writer *w = writer;
    ma_buf tar = {0};
    pthread_mutex_lock(&w->lock);
    for (;;) {
        while (w->taken == w->added && !w->closing) pthread_cond_wait(&w->work, &w->lock);
        if (w->taken == w->added) break;
        slot *s = &w->slot[w->taken++ % w->nslots];
        ma_err e = {0};
        pthread_mutex_unlock(&w->lock);
        if (!atomic_load(&w->quit)) make(w, s, &tar, &e);
        ma_sample_free(s->s);
        s->s = NULL;
        pthread_mutex_lock(&w->lock);
        if (e.reason) ma_fail(&w->err, e.reason, "%s: %s", w->name, e.text);
        s->done = true;
        write_due(w);
    }
    pthread_mutex_unlock(&w->lock);
    ma_buf_free(&tar);
    return NULL;
}

/* ---- the writer */

static void join(ma_writer *w) {
    pthread_mutex_lock(&w->lock);
    w->closing = true;
    pthread_cond_broadcast(&w->work);
    pthread_mutex_unlock(&w->lock);
    for (int i = 0; i < w->nthreads; i++) pthread_join(w->thread[i], NULL);
    w->nthreads = 0;
    pthread_mutex_lock(&w->lock);
    w->ended = true;
    pthread_cond_broadcast(&w->written_more);
    pthread_mutex_unlock(&w->lock);
    if (w->has_disk) pthread_join(w->disk, NULL);
    w->has_disk = false;
}

static void release(ma_writer *w) {
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->work);
    pthread_cond_destroy(&w->written_more);
    ma_keyset_free(&w->keys);
    for (size_t k = 0; k < w->nslots; k++) ma_buf_free(&w->slot[k].bytes);
    for (int i = 0; i < w->ndrop; i++) free(w->drop[i]);
    free(w->drop);
    free(w->name);
    free(w);
}

static int start_threads(ma_writer *w, int threads) {
    long most = threads > 0 ? threads : sysconf(_SC_NPROCESSORS_ONLN);
    int n = most < 1 || !w->level ? 1 : most < THREADS_MOST ? (int)most : THREADS_MOST;
    w->nslots = (size_t)(n * SLOTS_A_THREAD);
    while (w->nthreads < n && !pthread_create(&w->thread[w->nthreads], NULL, worker, w)) w->nthreads++;
    w->has_disk = w->file && w->nthreads && !pthread_create(&w->disk, NULL, keep_disk, w); /* without, it ends later */
    return w->nthreads ? 0 : -1;
}

static int set_up(ma_writer *w, const ma_writer_opts *o, ma_err *e) {
    w->name = ma_strdup(o->path ? o->path : o->fd == STDOUT_FILENO ? "standard output" : "output");
    w->drop = calloc((size_t)o->ndrop + 1, sizeof *w->drop);
    for (; w->drop && w->ndrop < o->ndrop; w->ndrop++)
        if (!(w->drop[w->ndrop] = ma_strdup(o->drop[w->ndrop]))) break;
    if (!w->name || !w->drop || w->ndrop < o->ndrop) return ma_fail(e, MA_MEMORY, "out of memory");
    if (o->path && !(w->file = ma_outfile_open(o->path, e))) return -1;
    w->fd = w->file ? ma_outfile_fd(w->file) : o->fd;
    struct stat st;
    if (fstat(w->fd, &st)) return ma_fail(e, MA_IO, "%s: %s", w->name, strerror(errno));
    w->pipe = S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode);
    if (start_threads(w, o->threads)) return ma_fail(e, MA_MEMORY, "%s: no thread can be started", w->name);
    return 0;
}

ma_writer *ma_writer_open(const ma_writer_opts *o, ma_err *e) {
    ma_writer *w = calloc(1, sizeof *w);
    if (!w) {
        ma_fail(e, MA_MEMORY, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->work, NULL);
    pthread_cond_init(&w->written_more, NULL);
    w->level = o->level;
    if (!set_up(w, o, e)) return w;
    ma_writer_abort(w);
    return NULL;
}

/* Queues the sample, which is taken over where 0 is returned, waiting for room. */
static int queue(ma_writer *w, ma_sample *sample, ma_err *e) {
    pthread_mutex_lock(&w->lock);
    while (w->added - w->written == w->nslots && !w->err.reason) pthread_cond_wait(&w->written_more, &w->lock);
    int rc = w->err.reason ? ma_fail(e, w->err.reason, "%s", w->err.text) : 0;
    if (!rc) {
        w->slot[w->added++ % w->nslots].s = sample;
        pthread_cond_signal(&w->work);
    }
    pthread_mutex_unlock(&w->lock);
    return rc;
}

int ma_writer_add(ma_writer *w, ma_sample *s, ma_err *e) {
    int fresh = ma_keyset_add(&w->keys, s->key), rc;
    if (fresh < 0)
        rc = ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    else if (!fresh)
        rc = ma_fail(e, MA_DUPLICATE, "%s: the output has a sample of this key already", s->key);
    else
        rc = check_names(w, s, e);
    if (!rc) rc = queue(w, s, e);
    if (rc) ma_sample_free(s);
    return rc;
}

/* Two zero blocks, and what a close() of the output would have to report. */
static int finish(ma_writer *w, ma_err *e) {
    ma_buf end = {.data = calloc(2, 512), .size = 1024}, packed = {0};
    if (!end.data) return ma_fail(e, MA_MEMORY, "%s: out of memory", w->name);
    int rc = w->level ? compress(&end, &packed, w->level, false, e) : 0;
    if (!rc) rc = put(w, w->level ? &packed : &end, e);
    ma_buf_free(&packed);
    ma_buf_free(&end);
    if (rc || w->file) return rc;
    int copy = dup(w->fd); /* the descriptor stays open, but NFS tells of a full disk on close */
    if (copy < 0 || close(copy)) return ma_fail(e, MA_IO, "%s: %s", w->name, strerror(errno));
    return 0;
}

int ma_writer_close(ma_writer *w, ma_err *e) {
    join(w);
    int rc = w->err.reason ? ma_fail(e, w->err.reason, "%s", w->err.text) : finish(w, e);
    if (w->file) {
        if (rc)
            ma_outfile_abort(w->file);
        else
            rc = ma_outfile_commit(w->file, e);
    }
    release(w);
    return rc;
}

void ma_writer_abort(ma_writer *w) {
    if (!w) return;
    atomic_store(&w->quit, true);
    join(w);
    ma_outfile_abort(w->file);
    release(w);
}
