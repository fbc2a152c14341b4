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

from collections.abc import Callable

from numba import njit

from ..operands import COUNT, ROW_BYTES
from ..simd import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_kernel,
    call_system,
    ld_i64,
    pause,
    st_i64,
)
from .layout import (
    BOX_COUNT,
    BOX_CTRL,
    BOX_GO,
    BOX_STOP,
    BOX_TABLE,
    BOX_THREAD,
    BOX_THREADS,
    BOX_YIELD,
    CTRL_ARRIVED,
    CTRL_CANCEL,
    CTRL_GO,
    CTRL_LED,
    CTRL_LEFT,
    CTRL_PHASE,
    CTRL_WORK,
    CTRL_YIELD,
)

SPINS = 2000

registry: dict[str, Callable[..., None]] = {}
entries: dict[str, Callable[..., object]] = {}


def kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Register a kernel under its name, which no other kernel has."""
    if function.__name__ in registry:
        raise RuntimeError(f"two kernels are called {function.__name__!r}")
    registry[function.__name__] = function
    return function


def entry(function: Callable[..., object]) -> Callable[..., object]:
    """Register a function that Python calls; `entries.ENTRIES` has its signature by its name."""
    entries[function.__name__] = function
    return function


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
            call_system(ld_i64(ctrl + CTRL_YIELD))
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


@entry
def work(box: int, seen: int, patience: int) -> int:
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
                call_system(ld_i64(box + BOX_YIELD))
            else:
                pause()
    return seen


@entry
def begin(table: int, count: int, ctrl: int, boxes: int, workers: int) -> None:
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


@entry
def lead(table: int, count: int, ctrl: int, threads: int) -> int:
    """The calling thread's part of an opened step; 1 when it was cancelled."""
    left = _run(table, count, ctrl, 0, threads)
    atomic_store(ctrl + CTRL_LED, atomic_load(ctrl + CTRL_GO))
    return left
