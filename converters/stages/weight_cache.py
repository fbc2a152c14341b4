"""The weights file of one stage in the making, with a journal of what is finished.

A journal has one line a finished weight. A line is believed only if the bytes it names still have
their SHA-256, so a power loss that dropped unsynced writes costs work, not correctness.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...graph import Graph, Weight
from ...kernels.encodings import ENCODINGS
from ...storage.replace import remove_folder
from ...storage.safetensors import DTYPES
from ...storage.safetensors_writer import layout
from ...storage.typed import Reader
from ..families.recipe import F32
from ..weights import spans_of, specs_of

KEY, JOURNAL, DATA, RESULT = "key", "journal", "weights.safetensors", "result"


class Record(msgspec.Struct, frozen=True):
    """A finished weight: its tensors' hashes and what its report says."""

    weight: str
    sha256: dict[str, str]
    note: dict[str, Any]


class Result(msgspec.Struct, frozen=True):
    """A finished stage: the graph it made, the weights that lie in the cache, its report."""

    graph: Graph
    weights: tuple[str, ...]
    report: dict[str, Any]


RECORDS, RESULTS = Reader(Record), Reader(Result)


class WeightCache:
    """The weights file of one stage in the making; `weights` as the new graph declares them.

    One process at a time (the bundle's lock sees to it). `taken` names the weights whose records
    were believed.
    """

    def __init__(self, folder: Path, key: str, weights: Mapping[str, Weight]) -> None:
        self.folder, self.weights = folder, dict(weights)
        header, self.tensors, self.nbytes = layout(specs_of(weights), 64, None)
        self.taken: set[str] = set()
        self._finished: set[str] = set()
        self._names = {name: list(specs_of({name: w})) for name, w in weights.items()}
        self._at = {name: info.begin for name, info in self.tensors.items()}
        self._digests: dict[str, Any] = {}
        self._records: dict[str, Record] = {}
        self._lock = threading.Lock()
        key = f"{key}\n{hashlib.sha256(header).hexdigest()}"
        if not self._matches(key):
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
                record = RECORDS.decode(line)
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

    def done(self, weight: str) -> Record | None:
        """The record of a weight that an earlier run finished, if its bytes are still right."""
        record = self._records.get(weight)
        if record is None or set(record.sha256) != set(self._names[weight]):
            return None
        if any(self._hash(name) != expected for name, expected in record.sha256.items()):
            return None
        self.taken.add(weight)
        self._finished.add(weight)
        return record

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
        view = data.data
        with self._lock:
            self._data.seek(self._at[name])
            while len(view):
                view = view[self._data.write(view) :]
        self._at[name] += data.nbytes

    def finish(self, weight: str, note: Mapping[str, Any]) -> None:
        """Note a weight as done."""
        names = self._names[weight]
        short = [name for name in names if self._at[name] != self.tensors[name].end]
        if short:
            raise ValueError(f"weight {weight!r}: tensors {short} are incomplete")
        empty = hashlib.sha256()
        hashes = {name: self._digests.pop(name, empty).hexdigest() for name in names}
        line = msgspec.json.encode(Record(weight, hashes, dict(note)))
        self._journal.write(line + b"\n")
        self._finished.add(weight)

    def complete(self, graph: Graph, report: Mapping[str, Any]) -> None:
        """Note the stage as done: the graph of its result, and its report (JSON-ready)."""
        missing = sorted(set(self.weights) - self._finished)
        if missing:
            raise ValueError(f"{self.folder}: weights {missing[:8]} are not finished")
        result = Result(graph, tuple(self.weights), dict(report))
        aside = self.folder / f"{RESULT}.new"
        aside.write_bytes(msgspec.json.encode(result))
        os.replace(aside, self.folder / RESULT)

    def reader(self, weight: str) -> CachedWeight:
        """A finished weight, to be read by rows until `deliver` or `close`."""
        return CachedWeight(self, weight, self.weights[weight])

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of a tensor, as they are stored."""
        info = self.tensors[name]
        kind = DTYPES[info.dtype]
        out = np.empty((stop - start, *info.shape[1:]), kind)
        width = (info.end - info.begin) // max(1, info.shape[0])
        view = out.reshape(-1).view(np.uint8).data
        with self._lock:
            self._data.seek(info.begin + start * width)
            while len(view):
                count = self._data.readinto(view)  # type: ignore[attr-defined]
                if not count:
                    raise OSError(errno.EIO, "the file ends early", str(self.folder / DATA))
                view = view[count:]
        return out

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


class CachedWeight:
    """A `WeightReader` of a weight that lies in a cache."""

    def __init__(self, cache: WeightCache, name: str, declared: Weight) -> None:
        self.cache, self.name = cache, name
        self.shape, self.encoding = declared.shape, declared.encoding
        self._tensors = list(specs_of({name: declared}))

    def spans(self) -> Iterator[tuple[int, int]]:
        return spans_of(self.shape)

    def stored(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        return {t[len(self.name) :]: self.cache.read(t, start, stop) for t in self._tensors}

    def rows(self, start: int, stop: int) -> F32:
        found, row = self.stored(start, stop), ENCODINGS[self.encoding]
        tensors = {tensor.key: found[tensor.suffix] for tensor in row.tensors}
        return row.dequantize(tensors, (stop - start, *self.shape[1:]))

    def where(self, start: int, stop: int) -> str:
        return f"weight {self.name!r}, rows {start} to {stop}"
