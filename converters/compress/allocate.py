"""One-shot allocation: how much of each matrix is removed (COMPOT, arXiv 2602.15200).

The singular values of all original (not whitened) matrices, each divided by its Frobenius norm,
stand in one pool, and the smallest are cut until the model is small enough, within limits for each
matrix. The limits, and what a kept value costs, are not published: here a kept value costs
(m + n) of the m n numbers of its matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ConvertError
from . import checks
from .budget import SMALLEST, Dims, check_total, choose
from .checks import F64

SPREAD, MOST = 0.2, 0.9  # a matrix's ratio is this near to the model's, and no larger
KEEP_DENSE = 0.001  # a ratio up to this leaves the matrix dense
_BISECTIONS = 60
_STEP = 0.001  # of the budget, by which the aim is lowered until integers fit


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a weight `[m, n]` over its Frobenius norm, ascending, float64."""

    m: int
    n: int
    values: F64


@dataclass(frozen=True)
class Allocation:
    """ratios: aimed at, one for each matrix, 0 where it stays dense. dims: what follows."""

    ratios: tuple[float, ...]
    dims: tuple[Dims, ...]

    @property
    def bits(self) -> int:
        return sum(part.bits for part in self.dims)


def spectrum(weight: Any, *, name: str = "weight") -> Spectrum:
    """The spectrum of `weight [m, n]`; all zeros for a zero weight.

    Raises ConvertError for a weight that is not a finite matrix.
    """
    w = checks.matrix(weight, name)
    peak = float(np.abs(w).max())
    values = np.zeros(min(w.shape))
    if peak > 0:
        values = np.linalg.svd(w / peak, compute_uv=False)[::-1]
        values = values / np.linalg.norm(values)
    return Spectrum(len(w), w.shape[1], values)


def allocate(
    spectra: Sequence[Spectrum],
    ratio: float,
    *,
    rho: float = 2.0,
    spread: float = SPREAD,
    align: bool = True,
    smallest: int = SMALLEST,
) -> Allocation:
    """Ratios and (k, s) of all matrices that together remove `ratio` of their fp16 bits.

    Each ratio is within `spread` of `ratio`, at least 0 and at most 0.9, or 0 (dense). What
    rounding leaves of the budget goes to the matrices that got least of what they were meant to.
    Raises ConvertError for no matrices, arguments out of range and a budget that cannot be met
    (too many matrices are too small to be factored).
    """
    if not spectra:
        raise ConvertError("there are no matrices to compress, expected at least one")
    ratio = checks.fraction(ratio, "ratio", 0, 1)
    spread = checks.fraction(spread, "spread", 0, 1)
    dense = sum(16 * each.m * each.n for each in spectra)
    budget = int((1 - ratio) * dense + 1e-6)
    limits = max(0.0, ratio - spread), max(ratio, min(MOST, ratio + spread))

    def attempt(aim: float) -> Allocation:
        ratios = solve(spectra, aim, limits, smallest)
        sizes = [
            choose(each.m, each.n, part, rho, align=align, smallest=smallest)
            if part > 0
            else Dims(each.m, each.n, "dense")
            for each, part in zip(spectra, ratios, strict=True)
        ]
        return Allocation(tuple(ratios), tuple(sizes))

    found = _largest_that_fits(attempt, ratio, limits[1], budget)
    dims = _spend(list(found.dims), found.ratios, budget)
    check_total(dims, budget)
    return Allocation(found.ratios, tuple(dims))


def solve(
    spectra: Sequence[Spectrum], ratio: float, limits: tuple[float, float], smallest: int
) -> list[float]:
    """Ratios within `limits` whose mean, weighted by size, is `ratio`: the rule itself.

    A threshold on all spectra is found by bisection. It jumps from value to value: the ratios
    between the two sides of the last jump are interpolated, so that the mean is exact, every one
    is within its limits and equal matrices stay equal. Matrices below `smallest` get 0.
    """
    sizes = np.array([each.m * each.n for each in spectra], np.float64)
    costs = np.array([(each.m + each.n) / (each.m * each.n) for each in spectra])
    fixed = np.array([min(each.m, each.n) < smallest for each in spectra])

    def at(threshold: float) -> F64:
        kept = [len(each.values) - np.searchsorted(each.values, threshold) for each in spectra]
        clipped: F64 = np.clip(1 - np.array(kept) * costs, *limits)
        return np.where(fixed, 0.0, clipped)

    low, high = 0.0, 2.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if at(middle) @ sizes <= ratio * sizes.sum():
            low = middle
        else:
            high = middle
    below, above = at(low), at(high)
    gap = float((above - below) @ sizes)
    share = (ratio * sizes.sum() - below @ sizes) / gap if gap > 0 else 0.0
    ratios = below + min(max(share, 0.0), 1.0) * (above - below)
    return [float(part) if part > KEEP_DENSE else 0.0 for part in ratios]


def _largest_that_fits(
    attempt: Callable[[float], Allocation], ratio: float, most: float, budget: int
) -> Allocation:
    """The allocation with the most bits within `budget`, over the ratio that is aimed at."""
    aim, step = ratio, (1 - ratio) * _STEP
    found = attempt(aim)
    while found.bits > budget:
        if aim >= most:
            raise ConvertError(
                f"with each matrix's ratio at most {most:g} the model takes {found.bits} bits, "
                f"expected {budget} for a ratio of {ratio:g}",
                hint="ask for a smaller ratio: too many matrices are too small to be factored",
            )
        aim = min(aim + step, most)
        found = attempt(aim)
    low, high = max(aim - step, 0.0), aim
    for _ in range(16):
        middle = (low + high) / 2
        trial = attempt(middle)
        if trial.bits <= budget:
            high = middle
            found = trial if trial.bits > found.bits else found
        else:
            low = middle
    return found


def _spend(dims: list[Dims], ratios: Sequence[float], budget: int) -> list[Dims]:
    """Spend what is left on longer codes, one step each, largest shortfall first."""
    left = budget - sum(part.bits for part in dims)

    def shortfall(place: int) -> float:
        part = dims[place]
        return (1 - ratios[place]) * 16 * part.m * part.n - part.bits

    grown = True
    while grown:
        grown = False
        for place in sorted(range(len(dims)), key=shortfall, reverse=True):
            longer = dims[place].longer()
            cost = longer.bits - dims[place].bits
            if 0 < cost <= left:
                dims[place], left, grown = longer, left - cost, True
    return dims
