"""COMPOT (arXiv 2602.15200): a weight as an orthogonal dictionary times column-sparse codes.

`W [m, n] ~ A S`, `A = L^-T D`, where D `[m, k]` has orthonormal columns, every column of S `[k, n]`
has s non-zeros, and `||L^T W - D S||` is minimised by turns: with D fixed S keeps the s largest
projections of each column, with S fixed D is an orthogonal Procrustes problem. Both are exact, so
the error never grows; the whole problem is not convex. Codes are held transposed, `[n, k]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...errors import ConvertError
from . import checks
from .checks import F64
from .coders import Coder, Mask, TopS
from .dictionary import polar, polar_svd, signs, start
from .result import Factors, from_whitened
from .whiten import Whitening

INITS = ("svd", "random", "permuted")
POLARS = ("fast", "svd")
_TALL = 1.2  # rows for each column, from which on a QR of the weight pays


@dataclass(frozen=True)
class Options:
    """Settings; the defaults are the published ones.

    iterations: T, 0 leaves the first code. tol: stop once the squared error falls by less than
    this share in an iteration; 0 never. init: "svd", "random" or "permuted". refit: least squares
    for A after the last iteration (not published; the same storage, A is orthogonal no more).
    polar: "fast" (eigenvectors of M^T M, with a guard) or "svd". seed: of "random" and "permuted".
    trace: keep the squared error after every half-step.
    """

    iterations: int = 20
    tol: float = 0.0
    init: str = "svd"
    refit: bool = False
    polar: str = "fast"
    seed: int = 42
    trace: bool = False

    def check(self) -> None:
        """Raise ConvertError for the first setting that is out of range."""
        checks.whole(self.iterations, "iterations", 0)
        checks.fraction(self.tol, "tol", 0, 1)
        checks.one_of(self.init, "init", INITS)
        checks.one_of(self.polar, "polar", POLARS)
        checks.whole(self.seed, "seed", 0)


class HalfStep(NamedTuple):
    """A dictionary `d [m, k]`, a code `[n, k]` with its support, and which of them is new."""

    d: F64
    code: F64
    mask: Mask
    coding: bool


def half_steps(y: F64, k: int, coder: Coder, options: Options) -> Iterator[HalfStep]:
    """The alternation on a whitened weight `y [m, n]`: a coding step, then pairs of dictionary and
    coding steps, `options.iterations` of them or until `options.tol` stops it."""
    solve = polar if options.polar == "fast" else polar_svd
    d = coder.arrange(start(y, k, options.init, options.seed))
    code, mask = _code(y, d, coder)
    yield HalfStep(d, code, mask, True)
    total = float(np.vdot(y, y))
    left = total - float(np.vdot(code, code))
    for _ in range(options.iterations):
        d = solve(y @ code)
        yield HalfStep(d, code, mask, False)
        code, mask = _code(y, d, coder)
        yield HalfStep(d, code, mask, True)
        before, left = left, total - float(np.vdot(code, code))
        if options.tol and before - left < options.tol * max(before, 0.0):
            return


def _code(y: F64, d: F64, coder: Coder) -> tuple[F64, Mask]:
    projections = y.T @ d
    mask = coder.mask(projections)
    return np.where(mask, projections, 0.0), mask


def compot(
    weight: Any,
    whitening: Whitening,
    k: int,
    s: int | Coder,
    options: Options | None = None,
    *,
    name: str = "weight",
) -> Factors:
    """Factor `weight [m, n]` (inputs by outputs, real numbers) with k atoms, s for each output.

    s: a number, or a `Coder` for another rule than the s largest. k: 1 to min(m, n). name: of the
    weight, for messages. Raises ConvertError for weights that are NaN, infinite, too large to
    square or of another size than the whitening, and for k, s or options out of range.
    """
    options = options or Options()
    options.check()
    w = checks.matrix(weight, name, rows=whitening.channels)
    k = checks.whole(k, f"{name}: k", 1, min(w.shape))
    coder: Coder = TopS(s) if isinstance(s, int | np.integer) else s
    coder.slots(k)
    y = whitened(w, whitening, name)
    basis, core = _core(y, options.init)
    trace = []
    for step in half_steps(core, k, coder, options):
        if options.trace:
            gap = core - step.d @ step.code.T
            trace.append(float(np.vdot(gap, gap)))
    d = step.d if basis is None else basis @ step.d
    sign = signs(d)
    d, code = d * sign, step.code * sign
    found = from_whitened(y, d, code, step.mask, whitening, trace)
    return _refitted(y, d, code, step.mask, whitening, found) if options.refit else found


def whitened(weight: F64, whitening: Whitening, name: str) -> F64:
    """`L^T W`; ConvertError if its squared norm overflows float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        y = whitening.apply(weight)
        energy = float(np.vdot(y, y))
    if not np.isfinite(energy):
        raise ConvertError(
            f"{name}: its largest value is {np.abs(weight).max():g}; the squared norm on the "
            "calibration inputs overflows float64",
            hint="the checkpoint is damaged or its training diverged: take another one",
        )
    return y


def _core(y: F64, init: str) -> tuple[F64 | None, F64]:
    """A tall `y` as basis times square core, which has the same alternation in fewer rows: atoms
    are combinations of columns of `y`. A random start is not."""
    if init == "random" or len(y) < _TALL * y.shape[1]:
        return None, y
    basis, core = np.linalg.qr(y)
    return basis, core


def _refitted(
    y: F64, d: F64, code: F64, mask: Mask, whitening: Whitening, found: Factors
) -> Factors:
    """With the least-squares dictionary of a frozen code; `found` if rounding made that worse."""
    square = code.T @ code
    ridge = 1e-10 * float(np.trace(square)) / len(square)
    if ridge == 0:
        return found
    system = square + ridge * np.eye(len(square))
    better = np.asarray(np.linalg.solve(system, (y @ code).T).T, np.float64)
    new = from_whitened(y, better, code, mask, whitening, found.trace)
    return new if new.residual.sum() <= found.residual.sum() else found


def compot_shared(
    weights: Sequence[Any],
    whitening: Whitening,
    k: int,
    s: int | Coder,
    options: Options | None = None,
    *,
    name: str = "weights",
) -> list[Factors]:
    """One dictionary for several weights `[m, n_i]` of the same inputs (q, k, v; gate, up).

    Their columns are concatenated, factored and split again: all results hold the same array `a`
    (not published: the paper factors every matrix on its own). Raises as `compot`.
    """
    if not weights:
        raise ConvertError(f"{name}: no weights to share a dictionary, expected at least one")
    parts = [
        checks.matrix(weight, f"{name}[{place}]", rows=whitening.channels)
        for place, weight in enumerate(weights)
    ]
    joint = compot(np.concatenate(parts, axis=1), whitening, k, s, options, name=name)
    return joint.split([part.shape[1] for part in parts])
