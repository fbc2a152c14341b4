"""Gauge scaling, refits on the support, and the order in which factors are quantized."""

from __future__ import annotations

import numpy as np
import pytest
from edgert.converters.compress.compot import Options, compot
from edgert.converters.compress.factors import gauge, quantize_factors, refit_support
from edgert.converters.compress.result import Factors
from edgert.kernels import sparse
from edgert.kernels.encodings import dequantize
from edgert.kernels.grid import Grid

from edgert.errors import ConvertError

from ...closeness import assert_close
from .data import layer


def rounded(values: np.ndarray, bits: int = 4) -> np.ndarray:
    """Rows in groups of 32, rounded to nearest."""
    grid = Grid(bits, 32, symmetric=True)
    return grid.dequantize(grid.quantize(values.astype(np.float32)), values.shape)


def stored(found: Factors, bits: int = 4):
    """A quantizer of codes: rounded as the runtime stores them (`kernels/sparse.py`)."""

    def quantizer(values: np.ndarray) -> np.ndarray:
        dense = np.zeros((found.n, found.k), np.float32)
        mask = np.zeros(dense.shape, np.bool_)
        np.put_along_axis(dense, found.idx.astype(np.int64), values.astype(np.float32), axis=1)
        np.put_along_axis(mask, found.idx.astype(np.int64), True, axis=1)
        wide = dequantize(sparse.quantize(dense, mask, bits))
        return np.take_along_axis(wide, found.idx.astype(np.int64), axis=1)

    return quantizer


def along_inputs(a: np.ndarray) -> np.ndarray:
    return rounded(a.T).T


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.75, 1.0])
def test_gauge_scaling_leaves_the_product(exponent: float) -> None:
    _, w, white = layer(64, 96)
    found = compot(w, white, 32, 12)
    scaled = gauge(found, exponent)
    assert_close("A S", found.product(), scaled.product(), rms=1e-13)
    sizes = np.sqrt((scaled.code() ** 2).sum(axis=1) / (scaled.code() != 0).sum(axis=1))
    before = np.sqrt((found.code() ** 2).sum(axis=1) / (found.code() != 0).sum(axis=1))
    np.testing.assert_allclose(sizes, before ** (1 - exponent), rtol=1e-9)


def test_an_unused_atom_is_not_scaled() -> None:
    found = Factors(np.eye(3), np.array([[0, 1]], np.int32), np.array([[4.0, 0.0]]),
                    np.zeros(1), np.ones(1))  # fmt: skip
    scaled = gauge(found, 1.0)
    np.testing.assert_array_equal(scaled.a, np.diag([4.0, 1.0, 1.0]))
    np.testing.assert_array_equal(scaled.values, [[1.0, 0.0]])
    with pytest.raises(ConvertError, match="exponent is 2"):
        gauge(found, 2)


def column_by_column(found: Factors, w: np.ndarray, white) -> np.ndarray:
    """The formula, directly."""
    d, y = white.apply(found.a), white.apply(w)
    values = np.empty_like(found.values)
    for j, support in enumerate(found.idx):
        part = d[:, support]
        square = part.T @ part
        ridge = 1e-8 * np.trace(square) / len(support)
        values[j] = np.linalg.solve(square + ridge * np.eye(len(support)), part.T @ y[:, j])
    return values


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_a_refit_on_the_support_is_least_squares(noise: float) -> None:
    _, w, white = layer(64, 96)
    found = gauge(compot(w, white, 32, 12))
    draw = np.random.default_rng(1)
    a = found.a * (1 + noise * draw.standard_normal(found.a.shape))
    spoiled = Factors(a, found.idx, found.values, found.residual, found.energy)
    spoiled = spoiled.measured(white.apply(w), white)
    refit = refit_support(spoiled, w, white)
    assert_close("values", column_by_column(spoiled, w, white), refit.values, rms=1e-6)
    assert refit.error <= spoiled.error
    if noise:
        assert refit.error < spoiled.error


def test_a_refit_survives_atoms_that_are_copies_or_zero() -> None:
    _, w, white = layer(64, 96)
    found = compot(w, white, 32, 12)
    a = found.a.copy()
    a[:, 1] = a[:, 0]
    a[:, 2] = 0
    spoiled = Factors(a, found.idx, found.values, found.residual, found.energy)
    spoiled = spoiled.measured(white.apply(w), white)
    refit = refit_support(spoiled, w, white)
    assert np.isfinite(refit.values).all()
    assert refit.error <= spoiled.error


def test_scaling_and_refit_make_low_bits_better() -> None:
    _, w, white = layer(128, 256, kind="subspaces")
    found = compot(w, white, 96, 48, Options(refit=True))

    def error(exponent: float, bits: int) -> float:
        return quantize_factors(
            found, w, white, along_inputs, stored(found, bits), exponent=exponent
        ).error

    plain = Factors(along_inputs(found.a), found.idx, stored(found)(found.values),
                    found.residual, found.energy).measured(white.apply(w), white)  # fmt: skip
    errors = {
        "not scaled, not refitted": plain.error,
        "not scaled": error(0.0, 4),
        "scaled": error(0.75, 4),
        "scaled, codes of 6 bits": error(0.75, 6),
        "fp": found.error,
    }
    print(errors)
    falling = list(errors.values())
    assert falling == sorted(falling, reverse=True)


def test_the_error_is_that_of_the_rounded_factors() -> None:
    x, w, white = layer(64, 96, ridge=0.0)
    found = compot(w, white, 32, 12)
    found = quantize_factors(found, w, white, along_inputs, stored(found))
    exact = np.linalg.norm(x @ (w - found.product())) / np.linalg.norm(x @ w)
    assert found.error == pytest.approx(exact, rel=1e-9)


def test_a_quantizer_that_returns_something_else_is_refused() -> None:
    _, w, white = layer(64, 96)
    found = compot(w, white, 32, 12)
    with pytest.raises(ConvertError, match=r"quantizer of A returned \(32, 64\)"):
        quantize_factors(found, w, white, lambda a: a.T, rounded)
    with pytest.raises(ConvertError, match="quantizer of codes"):
        quantize_factors(found, w, white, along_inputs, lambda v: v * np.nan)
    with pytest.raises(ConvertError, match="weight has 63 rows, expected 64"):
        refit_support(found, w[1:], white)
