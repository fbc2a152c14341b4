"""Processes from their start to the first token, or to a picture of one step: how long loading and
starting take, and how much memory at most, perhaps with less of it than the machine has."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from ..errors import ResourceError
from ..session.options import SessionOptions
from .source import Source
from .statistics import F64

GROUPS = (  # where control groups with memory stand, their limits of memory and swap
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.swappiness"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max"),
)
ASKED = {"captions": "a red apple", "labels": "0"}  # of pictures, by what they are asked for by
_CODE = """
import json, sys, time
import edgert
from edgert.system_memory import peak_resident
path, device, threads, context, bits, memory, asked = json.loads(sys.argv[1])
start = time.perf_counter()
with edgert.load(path, device, threads, context, kv_bits=bits, kv_memory=memory) as model:
    load = time.perf_counter() - start
    if model.__class__.__name__ == "TextModel":
        next(iter(model.stream([1] * min(32, model.context - 2), max_tokens=2, temperature=0)))
    else:
        model(asked.get(model.spec.conditioning, ""), steps=1, cache="none", seed=0)
    print("first", flush=True)
    if model.__class__.__name__ == "TextModel":
        model.generate([1] * max(1, min(512, model.context - 9)), max_tokens=8, temperature=0)
    print(json.dumps([load, peak_resident()]), flush=True)
"""


class Child(Source):
    """A source of bursts: a fresh process each, from which come "load" and "start" in seconds and
    "peak" in bytes (with a prompt of 512). A first one, without the limit, fills caches and does
    not count. Where it comes to its token and a process within the limit does not, the limit is
    the reason."""

    name = "fresh processes"

    def __init__(self, bundle: Path, options: SessionOptions, limit: int | None = None) -> None:
        self.bundle, self.options, self.limit = bundle, options, limit
        self._run(None)

    def burst(self) -> Mapping[str, F64]:
        if self.fault:
            return {}
        try:
            load, start, peak = self._run(self.limit)
        except ResourceError as error:
            if self.limit is None:
                raise
            self.fault = error.message
            return {}
        if self.limit is not None and peak > self.limit:
            self.doubt = (
                f"a process took {peak / 1e6:.1f} MB, which the limit of {self.limit / 1e6:.1f} MB "
                "on memory did not keep: pages of files may count elsewhere"
            )
        return {"load": np.array([load]), "start": np.array([start]), "peak": np.array([peak])}

    def close(self) -> None:
        """Nothing is held between bursts."""

    def _command(self, limit: int | None) -> list[str]:
        options, memory = self.options, self.options.kv_memory
        if limit is not None and memory is None:
            memory = max(1, limit // 4)  # of keys and values: address space counts in a limit
        fields = (
            str(self.bundle), options.device, options.threads, options.ctx_size, options.kv_bits,
            memory, ASKED,
        )  # fmt: skip
        return [sys.executable, "-c", _CODE, json.dumps(fields)]

    def _run(self, limit: int | None) -> tuple[float, float, float]:
        with _group(limit) as enter, tempfile.TemporaryFile() as errors:
            begun = time.perf_counter()
            with subprocess.Popen(
                self._command(limit), stdout=subprocess.PIPE, stderr=errors, text=True,
                preexec_fn=enter,
            ) as process:  # fmt: skip
                first = process.stdout.readline() if process.stdout else ""
                start = time.perf_counter() - begun
                rest = process.stdout.read() if process.stdout else ""
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace").strip().splitlines()
        if process.returncode or first.strip() != "first":
            limited = f" within {limit / 1e6:.0f} MB" if limit else ""
            last = (said or ["no message"])[-1]
            ended = f"it ended with {process.returncode}, {last[:300]}"
            if process.returncode == -getattr(signal, "SIGKILL", 9):
                ended = "it was killed (SIGKILL), as the system does where memory is out"
            aim = "the end of a prompt" if first.strip() == "first" else "its first token"
            raise ResourceError(
                f"a process with the model did not come to {aim}{limited}: {ended}",
                code="test-process",
                hint="give it more memory, or run `edgert generate` on the bundle",
            )
        load, peak = json.loads(rest.splitlines()[-1])
        return float(load), start, float(peak)


@contextlib.contextmanager
def _group(limit: int | None) -> Iterator[Callable[[], object] | None]:
    """What a child calls before it begins, so that it has `limit` bytes: it joins a control group
    where one can be made, else its address space is limited."""
    if limit is None:
        yield None
        return
    folder = _made(limit)
    if folder is None:
        yield lambda: _limit_address_space(limit)
        return
    try:
        yield lambda: _put(folder / "cgroup.procs", str(os.getpid()))
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _made(limit: int) -> Path | None:
    """A new control group of version 1 or 2 that takes no more than `limit` bytes and does not
    swap, None where there can be none."""
    for root, most, swap in GROUPS:
        folder = root / f"edgert-test-{secrets.token_hex(4)}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            _put(folder / most, str(limit))
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        with contextlib.suppress(OSError):
            _put(folder / swap, "0")
        return folder
    return None


def _put(path: Path, text: str) -> None:
    """Write a file of the kernel's, which is there already."""
    with path.open("r+", encoding="ascii") as file:
        file.write(text)


def _limit_address_space(limit: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def how_limited() -> str:
    """Which of the two a limit on memory is here: "cgroup" or "rlimit"."""
    folder = _made(1 << 30)
    if folder is None:
        return "rlimit"
    folder.rmdir()
    return "cgroup"
