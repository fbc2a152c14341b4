"""group_norm on the CPU: moments of blocks of rows, a factor and a summand of each channel, and one
pass that applies them."""

from __future__ import annotations

from numba import njit

from ..group_norm import FACTORS, MOMENTS, SCALE_ROWS
from ..operands import COUNT
from ..simd import f32, ld_f32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import add, fma, mul, splat, sub
from .conv import folded
from .layout import MOMENT_ROWS
from .linear import GRAIN
from .scalar_math import sqrt
from .vm import claim, kernel


@njit(error_model="numpy")
def _moments(x: int, stride: int, rows: int, means: int, squares: int) -> None:
    """Means and sums of squared deviations of 16 channels over some rows."""
    total = splat(f32(0.0))
    for r in range(rows):
        total = add(total, load_f32(x + r * stride))
    mean = mul(total, splat(f32(1.0) / f32(rows)))
    square = splat(f32(0.0))
    for r in range(rows):
        off = sub(load_f32(x + r * stride), mean)
        square = fma(off, off, square)
    store_f32(means, mean)
    store_f32(squares, square)


@kernel
def group_moments(ins: int, thread: int, threads: int) -> None:
    """Blocks of MOMENT_ROWS rows; what stands for the rows' padding is not defined."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, stride = ld_i64(ins + MOMENTS.x), ld_i64(ins + MOMENTS.x_stride)
    moments, width = ld_i64(ins + MOMENTS.moments), ld_i64(ins + MOMENTS.width)
    blocks = (n + MOMENT_ROWS - 1) // MOMENT_ROWS
    while n > 0:
        start, stop = claim(ld_i64(ins + MOMENTS.ctrl), blocks, threads, GRAIN)
        if start >= blocks:
            return
        for block in range(start, stop):
            first, to = block * MOMENT_ROWS, moments + 2 * block * stride
            rows = min(MOMENT_ROWS, n - first)
            for c in range(0, 4 * width, 64):
                _moments(x + first * stride + c, stride, rows, to + c, to + stride + c)


@kernel
def group_factors(ins: int, thread: int, threads: int) -> None:
    """Groups shared out: mean and variance of a group in float64, factors of its channels."""
    n = ld_i64(ld_i64(ins + COUNT))
    moments, stride = ld_i64(ins + FACTORS.moments), ld_i64(ins + FACTORS.x_stride)
    width, groups = ld_i64(ins + FACTORS.width), ld_i64(ins + FACTORS.groups)
    weight, bias = ld_i64(ins + FACTORS.weight), ld_i64(ins + FACTORS.bias)
    factors, eps = ld_i64(ins + FACTORS.factors), ld_f32(ins + FACTORS.eps)
    channels = width // groups
    blocks = (n + MOMENT_ROWS - 1) // MOMENT_ROWS
    if n == 0:
        return
    for g in range(groups * thread // threads, groups * (thread + 1) // threads):
        mean, square = 0.0, 0.0
        for block in range(blocks):
            at = moments + 2 * block * stride + 4 * g * channels
            rows = min(MOMENT_ROWS, n - block * MOMENT_ROWS)
            part = 0.0
            for c in range(channels):
                part += ld_f32(at + 4 * c)
            mean += part * rows
        mean /= float(n) * channels
        for block in range(blocks):
            at = moments + 2 * block * stride + 4 * g * channels
            rows = min(MOMENT_ROWS, n - block * MOMENT_ROWS)
            part = 0.0
            for c in range(channels):
                off = ld_f32(at + 4 * c) - mean
                square += ld_f32(at + stride + 4 * c)
                part += off * off
            square += part * rows
        scale = 1.0 / sqrt(f32(square / (float(n) * channels) + eps))
        for c in range(4 * g * channels, 4 * (g + 1) * channels, 4):
            st_f32(factors + c, f32(mean))
            st_f32(factors + stride + c, f32(scale * ld_f32(weight + c)))
            st_f32(factors + 2 * stride + c, ld_f32(bias + c))


@kernel
def scale_rows(ins: int, thread: int, threads: int) -> None:
    """y = act((x - factors[0]) * factors[1] + factors[2]) by channel."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, y = ld_i64(ins + SCALE_ROWS.x), ld_i64(ins + SCALE_ROWS.y)
    stride, act = ld_i64(ins + SCALE_ROWS.stride), ld_i64(ins + SCALE_ROWS.act)
    factors = ld_i64(ins + SCALE_ROWS.factors)
    scales, biases = factors + stride, factors + 2 * stride
    while n > 0:
        start, stop = claim(ld_i64(ins + SCALE_ROWS.ctrl), n, threads, GRAIN)
        if start >= n:
            return
        for at in range(start * stride, stop * stride, stride):
            for c in range(0, stride, 64):
                v = sub(load_f32(x + at + c), load_f32(factors + c))
                v = fma(v, load_f32(scales + c), load_f32(biases + c))
                store_f32(y + at + c, folded(v, act))
