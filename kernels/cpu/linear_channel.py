"""linear on the CPU for weights and activations with one scale a row.

Weights. For 16 output rows, contiguous: 64 B float32 scales, then of each block of 32 inputs 8
chunks of 64 B, byte 4r + t of chunk j -> input 4j + t of row r, plus 128. Activations: the tiles of
`linear.py`, whose scales and corrections stand in the places of the first block.

y = float(sum) * (ws * xs), with one exact int32 sum over all inputs: so bits do not depend on the
order of the blocks either.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..simd import bcast_f32, load_f32, load_i8, load_i32, store_f32, store_i32
from ..simd_code_tiles import HAS_CODE_TILES, TALL, channel_tile
from ..simd_math import add_i32, mul, splat_i32, to_f32
from .layout import CHANNEL_BYTES, CHANNEL_HEAD, TILE
from .linear import FEW, ahead, ahead_of_few, byte_sum, corr8, quantized, quantized_gated
from .vm import kernel

_ask = ahead_of_few(8)


@njit(error_model="numpy")
def _row(w: int, blocks: int, x: int, past: int) -> Any:
    """16 rows times one token, float32x16."""
    scales = x + blocks * 32
    total, at = corr8(scales + blocks * 4), w + CHANNEL_HEAD
    for b in range(blocks):
        ahead(at, 8, past)
        part = byte_sum(
            splat_i32(0),
            load_i8(at), load_i8(at + 64), load_i8(at + 128), load_i8(at + 192),
            load_i8(at + 256), load_i8(at + 320), load_i8(at + 384), load_i8(at + 448),
            x + 32 * b,
        )  # fmt: skip
        total = add_i32(total, part)
        at += CHANNEL_BYTES
    return mul(to_f32(total), mul(load_f32(w), bcast_f32(scales)))


@njit(error_model="numpy")
def _tile(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
    """16 rows times a tile of n tokens; float32 [n][16] to acc, which holds int32 meanwhile."""
    scales, at = x + blocks * n * 32, w + CHANNEL_HEAD
    for t in range(n):
        store_i32(acc + 64 * t, corr8(scales + 4 * (blocks * n + t)))
    for b in range(blocks):
        _ask(at, n, past)
        w0, w1, w2, w3 = load_i8(at), load_i8(at + 64), load_i8(at + 128), load_i8(at + 192)
        w4, w5, w6, w7 = load_i8(at + 256), load_i8(at + 320), load_i8(at + 384), load_i8(at + 448)
        for t in range(n):
            part = byte_sum(splat_i32(0), w0, w1, w2, w3, w4, w5, w6, w7, x + 32 * (b * n + t))
            store_i32(acc + 64 * t, add_i32(load_i32(acc + 64 * t), part))
        at += CHANNEL_BYTES
    for t in range(n):
        both = mul(load_f32(w), bcast_f32(scales + 4 * t))
        store_f32(acc + 64 * t, mul(to_f32(load_i32(acc + 64 * t)), both))


@njit(error_model="numpy")
def _each(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
    """`_tile` for two groups of rows; float32 [2][TILE][16] to acc."""
    _tile(w, blocks, x, n, acc, past)
    _tile(w + CHANNEL_HEAD + blocks * CHANNEL_BYTES, blocks, x, n, acc + 64 * TILE, past)


_wide = _each
if HAS_CODE_TILES:

    @njit(error_model="numpy")
    def _wide(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
        if n <= FEW:
            _each(w, blocks, x, n, acc, past)
            return
        scales = x + blocks * n * 32
        for start in range(0, n, TALL):
            t = min(start, n - TALL)  # the last ones overlap, with the same bits
            channel_tile(w, blocks, x + 32 * t, scales + 4 * t, n, acc + 64 * t)


_linear = quantized(_row, _tile, _wide, CHANNEL_BYTES, CHANNEL_HEAD)
_gated = quantized_gated(_row, _wide, CHANNEL_BYTES, CHANNEL_HEAD)


@kernel
def linear_channel(ins: int, thread: int, threads: int) -> None:
    """int8-channel weights, int8 activations of one scale a row."""
    _linear(ins, thread, threads)


@kernel
def gated_channel(ins: int, thread: int, threads: int) -> None:
    """Gate and up rows in alternating groups, activation applied: int8-channel weights."""
    _gated(ins, thread, threads)
