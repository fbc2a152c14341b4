"""A session whose logits come from transformers, to score with the same code as edgert's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.session.base import Feed, Session, State


class _Tokens(State):
    """The committed ids themselves: a session without a cache computes them again."""

    ids: tuple[int, ...] = ()

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
        self.graph: Any = SimpleNamespace(vocab_size=int(model.config.vocab_size))

    def new_state(self, expected: int = 0) -> State:
        return _Tokens(self.context)

    def step(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        torch = self._torch
        self.check_feeds(feeds)
        states: list[Any] = [feed.state for feed in feeds]
        lines = [
            (*state.ids[: state.length], *map(int, feed.tokens))
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
            state.ids, state.pending = line, len(feed.tokens)
            count = {"none": 0, "last": 1, "all": len(feed.tokens)}[feed.logits]
            answers.append(
                np.zeros((0, self.graph.vocab_size), np.float32)
                if logits is None or not count
                else logits[i, len(line) - count : len(line)].numpy()
            )
        return answers

    def close(self) -> None:
        self.model = None
