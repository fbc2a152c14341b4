"""The one closeness function: relative RMS and largest absolute error, NaN named by side."""

from __future__ import annotations

from typing import Any

import numpy as np


def distance(expected: Any, got: Any) -> tuple[float, float]:
    """(RMS of the difference over RMS of `expected`, largest absolute difference), in float64."""
    a, b = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    size = np.sqrt(np.mean(a * a)) if a.size else 0.0
    error = np.sqrt(np.mean((a - b) ** 2)) if a.size else 0.0
    return float(error / size if size > 0 else error), float(np.max(np.abs(a - b), initial=0.0))


def assert_close(
    name: str, expected: Any, got: Any, *, rms: float, peak: float | None = None
) -> None:
    """Fail with both numbers when `got` is further from `expected` than `rms` (or `peak`)."""
    a, b = np.asarray(expected), np.asarray(got)
    assert a.shape == b.shape, f"{name}: expected shape {a.shape}, got {b.shape}"
    for side, array in (("expected", a), ("got", b)):
        bad = int(np.count_nonzero(~np.isfinite(array.astype(np.float64))))
        assert bad == 0, f"{name}: {bad} of {array.size} values of `{side}` are not finite"
    relative, largest = distance(a, b)
    print(f"{name}: relative RMS {relative:.3g} (limit {rms:g}), max abs {largest:.3g}")
    assert relative <= rms, f"{name}: relative RMS {relative:.3g} > {rms:g}, max abs {largest:.3g}"
    if peak is not None:
        assert largest <= peak, f"{name}: max abs {largest:.3g} > {peak:g}"
