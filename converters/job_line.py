"""Jobs on their way to workers and results on their way back, in one order; see `workers.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ResourceError

RETRIES = 2  # of a job whose worker was killed
Function = Callable[[Any], Any]


@dataclass
class Job:
    """One of them, until it is done. tries: how often its worker was killed. unsent: how often it
    did not reach one."""

    index: int
    name: str
    value: Any
    tries: int = 0
    unsent: int = 0


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

    def unsent(self, job: Job) -> None:
        """A job did not reach its worker."""
        job.unsent += 1
        self._again.append(job)

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
