"""Running answers: `Stream` for threads, `AsyncStream` for asyncio."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..session.engine import Engine
from ..session.lanes import closed
from .generate import AHEAD, Run
from .results import Generation

if TYPE_CHECKING:
    import asyncio  # otherwise where it is needed: threads do without its 12 ms


class _Answer:
    """What both kinds of streams share: a run, its engine, and how it ends."""

    def __init__(self, engine: Engine, run: Run) -> None:
        self._engine, self._run = engine, run
        self._submitted = self._raised = False

    @property
    def result(self) -> Generation:
        """The finished answer; RequestError while it is still being written or after a failure."""
        if self._run.result is None:
            raise RequestError(
                "the answer has no result: it did not start, is not finished, or failed",
                code="stream-unfinished",
                hint="read the stream to its end or close it first",
            )
        return self._run.result

    def cancel(self) -> None:
        """Stop this answer within one token, from any thread and at any time, also before its first
        piece; its finish_reason is "cancelled". Does not wait."""
        self._run.cancelled = True
        self._engine.poke()

    def _submit(self) -> None:
        """Let the answer begin, unless it has."""
        if self._run.cancelled and not self._submitted:
            self._end_unread()
        if not self._submitted:
            self._engine.check()
            self._run.begin()
            self._engine.submit(self._run)
            self._submitted = True

    def _end_unread(self) -> None:
        """Cancelled before it began: there is nothing to wait for."""
        self._submitted = True
        if not self._run.done:
            self._run.end(None)
            self._run.done = True

    def _next(self) -> str | None:
        """A piece that is there, None at the end. Raises what made the answer fail, once."""
        run = self._run
        if self._engine.closed and not self._raised and run.result is None:
            run.error = run.error or closed()
        if run.pieces and not getattr(run.error, "code", "") == "closed":
            return run.pieces.popleft()
        if run.error is not None and not self._raised:
            self._raised = True
            raise run.error
        return None

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None and self._submitted and not run.done:
            run.cancelled = True
            self._engine.poke()


class Stream(_Answer):
    """Iterates over text pieces of an answer; afterwards `result` is the whole Generation.

        with model.stream("Once upon a time") as stream:
            for piece in stream:
                print(piece, end="", flush=True)
        print(stream.result.finish_reason)

    Any thread may read, cancel or close it, and different threads different pieces. The answer
    begins with the first piece that is asked for, and is written up to 64 pieces ahead of its
    reader while others wait for theirs. `close`, leaving the with block, or dropping the stream
    stops the answer.
    """

    def __init__(self, engine: Engine, run: Run) -> None:
        super().__init__(engine, run)
        self._reading = threading.Lock()
        self._moved = False  # to an AsyncStream

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        self._engine.check_process()  # in a forked child nobody gives the lock back
        with self._reading:
            self._check_mine()
            run = self._run
            self._submit()
            if not run.pieces and not run.done:
                self._engine.wait(lambda: bool(run.pieces) or run.done)
            piece = self._next()
        if piece is None:
            raise StopIteration
        return piece

    def finish(self) -> Generation:
        """Read to the end and return the result."""
        self._engine.check_process()
        run = self._run
        with self._reading:
            self._check_mine()
            self._submit()
            run.ahead = 1 << 62
            self._engine.wait(lambda: run.done)
        for _ in self:
            pass
        return self.result

    def to_async(self) -> AsyncStream:
        """The same answer for asyncio, from the next piece on. From then on the answer is the other
        stream's: to read this one raises RequestError, and its end or `close` stop nothing."""
        self._engine.check_process()
        if not self._reading.acquire(blocking=False):
            raise RequestError(
                "another thread is reading this stream, it cannot become an AsyncStream now",
                code="busy",
                hint="call to_async before, or between two pieces",
            )
        try:
            self._check_mine()
            self._moved, self._run.ahead = True, AHEAD
            return AsyncStream(self._engine, self._run, begun=self._submitted)
        finally:
            self._reading.release()

    def close(self) -> None:
        """Stop now, from any thread. Closing twice is allowed."""
        if self._moved or self._engine.forked:
            return
        self._run.cancelled = True
        if not self._submitted:
            with self._reading:  # nobody waits with it before the answer has begun
                if not self._submitted and not self._moved:
                    self._end_unread()
        self._engine.settle(self._run)

    def _check_mine(self) -> None:
        if self._moved:
            raise RequestError(
                "this stream became an AsyncStream, which has its pieces now",
                code="stream-moved",
                hint="read what to_async returned",
            )

    def __del__(self) -> None:
        if not getattr(self, "_moved", True):
            super().__del__()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncStream(_Answer):
    """As `Stream`, for asyncio: the event loop never waits for the model.

        async for piece in model.astream("Once upon a time"):
            print(piece, end="", flush=True)

    A task that is cancelled while it waits for a piece cancels the answer.
    """

    def __init__(
        self,
        engine: Engine,
        run: Run,
        *,
        begun: bool = False,
        prepare: Callable[[], Awaitable[Run]] | None = None,
    ) -> None:
        """begun: whether the run is the engine's already. prepare: gives the run that takes the
        place of `run` when the answer begins."""
        super().__init__(engine, run)
        self._submitted, self._prepare, self._preparing = begun, prepare, False

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> str:
        await self._until_piece()
        piece = self._next()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def finish(self) -> Generation:
        """Read to the end and return the result."""
        async for _ in self:
            pass
        return self.result

    async def aclose(self) -> None:
        """Stop now; returns when the answer has ended. Closing twice is allowed."""
        if self._engine.forked:
            return
        self.cancel()
        if not self._submitted:
            self._end_unread()
        await ended(self._engine, self._run)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.aclose()

    async def _until_piece(self) -> None:
        self._engine.check_process()
        if not self._submitted:
            await self._begin()
        run = self._run
        if not run.pieces and not run.done:
            try:
                await self._news()
            except BaseException as error:
                self._stop_if_cancelled(error)
                raise
        if len(run.pieces) == AHEAD // 2 and not run.done:
            self._engine.in_background(run)  # it may have stopped at a full queue

    async def _begin(self) -> None:
        if self._prepare is not None and not self._run.cancelled:
            if self._preparing:
                raise _two_readers()
            self._preparing = True
            try:
                run = await self._prepare()
            except BaseException as error:
                self._stop_if_cancelled(error)
                raise
            finally:
                self._preparing = False
            if self._submitted:  # closed meanwhile
                return
            run.cancelled = self._run.cancelled
            self._run, self._prepare = run, None
        self._submit()

    def _stop_if_cancelled(self, error: BaseException) -> None:
        """A task that is cancelled stops its answer."""
        import asyncio

        if isinstance(error, asyncio.CancelledError):
            self.cancel()

    async def _news(self) -> None:
        """Wait until there is a piece, or the answer has ended."""
        import asyncio

        run, news = self._run, asyncio.Event()
        if run.on_piece is not None:
            raise _two_readers()
        run.on_piece = _teller(run, news)
        try:
            while not run.pieces and not run.done:
                news.clear()
                if not run.pieces and not run.done:
                    self._engine.in_background(run)
                    await news.wait()
        finally:
            run.on_piece = None


async def ended(engine: Engine, run: Run) -> None:
    """Wait until a run has ended that was cancelled; the event loop goes on meanwhile."""
    if run.done:
        return
    import asyncio

    over = asyncio.Event()
    tell = _teller(run, over)
    run.on_end.append(tell)
    try:
        while not run.done:
            engine.in_background(run)
            await over.wait()
    finally:
        run.on_end.remove(tell)


def _teller(run: Run, event: asyncio.Event) -> Callable[[], None]:
    """Sets an event of this task's loop, from any thread."""
    import asyncio

    loop = asyncio.get_running_loop()

    def tell() -> None:
        try:
            loop.call_soon_threadsafe(event.set)
        except RuntimeError:  # the loop was closed: nobody reads any more
            run.cancelled = True

    return tell


def _two_readers() -> RequestError:
    return RequestError(
        "two tasks read one answer at the same time",
        code="busy",
        hint="let one task read it, or ask once for each",
    )
