"""A relay whose large model reads what the small one wrote before anybody sees it (`GuardedRun`).

The small model's tokens are fed to the large one like drafts. Where its mean log-probability of
them is below the guard, they are thrown away and the large model goes on from where it was.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np

from ..session.base import Feed, State, StepResult
from .generate import PROMPT_CHUNK
from .logprobs import log_softmax
from .relay import CHUNK, RelayRun

SPAN = 48  # tokens that are read at a time at most


class GuardedRun(RelayRun):
    """A relay with a guard. The small model's thinking is held back until it is read; its answer
    behind the thinking is not."""

    def __init__(self, *args: Any, guard: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._guard = guard
        self._held: list[int] = []  # written by the small model, not read yet
        self._ready = False  # to be read
        self._reading = 0  # of those, what the last feed holds
        self._trial = self.relay
        self._trial_pieces = self._pieces

    def feed(self, rows: int, logits: int) -> Feed | None:
        self._reading = 0
        if not self._ready:
            return super().feed(rows, logits)
        self.advanced = False
        state = self.state
        return None if state is None or self.paused else self._read(state, rows, logits)

    def _write_small(self) -> None:
        if not self.relay.thinking:
            super()._write_small()
            return
        if not self._held:
            self._trial = copy.copy(self.relay)
            self._trial.written = dict(self.relay.written)
            self._trial_pieces = self.tokenizer.stream(self.tokens)
        for _ in range(CHUNK):
            if self._full(len(self.tokens) + len(self._held)):
                self._ready = bool(self._held)  # what there is is read
                if not self._held:
                    self.relay.retire()
                return
            for token in self._guessed([*self.tokens, *self._held]):
                self._held.append(token)
                goes_on = self._trial.wrote(self._trial_pieces.push(token))
                ends = token in self._ends or self._trial.spent or not self._trial.thinking
                self._ready = ends or not goes_on or len(self._held) >= SPAN
            if self._ready:
                return

    def _read(self, state: State, rows: int, logits: int) -> Feed | None:
        """What is held back, behind the last token of the text."""
        behind = self.sequence[state.length : -1]
        if behind:  # the memory was needed elsewhere
            piece = behind[: min(rows, PROMPT_CHUNK)]
            return Feed(state, np.asarray(piece, np.int32), "none", taps=self._taps)
        count = min(len(self._held), rows - 1, logits - 1)
        if count < 1:
            return None
        self._reading = count
        tokens = [self.sequence[-1], *self._held[:count]]
        return Feed(state, np.asarray(tokens, np.int32), "all", taps=self._taps)

    def take(self, feed: Feed, result: StepResult) -> None:
        count = self._reading
        if not count:
            super().take(feed, result)
            return
        self._prompt_end = self._prompt_end or time.perf_counter()
        self.generating = True
        part, rest = self._held[:count], self._held[count:]
        scores = [
            float(log_softmax(row, np.array([token]))[0])
            for row, token in zip(result.logits, part, strict=False)
        ]
        if sum(scores) / count < self._guard:
            self.relay.refuse(len(self._held))
            self._held, self._ready = [], False
            kept = self._cut([self._sampler.pick(result.logits[0], self.tokens)])
        else:
            self._held, self._ready = rest, bool(rest)
            kept = self._cut(part)
            if self._reason is None and not rest and self.relay.writer == "large":
                kept += self._cut([self._sampler.pick(result.logits[kept], self.tokens)])
        self._commit(feed, result, kept)
        self.finished = self._reason is not None
