"""A program: lowered steps bound to memory, ready to be run by the team."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..kernels.attention_lower import ATTEND
from ..kernels.cpu.layout import PAGE, SEGMENT, TILE_TOKENS
from ..kernels.lowering import Word, kernel_at
from ..kernels.operands import ROW, WORD
from .arena import place
from .base import F32
from .feeds import Rows
from .fit import check_program
from .lowering import Lowering, Step
from .memory import reserve
from .pace import Pace
from .sequence import CpuState
from .team import Team

SPLIT_ROWS = 8  # steps of at most this many rows share a sequence's context out between threads


class Program:
    """The table of a graph, its arena, inputs and outputs.

    addresses: of weights and page pools, by the names that lowering gives them. code: entry
    addresses of kernels. kept: what the addresses point into. context: tokens of the longest
    sequence, 0 without states. control: another program's control block, of one that runs as a
    part of its steps; 0 for one of its own.
    """

    def __init__(
        self,
        lowering: Lowering,
        addresses: Mapping[str, int],
        code: Mapping[str, int],
        team: Team,
        *,
        context: int = 0,
        kept: Any = None,
        control: int = 0,
    ) -> None:
        self.lowering, self.team, self.threads = lowering, team, lowering.threads
        self.pace = Pace()
        graph = lowering.graph
        self.symbols = {symbol: index for index, symbol in enumerate(self._symbols())}
        self.counts, self._sizes = np.zeros(len(self.symbols), np.int64), dict[str, int]()
        for symbol, index in self.symbols.items():
            if symbol.isdecimal():
                self.counts[index] = int(symbol)
        given = {value.name for value in graph.inputs}
        made = {value.name for value in graph.outputs} - given
        apart = given | made
        offsets, size = place(lowering.steps, lowering.sizes, apart)
        if not graph.states:
            check_program(lowering, size, apart)
        self.inputs = {v.name: self._memory(v.name, v.dtype) for v in graph.inputs}
        self.outputs = {name: self._memory(name, "f32") for name in made}
        self.step = StepMemory(lowering, context) if graph.states else None
        self.arena = reserve(size + 4096)
        self.scratch = reserve(64 + self.threads * lowering.scratch_bytes)
        self.scratch[56:64].view(np.int64)[0] = lowering.scratch_bytes
        self._lent = control != 0
        self.control = control or team.control_block()
        self._kept = kept, self._embeddings()
        at = {name: self.arena.ctypes.data + offset for name, offset in offsets.items()}
        called = {kernel_at(name): address for name, address in code.items()}
        self.table = self._emit({**addresses, **at, **called, **self._named()}, code)
        self.address, self.count = self.table.ctypes.data, len(self.table)
        self.nbytes = size

    def _symbols(self) -> list[str]:
        values = (*self.lowering.graph.inputs, *self.lowering.graph.outputs)
        symbols = [str(value.shape[0]) for value in values]
        return list(dict.fromkeys([*symbols, *(step.rows for step in self.lowering.steps)]))

    def _memory(self, name: str, dtype: str) -> NDArray[Any]:
        """int32 [rows] or float32 [rows, padded width] for an input or output."""
        lowering, rows = self.lowering, self.lowering.rows(name)
        count = int(rows) if rows.isdecimal() else lowering.limits[rows]
        if dtype == "int32":
            return np.zeros(count, np.int32)
        stride = lowering.stride(name) if lowering.exists(name) else 64
        return reserve(count * stride).view(np.float32).reshape(count, stride // 4)

    def _embeddings(self) -> F32 | None:
        """Rows that feeds bring instead of tokens, [T, padded width]."""
        embeds = [node.output for node in self.lowering.graph.nodes if node.op == "embed"]
        self.embeddings = self._memory(embeds[0], "f32") if embeds else None
        return self.embeddings

    def _named(self) -> dict[str, int]:
        """Addresses by the names of operands; "" is 0."""
        named = {
            "": 0,
            "@scratch": self.scratch.ctypes.data + 64,
            "@scratch_bytes": self.lowering.scratch_bytes,
            "@ctrl": self.control,
            "@embeddings": 0 if self.embeddings is None else self.embeddings.ctypes.data,
        }
        for group in (self.inputs, self.outputs, self.lowering.constants):
            named.update({name: array.ctypes.data for name, array in group.items()})
        return named | (self.step.named() if self.step is not None else {})

    def _emit(self, at: dict[str, int], code: Mapping[str, int]) -> NDArray[np.int64]:
        """int64 [steps, ROW]."""
        steps = self.lowering.steps
        table, counts = np.zeros((len(steps), ROW), np.int64), self.counts.ctypes.data
        for row, step in zip(table, steps, strict=True):
            if step.in_place:
                at.setdefault(step.writes, at[step.in_place])
            row[:3] = code[step.kernel], step.barrier, counts + WORD * self.symbols[step.rows]
            self._fill(row, step, at)
        return table

    def _fill(self, row: NDArray[np.int64], step: Step, at: Mapping[str, int]) -> None:
        for name, offset in zip(step.operands._fields, step.operands, strict=True):
            row[offset // WORD] = _word(step.words[name], at, self.lowering.views)

    def set_counts(self, sizes: Mapping[str, int]) -> None:
        """How many rows each symbol has in the next run."""
        if sizes == self._sizes:
            return
        for symbol, count in sizes.items():
            if symbol in self.symbols:
                self.counts[self.symbols[symbol]] = count
        self._sizes = dict(sizes)

    def fill(self, name: str, array: NDArray[Any], start: int = 0) -> None:
        """Rows of an input, from row `start` on."""
        target = self.inputs[name]
        rows = slice(start, start + len(array))
        if target.ndim == 1:
            target[rows] = array
        else:
            target[rows, : array.shape[1]] = array

    def read(self, name: str, rows: slice) -> F32:
        """A copy of an output's rows, [n, width]."""
        source = self.outputs.get(name)
        if source is None:
            source = self.inputs[name]
        return np.array(source[rows, : self.lowering.width(name)])

    def execute(self, *, small: bool = False) -> None:
        """Run once; RequestError(code="cancelled") where it was cancelled on the way. small: of a
        few rows, so that waiting for a thread that lost its core would cost more than the thread
        gives (`Pace` decides)."""
        if self.team.run(self, small=small):
            raise RequestError("the step was cancelled", code="cancelled")

    def cancel(self) -> None:
        """Make the running step leave at its next barrier; any thread may call."""
        self.team.cancel(self.control)

    def close(self) -> None:
        """Give the control block back."""
        if self.control and not self._lent:
            self.team.free_control(self.control)
        self.control = 0


def _word(word: Word, at: Mapping[str, int], views: Mapping[str, tuple[str, int]]) -> int:
    if isinstance(word, str):
        buffer, offset = views.get(word, (word, 0))
        return at[buffer] + offset
    if isinstance(word, float):
        return int(np.float32(word).view(np.uint32))
    return word


class Further(Protocol):
    """Rows that a step makes by itself behind those it is fed (`chain`)."""

    def execute(self, program: Program, state: CpuState, rows: Rows) -> int:
        """Run a program that is filled for `rows` of a state, and what follows it; how many rows
        the state was fed besides. Raises RequestError where it was cancelled."""


class StepMemory:
    """What kernels read of a step's rows: where each stands in its sequence (`feeds.Rows`).

    standing: int32 [5, T], slots, places and three axes of positions, which are one where rows
    follow each other. chain: what the rest was filled for, where it was a single such feed: its
    rows, slot, segments, page table and factors; the next step is mostly like it.
    """

    def __init__(self, lowering: Lowering, context: int) -> None:
        rows = lowering.limits["T"]
        states = lowering.graph.states.values()
        groups = max((getattr(spec, "kv_heads", 1) for spec in states), default=1)
        attended = [step for step in lowering.steps if step.operands is ATTEND]
        groups = max([groups, *(int(step.words["kv_heads"]) for step in attended)])
        segments = -(-context // (PAGE * SEGMENT))
        self.standing = np.zeros((5, rows), np.int32)
        self.slots, self.places, self.positions = *self.standing[:2], self.standing[2:]
        self.visible = np.zeros((rows, 2), np.int64)
        self.long_flags = np.zeros(rows, np.int32)
        self.tables = np.zeros(rows, np.int64)
        self.tiles = np.zeros(2 + rows, np.int64)  # one tile a row at worst
        self.tile_rows = self.tiles[2:].view(np.int32)
        self.sequences = np.zeros(1 + 3 * rows, np.int64)  # how many, then first row, rows, slot
        self.runs_t, self.order_t = np.zeros(1 + 3 * rows, np.int64), np.zeros(rows, np.int32)
        self.runs_r, self.order_r = self.runs_t.copy(), self.order_t.copy()  # see `low_rank`
        self.counters = np.zeros(rows * groups, np.int64)
        self.partials = reserve(SPLIT_ROWS * segments * lowering.partial_bytes + 64)
        self.chain: tuple[int, ...] = ()

    def named(self) -> dict[str, int]:
        """The arrays' addresses as operands name them: @slots, @places, ..."""
        arrays = {n: a for n, a in vars(self).items() if isinstance(a, np.ndarray)}
        named = {f"@{name}": array.ctypes.data for name, array in arrays.items()}
        return named | {"@axis_stride": self.positions.strides[0]}

    def fill(self, states: Sequence[CpuState], rows: Rows) -> None:
        """Where the rows of a step stand; states: of its feeds, with room for their rows."""
        if len(states) == 1 and rows.axes is None:
            self._fill_chain(states[0], rows)
            return
        total, self.chain = rows.total, ()
        self.slots[:total], self.places[:total] = rows.slot, rows.place
        self.positions[:, :total] = rows.place if rows.axes is None else rows.axes
        self.visible[:total, 0] = -1 if rows.paths is None else rows.paths
        spans, tiles, deepest = [len(states)], list[int](), 0
        for state, start, stop in zip(states, rows.starts, rows.starts[1:], strict=False):
            spans += start, stop - start, state.slot
            self.tables[start:stop] = state.table_address
            self.long_flags[start:stop] = state.long_rope
            self.visible[start:stop, 1] = state.length
            tiles += _tiles(start, stop)
            deepest = max(deepest, _segments(state.length + stop - start))
        self.sequences[: len(spans)] = spans
        self.tile_rows[: len(tiles)] = tiles
        self.tiles[:2] = len(tiles) // 2, deepest if total <= SPLIT_ROWS else 1

    def _fill_chain(self, state: CpuState, rows: Rows) -> None:
        """Of one feed whose rows follow each other: mostly only its length has changed."""
        total, length = rows.total, state.length
        self.standing[:, :total] = rows.slot
        self.visible[:total, 1] = length
        split = _segments(length + total) if total <= SPLIT_ROWS else 1
        chain = total, state.slot, split, state.table_address, state.long_rope
        if chain == self.chain:
            return
        self.visible[:total, 0] = -1
        self.tables[:total] = state.table_address
        self.long_flags[:total] = state.long_rope
        self.sequences[:4] = 1, 0, total, state.slot
        tiles = _tiles(0, total)
        self.tile_rows[: len(tiles)] = tiles
        self.tiles[:2] = len(tiles) // 2, split
        self.chain = chain


def _segments(tokens: int) -> int:
    """Segments that a sequence of `tokens` tokens has."""
    return (tokens - 1) // (PAGE * SEGMENT) + 1


def _tiles(start: int, stop: int) -> list[int]:
    """Rows start to stop - 1 of one sequence as tiles: first row and rows of each."""
    firsts = range(start, stop, TILE_TOKENS)
    return [n for first in firsts for n in (first, min(TILE_TOKENS, stop - first))]
