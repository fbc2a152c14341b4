"""Tiles of quantized products by two groups of outputs, where registers hold eight tokens of them.

A value has the bits that the row kernels of `linear.py` give it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..simd_code_tiles import HAS_CODE_TILES, TALL, WIDE, code_tile, few_tile
from .layout import TILE

MORE = 2 * TALL  # tokens up to which weights are asked for before they are read


def few_tiles(bits: int, block_bytes: int, far: int) -> Any:
    """A function (w, blocks, x, scales, n, rows, acc, past), float32 [WIDE][TILE][16] to acc, for 1
    to 8 tokens of a tile of n: x and scales are the first one's. Two groups at once while registers
    hold their sums. far: bytes between a single group's weights and what is asked for; of two it is
    the next two."""
    one, two, three, four = (few_tile(bits, tall, WIDE) for tall in (1, 2, 3, 4))
    five, six, seven, eight = (few_tile(bits, tall, 1) for tall in (5, 6, 7, 8))

    @njit(error_model="numpy")
    def few(
        w: int, blocks: int, x: int, scales: int, n: int, rows: int, acc: int, past: int
    ) -> None:
        apart = blocks * block_bytes
        ahead, each = WIDE * apart, 64 * TILE
        if rows == 1:
            one(w, apart, blocks, x, scales, n, acc, each, ahead, past)
            return
        if rows == 2:
            two(w, apart, blocks, x, scales, n, acc, each, ahead, past)
            return
        if rows == 3:
            three(w, apart, blocks, x, scales, n, acc, each, ahead, past)
            return
        if rows == 4:
            four(w, apart, blocks, x, scales, n, acc, each, ahead, past)
            return
        for g in range(WIDE):
            wg, out = w + g * apart, acc + 64 * TILE * g
            if rows == 5:
                five(wg, 0, blocks, x, scales, n, out, 0, far, past)
            elif rows == 6:
                six(wg, 0, blocks, x, scales, n, out, 0, far, past)
            elif rows == 7:
                seven(wg, 0, blocks, x, scales, n, out, 0, far, past)
            else:
                eight(wg, 0, blocks, x, scales, n, out, 0, far, past)

    return few


def wide_tile(bits: int, tile: Any, block_bytes: int, far: int) -> Any:
    """`tile` for WIDE groups: (w, blocks, x, n, acc, past), float32 [WIDE][TILE][16] to acc.

    tile: the kernel of one group, see `tile_int4` in `linear.py`. bits: of a code, 4 or 8. far: as
    `few_tiles` has it.
    """

    @njit(error_model="numpy")
    def each(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
        for g in range(WIDE):
            tile(w + g * blocks * block_bytes, blocks, x, n, acc + 64 * TILE * g, past)

    if not HAS_CODE_TILES:
        return each
    inner, few = code_tile(bits), few_tiles(bits, block_bytes, far)

    @njit(error_model="numpy")
    def wide(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
        if n == 1:
            each(w, blocks, x, n, acc, past)
            return
        scales = x + blocks * n * 32
        for t in range(0, n, TALL):
            rows, at = min(TALL, n - t), acc + 64 * t
            if n <= MORE or rows < TALL:
                few(w, blocks, x + 32 * t, scales + 4 * t, n, rows, at, past)
            else:
                inner(w, blocks * block_bytes, blocks, x + 32 * t, scales + 4 * t, n, at, 64 * TILE)

    return wide
