#!/usr/bin/env python3
"""train-text: trains the toy world's text encoder, a SentencePiece model of whole words and a small T5 v1.1 encoder, on
captions of ma-toy. Some three minutes of one core.

    ma-toy -q -z 0 -n 12000 --clip 17x16x16@12 --balls 2 > two.tar
    ma-toy -q -z 0 -n 3000 --clip 17x16x16@12 --seed 1 --kinds fall > five.tar
    train-text.py two.tar five.tar

Captions are members .txt of plain shards; pictures are not looked at, and small ones are made sooner. Writes
BASE/text_encoder and BASE/tokenizer as transformers has them, weights in half precision, and a log of JSON lines. Needs
torch, transformers, sentencepiece and protobuf. The same seed and captions give the same weights on the same machine,
unless --seconds ends the run first.

What is learned, without labels, from captions whose padding is seen as ma-extract has it:
- from each place's state, by linear maps, the words at that place and at the two on either side: what a word belongs
  to; in half of the captions some words are hidden, so that the others must tell them;
- from the mean of all states, by a linear map for each place, the whole caption: nothing is lost to whoever pools;
- no mean and no correlation over the words' states: every dimension has about unit variance, none is idle.
"""
import argparse
import collections
import io
import json
import math
import re
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from sentencepiece import sentencepiece_model_pb2 as pb
from transformers import T5Config, T5EncoderModel

LENGTH = 32  # tokens of a caption, as max_text_seq_length of the transformer that reads them
PAD, EOS, UNK = 0, 1, 2
SENTINELS = 100  # <extra_id_…>, which stand behind the pieces in every T5
LETTERS = "abcdefghijklmnopqrstuvwxyz"
AROUND = 2  # words on either side that a state tells
HIDDEN = 0.2  # share of words


def read_captions(paths):
    """The captions of plain shards, one after the other."""
    found = []
    for path in paths:
        with tarfile.open(path) if path != "-" else tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
            found += [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]
    return found


def make_tokenizer(captions, path):
    """Every word a piece, the most frequent first; behind them what other words are spelled with. The trainer looks for
    pieces that make the text likely, not for words, so its own are replaced; its normalisation (capitals become small)
    and specials are kept."""
    words = collections.Counter(re.findall("[a-z]+", " ".join(captions)))
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write("".join(f"{ord(c.upper()):X}\t{ord(c):X}\n" for c in LETTERS))
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions), model_writer=model, model_type="unigram", vocab_size=64,
            hard_vocab_limit=False, pad_id=PAD, eos_id=EOS, unk_id=UNK, bos_id=-1, normalization_rule_tsv=rules.name,
            num_threads=1, minloglevel=2)
    proto = pb.ModelProto.FromString(model.getvalue())
    del proto.pieces[3:]
    for word, count in words.most_common():
        proto.pieces.add(piece="\u2581" + word, score=math.log(count / words.total()))
    for character in "\u2581,.-'" + LETTERS:
        proto.pieces.add(piece=character, score=-20)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def tokenize(pieces, captions):
    """(N, LENGTH): pieces, end, padding; what is too long is cut before the end."""
    rows = [ids[:LENGTH - 1] + [EOS] for ids in pieces.encode(captions)]
    return torch.tensor([ids + [PAD] * (LENGTH - len(ids)) for ids in rows])


class Reader(torch.nn.Module):
    """What the states are asked for in training; not kept."""

    def __init__(self, width, vocab):
        super().__init__()
        self.vocab = vocab
        self.near = torch.nn.Linear(width, (2 * AROUND + 1) * vocab)
        self.whole = torch.nn.Linear(width, LENGTH * vocab)

    def near_loss(self, states, ids):
        said = self.near(states).unflatten(2, (2 * AROUND + 1, self.vocab))               # (B, L, 5, V)
        wanted = F.pad(ids, (AROUND, AROUND), value=PAD).unfold(1, 2 * AROUND + 1, 1)     # (B, L, 5)
        return F.cross_entropy(said.flatten(0, 2), wanted.flatten())

    def caption(self, states):
        return self.whole(states.mean(1)).unflatten(1, (LENGTH, self.vocab))              # (B, L, V)


def spread_loss(states):
    """states (N, D): distance of mean and covariance from 0 and 1."""
    centred = states - states.mean(0)
    covariance = centred.T @ centred / len(states)
    return states.mean(0).square().mean() + (covariance - torch.eye(len(covariance))).square().sum(1).mean()


def hide(ids):
    """Some words of the second half of the batch become unknown."""
    hidden = (torch.rand(ids.shape) < HIDDEN) & (ids > UNK)
    hidden[:len(ids) // 2] = False
    return ids.masked_fill(hidden, UNK)


def measure(net, reader, ids):
    """Over captions not trained on: how many are read whole and right from the mean of their states, the states'
    deviation in a dimension, the distance (root mean square over all places and dimensions) of two captions that differ
    in one word, its mean and the least."""
    net.eval()
    with torch.no_grad():
        states = net(ids).last_hidden_state                                               # (N, L, D)
        right = (reader.caption(states).argmax(2) == ids).all(1).float().mean()
        apart = [(states[i] - states[j]).square().mean().sqrt()
                 for i in range(len(ids)) for j in range(i) if (ids[i] != ids[j]).sum() == 1]
        words = states[ids > UNK]
    apart = torch.stack(apart) if apart else torch.zeros(1)
    net.train()
    deviation = words.std(0)
    found = dict(whole=right, std=deviation.mean(), std_least=deviation.min(), std_most=deviation.max(),
                 apart=apart.mean(), apart_least=apart.min())
    return {name: value.item() for name, value in found.items()}


def train(net, reader, ids, args, log):
    parameters = [*net.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    begin = time.monotonic()
    for step in range(args.steps):
        seconds = time.monotonic() - begin
        done = max(step / args.steps, seconds / args.seconds)
        if done >= 1:
            break
        optimizer.param_groups[0]["lr"] = args.lr * min((step + 1) / 100, (1 + math.cos(math.pi * done)) / 2)
        batch = ids[torch.randint(len(ids), (args.batch,))]
        states = net(hide(batch)).last_hidden_state                                       # (B, L, D)
        plain = slice(args.batch // 2)
        parts = dict(near=reader.near_loss(states, batch),
                     whole=F.cross_entropy(reader.caption(states[plain]).flatten(0, 1), batch[plain].flatten()),
                     spread=0.1 * spread_loss(states[batch > UNK]))
        loss = sum(parts.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1)
        optimizer.step()
        if step % 100 == 0 or step == args.steps - 1:
            log(step=step + 1, loss=loss.item(), **{k + "_loss": v.item() for k, v in parts.items()},
                lr=optimizer.param_groups[0]["lr"], seconds=seconds)


def logger(path):
    file = open(path, "w", buffering=1)

    def log(**fields):
        line = json.dumps({name: float(f"{v:.5g}") if isinstance(v, float) else v for name, v in fields.items()},
                          separators=(",", ":"))
        print(line, file=file)
        print(line, file=sys.stderr)
    return log


def main():
    here = Path(__file__).resolve().parent
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shards", nargs="+", metavar="SHARD", help="a plain tar, - for standard input")
    p.add_argument("--out", type=Path, default=here / "base", metavar="BASE", help="default: base beside this script")
    p.add_argument("--log", type=Path, default=here / "logs/text.jsonl")
    p.add_argument("--steps", type=int, default=2500)
    p.add_argument("--seconds", type=float, default=math.inf, help="end after so long, if that comes first")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--layers", type=int, default=3)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the network is so small that sharing costs more than it saves

    captions = sorted(set(read_captions(args.shards)))
    pieces = make_tokenizer(captions, args.out / "tokenizer/spiece.model")
    ids = tokenize(pieces, captions)[torch.randperm(len(captions))]
    seen, unseen = ids[len(ids) // 20:], ids[:len(ids) // 20]
    vocab = -(-(pieces.get_piece_size() + SENTINELS) // 64) * 64
    net = T5EncoderModel(T5Config(
        vocab_size=vocab, d_model=args.width, d_kv=args.width // 4, num_heads=4, d_ff=2 * args.width,
        num_layers=args.layers, feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False,
        pad_token_id=PAD, eos_token_id=EOS))
    reader = Reader(args.width, pieces.get_piece_size())
    args.log.parent.mkdir(parents=True, exist_ok=True)
    log = logger(args.log)
    log(captions=len(captions), pieces=pieces.get_piece_size(), longest=int((ids > UNK).sum(1).max()) + 1,
        parameters=sum(v.numel() for v in net.parameters()))
    train(net, reader, seen, args, log)
    net.half().save_pretrained(args.out / "text_encoder")
    (args.out / "text_encoder/model.safetensors").chmod(0o644)  # the library makes it for the owner alone
    log(**measure(net.float(), reader, unseen[:1000]))


if __name__ == "__main__":
    main()
