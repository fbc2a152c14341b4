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
from functools import lru_cache
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
            found, reason = None, ""
            if not switched_off():
                try:
                    found = library.load(isa.chosen())
                except library.LibraryError as error:
                    reason = str(error)
            _shipped, _refused = found, reason
            _looked = True  # last: who is interrupted, or forked meanwhile, looks again
        return _shipped


def switched_off() -> bool:
    """Whether the environment asks for compiled kernels though there may be a library."""
    return os.environ.get(library.VARIABLE) == "0"


def misread() -> str:
    """What is wrong with the variable's value, "" where nothing is."""
    value = os.environ.get(library.VARIABLE, "")
    if value in ("", "0", "1"):
        return ""
    return f"{library.VARIABLE}={value!r} is ignored, expected 0 or 1"


def refused() -> str:
    """Why a library that is there does not serve, "" where nothing is wrong."""
    shipped()
    return _refused


def has_compiler() -> bool:
    """Whether Numba is here and can be imported; that takes long, so ask for a library first."""
    return not no_compiler()


@lru_cache(maxsize=1)
def no_compiler() -> str:
    """Why Numba cannot be used, "" where it can. Imports it."""
    try:
        import numba  # noqa: F401
        from numba.core.ccallback import CFunc  # noqa: F401
    except Exception as error:  # whatever its libraries raise when they do not fit together
        if isinstance(error, ModuleNotFoundError) and error.name == "numba":
            return "numba is not installed"
        return f"numba cannot be imported ({str(error).strip() or type(error).__name__})"
    return ""


def lacking() -> tuple[str, str]:
    """Why no kernels can run here, and what to do; to be asked where neither is `available`."""
    reason, hint = no_compiler(), '`pip install "edgert[jit]"` compiles them here'
    if "not installed" not in reason:
        hint = '`pip install --force-reinstall "edgert[jit]"` mends it'
    if switched_off():
        reason = f"{library.VARIABLE}=0 asks for compiled kernels, but {reason}"
        return reason, f"unset {library.VARIABLE}; {hint}"
    if not refused():
        wanted = f"{isa.machine()} {isa.chosen()}"
        reason = f"no kernels for {wanted} came with this installation and {reason}"
    return reason, hint


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
    if found is not None and name in found.addresses:
        return found.addresses[name]
    return _compiler(name).address(name, _cache_folder)


def is_ready(name: str) -> bool:
    """Whether `address` will be quick."""
    found = shipped()
    if found is not None and name in found.addresses:
        return True
    return _compiler(name).is_cached(name, _cache_folder)


def entry_point(name: str, *, brief: bool = False) -> Callable[..., Any]:
    """One of the functions that Python calls, see ENTRIES. The GIL is released meanwhile, but for
    `brief` ones: whoever takes it may keep it for milliseconds."""
    arguments, result = ENTRIES[name]
    function = ctypes.PYFUNCTYPE if brief else ctypes.CFUNCTYPE
    kind = function(I64 if result else None, *[I64] * arguments)
    return kind(address(name))


def use_cache(folder: Path | None) -> None:
    """Keep what is compiled here in `folder` (None: in memory only)."""
    global _cache_folder
    _cache_folder = folder


def cache_folder() -> Path | None:
    """Where compiled kernels are kept."""
    return _cache_folder


def _compiler(name: str = "") -> Any:
    """The module that compiles. NoCodeError without Numba, and for a kernel that nobody knows."""
    found = shipped()
    if not has_compiler():
        if found is not None:
            raise NoCodeError(f"{found.path.name} has no kernel {name!r}, and {no_compiler()}")
        raise NoCodeError(lacking()[0])
    from . import jit

    if name and name not in ENTRIES and name not in jit.names():
        raise NoCodeError(f"there is no kernel {name!r}, neither shipped nor in the sources")
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
