#!/usr/bin/env python3
"""Writes tests/unit/optim.safetensors: 20 steps of torch.optim.AdamW with clipping, warm-up and cosine. Needs torch.

The parameters and gradients are a formula that tests/unit/optim.c has too; the fixture holds the parameters after steps
1, 5 and 20 and the gradient norms."""
import math
import os

import torch
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "unit", "optim.safetensors")
SHAPES = {"w": (3, 5), "b": (5,), "conv": (2, 3, 4, 1, 2)}
LR, BETAS, EPS, DECAY, CLIP, WARMUP, TOTAL = 0.02, (0.9, 0.95), 1e-8, 0.1, 1.0, 4, 30


def value(k, i):
    return ((i * 7 + k * 3) % 11 - 5) / 8


def gradient(k, i, step):
    return ((i * 5 + k + step * 3) % 13 - 6) / 16 * (0.1 if step % 3 == 0 else 1)


def made(shape, f):
    return torch.tensor([f(i) for i in range(math.prod(shape))], dtype=torch.float32).reshape(shape)


def lr(step):
    if step < WARMUP:
        return LR * step / WARMUP
    return LR * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (TOTAL - WARMUP)))


params = {n: torch.nn.Parameter(made(s, lambda i: value(k, i))) for k, (n, s) in enumerate(SHAPES.items())}
optim = torch.optim.AdamW([{"params": [p for p in params.values() if p.dim() > 1], "weight_decay": DECAY},
                           {"params": [p for p in params.values() if p.dim() == 1], "weight_decay": 0}],
                          lr=LR, betas=BETAS, eps=EPS)
out, norms = {}, []
for step in range(1, 21):
    for k, p in enumerate(params.values()):
        p.grad = made(p.shape, lambda i: gradient(k, i, step))
    norms.append(torch.nn.utils.clip_grad_norm_(params.values(), CLIP).item())
    for g in optim.param_groups:
        g["lr"] = lr(step)
    optim.step()
    if step in (1, 5, 20):
        out.update({f"{step}.{n}": p.detach().clone() for n, p in params.items()})
out["norms"] = torch.tensor(norms)
save_file(out, OUT)
