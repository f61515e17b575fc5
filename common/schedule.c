/* schedule: betas → ᾱ → signal-to-noise shift → zero terminal SNR; trailing timesteps; DDIM with v-prediction.
 * Sources: diffusers CogVideoXDDIMScheduler; Lin et al. 2024 (arXiv 2305.08891), algorithm 1 and table 2; Song et al.
 * 2021 (DDIM), equations 12 and 16; Salimans and Ho 2022 for v.
 *
 * Limits: scaled_linear betas, v-prediction and trailing spacing only, as all of CogVideoX is published with.
 * Traps minded:
 * - the shift comes before the rescaling to zero SNR; the reverse order gives another process;
 * - ᾱ of the last step is exactly 0: never divide by it (nor need we: v-prediction multiplies);
 * - the previous step is t - steps/n in whole numbers, not the next of the list: for n = 7 they differ;
 * - absent keys mean the defaults of the class, epsilon and leading among them: those we refuse.
 */
#include "schedule.h"
#include "file.h"
#include "shard.h"

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

void ma_schedule_2b(ma_schedule *s) {
    *s = (ma_schedule){.steps = 1000,
                       .beta_start = 0.00085,
                       .beta_end = 0.012,
                       .snr_shift_scale = 3,
                       .zero_snr = true,
                       .set_alpha_to_one = true};
    ma_schedule_make(s);
}

void ma_schedule_trailing(const ma_schedule *s, int n, int *t) {
    double from = s->steps, stride = (from - from / n) - from; /* as numpy.arange rounds it: halves depend on it */
    for (int i = 0; i < n; i++) {
        double way = i * stride;
        t[i] = (int)rint(from + way) - 1; /* halves to even, as numpy.round */
    }
}

int ma_schedule_prev(const ma_schedule *s, int t, int n) {
    return t - s->steps / n;
}

void ma_ddim_step(const ma_schedule *s, int t, int prev, const float *v, float *x, size_t n) {
    double now = s->alpha_bar[t];
    double then = prev >= 0 ? s->alpha_bar[prev] : s->set_alpha_to_one ? 1 : s->alpha_bar[0];
    /* x0 = √ᾱ·x - √(1-ᾱ)·v and x' = a·x + b·x0, gathered by x and v */
    double a = sqrt((1 - then) / (1 - now)), b = sqrt(then) - sqrt(now) * a;
    double of_x = a + b * sqrt(now), of_v = -b * sqrt(1 - now);
#pragma omp parallel for if (n >= 1 << 16)
    for (size_t i = 0; i < n; i++) x[i] = (float)(of_x * x[i] + of_v * v[i]);
}

/* scheduler_config.json */

static const char *const classes[] = {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler",
                                      NULL}; /* one process, two samplers */
static const char *const beta_schedules[] = {"scaled_linear", NULL};
static const char *const predictions[] = {"v_prediction", NULL};
static const char *const spacings[] = {"trailing", NULL};

/* The word under key must be one of `known`; absent stands for the class's default. */
static int check_word(const cJSON *j, const char *key, const char *absent, const char *const *known, const char *path,
                      ma_err *e) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(j, key);
    const char *word = item ? cJSON_GetStringValue(item) : absent;
    for (; word && *known; known++)
        if (!strcmp(word, *known)) return 0;
    return ma_fail(e, MA_UNSUPPORTED, "%s: %s: %s is not supported%s", path, key, word ? word : "not a word",
                   item ? "" : " (the default of an absent key)");
}

static int read_number(const cJSON *j, const char *key, double lo, double hi, double *out, const char *path,
                       ma_err *e) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(j, key);
    if (!item) return 0;
    if (!cJSON_IsNumber(item)) return ma_fail(e, MA_CORRUPT, "%s: %s: not a number", path, key);
    if (!(item->valuedouble >= lo && item->valuedouble <= hi))
        return ma_fail(e, MA_UNSUPPORTED, "%s: %s: %g is not in %g..%g", path, key, item->valuedouble, lo, hi);
    *out = item->valuedouble;
    return 0;
}

static int read_bool(const cJSON *j, const char *key, bool *out, const char *path, ma_err *e) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(j, key);
    if (!item) return 0;
    if (!cJSON_IsBool(item)) return ma_fail(e, MA_CORRUPT, "%s: %s: neither true nor false", path, key);
    *out = cJSON_IsTrue(item);
    return 0;
}

static int read_fields(const cJSON *j, ma_schedule *s, const char *path, ma_err *e) {
    double steps = 1000;
    if (check_word(j, "_class_name", classes[0], classes, path, e) < 0 ||
        check_word(j, "beta_schedule", "scaled_linear", beta_schedules, path, e) < 0 ||
        check_word(j, "prediction_type", "epsilon", predictions, path, e) < 0 ||
        check_word(j, "timestep_spacing", "leading", spacings, path, e) < 0 ||
        read_number(j, "num_train_timesteps", 2, MOST_STEPS, &steps, path, e) < 0 ||
        read_number(j, "beta_start", 1e-9, 0.999, &s->beta_start, path, e) < 0 ||
        read_number(j, "beta_end", 1e-9, 0.999, &s->beta_end, path, e) < 0 ||
        read_number(j, "snr_shift_scale", 1e-3, 1e3, &s->snr_shift_scale, path, e) < 0 ||
        read_bool(j, "rescale_betas_zero_snr", &s->zero_snr, path, e) < 0 ||
        read_bool(j, "set_alpha_to_one", &s->set_alpha_to_one, path, e) < 0)
        return -1;
    s->steps = (int)steps;
    if (s->steps != steps) return ma_fail(e, MA_UNSUPPORTED, "%s: num_train_timesteps: %g is not whole", path, steps);
    const cJSON *betas = cJSON_GetObjectItemCaseSensitive(j, "trained_betas");
    if (betas && !cJSON_IsNull(betas)) return ma_fail(e, MA_UNSUPPORTED, "%s: trained_betas: not supported", path);
    return 0;
}

int ma_schedule_read(const char *path, ma_schedule *s, ma_err *e) {
    ma_buf text = {0};
    int rc = ma_read_file(path, 1 << 20, &text, e);
    cJSON *j = rc == 0 ? ma_json_parse(text.data, text.size, path, e) : NULL;
    ma_buf_free(&text);
    if (!j) return -1;
    ma_schedule read = {.beta_start = 0.00085, .beta_end = 0.012, .snr_shift_scale = 3, .set_alpha_to_one = true};
    rc = cJSON_IsObject(j) ? read_fields(j, &read, path, e) : ma_fail(e, MA_CORRUPT, "%s: not a JSON object", path);
    cJSON_Delete(j);
    if (rc < 0) return -1;
    ma_schedule_make(&read);
    *s = read;
    return 0;
}

int ma_schedule_write(const char *path, const ma_schedule *s, ma_err *e) {
    cJSON *j = cJSON_CreateObject();
    bool good =
        cJSON_AddStringToObject(j, "_class_name", classes[0]) && cJSON_AddNumberToObject(j, "beta_end", s->beta_end) &&
        cJSON_AddStringToObject(j, "beta_schedule", beta_schedules[0]) &&
        cJSON_AddNumberToObject(j, "beta_start", s->beta_start) && cJSON_AddFalseToObject(j, "clip_sample") &&
        cJSON_AddNumberToObject(j, "clip_sample_range", 1) &&
        cJSON_AddNumberToObject(j, "num_train_timesteps", s->steps) &&
        cJSON_AddStringToObject(j, "prediction_type", predictions[0]) &&
        cJSON_AddBoolToObject(j, "rescale_betas_zero_snr", s->zero_snr) &&
        cJSON_AddNumberToObject(j, "sample_max_value", 1) &&
        cJSON_AddBoolToObject(j, "set_alpha_to_one", s->set_alpha_to_one) &&
        cJSON_AddNumberToObject(j, "snr_shift_scale", s->snr_shift_scale) &&
        cJSON_AddNumberToObject(j, "steps_offset", 0) && cJSON_AddStringToObject(j, "timestep_spacing", spacings[0]) &&
        cJSON_AddNullToObject(j, "trained_betas");
    char *text = good ? cJSON_Print(j) : NULL;
    int rc = text ? ma_write_file(path, text, strlen(text), e) : ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    cJSON_free(text);
    cJSON_Delete(j);
    return rc;
}
