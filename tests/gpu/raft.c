/* RAFT in tf32, f16 and bf16 on the GPU against fp32 there, on real scenes (../shared/assets or $SHARED/assets) at full
 * size, 12 updates: the mean end-point difference is 0.05 pixels at most.
 *
 *     raft [FOLDER]      FOLDER/SCENE.flo: PyTorch's fp32 flows (raft_full.py), which ours must then be as near to
 *
 * RAFT-large has the random weights of the golden test, but for the flow head, which is a sixteenth: flows are then as
 * long as those of the scenes, and what 16 bits lose is in proportion to them. RAFT-small has the published weights.
 * Trap: sintel-hard is left out. A tenth of a grey level of noise moves its flow by half a pixel, in fp32.
 */
#include "../../common/file.h"
#include "../../common/flow.h"
#include "../../common/flow_file.h"
#include "../../common/models/raft.h"
#include "../../common/video.h"
#include "../golden/golden.h"

enum { UPDATES = 12, SCENES = 3, KINDS = 4 };
static const char *const scenes[SCENES][3] = {{"RubberWhale", "frame10.png", "frame11.png"},
                                              {"Grove2", "frame10.png", "frame11.png"},
                                              {"sintel-easy", "frame_0002.png", "frame_0003.png"}};
static const struct {
    const char *name;
    ma_type type;
    bool tf32;
} kinds[KINDS] = {{"f32", MA_F32, false}, {"tf32", MA_F32, true}, {"f16", MA_F16, false}, {"bf16", MA_BF16, false}};

/* Two frames, padded: (2,H,W,3). */
typedef struct pair {
    uint8_t *rgb;
    int64_t h, w, pad[4];
} pair;

static pair read_pair(const char *assets, const char *const scene[3]) {
    pair p = {0};
    ma_err e = {0};
    for (int k = 0; k < 2; k++) {
        char *path = ma_format("%s/flow/%s/%s", assets, scene[0], scene[1 + k]);
        ma_buf bytes = {0};
        ma_clip clip = {0};
        golden_need(!ma_read_file(path, 1 << 24, &bytes, &e) && !ma_image_read(bytes.data, bytes.size, path, &clip, &e),
                    path, &e);
        if (!k) {
            p = (pair){.h = clip.height, .w = clip.width};
            raft_padding(p.h, p.w, p.pad);
            p.rgb = ma_alloc((size_t)(p.pad[2] * p.pad[3]), 2 * 3);
        }
        raft_pad(clip.rgb, p.h, p.w, p.rgb + k * p.pad[2] * p.pad[3] * 3);
        ma_clip_free(&clip);
        ma_buf_free(&bytes);
        free(path);
    }
    return p;
}

/* Its flow (h,w,2), without the padding; ma_release. NULL: it failed, which was said. */
static float *flow_of(ma_device *dev, const ma_weights *weights, int kind, const pair *p) {
    ma_err e = {0};
    int64_t h = p->pad[2], w = p->pad[3];
    ma_ctx *c = ma_ctx_new(dev, &e);
    golden_need(c, "context", &e);
    ma_set_type(c, kinds[kind].type);
    if (dev->tf32) dev->tf32(dev, kinds[kind].tf32);
    raft *net = raft_load(c, weights);
    float *all = ma_alloc((size_t)(h * w), 2 * sizeof *all), *cut = ma_alloc((size_t)(p->h * p->w), 2 * sizeof *cut);
    ma_tensor *frames = ma_new(c, MA_U8, MA_SHAPE(1, 2, h, w, 3));
    ma_put_raw(c, frames, p->rgb);
    ma_tensor *t = net ? raft_between(c, net, frames, 1, 0, 1, UPDATES) : NULL;
    bool good = t && !ma_get(c, t, all);
    for (int64_t y = 0; good && y < p->h; y++)
        memcpy(cut + y * p->w * 2, all + ((y + p->pad[0]) * w + p->pad[1]) * 2, (size_t)p->w * 2 * sizeof *cut);
    if (!good) printf("# %s\n", ma_ctx_err(c)->text);
    raft_free(net);
    ma_ctx_free(c);
    ma_release(all);
    if (dev->tf32) dev->tf32(dev, false);
    if (good) return cut;
    ma_release(cut);
    return NULL;
}

static double mean_difference(const float *a, const float *b, int64_t n) {
    ma_flow_error e = {0};
    ma_flow_compare(a, b, NULL, n, &e);
    return e.sum / (double)e.pixels;
}

/* PyTorch's flow, or NULL: not asked for. */
static float *theirs(const char *folder, const char *scene) {
    if (!folder) return NULL;
    ma_err e = {0};
    ma_buf bytes = {0};
    ma_flow f = {0};
    char *path = ma_format("%s/%s.flo", folder, scene);
    golden_need(!ma_read_file(path, 1 << 26, &bytes, &e) && !ma_flow_read(bytes.data, bytes.size, path, &f, &e), path,
                &e);
    ma_release(f.valid);
    ma_buf_free(&bytes);
    free(path);
    return f.uv;
}

static void check(ma_device *dev, const ma_weights *weights, const char *name, const char *assets, const char *folder) {
    for (int s = 0; s < SCENES; s++) {
        pair p = read_pair(assets, scenes[s]);
        int64_t n = p.h * p.w;
        float *rest = ma_alloc((size_t)n, 2 * sizeof *rest), *want = flow_of(dev, weights, 0, &p);
        float *reference = theirs(folder, scenes[s][0]);
        if (ok(want, "%s, %s: runs", name, scenes[s][0]))
            printf("# flow of %.2f pixels in the mean\n", mean_difference(want, rest, n));
        for (int k = 0; want && k < KINDS; k++) {
            if (!dev->types[kinds[k].type] || (kinds[k].tf32 && !dev->tf32)) continue;
            float *got = k ? flow_of(dev, weights, k, &p) : want;
            double off = got ? mean_difference(got, want, n) : INFINITY;
            if (k) ok(off <= 0.05, "%s, %s: %s is %.4f pixels from f32", name, scenes[s][0], kinds[k].name, off);
            off = got && reference ? mean_difference(got, reference, n) : INFINITY;
            if (reference)
                ok(off <= (k ? 0.05 : 0.005), "%s, %s: %s is %.4f pixels from PyTorch's", name, scenes[s][0],
                   kinds[k].name, off);
            if (k) ma_release(got);
        }
        ma_release(want);
        ma_release(reference);
        ma_release(rest);
        ma_release(p.rgb);
    }
}

/* The golden test's weights, with a smaller flow head. */
static ma_weights *large_weights(void) {
    ma_weights *fixture = golden_open("tests/golden/raft.safetensors");
    cJSON *meta = cJSON_Parse(ma_weights_meta(fixture, "torchvision-large")), *p = cJSON_GetObjectItem(meta, "params");
    static const char *const head[] = {"update_block.flow_head.conv2.weight", "update_block.flow_head.conv2.bias"};
    for (int k = 0; k < 2; k++) {
        cJSON *mul = cJSON_GetArrayItem(cJSON_GetObjectItem(p, head[k]), 2);
        golden_need(mul, head[k], NULL);
        cJSON_SetNumberValue(mul, mul->valuedouble / 16);
    }
    ma_weights *w = golden_weights(p);
    cJSON_Delete(meta);
    ma_weights_close(fixture);
    return w;
}

int main(int argc, char **argv) {
    const char *shared = getenv("SHARED"), *name = getenv("MA_TEST_DEVICE");
    char note[160], *assets = ma_format("%s/assets", shared ? shared : "../shared");
    char *path = ma_format("%s/raft/raft-small.pth", assets);
    ma_err e = {0};
    ma_device *dev = ma_device_open(name ? name : "cuda", false, note, &e);
    if (access(path, R_OK)) {
        skip("no published weights and scenes here");
    } else if (ok(dev, "a GPU %s", e.text)) {
        ma_weights *large = large_weights(), *small = ma_weights_open(path, &e);
        check(dev, large, "RAFT-large", assets, argc > 1 ? argv[1] : NULL);
        check(dev, small, "RAFT-small", assets, NULL);
        ma_weights_close(large);
        ma_weights_close(small);
    }
    if (dev) ma_device_close(dev);
    free(path);
    free(assets);
    return tap_done();
}
