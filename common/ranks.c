/* ranks: see ranks.h. A star around rank 0: n-1 sockets there, one elsewhere. Each process has a second socket to the
 * star's middle that carries nothing: when a process ends, for whatever reason, the system closes it, and the thread
 * that watches it knows. Traps:
 * - the file of an earlier run may still lie there: its port is closed, or its token is not what the port answers, and
 *   the file is read again until time is up;
 * - a host without a name that others resolve: on the same host the loopback address is taken;
 * - Slurm says SLURM_PROCID=0 and the whole job's SLURM_NTASKS also in a batch script and in salloc's shell, where one
 *   process runs; SLURM_STEP_NUM_TASKS, which srun sets, says how many it has started.
 */
#include "ranks.h"
#include "file.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 4096, DATA = 0, WATCH = 1, PIECE = 1 << 18 /* numbers sent at a time */ };

struct ma_ranks {
    int rank, count, local;
    int (*peer)[2]; /* [k]: rank k's sockets on rank 0; [0]: rank 0's elsewhere. -1: none */
    int peers;
    pthread_t watcher;
    bool watching;
    atomic_bool lost, closing;
    atomic_int who; /* the rank that is gone */
    pthread_mutex_t lock;
    void (*on_lost)(void *);
    void *self;
};

/* ---- environment ---- */

static bool number_of(const char *name, int *out, bool *bad) {
    const char *text = getenv(name);
    if (!text || !*text) return false;
    char *end;
    long v = strtol(text, &end, 10);
    if (*end || v < 0 || v > MOST) *bad = true;
    *out = (int)v;
    return true;
}

enum { RANK, COUNT, LOCAL, LAUNCHERS = 4, SLURM = LAUNCHERS - 1 };
static const char *const NAMES[LAUNCHERS][3] = {
    {"MA_RANK", "MA_RANKS", "MA_LOCAL_RANK"},
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
    [SLURM] = {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"}};

/* Who has started this process; LAUNCHERS: none that is known. */
static int launcher(void) {
    int k = 0, number;
    bool bad = false;
    while (k < LAUNCHERS && (!number_of(NAMES[k][RANK], &number, &bad) || !number_of(NAMES[k][COUNT], &number, &bad)))
        k++;
    return k;
}

int ma_ranks_environment(int *rank, int *count, int *local, ma_err *e) {
    const int k = launcher();
    bool bad = false;
    *rank = *local = 0;
    *count = 1;
    if (k == LAUNCHERS) return 0;
    number_of(NAMES[k][RANK], rank, &bad);
    number_of(NAMES[k][COUNT], count, &bad);
    if (!number_of(NAMES[k][LOCAL], local, &bad)) *local = *rank;
    if (!bad && *count > 0 && *rank < *count) return 0;
    return ma_fail(e, MA_USAGE, "%s=%s of %s=%s is not a rank", NAMES[k][RANK], getenv(NAMES[k][RANK]), NAMES[k][COUNT],
                   getenv(NAMES[k][COUNT]));
}

int ma_ranks_allotted(void) {
    int tasks = 0;
    bool bad = false;
    if (launcher() >= SLURM) number_of("SLURM_NTASKS", &tasks, &bad);
    return bad ? 0 : tasks;
}

/* ---- bytes ---- */

static int gone(const ma_ranks *r, int who, ma_err *e) {
    return ma_fail(e, MA_DEVICE, "rank %d is gone", atomic_load(&r->lost) ? atomic_load(&r->who) : who);
}

/* Sends, or receives, all of n bytes. -1: the other side is gone. */
static int whole(int fd, void *data, size_t n, bool out) {
    for (size_t done = 0; done < n;) {
        char *at = (char *)data + done;
        ssize_t k = out ? send(fd, at, n - done, MSG_NOSIGNAL) : recv(fd, at, n - done, 0);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return -1;
        done += (size_t)k;
    }
    return 0;
}

/* The rank at the other end of peer k. */
static int rank_of(const ma_ranks *r, int k) {
    return r->rank ? 0 : k;
}

static int exchange(ma_ranks *r, int k, void *data, size_t n, bool out, ma_err *e) {
    return whole(r->peer[k][DATA], data, n, out) ? gone(r, rank_of(r, k), e) : 0;
}

int ma_ranks_tell(ma_ranks *r, void *data, size_t n, ma_err *e) {
    if (r->rank) return exchange(r, 0, data, n, false, e);
    for (int k = 1; k < r->count; k++)
        if (exchange(r, k, data, n, true, e)) return -1;
    return 0;
}

int ma_ranks_bring(ma_ranks *r, int from, void *data, size_t n, ma_err *e) {
    return from ? exchange(r, r->rank ? 0 : from, data, n, r->rank != 0, e) : 0;
}

static void add(void *sum, const void *x, size_t n, bool f64) {
    for (size_t i = 0; i < n && f64; i++) ((double *)sum)[i] += ((const double *)x)[i];
    for (size_t i = 0; i < n && !f64; i++) ((float *)sum)[i] += ((const float *)x)[i];
}

static int sum(ma_ranks *r, char *x, size_t n, bool f64, ma_err *e) {
    const size_t size = f64 ? sizeof(double) : sizeof(float);
    if (r->count == 1) return 0;
    void *theirs = r->rank ? NULL : ma_alloc(PIECE, size);
    int rc = !r->rank && !theirs ? ma_fail(e, MA_MEMORY, "ranks: out of memory") : 0;
    for (size_t from = 0; from < n && !rc; from += PIECE) {
        size_t many = n - from < PIECE ? n - from : PIECE;
        char *piece = x + from * size;
        if (r->rank) rc = exchange(r, 0, piece, many * size, true, e);
        for (int k = 1; k < r->count && !r->rank && !rc; k++)
            if (!(rc = exchange(r, k, theirs, many * size, false, e))) add(piece, theirs, many, f64);
        if (!rc) rc = ma_ranks_tell(r, piece, many * size, e);
    }
    ma_release(theirs);
    return rc;
}

int ma_ranks_sum_f64(ma_ranks *r, double *x, size_t n, ma_err *e) {
    return sum(r, (char *)x, n, true, e);
}

int ma_ranks_sum_f32(ma_ranks *r, float *x, size_t n, ma_err *e) {
    return sum(r, (char *)x, n, false, e);
}

/* ---- watching ---- */

/* All sockets that data goes over are closed to it: who reads or writes there wakes up. */
static void raise_alarm(ma_ranks *r, int who) {
    atomic_store(&r->who, who);
    atomic_store(&r->lost, true);
    for (int k = 0; k < r->peers; k++)
        for (int kind = DATA; kind <= WATCH; kind++)
            if (r->peer[k][kind] >= 0) shutdown(r->peer[k][kind], SHUT_RDWR);
    pthread_mutex_lock(&r->lock);
    if (r->on_lost) r->on_lost(r->self);
    pthread_mutex_unlock(&r->lock);
}

static void *watch(void *arg) {
    ma_ranks *r = arg;
    struct pollfd *p = calloc((size_t)r->peers, sizeof *p);
    for (int k = 0; p && k < r->peers; k++)
        p[k] = (struct pollfd){.fd = r->peer[k][WATCH], .events = POLLIN | POLLRDHUP};
    while (p && !atomic_load(&r->closing)) {
        if (poll(p, (nfds_t)r->peers, 200) <= 0) continue;
        for (int k = 0; k < r->peers; k++) {
            char word = 0;
            if (!p[k].revents || atomic_load(&r->closing)) continue;
            /* A byte is a farewell: the rank has ended well, and so will we. */
            if (recv(p[k].fd, &word, 1, MSG_DONTWAIT) == 1) {
                p[k].fd = -1;
                continue;
            }
            raise_alarm(r, rank_of(r, k));
            free(p);
            return NULL;
        }
    }
    free(p);
    return NULL;
}

void ma_ranks_watch(ma_ranks *r, void (*lost)(void *), void *self) {
    pthread_mutex_lock(&r->lock);
    r->on_lost = lost;
    r->self = self;
    if (lost && atomic_load(&r->lost)) lost(self);
    pthread_mutex_unlock(&r->lock);
}

bool ma_ranks_lost(const ma_ranks *r) {
    return atomic_load(&r->lost);
}

int ma_ranks_whole(const ma_ranks *r, ma_err *e) {
    return ma_ranks_lost(r) ? gone(r, 0, e) : 0;
}

/* ---- meeting ---- */

/* What a rank says when it calls, and, with its own rank 0, what it is answered. */
typedef struct hello {
    uint64_t token;
    int32_t rank, kind;
} hello;

static void tune(int fd) {
    const int on = 1, idle = 10, every = 5, times = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on); /* a host that dies says nothing */
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof every);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof times);
}

static void limit_wait(int fd, double seconds) {
    const struct timeval t = {.tv_sec = (time_t)seconds, .tv_usec = (suseconds_t)((seconds - (int)seconds) * 1e6)};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}

static int listen_anywhere(int *port, ma_err *e) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
    socklen_t size = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 2 * MOST) ||
        getsockname(fd, (struct sockaddr *)&a, &size)) {
        if (fd >= 0) close(fd);
        return ma_fail(e, MA_IO, "ranks: cannot listen: %s", strerror(errno));
    }
    *port = ntohs(a.sin_port);
    return fd;
}

/* The names of those who have not called. */
static int missing(const ma_ranks *r, ma_err *e) {
    ma_buf b = {0};
    for (int k = 1; k < r->count; k++)
        if (r->peer[k][DATA] < 0 || r->peer[k][WATCH] < 0) ma_buf_printf(&b, "%s%d", b.size ? ", " : "", k);
    ma_fail(e, MA_TIMEOUT, "rank 0 of %d waited in vain for: %.300s", r->count, b.data ? b.data : "?");
    ma_buf_free(&b);
    return -1;
}

/* One caller: its place, if it knows the token. */
static void receive(ma_ranks *r, int fd, uint64_t token, int *met) {
    hello h;
    limit_wait(fd, 5);
    if (whole(fd, &h, sizeof h, false) || h.token != token || h.rank < 1 || h.rank >= r->count || h.kind < DATA ||
        h.kind > WATCH || r->peer[h.rank][h.kind] >= 0 || whole(fd, &h, sizeof h, true)) {
        close(fd);
        return;
    }
    limit_wait(fd, 0);
    tune(fd);
    r->peer[h.rank][h.kind] = fd;
    ++*met;
}

static int host(ma_ranks *r, const char *meeting, double until, ma_err *e) {
    char name[256] = "", text[400];
    uint64_t token;
    int port = 0, met = 0, fd = listen_anywhere(&port, e);
    if (fd < 0) return -1;
    gethostname(name, sizeof name - 1);
    int rc = getrandom(&token, sizeof token, 0) == sizeof token ? 0 : ma_fail(e, MA_IO, "ranks: no random numbers");
    snprintf(text, sizeof text, "%s %d %016llx\n", name, port, (unsigned long long)token);
    if (!rc) rc = ma_write_file(meeting, text, strlen(text), e);
    while (!rc && met < 2 * (r->count - 1)) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        double left = until - ma_now();
        if (left <= 0) rc = missing(r, e);
        if (rc || poll(&p, 1, (int)(left < 1 ? left * 1e3 : 1e3) + 1) <= 0) continue;
        int caller = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (caller >= 0) receive(r, caller, token, &met);
    }
    close(fd);
    unlink(meeting);
    return rc;
}

/* A socket to rank 0, or -1. */
static int call(const char *name, const char *port, hello h) {
    char own[256] = "";
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found = NULL;
    gethostname(own, sizeof own - 1);
    if (getaddrinfo(strcmp(own, name) ? name : "127.0.0.1", port, &hints, &found)) return -1;
    int fd = -1;
    for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && !connect(fd, a->ai_addr, a->ai_addrlen)) break;
        if (fd >= 0) close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    if (fd < 0) return -1;
    hello answer = {0};
    limit_wait(fd, 10);
    if (whole(fd, &h, sizeof h, true) || whole(fd, &answer, sizeof answer, false) || answer.token != h.token) {
        close(fd);
        return -1;
    }
    limit_wait(fd, 0);
    tune(fd);
    return fd;
}

static int join(ma_ranks *r, const char *meeting, double until, ma_err *e) {
    while (r->peer[0][DATA] < 0 || r->peer[0][WATCH] < 0) {
        ma_buf text = {0};
        char name[256], port[16];
        unsigned long long token;
        bool read = !ma_read_file(meeting, 4096, &text, NULL) && text.data &&
                    sscanf(text.data, "%255s %15s %llx", name, port, &token) == 3;
        ma_buf_free(&text);
        for (int kind = DATA; kind <= WATCH && read; kind++)
            if (r->peer[0][kind] < 0) r->peer[0][kind] = call(name, port, (hello){token, r->rank, kind});
        if (ma_now() > until)
            return ma_fail(e, MA_TIMEOUT, "rank %d of %d did not find rank 0: no answer by way of %s", r->rank,
                           r->count, meeting);
        usleep(50000);
    }
    return 0;
}

/* ---- open, close ---- */

ma_ranks *ma_ranks_open(const char *meeting, double seconds, ma_err *e) {
    ma_ranks *r = calloc(1, sizeof *r);
    if (!r || ma_ranks_environment(&r->rank, &r->count, &r->local, e)) {
        if (!r) ma_fail(e, MA_MEMORY, "ranks: out of memory");
        free(r);
        return NULL;
    }
    pthread_mutex_init(&r->lock, NULL);
    if (r->count == 1) return r;
    const int places = r->rank ? 1 : r->count;
    int rc = (r->peer = malloc((size_t)places * sizeof *r->peer)) ? 0 : ma_fail(e, MA_MEMORY, "ranks: out of memory");
    if (!rc) memset(r->peer, -1, (size_t)places * sizeof *r->peer);
    if (!rc) r->peers = places;
    if (!rc) rc = (r->rank ? join : host)(r, meeting, ma_now() + seconds, e);
    if (!rc && pthread_create(&r->watcher, NULL, watch, r)) rc = ma_fail(e, MA_MEMORY, "ranks: no thread");
    r->watching = !rc;
    if (!rc) return r;
    ma_ranks_close(r, false);
    return NULL;
}

void ma_ranks_close(ma_ranks *r, bool well) {
    if (!r) return;
    atomic_store(&r->closing, true);
    if (r->watching) pthread_join(r->watcher, NULL);
    for (int k = 0; k < r->peers; k++) {
        char farewell = 1;
        if (well && r->peer[k][WATCH] >= 0) whole(r->peer[k][WATCH], &farewell, 1, true);
        for (int kind = DATA; kind <= WATCH; kind++)
            if (r->peer[k][kind] >= 0) close(r->peer[k][kind]);
    }
    pthread_mutex_destroy(&r->lock);
    free(r->peer);
    free(r);
}

int ma_ranks_rank(const ma_ranks *r) {
    return r->rank;
}

int ma_ranks_count(const ma_ranks *r) {
    return r->count;
}

int ma_ranks_local(const ma_ranks *r) {
    return r->local;
}
