/* ahead: a ring of tickets, one a sample, numbered in the order of the input:
 *
 *     left ≤ finishing ≤ worked-on ≤ read ≤ left + room
 *
 * One thread at a time reads; the samples that it and the others have read they prepare side by side, and whoever comes
 * first finishes what has been worked on. Of a shard that can be cut only the samples' places are read in turn, and
 * what is there is decoded side by side, too. The caller takes tickets for work and lets them leave strictly in order,
 * so that the output does not depend on threads; what only the order can tell (a key that comes again, a damaged file)
 * is looked at when a ticket is taken.
 *
 * Limits: a batch is of 3 batches' worth of samples in a row, and smaller where fewer of them are good. 3 batches and a
 * sample a thread are under way, less where they would hold more than 4 GiB (as far as can be told from the largest yet)
 * and a batch is ready all the same. OpenMP is off on these threads: samples are enough to keep them busy.
 * Traps:
 * - a batch's size, and with it the last bits of results, must not depend on timing, nor on threads: only what comes
 *   in may end it before it is full;
 * - bad samples behind one that waits for its batch to fill cannot leave before it: without that end they would take
 *   all places, and nothing would ever come again;
 * - a thread may be reading input that never comes when the run ends early: ma_stopped wakes it;
 * - freeing a decoded clip takes milliseconds: it is done here, not by the caller. */
#include "ahead.h"
#include <malloc.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static const size_t MOST_BYTES = (size_t)4 << 30;

/* What is next for a ticket: PREPARE (a thread is at it), then the caller's WORK, then FINISH by a thread; LEAVE. */
enum { PREPARE, WORK, FINISH, LEAVE };

struct ma_ahead {
    const ma_stage *st;
    ma_inputs *in;
    pthread_t *thread;
    int nthreads;
    pthread_mutex_t lock; /* for all below */
    pthread_cond_t change;
    ma_ticket *ring;
    size_t room, batch, most;            /* most: tickets under way, room or fewer */
    size_t read, worked, finished, left; /* counts of tickets that a thread, the caller, a thread, the caller took */
    size_t reach, gathered, first;       /* tickets a batch may be of; those the caller has for one, and the first of them */
    size_t largest;                      /* bytes of one sample, with what prepare made of it */
    bool reading, over, quit;            /* a thread is reading; there is no more to read; nobody wants more */
    bool back;                           /* the input is going back: nobody reads */
    bool leaving;                        /* the caller has the ticket at left */
    int hungry;                          /* threads that wait for one to have read */
    bool waiting;                        /* the caller waits … */
    double last, start;                  /* … and it has been accounted for up to here */
    double spent[MA_SPENT_KINDS];        /* seconds */
};

static ma_ticket *at(const ma_ahead *q, size_t k) {
    return &q->ring[k % q->room];
}

/* ---- whom the caller waits for. Called before anything that it is told by changes. */

static void account(ma_ahead *q) {
    double now = ma_now();
    bool last = q->over && q->read == q->worked;
    if (q->waiting)
        q->spent[last                                ? MA_SPENT_WRITER
                 : q->hungry || q->read == q->worked ? MA_SPENT_INPUT
                                                     : MA_SPENT_PREPARE] += now - q->last;
    q->last = now;
}

void ma_ahead_spent(ma_ahead *q, ma_spent kind, double seconds) {
    q->spent[kind] += seconds;
}

const char *ma_ahead_account(ma_ahead *q, char text[96]) {
    static const char *const names[] = {"input", "decoder", "device", "writer"};
    double all = ma_now() - q->start;
    int n = 0;
    *text = 0;
    for (int k = 0; k < MA_SPENT_KINDS; k++) {
        int percent = all > 0 ? (int)(100 * q->spent[k] / all + 0.5) : 0;
        if (percent) n += snprintf(text + n, 96 - (size_t)n, "%s%d %% %s", n ? ", " : "", percent, names[k]);
    }
    return text;
}

/* ---- the threads. The lock is held where a function begins and ends. */

static void change(ma_ahead *q) {
    pthread_cond_broadcast(&q->change);
}

static void drop(const ma_ahead *q, ma_ticket *t) {
    if (t->pre) q->st->release(q->st->self, t->pre);
    ma_sample_free(t->s);
    *t = (ma_ticket){.state = t->state};
}

static size_t bytes_of(const ma_ahead *q, const ma_ticket *t) {
    size_t n = t->pre && q->st->bytes ? q->st->bytes(t->pre) : 0;
    for (int k = 0; t->s && k < t->s->n; k++) n += t->s->m[k].size;
    return n;
}

static bool may_read(const ma_ahead *q) {
    size_t held = q->read - q->left;
    if (q->over || q->back || held >= q->most) return false;
    return q->read - q->worked < q->batch || (held + 1) * q->largest <= MOST_BYTES;
}

/* Makes the next ticket from the input. NULL: there is none. */
static ma_ticket *read_one(ma_ahead *q) {
    ma_ticket t = {0};
    q->reading = true;
    pthread_mutex_unlock(&q->lock);
    int rc = ma_inputs_next(q->in, &t.s, &t.why);
    pthread_mutex_lock(&q->lock);
    account(q);
    q->reading = false;
    q->over = !rc || ma_stopped;
    change(q);
    if (!rc) return NULL;
    t.state = rc > 0 ? PREPARE : LEAVE;
    ma_ticket *to = at(q, q->read++);
    *to = t;
    return to;
}

static void prepare_one(ma_ahead *q, ma_ticket *t) {
    pthread_mutex_unlock(&q->lock);
    const bool here = !ma_inputs_load(q->in, &t->s);
    if (here && q->st->prepare) t->pre = q->st->prepare(q->st->self, &t->s, &t->why);
    size_t n = bytes_of(q, t);
    if (t->why.reason || !t->s) {
        if (t->pre) q->st->release(q->st->self, t->pre);
        t->pre = NULL;
    }
    pthread_mutex_lock(&q->lock);
    account(q);
    if (n > q->largest) q->largest = n;
    t->state = !here || t->why.reason || !t->s ? LEAVE : WORK;
    change(q);
}

static void finish_one(ma_ahead *q, ma_ticket *t) {
    pthread_mutex_unlock(&q->lock);
    if (q->st->finish && t->s && !t->why.reason) q->st->finish(q->st->self, t->s, t->pre, &t->why);
    if (t->pre) q->st->release(q->st->self, t->pre);
    t->pre = NULL;
    pthread_mutex_lock(&q->lock);
    t->state = LEAVE;
    change(q);
}

static void wait_for_change(ma_ahead *q) {
    bool hungry = q->reading && may_read(q);
    account(q);
    q->hungry += hungry;
    pthread_cond_wait(&q->change, &q->lock);
    account(q);
    q->hungry -= hungry;
}

static void *helper(void *arg) {
    ma_ahead *q = arg;
    ma_ticket *t;
    omp_set_num_threads(1);
    pthread_mutex_lock(&q->lock);
    while (!q->quit) {
        if (q->finished < q->left) q->finished = q->left;
        while (q->finished < q->worked && at(q, q->finished)->state == LEAVE) q->finished++;
        if (q->finished < q->worked && at(q, q->finished)->state == FINISH)
            finish_one(q, at(q, q->finished++));
        else if (q->reading || !may_read(q))
            wait_for_change(q);
        else if ((t = read_one(q)) && t->state == PREPARE)
            prepare_one(q, t);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

/* ---- the caller's side */

/* Samples are some megabytes each, and come and go on all threads: what glibc gives back to the system with one it has
 * to ask for, page by page, with the next. 32 MiB is the most that it takes from its heaps. */
static void keep_memory(void) {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

ma_ahead *ma_ahead_start(const ma_stage *st, ma_inputs *in, int threads, ma_err *e) {
    keep_memory();
    ma_inputs_apart(in);
    ma_ahead *q = calloc(1, sizeof *q);
    size_t batch = st->batch > 0 ? (size_t)st->batch : 1;
    int n = st->prepare || st->finish ? threads : 1;
    if (q) {
        *q = (ma_ahead){.st = st, .in = in, .batch = batch};
        q->reach = st->ahead > 0 ? (size_t)st->ahead : 3 * batch;
        q->room = q->most = q->reach + (size_t)n;
        q->ring = calloc(q->room, sizeof *q->ring);
        q->thread = calloc((size_t)n, sizeof *q->thread);
        q->start = q->last = ma_now();
        pthread_mutex_init(&q->lock, NULL);
        pthread_cond_init(&q->change, NULL);
        while (q->ring && q->thread && q->nthreads < n && !pthread_create(&q->thread[q->nthreads], NULL, helper, q))
            q->nthreads++;
        if (q->nthreads) return q;
        ma_ahead_stop(q);
    }
    ma_fail(e, MA_MEMORY, "no thread to read with");
    return NULL;
}

/* What the caller had of a ticket that left is gone; its place is free. */
static void free_place(ma_ahead *q) {
    if (!q->leaving) return;
    q->leaving = false;
    *at(q, q->left++) = (ma_ticket){0};
    change(q);
}

/* The ticket whose turn it is could not be read by itself: it and those behind it are forgotten, and the input goes on
 * from there. */
static void go_back(ma_ahead *q) {
    q->back = true;
    while (q->reading) pthread_cond_wait(&q->change, &q->lock);
    for (size_t k = q->worked; k < q->read; k++)
        while (at(q, k)->state == PREPARE) pthread_cond_wait(&q->change, &q->lock);
    ma_ticket t = {.state = LEAVE}, *first = at(q, q->worked);
    const int rc = ma_inputs_back(q->in, first->s, &t.why);
    for (size_t k = q->worked; k < q->read; k++) {
        drop(q, at(q, k));
        *at(q, k) = (ma_ticket){0};
    }
    q->read = q->worked;
    if (rc) *at(q, q->read++) = t;
    q->over = q->back = false;
    change(q);
}

/* Takes the next ticket. NULL: it was not to be had so. */
static ma_ticket *take(ma_ahead *q) {
    ma_ticket *t = at(q, q->worked);
    ma_err why = {0};
    if (ma_inputs_settle(q->in, t->s, &why)) {
        go_back(q);
        return NULL;
    }
    if (why.reason) {
        drop(q, t);
        *t = (ma_ticket){.why = why, .state = LEAVE};
    }
    q->worked++;
    return t;
}

static ma_todo next(ma_ahead *q, bool work, ma_ticket **out) {
    ma_todo todo = MA_AHEAD_END;
    pthread_mutex_lock(&q->lock);
    for (free_place(q); !ma_stopped && !todo;) {
        if (q->left < q->worked && at(q, q->left)->state == LEAVE) {
            *out = at(q, q->left);
            q->leaving = true;
            todo = MA_TO_HAND_ON;
        } else if (work && q->gathered && q->worked - q->first >= q->reach) {
            break;
        } else if (work && q->worked < q->read && at(q, q->worked)->state != PREPARE) {
            *out = take(q);
            if (*out && (*out)->state == WORK) {
                todo = MA_TO_WORK;
                if (!q->gathered++) q->first = q->worked - 1;
            }
        } else if (work ? q->over && q->worked == q->read : q->left == q->worked) {
            break;
        } else {
            account(q);
            q->waiting = true;
            pthread_cond_wait(&q->change, &q->lock);
            account(q);
            q->waiting = false;
        }
    }
    pthread_mutex_unlock(&q->lock);
    return todo;
}

ma_todo ma_ahead_next(ma_ahead *q, ma_ticket **out) {
    return next(q, true, out);
}

ma_todo ma_ahead_last(ma_ahead *q, ma_ticket **out) {
    return next(q, false, out);
}

void ma_ahead_worked(ma_ahead *q, ma_ticket **t, int n) {
    pthread_mutex_lock(&q->lock);
    q->gathered -= (size_t)n;
    for (int k = 0; k < n; k++) t[k]->state = q->st->finish || t[k]->pre ? FINISH : LEAVE;
    change(q);
    pthread_mutex_unlock(&q->lock);
}

void ma_ahead_limit(ma_ahead *q, size_t most) {
    pthread_mutex_lock(&q->lock);
    const bool more = most > q->most;
    q->most = most < q->room ? most : q->room;
    if (more) change(q);
    pthread_mutex_unlock(&q->lock);
}

void ma_ahead_stop(ma_ahead *q) {
    if (!q) return;
    ma_inputs_quit(q->in);
    pthread_mutex_lock(&q->lock);
    q->quit = true;
    change(q);
    pthread_mutex_unlock(&q->lock);
    for (int k = 0; k < q->nthreads; k++) pthread_join(q->thread[k], NULL);
    for (; q->left < q->read; q->left++) drop(q, at(q, q->left));
    pthread_mutex_destroy(&q->lock);
    pthread_cond_destroy(&q->change);
    free(q->thread);
    free(q->ring);
    free(q);
}
