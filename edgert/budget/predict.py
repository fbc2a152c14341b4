"""Verdicts on limits without running anything: from the graph and the device's rates.

Rates are of a machine that is left alone, so what they say is a median. How far the 90th percentile
lies above it is what edgert's own single steps and prompts showed (`TAILS`). Nothing measured says
that of the 99th, which is only known to be no less than the median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..bundle.reader import Bundle
from ..devices.profile import Profile
from ..forecast import latency
from ..forecast.memory import BASE, footprint, tokenizer_bytes
from ..forecast.pictures import picture_seconds
from ..forecast.rates import alone_of, pace_of, rates_of
from ..forecast.starting import starting, touching
from ..forecast.work import lowered, works
from .limits import Limit
from .report import Verdict, missing, verdict
from .statistics import Band

MEMORY_SPREAD = 0.05  # of what is counted from a graph
START_SPREAD = 0.20  # of what Python and the system do, at least
START_TOKENS = 32  # of the prompt of a cold start


class Tail(NamedTuple):
    """A quantile over the median: the geometric mean, and the deviation of its logarithm."""

    ratio: float
    spread: float


# Quiet rows of edgert in benchmarks/results/text_peers.jsonl: 34 of 48 or 96 single steps each, 22
# of two or four prompts each, on virtual machines of two cores.
TAILS = {("token", 0.9): Tail(1.22, 0.17), ("prompt", 0.9): Tail(1.06, 0.07)}


class Expected(NamedTuple):
    """What a value is expected to be, in seconds, bytes or 1 over seconds, and the deviation of its
    logarithm; why: what else is to be said."""

    value: float
    spread: float
    why: str = ""


Answer = Callable[[Limit], "Expected | str"]  # a text: why there is none


def predict(
    path: Path, wanted: Sequence[Limit], profile: Profile, *, threads: int | None = None,
    kv_bits: int = 0, provider: str = "cpu",
) -> list[Verdict]:  # fmt: skip
    """A verdict on each limit, in their order; the band holds the value with 90 % probability. What
    the bundle has not, and what cannot be known without measuring, is undecided."""
    context: int | None = None
    with Bundle.open(path) as bundle:
        kind = bundle.manifest.kind
        if kind == "image":
            answer = _pictures(bundle, profile, threads, provider)
        elif kind == "text":
            answer = _texts(bundle, profile, threads, kv_bits, provider)
            context = bundle.graph().context
        else:
            why = f"bundles of the kind {kind} are not predicted"
            return [missing(limit, "predicted", why) for limit in wanted]
    out = []
    for limit in wanted:
        found = limit.unfit(kind, context) or answer(limit)
        if isinstance(found, str):
            out.append(missing(limit, "predicted", found))
        else:
            out.append(_judged(limit, found))
    return out


def _judged(limit: Limit, median: Expected) -> Verdict:
    """The verdict on a quantile of what has this median."""
    quantile, scale, why = limit.metric.quantile, limit.metric.scale, median.why
    tail = Tail(1.0, 0.0) if quantile == 0.5 else TAILS.get((limit.metric.kind, quantile))
    if tail is None:
        low = latency.interval(median.value, median.spread)[1] * scale
        why = f"at least the median; nothing that was measured says how far p{100 * quantile:.0f} "
        return verdict(limit, Band(math.inf, low, math.inf), "predicted", why=f"{why}lies above it")
    spread = math.hypot(median.spread, tail.spread)
    band = latency.interval(median.value * tail.ratio, spread)
    return verdict(limit, Band(*(number * scale for number in band)), "predicted", why=why)


def _texts(
    bundle: Bundle, profile: Profile, threads: int | None, kv_bits: int, provider: str
) -> Answer:
    """Answers for a model that writes."""
    graph, rates = bundle.graph(), rates_of(profile, threads, provider)
    alone = alone_of(profile, provider)
    tokenizer = tokenizer_bytes(bundle.path / "tokenizer.json")
    found = works(lowered(graph, threads=rates.threads, kv_bits=kv_bits))
    base = profile.measured.base_bytes if profile.measured else BASE
    taken = footprint(
        graph, tokens=min(520, graph.context), threads=rates.threads, kv_bits=kv_bits,
        tokenizer=tokenizer, base=base, head=bundle.head(),
    )  # fmt: skip
    pace = pace_of(profile)
    begun = starting(nodes=len(graph.nodes), tokenizer=tokenizer, weights=taken.weights, pace=pace)
    prompt = min(START_TOKENS, graph.context - 2)
    first = latency.prompt_seconds(found, rates, prompt) + touching(taken.weights, pace)
    others = _beside(begun.load, begun.ready + first, taken.total, profile)

    def answer(limit: Limit) -> Expected | str:
        if limit.metric.kind == "token":
            value = latency.paced_seconds(found, rates, alone, depth=limit.tokens or 0)
            return Expected(1 / value if limit.name == "tokens_per_s" else value, profile.spread)
        if limit.metric.kind == "prompt":
            value = latency.prompt_seconds(found, rates, limit.tokens or 0)
            return Expected(value, profile.spread)
        return others.get(limit.name, f"{limit.name} is not predicted")

    return answer


def _pictures(bundle: Bundle, profile: Profile, threads: int | None, provider: str) -> Answer:
    """Answers for a model that draws: pictures as the bundle's own defaults draw them."""
    from ..image.expected import Drawing
    from ..image.expected import Expected as Pictured

    rates, pictured = rates_of(profile, threads, provider), Pictured(bundle)
    asked = Drawing(threads=rates.threads)
    once = asked._replace(steps=1, cache="none")  # as the processes that are started
    loop = pictured.denoising(asked)
    seconds = picture_seconds(pictured.pieces(asked), rates)
    base = profile.measured.base_bytes if profile.measured else BASE
    taken = pictured.memory(once, base)
    pace = pace_of(profile)
    begun = starting(nodes=pictured.nodes, tokenizer=float(pictured.tokenizer), pace=pace)
    first = picture_seconds(pictured.pieces(once), rates)
    first += touching(taken - base, pace, nodes=pictured.nodes)
    found: dict[str, Expected | str] = _beside(
        begun.load, begun.ready + first, taken, profile
    )  # fmt: skip
    why = "" if loop.surely else f"at most: {loop.policy.name} finds out how many steps it reuses"
    found["picture_s"] = Expected(seconds, profile.spread, why)
    return lambda limit: found.get(limit.name, f"{limit.name} is not predicted of pictures")


def _beside(load: float, cold: float, memory: float, profile: Profile) -> dict[str, Expected | str]:
    """Limits on processes."""
    spread = max(profile.spread, START_SPREAD)
    return {
        "load_s": Expected(load, spread), "cold_start_s": Expected(cold, spread),
        "peak_mb": Expected(memory, MEMORY_SPREAD),
    }  # fmt: skip
