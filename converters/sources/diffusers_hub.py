"""Where a diffusers directory is: here, or in the cache of huggingface_hub after a download of the
files that are needed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ... import limits
from ...errors import BundleError, ConvertError
from ...storage.folder import check_name
from .files import json_object, read_file, weight_map
from .hub import HUB_ID
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
        from huggingface_hub import hf_hub_download

        repo, _, revision = source.partition("@")
        return Path(hf_hub_download(repo, INDEX, revision=revision or None)).is_file()
    except Exception:  # no such file, no network, no package: the next kind of source says why
        return False


def pipeline_folder(source: str | Path) -> Path:
    """The directory of a pipeline; of a hub id, the files that a conversion needs are fetched."""
    if Path(source).is_dir():
        return Path(source)
    repo, _, revision = str(source).partition("@")
    try:
        return _fetched(repo, revision or None)
    except ConvertError:
        raise
    except Exception as error:  # the hub's client raises its own, httpx's and OSError
        raise ConvertError(
            f"{source} could not be downloaded: {type(error).__name__}: {str(error)[:300]}",
            code="download",
            hint="check the name, the network and, for gated models, `hf auth login`; or bring the "
            "pipeline's folder here and give its path",
        ) from error


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
