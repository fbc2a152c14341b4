"""The stage cache: a conversion that was stopped goes on where it was.

`<out>.stage/` holds the growing weights file, a key (what is converted, and how) and a journal with
one line a finished weight. A line is believed only if the bytes it names still have its SHA-256, so
a power loss that dropped unsynced writes costs work, not correctness. Another key empties it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import ResourceError
from ..storage.replace import remove_folder
from ..storage.safetensors_writer import Specs, layout

KEY, JOURNAL, DATA = "key", "journal", "weights.safetensors"
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class Record(msgspec.Struct, frozen=True):
    """A finished weight: its tensors' hashes and what its report says."""

    weight: str
    sha256: dict[str, str]
    note: dict[str, Any]


class Stage:
    """The weights file in the making; one process at a time (the bundle's lock sees to it)."""

    def __init__(self, folder: Path, key: str, specs: Specs, *, resume: bool) -> None:
        header, self.tensors, self.nbytes = layout(specs, 64, None)
        self.folder = folder
        self._at = {name: info.begin for name, info in self.tensors.items()}
        self._digests: dict[str, Any] = {}
        self._records: dict[str, Record] = {}
        key = hashlib.sha256(f"{key}\n".encode() + header).hexdigest()
        if not (resume and self._matches(key)):
            self._start(key, header)
        self._data: BinaryIO = open(folder / DATA, "r+b", buffering=0)
        self._journal = open(folder / JOURNAL, "ab", buffering=0)

    def _matches(self, key: str) -> bool:
        try:
            found = (self.folder / KEY).read_text("ascii")
            if found != key or (self.folder / DATA).stat().st_size != self.nbytes:
                return False
            lines = (self.folder / JOURNAL).read_bytes().splitlines(keepends=True)
        except (OSError, ValueError):
            return False
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):  # a line that a kill cut short
                record = msgspec.json.decode(line, type=Record)
                self._records[record.weight] = record
        if lines and not lines[-1].endswith(b"\n"):
            with open(self.folder / JOURNAL, "ab") as file:
                file.write(b"\n")
        return True

    def _start(self, key: str, header: bytes) -> None:
        remove_folder(self.folder)
        self.folder.mkdir(parents=True)
        with open(self.folder / DATA, "xb") as file:
            file.write(header)
            file.truncate(self.nbytes)
        (self.folder / JOURNAL).touch()
        (self.folder / KEY).write_text(key, "ascii")

    def done(self, weight: str, names: Sequence[str]) -> Record | None:
        """The record of a weight that an earlier run finished, if its bytes are still right."""
        record = self._records.get(weight)
        if record is None or set(record.sha256) != set(names):
            return None
        same = all(self._hash(name) == expected for name, expected in record.sha256.items())
        return record if same else None

    def _hash(self, name: str) -> str:
        info, digest = self.tensors[name], hashlib.sha256()
        self._data.seek(info.begin)
        left = info.end - info.begin
        while left:
            data = self._data.read(min(left, 1 << 20))
            if not data:
                break
            digest.update(data)
            left -= len(data)
        return digest.hexdigest()

    def write(self, name: str, array: NDArray[Any]) -> None:
        """The next elements of a tensor."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        info = self.tensors[name]
        if self._at[name] + data.nbytes > info.end:
            raise ValueError(f"tensor {name!r}: {data.nbytes} bytes more than declared")
        self._digests.setdefault(name, hashlib.sha256()).update(data)
        self._data.seek(self._at[name])
        view = data.data
        while len(view):
            view = view[self._data.write(view) :]
        self._at[name] += data.nbytes

    def finish(self, weight: str, names: Sequence[str], note: Mapping[str, Any]) -> None:
        """Note a weight as done."""
        short = [name for name in names if self._at[name] != self.tensors[name].end]
        if short:
            raise ValueError(f"weight {weight!r}: tensors {short} are incomplete")
        empty = hashlib.sha256()
        hashes = {name: self._digests.pop(name, empty).hexdigest() for name in names}
        line = msgspec.json.encode(Record(weight, hashes, dict(note)))
        self._journal.write(line + b"\n")

    def deliver(self, target: Path) -> None:
        """Put the finished weights file at `target`; where links work, the cache keeps its own
        name for it, so that a kill after this point does not cost the work."""
        os.fsync(self._data.fileno())
        self.close()
        try:
            os.link(self.folder / DATA, target)
        except OSError:
            os.replace(self.folder / DATA, target)

    def close(self) -> None:
        """Close files, keep the cache."""
        self._data.close()
        self._journal.close()

    def remove(self) -> None:
        """Close and delete the cache."""
        self.close()
        remove_folder(self.folder)


def disk_full(path: Path, needed: int) -> ResourceError:
    """The error for a disk that cannot hold the bundle."""
    free = shutil.disk_usage(path).free
    return ResourceError(
        f"{path} has {free} bytes free, the conversion needs {needed}",
        code="disk-full",
        hint="free some space or write to another disk; the old bundle, if any, is untouched",
        needed=needed,
        free=free,
    )


def key_of(**values: Any) -> str:
    """A canonical text of everything a stage depends on."""
    return json.dumps(values, sort_keys=True)
