"""Golden outputs of CogVideoX's autoencoder. Regenerate:

    python3 tests/golden/vae.py

Reference: diffusers AutoencoderKLCogVideoX. Needs torch and diffusers. Everything is computed in double from the float32
weights. Of each result every EVERY-th position is kept.
"""
import json

import torch
from diffusers import AutoencoderKLCogVideoX

from formula import Case, save

EVERY = 7


def moments(net, x):
    return net.encode(x, return_dict=False)[0].parameters


def pixels(net, z):
    return net.decode(z, return_dict=False)[0]


def keep(case, name, run, net, x, every):
    """x and the result stand channels last in the fixture."""
    y = run(net, x.double().permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    case.keep(name, y.reshape(-1, y.shape[-1])[::every])


def vae_case(name, clips, latents, size, tiled=False, **config):
    """clips, latents: numbers of frames; size: batch, height and width of latents."""
    net = AutoencoderKLCogVideoX(**config).eval()
    case = Case(name, config=json.loads(net.to_json_string()), clips=clips, latents=latents, every=EVERY, tiled=tiled)
    case.fill(net)
    net.double()
    if tiled:
        net.enable_tiling()
    batch, height, width = size
    scale = 2 ** (len(config["block_out_channels"]) - 1)
    for n in clips:
        x = case.input(f"x{n}", [batch, n, scale * height, scale * width, 3])
        keep(case, f"encode{n}", moments, net, x, 1)
    for n in latents:
        z = case.input(f"z{n}", [batch, n, height, width, config["latent_channels"]], 0.0, 2.0)
        keep(case, f"decode{n}", pixels, net, z, EVERY)
    return case


if __name__ == "__main__":
    published = dict(block_out_channels=(8, 16, 16, 24), latent_channels=4, layers_per_block=1, norm_num_groups=4,
                     sample_height=96, sample_width=80)
    other = dict(block_out_channels=(8, 8, 16), down_block_types=("CogVideoXDownBlock3D",) * 3,
                 up_block_types=("CogVideoXUpBlock3D",) * 3, latent_channels=3, layers_per_block=2, norm_num_groups=2,
                 norm_eps=1e-2, temporal_compression_ratio=2, scaling_factor=0.7, invert_scale_latents=True,
                 sample_height=32, sample_width=32)
    with torch.no_grad():
        save("vae", [
            vae_case("plain", [1, 2, 3, 5, 8, 9, 13, 17, 24], [1, 2, 3, 4, 5, 7], (1, 3, 4), **published),
            vae_case("tiled", [9, 17], [2, 5], (1, 8, 9), tiled=True, **published),
            vae_case("other", [10, 16], [1, 4, 5], (2, 4, 3), **other),
        ])
