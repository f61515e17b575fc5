"""Golden outputs, loss and gradients of the motion head (projection and flow decoder). Regenerate:

    python3 tests/golden/motion.py

No implementation was published: the reference is the text, written here in plain torch.nn. Needs torch. Everything is
computed in double from the float32 weights; the gradient of every parameter is kept whole.
"""
import torch
from torch import nn
from torch.nn import functional as F

from formula import Case, save

IN, HIDDEN, OUT = 24, 20, 16
FLOW = [4, 25, 39]  # not a multiple of the decoder's own 4x8x12


def head():
    up = dict(kernel_size=(1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))
    return nn.ModuleDict({
        "projection": nn.Sequential(
            nn.Conv3d(IN, HIDDEN, (3, 1, 1), padding=(1, 0, 0)), nn.SiLU(),
            nn.Conv3d(HIDDEN, OUT, 1), nn.SiLU()),
        "decoder": nn.Sequential(
            nn.Conv3d(OUT, OUT, (2, 1, 1)), nn.SiLU(),
            nn.ConvTranspose3d(OUT, OUT, **up), nn.SiLU(),
            nn.ConvTranspose3d(OUT, 32, **up), nn.SiLU(),
            nn.Conv3d(32, 2, 1))})


if __name__ == "__main__":
    case = Case("motion", size=[IN, HIDDEN, OUT], flow=FLOW)
    net = case.fill(head(), gain=2.5).double()
    tokens = case.input("tokens", [2, 5, 2, 3, IN]).double()
    target = case.input("target", [2, *FLOW, 2]).double()

    m = net["projection"](tokens.permute(0, 4, 1, 2, 3))
    flow = F.interpolate(net["decoder"](m), size=FLOW, mode="trilinear", align_corners=False).permute(0, 2, 3, 4, 1)
    loss = (flow - target).abs().mean()
    loss.backward()

    case.keep("m", m.permute(0, 2, 3, 4, 1))
    case.keep("flow", flow)
    case.keep("loss", loss)
    for name, p in net.named_parameters():
        case.keep(f"grad/l1/{name}", p.grad)
    save("motion", [case])
