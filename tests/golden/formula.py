"""Values and fixtures that the golden tests share. golden.h is the same in C.

Weights and inputs are not stored: both sides compute them. Element i of the array called name is

    z = FNV-1a-64(name) + (i + 1) * 0x9E3779B97F4A7C15     (mod 2^64)
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
    z = (z ^ z >> 27) * 0x94D049BB133111EB
    z = z ^ z >> 31                                        (splitmix64)
    u = ((z >> 40) - 2^23) / 2^23                          in [-1, 1), exact in float32
    value = add + mul * u                                  in float32

mul is a power of two, so that the product is exact and the sum rounds once, with or without a fused multiply-add.

A fixture is a safetensors file. Its __metadata__ holds one JSON object a case:

    {"params": {name: [shape, add, mul], …}, "inputs": {name: [shape, add, mul], …}, …settings}

params stand under their published names and in their published layout. [shape] alone is an int64 array of zeros (batch
norm's counters); [shape, add, mul, of] has the values of the name of (one tensor under two names). inputs stand in our
layout (channels last). The arrays, CASE/NAME, are the reference's results.
"""
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent


def values(name, shape, add, mul):
    assert math.frexp(mul)[0] == 0.5, "mul must be a power of two"
    z = 0xCBF29CE484222325
    for byte in name.encode():
        z = (z ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(z) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z = z ^ z >> np.uint64(31)
    u = ((z >> np.uint64(40)).astype(np.int64) - 2**23).astype(np.float32) / np.float32(2**23)
    return torch.from_numpy(np.float32(add) + np.float32(mul) * u).reshape(shape)


def power(x):
    """The power of two nearest to x on a logarithmic scale."""
    return 2.0 ** round(math.log2(x))


def rule(name, shape, gain):
    """add and mul of a parameter: deviation gain/sqrt(fan in) for maps, near one for norms' weights and variances."""
    if name.endswith("running_var"):
        return 1.0, 0.5
    if len(shape) > 1:
        return 0.0, power(gain * math.sqrt(3 / math.prod(shape[1:])))
    return (1.0 if name.endswith("weight") else 0.0), 0.125


class Case:
    """One case of a fixture: what is needed to compute it, and what must come out."""

    def __init__(self, name, **settings):
        self.name, self.meta, self.arrays = name, {"params": {}, "inputs": {}, **settings}, {}

    def fill(self, module, gain=1.0, rename=lambda name: name):
        """Sets every entry of module's state from the formula of its published name."""
        first = {}  # by address: the name under which a tensor was met first
        for ours, tensor in module.state_dict().items():
            name = rename(ours)
            if not tensor.is_floating_point():
                self.meta["params"][name] = [list(tensor.shape)]
                tensor.zero_()
            elif tensor.data_ptr() in first:
                of = first[tensor.data_ptr()]
                self.meta["params"][name] = self.meta["params"][of] + [of]
            else:
                first[tensor.data_ptr()] = name
                tensor.copy_(self.param(name, list(tensor.shape), gain))
        return module

    def param(self, name, shape, gain=1.0):
        self.meta["params"][name] = [shape, *rule(name, shape, gain)]
        return values(name, *self.meta["params"][name])

    def input(self, name, shape, add=0.0, mul=1.0):
        self.meta["inputs"][name] = [shape, add, mul]
        return values(name, shape, add, mul)

    def keep(self, name, tensor):
        self.arrays[f"{self.name}/{name}"] = tensor.detach().to(torch.float32).contiguous().clone()


def save(stem, cases):
    arrays = {k: v for case in cases for k, v in case.arrays.items()}
    path = HERE / f"{stem}.safetensors"
    save_file(arrays, path,
              {case.name: json.dumps(case.meta, separators=(",", ":")) for case in cases})
    path.chmod(0o644)
    print(f"{path.name}: {path.stat().st_size} bytes")
    for name, array in arrays.items():
        if "/grad/" not in name:
            print(f"  {name:40} {tuple(array.shape)} mean |x| {array.abs().mean():.4g}")
