/* optim: AdamW with decoupled decay (Loshchilov & Hutter 2019), clipping by global norm, warm-up and cosine.
 * All is computed in fp32; where a parameter is stored in 16 bits there is an fp32 master beside it. */
#ifndef MA_OPTIM_H
#define MA_OPTIM_H

#include "param.h"
#include "team.h"

/* The moments m and v: fp32; bf16, stochastically rounded (kernels/dither.h): half the memory; fp32 in the host's
 * memory, masters too: none of the device's, the same bits, slower. To a device whose memory is the host's the last is
 * the first. */
typedef enum { MA_STATE_F32, MA_STATE_BF16, MA_STATE_HOST } ma_optim_state;

typedef struct ma_optim_opts {
    double lr, beta1, beta2, eps, decay;
    double clip;           /* most the global gradient norm may be; 0: no limit */
    int64_t warmup, total; /* steps; total 0: constant after warm-up, else cosine to 0 */
    ma_team *team;         /* whose gradients are summed before a step; NULL: alone */
    bool shard;            /* the state of each parameter is with one rank, which updates it for all */
    ma_optim_state state;
} ma_optim_opts;

typedef struct ma_optim ma_optim;
/* Over the leaves of several parameter sets. */
ma_optim *ma_optim_new(ma_ctx *, ma_params *const *, int n, const ma_optim_opts *);
void ma_optim_free(ma_optim *);
double ma_optim_lr(const ma_optim *, int64_t step); /* step from 1 */
/* From here on the gradients count this many times as much. */
void ma_optim_scale(ma_optim *, double factor);
/* Sums (of a team), clips, updates, zeroes the gradients. norm: the global norm before clipping. A norm that is not
 * finite is MA_NOTFINITE, names the first parameter it stands in, and nothing has changed. */
int ma_optim_step(ma_optim *, double *norm, ma_err *);
int64_t ma_optim_steps(const ma_optim *); /* done so far */
/* State by name: m.NAME, v.NAME (and master.NAME) as they are, "step" in the metadata. Of a team rank 0 writes, for any
 * number of ranks to load, and all call; path NULL: rank 0 writes nothing, which the others must know. What was saved
 * with moments of another type is converted, to the nearest. */
int ma_optim_save(ma_optim *, const char *path, ma_err *);
int ma_optim_load(ma_optim *, const char *path, ma_err *);

#endif
