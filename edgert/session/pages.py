"""Pages of keys and values: one page index for 64 tokens of a sequence, in every state of a graph.

    K page       [G][4][D][16]   groups of 16 tokens, the token is the vector lane
    V page       [G][64][DP]     DP = D rounded up to 16
    latents      [64][D]         one row of a token, in place of a K page; no V page
    block stats  float32 [64 / block][rows][G][D]

Elements are float32 or float16, or pages are coded (`kernels/kv_codes.py`). Pages have reference
counts: sequences with a common beginning share them, and who writes into a shared page copies it
first. The statistics of a block count once all its tokens are committed; who appends to a block
writes them from all its keys.

Tokens of coded pages are written to a page of float16, its fresh one, and coded when the page is
full. A fresh page goes back once nobody can take the page's tokens back any more: the last full
page of a sequence keeps its own, so that it can be cut; others end where a page does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, ResourceError
from ..graph import Graph
from ..kernels.cpu.layout import PAGE
from ..kernels.kv_codes import CODED, key_page, page_sizes, value_page
from ..kernels.states import BlockStatsState, KVState, LatentState
from .memory import Indices, reserve

PAGE_TOKENS = PAGE
LANES = 16
FRESH_BITS = 16  # of the pages that tokens of coded pages are written to

Bytes = NDArray[np.uint8]


def pages_for(tokens: int) -> int:
    """Pages that hold `tokens` tokens."""
    return -(-tokens // PAGE_TOKENS)


def page_bytes(spec: KVState | LatentState, bits: int) -> tuple[int, int]:
    """Bytes of a K and of a V page of a cache of `bits` bits: 32, 16, or 8 and 4 in codes, which
    latents have none of."""
    if isinstance(spec, LatentState):
        return PAGE_TOKENS * spec.size * bits // 8, 0
    if bits in CODED:
        return page_sizes(spec.kv_heads, spec.head_dim, bits)
    padded = -(-spec.head_dim // LANES) * LANES
    rows = spec.kv_heads * PAGE_TOKENS
    return rows * spec.head_dim * bits // 8, rows * padded * bits // 8


class PagePool:
    """The pages of all sequences of a session, and who holds them.

    keys, values, stats: uint8 [pages, bytes of a page] a state name, reserved as address space.
    fresh: int32 [pages], of coded pages the index of the fresh one in fresh_keys and fresh_values,
    -1 for none. summaries: for each block-stats state what its op offers to write a block's
    statistics from the keys of its page: called with the pool, the page and the block's number.
    """

    def __init__(
        self,
        graph: Graph,
        pages: int,
        bits: int,
        summaries: Mapping[str, Callable[[PagePool, int, int], None]] | None = None,
    ) -> None:
        self.pages, self.bits = pages, bits
        self.indices = Indices(pages, self._freed)
        self.summaries = dict(summaries or {})
        states = graph.states.items()
        self.specs = {name: s for name, s in states if isinstance(s, KVState | LatentState)}
        self.blocks = {name: s for name, s in states if isinstance(s, BlockStatsState)}
        self.coded = bits in CODED and bool(self.specs)
        self.keys, self.values = self._reserved(bits)
        self.fresh_keys, self.fresh_values = self._reserved(FRESH_BITS if self.coded else 0)
        self.fresh = np.full(pages, -1, np.int32)
        self._fresh = Indices(pages)
        self.stats = {name: self._stat_pages(name, spec) for name, spec in self.blocks.items()}
        self._lanes, self._rows = self._token_views()

    def _reserved(self, bits: int) -> tuple[dict[str, Bytes], dict[str, Bytes]]:
        """K and V pages of every state; none for 0 bits."""
        keys, values = dict[str, Bytes](), dict[str, Bytes]()
        for name, spec in self.specs.items() if bits else ():
            key, value = page_bytes(spec, bits)
            keys[name] = reserve(self.pages * key).reshape(self.pages, key)
            if value:
                values[name] = reserve(self.pages * value).reshape(self.pages, value)
        return keys, values

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
        """The pages that are written by tokens: keys [pages, G, 4, D, 16], values [pages, G, 64,
        DP]."""
        wide = np.uint32 if self.bits == 32 else np.uint16
        lanes: list[NDArray[Any]] = []
        rows: list[NDArray[Any]] = []
        for name, spec in self.specs.items():
            if isinstance(spec, LatentState):
                rows.append(self.keys[name].view(wide).reshape(self.pages, 1, PAGE_TOKENS, -1))
                continue
            pages, heads, size = self.pages, spec.kv_heads, spec.head_dim
            key = (self.fresh_keys if self.coded else self.keys)[name]
            value = (self.fresh_values if self.coded else self.values)[name]
            padded = -(-size // LANES) * LANES
            lanes.append(key.view(wide).reshape(pages, heads, PAGE_TOKENS // LANES, size, LANES))
            rows.append(value.view(wide).reshape(pages, heads, PAGE_TOKENS, padded))
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
        for page in taken if self.coded else ():
            self.open(page)
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
        for pool in self.fresh_pools.values() if self.fresh[page] >= 0 else ():
            pool[self.fresh[copy]] = pool[self.fresh[page]]
        self.give([page])
        return copy

    # --- coded pages --------------------------------------------------------------------------

    def open(self, page: int) -> None:
        """Have a fresh page for a coded one: there are as many."""
        if self.fresh[page] < 0:
            taken = self._fresh.take(1)
            if taken is None:
                raise RuntimeError(f"{self.pages} pages have more fresh ones")
            self.fresh[page] = taken[0]

    def seal(self, page: int) -> None:
        """Give the fresh page of a full one back."""
        if self.fresh[page] >= 0:
            self._freed(page)

    def _freed(self, page: int) -> None:
        if self.fresh[page] >= 0:
            self._fresh.give([int(self.fresh[page])])
            self.fresh[page] = -1

    def cut(self, pages: Sequence[int], length: int) -> int:
        """The most of a sequence's first `length` tokens that it can go on from: inside a coded
        page only where that still has its fresh one and nobody else counts on the codes."""
        page, inside = divmod(length, PAGE_TOKENS)
        if not self.coded or not inside:
            return length
        open_ = self.fresh[pages[page]] >= 0 and not self.shared(pages[page])
        return length if open_ else page * PAGE_TOKENS

    def code(self, page: int) -> None:
        """Code a full page as the kernels do."""
        at = int(self.fresh[page])
        specs = [(name, spec) for name, spec in self.specs.items() if isinstance(spec, KVState)]
        for (name, spec), lanes, rows in zip(specs, self._lanes, self._rows, strict=True):
            keys = lanes[at].view(np.float16).transpose(1, 3, 0, 2)  # [4, 16, G, D]
            keys = keys.reshape(PAGE_TOKENS, spec.kv_heads, spec.head_dim).astype(np.float32)
            values = rows[at].view(np.float16)[..., : spec.head_dim].transpose(1, 0, 2)
            self.keys[name][page] = key_page(keys)
            self.values[name][page] = value_page(values.astype(np.float32), CODED[self.bits])

    @property
    def fresh_pools(self) -> dict[str, Bytes]:
        """Fresh pages, as snapshots name them."""
        parts = {"keys": self.fresh_keys, "values": self.fresh_values}
        return {f"{part}:{n}": pool for part, pools in parts.items() for n, pool in pools.items()}

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
        held = self.fresh[table] if self.coded else table
        for new, old in enumerate(source, target):  # no row lands on one that is still to move
            p, q = held[old // PAGE_TOKENS], held[new // PAGE_TOKENS]
            s, t = old % PAGE_TOKENS, new % PAGE_TOKENS
            for keys in self._lanes:
                keys[q, :, t // LANES, :, t % LANES] = keys[p, :, s // LANES, :, s % LANES]
            for rows in self._rows:
                rows[q, :, t] = rows[p, :, s]
        last = target + len(source)
        for full in range(target // PAGE_TOKENS, last // PAGE_TOKENS) if self.coded else ():
            self.code(int(table[full]))

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
    def bytes_per_fresh(self) -> int:
        return sum(pool.shape[1] for pool in self.fresh_pools.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that somebody holds."""
        held = (self.pages - self.indices.free) * self.bytes_per_page
        return held + (self.pages - self._fresh.free) * self.bytes_per_fresh
