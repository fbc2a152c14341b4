"""The threads of a process: one team of workers for the programs of every session.

A step runs on the thread that asked for it and on free workers, all of them in lock-step. Each
thread of a step takes one of the team's cores, so sessions wait for cores instead of fighting for
them. Workers park when nothing is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections import deque
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..kernels.cpu import code
from ..kernels.cpu.layout import (
    BOX_BYTES,
    BOX_GO,
    BOX_STOP,
    BOX_YIELD,
    CTRL_BYTES,
    CTRL_CANCEL,
    CTRL_GO,
    CTRL_LED,
    CTRL_YIELD,
)
from ..notices import notice
from ..process import start_thread
from .cores import available_cores, performance_cores
from .pace import Pace

SHARING = 0.05  # seconds that programs keep to their share after they met
PATIENCE = 20_000  # idle spins of a worker before it parks: some milliseconds


class Runnable(Protocol):
    """What a team runs: address and steps of a table, its control block, its threads."""

    @property
    def address(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def control(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def pace(self) -> Pace: ...


class Team:
    """Workers and the cores they stand for. Make one with `join`; call `leave` when done."""

    def __init__(self) -> None:
        self.begin, self.lead = code.entry_point("begin"), code.entry_point("lead")
        self.work: Any = None
        self._yield = code.yield_address()
        self.cores = max(1, len(performance_cores()))
        self._mutex = threading.Lock()  # entered itself: an interrupt inside of a condition's
        self._turn = threading.Condition(self._mutex)  # `__enter__` would leave it locked
        self._queue: deque[object] = deque()
        self._workers: list[Worker] = []
        self._held: dict[int, Held] = {}  # by control block
        self._sharers, self._shared_until = 1, 0.0
        self._greenlets = False  # whether a started thread runs on ours: it would wait for itself
        self._controls = _Blocks(CTRL_BYTES)
        self._owner = os.getpid()
        self.users = 0
        self.stopped = False

    # --- control blocks ---------------------------------------------------------------------

    def control_block(self) -> int:
        """Address of a control block for one program."""
        address = self._controls.take()
        self._controls.word(address, CTRL_YIELD).value = self._yield
        return address

    def free_control(self, address: int) -> None:
        """Take a control block back. Its memory stays: a worker that passed the last barrier may
        still look at it."""
        self._held.pop(address, None)
        self._controls.give(address)

    def cancel(self, control: int) -> None:
        """Make the step that runs with this control block leave at its next barrier."""
        self._controls.word(control, CTRL_CANCEL).value = 1

    # --- running ----------------------------------------------------------------------------

    @property
    def is_ours(self) -> bool:
        """Whether this process started the team, and did not get it by a fork."""
        return self._owner == os.getpid()

    def check_process(self) -> None:
        """Raises RequestError in a forked child."""
        if not self.is_ours:
            raise RequestError(
                "this session was opened before a fork, its threads did not come along",
                code="fork",
                hint="load the model in the child process",
            )

    def run(self, program: Runnable, *, small: bool = False) -> bool:
        """One run of a program; True when it was cancelled on the way. One at a time a program."""
        if self.stopped:
            raise RequestError("this session is closed", code="session-closed")
        self.check_process()
        self._controls.word(program.control, CTRL_CANCEL).value = 0
        if program.threads == 1 or not small:
            return self._run(program, program.threads)[0]
        threads = 1 if program.pace.choose() else program.threads
        began = time.perf_counter()
        left, used = self._run(program, threads)
        if used == threads:  # others may have left fewer cores, which says nothing of the pace
            program.pace.observe(time.perf_counter() - began)
        return left

    def _run(self, program: Runnable, threads: int) -> tuple[bool, int]:
        """Whether it was cancelled, and with how many threads it ran."""
        table, count, control = program.address, program.count, program.control
        try:
            held = self._acquire(control, threads)
            if held.threads > 1:
                self._open(program, held.workers)
            return bool(self.lead(table, count, control, held.threads)), held.threads
        finally:
            self._settle(table, count, control)
            self._release(control)

    def _open(self, program: Runnable, workers: list[Worker]) -> None:
        """Open a step for workers, and wake those that are parked."""
        boxes = (ctypes.c_int64 * len(workers))(*(worker.box for worker in workers))
        at = ctypes.addressof(boxes)
        self.begin(program.address, program.count, program.control, at, len(workers))
        for worker in workers:
            if worker.parked:
                worker.wake.set()

    def _settle(self, table: int, count: int, control: int) -> None:
        """Leave a step that was opened and not led, because an interrupt came in between: the
        workers wait in there."""
        word, held = self._controls.word, self._held.get(control)
        if held is None or held.threads == 1:  # then none was opened
            return
        if word(control, CTRL_GO).value == word(control, CTRL_LED).value:
            return
        self.cancel(control)
        for worker in held.workers:
            if worker.parked:
                worker.wake.set()
        self.lead(table, count, control, held.threads)

    # --- cores ------------------------------------------------------------------------------

    def _acquire(self, control: int, threads: int) -> Held:
        """Wait for `threads` cores, or for a fair share of all while several programs run at once;
        first come first served. What is held stands in one place and is changed by one assignment,
        so that an interrupt leaves nothing half taken."""
        with self._mutex:
            self._held.pop(control, None)  # left by an interrupted run
            met = bool(self._held or self._queue)
            if met or threads > 1:
                threads = min(threads, self._share())
            if met and (self._queue or self._idle_cores() < threads):
                self._wait(threads)
            idle = self._workers
            if self._held and threads > 1:
                busy = {id(worker) for held in self._running() for worker in held.workers}
                idle = [worker for worker in idle if id(worker) not in busy]
            self._held[control] = held = Held(threads, idle[: threads - 1])
            return held

    def _share(self) -> int:
        """Cores that a step may take. Programs that meet each other run side by side on a part of
        the cores rather than in turn on all of them: a step on half the cores takes less than twice
        the time."""
        now, others = time.monotonic(), len(self._held) + len(self._queue)
        if others or now > self._shared_until:
            self._sharers = others + 1
            self._shared_until = now + SHARING
        return max(1, self.cores // self._sharers)

    def _idle_cores(self) -> int:
        return self.cores - sum(held.threads for held in self._running())

    def _running(self) -> list[Held]:
        """What steps hold at this moment; others may end theirs while the list is read."""
        return list(self._held.values())

    def _wait(self, threads: int) -> None:
        ticket = object()
        try:
            self._queue.append(ticket)
            while self._queue[0] is not ticket or self._idle_cores() < threads:
                self._turn.wait()
        finally:
            self._queue.remove(ticket)
            self._turn.notify_all()

    def _release(self, control: int) -> None:
        self._held.pop(control, None)
        if self._queue:
            with self._mutex:
                self._turn.notify_all()

    def ensure(self, threads: int) -> None:
        """Have cores and workers for steps of so many threads."""
        with self._mutex:
            self.cores = max(self.cores, threads)
            if threads > 1 and self.work is None:
                self.work = code.entry_point("work")
            while len(self._workers) < threads - 1 and not self._greenlets:
                self._start(len(self._workers) + 1, threads)
            if self._greenlets:
                self.cores = 1

    def _start(self, index: int, threads: int) -> None:
        """Workers get a core of their own when the team takes all cores there are: sharing one by
        accident costs more than half the speed. Smaller teams are left to the scheduler."""
        cores = available_cores()
        worker = Worker(cores[index] if len(cores) == threads else None, self._yield)
        worker.start(index, self.work, f"thread {index + 1} of {threads}")
        if worker.is_greenlet:
            worker.stop()
            self._greenlets = True
            notice("threads are greenlets here (gevent, eventlet), so steps run on one thread")
        else:
            self._workers.append(worker)

    # --- ending -----------------------------------------------------------------------------

    def close(self) -> None:
        """Dissolve the team; its threads end."""
        if not self.stopped:
            self.stopped = True
            for worker in self._workers:
                worker.stop()
            if self.is_ours:
                for worker in self._workers:
                    worker.join()

    def __del__(self) -> None:
        with contextlib.suppress(BaseException):  # at interpreter exit anything may be gone
            for worker in self._workers:
                worker.stop()


class Held(NamedTuple):
    """What a running step has taken: cores, and the workers for all but the calling thread."""

    threads: int
    workers: list[Worker]


class Worker:
    """A thread with a mailbox. It ends when it is told to, or when its team is gone."""

    def __init__(self, core: int | None, give_way: int) -> None:
        memory = np.zeros(BOX_BYTES + 64, np.uint8)
        self.box = -(-memory.ctypes.data // 64) * 64
        self.words = memory[self.box - memory.ctypes.data :][:BOX_BYTES].view(np.int64)
        self.words[BOX_YIELD // 8] = give_way
        self.wake, self.parked, self.core = threading.Event(), False, core
        self._thread: threading.Thread | None = None

    def start(self, index: int, work: Any, what: str) -> None:
        """Raises ResourceError, which says `what`, where the system gives no thread."""
        name = f"edgert-{index}"
        self._thread = threading.Thread(target=_live, args=(self, work), name=name, daemon=True)
        start_thread(self._thread, what)

    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_greenlet(self) -> bool:
        """Whether what was started is no thread of the system: libraries that patch `threading`
        run it in turn with whoever started it."""
        started = self._thread
        return started is not None and started.native_id == threading.get_native_id()

    def stop(self) -> None:
        """Tell it to end."""
        self.words[BOX_STOP // 8] = 1
        self.wake.set()

    def join(self) -> None:
        """Wait until it has ended."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)


def _live(worker: Worker, work: Any) -> None:
    """A worker's life: run steps while they come, park when they do not, end when told."""
    if worker.core is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {worker.core})
    seen = 0
    while True:
        seen = work(worker.box, seen, PATIENCE)
        if seen < 0:
            break
        worker.wake.clear()
        worker.parked = True
        if worker.words[BOX_GO // 8] == seen and worker.words[BOX_STOP // 8] == 0:
            worker.wake.wait()
        worker.parked = False


class _Blocks:
    """Blocks of one size on cache lines, reused and never freed while the team lives."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._free: list[int] = []
        self._memory: list[NDArray[np.uint8]] = []
        self._words: dict[int, ctypes.c_int64] = {}

    def take(self) -> int:
        with self._lock:
            if self._free:
                return self._free.pop()
            memory = np.zeros(self._size + 64, np.uint8)
            self._memory.append(memory)
            return -(-memory.ctypes.data // 64) * 64

    def give(self, address: int) -> None:
        with self._lock:
            self._free.append(address)

    def word(self, address: int, offset: int) -> ctypes.c_int64:
        """The word at an offset of a block."""
        word = self._words.get(address + offset)
        if word is None:
            word = self._words[address + offset] = ctypes.c_int64.from_address(address + offset)
        return word


_lock = threading.Lock()
_team: Team | None = None


def join(threads: int) -> Team:
    """The process's team, with cores and workers for `threads` threads. Raises ResourceError where
    the system gives no more threads."""
    global _team
    with _lock:
        if _team is None or _team.stopped:
            _team = Team()
        try:
            _team.ensure(threads)
        except BaseException:
            if _team.users == 0:
                _team.close()
            raise
        _team.users += 1
        return _team


def leave(team: Team) -> None:
    """One user less; the last one dissolves the team."""
    with _lock:
        team.users -= 1
        if team.users == 0:
            team.close()


def _forget() -> None:
    """In a forked child: the threads did not come along, and a lock may be held for ever."""
    global _lock, _team
    _lock, _team = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
