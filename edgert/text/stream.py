"""A running answer, and the gate that lets one answer at a time use a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from types import TracebackType

from ..errors import RequestError
from .generate import Run
from .results import Generation


class Gate:
    """Lets one thread at a time use a model; others wait.

    The thread that is inside cannot enter again (it would wait for itself): RequestError.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self.closed = False
        self.cancel = threading.Event()

    def enter(self) -> None:
        """Wait for the model; raises RequestError when it is closed or already held here."""
        if self._owner == threading.get_ident():
            raise RequestError(
                "this thread already has an unfinished stream on the model",
                code="busy",
                hint="read the stream to its end or close it first",
            )
        self._lock.acquire()
        if self.closed:
            self._lock.release()
            raise closed()
        self._owner = threading.get_ident()
        self.cancel.clear()

    def leave(self) -> None:
        self._owner = None
        self._lock.release()

    def check_open(self) -> None:
        if self.closed:
            raise closed()

    def close(self) -> bool:
        """Mark closed and stop what runs. True when the caller may free the model now; False when
        this thread has a stream open, whose end frees it."""
        self.closed = True
        self.cancel.set()
        if self._owner == threading.get_ident():
            return False
        self._lock.acquire()
        self._lock.release()
        return True


def closed() -> RequestError:
    return RequestError(
        "the model is closed", code="closed", hint="load it again, or keep it open while it answers"
    )


class Stream:
    """Iterates over text pieces of an answer; afterwards `result` is the whole Generation.

        with model.stream("Once upon a time") as stream:
            for piece in stream:
                print(piece, end="", flush=True)
        print(stream.result.finish_reason)

    The model belongs to the stream from its first piece to its last; `close` (or leaving the with
    block, or dropping it) stops the answer and releases the model.
    """

    def __init__(
        self, gate: Gate, start: Callable[[], Run], done: Callable[[Run], None] | None = None
    ) -> None:
        """start: makes the run, inside the gate. done: called once when it ended, inside too."""
        self._runs: list[Run] = []
        self._pieces = _pieces(gate, start, done, self._runs)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def result(self) -> Generation:
        """The finished answer; RequestError while it is still being written or after a failure."""
        if not self._runs or self._runs[0].result is None:
            raise RequestError(
                "the answer has no result: it did not start, is not finished, or failed",
                code="stream-unfinished",
                hint="read the stream to its end or close it first",
            )
        return self._runs[0].result

    def finish(self) -> Generation:
        """Read to the end and return the result."""
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """Stop now. Closing twice is allowed."""
        self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _pieces(
    gate: Gate, start: Callable[[], Run], done: Callable[[Run], None] | None, runs: list[Run]
) -> Generator[str, None, None]:
    """The stream's body. It does not know the stream, so that a dropped stream ends at once and
    not when the garbage collector finds a cycle."""
    gate.enter()
    try:
        run = start()
        runs.append(run)
        pieces = iter(run)
        try:
            for piece in pieces:
                yield piece
                gate.check_open()
            gate.check_open()
        finally:
            pieces.close()
            if done is not None:
                done(run)
    finally:
        gate.leave()
