"""What the engine runs: a lane a request, and memory that is kept for later."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from ..errors import RequestError
from .base import Feed, Session, State, StepResult


class Lane(ABC):
    """One request. Only the thread that drives the loop calls its methods; flags are anyone's.

    state: its memory, None until it is opened and after it ended. cancelled: set it to end the lane
    within a step. finished: it has nothing more to feed. done: it ended, with `error` if it failed.
    generating: its prompt is fed. background: its reader cannot block. drafting: whether it feeds
    drafts, so that it wants to know what steps cost. guess_s: seconds that models guessed for it.
    """

    drafting = False
    guess_s = 0.0
    advanced = False  # whether its last feed got on without feeding anything

    def __init__(self) -> None:
        self.state: State | None = None
        self.cancelled = self.finished = self.done = False
        self.generating = self.background = False
        self.error: BaseException | None = None
        self.served = 0  # the turn that fed it last

    @abstractmethod
    def open(self, session: Session) -> None:
        """Take a state, empty or with the beginning of what is to be fed."""

    @abstractmethod
    def feed(self, rows: int, logits: int) -> Feed | None:
        """What to feed next: at most `rows` rows, `logits` of them with logits; None while it waits
        for its reader. Changes nothing that `take` does not expect: a feed may come to nothing."""

    def prepare(self, lanes: Sequence[Lane], rows: int, logits: int) -> None:  # noqa: B027
        """What several drafting lanes, this one among them, do in common before each is fed: at
        most `rows` rows, `logits` of them with logits."""

    @abstractmethod
    def take(self, feed: Feed, result: StepResult) -> None:
        """What the step made of the feed: commit it, and set `finished` after the last one."""

    @abstractmethod
    def end(self, error: BaseException | None) -> None:
        """The last call: give the state back or keep it; `done` is set after it."""

    @property
    def paused(self) -> bool:
        """Whether it waits for its reader."""
        return False

    def release(self) -> None:
        """Give the state's memory back; what it held is computed again when there is room."""
        if self.state is not None:
            self.state.close()
        self.state = None

    def notify(self) -> None:  # noqa: B027 (nobody to tell by default)
        """Something was taken, or the lane ended."""


class Parked(Protocol):
    """Memory kept for later, such as that of a conversation between two turns."""

    def evict(self) -> None:
        """Give it back."""


class Waiter:
    """A thread that waits until `ready()`, and what wakes it."""

    def __init__(self, ready: Callable[[], bool], lock: threading.Lock) -> None:
        self.ready, self.condition = ready, threading.Condition(lock)


def closed() -> RequestError:
    """The error of everything that uses a closed model."""
    return RequestError(
        "the model is closed", code="closed", hint="load it again, or keep it open while it answers"
    )


def forked() -> RequestError:
    """The error of everything that uses a model in a forked child."""
    return RequestError(
        "this model was loaded before a fork, its threads did not come along",
        code="fork",
        hint="load the model in the child process",
    )


def interrupted() -> RequestError:
    """The error of an answer whose step another caller's interrupt cut short."""
    return RequestError(
        "the thread that computed this answer was interrupted",
        code="interrupted",
        hint="ask again",
    )
