"""Intervals that hold although samples come in bursts, are skewed, and are looked at again and
again.

Quantiles have intervals of order statistics, which assume no distribution. Samples of one burst are
alike (a neighbour keeps a core busy for a while), so that n of them count as fewer: n over the
design effect, the variance of the bursts' shares over what independent samples would have (Kish,
Survey Sampling, 1965). At look k the chance of being wrong is alpha / (k (k + 1)), which sums to
alpha over all looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
ALPHA = 0.05  # chance of a wrong verdict, over all looks
GROWTH = 1.4  # of the number of bursts between two looks
FIRST = 4  # bursts before the first look


class Band(NamedTuple):
    """A value and the interval around it; infinite where the samples do not bound it."""

    value: float
    low: float
    high: float


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Probability of at most k successes in n."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))


def ranks(n: int, q: float, alpha: float) -> tuple[int, int]:
    """Ranks (1 to n) of the order statistics between which the q-quantile lies with probability
    1 - alpha; 0 and n + 1 where n is too small to tell."""
    low, high = 0, n + 1
    total = 0.0
    for k in range(n + 1):
        log = (
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            + k * math.log(q) + (n - k) * math.log1p(-q)
        )  # fmt: skip
        below = total  # P(B < k)
        total += math.exp(log)
        if k and below <= alpha / 2:
            low = k
        if total >= 1 - alpha / 2 and k + 1 <= n:
            high = k + 1
            break
    return low, high


def design_effect(bursts: Sequence[F64], q: float) -> float:
    """How many samples of these bursts count as one independent one, for their q-quantile."""
    if len(bursts) < 2:
        return 1.0
    size = float(np.mean([len(burst) for burst in bursts]))
    cut = float(np.quantile(np.concatenate(list(bursts)), q))
    shares = np.array([float(np.mean(burst <= cut)) for burst in bursts])
    expected = max(q * (1 - q), 1e-9) / size
    return float(np.clip(np.var(shares, ddof=1) / expected, 1.0, size))


def quantile_band(bursts: Sequence[F64], q: float, alpha: float = ALPHA) -> Band:
    """The q-quantile of all samples, and its interval."""
    values = np.sort(np.concatenate(list(bursts)))
    n = len(values)
    counted = max(1, int(n / design_effect(bursts, q)))
    low, high = ranks(counted, q, alpha)

    def at(rank: int) -> float:
        return float(values[min(n - 1, max(0, math.ceil(rank * n / counted) - 1))])

    return Band(
        float(np.quantile(values, q)),
        at(low) if low else -math.inf,
        at(high) if high <= counted else math.inf,
    )


def alpha_at(look: int, alpha: float = ALPHA) -> float:
    """What may be spent at the look-th look (from 1)."""
    return alpha / (look * (look + 1))


def is_look(bursts: int) -> int:
    """The number of the look that is due after so many bursts, 0 for none."""
    at, number = FIRST, 1
    while at < bursts:
        at, number = max(at + 1, int(at * GROWTH)), number + 1
    return number if at == bursts else 0


def shift_band(now: F64, then: F64, alpha: float = ALPHA) -> Band:
    """Ratio of typical values, now over then: the Hodges-Lehmann estimate on logarithms and the
    interval of the Mann-Whitney test (Hollander, Wolfe, Nonparametric Statistical Methods, 4.2)."""
    pairs = np.sort((np.log(now)[:, None] - np.log(then)[None, :]).ravel())
    m, n = len(now), len(then)
    from statistics import NormalDist

    z = NormalDist().inv_cdf(1 - alpha / 2)
    cut = math.floor(m * n / 2 - z * math.sqrt(m * n * (m + n + 1) / 12))
    value = math.exp(float(np.median(pairs)))
    if cut < 1:
        return Band(value, 0.0, math.inf)
    return Band(value, math.exp(float(pairs[cut - 1])), math.exp(float(pairs[-cut])))
