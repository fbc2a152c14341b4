"""Pictures in a terminal: by its own protocol where it has one, else in coloured half blocks."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 48  # of a picture in half blocks, at most
CHUNK = 4096  # characters of one message of kitty's protocol
INLINE = ("iTerm.app", "WezTerm")  # programs that know iTerm2's protocol


def way_of(stream: TextIO, environ: Mapping[str, str] = os.environ) -> str:
    """How a stream can show a picture: "kitty", "iterm", "blocks", or "" for not at all."""
    if not stream.isatty() or environ.get("TMUX") or environ.get("TERM", "").startswith("screen"):
        return ""
    if "kitty" in environ.get("TERM", "") or environ.get("TERM_PROGRAM") == "ghostty":
        return "kitty"
    if environ.get("TERM_PROGRAM") in INLINE:
        return "iterm"
    return "blocks" if environ.get("COLORTERM") in ("truecolor", "24bit") else ""


def text_of(image: Image, way: str, columns: int = COLUMNS) -> str:
    """What to write so that a terminal shows a picture, with a newline behind it."""
    if way == "blocks":
        return _blocks(image, columns)
    data = io.BytesIO()
    image.save(data, "PNG")
    packed = base64.b64encode(data.getvalue()).decode("ascii")
    if way == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(data.getvalue())}:{packed}\x07\n"
    pieces = [packed[at : at + CHUNK] for at in range(0, len(packed), CHUNK)]
    sent = []
    for index, piece in enumerate(pieces):
        first = "a=T,f=100," if index == 0 else ""
        sent.append(f"\x1b_G{first}m={int(index + 1 < len(pieces))};{piece}\x1b\\")
    return "".join(sent) + "\n"


def _blocks(image: Image, columns: int) -> str:
    """Two pixels a character: the upper half in the foreground's colour, the lower behind it."""
    width = min(columns, image.width)
    height = max(2, round(image.height * width / image.width / 2) * 2)
    pixels: Any = np.asarray(image.convert("RGB").resize((width, height)))
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(upper, lower, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines) + "\n"
