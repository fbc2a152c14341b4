"""Intervals: they hold as often as they say, with bursts that are alike and many looks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgert.budget.statistics import (
    alpha_at,
    binomial_cdf,
    design_effect,
    is_look,
    quantile_band,
    ranks,
    shift_band,
)


def test_the_binomial_distribution() -> None:
    assert binomial_cdf(2, 4, 0.5) == pytest.approx(11 / 16)
    assert (binomial_cdf(-1, 4, 0.5), binomial_cdf(4, 4, 0.5)) == (0.0, 1.0)


def test_ranks_of_a_median_are_those_of_the_tables() -> None:
    assert ranks(10, 0.5, 0.05) == (2, 9)  # Conover, Practical Nonparametric Statistics
    assert ranks(5, 0.5, 0.05) == (0, 6)  # five values do not bound a median


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_intervals_hold_the_quantile(q: float) -> None:
    rng, missed = np.random.default_rng(0), 0
    truth = -math.log(1 - q)
    for _ in range(300):
        bursts = [rng.exponential(size=16) for _ in range(20)]
        band = quantile_band(bursts, q)
        missed += not band.low <= truth <= band.high
    assert missed <= 0.08 * 300


def test_bursts_that_are_alike_count_as_fewer() -> None:
    rng = np.random.default_rng(0)
    alone = [rng.normal(size=16) for _ in range(30)]
    alike = [rng.normal() + 0.1 * rng.normal(size=16) for _ in range(30)]
    assert design_effect(alone, 0.5) < 2 < 8 < design_effect(alike, 0.5)
    missed = 0
    for _ in range(200):
        bursts = [rng.normal() + 0.1 * rng.normal(size=16) for _ in range(30)]
        band = quantile_band(bursts, 0.5)
        missed += not band.low <= 0 <= band.high
    assert missed <= 0.1 * 200


def test_looks_spend_no_more_than_there_is() -> None:
    looks = [n for n in range(1, 2000) if is_look(n)]
    assert looks[:5] == [4, 5, 7, 9, 12]
    assert [is_look(n) for n in looks] == list(range(1, len(looks) + 1))
    assert sum(map(alpha_at, range(1, 1000))) < 0.05


def test_sequential_looks_are_seldom_wrong() -> None:
    """The limit is the true median: each verdict on it is a wrong one."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        bursts = []
        for count in range(1, 60):
            bursts.append(rng.normal(size=8))
            if look := is_look(count):
                band = quantile_band(bursts, 0.5, alpha_at(look))
                if band.high <= 0 or band.low > 0:
                    wrong += 1
                    break
    assert wrong <= 0.06 * 200


def test_a_shift_is_found_and_noise_is_none() -> None:
    rng = np.random.default_rng(0)
    then = np.exp(0.1 * rng.normal(size=30))
    band = shift_band(1.3 * np.exp(0.1 * rng.normal(size=30)), then)
    assert 1.15 < band.low < 1.3 < band.high < 1.5
    missed = 0
    for _ in range(200):
        a, b = (np.exp(0.3 * rng.standard_t(3, size=15)) for _ in range(2))
        band = shift_band(a, b)
        missed += not band.low <= 1 <= band.high
    assert missed <= 0.08 * 200
    assert shift_band(then[:2], then[:2]).high == math.inf
