"""The inner loops of attention over a page, on AVX-512: query rows by keys and by values.

    score[r][j] += q[r][d] * k[d][j]      d in order
    out[r][d] += w[r][j] * v[j][d]        j in order

Every sum is one chain of fused multiply-adds, so a row's bits do not depend on the rows beside it.
A key or a value is widened once for all rows, and enough sums go on at once that none waits for
the one before it. Layouts are in `cpu/attention.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import ISA, _load, _prefetch, _splat, _store, _widen, f32x16, i64
from .simd_tiles import _fma, _Loop

HAS_PAGE_TILES = ISA == "avx512vnni"
SPAN = 8 if HAS_PAGE_TILES else 4  # query rows that a page is read for at once

_I64, _F32, _V = ir.IntType(64), ir.FloatType(), f32x16.llvm
_HALVES = ir.VectorType(ir.HalfType(), 16)


def _lanes(b: Any, at: Any, half: bool) -> Any:
    """16 elements at an address, as float32."""
    return _widen(b, _load(b, at, _HALVES)) if half else _load(b, at, _V)


def _products(b: Any, sums: Any, vectors: list[Any], factors: list[Any]) -> list[Any]:
    """sums [rows][vectors] and one more product each. factors: addresses, one a row."""
    nexts = []
    for r, at in enumerate(factors):
        each = _splat(b, _load(b, at, _F32), 16)
        for i, vector in enumerate(vectors):
            nexts.append(_fma(b, vector, each, sums[r * len(vectors) + i]))
    return nexts


def _scores(b: Any, rows: int, chunks: int, half: bool, arguments: Any) -> None:
    q, step, k, size, out, next_k, next_v = arguments
    wide = 32 if half else 64
    apart, ahead = b.mul(size, _I64(wide)), b.mul(size, _I64(64))
    zero, zeros = _I64(0), ir.Constant(_V, [0.0] * 16)
    loop = _Loop(b, [zero, k, q, next_k, next_v, *[zeros] * (rows * chunks)])
    d, at, factor, *lines = loop.phis[:5]
    sums, places = loop.phis[5:], [at]
    for _ in range(1, chunks):
        places.append(b.add(places[-1], apart))
    for line in lines:
        for i in range(chunks // 2):
            _prefetch(b, b.add(line, b.mul(ahead, _I64(i))), 2)
    factors = [factor]
    for _ in range(1, rows):
        factors.append(b.add(factors[-1], step))
    nexts = _products(b, sums, [_lanes(b, place, half) for place in places], factors)
    d = b.add(d, _I64(1))
    moved = [b.add(at, _I64(wide)), b.add(factor, _I64(4))]
    moved += [b.add(line, _I64(64)) for line in lines]
    loop.again_while(b.icmp_signed("<", d, size), [d, *moved, *nexts])
    for i, value in enumerate(nexts):
        _store(b, b.add(out, _I64(256 * (i // chunks) + 64 * (i % chunks))), value)


def _values(b: Any, rows: int, strips: int, half: bool, arguments: Any) -> None:
    w, v, apart, count, out, step = arguments
    wide, zero = 32 if half else 64, _I64(0)
    firsts = [out]
    for _ in range(1, rows):
        firsts.append(b.add(firsts[-1], step))
    places = [b.add(first, _I64(64 * i)) for first in firsts for i in range(strips)]
    loop = _Loop(b, [zero, v, w, *[_load(b, place, _V) for place in places]])
    j, at, factor, *sums = loop.phis
    vectors = [_lanes(b, b.add(at, _I64(wide * i)), half) for i in range(strips)]
    factors = [b.add(factor, _I64(256 * r)) for r in range(rows)]
    nexts = _products(b, sums, vectors, factors)
    j = b.add(j, _I64(1))
    loop.again_while(
        b.icmp_signed("<", j, count), [j, b.add(at, apart), b.add(factor, _I64(4)), *nexts]
    )
    for place, value in zip(places, nexts, strict=True):
        _store(b, place, value)


def score_tile(rows: int, chunks: int, *, half: bool) -> Any:
    """An intrinsic (q, step, k, size, out, next_k, next_v), int64 all: query rows, `step` bytes
    apart, times `chunks` groups of 16 keys, an even number; float32 [rows][64] to out, of which it
    writes 16 * chunks a row.

    k: the first group of a page, float16 or float32 [chunks][size][16]. next_k, next_v: of each
    `size * chunks // 2` cache lines are asked for on the way. size is 1 or more.
    """

    def typing(
        ctx: Any, q: Any, step: Any, k: Any, size: Any, out: Any, next_k: Any, next_v: Any
    ) -> Any:
        def codegen(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            _scores(b, rows, chunks, half, arguments)
            return context.get_dummy_value()

        return types.void(i64, i64, i64, i64, i64, i64, i64), codegen

    typing.__name__ = typing.__qualname__ = f"score_tile_{rows}x{chunks}{'_half' * half}"
    return intrinsic(typing)


def value_tile(rows: int, strips: int, *, half: bool) -> Any:
    """An intrinsic (w, v, apart, count, out, step), int64 all: adds weights [rows][64] times values
    of 16 * strips columns to rows of out, `step` bytes apart.

    v: the first of `count` values, float16 or float32, `apart` bytes from one to the next. count is
    1 or more.
    """

    def typing(ctx: Any, w: Any, v: Any, apart: Any, count: Any, out: Any, step: Any) -> Any:
        def codegen(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            _values(b, rows, strips, half, arguments)
            return context.get_dummy_value()

        return types.void(i64, i64, i64, i64, i64, i64), codegen

    typing.__name__ = typing.__qualname__ = f"value_tile_{rows}x{strips}{'_half' * half}"
    return intrinsic(typing)
