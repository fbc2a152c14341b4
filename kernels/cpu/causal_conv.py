"""Convolution of every channel along the text, on the CPU.

A thread takes groups of 16 channels of all sequences, so that it alone reads and writes their
columns of the slots. A row is one chain of fused multiply-adds, oldest input first.
"""

from __future__ import annotations

from numba import njit

from ..causal_conv import CAUSAL_CONV
from ..operands import COUNT
from ..simd import f32, ld_f32, ld_i64, load_f32, st_f32, store_f32
from ..simd_math import fma, mul, splat
from .activation import share
from .layout import BY_SILU
from .scalar_math import LOG2_E
from .slots import conv_rows, sequence
from .vector_math import gated
from .vm import kernel


@njit(error_model="numpy")
def _group(ins: int, column: int, rest: int) -> None:
    """16 channels from byte `column` of a row on, of which `rest` are there."""
    x, y = ld_i64(ins + CAUSAL_CONV.x) + column, ld_i64(ins + CAUSAL_CONV.y) + column
    stride, width = ld_i64(ins + CAUSAL_CONV.stride), ld_i64(ins + CAUSAL_CONV.width)
    weight, step = (
        ld_i64(ins + CAUSAL_CONV.weight) + column,
        ld_i64(ins + CAUSAL_CONV.weight_stride),
    )
    bias, act = ld_i64(ins + CAUSAL_CONV.bias), ld_i64(ins + CAUSAL_CONV.act)
    state, sequences = ld_i64(ins + CAUSAL_CONV.state), ld_i64(ins + CAUSAL_CONV.sequences)
    start = load_f32(bias + column) if bias != 0 else splat(f32(0.0))
    for index in range(ld_i64(sequences)):
        first, rows, slot = sequence(sequences, index)
        pending, row_bytes = conv_rows(state, slot)
        pending += column
        for row in range(rows):
            source, into = x + (first + row) * stride, pending + row * row_bytes
            if rest == 16:
                store_f32(into, load_f32(source))
            else:
                for lane in range(rest):
                    st_f32(into + 4 * lane, ld_f32(source + 4 * lane))
            total = start
            for j in range(width):
                # of this row's own columns, for the lanes past `rest` lie in the next row
                back = width - 1 - j
                seen = load_f32(source) if back == 0 else load_f32(into - back * row_bytes)
                total = fma(load_f32(weight + j * step), seen, total)
            if act == BY_SILU:
                total = gated(total, mul(total, splat(f32(-LOG2_E))))
            store_f32(y + (first + row) * stride, total)


@kernel
def causal_conv(ins: int, thread: int, threads: int) -> None:
    """Groups of 16 channels shared out."""
    if ld_i64(ld_i64(ins + COUNT)) == 0:
        return
    channels = ld_i64(ins + CAUSAL_CONV.channels)
    start, stop = share((channels + 15) // 16, thread, threads)
    for group in range(start, stop):
        _group(ins, 64 * group, min(16, channels - 16 * group))
