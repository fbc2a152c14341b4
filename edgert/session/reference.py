"""The NumPy session: walks the graph with the ops' reference faces. Slow, plain, always there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..graph import Graph, Node
from ..kernels.attention import KVRows
from ..kernels.ops import CATALOGUE
from ..kernels.quant import Matrix
from .base import Feed, Session, State


class ReferenceState(State):
    """Keys and values as float32 arrays [n, G, D] a state name."""

    def __init__(self, graph: Graph, context: int, *, long_rope: bool) -> None:
        super().__init__(context)
        self.long_rope = long_rope
        self.kv = {
            name: tuple(np.zeros((0, s.kv_heads, s.head_dim), np.float32) for _ in range(2))
            for name, s in graph.states.items()
        }

    def snapshot(self) -> dict[str, Any]:
        kv = {name: tuple(a[: self.length].copy() for a in pair) for name, pair in self.kv.items()}
        return {"length": self.length, "long_rope": self.long_rope, "kv": kv}

    def restore(self, snapshot: dict[str, Any]) -> None:
        if set(snapshot.get("kv", ())) != set(self.kv):
            raise RequestError("the snapshot belongs to another model", code="snapshot")
        self.kv = {name: tuple(a.copy() for a in pair) for name, pair in snapshot["kv"].items()}
        self.length, self.pending = snapshot["length"], 0
        self.long_rope = snapshot["long_rope"]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for pair in self.kv.values() for a in pair)

    def close(self) -> None:
        self.kv = {}


class ReferenceSession(Session):
    """graph and weights (graph name -> array or Quantized) on NumPy."""

    device = "reference"

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Matrix],
        *,
        context: int = 0,
        max_rows: int = 512,
    ) -> None:
        self.graph, self.weights = graph, weights
        self.context = context or graph.context
        self.max_rows = max_rows
        graph.shapes()

    def new_state(self, expected: int = 0) -> ReferenceState:
        return ReferenceState(
            self.graph, self.context, long_rope=needs_long_rope(self.graph, expected)
        )

    def step(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        self.check_feeds(feeds)
        counts = [len(feed.tokens) for feed in feeds]
        sequence = np.repeat(np.arange(len(feeds)), counts)
        position = np.concatenate(
            [
                np.arange(f.state.length, f.state.length + n)
                for f, n in zip(feeds, counts, strict=True)
            ]
        )
        rows, cuts = logit_rows(feeds)
        values: dict[str, Any] = {
            "tokens": np.concatenate([feed.tokens for feed in feeds]).astype(np.int32),
            "rows": rows,
        }
        for node in self.graph.nodes:
            values[node.output] = self._run(node, values, feeds, sequence, position)
        for feed, count in zip(feeds, counts, strict=True):
            feed.state.pending = count
        logits = values[self.graph.outputs[0].name]
        return [np.array(part) for part in np.split(logits, cuts)]

    def _run(
        self,
        node: Node,
        values: Mapping[str, Any],
        feeds: Sequence[Feed],
        sequence: NDArray[np.int64],
        position: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        op = CATALOGUE[node.op]
        inputs = [values[name] for name in node.inputs]
        weights = {slot: self.weights[name] for slot, name in node.weights.items()}
        attrs = op.check_attrs(node.attrs)
        if not op.state:
            out: NDArray[np.float32] = op.reference(inputs, weights, attrs)
            return out
        states = [feed.state for feed in feeds]
        pairs = [state.kv[node.state] for state in states]  # type: ignore[attr-defined]
        kv = KVRows(
            sequence,
            position,
            [state.long_rope for state in states],  # type: ignore[attr-defined]
            [pair[0] for pair in pairs],
            [pair[1] for pair in pairs],
        )
        out = op.reference(inputs, weights, attrs, kv)
        for index, state in enumerate(states):
            state.kv[node.state] = (kv.keys[index], kv.values[index])  # type: ignore[attr-defined]
        return out

    def close(self) -> None:
        self.weights = {}


def needs_long_rope(graph: Graph, expected: int) -> bool:
    """Whether a sequence of `expected` tokens passes a node's `rope_switch`."""
    switches = [int(node.attrs.get("rope_switch", 0)) for node in graph.nodes]
    return any(0 < switch < expected for switch in switches)


def logit_rows(feeds: Sequence[Feed]) -> tuple[NDArray[np.int32], list[int]]:
    """Step rows whose logits are wanted, int32 [R], and where to cut [R] back into feeds."""
    picked: list[NDArray[np.int32]] = []
    start = 0
    for feed in feeds:
        stop = start + len(feed.tokens)
        first = {"last": stop - 1, "all": start, "none": stop}[feed.logits]
        picked.append(np.arange(first, stop, dtype=np.int32))
        start = stop
    cuts = np.cumsum([len(rows) for rows in picked])[:-1]
    return np.concatenate(picked), cuts.tolist()
