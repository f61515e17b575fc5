/* golden/raft: optical flow against princeton-vl's RAFT and torchvision's, large and small (raft.py). */
#include "../../common/models/raft.h"
#include "golden.h"

static void check(const ma_weights *fixture, const char *name) {
    golden g = golden_begin(fixture, name);
    raft *net = raft_load(g.ctx, g.weights);
    if (ok(net, "%s: loads %s", name, ma_ctx_err(g.ctx)->text)) {
        const char *flavour = raft_flavour(net);
        ok(strstr(flavour, strstr(name, "small") ? "small" : "large") &&
               strstr(flavour, strstr(name, "torchvision") ? "torchvision" : "princeton"),
           "%s: told as %s", name, flavour);
        ma_tensor *flow =
            raft_forward(g.ctx, net, golden_tensor(&g, "a"), golden_tensor(&g, "b"), (int)golden_number(&g, "updates"));
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
