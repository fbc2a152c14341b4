"""Machine code of the kernels: shipped with the package, or compiled here.

A library that the package brings (`kernels/library.py`) serves where it was made from these very
sources for this CPU's instruction set. Otherwise Numba compiles each kernel when a program first
needs it, if it is installed.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import isa, library
from .entries import ENTRIES

I64 = ctypes.c_int64

_lock = threading.Lock()
_shipped: library.Library | None = None
_refused = ""
_looked = False
_cache_folder: Path | None = None


class NoCodeError(RuntimeError):
    """There is neither a library for this CPU nor a compiler."""


def shipped() -> library.Library | None:
    """The library that serves this process, None where kernels are compiled here."""
    global _shipped, _refused, _looked
    with _lock:
        if not _looked:
            _looked = True
            if os.environ.get(library.VARIABLE) != "0":
                try:
                    _shipped = library.load(isa.chosen())
                except library.LibraryError as error:
                    _refused = str(error)
        return _shipped


def refused() -> str:
    """Why a library that is there does not serve, "" where nothing is wrong."""
    shipped()
    return _refused


def has_compiler() -> bool:
    """Whether Numba is installed."""
    return find_spec("numba") is not None


def available() -> bool:
    """Whether kernels can run at all."""
    return shipped() is not None or has_compiler()


def names() -> list[str]:
    """Every kernel, entries not among them."""
    found = shipped()
    if found is not None:
        return sorted(set(found.addresses) - set(ENTRIES))
    return _compiler().names()


def address(name: str) -> int:
    """Entry address of a kernel or entry, compiled on first use where no library has it.
    NoCodeError without either."""
    found = shipped()
    return found.addresses[name] if found is not None else _compiler().address(name, _cache_folder)


def is_ready(name: str) -> bool:
    """Whether `address` will be quick."""
    return shipped() is not None or _compiler().is_cached(name, _cache_folder)


def entry_point(name: str) -> Callable[..., Any]:
    """One of the functions that Python calls, see ENTRIES. The GIL is released meanwhile."""
    arguments, result = ENTRIES[name]
    kind = ctypes.CFUNCTYPE(I64 if result else None, *[I64] * arguments)
    return kind(address(name))


def use_cache(folder: Path | None) -> None:
    """Keep what is compiled here in `folder` (None: in memory only)."""
    global _cache_folder
    _cache_folder = folder


def cache_folder() -> Path | None:
    """Where compiled kernels are kept."""
    return _cache_folder


def _compiler() -> Any:
    if not has_compiler():
        raise NoCodeError(
            f"no kernels for {isa.machine()} with {isa.chosen()} came with this installation, and "
            "there is no Numba to compile them"
        )
    from . import jit

    return jit


def yield_address() -> int:
    """Address of the system's function that gives the rest of a time slice to other threads."""
    if sys.platform == "win32":
        function: Any = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _forget() -> None:
    """In a forked child: the thread that held the lock did not come along."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
