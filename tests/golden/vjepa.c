/* golden/vjepa: the encoder against transformers' VJEPA2Model (vjepa.py). */
#include "../../common/models/vjepa.h"
#include "golden.h"

static void check(const ma_weights *fixture, const char *name) {
    golden g = golden_begin(fixture, name);
    vit *net = vit_load(&vjepa_kind, g.ctx, g.weights, (int)golden_number(&g, "heads"), false);
    if (ok(net, "%s: loads %s", name, ma_ctx_err(g.ctx)->text)) {
        ma_tensor *tokens = vit_forward(g.ctx, net, golden_tensor(&g, "x"), 0);
        int64_t grid[3], every = (int64_t)golden_number(&g, "every");
        golden_list(&g, "grid", grid);
        ok(tokens && tokens->nd == 5 && !memcmp(tokens->n + 1, grid, sizeof grid), "%s: shape of the tokens", name);
        golden_check(&g, tokens, "tokens", every);
        golden_check(&g, vit_forward(g.ctx, net, golden_tensor(&g, "x"), 1), "block1", every);
    }
    vit_free(net);
    golden_end(&g);
}

int main(void) {
    ma_weights *fixture = golden_open("tests/golden/vjepa.safetensors");
    check(fixture, "square");
    check(fixture, "wide");
    ma_weights_close(fixture);
    return tap_done();
}
