"""Packed weights: the weights in the order in which the CPU session's kernels read them.

They are written to a file in the user's cache on first load, and read from it afterwards: into
memory of large pages where there is plenty, else memory-mapped, as tables are of which a step reads
a few rows. The file's name carries the hash of the weights file and the layout, so a changed model
or a newer kernel never meets an old file.
The last bytes are a seal of that name and of the content, so that neither a file of another origin
nor a damaged one is used. The content is hashed once per content change, as a bundle's files are.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import system_memory
from ..graph import Graph
from ..kernels.cpu import layout, pack
from ..kernels.encodings import packed_bytes
from ..kernels.ops import CATALOGUE
from ..kernels.quant import Matrix
from ..storage.aside import aside_of, remove_leftovers
from ..storage.hash_cache import HashCache
from .memory import in_large_pages

ALIGN = 4096
TAIL = 4096  # bytes after the last weight that a vector load may touch
LARGE = 2 << 20  # bytes from which on large pages are worth a copy
ROOM = 2  # times as much memory must be free
PIECE = 64 << 20  # bytes read at a time
SEAL = 64  # SHA-256 of the content before it, then of the file's name and that
_writing = threading.Lock()
_copies: weakref.WeakValueDictionary[tuple[int, ...], NDArray[np.uint8]] = (
    weakref.WeakValueDictionary()
)  # of files, by what they are: sessions of one model share them


@dataclass(frozen=True)
class Slot:
    """A packed matrix: byte offset, size, and whether its halves are paired."""

    offset: int
    size: int
    paired: bool


def plan(graph: Graph, paired: frozenset[str]) -> tuple[dict[str, Slot], int]:
    """Where every matrix of the graph goes, and the size of all in bytes.

    In the order in which a step reads them, so that a step is one stream through memory. The
    embedding table, of which it reads a few rows, comes first unless it is the head as well.
    """
    slots, offset = {}, 0
    for name in _in_order(graph):
        weight = graph.weights[name]
        both = name in paired
        size = packed_bytes(weight.encoding, *weight.shape, paired=both)
        slots[name] = Slot(offset, size, both)
        offset += -(-size // 64) * 64
    return slots, offset + TAIL


def _in_order(graph: Graph) -> list[str]:
    """Matrices that products and lookups read, by the last node that does."""
    used = [name for node in graph.nodes for name in node.weights.values()]
    last = {name: index for index, name in enumerate(used)}
    matrices = in_slots(graph, matrix=True)
    return sorted(matrices, key=lambda name: last[name])


def in_slots(graph: Graph, *, matrix: bool) -> list[str]:
    """Weights of two axes that nodes read as matrices, or else by rows (a weight may be both)."""
    found = {
        name: None
        for node in graph.nodes
        for slot, name in node.weights.items()
        if (slot in CATALOGUE[node.op].matrix) == matrix
    }
    return [name for name in graph.weights if name in found and len(graph.weights[name].shape) == 2]


def padded(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A float32 copy with zeros up to the next 16 columns, which vector loads may touch."""
    *rows, width = array.shape
    out = np.zeros((*rows, -(-width // 16) * 16), np.float32)
    out[..., :width] = array
    return out


def by_columns(graph: Graph) -> list[str]:
    """Small matrices of which kernels load a column of 16 rows at a time."""
    slots = ((CATALOGUE[node.op].columns, node.weights) for node in graph.nodes)
    return list(dict.fromkeys(weights[slot] for columns, weights in slots for slot in columns))


def fill(
    graph: Graph, weights: Mapping[str, Matrix], slots: Mapping[str, Slot], out: NDArray[np.uint8]
) -> None:
    """Pack every matrix into its slot of `out`."""
    for name, slot in slots.items():
        out[slot.offset : slot.offset + slot.size] = pack.pack(weights[name], paired=slot.paired)


class PackedWeights:
    """Packed weights, in memory or mapped from a file; `address(name)` is what kernels read.

    copy: the same bytes from offset `start` on, which kernels read instead.
    """

    def __init__(
        self,
        data: NDArray[np.uint8],
        slots: Mapping[str, Slot],
        copy: NDArray[np.uint8] | None = None,
        start: int = 0,
    ) -> None:
        self.data, self.slots = data, dict(slots)
        self._copy, self._start = copy, start
        self._base = data.ctypes.data
        self._copied = self._base + start if copy is None else copy.ctypes.data

    def address(self, name: str) -> int:
        offset = self.slots[name].offset
        if offset < self._start:
            return self._base + offset
        return self._copied + offset - self._start

    def put(self, name: str, matrix: Matrix) -> None:
        """Exchange a matrix for another one of its shape and encoding. Packed in memory only."""
        slot = self.slots[name]
        self.data[slot.offset : slot.offset + slot.size] = pack.pack(matrix, paired=slot.paired)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


def in_memory(graph: Graph, weights: Mapping[str, Matrix], paired: frozenset[str]) -> PackedWeights:
    """Packed in memory, for graphs without a bundle and where no file can be written."""
    slots, size = plan(graph, paired)
    block = np.zeros(size + ALIGN, np.uint8)
    start = -block.ctypes.data % ALIGN
    data = block[start : start + size]
    fill(graph, weights, slots, data)
    return PackedWeights(data, slots)


def cached(
    graph: Graph,
    weights: Mapping[str, Matrix],
    paired: frozenset[str],
    *,
    folders: list[Path],
    key: str,
) -> PackedWeights:
    """The packed weights of the bundle `key`, from the first folder that has them, else written to
    the first folder that takes them, else in memory."""
    slots, size = plan(graph, paired)
    name = f"{key[:24]}-{layout.LAYOUT}-{_shape_key(graph, paired)}.packed"
    with _writing:  # threads that load one model at the same time pack it once
        for folder in folders:
            with contextlib.suppress(OSError, ValueError):
                return _read(folder / name, size, slots, _streamed(graph, slots))
        for folder in folders:
            with contextlib.suppress(OSError, ValueError):
                _write(folder, name, graph, weights, slots, size)
                return _read(folder / name, size, slots, _streamed(graph, slots))
    return in_memory(graph, weights, paired)


def _streamed(graph: Graph, slots: Mapping[str, Slot]) -> int:
    """Where the tables end that come first and that only lookups read."""
    whole = {name for node in graph.nodes if node.op != "embed" for name in node.weights.values()}
    for name, slot in slots.items():
        if name in whole:
            return slot.offset
    return 0


def forget(folder: Path, key: str) -> None:
    """Remove the packed weights of the bundle `key`; who has them mapped keeps them."""
    for path in folder.glob(f"{key[:24]}-*.packed"):
        with contextlib.suppress(OSError):
            path.unlink()


def _shape_key(graph: Graph, paired: frozenset[str]) -> str:
    text = repr([(n, w.shape, w.encoding, n in paired) for n, w in graph.weights.items()])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _seal(name: str, content: bytes) -> bytes:
    """The last bytes of a file, past the weights. content: SHA-256 of all that stands before."""
    return content + hashlib.sha256(name.encode() + content).digest()


def _read(path: Path, size: int, slots: Mapping[str, Slot], start: int) -> PackedWeights:
    """The weights of a file. start: where those begin that every step reads."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags)
    try:
        found = os.fstat(handle).st_size
        if found != size:
            raise ValueError(f"{path} has {found} bytes, expected {size}")
        view = mmap.mmap(handle, size, access=mmap.ACCESS_READ)
        if hasattr(view, "madvise"):
            with contextlib.suppress(OSError, AttributeError):
                view.madvise(mmap.MADV_WILLNEED)
        data = np.frombuffer(view, np.uint8)
        seal = data[-SEAL:].tobytes()
        if seal != _seal(path.name, seal[:32]):
            raise ValueError(f"{path} is not what its name says")
        if not _is_content(path, handle, data, seal[:32].hex()):
            raise ValueError(f"{path} is damaged")
        return PackedWeights(data, slots, _copied(handle, start, size), start)
    finally:
        os.close(handle)


def _copied(handle: int, start: int, stop: int) -> NDArray[np.uint8] | None:
    """A part of a file in memory of large pages, None where those are not to be had, or where they
    would leave other programs short."""
    size, file = stop - start, os.fstat(handle)
    key = file.st_dev, file.st_ino, file.st_mtime_ns, start, stop
    if (known := _copies.get(key)) is not None:
        return known
    if size < LARGE or system_memory.free() < ROOM * size:
        return None
    data = in_large_pages(size)
    at = 0
    while data is not None and at < size:
        read = os.preadv(handle, [data[at : at + PIECE].data], start + at)
        if read == 0:
            raise ValueError(f"the file ends after {start + at} bytes, expected {stop}")
        at += read
    if data is not None:
        data.flags.writeable = False
        _copies[key] = data
    return data


def _is_content(path: Path, handle: int, data: NDArray[np.uint8], expected: str) -> bool:
    """Whether the content has this SHA-256, which is computed unless it is known from earlier."""
    known = HashCache()
    if known.get(path, handle) == expected:
        return True
    found = hashlib.sha256(data[:-SEAL].data).hexdigest()
    known.put(path, handle, found)
    known.save()
    return found == expected


def _write(
    folder: Path,
    name: str,
    graph: Graph,
    weights: Mapping[str, Matrix],
    slots: Mapping[str, Slot],
    size: int,
) -> None:
    """Written aside and renamed, so that nobody ever maps half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = aside_of(folder / name)
    remove_leftovers(folder)
    try:
        with open(aside, "w+b") as file:
            file.truncate(size)
            for matrix, slot in slots.items():
                file.seek(slot.offset)
                file.write(pack.pack(weights[matrix], paired=slot.paired).data)
            file.flush()
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as view:
                content = hashlib.sha256(memoryview(view)[:-SEAL]).digest()
            file.seek(size - SEAL)
            file.write(_seal(name, content))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, folder / name)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _forget() -> None:
    """In a forked child: a thread that packed did not come along."""
    global _writing
    _writing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
