"""Packed weights: matrices reordered once into the order that the kernels read.

Layout "r16s" (bytes in `linear.py`): 16 output rows interleaved, scales in front of their block,
one sequential stream a thread. N is padded to a multiple of 16 with zero rows, K to 32 with zeros.
Gated pairs ([gate; up], 2F rows) alternate in groups of 16, F padded apart.

Sparse rows are packed from their dense form, a few at a time, or with indices, as `on_cpu` says.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import sparse
from ..encodings import encoding_of, on_cpu, packed_bytes, rows_of, tensors_of
from ..gguf_blocks import FORMS
from ..quant import Matrix, Quantized
from .code import entry_point
from .layout import GROUP, ROWS, blocks_of, groups_of, kept_bytes

CHUNK = 1 << 20  # values of a kept format that are unpacked at once


def _pack_half(w: Matrix, out: NDArray[np.uint8], first: int, every: int) -> None:
    if isinstance(w, Quantized):
        if encoding_of(w).dense:
            _pack_sparse(w, out, first, every)
        else:
            _scatter(w, out, first, every)
        return
    n, k = w.shape
    whole = np.zeros((groups_of(n) * ROWS, k), w.dtype)
    whole[:n] = w
    groups = whole.reshape(-1, ROWS, k).transpose(0, 2, 1)  # [groups, K, 16]
    view = out.view(w.dtype).reshape(-1, k, ROWS)
    view[first::every][: len(groups)] = groups


def _pack_sparse(w: Quantized, out: NDArray[np.uint8], first: int, every: int) -> None:
    n, k = w.shape
    face = on_cpu(w.encoding, k)
    for rows in sparse.pieces(n, k):
        part, at = rows_of(w, rows), first + rows.start // ROWS * every
        if isinstance(part, Quantized) and face.kept:
            _index(part, out.reshape(-1, face.group_bytes(k))[at::every])
        elif isinstance(part, Quantized):
            _pack_half(sparse.densified(part), out, at, every)


def _index(w: Quantized, groups: NDArray[np.uint8]) -> None:
    """Values with their indices (`linear_indexed.py`) into the first groups [.., bytes]."""
    form = sparse.parse(w.encoding)
    if form is None:
        raise ValueError(f"a weight in {w.encoding}, expected one of {list(sparse.FORMS)}")
    parts = [form.support(w.tensors, w.shape[1]).astype("<u2")]
    if form.bits == 16:
        parts.append(w.tensors["values"])
    else:
        parts.insert(0, w.scales)
        parts.append(form.codes(w.tensors) - np.uint8(form.grid.middle))  # int8, by its bits
    at, count = 0, groups_of(w.shape[0])
    for part in parts:
        whole = np.zeros((count * ROWS, part.shape[1]), part.dtype)
        whole[: len(part)] = part
        octets = whole.reshape(count, -1).view(np.uint8)
        groups[:count, at : at + octets.shape[1]] = octets
        at += octets.shape[1]


def _scatter(w: Quantized, out: NDArray[np.uint8], first: int, every: int) -> None:
    if w.encoding in FORMS:
        _scatter_kept(w, out, first, every)
        return
    row, q, scales = encoding_of(w), np.ascontiguousarray(w.q), np.ascontiguousarray(w.scales)
    rows, held = len(scales), q.shape[1]
    kernel = on_cpu(w.encoding, w.shape[1]).kernel
    if not kernel.startswith(("planes", "zeroed")):
        scatter = entry_point(f"scatter_{kernel}")
        scatter(q.ctypes.data, scales.ctypes.data, rows, held, out.ctypes.data, first, every)
        return
    zeros = np.ascontiguousarray(w.tensors["zeros"]) if row.zeros else None
    entry_point("scatter_planes")(
        q.ctypes.data, scales.ctypes.data, 0 if zeros is None else zeros.ctypes.data, rows, held,
        blocks_of(w.shape[1]), out.ctypes.data, first, every, row.bits, row.group,
    )  # fmt: skip


def _scatter_kept(w: Quantized, out: NDArray[np.uint8], first: int, every: int) -> None:
    """Rows of a kept format, some at a time: their fields take several times their bytes."""
    form, (n, k) = FORMS[w.encoding], w.shape
    size, head, together = kept_bytes(form.bits, form.sub, form.minima, form.scaled)
    step = max(1, CHUNK // k // ROWS) * ROWS
    for start in range(0, n, step):
        rows = rows_of(w, slice(start, min(start + step, n)))
        tensors, at = tensors_of(rows), first + start // ROWS * every
        if form.packed:
            _scatter(form.widened(tensors, rows.shape), out, at, every)
            continue
        found = form.parts(tensors)
        codes = found.codes if form.bits < 8 else found.codes.view(np.uint8) ^ np.uint8(128)
        fields = (codes, found.d, found.m, found.s, found.t)
        arrays = [None if part is None else np.ascontiguousarray(part) for part in fields]
        entry_point("scatter_kept")(
            *(0 if array is None else array.ctypes.data for array in arrays),
            len(codes), k // GROUP, out.ctypes.data, at, every,
            form.bits, together, GROUP // form.sub, size, head,
        )  # fmt: skip


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
