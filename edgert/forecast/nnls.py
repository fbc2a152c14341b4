"""Least squares with coefficients that are not negative."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def nnls(a: F64, b: F64, *, rounds: int = 0) -> F64:
    """x >= 0 that makes |a x - b| least; a float64 [m, n], b [m] -> x [n].

    The active set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23):
    the coefficient whose gradient promises most joins, those that would turn negative leave.
    """
    n = a.shape[1]
    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1
    a = a / scale
    x, free = np.zeros(n), np.zeros(n, bool)
    for _ in range(rounds or 10 * n):
        gradient = a.T @ (b - a @ x)
        gradient[free] = -np.inf
        index = int(np.argmax(gradient))
        if gradient[index] <= 1e-10 * max(1.0, float(np.abs(a.T @ b).max())):
            break
        free[index] = True
        x = _feasible(a, b, x, free)
    found: F64 = x / scale
    return found


def _feasible(a: F64, b: F64, x: F64, free: NDArray[np.bool_]) -> F64:
    """The least squares over the free coefficients; those that turn negative on the way from `x`
    are bound again (`free` is changed)."""
    while free.any():
        wanted = np.zeros_like(x)
        wanted[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
        if (wanted[free] > 0).all():
            return wanted
        falling = free & (wanted <= 0)
        steps = x[falling] / np.maximum(x[falling] - wanted[falling], 1e-300)
        x = x + float(steps.min(initial=1.0)) * (wanted - x)
        free &= x > 1e-14
        x = np.where(free, x, 0.0)
    return x
