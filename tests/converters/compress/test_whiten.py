"""Gram matrices and their factors."""

from __future__ import annotations

import numpy as np
import pytest
from edgert.converters.compress.whiten import Gram, GramAccumulator, whiten

from edgert.errors import ConvertError

from ...closeness import assert_close
from .data import gram, inputs, rotation


def batches(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 50, 12)).astype(np.float32)


def test_batches_add_up() -> None:
    x = batches()
    collected = GramAccumulator(12)
    assert all(collected.add(batch) for batch in x)
    found = collected.finish()
    rows = x.reshape(-1, 12).astype(np.float64)
    assert found.rows == 200
    assert found.matrix.dtype == np.float64
    assert_close("Gram", rows.T @ rows, found.matrix, rms=1e-6)
    assert (found.matrix == found.matrix.T).all()


def test_padded_positions_do_not_count_whatever_they_hold() -> None:
    x, mask = batches(), np.ones((4, 50), np.bool_)
    mask[1, 20:] = mask[3, 5:] = False
    expected = GramAccumulator(12)
    expected.add(x[mask])
    x[~mask] = np.nan
    found = GramAccumulator(12)
    assert found.add(x, mask)
    assert found.finish().rows == 125
    np.testing.assert_array_equal(found.finish().matrix, expected.finish().matrix)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_is_dropped_and_counted(bad: float) -> None:
    x = batches()
    expected = GramAccumulator(12)
    for batch in x[1:]:
        expected.add(batch)
    x[0, 3, 4] = bad
    found = GramAccumulator(12)
    assert [found.add(batch) for batch in x] == [False, True, True, True]
    assert (found.finish().rows, found.finish().dropped) == (150, 1)
    np.testing.assert_array_equal(found.finish().matrix, expected.finish().matrix)


def test_a_batch_that_is_not_finite_may_be_refused() -> None:
    x = batches()[0]
    x[3, 4] = np.nan
    with pytest.raises(ConvertError, match=r"layers\.3\.mlp: 1 of 600 calibration inputs"):
        GramAccumulator(12, name="layers.3.mlp", nonfinite="refuse").add(x)


def test_a_layer_whose_batches_were_all_dropped_is_named() -> None:
    collected = GramAccumulator(12, name="layers.3.mlp")
    collected.add(np.full((5, 12), np.nan))
    with pytest.raises(ConvertError, match=r"layers\.3\.mlp: all 1 calibration batches"):
        collected.finish()


def test_products_beyond_float32_are_float64() -> None:
    collected = GramAccumulator(2)
    assert collected.add(np.array([[1e30, 0], [0, 1e25]]))
    np.testing.assert_allclose(collected.finish().matrix, [[1e60, 0], [0, 1e50]])


def test_many_rows_do_not_lose_small_ones() -> None:
    """A single float32 product over all rows would lose a third of them."""
    collected = GramAccumulator(1)
    collected.add(np.ones((1 << 20, 1), np.float32))
    assert collected.finish().matrix[0, 0] == 1 << 20


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (np.ones((3, 5)), None, r"float64 \(3, 5\), expected real numbers of shape \[\.\.\., 4\]"),
        (np.ones((3, 4), np.complex64), None, "expected real numbers"),
        (np.ones((3, 4)), np.ones(3), "mask is float64"),
        (np.ones((3, 4)), np.ones(4, np.bool_), r"expected bool \(3,\)"),
        (np.float64(1), None, "expected real numbers of shape"),
    ],
)
def test_inputs_of_another_kind_are_refused(x: object, mask: object, message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        GramAccumulator(4).add(x, mask)


def test_the_factor_is_that_of_the_ridged_matrix() -> None:
    x = inputs(16, np.random.default_rng(0))
    for ridge in (0.0, 1e-3, 1.0):
        found = whiten(gram(x), ridge)
        amount = ridge * np.trace(x.T @ x) / 16
        assert found.ridge == pytest.approx(amount)
        assert_close("G", x.T @ x + amount * np.eye(16), found.lower @ found.lower.T, rms=1e-13)
        assert (np.triu(found.lower, 1) == 0).all()
        d = np.random.default_rng(1).standard_normal((16, 5))
        assert_close("L^T A", d, found.apply(found.undo(d)), rms=1e-12)


def test_few_rows_get_a_larger_ridge() -> None:
    x = inputs(16, np.random.default_rng(0), rows=160)
    mean = np.trace(x.T @ x) / 16
    assert whiten(gram(x)).ridge == pytest.approx(1e-3 * mean)
    assert whiten(Gram(x.T @ x, 159)).ridge == pytest.approx(1e-1 * mean)


def test_a_layer_that_was_never_excited_is_not_whitened() -> None:
    found = whiten(GramAccumulator(5).finish())
    np.testing.assert_array_equal(found.lower, np.eye(5))
    assert found.ridge == 0


def test_the_ridge_grows_until_the_factor_exists() -> None:
    draw = np.random.default_rng(0)
    q = rotation(16, draw)
    spectrum = np.ones(16)
    spectrum[0] = -1e-5  # rounding of a careless producer
    found = whiten(Gram((q * spectrum) @ q.T, 1000), 1e-8)
    assert found.retries == 4
    assert found.ridge == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.diag([1.0, -5.0]), "-5 on its diagonal"),
        (np.array([[1.0, 9.0], [9.0, 1.0]]), "not positive definite"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "NaN or infinite"),
        (np.ones((2, 3)), "3 columns, expected 2"),
    ],
)
def test_what_is_no_gram_matrix_is_refused_with_its_layer(matrix: object, message: str) -> None:
    with pytest.raises(ConvertError, match=message) as raised:
        whiten(Gram(matrix, 100), 1e-8, name="layers.3.mlp")  # type: ignore[arg-type]
    assert "layers.3.mlp" in str(raised.value)
