"""Kernels that come with the package as machine code: one shared library for each instruction set.

`kernels/build.py` makes them, with a manifest that holds a hash of every kernel source and of every
library. A library runs only where its bytes and the sources beside it are those of the manifest:
native code is not checked by anything else. The libraries call no function of the system.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from . import isa

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "built"
MANIFEST, SCHEMA = "manifest.json", 1
PREFIX = "edgert_"  # of exported symbols
IDENTITY = "identity"  # exported text that names what the library was made for, and from
VARIABLE = "EDGERT_KERNEL_LIBRARY"  # "0": compile with Numba all the same
MOST_BYTES = 64 << 20


class LibraryError(RuntimeError):
    """A library that is there may not be run."""


class Library(NamedTuple):
    """A loaded library: its file, and the address of every kernel and entry."""

    path: Path
    addresses: dict[str, int]
    handle: Any


def key_of(isa_name: str, system: str = "", machine: str = "") -> str:
    """A library's name in the manifest, for this machine unless said otherwise."""
    return f"{system or sys.platform}-{machine or isa.machine()}-{isa_name}"


@lru_cache(maxsize=1)
def sources_hash() -> str:
    """SHA-256 of all Python files of this package, names included."""
    digest = hashlib.sha256()
    for path in sorted(_sources(str(HERE), "")):
        data = (HERE / path).read_bytes()
        digest.update(f"{path} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _sources(folder: str, inside: str) -> list[str]:
    """Paths of Python files below the package, with slashes."""
    found: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                found.append(inside + entry.name)
            elif entry.is_dir() and entry.name not in ("__pycache__", "built"):
                found += _sources(entry.path, f"{inside}{entry.name}/")
    return found


def listed(folder: Path = FOLDER) -> dict[str, Any]:
    """The manifest's object, empty where there is no file. LibraryError for a damaged one."""
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError:
        return {}
    try:
        found = json.loads(text)
        if found["schema"] != SCHEMA or not isinstance(found["libraries"], dict):
            raise LibraryError(f"{folder / MANIFEST}: expected schema {SCHEMA} with libraries")
    except (ValueError, KeyError, TypeError) as error:
        raise LibraryError(f"{folder / MANIFEST} is damaged ({error})") from None
    return dict(found)


def load(isa_name: str, folder: Path = FOLDER) -> Library | None:
    """The library for an instruction set of this machine, None where the package has none.

    Raises LibraryError, which says what is wrong, for one that is damaged, was made from other
    sources or for something else, or cannot be loaded.
    """
    manifest, key = listed(folder), key_of(isa_name)
    entry = manifest.get("libraries", {}).get(key)
    if entry is None:
        return None
    try:
        path, digest, kernels = folder / entry["file"], entry["sha256"], list(entry["kernels"])
        sources = manifest["sources"]
    except (KeyError, TypeError) as error:
        raise LibraryError(f"{folder / MANIFEST} is damaged ({error!r})") from None
    if sources != sources_hash():
        raise LibraryError(
            f"{path.name} was made from other kernel sources than those installed "
            f"({sources[:12]}, here {sources_hash()[:12]})"
        )
    _check_bytes(path, digest)
    return _open(path, kernels, f"{key} {sources}")


def _check_bytes(path: Path, digest: str) -> None:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise LibraryError(f"{path} has more than {MOST_BYTES} bytes")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise LibraryError(f"{path} cannot be read: {error.strerror or error}") from None
    if found != digest:
        raise LibraryError(f"{path} is damaged: its SHA-256 is {found[:12]}…, not {digest[:12]}…")


def _open(path: Path, kernels: list[str], identity: str) -> Library:
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"{path} cannot be loaded: {error}") from None
    try:
        text = (ctypes.c_char * (len(identity) + 1)).in_dll(handle, PREFIX + IDENTITY)
        if text.raw != identity.encode() + b"\0":
            raise LibraryError(f"{path} was made for something else than {identity!r}")
        functions = {name: getattr(handle, PREFIX + name) for name in kernels}
    except (AttributeError, ValueError) as error:
        raise LibraryError(f"{path} lacks a symbol: {error}") from None
    address = {n: ctypes.cast(f, ctypes.c_void_p).value or 0 for n, f in functions.items()}
    return Library(path, address, handle)


if __name__ == "__main__":
    print(sources_hash())
