"""linear_attention on the CPU: a step's rows over the tokens of the tail, and what the state adds.

All pairs of a chunk's rows and the tokens that they see one by one; see `linear_state` for which
these are, and why a row's bits depend on its place alone.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types

from .. import simd, simd_math
from ..linear_attention_lower import LINEAR_SUMS
from ..simd import f32, ld_f32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import add, lanes, max_f32, mul, splat, splat_i32, sub, sum_f32, vmax, where_less
from .layout import BLOCK_QUERIES
from .linear_features import SHIFTED, SQUARE, shift
from .linear_state import gathered, partial, shared
from .tails import (
    added_product,
    exp1,
    fold_point,
    fresh_product,
    sequence,
    standing,
    tail_row,
)
from .tile_product import transpose
from .vm import claim, kernel

MAMBA2S = 2
HIDDEN = -100.0  # of exponents: exp gives 0
LOWEST = -3.0e38
f64 = types.float64


@njit(error_model="numpy")
def key_groups(rows: int, row: int, count: int, r: int, out: int) -> None:
    """`count` keys as groups of 16, [r][16] each, zeros behind the last one."""
    for t in range(0, count, 16):
        n = min(16, count - t)
        to, whole = out + 4 * t * r, (r - r % 16 if n == 16 else 0)
        for i in range(0, whole, 16):
            transpose(rows + t * row + 4 * i, row, to + 64 * i)
        for i in range(whole, r):
            store_f32(to + 64 * i, splat(f32(0.0)))
            for j in range(n):
                st_f32(to + 64 * i + 4 * j, ld_f32(rows + (t + j) * row + 4 * i))


@njit(error_model="numpy")
def decays(rate: int, row: int, count: int, wide: int, total: float, out: int) -> float:
    """Sums of rates up to each token, `total` before the first, as float32 and what that lacks,
    [2][wide]; returns the last one."""
    for t in range(wide):
        total += f64(ld_f32(rate + t * row)) if t < count else 0.0
        high = f32(total)
        st_f32(out + 4 * t, high)
        st_f32(out + 4 * (wide + t), f32(total - f64(high)))
    return total


@njit(error_model="numpy")
def _weights(
    ins: int, scores: int, seen: int, across: int, wide: int, sums: int, beta: float, gamma: float
) -> float:
    """Scores of `across` tokens of a row that sees `seen` to weights, in place; returns their
    sum. sums: [2][wide], of `decays`."""
    mode, last = ld_i64(ins + LINEAR_SUMS.mode), seen - 1
    high, low = splat(ld_f32(sums + 4 * last)), splat(ld_f32(sums + 4 * (wide + last)))
    total, hidden = splat(f32(0.0)), splat(f32(HIDDEN))
    for t in range(0, across, 16):
        at = scores + 4 * t
        if t >= seen:
            store_f32(at, splat(f32(0.0)))
            continue
        gap = add(sub(high, load_f32(sums + 4 * t)), sub(low, load_f32(sums + 4 * (wide + t))))
        gap = where_less(lanes(), splat_i32(simd.i32(seen - t)), gap, hidden)
        x = load_f32(at)
        if mode == SQUARE:
            x = mul(x, x)
        elif mode == SHIFTED:
            x = add(x, splat(f32(beta)))
            x = add(mul(x, x), splat(f32(gamma)))
        w = mul(x, simd_math.exp(gap))
        store_f32(at, w)
        total = add(total, w)
    return sum_f32(total)


@njit(error_model="numpy")
def _softmax(scores: int, seen: int, across: int, log_window: float) -> float:
    """Logits of `across` tokens of a row that sees `seen` to weights of a window, in place; returns
    their sum."""
    least, zero = splat(f32(LOWEST)), splat(f32(0.0))
    peak = least
    for t in range(0, seen, 16):
        inside = splat_i32(simd.i32(seen - t))
        peak = vmax(where_less(lanes(), inside, load_f32(scores + 4 * t), least), peak)
    top, total = splat(max_f32(peak)), zero
    factor = splat(f32(exp1(f32(log_window))))
    for t in range(0, across, 16):
        at, inside = scores + 4 * t, splat_i32(simd.i32(seen - t))
        w = mul(simd_math.exp(sub(load_f32(at), top)), factor)
        w = where_less(lanes(), inside, w, zero)
        store_f32(at, w)
        total = add(total, w)
    return sum_f32(total)


@njit(error_model="numpy")
def _before(ins: int, g: int, row: int, n: int, fade: float, out: int) -> float:
    """The slabs' parts of query n of a row, faded, to `out`; returns that of the sum of weights."""
    slabs = ld_i64(ins + LINEAR_SUMS.slabs)
    padded = (ld_i64(ins + LINEAR_SUMS.size) + 15) // 16 * 16
    step, factor = 64 + 4 * padded, splat(f32(fade))
    norm = f32(0.0)
    for slab in range(slabs):
        at = partial(ins, g, slab, row) + n * step
        norm = f32(norm + ld_f32(at)) if slab else ld_f32(at)
        for d in range(0, padded, 16):
            v = load_f32(at + 64 + 4 * d)
            store_f32(out + 4 * d, add(load_f32(out + 4 * d), v) if slab else v)
    for d in range(0, padded, 16):
        store_f32(out + 4 * d, mul(load_f32(out + 4 * d), factor))
    return f32(norm * f32(fade))


@njit(error_model="numpy")
def _finish(ins: int, out: int, norm: float, y: int) -> None:
    """A row's values over its sum of weights, to the output."""
    size, factor = ld_i64(ins + LINEAR_SUMS.size), f32(1.0)
    if ld_i64(ins + LINEAR_SUMS.mode) != MAMBA2S:
        factor = f32(f32(1.0) / f32(norm + ld_f32(ins + LINEAR_SUMS.eps)))
    whole, by = size - size % 16, splat(factor)
    for d in range(0, whole, 16):
        store_f32(y + 4 * d, mul(load_f32(out + 4 * d), by))
    for d in range(whole, size):
        st_f32(y + 4 * d, f32(ld_f32(out + 4 * d) * factor))


@njit(error_model="numpy")
def _rows(ins: int, index: int, i: int, end: int, g: int, room: int) -> None:
    """Rows i .. end - 1 of a sequence, of one chunk, for one key/value head."""
    state, chunk = ld_i64(ins + LINEAR_SUMS.state), ld_i64(ins + LINEAR_SUMS.chunk)
    groups, size = ld_i64(ins + LINEAR_SUMS.kv_heads), ld_i64(ins + LINEAR_SUMS.size)
    first, _, slot = sequence(ld_i64(ins + LINEAR_SUMS.sequences), index)
    folded, standing_rows = standing(state, slot)
    length, (r, share) = folded + standing_rows, shared(ins)
    point, padded = fold_point(length + i, chunk), (size + 15) // 16 * 16
    count, row = length + end - point, ld_i64(state + 56)
    rows, wide = tail_row(state, slot, point - folded), (count + 15) // 16 * 16
    beta, gamma = shift(ins, g)
    logs = ld_i64(ins + LINEAR_SUMS.log_window)
    q, q_stride = ld_i64(ins + LINEAR_SUMS.q), ld_i64(ins + LINEAR_SUMS.q_stride)
    width, k_at = r, 4 * g * r  # of what scores are made of
    if logs != 0:
        width, q = size, q + 4 * groups * share * r
        k_at = 4 * (groups * (r + padded + 1) + g * size)
    u = room
    scores = u + 4 * BLOCK_QUERIES * (width + 16)
    out = scores + 4 * BLOCK_QUERIES * wide
    norms = out + 4 * BLOCK_QUERIES * padded
    sums = norms + 64 * BLOCK_QUERIES
    keys = sums + 8 * wide
    key_groups(rows + k_at, row, count, width, keys)
    decays(rows + 4 * (groups * (r + padded) + g), row, count, wide, 0.0, sums)
    values, most = rows + 4 * (groups * r + g * padded), BLOCK_QUERIES // share
    y, y_stride = ld_i64(ins + LINEAR_SUMS.y), ld_i64(ins + LINEAR_SUMS.y_stride)
    for t in range(i, end, most):
        n = min(most, end - t)
        gathered(q, q_stride, g * share, share, first + t, n, width, u)
        seen = length + t + n - point  # by the last of these
        across = (seen + 15) // 16
        fresh_product(
            u, 4 * (width + 16), n * share, keys, 64, 64 * width, across, width, scores, 4 * wide
        )
        for k in range(n * share):
            sees = length + t + k // share - point + 1
            to, line = out + 4 * k * padded, scores + 4 * k * wide
            norm: Any = f32(0.0)
            if point > 0:
                last = f64(ld_f32(sums + 4 * (sees - 1))) + f64(
                    ld_f32(sums + 4 * (wide + sees - 1))
                )
                fade = exp1(f32(last))
                norm = _before(ins, g, first + t + k // share, k % share, fade, to)
            else:
                for d in range(0, padded, 16):
                    store_f32(to + 4 * d, splat(f32(0.0)))
            if logs != 0:
                log = ld_f32(logs + 4 * (g * share + k % share))
                norm = f32(norm + _softmax(line, sees, 16 * across, log))
            else:
                norm = f32(norm + _weights(ins, line, sees, 16 * across, wide, sums, beta, gamma))
            st_f32(norms + 4 * k, norm)
        added_product(
            scores, 4 * wide, n * share, values, row, 64, padded // 16, seen, out, 4 * padded
        )
        for k in range(n * share):
            at = y + (first + t + k // share) * y_stride + 4 * (g * share + k % share) * size
            _finish(ins, out + 4 * k * padded, ld_f32(norms + 4 * k), at)


@njit(error_model="numpy")
def _runs(length: int, count: int, chunk: int) -> int:
    """Chunks that `count` rows behind `length` tokens stand in."""
    return (length + count - 1) // chunk - length // chunk + 1


@kernel
def linear_read(ins: int, thread: int, threads: int) -> None:
    """Rows over the tokens that stand in the tail, and what the state adds; claims heads of
    chunks of sequences."""
    groups, chunk = ld_i64(ins + LINEAR_SUMS.kv_heads), ld_i64(ins + LINEAR_SUMS.chunk)
    ctrl, sequences = ld_i64(ins + LINEAR_SUMS.ctrl), ld_i64(ins + LINEAR_SUMS.sequences)
    state, total = ld_i64(ins + LINEAR_SUMS.state), 0
    room = ld_i64(ins + LINEAR_SUMS.scratch)
    room += thread * ld_i64(room - 8)
    for index in range(ld_i64(sequences)):
        _, count, slot = sequence(sequences, index)
        folded, rows = standing(state, slot)
        total += _runs(folded + rows, count, chunk)
    while True:
        start, stop = claim(ctrl, total * groups, threads, 8)
        if start >= total * groups:
            return
        for unit in range(start, stop):
            run, index = unit // groups, 0
            while True:
                _, count, slot = sequence(sequences, index)
                folded, rows = standing(state, slot)
                here = _runs(folded + rows, count, chunk)
                if run < here:
                    break
                run, index = run - here, index + 1
            length = folded + rows
            i = max(0, (length // chunk + run) * chunk - length)
            end = min(count, (length // chunk + run + 1) * chunk - length)
            _rows(ins, index, i, end, unit % groups, room)
