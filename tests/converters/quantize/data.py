"""Matrices and inputs for tests of quantizers."""

from __future__ import annotations

from functools import cache

import numpy as np
from edgert.converters.quantize.base import F64
from edgert.kernels.quant import F32


def matrix(n: int, k: int, *, tails: float = 30, seed: int = 0) -> F32:
    """Student-t weights [N, K]; few degrees of freedom, `tails`, mean heavy tails."""
    return (np.random.default_rng(seed).standard_t(tails, (n, k)) * 0.02).astype(np.float32)


def inputs(k: int, *, rows: int = 0, seed: int = 1) -> F64:
    """Correlated inputs [rows, K] whose sizes fall as i^-0.7, in random order."""
    rng = np.random.default_rng(seed)
    mix = np.eye(k) + 0.3 * np.linalg.qr(rng.standard_normal((k, k)))[0]
    size = rng.permutation(np.arange(1, k + 1) ** -0.7)
    return (rng.standard_normal((rows or 8 * k, k)) * size) @ mix


@cache
def _gram(k: int, rows: int) -> F64:
    x = inputs(k, rows=rows)
    return x.T @ x


def gram(k: int, *, rows: int = 0) -> F64:
    return _gram(k, rows).copy()
