/* param: layouts, drawing, what is said when names or shapes are wrong, saving in shards and reading back. */
#include "../tap.h"
#include "../weights/temp.h"
#include "../../common/param.h"

static ma_device *device;

static ma_ctx *context(void) {
    return ma_ctx_new(device, NULL);
}

static void layouts(void) {
    /* (O,kt,kh,kw,C) = (2,1,2,3,4), element o,h,w,c → (O,C,kt,kh,kw) */
    float in[48], out[48], back[48];
    bool good = true;
    for (int i = 0; i < 48; i++) in[i] = (float)i;
    ma_layout_to_file(out, in, MA_CONV2D, MA_SHAPE(2, 1, 2, 3, 4));
    for (int o = 0; o < 2; o++)
        for (int k = 0; k < 6; k++)
            for (int c = 0; c < 4; c++) good = good && out[(o * 4 + c) * 6 + k] == in[(o * 6 + k) * 4 + c];
    ok(good, "channels-last to channels-second");
    ma_layout_from_file(back, out, MA_CONV2D, MA_SHAPE(2, 1, 2, 3, 4));
    ok(!memcmp(back, in, sizeof in), "and back");
    ma_layout_to_file(out, in, MA_CONV3D, MA_SHAPE(48));
    ok(!memcmp(out, in, sizeof in), "a bias has no layout");
}

/* Declares x and y in the order given, and copies x out. */
static void drawn(uint64_t seed, bool x_first, ma_init init, float out[600]) {
    ma_ctx *c = context();
    ma_params *p = ma_params_new(c, NULL, false, seed);
    if (!x_first) ma_param(p, MA_PLAIN, init, MA_SHAPE(7), "y");
    ma_tensor *x = ma_param(p, MA_CONV3D, init, MA_SHAPE(4, 1, 5, 5, 6), "x.%d.weight", 3);
    if (x_first) ma_param(p, MA_PLAIN, init, MA_SHAPE(7), "y");
    ok(x && !ma_failed(c) && ma_params_count(p) == 607 && !ma_params_end(p, NULL) && !ma_get(c, x, out), "drawn %s",
       ma_ctx_err(c)->text);
    ma_params_free(p);
    ma_ctx_free(c);
}

static double largest(const float *v, int n) {
    double most = 0;
    for (int i = 0; i < n; i++) most = fmax(most, fabs(v[i]));
    return most;
}

static void drawing(void) {
    float a[600], b[600];
    drawn(1, true, MA_INIT_FAN, a);
    drawn(1, false, MA_INIT_FAN, b);
    ok(!memcmp(a, b, sizeof a), "the order of declaration does not matter");
    drawn(2, true, MA_INIT_FAN, b);
    ok(memcmp(a, b, sizeof a), "the seed does");
    double most = largest(a, 600), bound = 1 / sqrt(150);
    ok(most <= bound && most > 0.98 * bound, "fan: up to %g", most);
    drawn(1, true, MA_INIT_XAVIER, a);
    most = largest(a, 600);
    bound = sqrt(6.0 / (150 + 100));
    ok(most <= bound && most > 0.98 * bound, "xavier: up to %g", most);
    drawn(1, true, MA_INIT_SMALL, a);
    double sum = 0;
    for (int i = 0; i < 600; i++) sum += (double)a[i] * a[i];
    ok(fabs(sqrt(sum / 600) - 0.02) < 0.002, "small: deviation %g", sqrt(sum / 600));
    drawn(1, true, MA_INIT_ONE, a);
    ok(a[0] == 1 && a[599] == 1, "ones");

    ma_ctx *c = context();
    ma_params *p = ma_params_new(c, NULL, true, 1);
    ma_tensor *w = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(8, 400), "w");
    ma_tensor *bias = ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(300), "b");
    ma_get(c, bias, a);
    most = largest(a, 300);
    ok(most <= 0.05 && most > 0.045, "a bias has its weight's bound: up to %g", most);
    ok(w->leaf && bias->leaf && p->at[0].decay && !p->at[1].decay, "leaves; matrices decay");
    ma_params_free(p);
    ma_ctx_free(c);
}

/* A file with a weight of a 2-d convolution, a linear map and what is left over. */
static ma_weights *file_of(const char *path, int left) {
    static float v[64];
    for (int i = 0; i < 64; i++) v[i] = (float)i;
    ma_named a[9] = {{"net.conv.weight", {MA_F32, 4, {2, 3, 2, 2}, v}},
                     {"net.conv.bias", {MA_F32, 1, {2}, v}},
                     {"net.map", {MA_F32, 2, {4, 3}, v}}};
    static const char *const more[] = {"net.u1", "net.u2", "net.u3", "net.u4", "net.u5", "net.u6"};
    for (int i = 0; i < left; i++) a[3 + i] = (ma_named){more[i], {MA_F32, 1, {2}, v}};
    ma_weights_save(path, a, 3 + left, NULL, NULL);
    return ma_weights_open(path, NULL);
}

static void reading(void) {
    ma_weights *w = file_of(temp_path("net.safetensors"), 0);
    ma_ctx *c = context();
    ma_params *p = ma_params_new(c, w, false, 0);
    p->prefix = "net.";
    float v[24], *host = NULL;
    ok(ma_param_has(p, "conv.%s", "bias") && !ma_param_has(p, "none"), "has");
    ma_tensor *t = ma_param(p, MA_CONV2D, MA_INIT_ZERO, MA_SHAPE(2, 1, 2, 2, 3), "conv.weight");
    ok(t && !ma_get(c, t, v) && v[0] == 0 && v[1] == 4 && v[2] == 8 && v[3] == 1 && v[12] == 12, "channels go last");
    ok(!t->leaf, "not trained");
    t = ma_param(p, MA_CONV3D, MA_INIT_ZERO, MA_SHAPE(4, 1, 1, 1, 3), "map");
    ok(t && !ma_get(c, t, v) && v[1] == 1 && v[11] == 11, "a linear map is a convolution of 1");
    host = ma_param_host(p, 2, "conv.bias");
    ok(host && host[1] == 1, "host values");
    ma_release(host);
    t = ma_param_values(p, (float[]){5, 6}, MA_SHAPE(2));
    ok(t && !ma_get(c, t, v) && v[1] == 6 && p->n == 2, "values at hand are not listed");
    ok(!ma_params_end(p, NULL), "nothing left %s", ma_ctx_err(c)->text);
    ma_params_free(p);
    ma_ctx_free(c);
    ma_weights_close(w);
}

/* One declaration that fails: the context's error must be this one. */
static void wrong(ma_layout layout, int nd, const int64_t *n, const char *name, ma_reason reason, const char *text) {
    ma_weights *w = file_of(temp_path("net.safetensors"), 6);
    ma_ctx *c = context();
    ma_params *p = ma_params_new(c, w, false, 0);
    ma_tensor *t = ma_param(p, layout, MA_INIT_ZERO, nd, n, "%s", name);
    ok(!t && ma_ctx_err(c)->reason == reason && strstr(ma_ctx_err(c)->text, text), "%s", ma_ctx_err(c)->text);
    ok(!ma_param(p, layout, MA_INIT_ZERO, nd, n, "net.u1") && ma_params_end(p, NULL), "and stays so");
    ma_params_free(p);
    ma_ctx_free(c);
    ma_weights_close(w);
}

static void left_over(void) {
    ma_weights *w = file_of(temp_path("net.safetensors"), 6);
    for (int pass = 0; pass < 3; pass++) {
        ma_ctx *c = context();
        ma_params *p = ma_params_new(c, w, false, 0);
        p->prefix = pass == 2 ? "net." : NULL;
        const char *ignore[] = {pass == 2 ? "conv." : "net.conv.", pass ? pass == 2 ? "u" : "net.u" : NULL, NULL};
        ma_param(p, MA_PLAIN, MA_INIT_ZERO, MA_SHAPE(4, 3), pass == 2 ? "map" : "net.map");
        int rc = ma_params_end(p, ignore);
        ok(pass ? !rc : rc && strstr(ma_ctx_err(c)->text, ": 6 not known: net.u1, net.u2, net.u3, net.u4, net.u5, …"),
           "left over: %s", ma_ctx_err(c)->text);
        ma_params_free(p);
        ma_ctx_free(c);
    }
    ma_weights_close(w);
}

static ma_params *two_layers(ma_ctx *c, const ma_weights *w, uint64_t seed) {
    ma_params *p = ma_params_new(c, w, false, seed);
    ma_param(p, MA_CONV2D, MA_INIT_FAN, MA_SHAPE(4, 1, 3, 3, 5), "one.weight");
    ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(4), "one.bias");
    ma_param(p, MA_PLAIN, MA_INIT_SMALL, MA_SHAPE(6, 7), "two.weight");
    return p;
}

static bool same(ma_ctx *a, const ma_params *p, ma_ctx *b, const ma_params *q) {
    float x[180], y[180];
    bool all = p->n == q->n;
    for (int i = 0; i < p->n && all; i++)
        all = !ma_get(a, p->at[i].t, x) && !ma_get(b, q->at[i].t, y) &&
              !memcmp(x, y, (size_t)ma_count(p->at[i].t) * sizeof *x);
    return all;
}

static void saving(void) {
    const char *path = temp_path("model.safetensors"), *index = temp_path("model.safetensors.index.json");
    const char *shard = temp_path("model-00002-of-00002.safetensors");
    ma_err e = {0};
    ma_ctx *c = context(), *d = context();
    ma_params *p = two_layers(c, NULL, 1), *q = NULL;
    ok(!ma_params_save(p, path, MA_F32, 1000, (const char *const[]){"by", "test", NULL}, &e), "one file %s", e.text);
    ma_weights *w = ma_weights_open(path, &e);
    const ma_entry *x = w ? ma_weights_find(w, "one.weight") : NULL;
    ok(x && x->nd == 4 && x->n[1] == 5 && x->n[3] == 3 && !strcmp(ma_weights_meta(w, "by"), "test"),
       "published layout");
    q = w ? two_layers(d, w, 2) : NULL;
    ok(q && !ma_params_end(q, NULL) && same(c, p, d, q), "read back %s", ma_ctx_err(d)->text);
    ma_params_free(q);
    ma_weights_close(w);

    ok(!ma_params_save(p, path, MA_F32, 800, NULL, &e) && !access(index, F_OK) && !access(shard, F_OK) &&
           access(path, F_OK),
       "shards and an index, the single file is gone %s", e.text);
    q = two_layers(d, NULL, 3);
    ok(!same(c, p, d, q), "other values");
    w = ma_weights_open(temp_folder, &e);
    ok(w && ma_weights_count(w) == 3 && !ma_params_load(q, w, &e) && same(c, p, d, q), "loaded from shards %s", e.text);
    ma_weights_close(w);

    ok(!ma_params_save(p, path, MA_BF16, 0, NULL, &e) && access(index, F_OK), "one bf16 file, the index is gone");
    w = ma_weights_open(path, &e);
    float a[180], b[180];
    ok(w && ma_weights_at(w, 0)->type == MA_BF16 && !ma_params_load(q, w, &e) && !ma_get(c, p->at[2].t, a) &&
           !ma_get(d, q->at[2].t, b) && rel_error(b, a, 42) < 4e-3 && rel_error(b, a, 42) > 0,
       "bf16 is rounded %s", e.text);
    ma_weights_close(w);
    ok(ma_params_save(p, temp_path("x.bin"), MA_F32, 0, NULL, &e) && e.reason == MA_USAGE, "%s", e.text);
    ma_params_free(p);
    ma_params_free(q);
    ma_ctx_free(c);
    ma_ctx_free(d);
}

static void planning(void) {
    char note[160];
    ma_device *dry = ma_device_open("cpu", true, note, NULL);
    ma_weights *w = file_of(temp_path("net.safetensors"), 0);
    ma_ctx *c = ma_ctx_new(dry, NULL);
    ma_params *p = ma_params_new(c, w, true, 0);
    p->prefix = "net.";
    ma_tensor *t = ma_param(p, MA_CONV2D, MA_INIT_FAN, MA_SHAPE(2, 1, 2, 2, 3), "conv.weight");
    ok(t && !t->data && ma_params_count(p) == 24 && ma_ctx_memory(c).keep > 0, "a plan: shapes without data");
    ok(!ma_param(p, MA_PLAIN, MA_INIT_FAN, MA_SHAPE(3, 4), "map") && ma_ctx_err(c)->reason == MA_SHAPE,
       "but checked: %s", ma_ctx_err(c)->text);
    ma_params_free(p);
    ma_ctx_free(c);
    ma_weights_close(w);
    ma_device_close(dry);
}

int main(void) {
    char note[160];
    temp_make();
    device = ma_device_open("cpu", false, note, NULL);
    layouts();
    drawing();
    reading();
    wrong(MA_PLAIN, MA_SHAPE(4, 3), "net.absent", MA_MISSING, "net.safetensors: net.absent is missing");
    wrong(MA_PLAIN, MA_SHAPE(4, 5), "net.map", MA_SHAPE, "net.safetensors: net.map is 4x3, must be 4x5");
    wrong(MA_CONV2D, MA_SHAPE(2, 1, 2, 2, 4), "net.conv.weight", MA_SHAPE,
          "net.conv.weight is 2x3x2x2, must be 2x4x2x2");
    left_over();
    saving();
    planning();
    ma_device_close(device);
    return tap_done();
}
