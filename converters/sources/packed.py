"""Checkpoints whose matrices are in codes already: GPTQ, AWQ, compressed-tensors and others.

The tensors of a packed matrix (codes, scales, zero points) become one tensor under the name that
the family has for the matrix. Its codes and scales are taken over as they are where an encoding has
the same grid (`Packed.kept`); where none has, and nothing else was asked for, they are chosen anew
in `Packed.instead`, and the report says what that costs. How each method lays its tensors out is
in `packed_formats.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from ...kernels.cpu.layout import GROUP, INT8_OFFSET, blocks_of
from ...kernels.encodings import ENCODINGS
from ...kernels.grid import BITS, GROUPS, Grid, Steps
from ...notices import notice
from ..families.recipe import F32
from .base import SourceTensor
from .checkpoint import Tensor

Tensors = dict[str, SourceTensor]
INSTEAD = "int8-g32"
LOST = 1e-6  # relative RMS of scales that float16 may round


class Codes(NamedTuple):
    """Rows of a matrix. codes: uint8 [n, K]. scales: float32 [n, G]. zeros: int16 [n, G]."""

    codes: NDArray[np.uint8]
    scales: F32
    zeros: NDArray[np.int16]


class Packed:
    """A matrix [N, K] in codes of `bits`: (code - zero) * scale in groups of `group` inputs.

    read: rows [start, stop) -> Codes. steps: all scales and zeros [N, G]. Safe to read from
    several threads if these are.
    """

    dtype = "F32"
    instead = INSTEAD

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        bits: int,
        group: int,
        read: Callable[[int, int], Codes],
        steps: Callable[[], tuple[F32, NDArray[np.int16]]],
    ) -> None:
        self.name, self.shape, self.bits, self.group = name, shape, bits, group
        self._read, self._steps = read, steps

    @cached_property
    def grid(self) -> Grid | None:
        """The encoding's grid that has all its codes and scales; None where none has."""
        if self.bits not in BITS:
            return None
        scales, zeros = self._steps()
        symmetric = bool((zeros == 1 << (self.bits - 1)).all())
        inside = symmetric or (0 <= int(zeros.min()) and int(zeros.max()) < 1 << self.bits)
        grids = [Grid(self.bits, g, symmetric) for g in sorted(GROUPS, reverse=True)]
        fits = [g for g in grids if self._within(g.group) and ENCODINGS[g.name].cpu is not None]
        return fits[0] if fits and inside and _fits_half(self.name, scales) else None

    def _within(self, size: int) -> bool:
        """Whether groups of `size` inputs lie within its own."""
        k = self.shape[1]
        parted = self.group % size == 0 or self.group >= k
        return size == self.group or (parted and k % size == 0)

    @property
    def kept(self) -> str:
        """The encoding that its codes are taken over in, "" for none."""
        return self.grid.name if self.grid else ""

    def rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) as float32."""
        found = self._read(start, stop)
        k = self.shape[1]
        scales = found.scales.repeat(self.group, axis=1)[:, :k]
        zeros = found.zeros.repeat(self.group, axis=1)[:, :k]
        values: F32 = (found.codes.astype(np.float32) - zeros) * scales
        return values

    def stored(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """The same rows as tensors of the encoding `kept`, by key."""
        grid = self.grid
        if grid is None:
            raise ValueError(f"{self.name} is in no encoding")
        found = self._read(start, stop)
        n, k = found.codes.shape
        held = grid.groups_of(k)
        at = np.minimum(np.arange(held) * grid.group // self.group, found.scales.shape[1] - 1)
        zeros = found.zeros[:, at].astype(np.uint8)
        codes = np.repeat(zeros, grid.group, axis=1)
        codes[:, :k] = found.codes
        steps = Steps(found.scales[:, at].astype(np.float16), zeros)
        return dict(grid.store(codes.reshape(n, held, grid.group), steps))


class Channels(Packed):
    """A matrix of bytes with one scale a row, whose products quantize activations by tokens."""

    @property
    def kept(self) -> str:
        """The encoding of its codes."""
        return "int8-channel"

    def stored(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Rows [start, stop) as tensors of the encoding `kept`, by key."""
        found = self._read(start, stop)
        n, k = found.codes.shape
        q = np.full((n, blocks_of(k) * GROUP), INT8_OFFSET, np.uint8)
        q[:, :k] = found.codes
        return {"q": q.reshape(n, -1, GROUP), "scales": found.scales.astype(np.float32)}


def _fits_half(name: str, scales: F32) -> bool:
    """Whether float16 holds the scales, but for what is lost of the smallest."""
    if not np.isfinite(scales).all():
        return True  # what is read of them is refused
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16).astype(np.float32)
    power = float(np.square(scales, dtype=np.float64).sum())
    lost = float(np.square(half - scales, dtype=np.float64).sum()) if np.isfinite(half).all() else 1
    if lost and lost <= LOST**2 * power:
        notice(f"{name}: of some of the smallest scales float16 keeps less than is stored")
    return lost <= LOST**2 * power


class Float:
    """A matrix [N, K] of values that no encoding has. read: rows [start, stop) -> float32."""

    dtype, kept = "F32", ""
    instead = INSTEAD

    def __init__(self, shape: tuple[int, int], read: Callable[[int, int], F32]) -> None:
        self.shape, self._read = shape, read

    def rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) as float32."""
        return self._read(start, stop)


class Entries:
    """Tensors of a checkpoint, as a method reads them: those of a matrix are taken out by name."""

    def __init__(self, where: str, tensors: Mapping[str, SourceTensor]) -> None:
        self.where, self.tensors, self.made = where, dict(tensors), Tensors()
        self.biased = False  # whether q, k and v have biases of their own

    def stems(self, suffix: str) -> list[str]:
        """Names, without the suffix, of tensors that end so."""
        return [name.removesuffix(suffix) for name in self.tensors if name.endswith(suffix)]

    def take(self, name: str, *dtypes: str, rank: int = 0) -> Tensor:
        """A tensor of these types, taken out. Raises ConvertError for what is not there."""
        found = self.tensors.pop(name, None)
        if not isinstance(found, Tensor) or found.dtype not in dtypes:
            kind = "not there" if found is None else found.dtype
            raise self.fault(f"tensor {name!r} is {kind}, expected {' or '.join(dtypes)}")
        if rank and len(found.shape) != rank:
            raise self.fault(f"tensor {name!r} is {list(found.shape)}, expected {rank} axes")
        return found

    def shaped(self, name: str, shape: tuple[int, ...], *dtypes: str) -> Tensor:
        """A tensor of this shape, taken out."""
        found = self.take(name, *dtypes)
        if found.shape != shape:
            raise self.fault(f"tensor {name!r} is {list(found.shape)}, expected {list(shape)}")
        return found

    def fault(self, message: str) -> ConvertError:
        return ConvertError(
            f"{self.where}: {message}: a matrix in codes that does not hold together",
            code="packed",
            hint="download the checkpoint again, or convert its float original",
        )


def whole(tensor: Tensor) -> NDArray[Any]:
    """All of a tensor, as it is stored (BF16 and F8 as their bits)."""
    return tensor.raw(0, tensor.shape[0] if tensor.shape else 1)
