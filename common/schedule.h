/* schedule: the diffusion process of CogVideoX (DDPM forward, DDIM backward), all in double.
 * Source: diffusers CogVideoXDDIMScheduler. */
#ifndef MA_SCHEDULE_H
#define MA_SCHEDULE_H
#include "base.h"

typedef struct ma_schedule {
    int steps;                          /* num_train_timesteps, ≤ 1000 */
    double beta_start, beta_end;        /* .00085, .012, scaled_linear */
    double snr_shift_scale;             /* 3 for the 2B, 1 for the 5B */
    bool zero_snr, set_alpha_to_one;
    double alpha_bar[1000];             /* ᾱ_t */
} ma_schedule;

/* Defaults of CogVideoX-2b, then ᾱ computed. */
void ma_schedule_2b(ma_schedule *);
void ma_schedule_make(ma_schedule *);   /* ᾱ from the fields */
int ma_schedule_read(const char *scheduler_config_json, ma_schedule *, ma_err *);
int ma_schedule_write(const char *path, const ma_schedule *, ma_err *);

/* Trailing timesteps for n sampling steps, 1 ≤ n ≤ steps: t[0] = 999, descending. */
void ma_schedule_trailing(const ma_schedule *, int n, int *t);
/* The step that a sampler of n steps goes to from t: steps/n lower, in whole numbers; < 0: the end. */
int ma_schedule_prev(const ma_schedule *, int t, int n);
/* One DDIM step (eta 0) in place: x (n elements) from ᾱ_t to ᾱ_prev (prev < 0: the end), v the model's output. */
void ma_ddim_step(const ma_schedule *, int t, int prev, const float *v, float *x, size_t n);

#endif
