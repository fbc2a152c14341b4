"""Work over a model's layers: in this process, in several, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Workers(Protocol):
    def run(
        self, function: Callable[[Any], Any], jobs: Iterable[Any], *, names: Iterable[str] | None = None
    ) -> Iterator[Any]: ...


class _Here:
    def run(
        self, function: Callable[[Any], Any], jobs: Iterable[Any], *, names: Iterable[str] | None = None
    ) -> Iterator[Any]:
        return map(function, jobs)


@contextmanager
def open_workers(count: int = 1, cluster: str | None = None, *, threads: int = 1) -> Iterator[Workers]:
    yield _Here()
