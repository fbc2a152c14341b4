"""Where edgert keeps what it can recreate: compiled kernels, packed weights, checked hashes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

VARIABLE = "EDGERT_CACHE"


def cache_root() -> Path:
    """The cache folder: `EDGERT_CACHE`, else the user's cache directory for edgert."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("edgert", appauthor=False)


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder` (created if need be)."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    return False
