"""Which of the threads that wait drives the loop, and who is told when.

Of all threads in `wait`, one at most is the driver; it alone calls `_turn`, without the lock. What
holds whenever nobody has the lock:

1. Where nobody drives and somebody waits, one of the waiting is notified and on its way: it will
   drive, or tell the next one that nobody does. So a thread that leaves `wait`, whatever for, and
   sees that nobody drives calls `_wake`.
2. Who has what it waits for is notified. That can change in a turn and in a sweep only, so each
   turn begins, and each sweep by somebody who does not drive ends, with `_wake`.
3. A cancelled lane is ended by the driver's next sweep; where nobody drives, by `poke`. Where
   `poke` finds the lock taken it leaves `_poked` behind, and who held the lock pokes for it.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from ..errors import RequestError
from .lanes import Lane, Waiter, forked


class Driving(ABC):
    """A loop without a thread of its own; `Engine` says what a turn of it is."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._driver: object | None = None
        self._driving = 0  # identity of the thread that drives; only that thread makes it its own
        self._waiters: list[Waiter] = []
        self._poked = False

    @abstractmethod
    def _turn(self) -> bool:
        """A turn of the loop, by the driver; False where nothing could go on."""

    @abstractmethod
    def _sweep(self) -> bool:
        """End what is cancelled or done: whether anything was. Called with the lock, and not during
        a step."""

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that the loop belongs to: its locks may be held
        by threads that did not come along."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raises RequestError in a forked child."""
        if os.getpid() != self._process:
            raise forked()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Return once `ready()`, which must need no lock; drive the loop until then, or wait while
        another thread does. Raises RequestError where a callback of the loop waits for the loop."""
        if ready():
            return
        self.check_process()
        me = object()
        try:
            if self._drives(ready, me):
                while not ready():
                    if not self._turn() and not ready():
                        raise RuntimeError("a reader waits and no lane has anything to feed")
        finally:
            if self._driver is me:
                try:
                    self._leave(me)
                except BaseException:  # an interrupt that comes just now
                    self._leave(me)
                    raise
            if self._poked:
                self.poke()

    def settle(self, lane: Lane) -> None:
        """Wait until a cancelled lane has ended, which takes a step at most."""
        if lane.done or self.forked:
            return
        with self._lock:
            if self._driver is None:
                self._sweep()
                self._wake()
        if self._poked:
            self.poke()
        if not lane.done and self._driving != threading.get_ident():
            self.wait(lambda: lane.done)

    def poke(self) -> None:
        """After a lane was cancelled: end it now if nobody drives. Never waits; for finalizers,
        signal handlers and event loops."""
        self._poked = True
        while self._poked and not self.forked and self._lock.acquire(blocking=False):
            try:
                self._poked = False
                if self._driver is None:
                    self._sweep()
                    self._wake()
            finally:
                self._lock.release()

    def _drives(self, ready: Callable[[], bool], me: object) -> bool:
        """Whether this thread is to drive now; False once it is ready."""
        with self._lock:
            if self._driving == threading.get_ident():
                raise RequestError(
                    "a callback of an answer waits for another answer of the same model",
                    code="busy",
                    hint="start it from another thread, or after this answer",
                )
            try:
                while not ready():
                    if self._driver is None:
                        self._driver, self._driving = me, threading.get_ident()
                        return True
                    self._sleep(ready)
            finally:
                if self._driver is None:  # perhaps it was told to drive
                    self._wake()
        return False

    def _sleep(self, ready: Callable[[], bool]) -> None:
        """Until it is notified. Called with the lock, which is free meanwhile."""
        waiter = Waiter(ready, self._lock)
        self._waiters.append(waiter)
        try:
            waiter.condition.wait()
        finally:
            self._waiters.remove(waiter)

    def _leave(self, me: object) -> None:
        """Drive no more, and let another one."""
        with self._lock:
            if self._driver is me:
                self._driver, self._driving = None, 0
            if self._driver is None:
                self._sweep()
                self._wake()

    def _wake(self) -> None:
        """Wake who has what it waits for, and one who drives on. Called with the lock."""
        heir = self._driver is None
        for waiter in self._waiters:
            if waiter.ready():
                waiter.condition.notify()
            elif heir:
                heir = False
                waiter.condition.notify()
