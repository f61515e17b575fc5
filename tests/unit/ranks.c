/* ranks: several processes of this one: sums that are the same bits everywhere, a stale meeting file, a rank that dies.
 */
#include "../tap.h"
#include "../../common/file.h"
#include "../../common/ranks.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANKS = 3, N = 300001 };
static char meeting[64];

static ma_ranks *meet(int rank, int count, ma_err *e) {
    char text[16];
    snprintf(text, sizeof text, "%d", rank);
    setenv("MA_RANK", text, 1);
    snprintf(text, sizeof text, "%d", count);
    setenv("MA_RANKS", text, 1);
    return ma_ranks_open(meeting, 20, e);
}

/* Exit status of each child: bit k of the result is set where child k left with `want`. */
static int run(int (*body)(int rank), int count, int want) {
    pid_t child[RANKS];
    int good = 0;
    for (int k = 0; k < count; k++)
        if (!(child[k] = fork())) _exit(body(k));
    alarm(60);
    for (int k = 0; k < count; k++) {
        int status;
        waitpid(child[k], &status, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status) == want) good |= 1 << k;
    }
    alarm(0);
    return good;
}

static int sums(int rank) {
    ma_err e = {0};
    ma_ranks *r = meet(rank, RANKS, &e);
    if (!r) return 1;
    int rc = 0;
    float *x = malloc(N * sizeof *x);
    for (int i = 0; i < N; i++) x[i] = (float)(i % 977) * (rank == 0 ? 1e-3f : rank == 1 ? 1e4f : -1e4f);
    double y[] = {rank + 1.0, rank == 2 ? 1e-9 : 0};
    if (ma_ranks_sum_f32(r, x, N, &e) || ma_ranks_sum_f64(r, y, 2, &e)) rc = 2;
    for (int i = 0; i < N && !rc; i++) {
        float want = (float)(i % 977) * 1e-3f; /* in the order of ranks, rounded after each */
        want += (float)(i % 977) * 1e4f;
        want += (float)(i % 977) * -1e4f;
        if (x[i] != want) rc = 3;
    }
    if (y[0] != 6 || y[1] != 1e-9) rc = 4;
    char word[6] = "-----";
    if (!rank) memcpy(word, "hello", 6);
    if (ma_ranks_tell(r, word, sizeof word, &e) || strcmp(word, "hello")) rc = 5;
    free(x);
    ma_ranks_close(r, true);
    return rc;
}

static volatile sig_atomic_t woken;
static void wake(void *self) {
    (void)self;
    woken = 1;
}

/* Rank 1 dies without a word; the others wait for what will never come. */
static int dies(int rank) {
    ma_err e = {0};
    ma_ranks *r = meet(rank, RANKS, &e);
    if (!r) return 1;
    if (rank == 1) raise(SIGKILL);
    ma_ranks_watch(r, wake, NULL);
    double x = 1, start = ma_now();
    int rc = ma_ranks_sum_f64(r, &x, 1, &e);
    while (!woken && ma_now() - start < 5) usleep(1000);
    bool good = rc && ma_ranks_lost(r) && woken && ma_now() - start < 5 && strstr(e.text, "is gone");
    ma_ranks_close(r, false);
    return good ? 7 : 2;
}

/* Rank 2 gives up with an error; the others are in no call of ours. */
static int gives_up(int rank) {
    ma_err e = {0};
    ma_ranks *r = meet(rank, RANKS, &e);
    if (!r) return 1;
    double start = ma_now();
    while (rank != 2 && !ma_ranks_lost(r) && ma_now() - start < 5) usleep(1000);
    bool good = rank == 2 || ma_ranks_lost(r);
    ma_ranks_close(r, false);
    return good ? 7 : 2;
}

static int alone(int rank) {
    ma_err e = {0};
    if (rank) return 7; /* never calls */
    setenv("MA_RANK", "0", 1);
    setenv("MA_RANKS", "2", 1);
    ma_ranks *r = ma_ranks_open(meeting, 0.3, &e);
    return !r && e.reason == MA_TIMEOUT && strstr(e.text, "in vain for: 1") ? 7 : 2;
}

/* What Slurm sets in each place, of a job of 4 tasks. */
static void slurm(void) {
    static const struct {
        const char *place, *task, *started; /* SLURM_PROCID, SLURM_STEP_NUM_TASKS */
        int rank, count;
    } places[] = {{"a batch script", "0", NULL, 0, 1},
                  {"salloc's shell here", NULL, NULL, 0, 1},
                  {"salloc's shell there, a step of its own", "0", "1", 0, 1},
                  {"srun", "2", "4", 2, 4}};
    int rank, count, local;
    ma_err e = {0};
    setenv("SLURM_NTASKS", "4", 1);
    for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
        unsetenv("SLURM_PROCID"), unsetenv("SLURM_STEP_NUM_TASKS");
        if (places[k].task) setenv("SLURM_PROCID", places[k].task, 1);
        if (places[k].started) setenv("SLURM_STEP_NUM_TASKS", places[k].started, 1);
        const bool good = !ma_ranks_environment(&rank, &count, &local, &e);
        ok(good && rank == places[k].rank && count == places[k].count && ma_ranks_allotted() == 4,
           "Slurm: %s: rank %d of %d", places[k].place, rank, count);
    }
    setenv("OMPI_COMM_WORLD_RANK", "0", 1), setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
    ok(!ma_ranks_environment(&rank, &count, &local, &e) && count == 1 && !ma_ranks_allotted(),
       "mpirun of one process is meant so");
    unsetenv("OMPI_COMM_WORLD_RANK"), unsetenv("SLURM_PROCID"), unsetenv("SLURM_NTASKS");
}

int main(void) {
    ma_err e = {0};
    int rank, count, local;
    snprintf(meeting, sizeof meeting, "/tmp/ma-ranks-%d", (int)getpid());
    const char *stale = "localhost 1 0123456789abcdef\n";
    ok(!ma_write_file(meeting, stale, strlen(stale), &e) && run(sums, RANKS, 0) == 7,
       "three ranks: sums in order, bytes of rank 0, past a stale file");
    ok(access(meeting, F_OK) != 0, "the meeting file is gone");
    ok(run(dies, RANKS, 7) == 5, "a rank is killed: the others know, and are woken");
    ok(run(gives_up, RANKS, 7) == 7, "a rank that ends badly ends all");
    ok(run(alone, 2, 7) == 3, "who never called is named");
    setenv("OMPI_COMM_WORLD_RANK", "3", 1), setenv("OMPI_COMM_WORLD_SIZE", "8", 1);
    setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1", 1);
    ok(!ma_ranks_environment(&rank, &count, &local, &e) && rank == 3 && count == 8 && local == 1, "Open MPI's numbers");
    setenv("MA_RANK", "8", 1), setenv("MA_RANKS", "8", 1);
    ok(ma_ranks_environment(&rank, &count, &local, &e) && e.reason == MA_USAGE, "a rank beyond the count: %s", e.text);
    unsetenv("MA_RANK"), unsetenv("OMPI_COMM_WORLD_RANK"), unsetenv("PMI_RANK"), unsetenv("SLURM_PROCID");
    slurm();
    ma_ranks *r = ma_ranks_open(NULL, 1, NULL);
    double x = 2;
    ok(r && ma_ranks_count(r) == 1 && !ma_ranks_sum_f64(r, &x, 1, NULL) && x == 2, "one rank needs nobody");
    ma_ranks_close(r, true);
    return tap_done();
}
