"""What every sampler is: timesteps, noise levels, and one step from a latent to the next.

Samplers are frozen; what one generation carries along is in a `Run`. Arithmetic is in the latent's
dtype (float32) with coefficients computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ... import limits
from ...errors import RequestError
from .noise import F64

Array = NDArray[np.floating[Any]]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]


class Run:
    """What one generation carries from step to step: random streams and a solver's past.

    seeds: one for each latent of the batch; a latent's noise depends on its own seed alone, so a
    picture is the same in any batch. outputs: (k, x0) of the last step of a multistep solver.
    """

    def __init__(self, seeds: Sequence[int] = ()) -> None:
        for seed in seeds:
            if not 0 <= seed < 1 << limits.SEED_BITS:
                raise RequestError(
                    f"a seed is {seed}, expected from 0 to 2^{limits.SEED_BITS} - 1",
                    code="parameter-range",
                    hint="choose a smaller one that is not negative",
                    field="seed",
                )
        self._streams = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        self.outputs: tuple[int, Array] | None = None

    def noise(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Standard normal, float32 of `shape` = [n, ...] with n = len(seeds)."""
        if len(self._streams) != shape[0]:
            raise RequestError(
                f"{len(self._streams)} seeds for {shape[0]} latents, expected one each",
                code="seeds",
                hint="pass as many seeds as pictures",
                field="seeds",
            )
        drawn = [stream.standard_normal(shape[1:], np.float32) for stream in self._streams]
        return np.stack(drawn)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """One sampler over N steps.

    timesteps: what the network is given, float64 [N]. sigmas: noise levels, float64 [N+1], the last
    is the terminal one. alphas, noises: a latent before step k is alphas[k]·x0 + noises[k]·ε,
    float64 [N+1]. prediction: what the network's output is. stochastic: whether steps draw noise.
    """

    timesteps: F64
    sigmas: F64
    alphas: F64
    noises: F64
    prediction: Prediction = "epsilon"
    stochastic: bool = False
    clip: float | None = None  # |x0| at most; none for latents

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def init_scale(self) -> float:
        """Standard deviation of the first latent's noise."""
        return 1.0

    def scale_input(self, x: Array, k: int) -> Array:
        """The latent as the network reads it at step k."""
        return x

    def mixture(self, k: int) -> tuple[float, float]:
        """(a, b) of the network's input a·x0 + b·ε at step k."""
        return float(self.alphas[k]), float(self.noises[k])

    def add_noise(self, x0: Array, noise: Array, k: int) -> Array:
        """A clean latent noised to where step k begins (image to image)."""
        return float(self.alphas[k]) * x0 + float(self.noises[k]) * noise

    def step(self, output: Array, k: int, x: Array, run: Run | None = None) -> Array:
        """The latent after step k. output, x: [n, ...]. Without a run a multistep solver takes a
        first-order step, and a stochastic sampler raises RequestError."""
        raise NotImplementedError

    def clean(self, output: Array, k: int, x: Array) -> Array:
        """x0 as the network sees it: its output at step k, converted."""
        a, s = float(self.alphas[k]), float(self.noises[k])
        found: Array = output
        if self.prediction == "epsilon":
            found = (x - s * output) / a
        elif self.prediction == "v_prediction":
            found = a * x - s * output
        elif self.prediction == "flow_prediction":
            found = x - s * output
        return found if self.clip is None else np.clip(found, -self.clip, self.clip)

    def predicted_noise(self, output: Array, k: int, x: Array) -> Array:
        """ε as the network sees it, of the output before any clipping."""
        a, s = float(self.alphas[k]), float(self.noises[k])
        if self.prediction == "epsilon":
            return output
        if self.prediction == "v_prediction":
            return a * output + s * x
        return (x - a * output) / s


def drawn(run: Run | None, x: Array) -> Array:
    """Noise for a stochastic step."""
    if run is None:
        raise RequestError(
            "a stochastic sampler has no random numbers, expected a Run with seeds",
            code="seeds",
            hint="pass run=Run(seeds) to every step",
            field="run",
        )
    return run.noise(x.shape).astype(x.dtype, copy=False)


def start(sampler: Sampler, shape: tuple[int, ...], run: Run) -> NDArray[np.float32]:
    """The first latent, float32 of `shape` [n, ...]: noise at the sampler's own scale."""
    return run.noise(shape) * np.float32(sampler.init_scale)


def first_step(steps: int, strength: float) -> int:
    """Where image to image begins: `strength` in (0, 1] of the steps are executed, as in diffusers.

    Raises RequestError for a strength outside, or one that leaves no step.
    """
    if not (math.isfinite(strength) and 0 < strength <= 1) or int(steps * strength) < 1:
        raise RequestError(
            f"strength {strength} leaves no step of {steps}, expected more than "
            f"{1 / steps:.3g} and at most 1",
            code="parameter-range",
            hint="raise the strength or the number of steps",
            field="strength",
        )
    return steps - int(steps * strength)
