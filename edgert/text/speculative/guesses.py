"""What models that guess have in common: one token a step, several requests in common steps.

A request's guesses are picked by the numbers that its own tokens are picked by ("coupled": both
then agree more often than chance would have it), or drawn by others and handed on with what they
were drawn from ("rejection").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np

from ...errors import EdgertError, ResourceError
from ...session.base import Feed, Session, StepResult
from ...session.costs import clock_for
from ..ranking import F32
from ..sampling import Sampler, draw
from .controller import Controller
from .cycle import Ask
from .proposer import Draft, Law
from .verify import DRAFT, Verify, seed_for


class Guesser(Protocol):
    """A request's part of a model that guesses. ends: tokens that nothing is guessed behind."""

    key: str
    controller: Controller | None
    verify: Verify
    sampler: Sampler
    ends: frozenset[int]

    def close(self) -> None:
        """Give the state back; the next wish begins anew."""


class Work(ABC):
    """One wish while it is fulfilled. text: the request's tokens, and the guesses."""

    def __init__(self, ask: Ask, guesser: Guesser) -> None:
        self.ask, self.guesser = ask, guesser
        self.tokens: list[int] = []
        self.laws: list[Law] = []
        self.reach = 1.0
        self.text = list(ask.tokens)

    @abstractmethod
    def begin(self) -> bool:
        """Whether guesses are to be made now."""

    @abstractmethod
    def feed(self) -> Feed:
        """What gives the next guess, with logits of its last row."""

    @abstractmethod
    def take(self, result: StepResult) -> bool:
        """Pick a guess; whether another one is to follow."""

    def end(self) -> None:
        """Hand the guesses over."""
        laws = self.laws if self.guesser.verify == "rejection" else None
        self.ask.draft = Draft(self.tokens, laws, self.guesser.key)

    def guess(self, row: F32) -> bool:
        """Pick a guess from logits float32 [V]; whether another one is to follow."""
        self.ask.tried = True
        try:
            token = self._picked(row)
        except EdgertError:  # all that may be guessed is forbidden: the model need not guess
            return False
        return token >= 0 and self._add(token)

    def pick(self, row: F32) -> bool:
        """The same of a guess that is known to be worth it."""
        try:
            return self._add(self.guesser.sampler.pick(row, self.text))
        except EdgertError:
            return False

    def _add(self, token: int) -> bool:
        guesser = self.guesser
        self.tokens.append(token)
        self.text.append(token)
        return len(self.tokens) < self.ask.limit and token not in guesser.ends

    def _picked(self, row: F32) -> int:
        """A token, or -1 for a guess that is not worth it."""
        guesser = self.guesser
        if guesser.verify == "coupled":
            if not self._worth(lambda: likeliest_share(row)):
                return -1
            return guesser.sampler.pick(row, self.text)
        law = guesser.sampler.law(row, self.text)
        if not self._worth(lambda: float(law[1].max())):
            return -1
        seed = seed_for(guesser.sampler.params.seed, self.ask.cycle, DRAFT)
        token = draw(law[0], law[1], seed, len(self.text))
        self.laws.append(law)
        return token

    def _worth(self, share: Callable[[], float]) -> bool:
        """Whether to make this guess, by the law and the guesses before, not by what it will be."""
        controller = self.guesser.controller
        if controller is None:
            return True
        self.reach *= share()
        return controller.worth(self.guesser.key, len(self.tokens), self.reach)


class GuessingModel(ABC):
    """A session that guesses for requests. usual: rows of a feed while guessing, at most; more are
    catching up with a text, and are not timed."""

    usual = 3

    def __init__(self, session: Session) -> None:
        self.session, self._clock = session, clock_for(session.device)

    @abstractmethod
    def work(self, ask: Ask) -> Work:
        """A wish, to be fulfilled."""

    def make(self, asks: Sequence[Ask]) -> None:
        """Fill the drafts of wishes; where memory is short they stay empty."""
        clock, each = self._clock, [self.work(ask) for ask in asks]
        start = clock()
        last, steps, guesses = self._all([work for work in each if work.begin()], start)
        for work in each:
            work.end()
        for ask in asks:
            ask.seconds = (last - start) / len(asks)
            ask.each = steps / guesses if guesses else 0.0

    def _all(self, live: list[Work], last: float) -> tuple[float, float, int]:
        """Steps from the time `last` on, until nothing is guessed any more: the time then, seconds
        of steps that count, and their guesses."""
        clock, steps, guesses = self._clock, 0.0, 0
        while live:
            feeds = [(work, work.feed()) for work in live]
            fed = self._step(feeds)
            live = [work for work, result in fed if work.take(result)]
            now = clock()
            if all(feed.rows <= self.usual for _, feed in feeds):  # else a text is caught up with
                steps, guesses = steps + now - last, guesses + len(fed)
            last = now
        return last, steps, guesses

    def _step(self, fed: Sequence[tuple[Work, Feed]]) -> list[tuple[Work, StepResult]]:
        """Common steps of as many feeds as fit; works whose memory was not there drop out."""
        done: list[tuple[Work, StepResult]] = []
        if len(fed) == 1:  # the short way to the same
            work, feed = fed[0]
            try:
                return [(work, self.session.step([feed])[0])]
            except ResourceError:
                work.guesser.close()
                return []
        while fed:
            rows = accumulate(feed.rows for _, feed in fed)
            count = max(1, sum(total <= self.session.max_rows for total in rows))
            try:
                results = self.session.step([feed for _, feed in fed[:count]])
            except ResourceError:
                for work, _ in fed[:count]:
                    work.guesser.close()
            else:
                pairs = zip(fed[:count], results, strict=True)
                done += [(work, result) for (work, _), result in pairs]
            fed = fed[count:]
        return done


def likeliest_share(row: F32) -> float:
    """The largest probability of softmax(row)."""
    shifted = row - row.max()
    return 1.0 / float(np.exp(shifted, out=shifted).sum())
