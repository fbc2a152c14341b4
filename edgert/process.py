"""What the system gives a process: threads; and giving memory back that libraries needed for a
moment and still hold."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator

from .errors import ResourceError


def start_thread(thread: threading.Thread, what: str) -> None:
    """Start a thread. Raises ResourceError, which says `what`, where the system gives none."""
    try:
        thread.start()
    except RuntimeError as error:
        raise ResourceError(
            f"{what} could not be started: {error}, expected the system to allow more threads",
            code="threads-start",
            hint="use fewer threads, or allow more (ulimit -u, the container's pids limit)",
        ) from None


def give_back_heap() -> None:
    """Give freed heap pages back to the system, where the C library can (glibc's malloc_trim)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def give_back_code(library: str) -> None:
    """Take the pages of a mapped library, named by part of its path, out of this process.

    For a compiler that has done its work. Only mappings without any private page are touched, so
    the system can read all of it again from the file, and does so where it is needed again.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError, ValueError):
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, size in _clean_mappings(library):
            advise(start, size, mmap.MADV_DONTNEED)


def _clean_mappings(library: str) -> Iterator[tuple[int, int]]:
    """(address, bytes) of a library's read-only mappings that hold no private page."""
    found: tuple[int, int] | None = None
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if not words[0].endswith(":"):
                begin, _, end = words[0].partition("-")
                named = len(words) > 5 and library in words[5] and "w" not in words[1]
                found = (int(begin, 16), int(end, 16) - int(begin, 16)) if named else None
            elif found and words[0] == "Anonymous:" and words[1] == "0":
                yield found
