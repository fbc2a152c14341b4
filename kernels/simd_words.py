"""Sixteen words of 64 bits, behind the names of simd.py: for numbers made of ids by mixing bits.

A value is two 512-bit registers on AVX-512, four on AVX2, eight on NEON. Only AVX-512 multiplies
such words by one instruction; elsewhere LLVM puts products together from those of halves.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .simd import Vec, _load, _splat, emits, f32x16, i32x16, i64
from .simd_math import _binary

i64x16 = Vec("i64", 16)

add_i64, mul_i64 = (_binary(i64x16, method) for method in ("add", "mul"))


@emits(i64x16, i64)
def splat_i64(b: Any, x: Any) -> Any:
    """x in every lane."""
    return _splat(b, x, 16)


@emits(i64x16)
def lanes_i64(b: Any) -> Any:
    """0, 1, ... 15."""
    return ir.Constant(i64x16.llvm, list(range(16)))


@emits(i64x16, i64)
def load_i64(b: Any, p: Any) -> Any:
    """16 int64."""
    return _load(b, p, i64x16.llvm)


@emits(i64x16, i64x16, i64)
def xor_shifted(b: Any, x: Any, count: Any) -> Any:
    """x ^ x >> count, zeros coming in from above."""
    return b.xor(x, b.lshr(x, _splat(b, count, 16)))


@emits(i32x16, i64x16)
def highest31(b: Any, x: Any) -> Any:
    """The upper 31 bits of each word: a number from 0 to 2 ** 31 - 1."""
    return b.trunc(b.lshr(x, ir.Constant(i64x16.llvm, [33] * 16)), i32x16.llvm)


@emits(i32x16, f32x16)
def bits_of(b: Any, x: Any) -> Any:
    """The bits of 16 float32."""
    return b.bitcast(x, i32x16.llvm)


@emits(i64, i64, i64)
def shift_right(b: Any, x: Any, count: Any) -> Any:
    """x >> count of one word, zeros coming in from above."""
    return b.lshr(x, count)
