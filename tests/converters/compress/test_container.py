"""Codes as they are stored: mask, values, and what breaks the format."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edgert.converters.compress.budget import FP16, Format, storage_bits
from edgert.converters.compress.container import (
    BITS,
    compress,
    expand,
    pack_codes,
    pack_mask,
    quantize_values,
    stored_values,
    unpack_codes,
    unpack_mask,
)

from edgert.errors import ConvertError

# k and s: not multiples of 64 and 32, multiples of them, one bit past them, s = k
SIZES = [(100, 40), (128, 64), (65, 33), (64, 64), (63, 63), (1, 1), (96, 1), (130, 129)]


def code(k: int, s: int, n: int = 37, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    idx = np.array([np.sort(draw.choice(k, s, replace=False)) for _ in range(n)], np.int32)
    values = draw.standard_normal((n, s)).astype(np.float16)
    values[0, 0] = 0  # an explicit zero keeps its slot
    return idx, values


def dense(idx: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    s = np.zeros((k, len(idx)), np.float32)
    for j, (atoms, row) in enumerate(zip(idx, values, strict=True)):
        s[atoms, j] = row
    return s


@pytest.mark.parametrize(("k", "s"), SIZES)
def test_expand_undoes_compress(k: int, s: int) -> None:
    idx, values = code(k, s)
    packed = compress(idx, values, k)
    np.testing.assert_array_equal(expand(packed), dense(idx, values, k))
    np.testing.assert_array_equal(unpack_mask(packed.mask, k, s), idx)
    expected = storage_bits(1, 37, k, s, "mask", FP16, padded=True) - 16 * k
    assert packed.nbytes * 8 == expected


@pytest.mark.parametrize(("k", "s"), SIZES)
def test_every_row_of_the_mask_has_s_bits_and_none_past_k(k: int, s: int) -> None:
    idx, _ = code(k, s)
    mask = pack_mask(idx, k)
    assert mask.shape == (37, -(-k // 64))
    assert mask.dtype == np.dtype("<u8")
    for atoms, words in zip(idx, mask, strict=True):
        row = sum(int(word) << (64 * place) for place, word in enumerate(words))
        assert row.bit_count() == s
        assert row.bit_length() <= k
        assert {a for a in range(k) if row >> a & 1} == set(map(int, atoms))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("k", "s"), SIZES)
def test_codes_are_within_half_a_step(k: int, s: int, bits: int) -> None:
    idx, values = code(k, s)
    packed = compress(idx, values, k, bits)
    found = stored_values(packed)
    padded = -(-s // 32) * 32
    steps = np.repeat(np.abs(packed.scales.astype(np.float64)), 32, axis=1)[:, :s]
    wide = values.astype(np.float64)
    scales = np.repeat(packed.scales.astype(np.float64), 32, axis=1)[:, :s]
    clipped = wide / np.where(scales == 0, 1, scales) > 2 ** (bits - 1) - 1  # the shorter side
    assert (np.abs(found - wide) <= steps * np.where(clipped, 1.001, 0.501)).all()
    np.testing.assert_array_equal(expand(packed), dense(idx, found, k))
    assert packed.codes.shape == (37, padded * bits // 8)
    expected = storage_bits(1, 37, k, s, "mask", FP16, Format(bits, 32), padded=True) - 16 * k
    assert packed.nbytes * 8 == expected


def test_more_bits_are_closer() -> None:
    idx, values = code(100, 40)
    errors = [
        np.linalg.norm(stored_values(compress(idx, values, 100, bits)) - values) for bits in BITS
    ]
    assert errors == sorted(errors, reverse=True)


def test_padding_is_the_zero_code_and_zeros_stay_zero() -> None:
    codes, scales = quantize_values(np.array([[0.0, 1.0, -3.0], [0.0, 0.0, 0.0]]), 4)
    assert codes.shape == (2, 32)
    assert (codes[:, 3:] == 8).all()
    assert codes[0, :3].tolist() == [8, 11, 0]
    assert (codes[1] == 8).all()
    assert scales.tolist() == [[0.375], [0.0]]


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_packed_low_bits_first(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (5, 64), dtype=np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (5, 8 * bits)
    for row, stored in zip(codes, packed, strict=True):
        whole = sum(int(value) << (bits * place) for place, value in enumerate(row))
        assert int.from_bytes(stored.tobytes(), "little") == whole
    np.testing.assert_array_equal(unpack_codes(packed, bits), codes)


def test_a_mask_that_breaks_the_format_is_refused() -> None:
    idx, values = code(100, 40)
    packed = compress(idx, values, 100)
    past, short = packed.mask.copy(), packed.mask.copy()
    past[2, 1] |= np.uint64(1 << 40)
    short[3, 0] &= short[3, 0] - np.uint64(1)
    for mask, message in [
        (past, "bits past atom 99"),
        (short, "row 3 of the mask has 39 bits, expected 40"),
        (packed.mask[:, :1], "1 words, expected 2"),
        (packed.mask.astype(np.float64), "expected uint64"),
    ]:
        with pytest.raises(ConvertError, match=message):
            expand(replace(packed, mask=mask))


def test_values_that_break_the_format_are_refused() -> None:
    idx, values = code(100, 40)
    packed, small = compress(idx, values, 100), compress(idx, values, 100, 4)
    for broken, message in [
        (replace(packed, values=values[:, :39]), "values are float16"),
        (replace(packed, values=None), "values are nothing"),
        (replace(small, codes=small.codes[:, :-1]), "codes are uint8"),
        (replace(small, scales=small.scales.astype(np.float32)), "scales are float32"),
        (replace(small, bits=9), "bits is '9'"),
        (replace(packed, s=101), "s is 101, expected 1 to 100"),
    ]:
        with pytest.raises(ConvertError, match=message):
            expand(broken)


def test_what_cannot_be_stored_is_refused() -> None:
    idx, values = code(100, 40)
    for supports, numbers, bits, message in [
        (idx[:, ::-1], values, 16, "ascending indices from 0 to 99"),
        (idx + 60, values, 16, "ascending indices from 0 to 99"),
        (idx.astype(float), values, 16, "expected integers"),
        (idx, values[:, 1:], 16, r"values have shape \(37, 39\)"),
        (idx, values.astype(np.float32) * 1e6, 16, "largest of fp16"),
        (idx, values.astype(np.float32) * 1e9, 4, "scales reach"),
        (idx, values * np.float16(np.nan), 16, "NaN or infinite"),
        (idx, values, 1, "bits is '1'"),
    ]:
        with pytest.raises(ConvertError, match=message):
            compress(supports, numbers, 100, bits)
