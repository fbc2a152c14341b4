"""What COMPOT is compared with, by the same interface: truncated SVD, SVD-LLM and CoSpaDi."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import checks
from .checks import F64
from .coders import Mask
from .compot import whitened
from .result import Factors, from_whitened
from .whiten import Whitening

POWER_STEPS = 8  # of K-SVD's rank-one fit
_BATCH_BYTES = 16 << 20  # of matching pursuit's basis at a time: what a processor's cache holds
_COLUMNS = 8192  # of matching pursuit at a time, at most
DEPENDENT = 1e-12  # squared distance to the chosen atoms below which an atom is a copy of them

Pursuit = Callable[[F64, F64, int], tuple[F64, Mask]]


def truncated_svd(weight: Any, whitening: Whitening, rank: int, *, name: str = "weight") -> Factors:
    """`W [m, n]` cut to `rank` singular values; `whitening` only measures the error.

    Both factors hold the roots of the singular values. Raises ConvertError as `compot` does.
    """
    w = checks.matrix(weight, name, rows=whitening.channels)
    y = whitened(w, whitening, name)
    left, right = _cut(w, checks.whole(rank, f"{name}: rank", 1, min(w.shape)))
    idx = np.tile(np.arange(rank, dtype=np.int32), (w.shape[1], 1))
    empty = np.zeros(w.shape[1])
    return Factors(left, idx, right, empty, empty).measured(y, whitening)


def svd_llm(weight: Any, whitening: Whitening, rank: int, *, name: str = "weight") -> Factors:
    """SVD-LLM (arXiv 2403.07378), the variant that only whitens: `L^T W [m, n]` cut to `rank`.

    The squared error is the sum of the squared singular values left out. Raises ConvertError as
    `compot` does.
    """
    w = checks.matrix(weight, name, rows=whitening.channels)
    y = whitened(w, whitening, name)
    left, right = _cut(y, checks.whole(rank, f"{name}: rank", 1, min(w.shape)))
    return from_whitened(y, left, right, np.ones(right.shape, np.bool_), whitening)


def _cut(y: F64, rank: int) -> tuple[F64, F64]:
    u, sigma, vt = np.linalg.svd(y, full_matrices=False)
    root = np.sqrt(sigma[:rank])
    return u[:, :rank] * root, np.ascontiguousarray((vt[:rank] * root[:, None]).T)


def cospadi(
    weight: Any,
    whitening: Whitening,
    k: int,
    s: int,
    *,
    iterations: int = 60,
    seed: int = 42,
    trace: bool = False,
    name: str = "weight",
    pursue: Pursuit | None = None,
) -> Factors:
    """CoSpaDi (arXiv 2509.22075): `L^T W [m, n] ~ D S` with unit-norm atoms, by K-SVD.

    k: 1 to n, may exceed m (atoms start as distinct columns of the whitened weight). s: 1 to
    min(k, m). Each iteration codes by orthogonal matching pursuit, then updates atom by atom
    with a rank-one fit (8 power iterations) of what the others leave. Unused atoms become the
    columns with the largest residuals (ours; the paper skips them). pursue: another
    implementation of `pursuit`. Raises ConvertError as `compot` does.
    """
    w = checks.matrix(weight, name, rows=whitening.channels)
    k = checks.whole(k, f"{name}: k", 1, w.shape[1])
    s = checks.whole(s, f"{name}: s", 1, min(k, len(w)))
    checks.whole(iterations, "iterations", 1)
    y = whitened(w, whitening, name)
    d = _first_atoms(y, k, np.random.default_rng(checks.whole(seed, "seed", 0)))
    errors = []
    for _ in range(iterations):
        code, mask = (pursue or pursuit)(d, y, s)
        residual = y - d @ code.T
        _update_atoms(d, code, mask, residual)
        if trace:
            errors.append(float(np.vdot(residual, residual)))
    return from_whitened(y, d, code, mask, whitening, errors)


def _first_atoms(y: F64, k: int, draw: np.random.Generator) -> F64:
    """k random distinct columns of `y`, normalised; random directions where they are zero."""
    d = y[:, draw.choice(y.shape[1], k, replace=False)]
    empty = ~d.any(axis=0)
    d[:, empty] = draw.standard_normal((len(y), int(empty.sum())))
    return np.ascontiguousarray(d / np.linalg.norm(d, axis=0))


def pursuit(d: F64, y: F64, s: int) -> tuple[F64, Mask]:
    """Orthogonal matching pursuit: codes `[n, k]` of `y [m, n]` with exactly s of the atoms
    `d [m, k]` (unit norm) each, and their support `[n, k]`."""
    n, k = y.shape[1], d.shape[1]
    code, mask = np.zeros((n, k)), np.zeros((n, k), np.bool_)
    square, correlations = d.T @ d, y.T @ d
    batch = max(1, min(_COLUMNS, _BATCH_BYTES // (8 * s * k)))
    for first in range(0, n, batch):
        rows = slice(first, first + batch)
        _pursue(square, correlations[rows], s, code[rows], mask[rows])
    return code, mask


def _pursue(square: F64, correlations: F64, s: int, code: F64, mask: Mask) -> None:
    """Fill `code` and `mask` for a batch, all of its columns a step at a time.

    basis[:, t] holds the products of all atoms with the t-th direction of the orthonormal basis of
    the chosen atoms: the rows of the incremental Cholesky factor of their Gram matrix.
    """
    n, k = correlations.shape
    every = np.arange(n)
    alpha = correlations.copy()  # products of all atoms with the residual
    basis, along = np.zeros((n, s, k)), np.zeros((n, s))
    chosen = np.zeros((n, s), np.int64)
    for t in range(s):
        pick = np.where(mask, -1.0, np.abs(alpha)).argmax(axis=1)
        chosen[:, t], mask[every, pick] = pick, True
        previous = basis[every, :t, pick]
        height = 1.0 - np.einsum("nt,nt->n", previous, previous)
        usable = height > DEPENDENT
        scale = np.where(usable, 1 / np.sqrt(np.where(usable, height, 1.0)), 0.0)
        rows = square[pick] - (previous[:, None, :] @ basis[:, :t])[:, 0]
        basis[:, t] = rows * scale[:, None]
        along[:, t] = alpha[every, pick] * scale
        alpha -= along[:, t, None] * basis[:, t]
    triangle = np.triu(np.take_along_axis(basis, chosen[:, None, :], axis=2))
    height = np.einsum("ntt->nt", triangle)
    height[height == 0] = 1.0  # a copy of chosen atoms keeps an explicit zero
    values = np.linalg.solve(triangle, along[..., None])[..., 0]
    code[every[:, None], chosen] = values


def _update_atoms(d: F64, code: F64, mask: Mask, residual: F64) -> None:
    """One pass of K-SVD over all atoms, in place. Residuals follow atom by atom: else the error
    would not fall."""
    rest = np.ascontiguousarray(residual.T)  # [n, m]: the columns that an atom serves lie whole
    taken: list[int] = []  # columns that unused atoms became in this pass
    for i in range(d.shape[1]):
        used = np.flatnonzero(mask[:, i] & (code[:, i] != 0))
        if not len(used):
            norms = np.einsum("ji,ji->j", rest, rest)
            norms[taken] = 0
            worst = int(norms.argmax())
            if norms[worst] > 0:
                d[:, i] = rest[worst] / np.sqrt(norms[worst])
                taken.append(worst)
            continue
        v = code[used, i]
        part = rest[used]
        part += np.outer(v, d[:, i])
        for _ in range(POWER_STEPS):
            u = v @ part
            norm = float(np.linalg.norm(u))
            if norm == 0:
                break
            u /= norm
            v = part @ u
        else:
            d[:, i], code[used, i] = u, v
            part -= np.outer(v, u)
            rest[used] = part
    residual[:] = rest.T
