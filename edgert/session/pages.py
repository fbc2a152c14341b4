"""Pages of keys and values: one page index for 64 tokens of a sequence, in every state of a graph.

    K page       [G][4][D][16]   groups of 16 tokens, the token is the vector lane
    V page       [G][64][DP]     DP = D rounded up to 16
    block stats  float32 [64 / block][rows][G][D]

Elements are float32, float16 or int8; an int8 page ends in float32 scales [G][64]. Pages have
reference counts: sequences with a common beginning share them, and who writes into a shared page
copies it first. The statistics of a block count once all its tokens are committed; who appends to a
block writes them from all its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, ResourceError
from ..graph import Graph
from ..kernels.cpu.layout import PAGE
from ..kernels.states import BlockStatsState, KVState
from .memory import Indices, reserve

PAGE_TOKENS = PAGE
LANES = 16

Bytes = NDArray[np.uint8]


def pages_for(tokens: int) -> int:
    """Pages that hold `tokens` tokens."""
    return -(-tokens // PAGE_TOKENS)


def page_bytes(spec: KVState, element_bytes: int) -> tuple[int, int]:
    """Bytes of a K and of a V page; elements of one byte are int8 with scales."""
    padded = -(-spec.head_dim // LANES) * LANES
    rows = spec.kv_heads * PAGE_TOKENS
    scales = 4 * rows if element_bytes == 1 else 0
    return rows * spec.head_dim * element_bytes + scales, rows * padded * element_bytes + scales


class PagePool:
    """The pages of all sequences of a session, and who holds them.

    keys, values, stats: uint8 [pages, bytes of a page] a state name, reserved as address space.
    summaries: for each block-stats state what its op offers to write a block's statistics from the
    keys of its page: called with the pool, the page and the block's number in it.
    """

    def __init__(
        self,
        graph: Graph,
        pages: int,
        element_bytes: int,
        summaries: Mapping[str, Callable[[PagePool, int, int], None]] | None = None,
    ) -> None:
        self.pages, self.element_bytes = pages, element_bytes
        self.indices = Indices(pages)
        self.summaries = dict(summaries or {})
        states = graph.states.items()
        self.specs = {name: s for name, s in states if isinstance(s, KVState)}
        self.blocks = {name: s for name, s in states if isinstance(s, BlockStatsState)}
        self.keys: dict[str, Bytes] = {}
        self.values: dict[str, Bytes] = {}
        for name, spec in self.specs.items():
            key, value = page_bytes(spec, element_bytes)
            self.keys[name] = reserve(pages * key).reshape(pages, key)
            self.values[name] = reserve(pages * value).reshape(pages, value)
        self.stats = {name: self._stat_pages(name, spec) for name, spec in self.blocks.items()}
        self._lanes, self._rows = self._token_views()

    def _stat_pages(self, name: str, spec: BlockStatsState) -> Bytes:
        if PAGE_TOKENS % spec.block or name not in self.summaries:
            raise DeviceError(
                f"state {name!r} has blocks of {spec.block} tokens and "
                f"{'a' if name in self.summaries else 'no'} function that computes their "
                f"statistics, expected one and a divisor of {PAGE_TOKENS}",
                code="state-kind",
            )
        size = PAGE_TOKENS // spec.block * spec.rows * spec.kv_heads * spec.head_dim * 4
        return reserve(self.pages * size).reshape(self.pages, size)

    def _token_views(self) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """The pools by tokens: keys [pages, G, 4, D, 16]; values and scales [pages, G, 64, ...]."""
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[self.element_bytes]
        lanes: list[NDArray[Any]] = []
        rows: list[NDArray[Any]] = []
        for name, spec in self.specs.items():
            pages, heads, size = self.pages, spec.kv_heads, spec.head_dim
            key, value = self.keys[name], self.values[name]
            if self.element_bytes == 1:
                codes = -4 * heads * PAGE_TOKENS
                for pool in (key, value):
                    scales = pool[:, codes:].view(np.float32)
                    rows.append(scales.reshape(pages, heads, PAGE_TOKENS))
                key, value = key[:, :codes], value[:, :codes]
            padded = -(-size // LANES) * LANES
            lanes.append(key.view(kind).reshape(pages, heads, PAGE_TOKENS // LANES, size, LANES))
            rows.append(value.view(kind).reshape(pages, heads, PAGE_TOKENS, padded))
        return lanes, rows

    # --- who holds what -----------------------------------------------------------------------

    def count(self, tokens: int) -> int:
        """Pages that a sequence of `tokens` tokens needs: none where no state is paged."""
        return pages_for(tokens) if self.specs or self.blocks else 0

    def take(self, count: int) -> list[int]:
        """`count` free page indices; all or none of them (ResourceError)."""
        taken = self.indices.take(count)
        if taken is None:
            raise ResourceError(
                f"{self.indices.free} of {self.pages} KV pages of {PAGE_TOKENS} tokens are free, "
                f"{count} are needed",
                code="kv-pages",
                hint="close other sequences, or give more with kv_memory (--kv-memory)",
            )
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """One more holder of each page."""
        self.indices.share(pages)

    def give(self, pages: Sequence[int]) -> None:
        """One holder less of each page. Any thread may call, finalizers included."""
        self.indices.give(pages)

    def shared(self, page: int) -> bool:
        """Whether somebody else holds the page too."""
        return self.indices.holders(page) > 1

    def writable(self, page: int) -> int:
        """The page, or where others hold it too a copy that takes its place (ResourceError where
        no page is free; then nothing has changed)."""
        if not self.shared(page):
            return page
        (copy,) = self.take(1)
        for pools in self.parts.values():
            for pool in pools.values():
                pool[copy] = pool[page]
        self.give([page])
        return copy

    # --- content ------------------------------------------------------------------------------

    @property
    def parts(self) -> dict[str, dict[str, Bytes]]:
        """All pools, as snapshots name them."""
        stats = {"stats": self.stats} if self.stats else {}
        return {"keys": self.keys, "values": self.values, **stats}

    def statistics(self, name: str) -> NDArray[np.float32]:
        """A block-stats state's pages: float32 [pages, 64 / block, rows, G, D]."""
        spec = self.blocks[name]
        blocks = PAGE_TOKENS // spec.block
        shape = (self.pages, blocks, spec.rows, spec.kv_heads, spec.head_dim)
        return self.stats[name].view(np.float32).reshape(shape)

    def move(self, table: NDArray[np.int32], source: Sequence[int], target: int) -> None:
        """Move the tokens at places `source` (rising) of a sequence to `target` and on. table:
        int32, the sequence's pages."""
        for new, old in enumerate(source, target):  # no row lands on one that is still to move
            p, q = table[old // PAGE_TOKENS], table[new // PAGE_TOKENS]
            s, t = old % PAGE_TOKENS, new % PAGE_TOKENS
            for keys in self._lanes:
                keys[q, :, t // LANES, :, t % LANES] = keys[p, :, s // LANES, :, s % LANES]
            for rows in self._rows:
                rows[q, :, t] = rows[p, :, s]

    def summarise(self, table: NDArray[np.int32], start: int, stop: int) -> None:
        """Compute the statistics of the blocks again that have tokens from `start` on and are
        complete with the first `stop` tokens."""
        for name, spec in self.blocks.items():
            for block in range(start // spec.block, stop // spec.block):
                page, inside = divmod(block * spec.block, PAGE_TOKENS)
                self.summaries[name](self, int(table[page]), inside // spec.block)

    @property
    def bytes_per_page(self) -> int:
        return sum(pool.shape[1] for pools in self.parts.values() for pool in pools.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that somebody holds."""
        return (self.pages - self.indices.free) * self.bytes_per_page
