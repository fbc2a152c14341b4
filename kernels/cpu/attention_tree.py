"""Query rows of a tree against one page of keys: what each row sees is its own path.

A tree's rows lie in the cache in the order of their feed, so a path's keys are scattered. They are
put in the order of their places here before the softmax, so that a row has the very bits that it
would have in a chain of its ancestors.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..simd import bcast_f32, ld_f32, ld_i32, ld_i64, load_f32, st_f32, st_i64, store_f32
from ..simd_math import fma
from .layout import PAGE
from .softmax import update, zero_scores


def tree_page(scores1: Any, load: Any, element: int) -> Any:
    """A kernel for pages whose elements have `element` bytes; scores1: one query row times a page
    (`attention_tile.py`), load: 16 elements as float32."""

    @njit(error_model="numpy")
    def page(
        q: int, table: int, pools: tuple[int, int, int, int, int], size: int, base: int,
        place: int, first: int, bits: int, window: int, cap: float, part: int, scratch: int,
    ) -> None:  # fmt: skip
        """One query row over the keys of places base .. base + 63, into its partial result.

        table: page table. pools: K pool, V pool, bytes of a K and V page, kv head.
        first: slot of the feed's first row. bits: rows of the feed that this one sees. scratch:
        scores [64], a second row [64], addresses int64 [64].
        """
        k_pool, v_pool, k_bytes, v_bytes, g = pools
        padded = (size + 15) // 16 * 16
        last = min(place - base, PAGE - 1)
        low = max(0, place - window + 1 - base) if window > 0 else 0
        if last < 0 or low >= PAGE:
            return
        scores, spare, addresses = scratch, scratch + 256, scratch + 512
        zero_scores(scores)
        held = -1
        for j in range(last + 1):
            slot = base + j
            if slot >= first:
                slot = first + _nth(bits, slot - first)
            index = slot // PAGE
            entry = ld_i32(table + 4 * index)
            if index != held:
                held = index
                k = k_pool + entry * k_bytes + g * PAGE * size * element
                scores1(q, k, size, spare)
            st_f32(scores + 4 * j, ld_f32(spare + 4 * (slot % PAGE)))
            v = v_pool + entry * v_bytes + (g * PAGE + slot % PAGE) * padded * element
            st_i64(addresses + 8 * j, v)
        update(scores, part, padded, low, last, cap)
        out = part + 64
        for d in range(0, padded, 16):
            a = load_f32(out + 4 * d)
            for j in range(last + 1):
                v = ld_i64(addresses + 8 * j)
                a = fma(load(v + d * element), bcast_f32(scores + 4 * j), a)
            store_f32(out + 4 * d, a)

    return page


@njit(error_model="numpy")
def _nth(bits: int, n: int) -> int:
    """Number of the n-th set bit, from 0."""
    row = 0
    while True:
        if (bits >> row) & 1:
            if n == 0:
                return row
            n -= 1
        row += 1
