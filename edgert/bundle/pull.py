"""Putting bundles into the store: from the hub, from a checkpoint or GGUF file, or as they are.

A pull that is stopped goes on where it was: downloads in the hub's cache, conversions in the stage
cache beside the bundle to be. Two pulls of one name do not meet: the second is told who is at it.
"""

from __future__ import annotations

import os
import shutil
from difflib import get_close_matches
from pathlib import Path

from ..errors import RequestError, ResourceError
from ..notices import notice
from ..storage.cachedir import writable
from .converted import is_gguf
from .known_models import KNOWN
from .manifest import MANIFEST_NAME
from .reader import Bundle
from .store import Name, Stored, entry, parse, tidy
from .writer import BundleWriter


def pull(
    text: str,
    *,
    source: str | os.PathLike[str] | None = None,
    force: bool = False,
    method: str | None = None,
    progress: bool = True,
) -> Stored:
    """Have the bundle of a name in the store, and say where it is; what is there stays, unless
    `force`.

    source: a checkpoint's folder, a GGUF file or a bundle, instead of the hub's repository that the
    name means. method: how codes are chosen, as for `convert`. Raises RequestError for names that
    mean no repository, ConvertError, BundleError, ResourceError.
    """
    name = parse(text)
    if (name.path / MANIFEST_NAME).is_file() and not force:
        return entry(text)
    found = _source(name, source)
    if not writable(name.path.parent):
        raise ResourceError(
            f"{name.path.parent} cannot be written, expected a place for {name.text}",
            code="cache",
            hint="set EDGERT_CACHE to a writable folder",
        )
    try:
        if isinstance(found, Path) and (found / MANIFEST_NAME).is_file():
            _copy(found, name, method)
        else:
            _converted(found, name, text, method, force=force, progress=progress)
    except BaseException:
        tidy(name.path)
        raise
    return entry(text)


def _converted(
    found: str | Path, name: Name, text: str, method: str | None, *, force: bool, progress: bool
) -> None:
    """A checkpoint or GGUF file, converted under a name of the store."""
    from ..converters.convert import convert

    if progress:
        done = "converted" if isinstance(found, Path) else "fetched and converted"
        notice(f"{found} is {done}, for {name.text}; Ctrl-C stops, and the same command goes on")
    keep = isinstance(found, Path) and is_gguf(found) and not _asks_quant(text)
    convert(
        found,
        name.path,
        quant=None if keep else name.quant,
        method=method,
        name=name.text,
        force=force,
        progress=progress,
    )


def _source(name: Name, given: str | os.PathLike[str] | None) -> str | Path:
    """What a name is made from."""
    if given is not None:
        path = Path(given)
        if not path.exists():
            raise RequestError(
                f"{path} does not exist, expected a checkpoint's folder, a GGUF file or a bundle",
                code="model-source",
                hint="check the path; without --source the hub is asked",
            )
        return Path(os.path.abspath(path))
    if name.source:
        return name.source
    short = name.text.partition(":")[0]
    sizes = KNOWN.get(short)
    expected = f"one of the sizes {', '.join(sizes)}" if sizes else "a known name or org/repository"
    if near := [] if sizes else get_close_matches(short, KNOWN, n=3):
        expected += f"; did you mean {', '.join(near)}?"
    raise RequestError(
        f"{name.text!r} means no repository of the hub, expected {expected}",
        code="model-name",
        hint="`edgert list --known` shows the short names; --source PATH stores what is here",
    )


def _asks_quant(text: str) -> bool:
    """Whether a name says how matrices are to be stored; else codes of a GGUF file stay."""
    quant = parse(text).quant
    return text.lower().endswith((f":{quant}", f"-{quant}"))


def _copy(bundle: Path, name: Name, method: str | None) -> None:
    """A bundle's files, verified, under a name of the store."""
    if method is not None:
        raise RequestError(
            f"--method {method} for {bundle}, which is a bundle and stored as it is",
            code="model-source",
            hint="leave it out, or give the checkpoint",
        )
    with BundleWriter(name.path) as writer, Bundle.open(bundle, verify="full") as opened:
        for file in opened.manifest.files:
            shutil.copyfile(opened.path_of(file), writer.file(file), follow_symlinks=False)
        writer.finish(opened.manifest)
