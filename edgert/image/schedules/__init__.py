"""Noise tables, timesteps and samplers."""

from __future__ import annotations

from .build import KINDS, Kind, flux_mu, sampler_of
from .sampler import Array, Prediction, Run, Sampler, first_step, start
from .samplers import DDIM, LCM, DPMSolver, Euler, FlowEuler

__all__ = [
    "DDIM", "KINDS", "LCM", "Array", "DPMSolver", "Euler", "FlowEuler", "Kind", "Prediction",
    "Run", "Sampler", "first_step", "flux_mu", "sampler_of", "start",
]  # fmt: skip
