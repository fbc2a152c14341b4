"""The inner loop of products with codes: a tile of tokens by groups of 16 outputs, on AVX-512.

Of every block of 32 inputs an exact int32 sum, then acc = fma(float(sum), ws * xs, acc), blocks in
order: the formula of `cpu/linear.py`, whose layouts of weights and tokens these are. Four inputs of
a token are read once for all groups, and a block's weights once for all tokens of the tile.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu.layout import CHANNEL_BYTES, CHANNEL_HEAD, TILE
from .simd import ISA, _load, _prefetch, _splat, _store, _widen, f32x16, i8x64, i64
from .simd_dots import _vpdpbusd
from .simd_tiles import _fma, _Loop

HAS_CODE_TILES = ISA == "avx512vnni"
TALL, WIDE = 8, 2  # tokens and groups of a tile

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_HALVES, _BYTES = ir.VectorType(ir.HalfType(), 16), i8x64.llvm
_HEAD = 32  # bytes of a block's scales


def _chunk(b: Any, block: Any, bits: int, index: int) -> Any:
    """The codes of inputs 4 * index to 4 * index + 3, unsigned: byte 4r + t is row r's input t."""
    held = 8 // bits
    v = _load(b, b.add(block, _I64(_HEAD + 64 * (index // held))), _BYTES)
    if bits == 8:
        return v
    if index % 2 == 0:
        return b.and_(v, ir.Constant(_BYTES, [15] * 64))
    return b.lshr(v, ir.Constant(_BYTES, [4] * 64))


def _block(b: Any, bits: int, at: list[Any], tokens: list[tuple[Any, Any, Any]], sums: Any) -> Any:
    """The sums after one more block. at: its address in each group. tokens: of each the addresses
    of its 32 codes, its scale and its correction."""
    totals = []
    for _, _, correction in tokens:
        start = _splat(b, _load(b, correction, _I32), 16)
        totals.append([start] * len(at))
    for index in range(8):
        weights = [_chunk(b, block, bits, index) for block in at]
        for total, (codes, _, _) in zip(totals, tokens, strict=True):
            four = _load(b, b.add(codes, _I64(4 * index)), _I32)
            x = b.bitcast(_splat(b, four, 16), _BYTES)
            total[:] = [_vpdpbusd(b, s, w, x) for s, w in zip(total, weights, strict=True)]
    scales = [_widen(b, _load(b, block, _HALVES)) for block in at]
    nexts = []
    for t, (total, (_, scale, _)) in enumerate(zip(totals, tokens, strict=True)):
        xs = _splat(b, _load(b, scale, _F32), 16)
        for g, (s, ws) in enumerate(zip(total, scales, strict=True)):
            both = b.fmul(ws, xs)
            nexts.append(_fma(b, b.sitofp(s, f32x16.llvm), both, sums[t * len(at) + g]))
    return nexts


def _ask(b: Any, bits: int, at: list[Any], ahead: Any, past: Any) -> None:
    """Ask for the cache lines that lie `ahead` of a block of each group; past: not 0 to have them
    pass the outer caches (`simd.prefetch_once`)."""
    lines = [
        b.add(b.add(block, ahead), _I64(64 * i))
        for block in at
        for i in range(-(-(_HEAD + 64 * bits) // 64))
    ]
    with b.if_else(b.icmp_signed("!=", past, _I64(0))) as (once, again):
        with once:
            for line in lines:
                _prefetch(b, line, 0)
        with again:
            for line in lines:
                _prefetch(b, line, 2)


def _body(b: Any, bits: int, tall: int, wide: int, asked: Any, arguments: Any) -> None:
    """asked: how far ahead and whether past the outer caches (`_ask`); None for neither."""
    w, apart, blocks, x, scales, n, acc, acc_apart = arguments
    zeros = [ir.Constant(f32x16.llvm, [0.0] * 16)] * (tall * wide)
    corrections = b.add(scales, b.mul(b.mul(blocks, n), _I64(4)))
    starts = [blocks, w, x, scales, corrections, *zeros]
    loop = _Loop(b, starts)
    left, w, x, scales, corrections, *sums = loop.phis
    at = [b.add(w, b.mul(apart, _I64(g))) for g in range(wide)]
    if asked is not None:
        _ask(b, bits, at, *asked)
    tokens = [
        (b.add(x, _I64(32 * t)), b.add(scales, _I64(4 * t)), b.add(corrections, _I64(4 * t)))
        for t in range(tall)
    ]
    sums = _block(b, bits, at, tokens, sums)
    left, four = b.sub(left, _I64(1)), b.mul(n, _I64(4))
    w, x = b.add(w, _I64(_HEAD + 64 * bits)), b.add(x, b.mul(n, _I64(32)))
    nexts = [left, w, x, b.add(scales, four), b.add(corrections, four), *sums]
    loop.again_while(b.icmp_signed(">", left, _I64(0)), nexts)
    for i, value in enumerate(sums):
        place = b.add(acc, b.add(b.mul(acc_apart, _I64(i % wide)), _I64(64 * (i // wide))))
        _store(b, place, value)


def code_tile(bits: int) -> Any:
    """An intrinsic (w, apart, blocks, x, scales, n, acc, acc_apart), int64 all, for codes of 4 or
    8 bits.

    w: the first group's blocks, the next group's lie `apart` bytes further. blocks: 1 or more.
    x: int8 codes of the first of TALL tokens, scales: its scale, in a tile of n tokens. acc: takes
    float32 [TALL][16], of the next group `acc_apart` bytes further.
    """

    def typing(
        ctx: Any, w: Any, apart: Any, blocks: Any, x: Any, scales: Any, n: Any, acc: Any, each: Any
    ) -> Any:
        def codegen(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            _body(b, bits, TALL, WIDE, None, arguments)
            return context.get_dummy_value()

        return types.void(i64, i64, i64, i64, i64, i64, i64, i64), codegen

    typing.__name__ = typing.__qualname__ = f"code_tile_{bits}"
    return intrinsic(typing)


def few_tile(bits: int, tall: int, wide: int) -> Any:
    """An intrinsic (w, apart, blocks, x, scales, n, acc, acc_apart, ahead, past), int64 all:
    `code_tile` for `tall` tokens by `wide` groups, which asks for the weights that lie `ahead`
    bytes further; past: as `cpu.linear.ahead` has it."""

    def typing(
        ctx: Any, w: Any, apart: Any, blocks: Any, x: Any, scales: Any, n: Any, acc: Any,
        each: Any, ahead: Any, past: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            *whole, ahead, past = arguments
            _body(b, bits, tall, wide, (ahead, past), whole)
            return context.get_dummy_value()

        return types.void(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64), codegen

    typing.__name__ = typing.__qualname__ = f"few_tile_{bits}_{tall}x{wide}"
    return intrinsic(typing)


def _channel_body(b: Any, arguments: Any) -> None:
    w, blocks, x, scales, n, acc = arguments
    apart = b.add(b.mul(blocks, _I64(CHANNEL_BYTES)), _I64(CHANNEL_HEAD))
    corrections = b.add(scales, b.mul(b.mul(blocks, n), _I64(4)))
    starts = []
    for t in range(TALL):
        correction = _load(b, b.add(corrections, _I64(4 * t)), _I32)
        starts += [_splat(b, correction, 16)] * WIDE
    loop = _Loop(b, [blocks, b.add(w, _I64(CHANNEL_HEAD)), x, *starts])
    left, at, codes, *sums = loop.phis
    for index in range(8):
        places = [b.add(at, b.add(b.mul(apart, _I64(g)), _I64(64 * index))) for g in range(WIDE)]
        weights = [_load(b, place, _BYTES) for place in places]
        for t in range(TALL):
            four = _load(b, b.add(codes, _I64(32 * t + 4 * index)), _I32)
            four = b.bitcast(_splat(b, four, 16), _BYTES)
            for g in range(WIDE):
                sums[t * WIDE + g] = _vpdpbusd(b, sums[t * WIDE + g], weights[g], four)
    left, at = b.sub(left, _I64(1)), b.add(at, _I64(CHANNEL_BYTES))
    nexts = [left, at, b.add(codes, b.mul(n, _I64(32))), *sums]
    loop.again_while(b.icmp_signed(">", left, _I64(0)), nexts)
    ws = [_load(b, b.add(w, b.mul(apart, _I64(g))), f32x16.llvm) for g in range(WIDE)]
    for i, total in enumerate(sums):
        t, g = divmod(i, WIDE)
        xs = _splat(b, _load(b, b.add(scales, _I64(4 * t)), _F32), 16)
        value = b.fmul(b.sitofp(total, f32x16.llvm), b.fmul(ws[g], xs))
        _store(b, b.add(acc, _I64(64 * (TILE * g + t))), value)


def _channel_typing(
    ctx: Any, w: Any, blocks: Any, x: Any, scales: Any, n: Any, acc: Any
) -> Any:  # fmt: skip
    """(w, blocks, x, scales, n, acc), int64 all: the same for bytes with one scale a row, in the
    layout of `cpu/linear_channel.py`, y = float(sum) * (ws * xs); float32 [WIDE][TILE][16] to acc.
    """

    def codegen(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        _channel_body(b, arguments)
        return context.get_dummy_value()

    return types.void(i64, i64, i64, i64, i64, i64), codegen


channel_tile: Any = intrinsic(_channel_typing)
