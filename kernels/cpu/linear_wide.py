"""Tiles of quantized products by two groups of outputs, where registers hold eight tokens of them.

A value has the bits that the row kernels of `linear.py` give it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..simd_code_tiles import HAS_CODE_TILES, TALL, WIDE, code_tile
from .layout import TILE


def wide_tile(bits: int, tile: Any, block_bytes: int, few: int) -> Any:
    """`tile` for WIDE groups: (w, blocks, x, n, acc, past), float32 [WIDE][TILE][16] to acc.

    tile: the kernel of one group, see `tile_int4` in `linear.py`. Up to `few` tokens are its own
    where weights come from memory anyway. bits: of a code, 4 or 8.
    """
    inner = code_tile(bits) if HAS_CODE_TILES else None

    @njit(error_model="numpy")
    def each(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
        for g in range(WIDE):
            tile(w + g * blocks * block_bytes, blocks, x, n, acc + 64 * TILE * g, past)

    if inner is None:
        return each

    @njit(error_model="numpy")
    def wide(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
        if n <= few:
            each(w, blocks, x, n, acc, past)
            return
        scales = x + blocks * n * 32
        for start in range(0, n, TALL):
            t = min(start, n - TALL)  # the last ones overlap, with the same bits
            inner(
                w, blocks * block_bytes, blocks, x + 32 * t, scales + 4 * t, n, acc + 64 * t,
                64 * TILE,
            )  # fmt: skip

    return wide
