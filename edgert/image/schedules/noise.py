"""Noise tables of variance-preserving models, and the timesteps that are picked from them.

A model was trained with x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε (arXiv 2006.11239). The spacings are those of
arXiv 2305.08891, table 2, as diffusers computes them; each sampler differs a little there.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError

F64 = NDArray[np.floating[Any]]
SMALLEST = 2.0**-24  # ᾱ in place of 0 where σ = √((1 - ᾱ)/ᾱ) has to be finite


@lru_cache(maxsize=16)
def alpha_bars(kind: str, low: float, high: float, count: int, zero_snr: bool = False) -> F64:
    """ᾱ_t for t = 0..count-1, float64 [count], read-only.

    kind: "linear", "scaled_linear" or "squaredcos_cap_v2". low, high: the first and last β (no
    meaning for the cosine). zero_snr: rescaled so that the last is 0 (arXiv 2305.08891, alg. 1).
    """
    found: F64 = np.cumprod(1.0 - betas(kind, low, high, count))
    if zero_snr:
        root = np.sqrt(found)
        found = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    found.flags.writeable = False
    return found


def betas(kind: str, low: float, high: float, count: int) -> F64:
    """β_t, float64 [count]."""
    if kind == "linear":
        return np.linspace(low, high, count, dtype=np.float64)
    if kind == "scaled_linear":
        return np.square(np.linspace(math.sqrt(low), math.sqrt(high), count, dtype=np.float64))
    edges: F64 = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return np.minimum(1.0 - edges[1:] / edges[:-1], 0.999)


def sigmas_of(alpha_bar: F64) -> F64:
    """σ = √((1 - ᾱ)/ᾱ), the noise level in k-diffusion's variables; ᾱ = 0 counts as 2⁻²⁴."""
    kept = np.where(alpha_bar > 0, alpha_bar, SMALLEST)
    return np.sqrt((1.0 - kept) / kept)


def leading(steps: int, count: int, offset: int, *, extra: int = 0) -> F64:
    """Multiples of ⌊count/(steps+extra)⌋, descending, plus offset; float64 [steps]. extra: 1 for
    DPM-Solver++, which leaves the smallest out. The network knows no t of `count` or more."""
    stride = count // (steps + extra)
    return _within(np.arange(extra, steps + extra)[::-1] * float(stride) + offset, count)


def trailing(steps: int, count: int, last: int | None = None) -> F64:
    """From `last` (`count`) down in strides of count/steps, rounded, minus 1; float64 [steps]."""
    found = np.round(np.arange(count if last is None else last, 0, -count / steps)) - 1.0
    return found[:steps]


def linspace(steps: int, last: int, *, extra: int = 0, whole: bool = True) -> F64:
    """Evenly from `last` down to 0, float64 [steps]. extra: 1 leaves the final 0 out."""
    found = np.linspace(0, last, steps + extra)[::-1][:steps]
    return np.round(found) if whole else np.ascontiguousarray(found)


def karras(low: float, high: float, steps: int, rho: float = 7.0) -> F64:
    """Descending σ of arXiv 2206.00364, eq. 5, float64 [steps]."""
    ramp = np.linspace(0.0, 1.0, steps)
    return np.asarray(
        (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho, np.float64
    )


def timesteps_of(sigmas: F64, table: F64) -> F64:
    """The fractional t at which an ascending σ table [count] has these σ, interpolated in log σ."""
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(table), np.arange(len(table)))


def _within(timesteps: F64, count: int) -> F64:
    if len(timesteps) and timesteps[0] >= count:
        raise RequestError(
            f"{len(timesteps)} steps with this schedule's offset begin at t = {timesteps[0]:g}, "
            f"expected at most {count - 1}",
            code="steps",
            hint="ask for fewer steps or another sampler",
            field="steps",
        )
    return timesteps
