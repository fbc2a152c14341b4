"""MagCache (arXiv 2506.09045): reuse while the residual's known loss of size stays small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from .base import Context, Plan, Policy

FLUX = (
    1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344,
    0.98047, 1.01562, 1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047,
    0.98828, 0.96484, 0.95703, 0.93359, 0.89062,
)  # fmt: skip


def nearest(count: int, total: int) -> NDArray[np.int64]:
    """For each of `total` steps, which of `count` steps is like it; int64 [total]."""
    if total == 1:
        return np.zeros(1, np.int64)
    return np.round(np.arange(total) * (count - 1) / (total - 1)).astype(np.int64)


@dataclass(kw_only=True)
class MagCache(Policy):
    """From step ⌊retain·T + .5⌋ on: A *= γ_k, s += 1, E += |1 - A|; a step is reused while
    E ≤ delta and s ≤ most. Computing one sets A = 1, s = 0, E = 0.

    gammas: ‖r_k‖/‖r_{k-1}‖ of residuals over the steps of a calibration, the first is 1. strict:
    E < delta, as the code for Wan has it. never: steps of the calibration that are never reused
    (11 of 28 for FLUX).
    """

    name: ClassVar[str] = "magcache"
    tuned: ClassVar[str] = "delta"
    gammas: Sequence[float]
    delta: float = 0.06
    most: int = 3
    retain: float = 0.2
    strict: bool = False
    never: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        found = np.asarray(self.gammas, np.float64)
        if found.ndim != 1 or not len(found) or not np.all(np.isfinite(found) & (found > 0)):
            raise RequestError(
                f"gammas are {str(self.gammas)[:80]}, expected positive numbers, one a step",
                code="gammas",
                hint="calibrate them anew",
                field="gammas",
            )

    @property
    def idle(self) -> bool:
        return self.delta <= 0 or self.most <= 0

    def reset(self, plan: Plan) -> None:
        super().reset(plan)
        steps = plan.steps or len(plan)
        alike = nearest(len(self.gammas), steps)[plan.offset : plan.offset + len(plan)]
        self._gammas = np.asarray(self.gammas, np.float64)[alike]
        self._never = {k for k, index in enumerate(alike.tolist()) if index in self.never}
        self._from = int(self.retain * len(plan) + 0.5)
        self._restart()

    def decide(self, ctx: Context) -> bool:
        if self.idle or ctx.k < self._from:
            return True
        self._size *= float(self._gammas[ctx.k])
        self._count += 1
        self._error += abs(1 - self._size)
        fits = self._error < self.delta if self.strict else self._error <= self.delta
        hit = fits and self._count <= self.most and ctx.k not in self._never
        if hit and not self.forced(ctx.k):
            return False
        self._restart()
        return True

    def _restart(self) -> None:
        self._size, self._count, self._error = 1.0, 0, 0.0
