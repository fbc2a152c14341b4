"""Making factors fit for low bits: gauge, quantization by a given quantizer, refit of the codes.

How COMPOT was quantized is not published; the order here is ours: scale the atoms, quantize A with
the inputs' Gram matrix, refit the codes on their supports against the quantized A, quantize them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...errors import ConvertError
from . import checks
from .checks import F64
from .coders import Mask
from .result import Factors
from .whiten import Whitening

EXPONENT = 0.75
_RIDGE = 1e-8  # times the mean diagonal of each column's system
_STEPS, _CLOSE = 60, 1e-11  # of conjugate gradients; relative residual at which they stop

Quantizer = Callable[[F64], F64]  # values as they are after quantization


def gauge(factors: Factors, exponent: float = EXPONENT) -> Factors:
    """Atom i of A times `c_i`, row i of S over `c_i`: the product stays, the columns of A become
    comparable in size, so that a shared scale of a quantization group does not erase some.

    `c_i = rms(non-zeros of row i of S) ** exponent`, 1 for an unused atom. Raises ConvertError
    for an exponent outside [0, 1].
    """
    checks.fraction(exponent, "exponent", 0, 1 + 1e-12)
    used = factors.values != 0
    atoms = factors.idx[used]
    count = np.bincount(atoms, minlength=factors.k)
    energy = np.bincount(atoms, factors.values[used] ** 2, minlength=factors.k)
    size = np.sqrt(energy / np.maximum(count, 1))
    scale = np.where(size > 0, size, 1.0) ** exponent
    return replace(factors, a=factors.a * scale, values=factors.values / scale[factors.idx])


def refit_support(factors: Factors, weight: F64, whitening: Whitening) -> Factors:
    """The best values for `factors.a` as it is (quantized, say), on the supports as they are.

    For column j with support T: `(A^T G A)_TT s = (A^T G w_j)_T`, ridge 1e-8 of the mean diagonal.
    All columns at once by conjugate gradients with the diagonal as preconditioner: A^T G A is
    near a diagonal matrix, so a few products do; what has not converged is solved directly.
    weight `[m, n]`. The result's error is measured, and never above that of `factors` (up to
    rounding). Raises ConvertError for other shapes.
    """
    w = checks.matrix(weight, "weight", rows=factors.m, columns=factors.n)
    y, d = whitening.apply(w), whitening.apply(factors.a)
    square = d.T @ d
    mask = np.zeros((factors.n, factors.k), np.bool_)
    np.put_along_axis(mask, factors.idx.astype(np.int64), True, axis=1)
    diagonal = square.diagonal().copy()
    ridge = _RIDGE * np.where(mask, diagonal, 0.0).sum(axis=1) / factors.s  # [n]
    right = np.where(mask, y.T @ d, 0.0)
    code, left = _conjugate(square, diagonal, ridge, mask, right)
    for j in np.flatnonzero(left):
        support = factors.idx[j]
        system = square[np.ix_(support, support)] + ridge[j] * np.eye(factors.s)
        code[j, support] = np.linalg.lstsq(system, right[j, support], rcond=None)[0]
    values = np.take_along_axis(code, factors.idx.astype(np.int64), axis=1)
    old, new = factors.measured(y, whitening), replace(factors, values=values)
    new = new.measured(y, whitening)
    worse = new.residual > old.residual
    return replace(
        new,
        values=np.where(worse[:, None], old.values, new.values),
        residual=np.where(worse, old.residual, new.residual),
    )


def _conjugate(square: F64, diagonal: F64, ridge: F64, mask: Mask, right: F64) -> tuple[F64, F64]:
    """Solutions `[n, k]` of all masked systems, and which rows are not within `_CLOSE`."""
    inverse = np.where(mask & (diagonal > 0), 1 / np.where(diagonal > 0, diagonal, 1.0), 0.0)
    x, r = np.zeros_like(right), right.copy()
    z = r * inverse
    p = z.copy()
    inner = np.einsum("nk,nk->n", r, z)
    goal = inner * _CLOSE**2
    for _ in range(_STEPS):
        if (inner <= goal).all():
            break
        q = np.where(mask, p @ square, 0.0) + ridge[:, None] * p
        curve = np.einsum("nk,nk->n", p, q)
        step = np.where(curve > 0, inner / np.where(curve > 0, curve, 1.0), 0.0)
        x += step[:, None] * p
        r -= step[:, None] * q
        z = r * inverse
        before, inner = inner, np.einsum("nk,nk->n", r, z)
        p = z + np.where(before > 0, inner / np.where(before > 0, before, 1.0), 0.0)[:, None] * p
    return x, inner > goal


def quantize_factors(
    factors: Factors,
    weight: F64,
    whitening: Whitening,
    quantize_a: Quantizer,
    quantize_values: Quantizer,
    *,
    exponent: float = EXPONENT,
) -> Factors:
    """Gauge, A quantized, codes refitted and quantized; the result holds the rounded values.

    quantize_a: `[m, k] -> [m, k]`, quantize_values: `[n, s] -> [n, s]` (ascending atoms), both
    float64 in and dequantized out. The Hessian for A is the inputs' Gram matrix; that for the codes
    would be the identity, so rounding to nearest is the best there is. Raises ConvertError if a
    quantizer returns another shape or values that are not finite.
    """
    w = checks.matrix(weight, "weight", rows=factors.m, columns=factors.n)
    ready = gauge(factors, exponent)
    a = _same("A", quantize_a(ready.a), ready.a)
    fitted = refit_support(replace(ready, a=a), w, whitening)
    values = _same("codes", quantize_values(fitted.values), fitted.values)
    return replace(fitted, values=values).measured(whitening.apply(w), whitening)


def _same(what: str, got: F64, given: F64) -> F64:
    if np.shape(got) != given.shape or not np.isfinite(got).all():
        raise ConvertError(
            f"the quantizer of {what} returned {np.shape(got)}, expected finite values of shape "
            f"{given.shape}"
        )
    return np.asarray(got, np.float64)
