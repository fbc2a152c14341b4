"""Files that are added to a bundle after it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..storage.aside import replace_file
from ..storage.folder import open_regular, sha256_fd
from .manifest import MANIFEST_NAME, Manifest
from .reader import Bundle


def list_files(bundle: Bundle, files: Sequence[Path]) -> None:
    """Size and hash of files that stand in a bundle's folder, put into its manifest with the other
    bytes kept as they mean. Until the manifest is replaced the bundle is what it was."""
    target = bundle.path_of(MANIFEST_NAME)
    manifest = json.loads(target.read_bytes())
    for path in files:
        fd = open_regular(path)
        try:
            sha256, size = sha256_fd(fd)
        finally:
            os.close(fd)
        manifest["files"][path.name] = {"sha256": sha256, "size": size}
    data = json.dumps(manifest, indent=1, ensure_ascii=False).encode("utf-8")
    Manifest.from_json(data, where=str(target))
    replace_file(target, data)
