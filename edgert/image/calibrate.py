"""Offline calibration of cache policies: sensitivities (SenCache), residual ratios (MagCache), and
the polynomial (TeaCache), from uncached runs or from noised pictures.

Secants, not Jacobians (arXiv 2602.24208): α_x = ‖f(x+δ, t) - f(x, t)‖/‖δ‖ along the sampler's own
step δ, α_t = ‖f(x, t') - f(x, t)‖/|t' - t| to its next time. Three evaluations a sample and step;
guidance's other branch comes on top where the run needs it. Latents stay in float32 (or wider), and
t in floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .denoiser import At, Denoiser, check_finite
from .guidance import COND, Guidance
from .policies.base import relative_l1, rms, wide
from .schedules import Array, Run, Sampler
from .tables import F64, SensitivityTable, TableInfo

STILL = 1e-8  # a shorter step says nothing about a slope
SOUND_FIT = 0.5  # R² below which TeaCache's polynomial is refused


@dataclass(frozen=True)
class Case:
    """One calibration run. model: with its prompt. x: first latents [n, ...] (trajectory) or clean
    ones (forward). seed: of the noise."""

    model: Denoiser
    x: Array
    seed: int = 0


@dataclass(frozen=True)
class Traced:
    """One step of an uncached run. x, after: the network's input now and after the step. y: the
    conditional output. feature, residual: of the conditional branch, if the model is cut."""

    k: int
    t: float
    x: Array
    after: Array
    y: Array
    feature: Array | None = None
    residual: Array | None = None


def trace(
    model: Denoiser, sampler: Sampler, x: Array, guidance: Guidance, run: Run
) -> Iterator[Traced]:
    """The steps of an uncached run from the latent x [n, ...]."""
    for k in range(len(sampler)):
        read, outputs = sampler.scale_input(x, k), dict[str, Array]()
        t = float(sampler.timesteps[k])
        feature: Array | None = None
        residual: Array | None = None
        for branch in model.run_order(guidance.branches):
            at = At(k, t, branch)
            if not model.cut:
                outputs[branch] = wide(guidance.cut(model.run(read, at)))
                continue
            h, aux = model.begin(read, at)
            out = model.blocks(h, aux)
            outputs[branch] = wide(guidance.cut(model.finish(out, aux)))
            if branch == COND:
                residual = wide(np.asarray(out)) - wide(np.asarray(h))
                feature = wide(model.feature(h, aux)) if model.feature else None
        x = sampler.step(guidance.combine(outputs), k, x, run)
        check_finite(x, "the latent", k, len(sampler), t)
        yield Traced(k, t, read, sampler.scale_input(x, k + 1), outputs[COND], feature, residual)


def noised(
    model: Denoiser, sampler: Sampler, z: Array, guidance: Guidance, seed: int
) -> Iterator[Traced]:
    """The same over clean latents z [n, ...]: each step from fresh noise, by a first-order step of
    the conditional output alone."""
    numbers = np.random.default_rng(seed)
    for k in range(len(sampler)):
        e = numbers.standard_normal(z.shape, np.float32).astype(z.dtype)
        x = sampler.add_noise(z, e, k)
        read, t = sampler.scale_input(x, k), float(sampler.timesteps[k])
        y = wide(guidance.cut(model.run(read, At(k, t))))
        after = sampler.step(y, k, x, None)
        check_finite(after, "the latent", k, len(sampler), t)
        yield Traced(k, t, read, sampler.scale_input(after, k + 1), y)


@dataclass
class _Sums:
    """What is collected over all cases; rows are samples."""

    alpha_x: list[F64] = field(default_factory=list)  # [n, T] each
    alpha_t: list[F64] = field(default_factory=list)
    gammas: list[F64] = field(default_factory=list)
    rho: list[F64] = field(default_factory=list)  # [n] each
    change: list[F64] = field(default_factory=list)


def calibrate(
    cases: Sequence[Case], sampler: Sampler, info: TableInfo, *, guidance: Guidance | None = None,
    mode: Literal["trajectory", "forward"] = "trajectory", terminal_t: float = 0.0,
) -> SensitivityTable:  # fmt: skip
    """The table of a model over a sampler's steps.

    info: what it is of; steps, latent, samples and calibration are filled in here. mode:
    "trajectory" runs the uncached sampler from each case's noise, "forward" noises clean latents.
    terminal_t: the time after the last step, for models that are singular at 0. Raises RequestError
    without cases or for a stochastic sampler, DeviceError for values that are not finite.
    """
    if not cases or sampler.stochastic:
        raise RequestError(
            f"{len(cases)} cases, a {'stochastic' if sampler.stochastic else 'deterministic'} "
            "sampler; expected at least one case and no noise in the steps",
            code="calibration",
            hint="8 prompts with 2 seeds each are enough; use ddim, dpm++ or an Euler sampler",
        )
    guidance, sums = guidance or Guidance(), _Sums()
    for case in cases:
        _add(sums, case, sampler, guidance, mode, terminal_t)
    alpha_x, alpha_t = np.concatenate(sums.alpha_x), np.concatenate(sums.alpha_t)
    return SensitivityTable(
        t=np.array(sampler.timesteps), sigma=np.array(sampler.sigmas[:-1]),
        alpha_x=alpha_x.mean(0), std_x=alpha_x.std(0),
        alpha_t_rms=alpha_t.mean(0), std_t=alpha_t.std(0),
        gammas=np.concatenate(sums.gammas).mean(0) if sums.gammas else None,
        polynomial=fit(np.concatenate(sums.rho), np.concatenate(sums.change))[0]
        if sums.rho else None,
        info=_filled(info, len(sampler), cases[0].x.shape[1:], len(alpha_x), mode),
    )  # fmt: skip


def _filled(
    info: TableInfo, steps: int, latent: tuple[int, ...], samples: int, mode: str
) -> TableInfo:
    return msgspec.structs.replace(
        info, steps=steps, latent=latent, samples=samples, calibration=mode
    )


def _add(
    sums: _Sums, case: Case, sampler: Sampler, guidance: Guidance, mode: str, terminal_t: float
) -> None:
    """One case's samples."""
    model, samples = case.model, len(case.x)
    alpha_x, alpha_t, gammas = (np.ones((samples, len(sampler))) for _ in range(3))
    before: Traced | None = None
    if mode == "forward":
        steps = noised(model, sampler, case.x, guidance, case.seed)
    else:
        steps = trace(model, sampler, case.x, guidance, Run())
    for step in steps:
        k, at = step.k, At(step.k, step.t)
        moved = wide(guidance.cut(model.run(step.after, at)))
        alpha_x[:, k] = _slope(rms(moved - step.y), rms(step.after - step.x))
        later = float(sampler.timesteps[k + 1]) if k + 1 < len(sampler) else 0.0
        later = max(later, terminal_t)
        aged = wide(guidance.cut(model.run(step.x, At(k, later))))
        alpha_t[:, k] = _slope(rms(aged - step.y), np.full(samples, abs(later - step.t)))
        if before is not None:
            _compare(sums, step, before, gammas)
        before = step if mode == "trajectory" else None
    sums.alpha_x.append(alpha_x)
    sums.alpha_t.append(alpha_t)
    if before is not None and before.residual is not None:
        sums.gammas.append(gammas)


def _compare(sums: _Sums, step: Traced, before: Traced, gammas: F64) -> None:
    """What MagCache and TeaCache want to know of two steps that follow each other."""
    if step.residual is not None and before.residual is not None:
        ratio = _norms(step.residual) / (_norms(before.residual) + 1e-16)
        gammas[:, step.k] = ratio.reshape(len(ratio), -1).mean(1)
    if step.feature is not None and before.feature is not None:
        sums.rho.append(relative_l1(step.feature, before.feature))
        sums.change.append(relative_l1(step.y, before.y))


def _norms(residual: Array) -> F64:
    """‖r‖₂ of each token, of [n, ..., d]."""
    return np.asarray(np.linalg.norm(residual, axis=-1), np.float64)


def _slope(change: F64, distance: F64) -> F64:
    return np.where(distance < STILL, 0.0, change / np.maximum(distance, STILL))


def fit(rho: NDArray[np.float64], change: NDArray[np.float64]) -> tuple[F64, float]:
    """TeaCache's polynomial from ρ of the feature to the output's relative L1 change, both [m]:
    least squares of degree 4 with ρ clipped at its 99th percentile. Returns (coefficients with the
    highest power first, R²); the identity where the fit explains less than half.
    """
    x = np.minimum(rho, np.percentile(rho, 99))
    identity = np.array([1.0, 0.0])
    if len(np.unique(x)) < 5:
        return identity, 0.0
    centre, spread = float(x.mean()), float(x.std())
    # Fitted in a centred, scaled variable, in which the powers are not alike.
    scaled = np.polynomial.Polynomial.fit(x, change, 4, domain=[centre - spread, centre + spread])
    total = float(((change - change.mean()) ** 2).sum())
    left = float(((change - scaled(x)) ** 2).sum())
    quality = 1 - left / total if total > 0 else 0.0
    given = np.asarray(scaled.convert().coef[::-1], np.float64)
    found: F64 = np.concatenate([np.zeros(5 - len(given)), given])
    sound = quality >= SOUND_FIT and bool(np.all(np.isfinite(found)))
    return (found if sound else identity), quality
