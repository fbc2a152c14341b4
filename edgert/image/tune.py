"""Thresholds for a wanted number of evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import RequestError
from .calibrate import Case
from .guidance import Guidance
from .loop import Caching, sample
from .policies import Fixed, Policy, SenCache
from .schedules import Sampler

RANGE = (1e-4, 10.0)
RUNS = 8


@dataclass(frozen=True)
class Tuned:
    """A policy with its threshold, and the mean number of evaluations that it then takes."""

    policy: Policy
    evaluations: float


def largest(
    evaluations: Callable[[float], float], target: float, *,
    between: tuple[float, float] = RANGE, runs: int = RUNS,
) -> tuple[float, float]:  # fmt: skip
    """Bisection on the logarithm: (the largest threshold found with at least `target` evaluations,
    how many it takes). evaluations: falls as the threshold rises; asked `runs` times, and once more
    if none was small enough."""
    low, high = math.log(between[0]), math.log(between[1])
    best: tuple[float, float] | None = None
    for _ in range(runs):
        middle = (low + high) / 2
        count = evaluations(math.exp(middle))
        if count >= target:
            best, low = (math.exp(middle), count), middle
        else:
            high = middle
    return best or (between[0], evaluations(between[0]))


def tune(
    policy: Policy, cases: Sequence[Case], sampler: Sampler, target: float, *,
    guidance: Guidance | None = None, caching: Caching | None = None,
    between: tuple[float, float] = RANGE,
) -> Tuned:  # fmt: skip
    """The policy with a threshold that takes about `target` evaluations of len(sampler), never
    fewer in the mean; 4 held-out seeds are enough. SenCache's cap becomes 2 for half of the steps
    and more, else 3. Raises RequestError for a target or a policy that cannot be tuned."""
    total = len(sampler)
    if not (math.isfinite(target) and 1 <= target <= total) or not cases:
        raise RequestError(
            f"{target} evaluations on {len(cases)} cases, expected from 1 to {total} and a case",
            code="parameter-range",
            hint="half of the steps is a good start",
            field="target",
        )
    if isinstance(policy, SenCache):
        policy = replace(policy, most=2 if target >= total / 2 else 3)
    settings = caching or Caching()

    def count(candidate: Policy) -> float:
        chosen = replace(settings, policy=candidate)
        runs = (
            sample(case.model, sampler, case.x, guidance=guidance, caching=chosen) for case in cases
        )
        return float(np.mean([run.evaluations for run in runs]))

    if isinstance(policy, Fixed) and policy.tuned == "evaluations":
        spread = replace(policy, evaluations=target)
        return Tuned(spread, count(spread))
    if policy.tuned not in ("epsilon", "delta", "tau"):
        raise RequestError(
            f"the cache policy {policy.name} has no threshold, expected one with epsilon, delta or "
            "tau",
            code="policy",
            hint="choose its interval by hand",
            field="policy",
        )
    value, taken = largest(lambda v: count(policy.with_threshold(v)), target, between=between)
    return Tuned(policy.with_threshold(value), taken)
