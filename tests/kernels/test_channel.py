"""Codes with one scale a row: what is refused, what is damage, which sums are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgert.kernels import encodings
from edgert.kernels.encodings import dequantize, quantize
from edgert.kernels.quant import Quantized, quantize_rows

from .products import product_graph
from .test_packed_linear import opened

NAME = "int8-channel"


def stored(n: int, k: int) -> Quantized:
    w = quantize(np.random.default_rng([n, k]).standard_normal((n, k)).astype(np.float32), NAME)
    assert isinstance(w, Quantized)
    return w


def test_rows_too_long_for_exact_sums_are_refused() -> None:
    assert not encodings.fault(NAME, (8, 131_040))
    assert encodings.fault(NAME, (8, 131_041)) == (
        "has encoding 'int8-channel' and has rows of 131041, expected at most 131040"
    )


def test_the_longest_rows_are_exact(kernel_folder: Path) -> None:
    k = 131_040
    w = Quantized(NAME, (1, k), {
        "q": np.zeros((1, k // 32, 32), np.uint8), "scales": np.ones((1, 1), np.float32)
    })  # fmt: skip
    x = np.full((10, k), 127.0, np.float32)
    with opened(x, w, 1, kernel_folder) as session:
        for rows in (1, 4, 10):
            assert (session.rows(range(rows)) == np.float32(-128 * 127 * k)).all()


def test_damage_is_told() -> None:
    whole = stored(3, 70)
    assert encodings.damage(whole) == ""
    scales = whole.scales.copy()
    scales[1] = np.inf
    assert "not finite" in encodings.damage(
        Quantized(NAME, whole.shape, {"q": whole.q, "scales": scales})
    )
    q = whole.q.copy()
    q[2, -1, -1] = 0
    assert "past its inputs" in encodings.damage(
        Quantized(NAME, whole.shape, {"q": q, "scales": whole.scales})
    )


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    w = np.ones((2, 40), np.float32)
    w[1, 3] = value
    with pytest.raises(ValueError, match="infinite or no number"):
        quantize(w, NAME)


def test_rows_of_zeros_and_tiny_values() -> None:
    w = np.zeros((3, 40), np.float32)
    w[1], w[2] = 1e-44, 1e-30
    back = dequantize(quantize(w, NAME))
    assert not back[0].any()
    assert np.isfinite(back).all()
    assert np.allclose(back[2], w[2], rtol=1e-2)


def test_activations_are_one_block_a_row() -> None:
    x = np.random.default_rng(1).standard_normal((4, 70)).astype(np.float32)
    codes, scales = quantize_rows(x, whole=True)
    assert (codes.shape, scales.shape) == ((4, 1, 96), (4, 1))
    assert np.array_equal(np.abs(codes).max(axis=2), np.full((4, 1), 127))
    assert np.allclose(scales[:, 0], np.abs(x).max(axis=1) / 127, rtol=1e-6)
    graph, _ = product_graph(x, stored(8, 70))
    assert graph.weights["w"].encoding == NAME
