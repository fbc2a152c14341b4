"""Placement of values in one arena: memory is shared by values that are never needed together."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

LINE = 64  # bytes; every value begins on a cache line


class Access(Protocol):
    """What placement reads of an instruction."""

    @property
    def reads(self) -> Sequence[str]: ...
    @property
    def writes(self) -> str: ...
    @property
    def in_place(self) -> str: ...
    @property
    def barrier(self) -> int: ...


def place(
    steps: Sequence[Access], sizes: Mapping[str, int], apart: Iterable[str]
) -> tuple[dict[str, int], int]:
    """Offset of every value with a size but those kept `apart`, and the arena's bytes.

    A value lives from the step that writes it to the last that reads it, and until a barrier has
    followed that one: before it, a slower thread may still read. An in-place step's result takes
    over the memory of what it read. First fit over the free ranges, in the order of first use.
    """
    outside = set(apart)
    home, first, last = _lives(steps, outside)
    ending: dict[int, list[str]] = {}
    for name, index in last.items():
        ending.setdefault(index, []).append(name)
    starting: dict[int, list[str]] = {}
    for name, index in first.items():
        starting.setdefault(index, []).append(name)
    arena, offsets = Arena(), dict[str, int]()
    for index in range(len(steps)):
        for name in starting.get(index, ()):
            if name in sizes and name not in outside:
                offsets[name] = arena.take(sizes[name])
        for name in ending.get(index, ()):
            if name in offsets:
                arena.give(offsets[name], sizes[name])
    offsets.update({name: offsets[other] for name, other in home.items() if other in offsets})
    return offsets, arena.size


def _lives(
    steps: Sequence[Access], outside: set[str]
) -> tuple[dict[str, str], dict[str, int], dict[str, int]]:
    """Whose memory a value has taken over, and the first and last step that touches each."""
    home: dict[str, str] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    settled = _settled(steps)
    for index, step in enumerate(steps):
        if step.in_place and step.writes not in outside:
            home[step.writes] = home.get(step.in_place, step.in_place)
        for name in (*step.reads, step.writes):
            name = home.get(name, name)
            first.setdefault(name, index)
            last[name] = index
    return home, first, {name: settled[index] for name, index in last.items()}


def _settled(steps: Sequence[Access]) -> list[int]:
    """For each step, the first from it on that always ends in a barrier."""
    settled, following = [0] * len(steps), len(steps) - 1
    for index in reversed(range(len(steps))):
        if steps[index].barrier == 1:
            following = index
        settled[index] = following
    return settled


class Arena:
    """Ranges of one block of memory, handed out first fit; free neighbours merge."""

    def __init__(self) -> None:
        self.size = 0
        self._starts: list[int] = []  # of the free ranges, rising
        self._stops: dict[int, int] = {}

    def take(self, nbytes: int) -> int:
        """Offset of `nbytes`, rounded up to whole cache lines."""
        nbytes = -(-nbytes // LINE) * LINE
        for index, start in enumerate(self._starts):
            stop = self._stops[start]
            if stop - start >= nbytes or stop == self.size:
                del self._starts[index], self._stops[start]
                self.size = max(self.size, start + nbytes)
                if start + nbytes < stop:
                    self._add(start + nbytes, stop)
                return start
        self.size += nbytes
        return self.size - nbytes

    def give(self, start: int, nbytes: int) -> None:
        """Take a range back."""
        stop = start + -(-nbytes // LINE) * LINE
        index = bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] == stop:
            stop = self._stops.pop(self._starts.pop(index))
        if index and self._stops[self._starts[index - 1]] == start:
            start = self._starts.pop(index - 1)
        self._add(start, stop)

    def _add(self, start: int, stop: int) -> None:
        insort(self._starts, start)
        self._stops[start] = stop
