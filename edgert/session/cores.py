"""The CPU cores that this process may use: affinity, control groups, and which cores are fast."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .. import limits
from ..errors import DeviceError


def available_cores() -> list[int]:
    """CPU indices this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_quota(root: Path = Path("/")) -> float:
    """CPUs that control groups (v1 and v2) allow this process, infinite without a limit. root:
    where `proc` and `sys` lie."""
    folders = (folder for group in _groups(root) for folder in (group, *group.parents))
    return min((_quota(folder) for folder in folders), default=float("inf"))


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the process's control groups, as a container and as its host name them."""
    mount = root / "sys" / "fs" / "cgroup"
    yield from (mount, mount / "cpu", mount / "cpu,cpuacct")
    lines: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        lines = (root / "proc" / "self" / "cgroup").read_text("utf-8").splitlines()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        path = path.lstrip("/")
        if ".." in Path(path).parts:
            continue
        if not controllers:  # v2, alone or beside v1
            yield from (mount / path, mount / "unified" / path)
        elif "cpu" in controllers.split(","):
            yield from (mount / controllers / path, mount / "cpu" / path)


def _quota(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text("ascii").split()
        if quota != "max" and int(period) > 0:
            return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota = (folder / "cpu.cfs_quota_us").read_text("ascii")
        period = (folder / "cpu.cfs_period_us").read_text("ascii")
        if int(quota) > 0 and int(period) > 0:
            return int(quota) / int(period)
    return float("inf")


def performance_cores() -> list[int]:
    """The fast cores among the available ones, one a physical core where the system tells."""
    cores = available_cores()
    speed: dict[int, int] = {}
    siblings: dict[str, int] = {}
    for core in cores:
        base = f"/sys/devices/system/cpu/cpu{core}"
        with (
            contextlib.suppress(OSError, ValueError),
            open(f"{base}/cpufreq/cpuinfo_max_freq") as f,
        ):
            speed[core] = int(f.read())
        with contextlib.suppress(OSError), open(f"{base}/topology/thread_siblings_list") as f:
            siblings.setdefault(f.read().strip(), core)
    if siblings:
        cores = sorted(siblings.values())
    if len(speed) == len(cores) and cores:
        fastest = max(speed[core] for core in cores)
        cores = [core for core in cores if speed[core] >= 0.9 * fastest]
    limit = cpu_quota()
    return cores if limit >= len(cores) else cores[: max(1, int(limit))]


def thread_count(wanted: int | None) -> int:
    """Threads of a session: one per performance core, or as many as are wanted. Raises
    DeviceError for numbers that are none."""
    if wanted is None:
        return len(performance_cores())
    if not 1 <= wanted <= limits.THREADS:
        raise DeviceError(f"threads is {wanted}, expected 1 to {limits.THREADS}", code="threads")
    return wanted
