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

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends without a word

import argparse
import hashlib
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
FAMILIES = ("linux-x86_64", "linux-aarch64", "darwin-x86_64", "darwin-aarch64", "win32-x86_64")
SUFFIXES = {"linux": ".so", "darwin": ".dylib", "win32": ".dll"}
TOOLS = ("numba", "llvmlite", "ziglang")
MANIFEST, SCHEMA = "manifest.json", 1
OURS = re.compile(rf"({'|'.join(FAMILIES)})-\w+\.(so|dylib|dll)")
MARK = ".edgert-build"  # ends the names of folders for work
STALE_SECONDS = 3600.0  # since something was last done there
TRIES = 10  # to put a finished folder into its place
STOPS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]

# Starts a module with the search path of the process that asks for it, and ends when that one ends:
# then its end of the pipe at standard input closes. A module of the kernels' package comes from its
# folder: in a build there is no installed `edgert` around it.
LOADER = """
import importlib.util, os, runpy, sys, threading
paths, where, module, *rest = sys.argv[1:]
sys.path[:] = paths.split(os.pathsep)
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
if where:
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


def families_of(words: Sequence[str]) -> list[str]:
    """What "all", "host" (or nothing: this machine's) or names of families mean."""
    if list(words) == ["all"]:
        return list(FAMILIES)
    found = [own_family()] if list(words) in ([], ["host"]) else list(dict.fromkeys(words))
    for name in found:
        if name in ("all", "host", "none"):
            raise BuildError(f"{name!r} stands alone, found {' '.join(words)!r}")
        if name not in FAMILIES:
            raise BuildError(f"no kernels for {name!r}, expected some of {', '.join(FAMILIES)}")
    return found


def build(
    folder: Path,
    families: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    jobs: int = 0,
    tell: bool = True,
) -> list[Path]:
    """Make the libraries and their manifest in `folder`, whose former libraries go away; nothing
    changes there unless all succeed. Returns the libraries.

    families: as for `families_of`. only: instruction sets, all without. Raises BuildError where a
    tool is missing, a target is unknown or fails or `folder` holds something else; OSError.
    """
    folder = Path(os.path.abspath(folder))
    wanted = targets(families, only)
    with _apart(folder) as (work, made):  # first: whether it can be written
        tools, sources = {name: _version(name) for name in TOOLS}, sources_hash()
        libraries = _libraries(wanted, work, made, jobs if jobs > 0 else _cores(), tell)
        if sources_hash() != sources:
            raise BuildError("the kernels' sources changed meanwhile; build again")
        manifest = {
            "schema": SCHEMA,
            "sources": sources,
            "made_with": {"python": platform.python_version(), **tools},
            "libraries": libraries,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (made / MANIFEST).write_text(text, encoding="utf-8")
    return [folder / entry["file"] for entry in libraries.values()]


def is_current(folder: Path, families: Sequence[str] = ()) -> bool:
    """Whether `folder` holds whole libraries of these sources for all that the families have."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
        listed = found["libraries"]
        return (
            found["schema"] == SCHEMA
            and {target.key for target in targets(families)} <= set(listed)
            and all(_digest(folder / e["file"]) == e["sha256"] for e in listed.values())
            and found["sources"] == sources_hash()
        )
    except Exception:  # whatever is wrong there: it is made again
        return False


def targets(families: Sequence[str], only: Sequence[str] = ()) -> list[Target]:
    sets_of = runpy.run_path(str(HERE / "isa.py"))["sets_of"]
    pairs = [name.split("-") for name in families_of(families)]
    found = [Target(system, machine, n) for system, machine in pairs for n in sets_of(machine)]
    names = list(dict.fromkeys(target.isa for target in found))
    if unknown := [name for name in only if name not in names]:
        raise BuildError(f"no instruction set {unknown[0]!r}, expected some of {', '.join(names)}")
    return [target for target in found if not only or target.isa in only]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise BuildError(f"{name} is not installed; `pip install {' '.join(TOOLS[::2])}`") from None


def sources_hash(where: Path = HERE) -> str:
    """What `library.sources_hash` says of the package in a folder."""
    with _children(where) as children:
        return children.run("the sources", str(where), "kernels.library").strip()


@contextmanager
def _apart(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A folder for work, and one that takes the place of `folder` when all went well."""
    _patiently(_check_replaceable, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}-*{MARK}"):  # by a build that was killed
        with suppress(OSError):  # by now it may be gone
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=MARK, dir=folder.parent))
    try:
        (made := work / "made").mkdir()
        yield work, made
        _patiently(_swap, made, folder, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    """BuildError where `folder` holds anything that no build put there."""
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise BuildError(f"{folder} is no folder; name another one with --out")
        return
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        mine = {"schema", "sources", "made_with", "libraries"} <= set(manifest)
        listed = {entry["file"] for entry in manifest["libraries"].values()} if mine else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        mine, listed = False, set()
    allowed = {MANIFEST, *listed} if mine or folder == HERE / "built" else set()
    for entry in list(os.scandir(folder)):
        known = entry.name in allowed or (allowed and OURS.fullmatch(entry.name))
        if not (known and entry.is_file()):
            raise BuildError(
                f"{folder} holds {entry.name!r}, expected libraries of a former build and their "
                f"{MANIFEST}, or nothing; it would be deleted: name another folder with --out"
            )


def _swap(made: Path, folder: Path, work: Path) -> None:
    """`made` takes the place of `folder`."""
    former = Path(tempfile.mkdtemp(dir=work)) / "former"
    try:
        if os.path.lexists(folder):
            _check_replaceable(folder)
            os.replace(folder, former)
        os.replace(made, folder)
    except BaseException:
        if os.path.lexists(former) and not os.path.lexists(folder):
            os.replace(former, folder)
        raise


def _patiently(action: Callable[..., None], *args: Path) -> None:
    """Again where it failed: another build may have been at it."""
    for attempt in range(TRIES):
        try:
            return action(*args)
        except (OSError, BuildError):
            if attempt == TRIES - 1:
                raise
            time.sleep(0.01 * attempt)


def _libraries(
    wanted: list[Target], work: Path, made: Path, jobs: int, tell: bool
) -> dict[str, Any]:
    """All libraries, and what the manifest says of each."""
    libraries = {}
    with _children(work) as children, ThreadPoolExecutor(jobs) as pool:
        try:
            waiting = {t: pool.submit(_library, t, work, made, children) for t in wanted}
            for target, future in waiting.items():
                entry = libraries[target.key] = future.result()
                if tell:
                    print(f"{entry['file']}: {len(entry['kernels'])} kernels", file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.kill()
            raise
    return libraries


def _library(target: Target, work: Path, made: Path, children: _Children) -> dict[str, Any]:
    """One library, and what the manifest says of it."""
    objects = work / target.key
    objects.mkdir()
    names = children.run(target.key, str(HERE), "kernels.aot", *target, str(objects)).split()
    path = made / f"{target.key}{SUFFIXES[target.system]}"
    inputs = [str(objects / f"{name}.o") for name in sorted([*names, "identity"])]
    children.run(target.key, "", "ziglang", *_linker(target, path), *inputs)
    about = {"file": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)}
    return about | {"kernels": names}


def _linker(target: Target, out: Path) -> list[str]:
    """The linker's command line up to the inputs."""
    if target.system == "linux":
        return [
            "ld.lld", "-shared", "--strip-all", "--build-id=none", "--no-undefined",
            "-z", "noexecstack", "-z", "separate-code", "-soname", f"edgert-{target.isa}",
            "-o", str(out),
        ]  # fmt: skip
    if target.system == "darwin":
        system = f"{target.machine}-macos"
        return ["cc", "-target", system, "-shared", "-nostdlib", "-s", "-o", str(out)]
    return ["lld-link", "/dll", "/noentry", "/nodefaultlib", "/Brepro", f"/out:{out}"]


class _Children:
    """Processes that do the work and end with this one, whatever ends it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock, self._killed = folder, threading.Lock(), False
        self._running: set[subprocess.Popen[bytes]] = set()
        self.pipe = os.pipe()

    def run(self, name: str, where: str, module: str, *args: str) -> str:
        """What a module printed. BuildError, about `name`, where it failed."""
        paths = [os.path.abspath(p) for p in sys.path if p and Path(p).resolve() != HERE]
        python = [sys.executable, "-s", "-X", "utf8", "-c", LOADER, os.pathsep.join(paths)]
        with self._lock:
            if self._killed:
                raise BuildError(f"{name}: stopped")
            process = subprocess.Popen(
                [*python, where, module, *args], stdin=self.pipe[0], stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, cwd=self._folder, env=_environment(),
                start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
        out, err = process.communicate()
        self._running.discard(process)
        if process.returncode:
            said = err.decode(errors="replace").strip().splitlines()
            told = [line for line in said if "error:" in line][:1] or said[-1:]
            raise BuildError(f"{name}: {told[0] if told else process.returncode}")
        return out.decode()

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            for process in list(self._running):
                process.kill()


@contextmanager
def _children(folder: Path) -> Iterator[_Children]:
    """Started in `folder`: Numba reads settings from where it runs."""
    children = _Children(folder)
    try:
        yield children
    finally:
        children.kill()
        for end in children.pipe:
            os.close(end)


def _environment() -> dict[str, str]:
    """No setting of the user's changes what is compiled. Python's home stays: it may need that."""
    dropped = ("NUMBA_", "EDGERT_", "PYTHON")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped) or k == "PYTHONHOME"}
    return kept | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and a closed terminal end the work as Ctrl-C does, and only the first of them."""

    def stop(*_: Any) -> None:
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    kept = (None, signal.SIG_IGN)
    former = {n: h for n in STOPS if (h := signal.getsignal(n)) not in kept}
    try:
        for number in former:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m edgert.kernels.build",
        description="Compile the kernels ahead of time into shared libraries.",
    )
    parser.add_argument(
        "--for", dest="families", nargs="+", default=[], metavar="SYSTEM-MACHINE",
        help=f"some of {', '.join(FAMILIES)}, or all (default: {own_family()})",
    )  # fmt: skip
    parser.add_argument("--isa", nargs="+", default=[], help="only these instruction sets")
    parser.add_argument("-o", "--out", type=Path, default=HERE / "built", metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=0, help="processes at a time (default: cores)")
    return parser


def main() -> None:
    began = time.monotonic()
    try:
        with stoppable():
            args = _parser().parse_args()
            made = build(args.out, args.families, only=args.isa, jobs=args.jobs)
    except (BuildError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted, nothing was changed", file=sys.stderr)
        sys.exit(130)
    print(f"{len(made)} libraries in {args.out}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
