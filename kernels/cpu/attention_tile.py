"""Query rows against one page of keys and values: the inner loops of attention, by element type.

Page layouts are in `attention.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import njit

from ..simd import bcast_f32, f32, load_f16, load_f32, prefetch, store_f32
from ..simd_math import fma, splat
from ..simd_page_tiles import HAS_PAGE_TILES, score_tile, value_tile


@cache
def key_products(load: Any, element: int) -> tuple[Any, Any]:
    """Scores of up to SPAN rows (`_several_scores`) and of one, for one cache element type: load
    widens 16 elements of `element` bytes."""

    @njit(error_model="numpy")
    def scores4(
        q: int, step: int, rows: int, k: int, size: int, out: int, next_k: int, next_v: int
    ) -> None:
        """Four query rows, `step` bytes apart, times 64 keys; float32 [4][64] to out. rows: how
        many of them are wanted.

        next_k, next_v: the page that follows, asked for on the way (pages of one head lie apart,
        so the hardware's prefetchers lose the stream at each).
        """
        for c in range(4):
            ahead = (next_k if c < 2 else next_v) + (c % 2) * size * 64
            a0 = a1 = a2 = a3 = splat(f32(0.0))
            at = k + c * size * 16 * element
            for d in range(size):
                prefetch(ahead + 64 * d)
                key = load(at + d * 16 * element)
                a0 = fma(key, bcast_f32(q + 4 * d), a0)
                a1 = fma(key, bcast_f32(q + step + 4 * d), a1)
                a2 = fma(key, bcast_f32(q + 2 * step + 4 * d), a2)
                a3 = fma(key, bcast_f32(q + 3 * step + 4 * d), a3)
            store_f32(out + 64 * c, a0)
            store_f32(out + 256 + 64 * c, a1)
            store_f32(out + 512 + 64 * c, a2)
            store_f32(out + 768 + 64 * c, a3)

    @njit(error_model="numpy")
    def scores1(q: int, k: int, size: int, out: int) -> None:
        """One query row times 64 keys; float32 [64] to out."""
        a0 = a1 = a2 = a3 = splat(f32(0.0))
        step = size * 16 * element
        for d in range(size):
            x, at = bcast_f32(q + 4 * d), k + d * 16 * element
            a0 = fma(load(at), x, a0)
            a1 = fma(load(at + step), x, a1)
            a2 = fma(load(at + 2 * step), x, a2)
            a3 = fma(load(at + 3 * step), x, a3)
        store_f32(out, a0)
        store_f32(out + 64, a1)
        store_f32(out + 128, a2)
        store_f32(out + 192, a3)

    return _several_scores(load is load_f16) if HAS_PAGE_TILES else scores4, scores1


def _several_scores(half: bool) -> Any:
    """`scores4` for up to eight rows; those past `rows` that it writes are of no use."""
    one, two = score_tile(1, 4, half=half), score_tile(2, 4, half=half)
    four, six, eight = (score_tile(rows, 2, half=half) for rows in (4, 6, 8))
    element = 2 if half else 4

    @njit(error_model="numpy")
    def scores(
        q: int, step: int, rows: int, k: int, size: int, out: int, next_k: int, next_v: int
    ) -> None:
        if rows <= 2:
            if rows == 1:
                one(q, step, k, size, out, next_k, next_v)
            else:
                two(q, step, k, size, out, next_k, next_v)
            return
        for c in range(2):
            keys, to, ahead = k + c * size * 32 * element, out + 128 * c, c * size * 64
            if rows <= 4:
                four(q, step, keys, size, to, next_k + ahead, next_v + ahead)
            elif rows <= 6:
                six(q, step, keys, size, to, next_k + ahead, next_v + ahead)
            else:
                eight(q, step, keys, size, to, next_k + ahead, next_v + ahead)

    return scores


@cache
def value_products(load: Any, element: int) -> tuple[Any, Any]:
    """Weighted sums of up to SPAN rows and of one, as `key_products`."""

    @njit(error_model="numpy")
    def strip(w: int, v: int, padded: int, d: int, count: int, out: int) -> None:
        """16 columns of one row: out += weights [count] times values, keys in order."""
        a = load_f32(out + 4 * d)
        for j in range(count):
            a = fma(load(v + (j * padded + d) * element), bcast_f32(w + 4 * j), a)
        store_f32(out + 4 * d, a)

    @njit(error_model="numpy")
    def values4(w: int, v: int, rows: int, padded: int, count: int, out: int, step: int) -> None:
        """Add weights [4][64] times values [count][padded] to four rows of out, `step` apart.
        rows: how many of them are wanted."""
        for d in range(0, padded - 31, 32):
            at = out + 4 * d
            a0, b0 = load_f32(at), load_f32(at + 64)
            a1, b1 = load_f32(at + step), load_f32(at + step + 64)
            a2, b2 = load_f32(at + 2 * step), load_f32(at + 2 * step + 64)
            a3, b3 = load_f32(at + 3 * step), load_f32(at + 3 * step + 64)
            for j in range(count):
                p = v + (j * padded + d) * element
                x, y = load(p), load(p + 16 * element)
                w0, w1 = bcast_f32(w + 4 * j), bcast_f32(w + 256 + 4 * j)
                w2, w3 = bcast_f32(w + 512 + 4 * j), bcast_f32(w + 768 + 4 * j)
                a0, b0 = fma(x, w0, a0), fma(y, w0, b0)
                a1, b1 = fma(x, w1, a1), fma(y, w1, b1)
                a2, b2 = fma(x, w2, a2), fma(y, w2, b2)
                a3, b3 = fma(x, w3, a3), fma(y, w3, b3)
            store_f32(at, a0)
            store_f32(at + 64, b0)
            store_f32(at + step, a1)
            store_f32(at + step + 64, b1)
            store_f32(at + 2 * step, a2)
            store_f32(at + 2 * step + 64, b2)
            store_f32(at + 3 * step, a3)
            store_f32(at + 3 * step + 64, b3)
        if padded % 32:
            for r in range(4):
                strip(w + 256 * r, v, padded, padded - 16, count, out + r * step)

    @njit(error_model="numpy")
    def values1(w: int, v: int, padded: int, count: int, out: int) -> None:
        """One row of `values4`."""
        for d in range(0, padded, 16):
            strip(w, v, padded, d, count, out)

    return _several_values(load is load_f16) if HAS_PAGE_TILES else (values4, values1)


def _several_values(half: bool) -> tuple[Any, Any]:
    """`values4` for up to eight rows, and `values1`."""
    one, two, four = (value_tile(rows, 4, half=half) for rows in (1, 2, 4))
    six, eight = value_tile(6, 2, half=half), value_tile(8, 2, half=half)
    one_strip, two_strip, four_strip = (value_tile(rows, 1, half=half) for rows in (1, 2, 4))
    six_strip, eight_strip = value_tile(6, 1, half=half), value_tile(8, 1, half=half)
    element = 2 if half else 4

    @njit(error_model="numpy")
    def wide(w: int, v: int, rows: int, padded: int, count: int, out: int, step: int) -> int:
        """The columns that fill tiles; returns where the others begin."""
        apart, tile = padded * element, 64 if rows <= 4 else 32
        for d in range(0, padded - tile + 1, tile):
            at, to = v + d * element, out + 4 * d
            if rows == 1:
                one(w, at, apart, count, to, step)
            elif rows <= 2:
                two(w, at, apart, count, to, step)
            elif rows <= 4:
                four(w, at, apart, count, to, step)
            elif rows <= 6:
                six(w, at, apart, count, to, step)
            else:
                eight(w, at, apart, count, to, step)
        return padded - padded % tile

    @njit(error_model="numpy")
    def values(w: int, v: int, rows: int, padded: int, count: int, out: int, step: int) -> None:
        apart = padded * element
        for d in range(wide(w, v, rows, padded, count, out, step), padded, 16):
            at, to = v + d * element, out + 4 * d
            if rows == 1:
                one_strip(w, at, apart, count, to, step)
            elif rows <= 2:
                two_strip(w, at, apart, count, to, step)
            elif rows <= 4:
                four_strip(w, at, apart, count, to, step)
            elif rows <= 6:
                six_strip(w, at, apart, count, to, step)
            else:
                eight_strip(w, at, apart, count, to, step)

    @njit(error_model="numpy")
    def values1(w: int, v: int, padded: int, count: int, out: int) -> None:
        values(w, v, 1, padded, count, out, 0)

    return values, values1
