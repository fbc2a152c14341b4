"""Packed weights: matrices reordered once into the order that the kernels read.

Layout "r16s" (bytes in `linear.py`): 16 output rows interleaved, scales in front of their block,
one sequential stream a thread. N is padded to a multiple of 16 with zero rows, K to 32 with zeros.
Gated pairs ([gate; up], 2F rows) alternate in groups of 16, F padded apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..encodings import encoding_of, on_cpu, packed_bytes, rows_of
from ..quant import Matrix, Quantized
from .interrupts import held_back
from .layout import GROUP, INT4_BYTES, INT8_BYTES, ROWS, SCALE_BYTES, groups_of


@njit(nogil=True, error_model="numpy")
def _scatter4(q: Any, scales: Any, out: Any, first: int, every: int) -> None:
    """Nibbles [n, KB, 16] and scale bytes [n, KB, 2] into groups first, first + every, ..."""
    n, blocks = q.shape[0], q.shape[1]
    for row in range(n):
        group, lane = first + (row // ROWS) * every, row % ROWS
        for b in range(blocks):
            at = (group * blocks + b) * INT4_BYTES
            out[at + 2 * lane] = scales[row, b, 0]
            out[at + 2 * lane + 1] = scales[row, b, 1]
            for j in range(4):
                for t in range(4):
                    low = q[row, b, 4 * j + t // 2]
                    high = q[row, b, 4 * j + 2 + t // 2]
                    shift = np.uint8(4 * (t % 2))
                    byte = ((low >> shift) & 15) | (((high >> shift) & 15) << 4)
                    out[at + SCALE_BYTES + 64 * j + 4 * lane + t] = byte


@njit(nogil=True, error_model="numpy")
def _scatter8(q: Any, scales: Any, out: Any, first: int, every: int) -> None:
    """Bytes [n, KB, 32] and scale bytes [n, KB, 2] into groups first, first + every, ..."""
    n, blocks = q.shape[0], q.shape[1]
    for row in range(n):
        group, lane = first + (row // ROWS) * every, row % ROWS
        for b in range(blocks):
            at = (group * blocks + b) * INT8_BYTES
            out[at + 2 * lane] = scales[row, b, 0]
            out[at + 2 * lane + 1] = scales[row, b, 1]
            for i in range(GROUP):
                out[at + SCALE_BYTES + (i // 4) * 64 + 4 * lane + i % 4] = q[row, b, i]


SCATTER = {"int4": _scatter4, "int8": _scatter8}  # by the name of the kernels that read it


def _pack_half(w: Matrix, out: NDArray[np.uint8], first: int, every: int) -> None:
    if isinstance(w, Quantized):
        scatter = SCATTER[on_cpu(w.encoding).kernel]
        scales = np.ascontiguousarray(w.scales).view(np.uint8).reshape(*w.scales.shape, 2)
        with held_back():  # the first call compiles it
            scatter(np.ascontiguousarray(w.q), scales, out, first, every)
        return
    n, k = w.shape
    whole = np.zeros((groups_of(n) * ROWS, k), w.dtype)
    whole[:n] = w
    groups = whole.reshape(-1, ROWS, k).transpose(0, 2, 1)  # [groups, K, 16]
    view = out.view(w.dtype).reshape(-1, k, ROWS)
    view[first::every][: len(groups)] = groups


def _blank(out: NDArray[np.uint8], w: Matrix) -> None:
    """Zeros, in codes whose value is zero, for the rows that pad the last group."""
    out[:] = 0


def pack(w: Matrix, *, paired: bool = False) -> NDArray[np.uint8]:
    """A stored matrix [N, K] as its packed bytes (uint8). Padded rows have scale zero."""
    n, k = w.shape
    out = np.empty(packed_bytes(encoding_of(w).name, n, k, paired=paired), np.uint8)
    _blank(out, w)
    if not paired:
        _pack_half(w, out, 0, 1)
        return out
    half = n // 2
    for index in range(2):
        _pack_half(rows_of(w, slice(index * half, (index + 1) * half)), out, index, 2)
    return out
