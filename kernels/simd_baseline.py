"""What x86-64 lacks without its extensions: float16, fused multiply-add, rounding to integers.

LLVM would call functions of the C library for these, one lane at a time, and some that no process
has. Every function emits plain arithmetic on a scalar or on lanes, with the bits that the
instructions would give.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

_F32, _F64 = ir.FloatType(), ir.DoubleType()
_I16, _I32, _I64, _HALF = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.HalfType()


def _like(kind: Any, value: Any) -> Any:
    """A constant of this kind, in every lane of a vector."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _with(kind: Any, element: Any) -> Any:
    """`kind` with another element."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def widen(b: Any, v: Any) -> Any:
    """float16 to float32."""
    kind, whole = _with(v.type, _F32), _with(v.type, _I32)
    bits = b.zext(b.bitcast(v, _with(v.type, _I16)), whole)
    sign = b.shl(b.and_(bits, _like(whole, 0x8000)), _like(whole, 16))
    size = b.shl(b.and_(bits, _like(whole, 0x7FFF)), _like(whole, 13))
    scaled = b.fmul(b.bitcast(size, kind), _like(kind, 2.0**112))  # exact, subnormals too
    special = b.or_(size, _like(whole, 0x7F800000))
    finite = b.icmp_unsigned("<", size, _like(whole, 0x7C00 << 13))
    return b.bitcast(b.or_(b.select(finite, b.bitcast(scaled, whole), special), sign), kind)


def narrow(b: Any, v: Any) -> Any:
    """float32 to the nearest float16, ties to even."""
    half, whole = _with(v.type, _HALF), _with(v.type, _I32)
    bits = b.bitcast(v, whole)
    sign = b.and_(b.lshr(bits, _like(whole, 16)), _like(whole, 0x8000))
    size = b.and_(bits, _like(whole, 0x7FFFFFFF))
    odd = b.and_(b.lshr(size, _like(whole, 13)), _like(whole, 1))
    normal = b.add(b.add(size, _like(whole, 0xFFF - (112 << 23))), odd)
    normal = b.lshr(normal, _like(whole, 13))
    # Below the normal range, adding 0.5 leaves multiples of 2**-24 in the low bits.
    tiny = b.bitcast(b.fadd(b.bitcast(size, v.type), _like(v.type, 0.5)), whole)
    tiny = b.sub(tiny, _like(whole, 126 << 23))
    out = b.select(b.icmp_unsigned("<", size, _like(whole, 113 << 23)), tiny, normal)
    out = b.select(b.icmp_unsigned("<", size, _like(whole, 143 << 23)), out, _like(whole, 0x7C00))
    nan = b.icmp_unsigned(">", size, _like(whole, 0x7F800000))
    out = b.or_(b.select(nan, _like(whole, 0x7E00), out), sign)
    return b.bitcast(b.trunc(out, _with(v.type, _I16)), half)


def rint(b: Any, x: Any) -> Any:
    """float32 to a whole number, ties to even: the sum with 1.5 * 2**23 has no room for a
    fraction. From 2**22 on there is none to lose."""
    shift = _like(x.type, 12582912.0)
    whole = _with(x.type, _I32)
    size = b.bitcast(b.and_(b.bitcast(x, whole), _like(whole, 0x7FFFFFFF)), x.type)
    small = b.fcmp_ordered("<", size, _like(x.type, 4194304.0))
    return b.select(small, b.fsub(b.fadd(x, shift), shift), x)


def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z of float32, rounded once.

    In double the product is exact; the sum is rounded to odd, after which rounding it to float32
    gives what one rounding would have given (Boldo and Melquiond, 2008).
    """
    double, whole = _with(x.type, _F64), _with(x.type, _I64)
    p, c = b.fmul(b.fpext(x, double), b.fpext(y, double)), b.fpext(z, double)
    s = b.fadd(p, c)
    of_c = b.fsub(s, p)
    rest = b.fadd(b.fsub(p, b.fsub(s, of_c)), b.fsub(c, of_c))  # what the sum lost (Knuth)
    bits, lost = b.bitcast(s, whole), b.bitcast(rest, whole)
    even = b.icmp_signed("==", b.and_(bits, _like(whole, 1)), _like(whole, 0))
    wrong = b.and_(b.fcmp_ordered("!=", rest, _like(double, 0.0)), even)
    outward = b.icmp_signed(">=", b.xor(bits, lost), _like(whole, 0))  # of one sign
    step = b.select(outward, _like(whole, 1), _like(whole, -1))
    odd = b.select(wrong, b.add(bits, step), bits)
    return b.fptrunc(b.bitcast(odd, double), x.type)
