"""Small synthetic layers: inputs with a falling spectrum, and weights of two kinds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from edgert.converters.compress.checks import F64
from edgert.converters.compress.whiten import Gram, Whitening, whiten


def rotation(side: int, draw: np.random.Generator) -> F64:
    return np.linalg.qr(draw.standard_normal((side, side)))[0]


def inputs(m: int, draw: np.random.Generator, rows: int = 0) -> F64:
    """`[rows, m]`, by default 8 m rows: channels scaled by i ** -0.7 and rotated."""
    x = draw.standard_normal((rows or 8 * m, m)) * np.arange(1, m + 1) ** -0.7
    return x @ rotation(m, draw)


def weight(m: int, n: int, draw: np.random.Generator, kind: str = "power") -> F64:
    """`[m, n]`: singular values i ** -0.3 ("power"), or columns in 16 random subspaces of dimension
    m / 8 with 30 % noise ("subspaces")."""
    if kind == "power":
        side = min(m, n)
        left, right = rotation(m, draw)[:, :side], rotation(n, draw)[:side]
        return (left * np.arange(1, side + 1) ** -0.3) @ right
    bases = [np.linalg.qr(draw.standard_normal((m, m // 8)))[0] for _ in range(16)]
    columns = []
    for j in range(n):
        clean, noise = bases[j % 16] @ draw.standard_normal(m // 8), draw.standard_normal(m)
        columns.append(clean / np.linalg.norm(clean) + 0.3 * noise / np.linalg.norm(noise))
    return np.array(columns).T


def gram(x: F64) -> Gram:
    return Gram(x.T @ x, len(x))


def layer(
    m: int = 24, n: int = 40, *, seed: int = 0, kind: str = "power", ridge: float | None = 1e-8
) -> tuple[F64, F64, Whitening]:
    """Inputs, weight and whitening."""
    draw = np.random.default_rng(seed)
    x = inputs(m, draw)
    return x, weight(m, n, draw, kind), whiten(gram(x), ridge)


def energy(matrix: F64) -> float:
    """Squared Frobenius norm."""
    return float(np.vdot(matrix, matrix))


def falls(values: Iterable[float], slack: float) -> bool:
    pairs = itertools.pairwise(values)
    return all(after <= before + slack for before, after in pairs)
