/* file: files read whole and hashed, files written so that no half of one is ever seen. See file.h for the contracts.
 *
 * Traps minded:
 * - rename() over /dev/null would replace the device: only regular files are written by way of a temporary one;
 * - the source tree is found from the working folder too, since a build folder may lie elsewhere;
 * - the sweep may run in a signal handler that interrupted the holder of its lock: it gives up rather than wait.
 */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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
        if (ma_buf_reserve(out, step) < 0) {
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

int ma_outfile_sync(ma_outfile *f, ma_err *e) {
    const bool straight = f->temp == f->path;
    return fsync(f->fd) < 0 && !(straight && (errno == EINVAL || errno == EROFS)) ? fail_errno(e, f->path) : 0;
}

int ma_outfile_commit(ma_outfile *f, ma_err *e) {
    bool straight = f->temp == f->path;
    int rc = ma_outfile_sync(f, e);
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

/* Files that come with the tools */

/* The folder that the program lies in, with a slash at its end; "" if that is not known. */
static void program_folder(char out[PATH_MAX]) {
    ssize_t n = readlink("/proc/self/exe", out, PATH_MAX - 1);
    out[n > 0 ? n : 0] = 0;
    char *slash = strrchr(out, '/');
    out[slash ? slash + 1 - out : 0] = 0;
}

char *ma_shipped(const char *name, ma_err *e) {
    static const char *const beside[] = {"../share/ma-tools", "../pipelines"};
    char folder[PATH_MAX], *path;
    program_folder(folder);
    for (size_t k = 0; k < sizeof beside / sizeof *beside; k++) {
        path = ma_format("%s%s/%s", folder, beside[k], name);
        if (path && !access(path, R_OK)) return path;
        free(path);
    }
    path = ma_format("pipelines/%s", name);
    if (path && !access(path, R_OK)) return path;
    free(path);
    ma_fail(e, MA_MISSING, "%s: neither in %s%s nor in pipelines", name, folder, beside[0]);
    return NULL;
}
