"""Work over a model's layers: in this process, by a pool of processes, or by a dask cluster.

    with open_workers(4) as workers:
        for factors in workers.run(factor, jobs, names=names):
            ...

Results come in the order of the jobs and are, bit for bit, the same whoever computes them, if that
is done with the same number of BLAS threads on the same kind of CPU (`blas.py`): a job is always
computed with `threads` of them, in this process too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import ConvertError, ResourceError
from . import blas

RETRIES = 2  # of a job whose worker was killed
Function = Callable[[Any], Any]


class Workers(Protocol):
    """Who computes; see `open_workers`."""

    def run(
        self, function: Function, jobs: Iterable[Any], *, names: Iterable[str] | None = None
    ) -> Iterator[Any]:
        """`function(job)` for each of `jobs`, in their order.

        jobs: taken from while results are, one for each worker at a time. function: picklable (of a
        module, by name), as are jobs and results, unless it all happens in this process. names: of
        the jobs, for messages. What `function` raises comes through as it is, in its place. A job
        whose worker is killed is computed again, twice at most, and then is a ResourceError that
        names it.
        """
        ...


@contextmanager
def open_workers(
    count: int = 1, cluster: str | None = None, *, threads: int = 1
) -> Iterator[Workers]:
    """Workers for the block; whatever ends it ends them.

    count: processes on this machine; 1 computes in this process, lazily (where BLAS cannot be told
    its threads, macOS's Accelerate and MKL, in one worker process). A script must then guard its
    main part by `if __name__ == "__main__"`, as for any use of multiprocessing. cluster: address of
    a dask scheduler, "tcp://host:port", whose workers have the same edgert and NumPy; count stays
    1, all of them work. threads: of BLAS, for one job. Raises ConvertError for numbers out of
    range, a missing package and an address that is none, ResourceError for a cluster that does not
    answer.
    """
    for what, number in (("count", count), ("threads", threads)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConvertError(f"{what} of workers is {number!r}, expected 1 or more")
    if cluster is not None:
        if count != 1:
            raise ConvertError(
                f"{count} workers and the cluster {cluster!r}, expected one of them",
                hint="the number of a cluster's workers is set where it is started",
            )
        from .cluster import connected

        with connected(cluster, threads) as workers:
            yield workers
    elif count == 1 and blas.settable():
        yield _Here(threads)
    else:
        from .processes import Processes

        pool = Processes(count, threads)
        try:
            yield pool
        finally:
            pool.close()


class _Here:
    """This process."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def run(
        self, function: Function, jobs: Iterable[Any], *, names: Iterable[str] | None = None
    ) -> Iterator[Any]:
        for job in jobs:
            with blas.limited(self.threads):
                result = function(job)
            del job  # its memory is free while the result is used
            yield result


@dataclass
class Job:
    """One of them, until it is done. tries: how often its worker was killed."""

    index: int
    name: str
    value: Any
    tries: int = 0


class Line:
    """Jobs on their way out, those to be done again first, and their results, back in order.

    ahead: how many jobs may be under way or wait for their turn as results.
    """

    def __init__(self, jobs: Iterable[Any], names: Iterable[str] | None, ahead: int) -> None:
        self._jobs, self._names = iter(jobs), iter(names or ())
        self._again: deque[Job] = deque()
        self._done: dict[int, tuple[Any, BaseException | None]] = {}
        self._sent = self._given = 0
        self._ended = False
        self.ahead = ahead

    @property
    def over(self) -> bool:
        """Whether all jobs were taken and all results given."""
        return self._ended and self._given == self._sent

    def next(self) -> Job | None:
        """The next job, None if there is none now."""
        if self._again:
            return self._again.popleft()
        if self._ended or self._sent - self._given >= self.ahead:
            return None
        index = self._sent
        try:
            value = next(self._jobs)
        except StopIteration:
            self._ended = True
            return None
        except Exception as error:  # comes after the results of the jobs before it
            self._ended = True
            self._sent += 1
            self._done[index] = (None, error)
            return None
        self._sent += 1
        return Job(index, next(self._names, f"job {index}"), value)

    def finish(self, job: Job, result: Any = None, error: BaseException | None = None) -> None:
        """What became of a job."""
        job.value = None
        self._done[job.index] = (result, error)

    def killed(self, job: Job, how: str, *, again: bool = True) -> None:
        """A job's worker ended before it was done. how: "it was killed by SIGKILL"."""
        job.tries += 1
        if again and job.tries <= RETRIES:
            self._again.append(job)
            return
        error = ResourceError(
            f"{job.name}: the worker that computed it ended {job.tries} times, the last time "
            f"{how}; expected it to finish",
            code="worker-killed",
            hint="mostly for want of memory: use fewer workers, close other programs, or take a "
            "machine with more memory",
            job=job.name,
        )
        self.finish(job, error=error)

    def ready(self) -> Iterator[Any]:
        """Results whose turn it is. Raises what their functions raised."""
        while self._given in self._done:
            result, error = self._done.pop(self._given)
            self._given += 1
            if error is not None:
                raise error
            yield result
            del result
