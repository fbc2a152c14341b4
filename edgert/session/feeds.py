"""The rows of a step: feeds checked and laid end to end, the same for every executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, RequestError
from ..graph import Graph
from ..kernels.states import BorrowedState, ConvState, RecurrentState
from ..roles import step_faults, step_inputs, token_input
from .base import F32, TREE_ROWS, Feed, Session

POSITION_LIMIT = 1 << 30
FEW_TOKENS = 16
LOGITS = ("last", "all", "none")


class Rows(NamedTuple):
    """Where the rows of a step stand. T rows of all feeds, in order.

    starts: int a feed and one more, its first row. slot: int32 [T], where a row's key is stored.
    place: int32 [T], how many tokens it continues: its slot, except in trees. axes: int32 [3, T],
    positions given by feeds, None where every row stands at its place. paths: int64 [T], which
    pending rows of its feed a row sees (bits), -1 for all before it; None where all rows do.
    picked: int32 [R], rows whose logits are wanted; cuts: where [R] divides into feeds.
    """

    starts: list[int]
    slot: NDArray[np.int32]
    place: NDArray[np.int32]
    axes: NDArray[np.int32] | None
    paths: NDArray[np.int64] | None
    picked: NDArray[np.int32]
    cuts: list[int]

    @property
    def total(self) -> int:
        return self.starts[-1]

    @property
    def position(self) -> NDArray[np.int32]:
        """Rotary axes, int32 [3, T]."""
        return np.broadcast_to(self.place, (3, self.total)) if self.axes is None else self.axes

    @property
    def visible(self) -> NDArray[np.int64]:
        """`paths` of all rows, int64 [T]."""
        return np.full(self.total, -1, np.int64) if self.paths is None else self.paths


def lay_out(feeds: Sequence[Feed]) -> Rows:
    """The rows of checked feeds."""
    if len(feeds) == 1 and feeds[0].parents is None and feeds[0].positions is None:
        return _chain(feeds[0])
    starts = [0]
    each: list[NDArray[np.int32]] = []
    for feed in feeds:
        count, length = feed.rows, feed.state.length
        starts.append(starts[-1] + count)
        each.append(np.arange(length, length + count, dtype=np.int32))
    slot = each[0] if len(each) == 1 else np.concatenate(each)
    picked, cuts = logit_rows(feeds, starts)
    if all(feed.parents is None and feed.positions is None for feed in feeds):
        return Rows(starts, slot, slot, None, None, picked, cuts)
    place, paths = slot.copy(), np.full(len(slot), -1, np.int64)
    axes = np.empty((3, len(slot)), np.int32)
    for feed, start, stop in zip(feeds, starts, starts[1:], strict=False):
        if feed.parents is not None:
            paths[start:stop], depth = tree(feed.parents)
            place[start:stop] = feed.state.length + depth
        given = place[start:stop] if feed.positions is None else feed.positions
        axes[:, start:stop] = given
    return Rows(starts, slot, place, axes, paths, picked, cuts)


def _chain(feed: Feed) -> Rows:
    """The rows of one feed, each of which continues the one before: most steps are of one."""
    count, length = feed.rows, feed.state.length
    slot = np.arange(length, length + count, dtype=np.int32)
    first = {"last": count - 1, "all": 0, "none": count}[feed.logits]
    picked = np.arange(first, count, dtype=np.int32)
    return Rows([0, count], slot, slot, None, None, picked, [])


def tree(parents: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Each row's ancestors and itself as bits, int64 [n], and its depth, int32 [n] from 0."""
    bits, depth = np.zeros(len(parents), np.int64), np.zeros(len(parents), np.int32)
    for row, parent in enumerate(parents.tolist()):
        bits[row] = 1 << row
        if parent >= 0:
            bits[row] |= bits[parent]
            depth[row] = depth[parent] + 1
    return bits, depth


def logit_rows(feeds: Sequence[Feed], starts: Sequence[int]) -> tuple[NDArray[np.int32], list[int]]:
    """Step rows whose logits are wanted, int32 [R], and where to cut [R] back into feeds."""
    picked: list[NDArray[np.int32]] = []
    cuts, count = [0], 0
    for feed, start, stop in zip(feeds, starts, starts[1:], strict=False):
        first = {"last": stop - 1, "all": start, "none": stop}[feed.logits]
        picked.append(np.arange(first, stop, dtype=np.int32))
        count += stop - first
        cuts.append(count)
    return picked[0] if len(picked) == 1 else np.concatenate(picked), cuts[1:-1]


def check_borrowed(graph: Graph) -> None:
    """Raises DeviceError for a graph that reads the cache of another part, which no session can
    give it yet."""
    specs = graph.states.items()
    lent = {n: s.part for n, s in specs if isinstance(s, BorrowedState) and s.part}
    if lent:
        raise DeviceError(
            f"graph {graph.name!r} reads the caches of other parts ({lent}), expected its own only",
            code="state-part",
            hint="this edgert runs parts apart; update it",
        )


class FeedChecker:
    """What every session must check of a step, and of `run`, for one graph. chains: trees are
    refused whatever the graph remembers."""

    def __init__(self, session: Session, *, chains: bool = False) -> None:
        graph = session.graph
        self.session, self.tokens = session, token_input(graph)
        self.floats = {name: int(value.shape[-1]) for name, value in step_inputs(graph).items()}
        shapes = graph.shapes()
        embeds = [n.output for n in graph.nodes if n.op == "embed" and n.inputs[0] == self.tokens]
        self.embedded = embeds[0] if len(embeds) == 1 else ""
        self.width = int(shapes[self.embedded][-1]) if self.embedded else 0
        limits = [int(rows) for rows in graph.index_bounds().get(self.tokens, ())]
        if graph.outputs[0].name == "logits":  # ids that a wider table has besides mean nothing
            limits.append(session.vocab_size)
        self.ids = min(limits, default=0)
        self.elsewhere = {name for name, shape in shapes.items() if shape[0] != "T"}
        self.faults = step_faults(graph)
        self.reach = graph.reach() or POSITION_LIMIT
        self.coded = chains
        self.chains = chains or any(
            isinstance(spec, RecurrentState | ConvState) for spec in graph.states.values()
        )

    def check(self, feeds: Sequence[Feed]) -> None:
        """Raises RequestError for feeds that the session cannot take."""
        if len(feeds) == 1 and self._plain(feeds[0]):
            return
        if self.faults:
            raise RequestError(
                f"graph {self.session.graph.name!r} cannot be stepped: {'; '.join(self.faults)}",
                code="step-graph",
                hint="use run for a graph that is a function of arrays",
            )
        counts = [feed.rows for feed in feeds]
        if not feeds or 0 in counts or sum(counts) > self.session.max_rows:
            raise RequestError(
                f"a step of {sum(counts)} tokens in {len(feeds)} feeds, expected 1 to "
                f"{self.session.max_rows} and none empty",
                code="step-rows",
            )
        if len({id(feed.state) for feed in feeds}) != len(feeds):
            raise RequestError("a step feeds one state twice", code="step-states")
        for feed, count in zip(feeds, counts, strict=True):
            self._room(feed, count)
            self._inputs(feed, count)
            self._order(feed, count)

    def _plain(self, feed: Feed) -> bool:
        """Whether nothing can be wrong with a feed but ids, found out in few steps: what most steps
        bring. All else is looked at more closely."""
        state, count = feed.state, feed.rows
        if self.faults or state.pending or feed.logits not in LOGITS:
            return False
        if feed.positions is not None or feed.parents is not None:
            return False
        context = min(state.context, self.reach)
        if not 0 < count <= min(self.session.max_rows, context - state.length):
            return False
        if not self._usual(feed, count):
            return False
        if feed.tokens is not None:
            self._of_tokens(feed.tokens)
        return True

    def _room(self, feed: Feed, count: int) -> None:
        state = feed.state
        if state.pending:
            raise RequestError(
                f"{state.pending} tokens are pending, commit or discard before the next step",
                code="step-pending",
            )
        context = min(state.context, self.reach)
        if state.length + count > context:
            raise RequestError(
                f"{state.length} tokens and {count} more do not fit the context of {context}",
                code="context",
                hint="shorten the prompt, or load with a larger ctx_size if the model allows it",
            )
        if feed.logits not in LOGITS:
            raise RequestError(f"logits is {feed.logits!r}, expected last, all or none")

    def _inputs(self, feed: Feed, count: int) -> None:
        """Tokens or embeddings, and every other float input, of one length."""
        if self._usual(feed, count):
            if feed.tokens is not None:
                self._of_tokens(feed.tokens)
            return
        given: dict[str, F32] = dict(feed.inputs)
        wanted = dict(self.floats)
        if feed.embeddings is not None and self.tokens and not self.embedded:
            raise RequestError(
                f"embeddings for graph {self.session.graph.name!r}, which looks tokens up in "
                "several tables, expected tokens",
                code="step-inputs",
            )
        if feed.embeddings is not None:
            name = self.embedded or "embeddings"
            given[name] = feed.embeddings
            wanted.setdefault(name, self.width)
        if (feed.tokens is None) != (not self.tokens or feed.embeddings is not None):
            raise RequestError(
                f"a feed with tokens {'left out' if feed.tokens is None else 'given'}, expected "
                + ("tokens or embeddings" if self.tokens else f"the inputs {sorted(wanted)}"),
                code="step-inputs",
            )
        if set(given) != set(wanted):
            raise RequestError(
                f"a feed with inputs {sorted(given)}, expected {sorted(wanted)}",
                code="step-inputs",
            )
        for name, array in given.items():
            _require(f"input {name!r}", array, [(count, wanted[name])], "iuf", "step-inputs")
        if odd := sorted(self.elsewhere.intersection(feed.taps)):
            raise RequestError(
                f"taps of {odd}, which have other rows than the step's tokens, expected values of "
                "rows T",
                code="step-taps",
            )
        if feed.tokens is not None:
            _require("tokens", feed.tokens, [(count,)], "iu", "step-inputs")
            self._of_tokens(feed.tokens)

    def _usual(self, feed: Feed, count: int) -> bool:
        """Whether a feed brings just what the graph reads, in arrays: then nothing is wrong with
        these but ids. Most feeds do."""
        tokens, given = feed.tokens, feed.inputs
        if feed.embeddings is not None or (tokens is None) != (not self.tokens):
            return False
        if tokens is not None and not _is(tokens, (count,), "iu"):
            return False
        if given.keys() != self.floats.keys() or not self.elsewhere.isdisjoint(feed.taps):
            return False
        for name, width in self.floats.items():  # a generator takes twice as long
            if not _is(given[name], (count, width), "iuf"):
                return False
        return True

    def _of_tokens(self, tokens: NDArray[np.int32]) -> None:
        """Raises RequestError for ids that the graph has no rows for."""
        if len(tokens) <= FEW_TOKENS:  # of a few a list's minimum is quicker than NumPy's
            few = np.asarray(tokens).tolist()
            low, high = min(few), max(few)
        else:
            low, high = int(np.min(tokens)), int(np.max(tokens))
        if low < 0 or high >= self.ids:
            raise RequestError(
                f"token ids from {low} to {high}, expected 0 to {self.ids - 1}",
                code="token-range",
            )

    def _order(self, feed: Feed, count: int) -> None:
        """Positions and parents that kernels may index by."""
        if feed.positions is not None:
            shapes = [(count,), (3, count)]
            _require("positions", feed.positions, shapes, "iu", "step-positions")
            low, high = int(np.min(feed.positions)), int(np.max(feed.positions))
            if low < 0 or high >= self.reach:
                raise RequestError(
                    f"positions from {low} to {high}, expected 0 to {self.reach - 1}",
                    code="step-positions",
                )
        if feed.parents is not None:
            parents = np.asarray(feed.parents)
            ok = parents.shape == (count,) and count <= TREE_ROWS and parents.dtype.kind in "iu"
            if not ok or (parents < -1).any() or (parents >= np.arange(count)).any():
                raise RequestError(
                    f"parents {parents.tolist()[:16]} of {count} rows, expected an earlier row or "
                    f"-1 for each of at most {TREE_ROWS}",
                    code="step-parents",
                )
            if self.chains and (parents != np.arange(-1, count - 1)).any():
                kind = "keys and values in codes" if self.coded else "recurrent states"
                raise RequestError(
                    f"parents {parents.tolist()[:16]}: a tree for {kind}, which go one way only, "
                    "expected a chain",
                    code="step-tree",
                    hint="feed the branches one after the other, each from a fork of the state",
                )


def _is(array: Any, shape: tuple[int, ...], kinds: str) -> bool:
    """Whether something is an array of a shape and one of the NumPy kinds."""
    return isinstance(array, np.ndarray) and array.shape == shape and array.dtype.kind in kinds


def _require(
    what: str, array: Any, shapes: Sequence[tuple[int, ...]], kinds: str, code: str
) -> None:
    """Raises RequestError unless an array has one of the shapes and NumPy kinds."""
    found = np.asarray(array)
    if found.shape not in shapes or found.dtype.kind not in kinds:
        raise RequestError(
            f"{what}: {found.dtype} {list(found.shape)}, expected "
            f"{'whole numbers' if kinds == 'iu' else 'numbers'} of shape "
            + " or ".join(str(list(shape)) for shape in shapes),
            code=code,
        )


def check_arrays(graph: Graph, arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Sizes of the graph's symbols for the arrays of `run`; RequestError where they do not fit."""
    if graph.states:
        raise RequestError(
            f"graph {graph.name!r} remembers ({sorted(graph.states)[:4]}), expected one without "
            "states",
            code="run-states",
            hint="use step with a state for it",
        )
    if graph.reach():
        raise RequestError(
            f"graph {graph.name!r} reads where rows stand, expected one without positions",
            code="run-states",
            hint="use step with a state for it",
        )
    names = [value.name for value in graph.inputs]
    if set(arrays) != set(names):
        raise RequestError(f"inputs {sorted(arrays)}, expected {sorted(names)}", code="run-inputs")
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        array = arrays[value.name]
        array = array if hasattr(array, "dtype") else np.asarray(array)
        rows = array.shape[0] if array.shape else 0
        if isinstance(value.shape[0], str):
            sizes.setdefault(value.shape[0], rows)
        shape = tuple(sizes.get(str(n), n) for n in value.shape)
        kind = "iu" if value.dtype == "int32" else "f"
        if array.shape != shape or rows == 0 or array.dtype.kind not in kind:
            raise RequestError(
                f"input {value.name!r} is {array.dtype} {list(array.shape)}, expected "
                f"{value.dtype} {list(shape)}",
                code="run-inputs",
            )
    for name, bounds in graph.index_bounds().items():
        if not bounds:
            continue
        limit = min(sizes[n] if isinstance(n, str) else n for n in bounds)
        low, high = int(np.min(arrays[name])), int(np.max(arrays[name]))
        if low < 0 or high >= limit:
            raise RequestError(
                f"input {name!r} holds {low} to {high}, expected 0 to {limit - 1}",
                code="run-range",
            )
    return sizes


def rope_switch(graph: Graph) -> int:
    """Tokens up to which sequences use the short rotary factors; 0 for graphs with one set."""
    found = (int(node.attrs.get("rope_switch", 0)) for node in graph.nodes)
    return min((switch for switch in found if switch > 0), default=0)
