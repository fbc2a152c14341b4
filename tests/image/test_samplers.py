"""Samplers: numbers of the literature, diffusers' own schedulers, and orders of convergence."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from edgert.errors import ConvertError, RequestError
from edgert.image import schedules
from edgert.image.schedules import Run, first_step, flux_mu, noise, sampler_of, start
from tests.closeness import assert_close

# diffusers meets a newer NumPy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = {
    "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "beta_end": 0.012, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
FLUX = {**FLOW, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "shift": 3.0}  # fmt: skip
DPM = {"_class_name": "DPMSolverMultistepScheduler"}
EULER = {**SD, "_class_name": "EulerDiscreteScheduler"}
LCM = {**SD, "_class_name": "LCMScheduler", "original_inference_steps": 50}


def test_noise_tables_have_the_published_values() -> None:
    bars = noise.alpha_bars("scaled_linear", 0.00085, 0.012, 1000)
    np.testing.assert_allclose(bars[[0, 500, 999]], [0.99915, 0.276333, 0.00466010], rtol=2e-6)
    zero = noise.alpha_bars("scaled_linear", 0.00085, 0.012, 1000, True)
    assert zero[-1] == 0
    np.testing.assert_allclose(zero[0], bars[0])


def test_ddim_of_stable_diffusion_begins_at_951() -> None:
    sampler = sampler_of(SD, 20)
    np.testing.assert_array_equal(sampler.timesteps, np.arange(951, 0, -50))


def test_dpm_solver_begins_at_999_and_leaves_zero_out() -> None:
    t = sampler_of(DPM, 20).timesteps
    assert t[0] == 999
    assert t[1] == 949
    assert t[-1] == 50


def test_sd3_shifts_twice() -> None:
    sigmas = sampler_of({**FLOW, "shift": 3.0}, 28).sigmas
    np.testing.assert_allclose(sigmas[:3], [1, 0.98738, 0.97411], atol=6e-6)
    np.testing.assert_allclose(sigmas[-4:], [0.19983, 0.11091, 0.00892857, 0], atol=6e-6)


def test_flux_shifts_by_the_number_of_tokens() -> None:
    assert math.isclose(flux_mu(FLUX, 1024), 0.63)
    assert math.isclose(flux_mu(FLUX, 4096), 1.15)
    sampler = sampler_of(FLUX, 4, mu=flux_mu(FLUX, 1024))
    np.testing.assert_allclose(sampler.sigmas, [1, 0.849235, 0.652489, 0.384945, 0], atol=1e-6)
    np.testing.assert_allclose(sampler.timesteps, 1000 * sampler.sigmas[:-1])


def test_schnell_does_not_shift() -> None:
    sigmas = sampler_of({**FLOW, "shift": 1.0}, 4, unit_sigmas=True).sigmas
    np.testing.assert_allclose(sigmas, [1, 0.75, 0.5, 0.25, 0])


SANA = {**DPM, "use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
TURBO = {**EULER, "timestep_spacing": "trailing"}
CASES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    (SD, (4, 7, 20, 50)),
    ({**SD, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, (7, 25)),
    ({**SD, "timestep_spacing": "trailing", "prediction_type": "v_prediction",
      "rescale_betas_zero_snr": True}, (10, 25)),
    ({**SD, "timestep_spacing": "linspace", "prediction_type": "sample"}, (9, 30)),
    ({**SD, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}, (9, 30)),
    ({"_class_name": "DDIMScheduler", "clip_sample": False}, (10, 50)),  # DiT
    ({**DPM, "lambda_min_clipped": -math.inf}, (5, 14, 15, 20)),  # PixArt
    ({**DPM, "use_karras_sigmas": True, **{k: SD[k] for k in SD if k != "_class_name"}}, (6, 20)),
    ({**DPM, "lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}, (10, 20)),
    ({**DPM, "timestep_spacing": "leading", "steps_offset": 1, "solver_order": 1}, (10, 20)),
    ({**DPM, "timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"}, (10, 20)),
    ({**DPM, "timestep_spacing": "trailing", "prediction_type": "v_prediction",
      "rescale_betas_zero_snr": True, "euler_at_final": True}, (10, 20)),
    (SANA, (5, 20)),
    (EULER, (5, 20)),
    (TURBO, (1, 2, 4, 20)),
    ({**EULER, "prediction_type": "v_prediction", "timestep_spacing": "leading"}, (5, 20)),
    ({**EULER, "prediction_type": "v_prediction", "timestep_spacing": "trailing",
      "rescale_betas_zero_snr": True}, (5, 20)),
    ({**EULER, "use_karras_sigmas": True, "prediction_type": "sample"}, (5, 20)),
    ({**EULER, "interpolation_type": "log_linear", "final_sigmas_type": "sigma_min"}, (5, 20)),
    (LCM, (1, 4, 7)),
    ({**LCM, "prediction_type": "v_prediction"}, (4,)),
    ({**FLOW, "shift": 3.0}, (1, 5, 28)),
    ({**FLOW, "shift": 1.0}, (4, 20)),
    ({**FLOW, "shift": 3.0, "stochastic_sampling": True}, (5,)),
    ({**FLUX, "shift_terminal": 0.1}, (8, 28)),
    (FLUX, (4, 28)),
    ({**FLUX, "time_shift_type": "linear"}, (4, 28)),
]  # fmt: skip


class Recorded(Run):
    """Random numbers that another implementation draws, too."""

    def __init__(self, drawn: list[np.ndarray]) -> None:
        super().__init__()
        self.drawn = drawn

    def noise(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.drawn.pop(0)


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        pytest.param(config, steps, id=f"{config['_class_name'][:5]}-{number}-{steps}")
        for number, (config, counts) in enumerate(CASES)
        for steps in counts
    ],
)
def test_samplers_do_what_those_of_diffusers_do(
    config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along one trajectory, to 1e-5 of the latent's size, with outputs that no network made up."""
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    kind = getattr(diffusers, config["_class_name"])
    theirs = kind.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    mu = flux_mu(FLUX, 1024) if config.get("use_dynamic_shifting") else None
    ours = sampler_of(config, steps, mu=mu)
    extra = {"mu": mu, "sigmas": np.linspace(1, 1 / steps, steps)} if mu else {}
    theirs.set_timesteps(steps, **extra)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-5, atol=1e-3)
    if hasattr(theirs, "sigmas"):
        sigmas = theirs.sigmas.numpy()[: steps + 1]
        # Near ᾱ = 1 float32 loses digits of 1 - ᾱ there
        np.testing.assert_allclose(ours.sigmas, sigmas, rtol=2e-5, atol=1e-6)
    if hasattr(theirs, "init_noise_sigma"):
        np.testing.assert_allclose(ours.init_scale, float(theirs.init_noise_sigma), rtol=2e-5)
    numbers = np.random.default_rng(steps)
    draws = [numbers.standard_normal((2, 4, 6, 5), np.float32) for _ in range(3 * steps)]
    module = __import__(kind.__module__, fromlist=["randn_tensor"])
    given = iter(torch.from_numpy(array) for array in draws)
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **b: next(given), raising=False)
    run, x = Recorded(list(draws)), numbers.standard_normal((2, 4, 6, 5), np.float32)
    x *= np.float32(ours.init_scale)
    other = torch.from_numpy(x.copy())
    for k, t in enumerate(theirs.timesteps):
        if hasattr(theirs, "scale_model_input"):
            read = theirs.scale_model_input(other, t).numpy()
            np.testing.assert_allclose(ours.scale_input(x, k), read, rtol=2e-5, atol=1e-5)
        output = numbers.standard_normal(x.shape, np.float32)
        before = float(np.sqrt(np.mean(x**2)))
        other = theirs.step(torch.from_numpy(output), t, other).prev_sample
        x = ours.step(output, k, x, run)
        # where sigma is 4096 theirs rounds float32 numbers of that size before they cancel
        lost = 2e-7 * before / float(np.sqrt(np.mean(x**2)))
        assert_close(f"step {k}", other.numpy(), x, rms=max(1e-5, lost))
        assert x.dtype == np.float32
        x = other.numpy().copy()


@pytest.mark.parametrize("config", [SD, EULER, LCM, DPM, {**FLOW, "shift": 3.0}, SANA])
def test_noise_is_added_as_diffusers_adds_it(config: dict[str, Any]) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    kind = getattr(diffusers, config["_class_name"])
    theirs = kind.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    theirs.set_timesteps(12)
    ours = sampler_of(config, 12)
    numbers = np.random.default_rng(0)
    x0, e = numbers.standard_normal((2, 1, 4, 4, 4), np.float32)
    for k in (0, 5, 11):
        t, given = theirs.timesteps[k : k + 1], (torch.from_numpy(x0), torch.from_numpy(e))
        if hasattr(theirs, "scale_noise"):
            expected = theirs.scale_noise(given[0], t, given[1])
        else:
            expected = theirs.add_noise(*given, t)
        got = ours.add_noise(x0, e, k)
        np.testing.assert_allclose(got, expected.numpy(), rtol=2e-5, atol=2e-5)


def test_image_to_image_begins_inside_the_schedule() -> None:
    assert first_step(20, 1.0) == 0
    assert first_step(20, 0.6) == 8
    with pytest.raises(RequestError, match="leaves no step of 20"):
        first_step(20, 0.01)


def velocity(x: np.ndarray, sigma: float, s2: float = 0.25) -> np.ndarray:
    """Of N(0, s2) data under a rectified flow."""
    return x * (sigma - (1 - sigma) * s2) / ((1 - sigma) ** 2 * s2 + sigma**2)


def end_of(config: dict[str, Any], steps: int) -> float:
    """Where a flow sampler brings x = 1; float64. Stopped before the terminal step, whose solver
    is of first order."""
    sampler, run, x = sampler_of(config, steps), Run(), np.array([[1.0]])
    begin = float(sampler.sigmas[0])
    for k in range(steps):
        x = sampler.step(velocity(x, float(sampler.sigmas[k])), k, x, run)
        if sampler.sigmas[k + 1] < 0.05:
            break
    end = float(sampler.sigmas[k + 1])
    spread = lambda s: math.sqrt((1 - s) ** 2 * 0.25 + s * s)
    return abs(float(x[0, 0]) - spread(end) / spread(begin))


def test_euler_is_of_first_order_and_2m_of_second() -> None:
    """On the Gaussian's velocity, whose trajectories are known."""
    euler = {**FLOW, "shift": 1.0}
    order = math.log2(end_of(euler, 100) / end_of(euler, 200))
    assert 0.85 < order < 1.15, order
    two = {**SANA, "flow_shift": 1.0}
    order = math.log2(end_of(two, 100) / end_of(two, 200))
    assert 1.7 < order < 2.4, order


def test_euler_is_exact_for_a_constant_velocity() -> None:
    sampler, x = sampler_of({**FLOW, "shift": 3.0}, 13), np.array([[0.5, -2.0]])
    v = np.array([[3.0, 1.0]])
    for k in range(13):
        x = sampler.step(v, k, x)
    np.testing.assert_allclose(x, [[-2.5, -3.0]], rtol=1e-14)


def test_ddim_and_first_order_dpm_solver_agree_on_one_grid() -> None:
    leading = {**SD, "timestep_spacing": "leading"}
    ddim = sampler_of(leading, 20)
    numbers = np.random.default_rng(1)
    dpm = schedules.DPMSolver(
        timesteps=ddim.timesteps,
        sigmas=ddim.sigmas,
        alphas=ddim.alphas,
        noises=ddim.noises,
        order=1,
    )
    x, output = numbers.standard_normal((2, 3, 4)), numbers.standard_normal((2, 3, 4))
    for k in range(20):
        np.testing.assert_allclose(ddim.step(output, k, x), dpm.step(output, k, x), rtol=1e-5)


def test_a_seed_is_one_latent_in_any_batch() -> None:
    sampler = sampler_of(EULER, 5)
    both = start(sampler, (2, 4, 8, 8), Run([7, 9]))
    np.testing.assert_array_equal(both[1:], start(sampler, (1, 4, 8, 8), Run([9])))
    for bad in (-1, 1 << 64):
        with pytest.raises(RequestError, match="a seed is"):
            Run([bad])
    with pytest.raises(RequestError, match="1 seeds for 2 latents"):
        start(sampler, (2, 4), Run([1]))


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({**SD, "colour": 3}, ConvertError, "unknown key 'colour'"),
        ({**SD, "beta_schedule": "sigmoid"}, ConvertError, "beta_schedule is 'sigmoid'"),
        ({**SD, "trained_betas": [0.1]}, ConvertError, "trained_betas"),
        ({**SD, "beta_start": "nan"}, ConvertError, "beta_start is 'nan'"),
        ({**SD, "beta_end": math.nan}, ConvertError, "beta_end is 'nan'"),
        ({**SD, "clip_sample": 1}, ConvertError, "clip_sample is '1'"),
        ({**SD, "num_train_timesteps": 10**12}, ConvertError, "num_train_timesteps"),
        ({**SD, "num_train_timesteps": 10.5}, ConvertError, "a whole number"),
        ({**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
         ConvertError, "v_prediction"),
        ({**SD, "_class_name": "PNDMScheduler"}, ConvertError, "PNDMScheduler"),
        ({**SD, "beta_end": 0.5}, ConvertError, "the noise table falls to"),
        ({**SD, "beta_end": 10**400}, ConvertError, "beta_end is '1000"),
        ({**DPM, "lambda_min_clipped": 1000}, RequestError, "10 steps do not fit into 1"),
        ({**DPM, "algorithm_type": "sde-dpmsolver++"}, ConvertError, "algorithm_type"),
        ({**DPM, "solver_order": 3}, ConvertError, "solver_order"),
        ({**DPM, "use_lu_lambdas": True}, ConvertError, "use_lu_lambdas"),
        ({**FLOW, "invert_sigmas": True}, ConvertError, "invert_sigmas"),
        ({**FLOW, "use_dynamic_shifting": True}, RequestError, "mu is None"),
        ({**EULER, "timestep_type": "continuous"}, ConvertError, "timestep_type"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_followed_is_an_error(
    config: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        sampler_of(config, 10)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_so_many_steps_are_an_error(steps: int) -> None:
    with pytest.raises(RequestError, match="steps"):
        sampler_of(SD, steps)


def test_another_sampler_over_the_same_noise() -> None:
    pndm = {**SD, "_class_name": "PNDMScheduler", "skip_prk_steps": True}
    assert sampler_of(pndm, 20, kind="ddim").timesteps[0] == 951
    assert isinstance(sampler_of(pndm, 20, kind="dpm++"), schedules.DPMSolver)
    assert isinstance(sampler_of(FLOW, 20, kind="dpm++"), schedules.DPMSolver)
    for config, kind in ((FLOW, "ddim"), (SD, "flow-euler")):
        with pytest.raises(RequestError, match="the sampler is"):
            sampler_of(config, 20, kind=kind)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="eta"):
        sampler_of(FLOW, 20, eta=0.5)


def test_settings_survive_json() -> None:
    text = json.dumps({**DPM, "lambda_min_clipped": "-Infinity"})
    assert len(sampler_of(json.loads(text), 12)) == 12
