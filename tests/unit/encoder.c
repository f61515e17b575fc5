/* unit/encoder: published files are told apart by their names and shapes, others are refused with words; settings
 * choose frames, sizes and blocks; members are laid out as the format has them. */
#include "../../common/models/dinov2.h"
#include "../../common/models/encoder.h"
#include "../../common/models/vae.h"
#include "../../common/models/videomae.h"
#include "../../common/models/vjepa.h"
#include "../../common/npy.h"
#include "../tap.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[] = "/tmp/ma-encoder-XXXXXX.safetensors";

/* An array of a published file. Dimensions by letter: D width, Q 3·D, H hidden, G 2·H, C 3, T tubelet, P patch, N 17
 * positions, R 4 registers, 1. */
typedef struct part {
    const char *name, *shape;
} part;

static const part opengvlab[] = {{"patch_embed.proj.weight", "DCTPP"},
                                 {"patch_embed.proj.bias", "D"},
                                 {"blocks.0.norm1.weight", "D"},
                                 {"blocks.0.norm1.bias", "D"},
                                 {"blocks.0.attn.q_bias", "D"},
                                 {"blocks.0.attn.v_bias", "D"},
                                 {"blocks.0.attn.qkv.weight", "QD"},
                                 {"blocks.0.attn.proj.weight", "DD"},
                                 {"blocks.0.attn.proj.bias", "D"},
                                 {"blocks.0.norm2.weight", "D"},
                                 {"blocks.0.norm2.bias", "D"},
                                 {"blocks.0.mlp.fc1.weight", "HD"},
                                 {"blocks.0.mlp.fc1.bias", "H"},
                                 {"blocks.0.mlp.fc2.weight", "DH"},
                                 {"blocks.0.mlp.fc2.bias", "D"},
                                 {"fc_norm.weight", "D"},
                                 {"head.weight", "CD"},
                                 {0}};
static const part videomae_hf[] = {{"embeddings.patch_embeddings.projection.weight", "DCTPP"},
                                   {"embeddings.patch_embeddings.projection.bias", "D"},
                                   {"encoder.layer.0.layernorm_before.weight", "D"},
                                   {"encoder.layer.0.layernorm_before.bias", "D"},
                                   {"encoder.layer.0.attention.attention.query.weight", "DD"},
                                   {"encoder.layer.0.attention.attention.key.weight", "DD"},
                                   {"encoder.layer.0.attention.attention.value.weight", "DD"},
                                   {"encoder.layer.0.attention.attention.q_bias", "D"},
                                   {"encoder.layer.0.attention.attention.v_bias", "D"},
                                   {"encoder.layer.0.attention.output.dense.weight", "DD"},
                                   {"encoder.layer.0.attention.output.dense.bias", "D"},
                                   {"encoder.layer.0.layernorm_after.weight", "D"},
                                   {"encoder.layer.0.layernorm_after.bias", "D"},
                                   {"encoder.layer.0.intermediate.dense.weight", "HD"},
                                   {"encoder.layer.0.intermediate.dense.bias", "H"},
                                   {"encoder.layer.0.output.dense.weight", "DH"},
                                   {"encoder.layer.0.output.dense.bias", "D"},
                                   {0}};
static const part vjepa_hf[] = {{"encoder.embeddings.patch_embeddings.proj.weight", "DCTPP"},
                                {"encoder.embeddings.patch_embeddings.proj.bias", "D"},
                                {"encoder.layer.0.norm1.weight", "D"},
                                {"encoder.layer.0.norm1.bias", "D"},
                                {"encoder.layer.0.attention.query.weight", "DD"},
                                {"encoder.layer.0.attention.query.bias", "D"},
                                {"encoder.layer.0.attention.key.weight", "DD"},
                                {"encoder.layer.0.attention.key.bias", "D"},
                                {"encoder.layer.0.attention.value.weight", "DD"},
                                {"encoder.layer.0.attention.value.bias", "D"},
                                {"encoder.layer.0.attention.proj.weight", "DD"},
                                {"encoder.layer.0.attention.proj.bias", "D"},
                                {"encoder.layer.0.norm2.weight", "D"},
                                {"encoder.layer.0.norm2.bias", "D"},
                                {"encoder.layer.0.mlp.fc1.weight", "HD"},
                                {"encoder.layer.0.mlp.fc1.bias", "H"},
                                {"encoder.layer.0.mlp.fc2.weight", "DH"},
                                {"encoder.layer.0.mlp.fc2.bias", "D"},
                                {"encoder.layernorm.weight", "D"},
                                {"encoder.layernorm.bias", "D"},
                                {"predictor.proj.weight", "DC"},
                                {0}};
#define DINOV2_FACEBOOK                                                                                                \
    {"cls_token", "11D"}, {"pos_embed", "1ND"}, {"mask_token", "1D"}, {"patch_embed.proj.weight", "DCPP"},             \
        {"patch_embed.proj.bias", "D"}, {"blocks.0.norm1.weight", "D"}, {"blocks.0.norm1.bias", "D"},                  \
        {"blocks.0.attn.qkv.weight", "QD"}, {"blocks.0.attn.qkv.bias", "Q"}, {"blocks.0.attn.proj.weight", "DD"},      \
        {"blocks.0.attn.proj.bias", "D"}, {"blocks.0.ls1.gamma", "D"}, {"blocks.0.norm2.weight", "D"},                 \
        {"blocks.0.norm2.bias", "D"}, {"blocks.0.ls2.gamma", "D"}, {"norm.weight", "D"}, {                             \
        "norm.bias", "D"                                                                                               \
    }
#define MLP(layer)                                                                                                     \
    {layer ".mlp.fc1.weight", "HD"}, {layer ".mlp.fc1.bias", "H"}, {layer ".mlp.fc2.weight", "DH"}, {                  \
        layer ".mlp.fc2.bias", "D"                                                                                     \
    }
static const part dinov2_fb[] = {DINOV2_FACEBOOK, MLP("blocks.0"), {0}};
static const part dinov2_fb_registers[] = {DINOV2_FACEBOOK, MLP("blocks.0"), {"register_tokens", "1RD"}, {0}};
static const part dinov2_fb_gated[] = {DINOV2_FACEBOOK,
                                       {"blocks.0.mlp.w12.weight", "GD"},
                                       {"blocks.0.mlp.w12.bias", "G"},
                                       {"blocks.0.mlp.w3.weight", "DH"},
                                       {"blocks.0.mlp.w3.bias", "D"},
                                       {0}};
static const part dinov2_hf[] = {{"embeddings.cls_token", "11D"},
                                 {"embeddings.position_embeddings", "1ND"},
                                 {"embeddings.mask_token", "1D"},
                                 {"embeddings.register_tokens", "1RD"},
                                 {"embeddings.patch_embeddings.projection.weight", "DCPP"},
                                 {"embeddings.patch_embeddings.projection.bias", "D"},
                                 {"encoder.layer.0.norm1.weight", "D"},
                                 {"encoder.layer.0.norm1.bias", "D"},
                                 {"encoder.layer.0.attention.attention.query.weight", "DD"},
                                 {"encoder.layer.0.attention.attention.query.bias", "D"},
                                 {"encoder.layer.0.attention.attention.key.weight", "DD"},
                                 {"encoder.layer.0.attention.attention.key.bias", "D"},
                                 {"encoder.layer.0.attention.attention.value.weight", "DD"},
                                 {"encoder.layer.0.attention.attention.value.bias", "D"},
                                 {"encoder.layer.0.attention.output.dense.weight", "DD"},
                                 {"encoder.layer.0.attention.output.dense.bias", "D"},
                                 {"encoder.layer.0.layer_scale1.lambda1", "D"},
                                 {"encoder.layer.0.norm2.weight", "D"},
                                 {"encoder.layer.0.norm2.bias", "D"},
                                 MLP("encoder.layer.0"),
                                 {"encoder.layer.0.layer_scale2.lambda1", "D"},
                                 {"layernorm.weight", "D"},
                                 {"layernorm.bias", "D"},
                                 {0}};

typedef struct variety {
    const char *what;
    const vit_kind *kind;
    const part *parts;
    const char *prefix;
    int width, heads, patch, tubelet;
    int64_t hidden, leads;
} variety;

static const variety varieties[] = {
    {"VideoMAEv2-S, bare", &videomae_kind, opengvlab, "", 384, 6, 16, 2, 1536, 0},
    {"VideoMAEv2-B, hosted", &videomae_kind, opengvlab, "model.", 768, 12, 16, 2, 3072, 0},
    {"VideoMAEv2-L, pretrained", &videomae_kind, opengvlab, "encoder.", 1024, 16, 16, 2, 4096, 0},
    {"VideoMAEv2-H, from DDP", &videomae_kind, opengvlab, "module.", 1280, 16, 16, 2, 5120, 0},
    {"VideoMAEv2-giant", &videomae_kind, opengvlab, "encoder.", 1408, 16, 14, 2, 6144, 0},
    {"VideoMAE-B, transformers", &videomae_kind, videomae_hf, "", 768, 12, 16, 2, 3072, 0},
    {"VideoMAE-L, transformers, with a head", &videomae_kind, videomae_hf, "videomae.", 1024, 16, 16, 2, 4096, 0},
    {"V-JEPA 2-L", &vjepa_kind, vjepa_hf, "", 1024, 16, 16, 2, 4096, 0},
    {"V-JEPA 2-H, with a head", &vjepa_kind, vjepa_hf, "vjepa2.", 1280, 16, 16, 2, 5120, 0},
    {"V-JEPA 2-g", &vjepa_kind, vjepa_hf, "", 1408, 22, 16, 2, 6144, 0},
    {"DINOv2-S, facebook", &dinov2_kind, dinov2_fb, "", 384, 6, 14, 1, 1536, 1},
    {"DINOv2-B with registers, facebook", &dinov2_kind, dinov2_fb_registers, "", 768, 12, 14, 1, 3072, 5},
    {"DINOv2-g, facebook", &dinov2_kind, dinov2_fb_gated, "", 1536, 24, 14, 1, 4096, 1},
    {"DINOv2-B with registers, transformers", &dinov2_kind, dinov2_hf, "", 768, 12, 14, 1, 3072, 5},
    {"DINOv2-L with registers, transformers, with a head", &dinov2_kind, dinov2_hf, "dinov2_with_registers.", 1024, 16,
     14, 1, 4096, 5},
};
enum { VARIETIES = sizeof varieties / sizeof *varieties };

static int64_t size_of(const variety *v, char letter) {
    switch (letter) {
    case 'D': return v->width;
    case 'Q': return 3 * (int64_t)v->width;
    case 'H': return v->hidden;
    case 'G': return 2 * v->hidden;
    case 'C': return 3;
    case 'T': return v->tubelet;
    case 'P': return v->patch;
    case 'N': return 17;
    case 'R': return 4;
    default: return 1;
    }
}

/* The file, of zeros, but for the name that starts with `without`. */
static ma_weights *file_of(const variety *v, const char *without) {
    enum { MOST = 32 };
    ma_named named[MOST];
    ma_err e = {0};
    int n = 0;
    for (const part *p = v->parts; p->name && n < MOST; p++) {
        int64_t shape[5];
        int nd = 0;
        for (const char *c = p->shape; *c; c++) shape[nd++] = size_of(v, *c);
        if (without && !strncmp(p->name, without, strlen(without))) continue;
        named[n].name = ma_format("%s%s", v->prefix, p->name);
        if (ma_array_new(&named[n].a, MA_F16, nd, shape, &e)) break;
        n++;
    }
    ma_weights *w = !e.reason && !ma_weights_save(path, named, n, NULL, &e) ? ma_weights_open(path, &e) : NULL;
    if (!w) printf("# %s\n", e.text);
    for (int k = 0; k < n; k++) {
        free((char *)named[k].name);
        ma_array_free(&named[k].a);
    }
    return w;
}

/* Loads it in a plan, where shapes count and values do not. Returns the error's words. */
static const char *load(const variety *v, const vit_kind *kind, const char *without, bool *right) {
    static char words[480];
    char note[160];
    ma_err e = {0};
    ma_device *dev = ma_device_open("cpu", true, note, &e);
    ma_ctx *c = ma_ctx_new(dev, &e);
    ma_weights *w = file_of(v, without);
    vit *net = w ? vit_load(kind, c, w, 0, false) : NULL;
    vit_size s = net ? vit_sizes(net) : (vit_size){0};
    *right = net && s.depth == 1 && s.width == v->width && s.heads == v->heads && s.patch == v->patch &&
             s.tubelet == v->tubelet && net->hidden == v->hidden && net->leads == v->leads;
    snprintf(words, sizeof words, "%s", ma_ctx_err(c)->text);
    vit_free(net);
    ma_weights_close(w);
    ma_ctx_free(c);
    ma_device_close(dev);
    return words;
}

static void told_apart(void) {
    const vit_kind *kinds[] = {&videomae_kind, &vjepa_kind, &dinov2_kind};
    for (int k = 0; k < VARIETIES; k++) {
        const variety *v = &varieties[k];
        bool right, wrong;
        const char *words = load(v, v->kind, NULL, &right);
        ok(right, "%s: %d heads, patch %d %s", v->what, v->heads, v->patch, words);
        if (v->width > 384 && k != 5 && k != 7 && k != 13) continue; /* one file of each naming will do */
        for (int i = 0; i < 3; i++) {
            if (kinds[i] == v->kind) continue;
            words = load(v, kinds[i], NULL, &wrong);
            ok(!wrong && strstr(words, kinds[i]->name) && strstr(words, v->prefix), "%s is no %s: %s", v->what,
               kinds[i]->name, words);
        }
    }
    bool right;
    const char *words = load(&varieties[0], &videomae_kind, "blocks.0.attn.proj.weight", &right);
    ok(!right && strstr(words, "blocks.0.attn.proj.weight"), "a missing array is named: %s", words);
    words = load(&varieties[10], &dinov2_kind, "pos_embed", &right);
    ok(!right && strstr(words, "pos_embed"), "so are missing positions: %s", words);
    words = load(&varieties[0], &videomae_kind, "blocks.", &right);
    ok(!right && strstr(words, "blocks.0."), "and missing blocks: %s", words);
}

/* ---- settings */

typedef struct world {
    ma_device *dev;
    ma_ctx *ctx;
} world;

enum { FRAMES = 5, HEIGHT = 8, WIDTH = 12 };

static ma_clip clip_of(int64_t frames, const uint8_t *rgb) {
    return (ma_clip){.frames = frames, .height = HEIGHT, .width = WIDTH, .rgb = (uint8_t *)rgb};
}

/* The member of one clip, or of a caption, as fp32 from what is in the sample; NULL: none. n: its elements. */
static float *run(const world *w, const char *text, const ma_clip *clip, int64_t *n, ma_err *e) {
    static const char caption[] = "A ball, and a box.";
    ma_clip_size size = {clip->frames, clip->height, clip->width, 0};
    encoder *x = encoder_open(w->ctx, text, &size, 1, e);
    encoder_item item = {0}, *items[] = {&item};
    ma_sample *s = ma_sample_new("one");
    ma_array a = {0};
    float *out = NULL;
    if (x && !encoder_take(x, &(encoder_source){"one", clip, caption, strlen(caption)}, &item, e) &&
        !encoder_run(x, items, 1, 1, e) && !encoder_put(x, &item, s, e) &&
        !ma_sample_array(s, encoder_member(x), &a, e))
        out = ma_array_f32(&a, e);
    *n = out ? (int64_t)ma_array_count(&a) : 0;
    ma_array_free(&a);
    ma_sample_free(s);
    encoder_drop(&item);
    encoder_close(x);
    return out;
}

static bool same(const world *w, const char *a, const ma_clip *of_a, const char *b, const ma_clip *of_b) {
    ma_err e = {0};
    int64_t n, m;
    float *x = run(w, a, of_a, &n, &e), *y = run(w, b, of_b, &m, &e);
    bool equal = x && y && n == m && rel_error(x, y, (size_t)n) < 2e-4; /* rounded to f16 */
    if (e.reason) printf("# %s\n", e.text);
    ma_release(x);
    ma_release(y);
    return equal;
}

static void chosen(const world *w) {
    uint8_t rgb[FRAMES * HEIGHT * WIDTH * 3], two[2 * HEIGHT * WIDTH * 3];
    const size_t frame = HEIGHT * WIDTH * 3;
    for (size_t i = 0; i < sizeof rgb; i++) rgb[i] = (uint8_t)(i * 37 + i / 11 * 5);
    memcpy(two, rgb + frame, frame);
    memcpy(two + frame, rgb + 3 * frame, frame);
    ma_clip clip = clip_of(FRAMES, rgb), few = clip_of(2, two), black = clip_of(FRAMES, rgb);
    ok(same(w, "videomae=random:16x2,patch=4,frames=2", &clip, "videomae=random:16x2,patch=4", &few),
       "frames=2 of 5, the first left over: the second and the fourth");
    ok(same(w, "vjepa2=random:16x2,patch=4,skip=1,frames=2,heads=2", &clip, "vjepa2=random:16x2,patch=4,heads=2", &few),
       "the same for V-JEPA 2");
    ok(!same(w, "dinov2=random:16x2,patch=4,skip=2,frames=2", &clip, "dinov2=random:16x2,patch=4", &few),
       "another skip=, other frames");
    ok(!same(w, "dinov2=random:16x2,patch=4,layer=1", &clip, "dinov2=random:16x2,patch=4", &clip), "layer=1 of 2");
    ok(!same(w, "dinov2=random:16x2,patch=4,layer=2", &clip, "dinov2=random:16x2,patch=4", &clip),
       "layer=2 of 2 is without the last norm");
    ok(!same(w, "videomae=random:16x2,patch=4,norm=unit", &clip, "videomae=random:16x2,patch=4", &clip), "norm=unit");
    uint8_t dark[sizeof rgb] = {0}, large[FRAMES * 4 * HEIGHT * WIDTH * 3] = {0};
    black.rgb = dark;
    ma_clip grown = {.frames = FRAMES, .height = 2 * HEIGHT, .width = 2 * WIDTH, .rgb = large};
    ok(same(w, "videomae=random:16x1,patch=4,size=16x24", &black, "videomae=random:16x1,patch=4", &grown),
       "size=16x24: resized");
}

/* Tokens against the network on a clip that was normalised by hand. */
static void normalised(const world *w) {
    enum { COUNT = 2 * HEIGHT * WIDTH * 3 };
    static const double mean[3] = {0.485, 0.456, 0.406}, deviation[3] = {0.229, 0.224, 0.225};
    uint8_t rgb[COUNT];
    float clip[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        rgb[i] = (uint8_t)(i * 37 + i / 11 * 5);
        clip[i] = (float)((rgb[i] / 255.0 - mean[i % 3]) / deviation[i % 3]);
    }
    ma_err e = {0};
    int64_t n;
    ma_clip seen = clip_of(2, rgb);
    float *got = run(w, "videomae=random:16x1,patch=4", &seen, &n, &e), *want = ma_alloc((size_t)n, sizeof *want);
    vit *net = vit_random(&videomae_kind, w->ctx, &(vit_size){1, 16, 0, 4, 2}, 1, false);
    ma_tensor *out = vit_forward(w->ctx, net, ma_input(w->ctx, clip, MA_SHAPE(1, 2, HEIGHT, WIDTH, 3)), 0);
    bool fits = got && out && ma_count(out) == n && !ma_get(w->ctx, out, want);
    double error = fits ? rel_error(got, want, (size_t)n) : 1;
    ok(error < 1e-3, "pixels are normalised by ImageNet's mean and deviation: %.1e %s", error, e.text);
    ma_release(got);
    ma_release(want);
    vit_free(net);
    ma_reset(w->ctx);
}

/* The autoencoder's member against the network itself: (2C,T,h,w), the log-variance clamped. */
static void latent(const world *w) {
    enum { T = 9, H = 16, W = 24, PLACES = 3 * H / 8 * (W / 8) };
    static uint8_t rgb[T * H * W * 3];
    static float pixels[T * H * W * 3];
    for (size_t i = 0; i < sizeof rgb; i++) {
        rgb[i] = (uint8_t)(i * 37 + i / 11 * 5);
        pixels[i] = (float)rgb[i] / 127.5f - 1;
    }
    ma_clip clip = {.frames = T, .height = H, .width = W, .rgb = rgb};
    ma_err e = {0};
    int64_t n;
    float *got = run(w, "vae=random:8", &clip, &n, &e);
    vae_config c;
    vae_2b(&c);
    for (int k = 0; k < c.blocks; k++) c.channels[k] /= 16;
    c.groups = 8;
    ma_params *p = ma_params_new(w->ctx, NULL, false, 1);
    vae *net = vae_make(p, &c, VAE_ENCODER);
    ma_tensor *z = vae_encode(w->ctx, net, ma_input(w->ctx, pixels, MA_SHAPE(1, T, H, W, 3)), NULL);
    float *want = ma_alloc((size_t)n, sizeof *want), *all = ma_alloc((size_t)n, sizeof *all);
    bool fits = got && z && ma_count(z) == n && n == 32 * PLACES && !ma_get(w->ctx, z, all);
    for (int64_t k = 0; fits && k < n; k++) {
        float v = all[k % PLACES * 32 + k / PLACES];
        want[k] = k / PLACES < 16 ? v : v < -30 ? -30 : v > 20 ? 20 : v;
    }
    double error = fits ? rel_error(got, want, (size_t)n) : 1;
    ok(error < 1e-3, "vae: means, then log-variances, channels first: %.1e %s", error, e.text);
    float *tiled = run(w, "vae=random:8,tile=48x40", &clip, &n, &e);
    ok(tiled && !memcmp(tiled, got, (size_t)n * sizeof *got), "tiles larger than the frame are no tiles %s", e.text);
    ma_release(tiled);
    ma_release(got);
    ma_release(want);
    ma_release(all);
    vae_free(net);
    ma_params_free(p);
    ma_reset(w->ctx);
}

static void embedding(const world *w) {
    ma_clip none = {.frames = 1, .height = 1, .width = 1};
    ma_err e = {0};
    int64_t n, m;
    float *whole = run(w, "t5=random:16x2", &none, &n, &e), *cut = run(w, "t5=random:16x2,length=8", &none, &m, &e);
    ok(whole && n == 226 * 16 && cut && m == 8 * 16, "t5: 226 tokens, or as many as asked for %s", e.text);
    ok(whole && cut && rel_error(cut, whole, (size_t)m) > 1e-2, "of other tokens, another embedding");
    ma_release(whole);
    ma_release(cut);
}

/* What comes out in half precision must be numbers. */
static void not_finite(void) {
    static const uint16_t bad[] = {0x7c00, 0xfc00, 0x7e00, 0xfe01};
    bool good = true;
    for (int at = 0; at < 3000; at += 999)
        for (int k = 0; k < 4; k++) {
            ma_err e = {0};
            ma_sample *s = ma_sample_new("k");
            char where[32];
            snprintf(where, sizeof where, "k.x.npy: element %d ", at);
            for (int whole = 1; whole >= 0 && good; whole--) {
                ma_array a = {.type = MA_F16, .nd = 1, .n = {3000}};
                ma_buf npy;
                good = !ma_npy_begin(&a, &npy, &e);
                memset(a.data, 0xfb, ma_array_bytes(&a)); /* near the largest */
                if (!whole) ((uint16_t *)a.data)[at] = bad[k];
                const bool put = good && !ma_sample_put_half(s, "x.npy", &a, &npy, &e);
                good = put == whole && (npy.data == NULL) == put; /* taken over, or still ours */
                ma_buf_free(&npy);
            }
            good = good && e.reason == MA_NOTFINITE && strstr(e.text, where);
            ma_sample_free(s);
        }
    ok(good, "NaN and infinity are found in half precision, and told where");
}

static void refused(const world *w) {
    static const char *const texts[][2] = {
        {"tape=1", "videomae=…"},
        {"videomae", "none of"},
        {"videomae=random:16", "random:WIDTHxDEPTH"},
        {"videomae=random:16x1,colour=1", "unknown setting 'colour'"},
        {"videomae=random:16x1,norm=none", "imagenet"},
        {"videomae=random:16x1,patch=4,size=10", "AxB"},
        {"videomae=random:16x1,patch=4,size=9x12", "9x12"},
        {"videomae=random:16x1,patch=4,frames=3", "3x8x12"},
        {"videomae=random:16x1,patch=4,frames=6", "frames=6"},
        {"videomae=random:16x1,patch=4,layer=2", "layer=2"},
        {"vjepa2=random:16x1,patch=4,heads=16", "in pairs"},
        {"pixel=4,norm=unit", "unknown setting"},
        {"pixel=3", "divide"},
        {"vae=random:12", "multiple of 8"},
        {"vae=random:8,size=12x8", "size=16x8"},
        {"vae=random:8,tile=40", "AxB"},
        {"vae=random:8,norm=unit", "unknown setting 'norm'; there are: skip frames size tile"},
        {"t5=random", "random:WIDTHxDEPTH"},
        {"t5=random:12x1", "multiple of 8"},
        {"t5=random:16x1,length=0", "length"},
        {"t5=random:16x1,skip=1", "unknown setting"},
    };
    uint8_t rgb[FRAMES * HEIGHT * WIDTH * 3] = {0};
    ma_clip clip = clip_of(FRAMES, rgb);
    char note[160];
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        ma_err e = {0};
        int64_t n;
        world own = {w->dev,
                     ma_ctx_new(ma_device_open("cpu", false, note, &e), &e)}; /* a context keeps its first error */
        float *out = run(&own, texts[k][0], &clip, &n, &e);
        ok(!out && e.reason == MA_USAGE && strstr(e.text, texts[k][1]), "%s: %s", texts[k][0], e.text);
        ma_release(out);
        ma_device *dev = ma_ctx_device(own.ctx);
        ma_ctx_free(own.ctx);
        ma_device_close(dev);
    }
}

int main(void) {
    char note[160];
    ma_err e = {0};
    int fd = mkstemps(path, 12);
    if (fd >= 0) close(fd);
    world w = {.dev = ma_device_open("cpu", false, note, &e)};
    w.ctx = ma_ctx_new(w.dev, &e);
    told_apart();
    chosen(&w);
    normalised(&w);
    latent(&w);
    embedding(&w);
    not_finite();
    refused(&w);
    ma_ctx_free(w.ctx);
    ma_device_close(w.dev);
    unlink(path);
    return tap_done();
}
