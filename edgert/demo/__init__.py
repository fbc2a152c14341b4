"""The models that come with the package.

`edgert-demo.edge` is a bundle: the chat model that verbs use when none is named, trained by
`recipes/demo_text` and made from the checkpoint that it wrote by

    edgert convert demo_text_work/checkpoint -o edgert/demo/edgert-demo.edge --name edgert-demo
        --method rtn

`edgert-draw.edge` is the drawing model that `edgert image` uses when none is named, trained by
`recipes/demo_image` and made by

    edgert convert demo_image_work/checkpoint -o edgert/demo/edgert-draw.edge --name edgert-draw
    edgert calibrate edgert/demo/edgert-draw.edge --prompts recipes/demo_image/calibration.txt

Their cards are `README.md` in the bundles. `quality.json` holds what conversion cost it, written by
`python -m benchmarks.quality_demo --write`.

`stories260k` is a tiny checkpoint in the Hugging Face layout, for tests and measurements.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ResourceError

NAME = "edgert-demo"
IMAGE_NAME = "edgert-draw"
LICENCE = "CC BY-SA 4.0"  # of its weights
CHECKPOINT = "stories260k"
QUALITY = "quality.json"
_AGAIN = "install edgert again: pip install --force-reinstall edgert"


def demo_bundle() -> Path:
    """The chat model's bundle, where the package is installed. Raises ResourceError."""
    path = Path(__file__).resolve().parent / f"{NAME}.edge"
    if not (path / "manifest.json").is_file():
        raise ResourceError(
            f"no bundle in {path}, expected manifest.json and the files it lists",
            code="demo-missing",
            hint=_AGAIN,
        )
    return path


def image_bundle() -> Path:
    """The drawing model's bundle. Raises ResourceError."""
    path = Path(__file__).resolve().parent / f"{IMAGE_NAME}.edge"
    if not (path / "manifest.json").is_file():
        raise ResourceError(
            f"no bundle in {path}, expected manifest.json and the files it lists",
            code="demo-missing",
            hint=_AGAIN,
        )
    return path


def demo_checkpoint() -> Path:
    """The small checkpoint, a directory in the Hugging Face layout. Raises ResourceError."""
    path = Path(__file__).resolve().parent / CHECKPOINT
    if not (path / "config.json").is_file():
        raise ResourceError(
            f"no checkpoint in {path}, expected config.json, model.safetensors and tokenizer.json",
            code="demo-missing",
            hint=_AGAIN,
        )
    return path


def quality() -> dict[str, Any]:
    """What was measured of the chat model in f16 and in int4. Raises ResourceError."""
    path = Path(__file__).resolve().parent / QUALITY
    if not path.is_file():
        raise ResourceError(
            f"no file {path}, expected the demo model's measurements",
            code="demo-missing",
            hint=_AGAIN,
        )
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
