"""DDIM, DPM-Solver++ 2M, Euler, flow-matching Euler and LCM, as diffusers computes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .noise import F64
from .sampler import Array, Run, Sampler, drawn


@dataclass(frozen=True, kw_only=True, eq=False)
class DDIM(Sampler):
    """arXiv 2010.02502, eq. 12 and 16. previous: ᾱ after each step, float64 [N]; it is that of
    t - ⌊count/N⌋, which is the next timestep for `leading` spacing only. eta: 0 is deterministic.
    """

    previous: F64
    eta: float = 0.0

    def step(self, output: Array, k: int, x: Array, run: Run | None = None) -> Array:
        bar, after = float(self.alphas[k]) ** 2, float(self.previous[k])
        spread = 0.0
        if self.eta:
            spread = self.eta * math.sqrt((1 - after) / (1 - bar) * (1 - bar / after))
        noise = self.predicted_noise(output, k, x)
        found = math.sqrt(after) * self.clean(output, k, x)
        found += math.sqrt(max(1 - after - spread**2, 0.0)) * noise
        return found + spread * drawn(run, x) if spread else found


@dataclass(frozen=True, kw_only=True, eq=False)
class DPMSolver(Sampler):
    """DPM-Solver++ of data prediction, multistep, midpoint (arXiv 2211.01095, algorithm 2).

    order: 1 or 2. first_order_last: whether the last step is of first order although the terminal
    noise is not 0 (where it is 0, it always is).
    """

    order: int = 2
    first_order_last: bool = False

    def step(self, output: Array, k: int, x: Array, run: Run | None = None) -> Array:
        m = self.clean(output, k, x)
        past = run.outputs if run else None
        if run:
            run.outputs = (k, m)
        if self.noises[k + 1] == 0:
            return np.array(m)  # h is infinite, and e^-h is 0
        h = self.half_log_snr(k + 1) - self.half_log_snr(k)
        scale = -float(self.alphas[k + 1]) * math.expm1(-h)
        found = float(self.noises[k + 1] / self.noises[k]) * x + scale * m
        last = k == len(self) - 1 and self.first_order_last
        if self.order == 2 and past and past[0] == k - 1 and not last:
            r = (self.half_log_snr(k) - self.half_log_snr(k - 1)) / h
            found += (0.5 * scale / r) * (m - past[1])
        return found

    def half_log_snr(self, k: int) -> float:
        """λ = ln(α/s) before step k."""
        return math.log(self.alphas[k]) - math.log(self.noises[k])


@dataclass(frozen=True, kw_only=True, eq=False)
class Euler(Sampler):
    """Euler's method in the variables x/α, σ = s/α (arXiv 2206.00364, algorithm 1 with no churn).

    The latent is x0 + σ ε, and the network reads it divided by √(σ² + 1). leading: whether the
    first noise has the scale √(σ² + 1) instead of σ (`leading` spacing).
    """

    leading: bool = False

    @property
    def init_scale(self) -> float:
        peak = float(self.sigmas.max())
        return math.sqrt(peak * peak + 1) if self.leading else peak

    def scale_input(self, x: Array, k: int) -> Array:
        return x / math.sqrt(float(self.sigmas[k]) ** 2 + 1)

    def mixture(self, k: int) -> tuple[float, float]:
        scale = math.sqrt(float(self.sigmas[k]) ** 2 + 1)
        return 1 / scale, float(self.sigmas[k]) / scale

    def step(self, output: Array, k: int, x: Array, run: Run | None = None) -> Array:
        sigma, after = float(self.sigmas[k]), float(self.sigmas[k + 1])
        if self.prediction == "epsilon":
            return x + (after - sigma) * output
        if self.prediction == "v_prediction":
            a, s = self.mixture(k)
            x0 = a * a * x - s * output  # v is of the scaled latent
        else:
            x0 = output
        return x + ((after - sigma) / sigma) * (x - x0)


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowEuler(Sampler):
    """Euler's method on a rectified flow, v = ε - x0 (arXiv 2403.03206). stochastic: x0 is noised
    anew each step instead."""

    def step(self, output: Array, k: int, x: Array, run: Run | None = None) -> Array:
        sigma, after = float(self.sigmas[k]), float(self.sigmas[k + 1])
        if not self.stochastic:
            return x + (after - sigma) * output
        x0 = x - sigma * output
        return (1 - after) * x0 + after * drawn(run, x) if after else x0


@dataclass(frozen=True, kw_only=True, eq=False)
class LCM(Sampler):
    """Multistep consistency sampling (arXiv 2310.04378, algorithm 3). timestep_scale: of t in the
    boundary condition, with σ_data = 0.5."""

    timestep_scale: float = 10.0

    def step(self, output: Array, k: int, x: Array, run: Run | None = None) -> Array:
        u, data = self.timestep_scale * float(self.timesteps[k]), 0.5
        skip, out = data**2 / (u * u + data**2), u / math.sqrt(u * u + data**2)
        found = out * self.clean(output, k, x) + skip * x
        if k == len(self) - 1:
            return found
        return float(self.alphas[k + 1]) * found + float(self.noises[k + 1]) * drawn(run, x)
