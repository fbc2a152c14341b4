"""The CPU session: packed weights, page pools, and programs that the process's team runs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgertError, RequestError, ResourceError
from ..graph import Graph
from ..kernels.cpu import code as machine_code
from ..kernels.kv_codes import CODED
from ..kernels.low_rank import Fitted
from ..kernels.lowering import Lent
from ..roles import row_input
from . import packed, team
from .adapters import AdapterPool
from .base import F32, Feed, Session, State, StepResult
from .compiling import compiled
from .cores import thread_count
from .feeds import FeedChecker, Rows, check_arrays, check_borrowed, lay_out
from .fit import check_values
from .folding import bind, folds_of
from .longrope import Switching
from .lowering import Lowering, check_weights, symbols
from .pages import PagePool
from .plan import plan_pages
from .prefixes import PrefixCache
from .program import SPLIT_ROWS, Further, Program
from .replay import Replaying
from .sequence import CpuState
from .slots import SlotPool
from .supported import cache_bits, check_encodings

MAX_ROWS = 256
SEQUENCES_PER_CONTEXT = 16  # short sequences that may live in the pages of a full one
SNAPSHOT_BYTES = 256 << 20  # of recurrent states that go on with known beginnings
CODES = "-2"  # the layout of coded pages, which snapshots hold
PROGRAMS = 8  # sets of taps, or graphs and sizes of `run`, whose programs are kept


class CpuSession(Session):
    """A graph on this machine's cores.

    weights: graph name -> array or Quantized. threads: None means one per performance core.
    context: tokens a state may hold (0: what the graph was made for). kv_memory: bytes that the
    pool of pages may take, see `plan`. kv_bits: 32, 16, or 8 and 4 in codes, see
    `kernels/kv_codes.py`; 0 means 32 for float32 models, 16 otherwise. cache: folder for compiled
    kernels and packed weights; None keeps both in memory.
    """

    device = "cpu"

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Any],
        *,
        threads: int | None = None,
        context: int = 0,
        max_rows: int = MAX_ROWS,
        kv_memory: int | None = None,
        kv_bits: int = 0,
        snapshot_bits: int = 32,
        cache: Path | None = None,
        packed_folders: Sequence[Path] = (),
        key: str = "",
    ) -> None:
        check_encodings(graph)
        check_borrowed(graph)
        check_values(graph, {})
        self.graph, self.max_rows = graph, max_rows
        self.threads = thread_count(threads)
        self.kv_bits = cache_bits(graph, kv_bits)
        plan = plan_pages(graph, self.kv_bits, context or graph.context, kv_memory)
        self.context = plan.context
        self.fingerprint = f"{key[:24]}-kv{self.kv_bits}{CODES if self.kv_bits in CODED else ''}"
        self.checker = FeedChecker(self, chains=self.kv_bits in CODED)
        self.adapters = AdapterPool(graph)
        self._lock, self._closed = threading.Lock(), False
        self._programs, self._row_input = dict[object, Program](), row_input(graph)
        # kept, for shapes take longer to infer than a step of a small model
        self._tapped = lru_cache(PROGRAMS)(lambda names: graph.with_outputs(sorted(names)))
        machine_code.use_cache(cache)
        self._team = team.join(self.threads)
        try:
            first = self._lower(graph, {"T": max_rows, "R": max_rows})
            self.paired = frozenset(first.paired)
            self.pool = PagePool(graph, plan.pages, self.kv_bits)
            folds = folds_of(graph)
            count = SEQUENCES_PER_CONTEXT * plan.sequences
            self.slots = SlotPool(graph, count, max_rows, folds, half=snapshot_bits == 16)
            whole = self.slots.whole_steps
            self.replaying = Replaying(self.checker, max_rows, self._step, whole=whole)
            self.switching = Switching(graph, self.checker, max_rows, self.replaying.step)
            self._pack(weights, list(packed_folders), key)
            code = compiled(first.kernels)
            if graph.states or self.checker.tokens:
                self._programs[frozenset[str]()] = self._bind(first, code)
                bind(folds, self.program())
        except BaseException:
            self.close()
            raise

    # --- building ---------------------------------------------------------------------------

    def _lower(
        self, graph: Graph, limits: Mapping[str, int], lent: Mapping[str, Lent] | None = None
    ) -> Lowering:
        limits = {**dict.fromkeys(symbols(graph), 1), **limits}
        return Lowering(graph, limits=limits, threads=self.threads, kv_bits=self.kv_bits, lent=lent)

    def _pack(self, weights: Mapping[str, Any], folders: list[Path], key: str) -> None:
        """Matrices packed for the kernels, vectors padded; addresses of both."""
        graph = self.graph
        if folders and key:
            held = packed.cached(graph, weights, self.paired, folders=folders, key=key)
        else:
            held = packed.in_memory(graph, weights, self.paired)
        self.packed_weights = held
        self._addresses = {f"${name}": held.address(name) for name in held.slots}
        self._vectors = {
            name: packed.padded(weights[name])
            for name, w in graph.weights.items()
            if len(w.shape) == 1
        }
        self._addresses.update({f"${name}": a.ctypes.data for name, a in self._vectors.items()})
        self._tables = {
            name: packed.padded(weights[name]) for name in packed.in_slots(graph, matrix=False)
        }
        for name, table in self._tables.items():
            self._addresses[f"@rows:{name}"] = table.ctypes.data
        self._columns = {name: packed.padded(weights[name].T) for name in packed.by_columns(graph)}
        for name, table in self._columns.items():
            self._addresses[f"@columns:{name}"] = table.ctypes.data
        for name in self.pool.keys:
            self._addresses[f"@k:{name}"] = self.pool.keys[name].ctypes.data
        for name in self.pool.values:
            self._addresses[f"@v:{name}"] = self.pool.values[name].ctypes.data
        for name in self.pool.fresh_keys:
            self._addresses[f"@fresh_k:{name}"] = self.pool.fresh_keys[name].ctypes.data
            self._addresses[f"@fresh_v:{name}"] = self.pool.fresh_values[name].ctypes.data
        self._addresses["@fresh"] = self.pool.fresh.ctypes.data
        self._addresses.update(self.slots.named())

    def _bind(
        self, lowering: Lowering, code: Mapping[str, int], *,
        lent: Mapping[str, int] | None = None, control: int = 0,
    ) -> Program:  # fmt: skip
        arrays = self._vectors, self._tables, self._columns, dict(self.adapters.tables)
        kept = self.packed_weights, arrays, self.pool, self.slots
        low = {f"@low:{name}": t.ctypes.data for name, t in self.adapters.tables.items()}
        return Program(
            lowering, {**self._addresses, **low, **(lent or {})}, code, self._team,
            context=self.context, kept=kept, control=control,
        )  # fmt: skip

    def program(self) -> Program:
        """The program that steps without taps run, for profiling."""
        return self._programs[frozenset()]

    def _program(
        self,
        key: object,
        graph: Graph,
        limits: Mapping[str, int],
        lent: Mapping[str, Lent] | None = None,
    ) -> Program:
        """The program of a graph over the same weights, made when it is first asked for."""
        program = self._programs.pop(key, None)
        if program is None:
            check_weights(graph, self.graph)
            lowering = self._lower(graph, limits, lent)
            if frozenset(lowering.paired) != self.paired & set(graph.weights):
                raise RequestError(
                    "a wanted value only exists inside a gated product, expected hidden rows",
                    code="step-taps",
                )
            program = self._bind(lowering, compiled(lowering.kernels))
        self._programs[key] = program
        while len(self._programs) > PROGRAMS:
            oldest = next(k for k in self._programs if k != frozenset())
            self._programs.pop(oldest).close()
        return program

    def reads(self, graph: Graph) -> bool:
        """Whether a graph's row by itself reads the weights as they are packed here."""
        paired = frozenset(self._lower(graph, {"T": 1, "R": 1}).paired)
        return paired == self.paired & set(graph.weights)

    def shows(self, taps: Iterable[str]) -> bool:
        """Whether rows of these values of the graph exist to be read."""
        return self.reads(self._tapped(frozenset(taps)))

    def beside(
        self, graph: Graph, lent: Mapping[str, int], control: int, kernel: str
    ) -> tuple[Program, int]:
        """A program of one row, which runs as a part of another one's steps and has its control
        block, and the address of a kernel. lent: addresses of what it reads besides weights."""
        lowering = self._lower(graph, {"T": 1, "R": 1})
        code = compiled([*lowering.kernels, kernel])
        return self._bind(lowering, code, lent=lent, control=control), code[kernel]

    # --- running ----------------------------------------------------------------------------

    def new_state(self, expected: int = 0) -> CpuState:
        self._check_open()
        state = CpuState(self.pool, self.slots, self.context, self.fingerprint, long_rope=False)
        self.switching.begin(state, expected)
        self.replaying.begin(state)
        return state

    def attach(self, fitted: Fitted) -> None:
        with self._lock:
            self._check_open()
            self.adapters.attach(fitted)

    def choose(self, state: State, adapter: str) -> None:
        self.adapters.choose(state, adapter)

    def prefix_cache(self) -> PrefixCache:
        """Up to half of the pool of pages may stay with beginnings that nobody uses."""
        budget = max(SNAPSHOT_BYTES, self.pool.pages * self.pool.bytes_per_page // 2)
        return PrefixCache(self.pool, self.slots, budget)

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("this session is closed", code="session-closed")

    def step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        return self.switching.step(feeds)

    def step_chain(self, feed: Feed, chain: Further) -> None:
        """A step of one feed and of the rows that a chain makes behind it, which is asked for what
        came of them. All of them are pending then."""
        self._step([feed], chain)

    def _step(self, feeds: Sequence[Feed], chain: Further | None = None) -> list[StepResult]:
        self._team.check_process()  # before the lock, which may have been held at the fork
        with self._lock:
            self._check_open()
            self.checker.check(feeds)
            rows = lay_out(feeds)
            taps = frozenset(name for feed in feeds for name in feed.taps)
            tapped = self._tapped(taps) if taps else self.graph
            program = self._stepping(taps, tapped, feeds)
            states = [_own(feed.state, self.pool) for feed in feeds]
            try:
                for state in states:
                    state.begin_step()
                self._fill(program, feeds, rows)
                if chain is not None:
                    states[0].pending = rows.total + chain.execute(program, states[0], rows)
                    return []
                program.execute(small=rows.total <= SPLIT_ROWS)
                for state, feed in zip(states, feeds, strict=True):
                    state.pending = feed.rows
                return self._results(program, feeds, rows)
            except EdgertError:
                for state in states:
                    state.discard()  # pages reserved for nothing
                raise
            finally:
                for state in states:
                    state.end_step()

    def _stepping(self, taps: frozenset[str], graph: Graph, feeds: Sequence[Feed]) -> Program:
        """The program of a step: without adapters the plain one, whose rows have the same bits."""
        sizes = {"T": self.max_rows, "R": self.max_rows}
        if not any(feed.state.adapter for feed in feeds):
            return self._program(taps, graph, sizes)
        for key in [k for k in self._programs if isinstance(k, _Adapted)]:
            if key.version != self.adapters.version:
                self._programs.pop(key).close()
        key = _Adapted(taps, self.adapters.version)
        return self._program(key, graph, sizes, self.adapters.lent)

    def run(self, arrays: Mapping[str, NDArray[Any]], graph: Graph | None = None) -> dict[str, F32]:
        graph = graph or self.graph
        self._team.check_process()
        with self._lock:
            self._check_open()
            sizes = check_arrays(graph, arrays)
            # programs are made for powers of two, so that a few serve all sizes
            limits = {symbol: 1 << (n - 1).bit_length() for symbol, n in sizes.items()}
            program = self._sized(graph, limits, sizes)
            program.set_counts(sizes)
            for name, array in arrays.items():
                program.fill(name, array)
            program.execute()
            return {
                value.name: program.read(value.name, slice(0, sizes.get(str(value.shape[0]))))
                for value in graph.outputs
            }

    def _sized(self, graph: Graph, limits: dict[str, int], sizes: dict[str, int]) -> Program:
        """The program for up to `limits` rows, or for just `sizes` where the larger does not
        fit. A kept program keeps its graph, so that the graph's id stays its own."""
        try:
            return self._program((id(graph), *sorted(limits.items())), graph, limits)
        except ResourceError:
            if limits == sizes:
                raise
            return self._program((id(graph), *sorted(sizes.items())), graph, sizes)

    def _fill(self, program: Program, feeds: Sequence[Feed], rows: Rows) -> None:
        self._fill_inputs(program, feeds, rows)
        program.set_counts({"T": rows.total, "R": len(rows.picked)})
        memory = program.step
        if memory is None:
            return
        states = [_own(feed.state, self.pool) for feed in feeds]
        for state, start, stop in zip(states, rows.starts, rows.starts[1:], strict=False):
            state.reserve(state.length + stop - start)
        memory.fill(states, rows)
        if program.lowering.lent:
            self.adapters.fill(memory, feeds, rows)

    def _fill_inputs(self, program: Program, feeds: Sequence[Feed], rows: Rows) -> None:
        checker = self.checker
        for feed, start in zip(feeds, rows.starts, strict=False):
            if feed.tokens is not None:
                program.fill(checker.tokens, feed.tokens, start)
            elif checker.tokens:
                program.fill(checker.tokens, np.full(feed.rows, -1, np.int32), start)
            for name, array in feed.inputs.items():
                program.fill(name, array, start)
            if feed.embeddings is None:
                continue
            if not checker.embedded:
                program.fill("embeddings", feed.embeddings, start)
            elif program.embeddings is not None:
                given = np.asarray(feed.embeddings)
                program.embeddings[start : start + feed.rows, : given.shape[1]] = given
        if self._row_input:
            program.fill(self._row_input, rows.picked)

    def _results(self, program: Program, feeds: Sequence[Feed], rows: Rows) -> list[StepResult]:
        first = self.graph.outputs[0].name
        if self.graph.outputs[0].shape[0] == "R":
            logits = program.read(first, slice(0, len(rows.picked)))
        else:
            logits = program.read(first, slice(0, rows.total))[rows.picked]
        spans = zip(rows.starts, rows.starts[1:], strict=False)
        return [
            StepResult(part, {n: program.read(n, slice(start, stop)) for n in feed.taps})
            for feed, part, (start, stop) in zip(
                feeds, np.split(logits, rows.cuts) if rows.cuts else [logits], spans, strict=True
            )
        ]

    def cancel(self) -> None:
        """Make a running step raise RequestError(code="cancelled"); any thread may call."""
        for program in list(self._programs.values()):
            program.cancel()

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights, arenas and KV in use."""
        arenas = sum(program.nbytes for program in self._programs.values())
        held = self.packed_weights.nbytes + self.adapters.nbytes
        return held + arenas + self.pool.nbytes

    def close(self) -> None:
        if not self._team.is_ours:  # the lock may have been held at the fork; nothing runs here
            self._closed = True
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for program in self._programs.values():
                program.close()
            self._programs = {}
            team.leave(self._team)


class _Adapted(NamedTuple):
    """What a program with adapters is kept by."""

    taps: frozenset[str]
    version: int


def _own(state: State, pool: PagePool) -> CpuState:
    if not isinstance(state, CpuState) or state.pool is not pool:
        raise RequestError(
            "a state of another session was fed", code="state-foreign",
            hint="make states with this session's new_state()",
        )  # fmt: skip
    return state
