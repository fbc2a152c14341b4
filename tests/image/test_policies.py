"""Each policy's rule against numbers worked out elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from edgert.errors import RequestError
from edgert.image.guidance import Guidance
from edgert.image.loop import Caching, sample
from edgert.image.policies import (
    POLICIES,
    Context,
    EasyCache,
    FirstBlock,
    Fixed,
    MagCache,
    NoCache,
    Plan,
    Policy,
    SeaCache,
    SenCache,
    TaylorLite,
    TeaCache,
    magcache,
    policy_of,
)  # fmt: skip
from edgert.image.policies.base import relative_l1
from edgert.image.policies.seacache import circulant, gain, sea_filter, wiener
from edgert.image.policies.teacache import POLYNOMIALS
from edgert.image.schedules import Array
from tests.closeness import assert_close
from tests.image.networks import Counted, flow_sampler, formula, latents
from tests.image.test_loop import Flat

HEIGHT = 32


def decisions(
    policy: Policy, features: Iterable[Array], *, total: int, b: float = 0.5
) -> list[bool]:
    """Whether each step is computed, for features [n, H, W, C] that were recorded."""
    policy.reset(Plan(np.linspace(1000, 1, total)))
    found = []
    for k, z in enumerate(features):
        ctx = Context(k, 1000.0 - k, b, z, mixture=(1 - b, b), feature=lambda z=z: z)  # type: ignore[misc]
        found.append(policy.decide(ctx))
        policy.observe(ctx, found[-1], z)
    return found


@pytest.mark.parametrize(
    ("sigma", "published"),
    [(0.9, "11.0783 10.2662 .024533"), (0.7, "1.83187 1.82218 .328596"),
     (0.5, "1.16322 1.16208 .744460"), (0.1, "1.00206 1.00205 .995904")],
)  # fmt: skip
def test_the_sea_gain_has_the_published_numbers(sigma: float, published: str) -> None:
    """At f = 0, at f = 1/32 and in the corner, to half a unit of the last digit."""
    g = gain(HEIGHT, HEIGHT, 1 - sigma, sigma)
    assert abs(g.mean() - 1) < 1e-6
    got = [g[0, 0], g[0, 1], g[HEIGHT // 2, HEIGHT // 2]]
    for value, digits in zip(got, published.split(), strict=True):
        decimals = len(digits.partition(".")[2])
        assert abs(value - float(digits)) <= 0.5 * 10**-decimals, (value, digits)


def test_the_sea_gain_at_the_ends_of_the_schedule() -> None:
    clean, noise = gain(HEIGHT, HEIGHT, 1 - 1e-6, 1e-6), gain(HEIGHT, HEIGHT, 1e-6, 1 - 1e-6)
    assert np.abs(clean - 1).max() < 1e-9
    assert abs(noise[0, 0] - 1024) < 0.05
    noise[0, 0] = 0
    assert noise.max() < 1e-5


def test_the_sea_gain_without_normalisation() -> None:
    axis = wiener(np.fft.fftfreq(HEIGHT), 0.5, 0.5)
    np.testing.assert_allclose([axis[0], axis[HEIGHT // 2]], [2, 1.6])
    np.testing.assert_allclose(gain(HEIGHT, HEIGHT, 0.5, 0.5, norm="none")[0, 0], 4)
    assert gain(HEIGHT, HEIGHT, 0.5, 0.5, norm="peak").max() == 1
    radial = gain(HEIGHT, HEIGHT, 0.5, 0.5, shape="radial", norm="none")
    np.testing.assert_allclose(radial[0, 3], wiener(np.array([3 / 32]), 0.5, 0.5)[0])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 12), (5, 5), (1, 9)])
def test_three_ways_to_filter_agree(height: int, width: int) -> None:
    z = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
    response = gain(height, width, 0.4, 0.6)
    spectrum = np.fft.fft2(z.astype(np.float64), axes=(1, 2)) * response[..., None]
    expected = np.fft.ifft2(spectrum, axes=(1, 2)).real
    assert_close("rfft", expected, sea_filter(z, response), rms=1e-5)
    context = Context(0, 1.0, 0.6, z, mixture=(0.4, 0.6), feature=lambda: z)
    assert_close("matrices", expected, SeaCache().signal(context), rms=1e-5)
    np.testing.assert_allclose(
        circulant(7, 0.4, 0.6, 2.0, "mean").sum(1), gain(7, 1, 0.4, 0.6)[0, 0]
    )


def test_a_constant_picture_is_multiplied_by_the_gain_at_zero() -> None:
    g = gain(8, 8, 0.3, 0.7)
    np.testing.assert_allclose(sea_filter(np.ones((1, 8, 8, 2)), g), g[0, 0])


def test_the_filter_is_the_best_linear_estimate() -> None:
    """Of a Gaussian field whose spectrum is the assumed one: 10 % more or less gain is worse."""
    n, a, b, numbers = 64, 0.6, 0.4, np.random.default_rng(0)
    f = np.fft.fftfreq(n)
    power = 1 / (np.abs(f) ** 2 + 1e-16)
    power[0] = 0.0  # its variance at f = 0 would hide all else
    white = np.fft.fft(numbers.standard_normal((4000, n)))
    x0 = np.fft.ifft(white * np.sqrt(power)).real
    noisy = np.fft.fft(a * x0 + b * numbers.standard_normal((4000, n)))
    error = lambda g: float(np.mean((np.fft.ifft(noisy * g).real - x0) ** 2))
    best = wiener(f, a, b)
    assert error(best) < error(best * 1.1)
    assert error(best) < error(best * 0.9)
    assert error(best) < error(best * np.where(np.abs(f) > 0.2, 1.1, 1.0))
    assert error(best) < error(best * np.where(np.abs(f) > 0.2, 0.9, 1.0))


def features(total: int, seed: int = 0, side: int = 8, channels: int = 4) -> list[Array]:
    """Token grids around 1 that change by white noise."""
    numbers = np.random.default_rng(seed)
    z = np.ones((1, side, side, channels), np.float32)
    found = []
    for _ in range(total):
        z = z + np.float32(numbers.uniform(0.05, 0.3)) * numbers.standard_normal(
            z.shape, np.float32
        )
        found.append(z)
    return found


def test_sea_cache_without_a_filter_is_tea_cache_with_the_identity() -> None:
    zs = features(40)
    tea = decisions(TeaCache(delta=0.4), zs, total=40)
    assert tea == decisions(SeaCache(delta=0.4, shape="unit"), zs, total=40)
    assert 2 < sum(tea) < 40
    assert tea != decisions(SeaCache(delta=0.4), zs, total=40, b=0.8)


def test_every_eighth_channel_decides_alike() -> None:
    """In at least 98 % of the steps (spec 3.2)."""
    same, total = 0, 0
    for seed in range(3):
        zs = features(50, seed, side=16, channels=1152)
        every = decisions(SeaCache(delta=0.4), zs, total=50)
        some = decisions(SeaCache(delta=0.4, channel_stride=8), zs, total=50)
        same, total = same + sum(a == b for a, b in zip(every, some, strict=True)), total + 50
    assert same / total >= 0.98


def test_a_change_of_nothing_is_zero() -> None:
    z = np.zeros((2, 4, 4, 1), np.float32)
    assert (relative_l1(z, z) == 0).all()
    assert (relative_l1(z + 3, z + 3) == 0).all()
    assert sum(decisions(TeaCache(delta=0.1), [z[:1] + 1] * 10, total=10)) == 2  # the ends


@pytest.mark.parametrize("name", sorted(set(POLYNOMIALS) - {"identity"}))
def test_polynomials_are_evaluated_as_horner_does(name: str) -> None:
    policy = TeaCache(polynomial=POLYNOMIALS[name])
    for rho in (0.0, 0.01, 0.05, 0.1, 0.3):
        horner = 0.0
        for coefficient in POLYNOMIALS[name]:
            horner = horner * rho + coefficient
        np.testing.assert_allclose(policy.increment(np.array([rho]))[0], horner, rtol=1e-12)


def test_tea_cache_by_hand() -> None:
    """ρ = .1 each step: acc .1, .2, .3 -> at .3 it computes and begins again."""
    zs = [np.full((1, 2, 2, 1), 1.1**k) for k in range(10)]
    expected = [True, False, False, True, False, False, True, False, False, True]
    assert decisions(TeaCache(delta=0.25), zs, total=10) == expected


def mag(gammas: list[float], total: int, **settings: Any) -> list[bool]:
    zs = [np.ones((1, 1, 1, 1))] * total
    return decisions(MagCache(gammas=gammas, **settings), zs, total=total)


def test_mag_cache_by_hand() -> None:
    """A 1.1, 1.21 -> E .1, .31; with delta .3 the second is computed. Then .9, .81 -> .1, .29."""
    gammas = [1.0, 1.1, 1.1, 0.9, 0.9, 1.0, 1.0]
    got = mag(gammas, 7, delta=0.3, most=3, retain=0.0)
    assert got == [True, False, True, False, False, True, True]


def test_mag_cache_without_loss_is_limited_by_its_cap() -> None:
    assert mag([1.0] * 21, 21, most=4, retain=0.0) == [k % 5 == 0 for k in range(21)]
    warm = mag([1.0] * 21, 21, most=4, retain=0.2)
    assert warm[:4] == [True] * 4
    assert warm[4:9] == [False] * 4 + [True]
    assert mag([1.0] * 28, 28, most=4, retain=0.0, never=(11,))[11]


def test_mag_cache_takes_other_numbers_of_steps() -> None:
    expected = [0, 1, 3, 4, 6, 7, 9, 10, 11, 13, 14, 16, 17, 18, 20, 21, 23, 24, 26, 27]
    assert magcache.nearest(28, 20).tolist() == expected
    assert len(magcache.FLUX) == 28


def test_fixed_spreads_any_number_of_evaluations() -> None:
    for count in (21, 24, 25, 33):
        got = sample(
            Counted().model, flow_sampler(50), latents(),
            caching=Caching(policy=Fixed(evaluations=count)),
        )  # fmt: skip
        gaps = np.diff(np.flatnonzero(got.computed[:, 0, 0]))
        assert got.evaluations == count
        assert gaps.max() - gaps.min() <= 1
    half = [np.ones((1, 1, 1, 1))] * 7
    assert decisions(Fixed(interval=2), half, total=7) == [True, False] * 3 + [True]
    assert decisions(Fixed(interval=4), half, total=7)[-1]


def test_taylor_lite_follows_its_schedule() -> None:
    got = decisions(TaylorLite(), [np.ones((1, 1, 1, 1))] * 20, total=20)
    assert "".join("c" if c else "." for c in got) == "cccccc..c..c..c..ccc"


def test_taylor_lite_is_exact_for_outputs_that_are_linear_in_the_step() -> None:
    sampler, x = flow_sampler(20), latents().astype(np.float64)
    step_of = {float(t): k for k, t in enumerate(sampler.timesteps)}
    network = formula(lambda x, t: np.full_like(x, 0.3 - 0.05 * step_of[t]))
    expected = sample(network, sampler, x).x
    got = sample(network, sampler, x, caching=Caching(policy=TaylorLite()))
    assert got.evaluations == 12
    np.testing.assert_allclose(got.x, expected, rtol=1e-12)
    held = sample(network, sampler, x, caching=Caching(policy=Fixed(interval=2), mode="output"))
    assert np.abs(held.x - expected).max() > 1e-3


def test_sen_cache_bounds_change_by_its_table() -> None:
    policy = SenCache(table=Flat(2.0, 0.01), epsilon=1.0)
    policy.reset(Plan(np.linspace(1000, 1, 50)))
    x = np.zeros((2, 4), np.float32)
    policy.observe(Context(20, 600.0, 0.6, x), True, x)
    moved = np.stack([np.full(4, 0.1), np.full(4, 0.3)]).astype(np.float32)
    got = policy.score(Context(21, 580.0, 0.58, moved))
    assert math.isclose(got, 2.0 * 0.3 + 0.01 * 20, rel_tol=1e-6)  # the worse of the two


def test_sen_cache_is_blind_to_size() -> None:
    """Four times the latent, the same S."""
    scores = []
    for times in (1, 4):
        policy = SenCache(table=Flat(), epsilon=1.0)
        policy.reset(Plan(np.linspace(1000, 1, 50)))
        x = np.tile(latents(), (1, 1, times, times))
        policy.observe(Context(10, 900.0, 0.9, x), True, x)
        scores.append(policy.score(Context(11, 880.0, 0.88, x * np.float32(1.25))))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)


def test_sen_cache_computes_when_its_score_is_no_number() -> None:
    policy = SenCache(table=Flat(), epsilon=math.inf, epsilon_start=math.inf)
    policy.reset(Plan(np.linspace(1000, 1, 50)))
    x = np.ones((1, 4), np.float32)
    policy.observe(Context(10, 900.0, 0.9, x), True, x)
    for bad in (math.nan, math.inf):
        assert policy.decide(Context(11, 880.0, 0.88, x * np.float32(bad)))
    assert not policy.decide(Context(11, 880.0, 0.88, x))


def test_guided_tolerances_are_divided_by_guidance() -> None:
    assert Guidance(scale=7.5).amplification == 14
    policy = SenCache(table=Flat(1.0, 0.0), epsilon=1.0, epsilon_start=1.0, guided=True)
    policy.reset(Plan(np.linspace(1000, 1, 50), amplification=14))
    x = np.ones((1, 4), np.float32)
    policy.observe(Context(10, 900.0, 0.9, x), True, x)
    assert policy.decide(Context(11, 880.0, 0.88, x + np.float32(0.1)))
    assert not policy.decide(Context(11, 880.0, 0.88, x + np.float32(0.05)))


def test_easy_cache_by_hand() -> None:
    """K = 2 from two computed steps; then E = 2·|x - x_r|/|y_r| grows until tau."""
    policy = EasyCache(tau=0.5, begin=0.0, end=1.0)
    policy.reset(Plan(np.linspace(1000, 1, 10)))
    one = np.ones((1, 4))
    for k, (x, y) in enumerate(((1.0, 1.0), (2.0, 3.0))):
        ctx = Context(k, 1.0, 1.0, x * one)
        assert policy.decide(ctx)
        policy.observe(ctx, True, y * one)
    found = []
    for k, x in enumerate((2.3, 2.35, 2.4), start=2):  # E = .2, .433, .7
        ctx = Context(k, 1.0, 1.0, x * one)
        found.append(policy.decide(ctx))
        policy.observe(ctx, found[-1], one)
    assert found == [False, False, True]


def test_first_block_compares_with_the_last_computed_step() -> None:
    zs = [np.full((1, 2, 2, 1), v) for v in (1.0, 1.04, 1.06, 1.1, 1.12, 9.0)]
    got = decisions(FirstBlock(tau=0.05), zs, total=6)
    assert got == [True, False, True, False, True, True]


def test_policies_are_found_by_name() -> None:
    table = Flat()
    for name in POLICIES:
        given = policy_of(name, table=table, gammas=[1.0, 1.0])
        assert given.name == name
    assert isinstance(policy_of("auto", table=table, epsilon=0.3), SenCache)
    assert isinstance(policy_of("auto", epsilon=0.3), EasyCache)
    assert isinstance(policy_of("none"), NoCache)
    for name, settings, words in (
        ("best", {}, "expected auto or one of none, fixed"),
        ("sencache", {}, "sencache has no table"),
        ("magcache", {}, "magcache has no gammas"),
        ("teacache", {"delat": 1}, "teacache has no setting 'delat'"),
    ):
        with pytest.raises(RequestError, match=words):
            policy_of(name, **settings)
    for bad in (math.nan, -1.0):
        with pytest.raises(RequestError, match="epsilon is"):
            SenCache(table=table, epsilon=bad)
    with pytest.raises(RequestError, match="gammas"):
        MagCache(gammas=[1.0, math.nan])
    with pytest.raises(RequestError, match="interval 0"):
        Fixed(interval=0)


@pytest.mark.slow
def test_a_decision_is_quick() -> None:
    """Limits are for busy machines, where BLAS's threads wait for each other."""
    x = np.random.default_rng(0).standard_normal((1, 4, 64, 64)).astype(np.float32)
    z = np.random.default_rng(0).standard_normal((1, 32, 32, 1152)).astype(np.float32)
    cases: list[tuple[Policy, float]] = [
        (SenCache(table=Flat(), epsilon=1e9, most=99), 1e-3), (EasyCache(tau=1e9), 2e-3),
        (MagCache(gammas=[1.0] * 50), 1e-3), (TeaCache(), 50e-3), (SeaCache(), 250e-3),
        (SeaCache(channel_stride=8), 100e-3),
    ]  # fmt: skip
    for policy, limit in cases:
        policy.reset(Plan(np.linspace(1000, 1, 50)))
        taken = []
        for k in range(10, 16):
            ctx = Context(k, 900.0, 0.5, x, mixture=(0.5, 0.5), feature=lambda: z)
            begin = time.perf_counter()
            policy.decide(ctx)
            policy.observe(ctx, k < 12, x)
            if k > 11:  # after the steps that are computed whatever x is
                taken.append(time.perf_counter() - begin)
        print(f"{policy.name}: {min(taken) * 1e6:.0f} µs")
        assert min(taken) < limit
