"""What kernels write into the memory of a sequence, in plain NumPy, and how to read it back.

A token is a number; its keys, values and rows are a function of that number, so that a row in the
wrong place shows. Layouts are written out here once more, apart from the code under test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from edgert.kernels.kv_codes import CODED, key_page, value_page
from edgert.kernels.states import (
    BlockStatsState,
    KVState,
    LatentState,
    RecurrentState,
    StateSpec,
    folded,
)
from numpy.typing import NDArray

from edgert.graph import Graph
from edgert.session.base import State
from edgert.session.pages import PagePool
from edgert.session.recurrent import ConvSlots, RecurrentSlots
from edgert.session.reference import ReferenceState
from edgert.session.sequence import CpuState
from edgert.session.slots import SlotPool
from edgert.session.tailed import TailedSlots

F32 = NDArray[np.float32]
CONTEXT, ROWS, PAGES, SLOTS = 200, 70, 9, 4
DECAY = np.float32(0.5)


def graph_of(states: Mapping[str, StateSpec]) -> Graph:
    return Graph("m", (), (), (), {}, dict(states), CONTEXT)


def vectors(tokens: Sequence[int], shape: tuple[int, ...], salt: int) -> F32:
    """Small whole numbers [n, *shape], exact in every element type."""
    at = np.arange(int(np.prod(shape))) * 29 + salt * 71
    rows = (np.array(tokens, np.int64)[:, None] * 37 + at) % 251 - 125
    return rows.astype(np.float32).reshape(len(tokens), *shape)


# --- linear attention with a constant decay, as an op would fold it -----------------------------


def fold(matrix: F32, normaliser: F32 | None, rows: F32) -> None:
    """S <- a S + k v^T, z <- a z + k for each row [k | v]."""
    heads, keys, values = matrix.shape
    for row in rows:
        k = row[: heads * keys].reshape(heads, keys)
        v = row[heads * keys :].reshape(heads, values)
        matrix[:] = DECAY * matrix + k[:, :, None] * v[:, None, :]
        if normaliser is not None:
            normaliser[:] = DECAY * normaliser + k


def tail_rows(tokens: Sequence[int], spec: RecurrentState) -> F32:
    return vectors(tokens, (spec.heads * (spec.key_dim + spec.value_dim),), 3)


@cache
def sums(tokens: tuple[int, ...], spec: RecurrentState) -> tuple[F32, F32]:
    """Matrix and normaliser after `tokens`."""
    if not tokens:
        heads = (spec.heads, spec.key_dim)
        return np.zeros((*heads, spec.value_dim), np.float32), np.zeros(heads, np.float32)
    matrix, normaliser = (part.copy() for part in sums(tokens[:-1], spec))
    fold(matrix, normaliser, tail_rows(tokens[-1:], spec))
    return matrix, normaliser


def summarise(pool: PagePool, page: int, block: int) -> None:
    """Sum and maximum of a block's keys, from its page of float16 keys."""
    (name, spec), (keys, kv) = *pool.blocks.items(), *pool.specs.items()
    shape = (kv.kv_heads, 4, kv.head_dim, 16)
    rows = pool.keys[keys][page].view(np.float16).reshape(shape).transpose(1, 3, 0, 2)
    rows = rows.reshape(64, kv.kv_heads, kv.head_dim)[block * spec.block :][: spec.block]
    _put_block(pool, name, page, block, rows.astype(np.float32))


def _put_block(pool: PagePool, name: str, page: int, block: int, keys: F32) -> None:
    spec = pool.blocks[name]
    size = 2 * spec.kv_heads * spec.head_dim
    flat = pool.stats[name][page].view(np.float32)
    flat[block * size : (block + 1) * size] = np.stack([keys.sum(0), keys.max(0)]).ravel()


# --- the CPU's memory ---------------------------------------------------------------------------


class CpuMemory:
    """Pools for a graph's states, and a writer that stands for the kernels."""

    def __init__(self, states: Mapping[str, StateSpec], bits: int = 32) -> None:
        graph = graph_of(states)
        folds = {n: fold for n, s in states.items() if isinstance(s, RecurrentState) and s.tail}
        stats = {n: summarise for n, s in states.items() if isinstance(s, BlockStatsState)}
        self.pool = PagePool(graph, PAGES, bits, stats)
        self.slots = SlotPool(graph, SLOTS, ROWS, folds)

    def new(self) -> CpuState:
        return CpuState(self.pool, self.slots, CONTEXT, "model", long_rope=False)

    def feed(self, state: State, before: Sequence[int], tokens: Sequence[int]) -> None:
        """Write the rows of pending `tokens` behind the committed ones."""
        assert isinstance(state, CpuState)
        state.reserve(len(before) + len(tokens))
        state.pending = len(tokens)
        for name, spec in self.pool.specs.items():
            self._feed_pages(state, name, spec, tokens)
        for name, stats in self.pool.blocks.items():
            text = [*before, *tokens]
            for block in range(len(before) // stats.block, -(-len(text) // stats.block)):
                page, inside = divmod(block * stats.block, 64)
                part = text[block * stats.block : (block + 1) * stats.block]
                keys = vectors(part, (stats.kv_heads, stats.head_dim), 1)
                _put_block(self.pool, name, state.table[page], inside // stats.block, keys)
        for slots in self.slots.memories.values():
            if isinstance(slots, ConvSlots):
                end = slots.words[state.slot, 0]
                rows = vectors(tokens, (slots.spec.channels,), 4)
                slots.inputs[state.slot, end : end + len(tokens)] = rows
            else:
                self._feed_recurrent(state, slots, before, tokens)

    def _feed_pages(
        self, state: CpuState, name: str, spec: KVState | LatentState, tokens: Sequence[int]
    ) -> None:
        if isinstance(spec, LatentState):
            for index, row in enumerate(vectors(tokens, (spec.size,), 1), state.length):
                self._rows(name, spec)[state.table[index // 64], index % 64] = row
            return
        heads, size, pool = spec.kv_heads, spec.head_dim, self.pool
        padded, wide = -(-size // 16) * 16, 2 if pool.coded else pool.bits // 8
        kind = {2: np.float16, 4: np.float32}[wide]
        keys, values = (vectors(tokens, (heads, size), salt) for salt in (1, 2))
        for index in range(len(tokens)):
            page, slot = divmod(state.length + index, 64)
            page = state.table[page]
            at = pool.fresh[page] if pool.coded else page
            key = (pool.fresh_keys if pool.coded else pool.keys)[name][at]
            value = (pool.fresh_values if pool.coded else pool.values)[name][at]
            for g in range(heads):
                start = (g * 4 + slot // 16) * size * 16 + slot % 16
                key.view(kind)[start : start + 16 * size : 16] = keys[index, g]
                start = (g * 64 + slot) * padded
                value.view(kind)[start : start + size] = values[index, g]
            if pool.coded and slot == 63:
                pool.code(int(page))

    @staticmethod
    def _feed_recurrent(
        state: CpuState,
        slots: RecurrentSlots | TailedSlots,
        before: Sequence[int],
        tokens: Sequence[int],
    ) -> None:
        words, spec = slots.words[state.slot], slots.spec
        if isinstance(slots, RecurrentSlots):
            after = sums((*before, *tokens), spec)
            for part, rows in zip(slots.parts.values(), after, strict=False):
                part[state.slot, 1 - words[2]] = rows
            return
        rows = slots.parts["tail"][state.slot]
        rows[words[1] : words[1] + len(tokens)] = tail_rows(tokens, spec)
        spare = int(words[3])
        assert (spare >= 0) == (folded(spec, len(before) + len(tokens)) > words[0])
        if spare >= 0:
            after = sums((*before, *tokens)[: words[4]], spec)
            for array, part in zip(slots.sums.values(), after, strict=False):
                array[spare] = part

    # --- reading back -----------------------------------------------------------------------

    def check(self, state: State, text: Sequence[int], fold_at: int, first: int) -> None:
        """The state holds `text`: folded up to `fold_at`, inputs from token `first` on."""
        assert isinstance(state, CpuState)
        assert state.length == len(text)
        assert len(state.pages) == self.pool.count(state.length + state.pending)
        assert list(state.table[: len(state.pages)]) == state.pages
        if not text:
            return
        for name, spec in self.pool.specs.items():
            self._check_pages(state, name, spec, text)
        for name, stats in self.pool.blocks.items():
            count = len(text) // stats.block
            pages = state.pages[: -(-len(text) // 64)]
            got = self.pool.statistics(name)[pages].reshape(-1, 2, stats.kv_heads, stats.head_dim)
            keys = vectors(text[: count * stats.block], got.shape[2:], 1)
            keys = keys.reshape(count, stats.block, *got.shape[2:])
            assert np.array_equal(got[:count, 0], keys.sum(1))
            assert np.array_equal(got[:count, 1], keys.max(1))
        for slots in self.slots.memories.values():
            if isinstance(slots, ConvSlots):
                self._check_conv(state, slots, text, first)
            else:
                self._check_recurrent(state, slots, text, fold_at)

    def _rows(self, name: str, spec: LatentState) -> NDArray[Any]:
        """Pages of latents, [pages, 64, D]."""
        kind = np.float32 if self.pool.bits == 32 else np.float16
        return self.pool.keys[name].view(kind).reshape(PAGES, 64, spec.size)

    def _check_pages(
        self, state: CpuState, name: str, spec: KVState | LatentState, text: Sequence[int]
    ) -> None:
        if isinstance(spec, LatentState):
            got = self._rows(name, spec)[state.pages].reshape(-1, spec.size)[: len(text)]
            assert np.array_equal(got, vectors(text, (spec.size,), 1))
            assert name not in self.pool.values
            return
        pool, shape = self.pool, (spec.kv_heads, spec.head_dim)
        rows = [vectors(text, shape, salt) for salt in (1, 2)]
        full = len(text) - len(text) % 64 if pool.coded else 0
        for start in range(0, full, 64):
            page = state.pages[start // 64]
            k, v = (part[start : start + 64].astype(np.float32) for part in rows)
            assert np.array_equal(pool.keys[name][page], key_page(k))
            assert np.array_equal(pool.values[name][page], value_page(v, CODED[pool.bits]))
        if full == len(text):
            return
        pages = np.array(state.pages[full // 64 : -(-len(text) // 64)])
        pages = pool.fresh[pages] if pool.coded else pages
        key = (pool.fresh_keys if pool.coded else pool.keys)[name][pages]
        value = (pool.fresh_values if pool.coded else pool.values)[name][pages]
        heads, size, padded = spec.kv_heads, spec.head_dim, -(-spec.head_dim // 16) * 16
        kind = np.float32 if pool.bits == 32 else np.float16
        keys = key.view(kind).reshape(-1, heads, 4, size, 16).transpose(0, 2, 4, 1, 3)
        values = value.view(kind).reshape(-1, heads, 64, padded).transpose(0, 2, 1, 3)
        for got, wanted in ((keys, rows[0]), (values[..., :size], rows[1])):
            assert np.array_equal(got.reshape(-1, *shape)[: len(text) - full], wanted[full:])

    @staticmethod
    def _check_conv(state: CpuState, slots: ConvSlots, text: Sequence[int], first: int) -> None:
        end, oldest = (int(word) for word in slots.words[state.slot, :2])
        assert oldest == first
        rows = slots.inputs[state.slot, end - (len(text) - first) : end]
        zeros = max(0, -first)
        assert not rows[:zeros].any()
        wanted = vectors(text[max(0, first) :], (slots.spec.channels,), 4)
        assert np.array_equal(rows[zeros:], wanted)

    @staticmethod
    def _check_recurrent(
        state: CpuState, slots: RecurrentSlots | TailedSlots, text: Sequence[int], fold_at: int
    ) -> None:
        done, rows, at = (int(word) for word in slots.words[state.slot, :3])
        assert done == fold_at
        wanted = sums(tuple(text[:done]), slots.spec)
        if isinstance(slots, RecurrentSlots):
            for part, values in zip(slots.parts.values(), wanted, strict=False):
                assert np.array_equal(part[state.slot, at], values)
            return
        assert rows == len(text) - done
        assert (at >= 0) == (done > 0)
        for array, values in zip(slots.sums.values(), wanted, strict=False):
            assert not done or np.array_equal(array[at], values)
        tail = slots.parts["tail"][state.slot, :rows]
        assert np.array_equal(tail, tail_rows(text[done:], slots.spec))

    def accounts(self, states: Sequence[Any]) -> None:
        """Every page and slot is held by exactly the states that say so."""
        holders = Counter(page for state in states for page in state.pages)
        for page in range(PAGES):
            assert self.pool.indices.holders(page) == holders[page]
        assert self.pool.indices.free == PAGES - len(holders)
        slots = [state.slot for state in states if state.slot >= 0]
        for memory in self.slots.memories.values():
            if isinstance(memory, TailedSlots):  # nobody shares a matrix, and none is lost
                held = [int(at) for at in memory.words[:, 2:4].ravel() if at >= 0]
                assert sorted([*held, *memory._free]) == list(range(2 * SLOTS))
        assert len(set(slots)) == len(slots)
        assert self.slots.indices.free == SLOTS - len(slots)
        for state in states:
            assert (state.slot >= 0) == bool(self.slots and state.length + state.pending)
            points = sum(point.nbytes for point in state.checkpoints)
            slot = self.slots.bytes_per_slot * (state.slot >= 0)
            pages = len(state.pages) * self.pool.bytes_per_page
            fresh = [page for page in state.pages if self.pool.fresh[page] >= 0]
            assert state.nbytes == pages + len(fresh) * self.pool.bytes_per_fresh + slot + points
            if self.pool.coded:
                written = range(state.length // 64, len(state.pages))
                assert {state.pages[index] for index in written} <= set(fresh)
                assert len(fresh) <= len(written) + max(1, state.pending // 64 + 1)
        held = [int(at) for at in self.pool.fresh if at >= 0]
        assert len(set(held)) == len(held) == PAGES - self.pool._fresh.free

    def cut(self, state: Any, length: int) -> int:
        """The most of the first `length` tokens that pages let a state go back to."""
        assert isinstance(state, CpuState)
        found = self.pool.cut(state.pages, length)
        assert found in (length, length - length % 64)
        assert found == length or self.pool.coded
        return found


def _widths(spec: KVState | LatentState) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(spec, LatentState):
        return (1, spec.size), (1, 0)
    return ((spec.kv_heads, spec.head_dim),) * 2


class ReferenceMemory:
    """The NumPy session's states, extended as its ops extend them."""

    def __init__(self, states: Mapping[str, StateSpec]) -> None:
        self.graph = graph_of(states)
        self.specs: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
            n: _widths(s) for n, s in states.items() if isinstance(s, KVState | LatentState)
        }

    def new(self) -> ReferenceState:
        return ReferenceState(self.graph, CONTEXT, long_rope=False)

    def feed(self, state: State, before: Sequence[int], tokens: Sequence[int]) -> None:
        assert isinstance(state, ReferenceState)
        for name, shapes in self.specs.items():
            state.kv[name] = tuple(
                np.concatenate([rows[: len(before)], vectors(tokens, shape, salt)])
                for rows, shape, salt in zip(state.kv[name], shapes, (1, 2), strict=True)
            )
        state.pending = len(tokens)

    def check(self, state: State, text: Sequence[int], fold_at: int, first: int) -> None:
        assert isinstance(state, ReferenceState)
        assert state.length == len(text)
        for name, shapes in self.specs.items():
            for rows, shape, salt in zip(state.kv[name], shapes, (1, 2), strict=True):
                assert len(rows) == len(text) + state.pending
                wanted = vectors(text, shape, salt)
                assert np.array_equal(rows[: len(text)], wanted)

    def cut(self, state: Any, length: int) -> int:
        return length

    def accounts(self, states: Sequence[Any]) -> None:
        for state in states:
            rows = state.length + state.pending
            assert state.nbytes == sum(
                4 * rows * heads * size for shapes in self.specs.values() for heads, size in shapes
            )
