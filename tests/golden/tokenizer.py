"""Fixture of tokenizer.c: what transformers' T5Tokenizer makes of 2,000 lines. Regenerate:

    python3 tests/golden/tokenizer.py SHARED/assets/t5

Needs transformers, sentencepiece and protobuf, and the folder's spiece.model. The fixture holds no lines: tokenizer.c
makes them by the same formula, from the lists that stand in the fixture's metadata; and of the tokens only FNV-1a-64 (over
each token's four bytes, lowest first), of the whole line and of the line cut or padded to 226 tokens.

Line i is hand[i], and behind those: every 500th of 10,000 characters and more, every 4th of rare words and characters,
the others prompts. Numbers come from splitmix64 with the seed i, one after the other.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import T5Tokenizer

LINES, LENGTH = 2000, 226
HAND = ["", " ", "  two  spaces  ", "\t\n", "a <extra_id_0> b", "a<extra_id_99>b", "<extra_id_100> <extra_id_01> <extra_id_>",
        "<pad></s><unk><s>", "x</s>", "< /s> <<pad>> <extra_id_7", "\u0085", "a\u0085b", "\u2581a b\u2581c", "e\u0301 o\u0308",
        "\u200b\ufeff\u3000\u00a0x", "ﬁne ½ ① ﷺ", "👩\u200d👩\u200d👧 👍🏽 🇩🇪", "नमस्ते ไทย עברית العربية", "\u2028\u2029\u000b\u000c",
        "A panda, dressed in a small, red jacket and a tiny hat, sits on a wooden stool in a serene bamboo forest."]
PROMPT = """a the an two three several person woman man child robot hand dog cat bird horse elephant ball rock spoon knife
glass water honey milk oil sand paper rope cloth candle balloon bicycle car boat train ladder hammer nail sponge towel
pours stirs slices drops bounces rolls floats sinks melts spins swings pushes pulls throws catches lifts folds tears peels
squeezes splashes burns freezes breaks into onto over under across through against beside slowly quickly gently suddenly
while and then with from steel wooden rubber plastic ceramic heavy light hot cold wet dry transparent bright red blue green
yellow white black table floor kitchen beach river forest street sky wind sun rain snow close-up slow-motion 4K cinematic
man's isn't half-full 3 10 49 (left) "quoted" viscous coffee's wheel pendulum trampoline see-saw waterfall""".split()
RARE = ["naïve", "café", "coöperate", "Größe", "Zürich", "piñata", "façade", "antidisestablishmentarianism", "xkcdqwertz",
        "COVID-19", "http://a.b/c?d=e&f=%20g", "#tag", "@me", "100%", "$5", "1/2", "½", "①", "…", "—", "“quoted”", "‘so’",
        "日本語", "中文字符", "한국어", "Привет", "мир", "ＨＥＬＬＯ", "ﾊﾝｶｸ", "ﬁre", "🙂", "🚀", "<extra_id_5>", "</s>", "<unk>",
        "<pad>", "<s>", "<extra_id_100>", "<", ">", "\\", "\u2581", "\u200b", "\ufeff", "\u3000", "\u00a0", "\t", "\n",
        "\u0085", "\u2028", "a\u0301", "E\u0300"]
RANGES = [[0x20, 0x7f], [0xa1, 0x250], [0x370, 0x374], [0x391, 0x3a2], [0x410, 0x482], [0x3041, 0x3097], [0x4e00, 0x9ff0],
          [0xac00, 0xd7a4], [0x1f300, 0x1f3fa], [0xff01, 0xff5f], [0x2100, 0x2190], [0x2460, 0x24ff]]
SPACES = [" ", " ", " ", "  ", ""]


class Numbers:
    def __init__(self, seed):
        self.state = seed

    def __call__(self, n):
        """0..n-1"""
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return (z ^ z >> 31) % n


def characters(draw):
    first, end = RANGES[draw(len(RANGES))]
    return "".join(chr(first + draw(end - first)) for _ in range(1 + draw(8)))


def line(i):
    if i < len(HAND):
        return HAND[i]
    draw = Numbers(i)
    if i % 500 == 0:
        text = ""
        while len(text.encode()) < 10000:
            text += PROMPT[draw(len(PROMPT))] + SPACES[draw(len(SPACES))]
        return text
    if i % 4:
        return " ".join(PROMPT[draw(len(PROMPT))] for _ in range(5 + draw(20))) + "."
    text = ""
    for _ in range(1 + draw(60)):
        kind = draw(8)
        text += PROMPT[draw(len(PROMPT))] if kind < 4 else RARE[draw(len(RARE))] if kind < 7 else characters(draw)
        text += SPACES[draw(len(SPACES))]
    return text


def fnv(ids):
    h = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h - 2**64 if h >= 2**63 else h


if __name__ == "__main__":
    tokenizer = T5Tokenizer.from_pretrained(sys.argv[1])
    lines = [line(i) for i in range(LINES)]
    whole = [fnv(tokenizer(s).input_ids) for s in lines]
    cut = [fnv(tokenizer(s, padding="max_length", max_length=LENGTH, truncation=True).input_ids) for s in lines]
    path = Path(__file__).parent / "tokenizer.safetensors"
    lists = dict(hand=HAND, prompt=PROMPT, rare=RARE, spaces=SPACES, ranges=RANGES, length=LENGTH)
    save_file({"whole": torch.tensor(whole), "cut": torch.tensor(cut)}, path,
              {"lists": json.dumps(lists, separators=(",", ":"))})
    path.chmod(0o644)
    print(f"{path.name}: {path.stat().st_size} bytes, {sum(map(len, lines))} characters")
