"""What adapters add to a product on the CPU; operands and layouts as in `kernels/low_rank.py`.

The rows of one adapter are worked on together: h by chains of its own, y by the tiles of
`linear_float`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import njit

from ..low_rank import DOWN, ENTRY, SPANNED, UP
from ..operands import COUNT
from ..simd import bcast_f32, f32, ld_i32, ld_i64, load_f16, load_f32, st_i64, store_f32
from ..simd_math import add, fma, splat
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


@cache
def _chains_of(*, half: bool) -> Any:
    """Sums over the inputs of one row, or of two, for 16 ranks: four chains of every fourth input,
    which one alone would wait for, added up at the end."""
    load, step = (load_f16, 32) if half else (load_f32, 64)

    @njit(error_model="numpy")
    def one(w: int, depth: int, x: int, to: int) -> None:
        a = b = c = d = splat(f32(0))
        whole = depth // 4 * 4
        for k in range(0, whole, 4):
            at, xk = w + step * k, x + 4 * k
            a = fma(load(at), bcast_f32(xk), a)
            b = fma(load(at + step), bcast_f32(xk + 4), b)
            c = fma(load(at + 2 * step), bcast_f32(xk + 8), c)
            d = fma(load(at + 3 * step), bcast_f32(xk + 12), d)
        for k in range(whole, depth):
            a = fma(load(w + step * k), bcast_f32(x + 4 * k), a)
        store_f32(to, add(add(a, b), add(c, d)))

    @njit(error_model="numpy")
    def two(w: int, depth: int, x: int, y: int, to: int, other: int) -> None:
        a = b = c = d = e = f = g = h = splat(f32(0))
        whole = depth // 4 * 4
        for k in range(0, whole, 4):
            at, xk, yk = w + step * k, x + 4 * k, y + 4 * k
            v = load(at)
            a, e = fma(v, bcast_f32(xk), a), fma(v, bcast_f32(yk), e)
            v = load(at + step)
            b, f = fma(v, bcast_f32(xk + 4), b), fma(v, bcast_f32(yk + 4), f)
            v = load(at + 2 * step)
            c, g = fma(v, bcast_f32(xk + 8), c), fma(v, bcast_f32(yk + 8), g)
            v = load(at + 3 * step)
            d, h = fma(v, bcast_f32(xk + 12), d), fma(v, bcast_f32(yk + 12), h)
        for k in range(whole, depth):
            v = load(w + step * k)
            a, e = fma(v, bcast_f32(x + 4 * k), a), fma(v, bcast_f32(y + 4 * k), e)
        store_f32(to, add(add(a, b), add(c, d)))
        store_f32(other, add(add(e, f), add(g, h)))

    return one, two


def _down(*, half: bool) -> Any:
    one, two = _chains_of(half=half)
    element = 2 if half else 4

    @njit(error_model="numpy")
    def unit(ins: int, at: int, first: int, group: int) -> None:
        entry = ld_i64(ins + DOWN.table) + ENTRY * ld_i64(at)
        last = min(first + CHUNK, ld_i64(at + 16))
        if group >= ld_i64(entry + 8):
            return
        x, x_stride = ld_i64(ins + DOWN.x), ld_i64(ins + DOWN.x_stride)
        h_stride = ld_i64(ins + DOWN.h_stride)
        h, depth = ld_i64(ins + DOWN.h) + 64 * group, ld_i64(ins + DOWN.depth)
        w = ld_i64(entry) + group * depth * 16 * element
        order = ld_i64(ins + DOWN.order) + 4 * ld_i64(at + 8)
        for t in range(first, last - 1, 2):
            i, j = ld_i32(order + 4 * t), ld_i32(order + 4 * t + 4)
            two(w, depth, x + i * x_stride, x + j * x_stride, h + i * h_stride, h + j * h_stride)
        if first < last and (last - first) % 2 == 1:
            i = ld_i32(order + 4 * (last - 1))
            one(w, depth, x + i * x_stride, h + i * h_stride)

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n, runs = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + DOWN.runs)
        groups, chunks = ld_i64(ins + DOWN.h_stride) // 64, (n + CHUNK - 1) // CHUNK
        units = ld_i64(runs) * groups * chunks
        while n > 0:
            start, stop = claim(ld_i64(ins + DOWN.ctrl), units, threads, 2)
            if start >= units:
                return
            for index in range(start, stop):
                rest = index % (groups * chunks)
                at = runs + 8 + 24 * (index // (groups * chunks))
                unit(ins, at, rest % chunks * CHUNK, rest // chunks)

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


@cache
def _products_of(*, half: bool) -> Any:
    """Of `count` alike groups with the rows of `order`, as `_tile` gives them."""
    tile, step = _tile(half=half), 32 if half else 64

    @njit(error_model="numpy")
    def products(
        ins: int, spans: int, g: int, count: int, order: int, rows: int, table: int, sums: int
    ) -> int:
        h, h_stride = ld_i64(ins + UP.h), ld_i64(ins + UP.h_stride)
        at = spans + SPANNED * g
        ranks, depth = 4 * ld_i64(at + 8), ld_i64(at + 16)
        for i in range(rows):
            st_i64(table + 8 * i, h + ld_i32(order + 4 * i) * h_stride + ranks)
        return tile(ld_i64(at), step * depth, count, depth, rows, table, sums)

    return products


@cache
def _added_of(*, half: bool) -> Any:
    """y += B h for some rows and groups g0 to g1."""
    products, step = _products_of(half=half), 32 if half else 64

    @njit(error_model="numpy")
    def added(ins: int, spans: int, g0: int, g1: int, order: int, rows: int, table: int) -> None:
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

    return added


@cache
def _gated_of(*, half: bool) -> Any:
    """Groups of what comes out from g on, of some rows: their gates and ups alternate in y. How
    many groups were done, up to `most`."""
    products, step = _products_of(half=half), 32 if half else 64

    @njit(error_model="numpy")
    def gated(ins: int, spans: int, g: int, most: int, order: int, rows: int, table: int) -> int:
        y, stride, act = ld_i64(ins + UP.y), ld_i64(ins + UP.y_stride), ld_i64(ins + UP.act)
        out, out_stride = ld_i64(ins + UP.out), ld_i64(ins + UP.out_stride)
        sums, more, pairs = table + SUMS, table + SUMS + HALF_SUMS, ld_i64(ins + UP.groups)
        gates, ups = _alike(spans, g, most, step), _alike(spans, g + pairs, most, step)
        count, each, other = max(1, min(gates, ups)), 0, 0
        if gates > 0:
            each = products(ins, spans, g, count, order, rows, table, sums)
        if ups > 0:
            other = products(ins, spans, g + pairs, count, order, rows, table, more)
        for i in range(rows):
            row = ld_i32(order + 4 * i)
            at, to = y + row * stride + 128 * g, out + row * out_stride + 64 * g
            for k in range(count):
                a, b = load_f32(at + 128 * k), load_f32(at + 128 * k + 64)
                if each > 0:
                    a = add(a, load_f32(sums + 64 * (each * k + i)))
                if other > 0:
                    b = add(b, load_f32(more + 64 * (other * k + i)))
                store_f32(to + 64 * k, gate(a, b, act))
        return count

    return gated


def _up(*, half: bool) -> Any:
    added, gated = _added_of(half=half), _gated_of(half=half)

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
                added(ins, spans, g0, g1, order + 4 * t, rows, table)
                continue
            g = g0
            while g < g1:
                g += gated(ins, spans, g, min(SPAN, g1 - g), order + 4 * t, rows, table)

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
