"""The score that a candidate will reach: loss by laws or by what was measured, then the frontier.

    L(c) = L0 + dq(b, G, healed) + dr(r)         measured additions replace the laws'
    N_eff: the size that would have this loss;   z_eff = log10(6 N_eff D)
    score = y16 + q(z_eff) - q(z_16)             or q(z_eff) where no score was measured

What is not known is drawn: theta of the frontier, ln of each addition with deviation 0.5 by a law
and 0.1 as measured, 0.05 of z. All candidates share the draws, so that near ties do not flip.
"""

from __future__ import annotations

import msgspec
import numpy as np

from ..scaling.frontier import PRIOR_BAND, Frontier, thetas
from ..scaling.laws import CHINCHILLA, PTQ, Base, Bits, Compression, fit_bits, healed_delta
from ..scaling.loss import F64
from .candidates import Candidate
from .cards import Card

DRAWS = 500
BY_LAW, BY_PROBE, OF_Z = 0.5, 0.1, 0.05
KV_COST = {16: 0.0, 8: 0.002, 4: 0.03}  # nats, priors
CHANCE = 0.0


class Laws(msgspec.Struct, frozen=True):
    """The laws that a plan uses; `named` says them with their constants."""

    base: Base = CHINCHILLA
    bits: Bits = PTQ
    compression: Compression = Compression()

    def named(self) -> dict[str, object]:
        """Constants, for a plan's provenance."""
        return {
            "base": {"of": "arXiv 2203.15556", **self.base._asdict()},
            "bits": {"of": "arXiv 2411.04330", **self.bits._asdict()},
            "compression": {"of": "a prior, quadratic as in arXiv 2504.04342",
                            **self.compression._asdict()},
            "healed": {"of": "arXiv 2505.14302, w4a16, and the slope of bits above"},
            "units": "nats a token; N parameters of products and embeddings; D tokens",
        }  # fmt: skip


class Draws:
    """What is not known, drawn once for all candidates."""

    def __init__(self, frontier: Frontier, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.theta = np.array(thetas(frontier, DRAWS, seed))
        self.normal = rng.standard_normal((4, DRAWS))
        self.prior = frontier.preset == "prior"
        self.shift = frontier.shift

    def frontier(self, z: F64) -> F64:
        """q of each draw at its own z [DRAWS]."""
        y0, height, middle, log_b = self.theta.T
        q = y0 + height / (1 + np.exp(-np.exp(log_b) * (z - middle)))
        found: F64 = q + self.shift
        return found + PRIOR_BAND / 1.645 * self.normal[3] if self.prior else found


class Quality(msgspec.Struct, frozen=True):
    """A candidate's score. source: "measured" where its loss by bits was, else "law". added: nats
    over the model at 16 bits."""

    mean: float
    low: float
    high: float
    loss: float
    added: float
    source: str


def added_loss(card: Card, one: Candidate, laws: Laws) -> tuple[float, float, str]:
    """Nats that bits and a ratio cost, each, and where the first is from."""
    n, d = card.parameters, card.tokens
    source = "law"
    if one.bits >= 16:
        bits = 0.0
    elif str(one.bits) in card.probes:
        bits, source = card.probes[str(one.bits)], "measured"
    elif len(card.probes) >= 3:
        known = sorted((float(b), delta) for b, delta in card.probes.items())
        bits = fit_bits([b for b, _ in known], [delta for _, delta in known]).delta(one.bits)
        source = "fitted to probes"
    elif one.healed:
        bits = healed_delta(n, d, one.bits, one.group)
    else:
        bits = laws.bits.delta(n * (1 - one.ratio), d, one.bits)
    kv = KV_COST[one.kv_bits]
    return bits + kv, laws.compression.delta(one.ratio) if one.ratio else 0.0, source


def scores_of(card: Card, one: Candidate, laws: Laws, draws: Draws) -> tuple[F64, Quality]:
    """Scores of a candidate in every draw [DRAWS], and their summary."""
    bits, ratio, source = added_loss(card, one, laws)
    n, d = card.parameters, card.tokens
    deviation = BY_LAW if source == "law" else BY_PROBE
    added = bits * np.exp(deviation * draws.normal[0]) + ratio * np.exp(BY_LAW * draws.normal[1])
    base = laws.base
    size = (n**-base.alpha + added / base.a) ** (-1 / base.alpha)
    noise = OF_Z * draws.normal[2]
    score = draws.frontier(np.log10(6 * size * d) + noise)
    if card.score is not None:
        score = card.score + score - draws.frontier(np.log10(6 * n * d) + noise)
    score = np.clip(score, CHANCE, 1.0)
    low, high = (float(np.quantile(score, q)) for q in (0.05, 0.95))
    loss = card.loss if card.loss is not None else base.loss(n, d)
    total = bits + ratio
    return score, Quality(float(score.mean()), low, high, loss + total, total, source)
