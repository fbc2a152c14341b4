"""The smoothed pinball loss and the sigmoid (arXiv 2602.15327).

    l(u) = log(1 + exp(kappa u)) / kappa + (tau - 1) u,    u = y - q

It is exactly the pinball loss of y plus independent Logistic(0, 1 / kappa) noise, so a small kappa
lifts the quantile: by ln(tau / (1 - tau)) / kappa where y does not vary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
METRIC_KAPPA = 50.0  # at which losses are reported


def pinball(u: F64, tau: float, kappa: float = METRIC_KAPPA) -> F64:
    """Smoothed pinball loss of residuals u = y - q, elementwise."""
    found: F64 = np.logaddexp(0.0, kappa * u) / kappa + (tau - 1.0) * u
    return found


def pinball_slope(u: F64, tau: float, kappa: float) -> F64:
    """Derivative of `pinball` by u."""
    return sigmoid(kappa * u) + (tau - 1.0)


def sigmoid(t: Any) -> F64:
    """1 / (1 + exp(-t)), without overflow."""
    found: F64 = 0.5 * (1.0 + np.tanh(0.5 * np.asarray(t, np.float64)))
    return found


def logit(p: F64, clip: float = 1e-6) -> F64:
    """ln(p / (1 - p)), p clipped to [clip, 1 - clip]."""
    p = np.clip(p, clip, 1 - clip)
    found: F64 = np.log(p / (1 - p))
    return found
