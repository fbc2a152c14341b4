"""What a measurement ran on, and whether the machine was otherwise idle meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import psutil

BUSY = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
NOISY_CORES = 0.1  # of one core, used by other processes or stolen by the hypervisor


def cpu_model() -> str:
    """The CPU's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def load_average() -> list[float]:
    """Load averages of 1, 5 and 15 minutes; empty where the system has none."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def versions() -> dict[str, str]:
    """Versions of whatever is timed, of those that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    names = ("edgert", "numpy", "numba", "llvmlite", "llama_cpp_python", "onnxruntime", "torch")
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """CPU, cores, memory (GB), instruction set the kernels use, system and versions."""
    from edgert.kernels import isa

    from edgert.session.cores import available_cores

    return {
        "cpu": cpu_model(),
        "cores": len(available_cores()),
        "isa": isa.chosen(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(),
    }


class Watch:
    """How many cores other processes kept busy between two looks.

    Load averages count this process too and lag by a minute, so they are recorded but what decides
    is CPU time: everything the machine spent, stolen time included, less what this process and its
    children spent.
    """

    def __init__(self) -> None:
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.load = load_average()
        self._begin = self._last = self._read()

    @staticmethod
    def _read() -> tuple[float, float]:
        """(wall seconds, CPU seconds of everything but us)."""
        spent = psutil.cpu_times()
        idle = spent.idle + getattr(spent, "iowait", 0.0)
        guests = getattr(spent, "guest", 0.0) + getattr(spent, "guest_nice", 0.0)
        busy = sum(spent) - idle - guests
        own = os.times()
        mine = own.user + own.system + own.children_user + own.children_system
        return time.perf_counter(), busy - mine

    def others(self, since: tuple[float, float] | None = None) -> float:
        """Cores that others used since the last call, on average."""
        before = since or self._last
        self._last = self._read()
        wall = self._last[0] - before[0]
        return max(0.0, (self._last[1] - before[1]) / wall) if wall > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        """Start time, load averages at both ends, other processes' cores, and the verdict."""
        others = self.others(self._begin)
        return {
            "started": self.started,
            "seconds": round(self._last[0] - self._begin[0], 1),
            "load_start": self.load,
            "load_end": load_average(),
            "other_cores": round(others, 3),
            "noisy": others > NOISY_CORES,
        }


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """A process that keeps the first core busy meanwhile. SystemExit where processes cannot be kept
    on cores."""
    from edgert.session.cores import performance_cores

    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("this system does not keep processes on cores")
    core = str(performance_cores()[0])
    with subprocess.Popen([sys.executable, "-c", BUSY, core]) as process:
        try:
            yield
        finally:
            process.kill()
