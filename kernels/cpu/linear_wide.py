"""Tiles of quantized products by two groups of outputs, where registers hold eight tokens of them.

A value has the bits that the row kernels of `linear.py` give it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..simd_code_tiles import HAS_CODE_TILES, TALL, WIDE, code_tile, few_tile
from .layout import TILE


def few_tiles(bits: int, block_bytes: int, far: int) -> Any:
    """A function (w, blocks, x, n, acc, past), float32 [WIDE][TILE][16] to acc, for 2 to 8 tokens.
    Two groups at once while registers hold their sums. far: bytes between a single group's weights
    and what is asked for; of two it is the next two."""
    two, three, four = (few_tile(bits, tall, WIDE) for tall in (2, 3, 4))
    five, six, seven, eight = (few_tile(bits, tall, 1) for tall in (5, 6, 7, 8))

    @njit(error_model="numpy")
    def few(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
        apart = blocks * block_bytes
        ahead = WIDE * apart
        if n == 2:
            two(w, apart, blocks, x, acc, 64 * TILE, ahead, past)
            return
        if n == 3:
            three(w, apart, blocks, x, acc, 64 * TILE, ahead, past)
            return
        if n == 4:
            four(w, apart, blocks, x, acc, 64 * TILE, ahead, past)
            return
        for g in range(WIDE):
            wg, out = w + g * apart, acc + 64 * TILE * g
            if n == 5:
                five(wg, 0, blocks, x, out, 0, far, past)
            elif n == 6:
                six(wg, 0, blocks, x, out, 0, far, past)
            elif n == 7:
                seven(wg, 0, blocks, x, out, 0, far, past)
            else:
                eight(wg, 0, blocks, x, out, 0, far, past)

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
        if n <= TALL:
            few(w, blocks, x, n, acc, past)
            return
        scales = x + blocks * n * 32
        for start in range(0, n, TALL):
            t = min(start, n - TALL)  # the last ones overlap, with the same bits
            inner(
                w, blocks * block_bytes, blocks, x + 32 * t, scales + 4 * t, n, acc + 64 * t,
                64 * TILE,
            )  # fmt: skip

    return wide
