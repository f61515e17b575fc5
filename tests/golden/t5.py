"""Golden outputs of T5's encoder, v1.1 (gated) and the first T5 (relu). Regenerate:

    python3 tests/golden/t5.py [SHARED/assets/t5/tiny]

Needs torch and transformers. Computed in double from the float32 weights; beside it stands how far transformers' own
result in 16 bits is from that, for the longest text: the measure for ours. The tokens of text b, place i, are
(7·i² + 3·i + 11·b) mod vocab_size. With the folder: also what the network in it makes of one text of 12 tokens.
"""
import copy
import sys

import torch
from transformers import T5Config, T5EncoderModel

from formula import Case, save

LENGTHS = [1, 7, 226]
BATCH, EVERY = 2, 5
V11 = dict(d_model=64, d_kv=24, num_heads=4, d_ff=160, num_layers=2, vocab_size=120, relative_attention_num_buckets=32,
           relative_attention_max_distance=128, layer_norm_epsilon=1e-6, feed_forward_proj="gated-gelu",
           model_type="t5")
FIRST = {**V11, "d_model": 48, "d_kv": 8, "d_ff": 37, "relative_attention_num_buckets": 8,
         "relative_attention_max_distance": 20, "feed_forward_proj": "relu"}


def tokens(batch, length, vocab):
    i = torch.arange(length)
    return torch.stack([(7 * i * i + 3 * i + 11 * b) % vocab for b in range(batch)])


def plain(config):
    return {k: v for k, v in config.items() if k != "model_type"}


def error(net, ids, kind):
    want = copy.deepcopy(net).double()(ids).last_hidden_state
    got = copy.deepcopy(net).to(kind)(ids).last_hidden_state.double()
    return float((got - want).norm() / want.norm())


def case(name, config):
    c = Case(name, config=config, lengths=LENGTHS, batch=BATCH, every=EVERY)
    net = T5EncoderModel(T5Config(**plain(config))).eval()
    c.fill(net, gain=1.5)
    longest = tokens(BATCH, LENGTHS[-1], config["vocab_size"])
    c.meta.update(bf16=error(net, longest, torch.bfloat16), f16=error(net, longest, torch.float16))
    net = net.double()
    for length in LENGTHS:
        out = net(tokens(BATCH, length, config["vocab_size"])).last_hidden_state
        c.keep(str(length), out.reshape(-1, config["d_model"])[::EVERY])
    return c


def published(folder):
    c = Case("published")
    net = T5EncoderModel.from_pretrained(folder).eval().double()
    c.keep("12", net(tokens(1, 12, net.config.vocab_size)).last_hidden_state)
    return c


if __name__ == "__main__":
    with torch.no_grad():
        cases = [case("v1.1", V11), case("first", FIRST)]
        save("t5", cases + [published(f) for f in sys.argv[1:]])
