"""Classifier-free guidance (arXiv 2207.12598): one output from those of two branches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .schedules import Array

COND, UNCOND = "cond", "uncond"


@dataclass(frozen=True)
class Guidance:
    """How branches become one output.

    scale: w of y_∅ + w (y_c - y_∅); up to 1 the conditional branch alone is run. rescale: φ in
    [0, 1] of arXiv 2305.08891, which pulls the standard deviation back to the conditional one's.
    channels: keep the first so many channels (axis 1) of every output; DiT and PixArt predict a
    variance in the rest, which no sampler here reads.
    """

    scale: float = 1.0
    rescale: float = 0.0
    channels: int | None = None

    def __post_init__(self) -> None:
        for name, value, high in (("scale", self.scale, 1000.0), ("rescale", self.rescale, 1.0)):
            if not (math.isfinite(value) and 0 <= value <= high):
                raise RequestError(
                    f"guidance {name} is {value}, expected from 0 to {high:g}",
                    code="parameter-range",
                    hint="leave it out for the model's default",
                    field=name,
                )

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that have to be run."""
        return (COND, UNCOND) if self.scale > 1 else (COND,)

    @property
    def amplification(self) -> float:
        """The largest factor from an error of the branches to one of the guided output."""
        return self.scale + abs(1 - self.scale) if self.scale > 1 else 1.0

    @property
    def alone(self) -> Guidance:
        """Without a second branch, for models that do not guide, or are told the scale."""
        return replace(self, scale=1.0)

    def cut(self, y: Array) -> Array:
        """The channels that are kept of y [n, C or more, ...]."""
        return y if self.channels is None else y[:, : self.channels]

    def combine(self, outputs: Mapping[str, Array]) -> Array:
        """One output [n, ...] from those of `branches`, each [n, ...]."""
        cond = outputs[COND]
        if self.scale <= 1:
            return cond
        uncond = outputs[UNCOND]
        guided = uncond + self.scale * (cond - uncond)
        if not self.rescale:
            return guided
        axes = tuple(range(1, cond.ndim))
        spread = guided.std(axis=axes, keepdims=True)
        ratio = cond.std(axis=axes, keepdims=True) / np.where(spread > 0, spread, 1)
        factor: Array = self.rescale * ratio + (1 - self.rescale)
        return guided * factor.astype(cond.dtype)


def scale_row(scale: float, width: int) -> NDArray[np.float32]:
    """float32 [1, width] by which a distilled model knows the guidance scale (arXiv 2210.03142):
    sines, then cosines, of 1000 (scale - 1)."""
    half = width // 2
    angles = 1000 * (scale - 1) * np.exp(np.arange(half) * (-math.log(10_000) / max(half - 1, 1)))
    row = np.zeros((1, width), np.float32)
    row[0, : 2 * half] = np.concatenate([np.sin(angles), np.cos(angles)])
    return row
