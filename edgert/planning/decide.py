"""The plan: candidates that keep every limit, ranked by score less a price of risk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from ..devices.profile import Profile
from ..forecast.rates import rates_of, scaled
from ..scaling.frontier import PRIOR, Frontier
from ..scaling.loss import F64
from .candidates import Candidate, Costs, candidates, costs_of
from .cards import Card, Workload
from .drawings import Sketch
from .quality import Draws, Laws, Quality, scores_of

RISK = 0.5
TIE = 0.002
REFUSED, EVALUATED = 5, 20
MORE = 1.1  # what a shadow price adds
RESOURCES = ("memory", "bandwidth", "compute")


class Option(msgspec.Struct, frozen=True):
    """A candidate with what it takes and what it reaches. value: mean - risk (mean - low)."""

    label: str
    candidate: Candidate | Sketch
    costs: Costs
    quality: Quality
    value: float


class Next(msgspec.Struct, frozen=True):
    """A candidate that is worth measuring: by how much the best choice is expected to gain, and
    that for each billion stored bytes, which is what measuring costs."""

    label: str
    gain: float
    gain_per_gb: float


class Refused(msgspec.Struct, frozen=True):
    """A candidate that breaks a limit, by the share of it that it takes."""

    label: str
    share: float
    binding: str


class Plan(msgspec.Struct, frozen=True):
    """choice: None where nothing keeps the limits; then `refused` says how near the nearest come.
    binding: the limit that the best candidate breaks that does not keep all of them, or that the
    choice keeps least. prices: what 10 % more of a resource adds to the score. provenance: laws and
    where each number comes from."""

    schema: int
    device: str
    workload: Workload
    choice: Option | None
    pareto: tuple[Option, ...]
    ranked: tuple[Option, ...]
    refused: tuple[Refused, ...]
    binding: str
    prices: dict[str, float]
    measure: tuple[Next, ...]
    feasible: int
    considered: int
    risk: float
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def prescribe(
    device: Profile,
    workload: Workload,
    models: Sequence[Card],
    laws: Laws | None = None,
    frontier: Frontier | None = None,
    risk: float = RISK,
    *,
    measured: Mapping[str, tuple[float, int]] | None = None,
    seed: int = 0,
    **grid: Any,
) -> Plan:
    """The best candidate of some models for a workload on a device.

    laws, frontier: None for the papers' constants and a shape without data. risk: 0 takes the mean,
    1 the 5 %. measured: label -> score and items of a real evaluation, which replaces that
    candidate's draws. grid: what `candidates` takes (bits, groups, ratios, kv_bits, allow_risky,
    drafts).
    """
    laws, frontier = laws or Laws(), frontier or PRIOR
    draws = Draws(frontier, seed)
    scores = _Scores(laws, draws, measured or {}, risk)
    options, refused, considered = _options(device, workload, models, scores, grid)
    ranked = ranked_of(options)
    choice = ranked[0] if ranked else None
    now = max((option.value for option in options), default=0.0)
    prices = _prices(device, workload, models, scores, grid, now)
    return Plan(
        schema=1, device=device.label, workload=workload, choice=choice,
        pareto=pareto_of(options), ranked=tuple(ranked[:EVALUATED]),
        refused=tuple(refused[:REFUSED]), binding=binding_of(choice, scores.refused, refused),
        prices=prices, measure=worth_of(ranked, scores.drawn(ranked)), feasible=len(options),
        considered=considered, risk=risk,
        provenance=_provenance(device, frontier, laws, seed),
    )  # fmt: skip


class _Scores:
    """Draws of scores by candidate; providers share them."""

    def __init__(
        self, laws: Laws, draws: Draws, measured: Mapping[str, tuple[float, int]], risk: float
    ) -> None:
        self.laws, self.draws, self.measured, self.risk = laws, draws, measured, risk
        self.known: dict[Candidate, tuple[F64, Quality]] = {}
        self.refused: dict[str, float] = {}

    def of(self, card: Card, one: Candidate) -> tuple[F64, Quality]:
        key = msgspec.structs.replace(one, provider="", draft="")
        if one.label in self.measured:
            return self._measured(card, one)
        if key not in self.known:
            self.known[key] = scores_of(card, one, self.laws, self.draws)
        return self.known[key]

    def _measured(self, card: Card, one: Candidate) -> tuple[F64, Quality]:
        score, items = self.measured[one.label]
        _, quality = scores_of(card, one, self.laws, self.draws)
        deviation = (score * (1 - score) / max(items, 1)) ** 0.5
        found = np.clip(score + deviation * self.draws.normal[3], 0, 1)
        low, high = (float(np.quantile(found, q)) for q in (0.05, 0.95))
        return found, msgspec.structs.replace(
            quality, mean=score, low=low, high=high, source="measured"
        )

    def drawn(self, options: Sequence[Option]) -> dict[str, F64]:
        """Draws of those that were not measured, by label."""
        found = {}
        for option in options:
            if isinstance(option.candidate, Candidate) and option.label not in self.measured:
                key = msgspec.structs.replace(option.candidate, provider="", draft="")
                found[option.label] = self.known[key][0]
        return found

    def option(self, card: Card, one: Candidate, costs: Costs) -> Option:
        _, quality = self.of(card, one)
        value = quality.mean - self.risk * (quality.mean - quality.low)
        return Option(one.label, one, costs, quality, value)


def _options(
    device: Profile, load: Workload, models: Sequence[Card], scores: _Scores,
    grid: Mapping[str, Any],
) -> tuple[list[Option], list[Refused], int]:  # fmt: skip
    """Options that keep all limits; the others by how little they break one; how many in all."""
    options, refused, count = list[Option](), list[tuple[float, Refused]](), 0
    by_name = {card.name: card for card in models}
    rates = {name: rates_of(device, provider=name) for name in device.providers}
    for card, one in candidates(models, device, load=load, **grid):
        count += 1
        draft = by_name.get(one.draft)
        costs = costs_of(card, one, device, load, draft, rates=rates[one.provider])
        if costs.violation <= 1:
            options.append(scores.option(card, one, costs))
        else:
            refused.append((costs.violation, Refused(one.label, costs.violation, costs.binding)))
            scores.refused[costs.binding] = max(
                scores.refused.get(costs.binding, -1.0), scores.option(card, one, costs).value
            )
    refused.sort(key=lambda pair: pair[0])
    return options, [row for _, row in refused], count


def ranked_of(options: Sequence[Option]) -> list[Option]:
    """Best first; among those within a tie of the best, the quickest, then the smallest."""
    rest, out = sorted(options, key=lambda o: (-o.value, o.label)), list[Option]()
    while rest:
        tied = [o for o in rest if o.value >= rest[0].value - TIE]
        best = min(tied, key=lambda o: (o.costs.total_s, o.costs.memory, o.label))
        out.append(best)
        rest.remove(best)
        if len(out) >= EVALUATED:
            return out + rest
    return out


def pareto_of(options: Sequence[Option]) -> tuple[Option, ...]:
    """Those that no other one beats in total time, memory and mean score, quickest first."""
    order = sorted(options, key=lambda o: (o.costs.total_s, o.costs.memory, -o.quality.mean))
    kept: list[Option] = []
    for one in order:
        beaten = any(
            k.costs.memory <= one.costs.memory and k.quality.mean >= one.quality.mean for k in kept
        )
        if not beaten:
            kept.append(one)
    return tuple(kept)


def binding_of(choice: Option | None, best: Mapping[str, float], refused: Sequence[Refused]) -> str:
    """The limit that keeps a better candidate out, or, where none does, that the choice keeps
    least. best: by limit, the best value among the candidates that it keeps out."""
    if choice is None:
        return refused[0].binding if refused else "providers"
    better = {name: value for name, value in best.items() if value > choice.value}
    return max(better, key=lambda name: better[name]) if better else choice.costs.binding


def _prices(
    device: Profile, load: Workload, models: Sequence[Card], scores: _Scores,
    grid: Mapping[str, Any], now: float,
) -> dict[str, float]:  # fmt: skip
    """What a tenth more of each resource adds to the best value."""
    out = {}
    for name in RESOURCES:
        apart = _Scores(scores.laws, scores.draws, scores.measured, scores.risk)
        apart.known = scores.known
        options, _, _ = _options(scaled(device, **{name: MORE}), load, models, apart, grid)
        best = max((o.value for o in options), default=0.0)
        out[name] = round(max(0.0, best - now), 6)
    return out


def worth_of(ranked: Sequence[Option], drawn: Mapping[str, F64]) -> tuple[Next, ...]:
    """What a measurement of each of the best is expected to add: E[max after] - max E. drawn:
    scores by label, of those that were not measured."""
    if len(ranked) < 2:
        return ()
    found = []
    top = ranked[:EVALUATED]
    means = [option.quality.mean for option in top]
    for index, option in enumerate(top):
        others = max(mean for i, mean in enumerate(means) if i != index)
        if option.label not in drawn:
            continue
        gain = float(np.maximum(drawn[option.label], others).mean()) - max(means)
        if gain > 1e-6:
            found.append(Next(option.label, gain, gain / (option.costs.stored / 1e9)))
    found.sort(key=lambda one: -one.gain_per_gb)
    return tuple(found[:REFUSED])


def _provenance(device: Profile, frontier: Frontier, laws: Laws, seed: int) -> dict[str, Any]:
    basis = "measured by a probe" if device.measured else "data sheet and estimates"
    return {
        "device": basis, "spread": device.spread, "seed": seed,
        "frontier": {"preset": frontier.preset, "confidence": frontier.confidence,
                     "theta": list(frontier.theta), "z_unit": frontier.z_unit},
        "laws": laws.named(),
        "drafts": "4 tokens a turn, 1.8 accepted where a card does not say: a prior",
        "kv": "priors: 0 at 16 bits, 0.002 nats at 8, 0.03 at 4",
    }  # fmt: skip
