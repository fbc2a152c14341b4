"""linear with f16 or f32 weights on the CPU, in float32 arithmetic.

Weights [K][16] for 16 output rows at a time; operands as in `linear.py`. Tiles of rows by groups of
outputs (`kernels/simd_tiles.py`): one chain of sums an output, for one row and for many.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import njit

from ..linear import LINEAR
from ..operands import COUNT
from ..simd import ld_i64, load_f32, st_i64, store_f32
from ..simd_tiles import TALL, WIDE, float_tile
from .activation import gate
from .layout import CHUNK, SPAN
from .linear import GRAIN, finish
from .vm import claim, kernel

DEPTH = 2048  # inputs of a panel of weights, which stays in the second-level cache for a chunk
SUMS = 256  # scratch: addresses of a tile's rows stand before its sums


@cache
def span_of(*, half: bool) -> Any:
    """Products of a tile's rows with up to SPAN groups: a function of (w, apart, count, depth,
    segments, table, sums, resume), as `simd_tiles.float_tile`; sums: float32 [count][TALL][16]."""
    wide, narrow = float_tile(TALL, WIDE, half=half), float_tile(TALL, 1, half=half)

    @njit(error_model="numpy")
    def span(
        w: int, apart: int, count: int, depth: int, segments: int, table: int, sums: int,
        resume: int,
    ) -> None:  # fmt: skip
        g = 0
        while g + WIDE <= count:
            wide(w + g * apart, apart, depth, segments, table, sums + 64 * TALL * g, resume)
            g += WIDE
        while g < count:
            narrow(w + g * apart, apart, depth, segments, table, sums + 64 * TALL * g, resume)
            g += 1

    return span


@cache
def lone_of(*, half: bool) -> Any:
    """As `span_of` for one row; sums: float32 [count][16]."""
    wide, narrow = float_tile(1, SPAN, half=half), float_tile(1, 1, half=half)

    @njit(error_model="numpy")
    def lone(w: int, apart: int, count: int, depth: int, table: int, sums: int) -> None:
        if count == SPAN:
            wide(w, apart, depth, 1, table, sums, 0)
            return
        for g in range(count):
            narrow(w + g * apart, apart, depth, 1, table, sums + 64 * g, 0)

    return lone


@njit(error_model="numpy")
def _finish(
    sums: int, apart: int, count: int, y: int, bias: int, residual: int, act: int, gated: bool
) -> None:
    """A row of `count` groups whose sums lie `apart` bytes from one to the next."""
    if gated:
        for g in range(count // 2):
            at = sums + 2 * g * apart
            store_f32(y + 64 * g, gate(load_f32(at), load_f32(at + apart), act))
        return
    for g in range(count):
        bg = bias + 64 * g if bias != 0 else 0
        rg = residual + 64 * g if residual != 0 else 0
        finish(load_f32(sums + g * apart), y + 64 * g, bg, rg)


def _float(element: int, *, gated: bool) -> Any:
    span, lone = span_of(half=element == 2), lone_of(half=element == 2)
    made = 32 if gated else 64  # bytes of a row's outputs for each group

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n = ld_i64(ld_i64(ins + COUNT))
        w, groups = ld_i64(ins + LINEAR.weights), ld_i64(ins + LINEAR.groups)
        k = ld_i64(ins + LINEAR.depth)
        x, x_stride = ld_i64(ins + LINEAR.x), ld_i64(ins + LINEAR.x_stride)
        y, stride = ld_i64(ins + LINEAR.y), ld_i64(ins + LINEAR.y_stride)
        bias, residual = ld_i64(ins + LINEAR.bias), ld_i64(ins + LINEAR.residual)
        act, ctrl = ld_i64(ins + LINEAR.act), ld_i64(ins + LINEAR.ctrl)
        table = ld_i64(ins + LINEAR.scratch) + thread * ld_i64(ins + LINEAR.scratch_bytes)
        sums, apart = table + SUMS, k * 16 * element
        if gated:
            groups *= 2
        chunks, width = (n + CHUNK - 1) // CHUNK, SPAN if n > 1 else 2
        units = chunks * ((groups + width - 1) // width)
        while n > 0:
            start, stop = claim(ctrl, units, threads, GRAIN)
            if start >= units:
                return
            if n == 1:
                st_i64(table, x)
                for g in range(start * width, min(stop * width, groups), SPAN):
                    count = min(SPAN, min(stop * width, groups) - g)
                    lone(w + g * apart, apart, count, k, table, sums)
                    bg = bias + 64 * g if bias != 0 else 0
                    rg = residual + 64 * g if residual != 0 else 0
                    _finish(sums, 64, count, y + made * g, bg, rg, act, gated)
                continue
            for unit in range(start, stop):
                g, first = unit // chunks * SPAN, unit % chunks * CHUNK
                count, last = min(SPAN, groups - g), min(first + CHUNK, n)
                bg = bias + 64 * g if bias != 0 else 0
                for k0 in range(0, k, DEPTH):
                    depth, wk = min(DEPTH, k - k0), w + g * apart + k0 * 16 * element
                    for t in range(first, last, TALL):
                        for i in range(TALL):
                            st_i64(table + 8 * i, x + min(t + i, n - 1) * x_stride + 4 * k0)
                        to = sums + (t - first) * 64 * SPAN if k > DEPTH else sums
                        span(wk, apart, count, depth, 1, table, to, k0)
                        for i in range(min(TALL, last - t) if k0 + depth == k else 0):
                            at = (t + i) * stride
                            rg = residual + at + 64 * g if residual != 0 else 0
                            out = y + at + made * g
                            _finish(to + 64 * i, 64 * TALL, count, out, bg, rg, act, gated)

    return run


_f32, _f16 = _float(4, gated=False), _float(2, gated=False)
_f32_gated, _f16_gated = _float(4, gated=True), _float(2, gated=True)


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
