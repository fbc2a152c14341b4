"""Functions that workers run in tests: importable by name, in any process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from edgert.converters.compress.compot import Options, compot
from edgert.converters.compress.whiten import Gram, whiten


class Layer(NamedTuple):
    name: str
    weight: np.ndarray
    gram: np.ndarray
    rows: int


def layers(count: int, m: int = 192, n: int = 320, *, seed: int = 0) -> Iterator[Layer]:
    """Matrices of a size at which BLAS uses all threads it may."""
    for index in range(count):
        rng = np.random.default_rng(seed + index)
        x = rng.standard_normal((4 * m, m)) * np.arange(1, m + 1) ** -0.7
        yield Layer(f"l{index}", rng.standard_normal((m, n)), x.T @ x, len(x))


def factor(layer: Layer) -> tuple[np.ndarray, ...]:
    """What a conversion does with one matrix: whiten, then COMPOT."""
    whitening = whiten(Gram(layer.gram, layer.rows), name=layer.name)
    found = compot(layer.weight, whitening, 96, 24, Options(iterations=3), name=layer.name)
    return found.a, found.values, found.residual


def square(x: int) -> int:
    return x * x


def slow_square(job: tuple[int, float]) -> int:
    time.sleep(job[1])
    return job[0] ** 2


def where(_: Any) -> int:
    return os.getpid()


def refuse(x: int) -> int:
    if x == 2:
        raise KeyError(f"no {x}")
    return x


def exits(x: int) -> int:
    os._exit(7)


def memory(_: int) -> None:
    raise MemoryError


def die_once(job: tuple[Path, int, Any]) -> int:
    """Kills its process the first time that job 3 is computed."""
    folder, x, _ = job
    (folder / f"{x}.{os.getpid()}.{time.monotonic_ns()}").touch()
    if x == 3 and len(list(folder.glob("3.*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def die(x: int) -> int:
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def blas_threads(_: Any) -> tuple[str | None, int]:
    from edgert.converters import blas

    library = blas._library()
    return os.environ.get("OPENBLAS_NUM_THREADS"), library.get() if library else 0


def huge(x: int) -> np.ndarray:
    return np.full(3 << 20, x, np.uint8)
