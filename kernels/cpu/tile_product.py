"""Register tiles: a few rows times a few vectors of columns, sums kept in registers.

    out[r][c] (+)= sum over i < n of a[r][i] * b[i][c]

a: float32 rows, elements one after the other. b: vectors of 16 columns. Every sum is one chain of
fused multiply-adds in the order of i, whatever the tile's size: a row's bits do not depend on the
rows beside it.
"""

from __future__ import annotations

from typing import Any

from ..simd import ISA, f32x16, i64, load_f32, store_f32
from ..simd_math import fma

from llvmlite import ir  # isort: skip
from numba import types  # isort: skip
from numba.extending import intrinsic  # isort: skip

# Rows and vectors of the largest tile: as many sums as registers hold, with room for operands.
TILE_ROWS = 6
TILE_VECTORS = 4 if ISA == "avx512vnni" else 1

_WORD = ir.IntType(64)
_FLOAT = ir.FloatType()
_LANES = f32x16.llvm


def _at(b: Any, base: Any, index: Any, step: Any) -> Any:
    return b.add(base, b.mul(index, step))


def _broadcast(b: Any, address: Any) -> Any:
    value = b.load(b.inttoptr(address, _FLOAT.as_pointer()))
    value.align = 4
    one = b.insert_element(ir.Constant(_LANES, ir.Undefined), value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16)
    return b.shuffle_vector(one, ir.Constant(_LANES, ir.Undefined), zeros)


def _build(b: Any, values: Any, rows: int, vectors: int, *, fresh: bool) -> None:
    a, a_row, at, step, apart, count, out, out_row = values
    tile = [(r, c) for r in range(rows) for c in range(vectors)]
    rows_at = [_at(b, a, _WORD(r), a_row) for r in range(rows)]
    outs = {(r, c): _at(b, b.add(out, _WORD(64 * c)), _WORD(r), out_row) for r, c in tile}
    starts = {
        key: ir.Constant(_LANES, [0.0] * 16) if fresh else load_f32.build(b, outs[key])
        for key in tile
    }
    before = b.block
    body, done = b.append_basic_block("tile"), b.append_basic_block("tile.end")
    b.cbranch(b.icmp_signed(">", count, _WORD(0)), body, done)
    b.position_at_end(body)
    index, place = b.phi(_WORD), b.phi(_WORD)
    index.add_incoming(_WORD(0), before)
    place.add_incoming(at, before)
    sums = {key: b.phi(_LANES) for key in tile}
    columns = [load_f32.build(b, _at(b, place, _WORD(c), apart)) for c in range(vectors)]
    made = {}
    for r in range(rows):
        x = _broadcast(b, _at(b, rows_at[r], index, _WORD(4)))
        for c in range(vectors):
            made[r, c] = fma.build(b, columns[c], x, sums[r, c])
    following = b.add(index, _WORD(1))
    index.add_incoming(following, b.block)
    place.add_incoming(b.add(place, step), b.block)
    for key in tile:
        sums[key].add_incoming(starts[key], before)
        sums[key].add_incoming(made[key], b.block)
    last = b.block
    b.cbranch(b.icmp_signed("<", following, count), body, done)
    b.position_at_end(done)
    for key in tile:
        total = b.phi(_LANES)
        total.add_incoming(starts[key], before)
        total.add_incoming(made[key], last)
        sums[key] = total
    for key in tile:
        store_f32.build(b, outs[key], sums[key])


def tile_product(rows: int, vectors: int, *, fresh: bool) -> Any:
    """The intrinsic for a tile of this size. fresh: out is written, else it is added to.

    Arguments, addresses and bytes: a, between its rows; b, between its i, between its vectors; n;
    out, between its rows (its vectors follow one another).
    """

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _build(builder, values, rows, vectors, fresh=fresh)
        return context.get_dummy_value()

    def typing(
        ctx: Any, a: Any, a_row: Any, b: Any, step: Any, apart: Any, n: Any, out: Any, out_row: Any
    ) -> Any:
        return types.void(*[i64] * 8), codegen

    typing.__name__ = typing.__qualname__ = f"tile_{rows}x{vectors}{'_fresh' * fresh}"
    return intrinsic(typing)


def _zip(b: Any, x: Any, y: Any, *, high: bool) -> Any:
    """Lanes of the lower (upper) halves of x and y in turn."""
    first = 8 * high
    mask = [first + lane // 2 + 16 * (lane % 2) for lane in range(16)]
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), 16), mask))


def _transpose(ctx: Any, source: Any, stride: Any, target: Any) -> Any:
    """16 rows of 16 float32, `stride` bytes apart, as 16 rows one after the other of columns."""

    def codegen(context: Any, b: Any, signature: Any, values: Any) -> Any:
        at, step, out = values
        lines = [load_f32.build(b, _at(b, at, _WORD(r), step)) for r in range(16)]
        for _ in range(4):
            pairs = [(lines[i], lines[i + 8]) for i in range(8)]
            lines = [_zip(b, x, y, high=high) for x, y in pairs for high in (False, True)]
        for r, line in enumerate(lines):
            store_f32.build(b, b.add(out, _WORD(64 * r)), line)
        return context.get_dummy_value()

    return types.void(i64, i64, i64), codegen


transpose: Any = intrinsic(_transpose)
