"""conv2d with 3 x 3 cells and stride 1 on the CPU: F(2 x 2, 3 x 3) of Lavin and Gray
(arXiv 1509.09308), with 4 multiplications an output where the plain sum takes 9.

For a tile of 2 x 2 outputs and the 4 x 4 cells d under them:

    y = A' [ sum over channels of (G w G') * (B' d B) ] A

Weights are transformed when the program runs, 16 matrices [groups][depth][16]: that costs less
than what is saved from some hundred outputs on. The sums over channels are the float products of
`linear_float.py`, one for each of the 16 places.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..conv_lower import CONV, WINOGRAD
from ..operands import COUNT
from ..simd import f32, ld_i64, load_f16, load_f32, st_i64, store_f32
from ..simd_math import add, mul, splat, sub
from ..simd_tiles import TALL
from .conv import finish_cell, place
from .layout import SPAN, WINOGRAD_TILES
from .linear import GRAIN
from .linear_float import span_of
from .vm import claim, kernel

PLACES = 16  # of a tile: 4 x 4


@njit(error_model="numpy")
def _three(a: Any, b: Any, c: Any) -> Any:
    """G times three weights: a, (a + b + c) / 2, (a - b + c) / 2, c."""
    half, ends = splat(f32(0.5)), add(a, c)
    return a, mul(half, add(ends, b)), mul(half, sub(ends, b)), c


def _weights(load: Any, element: int) -> Any:
    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        w, u = ld_i64(ins + WINOGRAD.weights), ld_i64(ins + WINOGRAD.transformed)
        groups, depth = ld_i64(ins + WINOGRAD.groups), ld_i64(ins + WINOGRAD.depth)
        size = 16 * element
        apart = groups * depth * 64
        for g in range(groups * thread // threads, groups * (thread + 1) // threads):
            for k in range(depth):
                at = w + (g * 9 * depth + k) * size
                row, to = depth * size, u + (g * depth + k) * 64
                p0, p1, p2, p3 = _three(load(at), load(at + 3 * row), load(at + 6 * row))
                at += row
                q0, q1, q2, q3 = _three(load(at), load(at + 3 * row), load(at + 6 * row))
                at += row
                r0, r1, r2, r3 = _three(load(at), load(at + 3 * row), load(at + 6 * row))
                _row_of_weights(p0, q0, r0, to, apart)
                _row_of_weights(p1, q1, r1, to + 4 * apart, apart)
                _row_of_weights(p2, q2, r2, to + 8 * apart, apart)
                _row_of_weights(p3, q3, r3, to + 12 * apart, apart)

    return run


@njit(error_model="numpy")
def _row_of_weights(a: Any, b: Any, c: Any, to: int, apart: int) -> None:
    w0, w1, w2, w3 = _three(a, b, c)
    store_f32(to, w0)
    store_f32(to + apart, w1)
    store_f32(to + 2 * apart, w2)
    store_f32(to + 3 * apart, w3)


_weights_f32, _weights_f16 = _weights(load_f32, 4), _weights(load_f16, 2)


@kernel
def winograd_f32(ins: int, thread: int, threads: int) -> None:
    """G w G' of float32 weights."""
    _weights_f32(ins, thread, threads)


@kernel
def winograd_f16(ins: int, thread: int, threads: int) -> None:
    """G w G' of float16 weights."""
    _weights_f16(ins, thread, threads)


@njit(error_model="numpy")
def _four(cells: int, c: int) -> Any:
    """B' times a column of four cells, 16 channels from byte c on."""
    d0, d1 = load_f32(ld_i64(cells) + c), load_f32(ld_i64(cells + 32) + c)
    d2, d3 = load_f32(ld_i64(cells + 64) + c), load_f32(ld_i64(cells + 96) + c)
    return sub(d0, d2), add(d1, d2), sub(d2, d1), sub(d1, d3)


@njit(error_model="numpy")
def _row_of_cells(a: Any, b: Any, c: Any, d: Any, to: int, apart: int) -> None:
    store_f32(to, sub(a, c))
    store_f32(to + apart, add(b, c))
    store_f32(to + 2 * apart, sub(c, b))
    store_f32(to + 3 * apart, sub(b, d))


@njit(error_model="numpy")
def _transformed(ins: int, tile: int, across: int, cells: int, to: int, apart: int) -> None:
    """B' d B of a tile, all channels: float32 [16 places], `apart` bytes from one to the next.
    cells: room for 16 addresses."""
    x, x_stride = ld_i64(ins + CONV.x), ld_i64(ins + CONV.x_stride)
    height, width = ld_i64(ins + CONV.height), ld_i64(ins + CONV.width)
    factor, before = ld_i64(ins + CONV.factor), ld_i64(ins + CONV.before)
    zeros, depth = ld_i64(ins + CONV.zeros), ld_i64(ins + CONV.depth)
    oy, ox = 2 * (tile // across) - before, 2 * (tile % across) - before
    for i in range(4):
        iy = place(oy + i, height, factor)
        for j in range(4):
            ix = place(ox + j, width, factor)
            at = zeros if (iy | ix) < 0 else x + (iy * width + ix) * x_stride
            st_i64(cells + 8 * (4 * i + j), at)
    for c in range(0, 4 * depth, 64):
        a0, a1, a2, a3 = _four(cells, c)
        b0, b1, b2, b3 = _four(cells + 8, c)
        c0, c1, c2, c3 = _four(cells + 16, c)
        d0, d1, d2, d3 = _four(cells + 24, c)
        _row_of_cells(a0, b0, c0, d0, to + c, apart)
        _row_of_cells(a1, b1, c1, d1, to + 4 * apart + c, apart)
        _row_of_cells(a2, b2, c2, d2, to + 8 * apart + c, apart)
        _row_of_cells(a3, b3, c3, d3, to + 12 * apart + c, apart)


@njit(error_model="numpy")
def _sides(sums: int, apart: int) -> Any:
    """A' times a column of four sums."""
    m0, m1 = load_f32(sums), load_f32(sums + 4 * apart)
    m2, m3 = load_f32(sums + 8 * apart), load_f32(sums + 12 * apart)
    return add(add(m0, m1), m2), sub(sub(m1, m2), m3)


@njit(error_model="numpy")
def _outputs(ins: int, sums: int, apart: int, g: int, oy: int, ox: int, height: int) -> None:
    """The 2 x 2 outputs of a tile for a group; sums: float32 [16 places][16], `apart` bytes from
    one to the next. Those outside of the grid are left away."""
    width, stride = ld_i64(ins + CONV.out_width), ld_i64(ins + CONV.y_stride)
    a0, a1 = _sides(sums, apart)
    b0, b1 = _sides(sums + apart, apart)
    c0, c1 = _sides(sums + 2 * apart, apart)
    d0, d1 = _sides(sums + 3 * apart, apart)
    at = (oy * width + ox) * stride + 64 * g
    finish_cell(ins, add(add(a0, b0), c0), at, g)
    if ox + 1 < width:
        finish_cell(ins, sub(sub(b0, c0), d0), at + stride, g)
    if oy + 1 < height:
        at += width * stride
        finish_cell(ins, add(add(a1, b1), c1), at, g)
        if ox + 1 < width:
            finish_cell(ins, sub(sub(b1, c1), d1), at + stride, g)


_span = span_of(half=False)


@kernel
def conv_winograd(ins: int, thread: int, threads: int) -> None:
    """Chunks of tiles claimed; weights: transformed ones."""
    n, w = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + CONV.weights)
    groups, depth = ld_i64(ins + CONV.groups), ld_i64(ins + CONV.depth)
    width, ctrl = ld_i64(ins + CONV.out_width), ld_i64(ins + CONV.ctrl)
    table = ld_i64(ins + CONV.scratch) + thread * ld_i64(ins + CONV.scratch_bytes)
    height, across = n // width, (width + 1) // 2
    tiles = (height + 1) // 2 * across
    row = (depth + 15) // 16 * 64
    sums, made = table + 256, WINOGRAD_TILES // TALL * SPAN * TALL * 64
    cells = sums + PLACES * made
    units = (tiles + WINOGRAD_TILES - 1) // WINOGRAD_TILES
    while n > 0:
        start, stop = claim(ctrl, units, threads, GRAIN)
        if start >= units:
            return
        for unit in range(start, stop):
            first = unit * WINOGRAD_TILES
            count = min(WINOGRAD_TILES, tiles - first)
            for t in range(count):
                to = cells + t * row
                _transformed(ins, first + t, across, table + 128, to, WINOGRAD_TILES * row)
            for g in range(0, groups, SPAN):
                several = min(SPAN, groups - g)
                for p in range(PLACES):
                    wp = w + (p * groups + g) * depth * 64
                    for t in range(0, count, TALL):
                        for i in range(TALL):
                            at = p * WINOGRAD_TILES + min(t + i, count - 1)
                            st_i64(table + 8 * i, cells + at * row)
                        to = sums + p * made + t * SPAN * 64
                        _span(wp, depth * 64, several, depth, 1, table, to, 0)
                for t in range(count):
                    oy, ox = 2 * ((first + t) // across), 2 * ((first + t) % across)
                    at = sums + t // TALL * TALL * SPAN * 64 + t % TALL * 64
                    for i in range(several):
                        _outputs(ins, at + 64 * TALL * i, made, g + i, oy, ox, height)
