"""What the runtime has to reach against llama.cpp on the same weights, and whether it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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


def ratios(rows: Iterable[Mapping[str, Any]], shape: str) -> list[dict[str, Any]]:
    """edgert against every other engine of each test, as ratios of medians and of bests; the
    `verify4` rows compare edgert with itself. Targets hold against llama.cpp and for edgert alone."""
    by_test: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        key = row["test"], row["threads"], row["depth"], row.get("group", "")
        by_test.setdefault(key, {})[row["engine"]] = row
    found = []
    for (test, threads, depth, _), engines in by_test.items():
        own = engines.get("edgert")
        if own is None:
            continue
        figure = test.rstrip("0123456789") if test[:2] in ("tg", "pp") else test
        for name, other in engines.items():
            if other is own or test == "verify4":
                continue
            wanted = least(figure, shape, threads, depth) if name == "llama.cpp" else None
            found.append(_ratio(test, name, threads, depth, own, other, wanted))
    return found


def _ratio(
    test: str, against: str, threads: int, depth: int, own: Mapping[str, Any],
    other: Mapping[str, Any], wanted: float | None,
) -> dict[str, Any]:  # fmt: skip
    value = other["median_ms"] / own["median_ms"]
    return {
        "test": test,
        "against": against,
        "threads": threads,
        "depth": depth,
        "ratio": round(value, 3),
        "ratio_best": round(other["best_ms"] / own["best_ms"], 3),
        "target": wanted,
        "verdict": verdict(value, wanted),
    }
