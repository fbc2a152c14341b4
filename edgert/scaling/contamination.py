"""Whether models released after a benchmark's items became known score higher on it than an older
benchmark of the same skill explains (arXiv 2602.15327)."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from .loss import F64, logit

PERMUTATIONS = 2000
BINS = 10
LEAST = 5


class Contamination(msgspec.Struct, frozen=True):
    """shift: by which later models exceed, in logits; p: how often a shuffle of the dates gives as
    much; None with fewer than 5 models before or after over the range that both cover. A large p is
    no proof of absence."""

    shift: float | None
    p: float | None
    before: int
    after: int


def probe_contamination(
    known: Any, suspect: Any, after: Any, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> Contamination:
    """known [n], suspect [n]: scores in [0, 1] on the older benchmark and the newer one. after [n]:
    whether a model was released after the newer one's items."""
    x, y = (logit(np.asarray(a, np.float64)) for a in (known, suspect))
    late = np.asarray(after, bool)
    fine = np.isfinite(x) & np.isfinite(y)
    x, y, late = x[fine], y[fine], late[fine]
    if late.any() and (~late).any():
        low, high = max(x[late].min(), x[~late].min()), min(x[late].max(), x[~late].max())
        both = (x >= low) & (x <= high)
        x, y, late = x[both], y[both], late[both]
    counts = int((~late).sum()), int(late.sum())
    if min(counts) < LEAST:
        return Contamination(None, None, *counts)
    shift = _shift(x, y, late)
    rng = np.random.default_rng(seed)
    inner = np.quantile(x, np.linspace(0, 1, BINS + 1)[1:-1])
    bins = [np.flatnonzero(np.searchsorted(inner, x) == i) for i in range(BINS)]
    exceeding = 0
    for _ in range(permutations):
        mixed = late.copy()
        for members in bins:
            mixed[members] = rng.permutation(late[members])
        exceeding += _shift(x, y, mixed) >= shift
    return Contamination(shift, (1 + exceeding) / (permutations + 1), *counts)


def _shift(x: F64, y: F64, late: np.ndarray) -> float:
    """gamma of y = a + b x + gamma g, by least squares."""
    # Frisch and Waugh: the residuals of y on those of g, both after a line in x
    centred = x - x.mean()
    square = float(centred @ centred) or 1.0
    g = late - late.mean()
    g = g - centred * float(centred @ g) / square
    return float(g @ y) / (float(g @ g) or 1.0)
