"""Recurrences with a matrix a head on the CPU: `ssd` and `gated_delta`, token by token.

A unit of work is 16 columns of a head's matrix in one sequence, over all of its rows: so much stays
in the nearest cache, and no thread waits for another one. Sums over the keys are four chains of
fused multiply-adds, by the key's number mod 4. Rows are computed as they are in steps of one.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..gated_delta import GATED_DELTA
from ..operands import COUNT
from ..simd import bcast_f32, f32, ld_f32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import add, fma, mul, splat, sub, sum_f32
from ..ssd import SSD
from .scalar_math import exp64, softplus64, sqrt
from .slots import matrices, sequence
from .vm import claim, kernel

LEAST = -700.0  # of exponents


@njit(error_model="numpy")
def _columns(source: int, stride: int, into: int, into_stride: int, keys: int, rest: int) -> None:
    """`rest` columns of a matrix to where its rows have another stride."""
    for n in range(keys):
        for lane in range(rest):
            value = ld_f32(source + n * stride + 4 * lane)
            st_f32(into + n * into_stride + 4 * lane, value)


@njit(error_model="numpy")
def _store(y: int, v: Any, rest: int, spare: int) -> None:
    """The first `rest` lanes."""
    if rest == 16:
        store_f32(y, v)
        return
    store_f32(spare, v)
    for lane in range(rest):
        st_f32(y + 4 * lane, ld_f32(spare + 4 * lane))


@njit(error_model="numpy")
def _learn(
    source: int, into: int, stride: int, keys: int, decay: Any, k: int, v: Any, q: int
) -> Any:
    """S <- decay S + k v^T for 16 columns, and q^T S of what it is then. k, q: addresses of
    float32 [keys]; source: S before, which is also where it goes (`into`) but for a step's first
    row."""
    zero = splat(f32(0.0))
    y0, y1, y2, y3 = zero, zero, zero, zero
    whole = keys - keys % 4
    for n in range(0, whole, 4):
        at = n * stride
        s = fma(bcast_f32(k + 4 * n), v, mul(decay, load_f32(source + at)))
        store_f32(into + at, s)
        y0 = fma(bcast_f32(q + 4 * n), s, y0)
        at += stride
        s = fma(bcast_f32(k + 4 * n + 4), v, mul(decay, load_f32(source + at)))
        store_f32(into + at, s)
        y1 = fma(bcast_f32(q + 4 * n + 4), s, y1)
        at += stride
        s = fma(bcast_f32(k + 4 * n + 8), v, mul(decay, load_f32(source + at)))
        store_f32(into + at, s)
        y2 = fma(bcast_f32(q + 4 * n + 8), s, y2)
        at += stride
        s = fma(bcast_f32(k + 4 * n + 12), v, mul(decay, load_f32(source + at)))
        store_f32(into + at, s)
        y3 = fma(bcast_f32(q + 4 * n + 12), s, y3)
    for n in range(whole, keys):
        s = fma(bcast_f32(k + 4 * n), v, mul(decay, load_f32(source + n * stride)))
        store_f32(into + n * stride, s)
        y0 = fma(bcast_f32(q + 4 * n), s, y0)
    return add(add(y0, y1), add(y2, y3))


@njit(error_model="numpy")
def _recall(source: int, stride: int, keys: int, k: int) -> Any:
    """k^T S for 16 columns."""
    zero = splat(f32(0.0))
    y0, y1, y2, y3 = zero, zero, zero, zero
    whole = keys - keys % 4
    for n in range(0, whole, 4):
        at = source + n * stride
        y0 = fma(bcast_f32(k + 4 * n), load_f32(at), y0)
        y1 = fma(bcast_f32(k + 4 * n + 4), load_f32(at + stride), y1)
        y2 = fma(bcast_f32(k + 4 * n + 8), load_f32(at + 2 * stride), y2)
        y3 = fma(bcast_f32(k + 4 * n + 12), load_f32(at + 3 * stride), y3)
    for n in range(whole, keys):
        y0 = fma(bcast_f32(k + 4 * n), load_f32(source + n * stride), y0)
    return add(add(y0, y1), add(y2, y3))


@njit(error_model="numpy")
def _ssd_rows(ins: int, index: int, head: int, block: int, spare: int) -> None:
    """16 columns of a head's matrix over the rows of a sequence."""
    first, rows, slot = sequence(ld_i64(ins + SSD.sequences), index)
    heads, size, groups = (
        ld_i64(ins + SSD.heads),
        ld_i64(ins + SSD.size),
        ld_i64(ins + SSD.groups),
    )
    keys, x_stride = ld_i64(ins + SSD.keys), ld_i64(ins + SSD.x_stride)
    column = 4 * (head * size + 16 * block)
    x = ld_i64(ins + SSD.x) + first * x_stride
    b = x + 4 * (heads * size + head // (heads // groups) * keys)
    c, x = b + 4 * groups * keys, x + column
    dt_stride, y_stride = ld_i64(ins + SSD.dt_stride), ld_i64(ins + SSD.y_stride)
    dt = ld_i64(ins + SSD.dt) + first * dt_stride + 4 * head
    y = ld_i64(ins + SSD.y) + first * y_stride + column
    bias, d = ld_f32(ld_i64(ins + SSD.dt_bias) + 4 * head), ld_f32(ld_i64(ins + SSD.d) + 4 * head)
    rate = -exp64(float(ld_f32(ld_i64(ins + SSD.a_log) + 4 * head)))
    low, high = float(ld_f32(ins + SSD.dt_min)), float(ld_f32(ins + SSD.dt_max))
    source, into = matrices(ld_i64(ins + SSD.state), slot)
    at, stride, rest = 4 * (head * keys * size + 16 * block), 4 * size, min(16, size - 16 * block)
    source, into, made = source + at, into + at, into + at
    if rest < 16:
        _columns(source, stride, spare + 64, 64, keys, rest)
        source, into, stride = spare + 64, spare + 64, 64
    for row in range(rows):
        raw = min(max(float(ld_f32(dt + row * dt_stride)) + float(bias), LEAST), -LEAST)
        step = min(max(softplus64(raw), low), high)
        decay = splat(f32(exp64(max(rate * step, LEAST))))
        v = load_f32(x + row * x_stride)
        k, q = b + row * x_stride, c + row * x_stride
        seen = _learn(source, into, stride, keys, decay, k, mul(v, splat(f32(step))), q)
        _store(y + row * y_stride, fma(v, splat(d), seen), rest, spare)
        source = into
    if rest < 16:
        _columns(spare + 64, 64, made, 4 * size, keys, rest)


@kernel
def ssd(ins: int, thread: int, threads: int) -> None:
    """Sequences, heads and columns claimed."""
    if ld_i64(ld_i64(ins + COUNT)) == 0:
        return
    heads, blocks = ld_i64(ins + SSD.heads), (ld_i64(ins + SSD.size) + 15) // 16
    total = ld_i64(ld_i64(ins + SSD.sequences)) * heads * blocks
    spare = ld_i64(ins + SSD.scratch) + thread * ld_i64(ins + SSD.scratch_bytes)
    while True:
        start, stop = claim(ld_i64(ins + SSD.ctrl), total, threads, 4)
        if start >= total:
            return
        for unit in range(start, stop):
            head = unit // blocks % heads
            _ssd_rows(ins, unit // (blocks * heads), head, unit % blocks, spare)


@njit(error_model="numpy")
def _inverse_norm(x: int, width: int, eps: float) -> float:
    """1 / sqrt(sum of squares + eps)."""
    total, whole = splat(f32(0.0)), width - width % 16
    for i in range(0, whole, 16):
        v = load_f32(x + 4 * i)
        total = fma(v, v, total)
    rest = float(sum_f32(total))
    for i in range(whole, width):
        rest += float(ld_f32(x + 4 * i)) * float(ld_f32(x + 4 * i))
    return 1.0 / float(sqrt(f32(rest + eps)))


@njit(error_model="numpy")
def _delta_rows(ins: int, index: int, head: int, block: int, spare: int) -> None:
    """16 columns of a head's matrix over the rows of a sequence."""
    first, rows, slot = sequence(ld_i64(ins + GATED_DELTA.sequences), index)
    heads, size = ld_i64(ins + GATED_DELTA.heads), ld_i64(ins + GATED_DELTA.size)
    count, keys = ld_i64(ins + GATED_DELTA.key_heads), ld_i64(ins + GATED_DELTA.keys)
    x_stride, eps = ld_i64(ins + GATED_DELTA.x_stride), float(ld_f32(ins + GATED_DELTA.eps))
    column = 4 * (head * size + 16 * block)
    q = ld_i64(ins + GATED_DELTA.x) + first * x_stride + 4 * (head // (heads // count) * keys)
    k = q + 4 * count * keys
    v = ld_i64(ins + GATED_DELTA.x) + first * x_stride + 8 * count * keys + column
    g_stride, y_stride = ld_i64(ins + GATED_DELTA.gates_stride), ld_i64(ins + GATED_DELTA.y_stride)
    gates = ld_i64(ins + GATED_DELTA.gates) + first * g_stride + 4 * head
    y = ld_i64(ins + GATED_DELTA.y) + first * y_stride + column
    bias = float(ld_f32(ld_i64(ins + GATED_DELTA.dt_bias) + 4 * head))
    rate = -exp64(float(ld_f32(ld_i64(ins + GATED_DELTA.a_log) + 4 * head)))
    source, into = matrices(ld_i64(ins + GATED_DELTA.state), slot)
    at, stride, rest = 4 * (head * keys * size + 16 * block), 4 * size, min(16, size - 16 * block)
    source, into, made = source + at, into + at, into + at
    if rest < 16:
        _columns(source, stride, spare + 64, 64, keys, rest)
        source, into, stride = spare + 64, spare + 64, 64
    for row in range(rows):
        at = row * x_stride
        b = min(max(float(ld_f32(gates + row * g_stride)), LEAST), -LEAST)
        a = float(ld_f32(gates + row * g_stride + 4 * heads)) + bias
        step = softplus64(min(max(a, LEAST), -LEAST))
        decay = splat(f32(exp64(max(rate * step, LEAST))))
        unit = splat(f32(_inverse_norm(k + at, keys, eps)))
        scale = _inverse_norm(q + at, keys, eps) / float(sqrt(f32(keys)))
        held = mul(mul(_recall(source, stride, keys, k + at), decay), unit)
        beta = splat(f32(1.0 / (1.0 + exp64(-b))))
        change = mul(mul(sub(load_f32(v + at), held), beta), unit)
        seen = _learn(source, into, stride, keys, decay, k + at, change, q + at)
        _store(y + row * y_stride, mul(seen, splat(f32(scale))), rest, spare)
        source = into
    if rest < 16:
        _columns(spare + 64, 64, made, 4 * size, keys, rest)


@kernel
def gated_delta(ins: int, thread: int, threads: int) -> None:
    """Sequences, heads and columns claimed."""
    if ld_i64(ld_i64(ins + COUNT)) == 0:
        return
    heads, blocks = ld_i64(ins + GATED_DELTA.heads), (ld_i64(ins + GATED_DELTA.size) + 15) // 16
    total = ld_i64(ld_i64(ins + GATED_DELTA.sequences)) * heads * blocks
    spare = ld_i64(ins + GATED_DELTA.scratch) + thread * ld_i64(ins + GATED_DELTA.scratch_bytes)
    while True:
        start, stop = claim(ld_i64(ins + GATED_DELTA.ctrl), total, threads, 4)
        if start >= total:
            return
        for unit in range(start, stop):
            head = unit // blocks % heads
            _delta_rows(ins, unit // (blocks * heads), head, unit % blocks, spare)
