/* golden/cogvideox: the transformer with sin-cos and rotary positions against diffusers', with the projector, every
 * loss of ma-align, and the gradient of every parameter (cogvideox.py). L_diff here is the mean square error of the
 * velocity; the fixture has the paper's weighted error of x0: the two are equal. */
#include "../../common/file.h"
#include "../../common/models/cogvideox.h"
#include "../../common/models/relations.h"
#include "../../common/schedule.h"
#include "golden.h"

enum { SAMPLES = 2 };

typedef struct bench {
    golden g;
    ma_params *params;
    int net_params; /* the first of params: the transformer's; the projector's follow */
    cogvideox *net;
    projector *project;
    cogvideox_run run;
    double t[SAMPLES];
    ma_array noisy, velocity; /* (2,F,h,w,C) */
} bench;

/* What a JSON setting says, as the file that the reader reads. */
typedef int reader(const char *path, void *out, ma_err *);
static void read_setting(const golden *g, const char *key, reader *read, void *out) {
    char path[] = "/tmp/ma-golden-XXXXXX";
    int fd = mkstemp(path);
    char *text = cJSON_PrintUnformatted(cJSON_GetObjectItem(g->meta, key));
    ma_err e = {0};
    golden_need(fd >= 0 && text && !ma_write_all(fd, text, strlen(text), &e), path, &e);
    close(fd);
    ok(!read(path, out, &e), "%s: %s.json is read %s", g->name, key, e.text);
    unlink(path);
    free(text);
}

static int read_config(const char *path, void *out, ma_err *e) {
    return cogvideox_config_read(path, out, e);
}

static int read_schedule(const char *path, void *out, ma_err *e) {
    return ma_schedule_read(path, out, e);
}

/* x_t = √ᾱ·x0 + √(1-ᾱ)·ε and v = √ᾱ·ε - √(1-ᾱ)·x0. */
static void add_noise(bench *b, const ma_schedule *s) {
    ma_array x0 = golden_input(&b->g, "x0"), noise = golden_input(&b->g, "noise");
    float *x = x0.data, *e = noise.data;
    for (size_t i = 0, n = ma_array_count(&x0); i < n; i++) {
        double bar = s->alpha_bar[(int)b->t[i / (n / SAMPLES)]], keep = sqrt(bar), add = sqrt(1 - bar);
        float start = x[i];
        x[i] = (float)(keep * start + add * e[i]);
        e[i] = (float)(keep * e[i] - add * start);
    }
    b->noisy = x0;
    b->velocity = noise;
}

static bool begin(bench *b, const ma_weights *fixture, const char *name) {
    *b = (bench){.g = golden_begin(fixture, name)};
    cogvideox_config config;
    ma_schedule schedule;
    int64_t times[SAMPLES], target[3];
    read_setting(&b->g, "config", read_config, &config);
    read_setting(&b->g, "scheduler", read_schedule, &schedule);
    golden_list(&b->g, "times", times);
    golden_list(&b->g, "target", target);
    for (int k = 0; k < SAMPLES; k++) b->t[k] = (double)times[k];
    b->run.hidden_after = (int)golden_number(&b->g, "hidden_after");
    add_noise(b, &schedule);

    const int64_t *n = b->noisy.n, hidden[3] = {n[1], n[2] / config.patch, n[3] / config.patch};
    b->params = ma_params_new(b->g.ctx, b->g.weights, true, 0);
    b->net = cogvideox_make(b->params, &config);
    b->net_params = b->params->n;
    b->project =
        projector_make(b->params, config.heads * config.head_dim, (int64_t)golden_number(&b->g, "out"), hidden, target);
    return ok(b->net && b->project && !ma_params_end(b->params, NULL), "%s: loads %s", name,
              ma_ctx_err(b->g.ctx)->text);
}

static void end(bench *b) {
    projector_free(b->project);
    cogvideox_free(b->net);
    ma_params_free(b->params);
    ma_array_free(&b->noisy);
    ma_array_free(&b->velocity);
    golden_end(&b->g);
}

static ma_tensor *forward(bench *b, ma_tensor **hidden) {
    ma_tensor *x = ma_input(b->g.ctx, b->noisy.data, b->noisy.nd, b->noisy.n);
    return cogvideox_forward(b->g.ctx, b->net, x, b->t, golden_tensor(&b->g, "text"), &b->run, hidden);
}

/* The kind of a loss, as --loss names it; -1: none. */
static int loss_kind(const char *loss) {
    static const char *const kinds[] = {[ALIGN_SOFT_TRD] = "soft-trd",
                                        [ALIGN_TRD] = "trd",
                                        [ALIGN_TRD_SPATIAL] = "trd-spatial",
                                        [ALIGN_TRD_TEMPORAL] = "trd-temporal",
                                        [ALIGN_REPA] = "repa"};
    for (int k = 0; k < (int)(sizeof kinds / sizeof *kinds); k++)
        if (!strcmp(loss, kinds[k])) return k;
    return -1;
}

static ma_tensor *align(bench *b, const char *loss, ma_tensor *hidden) {
    ma_tensor *z = projector_forward(b->g.ctx, b->project, hidden), *m = golden_tensor(&b->g, "teacher");
    return align_loss_of(b->g.ctx, (align_loss)loss_kind(loss), z, m, golden_number(&b->g, "tau"),
                         golden_number(&b->g, "margin"));
}

/* One training step's loss and gradients. loss "none": the diffusion loss alone. */
static void check_loss(bench *b, const char *loss) {
    ma_ctx *c = b->g.ctx;
    bool none = !strcmp(loss, "none");
    ma_tensor *hidden = NULL, *velocity = forward(b, none ? NULL : &hidden);
    ma_tensor *total = ma_mse(c, velocity, ma_input_f32(c, b->velocity.data, b->velocity.nd, b->velocity.n));
    ma_params plain = *b->params;
    if (none) {
        golden_check(&b->g, total, "diff", 1);
        plain.n = b->net_params;
    } else {
        ma_tensor *value = align(b, loss, hidden);
        golden_check(&b->g, value, loss, 1);
        total = ma_add(c, total, ma_affine(c, value, golden_number(&b->g, "lambda"), 0));
    }
    ma_zero_grads(c);
    ma_backward(c, total, 1);
    golden_check_grads(&b->g, &plain, loss, "none");
    ma_reset(c);
}

/* The first sample without text. */
static void check_bare(bench *b) {
    ma_array x = b->noisy;
    x.n[0] = 1;
    ma_tensor *out = cogvideox_forward(b->g.ctx, b->net, ma_input(b->g.ctx, x.data, x.nd, x.n), b->t, NULL,
                                       &(cogvideox_run){0}, NULL);
    golden_check(&b->g, out, "bare", 1);
    ma_reset(b->g.ctx);
}

static void check(const ma_weights *fixture, const char *name, bool checkpoint) {
    bench b;
    if (begin(&b, fixture, name)) {
        ma_tensor *hidden = NULL, *velocity = forward(&b, &hidden);
        golden_check(&b.g, velocity, "velocity", 1);
        golden_check(&b.g, hidden, "hidden", 1);
        ma_reset(b.g.ctx);
        check_bare(&b);
        b.run.checkpoint = checkpoint;
        check_loss(&b, "none");
        const cJSON *losses = cJSON_GetObjectItem(b.g.meta, "losses");
        for (const cJSON *l = losses->child; l; l = l->next) check_loss(&b, l->valuestring);
    }
    end(&b);
}

int main(void) {
    ma_weights *fixture = golden_open("tests/golden/cogvideox.safetensors");
    check(fixture, "sincos", false);
    check(fixture, "rotary", true);
    ma_weights_close(fixture);
    return tap_done();
}
