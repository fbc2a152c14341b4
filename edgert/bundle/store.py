"""A store of named bundles in the cache folder.

    qwen3:0.6b-int4        a short name (`known_models`), its size, how matrices are stored
    qwen3                  the same of the default size, as int4
    Qwen/Qwen3-0.6B:int8   any repository of the hub, perhaps @revision
    my-model:int4          what was imported from this machine

A name is taken apart here and nowhere else. Bundles lie in `models` of the cache folder, by the
parts of their names; they get there whole (`writer`), and what is being made stands beside them.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, RequestError, ResourceError
from ..kernels.encodings import asked
from ..storage.cachedir import cache_root
from ..storage.folder import check_name
from ..storage.lock import FileLock
from ..storage.replace import remove_folder
from .known_models import KNOWN
from .manifest import MANIFEST_NAME

FOLDER, NAMED, HUB, END = "models", "names", "hub", ".edge"
DEFAULT_QUANT, LATEST = "int4", "latest"
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_NAME = re.compile(
    rf"(?:(?P<org>{_PART})/)?(?P<name>{_PART})(?:@(?P<revision>{_PART}))?(?::(?P<tag>{_PART}))?",
    re.ASCII,
)
_WORK = (".stage", ".partial-", ".candidates", ".lock", ".old-", ".removed-")


@dataclass(frozen=True)
class Name:
    """A name taken apart. text: how it is listed. source: hub id to pull it from, "" for names that
    only mean what is in the store. quant: how matrices are stored. place: its folder in the
    store, with "/"."""

    text: str
    source: str
    quant: str
    place: str

    @property
    def path(self) -> Path:
        """Where its bundle lies, or would."""
        return store_root().joinpath(*self.place.split("/"))


@dataclass(frozen=True)
class Stored:
    """A bundle of the store. nbytes: of its files. modified: seconds since the epoch, when it was
    put there. fingerprint: SHA-256 of its manifest. finished: whether it is whole; else what a
    stopped pull left, which the next one goes on from."""

    name: str
    path: Path
    nbytes: int
    modified: float
    fingerprint: str
    finished: bool


def store_root() -> Path:
    """The store's folder."""
    return cache_root() / FOLDER


def parse(text: str) -> Name:
    """The parts of a name. Raises RequestError for what is none."""
    found = _NAME.fullmatch(text)
    if found is None or ".." in text:
        raise _no_name(text, "")
    org, name, revision, tag = found["org"], found["name"], found["revision"], found["tag"] or ""
    if org is None:
        return _short(text, name, revision, tag)
    if any(part.lower().endswith(END) for part in (org, name, revision or "")):
        raise _no_name(text, f"no part ends with {END}")
    quant = _quant(text, "" if tag == LATEST else tag)
    at = f"{name}@{revision}" if revision else name
    place = _checked(text, f"{HUB}/{org}/{at}/{quant}{END}")
    return Name(f"{org}/{at}:{quant}", f"{org}/{at}", quant, place)


def _short(text: str, name: str, revision: str | None, tag: str) -> Name:
    """A name without an organisation: `name:size-quant`, either of which may be left out."""
    if revision:
        raise _no_name(text, "a revision needs a repository (org/name@revision)")
    name, tag = name.lower(), "" if tag == LATEST else tag.lower()
    sizes = KNOWN.get(name, {})
    quant = next((q for q in asked() if tag == q or tag.endswith(f"-{q}")), "")
    size = tag.removesuffix(quant).removesuffix("-") if quant else tag
    if sizes and not size:
        size = next(iter(sizes))
    source = sizes.get(size, "")
    full = f"{size}-{quant or DEFAULT_QUANT}" if size else quant or DEFAULT_QUANT
    place = _checked(text, f"{NAMED}/{name}/{full}{END}")
    return Name(f"{name}:{full}", source, quant or DEFAULT_QUANT, place)


def _quant(text: str, tag: str) -> str:
    tag = tag.lower() or DEFAULT_QUANT
    if tag not in asked():
        raise _no_name(text, f"behind the colon one of {', '.join(asked())}")
    return tag


def _checked(text: str, place: str) -> str:
    """A place whose parts every file system takes."""
    try:
        return check_name(place)
    except BundleError as error:
        raise _no_name(text, error.message) from None


def _no_name(text: str, more: str) -> RequestError:
    return RequestError(
        f"{text[:120]!r} is no name of a model, expected such as 'qwen3:0.6b-int4' or "
        f"'org/repository:int8'{f' ({more[:200]})' if more else ''}",
        code="model-name",
        hint="`edgert list --known` shows the short names",
    )


def located(path: str | os.PathLike[str]) -> Path:
    """A path as it is; where nothing stands there and it is the name of a stored bundle, that
    bundle's. Raises BundleError for an empty one, which would be the current folder."""
    if not os.fspath(path):
        raise BundleError(
            "an empty path, expected a bundle directory (name.edge)", code="bundle-missing"
        )
    found = Path(path)
    if os.path.lexists(found):
        return found
    name = named(path)
    return name.path if name is not None and (name.path / MANIFEST_NAME).is_file() else found


def named(path: str | os.PathLike[str]) -> Name | None:
    """The name that a path may be, None where it cannot be any."""
    with contextlib.suppress(RequestError):
        return parse(Path(path).as_posix())
    return None


def pull_hint(path: str | os.PathLike[str]) -> str:
    """What to do for a path where nothing is, if it is the name of a model that can be had."""
    name = None if os.path.lexists(path) else named(path)
    if name is None or not name.source:
        return ""
    return f"it is a model's name, which is not in the store yet: edgert pull {name.text}"


def stored() -> list[Stored]:
    """What is in the store, the newest first; also what stopped pulls left."""
    found = {name: _entry(name, path) for name, path in _places()}
    return sorted(found.values(), key=lambda entry: (-entry.modified, entry.name))


def _places() -> Iterator[tuple[str, Path]]:
    """Names and paths of all bundles, and of those to be."""
    root = store_root()
    for place in sorted([*root.glob(f"{NAMED}/*/*"), *root.glob(f"{HUB}/*/*/*")]):
        _, *parts, last = place.relative_to(root).parts
        base, end, rest = last.rpartition(END)
        work = rest.startswith((".stage", ".candidates"))
        if end and (not rest or work) and place.is_dir() and not place.is_symlink():
            yield f"{'/'.join(parts)}:{base}", place.with_name(base + end)


def _entry(name: str, path: Path) -> Stored:
    manifest = path / MANIFEST_NAME
    try:
        data, modified = manifest.read_bytes(), manifest.stat().st_mtime
    except OSError:
        folders = [p for p in path.parent.glob(f"{path.name}*") if p.is_dir()]
        times = [folder.stat().st_mtime for folder in folders]
        return Stored(name, path, sum(map(_nbytes, folders)), max(times, default=0), "", False)
    import hashlib

    return Stored(name, path, _nbytes(path), modified, hashlib.sha256(data).hexdigest(), True)


def _nbytes(folder: Path) -> int:
    found = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                found += os.lstat(os.path.join(place, file)).st_size
    return found


def entry(text: str) -> Stored:
    """The stored bundle of a name, or what a stopped pull left of it. Raises RequestError."""
    name = parse(text)
    for other, path in _places():
        if path == name.path:
            return _entry(other, path)
    held = [kept.name for kept in stored()]
    raise RequestError(
        f"{name.text!r} is not in the store, which holds {', '.join(held[:8]) or 'nothing'}",
        code="model-missing",
        hint="`edgert list` shows what is there",
    )


def remove(kept: Stored) -> None:
    """Take a bundle out of the store: at once, then its files. Raises ResourceError where somebody
    is making it, or it cannot be removed."""
    path = kept.path
    with FileLock(path.with_name(f"{path.name}.lock"), kept.name):
        gone = path.with_name(f"{path.name}.removed-{secrets.token_hex(4)}")
        try:
            if path.exists():
                os.rename(path, gone)
        except OSError as error:
            raise ResourceError(
                f"{path} could not be removed: {error.strerror or error}",
                code="write",
                hint="close what uses it, and check the folder's permissions",
            ) from None
        for folder in path.parent.glob(f"{path.name}.*"):
            if folder.name.startswith(tuple(path.name + end for end in _WORK)) and folder.is_dir():
                remove_folder(folder)
    tidy(path)


def tidy(place: Path) -> None:
    """Remove folders around a bundle's place that hold nothing."""
    for folder in (place.parent, place.parent.parent):
        with contextlib.suppress(OSError):  # others are in it
            if folder not in (store_root(), store_root() / NAMED, store_root() / HUB):
                folder.rmdir()
