"""Memory of this machine, of the container around this process, and of the process itself."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
CGROUPS = (  # limit and use of the container, versions 2 and 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
NO_LIMIT = 1 << 60  # version 1 says "none" with a huge number


class Memory(NamedTuple):
    """Bytes that the machine has, and what of it can be taken without swapping."""

    total: int
    available: int


def bytes_of(text: str) -> int:
    """Bytes of a text such as 512M or 2G, in powers of 1024. ValueError or OverflowError for
    others."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    scale = {"K": 10, "M": 20, "G": 30}.get(number[-1:], 0)
    return int(float(number[:-1] if scale else number) * (1 << scale))


def machine() -> Memory:
    """Memory of the machine."""
    found = _from_meminfo()
    if found is not None:
        return found
    import psutil  # a hundredth of a second, which Linux does without

    state = psutil.virtual_memory()
    return Memory(int(state.total), int(state.available))


def container_limit() -> int | None:
    """Bytes that the container may take, None where there is no limit."""
    return next((limit for limit, _ in _containers()), None)


def free() -> int:
    """Bytes that this process may still take: of the machine, and of its container."""
    return min([machine().available, *(max(0, limit - used) for limit, used in _containers())])


def peak_resident() -> int:
    """The most memory that this process has held so far, bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    try:  # what getrusage says begins with the memory of the process that started this one
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) << 10
    except (OSError, ValueError):
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _containers() -> list[tuple[int, int]]:
    """Limit and use of each container that has a limit."""
    found = []
    for limit, use in CGROUPS:
        try:
            most, used = limit.read_text(encoding="ascii"), use.read_text(encoding="ascii")
            if most.strip().isdigit() and int(most) < NO_LIMIT:  # "max" where there is none
                found.append((int(most), int(used)))
        except (OSError, ValueError):
            continue
    return found


def _from_meminfo() -> Memory | None:
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        kilobytes = {
            name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)
        }
        return Memory(kilobytes["MemTotal"] << 10, kilobytes["MemAvailable"] << 10)
    except (OSError, ValueError, KeyError, IndexError):
        return None
