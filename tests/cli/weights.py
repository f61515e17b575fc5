"""Weights for the shell tests, as files: what tests/cli/extract-flow.t and tests/gpu/tools.t import. Needs NumPy."""
import json
import struct

import numpy as np


def save(path, tensors):
    head, at, data = {"__metadata__": {"format": "pt"}}, 0, b""
    for name, a in tensors.items():
        raw = a.astype("<f4").tobytes()
        head[name] = {"dtype": "F32", "shape": list(a.shape), "data_offsets": [at, at + len(raw)]}
        at, data = at + len(raw), data + raw
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    open(path, "wb").write(struct.pack("<Q", len(text)) + text + data)


def raft(path):
    """A small RAFT, narrower than the published one: every width is read off the weights."""
    rng, t = np.random.default_rng(1), {}
    def conv(name, o, c, k):
        t[name + ".weight"] = rng.normal(0, (c * k * k) ** -0.5, (o, c, k, k))
        t[name + ".bias"] = rng.normal(0, 0.1, o)
    for net, out in ("fnet", 16), ("cnet", 16):
        conv(f"{net}.conv1", 8, 3, 7)
        c = 8
        for layer, width in (1, 8), (2, 12), (3, 16):
            for b in 0, 1:
                at = f"{net}.layer{layer}.{b}"
                conv(f"{at}.conv1", width // 4, c, 1)
                conv(f"{at}.conv2", width // 4, width // 4, 3)
                conv(f"{at}.conv3", width, width // 4, 1)
                if layer > 1 and b == 0:
                    conv(f"{at}.downsample.0", width, c, 1)
                c = width
        conv(f"{net}.conv2", out, c, 1)
    u = "update_block"
    conv(f"{u}.encoder.convc1", 12, 4 * 49, 1)
    conv(f"{u}.encoder.convf1", 8, 2, 7)
    conv(f"{u}.encoder.convf2", 8, 8, 3)
    conv(f"{u}.encoder.conv", 10, 20, 3)
    for gate in "zrq":
        conv(f"{u}.gru.conv{gate}", 8, 8 + 8 + 12, 3)
    conv(f"{u}.flow_head.conv1", 8, 8, 3)
    conv(f"{u}.flow_head.conv2", 2, 8, 3)
    save(path, t)
