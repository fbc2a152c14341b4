"""The sigmoid frontier: q(z) = y0 + L sigmoid(b (z - z*)), the tau-quantile of scores y at
z = log10 of the base model's training compute, with 0 <= y0, y0 + L <= 1 and b > 0.

    frontier = fit_frontier(z, y, groups)
    frontier.at(np.array([22.0, 23.5]))           # attainable scores
    frontier.band(z)                              # their 5, 50 and 95 % by the group bootstrap

`preset="paper"` is kappa 50 and lambda 1e-3 (arXiv 2602.15327, the released code's mean loss and
penalty b^2). Ours is kappa 200 and lambda 1e-5 with a conformal shift: on a known frontier the
paper's values cover 0.994 to 0.999 instead of 0.98 and flatten a slope of 1.5 to 0.65.

scipy does the optimisation (an extra); applying a fitted frontier needs NumPy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from ..errors import RequestError
from ..extras import require
from ..storage.typed import Reader
from .loss import F64, pinball, pinball_slope, sigmoid

B_LOW, B_HIGH = 0.05, 50.0
PRESETS = {"edgert": (200.0, 1e-5), "paper": (50.0, 1e-3)}
TAU = 0.98
LEAST = (3, 2)  # points, and values of z, that a fit takes
Theta = tuple[float, float, float, float]  # y0, L, z*, ln b


class Frontier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fitted frontier. theta: y0, L, z*, ln b. shift: what conformal calibration adds. draws:
    theta of bootstrap samples. loss: mean smoothed pinball at the fit's kappa."""

    theta: Theta
    tau: float
    preset: str
    kappa: float
    penalty: float
    z_range: tuple[float, float]
    count: int
    loss: float
    shift: float = 0.0
    z_unit: str = "flops"
    draws: tuple[Theta, ...] = ()
    confidence: str = "fitted"

    def at(self, z: Any) -> F64:
        """Scores at log10 compute z (float64, any shape), in [0, 1]."""
        return _clipped(curve(self.theta, np.asarray(z, np.float64)) + self.shift)

    def band(self, z: Any) -> F64:
        """[3, ...]: the 5, 50 and 95 % of the bootstrap's scores; three times `at` without."""
        z = np.asarray(z, np.float64)
        if not self.draws:
            return np.stack([self.at(z)] * 3)
        found = np.stack([_clipped(curve(t, z) + self.shift) for t in self.draws])
        out: F64 = np.quantile(found, [0.05, 0.5, 0.95], axis=0)
        return out


# A shape without data: what an unfitted planner assumes, with a band of 0.1 to both sides.
PRIOR = Frontier(
    (0.1, 0.7, 23.5, math.log(1.2)), TAU, "prior", 0.0, 0.0, (20.0, 26.0), 0, math.nan,
    confidence="low: a shape without data",
)  # fmt: skip
PRIOR_BAND = 0.1


FRONTIER = Reader(Frontier)


def curve(theta: Theta | F64, z: F64) -> F64:
    """q(z) of a theta."""
    y0, height, middle, log_b = theta
    found: F64 = y0 + height * sigmoid(math.exp(log_b) * (z - middle))
    return found


def _clipped(q: F64) -> F64:
    found: F64 = np.clip(q, 0.0, 1.0)
    return found


def jacobian(theta: Theta | F64, z: F64) -> F64:
    """Rows [1, s, L s (1 - s), L s (1 - s) z] of q = y0 + L sigmoid(a + beta z), [n, 4]."""
    _, height, middle, log_b = theta
    b = math.exp(log_b)
    s = sigmoid(b * (z - middle))
    g = height * s * (1 - s)
    return np.stack([np.ones_like(s), s, g, g * z], axis=1)


def objective(
    theta: F64, z: F64, y: F64, tau: float, kappa: float, penalty: float
) -> tuple[float, F64]:
    """Mean smoothed pinball loss plus penalty b^2, and its gradient [4]."""
    _, height, middle, log_b = theta
    b = math.exp(log_b)
    s = sigmoid(b * (z - middle))
    u = y - curve(theta, z)
    h, g = pinball_slope(u, tau, kappa), s * (1 - s)
    value = float(np.mean(pinball(u, tau, kappa))) + penalty * b * b
    gradient = np.array([
        -np.mean(h), -np.mean(h * s), np.mean(h * height * b * g),
        -np.mean(h * height * b * g * (z - middle)) + 2 * penalty * b * b,
    ])  # fmt: skip
    return value, gradient


def fit_frontier(
    z: Any,
    y: Any,
    groups: Any = None,
    *,
    tau: float = TAU,
    preset: str = "edgert",
    fast: bool = False,
    bootstrap: int = 0,
    conformal: bool | None = None,
    seed: int = 0,
    z_unit: str = "flops",
) -> Frontier:
    """Fit the frontier of scores y [n] in [0, 1] at log10 compute z [n]; groups [n]: models of one
    base share one value and are resampled together (default: equal z).

    fast: a coarser grid of starts, a tenth of the time. bootstrap: resamples kept as draws.
    conformal: shift by held-out groups; None means as the preset does. Raises RequestError for
    fewer than 3 finite points or one value of z.
    """
    z, y, groups = _checked(z, y, groups)
    if preset not in PRESETS or not 0 < tau < 1:
        raise RequestError(
            f"preset {preset!r} and tau {tau}, expected one of {sorted(PRESETS)} and a quantile",
            code="frontier-options",
        )
    require("scipy", "fitting a frontier", RequestError)
    kappa, penalty = PRESETS[preset]
    theta, loss = _fit(z, y, tau, kappa, penalty, fast=fast, seed=seed)
    shift = 0.0
    if conformal if conformal is not None else preset == "edgert":
        shift = _conformal(z, y, groups, tau, kappa, penalty, seed)
    draws = _bootstrap(z, y, groups, theta, (tau, kappa, penalty), bootstrap, seed)
    return Frontier(
        theta, tau, preset, kappa, penalty, (float(z.min()), float(z.max())), len(z), loss, shift,
        z_unit, draws,
    )  # fmt: skip


def _checked(z: Any, y: Any, groups: Any) -> tuple[F64, F64, F64]:
    z, y = np.asarray(z, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    marks = np.unique(z if groups is None else np.asarray(groups).ravel(), return_inverse=True)[1]
    if len(z) != len(y) or len(marks) != len(z):
        raise RequestError(
            f"{len(z)} of z, {len(y)} of y, {len(marks)} groups, expected as many of each",
            code="frontier-data",
        )
    known = np.isfinite(z) & np.isfinite(y)
    z, y, marks = z[known], y[known], marks[known]
    if len(z) < LEAST[0] or len(np.unique(z)) < LEAST[1]:
        raise RequestError(
            f"{len(z)} points at {len(np.unique(z))} values of compute, expected "
            f"{LEAST[0]} and {LEAST[1]} at least",
            code="frontier-data",
            hint="a constant is all that such data support",
        )
    if y.min() < 0 or y.max() > 1:
        raise RequestError(
            f"scores from {y.min():g} to {y.max():g}, expected 0 to 1", code="frontier-data"
        )
    return z, y, marks.astype(np.float64)


def _fit(
    z: F64, y: F64, tau: float, kappa: float, penalty: float, *, fast: bool, seed: int
) -> tuple[Theta, float]:
    """The best theta over many starts and its loss without the penalty."""
    starts = _starts(z, y, tau, fast=fast, seed=seed)
    best, least = starts[0], math.inf
    for start in starts:
        theta = start
        for stage_tau, stage_kappa in _schedule(tau, kappa):
            theta = _descend(theta, z, y, stage_tau, stage_kappa, penalty)
        value, _ = objective(theta, z, y, tau, kappa, penalty)
        if value < least:
            best, least = theta, value
    y0, height, middle, log_b = map(float, best)
    return (y0, height, middle, log_b), float(np.mean(pinball(y - curve(best, z), tau, kappa)))


def _schedule(tau: float, kappa: float) -> list[tuple[float, float]]:
    low = min(0.9, tau)
    stages = [(low, k) for k in (10.0, 25.0, kappa)] + [(min(0.95, tau), kappa), (tau, kappa)]
    return list(dict.fromkeys(stages))


def _starts(z: F64, y: F64, tau: float, *, fast: bool, seed: int) -> list[F64]:
    """The most promising (y0, L, z*, ln b), by their loss at tau 0.9 and kappa 10."""
    low, high = float(z.min()), float(z.max())
    count = 5 if fast else 10
    middles = list(np.linspace(low, high, count))
    slopes = list(np.geomspace(B_LOW, B_HIGH, count))
    if not fast:
        middles += list(np.quantile(z, [0.15, 0.35, 0.5, 0.65, 0.85]))
    pairs = [(m, b) for m in middles for b in slopes]
    if not fast:
        rng = np.random.default_rng(seed)
        logs = rng.uniform(math.log(B_LOW), math.log(B_HIGH), 100)
        pairs += list(zip(rng.uniform(low, high, 100), np.exp(logs), strict=True))
    bottom = float(np.clip(np.quantile(y, 0.1), 0, 1))
    height = float(np.clip(np.quantile(y, tau) - bottom, 0, 1 - bottom))
    ranked: list[tuple[float, int, F64]] = []
    for middle, b in pairs:
        theta = np.array([bottom, height, middle, math.log(b)])
        if not fast:
            theta = _ends(theta, z, y, min(0.9, tau))
        value, _ = objective(theta, z, y, min(0.9, tau), 10.0, 0.0)
        ranked.append((value, len(ranked), theta))
    ranked.sort(key=lambda row: row[:2])
    return [theta for _, _, theta in ranked[: 4 if fast else 10]]


def _ends(theta: F64, z: F64, y: F64, tau: float) -> F64:
    """The best y0 and L at a fixed place and slope: a convex problem of two variables."""
    from scipy.optimize import minimize

    def loss(ends: F64) -> tuple[float, F64]:
        value, slope = objective(np.array([*ends, *theta[2:]]), z, y, tau, 10.0, 0.0)
        return value, slope[:2]

    done = minimize(
        loss, theta[:2], jac=True, method="SLSQP", bounds=[(0, 1), (0, 1)], constraints=_SUM,
        options={"maxiter": 100},
    )  # fmt: skip
    return _inside(np.array([*done.x, *theta[2:]]), z)


_SUM = {"type": "ineq", "fun": lambda t: 1 - t[0] - t[1], "jac": lambda t: -_first_two(len(t))}


def _first_two(count: int) -> F64:
    found = np.zeros(count)
    found[:2] = 1.0
    return found


def _descend(theta: F64, z: F64, y: F64, tau: float, kappa: float, penalty: float) -> F64:
    from scipy.optimize import minimize

    bounds = [(0, 1), (0, 1), (z.min(), z.max()), (math.log(B_LOW), math.log(B_HIGH))]
    done = minimize(
        objective, theta, args=(z, y, tau, kappa, penalty), jac=True, method="SLSQP",
        bounds=bounds, constraints=_SUM, options={"maxiter": 700, "ftol": 1e-9},
    )  # fmt: skip
    return _inside(done.x, z) if np.isfinite(done.x).all() else theta


def _inside(theta: F64, z: F64) -> F64:
    """A theta within its bounds."""
    y0 = float(np.clip(theta[0], 0, 1))
    return np.array([
        y0, np.clip(theta[1], 0, 1 - y0), np.clip(theta[2], z.min(), z.max()),
        np.clip(theta[3], math.log(B_LOW), math.log(B_HIGH)),
    ])  # fmt: skip


def _conformal(
    z: F64, y: F64, groups: F64, tau: float, kappa: float, penalty: float, seed: int
) -> float:
    """What a fit on four fifths of the groups lacks on the last fifth; 0 with fewer than 50 points
    there."""
    marks = np.unique(groups)
    held = np.random.default_rng(seed).permutation(marks)[: max(1, len(marks) // 5)]
    out = np.isin(groups, held)
    m = int(out.sum())
    if m < 50 or len(np.unique(z[~out])) < 2 or (~out).sum() < 3:
        return 0.0
    theta, _ = _fit(z[~out], y[~out], tau, kappa, penalty, fast=True, seed=seed)
    left = np.sort(y[out] - curve(theta, z[out]))
    rank = min(m, math.ceil((m + 1) * tau))
    return float(left[rank - 1])


def _bootstrap(
    z: F64, y: F64, groups: F64, theta: Theta, how: tuple[float, float, float], count: int,
    seed: int,
) -> tuple[Theta, ...]:  # fmt: skip
    """Theta of resampled groups, each from the full data's optimum by the last stage alone."""
    rng, marks, out = np.random.default_rng(seed + 1), np.unique(groups), list[Theta]()
    members = [np.flatnonzero(groups == mark) for mark in marks]
    while len(out) < count:
        rows = np.concatenate([members[i] for i in rng.integers(0, len(marks), len(marks))])
        if z[rows].min() == z[rows].max():
            continue
        y0, height, middle, log_b = map(float, _descend(np.array(theta), z[rows], y[rows], *how))
        out.append((y0, height, middle, log_b))
    return tuple(out)


def sandwich(frontier: Frontier, z: Any, y: Any, groups: int) -> F64:
    """Covariance [4, 4] of (y0, L, b (z - z*) as a + beta z): H^-1 S H^-1 / groups."""
    z, y = np.asarray(z, np.float64), np.asarray(y, np.float64)
    rows, u = jacobian(frontier.theta, z), y - curve(frontier.theta, z)
    s = sigmoid(frontier.kappa * u)
    second = frontier.kappa * s * (1 - s)
    slope = pinball_slope(u, frontier.tau, frontier.kappa)
    bend = (rows * second[:, None]).T @ rows / len(z)
    spread = (rows * (slope**2)[:, None]).T @ rows / len(z)
    inverse = np.linalg.pinv(bend)
    found: F64 = inverse @ spread @ inverse / groups
    return found


def thetas(frontier: Frontier, count: int, seed: int = 0) -> Sequence[Theta]:
    """`count` draws of theta: the bootstrap's, repeated as needed; of a frontier without any, its
    own."""
    if not frontier.draws:
        return [frontier.theta] * count
    picked = np.random.default_rng(seed).integers(0, len(frontier.draws), count)
    return [frontier.draws[i] for i in picked]
