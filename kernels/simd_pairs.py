"""Values of eight rows by two tokens, behind the names of simd.py: for the ISAs whose registers are
too small to keep a weight block of sixteen rows, and for products of two rows by two tokens.

Sixteen lanes, in the order in which the ISA's dot product leaves them:

    dotprod          row 0 .. row 7 of the first token, then of the second    (sdot by element)
    i8mm, portable   row 0 of both tokens, row 1 of both tokens, ...          (smmla)

`pair_dot` takes the weights of 8 rows x 8 inputs (i8x64) and 8 inputs of each token (i8x16).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .simd import (
    ISA,
    Vec,
    _call,
    _join,
    _load,
    _slice,
    _widen,
    emits,
    f32x16,
    i8x64,
    i32x16,
    i64,
)

PAIRED = ISA in ("dotprod", "i8mm", "portable")
_BY_ROW = ISA != "dotprod"
i8x16 = Vec("i8", 16)
_I8, _I32, _I64, _HALF = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.HalfType()

# Row and token of each lane.
ROWS = [i // 2 if _BY_ROW else i % 8 for i in range(16)]
TOKENS = [i % 2 if _BY_ROW else i // 8 for i in range(16)]


def _pick(b: Any, one: Any, two: Any, places: list[int]) -> Any:
    return b.shuffle_vector(one, two, ir.Constant(ir.VectorType(_I32, len(places)), places))


def _spread(b: Any, one: Any, two: Any) -> Any:
    """A scalar of each token in the lanes of its token."""
    kind = ir.VectorType(one.type, 2)
    both = b.insert_element(ir.Constant(kind, ir.Undefined), one, _I32(0))
    both = b.insert_element(both, two, _I32(1))
    return _pick(b, both, both, TOKENS)


@emits(f32x16, i64)
def pair_scales(b: Any, p: Any) -> Any:
    """8 float16 at p, one a row, widened."""
    rows = _widen(b, _load(b, p, ir.VectorType(_HALF, 8)))
    return _pick(b, rows, rows, ROWS)


@emits(f32x16, i64, i64)
def pair_f32(b: Any, p: Any, q: Any) -> Any:
    """The float32 at p for the first token, at q for the second."""
    return _spread(b, _load(b, p, ir.FloatType()), _load(b, q, ir.FloatType()))


@emits(i32x16, i64, i64)
def pair_i32(b: Any, p: Any, q: Any) -> Any:
    """The int32 at p for the first token, at q for the second."""
    return _spread(b, _load(b, p, _I32), _load(b, q, _I32))


@emits(i8x16, i64, i64)
def pair_inputs(b: Any, p: Any, q: Any) -> Any:
    """8 bytes at p, the first token's, and 8 at q, the second's."""
    kind = ir.VectorType(_I64, 2)
    both = b.insert_element(ir.Constant(kind, ir.Undefined), _load(b, p, _I64), _I32(0))
    return b.bitcast(b.insert_element(both, _load(b, q, _I64), _I32(1)), i8x16.llvm)


def _weights(b: Any, first: Any, second: Any) -> Any:
    """8 rows x 8 inputs from two times 8 rows x 4 inputs (32 bytes each)."""
    if not _BY_ROW:
        return _join(b, [first, second])
    fours = ir.VectorType(_I32, 8)
    places = [i // 2 + 8 * (i % 2) for i in range(16)]
    return b.bitcast(
        _pick(b, b.bitcast(first, fours), b.bitcast(second, fours), places), i8x64.llvm
    )


@emits(i8x64, i64)
def pair_nibbles(b: Any, p: Any) -> Any:
    """int4 weights, 0 to 15: the 32 bytes at p are 4 inputs of 8 rows low, the next 4 high."""
    v = _load(b, p, ir.VectorType(_I8, 32))
    low = b.and_(v, ir.Constant(v.type, [15] * 32))
    return _weights(b, low, b.lshr(v, ir.Constant(v.type, [4] * 32)))


@emits(i8x64, i64)
def pair_bytes(b: Any, p: Any) -> Any:
    """int8 weights stored with offset 128, made signed: 4 inputs of 8 rows at p, the next 4 at
    p + 64."""
    parts = [_load(b, b.add(p, _I64(64 * i)), ir.VectorType(_I8, 32)) for i in range(2)]
    offset = ir.Constant(parts[0].type, [-128] * 32)
    return _weights(b, *(b.xor(part, offset) for part in parts))


def _smmla(b: Any, acc: Any, w: Any, x: Any) -> Any:
    parts = [
        _call(
            b, "llvm.aarch64.neon.smmla.v4i32.v16i8", ir.VectorType(_I32, 4),
            _slice(b, acc, 4 * h, 4), _slice(b, w, 16 * h, 16), x,
        )
        for h in range(4)
    ]  # fmt: skip
    return _join(b, parts)


def _sdot_by_element(b: Any, acc: Any, w: Any, x: Any) -> Any:
    fours, parts = ir.VectorType(_I32, 4), []
    for h in range(4):
        part = _slice(b, acc, 4 * h, 4)
        for i in range(2):
            inputs = b.bitcast(x, fours)
            inputs = b.bitcast(_pick(b, inputs, inputs, [h // 2 * 2 + i] * 4), x.type)
            rows = _slice(b, w, 32 * i + 16 * (h % 2), 16)
            part = _call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", fours, part, rows, inputs)
        parts.append(part)
    return _join(b, parts)


def _plain(b: Any, acc: Any, w: Any, x: Any) -> Any:
    for i in range(8):
        rows = _pick(b, w, w, [8 * row + i for row in ROWS])
        inputs = _pick(b, x, x, [8 * token + i for token in TOKENS])
        acc = b.add(acc, b.mul(b.sext(rows, i32x16.llvm), b.sext(inputs, i32x16.llvm)))
    return acc


@emits(i32x16, i32x16, i8x64, i8x16)
def pair_dot(b: Any, acc: Any, w: Any, x: Any) -> Any:
    """acc + eight-byte dot products of 8 rows with 2 tokens, all signed."""
    how = {"i8mm": _smmla, "dotprod": _sdot_by_element}.get(ISA, _plain)
    return how(b, acc, w, x)


def _of_token(token: int) -> Any:
    """(8 rows by 2 tokens, the next 8 rows) -> 16 rows of one token."""
    places = [TOKENS.index(token) + ROWS.index(1) * row for row in range(8)]

    @emits(f32x16, f32x16, f32x16)
    def rows_of_token(b: Any, a: Any, c: Any) -> Any:
        return _pick(b, a, c, places + [16 + place for place in places])

    return rows_of_token


first_token, second_token = _of_token(0), _of_token(1)
