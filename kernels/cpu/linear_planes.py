"""linear on the CPU for weights of 2 to 6 bits in groups of 32, 64 or 128 inputs.

Weights. For 16 output rows and a group of inputs, contiguous; groups follow along K, then the next
16 rows:

    32 B float16 scales | 16 B zero codes, where groups have their own | the codes, a block for each
    32 inputs of the group (`simd_planes.py`), as many as there are inputs

Activations are those of `linear.py`, with the correction -2^(bits - 1) * sum(codes), or -sum(codes)
where a zero code multiplies it. One formula for every row count, as there.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd
from ..linear import LINEAR
from ..operands import COUNT
from ..simd import bcast_f32, bcast_i8x4, bcast_i32, f32, ld_i64, load_f16, load_f32, store_f32
from ..simd_dots import dot_nibbles, maddubs, pair_sums
from ..simd_math import add_i16, add_i32, fma, mul, splat, to_f32
from ..simd_planes import chunks, load_u8, mul_i32
from .activation import gate
from .layout import PLANE_BYTES, SCALE_BYTES, TILE, TOKEN_BLOCK, ZERO_BYTES
from .linear import FEW, GRAIN, ahead, finish
from .vm import claim, kernel


def _avx2_sum(bits: int) -> Any:
    """Sums of 16 bits hold `apart` products of two codes and two activations."""
    apart = {2: 8, 3: 8, 4: 8, 5: 4, 6: 2}[bits]

    @njit(error_model="numpy")
    def total(
        s: Any, a0: Any, a1: Any, a2: Any, a3: Any, a4: Any, a5: Any, a6: Any, a7: Any, p: int
    ) -> Any:
        v = add_i16(maddubs(a0, bcast_i8x4(p)), maddubs(a1, bcast_i8x4(p + 4)))
        if apart == 2:
            s = add_i32(s, pair_sums(v))
            v = maddubs(a2, bcast_i8x4(p + 8))
        else:
            v = add_i16(v, maddubs(a2, bcast_i8x4(p + 8)))
        v = add_i16(v, maddubs(a3, bcast_i8x4(p + 12)))
        if apart <= 4:
            s = add_i32(s, pair_sums(v))
            v = maddubs(a4, bcast_i8x4(p + 16))
        else:
            v = add_i16(v, maddubs(a4, bcast_i8x4(p + 16)))
        v = add_i16(v, maddubs(a5, bcast_i8x4(p + 20)))
        if apart == 2:
            s = add_i32(s, pair_sums(v))
            v = maddubs(a6, bcast_i8x4(p + 24))
        else:
            v = add_i16(v, maddubs(a6, bcast_i8x4(p + 24)))
        v = add_i16(v, maddubs(a7, bcast_i8x4(p + 28)))
        return add_i32(s, pair_sums(v))

    return total


@njit(error_model="numpy")
def _dot_sum(
    s: Any, a0: Any, a1: Any, a2: Any, a3: Any, a4: Any, a5: Any, a6: Any, a7: Any, p: int
) -> Any:
    s = dot_nibbles(s, a0, bcast_i8x4(p))
    s = dot_nibbles(s, a1, bcast_i8x4(p + 4))
    s = dot_nibbles(s, a2, bcast_i8x4(p + 8))
    s = dot_nibbles(s, a3, bcast_i8x4(p + 12))
    s = dot_nibbles(s, a4, bcast_i8x4(p + 16))
    s = dot_nibbles(s, a5, bcast_i8x4(p + 20))
    s = dot_nibbles(s, a6, bcast_i8x4(p + 24))
    return dot_nibbles(s, a7, bcast_i8x4(p + 28))


def _row(bits: int, zeroed: bool) -> Any:
    """16 rows times one token; every: blocks that share a scale."""
    total = _avx2_sum(bits) if simd.ISA == "avx2" else _dot_sum
    c0, c1, c2, c3, c4, c5, c6, c7 = chunks(bits)
    size, head, lines = PLANE_BYTES * bits, SCALE_BYTES + zeroed * ZERO_BYTES, bits + 1

    @njit(error_model="numpy")
    def row(w: int, blocks: int, every: int, x: int, past: int) -> Any:
        scales = x + blocks * 32
        corrections = scales + blocks * 4
        acc = splat(f32(0.0))
        for first in range(0, blocks, every):
            ws, zero = load_f16(w), load_u8(w + SCALE_BYTES)
            w += head
            for b in range(first, min(first + every, blocks)):
                ahead(w, lines, past)
                s = bcast_i32(corrections + 4 * b)
                if zeroed:
                    s = mul_i32(s, zero)
                s = total(s, c0(w), c1(w), c2(w), c3(w), c4(w), c5(w), c6(w), c7(w), x + 32 * b)
                acc = fma(to_f32(s), mul(ws, bcast_f32(scales + 4 * b)), acc)
                w += size
        return acc

    return row


def _tile(bits: int, zeroed: bool) -> Any:
    """16 rows times a tile of n tokens; float32 [n][16] to acc."""
    total = _avx2_sum(bits) if simd.ISA == "avx2" else _dot_sum
    c0, c1, c2, c3, c4, c5, c6, c7 = chunks(bits)
    size, head, lines = PLANE_BYTES * bits, SCALE_BYTES + zeroed * ZERO_BYTES, bits + 1

    @njit(error_model="numpy")
    def tile(w: int, blocks: int, every: int, x: int, n: int, acc: int, past: int) -> None:
        scales = x + blocks * n * 32
        corrections = scales + blocks * n * 4
        for t in range(n):
            store_f32(acc + 64 * t, splat(f32(0.0)))
        for first in range(0, blocks, every):
            ws, zero = load_f16(w), load_u8(w + SCALE_BYTES)
            w += head
            for _ in range(first, min(first + every, blocks)):
                if n <= FEW:
                    ahead(w, lines, past)
                a0, a1, a2, a3 = c0(w), c1(w), c2(w), c3(w)
                a4, a5, a6, a7 = c4(w), c5(w), c6(w), c7(w)
                for t in range(n):
                    s = bcast_i32(corrections + 4 * t)
                    if zeroed:
                        s = mul_i32(s, zero)
                    s = total(s, a0, a1, a2, a3, a4, a5, a6, a7, x + 32 * t)
                    both = mul(ws, bcast_f32(scales + 4 * t))
                    store_f32(acc + 64 * t, fma(to_f32(s), both, load_f32(acc + 64 * t)))
                w += size
                x += 32 * n
                scales += 4 * n
                corrections += 4 * n

    return tile


def product(size: int, head: int, row: Any, tile: Any) -> Any:
    """The linear kernel of rows and tiles. size: bytes of a block of 32 inputs; head: of what
    stands before those that share a scale."""

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n = ld_i64(ld_i64(ins + COUNT))
        w, groups = ld_i64(ins + LINEAR.weights), ld_i64(ins + LINEAR.groups)
        blocks, every = ld_i64(ins + LINEAR.depth), ld_i64(ins + LINEAR.every)
        x, y, stride = ld_i64(ins + LINEAR.x), ld_i64(ins + LINEAR.y), ld_i64(ins + LINEAR.y_stride)
        bias, residual = ld_i64(ins + LINEAR.bias), ld_i64(ins + LINEAR.residual)
        scratch = ld_i64(ins + LINEAR.scratch) + thread * ld_i64(ins + LINEAR.scratch_bytes)
        ctrl, past = ld_i64(ins + LINEAR.ctrl), ld_i64(ins + LINEAR.past)
        apart = (blocks + every - 1) // every * head + blocks * size
        if n == 0:
            return
        if n == 1:
            x += thread * ld_i64(ins + LINEAR.x_stride)
        while True:
            start, stop = claim(ctrl, groups, threads, GRAIN)
            if start >= groups:
                return
            for g in range(start, stop):
                wg = w + g * apart
                bg = bias + 64 * g if bias != 0 else 0
                if n == 1:
                    rg = residual + 64 * g if residual != 0 else 0
                    finish(row(wg, blocks, every, x, past), y + 64 * g, bg, rg)
                    continue
                for t0 in range(0, n, TILE):
                    m = min(TILE, n - t0)
                    tile(wg, blocks, every, x + t0 * blocks * TOKEN_BLOCK, m, scratch, past)
                    for t in range(m):
                        at = (t0 + t) * stride + 64 * g
                        rt = residual + at if residual != 0 else 0
                        finish(load_f32(scratch + 64 * t), y + at, bg, rt)

    return run


def gated(size: int, head: int, row: Any, tile: Any) -> Any:
    """The gated kernel of rows and tiles, as `product`."""

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n = ld_i64(ld_i64(ins + COUNT))
        w, groups = ld_i64(ins + LINEAR.weights), ld_i64(ins + LINEAR.groups)
        blocks, every = ld_i64(ins + LINEAR.depth), ld_i64(ins + LINEAR.every)
        x, y, stride = ld_i64(ins + LINEAR.x), ld_i64(ins + LINEAR.y), ld_i64(ins + LINEAR.y_stride)
        act = ld_i64(ins + LINEAR.act)
        scratch = ld_i64(ins + LINEAR.scratch) + thread * ld_i64(ins + LINEAR.scratch_bytes)
        ctrl, past = ld_i64(ins + LINEAR.ctrl), ld_i64(ins + LINEAR.past)
        apart = (blocks + every - 1) // every * head + blocks * size
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
                    g_row = row(wg, blocks, every, x, past)
                    store_f32(y + 64 * g, gate(g_row, row(wu, blocks, every, x, past), act))
                    continue
                for t0 in range(0, n, TILE):
                    m = min(TILE, n - t0)
                    xt = x + t0 * blocks * TOKEN_BLOCK
                    tile(wg, blocks, every, xt, m, scratch, past)
                    tile(wu, blocks, every, xt, m, scratch + 64 * TILE, past)
                    for t in range(m):
                        up = load_f32(scratch + 64 * (TILE + t))
                        out = gate(load_f32(scratch + 64 * t), up, act)
                        store_f32(y + (t0 + t) * stride + 64 * g, out)

    return run


def _kernels() -> None:
    """linear_planes2 to linear_planes6, with zero codes linear_zeroed2 to linear_zeroed6, and the
    same as gated_."""
    for bits in (2, 3, 4, 5, 6):
        for name, zeroed in (("planes", False), ("zeroed", True)):
            row, tile = _row(bits, zeroed), _tile(bits, zeroed)
            size, head = PLANE_BYTES * bits, SCALE_BYTES + zeroed * ZERO_BYTES
            kernel(named(product(size, head, row, tile), f"linear_{name}{bits}"))
            kernel(named(gated(size, head, row, tile), f"gated_{name}{bits}"))


def named(run: Any, name: str) -> Any:
    """A kernel of that name."""

    def entry(ins: int, thread: int, threads: int) -> None:
        run(ins, thread, threads)

    entry.__name__ = name
    entry.__qualname__ = name
    return entry


_kernels()
