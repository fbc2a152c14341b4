"""Memory that is reserved in full and taken page by page, as it is touched."""

from __future__ import annotations

import contextlib
import mmap

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
