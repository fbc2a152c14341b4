"""How many threads NumPy's BLAS computes with.

The threads are part of a result: with another number of them OpenBLAS cuts its products elsewhere
and rounds otherwise. NumPy 2.4 on x86-64, 1 thread against 2: float32 and float64 products, dot
products, Cholesky factors, eigenvectors, singular vectors, QR and solutions of some sizes differ in
their last bits. With equal threads they are equal from run to run and from process to process, and
it makes no difference whether the number was set when NumPy was imported or later. Another kind of
CPU has other kernels, and with them other bits.
"""

from __future__ import annotations

import ctypes
import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

VARIABLES = (  # read when the library is loaded
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_SYMBOLS = (  # of NumPy's wheels, then of a system's library; 64: with 64-bit integers
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)


class _Library(NamedTuple):
    get: Callable[[], int]
    set: Callable[[int], None]


def settable() -> bool:
    """Whether `limited` and `limit` work here: where NumPy's BLAS is an OpenBLAS."""
    return _library() is not None


def limit(threads: int) -> None:
    """From now on NumPy's BLAS computes with so many threads, where it can be told."""
    library = _library()
    if library is not None:
        library.set(threads)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Within the block NumPy's BLAS computes with so many threads, in the whole process."""
    library = _library()
    if library is None:
        yield
        return
    before = library.get()
    library.set(threads)
    try:
        yield
    finally:
        library.set(before)


@cache
def _library() -> _Library | None:
    """The functions of the OpenBLAS that NumPy loaded."""
    import numpy.linalg  # loads it

    for path in _candidates(Path(numpy.__file__).parent):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for symbol in _SYMBOLS:
            if hasattr(library, symbol.format("set")) and hasattr(library, symbol.format("get")):
                return _Library(
                    getattr(library, symbol.format("get")), getattr(library, symbol.format("set"))
                )
    return None


def _candidates(numpy: Path) -> Iterator[str]:
    """Paths of libraries that may be it: those that came with NumPy, and those in this process."""
    for folder in (numpy.parent / "numpy.libs", numpy / ".dylibs", numpy / ".libs"):
        yield from sorted(glob.glob(os.path.join(glob.escape(str(folder)), "*openblas*")))
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    yield from sorted({line.split(maxsplit=5)[-1] for line in lines if "blas" in line})
