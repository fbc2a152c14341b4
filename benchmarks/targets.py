"""What the runtime has to reach against llama.cpp on the same weights, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.timing import Row

ALL = ("135m", "0.5b", "1.1b")
LARGE = ("0.5b", "1.1b")


@dataclass(frozen=True)
class Target:
    """A least value by number of threads, for models of these shapes. figure: key of a ratio."""

    figure: str
    depth: int
    shapes: tuple[str, ...]
    least: Mapping[int, float]


TARGETS = (
    Target("tg", 0, ALL, {1: 1.7, 2: 1.5}),
    Target("tg", 4096, LARGE, {1: 1.4, 2: 1.3}),
    Target("pp", 0, ALL, {1: 1.7, 2: 1.6}),
    Target("read share", 0, ("1.1b",), {1: 0.75}),
    Target("verify4", 0, ALL, {1: 2.0}),
)
# process figures: at most (max) or at least (min)
RSS_OVERHEAD_MB = 160.0
WARM_START_S = 1.2
BUSY_CORE_SHARE = 0.70


def least(figure: str, shape: str, threads: int, depth: int) -> float | None:
    """The value that must be reached, None where nothing is demanded."""
    for target in TARGETS:
        if target.figure == figure and target.depth == depth and shape in target.shapes:
            return target.least.get(threads)
    return None


def verdict(value: float, wanted: float | None) -> str:
    """PASS, MISS, or nothing where nothing is demanded."""
    if wanted is None:
        return ""
    return "PASS" if value >= wanted else "MISS"


def ratio(
    shape: str, figure: str, threads: int, depth: int, own: Row, other: Row
) -> dict[str, Any]:
    """How much faster `own` is than `other`, at the median and at the best. The targets are about
    llama.cpp, and about edgert's own rows for `verify4`."""
    value = other.median_ms / own.median_ms
    asked = other.engine in ("llama.cpp", "edgert") and own.engine == "edgert"
    wanted = least(figure, shape, threads, depth) if asked else None
    return {
        "test": own.test,
        "engine": own.engine,
        "against": other.engine if other.test == own.test else other.test,
        "threads": threads,
        "depth": depth,
        "ratio": round(value, 3),
        "ratio_best": round(other.best_ms / own.best_ms, 3),
        "target": wanted,
        "verdict": verdict(value, wanted),
    }
