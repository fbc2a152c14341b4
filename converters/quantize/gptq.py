"""GPTQ (Frantar et al. 2023, arXiv 2210.17323): rounding one input after the other, each time with
what is not yet rounded moved so that the layer's output loses least.

With H = G + damp * mean(diag G) I and U the upper Cholesky factor of its inverse, H^-1 = U^T U:

    for each input i in order:
        Q[:, i] = quantize(W[:, i])
        e = (W[:, i] - Q[:, i]) / U[i, i]
        W[:, i+1:] -= outer(e, U[i, i+1:])

Moves of inputs further on are done for BATCH inputs at once, which is the same. With a diagonal H
nothing moves: the result is round-to-nearest, bit for bit.

Order. `act_order` takes inputs with the largest diag H first. Groups keep their inputs, so that
the result is stored as any other, without an index of groups; their steps are then fitted
beforehand, to W as it is ("static groups"). Otherwise a group's steps are fitted when its first
input is reached, to what W has become.

Inputs that calibration never saw (0 on the diagonal) get the weight 0, as published, unless there
is no other: a layer that was never reached is rounded to nearest.

How much text. What is gained on the calibration text is kept on other text only with many more
rows than inputs: with 2 rows an input the gain of a wide layer turned into a loss, with 6 rows part
of it was kept, and `damp` 0.1 lost less than 0.01 in both (`benchmarks/NOTES.md`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from ...kernels.grid import Grid, Steps
from ...kernels.quant import F32, Quantized
from .base import F64, checked_gram, checked_weight, fitted, grid_of, stored
from .clip import clipped, diagonal

BATCH = 128  # a multiple of every group
PART = 32  # inputs of a batch that move each other one by one; a divisor of every group
TRIES = 6  # of ten times the damping


def gptq(
    w: F32,
    gram: F64,
    *,
    bits: int,
    group: int,
    symmetric: bool = True,
    act_order: bool = True,
    static: bool = False,
    clip: bool = False,
    damp: float = 0.01,
    batch: int = BATCH,
) -> Quantized:
    """A stored matrix of W [N, K] with inputs of Gram matrix G [K, K].

    act_order: largest inputs first, with static groups. static: static groups in plain order, too.
    clip: static groups' ranges by `clip.py`, weighted by the diagonal of G. batch: inputs whose
    moves are done at once, a multiple of `group`. Raises ConvertError for weights and Gram matrices
    that are not finite, values that the encoding cannot hold, and H that no damping mends.
    """
    grid, w = grid_of(bits, group, symmetric), checked_weight(w)
    h = checked_gram(gram, w.shape[1])
    dead = np.diagonal(h) == 0
    if dead.all():
        h = np.eye(len(h))
    elif dead.any():
        h[dead, dead] = 1.0
        w = np.where(dead, np.float32(0), w)
    steps = None
    if act_order or static or clip:
        groups = grid.grouped(w)
        steps = clipped(grid, groups, diagonal(grid, h)) if clip else fitted(grid, groups)
    order = np.argsort(-np.diagonal(h), kind="stable") if act_order else np.arange(len(h))
    factor = inverse_factor(h[np.ix_(order, order)], damp)
    codes, steps = _Rounding(grid, w, steps, order).run(factor, batch)
    return stored(grid, w.shape, codes, steps)


def gptq_bytes(n: int, k: int) -> int:
    """Estimate of the memory that `gptq` takes at its peak for W [n, k], besides W and G: copies
    and factors of H, and W, codes and errors on their way."""
    return 8 * (7 * k * k + 3 * n * k)


class _Rounding:
    """One matrix on its way: inputs are rows here, [K, N] in float64, in the order of rounding."""

    def __init__(self, grid: Grid, w: F32, steps: Steps | None, order: NDArray[np.intp]) -> None:
        n, k = w.shape
        self.grid, self.order, self.fits = grid, order, steps is None
        self.left = w.T.astype(np.float64)[order]
        blank = grid.fit(np.zeros((n, grid.groups_of(k), grid.group), np.float32))
        steps = steps or Steps(blank.scales.copy(), blank.zeros.copy())
        self.scales, self.zeros = steps.scales, steps.zeros
        codes = np.repeat(self.zeros.T, grid.group, axis=0)  # [KB * group, N], each the zero code
        self.codes = np.ascontiguousarray(codes)
        self._tables()

    def _tables(self) -> None:
        """Scales, their inverses and zero codes as float32 [KB, N], for rows of inputs."""
        self.wide = np.ascontiguousarray(self.scales.T.astype(np.float32))
        self.inverse = np.ascontiguousarray(Steps(self.scales, self.zeros).inverse.T)
        self.zero = np.ascontiguousarray(self.zeros.T.astype(np.float32))

    def run(self, factor: F64, batch: int) -> tuple[NDArray[np.uint8], Steps]:
        """Codes [N, KB, group] and their steps."""
        if batch % self.grid.group and self.fits:
            raise ValueError(f"batch {batch}, expected a multiple of {self.grid.group}")
        for start in range(0, len(factor), batch):
            stop = min(start + batch, len(factor))
            errors = self._batch(start, stop, factor)
            self.left[stop:] -= factor[start:stop, stop:].T @ errors
        n = self.codes.shape[1]
        codes = np.ascontiguousarray(self.codes.T).reshape(n, -1, self.grid.group)
        return codes, Steps(self.scales, self.zeros)

    def _batch(self, start: int, stop: int, factor: F64) -> F64:
        """Round the inputs [start, stop); their errors over U[i, i], float64 [stop - start, N]."""
        errors = np.empty((stop - start, self.left.shape[1]))
        for part in range(start, stop, PART):
            end = min(part + PART, stop)
            for i in range(part, end):
                if self.fits and i % self.grid.group == 0:
                    self._fit(i // self.grid.group, self.left[i : i + self.grid.group])
                row = self.left[i]
                error = (row - self._round(i, row.astype(np.float32))) / factor[i, i]
                self.left[i + 1 : end] -= factor[i, i + 1 : end, None] * error
                errors[i - start] = error
            here = slice(part - start, end - start)
            self.left[end:stop] -= factor[part:end, end:stop].T @ errors[here]
        return errors

    def _round(self, i: int, row: F32) -> F32:
        """Store the codes of one input's weights [N]; their values. The arithmetic of Grid."""
        at = self.order[i]
        b = at // self.grid.group
        levels = np.rint(row * self.inverse[b])
        levels += self.zero[b]
        np.clip(levels, *self.grid.codes, out=levels)
        self.codes[at] = levels
        levels -= self.zero[b]
        values: F32 = levels * self.wide[b]
        return values

    def _fit(self, b: int, rows: F64) -> None:
        """Steps of group b, of what its weights [up to group, N] have become."""
        steps = fitted(self.grid, self.grid.grouped(np.ascontiguousarray(rows.T, np.float32)))
        self.scales[:, b], self.zeros[:, b] = steps.scales[:, 0], steps.zeros[:, 0]
        self.codes[b * self.grid.group :][: self.grid.group] = self.zeros[:, b]
        self._tables()


def inverse_factor(h: F64, damp: float) -> F64:
    """U, upper triangular with H^-1 = U^T U, of H with `damp` * mean(diag H) added to its diagonal:
    ten times as much, up to TRIES times, while that is not positive definite."""
    mean = float(np.mean(np.diagonal(h)))
    for attempt in range(TRIES + 1):
        damped = h + damp * 10.0**attempt * mean * np.eye(len(h))
        try:
            lower = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            continue
        # H = R R^T with R upper: the factor of H in reverse order. U is its inverse.
        return _inverse(np.ascontiguousarray(lower[::-1, ::-1]))
    raise ConvertError(
        f"a Gram matrix that is not positive definite with {damp * 10.0**TRIES:g} times its mean "
        "diagonal added, expected X^T X",
        code="gram",
    )


def _inverse(upper: F64) -> F64:
    """The inverse of an upper triangular matrix, by halves."""
    k = len(upper)
    if k <= 64:
        return np.triu(np.linalg.inv(upper))
    at = k // 2
    out = np.zeros_like(upper)
    out[:at, :at], out[at:, at:] = _inverse(upper[:at, :at]), _inverse(upper[at:, at:])
    out[:at, at:] = -out[:at, :at] @ upper[:at, at:] @ out[at:, at:]
    return out
