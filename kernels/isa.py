"""Which vector instructions the kernels are compiled for: decided once, here.

    avx512vnni   512-bit vectors, vpdpbusd            (Zen 4, Ice Lake and later)
    avxvnni      256-bit vectors, vpdpbusd            (Alder Lake and later)
    avx2         256-bit vectors, pmaddubsw           (Haswell, Zen and later)
    i8mm         128-bit NEON vectors, smmla, sdot    (Cortex-A710, Neoverse V1, Apple M2 and later)
    dotprod      128-bit NEON vectors, sdot           (Cortex-A76, A78AE, Apple M1 and later)
    portable     what LLVM makes of plain vector arithmetic; correct everywhere, slow

`EDGERT_ISA` picks another one; an ISA that this CPU lacks is refused, because LLVM would end the
process with an illegal instruction. `EDGERT_ISA_FORCE=1` takes it all the same: for emulators,
which show the features of the machine they run on (tests/arm/README.md).
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import lru_cache
from typing import Any

X86, ARM = "x86_64", "aarch64"
NEEDS = {
    "avx512vnni": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "f16c", "fma"),
    "avxvnni": ("avxvnni", "avx2", "f16c", "fma"),
    "avx2": ("avx2", "f16c", "fma"),
    "i8mm": ("i8mm", "dotprod", "neon"),
    "dotprod": ("dotprod", "neon"),
    "portable": (),
}
# A CPU that has the instruction set and little else, in LLVM's words: what is compiled for where
# `EDGERT_ISA` is set on a richer machine, and ahead of time.
TARGETS = {
    "avx512vnni": ("cascadelake", ""),
    "avxvnni": ("alderlake", ""),
    "avx2": ("haswell", "+avx2,+fma,+f16c"),
    "i8mm": ("cortex-a76", "+neon,+dotprod,+lse,+fullfp16,+i8mm"),
    "dotprod": ("cortex-a76", "+neon,+dotprod,+lse,+fullfp16"),
    "portable": ("x86-64", ""),
}
MACHINES = {
    "avx512vnni": X86,
    "avxvnni": X86,
    "avx2": X86,
    "i8mm": ARM,
    "dotprod": ARM,
}
ALIASES = {"amd64": X86, "arm64": ARM}
# What systems without /proc/cpuinfo call features: macOS under `hw.optional`, and Windows' numbers.
SYSCTL = {
    "arm.FEAT_DotProd": "dotprod",
    "arm.FEAT_I8MM": "i8mm",
    "avx2_0": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512vl": "avx512vl",
    "avx512dq": "avx512dq",
    "avx512vnni": "avx512vnni",
}
WINDOWS = {40: "avx2", 41: "avx512f", 43: "dotprod"}
VARIABLE = "EDGERT_ISA"
FORCE = "EDGERT_ISA_FORCE"


class IsaError(RuntimeError):
    """The requested instruction set is unknown or not on this CPU."""


_elsewhere: tuple[str, str] | None = None


def build_for(machine: str, name: str) -> None:
    """Make `machine` and `chosen` answer for another machine than this one. To be called before
    `simd` is imported, by what compiles kernels ahead of time."""
    global _elsewhere
    if name not in sets_of(machine):
        raise IsaError(f"{machine} has no {name!r}, expected one of {', '.join(sets_of(machine))}")
    _elsewhere = machine, name


def machine() -> str:
    """The architecture that kernels are made for: x86_64, aarch64, or what else Python calls it."""
    if _elsewhere is not None:
        return _elsewhere[0]
    name = platform.machine().lower()
    return ALIASES.get(name, name)


def sets_of(machine: str) -> tuple[str, ...]:
    """Instruction sets that CPUs of an architecture may have, best first."""
    return tuple(name for name in NEEDS if MACHINES.get(name, machine) == machine)


def target() -> tuple[str, str]:
    """CPU and features of the chosen set, in LLVM's words."""
    if chosen() == "portable" and machine() != X86:
        return "generic", ""
    return TARGETS[chosen()]


def features_from_proc(text: str) -> set[str]:
    """CPU features of a /proc/cpuinfo text, in LLVM's spelling."""
    found: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found.update(value.split())
    renamed = {
        "avx512_vnni": "avx512vnni",
        "avx_vnni": "avxvnni",
        "asimddp": "dotprod",
        "asimd": "neon",
    }
    return found | {new for old, new in renamed.items() if old in found}


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """What this CPU can do: /proc/cpuinfo where there is one, else what macOS says, else what
    Windows and LLVM (where it is installed) say. Empty where nobody knows: `portable` runs there.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            found = features_from_proc(file.read())
    except OSError:
        found = set()
    if not found and sys.platform == "darwin":
        found = features_from_sysctl(ctypes.CDLL(None).sysctlbyname)
    if not found:
        found = features_from_llvm()
        if sys.platform == "win32":
            found |= features_from_windows(ctypes.windll.kernel32.IsProcessorFeaturePresent)
    if platform.machine() in ("arm64",) and platform.system() == "Darwin":
        found |= {"neon", "dotprod"}
    return frozenset(found)


def features_from_sysctl(sysctlbyname: Any) -> set[str]:
    """CPU features by macOS' C function, which knows no name of a feature that came later."""
    found = set()
    for name, feature in SYSCTL.items():
        value, size = ctypes.c_int64(0), ctypes.c_size_t(8)  # it writes 4 bytes or 8
        wanted = f"hw.optional.{name}".encode()
        status = sysctlbyname(wanted, ctypes.byref(value), ctypes.byref(size), None, None)
        if status == 0 and value.value:
            found.add(feature)
    return found


def features_from_windows(is_present: Any) -> set[str]:
    """CPU features by IsProcessorFeaturePresent, which tells neither FMA and F16C nor VNNI: the
    former came before AVX2 in every CPU of Intel's and AMD's, not of others'."""
    found = {feature for number, feature in WINDOWS.items() if is_present(number)}
    vendor = platform.processor()
    if "avx2" in found and ("GenuineIntel" in vendor or "AuthenticAMD" in vendor):
        found |= {"fma", "f16c"}
    return found | ({"neon"} if "dotprod" in found else set())


def features_from_llvm() -> set[str]:
    """CPU features by LLVM, none where llvmlite is not installed or does not load."""
    try:
        import llvmlite.binding as llvm

        return {name for name, on in llvm.get_host_cpu_features().items() if on}
    except Exception:  # ImportError, and what a broken installation raises
        return set()


@lru_cache(maxsize=1)
def reads_past_caches() -> bool:
    """Whether weights are best asked for with a hint that they are read once (`prefetchnta`).

    2 to 6 % over the second-level cache on AMD's Zen 5; half its speed on Intel's Ice Lake and
    Sapphire Rapids, where such a line takes one of the first level's few fill buffers.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return "AuthenticAMD" in file.read(4096)
    except OSError:
        return "AuthenticAMD" in platform.processor()  # what Windows says


def supported() -> tuple[str, ...]:
    """Instruction sets usable on this CPU, best first."""
    return tuple(name for name in NEEDS if not _missing(name))


def _missing(name: str) -> list[str]:
    """What this CPU lacks for an instruction set: its architecture, or features."""
    wanted = MACHINES.get(name, machine())
    if wanted != machine():
        return [f"a CPU of {wanted}"]
    return sorted(set(NEEDS[name]) - cpu_features())


@lru_cache(maxsize=1)
def chosen() -> str:
    """The instruction set in use. Raises IsaError for an `EDGERT_ISA` this CPU lacks."""
    if _elsewhere is not None:
        return _elsewhere[1]
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return supported()[0]
    if wanted not in NEEDS:
        raise IsaError(f"{VARIABLE}={wanted!r} is unknown, expected one of {', '.join(NEEDS)}")
    missing = _missing(wanted)
    if missing and os.environ.get(FORCE) != "1":
        raise IsaError(
            f"{VARIABLE}={wanted!r} needs {', '.join(missing)}, which this CPU lacks; "
            f"it has: {', '.join(supported())}"
        )
    return wanted


def prepare_numba() -> None:
    """Settle what Numba compiles for. Must run before anything is compiled."""
    if _elsewhere is not None:  # who builds has a target of its own
        return
    isa, settings = chosen(), {}
    if os.environ.get(VARIABLE):
        settings = dict(zip(("CPU_NAME", "CPU_FEATURES"), target(), strict=True))
    elif isa in ("dotprod", "i8mm"):
        # LLVM does not list these for a core that it does not know by name, and then ends the
        # process.
        import llvmlite.binding as llvm

        wanted = [llvm.get_host_cpu_features().flatten(), *(f"+{name}" for name in NEEDS[isa])]
        settings = {"CPU_FEATURES": ",".join(filter(None, wanted))}
    for name, value in settings.items():
        os.environ.setdefault(f"NUMBA_{name}", value)
        if "numba" in sys.modules:  # it has read its environment already
            setattr(sys.modules["numba"].config, name, os.environ[f"NUMBA_{name}"])
