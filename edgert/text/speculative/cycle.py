"""Speculation in one request: who guesses, how many, what stands, and the counts of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ...notices import notice
from ..ranking import F32
from ..results import DraftStats
from ..sampling import Sampler
from .controller import Controller
from .proposer import NO_DRAFT, Draft, Proposer, taps_of
from .verify import Verify, accept_coupled, accept_drawn

IDLE, EVERY = 16, 4  # tokens without a guess, after which every so many ask, of one sequence
UNHEARD = 64  # guesses of a model, none of which was right, that are worth a warning
UNHEARD_KEY = "ngram"  # guesses from the text itself may well be all wrong


class Ask:
    """A wish of one request for guesses by a model, which several requests share.

    tokens: the request's; limit: guesses at most; draft: what came of it. seconds: that it took;
    each: seconds a guess, 0 where they were not measured. tried: whether the model was asked.
    """

    def __init__(self, proposer: Shared, tokens: Sequence[int], limit: int, cycle: int) -> None:
        self.proposer, self.tokens = proposer, tokens
        self.limit, self.cycle = limit, cycle
        self.draft = Draft()
        self.seconds = self.each = 0.0
        self.tried = False


class Maker(Protocol):
    """A model that guesses for several requests at once."""

    def make(self, asks: Sequence[Ask]) -> None:
        """Fill the drafts of some wishes, all of its own."""


class Shared(Protocol):
    """A request's part of a maker; a proposer as well."""

    key: str

    @property
    def maker(self) -> Maker: ...


class Speculation:
    """One request's guessing.

    proposers: asked in turn until one has a guess. controller: decides lengths; None for always
    `limit`. verify: see `verify`; coupled unless proposers were made to draw by themselves.
    """

    def __init__(
        self,
        proposers: Sequence[Proposer],
        *,
        limit: int,
        verify: Verify = "coupled",
        controller: Controller | None = None,
    ) -> None:
        self.proposers, self.limit = list(proposers), limit
        self.verify, self.controller = verify, controller
        self.guess_s = 0.0  # that models took
        self.taps = tuple(sorted({name for p in self.proposers for name in taps_of(p)}))
        self._readers: list[Any] = [p for p in self.proposers if taps_of(p)]
        # whether a reader of taps must see every place of a text
        self.sees_all = any(taps_of(p) and not getattr(p, "gaps", False) for p in self.proposers)
        self.cycle = 0
        self._draft, self._by, self._made_for = NO_DRAFT, self.proposers[0], -1
        self._counts = _Counts(limit)
        self._warned = False
        self._missed = self._asleep_until = self._blind_until = 0

    # --- guessing -------------------------------------------------------------------------------

    def awake(self, written: int) -> bool:
        """Whether to ask for guesses behind so many tokens: where none came for a while,
        looking for one is most of what drafts cost."""
        return written >= self._asleep_until

    def ask(self, tokens: Sequence[int], limit: int) -> Ask | None:
        """Have guesses made; a wish where a model is to make them, which others may share."""
        ask = self._asked(tokens, limit)
        if ask is not None or self._draft is not NO_DRAFT or self.controller is None:
            self._missed = self._blind_until = 0
            return ask
        lanes = self.controller.costs.lanes  # of several, each one's looking costs all of them
        if self._missed * lanes < IDLE:
            self._missed += 1
        else:
            self._asleep_until = len(tokens) + EVERY * lanes
            self._blind_until = self._resting()
        return ask

    def reads(self, written: int) -> tuple[str, ...]:
        """Values of the model's graph whose rows are wanted of the token after so many: none while
        all who read them rest for longer than they need rows before."""
        return self.taps if written >= self._blind_until else ()

    def _resting(self) -> int:
        """Tokens until which nobody reads."""
        if self.controller is None or self.sees_all or not self._readers:
            return 0
        rests = [(self.controller.resting(p.key), getattr(p, "warm", 0)) for p in self._readers]
        return min(until - warm for until, warm in rests)

    def _asked(self, tokens: Sequence[int], limit: int) -> Ask | None:
        self._draft, self._made_for = NO_DRAFT, len(tokens)
        limit = min(limit, self.limit)
        if limit < 1:
            return None
        for proposer in self.proposers:
            self._by = proposer
            if (shared := _as_shared(proposer)) is not None:
                count = self._length(shared.key, limit, len(tokens))
                if count:
                    return Ask(shared, tokens, count, self.cycle)
                continue
            start = time.perf_counter()
            made = proposer.propose(tokens, limit)
            draft = made if isinstance(made, Draft) else Draft([int(token) for token in made])
            self._counts.seconds += time.perf_counter() - start
            count = self._length(draft.key, limit, len(tokens)) if draft.tokens else 0
            if count:
                self._draft = draft.first(count)
                return None
        return None

    def give(self, ask: Ask) -> None:
        """What came of a wish."""
        self._draft = ask.draft
        self._counts.seconds += ask.seconds
        self.guess_s += ask.seconds
        if self.controller is None:
            return
        if ask.each:
            self.controller.spent(ask.proposer.key, ask.each)
        if ask.tried and not ask.draft.tokens:  # it cost a guess, and none was worth checking
            self.controller.observe(ask.proposer.key, 1, 0)

    def draft(self, tokens: Sequence[int], limit: int) -> Sequence[int]:
        """Up to `limit` guesses; those that `ask` has brought already."""
        if self._made_for != len(tokens):
            if (ask := self.ask(tokens, limit)) is not None:
                ask.proposer.maker.make([ask])
                self.give(ask)
        elif len(self._draft.tokens) > limit:
            self._draft = self._draft.first(max(0, limit))
        return self._draft.tokens

    def cut(self, count: int) -> None:
        """Only the first guesses are fed."""
        self._draft = self._draft.first(count)

    def _length(self, key: str, limit: int, written: int) -> int:
        if self.controller is None:
            return limit
        return min(limit, self.controller.length(key, written))

    # --- what became of it ------------------------------------------------------------------------

    def accept(self, rows: F32, sampler: Sampler, tokens: Sequence[int]) -> list[int]:
        """Accepted guesses and the token after them; rows: float32 [guesses + 1, V]."""
        draft, history = self._draft, list(tokens)
        if draft.laws is not None and self.verify == "rejection":
            return accept_drawn(rows, draft, sampler, history, self.cycle)
        return accept_coupled(rows, draft.tokens, sampler.pick, history)

    def took(self, written: int, accepted: int) -> None:
        """A step gave `written` tokens, the first `accepted` of them guessed."""
        draft = self._draft
        self.cycle += 1
        self._draft, self._made_for = NO_DRAFT, -1
        if draft is NO_DRAFT:
            self._counts.plain(written)
            return
        self._counts.add(len(draft.tokens), accepted, written)
        if not draft.tokens:
            return
        self._by.observe(len(draft.tokens), accepted)
        if self.controller is not None:
            self.controller.observe(draft.key, len(draft.tokens), accepted)
        self._warn(draft.key)

    def see(self, start: int, rows: Mapping[str, F32]) -> None:
        """Rows of the taps of committed tokens from place `start` on."""
        for reader in self._readers:
            alone = len(self._readers) == 1
            reader.see(start, rows if alone else {name: rows[name] for name in reader.taps})

    def _warn(self, key: str) -> None:
        counts = self._counts
        if self._warned or counts.accepted or key.startswith(UNHEARD_KEY):
            return
        if counts.evaluated >= UNHEARD:
            self._warned = True
            notice(
                f"none of {counts.evaluated} drafted tokens was right ({key}): drafts only cost "
                "time here; was the draft model trained on the same kind of text and template?"
            )

    @property
    def stats(self) -> DraftStats:
        return self._counts.stats(self._speed())

    def _speed(self) -> float:
        known = {} if self.controller is None else self.controller.known
        used = [guess for guess in known.values() if guess.counts[0] > guess.first]
        if self.controller is None or not used:
            return 0.0
        return max(1.0, *(self.controller.best(guess)[1] for guess in used))

    def release(self) -> None:
        """Give memory back; it is made again when guesses are wanted."""
        self._draft, self._made_for = NO_DRAFT, -1
        for proposer in self.proposers:
            close = getattr(proposer, "close", None)
            if close is not None:
                close()


def together(asked: Sequence[tuple[Speculation, Ask]]) -> None:
    """Have wishes of several requests fulfilled, those of one maker in common steps."""
    for maker in {id(ask.proposer.maker): ask.proposer.maker for _, ask in asked}.values():
        mine = [pair for pair in asked if pair[1].proposer.maker is maker]
        maker.make([ask for _, ask in mine])
        for speculation, ask in mine:
            speculation.give(ask)


def _as_shared(proposer: Any) -> Shared | None:
    return proposer if hasattr(proposer, "maker") else None


class _Counts:
    """What a request's result tells."""

    def __init__(self, limit: int) -> None:
        self.steps = self.drafted = self.proposed = self.accepted = self.tokens = 0
        self.reached, self.right = [0] * limit, [0] * limit
        self.seconds = 0.0

    @property
    def evaluated(self) -> int:
        return sum(self.reached)

    def plain(self, written: int) -> None:
        """A step without guesses."""
        self.steps += 1
        self.tokens += written

    def add(self, proposed: int, accepted: int, written: int) -> None:
        self.plain(written)
        self.drafted += proposed > 0
        self.proposed += proposed
        self.accepted += accepted
        for place in range(min(proposed, accepted + 1, len(self.reached))):
            self.reached[place] += 1
            self.right[place] += place < accepted

    def stats(self, speed: float) -> DraftStats:
        last = max((place + 1 for place, n in enumerate(self.reached) if n), default=0)
        return DraftStats(
            steps=self.steps, drafted_steps=self.drafted, tokens=self.tokens,
            proposed=self.proposed, accepted=self.accepted,
            reached=tuple(self.reached[:last]), right=tuple(self.right[:last]),
            draft_s=self.seconds, predicted_speed=speed,
        )  # fmt: skip
