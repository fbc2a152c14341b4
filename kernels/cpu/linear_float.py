"""linear with f16 or f32 weights on the CPU, in float32 arithmetic.

Weights [K][16] for 16 output rows at a time; operands as in `linear.py`.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..linear import LINEAR
from ..operands import COUNT
from ..simd import add, bcast_f32, f32, fma, ld_i64, load_f16, load_f32, splat, store_f32
from .activation import gate
from .linear import GRAIN, finish
from .vm import claim, kernel


@njit(error_model="numpy")
def row_f32(w: int, k: int, x: int) -> Any:
    """16 rows times one token; four accumulators by k mod 4, summed in pairs."""
    a0 = a1 = a2 = a3 = splat(f32(0.0))
    for i in range(0, k - 3, 4):
        a0 = fma(load_f32(w), bcast_f32(x + 4 * i), a0)
        a1 = fma(load_f32(w + 64), bcast_f32(x + 4 * i + 4), a1)
        a2 = fma(load_f32(w + 128), bcast_f32(x + 4 * i + 8), a2)
        a3 = fma(load_f32(w + 192), bcast_f32(x + 4 * i + 12), a3)
        w += 256
    for i in range(k - k % 4, k):
        a0 = fma(load_f32(w), bcast_f32(x + 4 * i), a0)
        w += 64
    return add(add(a0, a1), add(a2, a3))


@njit(error_model="numpy")
def row_f16(w: int, k: int, x: int) -> Any:
    """As row_f32, with float16 weights."""
    a0 = a1 = a2 = a3 = splat(f32(0.0))
    for i in range(0, k - 3, 4):
        a0 = fma(load_f16(w), bcast_f32(x + 4 * i), a0)
        a1 = fma(load_f16(w + 32), bcast_f32(x + 4 * i + 4), a1)
        a2 = fma(load_f16(w + 64), bcast_f32(x + 4 * i + 8), a2)
        a3 = fma(load_f16(w + 96), bcast_f32(x + 4 * i + 12), a3)
        w += 128
    for i in range(k - k % 4, k):
        a0 = fma(load_f16(w), bcast_f32(x + 4 * i), a0)
        w += 32
    return add(add(a0, a1), add(a2, a3))


def _float(row_kernel: Any, element: int) -> Any:
    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n = ld_i64(ld_i64(ins + COUNT))
        w, groups = ld_i64(ins + LINEAR.weights), ld_i64(ins + LINEAR.groups)
        k = ld_i64(ins + LINEAR.depth)
        x, x_stride = ld_i64(ins + LINEAR.x), ld_i64(ins + LINEAR.x_stride)
        y, stride = ld_i64(ins + LINEAR.y), ld_i64(ins + LINEAR.y_stride)
        bias, residual = ld_i64(ins + LINEAR.bias), ld_i64(ins + LINEAR.residual)
        ctrl = ld_i64(ins + LINEAR.ctrl)
        if n == 0:
            return
        while True:
            start, stop = claim(ctrl, groups, threads, GRAIN)
            if start >= groups:
                return
            for g in range(start, stop):
                wg = w + g * k * 16 * element
                bg = bias + 64 * g if bias != 0 else 0
                for t in range(n):
                    rt = residual + t * stride + 64 * g if residual != 0 else 0
                    acc = row_kernel(wg, k, x + t * x_stride)
                    finish(acc, y + t * stride + 64 * g, bg, rt)

    return run


def _float_gated(row_kernel: Any, element: int) -> Any:
    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n = ld_i64(ld_i64(ins + COUNT))
        w, groups = ld_i64(ins + LINEAR.weights), ld_i64(ins + LINEAR.groups)
        k = ld_i64(ins + LINEAR.depth)
        x, x_stride = ld_i64(ins + LINEAR.x), ld_i64(ins + LINEAR.x_stride)
        y, stride = ld_i64(ins + LINEAR.y), ld_i64(ins + LINEAR.y_stride)
        act, ctrl = ld_i64(ins + LINEAR.act), ld_i64(ins + LINEAR.ctrl)
        if n == 0:
            return
        while True:
            start, stop = claim(ctrl, groups, threads, GRAIN)
            if start >= groups:
                return
            for g in range(start, stop):
                wg = w + 2 * g * k * 16 * element
                for t in range(n):
                    xt = x + t * x_stride
                    g_row = row_kernel(wg, k, xt)
                    out = gate(g_row, row_kernel(wg + k * 16 * element, k, xt), act)
                    store_f32(y + t * stride + 64 * g, out)

    return run


_f32, _f16 = _float(row_f32, 4), _float(row_f16, 2)
_f32_gated, _f16_gated = _float_gated(row_f32, 4), _float_gated(row_f16, 2)


@kernel
def linear_f32(ins: int, thread: int, threads: int) -> None:
    """float32 weights."""
    _f32(ins, thread, threads)


@kernel
def linear_f16(ins: int, thread: int, threads: int) -> None:
    """float16 weights, float32 arithmetic."""
    _f16(ins, thread, threads)


@kernel
def gated_f32(ins: int, thread: int, threads: int) -> None:
    """Gate and up rows in alternating groups, activation applied: float32 weights."""
    _f32_gated(ins, thread, threads)


@kernel
def gated_f16(ins: int, thread: int, threads: int) -> None:
    """Gate and up rows in alternating groups, activation applied: float16 weights."""
    _f16_gated(ins, thread, threads)
