"""The plan of pictures: sketches that keep every limit, ranked by score less a price of risk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..devices.profile import Profile
from ..errors import RequestError
from ..forecast.rates import rates_of, scaled
from ..scaling.loss import F64
from .cards import Workload
from .decide import (
    EVALUATED,
    MORE,
    REFUSED,
    RESOURCES,
    RISK,
    Option,
    Plan,
    Refused,
    binding_of,
    pareto_of,
    ranked_of,
    worth_of,
)
from .drawings import Drawn, costs_of, provenance, scores_of, sketches
from .quality import DRAWS


class _Tried:
    """What became of all candidates on a device. best: by limit, the best value that it keeps out.
    drawn: scores of those that were not measured, by label."""

    def __init__(self) -> None:
        self.options = list[Option]()
        self.refused = list[tuple[float, Refused]]()
        self.best: dict[str, float] = {}
        self.drawn: dict[str, F64] = {}
        self.count = 0


def prescribe_pictures(
    device: Profile, workload: Workload, models: Sequence[Drawn], risk: float = RISK, *,
    seed: int = 0,
) -> Plan:  # fmt: skip
    """The best way to draw with some bundles on a device. Raises RequestError where no model can
    draw pictures of the workload's size."""
    normal = np.random.default_rng(seed).standard_normal((2, DRAWS))
    tried = _tried(device, workload, models, normal, risk)
    ranked = ranked_of(tried.options)
    choice = ranked[0] if ranked else None
    now = max((option.value for option in tried.options), default=0.0)
    prices = {}
    for name in RESOURCES:
        more = _tried(scaled(device, **{name: MORE}), workload, models, normal, risk)
        best = max((option.value for option in more.options), default=0.0)
        prices[name] = round(max(0.0, best - now), 6)
    refused = [row for _, row in sorted(tried.refused, key=lambda pair: pair[0])]
    return Plan(
        schema=1, device=device.label, workload=workload, choice=choice,
        pareto=pareto_of(tried.options), ranked=tuple(ranked[:EVALUATED]),
        refused=tuple(refused[:REFUSED]), binding=binding_of(choice, tried.best, refused),
        prices=prices, measure=worth_of(ranked, tried.drawn), feasible=len(tried.options),
        considered=tried.count, risk=risk, provenance=_provenance(device, models, seed),
    )  # fmt: skip


def _tried(
    device: Profile, load: Workload, models: Sequence[Drawn], normal: F64, risk: float
) -> _Tried:
    found, faults = _Tried(), list[str]()
    rates = {name: rates_of(device, provider=name) for name in device.providers}
    for model, one, row in sketches(models, device, load):
        try:
            costs, count = costs_of(model, one, device, load, rates[one.provider])
        except RequestError as error:
            faults.append(f"{model.name}: {error.message}")
            continue
        found.count += 1
        calibrated = model.expected.table is not None
        drawn, quality = scores_of(one, count, row, normal, calibrated=calibrated)
        value = quality.mean - risk * (quality.mean - quality.low)
        if costs.violation <= 1:
            found.options.append(Option(one.label, one, costs, quality, value))
            if row is None:
                found.drawn[one.label] = drawn
        else:
            refused = Refused(one.label, costs.violation, costs.binding)
            found.refused.append((costs.violation, refused))
            found.best[costs.binding] = max(found.best.get(costs.binding, -1.0), value)
    if faults and not found.count:
        raise RequestError(
            f"no model draws such pictures: {faults[0]}", code="plan-pictures",
            hint="leave --width and --height out for a model's own size",
        )  # fmt: skip
    return found


def _provenance(device: Profile, models: Sequence[Drawn], seed: int) -> dict[str, Any]:
    basis = "measured by a probe" if device.measured else "data sheet and estimates"
    return {
        "device": basis, "spread": device.spread, "seed": seed, "pictures": provenance(models),
    }  # fmt: skip
