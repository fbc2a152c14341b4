"""Gram matrices of a layer's inputs, and the whitening that they define.

COMPOT (arXiv 2602.15200), SVD-LLM (arXiv 2403.07378) and CoSpaDi (arXiv 2509.22075) all minimise
`||X (W - W')||_F`, the error of a layer's outputs on calibration inputs `X [N, m]`. With
`G = X^T X = L L^T` (L lower triangular) that is `||L^T (W - W')||_F`: the inputs are needed only
through `G [m, m]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from . import checks
from .checks import F64

RIDGE, RIDGE_FEW_ROWS = 1e-3, 1e-1  # times the mean of G's diagonal
ENOUGH = 10  # rows for each channel, from which on the smaller ridge is taken
FIRST_RIDGE = 1e-12  # where retries start if no ridge was asked for
RETRIES = 6
_ROWS = 4096  # of one float32 product; sums of products are float64


@dataclass(frozen=True)
class Gram:
    """`matrix [m, m]` float64, the sum of x x^T over `rows` inputs; `dropped` batches left out."""

    matrix: F64
    rows: int
    dropped: int = 0


class Inputs(NamedTuple):
    """What a product reads. gram: over the sequences to fit to. held: over those kept for a check,
    None where there are too few."""

    gram: Gram
    held: Gram | None = None


class GramAccumulator:
    """Collects the Gram matrix of one layer input, batch by batch.

    channels: m. name: of the layer, for messages. nonfinite: what a batch with NaN or infinity
    gets: "drop" leaves it out and counts it, "refuse" raises ConvertError. Memory: m * m * 12
    bytes and 4096 rows, or a batch.
    """

    def __init__(self, channels: int, *, name: str = "layer", nonfinite: str = "drop") -> None:
        self.channels = checks.whole(channels, "channels", 1)
        self.name = name
        self.nonfinite = checks.one_of(nonfinite, "nonfinite", ("drop", "refuse"))
        self.rows = self.dropped = 0
        self._sum = np.zeros((channels, channels))
        self._waiting: list[NDArray[Any]] = []  # rows of a product to come

    def add(self, x: Any, mask: Any = None) -> bool:
        """Add a batch `x [..., m]` of real numbers; False if it was dropped.

        mask `[...]`, bool: which positions are tokens; padded ones (False) do not count, whatever
        they hold. Products are float32, sums float64; a product that overflows float32 is float64.
        Raises ConvertError for other shapes, and for NaN or infinity under "refuse".
        """
        rows = self._rows(np.asarray(x), mask)
        bad = np.count_nonzero(~np.isfinite(rows))
        if bad:
            if self.nonfinite == "refuse":
                raise ConvertError(
                    f"{self.name}: {bad} of {rows.size} calibration inputs are NaN or infinite",
                    hint="the model overflows on this text: calibrate in float32 or bfloat16",
                )
            self.dropped += 1
            return False
        self._waiting.append(np.array(rows))
        self.rows += len(rows)
        if sum(map(len, self._waiting)) >= _ROWS:
            self._add_waiting()
        return True

    def _add_waiting(self) -> None:
        rows = np.concatenate(self._waiting) if self._waiting else np.empty((0, self.channels))
        for start in range(0, len(rows), _ROWS):
            self._sum += _product(rows[start : start + _ROWS])
        self._waiting.clear()

    def _rows(self, x: NDArray[Any], mask: Any) -> NDArray[Any]:
        if x.dtype.kind not in "fiu" or not x.ndim or x.shape[-1] != self.channels:
            raise ConvertError(
                f"{self.name}: inputs are {x.dtype} {x.shape}, expected real numbers of shape "
                f"[..., {self.channels}]"
            )
        if mask is None:
            return x.reshape(-1, self.channels)
        kept = np.asarray(mask)
        if kept.dtype != np.bool_ or kept.shape != x.shape[:-1]:
            raise ConvertError(
                f"{self.name}: the mask is {kept.dtype} {kept.shape}, expected bool {x.shape[:-1]}"
            )
        chosen: NDArray[Any] = x[kept]
        return chosen

    def finish(self) -> Gram:
        """The Gram matrix; zero if the layer never saw an input (an expert without tokens).

        Raises ConvertError if there were batches and all of them were dropped.
        """
        if self.dropped and not self.rows:
            raise ConvertError(
                f"{self.name}: all {self.dropped} calibration batches hold NaN or infinity, "
                "expected at least one finite batch",
                hint="the model overflows on this text: calibrate in float32 or bfloat16",
            )
        self._add_waiting()
        return Gram((self._sum + self._sum.T) / 2, self.rows, self.dropped)


def _product(rows: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        small = rows.astype(np.float32, copy=False)
        product = small.T @ small
    if np.isfinite(product).all():
        return product
    wide = rows.astype(np.float64)
    return wide.T @ wide


@dataclass(frozen=True)
class Whitening:
    """`lower [m, m]` with `lower @ lower.T = G + ridge I`; `ridge` is absolute, 0 for `G = 0`."""

    lower: F64
    ridge: float
    retries: int = 0

    @property
    def channels(self) -> int:
        return len(self.lower)

    def apply(self, weight: F64) -> F64:
        """`L^T W`, `[m, n] -> [m, n]`."""
        return self.lower.T @ weight

    def undo(self, whitened: F64) -> F64:
        """`A` with `L^T A = D`, `[m, k] -> [m, k]`, by a solve; no inverse is formed.

        LU of an upper triangular matrix is that matrix, so this is back substitution.
        """
        return np.asarray(np.linalg.solve(self.lower.T, whitened), np.float64)


def whiten(gram: Gram, ridge: float | None = None, *, name: str = "layer") -> Whitening:
    """The lower Cholesky factor of `G + lam I`, `lam = ridge * trace(G) / m`.

    ridge: relative; None means 1e-3 from ten rows for each channel on, else 1e-1. If the factor
    does not exist the ridge grows tenfold, at most six times (SVD-LLM shifts by the smallest
    eigenvalue instead). `G = 0` gives the identity. Raises ConvertError for a matrix that is not
    square, not finite or not a Gram matrix, and if no ridge was large enough.
    """
    g = checks.matrix(gram.matrix, f"{name}: the Gram matrix", rows=len(gram.matrix))
    checks.matrix(g, f"{name}: the Gram matrix", columns=len(g))
    g = (g + g.T) / 2
    side, mean = len(g), float(np.trace(g)) / len(g)
    if ridge is None:
        ridge = RIDGE if gram.rows >= ENOUGH * side else RIDGE_FEW_ROWS
    checks.fraction(ridge, "ridge", 0, float("inf"))
    if not g.any():
        return Whitening(np.eye(side), 0.0)
    if g.diagonal().min() < 0:
        raise ConvertError(
            f"{name}: the Gram matrix has {g.diagonal().min():g} on its diagonal, expected "
            "sums of squares"
        )
    for retry in range(RETRIES + 1):
        try:
            lower: F64 = np.asarray(np.linalg.cholesky(g + ridge * mean * np.eye(side)), np.float64)
            if np.isfinite(lower).all() and lower.diagonal().min() > 0:
                return Whitening(lower, ridge * mean, retry)
        except np.linalg.LinAlgError:
            pass
        ridge = max(ridge * 10, FIRST_RIDGE)
    raise ConvertError(
        f"{name}: the Gram matrix of {gram.rows} inputs is not positive definite, even with a "
        f"ridge of {ridge / 10:g} times its mean diagonal",
        hint="calibrate on more text, or give a larger ridge",
    )
