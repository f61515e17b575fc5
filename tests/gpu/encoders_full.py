#!/usr/bin/env python3
"""encoders_full: ma-extract on a GPU against PyTorch on the same card, at the published sizes, with random weights.

    python3 tests/gpu/encoders_full.py [base] [giant] [vjepa2] [dinov2]

O: the folder of the tools (default build). Weights are drawn from a seed, rounded to bf16 and written as a user's file; toy
clips go through ma-extract -d cuda, with -e pixel=2 beside the encoder, so that the reference sees the very pixels that were
decoded. Tokens in bf16 must be within 1e-2 (relative norm) of PyTorch's in fp32; PyTorch's own in bf16 are told beside.
base and giant, VideoMAEv2's, are restated here as VideoREPA has them (positions interpolated from 16 frames of 224x224);
vjepa2 (ViT-L) and dinov2 (ViT-B/14 with registers) need transformers and safetensors. Needs torch, NumPy, 16 GB of GPU memory
and of disk in TMPDIR. TAP.
"""
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

TOOLS = Path(os.environ.get("O", "build"))
LIMIT = 1e-2
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
tests = bad = 0


def ok(good, text):
    global tests, bad
    tests += 1
    bad += not good
    print(f"{'' if good else 'not '}ok {tests} - {text}", flush=True)


def run(*command):
    start = time.time()
    subprocess.run([str(c) for c in command], check=True)
    print(f"# {Path(str(command[0])).name}: {time.time() - start:.1f} s", flush=True)


def save(path, weights):
    """safetensors, bf16."""
    at, header = 0, {}
    for name, t in weights.items():
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [at, at + 2 * t.numel()]}
        at += 2 * t.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in weights.values():
            f.write(t.bfloat16().contiguous().cpu().view(torch.int16).numpy().tobytes())


def extract(folder, kind, weights, clip, settings="", dtype="bf16", n=2):
    """What ma-extract makes of n toy clips: pixels (n,T,H,W,3) on [0,1], tokens."""
    toy, out = folder / "toy.tar", folder / "out.tar"
    run(TOOLS / "ma-toy", "-n", n, "--clip", clip, "-z", 0, "-o", toy)
    run(TOOLS / "ma-extract", "-d", "cuda", "--dtype", dtype, "--batch", n, "--clip", clip, "-z", 0,
        "-e", f"{kind}={weights}{settings}", "-e", "pixel=2", "-o", out, toy)
    pixels, tokens = [], []
    for m in (tar := tarfile.open(out)):
        if not m.name.endswith((".latent.npy", f".{kind}.npy")):
            continue
        a = torch.from_numpy(np.load(io.BytesIO(tar.extractfile(m).read())).astype(np.float32))
        if m.name.endswith(".latent.npy"):
            c, t, h, w = a[:a.shape[0] // 2].shape  # colour, row, column of each square
            rgb = torch.round((a[:c] + 1) * 127.5) / 255
            pixels.append(rgb.reshape(3, 2, 2, t, h, w).permute(3, 4, 1, 5, 2, 0).reshape(t, 2 * h, 2 * w, 3))
        else:
            tokens.append(a)
    return torch.stack(pixels), torch.stack(tokens)


def normalised(pixels, skip):
    x = (pixels[:, skip:].cuda() - torch.tensor(MEAN, device="cuda")) / torch.tensor(DEVIATION, device="cuda")
    return x.permute(0, 4, 1, 2, 3)  # B, C, T, H, W


def error(a, b):
    return float((a.double().cpu() - b.double().cpu()).norm() / b.double().cpu().norm())


def compare(name, reference, x, tokens):
    """reference(type) is the net in that type."""
    full = reference(torch.float32)(x).float().cpu()
    half = reference(torch.bfloat16)(x.bfloat16()).float().cpu()
    ours = error(tokens.reshape(full.shape), full)
    ok(ours <= LIMIT, f"{name}: bf16 tokens within {LIMIT:.0e} of fp32 (ours {ours:.2e}, PyTorch's bf16 {error(half, full):.2e})")


# ---- VideoMAEv2, as VideoREPA runs it

def draw(depth, width, hidden, patch):
    torch.manual_seed(7)

    def normal(*shape, add=0.0, deviation=0.02):
        return (add + deviation * torch.randn(*shape, device="cuda")).bfloat16()

    w = {"patch_embed.proj.weight": normal(width, 3, 2, patch, patch), "patch_embed.proj.bias": normal(width)}
    for k in range(depth):
        at = f"blocks.{k}."
        for norm in ("norm1", "norm2"):
            w |= {f"{at}{norm}.weight": normal(width, add=1.0, deviation=0.1), f"{at}{norm}.bias": normal(width)}
        w |= {at + "attn.qkv.weight": normal(3 * width, width), at + "attn.q_bias": normal(width),
              at + "attn.v_bias": normal(width), at + "attn.proj.weight": normal(width, width),
              at + "attn.proj.bias": normal(width), at + "mlp.fc1.weight": normal(hidden, width),
              at + "mlp.fc1.bias": normal(hidden), at + "mlp.fc2.weight": normal(width, hidden),
              at + "mlp.fc2.bias": normal(width)}
    return w


def positions(grid, width, patch):
    side = 224 // patch
    i, j = np.arange(8 * side * side)[:, None], np.arange(width)[None]
    angle = i / np.power(10000, 2 * (j // 2) / width)
    table = torch.from_numpy(np.where(j % 2, np.cos(angle), np.sin(angle))).float()
    t = table.reshape(8, side, side, width).permute(0, 3, 1, 2)
    t = F.interpolate(t, size=tuple(grid[1:]), mode="bicubic", align_corners=False)
    t = F.interpolate(t.permute(1, 0, 2, 3)[None], size=tuple(grid), mode="trilinear", align_corners=False)
    return t[0].permute(1, 2, 3, 0).reshape(-1, width).cuda()


def videomae(w, depth, heads, patch, dtype):
    w = {k: v.to("cuda", dtype) for k, v in w.items()}

    def net(x):
        x = F.conv3d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=(2, patch, patch))
        b, d, *grid = x.shape
        x = x.flatten(2).transpose(1, 2) + positions(grid, d, patch).to(dtype)
        for k in range(depth):
            at = f"blocks.{k}."
            y = F.layer_norm(x, (d,), w[at + "norm1.weight"], w[at + "norm1.bias"], 1e-6)
            q_bias = w[at + "attn.q_bias"]
            qkv = F.linear(y, w[at + "attn.qkv.weight"], torch.cat((q_bias, torch.zeros_like(q_bias), w[at + "attn.v_bias"])))
            q, k_, v = qkv.reshape(b, -1, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k_, v).transpose(1, 2).reshape(b, -1, d)
            x = x + F.linear(y, w[at + "attn.proj.weight"], w[at + "attn.proj.bias"])
            y = F.layer_norm(x, (d,), w[at + "norm2.weight"], w[at + "norm2.bias"], 1e-6)
            y = F.gelu(F.linear(y, w[at + "mlp.fc1.weight"], w[at + "mlp.fc1.bias"]))
            x = x + F.linear(y, w[at + "mlp.fc2.weight"], w[at + "mlp.fc2.bias"])
        return x
    return net


def check_videomae(name, depth, width, heads, hidden, patch, clip):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        w = draw(depth, width, hidden, patch)
        save(folder / "w.safetensors", w)
        pixels, tokens = extract(folder, "videomae", folder / "w.safetensors", clip)
        compare(name, lambda dtype: videomae(w, depth, heads, patch, dtype), normalised(pixels, 1), tokens)


# ---- those that transformers has

def check_transformers(name, kind, net, clip, settings, skip, forward):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        net = net.eval().bfloat16()
        net.save_pretrained(folder / "net")
        pixels, tokens = extract(folder, kind, folder / "net", clip, settings)
        compare(name, lambda dtype: (lambda x, n=net.to("cuda", dtype): forward(n, x)), normalised(pixels, skip), tokens)


def check_vjepa2():
    from transformers import VJEPA2Config, VJEPA2Model
    torch.manual_seed(7)
    net = VJEPA2Model(VJEPA2Config(crop_size=256, frames_per_clip=48, pred_num_hidden_layers=1))
    check_transformers("V-JEPA 2-L, 48x256x256", "vjepa2", net, "49x256x256", "", 1,
                       lambda n, x: n(x.transpose(1, 2), skip_predictor=True).last_hidden_state)


def check_dinov2():
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel
    torch.manual_seed(7)
    net = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(image_size=518, patch_size=14, num_register_tokens=4))
    check_transformers("DINOv2-B with registers, 8x420x630", "dinov2", net, "9x420x630", ",skip=1", 1,
                       lambda n, x: n(x.transpose(1, 2).flatten(0, 1)).last_hidden_state[:, 5:])


CHECKS = {
    "base": lambda: check_videomae("VideoMAEv2-B, 48x160x240", 12, 768, 12, 3072, 16, "49x160x240"),
    "giant": lambda: check_videomae("VideoMAEv2-giant, 48x140x210", 40, 1408, 16, 6144, 14, "49x140x210"),
    "vjepa2": check_vjepa2,
    "dinov2": check_dinov2,
}

if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("1..0 # SKIP no GPU")
        sys.exit(0)
    with torch.no_grad():
        for which in sys.argv[1:] or CHECKS:
            start = time.time()
            try:
                CHECKS[which]()
            except ImportError as missing:
                tests += 1
                print(f"ok {tests} # SKIP {which}: {missing}")
            print(f"# {which}: {time.time() - start:.0f} s", flush=True)
            torch.cuda.empty_cache()
    print(f"1..{tests}")
    sys.exit(bad > 0)
