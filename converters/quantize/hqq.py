"""HQQ (Badri and Shaji 2023, half-quadratic quantization): steps without any data.

    min over z, s and e of  |e|_p^p + beta / 2 |W - Q^-1(W) - e|^2,   p = 0.7

e takes what is far off (a few large errors count less than many small ones), z and s are then those
of least squares for what is left, in turns:

    q = clip(round(w / s + z));  d = w - (q - z) s
    e = sign(d) * max(|d| - |d|^(p-1) / beta, 0)
    z = round(mean over the group of q - (w - e) / s)              asymmetric only
    s = <q - z, w - e> / <q - z, q - z>;  beta *= 1.01

A group stops when its mean |d| no longer falls and keeps the best steps it had, or the plain ones
where these are better after rounding to float16.

The published code moves z alone, as a float. Here z is stored as a code, and moving it by less than
one changes nothing: so s moves, too. Also, groups stop one by one, not all together, and d is in
plain steps, so that one beta fits weights of any size.
"""

from __future__ import annotations

import numpy as np

from ...kernels.grid import F16, U8, Grid, Steps
from ...kernels.quant import F32, HALF_MAX, Quantized
from .base import checked_weight, fitted, grid_of, stored

TURNS = 20
BETA, GROWTH = 10.0, 1.01
NORM = 0.7  # p
ROWS = 512  # output rows in memory together


def hqq(w: F32, *, bits: int, group: int, symmetric: bool = False) -> Quantized:
    """A stored matrix of W [N, K]. Raises ConvertError for weights that are not finite or that the
    encoding cannot hold."""
    grid, w = grid_of(bits, group, symmetric), checked_weight(w)
    groups = grid.grouped(w)
    steps = fitted(grid, groups)
    for start in range(0, len(groups), ROWS):
        here = slice(start, start + ROWS)
        _improve(grid, groups[here], steps.scales[here], steps.zeros[here])
    return stored(grid, w.shape, grid.encode(groups, steps), steps)


def _improve(grid: Grid, groups: F32, scales: F16, zeros: U8) -> None:
    """Better steps of groups [N, KB, group], in place."""
    plain = Steps(scales.copy(), zeros.copy())
    found = _turns(grid, groups, plain)
    better = _mean(grid, groups, found) < _mean(grid, groups, plain)
    scales[better], zeros[better] = found.scales[better], found.zeros[better]


def _mean(grid: Grid, groups: F32, steps: Steps) -> F32:
    """Mean |d| of each group, [N, KB]."""
    values = grid.decode(grid.encode(groups, steps), steps)
    mean: F32 = np.abs(values - groups).mean(-1, dtype=np.float32)
    return mean


def _turns(grid: Grid, groups: F32, plain: Steps) -> Steps:
    """Half-quadratic turns in float32, weights in plain steps, then steps as they are stored."""
    shape, first = plain.scales.shape, plain.scales.astype(np.float32).reshape(-1)
    best_scale = (first != 0).astype(np.float32)
    best_zero = plain.zeros.astype(np.float32).reshape(-1)
    going = np.flatnonzero(first)  # groups that still get better
    unit = (groups * plain.inverse[..., None]).reshape(-1, grid.group)[going]
    scale, zero = best_scale[going], best_zero[going]
    least, beta = np.full(len(going), np.inf, np.float32), BETA
    for _ in range(TURNS):
        signed = np.rint(unit / scale[:, None] + zero[:, None])
        signed = np.clip(signed, *grid.codes, out=signed) - zero[:, None]
        d = unit - signed * scale[:, None]
        error = np.abs(d).mean(-1)
        better = error < least
        going, unit, signed, d = going[better], unit[better], signed[better], d[better]
        scale, zero, least = scale[better], zero[better], error[better]
        if not len(going):
            break
        best_scale[going], best_zero[going] = scale, zero
        aim = unit - _shrunk(d, beta)
        if not grid.symmetric:
            moved = np.rint(zero + (signed - aim / scale[:, None]).mean(-1))
            moved = np.clip(moved, *grid.codes)
            signed += (zero - moved)[:, None]
            zero = moved
        power = np.einsum("gi,gi->g", signed, signed)
        fitted = np.einsum("gi,gi->g", signed, aim) / np.maximum(power, 1)
        scale = np.where(fitted != 0, fitted, scale)
        beta *= GROWTH
    half = np.clip(best_scale * first, -HALF_MAX, HALF_MAX).astype(np.float16)
    return Steps(half.reshape(shape), best_zero.astype(np.uint8).reshape(shape))


def _shrunk(d: F32, beta: float) -> F32:
    """sign(d) * max(|d| - |d|^(p-1) / beta, 0), which is 0 at 0."""
    size = np.maximum(np.abs(d), np.float32(1e-30))
    root = np.exp(np.log(size) * np.float32(NORM - 1))
    out: F32 = np.copysign(np.maximum(size - root / np.float32(beta), 0), d)
    return out
