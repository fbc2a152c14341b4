"""The cached loop: what is computed, what is reused, and that nothing else changes."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

import numpy as np
import pytest

from edgert import notices
from edgert.errors import DeviceError, RequestError
from edgert.image.denoiser import Denoiser
from edgert.image.guidance import Guidance
from edgert.image.loop import Caching, sample
from edgert.image.policies import (
    FORA,
    EasyCache,
    FirstBlock,
    Fixed,
    MagCache,
    Policy,
    SeaCache,
    SenCache,
    TaylorLite,
    TeaCache,
)  # fmt: skip
from edgert.image.schedules import Run, sampler_of, start
from tests.image.networks import FLOW, Counted, flow_sampler, formula, latents
from tests.image.test_samplers import LCM, SD

GUIDED = Guidance(scale=3.0)


class Flat:
    """A table of equal sensitivities."""

    def __init__(self, alpha_x: float = 1.0, alpha_t: float = 1e-3) -> None:
        self.t = np.linspace(1000, 1, 50)
        self.alpha_x, self.alpha_t_rms = np.full(50, alpha_x), np.full(50, alpha_t)


def open_tolerance(most: int, **more: Any) -> SenCache:
    return SenCache(table=Flat(), epsilon=math.inf, epsilon_start=math.inf, most=most, **more)


EXACT: list[Policy] = [
    SenCache(table=Flat(), epsilon=0.0),
    SenCache(table=Flat(), epsilon=1.0, most=0),
    TeaCache(delta=0.0),
    SeaCache(delta=0.0),
    MagCache(gammas=[1.0] * 20, delta=0.0),
    EasyCache(tau=0.0),
    FirstBlock(tau=0.0),
    FORA(interval=1),
    Fixed(interval=1),
    TaylorLite(interval=1),
]


@pytest.mark.parametrize("policy", EXACT, ids=lambda policy: f"{policy.name}")
def test_a_threshold_of_zero_is_the_uncached_sampler_bit_for_bit(policy: Policy) -> None:
    sampler, x = flow_sampler(20), latents(2)
    plain, cached = Counted(), Counted()
    expected = sample(plain.model, sampler, x, guidance=GUIDED)
    got = sample(cached.model, sampler, x, guidance=GUIDED, caching=Caching(policy=policy))
    np.testing.assert_array_equal(expected.x, got.x)
    assert len(cached.bodies) == len(plain.bodies) == 20 * 2
    assert got.evaluations == 20


@pytest.mark.parametrize("mode", ["residual", "output"])
def test_storing_without_reuse_changes_no_bit(mode: Any) -> None:
    """Every step computed by a policy that could have reused it."""
    sampler, x = flow_sampler(20), latents(2)
    expected = sample(Counted().model, sampler, x, guidance=GUIDED)
    policy = SenCache(table=Flat(), epsilon=1e-30, epsilon_start=1e-30)
    caching = Caching(policy=policy, mode=mode)
    got = sample(Counted().model, sampler, x, guidance=GUIDED, caching=caching)
    assert got.evaluations == 20
    np.testing.assert_array_equal(expected.x, got.x)


def test_short_runs_are_not_cached(caplog: pytest.LogCaptureFixture) -> None:
    notices._shown.clear()
    sampler, network = flow_sampler(7), Counted()
    with caplog.at_level(logging.WARNING, "edgert"):
        got = sample(network.model, sampler, latents(), caching=Caching(policy=open_tolerance(3)))
    assert len(network.bodies) == 7
    assert "7 steps are too few" in caplog.text
    np.testing.assert_array_equal(got.x, sample(Counted().model, sampler, latents()).x)
    forced = Caching(policy=open_tolerance(3), forced=True)
    assert sample(network.model, sampler, latents(), caching=forced).evaluations < 7


def test_stochastic_runs_are_not_cached_unless_forced(caplog: pytest.LogCaptureFixture) -> None:
    notices._shown.clear()
    sampler = sampler_of(LCM, 10)
    for forced, expected in ((False, 10), (True, 4)):
        run = Run([1])
        x = start(sampler, (1, 3, 4, 6), run)
        caching = Caching(policy=open_tolerance(3), forced=forced)
        with caplog.at_level(logging.WARNING, "edgert"):
            got = sample(Counted().model, sampler, x, caching=caching, run=run)
        assert got.evaluations == expected
    assert "adds noise in every step" in caplog.text


@pytest.mark.parametrize(
    ("total", "most", "expected"),
    [(50, 1, 26), (50, 2, 18), (50, 3, 14), (50, 4, 11), (28, 1, 15), (28, 2, 10), (28, 3, 8),
     (28, 4, 7)],
)  # fmt: skip
def test_the_cap_alone_gives_so_many_evaluations(total: int, most: int, expected: int) -> None:
    network = Counted()
    caching = Caching(policy=open_tolerance(most))
    got = sample(network.model, flow_sampler(total), latents(), caching=caching)
    computed = got.computed[:, 0, 0]
    assert got.evaluations == computed.sum() == expected == len(network.bodies)
    assert computed[0]
    assert computed[-1]
    hits = "".join("c" if c else "h" for c in computed).split("c")
    assert max(map(len, hits)) == most


def test_the_start_tolerance_governs_the_first_fifth() -> None:
    policy = SenCache(table=Flat(), epsilon=math.inf, epsilon_start=1e-9)
    for total in (50, 28):
        got = sample(
            Counted().model, flow_sampler(total), latents(), caching=Caching(policy=policy)
        )
        computed, early = got.computed[:, 0, 0], round(0.2 * total)
        assert computed[:early].all()
        assert not computed[early : early + 3].any()


def test_the_sum_of_all_moves_is_the_distance_from_the_reference() -> None:
    """So S does not depend on how a step is cut in two (sums of vectors telescope)."""
    xs: list[np.ndarray] = []
    seen = lambda k, total, x, computed: xs.append(x.astype(np.float64))
    sample(Counted().model, flow_sampler(20), latents(), on_step=seen)
    moves = [b - a for a, b in itertools.pairwise(xs)]
    np.testing.assert_allclose(sum(moves[3:9]), xs[9] - xs[3], atol=1e-6)


def recorded(total: int = 50) -> list[np.ndarray]:
    xs: list[np.ndarray] = [latents()]
    seen = lambda k, total, x, computed: xs.append(x)
    sample(Counted().model, flow_sampler(total), xs[0], on_step=seen)
    return xs


def test_a_higher_tolerance_never_adds_a_computation_before_the_first_difference() -> None:
    from edgert.image.policies import Context, Plan

    sampler, xs = flow_sampler(50), recorded()

    def decisions(epsilon: float, most: int) -> list[bool]:
        policy = SenCache(table=Flat(), epsilon=epsilon, epsilon_start=epsilon, most=most)
        policy.reset(Plan(sampler.timesteps))
        found = []
        for k in range(50):
            ctx = Context(k, float(sampler.timesteps[k]), float(sampler.sigmas[k]), xs[k])
            found.append(policy.decide(ctx))
            policy.observe(ctx, found[-1], xs[k])
        return found

    for low, high in (((0.05, 2), (0.1, 2)), ((0.1, 1), (0.1, 3)), ((0.02, 2), (0.3, 4))):
        a, b = decisions(*low), decisions(*high)
        assert a != b
        first = next(k for k in range(50) if a[k] != b[k])
        assert a[first]
        assert not b[first]


def euler_on(network: Denoiser, grid: np.ndarray, x: np.ndarray) -> np.ndarray:
    from edgert.image.denoiser import At

    for k in range(len(grid) - 1):
        x = x + (grid[k + 1] - grid[k]) * network.run(x, At(k, 1000 * float(grid[k])))
    return x


def test_output_mode_under_euler_is_euler_over_the_computed_steps() -> None:
    sampler, x = flow_sampler(20), latents().astype(np.float64)
    network = formula(lambda x, t: np.sin(3 * x) + t / 1000)
    caching = Caching(policy=open_tolerance(2), mode="output")
    got = sample(network, sampler, x, caching=caching)
    kept = np.flatnonzero(got.computed[:, 0, 0])
    grid = np.append(sampler.sigmas[kept], 0.0)
    assert len(kept) < 20
    assert np.max(np.abs(got.x - euler_on(network, grid, x))) < 1e-12


def test_output_mode_under_ddim_is_ddim_over_the_computed_steps() -> None:
    """In the variables x/α and s/α, in which DDIM is Euler's method for ε."""
    sampler, x = sampler_of(SD, 20), latents().astype(np.float64)
    network = formula(lambda x, t: np.sin(x) + t / 1000)
    got = sample(network, sampler, x, caching=Caching(policy=open_tolerance(2), mode="output"))
    kept = np.flatnonzero(got.computed[:, 0, 0])
    y, bar = x / sampler.alphas[0], np.append(sampler.alphas[:-1] ** 2, sampler.previous[-1])  # type: ignore[attr-defined]
    ratio = np.sqrt((1 - bar) / bar)
    for i, k in enumerate(kept):
        after = kept[i + 1] if i + 1 < len(kept) else 20
        output = np.sin(y * np.sqrt(bar[k])) + sampler.timesteps[k] / 1000
        y = y + (ratio[after] - ratio[k]) * output
    assert np.max(np.abs(got.x - y * np.sqrt(bar[20]))) < 1e-12


def test_residual_mode_on_a_body_that_adds_nothing_is_the_uncached_sampler() -> None:
    sampler, x = flow_sampler(20), latents()
    network = Counted(scale=0.0)
    network.shift = {branch: 0 * shift for branch, shift in network.shift.items()}
    expected = sample(network.model, sampler, x)
    got = sample(network.model, sampler, x, caching=Caching(policy=open_tolerance(3)))
    assert got.evaluations < 20
    np.testing.assert_array_equal(expected.x, got.x)


def test_nothing_kept_is_nothing_reused() -> None:
    class Eager(Fixed):
        def decide(self, ctx: Any) -> bool:
            return False

    got = sample(Counted().model, flow_sampler(9), latents(), caching=Caching(policy=Eager()))
    assert got.computed[:, 0, 0].tolist() == [True] + [False] * 8


def test_fora_reuses_blocks_with_fresh_gates() -> None:
    """Where only the gates change from step to step, it is the uncached sampler."""

    class Constant(Counted):
        def inner(self, h: Any, aux: Any) -> Any:
            return np.ones_like(h)

    sampler, x, network = flow_sampler(20), latents(), Constant()
    expected = sample(network.model, sampler, x)
    network.bodies.clear()
    got = sample(network.model, sampler, x, caching=Caching(policy=FORA(interval=3)))
    assert len(network.bodies) == got.evaluations == 8  # 0, 3, ..., 18 and the last
    np.testing.assert_allclose(got.x, expected.x, atol=1e-6)
    stale = sample(network.model, sampler, x, caching=Caching(policy=Fixed(interval=3)))
    assert np.abs(stale.x - expected.x).max() > 1e-3


def test_branches_share_decisions_by_default_and_may_decide_alone() -> None:
    sampler, x = flow_sampler(20), latents()
    policy = TeaCache(delta=0.3)
    network = Counted()
    got = sample(network.model, sampler, x, guidance=GUIDED, caching=Caching(policy=policy))
    np.testing.assert_array_equal(got.computed[:, 0], got.computed[:, 1])
    assert got.computed.shape == (20, 2, 1)
    steps = {b: [k for branch, k in network.bodies if branch == b] for b in ("cond", "uncond")}
    assert steps["cond"] == steps["uncond"]

    class Skewed(Counted):
        def feature(self, h: Any, aux: Any) -> Any:
            grown = 4.0 if aux[0].branch == "uncond" and aux[0].k % 2 else 1.0
            return super().feature(h, aux) * grown

    caching = Caching(policy=policy, per_branch=True)
    alone = sample(Skewed().model, sampler, x, guidance=GUIDED, caching=caching)
    assert (alone.computed[:, 0] != alone.computed[:, 1]).any()


def test_a_batch_computes_when_its_worst_latent_asks() -> None:
    """And with per_sample every latent is what it is alone."""
    sampler, x = flow_sampler(30), latents(3)
    x[1] *= 0.2
    policy = SenCache(table=Flat(), epsilon=0.3, epsilon_start=0.05)
    apart = Caching(policy=policy, per_sample=True)
    network = Counted()
    both = sample(network.model, sampler, x, caching=Caching(policy=policy))
    assert len({tuple(row) for row in both.computed[:, 0].T.tolist()}) == 1
    mixed = sample(network.model, sampler, x, caching=apart, guidance=GUIDED)
    assert len({tuple(row) for row in mixed.computed[:, 0].T.tolist()}) > 1
    for i in range(3):
        caching = Caching(policy=policy)
        alone = sample(Counted().model, sampler, x[i : i + 1], caching=caching, guidance=GUIDED)
        np.testing.assert_array_equal(alone.computed[:, 0, 0], mixed.computed[:, 0, i])
        np.testing.assert_allclose(alone.x[0], mixed.x[i], atol=1e-5)


@pytest.mark.parametrize(
    "policy",
    [open_tolerance(2), TeaCache(delta=0.5), SeaCache(delta=0.5), EasyCache(tau=1.0),
     MagCache(gammas=[1.0] * 20), FORA(), Fixed(interval=3), TaylorLite(), FirstBlock(tau=1.0),
     Fixed(evaluations=9)],
    ids=lambda policy: f"{policy.name}",
)  # fmt: skip
def test_two_generations_in_a_row_are_those_of_two_processes(policy: Policy) -> None:
    sampler = flow_sampler(20)
    run = lambda network, seed: sample(
        network.model, sampler, latents(2, seed), guidance=GUIDED, caching=Caching(policy=policy)
    )
    first, second = run(Counted(), 1), run(Counted(), 2)
    network = Counted()
    assert 1 < first.evaluations < 20
    np.testing.assert_array_equal(run(network, 1).x, first.x)
    network.fail_at = 6
    with pytest.raises(RuntimeError, match="went away"):
        run(network, 1)
    network.fail_at = None
    np.testing.assert_array_equal(run(network, 2).x, second.x)


def test_image_to_image_counts_executed_steps() -> None:
    sampler, network = flow_sampler(50), Counted()
    policy = SenCache(table=Flat(), epsilon=math.inf, epsilon_start=1e-9)
    got = sample(network.model, sampler, latents(), first=20, caching=Caching(policy=policy))
    computed = got.computed[:, 0, 0]
    assert len(computed) == 30
    assert computed[: round(0.2 * 30)].all()
    assert not computed[6:9].any()
    assert network.bodies[0] == ("cond", 20)
    with pytest.raises(RequestError, match="the first step is 50"):
        sample(network.model, sampler, latents(), first=50)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_an_error_naming_the_step(value: float) -> None:
    sampler = flow_sampler(10)
    third = float(sampler.timesteps[2])
    network = formula(lambda x, t: np.where(t == third, value, 1.0) * x)
    with pytest.raises(DeviceError, match=r"step 3 of 10 .* 72 of 72 values of the network's") as e:
        sample(network, sampler, latents())
    assert e.value.code == "not-finite"


def test_finite_values_whose_sum_is_not_are_no_error() -> None:
    sampler = flow_sampler(10, shift=1.0)
    network = formula(lambda x, t: np.full_like(x, 3e37))
    assert np.isfinite(sample(network, sampler, latents()).x).all()


def test_a_callback_sees_every_step_and_may_stop() -> None:
    seen: list[tuple[int, int, bool]] = []

    def on_step(k: int, total: int, x: np.ndarray, computed: bool) -> bool:
        seen.append((k, total, computed))
        return k == 4

    caching = Caching(policy=open_tolerance(1))
    got = sample(Counted().model, flow_sampler(12), latents(), caching=caching, on_step=on_step)
    assert got.cancelled
    assert len(got.computed) == 5
    assert seen == [(k, 12, k % 2 == 0) for k in range(5)]


def test_what_a_model_cannot_serve_is_an_error() -> None:
    sampler, network = flow_sampler(20), Counted()
    with pytest.raises(RequestError, match=r"fora .* the model serves output, difference"):
        sample(network.whole, sampler, latents(), caching=Caching(policy=FORA()))
    residual = Caching(policy=open_tolerance(2), mode="residual")
    with pytest.raises(RequestError, match="the model serves output, difference"):
        sample(network.whole, sampler, latents(), caching=residual)
    with pytest.raises(RequestError, match="per_sample"):
        sample(network.model, sampler, latents(2), caching=Caching(policy=FORA(), per_sample=True))
    only = Denoiser(full=network.whole.full, branches=("cond",))
    with pytest.raises(RequestError, match="expected uncond too"):
        sample(only, sampler, latents(), guidance=GUIDED)
    outputs = sample(network.whole, sampler, latents(), caching=Caching(policy=open_tolerance(2)))
    assert outputs.evaluations < 20


def test_the_same_seed_gives_the_same_latent() -> None:
    sampler = sampler_of(SD, 10, eta=0.7)
    ends = []
    for seeds in ([5, 6], [5, 6], [6, 5]):
        run = Run(seeds)
        x = start(sampler, (2, 3, 4, 6), run)
        ends.append(sample(Counted().model, sampler, x, run=run).x)
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_allclose(ends[0][::-1], ends[2], atol=1e-5)
    assert np.abs(ends[0][0] - ends[0][1]).max() > 0.1
    with pytest.raises(RequestError, match="seeds"):
        sample(Counted().model, sampler, latents())


def test_schedules_of_flows_are_used() -> None:
    assert sampler_of(FLOW, 8).prediction == "flow_prediction"
