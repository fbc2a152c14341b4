"""A trained model with its drafts beside llama.cpp with its own, on the same weights.

    python -m benchmarks.speculation_peer BUNDLE --work FOLDER [--small SMALL] [--rounds 3]

The greedy answers to the prompts of `speculation` that the model answers itself, one after the
other on one thread: edgert plain and with each draft; llama.cpp plain, with llama-cpp-python's
prompt lookup, and with a small model of the same tokenizer as its draft, both programs on the same
codes (GGUF). llama.cpp is told edgert's text, so that both write the same; its best setting counts,
for each prompt by itself. CPU seconds behind the first token. Lines are appended to
`results/speculation.jsonl`, from which `speculation --page` writes the page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from benchmarks.machine import describe, load_average
from benchmarks.runners import LlamaRunner
from benchmarks.speculation import LONG, RESULTS, short, tokens_of, written
from benchmarks.speculation_batches import DRAFTS
from benchmarks.speculation_llama import LOOKUPS, Guess, Peer, lookup
from benchmarks.speculation_llama import written as peer_written
from benchmarks.speculation_prompts import PROMPTS
from benchmarks.text_models import gguf_of
from edgert.bundle import Bundle
from edgert.text.model import TextModel

GUESSES = (2, 4, 8)  # tokens that llama.cpp's draft model guesses


class Drafter:
    """A small model's guesses in llama.cpp: the likeliest token, again and again."""

    def __init__(self, runner: LlamaRunner, count: int) -> None:
        self.runner, self.count = runner, count
        self.known: list[int] = []

    def __call__(self, tokens: Sequence[int], room: int) -> list[int]:
        same = 0
        for mine, theirs in zip(self.known, tokens, strict=False):
            if mine != theirs:
                break
            same += 1
        same = min(same, len(tokens) - 1)
        self.runner.trim(same)
        fresh, found = list(tokens[same:]), list[int]()
        for _ in range(min(self.count, room)):
            rows = self.runner.rows(np.asarray(fresh, np.int32))
            fresh = [int(rows[-1].argmax())]
            found += fresh
        self.known = [*tokens, *found[:-1]]
        return found


def gguf(path: Path, work: Path) -> Path:
    with Bundle.open(path) as bundle:
        return gguf_of(bundle, work)


def settings(small: LlamaRunner | None) -> dict[str, Guess | None]:
    """llama.cpp's, by name."""
    found: dict[str, Guess | None] = {"plain": None}
    found |= {f"lookup {count}": lookup(count) for count in LOOKUPS}
    if small is not None:
        found |= {f"model {count}": Drafter(small, count) for count in GUESSES}
    return found


def measure(
    model: TextModel, peer: Peer, small: LlamaRunner | None, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A line for each prompt: tokens a CPU second of every setting, and edgert's drafts over
    llama.cpp's best."""
    lines = []
    for prompt in [prompt for prompt in PROMPTS if not prompt.answer]:
        tokens = tokens_of(model, prompt)
        options: dict[str, Any] = {
            "temperature": 0.0, "max_tokens": args.tokens, "logit_bias": LONG,
        }  # fmt: skip
        ours: dict[str, list[float]] = {name: [] for name in ("none", *DRAFTS)}
        theirs: dict[str, list[float]] = {name: [] for name in settings(small)}
        told = list(model.generate(tokens, draft="none", **options).token_ids)
        for _ in range(args.rounds):
            for name in ours:
                seconds, answer = written(model, tokens, draft=DRAFTS.get(name, name), **options)
                if list(answer.token_ids) != told:
                    raise SystemExit(f"{name}: another text than without drafts")
                ours[name].append((len(told) - 1) / seconds)
            for name, guess in settings(small).items():
                seconds, _ = peer_written(peer.runner, tokens, told, guess)
                theirs[name].append((len(told) - 1) / seconds)
        rates = {name: statistics.median(found) for name, found in ours.items()}
        beside = {name: statistics.median(found) for name, found in theirs.items()}
        best = max(beside, key=lambda name: beside[name])
        line = {
            "what": "peer", "kind": prompt.kind, "prompt": prompt.name, "best": best,
            "peer_plain": beside["plain"], "peer_best": beside[best],
            **{f"rate_{name}": rate for name, rate in rates.items()},
        }  # fmt: skip
        print(json.dumps(short(line)), flush=True)
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where the GGUF copies are kept")
    parser.add_argument("--small", type=Path, help="a bundle of the same tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    peer = Peer(gguf(args.bundle, args.work), args.rounds)
    small = LlamaRunner(gguf(args.small, args.work), 1, context=1024) if args.small else None
    with edgert.load(args.bundle, threads=1, draft="none") as model:
        lines = measure(model, peer, small, args)
    for name in ("none", *DRAFTS):
        ratios = [line[f"rate_{name}"] / line["peer_best"] for line in lines]
        print(f"{name:12} {statistics.geometric_mean(ratios):.2f} times llama.cpp's best, "
              f"worst {min(ratios):.2f}")  # fmt: skip
    head = {"machine": describe(), "load": load_average(), "time": time.strftime("%F")}
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(head | {"lines": [short(line) for line in lines]}) + "\n")


if __name__ == "__main__":
    main()
