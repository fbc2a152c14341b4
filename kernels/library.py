"""Kernels that come with the package as machine code: one shared library for each instruction set.

`kernels/build.py` makes them, with a manifest that holds a hash of every kernel source and of every
library. A library runs only where its bytes and the sources beside it are those of the manifest:
native code is not checked by anything else. The libraries call no function of the system.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import sys
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from . import isa
from .cpu.entries import ENTRIES

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "built"
MANIFEST, SCHEMA = "manifest.json", 1
PREFIX = "edgert_"  # of exported symbols
IDENTITY = "identity"  # exported text that names what the library was made for, and from
VARIABLE = "EDGERT_KERNEL_LIBRARY"  # "0": compile with Numba all the same
MOST_BYTES, MOST_MANIFEST_BYTES = 64 << 20, 4 << 20

Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
FileName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]{0,200}\Z")]


class LibraryError(RuntimeError):
    """A library that is there may not be run."""


class Entry(msgspec.Struct, frozen=True):
    """What the manifest says of a library: a file beside it, its hash and its symbols."""

    file: FileName
    sha256: Sha256
    kernels: list[Name]


class Manifest(msgspec.Struct, frozen=True):
    """The manifest: the hash of the sources that the libraries were made from."""

    sources: Sha256
    libraries: dict[str, Entry]


class _Header(msgspec.Struct, frozen=True):
    schema: Any


# Made here, once, under the lock of importing: see `edgert/storage/typed.py`.
_HEADERS, _MANIFESTS = msgspec.json.Decoder(_Header), msgspec.json.Decoder(Manifest)


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
    """SHA-256 of all Python files of this package, names included. LibraryError where one cannot
    be read."""
    digest = hashlib.sha256()
    try:
        for path in sorted(_sources(str(HERE), "")):
            data = (HERE / path).read_bytes()
            digest.update(f"{path} {len(data)}\n".encode())
            digest.update(data)
    except (OSError, ValueError) as error:
        raise LibraryError(f"the kernel sources cannot be read: {error}") from None
    return digest.hexdigest()


def _sources(folder: str, inside: str) -> list[str]:
    """Paths of Python files below the package, with slashes. What editors leave there (`.#x.py`)
    is no source, nor is a folder that is called like a file."""
    found: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.endswith(".py"):
                found += [inside + entry.name] if entry.is_file() else []
            elif entry.is_dir() and entry.name not in ("__pycache__", "built"):
                found += _sources(entry.path, f"{inside}{entry.name}/")
    return found


def listed(folder: Path = FOLDER) -> Manifest | None:
    """The manifest, None where there is no file. LibraryError for one that is damaged, of another
    schema, or cannot be read."""
    path = folder / MANIFEST
    try:
        text = _read(path, MOST_MANIFEST_BYTES)
    except FileNotFoundError:
        return None
    try:
        schema = _HEADERS.decode(text).schema
        if type(schema) is not int or schema != SCHEMA:  # neither true nor 1.0
            raise LibraryError(f"{path}: expected schema {SCHEMA}, found {str(schema)[:20]}")
        return _MANIFESTS.decode(text)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise LibraryError(f"{path} is damaged ({error})") from None


def load(isa_name: str, folder: Path = FOLDER) -> Library | None:
    """The library for an instruction set of this machine, None where the package has none.

    Raises LibraryError, which says what is wrong, for one that is damaged, was made from other
    sources or for something else, or cannot be loaded.
    """
    manifest, key = listed(folder), key_of(isa_name)
    entry = manifest.libraries.get(key) if manifest is not None else None
    if manifest is None or entry is None:
        return None
    missing = sorted({*ENTRIES} - {*entry.kernels})
    if missing or IDENTITY in entry.kernels:
        said = f"has no {', '.join(missing)}" if missing else f"calls {IDENTITY!r} a kernel"
        raise LibraryError(f"{folder / MANIFEST} is damaged ({key} {said})")
    path = folder / entry.file
    if manifest.sources != sources_hash():
        raise LibraryError(
            f"{path.name} was made from other kernel sources than those installed "
            f"({manifest.sources[:12]}, here {sources_hash()[:12]})"
        )
    _check_bytes(path, entry.sha256)
    return _open(path, entry.kernels, f"{key} {manifest.sources}")


def remedy() -> str:
    """What to do about a library that is refused. Only a checkout has the build's settings beside
    the sources."""
    build, install = "`python -m edgert.kernels.build` makes them anew", "install edgert again"
    if (HERE.parent / "pyproject.toml").is_file():
        return f"{build}; where edgert was installed, {install}"
    return f"{install}; in a checkout, {build}"


def _read(path: Path, most: int) -> bytes:
    """A regular file of at most so many bytes: a pipe or a device would not end. FileNotFoundError
    where there is nothing, LibraryError for all else."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        number = os.open(path, flags)
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise LibraryError(f"{path} cannot be read: it is no regular file")
            with open(number, "rb", closefd=False) as file:
                data = file.read(most + 1)
        finally:
            os.close(number)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LibraryError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > most:
        raise LibraryError(f"{path} has more than {most} bytes")
    return data


def _check_bytes(path: Path, digest: str) -> None:
    try:
        found = hashlib.sha256(_read(path, MOST_BYTES)).hexdigest()
    except FileNotFoundError:
        raise LibraryError(f"{path} cannot be read: there is no such file") from None
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
