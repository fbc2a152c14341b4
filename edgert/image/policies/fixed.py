"""Policies that decide by the step's number alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...errors import RequestError
from .base import Context, Kind, Plan, Policy, Store


@dataclass(kw_only=True)
class Fixed(Policy):
    """Computes every `interval`-th step and the last; or `evaluations` steps, spread evenly over
    all of them with the first and the last among them."""

    name: ClassVar[str] = "fixed"
    tuned: ClassVar[str] = "evaluations"
    interval: int = 2
    evaluations: float | None = None

    def __post_init__(self) -> None:
        if self.interval < 1 or (self.evaluations is not None and not self.evaluations >= 1):
            raise RequestError(
                f"interval {self.interval}, evaluations {self.evaluations}, expected 1 or more",
                code="parameter-range",
                hint="an interval of 1 computes every step",
                field="interval" if self.interval < 1 else "evaluations",
            )

    @property
    def idle(self) -> bool:
        return self.interval == 1 and self.evaluations is None

    def reset(self, plan: Plan) -> None:
        super().reset(plan)
        total = len(plan)
        if self.evaluations is None:
            self._computed = set(range(0, total, self.interval))
        else:
            count = min(max(round(self.evaluations), 1), total)
            self._computed = set(np.round(np.linspace(0, total - 1, count)).astype(int).tolist())

    def decide(self, ctx: Context) -> bool:
        return self.forced(ctx.k) or ctx.k in self._computed


@dataclass(kw_only=True)
class FORA(Fixed):
    """FORA (arXiv 2407.01425): the outputs of every block's attention and MLP are kept before
    their gates, and reused with fresh gates in between."""

    name: ClassVar[str] = "fora"
    wants: ClassVar[tuple[Kind, ...]] = ("blocks",)
    interval: int = 3


class Line(Store):
    """The line through the values of the last two computed steps."""

    def __init__(self) -> None:
        super().__init__()
        self._k = 0
        self._before: tuple[int, Any] | None = None

    def put(self, k: int, value: Any) -> None:
        if not self.empty:
            self._before = self._k, self.value
        self._k, self.value = k, value

    def get(self, k: int) -> Any:
        if self._before is None:
            return self.value
        k0, value0 = self._before
        return self.value + ((k - self._k) / (self._k - k0)) * (self.value - value0)


@dataclass(kw_only=True)
class TaylorLite(Policy):
    """TaylorSeer-Lite, the first order of TaylorSeer (arXiv 2503.06923) on outputs, with the
    schedule of OpenVINO GenAI: `before` steps computed first, then one in `interval`, and all from
    step T + after on."""

    name: ClassVar[str] = "taylor"
    wants: ClassVar[tuple[Kind, ...]] = ("output", "residual")
    tuned: ClassVar[str] = "interval"
    interval: int = 3
    before: int = 6
    after: int = -2

    @property
    def idle(self) -> bool:
        return self.interval <= 1

    def decide(self, ctx: Context) -> bool:
        warm = max(self.before, 2)
        if ctx.k < warm or ctx.k >= len(self.plan) + self.after or self.forced(ctx.k):
            return True
        late = ctx.k - warm - (self.interval - 1)
        return late >= 0 and late % self.interval == 0

    def store(self) -> Store:
        return Line()
