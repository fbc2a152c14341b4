"""Turn `lm-edgert-60m` on one GPU, by the clock, and print what became of it.

    python -m recipes.linear_text.convert --model DIR --work linear_text_work --deadline 1500

Stopped and started again with the same options it goes on where it was, at most half a minute back;
the seconds of a stage are counted over all starts. Stages: statistics, alignment, ranking of
layers, distillation of each hybrid that `--keep` lists (layers that keep softmax; 0 is all linear),
each measured as soon as it stands. With `--start DIR` a model that an earlier run wrote is
distilled further instead, with other batches.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgert.converters import torch_linear
from edgert.converters.heal.loss import TwoPieces
from edgert.converters.linearize.gate import AGREEMENT, FOUND, KL, NATS, SHARE, divergence
from edgert.converters.linearize.greedy import continuations
from edgert.converters.linearize.memory import memory_of
from edgert.converters.linearize.options import LinearizeOptions, Text, Verdict, window_fields
from edgert.converters.linearize.run import Run, single_precision_matmul
from tokenizers import Tokenizer

from .checkpoint import load, save

PAPER = (
    "2Mamba2Furious (arXiv 2602.17363) trains from scratch, converts nothing: 2Mamba within 0.01 "
    "nats of softmax at 0.3B and 0.7B parameters (2.73/2.73, 2.62/2.61), needles found at 2286 "
    "tokens 1.00 by 2Mamba, 0.94 by softmax."
)  # fmt: skip
ANSWER = 24  # tokens of an answer, at most
SPLIT = (0.24, 0.04, 0.64)  # of the time: alignment, ranking, all distillations; rest: measuring


class Asked:
    """Pass keys of the model's own test file, as chats."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        with gzip.open(folder / "passkey_100.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        lengths = sorted({row["length"] for row in rows})
        self.rows = [r for n in lengths for r in [r for r in rows if r["length"] == n][:limit]]
        self.end = self.tokenizer.token_to_id("<|im_end|>")

    def found(self, pieces: TwoPieces, device: str) -> dict[int, float]:
        """By length, the share of answers that hold the value."""
        texts = [
            f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
            for row in self.rows
        ]
        prompts = [np.asarray(self.tokenizer.encode(text).ids, np.int32) for text in texts]
        made = continuations(pieces, prompts, ANSWER, device, ends=[self.end])
        right: dict[int, list[bool]] = {}
        for row, ids in zip(self.rows, made, strict=True):
            hit = str(row["value"]) in self.tokenizer.decode(ids.tolist())
            right.setdefault(row["length"], []).append(hit)
        return {length: float(np.mean(hits)) for length, hits in right.items()}


def row_of(
    name: str, told: Verdict, keys: dict[int, float], teacher: dict[int, float], bits: float
) -> dict[str, Any]:
    """A line of the table. bits: bits a byte of one nat a token."""
    lost = [n for n, share in keys.items() if share < FOUND * teacher[n]]
    failed = [*told.failed, *(f"pass keys at {n}" for n in lost)]
    return {
        "model": name, "kl": round(told.kl, 4), "bpb": round(told.nats * bits, 4),
        "agreement": round(told.agreement, 4), "linear_share": round(told.linear_share, 3),
        "passkey": {str(n): round(share, 3) for n, share in keys.items()},
        "gate": "passes" if not failed else "; ".join(failed),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lengths = list(rows[0]["passkey"])
    head = ["model", "KL", "bits/byte", "greedy agreement",
            *(f"pass key {n}" for n in lengths), "linear_share", "gate"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in rows:
        keys = [f"{row['passkey'][n]:.0%}" for n in lengths]
        lines.append([
            row["model"], f"{row['kl']:.4f}", f"{row['bpb']:.4f}", f"{row['agreement']:.1%}",
            *keys, f"{row['linear_share']:.3f}", row["gate"],
        ])  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Conversion:
    """One run by the clock."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.start = asked, time.perf_counter()
        self.keep = [int(n) for n in asked.keep.split(",")]
        self.model, weights = load(asked.model)
        arrays = {n: np.load(asked.work / f"{n}.npy").astype(np.int32) for n in ("train", "held")}
        sizes = json.loads((asked.work / "sizes.json").read_text("utf-8"))
        self.bits = sizes["held"] / sizes["held_bytes"] / math.log(2)
        held = arrays["held"][: asked.held]
        first, _, rest = (share * asked.deadline for share in SPLIT)
        rest = sum(SPLIT) * asked.deadline if asked.start else rest / len(self.keep)
        self.options = LinearizeOptions(
            "all", asked.tokens, mode=asked.mode, features=asked.features,
            seconds=(first, rest), rate=asked.rate, batch=asked.batch,
            seed=asked.seed,
            micro_batch=asked.micro, lengths=(512, 1024, 2048), device=asked.device,
            **window_fields(asked.window),
        )  # fmt: skip
        self.run = Run(
            self.model.graph, weights, Text(arrays["train"], held, end=self.end()), self.options,
            folder=asked.work / "state", progress=True,
        )  # fmt: skip
        self.passkeys = Asked(asked.model, asked.passkeys)
        self.rows: list[dict[str, Any]] = []

    def end(self) -> int | None:
        """The token that ends a document, None where none was named."""
        if self.asked.reset is None:
            return None
        tokenizer = Tokenizer.from_file(str(self.asked.model / "tokenizer.json"))
        found: int | None = tokenizer.token_to_id(self.asked.reset)
        if found is None:
            raise SystemExit(f"the tokenizer has no token {self.asked.reset!r}")
        return found

    def say(self, **values: Any) -> None:
        line = {"seconds": round(time.perf_counter() - self.start, 1), **values}
        with (self.asked.work / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def all(self) -> None:
        """All stages, a line of the table for each model."""
        run, asked = self.run, self.asked
        with single_precision_matmul(run.half):
            memory = memory_of(run.turns, asked.mode)
            print(memory.table(run.context), memory.advice(run.context), sep="\n", flush=True)
            self.teacher = self.passkeys.found(run.fast, run.device)
            _, _, nats = divergence(run.fast, run.exact, run.held[:64], run.ranks, run.device)
            self.rows.append(row_of(
                "softmax (the original)", Verdict(0.0, nats, nats, 1.0, 0.0, {}),
                self.teacher, self.teacher, self.bits,
            ))  # fmt: skip
            self.say(**self.rows[0])
            self.turned()
        gate = (
            f"Gate: KL <= {KL} or loss <= +{NATS}, agreement >= {AGREEMENT:.0%}, pass keys >= "
            f"{FOUND:.0%} of the original's, linear_share >= {SHARE}."
        )
        text = "\n\n".join([table(self.rows), gate, f"The paper: {PAPER}"])
        (asked.work / "table.md").write_text(text + "\n", "utf-8")
        print(text, flush=True)

    def turned(self) -> None:
        """All models but the original."""
        run = self.run
        if self.asked.start:
            kinds = json.loads((self.asked.start / "config.json").read_text("utf-8"))["layer_types"]
            _, begun = load(self.asked.start)
            layers = [n for n, kind in enumerate(kinds) if kind == "linear_attention"]
            return self.hybrid(layers, {}, begun)
        aligned = run.aligned()
        errors = run.aligner.errors(run.held[:8], run.device)
        self.say(aligned={n: round(e, 4) for n, e in errors.items()})
        order = run.order(aligned)
        self.say(order=order)
        for kept in self.keep:
            self.hybrid(sorted({turn.layer for turn in run.turns} - set(order[:kept])), aligned)
        return None

    def hybrid(self, turned: list[int], aligned: Any, begun: Any = None) -> None:
        """Distil, measure and write one model."""
        run, kept = self.run, self.asked.work / "state" / f"row-{len(turned)}.json"
        if kept.exists():
            self.rows.append(json.loads(kept.read_text("utf-8")))
            return
        graph, weights, told = run.attempt(turned, aligned, begun)
        pieces = TwoPieces(graph, weights, run.device, half=run.half)
        keys = self.passkeys.found(pieces, run.device)
        name = f"{len(turned)} of {len(run.turns)} layers linear"
        self.rows.append(row_of(name, told, keys, self.teacher, self.bits))
        self.say(**self.rows[-1], steps=run.steps, turned=turned)
        if not run.ranks.rank:
            folder = self.asked.work / f"linear-{len(turned)}"
            save(self.asked.model, folder, weights, tuple(turned), self.options)
            kept.write_text(json.dumps(self.rows[-1]), "utf-8")


def compiled() -> None:
    """Fuse what is done to a block's weights."""
    torch._dynamo.config.cache_size_limit = 64
    torch_linear._block = torch.compile(torch_linear._block, dynamic=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("linear_text_work"))
    parser.add_argument("--deadline", type=float, default=1500.0, help="seconds of all stages")
    parser.add_argument("--tokens", type=int, default=300_000_000, help="of training, at most")
    parser.add_argument("--keep", default="0,6", help="softmax layers kept, by attempt")
    parser.add_argument("--start", type=Path, help="model of an earlier run, to be distilled on")
    parser.add_argument("--seed", type=int, default=42, help="of batches")
    parser.add_argument("--mode", default="shifted")
    parser.add_argument("--features", type=int, default=None)
    parser.add_argument("--reset", help="token that ends a document: the next one begins anew")
    parser.add_argument("--window", type=int, default=None, help="tokens; 0 for no window")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=32768, help="tokens of a step")
    parser.add_argument("--micro", type=int, default=32768, help="tokens at a time")
    parser.add_argument("--held", type=int, default=131_072, help="tokens to measure on, at most")
    parser.add_argument("--passkeys", type=int, default=40, help="of each length, at most")
    parser.add_argument("--device", default=None)
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    if asked.compile:
        compiled()
    Conversion(asked).all()


if __name__ == "__main__":
    main()
