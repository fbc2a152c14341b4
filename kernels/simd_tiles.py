"""The inner loop of float products: a tile of rows by groups of 16 outputs, kept in registers.

    acc[i][g] = sum_{s, k} x[s][i][k] * w[g][s * depth + k]      (16 lanes: the outputs of a group)

Every sum is one chain of fused multiply-adds in the order of the inputs, so a row's bits do not
depend on the tile it stands in. Rows come as addresses, `segments` of them a row: one for a row of
a matrix, one a tap for the cells under a convolution.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import simd_baseline
from .simd import BASELINE, ISA, _call, _load, _splat, _store, _widen, f32x16, i64

# Rows and groups of a tile, by what registers hold.
TALL, WIDE = {"avx512vnni": (6, 4), "portable": (2, 1)}.get(ISA, (6, 1))

_I64, _F32, _HALF = ir.IntType(64), ir.FloatType(), ir.HalfType()
_V = f32x16.llvm


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    if BASELINE:
        return simd_baseline.fma(b, x, y, z)
    return _call(b, "llvm.fma.v16f32", _V, x, y, z)


class _Loop:
    """A counted loop in LLVM's terms, at least one turn: values that change stand in `phis`."""

    def __init__(self, b: Any, starts: list[Any]) -> None:
        self.b, before = b, b.block
        self.body = b.append_basic_block("tile.loop")
        b.branch(self.body)
        b.position_at_end(self.body)
        self.phis = [b.phi(value.type) for value in starts]
        for phi, value in zip(self.phis, starts, strict=True):
            phi.add_incoming(value, before)

    def again_while(self, below: Any, nexts: list[Any]) -> None:
        b, here = self.b, self.b.block
        after = b.append_basic_block("tile.after")
        b.cbranch(below, self.body, after)
        for phi, value in zip(self.phis, nexts, strict=True):
            phi.add_incoming(value, here)
        b.position_at_end(after)


def _body(b: Any, rows: int, groups: int, half: bool, arguments: Any) -> None:
    w, apart, depth, segments, table, acc, resume = arguments
    kind, step = (ir.VectorType(_HALF, 16), 32) if half else (_V, 64)
    zero, zeros = _I64(0), ir.Constant(_V, [0.0] * 16)
    count = rows * groups
    goes_on = b.icmp_signed("!=", resume, zero)
    places = [b.add(acc, _I64(64 * (i % groups * rows + i // groups))) for i in range(count)]
    starts = [b.select(goes_on, _load(b, place, _V), zeros) for place in places]
    outer = _Loop(b, [zero, w, *starts])
    segment, at, *sums = outer.phis
    first = b.add(table, b.mul(segment, _I64(8 * rows)))
    x = [_load(b, b.add(first, _I64(8 * i)), _I64) for i in range(rows)]
    inner = _Loop(b, [zero, at, *sums])
    k, wk, *sums = inner.phis
    loaded, place = [], wk
    for _ in range(groups):
        value = _load(b, place, kind)
        loaded.append(_widen(b, value) if half else value)
        place = b.add(place, apart)
    nexts, offset = [], b.shl(k, _I64(2))
    for i in range(rows):
        each = _splat(b, _load(b, b.add(x[i], offset), _F32), 16)
        for g in range(groups):
            nexts.append(_fma(b, loaded[g], each, sums[i * groups + g]))
    k, wk = b.add(k, _I64(1)), b.add(wk, _I64(step))
    inner.again_while(b.icmp_signed("<", k, depth), [k, wk, *nexts])
    segment = b.add(segment, _I64(1))
    outer.again_while(b.icmp_signed("<", segment, segments), [segment, wk, *nexts])
    for place, value in zip(places, nexts, strict=True):
        _store(b, place, value)


def float_tile(rows: int, groups: int, *, half: bool) -> Any:
    """An intrinsic (w, apart, depth, segments, table, acc, resume): int64 all.

    w: weights [segments * depth][16] of the first group, float32 or float16; the next group lies
    `apart` bytes further. table: int64 addresses [segments][rows] of float32 [depth]. acc: takes
    float32 [groups][rows][16], and holds what the sums go on from where resume is not 0. depth and
    segments are 1 or more.
    """

    def typing(
        ctx: Any, w: Any, apart: Any, k: Any, segments: Any, table: Any, acc: Any, resume: Any
    ) -> Any:
        def codegen(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            _body(b, rows, groups, half, arguments)
            return context.get_dummy_value()

        return types.void(i64, i64, i64, i64, i64, i64, i64), codegen

    typing.__name__ = typing.__qualname__ = f"float_tile_{rows}x{groups}{'_half' * half}"
    return intrinsic(typing)
