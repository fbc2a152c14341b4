"""Verdicts on limits without running anything: from the graph and the device's rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..bundle.reader import Bundle
from ..devices.profile import Profile
from ..forecast import latency
from ..forecast.memory import BASE, footprint
from ..forecast.rates import rates_of
from ..forecast.work import lowered, works
from .limits import Limit
from .report import Verdict, missing, verdict
from .statistics import Band

MEMORY_SPREAD = 0.05  # of what is counted from a graph


def predict(
    path: Path, wanted: Sequence[Limit], profile: Profile, *, threads: int | None = None,
    kv_bits: int = 0, provider: str = "cpu",
) -> list[Verdict]:  # fmt: skip
    """A verdict on each limit, in their order; the band holds the value with 90 % probability."""
    with Bundle.open(path) as bundle:
        if bundle.manifest.kind != "text":
            why = f"bundles of the kind {bundle.manifest.kind} are not predicted"
            return [missing(limit, "predicted", why) for limit in wanted]
        graph = bundle.graph()
    tokenizer = (path / "tokenizer.json").stat().st_size
    rates = rates_of(profile, threads, provider)
    program = lowered(graph, threads=rates.threads, kv_bits=kv_bits)
    found = works(program)
    base = profile.measured.base_bytes if profile.measured else BASE
    taken = footprint(
        graph, tokens=min(520, graph.context), threads=rates.threads, kv_bits=kv_bits,
        tokenizer=tokenizer, base=base,
    )  # fmt: skip
    out = []
    for limit in wanted:
        metric, spread = limit.metric, profile.spread
        if metric.kind == "token":
            value = latency.step_seconds(found, rates, depth=limit.tokens or 0)
            value = 1 / value if limit.name == "tokens_per_s" else value
        elif metric.kind == "prompt":
            value = latency.prompt_seconds(found, rates, limit.tokens or 0)
        elif limit.name == "peak_mb":
            value, spread = taken.total, MEMORY_SPREAD
        else:
            out.append(missing(limit, "predicted", f"{limit.name} is not predicted"))
            continue
        band = latency.interval(value, spread)
        scaled = Band(*(number * metric.scale for number in band))
        out.append(verdict(limit, scaled, "predicted"))
    return out
