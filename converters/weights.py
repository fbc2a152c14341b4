"""Weights in the middle of a conversion: read by rows, a few at a time, never whole.

Stages pass on a mapping from weight names to `WeightReader` objects. Nothing is read or computed
before somebody asks for rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle.check import tensors_of
from ..graph import Weight
from ..storage.safetensors import nbytes_of
from ..storage.safetensors_writer import aligned_order
from .families.recipe import F32

CHUNK = 1 << 19  # elements that are read at once
Specs = dict[str, tuple[str, tuple[int, ...]]]


class WeightReader(Protocol):
    """A weight, safe to read from several threads. shape: logical. encoding: of `stored`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def encoding(self) -> str: ...

    def spans(self) -> Iterator[tuple[int, int]]:
        """Row ranges (start, stop) that cover the weight in order, each good to read at once."""
        ...

    def rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) as float32 [stop - start, ...]."""
        ...

    def stored(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """The same rows in their encoding, by tensor suffix ("" for the weight itself)."""
        ...

    def where(self, start: int, stop: int) -> str:
        """What to call these rows in an error."""
        ...


class ArrayWeight:
    """A float32 array in memory as a `WeightReader`."""

    encoding = "f32"

    def __init__(self, array: F32, name: str = "weight") -> None:
        self.array, self.name, self.shape = array, name, array.shape

    def spans(self) -> Iterator[tuple[int, int]]:
        return spans_of(self.shape)

    def rows(self, start: int, stop: int) -> F32:
        return self.array[start:stop]

    def stored(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        return {"": self.rows(start, stop)}

    def where(self, start: int, stop: int) -> str:
        return f"{self.name}, rows {start} to {stop}"


def spans_of(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Row ranges of at most CHUNK elements, or of one row."""
    step = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def specs_of(weights: Mapping[str, Weight]) -> Specs:
    """The tensors {name: (dtype, shape)} that store declared weights, in the order of a file."""
    found = {t: s for name, w in weights.items() for t, s in tensors_of(name, w).items()}
    return aligned_order(found)


def stored_nbytes(weights: Mapping[str, Weight]) -> int:
    """Bytes of these tensors."""
    return sum(nbytes_of(dtype, shape) for dtype, shape in specs_of(weights).values())


def whole(reader: WeightReader) -> F32:
    """All of a weight as float32."""
    return np.concatenate([reader.rows(start, stop) for start, stop in reader.spans()])
