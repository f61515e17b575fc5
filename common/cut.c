/* cut: the shapes that can be cut are a zstd shard of ours, where an end-of-sample mark stands behind each sample
 * (writer.c), and a plain ustar. In zstd the heads of frames and blocks are read, in a tar the headers of members.
 *
 * Limits: an end mark within FRAMES_MOST frames; no pax and no GNU headers (long names), which are met as a stream.
 * Traps:
 * - a cut says nothing of what is between: whether it is one whole sample is known when it is read;
 * - a stream begins where cutting ends, and must find something there: a sample is told only once what is behind it
 *   has been seen to be a sample, or a proper end of the archive, itself. */
#include "cut.h"
#include "shard.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

enum { BLOCK = 512, END_LEAST = 2 * BLOCK, END_MOST = 1 << 16, FRAMES_MOST = 8 };
static const int64_t WINDOW = 64 << 20; /* bytes that the system is asked to have ready */

struct ma_cut {
    int fd;
    int64_t size;
    int64_t from, to; /* a sample that is not told yet */
    int64_t asked;    /* the system has been asked for what is before */
    bool zstd, over;
};

static bool get(const ma_cut *c, int64_t at, void *to, size_t n) {
    return at >= 0 && (uint64_t)at + n <= (uint64_t)c->size && pread(c->fd, to, n, at) == (ssize_t)n;
}

static bool all_zero(const char *b, size_t n) {
    return n && !*b && !memcmp(b, b + 1, n - 1);
}

/* ---- zstd */

/* Past the frame at `at`, which may be a skippable one; -1: it is none, or not whole. See RFC 8878. */
static int64_t frame_end(const ma_cut *c, int64_t at) {
    static const int dictionary[] = {0, 1, 2, 4}, content[] = {0, 2, 4, 8};
    unsigned char b[8];
    if (!get(c, at, b, 5)) return -1;
    const uint64_t magic = ma_little(b, 4);
    if ((magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START)
        return get(c, at + 4, b, 4) ? at + 8 + (int64_t)ma_little(b, 4) : -1;
    if (magic != ZSTD_MAGICNUMBER) return -1;
    const int head = b[4], single = head >> 5 & 1;
    at += 5 + !single + dictionary[head & 3] + (head >> 6 ? content[head >> 6] : single);
    for (bool last = false; !last;) {
        if (!get(c, at, b, 3)) return -1;
        const uint64_t block = ma_little(b, 3), kind = block >> 1 & 3;
        if (kind == 3) return -1;
        at += 3 + (kind == 1 ? 1 : (int64_t)(block >> 3)); /* 1: one byte, many times */
        last = block & 1;
    }
    return at + (head & 4 ? 4 : 0);
}

static int64_t zstd_end(const ma_cut *c, int64_t at) {
    unsigned char b[8];
    for (int k = 0; k < FRAMES_MOST && at >= 0; k++) {
        if (k && get(c, at, b, 8) && ma_little(b, 8) == MA_END_MARK) return at + 8;
        at = frame_end(c, at);
    }
    return -1;
}

/* ---- tar */

/* The number in a header's field of n octal digits; -1: something else. */
static int64_t octal(const char *field, int n) {
    int64_t v = 0;
    int k = 0;
    for (; k < n && field[k] >= '0' && field[k] <= '7'; k++) v = v << 3 | (field[k] - '0');
    return k && (k == n || !field[k] || field[k] == ' ') ? v : -1;
}

/* The key of the member of this header, in key (257 bytes): "" for what is no part of a sample. false: not a plain
 * ustar header of a file or folder. */
static bool header_key(const char *h, char *key) {
    char name[257];
    if (memcmp(h + 257,
               "ustar\0"
               "00",
               8) ||
        !strchr("05", h[156] ? h[156] : '0') || octal(h + 124, 12) < 0)
        return false;
    snprintf(name, sizeof name, "%.155s%s%.100s", h + 345, h[345] ? "/" : "", h);
    char *ext, *found;
    *key = 0;
    if (h[156] == '5' || !ma_name_split(name, &found, &ext)) return true;
    if (found && ext) snprintf(key, sizeof name, "%s", found);
    free(found);
    free(ext);
    return *key;
}

/* A sample ends where the next begins, or the archive. */
static int64_t tar_end(const ma_cut *c, int64_t at) {
    char h[BLOCK], key[257], first[257] = "";
    while (get(c, at, h, sizeof h)) {
        if (all_zero(h, sizeof h)) return *first ? at : -1;
        if (!header_key(h, key)) return -1;
        if (!*first) strcpy(first, key);
        if (*key && strcmp(key, first)) return at;
        at += BLOCK + (octal(h + 124, 12) + BLOCK - 1) / BLOCK * BLOCK;
    }
    return -1;
}

/* ---- both */

/* Whether what is left of the file is the end of an archive and nothing else: zeros, in zstd as a frame. */
static bool is_end(const ma_cut *c, int64_t at) {
    const int64_t left = c->size - at;
    if (left < 1 || left > END_MOST) return false;
    char *in = malloc(2 * (size_t)END_MOST), *out = in ? in + END_MOST : NULL;
    bool good = in && get(c, at, in, (size_t)left);
    size_t n = !good ? 0 : c->zstd ? ZSTD_decompress(out, END_MOST, in, (size_t)left) : (size_t)left;
    good = good && !ZSTD_isError(n) && n >= END_LEAST && all_zero(c->zstd ? out : in, n);
    free(in);
    return good;
}

static int64_t sample_end(ma_cut *c, int64_t at) {
    if (at + WINDOW > c->asked) {
        posix_fadvise(c->fd, c->asked, WINDOW, POSIX_FADV_WILLNEED);
        c->asked += WINDOW;
    }
    const int64_t end = c->zstd ? zstd_end(c, at) : tar_end(c, at);
    return end <= c->size ? end : -1;
}

ma_cut *ma_cut_open(const char *path) {
    struct stat s;
    char head[BLOCK];
    if (stat(path, &s) || !S_ISREG(s.st_mode)) return NULL; /* to open a pipe would be to take from it */
    ma_cut *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    *c = (ma_cut){.fd = open(path, O_RDONLY | O_CLOEXEC), .size = s.st_size};
    if (c->fd >= 0 && get(c, 0, head, 4)) {
        c->zstd = ma_little((unsigned char *)head, 4) == ZSTD_MAGICNUMBER;
        c->to = sample_end(c, 0);
        if (c->to > 0) return c;
    }
    ma_cut_close(c);
    return NULL;
}

int ma_cut_next(ma_cut *c, int64_t *from, int64_t *to) {
    if (c->over) return 0;
    c->over = is_end(c, c->to);
    const int64_t next = c->over ? c->to : sample_end(c, c->to);
    *from = c->from;
    *to = c->to;
    c->from = c->to;
    c->to = next;
    return next < 0 ? -1 : 1;
}

void ma_cut_close(ma_cut *c) {
    if (!c) return;
    if (c->fd >= 0) close(c->fd);
    free(c);
}
