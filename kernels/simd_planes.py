"""Codes of 2 to 6 bits as vectors of bytes: 16 rows by 32 inputs of them, split into planes.

A plane holds 4, 2 or 1 bits of every code, in whole vectors of 64 bytes. Chunk c of a block is the
64 codes of inputs 4c to 4c + 3: byte 4r + t belongs to row r and input 4c + t (`cpu/linear.py`).

    bits   planes, low bits first      a block
    2      2                           128 bytes
    3      2, 1                        192
    4      4                           256
    5      4, 1                        320
    6      4, 2                        384

A byte of a plane of w bits holds chunks 8/w * v to 8/w * v + 8/w - 1 of its vector v, the first one
in its lowest bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .simd import _load, emits, i8x64, i32x16, i64

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}
CHUNKS = 8


def _constant(value: int) -> Any:
    return ir.Constant(i8x64.llvm, [value] * 64)


def _moved(b: Any, v: Any, places: int) -> Any:
    """Bytes shifted to the right, to the left where `places` is negative."""
    if places > 0:
        return b.lshr(v, _constant(places))
    return b.shl(v, _constant(-places)) if places else v


def _chunk(b: Any, block: Any, bits: int, index: int) -> Any:
    word, value, offset, below = ir.IntType(64), None, 0, 0
    for width in PLANES[bits]:
        held = 8 // width
        at = b.add(block, word(offset + 64 * (index // held)))
        part = _moved(b, _load(b, at, i8x64.llvm), width * (index % held) - below)
        part = b.and_(part, _constant((1 << width) - 1 << below))
        value = part if value is None else b.or_(value, part)
        offset, below = offset + 64 * width, below + width
    return value


def chunks(bits: int) -> tuple[Any, ...]:
    """Intrinsics (address of a block) -> i8x64, one for each chunk, codes 0 to 2 ** bits - 1."""

    def made(index: int) -> Any:
        @emits(i8x64, i64)
        def chunk(b: Any, block: Any) -> Any:
            return _chunk(b, block, bits, index)

        return chunk

    return tuple(made(index) for index in range(CHUNKS))


@emits(i32x16, i32x16, i32x16)
def mul_i32(b: Any, x: Any, y: Any) -> Any:
    """x * y by lane."""
    return b.mul(x, y)


@emits(i32x16, i64)
def load_u8(b: Any, p: Any) -> Any:
    """16 unsigned bytes at p."""
    return b.zext(_load(b, p, ir.VectorType(ir.IntType(8), 16)), i32x16.llvm)


@emits(i32x16, i64)
def load_s8(b: Any, p: Any) -> Any:
    """16 signed bytes at p."""
    return b.sext(_load(b, p, ir.VectorType(ir.IntType(8), 16)), i32x16.llvm)
