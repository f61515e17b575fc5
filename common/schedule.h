/* schedule: the diffusion process of CogVideoX and its samplers, all in double.
 *
 *     ma_step step[50];
 *     ma_steps_make(&s, s.sampler, 50, step, &err);
 *     for (k = 0; k < 50; k++)
 *         … out = network(x, step[k].t), with guidance …
 *         ma_step_take(&step[k], out, x, last, noise, count);    noise: drawn anew for each step, where of_noise isn't 0
 *
 * A step is a linear map, whatever the sampler; so another sampler is another way to make the numbers.
 * Source: diffusers CogVideoXDDIMScheduler, CogVideoXDPMScheduler. */
#ifndef MA_SCHEDULE_H
#define MA_SCHEDULE_H
#include "base.h"

typedef enum { MA_DDIM, MA_DPM } ma_sampler;
typedef enum { MA_TRAILING, MA_LEADING, MA_LINSPACE } ma_spacing;

typedef struct ma_schedule {
    ma_sampler sampler;                 /* that the file names; any other may be used as well */
    ma_spacing spacing;
    int steps_offset;                   /* added to the timesteps of leading spacing */
    int steps;                          /* num_train_timesteps, ≤ 1000 */
    double beta_start, beta_end;        /* .00085, .012, scaled_linear */
    double snr_shift_scale;             /* 3 for the 2B, 1 for the 5B */
    bool zero_snr, set_alpha_to_one;
    double alpha_bar[1000];             /* ᾱ_t */
} ma_schedule;

void ma_schedule_make(ma_schedule *);   /* ᾱ from the fields */
int ma_schedule_read(const char *scheduler_config_json, ma_schedule *, ma_err *);
int ma_schedule_write(const char *path, const ma_schedule *, ma_err *);

/* Step k of n: out is the network's answer at x and t; last is the x0 of the step before.
 *     x0 = x0_x·x + x0_out·out      x ← of_x·x + of_x0·x0 + of_last·last + of_noise·noise      last ← x0 */
typedef struct ma_step {
    double t; /* the time that the network is told */
    double x0_x, x0_out;
    double of_x, of_x0, of_last, of_noise;
} ma_step;
/* The n steps of a sampler, 1 ≤ n ≤ steps. -1: n, or n with steps_offset, does not fit. */
int ma_steps_make(const ma_schedule *, ma_sampler, int n, ma_step *, ma_err *);
/* Takes one step in place. last may be NULL where no step of the sampler has of_last (DDIM), noise where of_noise is 0. */
void ma_step_take(const ma_step *, const float *out, float *x, float *last, const float *noise, size_t n);
/* The guidance at time t of a run of n steps, as diffusers' use_dynamic_cfg has it: (n-t)/n, though t goes to 999. */
double ma_dynamic_guidance(double guidance, double t, int n);

#endif
