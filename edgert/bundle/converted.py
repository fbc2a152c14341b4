"""Models in other programs' files: a GGUF file is converted into the cache and used there."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

from .. import limits
from ..errors import BundleError, ResourceError
from ..notices import notice
from ..storage.cachedir import cache_root, writable
from ..storage.folder import open_regular, sha256_fd
from ..storage.gguf_header import MAGIC
from ..storage.hash_cache import HashCache
from .store import located

FOLDER = "converted"  # in the cache
_SPLIT = re.compile(r"(.+-)\d{5}(-of-)(\d{5})(\.gguf)", re.IGNORECASE)


def as_bundle(path: str | os.PathLike[str]) -> Path:
    """The path of a bundle as it is, of a name its place in the store; of a GGUF file its bundle in
    the cache, made where there is none. Raises BundleError, ConvertError, ResourceError.

    The bundle's name has the hash of the file's content, of all parts of a split file.
    """
    found = located(path)
    if not is_gguf(found):
        if found.suffix.lower() == ".gguf" and not found.is_dir():
            raise _no_gguf(found)
        return found
    folder = cache_root() / FOLDER
    target = folder / f"{found.stem[:80]}-{_digest(found)[:16]}.edge"
    if target.is_dir():
        return target
    if not writable(folder):
        raise ResourceError(
            f"{folder} cannot be written, expected a place for the bundle of {found}",
            code="cache",
            hint="set EDGERT_CACHE to a writable folder, or convert the file yourself: edgert "
            f"convert {found.name} -o {found.stem}.edge",
        )
    from ..converters.convert import convert

    notice(f"{found} is converted once, into {target}")
    convert(found, target, name=found.stem, golden=False, progress=sys.stderr.isatty())
    return target


def is_gguf(path: Path) -> bool:
    """Whether this is a file that begins as GGUF does."""
    if not path.is_file():
        return False
    try:
        fd = open_regular(path, follow=True)
    except BundleError:
        return False
    try:
        return os.read(fd, len(MAGIC)) == MAGIC
    finally:
        os.close(fd)


def _no_gguf(path: Path) -> BundleError:
    """The error for a name of a GGUF file behind which there is none."""
    there = path.is_file()
    return BundleError(
        f"{path} {'does not begin as GGUF files do' if there else 'is not there'}, expected a GGUF "
        "file, or a bundle directory (name.edge)",
        code="gguf" if there else "bundle-missing",
        hint="download the file again, it may be another one or cut off"
        if there
        else "check the path; `ls` shows what is beside it",
        path=path,
    )


def _digest(path: Path) -> str:
    """SHA-256 over the hashes of a file, or of all parts of a split one that are there."""
    part, paths = _SPLIT.fullmatch(path.name), [path]
    if part:
        numbers = range(1, min(int(part[3]), limits.GGUF_SPLITS) + 1)
        names = [f"{part[1]}{i:05}{part[2]}{part[3]}{part[4]}" for i in numbers]
        paths = [each for name in names if (each := path.with_name(name)).is_file()] or [path]
    whole, cache = hashlib.sha256(), HashCache()
    for each in paths:
        fd = open_regular(each, follow=True)
        try:
            known = cache.get(each, fd)
            if known is None:
                known = sha256_fd(fd)[0]
                cache.put(each, fd, known)
        finally:
            os.close(fd)
        whole.update(known.encode())
    cache.save()
    return whole.hexdigest()
