"""Nearest-neighbour upsampling on the CPU, where no convolution reads through it."""

from __future__ import annotations

from ..operands import COUNT
from ..simd import ld_i64, load_f32, store_f32
from ..upsample import UPSAMPLE
from .vm import kernel


@kernel
def upsample(ins: int, thread: int, threads: int) -> None:
    """Rows shared out; width: of the grid that is read."""
    n = ld_i64(ld_i64(ins + COUNT))
    x, y, stride = ld_i64(ins + UPSAMPLE.x), ld_i64(ins + UPSAMPLE.y), ld_i64(ins + UPSAMPLE.stride)
    width, factor = ld_i64(ins + UPSAMPLE.width), ld_i64(ins + UPSAMPLE.factor)
    across = width * factor
    for row in range(n * thread // threads, n * (thread + 1) // threads):
        source = x + (row // across // factor * width + row % across // factor) * stride
        for c in range(0, stride, 64):
            store_f32(y + row * stride + c, load_f32(source + c))
