/* golden/cogvideox: the transformer with sin-cos and rotary positions against diffusers', with the projector, every
 * loss of ma-align, and the gradient of every parameter; the same with adapters, whose file is then read, merged and
 * merged on its way into a file (cogvideox.py). L_diff here is the mean square error of the velocity; the fixture has
 * the paper's weighted error of x0: the two are equal. */
#include "../../common/models/cogvideox.h"
#include "../../common/models/relations.h"
#include "../../common/schedule.h"
#include "golden.h"

enum { SAMPLES = 2 };

typedef struct bench {
    golden g;
    ma_params *params; /* the transformer's */
    ma_params *projector_params;
    cogvideox *net;
    projector *project;
    lora *adapters; /* NULL: none */
    cogvideox_run run;
    double t[SAMPLES];
    ma_array noisy, velocity; /* (2,F,h,w,C) */
} bench;

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

/* only: see ma_params. NULL: all, or with adapters none. */
static void make_net(bench *b, const cogvideox_config *config, const char *only) {
    b->params = ma_params_new(b->g.ctx, b->g.weights, only != NULL, 0);
    b->params->only = only;
    b->net = cogvideox_make(b->params, config);
    ok(b->net && !ma_params_end(b->params, (const char *const[]){"projector.", "transformer.", NULL}), "%s: loads %s",
       b->g.name, ma_ctx_err(b->g.ctx)->text);
}

/* Adapters with the fixture's values. */
static void make_adapters(bench *b, const cJSON *settings) {
    const double rank = cJSON_GetObjectItem(settings, "rank")->valuedouble,
                 alpha = cJSON_GetObjectItem(settings, "alpha")->valuedouble;
    ma_buf targets = {0};
    for (const cJSON *t = cJSON_GetObjectItem(settings, "targets")->child; t; t = t->next)
        ma_buf_printf(&targets, "%s%s", targets.size ? "," : "", t->valuestring);
    b->adapters = lora_new(b->g.ctx, (int64_t)rank, alpha, targets.data, 1);
    ok(!cogvideox_adapt(b->net, b->adapters), "%s: adapters of %s %s", b->g.name, targets.data,
       ma_ctx_err(b->g.ctx)->text);
    ma_buf_free(&targets);
    const ma_params *p = lora_params(b->adapters);
    for (int k = 0; k < p->n; k++) {
        const ma_entry *e = ma_weights_find(b->g.weights, p->at[k].name);
        float *x = ma_alloc((size_t)ma_count(p->at[k].t), sizeof *x);
        golden_need(e && !ma_entry_read(e, x, NULL) && !ma_put(b->g.ctx, p->at[k].t, x), p->at[k].name, NULL);
        ma_release(x);
    }
}

static cogvideox_config read_case(bench *b, const ma_weights *fixture, const char *name) {
    *b = (bench){.g = golden_begin(fixture, name)};
    cogvideox_config config;
    golden_setting(&b->g, "config", read_config, &config);
    return config;
}

static void begin(bench *b, const ma_weights *fixture, const char *name, const char *only) {
    const cogvideox_config config = read_case(b, fixture, name);
    ma_schedule schedule;
    int64_t times[SAMPLES], target[3];
    golden_setting(&b->g, "scheduler", read_schedule, &schedule);
    golden_list(&b->g, "times", times);
    golden_list(&b->g, "target", target);
    for (int k = 0; k < SAMPLES; k++) b->t[k] = (double)times[k];
    b->run.hidden_after = (int)golden_number(&b->g, "hidden_after");
    add_noise(b, &schedule);

    const cJSON *settings = cJSON_GetObjectItem(b->g.meta, "lora");
    make_net(b, &config, cJSON_IsObject(settings) ? NULL : only);
    if (cJSON_IsObject(settings)) make_adapters(b, settings);
    const int64_t *n = b->noisy.n, hidden[3] = {n[1], n[2] / config.patch, n[3] / config.patch};
    b->projector_params = ma_params_new(b->g.ctx, b->g.weights, true, 0);
    b->project = projector_make(b->projector_params, config.heads * config.head_dim,
                                (int64_t)golden_number(&b->g, "out"), hidden, target);
    golden_need(b->project, name, ma_ctx_err(b->g.ctx));
}

static void end(bench *b) {
    projector_free(b->project);
    cogvideox_free(b->net);
    lora_free(b->adapters);
    ma_params_free(b->params);
    ma_params_free(b->projector_params);
    ma_array_free(&b->noisy);
    ma_array_free(&b->velocity);
    golden_end(&b->g);
}

static ma_tensor *forward(bench *b, ma_tensor **hidden) {
    ma_tensor *x = ma_input(b->g.ctx, b->noisy.data, b->noisy.nd, b->noisy.n);
    return cogvideox_forward(b->g.ctx, b->net, x, b->t, golden_tensor(&b->g, "text"), &b->run, hidden);
}

/* What is trained, the projector apart. */
static const ma_params *trained(const bench *b) {
    return b->adapters ? lora_params(b->adapters) : b->params;
}

/* One training step's loss, its parts and gradients. loss: as --loss has it. */
static void check_loss(bench *b, const char *loss) {
    ma_ctx *c = b->g.ctx;
    const bool none = !strcmp(loss, "none");
    align_terms terms;
    ma_err e = {0};
    ok(!align_terms_read(loss, golden_number(&b->g, "lambda"), &terms, &e), "%s: %s %s", b->g.name, loss, e.text);
    ma_tensor *hidden = NULL, *velocity = forward(b, none ? NULL : &hidden);
    ma_tensor *total = ma_mse(c, velocity, ma_input_f32(c, b->velocity.data, b->velocity.nd, b->velocity.n));
    if (none) golden_check(&b->g, total, "diff", 1);
    for (int k = 0; k < terms.n; k++) {
        ma_tensor *z = projector_forward(c, b->project, hidden), *m = golden_tensor(&b->g, "teacher");
        ma_tensor *value =
            align_loss_of(c, terms.at[k].kind, z, m, golden_number(&b->g, "tau"), golden_number(&b->g, "margin"));
        golden_check(&b->g, value, align_name(terms.at[k].kind), 1);
        total = ma_add(c, total, ma_affine(c, value, terms.at[k].weight, 0));
    }
    char *name = ma_format("total/%s", loss);
    golden_check(&b->g, total, name, 1);
    free(name);
    ma_zero_grads(c);
    ma_backward(c, total, 1);
    golden_check_grads(&b->g, trained(b), loss, "none");
    if (!none) golden_check_grads(&b->g, b->projector_params, loss, "none");
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
    begin(&b, fixture, name, "*");
    ma_tensor *hidden = NULL, *velocity = forward(&b, &hidden);
    golden_check(&b.g, velocity, "velocity", 1);
    golden_check(&b.g, hidden, "hidden", 1);
    ma_reset(b.g.ctx);
    check_bare(&b);
    b.run.checkpoint = checkpoint;
    check_loss(&b, "none");
    const cJSON *losses = cJSON_GetObjectItem(b.g.meta, "losses");
    for (const cJSON *l = losses->child; l; l = l->next) check_loss(&b, l->valuestring);
    end(&b);
}

/* ---- some of the parameters ---- */

/* Those that patterns name have the gradients that they had among all; the others have none. */
static void check_patterns(const ma_weights *fixture) {
    bench b;
    begin(&b, fixture, "sincos", "*.1.attn1.*,norm_out.*,proj_out.weight");
    ma_params some = *b.params;
    some.at = ma_alloc((size_t)some.n, sizeof *some.at);
    int n = 0;
    for (int k = 0; k < some.n; k++)
        if (b.params->at[k].t->grad) some.at[n++] = b.params->at[k];
    ok(n == 12 + 4 + 1, "patterns: 17 of %d parameters have gradients (%d)", some.n, n);
    some.n = n;
    ma_ctx *c = b.g.ctx;
    b.run.checkpoint = true;
    ma_tensor *target = ma_input_f32(c, b.velocity.data, b.velocity.nd, b.velocity.n);
    ma_backward(c, ma_mse(c, forward(&b, NULL), target), 1);
    golden_check_grads(&b.g, &some, "none", "none");
    ma_release(some.at);
    end(&b);
}

/* ---- the file of adapters ---- */

static bool number_is(const cJSON *json, const char *name, double value) {
    const cJSON *n = cJSON_GetObjectItem(json, name);
    return cJSON_IsNumber(n) && n->valuedouble == value;
}

/* What diffusers looks for: names, shapes, rank, alpha and modules in the metadata. */
static void check_file(const bench *b, const char *path) {
    ma_err e = {0};
    ma_weights *w = ma_weights_open(path, &e);
    golden_need(w, path, &e);
    const ma_entry *down = ma_weights_find(w, "transformer.transformer_blocks.1.ff.net.2.lora_A.weight"),
                   *up = ma_weights_find(w, "transformer.transformer_blocks.0.attn1.to_out.0.lora_B.weight");
    ok(ma_weights_count(w) == 24 && down && down->n[0] == 3 && down->n[1] == 128 && up && up->n[0] == 32 &&
           up->n[1] == 3 && up->type == MA_F32,
       "%s: names and shapes in the file", b->g.name);
    cJSON *meta = cJSON_Parse(ma_weights_meta(w, "lora_adapter_metadata"));
    const cJSON *modules = cJSON_GetObjectItem(meta, "transformer.target_modules");
    ok(number_is(meta, "transformer.r", 3) && number_is(meta, "transformer.lora_alpha", 6) &&
           cJSON_GetArraySize(modules) == 12 &&
           !strcmp(cJSON_GetArrayItem(modules, 0)->valuestring, "transformer_blocks.0.attn1.to_q"),
       "%s: rank, alpha and modules in the metadata", b->g.name);
    cJSON_Delete(meta);
    ma_weights_close(w);
}

/* The transformer as diffusers would open it after a merge on the way into a file. */
static void check_merged_file(bench *b, const char *path) {
    ma_err e = {0};
    b->params->edit = lora_edit;
    b->params->edit_self = b->adapters;
    golden_need(!ma_params_save(b->params, path, MA_F32, 0, NULL, &e), path, &e);
    bench merged = *b;
    const cogvideox_config config = read_case(&merged, b->g.fixture, b->g.name);
    merged.noisy = b->noisy;
    memcpy(merged.t, b->t, sizeof merged.t);
    ma_weights_close(merged.g.weights);
    merged.g.weights = ma_weights_open(path, &e);
    golden_need(merged.g.weights, path, &e);
    make_net(&merged, &config, NULL);
    golden_check(&merged.g, forward(&merged, NULL), "velocity", 1);
    merged.noisy = merged.velocity = (ma_array){0};
    end(&merged);
}

/* The folder's adapters in a net of their own, beside its weights, then in them. */
static void check_read(bench *b, const char *folder) {
    ma_err e = {0};
    bench other;
    const cogvideox_config config = read_case(&other, b->g.fixture, b->g.name);
    other.noisy = b->noisy;
    memcpy(other.t, b->t, sizeof other.t);
    make_net(&other, &config, NULL);
    other.adapters = lora_open(other.g.ctx, folder, &e);
    golden_need(other.adapters, folder, &e);
    ok(!cogvideox_adapt(other.net, other.adapters), "%s: the file fits %s", b->g.name, ma_ctx_err(other.g.ctx)->text);
    golden_check(&other.g, forward(&other, NULL), "velocity", 1);
    ok(!lora_merge(other.adapters, 1), "%s: merged %s", b->g.name, ma_ctx_err(other.g.ctx)->text);
    golden_check(&other.g, forward(&other, NULL), "velocity", 1);
    other.noisy = (ma_array){0};
    end(&other);
}

static void check_adapters(const ma_weights *fixture) {
    bench b;
    begin(&b, fixture, "adapted", NULL);
    bool frozen = true;
    for (int k = 0; k < b.params->n; k++) frozen &= !b.params->at[k].t->grad;
    ok(frozen, "adapted: what is frozen has no gradients");
    char dir[] = "/tmp/ma-golden-XXXXXX";
    golden_need(mkdtemp(dir), dir, NULL);
    char *path = ma_format("%s/" LORA_FILE, dir), *merged = ma_format("%s/merged.safetensors", dir);
    ma_err e = {0};
    ok(!lora_save(b.adapters, path, &e), "adapted: saved %s", e.text);
    check_file(&b, path);
    check_read(&b, dir);
    check_merged_file(&b, merged);
    unlink(path);
    unlink(merged);
    rmdir(dir);
    free(path);
    free(merged);
    end(&b);
}

/* ---- --loss ---- */

static void check_terms(void) {
    const struct {
        const char *text, *why;
    } bad[] = {{"soft", "soft is not one of"}, {"", "is not one of"},         {"soft-trd,", "is not one of"},
               {"trd=", "is not a number"},    {"trd=x", "is not a number"},  {"trd=-1", "is not a number"},
               {"trd=1x", "is not a number"},  {"trd,repa,trd", "trd twice"}, {"none,trd", "none is not one of"},
               {"trd=nan", "is not a number"}};
    align_terms t;
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        ma_err e = {0};
        ok(align_terms_read(bad[k].text, 1, &t, &e) && strstr(e.text, bad[k].why), "--loss '%s': %s", bad[k].text,
           e.text);
    }
    ok(!align_terms_read("repa=0,trd", 0.25, &t, NULL) && t.n == 2 && t.at[0].kind == ALIGN_REPA &&
           t.at[0].weight == 0 && t.at[1].weight == 0.25,
       "--loss 'repa=0,trd'");
}

int main(void) {
    ma_weights *fixture = golden_open("tests/golden/cogvideox.safetensors");
    check(fixture, "sincos", false);
    check(fixture, "rotary", true);
    check(fixture, "adapted", true);
    check_patterns(fixture);
    check_adapters(fixture);
    check_terms();
    ma_weights_close(fixture);
    return tap_done();
}
