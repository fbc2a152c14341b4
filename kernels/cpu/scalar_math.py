"""Scalar functions in double precision for results that are rounded to float32.

Kernels call no C library: its functions differ from system to system in their last bits, and a
shipped kernel may have no symbol that it does not define itself (`kernels/build.py`).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types

from ..simd import emits, f32

f64 = types.float64

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10  # the first: 33 bits
TWO_OVER_PI = 0.6366197723675814
# pi / 2 in three parts; the first two have 33 bits, so k times them is exact for k < 2 ** 20
PI_2_HIGH, PI_2_MIDDLE = 1.57079632673412561417, 6.07710050630396597660e-11
PI_2_LOW = 2.02226624879595063154e-21
# log(erfc(x) exp(x ** 2) (1 + x / 2)) for x in [0, 6.5] as a polynomial of degree 16 in a variable
# that runs from -1 to 1: interpolated at Chebyshev's points (tests/kernels/test_scalar_math.py)
ERFC_FROM = -0.5294117647058824
ERFC_LAST = 6.5
ERFC = (
    -8.967830893622535e-09,
    9.752168398822898e-08,
    -9.463708052409401e-08,
    -7.939214846800541e-07,
    2.0384354542754732e-06,
    2.101675426951734e-06,
    -1.7044488471033924e-05,
    1.4017104866019014e-05,
    9.302985592230778e-05,
    -0.00023782543590670913,
    -0.0003399831344574233,
    0.0022766573181383304,
    0.0003164287299938895,
    -0.02284743767820154,
    0.007108623061224998,
    0.5251687867140487,
    -0.5115385921532207,
)


ROUND = 6755399441055744.0  # 1.5 * 2 ** 52: a sum with it has no room for a fraction


@emits(f32, f32)
def sqrt(b: Any, x: Any) -> Any:
    """Square root, correctly rounded."""
    kind = ir.FunctionType(x.type, [x.type])
    return b.call(b.module.declare_intrinsic("llvm.sqrt", [x.type], kind), [x])


@emits(f64, f64)
def power_of_two(b: Any, n: Any) -> Any:
    """2.0 ** n for whole n, -1022 <= n <= 1023."""
    word = ir.IntType(64)
    biased = b.add(b.fptosi(n, word), word(1023))
    return b.bitcast(b.shl(biased, word(52)), ir.DoubleType())


@njit(error_model="numpy")
def round_even(x: float) -> float:
    """To the nearest whole number, ties to even, for |x| < 2 ** 51."""
    return (x + ROUND) - ROUND


@njit(error_model="numpy")
def exp64(x: float) -> float:
    """e ** x for |x| < 700, relative error below 1e-15."""
    n = round_even(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    return (p * r * r + r + 1.0) * power_of_two(n)


@njit(error_model="numpy")
def log64(x: float) -> float:
    """log(x) for 1 <= x < 10 ** 22, absolute error below 1e-12: by Halley's steps of up to 2."""
    y = 0.0
    for _ in range(32):
        e = exp64(y)
        y += 2.0 * (x - e) / (x + e)
    return y


@njit(error_model="numpy")
def softplus64(x: float) -> float:
    """log(1 + e ** x) for |x| < 700, relative error below 1e-12: the larger of x and 0, and
    log(1 + u) = 2 artanh(u / (2 + u)) with u = e ** -|x| by its series."""
    u = exp64(-abs(x))
    s = u / (2.0 + u)
    z = s * s
    p = 1.0 / 25.0
    for k in range(11, -1, -1):
        p = p * z + 1.0 / (2.0 * k + 1.0)
    return max(x, 0.0) + 2.0 * s * p


@njit(error_model="numpy")
def erfc64(x: float) -> float:
    """1 - erf(x), relative error below 1e-12 for x < 6.5, and 0 above."""
    a = abs(x)
    if a > ERFC_LAST:
        return 2.0 if x < 0.0 else 0.0
    t = 1.0 / (1.0 + 0.5 * a)
    v = (2.0 * t - 1.0 - ERFC_FROM) / (1.0 - ERFC_FROM) * 2.0 - 1.0
    p = 0.0
    for c in ERFC:
        p = p * v + c
    tail = t * exp64(p - a * a)
    return 2.0 - tail if x < 0.0 else tail


@njit(error_model="numpy")
def cos_sin(x: float) -> tuple[float, float]:
    """cos and sin of x, absolute error below 1e-12 for |x| < 10 ** 6 and 1e-7 for |x| < 10 ** 9."""
    k = round_even(x * TWO_OVER_PI)
    r = ((x - k * PI_2_HIGH) - k * PI_2_MIDDLE) - k * PI_2_LOW
    s, c = r * r, -1.0 / 87178291200.0
    sine = 1.0 / 6227020800.0
    sine = sine * s - 1.0 / 39916800.0
    sine = sine * s + 1.0 / 362880.0
    sine = sine * s - 1.0 / 5040.0
    sine = sine * s + 1.0 / 120.0
    sine = sine * s - 1.0 / 6.0
    sine = sine * s * r + r
    c = c * s + 1.0 / 479001600.0
    c = c * s - 1.0 / 3628800.0
    c = c * s + 1.0 / 40320.0
    c = c * s - 1.0 / 720.0
    c = c * s + 1.0 / 24.0
    c = c * s - 0.5
    cosine = c * s + 1.0
    quadrant = int(k) & 3
    if quadrant == 0:
        return cosine, sine
    if quadrant == 1:
        return -sine, cosine
    if quadrant == 2:
        return -cosine, -sine
    return sine, -cosine
