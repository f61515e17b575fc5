#!/usr/bin/env python3
"""Writes tests/weights/{zip,zip4,zip64,old}.pth: the same tensors in each of PyTorch's forms. Needs torch.

The values are a formula (tests/weights/pth.c has it too): element i of a storage is (i - 8) / 8, whole numbers i - 2 in
the integer types. `whole`, `rows`, `turned` and `cut` share one storage."""
import argparse
import io
import os
import struct
import zipfile
import zlib
from collections import OrderedDict

import torch

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "weights")


def tensors():
    base = (torch.arange(24) - 8).float() / 8
    d = OrderedDict(whole=base.view(4, 6), rows=base.view(4, 6)[1:3], turned=base.view(4, 6).t(),
                    cut=base.view(4, 6)[:, 1:6:2])
    for name, t in dict(half=torch.float16, brain=torch.bfloat16, double=torch.float64).items():
        d[name] = ((torch.arange(5) - 8).float() / 8).to(t)
    for name, t in dict(long=torch.int64, int=torch.int32, short=torch.int16, char=torch.int8).items():
        d[name] = (torch.arange(4) - 2).to(t)
    d["byte"] = torch.arange(4).to(torch.uint8)
    d["flag"] = torch.tensor([True, False, True])
    d["param"] = torch.nn.Parameter(base[:3].clone())
    d["empty"] = torch.zeros(0, 3)
    d["scalar"] = torch.tensor(2.5)
    return d


def zip64(path, records):
    """A zip whose every size and offset stands in a zip64 field, as in archives above 4 GB."""
    out, directory = io.BytesIO(), b""
    full = 0xFFFFFFFF
    for name, data in records:
        at, n, crc = out.tell(), name.encode(), zlib.crc32(data)
        out.write(struct.pack("<IHHHHHIIIHH", 0x04034B50, 45, 0, 0, 0, 0, crc, full, full, len(n), 20) + n +
                  struct.pack("<HHQQ", 1, 16, len(data), len(data)) + data)
        directory += struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 45, 45, 0, 0, 0, 0, crc, full, full, len(n), 28, 0, 0, 0,
                                 0, full) + n + struct.pack("<HHQQQ", 1, 24, len(data), len(data), at)
    start = out.tell()
    out.write(directory)
    end = out.tell()
    out.write(struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, len(records), len(records), len(directory), start))
    out.write(struct.pack("<IIQI", 0x07064B50, 0, end, 1))
    out.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, full, full, 0))
    with open(path, "wb") as f:
        f.write(out.getvalue())


def main():
    top = {"epoch": 3, "model": tensors(), "optimizer": {"state": {0: torch.ones(2)}, "lr": 1e-3, "big": 1 << 80},
           "args": argparse.Namespace(name="toy", size=None, on=True)}
    torch.save(top, f"{OUT}/zip.pth")
    torch.save(top, f"{OUT}/zip4.pth", pickle_protocol=4)
    torch.save(tensors(), f"{OUT}/old.pth", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(f"{OUT}/zip.pth") as z:
        records = [(n, z.read(n)) for n in z.namelist()]
    zip64(f"{OUT}/zip64.pth", records)
    for name in "zip", "zip4", "zip64", "old":
        torch.load(f"{OUT}/{name}.pth", weights_only=False)


main()
