"""Calibration against networks whose sensitivities are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgert.errors import DeviceError, RequestError
from edgert.image.calibrate import Case, calibrate, fit
from edgert.image.guidance import Guidance
from edgert.image.loop import Caching, sample
from edgert.image.policies import EasyCache, Fixed, MagCache, SenCache, TaylorLite, TeaCache
from edgert.image.tables import SensitivityTable, TableInfo
from edgert.image.tune import largest, tune
from tests.image.networks import Counted, flow_sampler, formula, latents
from tests.image.test_loop import Flat
from tests.image.test_samplers import LCM

INFO = TableInfo(
    model="ab" * 32, quantisation="f32", prediction="flow_prediction", scheduler="flow-euler",
    steps=0, latent=(), samples=0,
)  # fmt: skip
NUMBERS = np.random.default_rng(0)
A = NUMBERS.standard_normal((12, 12)) / 12**0.5
U = NUMBERS.standard_normal(12)


def vectors(n: int = 3) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, 12))


@pytest.mark.parametrize("mode", ["trajectory", "forward"])
def test_a_linear_network_has_the_slopes_of_its_matrices(mode: str) -> None:
    sampler = flow_sampler(12)
    network = formula(lambda x, t: x @ A.T + t / 1000 * U)
    table = calibrate([Case(network, vectors())], sampler, INFO, mode=mode)  # type: ignore[arg-type]
    assert (table.alpha_x <= np.linalg.norm(A, 2) * (1 + 1e-9)).all()
    expected = np.linalg.norm(U) / 1000 / math.sqrt(12)
    np.testing.assert_allclose(table.alpha_t_rms, expected, rtol=1e-6)
    np.testing.assert_allclose(table.std_t, 0, atol=1e-9)
    assert table.info.samples == 3
    assert table.info.calibration == mode
    assert table.info.latent == (12,)


def test_the_slope_is_that_along_the_samplers_step() -> None:
    sampler, x = flow_sampler(12), vectors(1)
    table = calibrate([Case(formula(lambda x, t: x @ A.T + t / 1000 * U), x)], sampler, INFO)
    f = lambda x, k: x @ A.T + sampler.timesteps[k] / 1000 * U
    for k in range(12):
        step = (sampler.sigmas[k + 1] - sampler.sigmas[k]) * f(x, k)
        slope = np.linalg.norm(step @ A.T) / np.linalg.norm(step)
        np.testing.assert_allclose(table.alpha_x[k], slope, rtol=1e-6)
        x = x + step
    scaled = calibrate([Case(formula(lambda x, t: -0.7 * x), vectors())], sampler, INFO)
    np.testing.assert_allclose(scaled.alpha_x, 0.7, rtol=1e-6)


def test_the_score_bounds_the_change_along_the_samplers_step() -> None:
    """The triangle inequality, with equality where both parts point the same way."""
    sampler, x = flow_sampler(12), vectors(1)
    f = lambda x, k: x @ A.T + sampler.timesteps[k] / 1000 * U
    network = formula(lambda x, t: x @ A.T + t / 1000 * U)
    table = calibrate([Case(network, x)], sampler, INFO)
    for k in range(11):
        after = x + (sampler.sigmas[k + 1] - sampler.sigmas[k]) * f(x, k)
        size = lambda z: float(np.linalg.norm(z)) / 12**0.5
        moved = abs(sampler.timesteps[k + 1] - sampler.timesteps[k])
        score = table.alpha_x[k] * size(after - x) + table.alpha_t_rms[k] * moved
        assert size(f(after, k + 1) - f(x, k)) <= score * (1 + 1e-9)
        x = after
    x, after, c, u = np.ones((1, 12)), np.full((1, 12), 0.5), 2.0, np.ones(12)  # both fall
    change = size((c * after + 0.4 * u) - (c * x + 0.9 * u))
    np.testing.assert_allclose(change, c * size(after - x) + size(u) * 0.5)


def test_gaussian_data_has_its_known_slope() -> None:
    c = lambda s: (s - (1 - s) * 0.25) / ((1 - s) ** 2 * 0.25 + s**2)
    np.testing.assert_allclose([c(0.9), c(0.5), c(0.1)], [1.076923, 1.2, -0.588235], rtol=1e-6)
    sampler = flow_sampler(20)
    network = formula(lambda x, t: c(t / 1000) * x)
    table = calibrate([Case(network, vectors())], sampler, INFO)
    np.testing.assert_allclose(table.alpha_x, [abs(c(s)) for s in sampler.sigmas[:-1]], rtol=1e-6)


def test_a_table_holds_for_latents_of_another_size() -> None:
    sampler = flow_sampler(10)
    network = formula(lambda x, t: np.sin(x) + t / 1000)
    small = calibrate([Case(network, vectors())], sampler, INFO)
    large = calibrate([Case(network, np.tile(vectors(), (1, 4)))], sampler, INFO)
    np.testing.assert_allclose(small.alpha_x, large.alpha_x, rtol=1e-9)
    np.testing.assert_allclose(small.alpha_t_rms, large.alpha_t_rms, rtol=1e-9)


def test_a_cut_network_brings_ratios_and_a_polynomial() -> None:
    network, sampler = Counted(), flow_sampler(20)
    cases = [Case(network.model, latents(2, seed)) for seed in range(2)]
    table = calibrate(cases, sampler, INFO, guidance=Guidance(scale=3.0))
    assert table.gammas is not None
    assert table.polynomial is not None
    assert table.gammas[0] == 1
    assert table.info.samples == 4
    for policy in (
        MagCache(gammas=table.gammas.tolist(), delta=0.2),
        TeaCache(polynomial=table.polynomial.tolist(), delta=0.1),
        SenCache(table=table, epsilon=0.2),
    ):
        got = sample(network.model, sampler, latents(), caching=Caching(policy=policy))
        assert 2 <= got.evaluations <= 20
    whole = calibrate([Case(network.whole, latents())], sampler, INFO)
    assert whole.gammas is None
    np.testing.assert_array_equal(whole.alpha_x, calibrate(
        [Case(network.model, latents())], sampler, INFO).alpha_x)  # fmt: skip


def test_residual_ratios_are_those_of_the_tokens_norms() -> None:
    class Halving(Counted):
        def body(self, h: np.ndarray, aux: object) -> np.ndarray:
            return h + np.float32(0.5) ** aux[0].k * np.ones_like(h)  # type: ignore[index]

    table = calibrate([Case(Halving().model, latents(2))], flow_sampler(8), INFO)
    assert table.gammas is not None
    np.testing.assert_allclose(table.gammas, [1.0] + [0.5] * 7, rtol=1e-5)


def test_the_polynomial_is_found_again() -> None:
    rho = np.linspace(0.01, 0.4, 200)
    wanted = [3.0, -2.0, 0.5, 0.3, 0.01]
    found, quality = fit(rho, np.polyval(wanted, rho))
    assert quality > 0.9999
    inner = rho[:190]  # the rest is clipped
    np.testing.assert_allclose(np.polyval(found, inner), np.polyval(wanted, inner), atol=1e-3)


def test_a_fit_that_explains_too_little_is_the_identity() -> None:
    numbers = np.random.default_rng(0)
    found, quality = fit(numbers.random(300), numbers.random(300))
    assert quality < 0.5
    np.testing.assert_array_equal(found, [1.0, 0.0])
    np.testing.assert_array_equal(fit(np.ones(9), np.ones(9))[0], [1.0, 0.0])


def test_bisection_finds_the_largest_threshold() -> None:
    asked: list[float] = []

    def count(value: float) -> float:
        asked.append(value)
        return 50.0 if value < 0.3 else 20.0

    value, taken = largest(count, 25)
    assert 0.28 < value < 0.3
    assert taken == 50
    assert len(asked) == 8
    assert largest(lambda v: 10.0, 25) == (1e-4, 10.0)


@pytest.mark.parametrize("policy", [SenCache(table=Flat()), TeaCache(), EasyCache(), Fixed()])
def test_a_policy_is_tuned_to_a_number_of_evaluations(policy: object) -> None:
    sampler = flow_sampler(50)
    cases = [Case(Counted().model, latents(1, seed), seed) for seed in range(4)]
    found = tune(policy, cases, sampler, 25)  # type: ignore[arg-type]
    assert 25 <= found.evaluations <= 29
    if isinstance(found.policy, SenCache):
        assert found.policy.most == 2
        assert tune(found.policy, cases, sampler, 20).policy.most == 3  # type: ignore[attr-defined]


def test_what_cannot_be_calibrated_or_tuned_is_an_error() -> None:
    case = Case(Counted().model, latents())
    with pytest.raises(RequestError, match="0 cases"):
        calibrate([], flow_sampler(10), INFO)
    from edgert.image.schedules import sampler_of

    with pytest.raises(RequestError, match="a stochastic sampler"):
        calibrate([case], sampler_of(LCM, 8), INFO)
    with pytest.raises(RequestError, match="from 1 to 10"):
        tune(EasyCache(), [case], flow_sampler(10), math.nan)
    with pytest.raises(RequestError, match="has no threshold"):
        tune(TaylorLite(), [case], flow_sampler(10), 5)
    bad = formula(lambda x, t: x * np.float32(np.nan))
    with pytest.raises(DeviceError, match="step 1 of 10"):
        calibrate([Case(bad, latents())], flow_sampler(10), INFO)


def test_a_calibration_survives_the_disk(tmp_path: object) -> None:
    table = calibrate([Case(Counted().model, latents(2))], flow_sampler(9), INFO)
    again = SensitivityTable.from_bytes(table.to_bytes())
    for name in ("t", "sigma", "alpha_x", "alpha_t_rms", "std_x", "std_t", "gammas", "polynomial"):
        np.testing.assert_array_equal(getattr(table, name), getattr(again, name))
    assert again.info == table.info
    assert table.to_bytes() == again.to_bytes()
