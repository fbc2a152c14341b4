"""attention on the CPU: rotary and cache append, then online softmax over pages of 64 tokens.

Pages of one state, one page index for 64 tokens of one sequence, float32, float16 or int8 elements:

    K page   [G][4][D][16]   groups of 16 tokens, the token is the vector lane
    V page   [G][64][DP]     DP = D rounded up to 16

An int8 page ends in float32 scales [G][64], max|x| / 127 of each token's head vector; scores are
multiplied by the keys' scales and softmax weights by the values'.

The order of arithmetic is fixed by absolute positions: pages of 64 keys with an online softmax
inside a segment of 4 pages, segments merged in order. Scores of masked keys are -1e30, whose
weight is exactly zero. So a row's bits do not depend on its neighbours, the chunk, or the threads.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd
from ..simd import (
    add,
    add_i32,
    atomic_add,
    atomic_store,
    bcast_f32,
    f32,
    fma,
    lanes,
    ld_f32,
    ld_i32,
    ld_i64,
    load_f16,
    load_f32,
    load_s8_f32,
    max_f32,
    mul,
    prefetch,
    splat,
    splat_i32,
    st_f32,
    store_f32,
    sub,
    sum_f32,
    tanh,
    vmax,
    where_less,
)
from .append import PAGE
from .vm import claim, kernel

SEGMENT = 4  # pages
TILE_TOKENS = 8  # tokens of one sequence that share the keys they read
MASKED = -1.0e30


def _products(load: Any, wide: int) -> tuple[Any, Any, Any, Any]:
    """The inner loops for one cache element type: load widens 16 elements of `wide` bytes."""

    @njit(error_model="numpy")
    def scores4(q: int, step: int, k: int, size: int, out: int, next_k: int, next_v: int) -> None:
        """Four query rows, `step` bytes apart, times 64 keys; float32 [4][64] to out.

        next_k, next_v: the page that follows, asked for on the way (pages of one head lie apart,
        so the hardware's prefetchers lose the stream at each).
        """
        for c in range(4):
            ahead = (next_k if c < 2 else next_v) + (c % 2) * size * 64
            a0 = a1 = a2 = a3 = splat(f32(0.0))
            at = k + c * size * 16 * wide
            for d in range(size):
                prefetch(ahead + 64 * d)
                key = load(at + d * 16 * wide)
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
        step = size * 16 * wide
        for d in range(size):
            x, at = bcast_f32(q + 4 * d), k + d * 16 * wide
            a0 = fma(load(at), x, a0)
            a1 = fma(load(at + step), x, a1)
            a2 = fma(load(at + 2 * step), x, a2)
            a3 = fma(load(at + 3 * step), x, a3)
        store_f32(out, a0)
        store_f32(out + 64, a1)
        store_f32(out + 128, a2)
        store_f32(out + 192, a3)

    @njit(error_model="numpy")
    def strip(w: int, v: int, padded: int, d: int, count: int, out: int) -> None:
        """16 columns of one row: out += weights [count] times values, keys in order."""
        a = load_f32(out + 4 * d)
        for j in range(count):
            a = fma(load(v + (j * padded + d) * wide), bcast_f32(w + 4 * j), a)
        store_f32(out + 4 * d, a)

    @njit(error_model="numpy")
    def values4(w: int, v: int, padded: int, count: int, out: int, step: int) -> None:
        """Add weights [4][64] times values [count][padded] to four rows of out, `step` apart."""
        for d in range(0, padded - 31, 32):
            at = out + 4 * d
            a0, b0 = load_f32(at), load_f32(at + 64)
            a1, b1 = load_f32(at + step), load_f32(at + step + 64)
            a2, b2 = load_f32(at + 2 * step), load_f32(at + 2 * step + 64)
            a3, b3 = load_f32(at + 3 * step), load_f32(at + 3 * step + 64)
            for j in range(count):
                p = v + (j * padded + d) * wide
                x, y = load(p), load(p + 16 * wide)
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

    return scores4, scores1, values4, values1


_scores4_f16, _scores1_f16, _values4_f16, _values1_f16 = _products(load_f16, 2)
_scores4_f32, _scores1_f32, _values4_f32, _values1_f32 = _products(load_f32, 4)
_scores4_s8, _scores1_s8, _values4_s8, _values1_s8 = _products(load_s8_f32, 1)


@njit(error_model="numpy")
def _softmax(scores: int, m: float, first: int, last: int, cap: float) -> tuple[float, float]:
    """Scores of 64 keys to weights in place, keys outside first..last masked.

    m: largest score so far. Returns the new one and the sum of the weights.
    """
    low, high = splat_i32(simd.i32(first - 1)), splat_i32(simd.i32(last + 1))
    masked = splat(f32(MASKED))
    top = masked
    for c in range(4):
        s = load_f32(scores + 64 * c)
        if cap > f32(0.0):
            s = mul(splat(cap), tanh(mul(s, splat(f32(1.0) / cap))))
        index = add_i32(lanes(), splat_i32(simd.i32(16 * c)))
        s = where_less(low, index, where_less(index, high, s, masked), masked)
        store_f32(scores + 64 * c, s)
        top = vmax(s, top)
    m = max(f32(m), max_f32(top))
    shift, total = splat(f32(m)), splat(f32(0.0))
    for c in range(4):
        w = simd.exp(sub(load_f32(scores + 64 * c), shift))
        store_f32(scores + 64 * c, w)
        total = add(total, w)
    return m, sum_f32(total)


@njit(error_model="numpy")
def _scale(out: int, padded: int, factor: float) -> None:
    wide = splat(f32(factor))
    for d in range(0, padded, 16):
        store_f32(out + 4 * d, mul(load_f32(out + 4 * d), wide))


@njit(error_model="numpy")
def _exp1(x: float) -> float:
    """The same exponential as the vectors use, for one value."""
    return max_f32(simd.exp(splat(f32(x))))


@njit(error_model="numpy")
def _clear(row: int, padded: int) -> None:
    """A partial result: maximum, sum, 14 unused words, then the weighted values [padded]."""
    st_f32(row, f32(MASKED))
    st_f32(row + 4, f32(0.0))
    for d in range(0, padded, 16):
        store_f32(row + 64 + 4 * d, splat(f32(0.0)))


@njit(error_model="numpy")
def _update(scores: int, row: int, padded: int, first: int, last: int, cap: float) -> None:
    """Online softmax of one row's scores: weights in place, its partial result rescaled."""
    before = ld_f32(row)
    m, total = _softmax(scores, before, first, last, cap)
    keep = _exp1(f32(before - f32(m)))
    st_f32(row, f32(m))
    st_f32(row + 4, f32(f32(ld_f32(row + 4) * keep) + total))
    if keep != f32(1.0):
        _scale(row + 64, padded, keep)


@njit(error_model="numpy")
def _times(row: int, factors: int) -> None:
    """A row of 64 scores or weights times 64 factors."""
    for c in range(4):
        store_f32(row + 64 * c, mul(load_f32(row + 64 * c), load_f32(factors + 64 * c)))


@njit(error_model="numpy")
def _zero_scores(scores: int) -> None:
    for c in range(4):
        store_f32(scores + 64 * c, splat(f32(0.0)))


@njit(error_model="numpy")
def _page(
    q: int, positions: int, share: int, r0: int, rows: int, base: int, window: int, k: int, v: int,
    size: int, wide: int, cap: float, part: int, step: int, scores: int, next_k: int, next_v: int,
    k_scales: int, v_scales: int,
) -> None:  # fmt: skip
    """Query rows r0 .. r0 + rows (at most four) of a tile over one page, into their partials.

    q float32 [n * share, D]; row r is token r // share. Rows past the tile's last are computed
    with the others and never read.
    """
    padded = (size + 15) // 16 * 16
    low = ld_i32(positions + 4 * (r0 // share))
    high = ld_i32(positions + 4 * ((r0 + rows - 1) // share))
    if base > high or (window > 0 and base + PAGE <= low - window + 1):
        return
    mine = q + r0 * size * 4
    if rows > 1:
        if wide == 2:
            _scores4_f16(mine, size * 4, k, size, scores, next_k, next_v)
        elif wide == 1:
            _scores4_s8(mine, size * 4, k, size, scores, next_k, next_v)
        else:
            _scores4_f32(mine, size * 4, k, size, scores, next_k, next_v)
    elif wide == 2:
        _scores1_f16(mine, k, size, scores)
    elif wide == 1:
        _scores1_s8(mine, k, size, scores)
    else:
        _scores1_f32(mine, k, size, scores)
    for r in range(rows):
        position = ld_i32(positions + 4 * ((r0 + r) // share))
        last = min(position - base, PAGE - 1)
        first = max(0, position - window + 1 - base) if window > 0 else 0
        row = scores + 256 * r
        if last < 0 or first >= PAGE:
            _zero_scores(row)
            continue
        if wide == 1:
            _times(row, k_scales)
        _update(row, part + (r0 + r) * step, padded, first, last, cap)
        if wide == 1:
            _times(row, v_scales)
    count = min(high - base, PAGE - 1) + 1
    out = part + r0 * step + 64
    if rows > 1:
        if wide == 2:
            _values4_f16(scores, v, padded, count, out, step)
        elif wide == 1:
            _values4_s8(scores, v, padded, count, out, step)
        else:
            _values4_f32(scores, v, padded, count, out, step)
    elif wide == 2:
        _values1_f16(scores, v, padded, count, out)
    elif wide == 1:
        _values1_s8(scores, v, padded, count, out)
    else:
        _values1_f32(scores, v, padded, count, out)


@njit(error_model="numpy")
def _merge(total: int, part: int, padded: int) -> None:
    """Add a later segment's partial result to an earlier one's."""
    a, b = ld_f32(total), ld_f32(part)
    m = max(a, b)
    x, y = _exp1(f32(a - m)), _exp1(f32(b - m))
    st_f32(total, m)
    st_f32(total + 4, f32(f32(ld_f32(total + 4) * x) + f32(ld_f32(part + 4) * y)))
    left, right = splat(f32(x)), splat(f32(y))
    for d in range(0, padded, 16):
        at = 64 + 4 * d
        mine = mul(load_f32(total + at), left)
        store_f32(total + at, add(mine, mul(load_f32(part + at), right)))


@njit(error_model="numpy")
def _finish(total: int, out: int, size: int) -> None:
    inverse = f32(f32(1.0) / ld_f32(total + 4))
    for d in range(size):
        st_f32(out + 4 * d, f32(ld_f32(total + 64 + 4 * d) * inverse))


@njit(error_model="numpy")
def _segment(ins: int, t0: int, n: int, g: int, segment: int, part: int, scores: int) -> None:
    """n tokens' query heads of one kv head over one segment; partials [n][share] to part.

    scores: 1024 bytes of scratch, followed by room for the tile's queries.
    """
    q, stride = ld_i64(ins + 24), ld_i64(ins + 32)
    heads, groups, size = ld_i64(ins + 40), ld_i64(ins + 48), ld_i64(ins + 56)
    window, cap = ld_i64(ins + 64), ld_f32(ins + 72)
    positions, tables = ld_i64(ins + 80), ld_i64(ins + 88)
    k_pool, v_pool = ld_i64(ins + 96), ld_i64(ins + 104)
    k_page, v_page, wide = ld_i64(ins + 112), ld_i64(ins + 120), ld_i64(ins + 128)
    share, padded = heads // groups, (size + 15) // 16 * 16
    step, rows = 64 + 4 * padded, n * share
    for r in range(rows):
        _clear(part + r * step, padded)
    mine = scores + 1024
    for r in range(rows):
        at = q + (t0 + r // share) * stride + (g * share + r % share) * size * 4
        for d in range(size):
            st_f32(mine + (r * size + d) * 4, ld_f32(at + 4 * d))
    table, positions = ld_i64(tables + 8 * t0), positions + 4 * t0
    newest, oldest = ld_i32(positions + 4 * (n - 1)), ld_i32(positions)
    start = max(segment * SEGMENT, max(0, oldest - window + 1) // PAGE if window > 0 else 0)
    for index in range(start, min((segment + 1) * SEGMENT, newest // PAGE + 1)):
        page = ld_i32(table + 4 * index)
        k = k_pool + page * k_page + g * 64 * size * wide
        v = v_pool + page * v_page + g * 64 * padded * wide
        k_scales = k_pool + (page + 1) * k_page - (groups - g) * PAGE * 4
        v_scales = v_pool + (page + 1) * v_page - (groups - g) * PAGE * 4
        next_k, next_v = k, v
        if (index + 1) * PAGE <= newest:
            page = ld_i32(table + 4 * index + 4)
            next_k = k_pool + page * k_page + g * 64 * size * wide
            next_v = v_pool + page * v_page + g * 64 * padded * wide
        for r0 in range(0, rows, 4):
            _page(
                mine, positions, share, r0, min(4, rows - r0), index * PAGE, window, k, v,
                size, wide, cap, part, step, scores, next_k, next_v, k_scales, v_scales,
            )  # fmt: skip
            next_k, next_v = k, v


# Operands of `attend`: 3 q (rotated and scaled), 4 q stride in bytes, 5 H, 6 G, 7 D, 8 window or 0,
# 9 softcap or 0, 10 positions, 11 page tables, 12 K pool, 13 V pool, 14 K page bytes, 15 V page
# bytes, 16 element bytes, 17 y, 18 y stride, 19 address of the tile count, followed by int32 tiles
# (first row, rows), 20 partials shared between threads, 21 finished counters (int64 a tile and kv
# head), 22 private scratch, 23 control block. Private scratch bytes a thread stand in the word
# before the scratch's first byte; most segments of a step in the word after the tile count.


@kernel
def attend(ins: int, thread: int, threads: int) -> None:
    """Softmax attention of this step's rows over their pages."""
    tiles_at, partials = ld_i64(ins + 152), ld_i64(ins + 160)
    count, split = ld_i64(tiles_at), ld_i64(tiles_at + 8)
    tiles = tiles_at + 16
    done, ctrl = ld_i64(ins + 168), ld_i64(ins + 184)
    heads, groups, size = ld_i64(ins + 40), ld_i64(ins + 48), ld_i64(ins + 56)
    window, positions = ld_i64(ins + 64), ld_i64(ins + 80)
    y, y_stride = ld_i64(ins + 136), ld_i64(ins + 144)
    share, padded = heads // groups, (size + 15) // 16 * 16
    step = 64 + 4 * padded
    tile_bytes = (TILE_TOKENS * share + 3) * step
    private = ld_i64(ins + 176)
    private += thread * ld_i64(private - 8)
    queries = (TILE_TOKENS * share + 3) * size * 4
    scores, mine = private, private + 1024 + (queries + 63) // 64 * 64
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
            newest = ld_i32(positions + 4 * (t0 + n - 1))
            oldest = ld_i32(positions + 4 * t0)
            low = max(0, oldest - window + 1) // (PAGE * SEGMENT) if window > 0 else 0
            high = newest // (PAGE * SEGMENT)
            if split == 1:
                for segment in range(low, high + 1):
                    into = total if segment == low else mine
                    _segment(ins, t0, n, g, segment, into, scores)
                    if segment > low:
                        for r in range(n * share):
                            _merge(total + r * step, mine + r * step, padded)
                for r in range(n * share):
                    at = y + (t0 + r // share) * y_stride + (g * share + r % share) * size * 4
                    _finish(total + r * step, at, size)
                continue
            # Segments shared out: each is computed apart, whoever is last merges them in order.
            room = partials + (tile * groups + g) * split * tile_bytes
            if low + part <= high:
                _segment(ins, t0, n, g, low + part, room + part * tile_bytes, scores)
            counter = done + 8 * (tile * groups + g)
            if atomic_add(counter, 1) == split - 1:
                atomic_store(counter, 0)
                for later in range(1, high - low + 1):
                    for r in range(n * share):
                        _merge(room + r * step, room + later * tile_bytes + r * step, padded)
                for r in range(n * share):
                    at = y + (t0 + r // share) * y_stride + (g * share + r % share) * size * 4
                    _finish(room + r * step, at, size)
