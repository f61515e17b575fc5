"""ranks: a base and a shard to time training on, in a folder: CogVideoX-2B's configuration, and samples of its size made
of random numbers (latents, text, motion).    ranks.py FOLDER SAMPLES"""
import io, json, os, sys, tarfile
import numpy as np

out, samples = sys.argv[1], int(sys.argv[2])
configs = {"transformer/config.json": {"_class_name": "CogVideoXTransformer3DModel"},  # all else is the 2B's by default
           "vae/config.json": {"_class_name": "AutoencoderKLCogVideoX", "scaling_factor": 1.15258426},
           "scheduler/scheduler_config.json": json.load(open("pipelines/toy/base/scheduler/scheduler_config.json"))}
for name, config in configs.items():
    path = os.path.join(out, "base", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    json.dump(config, open(path, "w"))

rng = np.random.default_rng(0)
with tarfile.open(os.path.join(out, "data.tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
    for k in range(samples):
        latent = rng.standard_normal((32, 13, 60, 90), np.float32)
        latent[16:] = latent[16:] * 0.5 - 8  # log-variance
        members = {"latent": latent, "text": rng.standard_normal((226, 4096), np.float32) / 8,
                   "motion": rng.standard_normal((24, 10, 15, 64), np.float32)}
        for name, values in members.items():
            buffer = io.BytesIO()
            np.save(buffer, values.astype("<f2"))
            info = tarfile.TarInfo(f"clip-{k:06d}.{name}.npy")
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)
