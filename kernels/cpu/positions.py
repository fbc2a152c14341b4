"""A learned table of positions, and factors by position, on the CPU."""

from __future__ import annotations

from ..operands import COUNT
from ..positions import ADD_LEARNED, SCALE_BY
from ..simd import f32, ld_f32, ld_i32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import add, mul, splat
from .activation import share
from .vm import kernel


@kernel
def add_learned_positions(ins: int, thread: int, threads: int) -> None:
    """y = x + a row of the table for each row, rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, y = ld_i64(ins + ADD_LEARNED.x), ld_i64(ins + ADD_LEARNED.y)
    stride, width = ld_i64(ins + ADD_LEARNED.stride), ld_i64(ins + ADD_LEARNED.width)
    table, step = ld_i64(ins + ADD_LEARNED.table), ld_i64(ins + ADD_LEARNED.row_bytes)
    positions = ld_i64(ins + ADD_LEARNED.positions)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        at, source = row * stride, table + ld_i32(positions + 4 * row) * step
        for i in range(0, width, 16):
            store_f32(y + at + 4 * i, add(load_f32(x + at + 4 * i), load_f32(source + 4 * i)))


@kernel
def scale_by_position(ins: int, thread: int, threads: int) -> None:
    """The first columns of each row times its factor, rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, y = ld_i64(ins + SCALE_BY.x), ld_i64(ins + SCALE_BY.y)
    stride, width = ld_i64(ins + SCALE_BY.stride), ld_i64(ins + SCALE_BY.width)
    scaled, factors = ld_i64(ins + SCALE_BY.scaled), ld_i64(ins + SCALE_BY.factors)
    every, positions = ld_i64(ins + SCALE_BY.every), ld_i64(ins + SCALE_BY.positions)
    start, stop = share(n, thread, threads)
    whole = scaled - scaled % 16
    for row in range(start, stop):
        factor = ld_f32(factors + 4 * (ld_i32(positions + 4 * row) // every))
        source, out, many = x + row * stride, y + row * stride, splat(factor)
        for i in range(0, whole, 16):
            store_f32(out + 4 * i, mul(load_f32(source + 4 * i), many))
        for i in range(whole, scaled):
            st_f32(out + 4 * i, f32(ld_f32(source + 4 * i) * factor))
        if x != y:
            for i in range(scaled, width):
                st_f32(out + 4 * i, ld_f32(source + 4 * i))
