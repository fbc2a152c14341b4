"""KV pages of the CPU session: one pool of pages for all sequences, a page table a sequence.

A page holds 64 tokens of one sequence in every state of the graph, so one table serves all layers.
Pools are reserved as address space and take real memory page by page as sequences grow.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, ResourceError
from ..graph import Graph
from ..kernels.cpu.layout import PAGE
from ..kernels.states import KVState
from .base import State
from .memory import reserve

PAGE_TOKENS = PAGE


def page_bytes(spec: KVState, wide: int) -> tuple[int, int]:
    """Bytes of a K and of a V page; `wide` is the bytes of an element (1: int8 with scales)."""
    padded = -(-spec.head_dim // 16) * 16
    rows = spec.kv_heads * PAGE_TOKENS
    scales = 4 * rows if wide == 1 else 0
    return rows * spec.head_dim * wide + scales, rows * padded * wide + scales


class PagePool:
    """K and V pools of every state, and which page indices are free."""

    def __init__(self, graph: Graph, pages: int, wide: int) -> None:
        self.wide, self.pages = wide, pages
        self.specs = {n: s for n, s in graph.states.items() if isinstance(s, KVState)}
        self.free = list(range(pages - 1, -1, -1))
        self.keys: dict[str, NDArray[np.uint8]] = {}
        self.values: dict[str, NDArray[np.uint8]] = {}
        for name, spec in self.specs.items():
            key, value = page_bytes(spec, wide)
            self.keys[name] = reserve(pages * key).reshape(pages, key)
            self.values[name] = reserve(pages * value).reshape(pages, value)

    @property
    def bytes_per_page(self) -> int:
        return sum(sum(page_bytes(spec, self.wide)) for spec in self.specs.values())

    def take(self, count: int) -> list[int]:
        """`count` free page indices; all or none of them."""
        if count > len(self.free):
            raise ResourceError(
                f"{len(self.free)} of {self.pages} KV pages of {PAGE_TOKENS} tokens are free, "
                f"{count} are needed",
                code="kv-pages",
                hint="close other conversations, or load with a larger ctx_size",
            )
        return [self.free.pop() for _ in range(count)]

    def give(self, pages: list[int]) -> None:
        self.free.extend(pages)


class CpuState(State):
    """One sequence's pages. `table` is what kernels read: int32, one entry for 64 tokens.

    The pages go back to the pool at `close`, or when the state is dropped without one.
    """

    def __init__(self, pool: PagePool, context: int, fingerprint: str, *, long_rope: bool) -> None:
        super().__init__(context)
        self.pool, self.fingerprint, self.long_rope = pool, fingerprint, long_rope
        self.pages: list[int] = []  # changed in place only: the finalizer holds this list
        weakref.finalize(self, pool.give, self.pages).atexit = False
        self.table = np.zeros(-(-context // PAGE_TOKENS), np.int32)
        self.closed = False

    def reserve(self, tokens: int) -> None:
        """Have pages for the first `tokens` tokens. Raises ResourceError and takes none where
        the pool has too few."""
        if self.closed:
            raise RequestError("this state is closed", code="state-closed")
        held, wanted = len(self.pages), -(-tokens // PAGE_TOKENS)
        if wanted > held:
            self.pages += self.pool.take(wanted - held)
            self.table[held:wanted] = self.pages[held:]

    def _release(self, keep: int) -> None:
        count = -(-keep // PAGE_TOKENS)
        self.pool.give(self.pages[count:])
        del self.pages[count:]

    def _shrink(self) -> None:
        self._release(self.length)

    def fork(self) -> CpuState:
        raise NotImplementedError

    def _become(self, length: int) -> None:
        """Hold `length` tokens' pages and no more, whatever was held before. All or nothing."""
        self.reserve(length)
        self._release(length)
        self.length, self.pending = length, 0

    def snapshot(self) -> dict[str, Any]:
        pages = self.pages[: -(-self.length // PAGE_TOKENS)]
        pool = self.pool
        return {
            "fingerprint": self.fingerprint,
            "length": self.length,
            "long_rope": self.long_rope,
            "keys": {name: pool.keys[name][pages].copy() for name in pool.specs},
            "values": {name: pool.values[name][pages].copy() for name in pool.specs},
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        self._check(snapshot)
        self._become(snapshot["length"])
        for name in self.pool.specs:
            self.pool.keys[name][self.pages] = snapshot["keys"][name]
            self.pool.values[name][self.pages] = snapshot["values"][name]
        self.long_rope = snapshot["long_rope"]

    def _check(self, snapshot: Mapping[str, Any]) -> None:
        found = snapshot.get("fingerprint")
        if found != self.fingerprint:
            raise RequestError(
                f"the snapshot belongs to model {found!r}, this is {self.fingerprint!r}",
                code="snapshot",
                hint="restore snapshots only into sessions of the same bundle and KV format",
            )
        length = snapshot.get("length")
        if not isinstance(length, int) or not 0 <= length <= self.context:
            raise RequestError(
                f"the snapshot holds {length!r} tokens, this state takes 0 to {self.context}",
                code="snapshot",
            )
        if not isinstance(snapshot.get("long_rope"), bool):
            raise RequestError("the snapshot does not tell its rotary factors", code="snapshot")
        count = -(-length // PAGE_TOKENS)
        for part, pools in (("keys", self.pool.keys), ("values", self.pool.values)):
            arrays = snapshot.get(part)
            for name, array in pools.items():
                expected = (count, array.shape[1])
                got = arrays.get(name) if isinstance(arrays, Mapping) else None
                if (
                    not isinstance(got, np.ndarray)
                    or got.shape != expected
                    or got.dtype != np.uint8
                ):
                    raise RequestError(
                        f"the snapshot's {part} of {name!r} are damaged, expected uint8 {expected}",
                        code="snapshot",
                    )

    @property
    def nbytes(self) -> int:
        return len(self.pages) * self.pool.bytes_per_page

    def close(self) -> None:
        if not self.closed:
            self._release(0)
            self.length = self.pending = 0
            self.closed = True
