"""Writing safetensors files in a stream: the header first, then tensors in any order and pieces."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import ResourceError
from .aside import FULL
from .safetensors_header import DTYPES, TensorInfo, nbytes_of

Specs = Mapping[str, tuple[str, tuple[int, ...]]]


def aligned_order(specs: Specs) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors, large element types first, so that each starts at a multiple of its size."""
    return dict(sorted(specs.items(), key=lambda item: -DTYPES[item[1][0]].itemsize))


class TensorWriter:
    """A safetensors file of declared tensors {name: (dtype, shape)}, laid out in that order.

    The data begins at a multiple of `align` bytes. `write` may come in any order, and several times
    for one tensor (its next elements). An existing file is replaced, never written into. Leaving a
    `with` block by an error removes the file. Raises ResourceError when the disk is full,
    ValueError for misuse.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        specs: Specs,
        align: int = 64,
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        header, self.tensors, self.nbytes = layout(specs, align, metadata)
        self._done = dict.fromkeys(self.tensors, 0)
        self._check_space()
        self.path.unlink(missing_ok=True)
        self._file: BinaryIO | None = open(self.path, "xb", buffering=0)
        try:
            self._put(header)
            self._file.truncate(self.nbytes)
        except BaseException:
            self.abort()
            raise

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if free < self.nbytes:
            raise ResourceError(
                f"{self.path} needs {self.nbytes} bytes, the disk has {free} free",
                code="disk-full",
                hint="free some space or write to another disk",
            )

    def _put(self, data: Any) -> None:
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        view = memoryview(data).cast("B")
        try:
            while len(view):
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno not in FULL:
                raise
            free = shutil.disk_usage(self.path.parent).free
            raise ResourceError(
                f"{self.path} needs {self.nbytes} bytes and the disk is full ({free} free)",
                code="disk-full",
                hint="free some space or write to another disk",
            ) from error

    def write(self, name: str, array: NDArray[Any]) -> None:
        """The next elements of a tensor, of its dtype (BF16: uint16), in row-major order."""
        info, done = self.tensors[name], self._done[name]
        if array.dtype != DTYPES[info.dtype]:
            raise ValueError(f"tensor {name!r} is {info.dtype}, found an array of {array.dtype}")
        if done + array.nbytes > info.end - info.begin:
            raise ValueError(
                f"tensor {name!r} has {info.end - info.begin} bytes, "
                f"found {array.nbytes} more after {done}"
            )
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        self._file.seek(info.begin + done)
        if array.nbytes:
            self._put(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        self._done[name] = done + array.nbytes

    def close(self) -> None:
        """Flush to the disk; ValueError (and the file is removed) if a tensor is incomplete."""
        if self._file is None:
            return
        missing = [n for n, info in self.tensors.items() if self._done[n] != info.end - info.begin]
        if missing:
            self.abort()
            raise ValueError(f"{self.path}: {len(missing)} tensors are incomplete: {missing[:8]}")
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def abort(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def layout(
    specs: Specs, align: int, metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, TensorInfo], int]:
    """Header bytes, tensors with absolute ranges, and the size of the file."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape) in specs.items():
        end = at + nbytes_of(dtype, tuple(shape))
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % align)
    start = 8 + len(text)
    tensors = {}
    for name, (dtype, shape) in specs.items():
        begin, end = entries[name]["data_offsets"]
        tensors[name] = TensorInfo(dtype, tuple(shape), start + begin, start + end)
    return len(text).to_bytes(8, "little") + text, tensors, start + at
