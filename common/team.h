/* team: the processes that train as one (ranks.h), and their devices. Each has all the weights and works on its own
 * samples; gradients are summed over all, in buckets, behind the backward pass that makes them.
 *
 *     ma_team_open(&team, &cli, folder, &e);           meets the others; alone: NULL, which all of these take
 *     ma_context_open(&cli, &device, &ctx, &e);        on the GPU of this rank
 *     ma_team_join(team, ctx, &e);                     the devices meet
 *     ma_team_leaves(team, leaves, owners, n, &e);     of what there are gradients
 *     ma_team_behind(team); ma_backward(…);            the last pass of a step
 *     ma_team_gradients(team, &e);                     they are summed
 *     ma_team_close(team, &e);
 *
 * GPUs use what their ma_device has for it (NCCL); gradients of the CPU go over the sockets of ranks.h, afterwards.
 * Where a rank is gone, whatever the others do here ends with -1 and its name.
 */
#ifndef MA_TEAM_H
#define MA_TEAM_H

#include "cli.h"
#include "tensor.h"

typedef struct ma_team ma_team;

/* As the environment says; folder: one that all ranks see, made where it is not there. Fills in cli's rank. A dry run
 * meets nobody. */
int ma_team_open(ma_team **, ma_cli *, const char *folder, ma_err *);
/* Before anything is made in the context. One that only counts is told what the team will take. */
int ma_team_join(ma_team *, ma_ctx *, ma_err *);
/* Waits until all ranks are here, where e says that all is well; otherwise the others end, too. */
void ma_team_close(ma_team *, ma_err *e);

int ma_team_rank(const ma_team *);  /* 0 where alone */
int ma_team_count(const ma_team *); /* 1 where alone */
/* -1 where a rank is gone, else 0. What came of sharing is right if this is 0 after the device was waited for. */
int ma_team_whole(const ma_team *, ma_err *);

/* Called by all alike. The text must be the same for all; what: of it, for the message ("options"). */
int ma_team_alike(ma_team *, const char *what, const char *text, ma_err *);
int ma_team_sum(ma_team *, double *, int n, ma_err *);
/* Where some have an error in e, all get the first one's, and -1; else 0. */
int ma_team_agree(ma_team *, ma_err *e);
int ma_team_tell(ma_team *, void *, size_t bytes, ma_err *);            /* rank 0's to all */
int ma_team_bring(ma_team *, int from, void *, size_t bytes, ma_err *); /* to rank 0; only these two call */

/* The leaves, in the order in which they are used; owners: a rank for each, or NULL: gradients are summed for all, not
 * for the owner alone. */
int ma_team_leaves(ma_team *, ma_tensor *const *, const int *owners, int n, ma_err *);
/* The backward pass to come is the last before ma_team_gradients: what is final is summed while it runs. */
void ma_team_behind(ma_team *);
int ma_team_gradients(ma_team *, ma_err *); /* all are summed, as far as later calls of the device see */
int ma_team_spread(ma_team *, ma_err *);    /* all have the owners' values of the leaves */
/* Seconds since the last call that went to gradients alone: from when they were asked for, with the backward pass done,
 * until they had come. Those hidden behind the pass do not count. */
double ma_team_waited(ma_team *);

#endif
