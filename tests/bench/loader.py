#!/usr/bin/env python3
"""loader: what a PyTorch loader reaches on the work of tests/bench/stage1: clips a second from mp4 to VideoMAE tokens.

    python3 tests/bench/loader.py VIDEO...      N: clips (600). J: worker processes (all cores). BATCH: clips (8)

A DataLoader of J workers, each decoding with PyAV (FFmpeg on one thread) and taking 49 frames as uint8; resizing
(antialiased bicubic), normalisation and transformers' VideoMAE-B in bf16 on the GPU. Without one: how fast the clips come, to be
compared with tests/bench/decode. Needs torch, transformers, av.
"""
import os
import sys
import time

import av
import numpy as np
import torch
import torch.nn.functional as F
from transformers import VideoMAEConfig, VideoMAEModel
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

N, J, BATCH = (int(os.environ.get(k, d)) for k, d in (("N", 600), ("J", os.cpu_count()), ("BATCH", 8)))
FRAMES, HEIGHT, WIDTH = 49, 160, 240


class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, k):
        with av.open(sys.argv[1 + k % (len(sys.argv) - 1)]) as f:
            stream = f.streams.video[0]
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
            frames = []
            for frame in f.decode(stream):
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == FRAMES:
                    break
        return torch.from_numpy(np.stack(frames))


def model():
    net = VideoMAEModel(VideoMAEConfig()).cuda().to(torch.bfloat16).eval()
    tokens = (FRAMES - 1) // 2 * (HEIGHT // 16) * (WIDTH // 16)
    net.embeddings.position_embeddings = get_sinusoid_encoding_table(tokens, 768)
    net.embeddings.patch_embeddings.image_size = (HEIGHT, WIDTH)
    return net


@torch.no_grad()
def tokens(net, x, mean, std):
    x = x[:, 1:].cuda(non_blocking=True).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x, (HEIGHT, WIDTH), mode="bicubic", antialias=True)
    x = ((x - mean) / std).unflatten(0, (-1, FRAMES - 1)).to(torch.bfloat16)
    return net(x).last_hidden_state.half().cpu()


def main():
    gpu = torch.cuda.is_available()
    if gpu:
        net = model()
        mean, std = (torch.tensor(v, device="cuda").view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    loader = torch.utils.data.DataLoader(Clips(), batch_size=BATCH, num_workers=J, pin_memory=gpu, prefetch_factor=4)
    start = done = 0
    for k, x in enumerate(loader):
        if gpu:
            x = tokens(net, x, mean, std)
        done += len(x)
        if k == 4:  # workers and kernels have started
            start, done = time.time(), 0
    what = "tokens not written" if gpu else "nothing done with them"
    print(f"PyTorch, PyAV, {J} workers: {done / (time.time() - start):.1f} clips/s, {what}")


if __name__ == "__main__":
    main()
