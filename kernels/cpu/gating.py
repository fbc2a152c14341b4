"""Gates, norms of parts of rows, and mixed parts, on the CPU."""

from __future__ import annotations

from typing import Any

from numba import njit

from ..gating import GATE, HEAD_NORM, MIX_STREAMS
from ..operands import COUNT
from ..simd import bcast_f32, f32, ld_f32, ld_i64, load_f32, store_f32
from ..simd_math import fma, mul, splat
from .activation import norm_row, share
from .layout import BY_SILU, IDENTITY
from .scalar_math import LOG2_E
from .vector_math import gated
from .vm import kernel


@njit(error_model="numpy")
def by_gate(x: Any, gate: Any, act: int) -> Any:
    """x act(gate) by lane."""
    if act == IDENTITY:
        return mul(x, gate)
    u = mul(gate, splat(f32(-LOG2_E)))
    return mul(x, gated(gate, u)) if act == BY_SILU else gated(x, u)


@kernel
def gate_rows(ins: int, thread: int, threads: int) -> None:
    """y = x act(gate), rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, gate, y = ld_i64(ins + GATE.x), ld_i64(ins + GATE.gate), ld_i64(ins + GATE.y)
    stride, apart = ld_i64(ins + GATE.stride), ld_i64(ins + GATE.gate_stride)
    act, one = ld_i64(ins + GATE.act), ld_i64(ins + GATE.one)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        xs, to, by = x + row * stride, y + row * stride, gate + row * apart
        for at in range(0, stride, 64):
            g = bcast_f32(by) if one != 0 else load_f32(by + at)
            store_f32(to + at, by_gate(load_f32(xs + at), g, act))


@kernel
def head_norm(ins: int, thread: int, threads: int) -> None:
    """Root-mean-square norm of the parts of each row, rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, stride = ld_i64(ins + HEAD_NORM.x), ld_i64(ins + HEAD_NORM.x_stride)
    y, y_stride = ld_i64(ins + HEAD_NORM.y), ld_i64(ins + HEAD_NORM.y_stride)
    width, size = ld_i64(ins + HEAD_NORM.width), ld_i64(ins + HEAD_NORM.size)
    weight, step = ld_i64(ins + HEAD_NORM.weight), ld_i64(ins + HEAD_NORM.weight_step)
    eps = ld_f32(ins + HEAD_NORM.eps)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        for part in range(width // size):
            at = 4 * size * part
            w = weight + step * part
            norm_row(x + row * stride + at, w, y + row * y_stride + at, size, eps)


@kernel
def mix_streams(ins: int, thread: int, threads: int) -> None:
    """Streams that are sums of others; columns shared out, so that one row uses every thread."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, x_stride = ld_i64(ins + MIX_STREAMS.x), ld_i64(ins + MIX_STREAMS.x_stride)
    by, by_stride = ld_i64(ins + MIX_STREAMS.by), ld_i64(ins + MIX_STREAMS.by_stride)
    streams, made = ld_i64(ins + MIX_STREAMS.streams), ld_i64(ins + MIX_STREAMS.made)
    size = 4 * ld_i64(ins + MIX_STREAMS.width)
    y, y_stride = ld_i64(ins + MIX_STREAMS.y), ld_i64(ins + MIX_STREAMS.y_stride)
    start, stop = share(size // 64, thread, threads)
    for row in range(n):
        shares, read, to = by + row * by_stride, x + row * x_stride, y + row * y_stride
        for i in range(made):
            for at in range(64 * start, 64 * stop, 64):
                total = mul(bcast_f32(shares), load_f32(read + at))
                for j in range(1, streams):
                    part = load_f32(read + j * size + at)
                    total = fma(bcast_f32(shares + 4 * j), part, total)
                store_f32(to + i * size + at, total)
            shares += 4 * streams
