"""Reading memory as fast as it goes: what `kernels/bandwidth.py` times."""

from __future__ import annotations

from ..simd import load_i8, prefetch_once
from ..simd_math import add_i32, bitcast_i32, splat_i32, sum_i32
from .vm import entry


@entry
def stream(start: int, stop: int, ahead: int) -> int:
    """Sum of the int32 words in [start, stop), 256 bytes at a time; ahead: bytes between a load and
    what is asked for meanwhile, 0 for nothing."""
    a = b = c = d = splat_i32(0)
    for p in range(start, stop - 255, 256):
        if ahead:
            for line in range(0, 256, 64):
                prefetch_once(p + ahead + line)
        a = add_i32(a, bitcast_i32(load_i8(p)))
        b = add_i32(b, bitcast_i32(load_i8(p + 64)))
        c = add_i32(c, bitcast_i32(load_i8(p + 128)))
        d = add_i32(d, bitcast_i32(load_i8(p + 192)))
    return sum_i32(add_i32(add_i32(a, b), add_i32(c, d)))  # type: ignore[no-any-return]
