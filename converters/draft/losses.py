"""What a draft is trained towards: few wrong guesses.

With p the model's law of a token and q the draft's, a guess drawn from q stands with probability
alpha = sum min(p, q) = 1 - TV(p, q), so that is what counts. KL(p || q) is smooth and easily
learned, but a draft of few parameters that minimises it guesses worse than it could. The LK losses
(arXiv 2602.23881) aim at alpha itself:

    kl       KL(p || q)
    tv       1 - alpha; its gradient vanishes from random weights at large vocabularies
    alpha    - log alpha, a position at a time, whose gradient does not
    lambda   l KL + (1 - l) TV,  l = exp(-eta mean alpha), without a gradient through l

The draft's vocabulary is a part of the model's. alpha and TV compare q with p as it is (what lies
outside can never be guessed); KL compares it with p cut to that part and normalised. Positions
whose likeliest token lies outside do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Loss = Literal["kl", "tv", "alpha", "lambda"]
LOSSES: tuple[Loss, ...] = ("kl", "tv", "alpha", "lambda")
ETA = 3.0
LEAST_ALPHA = 1e-6  # inside the logarithm
DECAY = 0.8  # of a guess's weight against that of the guess before it


class Target(NamedTuple):
    """What the model says of positions [..]. part: log p of the draft's tokens [.., V_d], not
    normalised. counts: float [..], 0 where a position is left out."""

    part: Tensor
    counts: Tensor


class Step(NamedTuple):
    """A draft place's loss, and sums over the positions that count: alpha, what alpha could be at
    most, KL, and their number."""

    loss: Tensor
    alpha: Tensor
    most: Tensor
    kl: Tensor
    number: Tensor


def target(logits: Tensor, ids: Tensor, valid: Tensor) -> Target:
    """logits float32 [.., V] of the model, ids int [V_d] of the draft, valid [..]: positions that
    may count."""
    picked = logits[..., ids]
    inside = picked.amax(-1) >= logits.amax(-1)
    return Target(picked - logits.logsumexp(-1, keepdim=True), valid * inside)


def alone(sums: Tensor) -> Tensor:
    """Sums over all ranks where there is one."""
    return sums


def loss_of(
    logits: Tensor, wanted: Target, kind: Loss, *, eta: float = ETA,
    together: Callable[[Tensor], Tensor] = alone,
) -> Step:  # fmt: skip
    """The loss of one draft place, the mean over positions that count on all ranks (this rank's
    part of it). logits: float32 [.., V_d] of the draft. together: sums of all ranks from one's."""
    log_q, (part, counts) = logits.log_softmax(-1), wanted
    p = part.exp()
    alpha = torch.minimum(p, log_q.exp()).sum(-1)
    inside = part.log_softmax(-1)
    kl = (inside.exp() * (inside - log_q)).sum(-1)
    with torch.no_grad():
        own = torch.stack([
            (alpha * counts).sum(), (p.sum(-1) * counts).sum(), (kl * counts).sum(), counts.sum(),
        ])  # fmt: skip
        everyone = together(own.clone())
        count = everyone[3].clamp(min=1.0)
        mean_alpha = everyone[0] / count
    each = _each(kind, kl, alpha, torch.exp(-eta * mean_alpha))
    return Step((each * counts).sum() / count, *own)


def _each(kind: Loss, kl: Tensor, alpha: Tensor, share: Tensor) -> Tensor:
    if kind == "kl":
        return kl
    if kind == "tv":
        return 1 - alpha
    if kind == "alpha":
        return -alpha.clamp(min=LEAST_ALPHA).log()
    return share * kl + (1 - share) * (1 - alpha)


def decayed(place: int) -> float:
    """The weight of a draft place, from 0."""
    return math.pow(DECAY, place)
