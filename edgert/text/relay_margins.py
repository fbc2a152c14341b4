"""Behind which words a small model is sure of how a large one goes on: margins, segments, choice.

The margin of a token is the probability of the likeliest token there less that of the second, by
the small model, while it reads what the large one wrote. A cue is kept if margins behind it, up to
the end of the sentence, are larger on average than elsewhere (RelayGen's selection).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .relay import LOOK_BACK, found_cues
from .relay_cues import CueScore

F64 = NDArray[np.float64]
STOPS = ".!?\n"  # a token with one of these ends a segment, and is no part of it
LEAST = 5  # segments that a cue needs: one is noise
ERRORS = 2.0  # standard errors by which its margins must be larger


def margins(logits: NDArray[np.float32]) -> F64:
    """p(first) - p(second) of the softmax of float32 [n, V], float64 [n]; p(first) where V is 1."""
    peak = logits.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # what lies so far below counts for nothing
        total: F64 = np.exp(logits - peak).sum(axis=1, dtype=np.float64)
    if logits.shape[1] == 1:
        return np.reciprocal(total)
    second = np.partition(logits, -2, axis=1)[:, -2].astype(np.float64)
    found: F64 = -np.expm1(second - peak[:, 0]) / total
    return found


@dataclass(frozen=True)
class Measured:
    """A trace. pieces: text of each token; margins: float64, of each."""

    pieces: Sequence[str]
    margins: F64


def segments(pieces: Sequence[str], cues: tuple[str, ...]) -> dict[str, list[range]]:
    """Tokens behind each cue, up to the first one that ends the sentence: what the small model
    would write. A cue within a segment of its own belongs to it; one that nothing follows gives
    none."""
    found: dict[str, list[range]] = {cue: [] for cue in cues}
    begun: dict[str, int] = {}
    before = ""

    def end(at: int) -> None:
        for cue, start in begun.items():
            if start < at:
                found[cue].append(range(start, at))
        begun.clear()

    for at, piece in enumerate(pieces):
        if any(mark in piece for mark in STOPS):
            end(at)
        for cue in found_cues(before, piece, cues):
            begun.setdefault(cue, at + 1)
        before = (before + piece)[-LOOK_BACK:]
    end(len(pieces))
    return found


def score(traces: Sequence[Measured], cues: tuple[str, ...]) -> list[CueScore]:
    """What is measured of each cue that occurs, tokens of all traces together; a cue that has all
    of them, so that nothing is elsewhere, is left out."""
    every = np.concatenate([np.zeros(0), *(trace.margins for trace in traces)])
    behind: dict[str, list[F64]] = {cue: [] for cue in cues}
    for trace in traces:
        for cue, found in segments(trace.pieces, cues).items():
            behind[cue] += [trace.margins[part.start : part.stop] for part in found]
    return [
        _score(cue, parts, every)
        for cue, parts in behind.items()
        if parts and sum(map(len, parts)) < len(every)
    ]


def _score(cue: str, parts: Sequence[F64], every: F64) -> CueScore:
    """Tokens of a sentence go together, so the error inside is that of a mean over segments."""
    sizes, sums = np.array([len(part) for part in parts]), np.array([part.sum() for part in parts])
    inner = int(sizes.sum())
    outer = len(every) - inner
    inside = sums.sum() / inner
    outside = (every.sum() - sums.sum()) / outer
    error = None
    if len(parts) > 1:
        spread = ((sums - inside * sizes) ** 2).sum() * len(parts) / (len(parts) - 1) / inner**2
        squares = (every**2).sum() - sum(float((part**2).sum()) for part in parts)
        error = math.sqrt(spread + max(0.0, squares / outer - outside**2) / outer)
    return CueScore(cue, len(parts), inner, float(inside), float(inside - outside), error)


def select(
    scores: Sequence[CueScore], *, least: int = LEAST, errors: float = ERRORS
) -> tuple[str, ...]:
    """Cues with so many segments and margins larger by more than so many standard errors (and at
    all), the largest margins first."""
    kept = [
        one for one in scores
        if one.segments >= least
        and one.delta > 0
        and (errors == 0 or (one.error is not None and one.delta > errors * one.error))
    ]  # fmt: skip
    return tuple(one.cue for one in sorted(kept, key=lambda one: (-one.inside, one.cue)))
