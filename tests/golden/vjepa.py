"""Golden outputs of V-JEPA 2's encoder. Regenerate:

    python3 tests/golden/vjepa.py

Needs torch and transformers, whose VJEPA2Model is the reference. It takes every clip for one of the size in its
configuration, a square; the original (facebookresearch/vjepa2, RoPEAttention) goes by the clip's own grid, and so does the
reference here, where its positions are replaced. Everything is computed in double from the float32 weights.
"""
import torch
from transformers import VJEPA2Config, VJEPA2Model

from formula import Case, save

DEPTH, WIDTH, HEADS, PATCH = 2, 64, 2, 16


def own_grid(height, width):
    """Frame, row and column of each token."""
    def ids(x, masks=None):
        i = torch.arange(x.size(1))
        return i // (height * width), i // width % height, i % width
    return ids


def case_of(name, prefix, frames, height, width, batch, every):
    rows, columns = height // PATCH, width // PATCH
    case = Case(name, heads=HEADS, every=every, grid=[frames // 2, rows, columns])
    net = VJEPA2Model(VJEPA2Config(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
                                   crop_size=height, frames_per_clip=frames, patch_size=PATCH, pred_hidden_size=16,
                                   pred_num_attention_heads=2, pred_num_hidden_layers=1))
    case.fill(net, gain=1.5, rename=lambda key: prefix + key)  # the predictor's, too: it stands in the published files
    if rows != columns:
        for layer in net.encoder.layer:
            layer.attention.get_position_ids = own_grid(rows, columns)
    x = case.input("x", [batch, frames, height, width, 3]).double()
    net = net.eval().double()
    seen = []
    net.encoder.layer[0].register_forward_hook(lambda module, args, out: seen.append(out[0]))
    out = net(x.permute(0, 1, 4, 2, 3), skip_predictor=True).last_hidden_state
    case.keep("tokens", out[:, ::every])
    case.keep("block1", seen[0][:, ::every])
    return case


if __name__ == "__main__":
    with torch.no_grad():
        save("vjepa", [
            case_of("square", "", 16, 64, 64, 2, 4),
            case_of("wide", "vjepa2.", 6, 32, 80, 1, 1),
        ])
