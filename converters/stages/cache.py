"""The stage cache: a conversion that was stopped goes on where it was.

`<out>.stage/<part>/<stage>/` holds the weights that a stage made of a part, and its key: all that
they depend on, which is the source, the stages before it and its own options. Once the stage is
done, its graph and report lie there too, and it need not run again. Another key empties the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...errors import ResourceError
from ...graph import Weight
from ...storage.replace import remove_folder
from .weight_cache import JOURNAL, KEY, RESULT, RESULTS, Result, WeightCache

WORK = "work"
_BLOCKS = hasattr(os.stat_result, "st_blocks")


class StageCache:
    """All of `<out>.stage`: a folder for each stage of each part.

    keys: of every stage that will run, by (part, stage). What lies there under another key, or
    belongs to none, is removed; with `resume` false everything is.
    """

    def __init__(self, root: Path, keys: Mapping[tuple[str, str], str], *, resume: bool) -> None:
        self.root, self.keys = root, keys
        self.open_caches: dict[tuple[str, str], WeightCache] = {}
        if not resume:
            remove_folder(root)
        kept = {self._folder(*place) for place in keys if self._is_current(*place)}
        for found in [*root.glob("*/*"), *root.glob("*")]:
            if found not in kept and not any(found in folder.parents for folder in kept):
                remove_folder(found)
                if not found.is_dir():
                    found.unlink(missing_ok=True)

    def _folder(self, part: str, stage: str) -> Path:
        return self.root / part / stage

    def _is_current(self, part: str, stage: str) -> bool:
        try:
            found = (self._folder(part, stage) / KEY).read_text("ascii")
        except (OSError, ValueError):
            return False
        return found.partition("\n")[0] == self.keys[part, stage]

    def open(self, part: str, stage: str, weights: Mapping[str, Weight]) -> WeightCache:
        """The cache of a stage, with what an earlier run left in it."""
        if (part, stage) in self.open_caches:
            self.open_caches[part, stage].close()
        cache = WeightCache(self._folder(part, stage), self.keys[part, stage], weights)
        self.open_caches[part, stage] = cache
        return cache

    def work(self, part: str, stage: str) -> Path:
        """A folder that a stage keeps other files in until its cache is opened."""
        folder = self._folder(part, stage)
        if not self._is_current(part, stage):
            remove_folder(folder)
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        (folder / KEY).write_text(self.keys[part, stage], "ascii")
        return folder / WORK

    def finished(self, part: str, stage: str) -> tuple[Result, WeightCache] | None:
        """The result of a stage that an earlier run finished, if all its bytes are still right."""
        try:
            data = (self._folder(part, stage) / RESULT).read_bytes()
            result = RESULTS.decode(data)
            weights = {name: result.graph.weights[name] for name in result.weights}
        except (OSError, msgspec.DecodeError, KeyError):
            return None
        cache = self.open(part, stage, weights)
        right = [cache.done(name) is not None for name in weights]
        return (result, cache) if all(right) else None

    @property
    def taken(self) -> int:
        """How many weights were taken over from an earlier run."""
        found = {(p, name) for (p, _), cache in self.open_caches.items() for name in cache.taken}
        return len(found)

    def close(self) -> None:
        """Close files, keep what is there."""
        for cache in self.open_caches.values():
            cache.close()

    def leave(self, full: bool) -> None:
        """After a conversion that failed: keep what the next one can take over. full: the disk
        is, so that nothing stays there."""
        self.close()
        kept = (*self.root.glob(f"*/*/{JOURNAL}"), *self.root.glob(f"*/*/{WORK}/*"))
        if full or not any(path.stat().st_size for path in kept):
            remove_folder(self.root)

    def remove(self) -> None:
        """Close and delete everything."""
        self.close()
        remove_folder(self.root)


def allocated(root: Path) -> int:
    """Bytes of disk that a cache takes."""
    if not _BLOCKS:
        return 0
    return sum(file.lstat().st_blocks * 512 for file in root.rglob("*"))


def disk_full(path: Path, needed: int) -> ResourceError:
    """The error for a disk that cannot hold the bundle."""
    free = shutil.disk_usage(path).free
    return ResourceError(
        f"{path} has {free} bytes free, the conversion needs {needed}",
        code="disk-full",
        hint="free some space or write to another disk; the old bundle, if any, is untouched",
        needed=needed,
        free=free,
    )


def key_of(**values: Any) -> str:
    """SHA-256 of a canonical text of everything that a result depends on."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
