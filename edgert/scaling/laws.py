"""Laws of loss by parameters N, tokens D, bits b, groups G and compression r; loss in nats a token.

Constants are those of the papers that each function names; `fit_chinchilla` and `fit_bits` fit them
to one's own measurements. Outside of the sizes that a law was fitted for it is a prior: an edge
model is trained on far more than 20 tokens a parameter, so read its absolute loss as a rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import RequestError
from ..extras import require
from .loss import F64


class Base(NamedTuple):
    """L = E + A N^-alpha + B D^-beta (arXiv 2203.15556)."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, n: float, d: float) -> float:
        """Loss of n parameters trained on d tokens."""
        return float(self.e + self.a * n**-self.alpha + self.b * d**-self.beta)

    def size_of(self, loss: float, n: float, d: float) -> float:
        """The parameters that would have this loss when trained on d tokens: N_eff <= n where the
        loss is above `loss(n, d)`."""
        more = (loss - self.loss(n, d)) / self.a
        return float((n**-self.alpha + max(0.0, more)) ** (-1 / self.alpha))

    def optimal(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens that spend C = 6 N D best."""
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        n = g * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return n, flops / 6 / n


CHINCHILLA = Base(1.69, 406.4, 410.7, 0.34, 0.28)
REFIT = Base(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # arXiv 2404.10102; for allocation


def kaplan(*, n: float = math.inf, d: float = math.inf) -> float:
    """Joint law of non-embedding parameters and tokens (arXiv 2001.08361)."""
    by_n = (6.4e13 / n) ** (0.076 / 0.103) if math.isfinite(n) else 0.0
    by_d = 1.8e13 / d if math.isfinite(d) else 0.0
    return float((by_n + by_d) ** 0.103)


class Bits(NamedTuple):
    """Post-training quantisation: C D^gd / N^gn exp(-b / gp) (arXiv 2411.04330)."""

    c: float = 0.0598
    gd: float = 0.5068
    gn: float = 0.3439
    gp: float = 0.5907

    def delta(self, n: float, d: float, bits: float) -> float:
        """What rounding to `bits` adds to the loss."""
        return float(self.c * d**self.gd / n**self.gn * math.exp(-bits / self.gp))


PTQ = Bits()
# k, gn, gd, gG by what is quantised (arXiv 2505.14302); N and D raw
QAT: Mapping[str, tuple[float, float, float, float]] = {
    "w4a16": (0.2522, 0.3589, 0.1610, 0.3533),
    "w4a4": (0.1582, 0.2186, 0.0745, 0.7779),
    "w16a4": (0.1004, 0.1816, 0.0331, 0.9812),
    "w4a4-fc2-8": (0.3519, 0.2637, 0.0964, 0.3407),
    "w16a4-fc2-8": (0.1273, 0.2347, 0.0827, 0.4491),
}
# gamma of weights, activations, keys and values (arXiv 2411.04330)
LOW_PRECISION = {"w": 2.6745, "a": 2.2102, "kv": 0.9578}
EFFECTIVE = {"w4": 0.923, "w4a4": 0.747, "w1a1": 0.067, "sparse50": 0.871}  # arXiv 2502.16440


def qat(kind: str, n: float, d: float, group: float) -> float:
    """What quantisation-aware training adds to the loss; group: inputs that share a scale."""
    k, gn, gd, gg = QAT[kind]
    return float(k * d**gd * math.log2(group) ** gg / n**gn)


def healed_delta(n: float, d: float, bits: float, group: float) -> float:
    """The same for weights of `bits`. The law is for 4; other widths borrow the slope by bits of
    rounding, for no law of theirs is published."""
    return qat("w4a16", n, d, group) * math.exp(-(bits - 4) / PTQ.gp)


def low_precision(n: float, **bits: float) -> float:
    """Effective parameters of training with weights, activations, keys and values of few bits."""
    share = 1.0
    for name, width in bits.items():
        share *= 1 - math.exp(-width / LOW_PRECISION[name])
    return n * share


class Compression(NamedTuple):
    """What a ratio r of removed bytes adds: c2 r^2 (1 + D0 / (D_h + D0)), healed on D_h tokens; a
    weak prior, quadratic as arXiv 2504.04342 finds the loss."""

    c2: float = 1.0
    d0: float = 1e7

    def delta(self, ratio: float, healing: float = 0.0) -> float:
        return self.c2 * ratio**2 * (1 + self.d0 / (healing + self.d0))


class Pruned(NamedTuple):
    """P^2 (arXiv 2411.10272): L0 + (1 / rho)^gamma (1 / N0)^delta (Nc / N0^alpha + Dc / Dh^beta
    + E), loss after pruning at the rate rho and training on Dh tokens; constants are a family's."""

    gamma: float
    delta: float
    nc: float
    alpha: float
    dc: float
    beta: float
    e: float

    def loss(self, before: float, rate: float, n: float, healing: float) -> float:
        inner = self.nc / n**self.alpha + self.dc / healing**self.beta + self.e
        return float(before + (1 / rate) ** self.gamma * (1 / n) ** self.delta * inner)


def compression_loss(
    before: float, ratio: float, healing: float, alpha: float, beta: float, gamma: float
) -> float:
    """L0^alpha (1 + r)^beta (1 + 1 / (Dh + 1))^gamma (arXiv 2504.04342)."""
    return float(before**alpha * (1 + ratio) ** beta * (1 + 1 / (healing + 1)) ** gamma)


def fit_chinchilla(n: Any, d: Any, loss: Any, *, starts: int = 30, seed: int = 0) -> Base:
    """The base law of measured losses [n] by parameters and tokens: Huber loss of logarithms
    (approach 3 of arXiv 2203.15556) from random starts of its grid. Raises RequestError for fewer
    than 5 measurements or values that are not positive."""
    n, d, loss = _positive("a base law", 5, n, d, loss)
    require("scipy", "fitting a law", RequestError)
    from scipy.optimize import minimize
    from scipy.special import huber, logsumexp

    logs = np.log(n), np.log(d), np.log(loss)

    def value(t: F64) -> float:
        a, b, e, alpha, beta = t
        terms = np.stack([a - alpha * logs[0], b - beta * logs[1], np.full(len(n), e)])
        return float(np.sum(huber(1e-3, logsumexp(terms, axis=0) - logs[2])))

    rng = np.random.default_rng(seed)
    best: Any = None
    for _ in range(starts):
        start = [
            rng.choice(np.arange(0, 26, 5)), rng.choice(np.arange(0, 26, 5)),
            rng.choice([-1, -0.5, 0, 0.5, 1]), *rng.choice([0, 0.5, 1, 1.5, 2], 2),
        ]  # fmt: skip
        done = minimize(value, start, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-15})
        done = minimize(value, done.x, method="Nelder-Mead",
                        options={"maxiter": 4000, "xatol": 1e-8, "fatol": 1e-14})  # fmt: skip
        if best is None or done.fun < best.fun:
            best = done
    a, b, e, alpha, beta = map(float, best.x)
    return Base(math.exp(e), math.exp(a), math.exp(b), alpha, beta)


class OwnBits(NamedTuple):
    """Loss by bits of one model: exp(c - b / gp). spread: deviation of ln(delta) around it."""

    c: float
    gp: float
    spread: float

    def delta(self, bits: float) -> float:
        return math.exp(self.c - bits / self.gp)


def fit_bits(bits: Any, delta: Any) -> OwnBits:
    """What rounding adds by bits [n], of one's own measurements: least squares in logarithms.
    Raises RequestError for fewer than 3, or where more bits do not cost less."""
    bits, delta = _positive("a law of bits", 3, bits, delta)
    slope, c = np.polyfit(bits, np.log(delta), 1)
    if slope >= 0:
        raise RequestError(
            f"losses {[float(f'{x:.3g}') for x in delta[:6]]} do not fall with the bits",
            code="law-data",
            hint="measure more text, or leave out what is below the noise",
        )
    spread = float(np.std(np.log(delta) - (slope * bits + c), ddof=min(2, len(bits) - 1)))
    return OwnBits(float(c), float(-1 / slope), spread)


def fit_layers(errors: Any, delta: Any) -> F64:
    """Sensitivities a >= 0 with delta = errors @ a: errors [probes, layers] are relative squared
    errors of each layer's matrices, delta [probes] the losses that they cost. Second order in the
    errors, so for delta up to about 0.3."""
    from ..forecast.nnls import nnls

    errors, delta = np.asarray(errors, np.float64), np.asarray(delta, np.float64)
    if errors.ndim != 2 or len(errors) != len(delta) or len(delta) < 10:
        raise RequestError(
            f"errors of shape {errors.shape} and {len(delta)} losses, expected 10 probes at least",
            code="law-data",
        )
    return nnls(errors, delta)


def _positive(what: str, least: int, *arrays: Any) -> list[F64]:
    found = [np.asarray(array, np.float64).ravel() for array in arrays]
    sizes = {len(array) for array in found}
    if len(sizes) != 1 or min(sizes) < least:
        raise RequestError(
            f"{[len(a) for a in found]} values, expected {least} or more of each for {what}",
            code="law-data",
        )
    if not all(np.isfinite(a).all() and (a > 0).all() for a in found):
        raise RequestError(f"{what} needs positive finite values", code="law-data")
    return found
