"""Integer dot products, the one place that names instructions for them: sums over groups of four
bytes for 16 rows at once,

    acc[r] + sum_{i<4} w[4r + i] * x[4r + i]

`simd_pairs.py` has the same for 8 rows by 2 tokens.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .simd import (
    _I1,
    _I32,
    _LLVM,
    ISA,
    NEON,
    VNNI,
    _call,
    _join,
    _slice,
    emits,
    i8x64,
    i16x32,
    i32x16,
)


@emits(i8x64, i8x64)
def low_nibbles(b: Any, v: Any) -> Any:
    """byte & 15."""
    return b.and_(v, ir.Constant(i8x64.llvm, [15] * 64))


@emits(i8x64, i8x64)
def high_nibbles(b: Any, v: Any) -> Any:
    """byte >> 4."""
    return b.lshr(v, ir.Constant(i8x64.llvm, [4] * 64))


@emits(i8x64, i8x64)
def flip_sign(b: Any, v: Any) -> Any:
    """byte ^ 0x80: unsigned with offset 128 to signed, and back."""
    return b.xor(v, ir.Constant(i8x64.llvm, [-128] * 64))


def _vpdpbusd(b: Any, acc: Any, w: Any, x: Any) -> Any:
    if ISA == "avx512vnni":
        return _call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, acc, w, x)
    parts = [
        _call(
            b,
            "llvm.x86.avx512.vpdpbusd.256",
            ir.VectorType(_I32, 8),
            _slice(b, acc, 8 * h, 8),
            _slice(b, w, 32 * h, 32),
            _slice(b, x, 32 * h, 32),
        )
        for h in range(2)
    ]
    return _join(b, parts)


def _sdot(b: Any, acc: Any, w: Any, x: Any) -> Any:
    quarter = ir.VectorType(_I32, 4)
    parts = [
        _call(
            b,
            "llvm.aarch64.neon.sdot.v4i32.v16i8",
            quarter,
            _slice(b, acc, 4 * h, 4),
            _slice(b, w, 16 * h, 16),
            _slice(b, x, 16 * h, 16),
        )
        for h in range(4)
    ]
    return _join(b, parts)


def _plain_dot(b: Any, acc: Any, w: Any, x: Any, *, signed: bool) -> Any:
    i32x64 = ir.VectorType(_I32, 64)
    products = b.mul((b.sext if signed else b.zext)(w, i32x64), b.sext(x, i32x64))
    for i in range(4):
        mask = ir.Constant(i32x16.llvm, list(range(i, 64, 4)))
        part = b.shuffle_vector(products, ir.Constant(i32x64, ir.Undefined), mask)
        acc = b.add(acc, part)
    return acc


@emits(i32x16, i32x16, i8x64, i8x64)
def dot_nibbles(b: Any, acc: Any, w: Any, x: Any) -> Any:
    """acc + four-byte dot products of w in 0..15 and signed x."""
    if VNNI:
        return _vpdpbusd(b, acc, w, x)
    if NEON:
        return _sdot(b, acc, w, x)
    return _plain_dot(b, acc, w, x, signed=False)


@emits(i32x16, i32x16, i8x64, i8x64)
def dot_bytes(b: Any, acc: Any, w: Any, x: Any) -> Any:
    """acc + four-byte dot products of signed x and w stored with offset 128.

    With VNNI w counts as unsigned (the caller's correction takes 128 * sum(x) off); elsewhere the
    sign is restored first and no correction applies (`CORRECTED_BYTES` says which).
    """
    if VNNI:
        return _vpdpbusd(b, acc, w, x)
    w = b.xor(w, ir.Constant(i8x64.llvm, [-128] * 64))
    if NEON:
        return _sdot(b, acc, w, x)
    return _plain_dot(b, acc, w, x, signed=True)


CORRECTED_BYTES = VNNI


def _pmadd(b: Any, name: str, result: ir.VectorType, x: Any, y: Any, bytes_each: int) -> Any:
    parts = []
    for h in range(2):
        a, c = (_slice(b, v, bytes_each * h, bytes_each) for v in (x, y))
        parts.append(_call(b, name, result, a, c))
    return _join(b, parts)


@emits(i16x32, i8x64, i8x64)
def maddubs(b: Any, w: Any, x: Any) -> Any:
    """AVX2: w0*x0 + w1*x1 of unsigned w and signed x, saturating to 16 bits."""
    return _pmadd(b, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(_LLVM["i16"], 16), w, x, 32)


@emits(i32x16, i16x32)
def pair_sums(b: Any, v: Any) -> Any:
    """AVX2: sums of neighbouring int16 as int32."""
    ones = ir.Constant(i16x32.llvm, [1] * 32)
    return _pmadd(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(_I32, 8), v, ones, 16)


@emits(i16x32, i8x64, i8x64)
def maddss(b: Any, w: Any, x: Any) -> Any:
    """AVX2: w0*x0 + w1*x1 of signed w and signed x in -127..127, as |w| times x with w's sign."""
    eight = ir.VectorType(_LLVM["i8"], 32)
    parts = []
    for h in range(2):
        a, c = _slice(b, w, 32 * h, 32), _slice(b, x, 32 * h, 32)
        magnitude = _call(b, "llvm.abs.v32i8", eight, a, _I1(0))
        with_sign = _call(b, "llvm.x86.avx2.psign.b", eight, c, a)
        i16x16 = ir.VectorType(_LLVM["i16"], 16)
        parts.append(_call(b, "llvm.x86.avx2.pmadd.ub.sw", i16x16, magnitude, with_sign))
    return _join(b, parts)
