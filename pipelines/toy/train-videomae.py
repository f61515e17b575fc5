#!/usr/bin/env python3
"""train-videomae: pretrains the toy world's VideoMAE by masked reconstruction and writes its encoder: five minutes of a
GPU.

    ma-toy -q -n 20000 --clip 17x48x48@12 --balls 2 --drop flow.npy |
        ma-extract -q -z 0 --clip 17x48x48@12 -e pixel=2 --drop mp4 |
        train-videomae.py --seconds 270 --save videomae.pt --out videomae.safetensors --log videomae.jsonl -

Clips are members .latent.npy of plain shards: pixels folded into channels, which a machine without a video library can
read. Frames that whole tubelets leave over are dropped at the front, as ma-extract does (frame 0 of 17). All clips stay
on the device as bytes: 108 KB one of 17x48x48.

VideoMAE (Tong et al., NeurIPS 2022): three quarters of the patches are hidden, the encoder sees the others, and a small
decoder says what the pixels of the hidden ones are, each patch and colour less its mean and divided by its deviation.
In half of the clips the same patches are hidden all along (tubes, as there): what passes there is told by how it moves
elsewhere. In the other half each patch is hidden by itself (Feichtenhofer et al., NeurIPS 2022): the same place is seen
at another time, and where the camera or a ball moves, one must know by how much. Clips are mirrored at random.

The file has the names of transformers' VideoMAEModel with its last norm (use_mean_pooling off): the tokens of
ma-extract -e videomae=FILE, whose norm is ImageNet's by default, are this encoder's.

The learning rate follows the time that was spent of --seconds, over all runs where one went on from another's
checkpoint (--resume).

Traps: the deviation has a floor, or plain walls would become their coder's noise. Keys have no bias: it would cancel in
the softmax. On a GPU a step is compiled and launched as one CUDA graph: nothing in it may wait for the device, and the
rate is a tensor.
Limits: one GPU. Runs on a CPU at tiny size, for trials.
"""
import argparse
import io
import json
import math
import os
import sys
import tarfile
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, on 0..1
TUBELET = 2
FLOOR = 0.02  # of a patch's deviation, on 0..1


# ---- clips

def read_latents(paths):
    """Arrays (C, T, H, W) of half precision, pixels in ±1: the mean's channels, without those of the log-variance."""
    for path in paths:
        with tarfile.open(path) if path != "-" else tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
            for member in tar:
                if member.name.endswith(".latent.npy"):
                    x = np.load(io.BytesIO(tar.extractfile(member).read()))
                    yield x[:len(x) // 2]


def to_patches(x, patch):
    """x (N, C, T, H, W), folded pixels → bytes (N, L, 3·2·p·p), patches row by row, of each all tubelets; in a patch
    channels slowest, then frames, rows, columns: the order of the embedding's weights."""
    n, c, frames, height, width = x.shape
    fold = math.isqrt(c // 3)
    inner = patch // fold
    x = x[:, :, frames % TUBELET:].reshape(n, 3, fold, fold, frames // TUBELET, TUBELET, height // inner, inner,
                                           width // inner, inner)
    x = x.permute(0, 6, 8, 4, 1, 5, 7, 2, 9, 3)  # n, y, x, t, colour, frame, (row, row), (column, column)
    x = ((x.float() + 1) * 127.5).round().to(torch.uint8)
    return x.reshape(n, -1, 3 * TUBELET * patch * patch)


def load_clips(paths, patch, device, chunk=256):
    """Patches (N, L, 3·2·p·p) on the device, and their grid (T, rows, columns)."""
    parts, waiting, grid = [], [], None

    def flush():
        parts.append(to_patches(torch.from_numpy(np.stack(waiting)).to(device), patch))
        waiting.clear()

    for x in read_latents(paths):
        fold = math.isqrt(len(x) // 3)
        grid = x.shape[1] // TUBELET, x.shape[2] * fold // patch, x.shape[3] * fold // patch
        waiting.append(x)
        if len(waiting) == chunk:
            flush()
    if waiting:
        flush()
    if not parts:
        sys.exit("train-videomae: no .latent.npy in " + " ".join(paths))
    return torch.cat(parts), grid


# ---- the network

def position_table(grid, width):
    """(L, D): sine and cosine of the flat index in (t, y, x), laid as the patches are."""
    j = torch.arange(width, dtype=torch.float64)
    index = torch.arange(math.prod(grid), dtype=torch.float64).view(grid).permute(1, 2, 0).reshape(-1, 1)
    angle = index / 10000 ** (j // 2 * 2 / width)
    return torch.where(j % 2 == 0, angle.sin(), angle.cos()).float()


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):                                                            # (B, L, D)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        y = F.linear(self.norm1(x), self.qkv.weight, bias)
        q, k, v = y.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)         # (B, h, L, D/h) each
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, args, grid):
        super().__init__()
        self.patch = args.patch
        colour = torch.tensor([MEAN, DEVIATION]).repeat_interleave(TUBELET * args.patch ** 2, 1)
        self.register_buffer("colour", colour, persistent=False)                     # (2, 3·2·p·p)
        self.embed = nn.Linear(3 * TUBELET * args.patch ** 2, args.width)
        self.blocks = nn.ModuleList(Block(args.width, args.heads) for _ in range(args.depth))
        self.norm = nn.LayerNorm(args.width, eps=1e-12)
        self.register_buffer("at", position_table(grid, args.width), persistent=False)

    def forward(self, x, places):
        """x (B, K, 3·2·p·p) on 0..1, the patches at places (B, K) → (B, K, D)."""
        x = self.embed((x - self.colour[0]) / self.colour[1]) + self.at[places]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def named_as_published(self):
        """The parameters under the names of transformers' VideoMAEModel."""
        p = self.patch
        out = {"embeddings.patch_embeddings.projection.weight": self.embed.weight.unflatten(1, (3, TUBELET, p, p)),
               "embeddings.patch_embeddings.projection.bias": self.embed.bias}
        for k, b in enumerate(self.blocks):
            at = f"encoder.layer.{k}."
            for name, rows in zip(("query", "key", "value"), b.qkv.weight.chunk(3)):
                out[f"{at}attention.attention.{name}.weight"] = rows
            out |= {at + "attention.attention.q_bias": b.q_bias, at + "attention.attention.v_bias": b.v_bias}
            for name, part in {"layernorm_before": b.norm1, "attention.output.dense": b.proj,
                               "layernorm_after": b.norm2, "intermediate.dense": b.fc1, "output.dense": b.fc2}.items():
                out |= {f"{at}{name}.weight": part.weight, f"{at}{name}.bias": part.bias}
        return out | {"layernorm.weight": self.norm.weight, "layernorm.bias": self.norm.bias}


class Decoder(nn.Module):
    def __init__(self, args, grid):
        super().__init__()
        width = args.decoder_width
        self.embed = nn.Linear(args.width, width, bias=False)
        self.hidden = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, width // 32) for _ in range(args.decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3 * TUBELET * args.patch ** 2)
        # Learned, apart in space and time: from a table as the encoder's it takes ten times the steps to begin.
        self.where = nn.Parameter(0.5 * torch.randn(grid[1] * grid[2], 1, width))
        self.when = nn.Parameter(0.5 * torch.randn(grid[0], width))

    def forward(self, tokens, seen, hidden):
        """tokens (B, K, D) at places seen (B, K); hidden (B, M) → pixels (B, M, 3·2·p·p) there."""
        at = (self.where + self.when).flatten(0, 1)                                  # (L, D)
        x = torch.cat([self.embed(tokens) + at[seen], self.hidden + at[hidden]], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, tokens.shape[1]:]))


class Autoencoder(nn.Module):
    def __init__(self, args, grid):
        super().__init__()
        self.encoder, self.decoder = Encoder(args, grid), Decoder(args, grid)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        nn.init.normal_(self.decoder.hidden, std=0.02)

    def forward(self, x, order, keep):
        """x, bytes (B, L, 3·2·p·p), laid in the order (B, L) of places, of which the first `keep` are seen → mean
        squared error of the others."""
        x = x.float() / 255
        said = self.decoder(self.encoder(x[:, :keep], order[:, :keep]), order[:, :keep], order[:, keep:])
        wanted = x[:, keep:].unflatten(2, (3, -1))                                   # (B, M, 3, 2·p·p)
        variance, mean = torch.var_mean(wanted, 3, keepdim=True)
        wanted = (wanted - mean) / (variance + FLOOR ** 2).sqrt()
        return F.mse_loss(said.float(), wanted.flatten(2))


# ---- training

class Trainer:
    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        self.cuda = self.device.type == "cuda"
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high")
        clips, self.grid = load_clips(args.shards, args.patch, self.device)
        held = min(512, max(1, len(clips) // 20))
        self.clips, self.held = clips[held:], clips[:held]
        self.keep = max(1, round(self.grid[1] * self.grid[2] * (1 - args.mask))) * self.grid[0]
        self.net = Autoencoder(args, self.grid).to(self.device)
        self.rate = torch.tensor(0.0, device=self.device)
        matrices = [p for p in self.net.parameters() if p.ndim > 1]
        vectors = [p for p in self.net.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [dict(params=matrices), dict(params=vectors, weight_decay=0.0)], lr=self.rate, betas=(0.9, 0.95),
            weight_decay=0.05, fused=self.cuda, capturable=self.cuda)
        self.step, self.before, self.begin = 0, 0.0, None
        if args.resume:
            self.load(args.resume)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        if self.cuda and args.compile:
            for block in [*self.net.encoder.blocks, *self.net.decoder.blocks]:
                block.compile(dynamic=False)
        self.make_inputs()
        self.log_file = open(args.log, "a" if args.resume else "w", buffering=1) if args.log else None

    def make_inputs(self):
        """What a step reads, at fixed addresses: clips, the places' order, which clips are mirrored."""
        b = self.args.batch
        self.index = torch.zeros(b, dtype=torch.long, device=self.device)
        self.noise = torch.zeros(b, self.clips.shape[1], device=self.device)
        self.mirrored = torch.zeros(b, dtype=torch.bool, device=self.device)
        self.loss = torch.zeros((), device=self.device)

    def draw(self):
        self.index.random_(len(self.clips))
        self.noise.uniform_()
        self.mirrored.random_(2)

    def order(self, noise):
        """Noise (B, L) → places in a random order (B, L); in some of the clips whole tubes follow one another."""
        tubes = noise[:round(len(noise) * self.args.tubes)]
        whole = tubes[:, ::self.grid[0]].repeat_interleave(self.grid[0], 1)
        return torch.cat([whole, noise[len(tubes):]]).argsort(1)

    def batch(self):
        """Clips' patches in a random order of places, half of the clips mirrored."""
        order = self.order(self.noise)                                               # (B, L)
        frames, columns = self.grid[0], self.grid[2]
        column = order // frames % columns
        rows = torch.where(self.mirrored[:, None], order + (columns - 1 - 2 * column) * frames, order)
        x = self.clips[self.index[:, None], rows]                                    # (B, L, 3·2·p·p)
        flipped = x.unflatten(2, (-1, self.args.patch)).flip(3).flatten(2)
        return torch.where(self.mirrored[:, None, None], flipped, x), order

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda, cache_enabled=False)

    def update(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.net(*self.batch(), self.keep)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def capture(self):
        """One step as a function without arguments. A graph needs some steps before it: they are taken at rate 0."""
        if not (self.cuda and self.args.graphs):
            return self.update
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.update()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.update()
        return graph.replay

    @torch.no_grad()
    def test(self):
        """The error on clips not trained on, always under the same masks."""
        noise = torch.rand(self.held.shape[:2], generator=torch.Generator().manual_seed(1))
        order = self.order(noise.to(self.device))
        x = self.held.gather(1, order[:, :, None].expand_as(self.held))
        total = 0.0
        for part, places in zip(x.split(64), order.split(64)):
            with self.autocast(), torch.compiler.set_stance("force_eager"):
                total += self.net(part, places, self.keep).item() * len(part)
        return total / len(x)

    def seconds(self):
        return self.before + time.monotonic() - self.begin

    def say(self, **fields):
        line = json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in fields.items()},
                          separators=(",", ":"))
        print(line, file=sys.stderr)
        if self.log_file:
            print(line, file=self.log_file)

    def run(self):
        args = self.args
        self.say(clips=len(self.clips), grid=list(self.grid), seen=self.keep, of=self.clips.shape[1],
                 encoder=sum(p.numel() for p in self.net.encoder.parameters()),
                 decoder=sum(p.numel() for p in self.net.decoder.parameters()))
        self.draw()
        take = self.capture()
        self.begin = time.monotonic()
        first = spoken_step = self.step
        spoken, saved = self.before, self.begin
        while True:
            done = max(self.seconds() / args.seconds, self.step / args.steps)
            warm = min((self.step - first + 1) / args.warmup, 1)
            self.rate.fill_(args.lr * warm * (1 + math.cos(math.pi * min(done, 1))) / 2)
            if done >= 1:
                break
            self.draw()
            take()
            self.step += 1
            if self.cuda and self.step % 16 == 0:
                torch.cuda.synchronize()  # launches run ahead of the device, and the clock with them
            now = self.seconds()
            if now - spoken >= args.every or self.step == first + 1:
                self.say(step=self.step, loss=self.loss.item(), held=self.test(), lr=self.rate.item(), seconds=now,
                         clips_per_s=args.batch * (self.step - spoken_step) / max(now - spoken, 1e-3))
                spoken, spoken_step = self.seconds(), self.step
            if args.save and time.monotonic() - saved >= 60:
                self.save()
                saved = time.monotonic()
        self.say(step=self.step, loss=self.loss.item(), held=self.test(), lr=0.0, seconds=self.seconds())
        if args.save:
            self.save()
        if args.out:
            self.write()

    def save(self):
        state = dict(net=self.net.state_dict(), optimizer=self.optimizer.state_dict(), step=self.step,
                     seconds=self.seconds())
        torch.save(state, self.args.save + ".part")
        os.replace(self.args.save + ".part", self.args.save)

    def load(self, path):
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.before = state["step"], state["seconds"]

    def write(self):
        weights = {k: v.detach().cpu().half().contiguous() for k, v in self.net.encoder.named_as_published().items()}
        save_file(weights, self.args.out, {"format": "pt"})
        os.chmod(self.args.out, 0o644)  # the library makes it for the owner alone


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shards", nargs="+", metavar="SHARD", help="a plain tar, - for standard input")
    p.add_argument("--seconds", type=float, default=270, help="stop, and have the learning rate down, after so long")
    p.add_argument("--steps", type=int, default=1 << 40, help="or after so many steps")
    p.add_argument("--resume", help="a checkpoint that --save wrote; its steps and seconds count")
    p.add_argument("--save", help="checkpoint, every minute and at the end")
    p.add_argument("--out", help="the encoder in half precision, safetensors, for ma-extract")
    p.add_argument("--log", help="JSON lines")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--lr", type=float, default=1e-3, help="the highest")
    p.add_argument("--warmup", type=int, default=500, help="steps")
    p.add_argument("--mask", type=float, default=0.75, help="share of the patches that is hidden")
    p.add_argument("--tubes", type=float, default=0.5, help="share of clips with the same patches hidden all along")
    p.add_argument("--patch", type=int, default=8)
    p.add_argument("--width", type=int, default=192)
    p.add_argument("--depth", type=int, default=6)
    p.add_argument("--heads", type=int, default=3)
    p.add_argument("--decoder-width", type=int, default=128, help="a multiple of 32")
    p.add_argument("--decoder-depth", type=int, default=3)
    p.add_argument("--every", type=float, default=10, help="seconds between lines of the log")
    p.add_argument("--no-graphs", dest="graphs", action="store_false", help="no CUDA graph")
    p.add_argument("--no-compile", dest="compile", action="store_false", help="no compiled blocks")
    Trainer(p.parse_args()).run()


if __name__ == "__main__":
    main()
