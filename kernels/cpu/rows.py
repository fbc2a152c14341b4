"""Layer norm, sizes of rows, modulation, activations and timesteps on the CPU: one pass over each
row.

A layer norm and the modulation after it are one gain and one offset for every column, which each
thread works out once:

    y = (x - mean) / sqrt(var + eps) * gain + offset
    gain = weight (1 + scale),  offset = bias (1 + scale) + shift
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .. import simd
from ..elementwise import ACTIVATION, XIELU
from ..modulation import ADD_ROW, AFFINE, GATED_ADD, TIMESTEP
from ..norm import ROW_RMS
from ..operands import COUNT
from ..simd import f32, ld_f32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import (
    add,
    exp,
    fma,
    lanes,
    mul,
    splat,
    splat_i32,
    sub,
    sum_f32,
    where_below,
    where_less,
)
from .activation import share
from .layout import GELU, GELU_TANH, QUICK_GELU, RELU, RELU2
from .scalar_math import LOG2_E, cos_sin, softplus64, sqrt
from .vector_math import gated, gelu
from .vm import kernel


@njit(error_model="numpy")
def _chunk(m: int, at: int, table: int, row: int, k: int) -> float:
    """Column k of a chunk of a modulation row, with a row of the table where there is one."""
    value = ld_f32(m + at + 4 * k)
    return f32(value + ld_f32(table + row + 4 * k)) if table != 0 else value


@njit(error_model="numpy")
def affine(parts: int, gain: int, offset: int, width: int) -> None:
    """Gain and offset of every column, [width padded to 16]; parts: address of the operands
    `PARTS`, which stand one after the other."""
    weight, bias, m, table = (
        ld_i64(parts),
        ld_i64(parts + 8),
        ld_i64(parts + 16),
        ld_i64(parts + 24),
    )
    shift_at, shift_row = ld_i64(parts + 32), ld_i64(parts + 40)
    scale_at, scale_row = ld_i64(parts + 48), ld_i64(parts + 56)
    for k in range(width):
        a = ld_f32(weight + 4 * k) if weight != 0 else f32(1.0)
        b = ld_f32(bias + 4 * k) if bias != 0 else f32(0.0)
        if m != 0:
            factor = f32(f32(1.0) + _chunk(m, scale_at, table, scale_row, k))
            a = f32(a * factor)
            b = f32(f32(b * factor) + _chunk(m, shift_at, table, shift_row, k))
        st_f32(gain + 4 * k, a)
        st_f32(offset + 4 * k, b)


@njit(error_model="numpy")
def _deviation(v: Any, mean: Any, rest: int) -> Any:
    """v - mean in the first `rest` lanes, 0 in the others."""
    return where_less(lanes(), splat_i32(simd.i32(rest)), sub(v, mean), splat(f32(0.0)))


@njit(error_model="numpy")
def _mean(x: int, width: int) -> Any:
    """The mean of a row, in every lane."""
    whole, rest = width - width % 16, width % 16
    total = zero = splat(f32(0.0))
    for i in range(0, whole, 16):
        total = add(total, load_f32(x + 4 * i))
    if rest:
        total = add(total, _deviation(load_f32(x + 4 * whole), zero, rest))
    return splat(f32(sum_f32(total) / f32(width)))


@njit(error_model="numpy")
def _mean_square(x: int, mean: Any, width: int) -> float:
    """The mean of a row's squared deviations from what stands in every lane of `mean`."""
    whole, rest = width - width % 16, width % 16
    total = splat(f32(0.0))
    for i in range(0, whole, 16):
        v = sub(load_f32(x + 4 * i), mean)
        total = fma(v, v, total)
    if rest:
        v = _deviation(load_f32(x + 4 * whole), mean, rest)
        total = fma(v, v, total)
    return f32(sum_f32(total) / f32(width))


@njit(error_model="numpy")
def normed_row(x: int, gain: int, offset: int, y: int, width: int, eps: float) -> None:
    """One row's layer norm with gain and offset; y may be x."""
    mean = _mean(x, width)
    variance = _mean_square(x, mean, width)
    factor = splat(f32(f32(1.0) / f32(sqrt(f32(variance + f32(eps))))))
    for i in range(0, width, 16):
        v = mul(sub(load_f32(x + 4 * i), mean), factor)
        store_f32(y + 4 * i, fma(v, load_f32(gain + 4 * i), load_f32(offset + 4 * i)))


@njit(error_model="numpy")
def modulated_row(x: int, gain: int, offset: int, y: int, width: int) -> None:
    """One row times the gain plus the offset; y may be x."""
    for i in range(0, width, 16):
        v = load_f32(x + 4 * i)
        store_f32(y + 4 * i, fma(v, load_f32(gain + 4 * i), load_f32(offset + 4 * i)))


@njit(error_model="numpy")
def padded_bytes(width: int) -> int:
    """Bytes of a row, padded to 16 columns."""
    return (width + 15) // 16 * 64


@kernel
def layer_norm(ins: int, thread: int, threads: int) -> None:
    """Layer norm and modulation of rows, which are shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, x_stride = ld_i64(ins + AFFINE.x), ld_i64(ins + AFFINE.x_stride)
    y, y_stride = ld_i64(ins + AFFINE.y), ld_i64(ins + AFFINE.y_stride)
    width, eps = ld_i64(ins + AFFINE.width), ld_f32(ins + AFFINE.eps)
    gain = ld_i64(ins + AFFINE.scratch) + thread * ld_i64(ins + AFFINE.scratch_bytes)
    offset = gain + padded_bytes(width)
    start, stop = share(n, thread, threads)
    if start < stop:
        affine(ins + AFFINE.weight, gain, offset, width)
    for row in range(start, stop):
        normed_row(x + row * x_stride, gain, offset, y + row * y_stride, width, eps)


@kernel
def row_rms(ins: int, thread: int, threads: int) -> None:
    """Each row's root mean square, or its deviation; rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, x_stride = ld_i64(ins + ROW_RMS.x), ld_i64(ins + ROW_RMS.x_stride)
    y, y_stride = ld_i64(ins + ROW_RMS.y), ld_i64(ins + ROW_RMS.y_stride)
    width, floor = ld_i64(ins + ROW_RMS.width), ld_f32(ins + ROW_RMS.floor)
    centred, inverse = ld_i64(ins + ROW_RMS.centred), ld_i64(ins + ROW_RMS.inverse)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        at = x + row * x_stride
        mean = _mean(at, width) if centred != 0 else splat(f32(0.0))
        square = f32(_mean_square(at, mean, width))
        root = f32(sqrt(floor if square < floor else square))  # a NaN stays one
        value = f32(f32(1.0) / root) if inverse != 0 else root
        store_f32(y + row * y_stride, splat(value))


@kernel
def modulate(ins: int, thread: int, threads: int) -> None:
    """y = x (1 + scale) + shift, rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, x_stride = ld_i64(ins + AFFINE.x), ld_i64(ins + AFFINE.x_stride)
    y, y_stride = ld_i64(ins + AFFINE.y), ld_i64(ins + AFFINE.y_stride)
    width = ld_i64(ins + AFFINE.width)
    gain = ld_i64(ins + AFFINE.scratch) + thread * ld_i64(ins + AFFINE.scratch_bytes)
    offset = gain + padded_bytes(width)
    start, stop = share(n, thread, threads)
    if start < stop:
        affine(ins + AFFINE.weight, gain, offset, width)
    for row in range(start, stop):
        modulated_row(x + row * x_stride, gain, offset, y + row * y_stride, width)


@kernel
def gated_add(ins: int, thread: int, threads: int) -> None:
    """y = residual + gate x, rows shared out, all with one stride."""
    n = ld_i64(ld_i64(ins + COUNT))
    residual, x = ld_i64(ins + GATED_ADD.residual), ld_i64(ins + GATED_ADD.x)
    y, stride = ld_i64(ins + GATED_ADD.y), ld_i64(ins + GATED_ADD.stride)
    m, table = ld_i64(ins + GATED_ADD.m), ld_i64(ins + GATED_ADD.table)
    at, row_at = ld_i64(ins + GATED_ADD.gate), ld_i64(ins + GATED_ADD.gate_row)
    width = ld_i64(ins + GATED_ADD.width)
    gate = ld_i64(ins + GATED_ADD.scratch) + thread * ld_i64(ins + GATED_ADD.scratch_bytes)
    start, stop = share(n, thread, threads)
    if start < stop:
        for k in range(width):
            st_f32(gate + 4 * k, _chunk(m, at, table, row_at, k))
    for row in range(start, stop):
        for i in range(0, width, 16):
            p = row * stride + 4 * i
            v = fma(load_f32(x + p), load_f32(gate + 4 * i), load_f32(residual + p))
            store_f32(y + p, v)


@kernel
def add_row(ins: int, thread: int, threads: int) -> None:
    """y = x + one row, all with one stride, rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, one, y = ld_i64(ins + ADD_ROW.x), ld_i64(ins + ADD_ROW.row), ld_i64(ins + ADD_ROW.y)
    stride, width = ld_i64(ins + ADD_ROW.stride), ld_i64(ins + ADD_ROW.width)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        for i in range(0, width, 16):
            p = row * stride + 4 * i
            store_f32(y + p, add(load_f32(x + p), load_f32(one + 4 * i)))


@kernel
def timestep(ins: int, thread: int, threads: int) -> None:
    """Cosines, then sines, of each row's number times the frequencies."""
    n = ld_i64(ld_i64(ins + COUNT))
    t, stride = ld_i64(ins + TIMESTEP.t), ld_i64(ins + TIMESTEP.t_stride)
    y, y_stride = ld_i64(ins + TIMESTEP.y), ld_i64(ins + TIMESTEP.y_stride)
    half, frequency = ld_i64(ins + TIMESTEP.half), ld_i64(ins + TIMESTEP.frequencies)
    start, stop = share(n, thread, threads)
    for row in range(start, stop):
        value, out = ld_f32(t + row * stride), y + row * y_stride
        for k in range(half):
            cosine, sine = cos_sin(float(f32(value * ld_f32(frequency + 4 * k))))
            st_f32(out + 4 * k, f32(cosine))
            st_f32(out + 4 * (half + k), f32(sine))


@njit(error_model="numpy")
def activated(x: Any, act: int) -> Any:
    """act(x) by lane. tanh-gelu is x sigmoid(2 u) with u what the tanh is of."""
    zero = splat(f32(0.0))
    if act == GELU:
        return gelu(x)
    if act == RELU:
        return where_below(x, zero, zero, x)
    if act == RELU2:
        above = where_below(x, zero, zero, x)
        return mul(above, above)
    if act == GELU_TANH:
        cubic = fma(mul(mul(x, x), x), splat(f32(0.044715)), x)
        return gated(x, mul(cubic, splat(f32(-1.5957691216057308 * LOG2_E))))
    slope = f32(-1.702 * LOG2_E) if act == QUICK_GELU else f32(-LOG2_E)
    return gated(x, mul(x, splat(slope)))


@kernel
def activation(ins: int, thread: int, threads: int) -> None:
    """y = act(x), rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, y = ld_i64(ins + ACTIVATION.x), ld_i64(ins + ACTIVATION.y)
    stride, act = ld_i64(ins + ACTIVATION.stride), ld_i64(ins + ACTIVATION.act)
    start, stop = share(n, thread, threads)
    for at in range(start * stride, stop * stride, 64):
        store_f32(y + at, activated(load_f32(x + at), act))


@njit(error_model="numpy")
def _bent(x: Any, rise: Any, fall: Any, beta: Any, eps: Any) -> Any:
    """xielu by lane."""
    zero, one = splat(f32(0.0)), splat(f32(1.0))
    low = sub(sub(exp(where_below(x, eps, x, eps)), one), x)
    bent = where_below(zero, x, mul(rise, mul(x, x)), mul(fall, low))
    return fma(beta, x, bent)


@kernel
def xielu(ins: int, thread: int, threads: int) -> None:
    """y = xielu(x), rows shared out."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, y = ld_i64(ins + XIELU.x), ld_i64(ins + XIELU.y)
    stride, weight = ld_i64(ins + XIELU.stride), ld_i64(ins + XIELU.weight)
    b = ld_f32(weight + 8)
    rise = splat(f32(softplus64(float(ld_f32(weight)))))
    fall = splat(f32(b + f32(softplus64(float(ld_f32(weight + 4))))))
    beta, eps = splat(b), splat(ld_f32(weight + 12))
    start, stop = share(n, thread, threads)
    for at in range(start * stride, stop * stride, 64):
        store_f32(y + at, _bent(load_f32(x + at), rise, fall, beta, eps))
