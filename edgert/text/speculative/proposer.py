"""What a source of guesses is.

A proposer sees all tokens of a request and guesses the next ones. What becomes of them it is told
by `observe`; with `taps` it also reads rows of the model's graph, for heads that continue from
them. Wrong guesses cost time and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..ranking import F32, F64, Ids

Law = tuple[Ids, F64]  # ids int64 [s] and their probabilities float64 [s]


@dataclass(frozen=True)
class Draft:
    """Guesses of the tokens that follow.

    laws: what each was drawn from, in the order of tokens; None where nothing was drawn, and where
    it was drawn by the numbers that the model's own tokens are drawn by ("coupled"). key: guesses
    of one key are accepted about equally often.
    """

    tokens: Sequence[int] = ()
    laws: Sequence[Law] | None = None
    key: str = "draft"

    def first(self, count: int) -> Draft:
        """The first `count` of them."""
        if count >= len(self.tokens):
            return self
        laws = None if self.laws is None else self.laws[:count]
        return Draft(self.tokens[:count], laws, self.key)


NO_DRAFT = Draft()  # most answers of most sources


class Proposer(Protocol):
    """A source of guesses for one request."""

    def propose(self, tokens: Sequence[int], limit: int) -> Draft | Sequence[int]:
        """Up to `limit` ids that may follow `tokens`, which are the prompt's and all since. Plain
        ids are a `Draft` of which nothing was drawn."""

    def observe(self, proposed: int, accepted: int) -> None:
        """What became of the last proposal: the first `accepted` of its first `proposed` tokens
        are part of the text."""


class TapReader(Proposer, Protocol):
    """A proposer that reads rows of the model's graph.

    taps: names of values, as `edgert.session.base.Feed` takes them. `gaps`, where a reader has it
    and it is true: beginnings of texts may be taken from what other requests computed, whose rows
    do not come.
    """

    taps: tuple[str, ...]

    def see(self, start: int, rows: Mapping[str, F32]) -> None:
        """Rows float32 [n, width] of the taps at places start .. start + n of the text, whose
        tokens are committed. They come in order, prompt included, and again from an earlier place
        when the model forgot; places that it remembers from an earlier request do not come."""


def taps_of(proposer: Any) -> tuple[str, ...]:
    """Values that a proposer reads; () for most."""
    return tuple(getattr(proposer, "taps", ()))
