"""The packed twin: weights reordered once into the order that the kernels read.

Layout "r16s" (bytes in `linear.py`): 16 output rows interleaved, scales in front of their block,
one sequential stream a thread. N is padded to a multiple of 16 with zero rows, K to 32 with zeros.
Gated pairs ([gate; up], 2F rows) alternate in groups of 16, F padded apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..quant import Matrix, Quantized, blocks_of
from .linear import INT4_BYTES, INT8_BYTES

LAYOUT = "r16s-2"  # the last number also counts orders of matrices
ROWS = 16
ENCODINGS = {"f32": 0, "f16": 1, "int8-g32": 2, "int4-g32": 3}


def groups_of(n: int) -> int:
    """Groups of 16 rows that hold n rows."""
    return -(-n // ROWS)


def group_bytes(encoding: str, k: int) -> int:
    """Bytes of 16 packed rows of k inputs."""
    if encoding in ("f32", "f16"):
        return ROWS * k * (4 if encoding == "f32" else 2)
    return blocks_of(k) * (INT4_BYTES if encoding == "int4-g32" else INT8_BYTES)


def packed_bytes(encoding: str, n: int, k: int, *, paired: bool = False) -> int:
    """Bytes of a packed [n, k] matrix; paired: gate and up halves padded apart."""
    groups = 2 * groups_of(n // 2) if paired else groups_of(n)
    return groups * group_bytes(encoding, k)


@njit(nogil=True, error_model="numpy")
def _scatter4(q: Any, scales: Any, out: Any, first: int, every: int) -> None:
    """Nibbles [n, KB, 16] and scale bytes [n, KB, 2] into groups first, first + every, ..."""
    n, blocks = q.shape[0], q.shape[1]
    for row in range(n):
        group, lane = first + (row // 16) * every, row % 16
        for b in range(blocks):
            at = (group * blocks + b) * 288
            out[at + 2 * lane] = scales[row, b, 0]
            out[at + 2 * lane + 1] = scales[row, b, 1]
            for j in range(4):
                for t in range(4):
                    low = q[row, b, 4 * j + t // 2]
                    high = q[row, b, 4 * j + 2 + t // 2]
                    shift = np.uint8(4 * (t % 2))
                    byte = ((low >> shift) & 15) | (((high >> shift) & 15) << 4)
                    out[at + 32 + 64 * j + 4 * lane + t] = byte


@njit(nogil=True, error_model="numpy")
def _scatter8(q: Any, scales: Any, out: Any, first: int, every: int) -> None:
    """Bytes [n, KB, 32] and scale bytes [n, KB, 2] into groups first, first + every, ..."""
    n, blocks = q.shape[0], q.shape[1]
    for row in range(n):
        group, lane = first + (row // 16) * every, row % 16
        for b in range(blocks):
            at = (group * blocks + b) * 544
            out[at + 2 * lane] = scales[row, b, 0]
            out[at + 2 * lane + 1] = scales[row, b, 1]
            for i in range(32):
                out[at + 32 + (i // 4) * 64 + 4 * lane + i % 4] = q[row, b, i]


def _pack_half(w: Matrix, out: NDArray[np.uint8], first: int, every: int) -> None:
    if isinstance(w, Quantized):
        scatter = _scatter4 if w.bits == 4 else _scatter8
        scales = np.ascontiguousarray(w.scales).view(np.uint8).reshape(*w.scales.shape, 2)
        scatter(np.ascontiguousarray(w.q), scales, out, first, every)
        return
    n, k = w.shape
    whole = np.zeros((groups_of(n) * ROWS, k), w.dtype)
    whole[:n] = w
    turned = whole.reshape(-1, ROWS, k).transpose(0, 2, 1)  # [groups, K, 16]
    view = out.view(w.dtype).reshape(-1, k, ROWS)
    view[first::every][: len(turned)] = turned


def _blank(out: NDArray[np.uint8], w: Matrix) -> None:
    """Zeros, in codes whose value is zero, for the rows that pad the last group."""
    out[:] = 0


def pack(w: Matrix, *, paired: bool = False) -> NDArray[np.uint8]:
    """A stored matrix [N, K] as its packed bytes (uint8). Padded rows have scale zero."""
    n, k = w.shape
    encoding = encoding_of(w)
    out = np.empty(packed_bytes(encoding, n, k, paired=paired), np.uint8)
    _blank(out, w)
    if not paired:
        _pack_half(w, out, 0, 1)
        return out
    half = n // 2
    for index in range(2):
        rows = slice(index * half, (index + 1) * half)
        if isinstance(w, Quantized):
            part: Matrix = Quantized(w.q[rows], w.scales[rows], (half, k))
        else:
            part = w[rows]
        _pack_half(part, out, index, 2)
    return out


def encoding_of(w: Matrix) -> str:
    """The encoding's name in a graph."""
    if isinstance(w, Quantized):
        return "int4-g32" if w.bits == 4 else "int8-g32"
    return "f16" if w.dtype == np.float16 else "f32"
