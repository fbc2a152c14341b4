"""Gates, and norms of parts of rows, on the CPU."""

from __future__ import annotations

from typing import Any

from numba import njit

from ..gating import GATE, HEAD_NORM
from ..operands import COUNT
from ..simd import f32, ld_f32, ld_i64, load_f32, mul, splat, store_f32
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
    """y = x act(gate), rows shared out, all with one stride."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, gate, y = ld_i64(ins + GATE.x), ld_i64(ins + GATE.gate), ld_i64(ins + GATE.y)
    stride, act = ld_i64(ins + GATE.stride), ld_i64(ins + GATE.act)
    start, stop = share(n, thread, threads)
    for at in range(start * stride, stop * stride, 64):
        store_f32(y + at, by_gate(load_f32(x + at), load_f32(gate + at), act))


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
