"""Compile the kernels ahead of time into shared libraries that the package brings.

    python -m edgert.kernels.build [--for SYSTEM-MACHINE ... | all] [--isa NAME ...] [-o FOLDER]

By default for every instruction set of this machine's family, into `kernels/built`, where
`kernels/library.py` finds them. One process compiles one instruction set, as many at a time as
there are cores. Nothing has to run on its target, so any machine builds for all of them. The same
sources and tools give the same bytes.

Linked by LLVM's lld as the PyPI package ziglang brings it, because it comes as a wheel for every
system, needs no compiler, and makes libraries for Linux, macOS and Windows alike. What is linked is
complete: it imports no symbol, on Linux not even from the C library, so one file serves glibc and
musl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
FAMILIES = ("linux-x86_64", "linux-aarch64", "darwin-x86_64", "darwin-aarch64", "win32-x86_64")
SUFFIXES = {"linux": ".so", "darwin": ".dylib", "win32": ".dll"}
TOOLS = ("numba", "llvmlite", "ziglang")
PACKAGE = "kernels"  # what the compiling processes call this package, wherever it lies

# Loads the package from its folder: in a build there is no installed `edgert` around it.
LOADER = """
import importlib.util, runpy, sys
where, module, *rest = sys.argv[1:]
spec = importlib.util.spec_from_file_location(
    "kernels", where + "/__init__.py", submodule_search_locations=[where])
sys.modules["kernels"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
sys.argv = [module, *rest]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


class BuildError(RuntimeError):
    """The libraries cannot be made; says why and what to do."""


class Target(NamedTuple):
    """What one library is for."""

    system: str
    machine: str
    isa: str

    @property
    def key(self) -> str:
        return f"{self.system}-{self.machine}-{self.isa}"


def own_family() -> str:
    """System and machine of this process, as FAMILIES spells them."""
    machine = platform.machine().lower()
    return f"{sys.platform}-{ {'amd64': 'x86_64', 'arm64': 'aarch64'}.get(machine, machine) }"


def build(
    folder: Path,
    families: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    jobs: int = 0,
    tell: bool = True,
) -> list[Path]:
    """Make the libraries and their manifest in `folder`, whose former content goes away; nothing
    changes there unless all succeed. Returns the libraries.

    families: some of FAMILIES, this machine's without. only: instruction sets, all without.
    Raises BuildError where a tool is missing or a target is unknown or fails.
    """
    targets = _targets(families or [own_family()], only)
    tools = {name: _version(name) for name in TOOLS}
    with _apart(folder) as (work, made), ThreadPoolExecutor(_jobs(jobs)) as pool:
        running: set[subprocess.Popen[bytes]] = set()
        try:
            waiting = {t: pool.submit(_library, t, work, made, running) for t in targets}
            libraries = {}
            for target, future in waiting.items():
                libraries[target.key] = future.result()
                if tell:
                    entry = libraries[target.key]
                    print(f"{entry['file']}: {len(entry['kernels'])} kernels", file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.kill()
            raise
        manifest = {
            "schema": 1,
            "sources": _sources_hash(),
            "made_with": {"python": platform.python_version(), **tools},
            "libraries": libraries,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True)
        (made / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return [folder / entry["file"] for entry in libraries.values()]


def _targets(families: Sequence[str], only: Sequence[str]) -> list[Target]:
    sets_of = runpy.run_path(str(HERE / "isa.py"))["sets_of"]
    found = []
    for family in families:
        if family not in FAMILIES:
            raise BuildError(f"no kernels for {family!r}, expected some of {', '.join(FAMILIES)}")
        system, machine = family.split("-")
        for name in sets_of(machine):
            if not only or name in only:
                found.append(Target(system, machine, name))
    if not found:
        raise BuildError(f"no instruction set of {', '.join(families)} is named {list(only)}")
    return found


def _jobs(wanted: int) -> int:
    if wanted > 0:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise BuildError(f"{name} is not installed; `pip install {' '.join(TOOLS[::2])}`") from None


def _sources_hash() -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(HERE), f"{PACKAGE}.library"],
        capture_output=True, text=True, check=True, env=_environment(),
    )  # fmt: skip
    return done.stdout.strip()


@contextmanager
def _apart(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A folder for work and one that takes the place of `folder` when all went well. Both stand
    beside it and go away in any case."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made = work / "made"
        made.mkdir()
        yield work, made
        if folder.is_dir():
            os.replace(folder, work / "former")
        os.replace(made, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _library(target: Target, work: Path, made: Path, running: set[Any]) -> dict[str, Any]:
    """One library, and what the manifest says of it."""
    objects = work / target.key
    objects.mkdir()
    names = _run(
        [sys.executable, "-c", LOADER, str(HERE), f"{PACKAGE}.aot", *target, str(objects)],
        target, running,
    ).split()  # fmt: skip
    path = made / f"{target.key}{SUFFIXES[target.system]}"
    inputs = [str(objects / f"{name}.o") for name in sorted([*names, "identity"])]
    _run([sys.executable, "-m", "ziglang", *_linker(target), str(path), *inputs], target, running)
    data = path.read_bytes()
    return {
        "file": path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "kernels": names,
    }


def _linker(target: Target) -> list[str]:
    """The linker's command line up to the output's path."""
    if target.system == "linux":
        return [
            "ld.lld", "-shared", "--strip-all", "--build-id=none", "--no-undefined",
            "-z", "noexecstack", "-z", "separate-code", "-soname", f"edgert-{target.isa}", "-o",
        ]  # fmt: skip
    if target.system == "darwin":
        return ["cc", "-target", f"{target.machine}-macos", "-shared", "-nostdlib", "-s", "-o"]
    return ["lld-link", "/dll", "/noentry", "/nodefaultlib", "/Brepro", "/out:"]


def _run(command: list[str], target: Target, running: set[Any]) -> str:
    if command[-1] and "/out:" in command:  # one word there
        at = command.index("/out:")
        command[at : at + 2] = [command[at] + command[at + 1]]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(),
        start_new_session=True,
    )  # fmt: skip
    running.add(process)
    out, err = process.communicate()
    running.discard(process)
    if process.returncode:
        said = err.decode(errors="replace").strip().splitlines()
        raise BuildError(f"{target.key}: {said[-1] if said else process.returncode}")
    return out.decode()


def _environment() -> dict[str, str]:
    """No setting of the user's changes what is compiled."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "EDGERT_"))}
    return kept | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m edgert.kernels.build", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--for", dest="families", nargs="+", default=[], metavar="SYSTEM-MACHINE",
        help=f"some of {', '.join(FAMILIES)}, or all (default: {own_family()})",
    )  # fmt: skip
    parser.add_argument("--isa", nargs="+", default=[], help="only these instruction sets")
    parser.add_argument("-o", "--out", type=Path, default=HERE / "built")
    parser.add_argument("--jobs", type=int, default=0, help="processes at a time (default: cores)")
    parser.add_argument("--sources", action="store_true", help="print the sources' hash, no more")
    args = parser.parse_args()
    if args.sources:
        print(_sources_hash())
        return
    began = time.monotonic()
    families = FAMILIES if args.families == ["all"] else args.families
    try:
        made = build(args.out, families, only=args.isa, jobs=args.jobs)
    except BuildError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted, nothing was changed", file=sys.stderr)
        sys.exit(130)
    print(f"{len(made)} libraries in {args.out}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
