"""Safetensors shards as one set of tensors, read by rows into float32.

Files are read, not mapped, so that converting a large checkpoint does not fill this process's
memory with pages of it. Nothing but safetensors is ever opened: pickles run code.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, ConvertError
from ...storage.folder import open_regular, sha256_fd
from ...storage.hash_cache import HashCache
from ...storage.safetensors import DTYPES, TensorInfo, read_header

FLOATS = ("F32", "F16", "BF16")
F32 = NDArray[np.float32]


class RawFile:
    """An open weights file of `nbytes`; safe to read from several threads."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._file = os.fdopen(fd, "rb", buffering=0)
        self.nbytes = os.fstat(fd).st_size
        self._lock = threading.Lock()

    def read(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes from `offset` on."""
        try:
            with self._lock:
                self._fill(offset, out.data.cast("B"))
        except OSError as error:
            raise unreadable(self.path, error) from None

    def _fill(self, offset: int, view: memoryview) -> None:
        self._file.seek(offset)
        while len(view):
            count = self._file.readinto(view)
            if not count:
                raise ConvertError(
                    f"{self.path} ends at byte {self._file.tell()}, expected {len(view)} more",
                    code="checkpoint-truncated",
                    hint="the file changed while it was read; let the download finish first",
                )
            view = view[count:]

    def sha256(self, cache: HashCache) -> str:
        """SHA-256 of the content, remembered between runs while the file does not change."""
        with self._lock:
            fd = self._file.fileno()
            known = cache.get(self.path, fd)
            if known is None:
                known = sha256_fd(fd)[0]
                cache.put(self.path, fd, known)
            return known

    def close(self) -> None:
        self._file.close()


class Shard(RawFile):
    """One open safetensors file."""

    def __init__(self, path: Path) -> None:
        try:
            fd = open_regular(path, follow=True)  # download caches are made of links
        except BundleError as error:
            raise as_convert_error(error) from None
        super().__init__(path, fd)
        try:
            self.tensors: Mapping[str, TensorInfo] = read_header(fd)
        except BundleError as error:
            self.close()
            message = error.message.replace(f"file descriptor {fd}", str(path), 1)
            raise ConvertError(message, code=error.code, hint=error.hint) from None


class Tensor(NamedTuple):
    """Where a tensor lies."""

    shard: Shard
    info: TensorInfo

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def dtype(self) -> str:
        return self.info.dtype

    def rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) of the first axis as float32."""
        return widened(self.raw(start, stop), self.info.dtype)

    def raw(self, start: int, stop: int) -> NDArray[Any]:
        """The same rows as they are stored; of a scalar 0 to 1."""
        info = self.info
        width = int(np.prod(info.shape[1:], dtype=np.int64)) * DTYPES[info.dtype].itemsize
        found = self.flat_bytes(start * width, stop * width).view(DTYPES[info.dtype])
        return found.reshape((stop - start, *info.shape[1:]) if info.shape else ())

    def flat_bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop) of the tensor."""
        out = np.empty(stop - start, np.uint8)
        self.shard.read(self.info.begin + start, out)
        return out


def widened(values: NDArray[Any], dtype: str) -> F32:
    """Stored values (BF16 as uint16) as float32, exactly."""
    if dtype == "BF16":
        bits = values.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    return np.asarray(values, np.float32)


def unreadable(path: Path, error: OSError) -> ConvertError:
    """The error for a checkpoint's file that the system does not give out."""
    return ConvertError(
        f"{path} cannot be read: {error.strerror or error}, expected a readable file",
        code="checkpoint-read",
        hint="check its permissions, and the disk it lies on",
    )


def as_convert_error(error: BundleError) -> ConvertError:
    """The same complaint, about a checkpoint."""
    return ConvertError(error.message, code=error.code, hint=error.hint, **error.values)


class Checkpoint:
    """All tensors of the shards. A name in two shards is a fault."""

    def __init__(self, paths: list[Path], faults: list[str]) -> None:
        self.shards: list[Shard] = []
        self.tensors: dict[str, Tensor] = {}
        try:
            for path in paths:
                self.shards.append(Shard(path))
                for name, info in self.shards[-1].tensors.items():
                    if name in self.tensors:
                        other = self.tensors[name].shard.path.name
                        faults.append(f"tensor {name!r} is in {other} and in {path.name}")
                    self.tensors[name] = Tensor(self.shards[-1], info)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for shard in self.shards:
            shard.close()
