"""Log-likelihoods of continuations, batched over a session.

    scorer = Scorer(session)
    scores = scorer.score([Request((1, 5), (7, 9)), Request((1, 5), (8,))])

Requests that follow each other with the same context share its computation, and that of the tokens
with which their continuations begin alike. Several sequences go into one step; a row's
result, and so a score, does not depend on what else is in the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..kernels.cpu.layout import PAGE
from ..session.base import Feed, Session, StepResult
from ..session.engine import LANES, Engine
from ..session.lanes import Lane

F32 = NDArray[np.float32]
SHARED = 8  # continuations that one computed context may serve; more lanes keep steps full

Progress = Callable[[int], None]


class Request(NamedTuple):
    """Token ids: what is given (one at least) and what is scored (one at least)."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Score(NamedTuple):
    """Natural logarithm of the continuation's probability; greedy: whether every one of its tokens
    is the likeliest (the lowest id of equals)."""

    logprob: float
    greedy: bool


def token_logprobs(
    logits: F32, targets: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """log softmax of float32 [n, V] at one target a row, float64 [n]; which are argmax, [n]."""
    rows = np.arange(len(targets))
    peak = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - peak).sum(axis=1, dtype=np.float64)
    picked = logits[rows, targets].astype(np.float64) - peak[:, 0]
    best = picked == 0
    best[best] = logits[best].argmax(axis=1) == np.asarray(targets)[best]
    return picked - np.log(total), best


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` begin with in common."""
    pairs = zip(a, b, strict=False)
    return next((n for n, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


class _Group(NamedTuple):
    """Requests of one context: their places in the answer and their continuations."""

    context: tuple[int, ...]
    places: list[int]
    continuations: list[tuple[int, ...]]

    def takes(self, request: Request) -> bool:
        """Whether the request belongs here: it shares a prefix, and there is space left."""
        same = request.context == self.context and len(self.places) < SHARED
        return same and (
            len(self.context) > 1 or _alike(self.continuations[-1], request.continuation) > 0
        )

    @property
    def longest(self) -> int:
        return len(self.context) - 1 + max(len(c) for c in self.continuations)


class _Lane(Lane):
    """One sequence at work: the shared context once, then each continuation after it, less what it
    shares with the one before."""

    def __init__(self, group: _Group) -> None:
        super().__init__()
        self.group = group
        self.base = len(group.context) - 1  # the last context token is fed with each continuation
        self.index = 0
        self.found: list[tuple[float, bool]] = []  # a token each of the current continuation
        self.scores: list[tuple[int, Score]] = []

    def open(self, session: Session) -> None:
        self.state, self.found = session.new_state(self.group.longest), []

    def feed(self, rows: int, logits: int) -> Feed | None:
        """The next tokens, at most `rows` of them, `logits` if they are scored."""
        if self.state is None:
            return None
        at = self.state.length
        if at < self.base:
            piece = self.group.context[at : min(self.base, at + rows)]
            return Feed(self.state, np.array(piece, np.int32), "none")
        continuation = self.group.continuations[self.index]
        inputs = self.group.context[-1:] + continuation[:-1]
        first = at - self.base
        piece = inputs[first : first + min(rows, logits)]
        return Feed(self.state, np.array(piece, np.int32), "all")

    def take(self, feed: Feed, result: StepResult) -> None:
        state, count = feed.state, feed.rows
        if feed.logits == "none":
            state.commit(count)
            return
        continuation = self.group.continuations[self.index]
        first = state.length - self.base
        found, best = token_logprobs(result.logits, continuation[first : first + count])
        self.found += zip(found.tolist(), best.tolist(), strict=True)
        state.commit(count)
        if first + count < len(continuation):
            return
        score = Score(math.fsum(x for x, _ in self.found), all(greedy for _, greedy in self.found))
        self.scores.append((self.group.places[self.index], score))
        self.index += 1
        self.finished = self.index == len(self.group.places)
        if not self.finished:
            following = self.group.continuations[self.index]
            kept = min(_alike(continuation, following), len(following) - 1)
            reached = state.rewind(self.base + kept)
            del self.found[max(0, reached - self.base) :]

    def end(self, error: BaseException | None) -> None:
        self.release()


class Scorer:
    """Scores requests on a session, which it neither owns nor closes. engine: the loop whose lanes
    they become, where other callers use the session too."""

    def __init__(self, session: Session, engine: Engine | None = None) -> None:
        self.session, self.engine = session, engine or Engine(session)

    def score(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Score]:
        """One score a request, in order. progress: called with the number of scores just made.

        Raises RequestError for empty parts and for requests longer than the session's context.
        """
        waiting = self._groups(requests)
        answers: dict[int, Score] = {}
        lanes: list[_Lane] = []
        following = next(waiting, None)
        try:
            while lanes or following is not None:
                while following is not None and self._fits(lanes, following):
                    lane = _Lane(following)
                    self.engine.submit(lane)
                    lanes.append(lane)
                    following = next(waiting, None)
                self.engine.wait(lambda: any(lane.done for lane in lanes))
                for lane in [lane for lane in lanes if lane.done]:
                    lanes.remove(lane)
                    if lane.error is not None:
                        raise lane.error
                    answers.update(lane.scores)
                    if progress is not None:
                        progress(len(lane.scores))
        finally:
            for lane in lanes:
                lane.cancelled = True
            for lane in lanes:
                self.engine.settle(lane)
        return [answers[place] for place in range(len(requests))]

    def _groups(self, requests: Sequence[Request]) -> Iterator[_Group]:
        group: _Group | None = None
        for place, (context, continuation) in enumerate(requests):
            if not context or not continuation:
                raise RequestError(
                    f"request {place}: {len(context)} tokens of context and {len(continuation)} to "
                    "score, expected one of each at least",
                    code="score-empty",
                )
            if group is None or not group.takes(Request(context, continuation)):
                if group is not None:
                    yield group
                group = _Group(context, [], [])
            group.places.append(place)
            group.continuations.append(continuation)
        if group is not None:
            yield group

    def _fits(self, lanes: Sequence[_Lane], group: _Group) -> bool:
        """Whether memory for one more sequence is sure to be there: one context in all."""
        if not lanes:
            return True
        pages = sum(-(-one.longest // PAGE) for one in [*(x.group for x in lanes), group])
        return len(lanes) < LANES and pages * PAGE <= self.session.context
