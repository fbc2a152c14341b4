"""Rows of grids on the CPU: patches, positions, rows side by side. Copies only, and one sum."""

from __future__ import annotations

from numba import njit

from ..operands import COUNT
from ..simd import f32, ld_f32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import add
from ..spatial import CONCAT, PATCHES, POSITIONS
from .activation import share
from .vm import kernel


@njit(error_model="numpy")
def copy_row(x: int, y: int, width: int) -> None:
    """`width` float32 and no more."""
    whole = width - width % 16
    for i in range(0, whole, 16):
        store_f32(y + 4 * i, load_f32(x + 4 * i))
    for i in range(whole, width):
        st_f32(y + 4 * i, ld_f32(x + 4 * i))


@kernel
def patchify(ins: int, thread: int, threads: int) -> None:
    """patch x patch cells side by side, rows of patches shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    cells, cell_stride = ld_i64(ins + PATCHES.cells), ld_i64(ins + PATCHES.cell_stride)
    rows, row_stride = ld_i64(ins + PATCHES.rows), ld_i64(ins + PATCHES.row_stride)
    across, patch = ld_i64(ins + PATCHES.across), ld_i64(ins + PATCHES.patch)
    channels = ld_i64(ins + PATCHES.channels)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        corner = row // across * patch * across * patch + row % across * patch
        for p in range(patch * patch):
            cell = corner + p // patch * across * patch + p % patch
            at = rows + row * row_stride + 4 * p * channels
            copy_row(cells + cell * cell_stride, at, channels)


@kernel
def unpatchify(ins: int, thread: int, threads: int) -> None:
    """The inverse."""
    n = ld_i64(ld_i64(ins + COUNT))
    cells, cell_stride = ld_i64(ins + PATCHES.cells), ld_i64(ins + PATCHES.cell_stride)
    rows, row_stride = ld_i64(ins + PATCHES.rows), ld_i64(ins + PATCHES.row_stride)
    across, patch = ld_i64(ins + PATCHES.across), ld_i64(ins + PATCHES.patch)
    channels = ld_i64(ins + PATCHES.channels)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        corner = row // across * patch * across * patch + row % across * patch
        for p in range(patch * patch):
            cell = corner + p // patch * across * patch + p % patch
            at = rows + row * row_stride + 4 * p * channels
            copy_row(at, cells + cell * cell_stride, channels)


@kernel
def add_positions(ins: int, thread: int, threads: int) -> None:
    """y = x + the column's waves in the first half of a row, the line's in the second."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, y, stride = (
        ld_i64(ins + POSITIONS.x),
        ld_i64(ins + POSITIONS.y),
        ld_i64(ins + POSITIONS.stride),
    )
    columns, lines = ld_i64(ins + POSITIONS.columns), ld_i64(ins + POSITIONS.lines)
    across, half = ld_i64(ins + POSITIONS.across), ld_i64(ins + POSITIONS.half)
    whole = half - half % 16
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        for part in range(2):
            wave = lines + row // across * half * 4 if part else columns + row % across * half * 4
            at = row * stride + part * half * 4
            for i in range(0, whole, 16):
                v = add(load_f32(x + at + 4 * i), load_f32(wave + 4 * i))
                store_f32(y + at + 4 * i, v)
            for i in range(whole, half):
                st_f32(y + at + 4 * i, f32(ld_f32(x + at + 4 * i) + ld_f32(wave + 4 * i)))


@kernel
def concat(ins: int, thread: int, threads: int) -> None:
    """y = [a, b], rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    a, a_stride, a_width = (
        ld_i64(ins + CONCAT.a),
        ld_i64(ins + CONCAT.a_stride),
        ld_i64(ins + CONCAT.a_width),
    )
    b, b_stride, b_width = (
        ld_i64(ins + CONCAT.b),
        ld_i64(ins + CONCAT.b_stride),
        ld_i64(ins + CONCAT.b_width),
    )
    y, stride = ld_i64(ins + CONCAT.y), ld_i64(ins + CONCAT.y_stride)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        copy_row(a + row * a_stride, y + row * stride, a_width)
        copy_row(b + row * b_stride, y + row * stride + 4 * a_width, b_width)
