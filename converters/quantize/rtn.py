"""Round-to-nearest, in a stream: rows in, stored tensors out, never a whole matrix in memory.

A weight is read in spans of at most CHUNK elements. A pool of threads reads, encodes and measures
spans; they come back in order. Besides what is written, memory is about six float32 copies of a
span a thread. `round_to_nearest` is for a matrix that is in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from ...kernels.encodings import ENCODINGS, dequantize, quantize, tensors_of
from ...kernels.quant import Matrix, Quantized
from ..families.recipe import F32
from ..weights import WeightReader
from .base import checked_gram, checked_weight, fitted, grid_of, stored
from .clip import clipped, diagonal


class Piece(NamedTuple):
    """Encoded rows: arrays by tensor suffix ("" for the weight itself), and their error.

    lost, power: sum of squares of (stored - wanted) and of wanted.
    """

    arrays: dict[str, NDArray[Any]]
    lost: float
    power: float


def encode_weight(
    name: str, weight: WeightReader, encoding: str, pool: Executor, *, ahead: int = 4
) -> Iterator[Piece]:
    """Pieces of a weight in row order; at most `ahead` are in the making.

    What is stored in this encoding already is taken as it is. Raises ConvertError for values that
    are not finite or do not fit the encoding.
    """
    waiting: deque[Future[Piece]] = deque()
    try:
        for start, stop in weight.spans():
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_encode_rows, name, weight, start, stop, encoding))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for job in waiting:
            job.cancel()


def _encode_rows(name: str, weight: WeightReader, start: int, stop: int, encoding: str) -> Piece:
    if weight.encoding == encoding:
        return Piece(weight.stored(start, stop), 0.0, 0.0)
    rows = weight.rows(start, stop)
    try:
        return encode(rows, encoding)
    except ValueError as error:
        raise ConvertError(
            f"{weight.where(start, stop)}: {error}, expected values that {encoding} can hold "
            f"(for weight {name!r})",
            code="weight-range",
            hint="convert with --quant f32, or check the checkpoint",
        ) from None


def encode(rows: F32, encoding: str) -> Piece:
    """Rows in a stored encoding, with the error of exactly what is stored."""
    stored = quantize(rows, encoding)
    arrays = tensors_of(stored)
    lost = 0.0 if stored is rows else _lost(stored, rows)
    return Piece({t.suffix: arrays[t.key] for t in ENCODINGS[encoding].tensors}, lost, _power(rows))


def _lost(stored: Matrix, rows: F32) -> float:
    difference = dequantize(stored)
    difference -= rows
    return _power(difference)


def _power(x: F32) -> float:
    """Sum of squares; float32 dot products of rows of 4096, added up in float64."""
    flat = x.reshape(-1)
    whole = flat[: len(flat) // 4096 * 4096].reshape(-1, 4096)
    total = float(np.einsum("ij,ij->i", whole, whole).sum(dtype=np.float64))
    rest = flat[whole.size :].astype(np.float64)
    return total + float(rest @ rest)


def round_to_nearest(
    w: F32,
    *,
    bits: int,
    group: int,
    symmetric: bool = True,
    clip: bool = False,
    gram: NDArray[np.float64] | None = None,
) -> Quantized:
    """A stored matrix of W [N, K], of which only the values themselves are known.

    clip: ranges of groups that lose least in the mean square (`clip.py`), weighted by the diagonal
    of the inputs' Gram matrix [K, K] if that is given. Raises ConvertError for weights that are not
    finite or that the encoding cannot hold.
    """
    grid, w = grid_of(bits, group, symmetric), checked_weight(w)
    groups = grid.grouped(w)
    if clip:
        measure = None if gram is None else diagonal(grid, checked_gram(gram, w.shape[1]))
        steps = clipped(grid, groups, measure)
    else:
        steps = fitted(grid, groups)
    return stored(grid, w.shape, grid.encode(groups, steps), steps)
