"""Orthogonal matching pursuit of CoSpaDi compiled by Numba, for `benchmarks.compression`.

The arithmetic of `converters/compress/baselines.py`, a column at a time: what a column needs stays
in a core's own cache, so that processes do not wait for each other's memory.
"""

from __future__ import annotations

import numba
import numpy as np
from edgert.converters.compress.baselines import DEPENDENT, F64, Mask

_FOUR = 4  # directions that are taken off a row of products at a time


def pursuit(d: F64, y: F64, s: int) -> tuple[F64, Mask]:
    """As `baselines.pursuit`."""
    n, k = y.shape[1], d.shape[1]
    code, mask = np.zeros((n, k)), np.zeros((n, k), np.bool_)
    _pursue(d.T @ d, np.ascontiguousarray(y.T @ d), s, code, mask)
    return code, mask


@numba.njit(fastmath={"reassoc", "contract", "nsz"}, cache=True)  # type: ignore[untyped-decorator]
def _pursue(square: F64, correlations: F64, s: int, code: F64, mask: Mask) -> None:
    n, k = correlations.shape
    basis, along, chosen = np.zeros((s, k)), np.zeros(s), np.zeros(s, np.int64)
    row, scales = np.zeros(k), np.zeros(s)
    for column in range(n):
        alpha = correlations[column].copy()
        for t in range(s):
            pick, best = -1, -1.0
            for j in range(k):
                if not mask[column, j] and abs(alpha[j]) > best:
                    pick, best = j, abs(alpha[j])
            chosen[t], mask[column, pick] = pick, True
            height = 1.0
            for i in range(t):
                height -= basis[i, pick] * basis[i, pick]
            usable = height > DEPENDENT
            scale = 1 / np.sqrt(height) if usable else 0.0
            row[:] = square[pick]
            whole = t - t % _FOUR
            for i in range(0, whole, _FOUR):
                a, b, c, e = basis[i], basis[i + 1], basis[i + 2], basis[i + 3]
                pa, pb, pc, pe = a[pick], b[pick], c[pick], e[pick]
                for j in range(k):
                    row[j] -= pa * a[j] + pb * b[j] + pc * c[j] + pe * e[j]
            for i in range(whole, t):
                p = basis[i, pick]
                for j in range(k):
                    row[j] -= p * basis[i, j]
            step = alpha[pick] * scale
            along[t], scales[t] = step, scale
            for j in range(k):
                basis[t, j] = row[j] * scale
                alpha[j] -= step * basis[t, j]
        for t in range(s - 1, -1, -1):  # the triangle of the chosen atoms, from its last row
            value = along[t]
            for i in range(t + 1, s):
                value -= basis[t, chosen[i]] * code[column, chosen[i]]
            # a copy of chosen atoms keeps an explicit zero
            corner = basis[t, chosen[t]]
            code[column, chosen[t]] = value / corner if corner != 0 else value
