"""Workers of a dask cluster (`pip install "edgert[cluster]"`), see `workers.py`.

A job travels pickled. Above SCATTERED bytes it goes to one worker as data, by the scheduler, as no
other machine need be within reach from here, and is computed where it lies. Each worker gets one
job more than it has threads, so that it need not wait for the next. dask itself computes small jobs
of a worker that was killed again (its allowed-failures); a large one is gone with the worker, and
is sent again from here.
"""

from __future__ import annotations

import pickle
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from ..errors import ConvertError, ResourceError
from ..extras import require
from . import blas
from .job_line import Function, Job, Line

CONNECT = 10.0  # seconds to reach the scheduler and to see a worker
DESERTED = 30.0  # seconds without any worker, after which it is given up
FETCH = 600.0  # for a result to arrive, computed again if its worker is gone by then
UNSENT = 8  # times that a job may fail to reach a worker
SCATTERED = 1 << 20
_LOOK = 0.5  # seconds between looks at what no callback tells


@contextmanager
def connected(address: str, threads: int) -> Iterator[Cluster]:
    """The workers of the scheduler at `address`. Raises ConvertError without the package or for a
    malformed address, ResourceError if nobody answers or there is no worker."""
    require("distributed", "working on a cluster", ConvertError)
    until = time.monotonic() + CONNECT
    client = _client(address)
    try:
        try:
            client.wait_for_workers(1, timeout=max(1.0, until - time.monotonic()))
        except TimeoutError:
            raise _unreachable(address, "has no workers, expected one at least") from None
        yield Cluster(client, address, threads)
    finally:
        client.close(timeout=CONNECT)


def _client(address: str) -> Any:
    """In a thread of its own: dask waits without end for a port that takes a connection and then
    says nothing. Such a thread stays behind."""
    from distributed import Client

    made: list[Any] = []
    client: Any = Client

    def connect() -> None:
        try:
            made.append(client(address, timeout=CONNECT, set_as_default=False))
        except Exception as error:
            made.append(error)

    thread = threading.Thread(target=connect, name="edgert-cluster", daemon=True)
    thread.start()
    thread.join(CONNECT + 1)
    found = made[0] if made else TimeoutError("it says nothing")
    if isinstance(found, OSError | TimeoutError):
        raise _unreachable(address, f"does not answer within {CONNECT:g} s: {found}")
    if isinstance(found, Exception):
        raise ConvertError(
            f"{address!r} is no address of a dask scheduler: {found}, expected tcp://host:port",
            code="cluster",
            hint="the scheduler prints its address when it starts",
        )
    return found


def _unreachable(address: str, what: str) -> ResourceError:
    return ResourceError(
        f"the dask scheduler at {address} {what}",
        code="cluster",
        hint="start one with `dask scheduler`, and `dask worker ADDRESS` on every machine; look at "
        "host, port and firewall",
    )


class _Task(NamedTuple):
    """A job that a worker has. data: its input there, kept until it is done."""

    job: Job
    future: Any
    data: Any
    worker: str


class Cluster:
    """`Workers` of a cluster."""

    def __init__(self, client: Any, address: str, threads: int) -> None:
        self.client, self.address, self.threads = client, address, threads

    def run(
        self, function: Function, jobs: Iterable[Any], *, names: Iterable[str] | None = None
    ) -> Iterator[Any]:
        line = Line(jobs, names, ahead=1)
        news: SimpleQueue[str] = SimpleQueue()
        tasks: dict[str, _Task] = {}
        seen = time.monotonic()
        try:
            while not line.over:
                seen = self._crew(seen)
                line.ahead = 2 * sum(self._places.values())
                while (free := self._free(tasks)) and (job := line.next()) is not None:
                    self._send(function, line, job, free, tasks, news)
                yield from line.ready()
                self._look(line, tasks, news)
        finally:
            if tasks and self.client.status == "running":  # else they went with it
                self.client.cancel([task.future for task in tasks.values()])

    def _crew(self, seen: float) -> float:
        """Ask which workers there are; when there last was one."""
        try:
            crew: Mapping[str, int] = self.client.nthreads()
        except Exception as error:
            raise _unreachable(self.address, f"is gone: {error}") from None
        self._places = {worker: threads + 1 for worker, threads in crew.items()}
        now = time.monotonic()
        if not crew and now - seen > DESERTED:
            raise _unreachable(self.address, f"has had no workers for {DESERTED:.0f} s")
        return now if crew else seen

    def _free(self, tasks: Mapping[str, _Task]) -> str:
        """The worker with most room for a job; empty if there is none."""
        room = dict(self._places)
        for task in tasks.values():
            if task.worker in room:
                room[task.worker] -= 1
        best = max(room, key=lambda worker: room[worker], default="")
        return best if best and room[best] > 0 else ""

    def _send(
        self, function: Function, line: Line, job: Job, worker: str,
        tasks: dict[str, _Task], news: SimpleQueue[str],
    ) -> None:  # fmt: skip
        try:
            payload = pickle.dumps((function, job.value), protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # a job that cannot be pickled
            line.finish(job, error=error)
            return
        data: Any = payload
        if len(payload) > SCATTERED:
            try:
                data = self.client.scatter(payload, workers=[worker], hash=False)
            except Exception as error:  # mostly: the worker went away in the meantime
                self._places.pop(worker, None)
                if job.unsent < UNSENT:
                    line.unsent(job)
                else:
                    line.finish(job, error=_not_computed(job, error))
                return
        # Where its data is, it goes. Told its worker by name it would wait for ever if that one is
        # gone, other workers allowed or not.
        future = self.client.submit(_compute, data, self.threads, pure=False)
        tasks[future.key] = _Task(job, future, data, worker)
        future.add_done_callback(lambda done: news.put(done.key))

    def _look(self, line: Line, tasks: dict[str, _Task], news: SimpleQueue[str]) -> None:
        """Wait for news, for a moment."""
        try:
            keys = {news.get(timeout=_LOOK)}
        except Empty:
            keys = {key for key, task in tasks.items() if task.future.status == "cancelled"}
            keys |= {key for key, task in tasks.items() if _input_lost(task)}
        for key in keys & set(tasks):
            task = tasks.pop(key)
            self._take(line, task)

    def _take(self, line: Line, task: _Task) -> None:
        from distributed import KilledWorker

        job = task.job
        try:
            done, value, trace = task.future.result(timeout=FETCH)
        except KilledWorker as error:
            job.tries += error.allowed_failures
            line.killed(job, f"on {error.last_worker.address}", again=False)
        except (CancelledError, TimeoutError):
            task.future.cancel()
            line.killed(job, f"on {task.worker}")
        except Exception as error:
            line.finish(job, error=_not_computed(job, error))
        else:
            if not done:
                value.__cause__ = RuntimeError(trace)
            line.finish(job, *((value,) if done else (None, value)))


def _not_computed(job: Job, error: Exception) -> ConvertError:
    return ConvertError(
        f"{job.name}: the cluster could not compute it: {type(error).__name__}: {error}",
        code="cluster",
        hint="install the same edgert, NumPy and dask on every worker as here",
        job=job.name,
    )


def _input_lost(task: _Task) -> bool:
    return getattr(task.data, "status", "") in ("cancelled", "lost")


def _compute(payload: bytes, threads: int) -> tuple[bool, Any, str]:
    """On a worker: (whether it is a result, the result or error, its traceback)."""
    blas.limit(threads)  # for good: another thread of this process may be computing as well
    try:
        function, job = pickle.loads(payload)  # noqa: S301 (from who may run anything here)
        return True, function(job), ""
    except Exception as error:
        return False, error, traceback.format_exc()
