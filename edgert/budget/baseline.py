"""Is it slower than it was: bursts of now against those of an earlier report.

A limit fails where the whole interval of the ratio, now over then, is worse than `TOLERANCE`; it
passes where none of it is. Noise widens the interval, so that it does not fail a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath, PureWindowsPath
from typing import Any

import numpy as np

from ..errors import RequestError
from .limits import METRICS, Limit, shown
from .report import SMALLEST, Report, Verdict
from .statistics import ALPHA, shift_band

TOLERANCE = 1.03  # what a later version may be slower by without anybody minding
CONDITIONS: dict[str, Any] = {  # that both runs have alike, and what a report without one had
    "provider": "cpu", "kv_bits": 0, "threads": None, "limit_memory": None, "limited_by": None,
}  # fmt: skip


def check_comparable(
    then: Report, bundle: str, device: str, conditions: Mapping[str, Any], limits: Sequence[Limit]
) -> None:
    """RequestError where a baseline is of another bundle, device or condition than a run is going
    to be, or has measured none of its limits."""
    faults = []
    if (old := _name(then.bundle)) != (new := _name(bundle)):
        faults.append(f"it is of the bundle {shown(old)}, this run of {shown(new)}")
    if then.device != device:
        faults.append(f"it is of the device {shown(then.device)}, this run of {device}")
    for name, default in CONDITIONS.items():
        before, now = (found.get(name, default) for found in (then.conditions, conditions))
        if before != now:
            old, new = ("not given" if x is None else shown(x) for x in (before, now))
            faults.append(f"its {name} is {old}, this run's {new}")
    if not _measured(then).keys() & {(limit.name, limit.tokens) for limit in limits}:
        faults.append("it has measured none of the limits of this run")
    if faults:
        raise RequestError(
            f"the baseline cannot be compared: {'; '.join(faults)}",
            code="baseline",
            hint="write one by the same command with --save --json, without --baseline",
        )


def _measured(then: Report) -> dict[tuple[str, int | None], Verdict]:
    """What a report has samples of."""
    return {(v.name, v.tokens): v for v in then.verdicts if v.how == "measured" and v.samples}


def _name(bundle: str) -> str:
    """A bundle's name: the same one may lie elsewhere."""
    kind = PureWindowsPath if "\\" in bundle else PurePath
    return kind(bundle).name or bundle


def compare(now: Sequence[Verdict], then: Report, tolerance: float = TOLERANCE) -> list[Verdict]:
    """A verdict on each limit that the earlier run measured: named "<limit> vs baseline", the ratio
    of costs, now over then; undecided where this run has not measured it."""
    before = _measured(then)
    pairs = [(found, before.get((found.name, found.tokens))) for found in now]
    return [_compared(found, old, tolerance) for found, old in pairs if old is not None]


def _compared(now: Verdict, then: Verdict, tolerance: float) -> Verdict:
    name = f"{now.name} vs baseline"
    if not now.samples or min(now.samples) < SMALLEST:
        return Verdict(
            name, tolerance, "x", "undecided", "measured", now.tokens,
            why="this run has not measured it",
        )  # fmt: skip
    a, b = np.array(now.samples), np.array(then.samples)
    if METRICS[now.name].least:  # speeds: their inverse is a cost
        a, b = 1 / a, 1 / b
    band = shift_band(a, b, ALPHA / 5)
    if band.low > tolerance:
        outcome, why = "fail", "slower than the baseline"
    elif band.high <= tolerance:
        outcome, why = "pass", ""
    else:
        outcome, why = "undecided", f"{len(a)} bursts against {len(b)}"
    finite = band.high if np.isfinite(band.high) else None
    return Verdict(
        name, tolerance, "x", outcome, "measured",  # type: ignore[arg-type]
        now.tokens, band.value, band.low, finite, len(a), why=why,
    )  # fmt: skip
