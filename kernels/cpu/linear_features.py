"""Features of linear attention on the CPU: phi(q) in blocks, and phi(k) v^T added to the state.

Features stand as in `linear_forms.features`: pairs i <= j row by row, then (mode shifted) the
values themselves, then a constant. In modes of first order there are only the values.

All sums are chains in one order: over tokens inside a chunk, over the features of a slab. So a
row's bits depend on its place in the sequence alone.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types

from .. import simd, simd_math
from ..linear_attention_lower import LINEAR_SUMS
from ..simd import f32, ld_f32, ld_i32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import add, fma, lanes, mul, splat, splat_i32, sum_f32, where_less
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
def coefficients(ins: int, g: int) -> tuple[Any, Any]:
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
    block: int, count: int, wide: int, tokens: int, v: int, row: int, padded: int, keep: Any,
    at: tuple[int, int, int, int],
) -> tuple[int, int, int, int]:  # fmt: skip
    """target = keep source + block v for `count` features, and their part of the normaliser.

    block: float32 [count][wide]. at: addresses of source (0 for zeros), target, and of their
    normalisers (0 for none); returns those of the next features.
    """
    source, target, z, z_target = at
    factor, zero = splat(f32(keep)), splat(f32(0.0))
    for p in range(count):
        for d in range(0, padded, 16):
            here = 4 * (p * padded + d)
            old = mul(factor, load_f32(source + here)) if source != 0 else zero
            store_f32(target + here, old)
        if z_target != 0:
            total = zero
            for t in range(0, wide, 16):
                total = add(total, load_f32(block + 4 * (p * wide + t)))
            before = f32(f32(keep) * ld_f32(z + 4 * p)) if source != 0 else f32(0.0)
            st_f32(z_target + 4 * p, f32(before + sum_f32(total)))
    added_product(block, 4 * wide, count, v, row, 64, padded // 16, tokens, target, 4 * padded)
    far = 4 * count * padded
    return (
        source + far if source != 0 else 0, target + far, z + 4 * count,
        z_target + 4 * count if z_target != 0 else 0,
    )  # fmt: skip


@njit(error_model="numpy")
def _fade(rate: int, row: int, tokens: int, wide: int, weights: int) -> float:
    """What is left of each token at the end of its chunk, [wide], 0 behind the last one; returns
    the logarithm of what is left of what came before."""
    total, so_far = sum_of_rates(rate, row, tokens), 0.0
    for t in range(wide):
        so_far += types.float64(ld_f32(rate + t * row)) if t < tokens else 0.0
        st_f32(weights + 4 * t, f32(total - so_far) if t < tokens else f32(-100.0))
    for t in range(0, wide, 16):
        store_f32(weights + 4 * t, simd_math.exp(load_f32(weights + 4 * t)))
    return total


@njit(error_model="numpy")
def _times(x: int, y: int, factor: Any, wide: int, out: int) -> None:
    """factor x y for `wide` tokens; y: 0 for ones."""
    c = splat(f32(factor))
    for t in range(0, wide, 16):
        v = mul(c, load_f32(x + 4 * t))
        store_f32(out + 4 * t, mul(v, load_f32(y + 4 * t)) if y != 0 else v)


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
    mode, padded, wide = ld_i64(ins + LINEAR_SUMS.mode), (size + 15) // 16 * 16, tokens + 15
    wide -= wide % 16
    v = rows + 4 * (groups * r + g * padded)
    weights = room
    faded = weights + 4 * wide
    block = faded + 4 * r * wide
    plain = block + 4 * FOLD_FEATURES * wide
    keep: Any = exp1(f32(_fade(rows + 4 * (groups * (r + padded) + g), row, tokens, wide, weights)))
    _columns(rows + 4 * g * r, row, tokens, r, wide, plain)
    for i in range(r):
        _times(plain + 4 * i * wide, weights, f32(1.0), wide, faded + 4 * i * wide)
    first = g * head_features(r, mode) + ld_i32(bounds + 8 * slab + 4)
    far, z_far, count = 4 * first * padded, 4 * first, 0
    at = (
        source + far if source != 0 else 0, target + far, z + z_far,
        z_target + z_far if z_target != 0 else 0,
    )  # fmt: skip
    for i in range(ld_i32(bounds + 8 * slab), ld_i32(bounds + 8 * slab + 8)):
        for j in range(i, r):
            times: Any = f32(SQRT2) if j > i else f32(1.0)
            x, y = faded + 4 * i * wide, plain + 4 * j * wide
            _times(x, y, times, wide, block + 4 * count * wide)
            count += 1
            if count == FOLD_FEATURES:
                at = _absorb(block, count, wide, tokens, v, row, padded, keep, at)
                count = 0
    if slab == ld_i64(ins + LINEAR_SUMS.slabs) - 1 and mode != SQUARE:
        factor, constant = coefficients(ins, g)
        for i in range(r + int(mode == SHIFTED)):
            x, c = (faded + 4 * i * wide, factor) if i < r else (weights, constant)
            _times(x, 0, c, wide, block + 4 * count * wide)
            count += 1
            if count == FOLD_FEATURES:
                at = _absorb(block, count, wide, tokens, v, row, padded, keep, at)
                count = 0
    _absorb(block, count, wide, tokens, v, row, padded, keep, at)


@njit(error_model="numpy")
def head_features(r: int, mode: int) -> int:
    """D, a head's features."""
    if mode == SQUARE:
        return r * (r + 1) // 2
    return (r + 1) * (r + 2) // 2 if mode == SHIFTED else r
