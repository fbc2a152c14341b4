"""conv2d on the CPU.

With float weights a convolution is the product of `linear_float.py` over cells that stay where they
stand: a tile of outputs has a table of their addresses, a row of zeros for what lies outside of the
grid. With all others the patches of a band of outputs are written out, as float rows or as the int8
tiles of quantized products.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd
from ..conv_lower import CONV, PATCHES
from ..operands import COUNT
from ..simd import add, div, f32, ld_i64, load_f32, splat, st_i64, store_f32, sub, vmax
from ..simd_tiles import SPAN, TALL
from .layout import CELLS, TILE, TOKEN_BLOCK
from .linear import GRAIN
from .linear_float import span_of
from .quantize import quantize_row
from .vm import claim, kernel

RELU, SILU = 1, 2  # `conv_lower.FOLDED`
TILES = CELLS // TALL  # of a unit of work


@njit(error_model="numpy")
def place(at: int, cells: int, factor: int) -> int:
    """Where a cell of an upsampled side of `cells` stands, -1 outside."""
    if at < 0 or at >= cells * factor:
        return -1
    return at if factor == 1 else at // factor


@njit(error_model="numpy")
def _cells(
    table: int, spare: int, first: int, n: int, x: int, x_stride: int, zeros: int, height: int,
    width: int, out_width: int, side: int, stride: int, before: int, factor: int,
) -> None:  # fmt: skip
    """Addresses [side * side][TALL] of the cells under TALL outputs from `first` on; past the last
    one its own again. spare: room for [2][side][TALL]."""
    down, across = spare, spare + 8 * TALL * side
    oy, ox = first // out_width, first % out_width
    for i in range(TALL):
        for k in range(side):
            iy = place(oy * stride + k - before, height, factor)
            ix = place(ox * stride + k - before, width, factor)
            st_i64(down + 8 * (k * TALL + i), iy if iy < 0 else iy * width * x_stride)
            st_i64(across + 8 * (k * TALL + i), ix if ix < 0 else ix * x_stride)
        if first + i + 1 < n:
            ox += 1
            if ox == out_width:
                ox, oy = 0, oy + 1
    for ky in range(side):
        for kx in range(side):
            for i in range(TALL):
                a = ld_i64(down + 8 * (ky * TALL + i))
                b = ld_i64(across + 8 * (kx * TALL + i))
                st_i64(table + 8 * i, zeros if (a | b) < 0 else x + a + b)
            table += 8 * TALL


@njit(error_model="numpy")
def folded(v: Any, act: int) -> Any:
    """An activation by its number in `conv_lower.FOLDED`; none for 0."""
    if act == RELU:
        return vmax(v, splat(f32(0.0)))
    if act == SILU:
        return div(v, add(splat(f32(1.0)), simd.exp(sub(splat(f32(0.0)), v))))
    return v


@njit(error_model="numpy")
def finish_cell(ins: int, v: Any, at: int, group: int) -> None:
    """Bias, residual, activation and store of a group of an output, whose place in rows is `at`."""
    bias, residual = ld_i64(ins + CONV.bias), ld_i64(ins + CONV.residual)
    if bias != 0:
        v = add(v, load_f32(bias + 64 * group))
    if residual != 0:
        v = add(v, load_f32(residual + at))
    store_f32(ld_i64(ins + CONV.y) + at, folded(v, ld_i64(ins + CONV.act)))


@njit(error_model="numpy")
def _finish(sums: int, count: int, y: int, bias: int, residual: int, act: int) -> None:
    """An output's `count` groups: bias, residual, activation; 0 where there is none."""
    for g in range(count):
        v = load_f32(sums + 64 * TALL * g)
        if bias != 0:
            v = add(v, load_f32(bias + 64 * g))
        if residual != 0:
            v = add(v, load_f32(residual + 64 * g))
        store_f32(y + 64 * g, folded(v, act))


def _float(element: int) -> Any:
    span = span_of(half=element == 2)

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n = ld_i64(ld_i64(ins + COUNT))
        w, groups, k = (
            ld_i64(ins + CONV.weights),
            ld_i64(ins + CONV.groups),
            ld_i64(ins + CONV.depth),
        )
        x, x_stride = ld_i64(ins + CONV.x), ld_i64(ins + CONV.x_stride)
        y, stride = ld_i64(ins + CONV.y), ld_i64(ins + CONV.y_stride)
        bias, residual = ld_i64(ins + CONV.bias), ld_i64(ins + CONV.residual)
        side, taps = (
            ld_i64(ins + CONV.kernel),
            ld_i64(ins + CONV.kernel) * ld_i64(ins + CONV.kernel),
        )
        act, ctrl = ld_i64(ins + CONV.act), ld_i64(ins + CONV.ctrl)
        sums = ld_i64(ins + CONV.scratch) + thread * ld_i64(ins + CONV.scratch_bytes)
        tables = sums + 64 * TALL * SPAN
        spare, each = tables + 8 * CELLS * taps, 8 * TALL * taps
        spans, apart, held = (groups + SPAN - 1) // SPAN, taps * k * 16 * element, -1
        units = (n + CELLS - 1) // CELLS * spans
        while n > 0:
            start, stop = claim(ctrl, units, threads, GRAIN)
            if start >= units:
                return
            for unit in range(start, stop):
                first, g = unit // spans * CELLS, unit % spans * SPAN
                count, last = min(SPAN, groups - g), min(first + CELLS, n)
                if first != held:
                    for t in range(first, last, TALL):
                        _cells(
                            tables + (t - first) // TALL * each, spare, t, n, x, x_stride,
                            ld_i64(ins + CONV.zeros), ld_i64(ins + CONV.height),
                            ld_i64(ins + CONV.width), ld_i64(ins + CONV.out_width), side,
                            ld_i64(ins + CONV.stride), ld_i64(ins + CONV.before),
                            ld_i64(ins + CONV.factor),
                        )  # fmt: skip
                    held = first
                bg = bias + 64 * g if bias != 0 else 0
                for t in range(first, last, TALL):
                    table = tables + (t - first) // TALL * each
                    span(w + g * apart, apart, count, k, taps, table, sums)
                    for i in range(min(TALL, last - t)):
                        at = (t + i) * stride + 64 * g
                        rg = residual + at if residual != 0 else 0
                        _finish(sums + 64 * i, count, y + at, bg, rg, act)

    return run


_f32, _f16 = _float(4), _float(2)


@kernel
def conv_f32(ins: int, thread: int, threads: int) -> None:
    """float32 weights."""
    _f32(ins, thread, threads)


@kernel
def conv_f16(ins: int, thread: int, threads: int) -> None:
    """float16 weights, float32 arithmetic."""
    _f16(ins, thread, threads)


@njit(error_model="numpy")
def _patch(ins: int, output: int, y: int) -> None:
    """The cells under an output as one row, float32 [side * side * depth]. Up to 15 columns behind
    a cell are written too."""
    x, x_stride = ld_i64(ins + PATCHES.x), ld_i64(ins + PATCHES.x_stride)
    depth, side = ld_i64(ins + PATCHES.depth), ld_i64(ins + PATCHES.kernel)
    height, width = ld_i64(ins + PATCHES.height), ld_i64(ins + PATCHES.width)
    across, stride = ld_i64(ins + PATCHES.out_width), ld_i64(ins + PATCHES.stride)
    before, factor = ld_i64(ins + PATCHES.before), ld_i64(ins + PATCHES.factor)
    oy, ox = output // across * stride - before, output % across * stride - before
    for ky in range(side):
        iy = place(oy + ky, height, factor)
        for kx in range(side):
            ix = place(ox + kx, width, factor)
            source = x + (iy * width + ix) * x_stride
            inside = iy >= 0 and ix >= 0
            for c in range(0, depth, 16):
                store_f32(y + 4 * c, load_f32(source + 4 * c) if inside else splat(f32(0.0)))
            y += 4 * depth


@njit(error_model="numpy")
def _share(n: int, thread: int, threads: int) -> tuple[int, int]:
    """Rows [start, stop) of a thread."""
    return n * thread // threads, n * (thread + 1) // threads


@kernel
def patch_rows(ins: int, thread: int, threads: int) -> None:
    """Patches as float rows."""
    n, first = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + PATCHES.first)
    y, y_stride = ld_i64(ins + PATCHES.y), ld_i64(ins + PATCHES.y_stride)
    spare = ld_i64(ins + PATCHES.scratch) + thread * ld_i64(ins + PATCHES.scratch_bytes)
    start, stop = _share(n, thread, threads)
    for row in range(start, stop):
        _patch(ins, first + row, spare)
        for at in range(0, y_stride, 64):
            store_f32(y + row * y_stride + at, load_f32(spare + at))


@kernel
def quantize_patches(ins: int, thread: int, threads: int) -> None:
    """Patches as int8 tiles."""
    n, first = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + PATCHES.first)
    blocks, tiles = ld_i64(ins + PATCHES.blocks), ld_i64(ins + PATCHES.y)
    offset, side = ld_i64(ins + PATCHES.offset), ld_i64(ins + PATCHES.kernel)
    width = side * side * ld_i64(ins + PATCHES.depth)
    spare = ld_i64(ins + PATCHES.scratch) + thread * ld_i64(ins + PATCHES.scratch_bytes)
    start, stop = _share(n, thread, threads)
    if n == 1:
        tiles += thread * ld_i64(ins + PATCHES.y_stride)
        start, stop = 0, 1
    for row in range(start, stop):
        _patch(ins, first + row, spare + 128)
        t0 = row - row % TILE
        tile = tiles + t0 * blocks * TOKEN_BLOCK
        quantize_row(spare + 128, width, tile, row - t0, min(TILE, n - t0), blocks, offset, spare)
