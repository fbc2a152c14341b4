"""TeaCache (arXiv 2411.19108): reuse until the accumulated change of block 0's modulated input is
large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..schedules import Array
from .base import Context, Plan, Policy, mean_abs, wide

# Degree 4, highest power first, of the authors' code.
POLYNOMIALS: dict[str, tuple[float, ...]] = {
    "identity": (1.0, 0.0),
    "flux": (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
    "ltx": (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326),
    "mochi": (-3512.41319, 811.675948, -60.9400215, 2.42429681, 0.00305291719),
    "hunyuan-video": (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896),
    "lumina-next": (393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344),
    "cogvideox-5b": (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
}


@dataclass(kw_only=True)
class TeaCache(Policy):
    """acc += poly(ρ), ρ = mean|z - z₋₁| / mean|z₋₁| from one step to the next, computed or not; a
    step is reused while acc < delta, and computing one sets acc to 0.

    polynomial: coefficients, highest power first. It may be negative somewhere; acc then falls, as
    in the authors' code.
    """

    name: ClassVar[str] = "teacache"
    tuned: ClassVar[str] = "delta"
    delta: float = 0.2
    polynomial: Sequence[float] = POLYNOMIALS["identity"]

    @property
    def idle(self) -> bool:
        return self.delta <= 0

    def reset(self, plan: Plan) -> None:
        super().reset(plan)
        self._before: Array | None = None
        self._size: NDArray[np.float64] = np.zeros(0)
        self._sum: NDArray[np.float64] = np.zeros(plan.samples)

    def signal(self, ctx: Context) -> Array:
        """What is compared from step to step, [n, ...]."""
        return wide(ctx.feature)

    def increment(self, rho: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a relative change of the signal adds, both [n]."""
        return np.asarray(np.polyval(self.polynomial, rho), np.float64)

    def decide(self, ctx: Context) -> bool:
        if self.idle:
            return True
        z = self.signal(ctx)
        if self._before is not None:
            self._sum += self.increment(mean_abs(z - self._before) / (self._size + 1e-16))
        self._before, self._size = z, mean_abs(z)
        compute = self.forced(ctx.k) or not float(np.max(self._sum)) < self.delta
        if compute:
            self._sum[:] = 0
        return compute
