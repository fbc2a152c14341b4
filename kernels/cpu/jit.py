"""Kernels compiled where they run, each when a program first needs it, and kept on disk."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

from .. import library, simd
from ..simd import i64
from . import (
    kernel_cache,
    kernels,  # noqa: F401  (each registers itself)
    vm,
)
from .entries import ENTRIES
from .interrupts import held_back
from .kernel_cache import KernelFile
from .naming import name_versions

import llvmlite  # isort: skip
import numba  # isort: skip
from numba import types  # isort: skip
from numba.core.ccallback import CFunc  # isort: skip
from numba.core.sigutils import normalize_signature  # isort: skip

OPTIONS = {"nopython": True, "error_model": "numpy"}

_compiled: dict[str, Any] = {}
_lock = threading.Lock()


def names() -> list[str]:
    """Every registered kernel."""
    return sorted(vm.registry)


def signature(name: str) -> Any:
    """Numba's signature of a kernel or entry."""
    arguments, result = ENTRIES.get(name, (3, False))
    return (i64 if result else types.void)(*[i64] * arguments)


def function(name: str) -> Any:
    """The Python function of a kernel or entry, its helpers named for good."""
    made = vm.entries[name] if name in vm.entries else vm.registry[name]
    name_versions(made)
    return made


def sources_hash() -> str:
    """Hash of all kernel sources, the compiler's versions and the ISA: what compiled code depends
    on."""
    versions = (numba.__version__, llvmlite.__version__, sys.version_info[:2], simd.ISA)
    digest = hashlib.sha256(repr(versions).encode())
    digest.update(str(numba.core.config.CPU_NAME).encode())
    digest.update(library.sources_hash().encode())
    return digest.hexdigest()[:16]


def _made(name: str, folder: Path | None) -> Any:
    """A kernel, compiled or loaded."""
    python = function(name)
    made = CFunc(python, normalize_signature(signature(name)), {}, OPTIONS)
    if folder is not None:
        made._cache = KernelFile(folder, _file(name), python)
    with held_back():
        made.compile()
    return made


def _file(name: str) -> str:
    return f"entry.{name}" if name in vm.entries else name


def compile_kernel(name: str, folder: Path | None = None) -> Any:
    """The compiled kernel or entry `name` (a numba CFunc), from `folder` where that has it, kept
    there otherwise."""
    with _lock:
        if name not in _compiled:
            _compiled[name] = _made(name, folder)
        return _compiled[name]


def is_cached(name: str, folder: Path | None) -> bool:
    """Whether compiling `name` will be quick: done before, or in the cache folder."""
    return name in _compiled or (folder is not None and kernel_cache.has(folder, _file(name)))


def address(name: str, folder: Path | None = None) -> int:
    """Entry address of a kernel or entry, compiled on first use."""
    return int(compile_kernel(name, folder).address)


def _forget() -> None:
    """In a forked child: a thread that compiled did not come along."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
