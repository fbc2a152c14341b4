"""Logits of a whole text, as a lane of the engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..session.base import Feed, Session, StepResult
from ..session.engine import Engine
from ..session.lanes import Lane


class LogitsLane(Lane):
    """Feeds `ids` (int32 [T]) and keeps the logits: `rows`, float32 [n, V] a step, T in all."""

    def __init__(self, ids: NDArray[np.int32]) -> None:
        super().__init__()
        self.ids, self.rows = ids, list[NDArray[np.float32]]()

    def open(self, session: Session) -> None:
        self.state, self.rows = session.new_state(len(self.ids)), []

    def feed(self, rows: int, logits: int) -> Feed | None:
        if self.state is None:
            return None
        first = self.state.length
        return Feed(self.state, self.ids[first : first + min(rows, logits)], "all")

    def take(self, feed: Feed, result: StepResult) -> None:
        self.rows.append(result.logits)
        feed.state.commit(feed.rows)
        self.finished = feed.state.length == len(self.ids)

    def end(self, error: BaseException | None) -> None:
        self.release()


def run_lane(engine: Engine, lane: Lane) -> None:
    """Let a lane run to its end. Raises what made it fail."""
    engine.check()
    engine.submit(lane)
    try:
        engine.wait(lambda: lane.done)
    finally:
        lane.cancelled = True
        engine.settle(lane)
    if lane.error is not None:
        raise lane.error
