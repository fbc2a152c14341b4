"""Online softmax over pages of 64 keys, and the partial results that segments are merged from.

A partial result of one query row: largest score, sum of weights, 14 unused words, then the weighted
values [DP], all float32. Everything here works on one row at a time, in a fixed order.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd, simd_math
from ..simd import f32, ld_f32, load_f32, st_f32, store_f32
from ..simd_math import (
    add,
    add_i32,
    lanes,
    max_f32,
    mul,
    splat,
    splat_i32,
    sub,
    sum_f32,
    tanh,
    vmax,
    where_less,
)

MASKED = -1.0e30


@njit(error_model="numpy")
def _softmax(scores: int, m: float, first: int, last: int, cap: float) -> tuple[float, float]:
    """Scores of 64 keys to weights in place, keys outside first..last masked.

    m: largest score so far. Returns the new one and the sum of the weights.
    """
    low, high = splat_i32(simd.i32(first - 1)), splat_i32(simd.i32(last + 1))
    masked = splat(f32(MASKED))
    top = masked
    for c in range(4):
        s = load_f32(scores + 64 * c)
        if cap > f32(0.0):
            s = mul(splat(cap), tanh(mul(s, splat(f32(1.0) / cap))))
        index = add_i32(lanes(), splat_i32(simd.i32(16 * c)))
        s = where_less(low, index, where_less(index, high, s, masked), masked)
        store_f32(scores + 64 * c, s)
        top = vmax(s, top)
    m = max(f32(m), max_f32(top))
    shift, total = splat(f32(m)), splat(f32(0.0))
    for c in range(4):
        w = simd_math.exp(sub(load_f32(scores + 64 * c), shift))
        store_f32(scores + 64 * c, w)
        total = add(total, w)
    return m, sum_f32(total)


@njit(error_model="numpy")
def _scale(out: int, padded: int, factor: float) -> None:
    factor = splat(f32(factor))
    for d in range(0, padded, 16):
        store_f32(out + 4 * d, mul(load_f32(out + 4 * d), factor))


@njit(error_model="numpy")
def _exp1(x: float) -> float:
    """The same exponential as the vectors use, for one value."""
    return max_f32(simd_math.exp(splat(f32(x))))


@njit(error_model="numpy")
def clear(row: int, padded: int) -> None:
    """The partial result of no keys."""
    st_f32(row, f32(MASKED))
    st_f32(row + 4, f32(0.0))
    for d in range(0, padded, 16):
        store_f32(row + 64 + 4 * d, splat(f32(0.0)))


@njit(error_model="numpy")
def update(scores: int, row: int, padded: int, first: int, last: int, cap: float) -> None:
    """Online softmax of one row's scores: weights in place, its partial result rescaled."""
    before = ld_f32(row)
    m, total = _softmax(scores, before, first, last, cap)
    keep: Any = f32(1.0)
    if before != m:
        keep = _exp1(f32(before - f32(m)))
    st_f32(row, f32(m))
    st_f32(row + 4, f32(f32(ld_f32(row + 4) * keep) + total))
    if keep != f32(1.0):
        _scale(row + 64, padded, keep)


@njit(error_model="numpy")
def zero_scores(scores: int) -> None:
    for c in range(4):
        store_f32(scores + 64 * c, splat(f32(0.0)))


@njit(error_model="numpy")
def merge(total: int, part: int, padded: int) -> None:
    """Add a later segment's partial result to an earlier one's."""
    a, b = ld_f32(total), ld_f32(part)
    m = max(a, b)
    x, y = _exp1(f32(a - m)), _exp1(f32(b - m))
    st_f32(total, m)
    st_f32(total + 4, f32(f32(ld_f32(total + 4) * x) + f32(ld_f32(part + 4) * y)))
    left, right = splat(f32(x)), splat(f32(y))
    for d in range(0, padded, 16):
        at = 64 + 4 * d
        mine = mul(load_f32(total + at), left)
        store_f32(total + at, add(mine, mul(load_f32(part + at), right)))


@njit(error_model="numpy")
def add_sink(total: int, padded: int, sink: float) -> None:
    """A term e ** sink of the whole result's softmax that no value belongs to."""
    a = ld_f32(total)
    m = max(a, sink)
    keep = _exp1(f32(a - m))
    st_f32(total, m)
    st_f32(total + 4, f32(f32(ld_f32(total + 4) * keep) + _exp1(f32(sink - m))))
    if keep != f32(1.0):
        _scale(total + 64, padded, keep)


@njit(error_model="numpy")
def finish(total: int, out: int, size: int, skip: int) -> None:
    """A result's channels from `skip` on."""
    inverse = f32(f32(1.0) / ld_f32(total + 4))
    for d in range(skip, size):
        st_f32(out + 4 * (d - skip), f32(ld_f32(total + 64 + 4 * d) * inverse))
