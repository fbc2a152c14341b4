"""Safetensors files, mapped for reading (`TensorFile`); `safetensors_writer` writes them.

Not promised: values are not looked at; NaN and infinities pass (`edgert verify --values`).
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from .folder import open_regular
from .safetensors_header import DTYPES, TensorInfo, nbytes_of, parse_header, read_header

__all__ = [
    "DTYPES",
    "TensorFile",
    "TensorInfo",
    "nbytes_of",
    "read_header",
]


class TensorFile:
    """A safetensors file, memory-mapped read-only.

    file = TensorFile("weights.safetensors")
    file["embed.weight"]                    # ndarray view, no copy; BF16 as uint16

    follow: allow the path to be a symbolic link (caches of downloaded checkpoints).
    fd: an already opened and checked file; it is neither closed nor kept.
    Views stay valid after `close`, which only drops this object's hold on the mapping.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, fd: int | None = None, follow: bool = False
    ) -> None:
        self.path = Path(path)
        own = open_regular(path, follow=follow) if fd is None else fd
        try:
            self._tensors = parse_header(own, os.fspath(path))
            self._map: mmap.mmap | None = mmap.mmap(own, 0, access=mmap.ACCESS_READ)
        finally:
            if fd is None:
                os.close(own)

    def names(self) -> list[str]:
        """Tensor names, in the order of their bytes."""
        return list(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Type, shape and byte range; an absent name raises BundleError."""
        if name not in self._tensors:
            raise BundleError(
                f"{self.path}: no tensor {name!r} among its {len(self._tensors)}",
                code="tensor-missing",
                hint="the file belongs to another model or version",
            )
        return self._tensors[name]

    def __getitem__(self, name: str) -> NDArray[Any]:
        info = self.info(name)
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        count = math.prod(info.shape)
        flat = np.frombuffer(self._map, DTYPES[info.dtype], count, info.begin if count else 0)
        return flat.reshape(info.shape)

    def close(self) -> None:
        if self._map is not None:
            with contextlib.suppress(BufferError):  # views live on: the last one unmaps
                self._map.close()
            self._map = None

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
