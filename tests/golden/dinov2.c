/* golden/dinov2: the network against transformers' Dinov2Model and Dinov2WithRegistersModel, under their names and
 * facebook's (dinov2.py). */
#include "../../common/models/dinov2.h"
#include "golden.h"

static void check(const ma_weights *fixture, const char *name) {
    golden g = golden_begin(fixture, name);
    vit *net = vit_load(&dinov2_kind, g.ctx, g.weights, (int)golden_number(&g, "heads"), false);
    if (ok(net, "%s: loads %s", name, ma_ctx_err(g.ctx)->text)) {
        ma_tensor *tokens = vit_forward(g.ctx, net, golden_tensor(&g, "x"), 0);
        int64_t grid[3];
        golden_list(&g, "grid", grid);
        ok(tokens && tokens->nd == 5 && !memcmp(tokens->n + 1, grid, sizeof grid), "%s: shape of the tokens", name);
        golden_check(&g, tokens, "tokens", 1);
        golden_check(&g, vit_forward(g.ctx, net, golden_tensor(&g, "x"), 1), "block1", 1);
    }
    vit_free(net);
    golden_end(&g);
}

int main(void) {
    ma_weights *fixture = golden_open("tests/golden/dinov2.safetensors");
    static const char *const names[] = {"transformers",       "transformers-wide", "transformers-registers",
                                        "transformers-gated", "facebook",          "facebook-registers",
                                        "facebook-gated"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) check(fixture, names[k]);
    ma_weights_close(fixture);
    return tap_done();
}
