"""The step before linear attention's sums: queries, and the rows that tokens leave in the tail."""

from __future__ import annotations

from numba import njit, types

from ..linear_attention_lower import LINEAR_ROWS
from ..simd import f32, ld_f32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import fma, mul, splat, sub, vmax
from .activation import norm_row, share
from .append import rotate
from .scalar_math import softplus64
from .tails import sequence, standing, tail_row
from .vm import kernel

MAMBA2S, RELU = 2, 3  # of `ops_linear.MODES`
LEAST_RATE = -30.0


@njit(error_model="numpy")
def _copy(x: int, y: int, size: int) -> None:
    """`size` values and zeros up to the next 16."""
    whole = size - size % 16
    for d in range(0, whole, 16):
        store_f32(y + 4 * d, load_f32(x + 4 * d))
    if whole < size:
        store_f32(y + 4 * whole, splat(f32(0.0)))
        for d in range(whole, size):
            st_f32(y + 4 * d, ld_f32(x + 4 * d))


@njit(error_model="numpy")
def _mapped(x: int, table: int, size: int, features: int, into: int) -> None:
    """x [D] times a head's map [D][r padded]."""
    wide = (features + 15) // 16 * 16
    for i in range(0, wide, 16):
        total = splat(f32(0.0))
        for d in range(size):
            total = fma(splat(ld_f32(x + 4 * d)), load_f32(table + 4 * (d * wide + i)), total)
        store_f32(into + 4 * i, total)


@njit(error_model="numpy")
def _scaled(x: int, features: int, scale: float, relu: int, into: int) -> None:
    """x [r] times the scale, each value by itself; relu: not below 0."""
    factor, zero = splat(f32(scale)), splat(f32(0.0))
    whole = features - features % 16
    for i in range(0, whole, 16):
        v = mul(load_f32(x + 4 * i), factor)
        store_f32(into + 4 * i, vmax(v, zero) if relu else v)
    for i in range(whole, features):
        value = f32(ld_f32(x + 4 * i) * f32(scale))
        st_f32(into + 4 * i, max(value, f32(0.0)) if relu else value)


@njit(error_model="numpy")
def _head(ins: int, t: int, head: int, room: int, into: int, near: int) -> None:
    """Features of a query head, or of a key head behind these, to `into`, and with a window the
    head itself to `near`. room: three rows of D rounded up to 16."""
    heads, groups = ld_i64(ins + LINEAR_ROWS.heads), ld_i64(ins + LINEAR_ROWS.kv_heads)
    size, features = ld_i64(ins + LINEAR_ROWS.size), ld_i64(ins + LINEAR_ROWS.features)
    table, half = ld_i64(ins + LINEAR_ROWS.rope), ld_i64(ins + LINEAR_ROWS.half)
    wide = (size + 15) // 16 * 16
    x = room
    _copy(
        ld_i64(ins + LINEAR_ROWS.qkv) + t * ld_i64(ins + LINEAR_ROWS.stride) + 4 * head * size,
        x, size,
    )  # fmt: skip
    key = head >= heads
    norm = ld_i64(ins + LINEAR_ROWS.k_norm) if key else ld_i64(ins + LINEAR_ROWS.q_norm)
    if norm != 0:
        norm_row(x, norm, x, size, ld_f32(ins + LINEAR_ROWS.eps))
    if table != 0:
        rotate(x, table + t * half * 8, half)
    g = head - heads if key else head // (heads // groups)
    mean = ld_i64(ins + LINEAR_ROWS.mean)
    if key and mean != 0:
        for d in range(0, wide, 16):
            at = mean + 4 * (g * wide + d)
            store_f32(x + 4 * d, sub(load_f32(x + 4 * d), load_f32(at)))
    if ld_i64(ins + LINEAR_ROWS.window) != 0:
        _scaled(x, size, ld_f32(ins + LINEAR_ROWS.scale), 0, near)
    weights = ld_i64(ins + LINEAR_ROWS.k_map) if key else ld_i64(ins + LINEAR_ROWS.q_map)
    if weights != 0:
        padded = (features + 15) // 16 * 16
        _mapped(x, weights + 4 * g * size * padded, size, features, room + 4 * wide)
        x = room + 4 * wide
    relu = int(ld_i64(ins + LINEAR_ROWS.mode) == RELU)
    _scaled(x, features, ld_f32(ins + LINEAR_ROWS.scale), relu, into)


@njit(error_model="numpy")
def _value(ins: int, t: int, g: int, into: int) -> None:
    """A head's values, zeros up to the next 16; in mode mamba2s times their step."""
    heads, groups = ld_i64(ins + LINEAR_ROWS.heads), ld_i64(ins + LINEAR_ROWS.kv_heads)
    size = ld_i64(ins + LINEAR_ROWS.size)
    row = ld_i64(ins + LINEAR_ROWS.qkv) + t * ld_i64(ins + LINEAR_ROWS.stride)
    _copy(row + 4 * (heads + groups + g) * size, into, size)
    if ld_i64(ins + LINEAR_ROWS.mode) == MAMBA2S:
        gates = ld_i64(ins + LINEAR_ROWS.gates) + t * ld_i64(ins + LINEAR_ROWS.gates_stride)
        first = groups if ld_i64(ins + LINEAR_ROWS.decay) else 0
        step = splat(f32(softplus64(types.float64(ld_f32(gates + 4 * (first + g))))))
        for d in range(0, size, 16):
            store_f32(into + 4 * d, mul(load_f32(into + 4 * d), step))


@njit(error_model="numpy")
def _rate(ins: int, t: int, g: int) -> float:
    """Logarithm of a token's decay."""
    if ld_i64(ins + LINEAR_ROWS.decay) == 0:
        return f32(0.0)
    gates = ld_i64(ins + LINEAR_ROWS.gates) + t * ld_i64(ins + LINEAR_ROWS.gates_stride)
    x = types.float64(ld_f32(gates + 4 * g))
    return f32(max(-softplus64(max(min(x, 600.0), -600.0)), LEAST_RATE))


@kernel
def linear_rows(ins: int, thread: int, threads: int) -> None:
    """Queries of the step's rows, and their rows of the tail; heads of rows shared out."""
    heads, groups = ld_i64(ins + LINEAR_ROWS.heads), ld_i64(ins + LINEAR_ROWS.kv_heads)
    size, features = ld_i64(ins + LINEAR_ROWS.size), ld_i64(ins + LINEAR_ROWS.features)
    q, q_stride = ld_i64(ins + LINEAR_ROWS.q), ld_i64(ins + LINEAR_ROWS.q_stride)
    sequences, state = ld_i64(ins + LINEAR_ROWS.sequences), ld_i64(ins + LINEAR_ROWS.state)
    room = ld_i64(ins + LINEAR_ROWS.scratch)
    room += thread * ld_i64(room - 8)
    wide = (size + 15) // 16 * 16
    for index in range(ld_i64(sequences)):
        first, count, slot = sequence(sequences, index)
        rows = standing(state, slot)[1]
        start, stop = share(count * (heads + groups), thread, threads)
        for unit in range(start, stop):
            i, head = unit // (heads + groups), unit % (heads + groups)
            t = first + i
            if head < heads:
                to = q + t * q_stride
                near = to + 4 * (heads * features + head * size)
                _head(ins, t, head, room, to + 4 * head * features, near)
                continue
            g, row = head - heads, tail_row(state, slot, rows + i)
            near = row + 4 * (groups * (features + wide + 1) + g * size)
            _head(ins, t, head, room, row + 4 * g * features, near)
            _value(ins, t, g, row + 4 * (groups * features + g * wide))
            st_f32(row + 4 * (groups * (features + wide) + g), _rate(ins, t, g))
