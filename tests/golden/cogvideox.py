"""Golden outputs, losses and gradients of CogVideoX's transformer, both position styles, with the alignment. Regenerate:

    python3 tests/golden/cogvideox.py

Needs torch and diffusers, whose transformer and scheduler are the reference; the projector, the adapters and the losses
are written here from the text, with whole matrices of relations; those of VideoREPA as its published trainer computes
them. Everything is computed in double from the float32 weights (the scheduler's table and the rotary embedding stay
float32, as diffusers has them).

    CASE/velocity, CASE/hidden        the output, and the video tokens after block `hidden_after`
    CASE/bare                         the output for the first sample without any text
    CASE/diff, CASE/NAME              L_diff in METHOD's form (x0, weighted); L_align of each kind
    CASE/total/LOSS                   L_diff + sum of weight * L_align; LOSS as --loss has it, NAME or NAME=X,NAME=X
    CASE/grad/LOSS/PARAMETER          of that; of L_diff alone for `none`. With adapters, of what is trained with them

To save space a gradient that is the same bit for bit as that of `none` (everything after the block that is aligned) is
not stored again: the test takes that of `none` where there is no other.
"""
import json

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import nn
from torch.nn import functional as F

from formula import Case, save

LAMBDA, TAU, MARGIN = 0.5, 10.0, 0.1
CHANNELS, TEXT_DIM, MAX_TEXT, OUT, AFTER = 4, 24, 5, 8, 1
TIMES = [999, 137]


class Projector(nn.Module):
    """METHOD, stage 2: Z = P(Y)."""

    def __init__(self, width, hidden, target):
        super().__init__()
        frames, height, width_ = hidden
        self.thirds = target == [2 * (frames - 1), height // 3, width_ // 3]
        self.size = [2 * (frames - 1), height, width_] if self.thirds else target
        self.projector = nn.Sequential(nn.Conv3d(width, 256, (3, 1, 1), padding=(1, 0, 0)), nn.SiLU(),
                                       nn.Conv3d(256, OUT, 1))
        self.projector.down = nn.Conv2d(OUT, OUT, 3, **(dict(stride=3) if self.thirds else dict(padding=1)))

    def forward(self, y):                                                    # (B, F, h, w, width)
        z = self.projector[:3](y[:, 1:].permute(0, 4, 1, 2, 3))              # (B, OUT, F-1, h, w)
        z = F.interpolate(z, size=self.size, mode="trilinear", align_corners=False)
        z = torch.stack([self.projector.down(frame) for frame in z.unbind(2)], 2)
        return z.permute(0, 2, 3, 4, 1)                                      # (B, T, H, W, OUT)


def difference(z, m):
    """|S_Z - S_M| as (B, F, N, F, N)."""
    z, m = (F.normalize(x.flatten(2, 3), dim=-1) for x in (z, m))
    return (torch.einsum("bfnc,bgmc->bfngm", z, z) - torch.einsum("bfnc,bgmc->bfngm", m, m)).abs()


def videorepa(loss, z, m):
    """The formulas of VideoREPA's trainer (finetune/models/cogvideox_t2v_align): tokens normalised, then all products."""
    z, m = (F.normalize(x.flatten(2, 3), dim=-1) for x in (z, m))            # (B, F, N, C)
    frames = z.shape[1]
    z, m = (x.flatten(0, 1) if loss == "trd-spatial" else x.flatten(1, 2) for x in (z, m))
    over = F.relu((torch.bmm(z, z.transpose(1, 2)) - torch.bmm(m, m.transpose(1, 2))).abs() - MARGIN)
    if loss == "trd-temporal":
        over = over.unflatten(2, (frames, -1)).unflatten(1, (frames, -1)).clone()  # (B, F, N, F, N)
        for f in range(frames):
            over[:, f, :, f, :] = 0
        return over.mean() * frames / (frames - 1)
    return over.mean()


def align(loss, z, m):
    if loss == "repa":
        return -F.cosine_similarity(z, m, dim=-1).mean()
    if loss.startswith("trd"):
        return videorepa(loss, z, m)
    assert loss == "soft-trd"
    d = difference(z, m)
    frames = range(d.shape[1])
    same = torch.stack([d[:, f, :, f] for f in frames], 1)                   # (B, F, N, N)
    distance = torch.tensor([[abs(f - g) for g in frames] for f in frames], dtype=d.dtype)
    weight = torch.where(distance > 0, torch.exp(-distance / TAU), 0)
    return same.mean() + (weight[None, :, None, :, None] * d).mean()


class Adapted(nn.Module):
    """A linear map with an adapter: Wx + alpha/rank * B(Ax)."""

    def __init__(self, linear, a, b, scale):
        super().__init__()
        self.linear, self.a, self.b, self.scale = linear, nn.Parameter(a), nn.Parameter(b), scale

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.a.T) @ self.b.T


def adapt(net, c, rank, alpha, targets):
    """Puts adapters on the modules whose names end so; their parameters by their names in diffusers' file."""
    found = {}
    for name, module in list(net.named_modules()):
        if not any(name.endswith("." + t) for t in targets):
            continue
        stem, out = f"transformer.{name}.lora_", module.weight.shape[0]
        one = Adapted(module, c.param(stem + "A.weight", [rank, module.weight.shape[1]]),
                      c.param(stem + "B.weight", [out, rank]), alpha / rank)
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, one)
        found |= {stem + "A.weight": one.a, stem + "B.weight": one.b}
    return found


def rotary(net, frames, height, width):
    c = net.config
    grid = height // c.patch_size, width // c.patch_size
    crop = get_resize_crop_region_for_grid(grid, c.sample_width // c.patch_size, c.sample_height // c.patch_size)
    return get_3d_rotary_pos_embed(c.attention_head_dim, crop, grid, frames)


def case(name, rotates, latent, text_length, target, losses, lora=None):
    frames, height, width = latent
    net = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=CHANNELS, out_channels=CHANNELS, time_embed_dim=16,
        text_embed_dim=TEXT_DIM, num_layers=2, sample_width=18, sample_height=12, sample_frames=17,
        max_text_seq_length=MAX_TEXT, temporal_interpolation_scale=1.25, use_rotary_positional_embeddings=rotates)
    scheduler = CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, snr_shift_scale=3.0, timestep_spacing="trailing", clip_sample=False)
    hidden_size = [frames, height // 2, width // 2]
    projector = Projector(32, hidden_size, target)
    c = Case(name, config=json.loads(net.to_json_string()), scheduler=json.loads(scheduler.to_json_string()),
             times=TIMES, hidden_after=AFTER, target=target, out=OUT, losses=losses,
             tau=TAU, margin=MARGIN, **{"lambda": LAMBDA})
    c.fill(net, gain=1.5)
    c.fill(projector, gain=1.5)
    adapters = adapt(net, c, **lora) if lora else {}
    c.meta["lora"] = lora
    net, projector = net.double(), projector.double()
    x0, noise = (c.input(n, [2, *latent, CHANNELS]).double().permute(0, 1, 4, 2, 3) for n in ("x0", "noise"))
    text = c.input("text", [2, text_length, TEXT_DIM]).double()
    teacher = c.input("teacher", [2, *target, OUT]).double()
    times = torch.tensor(TIMES)
    noisy = scheduler.add_noise(x0, noise, times)
    frequencies = rotary(net, *latent) if rotates else None

    tokens = []
    hook = net.transformer_blocks[AFTER - 1].register_forward_hook(lambda _m, _i, out: tokens.append(out[0]))
    velocity = net(noisy, text, times, image_rotary_emb=frequencies).sample
    hook.remove()
    hidden = tokens[0].unflatten(1, hidden_size)
    c.keep("velocity", velocity.permute(0, 1, 3, 4, 2))
    c.keep("hidden", hidden)

    alpha_bar = scheduler.alphas_cumprod.double()[times].view(-1, 1, 1, 1, 1)
    x0_hat = scheduler.get_velocity(velocity, noisy, times)
    diff = ((x0_hat - x0).square() / (1 - alpha_bar)).mean()
    c.keep("diff", diff)

    parameters = (adapters or dict(net.named_parameters())) | dict(projector.named_parameters())
    plain = {}
    for loss in ["none"] + losses:
        total = diff
        for term in loss.split(",") if loss != "none" else []:
            kind, _, weight = term.partition("=")
            value = align(kind, projector(hidden), teacher)
            c.keep(kind, value)
            total = total + float(weight or LAMBDA) * value
        c.keep(f"total/{loss}", total)
        grads = torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
        for key, grad in zip(parameters, grads):
            if grad is None:
                assert loss == "none" and key.startswith("projector.")
            elif loss == "none" or key not in plain or not torch.equal(grad, plain[key]):
                c.keep(f"grad/{loss}/{key}", grad)
                if loss == "none":
                    plain[key] = grad

    with torch.no_grad():
        if not rotates:  # diffusers adds its table to text and video at once
            net.patch_embed.max_text_seq_length = 0
            net.patch_embed.pos_embedding = net.patch_embed.pos_embedding[:, MAX_TEXT:]
        bare = net(noisy[:1], text[:1, :0], times[:1], image_rotary_emb=frequencies).sample
        c.keep("bare", bare.permute(0, 1, 3, 4, 2))
    return c


if __name__ == "__main__":
    every = ["soft-trd", "trd", "trd-spatial", "trd-temporal", "repa"]
    save("cogvideox", [
        # The projector as published: time doubled, a third of the size in space.
        case("sincos", False, [5, 12, 18], MAX_TEXT, [8, 2, 3], every),
        # Another grid than the configuration's (the rotary grid is scaled), fewer text tokens, a teacher of any size.
        case("rotary", True, [4, 8, 14], 3, [5, 3, 5], every + ["soft-trd=0.25,trd=2,repa=0.125"]),
        case("adapted", True, [3, 8, 12], 3, [4, 2, 3], ["soft-trd"],
             dict(rank=3, alpha=6.0, targets=["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"])),
    ])
