"""Memory that is reserved in full and taken page by page, as it is touched, and who holds it."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray


def reserve(size: int) -> NDArray[np.uint8]:
    """`size` zero bytes (uint8), aligned to a memory page, that cost nothing until touched.

    NumPy's own large arrays ask for huge pages, which makes each touched byte cost 2 MiB; pools and
    buffers that are mostly empty must not.
    """
    if size == 0:
        return np.zeros(0, np.uint8)
    private = hasattr(mmap, "MAP_PRIVATE")  # Windows has one kind only
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if private else {}
    block = mmap.mmap(-1, size, **flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            block.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(block, np.uint8)


LARGE_PAGE = 2 << 20  # bytes, and a multiple of what other architectures call large
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def in_large_pages(size: int) -> NDArray[np.uint8] | None:
    """`size` zero bytes (uint8), aligned to a large page and made of such pages as far as whole
    ones fit; None where the system offers none.

    Memory that is read from end to end again and again is read faster so: the processor looks
    addresses up by the page, and a virtual machine's does so twice.
    """
    try:
        offered = "[never]" not in LARGE_PAGES.read_text(encoding="ascii")
    except (OSError, ValueError):
        offered = False
    if not offered or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        block = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = -np.frombuffer(block, np.uint8).ctypes.data % LARGE_PAGE
        block.madvise(mmap.MADV_HUGEPAGE, start, size // LARGE_PAGE * LARGE_PAGE)
    except (OSError, ValueError):  # no memory for it, or a kernel without
        return None
    return np.frombuffer(block, np.uint8)[start : start + size]


class Indices:
    """The indices 0 .. count - 1 of a pool and how many sequences hold each. For any thread.

    What is given back is only queued: a finalizer may do that in the middle of anything, in the
    middle of `take` too, where a lock would wait for itself. freed: called with each index that is
    free again, under the lock.
    """

    def __init__(self, count: int, freed: Callable[[int], None] | None = None) -> None:
        self.count, self._freed = count, freed
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._given: deque[int] = deque()
        self._lock = threading.Lock()

    def take(self, count: int) -> list[int] | None:
        """`count` free indices, held once each; None where fewer are free."""
        with self._lock:
            self._settle()
            if count > len(self._free):
                return None
            taken = [self._free.pop() for _ in range(count)]
            for index in taken:
                self._holders[index] = 1
            return taken

    def share(self, indices: Iterable[int]) -> None:
        """One more holder of each."""
        with self._lock:
            for index in indices:
                self._holders[index] += 1

    def give(self, indices: Iterable[int]) -> None:
        """One holder less of each; those without any are free again."""
        self._given.extend(tuple(indices))

    def holders(self, index: int) -> int:
        """How many hold it."""
        with self._lock:
            self._settle()
            return self._holders[index]

    @property
    def free(self) -> int:
        """How many nobody holds."""
        with self._lock:
            self._settle()
            return len(self._free)

    def _settle(self) -> None:
        while self._given:
            index = self._given.popleft()
            self._holders[index] -= 1
            if self._holders[index] == 0:
                self._free.append(index)
                if self._freed is not None:
                    self._freed(index)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value of a snapshot is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
