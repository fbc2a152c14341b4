"""attention over pages of latents on the CPU: rows that are key and values at once.

    page   [64][D]   a token's row; its last D - skip channels are the values

All query heads read the same rows. What goes to a thread are groups of heads (`kv_heads` of the
instruction, which are no heads of the cache) and segments, as in `attention.py`, whose order of
arithmetic this has: a row's bits depend on nothing but the places of its keys.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..attention_lower import ATTEND
from ..simd import bcast_f32, f32, ld_i32, ld_i64, load_f16, load_f32, prefetch, st_f32, store_f32
from ..simd_math import fma, splat, sum_f32
from .attention import attended, prepare
from .attention_tree import tree_page
from .layout import PAGE, SEGMENT
from .softmax import update, zero_scores
from .vm import kernel

LINES = 64  # bytes that are asked for at once


def _scores(load: Any, element: int) -> tuple[Any, Any]:
    """Scores of four query rows and of one, by rows of keys."""

    @njit(error_model="numpy")
    def scores4(q: int, k: int, size: int, out: int, ahead: int) -> None:
        """Four query rows [4][size] times 64 keys, two at a time; float32 [4][64] to out. ahead:
        the page that follows, or 0."""
        step, row = 4 * size, size * element
        for j in range(0, PAGE, 2):
            a0 = a1 = a2 = a3 = splat(f32(0.0))
            b0 = b1 = b2 = b3 = splat(f32(0.0))
            at = k + j * row
            for line in range(0, 2 * row if ahead != 0 else 0, LINES):
                prefetch(ahead + j * row + line)
            for d in range(0, size, 16):
                x, y = load(at + d * element), load(at + row + d * element)
                p = q + 4 * d
                u = load_f32(p)
                a0, b0 = fma(x, u, a0), fma(y, u, b0)
                u = load_f32(p + step)
                a1, b1 = fma(x, u, a1), fma(y, u, b1)
                u = load_f32(p + 2 * step)
                a2, b2 = fma(x, u, a2), fma(y, u, b2)
                u = load_f32(p + 3 * step)
                a3, b3 = fma(x, u, a3), fma(y, u, b3)
            to = out + 4 * j
            st_f32(to, sum_f32(a0))
            st_f32(to + 4, sum_f32(b0))
            st_f32(to + 256, sum_f32(a1))
            st_f32(to + 260, sum_f32(b1))
            st_f32(to + 512, sum_f32(a2))
            st_f32(to + 516, sum_f32(b2))
            st_f32(to + 768, sum_f32(a3))
            st_f32(to + 772, sum_f32(b3))

    @njit(error_model="numpy")
    def scores1(q: int, k: int, size: int, out: int) -> None:
        """One query row times 64 keys; float32 [64] to out."""
        for j in range(PAGE):
            a = splat(f32(0.0))
            for d in range(0, size, 16):
                a = fma(load(k + (j * size + d) * element), load_f32(q + 4 * d), a)
            st_f32(out + 4 * j, sum_f32(a))

    return scores4, scores1


def _values(load: Any, element: int) -> Any:
    @njit(error_model="numpy")
    def values(
        w: int, rows: int, v: int, size: int, skip: int, count: int, out: int, step: int
    ) -> None:
        """Add weights [4][64] times the channels from `skip` on of `count` keys to `rows` of four
        rows of out, `step` apart."""
        for d in range(skip, size, 16):
            at = out + 4 * d
            a0, a1 = load_f32(at), load_f32(at + step)
            a2, a3 = load_f32(at + 2 * step), load_f32(at + 3 * step)
            for j in range(count):
                x = load(v + (j * size + d) * element)
                a0 = fma(x, bcast_f32(w + 4 * j), a0)
                a1 = fma(x, bcast_f32(w + 256 + 4 * j), a1)
                a2 = fma(x, bcast_f32(w + 512 + 4 * j), a2)
                a3 = fma(x, bcast_f32(w + 768 + 4 * j), a3)
            store_f32(at, a0)
            if rows > 1:
                store_f32(at + step, a1)
            if rows > 2:
                store_f32(at + 2 * step, a2)
            if rows > 3:
                store_f32(at + 3 * step, a3)

    return values


def _paged(load: Any, element: int) -> tuple[Any, Any]:
    """A function that adds a page to partial results, and the one for rows of a tree."""
    scores4, scores1 = _scores(load, element)
    values = _values(load, element)

    @njit(error_model="numpy")
    def page(
        q: int, positions: int, share: int, r0: int, rows: int, base: int, k: int, ahead: int,
        size: int, skip: int, part: int, step: int, scores: int,
    ) -> None:  # fmt: skip
        """Query rows r0 .. r0 + rows (at most four) of a tile over one page, into their partials.
        Rows past the tile's last are computed with the others and never written."""
        high = ld_i32(positions + 4 * ((r0 + rows - 1) // share))
        if base > high:
            return
        scores4(q + r0 * size * 4, k, size, scores, ahead)
        for r in range(4):
            last = ld_i32(positions + 4 * ((r0 + min(r, rows - 1)) // share)) - base
            row = scores + 256 * r
            if r >= rows or last < 0:
                zero_scores(row)
                continue
            update(row, part + (r0 + r) * step, size, 0, min(last, PAGE - 1), 0.0)
        count = min(high - base, PAGE - 1) + 1
        values(scores, rows, k, size, skip, count, part + r0 * step + 64, step)

    return page, tree_page(scores1, load, element)


def _latent(load: Any, element: int) -> Any:
    page, tree = _paged(load, element)

    @njit(error_model="numpy")
    def segment(ins: int, t0: int, n: int, g: int, which: int, part: int, scores: int) -> None:
        """n tokens' query heads of one group over one segment; partials [n][share] to part.

        scores: 1024 bytes of scratch, followed by room for the tile's queries.
        """
        share = ld_i64(ins + ATTEND.heads) // ld_i64(ins + ATTEND.kv_heads)
        size, skip = ld_i64(ins + ATTEND.size), ld_i64(ins + ATTEND.skip)
        pool, bytes_ = ld_i64(ins + ATTEND.keys), ld_i64(ins + ATTEND.k_page)
        step, rows, mine = 64 + 4 * size, n * share, scores + 1024
        prepare(ins, t0, n, g, part, mine)
        table = ld_i64(ld_i64(ins + ATTEND.tables) + 8 * t0)
        positions = ld_i64(ins + ATTEND.places) + 4 * t0
        visible = ld_i64(ins + ATTEND.visible) + 16 * t0
        first = which * SEGMENT
        if ld_i64(visible) != -1:
            pools = (pool, pool, bytes_, bytes_, 0)
            for r in range(rows):
                place, seen = ld_i32(positions + 4 * (r // share)), visible + 16 * (r // share)
                for index in range(first, first + SEGMENT):
                    tree(
                        mine + r * size * 4, table, pools, size, index * PAGE, place,
                        ld_i64(seen + 8), ld_i64(seen), 0, 0.0, part + r * step, scores,
                    )  # fmt: skip
            return
        newest = ld_i32(positions + 4 * (n - 1))
        for index in range(first, min(first + SEGMENT, newest // PAGE + 1)):
            k = ahead = pool + ld_i32(table + 4 * index) * bytes_
            if (index + 1) * PAGE <= newest:
                ahead = pool + ld_i32(table + 4 * index + 4) * bytes_
            for r0 in range(0, rows, 4):
                page(
                    mine, positions, share, r0, min(4, rows - r0), index * PAGE, k, ahead, size,
                    skip, part, step, scores,
                )  # fmt: skip
                ahead = 0

    return segment


@njit(error_model="numpy")
def _room(size: int) -> int:
    return 1024


_f32 = attended(_latent(load_f32, 4), _room)
_f16 = attended(_latent(load_f16, 2), _room)


@kernel
def attend_latent_f32(ins: int, thread: int, threads: int) -> None:
    """Softmax attention of this step's rows over float32 pages of latents."""
    _f32(ins, thread, threads)


@kernel
def attend_latent_f16(ins: int, thread: int, threads: int) -> None:
    """Softmax attention of this step's rows over float16 pages of latents."""
    _f16(ins, thread, threads)
