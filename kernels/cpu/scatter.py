"""Stored codes into the order that the kernels read (bytes in `linear.py`): see `pack.py`."""

from __future__ import annotations

from ..simd import ld_i8, st_i8
from .layout import GROUP, INT4_BYTES, INT8_BYTES, ROWS, SCALE_BYTES
from .vm import entry


@entry
def scatter_int4(
    q: int, scales: int, rows: int, blocks: int, out: int, first: int, every: int
) -> None:
    """Nibbles [rows, blocks, 16] and float16 scales [rows, blocks] into groups first,
    first + every, ..."""
    for row in range(rows):
        group, lane = first + (row // ROWS) * every, row % ROWS
        for b in range(blocks):
            at = out + (group * blocks + b) * INT4_BYTES
            st_i8(at + 2 * lane, ld_i8(scales + 2 * (row * blocks + b)))
            st_i8(at + 2 * lane + 1, ld_i8(scales + 2 * (row * blocks + b) + 1))
            codes = q + (row * blocks + b) * 16
            for j in range(4):
                for t in range(4):
                    low = ld_i8(codes + 4 * j + t // 2)
                    high = ld_i8(codes + 4 * j + 2 + t // 2)
                    shift = 4 * (t % 2)
                    byte = ((low >> shift) & 15) | (((high >> shift) & 15) << 4)
                    st_i8(at + SCALE_BYTES + 64 * j + 4 * lane + t, byte)


@entry
def scatter_int8(
    q: int, scales: int, rows: int, blocks: int, out: int, first: int, every: int
) -> None:
    """Bytes [rows, blocks, 32] and float16 scales [rows, blocks] into groups first,
    first + every, ..."""
    for row in range(rows):
        group, lane = first + (row // ROWS) * every, row % ROWS
        for b in range(blocks):
            at = out + (group * blocks + b) * INT8_BYTES
            st_i8(at + 2 * lane, ld_i8(scales + 2 * (row * blocks + b)))
            st_i8(at + 2 * lane + 1, ld_i8(scales + 2 * (row * blocks + b) + 1))
            codes = q + (row * blocks + b) * GROUP
            for i in range(GROUP):
                st_i8(at + SCALE_BYTES + (i // 4) * 64 + 4 * lane + i % 4, ld_i8(codes + i))
