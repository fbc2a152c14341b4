"""Packed weights: the weights in the order in which the CPU session's kernels read them.

They are written to a file in the user's cache on first load, and memory-mapped afterwards. The
file's name carries the hash of the weights file and the layout, so a changed model or a newer
kernel never meets an old file.
The same name is sealed into its last bytes, so a file of another origin is not taken for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..graph import Graph
from ..kernels.cpu import layout, pack
from ..kernels.encodings import packed_bytes
from ..kernels.quant import Matrix

ALIGN = 4096
TAIL = 4096  # bytes after the last weight that a vector load may touch


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
    """Matrices by the last node that reads them."""
    used = [name for node in graph.nodes for name in node.weights.values()]
    last = {name: index for index, name in enumerate(used)}
    matrices = [name for name, weight in graph.weights.items() if len(weight.shape) == 2]
    return sorted(matrices, key=lambda name: last[name])


def fill(
    graph: Graph, weights: Mapping[str, Matrix], slots: Mapping[str, Slot], out: NDArray[np.uint8]
) -> None:
    """Pack every matrix into its slot of `out`."""
    for name, slot in slots.items():
        out[slot.offset : slot.offset + slot.size] = pack.pack(weights[name], paired=slot.paired)


class PackedWeights:
    """Packed weights in memory or mapped from a file; `address(name)` is what kernels read."""

    def __init__(self, data: NDArray[np.uint8], slots: Mapping[str, Slot]) -> None:
        self.data, self.slots = data, dict(slots)
        self.base = data.ctypes.data

    def address(self, name: str) -> int:
        return self.base + self.slots[name].offset

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


def mapped(
    graph: Graph,
    weights: Mapping[str, Matrix],
    paired: frozenset[str],
    *,
    folders: list[Path],
    key: str,
) -> PackedWeights:
    """The packed weights of the bundle `key`, mapped from the first folder that has them, else
    written to the first folder that takes them, else in memory."""
    slots, size = plan(graph, paired)
    name = f"{key[:24]}-{layout.LAYOUT}-{_shape_key(graph, paired)}.packed"
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):
            return PackedWeights(_map(folder / name, size), slots)
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):
            _write(folder, name, graph, weights, slots, size)
            return PackedWeights(_map(folder / name, size), slots)
    return in_memory(graph, weights, paired)


def forget(folder: Path, key: str) -> None:
    """Remove the packed weights of the bundle `key`; who has them mapped keeps them."""
    for path in folder.glob(f"{key[:24]}-*.packed"):
        with contextlib.suppress(OSError):
            path.unlink()


def _shape_key(graph: Graph, paired: frozenset[str]) -> str:
    text = repr([(n, w.shape, w.encoding, n in paired) for n, w in graph.weights.items()])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _seal(name: str) -> bytes:
    """The last bytes of a file: written after everything else, past the weights."""
    return hashlib.sha256(name.encode()).digest()


def _map(path: Path, size: int) -> NDArray[np.uint8]:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags)
    try:
        found = os.fstat(handle).st_size
        if found != size:
            raise ValueError(f"{path} has {found} bytes, expected {size}")
        view = mmap.mmap(handle, size, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)
    seal = _seal(path.name)
    if view[-len(seal) :] != seal:
        view.close()
        raise ValueError(f"{path} is not what its name says")
    if hasattr(view, "madvise"):
        with contextlib.suppress(OSError, AttributeError):
            view.madvise(mmap.MADV_WILLNEED)
    return np.frombuffer(view, np.uint8)


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
    aside = folder / f".{name}.{os.getpid()}-{threading.get_ident()}"
    try:
        with open(aside, "wb") as file:
            file.truncate(size)
            for matrix, slot in slots.items():
                file.seek(slot.offset)
                file.write(pack.pack(weights[matrix], paired=slot.paired).data)
            seal = _seal(name)
            file.seek(size - len(seal))
            file.write(seal)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, folder / name)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
