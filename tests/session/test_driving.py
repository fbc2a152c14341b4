"""Who drives the loop and who is told: nobody who waits is forgotten, whoever comes in between."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgert.errors import RequestError
from edgert.session import driving
from edgert.session.base import Feed, StepResult
from edgert.session.engine import Engine
from edgert.session.lanes import Lane, Waiter

HANGS = 20.0  # seconds after which a thread is taken for lost


class Count(Lane):
    """Feeds a number of single tokens to a state that is none."""

    def __init__(self, tokens: int = 1) -> None:
        super().__init__()
        self.left, self.ends, self.before = tokens, 0, lambda: None

    def open(self, session: Any) -> None:
        self.generating = True
        self.state = SimpleNamespace(  # type: ignore[assignment]
            length=0, pending=0, discard=lambda: None
        )

    def feed(self, rows: int, logits: int) -> Feed | None:
        return Feed(self.state, np.zeros(1, np.int32)) if self.state is not None else None

    def take(self, feed: Feed, result: StepResult) -> None:
        self.left -= 1
        self.before()
        self.finished = self.left <= 0

    def end(self, error: BaseException | None) -> None:
        self.ends += 1


class Broken(Count):
    def open(self, session: Any) -> None:
        raise RequestError("it went on without this one", code="stale")


class Unfed(Count):
    def feed(self, rows: int, logits: int) -> Feed | None:
        raise KeyError("mine")


class Steps:
    """A session that computes nothing, and keeps the turns."""

    max_rows, device = 64, "cpu"

    def __init__(self, vocab_size: int = 4) -> None:
        self.vocab_size, self.turns = vocab_size, list[int]()
        self.gate: Callable[[], Any] = lambda: None

    def step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        self.turns.append(len(feeds))
        self.gate()
        return [StepResult(np.zeros((1, self.vocab_size), np.float32)) for _ in feeds]


def engine(**options: Any) -> Engine:
    return Engine(Steps(options.pop("vocab_size", 4)), **options)  # type: ignore[arg-type]


def reader(loop: Engine, lane: Lane) -> threading.Thread:
    """A thread that reads a lane to its end."""

    def read() -> None:
        loop.submit(lane)
        loop.wait(lambda: lane.done)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def until(ready: Callable[[], bool]) -> None:
    ends = time.monotonic() + HANGS
    while not ready():
        assert time.monotonic() < ends, "it never came to that"
        time.sleep(0.0005)


def all_end(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join(HANGS)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"


# --- nobody is forgotten -------------------------------------------------------------------------


def test_settling_tells_the_readers() -> None:
    loop = engine()
    lanes = [Count(100) for _ in range(3)]
    loop._driver = object()  # somebody who drives, and goes without a word
    threads = [reader(loop, lane) for lane in lanes]
    until(lambda: len(loop._waiters) == 3)
    loop._driver = None
    for lane in lanes:
        lane.cancelled = True
    loop.settle(lanes[0])
    all_end(threads)


@pytest.mark.parametrize("seed", range(3))
def test_many_readers_and_many_who_close(seed: int) -> None:
    dice, loop, ends = random.Random(seed), engine(), time.monotonic() + 0.5
    loop.session.gate = lambda: time.sleep(0.0001)  # type: ignore[attr-defined]
    while time.monotonic() < ends:
        lanes = [Count(dice.randint(1, 4)) for _ in range(8)]

        def close(lanes: Sequence[Lane] = tuple(dice.sample(lanes, 6))) -> None:
            for lane in lanes:
                lane.cancelled = True
                if lane in [*loop._open, *loop._queue]:
                    loop.settle(lane)
                time.sleep(dice.random() * 0.0005)

        closers = [threading.Thread(target=close, daemon=True) for _ in range(2)]
        threads = [reader(loop, lane) for lane in lanes] + closers
        for thread in closers:
            thread.start()
        all_end(threads)
        assert [lane.ends for lane in lanes] == [1] * 8
    assert (loop._driver, loop._waiters, loop._open, len(loop._queue)) == (None, [], [], 0)


def test_one_who_is_to_drive_and_is_interrupted_passes_it_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, gate = engine(), threading.Event()
    loop.session.gate = lambda: gate.wait(HANGS)  # type: ignore[attr-defined]
    caught, first = list[BaseException](), Count()
    threads = [reader(loop, first)]
    until(lambda: loop._driver is not None)

    class Interrupted(Waiter):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            wait = self.condition.wait

            def interrupted() -> bool:
                wait()
                raise KeyboardInterrupt

            self.condition.wait = interrupted  # type: ignore[method-assign, assignment]

    def read() -> None:
        try:
            loop.wait(lambda: False)
        except KeyboardInterrupt as error:
            caught.append(error)

    monkeypatch.setattr(driving, "Waiter", Interrupted)
    threads.append(threading.Thread(target=read, daemon=True))
    threads[-1].start()
    until(lambda: len(loop._waiters) == 1)
    monkeypatch.undo()
    threads.append(reader(loop, Count(3)))
    until(lambda: len(loop._waiters) == 2)
    gate.set()
    all_end(threads)
    assert len(caught) == 1


def test_a_driver_that_is_interrupted_while_it_leaves_has_left() -> None:
    loop, lane = engine(), Count(3)
    leave = loop._leave

    def interrupted(me: object) -> None:
        loop._leave = leave  # type: ignore[method-assign]
        raise KeyboardInterrupt

    loop._leave = interrupted  # type: ignore[method-assign]
    loop.submit(lane)
    with pytest.raises(KeyboardInterrupt):
        loop.wait(lambda: lane.left < 3)
    assert (loop._driver, loop._driving) == (None, 0)
    all_end([reader(loop, Count())])


def test_a_poke_that_finds_the_lock_taken_is_made_up_for() -> None:
    """As by a finalizer or a signal that comes while the same thread has the lock."""
    loop, lane = engine(), Count(100)
    loop.submit(lane)

    class Queue(type(loop._queue)):  # type: ignore[misc]
        def append(self, x: Lane) -> None:
            super().append(x)
            lane.cancelled = True
            loop.poke()

    loop._queue = Queue(loop._queue)
    loop.submit(Count())
    assert (lane.done, len(loop._queue)) == (True, 1)


# --- lanes that fail, and that are many ----------------------------------------------------------


def test_lanes_that_do_not_open_stop_nobody() -> None:
    loop, good = engine(lanes=4), Count(2)
    lanes = [*(Broken() for _ in range(50)), good]
    for lane in lanes:
        loop.submit(lane)
    loop.wait(lambda: good.done)
    assert good.error is None
    assert {getattr(lane.error, "code", "") for lane in lanes[:-1]} == {"stale"}
    assert all(lane.done for lane in lanes)


def test_lanes_that_do_not_open_stop_nobody_in_the_background() -> None:
    loop, good = engine(lanes=4), Count(2)
    lanes = [*(Broken() for _ in range(50)), good]
    with loop._lock:
        loop._queue.extend(lanes)
        good.background = True
    for lane in lanes:
        loop.in_background(lane)
    until(lambda: all(lane.done for lane in lanes))
    assert (good.error, good.left) == (None, 0)


def test_a_turn_in_which_every_lane_fails_or_is_cancelled_is_not_the_last() -> None:
    loop, unfed, stopped, good = engine(lanes=1), Unfed(), Count(), Count()
    for lane in (unfed, stopped, good):
        loop.submit(lane)
    feeds = loop._feeds

    def cancel_late(lanes: list[Lane]) -> Any:
        stopped.cancelled = stopped.state is not None
        return feeds(lanes)

    loop._feeds = cancel_late  # type: ignore[method-assign]
    loop.wait(lambda: good.done)
    assert (type(unfed.error), stopped.left, stopped.done) == (KeyError, 1, True)
    assert (good.error, good.left) == (None, 0)


def test_more_lanes_than_rows_of_logits_take_turns() -> None:
    loop = engine(vocab_size=1 << 20)  # eight rows of logits a step
    lanes = [Count(3) for _ in range(20)]
    for lane in lanes:
        loop.submit(lane)
    loop.wait(lambda: all(lane.done for lane in lanes))
    assert max(loop.session.turns) == 8  # type: ignore[attr-defined]
    assert all(lane.error is None for lane in lanes)


def test_memory_is_forgotten_with_its_owner() -> None:
    class Parked:
        def evict(self) -> None:
            pass

    loop = engine()
    kept = Parked()
    for _ in range(10):
        loop.park(Parked())
    loop.park(kept)
    gc.collect()
    assert [parked() for parked in loop._parked.values()] == [kept]
