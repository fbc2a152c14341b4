"""The contract between everything that generates and whatever computes.

A session holds one graph with its weights on one device. A state holds the memory of one sequence
(KV pages, recurrent state). A step takes a ragged batch of tokens, several sequences at once if
need be, and is the same call for prefill chunks, decoding and speculative verification.

    state = session.new_state()
    logits, = session.step([Feed(state, tokens)])   # [1, V]: the last row's logits
    state.commit(len(tokens))                        # or fewer: the rest is forgotten
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..graph import Graph


class State(ABC):
    """Memory of one sequence. `length` tokens are committed, `pending` were fed since.

    append is what a step does: it writes tokens at length .. length + pending. Nothing durable
    changes until `commit`.
    """

    def __init__(self, context: int) -> None:
        self.length = 0
        self.pending = 0
        self.context = context

    def commit(self, count: int) -> None:
        """Keep the first `count` pending tokens, forget the others."""
        if not 0 <= count <= self.pending:
            raise RequestError(
                f"commit of {count} tokens, {self.pending} are pending", code="commit-range"
            )
        self.length += count
        self.pending = 0

    def trim(self, length: int) -> None:
        """Forget every token past the first `length`, pending ones included."""
        if not 0 <= length <= self.length:
            raise RequestError(
                f"trim to {length} tokens, the state holds {self.length}", code="trim-range"
            )
        self.length = length
        self.pending = 0

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """A copy of the committed content, restorable into any state of the same model."""

    @abstractmethod
    def restore(self, snapshot: dict[str, Any]) -> None:
        """Become what `snapshot` was; foreign or damaged snapshots raise RequestError."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes this sequence occupies."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back; the state is unusable afterwards. Closing twice is allowed."""


@dataclass(frozen=True)
class Feed:
    """Tokens for one sequence in one step: int32 [n], and which rows' logits are wanted.

    logits: "last" (default, one row), "all" (n rows, for verification and evaluation), "none".
    """

    state: State
    tokens: NDArray[np.int32]
    logits: str = "last"


class Session(ABC):
    """One graph on one device."""

    graph: Graph
    device: str
    max_rows: int  # tokens that one step may hold, over all its feeds
    context: int  # tokens that one state may hold

    @abstractmethod
    def new_state(self, expected: int = 0) -> State:
        """An empty sequence. `expected` is the length it will probably reach (0: unknown), which
        decides between the short and the long rotary factors of models that have both."""

    @abstractmethod
    def step(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        """Run all feeds at once; returns float32 [rows, V] a feed, in order. The arrays are the
        caller's. Raises RequestError for too many rows, a full context or uncommitted states."""

    @abstractmethod
    def close(self) -> None:
        """Free everything. Closing twice is allowed; using a closed session raises RequestError."""

    def check_feeds(self, feeds: Sequence[Feed]) -> int:
        """Total rows of a step, after checking what every session must check."""
        total = sum(len(feed.tokens) for feed in feeds)
        if not feeds or any(len(feed.tokens) == 0 for feed in feeds) or total > self.max_rows:
            raise RequestError(
                f"a step of {total} tokens in {len(feeds)} feeds, expected 1 to {self.max_rows} "
                "and none empty",
                code="step-rows",
            )
        if len({id(feed.state) for feed in feeds}) != len(feeds):
            raise RequestError("a step feeds one state twice", code="step-states")
        for feed in feeds:
            self._check_feed(feed)
        return total

    def _check_feed(self, feed: Feed) -> None:
        state, count = feed.state, len(feed.tokens)
        if state.pending:
            raise RequestError(
                f"{state.pending} tokens are pending, commit or trim before the next step",
                code="step-pending",
            )
        if state.length + count > state.context:
            raise RequestError(
                f"{state.length} tokens and {count} more do not fit the context of {state.context}",
                code="context",
                hint="shorten the prompt, or load with a larger ctx_size if the model allows it",
            )
        low, high = int(np.min(feed.tokens)), int(np.max(feed.tokens))
        if low < 0 or high >= self.graph.vocab_size:
            raise RequestError(
                f"token ids from {low} to {high}, expected 0 to {self.graph.vocab_size - 1}",
                code="token-range",
            )
        if feed.logits not in ("last", "all", "none"):
            raise RequestError(f"logits is {feed.logits!r}, expected last, all or none")
