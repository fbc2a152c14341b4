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
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

from .. import limits
from ..errors import ConvertError
from . import blas
from .job_line import Function


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
    count: int = 1, cluster: str | None = None, *, threads: int = 1, local: int = 1
) -> Iterator[Workers]:
    """Workers for the block; whatever ends it ends them.

    count: processes on this machine; 1 computes in this process, lazily (where BLAS cannot be told
    its threads, macOS's Accelerate and MKL, in one worker process). A script must then guard its
    main part by `if __name__ == "__main__"`, as for any use of multiprocessing. cluster: address of
    a dask scheduler, "tcp://host:port", whose workers have the same edgert and NumPy; count stays
    1, all of them work. threads: of BLAS, for one job. Raises ConvertError for numbers out of
    range, a missing package and an address that is none, ResourceError for a cluster that does not
    answer. local: jobs that this process computes at a time, in threads, where it does.
    """
    check(count, cluster, threads=threads, local=local)
    if cluster is not None:
        from .cluster import connected

        with connected(cluster, threads) as workers:
            yield workers
    elif count == 1 and blas.settable():
        yield _Here(threads) if local == 1 else _Threads(threads, local)
    else:
        from .processes import Processes

        pool = Processes(count, threads)
        try:
            yield pool
        finally:
            pool.close()


def check(count: int, cluster: str | None, **others: int) -> None:
    """Raise ConvertError for numbers out of range, and for workers beside a cluster."""
    for what, number in {"count": count, **others}.items():
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not whole or not 1 <= number <= limits.WORKERS:
            raise ConvertError(
                f"{what} of workers is {str(number)[:80]}, expected 1 to {limits.WORKERS}",
                code="workers",
            )
    if cluster == "":
        raise ConvertError("the cluster is an empty text, expected an address", code="cluster")
    if cluster is not None and count != 1:
        raise ConvertError(
            f"{count} workers and the cluster {cluster!r}, expected one of them",
            hint="the number of a cluster's workers is set where it is started",
        )


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


class _Threads:
    """This process, several jobs at a time."""

    def __init__(self, threads: int, local: int) -> None:
        self.threads, self.local = threads, local

    def run(
        self, function: Function, jobs: Iterable[Any], *, names: Iterable[str] | None = None
    ) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        with (
            blas.limited(self.threads),
            ThreadPoolExecutor(self.local, "edgert-matrix") as pool,
        ):
            try:
                for job in jobs:
                    waiting.append(pool.submit(function, job))
                    del job
                    if len(waiting) >= self.local:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
