"""What is added to logits before anything is dropped: bias, masks, penalties, DRY.

DRY is the sampler of text-generation-webui (oobabooga/text-generation-webui#5677) as llama.cpp
computes it: a token that would lengthen a repetition of n tokens loses
multiplier * base ** (n - allowed_length). A repetition reaches back to a sequence breaker at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .params import Resolved
from .ranking import F32, Ids

# First token of a sequence breaker -> what may follow it: () where it holds all of the breaker.
Breakers = Mapping[int, Sequence[tuple[int, ...]]]

BACK = 32  # newest tokens that a history gives up, as of drafts, before it is made anew
HEAVIEST = 1e30  # DRY's penalty; no token survives it, and it stays finite at any temperature


class History:
    """The tokens so far, and how often each occurs, kept from one pick to the next.

    tokens: a list; ids: the same as int64 [n]. seen, counts: int64 [distinct tokens].
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self._slots: dict[int, int] = {}
        self._ids, self._seen, self._counts = (np.zeros(64, np.int64) for _ in range(3))
        self.follow(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def ids(self) -> Ids:
        return self._ids[: len(self.tokens)]

    @property
    def seen(self) -> Ids:
        return self._seen[: len(self._slots)]

    @property
    def counts(self) -> Ids:
        return self._counts[: len(self._slots)]

    def follow(self, tokens: Sequence[int]) -> History:
        """Become these tokens; quick where they begin with what it holds, but for a few."""
        tokens = tokens if isinstance(tokens, list) else [int(token) for token in tokens]
        known = len(self.tokens)
        if tokens[:known] != self.tokens:
            if not self._back(tokens):
                self.__init__(tokens)  # type: ignore[misc]
                return self
            known = len(self.tokens)
        new = tokens[known:]
        self.tokens += new
        self._ids = _grown(self._ids, len(self.tokens))
        self._ids[known : len(self.tokens)] = new
        for token in new:
            slot = self._slots.setdefault(token, len(self._slots))
            if slot == len(self._seen):
                self._seen = _grown(self._seen, slot + 1)
                self._counts = _grown(self._counts, slot + 1)
            self._seen[slot] = token
            self._counts[slot] += 1
        return self

    def _back(self, tokens: list[int]) -> bool:
        """Forget the newest tokens that are not among `tokens`, if these are BACK at most."""
        for _ in range(min(BACK, len(self.tokens))):
            token = self.tokens.pop()
            slot = self._slots[token]
            self._counts[slot] -= 1
            if not self._counts[slot]:  # the newest slot: tokens leave in the order they came in
                del self._slots[token]
            if tokens[: len(self.tokens)] == self.tokens:
                return True
        return False


def adjusted(
    z: F32, params: Resolved, history: Sequence[int] | History, holes: Sequence[int] | Ids = (),
    breakers: Breakers | None = None, *, out: F32 | None = None,
) -> F32:  # fmt: skip
    """Bias, mask, penalties and DRY, on a copy of z float32 [V] where there is anything to do.

    out: where the copy may lie; big new arrays cost more than what is done with them.
    """
    looks_back = params.penalised or params.dry
    if not (params.logit_bias or len(holes) or looks_back):
        return z
    if out is None or out.shape != z.shape:
        z = np.array(z, np.float32)
    else:
        np.copyto(out, z)
        z = out
    for token, bias in params.logit_bias.items():
        if token < len(z):
            z[token] += np.float32(bias)
    if len(holes):
        z[np.asarray(holes, np.int64)] = -np.inf
    if looks_back:
        past = history if isinstance(history, History) else History(history)
        if params.penalised:
            _penalise(z, params, past)
        if params.dry:
            _dry(z, params, past, breakers or {})
    return z


def _penalise(z: F32, params: Resolved, past: History) -> None:
    """Repetition, presence and frequency penalties, in place."""
    seen, counts = past.seen, past.counts
    if len(seen) and seen.max() >= len(z):
        seen, counts = seen[seen < len(z)], counts[seen < len(z)]
    row = z[seen]
    if params.repeat_penalty != 1.0:
        r = np.float32(params.repeat_penalty)
        row = np.where(row < 0, row * r, row / r)
    row = row - np.float32(params.presence_penalty)
    z[seen] = row - np.float32(params.frequency_penalty) * counts.astype(np.float32)


def _dry(z: F32, params: Resolved, past: History, breakers: Breakers) -> None:
    """DRY, in place."""
    allowed, base = params.dry_allowed_length, params.dry_base
    ids = past.ids[-params.dry_penalty_last_n :] if params.dry_penalty_last_n > 0 else past.ids
    if len(ids) <= allowed:
        return
    # Past so many tokens the penalty stays what it is.
    steepest = int(math.log(HEAVIEST) / math.log(base)) if base > 1.000001 else 0
    longest = min(unbroken(past.tokens, breakers), len(ids), allowed + steepest)
    if longest < allowed:
        return
    for token, length in repetitions(ids, allowed, longest).items():
        if token < len(z) and () not in breakers.get(token, ()):
            penalty = params.dry_multiplier * base ** (length - allowed)
            z[token] -= np.float32(min(penalty, HEAVIEST))


def repetitions(ids: Ids, shortest: int, longest: int) -> dict[int, int]:
    """For each token that followed a run of tokens which the text now ends with: the length of the
    longest such run, from `shortest` to `longest` (longer ones count as that).

    ids: int64 [n]. Places that match are kept and compared one token further back each time.
    """
    last = len(ids) - 1
    ends = (ids[:last] == ids[last]).nonzero()[0]  # a run may end here, and is 1 long or longer
    found: dict[int, int] = {}
    for length in range(1, longest + 1):
        longer = (ends >= length) & (ids[ends - length] == ids[last - length])
        done = ends[~longer] if length < longest else ends
        if length >= shortest:
            found.update(dict.fromkeys(ids[done + 1].tolist(), length))
        ends = ends[longer]
        if not len(ends):
            break
    return found


def unbroken(tokens: Sequence[int], breakers: Breakers) -> int:
    """Tokens since the end of the last sequence breaker; all of them where there is none."""
    for behind, token in enumerate(reversed(tokens)) if breakers else ():
        at = len(tokens) - behind
        tails = [
            len(tail)
            for tail in breakers.get(token, ())
            if len(tail) <= behind and tuple(tokens[at : at + len(tail)]) == tail
        ]
        if tails:
            return behind - max(tails)
    return len(tokens)


def _grown(array: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The array, or a longer copy of it that holds at least `size`."""
    if size <= len(array):
        return array
    longer = np.zeros(max(size, 2 * len(array)), np.int64)
    longer[: len(array)] = array
    return longer
