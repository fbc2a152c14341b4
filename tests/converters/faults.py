"""Breaking a conversion at its Nth step: every write, sync and rename it makes is one step.

As a script (`python -m tests.converters.faults CHECKPOINT OUT STEP`) it converts and kills itself
with SIGKILL at that step.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from edgert.converters.convert import ConvertReport, convert
from edgert.converters.stages.weight_cache import WeightCache

import edgert.bundle.writer
import edgert.storage.replace

STEPS: tuple[tuple[Any, str], ...] = (
    (WeightCache, "write"),
    (WeightCache, "finish"),
    (WeightCache, "deliver"),
    (Path, "write_bytes"),
    (os, "fsync"),
    (os, "link"),
    (os, "rename"),
    (os, "replace"),
    (edgert.storage.replace, "_swap"),
)


class Counter:
    """Counts steps; at number `stop` (from 1; 0: never) calls `act` before the step happens."""

    def __init__(self, stop: int, act: Callable[[], None]) -> None:
        self.count, self.stop, self.act = 0, stop, act
        self.names: list[str] = []

    def step(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.stop:
            self.act()

    def wrapped(self, owner: Any, name: str) -> Callable[..., Any]:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.step(name)
            return real(*args, **kwargs)

        return call


@contextmanager
def breaking(stop: int, act: Callable[[], None]) -> Iterator[Counter]:
    """Within the block, step `stop` of a conversion does `act` first."""
    counter = Counter(stop, act)
    with ExitStack() as stack:
        for owner, name in STEPS:
            stack.enter_context(mock.patch.object(owner, name, counter.wrapped(owner, name)))
        yield counter


def convert_tiny(checkpoint: Path, out: Path, **options: Any) -> ConvertReport:
    """A conversion without golden prompts, which replaces what is there: by rounding to nearest,
    unless a calibration text is given."""
    options = {"golden": False, "progress": False, "force": True, "threads": 1} | options
    options.setdefault("method", "gptq" if "calibration" in options else "rtn")
    return convert(checkpoint, out, **options)


def count_steps(checkpoint: Path, out: Path) -> list[str]:
    """Names of all steps of a whole conversion over an existing bundle."""
    with breaking(0, lambda: None) as counter:
        convert_tiny(checkpoint, out)
    return counter.names


if __name__ == "__main__":
    source, target, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with breaking(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        convert_tiny(source, target)
