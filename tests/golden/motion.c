/* golden/motion: the motion head's projection, flow, training loss and gradients against plain torch.nn (motion.py). */
#include "../../common/models/motion.h"
#include "golden.h"

int main(void) {
    ma_weights *fixture = golden_open("tests/golden/motion.safetensors");
    golden g = golden_begin(fixture, "motion");
    ma_params *p = ma_params_new(g.ctx, g.weights, true, 0);
    motion_size size = {0};
    golden_list(&g, "flow", size.flow);
    motion *net = motion_make(p, &size);
    if (ok(net && !ma_params_end(p, NULL), "loads %s", ma_ctx_err(g.ctx)->text)) {
        int64_t want[3];
        golden_list(&g, "size", want);
        size = motion_sizes(net);
        ok(size.in == want[0] && size.hidden == want[1] && size.out == want[2], "sizes are read off the weights");
        ma_tensor *m = motion_project(g.ctx, net, golden_tensor(&g, "tokens"));
        ma_tensor *flow = motion_decode(g.ctx, net, m);
        ma_tensor *loss = ma_l1(g.ctx, flow, golden_tensor(&g, "target"));
        golden_check(&g, m, "m", 1);
        golden_check(&g, flow, "flow", 1);
        golden_check(&g, loss, "loss", 1);
        ma_zero_grads(g.ctx);
        ma_backward(g.ctx, loss, 1);
        golden_check_grads(&g, p, "l1", "l1");
    }
    motion_free(net);
    ma_params_free(p);
    golden_end(&g);
    ma_weights_close(fixture);
    return tap_done();
}
