"""What a draft head gains with several conversations at once and with more threads.

    python -m benchmarks.speculation_batches BUNDLE [--threads 1 2] [--callers 1 4] [--rounds 3]

The prompts of `speculation` that the model answers itself, four at a time, a thread of Python each,
or one after the other; without drafts and with, in turns, by the time that passes. Every answer is
compared with the one without drafts. A bundle with a draft head; the machine has to be quiet. Lines
are appended to `results/speculation.jsonl`, from which `speculation --page` writes the page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import edgert
from benchmarks.machine import describe, load_average
from benchmarks.speculation import LONG, RESULTS, TEMPERATURES, short, tokens_of
from benchmarks.speculation_prompts import PROMPTS
from edgert.text.model import TextModel

DRAFTS: dict[str, Any] = {"ngram": "ngram", "head": "head", "ngram+head": ("ngram", "head")}


def answers(
    model: TextModel, prompts: Sequence[list[int]], callers: int, draft: Any,
    options: dict[str, Any],
) -> tuple[float, list[Any]]:  # fmt: skip
    """Seconds of all answers, prompts included, so many at a time, and the answers."""
    if model.engine.prefixes is not None:
        model.engine.prefixes.clear()

    def ask(prompt: list[int]) -> Any:
        return model.generate(prompt, draft=draft, **options)

    start = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        found = list(pool.map(ask, prompts))
    return time.perf_counter() - start, found


def measure(model: TextModel, threads: int, callers: int, args: Any) -> list[dict[str, Any]]:
    """A line for each temperature and draft: median of the ratios of rounds."""
    prompts = [tokens_of(model, prompt) for prompt in PROMPTS if not prompt.answer]
    lines = []
    for temperature in TEMPERATURES:
        options: dict[str, Any] = {
            "temperature": temperature, "top_p": 1.0, "seed": 7, "max_tokens": args.tokens,
            "logit_bias": LONG,
        }  # fmt: skip
        ratios: dict[str, list[float]] = {name: [] for name in DRAFTS}
        tau, rate = dict.fromkeys(DRAFTS, 0.0), 0.0
        for _ in range(args.rounds):
            for name, draft in DRAFTS.items():
                plain, expected = answers(model, prompts, callers, "none", options)
                spent, found = answers(model, prompts, callers, draft, options)
                if [a.token_ids for a in found] != [a.token_ids for a in expected]:
                    raise SystemExit(f"{name}: another text than without drafts")
                ratios[name].append(plain / spent)
                tau[name] = statistics.fmean(a.drafting.tau for a in found)
                rate = max(rate, sum(len(a.token_ids) for a in expected) / plain)
        for name, found_ratios in ratios.items():
            line = {
                "what": "batch", "threads": threads, "callers": callers, "draft": name,
                "temperature": temperature, "speed": statistics.median(found_ratios),
                "tau": tau[name], "plain_rate": rate,
            }  # fmt: skip
            print(json.dumps(short(line)), flush=True)
            lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for threads in args.threads:
        with edgert.load(args.bundle, threads=threads, draft="none") as model:
            for callers in args.callers:
                lines += measure(model, threads, callers, args)
    head = {"machine": describe(), "load": load_average(), "time": time.strftime("%F")}
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(head | {"lines": [short(line) for line in lines]}) + "\n")


if __name__ == "__main__":
    main()
