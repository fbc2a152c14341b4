"""Cache policies as `benchmarks.image_caching` compares them, and their tuning to a number of
evaluations.

A threshold is first read off replays on uncached runs of the tuning seeds, then corrected on real
runs of the same seeds; where that does not reach the target, `tune.largest` bisects real runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgert.image.policies import (
    EasyCache,
    Fixed,
    MagCache,
    Policy,
    SeaCache,
    SenCache,
    TaylorLite,
    TeaCache,
)
from edgert.image.policies.base import Context, Kind, Plan
from edgert.image.schedules import Sampler
from edgert.image.tables import SensitivityTable
from edgert.image.tune import largest

F64 = NDArray[np.float64]
GRID = tuple(float(v) for v in np.geomspace(1e-4, 10, 49))  # thresholds of replays
NEAR = 0.25  # evaluations by which a corrected threshold may miss its target
TOLERANCE = 0.5  # what the protocol allows
METHODS = (
    "SenCache", "SenCache, n tuned", "SeaCache", "TeaCache", "MagCache", "EasyCache",
    "Taylor-Lite", "Fixed", "Fixed, warm", "Vanilla",
)  # fmt: skip
CAPS = (2, 3, 4, 5)  # of MagCache's hits in a row, one is chosen; its paper has 2 and 4
# (n, share of the steps with the start tolerance) that the retuned SenCache is chosen from
RETUNED = ((2, 0.2), (3, 0.2), (4, 0.2), (2, 0.0), (3, 0.0), (4, 0.0))


@dataclass(kw_only=True)
class Warm(Fixed):
    """A control for policies that compute the first fifth of the steps: those, then evenly spaced
    ones up to `evaluations` in all."""

    name: ClassVar[str] = "warm"
    start: float = 0.2

    def reset(self, plan: Plan) -> None:
        super().reset(plan)
        total, early = len(plan), round(self.start * len(plan))
        left = max(1, round(self.evaluations or total) - early)
        # the warm steps' last one counts as the first of the even ones
        later = np.linspace(early - 1, total - 1, left + 1)[1:]
        self._computed = {*range(early), *np.round(later).astype(int).tolist()}


@dataclass(frozen=True)
class Candidate:
    """A policy and mode, or (policy None) the uncached sampler over so many steps. key: names it
    among replays; empty where nothing is to be tuned."""

    policy: Policy | None = None
    mode: Kind | None = None
    steps: int | None = None
    key: str = ""

    def at(self, threshold: float) -> Candidate:
        assert self.policy is not None
        return replace(self, policy=self.policy.with_threshold(threshold))

    def settings(self) -> dict[str, Any]:
        """What a row says of it."""
        if self.policy is None:
            return {"steps": self.steps}
        hidden = ("table", "gammas", "polynomial", "plan")
        fields = {k: v for k, v in vars(self.policy).items() if k not in hidden and k[0] != "_"}
        return {**fields, **({"mode": self.mode} if self.mode else {})}


def candidates(name: str, table: SensitivityTable, target: float, total: int) -> list[Candidate]:
    """What the method may be for a target; the best on the tuning seeds is taken of several."""
    gammas = None if table.gammas is None else table.gammas.tolist()
    most = 2 if target >= total / 2 else 3
    if name.startswith("SenCache"):
        sen = SenCache(table=table, most=most)
        if name == "SenCache":
            return [Candidate(sen, key=f"SenCache {most} 0.2")]
        if name == "SenCache, output mode":
            return [Candidate(sen, "output", key=f"SenCache {most} 0.2")]
        return [
            Candidate(replace(sen, most=n, start=start), key=f"SenCache {n} {start:g}")
            for n, start in RETUNED
        ]
    if name == "Taylor-Lite":
        return list(_lines(target, total))
    if name == "MagCache":
        return [
            Candidate(MagCache(gammas=gammas, most=n), key=f"MagCache {n}") for n in CAPS
        ] if gammas else []  # fmt: skip
    found: dict[str, Callable[[], Candidate]] = {
        "SeaCache": lambda: Candidate(SeaCache(), key=name),
        "TeaCache": lambda: Candidate(TeaCache(**_own(table)), key=name),
        "EasyCache": lambda: Candidate(EasyCache(), key=name),
        "Fixed": lambda: Candidate(Fixed(evaluations=target)),
        "Fixed, warm": lambda: Candidate(Warm(evaluations=target)),
        "Fixed-2": lambda: Candidate(Fixed(interval=2)),
        "Vanilla": lambda: Candidate(steps=round(target)),
    }
    return [found[name]()]


def _own(table: SensitivityTable) -> dict[str, Any]:
    """TeaCache's polynomial of the model's own fit."""
    return {} if table.polynomial is None else {"polynomial": tuple(table.polynomial.tolist())}


def _lines(target: float, total: int) -> Iterator[Candidate]:
    """Taylor-Lite's schedules that take the target: two settings, no threshold."""
    for interval in range(2, 9):
        for before in range(2, total // 2):
            policy = TaylorLite(interval=interval, before=before)
            if abs(counted(policy, total) - target) <= TOLERANCE:
                yield Candidate(policy)


def counted(policy: Policy, total: int) -> int:
    """Evaluations of a policy that looks at the step's number alone."""
    policy = replace(policy)
    policy.reset(Plan(np.zeros(total), 0, total))
    blank = np.zeros((1, 1))
    return sum(policy.decide(Context(k, 0.0, 0.0, blank)) for k in range(total))


def decisions(policy: Policy, xs: NDArray[Any], sampler: Sampler) -> NDArray[np.bool_]:
    """What a policy that looks at latents alone computes of xs [T, C, H, W]."""
    policy, total = replace(policy), len(xs)
    policy.reset(Plan(sampler.timesteps, 0, total))
    found = np.zeros(total, bool)
    for k in range(total):
        context = Context(k, float(sampler.timesteps[k]), float(sampler.sigmas[k]), xs[k : k + 1])
        found[k] = policy.decide(context)
        policy.observe(context, bool(found[k]), xs[k : k + 1])
    return found


def replayable(
    table: SensitivityTable, targets: Sequence[float], total: int
) -> dict[str, tuple[Policy, tuple[float, ...]]]:
    """Every policy with a threshold, for `image_runs.Record`."""
    found: dict[str, tuple[Policy, tuple[float, ...]]] = {}
    for name in METHODS:
        for target in targets:
            for one in candidates(name, table, target, total):
                if one.key and one.policy is not None:
                    found[one.key] = (one.policy, GRID)
    return found


@dataclass(frozen=True)
class Tuned:
    """A candidate with its threshold, and on the tuning seeds: evaluations, mean PSNR, and how many
    thresholds were tried on real runs."""

    candidate: Candidate
    evaluations: float
    psnr: float
    tried: int


# Runs a candidate on the tuning seeds: mean evaluations and mean PSNR.
Trial = Callable[[Candidate], tuple[float, float]]


def tuned(candidate: Candidate, target: float, curve: F64 | None, trial: Trial) -> Tuned:
    """The threshold that takes the target. curve: evaluations of the replays, over GRID."""
    if not candidate.key:
        return Tuned(candidate, *trial(candidate), 1)
    known: dict[float, tuple[float, float]] = {}

    def evaluations(value: float) -> float:
        if value not in known:
            known[value] = trial(candidate.at(value))
        return known[value][0]

    value = between(curve, target) if curve is not None else 0.1
    count = evaluations(value)
    for _ in range(2):
        if abs(count - target) <= NEAR or curve is None:
            break
        # the replay said `here` where the run took `count`: asked for by so much less or more
        here = float(np.interp(math.log(value), np.log(GRID), curve))
        value = between(curve, target + here - count)
        count = evaluations(value)
    if abs(count - target) > TOLERANCE:
        value, count = largest(evaluations, target, between=(value / 8, value * 8), runs=8)
    best = min(known, key=lambda v: abs(known[v][0] - target))
    return Tuned(candidate.at(best), *known[best], len(known))


def between(curve: F64, target: float) -> float:
    """The threshold at which a falling curve over GRID meets the target."""
    falling = np.minimum.accumulate(curve)
    # a hair of slope, so that level stretches have one place each
    rising = -falling + 1e-9 * np.arange(len(falling))
    return float(math.exp(np.interp(-target, rising, np.log(GRID))))
