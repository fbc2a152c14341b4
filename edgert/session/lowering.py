"""Lowering: a graph becomes the steps of a program, by the op families' own rules.

The families (`LOWER` in `edgert.kernels`) fold norms into activation quantization, and residual
sums and gates into the product before them. Values that only ever exist inside a fused step get no
memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..graph import Graph, Node
from ..kernels.encodings import Cpu, on_cpu
from ..kernels.kv_codes import CODED
from ..kernels.lowering import CALLED, Lent, Pages, Word, stride_of
from ..kernels.ops import CATALOGUE
from ..kernels.states import BorrowedState, KVState, LatentState
from .pages import FRESH_BITS, page_bytes

NOTHING = Lent()  # of adapters


@dataclass(frozen=True)
class Step:
    """One instruction to be: its kernel, the rows it works on, what it touches, its operands."""

    kernel: str
    operands: Any
    rows: str
    reads: Sequence[str]
    writes: str
    words: Mapping[str, Word]
    barrier: int = 1
    in_place: str = ""


class Lowering:
    """The steps of a graph, and the sizes of everything they touch (`kernels.lowering.Builder`).

    limits: the most rows each symbol may have. kv_bits: of the cache, 32, 16, or 8
    and 4 in codes. lent: what adapters may add to products, by weight.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        limits: Mapping[str, int],
        threads: int,
        kv_bits: int,
        lent: Mapping[str, Lent] | None = None,
    ) -> None:
        self.graph, self.limits = graph, dict(limits)
        self.threads, self.kv_bits, self.lent = threads, kv_bits, lent or {}
        self.shapes = graph.shapes()
        self.outputs = {value.name for value in graph.outputs}
        self.steps: list[Step] = []
        self.sizes: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        self.constants: dict[str, NDArray[Any]] = {}
        self.views: dict[str, tuple[str, int]] = {}
        self.paired: set[str] = set()
        self.scratch_bytes = self.partial_bytes = 0
        self._skipped: set[str] = set()
        self._made: dict[tuple[str, Any], str] = {}
        self._index_nodes()
        for value in graph.inputs:
            if value.dtype == "f32":
                self.floats(value.name)
        for node in graph.nodes:
            if node.output not in self._skipped:
                CATALOGUE[node.op].lower(self, node)
        self._keep_what_is_read()

    def _index_nodes(self) -> None:
        self._producers = {node.output: node for node in self.graph.nodes}
        self._order = {node.output: index for index, node in enumerate(self.graph.nodes)}
        self._readers: dict[str, list[Node]] = {}
        self._owners: Counter[str] = Counter()
        for node in self.graph.nodes:
            self._owners.update(set(node.weights.values()))
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)

    @property
    def kernels(self) -> list[str]:
        """Kernels the program uses, without repeats, those that other ones call among them."""
        words = (word for step in self.steps for word in step.words.values())
        called = {w[len(CALLED) :] for w in words if isinstance(w, str) and w.startswith(CALLED)}
        return sorted(called.union(step.kernel for step in self.steps))

    # --- what the families ask (documented in `kernels.lowering.Builder`) --------------------

    def attrs(self, node: Any) -> dict[str, Any]:
        return CATALOGUE[node.op].check_attrs(node.attrs)

    def encoding(self, weight: str) -> Cpu:
        stored = self.graph.weights[weight]
        return on_cpu(stored.encoding, stored.shape[-1])

    def low_rank(self, weight: str) -> Lent:
        return self.lent.get(weight, NOTHING)

    def weight_shape(self, weight: str) -> tuple[int, ...]:
        return self.graph.weights[weight].shape

    def rows(self, value: str) -> str:
        return str(self.shapes[value][0])

    def width(self, value: str) -> int:
        return int(self.shapes[value][-1])

    def stride(self, buffer: str) -> int:
        return self.strides[buffer]

    def exists(self, buffer: str) -> bool:
        return buffer in self.strides

    def producer(self, value: str) -> Node | None:
        return self._producers.get(value)

    def readers(self, value: str) -> Sequence[Node]:
        return self._readers.get(value, [])

    def only_reader(self, value: str) -> Node | None:
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and not self.is_output(value) else None

    def is_output(self, value: str) -> bool:
        return value in self.outputs

    def shared(self, weight: str) -> bool:
        return self._owners[weight] > 1

    def is_last_use(self, value: str, by: str) -> bool:
        given = value not in self._producers
        last = max((self._order[node.output] for node in self.readers(value)), default=-1)
        return not given and not self.is_output(value) and last <= self._order[by]

    def skip(self, value: str) -> None:
        self._skipped.add(value)

    def pair(self, weight: str) -> None:
        self.paired.add(weight)

    def floats(self, value: str) -> str:
        return self.buffer(value, self.rows(value), stride_of(self.width(value)))

    def buffer(self, name: str, rows: str, row_bytes: int, *, least: int = 0, more: int = 0) -> str:
        count = int(rows) if rows.isdecimal() else self.limits[rows]
        self.strides[name] = row_bytes
        self.sizes[name] = max(count * row_bytes, least) + more
        return name

    def view(self, name: str, buffer: str, offset: int) -> None:
        self.views[name] = buffer, offset

    def like(self, name: str, buffer: str) -> str:
        self.strides[name], self.sizes[name] = self.strides[buffer], self.sizes[buffer]
        return name

    def constant(self, array: NDArray[Any]) -> str:
        name = f"#constant{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def scratch(self, nbytes: int) -> None:
        self.scratch_bytes = max(self.scratch_bytes, -(-nbytes // 64) * 64)

    def partials(self, nbytes: int) -> None:
        self.partial_bytes = max(self.partial_bytes, nbytes)

    def pages(self, state: str) -> Pages:
        spec = self.graph.states[state]
        if isinstance(spec, BorrowedState):
            state = spec.owner
            spec = self.graph.states[state]
        if isinstance(spec, LatentState):
            return Pages(f"@k:{state}", "", *page_bytes(spec, self.kv_bits), self.kv_bits)
        if not isinstance(spec, KVState):
            raise TypeError(f"state {state!r} is {spec}, expected keys and values")
        fresh = None
        if self.kv_bits in CODED:
            sizes = page_bytes(spec, FRESH_BITS)
            fresh = Pages(f"@fresh_k:{state}", f"@fresh_v:{state}", *sizes, FRESH_BITS)
        sizes = page_bytes(spec, self.kv_bits)
        return Pages(f"@k:{state}", f"@v:{state}", *sizes, self.kv_bits, fresh)

    def made(self, kind: str, key: Any) -> str:
        return self._made.get((kind, key), "")

    def make(self, kind: str, key: Any, name: str) -> str:
        self._made[kind, key] = name
        return name

    def step(
        self,
        kernel: str,
        operands: Any,
        writes: str,
        reads: Sequence[str],
        words: Mapping[str, Word],
        *,
        rows: str = "",
        barrier: int = 1,
        in_place: str = "",
    ) -> None:
        if set(words) != set(operands._fields):
            odd = sorted(set(words) ^ set(operands._fields))
            raise TypeError(f"{kernel}: operands {odd} are missing or unknown")
        rows = rows or self.rows(writes)
        if in_place and (reads.count(in_place) > 1 or self._may_still_read(in_place)):
            in_place = ""
        step = Step(kernel, operands, rows, tuple(reads), writes, words, barrier, in_place)
        self.steps.append(step)

    def _may_still_read(self, name: str) -> bool:
        """Whether a thread that is behind may read a value: no barrier is sure to follow its last
        reading yet."""
        for step in reversed(self.steps):
            if step.barrier == 1:
                return False
            if name in step.reads:
                return True
        return False

    def _keep_what_is_read(self) -> None:
        """A step takes over no memory that a later one reads: a sum that a product took in, and a
        norm that a quantization takes in, stand elsewhere than their nodes."""
        read: set[str] = set()
        for index in reversed(range(len(self.steps))):
            step = self.steps[index]
            if step.in_place in read:
                self.steps[index] = replace(step, in_place="")
            read.update(step.reads)


def symbols(graph: Graph) -> set[str]:
    """Symbols that inputs and outputs have sizes by."""
    values = (*graph.inputs, *graph.outputs)
    return {n for value in values for n in value.shape if isinstance(n, str)}


def check_weights(graph: Graph, own: Graph) -> None:
    """Raises RequestError where a graph reads other weights than a session's own graph."""
    if odd := sorted(name for name, w in graph.weights.items() if own.weights.get(name) != w):
        raise RequestError(
            f"graph {graph.name!r} reads weights {odd[:4]} that this session does not have, "
            "expected a cut or another size of the session's graph",
            code="run-weights",
        )
