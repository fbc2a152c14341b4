"""linear_attention in mode 2mamba-e on the CPU: softmax with decays over all tokens of a sequence.

All tokens stand in the tail. They are read in blocks of KEYS, counted from the first token, with an
online softmax: a block's largest exponent rescales what came before. A row's blocks, and the order
of all its sums, follow from its place, so its bits depend neither on its neighbours nor on how the
text was cut into steps.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types

from .. import simd, simd_math
from ..linear_attention_lower import LINEAR_EXP
from ..simd import f32, ld_f32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import add, lanes, max_f32, splat, splat_i32, sub, sum_f32, vmax, where_less
from .dot_attention import divided, rescale
from .layout import BLOCK_KEYS, BLOCK_QUERIES
from .linear_read import LOWEST, decays, key_groups
from .linear_state import gathered
from .tails import added_product, exp1, fresh_product, sequence, standing, tail_row
from .vm import claim, kernel

f64 = types.float64


@njit(error_model="numpy")
def _marks(rate: int, row: int, before: int, count: int, out: int) -> None:
    """Sums of rates up to each of `count` tokens behind `before` ones, as float32 and what that
    lacks, [2][BLOCK_QUERIES]."""
    total = 0.0
    for t in range(before + count):
        total += f64(ld_f32(rate + t * row))
        if t >= before:
            high = f32(total)
            st_f32(out + 4 * (t - before), high)
            st_f32(out + 4 * (BLOCK_QUERIES + t - before), f32(total - f64(high)))


@njit(error_model="numpy")
def _weights(scores: int, seen: int, mark: int, sums: int, peak: float) -> tuple[float, float]:
    """A row's scores of a block, of which it sees `seen`, to weights in place; returns their sum
    and the largest exponent so far. mark: of the row, sums: of the block's tokens; as `_marks`."""
    least, zero = splat(f32(LOWEST)), splat(f32(0.0))
    high, low = splat(ld_f32(mark)), splat(ld_f32(mark + 4 * BLOCK_QUERIES))
    top = splat(f32(peak))
    for t in range(0, BLOCK_KEYS, 16):
        here, inside = 4 * t, splat_i32(simd.i32(seen - t))
        far = sub(low, load_f32(sums + 4 * BLOCK_KEYS + here))
        x = add(load_f32(scores + here), add(sub(high, load_f32(sums + here)), far))
        x = where_less(lanes(), inside, x, least)
        store_f32(scores + here, x)
        top = vmax(x, top)
    peak = max_f32(top)
    top, total = splat(f32(peak)), zero
    for t in range(0, BLOCK_KEYS, 16):
        at, inside = scores + 4 * t, splat_i32(simd.i32(seen - t))
        w = where_less(lanes(), inside, simd_math.exp(sub(load_f32(at), top)), zero)
        store_f32(at, w)
        total = add(total, w)
    return sum_f32(total), peak


@njit(error_model="numpy")
def _rows(ins: int, index: int, i: int, n: int, g: int, room: int) -> None:
    """Rows i .. i + n - 1 of a sequence for one key/value head."""
    state, r = ld_i64(ins + LINEAR_EXP.state), ld_i64(ins + LINEAR_EXP.features)
    groups, size = ld_i64(ins + LINEAR_EXP.kv_heads), ld_i64(ins + LINEAR_EXP.size)
    share, padded = ld_i64(ins + LINEAR_EXP.heads) // groups, (size + 15) // 16 * 16
    first, _, slot = sequence(ld_i64(ins + LINEAR_EXP.sequences), index)
    length, row, tail = standing(state, slot)[1], ld_i64(state + 56), tail_row(state, slot, 0)
    u, count = room, n * share
    scores = u + 4 * BLOCK_QUERIES * (r + 16)
    out = scores + 4 * BLOCK_QUERIES * BLOCK_KEYS
    norms = out + 4 * BLOCK_QUERIES * padded
    peaks = norms + 4 * BLOCK_QUERIES
    marks = peaks + 4 * BLOCK_QUERIES
    sums = marks + 8 * BLOCK_QUERIES
    keys = sums + 8 * BLOCK_KEYS
    rate = tail + 4 * (groups * (r + padded) + g)
    q, q_stride = ld_i64(ins + LINEAR_EXP.q), ld_i64(ins + LINEAR_EXP.q_stride)
    gathered(q, q_stride, g * share, share, first + i, n, r, u)
    _marks(rate, row, length + i, n, marks)
    for k in range(count):
        st_f32(norms + 4 * k, f32(0.0))
        st_f32(peaks + 4 * k, f32(LOWEST))
        for d in range(0, padded, 16):
            store_f32(out + 4 * (k * padded + d), splat(f32(0.0)))
    total = 0.0
    for start in range(0, length + i + n, BLOCK_KEYS):
        here = min(BLOCK_KEYS, length + i + n - start)
        block = tail + start * row
        total = decays(rate + start * row, row, here, BLOCK_KEYS, total, sums)
        key_groups(block + 4 * g * r, row, here, r, keys)
        across = (here + 15) // 16
        fresh_product(u, 4 * (r + 16), count, keys, 64, 64 * r, across, r, scores, 4 * BLOCK_KEYS)
        for k in range(count):
            seen = min(here, length + i + k // share + 1 - start)
            line, before = scores + 4 * k * BLOCK_KEYS, ld_f32(peaks + 4 * k)
            norm, peak = _weights(line, seen, marks + 4 * (k // share), sums, before)
            fade: Any = exp1(f32(before - peak))
            rescale(out + 4 * k * padded, padded, fade)
            st_f32(norms + 4 * k, f32(f32(ld_f32(norms + 4 * k) * fade) + norm))
            st_f32(peaks + 4 * k, peak)
        values = block + 4 * (groups * r + g * padded)
        added_product(
            scores, 4 * BLOCK_KEYS, count, values, row, 64, padded // 16, here, out, 4 * padded
        )
    y, y_stride = ld_i64(ins + LINEAR_EXP.y), ld_i64(ins + LINEAR_EXP.y_stride)
    for k in range(count):
        at = y + (first + i + k // share) * y_stride + 4 * (g * share + k % share) * size
        divided(out + 4 * k * padded, size, ld_f32(norms + 4 * k), at)


@kernel
def linear_exp(ins: int, thread: int, threads: int) -> None:
    """Rows over all tokens of their sequence; claims heads of a few rows."""
    groups, heads = ld_i64(ins + LINEAR_EXP.kv_heads), ld_i64(ins + LINEAR_EXP.heads)
    ctrl, sequences = ld_i64(ins + LINEAR_EXP.ctrl), ld_i64(ins + LINEAR_EXP.sequences)
    most, total = BLOCK_QUERIES // (heads // groups), 0
    room = ld_i64(ins + LINEAR_EXP.scratch)
    room += thread * ld_i64(room - 8)
    for index in range(ld_i64(sequences)):
        total += (sequence(sequences, index)[1] + most - 1) // most
    while True:
        start, stop = claim(ctrl, total * groups, threads, 8)
        if start >= total * groups:
            return
        for unit in range(start, stop):
            run, index = unit // groups, 0
            while True:
                count = sequence(sequences, index)[1]
                here = (count + most - 1) // most
                if run < here:
                    break
                run, index = run - here, index + 1
            _rows(ins, index, run * most, min(most, count - run * most), unit % groups, room)
