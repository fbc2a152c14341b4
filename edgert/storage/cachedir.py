"""Where edgert keeps what it can recreate: compiled kernels, packed weights, checked hashes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

VARIABLE = "EDGERT_CACHE"
NOWHERE = Path(os.devnull, "no-home-folder")  # nothing can be made there


def cache_root() -> Path:
    """The cache folder: `EDGERT_CACHE`, else the user's cache directory for edgert; `NOWHERE` for a
    user without a home."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    from platformdirs import user_cache_path

    try:
        found = user_cache_path("edgert", appauthor=False)
    except (RuntimeError, KeyError):  # platformdirs, where neither HOME nor the user is known
        return NOWHERE
    return found if found.is_absolute() else NOWHERE


def readable(folder: Path) -> bool:
    """Whether files of `folder` can be read."""
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder` (created if need be)."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    return False
