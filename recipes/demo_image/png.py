"""Writes RGB pictures as PNG, and many of them on one sheet."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def png(pixels: np.ndarray) -> bytes:
    """uint8 [h, w, 3] -> a PNG file; each line less the one above it."""
    height, width, _ = pixels.shape
    above = np.concatenate([np.zeros_like(pixels[:1]), pixels[:-1]])
    lines = (pixels - above).reshape(height, -1)  # wraps around, as PNG wants
    raw = np.concatenate([np.full((height, 1), 2, np.uint8), lines], 1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def write_sheet(images: Tensor, columns: int, path: Path, *, side: int = 96, gap: int = 4) -> None:
    """float [n, 3, s, s] in 0..1 -> one PNG, row by row."""
    small = F.interpolate(images.cpu(), size=(side, side), mode="bilinear", antialias=True)
    pixels = (small.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    rows = -(-len(pixels) // columns)
    sheet = np.full((rows * (side + gap) + gap, columns * (side + gap) + gap, 3), 255, np.uint8)
    for i, picture in enumerate(pixels):
        y, x = (gap + k * (side + gap) for k in divmod(i, columns))
        sheet[y : y + side, x : x + side] = picture
    path.write_bytes(png(sheet))
