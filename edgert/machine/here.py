"""Whether this machine is the device of a profile: names, memory, cores, and the power mode where
the system tells it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from .. import system_memory
from ..devices.profile import Profile
from ..session.cores import available_cores, performance_cores
from .doctor import cpu_name

MEMORY = 0.15  # share by which total memory may differ: firmware and graphics keep some of it
TOPOLOGY = Path("sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
UNCHECKED = "not checked"


def is_here(profile: Profile) -> bool:
    """Whether this machine is the device, as far as can be told."""
    return not differences(profile)


def differences(profile: Profile, root: Path = Path("/")) -> list[str]:
    """What of this machine is not as the profile says, found and expected; empty where all that can
    be compared is. root: where `proc`, `sys`, `etc` and `var` lie."""
    return [
        *_names(profile, root),
        *_memory(profile),
        *_cores(profile, root),
        *_mode(profile, root),
    ]


def power_mode(profile: Profile, root: Path = Path("/")) -> str:
    """The power mode that the system is in, for a profile in one; UNCHECKED where the system tells
    none that has a number of watts, "" for a profile without."""
    if not profile.mode:
        return ""
    found = _system_mode(root)
    return UNCHECKED if found is None or _watts(found) is None else found


def _names(profile: Profile, root: Path) -> list[str]:
    match = profile.match
    if match.machine and match.machine.lower() != platform.machine().lower():
        return [f"its processor is {platform.machine()}, expected {match.machine}"]
    if not match.names:
        return ["the profile is of a class of machines, not of one"] if match.machine else []
    model = root / "proc/device-tree/model"
    board = model.read_text("utf-8", "replace").strip("\0 \n") if model.exists() else ""
    said = ", ".join(filter(None, (board, cpu_name())))
    if any(name.lower() in said.lower() for name in match.names):
        return []
    return [f"its name is {said!r}, expected {' or '.join(map(repr, match.names))} in it"]


def _memory(profile: Profile) -> list[str]:
    found, wanted = system_memory.machine().total, profile.memory.total.value
    if abs(found / wanted - 1) <= MEMORY:
        return []
    return [
        f"it has {found / 1e9:.4g} GB of memory, expected {wanted / 1e9:.4g} within {MEMORY:.0%}"
    ]


def _cores(profile: Profile, root: Path) -> list[str]:
    """Cores that sessions use; where the system does not tell fast and whole ones, as many cores of
    any kind will do."""
    wanted, found = round(profile.cpu.cores.value), len(performance_cores())
    known = (root / TOPOLOGY).exists()
    if found == wanted or (not known and len(available_cores()) >= wanted):
        return []
    return [f"{found} of its cores are in use, expected {wanted}"]


def _mode(profile: Profile, root: Path) -> list[str]:
    found = power_mode(profile, root)
    if found in ("", UNCHECKED):
        return []
    wanted = round(profile.modes[profile.mode].watts.value)
    if _watts(found) == wanted:
        return []
    return [f"its power mode is {found}, expected one of {wanted} W"]


def _system_mode(root: Path) -> str | None:
    """The mode that nvpmodel set on a Jetson, None elsewhere."""
    from ..devices.jetson import look

    board = look(root)
    return board.power_mode if board is not None else None


def _watts(mode: str) -> int | None:
    found = re.search(r"(\d{1,4})\s*W", mode, re.IGNORECASE)
    return int(found[1]) if found else None


__all__ = ["UNCHECKED", "differences", "is_here", "power_mode"]
