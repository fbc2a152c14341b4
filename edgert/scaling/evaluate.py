"""How well a frontier covers, on the data of its fit and on later ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from ..errors import EdgertError
from .bins import edges_of, index_of
from .classes import Binwise, Constant, ISpline, Quantile
from .frontier import PRESETS, TAU, fit_frontier
from .loss import F64, pinball

DRIFT = 0.02
CLASSES = ("constant", "binwise", "ispline", "sigmoid")


class Score(msgspec.Struct, frozen=True):
    """loss: mean smoothed pinball at kappa 50. signed: coverage - tau, mean over bins: negative
    where scores exceed the frontier. macro, micro: its absolute value, by bins and by points.
    gain: 1 - loss over the loss of a constant."""

    loss: float
    coverage: float
    signed: float
    macro: float
    micro: float
    gain: float
    count: int


class Roll(msgspec.Struct, frozen=True):
    """One class fitted on a period and tested on the next one. status: stable, advancing (newer
    models exceed the frontier), receding, insufficient (too little data), failed."""

    task: str
    train: str
    test: str
    kind: str
    status: str
    inside: Score | None = None
    outside: Score | None = None
    outside_own_bins: Score | None = None
    dropped: int = 0


class Evaluation(msgspec.Struct, frozen=True):
    """All rolls, means by class over those that were fitted, and tasks whose frontier should be
    fitted again."""

    rolls: tuple[Roll, ...]
    means: dict[str, dict[str, float]]
    refit: tuple[str, ...]
    preset: str
    seed: int


def score(model: Quantile, z: F64, y: F64, edges: F64, tau: float = TAU) -> Score:
    """Coverage and loss of a fitted quantile on points, in bins."""
    q = model.at(z)
    index = index_of(z, edges)
    below = (y <= q).astype(float)
    bins = [index == i for i in range(len(edges) - 1)]
    errors = np.array([below[b].mean() - tau for b in bins if b.any()])
    sizes = np.array([b.sum() for b in bins if b.any()])
    loss = float(np.mean(pinball(y - q, tau)))
    plain = float(np.mean(pinball(y - np.quantile(y, tau), tau)))
    return Score(
        loss, float(below.mean()), float(errors.mean()), float(np.abs(errors).mean()),
        float((np.abs(errors) * sizes).sum() / sizes.sum()), 1 - loss / plain, len(y),
    )  # fmt: skip


def fitted(kind: str, z: F64, y: F64, groups: F64, preset: str, *, fast: bool, seed: int,
           tau: float = TAU) -> Quantile:  # fmt: skip
    """A class fitted to points. Raises what its fit raises."""
    kappa, _ = PRESETS[preset]
    if kind == "constant":
        return Constant(y, tau)
    if kind == "binwise":
        return Binwise(z, y, tau, kappa)
    if kind == "ispline":
        return ISpline(z, y, tau, kappa, seed=seed, random_starts=2 if fast else 20)
    return fit_frontier(z, y, groups, tau=tau, preset=preset, fast=fast, seed=seed)


def evaluate_frontier(
    periods: Mapping[str, Mapping[str, Any]],
    *,
    preset: str = "edgert",
    kinds: Sequence[str] = CLASSES,
    fast: bool = False,
    seed: int = 0,
) -> Evaluation:
    """Fit on each period, test on the next, for every task.

    periods: name in order of time -> task -> (z [n], y [n], groups [n]). Too little data is a
    status, never an error.
    """
    names, rolls = list(periods), list[Roll]()
    for task in sorted({task for tasks in periods.values() for task in tasks}):
        for train, test in pairwise(names):
            if task in periods[train] and task in periods[test]:
                rolls += _rolls(task, train, test, periods, preset, kinds, fast, seed)
    known = [roll for roll in rolls if roll.outside is not None]
    means = {
        kind: {
            "loss": float(np.mean([r.outside.loss for r in known if r.kind == kind and r.outside])),
            "macro": float(
                np.mean([r.outside.macro for r in known if r.kind == kind and r.outside])
            ),
        }
        for kind in dict.fromkeys(roll.kind for roll in known)
    }
    refit = {r.task for r in rolls if r.kind == "sigmoid" and r.status == "advancing"}
    return Evaluation(tuple(rolls), means, tuple(sorted(refit)), preset, seed)


def _rolls(
    task: str, train: str, test: str, periods: Mapping[str, Mapping[str, Any]], preset: str,
    kinds: Sequence[str], fast: bool, seed: int,
) -> list[Roll]:  # fmt: skip
    z, y, groups = (np.asarray(a, np.float64) for a in periods[train][task])
    z2, y2, _ = (np.asarray(a, np.float64) for a in periods[test][task])
    kept = (z2 >= z.min(initial=np.inf)) & (z2 <= z.max(initial=-np.inf))
    dropped = int((~kept).sum())
    z2, y2 = z2[kept], y2[kept]
    enough = len(z) >= 3 and len(np.unique(z)) >= 2 and len(z2) >= 1
    edges = edges_of(z) if enough else np.zeros(2)
    if not enough or len(edges) < 3:
        return [Roll(task, train, test, kind, "insufficient", dropped=dropped) for kind in kinds]
    out = []
    for kind in kinds:
        try:
            model = fitted(kind, z, y, groups, preset, fast=fast, seed=seed)
        except (EdgertError, ValueError, np.linalg.LinAlgError):
            out.append(Roll(task, train, test, kind, "failed", dropped=dropped))
            continue
        inside, outside = score(model, z, y, edges), score(model, z2, y2, edges)
        own = score(model, z2, y2, edges_of(z2))
        out.append(
            Roll(task, train, test, kind, drift(outside.signed), inside, outside, own, dropped)
        )
    return out


def drift(signed: float) -> str:
    """What a signed coverage error on later data says of a frontier."""
    return "stable" if abs(signed) <= DRIFT else "advancing" if signed < 0 else "receding"
