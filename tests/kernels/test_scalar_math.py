"""Functions that kernels have of their own, against the C library's and against exact sums."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from edgert.kernels import simd_baseline
from edgert.kernels.cpu import scalar_math
from edgert.kernels.simd import emits, f32
from numba import njit, vectorize
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@vectorize(["float64(float64)"])
def erfc(x: float) -> float:
    return scalar_math.erfc64(x)  # type: ignore[no-any-return]


@vectorize(["float64(float64)"])
def exp(x: float) -> float:
    return scalar_math.exp64(x)  # type: ignore[no-any-return]


@vectorize(["float64(float64)"])
def softplus(x: float) -> float:
    return scalar_math.softplus64(x)  # type: ignore[no-any-return]


@vectorize(["float64(float64)"])
def log(x: float) -> float:
    return scalar_math.log64(x)  # type: ignore[no-any-return]


@vectorize(["float64(float64)"])
def exponential(x: float) -> float:
    return scalar_math.exponential64(x)  # type: ignore[no-any-return]


@vectorize(["float64(float64)"])
def cosine(x: float) -> float:
    return scalar_math.cos_sin(x)[0]  # type: ignore[no-any-return]


@vectorize(["float64(float64)"])
def sine(x: float) -> float:
    return scalar_math.cos_sin(x)[1]  # type: ignore[no-any-return]


def exact(function: Any, xs: F64) -> F64:
    return np.array([function(float(x)) for x in xs])


def test_erfc() -> None:
    xs = np.linspace(-7, 6.4999, 20011)
    found, expected = erfc(xs), exact(math.erfc, xs)
    assert np.abs(found / expected - 1).max() < 1e-12
    assert list(erfc(np.array([6.6, 1e30, np.inf, -1e30]))) == [0, 0, 0, 2]


def test_softplus() -> None:
    xs = np.concatenate([np.linspace(-40, 40, 20011), [-690.0, 0.0, 690.0]])
    expected = exact(lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))), xs)
    assert np.abs(softplus(xs) / expected - 1).max() < 1e-12


def test_the_polynomial_of_erfc_is_what_its_comment_says() -> None:
    """Interpolated again from the C library's erfc, where that is precise."""
    degree = len(scalar_math.ERFC) - 1
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    u = scalar_math.ERFC_FROM + (nodes + 1) / 2 * (1 - scalar_math.ERFC_FROM)
    x = 4 / (u + 1) - 2
    values = [math.log(math.erfc(a) * (1 + a / 2)) + a * a for a in x]
    found = np.polynomial.chebyshev.cheb2poly(
        np.polynomial.chebyshev.chebfit(nodes, values, degree)
    )
    at = np.linspace(-1, 1, 101)
    difference = np.polyval(scalar_math.ERFC, at) - np.polynomial.polynomial.polyval(at, found)
    assert np.abs(difference).max() < 1e-12
    assert 4 / (scalar_math.ERFC_FROM + 1) - 2 == scalar_math.ERFC_LAST


def test_exp() -> None:
    xs = np.linspace(-690, 690, 20011)
    assert np.abs(exp(xs) / exact(math.exp, xs) - 1).max() < 1e-15


def test_log() -> None:
    xs = np.concatenate([np.linspace(0.4, 3, 20011), 2.0 ** np.linspace(-1022, 1021, 4001)])
    expected = exact(math.log, xs)
    assert (np.abs(log(xs) - expected) / np.maximum(1, np.abs(expected))).max() < 1e-15


def test_exponential_numbers() -> None:
    """Of every size that a uniform number of 53 bits has."""
    small = 2.0 ** -np.linspace(0.001, 54, 4001)
    xs = np.concatenate([small, 1 - small[small >= 2.0**-53], np.linspace(0.001, 0.999, 20011)])
    expected = exact(lambda v: -math.log1p(-v), xs)
    assert np.abs(exponential(xs) / expected - 1).max() < 1e-14
    assert exponential(np.ones(1))[0] == np.inf


def test_cos_and_sin() -> None:
    for most, limit in ((8.0, 1e-13), (1e6, 1e-12), (1e9, 1e-7)):
        xs = np.linspace(-most, most, 20011)
        assert np.abs(cosine(xs) - exact(math.cos, xs)).max() < limit
        assert np.abs(sine(xs) - exact(math.sin, xs)).max() < limit
    assert (cosine(0.0), sine(0.0)) == (1.0, 0.0)


@emits(f32, f32, f32, f32)
def plain_fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return simd_baseline.fma(b, x, y, z)


@emits(f32, f32)
def plain_rint(b: Any, x: Any) -> Any:
    return simd_baseline.rint(b, x)


@njit
def all_fma(x: Any, y: Any, z: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = plain_fma(x[i], y[i], z[i])


@njit
def all_rint(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = plain_rint(x[i])


def nearest(value: Fraction) -> np.float32:
    """The nearest float32, ties to even: from the exact quotient, not by way of a double."""
    down = np.float32(float(value))
    around = [np.nextafter(down, np.float32(s * np.inf)) for s in (-1, 1)] + [down]
    best = min(around, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.uint32)) & 1))
    return np.float32(best)


def test_fma_without_the_instruction_rounds_once() -> None:
    rng = np.random.default_rng(0)
    x, y, z = rng.standard_normal((3, 4000)).astype(np.float32)
    # The second half: exactly next to the middle of two float32, by less than a double holds.
    x[2000:], y[2000:] = np.float32(2.0**-24 * (1 + 2.0**-23)), np.float32(1 - 2.0**-23)
    z[2000:] = 1 + (2 * rng.integers(0, 1 << 20, 2000) + 1) * 2.0**-23
    found = np.empty_like(x)
    all_fma(x, y, z, found)
    exactly = [
        Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        for a, b, c in zip(x, y, z, strict=True)
    ]
    assert np.array_equal(found, np.array([nearest(v) for v in exactly]))
    twice = (x.astype(np.float64) * y + z).astype(np.float32)
    assert not np.array_equal(found, twice)  # the cases do tell one rounding from two


def test_fma_of_what_is_no_number() -> None:
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    x = np.array([inf, nan, 0, 1, -0.0], np.float32)
    y = np.array([1, 1, inf, inf, 1], np.float32)
    z = np.array([1, 1, 1, -inf, -0.0], np.float32)
    found = np.empty_like(x)
    all_fma(x, y, z, found)
    assert found[0] == inf
    assert np.isnan(found[1:4]).all()
    assert np.signbit(found[4])
    assert found[4] == 0


def test_rint_without_the_instruction() -> None:
    rng = np.random.default_rng(1)
    large = [0.0, 4194303.5, 8388607.0, 3e38]
    x = np.concatenate([rng.standard_normal(2000) * 1000, np.arange(-100, 100) + 0.5, large])
    x = x.astype(np.float32)
    found = np.empty_like(x)
    all_rint(x, found)
    assert np.array_equal(found, np.rint(x))
