"""How a model's budget is divided among its matrices."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from edgert.converters.compress.allocate import Spectrum, allocate, solve, spectrum

from edgert.errors import ConvertError

from .data import rotation

SHAPES = [(192, 192), (192, 128), (192, 512), (512, 192)]


@functools.cache
def weights(count: int = 12, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Matrices whose spectra fall off at different rates."""
    draw = np.random.default_rng(seed)
    made = []
    for place in range(count):
        m, n = SHAPES[place % len(SHAPES)]
        side = min(m, n)
        falls = np.arange(1, side + 1) ** -draw.uniform(0.1, 1.2)
        made.append((rotation(m, draw)[:, :side] * falls) @ rotation(n, draw)[:side])
    return tuple(made)


@functools.cache
def mixed() -> tuple[Spectrum, ...]:
    return tuple(spectrum(w) for w in weights())


def total(spectra: Sequence[Spectrum]) -> int:
    return sum(16 * each.m * each.n for each in spectra)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.4, 0.6])
def test_the_integer_total_is_within_a_hair_of_the_budget(ratio: float, align: bool) -> None:
    spectra = mixed()
    found = allocate(spectra, ratio, align=align)
    budget = (1 - ratio) * total(spectra)
    assert 0.998 * budget <= found.bits <= budget
    for aim, dims in zip(found.ratios, found.dims, strict=True):
        assert aim == 0 or max(0, ratio - 0.2) <= aim <= min(0.9, ratio + 0.2)
        assert (aim == 0) <= (dims.form == "dense")
    assert max(found.ratios) - min(found.ratios) > 0.1


def test_equal_matrices_get_equal_ratios() -> None:
    made = weights(4)
    found = allocate([spectrum(w) for w in [*made, *made]], 0.3)
    assert found.ratios[:4] == found.ratios[4:]
    same = allocate([spectrum(made[0])] * 8, 0.3)
    assert len(set(same.ratios)) == 1
    assert same.ratios[0] == pytest.approx(0.3, abs=0.01)
    flat = allocate([spectrum(rotation(192, np.random.default_rng(0)))] * 8, 0.3)
    assert len(set(flat.ratios)) == 1


@pytest.mark.parametrize("scale", [1000.0, 1e-30, 1e30])
def test_the_scale_of_a_matrix_does_not_matter(scale: float) -> None:
    before = allocate(mixed(), 0.3)
    scaled = spectrum(weights()[2] * scale)
    after = allocate([*mixed()[:2], scaled, *mixed()[3:]], 0.3)
    assert after.dims == before.dims
    np.testing.assert_allclose(after.ratios, before.ratios, atol=1e-9)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_a_matrix_of_rank_one_is_cut_to_the_limit(ratio: float) -> None:
    draw = np.random.default_rng(0)
    product = np.outer(draw.standard_normal(192), draw.standard_normal(256))
    found = allocate([*mixed(), spectrum(product)], ratio)
    assert found.ratios[-1] == pytest.approx(min(0.9, ratio + 0.2))
    assert max(found.ratios) == found.ratios[-1]


def test_the_rule_meets_the_mean_exactly_and_prefers_slow_spectra() -> None:
    spectra = mixed()
    sizes = np.array([each.m * each.n for each in spectra])
    for ratio in (0.05, 0.3, 0.7):
        found = np.array(solve(spectra, ratio, (max(0, ratio - 0.2), ratio + 0.2), 1))
        assert found @ sizes == pytest.approx(ratio * sizes.sum(), rel=1e-3)
    draw = np.random.default_rng(0)
    left, right = rotation(192, draw), rotation(192, draw)
    slow, fast = (spectrum((left * np.arange(1.0, 193) ** -power) @ right) for power in (0.1, 1.0))
    kept, cut = allocate([slow, fast], 0.3).ratios
    assert kept < 0.3 < cut


def test_nothing_to_remove_leaves_all_dense() -> None:
    found = allocate([spectrum(w) for w in weights(4)], 0.0)
    assert all(dims.form == "dense" for dims in found.dims)


def test_a_zero_matrix_is_cut_to_the_limit() -> None:
    found = allocate([spectrum(np.zeros((192, 192))), *map(spectrum, weights(4))], 0.3)
    assert found.ratios[0] == pytest.approx(0.5)


def test_small_matrices_stay_dense_and_the_others_pay() -> None:
    spectra = [*mixed(), spectrum(np.random.default_rng(0).standard_normal((192, 64)))]
    found = allocate(spectra, 0.3)
    assert (found.ratios[-1], found.dims[-1].form) == (0.0, "dense")
    assert 0.998 * 0.7 * total(spectra) <= found.bits <= 0.7 * total(spectra)


def test_a_budget_that_cannot_be_met_is_refused() -> None:
    small = [spectrum(np.random.default_rng(0).standard_normal((64, 64)))] * 3
    with pytest.raises(ConvertError, match="the model takes 196608 bits, expected 137625"):
        allocate(small, 0.3)
    with pytest.raises(ConvertError, match="no matrices"):
        allocate([], 0.3)
    with pytest.raises(ConvertError, match=r"ratio is 1\.5"):
        allocate(small, 1.5)
    with pytest.raises(ConvertError, match="q_proj holds 1 values that are NaN"):
        spectrum(np.array([[1.0, np.nan]]), name="q_proj")
