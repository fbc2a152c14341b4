"""MXFP4 as int5-g32: the values of the `gguf` package, and what float16 has no scale for."""

from __future__ import annotations

import numpy as np
import pytest
from edgert.converters.sources.packed_mx import gguf_mxfp4
from edgert.kernels.encodings import damage, dequantize
from edgert.kernels.quant import Quantized
from numpy.typing import NDArray


def rows_of(exponents: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of MXFP4 blocks, one for each exponent, of random codes."""
    codes = np.random.default_rng(len(exponents)).integers(0, 256, (len(exponents), 1, 16))
    blocks = np.concatenate([exponents[:, None, None], codes.astype(np.uint8)], axis=-1)
    return blocks.reshape(len(exponents), 17)


def taken(rows: NDArray[np.uint8]) -> Quantized:
    return Quantized("int5-g32", (len(rows), rows.shape[1] // 17 * 32), gguf_mxfp4(rows))


def theirs(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    found: NDArray[np.float32] = gguf.dequantize(rows, gguf.GGMLQuantizationType.MXFP4)
    return found


def test_values_are_those_of_the_gguf_package() -> None:
    """Bit for bit wherever float16 has a power of two."""
    rows = rows_of(np.arange(128 - 24, 128 + 16).astype(np.uint8))
    weight = taken(rows)
    assert np.array_equal(theirs(rows), dequantize(weight))
    assert not damage(weight)


def test_every_code_has_its_value() -> None:
    wide = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rows = np.concatenate([np.full((16, 1), 127, np.uint8), wide], axis=1)
    got = dequantize(taken(rows))
    assert np.array_equal(theirs(rows), got)
    assert sorted(set(np.abs(got).ravel())) == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_smaller_scales_are_rounded_to_what_float16_has() -> None:
    rows = rows_of(np.arange(0, 128 - 24).astype(np.uint8))
    weight = taken(rows)
    assert np.abs(theirs(rows) - dequantize(weight)).max() <= 2.0**-25
    assert not damage(weight)


@pytest.mark.parametrize("exponent", [128 + 16, 254, 255])
def test_scales_beyond_it_are_damage(exponent: int) -> None:
    rows = rows_of(np.array([127, exponent], np.uint8))
    assert "1 of 2 scales" in damage(taken(rows))
