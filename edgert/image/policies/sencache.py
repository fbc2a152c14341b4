"""SenCache (arXiv 2602.24208): a step is reused while a first-order bound of the output's change
stays small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from ..schedules import Array
from .base import Context, Plan, Policy, rms, wide


class Sensitivities(Protocol):
    """What SenCache asks of a table (`tables.SensitivityTable`). t: float64 [T]. alpha_x:
    ‖Δf‖/‖Δx‖, alpha_t_rms: ‖Δf‖/(√D |Δt|), float64 [T]."""

    @property
    def t(self) -> NDArray[np.float64]: ...
    @property
    def alpha_x(self) -> NDArray[np.float64]: ...
    @property
    def alpha_t_rms(self) -> NDArray[np.float64]: ...


@dataclass(kw_only=True)
class SenCache(Policy):
    """S = α_x(t_r)·RMS(x - x_r) + α_t(t_r)·|t - t_r| against the last computed step r; a step is
    reused while S < ε and fewer than `most` steps in a row were.

    epsilon: the tolerance. epsilon_start: that of the first `start` of the steps. most: the cap.
    guided: divide both by guidance's amplification of errors. Tolerances are valid for one table.
    """

    name: ClassVar[str] = "sencache"
    tuned: ClassVar[str] = "epsilon"
    table: Sensitivities
    epsilon: float = 0.1
    epsilon_start: float = 0.01
    most: int = 3
    start: float = 0.2
    guided: bool = False

    def __post_init__(self) -> None:
        if math.isnan(self.epsilon) or self.epsilon < 0 or not self.epsilon_start >= 0:
            raise RequestError(
                f"epsilon is {self.epsilon}, epsilon_start {self.epsilon_start}, expected 0 or "
                "more",
                code="parameter-range",
                hint="0 computes every step; `tune` finds one for a number of evaluations",
                field="epsilon",
            )

    @property
    def idle(self) -> bool:
        return self.epsilon == 0 or self.most <= 0

    def reset(self, plan: Plan) -> None:
        super().reset(plan)
        self._x: Array | None = None
        self._t = self._alpha_x = self._alpha_t = 0.0
        self._hits = 0
        self._early = round(self.start * len(plan))
        self._divisor = plan.amplification if self.guided else 1.0

    def decide(self, ctx: Context) -> bool:
        if self.idle or self._x is None or self.forced(ctx.k) or self._hits >= self.most:
            return True
        epsilon = self.epsilon_start if ctx.k < self._early else self.epsilon
        return not self.score(ctx) < epsilon / self._divisor  # NaN computes

    def score(self, ctx: Context) -> float:
        """S, the largest in the batch."""
        if self._x is None:
            return math.inf
        moved = float(np.max(rms(wide(ctx.x) - self._x)))
        return self._alpha_x * moved + self._alpha_t * abs(ctx.t - self._t)

    def observe(self, ctx: Context, computed: bool, output: Array) -> None:
        if not computed:
            self._hits += 1
            return
        self._hits, self._t = 0, ctx.t
        self._x = np.array(wide(ctx.x))
        row = int(np.argmin(np.abs(self.table.t - ctx.t)))
        self._alpha_x = float(self.table.alpha_x[row])
        self._alpha_t = float(self.table.alpha_t_rms[row])
