"""Which guesses stand, and the token that follows them. Both ways keep the model's law exactly.

coupled     Every token is drawn as without guesses, by numbers that belong to (seed, position,
            token id); a guess stands while it is the token that is drawn. So the text is the plain
            one, bit for bit, whatever was guessed.
rejection   A guess d drawn from q stands where u q(d) < p(d), else the token comes from what p has
            over q (arXiv 2211.17192, 2302.01318). The law is p's, the text depends on the lengths
            of drafts. Guesses that were not drawn are checked as above.

p and q are both processed: biased, penalised, tempered and truncated (`sampling.process`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ..ranking import F32, F64, Ids
from ..sampling import GOLDEN, WORD, Sampler, draw, mixed, uniforms
from .proposer import Draft, Law

Verify = Literal["coupled", "rejection"]
VERIFY: tuple[Verify, ...] = ("coupled", "rejection")
DRAFT, ACCEPT, RESIDUAL = 1, 2, 3  # what random numbers are for
ROUNDING = 1e-12  # what p has over q is less than this only by rounding


def seed_for(seed: int, cycle: int, purpose: int) -> int:
    """The seed of numbers of one purpose in one cycle of a request."""
    return mixed(mixed(seed) + (4 * cycle + purpose) * GOLDEN & WORD)


def accept_coupled(
    rows: F32, drafts: Sequence[int], pick: Callable[[F32, list[int]], int], history: list[int]
) -> list[int]:
    """The accepted drafts and the token after them.

    rows: float32 [drafts + 1, V] logits; pick: the sampler's; history: the tokens before, which
    grows by the accepted drafts.
    """
    picked: list[int] = []
    for index in range(len(drafts) + 1):
        token = pick(rows[index], history)
        picked.append(token)
        if index == len(drafts) or token != drafts[index]:
            break
        history.append(token)
    return picked


def accept_drawn(
    rows: F32, draft: Draft, sampler: Sampler, history: list[int], cycle: int
) -> list[int]:
    """`accept_coupled` for a draft with laws: rejection sampling."""
    picked: list[int] = []
    seed = sampler.params.seed
    for index, (token, q) in enumerate(zip(draft.tokens, draft.laws or (), strict=True)):
        position = len(history)
        ids, probs = sampler.law(rows[index], history)
        u = float(uniforms(seed_for(seed, cycle, ACCEPT), position, _ONE)[0])
        if stands(u, share(q, token), share((ids, probs), token)):
            picked.append(token)
            history.append(token)
            continue
        rest, left = residual((ids, probs), q)
        picked.append(draw(rest, left, seed_for(seed, cycle, RESIDUAL), position))
        return picked
    picked.append(sampler.pick(rows[len(draft.tokens)], history))
    return picked


_ONE = np.zeros(1, np.int64)


def stands(u: float, q: float, p: float) -> bool:
    """Whether a guess of probability q under its own law stands, u uniform in [0, 1). Strictly
    less: a guess that cannot come never stands, also at u = 0."""
    return u * q < p


def share(law: Law, token: int) -> float:
    """A law's probability of a token."""
    ids, probs = law
    return float(probs[ids == token].sum())


def residual(p: Law, q: Law) -> Law:
    """What a token comes from whose guess was rejected: max(p - q, 0), made a law of; p itself
    where only rounding has rejected it."""
    ids, probs = p
    size = int(max(ids.max(), q[0].max())) + 1
    theirs: F64 = np.zeros(size)
    theirs[q[0]] = q[1]
    over = np.maximum(probs - theirs[ids], 0.0)
    total = float(over.sum())
    if total < ROUNDING:
        return p
    kept: Ids = over.nonzero()[0]
    return ids[kept], over[kept] / total
