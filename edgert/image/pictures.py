"""Pictures as files: PNGs that carry their settings, and pictures from strangers.

Settings stand in a PNG twice: as JSON under the key "edgert", which `edgert inspect` reads, and as
a line under "parameters", the form that other programs show.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import BundleError, RequestError
from ..storage import strict_json
from ..storage.aside import write_output
from ..storage.folder import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

F32 = NDArray[np.float32]
KEY, LINE = "edgert", "parameters"  # of a PNG's text
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def to_image(rows: F32, height: int, width: int) -> Image:
    """A picture of rows float32 [height * width, 3] in [-1, 1]; values outside are clipped."""
    from PIL import Image

    levels = np.rint(np.clip(rows * 127.5 + 127.5, 0, 255)).astype(np.uint8)
    return Image.fromarray(levels.reshape(height, width, 3))


def to_rows(image: Image) -> F32:
    """An RGB picture as rows float32 [height * width, 3] in [-1, 1]."""
    levels = np.asarray(image.convert("RGB"), np.float32)
    return (levels / 127.5 - 1).reshape(-1, 3)


def png(image: Image, settings: Mapping[str, Any]) -> bytes:
    """A PNG file with the settings in it."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(KEY, json.dumps(settings, ensure_ascii=True, allow_nan=False))
    info.add_itxt(LINE, line_of(settings))
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=info)
    return out.getvalue()


def line_of(settings: Mapping[str, Any]) -> str:
    """Settings as one text: the prompt, the negative prompt, then names and values."""
    shown = {
        "steps": "Steps", "sampler": "Sampler", "cfg_scale": "CFG scale", "seed": "Seed",
        "strength": "Denoising strength", "model": "Model", "cache": "Cache",
        "evaluations": "Evaluations",
    }  # fmt: skip
    lines = [str(settings.get("prompt", ""))]
    if settings.get("negative_prompt"):
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    pairs = [f"{title}: {settings[key]}" for key, title in shown.items() if key in settings]
    if {"width", "height"} <= set(settings):
        pairs.append(f"Size: {settings['width']}x{settings['height']}")
    return "\n".join([*lines, ", ".join(pairs)])


def save(image: Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a PNG in one go: nobody ever sees half of it."""
    if path.suffix.lower() != ".png":
        raise RequestError(
            f"the picture would be called {path.name!r}, expected a name that ends in .png",
            code="image-format",
            hint="PNG keeps the settings beside the picture; convert it afterwards",
        )
    write_output(path, png(image, settings))


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings that a PNG of edgert carries, None for other PNGs. RequestError for what is no
    picture."""
    with _opened(path, ("PNG",)) as image:
        text = getattr(image, "text", {}).get(KEY)
    if not isinstance(text, str):
        return None
    found = strict_json.parse(text.encode(), where=f"{path}: settings", code="image-settings")
    return found if isinstance(found, dict) else None


def load_picture(path: Path, width: int, height: int) -> Image:
    """A picture of a file as RGB of this size: turned as its EXIF data says, transparent parts on
    white, cut at two sides where its shape is another. RequestError for what is no picture, too
    large, or damaged."""
    from PIL import Image, ImageOps

    with _opened(path, FORMATS) as opened:
        try:
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
        except (OSError, ValueError, SyntaxError) as error:
            raise _damaged(path, error) from None
    ground = Image.new("RGBA", upright.size, "white")
    flat = Image.alpha_composite(ground, upright).convert("RGB")
    return ImageOps.fit(flat, (width, height), Image.Resampling.LANCZOS)


def _opened(path: Path, formats: tuple[str, ...]) -> Image:
    """A whole picture of an allowed size."""
    from PIL import Image, UnidentifiedImageError

    data = _read(path)
    try:
        with warnings.catch_warnings():  # Pillow warns of sizes that are refused below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=formats)
        _check_size(path, *image.size)
        image.load()  # all of it: a PNG's text may stand behind the pixels
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError,
            SyntaxError, MemoryError) as error:  # fmt: skip
        raise _damaged(path, error) from None
    return image


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > limits.IMAGE_PIXELS:
        raise RequestError(
            f"{path} is {width} x {height} pixels, the limit is {limits.IMAGE_PIXELS} in all",
            code="image-size",
            hint="make it smaller first",
        )


def _read(path: Path) -> bytes:
    try:
        descriptor = open_regular(path, follow=True)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(limits.IMAGE_BYTES + 1)
    except (OSError, BundleError) as error:
        reason = error.message if isinstance(error, BundleError) else f"{path}: {error.strerror}"
        raise RequestError(f"{reason}, expected a picture", code="image-file") from None
    if len(data) > limits.IMAGE_BYTES:
        raise RequestError(
            f"{path} has more than {limits.IMAGE_BYTES} bytes, the limit of a picture",
            code="image-size",
            hint="make it smaller first",
        )
    return data


def _damaged(path: Path, error: BaseException) -> RequestError:
    from PIL import UnidentifiedImageError

    # Pillow's own words name an object in memory there.
    why = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
    return RequestError(
        f"{path} is no picture that can be read ({type(error).__name__}: {why}), expected one "
        f"of {', '.join(FORMATS)}",
        code="image-file",
    )
