"""A team of threads that runs one program in lock-step; workers park when nothing is asked."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, ResourceError
from ..kernels.cpu import vm
from .pace import Pace

PATIENCE = 20_000  # idle spins of a worker before it parks: some milliseconds


def available_cores() -> list[int]:
    """CPU indices this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_quota() -> float:
    """CPUs a container allows (cgroup v2), infinite where there is no limit."""
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = file.read().split()
        if quota != "max":
            return int(quota) / int(period)
    return float("inf")


def performance_cores() -> list[int]:
    """The fast cores among the available ones, one a physical core where the system tells."""
    cores = available_cores()
    speed: dict[int, int] = {}
    siblings: dict[str, int] = {}
    for core in cores:
        base = f"/sys/devices/system/cpu/cpu{core}"
        with (
            contextlib.suppress(OSError, ValueError),
            open(f"{base}/cpufreq/cpuinfo_max_freq") as f,
        ):
            speed[core] = int(f.read())
        with contextlib.suppress(OSError), open(f"{base}/topology/thread_siblings_list") as f:
            siblings.setdefault(f.read().strip(), core)
    if siblings:
        cores = sorted(siblings.values())
    if len(speed) == len(cores) and cores:
        fastest = max(speed[core] for core in cores)
        cores = [core for core in cores if speed[core] >= 0.9 * fastest]
    limit = cpu_quota()
    return cores if limit >= len(cores) else cores[: max(1, int(limit))]


class Team:
    """`threads` threads, the caller's included. One program at a time; not re-entrant."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.control = np.zeros(vm.CTRL_BYTES + 64, np.uint8)
        self.ctrl = -(-self.control.ctypes.data // 64) * 64
        self._words = self.control[self.ctrl - self.control.ctypes.data :].view(np.int64)
        self.begin, self.lead = vm.entry_point("begin"), vm.entry_point("lead")
        self.work = vm.entry_point("work") if threads > 1 else None
        self._wake = [threading.Event() for _ in range(threads)]
        self._parked = [False] * threads
        self._workers: list[threading.Thread] = []
        self._program: tuple[int, int] | None = None
        self._owner = os.getpid()
        self.pace = Pace()
        self.stopped = False

    def use(self, table: NDArray[np.int64], count: int) -> None:
        """The program every following `run` executes: int64 [count, vm.ROW], kept alive by the
        caller."""
        self._program = (table.ctypes.data, count)

    def _start(self) -> None:
        """Workers get a core of their own when the team takes all cores there are: sharing one by
        accident costs more than half the speed. Smaller teams are left to the scheduler."""
        program, cores = self._program, available_cores()
        if len(cores) != self.threads:
            cores = []
        for index in range(1, self.threads):
            worker = threading.Thread(
                target=_live,
                args=(weakref.ref(self), index, program, self.ctrl, self.threads, self.work, cores),
                name=f"edgert-{index}",
                daemon=True,
            )
            try:
                worker.start()
            except BaseException as error:  # an incomplete team would wait for its missing thread
                self.close()
                if isinstance(error, RuntimeError):
                    raise ResourceError(
                        f"thread {index + 1} of {self.threads} could not be started: {error}",
                        code="threads-start",
                        hint="load the model anew with fewer threads",
                    ) from None
                raise
            self._workers.append(worker)

    def run(self, *, small: bool = False) -> bool:
        """One step; True when it was cancelled on the way. small: of a few rows, so that waiting
        for a thread that lost its core would cost more than the thread gives (`Pace` decides)."""
        if self.stopped or self._program is None:
            raise RequestError("this session is closed", code="session-closed")
        if self._owner != os.getpid():
            raise RequestError(
                "this session was opened before a fork, its threads did not come along",
                code="fork",
                hint="load the model in the child process",
            )
        if not self._workers and self.threads > 1:
            self._start()
        table, count = self._program
        self._settle(table, count)
        self._words[vm.CTRL_CANCEL // 8] = 0
        if self.threads == 1 or not small:
            return self._together(table, count)
        began = time.perf_counter()
        if self.pace.choose():
            left = bool(self.lead(table, count, self.ctrl, 1))
        else:
            left = self._together(table, count)
        self.pace.observe(time.perf_counter() - began)
        return left

    def _together(self, table: int, count: int) -> bool:
        try:
            self.begin(self.ctrl)
            return self._lead(table, count)
        finally:
            self._settle(table, count)

    def _settle(self, table: int, count: int) -> None:
        """Leave a step that was opened and not led, because an interrupt came in between: the
        workers wait in there."""
        if self._words[vm.CTRL_GO // 8] != self._words[vm.CTRL_LED // 8]:
            self.cancel()
            self._lead(table, count)

    def _lead(self, table: int, count: int) -> bool:
        for index in range(1, self.threads):
            if self._parked[index]:
                self._wake[index].set()
        return bool(self.lead(table, count, self.ctrl, self.threads))

    def cancel(self) -> None:
        """Make the running step leave at its next barrier (any thread may call)."""
        self._words[vm.CTRL_CANCEL // 8] = 1

    def close(self) -> None:
        """Dissolve the team; its threads end."""
        if self.stopped:
            return
        self.stopped = True
        self._words[vm.CTRL_STOP // 8] = 1
        for event in self._wake:
            event.set()
        if self._owner == os.getpid():
            for worker in self._workers:
                worker.join(timeout=5)

    def __del__(self) -> None:
        try:  # at interpreter exit anything here may be gone, contextlib included
            self._words[vm.CTRL_STOP // 8] = 1
            for event in self._wake:
                event.set()
        except Exception:
            return


def _live(
    team: weakref.ref[Team],
    index: int,
    program: tuple[int, int],
    ctrl: int,
    threads: int,
    work: Any,
    cores: list[int],
) -> None:
    """A worker: run steps while they come, park when they do not, end when the team stops."""
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {cores[index]})
    held = team()
    if held is None:
        return
    control, wake, parked, words = held.control, held._wake[index], held._parked, held._words
    del held
    seen = 0
    while True:
        seen = work(program[0], program[1], ctrl, index, threads, seen, PATIENCE)
        if seen < 0:
            break
        wake.clear()
        parked[index] = True
        if words[vm.CTRL_GO // 8] == seen and words[vm.CTRL_STOP // 8] == 0:
            wake.wait()
        parked[index] = False
    del control
