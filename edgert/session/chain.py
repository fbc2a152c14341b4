"""Guesses of a draft head one behind the other in one program.

A head's step of one row takes less time than what Python does about it. So a table holds a step of
the text's rows, then steps of one row each, and between two of them an instruction that picks a
token and makes the next row ready (`kernels/guess.py`):

    step, guess, following, guess, following, guess, ...

It is left where guessing ends. Rows behind guesses have no features of the model, and the table of
tokens is the model's own, where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, RequestError
from ..graph import Graph, Node, Value, Weight
from ..kernels.guess import ASK, DONE, GUESS, POOR, UNSURE
from ..kernels.lowering import Word
from ..kernels.operands import ROW, WORD
from ..kernels.states import KVState
from .base import F32, Feed
from .feeds import Rows
from .pace import Pace
from .program import SPLIT_ROWS, Program
from .sequence import CpuState

if TYPE_CHECKING:
    from .cpu import CpuSession

LONGEST = 16  # guesses of a table
LEAST = 64  # logits: rows of fewer are not looked at in whole vectors
TABLE, TOKENS = "guessed.table", "guessed.tokens"
ENDS = 64  # tokens that nothing is guessed behind, at most


class Names(NamedTuple):
    """Values of a head's graph (`edgert.bundle.draft`)."""

    features: str
    hidden: str
    embedding: str
    next: str


class Draw:
    """How a token is picked. race: address of what it is drawn with (`kernels/race.py`), 0 for the
    largest logit; largest: whether of top-k. places int64, by float32: logits that something is
    added to. kept: what the address points into."""

    def __init__(
        self, race: int, *, largest: bool, places: NDArray[np.int64], by: F32, kept: Any = None
    ) -> None:
        self._kept = kept, places, by, np.zeros(len(places), np.float32)
        at = [array.ctypes.data for array in self._kept[1:]]
        self.words = race, int(largest), len(places), *at


class Guessed(NamedTuple):
    """tokens: the guesses. steps: that were made. unsure: logits float32 [V] that another one is to
    be picked from by the reference, and the row that it goes on from; None where there is none."""

    tokens: list[int]
    steps: int
    unsure: tuple[F32, F32] | None


class Chain:
    """The table of one head's session. model: the session whose table of tokens `embed` reads.
    `chains` tells of which heads there is one. most_ends: of a request."""

    most_ends = ENDS

    def __init__(
        self, session: CpuSession, model: CpuSession, embed: Node, names: Names,
        ids: NDArray[np.int64],
    ) -> None:  # fmt: skip
        weight = embed.weights["weight"]
        self.session, self.names, self.ids = session, names, np.ascontiguousarray(ids, np.int64)
        self._graph = following(session.graph, embed, model.graph.weights[weight], names)
        self._kept = model.packed_weights
        self._table_at = model.packed_weights.address(weight)
        self._first: Program | None = None
        self._words = np.zeros(ROW, np.int64)
        self._floats = self._words.view(np.float64)
        self._tokens, self._needed = np.zeros(LONGEST, np.int64), np.zeros(LONGEST)
        self._ends = np.zeros(ENDS, np.int64)
        width = session.graph.shapes()[names.next][-1]
        self._set(
            tokens=self._tokens.ctypes.data, needed=self._needed.ctypes.data, n=len(self.ids),
            ids=self.ids.ctypes.data, ends=self._ends.ctypes.data, width=int(width),
        )  # fmt: skip
        self.pace, self.threads = Pace(), session.threads
        self.address = self.count = self.control = 0

    def fits(self) -> bool:
        """Whether rows behind guesses read the session's weights as they are packed."""
        if TABLE in self.session.graph.weights:
            return False
        try:
            return self.session.reads(self._graph)
        except BundleError:  # a name that is taken, an output that is made of features
            return False

    def guess(
        self, feed: Feed, limit: int, *, position: int, needed: Sequence[float] | None, draw: Draw,
        ends: Sequence[int],
    ) -> Guessed:  # fmt: skip
        """Up to `limit` guesses behind the last row of a feed. position: of the first in its text.
        needed: what each must be reached and right with, by the head's own account; None: nothing.
        The rows of the feed, and one a guess, are then pending. Raises what a step does."""
        limit = min(limit, LONGEST)
        self._needed[:limit] = 0.0 if needed is None else needed[:limit]
        self._ends[: len(ends)] = ends
        self._words[_ASKED] = 0, 0, limit, position, *draw.words, len(ends)
        self._floats[ASK.reach // WORD] = 1.0
        self._limit = limit
        self.session.step_chain(feed, self)
        made, end = self._get("made"), self._get("end")
        steps = made + (end != DONE)
        unsure = self._unsure(made, feed.rows) if end == UNSURE else None
        return Guessed(self._tokens[:made].tolist(), steps, unsure)

    @property
    def reach(self) -> float:
        """Of the guesses up to now, and the share of the next one's likeliest token."""
        return float(self._floats[ASK.reach // WORD])

    def _unsure(self, made: int, rows: int) -> tuple[F32, F32]:
        program = self._following if made else self._first
        if program is None:
            raise RuntimeError("a chain without programs")
        last = 0 if made else rows - 1
        logits = program.read(self.session.graph.outputs[0].name, slice(0, 1))
        return logits[0], program.read(self.names.next, slice(last, last + 1))

    def execute(self, program: Program, state: CpuState, rows: Rows) -> int:
        """Run for a step that `program` is filled for; rows that were fed besides."""
        if program is not self._first:
            self._bind(program)
        length = state.length + rows.total
        state.reserve(length + self._limit - 1)
        memory = self._following.step
        if memory is not None:
            memory.fill([state], _ONE)
        self._set(length=length)
        self.count = program.count + 1 + (self._limit - 1) * (self._following.count + 1)
        self.control = program.control
        left, end = program.team.run(self, small=rows.total <= SPLIT_ROWS), self._get("end")
        if left and end not in (DONE, POOR, UNSURE):
            raise RequestError("the step was cancelled", code="cancelled")
        return self._get("made") - (end == DONE)

    # --- the table ------------------------------------------------------------------------------

    def _bind(self, first: Program) -> None:
        """Make the table for a program of the head's steps."""
        lent = {f"${TABLE}": self._table_at}
        following, code = self.session.beside(self._graph, lent, first.control, "guess")
        following.set_counts({"T": 1, "R": 1})
        self._following = following
        parts = [first.table, self._instruction(first, code)]
        again = self._instruction(following, code)
        for _ in range(LONGEST - 1):
            parts += [following.table, again]
        self._table = np.concatenate(parts)
        self.address, self._first = self._table.ctypes.data, first

    def _instruction(self, behind: Program, code: int) -> NDArray[np.int64]:
        """The guess behind a step of a program, int64 [1, ROW]."""
        memory, following = self._following.step, self._following
        if memory is None:
            raise RuntimeError("a chain of steps that remember nothing")
        at, made = memory.named(), behind.outputs
        rows = behind.counts.ctypes.data + WORD * behind.symbols["T"]
        words: dict[str, Word] = {
            "ask": self._words.ctypes.data, "ctrl": behind.control,
            "z": made[self.session.graph.outputs[0].name].ctypes.data,
            "next": made[self.names.next].ctypes.data,
            "next_stride": made[self.names.next].strides[0], "rows": rows,
            "hidden": following.inputs[self.names.hidden].ctypes.data,
            "token": following.inputs[TOKENS].ctypes.data, "standing": at["@standing"],
            "axis_stride": memory.standing.strides[0], "visible": at["@visible"],
            "tiles": at["@tiles"],
        }  # fmt: skip
        row = np.zeros((1, ROW), np.int64)
        row[0, :3] = code, 1, rows
        for name, word in words.items():
            row[0, getattr(GUESS, name) // WORD] = word
        return row

    def _set(self, **words: int) -> None:
        for name, word in words.items():
            self._words[getattr(ASK, name) // WORD] = word

    def _get(self, name: str) -> int:
        return int(self._words[getattr(ASK, name) // WORD])


_ASKED = slice(ASK.made // WORD, ASK.end_count // WORD + 1)
_ZERO = np.zeros(1, np.int32)
_ONE = Rows([0, 1], _ZERO, _ZERO, None, None, _ZERO, [])


def chains(graph: Graph, logits: int) -> bool:
    """Whether guesses of a head can be chained: it remembers keys and values alone."""
    kept = graph.states.values()
    return logits >= LEAST and bool(kept) and all(isinstance(spec, KVState) for spec in kept)


def following(graph: Graph, embed: Node, table: Weight, names: Names) -> Graph:
    """A head's graph for rows behind guesses: of a token, which it looks up itself, and without
    features, whose product is zero where they are."""
    nodes, dropped = list(graph.nodes), names.features
    product = [node for node in nodes if names.features in node.inputs]
    if [(n.op, set(n.weights)) for n in product] == [("linear", {"weight"})]:
        sums = [node for node in nodes if product[0].output in node.inputs]
        wanted = {product[0].output, names.hidden}
        kept = {value.name for value in graph.outputs} & {node.output for node in sums}
        if [n.op for n in sums] == ["add"] and set(sums[0].inputs) == wanted and not kept:
            nodes = _without(nodes, product[0], sums[0], names.hidden)
            dropped = ""
    looked_up = Node(
        "embed", (TOKENS,), names.embedding, weights={"weight": TABLE}, attrs=embed.attrs
    )
    gone = {names.embedding} | ({names.features} if not dropped else set())
    inputs = [value for value in graph.inputs if value.name not in gone]
    used = {weight for node in nodes for weight in node.weights.values()}
    weights = {name: weight for name, weight in graph.weights.items() if name in used}
    return graph.replace(
        inputs=(Value(TOKENS, ("T",), "int32"), *inputs), nodes=(looked_up, *nodes),
        weights={**weights, TABLE: table},
    )  # fmt: skip


def _without(nodes: Sequence[Node], product: Node, total: Node, hidden: str) -> list[Node]:
    """Nodes less a product and its sum with the rows `hidden`, which stand in its place."""
    out = []
    for node in nodes:
        if node is product or node is total:
            continue
        inputs = tuple(hidden if name == total.output else name for name in node.inputs)
        out.append(Node(node.op, inputs, node.output, node.weights, node.attrs, node.state))
    return out
