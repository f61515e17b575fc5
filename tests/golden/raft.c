/* golden/raft: optical flow against princeton-vl's RAFT and torchvision's, large and small (raft.py). */
#include "../../common/models/raft.h"
#include "golden.h"

/* Inputs a and b, in bytes, as a clip of two frames: (1,2,H,W,3). */
static ma_tensor *frames_of(const golden *g) {
    ma_array a[2] = {golden_input(g, "a"), golden_input(g, "b")};
    ma_tensor *t = ma_new(g->ctx, MA_U8, MA_SHAPE(1, 2, a->n[2], a->n[3], 3));
    size_t count = ma_array_count(a);
    uint8_t *rgb = ma_alloc(2 * count, 1);
    for (size_t i = 0; i < 2 * count; i++) rgb[i] = (uint8_t)lrintf(((const float *)a[i / count].data)[i % count]);
    ma_put_raw(g->ctx, t, rgb);
    ma_release(rgb);
    for (int k = 0; k < 2; k++) ma_array_free(&a[k]);
    return t;
}

static void check(const ma_weights *fixture, const char *name) {
    golden g = golden_begin(fixture, name);
    raft *net = raft_load(g.ctx, g.weights);
    if (ok(net, "%s: loads %s", name, ma_ctx_err(g.ctx)->text)) {
        const char *flavour = raft_flavour(net);
        ok(strstr(flavour, strstr(name, "small") ? "small" : "large") &&
               strstr(flavour, strstr(name, "torchvision") ? "torchvision" : "princeton"),
           "%s: told as %s", name, flavour);
        ma_tensor *flow = raft_between(g.ctx, net, frames_of(&g), 1, 0, 1, (int)golden_number(&g, "updates"));
        golden_check(&g, flow, "flow", (int64_t)golden_number(&g, "every"));
    }
    raft_free(net);
    golden_end(&g);
}

int main(void) {
    ma_weights *fixture = golden_open("tests/golden/raft.safetensors");
    check(fixture, "princeton-large");
    check(fixture, "princeton-small");
    check(fixture, "torchvision-large");
    check(fixture, "torchvision-small");
    ma_weights_close(fixture);
    return tap_done();
}
