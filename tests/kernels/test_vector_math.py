"""Functions of 16 lanes against double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from edgert.kernels.cpu import tile_product, vector_math
from edgert.kernels.simd import load_f32, store_f32
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@njit(error_model="numpy")
def _exp2(x: int, y: int, count: int) -> None:
    for i in range(0, count, 16):
        store_f32(y + 4 * i, vector_math.exp2(load_f32(x + 4 * i)))


@njit(error_model="numpy")
def _gelu(x: int, y: int, count: int) -> None:
    for i in range(0, count, 16):
        store_f32(y + 4 * i, vector_math.gelu(load_f32(x + 4 * i)))


def _by_lane(function: Callable[[int, int, int], None], x: F32) -> NDArray[np.float64]:
    padded = np.zeros(-(-len(x) // 16) * 16, np.float32)
    padded[: len(x)] = x
    y = np.empty_like(padded)
    function(padded.ctypes.data, y.ctypes.data, len(padded))
    return y[: len(x)].astype(np.float64)


def test_exp2() -> None:
    x = np.linspace(-126, 0, 200_001).astype(np.float32)
    found = _by_lane(_exp2, x)
    assert np.abs(found / 2.0 ** x.astype(np.float64) - 1).max() < 2e-7
    odd = np.array([0, -126.5, -1e30, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(_by_lane(_exp2, odd), [1, 0, 0, 0, np.nan])


@njit(error_model="numpy")
def _gated(x: int, y: int, count: int) -> None:
    for i in range(0, count, 16):
        v = load_f32(x + 4 * i)
        store_f32(y + 4 * i, vector_math.gated(v, v))


def test_gated() -> None:
    x = np.linspace(-130, 130, 200_001).astype(np.float32)
    wide = x.astype(np.float64)
    expected = wide / (1 + 2.0**wide)
    error = np.abs(_by_lane(_gated, x) - expected) / np.maximum(np.abs(expected), 1e-35)
    assert error[x < 126].max() < 3e-7
    odd = np.array([0, 1e30, -1e30, -np.inf, np.nan], np.float32)
    found = _by_lane(_gated, odd)
    assert found[1] < 1e-7
    np.testing.assert_array_equal(found[[0, 2, 3, 4]], odd[[0, 2, 3, 4]])


def test_gelu() -> None:
    x = np.linspace(-14, 14, 100_001).astype(np.float32)
    expected = [0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)]
    error = np.abs(_by_lane(_gelu, x) - expected) / np.maximum(1, np.abs(x))
    assert error.max() < 2e-7
    odd = np.array([0, 1e30, -1e30, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(_by_lane(_gelu, odd), odd * [0, 1, 0, 1, 1])


def test_a_tile_is_one_chain_of_sums_in_order() -> None:
    """A narrow tile and a wide one give the same bits, and adding goes on where a chain ended."""
    wide = tile_product.tile_product(6, 2, fresh=True)
    narrow = tile_product.tile_product(1, 1, fresh=True)
    more = tile_product.tile_product(6, 2, fresh=False)

    @njit(error_model="numpy")
    def run(a: int, b: int, n: int, out: int, single: int, cut: int) -> None:
        wide(a, 4 * n, b, 128, 64, n, out, 128)
        for r in range(6):
            for c in range(2):
                narrow(a + 4 * n * r, 0, b + 64 * c, 128, 0, n, single + 128 * r + 64 * c, 0)
        wide(a, 4 * n, b, 128, 64, n // 2, cut, 128)
        rest = n - n // 2
        more(a + 4 * (n // 2), 4 * n, b + 128 * (n // 2), 128, 64, rest, cut, 128)

    rng = np.random.default_rng(0)
    for n in (1, 2, 63):
        a = rng.standard_normal((6, n)).astype(np.float32)
        b = rng.standard_normal((n, 32)).astype(np.float32)
        results: list[Any] = [np.empty((6, 32), np.float32) for _ in range(3)]
        run(a.ctypes.data, b.ctypes.data, n, *(y.ctypes.data for y in results))
        np.testing.assert_allclose(results[0], a @ b, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(results[0], results[1])
        if n > 1:
            np.testing.assert_array_equal(results[0], results[2])


def test_transpose() -> None:
    @njit(error_model="numpy")
    def run(x: int, stride: int, y: int) -> None:
        tile_product.transpose(x, stride, y)

    x = np.arange(16 * 20, dtype=np.float32).reshape(16, 20)
    y = np.empty((16, 16), np.float32)
    run(x.ctypes.data, 80, y.ctypes.data)
    np.testing.assert_array_equal(y, x[:, :16].T)
