"""What adapters add to a product on the CPU; operands and layouts as in `kernels/low_rank.py`.

The rows of one adapter are worked on together, by the tiles of `linear_float`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import njit

from ..low_rank import DOWN, ENTRY, SPANNED, UP
from ..operands import COUNT
from ..simd import add, ld_i32, ld_i64, load_f32, st_i64, store_f32
from ..simd_tiles import TALL
from .activation import gate
from .layout import CHUNK, SPAN
from .linear_float import SUMS, lone_of, span_of
from .vm import claim, kernel

BLOCK = 16  # groups of outputs of a unit of work
HALF_SUMS = 64 * TALL * SPAN  # bytes of a tile's sums


@cache
def _tile(*, half: bool) -> Any:
    """Products of up to TALL rows with up to SPAN groups: sums float32 [groups][rows][16], rows
    being 1 or TALL, which is returned."""
    span, lone = span_of(half=half), lone_of(half=half)

    @njit(error_model="numpy")
    def tile(
        w: int, apart: int, count: int, depth: int, rows: int, table: int, sums: int
    ) -> int:  # fmt: skip
        if rows == 1:
            lone(w, apart, count, depth, table, sums)
            return 1
        for i in range(rows, TALL):
            st_i64(table + 8 * i, ld_i64(table))
        span(w, apart, count, depth, 1, table, sums, 0)
        return TALL

    return tile


def _down(*, half: bool) -> Any:
    tile, element = _tile(half=half), 2 if half else 4

    @njit(error_model="numpy")
    def unit(ins: int, at: int, first: int, block: int, table: int) -> None:
        entry = ld_i64(ins + DOWN.table) + ENTRY * ld_i64(at)
        count = min(SPAN, ld_i64(entry + 8) - block * SPAN)
        last = min(first + CHUNK, ld_i64(at + 16))
        if count <= 0 or first >= last:
            return
        x, x_stride = ld_i64(ins + DOWN.x), ld_i64(ins + DOWN.x_stride)
        h, h_stride = ld_i64(ins + DOWN.h), ld_i64(ins + DOWN.h_stride)
        depth, order = ld_i64(ins + DOWN.depth), ld_i64(ins + DOWN.order) + 4 * ld_i64(at + 8)
        apart, sums = depth * 16 * element, table + SUMS
        w = ld_i64(entry) + block * SPAN * apart
        for t in range(first, last, TALL):
            rows = min(TALL, last - t)
            for i in range(rows):
                st_i64(table + 8 * i, x + ld_i32(order + 4 * (t + i)) * x_stride)
            each = tile(w, apart, count, depth, rows, table, sums)
            for i in range(rows):
                to = h + ld_i32(order + 4 * (t + i)) * h_stride + 64 * SPAN * block
                for g in range(count):
                    store_f32(to + 64 * g, load_f32(sums + 64 * (each * g + i)))

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n, runs = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + DOWN.runs)
        table = ld_i64(ins + DOWN.scratch) + thread * ld_i64(ins + DOWN.scratch_bytes)
        blocks = (ld_i64(ins + DOWN.h_stride) // 64 + SPAN - 1) // SPAN
        chunks = (n + CHUNK - 1) // CHUNK
        units = ld_i64(runs) * blocks * chunks
        while n > 0:
            start, stop = claim(ld_i64(ins + DOWN.ctrl), units, threads, 2)
            if start >= units:
                return
            for index in range(start, stop):
                rest = index % (blocks * chunks)
                at = runs + 8 + 24 * (index // (blocks * chunks))
                unit(ins, at, rest % chunks * CHUNK, rest // chunks, table)

    return run


@njit(error_model="numpy")
def _alike(spans: int, g: int, most: int, step: int) -> int:
    """How many groups of outputs from the g-th on read the same ranks and follow each other in
    memory, `step` bytes a rank; up to `most`."""
    at = spans + SPANNED * g
    if spans == 0 or ld_i64(at + 16) == 0:
        return 0
    count = 1
    while count < most:
        other = at + SPANNED * count
        follows = ld_i64(other) == ld_i64(at) + count * step * ld_i64(at + 16)
        if not follows or ld_i64(other + 8) != ld_i64(at + 8) or ld_i64(other + 16) == 0:
            break
        if ld_i64(other + 16) != ld_i64(at + 16):
            break
        count += 1
    return count


def _up(*, half: bool) -> Any:
    tile, step = _tile(half=half), 32 if half else 64

    @njit(error_model="numpy")
    def products(
        ins: int, spans: int, g: int, count: int, order: int, rows: int, table: int, sums: int
    ) -> int:  # fmt: skip
        """Of `count` alike groups with the rows of `order`; rows of the sums."""
        h, h_stride = ld_i64(ins + UP.h), ld_i64(ins + UP.h_stride)
        at = spans + SPANNED * g
        ranks, depth = 4 * ld_i64(at + 8), ld_i64(at + 16)
        for i in range(rows):
            st_i64(table + 8 * i, h + ld_i32(order + 4 * i) * h_stride + ranks)
        return tile(ld_i64(at), step * depth, count, depth, rows, table, sums)

    @njit(error_model="numpy")
    def add_to(ins: int, spans: int, g0: int, g1: int, order: int, rows: int, table: int) -> None:
        y, stride, sums = ld_i64(ins + UP.y), ld_i64(ins + UP.y_stride), table + SUMS
        g = g0
        while g < g1:
            count = _alike(spans, g, min(SPAN, g1 - g), step)
            if count > 0:
                each = products(ins, spans, g, count, order, rows, table, sums)
                for i in range(rows):
                    to = y + ld_i32(order + 4 * i) * stride + 64 * g
                    for k in range(count):
                        made = load_f32(sums + 64 * (each * k + i))
                        store_f32(to + 64 * k, add(load_f32(to + 64 * k), made))
            g += max(count, 1)

    @njit(error_model="numpy")
    def gated(ins: int, spans: int, g: int, order: int, rows: int, table: int) -> None:
        """Group g of what comes out: its gate and its up, which alternate in y."""
        y, stride, act = ld_i64(ins + UP.y), ld_i64(ins + UP.y_stride), ld_i64(ins + UP.act)
        out, out_stride = ld_i64(ins + UP.out), ld_i64(ins + UP.out_stride)
        sums, more, pairs = table + SUMS, table + SUMS + HALF_SUMS, ld_i64(ins + UP.groups)
        each, other = 0, 0
        if _alike(spans, g, 1, step) > 0:
            each = products(ins, spans, g, 1, order, rows, table, sums)
        if _alike(spans, g + pairs, 1, step) > 0:
            other = products(ins, spans, g + pairs, 1, order, rows, table, more)
        for i in range(rows):
            row = ld_i32(order + 4 * i)
            a, b = load_f32(y + row * stride + 128 * g), load_f32(y + row * stride + 128 * g + 64)
            if each > 0:
                a = add(a, load_f32(sums + 64 * i))
            if other > 0:
                b = add(b, load_f32(more + 64 * i))
            store_f32(out + row * out_stride + 64 * g, gate(a, b, act))

    @njit(error_model="numpy")
    def unit(ins: int, at: int, first: int, block: int, table: int) -> None:
        spans = ld_i64(ld_i64(ins + UP.table) + ENTRY * ld_i64(at) + 16)
        last, pairs = min(first + CHUNK, ld_i64(at + 16)), ld_i64(ins + UP.gated)
        if spans == 0 and pairs == 0:
            return
        g0, order = block * BLOCK, ld_i64(ins + UP.order) + 4 * ld_i64(at + 8)
        g1 = min(g0 + BLOCK, ld_i64(ins + UP.groups))
        for t in range(first, last, TALL):
            rows = min(TALL, last - t)
            if pairs == 0:
                add_to(ins, spans, g0, g1, order + 4 * t, rows, table)
                continue
            for g in range(g0, g1):
                gated(ins, spans, g, order + 4 * t, rows, table)

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n, runs = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + UP.runs)
        table = ld_i64(ins + UP.scratch) + thread * ld_i64(ins + UP.scratch_bytes)
        blocks = (ld_i64(ins + UP.groups) + BLOCK - 1) // BLOCK
        chunks = (n + CHUNK - 1) // CHUNK
        units = ld_i64(runs) * blocks * chunks
        while n > 0:
            start, stop = claim(ld_i64(ins + UP.ctrl), units, threads, 2)
            if start >= units:
                return
            for index in range(start, stop):
                rest = index % (blocks * chunks)
                at = runs + 8 + 24 * (index // (blocks * chunks))
                unit(ins, at, rest % chunks * CHUNK, rest // chunks, table)

    return run


_down_f32, _down_f16 = _down(half=False), _down(half=True)
_up_f32, _up_f16 = _up(half=False), _up(half=True)


@kernel
def low_down_f32(ins: int, thread: int, threads: int) -> None:
    """h = A x of each row by its adapter: float32 factors."""
    _down_f32(ins, thread, threads)


@kernel
def low_down_f16(ins: int, thread: int, threads: int) -> None:
    """h = A x of each row by its adapter: float16 factors."""
    _down_f16(ins, thread, threads)


@kernel
def low_up_f32(ins: int, thread: int, threads: int) -> None:
    """y += B h, and the gate: float32 factors."""
    _up_f32(ins, thread, threads)


@kernel
def low_up_f16(ins: int, thread: int, threads: int) -> None:
    """y += B h, and the gate: float16 factors."""
    _up_f16(ins, thread, threads)
