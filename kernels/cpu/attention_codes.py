"""attention over pages in codes: the page that a token stands in is float16, those before it codes.

Page layouts are in `kv_codes.py`. Codes are not turned into keys and values: with scales s and
minima m of a key's channels, and of a value's groups,

    q . k = sum_c (q_c s_c) code_c + sum_c q_c m_c
    sum_j w_j v_j = sum_j (w_j s_j) code_j + sum_j w_j m_j

the scales are folded into the queries once for 32 keys, and into the weights once for 32 channels.
The order of arithmetic is that of `attention.py`, fixed by absolute places.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..attention_lower import ATTEND
from ..simd import (
    bcast_f32,
    f32,
    ld_f16,
    ld_f32,
    ld_i32,
    ld_i64,
    load_f16,
    load_f32,
    load_high4_f32,
    load_low4_f32,
    load_u8_f32,
    prefetch,
    st_f32,
    store_f32,
)
from ..simd_math import add, fma, mul, splat, sum_f32
from .attention import attended, paged, prepare
from .attention_tile import key_products
from .layout import CODE_CHANNELS, CODE_TOKENS, PAGE, SEGMENT
from .softmax import update, zero_scores
from .vm import kernel


@njit(error_model="numpy")
def _fold(q: int, parameters: int, size: int, padded: int, out: int) -> float:
    """A query times the scales of 32 keys to out; returns its product with their minima."""
    whole, total = size - size % 16, splat(f32(0.0))
    for d in range(0, whole, 16):
        x = load_f32(q + 4 * d)
        store_f32(out + 4 * d, mul(x, load_f16(parameters + 2 * d)))
        total = fma(x, load_f16(parameters + 2 * (padded + d)), total)
    bias = sum_f32(total)
    for d in range(whole, size):
        y = ld_f32(q + 4 * d)
        st_f32(out + 4 * d, f32(y * ld_f16(parameters + 2 * d)))
        bias = f32(bias + f32(y * ld_f16(parameters + 2 * (padded + d))))
    return bias


@njit(error_model="numpy")
def _scores4(
    q: int, k: int, parameters: int, size: int, padded: int, out: int, room: int, ahead: int
) -> None:
    """Four query rows times 64 keys; float32 [4][64] to out. room: float32 [4][DP]. ahead: what is
    read next."""
    step, wide = 4 * size, 4 * padded
    for half in range(PAGE // CODE_TOKENS):
        at = parameters + half * wide
        b0 = _fold(q, at, size, padded, room)
        b1 = _fold(q + step, at, size, padded, room + wide)
        b2 = _fold(q + 2 * step, at, size, padded, room + 2 * wide)
        b3 = _fold(q + 3 * step, at, size, padded, room + 3 * wide)
        for c in range(2 * half, 2 * half + 2):
            a0, a1, a2, a3 = splat(f32(b0)), splat(f32(b1)), splat(f32(b2)), splat(f32(b3))
            codes = k + c * size * 16
            for d in range(size):
                if d % 4 == 0:
                    prefetch(ahead + c * size * 16 + 16 * d)
                key = load_u8_f32(codes + 16 * d)
                a0 = fma(key, bcast_f32(room + 4 * d), a0)
                a1 = fma(key, bcast_f32(room + wide + 4 * d), a1)
                a2 = fma(key, bcast_f32(room + 2 * wide + 4 * d), a2)
                a3 = fma(key, bcast_f32(room + 3 * wide + 4 * d), a3)
            store_f32(out + 64 * c, a0)
            store_f32(out + 256 + 64 * c, a1)
            store_f32(out + 512 + 64 * c, a2)
            store_f32(out + 768 + 64 * c, a3)


@njit(error_model="numpy")
def _scores1(
    q: int, k: int, parameters: int, size: int, padded: int, out: int, room: int, ahead: int
) -> None:
    """One row of `_scores4`."""
    for half in range(PAGE // CODE_TOKENS):
        bias = _fold(q, parameters + half * 4 * padded, size, padded, room)
        a0 = a1 = splat(f32(bias))
        codes = k + 2 * half * size * 16
        for d in range(size):
            if d % 2 == 0:
                prefetch(ahead + 2 * half * size * 16 + 32 * d)
            x = bcast_f32(room + 4 * d)
            a0 = fma(load_u8_f32(codes + 16 * d), x, a0)
            a1 = fma(load_u8_f32(codes + (size + d) * 16), x, a1)
        store_f32(out + 128 * half, a0)
        store_f32(out + 128 * half + 64, a1)


@njit(error_model="numpy")
def _weigh(w: int, parameters: int, out: int) -> float:
    """Weights [64] times the scales of a group of channels to out; returns the sum of their
    products with its minima."""
    total = splat(f32(0.0))
    for c in range(4):
        x = load_f32(w + 64 * c)
        store_f32(out + 64 * c, mul(x, load_f16(parameters + 32 * c)))
        total = fma(x, load_f16(parameters + 2 * PAGE + 32 * c), total)
    return sum_f32(total)


def _loads(bits: int) -> tuple[Any, Any]:
    """What loads the halves of a group of 32 channels, of value j."""

    @njit(error_model="numpy")
    def low(v: int, j: int, d: int, row: int) -> Any:
        """The first 16 channels of the group from channel d on."""
        if bits == 8:
            return load_u8_f32(v + j * row + d)
        return load_low4_f32(v + j * row + d // 2)

    @njit(error_model="numpy")
    def high(v: int, j: int, d: int, row: int) -> Any:
        """The other 16 channels."""
        if bits == 8:
            return load_u8_f32(v + j * row + d + 16)
        return load_high4_f32(v + j * row + d // 2)

    return low, high


def _one_row(low: Any, high: Any) -> Any:
    @njit(error_model="numpy")
    def row1(w: int, v: int, parameters: int, padded: int, row: int, out: int, room: int) -> None:
        """Add weights [64] times values to a row of out. room: float32 [64]."""
        for d in range(0, padded, CODE_CHANNELS):
            bias = splat(f32(_weigh(w, parameters + d // CODE_CHANNELS * 4 * PAGE, room)))
            at = out + 4 * d
            a = add(load_f32(at), bias)
            if d + 16 < padded:
                b = add(load_f32(at + 64), bias)
                for j in range(PAGE):
                    x = bcast_f32(room + 4 * j)
                    a = fma(low(v, j, d, row), x, a)
                    b = fma(high(v, j, d, row), x, b)
                store_f32(at + 64, b)
            else:
                for j in range(PAGE):
                    a = fma(low(v, j, d, row), bcast_f32(room + 4 * j), a)
            store_f32(at, a)

    return row1


def _four_rows(low: Any, high: Any) -> Any:
    @njit(error_model="numpy")
    def row4(
        w: int, v: int, parameters: int, padded: int, row: int, out: int, step: int, room: int
    ) -> None:
        """Four rows of `row1`, `step` bytes apart. room: float32 [4][64]."""
        for d in range(0, padded - 31, CODE_CHANNELS):
            group, at = parameters + d // CODE_CHANNELS * 4 * PAGE, out + 4 * d
            s0 = splat(f32(_weigh(w, group, room)))
            s1 = splat(f32(_weigh(w + 256, group, room + 256)))
            s2 = splat(f32(_weigh(w + 512, group, room + 512)))
            s3 = splat(f32(_weigh(w + 768, group, room + 768)))
            a0, b0 = add(load_f32(at), s0), add(load_f32(at + 64), s0)
            a1, b1 = add(load_f32(at + step), s1), add(load_f32(at + step + 64), s1)
            a2, b2 = add(load_f32(at + 2 * step), s2), add(load_f32(at + 2 * step + 64), s2)
            a3, b3 = add(load_f32(at + 3 * step), s3), add(load_f32(at + 3 * step + 64), s3)
            for j in range(PAGE):
                x, y = low(v, j, d, row), high(v, j, d, row)
                w0, w1 = bcast_f32(room + 4 * j), bcast_f32(room + 256 + 4 * j)
                w2, w3 = bcast_f32(room + 512 + 4 * j), bcast_f32(room + 768 + 4 * j)
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
        if padded % CODE_CHANNELS:
            d = padded - 16
            for r in range(4):
                a = load_f32(out + r * step + 4 * d)
                group = parameters + d // CODE_CHANNELS * 4 * PAGE
                a = add(a, splat(f32(_weigh(w + 256 * r, group, room))))
                for j in range(PAGE):
                    a = fma(low(v, j, d, row), bcast_f32(room + 4 * j), a)
                store_f32(out + r * step + 4 * d, a)

    return row4


def _coded(bits: int) -> Any:
    halves = _loads(bits)
    row4, row1 = _four_rows(*halves), _one_row(*halves)

    @njit(error_model="numpy")
    def page(
        q: int, positions: int, share: int, r0: int, rows: int, base: int, window: int, k: int,
        v: int, at: tuple[int, int, int, int], size: int, cap: float, part: int, step: int,
        scores: int,
    ) -> None:  # fmt: skip
        """Query rows r0 .. r0 + rows (at most four) over a page before the one they stand in.

        at: parameters of the keys and of the values, bytes of a value's codes, what is read next.
        Rows that stand in this page, or before it, get nothing of it.
        """
        k_parameters, v_parameters, row, ahead = at
        padded = (size + 15) // 16 * 16
        low = ld_i32(positions + 4 * (r0 // share))
        high = ld_i32(positions + 4 * ((r0 + rows - 1) // share))
        if base + PAGE > high or (window > 0 and base + PAGE <= low - window + 1):
            return
        mine, room = q + r0 * size * 4, scores + 1024
        if rows > 1:
            _scores4(mine, k, k_parameters, size, padded, scores, room, ahead)
        else:
            _scores1(mine, k, k_parameters, size, padded, scores, room, ahead)
        for r in range(rows):
            position = ld_i32(positions + 4 * ((r0 + r) // share))
            first = max(0, position - window + 1 - base) if window > 0 else 0
            if position - base < PAGE or first >= PAGE:
                zero_scores(scores + 256 * r)
                continue
            update(scores + 256 * r, part + (r0 + r) * step, padded, first, PAGE - 1, cap)
        out = part + r0 * step + 64
        if rows > 1:
            row4(scores, v, v_parameters, padded, row, out, step, room)
        else:
            row1(scores, v, v_parameters, padded, row, out, room)

    return page


@njit(error_model="numpy")
def _room(size: int) -> int:
    """Scores, then folded queries [4][DP] or weights [4][64]."""
    return 1024 + max(1024, (size + 15) // 16 * 256)


_own = paged(load_f16, 2, *key_products(load_f16, 2), own=True)


def _segmented(bits: int) -> Any:
    coded, own = _coded(bits), _own

    @njit(error_model="numpy")
    def segment(ins: int, t0: int, n: int, g: int, which: int, part: int, scores: int) -> None:
        """n tokens' query heads of one kv head over one segment; partials [n][share] to part."""
        heads, groups = ld_i64(ins + ATTEND.heads), ld_i64(ins + ATTEND.kv_heads)
        size = ld_i64(ins + ATTEND.size)
        window, cap = ld_i64(ins + ATTEND.window), ld_f32(ins + ATTEND.softcap)
        k_page, v_page = ld_i64(ins + ATTEND.k_page), ld_i64(ins + ATTEND.v_page)
        fresh = ld_i64(ins + ATTEND.fresh)
        share, padded = heads // groups, (size + 15) // 16 * 16
        parts = (size + CODE_CHANNELS - 1) // CODE_CHANNELS
        row = padded if bits == 8 else parts * 16
        step, rows = 64 + 4 * padded, n * share
        mine = scores + _room(size)
        prepare(ins, t0, n, g, part, mine)
        table = ld_i64(ld_i64(ins + ATTEND.tables) + 8 * t0)
        positions = ld_i64(ins + ATTEND.places) + 4 * t0
        newest, oldest = ld_i32(positions + 4 * (n - 1)), ld_i32(positions)
        start = max(which * SEGMENT, max(0, oldest - window + 1) // PAGE if window > 0 else 0)
        for index in range(start, min((which + 1) * SEGMENT, newest // PAGE + 1)):
            entry, base = ld_i32(table + 4 * index), index * PAGE
            k = ld_i64(ins + ATTEND.keys) + entry * k_page
            v = ld_i64(ins + ATTEND.values) + entry * v_page
            at = (
                k + groups * PAGE * size + g * (PAGE // CODE_TOKENS) * 4 * padded,
                v + groups * PAGE * row + g * parts * 4 * PAGE,
                row,
                v + g * PAGE * row,
            )
            if base + PAGE <= newest:
                for r0 in range(0, rows, 4):
                    coded(
                        mine, positions, share, r0, min(4, rows - r0), base, window,
                        k + g * PAGE * size, v + g * PAGE * row, at, size, cap, part, step, scores,
                    )  # fmt: skip
            if base + PAGE > oldest:
                raw = ld_i32(fresh + 4 * entry) * groups + g
                own_k = ld_i64(ins + ATTEND.fresh_keys) + raw * PAGE * size * 2
                own_v = ld_i64(ins + ATTEND.fresh_values) + raw * PAGE * padded * 2
                for r0 in range(0, rows, 4):
                    own(
                        mine, positions, share, r0, min(4, rows - r0), base, window, own_k, own_v,
                        size, cap, part, step, scores, own_k, own_v,
                    )  # fmt: skip

    return segment


_int8, _int4 = attended(_segmented(8), _room), attended(_segmented(4), _room)


@kernel
def attend_int8(ins: int, thread: int, threads: int) -> None:
    """Softmax attention of this step's rows over pages in codes of 8 bits."""
    _int8(ins, thread, threads)


@kernel
def attend_int4(ins: int, thread: int, threads: int) -> None:
    """Softmax attention of this step's rows over keys in codes of 8 bits, values of 4."""
    _int4(ins, thread, threads)
