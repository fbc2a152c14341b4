"""Where a diffusers directory is: here, or in the cache of huggingface_hub after a download of the
files that are needed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ... import limits
from ...errors import BundleError, ConvertError
from ...storage.folder import check_name
from .files import json_object, read_file, weight_map
from .hub import HUB_ID
from .hub_client import cache_only, meaning, quiet
from .pipelines import INDEX, layout_of, needed_files

_PLAIN = re.compile(r"[\w./ +-]+")  # names that mean themselves as patterns


def recognises(source: str | Path) -> bool:
    """Whether a path or hub id is a pipeline of diffusers: its model_index.json says so."""
    path = Path(source)
    if path.exists():
        return path.is_dir() and (path / INDEX).is_file()
    if not isinstance(source, str) or not HUB_ID.fullmatch(source) or source.startswith("."):
        return False
    try:
        return _index(source).is_file()
    except Exception:  # no such file, no network, no package: the next kind of source says why
        return False


def pipeline_folder(source: str | Path) -> Path:
    """The directory of a pipeline; of a hub id, the files that a conversion needs are fetched."""
    if Path(source).is_dir():
        return Path(source)
    repo, _, revision = str(source).partition("@")
    offline = cache_only()
    try:
        if offline:
            return _index(str(source)).parent
        with quiet():
            return _fetched(repo, revision or None)
    except ConvertError:
        raise
    except Exception as error:  # the hub's client raises its own, httpx's and OSError
        raise ConvertError(
            f"{source} could not be downloaded: {meaning(error, offline)}",
            code="download",
            hint="check the name, the network and, for gated models, `hf auth login`; or bring the "
            "pipeline's folder here and give its path",
        ) from error


def _index(source: str) -> Path:
    """What says that a hub id is a pipeline; raises what the client does."""
    from huggingface_hub import hf_hub_download

    repo, _, revision = source.partition("@")
    more: dict[str, Any] = {"local_files_only": True} if cache_only() else {}
    with quiet():
        return Path(hf_hub_download(repo, INDEX, revision=revision or None, **more))


def _fetched(repo: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    def fetched(name: str, limit: int) -> tuple[bytes, Path]:
        path = Path(hf_hub_download(repo, name, revision=revision))
        return read_file(path, limit) or b"", path

    def shards_of(index: str) -> Iterable[str]:
        data, path = fetched(index, limits.TENSOR_HEADER_BYTES)
        names = sorted(set(weight_map(json_object(data, path), path).values()))
        for name in names:
            _check(name)
        return names

    layout = layout_of(json_object(*fetched(INDEX, limits.CONFIG_BYTES)))
    names = HfApi().list_repo_files(repo, revision=revision)
    wanted = [n for n in needed_files(layout, names, shards_of) if _PLAIN.fullmatch(n)]
    return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))


def _check(name: str) -> None:
    try:
        check_name(name)
    except BundleError as error:
        raise ConvertError(error.message, code=error.code, hint=error.hint) from None
