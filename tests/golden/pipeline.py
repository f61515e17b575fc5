"""Golden clips of whole text-to-video pipelines, 2B style and 5B style, from a prompt and given noise. Regenerate:

    python3 tests/golden/pipeline.py

Reference: diffusers CogVideoXPipeline. Needs torch, diffusers, transformers and sentencepiece. Computed in double from
the float32 weights. spiece.model, beside this file, is trained here on the words of the prompts.

    CASE/RUN/latents     the last latents, channels last (F, h, w, C)
    CASE/RUN/frames      output_type "np": every EVERY-th pixel of (F, H, W, 3), in 0..1

Weights stand under PART/NAME, where PART is the folder that they are published in.
"""
import io
import json

import numpy as np
import sentencepiece
import torch
from diffusers import (AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXPipeline,
                       CogVideoXTransformer3DModel)
from diffusers.schedulers import scheduling_dpm_cogvideox
from transformers import T5Config, T5EncoderModel

from formula import HERE, Case, save

EVERY, CHANNELS, WIDTH, TEXT = 11, 4, 24, 12
PROMPT, NEGATIVE = "a red ball falls and bounces", "two blurry dogs"
WORDS = f"{PROMPT} {NEGATIVE} the cat rolls over slowly, 3 kites fly; rain on glass".split()
RUNS = {  # name: scheduler, frames (13 are 4 latent ones, of which 16 come), steps, dynamic guidance, negative prompt, tiles
    "ddim": ("ddim", 13, 4, False, "", False),
    "dpm": ("dpm", 9, 4, False, NEGATIVE, False),
    "dynamic": ("dpm", 9, 5, True, "", True),
}
SIZE = (64, 48)


def train_tokenizer(path):
    out = io.BytesIO()
    lines = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=80, model_type="unigram", pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, normalization_rule_name="identity", hard_vocab_limit=False)
    path.write_bytes(out.getvalue())
    print(f"{path.name}: {path.stat().st_size} bytes")


class Pieces:
    """What the published folders' tokenizer does: pieces, then the end, then padding."""

    def __init__(self, path):
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def __call__(self, texts, max_length=None, **_):
        rows = [self.model.encode(text) + [1] for text in texts]
        length = max_length or max(map(len, rows))
        rows = [row[:length - 1] + [1] if len(row) > length else row + [0] * (length - len(row)) for row in rows]
        return type("Tokens", (), {"input_ids": torch.tensor(rows)})()

    def batch_decode(self, *_, **__):
        return [""]


def scheduler(kind, snr):
    return {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}[kind](
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, snr_shift_scale=snr, timestep_spacing="trailing", clip_sample=False)


def case(name, rotates, snr, scaling):
    words = Pieces(HERE / "spiece.model")
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=CHANNELS, out_channels=CHANNELS, time_embed_dim=16,
        text_embed_dim=WIDTH, num_layers=2, sample_width=12, sample_height=8, sample_frames=17, max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=rotates)
    vae = AutoencoderKLCogVideoX(block_out_channels=(8, 16, 16, 24), latent_channels=CHANNELS, layers_per_block=1,
                                 norm_num_groups=4, sample_height=96, sample_width=80, scaling_factor=scaling).eval()
    text = T5EncoderModel(T5Config(d_model=WIDTH, d_kv=8, num_heads=3, d_ff=40, num_layers=2, vocab_size=words.model.get_piece_size() + 100,
                                   feed_forward_proj="gated-gelu")).eval()
    published = json.loads(text.config.to_json_string(use_diff=False))
    c = Case(name, configs={
        "transformer": json.loads(transformer.to_json_string()), "vae": json.loads(vae.to_json_string()),
        "scheduler": json.loads(scheduler("dpm" if rotates else "ddim", snr).to_json_string()),
        "text_encoder": {k: published[k] for k in (
            "model_type d_model d_kv num_heads d_ff num_layers vocab_size feed_forward_proj layer_norm_epsilon "
            "relative_attention_num_buckets relative_attention_max_distance").split()}},
        runs=[{"name": n, "scheduler": r[0], "latents": (r[1] - 1) // 4 + 1, "steps": r[2], "dynamic": r[3], "negative": r[4],
               "tiles": r[5]} for n, r in RUNS.items()],
        prompt=PROMPT, size=SIZE, guidance=6.0, every=EVERY)
    for part, net in ("transformer", transformer), ("vae", vae), ("text_encoder", text):
        c.fill(net, gain=1.0 if part != "vae" else 0.6, rename=lambda n, part=part: f"{part}/{n}")
        net.double()
    for run, (kind, frames, steps, dynamic, negative, tiled) in RUNS.items():
        pipe = CogVideoXPipeline(words, text, vae, transformer, scheduler(kind, snr))
        pipe.set_progress_bar_config(disable=True)
        (vae.enable_tiling if tiled else vae.disable_tiling)()
        latent = [(frames - 1) // 4 + 1, SIZE[0] // 8, SIZE[1] // 8, CHANNELS]
        start = c.input(f"{run}/start", latent).double().permute(0, 3, 1, 2)[None]
        drawn = c.input(f"{run}/drawn", [steps, *latent]).double().permute(0, 1, 4, 2, 3)
        taken = [-1]

        def step(*args, was=pipe.scheduler.step, **kwargs):
            taken[0] += 1
            return was(*args, **kwargs)
        pipe.scheduler.step = step
        scheduling_dpm_cogvideox.randn_tensor = lambda *_, **__: drawn[taken[0]][None]
        settings = dict(prompt=PROMPT, negative_prompt=negative, height=SIZE[0], width=SIZE[1], num_frames=frames,
                        num_inference_steps=steps, guidance_scale=6.0, use_dynamic_cfg=dynamic, latents=start,
                        max_sequence_length=TEXT)
        c.keep(f"{run}/latents", pipe(**settings, output_type="latent").frames[0].permute(0, 2, 3, 1))
        taken[0] = -1
        video = pipe(**settings, output_type="np").frames[0]
        assert np.isfinite(video).all()
        c.keep(f"{run}/frames", torch.from_numpy(video).reshape(-1, 3)[::EVERY])
        print(f"{name}/{run}: {len(video)} frames; {np.mean((video > 0) & (video < 1)):.2f} of the values are not clamped")
    print(f"{name}: tokens {[len(words([t]).input_ids[0]) for t in (PROMPT, NEGATIVE, '')]}")
    return c


if __name__ == "__main__":
    train_tokenizer(HERE / "spiece.model")
    with torch.no_grad():
        save("pipeline", [case("2b", False, 3.0, 1.15258426), case("5b", True, 1.0, 0.7)])
