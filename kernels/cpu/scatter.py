"""Stored codes into the order that the kernels read (bytes in `linear.py`): see `pack.py`."""

from __future__ import annotations

from numba import njit

from ..simd import ld_f32, ld_i8, st_f32, st_i8
from .layout import (
    CHANNEL_BYTES,
    CHANNEL_HEAD,
    GROUP,
    INT4_BYTES,
    INT8_BYTES,
    PLANE_BYTES,
    ROWS,
    SCALE_BYTES,
    ZERO_BYTES,
)
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


@entry
def scatter_channel(
    q: int, scales: int, rows: int, blocks: int, out: int, first: int, every: int
) -> None:
    """Bytes [rows, blocks, 32] and float32 scales [rows] into groups first, first + every, ..."""
    apart = CHANNEL_HEAD + blocks * CHANNEL_BYTES
    for row in range(rows):
        lane, at = row % ROWS, out + (first + (row // ROWS) * every) * apart
        st_f32(at + 4 * lane, ld_f32(scales + 4 * row))
        for b in range(blocks):
            codes, to = q + (row * blocks + b) * GROUP, at + CHANNEL_HEAD + b * CHANNEL_BYTES
            for i in range(GROUP):
                st_i8(to + (i // 4) * 64 + 4 * lane + i % 4, ld_i8(codes + i))


@njit(error_model="numpy")
def _code(stream: int, index: int, bits: int) -> int:
    """Code `index` of a stream of bits, low bits first."""
    at = index * bits
    word = ld_i8(stream + (at >> 3)) & 255
    if (at & 7) + bits > 8:
        word |= (ld_i8(stream + (at >> 3) + 1) & 255) << 8
    return (word >> (at & 7)) & ((1 << bits) - 1)


@njit(error_model="numpy")
def _place(block: int, lane: int, k: int, code: int, bits: int) -> None:
    """A code into the planes of its block, which were zero; k: input within the block."""
    chunk, inside = k >> 2, 4 * lane + (k & 3)
    at, below = block, 0
    while below < bits:
        rest = bits - below
        width = 4 if rest >= 4 else 2 if rest >= 2 else 1
        held = 8 // width
        place = at + 64 * (chunk // held) + inside
        part = (code >> below) & ((1 << width) - 1)
        st_i8(place, (ld_i8(place) & 255) | part << (width * (chunk % held)))
        at, below = at + 64 * width, below + width


@entry
def scatter_planes(
    q: int,
    scales: int,
    zeros: int,
    rows: int,
    held: int,
    blocks: int,
    out: int,
    first: int,
    every: int,
    bits: int,
    size: int,
) -> None:
    """Codes of 2 to 6 bits, [rows, held, size * bits / 8] as streams, with float16 scales
    [rows, held] and streams of zero codes (0: none), into groups of rows first, first + every, ...
    of zeros. size: inputs of a group, held: groups of a row, blocks: of 32 inputs."""
    head = SCALE_BYTES + (ZERO_BYTES if zeros != 0 else 0)
    apart = held * head + blocks * PLANE_BYTES * bits
    together = size // GROUP
    zero_bytes = (held * bits + 7) // 8
    for row in range(rows):
        lane = row % ROWS
        at = out + (first + (row // ROWS) * every) * apart
        for g in range(held):
            st_i8(at + 2 * lane, ld_i8(scales + 2 * (row * held + g)))
            st_i8(at + 2 * lane + 1, ld_i8(scales + 2 * (row * held + g) + 1))
            if zeros != 0:
                st_i8(at + SCALE_BYTES + lane, _code(zeros + row * zero_bytes, g, bits))
            at += head
            stream = q + (row * held + g) * (size * bits // 8)
            for b in range(min(together, blocks - g * together)):
                for k in range(GROUP):
                    _place(at, lane, k, _code(stream, b * GROUP + k, bits), bits)
                at += PLANE_BYTES * bits
