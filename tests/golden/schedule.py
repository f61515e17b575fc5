#!/usr/bin/env python3
"""Prints the tables of tests/unit/schedule.c, as diffusers computes them. Needs torch and diffusers.

usage: tests/golden/schedule.py > tests/unit/schedule_table.h
"""
import torch
from diffusers import CogVideoXDDIMScheduler

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


if __name__ == "__main__":
    main()
