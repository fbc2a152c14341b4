"""What a Jetson board is, and what keeps it from being fast: reads /proc, /sys and /etc.

    board = look(Path("/"))        # None on any other machine

Nothing is written and no command is run, so it works without root and can be tested on a copy of
another machine's files. Sources: L4T's /etc/nv_tegra_release and nvpmodel files, the kernel's
cpufreq, devfreq and thermal trees. devices/jetson.md says what to install.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

HOT = 85.0  # °C; Orin's software throttling begins a few degrees later
# L4T release to JetPack: https://developer.nvidia.com/embedded/jetpack-archive
JETPACK = {"38.4": "7.1", "38.2": "7.0", "36.4": "6.1 or 6.2", "36.3": "6.0", "35": "5", "32": "4"}
WHEELS = {
    38: "pip install onnxruntime-gpu --index-url https://pypi.jetson-ai-lab.io/sbsa/cu130",
    36: "pip install onnxruntime-gpu --index-url https://pypi.jetson-ai-lab.io/jp6/cu126",
}
OLDEST = 36  # L4T of JetPack 6, the first with Python 3.10


class Advice(NamedTuple):
    """Something that is wrong, and how to fix it."""

    message: str
    hint: str


class Jetson(msgspec.Struct):
    """A board as found. Memory in bytes, frequencies in Hz, temperature in °C; None: unknown."""

    model: str
    l4t: str
    jetpack: str
    cuda: str | None
    power_mode: str | None
    power_modes: dict[int, str]
    cores_online: int
    cores_present: int
    cpu_hz: tuple[int, int] | None
    gpu_hz: tuple[int, int] | None
    memory: int
    available: int
    swap: int
    temperature: float | None
    wheel: str
    problems: list[Advice] = []


def look(root: Path = Path("/"), *, providers: Sequence[str] | None = None) -> Jetson | None:
    """The board under `root`, None when it is no Jetson.

    providers: of the installed onnxruntime; None leaves them out of the judgement.
    """
    model = _text(root / "proc/device-tree/model").strip("\0 \n")
    release = _release(_text(root / "etc/nv_tegra_release"))
    if "jetson" not in model.lower() and not release:
        return None
    modes = _power_modes(_text(root / "etc/nvpmodel.conf"))
    meminfo = _meminfo(_text(root / "proc/meminfo"))
    cpu = root / "sys/devices/system/cpu"
    board = Jetson(
        model=model or "Jetson",
        l4t=release,
        jetpack=next((jp for l4t, jp in JETPACK.items() if _under(release, l4t)), "unknown"),
        cuda=_cuda(root),
        power_mode=_power_mode(root, modes),
        power_modes=modes,
        cores_online=_count(_text(cpu / "online")),
        cores_present=_count(_text(cpu / "present")),
        cpu_hz=_range(cpu / "cpu0/cpufreq", "scaling_max_freq", "cpuinfo_max_freq", 1000),
        gpu_hz=_gpu(root),
        memory=meminfo.get("MemTotal", 0),
        available=meminfo.get("MemAvailable", 0),
        swap=meminfo.get("SwapTotal", 0),
        temperature=_temperature(root / "sys/class/thermal"),
        wheel=WHEELS.get(_major(release), ""),
    )
    board.problems = judge(board, root, providers)
    return board


def judge(board: Jetson, root: Path, providers: Sequence[str] | None) -> list[Advice]:
    """What is wrong with a board, most weighty first."""
    found = []
    if board.l4t and _major(board.l4t) < OLDEST:
        found.append(
            Advice(
                f"L4T {board.l4t} (JetPack {board.jetpack}) has Python 3.8, edgert needs 3.10",
                "flash JetPack 6 or later; Nano and TX2 boards stay on `--device cpu` in a "
                "container with a newer Python",
            )
        )
    if providers is not None and "CUDAExecutionProvider" not in providers:
        found.append(
            Advice(
                f"onnxruntime has {list(providers)}, not CUDAExecutionProvider",
                f"pip uninstall onnxruntime && {board.wheel}"
                if board.wheel
                else "see devices/jetson.md for the wheel of your JetPack",
            )
        )
    if board.cuda is None:
        found.append(Advice("no CUDA under /usr/local/cuda", "sudo apt install nvidia-jetpack"))
    return found + _slow(board) + _devices(root)


def watts(root: Path = Path("/")) -> float | None:
    """Power that the whole board draws now, from its INA3221 sensor (the rail VDD_IN, which is
    called SYS_IN on some boards); None where there is none."""
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        for label in sorted(folder.glob("in*_label")):
            if _text(label).strip() in ("VDD_IN", "SYS_IN"):
                number = label.name.removeprefix("in").removesuffix("_label")
                volts, amperes = (_number(folder / f"{n}{number}_input") for n in ("in", "curr"))
                if volts is not None and amperes is not None:
                    return volts * amperes / 1e6  # millivolts, milliamperes
    return None


def fastest(modes: Mapping[int, str]) -> int | None:
    """Number of the fastest power mode by its name (MAXN_SUPER, MAXN, else most watts): numbers
    differ between boards. None without modes."""

    def rank(number: int) -> tuple[bool, bool, int, int]:
        name = modes[number].upper()
        watts = re.search(r"(\d{1,4})W", name)
        return "SUPER" in name, "MAXN" in name, int(watts[1]) if watts else 0, -number

    return max(modes, key=rank, default=None)


def _slow(board: Jetson) -> list[Advice]:
    found = []
    best = fastest(board.power_modes)
    switch = f"sudo nvpmodel -m {0 if best is None else best}"
    if best is not None and board.power_mode and board.power_mode != board.power_modes[best]:
        found.append(
            Advice(
                f"power mode {board.power_mode}, the fastest is {board.power_modes[best]}",
                f"{switch} (more heat and battery drain; some boards reboot)",
            )
        )
    if 0 < board.cores_online < board.cores_present:
        found.append(
            Advice(
                f"{board.cores_online} of {board.cores_present} cores are on",
                f"the power mode switches cores off: {switch}",
            )
        )
    for name, pair in (("CPU", board.cpu_hz), ("GPU", board.gpu_hz)):
        if pair and pair[0] < pair[1]:
            found.append(
                Advice(
                    f"{name} limited to {pair[0] / 1e6:.0f} of {pair[1] / 1e6:.0f} MHz",
                    f"{switch}, then sudo jetson_clocks",
                )
            )
    if board.temperature is not None and board.temperature >= HOT:
        found.append(
            Advice(
                f"{board.temperature:.0f} °C, expected less than {HOT:.0f}",
                "give it air; measurements taken now are throttled",
            )
        )
    return found


def _devices(root: Path) -> list[Advice]:
    """GPU device nodes that this user may not open."""
    import os

    for name in ("dev/nvmap", "dev/nvhost-gpu"):
        path = root / name
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            return [Advice(f"/{name} may not be opened", "sudo usermod -aG video,render $USER")]
    return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if re.fullmatch(r"-?\d{1,15}", text) else None


def _release(text: str) -> str:
    """'# R36 (release), REVISION: 4.3, ...' -> '36.4.3'."""
    found = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return f"{found[1]}.{found[2]}" if found else ""


def _major(release: str) -> int:
    return int(release.split(".")[0]) if release else 0


def _under(release: str, prefix: str) -> bool:
    return release == prefix or release.startswith(f"{prefix}.")


def _power_modes(text: str) -> dict[int, str]:
    found = re.findall(r"<\s*POWER_MODEL\s+ID=(\d{1,3})\s+NAME=(\S+)\s*>", text)
    return {int(number): name for number, name in found}


def _power_mode(root: Path, modes: dict[int, str]) -> str | None:
    """Name of the mode that nvpmodel last set, or its default."""
    found = re.search(r"pmode:(\d{1,4})", _text(root / "var/lib/nvpmodel/status"))
    if not found:
        default = r"<\s*PM_CONFIG\s+DEFAULT=(\d{1,3})\s*>"
        found = re.search(default, _text(root / "etc/nvpmodel.conf"))
    return modes.get(int(found[1]), f"number {int(found[1])}") if found else None


def _count(ranges: str) -> int:
    """'0-3,5' -> 5."""
    total = 0
    for part in ranges.strip().split(","):
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if found:
            total += int(found[2] or found[1]) - int(found[1]) + 1
    return total


def _range(folder: Path, now: str, best: str, unit: int) -> tuple[int, int] | None:
    """Highest frequency allowed now, and the hardware's highest, in Hz."""
    allowed, most = _number(folder / now), _number(folder / best)
    return (allowed * unit, most * unit) if allowed and most else None


def _gpu(root: Path) -> tuple[int, int] | None:
    names = ("*gpu*", "*.ga10b", "*.gv11b", "*.gp10b")  # by kernel and chip
    tree = root / "sys/class/devfreq"
    for folder in sorted(path for name in names for path in tree.glob(name)):
        steps = [int(n) for n in re.findall(r"\d+", _text(folder / "available_frequencies"))]
        allowed = _number(folder / "max_freq")
        if steps and allowed:
            return allowed, max(steps)
    return None


def _meminfo(text: str) -> dict[str, int]:
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in lines}


def _temperature(folder: Path) -> float | None:
    """The hottest zone."""
    values = [_number(zone / "temp") for zone in folder.glob("thermal_zone*")]
    known = [value / 1000 for value in values if value is not None]
    return max(known, default=None)


def _cuda(root: Path) -> str | None:
    try:
        found = json.loads(_text(root / "usr/local/cuda/version.json"))
        return str(found["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return None
