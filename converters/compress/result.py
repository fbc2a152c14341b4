"""What every factorisation of this room returns: `W ~ A S` with S sparse by columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from .checks import F64
from .coders import Mask
from .whiten import Whitening


@dataclass(frozen=True)
class Factors:
    """`a [m, k]` float64; of output column j the atoms `idx[j]` (int32 `[n, s]`, ascending) with
    `values[j]` (float64 `[n, s]`, explicit zeros where fewer are needed).

    residual, energy: `[n]`, squared norms of the whitened error and of the whitened weight, by
    output. trace: the squared error after every half-step, if it was asked for.
    """

    a: F64
    idx: NDArray[np.int32]
    values: F64
    residual: F64
    energy: F64
    trace: tuple[float, ...] = ()

    @property
    def m(self) -> int:
        return len(self.a)

    @property
    def k(self) -> int:
        return int(self.a.shape[1])

    @property
    def n(self) -> int:
        return len(self.idx)

    @property
    def s(self) -> int:
        return int(self.idx.shape[1])

    @property
    def error(self) -> float:
        """`||L^T (W - A S)|| / ||L^T W||`; 0 for a zero weight."""
        total = float(self.energy.sum())
        return float(np.sqrt(self.residual.sum() / total)) if total > 0 else 0.0

    def code(self) -> F64:
        """S as a dense matrix `[k, n]`."""
        dense = np.zeros((self.n, self.k))
        np.put_along_axis(dense, self.idx.astype(np.int64), self.values, axis=1)
        return dense.T

    def product(self) -> F64:
        """`A S`, `[m, n]`."""
        return self.a @ self.code()

    def split(self, outputs: Sequence[int]) -> list[Factors]:
        """One `Factors` for each group of adjacent outputs, all with the same `a` (the same array).

        outputs: sizes of the groups, which add up to n; ConvertError otherwise.
        """
        if any(size < 1 for size in outputs) or sum(outputs) != self.n:
            raise ConvertError(f"parts have {list(outputs)} outputs, expected a sum of {self.n}")
        parts, end = [], 0
        for size in outputs:
            rows = slice(end, end := end + size)
            changes: dict[str, Any] = {
                name: getattr(self, name)[rows] for name in ("idx", "values", "residual", "energy")
            }
            parts.append(replace(self, **changes, trace=()))
        return parts

    def measured(self, y: F64, whitening: Whitening) -> Factors:
        """With `residual` and `energy` computed anew against the whitened weight `y [m, n]`."""
        return replace(self, **_measures(y, whitening.apply(self.a), self.code()))


def _measures(y: F64, d: F64, code: F64) -> dict[str, Any]:
    gap = y - d @ code
    return {
        "residual": np.einsum("ij,ij->j", gap, gap),
        "energy": np.einsum("ij,ij->j", y, y),
    }


def from_whitened(
    y: F64, d: F64, code: F64, mask: Mask, whitening: Whitening, trace: Sequence[float] = ()
) -> Factors:
    """Factors of the whitened weight `y [m, n] ~ d [m, k] @ code.T`, `code [n, k]` kept where
    `mask [n, k]` (the same number in each row) says."""
    idx = np.nonzero(mask)[1].reshape(len(mask), -1).astype(np.int32)
    values = np.take_along_axis(code, idx.astype(np.int64), axis=1)
    kept = np.where(mask, code, 0.0)
    return Factors(whitening.undo(d), idx, values, **_measures(y, d, kept.T), trace=tuple(trace))
