"""Golden outputs of VideoMAE encoders. Regenerate:

    python3 tests/golden/videomae.py VIDEOREPA

VIDEOREPA: a checkout of github.com/aHapBean/VideoREPA, whose encoder class is the reference for OpenGVLab's names, for
the layer scales gamma_1 and gamma_2, and for positions interpolated to another grid. Needs torch and transformers.
Everything is computed in double from the float32 weights. 16 frames of 224x224 pixels are the 8x14x14 grid of the published
networks. On another grid the references part: transformers makes the table of positions for the grid at hand, VideoREPA
interpolates that of 8x14x14 (patch 14: 8x16x16). 48 frames of 160x240 are what MoAlign and VideoREPA give to it.
"""
import importlib.util
import sys
import types
from functools import partial
from pathlib import Path

import torch
from transformers import VideoMAEConfig, VideoMAEModel

from formula import Case, save

DEPTH, WIDTH, HEADS, PATCH = 2, 64, 2, 16


def reference_class(root):
    """VideoREPA's VisionTransformer, with stand-ins for the three names it takes from timm."""
    layers = types.ModuleType("timm.models.layers")
    layers.drop_path = lambda x, *_: x
    layers.to_2tuple = lambda x: (x, x)
    layers.trunc_normal_ = torch.nn.init.trunc_normal_
    registry = types.ModuleType("timm.models.registry")
    registry.register_model = lambda f: f
    sys.modules |= {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models"),
                    "timm.models.layers": layers, "timm.models.registry": registry}
    path = Path(root) / "finetune/models/cogvideox_t2v_align/models/ssl/VideoMAEv2.py"
    spec = importlib.util.spec_from_file_location("videomaev2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VisionTransformer


def transformers_case(name, prefix, frames, height, width, batch, every, final_norm=False):
    case = Case(name, heads=HEADS, every=every, patch=PATCH, grid=[frames // 2, height // PATCH, width // PATCH])
    net = VideoMAEModel(VideoMAEConfig(image_size=(height, width), patch_size=PATCH, num_frames=frames,
                                       hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
                                       intermediate_size=4 * WIDTH, use_mean_pooling=not final_norm))
    case.fill(net, gain=1.5, rename=lambda key: prefix + key)
    x = case.input("x", [batch, frames, height, width, 3]).double()
    out = net.eval().double()(x.permute(0, 1, 4, 2, 3)).last_hidden_state
    case.keep("tokens", out[:, ::every])
    return case


def opengvlab_case(vit, name, prefix, frames, height, width, batch, every, gamma=0.0, patch=PATCH, ratio=4.0):
    case = Case(name, heads=HEADS, every=every, patch=patch, grid=[frames // 2, height // patch, width // patch])
    net = vit(img_size=224, patch_size=patch, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, qkv_bias=True,
              mlp_ratio=ratio, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), init_values=gamma)
    case.fill(net, gain=1.5, rename=lambda key: prefix + key)
    for key, shape in {"fc_norm.weight": [WIDTH], "fc_norm.bias": [WIDTH], "head.weight": [7, WIDTH],
                       "head.bias": [7]}.items():
        case.param(prefix + key, shape)  # stand in the published files; not used for tokens
    if (height, width) != (224, 224):
        net.interpolate_pos_embed(16, 224, patch, WIDTH, (height, width))
    x = case.input("x", [batch, frames, height, width, 3]).double()
    out = net.eval().double()(x.permute(0, 4, 1, 2, 3))
    case.keep("tokens", out[:, ::every])
    return case


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    Vit = reference_class(sys.argv[1])
    with torch.no_grad():
        save("videomae", [
            transformers_case("transformers", "", 16, 224, 224, 1, 11),
            transformers_case("transformers-small", "videomae.", 4, 48, 80, 2, 1, final_norm=True),
            opengvlab_case(Vit, "opengvlab", "", 16, 224, 224, 1, 11),
            opengvlab_case(Vit, "opengvlab-interpolated", "encoder.", 48, 48, 80, 2, 3, gamma=0.1),
            opengvlab_case(Vit, "opengvlab-moalign", "model.", 48, 160, 240, 1, 37),
            opengvlab_case(Vit, "opengvlab-giant", "encoder.", 48, 42, 56, 1, 1, patch=14, ratio=48 / 11),
        ])
