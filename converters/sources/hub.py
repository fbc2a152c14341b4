"""Where a checkpoint's folder is: here, or in the cache of huggingface_hub after a download."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...errors import ConvertError
from .hub_client import cache_only, meaning, quiet

SIDECARS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")
DOWNLOAD = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", *SIDECARS]
SKIPPED = ["*/*", "consolidated*"]  # other formats of the same weights
FURTHER = ["additional_chat_templates/*.jinja"]  # of what SKIPPED leaves out
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def local_folder(source: str | Path) -> Path:
    """The directory of a checkpoint; a hub id is downloaded into huggingface_hub's cache."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        refuse_gguf(path)
        raise ConvertError(
            f"{path} is a file, expected a checkpoint directory or a hub id",
            code="source",
            hint="give the folder that holds config.json and model.safetensors",
        )
    if not isinstance(source, str) or not HUB_ID.fullmatch(source) or source.startswith("."):
        raise ConvertError(
            f"{source}: no such directory, expected a checkpoint directory or a hub id (org/name)",
            code="source",
            hint="check the path",
        )
    return _download(source)


def refuse_gguf(path: Path) -> None:
    """ConvertError for a GGUF file, or a folder that holds any."""
    found = [path] if path.suffix.lower() == ".gguf" else sorted(path.glob("*.[gG][gG][uU][fF]"))
    if found:
        names = ", ".join(file.name for file in found[:3]) + ", ..." * (len(found) > 3)
        raise ConvertError(
            f"{path} is a model in the format GGUF ({names}), expected a Hugging Face checkpoint: "
            "config.json, tokenizer.json and model.safetensors",
            code="gguf",
            hint=f"name the file itself: edgert convert {found[0]} -o {found[0].stem}.edge",
        )


def _download(source: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConvertError(
            f"{source} is no directory here, and a hub id needs huggingface_hub, which is missing",
            code="missing-package",
            hint="pip install huggingface_hub, or download the checkpoint yourself",
        ) from None
    repo, _, revision = source.partition("@")
    offline = cache_only()
    asked: dict[str, Any] = {"revision": revision or None}
    asked |= {"local_files_only": True} if offline else {}
    try:
        with quiet():
            found = snapshot_download(
                repo, allow_patterns=DOWNLOAD, ignore_patterns=SKIPPED, **asked
            )
            snapshot_download(repo, allow_patterns=FURTHER, **asked)
    except Exception as error:  # the hub's client raises its own, httpx's and OSError
        raise ConvertError(
            f"{source} is no directory here and could not be downloaded: {meaning(error, offline)}",
            code="download",
            hint="check the name, the network and, for gated models, `hf auth login`; or bring the "
            "checkpoint's folder here and give its path",
        ) from error
    return Path(found)
