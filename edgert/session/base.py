"""The contract between everything that generates and whatever computes.

A session holds one graph with its weights on one device. A state holds the memory of one sequence
(pages of keys and values, recurrent matrices, convolution inputs). A step takes several sequences
at once and is the same call for prompt chunks, decoding, speculative verification and trees:

    state = session.new_state()
    result, = session.step([Feed(state, tokens)])     # result.logits: [1, V], after the last token
    state.commit(len(tokens))                         # or fewer: the rest is forgotten

A graph without states is a function of arrays:

    outputs = session.run({"x": x})                   # {"y": float32 [N, width]}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, RequestError
from ..graph import Graph
from ..roles import vocab_size

if TYPE_CHECKING:
    from ..kernels.low_rank import Fitted

F32 = NDArray[np.float32]
TREE_ROWS = 63  # rows of a feed with parents: a row's ancestors are the bits of one word


class State(ABC):
    """Memory of one sequence. `length` tokens are committed, `pending` were fed since.

    A step writes tokens at length .. length + pending. Nothing durable changes until `commit`.

    Of models with two sets of rotary factors (`longrope`): long_rope, which of them the content was
    made with; expected, tokens that the sequence will hold before logits are wanted of it (a
    prompt's), forgotten by `rewind`; fed, the ids of the committed tokens, -1 for embeddings, None
    where they are not needed.

    Of recurrent states that take whole steps only (`replay`): settle, has them take in what they
    are behind; behind, the newest committed rows, which they have not taken in, as feeds and rows
    of these; offered, what was fed last; ahead, how many rows of `behind` its step had in front;
    held, rows that are committed though `length` stands before them, while a step takes them in.
    adapter: key of the adapter that all its rows are computed with (`adapters`), "" for none.
    whole_steps: whether recurrent states take a step's tokens all or not at all; those of a commit
    of a part are `behind`, and no rewind takes any back.
    """

    whole_steps = False
    adapter = ""

    def __init__(self, context: int) -> None:
        self.length = 0
        self.pending = 0
        self.context = context
        self.long_rope = False
        self.expected = 0
        self.fed: list[int] | None = None
        self.fed_pending: list[int] | None = None
        self.settle: Callable[[State], None] | None = None
        self.behind: list[tuple[Feed, list[int]]] = []
        self.offered: Feed | None = None
        self.ahead = self.held = 0

    def commit(self, path: int | Sequence[int]) -> None:
        """Keep pending tokens, forget the others: the first `path` of them, or the ones whose
        numbers `path` lists in rising order (one branch of a tree)."""
        if isinstance(path, int):
            kept: Sequence[int] = range(path)
            fits = 0 <= path <= self.pending
        else:
            kept = [int(row) for row in path]
            fits = all(a < b for a, b in pairwise((-1, *kept, self.pending)))
        if not fits:
            raise RequestError(
                f"commit of {path if isinstance(path, int) else kept[:16]}, {self.pending} "
                "tokens are pending, expected as many at most, in rising order",
                code="commit-range",
            )
        self._keep(kept)
        if self.partly(kept) and self.offered is not None:
            self.behind.append((self.offered, list(kept)))
        elif kept:
            self.behind.clear()
        self.ahead, self.offered = 0, None
        if self.fed is not None:
            given = self.fed_pending
            self.fed += [given[row] if given is not None else -1 for row in kept]
        self.length += len(kept)
        self.pending = 0
        self._shrink()

    @property
    def late(self) -> int:
        """Committed tokens that the recurrent states have not taken in."""
        return sum(len(rows) for _, rows in self.behind)

    def partly(self, kept: Sequence[int]) -> bool:
        """Whether a commit is one of some tokens of states that take whole steps only."""
        return self.settle is not None and 0 < len(kept) < self.pending

    def take_in(self) -> None:
        """The pending tokens are the first ones that the recurrent states were behind."""
        self.behind.pop(0)
        self._keep(range(self.pending))
        self.length, self.held = self.length + self.pending, self.held - self.pending
        self.pending = 0

    def up_to_date(self) -> None:
        """Before the content is copied: nothing is behind."""
        if self.behind and self.settle is not None:
            self.settle(self)

    def discard(self) -> None:
        """Forget every pending token."""
        self.pending, self.ahead, self.offered = 0, 0, None
        self._shrink()

    def rewind(self, length: int) -> int:
        """Forget tokens past the first `length`, pending ones included; returns the length that
        was reached. Keys and values go back to any length, recurrent states only to some: then
        more is forgotten, and the caller feeds the difference again."""
        if not 0 <= length <= self.length:
            raise RequestError(
                f"rewind to {length} tokens, the state holds {self.length}", code="rewind-range"
            )
        self.pending, self.ahead, self.offered = 0, 0, None
        if length < self.length:
            self.expected = 0
        while self.behind and length < self.length:  # what was not taken in is cut off first
            feed, rows = self.behind.pop()
            kept = max(0, length - (self.length - len(rows)))
            self.behind += [(feed, rows[:kept])] if kept else []
            self.length += kept - len(rows)
        if not self.behind:
            self.length = self._reach(length)
        if self.fed is not None:
            del self.fed[self.length :]
        self._shrink()
        return self.length

    def turn(self, *, long_rope: bool) -> None:
        """Use the short or the long rotary factors from here on; for states without content."""
        self.long_rope = long_rope

    def _remember(self, text: Sequence[int] | None, *, long_rope: bool) -> None:
        """Take over the factors and ids of the content that this state has just got."""
        self.turn(long_rope=long_rope)
        self.expected, self.fed_pending = 0, None
        self.fed = None if text is None else [int(token) for token in text]

    def _remembered(self) -> dict[str, Any]:
        """What `_remember` takes, for a snapshot."""
        kept: dict[str, Any] = {"long_rope": self.long_rope}
        if self.adapter:
            kept["adapter"] = self.adapter
        return kept if self.fed is None else kept | {"fed": np.asarray(self.fed, np.int32)}

    def _check_remembered(self, snapshot: Mapping[str, Any]) -> None:
        """Raises RequestError where a snapshot does not tell that."""
        if not isinstance(snapshot.get("long_rope"), bool):
            raise RequestError("the snapshot does not tell its rotary factors", code="snapshot")
        if snapshot.get("adapter", "") != self.adapter:
            raise RequestError(
                f"the snapshot was made with adapter {str(snapshot.get('adapter', ''))[:16]!r}, "
                f"this state has {self.adapter[:16]!r}",
                code="snapshot",
            )
        text = snapshot.get("fed")
        known = isinstance(text, np.ndarray) and text.dtype == np.int32 and text.ndim == 1
        if (text is None) != (self.fed is None) or not (text is None or known):
            raise RequestError(
                "the snapshot's token ids are damaged or of another model", code="snapshot"
            )

    def _keep(self, rows: Sequence[int]) -> None:  # noqa: B027 (nothing to move by default)
        """Move the pending tokens `rows` to the front, before they are committed."""

    def _reach(self, length: int) -> int:
        """Go back to `length` tokens, or to fewer where that is not possible."""
        return length

    def _shrink(self) -> None:  # noqa: B027
        """Give back what is not needed for `length` tokens."""

    @abstractmethod
    def fork(self) -> State:
        """A second sequence that holds the same committed tokens; what they share is copied when
        one of them changes it."""

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """A copy of the committed content, restorable into any state of the same model."""

    @abstractmethod
    def restore(self, snapshot: dict[str, Any]) -> None:
        """Become what `snapshot` was; foreign or damaged snapshots raise RequestError."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes this sequence occupies; pages that it shares count for each who shares them."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back; the state is unusable afterwards. Closing twice is allowed."""


@dataclass(frozen=True)
class Feed:
    """What one sequence gets in one step: n tokens.

    tokens: int32 [n]. embeddings: float32 [n, C] instead, rows as the graph's `embed` node (scale
    included) or its input "embeddings" has them. inputs: other float inputs of the graph by name,
    float32 [n, width]. positions: int32 [n], or [3, n] for rotary axes (time, height, width);
    None: the tokens follow what is committed. parents: int32 [n] for a tree, the row each row
    continues, -1 for the committed text; None: each continues the one before. logits: rows whose
    logits are wanted, "last" (one), "all" (n), "none". taps: values of the graph whose rows are
    wanted, all n of them.
    """

    state: State
    tokens: NDArray[np.int32] | None = None
    logits: str = "last"
    embeddings: F32 | None = None
    inputs: Mapping[str, F32] = field(default_factory=dict)
    positions: NDArray[np.int32] | None = None
    parents: NDArray[np.int32] | None = None
    taps: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many tokens: n."""
        if self.tokens is not None:
            return len(self.tokens)
        if self.embeddings is not None:
            return len(self.embeddings)
        for given in self.inputs.values():
            if given is not None:
                return len(given)
        return 0


@dataclass(frozen=True)
class StepResult:
    """What one feed gets: logits float32 [rows, V], and each wanted tap float32 [n, width]."""

    logits: F32
    taps: dict[str, F32] = field(default_factory=dict)


class Fixed:
    """An array for `run_batch` that nobody changes: it is copied to a device once.

    copies: what sessions hold of it, by place.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.copies: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.array, dtype)


class Session(ABC):
    """One graph on one device."""

    graph: Graph
    device: str
    max_rows: int  # tokens that one step may hold, over all its feeds
    context: int  # tokens that one state may hold
    halves = False  # whether it computes in float16

    @property
    def vocab_size(self) -> int:
        """Width of the rows that a step gives as logits: the graph's first output."""
        return vocab_size(self.graph)

    @abstractmethod
    def new_state(self, expected: int = 0) -> State:
        """An empty sequence. `expected` is how many tokens it will hold before logits are wanted of
        it, a prompt's length (0: unknown). Models with two sets of rotary factors then take the
        right one from the first token on, instead of computing the prompt twice."""

    def attach(self, fitted: Fitted) -> None:
        """Take in an adapter, for states to choose. Raises DeviceError where the device keeps none
        apart, ResourceError for too many."""
        raise DeviceError(
            f"adapter {fitted.name!r} apart from the weights on {self.device!r}, expected the "
            "device cpu or reference for that",
            code="adapter-device",
            hint="merge it into the weights, which every device runs: edgert convert CHECKPOINT "
            "--adapter DIR -o OUT.edge",
        )

    def choose(self, state: State, adapter: str) -> None:
        """Have all rows of an empty state computed with an adapter, by its key; "" for none. Raises
        RequestError for one that was not attached and for a state that holds something."""
        if adapter:
            raise RequestError(f"adapter {adapter[:16]!r} is not attached", code="adapter-unknown")

    @abstractmethod
    def step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        """Run all feeds at once; one result a feed, in order. The arrays are the caller's. Raises
        RequestError for too many rows, a full context or uncommitted states."""

    @abstractmethod
    def run(self, arrays: Mapping[str, NDArray[Any]], graph: Graph | None = None) -> dict[str, F32]:
        """The graph as a function: every input by name, int32 [N] or float32 [N, width], to every
        output, float32. For graphs without states.

        graph: another one over this session's weights, a cut of its graph or one of another size;
        give the same object again to have what was made for it used again. Raises RequestError for
        missing, unknown or misshapen inputs, indices out of range and graphs that remember;
        DeviceError where the device has not been given that graph."""

    def prefix_cache(self) -> Any:
        """A new `prefixes.PrefixCache` of this session's states; None where they share nothing."""
        return None

    def require(self, graph: Graph) -> None:  # noqa: B027 (most devices run any)
        """Raise DeviceError where the device has not been given a graph that `run` will be asked
        for: before minutes of work, not behind them."""

    def run_held(self, arrays: Mapping[str, Any], graph: Graph | None = None) -> dict[str, Any]:
        """`run`, whose outputs may stay on the device: inputs of later runs, which `np.asarray`
        copies to the host."""
        return dict(self.run(arrays, graph))

    def most(self, graph: Graph, sizes: Mapping[str, int]) -> int:
        """How many inputs of a graph `run_batch` takes at once, 0 where it takes none. sizes: rows
        of symbols."""
        return 0

    def run_batch(
        self, arrays: Mapping[str, Any], graph: Graph | None = None, *,
        lengths: Mapping[str, Sequence[int]] | None = None, keep: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """`run` for several inputs at once: arrays and outputs have an axis for them in front.

        arrays: on the host, `Fixed`, or what an earlier call gave. lengths: how many rows of each
        are there, by symbol; those behind are padding. keep: outputs may stay on the device.
        """
        raise DeviceError(f"{self.device} computes one input at a time", code="device-graph")

    @abstractmethod
    def close(self) -> None:
        """Free everything. Closing twice is allowed; using a closed session raises RequestError."""
