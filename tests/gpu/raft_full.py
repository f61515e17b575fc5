"""Flows of torchvision's RAFT-large, fp32 on the GPU, for tests/gpu/raft.c to be compared with:

    python3 tests/gpu/raft_full.py FOLDER && build/tests/gpu/raft FOLDER

The same weights (the golden test's formula, the flow head a sixteenth), the same scenes of $SHARED/assets (../shared), padded
as there: to multiples of 8 on both sides, by replication. Needs torch and torchvision.
"""
import os
import struct
import sys
from pathlib import Path

import torch
from torchvision.io import read_image
from torchvision.models.optical_flow import raft_large

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
from formula import Case

UPDATES = 12
SCENES = {"RubberWhale": ("frame10.png", "frame11.png"), "Grove2": ("frame10.png", "frame11.png"),
          "sintel-easy": ("frame_0002.png", "frame_0003.png")}


def frame(path):
    x = read_image(str(path)).float()[None] / 127.5 - 1
    h, w = -x.shape[2] % 8, -x.shape[3] % 8
    return torch.nn.functional.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2), mode="replicate"), h // 2, w // 2


def main(folder):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    net = raft_large(weights=None).eval()
    Case("raft").fill(net, gain=1.2)
    for p in net.update_block.flow_head.conv2.parameters():
        p /= 16
    net.to(device)
    assets = Path(os.environ.get("SHARED", "../shared")) / "assets/flow"
    Path(folder).mkdir(parents=True, exist_ok=True)
    for scene, names in SCENES.items():
        (a, top, left), (b, _, _) = (frame(assets / scene / name) for name in names)
        flow = net(a.to(device), b.to(device), num_flow_updates=UPDATES)[-1][0].permute(1, 2, 0)
        h, w = (n for n in read_image(str(assets / scene / names[0])).shape[1:])
        flow = flow[top:top + h, left:left + w].contiguous().cpu()
        Path(folder, scene + ".flo").write_bytes(struct.pack("<fii", 202021.25, w, h) + flow.numpy().tobytes())
        print(f"{scene}: {h}x{w}, mean length {flow.square().sum(2).sqrt().mean():.2f} pixels on {device}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with torch.no_grad():
        main(sys.argv[1])
