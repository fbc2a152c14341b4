"""Random GGUF files: each is read, or refused with a BundleError. Nothing else may happen.

    python -m tests.hostile.fuzz_gguf --files 1000000 --seed 0
    python -m tests.hostile.fuzz_gguf --models 20000 --seed 0

Files are good ones with damage that knows the format: numbers exchanged for extreme ones, bytes
changed, pieces taken out, doubled or brought from another file, the end cut off. Everything that a
header offers is then read. An address-space limit and a timer end a run that goes astray; of one
file in a hundred the memory is measured, and must stay below three times the file and SLACK.
With --models small models are damaged, and planned as a conversion would: graph, tokenizer, names.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from edgert.converters.sources.base import open_source
from edgert.converters.stages.read import read

from edgert.errors import BundleError, EdgertError
from edgert.storage.gguf_header import read_gguf
from tests.gguf_bytes import ARRAY, TEXT, Made, Tensor, Typed, small
from tests.hostile.gguf_models import model

SLACK = 1 << 19  # bytes that reading any file may take: the piece that is read, and Python's own
SPACE = 512 << 20  # bytes of address space beyond what the process has at the beginning
SECONDS = 5  # of one file
EXTREME = (
    0, 1, 2, 7, 8, 9, 12, 13, 31, 32, 33, 255, 256, 4095, 4097, 65535, 1 << 20, (1 << 31) - 1,
    1 << 31, (1 << 32) - 1, 1 << 32, (1 << 40), (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 32,
    (1 << 64) - 8, (1 << 64) - 1,
)  # fmt: skip


@dataclass
class Outcome:
    """files: looked at; taken: of them read whole; codes: how many were refused by which."""

    files: int = 0
    taken: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0
    largest: float = 0.0  # peak memory over the file's size, of those measured


class Measured(NamedTuple):
    """The code of the error, or "", and the peak of memory in bytes, 0 where not measured."""

    code: str
    peak: int


def seeds() -> list[bytes]:
    """Good files of several shapes."""
    texts = [f"t{i}" for i in range(200)]
    vocabulary = Made({"tokenizer.ggml.tokens": texts, "tokenizer.ggml.merges": texts[:90]})
    many = Made({f"k{i}": i for i in range(60)}, [
        Tensor(f"blk.{i}.attn_q.weight", (32, 2), 8, bytes(68)) for i in range(20)
    ])  # fmt: skip
    wide = Made(
        {"general.alignment": 64, "a": Typed(ARRAY, (0, [1] * 500)), "b": Typed(ARRAY, (12, []))},
        [Tensor("x", (256, 1, 2, 1), 14, bytes(420)), Tensor("y", (3,), 30, bytes(6))],
        alignment=64, version=2,
    )  # fmt: skip
    empty = Made({"general.name": Typed(TEXT, "")})
    return [small().bytes(), vocabulary.bytes(), many.bytes(), wide.bytes(), empty.bytes()]


def damaged(rng: random.Random, good: list[bytes]) -> bytes:
    """One file with up to four faults."""
    data = bytearray(rng.choice(good))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(_FAULTS)(rng, data, good)
    return bytes(data)


def _number(rng: random.Random, data: bytearray, good: list[bytes]) -> None:
    size, form = rng.choice(((4, "<I"), (8, "<Q")))
    if len(data) >= size:
        at = rng.randrange(len(data) - size + 1)
        struct.pack_into(form, data, at, rng.choice(EXTREME) % (1 << 8 * size))


def _length(rng: random.Random, data: bytearray, good: list[bytes]) -> None:
    """A small number that is there is made another: lengths, counts, types, sizes."""
    small_ones = [i for i in range(8, len(data) - 8) if data[i] and not any(data[i + 1 : i + 4])]
    if small_ones:
        at = rng.choice(small_ones[:400])
        value = rng.choice((data[at] + 1, data[at] - 1, rng.choice(EXTREME)))
        form, size = rng.choice((("<I", 4), ("<Q", 8)))
        struct.pack_into(form, data, at, value % (1 << 8 * size))


def _bytes(rng: random.Random, data: bytearray, good: list[bytes]) -> None:
    for _ in range(rng.randrange(1, 9)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)


def _cut(rng: random.Random, data: bytearray, good: list[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _remove(rng: random.Random, data: bytearray, good: list[bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.choice((1, 4, 8, 12, 40))]


def _double(rng: random.Random, data: bytearray, good: list[bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice((1, 4, 8, 30, 80))]
    data[start:start] = piece * rng.choice((1, 1, 2, 50))


def _splice(rng: random.Random, data: bytearray, good: list[bytes]) -> None:
    other = rng.choice(good)
    start, at = rng.randrange(len(other)), rng.randrange(len(data) + 1)
    data[at : at + rng.choice((0, 8, 60))] = other[start : start + rng.choice((8, 60, 300))]


_FAULTS: tuple[Callable[[random.Random, bytearray, list[bytes]], None], ...] = (
    _number, _number, _length, _length, _length, _bytes, _cut, _remove, _double, _splice,
)  # fmt: skip


def examine(fd: int, data: bytes, *, measure: bool) -> Measured:
    """Read a file and all that it offers."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)
    if measure:
        tracemalloc.start()
    try:
        try:
            meta = read_gguf(fd).metadata
            code = ""
        except BundleError as error:
            meta, code = None, error.code
            _check(error)
        for key in meta or ():
            for get in (meta.text, meta.number, meta.flag, meta.numbers, meta.texts):  # type: ignore[union-attr]
                try:
                    get(key)
                except BundleError as error:
                    _check(error)
        return Measured(code, tracemalloc.get_traced_memory()[1] if measure else 0)
    finally:
        if measure:
            tracemalloc.stop()


def _check(error: BundleError) -> None:
    if not (error.message and error.hint and error.code != "BundleError"):
        raise AssertionError(f"an error without code or hint: {error!r}")


def look(files: int, seed: int, *, progress: bool = False) -> Outcome:
    """Make and read so many files; whatever is no BundleError is raised, after the file is kept
    in `fuzz-failure.gguf`."""
    rng, good, found = random.Random(seed), seeds(), Outcome()
    start = time.perf_counter()
    with _memory_file() as file:
        for index in range(files):
            data = damaged(rng, good)
            signal.alarm(SECONDS)
            begin = time.perf_counter()
            try:
                code, peak = examine(file.fileno(), data, measure=index % 100 == 0)
                if peak > 3 * len(data) + SLACK:
                    raise AssertionError(f"{peak} bytes for a file of {len(data)}")
            except BaseException:
                with open("fuzz-failure.gguf", "wb") as kept:
                    kept.write(data)
                raise
            finally:
                signal.alarm(0)
            found.slowest = max(found.slowest, time.perf_counter() - begin)
            found.largest = max(found.largest, peak / max(len(data), 1))
            found.files += 1
            found.taken += not code
            if code:
                found.codes[code] = found.codes.get(code, 0) + 1
            if progress and found.files % 100_000 == 0:
                print(f"{found.files} files, {time.perf_counter() - start:.0f} s", flush=True)
    return found


def plan(files: int, seed: int) -> Outcome:
    """Make so many damaged models and plan their conversion; whatever is no EdgertError is raised,
    and the file is left."""
    rng, good, found = random.Random(seed), [model().bytes()], Outcome()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        for _ in range(files):
            path.write_bytes(data := damaged(rng, good))
            signal.alarm(SECONDS)
            begin = time.perf_counter()
            code = ""
            try:
                with open_source(path) as source:
                    read(source, kept=True)
            except EdgertError as error:
                code = error.code
            except BaseException:
                Path("fuzz-failure.gguf").write_bytes(data)
                raise
            finally:
                signal.alarm(0)
            found.slowest = max(found.slowest, time.perf_counter() - begin)
            found.files += 1
            found.taken += not code
            if code:
                found.codes[code] = found.codes.get(code, 0) + 1
    return found


def _memory_file() -> IO[bytes]:
    return tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--models", type=int, default=0, help="instead of --files")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + SPACE, now + SPACE))
    if asked.models:
        print(plan(asked.models, asked.seed))
    else:
        print(look(asked.files, asked.seed, progress=True))


if __name__ == "__main__":
    main()
