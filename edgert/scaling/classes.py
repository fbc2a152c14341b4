"""The classes that the sigmoid is compared with: a constant, a value a bin, monotone splines."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from ..extras import require
from .bins import edges_of, index_of
from .loss import F64, pinball, pinball_slope, sigmoid

KNOTS = 6
ORDER = 4  # of the M-splines that are integrated: cubic I-splines


class Quantile(Protocol):
    """A fitted conditional quantile."""

    def at(self, z: Any) -> F64:
        """Scores at log10 compute."""


class Constant:
    """The empirical quantile of all scores."""

    def __init__(self, y: F64, tau: float) -> None:
        self.value = float(np.quantile(y, tau))

    def at(self, z: Any) -> F64:
        return np.full(np.shape(z), self.value)


class Binwise:
    """In each bin the value whose mean smoothed pinball loss is least."""

    def __init__(self, z: F64, y: F64, tau: float, kappa: float) -> None:
        self.edges = edges_of(z)
        index = index_of(z, self.edges)
        self.values = np.array(
            [best_constant(y[index == i], tau, kappa) for i in range(len(self.edges) - 1)]
        )

    def at(self, z: Any) -> F64:
        found: F64 = self.values[index_of(np.asarray(z, np.float64), self.edges)]
        return found


def best_constant(y: F64, tau: float, kappa: float) -> float:
    """The c in [0, 1] with the least mean smoothed pinball loss."""
    require("scipy", "fitting a frontier")
    from scipy.optimize import minimize_scalar

    done = minimize_scalar(
        lambda c: float(np.mean(pinball(y - c, tau, kappa))), bounds=(0.0, 1.0),
        method="bounded", options={"xatol": 1e-6},
    )  # fmt: skip
    return float(done.x) if done.success else float(np.quantile(y, tau))


def m_splines(z: F64, knots: F64) -> F64:
    """M-splines of order 4 on clamped knots, [n, count]: each integrates to 1."""
    t = np.concatenate([[knots[0]] * (ORDER - 1), knots, [knots[-1]] * (ORDER - 1)])
    inside = np.clip(z, knots[0], np.nextafter(knots[-1], -np.inf))
    basis = ((t[None, :-1] <= inside[:, None]) & (inside[:, None] < t[None, 1:])).astype(float)
    for degree in range(1, ORDER):
        left, right = t[: -degree - 1], t[degree + 1 :]
        wide_a, wide_b = t[degree:-1] - left, right - t[1:-degree]
        a = np.divide(
            inside[:, None] - left, wide_a, out=np.zeros_like(basis[:, :-1]), where=wide_a > 0
        )
        b = np.divide(
            right - inside[:, None], wide_b, out=np.zeros_like(basis[:, :-1]), where=wide_b > 0
        )
        basis = a * basis[:, :-1] + b * basis[:, 1:]
    spans = t[ORDER:] - t[:-ORDER]
    found: F64 = ORDER * basis / np.where(spans > 0, spans, 1.0)
    return found


def i_splines(z: F64, knots: F64) -> F64:
    """Integrals of the M-splines from the left end, [n, count]: 0 left of the knots, 1 right of
    them, non-decreasing between. Gauss-Legendre on each span, exact for cubics."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    spans = np.unique(knots)
    count = len(knots) + ORDER - 2
    out = np.zeros((len(z), count))
    for a, b in pairwise(spans):
        top = np.clip(z, a, b)
        half = (top - a) / 2
        for node, weight in zip(nodes, weights, strict=True):
            out += weight * half[:, None] * m_splines(a + half * (1 + node), knots)
    found: F64 = np.clip(out, 0.0, 1.0)
    return found


class ISpline:
    """q = y0 + L sigmoid(a0 + X(z) w), w = softplus(beta): any monotone shape between two ends."""

    def __init__(self, z: F64, y: F64, tau: float, kappa: float, *, seed: int = 0,
                 random_starts: int = 20) -> None:  # fmt: skip
        require("scipy", "fitting a frontier")
        from scipy.optimize import minimize

        self.knots = np.unique(np.quantile(z, np.linspace(0, 1, KNOTS)))
        x = i_splines(z, self.knots)
        rng, count = np.random.default_rng(seed), x.shape[1]
        flat = [np.full(count, math.log(math.expm1(max(s, 0.05)))) for s in (0, 0.5, 1.0, 2.0, 4.0)]
        starts = [
            np.concatenate([[-2.0, 1.0, -s], w])
            for s, w in zip((0, 0.5, 1, 2, 4), flat, strict=True)
        ]
        starts += [
            np.concatenate([[-2.0, 1.0, rng.uniform(-2, 2)], rng.normal(-2, 1.5, count)])
            for _ in range(random_starts)
        ]
        bounds = [(-12, 12), (-12, 12), (-8, 8), *[(-20, 20)] * count]
        best = min(
            (minimize(_spline_loss, start, args=(x, y, tau, kappa), jac=True, method="L-BFGS-B",
                      bounds=bounds, options={"maxiter": 700}) for start in starts),
            key=lambda done: float(done.fun),
        )  # fmt: skip
        self.theta = best.x

    def at(self, z: Any) -> F64:
        return _spline(self.theta, i_splines(np.asarray(z, np.float64).ravel(), self.knots))[0]


def _spline(theta: F64, x: F64) -> tuple[F64, F64]:
    """q, and the inner sigmoid."""
    y0 = float(sigmoid(theta[0]))
    height = (1 - y0) * float(sigmoid(theta[1]))
    s = sigmoid(theta[2] + x @ np.logaddexp(0.0, theta[3:]))
    return y0 + height * s, s


def _spline_loss(theta: F64, x: F64, y: F64, tau: float, kappa: float) -> tuple[float, F64]:
    q, s = _spline(theta, x)
    y0, v = float(sigmoid(theta[0])), float(sigmoid(theta[1]))
    height, beta = (1 - y0) * v, theta[3:]
    h = -pinball_slope(y - q, tau, kappa) / len(y)  # d mean loss / d q
    g = h * height * s * (1 - s)
    gradient = np.concatenate([
        [np.sum(h * (1 - v * s)) * y0 * (1 - y0), np.sum(h * s) * (1 - y0) * v * (1 - v), g.sum()],
        (x.T @ g) * sigmoid(beta) + 2e-4 * beta,
    ])  # fmt: skip
    return float(np.mean(pinball(y - q, tau, kappa))) + 1e-4 * float(beta @ beta), gradient
