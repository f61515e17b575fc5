/* team: ranks that agree on errors, on what they were started with, and share gradients and weights on the CPU. */
#include "../tap.h"
#include "../../common/ops.h"
#include "../../common/team.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANKS = 3, LEAVES = 3 };
static const int64_t SIZE[LEAVES] = {5, 300001, 7};
static char folder[64];

/* Exit status of each child: bit k is set where child k left with 7. */
static int run(int (*body)(ma_team *, int rank, ma_err *)) {
    pid_t child[RANKS];
    int good = 0, status;
    for (int k = 0; k < RANKS; k++) {
        if ((child[k] = fork())) continue;
        char text[16];
        snprintf(text, sizeof text, "%d", k);
        setenv("MA_RANK", text, 1);
        setenv("MA_RANKS", "3", 1);
        ma_cli cli = {.name = "team"};
        ma_err e = {0};
        ma_team *t;
        _exit(ma_team_open(&t, &cli, folder, &e) || cli.rank != k ? 1 : body(t, k, &e) ? 7 : 2);
    }
    alarm(60);
    for (int k = 0; k < RANKS; k++) {
        waitpid(child[k], &status, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 7) good |= 1 << k;
    }
    alarm(0);
    return good;
}

static int agree(ma_team *t, int rank, ma_err *e) {
    bool good = !ma_team_agree(t, e);
    if (rank) ma_fail(e, rank == 1 ? MA_CORRUPT : MA_IO, "file of %d", rank);
    good &= ma_team_agree(t, e) == -1;
    good &= e->reason == (rank == 2 ? MA_IO : MA_CORRUPT);
    good &= !strcmp(e->text, rank == 0 ? "rank 1: file of 1" : rank == 1 ? "file of 1" : "file of 2");
    ma_team_close(t, e);
    return good;
}

static int alike(ma_team *t, int rank, ma_err *e) {
    bool good = !ma_team_alike(t, "options", "the same", e);
    good &= ma_team_alike(t, "options", rank == 2 ? "x" : "y", e) == -1 && e->reason == MA_USAGE;
    good &= !strcmp(e->text, "rank 2 has other options than rank 0");
    ma_team_close(t, e);
    return good;
}

/* Leaf k's gradient is rank + k all over, its values 10·rank + k. owned: leaf k is rank k's. */
static bool share(ma_team *t, int rank, bool owned, ma_err *e) {
    char note[160];
    static const int owner[LEAVES] = {0, 1, 2};
    ma_device *d = ma_device_open("cpu", false, note, e);
    ma_ctx *c = ma_ctx_new(d, e);
    ma_tensor *leaf[LEAVES];
    bool good = !ma_team_join(t, c, e);
    for (int k = 0; k < LEAVES; k++) {
        leaf[k] = ma_leaf(c, ma_keep(c, MA_F32, MA_SHAPE(SIZE[k])));
        for (int64_t i = 0; i < SIZE[k]; i++) {
            ((float *)leaf[k]->grad->data)[i] = (float)(rank + k);
            ((float *)leaf[k]->data)[i] = (float)(10 * rank + k);
        }
    }
    good &= !ma_team_leaves(t, leaf, owned ? owner : NULL, LEAVES, e);
    ma_team_behind(t);
    good &= !ma_team_gradients(t, e);
    for (int k = 0; k < LEAVES; k++)
        for (int64_t i = 0; i < SIZE[k]; i++)
            good &= (owned && owner[k] != rank) || ((float *)leaf[k]->grad->data)[i] == (float)(3 + 3 * k);
    if (owned) good &= !ma_team_spread(t, e);
    for (int k = 0; k < LEAVES && owned; k++)
        for (int64_t i = 0; i < SIZE[k]; i++) good &= ((float *)leaf[k]->data)[i] == (float)(10 * k + k);
    ma_team_close(t, e);
    ma_ctx_free(c);
    return good && e->reason == MA_OK;
}

static int sums(ma_team *t, int rank, ma_err *e) {
    return share(t, rank, false, e);
}

static int sharded(ma_team *t, int rank, ma_err *e) {
    return share(t, rank, true, e);
}

/* ---- a device that shares, on the CPU ---- */

static struct {
    ma_team *team;
    char calls[256]; /* what was shared, in order */
    int n, waits, finishes;
} fake;

static int fake_well(ma_device *d) {
    (void)d;
    return 0;
}

static int fake_id(ma_device *d, char id[128]) {
    (void)d;
    strcpy(id, "together");
    return 0;
}

static int fake_join(ma_device *d, const char id[128], int rank, int count) {
    (void)d;
    return count == RANKS && rank < count && !strcmp(id, "together") ? 0 : -1;
}

/* Sums for all, whatever is asked for. */
static int fake_share(ma_device *d, ma_share how, const ma_piece *p, int n) {
    (void)d;
    fake.n++;
    for (int k = 0; k < n; k++) {
        double sum[64];
        float *x = p[k].data;
        for (size_t i = 0; i < p[k].count; i++) sum[i] = x[i];
        if (ma_team_sum(fake.team, sum, (int)p[k].count, NULL)) return -1;
        for (size_t i = 0; i < p[k].count; i++) x[i] = (float)sum[i];
        snprintf(fake.calls + strlen(fake.calls), 16, "%d:%d%s", (int)how, (int)p[k].count, k + 1 < n ? "+" : " ");
    }
    return 0;
}

static int fake_wait(ma_device *d) {
    (void)d;
    fake.waits++;
    return 0;
}

static int fake_finish(ma_device *d) {
    (void)d;
    fake.finishes++;
    return 0;
}

static void fake_abort(ma_device *d) {
    (void)d;
}

static const ma_team_ops fake_ops = {.bucket = 100,
                                     .open = fake_well,
                                     .id = fake_id,
                                     .join = fake_join,
                                     .share = fake_share,
                                     .wait = fake_wait,
                                     .finish = fake_finish,
                                     .abort = fake_abort};

enum { DEEP = 5, WIDE = 4 };

/* The mean of (x·w0·w1·…)². */
static ma_tensor *chain(ma_ctx *c, ma_tensor **w) {
    static const float one[2 * WIDE] = {1, 1, 1, 1, 1, 1, 1, 1};
    ma_tensor *x = ma_input(c, one, MA_SHAPE(2, WIDE));
    for (int k = 0; k < DEEP; k++) x = ma_linear(c, x, w[k], NULL, MA_NONE);
    return ma_mse(c, x, ma_affine(c, x, 0, 0));
}

static void weights(ma_ctx *c, ma_tensor **w) {
    for (int k = 0; k < DEEP; k++) {
        float x[WIDE * WIDE];
        for (int i = 0; i < WIDE * WIDE; i++) x[i] = (float)((i * 3 + k) % 7 - 3) / 4;
        w[k] = ma_leaf(c, ma_keep(c, MA_F32, MA_SHAPE(WIDE, WIDE)));
        ma_put(c, w[k], x);
    }
}

/* Two steps on a device of which a bucket holds two of five weights. Rank 1 has no samples in the second: it gives
 * nothing, but shares like all. */
static int buckets(ma_team *t, int rank, ma_err *e) {
    char note[160];
    ma_device d = *ma_device_open("cpu", false, note, e);
    d.team = &fake_ops;
    fake.team = t;
    ma_ctx *c = ma_ctx_new(&d, e);
    ma_tensor *w[DEEP];
    float alone[DEEP][WIDE * WIDE];
    bool good = !ma_team_join(t, c, e);
    weights(c, w);
    ma_backward(c, chain(c, w), 1); /* what each rank has alone, to compare with */
    for (int k = 0; k < DEEP; k++) ma_get(c, w[k]->grad, alone[k]);
    good &= !ma_team_leaves(t, w, NULL, DEEP, e);
    for (int step = 0; step < 2; step++) {
        const bool idle = rank == 1 && step == 1;
        ma_reset(c);
        ma_zero_grads(c);
        fake.calls[0] = 0;
        fake.n = fake.waits = 0;
        ma_team_behind(t);
        if (!idle) ma_backward(c, chain(c, w), 1);
        good &= fake.n == (idle ? 0 : 3); /* all is under way before the backward pass is over */
        good &= !ma_team_gradients(t, e) && fake.waits == 1;
        good &= !strcmp(fake.calls, "0:16+0:16 0:16+0:16 0:16 ");
        for (int k = 0; k < DEEP; k++)
            for (int i = 0; i < WIDE * WIDE; i++) {
                const float want = alone[k][i] * (float)(RANKS - step);
                good &= fabsf(((float *)w[k]->grad->data)[i] - want) <= 1e-5f * fabsf(want) && alone[k][0] != 0;
            }
    }
    ma_team_close(t, e);
    good &= fake.finishes == 3; /* steps, and the end */
    ma_ctx_free(c);
    return good && e->reason == MA_OK;
}

/* Rank 1 closes with an error, while the others think that all is well. */
static int leaves(ma_team *t, int rank, ma_err *e) {
    if (rank == 1) ma_fail(e, MA_IO, "no");
    ma_team_close(t, e);
    return rank == 1 || (e->reason == MA_DEVICE && strstr(e->text, "is gone"));
}

int main(void) {
    ma_err e = {0};
    ma_cli cli = {.name = "team"};
    ma_team *t = NULL;
    double x = 2;
    unsetenv("MA_RANK"), unsetenv("OMPI_COMM_WORLD_RANK"), unsetenv("PMI_RANK"), unsetenv("SLURM_PROCID");
    ok(!ma_team_open(&t, &cli, NULL, &e) && !t && !ma_team_sum(t, &x, 1, &e) && x == 2 && !ma_team_agree(t, &e) &&
           ma_team_count(t) == 1,
       "alone there is no team, and all goes on");
    snprintf(folder, sizeof folder, "/tmp/ma-team-%d", (int)getpid());
    ok(run(agree) == 7, "where some have an error all have the first one's, who has one keeps it");
    ok(run(alike) == 7, "who was started otherwise is named");
    ok(run(sums) == 7, "gradients are summed");
    ok(run(sharded) == 7, "and with owners, whose values all get");
    ok(run(buckets) == 7, "buckets are shared behind the backward pass, in one order on all ranks, also the idle");
    ok(run(leaves) == 7, "nobody ends well where one has failed");
    rmdir(folder);
    return tap_done();
}
