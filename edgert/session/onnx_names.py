"""Names of a bundle's .onnx files: which graph of a part a file is an emission of, and how it was
made.

    <part>[.<piece>]<variant>[.<width>x<height>].onnx

A piece is a cut of a denoiser that the sampling loop runs by itself. Width and height are pixels of
the picture that the graph was resized for; without them it is the size that the bundle was made
for. Metadata of the file (`onnx_check.metadata`) holds the hash of the very graph.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .onnx_io import PLAIN, Variant

PIECES = ("embed", "body", "head", "feature")


@dataclass(frozen=True)
class Emission:
    """What a file name says. piece: "" for the part's whole graph. size: width and height in
    pixels, None for the part's own."""

    part: str
    variant: Variant = PLAIN
    piece: str = ""
    size: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The file name."""
        piece = f".{self.piece}" if self.piece else ""
        size = f".{self.size[0]}x{self.size[1]}" if self.size else ""
        return f"{self.part}{piece}{self.variant.suffix}{size}.onnx"

    @staticmethod
    def of_file(part: str, name: str) -> Emission | None:
        """What a file name says, None for files that are no .onnx of that part."""
        found = re.fullmatch(
            rf"{re.escape(part)}(?:\.({'|'.join(PIECES)}))?(\.[a-z0-9.-]+?)??"
            r"(?:\.([1-9]\d{0,4})x([1-9]\d{0,4}))?\.onnx",
            name,
        )
        if not found:
            return None
        piece, suffix, width, height = found.groups()
        variant = Variant.of_file(part, f"{part}{suffix or ''}.onnx")
        if variant is None:
            return None
        size = (int(width), int(height)) if width else None
        return Emission(part, variant, piece or "", size)
