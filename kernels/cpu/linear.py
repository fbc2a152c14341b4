"""linear on the CPU: weights in 16-row interleaved blocks ("r16s"), activations in int8 tiles.

Weights. For 16 output rows and a block of 32 inputs, contiguous; blocks follow along K, then the
next 16 rows (see `pack.py`):

    int4   32 B float16 scales | 4 chunks of 64 B, bytes 4r..4r+3 of chunk j belong to row r:
           low nibble of byte t -> input 8j + t, high nibble -> input 8j + 4 + t
    int8   32 B float16 scales | 8 chunks of 64 B, byte 4r + t of chunk j -> input 4j + t, row r
    f16, f32   [K][16] elements, no scales
    one scale a row: `linear_channel.py`

Activations of quantized products. Tokens in tiles of up to 32: a tile of n tokens is
q int8 [KB][n][32], then scales float32 [KB][n], then corrections int32 [KB][n].

One formula for every row count: per block an exact int32 sum, then
acc = fma(float(sum), ws * xs, acc), blocks in order. So a row's bits do not depend on how many
rows were in the call, on the thread count, or on the chunking.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd
from ..linear import LINEAR
from ..operands import COUNT
from ..simd import (
    bcast_f32,
    bcast_i8x4,
    bcast_i32,
    f32,
    ld_i64,
    load_f16,
    load_f32,
    load_i8,
    prefetch,
    prefetch_once,
    store_f32,
)
from ..simd_code_tiles import WIDE
from ..simd_dots import (
    CORRECTED_BYTES,
    dot_bytes,
    dot_nibbles,
    flip_sign,
    high_nibbles,
    low_nibbles,
    maddss,
    maddubs,
    pair_sums,
)
from ..simd_math import add, add_i16, add_i32, fma, mul, splat, splat_i32, to_f32
from ..simd_pairs import PAIRED, pair_bytes, pair_nibbles
from .activation import gate
from .layout import INT4_BYTES, INT8_BYTES, TILE, TOKEN_BLOCK
from .linear_pairs import paired_tile
from .linear_wide import wide_tile
from .vm import claim, kernel

GRAIN = 8  # chunks a thread
FEW = 8  # rows of a step that waits for memory more than it computes
AHEAD = 4096  # bytes between a decode kernel and what it asks for


@njit(error_model="numpy")
def ahead(w: int, count: int, past: int) -> None:
    """Ask for the `count` cache lines that lie AHEAD of w; past: past the outer caches."""
    if past:
        for i in range(count):
            prefetch_once(w + AHEAD + 64 * i)
    else:
        for i in range(count):
            prefetch(w + AHEAD + 64 * i)


def ahead_of_few(count: int) -> Any:
    """`ahead` for steps of up to FEW rows; with more, a block is worked on for long enough."""

    @njit(error_model="numpy")
    def ask(w: int, n: int, past: int) -> None:
        if n <= FEW:
            ahead(w, count, past)

    return ask


_ask_int4, _ask_int8 = ahead_of_few(5), ahead_of_few(9)


if simd.ISA == "avx2":

    @njit(error_model="numpy")
    def nibble_sum(
        corr: Any, a0: Any, b0: Any, a1: Any, b1: Any, a2: Any, b2: Any, a3: Any, b3: Any, p: int
    ) -> Any:
        """Exact sum of a block: eight 16-bit sums stay below 30480, so one widening is enough."""
        s = maddubs(a0, bcast_i8x4(p))
        s = add_i16(s, maddubs(b0, bcast_i8x4(p + 4)))
        s = add_i16(s, maddubs(a1, bcast_i8x4(p + 8)))
        s = add_i16(s, maddubs(b1, bcast_i8x4(p + 12)))
        s = add_i16(s, maddubs(a2, bcast_i8x4(p + 16)))
        s = add_i16(s, maddubs(b2, bcast_i8x4(p + 20)))
        s = add_i16(s, maddubs(a3, bcast_i8x4(p + 24)))
        s = add_i16(s, maddubs(b3, bcast_i8x4(p + 28)))
        return add_i32(corr, pair_sums(s))

    @njit(error_model="numpy")
    def byte_sum(
        corr: Any, w0: Any, w1: Any, w2: Any, w3: Any, w4: Any, w5: Any, w6: Any, w7: Any, p: int
    ) -> Any:
        """Exact sum of a block of signed bytes."""
        s = pair_sums(maddss(flip_sign(w0), bcast_i8x4(p)))
        s = add_i32(s, pair_sums(maddss(flip_sign(w1), bcast_i8x4(p + 4))))
        s = add_i32(s, pair_sums(maddss(flip_sign(w2), bcast_i8x4(p + 8))))
        s = add_i32(s, pair_sums(maddss(flip_sign(w3), bcast_i8x4(p + 12))))
        s = add_i32(s, pair_sums(maddss(flip_sign(w4), bcast_i8x4(p + 16))))
        s = add_i32(s, pair_sums(maddss(flip_sign(w5), bcast_i8x4(p + 20))))
        s = add_i32(s, pair_sums(maddss(flip_sign(w6), bcast_i8x4(p + 24))))
        return add_i32(s, pair_sums(maddss(flip_sign(w7), bcast_i8x4(p + 28))))

else:

    @njit(error_model="numpy")
    def nibble_sum(
        corr: Any, a0: Any, b0: Any, a1: Any, b1: Any, a2: Any, b2: Any, a3: Any, b3: Any, p: int
    ) -> Any:
        """Exact sum of a block: corr + sum over 32 inputs of nibble * x, for 16 rows."""
        s = dot_nibbles(corr, a0, bcast_i8x4(p))
        s = dot_nibbles(s, b0, bcast_i8x4(p + 4))
        s = dot_nibbles(s, a1, bcast_i8x4(p + 8))
        s = dot_nibbles(s, b1, bcast_i8x4(p + 12))
        s = dot_nibbles(s, a2, bcast_i8x4(p + 16))
        s = dot_nibbles(s, b2, bcast_i8x4(p + 20))
        s = dot_nibbles(s, a3, bcast_i8x4(p + 24))
        return dot_nibbles(s, b3, bcast_i8x4(p + 28))

    @njit(error_model="numpy")
    def byte_sum(
        corr: Any, w0: Any, w1: Any, w2: Any, w3: Any, w4: Any, w5: Any, w6: Any, w7: Any, p: int
    ) -> Any:
        """Exact sum of a block: corr + sum over 32 inputs of byte * x, for 16 rows."""
        s = dot_bytes(corr, w0, bcast_i8x4(p))
        s = dot_bytes(s, w1, bcast_i8x4(p + 4))
        s = dot_bytes(s, w2, bcast_i8x4(p + 8))
        s = dot_bytes(s, w3, bcast_i8x4(p + 12))
        s = dot_bytes(s, w4, bcast_i8x4(p + 16))
        s = dot_bytes(s, w5, bcast_i8x4(p + 20))
        s = dot_bytes(s, w6, bcast_i8x4(p + 24))
        return dot_bytes(s, w7, bcast_i8x4(p + 28))


@njit(error_model="numpy")
def row_int4(w: int, blocks: int, x: int, past: int) -> Any:
    """16 rows times one token, float32x16; past: as in `ahead`."""
    scales = x + blocks * 32
    corrections = scales + blocks * 4
    acc = splat(f32(0.0))
    for b in range(blocks):
        ahead(w, 5, past)
        v0, v1 = load_i8(w + 32), load_i8(w + 96)
        v2, v3 = load_i8(w + 160), load_i8(w + 224)
        total = nibble_sum(
            bcast_i32(corrections + 4 * b),
            low_nibbles(v0), high_nibbles(v0), low_nibbles(v1), high_nibbles(v1),
            low_nibbles(v2), high_nibbles(v2), low_nibbles(v3), high_nibbles(v3),
            x + 32 * b,
        )  # fmt: skip
        acc = fma(to_f32(total), mul(load_f16(w), bcast_f32(scales + 4 * b)), acc)
        w += INT4_BYTES
    return acc


@njit(error_model="numpy")
def tile_int4(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
    """16 rows times a tile of n tokens; float32 [n][16] to acc."""
    scales = x + blocks * n * 32
    corrections = scales + blocks * n * 4
    for t in range(n):
        store_f32(acc + 64 * t, splat(f32(0.0)))
    for _ in range(blocks):
        _ask_int4(w, n, past)
        ws = load_f16(w)
        v0, v1 = load_i8(w + 32), load_i8(w + 96)
        v2, v3 = load_i8(w + 160), load_i8(w + 224)
        a0, a1, a2, a3 = low_nibbles(v0), low_nibbles(v1), low_nibbles(v2), low_nibbles(v3)
        b0, b1, b2, b3 = high_nibbles(v0), high_nibbles(v1), high_nibbles(v2), high_nibbles(v3)
        for t in range(n):
            corr = bcast_i32(corrections + 4 * t)
            total = nibble_sum(corr, a0, b0, a1, b1, a2, b2, a3, b3, x + 32 * t)
            both = mul(ws, bcast_f32(scales + 4 * t))
            store_f32(acc + 64 * t, fma(to_f32(total), both, load_f32(acc + 64 * t)))
        w += INT4_BYTES
        x += 32 * n
        scales += 4 * n
        corrections += 4 * n


@njit(error_model="numpy")
def corr8(p: int) -> Any:
    return bcast_i32(p) if CORRECTED_BYTES else splat_i32(0)


@njit(error_model="numpy")
def row_int8(w: int, blocks: int, x: int, past: int) -> Any:
    """16 rows times one token, float32x16."""
    scales = x + blocks * 32
    corrections = scales + blocks * 4
    acc = splat(f32(0.0))
    for b in range(blocks):
        ahead(w, 9, past)
        total = byte_sum(
            corr8(corrections + 4 * b),
            load_i8(w + 32), load_i8(w + 96), load_i8(w + 160), load_i8(w + 224),
            load_i8(w + 288), load_i8(w + 352), load_i8(w + 416), load_i8(w + 480),
            x + 32 * b,
        )  # fmt: skip
        acc = fma(to_f32(total), mul(load_f16(w), bcast_f32(scales + 4 * b)), acc)
        w += INT8_BYTES
    return acc


@njit(error_model="numpy")
def tile_int8(w: int, blocks: int, x: int, n: int, acc: int, past: int) -> None:
    """16 rows times a tile of n tokens; float32 [n][16] to acc."""
    scales = x + blocks * n * 32
    corrections = scales + blocks * n * 4
    for t in range(n):
        store_f32(acc + 64 * t, splat(f32(0.0)))
    for _ in range(blocks):
        _ask_int8(w, n, past)
        ws = load_f16(w)
        w0, w1, w2, w3 = load_i8(w + 32), load_i8(w + 96), load_i8(w + 160), load_i8(w + 224)
        w4, w5, w6, w7 = load_i8(w + 288), load_i8(w + 352), load_i8(w + 416), load_i8(w + 480)
        for t in range(n):
            corr = corr8(corrections + 4 * t)
            total = byte_sum(corr, w0, w1, w2, w3, w4, w5, w6, w7, x + 32 * t)
            both = mul(ws, bcast_f32(scales + 4 * t))
            store_f32(acc + 64 * t, fma(to_f32(total), both, load_f32(acc + 64 * t)))
        w += INT8_BYTES
        x += 32 * n
        scales += 4 * n
        corrections += 4 * n


if PAIRED:
    tile_int4 = paired_tile(pair_nibbles, 64, INT4_BYTES, _ask_int4, corrected=True)
    tile_int8 = paired_tile(pair_bytes, 128, INT8_BYTES, _ask_int8, corrected=False)


@njit(error_model="numpy")
def finish(acc: Any, y: int, bias: int, residual: int) -> None:
    """Bias, residual and store of 16 outputs; 0 where there is no bias or residual."""
    if bias != 0:
        acc = add(acc, load_f32(bias))
    if residual != 0:
        acc = add(acc, load_f32(residual))
    store_f32(y, acc)


def quantized(
    row_kernel: Any, tile_kernel: Any, wide_kernel: Any, block_bytes: int, head: int = 0
) -> Any:
    """A kernel of products. head: bytes of a group of rows before its blocks."""

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n = ld_i64(ld_i64(ins + COUNT))
        w, groups = ld_i64(ins + LINEAR.weights), ld_i64(ins + LINEAR.groups)
        blocks = ld_i64(ins + LINEAR.depth)
        apart = head + blocks * block_bytes
        x, y, stride = ld_i64(ins + LINEAR.x), ld_i64(ins + LINEAR.y), ld_i64(ins + LINEAR.y_stride)
        bias, residual = ld_i64(ins + LINEAR.bias), ld_i64(ins + LINEAR.residual)
        scratch = ld_i64(ins + LINEAR.scratch) + thread * ld_i64(ins + LINEAR.scratch_bytes)
        ctrl, past = ld_i64(ins + LINEAR.ctrl), ld_i64(ins + LINEAR.past)
        if n == 0:
            return
        if n == 1:
            x += thread * ld_i64(ins + LINEAR.x_stride)
        while True:
            start, stop = claim(ctrl, groups, threads, GRAIN)
            if start >= groups:
                return
            if n == 1:
                for g in range(start, stop):
                    wg = w + g * apart
                    bg = bias + 64 * g if bias != 0 else 0
                    rg = residual + 64 * g if residual != 0 else 0
                    finish(row_kernel(wg, blocks, x, past), y + 64 * g, bg, rg)
                continue
            for g in range(start, stop, WIDE):
                wg, several = w + g * apart, min(WIDE, stop - g)
                for t0 in range(0, n, TILE):
                    m, xt = min(TILE, n - t0), x + t0 * blocks * TOKEN_BLOCK
                    if several == WIDE:
                        wide_kernel(wg, blocks, xt, m, scratch, past)
                    else:
                        tile_kernel(wg, blocks, xt, m, scratch, past)
                    for t in range(m):
                        for i in range(several):
                            at = (t0 + t) * stride + 64 * (g + i)
                            bt = bias + 64 * (g + i) if bias != 0 else 0
                            rt = residual + at if residual != 0 else 0
                            finish(load_f32(scratch + 64 * (TILE * i + t)), y + at, bt, rt)

    return run


def quantized_gated(row_kernel: Any, wide_kernel: Any, block_bytes: int, head: int = 0) -> Any:
    """A kernel of gated products."""

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n = ld_i64(ld_i64(ins + COUNT))
        w, groups = ld_i64(ins + LINEAR.weights), ld_i64(ins + LINEAR.groups)
        blocks = ld_i64(ins + LINEAR.depth)
        apart = head + blocks * block_bytes
        x, y, stride = ld_i64(ins + LINEAR.x), ld_i64(ins + LINEAR.y), ld_i64(ins + LINEAR.y_stride)
        act = ld_i64(ins + LINEAR.act)
        scratch = ld_i64(ins + LINEAR.scratch) + thread * ld_i64(ins + LINEAR.scratch_bytes)
        ctrl, past = ld_i64(ins + LINEAR.ctrl), ld_i64(ins + LINEAR.past)
        if n == 0:
            return
        if n == 1:
            x += thread * ld_i64(ins + LINEAR.x_stride)
        while True:
            start, stop = claim(ctrl, groups, threads, GRAIN)
            if start >= groups:
                return
            for g in range(start, stop):
                wg = w + 2 * g * apart
                wu = wg + apart
                if n == 1:
                    # Gate rows first: reading backwards halves the speed (prefetchers).
                    g_row = row_kernel(wg, blocks, x, past)
                    store_f32(y + 64 * g, gate(g_row, row_kernel(wu, blocks, x, past), act))
                    continue
                for t0 in range(0, n, TILE):
                    m = min(TILE, n - t0)
                    xt = x + t0 * blocks * TOKEN_BLOCK
                    wide_kernel(wg, blocks, xt, m, scratch, past)
                    for t in range(m):
                        up = load_f32(scratch + 64 * (TILE + t))
                        out = gate(load_f32(scratch + 64 * t), up, act)
                        store_f32(y + (t0 + t) * stride + 64 * g, out)

    return run


wide_int4 = wide_tile(4, tile_int4, INT4_BYTES, AHEAD)
wide_int8 = wide_tile(8, tile_int8, INT8_BYTES, AHEAD)
_int4 = quantized(row_int4, tile_int4, wide_int4, INT4_BYTES)
_int8 = quantized(row_int8, tile_int8, wide_int8, INT8_BYTES)
_int4_gated = quantized_gated(row_int4, wide_int4, INT4_BYTES)
_int8_gated = quantized_gated(row_int8, wide_int8, INT8_BYTES)


@kernel
def linear_int4(ins: int, thread: int, threads: int) -> None:
    """int4-g32 weights, int8 activations."""
    _int4(ins, thread, threads)


@kernel
def linear_int8(ins: int, thread: int, threads: int) -> None:
    """int8-g32 weights, int8 activations."""
    _int8(ins, thread, threads)


@kernel
def gated_int4(ins: int, thread: int, threads: int) -> None:
    """Gate and up rows in alternating groups, activation applied: int4-g32 weights."""
    _int4_gated(ins, thread, threads)


@kernel
def gated_int8(ins: int, thread: int, threads: int) -> None:
    """Gate and up rows in alternating groups, activation applied: int8-g32 weights."""
    _int8_gated(ins, thread, threads)
