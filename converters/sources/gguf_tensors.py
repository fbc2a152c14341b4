"""Tensors of GGUF files by rows: as float32, or as the tensors of an encoding, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, ConvertError
from ...kernels import gguf_blocks
from ...kernels.encodings import ENCODINGS
from ...kernels.gguf_blocks import FORMS
from ...kernels.ops_experts import EXPERTS
from ...storage.folder import open_regular
from ...storage.gguf_header import KINDS, TensorInfo, parse_gguf
from ...storage.safetensors import DTYPES
from .base import SourceTensor
from .checkpoint import F32, RawFile, as_convert_error, widened
from .packed import INSTEAD
from .packed_mx import gguf_mxfp4
from .stacked import piece

Stored = dict[str, NDArray[Any]]
U8 = NDArray[np.uint8]
FLOATS = ("F32", "F16", "BF16")
NEAR = 4  # rows that are read at once, times those that are wanted, where their order is another


class Kept(NamedTuple):
    """How blocks are taken over: the encoding, and rows of bytes -> its tensors by key."""

    encoding: str
    tensors: Callable[[U8], Stored]


def _whole(rows: U8) -> Stored:
    return {gguf_blocks.KEY: rows}


KEPT: Mapping[str, Kept] = {
    "Q4_0": Kept("int4-g32", gguf_blocks.int4),
    "Q5_0": Kept("int5-g32", gguf_blocks.int5),
    "Q8_0": Kept("int8-g32", gguf_blocks.int8),
    "MXFP4": Kept("int5-g32", gguf_mxfp4),
    **{name.upper(): Kept(name, _whole) for name in FORMS},
}
READ = (*FLOATS, *KEPT)
_BLOCKS = {kind.name: kind for kind in KINDS.values()}


class GgufFile(RawFile):
    """One open file: `metadata`, `tensors`; safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        try:
            fd = open_regular(path, follow=True)
            try:
                self.metadata, self.tensors = parse_gguf(fd, str(path))
            except BaseException:
                os.close(fd)
                raise
        except BundleError as error:
            raise as_convert_error(error) from None
        super().__init__(path, fd)


class KeysAndValues:
    """What latent attention makes of a narrow row, `kv_b_proj` [H * (N + V), R], of a file that has
    it in two: keys [H, R, N], those of a head turned, and values [H, V, R].

    Of blocks the codes are chosen anew, for rows of the keys are columns there. Heads that multiply
    by one or the other take them as they are: `apart`.
    """

    kept = ""

    def __init__(self, keys: GgufTensor, values: GgufTensor) -> None:
        self._keys, self._values = keys, values
        heads, rank, self._own = keys.shape
        self._each = self._own + values.shape[1]
        self.shape = (heads * self._each, rank)
        self.dtype = keys.dtype if keys.dtype == values.dtype else "F32"
        blocks = {keys.info.kind, values.info.kind} - set(FLOATS)
        self.instead = INSTEAD if blocks else ""

    @staticmethod
    def fit(keys: GgufTensor, values: GgufTensor, own: int) -> bool:
        """Whether their shapes are those of one matrix, with so many channels of a key."""
        k, v = keys.shape, values.shape
        return len(k) == len(v) == 3 and (k[0], k[1], k[2]) == (v[0], v[2], own)

    def apart(self) -> dict[str, GgufTensor]:
        """Keys as [H * R, N] and values as [H * V, R], by what their matrices are called."""
        return {"k_b": self._keys.flat(), "v_b": self._values.flat()}

    def rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) as float32."""
        first, last = start // self._each, -(-stop // self._each)
        out = np.empty((last - first, self._each, self.shape[1]), np.float32)
        out[:, : self._own] = self._keys.rows(first, last).swapaxes(1, 2)
        out[:, self._own :] = self._values.rows(first, last)
        at = first * self._each
        return out.reshape(-1, self.shape[1])[start - at : stop - at]


def in_halves(count: int, heads: int) -> NDArray[np.int64] | None:
    """Rows of heads that stand in pairs (2i, 2i + 1), taken as (i, D/2 + i); None where they are no
    whole pairs."""
    if count % (2 * heads):
        return None
    return np.arange(count).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


class GgufTensor:
    """A tensor by rows. order: which row of the file each row is, where it is not the same one.

    dtype: of floats as safetensors calls it, F32 for blocks. kept: the encoding that its blocks are
    taken over in, "" for floats.
    """

    def __init__(
        self, file: GgufFile, info: TensorInfo, order: NDArray[np.int64] | None = None
    ) -> None:
        self.file, self.info, self.shape, self._order = file, info, info.shape, order
        self.dtype = info.kind if info.kind in FLOATS else "F32"
        self.kept = KEPT[info.kind].encoding if info.kind in KEPT and len(self.shape) == 2 else ""
        block, width = _BLOCKS[info.kind], int(np.prod(info.shape[1:], dtype=np.int64))
        self.vector = len(info.shape) == 1  # whose one axis is rows of one value
        self.row_bytes = block.nbytes if self.vector else width // block.values * block.nbytes

    def rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) as float32."""
        shape, kind = (stop - start, *self.shape[1:]), self.info.kind
        if kind in FLOATS:
            values = self.raw(start, stop).reshape(-1).view(DTYPES[kind])
            return widened(values.reshape(shape), kind)
        if self.vector:
            raise self._odd()
        row = ENCODINGS[KEPT[kind].encoding]
        flat = (int(np.prod(shape[:-1])), shape[-1])
        raw = self.raw(start, stop).reshape(flat[0], -1)
        with np.errstate(invalid="ignore"):  # readers tell what is no number
            return row.dequantize(KEPT[kind].tensors(raw), flat).reshape(shape)

    def stored(self, start: int, stop: int) -> Stored:
        """The same rows as tensors of the encoding `kept`, by key."""
        return KEPT[self.info.kind].tensors(self.raw(start, stop))

    def raw(self, start: int, stop: int) -> U8:
        """Bytes [stop - start, row bytes] of rows in the family's order."""
        if self._order is None:
            return self._read(start, stop)
        wanted = self._order[start:stop]
        first, last = int(wanted.min()), int(wanted.max()) + 1
        if last - first <= NEAR * len(wanted):
            return np.ascontiguousarray(self._read(first, last)[wanted - first])
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        return np.concatenate([self._read(int(run[0]), int(run[-1]) + 1) for run in runs])

    def _read(self, start: int, stop: int) -> U8:
        out = np.empty((stop - start, self.row_bytes), np.uint8)
        self.file.read(self.info.begin + start * self.row_bytes, out)
        return out

    def flat(self) -> GgufTensor:
        """A stack [E, N, K] as one matrix [E * N, K]."""
        experts, rows, width = self.info.shape
        return GgufTensor(self.file, self.info._replace(shape=(experts * rows, width)))

    def pieces(self, parts: int = 1) -> list[GgufTensor]:
        """Of a stack [E, N, K] of matrices or [E, N] of vectors each as a tensor, or as `parts`
        equal ones, one behind the other; none of others, or where there are more than experts may
        be."""
        if len(self.shape) not in (2, 3) or not 0 < self.shape[0] <= EXPERTS:
            return []
        info, rows = self.info._replace(shape=(*self.shape, 1)[:3]), self.shape[1] // parts
        if rows * parts != self.shape[1]:
            return []
        each = (
            piece(info, number, part * rows, rows)
            for number in range(self.shape[0])
            for part in range(parts)
        )
        return [GgufTensor(self.file, i._replace(shape=(rows, *self.shape[2:]))) for i in each]

    def cut(self, start: int, stop: int) -> GgufTensor:
        """Rows [start, stop), in the file's order, as a tensor."""
        count, *rest = self.shape
        flat = self.info._replace(shape=(1, count, int(np.prod(rest))))
        one = piece(flat, 0, start, stop - start)
        return GgufTensor(self.file, one._replace(shape=(stop - start, *rest)))

    def _odd(self) -> ConvertError:
        return ConvertError(
            f"{self.file.path}: a vector in blocks of {self.info.kind}, expected floats",
            code="gguf-type",
            hint="convert the model to GGUF again",
        )


class Told:
    """A tensor of one value, that the file has among its keys."""

    kept, dtype = "", "F32"

    def __init__(self, value: float, shape: tuple[int, ...]) -> None:
        self._value, self.shape = value, shape

    def rows(self, start: int, stop: int) -> F32:
        """The value, as rows of a vector."""
        return np.full(stop - start, self._value, np.float32)


class Changed:
    """A tensor of another shape, or of other values, than the file has: floats, read by rows.

    shape: keeps the number of rows, or makes one row of each value of a row. values: of each one.
    """

    kept = ""

    def __init__(
        self, tensor: GgufTensor, shape: tuple[int, ...], values: Callable[[F32], F32] | None
    ) -> None:
        self._tensor, self.shape, self._values = tensor, shape, values or (lambda found: found)
        self.dtype = tensor.dtype

    def rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) as float32."""
        shape = (stop - start, *self.shape[1:])
        if self.shape[0] == self._tensor.shape[0]:
            return self._values(self._tensor.rows(start, stop)).reshape(shape)
        whole = self._values(self._tensor.rows(0, self._tensor.shape[0]))
        return whole.reshape(self.shape)[start:stop]


class Columns:
    """A matrix [N, K] whose columns stand in another order in its file. Blocks that move as a whole
    are taken over as they are; of others the codes are chosen anew.

    order: which column of the file each column is.
    """

    def __init__(self, tensor: GgufTensor, order: NDArray[np.int64]) -> None:
        self._tensor, self._order, self.shape, self.dtype = (
            tensor,
            order,
            tensor.shape,
            tensor.dtype,
        )
        kind = tensor.info.kind
        size = _BLOCKS[kind].values
        runs = order.reshape(-1, size) if order.size % size == 0 else order[:0].reshape(0, size)
        self._blocks = runs[:, 0] // size
        whole = runs.size > 0 and np.array_equal(
            runs, (self._blocks * size)[:, None] + np.arange(size)
        )
        self.kept = tensor.kept if whole else ""
        self.instead = "" if whole or kind in FLOATS else INSTEAD

    def rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) as float32."""
        return np.ascontiguousarray(self._tensor.rows(start, stop)[:, self._order])

    def stored(self, start: int, stop: int) -> Stored:
        """The same rows as tensors of the encoding `kept`, by key."""
        raw = self._tensor.raw(start, stop).reshape(stop - start, len(self._blocks), -1)
        moved = np.ascontiguousarray(raw[:, self._blocks]).reshape(stop - start, -1)
        return KEPT[self._tensor.info.kind].tensors(moved)


def changed(
    tensor: GgufTensor, shape: tuple[int, ...], values: Callable[[F32], F32] | None
) -> SourceTensor:
    """The tensor in another shape and with other values; itself where neither is, or where the
    shape holds another number of values, for the comparison of all shapes to complain of."""
    if np.prod(shape, dtype=object) != np.prod(tensor.shape, dtype=object):
        shape = tensor.shape
    return tensor if shape == tensor.shape and values is None else Changed(tensor, shape, values)
