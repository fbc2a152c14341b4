"""Is it slower than it was: bursts of now against those of an earlier report.

A limit fails where the whole interval of the ratio, now over then, is worse than `TOLERANCE`; it
passes where none of it is. Noise widens the interval, so that it does not fail a run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .limits import METRICS
from .report import Report, Verdict
from .statistics import ALPHA, shift_band

TOLERANCE = 1.03  # what a later version may be slower by without anybody minding


def compare(now: Sequence[Verdict], then: Report, tolerance: float = TOLERANCE) -> list[Verdict]:
    """A verdict on each limit that both runs measured: named "<limit> vs baseline", the ratio of
    costs, now over then."""
    before = {(v.name, v.tokens): v for v in then.verdicts if v.how == "measured"}
    out = []
    for found in now:
        old = before.get((found.name, found.tokens))
        if old is not None and found.how == "measured" and old.samples and found.samples:
            out.append(_compared(found, old, tolerance))
    return out


def _compared(now: Verdict, then: Verdict, tolerance: float) -> Verdict:
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
        f"{now.name} vs baseline", tolerance, "x", outcome, "measured",  # type: ignore[arg-type]
        now.tokens, band.value, band.low, finite, len(a), why=why,
    )  # fmt: skip
