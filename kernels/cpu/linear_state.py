"""linear_attention on the CPU: what the state adds to a step's rows (`linear_read` has the rest).

A row at place p reads a matrix that holds the first `fold_point(p)` tokens, and every token behind
these one by one. Which tokens these are follows from p alone; sums over features go by slabs, each
one chain, put together in order. So a row's bits do not depend on its neighbours, on how the text
was cut into steps, or on threads: these share heads and slabs.

What the matrix of a step's later rows lacks is folded into the slot's spare as the walk comes to
it; the committed matrix is never written.
"""

from __future__ import annotations

from numba import njit

from ..linear_attention_lower import LINEAR_SUMS
from ..operands import COUNT
from ..simd import f32, ld_f32, ld_i32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import splat, sum_f32
from .layout import BLOCK_FEATURES, BLOCK_QUERIES
from .linear_features import (
    SHIFTED,
    SQUARE,
    block_end,
    coefficients,
    dot_block,
    fold_slab,
    head_features,
    pair_block,
    value_block,
)
from .tails import (
    added_product,
    fold_point,
    fresh_product,
    held,
    sequence,
    spare_fold,
    standing,
    tail_row,
)
from .vm import claim, entry, kernel


@njit(error_model="numpy")
def queries(ins: int, g: int, t0: int, count: int, out: int) -> None:
    """Queries of `count` tokens from row t0 on, [count * H / G][r + 16], zeros at the end."""
    r, share = shared(ins)
    q, stride = ld_i64(ins + LINEAR_SUMS.q), ld_i64(ins + LINEAR_SUMS.q_stride)
    gathered(q, stride, g * share, share, t0, count, r, out)


@njit(error_model="numpy")
def gathered(
    q: int, stride: int, head: int, share: int, t0: int, count: int, r: int, out: int
) -> None:
    """Vectors of r values of `share` heads from `head` on, as `queries`."""
    zero = splat(f32(0.0))
    for n in range(count * share):
        x = q + (t0 + n // share) * stride + 4 * (head + n % share) * r
        to = out + 4 * n * (r + 16)
        for i in range(0, r - 15, 16):
            store_f32(to + 4 * i, load_f32(x + 4 * i))
        whole = r - r % 16
        store_f32(to + 4 * whole, zero)
        for i in range(whole, r):
            st_f32(to + 4 * i, ld_f32(x + 4 * i))
        store_f32(to + 4 * r, zero)


@njit(error_model="numpy")
def shared(ins: int) -> tuple[int, int]:
    """r, and how many query heads a key/value head has."""
    heads, groups = ld_i64(ins + LINEAR_SUMS.heads), ld_i64(ins + LINEAR_SUMS.kv_heads)
    return ld_i64(ins + LINEAR_SUMS.features), heads // groups


@njit(error_model="numpy")
def partial(ins: int, g: int, slab: int, row: int) -> int:
    """Address of a slab's part of the first query of a row."""
    _, share = shared(ins)
    slabs, total = ld_i64(ins + LINEAR_SUMS.slabs), ld_i64(ld_i64(ins + COUNT))
    step = 64 + 4 * ((ld_i64(ins + LINEAR_SUMS.size) + 15) // 16 * 16)
    return ld_i64(ins + LINEAR_SUMS.partials) + (((g * slabs + slab) * total + row) * share * step)


@njit(error_model="numpy")
def _block(
    phi: int, stride: int, rows: int, width: int, matrix: int, z: int, padded: int, fresh: int,
    norms: int, out: int,
) -> None:  # fmt: skip
    """Features [rows][width] times the matrix's and the normaliser's; fresh: nothing stands there
    yet."""
    if fresh:
        fresh_product(
            phi, stride, rows, matrix, 4 * padded, 64, padded // 16, width, out, 4 * padded
        )
    else:
        added_product(
            phi, stride, rows, matrix, 4 * padded, 64, padded // 16, width, out, 4 * padded
        )
    if z != 0:
        for n in range(rows):
            at = norms + 64 * n
            before = splat(f32(0.0)) if fresh else load_f32(at)
            store_f32(at, dot_block(phi + n * stride, z, width, before))


@njit(error_model="numpy")
def _clear(at: int, count: int) -> None:
    """Zeros to `count` float32, a multiple of 16."""
    for n in range(0, count, 16):
        store_f32(at + 4 * n, splat(f32(0.0)))


@njit(error_model="numpy")
def _read_slab(
    ins: int, g: int, slab: int, matrix: int, z: int, t0: int, count: int, room: int
) -> None:
    """A slab's part of `count` tokens' rows from t0 on. matrix, z: of all heads."""
    r, share = shared(ins)
    size, mode = ld_i64(ins + LINEAR_SUMS.size), ld_i64(ins + LINEAR_SUMS.mode)
    bounds, slabs = ld_i64(ins + LINEAR_SUMS.bounds), ld_i64(ins + LINEAR_SUMS.slabs)
    padded = (size + 15) // 16 * 16
    first, p = ld_i32(bounds + 8 * slab), ld_i32(bounds + 8 * slab + 4)
    last = ld_i32(bounds + 8 * slab + 8)
    at = g * head_features(r, mode) + p
    matrix += 4 * at * padded
    z += 4 * at if z != 0 else 0
    stride = 4 * (max(BLOCK_FEATURES, r) + 48)
    u, rows = room, count * share
    phi = u + 4 * BLOCK_QUERIES * (r + 16)
    norms = phi + BLOCK_QUERIES * stride
    out = norms + 64 * BLOCK_QUERIES
    queries(ins, g, t0, count, u)
    fresh, i = 1, first
    while i < last:
        end = block_end(r, i, last)
        width = (r - i + r - end + 1) * (end - i) // 2
        for n in range(rows):
            pair_block(u + 4 * n * (r + 16), r, i, end, phi + n * stride)
        _block(phi, stride, rows, width, matrix, z, padded, fresh, norms, out)
        matrix += 4 * width * padded
        z += 4 * width if z != 0 else 0
        fresh, i = 0, end
    if slab == slabs - 1 and mode != SQUARE:
        factor, constant = coefficients(ins, g)
        for n in range(rows):
            value_block(u + 4 * n * (r + 16), r, factor, constant, phi + n * stride)
        width = r + int(mode == SHIFTED)
        _block(phi, stride, rows, width, matrix, z, padded, fresh, norms, out)
        fresh = 0
    if fresh:  # a slab without features
        _clear(norms, 16 * rows)
        _clear(out, padded * rows)
    to, step = partial(ins, g, slab, t0), 64 + 4 * padded
    for n in range(rows):
        norm = sum_f32(load_f32(norms + 64 * n)) if z != 0 else f32(0.0)
        st_f32(to + n * step, norm)
        for d in range(0, padded, 16):
            store_f32(to + n * step + 64 + 4 * d, load_f32(out + 4 * (n * padded + d)))


@njit(error_model="numpy")
def _fold_up(
    ins: int, slot: int, g: int, slab: int, start: int, end: int, room: int
) -> tuple[int, int]:
    """Have the spare hold `end` tokens, `start` of which some matrix holds; returns the addresses
    of the matrix and normaliser that hold `end`."""
    state, chunk = ld_i64(ins + LINEAR_SUMS.state), ld_i64(ins + LINEAR_SUMS.chunk)
    folded, _ = standing(state, slot)
    spare, z_spare = held(state, slot, 3)
    while start < end:
        if start == folded:
            source, z = held(state, slot, 2)
        else:
            source, z = spare, z_spare
        rows, row = tail_row(state, slot, start - folded), ld_i64(state + 56)
        fold_slab(ins, g, slab, rows, row, chunk, (source, spare, z, z_spare), room)
        start += chunk
    if start == folded:
        return held(state, slot, 2)
    return spare, z_spare


@njit(error_model="numpy")
def _walk(ins: int, index: int, g: int, slab: int, room: int) -> None:
    """A slab of a head over all rows of a sequence."""
    state, chunk = ld_i64(ins + LINEAR_SUMS.state), ld_i64(ins + LINEAR_SUMS.chunk)
    first, count, slot = sequence(ld_i64(ins + LINEAR_SUMS.sequences), index)
    now, rows = standing(state, slot)
    length = now + rows
    _, share = shared(ins)
    most = BLOCK_QUERIES // share
    i = 0
    while i < count:
        point = fold_point(length + i, chunk)
        matrix, z = _fold_up(ins, slot, g, slab, now, point, room)
        now = point
        end = min(count, ((length + i) // chunk + 1) * chunk - length)
        if point > 0:
            for t in range(i, end, most):
                _read_slab(ins, g, slab, matrix, z, first + t, min(most, end - t), room)
        i = end
    _fold_up(ins, slot, g, slab, now, max(now, spare_fold(state, slot)), room)


@kernel
def linear_state(ins: int, thread: int, threads: int) -> None:
    """What the state adds to every row, by slabs; claims slabs of heads of sequences."""
    groups, slabs = ld_i64(ins + LINEAR_SUMS.kv_heads), ld_i64(ins + LINEAR_SUMS.slabs)
    ctrl, sequences = ld_i64(ins + LINEAR_SUMS.ctrl), ld_i64(ins + LINEAR_SUMS.sequences)
    room = ld_i64(ins + LINEAR_SUMS.scratch)
    room += thread * ld_i64(room - 8)
    units = ld_i64(sequences) * groups * slabs
    while True:
        start, stop = claim(ctrl, units, threads, 8)
        if start >= units:
            return
        for unit in range(start, stop):
            _walk(ins, unit // (groups * slabs), unit // slabs % groups, unit % slabs, room)


@entry
def fold_tail(ins: int, rows: int, row: int, count: int, matrix: int, z: int, room: int) -> None:
    """A matrix [G, D, P] and its normaliser (0 for none) take `count` rows of a tail in. ins: an
    instruction `linear_state` of the state."""
    groups, slabs = ld_i64(ins + LINEAR_SUMS.kv_heads), ld_i64(ins + LINEAR_SUMS.slabs)
    for unit in range(groups * slabs):
        fold_slab(ins, unit // slabs, unit % slabs, rows, row, count, (matrix, matrix, z, z), room)
