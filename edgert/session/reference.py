"""The NumPy session: walks the graph with the ops' reference faces. Slow, plain, always there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..graph import Graph, Node
from ..kernels.attention import KVRows
from ..kernels.low_rank import Fitted
from ..kernels.ops import CATALOGUE
from ..kernels.quant import Matrix
from ..kernels.slot_rows import SlotRows
from ..kernels.states import (
    BorrowedState,
    ConvState,
    KVState,
    LatentState,
    RecurrentState,
    StateSpec,
)
from ..roles import row_input
from .adapters import AdapterSet, row_keys
from .base import F32, Feed, Session, State, StepResult
from .feeds import FeedChecker, Rows, check_arrays, check_borrowed, lay_out
from .fit import check_values
from .longrope import Switching
from .memory import is_whole
from .replay import Replaying


def _empty(spec: StateSpec) -> F32 | None:
    """What a recurrent state holds of no tokens; None for states of other kinds."""
    if isinstance(spec, ConvState):
        return np.zeros((spec.width - 1, spec.channels), np.float32)
    if isinstance(spec, RecurrentState) and spec.tail:  # the rows of all tokens
        return np.zeros((0, spec.tail_width), np.float32)
    if isinstance(spec, RecurrentState):
        return np.zeros((spec.heads, spec.key_dim, spec.value_dim), np.float32)
    return None


def _widths(spec: KVState | LatentState) -> tuple[tuple[int, int], tuple[int, int]]:
    """Heads and channels of a token's keys and of its values."""
    if isinstance(spec, LatentState):
        return (1, spec.size), (1, 0)
    return (spec.kv_heads, spec.head_dim), (spec.kv_heads, spec.head_dim)


class ReferenceState(State):
    """Keys and values as float32 arrays [n, G, D] a state name; `slots`, what recurrent states
    hold, and `made`, what they will hold once all pending tokens are committed."""

    def __init__(self, graph: Graph, context: int, *, long_rope: bool) -> None:
        super().__init__(context)
        self.long_rope, self.closed = long_rope, False
        self.kv = {
            name: tuple(np.zeros((0, *sizes), np.float32) for sizes in _widths(s))
            for name, s in graph.states.items()
            if isinstance(s, KVState | LatentState)
        }
        found = {name: _empty(spec) for name, spec in graph.states.items()}
        self.empty = {name: array for name, array in found.items() if array is not None}
        self.slots, self.made = self.empty, dict[str, F32]()

    def _keep(self, rows: Sequence[int]) -> None:
        if rows and not self.partly(rows):
            self.slots = self.slots | self.made
        kept = [*range(self.length), *(self.length + row for row in rows)]
        self.kv = {name: tuple(a[kept] for a in pair) for name, pair in self.kv.items()}

    def _reach(self, length: int) -> int:
        if self.slots and length < self.length:
            self.slots = self.empty
            return 0
        return length

    def _shrink(self) -> None:
        end = self.length + self.held
        self.kv = {name: tuple(a[:end] for a in pair) for name, pair in self.kv.items()}

    def fork(self) -> ReferenceState:
        self._check_open()
        self.up_to_date()
        other = object.__new__(type(self))
        State.__init__(other, self.context)
        other._remember(self.fed, long_rope=self.long_rope)
        other.expected, other.length, other.closed = self.expected, self.length, False
        other.kv = {n: tuple(a[: self.length] for a in pair) for n, pair in self.kv.items()}
        other.settle, other.empty, other.adapter = self.settle, self.empty, self.adapter
        other.slots, other.made = self.slots, {}
        return other

    def snapshot(self) -> dict[str, Any]:
        self._check_open()
        self.up_to_date()
        kv = {name: tuple(a[: self.length].copy() for a in pair) for name, pair in self.kv.items()}
        slots = {"slots": {n: a.copy() for n, a in self.slots.items()}} if self.slots else {}
        return {"length": self.length, **self._remembered(), "kv": kv, **slots}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self._check_open()
        self._check(snapshot)
        self.kv = {name: tuple(a.copy() for a in pair) for name, pair in snapshot["kv"].items()}
        self.slots = {name: array.copy() for name, array in snapshot.get("slots", {}).items()}
        self.behind.clear()
        self.length = snapshot["length"]
        self.discard()
        self._remember(snapshot.get("fed"), long_rope=snapshot["long_rope"])

    def _check(self, snapshot: dict[str, Any]) -> None:
        length, kv = snapshot.get("length"), snapshot.get("kv", {})
        if not is_whole(length) or not 0 <= length <= self.context:
            raise RequestError(
                f"the snapshot holds {length!r} tokens, this state takes 0 to {self.context}",
                code="snapshot",
            )
        self._check_remembered(snapshot)
        shapes = {n: [(length, *a.shape[1:]) for a in pair] for n, pair in self.kv.items()}
        names = sorted(kv) if isinstance(kv, Mapping) else []
        if names != sorted(shapes) or not all(_pair(kv[n], shapes[n]) for n in names):
            raise RequestError(
                f"the snapshot's keys and values of {names} are damaged or of another model, "
                f"expected pairs of float32 {shapes}",
                code="snapshot",
            )
        slots = snapshot.get("slots", {})
        wanted = {n: a.shape if len(a) else (length, a.shape[1]) for n, a in self.empty.items()}
        if not isinstance(slots, Mapping) or not _arrays(slots, wanted):
            raise RequestError(
                f"the snapshot's recurrent states are damaged, expected float32 {wanted}",
                code="snapshot",
            )

    def _check_open(self) -> None:
        if self.closed:
            raise RequestError("this state is closed", code="state-closed")

    @property
    def nbytes(self) -> int:
        rows = sum(a.nbytes for pair in self.kv.values() for a in pair)
        return rows + sum(array.nbytes for array in self.slots.values())

    def close(self) -> None:
        self.kv, self.slots, self.made, self.closed = {}, {}, {}, True
        self.behind.clear()
        self.length = self.pending = 0


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
        check_borrowed(graph)
        check_values(graph, {})
        self.graph, self.weights = graph, weights
        self.context = context or graph.context
        self.max_rows = max_rows
        self.checker, self.adapters = FeedChecker(self), AdapterSet()
        whole = any(_empty(spec) is not None for spec in graph.states.values())
        self.replaying = Replaying(self.checker, max_rows, self._step, whole=whole)
        self.switching = Switching(graph, self.checker, max_rows, self.replaying.step)

    def new_state(self, expected: int = 0) -> ReferenceState:
        state = ReferenceState(self.graph, self.context, long_rope=False)
        self.switching.begin(state, expected)
        self.replaying.begin(state)
        return state

    def attach(self, fitted: Fitted) -> None:
        self.adapters.attach(fitted)

    def choose(self, state: State, adapter: str) -> None:
        self.adapters.choose(state, adapter)

    def step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        return self.switching.step(feeds)

    def _step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        self.checker.check(feeds)
        rows = lay_out(feeds)
        graph = self.graph.with_outputs({name for feed in feeds for name in feed.taps})
        given = self._given(feeds)
        if picks := row_input(self.graph):
            given[picks] = rows.picked
        values = self._walk(graph, given, feeds, rows)
        for feed in feeds:
            feed.state.pending = feed.rows
        first = values[self.graph.outputs[0].name]
        chosen = self.graph.outputs[0].shape[0] == "R"
        logits = np.split(first if chosen else first[rows.picked], rows.cuts)
        return [
            StepResult(np.array(part), {n: np.array(values[n][start:stop]) for n in feed.taps})
            for feed, part, start, stop in zip(
                feeds, logits, rows.starts, rows.starts[1:], strict=False
            )
        ]

    def run(self, arrays: Mapping[str, NDArray[Any]], graph: Graph | None = None) -> dict[str, F32]:
        graph = graph or self.graph
        check_arrays(graph, arrays)
        given = {
            v.name: np.asarray(arrays[v.name], np.int32 if v.dtype == "int32" else np.float32)
            for v in graph.inputs
        }
        values = self._walk(graph, given, [], None)
        return {value.name: np.array(values[value.name]) for value in graph.outputs}

    def _given(self, feeds: Sequence[Feed]) -> dict[str, Any]:
        """The graph's inputs; tokens as -1 where a feed brings embeddings."""
        checker, given = self.checker, dict[str, Any]()
        for name in checker.floats:
            parts = [f.inputs[name] if name in f.inputs else f.embeddings for f in feeds]
            given[name] = np.concatenate([np.asarray(part, np.float32) for part in parts])
        if checker.tokens:
            ids = [np.full(f.rows, -1) if f.tokens is None else f.tokens for f in feeds]
            given[checker.tokens] = np.concatenate(ids).astype(np.int32)
        return given

    def _walk(
        self, graph: Graph, values: dict[str, Any], feeds: Sequence[Feed], rows: Rows | None
    ) -> dict[str, Any]:
        """Every value of the graph, by name."""
        checker = self.checker
        for node in graph.nodes:
            values[node.output] = self._run(node, values, feeds, rows)
            if node.output == checker.embedded and rows is not None:
                for feed, start in zip(feeds, rows.starts, strict=False):
                    if feed.embeddings is not None:
                        values[node.output][start : start + feed.rows] = feed.embeddings
        return values

    def _run(
        self, node: Node, values: Mapping[str, Any], feeds: Sequence[Feed], rows: Rows | None
    ) -> F32:
        op = CATALOGUE[node.op]
        inputs = [values[name] for name in node.inputs]
        weights = {slot: self.weights[name] for slot, name in node.weights.items()}
        attrs = op.check_attrs(node.attrs)
        if op.reach is not None and rows is not None:
            placed: F32 = op.reference(inputs, weights, attrs, rows.position[0])
            return placed
        if op.state_of is None or rows is None:
            out: F32 = op.reference(inputs, weights, attrs)
            if node.op == "linear" and rows is not None and self.adapters.fitted:
                out = out + self._added(node, inputs[0], out.shape[1], feeds, rows)
            return out
        state = self.graph.states[node.state]
        if not isinstance(state, KVState | LatentState | BorrowedState):
            own = [_own(feed.state) for feed in feeds]
            slots = SlotRows(
                rows.starts,
                [other.slots[node.state] for other in own],
                [],
                np.repeat(np.arange(len(feeds)), np.diff(rows.starts)),
                rows.position.astype(np.int64),
                [other.long_rope for other in own],
            )
            out = op.reference(inputs, weights, attrs, slots)
            for other, made in zip(own, slots.made, strict=True):
                other.made[node.state] = made
            return out
        name = state.owner if isinstance(state, BorrowedState) else node.state
        kv = _cache(name, feeds, rows)
        out = op.reference(inputs, weights, attrs, kv)
        for index, feed in enumerate(feeds):
            _own(feed.state).kv[name] = (kv.keys[index], kv.values[index])
        return out

    def _added(self, node: Node, x: F32, width: int, feeds: Sequence[Feed], rows: Rows) -> F32:
        """What the feeds' adapters add to a product of all rows, or of those with logits."""
        cuts = rows.starts if len(x) == rows.total else [0, *rows.cuts, len(rows.picked)]
        keys = row_keys(feeds, cuts)
        return self.adapters.added(node.weights["weight"], x, keys, width)

    def close(self) -> None:
        self.weights = {}


def _own(state: State) -> ReferenceState:
    if not isinstance(state, ReferenceState):
        raise RequestError("a state of another session was fed", code="state-foreign")
    if state.closed:
        raise RequestError("this state is closed", code="state-closed")
    return state


def _pair(arrays: Any, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether these are keys and values of two shapes."""
    if not isinstance(arrays, tuple | list) or len(arrays) != 2:
        return False
    return all(
        isinstance(array, np.ndarray) and array.dtype == np.float32 and array.shape == shape
        for array, shape in zip(arrays, shapes, strict=True)
    )


def _arrays(found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether there are float32 arrays of these names and shapes."""
    return {
        name: (np.shape(array), getattr(array, "dtype", None)) for name, array in found.items()
    } == {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}


def _cache(name: str, feeds: Sequence[Feed], rows: Rows) -> KVRows:
    """A state's keys and values of all feeds, for the reference ops."""
    counts = np.diff(rows.starts)
    pairs = [_own(feed.state).kv[name] for feed in feeds]
    trees: list[Any] = [None] * len(feeds)
    for index, feed in enumerate(feeds):
        if feed.parents is not None:
            bits = rows.visible[rows.starts[index] : rows.starts[index + 1]]
            trees[index] = (bits[:, None] >> np.arange(feed.rows) & 1).astype(bool)
    return KVRows(
        np.repeat(np.arange(len(feeds)), counts),
        rows.slot.astype(np.int64),
        rows.place.astype(np.int64),
        rows.position.astype(np.int64),
        [_own(feed.state).long_rope for feed in feeds],
        trees,
        [pair[0] for pair in pairs],
        [pair[1] for pair in pairs],
    )
