/* schedule: ᾱ, timesteps and whole runs of every sampler against diffusers (schedule_table.h, made by
 * tests/golden/schedule.py); scheduler_config.json read, written, refused.
 * Tolerances: ᾱ and the walks are float64 on both sides; the chains keep x and v in float32 here, in float64 there: 50
 * roundings of 6e-8 each. */
#include "../../common/file.h"
#include "../../common/schedule.h"
#include "../tap.h"
#include "schedule_table.h"

#include <string.h>
#include <unistd.h>

enum { COUNT = sizeof at / sizeof *at, CHAIN = sizeof chain_50 / sizeof *chain_50 };

/* As CogVideoX-2b has it. */
static void start_2b(ma_schedule *s) {
    *s = (ma_schedule){.steps = 1000,
                       .beta_start = 0.00085,
                       .beta_end = 0.012,
                       .snr_shift_scale = 3,
                       .zero_snr = true,
                       .set_alpha_to_one = true};
    ma_schedule_make(s);
}

static void test_alpha(const char *name, const double *want, double shift, bool zero_snr) {
    ma_schedule s;
    start_2b(&s);
    s.snr_shift_scale = shift;
    s.zero_snr = zero_snr;
    ma_schedule_make(&s);
    double worst = 0;
    for (int i = 0; i < COUNT; i++)
        worst = fmax(worst, fabs(s.alpha_bar[at[i]] - want[i]) / (want[i] > 0 ? want[i] : 1));
    ok(worst < 1e-11, "%s: ᾱ (%.1e)", name, worst);
}

static void times(const ma_schedule *s, int n, int *t) {
    ma_step step[1000];
    ma_steps_make(s, MA_DDIM, n, step, NULL);
    for (int i = 0; i < n; i++) t[i] = (int)step[i].t;
}

static void test_trailing(void) {
    ma_schedule s;
    start_2b(&s);
    int t[1000];
    times(&s, 50, t);
    ok(!memcmp(t, trailing_50, sizeof trailing_50), "50 timesteps");
    times(&s, 7, t);
    ok(!memcmp(t, trailing_7, sizeof trailing_7), "7 timesteps");
    unsigned long long total = 0;
    for (int n = 1; n <= 1000; n++) {
        times(&s, n, t);
        for (int i = 0; i < n; i++) total = total * 31 + (unsigned)t[i];
    }
    ok(total == trailing_all, "every count of timesteps");
}

static void test_chain(int n, const double *want) {
    ma_schedule s;
    start_2b(&s);
    float x[CHAIN] = {-2, -0.7f, -0.01f, 0, 0.3f, 1.1f, 2.5f, 4}, v[CHAIN];
    ma_step step[1000];
    ma_steps_make(&s, MA_DDIM, n, step, NULL);
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < CHAIN; k++) v[k] = (float)sin((double)x[k] + step[i].t / 100.0);
        ma_step_take(&step[i], v, x, NULL, NULL, CHAIN);
    }
    double worst = 0;
    for (int k = 0; k < CHAIN; k++) worst = fmax(worst, fabs(x[k] - want[k]));
    ok(worst < 1e-6, "DDIM, %d steps (%.1e)", n, worst);
}

enum { STEPS = 50, WIDE = 2 };

/* ma_step_take, in double. */
static void take(const ma_step *s, const double *out, double *x, double *last, const double *noise) {
    for (int k = 0; k < WIDE; k++) {
        double x0 = s->x0_x * x[k] + s->x0_out * out[k];
        x[k] = s->of_x * x[k] + s->of_x0 * x0 + s->of_last * last[k] + s->of_noise * noise[k];
        last[k] = x0;
    }
}

/* 50 steps: in double as exact as double is, and ma_step_take beside it as exact as float. */
static void test_walk(const char *name, ma_sampler sampler, ma_schedule change, const int *times, const double *want) {
    ma_schedule s;
    ma_step step[STEPS];
    ma_err e = {0};
    start_2b(&s);
    s.spacing = change.spacing;
    s.steps_offset = change.steps_offset;
    s.snr_shift_scale = change.snr_shift_scale;
    s.zero_snr = change.zero_snr;
    s.set_alpha_to_one = change.set_alpha_to_one;
    ma_schedule_make(&s);
    if (!ok(ma_steps_make(&s, sampler, STEPS, step, &e) == 0, "%s: 50 steps %s", name, e.text)) return;
    double x[WIDE] = {-2, 1.1}, last[WIDE] = {0}, worst = 0, off = 0;
    float y[WIDE] = {-2, 1.1f}, before[WIDE] = {0};
    bool same = true;
    for (int i = 0; i < STEPS; i++) {
        double out[WIDE], noise[WIDE];
        float out_y[WIDE], noise_y[WIDE];
        for (int k = 0; k < WIDE; k++) {
            out[k] = sin(x[k] + step[i].t / 100);
            out_y[k] = (float)sin(y[k] + step[i].t / 100);
            noise[k] = cos(3 * k + i);
            noise_y[k] = (float)noise[k];
        }
        same = same && step[i].t == times[i];
        take(&step[i], out, x, last, noise);
        ma_step_take(&step[i], out_y, y, sampler == MA_DPM ? before : NULL, sampler == MA_DPM ? noise_y : NULL, WIDE);
        for (int k = 0; k < WIDE; k++) {
            worst = fmax(worst, fabs(x[k] - want[i * WIDE + k]));
            off = fmax(off, fabs(y[k] - want[i * WIDE + k]));
        }
    }
    ok(same, "%s: timesteps", name);
    ok(worst < 1e-12, "%s: every step in double (%.1e)", name, worst);
    ok(off < 3e-6, "%s: every step in float (%.1e)", name, off);
}

#define WALK(name, sampler, ...) test_walk(#name, sampler, (ma_schedule){__VA_ARGS__}, times_##name, walk_##name)
static void test_walks(void) {
    WALK(ddim_2b, MA_DDIM, .snr_shift_scale = 3, .zero_snr = true, .set_alpha_to_one = true);
    WALK(ddim_5b, MA_DDIM, .snr_shift_scale = 1, .zero_snr = true, .set_alpha_to_one = true);
    WALK(ddim_leading, MA_DDIM, .spacing = MA_LEADING, .steps_offset = 1, .snr_shift_scale = 3, .zero_snr = true);
    WALK(dpm_2b, MA_DPM, .snr_shift_scale = 3, .zero_snr = true, .set_alpha_to_one = true);
    WALK(dpm_5b, MA_DPM, .snr_shift_scale = 1, .zero_snr = true, .set_alpha_to_one = true);
    WALK(dpm_linspace, MA_DPM, .spacing = MA_LINSPACE, .snr_shift_scale = 3, .set_alpha_to_one = true);
    WALK(dpm_leading, MA_DPM, .spacing = MA_LEADING, .snr_shift_scale = 3, .zero_snr = true);
}

/* Numbers of steps at the ends, and what does not fit. */
static void test_counts(void) {
    ma_schedule s;
    ma_step step[1000];
    ma_err e = {0};
    start_2b(&s);
    bool finite = true;
    for (int n = 1; n <= 1000; n += n < 5 ? 1 : 199)
        for (int sampler = MA_DDIM; sampler <= MA_DPM; sampler++)
            for (int spacing = MA_TRAILING; spacing <= MA_LINSPACE; spacing++) {
                s.spacing = (ma_spacing)spacing;
                finite = finite && ma_steps_make(&s, (ma_sampler)sampler, n, step, &e) == 0;
                for (int i = 0; i < n && finite; i++)
                    finite = isfinite(step[i].of_x) && isfinite(step[i].of_x0) && isfinite(step[i].of_last) &&
                             isfinite(step[i].of_noise);
            }
    ok(finite, "finite numbers for 1 to 1,000 steps %s", e.text);
    ok(ma_steps_make(&s, MA_DDIM, 0, step, &e) < 0 && strstr(e.text, "0 sampling steps"), "refused: %s", e.text);
    ma_err_clear(&e);
    ok(ma_steps_make(&s, MA_DDIM, 1001, step, &e) < 0 && strstr(e.text, "1 to 1000"), "refused: %s", e.text);
    ma_err_clear(&e);
    s.spacing = MA_LEADING;
    s.steps_offset = 1;
    ok(ma_steps_make(&s, MA_DDIM, 1000, step, &e) < 0 && strstr(e.text, "steps_offset 1"), "refused: %s", e.text);
}

static void test_guidance(void) {
    double worst = 0;
    for (int i = 0; i < STEPS; i++)
        worst = fmax(worst, fabs(ma_dynamic_guidance(6, trailing_50[i], STEPS) - dynamic_50[i]));
    ok(worst < 1e-8, "dynamic guidance (%.1e)", worst); /* cosines of angles up to 8 million */
}

static void test_end(void) {
    ma_schedule s;
    start_2b(&s);
    float x = 1, v = 0.5f;
    ma_step step[1000]; /* of as many as there are times, the last goes from time 0 to the end */
    ma_steps_make(&s, MA_DDIM, 1000, step, NULL);
    ma_step_take(&step[999], &v, &x, NULL, NULL, 1);
    double x0 = sqrt(s.alpha_bar[0]) - 0.5 * sqrt(1 - s.alpha_bar[0]);
    ok(fabs(x - x0) < 1e-7, "the last step ends at x0");
    s.set_alpha_to_one = false;
    x = 1;
    ma_steps_make(&s, MA_DDIM, 1000, step, NULL);
    ma_step_take(&step[999], &v, &x, NULL, NULL, 1);
    ok(fabsf(x - 1) < 1e-7f, "without set_alpha_to_one it stays at ᾱ of step 0");
}

static char path[256];

static int read_text(const char *text, ma_schedule *s, ma_err *e) {
    ma_err_clear(e);
    return ma_write_file(path, text, strlen(text), e) == 0 ? ma_schedule_read(path, s, e) : -1;
}

static void test_files(void) {
    ma_schedule s, r;
    ma_err e = {0};
    start_2b(&s);
    memset(&r, 0, sizeof r);
    ok(ma_schedule_write(path, &s, &e) == 0 && ma_schedule_read(path, &r, &e) == 0 &&
           !memcmp(s.alpha_bar, r.alpha_bar, sizeof s.alpha_bar) && r.steps == 1000 && r.set_alpha_to_one,
       "written and read again: the same bits");
    ok(read_text("{\"_class_name\":\"CogVideoXDPMScheduler\",\"prediction_type\":\"v_prediction\","
                 "\"timestep_spacing\":\"trailing\",\"snr_shift_scale\":1.0,\"num_train_timesteps\":400}",
                 &r, &e) == 0 &&
           r.steps == 400 && r.beta_end == 0.012 && r.snr_shift_scale == 1 && !r.zero_snr && r.sampler == MA_DPM,
       "absent keys have the class's defaults");
    ok(read_text("{\"prediction_type\":\"v_prediction\",\"steps_offset\":1}", &r, &e) == 0 && r.spacing == MA_LEADING &&
           r.steps_offset == 1 && r.sampler == MA_DDIM,
       "leading spacing");
    s.spacing = MA_LINSPACE;
    s.sampler = MA_DPM;
    ok(ma_schedule_write(path, &s, &e) == 0 && ma_schedule_read(path, &r, &e) == 0 && r.spacing == MA_LINSPACE &&
           r.sampler == MA_DPM,
       "sampler and spacing are written");
#define BASE "\"prediction_type\":\"v_prediction\",\"timestep_spacing\":\"trailing\""
    static const char *const bad[][2] = {
        {"{" BASE ",\"beta_schedule\":\"linear\"}", "beta_schedule: linear"},
        {"{\"prediction_type\":\"sample\",\"timestep_spacing\":\"trailing\"}", "prediction_type: sample"},
        {"{\"timestep_spacing\":\"trailing\"}", "prediction_type: epsilon"},
        {"{\"prediction_type\":\"v_prediction\",\"timestep_spacing\":\"random\"}", "timestep_spacing: random"},
        {"{" BASE ",\"steps_offset\":-1}", "steps_offset: -1"},
        {"{" BASE ",\"_class_name\":\"EulerDiscreteScheduler\"}", "_class_name: Euler"},
        {"{" BASE ",\"beta_schedule\":7}", "beta_schedule: not a word"},
        {"{" BASE ",\"num_train_timesteps\":100000}", "num_train_timesteps: 100000"},
        {"{" BASE ",\"num_train_timesteps\":99.5}", "num_train_timesteps: 99.5"},
        {"{" BASE ",\"num_train_timesteps\":\"1000\"}", "num_train_timesteps: not a number"},
        {"{" BASE ",\"beta_end\":1.5}", "beta_end: 1.5"},
        {"{" BASE ",\"snr_shift_scale\":0}", "snr_shift_scale: 0"},
        {"{" BASE ",\"rescale_betas_zero_snr\":1}", "rescale_betas_zero_snr"},
        {"{" BASE ",\"trained_betas\":[0.1]}", "trained_betas"},
        {"{" BASE ",", ""},
        {"[]", "object"},
        {"", ""},
    };
    ma_schedule before = r;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bool refused = read_text(bad[i][0], &r, &e) < 0;
        const char *why = strncmp(e.text, path, strlen(path)) ? "" : e.text + strlen(path);
        ok(refused && *why && strstr(why, bad[i][1]), "refused%s", why);
    }
    ok(!memcmp(&before, &r, sizeof r), "what is refused changes nothing");
    unlink(path);
    ma_err_clear(&e);
    ok(ma_schedule_read(path, &r, &e) < 0 && e.reason == MA_MISSING, "a file that is not there");
}

int main(void) {
    snprintf(path, sizeof path, "%s/ma-schedule-%ld.json", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp",
             (long)getpid());
    test_alpha("2b", alpha_bar_2b, 3, true);
    test_alpha("5b", alpha_bar_5b, 1, true);
    test_alpha("no shift, no rescaling", alpha_bar_plain, 1, false);
    test_trailing();
    test_chain(50, chain_50);
    test_chain(7, chain_7);
    test_walks();
    test_counts();
    test_guidance();
    test_end();
    test_files();
    return tap_done();
}
