"""Bits of factors, and what fits a compression ratio."""

from __future__ import annotations

import itertools

import pytest
from edgert.converters.compress.budget import (
    FP16,
    Dims,
    Format,
    bits_per_weight,
    choose,
    factor_bytes,
    require_memory,
    storage_bits,
)
from edgert.kernels import sparse
from edgert.kernels.encodings import ENCODINGS

from edgert.errors import ConvertError, ResourceError
from edgert.storage.safetensors import nbytes_of

SHAPES = [(4096, 12288), (4096, 4096), (14336, 4096), (4096, 1024), (576, 192), (96, 288), (8, 5)]
RATIOS = [0.0, 0.01, 0.1, 0.2, 0.35, 0.5, 0.6, 0.8, 0.95, 0.999]
INT4, INT8 = Format(4, 32), Format(8, 32)


def test_the_published_examples() -> None:
    found = choose(4096, 12288, 0.2, align=False)
    assert (found.form, found.k, found.s) == ("mask", 3657, 1828)
    found = choose(4096, 12288, 0.2, align=False, mask=False)
    assert (found.k, found.s) == (3932, 1966)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("rho", [1.0, 1.2, 2.0, 4.0, 50.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_never_exceed_the_budget(shape: tuple[int, int], rho: float, align: bool) -> None:
    m, n = shape
    for ratio in RATIOS:
        found = choose(m, n, ratio, rho, align=align, smallest=1)
        if found.form == "dense":
            assert (1 - ratio) * m * n < m + n or ratio == 0
            continue
        assert found.bits <= (1 - ratio) * 16 * m * n + 1e-6
        assert 1 <= found.s <= found.k <= min(m, n)
        assert (found.form == "lowrank") == (found.s == found.k)
        assert found.ratio >= ratio - 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_a_larger_ratio_never_gives_more(shape: tuple[int, int]) -> None:
    steps = [i / 500 for i in range(500)]
    plain = [choose(*shape, ratio, align=False, smallest=1) for ratio in steps]
    sparse = [found for found in plain if found.form == "mask"]
    for before, after in itertools.pairwise(sparse):
        assert after.k <= before.k
        assert after.bits <= before.bits
    aligned = [choose(*shape, ratio, smallest=1) for ratio in steps]
    for before, after in itertools.pairwise(f for f in aligned if f.form == "mask"):
        assert after.k <= before.k


def test_wide_codes_are_aligned_and_the_rest_is_spent() -> None:
    for m, n in SHAPES[:4]:
        for ratio in (0.2, 0.4, 0.6):
            found = choose(m, n, ratio)
            assert found.k % 32 == 0 or found.k < 256
            assert found.s % 8 == 0 or found.k < 256
            budget = (1 - ratio) * 16 * m * n
            assert budget - 16 * n * 8 < found.bits <= budget or found.k < 256


def test_atoms_are_clamped_to_the_smaller_side() -> None:
    found = choose(128, 4096, 0.05, 4.0)
    assert (found.form, found.k) == ("mask", 128)
    assert found.s == int((0.95 * 128 * 4096 - 128 * 128 - 4096 * 128 / 16) / 4096)


def test_a_code_that_keeps_everything_is_a_truncated_svd() -> None:
    found = choose(512, 512, 0.2, 1.0)
    assert (found.form, found.k, found.s) == ("lowrank", 204, 204)
    assert found.bits == 16 * 204 * 1024


def test_small_and_hopeless_matrices_stay_dense() -> None:
    assert choose(127, 4096, 0.2).form == "dense"
    assert choose(128, 4096, 0.2).form == "mask"
    assert choose(4096, 4096, 0.9999).form == "dense"


# shape, ratio, (k, s), bits per weight in fp16, A8S8, A4S4 with mask, A4S4 densified, MACs
PUBLISHED = [
    ((4096, 4096), 0.2, (2097, 1048), (12.80, 7.04, 3.97, 4.61), (0.77, 1.02)),
    ((4096, 4096), 0.4, (1572, 786), (9.59, 5.28, 2.97, 3.45), (0.58, 0.77)),
    ((4096, 14336), 0.2, (3863, 1931), (12.80, 7.24, 4.28, 5.46), (0.74, 1.21)),
    ((4096, 14336), 0.4, (2897, 1448), (9.60, 5.43, 3.21, 4.09), (0.56, 0.91)),
    ((14336, 4096), 0.2, (2823, 1411), (12.80, 6.89, 3.74, 3.99), (0.79, 0.89)),
    ((4096, 1024), 0.2, (718, 359), (12.80, 6.88, 3.72, 3.94), (0.79, 0.88)),
]


@pytest.mark.parametrize(("shape", "ratio", "size", "bits", "macs"), PUBLISHED)
def test_every_form_takes_the_bits_of_the_table(
    shape: tuple[int, int],
    ratio: float,
    size: tuple[int, int],
    bits: tuple[float, ...],
    macs: tuple[float, float],
) -> None:
    found = choose(*shape, ratio, align=False)
    assert (found.k, found.s) == size
    counted = [
        found.bits,
        storage_bits(*shape, *size, "mask", INT8, INT8),
        storage_bits(*shape, *size, "mask", INT4, INT4),
        storage_bits(*shape, *size, "densified", INT4, INT4),
    ]
    for expected, total in zip(bits, counted, strict=True):
        assert bits_per_weight(total, *shape) == pytest.approx(expected, abs=0.011)
    dense = shape[0] * shape[1]
    assert found.macs() / dense == pytest.approx(macs[0], abs=0.006)
    assert found.macs(densified=True) / dense == pytest.approx(macs[1], abs=0.006)


def test_bits_of_the_other_forms() -> None:
    m, n, k, s = 256, 512, 128, 64
    left, values = 16 * m * k, 16 * n * s
    assert storage_bits(m, n, k, s) == left + values + n * k
    assert storage_bits(m, n, k, s, "index") == left + values + 16 * n * s
    assert storage_bits(m, n, k, s, "nm") == left + values + 2 * n * s
    assert storage_bits(m, n, k, s, "nm", of=8) == left + values + 3 * n * s
    assert storage_bits(m, n, k, s, "shared", outputs=4) == left + values + n * k // 4
    assert storage_bits(m, n, k, k, "lowrank") == 16 * k * (m + n)
    assert storage_bits(m, n, 0, 0, "dense", INT4) == m * n * 4 + m * n // 2
    assert storage_bits(m, n, 70000, 1, "index") - 16 * 70000 * m == n * (16 + 32)
    assert storage_bits(250, n, 100, 40, "mask", INT4, INT4, padded=True) == (
        100 * 8 * (32 * 4 + 16) + n * (40 * 4 + 2 * 16 + 128)
    )


def test_bits_of_a_sparse_code_are_those_of_its_tensors() -> None:
    for k, s in [(100, 40), (128, 64), (65, 33), (64, 64), (1, 1), (130, 129)]:
        for bits in sparse.BITS:
            values = Format(bits, 32) if bits < 16 else FP16
            tensors = ENCODINGS[f"sparse{bits}-s{s}"].specs("w", (37, k)).values()
            stored = 8 * sum(nbytes_of(*spec) for spec in tensors)
            assert storage_bits(9, 37, k, s, values=values, padded=True) - 16 * 9 * k == stored


def test_a_dense_layer_removes_nothing() -> None:
    m, n = 256, 512
    assert Dims(m, n, "dense").ratio == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 0.2), "m is 0, expected at least 1"),
        ((5, 5.0, 0.2), r"n is 5\.0, expected an integer"),
        ((5, 5, 1.0), r"ratio is 1\.0, expected 0 <= ratio < 1"),
        ((5, 5, -0.1), r"ratio is -0\.1"),
        ((5, 5, float("nan")), "ratio is nan"),
        ((5, 5, "0.2"), "ratio is '0.2', expected a number"),
        ((5, 5, 0.2, 0.5), r"rho is 0\.5, expected 1 <= rho"),
    ],
)
def test_sizes_and_ratios_out_of_range_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        choose(*arguments)


def test_more_memory_than_there_is_is_refused_with_numbers() -> None:
    needed = factor_bytes(14336, 4096, 2823)
    assert 6e9 < needed < 12e9
    require_memory(14336, 4096, 2823, needed)
    with pytest.raises(ResourceError, match=r"down: .* takes about .* GB .*, 2\.00 GB are"):
        require_memory(14336, 4096, 2823, 2 * 10**9, name="down")
