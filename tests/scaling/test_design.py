"""Designs of evaluations, and the probe for contamination."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgert.errors import RequestError
from edgert.scaling.contamination import probe_contamination
from edgert.scaling.design import (
    _Greedy,
    chosen_of,
    design_evaluations,
    jacobian,
    nominal,
)
from edgert.scaling.frontier import fit_frontier
from edgert.scaling.loss import sigmoid

from .board import F64, leaderboard

scipy = pytest.importorskip("scipy")
TRUE = (0.1, 0.6, 2.0, math.log(1.5))


def pool(seed: int, n: int = 1000) -> tuple[F64, F64, F64, F64]:
    """z, scores, base numbers, costs."""
    z, y, groups = leaderboard(seed, n)
    cost = 10 ** (z / 2) * np.random.default_rng(seed + 7).lognormal(0, 0.3, n)
    return z, y, groups, cost


def test_the_inverse_follows_its_updates() -> None:
    z, _, _, cost = pool(0)
    rows = jacobian(TRUE, z)
    greedy = _Greedy(z, rows, np.ones(len(z)), cost, 1e18, 1e-3, TRUE)
    greedy.inverse = np.eye(4) / 1e-6
    rng = np.random.default_rng(0)
    for index in rng.permutation(len(z))[:200]:
        before, gains = greedy.value(), greedy.gains()
        greedy.add(int(index))
        assert greedy.value() - before == pytest.approx(gains[index], rel=1e-5, abs=1e-9)
    chosen = rows[greedy.chosen]
    direct = np.linalg.inv(1e-6 * np.eye(4) + chosen.T @ chosen)
    assert greedy.inverse == pytest.approx(direct, rel=1e-8)


@pytest.mark.parametrize("criterion", ["I", "D"])
def test_a_budget_is_kept(criterion: str) -> None:
    z, _, _, cost = pool(1, 300)
    for share in (0.0, 0.05, 0.3, 1.0):
        found = design_evaluations(z, cost, share, criterion=criterion)
        assert found.cost <= share * cost.sum() * (1 + 1e-9)
        assert len(set(found.chosen)) == len(found.chosen)
        assert found.cost == pytest.approx(cost[list(found.chosen)].sum())
    assert design_evaluations(z, cost, 0.0).chosen == ()
    assert len(design_evaluations(z, cost, 1.0).chosen) == len(z)
    assert chosen_of(design_evaluations(z[:3], cost[:3], 1.0), "abc") != []


def test_a_design_without_a_pilot_stands_in_the_range() -> None:
    z = np.linspace(21, 25, 50)
    assert nominal(z)[2] == 23
    assert design_evaluations(z, np.ones(50), 0.2, items=100).chosen


@pytest.mark.parametrize(("cost", "share"), [([1, 0], 0.5), ([1], 0.5), ([1, 1], 1.5)])
def test_what_is_no_pool_is_refused(cost: list[float], share: float) -> None:
    with pytest.raises(RequestError, match="expected as many positive costs"):
        design_evaluations([1, 2], cost, share)


def test_a_design_beats_chance() -> None:
    """Mean of 8 pools at 20 % of the cost: I-optimal at most 0.85 of random, which stops where the
    next does not fit."""
    grid = np.linspace(0.2, 3.8, 60)
    errors: dict[str, list[float]] = {"design": [], "random": []}
    for seed in range(8):
        z, y, groups, cost = pool(seed)
        whole = fit_frontier(z, y, groups, fast=True, conformal=False).at(grid)
        order = np.random.default_rng(seed).permutation(len(z))
        fits = np.cumsum(cost[order]) <= 0.2 * cost.sum()
        picks = {
            "design": list(design_evaluations(z, cost, 0.2, theta=TRUE).chosen),
            "random": list(order[fits]),
        }
        for name, chosen in picks.items():
            part = fit_frontier(z[chosen], y[chosen], groups[chosen], fast=True, conformal=False)
            errors[name].append(float(np.abs(part.at(grid) - whole).mean()))
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    print({name: round(value, 4) for name, value in means.items()})
    assert means["design"] <= 0.85 * means["random"]


def simulated(seed: int, shift: float, n: int = 90) -> tuple[F64, F64, F64]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, n)
    late = rng.random(n) < 0.5
    y = -1 + 0.8 * x + shift * late + rng.normal(0, 0.7, n)
    return sigmoid(x), sigmoid(y), late


def test_without_contamination_p_is_uniform() -> None:
    from scipy.stats import kstest

    found = [probe_contamination(*simulated(s, 0.0), permutations=200).p for s in range(200)]
    assert kstest(found, "uniform").pvalue > 0.01


def test_contamination_is_found() -> None:
    found = [probe_contamination(*simulated(s, 1.0), permutations=200) for s in range(60)]
    assert np.mean([f.p is not None and f.p < 0.05 for f in found]) >= 0.95
    assert np.mean([f.shift for f in found if f.shift is not None]) == pytest.approx(1.0, abs=0.1)


def test_the_shift_is_that_of_least_squares() -> None:
    known, suspect, late = simulated(3, 0.5)
    from edgert.scaling.loss import logit

    x, y = logit(known), logit(suspect)
    low = max(x[late].min(), x[~late].min())
    high = min(x[late].max(), x[~late].max())
    both = (x >= low) & (x <= high)
    design = np.stack([np.ones(both.sum()), x[both], late[both]], axis=1)
    wanted = np.linalg.lstsq(design, y[both], rcond=None)[0][2]
    assert probe_contamination(known, suspect, late).shift == pytest.approx(wanted)


def test_too_few_models_say_nothing() -> None:
    found = probe_contamination([0.1] * 8, [0.2] * 8, [True] * 8)
    assert (found.p, found.before, found.after) == (None, 0, 8)
