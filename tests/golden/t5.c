/* golden/t5: the encoder against transformers' T5EncoderModel (t5.py), v1.1 and the first T5, on texts of 1, 7 and 226
 * tokens; config.json refused; on a GPU also in 16 bits against itself in fp32; a published file where it is at hand.
 */
#include "../../common/models/t5.h"
#include "golden.h"

static int read_config(const char *path, void *out, ma_err *e) {
    return t5_config_read(path, out, e);
}

/* As t5.py has them. ma_release */
static int32_t *tokens(int64_t batch, int64_t length, int64_t vocab) {
    int32_t *ids = ma_alloc((size_t)(batch * length), sizeof *ids);
    for (int64_t k = 0; k < batch * length; k++) {
        int64_t b = k / length, i = k % length;
        ids[k] = (int32_t)((7 * i * i + 3 * i + 11 * b) % vocab);
    }
    return ids;
}

static ma_tensor *run(const golden *g, const t5 *net, const t5_config *config, int64_t batch, int64_t length) {
    int32_t *ids = tokens(batch, length, config->vocab);
    ma_tensor *out = t5_forward(g->ctx, net, ids, batch, length);
    ma_release(ids);
    return out;
}

/* In bf16 and fp16 the result is as near that of fp32 as transformers' own is in these types, or a quarter further: where
 * each rounds is its own business. want: of `length` tokens. */
static void check_half(const golden *g, const t5_config *config, int64_t batch, int64_t length, const float *want) {
    static const ma_type kinds[] = {MA_BF16, MA_F16};
    for (int k = 0; k < 2; k++) {
        ma_err e = {0};
        golden half = *g;
        half.ctx = ma_ctx_new(ma_ctx_device(g->ctx), &e);
        ma_set_type(half.ctx, kinds[k]);
        t5 *net = t5_load(half.ctx, g->weights, config, 0);
        ma_tensor *out = net ? run(&half, net, config, batch, length) : NULL;
        float *got = golden_host(&half, out);
        double error = got ? rel_error(got, want, (size_t)ma_count(out)) : INFINITY;
        double theirs = golden_number(g, ma_type_name(kinds[k]));
        ok(error <= 1.25 * theirs, "%s: %s (%.1e, transformers' %.1e)", g->name, ma_type_name(kinds[k]), error, theirs);
        ma_release(got);
        t5_free(net);
        ma_ctx_free(half.ctx);
    }
}

static void check(const ma_weights *fixture, const char *name) {
    golden g = golden_begin(fixture, name);
    t5_config config;
    int64_t lengths[8], batch = (int64_t)golden_number(&g, "batch"), every = (int64_t)golden_number(&g, "every");
    int n = golden_list(&g, "lengths", lengths);
    golden_setting(&g, "config", read_config, &config);
    t5 *net = t5_load(g.ctx, g.weights, &config, 0);
    if (ok(net, "%s: loads %s", name, ma_ctx_err(g.ctx)->text)) {
        for (int k = 0; k < n; k++) {
            char key[24];
            snprintf(key, sizeof key, "%lld", (long long)lengths[k]);
            ma_tensor *out = run(&g, net, &config, batch, lengths[k]);
            ma_tensor *rows = ma_view(g.ctx, out, MA_SHAPE(batch * lengths[k], config.width));
            golden_check(&g, rows, key, every);
            if (k == n - 1 && strcmp(ma_ctx_device(g.ctx)->name, "cpu") && config.hidden % 8 == 0) {
                float *want = golden_host(&g, out);
                check_half(&g, &config, batch, lengths[k], want);
                ma_release(want);
            }
            ma_reset(g.ctx);
        }
        const int32_t bad[] = {0, config.vocab};
        ok(!t5_forward(g.ctx, net, bad, 1, 2) && strstr(ma_ctx_err(g.ctx)->text, "another model's tokenizer"),
           "%s: refused: %s", name, ma_ctx_err(g.ctx)->text);
    }
    t5_free(net);
    golden_end(&g);
}

/* A whole T5 as it was published, decoder and all, from a pytorch_model.bin. */
static void check_published(const ma_weights *fixture) {
    const char *shared = getenv("SHARED");
    char *folder = ma_format("%s/assets/t5/tiny", shared ? shared : "../shared");
    char *path = ma_format("%s/config.json", folder);
    if (access(path, R_OK))
        skip("no assets/t5/tiny");
    else {
        ma_err e = {0};
        t5_config config;
        golden g = golden_begin(fixture, "published");
        ok(!t5_config_read(path, &config, &e) && config.layers == 5 && !config.gated, "published: config %s", e.text);
        ma_weights_close(g.weights);
        g.weights = ma_weights_open(folder, &e);
        golden_need(g.weights, folder, &e);
        t5 *net = t5_load(g.ctx, g.weights, &config, 0);
        if (ok(net, "published: loads %s", ma_ctx_err(g.ctx)->text))
            golden_check(&g, run(&g, net, &config, 1, 12), "12", 1);
        t5_free(net);
        golden_end(&g);
    }
    free(path);
    free(folder);
}

static void check_refused(void) {
    static const char *const bad[][2] = {
        {"{\"feed_forward_proj\":\"gated-silu\"}", "feed_forward_proj: gated-silu"},
        {"{\"model_type\":\"umt5\"}", "model_type: umt5"},
        {"{\"d_kv\":129}", "d_kv: 129"},
        {"{\"num_layers\":2.5}", "num_layers: 2.5"},
        {"{\"relative_attention_num_buckets\":10}", "10 relative_attention_num_buckets"},
        {"{\"d_model\":\"64\"}", "d_model: not a number"},
        {"[1]", "not a JSON object"},
    };
    char path[] = "/tmp/ma-t5-XXXXXX";
    golden_need(mkstemp(path) >= 0, path, NULL);
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        ma_err e = {0};
        t5_config c;
        golden_need(!ma_write_file(path, bad[k][0], strlen(bad[k][0]), &e), path, &e);
        ok(t5_config_read(path, &c, &e) < 0 && strstr(e.text, bad[k][1]), "refused: %s", bad[k][1]);
    }
    unlink(path);
}

int main(void) {
    ma_weights *fixture = golden_open("tests/golden/t5.safetensors");
    check(fixture, "v1.1");
    check(fixture, "first");
    check_published(fixture);
    check_refused();
    ma_weights_close(fixture);
    return tap_done();
}
