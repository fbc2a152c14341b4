"""The direct-threaded program: kernels, the interpreter loop, barriers and the worker loop.

A program is an int64 table, one row of `ROW` words an instruction (`kernels/operands.py`):

    word 0       address of a kernel, void(row, thread, threads)
    word 1       barrier afterwards: 0 never, 1 always, 2 when the step has more than one row
    word 2       address of the int64 that holds the number of rows this instruction works on
    word 3 ...   operands, by the names that the kernel's op family gives them

Every thread of a step runs the whole program. Kernels share their work out by claiming chunks
from the counter at `CTRL_WORK`, which each barrier resets, so a thread that loses its core costs
the others one chunk and not its whole share.

A program has a control block (CTRL_*), through which the threads of its steps meet. A worker
thread has a mailbox (BOX_*), in which the thread that leads a step tells it what to run.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import simd
from ..operands import COUNT, ROW_BYTES
from ..simd import atomic_add, atomic_load, atomic_store, call_kernel, i64, ld_i64, pause, st_i64
from . import kernel_cache
from .interrupts import held_back
from .kernel_cache import KernelFile
from .layout import (
    BOX_COUNT,
    BOX_CTRL,
    BOX_GO,
    BOX_STOP,
    BOX_TABLE,
    BOX_THREAD,
    BOX_THREADS,
    CTRL_ARRIVED,
    CTRL_CANCEL,
    CTRL_GO,
    CTRL_LED,
    CTRL_LEFT,
    CTRL_PHASE,
    CTRL_WORK,
)
from .naming import name_versions

import llvmlite  # isort: skip
import numba  # isort: skip
from numba import njit, types  # isort: skip
from numba.core.ccallback import CFunc  # isort: skip
from numba.core.sigutils import normalize_signature  # isort: skip

SPINS = 2000


_SIGNATURE = types.void(i64, i64, i64)
_sched_yield = types.ExternalFunction("sched_yield", types.int32())
_registry: dict[str, Callable[..., None]] = {}
_compiled: dict[str, Any] = {}
_lock = threading.Lock()
_cache_folder: Path | None = None


def kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Register a kernel under its name; it is compiled when a program first needs it."""
    _registry[function.__name__] = function
    return function


def sources_hash() -> str:
    """Hash of all kernel sources, the compiler's versions and the ISA: what compiled code depends
    on."""
    versions = (numba.__version__, llvmlite.__version__, sys.version_info[:2], simd.ISA)
    digest = hashlib.sha256(repr(versions).encode())
    digest.update(str(numba.core.config.CPU_NAME).encode())
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def use_cache(folder: Path | None) -> None:
    """Keep compiled kernels in `folder` (None: compile in memory only)."""
    global _cache_folder
    _cache_folder = folder


def cache_folder() -> Path | None:
    """Where compiled kernels are kept."""
    return _cache_folder


def _kept(made: Any, name: str, function: Callable[..., Any]) -> Any:
    """A function that Numba is about to compile, with its file where there is a cache folder."""
    if _cache_folder is not None:
        made._cache = KernelFile(_cache_folder, name, function)
    return made


def _made(name: str, function: Callable[..., None]) -> Any:
    """A kernel, compiled or loaded."""
    options = {"nopython": True, "error_model": "numpy"}
    made = CFunc(function, normalize_signature(_SIGNATURE), {}, options)
    with held_back():
        _kept(made, name, function).compile()
    return made


def compile_kernel(name: str) -> Any:
    """The compiled kernel `name` (a numba CFunc), from the cache where it has it."""
    with _lock:
        if name not in _compiled:
            function = _registry[name]
            name_versions(function)
            _compiled[name] = _made(name, function)
        return _compiled[name]


def names() -> list[str]:
    """Every registered kernel."""
    return sorted(_registry)


def is_cached(name: str) -> bool:
    """Whether compiling `name` will be quick: done before, or in the cache folder."""
    if name in _compiled:
        return True
    return _cache_folder is not None and kernel_cache.has(_cache_folder, name)


def address(name: str) -> int:
    """Entry address of a kernel, compiled on first use."""
    return int(compile_kernel(name).address)


@njit(error_model="numpy")
def claim(ctrl: int, total: int, threads: int, grain: int) -> tuple[int, int]:
    """The next chunk [start, stop) of `total` units; start >= total when nothing is left.

    grain: chunks a thread, larger for finer sharing. One thread takes everything at once.
    """
    if threads == 1:
        chunk = total
    else:
        chunk = (total + threads * grain - 1) // (threads * grain)
    chunk = max(chunk, 1)
    start = atomic_add(ctrl + CTRL_WORK, 1) * chunk
    return start, min(start + chunk, total)


@njit(error_model="numpy")
def barrier(ctrl: int, threads: int) -> None:
    """Wait until all threads are here; the last one resets the work counter."""
    phase = atomic_load(ctrl + CTRL_PHASE)
    if atomic_add(ctrl + CTRL_ARRIVED, 1) == threads - 1:
        atomic_store(ctrl + CTRL_ARRIVED, 0)
        atomic_store(ctrl + CTRL_WORK, 0)
        atomic_store(ctrl + CTRL_LEFT, atomic_load(ctrl + CTRL_CANCEL))
        atomic_store(ctrl + CTRL_PHASE, phase + 1)
        return
    spins = 0
    while atomic_load(ctrl + CTRL_PHASE) == phase:
        spins += 1
        if spins > SPINS:
            _sched_yield()
        else:
            pause()


@njit(error_model="numpy")
def _run(table: int, count: int, ctrl: int, thread: int, threads: int) -> int:
    for index in range(count):
        row = table + index * ROW_BYTES
        call_kernel(ld_i64(row), row, thread, threads)
        wait = ld_i64(row + 8)
        if wait == 1 or (wait == 2 and ld_i64(ld_i64(row + COUNT)) > 1):
            barrier(ctrl, threads)
            if atomic_load(ctrl + CTRL_LEFT) != 0:
                barrier(ctrl, threads)  # the next step may clear CTRL_LEFT when all have read it
                return 1
    barrier(ctrl, threads)
    return 0


def _work(box: int, seen: int, patience: int) -> int:
    """A worker's life between parkings: run each step that its mailbox brings, return after
    `patience` idle spins (how many steps it has seen) or when it is told to stop (-1)."""
    idle = 0
    while idle < patience:
        if atomic_load(box + BOX_STOP) != 0:
            return -1
        if atomic_load(box + BOX_GO) != seen:
            seen += 1
            _run(
                ld_i64(box + BOX_TABLE), ld_i64(box + BOX_COUNT), ld_i64(box + BOX_CTRL),
                ld_i64(box + BOX_THREAD), ld_i64(box + BOX_THREADS),
            )  # fmt: skip
            idle = 0
        else:
            idle += 1
            if idle > SPINS:
                _sched_yield()
            else:
                pause()
    return seen


def _begin(table: int, count: int, ctrl: int, boxes: int, workers: int) -> None:
    """Open a step for the workers whose mailboxes stand at `boxes` (int64 addresses): whoever
    spins in `work` enters it. Parked workers must be woken after this."""
    atomic_store(ctrl + CTRL_LEFT, 0)
    atomic_store(ctrl + CTRL_GO, atomic_load(ctrl + CTRL_GO) + 1)
    for index in range(workers):
        box = ld_i64(boxes + 8 * index)
        st_i64(box + BOX_TABLE, table)
        st_i64(box + BOX_COUNT, count)
        st_i64(box + BOX_CTRL, ctrl)
        st_i64(box + BOX_THREAD, index + 1)
        st_i64(box + BOX_THREADS, workers + 1)
        atomic_store(box + BOX_GO, atomic_load(box + BOX_GO) + 1)


def _lead(table: int, count: int, ctrl: int, threads: int) -> int:
    """The calling thread's part of an opened step; 1 when it was cancelled."""
    left = _run(table, count, ctrl, 0, threads)
    atomic_store(ctrl + CTRL_LED, atomic_load(ctrl + CTRL_GO))
    return left


ENTRIES: dict[str, tuple[Callable[..., Any], Any]] = {
    "begin": (_begin, types.void(i64, i64, i64, i64, i64)),
    "lead": (_lead, i64(i64, i64, i64, i64)),
    "work": (_work, i64(i64, i64, i64)),
}


def entry_point(name: str) -> Callable[..., Any]:
    """One of the jitted functions Python calls: begin, lead, work. They release the GIL."""
    with _lock:
        if name not in _compiled:
            function, signature = ENTRIES[name]
            made = njit(nogil=True, error_model="numpy")(function)
            with held_back():
                _kept(made, f"entry.{name}", function).compile(signature)
            made.disable_compile()
            _compiled[name] = made
        return _compiled[name]  # type: ignore[no-any-return]


def _forget() -> None:
    """In a forked child: a thread that compiled did not come along."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
