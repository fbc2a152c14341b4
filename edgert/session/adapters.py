"""Adapters that are kept apart from a session's weights and chosen by sequence.

`fit` finds the products that an adapter's modules are part of. An `AdapterPool` holds what kernels
read of all adapters of a CPU session; the reference session computes from the factors themselves.
A state has one adapter from its first token on (`State.adapter`), so its keys and values are that
adapter's, and beginnings of texts are shared among states of one adapter only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..bundle.origins import Origin, Origins
from ..bundle.peft import Adapter, names_in_checkpoint
from ..errors import RequestError, ResourceError
from ..graph import Graph
from ..kernels.encodings import ENCODINGS
from ..kernels.low_rank import Factor, Fitted, Packed, low_rank, pack
from ..kernels.lowering import Lent
from .base import F32, Feed, State
from .feeds import Rows

if TYPE_CHECKING:
    from .program import StepMemory

MERGE = "merge it into the weights: edgert convert CHECKPOINT --adapter DIR -o OUT.edge"


def fit(adapter: Adapter, graph: Graph, origins: Origins) -> Fitted:
    """The factors by weight. Raises RequestError for an adapter that is of another model, or cannot
    be kept apart."""
    _refuse_whole(adapter)
    products = {node.weights["weight"] for node in graph.nodes if node.op == "linear"}
    places: dict[str, list[tuple[str, int, Origin]]] = {}
    for weight in sorted(products & set(origins)):
        first = 0
        for origin in origins[weight]:
            for name in {origin.tensor, origin.alias} - {""}:
                places.setdefault(name, []).append((weight, first, origin))
            first += origin.rows[1] - origin.rows[0]
    factors: dict[str, list[Factor]] = {}
    faults: list[str] = []
    for module, change in adapter.products.items():
        names = names_in_checkpoint(f"{module}.weight")
        found = next((places[name] for name in names if name in places), [])
        if not found or any(origin.shape != change.shape for _, _, origin in found):
            faults.append(f"{module} {list(change.shape)}")
            continue
        for weight, first, origin in found:
            b = origin.arranged(change.b) * np.float32(change.scale)
            factors.setdefault(weight, []).append(Factor(first, change.a, b))
    if faults:
        shown = ", ".join(faults[:4]) + (", ..." if len(faults) > 4 else "")
        raise RequestError(
            f"adapter {adapter.name!r} changes {len(faults)} products that this bundle does not "
            f"have so: {shown}",
            code="adapter-fit",
            hint=f"use an adapter of this very model; or, where it was compressed, {MERGE}",
        )
    made = {weight: tuple(parts) for weight, parts in factors.items()}
    return Fitted(adapter.key, adapter.name, made)


def _refuse_whole(adapter: Adapter) -> None:
    """RequestError for what only merging computes."""
    what = [
        (any(change.lengths is not None for change in adapter.products.values()), "uses DoRA"),
        (bool(adapter.tables), "changes embeddings"),
        (bool(adapter.replaced), f"holds whole tensors ({', '.join(list(adapter.replaced)[:3])})"),
    ]
    if found := [words for true, words in what if true]:
        raise RequestError(
            f"adapter {adapter.name!r} {' and '.join(found)}, expected products of low rank alone "
            "where it is kept apart",
            code="adapter-kind",
            hint=MERGE,
        )


class AdapterSet:
    """The adapters of a session, by key."""

    def __init__(self) -> None:
        self.fitted: dict[str, Fitted] = {}

    def attach(self, fitted: Fitted) -> bool:
        """Whether it is new here. Raises ResourceError for more than a session takes."""
        if fitted.key in self.fitted:
            return False
        if len(self.fitted) >= limits.ADAPTERS:
            raise ResourceError(
                f"{len(self.fitted)} adapters are loaded, expected at most {limits.ADAPTERS}",
                code="adapters",
                hint="load the model again for others",
            )
        self.fitted[fitted.key] = fitted
        return True

    def choose(self, state: State, key: str) -> None:
        """Give an empty state its adapter. Raises RequestError."""
        if key and key not in self.fitted:
            raise RequestError(f"adapter {key[:16]!r} is not attached", code="adapter-unknown")
        if state.length or state.pending or state.adapter:
            raise RequestError(
                f"an adapter for a state of {state.length + state.pending} tokens, expected an "
                "empty one: what it holds was made without",
                code="adapter-state",
            )
        state.adapter = key

    def added(self, weight: str, x: F32, keys: Sequence[str], width: int) -> F32:
        """What the adapters of rows x [T, K] add to a product, float32 [T, width]: the formula."""
        y = np.zeros((len(x), width), np.float32)
        for key in sorted(set(keys) - {""}):
            factors = self.fitted[key].factors.get(weight)
            if factors is not None:
                rows = [row for row, own in enumerate(keys) if own == key]
                y[rows] = low_rank(x[rows], factors, width)
        return y


def row_keys(feeds: Sequence[Feed], starts: Sequence[int]) -> list[str]:
    """The adapter of each row, of feeds that begin at these."""
    spans = zip(feeds, starts, starts[1:], strict=False)
    return [feed.state.adapter for feed, start, stop in spans for _ in range(start, stop)]


@dataclass
class AdapterPool(AdapterSet):
    """The adapters of a CPU session in its kernels' order.

    lent: what products have room for, by weight. version: changes with it. tables: by weight int64
    [ADAPTERS + 1, 3], see `kernels/low_rank.py`; the adapter 0 is none.
    """

    graph: Graph
    lent: dict[str, Lent] = field(default_factory=dict)
    version: int = 0
    tables: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, int] = {"": 0}
        self._held: list[Packed] = []
        exact = all(ENCODINGS[w.encoding].bits == 32 for w in self.graph.weights.values())
        self.kernels = "f32" if exact else "f16"
        self.dtype: Any = np.float32 if exact else np.float16

    def attach(self, fitted: Fitted) -> bool:
        packed = {}
        for weight, factors in fitted.factors.items():
            self._check_range(fitted.name, weight, factors)
            packed[weight] = pack(factors, self.graph.weights[weight].shape[0], self.dtype)
        if not super().attach(fitted):
            return False
        number, grown = len(self.numbers), False
        for weight, found in packed.items():
            if weight not in self.tables:
                self.tables[weight] = np.zeros((limits.ADAPTERS + 1, 3), np.int64)
            row = found.a.ctypes.data, found.groups, found.spans.ctypes.data
            self.tables[weight][number] = row
            rank = 16 * found.groups
            if self.lent.get(weight, Lent()).rank < rank:
                self.lent[weight], grown = Lent(rank, self.kernels), True
        self._held += packed.values()
        self.version += grown
        self.numbers[fitted.key] = number
        return True

    def _check_range(self, name: str, weight: str, factors: Sequence[Factor]) -> None:
        """RequestError for values that float16 does not hold."""
        if self.dtype is np.float16:
            largest = max(float(np.abs(part).max()) for f in factors for part in (f.a, f.b))
            if largest > 60000:
                raise RequestError(
                    f"adapter {name!r} has values up to {largest:.3g} for {weight!r}, expected at "
                    "most 60000 where factors are kept in float16",
                    code="adapter-range",
                    hint=MERGE,
                )

    @property
    def nbytes(self) -> int:
        tables = sum(table.nbytes for table in self.tables.values())
        return tables + sum(packed.nbytes for packed in self._held)

    def fill(self, memory: StepMemory, feeds: Sequence[Feed], rows: Rows) -> None:
        """Write down which rows of a step each adapter has, of all and of those with logits."""
        cuts = [0, *rows.cuts, len(rows.picked)]
        self._fill(memory.runs_t, memory.order_t, row_keys(feeds, rows.starts))
        self._fill(memory.runs_r, memory.order_r, row_keys(feeds, cuts))

    def _fill(self, runs: NDArray[np.int64], order: NDArray[np.int32], keys: list[str]) -> None:
        numbers = np.array([self.numbers[key] for key in keys], np.int64)
        order[: len(keys)] = np.argsort(numbers, kind="stable")
        found, counts = np.unique(numbers, return_counts=True)
        runs[0] = len(found)
        spans = runs[1 : 1 + 3 * len(found)].reshape(-1, 3)
        spans[:, 0], spans[:, 2] = found, counts
        spans[:, 1] = np.cumsum(counts) - counts
