"""linear on the CPU for weights in GGUF's blocks (`gguf_blocks.py`).

Weights. For 16 output rows and a superblock of 256 inputs (or a block of 32), contiguous;
superblocks follow along K, then the next 16 rows:

    32 B float16 scales d | 32 B float16 minima m, where the format has some | for each 32 inputs:
    16 B scales s and 16 B minima t for each part of them, where there are superblocks, then the
    codes in planes (`simd_planes.py`), or as bytes with 128 for zero (as int8 in `linear.py`)

Activations are those of `linear.py`. Their corrections are -sum(codes) for formats with minima, or,
where a scale is for 16 inputs, the sums of both halves (HALVES). One formula for every row count:
per part an exact int32 sum, less the middle, then acc = fma(float(sum), d * s * xs, acc), then
acc = fma(m * t, -xs * sum(codes), acc), parts in order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import njit

from .. import simd
from ..gguf_blocks import FORMS, Form
from ..simd import (
    bcast_f32,
    bcast_i8x4,
    f32,
    ld_f32,
    ld_i32,
    load_f16,
    load_f32,
    load_i8,
    store_f32,
)
from ..simd_dots import dot_nibbles, maddubs, pair_sums
from ..simd_math import add_i16, add_i32, fma, mul, splat, splat_i32, to_f32
from ..simd_planes import chunks, load_s8, load_u8
from .layout import ROWS, SCALE_BYTES, kept_bytes
from .linear import FEW, ahead, byte_sum, corr8
from .linear_planes import _avx2_sum, _dot_sum, gated, named, product
from .vm import kernel


@njit(error_model="numpy")
def _half_dot(a0: Any, a1: Any, a2: Any, a3: Any, p: int) -> Any:
    s = dot_nibbles(splat_i32(0), a0, bcast_i8x4(p))
    s = dot_nibbles(s, a1, bcast_i8x4(p + 4))
    s = dot_nibbles(s, a2, bcast_i8x4(p + 8))
    return dot_nibbles(s, a3, bcast_i8x4(p + 12))


@cache
def _half_sum(bits: int) -> Any:
    """Exact sum of 16 inputs of codes below 2^bits; two pairs of 6 bits fit 16-bit sums."""

    @njit(error_model="numpy")
    def avx2(a0: Any, a1: Any, a2: Any, a3: Any, p: int) -> Any:
        v = add_i16(maddubs(a0, bcast_i8x4(p)), maddubs(a1, bcast_i8x4(p + 4)))
        u = add_i16(maddubs(a2, bcast_i8x4(p + 8)), maddubs(a3, bcast_i8x4(p + 12)))
        if bits <= 4:
            return pair_sums(add_i16(v, u))
        return add_i32(pair_sums(v), pair_sums(u))

    return avx2 if simd.ISA == "avx2" else _half_dot


def _steps(form: Form) -> Any:
    """(d or m, address of a part's 16 bytes) -> float32x16 scales or minima of the part."""
    return _stepped(form.name in ("q3_k", "q6_k", "iq4_xs")) if form.scaled else _plain


@njit(error_model="numpy")
def _plain(d: Any, p: int) -> Any:
    return d


@cache
def _stepped(signed: bool) -> Any:
    @njit(error_model="numpy")
    def scaled(d: Any, p: int) -> Any:
        return mul(d, to_f32(load_s8(p) if signed else load_u8(p)))

    return scaled


def _whole(form: Form) -> tuple[Any, Any]:
    """Row and tile of formats with a scale for 32 inputs and a minimum."""
    bits = form.bits
    size, head, every = kept_bytes(bits, form.sub, form.minima, form.scaled)
    total = _avx2_sum(bits) if simd.ISA == "avx2" else _dot_sum
    c0, c1, c2, c3, c4, c5, c6, c7 = chunks(bits)
    steps, skip, lines = _steps(form), 2 * ROWS * form.scaled, bits + 1

    @njit(error_model="numpy")
    def row(w: int, blocks: int, _: int, x: int, past: int) -> Any:
        scales = x + blocks * 32
        corrections = scales + blocks * 4
        acc = splat(f32(0.0))
        for first in range(0, blocks, every):
            d, m = load_f16(w), load_f16(w + SCALE_BYTES)
            w += head
            for b in range(first, first + every):
                ahead(w, lines, past)
                q, xs = w + skip, ld_f32(scales + 4 * b)
                s = total(
                    splat_i32(0), c0(q), c1(q), c2(q), c3(q), c4(q), c5(q), c6(q), c7(q), x + 32 * b
                )
                acc = fma(to_f32(s), mul(steps(d, w), splat(xs)), acc)
                low = f32(xs * f32(ld_i32(corrections + 4 * b)))
                acc = fma(steps(m, w + ROWS), splat(low), acc)
                w += size
        return acc

    @njit(error_model="numpy")
    def tile(w: int, blocks: int, _: int, x: int, n: int, acc: int, past: int) -> None:
        scales = x + blocks * n * 32
        corrections = scales + blocks * n * 4
        for t in range(n):
            store_f32(acc + 64 * t, splat(f32(0.0)))
        for _first in range(0, blocks, every):
            d, m = load_f16(w), load_f16(w + SCALE_BYTES)
            w += head
            for _b in range(every):
                if n <= FEW:
                    ahead(w, lines, past)
                q, ws, wm = w + skip, steps(d, w), steps(m, w + ROWS)
                a0, a1, a2, a3 = c0(q), c1(q), c2(q), c3(q)
                a4, a5, a6, a7 = c4(q), c5(q), c6(q), c7(q)
                for t in range(n):
                    xs = ld_f32(scales + 4 * t)
                    s = total(splat_i32(0), a0, a1, a2, a3, a4, a5, a6, a7, x + 32 * t)
                    v = fma(to_f32(s), mul(ws, splat(xs)), load_f32(acc + 64 * t))
                    low = f32(xs * f32(ld_i32(corrections + 4 * t)))
                    store_f32(acc + 64 * t, fma(wm, splat(low), v))
                w += size
                x += 32 * n
                scales += 4 * n
                corrections += 4 * n

    return row, tile


@cache
def _part(middle: int, minima: bool) -> Any:
    """Adds the sum of 16 inputs to the sums of a row; sum_: of their activations."""

    @njit(error_model="numpy")
    def part(s: Any, ws: Any, wm: Any, xs: float, sum_: int, acc: Any) -> Any:
        if middle != 0:
            s = add_i32(s, splat_i32(simd.i32(-middle * sum_)))
        acc = fma(to_f32(s), mul(ws, splat(xs)), acc)
        if minima:
            acc = fma(wm, splat(f32(-xs * f32(sum_))), acc)
        return acc

    return part


def _halves_row(form: Form) -> Any:
    """16 rows times one token, of formats with scales for 16 inputs."""
    bits, minima, part = form.bits, form.minima, _part(form.middle, form.minima)
    size, head, every = kept_bytes(bits, form.sub, minima, form.scaled)
    total = _half_sum(bits)
    c0, c1, c2, c3, c4, c5, c6, c7 = chunks(bits)
    steps, skip, lines = _steps(form), 2 * ROWS * (1 + minima), bits + 1

    @njit(error_model="numpy")
    def row(w: int, blocks: int, _: int, x: int, past: int) -> Any:
        scales = x + blocks * 32
        sums = scales + blocks * 4
        acc = splat(f32(0.0))
        for first in range(0, blocks, every):
            d = load_f16(w)
            m = load_f16(w + SCALE_BYTES) if minima else d
            w += head
            for b in range(first, first + every):
                ahead(w, lines, past)
                q, p, xs = w + skip, x + 32 * b, ld_f32(scales + 4 * b)
                both = ld_i32(sums + 4 * b)
                low = (both & 0xFFFF ^ 0x8000) - 0x8000
                wm = steps(m, w + 2 * ROWS) if minima else d
                wn = steps(m, w + 3 * ROWS) if minima else d
                s = total(c0(q), c1(q), c2(q), c3(q), p)
                acc = part(s, steps(d, w), wm, xs, low, acc)
                s = total(c4(q), c5(q), c6(q), c7(q), p + 16)
                acc = part(s, steps(d, w + ROWS), wn, xs, (both - low) >> 16, acc)
                w += size
        return acc

    return row


def _halves_tile(form: Form) -> Any:
    """16 rows times a tile of n tokens, of the same."""
    bits, minima, part = form.bits, form.minima, _part(form.middle, form.minima)
    size, head, every = kept_bytes(bits, form.sub, minima, form.scaled)
    total = _half_sum(bits)
    c0, c1, c2, c3, c4, c5, c6, c7 = chunks(bits)
    steps, skip, lines = _steps(form), 2 * ROWS * (1 + minima), bits + 1

    @njit(error_model="numpy")
    def tile(w: int, blocks: int, _: int, x: int, n: int, acc: int, past: int) -> None:
        scales = x + blocks * n * 32
        sums = scales + blocks * n * 4
        for t in range(n):
            store_f32(acc + 64 * t, splat(f32(0.0)))
        for _first in range(0, blocks, every):
            d = load_f16(w)
            m = load_f16(w + SCALE_BYTES) if minima else d
            w += head
            for _b in range(every):
                if n <= FEW:
                    ahead(w, lines, past)
                q, ws, wt = w + skip, steps(d, w), steps(d, w + ROWS)
                wm = steps(m, w + 2 * ROWS) if minima else d
                wn = steps(m, w + 3 * ROWS) if minima else d
                a0, a1, a2, a3 = c0(q), c1(q), c2(q), c3(q)
                a4, a5, a6, a7 = c4(q), c5(q), c6(q), c7(q)
                for t in range(n):
                    p, xs, both = x + 32 * t, ld_f32(scales + 4 * t), ld_i32(sums + 4 * t)
                    low = (both & 0xFFFF ^ 0x8000) - 0x8000
                    v = load_f32(acc + 64 * t)
                    v = part(total(a0, a1, a2, a3, p), ws, wm, xs, low, v)
                    s = total(a4, a5, a6, a7, p + 16)
                    store_f32(acc + 64 * t, part(s, wt, wn, xs, (both - low) >> 16, v))
                w += size
                x += 32 * n
                scales += 4 * n
                sums += 4 * n

    return tile


def _halves(form: Form) -> tuple[Any, Any]:
    """Row and tile of formats with scales for 16 inputs."""
    return _halves_row(form), _halves_tile(form)


def _bytes(form: Form) -> tuple[Any, Any]:
    """Row and tile of formats whose codes are whole bytes, with a scale for 32 inputs."""
    size, head, every = kept_bytes(form.bits, form.sub, form.minima, form.scaled)
    steps = _steps(form)

    @njit(error_model="numpy")
    def row(w: int, blocks: int, _: int, x: int, past: int) -> Any:
        scales = x + blocks * 32
        corrections = scales + blocks * 4
        acc = splat(f32(0.0))
        for first in range(0, blocks, every):
            d = load_f16(w)
            w += head
            for b in range(first, first + every):
                ahead(w, 9, past)
                q = w + ROWS
                s = byte_sum(
                    corr8(corrections + 4 * b),
                    load_i8(q), load_i8(q + 64), load_i8(q + 128), load_i8(q + 192),
                    load_i8(q + 256), load_i8(q + 320), load_i8(q + 384), load_i8(q + 448),
                    x + 32 * b,
                )  # fmt: skip
                acc = fma(to_f32(s), mul(steps(d, w), bcast_f32(scales + 4 * b)), acc)
                w += size
        return acc

    @njit(error_model="numpy")
    def tile(w: int, blocks: int, _: int, x: int, n: int, acc: int, past: int) -> None:
        scales = x + blocks * n * 32
        corrections = scales + blocks * n * 4
        for t in range(n):
            store_f32(acc + 64 * t, splat(f32(0.0)))
        for _first in range(0, blocks, every):
            d = load_f16(w)
            w += head
            for _b in range(every):
                if n <= FEW:
                    ahead(w, 9, past)
                q, ws = w + ROWS, steps(d, w)
                w0, w1, w2, w3 = load_i8(q), load_i8(q + 64), load_i8(q + 128), load_i8(q + 192)
                w4, w5 = load_i8(q + 256), load_i8(q + 320)
                w6, w7 = load_i8(q + 384), load_i8(q + 448)
                for t in range(n):
                    corr = corr8(corrections + 4 * t)
                    s = byte_sum(corr, w0, w1, w2, w3, w4, w5, w6, w7, x + 32 * t)
                    both = mul(ws, bcast_f32(scales + 4 * t))
                    store_f32(acc + 64 * t, fma(to_f32(s), both, load_f32(acc + 64 * t)))
                w += size
                x += 32 * n
                scales += 4 * n
                corrections += 4 * n

    return row, tile


def _kernels() -> None:
    """linear_NAME and gated_NAME of every format that is packed as it is."""
    for name, form in FORMS.items():
        if form.packed:
            continue
        make = _bytes if form.bits == 8 else _halves if form.sub < 32 else _whole
        row, tile = make(form)
        size, head, _ = kept_bytes(form.bits, form.sub, form.minima, form.scaled)
        kernel(named(product(size, head, row, tile), f"linear_{name}"))
        kernel(named(gated(size, head, row, tile), f"gated_{name}"))


_kernels()
