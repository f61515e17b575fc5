"""Golden flow of RAFT, large and small, under both naming schemes. Regenerate:

    python3 tests/golden/raft.py RAFT/core

RAFT/core: that folder of a checkout of github.com/princeton-vl/RAFT, the reference for the original names. Needs torch and
torchvision. The networks have their published sizes (the formula makes the weights, so they cost no space); three
updates of random weights on frames of whole numbers; every third pixel of the flow is kept, which meets all 8x8 phases of the upsampling. float32,
as the references have it.
"""
import argparse
import sys
import types

import torch
from torchvision.models.optical_flow import raft_large, raft_small

from formula import Case, save

HEIGHT, WIDTH, UPDATES, EVERY = 128, 136, 3, 3


def images(case):
    shape = [1, 1, HEIGHT, WIDTH, 3]
    return [case.input(name, shape, 128.0, 64.0).round()[:, 0].permute(0, 3, 1, 2) for name in ("a", "b")]


def finish(case, flow):
    case.keep("flow", flow.permute(0, 2, 3, 1).reshape(-1, 2)[::EVERY])
    print(f"{case.name}: mean length of the flow {flow.square().sum(1).sqrt().mean():.2f} pixels")
    return case


def princeton_case(core, name, small, prefix):
    sys.path.insert(0, core)
    scipy = types.ModuleType("scipy")
    scipy.interpolate = None  # imported by the reference, not needed for the forward pass
    sys.modules.setdefault("scipy", scipy)
    from raft import RAFT
    net = RAFT(argparse.Namespace(small=small, mixed_precision=False)).eval()
    case = Case(name, updates=UPDATES, every=EVERY)
    case.fill(net, gain=1.2, rename=lambda key: prefix + key)
    a, b = images(case)
    return finish(case, net(a, b, iters=UPDATES, test_mode=True)[1])


def torchvision_case(name, make):
    net = make(weights=None).eval()
    case = Case(name, updates=UPDATES, every=EVERY)
    case.fill(net, gain=1.2)
    a, b = images(case)
    return finish(case, net(a / 127.5 - 1, b / 127.5 - 1, num_flow_updates=UPDATES)[-1])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with torch.no_grad():
        save("raft", [
            princeton_case(sys.argv[1], "princeton-large", False, "module."),
            princeton_case(sys.argv[1], "princeton-small", True, ""),
            torchvision_case("torchvision-large", raft_large),
            torchvision_case("torchvision-small", raft_small),
        ])
