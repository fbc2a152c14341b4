"""Round-to-nearest, in a stream: rows in, stored tensors out, never a whole matrix in memory.

A weight is cut into chunks of at most CHUNK elements. A pool of threads reads, encodes and measures
chunks; they come back in order. Besides what is written, memory is about six float32 copies of a
chunk a thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from ...kernels.encodings import ENCODINGS, dequantize, quantize, tensors_of
from ...kernels.quant import Matrix
from ..families.recipe import F32, Recipe
from ..sources.checkpoint import Tensor

CHUNK = 1 << 19  # elements


class Piece(NamedTuple):
    """Encoded rows: arrays by tensor suffix ("" for the weight itself), and their error.

    lost, power: sum of squares of (stored - wanted) and of wanted.
    """

    arrays: dict[str, NDArray[Any]]
    lost: float
    power: float


class Slice(NamedTuple):
    """Rows [start, stop) of a part of a recipe."""

    name: str
    alias: str
    start: int
    stop: int


def encode_weight(
    name: str,
    recipe: Recipe,
    encoding: str,
    tensors: Mapping[str, Tensor],
    pool: Executor,
    *,
    ahead: int = 4,
) -> Iterator[Piece]:
    """Pieces of a weight in row order; at most `ahead` are in the making.

    Raises ConvertError for values that are not finite or do not fit the encoding.
    """
    if recipe.values is not None:
        yield encode(recipe.values, encoding)
        return
    waiting: deque[Future[Piece]] = deque()
    slices = list(cut(recipe))
    try:
        for piece in slices:
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_slice, name, piece, recipe.offset, encoding, tensors))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for job in waiting:
            job.cancel()


def cut(recipe: Recipe) -> Iterator[Slice]:
    """Slices of at most CHUNK elements (or one row) over all parts."""
    for part in recipe.parts:
        step = max(1, CHUNK // max(1, math.prod(part.shape[1:])))
        for start in range(0, part.shape[0], step):
            yield Slice(part.name, part.alias, start, min(start + step, part.shape[0]))


def _slice(
    weight: str, piece: Slice, offset: float, encoding: str, tensors: Mapping[str, Tensor]
) -> Piece:
    name = piece.name if piece.name in tensors else piece.alias
    rows = tensors[name].rows(piece.start, piece.stop)
    if not math.isfinite(np.vdot(rows, rows)):
        check_finite(name, tensors[name])
    if offset:
        rows = rows + np.float32(offset)
    try:
        return encode(rows, encoding)
    except ValueError as error:
        raise ConvertError(
            f"tensor {name!r}, rows {piece.start} to {piece.stop}: {error}, expected values that "
            f"{encoding} can hold (for weight {weight!r})",
            code="weight-range",
            hint="convert with --quant f32, or check the checkpoint",
        ) from None


def check_finite(name: str, tensor: Tensor) -> None:
    """ConvertError with counts when a tensor holds NaN or infinities."""
    shape = tensor.info.shape
    step = max(1, CHUNK // max(1, math.prod(shape[1:])))
    nan = infinite = 0
    for start in range(0, shape[0], step):
        rows = tensor.rows(start, min(start + step, shape[0]))
        nan += int(np.count_nonzero(np.isnan(rows)))
        infinite += int(np.count_nonzero(np.isinf(rows)))
    if nan or infinite:
        raise ConvertError(
            f"tensor {name!r} holds {nan} NaN and {infinite} infinite values of "
            f"{math.prod(shape)}, expected finite numbers",
            code="weight-values",
            hint="the checkpoint is damaged or its training diverged; take another one",
            tensor=name,
            nan=nan,
            infinite=infinite,
        )


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
