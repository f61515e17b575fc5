/* golden/videomae: the encoder against transformers' VideoMAEModel and VideoREPA's VisionTransformer (videomae.py). */
#include "../../common/models/videomae.h"
#include "golden.h"

static void check(const ma_weights *fixture, const char *name) {
    golden g = golden_begin(fixture, name);
    int heads = (int)golden_number(&g, "heads");
    vit *net = vit_load(&videomae_kind, g.ctx, g.weights, heads, false);
    if (ok(net, "%s: loads %s", name, ma_ctx_err(g.ctx)->text)) {
        vit_size s = vit_sizes(net);
        ok(s.depth == 2 && s.width == 64 && s.heads == heads && s.patch == golden_number(&g, "patch") && s.tubelet == 2,
           "%s: sizes are read off the weights", name);
        ma_tensor *tokens = vit_forward(g.ctx, net, golden_tensor(&g, "x"), 0);
        int64_t grid[3];
        golden_list(&g, "grid", grid);
        ok(tokens && tokens->nd == 5 && !memcmp(tokens->n + 1, grid, sizeof grid), "%s: shape of the tokens", name);
        golden_check(&g, tokens, "tokens", (int64_t)golden_number(&g, "every"));
    }
    vit_free(net);
    golden_end(&g);
}

int main(void) {
    ma_weights *fixture = golden_open("tests/golden/videomae.safetensors");
    check(fixture, "transformers");
    check(fixture, "transformers-small");
    check(fixture, "opengvlab");
    check(fixture, "opengvlab-interpolated");
    check(fixture, "opengvlab-moalign");
    check(fixture, "opengvlab-giant");
    ma_weights_close(fixture);
    return tap_done();
}
