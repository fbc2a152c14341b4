"""Rows to int8 tiles, as products with codes read them (layout in `linear.py`)."""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd
from ..linear import QUANTIZE
from ..operands import COUNT
from ..simd import f32, ld_f32, ld_i64, load_f32, st_f32, st_i32, store_f32, store_i8
from ..simd_math import add_i32, larger, largest, mul, rint, splat, splat_i32, sum_i32, to_i32, vabs
from .activation import norm_row, share
from .layout import (
    BEFORE_ACTIVATION,
    BEFORE_LAYER,
    BEFORE_RMS,
    HALVES,
    INT8_OFFSET,
    TILE,
    TOKEN_BLOCK,
    WHOLE,
)
from .rows import activated, affine, modulated_row, normed_row, padded_bytes
from .vm import kernel


@njit(error_model="numpy")
def _quantize_block(a: Any, b: Any, q: int, s: int, c: int, offset: int) -> None:
    """32 values to int8 codes at q, scale at s, correction -offset * sum(codes) at c, or the sums
    of both halves where the offset is HALVES."""
    peak = largest(larger(vabs(a), vabs(b)))
    scale = f32(peak * f32(1.0 / 127.0))
    st_f32(s, scale)
    inverse = splat(f32(1.0) / scale if scale > f32(0.0) else f32(0.0))
    qa, qb = to_i32(rint(mul(a, inverse))), to_i32(rint(mul(b, inverse)))
    store_i8(q, qa)
    store_i8(q + 16, qb)
    if offset == HALVES:
        st_i32(c, simd.i32((sum_i32(qb) << 16) + sum_i32(qa)))
    else:
        st_i32(c, simd.i32(-offset * sum_i32(add_i32(qa, qb))))


@njit(error_model="numpy")
def _quantize_whole(x: int, width: int, tile: int, t: int, n: int, blocks: int, spare: int) -> None:
    """As `quantize_row`, with one scale and one correction, in the places of the first block."""
    scales = tile + blocks * n * 32
    corrections = scales + blocks * n * 4
    for i in range(32 if width % 32 else 0):
        k = 32 * (blocks - 1) + i
        st_f32(spare + 4 * i, ld_f32(x + 4 * k) if k < width else f32(0.0))
    top = splat(f32(0.0))
    for b in range(blocks):
        at = x + 128 * b if 32 * b + 32 <= width else spare
        top = larger(larger(vabs(load_f32(at)), vabs(load_f32(at + 64))), top)
    scale = f32(largest(top) * f32(1.0 / 127.0))
    inverse = splat(f32(1.0) / scale if scale > f32(0.0) else f32(0.0))
    total = splat_i32(0)
    for b in range(blocks):
        at = x + 128 * b if 32 * b + 32 <= width else spare
        qa = to_i32(rint(mul(load_f32(at), inverse)))
        qb = to_i32(rint(mul(load_f32(at + 64), inverse)))
        q = tile + 32 * (b * n + t)
        store_i8(q, qa)
        store_i8(q + 16, qb)
        total = add_i32(total, add_i32(qa, qb))
    st_f32(scales + 4 * t, scale)
    st_i32(corrections + 4 * t, simd.i32(-INT8_OFFSET * sum_i32(total)))


@njit(error_model="numpy")
def quantize_row(
    x: int, width: int, tile: int, t: int, n: int, blocks: int, offset: int, spare: int
) -> None:
    """Row t of a tile of n tokens (layout in `linear.py`); spare: 128 bytes of scratch."""
    if offset == WHOLE:
        _quantize_whole(x, width, tile, t, n, blocks, spare)
        return
    scales = tile + blocks * n * 32
    corrections = scales + blocks * n * 4
    whole = width // 32
    for b in range(blocks):
        at = x + 128 * b
        if b >= whole:
            for i in range(32):
                st_f32(spare + 4 * i, ld_f32(at + 4 * i) if 32 * b + i < width else f32(0.0))
            at = spare
        k = b * n + t
        q, s, c = tile + 32 * k, scales + 4 * k, corrections + 4 * k
        _quantize_block(load_f32(at), load_f32(at + 64), q, s, c, offset)


@njit(error_model="numpy")
def _prepared(ins: int, x: int, width: int, gain: int, offset: int, out: int) -> int:
    """Where the row stands that is to be quantized, after the work that comes before."""
    before = ld_i64(ins + QUANTIZE.before)
    if before == 0:
        return x
    if before == BEFORE_RMS:
        norm_row(x, ld_i64(ins + QUANTIZE.weight), out, width, ld_f32(ins + QUANTIZE.eps))
    elif before == BEFORE_LAYER:
        normed_row(x, gain, offset, out, width, ld_f32(ins + QUANTIZE.eps))
    elif before == BEFORE_ACTIVATION:
        act = ld_i64(ins + QUANTIZE.act)
        for i in range(0, width, 16):
            store_f32(out + 4 * i, activated(load_f32(x + 4 * i), act))
    else:
        modulated_row(x, gain, offset, out, width)
    return out


@kernel
def quantize(ins: int, thread: int, threads: int) -> None:
    """What comes before (`kernels/before.py`), then int8 tiles for a quantized product."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, stride = ld_i64(ins + QUANTIZE.x), ld_i64(ins + QUANTIZE.x_stride)
    width = ld_i64(ins + QUANTIZE.width)
    blocks, tiles = ld_i64(ins + QUANTIZE.blocks), ld_i64(ins + QUANTIZE.tiles)
    offset = ld_i64(ins + QUANTIZE.offset)
    before = ld_i64(ins + QUANTIZE.before)
    scratch = ld_i64(ins + QUANTIZE.scratch) + thread * ld_i64(ins + QUANTIZE.scratch_bytes)
    start, stop = share(n, thread, threads)
    if n == 1:
        tiles += thread * ld_i64(ins + QUANTIZE.private_bytes)
        start, stop = 0, 1
    out, gain = scratch + 128, scratch + 128 + padded_bytes(width)
    shift = gain + padded_bytes(width)
    if start < stop and before != 0 and before != BEFORE_RMS and before != BEFORE_ACTIVATION:
        affine(ins + QUANTIZE.weight, gain, shift, width)
    for row in range(start, stop):
        source = _prepared(ins, x + row * stride, width, gain, shift, out)
        t0 = row - row % TILE
        tile = tiles + t0 * blocks * TOKEN_BLOCK
        quantize_row(source, width, tile, row - t0, min(TILE, n - t0), blocks, offset, scratch)
