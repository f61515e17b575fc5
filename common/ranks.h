/* ranks: several processes that train as one. mpirun, srun and their like only hand out numbers, read here from the
 * environment (Open MPI, MPICH, Slurm, or MA_RANK, MA_RANKS, MA_LOCAL_RANK). Rank 0 listens; where, it writes into a
 * file that all can see; the others call. Over these sockets go numbers of the host: what all must agree on, NCCL's id,
 * and, where there is no NCCL, gradients.
 *
 * A rank that dies closes its socket. A thread sees that at once, whatever the others are waiting for, so that all end.
 */
#ifndef MA_RANKS_H
#define MA_RANKS_H

#include "base.h"

typedef struct ma_ranks ma_ranks;

/* What the environment says; 0 of 1, local 0, where it says nothing. local: the number on this host, for choosing a
 * GPU.
 */
int ma_ranks_environment(int *rank, int *count, int *local, ma_err *);

/* The tasks that a Slurm job has room for; 0: none, or another launcher has started this process. Where they are more
 * than the count, it was started without srun. */
int ma_ranks_allotted(void);

/* Meets the others, all of them within `seconds`. meeting: a path that every rank sees and nothing else uses; gone
 * again once all have met. One rank needs nobody: meeting may be NULL. NULL: error, says who was missing. */
ma_ranks *ma_ranks_open(const char *meeting, double seconds, ma_err *);
/* well: this rank has done its work; otherwise the others end, too, as if it had died. NULL is fine. */
void ma_ranks_close(ma_ranks *, bool well);

int ma_ranks_rank(const ma_ranks *); /* 0, …, count-1 */
int ma_ranks_count(const ma_ranks *);
int ma_ranks_local(const ma_ranks *);

/* Called by all ranks alike, in the same order. The sum is added in the order of ranks, so all hold the same bits. -1:
 * a rank is gone, named. */
int ma_ranks_sum_f64(ma_ranks *, double *, size_t n, ma_err *);
int ma_ranks_sum_f32(ma_ranks *, float *, size_t n, ma_err *);
int ma_ranks_tell(ma_ranks *, void *, size_t bytes, ma_err *); /* rank 0's bytes to all */
/* That rank's bytes to rank 0; called by the two of them. */
int ma_ranks_bring(ma_ranks *, int from, void *, size_t bytes, ma_err *);

/* lost is called, from the watching thread, when a rank is gone: to wake what waits for it (ncclCommAbort). */
void ma_ranks_watch(ma_ranks *, void (*lost)(void *self), void *self);
bool ma_ranks_lost(const ma_ranks *);
int ma_ranks_whole(const ma_ranks *, ma_err *); /* -1, and who is gone in e, where it is lost; else 0 */

#endif
