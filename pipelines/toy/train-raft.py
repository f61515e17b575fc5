#!/usr/bin/env python3
"""train-raft: trains RAFT-small from drawn weights on made-up pairs of pictures whose flow is exact.

    pipelines/toy/train-raft.py --seconds 330 --out raft-small.safetensors --save raft.pt --log raft.jsonl

Writes the half-precision file that ma-flow takes where no -m is given. Needs PyTorch and torchvision, whose network it
is; the tools themselves train no flow network, and nothing but ma-flow's default asks for one. On a GPU a step, the
making of pairs and the update are launched as CUDA graphs; on a CPU it runs too, for trials of tiny size.

Pairs: every scene is a stack of some twenty layers, a background and shapes before it. Each layer has a texture (dead
leaves, 1/f noise, stripes, chequers or next to nothing), lies where it lies in frame 1, and moves by an affine map of its
own plus a smooth field, so that what is seen of it in frame 2 follows from its outline and what is before it. Some layers
are foliage: cut out along the leaves of their texture. Balls on plain walls, small pictures with repeated borders among
them (what ma-flow makes of clips below 128 pixels), are part of the same drawing. Most motion is below 6 pixels, a tail
goes to 40.

Traps: frame 2 is drawn by pulling, so the smooth field acts on where a point lies in frame 2: flow is found by a
fixed point of that equation (the field's strain is below 0.2, six rounds leave less than 1e-4 pixels). Nothing in the
captured parts may wait for the device or copy from the CPU. The lookup's first offset is horizontal (torchvision's
order, which the weights learn). Correlation, coordinates and the norms' statistics stay in 32 bits.

Limits: some 12 GiB of a GPU; --crop a multiple of 8, at least 128.

Sources: Teed and Deng, RAFT (ECCV 2020), loss and update; Lee, Mumford and Huang, Occlusion models for natural images
(IJCV 2001), dead leaves; Sun et al., AutoFlow (CVPR 2021), on layers drawn at random being enough.
"""
import argparse
import json
import lzma
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_small

COLUMNS = ("cx cy period m00 m01 m10 m11 s00 s01 s10 s11 bend0 wave0 phase0 bend1 wave1 phase1 power id "
           "t00 t01 t10 t11 tu tv tile red green blue bias shade0 shade1 "
           "a00 a01 a10 a11 vx vy noise tint stripe stripe_x stripe_y chequer solid").split()
COL = {name: k for k, name in enumerate(COLUMNS)}
WIDTH = -len(COLUMNS) % 4 + len(COLUMNS)  # compiled code reads layers from addresses that 16 divides
SCENES = {"RubberWhale": ("frame10.png", "frame11.png", "flow10.flo.xz"),
          "Grove2": ("frame10.png", "frame11.png", "flow10.flo.xz"),
          "sintel-easy": ("frame_0002.png", "frame_0003.png", "flow_0002.flo.xz"),
          "sintel-hard": ("frame_0002.png", "frame_0003.png", "flow_0002.flo.xz")}


# ---- random numbers, on the device

def uniform(shape, low, high, device):
    return torch.rand(shape, device=device) * (high - low) + low


def log_uniform(shape, low, high, device):
    return torch.exp(uniform(shape, math.log(low), math.log(high), device))


def chance(shape, p, device):
    return (torch.rand(shape, device=device) < p).float()


class Table:
    """Numbers of layers, (rows, layers, WIDTH): one row a picture."""

    def __init__(self, rows, layers, device):
        self.data = torch.zeros(rows, layers, WIDTH, device=device)
        self.data[:, :, COL["period"]] = 1e9
        self.data[:, :, COL["power"]] = 2
        self.data[:, :, COL["id"]] = torch.arange(layers, device=device, dtype=torch.float32)

    def __setitem__(self, name, value):
        self.data[:, :, COL[name]] = value

    def __getitem__(self, name):
        return self.data[:, :, COL[name]]

    def matrix(self, prefix, m):
        """m: ((a, b), (c, d)) of tensors (rows, layers)."""
        for i in range(2):
            for j in range(2):
                self[f"{prefix}{i}{j}"] = m[i][j]

    def get_matrix(self, prefix):
        return [[self[f"{prefix}{i}{j}"] for j in range(2)] for i in range(2)]


def times(a, b):
    return [[a[i][0] * b[0][j] + a[i][1] * b[1][j] for j in range(2)] for i in range(2)]


def inverse(a):
    d = a[0][0] * a[1][1] - a[0][1] * a[1][0]
    return [[a[1][1] / d, -a[0][1] / d], [-a[1][0] / d, a[0][0] / d]]


def rotation(angle, scale_x=1.0, scale_y=1.0):
    c, s = torch.cos(angle), torch.sin(angle)
    return [[c * scale_x, s * scale_x], [-s * scale_y, c * scale_y]]


# ---- drawing

def grid(height, width, fine, device):
    """Coordinates of points, fine by fine to a pixel, from the picture's centre, in pixels.   (1,1,W·fine), (1,H·fine,1)"""
    x = (torch.arange(width * fine, device=device) + 0.5) / fine - width / 2
    y = (torch.arange(height * fine, device=device) + 0.5) / fine - height / 2
    return x.view(1, 1, -1), y.view(1, -1, 1)


def tap(bank, tile, u, v):
    """Bilinear samples of the textures, which repeat.   bank (tiles,T,T,4) of bytes; tile, u, v (…) → (…,4), 0 to 1"""
    size = bank.shape[1]
    flat = bank.view(-1, 4)
    left, above = torch.floor(u), torch.floor(v)
    fu, fv = (u - left).unsqueeze(-1), (v - above).unsqueeze(-1)
    i0, j0 = left.long() & (size - 1), above.long() & (size - 1)
    i1, j1 = (i0 + 1) & (size - 1), (j0 + 1) & (size - 1)
    base = tile.long() * (size * size)
    row0 = flat[base + j0 * size + i0].float() * (1 - fu) + flat[base + j0 * size + i1].float() * fu
    row1 = flat[base + j1 * size + i0].float() * (1 - fu) + flat[base + j1 * size + i1].float() * fu
    return (row0 * (1 - fv) + row1 * fv) * (1 / 255)


def local(x, y, field, get):
    """Points relative to a layer's centre, undone of the smooth field.   field (R,2,h,w) or None"""
    x, y = x - get("cx"), y - get("cy")
    if field is not None:
        x = x + get("m00") * field[:, 0] + get("m01") * field[:, 1]
        y = y + get("m10") * field[:, 0] + get("m11") * field[:, 1]
    period = get("period")
    return x - period * torch.round(x / period), y - period * torch.round(y / period)


def paint(top, x, y, field, p, bank):
    """Puts one layer on what is there: top (R,h,w) names the layer seen at each point; p (R,WIDTH) is the layer.
    bank: of a layer cut out along its texture's leaves; otherwise None."""
    def get(name):
        return p[:, COL[name], None, None]
    x, y = local(x, y, field, get)
    a, b = get("s00") * x + get("s01") * y, get("s10") * x + get("s11") * y
    a, b = (a + get("bend0") * torch.sin(get("wave0") * b + get("phase0")),
            b + get("bend1") * torch.sin(get("wave1") * a + get("phase1")))
    inside = torch.pow(torch.abs(a), get("power")) + torch.pow(torch.abs(b), get("power")) < 1
    if bank is not None:
        u = get("t00") * x + get("t01") * y + get("tu")
        v = get("t10") * x + get("t11") * y + get("tv")
        inside &= tap(bank, get("tile").expand_as(u), u, v)[..., 3] > 0.5
    return torch.where(inside, get("id").to(top.dtype), top)


def shade(top, x, y, field, p, bank):
    """Colours of the layers seen.   top (R,h,w), p (R,L,WIDTH) → (R,h,w,3)"""
    index = top.long().flatten(1)

    def get(name):
        return p[:, :, COL[name]].gather(1, index).view(top.shape)
    x, y = local(x, y, field, get)
    u = get("t00") * x + get("t01") * y + get("tu")
    v = get("t10") * x + get("t11") * y + get("tv")
    light = 1 + get("shade0") * torch.tanh(get("s00") * x + get("s01") * y) \
              + get("shade1") * torch.tanh(get("s10") * x + get("s11") * y)
    gain = torch.stack([get("red"), get("green"), get("blue")], -1) * light.unsqueeze(-1)
    return tap(bank, get("tile"), u, v)[..., :3] * gain + get("bias").unsqueeze(-1)


def halve(a, fine):
    """Means over fine by fine points.   (R,h,w,C) → (R,H,W,C)"""
    r, h, w, c = a.shape
    return a.view(r, h // fine, fine, w // fine, fine, c).mean((2, 4))


def random_outline(t, radius, device):
    """Shapes of a layer's size: balls, ellipses, boxes, diamonds, bent. radius (rows,layers) in pixels."""
    shape = radius.shape
    ball = chance(shape, 0.3, device)
    aspect = torch.exp(torch.randn(shape, device=device) * 0.45 * (1 - ball))
    t.matrix("s", rotation(uniform(shape, 0, 2 * math.pi, device), 1 / (radius * aspect), aspect / radius))
    for k in "01":
        bent = (1 - ball) * chance(shape, 0.6, device)
        t["bend" + k] = bent * uniform(shape, 0.05, 0.45, device)
        t["wave" + k] = uniform(shape, 1.5, 6, device)
        t["phase" + k] = uniform(shape, 0, 2 * math.pi, device)
    t["power"] = ball * 2 + (1 - ball) * log_uniform(shape, 0.9, 8, device)


# ---- textures

def pink_noise(rows, size, device):
    """Noise with a spectrum of 1/f^a, a drawn, of mean 0 and deviation 1; repeats.   (rows,2,size,size)"""
    fy = torch.fft.fftfreq(size, device=device).view(-1, 1)
    fx = torch.fft.rfftfreq(size, device=device).view(1, -1)
    f = torch.sqrt(fx * fx + fy * fy).clamp(min=1 / size)
    power = uniform((rows, 2, 1, 1), 0.5, 1.8, device)
    white = torch.fft.rfft2(torch.randn(rows, 2, size, size, device=device))
    noise = torch.fft.irfft2(white * f ** -power, s=(size, size))
    noise = noise - noise.mean((2, 3), keepdim=True)
    return noise / noise.std((2, 3), keepdim=True)


def draw_leaves(rows, size, layers, device):
    t = Table(rows, layers, device)
    shape = (rows, layers)
    rmin, rmax = log_uniform((rows, 1), 1.5, 6, device), log_uniform((rows, 1), size / 14, size / 3.5, device)
    u = torch.rand(shape, device=device) ** uniform((rows, 1), 0.8, 2.5, device)
    random_outline(t, rmin * (rmax / rmin) ** u, device)
    present = chance(shape, 1 - 0.15 * chance((rows, 1), 1, device), device) * chance((rows, 1), 0.8, device)
    t["cx"] = torch.where(present > 0, uniform(shape, -size / 2, size / 2, device), torch.nan)
    t["cy"] = uniform(shape, -size / 2, size / 2, device)
    t["period"] = float(size)
    bright = uniform((rows, 1), 0.2, 0.75, device) + torch.randn(shape, device=device) * uniform((rows, 1), 0.02, 0.28,
                                                                                               device)
    chroma = log_uniform((rows, 1), 0.01, 0.15, device)
    for name in ("red", "green", "blue"):
        mean = torch.randn(rows, 1, device=device) * 0.07
        t[name] = bright + mean + torch.randn(shape, device=device) * chroma
    t["noise"] = log_uniform((rows, 1), 0.006, 0.16, device) * torch.randn(shape, device=device).abs()
    t["tint"] = torch.randn(shape, device=device) * 0.3
    t["stripe"] = uniform(shape, -0.3, 0.3, device) * chance(shape, 0.12, device)
    angle, wave = uniform(shape, 0, 2 * math.pi, device), size / log_uniform(shape, 4, 60, device)
    t["stripe_x"] = torch.round(torch.cos(angle) * wave) * (2 * math.pi / size)
    t["stripe_y"] = torch.round(torch.sin(angle) * wave) * (2 * math.pi / size)
    t["chequer"] = chance(shape, 0.4, device)
    t["solid"] = chance(shape, uniform((rows, 1), 0.3, 0.7, device), device)
    return t.data


def colour_leaves(top, x, y, p, noise):
    """(R,h,w) → (R,h,w,4): red, green, blue, and whether the leaf is solid"""
    index = top.long().flatten(1)

    def get(name):
        return p[:, :, COL[name]].gather(1, index).view(top.shape)
    k, l = get("stripe_x"), get("stripe_y")
    along, across = torch.sin(k * x + l * y), torch.sin(l * x - k * y)
    wave = torch.tanh(4 * along * torch.where(get("chequer") > 0, across, 1.0))
    light = get("noise") * noise[:, 0] + get("stripe") * wave
    tint = get("noise") * get("tint") * noise[:, 1]
    return torch.stack([get("red") + light + tint, get("green") + light, get("blue") + light - tint, get("solid")], -1)


def make_bank(count, size, leaves, device, fine=2, rows=4):
    """Textures that repeat, (count,size,size,4) of bytes: colour, and what is solid of one used as foliage."""
    bank = torch.empty(count, size, size, 4, dtype=torch.uint8, device=device)
    x, y = grid(size, size, fine, device)
    for from_ in range(0, count, rows):
        n = min(rows, count - from_)
        p = draw_leaves(n, size, leaves, device)
        top = torch.zeros(n, size * fine, size * fine, dtype=torch.int16, device=device)
        layer = p.transpose(0, 1).contiguous()
        for k in range(1, leaves):
            top = PAINT(top, x, y, None, layer[k], None)
        rgba = colour_leaves(top, x, y, p, pink_noise(n, size * fine, device))
        bank[from_:from_ + n] = (halve(rgba, fine).clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    return bank


# ---- scenes

LAYERS, FOLIAGE, WAVES = 22, (3, 8, 15), 4


def smooth(waves, x, y):
    """The smooth field at points: a few waves, each a row kx, ky, phase, ax, ay.   waves (R,WAVES,5) → (R,2,…)"""
    out = 0
    for k in range(WAVES):
        kx, ky, phase, ax, ay = (waves[:, k, i, None, None] for i in range(5))
        s = torch.sin(kx * x + ky * y + phase)
        out = out + torch.stack([ax * s, ay * s], 1)
    return out


def draw_motion(t, radius, width, device):
    """How far things go: most scenes below 6 pixels. The camera's motion by each layer's depth, plus its own."""
    b, n = radius.shape
    pick = torch.rand(b, 1, device=device)
    size = torch.where(pick < 0.72, log_uniform((b, 1), 0.25, 5, device),
                       torch.where(pick < 0.92, uniform((b, 1), 4, 12, device), uniform((b, 1), 12, 26, device)))
    camera = size * chance((b, 1), 0.85, device)
    cx, cy = t["cx"], t["cy"]
    depth = torch.exp(torch.randn(b, n, device=device) * uniform((b, 1), 0, 0.5, device))
    pan = torch.randn(2, b, 1, device=device) * 0.7 * camera
    zoom, turn = torch.randn(2, b, 1, device=device) * camera / width
    own = size * chance((b, n), uniform((b, 1), 0, 1, device), device)
    own[:, 0] = 0
    spin, swell, shear0, shear1 = torch.randn(4, b, n, device=device) * own / (2 * radius + 20)
    rate0, rate1 = zoom + 0.4 * swell, turn + spin
    t["vx"] = pan[0] * depth + zoom * cx - turn * cy + own * 0.8 * torch.randn(b, n, device=device)
    t["vy"] = pan[1] * depth + turn * cx + zoom * cy + own * 0.8 * torch.randn(b, n, device=device)
    t.matrix("a", [[1 + (rate0 + 0.3 * shear0).clamp(-.3, .3), (-rate1 + 0.3 * shear1).clamp(-.3, .3)],
                   [(rate1 + 0.3 * shear1).clamp(-.3, .3), 1 + (rate0 - 0.3 * shear0).clamp(-.3, .3)]])
    bends = chance((b, n), 0.5, device)
    mix = uniform((4, b, n), -1, 1, device) * bends
    t.matrix("m", mix.view(2, 2, b, n))
    length = log_uniform((b, WAVES), 50, 500, device)
    angle, way = uniform((2, b, WAVES), 0, 2 * math.pi, device)
    strain = uniform((b, WAVES), 0, 0.03, device)
    amount = torch.minimum(strain * length / (2 * math.pi), 0.2 * size)
    k = 2 * math.pi / length
    return torch.stack([k * torch.cos(angle), k * torch.sin(angle), uniform((b, WAVES), 0, 2 * math.pi, device),
                        amount * torch.cos(way), amount * torch.sin(way)], -1)


def draw_scene(b, height, width, tiles, device):
    """Layers of b scenes in frame 1, and their smooth fields.   Table (b,LAYERS), waves (b,WAVES,5)"""
    t = Table(b, LAYERS, device)
    shape = (b, LAYERS)
    small, large = log_uniform((b, 1), 4, 30, device), log_uniform((b, 1), 35, 140, device)
    radius = small * (large / small) ** torch.rand(shape, device=device)
    order = (radius * torch.exp(0.7 * torch.randn(shape, device=device))).argsort(1, descending=True)
    radius = radius.gather(1, order)
    foliage = torch.zeros(LAYERS, device=device)
    for k in FOLIAGE:
        foliage[k].fill_(1)
    radius = radius * (1 - foliage) + foliage * uniform(shape, 50, 220, device)
    radius[:, 0] = width / 2
    random_outline(t, radius, device)
    present = chance(shape, uniform((b, 1), 0.1, 1.2, device) * (1 - 0.5 * foliage), device)
    t["cx"] = uniform(shape, -0.55 * width, 0.55 * width, device)
    t["cy"] = uniform(shape, -0.55 * height, 0.55 * height, device)
    t.data[:, 0, COL["cx"]] = 0
    t.data[:, 0, COL["cy"]] = 0
    waves = draw_motion(t, radius, width, device)
    hidden = present < 1
    hidden[:, 0] = False
    t["cx"] = torch.where(hidden, 1e5, t["cx"])
    zoom = log_uniform(shape, 0.35, 1.3, device)
    t.matrix("t", rotation(uniform(shape, 0, 2 * math.pi, device), zoom, zoom))
    t["tu"], t["tv"] = uniform((2, *shape), 0, 4096, device)
    t["tile"] = torch.floor(uniform(shape, 0, tiles - 1e-3, device))
    bright = torch.exp(torch.randn(shape, device=device) * uniform((b, 1), 0, 0.4, device))
    for name in ("red", "green", "blue"):
        t[name] = bright * torch.exp(torch.randn(shape, device=device) * uniform((b, 1), 0, 0.35, device))
    t["bias"] = torch.randn(shape, device=device) * 0.05
    t["shade0"], t["shade1"] = torch.randn(2, *shape, device=device) * 0.15
    return t, waves


def second(t):
    """The layers in frame 2: moved, and its light a little changed."""
    out = Table(*t.data.shape[:2], t.data.device)
    out.data.copy_(t.data)
    back = inverse(t.get_matrix("a"))
    for prefix in "st":
        out.matrix(prefix, times(t.get_matrix(prefix), back))
    out["cx"], out["cy"] = t["cx"] + t["vx"], t["cy"] + t["vy"]
    for name in ("red", "green", "blue"):
        out[name] = t[name] * torch.exp(0.015 * torch.randn_like(t["cx"]))
    out["bias"] = t["bias"] + 0.005 * torch.randn_like(t["cx"])
    return out


def true_flow(t, waves, height, width, bank):
    """Of the layer in front at each pixel's centre of frame 1.   → (b,H,W,2), and that layer (b,H,W)"""
    device = t.data.device
    x, y = grid(height, width, 1, device)
    top = torch.zeros(len(waves), height, width, dtype=torch.int16, device=device)
    still = t.data.clone()
    still[:, :, COL["m00"]:COL["m11"] + 1] = 0
    layer = still.transpose(0, 1).contiguous()
    zero = torch.zeros(len(waves), 2, height, width, device=device)
    for k in range(1, LAYERS):
        top = PAINT(top, x, y, zero, layer[k], bank if k in FOLIAGE else None)
    index = top.long().flatten(1)

    def get(name):
        return t[name].gather(1, index).view(top.shape)
    dx, dy = x - get("cx"), y - get("cy")
    x0 = get("cx") + get("vx") + get("a00") * dx + get("a01") * dy
    y0 = get("cy") + get("vy") + get("a10") * dx + get("a11") * dy
    m = [get(name) for name in ("m00", "m01", "m10", "m11")]
    x2, y2 = x0, y0
    for _ in range(6):
        d = smooth(waves, x2, y2)
        x2, y2 = x0 - m[0] * d[:, 0] - m[1] * d[:, 1], y0 - m[2] * d[:, 0] - m[3] * d[:, 1]
    return torch.stack([x2 - x, y2 - y], -1), top


def make_pairs(b, height, width, bank, fine=2):
    """b pairs of pictures and their flow.   → (b,H,W,6) of bytes, (b,H,W,2)"""
    device = bank.device
    t, waves = draw_scene(b, height, width, len(bank), device)
    flow, _ = true_flow(t, waves, height, width, bank)
    p = torch.cat([t.data, second(t).data])
    p[:b, :, COL["m00"]:COL["m11"] + 1] = 0
    x, y = grid(height, width, fine, device)
    field = smooth(waves, x, y).repeat(2, 1, 1, 1)
    top = torch.zeros(2 * b, height * fine, width * fine, dtype=torch.int16, device=device)
    layer = p.transpose(0, 1).contiguous()
    for k in range(1, LAYERS):
        top = PAINT(top, x, y, field, layer[k], bank if k in FOLIAGE else None)
    rgb = halve(1 - torch.exp(-1.6 * SHADE(top, x, y, field, p, bank).clamp(min=0)), fine)  # bright things keep texture
    rgb = (rgb * 255 + 0.5).to(torch.uint8)
    return torch.cat([rgb[:b], rgb[b:]], -1), flow


PAINT, SHADE = paint, shade  # on a GPU fused


# ---- what a step sees

def crops(pairs, flow, index, crop, plain=False):
    """Pairs cut out, turned over, and some made small with their border repeated, as ma-flow pads small clips.
    → pictures (B,6,h,w), 0 to 1; flow (B,2,h,w); which of it counts (B,h,w)"""
    b, device = len(index), pairs.device
    which, at, there = index.view(b, 1, 1), [], []
    tiny = chance((b, 1), 0.0 if plain else 0.1, device)
    for size, whole in zip(crop, pairs.shape[1:3]):
        begin = torch.floor(uniform((b, 1), 0, whole - size + 0.999, device)) if not plain else (whole - size) // 2
        part = size - tiny * (size - torch.floor(uniform((b, 1), 48, 128, device)))
        margin = torch.floor((size - part) / 2)
        k = torch.arange(size, device=device).view(1, -1)
        at.append(begin + torch.minimum(torch.maximum(k, margin), margin + part - 1))
        there.append((k >= margin) & (k < margin + part))
    sign = []
    for d in range(2):
        over = chance((b, 1), 0.0 if plain else 0.5 - 0.4 * (d == 0), device)
        at[d] = (over * (pairs.shape[1 + d] - 1 - at[d]) + (1 - over) * at[d]).long()
        sign.append(1 - 2 * over)
    row, column = at[0].unsqueeze(2), at[1].unsqueeze(1)
    uv = flow[which, row, column] * torch.stack([sign[1], sign[0]], -1).unsqueeze(1)
    return (pairs[which, row, column].permute(0, 3, 1, 2).float() / 255, uv.permute(0, 3, 1, 2),
            there[0].unsqueeze(2) & there[1].unsqueeze(1))


def light(a):
    """Another exposure, colour, sharpness and noise; in part for each picture of a pair its own.   (B,6,h,w)"""
    b, device = len(a), a.device
    a = a.view(b, 2, 3, *a.shape[2:])

    def draw(*shape):
        return torch.randn(b, *shape, 1, 1, device=device)
    apart = chance((b, 1, 1, 1, 1), 0.35, device)
    a = a ** torch.exp(0.2 * draw(1, 1) + 0.03 * apart * draw(2, 1))
    grey = a.mean(2, keepdim=True)
    a = grey + (a - grey) * uniform((b, 1, 1, 1, 1), 0.3, 1.4, device)
    a = a * torch.exp(0.2 * draw(1, 1) + 0.08 * draw(1, 3) + 0.05 * apart * draw(2, 1))
    a = a + 0.05 * draw(1, 1) + 0.02 * apart * draw(2, 1)
    blur = uniform((b, 1, 1, 1), 0, 0.9, device) * chance((b, 1, 1, 1), 0.4, device)
    flat = a.flatten(1, 2)
    flat = flat + blur * (F.avg_pool2d(flat, 3, 1, 1, count_include_pad=False) - flat)
    noise = uniform((b, 1, 1, 1), 0, 0.025, device) * chance((b, 1, 1, 1), 0.6, device)
    return (flat + noise * torch.randn_like(flat)).clamp(0, 1)


# ---- RAFT, by torchvision's parts

def lookup(pyramid, where, delta):
    """Correlations about where each pixel goes.   where (B,2,h,w) → (B,196,h,w), channels last"""
    b, _, h, w = where.shape
    where = where.permute(0, 2, 3, 1).reshape(b * h * w, 1, 1, 2)
    out = []
    for level in pyramid:
        scale = [2 / (level.shape[3] - 1), 2 / (level.shape[2] - 1)]
        at = where + delta
        at = torch.stack([at[..., 0] * scale[0] - 1, at[..., 1] * scale[1] - 1], -1)
        out.append(F.grid_sample(level, at, mode="bilinear", align_corners=True).view(b, h, w, -1))
        where = where / 2
    return torch.cat(out, -1).permute(0, 3, 1, 2)


def correlations(one, two):
    """Of all pixels with all, and of ever coarser ones.   (B,128,h,w) twice → four of (B·h·w,1,h/2^k,w/2^k)"""
    n, c, h, w = one.shape
    with torch.autocast(one.device.type, enabled=False):
        level = torch.matmul(one.flatten(2).transpose(1, 2), two.flatten(2)).view(n * h * w, 1, h, w) / math.sqrt(c)
    pyramid = [level]
    for _ in range(3):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2, 2))
    return pyramid


def estimate(net, a, b, updates, half):
    """The forward pass of torchvision's RAFT, without anything that waits for the device; half: convolutions in bf16.
    a, b (B,3,H,W), -1 to 1 → flows at an eighth of the size, (updates,B,2,H/8,W/8), in its pixels"""
    n, device = len(a), a.device
    to = torch.bfloat16 if half else torch.float32
    with torch.autocast(device.type, torch.bfloat16, enabled=half):  # one for all: each casts the weights anew
        features = net.feature_encoder(torch.cat([a, b])).float()
        state, context = net.context_encoder(a).split([96, 64], 1)
        pyramid = correlations(*features.split(n))
        h, w = features.shape[2:]
        step = torch.arange(-3, 4, device=device, dtype=torch.float32)
        delta = torch.stack(torch.meshgrid(step, step, indexing="ij"), -1).view(1, 7, 7, 2)
        start = torch.meshgrid(torch.arange(w, device=device), torch.arange(h, device=device), indexing="xy")
        start = torch.stack(start).float().unsqueeze(0).expand(n, 2, h, w)
        state, context, where, flows = torch.tanh(state), F.relu(context), start, []
        for _ in range(updates):
            where = where.detach()
            seen, flow = lookup(pyramid, where, delta).to(to), where - start
            state, change = net.update_block(state, context, seen, flow.to(to, memory_format=torch.channels_last))
            where = where + change.float()
            flows.append(where - start)
    return torch.stack(flows)


def enlarge(flow):
    """(B,2,h,w) → (B,2,8h,8w), in its pixels"""
    return 8 * F.interpolate(flow, scale_factor=8, mode="bilinear", align_corners=True)


def error(flow, truth, counts):
    """Mean end-point error.   (B,2,H,W), (B,2,H,W), (B,H,W)"""
    return ((flow - truth).square().sum(1).sqrt() * counts).sum() / counts.sum()


# ---- real scenes

def read_flow(path):
    with lzma.open(path) as f:
        raw = f.read()
    magic, = np.frombuffer(raw[:4], "<f4")
    width, height = np.frombuffer(raw[4:12], "<i4")
    if abs(magic - 202021.25) > 1 or len(raw) != 12 + 8 * width * height:
        raise ValueError(f"{path}: not a flow")
    return torch.from_numpy(np.frombuffer(raw[12:], "<f4").reshape(height, width, 2).copy())


@torch.no_grad()
def real_errors(net, folder, device):
    """End-point error on each scene that is there, in 32 bits."""
    out = {}
    for name, (first, then, truth) in SCENES.items():
        paths = [os.path.join(folder, name, f) for f in (first, then, truth)]
        if not all(map(os.path.exists, paths)):
            continue
        a, b = (torch.from_numpy(np.array(Image.open(p).convert("RGB"))).permute(2, 0, 1)[None].float().to(device) / 127.5
                - 1 for p in paths[:2])
        uv = read_flow(paths[2]).permute(2, 0, 1)[None].to(device)
        h, w = a.shape[2:]
        ph, pw = -h % 8, -w % 8
        pad = (pw // 2, pw - pw // 2, ph // 2, ph - ph // 2)
        flow = enlarge(estimate(net, F.pad(a, pad, mode="replicate"), F.pad(b, pad, mode="replicate"), 12, False)[-1])
        flow = flow[:, :, pad[2]:pad[2] + h, pad[0]:pad[0] + w]
        known = (uv.abs() < 1e9).all(1)
        out[name] = round(error(flow, torch.where(known.unsqueeze(1), uv, 0), known.float()).item(), 4)
    return out


# ---- training

def captured(f, device, graphs):
    """f, to be called without arguments, launched as one CUDA graph where that can be; it gives the same tensors at
    every call."""
    if device.type != "cuda" or not graphs:
        return f
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            f()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            out = f()
    except RuntimeError as e:
        print(f"not captured: {str(e)[:500]}", flush=True)
        return f

    def replay():
        graph.replay()
        return out
    return replay


def fused(work, device, wanted):
    """Does the work with paint and shade compiled, if that works here; they stay so."""
    global PAINT, SHADE
    if device.type == "cuda" and wanted:
        try:
            torch._dynamo.config.recompile_limit = 32
            PAINT, SHADE = torch.compile(paint, dynamic=False), torch.compile(shade, dynamic=False)
            return work()
        except Exception as e:  # whatever the compiler says: it is only slower without
            print(f"not fused: {str(e)[:500]}", flush=True)
            PAINT, SHADE = paint, shade
    return work()


def fast():
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def exact():
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


class Training:
    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        self.step, self.before, self.begin, self.ready = 0, 0.0, time.monotonic(), 0.0
        self.log = open(args.log, "a") if args.log else None
        torch.manual_seed(args.seed)
        self.net = raft_small().to(self.device, memory_format=torch.channels_last)
        self.rate = torch.zeros((), device=self.device)
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=self.rate, weight_decay=1e-4, fused=True,
                                     capturable=self.device.type == "cuda")
        if args.resume:
            self.load(args.resume)
        torch.manual_seed(args.seed + 7919 * self.step)

    def load(self, path):
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.opt.load_state_dict(state["opt"])
        for group in self.opt.param_groups:
            group["lr"] = self.rate
        self.step, self.before = state["step"], state["seconds"]

    def save(self):
        a = self.args
        if a.save:
            torch.save({"net": self.net.state_dict(), "opt": self.opt.state_dict(), "step": self.step,
                        "seconds": self.before + self.elapsed()}, a.save + ".tmp")
            os.replace(a.save + ".tmp", a.save)
        if a.out:
            weights = {k: v.detach().half().cpu().contiguous() for k, v in self.net.state_dict().items()}
            save_file(weights, a.out + ".tmp", metadata={
                "made_by": "pipelines/toy/train-raft.py", "steps": str(self.step), "seed": str(a.seed),
                "torch": torch.__version__})
            os.chmod(a.out + ".tmp", 0o644)
            os.replace(a.out + ".tmp", a.out)

    def elapsed(self):
        return time.monotonic() - self.begin

    def say(self, **what):
        line = json.dumps({"step": self.step, "seconds": round(self.before + self.elapsed(), 1), **what})
        print(line, flush=True)
        if self.log:
            print(line, file=self.log, flush=True)

    def world(self):
        """Textures, the pairs that test, and the pool of pairs that steps draw from."""
        a, device = self.args, self.device
        canvas = [a.crop[0] + 32, a.crop[1] + 64]

        def held():
            torch.manual_seed(12345)
            bank = make_bank(a.textures, a.texture_size, a.leaves, device)
            parts = [make_pairs(a.make, *canvas, bank) for _ in range(max(a.held // a.make, 1))]
            return [torch.cat(x) for x in zip(*parts)]
        self.held = fused(held, device, a.fuse)
        self.say(held=len(self.held[0]))
        torch.manual_seed(a.seed + 7919 * self.step + 1)
        self.bank = make_bank(a.textures, a.texture_size, a.leaves, device)
        self.pairs = torch.empty(a.pool, *canvas, 6, dtype=torch.uint8, device=device)
        self.flow = torch.empty(a.pool, *canvas, 2, device=device)
        self.next = 0
        self.make = captured(lambda: make_pairs(a.make, *canvas, self.bank), device, a.graphs)
        for _ in range(a.pool // a.make):
            self.renew()

    def renew(self):
        """New pairs for the oldest of the pool."""
        pairs, flow = self.make()
        n = len(pairs)
        self.pairs[self.next:self.next + n] = pairs
        self.flow[self.next:self.next + n] = flow
        self.next = (self.next + n) % (self.args.pool // n * n)

    def update(self):
        """One step: loss and error.   → (2)"""
        a = self.args
        index = torch.randint(0, len(self.pairs), (a.batch,), device=self.device)
        pictures, truth, counts = crops(self.pairs, self.flow, index, a.crop)
        pictures = (light(pictures) * 2 - 1).contiguous(memory_format=torch.channels_last)
        self.opt.zero_grad(set_to_none=True)
        flows = estimate(self.net, pictures[:, :3], pictures[:, 3:], a.updates, a.half)
        up = enlarge(flows.flatten(0, 1)).view(a.updates, *truth.shape)
        counts = counts.float()
        gamma = 0.8 ** torch.arange(a.updates - 1, -1, -1, device=self.device)
        each = ((up - truth).abs() * counts.unsqueeze(1)).mean((1, 2, 3, 4))
        loss = (each * gamma).sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.opt.found_inf = (~torch.isfinite(norm)).float()  # the fused optimizer then leaves the weights as they are
        self.opt.step()
        return torch.stack([loss.detach(), error(up[-1].detach(), truth, counts)])

    @torch.no_grad()
    def test(self):
        """End-point error on pairs not trained on, of textures not trained on, with 12 updates."""
        total = 0.0
        for k in range(0, len(self.held[0]), 8):
            index = torch.arange(k, min(k + 8, len(self.held[0])), device=self.device)
            pictures, truth, counts = crops(*self.held, index, self.args.crop, plain=True)
            pictures = pictures * 2 - 1
            flow = enlarge(estimate(self.net, pictures[:, :3], pictures[:, 3:], 12, False)[-1])
            total += error(flow, truth, counts.float()).item() * len(index)
        return round(total / len(self.held[0]), 4)

    def set_rate(self):
        """OneCycle by time: up over the first twentieth, then down in a line."""
        done = min((self.elapsed() - self.ready) / max(self.args.seconds - self.ready, 1), 1.0)
        self.rate.fill_(self.args.lr * max(min(done / 0.05, (1 - done) / 0.95), 1e-3))

    def run(self):
        a = self.args
        self.world()
        self.say(ready=True, device=torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
                 textures=a.textures, pool=a.pool)
        update = captured(self.update, self.device, a.graphs)
        if a.graphs:  # what is captured stays fast
            exact()
        self.ready = began = tested = self.elapsed()
        due, started, total, count = began + a.every, self.step, 0, 0
        while self.elapsed() < a.seconds and self.step < started + a.steps:
            self.set_rate()
            total = total + update()
            self.step, count = self.step + 1, count + 1
            if self.step % a.reuse == 0:
                self.renew()
            if self.step % 20:
                continue
            mean = (total / count).tolist()  # waits for the device, which else would be far behind
            if self.elapsed() < due:
                continue
            more = {"held_epe": self.test()} if self.elapsed() - tested > 3 * a.every else {}
            if more:
                tested = self.elapsed()
                more.update(real_errors(self.net, a.scenes, self.device) if a.scenes else {})
                if math.isfinite(mean[0]):
                    self.save()
            self.say(loss=round(mean[0], 4), epe=round(mean[1], 4), lr=float(self.rate), **more,
                     per_second=round((self.step - started) / (self.elapsed() - began), 2))
            due, total, count = self.elapsed() + a.every, 0, 0
        self.save()
        self.say(held_epe=self.test(), **(real_errors(self.net, a.scenes, self.device) if a.scenes else {}),
                 per_second=round((self.step - started) / (self.elapsed() - began), 2), done=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    pair = dict(type=lambda s: [int(x) for x in s.split("x")], metavar="HxW")
    p.add_argument("--seconds", type=float, default=330, help="stop, and have the learning rate down, after so long")
    p.add_argument("--steps", type=int, default=1 << 40, help="or after so many steps")
    p.add_argument("--resume", help="a checkpoint that --save wrote; a learning-rate cycle begins anew")
    p.add_argument("--save", help="checkpoint, with the optimizer's state")
    p.add_argument("--out", help="weights in half precision, safetensors, for ma-flow")
    p.add_argument("--log", help="JSON lines, added at the end")
    p.add_argument("--scenes", help="folder of real scenes with their flow")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--lr", type=float, default=6e-4, help="the highest")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--crop", default=[256, 320], **pair)
    p.add_argument("--updates", type=int, default=8, help="in training; tests take 12")
    p.add_argument("--pool", type=int, default=2048, help="pairs kept to draw from")
    p.add_argument("--make", type=int, default=8, help="pairs made at a time …")
    p.add_argument("--reuse", type=int, default=2, help="… every so many steps")
    p.add_argument("--textures", type=int, default=192)
    p.add_argument("--texture-size", type=int, default=512, help="a power of two")
    p.add_argument("--leaves", type=int, default=400)
    p.add_argument("--held", type=int, default=32)
    p.add_argument("--every", type=float, default=10, help="seconds between lines of the log")
    p.add_argument("--no-half", dest="half", action="store_false", help="convolutions in 32 bits")
    p.add_argument("--no-graphs", dest="graphs", action="store_false", help="no CUDA graphs")
    p.add_argument("--no-fuse", dest="fuse", action="store_false", help="no compiled drawing")
    args = p.parse_args()
    fast()
    Training(args).run()


if __name__ == "__main__":
    main()
