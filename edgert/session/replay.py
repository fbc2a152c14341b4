"""Drafts for recurrent states, which without a tail take a step's tokens all or not at all.

Behind a commit of some of them (drafts of which a few were right) they stand still where they were,
and the tokens that were kept are put in front of what the sequence is fed next: a few more rows of
a step that is computed anyway, not a second one.

Rows do not depend on the steps they came in, so what the states then hold, and what a row gives, is
bit for bit what it would be if the rejected tokens had never been fed. Callers see nothing of this:
`State.length` counts what was committed, `State.behind` holds the rows that are still to be taken
in. Copies of a state (`fork`, `snapshot`, checkpoints) first bring it up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .base import Feed, State, StepResult
from .feeds import FeedChecker

Step = Callable[[Sequence[Feed]], list[StepResult]]


class Replaying:
    """Steps of a session whose recurrent states take whole steps only, where `whole` says so. step:
    runs feeds as their states stand."""

    def __init__(self, checker: FeedChecker, max_rows: int, step: Step, *, whole: bool) -> None:
        self._checker, self._max_rows, self._step, self.whole = checker, max_rows, step, whole

    def begin(self, state: State) -> None:
        """A new state of the session."""
        state.whole_steps, state.settle = self.whole, self.settle if self.whole else None

    def step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        """The feeds' results, once their states have taken in what they are behind."""
        if not self.whole:
            return self._step(feeds)
        if any(feed.state.behind for feed in feeds):
            self._checker.check(feeds)
            fits = sum(feed.rows + feed.state.late for feed in feeds) <= self._max_rows
            for feed in feeds:
                if not (fits and _joins([*_pieces(feed.state), feed])):
                    self.settle(feed.state)
        whole = [_joined([*_pieces(feed.state), feed]) for feed in feeds]
        for feed in feeds:
            _step_back(feed.state)
        try:
            found = self._step(whole)
        finally:
            for feed in feeds:
                _step_forward(feed.state)
        for feed in feeds:
            state = feed.state
            state.pending, state.ahead, state.offered = feed.rows, state.late, feed
        return [_without(f.state.late, f, result) for f, result in zip(feeds, found, strict=True)]

    def settle(self, state: State) -> None:
        """Have a state take in what it is behind, in steps of its own."""
        if not state.behind:
            return
        if state.pending:
            raise RequestError(
                f"{state.pending} tokens are pending, commit or discard before copying the state",
                code="step-pending",
            )
        pieces = _pieces(state)
        _step_back(state)
        try:
            for piece in pieces:
                self._step([replace(piece, logits="none")])
                state.take_in()
        finally:
            _step_forward(state)


def _step_back(state: State) -> None:
    """Stand where the recurrent states stand."""
    state.held = state.late
    state.length -= state.held


def _step_forward(state: State) -> None:
    state.length, state.held = state.length + state.held, 0


def _pieces(state: State) -> list[Feed]:
    """What a state is behind, as feeds."""
    return [_picked(feed, rows) for feed, rows in state.behind]


def _picked(feed: Feed, rows: Sequence[int]) -> Feed:
    """Some rows of a feed, a chain."""
    index = np.array(rows, np.int64)
    taken = {name: np.asarray(array)[index] for name, array in feed.inputs.items()}
    positions = feed.positions
    return replace(
        feed,
        tokens=None if feed.tokens is None else np.asarray(feed.tokens)[index],
        embeddings=None if feed.embeddings is None else np.asarray(feed.embeddings)[index],
        inputs=taken,
        positions=None if positions is None else np.asarray(positions)[..., index],
        parents=None,
        taps=(),
    )


def _joins(feeds: Sequence[Feed]) -> bool:
    """Whether feeds bring their rows in the same way."""
    ways = [(f.tokens is None, f.embeddings is None, sorted(f.inputs)) for f in feeds]
    return all(way == ways[0] for way in ways)


def _joined(feeds: Sequence[Feed]) -> Feed:
    """The rows of all feeds of one state, one after the other; logits and taps are the last's."""
    last = feeds[-1]
    if len(feeds) == 1:
        return last
    tokens = [f.tokens for f in feeds if f.tokens is not None]
    rows = [f.embeddings for f in feeds if f.embeddings is not None]
    placed = any(f.positions is not None for f in feeds)
    return replace(
        last,
        tokens=np.concatenate(tokens) if tokens else None,
        embeddings=np.concatenate(rows) if rows else None,
        inputs={name: np.concatenate([f.inputs[name] for f in feeds]) for name in last.inputs},
        positions=np.concatenate(_positions(feeds), axis=1) if placed else None,
        parents=None,
    )


def _positions(feeds: Sequence[Feed]) -> list[NDArray[np.int32]]:
    """Rotary axes [3, n] of each; those that are not given are places in the sequence."""
    found, start = [], feeds[-1].state.length - sum(feed.rows for feed in feeds[:-1])
    for feed in feeds:
        places = np.arange(start, start + feed.rows, dtype=np.int32)
        given = places if feed.positions is None else np.asarray(feed.positions, np.int32)
        found.append(np.broadcast_to(given, (3, feed.rows)))
        start += feed.rows
    return found


def _without(count: int, feed: Feed, result: StepResult) -> StepResult:
    """What belongs to the feed of a result whose first `count` rows are others."""
    if not count:
        return result
    logits = result.logits[count:] if feed.logits == "all" else result.logits
    return StepResult(logits, {name: rows[count:] for name, rows in result.taps.items()})
