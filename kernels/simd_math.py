"""Arithmetic of vectors, behind the types of simd.py: by lane, over lanes, and exp and tanh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit

from . import simd_baseline
from .simd import (
    _I32,
    BASELINE,
    _call,
    _slice,
    _splat,
    emits,
    f32,
    f32x16,
    i8x64,
    i16x32,
    i32,
    i32x16,
)


@emits(f32x16, f32)
def splat(b: Any, x: Any) -> Any:
    """x in every lane."""
    return _splat(b, x, 16)


@emits(i32x16, i32)
def splat_i32(b: Any, x: Any) -> Any:
    """x in every lane."""
    return _splat(b, x, 16)


@emits(i32x16)
def lanes(b: Any) -> Any:
    """0, 1, ... 15."""
    return ir.Constant(i32x16.llvm, list(range(16)))


@emits(f32x16, f32x16, f32x16, f32x16)
def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""
    if BASELINE:
        return simd_baseline.fma(b, x, y, z)
    return _call(b, "llvm.fma.v16f32", x.type, x, y, z)


def _binary(kind: Any, method: str) -> Any:
    @emits(kind, kind, kind)
    def op(b: Any, x: Any, y: Any) -> Any:
        return getattr(b, method)(x, y)

    return op


add, sub, mul, div = (_binary(f32x16, m) for m in ("fadd", "fsub", "fmul", "fdiv"))
add_i32, sub_i32 = _binary(i32x16, "add"), _binary(i32x16, "sub")
add_i16 = _binary(i16x32, "add")


@emits(f32x16, f32x16, f32x16)
def vmax(b: Any, x: Any, y: Any) -> Any:
    """Lane-wise maximum (NaN in x gives y)."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@emits(f32x16, f32x16)
def vabs(b: Any, x: Any) -> Any:
    """Lane-wise magnitude."""
    return _call(b, "llvm.fabs.v16f32", x.type, x)


def _larger(b: Any, x: Any, y: Any) -> Any:
    """Of magnitudes, whose bits are in the order of their values; NaN is larger than all."""
    kind = ir.VectorType(_I32, x.type.count)
    return b.select(b.icmp_signed(">", b.bitcast(x, kind), b.bitcast(y, kind)), x, y)


@emits(f32x16, f32x16, f32x16)
def larger(b: Any, x: Any, y: Any) -> Any:
    """Lane-wise maximum of magnitudes (`vabs`); NaN where one is NaN."""
    return _larger(b, x, y)


@emits(f32x16, i32x16)
def to_f32(b: Any, x: Any) -> Any:
    """int32 to float32."""
    return b.sitofp(x, f32x16.llvm)


@emits(i32x16, i8x64)
def bitcast_i32(b: Any, x: Any) -> Any:
    """64 bytes as 16 int32."""
    return b.bitcast(x, i32x16.llvm)


@emits(f32x16, f32x16)
def rint(b: Any, x: Any) -> Any:
    """Round half to even."""
    if BASELINE:
        return simd_baseline.rint(b, x)
    return _call(b, "llvm.nearbyint.v16f32", x.type, x)


@emits(i32x16, f32x16)
def to_i32(b: Any, x: Any) -> Any:
    """Truncate to int32; the value must fit."""
    return b.fptosi(x, i32x16.llvm)


@emits(f32x16, i32x16)
def power_of_two(b: Any, n: Any) -> Any:
    """2.0 ** n for -126 <= n <= 127."""
    biased = b.add(n, ir.Constant(i32x16.llvm, [127] * 16))
    return b.bitcast(b.shl(biased, ir.Constant(i32x16.llvm, [23] * 16)), f32x16.llvm)


@emits(f32x16, i32x16, i32x16, f32x16, f32x16)
def where_less(b: Any, x: Any, y: Any, yes: Any, no: Any) -> Any:
    """yes where x < y (signed), else no."""
    return b.select(b.icmp_signed("<", x, y), yes, no)


@emits(f32x16, f32x16, f32x16, f32x16, f32x16)
def where_below(b: Any, x: Any, y: Any, yes: Any, no: Any) -> Any:
    """yes where x < y (float), else no."""
    return b.select(b.fcmp_ordered("<", x, y), yes, no)


def _fold(b: Any, v: Any, combine: Callable[[Any, Any, Any], Any]) -> Any:
    n = v.type.count
    while n > 1:
        n //= 2
        v = combine(b, _slice(b, v, 0, n), _slice(b, v, n, n))
    return b.extract_element(v, _I32(0))


@emits(f32, f32x16)
def sum_f32(b: Any, v: Any) -> Any:
    """Sum of the lanes as a fixed tree: the same bits on every machine."""
    return _fold(b, v, lambda b, x, y: b.fadd(x, y))


@emits(i32, i32x16)
def sum_i32(b: Any, v: Any) -> Any:
    """Sum of the lanes."""
    return _fold(b, v, lambda b, x, y: b.add(x, y))


@emits(f32, f32x16)
def max_f32(b: Any, v: Any) -> Any:
    """Largest lane."""
    return _fold(b, v, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


@emits(f32, f32x16)
def largest(b: Any, v: Any) -> Any:
    """Largest of the lanes, which are magnitudes (`vabs`); NaN where one is NaN."""
    return _fold(b, v, _larger)


@njit(error_model="numpy")
def exp(x: Any) -> Any:
    """e ** x by lane, relative error below 2e-7; exactly 1 at 0 and exactly 0 below -87."""
    low = splat(f32(-87.0))
    clamped = where_below(x, splat(f32(88.0)), vmax(x, low), splat(f32(88.0)))
    n = rint(mul(clamped, splat(f32(1.44269504))))
    r = fma(n, splat(f32(-0.693359375)), clamped)
    r = fma(n, splat(f32(2.12194440e-4)), r)
    p = splat(f32(1.9875691500e-4))
    p = fma(p, r, splat(f32(1.3981999507e-3)))
    p = fma(p, r, splat(f32(8.3334519073e-3)))
    p = fma(p, r, splat(f32(4.1665795894e-2)))
    p = fma(p, r, splat(f32(1.6666665459e-1)))
    p = fma(p, r, splat(f32(5.0000001201e-1)))
    p = fma(mul(r, r), p, add(r, splat(f32(1.0))))
    return where_below(x, low, splat(f32(0.0)), mul(p, power_of_two(to_i32(n))))


@njit(error_model="numpy")
def tanh(x: Any) -> Any:
    """tanh by lane, absolute error below 2e-7."""
    one, top = splat(f32(1.0)), splat(f32(20.0))
    e = exp(mul(where_below(x, top, x, top), splat(f32(2.0))))
    return div(sub(e, one), add(e, one))
