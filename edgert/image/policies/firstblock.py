"""First-block cache, as diffusers has it: reuse while the first block does what it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..schedules import Array
from .base import Context, Kind, Plan, Policy, mean_abs, wide


@dataclass(kw_only=True)
class FirstBlock(Policy):
    """A step is computed iff mean|q - q_r| / mean|q_r| > tau, q_r that of the last computed step.

    For a model that is cut one block later: its `embed` runs block 0 and its `feature` is that
    block's residual q; what is kept is the residual of the other blocks.
    """

    name: ClassVar[str] = "first-block"
    wants: ClassVar[tuple[Kind, ...]] = ("residual",)
    tuned: ClassVar[str] = "tau"
    tau: float = 0.05

    @property
    def idle(self) -> bool:
        return self.tau <= 0

    def reset(self, plan: Plan) -> None:
        super().reset(plan)
        self._q: Array | None = None
        self._size: NDArray[np.float64] = np.zeros(plan.samples)

    def decide(self, ctx: Context) -> bool:
        if self.idle or self._q is None or self.forced(ctx.k):
            return True
        moved = mean_abs(wide(ctx.feature) - self._q) / (self._size + 1e-16)
        return not float(np.max(moved)) <= self.tau

    def observe(self, ctx: Context, computed: bool, output: Array) -> None:
        if computed and not self.idle:
            self._q = np.array(wide(ctx.feature))
            self._size = mean_abs(self._q)
