#!/usr/bin/env python3
"""Prints the tables of tests/unit/schedule.c, as diffusers computes them. Needs torch and diffusers.

usage: tests/golden/schedule.py > tests/unit/schedule_table.h
"""
import math

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from diffusers.schedulers import scheduling_dpm_cogvideox as dpm

FIELDS = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
              clip_sample=False, set_alpha_to_one=True, steps_offset=0, prediction_type="v_prediction",
              timestep_spacing="trailing", rescale_betas_zero_snr=True, snr_shift_scale=3.0)
AT = [0, 1, 2, 10, 99, 250, 499, 500, 750, 900, 990, 998, 999]


def table(kind, name, values, per_line):
    print(f"static const {kind} {name}[] = {{")
    for i in range(0, len(values), per_line):
        print("    " + " ".join(f"{v}," for v in values[i:i + per_line]))
    print("};")


def alphas(name, **change):
    s = CogVideoXDDIMScheduler(**{**FIELDS, **change})
    table("double", name, [repr(s.alphas_cumprod[t].item()) for t in AT], 4)


def timesteps(n):
    s = CogVideoXDDIMScheduler(**FIELDS)
    s.set_timesteps(n)
    return s.timesteps.tolist()


def chain(n):
    """n steps from fixed numbers, in float64; the model is v = sin(x + t/100)."""
    s = CogVideoXDDIMScheduler(**FIELDS)
    s.set_timesteps(n)
    x = torch.tensor([-2.0, -0.7, -0.01, 0.0, 0.3, 1.1, 2.5, 4.0], dtype=torch.float64)
    for t in s.timesteps.tolist():
        v = torch.sin(x + t / 100)
        x = s.step(v, t, x).prev_sample
    return [repr(v) for v in x.tolist()]


def walk(cls, n, **change):
    """Two numbers after each of n steps of a sampler; the model is v = sin(x + t/100), the noise of step i and element k
    cos(3k + i). Whatever the sampler draws itself, twice a step, is replaced by that."""
    s = cls(**{**FIELDS, **change})
    s.set_timesteps(n)
    x = torch.tensor([-2.0, 1.1], dtype=torch.float64)
    last, seen, times = None, [], s.timesteps.tolist()
    for i, t in enumerate(times):
        v = torch.sin(x + t / 100)
        dpm.randn_tensor = lambda *a, **k: torch.cos(3 * torch.arange(2, dtype=torch.float64) + i)
        if cls is CogVideoXDPMScheduler:
            x, last = s.step(v, last, t, times[i - 1] if i else None, x)
        else:
            x = s.step(v, t, x).prev_sample
        seen += x.tolist()
    return times, [repr(v) for v in seen]


WALKS = {
    "ddim_2b": (CogVideoXDDIMScheduler, {}),
    "ddim_5b": (CogVideoXDDIMScheduler, dict(snr_shift_scale=1.0)),
    "ddim_leading": (CogVideoXDDIMScheduler, dict(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)),
    "dpm_2b": (CogVideoXDPMScheduler, {}),
    "dpm_5b": (CogVideoXDPMScheduler, dict(snr_shift_scale=1.0)),
    "dpm_linspace": (CogVideoXDPMScheduler, dict(timestep_spacing="linspace", rescale_betas_zero_snr=False)),
    "dpm_leading": (CogVideoXDPMScheduler, dict(timestep_spacing="leading", set_alpha_to_one=False)),
}


def dynamic(guidance, t, n):
    """As CogVideoXPipeline has it under use_dynamic_cfg."""
    return 1 + guidance * ((1 - math.cos(math.pi * ((n - t) / n) ** 5.0)) / 2)


def main():
    print("/* Made by tests/golden/schedule.py from diffusers. */")
    table("int", "at", AT, 13)
    alphas("alpha_bar_2b")
    alphas("alpha_bar_5b", snr_shift_scale=1.0)
    alphas("alpha_bar_plain", snr_shift_scale=1.0, rescale_betas_zero_snr=False)
    table("int", "trailing_50", timesteps(50), 20)
    table("int", "trailing_7", timesteps(7), 20)
    # every count of steps, as one number; counts where diffusers' list comes out one too long keep their first n
    total = 0
    for n in range(1, 1001):
        for t in timesteps(n)[:n]:
            total = (total * 31 + t) % (1 << 64)
    print(f"static const unsigned long long trailing_all = {total}ull;")
    for n in (50, 7):
        table("double", f"chain_{n}", chain(n), 4)
    for name, (cls, change) in WALKS.items():
        times, seen = walk(cls, 50, **change)
        table("int", f"times_{name}", times, 20)
        table("double", f"walk_{name}", seen, 4)
    table("double", "dynamic_50", [repr(dynamic(6.0, t, 50)) for t in timesteps(50)], 4)


if __name__ == "__main__":
    main()
