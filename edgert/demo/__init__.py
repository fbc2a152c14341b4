"""The model that comes with the package, and its bundle.

The checkpoint is converted once, with the public converter, into the user's cache; the bundle's
name carries a hash of the checkpoint and edgert's version, so a newer one is made anew.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import ResourceError

NAME = "stories260k"
PROMPT = "Once upon a time"


def demo_checkpoint() -> Path:
    """The shipped checkpoint, a directory in the Hugging Face layout. Raises ResourceError."""
    path = Path(__file__).resolve().parent / NAME
    if not (path / "config.json").is_file():
        raise ResourceError(
            f"no checkpoint in {path}, expected config.json, model.safetensors and tokenizer.json",
            code="demo-missing",
            hint="install edgert again: pip install --force-reinstall edgert",
        )
    return path


def demo_bundle_path() -> Path:
    """Where the demo's bundle is kept, whether or not it is there yet."""
    from .. import __version__
    from ..bundle import FORMAT
    from ..cachedir import cache_root

    digest = hashlib.sha256(f"{__version__} {FORMAT}\n".encode())
    for path in sorted(demo_checkpoint().iterdir()):
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return cache_root() / "demo" / f"{NAME}-{digest.hexdigest()[:16]}.edge"


def demo_bundle(progress: Callable[[str], None] | None = None) -> Path:
    """The shipped checkpoint as a bundle; the first call converts it.

    progress: told in one line what takes time. A cache that cannot be written gets a notice, and
    the bundle lives until the process ends.
    """
    from ..cachedir import writable
    from ..notices import notice

    path = demo_bundle_path()
    if (path / "manifest.json").is_file():
        return path
    folder = path.parent
    if not writable(folder):
        notice(f"{folder} cannot be written, so the demo model is converted anew each time")
        folder = Path(tempfile.mkdtemp(prefix="edgert-demo-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = folder / path.name
    if progress is not None:
        progress(f"edgert: converting the model of this package, {NAME}, into {path}")
    _convert(path)
    return path


def _convert(path: Path) -> None:
    """Convert beside `path` and rename; whoever is first wins, all get the same bundle."""
    from ..converters.convert import convert

    with tempfile.TemporaryDirectory(dir=path.parent, prefix="making-") as folder:
        made = Path(folder) / path.name
        convert(demo_checkpoint(), made, name=NAME, progress=False)
        try:
            os.rename(made, path)
        except OSError:
            if not (path / "manifest.json").is_file():
                raise
