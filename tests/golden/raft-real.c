/* golden/raft-real: RAFT-small with the published weights on real scenes (../shared/assets or $SHARED/assets): the mean
 * end-point error against the true flow must be that of the original code within 0.01 pixels. Slow: eight runs over
 * images of 300,000 pixels and more; left out with QUICK=1. */
#include "../../common/file.h"
#include "../../common/models/raft.h"
#include "../../common/video.h"
#include "../tap.h"

#include <archive.h>
#include <archive_entry.h>
#include <string.h>
#include <unistd.h>

enum { UPDATES = 2, UNKNOWN = 1000000000 }; // in a .flo file, values above mark pixels whose flow is not known

/* The original code's results, fp32 on a GPU, padded "sintel". */
typedef struct scene {
    const char *name, *frame[2], *flow;
    double error[UPDATES];
} scene;

static const int updates[UPDATES] = {12, 20};
static const scene scenes[] = {
    {"RubberWhale", {"frame10.png", "frame11.png"}, "flow10.flo.xz", {0.3199, 0.3202}},
    {"Grove2", {"frame10.png", "frame11.png"}, "flow10.flo.xz", {0.3551, 0.3486}},
    {"sintel-easy", {"frame_0002.png", "frame_0003.png"}, "flow_0002.flo.xz", {0.2714, 0.2693}},
    {"sintel-hard", {"frame_0002.png", "frame_0003.png"}, "flow_0002.flo.xz", {4.4314, 3.7988}},
};

static int read_frame(const char *path, ma_clip *out, ma_err *e) {
    ma_buf bytes = {0};
    if (ma_read_file(path, 1 << 24, &bytes, e)) return -1;
    int rc = ma_image_read(bytes.data, bytes.size, path, out, e);
    ma_buf_free(&bytes);
    return rc;
}

/* The u, v pairs of an xz-compressed .flo of the size h×w (ma_release). */
static float *read_flow(const char *path, int64_t h, int64_t w, ma_err *e) {
    struct archive *a = archive_read_new();
    struct archive_entry *entry;
    size_t bytes = (size_t)(h * w) * 2 * sizeof(float);
    struct {
        float magic;
        int32_t width, height;
    } head;
    float *uv = ma_alloc(bytes, 1);
    archive_read_support_filter_xz(a);
    archive_read_support_format_raw(a);
    bool good = uv && archive_read_open_filename(a, path, 1 << 16) == ARCHIVE_OK &&
                archive_read_next_header(a, &entry) == ARCHIVE_OK &&
                archive_read_data(a, &head, sizeof head) == sizeof head && head.magic == 202021.25f &&
                head.width == w && head.height == h && archive_read_data(a, uv, bytes) == (la_ssize_t)bytes;
    if (!good) {
        ma_fail(e, MA_CORRUPT, "%s: not a flow of %dx%d: %s", path, (int)h, (int)w, archive_error_string(a));
        ma_release(uv);
        uv = NULL;
    }
    archive_read_free(a);
    return uv;
}

/* Mean distance over the pixels whose true flow is known. flow is padded, h×w lies in it at pad. */
static double end_point_error(const float *flow, const int64_t pad[4], const float *truth, int64_t h, int64_t w) {
    double sum = 0;
    int64_t known = 0;
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            const float *t = truth + 2 * (y * w + x), *f = flow + 2 * ((y + pad[0]) * pad[3] + x + pad[1]);
            if (fabsf(t[0]) > UNKNOWN || fabsf(t[1]) > UNKNOWN) continue;
            sum += hypot((double)f[0] - t[0], (double)f[1] - t[1]);
            known++;
        }
    return sum / (double)known;
}

/* Error of each number of updates; infinity where something failed, which is printed. */
static void measure(ma_ctx *c, const raft *net, const char *dir, const scene *s, double error[UPDATES]) {
    ma_clip frame[2] = {0};
    ma_err e = {0};
    char *path[3] = {ma_format("%s/flow/%s/%s", dir, s->name, s->frame[0]),
                     ma_format("%s/flow/%s/%s", dir, s->name, s->frame[1]),
                     ma_format("%s/flow/%s/%s", dir, s->name, s->flow)};
    float *truth = NULL, *out = NULL;
    uint8_t *in = NULL; // (2,PH,PW,3)
    int64_t pad[4];
    if (!read_frame(path[0], &frame[0], &e) && !read_frame(path[1], &frame[1], &e))
        truth = read_flow(path[2], frame[0].height, frame[0].width, &e);
    if (truth) {
        raft_padding(frame[0].height, frame[0].width, pad);
        in = ma_alloc((size_t)(pad[2] * pad[3]), 2 * 3);
        out = ma_alloc((size_t)(pad[2] * pad[3]), 2 * sizeof *out);
        for (int k = 0; k < 2; k++)
            raft_pad(frame[k].rgb, frame[k].height, frame[k].width, in + k * pad[2] * pad[3] * 3);
    }
    for (int k = 0; k < UPDATES; k++) {
        error[k] = INFINITY;
        if (!truth) continue;
        ma_tensor *frames = ma_new(c, MA_U8, MA_SHAPE(1, 2, pad[2], pad[3], 3));
        ma_put_raw(c, frames, in);
        ma_tensor *flow = raft_between(c, net, frames, 1, 0, 1, updates[k]);
        if (flow && !ma_get(c, flow, out)) error[k] = end_point_error(out, pad, truth, frame[0].height, frame[0].width);
        ma_reset(c);
    }
    if (e.reason) printf("# %s\n", e.text);
    for (int k = 0; k < 3; k++) free(path[k]);
    for (int k = 0; k < 2; k++) ma_clip_free(&frame[k]);
    ma_release(in);
    ma_release(truth);
    ma_release(out);
}

static bool is_there(const char *dir, const scene *s) {
    char *path = ma_format("%s/flow/%s", dir, s->name);
    const bool there = path && !access(path, R_OK);
    free(path);
    return there;
}

static void check(const char *dir, const char *weights_path) {
    char note[160];
    ma_err e = {0};
    ma_weights *weights = ma_weights_open(weights_path, &e);
    const char *name = getenv("MA_TEST_DEVICE");
    ma_device *device = ma_device_open(name ? name : "cpu", false, note, &e);
    ma_ctx *c = device ? ma_ctx_new(device, &e) : NULL;
    if (!c) {
        ok(false, "%s", e.text);
        return;
    }
    raft *net = weights ? raft_load(c, weights) : NULL;
    if (ok(net, "loads %s", net ? raft_flavour(net) : weights ? ma_ctx_err(c)->text : e.text))
        for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++) {
            double error[UPDATES], start = ma_now();
            if (!is_there(dir, &scenes[i])) {
                printf("# %s is not there: skipped\n", scenes[i].name);
                continue;
            }
            measure(c, net, dir, &scenes[i], error);
            for (int k = 0; k < UPDATES; k++)
                ok(fabs(error[k] - scenes[i].error[k]) <= 0.01, "%s, %d updates: %.4f pixels, want %.4f",
                   scenes[i].name, updates[k], error[k], scenes[i].error[k]);
            printf("# %.1f s %s\n", ma_now() - start, ma_ctx_err(c)->text);
        }
    raft_free(net);
    ma_ctx_free(c);
    ma_device_close(device);
    ma_weights_close(weights);
}

int main(void) {
    const char *shared = getenv("SHARED"), *quick = getenv("QUICK");
    char *dir = ma_format("%s/assets", shared ? shared : "../shared");
    char *weights = ma_format("%s/raft/raft-small.pth", dir);
    bool some = false;
    for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++) some = some || is_there(dir, &scenes[i]);
    if (quick && *quick)
        skip("slow, and QUICK is set");
    else if (access(weights, R_OK))
        skip("no published weights here");
    else if (!some)
        skip("no scenes with known flow here");
    else
        check(dir, weights);
    free(weights);
    free(dir);
    return tap_done();
}
