"""Features of linear attention on the CPU: phi(q) in blocks, and phi(k) v^T added to the state.

Features stand as in `linear_forms.features`: pairs i <= j row by row, then (mode shifted) the
values themselves, then a constant. In modes of first order there are only the values.

All sums are chains in one order: over tokens inside a chunk, over the features of a slab. So a
row's bits depend on its place in the sequence alone.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types

from .. import simd
from ..linear_attention_lower import LINEAR_SUMS
from ..simd import (
    add,
    f32,
    fma,
    lanes,
    ld_f32,
    ld_i32,
    ld_i64,
    load_f32,
    mul,
    splat,
    splat_i32,
    st_f32,
    store_f32,
    sum_f32,
    where_less,
)
from .layout import BLOCK_FEATURES, FOLD_FEATURES
from .scalar_math import softplus64, sqrt
from .tails import added_product, exp1, sum_of_rates
from .tile_product import transpose

SQUARE, SHIFTED = 0, 1  # of `ops_linear.MODES`
SQRT2 = 1.4142135623730951
LEAST_GAMMA = 1e-3


@njit(error_model="numpy")
def shift(ins: int, g: int) -> tuple[float, float]:
    """b and c of a key/value head, in double precision; 0 where the mode has none."""
    if ld_i64(ins + LINEAR_SUMS.mode) != SHIFTED:
        return 0.0, 0.0
    beta = softplus64(types.float64(ld_f32(ld_i64(ins + LINEAR_SUMS.beta) + 4 * g)))
    gamma = softplus64(types.float64(ld_f32(ld_i64(ins + LINEAR_SUMS.gamma) + 4 * g)))
    return beta, gamma + LEAST_GAMMA


@njit(error_model="numpy")
def coefficients(ins: int, g: int) -> tuple[float, float]:
    """What a head's values are multiplied by as features, and the constant feature."""
    beta, gamma = shift(ins, g)
    if ld_i64(ins + LINEAR_SUMS.mode) != SHIFTED:
        return f32(1.0), f32(0.0)
    return sqrt(f32(2.0 * beta)), sqrt(f32(beta * beta + gamma))


@njit(error_model="numpy")
def pair_block(u: int, r: int, first: int, last: int, out: int) -> None:
    """Features of the pairs whose first index is first .. last - 1. u: float32 [r], 16 more may be
    read."""
    for i in range(first, last):
        x = ld_f32(u + 4 * i)
        c = splat(f32(f32(SQRT2) * x))
        for j in range(i, r, 16):
            store_f32(out + 4 * (j - i), mul(c, load_f32(u + 4 * j)))
        st_f32(out, f32(x * x))
        out += 4 * (r - i)


@njit(error_model="numpy")
def value_block(u: int, r: int, factor: float, constant: float, out: int) -> None:
    """The values times a factor, and the constant feature behind them."""
    c = splat(f32(factor))
    for j in range(0, r, 16):
        store_f32(out + 4 * j, mul(c, load_f32(u + 4 * j)))
    st_f32(out + 4 * r, f32(constant))


@njit(error_model="numpy")
def block_end(r: int, first: int, last: int) -> int:
    """The first index behind a block of pairs that begins with `first`."""
    end, width = first, 0
    while end < last and (width == 0 or width + r - end <= BLOCK_FEATURES):
        width += r - end
        end += 1
    return end


@njit(error_model="numpy")
def dot_block(phi: int, z: int, width: int, total: Any) -> Any:
    """total + phi z by lanes."""
    whole = width - width % 16
    for p in range(0, whole, 16):
        total = fma(load_f32(phi + 4 * p), load_f32(z + 4 * p), total)
    if whole < width:
        rest, zero = splat_i32(simd.i32(width - whole)), splat(f32(0.0))
        x = where_less(lanes(), rest, load_f32(phi + 4 * whole), zero)
        y = where_less(lanes(), rest, load_f32(z + 4 * whole), zero)
        total = fma(x, y, total)
    return total


@njit(error_model="numpy")
def _columns(rows: int, apart: int, count: int, r: int, wide: int, out: int) -> None:
    """`count` rows [r] as [r][wide], zeros behind the last one."""
    zero = splat(f32(0.0))
    for t0 in range(0, wide, 16):
        n = min(16, count - t0)
        whole = r - r % 16 if n == 16 else 0
        for i in range(0, whole, 16):
            block = out + 4 * r * wide  # 16 rows behind the last
            transpose(rows + t0 * apart + 4 * i, apart, block)
            for k in range(16):
                store_f32(out + 4 * ((i + k) * wide + t0), load_f32(block + 64 * k))
        for i in range(whole, r):
            at = out + 4 * (i * wide + t0)
            store_f32(at, zero)
            for t in range(n):
                st_f32(at + 4 * t, ld_f32(rows + (t0 + t) * apart + 4 * i))


@njit(error_model="numpy")
def _absorb(
    block: int, count: int, wide: int, tokens: int, v: int, row: int, padded: int, keep: float,
    source: int, target: int, z: int, z_target: int,
) -> None:  # fmt: skip
    """target = keep source + block v for `count` features, and their part of the normaliser.

    block: float32 [count][wide]. source: 0 for zeros. z_target: 0 for none.
    """
    factor, zero = splat(f32(keep)), splat(f32(0.0))
    for p in range(count):
        for d in range(0, padded, 16):
            at = 4 * (p * padded + d)
            old = mul(factor, load_f32(source + at)) if source != 0 else zero
            store_f32(target + at, old)
        if z_target != 0:
            total = zero
            for t in range(0, wide, 16):
                total = add(total, load_f32(block + 4 * (p * wide + t)))
            before = f32(f32(keep) * ld_f32(z + 4 * p)) if source != 0 else f32(0.0)
            st_f32(z_target + 4 * p, f32(before + sum_f32(total)))
    added_product(block, 4 * wide, count, v, row, 64, padded // 16, tokens, target, 4 * padded)


@njit(error_model="numpy")
def fold_slab(
    ins: int, g: int, slab: int, rows: int, row: int, tokens: int, matrices: Any, room: int
) -> None:
    """A part of a head's features takes `tokens` rows of the tail in. rows: the first one's
    address, `row` bytes from one to the next. matrices: addresses of the matrix before (0 for
    none) and behind, of its normaliser before and behind (0 for none), of all heads."""
    source, target, z, z_target = matrices
    r, size = ld_i64(ins + LINEAR_SUMS.features), ld_i64(ins + LINEAR_SUMS.size)
    groups, bounds = ld_i64(ins + LINEAR_SUMS.kv_heads), ld_i64(ins + LINEAR_SUMS.bounds)
    slabs, mode = ld_i64(ins + LINEAR_SUMS.slabs), ld_i64(ins + LINEAR_SUMS.mode)
    padded, wide = (size + 15) // 16 * 16, (tokens + 15) // 16 * 16
    first, p = ld_i32(bounds + 8 * slab), ld_i32(bounds + 8 * slab + 4)
    last, features = ld_i32(bounds + 8 * slab + 8), head_features(r, mode)
    k, v = rows + 4 * g * r, rows + 4 * (groups * r + g * padded)
    rate = rows + 4 * (groups * (r + padded) + g)
    weights = room
    faded = weights + 4 * wide
    block = faded + 4 * r * wide
    plain = block + 4 * FOLD_FEATURES * wide
    total, so_far = sum_of_rates(rate, row, tokens), 0.0
    for t in range(wide):
        so_far += types.float64(ld_f32(rate + t * row)) if t < tokens else 0.0
        st_f32(weights + 4 * t, f32(total - so_far) if t < tokens else f32(-100.0))
    for t in range(0, wide, 16):
        store_f32(weights + 4 * t, simd.exp(load_f32(weights + 4 * t)))
    _columns(k, row, tokens, r, wide, plain)
    for i in range(r):
        for t in range(0, wide, 16):
            at = 4 * (i * wide + t)
            store_f32(faded + at, mul(load_f32(plain + at), load_f32(weights + 4 * t)))
    keep, count = exp1(f32(total)), 0
    at, z_at = 4 * (g * features + p) * padded, 4 * (g * features + p)
    here, z_here = (source + at if source != 0 else 0), z + z_at
    there, z_there = target + at, (z_target + z_at if z_target != 0 else 0)
    for i in range(first, last):
        for j in range(i, r):
            to, b = block + 4 * count * wide, plain + 4 * j * wide
            factor = splat(f32(SQRT2)) if j > i else splat(f32(1.0))
            for t in range(0, wide, 16):
                left = mul(factor, load_f32(faded + 4 * (i * wide + t)))
                store_f32(to + 4 * t, mul(left, load_f32(b + 4 * t)))
            count += 1
            if count == FOLD_FEATURES:
                _absorb(
                    block, count, wide, tokens, v, row, padded, keep, here, there, z_here, z_there
                )
                here += 4 * count * padded if here != 0 else 0
                there, z_here = there + 4 * count * padded, z_here + 4 * count
                z_there += 4 * count if z_there != 0 else 0
                count = 0
    if slab == slabs - 1 and mode != SQUARE:
        factor1, constant = coefficients(ins, g)
        more = int(mode == SHIFTED)
        for i in range(r + more):
            to = block + 4 * count * wide
            c = splat(f32(factor1)) if i < r else splat(f32(constant))
            from_ = faded + 4 * i * wide if i < r else weights
            for t in range(0, wide, 16):
                store_f32(to + 4 * t, mul(c, load_f32(from_ + 4 * t)))
            count += 1
            if count == FOLD_FEATURES:
                _absorb(
                    block, count, wide, tokens, v, row, padded, keep, here, there, z_here, z_there
                )
                here += 4 * count * padded if here != 0 else 0
                there, z_here = there + 4 * count * padded, z_here + 4 * count
                z_there += 4 * count if z_there != 0 else 0
                count = 0
    if count > 0:
        _absorb(block, count, wide, tokens, v, row, padded, keep, here, there, z_here, z_there)


@njit(error_model="numpy")
def head_features(r: int, mode: int) -> int:
    """D, a head's features."""
    if mode == SQUARE:
        return r * (r + 1) // 2
    return (r + 1) * (r + 2) // 2 if mode == SHIFTED else r
