"""Continuous batching: the requests of all callers as lanes of one loop over a session.

    engine = Engine(session)
    engine.submit(lane)                  # joins between two steps
    engine.wait(lambda: lane.ready)      # drives the loop, or waits for whoever does

A turn of the loop feeds what every open lane has to feed: first the tokens that are being
generated, then pieces of prompts. There is no thread of its own: of all callers that wait, one
drives the loop for everybody until it has what it waits for, then the next one does (`driving`).
Only asynchronous readers, which must not block, let a background thread wait for them.

A row's result does not depend on who else was in the step, so neither does a lane's text.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from ..errors import RequestError, ResourceError
from .base import Feed, Session, StepResult
from .costs import StepCosts, clock_for
from .driving import Driving
from .lanes import Lane, Parked, closed, interrupted
from .prefixes import PrefixCache

LANES = 32  # sequences that take part in a step
WAITING = 256  # requests that may wait for a lane, or for their readers
PROMPT_ROWS = 128  # prompt tokens in a step beside tokens that are being generated
FREED_PAGES = 16  # of beginnings that nobody uses, at a time, when memory is short
LOGIT_VALUES = 1 << 23  # float32 logits that one step may return (32 MB)


class Engine(Driving):
    """The loop over one session, which the engine neither owns nor closes.

    lanes: sequences that take part in a step. waiting: requests that may wait besides. prefixes:
    beginnings of texts that its lanes share; None: nothing is shared.
    """

    prefixes: PrefixCache | None = None

    def __init__(self, session: Session, *, lanes: int = LANES, waiting: int = WAITING) -> None:
        super().__init__()
        self.session, self.lanes, self.waiting = session, lanes, waiting
        self.closed = False
        self._queue: deque[Lane] = deque()  # without a state, in the order of their arrival
        self._open: list[Lane] = []
        self._parked: dict[int, weakref.ref[Parked]] = {}  # least recently parked first
        self._short = False  # of memory: nobody is admitted before somebody has ended
        self._turns = 0
        self.costs, self._clock = StepCosts(), clock_for(session.device)
        self._logit_rows = max(1, LOGIT_VALUES // session.vocab_size)
        self._thread: threading.Thread | None = None
        self._exiting = False

    # --- for callers --------------------------------------------------------------------------

    def check(self) -> None:
        """Raises RequestError in a forked child and after `close`."""
        self.check_process()
        if self.closed:
            raise closed()

    def submit(self, lane: Lane) -> None:
        """Let a lane take part. Raises RequestError when too many wait already."""
        self.check()
        with self._lock:
            if len(self._queue) >= self.waiting:
                raise RequestError(
                    f"{len(self._queue)} requests are waiting for this model, expected at most "
                    f"{self.waiting}",
                    code="queue-full",
                    hint="try again later, or close answers that nobody reads",
                )
            self._queue.append(lane)
        if self._poked:
            self.poke()

    def in_background(self, lane: Lane) -> None:
        """Drive the loop for a lane whose reader cannot block."""
        self.check_process()
        lane.background = True
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_background, args=(weakref.ref(self),), name="edgert-engine", daemon=True
                )
                self._thread.start()
                _running.add(self)
        if self._poked:
            self.poke()

    def park(self, memory: Parked) -> None:
        """Memory that may be evicted, least recently parked first, when room is needed. It is
        forgotten with its owner."""
        key, parked = id(memory), self._parked
        parked.pop(key, None)
        parked[key] = weakref.ref(memory, lambda _: parked.pop(key, None))

    def unpark(self, memory: Parked) -> None:
        """The memory is in use, or gone."""
        self._parked.pop(id(memory), None)

    def close(self, free: Callable[[], None]) -> None:
        """End every lane with an error and call `free` once no step runs. In a callback of the loop
        that happens when the turn is over."""
        self.closed = True
        if self.forked:  # the lock may have been held at the fork
            free()
            return
        if self._driving == threading.get_ident():
            self._at_end = free
            return
        with self._lock:
            while self._driver is not None:
                self._sleep(lambda: self._driver is None)
            self._sweep()
            self._wake()
        free()

    _at_end: Callable[[], None] | None = None

    # --- a turn -------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """One step with everybody who has something to feed; False where nobody had, and no lane
        ended or is about to."""
        with self._lock:
            ended = self._sweep()
            if self._waiters:
                self._wake()
            if self._queue:
                self._admit()
            lanes = sorted(self._open, key=_by_service) if len(self._open) > 1 else self._open[:]
        self._turns += 1
        watch = _Watch(self._clock, lanes) if any(lane.drafting for lane in lanes) else None
        fed = self._feeds(lanes)
        timed = watch is not None and bool(fed) and all(lane.generating for lane, _ in fed)
        try:
            done = self._step(fed)
            for lane, feed, result in done:
                self._take(lane, feed, result)
            if timed and watch is not None and len(done) == len(fed):
                rows = sum(feed.rows for _, feed in fed)
                self.costs.note(rows, len(fed), watch.seconds())
        except BaseException:  # an interrupt: the others feed the same again
            _discard(fed)
            raise
        return bool(fed) or ended or any(lane.cancelled or lane.advanced for lane in lanes)

    def _take(self, lane: Lane, feed: Feed, result: StepResult) -> None:
        if lane.cancelled:
            feed.state.discard()
            return
        try:
            lane.take(feed, result)
        except Exception as error:  # a callback's, or ours: it is this lane's alone
            self._fail(lane, error)
        except BaseException:
            self._fail(lane, interrupted())  # cut short in the middle, it cannot go on
            raise
        lane.notify()

    def _sweep(self) -> bool:
        ended = False
        for lanes in (self._open, self._queue):
            if not lanes:
                continue
            for lane in [x for x in lanes if x.cancelled or x.finished or self.closed]:
                lanes.remove(lane)
                self._short, ended = False, True
                if self.closed and not lane.finished:
                    lane.error = lane.error or closed()
                self._end(lane)
        if self.closed and self._at_end is not None:
            free, self._at_end = self._at_end, None
            free()
        return ended

    def _end(self, lane: Lane) -> None:
        try:
            lane.end(lane.error)
        except Exception as error:
            lane.error = error
        except BaseException:
            lane.error = lane.error or interrupted()
            raise
        finally:
            lane.done = True
            lane.notify()

    def _admit(self) -> None:
        """Open lanes in the order of their arrival; those that fail, and those that wait for
        readers, do not count."""
        busy = sum(not lane.paused for lane in self._open)
        if self._short and busy:
            return
        while self._queue and busy < self.lanes:
            lane = self._queue.popleft()
            self._open.append(lane)
            try:
                lane.open(self.session)
            except Exception as error:
                self._fail(lane, error)
            except BaseException:
                self._fail(lane, interrupted())
                raise
            else:
                busy += 1

    def _feeds(self, lanes: list[Lane]) -> list[tuple[Lane, Feed]]:
        """Feeds of one step: tokens that are being generated, then prompts."""
        rows, logits = self.session.max_rows, self._logit_rows
        lanes = [x for x in lanes if not (x.cancelled or x.finished or x.paused)]
        if len(lanes) == 1:  # the short way to the same
            alone = self._feed(lanes[0], rows, logits)
            return [] if alone is None else [(lanes[0], alone)]
        fed: list[tuple[Lane, Feed]] = []
        generating = [x for x in lanes if x.generating][: min(self.lanes, rows, logits)]
        prompts = [x for x in lanes if not x.generating]
        self._prepare([x for x in generating if x.drafting], rows, logits)
        for left, lane in zip(range(len(generating), 0, -1), generating, strict=True):
            if feed := self._feed(lane, min(PROMPT_ROWS, rows - left + 1), logits - left + 1):
                fed.append((lane, feed))
                rows -= feed.rows
                logits -= feed.rows if feed.logits == "all" else 1
        rows = min(rows, PROMPT_ROWS) if fed else rows
        for lane in prompts:
            if rows < 1 or logits < 1 or len(fed) >= self.lanes:
                break
            if feed := self._feed(lane, rows, logits):
                fed.append((lane, feed))
                rows -= feed.rows
                logits -= {"all": feed.rows, "last": 1, "none": 0}[feed.logits]
        return fed

    def _prepare(self, lanes: list[Lane], rows: int, logits: int) -> None:
        """Have lanes that draft do so in common."""
        if len(lanes) < 2:
            return
        try:
            share = rows // len(lanes), logits // len(lanes)
            lanes[0].prepare(lanes, *share)
        except Exception as error:  # of a draft model: it is theirs
            for lane in lanes:
                self._fail(lane, error)

    def _feed(self, lane: Lane, rows: int, logits: int) -> Feed | None:
        try:
            feed = lane.feed(rows, logits)
        except Exception as error:
            self._fail(lane, error)
            return None
        if feed is not None:
            lane.served = self._turns
        return feed

    def _step(self, fed: list[tuple[Lane, Feed]]) -> list[tuple[Lane, Feed, StepResult]]:
        """The step; less what failed. Where memory was short nothing has happened but that there is
        room now, and the next turn feeds again."""
        if not fed:
            return []
        before = [feed.state.length for _, feed in fed] if len(fed) > 1 else []
        try:
            results = self.session.step(_feeds(fed))
            return [(*pair, result) for pair, result in zip(fed, results, strict=True)]
        except ResourceError as error:
            _discard(fed)
            self._make_room([lane for lane, _ in fed], error)
            return []
        except Exception as error:
            _discard(fed)
            if len(fed) == 1:
                self._fail(fed[0][0], error)
                return []
        pairs = zip(fed, before, strict=True)
        same = [pair for pair, length in pairs if pair[1].state.length == length]
        return [done for pair in same for done in self._step([pair])]

    def _make_room(self, fed: list[Lane], error: ResourceError) -> None:
        """Give up the memory that is missed least: beginnings that nobody uses, parked memory,
        lanes that were not fed, then the lane that came last."""
        if self.prefixes is not None and self.prefixes.free(FREED_PAGES):
            return
        with self._lock:
            for key in list(self._parked):
                parked = self._parked.pop(key, None)
                if parked is not None and (memory := parked()) is not None:
                    memory.evict()
                    return
            mine = {id(lane) for lane in fed}
            others = [x for x in self._open if id(x) not in mine and x.state is not None]
            lanes = others or [x for x in self._open if id(x) in mine][1:]
            if not lanes:
                self._fail(fed[0], error)
                return
            victim = lanes[-1]
            victim.release()
            self._open.remove(victim)
            self._queue.appendleft(victim)
            self._short = True

    def _fail(self, lane: Lane, error: BaseException) -> None:
        """The next sweep ends it."""
        lane.error, lane.cancelled = error, True

    # --- the background -----------------------------------------------------------------------

    def _has_background_work(self) -> bool:
        if self._exiting:
            return False
        lanes = [*self._queue, *self._open]
        return any(x.background and (x.cancelled or not x.paused) for x in lanes)

    def stop(self) -> None:
        """End the background thread; at exit."""
        self._exiting = True
        thread = self._thread
        if thread is not None and not self.forked:
            thread.join(10)


class _Watch:
    """What a turn takes, less what models guessed in it: that is counted apart."""

    def __init__(self, clock: Callable[[], float], lanes: Sequence[Lane]) -> None:
        self._clock, self._lanes = clock, lanes
        self._guessed, self._start = self._guesses(), clock()

    def _guesses(self) -> float:
        return sum([lane.guess_s for lane in self._lanes])

    def seconds(self) -> float:
        return self._clock() - self._start - (self._guesses() - self._guessed)


_running: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for engine in list(_running):
        engine.stop()


def _background(reference: weakref.ref[Engine]) -> None:
    """The background thread: it lives while asynchronous readers have lanes that can go on."""
    engine = reference()
    while engine is not None:
        try:
            engine.wait(lambda: not engine._has_background_work())
        except BaseException as error:  # the readers must hear of it
            with engine._lock:
                for lane in [*engine._queue, *engine._open]:
                    if lane.background:
                        engine._fail(lane, error)
                engine._sweep()
                engine._wake()
        with engine._lock:
            if not engine._has_background_work():
                engine._thread = None
        if engine._poked:
            engine.poke()
        if engine._thread is not threading.current_thread():
            return


def _by_service(lane: Lane) -> int:
    return lane.served


def _feeds(fed: list[tuple[Lane, Feed]]) -> list[Feed]:
    return [feed for _, feed in fed]


def _discard(fed: list[tuple[Lane, Feed]]) -> None:
    for _, feed in fed:
        if feed.state.pending:
            feed.state.discard()
