/* golden/vae: CogVideoX's autoencoder against diffusers' (vae.py): odd and even numbers of frames, as a whole and in
 * tiles; a clip that comes piece by piece, and what a dry run says it takes. */
#include "../../common/file.h"
#include "../../common/models/vae.h"
#include "golden.h"

#include <omp.h>

typedef struct bench {
    golden g;
    vae_config config;
    ma_params *params;
    vae *net;
    vae_tiles tiles;
    const vae_tiles *cut; /* of the reference: tiles or NULL */
} bench;

/* text as a file. */
static int read_text(const char *text, vae_config *c, ma_err *e) {
    char path[] = "/tmp/ma-golden-XXXXXX";
    int fd = mkstemp(path);
    golden_need(fd >= 0 && text && !ma_write_all(fd, text, strlen(text), e), path, e);
    close(fd);
    int rc = vae_config_read(path, c, e);
    unlink(path);
    return rc;
}

static bool begin(bench *b, const ma_weights *fixture, const char *name) {
    *b = (bench){.g = golden_begin(fixture, name)};
    ma_err e = {0};
    char *text = cJSON_PrintUnformatted(cJSON_GetObjectItem(b->g.meta, "config"));
    ok(!read_text(text, &b->config, &e), "%s: config.json is read %s", name, e.text);
    free(text);
    b->params = ma_params_new(b->g.ctx, b->g.weights, false, 0);
    b->net = vae_make(b->params, &b->config, VAE_BOTH);
    b->tiles = vae_default_tiles(&b->config);
    if (cJSON_IsTrue(cJSON_GetObjectItem(b->g.meta, "tiled"))) b->cut = &b->tiles;
    return ok(b->net, "%s: every weight is found, and no other %s", name, ma_ctx_err(b->g.ctx)->text);
}

static void end(bench *b) {
    vae_free(b->net);
    ma_params_free(b->params);
    golden_end(&b->g);
}

/* The clip once more, its frames from the host when they are wanted: the same bits as `whole` (out frames of size). */
static void check_stream(bench *b, vae_part part, const ma_array *x, const float *whole, const char *name) {
    ma_ctx *c = b->g.ctx;
    int64_t plane = x->n[2] * x->n[3] * x->n[4], from = 0, to = 0, n, pieces = 0;
    vae_stream *s = vae_open(c, b->net, part, x->n, b->cut);
    bool same = s != NULL;
    while (s && (n = vae_wants(s)) > 0) {
        ma_mark_t m = ma_mark(c);
        ma_tensor *y =
            vae_next(s, ma_input(c, (float *)x->data + from * plane, MA_SHAPE(1, n, x->n[2], x->n[3], x->n[4])));
        float *got = golden_host(&b->g, y);
        if (!got) break;
        same = same && !memcmp(got, whole + to, (size_t)ma_count(y) * sizeof *got);
        from += n;
        to += ma_count(y);
        pieces++;
        ma_release(got);
        ma_rewind(c, m);
    }
    vae_close(s);
    ok(same && from == x->n[1], "%s: %s: the same bits in %d pieces %s", b->g.name, name, (int)pieces,
       ma_ctx_err(c)->text);
}

static void check_clip(bench *b, vae_part part, int64_t frames) {
    ma_ctx *c = b->g.ctx;
    const bool encode = part == VAE_ENCODER;
    char input[32], name[32];
    snprintf(input, sizeof input, encode ? "x%d" : "z%d", (int)frames);
    snprintf(name, sizeof name, encode ? "encode%d" : "decode%d", (int)frames);
    ma_mark_t m = ma_mark(c);
    ma_array x = golden_input(&b->g, input);
    ma_tensor *in = ma_input(c, x.data, x.nd, x.n);
    ma_tensor *out = encode ? vae_encode(c, b->net, in, b->cut) : vae_decode(c, b->net, in, b->cut);
    golden_check(&b->g, out, name, encode ? 1 : (int64_t)golden_number(&b->g, "every"));
    float *whole = golden_host(&b->g, out);
    ok(out && out->n[1] == (encode ? vae_latent_frames : vae_frames)(&b->config, frames), "%s: %s: number of frames",
       b->g.name, name);
    ma_rewind(c, m);
    if (whole && x.n[0] == 1) check_stream(b, part, &x, whole, name);
    ma_release(whole);
    ma_array_free(&x);
}

static void check_case(const ma_weights *fixture, const char *name) {
    bench b;
    int64_t frames[16];
    if (begin(&b, fixture, name)) {
        int n = golden_list(&b.g, "clips", frames);
        for (int k = 0; k < n; k++) check_clip(&b, VAE_ENCODER, frames[k]);
        n = golden_list(&b.g, "latents", frames);
        for (int k = 0; k < n; k++) check_clip(&b, VAE_DECODER, frames[k]);
        ok(b.config.groups == (strcmp(name, "other") ? 4 : 2) &&
               b.config.invert_scale_latents == !strcmp(name, "other"),
           "%s: settings", name);
    }
    end(&b);
}

/* One part alone; a missing one; sizes that do not fit. */
static void check_parts(const ma_weights *fixture) {
    golden g = golden_begin(fixture, "plain");
    vae_config config;
    ma_err e = {0};
    char *text = cJSON_PrintUnformatted(cJSON_GetObjectItem(g.meta, "config"));
    read_text(text, &config, &e);
    free(text);
    ma_params *p = ma_params_new(g.ctx, g.weights, false, 0);
    vae *net = vae_make(p, &config, VAE_DECODER);
    ok(net, "the decoder alone %s", ma_ctx_err(g.ctx)->text);
    ma_mark_t m = ma_mark(g.ctx);
    ok(!vae_open(g.ctx, net, VAE_ENCODER, (int64_t[]){1, 9, 24, 32}, NULL), "no encoder: %s", ma_ctx_err(g.ctx)->text);
    ma_err_clear(ma_ctx_err(g.ctx));
    ok(!vae_open(g.ctx, net, VAE_DECODER, (int64_t[]){1, 2, 8, 8}, &(vae_tiles){40, 40}), "odd tiles: %s",
       ma_ctx_err(g.ctx)->text);
    ma_err_clear(ma_ctx_err(g.ctx));
    ok(ma_mark(g.ctx).bytes == m.bytes, "nothing is left on the stack");
    vae_free(net);
    ma_params_free(p);
    golden_end(&g);
}

static void check_refused(void) {
    static const char *const bad[] = {"{\"use_quant_conv\": true}",          "{\"act_fn\": \"relu\"}",
                                      "{\"latents_mean\": [0, 1]}",          "{\"block_out_channels\": [8, 6]}",
                                      "{\"block_out_channels\": 8}",         "{\"temporal_compression_ratio\": 3}",
                                      "{\"down_block_types\": [\"Other\"]}", "[]"};
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        vae_config c;
        ma_err e = {0};
        ok(read_text(bad[k], &c, &e) && e.reason, "%s: refused: %s", bad[k], e.text);
    }
}

/* A dry run at the published size: bytes of one part, by its first piece. */
static void check_bytes(void) {
    vae_config c;
    ma_err e = {0};
    char note[160];
    vae_2b(&c);
    vae_tiles t = vae_default_tiles(&c);
    ma_device *plan = ma_device_open("cpu", true, note, &e);
    const int64_t z[4] = {1, 13, 60, 90}, x[4] = {1, 49, 480, 720};
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1); /* each has rows of its own in a convolution's workspace: 32 take 0.4 GB more */
    double whole = (double)vae_bytes(plan, MA_F32, &c, VAE_DECODER, z, NULL, &e);
    double tiled = (double)vae_bytes(plan, MA_F32, &c, VAE_DECODER, z, &t, &e);
    double encode = (double)vae_bytes(plan, MA_F32, &c, VAE_ENCODER, x, NULL, &e);
    omp_set_num_threads(threads);
    ok(!e.reason && whole > 14e9 && whole < 18e9 && tiled < 0.7 * whole && encode < 0.8 * whole,
       "decoding 49x480x720 takes %.2f GB in fp32, %.2f in tiles, encoding %.2f %s", whole / 1e9, tiled / 1e9,
       encode / 1e9, e.text);
    ma_device_close(plan);
}

int main(void) {
    ma_weights *fixture = golden_open("tests/golden/vae.safetensors");
    check_case(fixture, "plain");
    check_case(fixture, "tiled");
    check_case(fixture, "other");
    check_parts(fixture);
    check_refused();
    check_bytes();
    ma_weights_close(fixture);
    return tap_done();
}
