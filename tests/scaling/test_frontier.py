"""Frontiers: gradients, bounds, bins, splines, and the synthetic leaderboard's headline."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgert.errors import RequestError
from edgert.scaling.bins import counts_of, edges_of, index_of
from edgert.scaling.classes import Binwise, Constant, ISpline, best_constant, i_splines, m_splines
from edgert.scaling.evaluate import drift, evaluate_frontier, score
from edgert.scaling.frontier import PRIOR, Frontier, fit_frontier, objective, sandwich
from edgert.scaling.loss import pinball, pinball_slope

from .board import leaderboard, truth

scipy = pytest.importorskip("scipy")
GRID = np.linspace(0.05, 3.95, 200)


def test_the_gradient_is_the_slope() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.uniform(0, 4, 200), rng.uniform(0, 1, 200)
    for kappa in (10.0, 50.0, 200.0):
        theta = np.array([0.2, 0.5, 1.7, 0.4])
        _, gradient = objective(theta, z, y, 0.98, kappa, 1e-3)
        for i in range(4):
            step = np.zeros(4)
            step[i] = 1e-6
            up, down = (objective(theta + s, z, y, 0.98, kappa, 1e-3)[0] for s in (step, -step))
            assert gradient[i] == pytest.approx((up - down) / 2e-6, abs=1e-6)


def test_the_loss_is_a_smoothed_pinball() -> None:
    zero = np.zeros(1)
    assert pinball(zero, 0.98, 50.0)[0] == pytest.approx(math.log(2) / 50)
    u = np.linspace(-1, 1, 2001)
    exact = np.where(u > 0, 0.98 * u, -0.02 * u)
    assert np.abs(pinball(u, 0.98, 1e4) - exact).max() <= 7e-5
    slopes = (pinball(u + 1e-6, 0.98) - pinball(u - 1e-6, 0.98)) / 2e-6
    assert pinball_slope(u, 0.98, 50.0) == pytest.approx(slopes, abs=1e-6)


def test_smoothing_lifts_a_constant() -> None:
    assert best_constant(np.full(50, 0.5), 0.98, 50.0) == pytest.approx(0.577836, abs=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_a_fit_rises_and_stays_in_bounds(seed: int) -> None:
    """50 data sets in all: ties, three points, scores all equal."""
    rng = np.random.default_rng(seed)
    sets = [
        (rng.uniform(0, 4, 80), rng.uniform(0, 1, 80)),
        (rng.integers(0, 4, 60).astype(float), rng.integers(0, 3, 60) / 2),
        (np.array([0.0, 1.0, 2.0]), rng.uniform(0, 1, 3)),
        (rng.uniform(20, 26, 40), np.full(40, rng.uniform(0, 1))),
        (np.repeat(rng.uniform(0, 4, 2), 20), np.clip(rng.normal(0.5, 1, 40), 0, 1)),
    ]
    for z, y in sets:
        frontier = fit_frontier(z, y, fast=True, conformal=False)
        q = frontier.at(np.linspace(z.min() - 1, z.max() + 1, 300))
        assert (np.diff(q) >= -1e-12).all()
        assert q.min() >= 0
        assert q.max() <= 1


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(RequestError, match="2 points at 2 values of compute"):
        fit_frontier([1, 2], [0.1, 0.2])
    with pytest.raises(RequestError, match="5 points at 1 values"):
        fit_frontier([1] * 5, [0.1] * 5)
    with pytest.raises(RequestError, match=r"scores from 0\.1 to 7"):
        fit_frontier([1, 2, 3], [0.1, 0.2, 7])
    with pytest.raises(RequestError, match="3 of z, 2 of y"):
        fit_frontier([1, 2, 3], [0.1, 0.2])
    with pytest.raises(RequestError, match="preset 'mine'"):
        fit_frontier([1, 2, 3], [0.1, 0.2, 0.3], preset="mine")


def test_bins_keep_equal_compute_together() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        z = rng.choice(rng.uniform(0, 4, rng.integers(2, 40)), rng.integers(60, 900))
        edges = edges_of(z)
        counts = counts_of(z, edges)
        assert counts.sum() == len(z)
        for value in np.unique(z):
            assert len(set(index_of(z[z == value], edges))) == 1
        assert counts.min() >= 30 or len(counts) == 1
        assert (edges[0], edges[-1]) == (z.min(), z.max())
    assert edges_of(np.full(9, 2.0)).tolist() == [2.0, 2.0]
    assert counts_of(np.full(9, 2.0), np.array([2.0, 2.0])).tolist() == [9]


def test_bins_cover_what_they_should() -> None:
    z, y, _ = leaderboard(0)
    model = Binwise(z, y, 0.98, 1e4)
    index = index_of(z, model.edges)
    for i in range(len(model.values)):
        mine = y[index == i]
        assert abs((mine <= model.values[i]).mean() - 0.98) <= 1.001 / len(mine) + 1e-9


def test_splines_rise_from_0_to_1() -> None:
    knots = np.array([0.0, 0.5, 1.7, 2.0, 4.0])
    z = np.linspace(-1, 5, 400)
    x = i_splines(z, knots)
    assert (np.diff(x, axis=0) >= -1e-9).all()
    assert (x[z < 0] == 0).all()
    assert x[z > 4] == pytest.approx(1.0, abs=1e-9)
    inside = np.linspace(0, 4, 20001)
    area = m_splines(inside, knots).mean(axis=0) * 4
    assert area == pytest.approx(np.ones(x.shape[1]), abs=1e-3)


# --- the synthetic leaderboard ----------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_our_preset_finds_the_frontier(seed: int) -> None:
    z, y, groups = leaderboard(seed)
    frontier = fit_frontier(z, y, groups, fast=True, conformal=False)
    error = np.abs(frontier.at(GRID) - truth(GRID)).max()
    coverage = float((y <= frontier.at(z)).mean())
    print(f"max error {error:.4f}, coverage {coverage:.4f}, b {math.exp(frontier.theta[3]):.3f}")
    assert error <= 0.03
    assert abs(coverage - 0.98) <= 0.01


def test_the_paper_s_preset_covers_too_much() -> None:
    z, y, groups = leaderboard(0)
    frontier = fit_frontier(z, y, groups, preset="paper", fast=True)
    coverage = float((y <= frontier.at(z)).mean())
    assert coverage >= 0.99
    assert np.abs(frontier.at(GRID) - truth(GRID)).max() > 0.03
    assert math.exp(frontier.theta[3]) < 1.0  # true: 1.5


@pytest.mark.slow  # 250 starts, each a problem of its own
def test_all_starts_are_no_worse_than_a_few() -> None:
    z, y, groups = leaderboard(0)
    few, all_ = (fit_frontier(z, y, groups, fast=f, conformal=False) for f in (True, False))
    assert all_.loss <= few.loss * 1.01
    assert np.abs(all_.at(GRID) - truth(GRID)).max() <= 0.03


def losses(seed: int) -> dict[str, float]:
    """Losses of the classes on a fresh draw. Bins are fitted by the pinball loss itself: smoothed
    ones gain from the noise that the smoothing adds, on data as noisy as these."""
    z, y, groups = leaderboard(seed)
    z2, y2, _ = leaderboard(100 + seed)
    kept = (z2 >= z.min()) & (z2 <= z.max())
    models = {
        "constant": Constant(y, 0.98), "binwise": Binwise(z, y, 0.98, 1e4),
        "sigmoid": fit_frontier(z, y, groups, preset="paper", fast=True),
        "ispline": ISpline(z, y, 0.98, 50.0, random_starts=0),
    }  # fmt: skip
    return {name: score(m, z2[kept], y2[kept], edges_of(z)).loss for name, m in models.items()}


def test_the_sigmoid_is_best_outside() -> None:
    found = [losses(seed) for seed in range(4)]
    loss = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    print({name: float(f"{value:.4g}") for name, value in loss.items()})
    assert loss["sigmoid"] <= 0.85 * loss["binwise"]
    assert loss["binwise"] <= loss["constant"]
    assert loss["ispline"] <= loss["constant"]


def test_a_frontier_that_moved_raises_the_alarm() -> None:
    z, y, groups = leaderboard(0)
    frontier = fit_frontier(z, y, groups, preset="paper", fast=True)
    z2, y2, _ = leaderboard(101, lift=0.06)
    kept = (z2 >= z.min()) & (z2 <= z.max())
    found = score(frontier, z2[kept], y2[kept], edges_of(z))
    print(f"signed coverage error {found.signed:.3f}")
    assert -0.12 < found.signed < -0.02
    assert drift(found.signed) == "advancing"
    assert (drift(0.01), drift(0.03)) == ("stable", "receding")


def test_rolls_over_periods() -> None:
    periods = {
        "P1": {"task": leaderboard(0, 400), "poor": (np.zeros(2), np.zeros(2), np.zeros(2))},
        "P2": {"task": leaderboard(1, 400), "poor": (np.zeros(2), np.zeros(2), np.zeros(2))},
        "P3": {"task": leaderboard(2, 400, lift=0.1)},
    }
    found = evaluate_frontier(periods, kinds=("constant", "sigmoid"), fast=True)
    status = {(r.task, r.train, r.kind): r.status for r in found.rolls}
    assert status["task", "P2", "sigmoid"] == "advancing"
    assert status["poor", "P1", "sigmoid"] == "insufficient"
    assert found.refit == ("task",)
    loss = {r.kind: r.outside.loss for r in found.rolls if r.outside and r.train == "P1"}
    assert loss["sigmoid"] < loss["constant"]
    assert found.means["sigmoid"]["loss"] > loss["sigmoid"]  # of what moved


def test_conformal_calibration_restores_coverage() -> None:
    z, y, groups = leaderboard(3)
    frontier = fit_frontier(z, y, groups, fast=True)
    z2, y2, _ = leaderboard(103, 4000)
    kept = (z2 >= z.min()) & (z2 <= z.max())
    assert abs(float((y2[kept] <= frontier.at(z2[kept])).mean()) - 0.98) <= 0.012


def test_the_bootstrap_s_band_holds_the_truth() -> None:
    z, y, groups = leaderboard(4)
    frontier = fit_frontier(z, y, groups, fast=True, bootstrap=30, conformal=False)
    low, middle, high = frontier.band(GRID)
    assert (low <= middle).all()
    assert (middle <= high).all()
    inside = ((low - 0.01 <= truth(GRID)) & (truth(GRID) <= high + 0.01)).mean()
    assert inside > 0.8
    spread = np.sqrt(np.diag(sandwich(frontier, z, y, 60)))
    assert (spread > 0).all()


def test_a_frontier_is_a_record() -> None:
    import msgspec

    again = msgspec.convert(msgspec.to_builtins(PRIOR), Frontier,
                            strict=False)  # fmt: skip
    assert again.theta == PRIOR.theta
    assert PRIOR.at(np.array([23.5]))[0] == pytest.approx(0.45)
    assert PRIOR.confidence.startswith("low")
