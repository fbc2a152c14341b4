"""Samplers from diffusers' scheduler configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np

from ...errors import ConvertError, RequestError
from . import noise
from .config import LONGEST, Config
from .noise import F64
from .sampler import Prediction, Sampler
from .samplers import DDIM, LCM, DPMSolver, Euler, FlowEuler

Kind = Literal["ddim", "dpm++", "euler", "lcm", "flow-euler"]
KINDS: dict[str, Kind] = {
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm++",
    "EulerDiscreteScheduler": "euler",
    "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
}
SMALLEST_BAR = 1e-12  # of a table that is not rescaled; the cosine ends at 2e-9
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")


def sampler_of(
    values: Mapping[str, Any], steps: int, *, kind: Kind | None = None, eta: float = 0.0,
    mu: float | None = None, unit_sigmas: bool | None = None,
) -> Sampler:  # fmt: skip
    """The sampler that a scheduler configuration of diffusers describes, over `steps` steps.

    kind: another sampler over the same noise table; by default the file's own. eta: DDIM's, in
    [0, 1]. mu: the shift of a schedule with `use_dynamic_shifting` (`flux_mu`). unit_sigmas:
    whether a flow is cut as linspace(1, 1/steps) before the shift, as FLUX's pipelines do, instead
    of down to the smallest trained σ; by default where the shift is dynamic. Raises ConvertError
    for a configuration edgert cannot follow, RequestError for steps, eta or mu it cannot serve.
    """
    config = Config(values)
    chosen = kind or KINDS.get(config.class_name)
    if chosen is None:
        raise ConvertError(
            f"the scheduler is {config.class_name[:80]!r}, expected one of {', '.join(KINDS)}",
            code="scheduler-class",
            hint=f"choose a sampler for it: {', '.join(KINDS.values())}",
        )
    count = config.whole("num_train_timesteps", 1000, 1, LONGEST)
    if not 1 <= steps <= count:
        raise RequestError(
            f"{steps} steps, expected from 1 to {count}, as many as the model was trained with",
            code="steps",
            hint="ask for fewer steps" if steps > count else "ask for at least one step",
            field="steps",
        )
    if eta and (chosen != "ddim" or not 0 <= eta <= 1):
        raise RequestError(
            f"eta is {eta} for the sampler {chosen}, expected 0 to 1 for ddim and 0 for others",
            code="parameter-range",
            hint="leave eta out",
            field="eta",
        )
    _check_kind(chosen, flow=_is_flow(config))
    if chosen == "flow-euler":
        return _flow_euler(config, steps, count, mu, unit_sigmas)
    if chosen == "dpm++":
        return _dpm_solver(config, steps, count, mu)
    if chosen == "ddim":
        return _ddim(config, steps, count, eta)
    return (_euler if chosen == "euler" else _lcm)(config, steps, count)


def _check_kind(kind: Kind, *, flow: bool) -> None:
    """A flow cannot be sampled as a table of β, nor the other way round."""
    if kind in (("flow-euler", "dpm++") if flow else ("ddim", "dpm++", "euler", "lcm")):
        return
    raise RequestError(
        f"the sampler is {kind} for a model of {'velocities' if flow else 'noise'}, expected "
        f"{'flow-euler or dpm++' if flow else 'ddim, dpm++, euler or lcm'}",
        code="sampler",
        hint="leave the sampler out for the model's own",
        field="sampler",
    )


def flux_mu(values: Mapping[str, Any], tokens: int) -> float:
    """The dynamic shift for a picture of so many image tokens: a line through base_shift at
    base_image_seq_len and max_shift at max_image_seq_len (FLUX: .63 at 1024, 1.15 at 4096)."""
    config = Config(values)
    low = config.whole("base_image_seq_len", 256, 1, 1 << 24)
    high = config.whole("max_image_seq_len", 4096, low + 1, 1 << 24)
    base = config.number("base_shift", 0.5, -20, 20)
    slope = (config.number("max_shift", 1.15, -20, 20) - base) / (high - low)
    return base + (tokens - low) * slope


def _table(config: Config, count: int, *, kind: str = "linear", ends: tuple[float, float]) -> F64:
    """ᾱ of the configuration, float64 [count]. kind, ends: the scheduler's own defaults."""
    config.absent("trained_betas", "thresholding")
    kinds = ("linear", "scaled_linear", "squaredcos_cap_v2")
    low = config.number("beta_start", ends[0], 1e-8, 0.999)
    high = config.number("beta_end", ends[1], low, 0.999)
    chosen = config.choice("beta_schedule", kind, kinds)
    zero = config.flag("rescale_betas_zero_snr", False)
    bars = noise.alpha_bars(chosen, low, high, count, zero)
    if (least := float(bars[: count - zero].min(initial=1.0))) < SMALLEST_BAR:
        raise ConvertError(
            f"the noise table falls to ᾱ = {least:g}, expected at least {SMALLEST_BAR:g}",
            code="scheduler-value",
            hint="beta_start, beta_end or beta_schedule is not what the model was trained with",
            key="beta_end",
        )
    return bars


def _check_noise(bars: F64, prediction: Prediction) -> None:
    """Raise ConvertError where x0 = (x - √(1 - ᾱ)·ε)/√ᾱ would divide by 0."""
    if bars[0] == 0 and prediction == "epsilon":
        raise ConvertError(
            "the schedule ends in pure noise (rescale_betas_zero_snr), from which a network that "
            "predicts the noise learns nothing of the picture; expected v_prediction",
            code="scheduler-value",
            hint="report the model: its prediction_type and its noise table contradict each other",
        )


def _clip(config: Config, default: bool) -> float | None:
    on = config.flag("clip_sample", default)
    return config.number("clip_sample_range", 1.0, 1e-6, 1e6) if on else None


def _ddim(config: Config, steps: int, count: int, eta: float) -> DDIM:
    bars = _table(config, count, ends=(1e-4, 0.02))
    spacing = config.choice("timestep_spacing", "leading", SPACINGS)
    if spacing == "leading":
        t = noise.leading(steps, count, config.whole("steps_offset", 0, 0, count))
    else:
        even = spacing == "trailing"
        t = noise.trailing(steps, count) if even else noise.linspace(steps, count - 1)
    before = t.astype(np.int64) - count // steps
    final = 1.0 if config.flag("set_alpha_to_one", True) else float(bars[0])
    previous = np.where(before >= 0, bars[np.maximum(before, 0)], final)
    own = np.append(bars[t.astype(np.int64)], previous[-1])
    prediction = cast(Prediction, config.choice("prediction_type", "epsilon", PREDICTIONS))
    _check_noise(own, prediction)
    return DDIM(
        timesteps=t, sigmas=noise.sigmas_of(own), alphas=np.sqrt(own), noises=np.sqrt(1 - own),
        prediction=prediction, clip=_clip(config, True), previous=previous, eta=eta,
        stochastic=eta > 0,
    )  # fmt: skip


def _lcm(config: Config, steps: int, count: int) -> LCM:
    bars = _table(config, count, kind="scaled_linear", ends=(0.00085, 0.012))
    original = config.whole("original_inference_steps", 50, 1, count)
    if steps > original:
        raise RequestError(
            f"{steps} steps of LCM, expected at most {original}, as many as it was distilled with",
            code="steps",
            hint="consistency models want 1 to 8 steps",
            field="steps",
        )
    taught = (np.arange(original, 0, -1) * (count // original)) - 1
    t = taught[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]
    own = np.append(bars[t], bars[t[-1]])
    prediction = cast(Prediction, config.choice("prediction_type", "epsilon", PREDICTIONS))
    _check_noise(own, prediction)
    return LCM(
        timesteps=t.astype(np.float64), sigmas=noise.sigmas_of(own), alphas=np.sqrt(own),
        noises=np.sqrt(1 - own), clip=_clip(config, False), stochastic=steps > 1,
        prediction=prediction,
        timestep_scale=config.number("timestep_scaling", 10.0, 1e-3, 1e6),
    )  # fmt: skip


def _euler(config: Config, steps: int, count: int) -> Euler:
    config.absent("use_exponential_sigmas", "use_beta_sigmas")
    config.choice("timestep_type", "discrete", ("discrete",))
    table = noise.sigmas_of(_table(config, count, ends=(1e-4, 0.02)))
    spacing = config.choice("timestep_spacing", "linspace", SPACINGS)
    if spacing == "leading":
        t = noise.leading(steps, count, config.whole("steps_offset", 0, 0, count))
    elif spacing == "trailing":
        t = noise.trailing(steps, count)
    else:
        t = noise.linspace(steps, count - 1, whole=False)
    sigmas: F64 = np.interp(t, np.arange(count), table)
    log_linear = config.choice("interpolation_type", "linear", ("linear", "log_linear"))
    if config.flag("use_karras_sigmas", False):
        sigmas = noise.karras(float(sigmas[-1]), float(sigmas[0]), steps)
        t = noise.timesteps_of(sigmas, table)
    elif log_linear == "log_linear":  # has its own terminal value, the table's smallest
        sigmas = np.exp(np.linspace(math.log(table[-1]), math.log(table[0]), steps + 1))
    sigmas = np.append(sigmas, _terminal(config, table))[: steps + 1]
    return Euler(
        timesteps=t, sigmas=sigmas, alphas=np.ones(steps + 1), noises=sigmas,
        prediction=cast(Prediction, config.choice("prediction_type", "epsilon", PREDICTIONS)),
        leading=spacing == "leading",
    )  # fmt: skip


def _dpm_solver(config: Config, steps: int, count: int, mu: float | None) -> DPMSolver:
    config.absent("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    config.choice("algorithm_type", "dpmsolver++", ("dpmsolver++",))
    config.choice("solver_type", "midpoint", ("midpoint",))
    table = noise.sigmas_of(_table(config, count, ends=(1e-4, 0.02)))
    flow = _is_flow(config)
    sigmas: F64
    if config.flag("use_karras_sigmas", False):
        sigmas = noise.karras(float(table[0]), float(table[-1]), steps)
        t = noise.timesteps_of(sigmas, table)
        t = t if config.given("beta_schedule", "squaredcos_cap_v2") else np.round(t)
    elif flow:
        dynamic = config.flag("use_dynamic_shifting", False)
        shift = math.exp(_mu(mu)) if dynamic else _shift(config)
        even: F64 = 1 - np.linspace(1, 1 / count, steps + 1)
        sigmas = (shift * even / (1 + (shift - 1) * even))[:0:-1]
        t = np.floor(sigmas * count)
    else:
        t = _dpm_timesteps(config, steps, count, table)
        sigmas = table[t.astype(np.int64)]
    sigmas = np.append(sigmas, _terminal(config, table))
    alphas = 1 - sigmas if flow else 1 / np.sqrt(1 + sigmas**2)
    few = config.flag("lower_order_final", True) and steps < 15
    kinds = (*PREDICTIONS, "flow_prediction")
    return DPMSolver(
        timesteps=t, sigmas=sigmas, alphas=alphas, noises=sigmas if flow else sigmas * alphas,
        prediction=cast(Prediction, config.choice("prediction_type", kinds[3 * flow], kinds)),
        order=config.whole("solver_order", 2, 1, 2),
        first_order_last=config.flag("euler_at_final", False) or few,
    )  # fmt: skip


def _dpm_timesteps(config: Config, steps: int, count: int, table: F64) -> F64:
    """float64 [steps]; the noisiest are left out where λ is below lambda_min_clipped."""
    floor = config.floor("lambda_min_clipped")
    last = max(count - int(np.searchsorted(-np.log(table)[::-1], floor)), 1)
    spacing = config.choice("timestep_spacing", "linspace", SPACINGS)
    if spacing == "leading":
        offset = config.whole("steps_offset", 0, 0, count)
        t = noise.leading(steps, last, offset, extra=1)
    elif spacing == "trailing":
        t = noise.trailing(steps, count, last)
    else:
        t = noise.linspace(steps, last - 1, extra=1)
    if len(t) != steps or np.any(np.diff(t) >= 0):
        raise RequestError(
            f"{steps} steps do not fit into {last} timesteps with `{spacing}` spacing",
            code="steps",
            hint="ask for fewer steps",
            field="steps",
        )
    return t


def _terminal(config: Config, table: F64) -> float:
    zero = config.choice("final_sigmas_type", "zero", ("zero", "sigma_min")) == "zero"
    return 0.0 if zero else float(table[0])


def _is_flow(config: Config) -> bool:
    """Whether the network was trained as a rectified flow, not on a table of β."""
    flow = config.class_name == "FlowMatchEulerDiscreteScheduler"
    return flow or config.flag("use_flow_sigmas", False)


def _shift(config: Config) -> float:
    key = "flow_shift" if config.has("flow_shift") else "shift"
    return config.number(key, 1.0, 1e-3, 1e3)


def _mu(mu: float | None) -> float:
    if mu is None or not abs(mu) <= 20:
        raise RequestError(
            f"mu is {mu}, expected a number from -20 to 20: this schedule's shift depends on the "
            "picture's size",
            code="parameter-range",
            hint="pass mu=flux_mu(config, tokens)",
            field="mu",
        )
    return mu


def _flow_euler(
    config: Config, steps: int, count: int, mu: float | None, unit_sigmas: bool | None
) -> FlowEuler:
    config.absent("invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    dynamic = config.flag("use_dynamic_shifting", False)
    shift = _shift(config)
    unit = dynamic if unit_sigmas is None else unit_sigmas
    low = 1 / steps if unit else 1 / count
    if not (dynamic or unit):
        low = shift * low / (1 + (shift - 1) * low)  # shifted twice, as diffusers does
    sigmas = np.linspace(1, low, steps)
    if dynamic:
        linear = config.choice("time_shift_type", "exponential", ("exponential", "linear"))
        weight = max(_mu(mu), 1e-3) if linear == "linear" else math.exp(_mu(mu))
        sigmas = weight / (weight + 1 / sigmas - 1)
    else:
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    end = config.number("shift_terminal", 0, 0, 0.999)
    if end and steps > 1:
        sigmas = 1 - (1 - sigmas) * ((1 - end) / (1 - sigmas[-1]))
    sigmas = np.append(sigmas, 0.0)
    return FlowEuler(
        timesteps=sigmas[:-1] * count, sigmas=sigmas, alphas=1 - sigmas, noises=sigmas,
        prediction="flow_prediction", stochastic=config.flag("stochastic_sampling", False),
    )  # fmt: skip
