/* schedule: betas → ᾱ → signal-to-noise shift → zero terminal SNR; timesteps; samplers with v-prediction.
 * Sources: diffusers CogVideoXDDIMScheduler and CogVideoXDPMScheduler; Lin et al. 2024 (arXiv 2305.08891), algorithm 1
 * and table 2; Song et al. 2021 (DDIM), equations 12 and 16; Lu et al. 2022 (DPM-Solver++, arXiv 2211.01095), its SDE
 * of second order; Salimans and Ho 2022 for v.
 *
 * Limits: scaled_linear betas and v-prediction only, as all of CogVideoX is published with.
 * Traps minded:
 * - the shift comes before the rescaling to zero SNR; the reverse order gives another process;
 * - ᾱ of the last step is exactly 0, that of the end 1: logarithms of their ratios are infinite, and every product
 * below is still finite; no step divides by ᾱ, as v-prediction multiplies;
 * - the previous step is t - steps/n in whole numbers, not the next of the list: for n = 7 they differ; DPM looks back
 *   to the list's, and forward to this one;
 * - DPM's first and last step are of first order; its noise is drawn anew in every step;
 * - trailing spacing may give diffusers one timestep too many (n = 61, not n = 50): we take n;
 * - absent keys mean the defaults of the class, epsilon and leading among them: epsilon we refuse.
 */
#include "schedule.h"
#include "config.h"
#include "file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_STEPS = 1000 };

void ma_schedule_make(ma_schedule *s) {
    double from = sqrt(s->beta_start), to = sqrt(s->beta_end), shift = s->snr_shift_scale, product = 1;
    int last = s->steps - 1;
    for (int t = 0; t <= last; t++) {
        double root = from + (to - from) * t / last; /* √β is linear in t */
        product *= 1 - root * root;
        s->alpha_bar[t] = product / (shift + (1 - shift) * product);
    }
    if (!s->zero_snr) return;
    double first = sqrt(s->alpha_bar[0]), end = sqrt(s->alpha_bar[last]);
    for (int t = 0; t <= last; t++) { /* √ᾱ: its end moved to 0, its start kept */
        double root = (sqrt(s->alpha_bar[t]) - end) * (first / (first - end));
        s->alpha_bar[t] = root * root;
    }
}

static void trailing(const ma_schedule *s, int n, int *t) {
    double from = s->steps, stride = (from - from / n) - from; /* as numpy.arange rounds it: halves depend on it */
    for (int i = 0; i < n; i++) {
        double way = i * stride;
        t[i] = (int)rint(from + way) - 1; /* halves to even, as numpy.round */
    }
}

/* The step that a sampler of n steps goes to from t: steps/n lower, in whole numbers; < 0: the end. */
static int previous(const ma_schedule *s, int t, int n) {
    return t - s->steps / n;
}

static void leading(const ma_schedule *s, int n, int *t) {
    for (int i = 0; i < n; i++) t[i] = (n - 1 - i) * (s->steps / n) + s->steps_offset;
}

static void linspace(const ma_schedule *s, int n, int *t) {
    double last = s->steps - 1, stride = n > 1 ? last / (n - 1) : 0; /* as numpy.linspace rounds it */
    for (int i = 0; i < n; i++) t[i] = (int)rint(i == 0 && n > 1 ? last : (n - 1 - i) * stride);
}

/* ---- samplers ---- */

static double alpha_at(const ma_schedule *s, int t) {
    return t >= 0 ? s->alpha_bar[t] : s->set_alpha_to_one ? 1 : s->alpha_bar[0];
}

/* What all have: x0 = √ᾱ·x - √(1-ᾱ)·v. */
static ma_step start(const ma_schedule *s, int t) {
    double now = s->alpha_bar[t];
    return (ma_step){.t = t, .x0_x = sqrt(now), .x0_out = -sqrt(1 - now)};
}

static ma_step ddim(const ma_schedule *s, int t, int prev) {
    ma_step step = start(s, t);
    double now = s->alpha_bar[t], then = alpha_at(s, prev);
    step.of_x = sqrt((1 - then) / (1 - now));
    step.of_x0 = sqrt(then) - sqrt(now) * step.of_x;
    return step;
}

/* Half the logarithm of the signal-to-noise ratio. */
static double lambda(double alpha_bar) {
    return log(sqrt(alpha_bar / (1 - alpha_bar)));
}

/* back: the step before, or -1: there is none. */
static ma_step dpm(const ma_schedule *s, int t, int prev, int back) {
    ma_step step = start(s, t);
    double now = s->alpha_bar[t], then = alpha_at(s, prev), h = lambda(then) - lambda(now);
    double by = -expm1(-2 * h) * sqrt(then);
    step.of_x = sqrt((1 - then) / (1 - now)) * exp(-h);
    step.of_noise = sqrt(1 - then) * sqrt(1 - exp(-2 * h));
    if (back >= 0 && prev >= 0) {
        double r = (lambda(now) - lambda(s->alpha_bar[back])) / h;
        step.of_last = -by / (2 * r);
    }
    step.of_x0 = by - step.of_last;
    return step;
}

int ma_steps_make(const ma_schedule *s, ma_sampler sampler, int n, ma_step *step, ma_err *e) {
    static void (*const spaced[])(const ma_schedule *, int,
                                  int *) = {[MA_TRAILING] = trailing, [MA_LEADING] = leading, [MA_LINSPACE] = linspace};
    int t[MOST_STEPS];
    if (n < 1 || n > s->steps) return ma_fail(e, MA_USAGE, "%d sampling steps: 1 to %d are possible", n, s->steps);
    spaced[s->spacing](s, n, t);
    if (t[0] >= s->steps)
        return ma_fail(e, MA_USAGE, "%d sampling steps: with steps_offset %d they begin beyond %d", n, s->steps_offset,
                       s->steps - 1);
    for (int i = 0; i < n; i++) {
        int prev = previous(s, t[i], n);
        step[i] = sampler == MA_DPM ? dpm(s, t[i], prev, i ? t[i - 1] : -1) : ddim(s, t[i], prev);
    }
    return 0;
}

void ma_step_take(const ma_step *s, const float *out, float *x, float *last, const float *noise, size_t n) {
    bool looks_back = last && s->of_last != 0, draws = noise && s->of_noise != 0;
#pragma omp parallel for if (n >= 1 << 16)
    for (size_t i = 0; i < n; i++) {
        double x0 = s->x0_x * x[i] + s->x0_out * out[i], y = s->of_x * x[i] + s->of_x0 * x0;
        if (looks_back) y += s->of_last * last[i];
        if (draws) y += s->of_noise * noise[i];
        if (last) last[i] = (float)x0;
        x[i] = (float)y;
    }
}

double ma_dynamic_guidance(double guidance, double t, int n) {
    return 1 + guidance * ((1 - cos(M_PI * pow((n - t) / n, 5))) / 2);
}

/* ---- scheduler_config.json ---- */

static const char *const classes[] = {
    [MA_DDIM] = "CogVideoXDDIMScheduler", [MA_DPM] = "CogVideoXDPMScheduler", NULL}; /* one process, two samplers */
static const char *const beta_schedules[] = {"scaled_linear", NULL};
static const char *const predictions[] = {"v_prediction", NULL};
static const char *const spacings[] = {
    [MA_TRAILING] = "trailing", [MA_LEADING] = "leading", [MA_LINSPACE] = "linspace", NULL};

static int read_fields(const cJSON *j, ma_schedule *s, const char *path, ma_err *e) {
    const ma_setting settings[] = {
        {"num_train_timesteps", MA_SET_INT, &s->steps, 2, MOST_STEPS},
        {"beta_start", MA_SET_REAL, &s->beta_start, 1e-9, 0.999},
        {"beta_end", MA_SET_REAL, &s->beta_end, 1e-9, 0.999},
        {"snr_shift_scale", MA_SET_REAL, &s->snr_shift_scale, 1e-3, 1e3},
        {"rescale_betas_zero_snr", MA_SET_BOOL, &s->zero_snr, 0, 1},
        {"set_alpha_to_one", MA_SET_BOOL, &s->set_alpha_to_one, 0, 1},
        {"steps_offset", MA_SET_INT, &s->steps_offset, 0, MOST_STEPS - 1},
    };
    int sampler = ma_config_word(j, "_class_name", classes[0], classes, path, e), spacing;
    if (sampler < 0 || ma_config_word(j, "beta_schedule", "scaled_linear", beta_schedules, path, e) < 0 ||
        ma_config_word(j, "prediction_type", "epsilon", predictions, path, e) < 0 ||
        (spacing = ma_config_word(j, "timestep_spacing", "leading", spacings, path, e)) < 0 ||
        ma_config_read(j, settings, sizeof settings / sizeof *settings, path, e) < 0)
        return -1;
    s->sampler = (ma_sampler)sampler;
    s->spacing = (ma_spacing)spacing;
    const cJSON *betas = cJSON_GetObjectItemCaseSensitive(j, "trained_betas");
    if (betas && !cJSON_IsNull(betas)) return ma_fail(e, MA_UNSUPPORTED, "%s: trained_betas: not supported", path);
    return 0;
}

int ma_schedule_read(const char *path, ma_schedule *s, ma_err *e) {
    cJSON *j = ma_config_open(path, e);
    if (!j) return -1;
    ma_schedule read = {
        .steps = 1000, .beta_start = 0.00085, .beta_end = 0.012, .snr_shift_scale = 3, .set_alpha_to_one = true};
    int rc = read_fields(j, &read, path, e);
    cJSON_Delete(j);
    if (rc < 0) return -1;
    ma_schedule_make(&read);
    *s = read;
    return 0;
}

int ma_schedule_write(const char *path, const ma_schedule *s, ma_err *e) {
    cJSON *j = cJSON_CreateObject();
    bool good = cJSON_AddStringToObject(j, "_class_name", classes[s->sampler]) &&
                cJSON_AddNumberToObject(j, "beta_end", s->beta_end) &&
                cJSON_AddStringToObject(j, "beta_schedule", beta_schedules[0]) &&
                cJSON_AddNumberToObject(j, "beta_start", s->beta_start) && cJSON_AddFalseToObject(j, "clip_sample") &&
                cJSON_AddNumberToObject(j, "clip_sample_range", 1) &&
                cJSON_AddNumberToObject(j, "num_train_timesteps", s->steps) &&
                cJSON_AddStringToObject(j, "prediction_type", predictions[0]) &&
                cJSON_AddBoolToObject(j, "rescale_betas_zero_snr", s->zero_snr) &&
                cJSON_AddNumberToObject(j, "sample_max_value", 1) &&
                cJSON_AddBoolToObject(j, "set_alpha_to_one", s->set_alpha_to_one) &&
                cJSON_AddNumberToObject(j, "snr_shift_scale", s->snr_shift_scale) &&
                cJSON_AddNumberToObject(j, "steps_offset", s->steps_offset) &&
                cJSON_AddStringToObject(j, "timestep_spacing", spacings[s->spacing]) &&
                cJSON_AddNullToObject(j, "trained_betas");
    char *text = good ? cJSON_Print(j) : NULL;
    int rc = text ? ma_write_file(path, text, strlen(text), e) : ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    cJSON_free(text);
    cJSON_Delete(j);
    return rc;
}
