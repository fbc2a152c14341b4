"""Codes of kept formats into the order that the kernels read (bytes in `linear_kept.py`)."""

from __future__ import annotations

from numba import njit

from ..simd import ld_i8, st_i8
from .layout import GROUP, PLANE_BYTES, ROWS, SCALE_BYTES
from .scatter import _place
from .vm import entry


@njit(error_model="numpy")
def _half(source: int, target: int) -> None:
    st_i8(target, ld_i8(source))
    st_i8(target + 1, ld_i8(source + 1))


@entry
def scatter_kept(
    codes: int,
    d: int,
    m: int,
    s: int,
    t: int,
    rows: int,
    blocks: int,
    out: int,
    first: int,
    every: int,
    bits: int,
    together: int,
    parts: int,
    size: int,
    head: int,
) -> None:
    """Bytes [rows, blocks * 32] of codes, float16 scales d and minima m (0: none) of `together`
    blocks, and `parts` bytes s and t (0: none) of each block, into groups of rows first,
    first + every, ... of zeros. size, head: bytes of a packed block, and before a superblock."""
    held = blocks // together
    for row in range(rows):
        lane = row % ROWS
        at = out + (first + (row // ROWS) * every) * held * (head + together * size)
        for g in range(held):
            _half(d + 2 * (row * held + g), at + 2 * lane)
            if m != 0:
                _half(m + 2 * (row * held + g), at + SCALE_BYTES + 2 * lane)
            at += head
            for b in range(g * together, (g + 1) * together):
                place = at + lane
                for p in range(parts if s != 0 else 0):
                    st_i8(place, ld_i8(s + (row * blocks + b) * parts + p))
                    place += ROWS
                for p in range(parts if t != 0 else 0):
                    st_i8(place, ld_i8(t + (row * blocks + b) * parts + p))
                    place += ROWS
                block = at + size - PLANE_BYTES * bits
                source = codes + (row * blocks + b) * GROUP
                for k in range(GROUP):
                    code = ld_i8(source + k) & 255
                    if bits == 8:
                        st_i8(block + (k >> 2) * 64 + 4 * lane + (k & 3), code)
                    else:
                        _place(block, lane, k, code, bits)
                at += size
