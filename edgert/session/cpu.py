"""The CPU session: packed weights, an arena, a program table and a team of threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, EdgertError, RequestError
from ..graph import Graph
from ..kernels.cpu import vm
from ..kernels.cpu.layout import SEGMENT, TILE_TOKENS
from ..kernels.encodings import ENCODINGS
from ..notices import notice
from ..process import give_back_code, give_back_heap
from . import packed
from .base import Feed, Session, State
from .lower import Lowering
from .memory import reserve
from .pages import PAGE_TOKENS, CpuState, PagePool
from .program import Memory, stride_of
from .reference import logit_rows, needs_long_rope
from .team import Team, performance_cores

MAX_ROWS = 256
SPLIT_ROWS = 8  # steps of at most this many rows share a sequence's context out between threads


class CpuSession(Session):
    """A graph on this machine's cores.

    weights: graph name -> array or Quantized. threads: None means one per performance core.
    context: tokens a state may hold (0: what the graph was made for). sequences: how many full
    contexts the page pool holds. kv_bits: 32, 16 or 8; 0 means 32 for float32 models, 16 otherwise.
    cache: folder for compiled kernels and packed weights; None keeps both in memory.
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
        sequences: int = 4,
        kv_bits: int = 0,
        cache: Path | None = None,
        twin_folders: Sequence[Path] = (),
        key: str = "",
    ) -> None:
        _check_weights(graph)
        self.graph, self.max_rows = graph, max_rows
        self.threads = _thread_count(threads)
        self.context = context or graph.context
        self.fingerprint = f"{key[:24]}-kv{self._kv_bits(kv_bits)}"
        self._lock = threading.Lock()
        self._closed = False
        vm.use_cache(cache)
        wide = self._kv_bits(kv_bits) // 8
        self._lowering = Lowering(graph, max_rows=max_rows, threads=self.threads, kv_bytes=wide)
        self._team = Team(self.threads)
        self.pool = PagePool(graph, sequences * (-(-self.context // PAGE_TOKENS)), wide)
        self._allocate()
        self._bind(weights, list(twin_folders), key)

    def _kv_bits(self, wanted: int) -> int:
        if wanted not in (0, 8, 16, 32):
            raise DeviceError(f"kv_bits is {wanted}, expected 8, 16 or 32", code="kv-bits")
        exact = all(ENCODINGS[w.encoding].bits == 32 for w in self.graph.weights.values())
        return wanted or (32 if exact else 16)

    # --- building ---------------------------------------------------------------------------

    def _allocate(self) -> None:
        rows, lowering = self.max_rows, self._lowering
        self._offsets, size = lowering.arena()
        self._arena = reserve(size + 4096)
        tiles = rows  # one tile a row at worst
        groups = max((s.kv_heads for s in self.graph.states.values()), default=1)
        segments = -(-self.context // (PAGE_TOKENS * SEGMENT))
        self._tokens = np.zeros(rows, np.int32)
        self._rows = np.zeros(rows, np.int32)
        self._positions = np.zeros(rows, np.int32)
        self._long = np.zeros(rows, np.int32)
        self._tables = np.zeros(rows, np.int64)
        self._counts = np.zeros(2, np.int64)
        self._tiles = np.zeros(2 + tiles, np.int64)
        self._counters = np.zeros(tiles * groups, np.int64)
        self._partials = reserve(SPLIT_ROWS * segments * lowering.partial_bytes + 64)
        self._scratch = reserve(64 + self.threads * lowering.scratch_bytes)
        self._scratch[56:64].view(np.int64)[0] = lowering.scratch_bytes
        self._logit_stride = stride_of(self.graph.vocab_size)
        self._logits = reserve(rows * self._logit_stride).view(np.float32)
        self._logits = self._logits.reshape(rows, self._logit_stride // 4)

    def _bind(self, weights: Mapping[str, Any], folders: list[Path], key: str) -> None:
        lowering, graph = self._lowering, self.graph
        if folders and key:
            self.twin = packed.mapped(
                graph, weights, lowering.paired_weights, folders=folders, key=key
            )
        else:
            self.twin = packed.in_memory(graph, weights, lowering.paired_weights)
        addresses = {name: self.twin.address(name) for name in self.twin.slots}
        self._vectors = {
            name: _padded(weights[name]) for name, w in graph.weights.items() if len(w.shape) == 1
        }
        addresses.update({name: array.ctypes.data for name, array in self._vectors.items()})
        base = self._arena.ctypes.data
        addresses.update({name: base + offset for name, offset in self._offsets.items()})
        addresses[lowering.output] = self._logits.ctypes.data
        for name in graph.states:
            addresses[f"#k:{name}"] = self.pool.keys[name].ctypes.data
            addresses[f"#v:{name}"] = self.pool.values[name].ctypes.data
        code = _compiled(lowering.kernels)
        self._table = lowering.emit(self._memory(), addresses, code)
        self._team.use(self._table, len(self._table))

    def _memory(self) -> Memory:
        counts = self._counts.ctypes.data
        return Memory(
            tokens=self._tokens.ctypes.data,
            rows=self._rows.ctypes.data,
            positions=self._positions.ctypes.data,
            tables=self._tables.ctypes.data,
            long_flags=self._long.ctypes.data,
            tiles=self._tiles.ctypes.data,
            count_t=counts,
            count_r=counts + 8,
            counters=self._counters.ctypes.data,
            scratch=self._scratch.ctypes.data + 64,
            partials=self._partials.ctypes.data,
            ctrl=self._team.ctrl,
        )

    # --- running ----------------------------------------------------------------------------

    def new_state(self, expected: int = 0) -> CpuState:
        if self._closed:
            raise RequestError("this session is closed", code="session-closed")
        long_rope = needs_long_rope(self.graph, expected)
        return CpuState(self.pool, self.context, self.fingerprint, long_rope=long_rope)

    def step(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        with self._lock:
            if self._closed:
                raise RequestError("this session is closed", code="session-closed")
            total = self.check_feeds(feeds)
            rows, cuts = logit_rows(feeds)
            try:
                self._fill(feeds, total, rows)
                if self._team.run(small=total <= SPLIT_ROWS):
                    raise RequestError("the step was cancelled", code="cancelled")
            except EdgertError:
                for feed in feeds:
                    feed.state.trim(feed.state.length)  # pages reserved for nothing
                raise
            for feed in feeds:
                feed.state.pending = len(feed.tokens)
            logits = self._logits[: len(rows), : self.graph.vocab_size]
            return [np.array(part) for part in np.split(logits, cuts)]

    def _fill(self, feeds: Sequence[Feed], total: int, rows: NDArray[np.int32]) -> None:
        tiles = self._tiles[2:].view(np.int32).reshape(-1, 2)
        start = count = deepest = 0
        for feed in feeds:
            state = _own(feed.state, self.pool)
            n, length = len(feed.tokens), state.length
            state.reserve(length + n)
            stop = start + n
            self._tokens[start:stop] = feed.tokens
            self._positions[start:stop] = np.arange(length, length + n)
            self._tables[start:stop] = state.table.ctypes.data
            self._long[start:stop] = state.long_rope
            for first in range(start, stop, TILE_TOKENS):
                tiles[count] = first, min(TILE_TOKENS, stop - first)
                count += 1
            deepest = max(deepest, (length + n - 1) // (PAGE_TOKENS * SEGMENT) + 1)
            start = stop
        self._rows[: len(rows)] = rows
        self._counts[:] = total, len(rows)
        self._tiles[:2] = count, deepest if total <= SPLIT_ROWS else 1

    def cancel(self) -> None:
        """Make a running step raise RequestError(code="cancelled"); any thread may call."""
        self._team.cancel()

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights, arena and KV in use."""
        used = (self.pool.pages - len(self.pool.free)) * self.pool.bytes_per_page
        return self.twin.nbytes + self._arena.nbytes + used

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._team.close()


def _check_weights(graph: Graph) -> None:
    used = {weight.encoding for weight in graph.weights.values()}
    missing = sorted(name for name in used if ENCODINGS[name].cpu is None)
    if missing:
        known = sorted(row.name for row in ENCODINGS.values() if row.cpu is not None)
        raise DeviceError(
            f"the CPU session has no kernels for {missing} weights, expected some of {known}",
            code="device-weights",
            hint="use --device reference, or convert the model with another --quant",
        )


def _compiled(names: list[str]) -> dict[str, int]:
    """Entry addresses of kernels, with a line on stderr while something has to be compiled, and a
    progress bar where a person looks at it."""
    missing = [name for name in names if not vm.is_cached(name)]
    if missing:
        from tqdm import tqdm

        notice(f"compiling {len(missing)} kernels for this CPU, once (some seconds) ...")
        for name in tqdm(missing, unit="kernel", leave=False, disable=None):
            vm.address(name)
    entries = {name: vm.address(name) for name in names}
    give_back_heap()
    give_back_code("libllvmlite")
    return entries


def _own(state: State, pool: PagePool) -> CpuState:
    if not isinstance(state, CpuState) or state.pool is not pool:
        raise RequestError(
            "a state of another session was fed", code="state-foreign",
            hint="make states with this session's new_state()",
        )  # fmt: skip
    return state


def _thread_count(wanted: int | None) -> int:
    if wanted is None:
        return len(performance_cores())
    if not 1 <= wanted <= 256:
        raise DeviceError(f"threads is {wanted}, expected 1 to 256", code="threads")
    return wanted


def _padded(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """A float32 copy with zeros up to the next 16 entries, which vector loads may touch."""
    out = np.zeros(-(-len(vector) // 16) * 16, np.float32)
    out[: len(vector)] = vector
    return out
