"""A session whose logits come from transformers, to score with the same code as edgert's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.errors import RequestError
from edgert.session.base import Feed, Session, State, StepResult


def _ids(feed: Feed) -> list[int]:
    if feed.tokens is None:
        raise RequestError("a feed without tokens, expected token ids", code="step-inputs")
    return [int(token) for token in feed.tokens]


class _Tokens(State):
    """The committed ids themselves: a session without a cache computes them again."""

    ids: tuple[int, ...] = ()

    def fork(self) -> State:
        other = _Tokens(self.context)
        other.restore(self.snapshot())
        return other

    def snapshot(self) -> dict[str, Any]:
        return {"ids": self.ids[: self.length]}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.ids = tuple(snapshot["ids"])
        self.length, self.pending = len(self.ids), 0

    @property
    def nbytes(self) -> int:
        return 4 * len(self.ids)

    def close(self) -> None:
        self.ids = ()


class TransformersSession(Session):
    """`AutoModelForCausalLM` on the CPU, float32 from the stored weights, without a cache."""

    device = "transformers"

    def __init__(self, checkpoint: Path, *, threads: int = 1, max_rows: int = 2048) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        self.model = model.eval()
        self.context = int(model.config.max_position_embeddings)
        self.max_rows = max_rows
        self.width = int(model.config.vocab_size)

    def new_state(self, expected: int = 0) -> State:
        return _Tokens(self.context)

    @property
    def vocab_size(self) -> int:
        return self.width

    def step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        torch = self._torch
        states: list[Any] = [feed.state for feed in feeds]
        lines = [
            (*state.ids[: state.length], *_ids(feed))
            for state, feed in zip(states, feeds, strict=True)
        ]
        answers: list[NDArray[np.float32]] = []
        batch = torch.zeros(len(lines), max(map(len, lines)), dtype=torch.long)
        for row, line in zip(batch, lines, strict=True):
            row[: len(line)] = torch.tensor(line)  # a causal model does not see what follows
        wanted = any(feed.logits != "none" for feed in feeds)
        with torch.no_grad():
            logits = self.model(batch, use_cache=False).logits if wanted else None
        for i, (state, feed, line) in enumerate(zip(states, feeds, lines, strict=True)):
            state.ids, state.pending = line, feed.rows
            count = {"none": 0, "last": 1, "all": feed.rows}[feed.logits]
            answers.append(
                np.zeros((0, self.width), np.float32)
                if logits is None or not count
                else logits[i, len(line) - count : len(line)].numpy()
            )
        return [StepResult(answer) for answer in answers]

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        raise RequestError("a language model is stepped, not run", code="run-states")

    def close(self) -> None:
        self.model = None
