"""ma-sample beside diffusers on one GPU: from a prompt to a clip, in parts, and what 16 bits cost.

    python3 tests/bench/sample.py FOLDER --make                       a CogVideoX with random weights, 13.4 GB (2b)
    python3 tests/bench/sample.py FOLDER                              times: 49x480x720, 50 steps
    python3 tests/bench/sample.py FOLDER --precision --clip 9x240x368 latents in bf16 and f16 against f32

Needs torch, diffusers and transformers with CUDA, and build/ma-sample. diffusers runs --torch-steps steps; its total is
T5, steps times the time of one, and decoding, without loading and without a video file; ours is all but loading, with it.
"""
import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
SPIECE = [Path(os.environ.get("SHARED", "../shared")) / "assets/t5/spiece.model", HERE / "../golden/spiece.model"]
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU: for a look at the script with a tiny folder


def make(folder, style, dtype):
    from diffusers import (AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXDPMScheduler,
                           CogVideoXTransformer3DModel)
    from transformers import T5Config, T5EncoderModel
    torch.manual_seed(0)
    big = style == "5b"
    parts = {
        "transformer": lambda: CogVideoXTransformer3DModel(
            num_attention_heads=48 if big else 30, num_layers=42 if big else 30, sample_width=90, sample_height=60,
            use_rotary_positional_embeddings=big),
        "vae": lambda: AutoencoderKLCogVideoX(
            scaling_factor=0.7 if big else 1.15258426, block_out_channels=(128, 256, 256, 512), sample_height=480,
            sample_width=720, layers_per_block=3,
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4),
        "text_encoder": lambda: T5EncoderModel(T5Config(
            vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    }
    torch.set_default_dtype(dtype)
    for name, build in parts.items():
        with torch.device("cuda"):
            net = build()
        net.save_pretrained(folder / name, max_shard_size="5GB")
        print(f"{name}: {sum(p.numel() for p in net.parameters()) / 1e9:.2f} G parameters", flush=True)
        del net
        torch.cuda.empty_cache()
    torch.set_default_dtype(torch.float32)
    scheduler = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
                     rescale_betas_zero_snr=True, snr_shift_scale=1.0 if big else 3.0, timestep_spacing="trailing",
                     clip_sample=False)
    (CogVideoXDPMScheduler if big else CogVideoXDDIMScheduler)(**scheduler).save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir(exist_ok=True)
    shutil.copy(next(p for p in SPIECE if p.exists()), folder / "tokenizer/spiece.model")
    (folder / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}\n')


# ---- diffusers

def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def timed(work, repeat=1):
    wait()
    start = time.perf_counter()
    for _ in range(repeat):
        out = work()
    wait()
    return out, (time.perf_counter() - start) / repeat


class Reference:
    """The parts of diffusers' pipeline, loaded one after the other."""

    def __init__(self, folder, dtype, clip):
        from diffusers import CogVideoXDDIMScheduler
        self.folder, self.dtype = folder, dtype
        self.frames, self.height, self.width = clip
        self.scheduler = CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler")
        self.settings = json.loads((folder / "transformer/config.json").read_text())

    def latent_shape(self):
        return [1, (self.frames - 1) // 4 + 1, self.settings["in_channels"], self.height // 8, self.width // 8]

    def texts(self, time_it=True):
        """Embeddings of eight made-up prompts and of the empty one, and the time of eight."""
        from transformers import T5EncoderModel
        net = T5EncoderModel.from_pretrained(self.folder / "text_encoder", dtype=self.dtype).to(DEVICE).eval()
        ids = torch.zeros(9, self.settings["max_text_seq_length"], dtype=torch.long)
        for k in range(8):
            ids[k, :8] = torch.arange(3, 11) * (k + 1)
        ids[torch.arange(9), [8] * 8 + [0]] = 1
        ids = ids.to(DEVICE)
        with torch.no_grad():
            net(ids[:8])
            seconds = timed(lambda: net(ids[:8])[0], 3)[1] if time_it else 0
            return net(ids)[0], seconds

    def denoise(self, noise, text, none, steps, most):
        """DDIM with guidance 6; stops after `most` steps. Latents and the seconds of a step."""
        from diffusers import CogVideoXTransformer3DModel
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
        net = CogVideoXTransformer3DModel.from_pretrained(self.folder / "transformer", torch_dtype=self.dtype)
        net = net.to(DEVICE).eval()
        pipe = CogVideoXPipeline(None, None, None, net, self.scheduler)
        pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal = 8, 4
        took, last = [], [0.0]

        def after(_pipe, k, _t, _kwargs):
            wait()
            took.append(time.perf_counter() - last[0])
            last[0] = time.perf_counter()
            _pipe._interrupt = k + 1 >= most
            return {}
        pipe.set_progress_bar_config(disable=True)
        wait()
        last[0] = time.perf_counter()
        out = pipe(prompt_embeds=text[None], negative_prompt_embeds=none[None], latents=noise.to(DEVICE, self.dtype),
                   num_frames=self.frames, height=self.height, width=self.width, num_inference_steps=steps,
                   guidance_scale=6.0, output_type="latent", callback_on_step_end=after).frames
        return out.float().cpu(), float(np.median(took[1:] or took))

    def decode(self, latents):
        from diffusers import AutoencoderKLCogVideoX
        vae = AutoencoderKLCogVideoX.from_pretrained(self.folder / "vae", torch_dtype=self.dtype).to(DEVICE).eval()
        z = latents.permute(0, 2, 1, 3, 4).to(DEVICE, self.dtype) / vae.config.scaling_factor
        with torch.no_grad():
            vae.decode(z)
            DEVICE == "cuda" and torch.cuda.reset_peak_memory_stats()
            seconds = timed(lambda: vae.decode(z).sample)[1]
        return seconds, torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0


# ---- ours

def ours(options, arguments):
    command = [options.tool, "-d", DEVICE, "-v", "-b", str(options.folder), "--clip", options.clip, "--steps",
               str(options.steps), "--scheduler", "ddim", *arguments]
    start = time.perf_counter()
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    wall = time.perf_counter() - start
    if run.returncode:
        sys.exit(f"{' '.join(command)}: {run.stderr}")
    found = re.search(r"seconds: loading ([\d.]+), text ([\d.]+), denoising ([\d.]+) \(a step ([\d.]+)\), "
                      r"decoding and writing ([\d.]+)", run.stderr)
    times = dict(zip(("load", "text", "denoise", "step", "decode"), map(float, found.groups())))
    return {**times, "wall": wall, "said": run.stderr}


def shard(path, text):
    """One sample x with its embedding, so that both sides read the same."""
    npy = io.BytesIO()
    np.save(npy, text.float().cpu().numpy())
    with tarfile.open(path, "w", tarfile.USTAR_FORMAT) as tar:
        for name, data in ("x.text.npy", npy.getvalue()), ("x.txt", b"made up\n"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def times(options, clip, work):
    reference = Reference(options.folder, TYPES[options.dtype], clip)
    noise = torch.randn(reference.latent_shape(), generator=torch.Generator().manual_seed(1))
    np.save(work / "noise.npy", noise.numpy())
    rows, latents = {}, noise
    if not options.no_torch:
        text, t5 = reference.texts()
        torch.cuda.empty_cache()
        _, step = reference.denoise(noise, text[0], text[8], options.steps, options.torch_steps)
        torch.cuda.empty_cache()
        decode, memory = reference.decode(latents)
        torch.cuda.empty_cache()
        rows = {"T5, 8 prompts": t5, "a step with guidance": step, "decoding": decode,
                "prompt to clip": t5 / 8 + options.steps * step + decode}
        print(f"diffusers: decoding takes {memory:.1f} GiB", flush=True)
    more = ["--dtype", options.dtype, *(["--memory", options.memory] if options.memory else [])]
    prompts = work / "prompts.txt"
    prompts.write_text("".join(f"prompt number {k}\n" for k in range(7)))  # and the negative one: eight
    eight = ours(argparse.Namespace(**{**vars(options), "steps": 1}),
                 [*more, "-p", str(prompts), "--clip", "1x64x64", "-o", str(work / "eight")])
    run = ours(options, [*more, "--noise", str(work / "noise.npy"), "-o", str(work / "one.mp4"), "a red ball"])
    print("".join(f"  {line}\n" for line in run["said"].splitlines()))
    mine = {"T5, 8 prompts": eight["text"], "a step with guidance": run["step"], "decoding": run["decode"],
            "prompt to clip": run["text"] + run["denoise"] + run["decode"], "the same with loading": run["wall"]}
    print(f"{'seconds':24} {'diffusers':>10} {'ma-sample':>10} {'ratio':>6}")
    for name, value in mine.items():
        other = rows.get(name)
        print(f"{name:24} {other and format(other, '10.3f') or '-':>10} {value:10.3f} "
              f"{other and format(value / other, '6.2f') or '-':>6}")


def precision(options, clip, work):
    def apart(a, b):
        return float((a - b).norm() / b.norm())
    noise = torch.randn(Reference(options.folder, torch.float32, clip).latent_shape(),
                        generator=torch.Generator().manual_seed(1))
    np.save(work / "noise.npy", noise.numpy())
    text = Reference(options.folder, torch.float32, clip).texts(False)[0].half().float()
    torch.cuda.empty_cache()
    shard(work / "x.tar", text[0])
    # Without a text encoder the negative embedding is zeros, on both sides.
    alone = work / "folder"
    alone.mkdir()
    for part in "transformer", "vae", "scheduler", "model_index.json":
        (alone / part).symlink_to((options.folder / part).resolve())
    got = {}
    for name, dtype in TYPES.items():
        reference = Reference(options.folder, dtype, clip)
        got["diffusers", name] = reference.denoise(noise, text[0].to(DEVICE, dtype),
                                                   torch.zeros_like(text[0]).to(DEVICE, dtype), options.steps,
                                                   options.steps)[0]
        torch.cuda.empty_cache()
        run = ours(argparse.Namespace(**{**vars(options), "folder": alone}),
                   ["--dtype", name, "--noise", str(work / "noise.npy"), "--save-latents", "--shard", "-o",
                    str(work / name), str(work / "x.tar")])
        got["ma-sample", name] = torch.from_numpy(np.load(work / name / "x.latents.npy"))
        print(f"{name}: a step {run['step']:.3f} s", flush=True)
    print(f"f32: ma-sample against diffusers {apart(got['ma-sample', 'f32'], got['diffusers', 'f32']):.1e}")
    print(f"{'relative norm after ' + str(options.steps) + ' steps, against f32':44} {'diffusers':>10} {'ma-sample':>10}")
    for name in "bf16", "f16":
        print(f"{name:44} " + " ".join(f"{apart(got[side, name], got[side, 'f32']):10.2e}"
                                       for side in ("diffusers", "ma-sample")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--style", choices=["2b", "5b"], default="2b", help="of --make")
    parser.add_argument("--clip", default="49x480x720")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--torch-steps", type=int, default=6)
    parser.add_argument("--no-torch", action="store_true", help="ma-sample alone")
    parser.add_argument("--dtype", choices=list(TYPES), default="bf16")
    parser.add_argument("--memory", help="for ma-sample, such as 24G")
    parser.add_argument("--precision", action="store_true")
    parser.add_argument("--tool", default="build/ma-sample")
    parser.add_argument("--work", type=Path, default=Path("/tmp/ma-bench-sample"))
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if options.make:
        make(options.folder, options.style, TYPES[options.dtype])
        sys.exit()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    (precision if options.precision else times)(options, [int(n) for n in options.clip.split("x")], options.work)
