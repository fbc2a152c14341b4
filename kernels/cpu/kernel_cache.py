"""Compiled kernels on disk: one file a kernel, sealed with a hash of all that is loaded from it.

    <name>-<key>.nbc    SHA-256 of the key and the rest of the file, then Numba's compiled function

Native code runs unchecked, so a file that is not exactly what was written is compiled anew and
replaced. The key says what the code was made from and for; the folder's name says the rest
(`vm.sources_hash`). Files may belong to anyone: a folder that can only be read serves as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from .naming import described

SEAL_BYTES = 32
STALE_SECONDS = 3600  # a file that somebody still writes is younger


class KernelFile(NullCache):  # type: ignore[misc]
    """Where Numba finds and leaves the compiled form of one function."""

    def __init__(self, folder: Path, name: str, function: Callable[..., Any]) -> None:
        self._folder, self._name = folder, name
        self._made_of = described(function)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None where there is no sound file."""
        target_context.refresh()
        key = self._key(sig, target_context.codegen())
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        payload = memoryview(data)[SEAL_BYTES:]
        if data[:SEAL_BYTES] != _seal(key, payload):
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(payload))  # noqa: S301 (sealed)

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Write aside and rename. A full disk, or a folder of somebody else, costs the time to
        compile again and nothing more."""
        if cres.library.has_dynamic_globals:  # addresses of this process
            return
        key = self._key(sig, cres.codegen)
        payload = dumps(cres._reduce())
        path = self._path(key)
        aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            try:
                with open(aside, "wb") as file:
                    file.write(_seal(key, payload))
                    file.write(payload)
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        """What killed processes left."""
        for left in self._folder.glob(f".{self._name}-*"):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink(missing_ok=True)

    def _key(self, sig: Any, codegen: Any) -> bytes:
        return repr((self._name, self._made_of, str(sig), codegen.magic_tuple())).encode()

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{self._name}-{hashlib.sha256(key).hexdigest()[:16]}.nbc"


def has(folder: Path, name: str) -> bool:
    """Whether `folder` holds some compiled form of the kernel."""
    return any(folder.glob(f"{name}-*.nbc"))


def _seal(key: bytes, payload: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(payload)
    return digest.digest()
