"""llama.cpp's side of `speculation.py`: the same weights, the same text, guesses checked greedily.

Guesses come from the text with a known share of right ones, or from llama-cpp-python's own
`LlamaPromptLookupDecoding`. The text that stands is told, as it is on edgert's side; every row's
logits are computed and the likeliest token looked for. CPU seconds on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.runners import LlamaRunner

LOOKUPS = (3, 7, 10)  # tokens that prompt lookup guesses; 10 is its default
Guess = Callable[[Sequence[int], int], Sequence[int]]


def importable() -> bool:
    return find_spec("llama_cpp") is not None


def written(
    runner: LlamaRunner, prompt: Sequence[int], told: Sequence[int], guess: Guess | None
) -> tuple[float, int]:
    """CPU seconds behind the first token of a text that is told, and steps."""
    runner.trim(0)
    runner.step(np.asarray(prompt, np.int32))
    tokens, steps = [*prompt, told[0]], 0
    start = time.process_time()
    while (at := len(tokens) - len(prompt)) < len(told):
        room = len(told) - at - 1
        guesses = list(guess(tokens, room))[:room] if guess and room else []
        runner.rows(np.asarray([tokens[-1], *guesses], np.int32)).argmax(axis=-1)
        kept = 0
        while kept < len(guesses) and guesses[kept] == told[at + kept]:
            kept += 1
        tokens += told[at : at + kept + 1]
        runner.trim(len(tokens) - 1)
        steps += 1
    return time.process_time() - start, steps


def widths(runner: LlamaRunner, sizes: Sequence[int], rounds: int) -> dict[str, float]:
    """v(m), as `speculation.widths` has it."""
    rng, depth = np.random.default_rng(0), 256
    runner.trim(0)
    runner.step(rng.integers(3, runner.width, depth).astype(np.int32))
    spent: dict[int, list[float]] = {m: [] for m in sizes}
    for _ in range(3 * rounds):
        for m in sizes:
            tokens = rng.integers(3, runner.width, m).astype(np.int32)
            start = time.process_time()
            runner.rows(tokens)
            spent[m].append(time.process_time() - start)
            runner.trim(depth)
    quick = {m: float(np.percentile(times, 25)) for m, times in spent.items()}
    return {"t1_ms": quick[1] * 1e3} | {f"v{m}": quick[m] / quick[1] for m in sizes}


def lookup(count: int) -> Guess:
    """llama-cpp-python's prompt lookup."""
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    found = LlamaPromptLookupDecoding(num_pred_tokens=count)
    return lambda tokens, room: found(np.asarray(tokens, np.intc))[:room].tolist()


class Peer:
    """One model in llama.cpp. rounds: of every measurement."""

    def __init__(self, path: Path, rounds: int) -> None:
        self.runner, self.rounds = LlamaRunner(path, 1, context=1024), rounds

    def compared(
        self, prompt: Sequence[int], told: Sequence[int], guess: Guess
    ) -> dict[str, float]:
        """Guesses against plain decoding of the same text, one after the other."""
        ratios, rates, steps = [], [], 0
        for _ in range(self.rounds):
            plain, _ = written(self.runner, prompt, told, None)
            seconds, steps = written(self.runner, prompt, told, guess)
            ratios.append(plain / seconds)
            rates.append((len(told) - 1) / seconds)
        return {
            "speed": statistics.median(ratios), "rate": statistics.median(rates),
            "tau": (len(told) - 1) / steps,
        }  # fmt: skip

    def looked_up(self, prompt: Sequence[int], told: Sequence[int]) -> dict[str, float]:
        """The best length of its own prompt lookup."""
        found = [
            {**self.compared(prompt, told, lookup(count)), "gamma": count} for count in LOOKUPS
        ]
        return max(found, key=lambda line: line["speed"])

    def close(self) -> None:
        self.runner.close()
