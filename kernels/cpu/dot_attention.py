"""dot_attention on the CPU: tiles of queries over tiles of keys, with an online softmax.

Keys and values are packed first, for each head, so that a key or a column of values is a lane:

    keys    [ceil(M / 16)][D][16]     values  [M padded to 16][DP], DP = D rounded up to 16

zeros where there is no key. A packed block begins with 64 bytes that hold M.

Queries come in tiles of `QUERIES`, keys in tiles of `KEYS` from the first on, so a row's sums are
added up in one order, whichever thread computes them and whatever rows stand beside it. Scores are
base-2 logarithms: queries are multiplied by scale * log2(e) as they are copied, which is one
rounding, as the product of a score with the scale is.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd
from ..dot_attention import DOT_ATTENTION, KEYS, PACK_KEYS, QUERIES
from ..lowering import stride_of
from ..operands import COUNT
from ..simd import f32, ld_f32, ld_i32, ld_i64, load_f32, st_f32, st_i64, store_f32
from ..simd_math import add, lanes, max_f32, mul, splat, splat_i32, sub, sum_f32, vmax, where_less
from .tile_product import TILE_ROWS, TILE_VECTORS, tile_product, transpose
from .vector_math import exp2
from .vm import claim, kernel

MASKED = -1.0e30
LOG2_E = 1.4426950408889634
LINE = 4 * KEYS  # bytes of a row of scores
STATS = stride_of(QUERIES)  # bytes of the rows' largest scores, and of their sums
WAVES = 4 * (KEYS + 2 * QUERIES)  # bytes of a head's biases for the distances of a tile
HEAD = 64  # bytes before the packed keys

if QUERIES % TILE_ROWS:
    raise ValueError(f"tiles of {QUERIES} queries, expected a multiple of {TILE_ROWS}")

_fresh = tile_product(TILE_ROWS, TILE_VECTORS, fresh=True)
_fresh_narrow = tile_product(TILE_ROWS, 1, fresh=True)
_added = tile_product(TILE_ROWS, TILE_VECTORS, fresh=False)
_added_narrow = tile_product(TILE_ROWS, 1, fresh=False)


@kernel
def pack_keys(ins: int, thread: int, threads: int) -> None:
    """Keys and values as `dot_attention` reads them; claims heads of 16 rows."""
    n = ld_i64(ld_i64(ins + COUNT))
    k, v = ld_i64(ins + PACK_KEYS.k), ld_i64(ins + PACK_KEYS.v)
    stride, out = ld_i64(ins + PACK_KEYS.stride), ld_i64(ins + PACK_KEYS.packed)
    heads, size = ld_i64(ins + PACK_KEYS.heads), ld_i64(ins + PACK_KEYS.size)
    ctrl = ld_i64(ins + PACK_KEYS.ctrl)
    groups, padded = (n + 15) // 16, (size + 15) // 16 * 16
    keys = out + HEAD
    values = keys + heads * groups * 64 * size
    if thread == 0:
        st_i64(out, n)
    while True:
        start, stop = claim(ctrl, heads * groups, threads, 8)
        if start >= heads * groups:
            return
        for unit in range(start, stop):
            head, group = unit // groups, unit % groups
            row = 16 * group
            count = min(16, n - row)
            at = row * stride + 4 * head * size
            _pack_keys(k + at, stride, count, size, keys + unit * 64 * size)
            _pack_values(v + at, stride, count, size, values + unit * 64 * padded)


@njit(error_model="numpy")
def _pack_keys(k: int, stride: int, count: int, size: int, out: int) -> None:
    """`count` rows of one head, at most 16, as [D][16]."""
    whole = size - size % 16 if count == 16 else 0
    for d in range(0, whole, 16):
        transpose(k + 4 * d, stride, out + 64 * d)
    for d in range(whole, size):
        for j in range(16):
            st_f32(out + 64 * d + 4 * j, ld_f32(k + j * stride + 4 * d) if j < count else f32(0.0))


@njit(error_model="numpy")
def _pack_values(v: int, stride: int, count: int, size: int, out: int) -> None:
    """`count` rows of one head, at most 16, as [16][DP]."""
    whole, padded = size - size % 16, (size + 15) // 16 * 16
    for j in range(16):
        to, row = out + 4 * j * padded, v + j * stride
        if j >= count:
            for d in range(0, padded, 16):
                store_f32(to + 4 * d, splat(f32(0.0)))
            continue
        for d in range(0, whole, 16):
            store_f32(to + 4 * d, load_f32(row + 4 * d))
        for d in range(whole, padded):
            st_f32(to + 4 * d, ld_f32(row + 4 * d) if d < size else f32(0.0))


@njit(error_model="numpy")
def _copy_queries(q: int, stride: int, n: int, size: int, factor: float, out: int) -> None:
    """n rows of one head times a factor, and zeros up to a whole number of register tiles."""
    whole, times = size - size % 16, splat(f32(factor))
    for r in range((n + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS):
        to, row = out + 4 * r * size, q + r * stride
        if r >= n:
            for d in range(size):
                st_f32(to + 4 * d, f32(0.0))
            continue
        for d in range(0, whole, 16):
            store_f32(to + 4 * d, mul(load_f32(row + 4 * d), times))
        for d in range(whole, size):
            st_f32(to + 4 * d, f32(ld_f32(row + 4 * d) * f32(factor)))


@njit(error_model="numpy")
def _scores(q: int, size: int, rows: int, keys: int, groups: int, out: int) -> None:
    """Queries [rows][D] times `groups` groups of 16 keys; float32 lines of KEYS to out."""
    apart, whole = 64 * size, groups - groups % TILE_VECTORS
    for g in range(0, whole, TILE_VECTORS):
        for r in range(0, rows, TILE_ROWS):
            a, to = q + 4 * r * size, out + r * LINE
            _fresh(a, 4 * size, keys + g * apart, 64, apart, size, to + 64 * g, LINE)
    for g in range(whole, groups):
        for r in range(0, rows, TILE_ROWS):
            a, to = q + 4 * r * size, out + r * LINE
            _fresh_narrow(a, 4 * size, keys + g * apart, 64, apart, size, to + 64 * g, LINE)


@njit(error_model="numpy")
def _sums(w: int, rows: int, values: int, padded: int, count: int, out: int, first: int) -> None:
    """Weights [rows] of `count` keys times their values; [rows][DP] to out. first: nothing stands
    there yet."""
    step = 4 * padded
    groups = padded // 16
    whole = groups - groups % TILE_VECTORS
    for r in range(0, rows, TILE_ROWS):
        a, to = w + r * LINE, out + r * step
        for g in range(0, whole, TILE_VECTORS):
            if first:
                _fresh(a, LINE, values + 64 * g, step, 64, count, to + 64 * g, step)
            else:
                _added(a, LINE, values + 64 * g, step, 64, count, to + 64 * g, step)
        for g in range(whole, groups):
            if first:
                _fresh_narrow(a, LINE, values + 64 * g, step, 64, count, to + 64 * g, step)
            else:
                _added_narrow(a, LINE, values + 64 * g, step, 64, count, to + 64 * g, step)


@njit(error_model="numpy")
def _weights(row: int, count: int, seen: int, before: float) -> tuple[float, float]:
    """A row's scores of `count` keys, of which it sees the first `seen`, to weights in place.

    before: largest score so far. Returns the new one and the sum of the weights.
    """
    padded = (count + 15) // 16 * 16
    top = masked = splat(f32(MASKED))
    whole = min(seen - seen % 16, padded) if seen > 0 else 0
    for j in range(0, whole, 16):
        top = vmax(load_f32(row + 4 * j), top)
    for j in range(whole, padded, 16):
        limit = splat_i32(simd.i32(seen - j))
        s = where_less(lanes(), limit, load_f32(row + 4 * j), masked)
        store_f32(row + 4 * j, s)
        top = vmax(s, top)
    m = max(f32(before), max_f32(top))
    shift, total = splat(f32(m)), splat(f32(0.0))
    for j in range(0, padded, 16):
        w = exp2(sub(load_f32(row + 4 * j), shift))
        store_f32(row + 4 * j, w)
        total = add(total, w)
    return m, sum_f32(total)


@njit(error_model="numpy")
def _biases(
    table: int, stride: int, head: int, starts: int, buckets: int, low: int, count: int,
    causal: int, out: int,
) -> None:  # fmt: skip
    """log2(e) times one head's biases for the distances key - query from `low` on.

    table: float32 [buckets of all directions], `stride` bytes apart. starts: int32, the smallest
    distance of each bucket of one direction.
    """
    bucket = 0
    for index in range(count):
        distance = low + index
        away = abs(distance)
        if causal:
            away = max(-distance, 0)
        while bucket + 1 < buckets and ld_i32(starts + 4 * (bucket + 1)) <= away:
            bucket += 1
        while ld_i32(starts + 4 * bucket) > away:
            bucket -= 1
        entry = bucket + (buckets if distance > 0 and not causal else 0)
        bias = ld_f32(table + entry * stride + 4 * head)
        st_f32(out + 4 * index, f32(bias * f32(LOG2_E)))


@njit(error_model="numpy")
def _add_biases(scores: int, rows: int, padded: int, waves: int) -> None:
    """Row r's biases begin r places before the last row's end."""
    for r in range(rows):
        at = waves + 4 * (rows - 1 - r)
        for j in range(0, padded, 16):
            p = scores + r * LINE + 4 * j
            store_f32(p, add(load_f32(p), load_f32(at + 4 * j)))


@njit(error_model="numpy")
def rescale(row: int, padded: int, factor: float) -> None:
    """`padded` values of a row times a factor, in place."""
    times = splat(f32(factor))
    for d in range(0, padded, 16):
        store_f32(row + 4 * d, mul(load_f32(row + 4 * d), times))


@njit(error_model="numpy")
def _softmax(
    scores: int, n: int, count: int, first: int, place: int, causal: int, stats: int, out: int,
    padded: int,
) -> None:  # fmt: skip
    """Scores of n rows to weights, what they have so far rescaled. place: the first row's number
    less the first key's."""
    for r in range(n):
        seen = min(count, place + r + 1) if causal else count
        before: Any = f32(MASKED) if first else ld_f32(stats + 4 * r)
        m, total = _weights(scores + r * LINE, count, seen, before)
        st_f32(stats + 4 * r, m)
        if not first and m != before:
            keep = max_f32(exp2(splat(f32(before - m))))
            st_f32(stats + STATS + 4 * r, f32(ld_f32(stats + STATS + 4 * r) * keep))
            rescale(out + 4 * r * padded, padded, keep)
        so_far = f32(0.0) if first else ld_f32(stats + STATS + 4 * r)
        st_f32(stats + STATS + 4 * r, f32(so_far + total))


@njit(error_model="numpy")
def divided(row: int, size: int, norm: float, y: int) -> None:
    """`size` values of a row over its sum of weights, to y."""
    whole, inverse = size - size % 16, f32(f32(1.0) / f32(norm))
    times = splat(inverse)
    for d in range(0, whole, 16):
        store_f32(y + 4 * d, mul(load_f32(row + 4 * d), times))
    for d in range(whole, size):
        st_f32(y + 4 * d, f32(ld_f32(row + 4 * d) * inverse))


@njit(error_model="numpy")
def _attend(ins: int, head: int, t0: int, n: int, private: int) -> None:
    """n rows of one head from row t0 on, over all keys."""
    size, heads = ld_i64(ins + DOT_ATTENTION.size), ld_i64(ins + DOT_ATTENTION.heads)
    packed, causal = ld_i64(ins + DOT_ATTENTION.packed), ld_i64(ins + DOT_ATTENTION.causal)
    table, starts = ld_i64(ins + DOT_ATTENTION.table), ld_i64(ins + DOT_ATTENTION.starts)
    factor = f32(ld_f32(ins + DOT_ATTENTION.scale) * f32(LOG2_E))
    m = ld_i64(packed)
    groups, padded = (m + 15) // 16, (size + 15) // 16 * 16
    keys = packed + HEAD + head * groups * 64 * size
    values = packed + HEAD + (heads * size + head * padded) * groups * 64
    rows = (n + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    stats, waves = private, private + 2 * STATS
    scores = waves + WAVES
    out = scores + QUERIES * LINE
    mine = out + 4 * QUERIES * padded
    stride = ld_i64(ins + DOT_ATTENTION.q_stride)
    q = ld_i64(ins + DOT_ATTENTION.q) + t0 * stride + 4 * head * size
    _copy_queries(q, stride, n, size, factor, mine)
    end = min(m, t0 + n) if causal else m
    for j0 in range(0, end, KEYS):
        count = min(KEYS, m - j0)
        wide = (count + 15) // 16
        _scores(mine, size, rows, keys + j0 // 16 * 64 * size, wide, scores)
        if table != 0:
            low = j0 - t0 - n + 1
            _biases(
                table, ld_i64(ins + DOT_ATTENTION.table_stride), head, starts,
                ld_i64(ins + DOT_ATTENTION.buckets), low, 16 * wide + n, causal, waves,
            )  # fmt: skip
            _add_biases(scores, n, 16 * wide, waves)
        _softmax(scores, n, count, int(j0 == 0), t0 - j0, causal, stats, out, padded)
        v = values + 4 * j0 * padded
        _sums(scores, rows, v, padded, count, out, int(j0 == 0))
    y_stride = ld_i64(ins + DOT_ATTENTION.y_stride)
    y = ld_i64(ins + DOT_ATTENTION.y) + t0 * y_stride + 4 * head * size
    for r in range(n):
        norm = ld_f32(stats + STATS + 4 * r)
        divided(out + 4 * r * padded, size, norm, y + r * y_stride)


@kernel
def dot_attention(ins: int, thread: int, threads: int) -> None:
    """Softmax attention of rows over packed keys and values; claims heads of tiles of queries."""
    n, heads = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + DOT_ATTENTION.heads)
    ctrl = ld_i64(ins + DOT_ATTENTION.ctrl)
    private = ld_i64(ins + DOT_ATTENTION.scratch)
    private += thread * ld_i64(ins + DOT_ATTENTION.scratch_bytes)
    tiles = (n + QUERIES - 1) // QUERIES
    while True:
        start, stop = claim(ctrl, heads * tiles, threads, 16)
        if start >= heads * tiles:
            return
        for unit in range(start, stop):
            t0 = unit % tiles * QUERIES
            _attend(ins, unit // tiles, t0, min(QUERIES, n - t0), private)
