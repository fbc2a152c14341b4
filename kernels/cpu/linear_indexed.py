"""linear on the CPU for very sparse weights: values with the indices of their inputs.

Weights. For 16 output rows, contiguous, with `kept` values a row and W = ceil(K / 64):

    codes     [16][W] float16 scales | [16][kept] uint16 indices | [16][kept] int8 codes
    float16   [16][kept] uint16 indices | [16][kept] float16 values

Activations of codes are the tiles of `linear.py`, made float again: what is summed is the formula
of the dense kernels, value by value. One formula for every row count: value j of a row goes to sum
j mod 4, the rest behind the last four to sum 0, and the sums are added in pairs.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ..linear import LINEAR
from ..operands import COUNT
from ..simd import (
    bcast_f32,
    f32,
    ld_f16,
    ld_f32,
    ld_i8,
    ld_i32,
    ld_i64,
    load_f16,
    load_f32,
    load_s8_f32,
    prefetch,
    prefetch_once,
    st_f32,
    store_f32,
)
from ..simd_math import add, mul, splat
from .layout import ATOMS, GROUP, ROWS, TILE, TOKEN_BLOCK
from .linear import AHEAD, FEW, GRAIN, finish
from .vm import claim, kernel

LANES = 16  # tokens whose products are made at once


@njit(error_model="numpy")
def _index(p: int) -> int:
    """The uint16 at p, behind which two more bytes must be readable."""
    return ld_i32(p) & 65535


@njit(error_model="numpy")
def _code(scales: int, at: int, values: int, j: int) -> tuple[int, float]:
    """Index and value of code j of a row; float32 codes, and scales, one for 64 inputs."""
    k = _index(at + 2 * j)
    return k, f32(ld_f32(values + 4 * j) * ld_f32(scales + 4 * (k // ATOMS)))


@njit(error_model="numpy")
def _half(scales: int, at: int, values: int, j: int) -> tuple[int, float]:
    """Index and value j of a row; float32 values."""
    return _index(at + 2 * j), ld_f32(values + 4 * j)


@njit(error_model="numpy")
def _wide_codes(p: int, kept: int, to: int) -> None:
    """int8 codes as float32."""
    for j in range(0, kept - 15, 16):
        store_f32(to + 4 * j, load_s8_f32(p + j))
    for j in range(kept - kept % 16, kept):
        st_f32(to + 4 * j, f32(ld_i8(p + j)))


@njit(error_model="numpy")
def _wide_halves(p: int, kept: int, to: int) -> None:
    """float16 values as float32."""
    for j in range(0, kept - 15, 16):
        store_f32(to + 4 * j, load_f16(p + 2 * j))
    for j in range(kept - kept % 16, kept):
        st_f32(to + 4 * j, ld_f16(p + 2 * j))


def _row(entry: Any) -> Any:
    @njit(error_model="numpy")
    def row(scales: int, at: int, values: int, kept: int, t: int) -> float:
        """A row times one token, float32 [K] at t."""
        a0 = a1 = a2 = a3 = f32(0.0)
        for j in range(0, kept - 3, 4):
            k0, v0 = entry(scales, at, values, j)
            k1, v1 = entry(scales, at, values, j + 1)
            k2, v2 = entry(scales, at, values, j + 2)
            k3, v3 = entry(scales, at, values, j + 3)
            a0 += f32(v0 * ld_f32(t + 4 * k0))
            a1 += f32(v1 * ld_f32(t + 4 * k1))
            a2 += f32(v2 * ld_f32(t + 4 * k2))
            a3 += f32(v3 * ld_f32(t + 4 * k3))
        for j in range(kept - kept % 4, kept):
            k0, v0 = entry(scales, at, values, j)
            a0 += f32(v0 * ld_f32(t + 4 * k0))
        return f32(f32(a0 + a1) + f32(a2 + a3))

    return row


def _rows(entry: Any) -> Any:
    @njit(error_model="numpy")
    def rows(scales: int, at: int, values: int, kept: int, t: int) -> Any:
        """A row times 16 tokens, float32 [K][16] at t: float32x16."""
        a0 = a1 = a2 = a3 = splat(f32(0.0))
        for j in range(0, kept - 3, 4):
            k0, v0 = entry(scales, at, values, j)
            k1, v1 = entry(scales, at, values, j + 1)
            k2, v2 = entry(scales, at, values, j + 2)
            k3, v3 = entry(scales, at, values, j + 3)
            a0 = add(a0, mul(splat(v0), load_f32(t + 64 * k0)))
            a1 = add(a1, mul(splat(v1), load_f32(t + 64 * k1)))
            a2 = add(a2, mul(splat(v2), load_f32(t + 64 * k2)))
            a3 = add(a3, mul(splat(v3), load_f32(t + 64 * k3)))
        for j in range(kept - kept % 4, kept):
            k0, v0 = entry(scales, at, values, j)
            a0 = add(a0, mul(splat(v0), load_f32(t + 64 * k0)))
        return add(add(a0, a1), add(a2, a3))

    return rows


@njit(error_model="numpy")
def _one_of_tile(x: int, blocks: int, t: int) -> None:
    """The token of a tile of one, float32 [K] to t."""
    scales = x + blocks * GROUP
    for b in range(blocks):
        scale = bcast_f32(scales + 4 * b)
        store_f32(t + 128 * b, mul(load_s8_f32(x + 32 * b), scale))
        store_f32(t + 128 * b + 64, mul(load_s8_f32(x + 32 * b + 16), scale))


@njit(error_model="numpy")
def _some_of_tile(x: int, blocks: int, n: int, first: int, count: int, t: int) -> None:
    """`count` tokens of a tile of n, from `first` on, float32 [K][16] to t."""
    scales = x + blocks * n * GROUP
    for b in range(blocks):
        for lane in range(count):
            scale = ld_f32(scales + 4 * (b * n + first + lane))
            codes = x + GROUP * (b * n + first + lane)
            for i in range(GROUP):
                at = t + 64 * (GROUP * b + i) + 4 * lane
                st_f32(at, f32(f32(ld_i8(codes + i)) * scale))


@njit(error_model="numpy")
def _some_rows(x: int, stride: int, width: int, count: int, t: int) -> None:
    """`count` float rows at x, float32 [K][16] to t."""
    for k in range(width):
        for lane in range(count):
            st_f32(t + 64 * k + 4 * lane, ld_f32(x + lane * stride + 4 * k))


@njit(error_model="numpy")
def _tokens_of_tiles(x: int, blocks: int, n: int, t0: int, m: int, t: int) -> int:
    """Tokens t0 to t0 + m of n in tiles, as float32 at the address that is returned."""
    if n == 1:
        _one_of_tile(x, blocks, t)
    else:
        first = t0 // TILE * TILE
        tile, count = x + first * blocks * TOKEN_BLOCK, min(TILE, n - first)
        _some_of_tile(tile, blocks, count, t0 - first, m, t)
    return t


@njit(error_model="numpy")
def _ask(p: int, size: int, past: int) -> None:
    """Ask for what lies AHEAD of `size` bytes at p, a line at a time."""
    for line in range(0, size, 64):
        if past:
            prefetch_once(p + AHEAD + line)
        else:
            prefetch(p + AHEAD + line)


def _group(entry: Any, wide: Any, size: int) -> Any:
    row, rows = _row(entry), _rows(entry)

    @njit(error_model="numpy")
    def group(
        w: int, held: int, kept: int, n: int, t: int, sums: int, scales: int, past: int
    ) -> None:
        """16 rows times one token (n = 1), float32 [16] to sums, or 16 tokens, [16][16]."""
        indices, v = w + ROWS * 2 * held, scales + 4 * held
        values = indices + ROWS * 2 * kept
        for r in range(ROWS):
            _wide_halves(w + 2 * r * held, held, scales)
            wide(values + size * r * kept, kept, v)
            at = indices + 2 * r * kept
            if n <= FEW:
                _ask(at, 2 * kept, past)
                _ask(values + size * r * kept, size * kept, past)
            if n == 1:
                st_f32(sums + 4 * r, row(scales, at, v, kept, t))
            else:
                store_f32(sums + 64 * r, rows(scales, at, v, kept, t))

    return group


def _product(entry: Any, wide: Any, *, half: bool) -> Any:
    size = 2 if half else 1
    group = _group(entry, wide, size)

    @njit(error_model="numpy")
    def run(ins: int, thread: int, threads: int) -> None:
        n, kept = ld_i64(ld_i64(ins + COUNT)), ld_i64(ins + LINEAR.kept)
        w, groups = ld_i64(ins + LINEAR.weights), ld_i64(ins + LINEAR.groups)
        depth, x = ld_i64(ins + LINEAR.depth), ld_i64(ins + LINEAR.x)
        x_stride = ld_i64(ins + LINEAR.x_stride)
        y, stride = ld_i64(ins + LINEAR.y), ld_i64(ins + LINEAR.y_stride)
        bias, residual = ld_i64(ins + LINEAR.bias), ld_i64(ins + LINEAR.residual)
        sums = ld_i64(ins + LINEAR.scratch) + thread * ld_i64(ins + LINEAR.scratch_bytes)
        ctrl, past, held = ld_i64(ins + LINEAR.ctrl), ld_i64(ins + LINEAR.past), 0
        # Scratch: a group's sums [16][16], 16 outputs, tokens [K][16] or [K], a row's scales and
        # values.
        outputs, tokens = sums + 64 * ROWS, sums + 64 * ROWS + 64
        scales = tokens + 64 * depth
        if not half:
            held, scales = (depth * GROUP + ATOMS - 1) // ATOMS, tokens + 64 * depth * GROUP
            if n == 1:
                x += thread * x_stride
        while n > 0:
            start, stop = claim(ctrl, groups, threads, GRAIN)
            if start >= groups:
                return
            for t0 in range(0, n, LANES):
                m, t = min(LANES, n - t0), tokens
                if not half:
                    t = _tokens_of_tiles(x, depth, n, t0, m, tokens)
                elif n == 1:
                    t = x
                else:
                    _some_rows(x + t0 * x_stride, x_stride, depth, m, tokens)
                for g in range(start, stop):
                    wg = w + g * ROWS * (2 * held + (2 + size) * kept)
                    group(wg, held, kept, n, t, sums, scales, past)
                    bg = bias + 64 * g if bias != 0 else 0
                    for i in range(m):
                        if n > 1:
                            for r in range(ROWS):
                                st_f32(outputs + 4 * r, ld_f32(sums + 64 * r + 4 * i))
                        at = (t0 + i) * stride + 64 * g
                        rt = residual + at if residual != 0 else 0
                        finish(load_f32(outputs if n > 1 else sums), y + at, bg, rt)

    return run


_codes = _product(_code, _wide_codes, half=False)
_halves = _product(_half, _wide_halves, half=True)


@kernel
def linear_indexed8(ins: int, thread: int, threads: int) -> None:
    """Codes of up to 8 bits with indices, int8 activations."""
    _codes(ins, thread, threads)


@kernel
def linear_indexed16(ins: int, thread: int, threads: int) -> None:
    """float16 values with indices, float32 arithmetic."""
    _halves(ins, thread, threads)
