"""Stored matrices as codes times scales, whatever the encoding: what healing trains.

A matrix is groups of stored values, value = (code - zero) * scale, and a layout that says where the
values stand. `coded_of` asks READERS, one row for each kind of encoding: (does a row of
`kernels/encodings.py` belong to it, how is a stored matrix of it read). To make another kind
trainable, add a row; a sparse one gives `Support` as its layout, so that what it does not store
stays exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from ...kernels.encodings import ENCODINGS, Encoding
from ...kernels.grid import Steps, pack_codes
from ...kernels.quant import HALF_MAX, Quantized, Tensors
from ...kernels.sparse import WORD, parse

I16 = NDArray[np.int16]
F16 = NDArray[np.float16]


class Layout(Protocol):
    """Where stored values [.., group] stand in a matrix [N, K]."""

    def place(self, values: Tensor) -> Tensor:
        """Values to the matrix, differentiable."""
        ...

    def pick(self, matrix: Tensor) -> Tensor:
        """A matrix's values where they are stored; 0 where a slot stores none."""
        ...


@dataclass(frozen=True)
class Rows:
    """All of a matrix [N, K]: each row in groups, the last one padded."""

    shape: tuple[int, int]
    group: int

    def place(self, values: Tensor) -> Tensor:
        n, k = self.shape
        return values.reshape(n, -1)[:, :k]

    def pick(self, matrix: Tensor) -> Tensor:
        n, k = self.shape
        return pad(matrix, (0, -k % self.group)).reshape(n, -1, self.group)


@dataclass(frozen=True)
class Support:
    """Some elements of a matrix: where `mask` bool [N, K] is set, in the order of its rows.

    slots: bool [.., group], the slots of stored values that hold one, in that order; None for all.
    """

    mask: Tensor
    slots: Tensor | None = None

    def place(self, values: Tensor) -> Tensor:
        flat = values.reshape(-1) if self.slots is None else values[self.slots]
        empty = torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device)
        return empty.masked_scatter(self.mask.to(values.device), flat)

    def pick(self, matrix: Tensor) -> Tensor:
        found = matrix[self.mask.to(matrix.device)]
        if self.slots is None:
            return found
        out = torch.zeros(self.slots.shape, dtype=matrix.dtype, device=matrix.device)
        return out.masked_scatter(self.slots.to(matrix.device), found)


@dataclass(frozen=True)
class Coded:
    """A stored matrix. levels: int16 [.., group], code - zero. scales: float16 [..]. low, high:
    int16 [..], the least and the greatest level of a group. store: levels and scales to the stored
    tensors; it takes back what `levels` holds in slots without a value."""

    levels: I16
    scales: F16
    low: I16
    high: I16
    layout: Layout
    store: Callable[[I16, F16], Tensors]


Reader = Callable[[Encoding, Quantized], Coded]


def of_grid(row: Encoding, matrix: Quantized) -> Coded:
    """Codes in groups (`kernels/grid.py`); zero codes stay as they are."""
    grid = row.grid
    if grid is None:
        raise ValueError(f"{row.name} has no grid")
    codes, steps = grid.restore(matrix.tensors)
    zeros = steps.zeros.astype(np.int16)
    n, k = matrix.shape

    def store(levels: I16, scales: F16) -> Tensors:
        found = (levels + zeros[..., None]).astype(np.uint8)
        # padding keeps the zero code
        found.reshape(n, -1)[:, k:] = steps.zeros[:, -1:]
        return grid.store(found, Steps(scales, steps.zeros))

    low, high = grid.codes
    return Coded(
        codes.astype(np.int16) - zeros[..., None], steps.scales,
        np.int16(low) - zeros, np.int16(high) - zeros, Rows((n, k), grid.group), store,
    )  # fmt: skip


def of_sparse(row: Encoding, matrix: Quantized) -> Coded:
    """Kept values among zeros (`kernels/sparse.py`), in groups of 64 atoms; what is not kept stays
    zero."""
    form = parse(row.name)
    if form is None:
        raise ValueError(f"{row.name} is not sparse")
    n, k = matrix.shape
    tensors, scales = matrix.tensors, matrix.tensors["scales"]
    slots = np.unpackbits(tensors["mask"], axis=1, bitorder="little").astype(np.bool_)
    levels = np.zeros(slots.shape, np.int16)
    levels[slots] = form.codes(tensors).astype(np.int16).reshape(-1) - form.grid.middle

    def store(found: I16, new: F16) -> Tensors:
        codes = (found.reshape(n, -1)[slots] + form.grid.middle).astype(np.uint8)
        q = pack_codes(codes.reshape(n, form.count), form.bits)
        return {"mask": tensors["mask"], "q": q, "scales": new}

    middle = form.grid.middle
    low, high = (np.full(scales.shape, code - middle, np.int16) for code in form.grid.codes)
    grouped = slots.reshape(n, -1, WORD)
    layout = Support(torch.from_numpy(slots[:, :k].copy()), torch.from_numpy(grouped))
    return Coded(levels.reshape(n, -1, WORD), scales, low, high, layout, store)


READERS: list[tuple[Callable[[Encoding], bool], Reader]] = [
    (lambda row: row.grid is not None, of_grid),
    (lambda row: (form := parse(row.name)) is not None and form.bits < 16, of_sparse),
]


def coded_of(matrix: Quantized) -> Coded | None:
    """A stored matrix as codes, None for an encoding that no reader knows."""
    row = ENCODINGS[matrix.encoding]
    found = next((reader for fits, reader in READERS if fits(row)), None)
    return None if found is None else found(row, matrix)


def halves(values: NDArray[Any], what: str) -> F16:
    """float16 of float32 values. Raises ValueError for what it cannot hold."""
    peak = float(np.abs(values).max()) if values.size else 0.0
    if not peak <= HALF_MAX:
        shown = "not finite" if not math.isfinite(peak) else f"{peak:g}, the limit is {HALF_MAX:g}"
        raise ValueError(f"{what} in float16 is {shown}")
    return values.astype(np.float16)
