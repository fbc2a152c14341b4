"""Models with two sets of rotary factors (LongRoPE, arXiv 2402.13753), by length.

As transformers generates with them: while prompt and answer together have no more tokens than
`rope_switch`, all of them are turned by the short factors; from the first token past it on, all by
the long ones, those before it as well. A prompt past the switch is long from its first token. So
what a state holds depends on the text alone, not on how it was fed.

Keys are stored turned, and the layers above depend on them: when a state changes sides, its text is
computed again. Its tokens are remembered for that (`State.fed`). Should the computing fail, the
state keeps what it has got so far: fewer tokens, and consistent ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import RequestError
from ..graph import Graph
from .base import Feed, State, StepResult
from .feeds import FeedChecker, lay_out, rope_switch

Step = Callable[[Sequence[Feed]], list[StepResult]]


class Switching:
    """Steps of a session whose states change sides. step: runs feeds as their states stand."""

    def __init__(self, graph: Graph, checker: FeedChecker, max_rows: int, step: Step) -> None:
        self.switch = rope_switch(graph)
        self._checker, self._max_rows, self._step = checker, max_rows, step

    def begin(self, state: State, expected: int) -> None:
        """A new state that will hold `expected` tokens before logits are wanted of it."""
        state.expected = expected
        if self.switch:
            state.long_rope, state.fed = expected > self.switch, []

    def step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        """The feeds' results, with the factors that the length of each sequence asks for."""
        if not self.switch:
            return self._step(feeds)
        self._checker.check(feeds)
        early: dict[int, StepResult] = {}
        for index, feed in enumerate(feeds):
            long = self._reached(feed) > self.switch
            if long and not feed.state.long_rope and self._mixed(feed):
                (early[index],) = self._step([feed])
                feed.state.discard()
            self._take(feed.state, long=long)
        found = self._step(feeds)
        for index, result in early.items():
            found[index] = self._joined(feeds[index], result, found[index])
        for feed in feeds:
            feed.state.fed_pending = None if feed.tokens is None else feed.tokens.tolist()
        return found

    def _reached(self, feed: Feed) -> int:
        """Tokens of the sequence with the feed, and with what will be fed besides."""
        return max(feed.state.expected, int(lay_out([feed]).place.max()) + 1)

    def _mixed(self, feed: Feed) -> bool:
        """Whether rows on both sides are wanted, as of drafts; the first feed is a prompt."""
        wanted = feed.state.length and (feed.logits == "all" or feed.taps)
        return bool(wanted) and bool((lay_out([feed]).place < self.switch).any())

    def _joined(self, feed: Feed, short: StepResult, long: StepResult) -> StepResult:
        """Of each row the result of its side."""
        before = (lay_out([feed]).place < self.switch)[:, None]
        picked = before[lay_out([feed]).picked]
        taps = {name: np.where(before, short.taps[name], long.taps[name]) for name in feed.taps}
        return StepResult(np.where(picked, short.logits, long.logits), taps)

    def _take(self, state: State, *, long: bool) -> None:
        """Bring a state to a side; what it holds is computed again."""
        if state.long_rope == long:
            return
        text, expected = list(state.fed or ()), state.expected
        if len(text) != state.length or -1 in text:
            raise RequestError(
                f"the text passes {self.switch} tokens, where this model's rotary factors change, "
                "and was not fed as token ids: it cannot be computed again",
                code="long-rope",
                hint="tell new_state the whole length, or feed token ids",
            )
        state.rewind(0)
        state.turn(long_rope=long)
        for start in range(0, len(text), self._max_rows):
            chunk = np.asarray(text[start : start + self._max_rows], np.int32)
            self._step([Feed(state, chunk, "none")])
            state.fed_pending = chunk.tolist()
            state.commit(len(chunk))
        state.expected = expected
