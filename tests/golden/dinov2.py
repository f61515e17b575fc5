"""Golden outputs of DINOv2. Regenerate:

    python3 tests/golden/dinov2.py

Needs torch and transformers, whose Dinov2Model and Dinov2WithRegistersModel are the reference. facebook's own files have
other names for the same, and without registers another scale when positions are interpolated (dinov2/models/
vision_transformer.py, interpolate_pos_encoding): that is done here. Everything is computed in double from the float32
weights. Names are those that stand in published files, which transformers renames when it reads them.
"""
import torch
from torch.nn.functional import interpolate
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from formula import Case, rule, save, values

DEPTH, WIDTH, HEADS, PATCH, SIDE = 2, 64, 2, 14, 4

TRANSFORMERS = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
                "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
                "mlp.gate_proj": "mlp.weights_in", "mlp.up_proj": "mlp.weights_in", "mlp.down_proj": "mlp.weights_out"}
FACEBOOK = {"attention.q_proj": "attn.qkv", "attention.k_proj": "attn.qkv", "attention.v_proj": "attn.qkv",
            "attention.o_proj": "attn.proj", "mlp.gate_proj": "mlp.w12", "mlp.up_proj": "mlp.w12",
            "mlp.down_proj": "mlp.w3", "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
            "encoder.layer.": "blocks.", "layernorm.": "norm.", "embeddings.position_embeddings": "pos_embed",
            "embeddings.patch_embeddings.projection": "patch_embed.proj", "embeddings.": ""}


def published(key, names, prefix):
    for ours, theirs in names.items():
        key = key.replace(ours, theirs)
    return prefix + key


def fill(case, net, names, prefix):
    """Weights by their published names; several that are one array there are its parts."""
    parts = {}
    for key, tensor in net.state_dict().items():
        parts.setdefault(published(key, names, prefix), []).append(tensor)
    for name, tensors in parts.items():
        shape = [sum(t.shape[0] for t in tensors), *tensors[0].shape[1:]] if len(tensors) > 1 else list(tensors[0].shape)
        add, mul = rule(name, shape, 1.5)
        if shape[0] == 1:
            add, mul = 0.0, 0.5  # tokens and positions
        elif "lambda1" in name or "gamma" in name:
            add, mul = 0.5, 0.5
        case.meta["params"][name] = [shape, add, mul]
        for tensor, part in zip(tensors, values(name, shape, add, mul).chunk(len(tensors))):
            tensor.copy_(part)


def with_offset(net):
    """facebook's interpolation without registers: the scale is (n + 0.1)/side."""
    def encoding(embeddings, height, width):
        at = net.embeddings.position_embeddings
        if height == width == SIDE * PATCH:
            return at
        grid = at[:, 1:].reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
        scale = ((height // PATCH + 0.1) / SIDE, (width // PATCH + 0.1) / SIDE)
        grid = interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat((at[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)), 1)
    return encoding


def case_of(name, prefix, frames, height, width, batch, facebook=False, registers=0, gated=False):
    case = Case(name, heads=HEADS, every=1, grid=[frames, height // PATCH, width // PATCH])
    settings = dict(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIDE * PATCH,
                    patch_size=PATCH, use_swiglu_ffn=gated)
    if registers:
        net = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**settings, num_register_tokens=registers))
    else:
        net = Dinov2Model(Dinov2Config(**settings))
    fill(case, net, FACEBOOK if facebook else TRANSFORMERS, prefix)
    if facebook and not registers:
        net.embeddings.interpolate_pos_encoding = with_offset(net)
    x = case.input("x", [batch, frames, height, width, 3]).double()
    net = net.eval().double()
    out = net(x.flatten(0, 1).permute(0, 3, 1, 2), output_hidden_states=True)
    case.keep("tokens", out.last_hidden_state[:, 1 + registers:])
    case.keep("block1", out.hidden_states[1][:, 1 + registers:])
    return case


if __name__ == "__main__":
    with torch.no_grad():
        save("dinov2", [
            case_of("transformers", "", 2, 56, 56, 1),
            case_of("transformers-wide", "dinov2.", 3, 42, 70, 2),
            case_of("transformers-registers", "", 2, 28, 84, 1, registers=4),
            case_of("transformers-gated", "", 1, 70, 56, 1, gated=True),
            case_of("facebook", "", 2, 42, 70, 1, facebook=True),
            case_of("facebook-registers", "model.", 2, 28, 70, 1, facebook=True, registers=4),
            case_of("facebook-gated", "", 1, 56, 56, 1, facebook=True, gated=True),
        ])
