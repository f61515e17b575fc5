/* reader: shards into samples. zstd is decoded here, frame by frame; gzip and xz, and tar itself (ustar, pax, gnu), are
 * libarchive's.
 *
 * What it promises: a sample that it returns is whole. That a sample has ended is known when another begins, when the
 * end of the archive comes, or when its frame was followed by our end-of-sample mark (an empty skippable frame, see
 * writer.c). When the data end or break before any of these, the sample is not returned.
 *
 * Limits: a member is at most 4 GiB, a sample has at most 4,096 members; zstd windows to 128 MiB.
 * Traps:
 * - libarchive takes the end of the file for the end of the archive. We look whether the two zero blocks were there.
 * - What was decoded of a frame before its checksum came is not yet proven. With a frame a sample, the sample's end is
 *   only seen behind the checksum. In a foreign shard of one big frame, damage may come to light samples later; gzip's
 *   checksum is not looked at by libarchive at all.
 * - A header may claim any size: memory is taken as data arrive. */
#include "shard.h"
#include "cli.h"
#include "cut.h"
#include <archive.h>
#include <archive_entry.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>
#include <zstd_errors.h>

enum { ROOM = 1 << 17, FIRST_CHUNK = 1 << 24, MEMBERS_MOST = 4096 };
#define MEMBER_MOST (INT64_C(4) << 30)

/* One input and the bytes on their way from it to libarchive. */
typedef struct source {
    const char *name; /* for messages */
    int fd;
    int64_t left; /* bytes of the file that are to be read; below 0: all */
    const _Atomic bool *quit;
    ma_err err; /* why reading failed; the text is without the name */
    bool zstd, eof;
    bool inside;     /* a zstd frame has begun and not ended */
    bool more;       /* the decoder may hold output back: the last buffer came back full */
    size_t at, fill; /* in[at .. fill) is to be used */
    uint64_t total;  /* bytes handed on */
    uint64_t mark;   /* total at the last end-of-sample mark; 0: none yet */
    ZSTD_DStream *d;
    unsigned char in[ROOM], out[ROOM];
} source;

/* A sample that is being put together. */
typedef struct pending {
    ma_sample *s;
    uint64_t end; /* of its last member, in bytes of tar */
    ma_err bad;   /* why it must not be returned, though its file can be read on */
} pending;

struct ma_reader {
    char **paths;
    int n, at; /* the next to be opened */
    source src;
    bool apart;
    int64_t from;      /* where the next file begins: all but the first at 0 */
    ma_cut *cut;       /* NULL: this file is read as a stream */
    struct archive *a; /* NULL: none open */
    ma_keyset seen;    /* keys of this file */
    pending now;
    char *last;   /* the key before, in this file */
    ma_err later; /* this file's end in error, to be reported before the next is opened */
};

/* ---- bytes */

/* read(), but it wakes up to see whether the run has been stopped: in another thread a signal does not interrupt it. */
static ssize_t read_some(source *s, void *to, size_t n) {
    for (;;) {
        struct pollfd p = {.fd = s->fd, .events = POLLIN};
        int ready = poll(&p, 1, 200);
        if (ma_stopped || (s->quit && *s->quit)) return ma_fail(&s->err, MA_IO, "stopped");
        if (ready == 0 || (ready < 0 && errno == EINTR)) continue;
        ssize_t got = read(s->fd, to, s->left >= 0 && (uint64_t)s->left < n ? (size_t)s->left : n);
        if (got > 0 && s->left > 0) s->left -= got;
        if (got >= 0) return got;
        if (errno != EINTR && errno != EAGAIN) return ma_fail(&s->err, MA_IO, "%s", strerror(errno));
    }
}

/* Makes at least need bytes (a few) available, unless the input ends before. */
static int fill(source *s, size_t need) {
    if (s->fill - s->at >= need || s->eof) return 0;
    memmove(s->in, s->in + s->at, s->fill - s->at);
    s->fill -= s->at;
    s->at = 0;
    while (s->fill < need && !s->eof) {
        ssize_t n = read_some(s, s->in + s->fill, ROOM - s->fill);
        if (n < 0) return -1;
        s->eof = n == 0;
        s->fill += (size_t)n;
    }
    return 0;
}

/* Of a frame or of a skippable one. */
static bool is_magic(const unsigned char *b) {
    const uint64_t m = ma_little(b, 4);
    return m == ZSTD_MAGICNUMBER || (m & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

/* At a frame's first byte. 1: it begins; 0: the input ends here. */
static int begin_frame(source *s) {
    if (fill(s, 8)) return -1;
    size_t have = s->fill - s->at;
    if (!have) return 0;
    if (have < 8) return ma_fail(&s->err, MA_CUT, "ends inside the head of a zstd frame");
    const unsigned char *b = s->in + s->at;
    if (!is_magic(b)) return ma_fail(&s->err, MA_CORRUPT, "something other than zstd after a zstd frame");
    if (ma_little(b, 8) == MA_END_MARK) s->mark = s->total;
    ZSTD_DCtx_reset(s->d, ZSTD_reset_session_only);
    s->inside = true;
    return 1;
}

static int decode(source *s, size_t *made) {
    ZSTD_inBuffer in = {s->in, s->fill, s->at};
    ZSTD_outBuffer out = {s->out, ROOM, 0};
    size_t rc = ZSTD_decompressStream(s->d, &out, &in);
    s->at = in.pos;
    if (ZSTD_isError(rc)) {
        bool window = ZSTD_getErrorCode(rc) == ZSTD_error_frameParameter_windowTooLarge;
        return ma_fail(&s->err, window ? MA_UNSUPPORTED : MA_CORRUPT, "zstd: %s", ZSTD_getErrorName(rc));
    }
    s->inside = rc != 0;
    s->more = s->inside && out.pos == ROOM;
    *made = out.pos;
    return 0;
}

/* libarchive's read callbacks: the next block, 0 at the end. The block lives until the next call. */
static la_ssize_t read_zstd(struct archive *a, void *client, const void **block) {
    source *s = client;
    size_t made = 0;
    (void)a;
    while (!made) {
        int rc = s->inside ? 1 : begin_frame(s);
        if (rc <= 0) return rc;
        if (!s->more && fill(s, 1)) return -1;
        if (!s->more && s->at == s->fill) return ma_fail(&s->err, MA_CUT, "ends inside a zstd frame");
        if (decode(s, &made)) return -1;
    }
    s->total += made;
    *block = s->out;
    return (la_ssize_t)made;
}

static la_ssize_t read_plain(struct archive *a, void *client, const void **block) {
    source *s = client;
    (void)a;
    if (fill(s, 1)) return -1;
    *block = s->in + s->at;
    size_t n = s->fill - s->at;
    s->at = s->fill;
    s->total += n;
    if (!n && s->left == 0) s->mark = s->total; /* where a sample was cut out it ends */
    return (la_ssize_t)n;
}

/* ---- files */

/* Notes the end of this file in error: FILE: KEY: text, or where no key can be told, behind which. */
static void give_up(ma_reader *r, ma_reason why, const char *text) {
    const char *place = r->now.s ? "" : r->last ? "after " : "";
    const char *key = r->now.s ? r->now.s->key : r->last ? r->last : "before the first sample";
    ma_fail(&r->later, why, "%s: %s%s: %s", r->src.name, place, key, text);
}

/* The same for what libarchive, or our callback behind it, complains about. */
static void give_up_archive(ma_reader *r) {
    const char *text = archive_error_string(r->a);
    const source *s = &r->src;
    if (!text) text = "damaged";
    if (s->err.reason)
        give_up(r, s->err.reason, s->err.text);
    else if (archive_errno(r->a) == ENOMEM)
        give_up(r, MA_MEMORY, "out of memory");
    else if (strcasestr(text, "truncated") || strstr(text, "No progress"))
        give_up(r, MA_CUT, "ends inside a member or a header");
    else
        give_up(r, MA_CORRUPT, text);
}

static void close_file(ma_reader *r) {
    source *s = &r->src;
    archive_read_free(r->a);
    r->a = NULL;
    if (s->fd > STDIN_FILENO) close(s->fd);
    ma_cut_close(r->cut);
    r->cut = NULL;
    ZSTD_freeDStream(s->d);
    ma_keyset_free(&r->seen);
    ma_sample_free(r->now.s);
    r->now = (pending){0};
    free(r->last);
    r->last = NULL;
    s->fd = -1;
    s->d = NULL;
}

/* Starts libarchive over the open descriptor. */
static int open_archive(ma_reader *r) {
    source *s = &r->src;
    if (fill(s, 4)) return -1;
    if (s->at == s->fill) return ma_fail(&s->err, MA_CUT, "empty");
    s->zstd = s->fill - s->at >= 4 && is_magic(s->in + s->at);
    r->a = archive_read_new();
    if (!r->a || (s->zstd && !(s->d = ZSTD_createDStream()))) return ma_fail(&s->err, MA_MEMORY, "out of memory");
    archive_read_support_format_tar(r->a);
    if (!s->zstd) {
        archive_read_support_filter_gzip(r->a);
        archive_read_support_filter_xz(r->a);
    }
    if (archive_read_set_format_option(r->a, "tar", "read_concatenated_archives", "1") != ARCHIVE_OK)
        return ma_fail(&s->err, MA_UNSUPPORTED, "libarchive: %s", archive_error_string(r->a));
    if (archive_read_open(r->a, s, NULL, s->zstd ? read_zstd : read_plain, NULL) == ARCHIVE_OK) return 0;
    if (s->eof && s->total < 512) return ma_fail(&s->err, MA_CUT, "ends inside its first header, or is not a tar");
    return ma_fail(&s->err, MA_UNSUPPORTED, "not a tar, nor one in zstd, gzip or xz");
}

static int open_next(ma_reader *r) {
    source *s = &r->src;
    const char *path = r->paths[r->at++];
    bool in = !strcmp(path, "-");
    s->name = in ? "standard input" : path;
    s->err = (ma_err){0};
    s->zstd = s->eof = s->inside = s->more = false;
    s->at = s->fill = 0;
    s->total = s->mark = 0;
    if (r->apart && !in && (r->cut = ma_cut_open(path))) return 0;
    s->fd = in ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0 || (r->from && lseek(s->fd, r->from, SEEK_SET) < 0))
        return ma_fail(&r->later, errno == ENOENT ? MA_MISSING : MA_IO, "%s: %s", path, strerror(errno));
    r->from = 0;
    if (!open_archive(r)) return 0;
    give_up(r, s->err.reason, s->err.text);
    return -1;
}

/* ---- samples */

bool ma_name_split(const char *name, char **key, char **ext) {
    if (!strncmp(name, "./", 2)) name += 2;
    size_t first = strcspn(name, "/");
    if (first > 4 && !strncmp(name, "__", 2) && !strncmp(name + first - 2, "__", 2)) return false;
    const char *slash = strrchr(name, '/'), *base = slash ? slash + 1 : name, *dot = strchr(base, '.');
    if (!dot || dot == base || !dot[1]) return false;
    *key = strndup(name, (size_t)(dot - name));
    *ext = ma_strdup(dot + 1);
    for (char *c = *ext; c && *c; c++) *c = (char)tolower((unsigned char)*c);
    return true;
}

static bool printable(const char *name) {
    for (; *name; name++)
        if ((unsigned char)*name < ' ' || *name == 127) return false;
    return true;
}

/* The member's data, as they come. NULL with r->later set. */
static void *read_data(ma_reader *r, size_t size, const char *ext) {
    size_t used = 0, room = size < FIRST_CHUNK ? size + !size : FIRST_CHUNK;
    char *data = malloc(room);
    while (data && used < size) {
        if (used == room) {
            room = room > size / 2 ? size : 2 * room;
            char *larger = realloc(data, room);
            if (!larger) break;
            data = larger;
        }
        la_ssize_t n = archive_read_data(r->a, data + used, room - used);
        if (n <= 0) {
            if (n < 0)
                give_up_archive(r);
            else
                give_up(r, MA_CORRUPT, "a member is shorter than its header says");
            free(data);
            return NULL;
        }
        used += (size_t)n;
    }
    if (data && used == size) return data;
    ma_fail(&r->later, MA_MEMORY, "%s: %s.%s: out of memory for %zu bytes", r->src.name, r->now.s->key, ext, size);
    free(data);
    return NULL;
}

/* Reads over the padding, to know where the member ends. */
static void end_member(ma_reader *r) {
    if (archive_read_data_skip(r->a) != ARCHIVE_OK) give_up_archive(r);
    r->now.end = (uint64_t)archive_filter_bytes(r->a, 0);
}

/* Adds the member at hand to the pending sample, or finds the fault with it. */
static void take_member(ma_reader *r, struct archive_entry *entry, const char *ext) {
    ma_sample *s = r->now.s;
    int64_t size = archive_entry_size(entry);
    if (r->now.bad.reason) return;
    if (ma_sample_get(s, ext)) {
        ma_fail(&r->now.bad, MA_DUPLICATE, "%s: %s: .%s is there twice", r->src.name, s->key, ext);
    } else if (s->n == MEMBERS_MOST) {
        give_up(r, MA_UNSUPPORTED, "more members than any sample has");
    } else if (archive_entry_sparse_count(entry) > 0 || size < 0 || size > MEMBER_MOST) {
        give_up(r, MA_UNSUPPORTED, "a sparse member, or one above 4 GiB");
    } else {
        void *data = read_data(r, (size_t)size, ext);
        if (data && !ma_sample_put(s, ext, data, (size_t)size, &r->later)) end_member(r);
    }
}

int ma_reader_twice(const char *file, const char *key, ma_err *e) {
    return ma_fail(e, MA_DUPLICATE, "%s: %s: its members are not adjacent, or the key is there twice", file, key);
}

/* Begins the sample of this key; a sample that was pending is thereby whole. */
static pending begin_sample(ma_reader *r, const char *key) {
    pending before = r->now;
    if (before.s) {
        free(r->last);
        r->last = ma_strdup(before.s->key);
    }
    r->now = (pending){.s = ma_sample_new(key)};
    int fresh = ma_keyset_add(&r->seen, key);
    if (!r->now.s || !(r->now.s->from = ma_strdup(r->src.name)) || fresh < 0)
        ma_fail(&r->later, MA_MEMORY, "%s: %s: out of memory", r->src.name, key);
    else if (!fresh)
        ma_reader_twice(r->src.name, key, &r->now.bad);
    return before;
}

/* The file ended, well or not. Returns the sample that is whole by it. */
static pending end_file(ma_reader *r, int rc) {
    bool good = rc == ARCHIVE_EOF;
    bool zeros = good && archive_filter_bytes(r->a, 0) - archive_read_header_position(r->a) >= 1024;
    pending whole = {0};
    if (zeros || (r->now.s && r->now.end == r->src.mark)) {
        whole = r->now;
        r->now = (pending){0};
        if (whole.s) {
            free(r->last);
            r->last = ma_strdup(whole.s->key);
        }
    }
    if (!good)
        give_up_archive(r);
    else if (!zeros)
        give_up(r, MA_CUT, "the end of the archive is missing");
    return whole;
}

/* Reads one member. Returns the sample that is whole by that, if any; sets later when this file is done with. */
static pending step(ma_reader *r) {
    struct archive_entry *entry;
    pending whole = {0};
    int rc = archive_read_next_header(r->a, &entry);
    if (rc != ARCHIVE_OK && rc != ARCHIVE_WARN) { /* bad checksums come as ARCHIVE_RETRY */
        whole = end_file(r, rc);
        if (!r->later.reason) close_file(r);
        return whole;
    }
    const char *name = archive_entry_pathname(entry);
    if (!name) name = archive_entry_pathname_utf8(entry); /* pax names that this locale cannot show */
    char *key = NULL, *ext = NULL;
    if (archive_entry_filetype(entry) != AE_IFREG || archive_entry_hardlink(entry)) return whole;
    if (!name || !printable(name))
        give_up(r, MA_UNSUPPORTED, "a member's name is empty or has control characters");
    else if (!ma_name_split(name, &key, &ext))
        return whole;
    else if (!key || !ext)
        ma_fail(&r->later, MA_MEMORY, "%s: out of memory", r->src.name);
    else {
        if (!r->now.s || strcmp(r->now.s->key, key)) whole = begin_sample(r, key);
        if (!r->later.reason) take_member(r, entry, ext);
    }
    free(key);
    free(ext);
    return whole;
}

ma_reader *ma_reader_open(const char *const *paths, int n, ma_err *e) {
    static const char *const standard[] = {"-"};
    if (n == 0) {
        paths = standard;
        n = 1;
    }
    ma_reader *r = calloc(1, sizeof *r);
    if (r) r->src.fd = -1;
    if (r) r->src.left = -1;
    if (r) r->paths = calloc((size_t)n, sizeof *r->paths);
    for (; r && r->paths && r->n < n; r->n++)
        if (!(r->paths[r->n] = ma_strdup(paths[r->n]))) break;
    if (r && r->n == n) return r;
    ma_reader_close(r);
    ma_fail(e, MA_MEMORY, "out of memory");
    return NULL;
}

void ma_reader_set(ma_reader *r, const ma_reader_how *how) {
    r->apart = how->apart;
    r->from = how->from;
    r->last = how->last;
    r->src.quit = how->quit;
    if (!how->seen) return;
    r->seen = *how->seen;
    *how->seen = (ma_keyset){0};
}

/* The next sample's place. 0: the file's last has been. */
static int next_place(ma_reader *r, ma_sample **out, ma_err *e) {
    const char *path = r->paths[r->at - 1];
    ma_place p = {0};
    int rc = ma_cut_next(r->cut, &p.from, &p.to);
    if (rc <= 0) {
        ma_cut_close(r->cut);
        r->cut = NULL;
    }
    if (!rc) return 0;
    if (rc < 0) p.to = -1;
    ma_sample *s = ma_sample_new("");
    if (!s || !(s->from = ma_strdup(path))) {
        ma_sample_free(s);
        return ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    }
    s->place = p;
    *out = s;
    return 1;
}

int ma_sample_load(ma_sample **s, const _Atomic bool *quit) {
    const ma_place p = (*s)->place;
    ma_sample *whole = NULL;
    ma_reader *r = p.to > p.from ? ma_reader_open((const char *const *)&(*s)->from, 1, NULL) : NULL;
    if (!r) return -1;
    ma_reader_set(r, &(ma_reader_how){.from = p.from, .quit = quit});
    r->src.left = p.to - p.from;
    bool good = ma_reader_next(r, &whole, NULL) > 0 && !r->now.s; /* and not the beginning of another */
    ma_reader_close(r);
    if (!good) {
        ma_sample_free(whole);
        return -1;
    }
    whole->place = p;
    whole->place.here = true;
    ma_sample_free(*s);
    *s = whole;
    return 0;
}

int ma_reader_next(ma_reader *r, ma_sample **out, ma_err *e) {
    *out = NULL;
    for (;;) {
        if (r->later.reason) {
            ma_fail(e, r->later.reason, "%s", r->later.text);
            r->later = (ma_err){0};
            close_file(r);
            return -1;
        }
        if (r->cut) {
            int rc = next_place(r, out, e);
            if (rc) return rc;
            continue;
        }
        if (!r->a) {
            if (r->at == r->n) return 0;
            if (open_next(r) || r->cut) continue;
        }
        pending whole = step(r);
        if (whole.s && !whole.bad.reason) {
            *out = whole.s;
            return 1;
        }
        ma_sample_free(whole.s);
        if (whole.bad.reason) return ma_fail(e, whole.bad.reason, "%s", whole.bad.text);
    }
}

void ma_reader_close(ma_reader *r) {
    if (!r) return;
    close_file(r);
    for (int i = 0; i < r->n; i++) free(r->paths[i]);
    free(r->paths);
    free(r);
}
