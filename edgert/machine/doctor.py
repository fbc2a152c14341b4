"""What `edgert doctor` finds: packages, instruction sets, memory, caches, providers."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from .. import system_memory
from ..extras import install_hint

CORE = (
    "numpy", "tokenizers", "safetensors", "jinja2", "click", "msgspec", "tqdm", "platformdirs",
    "psutil",
)  # fmt: skip
OPTIONAL = ("onnxruntime", "numba", "llvmlite", "huggingface_hub", "torch", "onnx", "gguf")


class Problem(msgspec.Struct, frozen=True):
    """Something that keeps edgert from working, or from working well, and how to fix it."""

    message: str
    hint: str


class Findings(msgspec.Struct):
    """Everything doctor tells; sections are JSON-ready objects. Sizes in bytes."""

    edgert: str
    python: str
    system: str
    packages: dict[str, str | None]
    optional: dict[str, str | None]
    cpu: dict[str, Any]
    kernels: dict[str, Any]
    memory: dict[str, int | None]
    cache: dict[str, Any]
    providers: list[str]
    demo: dict[str, Any]
    problems: list[Problem]
    jetson: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def examine() -> Findings:
    """Look at this machine and this installation; nothing is changed but empty folders made."""
    from .. import __version__

    problems: list[Problem] = []
    packages = {name: version_of(name) for name in CORE}
    optional = {name: version_of(name) for name in OPTIONAL}
    optional["onnxruntime"] = _onnxruntime(problems)
    providers = _providers(problems)
    for name, version in packages.items():
        if version is None:
            problems.append(Problem(f"{name} is not installed", install_hint(name)))
    return Findings(
        edgert=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=packages,
        optional=optional,
        cpu=_cpu(problems),
        kernels=_kernels(problems),
        memory=_memory(),
        cache=_cache(problems),
        providers=providers,
        demo=_demo(problems),
        problems=problems,
        jetson=_jetson(problems, providers),
    )


def version_of(name: str) -> str | None:
    """Installed version of a package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu(problems: list[Problem]) -> dict[str, Any]:
    from ..kernels import isa

    chosen: str | None = None
    try:
        chosen = isa.chosen()
    except isa.IsaError as error:
        problems.append(Problem(str(error), f"unset {isa.VARIABLE}, or choose one this CPU has"))
    known = sorted({feature for needs in isa.NEEDS.values() for feature in needs})
    return {
        "model": cpu_name(),
        "instruction_set": chosen,
        "usable": list(isa.supported()),
        "features": [name for name in known if name in isa.cpu_features()],
        "logical": os.cpu_count(),
        "available": _available_cores(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    found = next(names, platform.processor() or platform.machine())
    return "".join(c if c.isprintable() else " " for c in found)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _kernels(problems: list[Problem]) -> dict[str, Any]:
    """Where the kernels' machine code comes from: "library" (shipped), "numba" (compiled here, into
    `path`), or "none"."""
    from ..kernels import isa, library
    from ..kernels.cpu import code
    from ..session import kernel_cache

    if code.misread():
        problems.append(Problem(code.misread(), f"unset {library.VARIABLE}"))
    try:
        found = code.shipped()
    except isa.IsaError:  # told among the CPU's problems
        return {"from": "none", "path": None, "files": 0}
    if code.refused():
        message = f"the shipped kernels are not used: {code.refused()}"
        problems.append(Problem(message, library.remedy()))
    if found is not None:
        return {"from": "library", "path": str(found.path), "files": 1}
    if not code.has_compiler():
        reason, hint = code.lacking()
        problems.append(Problem(f"{reason}: models run on NumPy, slowly", hint))
        return {"from": "none", "path": None, "files": 0}
    folder = kernel_cache()
    files = sum(1 for path in folder.iterdir()) if folder is not None and folder.is_dir() else 0
    return {"from": "numba", "path": str(folder) if folder is not None else None, "files": files}


def _memory() -> dict[str, int | None]:
    """Memory of the machine and the limit that a container sets, bytes."""
    found = system_memory.machine()
    return {
        "total": found.total,
        "available": found.available,
        "limit": system_memory.container_limit(),
    }


def _cache(problems: list[Problem]) -> dict[str, Any]:
    from ..storage.cachedir import VARIABLE, cache_root, writable

    root = cache_root()
    able = writable(root)
    if not able:
        problems.append(
            Problem(f"{root} cannot be written", f"set {VARIABLE} to a folder that can")
        )
    return {
        "path": str(root),
        "writable": able,
        "bytes": folder_bytes(root),
    }


def folder_bytes(folder: Path) -> int:
    """Size of all files under a folder, as far as it can be read."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _providers(problems: list[Problem]) -> list[str]:
    try:
        import onnxruntime
    except ImportError as error:
        if version_of("onnxruntime") is not None:
            problems.append(
                Problem(f"onnxruntime cannot be imported: {error}", "pip install -U onnxruntime")
            )
        return []
    return list(onnxruntime.get_available_providers())


def _onnxruntime(problems: list[Problem]) -> str | None:
    """Version of onnxruntime, whichever of its distributions provides it."""
    from ..session.providers import installed_builds

    builds = installed_builds()
    if len(builds) > 1:
        problems.append(
            Problem(
                f"{', '.join(builds)} are installed over one another",
                f"pip uninstall {' '.join(builds)}, then install the one you need",
            )
        )
    found = [f"{version_of(name)} ({name})" for name in builds if name != "onnxruntime"]
    return version_of("onnxruntime") or next(iter(found), None)


def _jetson(problems: list[Problem], providers: list[str]) -> dict[str, Any] | None:
    from ..devices.jetson import look

    board = look(providers=providers)
    if board is None:
        return None
    problems += [Problem(advice.message, advice.hint) for advice in board.problems]
    found: dict[str, Any] = msgspec.to_builtins(board, str_keys=True)
    return found


def _demo(problems: list[Problem]) -> dict[str, Any]:
    from ..demo import NAME, demo_bundle, demo_checkpoint
    from ..errors import ResourceError

    try:
        checkpoint, bundle = demo_checkpoint(), demo_bundle()
    except ResourceError as error:
        problems.append(Problem(error.message, error.hint))
        return {"name": NAME, "checkpoint": None, "bundle": None}
    return {"name": NAME, "checkpoint": str(checkpoint), "bundle": str(bundle)}
