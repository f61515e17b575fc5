"""Golden outputs, losses and gradients of CogVideoX's transformer, both position styles, with the alignment. Regenerate:

    python3 tests/golden/cogvideox.py

Needs torch and diffusers, whose transformer and scheduler are the reference; the projector and the losses are written
here from the text, with whole matrices of relations. Everything is computed in double from the float32 weights (the
scheduler's table and the rotary embedding stay float32, as diffusers has them).

    CASE/velocity, CASE/hidden        the output, and the video tokens after block `hidden_after`
    CASE/bare                         the output for the first sample without any text
    CASE/diff, CASE/LOSS              L_diff in METHOD's form (x0, weighted); L_align of each loss
    CASE/grad/LOSS/PARAMETER          of L_diff + lambda * L_align; of L_diff alone for `none`

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


def align(loss, z, m):
    if loss == "repa":
        return -F.cosine_similarity(z, m, dim=-1).mean()
    d = difference(z, m)
    frames = range(d.shape[1])
    if loss == "trd":
        return F.relu(d - MARGIN).mean()
    same = torch.stack([d[:, f, :, f] for f in frames], 1)                   # (B, F, N, N)
    if loss == "trd-spatial":
        return F.relu(same - MARGIN).mean()
    if loss == "trd-temporal":
        return torch.stack([F.relu(d[:, f, :, g] - MARGIN) for f in frames for g in frames if f != g]).mean()
    assert loss == "soft-trd"
    distance = torch.tensor([[abs(f - g) for g in frames] for f in frames], dtype=d.dtype)
    weight = torch.where(distance > 0, torch.exp(-distance / TAU), 0)
    return same.mean() + (weight[None, :, None, :, None] * d).mean()


def rotary(net, frames, height, width):
    c = net.config
    grid = height // c.patch_size, width // c.patch_size
    crop = get_resize_crop_region_for_grid(grid, c.sample_width // c.patch_size, c.sample_height // c.patch_size)
    return get_3d_rotary_pos_embed(c.attention_head_dim, crop, grid, frames)


def case(name, rotates, latent, text_length, target, losses):
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

    parameters = dict(net.named_parameters()) | dict(projector.named_parameters())
    plain = {}
    for loss in ["none"] + losses:
        total = diff
        if loss != "none":
            value = align(loss, projector(hidden), teacher)
            c.keep(loss, value)
            total = diff + LAMBDA * value
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
    save("cogvideox", [
        # The projector as published: time doubled, a third of the size in space.
        case("sincos", False, [5, 12, 18], MAX_TEXT, [8, 2, 3], ["soft-trd", "trd", "trd-spatial", "trd-temporal", "repa"]),
        # Another grid than the configuration's (the rotary grid is scaled), fewer text tokens, a teacher of any size.
        case("rotary", True, [4, 8, 14], 3, [5, 3, 5], ["soft-trd"]),
    ])
