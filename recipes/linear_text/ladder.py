"""The ladder: six ways to mix tokens, trained alike on text and on looking things up.

    python -m recipes.linear_text.ladder --tiny --data ../shared/data      # minutes on a CPU
    python -m recipes.linear_text.ladder --data ../shared/data             # one GPU

Text is bytes. A lookup names `--pairs` keys with a value each, then asks for keys in random order;
only the values of asked keys count. The table stands beside what the paper found: text losses close
together, and recall that first order does not have.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.demo_text.sources import read_text

from .ladder_model import KINDS, Decoder, Kind, Shape

BYTES, KEYS = 256, 128  # token ids: bytes, then keys, then as many values
TINY = {"width": 64, "layers": 2, "heads": 2, "ff": 128}
SHARE = 0.3  # of the sequences are lookups
PAPER = "paper: 0.3B, 2048 tokens: linear 3.03, Mamba-2S 2.76, 2Mamba 2.73, softmax 2.73 nats"


@dataclass(frozen=True)
class Batch:
    """tokens: int [B, T + 1]. counts: bool [B, T], targets that the loss counts."""

    tokens: Tensor
    counts: Tensor


class Data:
    """Batches by number, the same for every model."""

    def __init__(self, text: bytes, length: int, pairs: int, seed: int, device: str) -> None:
        whole = np.frombuffer(text, np.uint8)
        self.held, self.train = whole[: len(whole) // 20], whole[len(whole) // 20 :]
        self.length, self.pairs, self.seed, self.device = length, pairs, seed, device

    def lookups(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sequences [count, length + 1], and which of their tokens are asked for."""
        tokens = np.zeros((count, self.length + 1), np.int64)
        asked = np.zeros(tokens.shape, bool)
        for row, mark in zip(tokens, asked, strict=True):
            keys = BYTES + rng.permutation(KEYS)[: self.pairs]
            values = BYTES + KEYS + rng.integers(0, KEYS, self.pairs)
            start = 2 * self.pairs
            row[:start:2], row[1:start:2] = keys, values
            picked = rng.integers(0, self.pairs, (self.length + 2 - start) // 2)
            rest = np.stack([keys[picked], values[picked]], 1).reshape(-1)
            row[start:] = rest[: len(row) - start]
            mark[start + 1 :: 2] = True
        return tokens, asked

    def texts(self, rng: np.random.Generator, count: int, source: np.ndarray) -> np.ndarray:
        starts = rng.integers(0, len(source) - self.length - 1, count)
        found: np.ndarray = source[starts[:, None] + np.arange(self.length + 1)].astype(np.int64)
        return found

    def batch(self, step: int, count: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        some = max(1, round(SHARE * count))
        tokens, asked = self.lookups(rng, some)
        plain = self.texts(rng, count - some, self.train)
        counts = np.concatenate([asked, np.ones(plain.shape, bool)])[:, 1:]
        return self.on_device(np.concatenate([tokens, plain]), counts)

    def on_device(self, tokens: np.ndarray, counts: np.ndarray) -> Batch:
        return Batch(*(torch.from_numpy(a).to(self.device) for a in (tokens, counts)))

    def held_batches(self, count: int) -> tuple[Batch, Batch]:
        """Held text and lookups that no training has."""
        rng = np.random.default_rng([self.seed, 1 << 30])
        plain = self.texts(rng, count, self.held)
        tokens, asked = self.lookups(rng, count)
        every = np.ones(plain.shape, bool)
        return self.on_device(plain, every[:, 1:]), self.on_device(tokens, asked[:, 1:])


def train(
    kind: Kind, shape: Shape, data: Data, asked: argparse.Namespace
) -> tuple[Decoder, list[float]]:
    """A model and its losses."""
    torch.manual_seed(asked.seed)
    model = Decoder(shape, kind).to(data.device)
    optimizer = torch.optim.AdamW(model.parameters(), asked.lr, weight_decay=0.01)
    losses: list[float] = []
    for step in range(asked.steps):
        rate = min(1.0, (step + 1) / asked.warm) * (1 - 0.9 * step / asked.steps)
        for group in optimizer.param_groups:
            group["lr"] = asked.lr * rate
        batch = data.batch(step, asked.batch)
        with torch.autocast(data.device, torch.bfloat16, enabled=data.device == "cuda"):
            logits = model(batch.tokens[:, :-1]).float()
        loss = F.cross_entropy(logits[batch.counts], batch.tokens[:, 1:][batch.counts])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % asked.log == 0:
            losses.append(float(loss.detach()))
            print(f"{kind.label} step {step + 1} loss {losses[-1]:.4f}", flush=True)
    return model, losses


@torch.no_grad()
def measure(model: Decoder, data: Data, count: int) -> tuple[float, float]:
    """Nats a byte of held text, and the share of lookups that are right."""
    found = []
    for batch in data.held_batches(count):
        nats, right, total = 0.0, 0, 0
        for part, counts in zip(batch.tokens.split(8), batch.counts.split(8), strict=True):
            logits = model(part[:, :-1]).float()[counts]
            wanted = part[:, 1:][counts]
            nats += float(F.cross_entropy(logits, wanted, reduction="sum"))
            right += int((logits.argmax(-1) == wanted).sum())
            total += len(wanted)
        found.append((nats / total, right / total))
    return found[0][0], found[1][1]


def verdicts(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What the ladder is expected to show, and whether it does."""
    nats = {name: row["nats"] for name, row in rows.items()}
    recall = {name: row["recall"] for name, row in rows.items()}
    best = min(nats["softmax"], nats["llama"])
    claims = {
        "text: linear > mamba2s >= 2mamba": nats["linear"] > nats["mamba2s"] >= nats["2mamba"],
        "text: |2mamba - softmax| <= 0.05": abs(nats["2mamba"] - best) <= 0.05,
        "text: 2mamba-e <= softmax + 0.02": nats["2mamba-e"] <= best + 0.02,
        "recall: 2mamba >= mamba2s + 10 points": recall["2mamba"] >= recall["mamba2s"] + 0.1,
    }
    for name in ("2mamba without conv", "2mamba without decay"):
        if name in rows:
            worse = nats[name] > nats["2mamba"] or recall[name] < recall["2mamba"]
            claims[f"{name} is worse"] = worse
    return [f"{'holds' if true else 'FAILS'}: {claim}" for claim, true in claims.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("linear_text_work/ladder"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--length", type=int, default=None)
    parser.add_argument("--pairs", type=int, default=None)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warm", type=int, default=100)
    parser.add_argument("--log", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--ablate", action="store_true", help="2Mamba without conv, without decay")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    asked.steps = asked.steps or (200 if asked.tiny else 3000)
    shape = Shape(**TINY) if asked.tiny else Shape()
    text = read_text(asked.data / "text-wikipedia-plain" / "train_0.txt.xz")[:10_000_000]
    length, pairs = asked.length or (128 if asked.tiny else 512), asked.pairs
    pairs = pairs or (16 if asked.tiny else 64)
    data = Data(text.encode("utf-8"), length, pairs, asked.seed, asked.device)
    run(asked, shape, data)


def run(asked: argparse.Namespace, shape: Shape, data: Data) -> None:
    """All models one after the other; what stands in the folder is not trained again."""
    asked.out.mkdir(parents=True, exist_ok=True)
    kinds = [Kind(name) for name in asked.kinds]
    if asked.ablate:
        kinds += [Kind("2mamba", conv=False), Kind("2mamba", decay=False)]
    rows: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        told = asked.out / f"{kind.label.replace(' ', '-')}-{asked.steps}-{asked.seed}.json"
        if not told.exists():
            begin = time.perf_counter()
            model, losses = train(kind, shape, data, asked)
            nats, recall = measure(model.eval(), data, 64)
            row = {
                "nats": round(nats, 4), "recall": round(recall, 4), "losses": losses,
                "parameters": sum(p.numel() for p in model.parameters()),
                "bytes": {str(n): kind.remembered(shape, n) for n in (512, 65536)},
                "seconds": round(time.perf_counter() - begin, 1),
            }  # fmt: skip
            told.write_text(json.dumps(row), "utf-8")
        rows[kind.label] = json.loads(told.read_text("utf-8"))
    print(f"| model | nats/byte | recall, {data.pairs} pairs | KiB at 512 | KiB at 65536 | s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        kib = [f"{row['bytes'][n] / 1024:.0f}" for n in ("512", "65536")]
        line = [name, f"{row['nats']:.4f}", f"{row['recall']:.1%}", *kib, f"{row['seconds']:.0f}"]
        print("| " + " | ".join(line) + " |")
    if set(KINDS) <= set(rows):
        print("\n".join(verdicts(rows)))
    print(PAPER)


if __name__ == "__main__":
    main()
