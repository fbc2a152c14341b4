"""Interleaved bursts: all programs get their turn within seconds, and see the same machine.

Each measurement takes rounds; in a round each runner has one burst, the order turning round by
round. Before a burst there is a pause in which the other program's threads stop spinning, and one
unmeasured step that wakes this one's.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.machine import Watch
from benchmarks.runners import Ids, Runner

PAUSE = 0.03  # seconds; OpenMP's and our own workers park within a few milliseconds


@dataclass(frozen=True)
class Row:
    """One program in one test. Milliseconds are for `tokens` tokens together; `count` of them were
    measured; tps is tokens a second at the median. other_cores: what other processes used."""

    test: str
    engine: str
    threads: int
    depth: int
    tokens: int
    count: int
    median_ms: float
    best_ms: float
    p90_ms: float
    tps: float
    tps_best: float
    other_cores: float

    def to_dict(self) -> dict[str, Any]:
        return {
            k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in asdict(self).items()
        }


def row(
    test: str, engine: str, threads: int, depth: int, tokens: int, spent: Sequence[float],
    other_cores: float,
) -> Row:  # fmt: skip
    """Statistics of `spent` seconds, each for `tokens` tokens."""
    best, median, p90 = (float(np.percentile(spent, q)) for q in (0, 50, 90))
    return Row(
        test, engine, threads, depth, tokens, len(spent), median * 1e3, best * 1e3, p90 * 1e3,
        tokens / median, tokens / best, other_cores,
    )  # fmt: skip


@contextmanager
def no_collection() -> Iterator[None]:
    """The garbage collector stays away meanwhile."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


Burst = Callable[[Runner], list[float]]


def interleaved(
    runners: Sequence[Runner],
    rounds: int,
    bursts: Mapping[str, Burst],
    *,
    between: Callable[[], None] | None = None,
) -> tuple[dict[tuple[str, str], list[float]], float]:
    """Seconds by runner and burst name, and the cores that other processes used. A round is every
    burst on every runner. between: called once a round."""
    spent = {(runner.name, test): list[float]() for runner in runners for test in bursts}
    watch = Watch()
    for index in range(rounds):
        if between is not None:
            between()
        for runner in runners if index % 2 == 0 else runners[::-1]:
            for test, burst in bursts.items():
                time.sleep(PAUSE)
                with no_collection():
                    spent[runner.name, test] += burst(runner)
    return spent, watch.others()


def writing(tokens: Ids, depth: int) -> Burst:
    """One token a step after `depth` tokens; seconds of each."""

    def burst(runner: Runner) -> list[float]:
        runner.step(tokens[:1])
        runner.trim(depth)
        times = []
        for at in range(len(tokens)):
            start = time.perf_counter()
            runner.step(tokens[at : at + 1])
            times.append(time.perf_counter() - start)
        runner.trim(depth)
        return times

    return burst


def reading(tokens: Ids) -> Burst:
    """A whole prompt from an empty sequence, logits of its last token; seconds of it."""

    def burst(runner: Runner) -> list[float]:
        runner.trim(0)
        runner.step(tokens[:1])
        runner.trim(0)
        start = time.perf_counter()
        runner.step(tokens)
        spent = time.perf_counter() - start
        runner.trim(0)
        return [spent]

    return burst


def verifying(tokens: Ids, depth: int, *, together: bool) -> Burst:
    """The same few tokens with all their logits, in one step or one by one; seconds for all."""

    def burst(runner: Runner) -> list[float]:
        times = []
        for turn in range(5):
            start = time.perf_counter()
            if together:
                runner.step(tokens, every=True)
            else:
                for at in range(len(tokens)):
                    runner.step(tokens[at : at + 1])
            if turn:  # the first one woke the threads
                times.append(time.perf_counter() - start)
            runner.trim(depth)
        return times

    return burst
