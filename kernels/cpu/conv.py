"""conv2d on the CPU.

With float weights a convolution is the product of `linear_float.py` over cells that stay where they
stand: a tile of outputs has a table of their addresses, a row of zeros for what lies outside of the
grid. With all others the patches of a band of outputs are written out, as float rows or as the int8
tiles of quantized products.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd_math
from ..conv_lower import CONV, CONV_PATCHES
from ..operands import COUNT
from ..simd import f32, ld_i64, load_f32, st_i64, store_f32
from ..simd_math import add, div, splat, sub, vmax
from ..simd_tiles import TALL
from .activation import share
from .layout import CHUNK, SPAN, TILE, TOKEN_BLOCK
from .linear import GRAIN
from .linear_float import DEPTH, span_of
from .quantize import quantize_row
from .vm import claim, kernel

RELU, SILU = 1, 2  # `conv_lower.FOLDED`


@njit(error_model="numpy")
def place(at: int, cells: int, factor: int) -> int:
    """Where a cell of an upsampled side of `cells` stands, -1 outside."""
    if at < 0 or at >= cells * factor:
        return -1
    return at if factor == 1 else at // factor


@njit(error_model="numpy")
def _cells(ins: int, table: int, spare: int, first: int, n: int) -> None:
    """Addresses [side * side][TALL] of the cells under TALL outputs from `first` on; past the last
    one its own again. spare: room for [2][side][TALL]."""
    x, x_stride = ld_i64(ins + CONV.x), ld_i64(ins + CONV.x_stride)
    height, width = ld_i64(ins + CONV.height), ld_i64(ins + CONV.width)
    side, zeros = ld_i64(ins + CONV.kernel), ld_i64(ins + CONV.zeros)
    stride, before = ld_i64(ins + CONV.stride), ld_i64(ins + CONV.before)
    factor, out_width = ld_i64(ins + CONV.factor), ld_i64(ins + CONV.out_width)
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
        return div(v, add(splat(f32(1.0)), simd_math.exp(sub(splat(f32(0.0)), v))))
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


def _float(element: int) -> Any:
    span = span_of(half=element == 2)

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n, stride = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + CONV.y_stride)
        w, groups = ld_i64(ins + CONV.weights), ld_i64(ins + CONV.groups)
        k, taps = ld_i64(ins + CONV.depth), ld_i64(ins + CONV.kernel)
        taps *= taps
        sums = ld_i64(ins + CONV.scratch) + thread * ld_i64(ins + CONV.scratch_bytes)
        tables = sums + 64 * CHUNK * SPAN
        spare, each = tables + 8 * CHUNK * taps, 8 * TALL * taps
        spans, apart, held = (groups + SPAN - 1) // SPAN, taps * k * 16 * element, -1
        units, panel = (n + CHUNK - 1) // CHUNK * spans, max(1, DEPTH // k)
        while n > 0:
            start, stop = claim(ld_i64(ins + CONV.ctrl), units, threads, GRAIN)
            if start >= units:
                return
            for unit in range(start, stop):
                first, g = unit // spans * CHUNK, unit % spans * SPAN
                count, last = min(SPAN, groups - g), min(first + CHUNK, n)
                tiles = (last - first + TALL - 1) // TALL
                if first != held:
                    for t in range(tiles):
                        _cells(ins, tables + t * each, spare, first + t * TALL, n)
                    held = first
                for tap in range(0, taps, panel):
                    several, wt = min(panel, taps - tap), w + g * apart + tap * k * 16 * element
                    for t in range(0, last - first, TALL):
                        table = tables + t // TALL * each + 8 * TALL * tap
                        to = sums + t * 64 * SPAN if taps > panel else sums
                        span(wt, apart, count, k, several, table, to, tap)
                        for i in range(min(TALL, last - first - t) if tap + several == taps else 0):
                            at = (first + t + i) * stride + 64 * g
                            for j in range(count):
                                v = load_f32(to + 64 * (TALL * j + i))
                                finish_cell(ins, v, at + 64 * j, g + j)

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
    x, x_stride = ld_i64(ins + CONV_PATCHES.x), ld_i64(ins + CONV_PATCHES.x_stride)
    depth, side = ld_i64(ins + CONV_PATCHES.depth), ld_i64(ins + CONV_PATCHES.kernel)
    height, width = ld_i64(ins + CONV_PATCHES.height), ld_i64(ins + CONV_PATCHES.width)
    across, stride = ld_i64(ins + CONV_PATCHES.out_width), ld_i64(ins + CONV_PATCHES.stride)
    before, factor = ld_i64(ins + CONV_PATCHES.before), ld_i64(ins + CONV_PATCHES.factor)
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


@kernel
def patch_rows(ins: int, thread: int, threads: int) -> None:
    """Patches as float rows."""
    n, first = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + CONV_PATCHES.first)
    y, y_stride = ld_i64(ins + CONV_PATCHES.y), ld_i64(ins + CONV_PATCHES.y_stride)
    spare = ld_i64(ins + CONV_PATCHES.scratch) + thread * ld_i64(ins + CONV_PATCHES.scratch_bytes)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        _patch(ins, first + row, spare)
        for at in range(0, y_stride, 64):
            store_f32(y + row * y_stride + at, load_f32(spare + at))


@kernel
def quantize_patches(ins: int, thread: int, threads: int) -> None:
    """Patches as int8 tiles."""
    n, first = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + CONV_PATCHES.first)
    blocks, tiles = ld_i64(ins + CONV_PATCHES.blocks), ld_i64(ins + CONV_PATCHES.y)
    offset, side = ld_i64(ins + CONV_PATCHES.offset), ld_i64(ins + CONV_PATCHES.kernel)
    width = side * side * ld_i64(ins + CONV_PATCHES.depth)
    spare = ld_i64(ins + CONV_PATCHES.scratch) + thread * ld_i64(ins + CONV_PATCHES.scratch_bytes)
    start, stop = share(n, thread, threads)
    if n == 1:
        tiles += thread * ld_i64(ins + CONV_PATCHES.y_stride)
        start, stop = 0, 1
    for row in range(start, stop):
        _patch(ins, first + row, spare + 128)
        t0 = row - row % TILE
        tile = tiles + t0 * blocks * TOKEN_BLOCK
        quantize_row(spare + 128, width, tile, row - t0, min(TILE, n - t0), blocks, offset, spare)
