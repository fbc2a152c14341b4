"""attention on the CPU: online softmax over pages of 64 tokens, after `append` stored them.

Pages of one state, one page index for 64 tokens of one sequence, float32 or float16 elements:

    K page   [G][4][D][16]   groups of 16 tokens, the token is the vector lane
    V page   [G][64][DP]     DP = D rounded up to 16

Pages of codes are read by `attention_codes.py`, which has all but the products from here.

The order of arithmetic is fixed by absolute positions: pages of 64 keys with an online softmax
inside a segment of 4 pages, segments merged in order. Scores of masked keys are -1e30, whose
weight is exactly zero. So a row's bits do not depend on its neighbours, the chunk, or the threads.

There is a kernel for each element type, so that a model compiles the one it uses.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..attention_lower import ATTEND
from ..simd import (
    atomic_add,
    atomic_store,
    ld_f32,
    ld_i32,
    ld_i64,
    load_f16,
    load_f32,
    st_f32,
)
from ..simd_page_tiles import HAS_PAGE_TILES, SPAN
from .attention_tile import key_products, value_products
from .attention_tree import tree_page
from .layout import PAGE, SEGMENT, TILE_TOKENS
from .softmax import add_sink, clear, finish, merge, update, zero_scores
from .vm import claim, kernel


def paged(load: Any, element: int, scores: Any, scores1: Any, *, own: bool = False) -> Any:
    """A function that adds a page to partial results. own: for rows that stand in the page alone;
    others get nothing of it."""
    values, values1 = value_products(load, element)

    @njit(error_model="numpy")
    def page(
        q: int, positions: int, share: int, r0: int, rows: int, base: int, window: int, k: int,
        v: int, size: int, cap: float, part: int, step: int, room: int, next_k: int, next_v: int,
    ) -> None:  # fmt: skip
        """Query rows r0 .. r0 + rows (at most SPAN) of a tile over one page, into their partials.

        q float32 [n * share, D]; row r is token r // share. Rows past the tile's last are computed
        with the others and never read. room: 256 bytes of scratch a row.
        """
        padded = (size + 15) // 16 * 16
        low = ld_i32(positions + 4 * (r0 // share))
        high = ld_i32(positions + 4 * ((r0 + rows - 1) // share))
        if base > high or (window > 0 and base + PAGE <= low - window + 1):
            return
        mine = q + r0 * size * 4
        if rows > 1 or HAS_PAGE_TILES:
            scores(mine, size * 4, rows, k, size, room, next_k, next_v)
        else:
            scores1(mine, k, size, room)
        for r in range(rows):
            position = ld_i32(positions + 4 * ((r0 + r) // share))
            last = min(position - base, PAGE - 1)
            first = max(0, position - window + 1 - base) if window > 0 else 0
            row = room + 256 * r
            if last < 0 or first >= PAGE or (own and position - base >= PAGE):
                zero_scores(row)
                continue
            update(row, part + (r0 + r) * step, padded, first, last, cap)
        count = min(high - base, PAGE - 1) + 1
        out = part + r0 * step + 64
        if rows > 1:
            values(room, v, rows, padded, count, out, step)
        else:
            values1(room, v, padded, count, out)

    return page


@njit(error_model="numpy")
def prepare(ins: int, t0: int, n: int, g: int, part: int, mine: int) -> None:
    """Clear the partial results [n][share] of n tokens' query heads of a kv head, and put the
    queries [n * share][D] to mine."""
    q, stride = ld_i64(ins + ATTEND.q), ld_i64(ins + ATTEND.q_stride)
    share = ld_i64(ins + ATTEND.heads) // ld_i64(ins + ATTEND.kv_heads)
    size = ld_i64(ins + ATTEND.size)
    padded = (size + 15) // 16 * 16
    for r in range(n * share):
        clear(part + r * (64 + 4 * padded), padded)
    for r in range(n * share):
        at = q + (t0 + r // share) * stride + (g * share + r % share) * size * 4
        for d in range(size):
            st_f32(mine + (r * size + d) * 4, ld_f32(at + 4 * d))


@njit(error_model="numpy")
def _room(size: int) -> int:
    """Scores of SPAN rows, and what a tree's row needs."""
    return 256 * SPAN


def _segmented(page: Any, tree: Any, element: int) -> Any:
    @njit(error_model="numpy")
    def segment(ins: int, t0: int, n: int, g: int, which: int, part: int, scores: int) -> None:
        """n tokens' query heads of one kv head over one segment; partials [n][share] to part.

        scores: `_room` bytes of scratch, followed by room for the tile's queries.
        """
        heads, groups = ld_i64(ins + ATTEND.heads), ld_i64(ins + ATTEND.kv_heads)
        size = ld_i64(ins + ATTEND.size)
        window, cap = ld_i64(ins + ATTEND.window), ld_f32(ins + ATTEND.softcap)
        k_pool, v_pool = ld_i64(ins + ATTEND.keys), ld_i64(ins + ATTEND.values)
        k_page, v_page = ld_i64(ins + ATTEND.k_page), ld_i64(ins + ATTEND.v_page)
        share, padded = heads // groups, (size + 15) // 16 * 16
        step, rows = 64 + 4 * padded, n * share
        mine = scores + _room(size)
        prepare(ins, t0, n, g, part, mine)
        table = ld_i64(ld_i64(ins + ATTEND.tables) + 8 * t0)
        positions = ld_i64(ins + ATTEND.places) + 4 * t0
        visible = ld_i64(ins + ATTEND.visible) + 16 * t0
        if ld_i64(visible) != -1:
            pools = (k_pool, v_pool, k_page, v_page, g)
            for r in range(rows):
                place, seen = ld_i32(positions + 4 * (r // share)), visible + 16 * (r // share)
                for index in range(which * SEGMENT, (which + 1) * SEGMENT):
                    tree(
                        mine + r * size * 4, table, pools, size, index * PAGE, place,
                        ld_i64(seen + 8), ld_i64(seen), window, cap, part + r * step, scores,
                    )  # fmt: skip
            return
        newest, oldest = ld_i32(positions + 4 * (n - 1)), ld_i32(positions)
        start = max(which * SEGMENT, max(0, oldest - window + 1) // PAGE if window > 0 else 0)
        for index in range(start, min((which + 1) * SEGMENT, newest // PAGE + 1)):
            entry = ld_i32(table + 4 * index)
            k = k_pool + entry * k_page + g * PAGE * size * element
            v = v_pool + entry * v_page + g * PAGE * padded * element
            # asked for on the way: the page behind, or the next head's first one
            behind, head = index + 1, g
            if behind * PAGE > newest:
                behind, head = start, min(g + 1, groups - 1)
            entry = ld_i32(table + 4 * behind)
            next_k = k_pool + entry * k_page + head * PAGE * size * element
            next_v = v_pool + entry * v_page + head * PAGE * padded * element
            for r0 in range(0, rows, SPAN):
                page(
                    mine, positions, share, r0, min(SPAN, rows - r0), index * PAGE, window, k, v,
                    size, cap, part, step, scores, next_k, next_v,
                )  # fmt: skip
                next_k, next_v = k, v

    return segment


@njit(error_model="numpy")
def _span(ins: int, t0: int, n: int) -> tuple[int, int]:
    """The first and last segment that n rows of one sequence look at, from row t0 on."""
    window, visible = ld_i64(ins + ATTEND.window), ld_i64(ins + ATTEND.visible)
    newest = ld_i32(ld_i64(ins + ATTEND.slots) + 4 * (t0 + n - 1))
    low = 0
    if window > 0:
        oldest = ld_i32(ld_i64(ins + ATTEND.places) + 4 * t0)
        if ld_i64(visible + 16 * t0) != -1:  # a later row may stand at an earlier place
            oldest = ld_i64(visible + 16 * t0 + 8)
        low = max(0, oldest - window + 1) // (PAGE * SEGMENT)
    return low, newest // (PAGE * SEGMENT)


@njit(error_model="numpy")
def _give_out(ins: int, part: int, t0: int, n: int, g: int) -> None:
    """The whole results of n tokens' query heads of a kv head, with their sinks, as rows of y."""
    size, sinks = ld_i64(ins + ATTEND.size), ld_i64(ins + ATTEND.sinks)
    skip = ld_i64(ins + ATTEND.skip)
    y, y_stride = ld_i64(ins + ATTEND.y), ld_i64(ins + ATTEND.y_stride)
    share, padded = ld_i64(ins + ATTEND.heads) // ld_i64(ins + ATTEND.kv_heads), -(-size // 16) * 16
    for r in range(n * share):
        head, total = g * share + r % share, part + r * (64 + 4 * padded)
        if sinks != 0:
            add_sink(total, padded, ld_f32(sinks + 4 * head))
        to = y + (t0 + r // share) * y_stride + head * (size - skip) * 4
        finish(total, to, size, skip)


def attended(segment: Any, before: Any) -> Any:
    """A kernel of tiles and segments. segment: adds one to partial results. before: bytes of
    scratch that it takes before the queries, by the head's size."""

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        tiles_at, partials = ld_i64(ins + ATTEND.tiles), ld_i64(ins + ATTEND.partials)
        count, split = ld_i64(tiles_at), ld_i64(tiles_at + 8)
        tiles = tiles_at + 16
        done, ctrl = ld_i64(ins + ATTEND.counters), ld_i64(ins + ATTEND.ctrl)
        heads, groups = ld_i64(ins + ATTEND.heads), ld_i64(ins + ATTEND.kv_heads)
        size = ld_i64(ins + ATTEND.size)
        share, padded = heads // groups, (size + 15) // 16 * 16
        step = 64 + 4 * padded
        tile_bytes = (TILE_TOKENS * share + 3) * step
        private = ld_i64(ins + ATTEND.scratch)
        private += thread * ld_i64(private - 8)
        queries = (TILE_TOKENS * share + 3) * size * 4
        scores, mine = private, private + before(size) + (queries + 63) // 64 * 64
        total = mine + tile_bytes
        units = count * groups * split
        while True:
            start, stop = claim(ctrl, units, threads, 16)
            if start >= units:
                return
            for unit in range(start, stop):
                tile, rest = unit // (groups * split), unit % (groups * split)
                g, part = rest // split, rest % split
                t0, n = ld_i32(tiles + 8 * tile), ld_i32(tiles + 8 * tile + 4)
                low, high = _span(ins, t0, n)
                if split == 1:
                    for which in range(low, high + 1):
                        into = total if which == low else mine
                        segment(ins, t0, n, g, which, into, scores)
                        if which > low:
                            for r in range(n * share):
                                merge(total + r * step, mine + r * step, padded)
                    _give_out(ins, total, t0, n, g)
                    continue
                # Segments shared out: each is computed apart, whoever is last merges them in order.
                room = partials + (tile * groups + g) * split * tile_bytes
                if low + part <= high:
                    segment(ins, t0, n, g, low + part, room + part * tile_bytes, scores)
                counter = done + 8 * (tile * groups + g)
                if atomic_add(counter, 1) == split - 1:
                    atomic_store(counter, 0)
                    for later in range(1, high - low + 1):
                        for r in range(n * share):
                            merge(room + r * step, room + later * tile_bytes + r * step, padded)
                    _give_out(ins, room, t0, n, g)

    return run


def _floats(load: Any, element: int) -> Any:
    scores, scores1 = key_products(load, element)
    tree = tree_page(scores1, load, element)
    page = paged(load, element, scores, scores1)
    return attended(_segmented(page, tree, element), _room)


_f32, _f16 = _floats(load_f32, 4), _floats(load_f16, 2)


@kernel
def attend_f32(ins: int, thread: int, threads: int) -> None:
    """Softmax attention of this step's rows over float32 pages."""
    _f32(ins, thread, threads)


@kernel
def attend_f16(ins: int, thread: int, threads: int) -> None:
    """Softmax attention of this step's rows over float16 pages."""
    _f16(ins, thread, threads)
