"""A pool of worker processes, each with a pipe of its own.

Unlike `concurrent.futures.ProcessPoolExecutor` a pipe says whose job a killed worker had, so that
only that one is computed again and an error names it; a worker that is killed while hundreds of
megabytes are on their way to it leaves nobody waiting; and all can be ended at once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from ..errors import ConvertError, ResourceError
from . import blas
from .job_line import Function, Job, Line

ENDING = 10.0  # seconds until a process that was killed must be gone
_SPAWN = multiprocessing.get_context("spawn")
_environment = threading.Lock()


class Processes:
    """`Workers` of `count` processes, started when there is a job for them, each with `threads`
    BLAS threads. They ignore Ctrl-C, which is this process's to handle, and end with it."""

    def __init__(self, count: int, threads: int) -> None:
        self.count, self.threads = count, threads
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._running = False

    def run(
        self, function: Function, jobs: Iterable[Any], *, names: Iterable[str] | None = None
    ) -> Iterator[Any]:
        if self._running:
            raise ValueError("these workers are at work, expected their results to be taken first")
        self._running = True
        line = Line(jobs, names, ahead=2 * self.count)
        busy: dict[Connection, tuple[_Worker, Job]] = {}
        try:
            while not line.over:
                self._give(function, line, busy)
                yield from line.ready()
                for pipe in wait(list(busy)) if busy else ():
                    self._take(line, *busy.pop(pipe))  # type: ignore[call-overload]
        finally:
            self._running = False
            for worker, _ in busy.values():
                self._end(worker)

    def _give(
        self, function: Function, line: Line, busy: dict[Connection, tuple[_Worker, Job]]
    ) -> None:
        """Jobs to whoever has none."""
        while len(busy) < self.count and (job := line.next()) is not None:
            worker = self._idle.pop() if self._idle else self._start(job)
            busy[worker.pipe] = (worker, job)
            try:
                data = ForkingPickler.dumps((function, job.value))
                worker.pipe.send_bytes(data)
            except OSError:  # it is gone, and `wait` will say so
                pass
            except Exception as error:  # a job that cannot be pickled
                del busy[worker.pipe]
                self._idle.append(worker)
                line.finish(job, error=error)

    def _take(self, line: Line, worker: _Worker, job: Job) -> None:
        """The answer of a worker, or the news that there is none."""
        try:
            done, value, trace = ForkingPickler.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            line.killed(job, self._end(worker))
            return
        self._idle.append(worker)
        if not done:
            value.__cause__ = _Remote(trace)
        line.finish(job, *((value,) if done else (None, value)))

    def _start(self, job: Job) -> _Worker:
        try:
            worker = _Worker(self.threads)
        except OSError as error:
            raise ResourceError(
                f"{job.name}: worker {len(self._all) + 1} of {self.count} could not be started: "
                f"{error.strerror or error}",
                code="worker-start",
                hint="use fewer workers, or allow more processes (ulimit -u)",
            ) from None
        self._all.add(worker)
        return worker

    def _end(self, worker: _Worker) -> str:
        self._all.discard(worker)
        return worker.end()

    def close(self) -> None:
        """End all of them at once."""
        for worker in self._all:
            worker.process.kill()
        while self._all:
            self._all.pop().end()
        self._idle.clear()


class _Worker:
    """One process and this side of its pipe."""

    def __init__(self, threads: int) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(
            target=_serve, args=(theirs,), name="edgert-worker", daemon=True
        )
        try:
            with _inherited(threads):
                self.process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()

    def end(self) -> str:
        """Kill it if it lives; how it ended."""
        self.pipe.close()
        self.process.join(0.1)  # one that ended by itself has an exit code of its own
        self.process.kill()
        self.process.join(ENDING)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
        return f"by signal {-code}"


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """What a process started here inherits: BLAS threads, before anything is imported there, and no
    Ctrl-C until it can ignore it."""
    with _environment:
        before = {name: os.environ.get(name) for name in blas.VARIABLES}
        mask = getattr(signal, "pthread_sigmask", None)
        blocked = mask(signal.SIG_BLOCK, {signal.SIGINT}) if mask else None
        os.environ.update(dict.fromkeys(blas.VARIABLES, str(threads)))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            if mask and blocked is not None:
                mask(signal.SIG_SETMASK, blocked)


class _Remote(Exception):
    """Where in a worker an error was raised, as text."""


def _serve(pipe: Connection) -> None:
    """A worker's life: jobs in, answers out, until the other side closes or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # where memory ends, Linux takes a worker, not its parent
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(data: bytes) -> Any:
    """(whether it is a result, the result or error, its traceback), pickled."""
    try:
        function, job = ForkingPickler.loads(data)
        del data
        return ForkingPickler.dumps((True, function(job), ""))
    except BaseException as error:
        trace = traceback.format_exc()
        try:
            answer = ForkingPickler.dumps((False, error, trace))
            ForkingPickler.loads(answer)
            return answer
        except Exception:
            plain = ConvertError(f"{type(error).__name__}: {error}", code="worker-error")
            return ForkingPickler.dumps((False, plain, trace))
