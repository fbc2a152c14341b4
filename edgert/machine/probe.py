"""Measuring this machine: a profile with rates, from which times of models are predicted.

    profile = probe(progress=print)      # two to six minutes
    Path("here.toml").write_text(to_toml(profile))

Streaming reads by number of threads, products by encoding and size, attention, launches and storage
are timed; `probe_fit` turns that into rates. Some decoders are timed that the fit does not see: the
deviation of their times from what is predicted is the profile's `spread`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import system_memory
from ..devices.profile import (
    Cpu,
    Figure,
    Match,
    Measured,
    Memory,
    Profile,
    Provider,
    Rates,
    Roofline,
    Storage,
)
from ..errors import DeviceError
from ..forecast.shapes import Block, Shape
from ..session.cores import performance_cores
from .doctor import cpu_name
from .probe_fit import errors, fit_each
from .probe_runs import CODES, SLOW, Clock, Run, Timed, runs, timed

BITS = (2, 3, 4, 5, 6, 8, 16)
STORAGE_BYTES = 256 << 20
WARM_S = 120.0  # of load before the second look of `thermal`
LEAST_SPREAD = 0.05
Progress = Callable[[str, float], None]
ROUNDS = 2  # of all runs, minutes apart: what is slow in one of them only was disturbed
LONGEST = 120.0  # seconds of a round after which there is no second one
STARTS = 4  # processes that are started; the first one may have to pack
_BASE = """
import sys, time
import edgert
from edgert.system_memory import peak_resident
clock = time.process_time if sys.argv[3] == "cpu" else time.perf_counter
start = clock()
with edgert.load(sys.argv[1], threads=int(sys.argv[2])) as model:
    spent = clock() - start
    model.generate("one two three", max_tokens=8, temperature=0)
    print(peak_resident(), spent)
"""


class Options(NamedTuple):
    """threads: numbers of threads to measure, () for one, half and all cores. encodings: whose
    products are timed. seconds: for each timed step, in each round. thermal: whether to measure
    again after two minutes of load. quick: fewer runs, once. clock: of steps of one thread;
    None for the time that passes."""

    threads: tuple[int, ...] = ()
    encodings: tuple[str, ...] = CODES
    seconds: float = 0.15
    thermal: bool = False
    quick: bool = False
    clock: Clock | None = None


class Looks:
    """Timed steps of all runs, each the quickest of the looks at it. A look takes a minute or two;
    looks that are far apart find the machine in more of its states."""

    def __init__(self, options: Options | None = None) -> None:
        from ..session import has_kernels

        self.options = options or Options()
        if not has_kernels():
            raise DeviceError(
                "there are no kernels for this machine, expected compiled ones or Numba",
                code="probe-kernels", hint="edgert doctor says what is missing",
            )  # fmt: skip
        self.threads = self.options.threads or default_threads()
        self.read: dict[tuple[int, int], float] = {}  # by threads and megabytes, bytes a second
        self.best: dict[tuple[int, str, int, int], Timed] = {}

    def look(self, progress: Progress = lambda what, share: None) -> None:
        """Time everything once more."""
        from ..kernels.bandwidth import read_gbps

        options = self.options
        wanted = runs(options.encodings, quick=options.quick, free=system_memory.free())
        for index, count in enumerate(self.threads):
            enough = list[Shape]()
            at, share = index / len(self.threads), 1 / len(self.threads)
            progress(f"streaming reads, {count} threads", at)
            for size in (8, 64) if options.quick else (8, 64, 512):
                rate = read_gbps(count, megabytes=size, passes=5) * 1e9
                self.read[count, size] = max(rate, self.read.get((count, size), 0.0))
            for number, run in enumerate(wanted):
                if any(_larger(run.shape, shape) for shape in enough):
                    continue
                progress(f"{run.name}, {count} threads", at + share * number / len(wanted))
                for step in _timed(run, count, options):
                    key = count, run.name, step.rows, step.depth
                    best = self.best.get(key, step)
                    self.best[key] = min(step, best, key=lambda one: one.seconds)
                    if step.rows == 1 and step.seconds > SLOW and isinstance(run.shape, Shape):
                        enough.append(run.shape)

    def rates(self) -> tuple[list[Rates], float]:
        """Rates for each number of threads, and the deviation of steps that no fit has seen."""
        found = {
            count: [step for (threads, *_), step in self.best.items() if threads == count]
            for count in self.threads
        }
        read = {
            count: [(float(mb << 20), r) for (threads, mb), r in self.read.items()
                    if threads == count]
            for count in self.threads
        }  # fmt: skip
        rates, unseen = fit_each(found, read), list[float]()
        for one in rates:
            seen = zip(found[one.threads], errors(found[one.threads], one), strict=True)
            unseen += [error for step, error in seen if not step.run.kept]
        return rates, max(LEAST_SPREAD, float(np.sqrt(np.mean(np.square(unseen)))))


def probe(
    options: Options | None = None, *, name: str = "", looks: Looks | None = None,
    progress: Progress = lambda what, share: None,
) -> Profile:  # fmt: skip
    """Measure this machine. looks: that were made already, instead of two now. progress: called
    with what comes next and the share that is done. Raises DeviceError where kernels do not run
    here."""
    from ..kernels import isa

    watch = Busy()
    rounds = 0
    if looks is None:
        looks, rounds = Looks(options), 1 if options and options.quick else ROUNDS
    options, threads = looks.options, looks.threads
    begin = time.perf_counter()
    for index in range(rounds):
        if index and time.perf_counter() - begin > LONGEST:
            break
        looks.look(_part(progress, 0.9 * index / rounds, 0.9 / rounds))
    rates, spread = looks.rates()
    progress("memory of a process", 0.92)
    cpu = options.clock in (time.process_time, time.thread_time)
    base, pace = own_process(max(threads), cpu=cpu)
    progress("storage", 0.95)
    reading = storage_read()
    busy = watch.others()
    drift = _drift(max(threads), options, progress) if options.thermal else None
    from .. import __version__

    measured = Measured(
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"), edgert=__version__,
        isa=isa.chosen(), cpu=cpu_name(), spread=spread, base_bytes=base, rates=tuple(rates),
        drift=drift, pace=pace, busy_cores=round(busy, 2),
    )  # fmt: skip
    return _profile(name or platform.node() or "this-machine", measured, reading)


def _larger(shape: Shape | Block, than: Shape) -> bool:
    """Whether shapes differ in their layers alone, and this has more."""
    return (
        isinstance(shape, Shape)
        and shape.layers > than.layers
        and shape._replace(layers=than.layers) == than
    )


def _part(progress: Progress, at: float, share: float) -> Progress:
    return lambda what, done: progress(what, at + share * done)


def default_threads() -> tuple[int, ...]:
    """One, half and all of the performance cores."""
    cores = len(performance_cores())
    return tuple(sorted({1, max(1, cores // 2), cores}))


def _timed(run: Run, threads: int, options: Options) -> list[Timed]:
    clock = options.clock if options.clock is not None and threads == 1 else time.perf_counter
    return list(timed(run, threads, seconds=options.seconds, clock=clock))


def _drift(threads: int, options: Options, progress: Progress) -> float:
    """Time of a step after two minutes of load over time before."""
    run = next(run for run in runs(options.encodings) if run.kept and run.shape.layers > 10)
    before = _timed(run, threads, options)[0].seconds
    end = time.perf_counter() + WARM_S
    while (left := end - time.perf_counter()) > 0:
        progress(f"load, {left:.0f} s more", 0.97)
        _timed(run, threads, options._replace(seconds=min(left, 5.0)))
    return round(_timed(run, threads, options)[0].seconds / before, 4)


def own_process(threads: int, *, cpu: bool = False) -> tuple[float, float | None]:
    """A process that answers with the model in this package: its memory less what is counted, and
    the time that loading takes over what `forecast.starting` says; None where it does not run.
    cpu: by the processor time that it takes."""
    from ..bundle.reader import Bundle
    from ..demo import demo_bundle
    from ..forecast.memory import BASE, TOKENIZER, footprint, tokenizer_bytes
    from ..forecast.starting import starting

    path = demo_bundle()
    command = [sys.executable, "-c", _BASE, str(path), str(threads), "cpu" if cpu else "wall"]
    found = list[tuple[float, ...]]()
    for _ in range(STARTS):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found.append(tuple(map(float, done.stdout.split()[-2:])))
    if not found:
        return BASE, None
    with Bundle.open(path) as bundle:
        graph = bundle.graph()
        counted = footprint(graph, tokens=16, threads=threads, base=0.0)
    size = tokenizer_bytes(path / "tokenizer.json")
    base = max(0.0, found[-1][0] - counted.total - TOKENIZER * size)
    load = float(np.median([spent for _, spent in found[1:] or found]))
    usual = starting(nodes=len(graph.nodes), tokenizer=size, weights=counted.weights)
    return base, round(load / usual.load, 4)


def storage_read() -> float:
    """Sequential reading of a file in the cache folder that memory does not hold, bytes a second;
    where the system cannot forget a file, what it reads from memory."""
    from ..storage.cachedir import cache_root

    folder = cache_root()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="probe-") as place:
        path, block = Path(place) / "block", os.urandom(1 << 20)
        with path.open("wb") as file:
            for _ in range(STORAGE_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        with path.open("rb", buffering=0) as reading:
            while reading.read(1 << 22):
                pass
        return STORAGE_BYTES / (time.perf_counter() - start)


def _profile(name: str, measured: Measured, reading: float) -> Profile:
    """The measurements as a profile; what was not measured is an estimate and says so."""
    best = max(measured.rates, key=lambda rates: rates.threads)
    ops = max(product.ops_s for product in best.products)
    floats = [p.ops_s for p in best.products if p.kernel in ("f16", "f32")]
    sources = {
        "probe": f"edgert devices probe, edgert {measured.edgert}, {measured.at}",
        "system": "what the operating system says",
        "fit": "already in the measured rates: peaks are those that kernels reached",
    }
    free = 0.9 * system_memory.free()

    def figure(value: float, source: str = "probe") -> Figure:
        return Figure(float(f"{value:.6g}"), source, "measured")

    return Profile(
        schema=1, name=_slug(name), title=f"{measured.cpu}, measured here", kind="desktop",
        sources=sources,
        cpu=Cpu(
            name=measured.cpu, cores=figure(len(performance_cores()), "system"),
            clock_hz=figure(_clock_hz(), "system"), flops=figure(max(floats, default=ops)),
            int8_ops=figure(ops), isa=(measured.isa,),
        ),
        memory=Memory(
            total=figure(system_memory.machine().total, "system"), usable=figure(free, "system"),
            bandwidth=figure(best.read[-1][1]),
        ),
        storage=Storage(size=figure(_disk_free(), "system"), read=figure(reading)),
        roofline=Roofline(
            Figure(1.0, "fit", "measured"), Figure(1.0, "fit", "measured"), figure(best.launch_s)
        ),
        providers={"cpu": Provider(BITS, 16)},
        match=Match(platform.machine(), (measured.cpu,)), measured=measured,
    )  # fmt: skip


def _slug(name: str) -> str:
    kept = "".join(c if c.isalnum() else "-" for c in name.lower())
    return kept.strip("-")[:60] or "this-machine"


def _disk_free() -> float:
    import shutil

    from ..storage.cachedir import cache_root

    return float(max(1, shutil.disk_usage(cache_root()).free))


def _clock_hz() -> float:
    """The clock that the system tells, else 1 GHz."""
    with contextlib.suppress(Exception):
        import psutil

        found = psutil.cpu_freq()
        if found and (found.max or found.current):
            return float(found.max or found.current) * 1e6
    return 1e9


class Busy:
    """How many cores other processes kept busy meanwhile."""

    def __init__(self) -> None:
        self._begin = self._read()

    def others(self) -> float:
        wall, busy = (b - a for a, b in zip(self._begin, self._read(), strict=True))
        return max(0.0, busy / wall) if wall > 0 else 0.0

    @staticmethod
    def _read() -> tuple[float, float]:
        import psutil

        spent, own = psutil.cpu_times(), os.times()
        guests = getattr(spent, "guest", 0.0) + getattr(spent, "guest_nice", 0.0)
        busy = sum(spent) - spent.idle - getattr(spent, "iowait", 0.0) - guests
        mine = own.user + own.system + own.children_user + own.children_system
        return time.perf_counter(), busy - mine


__all__ = ["Looks", "Options", "default_threads", "own_process", "probe", "storage_read"]
