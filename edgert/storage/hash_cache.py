"""Remembers which file content was hashed, so that a bundle is hashed once per content change.

One JSON file in the user's cache folder: resolved path -> [inode, size, mtime, ctime, SHA-256]. A
file younger than two seconds is not remembered, because a later write could carry the same time.
Losing the file, or not being able to write it, costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from .cachedir import cache_root

ENTRIES = 4096
RACY_SECONDS = 2.0


def cache_path() -> Path:
    """Where the cache lies."""
    return cache_root() / "verified.json"


def _signature(fd: int) -> list[int]:
    status = os.fstat(fd)
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class HashCache:
    """Hashes known from earlier loads; `save` writes what this one added."""

    def __init__(self) -> None:
        self._path = cache_path()
        self._known = _load(self._path)
        self._fresh: dict[str, list[Any]] = {}

    def get(self, path: Path, fd: int) -> str | None:
        """SHA-256 of the open file `fd` at `path`, if it is unchanged since it was hashed."""
        entry = self._known.get(str(path.resolve()))
        known = isinstance(entry, list) and len(entry) == 5 and entry[:4] == _signature(fd)
        return str(entry[4]) if known and entry is not None else None

    def put(self, path: Path, fd: int, sha256: str) -> None:
        """Remember a hash that was just computed from `fd`."""
        signature = _signature(fd)
        if time.time() - max(signature[2:]) / 1e9 > RACY_SECONDS:
            self._fresh[str(path.resolve())] = [*signature, sha256]

    def save(self) -> None:
        """Merge with what other processes saved meanwhile, write aside, rename."""
        if not self._fresh:
            return
        merged = _load(self._path)
        for key, entry in self._fresh.items():
            merged.pop(key, None)
            merged[key] = entry
        self._write(dict(list(merged.items())[-ENTRIES:]))

    def forget(self, folder: Path) -> None:
        """Drop what is known of files in `folder`, whoever added it."""
        inside, known = folder.resolve(), _load(self._path)
        kept = {key: entry for key, entry in known.items() if inside not in Path(key).parents}
        if len(kept) < len(known):
            self._write(kept)

    def _write(self, kept: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd, aside = tempfile.mkstemp(dir=self._path.parent, prefix="verified-")
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(kept, file)
            os.chmod(aside, 0o644)  # other users of the folder may know the hashes, too
            os.replace(aside, self._path)


def _load(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
