"""The synthetic leaderboard of specs: 60 base models, 1500 checkpoints, a known frontier."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
TAU = 0.98


def truth(z: F64) -> F64:
    """The exact 0.98 frontier."""
    found: F64 = 0.1 + 0.6 / (1 + np.exp(-1.5 * (z - 2)))
    return found


@functools.cache
def _top() -> float:
    draws = np.random.default_rng(99).beta(4, 2, 2_000_000)
    return float(np.quantile(draws, TAU))


def leaderboard(seed: int, n: int = 1500, lift: float = 0.0) -> tuple[F64, F64, F64]:
    """z (0 to 4, in 1e21 FLOPs), scores, base numbers. lift: by which the frontier has moved."""
    rng = np.random.default_rng(seed)
    bases = rng.uniform(0, 4, 60)
    base = rng.integers(0, 60, n)
    z = bases[base]
    y = np.clip((truth(z) + lift) * rng.beta(4, 2, n) / _top(), 0, 1)
    return z, y, base.astype(np.float64)
