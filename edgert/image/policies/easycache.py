"""EasyCache (arXiv 2507.02860) as stable-diffusion.cpp has it: like SenCache with a sensitivity
measured on the way, so nothing has to be calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..schedules import Array
from .base import Context, Kind, Plan, Policy, mean_abs, wide


@dataclass(kw_only=True)
class EasyCache(Policy):
    """K = mean|Δy| / mean|Δx| between the last two computed steps; in each step
    E += K·mean|x - x_last| / mean|y_last|, and it is reused while E < tau. What is reused is y - x.

    begin, end: the part of the schedule in which steps may be reused.
    """

    name: ClassVar[str] = "easycache"
    wants: ClassVar[tuple[Kind, ...]] = ("difference",)
    tuned: ClassVar[str] = "tau"
    tau: float = 0.2
    begin: float = 0.15
    end: float = 0.95

    @property
    def idle(self) -> bool:
        return self.tau <= 0

    def reset(self, plan: Plan) -> None:
        super().reset(plan)
        self._x: Array | None = None
        self._y: Array | None = None
        self._rate: NDArray[np.float64] | None = None
        self._size: NDArray[np.float64] = np.zeros(plan.samples)
        self._error: NDArray[np.float64] = np.zeros(plan.samples)

    def decide(self, ctx: Context) -> bool:
        if self.idle or self._x is None or self._rate is None:
            return True
        moved = mean_abs(wide(ctx.x) - self._x)
        self._error += self._rate * moved / (self._size + 1e-16)
        progress = (self.plan.offset + ctx.k) / (self.plan.steps or len(self.plan))
        outside = not self.begin <= progress <= self.end
        return outside or self.forced(ctx.k) or not float(np.max(self._error)) < self.tau

    def observe(self, ctx: Context, computed: bool, output: Array) -> None:
        if not computed or self.idle:
            return
        x, y = np.array(wide(ctx.x)), np.array(wide(output))
        if self._x is not None and self._y is not None:
            self._rate = mean_abs(y - self._y) / (mean_abs(x - self._x) + 1e-16)
        self._x, self._y, self._size = x, y, mean_abs(y)
        self._error[:] = 0
