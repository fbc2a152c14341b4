"""Functions of 16 lanes that more than one kernel needs, besides those of `simd_math.py`."""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd_math
from ..simd import f32
from ..simd_math import (
    add,
    div,
    fma,
    mul,
    power_of_two,
    rint,
    splat,
    sub,
    to_i32,
    vabs,
    vmax,
    where_below,
)
from .scalar_math import ERFC, ERFC_FROM, ERFC_LAST

_SCALE = 4.0 / (1.0 - ERFC_FROM)  # from 1 / (1 + x / 2) to the variable of the polynomial
_SHIFT = (3.0 + ERFC_FROM) / (1.0 - ERFC_FROM)
_HIGHEST, *_REST = ERFC
_COEFFICIENTS = tuple(_REST)


@njit(error_model="numpy")
def _power(r: Any, n: Any) -> Any:
    """2 ** (r + n) for |r| <= 0.5 and a whole n from -126 to 127."""
    p = splat(f32(0.00015461444724808513))
    p = fma(p, r, splat(f32(0.0013400428177711937)))
    p = fma(p, r, splat(f32(0.00961805667843204)))
    p = fma(p, r, splat(f32(0.05550327226669895)))
    p = fma(p, r, splat(f32(0.24022650922289554)))
    p = fma(p, r, splat(f32(0.6931472067028329)))
    p = fma(p, r, splat(f32(1.0)))
    return mul(p, power_of_two(to_i32(n)))


@njit(error_model="numpy")
def exp2(x: Any) -> Any:
    """2 ** x by lane for x <= 0, relative error below 2e-7; exactly 1 at 0, exactly 0 below -126,
    and NaN for NaN."""
    low = splat(f32(-126.0))
    n = rint(vmax(x, low))
    return where_below(x, low, splat(f32(0.0)), _power(sub(x, n), n))


@njit(error_model="numpy")
def gated(x: Any, u: Any) -> Any:
    """x / (1 + 2 ** u) by lane, relative error below 3e-7; 0 where u is above 126 and x finite."""
    high = splat(f32(126.0))
    u = vmax(where_below(u, high, u, high), splat(f32(-126.0)))
    n = rint(u)
    return div(x, add(_power(sub(u, n), n), splat(f32(1.0))))


@njit(error_model="numpy")
def gelu(x: Any) -> Any:
    """x (1 + erf(x / sqrt(2))) / 2 by lane, error below 2e-7 of the larger of 1 and |x|: the
    polynomial of `scalar_math.erfc64` in float32."""
    zero, half, one = splat(f32(0.0)), splat(f32(0.5)), splat(f32(1.0))
    a = mul(vabs(x), splat(f32(0.7071067811865476)))
    t = div(one, fma(half, a, one))
    v = sub(mul(t, splat(f32(_SCALE))), splat(f32(_SHIFT)))
    p = splat(f32(_HIGHEST))
    for c in _COEFFICIENTS:
        p = fma(p, v, splat(f32(c)))
    tail = mul(mul(half, t), simd_math.exp(sub(p, mul(a, a))))  # of the smaller side
    tail = where_below(splat(f32(ERFC_LAST)), a, zero, tail)
    return mul(x, where_below(x, zero, tail, sub(one, tail)))
