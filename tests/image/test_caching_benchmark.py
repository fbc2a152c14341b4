"""The statistics of `benchmarks.image_caching`: figures of pictures, intervals, evaluations."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import image_measures as measures
from benchmarks import image_methods as methods
from edgert.image.policies import Fixed, MagCache, TaylorLite


def flat(value: int) -> np.ndarray:
    return np.full((32, 24, 3), value, np.uint8)


def test_psnr_of_a_constant_error_is_its_formula() -> None:
    assert measures.psnr(flat(100), flat(110)) == pytest.approx(20 * np.log10(255 / 10))
    assert measures.psnr(flat(7), flat(7)) == measures.HIGHEST_PSNR


def test_ssim_of_flat_pictures_is_their_ratio_of_light() -> None:
    x, y = 100 / 255, 150 / 255
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert measures.ssim(flat(100), flat(150)) == pytest.approx(expected, abs=1e-9)


def test_ssim_weighs_windows_by_a_gaussian() -> None:
    """One bright pixel in the middle of 11 x 11: one window, whose moments are written out."""
    picture = np.zeros((11, 11, 3), np.uint8)
    picture[5, 5] = 255
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / 4.5)
    weight = (line[5] / line.sum()) ** 2  # of the pixel
    c1, c2 = 1e-4, 9e-4
    mean, variance = weight, weight - weight**2
    expected = (c1 / (mean**2 + c1)) * (c2 / (variance + c2))
    assert measures.ssim(picture, np.zeros_like(picture)) == pytest.approx(expected, rel=1e-9)
    assert measures.ssim(picture, picture) == pytest.approx(1)


def test_relative_l2_is_a_share_of_the_reference() -> None:
    assert measures.relative_l2(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)


def test_the_bootstraps_interval_is_that_of_a_mean() -> None:
    """Near to mean ± 1.96 deviations of it for many samples; a shift moves it along."""
    x = np.random.default_rng(3).normal(0.5, 2, 400)
    low, high = measures.bootstrap(x)
    half = 1.96 * x.std() / 20
    assert low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(x.mean() + half, abs=0.1 * half)
    assert measures.bootstrap(x + 1) == pytest.approx((low + 1, high + 1))
    assert measures.bootstrap(np.full(9, 2.0)) == (2, 2)


def test_the_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    numbers, held = np.random.default_rng(4), 0
    for seed in range(200):
        low, high = measures.bootstrap(numbers.normal(1, 1, 60), draws=1000, seed=seed)
        held += low <= 1 <= high
    assert 180 <= held <= 198


def test_equal_values_share_their_rank() -> None:
    assert measures.ranks(np.array([5.0, 1, 5, 9])).tolist() == [1.5, 0, 1.5, 3]
    linear, ranked = measures.correlations(np.array([1.0, 2, 3, 4]), np.array([1.0, 4, 9, 16]))
    assert ranked == pytest.approx(1)
    assert 0.9 < linear < 1
    assert measures.correlations(np.ones(4), np.arange(4.0)) == (0, 0)


@pytest.mark.parametrize("wanted", [21, 25, 26])
def test_fixed_computes_as_many_steps_as_wanted_evenly(wanted: int) -> None:
    policy = Fixed(evaluations=wanted)
    assert methods.counted(policy, 50) == wanted
    policy.reset(methods.Plan(np.zeros(50), 0, 50))
    at = sorted(policy._computed)
    assert (at[0], at[-1]) == (0, 49)
    assert set(np.diff(at)) <= {1, 2, 3}
    assert np.ptp(np.diff(at)) == 1


@pytest.mark.parametrize("wanted", [21, 25, 32])
def test_the_warm_control_computes_the_first_fifth_and_then_evenly(wanted: int) -> None:
    policy = methods.Warm(evaluations=wanted)
    assert methods.counted(policy, 50) == wanted
    policy.reset(methods.Plan(np.zeros(50), 0, 50))
    at = sorted(policy._computed)
    assert at[:10] == list(range(10))
    assert at[-1] == 49
    assert np.ptp(np.diff(at[9:])) <= 1


def test_an_interval_of_two_takes_twenty_six_of_fifty() -> None:
    assert methods.counted(Fixed(interval=2), 50) == 26


@pytest.mark.parametrize("target", [21, 25])
def test_taylor_schedules_take_the_target(target: int) -> None:
    found = list(methods._lines(target, 50))
    assert len(found) > 3
    for one in found:
        assert isinstance(one.policy, TaylorLite)
        assert methods.counted(one.policy, 50) == target


def test_a_curve_is_read_where_it_meets_the_target() -> None:
    logs = np.log(methods.GRID)
    curve = 30 - 10 * (logs - logs[0]) / (logs[-1] - logs[0])
    assert methods.between(curve, 25) == pytest.approx(np.exp((logs[0] + logs[-1]) / 2))


def test_a_threshold_is_corrected_on_real_runs() -> None:
    """Replays that say two evaluations too few: the second run meets the target."""
    logs = np.log(methods.GRID)
    curve = 50 - 40 * (logs - logs[0]) / (logs[-1] - logs[0])
    asked = list[float]()

    def trial(one: methods.Candidate) -> tuple[float, float]:
        assert isinstance(one.policy, MagCache)
        asked.append(one.policy.delta)
        return float(np.interp(np.log(one.policy.delta), logs, curve)) + 2, 30.0

    start = methods.Candidate(MagCache(gammas=[1.0] * 50), key="x")
    found = methods.tuned(start, 25, curve, trial)
    assert len(asked) == found.tried == 2
    assert found.evaluations == pytest.approx(25, abs=1e-6)
